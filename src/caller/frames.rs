//! One WebSocket, read and flushed: its frames in our words.
//!
//! Stands on [`super::socket`]. Counts nothing and knows no message; who reads decides what an end means.
use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::{Sink as _, Stream as _};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Error as WsError, Message, error::ProtocolError, protocol::CloseFrame},
};

use super::socket::Socket;

/// A call's connection.
pub(super) type Ws = WebSocketStream<Socket>;

/// What came.
pub(super) enum Received {
    Text(String),
    Binary(Bytes),
    /// A ping, which is answered already, or a pong: no more than a sign of life.
    Control,
    /// The connection is over: close code and reason; 1006 where there was no close frame, 1005 where that held no code.
    End(u16, String),
    /// What came cannot be read, and would not be the next time either.
    Unreadable(String),
}

/// Writes what waits, reads one frame. Reading goes first where writing fails: the reason may stand in the last bytes.
pub(super) fn poll_ws(ws: &mut Ws, cx: &mut Context<'_>) -> Poll<Received> {
    let _sent = Pin::new(&mut *ws).poll_flush(cx);
    let message = std::task::ready!(Pin::new(&mut *ws).poll_next(cx));
    Poll::Ready(match message {
        Some(Ok(Message::Text(text))) => Received::Text(text.as_str().to_owned()),
        Some(Ok(Message::Binary(data))) => Received::Binary(data),
        Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {
            // tungstenite has queued the pong.
            let _sent = Pin::new(&mut *ws).poll_flush(cx);
            Received::Control
        }
        Some(Ok(Message::Close(frame))) => {
            let _answered = Pin::new(&mut *ws).poll_flush(cx);
            match frame {
                Some(CloseFrame { code, reason }) => Received::End(code.into(), reason.as_str().to_owned()),
                None => Received::End(1005, String::new()),
            }
        }
        Some(Err(error)) if is_drop(&error) => Received::End(1006, error.to_string()),
        Some(Err(error)) => Received::Unreadable(error.to_string()),
        None => Received::End(1006, "the connection ended".into()),
    })
}

/// Whether the network did this, and not what was sent over it.
fn is_drop(error: &WsError) -> bool {
    matches!(
        error,
        WsError::Io(_)
            | WsError::ConnectionClosed
            | WsError::AlreadyClosed
            | WsError::Protocol(ProtocolError::ResetWithoutClosingHandshake)
    )
}
