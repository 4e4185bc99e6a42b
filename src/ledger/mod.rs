//! What was used, and by whom: one row per reply of the service, in a SQLite file that outlives the process.
//!
//! Calls [`Ledger::book`] what they know, and never wait: rows gather in memory, and a thread of its own writes them, all that
//! have come in one transaction, several times a second. What cannot be written stays in memory; past a grace new calls are
//! refused ([`Ledger::accepts`]), those that run go on (fault matrix D2). The same id twice is one row, whatever happened in
//! between: a drop, a resume, another try, another process.
//!
//! | file | what it is |
//! |---|---|
//! | [`entry`] | a row, and which of two for the same reply counts |
//! | [`spool`] | rows that are not written yet, and what to think of it; pure, with the time passed in |
//! | [`writer`] | the thread |
//! | [`file`](mod@file) | the SQLite file |
//! | [`bill`] | what the rows that are written cost, for the metrics |
//! | [`sums`] | what `voxrelay usage` asks it |
//! | [`replay`] | replies in their order, for `voxrelay route simulate` |
//! | [`spent`] | what budgets ask it when a process begins |
//!
//! It knows no call, door or tenant; it never decides what a reply costs: rows come with their cost ([`crate::call::books`]).
mod bill;
pub mod entry;
pub mod file;
pub mod replay;
pub mod spent;
pub mod spool;
pub mod sums;
pub mod writer;

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::time::{self, Instant};

pub use self::{
    entry::{Entry, Kind},
    file::LedgerError,
    spool::Health,
};
use self::{
    file::Sink,
    spool::{Rows, Spool},
    writer::Desk,
};

/// The ledger of this process; clones share it. The last one that goes away has the rest written.
#[derive(Debug, Clone)]
pub struct Ledger(Option<Arc<Owner>>);

#[derive(Debug)]
struct Owner {
    desk: Arc<Desk>,
    file: Option<PathBuf>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.desk.leave();
    }
}

impl Ledger {
    /// Opens the file, makes it if there is none, and starts the thread that writes it. `grace`: how long new calls are still
    /// taken while it cannot be written.
    ///
    /// # Errors
    /// When the file cannot be had, or is no ledger of ours.
    pub fn open(path: &Path, grace: Duration) -> Result<Self, LedgerError> {
        let mut sink = Sink::open(path)?;
        Self::writing(Spool::new(grace), Some(path.to_owned()), move |rows| sink.write(rows))
            .map_err(|source| LedgerError::File { file: path.to_owned(), source })
    }

    /// One that forgets everything and takes every call.
    pub fn none() -> Self {
        Self(None)
    }

    fn writing(
        spool: Spool,
        file: Option<PathBuf>,
        write: impl FnMut(&Rows) -> Result<(), LedgerError> + Send + 'static,
    ) -> std::io::Result<Self> {
        let desk = Arc::new(Desk::new(spool));
        writer::start(desk.clone(), write)?;
        Ok(Self(Some(Arc::new(Owner { desk, file }))))
    }

    fn desk(&self) -> Option<&Desk> {
        self.0.as_ref().map(|owner| &*owner.desk)
    }

    /// Takes a row, or what is known better about one. Never waits.
    pub fn book(&self, entry: Entry) {
        if let Some(desk) = self.desk() {
            desk.book(Instant::now(), entry);
        }
    }

    /// How it stands at `now`.
    pub fn health(&self, now: Instant) -> Health {
        self.desk().map_or(Health::Good, |desk| desk.health(now))
    }

    /// Whether new calls may be taken at `now`.
    pub fn accepts(&self, now: Instant) -> bool {
        !matches!(self.health(now), Health::Refusing { .. })
    }

    /// The ids of a call's rows: those that wait to be written, and those in the file that were booked from `since` on, Unix ms. Reads
    /// the file: nothing for a task that must not wait.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn ids_of(&self, call: &str, since: u64) -> Result<HashSet<String>, LedgerError> {
        let Some(owner) = &self.0 else { return Ok(HashSet::new()) };
        // First those that wait: what is written meanwhile is in the file then.
        let mut ids = owner.desk.ids_of(call);
        if let Some(file) = &owner.file {
            ids.extend(spent::ids_of(file, call, since)?);
        }
        Ok(ids)
    }

    /// How many rows of a door each call has in the file, booked from `since` on, Unix ms; as [`Self::ids_of`].
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn rows_of(&self, door: &str, since: u64) -> Result<HashMap<String, u64>, LedgerError> {
        let file = self.0.as_ref().and_then(|owner| owner.file.as_deref());
        file.map_or_else(|| Ok(HashMap::new()), |file| spent::rows_of(file, door, since))
    }

    /// Has everything written at once, and waits for it, but not longer than `within`. Tells how many rows are not.
    pub async fn flush(&self, within: Duration) -> usize {
        let Some(desk) = self.desk() else { return 0 };
        let _ = time::timeout(within, desk.drained()).await;
        desk.waiting()
    }
}

#[cfg(test)]
mod tests;
