//! What was named, or is in a folder that was, and cannot be read: no items, for nobody knows what is in it, but rows among the errors.
use rusqlite::{Connection, Transaction, params};
use serde_json::Map;

use super::{Row, State, Store, StoreError, Usage, unsigned};
use crate::batch::source::Unread;

/// Jobs of earlier versions have no such table.
pub(super) const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS unread (
        n INTEGER PRIMARY KEY, place TEXT NOT NULL UNIQUE, file TEXT NOT NULL, reason TEXT NOT NULL
    ) STRICT;
";
/// The code of all of them.
const CODE: &str = "unread";
/// Rows that are read at once.
const PAGE: i64 = 256;

pub(super) fn forget(change: &Transaction<'_>) -> rusqlite::Result<()> {
    change.execute("DELETE FROM unread", []).map(drop)
}

/// What is an item already tells by itself how it ended, and is there no more, perhaps, because it is done.
pub(super) fn add(change: &Transaction<'_>, unread: &Unread) -> rusqlite::Result<()> {
    let Unread { place, file, reason } = unread;
    let put = "INSERT OR IGNORE INTO unread (place, file, reason) \
               SELECT ?1, ?2, ?3 WHERE NOT EXISTS (SELECT 1 FROM items WHERE id = ?1)";
    change.prepare_cached(put)?.execute(params![place, file, reason]).map(drop)
}

pub(super) fn count(sql: &Connection) -> rusqlite::Result<u64> {
    sql.query_row("SELECT count(*) FROM unread", [], |row| row.get(0)).map(unsigned)
}

impl Store {
    /// What could not be read when it was listed last, in this order.
    pub fn unread(&self) -> impl Iterator<Item = Result<Row, StoreError>> {
        let (mut after, mut page) = (i64::MIN, Vec::new().into_iter());
        std::iter::from_fn(move || {
            if page.len() == 0 {
                match self.unread_page(after) {
                    Ok(more) => page = more.into_iter(),
                    Err(error) => {
                        after = i64::MAX;
                        return Some(Err(error));
                    }
                }
            }
            let (n, row) = page.next()?;
            after = n;
            Some(Ok(row))
        })
    }

    fn unread_page(&self, after: i64) -> Result<Vec<(i64, Row)>, StoreError> {
        let ask = "SELECT n, place, file, reason FROM unread WHERE n > ?1 ORDER BY n LIMIT ?2";
        self.read(|sql| {
            let mut ask = sql.prepare_cached(ask)?;
            let rows = ask.query_map(params![after, PAGE], |row| {
                let n = row.get(0)?;
                Ok((n, row_of(n, Unread { place: row.get(1)?, file: row.get(2)?, reason: row.get(3)? })))
            });
            rows?.collect()
        })
    }
}

fn row_of(n: i64, unread: Unread) -> Row {
    Row {
        n,
        id: unread.place,
        source: unread.file,
        metadata: Map::new(),
        state: State::Failed,
        bytes: None,
        duration_ms: None,
        started_ms: None,
        finished_ms: None,
        attempts: 0,
        code: Some(CODE.to_owned()),
        message: Some(unread.reason),
        first_error: None,
        transcript: None,
        reused: false,
        usage: Usage::default(),
        extract: None,
        extract_error: None,
    }
}
