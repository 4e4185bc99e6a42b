//! The job: everything that a run over many files has to remember, in one SQLite file beside its output.
//!
//! Stands between [`super::source`] (says what is to be done), whoever does it, and [`super::table`] (takes the results away).
//! It sends nothing and reads no clock: every `now` is an argument, Unix ms. One process has the file at a time.
//!
//! Every call that has come back is in the file: `kill -9` loses nothing of it. What was paid for (an answer and its usage) is
//! on the disk besides (`synchronous = FULL`), so that a power cut loses nothing of it either; what can be found out again
//! without paying (what is listed, claimed, begun, measured or joined) is only committed (`NORMAL`), for it would cost a second
//! wait for the disk for every request. A log is written in order, so an answer's wait is a wait for all before it.
//!
//! Nothing is paid for twice: a request's idempotency key is made of what is asked ([`Part`]), and is the same after a restart;
//! a request that was answered is not sent again; and a file with the same content as another takes over what came of it.
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{OpenOptions, Permissions},
    io,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rusqlite::{Connection, ErrorCode, Transaction, TransactionBehavior, params};

mod batches;
mod items;
mod parts;
mod rows;
mod sums;
#[cfg(test)]
mod tests;
mod unread;

pub use self::{
    batches::{Batched, ByBatch, Came, Pending},
    items::{Added, Clash, Content, End, Entry, Item, Known, State},
    parts::{Begun, Extracted, Part, Task, Transcript, Usage},
    rows::{Order, Row, Slow},
    sums::{Count, Sums},
};

/// What the file's name ends in.
const SUFFIX: &str = ".voxrelay-job";
/// How long a process that is just ending may still have the file.
const BUSY: Duration = Duration::from_millis(500);
/// What this version writes.
const VERSION: i64 = 1;
/// Tells a job from other SQLite files: `vrjb`.
const APPLICATION: i64 = 0x7672_6A62;
/// States are those of [`State`]; `parts.kind` is [`Task`]. Costs are pico-dollars. What is summed up stands
/// before what is long, so that summing reads no text.
const SCHEMA: &str = "
    CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
    CREATE TABLE columns (name TEXT PRIMARY KEY, n INTEGER NOT NULL) STRICT;
    CREATE TABLE items (
        n INTEGER PRIMARY KEY, state INTEGER NOT NULL, twin INTEGER, bytes INTEGER, duration_ms INTEGER,
        started_ms INTEGER, finished_ms INTEGER, attempts INTEGER NOT NULL DEFAULT 0, seen INTEGER NOT NULL, line INTEGER,
        hash BLOB, id TEXT NOT NULL UNIQUE, source TEXT NOT NULL, metadata TEXT NOT NULL, code TEXT, message TEXT,
        first_error TEXT
    ) STRICT;
    CREATE INDEX items_state ON items (state);
    CREATE INDEX items_hash ON items (hash) WHERE hash IS NOT NULL;
    CREATE INDEX items_twin ON items (twin) WHERE twin IS NOT NULL;
    CREATE TABLE parts (
        item INTEGER NOT NULL, kind INTEGER NOT NULL, number INTEGER NOT NULL, round INTEGER NOT NULL DEFAULT 0,
        input_tokens INTEGER NOT NULL DEFAULT 0, output_tokens INTEGER NOT NULL DEFAULT 0, audio_ms INTEGER NOT NULL DEFAULT 0,
        cost INTEGER NOT NULL DEFAULT 0, unpriced INTEGER NOT NULL DEFAULT 0, begun_ms INTEGER, done_ms INTEGER, key TEXT NOT NULL, seal TEXT NOT NULL, answer TEXT,
        PRIMARY KEY (item, kind, number)
    ) STRICT;
    CREATE TABLE transcripts (
        item INTEGER PRIMARY KEY, input_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL, audio_ms INTEGER NOT NULL,
        cost INTEGER NOT NULL, unpriced INTEGER NOT NULL, reused INTEGER, model TEXT NOT NULL, language TEXT, text TEXT NOT NULL, segments TEXT NOT NULL
    ) STRICT;
    CREATE TABLE extracts (
        item INTEGER PRIMARY KEY, input_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL, audio_ms INTEGER NOT NULL,
        cost INTEGER NOT NULL, unpriced INTEGER NOT NULL, tries INTEGER NOT NULL DEFAULT 1, model TEXT NOT NULL, error TEXT, json TEXT
    ) STRICT;
