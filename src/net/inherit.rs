//! A Unix socket between two processes of one user: a line of text, and with it a socket that goes from one to the other.
use std::{
    fs, io,
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::PermissionsExt as _,
    },
    path::Path,
    time::Duration,
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use tokio::{
    io::{AsyncReadExt as _, Interest},
    net::{UnixListener, UnixStream},
    time,
};

/// The longest line, bytes.
const LONGEST: usize = 256;

/// Listens at `path`, in place of whoever did; only this user may connect.
///
/// # Errors
/// When it cannot.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Connects to whoever listens at `path`; `None`: nobody does.
///
/// # Errors
/// When there is something else, or it is not ours.
pub async fn connect(path: &Path) -> io::Result<Option<UnixStream>> {
    match UnixStream::connect(path).await {
        Ok(stream) => Ok(Some(stream)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether the other side is a process of this user.
pub fn is_ours(stream: &UnixStream) -> bool {
    stream.peer_cred().is_ok_and(|peer| peer.uid() == rustix::process::geteuid().as_raw())
}

/// Says a line, and hands a socket over with it.
///
/// # Errors
/// When the other side is gone.
pub async fn say_with(stream: &UnixStream, line: &str, socket: BorrowedFd<'_>) -> io::Result<()> {
    let text = format!("{line}\n");
    let send = || {
        let sockets = [socket];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&sockets));
        let text = [io::IoSlice::new(text.as_bytes())];
        Ok(rustix::net::sendmsg(stream.as_fd(), &text, &mut control, SendFlags::NOSIGNAL)?)
    };
    // A line is short: the socket's buffer takes all of it or, while it is full, nothing.
    stream.async_io(Interest::WRITABLE, send).await.map(drop)
}

/// The line that the other side says within `patience`, and the socket that it hands over, if it does.
///
/// # Errors
/// When it says none, or one that is too long.
pub async fn hear_with(stream: &UnixStream, patience: Duration) -> io::Result<(String, Option<OwnedFd>)> {
    let (mut text, mut socket) = (Vec::new(), None);
    let hear = async {
        while !text.ends_with(b"\n") {
            if text.len() >= LONGEST {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a line that is too long"));
            }
            let receive = || {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                let mut control = RecvAncillaryBuffer::new(&mut space);
                // What follows the line is not for us.
                let mut byte = [0];
                let mut into = [io::IoSliceMut::new(&mut byte)];
                let got = rustix::net::recvmsg(stream.as_fd(), &mut into, &mut control, RecvFlags::CMSG_CLOEXEC)?;
                let handed = control.drain().find_map(|message| match message {
                    RecvAncillaryMessage::ScmRights(mut sockets) => sockets.next(),
                    _ => None,
                });
                Ok((got.bytes, byte, handed))
            };
            let (bytes, byte, handed) = stream.async_io(Interest::READABLE, receive).await?;
            if bytes == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            text.extend(byte);
            socket = socket.take().or(handed);
        }
        Ok(())
    };
    time::timeout(patience, hear).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    let text =
        String::from_utf8(text).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "a line that is no text"))?;
    Ok((text.trim_end().to_owned(), socket))
}

/// A message of at most `limit` bytes: its length in four bytes, and its bytes.
///
/// # Errors
/// When it is longer, or the other side is gone.
pub async fn message(stream: &mut (impl tokio::io::AsyncRead + Unpin), limit: usize) -> io::Result<Vec<u8>> {
    let length = usize::try_from(stream.read_u32().await?).unwrap_or(usize::MAX);
    if length > limit {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("a message of {length} bytes; allowed: {limit}"),
        ));
    }
    let mut bytes = Vec::new();
    // What is announced and does not come takes no memory.
    if stream.take(length as u64).read_to_end(&mut bytes).await? < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(bytes)
}
