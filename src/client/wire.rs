//! The messages of `voxrelay.v1`, as they stand on the wire. Their meaning: [`crate::client::thin`].
//!
//! Both ends use these types: the relay's thin door and our own client ([`crate::caller`]).
use serde::{Deserialize, Serialize};

use crate::audio::Format;

/// Text messages from the client.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ClientMsg {
    /// Manual turns: the turn is complete, answer it.
    Commit,
    /// Manual turns: forget the audio since the last turn.
    Discard,
    /// Stop the reply now.
    Interrupt {
        /// The reply that is meant; absent: the one that plays.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reply: Option<String>,
        /// How much of it was really heard, ms.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        played_ms: Option<u64>,
    },
    /// Playback position.
    Played {
        /// The reply that plays.
        reply: String,
        /// Played of it, ms.
        ms: u64,
    },
    /// A typed user turn.
    Text {
        /// What was typed.
        text: String,
    },
    /// Answers a `tool_call`.
    ToolResult {
        /// The call that is answered.
        call_id: String,
        /// The result, as the model shall read it.
        output: String,
    },
    /// Renews the credential of this call.
    Token {
        /// The new token.
        token: String,
    },
    /// Messages received so far.
    Ack {
        /// Their number.
        got: u64,
    },
    /// Answered by a `pong`.
    Ping {
        /// Anything; comes back.
        #[serde(default)]
        t: serde_json::Value,
    },
    /// End the call for good.
    Close,
}

/// Whose words a transcript holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The caller.
    User,
    /// The model.
    Assistant,
}

/// How a reply ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReplyStatus {
    /// Generated and played to its end.
    Completed,
    /// Cut off by the caller.
    Interrupted,
    /// The service stopped early.
    Incomplete,
    /// The service failed.
    Failed,
}

/// Both directions' audio.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AudioFormats {
    /// What the client sends.
    #[serde(rename = "in")]
    pub input: Format,
    /// What the client gets.
    #[serde(rename = "out")]
    pub output: Format,
}

/// What a client may count on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Largest message, bytes.
    pub max_message_bytes: u64,
    /// Longest call, seconds.
    pub max_call_s: u64,
    /// How long a call waits for its dropped client, seconds.
    pub resume_window_s: u64,
}

/// Where a turn's milliseconds went, counted from the end of speech (or `commit`, `text`); `None`: did not happen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latency {
    /// The service has the turn.
    pub committed_ms: Option<u64>,
    /// The service began to answer.
    pub reply_started_ms: Option<u64>,
    /// The first audio reached the relay.
    pub first_delta_ms: Option<u64>,
    /// The first audio was handed to the client's socket.
    pub first_audio_ms: Option<u64>,
    /// What the relay itself added: from the first delta's arrival to the client's socket.
    pub relay_added_ms: Option<u64>,
}

/// Tokens of one reply, as the service counted them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Usage {
    /// All of them.
    pub total_tokens: u64,
    /// The conversation so far.
    pub input_tokens: u64,
    /// The reply.
    pub output_tokens: u64,
    /// Of the input: text.
    pub input_text_tokens: u64,
    /// Of the input: audio.
    pub input_audio_tokens: u64,
    /// Of the input: images.
    pub input_image_tokens: u64,
    /// Of the input: found in the service's cache.
    pub cached_tokens: u64,
    /// Of what was cached: text. Services that only tell how much was cached in all leave this and the next two at 0.
    pub cached_text_tokens: u64,
    /// Of what was cached: audio.
    pub cached_audio_tokens: u64,
    /// Of what was cached: images.
    pub cached_image_tokens: u64,
    /// Of the input: text that the service newly wrote into its cache, which some models bill as a class of its own. Left out where it
    /// is none, as it is in calls.
    #[serde(skip_serializing_if = "is_none")]
    pub cache_write_tokens: u64,
    /// Of the output: text.
    pub output_text_tokens: u64,
    /// Of the output: audio.
    pub output_audio_tokens: u64,
}

fn is_none(count: &u64) -> bool {
    *count == 0
}

/// What went wrong. `code` is stable, `message` is for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// One of the protocol's codes.
    pub code: String,
    /// For people.
    pub message: String,
    /// Whether the same request may work later.
    pub retryable: bool,
    /// How long to wait first, ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
    /// The field that was wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// Names this request in the server's log.
    pub request_id: String,
}

/// Text messages from the server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ServerMsg {
    /// First message of a call.
    Ready {
        /// The call's id.
        call: String,
        /// Single-use token to come back with.
        resume: Option<String>,
        /// The agent that answers.
        agent: String,
        /// Agreed formats.
        audio: AudioFormats,
        /// Limits of this call.
        limits: Limits,
    },
    /// First message after a resume.
    Resumed {
        /// The call's id.
        call: String,
        /// The next token.
        resume: Option<String>,
        /// The client's messages that the server has.
        got: u64,
    },
    /// The user began to speak.
    SpeechStarted {
        /// ms of the client's audio since the call began.
        at_ms: u64,
    },
    /// The user stopped.
    SpeechStopped {
        /// ms of the client's audio since the call began.
        at_ms: u64,
    },
    /// Drop reply audio that is queued and not yet heard.
    Clear {
        /// Whose audio.
        reply: String,
    },
    /// Words of either side: `delta` as they come, then `text` with `final`.
    Transcript {
        /// Whose words.
        role: Role,
        /// The conversation item.
        item: String,
        /// The reply, for the assistant's.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reply: Option<String>,
        /// More words.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        delta: Option<String>,
        /// All words.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        text: Option<String>,
        /// Set with `text`.
        #[serde(default, rename = "final", skip_serializing_if = "std::ops::Not::not")]
        last: bool,
    },
    /// Before a reply's first audio.
    ReplyStarted {
        /// Its id.
        reply: String,
    },
    /// Once per reply, after generation and playout.
    ReplyEnded {
        /// Its id.
        reply: String,
        /// How it ended.
        status: ReplyStatus,
        /// Why, where there is more to say.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
        /// Audio received from the service, ms.
        audio_ms: u64,
        /// Of it really heard, ms.
        heard_ms: u64,
        /// The service's count.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        usage: Option<Usage>,
        /// Where the time went.
        latency: Latency,
    },
    /// A tool that the agent leaves to the client.
    ToolCall {
        /// Answer with this.
        call_id: String,
        /// The tool.
        name: String,
        /// Its arguments, JSON in a string as the model wrote them.
        arguments: String,
    },
    /// What the server has accepted, never to be lost.
    Ack {
        /// Messages.
        got: u64,
        /// Audio, ms.
        audio_ms: u64,
    },
    /// The call goes on, but something happened.
    Notice {
        /// One of the protocol's notice codes.
        code: String,
        /// For people.
        message: String,
        /// More fields, by code.
        #[serde(flatten)]
        more: serde_json::Map<String, serde_json::Value>,
    },
    /// One request failed; if the call must end, a close follows.
    Error {
        /// What went wrong.
        error: ErrorBody,
    },
    /// This server goes away.
    Draining {
        /// In so many ms.
        deadline_ms: u64,
    },
    /// Answers a `ping`.
    Pong {
        /// What the ping held.
        t: serde_json::Value,
    },
}
