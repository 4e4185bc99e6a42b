//! Who may come in, and with what: `[tenants]`, `[auth]`, `[store]`.
use std::{fmt, net::IpAddr, path::PathBuf};

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{AllowanceConfig, BudgetConfig, PolicyConfig, Secret};
use crate::{admit::governor::Class, audio::Codec};

/// `[auth]`: call tokens, and what people are called upstream.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AuthConfig {
    /// `iss` and `aud` of call tokens: relays that share it and the signing keys take each other's.
    pub issuer: String,
    /// Longest life of a call token, seconds.
    pub token_max_s: u64,
    /// Keys that sign call tokens: the first one signs, all of them verify. None: a key that the store keeps, or without a
    /// store one that ends with the process.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub signing_keys: Vec<SigningKeyConfig>,
    /// Turns end users into `OpenAI-Safety-Identifier`s. None: kept by the store, or without one made at every start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub safety_secret: Option<Secret>,
}

impl Default for AuthConfig {
    fn default() -> Self {
        Self { issuer: "voxrelay".to_owned(), token_max_s: 86_400, signing_keys: Vec::new(), safety_secret: None }
    }
}

/// `[[auth.signing_keys]]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SigningKeyConfig {
    /// The tokens' `kid`.
    pub id: String,
    /// At least 32 characters.
    pub secret: Secret,
}

/// `[store]`: what outlives a process.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StoreConfig {
    /// A SQLite file; empty: none, and what is configured stands in this file alone. None: `voxrelay.db` in the user's data
    /// folder, for the commands that say so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// Somebody named the file, so that it must be there.
    #[serde(skip)]
    pub required: bool,
}

/// `[tenants.NAME]`: who pays, and what for. An empty list allows everything, but for `origins`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TenantConfig {
    /// Agents that it may call.
    pub agents: Vec<String>,
    /// Models that it may use, by the service's names.
    pub models: Vec<String>,
    /// Web origins whose pages may call, such as `https://app.example`; this server's own pages always may.
    pub origins: Vec<String>,
    /// Addresses that may call, as `192.0.2.7` or `192.0.2.0/24`.
    pub addresses: Vec<Net>,
    /// What clients of `/v1/voice` may send and get.
    pub formats: Vec<Codec>,
    /// The account to use: one of `[upstreams]`; none: `[upstream]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream: Option<String>,
    /// Calls at once; 0: no limit of its own.
    pub max_calls: usize,
    /// Its part of an account's limits, against other tenants of the account.
    pub weight: u32,
    /// Whether somebody waits on the line for its answers; those of `batch` come after all others.
    pub class: Class,
    /// Requests at any door in a minute; 0: no limit of its own.
    pub connects_per_minute: u32,
    /// Requests for text in a minute; 0: no limit of its own.
    pub text_requests_per_minute: u64,
    /// Tokens of requests for text in a minute; 0: no limit of its own.
    pub text_tokens_per_minute: u64,
    /// Longest call, seconds; none: `call.max_s`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_call_s: Option<u64>,
    /// A call without a message ends after so long, seconds; none: `call.idle_s`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_s: Option<u64>,
    /// Calls with the same session share a client secret; if not, each call has its own.
    pub share_secrets: bool,
    /// What its clients may set: the stricter of this and of the agent's own policy.
    pub policy: PolicyConfig,
    /// What it may spend, and its keys, end users and calls.
    #[serde(skip_serializing_if = "BudgetConfig::is_usual")]
    pub budget: BudgetConfig,
    /// Its keys. Those that `voxrelay tenant` made stand in the store.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<KeyConfig>,
}

impl Default for TenantConfig {
    fn default() -> Self {
        Self {
            agents: Vec::new(),
            models: Vec::new(),
            origins: Vec::new(),
            addresses: Vec::new(),
            formats: Vec::new(),
            upstream: None,
            max_calls: 0,
            weight: 1,
            class: Class::Interactive,
            connects_per_minute: 0,
            text_requests_per_minute: 0,
            text_tokens_per_minute: 0,
            max_call_s: None,
            idle_s: None,
            share_secrets: true,
            policy: PolicyConfig::default(),
            budget: BudgetConfig::default(),
            keys: Vec::new(),
        }
    }
}

/// `[[tenants.NAME.keys]]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyConfig {
    /// What it is for, for people.
    pub label: String,
    /// `sha256:` and 64 hexadecimal digits, as `voxrelay tenant key` prints it.
    pub hash: KeyHash,
    /// No longer good from then on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Moment>,
    /// What it may be used for.
    #[serde(default = "Scope::usual")]
    pub scopes: Vec<Scope>,
    /// What may be spent with it; none: `budget.key` of its tenant. Keys of the store have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<AllowanceConfig>,
}

/// What a key may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Calls at any door.
    Call,
    /// Making call tokens.
    Token,
    /// Client secrets and SDP, for clients that speak to the service directly.
    Secret,
    /// Taking calls from the telephone network (`accept`, `reject`).
    Sip,
    /// Calling telephone numbers.
    Dial,
    /// Requests for text: responses and transcriptions.
    Text,
    /// The tier `expert` of requests for text.
    Expert,
    /// Ending calls of the tenant, and its limits.
    Admin,
}

