//! The caller's side of a turn: audio on its way upstream, and where on the clock it stands.
//!
//! Gathers chunks, fills a turn that is too short, ends speech that breaks off, and knows which moment of the call a
//! position of the service belongs to. Replies are none of its business.
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{At, ms};
use crate::audio::{Format, chunk::Chunker};

/// The service refuses a commit of less (realtime-protocol section 5).
const MIN_COMMIT: Duration = Duration::from_millis(100);
/// A pause after which audio counts as new and is sent without gathering.
const SILENCE: Duration = Duration::from_millis(200);
/// Speech without any audio for so long has broken off: telephones and muted microphones stop sending.
const BROKEN_OFF: Duration = Duration::from_millis(750);
/// Silence that is inserted on top of what ends a turn.
const INSERT_MARGIN: Duration = Duration::from_millis(300);
/// Tries to end speech by silence; a service that hears none of them is not waiting for silence.
const MAX_INSERTS: u32 = 4;

/// Inserted silence, which the client's clock does not count.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Inserted {
    /// Where it stands in all audio written upstream.
    at: Duration,
    length: Duration,
}

/// The moments of a turn that its reply's latencies count from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marks {
    /// End of speech, `commit` or `text`.
    pub end: Option<At>,
    /// The service has it.
    pub committed: Option<At>,
}

/// The caller's side.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Turn {
    format: Format,
    auto: bool,
    silence: Duration,
    ends_speech: Duration,
    chunk_length: Duration,
    chunker: Chunker,
    ready: Vec<Bytes>,
    /// When the gathered audio must go, full or not.
    flush_at: Option<At>,
    last_audio: Option<At>,
    /// Bytes handed out and gathered since the call began.
    written: u64,
    /// Of those, bytes since the last turn.
    in_turn: u64,
    inserted: Vec<Inserted>,
    inserts: u32,
    speaking: bool,
    marks: Marks,
}

impl Turn {
    /// Audio of `format` in chunks of `chunk`. `auto`: the service finds the turns, after so much `silence`, and in any
    /// case after what `ends_speech`.
    pub fn new(format: Format, chunk: Duration, auto: bool, silence: Duration, ends_speech: Duration) -> Self {
        Self {
            format,
            auto,
            silence,
            ends_speech,
            chunk_length: chunk,
            chunker: Chunker::new(format, chunk),
            ready: Vec::new(),
            flush_at: None,
            last_audio: None,
            written: 0,
            in_turn: 0,
            inserted: Vec::new(),
            inserts: 0,
            speaking: false,
            marks: Marks::default(),
        }
    }

    /// The caller's audio, in the upstream format.
    pub fn audio(&mut self, now: At, audio: &[u8]) {
        let after_silence = self.last_audio.is_none_or(|at| now.saturating_sub(at) >= SILENCE);
        self.last_audio = Some(now);
        self.inserts = 0;
        self.gather(now, audio);
        if after_silence {
            self.flush();
        }
    }

    /// So much audio, in bytes, went by on its own.
    pub fn passed(&mut self, now: At, len: usize) {
        self.last_audio = Some(now);
        self.written += len as u64;
    }

    /// The service listens otherwise from now on: positions go on in milliseconds.
    pub fn listens(&mut self, format: Format, silence: Duration) {
        if format != self.format {
            self.written = format.bytes(self.written_length()) as u64;
            self.format = format;
        }
        self.silence = silence;
    }

    /// An answer was asked for: if nothing was said before it, this is where the turn ends.
    pub fn asked(&mut self, now: At) {
        self.marks.end.get_or_insert(now);
    }

    /// The turn was ended by hand, by a `commit` or by a text.
    pub fn ended(&mut self, now: At) {
        self.marks = Marks { end: Some(now), committed: None };
    }

    fn gather(&mut self, now: At, audio: &[u8]) {
        if audio.is_empty() {
            return;
        }
        self.written += audio.len() as u64;
        self.in_turn += audio.len() as u64;
        self.chunker.push(audio);
        while let Some(chunk) = self.chunker.whole() {
            self.ready.push(chunk);
            self.flush_at = None;
        }
        if !self.chunker.is_empty() {
            // Later than the next look at the client's socket, which comes when the chunk should be whole.
            self.flush_at.get_or_insert(now + self.chunk_length * 3 / 2);
        }
    }

