//! One WebSocket, either role: frames in, a queue out that urgent words overtake, limits and a clean goodbye.
//!
//! Never waits: [`Socket::read`] and [`Socket::flush`] do what can be done now, the two `poll_` methods tell when there
//! is more to do. What a message means is the dialects' business.
use std::{
    io::{self, Read as _},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use tokio::time::{self, Instant};
use tokio_tungstenite::tungstenite::{
    self, Message, WebSocket,
    error::{CapacityError, ProtocolError},
    protocol::{
        CloseFrame, Role, WebSocketConfig,
        frame::{
            Frame as RawFrame,
            coding::{CloseCode, Data, OpCode},
        },
    },
};

use super::{
    io::Io,
    outbox::{Kind, Outbox, Queued},
};

/// A large message may take its time, but not for ever: at least so many bytes a second.
const SLOWEST_MESSAGE: u64 = 64 << 10;
/// Bytes gathered for one system call.
const WRITE_BATCH: usize = 16 << 10;
/// How long unread input is taken in after a close frame: unread bytes cause a reset that can destroy the frame.
const DRAIN: Duration = Duration::from_secs(1);
/// Control frames allowed at once, and refilled per second. Browsers and SDKs ping once in seconds; floods were measured
/// at a gigabyte in six seconds.
const CONTROL_BURST: f64 = 60.0;
const CONTROL_PER_SECOND: f64 = 10.0;

/// Bounds of one socket.
#[derive(Debug, Clone, Copy)]
pub struct SocketLimits {
    /// Largest message taken, bytes.
    pub max_message: usize,
    /// Read buffer, bytes; allocated per socket.
    pub read_buffer: usize,
}

/// What came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// A text message; valid UTF-8.
    Text(Bytes),
    /// A binary message.
    Binary(Bytes),
    /// An answer to our ping.
    Pong,
    /// The peer said goodbye.
    Closed {
        /// Its close code; `None`: none was sent.
        code: Option<u16>,
        /// Its reason.
        reason: String,
    },
}

/// Why a socket cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// RFC 6455 was broken.
    #[error("framing violation: {0}")]
    Protocol(String),
    /// A text message is not UTF-8.
    #[error("a text message is not valid UTF-8")]
    Utf8,
    /// Refused by its header.
    #[error("message of {got} bytes is over the {limit} byte limit")]
    TooLarge {
        /// Announced size, bytes.
        got: usize,
        /// What is allowed, bytes.
        limit: usize,
    },
    /// Too many pings or pongs.
    #[error("too many control frames")]
    ControlFlood,
    /// The connection is gone without a goodbye.
    #[error("connection lost: {0}")]
    Lost(io::Error),
}

