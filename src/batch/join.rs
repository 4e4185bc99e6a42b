//! The transcripts of a recording's pieces to the one of the recording.
//!
//! Stands behind the requests: [`Transcript::read`] understands what the service answers, [`join`] puts the pieces
//! together, [`subtitles`] writes them with their times. Pure. What two pieces both heard is written once; never is more
//! taken away than can have been said in that time.
mod answer;
mod seam;
pub mod subtitles;
mod words;

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use self::answer::AnswerError;
use self::seam::Seam;

/// What was said in a recording.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Transcript {
    /// All of it.
    pub text: String,
    /// Its language, as the service calls it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub language: Option<String>,
    /// How long the recording is, seconds, as far as the service or the caller knows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_s: Option<f64>,
    /// What was said when, in order. Empty where the service gives no times and nobody has [joined](join) it yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub segments: Vec<Segment>,
}

/// A stretch of speech.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Segment {
    /// Its beginning, seconds from the recording's.
    pub start_s: f64,
    /// Its end, never before its beginning.
    pub end_s: f64,
    /// What was said, without space around it.
    pub text: String,
    /// Who said it, where the service tells speakers apart. Within one piece only: the next one's `A` may be another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speaker: Option<String>,
    /// The service gave no times: these are [spread](join) by the length of the text.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub estimated: bool,
}

/// A piece of a recording, and what was said in it.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// Where in the recording it begins.
    pub start: Duration,
    /// How long it plays.
    pub length: Duration,
    /// So much of its beginning is the end of the piece before it.
    pub overlap: Duration,
    /// The service's answer, with times that begin at 0.
    pub transcript: Transcript,
}

/// Puts a recording together from its pieces, in order; of one that was sent whole, the only one.
///
/// Where two pieces overlap, the longest run of words with which the one ends and the other begins is written once,
/// whatever its case and punctuation; one word on either side that was cut in two goes with it. Where no words agree but
/// the service gave times for both, each has its half of the overlap. Else both stay: a word twice is better than none.
///
/// A piece without times gets a segment per sentence, and each takes as much of the piece's time as its characters are of
/// all: good for finding a place, not for lips. They are marked as [estimated](Segment::estimated).
pub fn join(parts: &[Part]) -> Transcript {
    let mut whole = Transcript::default();
    // Where the last piece's words begin.
    let mut tail = Tail::default();
    for part in parts {
        let mut segments = timed(part);
        let mut text = part.transcript.text.trim();
        if !part.overlap.is_zero() {
            let before = whole.text.get(tail.text..).unwrap_or_default();
            let seen = whole.segments.get(tail.segment..).unwrap_or_default();
            let seam = Seam::find(before, seen, text, &segments, part);
            seam.take_off_end(&mut whole, &tail, text);
            text = seam.take_off_start(text, &mut segments);
        }
        let glue = words::glue(&whole.text, text);
        whole.text.push_str(glue);
        tail.text = whole.text.len();
        whole.text.push_str(text);
        tail.segment = whole.segments.len();
        append(&mut whole.segments, segments);
        whole.language = whole.language.take().or_else(|| part.transcript.language.clone());
        whole.duration_s = Some((part.start + part.length).as_secs_f64());
    }
    whole
}

/// Where the last piece begins in what is joined so far.
#[derive(Debug, Default)]
struct Tail {
    text: usize,
    segment: usize,
}

/// A piece's segments by the recording's clock, within the piece.
fn timed(part: &Part) -> Vec<Segment> {
    let (start, end) = (part.start.as_secs_f64(), (part.start + part.length).as_secs_f64());
    let given = &part.transcript.segments;
    if given.is_empty() {
        return spread(part.transcript.text.trim(), start, end);
    }
    let place = |segment: &Segment| {
        let start_s = (start + segment.start_s).clamp(start, end);
        Segment { start_s, end_s: (start + segment.end_s).clamp(start_s, end), ..segment.clone() }
    };
    given.iter().filter(|segment| !segment.text.trim().is_empty()).map(place).collect()
}

/// A segment per sentence, each as long as its share of the characters.
fn spread(text: &str, start: f64, end: f64) -> Vec<Segment> {
    let all = text.chars().count().max(1) as f64;
    let (mut said, mut from) = (0, start);
    let mut segments = Vec::new();
    for sentence in words::sentences(text) {
        said += sentence.chars().count();
        let until = start + (end - start) * (said as f64 / all);
        let text = sentence.trim().to_owned();
        segments.push(Segment { start_s: from, end_s: until, text, speaker: None, estimated: true });
        from = until;
    }
    segments
}

/// Appends segments so that none begins before the one in front of it, and the first not before the last has ended.
fn append(segments: &mut Vec<Segment>, more: Vec<Segment>) {
    let mut floor = segments.last().map_or(0.0, |last| last.end_s);
    for mut segment in more {
        segment.start_s = segment.start_s.max(floor);
        segment.end_s = segment.end_s.max(segment.start_s);
        floor = segment.start_s;
        segments.push(segment);
    }
}

#[cfg(test)]
mod tests;
