//! Items: listed, claimed, looked at, and ended.
use std::{collections::BTreeSet, fmt};

use rusqlite::{
    Connection, OptionalExtension as _, Row as SqlRow, ToSql, Transaction, TransactionBehavior, params,
    types::{FromSql, FromSqlError, FromSqlResult, ToSqlOutput, ValueRef},
};
use serde_json::{Map, Value};

use super::{Count, Inner, Store, StoreError, Sums, Sure, parts, signed, unread, unsigned};
use crate::batch::source::{Found, Listed, Unread};

/// Clashes that are told.
const CLASHES: usize = 100;
/// What [`Item`] is made of.
const ITEM: &str =
    "n, id, source, metadata, EXISTS (SELECT 1 FROM transcripts WHERE item = n), hash, first_error IS NOT NULL";
/// What an item is that is gone on with in another run: [`State::Ready`] where something has come for its text from a batch, and else
/// [`State::Waiting`].
pub(super) const GONE_ON_WITH: &str = "CASE WHEN EXISTS (SELECT 1 FROM transcripts t WHERE t.item = items.n) AND EXISTS (SELECT 1 FROM batches) \
    AND (EXISTS (SELECT 1 FROM requests r WHERE r.item = items.n) \
        OR EXISTS (SELECT 1 FROM parts p WHERE p.item = items.n AND p.kind = 1 AND p.answer IS NOT NULL)) THEN 7 ELSE 0 END";

/// How far an item is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// To be done.
    Waiting = 0,
    /// Claimed by this process.
    Working = 1,
    /// Its results are there.
    Done = 2,
    /// There are none, and the reason is known.
    Failed = 3,
    /// Not wanted, and the reason is known.
    Skipped = 4,
    /// To be done when another item of the same content has ended.
    Held = 5,
    /// Its requests are in a batch, or wait for one.
    Parked = 6,
    /// What was in a batch has come: to be gone on with.
    Ready = 7,
}

impl ToSql for State {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok((*self as u8).into())
    }
}

impl FromSql for State {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        Ok(match value.as_i64()? {
            0 => Self::Waiting,
            1 => Self::Working,
            2 => Self::Done,
            3 => Self::Failed,
            4 => Self::Skipped,
            5 => Self::Held,
            6 => Self::Parked,
            7 => Self::Ready,
            other => return Err(FromSqlError::OutOfRange(other)),
        })
    }
}

/// How an item may end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// Everything that was wanted is there.
    Done,
    /// It is not, and will not be without another run.
    Failed {
        /// For programs: `not_audio`, `refused`, ...
        code: String,
        /// For people.
        message: String,
    },
    /// Nobody wants it.
    Skipped {
        /// For programs: `too_short`, ...
        code: String,
        /// For people.
        message: String,
    },
    /// It was begun, and shall be gone on with in another run.
    Released,
}

/// One thing that a listing comes upon.
#[derive(Debug)]
pub enum Entry {
    /// A file to be done.
    Item(Listed),
    /// What cannot be read.
    Unread(Unread),
    /// Nothing of all that is to be listed: why.
    Wrong(String),
}

impl From<Listed> for Entry {
    fn from(item: Listed) -> Self {
        Self::Item(item)
    }
}

impl From<Found> for Entry {
    fn from(found: Found) -> Self {
        found.map_or_else(Self::Unread, Self::Item)
    }
}

/// What listing made of what was found.
#[derive(Debug, Default)]
pub struct Added {
    /// New items.
    pub new: u64,
    /// Those that the job had already.
    pub known: u64,
    /// Those that cannot be, the first ones: nothing was listed.
    pub clashes: Vec<Clash>,
    /// What is wrong with all of it: nothing was listed.
    pub wrong: Option<String>,
}

/// One id for two things.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clash {
    /// The id.
    pub id: String,
    /// Of the earlier: its line in the manifest.
    pub first_line: Option<u64>,
    /// Of the later.
    pub line: Option<u64>,
    /// What the earlier one means.
    pub was: String,
    /// What the later one means.
    pub is: String,
}

impl fmt::Display for Clash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, first_line, line, was, is } = self;
        if let Some(line) = line {
            write!(f, "line {line}: ")?;
        }
        match (line, first_line) {
            (Some(_), Some(first)) if was == is => write!(f, "id `{id}` is that of line {first} already"),
            (Some(_), Some(first)) => write!(f, "id `{id}` is that of line {first} already (`{was}`, now `{is}`)"),
            _ => write!(f, "id `{id}` means `{was}` already, now `{is}`"),
        }
    }
}

