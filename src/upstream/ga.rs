//! OpenAI Realtime, generally available shape (`/v1/realtime`), as an owner of the conversation speaks it.
//!
//! Appends are built straight into one buffer and audio deltas are found by a scan; everything else is rare and goes
//! through serde. Sources of names and rules: OpenAI's API reference and SDK types, read 2026-11.
use std::{sync::LazyLock, time::Duration};

use base64::{
    Engine as _,
    engine::{Simd, general_purpose::PAD},
};
use bytes::Bytes;
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

use super::{
    Command, Ended, Event, Hearing, History, Intent, RateLimit, ServiceError, SessionSetup, Wanted, Written, event_id,
    limits,
    scan::{self, flat},
};
use crate::{
    audio::{Codec, Format},
    client::wire::Usage,
    config::{AgentConfig, Eagerness, NoiseReduction, ToolConfig, TurnDetection},
};

static BASE64: LazyLock<Simd> = LazyLock::new(|| Simd::standard(PAD));

/// More tokens than any reply has.
const MOST_TOKENS: u64 = 1 << 40;
/// Rates in Hz that a service may say it takes; compatible ones have others than 24 kHz. None is 0.
const RATES: std::ops::RangeInclusive<u32> = 1_000..=192_000;

const APPEND_HEAD: &str = r#"{"type":"input_audio_buffer.append","event_id":""#;
const APPEND_MIDDLE: &str = r#"","audio":""#;
const APPEND_TAIL: &str = r#""}"#;

/// The path and query of a session. `bound`: the credential names the model already.
pub fn session_path(base: &str, wanted: &Wanted, bound: bool) -> String {
    if let Some(call) = &wanted.joins {
        return format!("{base}/realtime?call_id={}", escape_query(call));
    }
    match wanted.intent {
        Intent::Transcription if bound => format!("{base}/realtime"),
        Intent::Transcription => format!("{base}/realtime?intent=transcription"),
        Intent::Realtime if bound => format!("{base}/realtime"),
        Intent::Realtime => format!("{base}/realtime?model={}", escape_query(&wanted.model)),
    }
}

/// As a value of a query.
pub(super) fn escape_query(value: &str) -> String {
    value.bytes().fold(String::new(), |mut out, b| {
        if b.is_ascii_alphanumeric() || b"-._~".contains(&b) {
            out.push(char::from(b));
        } else {
            out.push_str(&format!("%{b:02X}"));
        }
        out
    })
}

