//! What an answer says of itself: its id, how it ended, and what it has used. Read from a whole body, or from the events of a stream.
use serde::Deserialize;

use super::{Kind, sse::Event};
use crate::client::wire::Usage;

/// How an answer ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// The service's id of the response; empty: it has none, as transcriptions.
    pub id: String,
    /// `completed`, `incomplete`, `failed`, `cancelled`.
    pub status: String,
    /// Its count of tokens; none: it has told none.
    pub usage: Option<Usage>,
    /// Seconds of audio, where that is what it counts.
    pub seconds: Option<f64>,
}

/// What an event of a stream is to us.
#[derive(Debug, Clone, PartialEq)]
pub enum Said {
    /// The answer has this id.
    Began(String),
    /// It is over.
    Ended(Outcome),
    /// The service gives up.
    Failed,
    /// Something else.
    Other,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Response {
    id: String,
    status: String,
    usage: Option<Counted>,
}

/// Both spellings, and both kinds (realtime-protocol section 9).
#[derive(Default, Deserialize)]
#[serde(default)]
struct Counted {
    #[serde(deserialize_with = "null_too")]
    total_tokens: u64,
    #[serde(deserialize_with = "null_too")]
    input_tokens: u64,
    #[serde(deserialize_with = "null_too")]
    output_tokens: u64,
    #[serde(alias = "input_token_details")]
    input_tokens_details: Option<Details>,
    seconds: Option<f64>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Details {
    #[serde(deserialize_with = "null_too")]
    cached_tokens: u64,
    #[serde(deserialize_with = "null_too")]
    cache_write_tokens: u64,
    #[serde(deserialize_with = "null_too")]
    audio_tokens: u64,
}

/// Compatible servers write null where they know nothing.
fn null_too<'de, D: serde::Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    Option::<u64>::deserialize(from).map(Option::unwrap_or_default)
}

#[derive(Deserialize)]
struct Typed {
    #[serde(rename = "type", default)]
    kind: String,
    #[serde(default)]
    response: Option<Response>,
    #[serde(default)]
    usage: Option<Counted>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Transcript {
    usage: Option<Counted>,
    /// Of `verbose_json`.
    duration: Option<f64>,
}

impl Counted {
    fn split(&self) -> (Option<Usage>, Option<f64>) {
        if self.total_tokens == 0 && self.input_tokens == 0 && self.output_tokens == 0 {
            return (None, self.seconds.filter(|seconds| seconds.is_finite() && *seconds >= 0.0));
        }
        let details = self.input_tokens_details.as_ref();
        let audio = details.map_or(0, |details| details.audio_tokens).min(self.input_tokens);
        let cached = details.map_or(0, |details| details.cached_tokens).min(self.input_tokens);
        let written = details.map_or(0, |details| details.cache_write_tokens).min(self.input_tokens - cached);
        let usage = Usage {
            total_tokens: self.total_tokens.max(self.input_tokens.saturating_add(self.output_tokens)),
            input_tokens: self.input_tokens,
            output_tokens: self.output_tokens,
            input_text_tokens: self.input_tokens - audio,
            input_audio_tokens: audio,
            cached_tokens: cached,
            cached_text_tokens: if audio == 0 { cached } else { 0 },
            cache_write_tokens: written,
            output_text_tokens: self.output_tokens,
            ..Usage::default()
        };
        (Some(usage), None)
    }
}

impl Outcome {
    fn of(response: Response) -> Self {
        let (usage, seconds) = response.usage.as_ref().map(Counted::split).unwrap_or_default();
        Self { id: response.id, status: response.status, usage, seconds }
    }

    fn transcribed(usage: Option<&Counted>, duration: Option<f64>) -> Self {
        let (usage, seconds) = usage.map(Counted::split).unwrap_or_default();
        let seconds = seconds.or(duration.filter(|_| usage.is_none()));
        Self { id: String::new(), status: "completed".to_owned(), usage, seconds }
    }

