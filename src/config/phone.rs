//! `[phone]`: accounts with telephone providers, which number reaches which agent, and who may be called.
use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};

use super::{Endpoint, Secret, TENANT_IDS, is_loopback, is_tenant_id, parse_listen};

/// Whose telephone network it is. One arm, one file in [`crate::phone`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PhoneKind {
    /// Twilio Programmable Voice.
    Twilio,
    /// Telnyx, TeXML or Call Control.
    Telnyx,
    /// SignalWire, cXML.
    Signalwire,
    /// Plivo Voice.
    Plivo,
    /// Vonage Voice.
    Vonage,
    /// jambonz, hosted or one's own.
    Jambonz,
    /// One's own Asterisk.
    Asterisk,
    /// One's own FreeSWITCH.
    Freeswitch,
}

impl PhoneKind {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Twilio,
        Self::Telnyx,
        Self::Signalwire,
        Self::Plivo,
        Self::Vonage,
        Self::Jambonz,
        Self::Asterisk,
        Self::Freeswitch,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Twilio => "twilio",
            Self::Telnyx => "telnyx",
            Self::Signalwire => "signalwire",
            Self::Plivo => "plivo",
            Self::Vonage => "vonage",
            Self::Jambonz => "jambonz",
            Self::Asterisk => "asterisk",
            Self::Freeswitch => "freeswitch",
        }
    }

    /// Where its REST API is, if there is one place for all.
    pub fn usual_api(self) -> Option<&'static str> {
        match self {
            Self::Twilio => Some("https://api.twilio.com"),
            Self::Telnyx => Some("https://api.telnyx.com"),
            Self::Plivo => Some("https://api.plivo.com"),
            Self::Vonage => Some("https://api.nexmo.com"),
            Self::Signalwire | Self::Jambonz | Self::Asterisk | Self::Freeswitch => None,
        }
    }

    /// Fields that an account must have.
    fn required(self) -> &'static [&'static str] {
        match self {
            Self::Twilio | Self::Plivo => &["account", "auth_token"],
            Self::Telnyx => &["public_key", "api_key"],
            Self::Signalwire => &["account", "auth_token", "api_url"],
            Self::Vonage => &["account", "signing_key", "private_key"],
            Self::Jambonz => &["signing_key"],
            Self::Asterisk | Self::Freeswitch => &["stream_password"],
        }
    }

    /// Fields that an account must have all of, or none: what the REST side needs where it is not needed for a call.
    fn together(self) -> &'static [&'static str] {
        match self {
            Self::Jambonz | Self::Asterisk | Self::Freeswitch => &["account", "api_key", "api_url"],
            _ => &[],
        }
    }

    /// What its streams can carry, the usual one first: codec and rates.
    fn audio(self) -> &'static [(PhoneCodec, &'static [u32])] {
        match self {
            Self::Twilio => &[(PhoneCodec::Pcmu, &[8_000])],
            Self::Telnyx => &[
                (PhoneCodec::Pcmu, &[8_000]),
                (PhoneCodec::Pcma, &[8_000]),
                (PhoneCodec::L16, &[16_000, 8_000, 24_000, 48_000]),
            ],
            Self::Signalwire => &[(PhoneCodec::Pcmu, &[8_000]), (PhoneCodec::L16, &[24_000, 16_000])],
            Self::Plivo => &[(PhoneCodec::Pcmu, &[8_000]), (PhoneCodec::L16, &[16_000, 8_000])],
            Self::Vonage => &[(PhoneCodec::L16, &[16_000, 8_000, 24_000])],
            Self::Jambonz => &[(PhoneCodec::L16, &[24_000, 8_000, 16_000, 48_000])],
            Self::Asterisk => &[
                (PhoneCodec::L16, &[24_000, 8_000, 16_000, 48_000]),
                (PhoneCodec::Pcmu, &[8_000]),
                (PhoneCodec::Pcma, &[8_000]),
            ],
            Self::Freeswitch => &[(PhoneCodec::L16, &[16_000, 8_000])],
        }
    }
}

