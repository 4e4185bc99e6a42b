//! What was spent since a day and a month began, by whom: what budgets begin with ([`crate::admit::budget`]).
//!
//! Reads the rows one after the other: for so few columns that is quicker than having them sorted.
use std::{
    collections::{HashMap, HashSet},
    path::Path,
};

use rusqlite::{Connection, params};

use super::file::{self, LedgerError};
use crate::admit::price::Usd;

/// Sums of replies and transcriptions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Used {
    /// Money, as far as it is known.
    pub usd: Usd,
    /// Tokens.
    pub tokens: i128,
    /// Something of it has no cost.
    pub unpriced: bool,
}

/// What one has used: a tenant, or where one of the others is there, a key or an end user of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spending {
    /// Who pays.
    pub tenant: String,
    /// The label of their key.
    pub key: Option<String>,
    /// The end user.
    pub user: Option<String>,
    /// Since the day began.
    pub day: Used,
    /// Since the month began.
    pub month: Used,
}

/// Which rows: times are Unix ms.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// Since the month began.
    pub month: u64,
    /// And since the day.
    pub day: u64,
    /// Rows from then on are somebody else's to count.
    pub until: u64,
}

type Sums = HashMap<(String, Option<String>), (Used, Used)>;

/// Sums it up. Reads the file: nothing for a task that must not wait.
///
/// # Errors
/// When there is no ledger in this file, or it cannot be read.
pub fn spent(file: &Path, times: Times) -> Result<Vec<Spending>, LedgerError> {
    let sql = file::open_to_read(file)?;
    read(&sql, times).map_err(|source| LedgerError::Sql { file: file.to_owned(), source })
}

/// The ids of a call's rows since then, Unix ms.
pub(super) fn ids_of(file: &Path, call: &str, since: u64) -> Result<HashSet<String>, LedgerError> {
    let sql = file::open_to_read(file)?;
    let ids = || {
        // By their time, for which there is an index.
        let mut ask = sql.prepare("SELECT id FROM usage WHERE at >= ?1 AND +call = ?2")?;
        let ids = ask.query_map(params![i64::try_from(since).unwrap_or(i64::MAX), call], |row| row.get(0))?;
        ids.collect::<rusqlite::Result<HashSet<String>>>()
    };
    ids().map_err(|source| LedgerError::Sql { file: file.to_owned(), source })
}

/// How many rows of a door each call has since then, Unix ms.
pub(super) fn rows_of(file: &Path, door: &str, since: u64) -> Result<HashMap<String, u64>, LedgerError> {
    let sql = file::open_to_read(file)?;
    let counts = || {
        let mut ask = sql.prepare("SELECT call, count(*) FROM usage WHERE at >= ?1 AND +door = ?2 GROUP BY call")?;
        let counts = ask.query_map(params![i64::try_from(since).unwrap_or(i64::MAX), door], |row| {
            Ok((row.get(0)?, row.get::<_, i64>(1)?.unsigned_abs()))
        })?;
        counts.collect::<rusqlite::Result<HashMap<String, u64>>>()
    };
    counts().map_err(|source| LedgerError::Sql { file: file.to_owned(), source })
}

fn read(sql: &Connection, times: Times) -> rusqlite::Result<Vec<Spending>> {
    let at = |at: u64| i64::try_from(at).unwrap_or(i64::MAX);
    let mut ask =
        sql.prepare("SELECT tenant, key, user, at, total_tokens, cost FROM usage WHERE at >= ?1 AND at < ?2")?;
    let mut rows = ask.query(params![at(times.month), at(times.until)])?;
    let (mut tenants, mut keys, mut users) = (Sums::new(), Sums::new(), Sums::new());
    while let Some(row) = rows.next()? {
        let (tenant, key, user): (String, Option<String>, Option<String>) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let cost: Option<i64> = row.get(5)?;
        let used = Used {
            usd: Usd::from_pico(cost.unwrap_or_default().into()),
            tokens: row.get::<_, i64>(4)?.into(),
            unpriced: cost.is_none(),
        };
        let today = row.get::<_, i64>(3)? >= at(times.day);
        let count = |sums: &mut Sums, name: Option<String>| {
            let (day, month) = sums.entry((tenant.clone(), name)).or_default();
            month.add(used);
            if today {
                day.add(used);
            }
        };
        count(&mut tenants, None);
        key.into_iter().for_each(|key| count(&mut keys, Some(key)));
        user.into_iter().for_each(|user| count(&mut users, Some(user)));
    }
    let one = |((tenant, name), (day, month)), is_key: bool| {
        let (key, user) = if is_key { (name, None) } else { (None, name) };
        Spending { tenant, key, user, day, month }
    };
    let others = tenants.into_iter().chain(users).map(|sums| one(sums, false));
    Ok(others.chain(keys.into_iter().map(|sums| one(sums, true))).collect())
}

impl Used {
    fn add(&mut self, more: Self) {
        self.usd += more.usd;
        self.tokens += more.tokens;
        self.unpriced |= more.unpriced;
    }
}
