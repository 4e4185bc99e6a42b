//! US -> MODEL: what we ask of a model service and what it tells us, whatever protocol it speaks.
//!
//! [`Command`] and [`Event`] are the only words that the call core knows. Inside the relay every message has the GA shape
//! ([`ga`]); a service that speaks another one has a file for its addresses and credentials beside it, and a [`Shape`] at
//! the edge of its socket.
pub mod accounts;
pub mod azure;
pub mod batches;
pub mod beta;
pub mod breaker;
pub mod error;
pub mod event_id;
pub mod ga;
pub mod limits;
pub mod open;
pub mod redial;
pub mod rest;
pub mod scan;
pub mod secrets;
pub mod shape;
pub mod status;
pub mod text;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

pub use self::{
    error::{UpstreamError, Verdict},
    limits::Limit,
    shape::Shape,
};
use crate::{audio::Format, client::wire::Usage, config::AgentConfig};

/// How a session is to be set up.
#[derive(Debug, Clone)]
pub struct SessionSetup {
    /// The persona.
    pub agent: Arc<AgentConfig>,
    /// What we append: PCM16 24 kHz or G.711.
    pub input: Format,
    /// What we want back: PCM16 24 kHz or G.711.
    pub output: Format,
    /// Whether the service finds the turns.
    pub auto_turns: bool,
}

/// What we ask of the service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Set the session up.
    Configure {
        /// The service may find turns by itself, where that was agreed; else it takes what is committed.
        listens: bool,
        /// The service answers turns that it finds by itself.
        answers: bool,
    },
    /// Change only who answers the turns that the service finds.
    Answers {
        /// The service, by itself.
        answers: bool,
    },
    /// Something that was said in an earlier session.
    Retell {
        /// Its id there.
        id: Option<String>,
        /// The item behind which it stands; none: behind all others.
        after: Option<String>,
        /// What it is.
        item: History,
    },
    /// One chunk of input audio, in the session's input format.
    Append(Bytes),
    /// The input audio is a turn.
    Commit,
    /// Forget the input audio.
    ClearInput,
    /// A typed turn.
    UserText {
        /// What was typed.
        text: String,
    },
    /// A tool's result.
    ToolOutput {
        /// The call that it answers.
        call_id: String,
        /// The result.
        output: String,
    },
    /// Answer now.
    CreateReply {
        /// Said to the model for this reply only.
        instructions: Option<String>,
        /// It shall call no tool.
        #[serde(default)]
        no_tools: bool,
    },
    /// Stop a reply.
    CancelReply {
        /// The service's id of it; none: whatever runs.
        response: Option<String>,
    },
    /// Forget what of an item was not heard.
    Truncate {
        /// The item.
        item: String,
        /// The audio part of it.
        content_index: u32,
        /// How much was heard, ms.
        audio_end_ms: u64,
    },
    /// Forget an item of which nothing was heard.
    DeleteItem {
        /// The item.
        item: String,
    },
}

/// A part of a conversation, as a session can be told it (realtime-protocol section 4.5).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum History {
    /// The caller said or typed this.
    User {
        /// Its words.
        text: String,
    },
    /// The caller said this.
    UserAudio {
        /// In the session's input format.
        audio: Bytes,
    },
    /// The model said this.
    Assistant {
        /// Its words, as far as they were heard.
        text: String,
    },
    /// The model called a tool.
    Call {
        /// The call.
        call_id: String,
        /// The tool.
        name: String,
        /// JSON in a string.
        arguments: String,
    },
    /// What the tool gave.
    Result {
        /// The call.
        call_id: String,
        /// The result.
        output: String,
    },
    /// A note of ours.
    Note {
        /// Its words.
        text: String,
    },
}

/// How the service says that a reply ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ended {
    /// To its end.
    Completed,
    /// Cancelled.
    Cancelled,
    /// Cut by a limit or a filter.
    Incomplete,
    /// By an error.
    Failed,
}

