//! Asterisk's AudioSocket as a wire: frames of a kind, a length and so many bytes, over plain TCP, which Asterisk opens to us.
//!
//! Source: Asterisk master of 2026-08-06, res/res_audiosocket.c. A message of [`Socket`](super::ws::Socket) is a frame's kind and what is
//! in it, without the length. There are no texts, pings or goodbyes here: they are not written, and the end of the connection is the only
//! goodbye. Asterisk ends the channel for audio of no length and for kinds that it does not know, so none can be written. What the kinds
//! mean is the dialect's business ([`crate::client::phone::audiosocket`]).
mod listen;

use std::{
    io::{self, Write as _},
    ops::RangeInclusive,
};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

pub use self::listen::serve;
use super::{
    io::Io,
    outbox::{Kind, Queued},
    wire::WRITE_BATCH,
    ws::{Frame, SocketError, SocketLimits},
};

/// The kind of a frame that ends the call; nothing is in it.
pub const HANG_UP: u8 = 0x00;
/// The kind of the first frame, of 16 bytes: the call's UUID.
pub const ID: u8 = 0x01;
/// The kinds of audio, one a rate.
pub const AUDIO: RangeInclusive<u8> = 0x10..=0x18;
/// Kind and length, big-endian.
const HEADER: usize = 3;
/// Most audio in a frame, bytes: whole samples, and a length of 16 bits.
const LARGEST: usize = (u16::MAX - 1) as usize;

/// Kind and length of the frame that begins here.
fn header(bytes: &[u8]) -> Option<(u8, usize)> {
    let [kind, high, low, ..] = *bytes else { return None };
    Some((kind, usize::from(u16::from_be_bytes([high, low]))))
}

/// Appends a message as frames: longer audio in several; nothing of a message that Asterisk would not stand.
fn write(message: &[u8], out: &mut BytesMut) {
    let Some((&kind, audio)) = message.split_first() else { return };
    if kind == HANG_UP {
        return out.put_slice(&[HANG_UP, 0, 0]);
    }
    if !AUDIO.contains(&kind) {
        return;
    }
    for piece in audio.chunks(LARGEST) {
        let Ok(length) = u16::try_from(piece.len()) else { return };
        out.reserve(HEADER + piece.len());
        out.put_u8(kind);
        out.put_u16(length);
        out.put_slice(piece);
    }
}

/// One connection.
#[derive(Debug)]
pub(super) struct AudioSocket {
    io: Io,
    limits: SocketLimits,
    /// What has come and was not read: less than a frame, once everything is read.
    incoming: BytesMut,
    /// What the peer has not taken.
    outgoing: BytesMut,
    /// The peer has closed.
    over: bool,
}

impl AudioSocket {
    pub(super) fn new(io: Io, limits: SocketLimits, read_already: &[u8]) -> Self {
        Self { io, limits, incoming: read_already.into(), outgoing: BytesMut::new(), over: false }
    }

    pub(super) fn read(&mut self) -> Result<Option<Frame>, SocketError> {
        loop {
            if let Some(frame) = self.whole()? {
                return Ok(Some(Frame::Binary(frame)));
            }
            if self.over {
                return Err(SocketError::Lost(io::ErrorKind::ConnectionReset.into()));
            }
            let have = self.incoming.len();
            self.incoming.resize(have + self.limits.read_buffer.max(1), 0);
            let got = self.io.receive(self.incoming.get_mut(have..).unwrap_or_default());
            self.incoming.truncate(have + got.as_ref().map_or(0, |got| *got));
            match got {
                Ok(0) => {
                    self.over = true;
                    if have > 0 {
                        return Err(SocketError::Lost(io::ErrorKind::UnexpectedEof.into()));
                    }
                    return Ok(Some(Frame::Closed { code: None, reason: String::new() }));
                }
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(SocketError::Lost(e)),
            }
        }
    }

    /// The next frame as a message, if it is all there.
    fn whole(&mut self) -> Result<Option<Bytes>, SocketError> {
        let Some((kind, length)) = header(&self.incoming) else { return Ok(None) };
        let (got, limit) = (1 + length, self.limits.max_message);
        if got > limit {
            return Err(SocketError::TooLarge { got, limit });
        }
        if self.incoming.len() < HEADER + length {
            return Ok(None);
        }
        let mut frame = self.incoming.split_to(HEADER + length);
        // The kind takes the place of the length's end, right before the rest: nothing is copied.
        frame.advance(HEADER - 1);
        if let Some(first) = frame.first_mut() {
            *first = kind;
        }
        Ok(Some(frame.freeze()))
    }

    pub(super) fn write(&mut self, queued: &Queued) -> Result<bool, SocketError> {
        match queued.kind {
            Kind::Binary | Kind::Control => write(&queued.payload, &mut self.outgoing),
            Kind::Text | Kind::Spoken | Kind::Ping => {}
        }
        if self.outgoing.len() < WRITE_BATCH { Ok(true) } else { self.flush() }
    }

    pub(super) fn flush(&mut self) -> Result<bool, SocketError> {
        while !self.outgoing.is_empty() {
            match self.io.write(&self.outgoing) {
                Ok(0) => return Err(SocketError::Lost(io::ErrorKind::WriteZero.into())),
                Ok(put) => self.outgoing.advance(put),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(SocketError::Lost(e)),
            }
        }
        Ok(true)
    }

    pub(super) fn is_open(&self) -> bool {
        !self.over
    }

    pub(super) fn unfinished(&self) -> Option<u64> {
        (!self.incoming.is_empty()).then_some(self.incoming.len() as u64)
    }

    pub(super) fn io(&self) -> &Io {
        &self.io
    }

    pub(super) fn io_mut(&mut self) -> &mut Io {
        &mut self.io
    }

    pub(super) fn read_buffer(&self) -> usize {
        self.limits.read_buffer
    }

    pub(super) fn resize(&mut self, read_buffer: usize) {
        self.limits.read_buffer = read_buffer;
        (self.incoming, self.outgoing) = (BytesMut::new(), BytesMut::new());
    }
}

#[cfg(test)]
mod tests;
