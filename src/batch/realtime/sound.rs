//! A recording as a session wants it: chunks of 24 kHz, and which of them end a turn.
//!
//! Read as it is asked for, on a thread that may wait; holds seconds of it. A turn goes on for a minute, and then up to its next pause: what
//! a model writes of one turn is bounded (2,000 tokens, realtime-protocol section 5), and what is beyond would be missing without a word.
use std::{path::Path, time::Duration};

use tokio::task::spawn_blocking;

use crate::{
    audio::decode::{DecodeError, Reader},
    batch::{cut::pause, engine::Failure},
};

/// Samples per second: no service takes less (realtime-protocol section 5).
pub(super) const RATE: u32 = 24_000;
const SECOND: usize = RATE as usize;
/// Samples of an append.
const CHUNK: usize = SECOND / 2;
/// Samples that are read at once.
const FILL: usize = 4 * SECOND;
/// Samples of the shortest turn that is taken, 100 ms.
const SHORTEST: usize = SECOND / 10;
/// Samples of a frame whose loudness is taken, 10 ms.
const FRAME: usize = SECOND / 100;
/// Frames after which a turn may end,
const SOONEST: usize = 6_000;
/// after which a shorter pause will do,
const LATE: usize = 10_000;
/// and at which it ends in the middle of a word, if it must.
const LATEST: usize = 12_000;
/// Frames of a pause, and of a breath between words.
const PAUSE: usize = 30;
const BREATH: usize = 10;
/// Frames after which it is judged again what is quiet.
const JUDGED: usize = 500;
/// Where less is left than this, samples, it belongs to the last turn: a model makes up words for half a second of breath.
const LAST: u64 = 10 * SECOND as u64;

/// The next piece of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Chunk {
    pub(super) samples: Vec<i16>,
    /// A turn ends with it, of this length.
    pub(super) ends: Option<Duration>,
}

/// A recording.
pub(super) struct Sound {
    /// None: it is at its end.
    reader: Option<Reader>,
    held: Vec<i16>,
    /// Samples of this turn, and of all before it.
    turn: usize,
    before: u64,
    /// Samples of the whole, as far as it says so.
    about: Option<u64>,
    pauses: Pauses,
}

impl Sound {
    pub(super) async fn open(path: &Path) -> Result<Self, Failure> {
        let path = path.to_owned();
        let reader = on_thread(move || Reader::open(path, RATE)).await.map_err(unreadable)?;
        let about = reader.facts().length.about().map(|length| length.as_millis() * u128::from(RATE) / 1_000);
        let about = about.map(|samples| u64::try_from(samples).unwrap_or(u64::MAX));
        let (reader, held, pauses) = (Some(reader), Vec::new(), Pauses::default());
        Ok(Self { reader, held, turn: 0, before: 0, about, pauses })
    }

    /// The next chunk. Its last one ends a turn.
    pub(super) async fn next(&mut self) -> Result<Option<Chunk>, Failure> {
        // One more than a chunk, so that the last one is known as such.
        if self.held.len() <= CHUNK {
            self.fill().await?;
        }
        let all = self.held.len().min(CHUNK);
        if all == 0 {
            return Ok(None);
        }
        let pause = if self.goes_on() { self.pauses.find(self.held.get(..all).unwrap_or_default()) } else { None };
        let mut samples: Vec<i16> = self.held.drain(..pause.unwrap_or(all)).collect();
        self.turn += samples.len();
        let last = self.held.is_empty() && self.reader.is_none();
        if pause.is_none() && !last {
            return Ok(Some(Chunk { samples, ends: None }));
        }
        samples.extend(std::iter::repeat_n(0, SHORTEST.saturating_sub(self.turn)));
        let turn = std::mem::take(&mut self.turn) as u64;
        self.before += turn;
        Ok(Some(Chunk { samples, ends: Some(Duration::from_millis(turn * 1_000 / u64::from(RATE))) }))
    }

    /// Whether what is left is worth a turn of its own. Past its own word for its length, nobody knows.
    fn goes_on(&self) -> bool {
        let left = self.about.map(|about| about.saturating_sub(self.before + self.turn as u64));
        !left.is_some_and(|left| (1..=LAST).contains(&left))
    }

    async fn fill(&mut self) -> Result<(), Failure> {
        let Some(mut reader) = self.reader.take() else { return Ok(()) };
        let mut held = std::mem::take(&mut self.held);
        let (reader, held) = on_thread(move || {
            while held.len() < FILL {
                if !reader.read(&mut held)? {
                    return Ok((None, held));
                }
            }
            Ok((Some(reader), held))
        })
        .await
        .map_err(unreadable)?;
        (self.reader, self.held) = (reader, held);
        Ok(())
    }
}

async fn on_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match spawn_blocking(work).await {
        Ok(done) => done,
        Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "as `map_err` hands it over")]
fn unreadable(error: DecodeError) -> Failure {
    Failure::Item { code: error.code().to_owned(), message: error.to_string() }
}

