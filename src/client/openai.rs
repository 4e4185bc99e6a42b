//! OpenAI's own Realtime protocol at our door (`/v1/realtime`): what a client event is to us, and what we say ourselves.
//!
//! The client owns the conversation and the service answers it; this file looks at a message only as far as the call core
//! has to decide on it. Appends are found by a scan. What is not understood passes as it came. Sources: the SDKs and
//! captures of the service, read 2026-11.
use std::{borrow::Cow, ops::Range};

use bytes::Bytes;
use serde::{Deserialize, Serialize, de::IgnoredAny};
use serde_json::{json, value::RawValue};

use super::wire::{ErrorBody, ServerMsg};
use crate::{
    call::end::End,
    upstream::scan::{self, flat},
};

/// The only subprotocol that is ever chosen.
pub const PROTOCOL: &str = "realtime";
/// A subprotocol that carries a credential begins so; never echoed.
pub const KEY_PROTOCOL: &str = "openai-insecure-api-key.";
/// A subprotocol of legacy clients begins so.
pub const BETA_PROTOCOL: &str = "openai-beta.realtime";
/// What the service says at the cap; clients look for these words.
const EXPIRED: &str = "Your session hit the maximum duration of 60 minutes.";

/// A client event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Said {
    /// What it is to us.
    pub kind: Kind,
    /// The client's name for it, quoted in errors.
    pub event_id: Option<String>,
    /// The message.
    pub text: Bytes,
}

/// What a client event is to us.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// Input audio.
    Append {
        /// Where its base64 stands in the text.
        audio: Range<usize>,
    },
    /// The input audio is a turn.
    Commit,
    /// The session is set up.
    Configure,
    /// An item of the conversation is made.
    CreateItem {
        /// One that instructs the model.
        system: bool,
    },
    /// A reply is asked for.
    CreateReply {
        /// In no conversation: it runs beside others.
        aside: bool,
    },
    /// A reply is called off.
    Cancel {
        /// It says which.
        named: bool,
    },
    /// Nothing that we decide on.
    Other,
    /// No event at all.
    Invalid {
        /// The service's code for it.
        code: String,
        /// What was found.
        message: String,
    },
}

/// What of an event must be known.
#[derive(Debug, Deserialize)]
struct Head<'a> {
    #[serde(borrow, rename = "type")]
    kind: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    event_id: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    response_id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    audio: Option<&'a RawValue>,
    #[serde(borrow, default)]
    response: Option<&'a RawValue>,
    #[serde(borrow, default)]
    item: Option<&'a RawValue>,
    /// Only so that two of them are found: which would count?
    #[serde(default, rename = "session")]
    _session: Option<IgnoredAny>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ReplyHead<'a> {
    #[serde(borrow)]
    conversation: Option<Cow<'a, str>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ItemHead<'a> {
    #[serde(borrow)]
    role: Option<Cow<'a, str>>,
}

impl Said {
    /// Audio in an append, bytes.
    pub fn audio_len(&self) -> usize {
        match &self.kind {
            Kind::Append { audio } => audio.len() / 4 * 3,
            _ => 0,
        }
    }

    /// Looks at one text message.
    pub fn read(text: Bytes) -> Self {
        if let Some(audio) = append(&text) {
            return Self { kind: Kind::Append { audio }, event_id: None, text };
        }
        // Text messages are UTF-8: the socket has seen to it.
        let read = std::str::from_utf8(&text).unwrap_or_default();
        let (kind, event_id) = match serde_json::from_str::<Head<'_>>(read) {
            Ok(head) => (head.kind(read), head.event_id.map(Cow::into_owned)),
            Err(error) => (broken(read, &error), None),
        };
        Self { kind, event_id, text }
    }

    /// An append whose base64 is longer than `longest` characters in parts that are not, with everything else as it was.
    /// `None`: it is short enough, or no base64: then the service says so.
    pub fn split(&self, longest: usize) -> Option<Vec<Bytes>> {
        let Kind::Append { audio } = &self.kind else { return None };
        (audio.len() > longest).then_some(())?;
        let part = |range: Range<usize>| self.text.get(range).unwrap_or_default();
        let (head, tail) = (part(0..audio.start), part(audio.end..self.text.len()));
        // No part may end within an escape, as some write a slash.
        let quoted = part(audio.start.saturating_sub(1)..audio.end + 1);
        let plain: String = serde_json::from_slice(quoted).ok()?;
        // Nothing but base64 may lose its escapes: behind an escaped quote another event would begin, which nobody has ruled.
        plain.bytes().all(|b| b.is_ascii_alphanumeric() || b"+/=".contains(&b)).then_some(())?;
        // Eight characters are three samples: no part ends within one either.
        let pieces = plain.as_bytes().chunks(longest.max(8) & !7);
        Some(pieces.map(|piece| Bytes::from([head, piece, tail].concat())).collect())
    }
}

