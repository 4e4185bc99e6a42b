//! How one route is: its breaker, how soon it is there and is heard, and what limits it has named.
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::window::Window;
use crate::admit::circuit::Circuit;

/// Figures that are kept of a route, and for how long they count.
const FIGURES: usize = 256;
const AGE: Duration = Duration::from_secs(600);
/// With fewer figures nothing is said.
pub(super) const ENOUGH: usize = 20;
/// A limit that was hit weighs half as much after so long.
const PENALTY_HALVES: Duration = Duration::from_secs(10);
/// So many limits that were hit weigh at most.
const MOST_PENALTY: f64 = 4.0;
/// A wait that a service names is kept so long at most: it may have been a slip.
const LONGEST_HOLD: Duration = Duration::from_secs(120);
/// A route on which the service knows neither the key nor the model is not tried for so long.
const REFUSED_FOR: Duration = Duration::from_secs(30);
/// A service that drops many sessions at once has failed once.
const ONE_DROP: Duration = Duration::from_secs(1);

/// Where a session failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// There was none.
    Connect,
    /// An answer was asked for, and nothing of it came.
    FirstAudio,
    /// It broke, or a reply did, after it had begun.
    MidStream,
}

/// Whether a route may be tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Yes.
    Closed,
    /// By one, to find out whether it works again.
    HalfOpen,
    /// Not before so long.
    Open(Duration),
}

#[derive(Debug, Clone, Copy)]
struct Held {
    until: Duration,
    refused: bool,
}

/// One route.
#[derive(Debug)]
pub(super) struct Health {
    connect: Circuit<Duration>,
    first_audio: Circuit<Duration>,
    mid_stream: Circuit<Duration>,
    dropped_at: Option<Duration>,
    connects: Window,
    heard: Window,
    penalty: (Duration, f64),
    held: Option<Held>,
    /// When somebody had to do with it last.
    pub(super) touched: Duration,
}

impl Health {
    pub(super) fn new(now: Duration) -> Self {
        Self {
            connect: Circuit::default(),
            first_audio: Circuit::default(),
            mid_stream: Circuit::default(),
            dropped_at: None,
            connects: Window::new(FIGURES, AGE),
            heard: Window::new(FIGURES, AGE),
            penalty: (now, 0.0),
            held: None,
            touched: now,
        }
    }

    fn circuits(&self) -> [&Circuit<Duration>; 3] {
        [&self.connect, &self.first_audio, &self.mid_stream]
    }

    fn is_open(&self) -> bool {
        self.circuits().into_iter().any(Circuit::is_open)
    }

    pub(super) fn state(&self, now: Duration) -> State {
        let wait = self.circuits().into_iter().map(|circuit| circuit.wait(now)).max().unwrap_or_default();
        match (self.is_open(), wait.is_zero()) {
            (false, _) => State::Closed,
            (true, true) => State::HalfOpen,
            (true, false) => State::Open(wait),
        }
    }

    /// Failures in a row, of the worst stage.
    pub(super) fn failures(&self) -> u32 {
        self.circuits().into_iter().map(Circuit::failures).max().unwrap_or_default()
    }

    /// Somebody goes there now.
    pub(super) fn tries(&mut self, now: Duration) {
        [&mut self.connect, &mut self.first_audio, &mut self.mid_stream].into_iter().for_each(|one| one.tries(now));
    }

    /// A session is up. Whether the route is well again by this.
    pub(super) fn connected(&mut self, now: Duration, took: Duration) -> bool {
        self.connects.add(now, took);
        self.held = None;
        self.connect.worked() && !self.is_open()
    }

    /// An answer is heard. Whether the route is well again by this.
    pub(super) fn first_audio(&mut self, now: Duration, after: Duration) -> bool {
        self.heard.add(now, after);
        self.first_audio.worked() && !self.is_open()
    }

    /// A reply came to its end. Whether the route is well again by this. That sessions run says nothing of new ones.
    pub(super) fn replied(&mut self) -> bool {
        let worked = [self.first_audio.worked(), self.mid_stream.worked()];
        worked.contains(&true) && !self.is_open()
    }

    /// Whether it has opened by this.
    pub(super) fn failed(&mut self, now: Duration, stage: Stage) -> bool {
        let was_open = self.is_open();
        let opens = match stage {
            Stage::Connect => self.connect.failed(now),
            Stage::FirstAudio => self.first_audio.failed(now),
            Stage::MidStream => {
                let same = self.dropped_at.is_some_and(|at| now.saturating_sub(at) < ONE_DROP);
                if !same {
                    self.dropped_at = Some(now);
                }
                !same && self.mid_stream.failed(now)
            }
        };
        opens && !was_open
    }