/// Writes a command as one text message.
pub fn encode(command: &Command, setup: &SessionSetup, number: u64) -> Bytes {
    if let Command::Append(audio) = command {
        return append(audio, number);
    }
    let mut event = match command {
        Command::Append(_) => Value::Null,
        Command::Configure { listens, answers } => {
            json!({"type": "session.update", "session": session(setup, *listens, *answers)})
        }
        Command::Answers { answers } => {
            let detection = turn_detection(&setup.agent.turn_detection, *answers, !setup.agent.barge_in.is_guarded());
            let session = json!({"type": "realtime", "audio": {"input": {"turn_detection": detection}}});
            json!({"type": "session.update", "session": session})
        }
        Command::Retell { id, after, item } => retell(id.as_deref(), after.as_deref(), item),
        Command::Commit => json!({"type": "input_audio_buffer.commit"}),
        Command::ClearInput => json!({"type": "input_audio_buffer.clear"}),
        Command::UserText { text } => json!({"type": "conversation.item.create", "item": {
            "type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}}),
        Command::ToolOutput { call_id, output } => json!({"type": "conversation.item.create", "item": {
            "type": "function_call_output", "call_id": call_id, "output": output}}),
        Command::CreateReply { instructions: None, no_tools: false } => json!({"type": "response.create"}),
        Command::CreateReply { instructions, no_tools } => {
            let mut response = json!({});
            if let Some(text) = instructions {
                set(&mut response, "instructions", json!(text));
            }
            if *no_tools {
                set(&mut response, "tool_choice", json!("none"));
            }
            json!({"type": "response.create", "response": response})
        }
        Command::CancelReply { response: None } => json!({"type": "response.cancel"}),
        Command::CancelReply { response: Some(id) } => json!({"type": "response.cancel", "response_id": id}),
        Command::Truncate { item, content_index, audio_end_ms } => json!({"type": "conversation.item.truncate",
            "item_id": item, "content_index": content_index, "audio_end_ms": audio_end_ms}),
        Command::DeleteItem { item } => json!({"type": "conversation.item.delete", "item_id": item}),
    };
    let mut id = String::new();
    event_id::write(number, &mut id);
    if let Some(fields) = event.as_object_mut() {
        fields.insert("event_id".to_owned(), Value::String(id));
    }
    Bytes::from(event.to_string())
}

/// One append event, named by its number.
pub fn append(audio: &[u8], number: u64) -> Bytes {
    append_event(audio, APPEND_HEAD.len() + event_id::len(number) + APPEND_MIDDLE.len(), |out| {
        out.push_str(APPEND_HEAD);
        event_id::write(number, out);
        out.push_str(APPEND_MIDDLE);
    })
}

/// An append event without a name, for audio of which the service may complain to its sender.
pub fn append_unnamed(audio: &[u8]) -> Bytes {
    const HEAD: &str = r#"{"type":"input_audio_buffer.append","audio":""#;
    append_event(audio, HEAD.len(), |out| out.push_str(HEAD))
}

/// Prefix, base64, suffix in one buffer of exactly the right size, which becomes the message without another allocation.
fn append_event(audio: &[u8], head_len: usize, head: impl FnOnce(&mut String)) -> Bytes {
    let encoded = base64::encoded_len(audio.len(), true).unwrap_or(usize::MAX);
    let mut out = String::with_capacity(head_len + encoded + APPEND_TAIL.len());
    head(&mut out);
    let mut out = out.into_bytes();
    let at = out.len();
    out.resize(at + encoded, 0);
    let written =
        BASE64.encode_slice(audio, out.get_mut(at..).unwrap_or_default()).expect("the buffer was sized for it");
    out.truncate(at + written);
    out.extend_from_slice(APPEND_TAIL.as_bytes());
    Bytes::from(out)
}

fn format(format: Format) -> Value {
    match format.codec {
        Codec::Mulaw => json!({"type": "audio/pcmu"}),
        Codec::Alaw => json!({"type": "audio/pcma"}),
        Codec::Pcm16 | Codec::Opus => json!({"type": "audio/pcm", "rate": format.rate}),
    }
}

/// An item of an earlier session; assistants cannot be given a voice, only words (realtime-protocol section 4.5).
fn retell(id: Option<&str>, after: Option<&str>, item: &History) -> Value {
    let message = |role: &str, content: Value| json!({"type": "message", "role": role, "content": [content]});
    let mut item = match item {
        History::User { text } => message("user", json!({"type": "input_text", "text": text})),
        History::UserAudio { audio } => message("user", json!({"type": "input_audio", "audio": BASE64.encode(audio)})),
        History::Assistant { text } => message("assistant", json!({"type": "output_text", "text": text})),
        History::Note { text } => message("system", json!({"type": "input_text", "text": text})),
        History::Call { call_id, name, arguments } => {
            json!({"type": "function_call", "call_id": call_id, "name": name, "arguments": arguments})
        }
        History::Result { call_id, output } => {
            json!({"type": "function_call_output", "call_id": call_id, "output": output})
        }
    };
    if let Some(id) = id {
        set(&mut item, "id", json!(id));
    }
    let mut event = json!({"type": "conversation.item.create", "item": item});
    if let Some(after) = after {
        set(&mut event, "previous_item_id", json!(after));
    }
    event
}

/// `listens`: the service may find turns, where that was agreed; `answers`: and answers them by itself.
fn session(setup: &SessionSetup, listens: bool, answers: bool) -> Value {
    let agent = &setup.agent;
    let mut input = json!({
        "format": format(setup.input),
        "turn_detection": if setup.auto_turns && listens {
            turn_detection(&agent.turn_detection, answers, !agent.barge_in.is_guarded())
        } else {
            Value::Null
        },
    });
    let mut output = json!({"format": format(setup.output), "voice": agent.voice});
    if let Some(model) = &agent.transcription {
        set(&mut input, "transcription", json!({"model": model}));
    }
    if let Some(filter) = agent.noise_reduction {
        let kind = match filter {
            NoiseReduction::NearField => "near_field",
            NoiseReduction::FarField => "far_field",
        };
        set(&mut input, "noise_reduction", json!({"type": kind}));
    }
    if let Some(speed) = agent.speed {
        set(&mut output, "speed", json!(speed));
    }
    let mut session = json!({
        "type": "realtime",
        "output_modalities": ["audio"],
        "instructions": agent.instructions,
        "audio": {"input": input, "output": output},
    });
    if !agent.tools.is_empty() {
        set(&mut session, "tools", tools(agent));
    }
    if let Some(tokens) = agent.max_output_tokens {
        set(&mut session, "max_output_tokens", json!(tokens));
    }
    session
}

fn set(object: &mut Value, key: &str, value: Value) {
    if let Some(fields) = object.as_object_mut() {
        fields.insert(key.to_owned(), value);
    }
}

/// The tools of an agent, for a session that is ours.
fn tools(agent: &AgentConfig) -> Value {
    functions(agent.tools.iter())
}

/// The tools of an agent that a client answers, for a session of its own.
pub fn client_tools(agent: &AgentConfig) -> Value {
    functions(agent.tools.iter().filter(|tool| tool.http.is_none() && tool.builtin.is_none()))
}

fn functions<'a>(tools: impl Iterator<Item = &'a ToolConfig>) -> Value {
    tools
        .map(|t| json!({"type": "function", "name": t.name, "description": t.description, "parameters": t.parameters}))
        .collect()
}

/// `answers`: the service answers the turns that it finds; `interrupts`: it stops its replies when it hears speech.
fn turn_detection(detection: &TurnDetection, answers: bool, interrupts: bool) -> Value {
    match detection {
        TurnDetection::ServerVad { threshold, prefix_padding_ms, silence_duration_ms } => json!({
            "type": "server_vad", "threshold": threshold, "prefix_padding_ms": prefix_padding_ms,
            "silence_duration_ms": silence_duration_ms, "create_response": answers, "interrupt_response": interrupts}),
        TurnDetection::SemanticVad { eagerness } => {
            let eagerness = match eagerness {
                Eagerness::Auto => "auto",
                Eagerness::Low => "low",
                Eagerness::Medium => "medium",
                Eagerness::High => "high",
            };
            json!({"type": "semantic_vad", "eagerness": eagerness, "create_response": answers, "interrupt_response": interrupts})
        }
    }
}

/// Reads one text message; what cannot be read is [`Event::Unknown`].
pub fn decode(text: &[u8]) -> Event {
    let Ok(text) = std::str::from_utf8(text) else { return Event::Unknown };
    if let Some(event) = audio_delta(text) {
        return event;
    }
    serde_json::from_str::<Incoming>(text).map_or(Event::Unknown, Event::from)
}

/// Reads as much of a message as one has to know who only passes it on: audio is not decoded, words are not copied.
pub fn glance(text: &[u8]) -> Event {
    let Ok(text) = std::str::from_utf8(text) else { return Event::Unknown };
    let mut kind = None;
    // The type comes first, or at least before anything nested; where it does not, everything is read.
    flat(text, |key, value| match (key, value) {
        ("type", scan::Value::Str(found)) => {
            kind = Some(found);
            false
        }
        _ => true,
    });
    match kind {
        Some("response.output_audio.delta") => Event::AudioPasses,
        Some("response.output_audio_transcript.delta" | "response.output_text.delta") => Event::WordsPass,
        Some("conversation.item.done" | "conversation.item.created") => Event::ItemDone,
        Some("input_audio_buffer.cleared") => Event::InputCleared,
        Some(kind @ ("conversation.item.truncated" | "conversation.item.deleted")) => {
            let Incoming { item_id: item, audio_end_ms, .. } = serde_json::from_str(text).unwrap_or_default();
            match kind {
                "conversation.item.truncated" => Event::ItemCut { item, audio_end_ms },
                _ => Event::ItemGone { item },
            }
        }
        Some(
            "session.created"
            | "session.updated"
            | "response.created"
            | "response.done"
            | "error"
            | "rate_limits.updated"
            | "input_audio_buffer.speech_started"
            | "input_audio_buffer.speech_stopped"
            | "input_audio_buffer.committed"
            | "conversation.item.input_audio_transcription.completed",
        )
        | None => match serde_json::from_str::<Incoming>(text).map_or(Event::Unknown, Event::from) {
            Event::Audio { .. } => Event::AudioPasses,
            event => event,
        },
        Some(kind) if is_known(kind) || is_words(kind) => Event::Nothing,
        Some(_) => Event::Unknown,
    }
}

/// Events that [`decode`] reads and [`glance`] does not.
fn is_words(kind: &str) -> bool {
    const WORDS: [&str; 6] = [
        "response.output_audio_transcript.done",
        "response.output_text.done",
        "response.function_call_arguments.done",
        "response.output_item.done",
        "conversation.item.input_audio_transcription.delta",
        "conversation.item.input_audio_transcription.failed",
    ];
    WORDS.contains(&kind)
}

/// The fast way for the only frequent event; `None` when it is another one, or not as simple as usual.
pub fn audio_delta(text: &str) -> Option<Event> {
    let (mut response, mut item, mut delta, mut content_index) = (None, None, None, 0);
    let mut is_delta = false;
    let whole = flat(text, |key, value| {
        match (key, value) {
            ("type", scan::Value::Str(kind)) => {
                is_delta = kind == "response.output_audio.delta";
                return is_delta;
            }
            ("response_id", scan::Value::Str(id)) => response = Some(id),
            ("item_id", scan::Value::Str(id)) => item = Some(id),
            ("delta", scan::Value::Str(audio)) => delta = Some(audio),
            ("content_index", scan::Value::Bare(n)) => content_index = n.parse().unwrap_or(0),
            _ => {}
        }
        true
    });
    if !whole || !is_delta {
        return None;
    }
    Some(Event::Audio {
        response: response?.to_owned(),
        item: item?.to_owned(),
        content_index,
        audio: from_base64(delta?)?,
    })
}

fn from_base64(audio: &str) -> Option<Bytes> {
    let mut out = vec![0; base64::decoded_len_estimate(audio.len())];
    let len = BASE64.decode_slice(audio, &mut out).ok()?;
    out.truncate(len);
    Some(out.into())
}

/// `null` is as good as nothing: a whole event shall not be lost for it.
fn null_too<'de, D, T>(value: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Option::deserialize(value).map(Option::unwrap_or_default)
}

/// A number of tokens. More than [`MOST_TOKENS`] is no count: it shall not break the sums that it goes into.
fn tokens<'de, D: Deserializer<'de>>(value: D) -> Result<u64, D::Error> {
    null_too(value).map(|count: u64| count.min(MOST_TOKENS))
}

/// Whether a field that is there is `null`.
fn is_null<'de, D: Deserializer<'de>>(value: D) -> Result<bool, D::Error> {
    Option::<serde::de::IgnoredAny>::deserialize(value).map(|found| found.is_none())
}

/// All fields that we read of any event.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Incoming {
    #[serde(rename = "type", deserialize_with = "null_too")]
    kind: String,
    session: Option<Session>,
    #[serde(deserialize_with = "null_too")]
    item_id: String,
    #[serde(deserialize_with = "null_too")]
    response_id: String,
    #[serde(deserialize_with = "null_too")]
    content_index: u32,
    #[serde(deserialize_with = "null_too")]
    audio_start_ms: u64,
    #[serde(deserialize_with = "null_too")]
    audio_end_ms: u64,
    #[serde(deserialize_with = "null_too")]
    delta: String,
    transcript: Option<String>,
    text: Option<String>,
    #[serde(deserialize_with = "null_too")]
    call_id: String,
    name: Option<String>,
    #[serde(deserialize_with = "null_too")]
    arguments: String,
    item: Option<Item>,
    response: Option<Response>,
    error: Option<ErrorBody>,
    rate_limits: Option<Vec<RateLimit>>,
    usage: Option<UsageBody>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Session {
    #[serde(deserialize_with = "null_too")]
    id: String,
    expires_at: Option<u64>,
    #[serde(deserialize_with = "null_too")]
    audio: SessionAudio,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct SessionAudio {
    #[serde(deserialize_with = "null_too")]
    input: SessionInput,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct SessionInput {
    format: Option<AudioFormat>,
    turn_detection: Option<Detection>,
    transcription: Option<Transcription>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Transcription {
    model: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct AudioFormat {
    #[serde(rename = "type", deserialize_with = "null_too")]
    kind: String,
    rate: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Detection {
    silence_duration_ms: Option<u64>,
    create_response: Option<bool>,
}

impl Session {
    fn writer(&self) -> Option<String> {
        self.audio.input.transcription.as_ref()?.model.clone().filter(|model| !model.is_empty())
    }

    /// Nothing where the format is none that we know.
    fn hearing(&self) -> Option<Hearing> {
        let input = &self.audio.input;
        let format = input.format.as_ref()?;
        let input_format = match format.kind.as_str() {
            "audio/pcmu" => Format::MULAW,
            "audio/pcma" => Format::ALAW,
            "audio/pcm" => {
                let rate = format.rate.unwrap_or(Format::PCM_24K.rate);
                RATES.contains(&rate).then_some(Format { codec: Codec::Pcm16, rate })?
            }
            _ => return None,
        };
        let detection = input.turn_detection.as_ref();
        let silence = detection.and_then(|d| d.silence_duration_ms).map(Duration::from_millis);
        let answers = detection.and_then(|d| d.create_response);
        Some(Hearing { input: input_format, silence, answers })
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Item {
    #[serde(rename = "type", deserialize_with = "null_too")]
    kind: String,
    call_id: Option<String>,
    name: Option<String>,
    arguments: Option<String>,
    status: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Response {
    #[serde(deserialize_with = "null_too")]
    id: String,
    /// Absent is one thing, `null` ("in no conversation") another.
    #[serde(rename = "conversation_id", deserialize_with = "is_null")]
    aside: bool,
    #[serde(deserialize_with = "null_too")]
    status: String,
    status_details: Option<StatusDetails>,
    usage: Option<UsageBody>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct StatusDetails {
    reason: Option<String>,
    error: Option<ErrorBody>,
    rate_limits: Option<Vec<RateLimit>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ErrorBody {
    code: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
    message: Option<String>,
    param: Option<String>,
    event_id: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct UsageBody {
    #[serde(deserialize_with = "tokens")]
    total_tokens: u64,
    #[serde(deserialize_with = "tokens")]
    input_tokens: u64,
    #[serde(deserialize_with = "tokens")]
    output_tokens: u64,
    #[serde(deserialize_with = "null_too")]
    input_token_details: Details,
    #[serde(deserialize_with = "null_too")]
    output_token_details: Details,
    seconds: Option<f64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Details {
    #[serde(deserialize_with = "tokens")]
    text_tokens: u64,
    #[serde(deserialize_with = "tokens")]
    audio_tokens: u64,
    #[serde(deserialize_with = "tokens")]
    image_tokens: u64,
    #[serde(deserialize_with = "tokens")]
    cached_tokens: u64,
    #[serde(deserialize_with = "null_too")]
    cached_tokens_details: CachedDetails,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct CachedDetails {
    #[serde(deserialize_with = "tokens")]
    text_tokens: u64,
    #[serde(deserialize_with = "tokens")]
    audio_tokens: u64,
    #[serde(deserialize_with = "tokens")]
    image_tokens: u64,
}

impl From<UsageBody> for Usage {
    fn from(body: UsageBody) -> Self {
        let cached = body.input_token_details.cached_tokens_details;
        Self {
            total_tokens: body.total_tokens,
            input_tokens: body.input_tokens,
            output_tokens: body.output_tokens,
            input_text_tokens: body.input_token_details.text_tokens,
            input_audio_tokens: body.input_token_details.audio_tokens,
            input_image_tokens: body.input_token_details.image_tokens,
            cached_tokens: body.input_token_details.cached_tokens,
            cached_text_tokens: cached.text_tokens,
            cached_audio_tokens: cached.audio_tokens,
            cached_image_tokens: cached.image_tokens,
            cache_write_tokens: 0,
            output_text_tokens: body.output_token_details.text_tokens,
            output_audio_tokens: body.output_token_details.audio_tokens,
        }
    }
}

impl From<ErrorBody> for ServiceError {
    fn from(body: ErrorBody) -> Self {
        Self {
            limit: limits::classify(
                body.code.as_deref().unwrap_or_default(),
                body.message.as_deref().unwrap_or_default(),
            ),
            code: body.code.unwrap_or_default(),
            kind: body.kind.unwrap_or_default(),
            retry_after: body.message.as_deref().and_then(retry_after),
            message: body.message.unwrap_or_default(),
            param: body.param,
            event_id: body.event_id,
        }
    }
}

impl From<Incoming> for Event {
    fn from(e: Incoming) -> Self {
        match e.kind.as_str() {
            "session.created" => {
                let session = e.session.unwrap_or_default();
                let hearing = session.hearing();
                let writer = session.writer();
                Self::SessionCreated { id: session.id, expires_at: session.expires_at, hearing, writer }
            }
            "session.updated" => {
                let session = e.session.unwrap_or_default();
                Self::SessionUpdated { hearing: session.hearing(), writer: session.writer() }
            }
            "input_audio_buffer.speech_started" => Self::SpeechStarted { at_ms: e.audio_start_ms },
            "input_audio_buffer.speech_stopped" => Self::SpeechStopped { at_ms: e.audio_end_ms },
            "input_audio_buffer.committed" => Self::Committed { item: e.item_id },
            "response.created" => {
                let response = e.response.unwrap_or_default();
                Self::ReplyCreated { response: response.id, aside: response.aside }
            }
            "response.output_audio.delta" => match from_base64(&e.delta) {
                Some(audio) => {
                    Self::Audio { response: e.response_id, item: e.item_id, content_index: e.content_index, audio }
                }
                None => Self::Unknown,
            },
            "response.output_audio_transcript.delta" | "response.output_text.delta" => {
                Self::ReplyText { response: e.response_id, item: e.item_id, text: e.delta, last: false }
            }
            "response.output_audio_transcript.done" | "response.output_text.done" => Self::ReplyText {
                response: e.response_id,
                item: e.item_id,
                text: e.transcript.or(e.text).unwrap_or_default(),
                last: true,
            },
            "conversation.item.input_audio_transcription.delta" => {
                Self::UserText { item: e.item_id, text: e.delta, last: false, spent: None }
            }
            "conversation.item.input_audio_transcription.completed" => {
                let spent = e.usage.map(|usage| Written { seconds: usage.seconds, usage: usage.into() });
                Self::UserText { item: e.item_id, text: e.transcript.unwrap_or_default(), last: true, spent }
            }
            "conversation.item.input_audio_transcription.failed" => Self::UserTextFailed { item: e.item_id },
            "response.function_call_arguments.done" => match e.name {
                Some(name) => {
                    Self::ToolCall { response: e.response_id, call_id: e.call_id, name, arguments: e.arguments }
                }
                None => Self::Nothing, // its item says the name
            },
            "response.output_item.done" => e.item.map_or(Self::Nothing, |item| item.into_event(e.response_id)),
            "response.done" => e.response.unwrap_or_default().into(),
            "error" => Self::Error(e.error.unwrap_or_default().into()),
            "rate_limits.updated" => Self::RateLimits(e.rate_limits.unwrap_or_default()),
            kind if is_known(kind) => Self::Nothing,
            _ => Self::Unknown,
        }
    }
}

impl Item {
    fn into_event(self, response: String) -> Event {
        let whole = self.kind == "function_call" && self.status.as_deref() != Some("incomplete");
        match (whole, self.call_id, self.name) {
            (true, Some(call_id), Some(name)) => {
                Event::ToolCall { response, call_id, name, arguments: self.arguments.unwrap_or_default() }
            }
            _ => Event::Nothing,
        }
    }
}

impl From<Response> for Event {
    fn from(response: Response) -> Self {
        let details = response.status_details.unwrap_or_default();
        let error = details.error.unwrap_or_default();
        Self::ReplyDone {
            response: response.id,
            ended: match response.status.as_str() {
                "completed" => Ended::Completed,
                "cancelled" => Ended::Cancelled,
                "incomplete" => Ended::Incomplete,
                _ => Ended::Failed,
            },
            retry_after: error.message.as_deref().and_then(retry_after),
            limit: limits::classify(
                error.code.as_deref().unwrap_or_default(),
                error.message.as_deref().unwrap_or_default(),
            ),
            reason: error.code.or(details.reason).or(error.kind),
            usage: response.usage.map(Usage::from),
        }
    }
}

/// The wait in "Please try again in 1m26.4s." and its like. A number without a unit may be of anything.
pub fn retry_after(message: &str) -> Option<Duration> {
    let (_, text) = message.split_once("try again in ")?;
    let word = text.split(|c: char| !(c.is_alphanumeric() || c == '.')).next()?.trim_end_matches('.');
    let named = word.ends_with(char::is_alphabetic);
    limits::duration(word).filter(|wait| named && !wait.is_zero())
}

/// Events of the GA protocol that mean nothing to us: others say the same, or nobody asked.
fn is_known(kind: &str) -> bool {
    const KNOWN: [&str; 31] = [
        "conversation.created",
        "conversation.item.added",
        "conversation.item.created",
        "conversation.item.done",
        "conversation.item.retrieved",
        "conversation.item.truncated",
        "conversation.item.deleted",
        "conversation.item.input_audio_transcription.segment",
        "input_audio_buffer.cleared",
        "input_audio_buffer.timeout_triggered",
        "input_audio_buffer.dtmf_event_received",
        "output_audio_buffer.started",
        "output_audio_buffer.stopped",
        "output_audio_buffer.cleared",
        "response.output_item.added",
        "response.content_part.added",
        "response.content_part.done",
        "response.output_audio.done",
        "response.function_call_arguments.delta",
        "response.mcp_call_arguments.delta",
        "response.mcp_call_arguments.done",
        "response.mcp_call.in_progress",
        "response.mcp_call.completed",
        "response.mcp_call.failed",
        "mcp_list_tools.in_progress",
        "mcp_list_tools.completed",
        "mcp_list_tools.failed",
        "transcription_session.updated",
        "response.reasoning_summary_text.delta",
        "response.reasoning_summary_text.done",
        "session.closed",
    ];
    KNOWN.contains(&kind)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn setup(auto_turns: bool) -> SessionSetup {
        SessionSetup { agent: Arc::default(), input: Format::PCM_24K, output: Format::MULAW, auto_turns }
    }

    /// Written from the API reference, not from the encoder.
    #[test]
    fn commands_are_written_as_the_reference_has_them() {
        let item = || "item_1".to_owned();
        for (command, want) in [
            (
                Command::Append(Bytes::from_static(&[0, 1, 2, 250])),
                r#"{"type":"input_audio_buffer.append","event_id":"vr_2a","audio":"AAEC+g=="}"#,
            ),
            (Command::Commit, r#"{"type":"input_audio_buffer.commit","event_id":"vr_2a"}"#),
            (Command::ClearInput, r#"{"type":"input_audio_buffer.clear","event_id":"vr_2a"}"#),
            (
                Command::UserText { text: "say \"hi\"".to_owned() },
                r#"{"type":"conversation.item.create","event_id":"vr_2a","item":{"type":"message","role":"user","content":[{"type":"input_text","text":"say \"hi\""}]}}"#,
            ),
            (
                Command::ToolOutput { call_id: "call_1".to_owned(), output: "{\"ok\":true}".to_owned() },
                r#"{"type":"conversation.item.create","event_id":"vr_2a","item":{"type":"function_call_output","call_id":"call_1","output":"{\"ok\":true}"}}"#,
            ),
            (
                Command::CreateReply { instructions: None, no_tools: false },
                r#"{"type":"response.create","event_id":"vr_2a"}"#,
            ),
            (
                Command::CreateReply { instructions: Some("Greet.".to_owned()), no_tools: false },
                r#"{"type":"response.create","event_id":"vr_2a","response":{"instructions":"Greet."}}"#,
            ),
            (
                Command::CreateReply { instructions: Some("Wait.".to_owned()), no_tools: true },
                r#"{"type":"response.create","event_id":"vr_2a","response":{"instructions":"Wait.","tool_choice":"none"}}"#,
            ),
            (Command::CancelReply { response: None }, r#"{"type":"response.cancel","event_id":"vr_2a"}"#),
            (
                Command::CancelReply { response: Some("resp_1".to_owned()) },
                r#"{"type":"response.cancel","event_id":"vr_2a","response_id":"resp_1"}"#,
            ),
            (
                Command::Truncate { item: item(), content_index: 0, audio_end_ms: 1_200 },
                r#"{"type":"conversation.item.truncate","event_id":"vr_2a","item_id":"item_1","content_index":0,"audio_end_ms":1200}"#,
            ),
            (
                Command::DeleteItem { item: item() },
                r#"{"type":"conversation.item.delete","event_id":"vr_2a","item_id":"item_1"}"#,
            ),
        ] {
            let got: Value = serde_json::from_slice(&encode(&command, &setup(true), 42)).unwrap();
            assert_eq!(got, serde_json::from_str::<Value>(want).unwrap(), "{command:?}");
        }
    }

    #[test]
    fn a_session_is_set_up_as_the_agent_says() {
        let session = |setup: &SessionSetup| {
            serde_json::from_slice::<Value>(&encode(&Command::Configure { listens: true, answers: true }, setup, 0))
                .unwrap()["session"]
                .take()
        };
        let default = session(&setup(true));
        let want: Value = serde_json::from_str(
            r#"{"type":"realtime","output_modalities":["audio"],
                "instructions":"You are a friendly voice assistant. Answer briefly, in the language of the caller.",
                "audio":{
                    "input":{"format":{"type":"audio/pcm","rate":24000},"transcription":{"model":"gpt-transcribe"},
                        "turn_detection":{"type":"server_vad","threshold":0.5,"prefix_padding_ms":300,
                            "silence_duration_ms":500,"create_response":true,"interrupt_response":true}},
                    "output":{"format":{"type":"audio/pcmu"},"voice":"marin"}}}"#,
        )
        .unwrap();
        assert_eq!(default, want);
        let mut full = setup(false);
        let agent = Arc::make_mut(&mut full.agent);
        full.input = Format::ALAW;
        agent.transcription = None;
        agent.noise_reduction = Some(NoiseReduction::FarField);
        agent.speed = Some(1.25);
        agent.max_output_tokens = Some(500);
        agent.tools = vec![crate::config::ToolConfig {
            builtin: None,
            targets: Default::default(),
            expert: None,
            name: "f".into(),
            description: "d".into(),
            parameters: json!({"type": "object"}),
            http: None,
        }];
        let full = session(&full);
        assert_eq!(full["audio"]["input"]["turn_detection"], Value::Null, "manual turns");
        assert!(
            full["audio"]["input"].as_object().unwrap().contains_key("turn_detection"),
            "null is said, not left out"
        );
        assert_eq!(full["audio"]["input"]["format"], json!({"type": "audio/pcma"}));
        assert_eq!(full["audio"]["input"].get("transcription"), None);
        assert_eq!(full["audio"]["input"]["noise_reduction"], json!({"type": "far_field"}));
        assert_eq!(full["audio"]["output"]["speed"], json!(1.25));
        assert_eq!(full["max_output_tokens"], json!(500));
        assert_eq!(
            full["tools"],
            json!([{"type": "function", "name": "f", "description": "d", "parameters": {"type": "object"}}])
        );
        let mut semantic = setup(true);
        Arc::make_mut(&mut semantic.agent).turn_detection = TurnDetection::SemanticVad { eagerness: Eagerness::Low };
        assert_eq!(
            session(&semantic)["audio"]["input"]["turn_detection"],
            json!({"type": "semantic_vad", "eagerness": "low", "create_response": true, "interrupt_response": true})
        );
    }

    fn s(text: &str) -> String {
        text.to_owned()
    }

    #[test]
    fn events_are_read_as_the_reference_has_them() {
        let audio = || Event::Audio {
            response: s("resp_1"),
            item: s("item_1"),
            content_index: 1,
            audio: Bytes::from_static(&[0, 1, 2, 250]),
        };
        for (text, want) in [
            (
                r#"{"type":"session.created","event_id":"e","session":{"type":"realtime","id":"sess_1","expires_at":1758000000,"audio":{}}}"#,
                Event::SessionCreated { id: s("sess_1"), expires_at: Some(1_758_000_000), hearing: None, writer: None },
            ),
            (
                r#"{"type":"session.updated","event_id":"e","session":{"id":"sess_1","audio":{"input":{"format":{"type":"audio/pcm","rate":24000},"turn_detection":{"type":"server_vad","silence_duration_ms":200},"transcription":{"model":"gpt-transcribe"}}}}}"#,
                Event::SessionUpdated {
                    hearing: Some(Hearing {
                        input: Format::PCM_24K,
                        silence: Some(Duration::from_millis(200)),
                        answers: None,
                    }),
                    writer: Some(s("gpt-transcribe")),
                },
            ),
            (
                r#"{"type":"session.updated","event_id":"e","session":{"audio":{"input":{"format":{"type":"audio/pcmu"},"turn_detection":null,"transcription":null}}}}"#,
                Event::SessionUpdated {
                    hearing: Some(Hearing { input: Format::MULAW, silence: None, answers: None }),
                    writer: None,
                },
            ),
            (
                r#"{"type":"response.created","event_id":"e","response":{"id":"resp_2","conversation_id":null}}"#,
                Event::ReplyCreated { response: s("resp_2"), aside: true },
            ),
            (
                r#"{"type":"input_audio_buffer.speech_started","event_id":"e","audio_start_ms":520,"item_id":"item_1"}"#,
                Event::SpeechStarted { at_ms: 520 },
            ),
            (
                r#"{"type":"input_audio_buffer.speech_stopped","event_id":"e","audio_end_ms":1520,"item_id":"item_1"}"#,
                Event::SpeechStopped { at_ms: 1_520 },
            ),
            (
                r#"{"type":"input_audio_buffer.committed","event_id":"e","previous_item_id":null,"item_id":"item_1"}"#,
                Event::Committed { item: s("item_1") },
            ),
            (
                r#"{"type":"response.created","event_id":"e","response":{"object":"realtime.response","id":"resp_1","status":"in_progress","output":[],"usage":null,"status_details":null}}"#,
                Event::ReplyCreated { response: s("resp_1"), aside: false },
            ),
            (
                r#"{"type":"response.output_audio.delta","event_id":"e","response_id":"resp_1","item_id":"item_1","output_index":0,"content_index":1,"delta":"AAEC+g==","obfuscation":"x"}"#,
                audio(),
            ),
            // The same, in no fast way's shape: an escaped slash is legal JSON, a nested field may come one day.
            (
                r#"{"event_id":"e","response_id":"resp_1","item_id":"item_1","content_index":1,"delta":"AAEC+g==","more":{"a":[1]},"type":"response.output_audio.delta"}"#,
                audio(),
            ),
            (
                r#"{"type":"response.output_audio.delta","response_id":"resp_1","item_id":"item_1","content_index":0,"delta":"\/\/8="}"#,
                Event::Audio {
                    response: s("resp_1"),
                    item: s("item_1"),
                    content_index: 0,
                    audio: Bytes::from_static(&[255, 255]),
                },
            ),
            (
                r#"{"type":"response.output_audio.delta","response_id":"resp_1","item_id":"item_1","delta":"not base64"}"#,
                Event::Unknown,
            ),
            (
                r#"{"type":"response.output_audio_transcript.delta","event_id":"e","response_id":"resp_1","item_id":"item_1","output_index":0,"content_index":0,"delta":"It is"}"#,
                Event::ReplyText { response: s("resp_1"), item: s("item_1"), text: s("It is"), last: false },
            ),
            (
                r#"{"type":"response.output_audio_transcript.done","event_id":"e","response_id":"resp_1","item_id":"item_1","output_index":0,"content_index":0,"transcript":"It is sunny."}"#,
                Event::ReplyText { response: s("resp_1"), item: s("item_1"), text: s("It is sunny."), last: true },
            ),
            (
                r#"{"type":"response.output_text.done","event_id":"e","response_id":"resp_1","item_id":"item_1","text":"It is sunny."}"#,
                Event::ReplyText { response: s("resp_1"), item: s("item_1"), text: s("It is sunny."), last: true },
            ),
            (
                r#"{"type":"conversation.item.input_audio_transcription.delta","event_id":"e","item_id":"item_1","content_index":0,"delta":"Hel"}"#,
                Event::UserText { item: s("item_1"), text: s("Hel"), last: false, spent: None },
            ),
            (
                r#"{"type":"conversation.item.input_audio_transcription.completed","event_id":"e","item_id":"item_1","content_index":0,"transcript":"Hello","usage":{"type":"duration","seconds":1}}"#,
                Event::UserText {
                    item: s("item_1"),
                    text: s("Hello"),
                    last: true,
                    spent: Some(Written { usage: Usage::default(), seconds: Some(1.0) }),
                },
            ),
            (
                r#"{"type":"conversation.item.input_audio_transcription.failed","event_id":"e","item_id":"item_1","content_index":0,"error":{"type":"transcription_error","code":"audio_unintelligible","message":"m"}}"#,
                Event::UserTextFailed { item: s("item_1") },
            ),
            (
                r#"{"type":"response.function_call_arguments.done","event_id":"e","response_id":"resp_1","item_id":"item_1","output_index":0,"call_id":"call_1","name":"f","arguments":"{}"}"#,
                Event::ToolCall { response: s("resp_1"), call_id: s("call_1"), name: s("f"), arguments: s("{}") },
            ),
            (
                r#"{"type":"response.output_item.done","event_id":"e","response_id":"resp_1","output_index":0,"item":{"id":"item_1","type":"function_call","status":"completed","call_id":"call_1","name":"f","arguments":"{}"}}"#,
                Event::ToolCall { response: s("resp_1"), call_id: s("call_1"), name: s("f"), arguments: s("{}") },
            ),
            (
                r#"{"type":"response.output_item.done","event_id":"e","response_id":"resp_1","item":{"id":"item_1","type":"function_call","status":"incomplete","call_id":"call_1","name":"f","arguments":"{\"a"}}"#,
                Event::Nothing,
            ),
            (
                r#"{"type":"response.output_item.done","event_id":"e","response_id":"resp_1","item":{"id":"item_1","type":"message","role":"assistant","content":[]}}"#,
                Event::Nothing,
            ),
            (r#"{"type":"rate_limits.updated","event_id":"e","rate_limits":[]}"#, Event::RateLimits(vec![])),
            (r#"{"type":"conversation.item.added","event_id":"e","item":{"id":"i","type":"message"}}"#, Event::Nothing),
            (r#"{"type":"response.of_tomorrow","event_id":"e"}"#, Event::Unknown),
            ("[]", Event::Unknown),
            ("{", Event::Unknown),
        ] {
            assert_eq!(decode(text.as_bytes()), want, "{text}");
        }
    }

    #[test]
    fn the_end_of_a_reply_is_told_with_reason_wait_and_usage() {
        let done = |status: &str, details: &str, usage: &str| {
            let text = format!(
                r#"{{"type":"response.done","event_id":"e","response":{{"id":"resp_1","status":"{status}","status_details":{details},"usage":{usage}}}}}"#
            );
            match decode(text.as_bytes()) {
                Event::ReplyDone { response, ended, reason, retry_after, usage, .. } => {
                    assert_eq!(response, "resp_1");
                    (ended, reason, retry_after, usage)
                }
                other => panic!("{other:?}"),
            }
        };
        let usage = r#"{"total_tokens":253,"input_tokens":132,"output_tokens":121,
            "input_token_details":{"text_tokens":119,"audio_tokens":13,"image_tokens":0,"cached_tokens":64,"cached_tokens_details":{"text_tokens":64,"audio_tokens":0}},
            "output_token_details":{"text_tokens":30,"audio_tokens":91}}"#;
        let want = Usage {
            total_tokens: 253,
            input_tokens: 132,
            output_tokens: 121,
            input_text_tokens: 119,
            input_audio_tokens: 13,
            input_image_tokens: 0,
            cached_tokens: 64,
            cached_text_tokens: 64,
            cached_audio_tokens: 0,
            cached_image_tokens: 0,
            cache_write_tokens: 0,
            output_text_tokens: 30,
            output_audio_tokens: 91,
        };
        assert_eq!(done("completed", "null", usage), (Ended::Completed, None, None, Some(want)));
        assert_eq!(
            done("cancelled", r#"{"type":"cancelled","reason":"turn_detected"}"#, "null"),
            (Ended::Cancelled, Some(s("turn_detected")), None, None)
        );
        assert_eq!(
            done("incomplete", r#"{"type":"incomplete","reason":"max_output_tokens"}"#, "null"),
            (Ended::Incomplete, Some(s("max_output_tokens")), None, None)
        );
        let details = r#"{"type":"failed","error":{"type":"invalid_request_error","code":"rate_limit_exceeded","message":"Rate limit reached. Please try again in 1m26.4s. Visit"}}"#;
        assert_eq!(
            done("failed", details, "null"),
            (Ended::Failed, Some(s("rate_limit_exceeded")), Some(Duration::from_millis(86_400)), None)
        );
        let details = r#"{"type":"failed","error":{"type":"server_error","code":null,"message":"m"}}"#;
        assert_eq!(done("failed", details, "null").1, Some(s("server_error")));
    }

    #[test]
    fn waits_are_read_in_all_their_spellings() {
        for (text, ms) in [
            ("Please try again in 166ms.", Some(166)),
            ("Please try again in 7.66s.", Some(7_660)),
            ("Please try again in 1m26.4s. Visit https://example.com", Some(86_400)),
            ("try again in 6m0s", Some(360_000)),
            ("try again in 1h2m3s.", Some(3_723_000)),
            ("try again in 0s.", None),
            ("try again in a while", None),
            ("try again in 5 parsecs", None),
            ("no hint", None),
        ] {
            assert_eq!(retry_after(text), ms.map(Duration::from_millis), "{text}");
        }
    }

    #[test]
    fn the_path_names_the_model_and_escapes_it() {
        let transcription = Wanted { intent: Intent::Transcription, ..Wanted::voice("m") };
        for (base, wanted, bound, path) in [
            ("/v1", Wanted::voice("gpt-realtime-2.1"), false, "/v1/realtime?model=gpt-realtime-2.1"),
            ("/v1", Wanted::voice("a b&c"), false, "/v1/realtime?model=a%20b%26c"),
            ("", Wanted::voice("m"), true, "/realtime"),
            ("/v1", transcription, false, "/v1/realtime?intent=transcription"),
        ] {
            assert_eq!(session_path(base, &wanted, bound), path);
        }
    }

    proptest::proptest! {
        #[test]
        fn appends_carry_every_byte(audio: Vec<u8>, number: u64) {
            let text = append(&audio, number);
            let value: Value = serde_json::from_slice(&text).unwrap();
            let encoded = value["audio"].as_str().unwrap();
            proptest::prop_assert_eq!(base64::engine::general_purpose::STANDARD.decode(encoded).unwrap(), audio);
            proptest::prop_assert_eq!(event_id::read(value["event_id"].as_str().unwrap()), Some(number));
        }

        #[test]
        fn perturbed_events_never_panic(at in 0usize..220, byte: u8) {
            let mut text = br#"{"type":"response.output_audio.delta","event_id":"e","response_id":"resp_1","item_id":"item_1","output_index":0,"content_index":1,"delta":"AAEC+g==","obfuscation":"x","error":{"code":"c"}}"#.to_vec();
            if let Some(slot) = text.get_mut(at) {
                *slot = byte;
            }
            let _ = decode(&text);
        }
    }

    #[test]
    fn a_field_that_is_null_is_a_field_that_is_missing() {
        let event = |text: &str| decode(text.as_bytes());
        assert!(matches!(
            event(
                r#"{"type":"response.done","response":{"id":"r","status":"completed","usage":{"total_tokens":null,
                "input_token_details":null,"output_tokens":7}}}"#
            ),
            Event::ReplyDone { ended: Ended::Completed, usage: Some(Usage { output_tokens: 7, .. }), .. }
        ));
        assert!(matches!(
            event(
                r#"{"type":"response.output_audio_transcript.done","item_id":"i","response_id":"r","delta":null,"transcript":"hi"}"#
            ),
            Event::ReplyText { last: true, .. }
        ));
        assert!(matches!(
            event(r#"{"type":"input_audio_buffer.speech_stopped","item_id":null,"audio_end_ms":120}"#),
            Event::SpeechStopped { at_ms: 120 }
        ));
    }
}
