//! How far a job is, kept beside the file and never counted anew while it runs.
use rusqlite::Connection;

use super::{
    State, Usage,
    parts::{SUMMED, usage_at},
    unsigned,
};

/// Some items.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// How many.
    pub items: u64,
    /// Their bytes, as far as they were looked at.
    pub bytes: u64,
    /// How long they play, ms, as far as they were looked at.
    pub duration_ms: u64,
}

/// A job's items by state, and what was billed so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sums {
    /// To be done, those that wait for another of the same content among them.
    pub waiting: Count,
    /// Being done.
    pub working: Count,
    /// Done.
    pub done: Count,
    /// Failed.
    pub failed: Count,
    /// Not wanted, too short ones for instance.
    pub skipped: Count,
    /// What was billed, for whatever came of it.
    pub usage: Usage,
    /// Items that took over another's transcript.
    pub reused: u64,
    /// What was named and cannot be read: no items.
    pub unread: u64,
}

impl Sums {
    /// All items that are listed.
    pub fn items(&self) -> u64 {
        [self.waiting, self.working, self.done, self.failed, self.skipped].iter().map(|count| count.items).sum()
    }

    pub(super) fn read(sql: &Connection) -> rusqlite::Result<Self> {
        let mut sums = Self::default();
        let mut ask = sql.prepare(
            "SELECT state, count(*), coalesce(sum(bytes), 0), coalesce(sum(duration_ms), 0) FROM items GROUP BY state",
        )?;
        let mut found = ask.query([])?;
        while let Some(row) = found.next()? {
            let at = |n| row.get::<_, i64>(n).map(unsigned);
            sums.add(row.get(0)?, Count { items: at(1)?, bytes: at(2)?, duration_ms: at(3)? });
        }
        for table in ["parts", "transcripts", "extracts"] {
            let ask = format!("SELECT {} FROM {table}", SUMMED);
            sums.usage += sql.query_row(&ask, [], |row| usage_at(row, 0))?;
        }
        sums.unread = super::unread::count(sql)?;
        sums.reused = sql
            .query_row("SELECT count(*) FROM transcripts WHERE reused IS NOT NULL", [], |row| row.get(0))
            .map(unsigned)?;
        Ok(sums)
    }

    pub(super) fn of(&mut self, state: State) -> &mut Count {
        match state {
            State::Waiting | State::Held | State::Parked | State::Ready => &mut self.waiting,
            State::Working => &mut self.working,
            State::Done => &mut self.done,
            State::Failed => &mut self.failed,
            State::Skipped => &mut self.skipped,
        }
    }

    pub(super) fn add(&mut self, state: State, more: Count) {
        let count = self.of(state);
        count.items += more.items;
        count.bytes += more.bytes;
        count.duration_ms += more.duration_ms;
    }

    pub(super) fn take(&mut self, state: State, less: Count) {
        let count = self.of(state);
        count.items = count.items.saturating_sub(less.items);
        count.bytes = count.bytes.saturating_sub(less.bytes);
        count.duration_ms = count.duration_ms.saturating_sub(less.duration_ms);
    }
}