/// What a provider is asked to send and to take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PhoneCodec {
    /// G.711 mu-law, 8 kHz.
    Pcmu,
    /// G.711 A-law, 8 kHz.
    Pcma,
    /// PCM, 16 bits.
    L16,
}

impl PhoneCodec {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pcmu => "pcmu",
            Self::Pcma => "pcma",
            Self::L16 => "l16",
        }
    }
}

/// The order of the bytes of a stream's linear audio, where providers are not at one with their documents.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PhoneByteOrder {
    /// Found out in each call, by its first sound.
    #[default]
    Auto,
    /// The high byte first, as RFC 3551 has it.
    Big,
    /// The low byte first.
    Little,
}

impl PhoneByteOrder {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Big => "big",
            Self::Little => "little",
        }
    }
}

/// `[phone]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PhoneConfig {
    /// What providers reach us as (`https://relay.example.com`): their signatures are made over it, and streams come to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub public_url: Option<String>,
    /// Providers reach us without TLS on another machine than this one. Passwords and voices travel in the clear.
    pub plaintext: bool,
    /// How long the token that a webhook's answer gives out is good for one stream, seconds.
    pub token_ttl_s: u64,
    /// Asterisk's AudioSocket.
    pub audiosocket: AudioSocketConfig,
    /// Who may be called.
    pub dial: DialConfig,
    /// Accounts with providers, by the names that stand in their URLs (`/phone/NAME/voice`).
    pub accounts: BTreeMap<String, PhoneAccountConfig>,
    /// Which number reaches which agent.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub numbers: Vec<NumberConfig>,
}

impl Default for PhoneConfig {
    fn default() -> Self {
        Self {
            public_url: None,
            plaintext: false,
            token_ttl_s: 60,
            audiosocket: AudioSocketConfig::default(),
            dial: DialConfig::default(),
            accounts: BTreeMap::new(),
            numbers: Vec::new(),
        }
    }
}

/// `[phone.audiosocket]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AudioSocketConfig {
    /// Address and port for Asterisk's connections; none: there is no such door. The protocol has neither TLS nor passwords.
    #[serde(deserialize_with = "listen_from", skip_serializing_if = "Option::is_none")]
    pub listen: Option<SocketAddr>,
}

fn listen_from<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<SocketAddr>, D::Error> {
    parse_listen(&String::deserialize(from)?).map(Some).map_err(serde::de::Error::custom)
}

/// `[phone.accounts.NAME]`: an account with a provider. Which fields it needs, its kind says.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PhoneAccountConfig {
    /// Whose network; none: what NAME says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<PhoneKind>,
    /// Twilio's AccountSid, SignalWire's project, Plivo's Auth ID, Vonage's application id, jambonz' account sid, the user
    /// of Asterisk's ARI or of FreeSWITCH's web API.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
    /// Twilio's, SignalWire's and Plivo's auth token: signs webhooks and opens the REST API.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auth_token: Option<Secret>,
    /// SignalWire's signing key, Vonage's signature secret, jambonz' webhook secret, Twilio's shared key for SHA-256.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signing_key: Option<Secret>,
    /// What Twilio calls that shared key (`key=` in its settings header); none: any name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signing_key_name: Option<String>,
    /// Telnyx' Ed25519 key, base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub public_key: Option<String>,
    /// Telnyx' and jambonz' API key, the password of Asterisk's ARI and of FreeSWITCH's web API.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_key: Option<Secret>,
    /// PEM file with the RSA key of a Vonage application.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub private_key: Option<PathBuf>,
    /// Base URL of the REST API; none: the provider's usual one, where there is one for all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_url: Option<String>,
    /// Speak without TLS to a REST API on another machine.
    pub plaintext: bool,
    /// What streams of jambonz and SignalWire, and webhooks and streams of Asterisk and FreeSWITCH must show.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream_password: Option<Secret>,
    /// What to ask for, where the provider leaves the choice; none: its usual one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub codec: Option<PhoneCodec>,
    /// Samples a second, for `codec = "l16"`; none: its usual one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<u32>,
    /// Telnyx and SignalWire: the order of the bytes of linear audio.
    pub byte_order: PhoneByteOrder,
    /// The number that calls from here show, unless a call says another one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub caller: Option<String>,
    /// Telnyx: the id of the Call Control application that calls out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection_id: Option<String>,
    /// Asterisk and FreeSWITCH: how a number is called, such as `PJSIP/{number}@trunk` or `sofia/gateway/trunk/{number}`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Asterisk and FreeSWITCH: the dialplan context that takes calls to elsewhere (transfers) and answered ones (dial).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context: Option<String>,
}