    /// Sends what is gathered, without waiting for a whole chunk.
    pub fn flush(&mut self) {
        while let Some(chunk) = self.chunker.rest() {
            self.ready.push(chunk);
        }
        self.flush_at = None;
    }

    /// Chunks that are ready to go.
    pub fn take_ready(&mut self) -> impl Iterator<Item = Bytes> + use<'_> {
        self.ready.drain(..)
    }

    /// Manual turns: the turn is complete. `false`: there is none.
    pub fn commit(&mut self, now: At) -> bool {
        if self.in_turn == 0 {
            return false;
        }
        let least = self.format.bytes(MIN_COMMIT) as u64;
        if let Some(missing) = least.checked_sub(self.in_turn).filter(|n| *n > 0) {
            let silence = vec![self.format.silence(); usize::try_from(missing).unwrap_or(0)];
            self.insert(now, &silence);
        }
        self.flush();
        self.in_turn = 0;
        self.last_audio = None;
        self.ended(now);
        true
    }

    /// Manual turns: forget the audio since the last turn.
    pub fn discard(&mut self) {
        self.chunker.clear();
        self.ready.clear();
        self.flush_at = None;
        self.in_turn = 0;
        self.last_audio = None;
    }

    /// The service heard speech begin; returns where on the client's clock, ms.
    pub fn speech_started(&mut self, at_ms: u64) -> u64 {
        self.speaking = true;
        self.inserts = 0;
        self.client_ms(at_ms)
    }

    /// The service heard it end; returns where on the client's clock, ms. Its position includes the silence that it waited
    /// for.
    pub fn speech_stopped(&mut self, now: At, at_ms: u64) -> u64 {
        self.speaking = false;
        let position = Duration::from_millis(at_ms);
        let behind = self.written_length().saturating_sub(position);
        // Audio comes in real time: a position behind the newest audio was written so much earlier.
        self.marks = Marks { end: Some(now.saturating_sub(behind + self.silence)), committed: None };
        self.client_ms(at_ms)
    }

    /// The service has the turn.
    pub fn committed(&mut self, now: At) {
        self.marks.committed = Some(now);
        if self.auto {
            self.in_turn = 0;
        }
    }

    /// The moments of the turn that is answered now; they belong to one reply only.
    pub fn take_marks(&mut self) -> Marks {
        std::mem::take(&mut self.marks)
    }

    /// The caller speaks, as far as the service has said.
    pub fn speaking(&self) -> bool {
        self.speaking
    }

    fn written_length(&self) -> Duration {
        self.format.duration(usize::try_from(self.written).unwrap_or(usize::MAX))
    }

    /// A position in all audio written, on the clock of the client, who knows nothing of inserted silence.
    fn client_ms(&self, at_ms: u64) -> u64 {
        let at = Duration::from_millis(at_ms);
        let before = self.inserted.iter().filter(|i| i.at < at).map(|i| i.length.min(at - i.at)).sum();
        ms(at.saturating_sub(before))
    }

    fn insert(&mut self, now: At, silence: &[u8]) {
        let inserted = Inserted { at: self.written_length(), length: self.format.duration(silence.len()) };
        match self.inserted.last_mut() {
            Some(last) if last.at + last.length == inserted.at => last.length += inserted.length,
            _ => self.inserted.push(inserted),
        }
        self.gather(now, silence);
    }

    /// When to call [`Self::tick`].
    pub fn deadline(&self) -> Option<At> {
        [self.flush_at, self.breaks_off_at()].into_iter().flatten().min()
    }

    fn breaks_off_at(&self) -> Option<At> {
        let waits = self.auto && self.speaking && self.inserts < MAX_INSERTS;
        waits.then_some(self.last_audio?).map(|at| at + BROKEN_OFF * (self.inserts + 1))
    }

    /// Sends what has waited long enough, and ends speech that broke off.
    pub fn tick(&mut self, now: At) {
        if self.flush_at.is_some_and(|at| now >= at) {
            self.flush();
        }
        if self.breaks_off_at().is_some_and(|at| now >= at) {
            self.inserts += 1;
            let silence = vec![self.format.silence(); self.format.bytes(self.ends_speech + INSERT_MARGIN)];
            self.insert(now, &silence);
            self.flush();
        }
    }

    /// Audio until the next whole chunk; none gathered: a whole one.
    pub fn until_chunk(&self) -> Duration {
        self.chunk_length.saturating_sub(self.format.duration(self.chunker.len()))
    }

    /// Gives buffers back.
    pub fn shrink(&mut self) {
        self.chunker.shrink();
        self.ready.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const FRAME: [u8; 960] = [7; 960];

    fn turn(auto: bool) -> Turn {
        Turn::new(Format::PCM_24K, 100 * MS, auto, 500 * MS, 500 * MS)
    }

    fn lengths(turn: &mut Turn) -> Vec<usize> {
        turn.take_ready().map(|c| c.len()).collect()
    }

    #[test]
    fn the_first_audio_after_silence_does_not_wait_and_the_rest_gathers() {
        let mut turn = turn(true);
        turn.audio(Duration::ZERO, &FRAME);
        assert_eq!(lengths(&mut turn), [960]);
        for n in 1..=5 {
            assert_eq!(lengths(&mut turn), [0usize; 0]);
            turn.audio(20 * n * MS, &FRAME);
        }
        assert_eq!(lengths(&mut turn), [4_800]);
        turn.audio(120 * MS, &FRAME);
        assert_eq!(turn.deadline(), Some(270 * MS), "a client that stops must not keep what it sent");
        turn.tick(270 * MS);
        assert_eq!(lengths(&mut turn), [960]);
        turn.audio(420 * MS, &FRAME);
        assert_eq!(lengths(&mut turn), [960], "first after silence again");
    }

    #[test]
    fn a_short_turn_is_filled_and_an_empty_one_refused() {
        let mut turn = turn(false);
        assert!(!turn.commit(Duration::ZERO));
        turn.audio(Duration::ZERO, &FRAME);
        assert!(turn.commit(30 * MS));
        assert_eq!(lengths(&mut turn).iter().sum::<usize>(), 4_800);
        assert_eq!(turn.take_marks().end, Some(30 * MS));
        assert!(!turn.commit(40 * MS), "nothing new");
    }

    #[test]
    fn speech_that_breaks_off_is_ended_by_silence_that_at_ms_does_not_count() {
        let mut turn = turn(true);
        for n in 0..50u32 {
            turn.audio(20 * n * MS, &FRAME);
        }
        assert_eq!(turn.speech_started(200), 200);
        turn.tick(1_070 * MS);
        let _ = lengths(&mut turn);
        assert_eq!(turn.deadline(), Some((980 + 750) * MS));
        turn.tick(1_730 * MS);
        assert_eq!(lengths(&mut turn).iter().sum::<usize>(), 48 * 800, "500 ms and a margin");
        // The service hears the end 500 ms into the inserted silence, at 1,500 ms of all audio.
        assert_eq!(turn.speech_stopped(1_740 * MS, 1_500), 1_000);
        assert_eq!(turn.deadline(), None);
    }

    #[test]
    fn the_end_of_speech_is_found_on_the_clock() {
        let mut turn = turn(true);
        for n in 0..100u32 {
            turn.audio(20 * n * MS, &FRAME);
        }
        turn.speech_started(0);
        turn.speech_stopped(2_010 * MS, 1_900);
        turn.committed(2_011 * MS);
        let marks = turn.take_marks();
        assert_eq!(marks.end, Some((2_010 - 100 - 500) * MS), "100 ms behind the newest audio, 500 ms of it silence");
        assert_eq!(marks.committed, Some(2_011 * MS));
        assert_eq!(turn.take_marks(), Marks::default());
    }
}
