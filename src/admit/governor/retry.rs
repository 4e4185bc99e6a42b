//! How long to wait before another try, and how many tries there may be.
use std::time::Duration;

/// Tries of one request, the first counted.
pub const TRIES: u32 = 3;
/// Before the second try; before the third, twice as much.
const FLOOR: Duration = Duration::from_millis(500);
/// What the service may name.
const NAMED: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(120));

/// How long to wait after `attempt` tries (1: the first has failed). `None`: give up.
///
/// What the service has `named` comes first, or else a floor that doubles; up to half of it more by `chance` (0 to 1), so
/// that those who were refused together do not come back together. `until`: how much time is left.
pub fn retry_wait(attempt: u32, named: Option<Duration>, chance: f64, until: Duration) -> Option<Duration> {
    if attempt >= TRIES {
        return None;
    }
    let floor = FLOOR * 2u32.pow(attempt.saturating_sub(1));
    let base = named.map_or(floor, |named| named.clamp(NAMED.0, NAMED.1));
    let chance = if chance.is_finite() { chance.clamp(0.0, 1.0) } else { 0.5 };
    let wait = base + base.mul_f64(chance / 2.0);
    (wait < until).then_some(wait)
}

/// Retries are at most a tenth of the requests, and one to begin with: when everything fails, nothing is tried three times.
#[derive(Debug)]
pub struct RetryBudget {
    tenths: u32,
}

impl RetryBudget {
    /// What one retry costs.
    const RETRY: u32 = 10;
    /// Retries that can be saved up.
    const SAVED: u32 = 10;

    /// A request was sent for the first time.
    pub fn request(&mut self) {
        self.tenths = (self.tenths + 1).min(Self::RETRY * Self::SAVED);
    }

    /// Whether one may be tried again; if so, it is counted.
    #[must_use]
    pub fn retry(&mut self) -> bool {
        let left = self.tenths.checked_sub(Self::RETRY);
        self.tenths = left.unwrap_or(self.tenths);
        left.is_some()
    }
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self { tenths: Self::RETRY }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_try_waits_for_what_is_named_or_a_floor() {
        let ms = Duration::from_millis;
        for (attempt, named, chance, until, want) in [
            (1, None, 0.0, 9_000, Some(500)),
            (2, None, 0.0, 9_000, Some(1_000)),
            (2, None, 1.0, 9_000, Some(1_500)),
            (3, None, 0.0, 9_000, None),
            (u32::MAX, None, 0.0, 9_000, None),
            (0, None, 0.0, 9_000, Some(500)),
            (1, Some(2_000), 0.0, 9_000, Some(2_000)),
            (1, Some(2_000), 0.5, 9_000, Some(2_500)),
            (1, Some(0), 0.0, 9_000, Some(10)),
            (1, Some(u64::MAX), 0.0, 200_000, Some(120_000)),
            (1, Some(9_000), 0.0, 9_000, None),
            (1, None, f64::NAN, 9_000, Some(625)),
            (1, None, -7.0, 9_000, Some(500)),
        ] {
            let got = retry_wait(attempt, named.map(ms), chance, ms(until));
            assert_eq!(got, want.map(ms), "{attempt} {named:?} {chance} {until}");
        }
    }

    proptest::proptest! {
        #[test]
        fn retries_are_a_tenth_in_any_order(events: Vec<bool>) {
            let (mut budget, mut requests, mut retries) = (RetryBudget::default(), 0, 0);
            for request in events {
                if request {
                    budget.request();
                    requests += 1;
                } else if budget.retry() {
                    retries += 1;
                }
                proptest::prop_assert!(retries <= 1 + requests / 10, "{retries} of {requests}");
            }
        }
    }
}