impl PhoneAccountConfig {
    /// Whose network it is; `name`: the account's.
    pub fn kind(&self, name: &str) -> Option<PhoneKind> {
        self.kind.or_else(|| PhoneKind::ALL.into_iter().find(|kind| kind.name() == name))
    }

    /// What to ask for: the codec, and its rate in Hz.
    pub fn audio(&self, kind: PhoneKind) -> (PhoneCodec, u32) {
        let usual = kind.audio().first().map_or(PhoneCodec::Pcmu, |(codec, _)| *codec);
        let codec = self.codec.unwrap_or(usual);
        let rates = kind.audio().iter().find(|(of, _)| *of == codec).map_or(&[][..], |(_, rates)| *rates);
        (codec, self.rate.or_else(|| rates.first().copied()).unwrap_or(8_000))
    }

    fn has(&self, field: &str) -> bool {
        match field {
            "account" => self.account.is_some(),
            "auth_token" => self.auth_token.is_some(),
            "signing_key" => self.signing_key.is_some(),
            "public_key" => self.public_key.is_some(),
            "api_key" => self.api_key.is_some(),
            "private_key" => self.private_key.is_some(),
            "api_url" => self.api_url.is_some(),
            _ => self.stream_password.is_some(),
        }
    }

    fn check(&self, name: &str, problem: &mut impl FnMut(&str, String, &str)) {
        let key = |field: &str| format!("phone.accounts.{name}.{field}");
        if !is_account_name(name) {
            let allowed = "1 to 64 small letters, digits, `-`, `_`: it stands in URLs";
            problem(&format!("phone.accounts.{name}"), format!("`{name}`"), allowed);
        }
        let Some(kind) = self.kind(name) else {
            problem(&key("kind"), "nothing".to_owned(), &one_of(PhoneKind::ALL.map(PhoneKind::name)));
            return;
        };
        for field in kind.required().iter().filter(|field| !self.has(field)) {
            let allowed = format!("a value: kind = \"{}\" needs {}", kind.name(), kind.required().join(", "));
            problem(&key(field), "nothing".to_owned(), &allowed);
        }
        let (has, lacks): (Vec<&str>, Vec<&str>) = kind.together().iter().partition(|field| self.has(field));
        for field in lacks.iter().filter(|_| !has.is_empty()) {
            let allowed = format!("{} together, or none of them", kind.together().join(", "));
            problem(&key(field), "nothing".to_owned(), &allowed);
        }
        self.check_texts(&key, problem);
        self.check_audio(kind, &key, problem);
        if let Some(found) = self.public_key.as_ref().filter(|key| ed25519(key).is_none()) {
            problem(
                &key("public_key"),
                format!("`{found}`"),
                "32 bytes in base64, as the provider's portal shows them",
            );
        }
        if let Some(url) = &self.api_url
            && let Err(allowed) = base_url(url, self.plaintext, &key("plaintext"))
        {
            problem(&key("api_url"), format!("`{url}`"), &allowed);
        }
        if let Some(found) = self.caller.as_ref().filter(|number| !is_e164(number)) {
            problem(&key("caller"), format!("`{found}`"), E164);
        }
        if let Some(found) = self.endpoint.as_ref().filter(|text| !is_endpoint(text)) {
            problem(
                &key("endpoint"),
                format!("`{found}`"),
                "a channel with {number} in it, such as PJSIP/{number}@trunk",
            );
        }
    }

