//! What the service says is left of one limit, and how that ages.
//!
//! It only ever makes us slower than our own count. What is reserved after it was said is taken off; it grows as the limit
//! comes back, and after [`FORGOTTEN`] it says nothing any more. It may fall at once, but rises no faster than it grows
//! unless the reset that it named has passed: replies overtake each other, and an old one must not give back what newer ones
//! have taken.
use std::time::Duration;

/// A view that is older says nothing.
const FORGOTTEN: Duration = Duration::from_secs(120);
/// A limit over this is not one.
const HUGE: u64 = 1_000_000_000_000;
/// A reset further away than this is not one.
const LAST_RESET: Duration = Duration::from_secs(2 * 86_400);

/// The service's side of one dimension.
#[derive(Debug)]
pub(super) struct Seen {
    /// What comes back in this time is the whole limit, seconds.
    period: f64,
    limit: Option<u64>,
    left: Option<Left>,
}

#[derive(Debug)]
struct Left {
    bound: f64,
    remaining: f64,
    at: Duration,
    heard: Duration,
    reset: Option<Duration>,
}

impl Seen {
    pub(super) fn new(daily: bool) -> Self {
        Self { period: if daily { 86_400.0 } else { 60.0 }, limit: None, left: None }
    }

    /// The limit that the service has named.
    pub(super) fn limit(&self) -> Option<u64> {
        self.limit
    }

    /// Takes what a reply says. `known`: the limit that is configured.
    pub(super) fn hear(
        &mut self,
        now: Duration,
        known: Option<u64>,
        limit: Option<u64>,
        remaining: Option<u64>,
        reset: Option<Duration>,
    ) {
        if let Some(limit) = limit.filter(|limit| (1..=HUGE).contains(limit)) {
            self.limit = Some(limit);
        }
        // Without a limit there is no telling how it grows.
        let (Some(bound), Some(remaining)) = (self.limit.or(known), remaining) else { return };
        let bound = bound as f64;
        let mut remaining = (remaining as f64).min(bound);
        let was_reset = self.left.as_ref().is_some_and(|left| left.reset.is_some_and(|at| now >= at));
        if !was_reset && let Some(expected) = self.left(now) {
            remaining = remaining.min(expected);
        }
        let reset = reset.filter(|reset| !reset.is_zero() && *reset <= LAST_RESET).map(|reset| now + reset);
        self.left = Some(Left { bound, remaining, at: now, heard: now, reset });
    }

    /// What is left now; `None`: not known.
    pub(super) fn left(&self, now: Duration) -> Option<f64> {
        let left = self.left.as_ref().filter(|left| now.saturating_sub(left.heard) <= FORGOTTEN)?;
        let grown = now.saturating_sub(left.at).as_secs_f64() * left.bound / self.period;
        Some((left.remaining + grown).min(left.bound))
    }

    /// How long until so much is left; at the latest until the view is forgotten.
    pub(super) fn wait(&self, now: Duration, need: f64) -> Option<Duration> {
        let (have, left) = (self.left(now)?, self.left.as_ref()?);
        let need = need.min(left.bound);
        if have + 1e-6 * (1.0 + need) >= need {
            return None;
        }
        let grows = Duration::try_from_secs_f64((need - have) * self.period / left.bound).unwrap_or(FORGOTTEN);
        Some(grows.min((left.heard + FORGOTTEN).saturating_sub(now)))
    }

    /// Reserved (or, if negative, given back) since.
    pub(super) fn take(&mut self, now: Duration, amount: f64) {
        let Some(remaining) = self.left(now) else { return };
        if let Some(left) = &mut self.left {
            left.remaining = (remaining - amount).clamp(-left.bound, left.bound);
            left.at = now;
        }
    }

    /// When it was said.
    pub(super) fn heard(&self) -> Option<Duration> {
        self.left.as_ref().map(|left| left.heard)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// Name, replies, second to look at, limit and what is left then.
    type Case<'a> = (&'a str, &'a [Said], u64, Option<u64>, Option<f64>);
    type Said = (u64, Option<u64>, Option<u64>, Option<u64>);

    /// What is left at a second after replies of (second, limit, remaining, reset), of a limit of 600 that is configured.
    fn after(said: &[Said], at: u64) -> (Option<u64>, Option<f64>) {
        let mut seen = Seen::new(false);
        for (second, limit, remaining, reset) in said {
            seen.hear(s(*second), Some(600), *limit, *remaining, reset.map(s));
        }
        (seen.limit(), seen.left(s(at)))
    }

    #[test]
    fn what_is_said_ages_and_nonsense_does_no_harm() {
        let huge = Some(u64::MAX);
        let table: &[Case] = &[
            ("nothing", &[], 0, None, None),
            ("nothing in it", &[(0, None, None, None)], 0, None, None),
            ("a limit alone is learned", &[(0, Some(300), None, None)], 0, Some(300), None),
            ("grows", &[(0, None, Some(100), None)], 10, None, Some(200.0)),
            ("grows by its own limit", &[(0, Some(60), Some(0), None)], 10, Some(60), Some(10.0)),
            ("up to the limit", &[(0, None, Some(100), None)], 100, None, Some(600.0)),
            ("is forgotten", &[(0, None, Some(0), None)], 121, None, None),
            ("no limit is 0", &[(0, Some(0), Some(100), None)], 0, None, Some(100.0)),
            ("nor huge", &[(0, huge, huge, None)], 0, None, Some(600.0)),
            ("more than the limit is the limit", &[(0, Some(300), Some(5_000), None)], 0, Some(300), Some(300.0)),
            ("falls at once", &[(0, None, Some(500), None), (1, None, Some(3), None)], 1, None, Some(3.0)),
            ("an old reply", &[(0, None, Some(100), None), (1, None, Some(500), None)], 1, None, Some(110.0)),
            ("a reset", &[(0, None, Some(0), Some(5)), (6, None, Some(600), None)], 6, None, Some(600.0)),
            ("before the reset", &[(0, None, Some(0), Some(9)), (6, None, Some(600), None)], 6, None, Some(60.0)),
            ("a reset of 0", &[(0, None, Some(0), Some(0)), (1, None, Some(600), None)], 1, None, Some(10.0)),
            ("a huge reset", &[(0, None, Some(0), huge), (1, None, Some(0), huge)], 1, None, Some(0.0)),
            ("a clock that goes back", &[(9, None, Some(50), None)], 1, None, Some(50.0)),
        ];
        for (name, said, at, limit, left) in table {
            assert_eq!(after(said, *at), (*limit, *left), "{name}");
        }
    }

    #[test]
    fn a_limit_that_nobody_knows_binds_nobody() {
        let mut seen = Seen::new(false);
        seen.hear(s(0), None, None, Some(0), None);
        assert_eq!((seen.left(s(0)), seen.wait(s(0), 5.0)), (None, None));
    }

    #[test]
    fn reservations_since_are_taken_off() {
        let mut seen = Seen::new(false);
        seen.hear(s(0), Some(600), None, Some(100), None);
        seen.take(s(0), 80.0);
        assert_eq!(seen.wait(s(0), 50.0), Some(s(3)), "20 are left, 10 a second come");
        seen.take(s(0), -80.0);
        assert_eq!(seen.wait(s(0), 50.0), None);
    }
}
