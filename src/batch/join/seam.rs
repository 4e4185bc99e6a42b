//! Where two pieces heard the same: which words of the one's end and of the other's beginning are the same ones.
use super::{
    Part, Segment, Tail, Transcript,
    words::{Word, Words},
};

/// Words that can be said in a second; fast talk has four or five.
const FASTEST: f64 = 7.0;
/// The same in scripts where every letter counts as a word.
const FASTEST_LETTERS: f64 = 12.0;
/// Words on either side that the cut may have broken: what stands there was half heard.
const BROKEN: usize = 1;

/// What is to be taken away where two texts meet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Seam {
    /// Words from the first one's end.
    end: usize,
    /// Words from the second one's beginning. The first one's have the better context: the second's begin in mid-speech.
    start: usize,
    /// The words before the one place are those before the other.
    same: bool,
}

impl Seam {
    /// Looks for what was heard twice: by the words, else by the times.
    pub(super) fn find(before: &str, seen: &[Segment], text: &str, segments: &[Segment], part: &Part) -> Self {
        let (ending, beginning) = (Words::of(before), Words::of(text));
        let most = most(part.overlap.as_secs_f64(), &beginning);
        Self::by_words(&ending, &beginning, most)
            .or_else(|| Self::by_time(seen, segments, part, most))
            .unwrap_or_default()
    }

    /// The longest run of words that ends the first text and begins the second; a broken word may stand outside of it.
    fn by_words(ending: &Words, beginning: &Words, most: usize) -> Option<Self> {
        let (ending, beginning) = (ending.as_slice(), beginning.as_slice());
        let mut best: Option<(usize, Self)> = None;
        for end in 0..=BROKEN {
            for start in 0..=BROKEN {
                // A single word beside a broken one is too little to go by.
                let least = if end + start == 0 { 1 } else { 2 };
                let longest = (most.saturating_sub(end)).min(most.saturating_sub(start));
                let run = (least..=longest).rev().find(|run| {
                    let last = ending.len().checked_sub(end + run).and_then(|from| ending.get(from..from + run));
                    let first = beginning.get(start..start + run);
                    last.zip(first).is_some_and(|(last, first)| {
                        last.iter().zip(first).all(|(last, first)| last.plain == first.plain)
                    })
                });
                if let Some(run) = run.filter(|run| best.is_none_or(|(longest, _)| *run > longest)) {
                    best = Some((run, Self { end, start: start + run, same: true }));
                }
            }
        }
        best.map(|(_, seam)| seam)
    }

    /// Whole segments that lie on the other's half of the overlap, where both have times of their own.
    fn by_time(seen: &[Segment], segments: &[Segment], part: &Part, most: usize) -> Option<Self> {
        if seen.iter().chain(segments).any(|segment| segment.estimated) {
            return None;
        }
        let middle = (part.start + part.overlap / 2).as_secs_f64();
        let count = |segment: &Segment| Words::of(&segment.text).len();
        let end = seen.iter().rev().take_while(|segment| segment.start_s >= middle).map(count).sum();
        let start = segments.iter().take_while(|segment| segment.end_s <= middle).map(count).sum();
        (end <= most && start <= most).then_some(Self { end, start, same: false })
    }

    /// Takes the first one's words off. Where the words are the same, the punctuation is that of the second, which knows
    /// how the sentence goes on.
    pub(super) fn take_off_end(self, whole: &mut Transcript, tail: &Tail, second: &str) {
        let closing = if self.same { closing(second, self.start) } else { "" };
        let kept = |text: &str, words: usize| {
            let kept = without_end(text, words);
            if self.same { unclosed(kept) } else { kept.len() }
        };
        let text = whole.text.get(tail.text..).unwrap_or_default();
        whole.text.truncate(tail.text + kept(text, self.end));
        whole.text.push_str(closing);
        let mut left = self.end;
        while whole.segments.len() > tail.segment {
            let Some(segment) = whole.segments.last_mut() else { return };
            let words = Words::of(&segment.text).len();
            if words > left {
                segment.text.truncate(kept(&segment.text, left));
                segment.text.push_str(closing);
                return;
            }
            left -= words;
            whole.segments.pop();
        }
    }

    /// Takes the second one's words off.
    pub(super) fn take_off_start<'a>(self, text: &'a str, segments: &mut Vec<Segment>) -> &'a str {
        let mut left = self.start;
        let mut gone = 0;
        for segment in segments.iter_mut() {
            let words = Words::of(&segment.text).len();
            if left == 0 || words > left {
                segment.text = without_start(&segment.text, left).to_owned();
                break;
            }
            left -= words;
            gone += 1;
        }
        segments.drain(..gone);
        without_start(text, self.start)
    }
}

/// So many words can have been said in this time.
fn most(seconds: f64, words: &Words) -> usize {
    let letters = words.as_slice().first().is_some_and(Word::is_letter);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "seconds of an overlap")]
    let words = (seconds * if letters { FASTEST_LETTERS } else { FASTEST }).ceil() as usize;
    words
}

/// A text without its last words, and without the space that was before them.
fn without_end(text: &str, words: usize) -> &str {
    if words == 0 {
        return text;
    }
    let all = Words::of(text);
    let first = all.len().checked_sub(words).and_then(|first| all.as_slice().get(first));
    let kept = text.get(..first.map_or(0, |word| word.place.start)).unwrap_or_default();
    // What opens the word that is gone goes with it.
    kept.trim_end_matches(|c: char| c.is_whitespace() || matches!(c, '"' | '(' | '[' | '“' | '‘' | '«' | '¿' | '¡'))
}

/// Up to the last letter of its last word.
fn unclosed(text: &str) -> usize {
    Words::of(text).as_slice().last().map_or(0, |word| word.place.end)
}

/// A text without its first words, and without what closed them.
fn without_start(text: &str, words: usize) -> &str {
    if words == 0 {
        return text;
    }
    behind(text, words).strip_prefix(closing(text, words)).unwrap_or_default().trim_start()
}

/// The punctuation that closes a text's first words.
fn closing(text: &str, words: usize) -> &str {
    let rest = behind(text, words);
    let end = rest.find(|c: char| c.is_whitespace() || c.is_alphanumeric()).unwrap_or(rest.len());
    rest.get(..end).unwrap_or_default()
}

/// What follows the last letter of a text's first words.
fn behind(text: &str, words: usize) -> &str {
    let all = Words::of(text);
    let last = words.checked_sub(1).and_then(|last| all.as_slice().get(last));
    text.get(last.map_or(text.len(), |word| word.place.end)..).unwrap_or_default()
}
