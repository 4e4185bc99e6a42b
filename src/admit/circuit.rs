//! A run of failures, and what becomes of it: after five in a row no try goes out but one a second, until one works.
//!
//! Accounts ([`crate::upstream::breaker`]) and routes ([`super::router`]) are left alone by the same rule (fault matrix U6). Decides
//! only; the moment is passed in, as whatever its owner counts time in.
use std::{
    ops::{Add, Sub},
    time::Duration,
};

/// So many failures in a row open it.
pub const FAILURES: u32 = 5;
/// While it is open, one try goes out in so long.
pub const PROBE_EVERY: Duration = Duration::from_secs(1);

/// A moment: a clock's, or the time since something began.
pub trait Moment: Copy + PartialOrd + Add<Duration, Output = Self> + Sub<Output = Duration> {}

impl<T: Copy + PartialOrd + Add<Duration, Output = T> + Sub<Output = Duration>> Moment for T {}

/// Failures in a row.
#[derive(Debug, Clone)]
pub struct Circuit<T> {
    failures: u32,
    /// Set while it is open: when the next try may go out.
    probe_at: Option<T>,
}

impl<T> Default for Circuit<T> {
    fn default() -> Self {
        Self { failures: 0, probe_at: None }
    }
}

impl<T: Moment> Circuit<T> {
    /// How long nobody may try; zero: somebody may. A wait that is longer than any that is given here is none: the clock has
    /// gone back.
    pub fn wait(&self, now: T) -> Duration {
        match self.probe_at {
            Some(at) if at > now && at - now <= PROBE_EVERY => at - now,
            _ => Duration::ZERO,
        }
    }

    /// Somebody tries now. Of those who ask while it is open, one a second is the one that finds out.
    pub fn tries(&mut self, now: T) {
        if self.is_open() {
            self.probe_at = Some(now + PROBE_EVERY);
        }
    }

    /// It worked. Whether it had been open.
    pub fn worked(&mut self) -> bool {
        self.failures = 0;
        self.probe_at.take().is_some()
    }

    /// It did not. Whether it has opened by this.
    pub fn failed(&mut self, now: T) -> bool {
        self.failures = self.failures.saturating_add(1);
        // While it is open, those that began before and fail only now put no try off.
        let opens = self.failures >= FAILURES && !self.is_open();
        if opens {
            self.probe_at = Some(now + PROBE_EVERY);
        }
        opens
    }

    /// Whether only one try a second goes out.
    pub fn is_open(&self) -> bool {
        self.probe_at.is_some()
    }

    /// Failures since it worked.
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn five_in_a_row_open_it_one_try_a_second_goes_out_and_one_that_works_closes_it() {
        let mut circuit = Circuit::default();
        (0..4).for_each(|n| assert!(!circuit.failed(ms(n))));
        assert!(!circuit.worked() && !circuit.is_open());
        assert_eq!((0..5).filter(|_| circuit.failed(ms(10))).count(), 1, "it opens once");
        let mut tries = 0;
        for now in (11..10_010).map(ms).filter(|now| now.as_millis() % 7 == 0) {
            if circuit.wait(now).is_zero() {
                circuit.tries(now);
                tries += 1;
            }
        }
        assert_eq!(tries, 9);
        assert!(circuit.worked() && circuit.wait(ms(10_010)).is_zero() && circuit.failures() == 0);
    }

    #[test]
    fn failures_that_come_late_put_no_try_off() {
        let mut circuit = Circuit::default();
        assert!((0..5).any(|_| circuit.failed(ms(0))));
        (1..100).for_each(|n| assert!(!circuit.failed(ms(n * 10))));
        assert_eq!((circuit.wait(ms(990)), circuit.wait(ms(1_000))), (ms(10), ms(0)));
    }

    #[test]
    fn a_clock_that_goes_back_keeps_nobody_out() {
        let mut circuit = Circuit::default();
        assert!((0..5).any(|_| circuit.failed(ms(3_600_000))));
        assert_eq!((circuit.wait(ms(3_600_001)), circuit.wait(ms(5))), (ms(999), ms(0)));
        circuit.tries(ms(5));
        assert_eq!(circuit.wait(ms(6)), ms(999), "and it goes on from there");
    }
}
