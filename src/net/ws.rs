//! One WebSocket of either role, or one AudioSocket: frames in, a queue out that urgent words overtake, limits and a clean goodbye.
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
    self,
    error::{CapacityError, ProtocolError},
    protocol::Role,
};

use super::{
    audiosocket::AudioSocket,
    io::Io,
    outbox::Outbox,
    wire::{WebSocket, Wire},
};

/// A large message may take its time, but not for ever: at least so many bytes a second.
const SLOWEST_MESSAGE: u64 = 64 << 10;
/// How long unread input is taken in after a close frame: unread bytes cause a reset that can destroy the frame.
const DRAIN: Duration = Duration::from_secs(1);

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
    pub(super) fn from_library(error: tungstenite::Error) -> Self {
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

/// One WebSocket, or one AudioSocket.
#[derive(Debug)]
pub struct Socket {
    wire: Wire,
    outbox: Outbox,
    /// A write was refused since the last successful one.
    blocked: bool,
    /// Bytes of the stream when progress was last seen, and when that was.
    progress: (u64, Instant),
    unfinished_since: Option<Instant>,
}

impl Socket {
    /// A WebSocket whose handshake is done; `read_already` are bytes that came right behind the handshake.
    pub fn new(io: Io, role: Role, limits: SocketLimits, read_already: Vec<u8>) -> Self {
        Self::over(Wire::WebSocket(WebSocket::new(io, role, limits, read_already)))
    }

    /// An [AudioSocket](super::audiosocket); `read_already` are its first bytes.
    pub fn audiosocket(io: Io, limits: SocketLimits, read_already: &[u8]) -> Self {
        Self::over(Wire::AudioSocket(AudioSocket::new(io, limits, read_already)))
    }

    fn over(wire: Wire) -> Self {
        let progress = (0, Instant::now());
        Self { wire, outbox: Outbox::default(), blocked: false, progress, unfinished_since: None }
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
        let frame = self.wire.read()?;
        match &frame {
            Some(Frame::Text(_) | Frame::Binary(_)) => self.unfinished_since = None,
            Some(Frame::Pong | Frame::Closed { .. }) => {} // between two fragments it finishes nothing
            None => self.note_unfinished(),
        }
        Ok(frame)
    }

    fn note_unfinished(&mut self) {
        if self.wire.unfinished().is_none() {
            self.unfinished_since = None;
        } else if self.unfinished_since.is_none() {
            self.unfinished_since = Some(Instant::now());
        }
    }

    /// When the peer's time to finish a message that it began is over: `patience`, and more for what has come of a large one.
    pub fn unfinished_until(&self, patience: Duration) -> Option<Instant> {
        let earned = Duration::from_secs(self.wire.unfinished().unwrap_or(0) / SLOWEST_MESSAGE);
        self.unfinished_since.map(|since| since + patience + earned)
    }

    /// We have not read for a while, so what is unfinished is not the peer's fault.
    pub fn excuse(&mut self) {
        self.unfinished_since = self.unfinished_since.map(|_| Instant::now());
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
            self.progress = (self.wire.io().written, Instant::now()); // a stall begins with something to write
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
            // The wire still holds bytes of an earlier message.
            self.flush_wire()?;
        }
        while !self.blocked {
            let Some(next) = self.outbox.pop() else { break };
            let written = self.wire.write(&next);
            // The wire has it, whether or not it could write it: what did not arrive is said again on the next socket.
            self.outbox.taken(Instant::now(), next.kind, &next.payload, next.counts());
            self.took_all(written?);
        }
        if !self.blocked {
            self.flush_wire()?;
        }
        let written = self.wire.io().written;
        if written != self.progress.0 {
            self.progress = (written, Instant::now());
        }
        Ok(())
    }

    fn flush_wire(&mut self) -> Result<(), SocketError> {
        let all = self.wire.flush()?;
        self.took_all(all);
        Ok(())
    }

    fn took_all(&mut self, all: bool) {
        self.blocked = !all;
        if self.blocked {
            self.watch(true); // somebody must tell when it takes more
        }
    }

    /// Ready when [`Self::read`] may give something. Read until `None` before waiting.
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.wire.io().poll_readable(cx)
    }

    /// Ready when a blocked [`Self::flush`] may go on; pending for ever when it is not blocked.
    pub fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.blocked { self.wire.io().poll_writable(cx) } else { Poll::Pending }
    }

    /// Whether the runtime wakes this call when bytes come ([`Io::watch`]). A blocked socket is always watched.
    pub fn watch(&mut self, watch: bool) {
        let watch = watch || self.blocked;
        self.wire.io_mut().watch(watch);
    }

    /// More came at once than the read buffer holds, and a buffer of so many bytes would be larger.
    pub fn is_crowded(&self, read_buffer: usize) -> bool {
        self.wire.io().crowded && self.wire.read_buffer() < read_buffer
    }

    /// Reads with a buffer of so many bytes from now on, and gives grown ones back; does nothing while bytes are under way
    /// in either direction, so say it when [`Self::read`] gave `None`.
    pub fn resize(&mut self, read_buffer: usize) {
        let idle = self.outbox.is_empty() && !self.blocked && self.wire.unfinished().is_none();
        if idle && self.wire.is_open() {
            self.outbox.shrink(Instant::now());
            self.wire.resize(read_buffer);
        }
    }

    /// Says goodbye: writes what is queued as far as `patience` allows, the close frame where there are such, and takes unread input
    /// for up to a second, so that the goodbye is not destroyed by a reset.
    pub async fn close(mut self, code: u16, reason: &str, patience: Duration) {
        let _ = time::timeout(patience, self.write_out(code, reason)).await;
        if self.wire.ends() {
            self.wire.io_mut().end_writing();
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
        if !self.wire.is_open() {
            // The peer said goodbye first: after it only our answer may go out, which the wire has queued.
            self.outbox.clear();
        }
        self.flush()?;
        while self.blocked {
            self.writable().await?;
            self.flush()?;
        }
        let mut all = self.wire.close(code, reason)?;
        while !all {
            self.blocked = true;
            self.writable().await?;
            all = self.wire.flush()?;
        }
        Ok(())
    }

    async fn writable(&self) -> Result<(), SocketError> {
        std::future::poll_fn(|cx| self.wire.io().poll_writable(cx)).await.map_err(SocketError::Lost)
    }

    /// Takes raw bytes, since after a framing error there are no frames any more, until the peer hangs up.
    async fn drain(&mut self) {
        let mut sink = [0u8; 2048];
        loop {
            match self.wire.io_mut().read(&mut sink) {
                Ok(0) => return,
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    if std::future::poll_fn(|cx| self.wire.io().poll_readable(cx)).await.is_err() {
                        return;
                    }
                }
                Err(_) => return,
            }
        }
    }
}