    /// What becomes part of headers and URLs.
    fn check_texts(&self, key: &impl Fn(&str) -> String, problem: &mut impl FnMut(&str, String, &str)) {
        for (field, value) in [
            ("auth_token", &self.auth_token),
            ("signing_key", &self.signing_key),
            ("api_key", &self.api_key),
            ("stream_password", &self.stream_password),
        ] {
            let bad = |value: &Secret| {
                let value = value.expose();
                !(1..=512).contains(&value.len()) || value.bytes().any(|b| !b.is_ascii_graphic())
            };
            if value.as_ref().is_some_and(bad) {
                let allowed = "1 to 512 visible ASCII characters, no spaces or line ends";
                problem(&key(field), "something that no HTTP header can hold".to_owned(), allowed);
            }
        }
        for (field, value) in [
            ("account", &self.account),
            ("signing_key_name", &self.signing_key_name),
            ("connection_id", &self.connection_id),
            ("context", &self.context),
        ] {
            let plain = |text: &str| {
                let part = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
                (1..=128).contains(&text.len()) && text.bytes().all(part) && !text.bytes().all(|b| b == b'.')
            };
            if let Some(found) = value.as_ref().filter(|text| !plain(text)) {
                problem(&key(field), format!("`{found}`"), "1 to 128 letters, digits, `-`, `_`, `.`");
            }
        }
    }

    fn check_audio(
        &self,
        kind: PhoneKind,
        key: &impl Fn(&str) -> String,
        problem: &mut impl FnMut(&str, String, &str),
    ) {
        let (codec, rate) = self.audio(kind);
        match kind.audio().iter().find(|(of, _)| *of == codec) {
            None => {
                let names = kind.audio().iter().map(|(codec, _)| codec.name());
                problem(&key("codec"), codec.name().to_owned(), &format!("{} with {}", one_of(names), kind.name()));
            }
            Some((_, rates)) if !rates.contains(&rate) => {
                let allowed = one_of(rates.iter().map(u32::to_string));
                problem(&key("rate"), rate.to_string(), &format!("{allowed} with codec = \"{}\"", codec.name()));
            }
            Some(_) => {}
        }
        let has_choice = matches!(kind, PhoneKind::Telnyx | PhoneKind::Signalwire);
        if self.byte_order != PhoneByteOrder::Auto && !has_choice {
            let allowed = format!("auto with {}: only telnyx and signalwire leave it open", kind.name());
            problem(&key("byte_order"), self.byte_order.name().to_owned(), &allowed);
        }
    }
}

/// `[[phone.numbers]]`: who answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NumberConfig {
    /// What was called: `+15550100`, a SIP user, or `*` for everything else.
    pub number: String,
    /// Only through this account; none: through any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
    /// The agent that answers.
    pub agent: String,
    /// Who pays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
}

/// `[phone.dial]`: who may be called from here. Without `prefixes` and `numbers`, nobody.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DialConfig {
    /// Calls that a tenant may begin in a minute.
    pub per_minute: u32,
    /// Numbers that begin so may be called, such as `+1` or `+4930`.
    pub prefixes: Vec<String>,
    /// Numbers that may be called besides.
    pub numbers: Vec<String>,
    /// Tenants for whom other rules take the place of all of these.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tenants: BTreeMap<String, TenantDialConfig>,
}

impl Default for DialConfig {
    fn default() -> Self {
        Self { per_minute: 10, prefixes: Vec::new(), numbers: Vec::new(), tenants: BTreeMap::new() }
    }
}

