//! A transcript with its times, in the two formats that players know: SubRip (.srt) and WebVTT (.vtt).
//!
//! One cue per [segment](Segment), as the service or [`join`](super::join()) made it: where nobody gave times, that is one per
//! sentence, spread over its piece by the number of characters.
use std::fmt::Write as _;

use super::Segment;

/// A player shows no cue that lasts no time.
const SHORTEST_MS: u64 = 1;

/// As SubRip: numbered cues, times with a comma, a speaker before the text. After 99:59:59 hours have three digits.
pub fn srt(segments: &[Segment]) -> String {
    let mut out = String::new();
    for (number, segment) in segments.iter().enumerate() {
        let (start, end) = times(segment);
        let speaker = segment.speaker.as_ref().map(|speaker| format!("{}: ", line(speaker))).unwrap_or_default();
        // What looks like the line of times is taken for one.
        let text = line(&segment.text).replace("-->", "->");
        let _ = write!(out, "{}\n{} --> {}\n{speaker}{text}\n\n", number + 1, clock(start, ','), clock(end, ','));
    }
    out
}

/// As WebVTT (W3C, section 4): times with a full stop, `&`, `<` and `>` escaped, a speaker as a voice span.
pub fn vtt(segments: &[Segment]) -> String {
    let mut out = String::from("WEBVTT\n\n");
    for segment in segments {
        let (start, end) = times(segment);
        let text = escaped(&line(&segment.text));
        let speaker = segment.speaker.as_ref().map(|speaker| format!("<v {}>", escaped(&line(speaker))));
        let speaker = speaker.unwrap_or_default();
        let _ = write!(out, "{} --> {}\n{speaker}{text}\n\n", clock(start, '.'), clock(end, '.'));
    }
    out
}

/// In one line: an empty one would end the cue.
fn line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// Milliseconds.
fn times(segment: &Segment) -> (u64, u64) {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a cast cuts at the ends")]
    let ms = |seconds: f64| (seconds * 1_000.0).round() as u64;
    let start = ms(segment.start_s);
    (start, ms(segment.end_s).max(start.saturating_add(SHORTEST_MS)))
}

fn clock(ms: u64, point: char) -> String {
    let (seconds, ms) = (ms / 1_000, ms % 1_000);
    format!("{:02}:{:02}:{:02}{point}{ms:03}", seconds / 3_600, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn spoken(start_s: f64, end_s: f64, text: &str, speaker: Option<&str>) -> Segment {
        let speaker = speaker.map(str::to_owned);
        Segment { start_s, end_s, text: text.to_owned(), speaker, estimated: false }
    }

    #[test]
    fn the_formats_are_exact() {
        let both = vec![
            spoken(0.0, 1.234_6, "Hello,\n\n there.", None),
            spoken(3_599.999_6, 3_600.0, "a --> b & <c>", Some("A")),
            spoken(363_599.5, 363_601.0, "好。", Some("B <b>")),
        ];
        let want = "1\n00:00:00,000 --> 00:00:01,235\nHello, there.\n\n\
            2\n01:00:00,000 --> 01:00:00,001\nA: a -> b & <c>\n\n\
            3\n100:59:59,500 --> 101:00:01,000\nB <b>: 好。\n\n";
        assert_eq!(srt(&both), want);
        let want = "WEBVTT\n\n00:00:00.000 --> 00:00:01.235\nHello, there.\n\n\
            01:00:00.000 --> 01:00:00.001\n<v A>a --&gt; b &amp; &lt;c&gt;\n\n\
            100:59:59.500 --> 101:00:01.000\n<v B &lt;b&gt;>好。\n\n";
        assert_eq!(vtt(&both), want);
        assert_eq!((srt(&[]).as_str(), vtt(&[]).as_str()), ("", "WEBVTT\n\n"));
    }

    /// SubRip as players read it.
    fn parse(file: &str) -> Vec<(u64, u64, String)> {
        let ms = |clock: &str| {
            let (clock, ms) = clock.split_once(',').unwrap();
            let seconds = clock.split(':').fold(0, |all, part| all * 60 + part.parse::<u64>().unwrap());
            seconds * 1_000 + ms.parse::<u64>().unwrap()
        };
        let cue = |(number, cue): (usize, &str)| {
            let mut lines = cue.lines();
            assert_eq!(lines.next(), Some((number + 1).to_string().as_str()));
            let (start, end) = lines.next().unwrap().split_once(" --> ").unwrap();
            (ms(start), ms(end), lines.collect::<Vec<_>>().join("\n"))
        };
        file.split_terminator("\n\n").enumerate().map(cue).collect()
    }

    proptest! {
        #[test]
        fn what_is_written_can_be_read(
            cues in proptest::collection::vec((0_u32..500_000_000, 0_u32..60_000, "[a-z<>&,\\-\n ]{0,20}[a-z]"), 0..9),
        ) {
            let segment = |(start, length, text): &(u32, u32, String)| {
                spoken(f64::from(*start) / 1_000.0, f64::from(start + length) / 1_000.0, text, None)
            };
            let read = parse(&srt(&cues.iter().map(segment).collect::<Vec<_>>()));
            prop_assert_eq!(read.len(), cues.len());
            for ((start, length, text), (from, to, line_read)) in cues.iter().zip(read) {
                prop_assert_eq!((from, to), (u64::from(*start), u64::from(start + (*length).max(1))));
                prop_assert_eq!(line_read, line(text).replace("-->", "->"));
            }
        }
    }
}
