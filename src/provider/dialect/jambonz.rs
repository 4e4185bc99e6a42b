//! jambonz `listen` with streaming audio both ways.
use bytes::Bytes;
use serde_json::{Value, json};

use super::{Command, Dialect, OnClear, Pieces, Rules, Said, binary, excerpt, object, string, text};
use crate::provider::{setup::Setup, wire::Message};

/// Any length. `killAudio` drops audio; that marks stay, and then come as played, is an inference from there being a
/// `clearMarks` of its own: it is the harder of the two for a relay.
pub(in crate::provider) const RULES: Rules = Rules {
    pieces: Pieces::Any,
    on_clear: OnClear::Kept,
    whole_frames: false,
    marks_wait: true,
    capacity: None,
    overflow: "",
    flow: None,
};

/// One `listen`.
#[derive(Debug)]
pub(in crate::provider) struct Jambonz {
    setup: Setup,
}

impl Jambonz {
    pub(in crate::provider) fn new(setup: &Setup) -> Self {
        Self { setup: setup.clone() }
    }
}

/// The call's attributes, which both of drachtio's family send first; the verb's metadata stands among them.
pub(super) fn attributes(setup: &Setup) -> Message {
    let mut message = json!({
        "callSid": setup.ids.call,
        "direction": "inbound",
        "from": setup.from.trim_start_matches('+'),
        "to": setup.to.trim_start_matches('+'),
        "callId": setup.ids.stream,
        "sipStatus": 200,
        "callStatus": "in-progress",
        "accountSid": setup.ids.account,
        "applicationSid": setup.ids.account,
        "sampleRate": setup.media.rate,
        "mixType": "mono",
    });
    if let (Value::Object(message), Value::Object(metadata)) = (&mut message, object(&setup.parameters)) {
        message.extend(metadata);
    }
    text(&message)
}

/// A key, as both say it.
pub(super) fn digit(digit: char) -> Message {
    text(&json!({ "event": "dtmf", "dtmf": digit.to_string(), "duration": "1600" }))
}

impl Dialect for Jambonz {
    fn start(&mut self) -> Vec<Message> {
        vec![attributes(&self.setup)]
    }

    fn media(&mut self, frame: &[u8], _: u64) -> Message {
        Message::Binary(Bytes::copy_from_slice(frame))
    }

    fn digit(&mut self, key: char, _: u64) -> Message {
        digit(key)
    }

    fn take(&mut self, message: &Message) -> Vec<Command> {
        binary::take(message, |message| match string(message, &["type"]) {
            Some("mark") => match string(message, &["data", "name"]) {
                Some(name) => Command::Mark(name.to_owned()),
                None => Command::Fault("`mark` has no string `data.name`".to_owned()),
            },
            Some("clearMarks") => Command::ClearMarks,
            Some("killAudio") => Command::Clear,
            Some("disconnect") => Command::HangUp,
            Some("playAudio") => Command::Fault("`playAudio` is for streams without `streaming`".to_owned()),
            other => Command::Fault(format!("an unknown type `{}`", excerpt(other.unwrap_or_default()))),
        })
    }

    fn say(&mut self, said: &Said<'_>) -> Option<Message> {
        let Said::Mark { name, played } = said else { return None };
        let event = if *played { "playout" } else { "cleared" };
        Some(text(&json!({ "type": "mark", "data": { "name": name, "event": event } })))
    }
}
