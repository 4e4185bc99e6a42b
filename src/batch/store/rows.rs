//! What came of the items, for tables and summaries: read in pages, so that no number of items needs more memory than a few.
use rusqlite::{Row as SqlRow, params, params_from_iter, types::Value as SqlValue};
use serde_json::{Map, Value};

use super::{
    State, Store, StoreError, Transcript, Usage,
    parts::{SUMMED, USAGE, transcript_at, usage_at},
    unsigned,
};

/// A page ends when it has so many rows, or so many bytes of text.
const PAGE_ROWS: usize = 256;
const PAGE_BYTES: usize = 1 << 20;

/// How rows are sorted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// As they were listed: a manifest's own order.
    Listed,
    /// By id: what a folder has in it comes in no order of its own.
    Id,
}

/// All that is known of an item.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Its number in the job.
    pub n: i64,
    /// Its name.
    pub id: String,
    /// Where it is: a path, or a URL.
    pub source: String,
    /// What the manifest says of it.
    pub metadata: Map<String, Value>,
    /// How far it is.
    pub state: State,
    /// How large it is, if it was looked at.
    pub bytes: Option<u64>,
    /// How long it plays, ms, if it was looked at.
    pub duration_ms: Option<u64>,
    /// When work on it began, Unix ms: the day of a batch and pauses between runs come after. One that had failed begins anew.
    pub started_ms: Option<u64>,
    /// When it ended, Unix ms.
    pub finished_ms: Option<u64>,
    /// Requests that were sent for it.
    pub attempts: u64,
    /// Why it failed or was skipped, for programs.
    pub code: Option<String>,
    /// For people.
    pub message: Option<String>,
    /// What went wrong first, even if all went well in the end.
    pub first_error: Option<String>,
    /// Its text.
    pub transcript: Option<Transcript>,
    /// Its text is another item's, which has the same content.
    pub reused: bool,
    /// What all of it was billed as.
    pub usage: Usage,
    /// What was extracted, if it is valid.
    pub extract: Option<Value>,
    /// Why it is not.
    pub extract_error: Option<String>,
}

/// An item that took long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slow {
    /// Its name.
    pub id: String,
    /// From its beginning to its end, ms.
    pub took_ms: u64,
    /// How long it plays, ms.
    pub duration_ms: u64,
}

/// Where the next page begins.
#[derive(Debug)]
enum After {
    Number(i64),
    Id(String),
}

/// Rows, a page at a time.
#[derive(Debug)]
struct Rows<'a> {
    store: &'a Store,
    states: Vec<State>,
    after: After,
    page: std::vec::IntoIter<Row>,
    ended: bool,
}

impl Iterator for Rows<'_> {
    type Item = Result<Row, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(row) = self.page.next() {
            return Some(Ok(row));
        }
        if self.ended {
            return None;
        }
        match self.store.page(&self.states, &self.after) {
            Ok(page) => {
                match (page.last(), &self.after) {
                    (None, _) => self.ended = true,
                    (Some(last), After::Number(_)) => self.after = After::Number(last.n),
                    (Some(last), After::Id(_)) => self.after = After::Id(last.id.clone()),
                }
                self.page = page.into_iter();
                self.page.next().map(Ok)
            }
            Err(error) => {
                self.ended = true;
                Some(Err(error))
            }
        }
    }
}

impl Store {
    /// All items in some states.
    pub fn rows(&self, states: &[State], order: Order) -> impl Iterator<Item = Result<Row, StoreError>> {
        let after = match order {
            Order::Listed => After::Number(i64::MIN),
            Order::Id => After::Id(String::new()),
        };
        Rows { store: self, states: states.to_vec(), after, page: Vec::new().into_iter(), ended: false }
    }

