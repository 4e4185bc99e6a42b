//! FreeSWITCH with drachtio's `mod_audio_fork`: the caller is heard, and that is all.
//!
//! The stock module writes `playAudio` to a file and fires an event; binary audio back is for its forks. So whatever a relay
//! sends stays unheard here, and a caller learns that before a customer does. [`Setup::plays_back`] makes it one of the others.
use bytes::Bytes;

use super::{Command, Dialect, OnClear, Pieces, Rules, Said, binary, excerpt, jambonz, string};
use crate::provider::{setup::Setup, wire::Message};

/// Nothing is played.
pub(in crate::provider) const RULES: Rules = Rules {
    pieces: Pieces::Any,
    on_clear: OnClear::Lost,
    whole_frames: false,
    marks_wait: false,
    capacity: Some(0),
    overflow: "the stock mod_audio_fork plays no binary audio; what came was not heard",
    flow: None,
};

/// The builds that play what comes: a stream of any pieces, without marks, which `killAudio` drops. How much they hold is
/// unverified.
pub(in crate::provider) const PLAYS_BACK: Rules = Rules { capacity: None, overflow: "", ..RULES };

/// One fork.
#[derive(Debug)]
pub(in crate::provider) struct AudioFork {
    setup: Setup,
}

impl AudioFork {
    pub(in crate::provider) fn new(setup: &Setup) -> Self {
        Self { setup: setup.clone() }
    }
}

impl Dialect for AudioFork {
    fn start(&mut self) -> Vec<Message> {
        vec![jambonz::attributes(&self.setup)]
    }

    fn media(&mut self, frame: &[u8], _: u64) -> Message {
        Message::Binary(Bytes::copy_from_slice(frame))
    }

    fn digit(&mut self, key: char, _: u64) -> Message {
        jambonz::digit(key)
    }

    fn take(&mut self, message: &Message) -> Vec<Command> {
        binary::take(message, |message| match string(message, &["type"]) {
            Some("killAudio") => Command::Clear,
            Some("disconnect") => Command::HangUp,
            Some("playAudio") => Command::Nothing, // written to a file, for a dialplan that nobody has here
            other => Command::Fault(format!("an unknown type `{}`", excerpt(other.unwrap_or_default()))),
        })
    }

    fn say(&mut self, _: &Said<'_>) -> Option<Message> {
        None
    }
}
