#![doc = include_str!("thin.md")]
//!
//! # This module
//! Reads the door's query and the client's text messages, writes ours. Judges form only; what a message does is decided in
//! [`crate::call`].
use bytes::Bytes;
use serde_json::{Map, Value};

use super::wire::{ClientMsg, ErrorBody, ServerMsg};
use crate::audio::{Codec, Format};

/// The subprotocol's name.
pub const PROTOCOL: &str = "voxrelay.v1";
/// Longest typed turn or tool result, bytes; the service's own limits are near.
const MAX_TEXT: usize = 64 << 10;

/// What a client asks for at the door.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// The agent's name; none: whatever is usual.
    pub agent: Option<String>,
    /// What the client sends.
    pub input: Format,
    /// What it wants.
    pub output: Format,
    /// The service finds the turns.
    pub auto_turns: bool,
    /// Reply audio at playing speed.
    pub realtime: bool,
    /// It comes back to an earlier call.
    pub resume: Option<Resume>,
}

/// How a client comes back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resume {
    /// The token that it was given last.
    pub token: String,
    /// The number of the last message that it has.
    pub got: u64,
}

/// A query that cannot be served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct QueryError {
    /// The field.
    pub field: &'static str,
    /// What was found, and what is allowed.
    pub message: String,
}

impl Query {
    /// Reads the query string; unknown fields are ignored.
    ///
    /// # Errors
    /// The field, what was found and what is allowed.
    pub fn parse(fields: &[(String, String)]) -> Result<Self, QueryError> {
        let get = |name: &str| fields.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str());
        let choice = |field: &'static str, first: &str, second: &str| match get(field) {
            None => Ok(true),
            Some(value) if value == first => Ok(true),
            Some(value) if value == second => Ok(false),
            Some(value) => Err(QueryError {
                field,
                message: format!("{field} `{}` is not known; allowed: {first}, {second}", shorten(value)),
            }),
        };
        let codec = |field: &'static str| {
            get(field).map(str::parse::<Codec>).transpose().map_err(|_| QueryError {
                field,
                message: format!(
                    "{field} `{}` is not known; allowed: pcm16, mulaw, alaw, opus",
                    shorten(get(field).unwrap_or_default())
                ),
            })
        };
        let rate = |field: &'static str| {
            get(field).map(str::parse::<u32>).transpose().map_err(|_| QueryError {
                field,
                message: format!(
                    "{field} `{}` is no number of samples per second",
                    shorten(get(field).unwrap_or_default())
                ),
            })
        };
        let format = |field: &'static str, codec: Codec, rate: Option<u32>| {
            Format::new(codec, rate).map_err(|e| QueryError { field, message: e.to_string() })
        };
        let input = format("rate", codec("format")?.unwrap_or(Codec::Pcm16), rate("rate")?)?;
        let out_codec = codec("out_format")?.unwrap_or(input.codec);
        let out_rate = rate("out_rate")?.or(Some(input.rate).filter(|r| out_codec.rates().contains(r)));
        let output = format("out_rate", out_codec, out_rate)?;
        Ok(Self {
            agent: get("agent").map(str::to_owned),
            input,
            output,
            auto_turns: choice("turns", "auto", "manual")?,
            realtime: choice("pace", "realtime", "fast")?,
            resume: Self::resume(get("resume"), get("got"))?,
        })
    }
}

impl Query {
    fn resume(token: Option<&str>, got: Option<&str>) -> Result<Option<Resume>, QueryError> {
        let Some(token) = token else { return Ok(None) };
        let invalid = |found: &str| QueryError {
            field: "got",
            message: format!("got `{}` is no number: with `resume` say how many messages you have", shorten(found)),
        };
        let got = got.unwrap_or_default();
        Ok(Some(Resume { token: token.to_owned(), got: got.parse().map_err(|_| invalid(got))? }))
    }
}

/// What a text message is.
#[derive(Debug, Clone, PartialEq)]
pub enum Text {
    /// One that we know.
    Message(ClientMsg),
    /// Well formed, of a type that we do not know.
    Unknown,
    /// Not a message.
    Invalid {
        /// The field that is wrong.
        field: Option<String>,
        /// What was found, and what is allowed.
        message: String,
    },
}

/// Reads one text message.
pub fn read(text: &[u8]) -> Text {
    let value = match serde_json::from_slice::<Value>(text) {
        Ok(Value::Object(fields)) => fields,
        Ok(_) => return invalid(None, "a message must be a JSON object".to_owned()),
        Err(error) => return invalid(None, format!("not JSON: {error}")),
    };
    match message(&value) {
        Ok(Some(message)) => Text::Message(message),
        Ok(None) => Text::Unknown,
        Err((field, message)) => invalid(Some(field), message),
    }
}

