//! What is "said" in a recording: words that depend on the sound around them and on nothing else. Pure.
//!
//! There is no model here. The sound is cut where it is quiet, and long stretches at their softest moments; each piece gives
//! one word, chosen by how long, how loud and how high it is. So the same sound is the same word wherever in a file it
//! stands: a file cut at its silences gives the words of the whole, and what two pieces have in common is said twice. After a
//! cut through the middle of a word, the words fall into step again at the next pause. Another rate or a lossy codec
//! changes a word here and there, since what is measured is rounded.

/// The rate at which the sound is looked at, about, Hz.
const RATE: u32 = 8_000;
/// What is quieter than this is silence, of 32,768.
const QUIET: u64 = 150;
/// Sounds shorter than this are no words, ms.
const SHORTEST_MS: usize = 60;
/// A long stretch is cut at its softest moment between these, ms.
const CUT_MS: (usize, usize) = (250, 550);
/// How far around a moment its loudness is taken, ms.
const AROUND_MS: usize = 40;
/// A longer silence begins a new sentence, ms.
const PAUSE_MS: u64 = 400;
/// Most words of a sentence.
const SENTENCE: usize = 12;

/// The vocabulary: what the measurements choose from.
const WORDS: [&str; 128] = [
    "able", "about", "account", "address", "after", "again", "agent", "answer", "april", "arrive", "autumn", "bag",
    "basket", "before", "bicycle", "bill", "black", "blue", "book", "bottle", "bread", "bridge", "bring", "broken",
    "brother", "call", "candle", "car", "card", "carry", "chair", "change", "city", "clear", "clock", "cloud",
    "coffee", "cold", "copper", "corner", "credit", "daughter", "deliver", "desk", "dinner", "doctor", "door", "early",
    "east", "eight", "email", "engine", "evening", "family", "field", "fifty", "floor", "flower", "friday", "garden",
    "glass", "green", "harbour", "heavy", "help", "hotel", "house", "hundred", "invoice", "island", "june", "key",
    "kitchen", "ladder", "lamp", "later", "letter", "little", "lunch", "market", "meeting", "melon", "minute",
    "monday", "money", "morning", "mountain", "music", "nine", "north", "number", "office", "orange", "order", "paper",
    "parcel", "patient", "payment", "pencil", "people", "phone", "picture", "pilot", "please", "policy", "question",
    "quiet", "rain", "refund", "return", "river", "school", "seven", "silver", "sister", "snow", "station", "street",
    "sugar", "summer", "table", "ticket", "train", "travel", "water", "window", "winter", "yellow",
];

/// A word and where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::sim) struct Word {
    pub(super) text: &'static str,
    /// From the recording's start, ms.
    pub(super) start_ms: u64,
    pub(super) end_ms: u64,
}

/// The words of a recording.
pub(in crate::sim) fn words(samples: &[i16], rate: u32) -> Vec<Word> {
    let step = (rate / RATE).max(1) as usize;
    let slow: Vec<i64> = samples.chunks(step).map(mean).collect();
    let rate = (rate as usize / step).max(1);
    let loud = loudness(&slow, rate * AROUND_MS / 1_000);
    let mut words = Vec::new();
    let mut at = 0;
    while let Some(began) = position(&loud, at, |level| level >= QUIET) {
        let ended = position(&loud, began, |level| level < QUIET).unwrap_or(loud.len());
        at = ended;
        stretch(&slow, &loud, (began, ended), rate, &mut words);
    }
    words
}

/// The words as one text.
pub(in crate::sim) fn text(words: &[Word]) -> String {
    words.iter().map(|word| word.text).collect::<Vec<_>>().join(" ")
}

/// Words in groups, as subtitles have them: parted where there is a pause, or where there are too many.
pub(super) fn sentences(words: &[Word]) -> Vec<&[Word]> {
    let mut sentences = Vec::new();
    for part in words.chunk_by(|one, next| next.start_ms.saturating_sub(one.end_ms) < PAUSE_MS) {
        sentences.extend(part.chunks(SENTENCE));
    }
    sentences
}

fn mean(piece: &[i16]) -> i64 {
    piece.iter().map(|sample| i64::from(*sample)).sum::<i64>() / (piece.len().max(1) as i64)
}

fn position(loud: &[u64], from: usize, is: impl Fn(u64) -> bool) -> Option<usize> {
    Some(from + loud.get(from..)?.iter().position(|level| is(*level))?)
}

/// The mean of what is around each sample, `around` of them.
fn loudness(samples: &[i64], around: usize) -> Vec<u64> {
    let half = (around / 2).max(1);
    let size = |at: usize| samples.get(at).map_or(0, |sample| sample.unsigned_abs());
    let mut sum: u64 = (0..half).map(size).sum();
    let levels = (0..samples.len()).map(|at| {
        let level = sum / (2 * half as u64);
        sum = sum + size(at + half) - at.checked_sub(half).map_or(0, size);
        level
    });
    levels.collect()
}

