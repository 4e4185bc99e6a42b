//! The way to the relay: as many requests at once as [`Width`] says, none while it asks for a pause, and one at a time where [`Outage`]
//! takes the service to be out.
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{self, Instant},
};

use super::{
    outage::{Outage, PAUSE, Sign, Turn, Verdict},
    width::{Answered, Width},
};

/// How it stands, for people.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// Requests under way.
    pub running: usize,
    /// So many may be.
    pub width: usize,
    /// Nothing is sent for so long.
    pub held: Option<Duration>,
    /// Why the last pause was asked for.
    pub reason: Option<String>,
    /// How often one was.
    pub refusals: u64,
}

/// The gate. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Gate(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    began: Instant,
    state: Mutex<State>,
    changed: Notify,
    failed: Notify,
}

#[derive(Debug)]
struct State {
    width: Width,
    outage: Outage,
    running: usize,
    reason: Option<String>,
    refusals: u64,
}

/// Leave to have one request under way.
#[derive(Debug)]
pub struct Pass {
    gate: Gate,
    file: i64,
    /// It is the one that is tried while the service is out.
    probe: bool,
}

/// A file has failed as often as can be, and there is nobody else to be asked for: why the last of them failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Poisoned(pub String);

/// Somebody who wants to send.
struct Spot<'a> {
    gate: &'a Gate,
    ticket: u64,
}

impl Drop for Spot<'_> {
    fn drop(&mut self) {
        self.gate.state().outage.unqueue(self.ticket);
        self.gate.0.changed.notify_waiters();
    }
}

