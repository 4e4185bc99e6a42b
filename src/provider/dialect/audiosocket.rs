//! The third shape: Asterisk's AudioSocket, frames over TCP. A byte of kind, two of length (high byte first), a payload.
//!
//! There are no marks, no clearing and no pacing: what comes is played. Any kind that is neither audio nor hang-up, and audio
//! of no bytes, ends the call.
use bytes::{Buf as _, Bytes, BytesMut};

use super::{Command, Dialect, OnClear, Pieces, Rules, Said};
use crate::provider::{setup::Setup, wire::Message};

/// Behind Asterisk there is only the telephone's own jitter buffer: some 200 ms of it are assumed.
pub(in crate::provider) const RULES: Rules = Rules {
    pieces: Pieces::Any,
    on_clear: OnClear::Lost,
    whole_frames: false,
    marks_wait: false,
    capacity: Some(10),
    overflow: "more than 200 ms came ahead of time; nothing holds so much here, so it was not heard",
    flow: None,
};

const HANG_UP: u8 = 0x00;
const UUID: u8 = 0x01;
const DTMF: u8 = 0x03;
const ERROR: u8 = 0xFF;
/// The error that Asterisk tells when a frame could not be passed on.
const FRAME_ERROR: u8 = 0x02;
/// Kinds of audio and their rates, Hz (res_audiosocket; the first proposal had other ones).
const AUDIO: [(u8, u32); 9] = [
    (0x10, 8_000),
    (0x11, 12_000),
    (0x12, 16_000),
    (0x13, 24_000),
    (0x14, 32_000),
    (0x15, 44_100),
    (0x16, 48_000),
    (0x17, 96_000),
    (0x18, 192_000),
];

/// One channel.
#[derive(Debug)]
pub(in crate::provider) struct AudioSocket {
    setup: Setup,
    unread: BytesMut,
}

impl AudioSocket {
    pub(in crate::provider) fn new(setup: &Setup) -> Self {
        Self { setup: setup.clone(), unread: BytesMut::new() }
    }

    /// The next whole frame.
    fn next(&mut self) -> Option<(u8, Bytes)> {
        let [kind, high, low, ..] = *self.unread.as_ref() else { return None };
        let length = usize::from(u16::from_be_bytes([high, low]));
        if self.unread.len() < 3 + length {
            return None;
        }
        self.unread.advance(3);
        Some((kind, self.unread.split_to(length).freeze()))
    }

    fn command(&self, kind: u8, payload: Bytes) -> Command {
        let rate = AUDIO.iter().find(|(audio, _)| *audio == kind).map(|(_, rate)| *rate);
        match (kind, rate) {
            (HANG_UP, _) => Command::HangUp,
            (_, Some(_)) if payload.is_empty() => Command::Fatal("audio of no bytes".to_owned()),
            (_, Some(rate)) if rate == self.setup.reply.rate => Command::Play(payload),
            (_, Some(rate)) => {
                Command::Fault(format!("audio at {rate} Hz; the channel has {} Hz", self.setup.reply.rate))
            }
            _ => Command::Fatal(format!("a frame of kind 0x{kind:02x}; allowed: 0x00 and 0x10 to 0x18")),
        }
    }
}

fn frame(kind: u8, payload: &[u8]) -> Message {
    let length = u16::try_from(payload.len()).unwrap_or(u16::MAX);
    let mut bytes = vec![kind];
    bytes.extend(length.to_be_bytes());
    bytes.extend(payload.iter().take(usize::from(length)));
    Message::Binary(bytes.into())
}

/// The 16 bytes of a UUID in its usual order.
fn uuid_bytes(text: &str) -> [u8; 16] {
    let hex: String = text.chars().filter(|c| *c != '-').collect();
    u128::from_str_radix(&hex, 16).unwrap_or_default().to_be_bytes()
}

impl Dialect for AudioSocket {
    fn start(&mut self) -> Vec<Message> {
        vec![frame(UUID, &uuid_bytes(&self.setup.ids.stream))]
    }

    fn media(&mut self, audio: &[u8], _: u64) -> Message {
        let kind = AUDIO.iter().find(|(_, rate)| *rate == self.setup.media.rate).map_or(0x10, |(kind, _)| *kind);
        frame(kind, audio)
    }

    fn digit(&mut self, digit: char, _: u64) -> Message {
        frame(DTMF, digit.to_string().as_bytes())
    }

    fn take(&mut self, message: &Message) -> Vec<Command> {
        match message {
            Message::Close { .. } => vec![Command::HangUp],
            Message::Text(_) => vec![Command::Fatal("text on a stream of frames".to_owned())],
            Message::Binary(bytes) => {
                self.unread.extend_from_slice(bytes);
                let mut commands = Vec::new();
                while let Some((kind, payload)) = self.next() {
                    commands.push(self.command(kind, payload));
                }
                commands
            }
        }
    }

    fn say(&mut self, said: &Said<'_>) -> Option<Message> {
        matches!(said, Said::Error).then(|| frame(ERROR, &[FRAME_ERROR]))
    }
}
