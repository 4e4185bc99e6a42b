//! What providers say of a call, in one form for all of them.
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::webhook::Fields;

/// Parameters of a call that are kept, and their longest value, bytes.
const MAX_CUSTOM: usize = 50;
const LONGEST_CUSTOM: usize = 1_024;

/// Who began a call.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Direction {
    /// The telephone.
    #[default]
    Inbound,
    /// We did.
    Outbound,
}

/// Who or what has answered, or what is said of it later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Machine {
    /// A human being.
    Human,
    /// An answering machine; its greeting may still be going on.
    Machine,
    /// An answering machine whose greeting is over: speak now.
    Beep,
    /// A fax.
    Fax,
    /// The provider does not know.
    Unknown,
}

impl Machine {
    /// Its name, for agents and for whoever has dialled.
    pub fn name(self) -> &'static str {
        match self {
            Self::Human => "human",
            Self::Machine => "machine",
            Self::Beep => "beep",
            Self::Fax => "fax",
            Self::Unknown => "unknown",
        }
    }
}

/// A call that wants an answer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Incoming {
    /// The provider's id of the call.
    pub call: String,
    /// Who calls, as the provider writes it.
    pub from: Option<String>,
    /// Who was called.
    pub to: Option<String>,
    /// Who began it.
    pub direction: Direction,
    /// The caller's name, where the network tells it.
    pub name: Option<String>,
    /// SIP headers and other parameters of the call. From outside: never to be trusted.
    pub custom: BTreeMap<String, String>,
    /// Who or what has answered, for a call that we began.
    pub machine: Option<Machine>,
    /// The reference of a call that we began ([`super::DIAL_QUERY`]).
    pub dial: Option<String>,
    /// The provider takes no markup for this call, but commands over REST (Telnyx Call Control).
    pub by_command: bool,
}

/// What a voice webhook says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// Somebody calls.
    Call(Incoming),
    /// Something else of a call, at a page that gets everything.
    Status(Status),
}

/// What has become of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// The provider's id of the call.
    pub call: String,
    /// The id under which a dialled call was first known, where that is another one (Plivo's `RequestUUID`).
    pub asked_as: Option<String>,
    /// What.
    pub progress: Progress,
    /// How long it was, seconds, once it has ended.
    pub duration_s: Option<u64>,
    /// The reference of a call that we began.
    pub dial: Option<String>,
}

/// How far a call is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// It will be begun.
    Queued,
    /// It rings.
    Ringing,
    /// Somebody has answered.
    Answered,
    /// Who or what it was.
    Machine(Machine),
    /// Its stream to us is there.
    StreamStarted,
    /// Its stream to us is gone; an error in the provider's words, bounded.
    StreamEnded(Option<String>),
    /// It is over.
    Ended(Ending),
    /// Something else, in the provider's word, bounded.
    Other(String),
}

impl Ending {
    /// Its name, for whoever has dialled.
    pub fn name(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Busy => "busy",
            Self::NoAnswer => "no_answer",
            Self::Canceled => "canceled",
            Self::Rejected => "rejected",
            Self::Failed => "failed",
        }
    }
}

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// After a conversation.
    Completed,
    /// The line was busy.
    Busy,
    /// Nobody answered.
    NoAnswer,
    /// It was given up before an answer.
    Canceled,
    /// It was turned away.
    Rejected,
    /// It could not be made.
    Failed,
}

impl Status {
    pub(super) fn of(call: String, progress: Progress) -> Self {
        Self { call, asked_as: None, progress, duration_s: None, dial: None }
    }
}

impl Progress {
    pub(super) fn other(word: &str) -> Self {
        Self::Other(bounded(word, 64))
    }

    /// The words that Twilio made usual, and their relatives.
    pub(super) fn named(word: &str) -> Self {
        match word.to_ascii_lowercase().as_str() {
            "queued" | "initiated" | "trying" | "started" => Self::Queued,
            "ringing" | "early-media" => Self::Ringing,
            "in-progress" | "answered" => Self::Answered,
            "human" => Self::Machine(Machine::Human),
            "machine" => Self::Machine(Machine::Machine),
            "completed" => Self::Ended(Ending::Completed),
            "busy" => Self::Ended(Ending::Busy),
            "no-answer" | "timeout" | "unanswered" => Self::Ended(Ending::NoAnswer),
            "canceled" | "cancelled" | "cancel" => Self::Ended(Ending::Canceled),
            "rejected" => Self::Ended(Ending::Rejected),
            "failed" => Self::Ended(Ending::Failed),
            _ => Self::other(word),
        }
    }
}

/// Text from outside that is kept: no control characters, not too long.
pub(super) fn bounded(text: &str, longest: usize) -> String {
    text.chars().filter(|c| !c.is_control()).take(longest).collect()
}

/// Those of the fields whose names begin so, without that beginning.
pub(super) fn custom(fields: &Fields, begins: &str) -> BTreeMap<String, String> {
    let named = fields.0.iter().filter_map(|(name, value)| Some((name.strip_prefix(begins)?, value)));
    collect(named.map(|(name, value)| (name.to_owned(), value.clone())))
}

pub(super) fn collect(pairs: impl Iterator<Item = (String, String)>) -> BTreeMap<String, String> {
    let kept = pairs.filter(|(name, _)| !name.is_empty()).take(MAX_CUSTOM);
    kept.map(|(name, value)| (bounded(&name, 64), bounded(&value, LONGEST_CUSTOM))).collect()
}
