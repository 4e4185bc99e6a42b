//! The thread that writes, and the desk between it and those who book.
//!
//! The desk's lock is held for moments only, never while something is written.
use std::{
    collections::HashSet,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use tokio::{sync::watch, time::Instant};

use super::{
    entry::Entry,
    file::LedgerError,
    spool::{Booked, Health, Rows, Spool},
};
use crate::observe::fact::Fact;

/// Rows gather for so long: two writes are within a second, whatever else happens in it (fault matrix O2). Also the pause
/// after a try that failed.
const GATHER: Duration = Duration::from_millis(250);

/// Where rows are left and fetched.
#[derive(Debug)]
pub(super) struct Desk {
    state: Mutex<State>,
    /// Something has come, or somebody waits.
    bell: Condvar,
    /// Told after every try.
    tried: watch::Sender<()>,
}

#[derive(Debug)]
struct State {
    spool: Spool,
    /// Somebody waits for the next try.
    hurry: bool,
    /// Nobody can book any more.
    left: bool,
    /// Rows that found no room, so that the first is logged.
    lost: u64,
}

impl Desk {
    pub(super) fn new(spool: Spool) -> Self {
        let state = State { spool, hurry: false, left: false, lost: 0 };
        Self { state: Mutex::new(state), bell: Condvar::new(), tried: watch::Sender::new(()) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn book(&self, now: Instant, entry: Entry) {
        let mut state = self.state();
        let booked = state.spool.book(now, entry.bounded());
        if booked == Booked::Lost {
            state.lost += 1;
            let first = state.lost == 1;
            drop(state);
            return Fact::UsageLost { first }.record();
        }
        // With more than one, the thread is up already.
        if state.spool.waiting() == 1 {
            drop(state);
            self.bell.notify_all();
        }
    }

    pub(super) fn health(&self, now: Instant) -> Health {
        self.state().spool.health(now)
    }

    pub(super) fn waiting(&self) -> usize {
        self.state().spool.waiting()
    }

    /// The ids of a call's rows that wait.
    pub(super) fn ids_of(&self, call: &str) -> HashSet<String> {
        self.state().spool.ids_of(call)
    }

    /// Waits until nothing waits any more.
    pub(super) async fn drained(&self) {
        let mut tried = self.tried.subscribe();
        self.state().hurry = true;
        self.bell.notify_all();
        // Whoever writes holds the other end for as long as it is asked.
        while self.waiting() > 0 && tried.changed().await.is_ok() {}
    }

    /// Nobody books any more: the rest is written, and the thread ends.
    pub(super) fn leave(&self) {
        self.state().left = true;
        self.bell.notify_all();
    }

    /// Waits for rows, and gathers more. `None`: there will be none.
    fn next(&self) -> Option<Arc<Rows>> {
        let ready = |state: &mut State| state.spool.waiting() == 0 && !state.left;
        let state = self.bell.wait_while(self.state(), ready).unwrap_or_else(PoisonError::into_inner);
        let gathering = |state: &mut State| !state.hurry && !state.left;
        let gathered = self.bell.wait_timeout_while(state, GATHER, gathering);
        let (mut state, _) = gathered.unwrap_or_else(PoisonError::into_inner);
        state.hurry = false;
        state.spool.take()
    }

    /// What became of the batch; `false`: nobody waits for another try.
    fn settle(&self, done: &Result<(), LedgerError>) -> bool {
        let mut state = self.state();
        let fact = match done {
            Ok(()) => {
                state.lost = 0;
                let rows = state.spool.written();
                Fact::UsageWritten { rows, waiting: state.spool.waiting() }
            }
            Err(_) => {
                state.spool.failed();
                Fact::UsageUnwritten { waiting: state.spool.waiting() }
            }
        };
        let again = done.is_ok() || !state.left;
        drop(state);
        fact.record();
        self.tried.send_replace(());
        again
    }
}

/// Starts it.
pub(super) fn start(
    desk: Arc<Desk>,
    mut write: impl FnMut(&Rows) -> Result<(), LedgerError> + Send + 'static,
) -> std::io::Result<()> {
    let work = move || {
        let mut trouble = String::new();
        while let Some(rows) = desk.next() {
            // Whatever goes wrong in it, the rows are still there and are tried again.
            let done = catch_unwind(AssertUnwindSafe(|| write(&rows))).unwrap_or(Err(LedgerError::Panic));
            drop(rows);
            note(&done, &mut trouble);
            if !desk.settle(&done) {
                tracing::error!(rows = desk.waiting(), "usage that could not be written is lost with this process");
                break;
            }
        }
    };
    thread::Builder::new().name("ledger".to_owned()).spawn(work).map(drop)
}

/// The same trouble is logged once.
fn note(done: &Result<(), LedgerError>, trouble: &mut String) {
    match done {
        Ok(()) if trouble.is_empty() => {}
        Ok(()) => {
            tracing::info!("usage is written again");
            trouble.clear();
        }
        Err(error) => {
            let text = error.to_string();
            if text != *trouble {
                tracing::error!(%error, "usage cannot be written: it is kept in memory, and tried again");
                *trouble = text;
            }
        }
    }
}