impl Scope {
    /// All of them.
    pub fn all() -> Vec<Self> {
        vec![Self::Call, Self::Token, Self::Secret, Self::Sip, Self::Dial, Self::Text, Self::Expert, Self::Admin]
    }

    /// All that a backend for callers needs.
    pub fn usual() -> Vec<Self> {
        vec![Self::Call, Self::Token, Self::Secret, Self::Text]
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Call => "call",
            Self::Token => "token",
            Self::Secret => "secret",
            Self::Sip => "sip",
            Self::Dial => "dial",
            Self::Text => "text",
            Self::Expert => "expert",
            Self::Admin => "admin",
        }
    }
}

/// SHA-256 of a key. Keys have 256 bits of chance, so that no slow hash is needed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyHash(pub [u8; 32]);

impl fmt::Display for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyHash({})", self.short())
    }
}

impl KeyHash {
    /// Its first digits: enough to tell keys apart, for people.
    pub fn short(&self) -> String {
        self.digits(8)
    }

    /// Its first digits.
    pub fn digits(&self, count: usize) -> String {
        self.0.iter().take(count / 2).map(|byte| format!("{byte:02x}")).collect()
    }
}

impl std::str::FromStr for KeyHash {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "the hash of a key is `sha256:` and 64 hexadecimal digits".to_owned();
        let digits = text.strip_prefix("sha256:").filter(|hex| hex.len() == 64 && hex.is_ascii()).ok_or_else(wrong)?;
        let mut hash = [0; 32];
        for (index, byte) in hash.iter_mut().enumerate() {
            let pair = digits.get(2 * index..2 * index + 2).ok_or_else(wrong)?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| wrong())?;
        }
        Ok(Self(hash))
    }
}

/// A moment, written as RFC 3339: `2027-01-31T12:00:00Z`. Unix seconds inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(pub u64);

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = i64::try_from(self.0).ok().and_then(|unix| OffsetDateTime::from_unix_timestamp(unix).ok());
        f.write_str(&at.and_then(|at| at.format(&Rfc3339).ok()).unwrap_or_else(|| self.0.to_string()))
    }
}

impl Moment {
    /// As people write it; a day begins at midnight, UTC.
    ///
    /// # Errors
    /// What is allowed.
    pub fn day_or_moment(text: &str) -> Result<Self, String> {
        let found = text.parse().or_else(|_: String| format!("{text}T00:00:00Z").parse());
        found.map_err(|_: String| "allowed: a day or a moment, such as 2027-01-31 or 2027-01-31T12:00:00Z".to_owned())
    }
}

impl std::str::FromStr for Moment {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let at = OffsetDateTime::parse(text, &Rfc3339).ok().and_then(|at| u64::try_from(at.unix_timestamp()).ok());
        at.map(Self).ok_or_else(|| format!("found `{text}`; allowed: a moment such as 2027-01-31T12:00:00Z"))
    }
}

/// One address or a network of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Net(pub IpNet);

impl Net {
    /// Whether an address belongs to it.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(&address.to_canonical())
    }
}

impl fmt::Display for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl std::str::FromStr for Net {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let one = text.parse::<IpAddr>().map(IpNet::from);
        one.or_else(|_| text.parse::<IpNet>())
            .map(Self)
            .map_err(|_| format!("found `{text}`; allowed: an address or a network, such as 192.0.2.7 or 192.0.2.0/24"))
    }
}

macro_rules! as_text {
    ($($name:ident),+) => {$(
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }
    )+};
}

as_text!(KeyHash, Moment, Net);