impl Head<'_> {
    fn kind(&self, text: &str) -> Kind {
        match self.kind.as_deref() {
            Some("input_audio_buffer.append") => match self.audio.and_then(|raw| string(raw.get())) {
                Some(audio) => Kind::Append { audio: scan::place(text, audio) },
                None => Kind::Other, // no string: the service says so
            },
            Some("input_audio_buffer.commit") => Kind::Commit,
            Some("session.update" | "transcription_session.update") => Kind::Configure,
            Some("conversation.item.create") => {
                // What cannot be read is taken for the worst.
                let role = self.item.map(|item| serde_json::from_str::<ItemHead<'_>>(item.get()).map(|head| head.role));
                let system = role.is_some_and(|role| role.map_or(true, |role| role.as_deref() == Some("system")));
                Kind::CreateItem { system }
            }
            Some("response.create") => {
                let reply = self.response.and_then(|r| serde_json::from_str::<ReplyHead<'_>>(r.get()).ok());
                Kind::CreateReply { aside: reply.and_then(|r| r.conversation).as_deref() == Some("none") }
            }
            Some("response.cancel") => Kind::Cancel { named: self.response_id.is_some() },
            Some(_) => Kind::Other,
            None => invalid("invalid_event", "Missing required parameter: 'type'.".to_owned()),
        }
    }
}

/// What stands between the quotes of a JSON string, as it stands there.
fn string(raw: &str) -> Option<&str> {
    raw.strip_prefix('"')?.strip_suffix('"')
}

fn invalid(code: &str, message: String) -> Kind {
    Kind::Invalid { code: code.to_owned(), message }
}

/// Why a text is no event.
fn broken(text: &str, error: &serde_json::Error) -> Kind {
    match serde_json::from_str::<IgnoredAny>(text) {
        Err(_) => invalid("invalid_json", format!("The message is not valid JSON: {error}.")),
        Ok(_) if !text.trim_ascii_start().starts_with('{') => {
            invalid("invalid_event", "A client event must be a JSON object.".to_owned())
        }
        // A field of the wrong type, or one that is there twice: which of the two would count?
        Ok(_) => invalid("invalid_event", format!("The event cannot be read: {error}.")),
    }
}

/// The fast way for the only frequent event; `None`: another one, or not as simple as usual.
fn append(text: &[u8]) -> Option<Range<usize>> {
    let text = std::str::from_utf8(text).ok()?;
    let (mut types, mut appends, mut audios, mut audio) = (0, false, 0, None);
    let whole = flat(text, |key, value| {
        match (key, value) {
            ("type", value) => {
                types += 1;
                appends = value == scan::Value::Str("input_audio_buffer.append");
                return appends;
            }
            ("audio", value) => {
                audios += 1;
                audio = match value {
                    scan::Value::Str(found) => Some(found),
                    scan::Value::Bare(_) => None,
                };
            }
            _ => {}
        }
        true
    });
    // Twice the same field: which of them would count?
    (whole && appends && types == 1 && audios == 1).then_some(())?;
    Some(scan::place(text, audio?))
}

/// An `error` event's content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The service's class of it.
    pub kind: &'static str,
    /// The service's code.
    pub code: String,
    /// What was found, and what is allowed.
    pub message: String,
    /// The field.
    pub param: Option<String>,
    /// The client's event.
    pub event_id: Option<String>,
}

/// The client's fault.
pub const INVALID_REQUEST: &str = "invalid_request_error";
/// Ours, or the service's.
pub const SERVER_ERROR: &str = "server_error";

