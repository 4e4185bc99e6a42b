//! Whether an account is dialled at all: what one call has learned of the service, for all calls (fault matrix U5, U6).
//!
//! After a run of failures it is left alone but for one try a second; a wait that it names holds for everybody; and calls together
//! may try again for a tenth of what they try first. Refused keys, models and limits are no failures of the service: it answers.
//! Decisions only, with the moment passed in.
use std::{sync::Mutex, time::Duration};

use serde::Serialize;
use tokio::time::Instant;

use super::error::Verdict;
use crate::admit::circuit::Circuit;

/// A service that names a longer wait is tried again after so long, nevertheless: it may have been a slip.
const LONGEST_HOLD: Duration = Duration::from_secs(120);
/// A retry costs one, a first try earns a tenth of it; so much can be saved up.
const SAVINGS: u32 = 10;
const TENTHS: u32 = 10;

/// What a call may do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Try.
    Go,
    /// Wait so long: the service has named this moment.
    Held(Duration),
    /// Do not try: it has failed so often. The next try is due in so long.
    Open(Duration),
}

/// How an account's connects have gone.
#[derive(Debug, Default)]
struct State {
    circuit: Circuit<Instant>,
    /// No connect before this moment.
    not_before: Option<Instant>,
    /// Tenths of retries that were spent of the savings.
    spent: u32,
}

/// One account's breaker.
#[derive(Debug, Default)]
pub struct Breaker(Mutex<State>);

/// What of it an operator sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Shown {
    /// `closed`: calls are connected; `open`: they are refused, but for one try a second.
    pub state: &'static str,
    /// Failures in a row.
    pub failures: u32,
    /// The service has asked to be left alone for so much longer, ms.
    pub held_ms: u64,
}

impl Breaker {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Whether to try now. Of those who ask while it is open, one a second is the one that finds out.
    pub fn ask(&self, now: Instant) -> Answer {
        let mut state = self.state();
        if let Some(at) = state.not_before {
            if at > now {
                return Answer::Held(at - now);
            }
            state.not_before = None;
        }
        let wait = state.circuit.wait(now);
        if !wait.is_zero() {
            return Answer::Open(wait);
        }
        state.circuit.tries(now);
        Answer::Go
    }

    /// How long the service wants to be left alone.
    pub fn held(&self, now: Instant) -> Duration {
        self.state().not_before.map_or(Duration::ZERO, |at| at.saturating_duration_since(now))
    }

    /// A session came up. Whether it had been open.
    pub fn worked(&self) -> bool {
        self.state().circuit.worked()
    }

    /// None did. Whether it has opened by this.
    pub fn failed(&self, now: Instant, verdict: &Verdict) -> bool {
        let mut state = self.state();
        if verdict.code == "rate_limited" {
            if let Some(wait) = verdict.retry_after {
                let until = now + wait.min(LONGEST_HOLD);
                state.not_before = Some(state.not_before.map_or(until, |at| at.max(until)));
            }
            return false;
        }
        if !verdict.transient || verdict.code == "credentials_unavailable" {
            return false;
        }
        state.circuit.failed(now)
    }

    /// Somebody tries for the first time.
    pub fn first_try(&self) {
        let mut state = self.state();
        state.spent = state.spent.saturating_sub(1);
    }

    /// Whether somebody may try again.
    pub fn may_retry(&self) -> bool {
        let mut state = self.state();
        let may = state.spent + TENTHS <= SAVINGS * TENTHS;
        state.spent += if may { TENTHS } else { 0 };
        may
    }

    /// As it is now.
    pub fn shown(&self, now: Instant) -> Shown {
        let held = self.held(now);
        let state = self.state();
        Shown {
            state: if state.circuit.is_open() { "open" } else { "closed" },
            failures: state.circuit.failures(),
            held_ms: u64::try_from(held.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const DOWN: Verdict = Verdict { code: "upstream_unavailable", close: 4503, transient: true, retry_after: None };

    #[tokio::test(start_paused = true)]
    async fn five_failures_in_a_row_open_it_and_one_try_a_second_goes_out() {
        let (breaker, began) = (Breaker::default(), Instant::now());
        for _ in 0..4 {
            assert!(!breaker.failed(began, &DOWN));
        }
        breaker.worked();
        for n in 0..5 {
            assert_eq!(breaker.ask(began), Answer::Go);
            assert_eq!(breaker.failed(began, &DOWN), n == 4, "in a row");
        }
        assert_eq!(breaker.ask(began), Answer::Open(SECOND));
        let tries = (0..10_000).filter(|ms| breaker.ask(began + Duration::from_millis(*ms)) == Answer::Go).count();
        assert_eq!(tries, 9, "in ten seconds, whoever asks");
        assert_eq!(breaker.shown(began).state, "open");
        assert!(breaker.worked() && breaker.ask(began) == Answer::Go);
        assert_eq!(breaker.shown(began), Shown { state: "closed", failures: 0, held_ms: 0 });
    }

    #[tokio::test(start_paused = true)]
    async fn refused_keys_models_and_limits_are_no_failures() {
        let (breaker, now) = (Breaker::default(), Instant::now());
        for (code, transient) in [
            ("upstream_auth", false),
            ("upstream_refused", false),
            ("rate_limited", true),
            ("credentials_unavailable", true),
        ] {
            for _ in 0..9 {
                assert!(!breaker.failed(now, &Verdict { code, transient, ..DOWN }), "{code}");
            }
        }
        assert_eq!(breaker.ask(now), Answer::Go);
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_that_is_named_holds_for_everybody_and_shorter_ones_do_not_end_it() {
        let (breaker, now) = (Breaker::default(), Instant::now());
        for (wait, held) in [(2, 2), (1, 2), (3, 3), (9_999, 120)] {
            breaker.failed(now, &Verdict { code: "rate_limited", retry_after: Some(wait * SECOND), ..DOWN });
            assert_eq!(breaker.ask(now), Answer::Held(held * SECOND));
        }
        assert_eq!(breaker.ask(now + 120 * SECOND), Answer::Go);
        assert_eq!(breaker.ask(now), Answer::Go, "a clock that goes back holds nobody");
    }

    #[test]
    fn retries_are_a_tenth_of_first_tries() {
        let breaker = Breaker::default();
        let retries = |breaker: &Breaker| std::iter::repeat_with(|| breaker.may_retry()).take_while(|may| *may).count();
        assert_eq!(retries(&breaker), 10);
        for _ in 0..100 {
            breaker.first_try();
        }
        assert_eq!(retries(&breaker), 10);
        for _ in 0..9 {
            breaker.first_try();
        }
        assert_eq!(retries(&breaker), 0);
    }
}
