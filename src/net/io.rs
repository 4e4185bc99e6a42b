//! The byte stream under a WebSocket: TCP, or TLS over TCP, read and written without waiting.
//!
//! `tungstenite` is a synchronous library; it is given a stream whose `read` and `write` answer `WouldBlock` at once.
//! Waiting is a thing of its own ([`Io::poll_readable`]), so that a call may leave a socket alone while it gathers audio.
use std::{
    io::{self, Read, Write},
    pin::Pin,
    task::{Context, Poll, Waker},
};

use rustls::{ClientConnection, StreamOwned};
use tokio::{
    io::{AsyncRead as _, AsyncWrite as _, ReadBuf},
    net::TcpStream,
};

use super::track::FrameTracker;

/// TCP as a synchronous, non-blocking stream.
#[derive(Debug)]
pub struct Tcp(TcpStream);

impl Tcp {
    /// The socket itself.
    pub fn socket(&self) -> &TcpStream {
        &self.0
    }
}

impl Read for Tcp {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        // tokio's poll_read forgets readiness after a short read, which saves the second system call that would only
        // say "would block"; its try_read does not.
        let mut into = ReadBuf::new(buf);
        match Pin::new(&mut self.0).poll_read(&mut Context::from_waker(Waker::noop()), &mut into) {
            Poll::Ready(done) => done.map(|()| into.filled().len()),
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

impl Write for Tcp {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match Pin::new(&mut self.0).poll_write(&mut Context::from_waker(Waker::noop()), buf) {
            Poll::Ready(done) => done,
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Debug)]
enum Stream {
    Plain(Tcp),
    Tls(Box<StreamOwned<ClientConnection, Tcp>>),
}

/// A leg's byte stream, and what has passed over it.
#[derive(Debug)]
pub struct Io {
    stream: Stream,
    /// Where the incoming bytes stand between frames.
    pub(super) incoming: FrameTracker,
    /// Bytes written so far.
    pub(super) written: u64,
}

impl Io {
    /// Plain TCP.
    pub fn plain(tcp: TcpStream) -> Self {
        Self::new(Stream::Plain(Tcp(tcp)))
    }

    /// TLS whose handshake is done.
    pub fn tls(tcp: TcpStream, session: ClientConnection) -> Self {
        Self::new(Stream::Tls(Box::new(StreamOwned::new(session, Tcp(tcp)))))
    }

    fn new(stream: Stream) -> Self {
        Self { stream, incoming: FrameTracker::default(), written: 0 }
    }

    /// The TCP socket underneath.
    pub fn tcp(&self) -> &TcpStream {
        match &self.stream {
            Stream::Plain(tcp) => tcp.socket(),
            Stream::Tls(tls) => tls.sock.socket(),
        }
    }

    /// Ready when a read may give bytes. With TLS, bytes may also wait inside: read until `WouldBlock` before waiting.
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.tcp().poll_read_ready(cx)
    }

    /// Ready when a write may take bytes.
    pub fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.tcp().poll_write_ready(cx)
    }
}

impl Read for Io {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let got = match &mut self.stream {
            Stream::Plain(tcp) => tcp.read(buf),
            Stream::Tls(tls) => tls.read(buf),
        }?;
        self.incoming.feed(buf.get(..got).unwrap_or_default());
        Ok(got)
    }
}

impl Write for Io {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let put = match &mut self.stream {
            Stream::Plain(tcp) => tcp.write(buf),
            Stream::Tls(tls) => tls.write(buf),
        }?;
        self.written += put as u64;
        Ok(put)
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.stream {
            Stream::Plain(_) => Ok(()),
            Stream::Tls(tls) => tls.flush(),
        }
    }
}