/// Writes an `error` event. `number` makes its id.
pub fn error_event(problem: &Problem, call: &str, number: u64) -> Bytes {
    let Problem { kind, code, message, param, event_id } = problem;
    let error = json!({"type": kind, "code": code, "message": message, "param": param, "event_id": event_id});
    error_with(&error, &format!("{call}_{number}"))
}

fn error_with(error: &serde_json::Value, id: &str) -> Bytes {
    json!({"type": "error", "event_id": format!("event_{id}"), "error": error}).to_string().into()
}

/// The body of a refusal before the upgrade.
pub fn refusal(kind: &str, code: &str, message: &str, param: Option<&str>) -> Bytes {
    json!({"error": {"message": message, "type": kind, "param": param, "code": code}}).to_string().into()
}

/// Our own words in the service's. Most of them have none there: an upstream that is redialled, or a call that was
/// accepted, is nothing that such a client knows.
pub fn write(message: &ServerMsg) -> Option<Bytes> {
    let ServerMsg::Error { error } = message else { return None };
    Some(our_error(class(&error.code), error))
}

fn our_error(kind: &str, error: &ErrorBody) -> Bytes {
    let ErrorBody { code, message, field, request_id, .. } = error;
    let error = json!({"type": kind, "code": code, "message": message, "param": field, "event_id": null});
    error_with(&error, request_id)
}

/// The first message of a call that can be come back to, with what that needs; it is not counted.
pub fn with_way_back(created: &[u8], call: &str, token: &str, window_s: u64) -> Option<Bytes> {
    let mut created: serde_json::Value = serde_json::from_slice(created).ok()?;
    let way = serde_json::json!({"call": call, "resume": token, "resume_window_s": window_s});
    created.as_object_mut()?.insert("voxrelay".to_owned(), way);
    Some(created.to_string().into())
}

/// The first message to a client that is back; it is not counted.
pub fn resumed(call: &str, resume: Option<&str>, got: u64) -> Bytes {
    let event = serde_json::json!({"type": "voxrelay.resumed", "event_id": format!("event_{call}_{got}"), "call": call,
        "resume": resume, "got": got});
    event.to_string().into()
}

/// Why a call ends, as an `error` event in front of the close; `None`: the close code says it all.
pub fn end_event(end: &End, request_id: String) -> Option<Bytes> {
    let error = end.error(request_id)?;
    let code = service_code(end).map_or(error.code, str::to_owned);
    Some(our_error(end_class(end, &code), &ErrorBody { code, ..error }))
}

/// Whose fault an end is: the service's own close codes for bad requests are 3000 and up.
fn end_class(end: &End, code: &str) -> &'static str {
    match end {
        End::Upstream { service: Some(said), .. } if said.close.is_some_and(|close| close >= 3000) => INVALID_REQUEST,
        End::Upstream { retryable: false, .. } if code != "insufficient_quota" => INVALID_REQUEST,
        _ => class(code),
    }
}

/// What the service calls it, where clients know that word.
fn service_code(end: &End) -> Option<&str> {
    match end {
        End::MaxTime(_) => Some("session_expired"),
        End::BudgetExhausted(_) => Some("insufficient_quota"),
        // Not the client's key was refused, but ours.
        End::Upstream { service: Some(said), .. } if said.close == Some(3000) => Some("upstream_auth"),
        End::Upstream { code, .. } if code == "upstream_auth" => Some("upstream_auth"),
        // `unknown` stands for words that must not be shown.
        End::Upstream { service: Some(said), .. } => Some(said.code.as_str()).filter(|c| !["", "unknown"].contains(c)),
        _ => None,
    }
}

/// Whose fault an error code is.
fn class(code: &str) -> &'static str {
    match code {
        "invalid_message" | "invalid_audio" | "message_too_large" | "policy_violation" | "session_expired" => {
            INVALID_REQUEST
        }
        "insufficient_quota" => "insufficient_quota",
        _ => SERVER_ERROR,
    }
}