/// An item, claimed.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    /// Its number in the job.
    pub n: i64,
    /// Its name, unique in the job.
    pub id: String,
    /// Where it is: a path, or a URL.
    pub source: String,
    /// What the manifest says of it.
    pub metadata: Map<String, Value>,
    /// An earlier run got as far as its transcript: [`Store::transcript`].
    pub has_transcript: bool,
    /// What was in its file when it was looked at: [`Content::hash`].
    pub hash: Option<[u8; 32]>,
    /// Something went wrong with it in an earlier run.
    pub failed_before: bool,
    /// Its file was looked at, and its text is there: what was in a batch has come.
    pub ready: bool,
}

impl Item {
    fn of(row: &SqlRow<'_>, ready: bool) -> rusqlite::Result<Self> {
        let metadata: String = row.get(3)?;
        Ok(Self {
            n: row.get(0)?,
            id: row.get(1)?,
            source: row.get(2)?,
            metadata: serde_json::from_str(&metadata).unwrap_or_default(),
            has_transcript: row.get(4)?,
            hash: row.get(5)?,
            failed_before: row.get(6)?,
            ready,
        })
    }
}

/// What is in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Content {
    /// SHA-256 of its bytes.
    pub hash: [u8; 32],
    /// How many bytes.
    pub bytes: u64,
    /// How long it plays, ms.
    pub duration_ms: u64,
}

/// Whether somebody had the same content before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// Nobody: do it.
    New,
    /// The transcript is there, this item's own or another's, for nothing. So is its extract, if one is wanted and there is a
    /// valid one.
    Transcribed {
        /// Nothing is left to do but to end it.
        complete: bool,
    },
    /// Another item is just being worked on: this one is claimed no longer, and waits for that one's end.
    Held,
}

impl Store {
    /// Lists what was found, in the order in which it will be claimed: all of it or, where something is wrong or clashes, nothing. Items
    /// that the job has are left as they are. What could not be read when it was listed last is forgotten.
    ///
    /// # Errors
    /// When it cannot be written: then nothing is.
    pub fn add<E: Into<Entry>>(&self, found: impl IntoIterator<Item = E>) -> Result<Added, StoreError> {
        let added = add_all(&mut self.inner(), self.run, found.into_iter().map(Into::into));
        added.map_err(|source| self.error(source))
    }