";

/// Why a job cannot be begun or gone on with. Each stops the run; what is finished stays in the file.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file cannot be made or opened.
    #[error("job `{}`: {source}", file.display())]
    File {
        /// Which.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No room for it.
    #[error("job `{}`: the disk is full; what is finished is kept, and --resume goes on from there", file.display())]
    Full {
        /// Which.
        file: PathBuf,
    },
    /// SQLite says no.
    #[error("job `{}`: {source}", file.display())]
    Sql {
        /// Which.
        file: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
    /// Another process has it.
    #[error("job `{}`: another voxrelay is at work on it", file.display())]
    Busy {
        /// Which.
        file: PathBuf,
    },
    /// A newer version has written it.
    #[error("job `{}` has version {found}; this voxrelay knows versions up to {VERSION}", file.display())]
    Version {
        /// Which.
        file: PathBuf,
        /// Found.
        found: i64,
    },
    /// Something else is in the file.
    #[error("`{}` is no voxrelay job", file.display())]
    Other {
        /// Which.
        file: PathBuf,
    },
    /// There is one, and nobody said to go on with it.
    #[error("there is a job `{}` already: --resume goes on with it; to begin anew, remove it, or name another --out", file.display())]
    Exists {
        /// Which.
        file: PathBuf,
    },
    /// There is none to go on with.
    #[error("there is no job `{}` to resume; without --resume it begins", file.display())]
    Absent {
        /// Which.
        file: PathBuf,
    },
    /// Whoever began it came no further than its name.
    #[error("job `{}` has not begun yet", file.display())]
    Empty {
        /// Which.
        file: PathBuf,
    },
    /// It was begun with other parameters.
    #[error("job `{}` was begun with other parameters: {}", file.display(), differences.join(", "))]
    Differs {
        /// Which.
        file: PathBuf,
        /// Each with its name, what it was and what it would be now.
        differences: Vec<String>,
    },
    /// Nobody has claimed the item: our bug.
    #[error("job: item {n} is not being worked on")]
    NotWorking {
        /// Its number.
        n: i64,
    },
}

/// What a run does with its files: all that its results depend on, by name. A job is resumed with the same ones only.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Params {
    /// For transcripts: model, language, prompt, engine and the like.
    pub transcribe: BTreeMap<String, String>,
    /// For extracts: schema, instructions, model; empty: none are wanted.
    pub extract: BTreeMap<String, String>,
}

/// Longest value of a parameter that is shown whole, characters.
const SHOWN: usize = 60;

impl Params {
    /// What differs from those that are wanted `now`, for people.
    fn differences(&self, now: &Self) -> Vec<String> {
        let all = |params: &Self| -> BTreeMap<String, String> {
            let extract = params.extract.iter().map(|(name, value)| (format!("extract {name}"), value.clone()));
            params.transcribe.clone().into_iter().chain(extract).collect()
        };
        let (was, now) = (all(self), all(now));
        let names: BTreeSet<&String> = was.keys().chain(now.keys()).collect();
        let shown = |value: Option<&String>| match value {
            None => "not given".to_owned(),
            Some(value) if value.chars().count() > SHOWN => {
                format!("`{}...`", value.chars().take(SHOWN).collect::<String>())
            }
            Some(value) => format!("`{value}`"),
        };
        let differing = names.into_iter().filter(|name| was.get(*name) != now.get(*name));
        differing.map(|name| format!("{name} was {}, now {}", shown(was.get(name)), shown(now.get(name)))).collect()
    }
}

