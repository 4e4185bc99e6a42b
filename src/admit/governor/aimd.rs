//! How much of its rate the pool takes: half after a refusal, then slowly more. Others whom we cannot see use the same
//! account, and a refusal is all that they show of themselves.
use std::time::Duration;

/// Seconds of the full rate that come back every second, as a part.
const RECOVERS: f64 = 0.05;
/// Never less than this part.
const FLOOR: f64 = 0.1;
/// Refusals that come together are one.
const APART: Duration = Duration::from_secs(5);

/// The part of the rate that is taken, over time.
#[derive(Debug)]
pub(super) struct Aimd {
    factor: f64,
    at: Duration,
    cut: Option<Duration>,
}

impl Aimd {
    pub(super) fn new(now: Duration) -> Self {
        Self { factor: 1.0, at: now, cut: None }
    }

    /// The part now.
    pub(super) fn factor(&self, now: Duration) -> f64 {
        (self.factor + RECOVERS * now.saturating_sub(self.at).as_secs_f64()).min(1.0)
    }

    /// A refusal. Buckets are to be filled up to `now` first.
    pub(super) fn halve(&mut self, now: Duration) {
        if self.cut.is_some_and(|cut| now.saturating_sub(cut) < APART) {
            return;
        }
        self.factor = (self.factor(now) / 2.0).max(FLOOR);
        (self.at, self.cut) = (now, Some(now));
    }

    /// Seconds at the full rate that `from` to `to` are worth.
    pub(super) fn worth(&self, from: Duration, to: Duration) -> f64 {
        (self.since(to) - self.since(from)).max(0.0)
    }

    /// How long from `now` until it is worth so many seconds at the full rate.
    pub(super) fn takes(&self, now: Duration, worth: f64) -> f64 {
        let factor = self.factor(now);
        let slow = (1.0 - factor) / RECOVERS;
        let slow_worth = slow * (1.0 + factor) / 2.0;
        if worth >= slow_worth {
            return slow + (worth - slow_worth);
        }
        (-factor + (factor * factor + 2.0 * RECOVERS * worth).sqrt()) / RECOVERS
    }

    /// Seconds at the full rate from the last change to `to`; before it, the part stands at what it was then.
    fn since(&self, to: Duration) -> f64 {
        let Some(passed) = to.checked_sub(self.at) else {
            return -self.factor * (self.at.saturating_sub(to)).as_secs_f64();
        };
        let passed = passed.as_secs_f64();
        let slow = ((1.0 - self.factor) / RECOVERS).min(passed);
        self.factor * slow + RECOVERS * slow * slow / 2.0 + (passed - slow)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    #[test]
    fn a_refusal_halves_once_in_five_seconds_and_comes_back() {
        let mut aimd = Aimd::new(s(0.0));
        for (at, halve, want) in [
            (0.0, false, 1.0),
            (10.0, true, 0.5),
            (14.9, true, 0.745),
            (15.0, true, 0.375),
            (20.0, true, 0.3125),
            (25.0, true, 0.281_25),
            (40.0, false, 1.0),
        ] {
            if halve {
                aimd.halve(s(at));
            }
            assert!((aimd.factor(s(at)) - want).abs() < 1e-9, "{at}: {}", aimd.factor(s(at)));
        }
        for n in 0..30 {
            aimd.factor = 0.11;
            aimd.halve(s(100.0 + 10.0 * f64::from(n)));
            assert!(aimd.factor >= FLOOR);
        }
    }

    proptest::proptest! {
        #[test]
        fn what_it_takes_is_what_it_is_worth(ask in 0.0f64..100.0, at in 0.0f64..30.0) {
            let mut aimd = Aimd::new(s(0.0));
            aimd.halve(s(0.0));
            let takes = aimd.takes(s(at), ask);
            let worth = aimd.worth(s(at), s(at + takes));
            proptest::prop_assert!((worth - ask).abs() < 1e-6, "{worth} {ask}");
        }
    }
}