    /// Takes the next items that wait, `most` of them: first those of which something has come from a batch.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn claim(&self, most: usize, now: u64) -> Result<Vec<Item>, StoreError> {
        let mut items = self.claim_in(State::Ready, most, now)?;
        items.extend(self.claim_in(State::Waiting, most - items.len(), now)?);
        Ok(items)
    }

    /// The same of those only of which something has come from a batch.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn claim_ready(&self, most: usize, now: u64) -> Result<Vec<Item>, StoreError> {
        self.claim_in(State::Ready, most, now)
    }

    fn claim_in(&self, from: State, most: usize, now: u64) -> Result<Vec<Item>, StoreError> {
        if most == 0 {
            return Ok(Vec::new());
        }
        let ask = format!(
            "UPDATE items SET state = ?1, started_ms = coalesce(started_ms, ?2) WHERE n IN (SELECT n FROM items WHERE state = ?3 ORDER BY n LIMIT ?4) \
             RETURNING {ITEM}, bytes, duration_ms"
        );
        self.change(Sure::Committed, |change, sums| {
            let mut ask = change.prepare_cached(&ask)?;
            let most = i64::try_from(most).unwrap_or(i64::MAX);
            let mut rows = ask.query(params![State::Working, signed(now), from, most])?;
            let mut items = Vec::new();
            while let Some(row) = rows.next()? {
                sums.moved(from, State::Working, counted(row, 7)?);
                items.push(Item::of(row, from == State::Ready)?);
            }
            items.sort_by_key(|item| item.n);
            Ok(items)
        })
    }

    /// Says what is in a claimed item's file, and learns whether that was done before. A file that has changed since an
    /// earlier run is done anew; what was paid for it stays in the sums.
    ///
    /// # Errors
    /// When the file cannot be written, or the item is not claimed.
    pub fn describe(&self, n: i64, content: &Content) -> Result<Known, StoreError> {
        let known = self.change(Sure::Committed, |change, sums| {
            let Some(count) = looked_at(change, n, content, sums)? else { return Ok(None) };
            let twin = "SELECT n FROM items WHERE hash = ?1 AND n <> ?2 AND state IN (?3, ?4, ?5) LIMIT 1";
            let own = "SELECT 1 FROM transcripts WHERE item = ?";
            let own = change.query_row(own, [n], |_| Ok(())).optional()?.is_some();
            // What is there already need not wait for another's.
            let twin: Option<i64> = if own {
                None
            } else {
                let busy = params![content.hash, n, State::Working, State::Parked, State::Ready];
                change.query_row(twin, busy, |row| row.get(0)).optional()?
            };
            if let Some(twin) = twin {
                // Its own work has not begun.
                let put = "UPDATE items SET state = ?2, twin = ?3, started_ms = NULL WHERE n = ?1";
                change.execute(put, params![n, State::Held, twin])?;
                sums.moved(State::Working, State::Waiting, count);
                return Ok(Some(Known::Held));
            }
            if !parts::take_over(change, n, content, sums)? {
                return Ok(Some(Known::New));
            }
            Ok(Some(Known::Transcribed { complete: self.is_complete(change, n)? }))
        });
        known?.ok_or(StoreError::NotWorking { n })
    }

    /// The same of a file that is not wanted: what is in it is only taken down.
    ///
    /// # Errors
    /// When the file cannot be written, or the item is not claimed.
    pub fn measure(&self, n: i64, content: &Content) -> Result<(), StoreError> {
        let done = self.change(Sure::Committed, |change, sums| looked_at(change, n, content, sums));
        done?.map(drop).ok_or(StoreError::NotWorking { n })
    }

    /// Whether an item that has its transcript has all that is wanted.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn has_all(&self, n: i64) -> Result<bool, StoreError> {
        self.read(|sql| self.is_complete(sql, n))
    }

    fn is_complete(&self, sql: &Connection, n: i64) -> rusqlite::Result<bool> {
        let valid = "SELECT 1 FROM extracts WHERE item = ? AND json IS NOT NULL";
        Ok(self.params.extract.is_empty() || sql.query_row(valid, [n], |_| Ok(())).optional()?.is_some())
    }

    /// Ends a claimed item. Those that waited for it wait no longer.
    ///
    /// # Errors
    /// When the file cannot be written, or the item is not claimed.
    pub fn end(&self, n: i64, end: &End, now: u64) -> Result<(), StoreError> {
        let (state, code, message) = match end {
            End::Done => (State::Done, None, None),
            End::Failed { code, message } => (State::Failed, Some(code), Some(message)),
            End::Skipped { code, message } => (State::Skipped, Some(code), Some(message)),
            End::Released => (State::Waiting, None, None),
        };
        let finished = (state != State::Waiting).then_some(signed(now));
        let to = if *end == End::Released { GONE_ON_WITH } else { "?2" };
        let put = format!(
            "UPDATE items SET state = {to}, code = ?3, message = ?4, finished_ms = ?5, \
             first_error = coalesce(first_error, ?4) WHERE n = ?1 AND state = ?6 RETURNING bytes, duration_ms"
        );
        let done = self.change(Sure::Committed, |change, sums| {
            let ended = change
                .prepare_cached(&put)?
                .query_row(params![n, state, code, message, finished, State::Working], |row| counted(row, 0))
                .optional()?;
            let Some(count) = ended else { return Ok(None) };
            sums.moved(State::Working, state, count);
            let free = "UPDATE items SET state = ?2, twin = NULL WHERE twin = ?1 AND state = ?3";
            change.prepare_cached(free)?.execute(params![n, State::Waiting, State::Held])?;
            Ok(Some(()))
        });
        done?.ok_or(StoreError::NotWorking { n })
    }

    /// All that failed wait again, with what they have; how many. What `--resume` begins with.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn retry_failed(&self) -> Result<u64, StoreError> {
        let put = "UPDATE items SET state = ?1, code = NULL, message = NULL, started_ms = NULL, finished_ms = NULL WHERE state = ?2";
        self.change(Sure::Committed, |change, sums| {
            let again = change.execute(put, params![State::Waiting, State::Failed])?;
            let failed = std::mem::take(&mut sums.failed);
            sums.add(State::Waiting, failed);
            Ok(u64::try_from(again).unwrap_or(u64::MAX))
        })
    }
}

