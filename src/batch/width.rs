//! How many requests run at once: found, not set.
//!
//! The relay says with each answer how long it waited for the account's limits, and refuses when it must. A wait means that more at once
//! would only wait longer; none means that more may help. So the number doubles until the first wait, and creeps after that; a refusal
//! halves it. A service that gets slower the more is asked of it is given no more. Pure: `now` is an argument.
use std::time::Duration;

/// It begins with.
const FIRST: f64 = 4.0;
/// The first wait of this length ends the doubling.
const FELT: Duration = Duration::from_millis(150);
/// A wait up to this keeps the queue at the relay filled, and is what is aimed at.
const ENOUGH: Duration = Duration::from_millis(500);
/// Beyond this too many wait.
const TOO_MUCH: Duration = Duration::from_secs(4);
/// Answers that take so many times as long as the fastest do are a service at its end.
const SLOW: f64 = 3.0;
/// One that takes so many times as long says nothing for more at once.
const SLOWER: f64 = 2.0;
/// Below this a difference is noise, seconds.
const FAST: f64 = 0.05;
/// After a refusal others that were sent before it say nothing new.
const DEAF: Duration = Duration::from_secs(1);
/// Two kinds, each in powers of two.
const CLASSES: usize = 128;
/// How fast what was the fastest is forgotten, with each answer.
const FADE: f64 = 1.0002;
/// What a slow answer takes away: a quarter, when all are.
const AWAY: f64 = 0.25;

/// The number.
#[derive(Debug, Clone)]
pub struct Width {
    most: usize,
    now: f64,
    /// Somebody has said how many: answers say nothing about it.
    fixed: bool,
    /// Nothing has been in its way yet.
    doubles: bool,
    /// What an answer takes at best, seconds, by what was asked: a long recording takes longer than a short one.
    best: [Option<f64>; CLASSES],
    /// How many times as long the last ones took.
    recent: f64,
    held: Option<Duration>,
    deaf: Option<Duration>,
}

/// An answer.
#[derive(Debug, Clone, Copy)]
pub struct Answered {
    /// How long it took in all.
    pub took: Duration,
    /// Of it, waiting for the account's limits.
    pub waited: Duration,
    /// As many as were allowed ran when it came.
    pub full: bool,
    /// What was asked, and how much of it: answers of one class take about the same time.
    pub class: usize,
}

/// The class of so many bytes of one kind.
pub fn class(kind: usize, bytes: u64) -> usize {
    let magnitude = u64::BITS - bytes.leading_zeros();
    (kind * CLASSES / 2 + magnitude as usize).min(CLASSES - 1)
}

impl Width {
    /// At most so many.
    pub fn new(most: usize) -> Self {
        let (most, now) = (most.max(1), FIRST.min(most.max(1) as f64));
        Self { most, now, fixed: false, doubles: true, best: [None; CLASSES], recent: 1.0, held: None, deaf: None }
    }

    /// Always so many, and none while the relay asks for a pause.
    pub fn fixed(many: usize) -> Self {
        Self { now: many.max(1) as f64, fixed: true, ..Self::new(many) }
    }