/// The close code and reason of a call's end, as SDKs understand them: they come back on 1001, 1011, 1012 and 1013, and on no
/// other (openai-python 3.54, read 2026-11).
pub fn close(end: &End) -> (u16, String) {
    let report = end.report();
    let reason = match service_code(end) {
        Some("session_expired") => EXPIRED.to_owned(),
        Some(code) => format!("{}.{code}", end_class(end, code)),
        None => report.code.unwrap_or_default().to_owned(),
    };
    if let End::Upstream { service: Some(said), .. } = end
        && let Some(close) = said.close.filter(|code| sendable(*code))
    {
        return (close, reason);
    }
    match report.close {
        _ if report.code == Some("upstream_auth") => (3000, reason),
        _ if service_code(end) == Some("insufficient_quota") => (1013, reason),
        // For good: nobody shall come back for it.
        _ if report.code == Some("upstream_refused") => (4000, reason),
        4401 | 4403 => (3000, reason),
        4402 | 4429 | 4503 | 4508 => (1013, reason),
        4408 | 4440 => (1001, reason),
        4502 | 4504 => (1011, reason),
        code => (code, reason),
    }
}

/// Codes that a close frame may hold (RFC 6455 section 7.4).
fn sendable(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::upstream::UpstreamError;

    fn kind(text: &str) -> Kind {
        Said::read(Bytes::from(text.to_owned())).kind
    }

    #[test]
    fn appends_are_found_however_they_are_written() {
        for text in [
            r#"{"type":"input_audio_buffer.append","audio":"AAECAw=="}"#,
            r#"{"audio":"AAECAw==","event_id":"e","type":"input_audio_buffer.append"}"#,
            " {\"type\": \"input_audio_buffer.append\",\n \"audio\": \"AAECAw==\", \"more\": {\"deep\": [1]}}",
            r#"{"\u0074ype":"input_audio_buffer.append","audio":"AAECAw=="}"#,
        ] {
            let Kind::Append { audio } = kind(text) else { panic!("{text}") };
            assert_eq!(&text[audio], "AAECAw==", "{text}");
        }
        assert_eq!(kind(r#"{"type":"input_audio_buffer.append"}"#), Kind::Other);
    }

    #[test]
    fn an_escaped_slash_survives_the_cut() {
        let text = format!(r#"{{"type":"input_audio_buffer.append","audio":"{}"}}"#, r"\/AAA\/BBB".repeat(10));
        let parts = Said::read(Bytes::from(text)).split(16).unwrap();
        let audio: String = parts
            .iter()
            .map(|part| {
                serde_json::from_slice::<serde_json::Value>(part).unwrap()["audio"].as_str().unwrap().to_owned()
            })
            .collect();
        assert_eq!((audio, parts.len()), ("/AAA/BBB".repeat(10), 5));
    }

    #[test]
    fn events_are_told_apart() {
        for (text, want) in [
            (r#"{"type":"input_audio_buffer.commit"}"#, Kind::Commit),
            (r#"{"type":"session.update","session":{}}"#, Kind::Configure),
            (r#"{"type":"response.create"}"#, Kind::CreateReply { aside: false }),
            (r#"{"type":"response.create","response":null}"#, Kind::CreateReply { aside: false }),
            (r#"{"type":"response.create","response":{"conversation":"auto"}}"#, Kind::CreateReply { aside: false }),
            (
                r#"{"type":"response.create","response":{"a":[1],"conversation":"none"}}"#,
                Kind::CreateReply { aside: true },
            ),
            (
                r#"{"type":"conversation.item.create","item":{"type":"message","role":"user"}}"#,
                Kind::CreateItem { system: false },
            ),
            (r#"{"type":"conversation.item.create","item":{"role":"system"}}"#, Kind::CreateItem { system: true }),
            (
                r#"{"type":"conversation.item.create","item":{"role":"user","role":"system"}}"#,
                Kind::CreateItem { system: true },
            ),
            (r#"{"type":"response.cancel","response_id":"resp_1"}"#, Kind::Cancel { named: true }),
            (r#"{"type":"response.cancel"}"#, Kind::Cancel { named: false }),
            (r#"{"type":"of_tomorrow"}"#, Kind::Other),
        ] {
            assert_eq!(kind(text), want, "{text}");
        }
        let said = Said::read(Bytes::from_static(br#"{"type":"response.cancel","event_id":"c\u0031"}"#));
        assert_eq!(said.event_id.as_deref(), Some("c1"));
    }

    #[test]
    fn ends_are_told_in_codes_that_sdks_understand() {
        let service = |code: &str, close| End::upstream(&UpstreamError::Refused { code: code.into(), close });
        for (end, code, reason) in [
            (End::Asked, 1000, ""),
            (End::Drained, 1001, ""),
            (End::Idle(Duration::from_secs(9)), 1001, "idle_timeout"),
            (End::MaxTime(Duration::from_secs(9)), 1001, EXPIRED),
            (End::MessageTooLarge { got: 2, limit: 1 }, 1009, "message_too_large"),
            (End::BadMessages, 1008, "policy_violation"),
            (End::SlowConsumer, 1013, "slow_consumer"),
            (End::Internal, 1011, "internal"),
            (service("model_not_found", Some(4004)), 4004, "invalid_request_error.model_not_found"),
            (service("insufficient_quota", Some(1013)), 1013, "insufficient_quota.insufficient_quota"),
            (service("invalid_api_key", Some(3000)), 3000, "invalid_request_error.upstream_auth"),
            (service("session_expired", Some(1001)), 1001, EXPIRED),
            (service("", Some(1006)), 4000, "upstream_refused"),
            (
                End::upstream(&UpstreamError::Http {
                    status: axum::http::StatusCode::NOT_FOUND,
                    code: Some("unknown".into()),
                    retry_after: None,
                    param: None,
                }),
                4000,
                "upstream_refused",
            ),
            (
                End::upstream(&UpstreamError::Http {
                    status: axum::http::StatusCode::TOO_MANY_REQUESTS,
                    code: Some("insufficient_quota".into()),
                    retry_after: None,
                    param: None,
                }),
                1013,
                "insufficient_quota.insufficient_quota",
            ),
            (
                End::upstream(&UpstreamError::Http {
                    status: axum::http::StatusCode::UNAUTHORIZED,
                    code: None,
                    retry_after: None,
                    param: None,
                }),
                3000,
                "invalid_request_error.upstream_auth",
            ),
            (End::upstream(&UpstreamError::Broken("x".into())), 1011, "upstream_unavailable"),
            (
                End::upstream(&UpstreamError::Timeout { stage: "answer", after: Duration::ZERO }),
                1011,
                "upstream_timeout",
            ),
        ] {
            assert_eq!(close(&end), (code, reason.to_owned()), "{end:?}");
        }
        for (end, code) in [
            (service("model_not_found", Some(4004)), Some("model_not_found")),
            (service("invalid_api_key", Some(3000)), Some("upstream_auth")),
            (End::MaxTime(Duration::from_secs(9)), Some("session_expired")),
            (End::BadMessages, Some("policy_violation")),
            (End::Drained, None),
        ] {
            let event = end_event(&end, "call_1-1".into());
            let event = event.map(|text| serde_json::from_slice::<serde_json::Value>(&text).unwrap());
            assert_eq!(event.as_ref().and_then(|e| e["error"]["code"].as_str()), code, "{end:?}");
        }
    }

    #[test]
    fn only_errors_are_told_in_our_own_words() {
        let error = End::SlowConsumer.error("call_1-1".into()).unwrap();
        let text = write(&ServerMsg::Error { error }).unwrap();
        let event: serde_json::Value = serde_json::from_slice(&text).unwrap();
        assert_eq!((event["type"].as_str(), event["event_id"].as_str()), (Some("error"), Some("event_call_1-1")));
        assert_eq!(
            (event["error"]["type"].as_str(), event["error"]["code"].as_str()),
            (Some(SERVER_ERROR), Some("slow_consumer"))
        );
        assert_eq!(write(&ServerMsg::Draining { deadline_ms: 1 }), None);
    }

    proptest::proptest! {
        #[test]
        fn nothing_that_comes_in_panics(bytes: Vec<u8>) {
            let _ = Said::read(bytes.into());
        }

        #[test]
        fn perturbed_events_never_panic(at in 0usize..90, byte: u8, longest in 0usize..40) {
            let mut text = br#"{"type":"input_audio_buffer.append","event_id":"e","audio":"AAEC+g==AAEC+g==AAEC+g=="}"#.to_vec();
            if let Some(slot) = text.get_mut(at) {
                *slot = byte;
            }
            let _ = Said::read(text.into()).split(longest);
        }
    }
}