impl SocketError {
    fn from_library(error: tungstenite::Error) -> Self {
        match error {
            tungstenite::Error::Capacity(CapacityError::MessageTooLong { size, max_size }) => {
                Self::TooLarge { got: size, limit: max_size }
            }
            tungstenite::Error::Utf8(_) => Self::Utf8,
            tungstenite::Error::Protocol(ProtocolError::ResetWithoutClosingHandshake)
            | tungstenite::Error::ConnectionClosed
            | tungstenite::Error::AlreadyClosed => Self::Lost(io::ErrorKind::ConnectionReset.into()),
            tungstenite::Error::Io(error) => Self::Lost(error),
            other => Self::Protocol(other.to_string()),
        }
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

/// One WebSocket.
#[derive(Debug)]
pub struct Socket {
    ws: Option<WebSocket<Io>>,
    role: Role,
    config: WebSocketConfig,
    outbox: Outbox,
    /// A write was refused since the last successful one.
    blocked: bool,
    /// Bytes of the stream when progress was last seen, and when that was.
    progress: (u64, Instant),
    control: (f64, Instant),
    unfinished_since: Option<Instant>,
}

impl Socket {
    /// A socket whose handshake is done; `read_already` are bytes that came right behind the handshake.
    pub fn new(io: Io, role: Role, limits: SocketLimits, read_already: Vec<u8>) -> Self {
        let config = WebSocketConfig::default()
            .read_buffer_size(limits.read_buffer)
            .write_buffer_size(WRITE_BATCH)
            .max_write_buffer_size(usize::MAX)
            .max_message_size(Some(limits.max_message))
            .max_frame_size(Some(limits.max_message));
        let mut io = io;
        io.incoming.feed(&read_already);
        let now = Instant::now();
        Self {
            ws: Some(WebSocket::from_partially_read(io, read_already, role, Some(config))),
            role,
            config,
            outbox: Outbox::default(),
            blocked: false,
            progress: (0, now),
            control: (CONTROL_BURST, now),
            unfinished_since: None,
        }
    }

    fn ws(&mut self) -> &mut WebSocket<Io> {
        self.ws.as_mut().expect("only taken inside `resize`, which puts it back")
    }

    fn io(&self) -> &Io {
        self.ws.as_ref().expect("only taken inside `resize`, which puts it back").get_ref()
    }

    /// Waits for the next frame, for those who have nothing else to do.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub async fn next(&mut self) -> Result<Frame, SocketError> {
        loop {
            if let Some(frame) = self.read()? {
                return Ok(frame);
            }
            self.flush()?; // pongs
            std::future::poll_fn(|cx| self.poll_readable(cx)).await.map_err(SocketError::Lost)?;
        }
    }

    /// The next message, or `None` when there is none at the moment.
    ///
    /// # Errors
    /// When the socket cannot go on; say [`Self::close`] then.
    pub fn read(&mut self) -> Result<Option<Frame>, SocketError> {
        loop {
            let message = match self.ws().read() {
                Ok(message) => message,
                Err(tungstenite::Error::Io(e)) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.note_unfinished();
                    return Ok(None);
                }
                Err(error) => return Err(SocketError::from_library(error)),
            };
            if message.is_text() || message.is_binary() {
                self.unfinished_since = None; // a ping between two fragments finishes nothing
            }
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

    fn note_unfinished(&mut self) {
        if !self.io().incoming.unfinished() {
            self.unfinished_since = None;
        } else if self.unfinished_since.is_none() {
            self.unfinished_since = Some(Instant::now());
        }
    }

    /// When the peer's time to finish a message that it began is over: `patience`, and more for what has come of a large one.
    pub fn unfinished_until(&self, patience: Duration) -> Option<Instant> {
        let earned = Duration::from_secs(self.io().incoming.pending() / SLOWEST_MESSAGE);
        self.unfinished_since.map(|since| since + patience + earned)
    }

    /// We have not read for a while, so what is unfinished is not the peer's fault.
    pub fn excuse(&mut self) {
        self.unfinished_since = self.unfinished_since.map(|_| Instant::now());
    }

    fn count_control(&mut self) -> Result<(), SocketError> {
        let now = Instant::now();
        let (tokens, at) = self.control;
        let tokens = (tokens + now.duration_since(at).as_secs_f64() * CONTROL_PER_SECOND).min(CONTROL_BURST) - 1.0;
        self.control = (tokens, now);
        if tokens < 0.0 { Err(SocketError::ControlFlood) } else { Ok(()) }
    }

    /// Queues a text message behind everything queued before it.
    pub fn send_text(&mut self, text: impl Into<Bytes>) {
        self.outbox().text(text.into());
    }

    /// Queues a text message before all audio that is queued, and behind the text before that.
    pub fn send_urgent(&mut self, text: impl Into<Bytes>) {
        self.outbox().urgent(text.into());
    }

    /// Queues a binary message.
    pub fn send_binary(&mut self, bytes: impl Into<Bytes>) {
        self.outbox().binary(bytes.into());
    }

    /// Queues a ping, before everything else.
    pub fn send_ping(&mut self) {
        self.outbox().ping();
    }

    /// What is to be said, and was, to add to it.
    pub fn outbox(&mut self) -> &mut Outbox {
        if self.outbox.is_empty() && !self.blocked {
            self.progress = (self.io().written, Instant::now()); // a stall begins with something to write
        }
        &mut self.outbox
    }

    /// Gives what is to be said, and was, into other hands, or takes it from there.
    pub fn exchange_outbox(&mut self, outbox: Outbox) -> Outbox {
        std::mem::replace(self.outbox(), outbox)
    }

    /// Forgets binary messages that no socket has taken yet.
    pub fn drop_binary(&mut self) {
        self.outbox.drop_binary();
    }

    /// Payload bytes that no socket has taken yet.
    pub fn queued_bytes(&self) -> usize {
        self.outbox.bytes()
    }

    /// Binary messages that the socket has not taken yet.
    pub fn waiting_audio(&self) -> usize {
        self.outbox.binaries()
    }

    /// The connection has taken everything.
    pub fn is_flushed(&self) -> bool {
        self.outbox.is_empty() && !self.blocked
    }

    /// Since when the peer has taken nothing although there was something to take.
    pub fn stalled_since(&self) -> Option<Instant> {
        self.blocked.then_some(self.progress.1)
    }

    /// Writes what the peer takes now.
    ///
    /// # Errors
    /// When the connection is lost.
    pub fn flush(&mut self) -> Result<(), SocketError> {
        if self.blocked {
            // The library still holds bytes of an earlier message.
            self.flush_library()?;
        }
        while !self.blocked {
            let Some(next) = self.outbox.pop() else { break };
            let written = self.ws().write(message(&next));
            // The library has it, whether or not it could write it: what did not arrive is said again on the next socket.
            self.outbox.taken(Instant::now(), next.kind, &next.payload, next.counts());
            match written {
                Ok(()) => {}
                Err(tungstenite::Error::Io(e)) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.blocked = true;
                    self.watch(true);
                }
                Err(error) => return Err(SocketError::from_library(error)),
            }
        }
        if !self.blocked {
            self.flush_library()?;
        }
        let written = self.io().written;
        if written != self.progress.0 {
            self.progress = (written, Instant::now());
        }
        Ok(())
    }

    fn flush_library(&mut self) -> Result<(), SocketError> {
        match self.ws().flush() {
            Ok(()) => self.blocked = false,
            Err(tungstenite::Error::Io(e)) if e.kind() == io::ErrorKind::WouldBlock => {
                self.blocked = true;
                self.watch(true); // somebody must tell when it takes more
            }
            Err(error) => return Err(SocketError::from_library(error)),
        }
        Ok(())
    }

    /// Ready when [`Self::read`] may give something. Read until `None` before waiting.
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io().poll_readable(cx)
    }

