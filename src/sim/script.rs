//! A reply as a timetable: which events come when. Pure; [`super::response`] carries it out.
use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;

use super::{config::SimConfig, reply::Said, tokens};
use crate::audio::Format;
use crate::scripted::Dice;

/// Characters of one piece of a function call's arguments.
const ARGUMENT_PIECE: usize = 12;

/// One thing that a response does. The number is the output item's index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// `response.created`.
    Created,
    /// The item and its part are announced.
    Open(usize),
    /// A delta of text, of a transcript or of arguments.
    Words(usize, String),
    /// A delta of audio.
    Audio(usize, Bytes),
    /// The item's `.done` events.
    Close(usize),
    /// `response.done`.
    Done,
}

/// A timetable: steps with their times, in order.
#[derive(Debug)]
pub(super) struct Script {
    pub(super) steps: VecDeque<(Duration, Step)>,
    /// The reply was longer than `max_output_tokens`.
    pub(super) cut: bool,
}

/// Writes the timetable of a reply that is asked for at `now`.
pub(super) fn write(
    said: &[Said],
    format: Format,
    max_tokens: u64,
    config: &SimConfig,
    dice: &mut Dice,
    now: Duration,
) -> Script {
    let delays = &config.delays;
    let created = now + dice.delay(delays.response_created);
    let first_delta = dice.delay(delays.first_delta);
    let opened = created + dice.delay(delays.item_added).min(first_delta);
    let mut writer = Writer {
        config,
        format,
        left: max_tokens,
        at: created + first_delta,
        steps: vec![(created, Step::Created)],
        cut: false,
    };
    let late = Duration::from_millis(config.reply.late_done_ms);
    let mut unclosed: Option<(usize, Duration)> = None;
    for (index, item) in said.iter().enumerate() {
        let begins = if index == 0 { opened.min(writer.at) } else { writer.at };
        writer.steps.push((begins, Step::Open(index)));
        let (first, last) = (writer.at, writer.item(index, item));
        if let Some((before, ended)) = unclosed.take() {
            writer.steps.push((ended.max(first + late), Step::Close(before)));
        }
        if late.is_zero() || index + 1 == said.len() || writer.cut {
            writer.steps.push((last, Step::Close(index)));
        } else {
            unclosed = Some((index, last));
        }
        if writer.cut {
            break;
        }
    }
    let end = writer.steps.iter().map(|(at, _)| *at).max().unwrap_or(created);
    writer.steps.push((end, Step::Done));
    // Stable: what is due at the same time keeps the order in which it was written.
    writer.steps.sort_by_key(|(at, _)| *at);
    Script { steps: writer.steps.into(), cut: writer.cut }
}

struct Writer<'c> {
    config: &'c SimConfig,
    format: Format,
    /// Output tokens that may still be used.
    left: u64,
    /// When the next delta comes.
    at: Duration,
    steps: Vec<(Duration, Step)>,
    cut: bool,
}

impl Writer<'_> {
    /// Writes an item's deltas; gives the time of the last one.
    fn item(&mut self, index: usize, said: &Said) -> Duration {
        let word = Duration::from_millis(self.config.reply.word_ms);
        match said {
            Said::Audio { audio, transcript } => self.audio(index, audio, transcript),
            Said::Text(text) => self.words(index, text.split_inclusive(' ').map(str::to_owned).collect(), word),
            Said::Call { arguments, .. } => {
                let letters: Vec<char> = arguments.chars().collect();
                self.words(index, letters.chunks(ARGUMENT_PIECE).map(String::from_iter).collect(), word)
            }
        }
    }

    fn words(&mut self, index: usize, words: Vec<String>, pause: Duration) -> Duration {
        let (mut last, mut count) = (self.at, TextCount::default());
        for word in words {
            if !self.spend(count.add(&word)) {
                break;
            }
            last = self.at;
            self.steps.push((self.at, Step::Words(index, word)));
            self.at += pause;
        }
        last
    }

    fn audio(&mut self, index: usize, audio: &Bytes, transcript: &str) -> Duration {
        let reply = &self.config.reply;
        let sample = self.format.sample_bytes().unwrap_or(1);
        let piece = self.format.bytes(Duration::from_millis(reply.delta_ms.max(1))).max(sample);
        let words: Vec<&str> = transcript.split_inclusive(' ').collect();
        let pieces = audio.len().div_ceil(piece);
        let (mut last, mut count, mut said) = (self.at, TextCount::default(), 0);
        for n in 0..pieces.max(1) {
            // The words of a piece come just before it, spread over the whole.
            let until = (words.len() * (n + 1)).div_ceil(pieces.max(1));
            for word in words.get(said..until).unwrap_or_default() {
                if !self.spend(count.add(word)) {
                    return last;
                }
                self.steps.push((self.at, Step::Words(index, (*word).to_owned())));
            }
            said = until;
            let from = (n * piece).min(audio.len());
            let mut bytes = audio.slice(from..(from + piece).min(audio.len()));
            // Tokens of the audio so far, so that no remainder of a piece is lost.
            let cost = self.audio_tokens(from + bytes.len()) - self.audio_tokens(from);
            last = self.at;
            if !self.spend(cost) {
                bytes.truncate(self.format.bytes(Duration::from_millis(self.left * 50)).min(bytes.len()));
                self.left = 0;
            }
            if !bytes.is_empty() {
                let length = self.format.duration(bytes.len());
                self.steps.push((self.at, Step::Audio(index, bytes)));
                if reply.speed > 0.0 {
                    self.at += Duration::from_secs_f64((length.as_secs_f64() / reply.speed).min(3_600.0));
                }
            }
            if self.cut {
                return last;
            }
        }
        last
    }

    fn audio_tokens(&self, bytes: usize) -> u64 {
        tokens::of_reply_audio(u64::try_from(self.format.duration(bytes).as_millis()).unwrap_or(u64::MAX))
    }

    fn spend(&mut self, tokens: u64) -> bool {
        match self.left.checked_sub(tokens) {
            Some(left) => self.left = left,
            None => self.cut = true,
        }
        !self.cut
    }
}

