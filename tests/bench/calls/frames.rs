//! WebSocket frames as the benchmark's own ends write and read them: cheap, so that the relay has the machine to itself.
//!
//! Payloads are not kept: of a message only its first bytes and its last four are looked at.
use std::time::{SystemTime, UNIX_EPOCH};

use base64::{Engine as _, engine::general_purpose::STANDARD};

/// How much of a message is kept, bytes; an append event's audio begins within it.
const HEAD: usize = 160;
/// 20 ms of PCM16 at 24 kHz, bytes.
pub(crate) const FRAME_BYTES: usize = 960;
/// Length of a frame, microseconds.
pub(crate) const FRAME_US: u64 = 20_000;

/// RFC 6455 section 5.2.
pub(crate) const TEXT: u8 = 1;
pub(crate) const BINARY: u8 = 2;
pub(crate) const CLOSE: u8 = 8;
pub(crate) const PING: u8 = 9;
pub(crate) const PONG: u8 = 10;

/// A message that has passed.
pub(crate) struct Message<'a> {
    pub(crate) opcode: u8,
    pub(crate) len: u64,
    /// Its first bytes, unmasked.
    pub(crate) head: &'a [u8],
    /// Its last four bytes, unmasked.
    pub(crate) tail: [u8; 4],
}

/// Follows the frames of one direction; none of our peers fragments messages.
#[derive(Default)]
pub(crate) struct Parser {
    header: Vec<u8>,
    in_payload: bool,
    opcode: u8,
    len: u64,
    at: u64,
    mask: [u8; 4],
    head: Vec<u8>,
    tail: [u8; 4],
}

impl Parser {
    /// Takes the next bytes and shows every message that ends in them.
    pub(crate) fn feed(&mut self, mut bytes: &[u8], mut on: impl FnMut(Message<'_>)) {
        while !bytes.is_empty() || (self.in_payload && self.len == self.at) {
            if !self.in_payload {
                self.header.push(bytes[0]);
                bytes = &bytes[1..];
                self.end_header();
                continue;
            }
            let take = usize::try_from(self.len - self.at).unwrap().min(bytes.len());
            let (part, rest) = bytes.split_at(take);
            self.keep(part);
            bytes = rest;
            if self.at == self.len {
                on(Message { opcode: self.opcode, len: self.len, head: &self.head, tail: self.tail });
                self.in_payload = false;
            }
        }
    }

    fn end_header(&mut self) {
        let [first, second, more @ ..] = self.header.as_slice() else { return };
        let length_bytes = match second & 0x7F {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let masked = second & 0x80 != 0;
        if more.len() < length_bytes + if masked { 4 } else { 0 } {
            return;
        }
        let (long, mask) = more.split_at(length_bytes);
        self.len = match length_bytes {
            0 => u64::from(second & 0x7F),
            _ => long.iter().fold(0, |n, b| n << 8 | u64::from(*b)),
        };
        self.opcode = first & 0x0F;
        self.mask = mask.try_into().unwrap_or_default();
        (self.in_payload, self.at) = (true, 0);
        self.header.clear();
        self.head.clear();
    }

    fn keep(&mut self, part: &[u8]) {
        let at = usize::try_from(self.at).unwrap();
        let len = usize::try_from(self.len).unwrap();
        let plain = |n: usize| part[n] ^ self.mask[(at + n) % 4];
        if at < HEAD {
            self.head.extend((0..part.len().min(HEAD - at)).map(plain));
        }
        for n in (len.saturating_sub(4).max(at) - at)..part.len() {
            self.tail[(at + n + 4 - len) % 4] = plain(n);
        }
        self.at += part.len() as u64;
    }
}

/// A frame's header; `masked`: with a mask of zeros, which is as legal as any.
pub(crate) fn header(opcode: u8, len: usize, masked: bool) -> Vec<u8> {
    let mut out = vec![0x80 | opcode];
    let bit = if masked { 0x80 } else { 0 };
    match (u8::try_from(len), u16::try_from(len)) {
        (Ok(short @ 0..=125), _) => out.push(bit | short),
        (_, Ok(middle)) => {
            out.push(bit | 126);
            out.extend(middle.to_be_bytes());
        }
        _ => {
            out.push(bit | 127);
            out.extend((len as u64).to_be_bytes());
        }
    }
    if masked {
        out.extend([0; 4]);
    }
    out
}

/// A whole frame.
pub(crate) fn frame(opcode: u8, payload: &[u8], masked: bool) -> Vec<u8> {
    let mut out = header(opcode, payload.len(), masked);
    out.extend_from_slice(payload);
    out
}

/// What the first bytes of every 20 ms of audio say: which frame of which call it is, and when it was due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// The call's first number, plus one for every frame.
    pub(crate) number: u16,
    /// Wall clock, microseconds, cut to 32 bits.
    pub(crate) due: u32,
}

impl Stamp {
    /// As it stands in the audio.
    pub(crate) fn bytes(self) -> [u8; 6] {
        let ([a, b], [c, d, e, f]) = (self.number.to_le_bytes(), self.due.to_le_bytes());
        [a, b, c, d, e, f]
    }

    /// As [`Self::bytes`] wrote it.
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let (number, due) = (bytes.get(..2)?, bytes.get(2..6)?);
        Some(Self {
            number: u16::from_le_bytes(number.try_into().ok()?),
            due: u32::from_le_bytes(due.try_into().ok()?),
        })
    }
}

/// Wall clock, microseconds: two processes can compare it.
pub(crate) fn wall() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros()).unwrap()
}

/// Microseconds from a stamp's moment to `now`; it wraps after an hour.
pub(crate) fn since(due: u32, now: u64) -> i32 {
    now.to_le_bytes().first_chunk().map_or(0, |low| u32::from_le_bytes(*low)).wrapping_sub(due).cast_signed()
}

/// The audio of an append event: its length in bytes and its first stamp. `None`: it is none.
pub(crate) fn append(message: &Message<'_>) -> Option<(u64, Option<Stamp>)> {
    const KEY: &[u8] = br#""audio":""#;
    if message.opcode != TEXT || !message.head.starts_with(br#"{"type":"input_audio_buffer.append""#) {
        return None;
    }
    let at = memchr::memmem::find(message.head, KEY)? + KEY.len();
    let [x, y, b'"', b'}'] = message.tail else { return None };
    let padding = u64::from(x == b'=') + u64::from(y == b'=');
    let encoded = message.len - at as u64 - 2;
    let stamp = message.head.get(at..at + 8).and_then(|text| STANDARD.decode(text).ok());
    Some((encoded / 4 * 3 - padding, stamp.as_deref().and_then(Stamp::read)))
}
