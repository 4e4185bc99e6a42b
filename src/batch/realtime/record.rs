//! What a session has said about a recording's turns, put in order, and what its errors mean. Pure.
use std::{collections::BTreeMap, time::Duration};

use serde_json::{Value, json};

use crate::{
    batch::{
        engine::{Answer, Failure},
        join::{Part, Transcript, join},
        relay::{is_money, too_much},
    },
    upstream::ga::retry_after,
};

/// Longest text of an error that is shown, characters.
const SHOWN: usize = 300;

/// What a turn became.
#[derive(Debug, Default)]
struct Written {
    text: String,
    usage: Option<Value>,
}

/// All that was said.
#[derive(Debug, Default)]
pub(super) struct Record {
    created: bool,
    set_up: bool,
    /// How long the turns are that were committed, in their order.
    turns: Vec<Duration>,
    /// The service's names for them, in the same order.
    items: Vec<String>,
    written: BTreeMap<String, Written>,
}

/// An error, as the service told it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Problem {
    code: String,
    message: String,
    /// It is the model's name that is wrong.
    of_model: bool,
}

impl Problem {
    fn of(error: Option<&Value>) -> Self {
        let text = |field: &str| error.and_then(|error| error.get(field)?.as_str());
        let code = text("code").or(text("type")).unwrap_or("refused").to_owned();
        let message = text("message").unwrap_or("the service names no reason").chars().take(SHOWN).collect();
        let of_model = text("param").is_some_and(|param| param.rsplit('.').next() == Some("model"));
        Self { code, message, of_model }
    }

    /// Of a close without an error: its reason is `type.code` where the service has made it (realtime-protocol section 6).
    pub(super) fn of_close(reason: &str) -> Self {
        let code = reason.rsplit('.').next().filter(|code| !code.is_empty() && !code.contains(' ')).unwrap_or("closed");
        let message = match reason {
            "" => "the session was closed".to_owned(),
            reason => format!("the session was closed: {reason}"),
        };
        Self { code: code.to_owned(), message, of_model: false }
    }
}

impl Record {
    /// The session is there.
    pub(super) fn is_created(&self) -> bool {
        self.created
    }

    /// It is as we want it.
    pub(super) fn is_set_up(&self) -> bool {
        self.set_up
    }

    /// All that was committed is written down.
    pub(super) fn is_complete(&self) -> bool {
        let known = self.items.len() >= self.turns.len();
        known && self.items.iter().all(|item| self.written.contains_key(item))
    }

    /// A turn of this length was committed.
    pub(super) fn sent(&mut self, length: Duration) {
        self.turns.push(length);
    }

    /// Takes a message. `Some`: it is an error.
    pub(super) fn hear(&mut self, message: &[u8]) -> Option<Problem> {
        // What cannot be read is nothing that we wait for.
        let event = serde_json::from_slice::<Value>(message).ok()?;
        let text = |field: &str| event.get(field).and_then(Value::as_str);
        match text("type")? {
            "session.created" => self.created = true,
            "session.updated" => self.set_up = true,
            "input_audio_buffer.committed" => {
                let item = text("item_id")?;
                if !self.items.iter().any(|known| known == item) {
                    self.items.push(item.to_owned());
                }
            }
            "conversation.item.input_audio_transcription.completed" => {
                let written = Written {
                    text: text("transcript").unwrap_or_default().to_owned(),
                    usage: event.get("usage").filter(|usage| usage.is_object()).cloned(),
                };
                self.written.insert(text("item_id")?.to_owned(), written);
            }
            "conversation.item.input_audio_transcription.failed" | "error" => {
                return Some(Problem::of(event.get("error")));
            }
            _ => {}
        }
        None
    }

    /// The answer, in the form of the transcription address.
    pub(super) fn answer(&self) -> Answer {
        let none = Written::default();
        let turns = self.items.iter().map(|item| self.written.get(item).unwrap_or(&none));
        let mut start = Duration::ZERO;
        let parts = turns.clone().zip(&self.turns).map(|(written, length)| {
            let transcript = Transcript { text: written.text.clone(), ..Transcript::default() };
            let part = Part { start, length: *length, overlap: Duration::ZERO, transcript };
            start += *length;
            part
        });
        let whole = join(&parts.collect::<Vec<_>>());
        let segment = |segment: &crate::batch::join::Segment| json!({"start": segment.start_s, "end": segment.end_s, "text": segment.text, "estimated": segment.estimated});
        let segments: Vec<_> = whole.segments.iter().map(segment).collect();
        let mut body = json!({"text": whole.text, "duration": whole.duration_s, "segments": segments});
        if let Some((usage, fields)) =
            usage(turns.filter_map(|written| written.usage.as_ref())).zip(body.as_object_mut())
        {
            fields.insert("usage".to_owned(), usage);
        }
        Answer { body: body.to_string().into(), cost: None, waited: Duration::ZERO, repeated: false, route: None }
    }
}

