//! How each provider says it: one small file per provider, over three shapes.
//!
//! [`json`]: text with base64 in it (Twilio, SignalWire, Telnyx, Plivo). [`binary`]: bare audio and JSON beside it (Vonage,
//! jambonz, FreeSWITCH, and Asterisk's channel, which has plain words too). [`audiosocket`]: frames over TCP.
//! A dialect turns messages into [`Command`]s and [`Said`] into messages, and its [`Rules`] are data; what follows from both is
//! the [`super::line`]'s business.
use std::{fmt, time::Duration};

use bytes::Bytes;
use serde_json::Value;

use super::{
    setup::{Provider, Setup},
    wire::Message,
};

pub(super) mod audio_fork;
pub(super) mod audiosocket;
pub(super) mod binary;
pub(super) mod chan_websocket;
pub(super) mod jambonz;
pub(super) mod json;
pub(super) mod plivo;
pub(super) mod telnyx;
pub(super) mod twilio;
pub(super) mod vonage;

/// What becomes of marks that are queued when the relay clears.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnClear {
    /// They come back at once, as if played.
    Returned,
    /// They never come.
    Lost,
    /// They stay in the queue, and with nothing left before them they come as played.
    Kept,
}

/// Which pieces of audio a provider takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pieces {
    /// Any; half a sample waits for its other half.
    Any,
    /// Exactly 20 ms.
    Exact,
    /// So much at least and at most.
    Between(Duration, Duration),
    /// Multiples of a frame, the rest is dropped; anything while the relay buffers.
    Multiple,
}

/// A provider's habits, as data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// What pieces it takes.
    pub pieces: Pieces,
    /// What becomes of marks.
    pub on_clear: OnClear,
    /// Each piece is played as a frame of its own.
    pub whole_frames: bool,
    /// A mark waits for the leg's next tick even where nothing is queued before it; otherwise it comes back at once.
    pub marks_wait: bool,
    /// Most frames of 20 ms that are queued.
    pub capacity: Option<usize>,
    /// What is wrong with more.
    pub overflow: &'static str,
    /// Flow control: queued frames at which it is told to stop, and below which to go on.
    pub flow: Option<(usize, usize)>,
}

/// What the relay asks for.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// Play this.
    Play(Bytes),
    /// Tell when what was sent so far has been heard.
    Mark(String),
    /// Drop what is queued.
    Clear,
    /// Drop the marks, not the audio.
    ClearMarks,
    /// End the call.
    HangUp,
    /// Send keys into the call.
    Digits(String),
    /// Gather until [`Command::Buffered`].
    Buffer,
    /// The end of what was gathered; the id comes back when it was played.
    Buffered(Option<String>),
    /// Stop playing, and go on.
    Pause(bool),
    /// Tell the queue's state.
    Status,
    /// Tell when the queue is empty.
    TellDrained,
    /// Something without effect here.
    Nothing,
    /// The provider's rules were broken.
    Fault(String),
    /// So badly that the provider ends the call.
    Fatal(String),
}

/// The state of a queue, for those who ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// Queued frames.
    pub queued: usize,
    /// Over the limit of flow control.
    pub full: bool,
    /// The relay buffers.
    pub buffering: bool,
    /// Playing is paused.
    pub paused: bool,
}

/// What the provider has to tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said<'a> {
    /// A mark came out.
    Mark {
        /// The relay's name of it.
        name: &'a str,
        /// What was before it has been played; otherwise it comes because of a clear.
        played: bool,
    },
    /// The queue was dropped.
    Cleared,
    /// Send no more for now.
    Xoff,
    /// Send on.
    Xon,
    /// The queue's state.
    Status(Status),
    /// A buffered turn was played.
    Buffered(Option<&'a str>),
    /// The queue is empty.
    Drained,
    /// The call ends because of an error.
    Error,
}

/// One provider's way of saying it.
pub(super) trait Dialect: fmt::Debug + Send {
    /// The first messages.
    fn start(&mut self) -> Vec<Message>;
    /// 20 ms of the caller, encoded, `at_ms` after the stream's start.
    fn media(&mut self, frame: &[u8], at_ms: u64) -> Message;
    /// The caller has pressed a key.
    fn digit(&mut self, digit: char, at_ms: u64) -> Message;
    /// The last message, where there is one.
    fn stop(&mut self) -> Option<Message> {
        None
    }
    /// What the relay means.
    fn take(&mut self, message: &Message) -> Vec<Command>;
    /// A message that tells it, where the provider has one.
    fn say(&mut self, said: &Said<'_>) -> Option<Message>;
}

/// A provider's habits.
pub fn rules(setup: &Setup) -> Rules {
    match setup.provider {
        Provider::Twilio | Provider::SignalWire => twilio::RULES,
        Provider::Telnyx => telnyx::RULES,
        Provider::Plivo => plivo::RULES,
        Provider::Vonage => vonage::RULES,
        Provider::Jambonz => jambonz::RULES,
        Provider::AudioFork if setup.plays_back => audio_fork::PLAYS_BACK,
        Provider::AudioFork => audio_fork::RULES,
        Provider::ChanWebSocket => chan_websocket::RULES,
        Provider::AudioSocket => audiosocket::RULES,
    }
}

pub(super) fn dialect(setup: &Setup) -> Box<dyn Dialect> {
    match setup.provider {
        Provider::Twilio | Provider::SignalWire => Box::new(twilio::Twilio::new(setup)),
        Provider::Telnyx => Box::new(telnyx::Telnyx::new(setup)),
        Provider::Plivo => Box::new(plivo::Plivo::new(setup)),
        Provider::Vonage => Box::new(vonage::Vonage::new(setup)),
        Provider::Jambonz => Box::new(jambonz::Jambonz::new(setup)),
        Provider::AudioFork => Box::new(audio_fork::AudioFork::new(setup)),
        Provider::ChanWebSocket => Box::new(chan_websocket::ChanWebSocket::new(setup)),
        Provider::AudioSocket => Box::new(audiosocket::AudioSocket::new(setup)),
    }
}

/// The id that media names: the call's, or on request one that nobody knows.
fn media_stream(setup: &Setup) -> String {
    if setup.quirks.wrong_stream_ids { format!("not-{}", setup.ids.stream) } else { setup.ids.stream.clone() }
}

fn text(value: &Value) -> Message {
    Message::Text(value.to_string())
}

/// A string somewhere in a message.
fn string<'a>(message: &'a Value, path: &[&str]) -> Option<&'a str> {
    path.iter().try_fold(message, |at, key| at.get(key))?.as_str()
}

/// The parameters as one JSON object.
fn object(parameters: &[(String, String)]) -> Value {
    parameters.iter().map(|(name, value)| (name.clone(), Value::from(value.as_str()))).collect()
}

/// What a message from outside begins with, to be quoted.
fn excerpt(text: &str) -> String {
    text.chars().take(80).collect()
}
