//! Telephones: what the media streams of telephone providers and exchanges say, one file per dialect.
//!
//! Three shapes carry all of them: JSON with audio in base64 ([`json`], a table per provider), binary audio with JSON beside it
//! ([`vonage`], [`jambonz`], [`freeswitch`], [`asterisk`]), and frames over TCP ([`audiosocket`]). A dialect reads and writes
//! messages and keeps nothing but what it needs for that; what lasts from message to message is [`mod@line`]'s and that of [`marks`].
//! Nothing here knows a socket, a clock, or what a call is.
//!
//! How each of them behaves, and who says so, stands in its [`Habits`].
pub mod asterisk;
pub mod audiosocket;
pub mod freeswitch;
pub mod jambonz;
pub mod json;
pub mod line;
pub mod marks;
pub mod plivo;
pub mod signalwire;
pub mod telnyx;
pub mod twilio;
pub mod vonage;

use std::{collections::BTreeMap, fmt, time::Duration};

use bytes::Bytes;
use serde_json::Value;

use crate::audio::{Codec, Format};

/// One message of a media stream, either way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packet {
    /// Text.
    Text(Bytes),
    /// Binary.
    Binary(Bytes),
}

impl Packet {
    /// Its bytes.
    pub fn bytes(&self) -> &Bytes {
        match self {
            Self::Text(bytes) | Self::Binary(bytes) => bytes,
        }
    }
}

impl From<Value> for Packet {
    fn from(message: Value) -> Self {
        Self::Text(message.to_string().into())
    }
}

/// What the other side said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// Nothing that matters to a call.
    Nothing,
    /// Whose call it is, and what its audio is; audio comes after it.
    Start(Box<Start>),
    /// The caller's audio, in the format of the start.
    Audio(Media),
    /// The caller pressed a key: `0` to `9`, `*`, `#`, `A` to `D`.
    Digit(char),
    /// The audio before the mark of this name was played, or dropped by a clear.
    Played(String),
    /// The other side has as much audio as it takes, or takes more again.
    Full(bool),
    /// The call is over there.
    Stop(Option<String>),
}

/// Audio of the caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Media {
    /// The audio.
    pub bytes: Bytes,
    /// When it was spoken, since some moment of the stream's; none: it follows what came before.
    pub at: Option<Duration>,
    /// Its place among all of them, where they may come in any order.
    pub number: Option<u64>,
}

impl Media {
    /// Audio that follows what came before.
    pub fn next(bytes: Bytes) -> Self {
        Self { bytes, at: None, number: None }
    }
}

/// The beginning of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    /// The stream's id.
    pub stream: String,
    /// The provider's id of the call.
    pub call: Option<String>,
    /// Who calls, and who is called, where the stream says so.
    pub from: Option<String>,
    /// See `from`.
    pub to: Option<String>,
    /// What the markup, the dial plan or the URL gave it.
    pub params: BTreeMap<String, String>,
    /// What comes.
    pub input: Format,
    /// What is taken.
    pub output: Format,
    /// The audio that told all this, where it was audio.
    pub first: Option<Media>,
}

/// A message that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Bad {
    /// The field that is wrong.
    pub field: Option<&'static str>,
    /// What was found, and what is allowed.
    pub message: String,
}

impl Bad {
    fn new(field: &'static str, message: String) -> Self {
        Self { field: Some(field), message }
    }

    /// Text, or binary, where the stream has none.
    fn kind(found: &str, allowed: &str) -> Self {
        Self { field: None, message: format!("a {found} message; this stream has {allowed} messages only") }
    }
}

/// How a provider behaves, as far as a call must know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Habits {
    /// Its name, in paths, logs and metrics.
    pub name: &'static str,
    /// The subprotocol that it wants to be answered; empty: none.
    pub protocol: &'static str,
    /// How far ahead of the caller's ear audio may be sent.
    pub lead: Duration,
    /// How often a mark is set; none: it has no marks, and the pacer's clock says what was heard.
    pub mark_every: Option<Duration>,
    /// Media may come in another order than it was spoken.
    pub reorders: bool,
    /// Linear audio is big-endian or little-endian, nobody knows which: it is found out per call.
    pub odd_bytes: bool,
    /// Largest message that it sends, bytes, with room.
    pub max_message: usize,
}

