//! Plays replies on whatever loudspeaker there is, and knows what of them has been heard.
//!
//! Stands between the call and a loudspeaker's ring. Pure: `now` comes in, samples and stamps go through the ring. Audio
//! is kept until a device has taken it, so a device that disappears takes nothing with it but the few milliseconds in its
//! own buffer. What was heard is summed up from the device's stamps; where it has none, nothing was.
use std::{collections::VecDeque, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{mic::RATE, tap::SpeakerEnd};
use crate::audio::resample::{DeviceRateError, Resampler};

/// Audio that waits for a device, at most; what comes beyond is lost.
const MAX_WAITING: usize = 60 * RATE as usize;
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
    pub fn attach(&mut self, end: SpeakerEnd) -> Result<(), DeviceRateError> {
        let resampler = Resampler::for_device(RATE, end.rate())?;
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
    pub fn end(&self) -> Option<&SpeakerEnd> {
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

    /// A reply that was cleared, and how many ms of it were played or are in the device's own buffer: exact.
    pub fn settled(&mut self) -> Option<(Arc<str>, u64)> {
        self.settled.pop_front()
    }

    /// Learns what the device has taken, and gives it more. Call every few milliseconds.
    pub fn pump(&mut self, now: Instant) {
        // Before the stamps are looked at: what is dropped by now is not in those that come later.
        let dropped = self.end().is_some_and(SpeakerEnd::is_dropped);
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
