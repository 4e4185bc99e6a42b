//! When reply audio may be sent, and where the loudspeaker is.
//!
//! A model speaks faster than real time; what is sent too early must be taken back at a barge-in, what is sent too late is
//! a gap. The pacer keeps a lead and computes every moment from one base, so that delays never add up. It counts samples;
//! it never sees them, and it has no timer: it names the next moment.
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Samples since the first one of the call.
pub type Position = u64;

/// One loudspeaker's clock.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Pacer {
    rate: u64,
    /// How far sending may be ahead of playing, samples; `None`: without bound.
    lead: Option<u64>,
    batch: u64,
    sent: Position,
    /// Up to here it has played, or never will: where it was last cut.
    cut: Position,
    /// The position that played at a moment, from which all others follow.
    base: (Position, Duration),
}

impl Pacer {
    /// A clock of `rate` samples per second. `lead`: how far ahead to send, none for as fast as possible; `batch`: how
    /// much is sent at one go once the lead is built up.
    pub fn new(rate: u32, lead: Option<Duration>, batch: Duration) -> Self {
        let rate = u64::from(rate);
        let mut pacer = Self { rate, lead: None, batch: 0, sent: 0, cut: 0, base: (0, Duration::ZERO) };
        pacer.lead = lead.map(|lead| pacer.samples(lead));
        pacer.batch = pacer.samples(batch).min(pacer.lead.unwrap_or(u64::MAX));
        pacer
    }

    fn samples(&self, length: Duration) -> u64 {
        u64::try_from(length.as_nanos() * u128::from(self.rate) / 1_000_000_000).unwrap_or(u64::MAX)
    }

    /// How long so many samples play.
    pub fn length(&self, samples: u64) -> Duration {
        let nanos = u128::from(samples) * 1_000_000_000;
        Duration::from_nanos(u64::try_from(nanos.div_ceil(u128::from(self.rate))).unwrap_or(u64::MAX))
    }

    /// What has been sent.
    pub fn sent(&self) -> Position {
        self.sent
    }

    /// What the loudspeaker has played: it plays what it has, and waits when it has nothing.
    pub fn played(&self, now: Duration) -> Position {
        let (base, at) = self.base;
        base.saturating_add(self.samples(now.saturating_sub(at))).min(self.sent)
    }

    /// When the loudspeaker will have played `position`, which is sent already.
    pub fn plays_at(&self, position: Position) -> Duration {
        let (base, at) = self.base;
        at + self.length(position.saturating_sub(base))
    }

    /// Whether so many samples more may go out now.
    pub fn may_send(&self, now: Duration, samples: u64) -> bool {
        self.lead.is_none_or(|lead| self.sent + samples <= self.played(now) + lead)
    }

    /// When the next batch may go out; a past moment means now.
    pub fn next_send(&self) -> Duration {
        match self.lead {
            Some(lead) if self.sent > 0 => self.plays_at((self.sent + self.batch).saturating_sub(lead)),
            _ => Duration::ZERO,
        }
    }

    /// So many samples went out.
    pub fn send(&mut self, now: Duration, samples: u64) {
        if self.played(now) == self.sent {
            self.base = (self.sent, now); // the loudspeaker was silent: it begins anew
        }
        self.sent += samples;
    }

    /// The last so many samples of what was sent have not arrived yet: the loudspeaker waits for them.
    pub fn lacks(&mut self, now: Duration, late: u64) {
        let arrived = self.sent.saturating_sub(late).max(self.cut);
        if self.played(now) > arrived {
            self.base = (arrived, now);
        }
    }