    /// So many may run now.
    pub fn at(&self, now: Duration) -> usize {
        if self.held.is_some_and(|until| now < until) {
            return 0;
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 1 and `most`")]
        let many = self.now as usize;
        many.clamp(1, self.most)
    }

    /// When something may be sent again; `None`: now.
    pub fn held_until(&self, now: Duration) -> Option<Duration> {
        self.held.filter(|until| now < *until)
    }

    /// One was answered.
    pub fn answered(&mut self, answered: Answered) {
        if self.fixed {
            return;
        }
        let Answered { took, waited, full, class } = answered;
        let own = took.saturating_sub(waited).as_secs_f64().max(FAST);
        let mut slower = false;
        if let Some(best) = self.best.get_mut(class) {
            // What one takes that is alone is no sign of too many.
            if self.now < 2.0 {
                (*best, self.recent) = (Some(own), 1.0);
            }
            let fastest = best.map_or(own, |best| (best * FADE).min(own));
            *best = Some(fastest);
            self.recent += (own / fastest - self.recent) / 8.0;
            slower = own > fastest * SLOWER;
        }
        let slow = self.recent > SLOW;
        self.doubles &= waited < FELT && !slow;
        if slow {
            self.now = (self.now - AWAY).max(1.0);
        } else if waited > TOO_MUCH {
            self.now = (self.now - 1.0 / self.now).max(1.0);
        } else if waited <= ENOUGH && !slower && full {
            self.now += if self.doubles { 1.0 } else { 1.0 / self.now };
        }
        self.now = self.now.min(self.most as f64);
    }

    /// One was refused: nothing is to be sent for so long.
    pub fn refused(&mut self, now: Duration, wait: Duration) {
        self.hold(now, wait);
        if self.deaf.is_none_or(|until| now >= until) {
            self.halve();
        }
        self.deaf = Some(now + wait.max(DEAF));
    }

    /// Nothing is to be sent for so long, whatever the number is.
    pub fn hold(&mut self, now: Duration, wait: Duration) {
        self.held = Some(self.held.unwrap_or_default().max(now + wait));
    }

    /// Half as many, where nobody has said how many.
    pub fn halve(&mut self) {
        if !self.fixed {
            self.doubles = false;
            self.now = (self.now / 2.0).max(1.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BinaryHeap;

    use super::*;

    /// A relay that answers `latency` after it has let a request go, and lets `per_second` of them go. How long so many take, the
    /// widest that it was, and the width at the end.
    fn run(many: u32, latency: Duration, per_second: f64, capacity: usize) -> (Duration, usize, usize) {
        let mut width = Width::new(256);
        let (mut now, mut left, mut free, mut widest) = (Duration::ZERO, many, Duration::ZERO, 0);
        let mut running: BinaryHeap<std::cmp::Reverse<(Duration, Duration, Duration)>> = BinaryHeap::new();
        loop {
            while left > 0 && running.len() < width.at(now) {
                left -= 1;
                let go = free.max(now);
                free = go + Duration::from_secs_f64(1.0 / per_second);
                // One that has more at once than it can bear is slow.
                let latency = latency.mul_f64((running.len() as f64 / capacity as f64).max(1.0));
                running.push(std::cmp::Reverse((go + latency, now, go - now)));
            }
            widest = widest.max(running.len());
            let full = running.len() >= width.at(now);
            let Some(std::cmp::Reverse((end, began, waited))) = running.pop() else {
                return (now, widest, width.at(now));
            };
            now = end;
            width.answered(Answered { took: end - began, waited, full, class: 0 });
        }
    }

    #[test]
    fn as_many_run_as_limits_and_latency_allow() {
        for (many, latency_ms, per_minute, capacity, most) in [
            (1_000, 300, 5_000.0, 1_000, 128),
            (1_000, 300, 500.0, 1_000, 24),
            (200, 2_000, 500.0, 1_000, 64),
            (60, 300, 30.0, 1_000, 8),
            (2_000, 500, 12_000.0, 1_000, 256),
        ] {
            let (took, widest, _) = run(many, Duration::from_millis(latency_ms), per_minute / 60.0, capacity);
            let ideal = f64::from(many) * 60.0 / per_minute + latency_ms as f64 / 1_000.0;
            // What it takes to find the number, for short jobs at high rates.
            assert!(
                took.as_secs_f64() <= ideal * 1.08 + 6.0 * latency_ms as f64 / 1_000.0,
                "{per_minute}: {took:?} of {ideal} s"
            );
            assert!(widest <= most, "{per_minute}: {widest}");
        }
    }

    #[test]
    fn a_service_at_its_end_is_given_no_more() {
        let (_, widest, last) = run(3_000, Duration::from_millis(500), 1_000.0, 8);
        assert!(widest <= 100 && last <= 48, "{widest} {last}");
    }

    #[test]
    fn long_recordings_are_no_sign_of_a_slow_service() {
        let mut width = Width::new(256);
        for n in 0..200_u64 {
            let (secs, bytes) = if n % 2 == 0 { (1, 100_000) } else { (20, 20_000_000) };
            let took = Duration::from_secs(secs);
            width.answered(Answered { took, waited: Duration::ZERO, full: true, class: class(0, bytes) });
        }
        assert_eq!(width.at(Duration::ZERO), 204);
        assert!(class(0, u64::MAX) < class(1, 1) && class(1, u64::MAX) < CLASSES);
    }

    #[test]
    fn a_service_that_has_become_slower_is_used_all_the_same() {
        let mut width = Width::new(64);
        let answered =
            |secs, full| Answered { took: Duration::from_secs(secs), waited: Duration::ZERO, full, class: 0 };
        (0..40).for_each(|_| width.answered(answered(1, true)));
        (0..400).for_each(|_| width.answered(answered(9, true)));
        assert!(width.at(Duration::ZERO) >= 4, "{}", width.at(Duration::ZERO));
    }

    #[test]
    fn a_refusal_holds_and_halves_once() {
        let mut width = Width { now: 16.0, ..Width::new(16) };
        let at = Duration::from_secs;
        width.refused(at(10), at(2));
        width.refused(at(10), at(1));
        assert_eq!((width.at(at(11)), width.held_until(at(11))), (0, Some(at(12))));
        assert_eq!(width.at(at(12)), 8);
        width.refused(at(20), Duration::ZERO);
        assert_eq!(width.at(at(20)), 4);
    }

    #[test]
    fn a_number_that_was_said_stays() {
        let mut width = Width::fixed(16);
        let at = Duration::from_secs;
        let answered =
            |took, waited| Answered { took: at(took), waited: at(waited), full: true, class: class(0, 100_000) };
        width.answered(answered(1, 0));
        (0..99).for_each(|_| width.answered(answered(40, 0)));
        (0..99).for_each(|_| width.answered(answered(40, 39)));
        assert_eq!(width.at(at(0)), 16, "slow answers are no reason");
        width.refused(at(10), at(2));
        assert_eq!((width.at(at(11)), width.at(at(12))), (0, 16), "and a refusal is one for a pause only");
    }

    #[test]
    fn one_at_once_is_the_least() {
        let mut width = Width::new(1);
        (0..9).for_each(|n| width.refused(Duration::from_secs(n * 9), Duration::ZERO));
        width.answered(Answered { took: Duration::from_secs(1), waited: Duration::from_secs(9), full: true, class: 0 });
        assert_eq!(width.at(Duration::from_secs(100)), 1);
    }
}