/// `[phone.dial.tenants.NAME]`: as in `[phone.dial]`, which does not count for this tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TenantDialConfig {
    /// Calls that it may begin in a minute.
    pub per_minute: u32,
    /// Numbers that begin so may be called.
    pub prefixes: Vec<String>,
    /// Numbers that may be called besides.
    pub numbers: Vec<String>,
}

impl Default for TenantDialConfig {
    fn default() -> Self {
        Self { per_minute: 10, prefixes: Vec::new(), numbers: Vec::new() }
    }
}

impl DialConfig {
    fn check(&self, problem: &mut impl FnMut(&str, String, &str)) {
        check_dial("phone.dial", self.per_minute, &self.prefixes, &self.numbers, problem);
        for (name, own) in &self.tenants {
            let section = format!("phone.dial.tenants.{name}");
            if !is_tenant_id(name) {
                problem(&section, format!("`{name}`"), TENANT_IDS);
            }
            check_dial(&section, own.per_minute, &own.prefixes, &own.numbers, problem);
        }
    }
}

fn check_dial(
    section: &str,
    per_minute: u32,
    prefixes: &[String],
    numbers: &[String],
    problem: &mut impl FnMut(&str, String, &str),
) {
    if !(1..=6_000).contains(&per_minute) {
        problem(&format!("{section}.per_minute"), per_minute.to_string(), "1 to 6000 calls");
    }
    let prefix = |text: &str| {
        text.strip_prefix('+').is_some_and(|d| (1..=15).contains(&d.len()) && d.bytes().all(|b| b.is_ascii_digit()))
    };
    for (n, found) in prefixes.iter().enumerate().filter(|(_, text)| !prefix(text)) {
        problem(&format!("{section}.prefixes[{n}]"), format!("`{found}`"), "`+` and 1 to 15 digits, such as +4930");
    }
    for (n, found) in numbers.iter().enumerate().filter(|(_, text)| !is_e164(text)) {
        problem(&format!("{section}.numbers[{n}]"), format!("`{found}`"), E164);
    }
}

impl PhoneConfig {
    /// `agents`: what is configured; `tenants`: whether there are any in the file.
    pub(super) fn check(
        &self,
        agents: impl Fn(&str) -> bool,
        tenants: bool,
        problem: &mut impl FnMut(&str, String, &str),
    ) {
        if !(5..=600).contains(&self.token_ttl_s) {
            problem("phone.token_ttl_s", self.token_ttl_s.to_string(), "5 to 600 seconds");
        }
        match &self.public_url {
            Some(url) => {
                if let Err(allowed) = base_url(url, self.plaintext, "phone.plaintext") {
                    problem("phone.public_url", format!("`{url}`"), &allowed);
                }
            }
            None if !self.accounts.is_empty() => {
                let allowed = "what providers reach us as, such as `https://relay.example.com`: there are accounts";
                problem("phone.public_url", "nothing".to_owned(), allowed);
            }
            None => {}
        }
        for (name, account) in &self.accounts {
            account.check(name, problem);
        }
        self.dial.check(problem);
        for (n, number) in self.numbers.iter().enumerate() {
            let key = |field: &str| format!("phone.numbers[{n}].{field}");
            if !is_called(&number.number) {
                let allowed = "`+` and digits such as +15550100, a SIP user, or `*`";
                problem(&key("number"), format!("`{}`", number.number), allowed);
            }
            let mut earlier = self.numbers.iter().take(n);
            if earlier.any(|other| other.number == number.number && other.account == number.account) {
                problem(&key("number"), format!("`{}` twice", number.number), "each number once for an account");
            }
            if let Some(found) = number.account.as_ref().filter(|name| !self.accounts.contains_key(*name)) {
                problem(&key("account"), format!("`{found}`"), "the name of one of [phone.accounts]");
            }
            if !agents(&number.agent) {
                problem(&key("agent"), format!("`{}`", number.agent), "the name of a configured agent");
            }
            match &number.tenant {
                Some(tenant) if !is_tenant_id(tenant) => problem(&key("tenant"), format!("`{tenant}`"), TENANT_IDS),
                None if tenants => problem(&key("tenant"), "nothing".to_owned(), "who pays: there are tenants"),
                _ => {}
            }
        }
    }
}