fn invalid(field: Option<&str>, message: String) -> Text {
    Text::Invalid { field: field.map(str::to_owned), message }
}

type Wrong = (&'static str, String);

fn message(fields: &Map<String, Value>) -> Result<Option<ClientMsg>, Wrong> {
    Ok(Some(match string(fields, "type")?.as_str() {
        "commit" => ClientMsg::Commit,
        "discard" => ClientMsg::Discard,
        "interrupt" => ClientMsg::Interrupt {
            reply: optional(fields, "reply", string)?,
            played_ms: optional(fields, "played_ms", number)?,
        },
        "played" => ClientMsg::Played { reply: string(fields, "reply")?, ms: number(fields, "ms")? },
        "text" => ClientMsg::Text { text: text(fields, "text", 1)? },
        "tool_result" => {
            ClientMsg::ToolResult { call_id: string(fields, "call_id")?, output: text(fields, "output", 0)? }
        }
        "token" => ClientMsg::Token { token: string(fields, "token")? },
        "ack" => ClientMsg::Ack { got: number(fields, "got")? },
        "ping" => ClientMsg::Ping { t: fields.get("t").cloned().unwrap_or_default() },
        "close" => ClientMsg::Close,
        _ => return Ok(None),
    }))
}

fn string(fields: &Map<String, Value>, name: &'static str) -> Result<String, Wrong> {
    match fields.get(name) {
        Some(Value::String(value)) => Ok(value.clone()),
        other => Err(wrong(name, other, "a string")),
    }
}

fn text(fields: &Map<String, Value>, name: &'static str, least: usize) -> Result<String, Wrong> {
    let value = string(fields, name)?;
    if (least..=MAX_TEXT).contains(&value.len()) {
        return Ok(value);
    }
    Err((name, format!("`{name}` is {} bytes long; allowed: {least} to {MAX_TEXT}", value.len())))
}

fn number(fields: &Map<String, Value>, name: &'static str) -> Result<u64, Wrong> {
    let value = fields.get(name);
    // A playback clock may well be a float; it is a time in whole milliseconds to us.
    let float = value.and_then(Value::as_f64).filter(|f| (0.0..1e15).contains(f));
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to lie in 0..1e15")]
    let whole = float.map(|f| f as u64);
    whole.ok_or_else(|| wrong(name, value, "a number, 0 or more"))
}

fn optional<T>(
    fields: &Map<String, Value>,
    name: &'static str,
    read: impl Fn(&Map<String, Value>, &'static str) -> Result<T, Wrong>,
) -> Result<Option<T>, Wrong> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(_) => read(fields, name).map(Some),
    }
}

fn wrong(name: &'static str, found: Option<&Value>, allowed: &str) -> Wrong {
    let found = match found {
        None => "missing".to_owned(),
        Some(Value::Null) => "null".to_owned(),
        Some(Value::Bool(_)) => "a boolean".to_owned(),
        Some(Value::Number(n)) => n.to_string(),
        Some(Value::String(s)) => format!("`{}`", shorten(s)),
        Some(Value::Array(_)) => "an array".to_owned(),
        Some(Value::Object(_)) => "an object".to_owned(),
    };
    (name, format!("`{name}` must be {allowed}; found {found}"))
}

/// Foreign text in our errors stays short.
fn shorten(text: &str) -> String {
    if text.chars().count() <= 40 {
        text.to_owned()
    } else {
        format!("{}...", text.chars().take(40).collect::<String>())
    }
}

/// Writes one message.
pub fn write(message: &ServerMsg) -> Bytes {
    Bytes::from(serde_json::to_vec(message).expect("our messages have string keys and no failing parts"))
}