/// Reads and writes one stream's messages.
pub trait Dialect: fmt::Debug + Send + Sync {
    /// How the provider behaves.
    fn habits(&self) -> &'static Habits;

    /// Reads a message.
    ///
    /// # Errors
    /// When it makes no sense.
    fn read(&mut self, packet: &Packet) -> Result<Said, Bad>;

    /// 20 ms of a reply, in the stream's output format; none: it goes with the next.
    fn audio(&mut self, frame: Bytes) -> Option<Packet>;

    /// What [`Self::audio`] holds back of a reply that is over.
    fn tail(&mut self) -> Option<Packet> {
        None
    }

    /// Asks to be told when everything before it was played.
    fn mark(&self, _name: &str) -> Option<Packet> {
        None
    }

    /// Drops everything that is not played; forgets what [`Self::audio`] holds back.
    fn clear(&mut self) -> Option<Packet> {
        None
    }

    /// Takes the call, where that is left to us.
    fn take(&self) -> Option<Packet> {
        None
    }

    /// Ends the call; none: closing the stream does.
    fn hang_up(&self) -> Option<Packet> {
        None
    }

    /// Sends keys; none: the stream cannot.
    fn press(&self, _digits: &str) -> Option<Packet> {
        None
    }
}

/// A key of a telephone.
fn key(field: &'static str, text: &str) -> Result<char, Bad> {
    let mut chars = text.chars();
    match (chars.next().map(|c| c.to_ascii_uppercase()), chars.next()) {
        (Some(digit @ ('0'..='9' | '*' | '#' | 'A'..='D')), None) => Ok(digit),
        _ => Err(Bad::new(field, format!("{field} `{}` is no key; allowed: 0 to 9, *, #, A to D", shorten(text)))),
    }
}

/// A format, as a provider names it.
fn format(field: &'static str, encoding: &str, rate: Option<u64>) -> Result<Format, Bad> {
    let name = encoding.to_ascii_lowercase();
    let codec = match name.trim_start_matches("audio/").trim_start_matches("x-") {
        "mulaw" | "pcmu" | "ulaw" => Codec::Mulaw,
        "alaw" | "pcma" => Codec::Alaw,
        "l16" | "raw" | "slin" | "pcm" => Codec::Pcm16,
        _ => {
            let found = shorten(encoding);
            return Err(Bad::new(field, format!("{field} `{found}` is not known; allowed: PCMU, PCMA, L16")));
        }
    };
    let rate = rate.and_then(|rate| u32::try_from(rate).ok()).or(Some(8_000));
    Format::new(codec, rate).map_err(|error| Bad::new(field, error.to_string()))
}

/// The JSON object of a text message.
fn object(text: &[u8]) -> Result<Value, Bad> {
    match serde_json::from_slice(text) {
        Ok(value @ Value::Object(_)) => Ok(value),
        Ok(_) => Err(Bad { field: None, message: "a message must be a JSON object".to_owned() }),
        Err(error) => Err(Bad { field: None, message: format!("not JSON: {error}") }),
    }
}

/// A string, or a number as one.
fn text(value: Option<&Value>) -> Option<String> {
    match value? {
        Value::String(text) if text.is_empty() => None,
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// A number, or a string of digits as one.
fn number(value: Option<&Value>) -> Option<u64> {
    match value? {
        Value::Number(number) => number.as_u64(),
        Value::String(text) => text.parse().ok(),
        _ => None,
    }
}

/// The strings of an object.
fn strings(value: Option<&Value>) -> BTreeMap<String, String> {
    let fields = value.and_then(Value::as_object).into_iter().flatten();
    fields.filter_map(|(name, value)| Some((name.clone(), text(Some(value))?))).collect()
}

/// The beginning of what somebody else wrote, to be shown: one line.
fn shorten(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(64).collect()
}

#[cfg(test)]
mod tests;
