//! The caller's side of a turn: audio on its way upstream, and where on the clock it stands.
//!
//! Gathers chunks, fills a turn that is too short, ends speech that breaks off, and knows which moment of the call a
//! position of the service belongs to, and which audio is a turn. Replies are none of its business.
use std::{collections::VecDeque, time::Duration};

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

/// Inserted silences of which it is known where they stand: more than have any audio beside them that anybody asks for.
const INSERTED: usize = 256;

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
    /// Where the audio begins that is part of no turn yet.
    open: u64,
    /// The speech that the service has heard begin, and perhaps end, and has made no turn of.
    speech: Option<(u64, Option<u64>)>,
    /// Where the running session's first byte stands in all that was written; it may have been told other things before.
    session_begins: i64,
    /// The newest, the oldest first.
    inserted: VecDeque<Inserted>,
    /// Silence that was inserted before those, in all.
    #[serde(default)]
    inserted_before: Duration,
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
            open: 0,
            speech: None,
            session_begins: 0,
            inserted: VecDeque::new(),
            inserted_before: Duration::ZERO,
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
            self.written = format.bytes(self.length(self.written)) as u64;
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

    /// Manual turns: the turn is complete. Returns where it begins and ends; `None`: there is none.
    pub fn commit(&mut self, now: At) -> Option<(u64, u64)> {
        if self.in_turn == 0 {
            return None;
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
        Some((std::mem::replace(&mut self.open, self.written), self.written))
    }

    /// Manual turns: forget the audio since the last turn.
    pub fn discard(&mut self) {
        let gathered = self.chunker.len() + self.ready.iter().map(Bytes::len).sum::<usize>();
        self.written -= gathered as u64;
        self.open = self.written;
        self.chunker.clear();
        self.ready.clear();
        self.flush_at = None;
        self.in_turn = 0;
        self.last_audio = None;
    }

    /// The service heard speech begin; returns where on the client's clock, ms; `None`: it was known, from an earlier session.
    pub fn speech_started(&mut self, at_ms: u64) -> Option<u64> {
        self.inserts = 0;
        if std::mem::replace(&mut self.speaking, true) {
            return None;
        }
        let at = self.position(at_ms);
        self.speech = Some((at.max(self.open), None));
        Some(self.client_ms(at))
    }

    /// The service heard it end; returns where on the client's clock, ms. Its position includes the silence that it waited
    /// for.
    pub fn speech_stopped(&mut self, now: At, at_ms: u64) -> u64 {
        self.speaking = false;
        let at = self.position(at_ms);
        let (from, _) = self.speech.unwrap_or((self.open, None));
        self.speech = Some((from, Some(at.clamp(from, self.written.max(from)))));
        let behind = self.length(self.written.saturating_sub(at));
        // Audio comes in real time: a position behind the newest audio was written so much earlier.
        self.marks = Marks { end: Some(now.saturating_sub(behind + self.silence)), committed: None };
        self.client_ms(at)
    }

    /// The service has the turn, which was committed by us.
    pub fn committed(&mut self, now: At) {
        self.marks.committed = Some(now);
    }

    /// The service has made a turn by itself; where it begins and ends.
    pub fn found(&mut self, now: At) -> (u64, u64) {
        self.committed(now);
        self.in_turn = 0;
        let (from, to) = self.speech.take().unwrap_or((self.open, None));
        let to = to.unwrap_or(self.written);
        self.open = to.max(self.open);
        (from, to)
    }

    /// The session is lost: the turn that it has heard to its end, and not committed.
    pub fn heard_out(&mut self) -> Option<(u64, u64)> {
        let (from, to) = self.speech?;
        let to = to?;
        (self.speech, self.open, self.in_turn) = (None, to, 0);
        Some((from, to))
    }

    /// All that was written, bytes.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Speech was heard that is part of no turn yet.
    pub fn has_speech(&self) -> bool {
        self.speech.is_some()
    }

    /// What a new session must hear from, if it is part of no turn yet.
    pub fn open(&self) -> u64 {
        self.speech.map_or(self.open, |(from, _)| from)
    }

    /// The audio at this position of all that was written is the running session's byte number `nth`.
    pub fn session_hears(&mut self, position: u64, nth: u64) {
        let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        self.session_begins = signed(position) - signed(nth);
    }

    /// Speech that a new session did not hear is none.
    pub fn never_spoke(&mut self) {
        (self.speaking, self.speech) = (false, None);
    }

    /// The client was away: what it did not send meanwhile is no silence.
    pub fn resumed(&mut self, now: At) {
        self.last_audio = self.last_audio.map(|_| now);
    }

    /// The moments of the turn that is answered now; they belong to one reply only.
    pub fn take_marks(&mut self) -> Marks {
        std::mem::take(&mut self.marks)
    }

    /// The caller speaks, as far as the service has said.
    pub fn speaking(&self) -> bool {
        self.speaking
    }

    fn length(&self, bytes: u64) -> Duration {
        self.format.duration(usize::try_from(bytes).unwrap_or(usize::MAX))
    }

    /// A position of the running session in all audio written, bytes.
    fn position(&self, at_ms: u64) -> u64 {
        let at = i64::try_from(self.format.bytes(Duration::from_millis(at_ms))).unwrap_or(i64::MAX);
        u64::try_from(at.saturating_add(self.session_begins)).unwrap_or(0)
    }

    /// How long audio is from one position to another, ms.
    pub fn length_ms(&self, from: u64, to: u64) -> u64 {
        ms(self.length(to.saturating_sub(from)))
    }

    /// A position in all audio written, on the clock of the client, who knows nothing of inserted silence; ms.
    pub fn client_ms(&self, position: u64) -> u64 {
        let at = self.length(position);
        let before: Duration = self.inserted.iter().filter(|i| i.at < at).map(|i| i.length.min(at - i.at)).sum();
        ms(at.saturating_sub(self.inserted_before + before))
    }

    fn insert(&mut self, now: At, silence: &[u8]) {
        let inserted = Inserted { at: self.length(self.written), length: self.format.duration(silence.len()) };
        match self.inserted.back_mut() {
            Some(last) if last.at + last.length == inserted.at => last.length += inserted.length,
            _ => self.inserted.push_back(inserted),
        }
        if self.inserted.len() > INSERTED {
            self.inserted_before += self.inserted.pop_front().map_or(Duration::ZERO, |oldest| oldest.length);
        }
        self.gather(now, silence);
    }

    /// When to call [`Self::tick`]. `connected`: the client is there; speech of one that is away does not break off.
    pub fn deadline(&self, connected: bool) -> Option<At> {
        [self.flush_at, self.breaks_off_at().filter(|_| connected)].into_iter().flatten().min()
    }

    fn breaks_off_at(&self) -> Option<At> {
        let waits = self.auto && self.speaking && self.inserts < MAX_INSERTS;
        waits.then_some(self.last_audio?).map(|at| at + BROKEN_OFF * (self.inserts + 1))
    }

    /// Sends what has waited long enough, and ends speech that broke off.
    pub fn tick(&mut self, now: At, connected: bool) {
        if self.flush_at.is_some_and(|at| now >= at) {
            self.flush();
        }
        if connected && self.breaks_off_at().is_some_and(|at| now >= at) {
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
        assert_eq!(turn.deadline(true), Some(270 * MS), "a client that stops must not keep what it sent");
        turn.tick(270 * MS, true);
        assert_eq!(lengths(&mut turn), [960]);
        turn.audio(420 * MS, &FRAME);
        assert_eq!(lengths(&mut turn), [960], "first after silence again");
    }

    #[test]
    fn a_short_turn_is_filled_and_an_empty_one_refused() {
        let mut turn = turn(false);
        assert_eq!(turn.commit(Duration::ZERO), None);
        turn.audio(Duration::ZERO, &FRAME);
        assert_eq!(turn.commit(30 * MS), Some((0, 4_800)));
        assert_eq!(lengths(&mut turn).iter().sum::<usize>(), 4_800);
        assert_eq!(turn.take_marks().end, Some(30 * MS));
        assert_eq!(turn.commit(40 * MS), None, "nothing new");
    }

    #[test]
    fn speech_that_breaks_off_is_ended_by_silence_that_at_ms_does_not_count() {
        let mut turn = turn(true);
        for n in 0..50u32 {
            turn.audio(20 * n * MS, &FRAME);
        }
        assert_eq!(turn.speech_started(200), Some(200));
        turn.tick(1_070 * MS, true);
        let _ = lengths(&mut turn);
        assert_eq!(turn.deadline(true), Some((980 + 750) * MS));
        turn.tick(1_730 * MS, true);
        assert_eq!(lengths(&mut turn).iter().sum::<usize>(), 48 * 800, "500 ms and a margin");
        // The service hears the end 500 ms into the inserted silence, at 1,500 ms of all audio.
        assert_eq!(turn.speech_stopped(1_740 * MS, 1_500), 1_000);
        assert_eq!(turn.deadline(true), None);
    }

    #[test]
    fn a_call_of_days_counts_all_silence_and_keeps_little_of_it() {
        let mut turn = turn(false);
        let turns = 10 * INSERTED as u64;
        for _ in 0..turns {
            turn.audio(Duration::ZERO, &FRAME);
            assert!(turn.commit(Duration::ZERO).is_some(), "20 ms, filled up to 100");
        }
        assert_eq!(turn.inserted.len(), INSERTED);
        assert_eq!(turn.client_ms(turn.written()), turns * 20);
        let recent = turn.written() - 10 * 4_800;
        assert_eq!(turn.client_ms(recent), (turns - 10) * 20);
    }

    #[test]
    fn the_end_of_speech_is_found_on_the_clock() {
        let mut turn = turn(true);
        for n in 0..100u32 {
            turn.audio(20 * n * MS, &FRAME);
        }
        turn.speech_started(0);
        turn.speech_stopped(2_010 * MS, 1_900);
        assert_eq!(turn.found(2_011 * MS), (0, 1_900 * 48));
        assert_eq!(turn.open(), 1_900 * 48, "what follows is part of the next turn");
        let marks = turn.take_marks();
        assert_eq!(marks.end, Some((2_010 - 100 - 500) * MS), "100 ms behind the newest audio, 500 ms of it silence");
        assert_eq!(marks.committed, Some(2_011 * MS));
        assert_eq!(turn.take_marks(), Marks::default());
    }

    #[test]
    fn positions_of_a_later_session_are_found_in_the_call() {
        let mut turn = turn(true);
        for n in 0..100u32 {
            turn.audio(20 * n * MS, &FRAME);
        }
        // The new session was told 300 ms of an earlier turn, and then everything from 1,500 ms on.
        turn.session_hears(1_500 * 48, 300 * 48);
        assert_eq!(turn.speech_started(400), Some(1_600));
        assert_eq!(turn.speech_started(10), None, "it goes on");
        assert_eq!(turn.open(), 1_600 * 48);
        assert_eq!(turn.heard_out(), None);
        assert_eq!(turn.speech_stopped(2_000 * MS, 700), 1_900);
        assert_eq!(turn.heard_out(), Some((1_600 * 48, 1_900 * 48)));
        assert_eq!((turn.heard_out(), turn.open()), (None, 1_900 * 48));
    }

    #[test]
    fn discarded_audio_was_never_written() {
        let mut turn = turn(false);
        turn.audio(Duration::ZERO, &FRAME);
        turn.audio(20 * MS, &FRAME);
        assert_eq!(lengths(&mut turn), [960]);
        turn.discard();
        turn.audio(40 * MS, &FRAME);
        assert_eq!(turn.commit(60 * MS), Some((960, 960 + 4_800)));
    }
}