/// What is a telephone number, for error texts.
pub const E164: &str = "`+` and 7 to 15 digits, such as +15550100";

/// Whether this is a telephone number as the whole world writes it.
pub fn is_e164(text: &str) -> bool {
    let digits = |d: &str| (7..=15).contains(&d.len()) && d.bytes().all(|b| b.is_ascii_digit()) && !d.starts_with('0');
    text.strip_prefix('+').is_some_and(digits)
}

/// The 32 bytes of an Ed25519 key.
pub(crate) fn ed25519(text: &str) -> Option<[u8; 32]> {
    STANDARD.decode(text).ok()?.try_into().ok()
}

fn is_called(text: &str) -> bool {
    text == "*"
        || is_e164(text)
        || (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

fn is_endpoint(text: &str) -> bool {
    text.len() <= 256 && text.matches("{number}").count() == 1 && text.bytes().all(|b| b.is_ascii_graphic())
}

fn is_account_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_".contains(&b);
    (1..=64).contains(&name.len()) && name.bytes().all(plain)
}

/// Whether a base URL is one; `switch`: the setting that allows plain HTTP.
fn base_url(url: &str, plaintext: bool, switch: &str) -> Result<(), String> {
    let allowed = || "a base URL such as `https://relay.example.com`, without query or user name".to_owned();
    let web = url.starts_with("https://") || url.starts_with("http://");
    let plain = url.bytes().all(|b| b.is_ascii_graphic());
    let endpoint =
        Endpoint::parse(url, true).ok().filter(|_| web && plain && !url.contains('#')).ok_or_else(allowed)?;
    if !endpoint.tls && !plaintext && !is_loopback(&endpoint.host) {
        return Err(format!("https; plain http only for loopback, or with `{switch} = true`"));
    }
    Ok(())
}

fn one_of<T: AsRef<str>>(names: impl IntoIterator<Item = T>) -> String {
    let names: Vec<String> = names.into_iter().map(|name| name.as_ref().to_owned()).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn found(toml: &str) -> Result<Config, String> {
        let config: Config = toml::from_str(toml).map_err(|error| error.to_string())?;
        let mut config = config;
        config.agents.entry("default".to_owned()).or_default();
        config.check(|_| None).map_err(|error| error.to_string())?;
        Ok(config)
    }

    const URL: &str = "[phone]\npublic_url = \"https://relay.example.com\"\n";
    const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

    fn each() -> [(&'static str, String); 8] {
        [
            ("twilio", "account = \"AC1\"\nauth_token = \"t\"\n".to_owned()),
            ("telnyx", format!("public_key = \"{KEY}\"\napi_key = \"k\"\n")),
            ("signalwire", "account = \"p\"\nauth_token = \"t\"\napi_url = \"https://s.signalwire.com\"\n".to_owned()),
            ("plivo", "account = \"MA1\"\nauth_token = \"t\"\n".to_owned()),
            ("vonage", "account = \"a\"\nsigning_key = \"s\"\nprivate_key = \"key.pem\"\n".to_owned()),
            ("jambonz", "signing_key = \"s\"\n".to_owned()),
            ("asterisk", "stream_password = \"p\"\n".to_owned()),
            ("freeswitch", "stream_password = \"p\"\n".to_owned()),
        ]
    }

    #[test]
    fn each_kind_needs_its_fields_and_has_a_usual_codec() {
        for (kind, fields) in each() {
            let config = found(&format!("{URL}[phone.accounts.{kind}]\n{fields}")).unwrap();
            let account = &config.phone.accounts[kind];
            assert_eq!(account.kind(kind).map(PhoneKind::name), Some(kind));
            let named = found(&format!("{URL}[phone.accounts.mine]\nkind = \"{kind}\"\n{fields}")).unwrap();
            assert_eq!(named.phone.accounts["mine"].kind("mine").map(PhoneKind::name), Some(kind));
            for line in fields.lines() {
                let without = fields.replace(&format!("{line}\n"), "");
                let field = line.split(' ').next().unwrap();
                let error = found(&format!("{URL}[phone.accounts.{kind}]\n{without}")).unwrap_err();
                assert!(
                    error.contains(&format!("phone.accounts.{kind}.{field}: found nothing; allowed: a value: kind"))
                );
            }
        }
        let usual = |kind: PhoneKind| PhoneAccountConfig::default().audio(kind);
        assert_eq!(usual(PhoneKind::Twilio), (PhoneCodec::Pcmu, 8_000));
        assert_eq!(usual(PhoneKind::Asterisk), (PhoneCodec::L16, 24_000));
        assert_eq!(usual(PhoneKind::Vonage), (PhoneCodec::L16, 16_000));
        let signalwire = "[phone.accounts.signalwire]\naccount = \"a\"\nauth_token = \"t\"\napi_url = \"https://a.signalwire.com\"\n";
        for order in [PhoneByteOrder::Auto, PhoneByteOrder::Big, PhoneByteOrder::Little] {
            let config = found(&format!("{URL}{signalwire}byte_order = \"{}\"\n", order.name())).unwrap();
            assert_eq!(config.phone.accounts["signalwire"].byte_order, order);
        }
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        let jambonz = "[phone.accounts.jambonz]\nsigning_key = \"s\"\n";
        let number = "[[phone.numbers]]\nagent = \"default\"\n";
        for (toml, part) in [
            (jambonz.to_owned(), "phone.public_url: found nothing; allowed: what providers reach us as"),
            (
                "[phone]\npublic_url = \"http://example.com\"\n".to_owned(),
                "https; plain http only for loopback, or with",
            ),
            ("[phone]\npublic_url = \"wss://example.com\"\n".to_owned(), "allowed: a base URL such as"),
            ("[phone]\npublic_url = \"https://u@example.com\"\n".to_owned(), "without query or user name"),
            ("[phone]\npublic_url = \"https://example.com/?a=b\"\n".to_owned(), "without query or user name"),
            ("[phone]\ntoken_ttl_s = 1\n".to_owned(), "phone.token_ttl_s: found 1; allowed: 5 to 600 seconds"),
            ("[phone]\ntoken = 1\n".to_owned(), "unknown field `token`"),
            ("[phone.audiosocket]\nlisten = \"here\"\n".to_owned(), "allowed: an IP address and a port"),
            (
                format!("{URL}[phone.accounts.mine]\n"),
                "phone.accounts.mine.kind: found nothing; allowed: twilio, telnyx",
            ),
            (format!("{URL}[phone.accounts.\"a b\"]\nkind = \"jambonz\"\nsigning_key = \"s\"\n"), "it stands in URLs"),
            (format!("{URL}[phone.accounts.mine]\nkind = \"bell\"\n"), "unknown variant `bell`"),
            (format!("{URL}{jambonz}codec = \"pcmu\"\n"), "jambonz.codec: found pcmu; allowed: l16 with jambonz"),
            (
                format!("{URL}{jambonz}byte_order = \"big\"\n"),
                "jambonz.byte_order: found big; allowed: auto with jambonz",
            ),
            (format!("{URL}{jambonz}byte_order = \"middle\"\n"), "unknown variant `middle`"),
            (format!("{URL}{jambonz}rate = 44100\n"), "jambonz.rate: found 44100; allowed: 24000, 8000, 16000, 48000"),
            (
                format!("{URL}{jambonz}account = \"a\"\n"),
                "jambonz.api_key: found nothing; allowed: account, api_key, api",
            ),
            (format!("{URL}{jambonz}account = \"a/b\"\n"), "jambonz.account: found `a/b`; allowed: 1 to 128 letters"),
            (format!("{URL}{jambonz}public_key = \"abc\"\n"), "jambonz.public_key: found `abc`; allowed: 32 bytes"),
            (format!("{URL}{jambonz}stream_password = \"a b\"\n"), "jambonz.stream_password: found something that no"),
            (format!("{URL}{jambonz}caller = \"555\"\n"), "jambonz.caller: found `555`; allowed: `+` and 7 to 15"),
            (
                format!("{URL}{jambonz}endpoint = \"SIP/x\"\n"),
                "jambonz.endpoint: found `SIP/x`; allowed: a channel with",
            ),
            (format!("{URL}{jambonz}api_url = \"http://10.0.0.1\"\n"), "`phone.accounts.jambonz.plaintext = true`"),
            (format!("{number}number = \"+1 555\"\n"), "phone.numbers[0].number: found `+1 555`"),
            (format!("{number}number = \"*\"\n{number}number = \"*\"\n"), "phone.numbers[1].number: found `*` twice"),
            (format!("{number}number = \"*\"\naccount = \"x\"\n"), "phone.numbers[0].account: found `x`; allowed"),
            ("[[phone.numbers]]\nnumber = \"*\"\nagent = \"nobody\"\n".to_owned(), "agent: found `nobody`; allowed"),
            (
                format!("{number}number = \"*\"\n[tenants.acme]\n"),
                "phone.numbers[0].tenant: found nothing; allowed: who",
            ),
            (format!("{number}number = \"*\"\ntenant = \"A\"\n"), "phone.numbers[0].tenant: found `A`"),
            ("[phone.dial]\nper_minute = 0\n".to_owned(), "phone.dial.per_minute: found 0; allowed: 1 to 6000 calls"),
            (
                "[phone.dial]\nprefixes = [\"49\"]\n".to_owned(),
                "phone.dial.prefixes[0]: found `49`; allowed: `+` and 1",
            ),
            (
                "[phone.dial]\nnumbers = [\"+49\"]\n".to_owned(),
                "phone.dial.numbers[0]: found `+49`; allowed: `+` and 7",
            ),
            ("[phone.dial.tenants.a]\nper_minute = 0\n".to_owned(), "phone.dial.tenants.a.per_minute: found 0"),
        ] {
            let error = found(&toml).map(drop).unwrap_err();
            assert!(error.contains(part), "{toml}: {error}");
        }
        for good in [
            "[phone]\npublic_url = \"http://127.0.0.1:8080\"\n",
            "[phone]\npublic_url = \"http://relay.lan\"\nplaintext = true\n",
            "[phone]\npublic_url = \"https://relay.example.com/voice\"\n",
            "[phone.audiosocket]\nlisten = \"127.0.0.1:9092\"\n",
            "[[phone.numbers]]\nnumber = \"+15550100\"\nagent = \"default\"\n",
            "[[phone.numbers]]\nnumber = \"reception\"\nagent = \"default\"\ntenant = \"acme\"\n[tenants.acme]\n",
        ] {
            found(good).unwrap_or_else(|error| panic!("{good}: {error}"));
        }
    }

    #[test]
    fn secrets_are_not_printed() {
        let config = found(&format!(
            "{URL}[phone.accounts.twilio]\naccount = \"AC1\"\nauth_token = \"hush1\"\nsigning_key = \"hush2\"\napi_key = \"hush3\"\nstream_password = \"hush4\"\n"
        ))
        .unwrap();
        for text in [format!("{config:?}"), toml::to_string(&config).unwrap()] {
            assert!(!text.contains("hush"), "{text}");
        }
    }
}