/// An open job.
#[derive(Debug)]
pub struct Store {
    file: PathBuf,
    base: PathBuf,
    params: Params,
    /// Tells this run's items from those of earlier ones.
    run: i64,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    sql: Connection,
    sums: Sums,
    columns: BTreeSet<String>,
}

/// How sure a change shall be when it is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sure {
    /// It outlives the process.
    Committed,
    /// It outlives the power, too.
    Synced,
}

impl Store {
    /// Where the job of an output is: beside it.
    pub fn beside(out: &Path) -> PathBuf {
        let mut name = out.components().as_path().as_os_str().to_owned();
        name.push(SUFFIX);
        name.into()
    }

    /// Begins a job; relative paths in it will be meant from `base`. One that is there, and of which nothing was begun, is begun anew.
    ///
    /// # Errors
    /// When the file cannot be had, or holds a job already.
    pub fn create(file: &Path, params: &Params, base: &Path) -> Result<Self, StoreError> {
        let io = |source| StoreError::File { file: file.to_owned(), source };
        if let Some(folder) = file.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder).map_err(io)?;
        }
        let opened = OpenOptions::new().create(true).append(true).mode(0o600).open(file).map_err(io)?;
        // It says what was said. One that somebody else has made is not ours to change.
        let _ = opened.set_permissions(Permissions::from_mode(0o600));
        drop(opened);
        Self::open(file, params, Some(base))
    }

    /// Goes on with a job; what was being worked on waits again.
    ///
    /// # Errors
    /// When there is none, another process has it, or it was begun with other parameters.
    pub fn resume(file: &Path, params: &Params) -> Result<Self, StoreError> {
        if !file.exists() {
            return Err(StoreError::Absent { file: file.to_owned() });
        }
        Self::open(file, params, None)
    }

    /// A job is no more, whoever still has it open.
    pub fn remove(file: &Path) {
        for ending in ["", "-wal"] {
            let mut name = file.as_os_str().to_owned();
            name.push(ending);
            let _ = std::fs::remove_file(name);
        }
    }

    fn open(file: &Path, params: &Params, base: Option<&Path>) -> Result<Self, StoreError> {
        Self::connect(file, params, base).map_err(|source| of_sql(file, source))?
    }

    fn connect(file: &Path, params: &Params, base: Option<&Path>) -> rusqlite::Result<Result<Self, StoreError>> {
        let here = || file.to_owned();
        let mut sql = Connection::open(file)?;
        sql.busy_timeout(BUSY)?;
        // Before the first look: nobody else gets in until this process is gone, however it goes.
        sql.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
        let empty: bool = sql.query_row("SELECT count(*) = 0 FROM sqlite_schema", [], |row| row.get(0))?;
        if !empty {
            let number = |name| sql.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
            match (number("application_id")?, number("user_version")?) {
                (APPLICATION, VERSION) => {}
                (APPLICATION, found) => return Ok(Err(StoreError::Version { file: here(), found })),
                _ => return Ok(Err(StoreError::Other { file: here() })),
            }
        }
        match (empty, base) {
            (false, Some(_)) if was_begun(&sql)? => return Ok(Err(StoreError::Exists { file: here() })),
            (true, None) => return Ok(Err(StoreError::Empty { file: here() })),
            _ => {}
        }
        sql.pragma_update(None, "journal_mode", "WAL")?;
        sql.pragma_update(None, "synchronous", "FULL")?;
        let change = sql.transaction_with_behavior(TransactionBehavior::Immediate)?;
        if let Some(base) = base {
            if empty {
                change.execute_batch(SCHEMA)?;
                change.execute_batch(batches::SCHEMA)?;
                change.pragma_update(None, "application_id", APPLICATION)?;
                change.pragma_update(None, "user_version", VERSION)?;
            } else {
                // Whoever began it was ended before there was anything to keep.
                change.execute_batch("DELETE FROM meta; DELETE FROM columns; DELETE FROM items;")?;
            }
            put_meta(&change, "params", &serde_json::to_string(params).unwrap_or_default())?;
            put_meta(&change, "base", &base.to_string_lossy())?;
        }
        change.execute_batch(unread::SCHEMA)?;
        let begun: Params = serde_json::from_str(&meta(&change, "params")?).unwrap_or_default();
        let differences = begun.differences(params);
        if !differences.is_empty() {
            return Ok(Err(StoreError::Differs { file: here(), differences }));
        }
        let base = PathBuf::from(meta(&change, "base")?);
        let run = meta(&change, "run").ok().and_then(|run| run.parse::<i64>().ok()).unwrap_or_default() + 1;
        put_meta(&change, "run", &run.to_string())?;
        let again = format!("UPDATE items SET state = {}, twin = NULL WHERE state IN (?1, ?2)", items::GONE_ON_WITH);
        change.execute(&again, params![State::Working, State::Held])?;
        batches::begin(&change)?;
        change.commit()?;
        let names =
            sql.prepare("SELECT name FROM columns")?.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
        let inner = Inner { sums: Sums::read(&sql)?, columns: names, sql };
        Ok(Ok(Self { file: here(), base, params: begun, run, inner: Mutex::new(inner) }))
    }

    /// The file.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Where relative paths begin: the folder in which the job was begun.
    pub fn base(&self) -> &Path {
        &self.base
    }

    /// How far it is; costs nothing to ask.
    pub fn sums(&self) -> Sums {
        self.inner().sums
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes something, all of it or nothing; sums change with the file.
    fn change<T>(
        &self,
        sure: Sure,
        work: impl FnOnce(&Transaction<'_>, &mut Sums) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        let mut inner = self.inner();
        let mut sums = inner.sums;
        let done = || {
            let mode = if sure == Sure::Synced { "FULL" } else { "NORMAL" };
            inner.sql.pragma_update(None, "synchronous", mode)?;
            let change = inner.sql.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let done = work(&change, &mut sums)?;
            change.commit()?;
            Ok(done)
        };
        let done = done().map_err(|source| self.error(source))?;
        inner.sums = sums;
        Ok(done)
    }

    /// Reads something.
    fn read<T>(&self, work: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, StoreError> {
        work(&self.inner().sql).map_err(|source| self.error(source))
    }

    fn error(&self, source: rusqlite::Error) -> StoreError {
        of_sql(&self.file, source)
    }
}

/// Whether there is anything to go on with: anything was looked at, asked for or paid.
fn was_begun(sql: &Connection) -> rusqlite::Result<bool> {
    let ask = "SELECT EXISTS (SELECT 1 FROM items WHERE state <> ?1 OR attempts > 0 OR started_ms IS NOT NULL) \
               OR EXISTS (SELECT 1 FROM parts) OR EXISTS (SELECT 1 FROM transcripts)";
    sql.query_row(ask, [State::Waiting], |row| row.get(0))
}

fn of_sql(file: &Path, source: rusqlite::Error) -> StoreError {
    let file = file.to_owned();
    match source.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => StoreError::Full { file },
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => StoreError::Busy { file },
        Some(ErrorCode::NotADatabase) => StoreError::Other { file },
        _ => StoreError::Sql { file, source },
    }
}

fn meta(sql: &Connection, name: &str) -> rusqlite::Result<String> {
    sql.query_row("SELECT value FROM meta WHERE name = ?", [name], |row| row.get(0))
}

fn put_meta(sql: &Connection, name: &str, value: &str) -> rusqlite::Result<()> {
    let put = "INSERT INTO meta (name, value) VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET value = ?2";
    sql.execute(put, params![name, value]).map(drop)
}

/// SQLite's numbers have a sign.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// And ours have none.
fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or_default()
}
