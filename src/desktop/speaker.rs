//! Plays replies on whatever loudspeaker there is, and knows what of them has been heard.
//!
//! Stands between the call and a loudspeaker's ring. Pure: `now` comes in, samples and stamps go through the ring. Audio
//! is kept until a device has taken it, so a device that disappears takes nothing with it but the few milliseconds in its
//! own buffer. What was heard is summed up from the device's stamps; where it has none, nothing was.
use std::{collections::VecDeque, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{mic::RATE, tap::SpeakerEnd};
use crate::audio::resample::{RateError, Resampler};

/// Audio that waits for a device, at most; what comes beyond is lost.
const MAX_WAITING: usize = 60 * RATE as usize;
/// A loudspeaker's clock may differ from the relay's by what is in its buffers; so much is another matter.
const TOO_LATE: usize = RATE as usize / 2;
/// Samples that are changed in rate at a time.
const BLOCK: usize = 480;

/// A loudspeaker, or the lack of one.
#[derive(Debug)]
pub struct Speaker {
    report_every: Duration,
    line: Option<(SpeakerEnd, Resampler)>,
    tracks: Vec<Track>,
    /// Samples at 24 kHz that no device has taken yet, oldest first. The first `given` of them are in the ring.
    kept: VecDeque<i16>,
    given: usize,
    /// Whose they are, in the same order.
    runs: VecDeque<Run>,
    /// What is in the ring, in the device's samples.
    spans: VecDeque<Span>,
    /// The reply whose samples went into the ring last.
    fed: Option<usize>,
    /// The ring is to be emptied, and nothing may follow before it is.
    dropping: bool,
    /// What devices have taken, and when it is heard.
    sounding: VecDeque<Stretch>,
    last_report: Option<Instant>,
    settled: VecDeque<(Arc<str>, u64)>,
    dry_at: Option<Instant>,
    underruns: u64,
    underrun_time: Duration,
    block: (Vec<i16>, Vec<i16>),
}

/// One reply.
#[derive(Debug)]
struct Track {
    reply: Arc<str>,
    /// Taken by devices: heard, or about to be.
    handed: Duration,
    /// Heard of stretches that are no longer in the line.
    heard: Duration,
    state: State,
    reported_ms: u64,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    Playing,
    /// No more of it is played; how much was is not certain yet.
    Cleared,
    Settled,
}

#[derive(Debug)]
struct Run {
    track: usize,
    len: usize,
}

#[derive(Debug)]
struct Span {
    track: usize,
    first: u64,
    count: u64,
}

#[derive(Debug)]
struct Stretch {
    track: usize,
    at: Instant,
    len: Duration,
}

impl Stretch {
    fn end(&self) -> Instant {
        self.at + self.len
    }

    fn heard(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.at).min(self.len)
    }
}

impl Speaker {
    /// One without a device, which wants to report positions every `report_every` while it plays.
    pub fn new(report_every: Duration) -> Self {
        Self {
            report_every,
            line: None,
            tracks: Vec::new(),
            kept: VecDeque::new(),
            given: 0,
            runs: VecDeque::new(),
            spans: VecDeque::new(),
            fed: None,
            dropping: false,
            sounding: VecDeque::new(),
            last_report: None,
            settled: VecDeque::new(),
            dry_at: None,
            underruns: 0,
            underrun_time: Duration::ZERO,
            block: (Vec::new(), Vec::new()),
        }
    }

    /// Plays on this device from now on, first what the one before it has not taken.
    ///
    /// # Errors
    /// When its rate is absurd.
    pub fn attach(&mut self, end: SpeakerEnd) -> Result<(), RateError> {
        let resampler = Resampler::new(RATE, end.rate())?;
        self.detach();
        self.line = Some((end, resampler));
        Ok(())
    }

    /// Gives the device's end away. What it has not taken waits for the next one.
    pub fn detach(&mut self) -> Option<SpeakerEnd> {
        self.collect();
        let (end, _) = self.line.take()?;
        self.take_back();
        Some(end)
    }

    /// The device's end.
    pub fn device(&self) -> Option<&SpeakerEnd> {
        self.line.as_ref().map(|(end, _)| end)
    }

