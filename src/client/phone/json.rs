//! JSON with audio in base64: one reader and writer, and a table per provider.
//!
//! The tables say where things stand in a provider's messages and what ours look like. What a provider adds is passed over; numbers may
//! come as strings. Media come fifty times a second, so they are read without a tree.
use std::{borrow::Cow, collections::BTreeMap, fmt, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde::{Deserialize, Deserializer, de};
use serde_json::Value;

use super::{Bad, Dialect, Habits, Media, Packet, Said, Start, format, key, number, object, shorten, strings, text};
use crate::audio::Format;

/// Where things stand in a provider's messages (JSON pointers), and what ours look like.
#[derive(Debug)]
pub struct Table {
    /// How it behaves.
    pub habits: Habits,
    /// In `start`: the stream's id.
    pub stream: &'static str,
    /// In `start`: the call's id.
    pub call: &'static str,
    /// In `start`: who calls and who is called; empty: nowhere.
    pub parties: (&'static str, &'static str),
    /// In `start`: what the markup gave it, an object or `name=value;name=value`.
    pub params: &'static str,
    /// In `start`: the media's encoding and rate.
    pub media: (&'static str, &'static str),
    /// The event that tells that a mark was reached, and where its name stands.
    pub reached: (&'static str, &'static str),
    /// Before and behind the base64 of our audio. `stream`: its id, in JSON.
    pub audio: fn(stream: &str, format: Format) -> (String, &'static str),
    /// Our mark.
    pub mark: fn(stream: &str, name: &str) -> Value,
    /// Our clear.
    pub clear: fn(stream: &str) -> Value,
    /// Our keys.
    pub press: Option<fn(stream: &str, digits: &str) -> Value>,
}

/// One stream.
pub struct Json {
    table: &'static Table,
    /// What was agreed on for our audio, where the stream does not say it.
    asked: Option<Format>,
    stream: String,
    audio: (String, &'static str),
}

impl fmt::Debug for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Json").field("provider", &self.table.habits.name).field("stream", &self.stream).finish()
    }
}

/// What every message may have, as far as media need it.
#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow)]
    event: Cow<'a, str>,
    #[serde(borrow, default, alias = "streamSid", alias = "streamId")]
    stream_id: Cow<'a, str>,
    #[serde(borrow)]
    media: Option<Payload<'a>>,
}

#[derive(Deserialize)]
struct Payload<'a> {
    #[serde(borrow, default)]
    track: Cow<'a, str>,
    #[serde(default, deserialize_with = "counter")]
    chunk: Option<u64>,
    #[serde(default, deserialize_with = "counter")]
    timestamp: Option<u64>,
    #[serde(borrow, default)]
    payload: Cow<'a, str>,
}

/// A number, or a string of digits as one; anything else is none.
fn counter<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    struct Counter;
    impl de::Visitor<'_> for Counter {
        type Value = Option<u64>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a number, or a string of digits")
        }

        fn visit_u64<E>(self, number: u64) -> Result<Self::Value, E> {
            Ok(Some(number))
        }

        fn visit_i64<E>(self, number: i64) -> Result<Self::Value, E> {
            Ok(u64::try_from(number).ok())
        }

        fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
            Ok(text.parse().ok())
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(None)
        }
    }
    from.deserialize_any(Counter)
}

impl Json {
    /// A stream of this provider's. `asked`: the format that it was asked to take, if it was.
    pub fn new(table: &'static Table, asked: Option<Format>) -> Self {
        Self { table, asked, stream: String::new(), audio: (String::new(), "") }
    }

    fn start(&mut self, message: &Value) -> Result<Said, Bad> {
        let at = |pointer: &str| Some(pointer).filter(|pointer| !pointer.is_empty()).and_then(|at| message.pointer(at));
        let Table { stream, call, parties: (from, to), params, media: (encoding, rate), .. } = *self.table;
        let stream = text(at(stream)).ok_or_else(|| missing("start", stream))?;
        let named = text(at(encoding)).ok_or_else(|| missing("start", encoding))?;
        let input = format("start.mediaFormat", &named, number(at(rate)))?;
        let output = self.asked.unwrap_or(input);
        let params = match at(params) {
            Some(Value::String(pairs)) => pairs_of(pairs),
            object => strings(object),
        };
        self.stream.clone_from(&stream);
        self.audio = (self.table.audio)(&Value::from(stream.as_str()).to_string(), output);
        let (call, from, to) = (text(at(call)), text(at(from)), text(at(to)));
        Ok(Said::Start(Box::new(Start { stream, call, from, to, params, input, output, first: None })))
    }