    /// From a whole body. `None`: it is no answer of this kind.
    pub fn read(kind: Kind, body: &[u8]) -> Option<Self> {
        match kind {
            Kind::Response => {
                serde_json::from_slice::<Response>(body).ok().map(Self::of).filter(|of| !of.id.is_empty())
            }
            Kind::Transcription => {
                // Texts, SRT and VTT are answers, too; they count nothing.
                let found = serde_json::from_slice::<Transcript>(body).unwrap_or_default();
                Some(Self::transcribed(found.usage.as_ref(), found.duration))
            }
        }
    }
}

/// What an event says.
pub fn said(kind: Kind, event: &Event<'_>) -> Said {
    let unsaid = event.name.is_empty();
    let matters = |name: &str| {
        matches!(
            name,
            "response.created"
                | "response.completed"
                | "response.incomplete"
                | "response.failed"
                | "transcript.text.done"
                | "error"
        )
    };
    if !unsaid && !matters(event.name) {
        return Said::Other;
    }
    let Ok(typed) = serde_json::from_slice::<Typed>(event.data) else {
        return match event.name {
            "error" => Said::Failed,
            // Too long to be looked into, or no JSON: it is over all the same.
            "response.completed" | "response.incomplete" | "response.failed" | "transcript.text.done" => {
                let status = event.name.rsplit('.').next().unwrap_or_default().replace("done", "completed");
                Said::Ended(Outcome { id: String::new(), status, usage: None, seconds: None })
            }
            _ => Said::Other,
        };
    };
    let name = if unsaid { typed.kind.as_str() } else { event.name };
    match (kind, name) {
        (_, "error") => Said::Failed,
        (Kind::Response, "response.created") => typed.response.map_or(Said::Other, |response| Said::Began(response.id)),
        (Kind::Response, "response.completed" | "response.incomplete" | "response.failed") => {
            let status = name.rsplit('.').next().unwrap_or_default();
            let outcome = Outcome::of(typed.response.unwrap_or_default());
            Said::Ended(Outcome { status: status.to_owned(), ..outcome })
        }
        (Kind::Transcription, "transcript.text.done") => Said::Ended(Outcome::transcribed(typed.usage.as_ref(), None)),
        _ => Said::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nulls_are_nothing() {
        let body = br#"{"id":"resp_1","status":"completed","usage":{"input_tokens":3,"input_tokens_details":{"cached_tokens":null},"output_tokens":null,"total_tokens":null}}"#;
        assert_eq!(Outcome::read(Kind::Response, body).unwrap().usage.unwrap().total_tokens, 3);
    }

    #[test]
    fn bodies_are_read() {
        let body = br#"{"id":"resp_1","status":"incomplete","usage":{"input_tokens":10,"input_tokens_details":{"cached_tokens":4,"cache_write_tokens":5},"output_tokens":5,"total_tokens":15}}"#;
        let outcome = Outcome::read(Kind::Response, body).unwrap();
        let usage = outcome.usage.unwrap();
        assert_eq!((outcome.id.as_str(), outcome.status.as_str()), ("resp_1", "incomplete"));
        assert_eq!((usage.input_text_tokens, usage.cached_text_tokens, usage.output_text_tokens), (10, 4, 5));
        assert_eq!(usage.cache_write_tokens, 5);
        assert_eq!(Outcome::read(Kind::Response, b"<html>"), None);
        for (body, seconds, audio) in [
            (&br#"{"text":"a","usage":{"type":"duration","seconds":3}}"#[..], Some(3.0), None),
            (
                br#"{"text":"a","usage":{"type":"tokens","total_tokens":20,"input_tokens":16,"input_token_details":{"text_tokens":2,"audio_tokens":14},"output_tokens":4}}"#,
                None,
                Some(14),
            ),
            (br#"{"text":"a","duration":2.5}"#, Some(2.5), None),
            (b"1\n00:00:00,000 --> 00:00:01,000\na\n", None, None),
        ] {
            let outcome = Outcome::read(Kind::Transcription, body).unwrap();
            assert_eq!((outcome.seconds, outcome.usage.map(|usage| usage.input_audio_tokens)), (seconds, audio));
        }
    }

    #[test]
    fn events_say_what_they_are_by_name_or_by_type() {
        let of = |kind, name, data: &str| said(kind, &Event { name, data: data.as_bytes() });
        let created = r#"{"type":"response.created","response":{"id":"resp_1"}}"#;
        assert_eq!(of(Kind::Response, "response.created", created), Said::Began("resp_1".into()));
        assert_eq!(of(Kind::Response, "", created), Said::Began("resp_1".into()));
        assert_eq!(of(Kind::Response, "response.output_text.delta", "{"), Said::Other);
        assert_eq!(of(Kind::Response, "of.tomorrow", "{}"), Said::Other);
        assert_eq!(of(Kind::Response, "", "[DONE]"), Said::Other);
        assert_eq!(of(Kind::Response, "error", r#"{"type":"error","code":"x"}"#), Said::Failed);
        let done = r#"{"type":"response.completed","response":{"id":"resp_1","status":"completed","usage":{"input_tokens":1,"output_tokens":2,"total_tokens":3}}}"#;
        let Said::Ended(outcome) = of(Kind::Response, "response.completed", done) else { panic!() };
        assert_eq!((outcome.status.as_str(), outcome.usage.unwrap().total_tokens), ("completed", 3));
        let Said::Ended(outcome) = of(Kind::Response, "response.failed", "") else { panic!() };
        assert_eq!((outcome.status.as_str(), outcome.usage), ("failed", None));
        let done = r#"{"type":"transcript.text.done","text":"a","usage":{"type":"duration","seconds":2}}"#;
        let Said::Ended(outcome) = of(Kind::Transcription, "transcript.text.done", done) else { panic!() };
        assert_eq!(outcome.seconds, Some(2.0));
    }
}