    /// Takes audio of `reply` at 24 kHz. `false`: not wanted, since this reply was cleared.
    pub fn hear(&mut self, now: Instant, reply: &str, samples: impl IntoIterator<Item = i16>) -> bool {
        let index = self.track_or_new(reply);
        let Some(track) = self.tracks.get(index) else { return false };
        if track.state != State::Playing {
            return false;
        }
        let fresh = track.handed.is_zero();
        if let Some(dry_at) = self.dry_at.take().filter(|at| now > *at && !fresh) {
            self.underruns += 1;
            self.underrun_time += now - dry_at;
        }
        let before = self.kept.len();
        self.kept.extend(samples);
        self.kept.truncate(MAX_WAITING.max(before));
        let len = self.kept.len() - before;
        match self.runs.back_mut() {
            Some(last) if last.track == index => last.len += len,
            _ => self.runs.push_back(Run { track: index, len }),
        }
        true
    }

    /// Plays no more of `reply`: what is in the ring is dropped before the device's next callback takes from it. How
    /// much was played follows by [`Self::settled`]. `false`: it was cleared before.
    pub fn clear(&mut self, reply: &str) -> bool {
        self.collect();
        let index = self.track_or_new(reply);
        let Some(track) = self.tracks.get_mut(index).filter(|track| track.state == State::Playing) else {
            return false;
        };
        track.state = State::Cleared;
        self.dry_at = None;
        match &mut self.line {
            Some((end, _)) if !self.spans.is_empty() => {
                end.drop_all();
                self.dropping = true;
            }
            _ => self.take_back(),
        }
        true
    }

    /// The relay counts `reply` as over. What a lost device has held up for long is not played any more: by now the
    /// conversation is elsewhere.
    pub fn end(&mut self, reply: &str) {
        let index = self.tracks.iter().rposition(|track| &*track.reply == reply);
        let waits: usize = self.runs.iter().filter(|run| Some(run.track) == index).map(|run| run.len).sum();
        if waits > TOO_LATE {
            self.clear(reply);
        }
    }

    /// A reply that was cleared, and how many ms of it were played or are in the device's own buffer: exact.
    pub fn settled(&mut self) -> Option<(Arc<str>, u64)> {
        self.settled.pop_front()
    }

    /// Learns what the device has taken, and gives it more. Call every few milliseconds.
    pub fn pump(&mut self, now: Instant) {
        // Before the stamps are looked at: what is dropped by now is not in those that come later.
        let dropped = self.device().is_some_and(SpeakerEnd::is_dropped);
        self.collect();
        self.forget_heard(now);
        if self.dropping {
            if !dropped {
                return;
            }
            self.take_back();
        }
        self.feed();
    }

    /// How much of `reply` has been heard.
    pub fn position(&self, now: Instant, reply: &str) -> Duration {
        let index = self.tracks.iter().rposition(|track| &*track.reply == reply);
        index.map_or(Duration::ZERO, |index| self.heard(now, index))
    }

    /// The reply that is being heard.
    pub fn playing(&self, now: Instant) -> Option<&Arc<str>> {
        let stretch = self.sounding.iter().find(|stretch| stretch.at <= now && now < stretch.end())?;
        self.tracks.get(stretch.track).map(|track| &track.reply)
    }

    /// Whether something is heard, or will be in a moment.
    pub fn is_sounding(&self, now: Instant) -> bool {
        self.line.is_some() && !self.kept.is_empty() || self.sounding.iter().any(|stretch| now < stretch.end())
    }

    /// How often a reply's audio ran dry and then went on, and for how long in all.
    pub fn underruns(&self) -> (u64, Duration) {
        (self.underruns, self.underrun_time)
    }

    /// A reply and how many ms of it have been heard: every so often while it plays, and once when it stops. Call until
    /// it says `None`.
    pub fn report(&mut self, now: Instant) -> Option<(Arc<str>, u64)> {
        let last = *self.last_report.get_or_insert(now);
        if now.saturating_duration_since(last) < self.report_every && self.is_sounding(now) {
            return None;
        }
        for index in 0..self.tracks.len() {
            let heard = ms(self.heard(now, index));
            let Some(track) = self.tracks.get_mut(index) else { break };
            // What was cleared has its own last word.
            if track.reported_ms != heard && track.state == State::Playing {
                track.reported_ms = heard;
                return Some((Arc::clone(&track.reply), heard));
            }
        }
        self.last_report = Some(now);
        None
    }

