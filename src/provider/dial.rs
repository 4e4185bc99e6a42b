//! The connection of a [`super::Line`]: a WebSocket, or TCP for AudioSocket.
use std::{io, task::Poll, time::Duration};

use bytes::{Buf as _, BytesMut};
use rustls::pki_types::CertificateDer;
use secrecy::SecretString;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time,
};

use super::wire::Message;
use crate::{
    caller::{ConnectError, Knock, websocket},
    net::ws::{Frame, Socket, SocketError, SocketLimits},
};

/// How long a provider waits for the connection and the upgrade. Asterisk's AudioSocket gives two seconds to TCP alone.
const PATIENCE: Duration = Duration::from_secs(10);
const TCP_PATIENCE: Duration = Duration::from_secs(2);
/// Longest message that is taken from a relay: 30 s of wide audio in base64, and more.
const LIMITS: SocketLimits = SocketLimits { max_message: 4 << 20, read_buffer: 16 << 10 };
/// How long a goodbye may take.
const GOODBYE: Duration = Duration::from_secs(1);

/// Where the stream goes.
#[derive(Debug, Clone)]
pub enum Address {
    /// A WebSocket.
    WebSocket {
        /// `ws://` or `wss://`.
        url: String,
        /// Offered, and insisted on.
        subprotocol: Option<String>,
        /// Further headers: a signature, a bearer token, basic authentication.
        headers: Vec<(String, SecretString)>,
        /// Authorities that are trusted besides the public ones.
        roots: Vec<CertificateDer<'static>>,
    },
    /// TCP, `host:port`.
    Tcp(String),
}

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// No WebSocket.
    #[error(transparent)]
    WebSocket(#[from] ConnectError),
    /// No TCP connection.
    #[error("cannot connect to {to}")]
    Tcp {
        /// Host and port.
        to: String,
        /// What the system said.
        source: io::Error,
    },
}

/// An open connection.
#[derive(Debug)]
pub(super) enum Connection {
    WebSocket(Box<Socket>),
    Tcp { stream: TcpStream, unsent: BytesMut, gone: bool },
}

impl Address {
    pub(super) async fn connect(&self) -> Result<Connection, DialError> {
        match self {
            Self::WebSocket { url, subprotocol, headers, roots } => {
                let knock = Knock { url, subprotocol: subprotocol.as_deref(), headers, roots };
                let opening = Box::pin(websocket(&knock, LIMITS));
                let late = ConnectError::Timeout { what: "the upgrade to a WebSocket", limit: PATIENCE };
                let socket = time::timeout(PATIENCE, opening).await.unwrap_or(Err(late))?;
                Ok(Connection::WebSocket(Box::new(socket)))
            }
            Self::Tcp(to) => {
                let error = |source| DialError::Tcp { to: to.clone(), source };
                let late = Err(io::ErrorKind::TimedOut.into());
                let stream =
                    time::timeout(TCP_PATIENCE, TcpStream::connect(to)).await.unwrap_or(late).map_err(error)?;
                stream.set_nodelay(true).map_err(error)?;
                Ok(Connection::Tcp { stream, unsent: BytesMut::new(), gone: false })
            }
        }
    }
}

impl Connection {
    /// Queues a message; [`Self::next`] sends it.
    pub(super) fn send(&mut self, message: Message) {
        match (self, message) {
            (Self::WebSocket(socket), Message::Text(text)) => socket.send_text(text),
            (Self::WebSocket(socket), Message::Binary(bytes)) => socket.send_binary(bytes),
            (Self::Tcp { unsent, .. }, Message::Binary(bytes)) => unsent.extend_from_slice(&bytes),
            (Self::Tcp { .. }, Message::Text(_)) | (_, Message::Close { .. }) => {}
        }
    }

    /// Sends what is queued and waits for the relay's next message. Dropping the future loses nothing.
    ///
    /// # Errors
    /// When the connection is gone without a goodbye.
    pub(super) async fn next(&mut self) -> Result<Message, String> {
        match self {
            Self::WebSocket(socket) => message(socket).await.map_err(|error| error.to_string()),
            Self::Tcp { gone: true, .. } => std::future::pending().await,
            Self::Tcp { stream, unsent, gone } => {
                let mut bytes = BytesMut::with_capacity(16 << 10);
                loop {
                    let (mut reading, mut writing) = stream.split();
                    tokio::select! {
                        sent = writing.write(unsent), if !unsent.is_empty() => {
                            unsent.advance(sent.map_err(|error| error.to_string())?);
                        }
                        read = reading.read_buf(&mut bytes) => {
                            *gone = read.map_err(|error| error.to_string())? == 0;
                            let end = Message::Close { code: 1_000 };
                            return Ok(if *gone { end } else { Message::Binary(bytes.freeze()) });
                        }
                    }
                }
            }
        }
    }

    /// Says goodbye.
    pub(super) async fn close(self, code: u16) {
        match self {
            Self::WebSocket(socket) => Box::pin(socket.close(code, "", GOODBYE)).await,
            Self::Tcp { mut stream, unsent, .. } => {
                let goodbye = async {
                    stream.write_all(&unsent).await?;
                    stream.shutdown().await
                };
                // A relay that is gone already needs no goodbye.
                let _ = time::timeout(GOODBYE, goodbye).await;
            }
        }
    }
}

async fn message(socket: &mut Socket) -> Result<Message, SocketError> {
    loop {
        match socket.read()? {
            Some(Frame::Text(text)) => return Ok(Message::Text(String::from_utf8_lossy(&text).into_owned())),
            Some(Frame::Binary(bytes)) => return Ok(Message::Binary(bytes)),
            Some(Frame::Closed { code, .. }) => return Ok(Message::Close { code: code.unwrap_or(1_000) }),
            Some(Frame::Pong) => {}
            None => {
                socket.flush()?;
                let ready = std::future::poll_fn(|cx| match socket.poll_readable(cx) {
                    Poll::Pending => socket.poll_writable(cx),
                    ready => ready,
                });
                ready.await.map_err(SocketError::Lost)?;
            }
        }
    }
}