/// What all turns have used, as one: seconds, or tokens.
fn usage<'a>(of_turns: impl Iterator<Item = &'a Value>) -> Option<Value> {
    let (mut seconds, mut tokens) = (None::<f64>, None::<[u64; 5]>);
    for usage in of_turns {
        let count = |path: &str| usage.pointer(path).and_then(Value::as_u64);
        if let Some(more) = usage.get("seconds").and_then(Value::as_f64) {
            *seconds.get_or_insert(0.0) += more;
        }
        if count("/input_tokens").or(count("/output_tokens")).or(count("/total_tokens")).is_some() {
            let paths = [
                "/total_tokens",
                "/input_tokens",
                "/output_tokens",
                "/input_token_details/text_tokens",
                "/input_token_details/audio_tokens",
            ];
            for (sum, path) in tokens.get_or_insert_default().iter_mut().zip(paths) {
                *sum = sum.saturating_add(count(path).unwrap_or_default());
            }
        }
    }
    match (tokens, seconds) {
        (Some([total, input, output, text, audio]), _) => Some(json!({
            "type": "tokens",
            "total_tokens": total,
            "input_tokens": input,
            "input_token_details": {"text_tokens": text, "audio_tokens": audio},
            "output_tokens": output,
        })),
        (None, Some(seconds)) => Some(json!({"type": "duration", "seconds": seconds})),
        (None, None) => None,
    }
}

