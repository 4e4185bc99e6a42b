//! What a socket's messages travel in: a WebSocket (RFC 6455), or Asterisk's [AudioSocket](super::audiosocket).
//!
//! Both read and write without waiting, over an [`Io`]. A wire keeps what the peer has not taken of the messages that it was given, and
//! nothing else: the queue and all patience are [`Socket`](super::ws::Socket)'s.
use std::io;

use bytes::Bytes;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::{
    self, Message,
    protocol::{
        CloseFrame, Role, WebSocketConfig,
        frame::{
            Frame as RawFrame,
            coding::{CloseCode, Data, OpCode},
        },
    },
};

use super::{
    audiosocket::AudioSocket,
    io::Io,
    outbox::{Kind, Queued},
    ws::{Frame, SocketError, SocketLimits},
};

/// Bytes gathered for one system call.
pub(super) const WRITE_BATCH: usize = 16 << 10;
/// Control frames allowed at once, and refilled per second. Browsers and SDKs ping once in seconds; floods were measured
/// at a gigabyte in six seconds.
const CONTROL_BURST: f64 = 60.0;
const CONTROL_PER_SECOND: f64 = 10.0;

/// One of the two.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "nearly all are WebSockets")]
pub(super) enum Wire {
    WebSocket(WebSocket),
    AudioSocket(AudioSocket),
}

impl Wire {
    /// The next message, or `None` when there is none at the moment.
    pub(super) fn read(&mut self) -> Result<Option<Frame>, SocketError> {
        match self {
            Self::WebSocket(wire) => wire.read(),
            Self::AudioSocket(wire) => wire.read(),
        }
    }

    /// Takes a message, which is the wire's from now on. Whether the peer takes more.
    pub(super) fn write(&mut self, queued: &Queued) -> Result<bool, SocketError> {
        match self {
            Self::WebSocket(wire) => taken(wire.library().write(message(queued))),
            Self::AudioSocket(wire) => wire.write(queued),
        }
    }

    /// Writes what it holds. Whether that was all.
    pub(super) fn flush(&mut self) -> Result<bool, SocketError> {
        match self {
            Self::WebSocket(wire) => taken(wire.library().flush()),
            Self::AudioSocket(wire) => wire.flush(),
        }
    }

    /// Says goodbye, where there is a word for it. Whether it has gone out.
    pub(super) fn close(&mut self, code: u16, reason: String) -> Result<bool, SocketError> {
        match self {
            Self::WebSocket(wire) => {
                let frame = CloseFrame { code: CloseCode::from(code), reason: reason.into() };
                taken(wire.library().close(Some(frame)))
            }
            Self::AudioSocket(wire) => wire.flush(),
        }
    }

    /// The peer has not said goodbye.
    pub(super) fn is_open(&self) -> bool {
        match self {
            Self::WebSocket(wire) => wire.ws.as_ref().is_some_and(tungstenite::WebSocket::can_write),
            Self::AudioSocket(wire) => wire.is_open(),
        }
    }

    /// The connection's end is ours to begin: the peer waits for it.
    pub(super) fn ends(&self) -> bool {
        match self {
            // RFC 6455 section 7.1.1; browsers wait with their `onclose`.
            Self::WebSocket(wire) => wire.role == Role::Server,
            Self::AudioSocket(_) => true,
        }
    }

    /// Bytes that have come of a message that is not whole; `None`: none has begun.
    pub(super) fn unfinished(&self) -> Option<u64> {
        match self {
            Self::WebSocket(_) => {
                let incoming = &self.io().incoming;
                incoming.unfinished().then(|| incoming.pending())
            }
            Self::AudioSocket(wire) => wire.unfinished(),
        }
    }

    /// The stream underneath.
    pub(super) fn io(&self) -> &Io {
        match self {
            Self::WebSocket(wire) => wire.ws.as_ref().expect(PUT_BACK).get_ref(),
            Self::AudioSocket(wire) => wire.io(),
        }
    }

    /// The same, to change.
    pub(super) fn io_mut(&mut self) -> &mut Io {
        match self {
            Self::WebSocket(wire) => wire.library().get_mut(),
            Self::AudioSocket(wire) => wire.io_mut(),
        }
    }

