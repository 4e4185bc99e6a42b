//! The SQLite file. Several relays may write to it, and anybody may read it meanwhile ([`super::sums`]).
//!
//! It may be older than its last second after `kill -9`, never broken: WAL, one transaction a batch.
//!
//! A file of an older version gets what it lacks when a relay opens it; its rows stay without it. A relay that knows only the older
//! version and has the file open goes on writing such rows; it cannot open the file again.
use std::{
    fs::{OpenOptions, Permissions},
    io,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use rusqlite::{Connection, OpenFlags, OptionalExtension as _, TransactionBehavior, params};

use super::{
    bill::{Bill, Change},
    entry::{Entry, Kind},
    spool::Rows,
};
use crate::{
    admit::price::{Cost, Usd},
    observe::fact::Fact,
};

/// How long another process may hold the file. Not longer, for a try that fails costs nothing.
const BUSY: Duration = Duration::from_secs(1);
/// How long somebody who reads waits for a relay that begins to write.
const READ_BUSY: Duration = Duration::from_secs(5);
/// What this version writes.
const VERSION: i64 = 4;
/// Had no routes, no costs, and cached tokens of all kinds together.
const FIRST_VERSION: i64 = 1;
/// Did not say how soon a reply was heard, and what it had waited for.
const SECOND_VERSION: i64 = 2;
/// Did not say what was written into the service's cache.
const THIRD_VERSION: i64 = 3;
/// Tells a ledger from other SQLite files: `vrlg`.
const APPLICATION: i64 = 0x7672_6C67;
/// No count is larger, so that no sum is more than a number can hold.
const MOST: u64 = 1 << 40;
const SCHEMA: &str = "
    CREATE TABLE usage (
        kind TEXT NOT NULL, id TEXT NOT NULL, at INTEGER NOT NULL, call TEXT NOT NULL, session TEXT NOT NULL,
        tenant TEXT NOT NULL, key TEXT, user TEXT, agent TEXT NOT NULL, model TEXT NOT NULL, door TEXT NOT NULL,
        status TEXT NOT NULL, total_tokens INTEGER NOT NULL, input_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL,
        input_text_tokens INTEGER NOT NULL, input_audio_tokens INTEGER NOT NULL, cached_tokens INTEGER NOT NULL,
        output_text_tokens INTEGER NOT NULL, output_audio_tokens INTEGER NOT NULL, seconds REAL, audio_ms INTEGER NOT NULL,
        heard_ms INTEGER NOT NULL, estimated INTEGER NOT NULL, PRIMARY KEY (kind, id)
    ) STRICT;
    CREATE INDEX usage_at ON usage (at);
";
/// What version 2 has more. Costs are pico-dollars; NULL: not known.
const SECOND: &str = "
    ALTER TABLE usage ADD COLUMN route TEXT NOT NULL DEFAULT '';
    ALTER TABLE usage ADD COLUMN input_image_tokens INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE usage ADD COLUMN cached_text_tokens INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE usage ADD COLUMN cached_audio_tokens INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE usage ADD COLUMN cached_image_tokens INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE usage ADD COLUMN cost INTEGER;
    ALTER TABLE usage ADD COLUMN cost_text INTEGER;
    ALTER TABLE usage ADD COLUMN cost_audio INTEGER;
    ALTER TABLE usage ADD COLUMN cost_image INTEGER;
    ALTER TABLE usage ADD COLUMN cost_cached INTEGER;
";
/// What version 3 has more. NULL: not known, or nothing.
const THIRD: &str = "
    ALTER TABLE usage ADD COLUMN first_audio_ms INTEGER;
    ALTER TABLE usage ADD COLUMN waited_ms INTEGER;
    ALTER TABLE usage ADD COLUMN reason TEXT;
";
/// What version 4 has more.
const FOURTH: &str = "ALTER TABLE usage ADD COLUMN cache_write_tokens INTEGER NOT NULL DEFAULT 0;";
/// Lets a file of version 1 be read as if it were of this one. It hides the table of the same name, and is never in the file.
const FIRST_AS_THIS: &str = "
    CREATE TEMP VIEW usage AS SELECT *, '' AS route, 0 AS input_image_tokens, 0 AS cached_text_tokens,
        0 AS cached_audio_tokens, 0 AS cached_image_tokens, NULL AS cost, NULL AS cost_text, NULL AS cost_audio,
        NULL AS cost_image, NULL AS cost_cached, NULL AS first_audio_ms, NULL AS waited_ms, NULL AS reason,
        0 AS cache_write_tokens
    FROM main.usage;
";
/// The same for a file of version 2.
const SECOND_AS_THIS: &str = "
    CREATE TEMP VIEW usage AS SELECT *, NULL AS first_audio_ms, NULL AS waited_ms, NULL AS reason, 0 AS cache_write_tokens
    FROM main.usage;
";
/// The same for a file of version 3.
const THIRD_AS_THIS: &str = "CREATE TEMP VIEW usage AS SELECT *, 0 AS cache_write_tokens FROM main.usage;";
/// One row of each id; [`Entry::replaces`] says which.
const PUT: &str = "
    INSERT INTO usage (
        kind, id, at, call, session, tenant, key, user, agent, model, door, status, total_tokens, input_tokens, output_tokens,
        input_text_tokens, input_audio_tokens, cached_tokens, output_text_tokens, output_audio_tokens, seconds, audio_ms,
        heard_ms, estimated, route, input_image_tokens, cached_text_tokens, cached_audio_tokens, cached_image_tokens, cost,
        cost_text, cost_audio, cost_image, cost_cached, first_audio_ms, waited_ms, reason,
        cache_write_tokens
    ) VALUES (
        ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, ?22, ?23, ?24, ?25,
        ?26, ?27, ?28, ?29, ?30, ?31, ?32, ?33, ?34, ?35, ?36, ?37, ?38
    ) ON CONFLICT (kind, id) DO UPDATE SET
        at = ?3, call = ?4, session = ?5, tenant = ?6, key = ?7, user = ?8, agent = ?9, model = ?10, door = ?11, status = ?12,
        total_tokens = ?13, input_tokens = ?14, output_tokens = ?15, input_text_tokens = ?16, input_audio_tokens = ?17,
        cached_tokens = ?18, output_text_tokens = ?19, output_audio_tokens = ?20, seconds = ?21, audio_ms = ?22,
        heard_ms = ?23, estimated = ?24, route = ?25, input_image_tokens = ?26, cached_text_tokens = ?27,
        cached_audio_tokens = ?28, cached_image_tokens = ?29, cost = ?30, cost_text = ?31, cost_audio = ?32,
        cost_image = ?33, cost_cached = ?34, first_audio_ms = ?35, waited_ms = ?36, reason = ?37,
        cache_write_tokens = ?38
    WHERE ?24 = 0 OR usage.estimated = 1
";
/// What a row has cost so far.
const COST: &str = "SELECT cost FROM usage WHERE kind = ?1 AND id = ?2";

/// Why the ledger cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The file cannot be made or opened.
    #[error("ledger `{}`: {source}", file.display())]
    File {
        /// Which.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// SQLite says no.
    #[error("ledger `{}`: {source}", file.display())]
    Sql {
        /// Which.
        file: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
    /// A newer version has written it.
    #[error("ledger `{}` has version {found}; this voxrelay knows versions up to {VERSION}", file.display())]
    Version {
        /// Which.
        file: PathBuf,
        /// Found.
        found: i64,
    },
    /// There is none.
    #[error("there is no ledger `{}`", file.display())]
    Absent {
        /// Which.
        file: PathBuf,
    },
    /// Something else is in the file.
    #[error("`{}` is a SQLite file, but no usage ledger", file.display())]
    Other {
        /// Which.
        file: PathBuf,
    },
    /// Our bug.
    #[error("the ledger's writer failed")]
    Panic,
}

/// An open file.
#[derive(Debug)]
struct Open {
    sql: Connection,
    inode: u64,
}

/// Where rows go. What fails is opened anew, and so is what no longer stands where it should.
#[derive(Debug)]
pub(super) struct Sink {
    file: PathBuf,
    open: Option<Open>,
    bill: Bill,
}

impl Sink {
    /// Opens the file, and makes it if there is none.
    ///
    /// # Errors
    /// When it cannot be had, or is no ledger of ours.
    pub(super) fn open(file: &Path) -> Result<Self, LedgerError> {
        Ok(Self { file: file.to_owned(), open: Some(open(file)?), bill: Bill::default() })
    }

    /// Writes all of them, or none.
    ///
    /// # Errors
    /// When they cannot be written now, or nobody knows whether they were.
    pub(super) fn write(&mut self, rows: &Rows) -> Result<(), LedgerError> {
        let mut open = match self.open.take() {
            Some(open) if inode(&self.file) == Some(open.inode) => open,
            moved => {
                // What is in its log belongs to the file that was moved away, and would stay behind.
                moved.into_iter().for_each(|moved| drop(moved.sql.pragma_query(None, "wal_checkpoint", |_| Ok(()))));
                self::open(&self.file)?
            }
        };
        let changes = put(&mut open.sql, rows);
        let changes = changes.map_err(|source| LedgerError::Sql { file: self.file.clone(), source })?;
        self.open = Some(open);
        self.bill.add(changes).iter().for_each(Fact::record);
        Ok(())
    }

    /// The file may have no more pages: what a full disk does.
    #[cfg(test)]
    pub(super) fn fill(&mut self) -> u32 {
        let open = self.open.get_or_insert_with(|| open(&self.file).unwrap());
        open.sql.pragma_update_and_check(None, "max_page_count", 1, |row| row.get(0)).unwrap()
    }
}

/// Tells a file from another one of the same name; `None`: there is none.
fn inode(file: &Path) -> Option<u64> {
    std::fs::metadata(file).ok().map(|file| file.ino())
}

fn open(file: &Path) -> Result<Open, LedgerError> {
    let io = |source| LedgerError::File { file: file.to_owned(), source };
    if let Some(folder) = file.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).map_err(io)?;
    }
    let opened = OpenOptions::new().create(true).append(true).mode(0o600).open(file).map_err(io)?;
    // It says who called whom. One that somebody else has made is not ours to change.
    let _ = opened.set_permissions(Permissions::from_mode(0o600));
    let inode = opened.metadata().map_err(io)?.ino();
    let sql = connect(file).map_err(|source| LedgerError::Sql { file: file.to_owned(), source })??;
    Ok(Open { sql, inode })
}