/// What an error means, with the close that came behind it; an error alone may leave a session open, but not this recording's.
pub(super) fn meaning(problem: &Problem, close: Option<u16>) -> Failure {
    let (code, message) = (problem.code.clone(), problem.message.clone());
    let wait = retry_after(&message);
    // No other recording would fare better.
    if problem.of_model {
        return Failure::Stop { code, message, wait: None };
    }
    match (code.as_str(), close) {
        (money, _) if is_money(money) => too_much(wait, code, message),
        (
            "invalid_api_key"
            | "unauthorized"
            | "forbidden"
            | "token_expired"
            | "insufficient_permissions"
            | "upstream_auth"
            | "upstream_refused"
            | "missing_model"
            | "invalid_model"
            | "model_not_found"
            | "beta_api_shape_disabled",
            _,
        )
        | (_, Some(3_000 | 4_000 | 4_004)) => Failure::Stop { code, message, wait: None },
        ("rate_limit_exceeded" | "rate_limit_error" | "rate_limited" | "concurrency_limited" | "overloaded", _)
        | (_, Some(1_013)) => too_much(wait, code, message),
        // The same audio would be too much again.
        (_, Some(1_009)) => Failure::Item { code, message },
        (
            "session_expired"
            | "server_error"
            | "internal"
            | "upstream_lost"
            | "upstream_unavailable"
            | "upstream_timeout"
            | "audio_gap"
            | "idle_timeout"
            | "max_call_time"
            | "slow_consumer",
            _,
        )
        | (_, Some(_)) => Failure::Again { message },
        ("closed", None) => Failure::Again { message },
        _ => Failure::Item { code, message },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::{Kind, outcome::Outcome};

    fn told(record: &mut Record, events: &[Value]) {
        for event in events {
            assert_eq!(record.hear(event.to_string().as_bytes()), None, "{event}");
        }
    }

    fn committed(item: &str) -> Value {
        json!({"type": "input_audio_buffer.committed", "item_id": item})
    }

    fn completed(item: &str, text: &str, usage: Value) -> Value {
        let kind = "conversation.item.input_audio_transcription.completed";
        json!({"type": kind, "item_id": item, "content_index": 0, "transcript": text, "usage": usage})
    }

    #[test]
    fn turns_are_in_their_order_and_counted_together() {
        let tokens = |input: u64| {
            let details = json!({"text_tokens": 1, "audio_tokens": input - 1});
            json!({"type": "tokens", "total_tokens": input + 2, "input_tokens": input, "input_token_details": details, "output_tokens": 2})
        };
        for (one, two, seconds, audio) in [
            (json!({"type": "duration", "seconds": 2.5}), json!({"type": "duration", "seconds": 3}), Some(5.5), None),
            (tokens(10), tokens(20), None, Some(28)),
            // A service that counts nothing: the sound's own length.
            (Value::Null, Value::Null, Some(6.0), None),
        ] {
            let mut record = Record::default();
            record.sent(Duration::from_secs(2));
            told(&mut record, &[committed("b"), completed("b", "One. Two.", one)]);
            assert!(record.is_complete());
            record.sent(Duration::from_secs(4));
            assert!(!record.is_complete(), "the second turn is not known yet");
            // Its words may come before its name, and its name twice.
            told(&mut record, &[completed("a", "Three.", two)]);
            assert!(!record.is_complete());
            told(&mut record, &[committed("a"), committed("a")]);
            assert!(record.is_complete());
            let body = record.answer().body;
            let transcript = Transcript::read(&body).unwrap();
            assert_eq!((transcript.text.as_str(), transcript.duration_s), ("One. Two. Three.", Some(6.0)));
            let times: Vec<_> = transcript.segments.iter().map(|one| (one.start_s, one.end_s, one.estimated)).collect();
            let middle = times[0].1;
            assert_eq!(times, [(0.0, middle, true), (middle, 2.0, true), (2.0, 6.0, true)]);
            let outcome = Outcome::read(Kind::Transcription, &body).unwrap();
            assert_eq!((outcome.seconds, outcome.usage.map(|usage| usage.input_audio_tokens)), (seconds, audio));
        }
    }

    #[test]
    fn what_is_no_event_of_ours_is_passed_over() {
        let mut record = Record::default();
        for message in ["", "{", "[]", "7", "{}", r#"{"type":7}"#, r#"{"type":"of.tomorrow","error":{}}"#] {
            assert_eq!(record.hear(message.as_bytes()), None, "{message}");
        }
        assert!(!record.is_created() && !record.is_set_up() && record.is_complete());
    }

    #[test]
    fn errors_are_told_apart() {
        let of = |error: Value, close| {
            let event = json!({"type": "error", "error": error});
            let problem = Record::default().hear(event.to_string().as_bytes()).unwrap();
            meaning(&problem, close)
        };
        let word = |failure: &Failure| match failure {
            Failure::Item { .. } => "item",
            Failure::Wait { .. } => "wait",
            Failure::Away { .. } => "away",
            Failure::Again { .. } => "again",
            Failure::Stop { .. } => "stop",
        };
        for (code, kind, close, want) in [
            (Some("invalid_api_key"), "invalid_request_error", Some(3_000), "stop"),
            (None, "invalid_request_error", Some(3_000), "stop"),
            (Some("model_not_found"), "invalid_request_error", Some(4_004), "stop"),
            (Some("insufficient_quota"), "insufficient_quota", Some(1_013), "stop"),
            (Some("budget_exhausted"), "insufficient_quota", None, "stop"),
            (Some("rate_limit_exceeded"), "requests", None, "wait"),
            (Some("overloaded"), "server_error", Some(1_013), "wait"),
            (None, "server_error", None, "again"),
            (Some("session_expired"), "invalid_request_error", Some(1_001), "again"),
            (Some("audio_gap"), "server_error", None, "again"),
            (Some("upstream_unavailable"), "server_error", Some(1_011), "again"),
            (Some("audio_unintelligible"), "transcription_error", None, "item"),
            (Some("string_above_max_length"), "invalid_request_error", None, "item"),
            (Some("message_too_large"), "invalid_request_error", Some(1_009), "item"),
        ] {
            let failure = of(json!({"type": kind, "code": code, "message": "No."}), close);
            assert_eq!(word(&failure), want, "{code:?} {kind} {close:?}");
        }
        let limited = |text: &str| of(json!({"code": "rate_limit_exceeded", "message": text}), None);
        let Failure::Wait { wait, .. } = limited("Please try again in 7.5s.") else { panic!() };
        assert_eq!(wait, Duration::from_millis(7_500));
        assert_eq!(word(&limited("Please try again in 14h2m.")), "stop", "tomorrow");
        for (reason, close, want) in [
            ("invalid_request_error.invalid_api_key", Some(3_000), "stop"),
            ("insufficient_quota.insufficient_quota", Some(1_013), "stop"),
            ("", Some(1_006), "again"),
            ("Your session hit the maximum duration of 60 minutes.", Some(1_001), "again"),
            ("", None, "again"),
        ] {
            assert_eq!(word(&meaning(&Problem::of_close(reason), close)), want, "{reason}");
        }
    }
}
