//! `voxrelay tenant`: who may call, and with which keys. Writes the store; a relay that runs on it sees the change within a second.
use std::{
    io,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use clap::{Args, Subcommand};

use super::{Usage, serve, tell};
use crate::{
    admit::{governor::Class, key, store::Store},
    audio::Codec,
    config::{BudgetConfig, Config, KeyConfig, KeyHash, Moment, Net, Scope, TENANT_IDS, TenantConfig, is_tenant_id},
    wall::unix_now,
};

/// Arguments of `tenant`.
#[derive(Debug, Args)]
pub struct TenantArgs {
    #[command(subcommand)]
    command: Command,
    /// Configuration file (TOML); says where the store is, and which agents and upstreams there are
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// The store [default: store.file of the configuration, or voxrelay.db in the user's data folder]
    #[arg(long, value_name = "FILE", global = true)]
    store: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Add a tenant, and print its first key: once, for only its hash is kept
    Add(Box<Add>),
    /// Show tenants and their keys
    List(List),
    /// Make a new key, and let the others end
    Rotate(Rotate),
    /// Take keys away, or the whole tenant; its running calls are cut within a second
    Revoke(Revoke),
    /// Print a new key and its hash, for tenants that stand in the configuration file
    Key,
    /// Sign call tokens with a new key from now on; tokens of the one before stay good until they end
    RotateSigning {
        /// Tokens that were signed before are good no longer
        #[arg(long)]
        now: bool,
    },
}

#[derive(Debug, Args)]
struct Add {
    /// Its id: small letters, digits, `-`, `_`
    id: String,
    #[command(flatten)]
    key: KeyArgs,
    /// Agents that it may call [default: all]
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    agents: Vec<String>,
    /// Models that it may use, by the service's names [default: all]
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    models: Vec<String>,
    /// Origins of web pages that may call, such as `https://app.example`
    #[arg(long, value_name = "ORIGIN", value_delimiter = ',')]
    origins: Vec<String>,
    /// Addresses that may call, such as 192.0.2.0/24 [default: all]
    #[arg(long, value_name = "NET", value_delimiter = ',')]
    addresses: Vec<Net>,
    /// What clients of /v1/voice may send and get [default: all]
    #[arg(long, value_name = "CODEC", value_delimiter = ',')]
    formats: Vec<Codec>,
    /// The account to use, one of the configured `upstreams` [default: upstream]
    #[arg(long, value_name = "NAME")]
    upstream: Option<String>,
    /// Calls at once; 0: no limit
    #[arg(long, value_name = "N", default_value_t = 0)]
    max_calls: usize,
    /// Its part of an account's limits, against other tenants of the account
    #[arg(long, value_name = "N", default_value_t = 1)]
    weight: u32,
    /// Whether somebody waits on the line for its answers: those of batch come after all others
    #[arg(long, value_name = "CLASS", default_value = "interactive")]
    class: Class,
    /// Requests at any door in a minute; 0: no limit
    #[arg(long, value_name = "N", default_value_t = 0)]
    connects_per_minute: u32,
    /// Requests for text in a minute; 0: no limit
    #[arg(long, value_name = "N", default_value_t = 0)]
    text_requests_per_minute: u64,
    /// Tokens of requests for text in a minute; 0: no limit
    #[arg(long, value_name = "N", default_value_t = 0)]
    text_tokens_per_minute: u64,
    /// Longest call, seconds
    #[arg(long, value_name = "S")]
    max_call_s: Option<u64>,
    /// A call without a message ends after so long, seconds; 0: never
    #[arg(long, value_name = "S")]
    idle_s: Option<u64>,
    /// What may be spent, as in the configuration, such as `all.usd_day=20` or `user.tokens_month=100000`; once for each limit
    #[arg(long, value_name = "LIMIT=N")]
    budget: Vec<String>,
}

#[derive(Debug, Args)]
struct KeyArgs {
    /// What the key is for [default: first, or the time of a rotation]
    #[arg(long, value_name = "TEXT")]
    label: Option<String>,
    /// No longer good from then on, such as 2027-01-31T12:00:00Z
    #[arg(long, value_name = "TIME")]
    expires: Option<Moment>,
    /// What it may be used for
    #[arg(long, value_name = "SCOPE", value_delimiter = ',', default_values_t = Scope::usual().iter().map(|scope| scope.name().to_owned()))]
    scopes: Vec<String>,
}

#[derive(Debug, Args)]
struct List {
    /// For programs
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Rotate {
    /// The tenant
    id: String,
    #[command(flatten)]
    key: KeyArgs,
    /// The other keys with this label, or with any, go on for so long, seconds
    #[arg(long, value_name = "S", default_value_t = 3_600)]
    keep_s: u64,
    /// Only keys with this label end [default: all]
    #[arg(long, value_name = "TEXT")]
    old: Option<String>,
}

#[derive(Debug, Args)]
struct Revoke {
    /// The tenant
    id: String,
    /// Only keys with this label, or whose hash begins so
    #[arg(long, value_name = "LABEL|HASH")]
    key: Option<String>,
}

/// Does it.
///
/// # Errors
/// When there is no such tenant, or the store cannot be used.
pub fn run(args: TenantArgs) -> anyhow::Result<ExitCode> {
    let mut config = serve::load(args.config.as_deref())?;
    if let Command::Key = args.command {
        let key = key::generate();
        tell(io::stdout(), key.expose());
        tell(io::stderr(), &format!("hash = \"{}\"", key::hash(key.expose())));
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(store) = args.store {
        config.store.file = Some(store);
    }
    let file = config.store.file.clone().unwrap_or_else(serve::store_file);
    if file.as_os_str().is_empty() {
        let message = "store.file is empty: tenants stand in the configuration file alone; `voxrelay tenant key` makes keys for it";
        return Err(Usage(message.to_owned()).into());
    }
    if !file.exists() && !matches!(args.command, Command::Add(_)) {
        return list_file(&args.command, &config, &file);
    }
    let store = Store::open(&file)?;
    match args.command {
        Command::Add(add) => self::add(&store, &config, *add, &file),
        Command::List(list) => self::list(&config, store.tenants()?, &list),
        Command::Rotate(rotate) => self::rotate(&store, &config, rotate),
        Command::Revoke(revoke) => self::revoke(&store, &config, &revoke),
        Command::RotateSigning { now } => {
            let id = store.rotate_signing_key(unix_now(), now)?;
            tell(io::stdout(), &format!("call tokens are signed with key {id} from now on"));
            Ok(ExitCode::SUCCESS)
        }
        Command::Key => Ok(ExitCode::SUCCESS),
    }
}

/// Without a store there are the tenants of the configuration file.
fn list_file(command: &Command, config: &Config, file: &Path) -> anyhow::Result<ExitCode> {
    match command {
        Command::List(list) => self::list(config, Default::default(), list),
        _ => Err(Usage(format!("there is no store at {}: `voxrelay tenant add` makes one", file.display())).into()),
    }
}

fn add(store: &Store, config: &Config, add: Add, file: &Path) -> anyhow::Result<ExitCode> {
    let id = add.id;
    if !is_tenant_id(&id) {
        return Err(Usage(format!("found `{id}`; allowed: {TENANT_IDS}")).into());
    }
    if store.has_tenant(&id)? || config.tenants.contains_key(&id) {
        let message = format!("tenant `{id}` is there already; `voxrelay tenant rotate {id}` makes a new key");
        return Err(Usage(message).into());
    }
    let tenant = TenantConfig {
        agents: add.agents,
        models: add.models,
        origins: add.origins,
        addresses: add.addresses,
        formats: add.formats,
        upstream: add.upstream,
        max_calls: add.max_calls,
        weight: add.weight,
        class: add.class,
        connects_per_minute: add.connects_per_minute,
        text_requests_per_minute: add.text_requests_per_minute,
        text_tokens_per_minute: add.text_tokens_per_minute,
        max_call_s: add.max_call_s,
        idle_s: add.idle_s,
        budget: budget_of(&add.budget)?,
        ..TenantConfig::default()
    };
    let mut problems = Vec::new();
    let (agents, upstreams) = (|a: &str| config.agents.contains_key(a), |u: &str| config.upstreams.contains_key(u));
    tenant.check(&id, agents, upstreams, &mut |key: &str, found: String, allowed: &str| {
        problems.push(format!("{key}: found {found}; allowed: {allowed}"));
    });
    if !problems.is_empty() {
        return Err(Usage(problems.join("\n")).into());
    }
    let (text, key) = new_key(add.key, "first".to_owned())?;
    store.put_tenant(&id, &tenant)?;
    store.put_key(&id, &key, unix_now())?;
    tell(io::stdout(), text.expose());
    tell(io::stderr(), &format!("the key of tenant `{id}`, shown once; its hash is kept in {}", file.display()));
    Ok(ExitCode::SUCCESS)
}

/// What may be spent, from lines as they stand in the configuration.
fn budget_of(lines: &[String]) -> Result<BudgetConfig, Usage> {
    toml::from_str(&lines.join("\n")).map_err(|error| Usage(format!("--budget: {}", error.message())))
}

fn new_key(args: KeyArgs, usual: String) -> anyhow::Result<(crate::config::Secret, KeyConfig)> {
    let KeyArgs { label, expires, scopes } = args;
    let label = label.unwrap_or(usual);
    let scope = |name: &String| {
        let found = Scope::all().into_iter().find(|scope| scope.name() == name);
        found.ok_or_else(|| Usage(format!("found scope `{name}`; allowed: call, token, secret, sip, admin")))
    };
    let scopes = scopes.iter().map(scope).collect::<Result<Vec<_>, _>>()?;
    if label.is_empty() || label.len() > 64 || label.chars().any(char::is_control) {
        return Err(Usage("a label has 1 to 64 characters".to_owned()).into());
    }
    if let Some(past) = expires.filter(|end| end.0 <= unix_now()) {
        return Err(Usage(format!("--expires: {past} is past")).into());
    }
    let text = key::generate();
    let hash = key::hash(text.expose());
    Ok((text, KeyConfig { label, hash, expires, scopes, budget: None }))
}

/// A tenant of the store, with its keys.
fn tenant_of(store: &Store, config: &Config, id: &str) -> anyhow::Result<TenantConfig> {
    match store.tenants()?.remove(id) {
        Some(tenant) if !config.tenants.contains_key(id) => Ok(tenant),
        _ if config.tenants.contains_key(id) => {
            let message = format!(
                "tenant `{id}` stands in the configuration file: change it there; a relay sees it within a second"
            );
            Err(Usage(message).into())
        }
        _ => Err(Usage(format!("there is no tenant `{id}`; `voxrelay tenant list` shows all")).into()),
    }
}

fn rotate(store: &Store, config: &Config, rotate: Rotate) -> anyhow::Result<ExitCode> {
    let Rotate { id, key, keep_s, old } = rotate;
    let tenant = tenant_of(store, config, &id)?;
    let (text, key) = new_key(key, Moment(unix_now()).to_string())?;
    let ends = tenant.keys.iter().filter(|key| old.as_ref().is_none_or(|old| *old == key.label));
    let ends: Vec<KeyHash> = ends.map(|key| key.hash).collect();
    let unix = unix_now();
    store.put_key(&id, &key, unix)?;
    let end = Moment(unix.saturating_add(keep_s));
    let ended = store.expire_keys(&id, &ends, end)?;
    tell(io::stdout(), text.expose());
    tell(io::stderr(), &format!("the new key of tenant `{id}`, shown once; {ended} other key(s) end at {end}"));
    Ok(ExitCode::SUCCESS)
}

fn revoke(store: &Store, config: &Config, revoke: &Revoke) -> anyhow::Result<ExitCode> {
    let Revoke { id, key } = revoke;
    let tenant = tenant_of(store, config, id)?;
    let Some(key) = key else {
        store.remove_tenant(id)?;
        tell(io::stdout(), &format!("tenant `{id}` and its {} key(s) are gone", tenant.keys.len()));
        return Ok(ExitCode::SUCCESS);
    };
    let digits = key.strip_prefix("sha256:").unwrap_or(key);
    let means = |known: &KeyConfig| {
        known.label == *key || digits.len() >= 6 && known.hash.to_string().starts_with(&format!("sha256:{digits}"))
    };
    let gone: Vec<KeyHash> = tenant.keys.iter().filter(|known| means(known)).map(|known| known.hash).collect();
    if gone.is_empty() {
        let keys: Vec<String> = tenant.keys.iter().map(|key| format!("{} ({})", key.label, key.hash.short())).collect();
        return Err(Usage(format!("tenant `{id}` has no key `{key}`; it has: {}", keys.join(", "))).into());
    }
    let count = store.remove_keys(id, &gone)?;
    tell(io::stdout(), &format!("{count} key(s) of tenant `{id}` are gone"));
    Ok(ExitCode::SUCCESS)
}

fn list(
    config: &Config,
    stored: std::collections::BTreeMap<String, TenantConfig>,
    list: &List,
) -> anyhow::Result<ExitCode> {
    let filed = config.tenants.iter().map(|(id, tenant)| (id.clone(), tenant.clone(), "file"));
    let stored = stored.into_iter().filter(|(id, _)| !config.tenants.contains_key(id));
    let mut all: Vec<_> = filed.chain(stored.map(|(id, tenant)| (id, tenant, "store"))).collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    if list.json {
        let all = all.iter().map(|(id, tenant, place)| serde_json::json!({"id": id, "in": place, "tenant": tenant}));
        let text = serde_json::to_string_pretty(&all.collect::<Vec<_>>()).context("tenants cannot be printed")?;
        tell(io::stdout(), &text);
        return Ok(ExitCode::SUCCESS);
    }
    if all.is_empty() {
        tell(io::stderr(), "no tenants: nobody is asked for a credential; `voxrelay tenant add ID` makes one");
    }
    for (id, tenant, place) in all {
        tell(io::stdout(), &format!("{id}  (in the {place})"));
        for line in limits(&tenant) {
            tell(io::stdout(), &format!("  {line}"));
        }
        for key in &tenant.keys {
            let ends = match key.expires {
                None => String::new(),
                Some(end) if end.0 <= unix_now() => format!(", ended at {end}"),
                Some(end) => format!(", ends at {end}"),
            };
            let scopes: Vec<&str> = key.scopes.iter().map(|scope| scope.name()).collect();
            let line = format!("  key {}  {}  ({}{ends})", key.hash.short(), key.label, scopes.join(", "));
            tell(io::stdout(), &line);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What is not as usual.
fn limits(tenant: &TenantConfig) -> Vec<String> {
    let usual = TenantConfig { keys: tenant.keys.clone(), ..TenantConfig::default() };
    let text = |tenant: &TenantConfig| {
        let tenant = TenantConfig { keys: Vec::new(), ..tenant.clone() };
        toml::to_string(&tenant).unwrap_or_default()
    };
    let usual = text(&usual);
    let own = text(tenant);
    own.lines()
        .filter(|line| !line.is_empty() && !usual.lines().any(|known| known == *line))
        .map(str::to_owned)
        .collect()
}

/// For tests and messages: a time from now.
#[cfg(test)]
fn in_an_hour() -> Moment {
    Moment(unix_now() + 3_600)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key_args(scopes: &[&str], expires: Option<Moment>) -> KeyArgs {
        KeyArgs { label: Some("ci".into()), expires, scopes: scopes.iter().map(|s| (*s).to_owned()).collect() }
    }

    #[test]
    fn keys_are_made_as_they_are_asked_for() {
        let (text, key) = new_key(key_args(&["call", "admin"], Some(in_an_hour())), String::new()).unwrap();
        assert_eq!((key::hash(text.expose()), key.scopes), (key.hash, vec![Scope::Call, Scope::Admin]));
        let wrong = |args| new_key(args, String::new()).unwrap_err().to_string();
        assert!(wrong(key_args(&["fly"], None)).contains("`fly`; allowed: call, token, secret, sip, admin"));
        assert!(wrong(key_args(&["call"], Some(Moment(1)))).contains("1970-01-01T00:00:01Z is past"));
    }

    #[test]
    fn budgets_are_said_as_in_the_configuration() {
        let of = |lines: &[&str]| budget_of(&lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>());
        let budget =
            of(&["all.usd_day=20", "user.tokens_month = 100000", "call.usd=0.50", "warn_percent=90"]).ok().unwrap();
        assert_eq!(budget.all.usd_day.map(|usd| usd.to_string()).as_deref(), Some("20"));
        assert_eq!((budget.user.tokens_month, budget.warn_percent), (Some(100_000), 90));
        let tenant = TenantConfig { budget, ..TenantConfig::default() };
        assert!(limits(&tenant).contains(&"usd_day = \"20\"".to_owned()), "{:?}", limits(&tenant));
        assert_eq!(of(&[]).ok(), Some(BudgetConfig::default()));
        for (line, part) in [("all.usd_week=1", "usd_week"), ("all.usd_day=-1", "found `-1`"), ("twenty", "--budget: ")]
        {
            let error = of(&[line]).err().unwrap().to_string();
            assert!(error.starts_with("--budget: ") && error.contains(part), "{line}: {error}");
        }
    }

    #[test]
    fn only_what_is_not_as_usual_is_listed() {
        let tenant = TenantConfig { max_calls: 3, agents: vec!["a".into()], ..TenantConfig::default() };
        assert_eq!(limits(&tenant), [r#"agents = ["a"]"#, "max_calls = 3"]);
        assert!(limits(&TenantConfig::default()).is_empty());
    }
}