fn connect(file: &Path) -> rusqlite::Result<Result<Connection, LedgerError>> {
    let mut sql = Connection::open(file)?;
    sql.busy_timeout(BUSY)?;
    // Before anything is changed in it.
    if !is_empty(&sql)?
        && let Err(error) = version(&sql, file)?
    {
        return Ok(Err(error));
    }
    sql.pragma_update(None, "journal_mode", "WAL")?;
    sql.pragma_update(None, "synchronous", "NORMAL")?;
    let change = sql.transaction_with_behavior(TransactionBehavior::Immediate)?;
    // Another process may have been faster.
    if is_empty(&change)? {
        change.execute_batch(SCHEMA)?;
        change.pragma_update(None, "application_id", APPLICATION)?;
        change.pragma_update(None, "user_version", FIRST_VERSION)?;
    }
    if let Ok(found @ FIRST_VERSION..VERSION) = version(&change, file)? {
        let mut lacks =
            [SECOND, THIRD, FOURTH].into_iter().skip(usize::try_from(found - FIRST_VERSION).unwrap_or_default());
        lacks.try_for_each(|more| change.execute_batch(more))?;
        change.pragma_update(None, "user_version", VERSION)?;
    }
    change.commit()?;
    Ok(version(&sql, file)?.map(|_| sql))
}

