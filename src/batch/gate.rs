//! The way to the relay: as many requests at once as [`Width`] says, and none while it asks for a pause.
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{self, Instant},
};

use super::width::{Answered, Width};

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
}

#[derive(Debug)]
struct State {
    width: Width,
    running: usize,
    reason: Option<String>,
    refusals: u64,
}

/// Leave to have one request under way.
#[derive(Debug)]
pub struct Pass {
    gate: Gate,
}

impl Gate {
    /// With this width to begin with.
    pub fn new(width: Width) -> Self {
        let state = Mutex::new(State { width, running: 0, reason: None, refusals: 0 });
        Self(Arc::new(Inner { began: Instant::now(), state, changed: Notify::new() }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Duration {
        self.0.began.elapsed()
    }

    /// Waits until one more request may be under way.
    pub async fn enter(&self) -> Pass {
        loop {
            let changed = self.0.changed.notified();
            let held = {
                let now = self.now();
                let mut state = self.state();
                let width = state.width.at(now);
                if state.running < width {
                    state.running += 1;
                    return Pass { gate: self.clone() };
                }
                state.width.held_until(now)
            };
            match held {
                Some(until) => drop(time::timeout_at(self.0.began + until, changed).await),
                None => changed.await,
            }
        }
    }

    /// Nothing is to be sent for so long.
    pub fn refused(&self, wait: Duration, reason: &str) {
        let now = self.now();
        let mut state = self.state();
        state.width.refused(now, wait);
        state.refusals += 1;
        state.reason = Some(reason.to_owned());
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
        drop(state);
        self.gate.0.changed.notify_waiters();
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.gate.state().running -= 1;
        self.gate.0.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn as_many_pass_as_may_and_none_in_a_pause() {
        let gate = Gate::new(Width::fixed(2));
        let (first, second) = (gate.enter().await, gate.enter().await);
        let mut waiting = std::pin::pin!(gate.enter());
        assert!(futures_util::poll!(waiting.as_mut()).is_pending());
        drop(first);
        let third = waiting.await;
        gate.refused(Duration::from_secs(3), "too fast");
        drop((second, third));
        let began = Instant::now();
        let standing = gate.standing();
        assert_eq!((standing.width, standing.held, standing.running), (0, Some(Duration::from_secs(3)), 0));
        let _again = gate.enter().await;
        assert_eq!(began.elapsed(), Duration::from_secs(3));
        assert_eq!(
            gate.standing(),
            Standing { running: 1, width: 1, held: None, reason: Some("too fast".into()), refusals: 1 }
        );
    }
}
