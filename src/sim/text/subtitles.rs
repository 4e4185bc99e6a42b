//! A transcript in the formats that people ask for. Pure.
use std::fmt::Write as _;

use serde_json::{Value, json};

use super::hear::{self, Word};

/// SubRip.
pub(super) fn srt(words: &[Word]) -> String {
    let mut text = String::new();
    for (n, part) in hear::sentences(words).into_iter().enumerate() {
        let (from, to) = ends(part);
        let _ = write!(text, "{}\n{} --> {}\n{}\n\n", n + 1, stamp(from, ','), stamp(to, ','), hear::text(part));
    }
    text
}

/// WebVTT.
pub(super) fn vtt(words: &[Word]) -> String {
    let mut text = "WEBVTT\n\n".to_owned();
    for part in hear::sentences(words) {
        let (from, to) = ends(part);
        let _ = write!(text, "{} --> {}\n{}\n\n", stamp(from, '.'), stamp(to, '.'), hear::text(part));
    }
    text
}

/// `segments` of verbose JSON.
pub(super) fn segments(words: &[Word]) -> Vec<Value> {
    let parts = hear::sentences(words).into_iter().enumerate().map(|(n, part)| {
        let (from, to) = ends(part);
        json!({
            "id": n,
            "seek": 0,
            "start": seconds(from),
            "end": seconds(to),
            "text": format!(" {}", hear::text(part)),
            "tokens": [],
            "temperature": 0.0,
            "avg_logprob": -0.2,
            "compression_ratio": 1.1,
            "no_speech_prob": 0.01,
        })
    });
    parts.collect()
}

/// `words` of verbose JSON.
pub(super) fn words(words: &[Word]) -> Vec<Value> {
    let words = words
        .iter()
        .map(|word| json!({"word": word.text, "start": seconds(word.start_ms), "end": seconds(word.end_ms)}));
    words.collect()
}

/// Who said what: two speakers take turns.
pub(super) fn speakers(words: &[Word]) -> Vec<Value> {
    let parts = hear::sentences(words).into_iter().enumerate().map(|(n, part)| {
        let (from, to) = ends(part);
        let speaker = if n % 2 == 0 { "A" } else { "B" };
        json!({
            "type": "transcript.text.segment",
            "id": format!("seg_{n}"),
            "start": seconds(from),
            "end": seconds(to),
            "text": hear::text(part),
            "speaker": speaker,
        })
    });
    parts.collect()
}

/// What the service writes for seconds.
pub(super) fn seconds(ms: u64) -> f64 {
    ms as f64 / 1_000.0
}

fn ends(part: &[Word]) -> (u64, u64) {
    (part.first().map_or(0, |word| word.start_ms), part.last().map_or(0, |word| word.end_ms))
}

fn stamp(ms: u64, point: char) -> String {
    let (hours, minutes, seconds) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1_000 % 60);
    format!("{hours:02}:{minutes:02}:{seconds:02}{point}{:03}", ms % 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORDS: [Word; 3] = [
        Word { text: "good", start_ms: 40, end_ms: 400 },
        Word { text: "morning", start_ms: 400, end_ms: 900 },
        Word { text: "paris", start_ms: 3_723_500, end_ms: 3_724_004 },
    ];

    #[test]
    fn subtitles_have_a_line_for_each_sentence() {
        let want = "1\n00:00:00,040 --> 00:00:00,900\ngood morning\n\n2\n01:02:03,500 --> 01:02:04,004\nparis\n\n";
        assert_eq!(srt(&WORDS), want);
        let want = "WEBVTT\n\n00:00:00.040 --> 00:00:00.900\ngood morning\n\n01:02:03.500 --> 01:02:04.004\nparis\n\n";
        assert_eq!(vtt(&WORDS), want);
    }

    #[test]
    fn json_has_seconds() {
        let parts = segments(&WORDS);
        assert_eq!((&parts[1]["start"], &parts[1]["text"], parts.len()), (&json!(3723.5), &json!(" paris"), 2));
        assert_eq!(words(&WORDS)[0], json!({"word": "good", "start": 0.04, "end": 0.4}));
        assert_eq!(speakers(&WORDS)[1]["speaker"], "B");
    }
}