    fn page(&self, states: &[State], after: &After) -> Result<Vec<Row>, StoreError> {
        let (column, after) = match after {
            After::Number(n) => ("i.n", SqlValue::from(*n)),
            // No id is empty.
            After::Id(id) => ("i.id", SqlValue::from(id.clone())),
        };
        let usage = |table| format!("SELECT {USAGE} FROM {table} WHERE item = ?1");
        let usage = ["parts", "transcripts", "extracts"].map(usage).join(" UNION ALL ");
        let usage = format!("SELECT {SUMMED} FROM ({usage})");
        let marks = vec!["?"; states.len()].join(", ");
        // The sort decides which index is used: `+` keeps the states from doing so.
        let ask = format!(
            "SELECT i.n, i.id, i.source, i.metadata, i.state, i.bytes, i.duration_ms, i.started_ms, i.finished_ms, i.attempts, \
             i.code, i.message, i.first_error, t.text, t.language, t.model, t.segments, t.reused, e.json, e.error \
             FROM items i LEFT JOIN transcripts t ON t.item = i.n LEFT JOIN extracts e ON e.item = i.n \
             WHERE {column} > ? AND +i.state IN ({marks}) ORDER BY {column}"
        );
        self.read(|sql| {
            let (mut ask, mut usage_of) = (sql.prepare_cached(&ask)?, sql.prepare_cached(&usage)?);
            let states = states.iter().map(|state| SqlValue::from(i64::from(*state as u8)));
            let mut found = ask.query(params_from_iter(std::iter::once(after).chain(states)))?;
            let (mut page, mut bytes) = (Vec::new(), 0);
            while let Some(row) = found.next()? {
                let mut row = Row::of(row)?;
                row.usage = usage_of.query_row([row.n], |row| usage_at(row, 0))?;
                bytes += row.transcript.as_ref().map_or(0, |transcript| transcript.text.len());
                page.push(row);
                if page.len() >= PAGE_ROWS || bytes >= PAGE_BYTES {
                    break;
                }
            }
            Ok(page)
        })
    }

    /// Names of what manifests say of their items, in the order in which they came up.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn columns(&self) -> Result<Vec<String>, StoreError> {
        self.read(|sql| sql.prepare("SELECT name FROM columns ORDER BY n")?.query_map([], |row| row.get(0))?.collect())
    }

    /// Those that took longest, `most` of them.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn slowest(&self, most: u32) -> Result<Vec<Slow>, StoreError> {
        let ask = "SELECT id, finished_ms - started_ms AS took, coalesce(duration_ms, 0) FROM items \
                   WHERE state = ?1 AND took IS NOT NULL ORDER BY took DESC, n LIMIT ?2";
        self.read(|sql| {
            let mut ask = sql.prepare(ask)?;
            let slow = ask.query_map(params![State::Done, most], |row| {
                let (took, duration) = (row.get::<_, i64>(1)?, row.get::<_, i64>(2)?);
                Ok(Slow { id: row.get(0)?, took_ms: unsigned(took), duration_ms: unsigned(duration) })
            });
            slow?.collect()
        })
    }
}

impl Row {
    fn of(row: &SqlRow<'_>) -> rusqlite::Result<Self> {
        let number = |at: usize| row.get::<_, Option<i64>>(at).map(|number| number.map(unsigned));
        let metadata: String = row.get(3)?;
        let text: Option<String> = row.get(13)?;
        let extract: Option<String> = row.get(18)?;
        Ok(Self {
            n: row.get(0)?,
            id: row.get(1)?,
            source: row.get(2)?,
            metadata: serde_json::from_str(&metadata).unwrap_or_default(),
            state: row.get(4)?,
            bytes: number(5)?,
            duration_ms: number(6)?,
            started_ms: number(7)?,
            finished_ms: number(8)?,
            attempts: number(9)?.unwrap_or_default(),
            code: row.get(10)?,
            message: row.get(11)?,
            first_error: row.get(12)?,
            transcript: text.map(|_| transcript_at(row, 13)).transpose()?,
            reused: row.get::<_, Option<i64>>(17)?.is_some(),
            usage: Usage::default(),
            extract: extract.and_then(|json| serde_json::from_str(&json).ok()),
            extract_error: row.get(19)?,
        })
    }
}
