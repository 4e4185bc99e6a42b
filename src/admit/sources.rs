//! Where tenants and agents come from: the configuration file and the store, read again as they change.
//!
//! A change is seen within a second, so that what is revoked is cut by then. What is broken changes nothing: the old one
//! stays in force, and the log says why.
use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt as _,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError, SyncSender},
    },
    thread,
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio_util::sync::CancellationToken;

use super::{
    gate::{Gate, Terms},
    store::{Store, StoreError},
    tenant::Tenants,
    token::{LEEWAY, Signer, SigningKey},
};
use crate::{
    audio::sound::Sounds,
    config::{AgentConfig, AuthConfig, BudgetConfig, Config, SigningKeyConfig, TenantConfig},
    wall::unix_now,
};

/// How often both are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Agents by name.
pub type Agents = BTreeMap<String, Arc<AgentConfig>>;

/// Both sources, and what was found in them last.
#[derive(Debug)]
pub struct Sources {
    gate: Arc<Gate>,
    agents: Arc<ArcSwap<Agents>>,
    sounds: Arc<ArcSwap<Sounds>>,
    budget: Arc<ArcSwap<BudgetConfig>>,
    auth: AuthConfig,
    file: Option<PathBuf>,
    file_content: Vec<u8>,
    /// Something else stands in the file; taken once it has stood there for a moment, for it may be half written.
    file_next: Vec<u8>,
    file_tenants: BTreeMap<String, TenantConfig>,
    upstreams: Vec<String>,
    store_file: Option<PathBuf>,
    store: Option<Opened>,
    /// What is in force.
    tenants: BTreeMap<String, TenantConfig>,
    /// Something was found that is not in force yet.
    dirty: bool,
    /// Other keys sign.
    keys_changed: bool,
    /// What went wrong last, so that it is logged once.
    trouble: String,
}

/// Asks for a look at both at once, whatever the time.
#[derive(Debug)]
pub struct Reload(SyncSender<()>);

impl Reload {
    /// Now. Who is asked twice looks once.
    pub fn now(&self) {
        let _ = self.0.try_send(());
    }
}

/// The store, over two connections: whoever counts a token's use shall not keep a revocation waiting.
#[derive(Debug)]
struct Opened {
    reads: Store,
    file: u64,
    version: i64,
}

/// Agents by name, to be shared.
pub fn agents(config: &Config) -> Agents {
    config.agents.iter().map(|(name, agent)| (name.clone(), Arc::new(agent.clone()))).collect()
}

/// The recordings that agents play.
///
/// # Errors
/// The agent whose file cannot be read, and why.
pub fn sounds(config: &Config) -> Result<Sounds, String> {
    let files = config.agents.iter().filter_map(|(name, agent)| Some((name, agent.hold_audio.as_deref()?)));
    Sounds::read(files).map_err(|(name, error)| format!("agents.{name}.hold_audio: {error}"))
}

impl Sources {
    /// Reads both for the first time. The store is made if tenants stand in the file, since their tokens shall outlive this
    /// process; and opened if it is there.
    ///
    /// # Errors
    /// When the store cannot be used.
    pub fn open(config: &Config, sounds: Sounds) -> Result<Self, StoreError> {
        let unix = unix_now();
        let terms = Terms {
            // Behind a proxy of ours, everybody would be this machine.
            open: config.server.listen.ip().is_loopback() && config.server.trusted_proxies.is_empty()
                || config.server.insecure_open,
            insecure: config.server.insecure_open,
            per_minute: config.server.connects_per_minute,
            proxies: config.server.trusted_proxies.clone(),
        };
        let gate = Arc::new(Gate::new(terms, signer(&config.auth, &[]), unix));
        if let Some(secret) = &config.auth.safety_secret {
            gate.set_safety_secret(secret);
        }
        let mut sources = Self {
            gate,
            agents: Arc::new(ArcSwap::from_pointee(agents(config))),
            sounds: Arc::new(ArcSwap::from_pointee(sounds)),
            budget: Arc::new(ArcSwap::from_pointee(config.budget.clone())),
            auth: config.auth.clone(),
            file: config.source.clone(),
            file_content: config.source.as_deref().map(read).unwrap_or_default(),
            file_next: Vec::new(),
            file_tenants: config.tenants.clone(),
            upstreams: config.upstreams.keys().cloned().collect(),
            store_file: config.store.file.clone().filter(|file| !file.as_os_str().is_empty()),
            store: None,
            tenants: BTreeMap::new(),
            dirty: true,
            keys_changed: false,
            trouble: String::new(),
        };
        if let Some(file) = sources.store_file.clone() {
            if file.exists() || !sources.file_tenants.is_empty() {
                sources.open_store(&file)?;
            } else if config.store.required {
                // Whoever names a store has tenants in it: without it, the door would stand open.
                return Err(StoreError::Absent { file });
            }
        }
        sources.apply()?;
        Ok(sources)
    }