/// Counts tokens of a text that comes in pieces.
#[derive(Default)]
struct TextCount {
    chars: u64,
}

impl TextCount {
    /// Tokens that one more piece costs.
    fn add(&mut self, piece: &str) -> u64 {
        let before = tokens::of_chars(self.chars);
        self.chars += piece.chars().count() as u64;
        tokens::of_chars(self.chars) - before
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::config::{Delay, Delays, Reply},
        *,
    };

    fn config(reply: Reply) -> SimConfig {
        let delays = Delays { response_created: Delay::ms(20), first_delta: Delay::ms(200), ..Delays::none() };
        let delays = Delays { item_added: Delay::ms(100), ..delays };
        SimConfig { reply, delays, ..SimConfig::default() }
    }

    fn speech(ms: usize, transcript: &str) -> Said {
        Said::Audio { audio: vec![1; ms * 48].into(), transcript: transcript.into() }
    }

    fn timetable(said: &[Said], max_tokens: u64, reply: Reply) -> (Vec<(u128, String)>, bool) {
        let mut dice = Dice::new(1, 1);
        let script = write(said, Format::PCM_24K, max_tokens, &config(reply), &mut dice, Duration::from_millis(1_000));
        let steps = script.steps.into_iter().map(|(at, step)| {
            let what = match step {
                Step::Created => "created".into(),
                Step::Open(n) => format!("open {n}"),
                Step::Words(n, words) => format!("words {n} {words:?}"),
                Step::Audio(n, bytes) => format!("audio {n} {} ms", bytes.len() / 48),
                Step::Close(n) => format!("close {n}"),
                Step::Done => "done".into(),
            };
            (at.as_millis(), what)
        });
        (steps.collect(), script.cut)
    }

    #[test]
    fn a_reply_is_paced_and_exact() {
        let (steps, cut) = timetable(&[speech(450, "I heard it.")], 4_096, Reply::default());
        let want = [
            (1_020, "created"),
            (1_120, "open 0"),
            (1_220, "words 0 \"I \""),
            (1_220, "audio 0 200 ms"),
            (1_270, "words 0 \"heard \""),
            (1_270, "audio 0 200 ms"),
            (1_320, "words 0 \"it.\""),
            (1_320, "audio 0 50 ms"),
            (1_320, "close 0"),
            (1_320, "done"),
        ];
        assert_eq!(steps, want.map(|(at, what)| (at, what.to_owned())));
        assert!(!cut);
    }

    #[test]
    fn a_late_done_comes_after_the_next_items_first_delta() {
        let two = [speech(400, "a"), speech(400, "b")];
        let (steps, _) = timetable(&two, 4_096, Reply { late_done_ms: 30, ..Reply::default() });
        let names: Vec<&str> =
            steps.iter().map(|(_, what)| what.as_str()).filter(|w| !w.starts_with("words")).collect();
        let want = [
            "created",
            "open 0",
            "audio 0 200 ms",
            "audio 0 200 ms",
            "open 1",
            "audio 1 200 ms",
            "close 0",
            "audio 1 200 ms",
            "close 1",
            "done",
        ];
        assert_eq!(names, want);
    }

    #[test]
    fn a_reply_ends_where_its_tokens_do() {
        // 11 characters are 3 tokens, 450 ms of audio are 9.
        let (_, cut) = timetable(&[speech(450, "I heard it.")], 12, Reply::default());
        assert!(!cut);
        let (steps, cut) = timetable(&[speech(450, "I heard it.")], 9, Reply::default());
        assert!(cut);
        let ms: usize = steps
            .iter()
            .filter_map(|(_, w)| w.strip_prefix("audio 0 ")?.strip_suffix(" ms")?.parse::<usize>().ok())
            .sum();
        assert_eq!(ms, 350, "7 tokens of audio after 2 of text: {steps:?}");
        assert_eq!(steps.iter().rev().take(2).map(|(_, w)| w.as_str()).collect::<Vec<_>>(), ["done", "close 0"]);
    }

    #[test]
    fn text_and_arguments_come_in_words() {
        let said =
            [Said::Text("one two".into()), Said::Call { name: "f".into(), arguments: "{\"city\":\"Paris\"}".into() }];
        let (steps, _) = timetable(&said, 4_096, Reply::default());
        let words: Vec<&(u128, String)> = steps.iter().filter(|(_, what)| what.starts_with("words")).collect();
        assert_eq!(words.len(), 4);
        assert_eq!(words[0], &(1_220, "words 0 \"one \"".into()));
        assert_eq!(words[1], &(1_240, "words 0 \"two\"".into()));
        assert_eq!(words[2], &(1_260, "words 1 \"{\\\"city\\\":\\\"Par\"".into()));
    }

    #[test]
    fn at_no_speed_everything_comes_at_once() {
        let (steps, _) = timetable(&[speech(60_000, "x")], 4_096, Reply { speed: 0.0, ..Reply::default() });
        assert!(steps.iter().skip(2).all(|(at, _)| *at == 1_220), "{steps:?}");
    }
}