/// Opens a ledger that is there, to read it; a relay may write to it meanwhile.
///
/// # Errors
/// When there is none.
pub(super) fn open_to_read(file: &Path) -> Result<Connection, LedgerError> {
    if !file.exists() {
        return Err(LedgerError::Absent { file: file.to_owned() });
    }
    let open = || {
        let sql =
            Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
        sql.busy_timeout(READ_BUSY)?;
        let version = version(&sql, file)?;
        match version {
            Ok(FIRST_VERSION) => sql.execute_batch(FIRST_AS_THIS)?,
            Ok(SECOND_VERSION) => sql.execute_batch(SECOND_AS_THIS)?,
            Ok(THIRD_VERSION) => sql.execute_batch(THIRD_AS_THIS)?,
            _ => {}
        }
        Ok(version.map(|_| sql))
    };
    open().map_err(|source| LedgerError::Sql { file: file.to_owned(), source })?
}

fn is_empty(sql: &Connection) -> rusqlite::Result<bool> {
    sql.query_row("SELECT count(*) = 0 FROM sqlite_schema", [], |row| row.get(0))
}

/// The version of a ledger that we know.
fn version(sql: &Connection, file: &Path) -> rusqlite::Result<Result<i64, LedgerError>> {
    let number = |name| sql.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    Ok(match (number("application_id")?, number("user_version")?) {
        (APPLICATION, found @ FIRST_VERSION..=VERSION) => Ok(found),
        (APPLICATION, found) => Err(LedgerError::Version { file: file.to_owned(), found }),
        _ => Err(LedgerError::Other { file: file.to_owned() }),
    })
}

