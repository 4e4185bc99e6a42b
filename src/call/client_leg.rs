//! The client's side of a call: its socket, or what is kept for the next one.
//!
//! Messages go into an outbox that outlives sockets. Decides nothing, and knows no message's meaning.
use std::{
    io,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use tokio::time::Instant;

use crate::net::{
    outbox::Outbox,
    ws::{Frame, Socket, SocketError},
};

/// The client's leg.
#[derive(Debug)]
pub struct ClientLeg {
    socket: Option<Socket>,
    /// While there is no socket.
    outbox: Outbox,
}

impl ClientLeg {
    /// A client that is there. `comes_back`: what is said is kept for another socket.
    pub fn new(mut socket: Socket, comes_back: bool) -> Self {
        if comes_back {
            socket.exchange_outbox(Outbox::with_journal());
        }
        Self { socket: Some(socket), outbox: Outbox::default() }
    }

    /// A client that is away; what waits for it.
    pub fn away(outbox: Outbox) -> Self {
        Self { socket: None, outbox }
    }

    /// It has a socket.
    pub fn is_here(&self) -> bool {
        self.socket.is_some()
    }

    /// Its socket.
    pub fn socket(&mut self) -> Option<&mut Socket> {
        self.socket.as_mut()
    }

    /// What is to be said to it.
    pub fn outbox(&mut self) -> &mut Outbox {
        match &mut self.socket {
            Some(socket) => socket.outbox(),
            None => &mut self.outbox,
        }
    }

    /// Takes the socket away, to say goodbye on: `word` is the last that is said on it, past everything that waits.
    pub fn part(&mut self, word: Option<Bytes>) -> Option<Socket> {
        let mut socket = self.socket.take()?;
        self.outbox = socket.exchange_outbox(Outbox::default());
        if let Some(word) = word {
            // What has a number goes before it, so that whoever counts comes to the same number as we do.
            self.outbox.say_again_on(socket.outbox());
            self.outbox.said_last(Instant::now(), &word);
            socket.send_text(word);
        }
        Some(socket)
    }

    /// Takes back the socket that [`Self::part`] gave: it stays, after all.
    pub fn rejoin(&mut self, mut socket: Socket) {
        socket.exchange_outbox(std::mem::take(&mut self.outbox));
        self.socket = Some(socket);
    }

    /// Takes the socket away, with everything that waits for it.
    pub fn take(&mut self) -> Option<Socket> {
        self.socket.take()
    }

    /// Takes a socket in, whose client has everything up to number `got`; `greeting` goes first. How many binary messages it
    /// had missed; the socket back, if what it lacks cannot be had.
    ///
    /// # Errors
    /// See above.
    pub fn take_in(&mut self, mut socket: Socket, greeting: Bytes, got: u64) -> Result<usize, Box<Socket>> {
        let Some(late) = self.outbox().say_again(got) else { return Err(Box::new(socket)) };
        let outbox = std::mem::take(&mut self.outbox);
        socket.exchange_outbox(outbox);
        socket.outbox().uncounted(greeting);
        // In the same packet as the greeting: whoever answers it has that, too.
        socket.send_ping();
        self.socket = Some(socket);
        Ok(late)
    }

    /// As [`Socket::poll_readable`]; nothing comes from a client that is away.
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket.as_ref().map_or(Poll::Pending, |socket| socket.poll_readable(cx))
    }

    /// As [`Socket::poll_writable`].
    pub fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket.as_ref().map_or(Poll::Pending, |socket| socket.poll_writable(cx))
    }

    /// As [`Socket::read`].
    ///
    /// # Errors
    /// As there.
    pub fn read(&mut self) -> Result<Option<Frame>, SocketError> {
        self.socket.as_mut().map_or(Ok(None), Socket::read)
    }

    /// As [`Socket::flush`].
    ///
    /// # Errors
    /// As there.
    pub fn flush(&mut self) -> Result<(), SocketError> {
        self.socket.as_mut().map_or(Ok(()), Socket::flush)
    }

    /// As [`Socket::watch`].
    pub fn watch(&mut self, watch: bool) {
        if let Some(socket) = &mut self.socket {
            socket.watch(watch);
        }
    }

    /// Payload bytes that no socket has taken yet.
    pub fn queued_bytes(&self) -> usize {
        self.socket.as_ref().map_or(self.outbox.bytes(), Socket::queued_bytes)
    }

    /// Audio messages that no socket has taken yet.
    pub fn waiting_audio(&self) -> usize {
        self.socket.as_ref().map_or(self.outbox.binaries(), Socket::waiting_audio)
    }

    /// Nothing waits for its socket.
    pub fn is_flushed(&self) -> bool {
        self.socket.as_ref().is_none_or(Socket::is_flushed)
    }

    /// As [`Socket::unfinished_until`].
    pub fn unfinished_until(&self, patience: Duration) -> Option<Instant> {
        self.socket.as_ref()?.unfinished_until(patience)
    }

    /// As [`Socket::stalled_since`].
    pub fn stalled_since(&self) -> Option<Instant> {
        self.socket.as_ref()?.stalled_since()
    }
}
