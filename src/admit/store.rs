//! What outlives a process, in one SQLite file: tenants and the hashes of their keys, the keys that sign call tokens, and how
//! often those with a number of uses were used.
//!
//! Every process that serves, and `voxrelay tenant`, may have it open at once. It holds no key of a tenant and none of an
//! account; the signing keys are why only its owner may read it.
use std::{
    collections::BTreeMap,
    fs::{OpenOptions, Permissions},
    io,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rusqlite::{Connection, OptionalExtension as _, params};

use super::{key, token::SigningKey};
use crate::config::{KeyConfig, KeyHash, Moment, Secret, TenantConfig};

/// How long another process may hold the file.
const BUSY: Duration = Duration::from_secs(3);
/// A token's uses are remembered so long after its end, seconds.
const FORGOTTEN_AFTER: u64 = 86_400;
/// What this version writes.
const VERSION: i64 = 1;
const SCHEMA: &str = "
    CREATE TABLE tenants (id TEXT PRIMARY KEY, config TEXT NOT NULL) STRICT;
    CREATE TABLE keys (
        hash BLOB PRIMARY KEY, tenant TEXT NOT NULL, label TEXT NOT NULL, made INTEGER NOT NULL, expires INTEGER,
        scopes TEXT NOT NULL
    ) STRICT;
    CREATE INDEX keys_of ON keys (tenant);
    CREATE TABLE signing_keys (id TEXT PRIMARY KEY, secret TEXT NOT NULL, made INTEGER NOT NULL) STRICT;
    CREATE TABLE uses (jti TEXT PRIMARY KEY, used INTEGER NOT NULL, ends INTEGER NOT NULL) STRICT;
    CREATE INDEX uses_end ON uses (ends);
    CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
";

/// Why the store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file cannot be made or opened.
    #[error("store `{}`: {source}", file.display())]
    File {
        /// Which.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// SQLite says no.
    #[error("store `{}`: {source}", file.display())]
    Sql {
        /// Which.
        file: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
    /// A newer version has written it.
    #[error("store `{}` has version {found}; this voxrelay knows versions up to {VERSION}", file.display())]
    Version {
        /// Which.
        file: PathBuf,
        /// Found.
        found: i64,
    },
    /// It should be there.
    #[error("store.file: `{}` is not there; `voxrelay tenant add` makes it", file.display())]
    Absent {
        /// Which.
        file: PathBuf,
    },
}

/// An open store.
#[derive(Debug)]
pub struct Store {
    file: PathBuf,
    sql: Mutex<Connection>,
}

impl Store {
    /// Opens the file, and makes it if there is none.
    ///
    /// # Errors
    /// When it cannot be had, or is no store of ours.
    pub fn open(file: &Path) -> Result<Self, StoreError> {
        let io = |source| StoreError::File { file: file.to_owned(), source };
        if let Some(folder) = file.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder).map_err(io)?;
        }
        let opened = OpenOptions::new().create(true).append(true).mode(0o600).open(file).map_err(io)?;
        // One that somebody else has made may be open to others; if it is not ours, that is not ours to change.
        let _ = opened.set_permissions(Permissions::from_mode(0o600));
        Self::connect(file).map_err(|source| StoreError::Sql { file: file.to_owned(), source })?
    }

    fn connect(file: &Path) -> rusqlite::Result<Result<Self, StoreError>> {
        let mut sql = Connection::open(file)?;
        sql.busy_timeout(BUSY)?;
        sql.pragma_update(None, "journal_mode", "WAL")?;
        sql.pragma_update(None, "synchronous", "NORMAL")?;
        let change = sql.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        let found: i64 = change.pragma_query_value(None, "user_version", |row| row.get(0))?;
        match found {
            0 => {
                change.execute_batch(SCHEMA)?;
                change.pragma_update(None, "user_version", VERSION)?;
            }
            VERSION => {}
            found => return Ok(Err(StoreError::Version { file: file.to_owned(), found })),
        }
        change.commit()?;
        Ok(Ok(Self { file: file.to_owned(), sql: Mutex::new(sql) }))
    }

    fn sql(&self) -> MutexGuard<'_, Connection> {
        self.sql.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn error(&self, source: rusqlite::Error) -> StoreError {
        StoreError::Sql { file: self.file.clone(), source }
    }

    /// Changes when another connection has written.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn version(&self) -> Result<i64, StoreError> {
        let asked = self.sql().pragma_query_value(None, "data_version", |row| row.get(0));
        asked.map_err(|e| self.error(e))
    }

    /// All tenants with their keys, expired ones too. A row that makes no sense is left out and logged: it shuts its own door,
    /// and nobody else's.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn tenants(&self) -> Result<BTreeMap<String, TenantConfig>, StoreError> {
        let (tenants, keys) = self.rows().map_err(|e| self.error(e))?;
        let mut found = BTreeMap::new();
        for (id, config) in tenants {
            match serde_json::from_str::<TenantConfig>(&config) {
                Ok(config) => drop(found.insert(id, config)),
                Err(error) => tracing::error!(tenant = id, %error, "a tenant of the store cannot be read: it is shut"),
            }
        }
        for (tenant, key) in keys {
            match (found.get_mut(&tenant), key) {
                (Some(config), Ok(key)) => config.keys.push(key),
                (Some(_), Err(problem)) => tracing::error!(tenant, problem, "a key of the store cannot be read"),
                (None, _) => {}
            }
        }
        Ok(found)
    }

    #[expect(clippy::type_complexity, reason = "two tables, read in one go")]
    fn rows(&self) -> rusqlite::Result<(Vec<(String, String)>, Vec<(String, Result<KeyConfig, String>)>)> {
        let mut sql = self.sql();
        let read = sql.transaction()?;
        let mut ask = read.prepare("SELECT id, config FROM tenants")?;
        let tenants = ask.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<Result<Vec<_>, _>>()?;
        let mut ask = read.prepare("SELECT tenant, hash, label, expires, scopes FROM keys ORDER BY made, hash")?;
        let keys = ask.query_map([], |row| {
            let hash: Vec<u8> = row.get(1)?;
            let (label, expires, scopes): (String, Option<i64>, String) = (row.get(2)?, row.get(3)?, row.get(4)?);
            Ok((row.get(0)?, key_of(&hash, label, expires, &scopes)))
        })?;
        let keys = keys.collect::<Result<Vec<_>, _>>()?;
        Ok((tenants, keys))
    }

    /// A new tenant, or another configuration of one; its keys stay as they are.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn put_tenant(&self, id: &str, config: &TenantConfig) -> Result<(), StoreError> {
        let config = TenantConfig { keys: Vec::new(), ..config.clone() };
        let text = serde_json::to_string(&config).unwrap_or_default();
        let put = || {
            let mut sql = self.sql();
            let change = sql.transaction()?;
            change.execute(
                "INSERT INTO tenants (id, config) VALUES (?1, ?2) ON CONFLICT (id) DO UPDATE SET config = ?2",
                params![id, text],
            )?;
            change.execute("INSERT INTO meta (name, value) VALUES ('closed', '1') ON CONFLICT DO NOTHING", [])?;
            change.commit()
        };
        put().map_err(|e| self.error(e))
    }

    /// One more key of a tenant, made at `unix`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn put_key(&self, tenant: &str, key: &KeyConfig, unix: u64) -> Result<(), StoreError> {
        let scopes = serde_json::to_string(&key.scopes).unwrap_or_default();
        let ask = "INSERT INTO keys (hash, tenant, label, made, expires, scopes) VALUES (?, ?, ?, ?, ?, ?)";
        let expires = key.expires.map(|end| signed(end.0));
        let row = params![&key.hash.0[..], tenant, key.label, signed(unix), expires, scopes];
        self.sql().execute(ask, row).map(drop).map_err(|e| self.error(e))
    }

    /// Keys of a tenant end at `end`, those that ended before keep their time. How many changed.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn expire_keys(&self, tenant: &str, keys: &[KeyHash], end: Moment) -> Result<usize, StoreError> {
        let ask = "UPDATE keys SET expires = ?1 WHERE tenant = ?2 AND hash = ?3 AND (expires IS NULL OR expires > ?1)";
        let sql = self.sql();
        let changed = keys.iter().map(|key| sql.execute(ask, params![signed(end.0), tenant, &key.0[..]]));
        changed.sum::<rusqlite::Result<usize>>().map_err(|e| self.error(e))
    }

    /// Keys of a tenant are gone. How many.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn remove_keys(&self, tenant: &str, keys: &[KeyHash]) -> Result<usize, StoreError> {
        let sql = self.sql();
        let removed = keys
            .iter()
            .map(|key| sql.execute("DELETE FROM keys WHERE tenant = ?1 AND hash = ?2", params![tenant, &key.0[..]]));
        removed.sum::<rusqlite::Result<usize>>().map_err(|e| self.error(e))
    }

    /// A tenant and all of its keys are gone; `false`: there was none.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn remove_tenant(&self, tenant: &str) -> Result<bool, StoreError> {
        let mut sql = self.sql();
        let remove = || {
            let change = sql.transaction()?;
            change.execute("DELETE FROM keys WHERE tenant = ?", [tenant])?;
            let found = change.execute("DELETE FROM tenants WHERE id = ?", [tenant])?;
            change.commit()?;
            Ok(found > 0)
        };
        let mut remove = remove;
        remove().map_err(|e| self.error(e))
    }

    /// There has been a tenant: nobody is served without a credential any more.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn is_closed(&self) -> Result<bool, StoreError> {
        let asked = self.sql().query_row("SELECT 1 FROM meta WHERE name = 'closed'", [], |_| Ok(())).optional();
        asked.map(|found| found.is_some()).map_err(|e| self.error(e))
    }

    /// Keys that sign call tokens, the newest first; made if there are none. One that was followed by another is good for
    /// `keep_s` seconds more, when the last token that it signed has ended.
    ///
    /// # Errors
    /// When the file cannot be used.
    pub fn signing_keys(&self, unix: u64, keep_s: u64) -> Result<Vec<SigningKey>, StoreError> {
        let found = self.read_signing_keys(unix, keep_s).map_err(|e| self.error(e))?;
        if !found.is_empty() {
            return Ok(found);
        }
        let first = "INSERT INTO signing_keys (id, secret, made) SELECT ?1, ?2, ?3 WHERE NOT EXISTS (SELECT 1 FROM signing_keys)";
        self.new_signing_key(first, unix)?;
        self.read_signing_keys(unix, keep_s).map_err(|e| self.error(e))
    }

    /// A new key signs from now on. `forget`: the tokens of all others are good no longer.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn rotate_signing_key(&self, unix: u64, forget: bool) -> Result<String, StoreError> {
        if forget {
            self.sql().execute("DELETE FROM signing_keys", []).map_err(|e| self.error(e))?;
        }
        self.new_signing_key("INSERT INTO signing_keys (id, secret, made) VALUES (?1, ?2, ?3)", unix)
    }

    fn new_signing_key(&self, ask: &str, unix: u64) -> Result<String, StoreError> {
        let secret = key::generate();
        let id = key::hash(secret.expose()).short();
        let done = self.sql().execute(ask, params![id, secret.expose(), signed(unix)]);
        done.map(|_| id).map_err(|e| self.error(e))
    }

    fn read_signing_keys(&self, unix: u64, keep_s: u64) -> rusqlite::Result<Vec<SigningKey>> {
        let sql = self.sql();
        let mut ask = sql.prepare("SELECT id, secret, made FROM signing_keys ORDER BY made DESC, rowid DESC")?;
        let keys = ask.query_map([], |row| {
            let key = SigningKey { id: row.get(0)?, secret: Secret::new(row.get::<_, String>(1)?) };
            Ok((key, u64::try_from(row.get::<_, i64>(2)?).unwrap_or_default()))
        })?;
        let keys = keys.collect::<Result<Vec<_>, _>>()?;
        let followed = keys.iter().map(|(_, made)| *made);
        let good = std::iter::once(true).chain(followed.map(|next| unix < next.saturating_add(keep_s)));
        Ok(keys.iter().zip(good).filter(|(_, good)| *good).map(|((key, _), _)| key.clone()).collect())
    }

    /// The secret that turns end users into safety identifiers; made if there is none.
    ///
    /// # Errors
    /// When the file cannot be used.
    pub fn safety_secret(&self) -> Result<Secret, StoreError> {
        let ask = || {
            let sql = self.sql();
            sql.execute(
                "INSERT INTO meta (name, value) VALUES ('safety_secret', ?) ON CONFLICT DO NOTHING",
                [key::generate().expose()],
            )?;
            sql.query_row("SELECT value FROM meta WHERE name = 'safety_secret'", [], |row| row.get::<_, String>(0))
        };
        ask().map(Secret::new).map_err(|e| self.error(e))
    }

    /// Takes one of so many uses of a token that ends at `ends`; `false`: there is none left.
    ///
    /// # Errors
    /// When the file cannot be written: then nobody may come in by it.
    pub fn take_use(&self, jti: &str, uses: u32, ends: u64, unix: u64) -> Result<bool, StoreError> {
        let ask = || {
            let sql = self.sql();
            // Long after they have ended, so that a clock that jumps makes none good again.
            sql.execute("DELETE FROM uses WHERE ends < ?", [signed(unix.saturating_sub(FORGOTTEN_AFTER))])?;
            let taken = sql.execute(
                "INSERT INTO uses (jti, used, ends) VALUES (?1, 1, ?2) ON CONFLICT (jti) DO UPDATE SET used = used + 1 \
                 WHERE used < ?3",
                params![jti, signed(ends), uses],
            )?;
            Ok(taken > 0)
        };
        ask().map_err(|e| self.error(e))
    }

    /// Gives one use of a token back.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn give_use_back(&self, jti: &str) -> Result<(), StoreError> {
        let done = self.sql().execute("UPDATE uses SET used = used - 1 WHERE jti = ? AND used > 0", [jti]);
        done.map(drop).map_err(|e| self.error(e))
    }

    /// Nobody is served without a credential from now on.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn close(&self) -> Result<(), StoreError> {
        let done =
            self.sql().execute("INSERT INTO meta (name, value) VALUES ('closed', '1') ON CONFLICT DO NOTHING", []);
        done.map(drop).map_err(|e| self.error(e))
    }

    /// Whether there is a tenant of this id.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn has_tenant(&self, id: &str) -> Result<bool, StoreError> {
        let found = self.sql().query_row("SELECT 1 FROM tenants WHERE id = ?", [id], |_| Ok(())).optional();
        found.map(|found| found.is_some()).map_err(|e| self.error(e))
    }
}