fn add_all(inner: &mut Inner, run: i64, found: impl Iterator<Item = Entry>) -> rusqlite::Result<Added> {
    let (mut added, mut sums, mut columns) = (Added::default(), inner.sums, inner.columns.clone());
    inner.sql.pragma_update(None, "synchronous", "NORMAL")?;
    // Left without a commit, it is taken back.
    let change = inner.sql.transaction_with_behavior(TransactionBehavior::Immediate)?;
    unread::forget(&change)?;
    for entry in found {
        match entry {
            Entry::Item(item) => {
                add_columns(&change, &item, &mut columns)?;
                add(&change, &item, run, &mut added)?;
            }
            Entry::Unread(unread) => unread::add(&change, &unread)?,
            Entry::Wrong(wrong) => {
                added.wrong = Some(wrong);
                return Ok(added);
            }
        }
        if added.clashes.len() >= CLASHES {
            break;
        }
    }
    if added.clashes.is_empty() {
        sums.unread = unread::count(&change)?;
        sums.add(State::Waiting, Count { items: added.new, ..Count::default() });
        change.commit()?;
        (inner.sums, inner.columns) = (sums, columns);
    }
    Ok(added)
}

/// Tables have a column for every name.
fn add_columns(change: &Transaction<'_>, item: &Listed, columns: &mut BTreeSet<String>) -> rusqlite::Result<()> {
    for name in item.metadata.keys() {
        if !columns.contains(name) {
            let put = "INSERT OR IGNORE INTO columns (name, n) SELECT ?, count(*) FROM columns";
            change.execute(put, [name])?;
            columns.insert(name.clone());
        }
    }
    Ok(())
}

/// What is in a claimed item's file; where it is not what was there before, nothing that came of it is kept. None: it is not claimed.
fn looked_at(change: &Transaction<'_>, n: i64, content: &Content, sums: &mut Sums) -> rusqlite::Result<Option<Count>> {
    let before = "SELECT bytes, duration_ms, hash FROM items WHERE n = ?1 AND state = ?2";
    let before = change.query_row(before, params![n, State::Working], |row| {
        Ok((counted(row, 0)?, row.get::<_, Option<[u8; 32]>>(2)?))
    });
    let Some((before, hash)) = before.optional()? else { return Ok(None) };
    if hash.is_some_and(|hash| hash != content.hash) {
        parts::forget(change, n, sums)?;
    }
    let put = "UPDATE items SET hash = ?2, bytes = ?3, duration_ms = ?4 WHERE n = ?1";
    change.execute(put, params![n, content.hash, signed(content.bytes), signed(content.duration_ms)])?;
    let count = Count { items: 1, bytes: content.bytes, duration_ms: content.duration_ms };
    sums.take(State::Working, before);
    sums.add(State::Working, count);
    Ok(Some(count))
}

fn add(change: &Transaction<'_>, item: &Listed, run: i64, added: &mut Added) -> rusqlite::Result<()> {
    let Listed { id, source, metadata, line } = item;
    let line = line.map(signed);
    let metadata = serde_json::to_string(metadata).unwrap_or_default();
    let put = "INSERT INTO items (state, seen, line, id, source, metadata) VALUES (?1, ?2, ?3, ?4, ?5, ?6) \
               ON CONFLICT (id) DO NOTHING";
    if change.prepare_cached(put)?.execute(params![State::Waiting, run, line, id, source, metadata])? > 0 {
        added.new += 1;
        return Ok(());
    }
    let was = "SELECT source, seen, line FROM items WHERE id = ?";
    let (was, seen, first) = change
        .prepare_cached(was)?
        .query_row([id], |row| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?, row.get::<_, Option<i64>>(2)?)))?;
    // Who names a file twice on the command line means it once; a manifest that has an id twice is wrong.
    if was != *source || (seen == run && line.is_some()) {
        let (first_line, line) = (first.filter(|_| seen == run).map(unsigned), line.map(unsigned));
        added.clashes.push(Clash { id: id.clone(), first_line, line, was, is: source.clone() });
        return Ok(());
    }
    if seen != run {
        let put = "UPDATE items SET seen = ?2, line = ?3, metadata = ?4 WHERE id = ?1";
        change.prepare_cached(put)?.execute(params![id, run, line, metadata])?;
    }
    added.known += 1;
    Ok(())
}

/// One item, by its bytes and its duration.
pub(super) fn counted(row: &SqlRow<'_>, at: usize) -> rusqlite::Result<Count> {
    let number = |at| row.get::<_, Option<i64>>(at).map(|number| unsigned(number.unwrap_or_default()));
    Ok(Count { items: 1, bytes: number(at)?, duration_ms: number(at + 1)? })
}

impl Sums {
    pub(super) fn moved(&mut self, from: State, to: State, count: Count) {
        self.take(from, count);
        self.add(to, count);
    }
}