impl Gate {
    /// With this width to begin with.
    pub fn new(width: Width) -> Self {
        let state = State { width, outage: Outage::default(), running: 0, reason: None, refusals: 0 };
        let (state, changed, failed) = (Mutex::new(state), Notify::new(), Notify::new());
        Self(Arc::new(Inner { began: Instant::now(), state, changed, failed }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Duration {
        self.0.began.elapsed()
    }

    /// Waits until one more request may be under way, of this file.
    ///
    /// # Errors
    /// When its file is to be given up.
    pub async fn enter(&self, file: i64) -> Result<Pass, Poisoned> {
        let spot = Spot { gate: self, ticket: self.state().outage.queue(file) };
        loop {
            let changed = self.0.changed.notified();
            let held = {
                let now = self.now();
                let mut state = self.state();
                let (width, held) = (state.width.at(now), state.width.held_until(now));
                let probe = match state.outage.turn(spot.ticket) {
                    Turn::Free if state.running < width => Some(false),
                    Turn::First { poisoned: true } if held.is_none() => {
                        return Err(Poisoned(state.reason.clone().unwrap_or_default()));
                    }
                    // Others may hang for long: they are not waited for.
                    Turn::First { poisoned: false } if held.is_none() => Some(true),
                    _ => None,
                };
                if let Some(probe) = probe {
                    state.running += 1;
                    if probe {
                        state.outage.probe(true);
                    }
                    return Ok(Pass { gate: self.clone(), file, probe });
                }
                held
            };
            match held {
                Some(until) => drop(time::timeout_at(self.0.began + until, changed).await),
                None => changed.await,
            }
        }
    }

    /// Comes back after the next request that has failed, at once if one has since it was last asked.
    pub async fn next_failure(&self) {
        self.0.failed.notified().await;
    }

    /// How many good answers there were.
    pub fn answers(&self) -> u64 {
        self.state().outage.answers()
    }

    /// Files that may be under way: as many as requests may, beside those that wait for others to be tried in their place.
    pub fn files(&self) -> usize {
        let now = self.now();
        let state = self.state();
        state.width.at(now) + state.outage.suspects()
    }

    /// How it stands.
    pub fn standing(&self) -> Standing {
        let now = self.now();
        let state = self.state();
        let held = state.width.held_until(now).map(|until| until - now);
        let (width, refusals) = (state.width.at(now), state.refusals);
        Standing { running: state.running, width, held, reason: state.reason.clone(), refusals }
    }
}

impl Pass {
    /// Its request, of this class ([`super::width::class`]), was answered.
    pub fn answered(&self, took: Duration, waited: Duration, class: usize) {
        let now = self.gate.now();
        let mut state = self.gate.state();
        let full = state.running >= state.width.at(now);
        state.width.answered(Answered { took, waited, full, class });
        state.outage.answered();
        drop(state);
        self.gate.0.changed.notify_waiters();
    }

    /// It was not, and why.
    pub fn failed(self, sign: Sign, reason: &str) -> Verdict {
        let now = self.gate.now();
        let mut state = self.gate.state();
        let verdict = state.outage.failed(now, self.file, self.probe, sign);
        match sign {
            Sign::Busy { wait } => {
                state.width.refused(now, wait);
                state.refusals += 1;
            }
            _ if verdict.out => {
                state.width.hold(now, PAUSE);
                // It may be out because of us.
                if verdict.first {
                    state.width.halve();
                }
            }
            _ => {}
        }
        state.reason = Some(reason.to_owned());
        drop(state);
        self.gate.0.failed.notify_one();
        verdict
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        {
            let mut state = self.gate.state();
            state.running -= 1;
            if self.probe {
                state.outage.probe(false);
            }
        }
        self.gate.0.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(gate: &Gate) -> Option<Duration> {
        gate.standing().held
    }

    #[tokio::test(start_paused = true)]
    async fn as_many_pass_as_may_and_none_in_a_pause() {
        let gate = Gate::new(Width::fixed(2));
        let (first, second) = (gate.enter(1).await.unwrap(), gate.enter(2).await.unwrap());
        let mut waiting = std::pin::pin!(gate.enter(3));
        assert!(futures_util::poll!(waiting.as_mut()).is_pending());
        drop(first);
        let third = waiting.await.unwrap();
        third.failed(Sign::Busy { wait: Duration::from_secs(3) }, "too fast");
        drop(second);
        let began = Instant::now();
        let standing = gate.standing();
        assert_eq!((standing.width, standing.held, standing.running), (0, Some(Duration::from_secs(3)), 0));
        let _again = gate.enter(3).await.unwrap();
        assert_eq!(began.elapsed(), Duration::from_secs(3));
        assert_eq!(
            gate.standing(),
            Standing { running: 1, width: 2, held: None, reason: Some("too fast".into()), refusals: 1 }
        );
    }

    #[tokio::test(start_paused = true)]
    async fn while_the_service_is_out_one_is_tried_at_a_time_whatever_hangs_and_its_answer_lets_all_go() {
        let gate = Gate::new(Width::fixed(20));
        let hangs = gate.enter(100).await.unwrap();
        for file in 0..8 {
            let failed = gate.enter(file).await.unwrap().failed(Sign::Broken { tries: 1, before: false }, "no");
            assert_eq!(failed.out, file == 7);
        }
        assert_eq!((held(&gate), gate.files()), (Some(PAUSE), 8));
        let probe = gate.enter(1).await.unwrap();
        let mut others: Vec<_> = (2..6).map(|file| Box::pin(gate.enter(file))).collect();
        for other in &mut others {
            assert!(futures_util::poll!(other).is_pending(), "one at a time");
        }
        assert_eq!(gate.standing().refusals, 0, "nobody has spoken of limits");
        probe.answered(Duration::from_secs(1), Duration::ZERO, 0);
        let others = futures_util::future::join_all(others).await;
        assert!(others.iter().all(Result::is_ok) && gate.standing().running == 6);
        drop((hangs, probe, others));
        assert_eq!(gate.standing().running, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_a_place_when_the_service_goes_out_is_not_let_through() {
        let gate = Gate::new(Width::fixed(8));
        let passes = futures_util::future::join_all((0..8).map(|file| gate.enter(file))).await;
        let mut waiting: Vec<_> = (10..14).map(|file| Box::pin(gate.enter(file))).collect();
        for waiting in &mut waiting {
            assert!(futures_util::poll!(waiting).is_pending());
        }
        for pass in passes {
            pass.unwrap().failed(Sign::Broken { tries: 1, before: false }, "no");
        }
        time::advance(PAUSE).await;
        let mut through = Vec::new();
        for waiting in &mut waiting {
            through.extend(match futures_util::poll!(waiting) {
                std::task::Poll::Ready(pass) => pass.ok(),
                std::task::Poll::Pending => None,
            });
        }
        assert_eq!((through.len(), gate.standing().running), (1, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_that_has_failed_as_often_as_can_be_is_given_up_when_nobody_else_is_there() {
        let gate = Gate::new(Width::fixed(2));
        let mut tries = 0;
        let why = loop {
            match gate.enter(1).await {
                Ok(pass) => tries += u32::from(!pass.failed(Sign::Broken { tries: 1, before: false }, "HTTP 500").over),
                Err(Poisoned(why)) => break why,
            }
        };
        assert_eq!((tries, why.as_str()), (13, "HTTP 500"));
    }
}