impl AuthConfig {
    pub(super) fn check(&self, problem: &mut impl FnMut(&str, String, &str)) {
        let word = |text: &str| {
            (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:/".contains(&b))
        };
        if !word(&self.issuer) {
            problem("auth.issuer", format!("`{}`", self.issuer), "1 to 64 letters, digits, `-`, `_`, `.`, `:`, `/`");
        }
        if !(60..=2_592_000).contains(&self.token_max_s) {
            problem("auth.token_max_s", self.token_max_s.to_string(), "60 to 2592000 seconds");
        }
        let secret = "at least 32 characters of chance";
        for (index, key) in self.signing_keys.iter().enumerate() {
            let twice = self.signing_keys.iter().take(index).any(|earlier| earlier.id == key.id);
            if !word(&key.id) || twice {
                let allowed = "1 to 64 letters, digits, `-`, `_`, `.`, and no id twice";
                problem(&format!("auth.signing_keys[{index}].id"), format!("`{}`", key.id), allowed);
            }
            if key.secret.expose().len() < 32 {
                let found = format!("{} characters", key.secret.expose().len());
                problem(&format!("auth.signing_keys[{index}].secret"), found, secret);
            }
        }
        if let Some(found) = self.safety_secret.as_ref().map(|s| s.expose().len()).filter(|length| *length < 32) {
            problem("auth.safety_secret", format!("{found} characters"), secret);
        }
    }
}

impl TenantConfig {
    /// `agents`, `upstreams`: what is configured.
    pub fn check(
        &self,
        name: &str,
        agents: impl Fn(&str) -> bool,
        upstreams: impl Fn(&str) -> bool,
        problem: &mut impl FnMut(&str, String, &str),
    ) {
        let key = |field: &str| format!("tenants.{name}.{field}");
        if !is_tenant_id(name) {
            problem(&format!("tenants.{name}"), format!("`{name}`"), TENANT_IDS);
        }
        for (index, agent) in self.agents.iter().enumerate().filter(|(_, agent)| !agents(agent)) {
            problem(&key(&format!("agents[{index}]")), format!("`{agent}`"), "the name of a configured agent");
        }
        for (index, origin) in self.origins.iter().enumerate().filter(|(_, origin)| !is_origin(origin)) {
            let allowed =
                "scheme, host and port as browsers write them, such as https://app.example or http://localhost:3000";
            problem(&key(&format!("origins[{index}]")), format!("`{origin}`"), allowed);
        }
        if let Some(upstream) = self.upstream.as_ref().filter(|name| !upstreams(name)) {
            problem(&key("upstream"), format!("`{upstream}`"), "the name of one of [upstreams]");
        }
        if !(1..=1_000).contains(&self.weight) {
            problem(&key("weight"), self.weight.to_string(), "1 to 1000");
        }
        if let Some(found) = self.max_call_s.filter(|s| !(1..=604_800).contains(s)) {
            problem(&key("max_call_s"), found.to_string(), "1 to 604800 seconds");
        }
        if let Some(found) = self.idle_s.filter(|s| *s > 86_400) {
            problem(&key("idle_s"), found.to_string(), "0 to 86400 seconds");
        }
        self.budget.check(&key("budget"), problem);
        for (index, own) in self.keys.iter().enumerate() {
            own.budget.iter().for_each(|budget| budget.check(&key(&format!("keys[{index}].budget")), problem));
        }
    }
}

/// What a tenant may be called, for error texts.
pub const TENANT_IDS: &str = "1 to 64 small letters, digits, `-`, `_`; not `local`, which stands for nobody";

/// Whether a tenant may be called so.
pub fn is_tenant_id(name: &str) -> bool {
    let plain = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_".contains(&b));
    (1..=64).contains(&name.len()) && plain && name != "local"
}

/// Whether a browser could send this as an `Origin`.
pub fn is_origin(text: &str) -> bool {
    let Ok(uri) = text.parse::<axum::http::Uri>() else { return false };
    let scheme = uri.scheme_str().is_some_and(|scheme| scheme == "https" || scheme == "http");
    let bare = uri
        .authority()
        .is_some_and(|authority| text.ends_with(authority.as_str()) && !authority.as_str().contains('@'));
    scheme && bare && text.bytes().all(|b| !b.is_ascii_uppercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_moments_and_networks_are_read_as_they_are_written() {
        let hash: KeyHash = format!("sha256:{}", "0f".repeat(32)).parse().unwrap();
        assert_eq!(hash.to_string(), format!("sha256:{}", "0f".repeat(32)));
        assert_eq!(hash.short(), "0f0f0f0f");
        for wrong in ["", "sha256:", "md5:00", &format!("sha256:{}", "zz".repeat(32)), &"é".repeat(32)] {
            assert!(wrong.parse::<KeyHash>().is_err(), "{wrong}");
        }
        let moment: Moment = "2027-01-31T12:00:00Z".parse().unwrap();
        assert_eq!((moment.0, moment.to_string().as_str()), (1_801_396_800, "2027-01-31T12:00:00Z"));
        assert_eq!("2027-01-31T13:00:00+01:00".parse::<Moment>(), Ok(moment));
        assert!("tomorrow".parse::<Moment>().unwrap_err().contains("tomorrow"));
        let net: Net = "192.0.2.0/24".parse().unwrap();
        for (address, inside) in [("192.0.2.9", true), ("::ffff:192.0.2.9", true), ("192.0.3.9", false), ("::1", false)]
        {
            assert_eq!(net.contains(address.parse().unwrap()), inside, "{address}");
        }
        assert!("::1".parse::<Net>().unwrap().contains("::1".parse().unwrap()));
        assert!("here".parse::<Net>().is_err());
    }

    #[test]
    fn origins_are_what_browsers_send() {
        for (origin, good) in [
            ("https://app.example", true),
            ("http://localhost:3000", true),
            ("http://[::1]:3000", true),
            ("https://app.example/", false),
            ("https://App.example", false),
            ("app.example", false),
            ("ftp://app.example", false),
            ("https://user@app.example", false),
            ("null", false),
            ("*", false),
        ] {
            assert_eq!(is_origin(origin), good, "{origin}");
        }
    }
}