    /// The gate that they fill.
    pub fn gate(&self) -> Arc<Gate> {
        self.gate.clone()
    }

    /// The agents, as they are at any time.
    pub fn agents(&self) -> Arc<ArcSwap<Agents>> {
        self.agents.clone()
    }

    /// The recordings that they play, as they are at any time.
    pub fn sounds(&self) -> Arc<ArcSwap<Sounds>> {
        self.sounds.clone()
    }

    /// What those may spend who are asked for no credential, as it is at any time.
    pub fn budget(&self) -> Arc<ArcSwap<BudgetConfig>> {
        self.budget.clone()
    }

    fn open_store(&mut self, file: &Path) -> Result<(), StoreError> {
        let counts = Arc::new(Store::open(file)?);
        let reads = Store::open(file)?;
        if self.auth.safety_secret.is_none() {
            self.gate.set_safety_secret(&counts.safety_secret()?);
        }
        self.gate.set_store(Some(counts));
        // Whatever its version is, it has not been read yet.
        self.store = Some(Opened { reads, file: inode(file), version: i64::MIN });
        self.dirty = true;
        Ok(())
    }

    /// Puts what both say in force.
    fn apply(&mut self) -> Result<(), StoreError> {
        let unix = unix_now();
        let mut tenants = BTreeMap::new();
        if let Some(Opened { reads, version, .. }) = &mut self.store {
            // Before the reading: what is written meanwhile is another change.
            let read = reads.version()?;
            tenants = reads.tenants()?;
            let keys = reads.signing_keys(unix, self.auth.token_max_s + LEEWAY)?;
            self.gate.set_signer(signer(&self.auth, &keys));
            if !self.file_tenants.is_empty() && !reads.is_closed()? {
                reads.close()?;
            }
            if reads.is_closed()? {
                self.gate.close();
            }
            *version = read;
        } else if self.keys_changed {
            self.gate.set_signer(signer(&self.auth, &[]));
        }
        self.keys_changed = false;
        for (id, tenant) in &self.file_tenants {
            if tenants.insert(id.clone(), tenant.clone()).is_some() {
                tracing::warn!(
                    tenant = id,
                    "this tenant stands in the configuration and in the store: the configuration counts"
                );
            }
        }
        self.dirty = false;
        if tenants == self.tenants {
            return Ok(());
        }
        for (id, tenant) in &tenants {
            if let Some(name) = tenant.upstream.as_ref().filter(|name| !self.upstreams.contains(name)) {
                tracing::error!(
                    tenant = id,
                    upstream = name,
                    "this tenant's upstream is not configured: its calls are refused"
                );
            }
        }
        tracing::info!(tenants = tenants.len(), "tenants in force");
        self.gate.set_tenants(Tenants::new(tenants.clone()), unix);
        self.tenants = tenants;
        Ok(())
    }