/// Finds where a turn ends, by its loudness alone.
#[derive(Debug, Default)]
struct Pauses {
    /// Mean squares of this turn's frames.
    loudness: Vec<f64>,
    /// The frame that is not whole: the sum of its squares, and its samples.
    part: (i64, usize),
    /// What is at most so loud is quiet.
    limit: f64,
    /// Quiet frames in a row.
    quiet: usize,
}

impl Pauses {
    /// After how many of these samples the turn ends, if it does; the next one has begun then.
    fn find(&mut self, samples: &[i16]) -> Option<usize> {
        for (at, sample) in samples.iter().enumerate() {
            let (sum, count) = self.part;
            self.part = (sum + i64::from(*sample).pow(2), count + 1);
            if count + 1 == FRAME {
                let loudness = self.part.0 as f64 / FRAME as f64;
                self.part = (0, 0);
                if self.frame(loudness) {
                    *self = Self::default();
                    return Some(at + 1);
                }
            }
        }
        None
    }

    fn frame(&mut self, loudness: f64) -> bool {
        self.loudness.push(loudness);
        let frames = self.loudness.len();
        if frames < SOONEST {
            return false;
        }
        if frames.is_multiple_of(JUDGED) {
            self.limit = pause::quiet(&self.loudness).unwrap_or_default();
        }
        self.quiet = if loudness <= self.limit { self.quiet + 1 } else { 0 };
        self.quiet >= if frames < LATE { PAUSE } else { BREATH } || frames >= LATEST
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECONDS: usize = 100;

    /// Frames of speech and, where it says so, of silence, up to the first end of a turn.
    fn ends_at(quiet: impl Fn(usize) -> bool) -> Option<usize> {
        let mut pauses = Pauses::default();
        (0..20_000).find(|frame| pauses.frame(if quiet(*frame) { 0.0 } else { 1e6 })).map(|frame| frame + 1)
    }

    #[test]
    fn a_turn_ends_in_the_first_pause_after_a_minute() {
        for (name, quiet, want) in [
            ("pauses all along", (|frame| frame % 500 < 50) as fn(usize) -> bool, 60 * SECONDS + 30),
            ("the only one", |frame| (7_000..7_040).contains(&frame), 7_030),
            ("too short for a pause, later not for a breath", |frame| frame % 1_000 < 15, 100 * SECONDS + 10),
            ("nobody stops", |_| false, 120 * SECONDS),
        ] {
            assert_eq!(ends_at(quiet), Some(want), "{name}");
        }
    }

    #[test]
    fn frames_go_on_from_one_chunk_to_the_next() {
        let silence = vec![0; 61 * SECOND];
        for size in [7, 240, 12_000, 100_000] {
            let mut pauses = Pauses::default();
            let mut far = 0;
            let found = silence.chunks(size).find_map(|chunk| {
                let found = pauses.find(chunk).map(|at| far + at);
                far += chunk.len();
                found
            });
            assert_eq!(found, Some((SOONEST + PAUSE - 1) * FRAME), "{size}");
        }
    }

    /// A file of bursts of noise, half a second each with as much silence between them.
    fn spoken(length: usize) -> tempfile::NamedTempFile {
        super::super::tests::wav(length, |at| if at % SECOND < SECOND / 2 { 8_000 } else { 0 })
    }

    async fn chunks(file: &Path) -> Vec<Chunk> {
        let mut sound = Sound::open(file).await.unwrap();
        let mut all = Vec::new();
        while let Some(chunk) = sound.next().await.unwrap() {
            all.push(chunk);
        }
        all
    }

    #[tokio::test]
    async fn all_of_a_file_comes_in_turns() {
        for (seconds, turns) in [(3, 1), (65, 1), (75, 2), (150, 3)] {
            let file = spoken(seconds * SECOND + 77);
            let all = chunks(file.path()).await;
            let samples: Vec<i16> = all.iter().flat_map(|chunk| chunk.samples.clone()).collect();
            let want = crate::audio::decode::decode_file(file.path(), RATE).unwrap().samples;
            assert!(samples == want, "{seconds} s: {} samples of {}", samples.len(), want.len());
            assert!(all.iter().all(|chunk| chunk.samples.len() <= CHUNK));
            let lengths: Vec<_> = all.iter().filter_map(|chunk| chunk.ends).collect();
            assert_eq!(lengths.len(), turns, "{seconds} s: {lengths:?}");
            assert!(lengths.iter().sum::<Duration>().abs_diff(Duration::from_secs(seconds as u64)).as_millis() < 5);
            assert!(all.last().is_some_and(|chunk| chunk.ends.is_some()));
        }
    }

    #[tokio::test]
    async fn a_moment_is_made_long_enough() {
        let file = spoken(SECOND / 20);
        let all = chunks(file.path()).await;
        let [Chunk { samples, ends: Some(length) }] = &all[..] else { panic!("{all:?}") };
        assert_eq!((samples.len(), length.as_millis()), (SHORTEST, 50));
    }

    #[tokio::test]
    async fn what_cannot_be_read_says_so() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let Err(Failure::Item { code, message }) = Sound::open(file.path()).await.map(drop) else { panic!() };
        assert_eq!(code, "empty");
        assert!(message.contains("0 bytes"), "{message}");
    }
}