fn put(sql: &mut Connection, rows: &Rows) -> rusqlite::Result<Vec<Change>> {
    let change = sql.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let (mut put, mut cost_of) = (change.prepare_cached(PUT)?, change.prepare_cached(COST)?);
    let mut changes = Vec::new();
    for row in rows.values() {
        let Entry { id, kind, call, session, tenant, key, user, agent, model, door, at, status, usage, .. } = row;
        let Entry { seconds, audio_ms, heard_ms, estimated, route, cost, first_audio_ms, waited_ms, reason, .. } = row;
        let part = |part: fn(&Cost) -> Usd| cost.as_ref().and_then(|cost| i64::try_from(part(cost).pico()).ok());
        let before: Option<Option<i64>> = cost_of.query_row(params![kind.name(), id], |row| row.get(0)).optional()?;
        let now = part(Cost::total);
        let taken = put.execute(params![
            kind.name(),
            id,
            i64::try_from(*at).unwrap_or(i64::MAX),
            call,
            session,
            tenant,
            key,
            user,
            agent,
            model,
            door,
            status,
            number(usage.total_tokens),
            number(usage.input_tokens),
            number(usage.output_tokens),
            number(usage.input_text_tokens),
            number(usage.input_audio_tokens),
            number(usage.cached_tokens),
            number(usage.output_text_tokens),
            number(usage.output_audio_tokens),
            seconds.filter(|seconds| seconds.is_finite()),
            number(*audio_ms),
            number(*heard_ms),
            estimated,
            route,
            number(usage.input_image_tokens),
            number(usage.cached_text_tokens),
            number(usage.cached_audio_tokens),
            number(usage.cached_image_tokens),
            now,
            part(|cost| cost.text),
            part(|cost| cost.audio),
            part(|cost| cost.image),
            part(|cost| cost.cached),
            first_audio_ms.map(number),
            waited_ms.map(number),
            reason,
            number(usage.cache_write_tokens),
        ])?;
        if taken > 0 && !matches!(kind, Kind::Refusal | Kind::Call) {
            let pico = i128::from(now.unwrap_or_default()) - i128::from(before.flatten().unwrap_or_default());
            changes.push(Change { model: model.clone(), pico, unpriced: now.is_none() && before.is_none() });
        }
    }
    drop((put, cost_of));
    change.commit()?;
    Ok(changes)
}

/// As SQLite has them.
fn number(count: u64) -> i64 {
    i64::try_from(count.min(MOST)).unwrap_or_default()
}