    /// Turns the device's stamps into stretches of replies, and lets go of the samples.
    fn collect(&mut self) {
        let Some((end, _)) = &mut self.line else { return };
        let rate = end.rate();
        while let Some(stamp) = end.stamp() {
            let after = stamp.first + stamp.count;
            while let Some(span) = self.spans.front_mut().filter(|span| span.first < after) {
                let count = span.count.min(after - span.first);
                if let Some(offset) = span.first.checked_sub(stamp.first) {
                    let len = length(count, rate);
                    self.sounding.push_back(Stretch {
                        track: span.track,
                        at: stamp.heard_at + length(offset, rate),
                        len,
                    });
                    if let Some(track) = self.tracks.get_mut(span.track) {
                        track.handed += len;
                    }
                }
                span.first += count;
                span.count -= count;
                if span.count == 0 {
                    self.spans.pop_front();
                }
            }
        }
        let waiting: u64 = self.spans.iter().map(|span| span.count).sum();
        let waiting = (waiting * u64::from(RATE)).div_ceil(u64::from(rate.max(1)));
        let waiting = usize::try_from(waiting).unwrap_or(usize::MAX).min(self.given);
        self.let_go(self.given - waiting);
        self.given = waiting;
        if self.kept.is_empty() {
            self.dry_at = self.sounding.back().map(Stretch::end).or(self.dry_at);
        }
    }

    /// The oldest samples are no longer ours.
    fn let_go(&mut self, count: usize) {
        self.kept.drain(..count.min(self.kept.len()));
        let mut rest = count;
        while let Some(run) = self.runs.front_mut().filter(|_| rest > 0) {
            let part = run.len.min(rest);
            run.len -= part;
            rest -= part;
            if run.len == 0 {
                self.runs.pop_front();
            }
        }
    }

    /// The ring's samples are ours again, but for those of replies that were cleared: they are nobody's.
    fn take_back(&mut self) {
        self.dropping = false;
        self.spans.clear();
        self.given = 0;
        self.fed = None;
        let mut at = 0;
        for run in std::mem::take(&mut self.runs) {
            if self.tracks.get(run.track).is_some_and(|track| track.state == State::Playing) {
                at += run.len;
                self.runs.push_back(run);
            } else {
                self.kept.drain(at..at + run.len);
            }
        }
        for track in self.tracks.iter_mut().filter(|track| track.state == State::Cleared) {
            track.state = State::Settled;
            track.reported_ms = ms(track.handed);
            self.settled.push_back((Arc::clone(&track.reply), track.reported_ms));
        }
    }

    /// Fills the ring.
    fn feed(&mut self) {
        let Some((end, resampler)) = &mut self.line else { return };
        let (block, changed) = &mut self.block;
        loop {
            let mut before = self.given;
            let run = self.runs.iter().find(|run| {
                let inside = before < run.len;
                before -= if inside { 0 } else { run.len };
                inside
            });
            let Some(run) = run else { return };
            if self.fed.replace(run.track) != Some(run.track) {
                // What the filter holds of the reply before is less than 2 ms.
                resampler.reset();
            }
            // One sample more may come out than the ratio says.
            let room = end.room().saturating_sub(1) as u64 * u64::from(RATE) / u64::from(end.rate().max(1));
            let len = (run.len - before).min(BLOCK).min(usize::try_from(room).unwrap_or(usize::MAX));
            if len == 0 {
                return;
            }
            block.clear();
            block.extend(self.kept.range(self.given..self.given + len));
            changed.clear();
            resampler.push(block, changed);
            let first = end.written();
            let count = end.give(changed) as u64;
            self.given += len;
            match self.spans.back_mut() {
                Some(last) if last.track == run.track && last.first + last.count == first => last.count += count,
                _ => self.spans.push_back(Span { track: run.track, first, count }),
            }
        }
    }

    /// Moves what has been heard from the line to its track.
    fn forget_heard(&mut self, now: Instant) {
        while self.sounding.front().is_some_and(|stretch| stretch.end() <= now) {
            let Some(stretch) = self.sounding.pop_front() else { return };
            if let Some(track) = self.tracks.get_mut(stretch.track) {
                track.heard += stretch.len;
            }
        }
    }

    fn heard(&self, now: Instant, index: usize) -> Duration {
        let line: Duration =
            self.sounding.iter().filter(|stretch| stretch.track == index).map(|stretch| stretch.heard(now)).sum();
        self.tracks.get(index).map_or(Duration::ZERO, |track| track.heard) + line
    }