    /// The loudspeaker dropped everything behind what it has played.
    pub fn cut(&mut self, now: Duration) {
        self.sent = self.played(now);
        self.cut = self.sent;
        self.base = (self.sent, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const FRAME: u64 = 480;

    fn pacer() -> Pacer {
        Pacer::new(24_000, Some(400 * MS), 100 * MS)
    }

    /// Sends what may be sent; returns the frames.
    fn fill(pacer: &mut Pacer, now: Duration) -> usize {
        let mut frames = 0;
        while pacer.may_send(now, FRAME) {
            pacer.send(now, FRAME);
            frames += 1;
        }
        frames
    }

    #[test]
    fn the_first_frames_go_at_once_then_batches_by_the_clock() {
        let mut pacer = pacer();
        let mut now = 1_000 * MS;
        assert_eq!(fill(&mut pacer, now), 20, "the lead");
        for _ in 0..1_000 {
            let next = pacer.next_send();
            assert_eq!(next, now + 100 * MS, "no drift");
            now = next;
            assert_eq!(fill(&mut pacer, now), 5);
        }
    }

    #[test]
    fn a_late_wake_up_does_not_move_the_clock() {
        let mut pacer = pacer();
        fill(&mut pacer, Duration::ZERO);
        assert_eq!(fill(&mut pacer, 137 * MS), 6, "all that is due, in whole frames");
        assert_eq!(pacer.played(200 * MS), 4_800);
    }

    #[test]
    fn silence_is_not_played_time() {
        let mut pacer = pacer();
        pacer.send(Duration::ZERO, FRAME);
        assert_eq!(pacer.played(5_000 * MS), FRAME);
        pacer.send(5_000 * MS, FRAME);
        assert_eq!(pacer.played(5_010 * MS), FRAME + 240);
        assert_eq!(pacer.plays_at(2 * FRAME), 5_020 * MS);
    }

    #[test]
    fn a_cut_takes_back_what_was_not_played() {
        let mut pacer = pacer();
        fill(&mut pacer, Duration::ZERO);
        pacer.cut(50 * MS);
        assert_eq!((pacer.sent(), pacer.played(900 * MS)), (1_200, 1_200));
        assert_eq!(fill(&mut pacer, 900 * MS), 20);
    }

    #[test]
    fn what_arrives_late_plays_late() {
        let mut pacer = pacer();
        fill(&mut pacer, Duration::ZERO);
        pacer.lacks(9_000 * MS, 10 * FRAME);
        assert_eq!(pacer.played(9_000 * MS), 10 * FRAME, "the rest was lost with a socket");
        assert_eq!(pacer.plays_at(20 * FRAME), 9_200 * MS);
        pacer.lacks(9_100 * MS, 5 * FRAME);
        assert_eq!(pacer.played(9_100 * MS), 15 * FRAME);
        for ms in 9_100..9_150 {
            pacer.lacks(ms * MS, FRAME); // what waits behind what plays changes nothing, however often one asks
        }
        assert_eq!(pacer.plays_at(20 * FRAME), 9_200 * MS);
    }

    #[test]
    fn what_was_cut_arrives_for_nothing() {
        let mut pacer = pacer();
        fill(&mut pacer, Duration::ZERO);
        pacer.cut(50 * MS);
        pacer.lacks(50 * MS, 10 * FRAME); // still in a queue
        assert_eq!(pacer.played(50 * MS), 1_200, "a loudspeaker never runs back");
        pacer.send(60 * MS, FRAME);
        pacer.lacks(70 * MS, 10 * FRAME);
        assert_eq!(pacer.played(70 * MS), 1_200, "what is new waits behind it");
    }

    proptest::proptest! {
        #[test]
        fn never_further_ahead_than_the_lead(steps in proptest::collection::vec((0u32..300, 0u32..10), 1..100)) {
            let mut pacer = pacer();
            let mut now = Duration::ZERO;
            let mut before = 0;
            for (wait, frames) in steps {
                now += wait * MS;
                for _ in 0..frames {
                    if pacer.may_send(now, FRAME) {
                        pacer.send(now, FRAME);
                    }
                }
                let played = pacer.played(now);
                proptest::prop_assert!(played >= before, "a loudspeaker never runs back");
                proptest::prop_assert!(pacer.sent() - played <= 9_600);
                before = played;
            }
        }
    }
}