fn key_of(hash: &[u8], label: String, expires: Option<i64>, scopes: &str) -> Result<KeyConfig, String> {
    let hash = hash.try_into().map(KeyHash).map_err(|_| format!("key `{label}`: its hash has {} bytes", hash.len()))?;
    let scopes = serde_json::from_str(scopes).map_err(|e| format!("key `{label}`: {e}"))?;
    let expires = expires.map(|end| Moment(u64::try_from(end).unwrap_or_default()));
    Ok(KeyConfig { label, hash, expires, scopes, budget: None })
}

/// SQLite's numbers have a sign.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Scope;

    fn key_named(label: &str) -> KeyConfig {
        KeyConfig { label: label.into(), hash: key::hash(label), expires: None, scopes: Scope::usual(), budget: None }
    }

    #[test]
    fn tenants_and_keys_are_kept_and_seen_by_others() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("deep/voxrelay.db");
        let store = Store::open(&file).unwrap();
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let other = Store::open(&file).unwrap();
        let before = other.version().unwrap();
        let config = TenantConfig { agents: vec!["default".into()], max_calls: 3, ..TenantConfig::default() };
        store.put_tenant("acme", &config).unwrap();
        store.put_key("acme", &key_named("one"), 7).unwrap();
        store.put_key("acme", &key_named("two"), 8).unwrap();
        assert_ne!(other.version().unwrap(), before);
        let want = TenantConfig { keys: vec![key_named("one"), key_named("two")], ..config };
        assert_eq!(other.tenants().unwrap(), BTreeMap::from([("acme".to_owned(), want)]));
        assert!(other.is_closed().unwrap());
        assert!(store.has_tenant("acme").unwrap() && !store.has_tenant("other").unwrap());
        assert_eq!(store.expire_keys("acme", &[key::hash("one")], Moment(50)).unwrap(), 1);
        assert_eq!(store.expire_keys("acme", &[key::hash("one")], Moment(90)).unwrap(), 0, "it ends before");
        assert_eq!(store.expire_keys("other", &[key::hash("two")], Moment(50)).unwrap(), 0, "not theirs");
        assert_eq!(store.remove_keys("acme", &[key::hash("two"), key::hash("three")]).unwrap(), 1);
        let keys = &other.tenants().unwrap()["acme"].keys;
        assert_eq!((keys.len(), keys[0].expires), (1, Some(Moment(50))));
        assert!(store.remove_tenant("acme").unwrap() && !store.remove_tenant("acme").unwrap());
        assert!(other.tenants().unwrap().is_empty());
    }

    #[test]
    fn a_use_is_taken_once_by_whoever_comes_first() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("voxrelay.db");
        let stores: Vec<Store> = (0..2).map(|_| Store::open(&file).unwrap()).collect();
        let taken: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|n| {
                    let store = &stores[n % 2];
                    scope.spawn(move || (0..10).filter(|_| store.take_use("t", 5, 100, 10).unwrap()).count())
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(taken, 5);
        stores[0].give_use_back("t").unwrap();
        assert!(stores[1].take_use("t", 5, 100, 10).unwrap() && !stores[1].take_use("t", 5, 100, 10).unwrap());
        assert!(!Store::open(&file).unwrap().take_use("t", 5, 100, 11).unwrap(), "after a restart");
    }

    #[test]
    fn signing_keys_are_made_once_and_rotated() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("voxrelay.db");
        let (store, other) = (Store::open(&file).unwrap(), Store::open(&file).unwrap());
        let ids =
            |store: &Store, at| store.signing_keys(at, 100).unwrap().into_iter().map(|key| key.id).collect::<Vec<_>>();
        let first = ids(&store, 10);
        assert_eq!((first.len(), ids(&other, 10)), (1, first.clone()));
        let second = store.rotate_signing_key(1_000, false).unwrap();
        assert_eq!(ids(&other, 1_050), [second.clone(), first[0].clone()], "its tokens are still about");
        assert_eq!(ids(&other, 1_100).as_slice(), std::slice::from_ref(&second), "the last of them has ended");
        let third = store.rotate_signing_key(1_150, false).unwrap();
        assert_eq!(ids(&other, 1_160), [third, second]);
        let fourth = store.rotate_signing_key(1_170, true).unwrap();
        assert_eq!(ids(&other, 1_170), [fourth]);
        assert!(!store.is_closed().unwrap());
        assert_eq!(store.safety_secret().unwrap().expose(), other.safety_secret().unwrap().expose());
    }

    #[test]
    fn what_is_no_store_is_said_to_be_none() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.db");
        std::fs::write(&file, "this is not a database, but it is long enough to look like one".repeat(20)).unwrap();
        assert!(Store::open(&file).unwrap_err().to_string().contains("x.db"), "its name is told");
        let newer = dir.path().join("newer.db");
        drop(Store::open(&newer).unwrap());
        Connection::open(&newer).unwrap().pragma_update(None, "user_version", 99).unwrap();
        assert!(Store::open(&newer).unwrap_err().to_string().contains("version 99"));
    }
}