/// One stretch of sound, cut into words.
fn stretch(slow: &[i64], loud: &[u64], (mut began, ended): (usize, usize), rate: usize, words: &mut Vec<Word>) {
    let samples = |ms: usize| rate * ms / 1_000;
    while ended - began >= samples(SHORTEST_MS) {
        let (soonest, latest) = (began + samples(CUT_MS.0), began + samples(CUT_MS.1));
        let cut = match loud.get(soonest..latest.min(ended)).filter(|_| latest < ended) {
            Some(window) => {
                let softest = window.iter().enumerate().min_by_key(|(_, level)| **level);
                soonest + softest.map_or(0, |(at, _)| at)
            }
            None => ended,
        };
        let ms = |at: usize| (at * 1_000 / rate) as u64;
        if let Some(sound) = slow.get(began..cut) {
            words.push(Word { text: word(sound, rate), start_ms: ms(began), end_ms: ms(cut) });
        }
        began = cut;
    }
}

/// The word for a sound.
fn word(sound: &[i64], rate: usize) -> &'static str {
    let length = sound.len() * 1_000 / rate / 50;
    let level = decibels(sound.iter().map(|sample| sample.unsigned_abs()).sum::<u64>() / sound.len().max(1) as u64);
    // How high it is: how often it passes zero, in a millisecond's mean.
    let window = (rate / 1_000).max(1);
    let smooth: Vec<bool> = sound.windows(window).map(|piece| piece.iter().sum::<i64>() >= 0).collect();
    let crossings = smooth.windows(2).filter(|pair| pair.first() != pair.last()).count();
    let pitch = decibels((crossings * rate / sound.len().max(1)) as u64) / 2;
    let mixed = [length as u64, level, pitch]
        .iter()
        .fold(0xCBF2_9CE4_8422_2325_u64, |hash, part| (hash ^ part).wrapping_mul(0x0100_0000_01B3).rotate_left(23));
    WORDS.get((mixed >> 20) as usize % WORDS.len()).copied().unwrap_or_default()
}

/// Steps of about two decibels.
fn decibels(level: u64) -> u64 {
    let mut steps = 0;
    let mut left = level;
    while left > 1 {
        left = left * 4 / 5;
        steps += 1;
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audio::decode::decode_file;

    fn hello() -> Vec<i16> {
        decode_file("assets/hello.wav", 24_000).unwrap().samples
    }

    fn of(samples: &[i16]) -> Vec<&'static str> {
        words(samples, 24_000).iter().map(|word| word.text).collect()
    }

    #[test]
    fn speech_has_words_in_order_and_silence_has_none() {
        let found = words(&hello(), 24_000);
        assert!((6..=20).contains(&found.len()), "{found:?}");
        assert!(found.iter().all(|word| word.start_ms < word.end_ms));
        assert!(found.windows(2).all(|pair| pair[0].end_ms <= pair[1].start_ms), "{found:?}");
        let distinct: std::collections::BTreeSet<_> = found.iter().map(|word| word.text).collect();
        assert!(distinct.len() * 2 > found.len(), "{found:?}");
        assert_eq!(words(&[0; 24_000], 24_000), []);
        assert_eq!((words(&[], 24_000), words(&[9], 0)), (vec![], vec![]));
    }

    #[test]
    fn the_same_sound_is_the_same_words_wherever_it_stands() {
        let (speech, second) = (hello(), vec![0; 24_000]);
        let once = of(&speech);
        let twice = [speech.as_slice(), &second, &speech].concat();
        assert_eq!(of(&twice), [once.clone(), once.clone()].concat());
        let late = [&second[..777 * 24], speech.as_slice()].concat();
        assert_eq!(of(&late), once);
        let found = words(&speech, 24_000);
        assert_eq!(words(&late, 24_000)[0].start_ms, found[0].start_ms + 777);
    }

    #[test]
    fn pieces_cut_at_a_silence_give_the_words_of_the_whole_and_what_is_in_both_is_said_twice() {
        let speech = hello();
        let found = words(&speech, 24_000);
        let (gap, _) = found.windows(2).enumerate().max_by_key(|(_, pair)| pair[1].start_ms - pair[0].end_ms).unwrap();
        let at = |ms: u64| usize::try_from(ms * 24).unwrap();
        let middle = at((found[gap].end_ms + found[gap + 1].start_ms) / 2);
        let pieces = [of(&speech[..middle]), of(&speech[middle..])].concat();
        assert_eq!(pieces, of(&speech));
        // Through the middle of the word before the pause: from the pause on they are in step.
        let again = of(&speech[at((found[gap].start_ms + found[gap].end_ms) / 2)..]);
        assert!(again.ends_with(&of(&speech)[gap + 1..]), "what the pieces overlap in is in both: {again:?}");
    }

    #[test]
    fn another_rate_changes_few_words() {
        let (whole, other) = (of(&hello()), decode_file("assets/hello.wav", 16_000).unwrap().samples);
        let other: Vec<_> = words(&other, 16_000).iter().map(|word| word.text).collect();
        let same = whole.iter().filter(|word| other.contains(word)).count();
        assert!(same * 3 >= whole.len() * 2, "{whole:?} {other:?}");
    }

    #[test]
    fn sentences_end_at_pauses_and_are_not_long() {
        let word = |n: u64| Word { text: "x", start_ms: n * 500, end_ms: n * 500 + 300 };
        let mut many: Vec<Word> = (0..15).map(word).collect();
        many.push(word(16));
        assert_eq!(sentences(&many).iter().map(|part| part.len()).collect::<Vec<_>>(), [12, 3, 1]);
    }
}
