//! What the service answers to a transcription: `json`, `verbose_json` and `diarized_json` alike.
//!
//! Takes what it knows and passes over the rest: which fields come depends on the model, and the formats with times have
//! no announced successor.
use serde_json::Value;

use super::{Segment, Transcript, words};

/// An answer that holds no transcript. Nothing of it is quoted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    /// Cut off, or a page of a proxy's.
    #[error("the transcription's answer is not JSON")]
    NotJson,
    /// JSON of another kind.
    #[error("the transcription's answer has no field text")]
    NoText,
}

/// Words of the longest segment that is made of single words.
const LONGEST: usize = 15;
/// Seconds without a word that end such a segment.
const GAP: f64 = 1.0;

impl Transcript {
    /// Reads an answer's body. Times are the upload's: 0 is its beginning.
    ///
    /// # Errors
    /// When it is no JSON object with a `text`.
    pub fn read(body: &[u8]) -> Result<Self, AnswerError> {
        let answer: Value = serde_json::from_slice(body).map_err(|_| AnswerError::NotJson)?;
        let text = answer.get("text").and_then(Value::as_str).ok_or(AnswerError::NoText)?.trim().to_owned();
        let list = |name: &str| answer.get(name).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let mut segments: Vec<Segment> = list("segments").iter().filter_map(|one| segment(one, "text")).collect();
        if segments.is_empty() {
            segments = grouped(list("words").iter().filter_map(|one| segment(one, "word")));
        }
        segments.sort_by(|a, b| a.start_s.total_cmp(&b.start_s));
        let duration_s = answer.get("duration").and_then(seconds);
        let usage = || seconds(answer.get("usage")?.get("seconds")?);
        let one =
            |language: &Value| language.as_str().or_else(|| language.get("language")?.as_str()).map(str::to_owned);
        let language = answer.get("language").and_then(one).or_else(|| list("languages").first().and_then(one));
        Ok(Self { text, language, duration_s: duration_s.or_else(usage), segments })
    }
}

fn segment(one: &Value, text: &str) -> Option<Segment> {
    let start_s = seconds(one.get("start")?)?;
    let end_s = one.get("end").and_then(seconds).unwrap_or(start_s).max(start_s);
    let text = one.get(text)?.as_str()?.trim().to_owned();
    let speaker = one.get("speaker").and_then(Value::as_str).map(str::to_owned);
    // No service says this: our own answers of sessions do.
    let estimated = one.get("estimated").and_then(Value::as_bool).unwrap_or_default();
    (!text.is_empty()).then_some(Segment { start_s, end_s, text, speaker, estimated })
}

/// Some services write numbers as texts.
fn seconds(value: &Value) -> Option<f64> {
    let seconds = value.as_f64().or_else(|| value.as_str()?.trim().parse().ok())?;
    (seconds.is_finite() && seconds >= 0.0).then_some(seconds)
}

/// Words to segments: up to the end of a sentence, a gap, or [`LONGEST`] words.
fn grouped(all: impl Iterator<Item = Segment>) -> Vec<Segment> {
    let mut segments: Vec<Segment> = Vec::new();
    let mut count = 0;
    for word in all {
        match segments.last_mut().filter(|last| {
            count < LONGEST
                && word.start_s - last.end_s < GAP
                && !last.text.ends_with(['.', '!', '?', '。', '！', '？'])
        }) {
            Some(last) => {
                last.text.push_str(words::glue(&last.text, &word.text));
                last.text.push_str(&word.text);
                last.end_s = word.end_s.max(last.end_s);
                count += 1;
            }
            None => {
                segments.push(word);
                count = 1;
            }
        }
    }
    segments
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(start_s: f64, end_s: f64, text: &str) -> Segment {
        Segment { start_s, end_s, text: text.to_owned(), speaker: None, estimated: false }
    }

    #[test]
    fn every_kind_of_answer_is_read() {
        let plain = br#"{"text": " Hello there. ", "usage": {"type": "duration", "seconds": 6}, "languages": ["en"]}"#;
        let want = Transcript {
            text: "Hello there.".to_owned(),
            language: Some("en".to_owned()),
            duration_s: Some(6.0),
            segments: Vec::new(),
        };
        assert_eq!(Transcript::read(plain), Ok(want.clone()));
        let verbose = br#"{"task": "transcribe", "language": "en", "duration": "6.0", "text": "Hello there.",
            "segments": [{"id": 0, "start": 0.2, "end": 1.5, "text": " Hello", "tokens": [1]},
                         {"id": 1, "start": 1.5, "end": 2, "text": " there."}, {"start": 2, "text": " "}]}"#;
        let segments = vec![piece(0.2, 1.5, "Hello"), piece(1.5, 2.0, "there.")];
        assert_eq!(Transcript::read(verbose), Ok(Transcript { segments: segments.clone(), ..want.clone() }));
        let diarized = br#"{"text": "Hello there.", "duration": 6, "languages": [{"language": "en"}], "segments": [
            {"type": "transcript.text.segment", "id": "seg_1", "start": 1.5, "end": 2, "speaker": "B", "text": "there."},
            {"type": "transcript.text.segment", "id": "seg_0", "start": 0.2, "end": 1.5, "speaker": "A", "text": "Hello"}]}"#;
        let mut spoken = segments;
        for (segment, speaker) in spoken.iter_mut().zip(["A", "B"]) {
            segment.speaker = Some(speaker.to_owned());
        }
        assert_eq!(Transcript::read(diarized), Ok(Transcript { segments: spoken, ..want }));
    }

    #[test]
    fn words_alone_become_segments() {
        let words = br#"{"text": "Hello there. And so on", "words": [
            {"word": "Hello", "start": 0.2, "end": 0.5}, {"word": "there.", "start": 0.5, "end": 0.9},
            {"word": "And", "start": 1, "end": 1.1}, {"word": "so", "start": 1.1, "end": 1.2},
            {"word": "on", "start": 2.5, "end": 2.7}]}"#;
        let segments = Transcript::read(words).unwrap().segments;
        assert_eq!(segments, [piece(0.2, 0.9, "Hello there."), piece(1.0, 1.2, "And so"), piece(2.5, 2.7, "on")]);
    }

    #[test]
    fn what_is_no_transcript_says_so() {
        for (body, want) in [
            ("<html>", AnswerError::NotJson),
            ("{\"text\": \"Hel", AnswerError::NotJson),
            ("", AnswerError::NotJson),
            ("[]", AnswerError::NoText),
            ("{\"text\": null}", AnswerError::NoText),
            ("{\"error\": {\"message\": \"key\"}}", AnswerError::NoText),
        ] {
            assert_eq!(Transcript::read(body.as_bytes()), Err(want), "{body}");
        }
        let odd = br#"{"text": "", "duration": -1, "segments": [{"start": "x", "text": "a"}, 7, {"start": 3, "end": 2, "text": "b"}]}"#;
        let read = Transcript::read(odd).unwrap();
        assert_eq!((read.duration_s, read.segments), (None, vec![piece(3.0, 3.0, "b")]));
    }
}
