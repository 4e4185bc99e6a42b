//! Rows that are not in the file yet, and what to think of it. Pure: moments come in with what happens.
//!
//! A row is here until it is certainly in the file; while a batch is being written it is kept, for the writing may fail. A try
//! that failed half-way and is made again doubles nothing, for the file keeps one row of each id.
use std::{
    collections::{HashMap, HashSet, hash_map},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use super::entry::{Entry, Key};

/// With so many rows in memory new calls are refused. Those that run go on, and their rows are kept: they are bounded by the
/// number of calls.
const FULL: usize = 100_000;
/// More than this is not kept (about 350 MB): a process that runs out of memory would lose all of them.
const OVERFULL: usize = 500_000;
/// A row that waits for so long has a file that is too slow, whether or not it has said so.
const SLOW: Duration = Duration::from_secs(2);

/// Rows by what they are found by.
pub type Rows = HashMap<Key, Entry>;

/// How the ledger stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// Rows are written as they come.
    Good,
    /// They are not; calls are taken all the same.
    Failing {
        /// The oldest of them waits since then.
        since: Instant,
    },
    /// They are not, for too long, or too many of them: no new calls.
    Refusing {
        /// The oldest of them waits since then.
        since: Instant,
    },
}

/// What happened to a row that was booked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Booked {
    /// It waits to be written.
    Kept,
    /// A better one for the same id is waiting already.
    Known,
    /// There is no room left at all.
    Lost,
}

/// Rows that wait.
#[derive(Debug)]
pub struct Spool {
    grace: Duration,
    full: usize,
    overfull: usize,
    /// Rows for the next batch, and when the first of them came.
    next: Rows,
    next_since: Option<Instant>,
    /// The batch that is being written, and when its first row came.
    under_way: Option<(Arc<Rows>, Instant)>,
    /// The last try failed.
    failed: bool,
}

impl Spool {
    /// An empty one. `grace`: how long new calls are taken while nothing can be written.
    pub fn new(grace: Duration) -> Self {
        Self::bounded(grace, FULL, OVERFULL)
    }

    fn bounded(grace: Duration, full: usize, overfull: usize) -> Self {
        let next = Rows::new();
        Self { grace, full, overfull, next, next_since: None, under_way: None, failed: false }
    }

    /// Takes a row.
    pub fn book(&mut self, now: Instant, entry: Entry) -> Booked {
        let room = self.waiting() < self.overfull;
        match self.next.entry(entry.key()) {
            hash_map::Entry::Occupied(known) if !entry.replaces(known.get()) => return Booked::Known,
            hash_map::Entry::Occupied(mut known) => drop(known.insert(entry)),
            hash_map::Entry::Vacant(place) if room => drop(place.insert(entry)),
            hash_map::Entry::Vacant(_) => return Booked::Lost,
        }
        self.next_since.get_or_insert(now);
        Booked::Kept
    }

    /// What is to be written now; `None`: nothing, or a batch is under way.
    pub fn take(&mut self) -> Option<Arc<Rows>> {
        let since = self.next_since.filter(|_| self.under_way.is_none())?;
        self.next_since = None;
        let rows = Arc::new(std::mem::take(&mut self.next));
        self.under_way = Some((rows.clone(), since));
        Some(rows)
    }

    /// The batch that was taken is in the file. How many rows it had.
    pub fn written(&mut self) -> usize {
        self.failed = false;
        self.under_way.take().map_or(0, |(rows, _)| rows.len())
    }

    /// It is not, or nobody knows: it comes again with the next one.
    pub fn failed(&mut self) {
        self.failed = true;
        let Some((rows, since)) = self.under_way.take() else { return };
        let mut rows = Arc::unwrap_or_clone(rows);
        for (key, entry) in self.next.drain() {
            match rows.entry(key) {
                hash_map::Entry::Occupied(earlier) if !entry.replaces(earlier.get()) => {}
                hash_map::Entry::Occupied(mut earlier) => drop(earlier.insert(entry)),
                hash_map::Entry::Vacant(place) => drop(place.insert(entry)),
            }
        }
        (self.next, self.next_since) = (rows, Some(since));
    }

    /// Rows that are not certainly in the file. One may count twice, if more became known about it while it was written.
    pub fn waiting(&self) -> usize {
        self.next.len() + self.under_way.as_ref().map_or(0, |(rows, _)| rows.len())
    }

    /// The ids of a call's rows that are not certainly in the file.
    pub fn ids_of(&self, call: &str) -> HashSet<String> {
        let under_way = self.under_way.iter().flat_map(|(rows, _)| rows.values());
        self.next.values().chain(under_way).filter(|row| row.call == call).map(|row| row.id.clone()).collect()
    }

