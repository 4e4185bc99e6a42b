//! The byte stream under a socket: TCP, or TLS over TCP, read and written without waiting.
//!
//! `tungstenite` is a synchronous library; it is given a stream whose `read` and `write` answer `WouldBlock` at once.
//! Waiting is a thing of its own ([`Io::poll_readable`]), so that a call may leave a socket alone while it gathers audio.
use std::{
    io::{self, Read, Write},
    pin::Pin,
    task::{Context, Poll, Waker},
};

use rustls::{ClientConnection, ServerConnection, StreamOwned};
use tokio::{
    io::{AsyncRead as _, AsyncWrite as _, ReadBuf},
    net::TcpStream,
};

use super::track::FrameTracker;

/// TCP as a synchronous, non-blocking stream.
#[derive(Debug)]
pub struct Tcp {
    socket: Registration,
    /// The last read took all there was: the next one need not ask the system again to be told so.
    drained: bool,
}

/// Whether the runtime watches the socket. An unwatched one wakes nobody when bytes come: its reader comes by itself.
#[derive(Debug)]
enum Registration {
    Watched(TcpStream),
    Unwatched(std::net::TcpStream),
    /// Between the two, and when the runtime would not take it back.
    Lost,
}

impl Tcp {
    fn new(socket: TcpStream) -> Self {
        Self { socket: Registration::Watched(socket), drained: false }
    }

    fn watch(&mut self, watch: bool) {
        self.socket = match std::mem::replace(&mut self.socket, Registration::Lost) {
            Registration::Watched(socket) if !watch => {
                socket.into_std().map_or(Registration::Lost, Registration::Unwatched)
            }
            Registration::Unwatched(socket) if watch => {
                TcpStream::from_std(socket).map_or(Registration::Lost, Registration::Watched)
            }
            same => same,
        };
    }

    fn poll_ready(&self, poll: impl FnOnce(&TcpStream) -> Poll<io::Result<()>>) -> Poll<io::Result<()>> {
        match &self.socket {
            Registration::Watched(socket) => poll(socket),
            Registration::Unwatched(_) => Poll::Pending,
            Registration::Lost => Poll::Ready(Err(lost())),
        }
    }
}

fn lost() -> io::Error {
    io::Error::other("the runtime no longer has this socket")
}

impl Read for Tcp {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if std::mem::take(&mut self.drained) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let got = match &mut self.socket {
            // tokio's poll_read forgets readiness after a short read, and try_read does not.
            Registration::Watched(socket) => {
                let mut into = ReadBuf::new(buf);
                match Pin::new(socket).poll_read(&mut Context::from_waker(Waker::noop()), &mut into) {
                    Poll::Ready(done) => done.map(|()| into.filled().len())?,
                    Poll::Pending => return Err(io::ErrorKind::WouldBlock.into()),
                }
            }
            Registration::Unwatched(socket) => socket.read(buf)?,
            Registration::Lost => return Err(lost()),
        };
        self.drained = got > 0 && got < buf.len();
        Ok(got)
    }
}

impl Write for Tcp {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match &mut self.socket {
            Registration::Watched(socket) => {
                match Pin::new(socket).poll_write(&mut Context::from_waker(Waker::noop()), buf) {
                    Poll::Ready(done) => done,
                    Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
                }
            }
            Registration::Unwatched(socket) => socket.write(buf),
            Registration::Lost => Err(lost()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Debug)]
enum Stream {
    Plain(Tcp),
    /// Where we have dialled.
    Tls(Box<StreamOwned<ClientConnection, Tcp>>),
    /// Where we were dialled.
    Accepted(Box<StreamOwned<ServerConnection, Tcp>>),
}

/// A leg's byte stream, and what has passed over it.
#[derive(Debug)]
pub struct Io {
    stream: Stream,
    /// Where a WebSocket's incoming bytes stand between frames.
    pub(super) incoming: FrameTracker,
    /// Bytes written so far.
    pub(super) written: u64,
    /// A read filled all the room that it was given: there was more than fits.
    pub(super) crowded: bool,
}

impl Io {
    /// Plain TCP.
    pub fn plain(tcp: TcpStream) -> Self {
        Self::new(Stream::Plain(Tcp::new(tcp)))
    }

    /// TLS whose handshake is done.
    pub fn tls(tcp: TcpStream, session: ClientConnection) -> Self {
        Self::new(Stream::Tls(Box::new(StreamOwned::new(session, Tcp::new(tcp)))))
    }

    /// TLS of a client of ours, whose handshake is done. Bytes may wait in `session` already.
    pub fn accepted(tcp: TcpStream, session: ServerConnection) -> Self {
        Self::new(Stream::Accepted(Box::new(StreamOwned::new(session, Tcp::new(tcp)))))
    }

    fn new(stream: Stream) -> Self {
        Self { stream, incoming: FrameTracker::default(), written: 0, crowded: false }
    }

    fn tcp(&self) -> &Tcp {
        match &self.stream {
            Stream::Plain(tcp) => tcp,
            Stream::Tls(tls) => &tls.sock,
            Stream::Accepted(tls) => &tls.sock,
        }
    }

    /// Whether the runtime shall wake somebody when this socket becomes readable or writable. Without, reading and writing
    /// go on working, and cost nothing in between.
    pub fn watch(&mut self, watch: bool) {
        match &mut self.stream {
            Stream::Plain(tcp) => tcp.watch(watch),
            Stream::Tls(tls) => tls.sock.watch(watch),
            Stream::Accepted(tls) => tls.sock.watch(watch),
        }
    }

    /// Tells the peer that nothing more comes; reading goes on.
    pub(super) fn end_writing(&mut self) {
        if let Stream::Accepted(tls) = &mut self.stream {
            tls.conn.send_close_notify();
            let _ = tls.flush(); // a peer that is gone already needs no telling
        }
        if let Registration::Watched(socket) = &self.tcp().socket {
            // A socket that is gone already needs no telling.
            let _ = socket2::SockRef::from(socket).shutdown(std::net::Shutdown::Write);
        }
    }

    /// Ready when a read may give bytes; never while unwatched. With TLS, bytes may also wait inside: read until
    /// `WouldBlock` before waiting.
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.tcp().poll_ready(|tcp| tcp.poll_read_ready(cx))
    }

    /// Ready when a write may take bytes; never while unwatched.
    pub fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.tcp().poll_ready(|tcp| tcp.poll_write_ready(cx))
    }
}

impl Io {
    /// Reads, for a wire that follows its frames itself.
    pub(super) fn receive(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let got = match &mut self.stream {
            Stream::Plain(tcp) => tcp.read(buf),
            Stream::Tls(tls) => tls.read(buf),
            Stream::Accepted(tls) => tls.read(buf),
        }?;
        self.crowded |= got > 0 && got == buf.len();
        Ok(got)
    }
}

impl Read for Io {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let got = self.receive(buf)?;
        self.incoming.feed(buf.get(..got).unwrap_or_default());
        Ok(got)
    }
}

impl Write for Io {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let put = match &mut self.stream {
            Stream::Plain(tcp) => tcp.write(buf),
            Stream::Tls(tls) => tls.write(buf),
            Stream::Accepted(tls) => tls.write(buf),
        }?;
        self.written += put as u64;
        Ok(put)
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.stream {
            Stream::Plain(_) => Ok(()),
            Stream::Tls(tls) => tls.flush(),
            Stream::Accepted(tls) => tls.flush(),
        }
    }
}