/// What the service tells us.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The session is up.
    SessionCreated {
        /// Its id.
        id: String,
        /// When the service will end it, Unix seconds.
        expires_at: Option<u64>,
        /// How it listens.
        hearing: Option<Hearing>,
        /// The model that writes down what the caller says.
        writer: Option<String>,
    },
    /// The set-up was taken.
    SessionUpdated {
        /// How it listens from now on.
        hearing: Option<Hearing>,
        /// The model that writes down what the caller says.
        writer: Option<String>,
    },
    /// The caller speaks.
    SpeechStarted {
        /// Position in all audio written, ms.
        at_ms: u64,
    },
    /// The caller stopped.
    SpeechStopped {
        /// Position in all audio written, ms.
        at_ms: u64,
    },
    /// The input audio became a turn.
    Committed {
        /// Its item.
        item: String,
    },
    /// A reply began.
    ReplyCreated {
        /// The service's id.
        response: String,
        /// It is not part of the conversation and runs beside its replies ("out of band").
        aside: bool,
    },
    /// Reply audio that is not taken apart: somebody else will ([`ga::glance`]).
    AudioPasses,
    /// Words of a reply, likewise.
    WordsPass,
    /// An item is complete: it stands in the message.
    ItemDone,
    /// An answer was cut.
    ItemCut {
        /// The item.
        item: String,
        /// What is left of it, ms.
        audio_end_ms: u64,
    },
    /// An item was deleted.
    ItemGone {
        /// The item.
        item: String,
    },
    /// The input audio is forgotten.
    InputCleared,
    /// Reply audio.
    Audio {
        /// Whose.
        response: String,
        /// The item that it belongs to.
        item: String,
        /// The part of the item.
        content_index: u32,
        /// The audio, in the session's output format.
        audio: Bytes,
    },
    /// More of what the model says.
    ReplyText {
        /// Whose.
        response: String,
        /// The item.
        item: String,
        /// More words, or with `last` all of them.
        text: String,
        /// All words.
        last: bool,
    },
    /// More of what the caller said.
    UserText {
        /// The item.
        item: String,
        /// More words, or with `last` all of them.
        text: String,
        /// All words.
        last: bool,
        /// With all words: what writing them down has used.
        spent: Option<Written>,
    },
    /// What the caller said could not be written down.
    UserTextFailed {
        /// The item.
        item: String,
    },
    /// The model wants a tool. Announced twice by the service.
    ToolCall {
        /// Whose.
        response: String,
        /// The call.
        call_id: String,
        /// The tool.
        name: String,
        /// JSON in a string.
        arguments: String,
    },
    /// A reply ended, however.
    ReplyDone {
        /// The service's id.
        response: String,
        /// How.
        ended: Ended,
        /// The service's reason or error code.
        reason: Option<String>,
        /// A wait that the service named.
        retry_after: Option<Duration>,
        /// The limit that was hit.
        limit: Option<Limit>,
        /// Tokens.
        usage: Option<Usage>,
    },
    /// How full the account's buckets are.
    RateLimits(Vec<RateLimit>),
    /// One of our commands failed, or the service is in trouble.
    Error(ServiceError),
    /// Known and of no meaning to us.
    Nothing,
    /// Not known (fault matrix U10).
    Unknown,
}

impl Event {
    /// The model that writes down what the caller says, where the session says so: whoever does has prices of its own.
    pub fn writer(&self) -> Option<&str> {
        match self {
            Self::SessionCreated { writer, .. } | Self::SessionUpdated { writer, .. } => writer.as_deref(),
            _ => None,
        }
    }
}

/// What writing down the caller's words has used, as the service counts it (realtime-protocol section 4.4).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Written {
    /// Tokens, where it counts those.
    pub usage: Usage,
    /// Seconds of audio, where it counts those.
    pub seconds: Option<f64>,
}

/// How a session listens, as the service says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hearing {
    /// What it takes.
    pub input: Format,
    /// The silence that ends a turn; none: no turn detection, or one by meaning.
    pub silence: Option<Duration>,
    /// It answers the turns that it finds by itself; none: it finds none, or does not say.
    pub answers: Option<bool>,
}

/// An `error` event.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceError {
    /// The service's code.
    pub code: String,
    /// The service's class of it.
    pub kind: String,
    /// For people. May quote keys: never shown or logged as it is.
    pub message: String,
    /// The field.
    pub param: Option<String>,
    /// The id of our command.
    pub event_id: Option<String>,
    /// A wait that it names.
    pub retry_after: Option<Duration>,
    /// The limit that was hit.
    pub limit: Option<Limit>,
}

/// One bucket of an account, as `rate_limits.updated` shows it.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct RateLimit {
    /// `requests` or `tokens`.
    pub name: String,
    /// Its size.
    pub limit: Option<u64>,
    /// What is left.
    pub remaining: Option<u64>,
    /// Until it is full again, seconds.
    pub reset_seconds: Option<f64>,
}

/// What kind of session.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Intent {
    /// Speech in, speech out.
    #[default]
    Realtime,
    /// Speech in, text out.
    Transcription,
}

/// Which session is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The service's name of a model; a transcription session names its own later.
    pub model: String,
    /// What kind.
    pub intent: Intent,
    /// A call by WebRTC or telephone to join, by the service's id of it; then the session is that call's.
    pub joins: Option<String>,
}

impl Wanted {
    /// A voice session of this model.
    pub fn voice(model: impl Into<String>) -> Self {
        Self::new(model, Intent::Realtime)
    }

    /// A session of this kind.
    pub fn new(model: impl Into<String>, intent: Intent) -> Self {
        Self { model: model.into(), intent, joins: None }
    }

    /// Somebody else's call.
    pub fn join(call: impl Into<String>) -> Self {
        Self { joins: Some(call.into()), ..Self::voice("") }
    }

    /// What a client secret for it is made with.
    pub fn session(&self) -> serde_json::Value {
        match self.intent {
            Intent::Realtime => serde_json::json!({"type": "realtime", "model": self.model}),
            Intent::Transcription => serde_json::json!({"type": "transcription"}),
        }
    }
}