    /// A limit was hit; the service has named a wait, or has not.
    pub(super) fn limited(&mut self, now: Duration, wait: Option<Duration>) {
        self.penalty = (now, (self.penalty(now) + 1.0).min(MOST_PENALTY));
        self.hold(now, wait.unwrap_or_default(), false);
    }

    /// The service knows the key or the model not.
    pub(super) fn refused(&mut self, now: Duration) {
        self.hold(now, REFUSED_FOR, true);
    }

    fn hold(&mut self, now: Duration, wait: Duration, refused: bool) {
        let until = now + wait.min(LONGEST_HOLD);
        if !wait.is_zero() && self.held.is_none_or(|held| held.until < until) {
            self.held = Some(Held { until, refused });
        }
    }

    /// How long it should be left alone, and whether for a refusal.
    pub(super) fn held(&self, now: Duration) -> Option<(Duration, bool)> {
        self.held.filter(|held| held.until > now).map(|held| (held.until - now, held.refused))
    }

    /// Limits that were hit, each weighing less with time.
    pub(super) fn penalty(&self, now: Duration) -> f64 {
        let (at, level) = self.penalty;
        level * 0.5_f64.powf(now.saturating_sub(at).as_secs_f64() / PENALTY_HALVES.as_secs_f64())
    }

    /// How soon 95 of 100 replies were heard lately.
    pub(super) fn first_audio_p95(&self, now: Duration) -> Option<Duration> {
        self.heard.p95(now, ENOUGH)
    }

    /// How soon 95 of 100 sessions were up lately.
    pub(super) fn connect_p95(&self, now: Duration) -> Option<Duration> {
        self.connects.p95(now, ENOUGH)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn each_stage_has_its_own_run_of_failures_and_its_own_cure() {
        type Cure = fn(&mut Health) -> bool;
        let cures: [(&str, Cure); 3] = [
            ("connected", |health| health.connected(9 * SECOND, SECOND)),
            ("first audio", |health| health.first_audio(9 * SECOND, SECOND)),
            ("replied", Health::replied),
        ];
        for (stage, cured_by) in [
            (Stage::Connect, [true, false, false]),
            (Stage::FirstAudio, [false, true, true]),
            (Stage::MidStream, [false, false, true]),
        ] {
            for ((name, cure), cures) in cures.iter().zip(cured_by) {
                let mut health = Health::new(SECOND);
                let opened = (1..=5).map(|n| health.failed(n * SECOND, stage)).collect::<Vec<_>>();
                assert_eq!(opened, [false, false, false, false, true], "{stage:?}");
                assert_eq!(health.state(5 * SECOND), State::Open(SECOND));
                assert_eq!((health.state(6 * SECOND), health.failures()), (State::HalfOpen, 5));
                assert_eq!((cure(&mut health), health.state(6 * SECOND) == State::Closed), (cures, cures), "{name}");
            }
        }
    }

    #[test]
    fn many_sessions_that_are_dropped_at_once_are_one_failure() {
        let mut health = Health::new(SECOND);
        (0..200_u64).for_each(|n| assert!(!health.failed(Duration::from_millis(5_000 + n), Stage::MidStream)));
        assert_eq!((health.state(6 * SECOND), health.failures()), (State::Closed, 1));
    }

    #[test]
    fn limits_are_neither_failures_nor_successes_and_weigh_less_with_time() {
        let mut health = Health::new(SECOND);
        (0..4).for_each(|_| assert!(!health.failed(SECOND, Stage::Connect)));
        (0..9).for_each(|_| health.limited(SECOND, Some(2 * SECOND)));
        assert_eq!((health.state(SECOND), health.failures(), health.penalty(SECOND)), (State::Closed, 4, 4.0));
        assert_eq!(health.connect_p95(SECOND), None, "it was not fast");
        assert_eq!((health.penalty(11 * SECOND), health.penalty(21 * SECOND)), (2.0, 1.0));
        assert_eq!((health.held(SECOND), health.held(3 * SECOND)), (Some((2 * SECOND, false)), None));
        assert!(health.failed(SECOND, Stage::Connect), "the run goes on");
        // Shorter waits do not end longer ones; no wait is endless.
        health.refused(4 * SECOND);
        health.limited(5 * SECOND, Some(SECOND));
        assert_eq!(health.held(5 * SECOND), Some((29 * SECOND, true)));
        health.limited(5 * SECOND, Some(Duration::MAX));
        assert_eq!(health.held(5 * SECOND), Some((120 * SECOND, false)));
    }
}