    /// Bytes of its read buffer.
    pub(super) fn read_buffer(&self) -> usize {
        match self {
            Self::WebSocket(wire) => wire.config.read_buffer_size,
            Self::AudioSocket(wire) => wire.read_buffer(),
        }
    }

    /// Reads with a buffer of so many bytes from now on, and gives grown ones back; only while no byte is under way.
    pub(super) fn resize(&mut self, read_buffer: usize) {
        match self {
            Self::WebSocket(wire) => wire.resize(read_buffer),
            Self::AudioSocket(wire) => wire.resize(read_buffer),
        }
        self.io_mut().crowded = false;
    }
}

const PUT_BACK: &str = "only taken inside `resize`, which puts it back";

/// The library's WebSocket.
#[derive(Debug)]
pub(super) struct WebSocket {
    ws: Option<tungstenite::WebSocket<Io>>,
    role: Role,
    config: WebSocketConfig,
    control: (f64, Instant),
}

impl WebSocket {
    /// One whose handshake is done; `read_already` came right behind it.
    pub(super) fn new(mut io: Io, role: Role, limits: SocketLimits, read_already: Vec<u8>) -> Self {
        let config = WebSocketConfig::default()
            .read_buffer_size(limits.read_buffer)
            .write_buffer_size(WRITE_BATCH)
            .max_write_buffer_size(usize::MAX)
            .max_message_size(Some(limits.max_message))
            .max_frame_size(Some(limits.max_message));
        io.incoming.feed(&read_already);
        let ws = tungstenite::WebSocket::from_partially_read(io, read_already, role, Some(config));
        Self { ws: Some(ws), role, config, control: (CONTROL_BURST, Instant::now()) }
    }

    fn library(&mut self) -> &mut tungstenite::WebSocket<Io> {
        self.ws.as_mut().expect(PUT_BACK)
    }

    fn read(&mut self) -> Result<Option<Frame>, SocketError> {
        loop {
            let message = match self.library().read() {
                Ok(message) => message,
                Err(tungstenite::Error::Io(e)) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(SocketError::from_library(error)),
            };
            return Ok(Some(match message {
                Message::Text(text) => Frame::Text(text.into()),
                Message::Binary(bytes) => Frame::Binary(bytes),
                Message::Pong(_) => {
                    self.count_control()?;
                    Frame::Pong
                }
                Message::Ping(_) => {
                    self.count_control()?;
                    continue; // the library has queued the pong
                }
                Message::Close(frame) => {
                    let (code, reason) =
                        frame.map_or((None, String::new()), |f| (Some(f.code.into()), f.reason.to_string()));
                    Frame::Closed { code, reason }
                }
                Message::Frame(_) => continue, // never given out by `read`
            }));
        }
    }

    fn count_control(&mut self) -> Result<(), SocketError> {
        let now = Instant::now();
        let (tokens, at) = self.control;
        let tokens = (tokens + now.duration_since(at).as_secs_f64() * CONTROL_PER_SECOND).min(CONTROL_BURST) - 1.0;
        self.control = (tokens, now);
        if tokens < 0.0 { Err(SocketError::ControlFlood) } else { Ok(()) }
    }

    fn resize(&mut self, read_buffer: usize) {
        self.config = self.config.read_buffer_size(read_buffer);
        if let Some(ws) = self.ws.take() {
            self.ws = Some(tungstenite::WebSocket::from_raw_socket(ws.into_inner(), self.role, Some(self.config)));
        }
    }
}

/// Whether the peer takes more: the library keeps what it could not write.
fn taken(written: tungstenite::Result<()>) -> Result<bool, SocketError> {
    match written {
        Ok(()) => Ok(true),
        Err(tungstenite::Error::Io(e)) if e.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(SocketError::from_library(error)),
    }
}

fn message(queued: &Queued) -> Message {
    // Text was made by us: the library need not check it for UTF-8 again.
    let kind = match queued.kind {
        Kind::Text | Kind::Spoken => Data::Text,
        Kind::Binary | Kind::Control => Data::Binary,
        Kind::Ping => return Message::Ping(Bytes::new()),
    };
    Message::Frame(RawFrame::message(queued.payload.clone(), OpCode::Data(kind), true))
}