    fn media(media: &Payload<'_>) -> Result<Said, Bad> {
        // What is said to the caller may come back; it shall not be heard as the caller's.
        if !matches!(&*media.track, "" | "inbound" | "inbound_track") {
            return Ok(Said::Nothing);
        }
        let bytes = STANDARD.decode(media.payload.as_bytes());
        let bytes = bytes.map_err(|error| Bad::new("media.payload", format!("media.payload is no base64: {error}")))?;
        let at = media.timestamp.map(Duration::from_millis);
        Ok(Said::Audio(Media { bytes: bytes.into(), at, number: media.chunk }))
    }

    fn other(&mut self, event: &str, text_of: &[u8]) -> Result<Said, Bad> {
        let message = object(text_of)?;
        let (reached, name) = self.table.reached;
        match event {
            "start" => self.start(&message),
            "dtmf" => {
                let digit = text(message.pointer("/dtmf/digit")).ok_or_else(|| missing("dtmf", "/dtmf/digit"))?;
                key("dtmf.digit", &digit).map(Said::Digit)
            }
            "stop" => Ok(Said::Stop(text(message.pointer("/stop/reason")).map(|reason| shorten(&reason)))),
            "error" => {
                tracing::warn!(provider = self.table.habits.name, "the stream reports an error");
                tracing::debug!(%message, "the error");
                Ok(Said::Nothing)
            }
            _ if event == reached => text(message.pointer(name)).map(Said::Played).ok_or_else(|| missing("mark", name)),
            // Whatever else they tell, now or later.
            _ => Ok(Said::Nothing),
        }
    }
}

fn missing(field: &'static str, pointer: &str) -> Bad {
    Bad::new(field, format!("{field}: there is no `{}`", pointer.trim_start_matches('/').replace('/', ".")))
}

/// `name=value;name=value`
fn pairs_of(pairs: &str) -> BTreeMap<String, String> {
    let pairs = pairs.split([';', ',']).filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned())).collect()
}

impl Dialect for Json {
    fn habits(&self) -> &'static Habits {
        &self.table.habits
    }

    fn read(&mut self, packet: &Packet) -> Result<Said, Bad> {
        let Packet::Text(bytes) = packet else { return Err(Bad::kind("binary", "text")) };
        let message: Message<'_> = match serde_json::from_slice(bytes) {
            Ok(message) => message,
            Err(error) if error.is_data() => {
                object(bytes)?;
                return Err(Bad::new("event", format!("no message of this stream: {error}")));
            }
            Err(error) => return Err(Bad { field: None, message: format!("not JSON: {error}") }),
        };
        let stream = &*message.stream_id;
        if !stream.is_empty() && !self.stream.is_empty() && stream != self.stream {
            let found = shorten(stream);
            return Err(Bad::new(
                "streamSid",
                format!("stream `{found}` is another one; this socket has `{}`", self.stream),
            ));
        }
        match (&*message.event, &message.media) {
            ("media", Some(media)) => Self::media(media),
            ("media", None) => Err(missing("media", "/media")),
            (event, _) => self.other(event, bytes),
        }
    }

    fn audio(&mut self, frame: Bytes) -> Option<Packet> {
        let (before, behind) = &self.audio;
        let mut text = String::with_capacity(before.len() + frame.len().div_ceil(3) * 4 + behind.len());
        text.push_str(before);
        STANDARD.encode_string(frame, &mut text);
        text.push_str(behind);
        Some(Packet::Text(Bytes::from(text)))
    }

    fn mark(&self, name: &str) -> Option<Packet> {
        Some((self.table.mark)(&self.stream, name).into())
    }

    fn clear(&mut self) -> Option<Packet> {
        Some((self.table.clear)(&self.stream).into())
    }

    fn press(&self, digits: &str) -> Option<Packet> {
        self.table.press.map(|press| press(&self.stream, digits).into())
    }
}