    /// How it stands.
    pub fn health(&self, now: Instant) -> Health {
        let Some(since) = self.under_way.as_ref().map(|(_, since)| *since).or(self.next_since) else {
            return Health::Good;
        };
        let age = now.saturating_duration_since(since);
        let failing = self.failed || age >= SLOW;
        if self.waiting() >= self.full || failing && age >= self.grace {
            Health::Refusing { since }
        } else if failing {
            Health::Failing { since }
        } else {
            Health::Good
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::entry::tests::reply;

    const GRACE: Duration = Duration::from_secs(60);

    /// Moments, in seconds from the first.
    fn clock() -> impl Fn(f64) -> Instant {
        let began = Instant::now();
        move |seconds| began + Duration::from_secs_f64(seconds)
    }

    #[test]
    fn calls_are_refused_after_the_grace_and_taken_again_once_all_is_written() {
        let t = clock();
        let mut spool = Spool::new(GRACE);
        let (failing, refusing) = (Health::Failing { since: t(10.0) }, Health::Refusing { since: t(10.0) });
        assert_eq!(spool.health(t(1_000.0)), Health::Good, "nothing to write is no fault");
        spool.book(t(10.0), reply("a", 1, false));
        assert_eq!(spool.health(t(10.5)), Health::Good, "it waits for its turn");
        assert_eq!(spool.take().unwrap().len(), 1);
        spool.failed();
        assert_eq!(spool.health(t(10.5)), failing);
        spool.book(t(50.0), reply("b", 1, false));
        assert_eq!(spool.health(t(69.9)), failing, "the first row counts, not the last");
        assert_eq!(spool.health(t(70.0)), refusing);
        assert_eq!(spool.take().unwrap().len(), 2);
        assert_eq!(spool.health(t(71.0)), refusing, "a try is not yet a success");
        assert_eq!((spool.written(), spool.waiting(), spool.health(t(71.0))), (2, 0, Health::Good));
        spool.book(t(80.0), reply("c", 1, false));
        assert_eq!(spool.health(t(80.1)), Health::Good);
    }

    #[test]
    fn a_file_that_only_hangs_is_failing_too() {
        let t = clock();
        let mut spool = Spool::new(GRACE);
        spool.book(t(0.0), reply("a", 1, false));
        let batch = spool.take().unwrap();
        spool.book(t(1.0), reply("b", 1, false));
        assert!(spool.take().is_none(), "one batch at a time");
        assert_eq!(spool.health(t(1.9)), Health::Good);
        assert_eq!(spool.health(t(2.0)), Health::Failing { since: t(0.0) });
        assert_eq!(spool.health(t(60.0)), Health::Refusing { since: t(0.0) });
        drop(batch);
        assert_eq!((spool.written(), spool.waiting()), (1, 1));
        assert_eq!(spool.health(t(60.0)), Health::Failing { since: t(1.0) }, "what came meanwhile is late now");
    }

    #[test]
    fn without_a_grace_the_first_failure_refuses() {
        let t = clock();
        let mut spool = Spool::new(Duration::ZERO);
        spool.book(t(0.0), reply("a", 1, false));
        assert_eq!(spool.health(t(0.1)), Health::Good);
        spool.take();
        spool.failed();
        assert_eq!(spool.health(t(0.1)), Health::Refusing { since: t(0.0) });
    }

    #[test]
    fn a_full_spool_refuses_at_once_and_still_keeps_what_runs() {
        let t = clock();
        let mut spool = Spool::bounded(GRACE, 3, 5);
        let booked: Vec<Booked> = (0..7).map(|n| spool.book(t(0.0), reply(&n.to_string(), 1, true))).collect();
        assert_eq!(booked, [[Booked::Kept; 5].as_slice(), &[Booked::Lost; 2]].concat());
        assert_eq!((spool.waiting(), spool.health(t(0.1))), (5, Health::Refusing { since: t(0.0) }));
        assert_eq!(spool.book(t(0.1), reply("4", 9, false)), Booked::Kept, "of a known one more may be known");
        assert_eq!(spool.book(t(0.1), reply("4", 1, true)), Booked::Known);
        let rows = spool.take().unwrap();
        assert_eq!((rows.len(), rows[&reply("4", 0, false).key()].usage.output_tokens), (5, 9));
        assert_eq!(spool.book(t(0.2), reply("5", 1, false)), Booked::Lost, "what is being written counts");
        spool.written();
        assert_eq!(spool.health(t(0.3)), Health::Good);
    }

    #[test]
    fn what_became_known_while_a_batch_failed_is_kept_by_the_same_rule() {
        let t = clock();
        let mut spool = Spool::new(GRACE);
        for (id, estimated) in [("estimate", true), ("count", false), ("only", false)] {
            spool.book(t(0.0), reply(id, 1, estimated));
        }
        spool.take();
        spool.book(t(1.0), reply("estimate", 2, false));
        spool.book(t(1.0), reply("count", 2, true));
        spool.book(t(1.0), reply("later", 2, false));
        spool.failed();
        assert_eq!(spool.waiting(), 4);
        let rows = spool.take().unwrap();
        for (id, tokens) in [("estimate", 2), ("count", 1), ("only", 1), ("later", 2)] {
            let row = &rows[&reply(id, 0, false).key()];
            assert_eq!((row.usage.output_tokens, row.estimated), (tokens, false), "{id}");
        }
    }
}