    /// Looks at both until `stop`, in a thread of its own: what others wait for shall not keep a revocation waiting.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub fn watch(mut self, stop: CancellationToken) -> std::io::Result<Reload> {
        let (reload, asked) = mpsc::sync_channel(1);
        let looking = move || {
            while !stop.is_cancelled() {
                let now = match asked.recv_timeout(LOOK_EVERY) {
                    Ok(()) => true,
                    Err(RecvTimeoutError::Timeout) => false,
                    Err(RecvTimeoutError::Disconnected) => {
                        thread::sleep(LOOK_EVERY);
                        false
                    }
                };
                // Whatever goes wrong here, keys go on ending.
                if catch_unwind(AssertUnwindSafe(|| self.look(now))).is_err() {
                    tracing::error!("a look at the tenants failed: what was in force stays in force");
                }
            }
        };
        thread::Builder::new().name("tenants".to_owned()).spawn(looking)?;
        Ok(Reload(reload))
    }

    /// `now`: somebody asked for it.
    fn look(&mut self, now: bool) {
        self.gate.sweep(unix_now());
        self.look_at_file(now);
        let mut found = self.look_at_store();
        if self.dirty && found.is_ok() {
            found = self.apply();
        }
        match found {
            Ok(()) => self.trouble.clear(),
            Err(error) if error.to_string() == self.trouble => {}
            Err(error) => {
                tracing::error!(%error, "the store cannot be used: what was in force stays in force, and it is tried again");
                self.trouble = error.to_string();
            }
        }
    }

    fn look_at_file(&mut self, now: bool) {
        let Some(file) = &self.file else {
            if now {
                tracing::info!("there is no configuration file that could be read anew");
            }
            return;
        };
        let content = read(file);
        if now && content == self.file_content {
            tracing::info!("the configuration has not changed");
        }
        // A file that is being written anew may be empty for a moment.
        if content == self.file_content || content.is_empty() {
            return;
        }
        if content != self.file_next && !now {
            self.file_next = content;
            return;
        }
        let read = Config::load(Some(file), |name| std::env::var(name).ok()).map_err(|error| error.to_string());
        match read.and_then(|config| Ok((sounds(&config)?, config))) {
            Ok((sounds, config)) => {
                let (agents, tenants) = (config.agents.len(), config.tenants.len());
                tracing::info!(
                    agents,
                    tenants,
                    "the changed configuration is read: agents, tenants, budgets and signing keys"
                );
                self.sounds.store(Arc::new(sounds));
                self.agents.store(Arc::new(self::agents(&config)));
                self.budget.store(Arc::new(config.budget.clone()));
                self.file_tenants = config.tenants;
                let ids = |keys: &[SigningKeyConfig]| keys.iter().map(|key| key.id.clone()).collect::<Vec<_>>();
                self.keys_changed |= ids(&self.auth.signing_keys) != ids(&config.auth.signing_keys);
                self.auth.signing_keys = config.auth.signing_keys;
                self.dirty = true;
            }
            Err(error) => {
                tracing::error!(%error, "the changed configuration is refused: what was in force stays in force")
            }
        }
        self.file_content = content;
    }

    fn look_at_store(&mut self) -> Result<(), StoreError> {
        let Some(file) = self.store_file.clone() else { return Ok(()) };
        match &self.store {
            Some(opened) if opened.file == inode(&file) => {
                self.dirty |= opened.reads.version()? != opened.version;
                Ok(())
            }
            // It is new, or another one stands in its place. While there is none, the old one's tenants stay.
            _ if file.exists() => self.open_store(&file),
            _ => Ok(()),
        }
    }
}

/// Tells a file from another one of the same name.
fn inode(file: &Path) -> u64 {
    fs::metadata(file).map_or(0, |file| file.ino())
}

fn read(file: &Path) -> Vec<u8> {
    fs::read(file).unwrap_or_default()
}

fn signer(auth: &AuthConfig, stored: &[SigningKey]) -> Signer {
    let own = auth.signing_keys.iter().map(|key| SigningKey { id: key.id.clone(), secret: key.secret.clone() });
    let own: Vec<SigningKey> = own.collect();
    Signer::new(&auth.issuer, if own.is_empty() { stored } else { &own }, auth.token_max_s)
}
