//! What may change while calls run: agents, tenants, budgets, signing keys, prices and limits. They stand in the configuration
//! file, its list of prices and the store, which are read again as they change.
//!
//! A change is seen within a second, so that what is revoked is cut by then. What is broken changes nothing, not even what is not
//! broken in it: the old one stays in force, and the log says why.
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
    price::{PriceError, PriceList, Prices},
    quota::Quota,
    store::{Store, StoreError},
    tenant::Tenants,
    token::{LEEWAY, Signer, SigningKey},
};
use crate::{
    audio::sound::Sounds,
    config::{AgentConfig, AuthConfig, BudgetConfig, Config, ConfigError, SigningKeyConfig, TenantConfig},
    wall::unix_now,
};

/// How often both are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Agents by name.
pub type Agents = BTreeMap<String, Arc<AgentConfig>>;

/// What others have in their hands, and what is read for them.
#[derive(Debug)]
pub struct Live {
    /// What things cost.
    pub prices: Prices,
    /// The recordings that agents play.
    pub sounds: Arc<ArcSwap<Sounds>>,
    /// Each account's quota, by its name in `[upstreams]`; `None`: that of `[upstream]`. An account that the configuration names no
    /// more keeps its limits.
    pub quotas: Vec<(Option<String>, Arc<Quota>)>,
}

/// What stands in the files.
#[derive(Debug, Default, PartialEq, Eq)]
struct Content {
    config: Vec<u8>,
    prices: Vec<u8>,
}

impl Content {
    fn read(config: &Path, prices: Option<&Path>) -> Self {
        Self { config: read(config), prices: prices.map(read).unwrap_or_default() }
    }
}

/// Why what was found is not taken.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Prices(#[from] PriceError),
    #[error("{0}")]
    Sound(String),
}

/// All sources, and what was found in them last.
#[derive(Debug)]
pub struct Sources {
    gate: Arc<Gate>,
    agents: Arc<ArcSwap<Agents>>,
    budget: Arc<ArcSwap<BudgetConfig>>,
    live: Live,
    auth: AuthConfig,
    file: Option<PathBuf>,
    /// The list of prices that the configuration has named last.
    prices_file: Option<PathBuf>,
    content: Content,
    /// Something else stands in the files; taken once it has stood there for a moment, for it may be half written.
    next: Content,
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

/// Asks for a look at all at once, whatever the time.
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
    /// Reads them for the first time; what is `live` was read by whoever made it. The store is made if tenants stand in the file, since their tokens shall outlive this
    /// process; and opened if it is there.
    ///
    /// # Errors
    /// When the store cannot be used.
    pub fn open(config: &Config, live: Live) -> Result<Self, StoreError> {
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
        let prices_file = config.prices.file.clone();
        let mut sources = Self {
            gate,
            agents: Arc::new(ArcSwap::from_pointee(agents(config))),
            budget: Arc::new(ArcSwap::from_pointee(config.budget.clone())),
            live,
            auth: config.auth.clone(),
            file: config.source.clone(),
            content: config
                .source
                .as_deref()
                .map(|file| Content::read(file, prices_file.as_deref()))
                .unwrap_or_default(),
            prices_file,
            next: Content::default(),
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

    /// Looks at all until `stop`, in a thread of its own: what others wait for shall not keep a revocation waiting.
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
        self.look_at_files(now);
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

    fn look_at_files(&mut self, now: bool) {
        let Some(file) = self.file.clone() else {
            if now {
                tracing::info!("there is no configuration file that could be read anew");
            }
            return;
        };
        let found = Content::read(&file, self.prices_file.as_deref());
        if now && found == self.content {
            tracing::info!("the configuration has not changed");
        }
        // A file that is being written anew may be empty for a moment.
        if found == self.content || found.config.is_empty() {
            return;
        }
        if found != self.next && !now {
            self.next = found;
            return;
        }
        self.content = found;
        match self.load(&file) {
            Ok((config, prices, sounds)) => self.take(config, prices, sounds),
            Err(error) => {
                tracing::error!(%error, "the changed configuration is refused: what was in force stays in force")
            }
        }
    }

    /// All of it, or why not.
    fn load(&mut self, file: &Path) -> Result<(Config, PriceList, Sounds), Broken> {
        let config = Config::load(Some(file), |name| std::env::var(name).ok())?;
        // Also of a list that cannot be used: it may be mended, and the configuration stay as it is.
        self.prices_file.clone_from(&config.prices.file);
        self.content.prices = self.prices_file.as_deref().map(read).unwrap_or_default();
        let prices = PriceList::load(config.prices.file.as_deref())?;
        let sounds = sounds(&config).map_err(Broken::Sound)?;
        Ok((config, prices, sounds))
    }

    fn take(&mut self, config: Config, prices: PriceList, sounds: Sounds) {
        let (agents, tenants) = (config.agents.len(), config.tenants.len());
        tracing::info!(
            agents,
            tenants,
            "the changed configuration is read: agents, tenants, budgets, signing keys, prices and limits"
        );
        self.agents.store(Arc::new(self::agents(&config)));
        self.budget.store(Arc::new(config.budget.clone()));
        self.live.prices.store(Arc::new(prices));
        self.live.sounds.store(Arc::new(sounds));
        for (name, quota) in &self.live.quotas {
            let account = name.as_ref().map_or(Some(&config.upstream), |name| config.upstreams.get(name));
            if let Some(account) = account {
                quota.reload(account.limits.clone());
            }
        }
        self.file_tenants = config.tenants;
        let ids = |keys: &[SigningKeyConfig]| keys.iter().map(|key| key.id.clone()).collect::<Vec<_>>();
        self.keys_changed |= ids(&self.auth.signing_keys) != ids(&config.auth.signing_keys);
        self.auth.signing_keys = config.auth.signing_keys;
        self.dirty = true;
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
