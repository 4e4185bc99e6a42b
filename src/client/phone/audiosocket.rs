//! Asterisk's AudioSocket: frames over TCP, in which we are the server.
//!
//! Source: Asterisk master of 2026-08-06, res/res_audiosocket.c; tests/golden/phone/audiosocket_*.bin. A packet here is a frame's kind and
//! what is in it; its length is [`crate::net`]'s. Asterisk has no marks, drops nothing, and keeps no time: we send 20 ms each 20 ms. Any
//! kind that it does not know, and audio of no length, end the channel.
use std::time::Duration;

use bytes::Bytes;

use super::{Bad, Dialect, Habits, Media, Packet, Said, Start, key};
use crate::{
    audio::{Codec, Format},
    net::audiosocket::{AUDIO, HANG_UP, ID},
};

/// A frame of one ASCII character.
pub const DIGIT: u8 = 0x03;
/// A frame of a code, and the end.
pub const ERROR: u8 = 0xFF;
/// Rates of the kinds of [`AUDIO`], Hz: those of Asterisk's own linear audio.
pub const RATES: [u32; 9] = [8_000, 12_000, 16_000, 24_000, 32_000, 44_100, 48_000, 96_000, 192_000];

static HABITS: Habits = Habits {
    name: "audiosocket",
    protocol: "",
    lead: Duration::from_millis(40),
    mark_every: None,
    reorders: false,
    odd_bytes: false,
    max_message: 64 << 10,
};

/// One stream. Its rate is known by its first audio, so it starts with that.
#[derive(Debug, Default)]
pub struct AudioSocket {
    id: Option<String>,
    kind: Option<u8>,
}

/// A UUID as people write it.
fn uuid(bytes: &[u8]) -> Option<String> {
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let part = |from: usize, to: usize| hex.get(from..to);
    (hex.len() == 32)
        .then(|| Some([part(0, 8)?, part(8, 12)?, part(12, 16)?, part(16, 20)?, part(20, 32)?].join("-")))
        .flatten()
}

impl AudioSocket {
    fn media(&mut self, kind: u8, rate: u32, audio: Bytes) -> Result<Said, Bad> {
        match self.kind {
            Some(known) if known == kind => Ok(Said::Audio(Media::next(audio))),
            Some(known) => {
                Err(Bad::new("kind", format!("audio of kind {kind:#04x}; this call began with {known:#04x}")))
            }
            None => {
                let stream =
                    self.id.clone().ok_or_else(|| Bad::new("kind", "audio before the call's UUID".to_owned()))?;
                self.kind = Some(kind);
                let media = Format { codec: Codec::Pcm16, rate };
                let params = [("token".to_owned(), stream.clone())].into();
                let (call, from, to, first) = (Some(stream.clone()), None, None, Some(Media::next(audio)));
                Ok(Said::Start(Box::new(Start { stream, call, from, to, params, input: media, output: media, first })))
            }
        }
    }
}

impl Dialect for AudioSocket {
    fn habits(&self) -> &'static Habits {
        &HABITS
    }

    fn read(&mut self, packet: &Packet) -> Result<Said, Bad> {
        let Packet::Binary(bytes) = packet else { return Err(Bad::kind("text", "binary")) };
        let (Some(kind), body) = (bytes.first().copied(), bytes.get(1..).unwrap_or_default()) else {
            return Err(Bad::new("kind", "a frame of no bytes".to_owned()));
        };
        match kind {
            HANG_UP => Ok(Said::Stop(None)),
            ID => {
                let id = uuid(body).ok_or_else(|| Bad::new("uuid", format!("{} bytes; a UUID has 16", body.len())))?;
                self.id = Some(id);
                Ok(Said::Nothing)
            }
            DIGIT => Ok(Said::Digit(key("digit", &String::from_utf8_lossy(body))?)),
            ERROR => Ok(Said::Stop(Some(format!("error {:#04x}", body.first().copied().unwrap_or(0))))),
            _ => match RATES.get(usize::from(kind.wrapping_sub(*AUDIO.start()))) {
                Some(rate) => self.media(kind, *rate, bytes.slice(1..)),
                None => Err(Bad::new("kind", format!("kind {kind:#04x} is not known"))),
            },
        }
    }

    fn audio(&mut self, frame: Bytes) -> Option<Packet> {
        let mut bytes = Vec::with_capacity(1 + frame.len());
        bytes.push(self.kind.unwrap_or(*AUDIO.start()));
        bytes.extend_from_slice(&frame);
        Some(Packet::Binary(bytes.into()))
    }

    fn hang_up(&self) -> Option<Packet> {
        Some(Packet::Binary(Bytes::from_static(&[HANG_UP])))
    }
}