    fn track_or_new(&mut self, reply: &str) -> usize {
        self.tracks.iter().rposition(|track| &*track.reply == reply).unwrap_or_else(|| {
            self.tracks.push(Track {
                reply: Arc::from(reply),
                handed: Duration::ZERO,
                heard: Duration::ZERO,
                state: State::Playing,
                reported_ms: 0,
            });
            self.tracks.len() - 1
        })
    }
}

/// How long `count` samples of `rate` play.
fn length(count: u64, rate: u32) -> Duration {
    Duration::from_nanos(count.saturating_mul(1_000_000_000) / u64::from(rate.max(1)))
}

/// Whole milliseconds; a nanosecond that a division has lost takes none away.
fn ms(length: Duration) -> u64 {
    u64::try_from((length + Duration::from_micros(1)).as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::desktop::tap::{self, Playback};

    const fn t(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// A loudspeaker whose device calls back when it is told to, and is heard `latency` later.
    struct Rig {
        speaker: Speaker,
        playback: Playback,
        began: Instant,
        latency: Duration,
    }

    impl Rig {
        fn new(rate: u32) -> Self {
            let (playback, end) = tap::loudspeaker(rate);
            let mut speaker = Speaker::new(t(100));
            speaker.attach(end).unwrap();
            Self { speaker, playback, began: Instant::now(), latency: Duration::ZERO }
        }

        fn at(&self, ms: u64) -> Instant {
            self.began + t(ms)
        }

        /// `samples` of `reply`, all of this value.
        fn hear(&mut self, ms: u64, reply: &str, samples: usize, value: i16) -> bool {
            self.speaker.hear(self.at(ms), reply, std::iter::repeat_n(value, samples))
        }

        /// What the device plays in a callback of so many frames.
        fn callback(&mut self, ms: u64, frames: usize) -> Vec<i16> {
            let (mut out, at) = (vec![0; frames], self.at(ms));
            #[expect(clippy::cast_possible_truncation, reason = "these were 16 bits before")]
            self.playback.fill(out.iter_mut(), at + self.latency, |frame, sample| *frame = (sample * 32_768.0) as i16);
            self.speaker.pump(at);
            out
        }

        fn position(&self, ms: u64, reply: &str) -> u128 {
            self.speaker.position(self.at(ms), reply).as_millis()
        }
    }

    #[test]
    fn only_what_the_device_has_taken_is_heard_and_not_before_its_latency() {
        let mut rig = Rig::new(24_000);
        rig.latency = t(30);
        assert!(!rig.speaker.is_sounding(rig.at(0)));
        rig.hear(0, "r1", 960, 7);
        assert!(rig.speaker.is_sounding(rig.at(0)));
        rig.speaker.pump(rig.at(0));
        assert_eq!(rig.position(500, "r1"), 0, "it waits, however long");
        assert_eq!(rig.callback(500, 480), [7; 480]);
        for (ms, want) in [(500, 0), (530, 0), (537, 7), (550, 20), (900, 20)] {
            assert_eq!(rig.position(ms, "r1"), want, "{ms}");
        }
        assert_eq!(rig.speaker.playing(rig.at(540)).map(|reply| &**reply), Some("r1"));
        // The device was late, and so is what it plays.
        rig.callback(600, 960);
        assert_eq!((rig.position(635, "r1"), rig.position(650, "r1"), rig.position(999, "r1")), (25, 40, 40));
        assert!(rig.speaker.is_sounding(rig.at(649)) && !rig.speaker.is_sounding(rig.at(650)));
        assert_eq!(rig.position(999, "unknown"), 0);
    }

    #[test]
    fn a_clear_stops_at_the_next_callback_and_is_exact() {
        let mut rig = Rig::new(48_000);
        rig.latency = t(20);
        rig.hear(0, "r1", 24_000, 7); // a second
        rig.speaker.pump(rig.at(0));
        for ms in [10, 20, 30] {
            assert!(rig.callback(ms, 480).iter().filter(|sample| **sample != 0).count() > 400);
        }
        assert_eq!(rig.position(30, "r1"), 0, "10 ms after the first callback, 20 ms before it is heard");
        assert!(rig.speaker.clear("r1") && !rig.speaker.clear("r1"));
        assert!(!rig.hear(31, "r1", 480, 7), "the rest of a cleared reply");
        assert_eq!(rig.speaker.settled(), None, "a callback may be at work");
        assert!(rig.hear(32, "r2", 480, 9), "20 ms");
        rig.speaker.pump(rig.at(35));
        assert_eq!(rig.speaker.settled(), None);
        assert_eq!(rig.callback(40, 480), [0; 480]);
        assert_eq!(rig.speaker.settled(), Some(("r1".into(), 30)));
        assert_eq!(rig.position(60, "r1"), 30, "what the device had taken is heard");
        assert!(rig.callback(50, 480).contains(&9), "what comes behind it");
        assert_eq!((rig.position(90, "r2"), rig.position(90, "r1")), (10, 30));
        assert_eq!(rig.speaker.underruns(), (0, Duration::ZERO));
    }

    #[test]
    fn what_was_never_played_is_settled_at_once() {
        let mut rig = Rig::new(24_000);
        rig.hear(0, "r1", 480, 7);
        assert!(rig.speaker.clear("r1") && rig.speaker.clear("never came"));
        assert_eq!(rig.speaker.settled(), Some(("r1".into(), 0)));
        assert_eq!(rig.speaker.settled(), Some(("never came".into(), 0)));
        assert!(!rig.hear(1, "never came", 480, 7) && !rig.speaker.is_sounding(rig.at(1)));
    }

    #[test]
    fn a_device_that_disappears_takes_nothing_with_it() {
        let mut rig = Rig::new(48_000);
        rig.hear(0, "r1", 2_400, 7); // 100 ms
        rig.hear(0, "r2", 480, 9);
        rig.speaker.pump(rig.at(0));
        rig.callback(10, 1_440); // 30 ms
        assert!(rig.speaker.detach().is_some() && rig.speaker.detach().is_none());
        assert!(!rig.speaker.is_sounding(rig.at(40)), "nothing sounds without a device");
        rig.hear(50, "r2", 480, 9);
        rig.speaker.pump(rig.at(60));
        assert_eq!(rig.position(900, "r1"), 30);
        let (playback, end) = tap::loudspeaker(24_000);
        rig.playback = playback;
        rig.speaker.attach(end).unwrap();
        rig.speaker.pump(rig.at(1_000));
        assert_eq!(rig.callback(1_000, 2_640), [vec![7; 1_680], vec![9; 960]].concat());
        assert_eq!((rig.position(1_110, "r1"), rig.position(1_110, "r2")), (100, 40));
        assert_eq!(rig.speaker.report(rig.at(1_110)), Some(("r1".into(), 100)));
    }

    #[test]
    fn without_a_device_a_clear_is_settled_and_the_queue_has_a_bound() {
        let mut speaker = Speaker::new(t(100));
        let now = Instant::now();
        speaker.hear(now, "r1", std::iter::repeat_n(1, MAX_WAITING + 10));
        assert_eq!(speaker.kept.len(), MAX_WAITING);
        assert!(speaker.clear("r1"));
        assert_eq!((speaker.settled(), speaker.kept.len()), (Some(("r1".into(), 0)), 0));
    }

    #[test]
    fn what_is_still_to_be_played_long_after_its_end_is_dropped() {
        let mut rig = Rig::new(24_000);
        rig.hear(0, "r1", TOO_LATE, 7);
        rig.speaker.end("r1");
        rig.speaker.end("unknown");
        assert!(rig.speaker.settled().is_none() && rig.speaker.is_sounding(rig.at(0)), "a moment behind");
        rig.speaker.detach();
        rig.hear(10, "r1", 24_000, 7);
        rig.speaker.end("r1");
        assert_eq!((rig.speaker.settled(), rig.speaker.kept.len()), (Some(("r1".into(), 0)), 0));
    }

    #[test]
    fn reports_come_every_so_often_and_once_at_the_end() {
        let mut rig = Rig::new(24_000);
        rig.hear(0, "r1", 24_000 / 1_000 * 250, 7);
        rig.speaker.pump(rig.at(0));
        let mut reports = Vec::new();
        for ms in (0..400).step_by(10) {
            rig.callback(ms, 240);
            while let Some((reply, heard)) = rig.speaker.report(rig.at(ms)) {
                reports.push((ms, reply.to_string(), heard));
            }
        }
        let want = [(100, 100), (200, 200), (250, 250)].map(|(ms, heard)| (ms, "r1".to_owned(), heard));
        assert_eq!(reports, want);
    }

    #[test]
    fn audio_that_comes_late_is_an_underrun_and_a_new_reply_is_not() {
        let mut rig = Rig::new(24_000);
        rig.hear(0, "r1", 240, 7);
        rig.speaker.pump(rig.at(0));
        rig.callback(10, 240); // heard until 20
        rig.hear(35, "r1", 240, 7);
        assert_eq!(rig.speaker.underruns(), (1, t(15)));
        rig.speaker.pump(rig.at(35));
        rig.callback(40, 240);
        rig.hear(45, "r1", 240, 7); // in time
        rig.speaker.pump(rig.at(45));
        rig.callback(50, 240);
        rig.hear(900, "r2", 240, 7);
        assert_eq!(rig.speaker.underruns(), (1, t(15)));
    }

    #[test]
    fn a_rate_of_no_sound_card_is_refused() {
        let (_, end) = tap::loudspeaker(900);
        assert!(Speaker::new(t(100)).attach(end).is_err());
    }

    /// What may happen to a loudspeaker.
    #[derive(Debug, Clone, Copy)]
    enum Act {
        Hear(usize, usize),
        Callback(usize),
        Clear(usize),
        Lose,
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            4 => (0_usize..3, 1_usize..2_000).prop_map(|(reply, len)| Act::Hear(reply, len)),
            6 => (1_usize..1_500).prop_map(Act::Callback),
            1 => (0_usize..3).prop_map(Act::Clear),
            1 => Just(Act::Lose),
        ]
    }

    proptest! {
        /// Whatever happens when: of each reply a beginning is played, in order and without a hole, and what is said to have
        /// been played is what was.
        #[test]
        fn a_beginning_of_every_reply_is_played_and_counted(acts in prop::collection::vec(act(), 1..120)) {
            const NAMES: [&str; 3] = ["a", "b", "c"];
            let mut rig = Rig::new(24_000);
            let (mut given, mut played, mut cleared) = ([0_i16; 3], [0_i16; 3], [false; 3]);
            let mut ms = 0;
            for act in acts.into_iter().chain([Act::Callback(12_000); 20]) {
                ms += 10;
                match act {
                    Act::Hear(reply, len) if given[reply] < 9_000 - 2_000 => {
                        // Each sample says whose it is, and the how manieth.
                        let first = given[reply] + 1;
                        let last = given[reply] + i16::try_from(len).unwrap();
                        let values = (first..=last).map(|n| n + 9_000 * i16::try_from(reply).unwrap());
                        if rig.speaker.hear(rig.at(ms), NAMES[reply], values) {
                            given[reply] = last;
                        }
                        rig.speaker.pump(rig.at(ms));
                    }
                    Act::Hear(..) => {}
                    Act::Callback(frames) => for sample in rig.callback(ms, frames) {
                        if sample > 0 {
                            let reply = usize::try_from((sample - 1) / 9_000).unwrap();
                            prop_assert_eq!(sample - 9_000 * i16::try_from(reply).unwrap(), played[reply] + 1);
                            played[reply] += 1;
                        }
                    },
                    Act::Clear(reply) => {
                        cleared[reply] |= given[reply] > 0;
                        if given[reply] > 0 {
                            rig.speaker.clear(NAMES[reply]);
                        }
                    }
                    Act::Lose => {
                        rig.speaker.detach();
                        let (playback, end) = tap::loudspeaker(24_000);
                        rig.playback = playback;
                        rig.speaker.attach(end).unwrap();
                    }
                }
            }
            for reply in 0..3 {
                let told = rig.speaker.position(rig.at(ms + 9_000), NAMES[reply]).as_secs_f64() * 24_000.0;
                prop_assert!((told - f64::from(played[reply])).abs() < 0.01, "{told} {played:?}");
                prop_assert!(played[reply] == given[reply] || cleared[reply], "{played:?} of {given:?}");
            }
            while let Some((reply, told)) = rig.speaker.settled() {
                let reply = NAMES.iter().position(|name| **name == *reply).unwrap();
                prop_assert_eq!(told, u64::try_from(played[reply]).unwrap() / 24);
            }
        }
    }
}