/// The body of a refusal before the upgrade.
pub fn refusal(error: &ErrorBody) -> Bytes {
    Bytes::from(serde_json::json!({ "error": error }).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn query(text: &str) -> Result<Query, QueryError> {
        let fields: Vec<(String, String)> = text
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .collect();
        Query::parse(&fields)
    }

    #[test]
    fn formats_follow_the_contracts_defaults() {
        for (text, input, output) in [
            ("", Format::PCM_24K, Format::PCM_24K),
            ("rate=16000", Format { codec: Codec::Pcm16, rate: 16_000 }, Format { codec: Codec::Pcm16, rate: 16_000 }),
            ("format=mulaw", Format::MULAW, Format::MULAW),
            ("format=opus&out_format=pcm16", Format::OPUS, Format { codec: Codec::Pcm16, rate: 48_000 }),
            ("rate=16000&out_format=alaw", Format { codec: Codec::Pcm16, rate: 16_000 }, Format::ALAW),
            ("format=mulaw&out_format=pcm16", Format::MULAW, Format { codec: Codec::Pcm16, rate: 8_000 }),
            ("format=mulaw&out_rate=8000", Format::MULAW, Format::MULAW),
        ] {
            let query = query(text).unwrap();
            assert_eq!((query.input, query.output), (input, output), "{text}");
        }
    }

    #[test]
    fn a_bad_query_names_its_field_and_what_is_allowed() {
        for (text, field, message) in [
            ("format=mp3", "format", "format `mp3` is not known; allowed: pcm16, mulaw, alaw, opus"),
            ("rate=44100", "rate", "rate 44100 is not possible with pcm16; allowed: 8000, 16000, 24000, 48000"),
            ("rate=fast", "rate", "rate `fast` is no number of samples per second"),
            ("out_format=mulaw&out_rate=16000", "out_rate", "rate 16000 is not possible with mulaw; allowed: 8000"),
            ("turns=never", "turns", "turns `never` is not known; allowed: auto, manual"),
            ("pace=slow", "pace", "pace `slow` is not known; allowed: realtime, fast"),
        ] {
            let error = query(text).unwrap_err();
            assert_eq!((error.field, error.message.as_str()), (field, message), "{text}");
        }
    }

    #[test]
    fn messages_are_read_as_the_contract_writes_them() {
        for (text, want) in [
            (r#"{"type":"commit"}"#, ClientMsg::Commit),
            (r#"{"type":"discard","more":1}"#, ClientMsg::Discard),
            (r#"{"type":"interrupt"}"#, ClientMsg::Interrupt { reply: None, played_ms: None }),
            (
                r#"{"type":"interrupt","reply":"r1","played_ms":12.7}"#,
                ClientMsg::Interrupt { reply: Some("r1".into()), played_ms: Some(12) },
            ),
            (r#"{"type":"played","reply":"r1","ms":40}"#, ClientMsg::Played { reply: "r1".into(), ms: 40 }),
            (r#"{"type":"text","text":"hi"}"#, ClientMsg::Text { text: "hi".into() }),
            (
                r#"{"type":"tool_result","call_id":"c","output":""}"#,
                ClientMsg::ToolResult { call_id: "c".into(), output: String::new() },
            ),
            (r#"{"type":"token","token":"t"}"#, ClientMsg::Token { token: "t".into() }),
            (r#"{"type":"ack","got":3}"#, ClientMsg::Ack { got: 3 }),
            (r#"{"type":"ping","t":[1,"x"]}"#, ClientMsg::Ping { t: json!([1, "x"]) }),
            (r#"{"type":"close"}"#, ClientMsg::Close),
        ] {
            assert_eq!(read(text.as_bytes()), Text::Message(want), "{text}");
        }
        assert_eq!(read(br#"{"type":"of_tomorrow"}"#), Text::Unknown);
    }

    #[test]
    fn a_bad_message_names_its_field() {
        let long = format!(r#"{{"type":"text","text":"{}"}}"#, "x".repeat(MAX_TEXT + 1));
        for (text, field, part) in [
            ("{", None, "not JSON"),
            ("[]", None, "must be a JSON object"),
            ("{}", Some("type"), "found missing"),
            (r#"{"type":7}"#, Some("type"), "must be a string; found 7"),
            (r#"{"type":"played","reply":"r1"}"#, Some("ms"), "a number, 0 or more; found missing"),
            (r#"{"type":"played","reply":"r1","ms":-1}"#, Some("ms"), "found -1"),
            (r#"{"type":"played","ms":1}"#, Some("reply"), "found missing"),
            (r#"{"type":"interrupt","played_ms":"all"}"#, Some("played_ms"), "found `all`"),
            (r#"{"type":"text","text":""}"#, Some("text"), "0 bytes long; allowed: 1 to 65536"),
            (long.as_str(), Some("text"), "65537 bytes long"),
            (r#"{"type":"tool_result","call_id":"c","output":{}}"#, Some("output"), "found an object"),
        ] {
            let Text::Invalid { field: found, message } = read(text.as_bytes()) else { panic!("{text} was taken") };
            assert_eq!(found.as_deref(), field, "{text}");
            assert!(message.contains(part), "{text}: {message}");
        }
    }

    proptest::proptest! {
        #[test]
        fn nothing_that_comes_in_panics(bytes: Vec<u8>) {
            let _ = read(&bytes);
        }
    }
}