    /// Ready when a blocked [`Self::flush`] may go on; pending for ever when it is not blocked.
    pub fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.blocked { self.io().poll_writable(cx) } else { Poll::Pending }
    }

    /// Whether the runtime wakes this call when bytes come ([`Io::watch`]). A blocked socket is always watched.
    pub fn watch(&mut self, watch: bool) {
        let watch = watch || self.blocked;
        self.ws().get_mut().watch(watch);
    }

    /// More came at once than the read buffer holds, and a buffer of so many bytes would be larger.
    pub fn is_crowded(&self, read_buffer: usize) -> bool {
        self.io().crowded && self.config.read_buffer_size < read_buffer
    }

    /// Reads with a buffer of so many bytes from now on, and gives grown ones back; does nothing while bytes are under way
    /// in either direction, so say it when [`Self::read`] gave `None`.
    pub fn resize(&mut self, read_buffer: usize) {
        let idle = self.outbox.is_empty() && !self.blocked && !self.io().incoming.unfinished();
        if !idle || !self.ws().can_write() {
            return;
        }
        self.outbox.shrink(Instant::now());
        self.config = self.config.read_buffer_size(read_buffer);
        if let Some(ws) = self.ws.take() {
            let mut io = ws.into_inner();
            io.crowded = false;
            self.ws = Some(WebSocket::from_raw_socket(io, self.role, Some(self.config)));
        }
    }

    /// Says goodbye: writes what is queued as far as `patience` allows, the close frame, and takes unread input for up
    /// to a second, so that the goodbye is not destroyed by a reset.
    pub async fn close(mut self, code: u16, reason: &str, patience: Duration) {
        let _ = time::timeout(patience, self.write_out(code, reason)).await;
        if self.role == Role::Server {
            // Clients wait for the server's end of the connection (RFC 6455 section 7.1.1), browsers with their `onclose`.
            self.ws().get_mut().end_writing();
        }
        let _ = time::timeout(DRAIN, self.drain()).await;
    }

    async fn write_out(&mut self, code: u16, reason: &str) -> Result<(), SocketError> {
        self.watch(true);
        // A close reason holds at most 123 bytes (RFC 6455 section 5.5).
        let reason: String = reason
            .chars()
            .scan(0, |len, c| {
                *len += c.len_utf8();
                (*len <= 120).then_some(c)
            })
            .collect();
        if !self.ws().can_write() {
            // The peer said goodbye first: after it only our answer may go out, which the library has queued.
            self.outbox.clear();
        }
        self.flush()?;
        while self.blocked {
            self.writable().await?;
            self.flush()?;
        }
        let frame = CloseFrame { code: CloseCode::from(code), reason: reason.into() };
        let mut done = self.ws().close(Some(frame));
        while let Err(tungstenite::Error::Io(e)) = &done {
            if e.kind() != io::ErrorKind::WouldBlock {
                break;
            }
            self.blocked = true;
            self.writable().await?;
            done = self.ws().flush();
        }
        Ok(())
    }

    async fn writable(&self) -> Result<(), SocketError> {
        std::future::poll_fn(|cx| self.io().poll_writable(cx)).await.map_err(SocketError::Lost)
    }

    /// Takes raw bytes, since after a framing error there are no frames any more, until the peer hangs up.
    async fn drain(&mut self) {
        let mut sink = [0u8; 2048];
        loop {
            match self.ws().get_mut().read(&mut sink) {
                Ok(0) => return,
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    if std::future::poll_fn(|cx| self.io().poll_readable(cx)).await.is_err() {
                        return;
                    }
                }
                Err(_) => return,
            }
        }
    }
}
