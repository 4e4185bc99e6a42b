//! What can be configured: one struct per section, every default in one place, unknown keys refused, secrets redacted.
//!
//! Precedence: command line, then the file, then the environment (`OPENAI_API_KEY`, `OPENAI_BASE_URL`), then the
//! defaults here. The commented example is `assets/voxrelay.toml`.
mod access;
mod budget;
mod ledger;
pub(crate) mod phone;
mod routes;
mod text;
mod tools;
mod turns;

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize, Serializer};

pub use self::access::{
    AuthConfig, KeyConfig, KeyHash, Moment, Net, Scope, SigningKeyConfig, StoreConfig, TENANT_IDS, TenantConfig,
    is_origin, is_tenant_id,
};
pub use self::budget::{AllowanceConfig, BudgetConfig, CallAllowanceConfig, WhenSpent};
pub use self::ledger::{LedgerConfig, PricesConfig};
pub use self::phone::{
    AudioSocketConfig, DialConfig, E164, NumberConfig, PhoneAccountConfig, PhoneByteOrder, PhoneCodec, PhoneConfig,
    PhoneKind, TenantDialConfig, is_e164,
};
pub use self::routes::{CanaryConfig, IncidentsConfig, RouteConfig, RoutePolicy, TierConfig};
pub use self::text::{TextConfig, TextRule, TextTier};
pub use self::tools::{Builtin, ExpertConfig, ToolConfig, WebhookConfig};
pub use self::turns::{Govern, LimitsConfig, TurnsConfig};
use crate::audio::Codec;

/// What the account of `[upstream]` is called in routes and metrics.
pub const USUAL_UPSTREAM: &str = "default";

/// The whole file. An empty one is valid.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Who may reach us, and how many.
    pub server: ServerConfig,
    /// The model service.
    pub upstream: UpstreamConfig,
    /// Further accounts and services, by name; tenants say which one they use.
    pub upstreams: BTreeMap<String, UpstreamConfig>,
    /// The door for OpenAI's own protocol.
    pub openai: OpenAiConfig,
    /// How audio is cut and paced.
    pub audio: AudioConfig,
    /// What a call may do.
    pub call: CallConfig,
    /// What an account's limits mean for calls.
    pub turns: TurnsConfig,
    /// Names that agents and clients may ask for in place of a model.
    pub tiers: BTreeMap<String, TierConfig>,
    /// Requests for text.
    pub text: TextConfig,
    /// Where a service says how it is.
    pub incidents: IncidentsConfig,
    /// What is logged.
    pub log: LogConfig,
    /// Call tokens, and what people are called upstream.
    pub auth: AuthConfig,
    /// What outlives a process.
    pub store: StoreConfig,
    /// Where usage is written down.
    pub ledger: LedgerConfig,
    /// What it costs.
    pub prices: PricesConfig,
    /// What those may spend together who are asked for no credential.
    pub budget: BudgetConfig,
    /// Who pays, by id; none, and none in the store: nobody is asked for a credential.
    pub tenants: BTreeMap<String, TenantConfig>,
    /// Telephones.
    pub phone: PhoneConfig,
    /// Personas by name; `default` always exists.
    pub agents: BTreeMap<String, AgentConfig>,
    /// The file that this was read from.
    #[serde(skip)]
    pub source: Option<PathBuf>,
}

/// `[server]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerConfig {
    /// Address and port; port 0 takes a free one.
    #[serde(deserialize_with = "listen_from")]
    pub listen: SocketAddr,
    /// Listen beyond loopback although nobody is asked for a credential.
    pub insecure_open: bool,
    /// Calls at once; more are refused with 503.
    pub max_calls: usize,
    /// Connections at once that still speak HTTP; more wait.
    pub max_connections: usize,
    /// Largest client message, bytes.
    pub max_message_bytes: usize,
    /// Requests at any door from one address in a minute; 0: no limit. This machine's own addresses have none.
    pub connects_per_minute: u32,
    /// Proxies in front of us: the client's address is what they write in `X-Forwarded-For`.
    pub trusted_proxies: Vec<Net>,
    /// How long running turns may go on after SIGTERM, seconds.
    pub drain_s: u64,
    /// Where the relay that follows this one asks for the listening socket and the calls; none: nowhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub handover: Option<PathBuf>,
    /// Speak TLS, and nothing else.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsConfig>,
}

/// `[server.tls]`: PEM files, looked at again when they change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// The certificate chain, the server's own first.
    pub cert: PathBuf,
    /// Its private key, not encrypted.
    pub key: PathBuf,
}

/// An address to listen on, as people write it.
///
/// # Errors
/// What was found and what is allowed.
pub fn parse_listen(text: &str) -> Result<SocketAddr, String> {
    text.parse()
        .map_err(|_| format!("found `{text}`; allowed: an IP address and a port, such as 127.0.0.1:8080 or [::1]:0"))
}

fn listen_from<'de, D: serde::Deserializer<'de>>(from: D) -> Result<SocketAddr, D::Error> {
    struct Listen;
    impl serde::de::Visitor<'_> for Listen {
        type Value = SocketAddr;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an IP address and a port, such as \"127.0.0.1:8080\"")
        }

        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<SocketAddr, E> {
            parse_listen(text).map_err(E::custom)
        }
    }
    from.deserialize_str(Listen)
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            insecure_open: false,
            max_calls: 4_000,
            max_connections: 16_384,
            max_message_bytes: 256 << 10,
            connects_per_minute: 600,
            trusted_proxies: Vec::new(),
            drain_s: 10,
            handover: None,
            tls: None,
        }
    }
}

/// Which protocol the service speaks. One arm, one file in [`crate::upstream`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dialect {
    /// OpenAI Realtime, generally available shape.
    #[default]
    Ga,
    /// A compatible server in the shape of the beta of 2024-25.
    Beta,
    /// Azure OpenAI.
    Azure,
}

/// What sessions are opened with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Credentials {
    /// The account's key itself.
    #[default]
    ApiKey,
    /// Client secrets that are made with it, and used again as long as they are good.
    Ephemeral,
}

/// `[upstream]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UpstreamConfig {
    /// Base URL, as SDKs write it (`https://api.openai.com/v1`); none and no key: the embedded simulator.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// The account's key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_key: Option<Secret>,
    /// What sessions are opened with.
    pub credentials: Credentials,
    /// Life of a client secret that is asked for, seconds; only for `credentials = "ephemeral"`.
    pub secret_ttl_s: u64,
    /// Name the model in the URL although the client secret has it in it.
    pub model_with_secret: bool,
    /// The protocol spoken there.
    pub dialect: Dialect,
    /// Azure: speak to the preview of this version instead of the generally available API.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_version: Option<String>,
    /// Rate at which the service takes PCM, Hz; only servers with `dialect = "beta"` have another than 24,000.
    pub input_rate: u32,
    /// Model, where an agent names none.
    pub model: String,
    /// Sent as `OpenAI-Organization`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub organization: Option<String>,
    /// Sent as `OpenAI-Project`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    /// Speak without TLS to another machine. Keys and voices travel in the clear.
    pub plaintext: bool,
    /// TCP and TLS together, ms (fault matrix U7).
    pub connect_timeout_ms: u64,
    /// TCP to `session.created`, ms (fault matrix U7).
    pub session_timeout_ms: u64,
    /// Tries before a call is given up (fault matrix U6).
    pub attempts: u32,
    /// Largest event taken from the service, bytes.
    pub max_message_bytes: usize,
    /// What the account may use of a model: the first that fits.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub limits: Vec<LimitsConfig>,
}

impl Default for UpstreamConfig {
    fn default() -> Self {
        Self {
            url: None,
            api_key: None,
            credentials: Credentials::ApiKey,
            secret_ttl_s: 600,
            model_with_secret: false,
            dialect: Dialect::Ga,
            api_version: None,
            input_rate: 24_000,
            model: "gpt-realtime-2.1".to_owned(),
            organization: None,
            project: None,
            plaintext: false,
            connect_timeout_ms: 5_000,
            session_timeout_ms: 10_000,
            attempts: 3,
            max_message_bytes: 16 << 20,
            limits: Vec::new(),
        }
    }
}

/// `[openai]`: the door `/v1/realtime`, where clients bring OpenAI's protocol with them.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OpenAiConfig {
    /// The agent whose policy rules calls that name none (`?agent=`).
    pub agent: String,
    /// What a client's `?model=` means here.
    pub models: BTreeMap<String, String>,
    /// What becomes of names that are not in `models`.
    pub other_models: OtherModels,
    /// Largest client message, bytes: the service's own longest append is 20,971,520 characters of base64.
    pub max_message_bytes: usize,
}

impl Default for OpenAiConfig {
    fn default() -> Self {
        // Legacy clients still ask for models that ended on 2026-05-07.
        let models = [
            ("gpt-4o-realtime-preview", "gpt-realtime-2.1"),
            ("gpt-4o-mini-realtime-preview", "gpt-realtime-2.1-mini"),
        ];
        Self {
            agent: "default".to_owned(),
            models: models.map(|(from, to)| (from.to_owned(), to.to_owned())).into(),
            other_models: OtherModels::Pass,
            max_message_bytes: 21_037_056,
        }
    }
}

/// What becomes of a model's name that no entry of `openai.models` translates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OtherModels {
    /// The service is asked for it.
    Pass,
    /// It is refused at the door.
    Refuse,
}

/// `[audio]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AudioConfig {
    /// Audio gathered for one append, ms.
    pub chunk_ms: u64,
    /// Leave the client's socket alone while a chunk gathers, instead of waking for each of its frames.
    pub gather: bool,
    /// How far ahead of the loudspeaker reply audio is sent at `pace=realtime`, ms.
    pub out_lead_ms: u64,
    /// Reply audio sent at one go, ms; less wakes more often.
    pub out_batch_ms: u64,
}

impl Default for AudioConfig {
    fn default() -> Self {
        Self { chunk_ms: 100, gather: true, out_lead_ms: 400, out_batch_ms: 100 }
    }
}

/// `[call]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CallConfig {
    /// Longest call, seconds.
    pub max_s: u64,
    /// A call without any message from its client ends after so many seconds; 0: never.
    pub idle_s: u64,
    /// A call in which neither side says anything ends after so many seconds, whatever audio comes; 0: never.
    pub silence_s: u64,
    /// How long a client may take for a tool, seconds, and the most that a webhook may; then the model is told.
    pub tool_timeout_s: u64,
    /// A reply without an event for so long is called stalled, seconds (fault matrix U8).
    pub stall_s: u64,
    /// Reply audio kept for a slow loudspeaker, seconds; a longer backlog ends the reply (fault matrix C4).
    pub max_backlog_s: u64,
    /// How long a call is kept for a client whose connection dropped, seconds; 0: not at all.
    pub resume_window_s: u64,
    /// How long a session that was lost is tried to be had anew, seconds.
    pub reconnect_s: u64,
    /// Tokens of the conversation that a new session is told at most; more is left out of its middle.
    pub history_tokens: usize,
}

impl Default for CallConfig {
    fn default() -> Self {
        Self {
            max_s: 14_400,
            idle_s: 900,
            silence_s: 3_600,
            tool_timeout_s: 30,
            stall_s: 10,
            max_backlog_s: 300,
            resume_window_s: 30,
            reconnect_s: 30,
            history_tokens: 16_000,
        }
    }
}

/// `[log]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// For people or for machines.
    pub format: LogFormat,
    /// `error`, `warn`, `info`, `debug`, `trace`, or directives such as `voxrelay=debug`.
    pub level: String,
}

/// What [`is_log_level`] takes, for error texts.
pub const LOG_LEVELS: &str = "off, error, warn, info, debug, trace, or directives such as voxrelay=debug";

/// Whether this is a level or directives. A single other word would be a target's name: nothing would be logged any more.
pub fn is_log_level(text: &str) -> bool {
    use tracing_subscriber::filter::{EnvFilter, LevelFilter};
    let word = text.trim();
    let level = word.parse::<LevelFilter>().is_ok();
    (level || word == "voxrelay" || word.contains(['=', '[', ',', ':'])) && EnvFilter::try_new(word).is_ok()
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { format: LogFormat::Pretty, level: "info".to_owned() }
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Lines for people.
    Pretty,
    /// One JSON object a line.
    Json,
}

/// `[agents.NAME]`: a persona. Clients choose it by name and cannot change it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AgentConfig {
    /// What the model is told before everything else.
    pub instructions: String,
    /// The service's name of a voice.
    pub voice: String,
    /// Model, where it differs from `upstream.model`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Said first, once per call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub greeting: Option<String>,
    /// A recording that is played while an answer waits for the account's limits; none: silence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hold_audio: Option<PathBuf>,
    /// Model that writes down what the caller says; none: no user transcript.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transcription: Option<String>,
    /// Longest reply, tokens; none: the service's limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_output_tokens: Option<u32>,
    /// Speaking speed, 0.25 to 1.5.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub speed: Option<f64>,
    /// The service's filter for the caller's audio.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub noise_reduction: Option<NoiseReduction>,
    /// How the end of speech is found (`turns=auto`).
    pub turn_detection: TurnDetection,
    /// What speech must be to stop a reply.
    pub barge_in: BargeInConfig,
    /// What is said to a caller who says nothing.
    pub silence: SilenceConfig,
    /// Keys of a telephone are one number until nothing was pressed for so long, ms.
    pub keypad_ms: u64,
    /// Tools: the client answers those that the relay does not run itself.
    pub tools: Vec<ToolConfig>,
    /// What of this a client at `/v1/realtime` may change.
    pub policy: PolicyConfig,
}

impl Default for AgentConfig {
    fn default() -> Self {
        Self {
            instructions: "You are a friendly voice assistant. Answer briefly, in the language of the caller."
                .to_owned(),
            voice: "marin".to_owned(),
            model: None,
            greeting: None,
            hold_audio: None,
            transcription: Some("gpt-transcribe".to_owned()),
            max_output_tokens: None,
            speed: None,
            noise_reduction: None,
            turn_detection: TurnDetection::default(),
            barge_in: BargeInConfig::default(),
            silence: SilenceConfig::default(),
            keypad_ms: 1_500,
            tools: Vec::new(),
            policy: PolicyConfig::default(),
        }
    }
}

/// `[agents.NAME.barge_in]`: what speech must be to stop a reply. With all of it 0, whatever the service takes for speech does.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BargeInConfig {
    /// So much of it is loud, ms: what a caller who means it pays, less what the service takes to hear speech.
    pub min_speech_ms: u64,
    /// So much of the reply was heard, ms.
    pub protect_ms: u64,
    /// Loud is what is above this, decibels of full scale.
    pub loud_db: f64,
}

impl Default for BargeInConfig {
    fn default() -> Self {
        Self { min_speech_ms: 0, protect_ms: 0, loud_db: -45.0 }
    }
}

impl BargeInConfig {
    /// Not everything that sounds like speech stops a reply.
    pub fn is_guarded(&self) -> bool {
        self.min_speech_ms > 0 || self.protect_ms > 0
    }
}

/// `[agents.NAME.silence]`: what is said to a caller who says nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SilenceConfig {
    /// After so long, seconds; 0: never.
    pub after_s: u64,
    /// What.
    pub say: String,
    /// How often; the call ends when nothing is said to the last one either.
    pub times: u32,
}

impl Default for SilenceConfig {
    fn default() -> Self {
        Self { after_s: 0, say: "Are you still there?".to_owned(), times: 2 }
    }
}

/// `[agents.NAME.policy]`: what becomes of an agent's settings where the client owns the conversation (`/v1/realtime`).
/// At `/v1/voice` all of them are in force.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PolicyConfig {
    /// `instructions`
    pub instructions: Rule,
    /// `tools`
    pub tools: Rule,
    /// `voice`
    pub voice: Rule,
    /// `max_output_tokens`; in force, a client may ask for less.
    pub max_output_tokens: Rule,
}

impl PolicyConfig {
    /// Of each rule the stricter one.
    #[must_use]
    pub fn or_stricter(self, other: Self) -> Self {
        Self {
            instructions: self.instructions.max(other.instructions),
            tools: self.tools.max(other.tools),
            voice: self.voice.max(other.voice),
            max_output_tokens: self.max_output_tokens.max(other.max_output_tokens),
        }
    }
}

/// Who decides; the later, the stricter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rule {
    /// The client; the agent's value is not used.
    #[default]
    Allow,
    /// The agent, until the client says something else.
    Default,
    /// The agent.
    Force,
}

/// The service's noise filters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NoiseReduction {
    /// A headset.
    NearField,
    /// A room.
    FarField,
}

/// `[agents.NAME.turn_detection]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum TurnDetection {
    /// By energy and silence.
    ServerVad {
        /// 0 to 1; higher needs louder speech.
        #[serde(default = "TurnDetection::default_threshold")]
        threshold: f64,
        /// Audio kept from before the speech, ms.
        #[serde(default = "TurnDetection::default_prefix")]
        prefix_padding_ms: u32,
        /// Silence that ends a turn, ms. The service's own 200 ms cuts people off in mid-sentence.
        #[serde(default = "TurnDetection::default_silence")]
        silence_duration_ms: u32,
    },
    /// By meaning.
    SemanticVad {
        /// How soon the model takes the turn.
        #[serde(default)]
        eagerness: Eagerness,
    },
}

impl TurnDetection {
    fn default_threshold() -> f64 {
        0.5
    }
    fn default_prefix() -> u32 {
        300
    }
    fn default_silence() -> u32 {
        500
    }

    /// The silence that the service waits for before it calls speech ended; none where meaning decides.
    pub fn silence(&self) -> Duration {
        match self {
            Self::ServerVad { silence_duration_ms, .. } => Duration::from_millis(u64::from(*silence_duration_ms)),
            Self::SemanticVad { .. } => Duration::ZERO,
        }
    }

    /// The silence after which it calls speech ended whatever was said.
    pub fn longest_silence(&self) -> Duration {
        match self {
            Self::ServerVad { .. } => self.silence(),
            Self::SemanticVad { eagerness } => Duration::from_secs(match eagerness {
                Eagerness::Low => 8,
                Eagerness::Auto | Eagerness::Medium => 4,
                Eagerness::High => 2,
            }),
        }
    }
}

impl Default for TurnDetection {
    fn default() -> Self {
        Self::ServerVad {
            threshold: Self::default_threshold(),
            prefix_padding_ms: Self::default_prefix(),
            silence_duration_ms: Self::default_silence(),
        }
    }
}

/// How soon semantic turn detection answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Eagerness {
    /// As `medium`.
    #[default]
    Auto,
    /// Waits up to 8 s.
    Low,
    /// Waits up to 4 s.
    Medium,
    /// Waits up to 2 s.
    High,
}

/// A credential: never printed, never written.
#[derive(Clone, Deserialize)]
pub struct Secret(SecretString);

impl Secret {
    /// Wraps a credential.
    pub fn new(secret: impl Into<String>) -> Self {
        Self(SecretString::from(secret.into()))
    }

    /// The credential itself, for the one place that sends it.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("(redacted)")
    }
}

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read config file `{}`: {source}", file.display())]
    Read {
        /// Which.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Not TOML, or an unknown key, or a value of the wrong kind. Never the line itself: there may stand a key in it.
    #[error("{}: line {line}, column {column}: {problem}", file.display())]
    Parse {
        /// Which file.
        file: PathBuf,
        /// Where, from 1.
        line: usize,
        /// Where, from 1.
        column: usize,
        /// What is wrong.
        problem: String,
    },
    /// Values that cannot work.
    #[error("{}", problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Values {
        /// All of them.
        problems: Vec<Problem>,
    },
}

/// One value that cannot work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// File and line, where the value stands in a file.
    pub place: Option<String>,
    /// The key, dotted.
    pub key: String,
    /// What was found.
    pub found: String,
    /// What is allowed.
    pub allowed: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "{place}: ")?;
        }
        write!(f, "{}: found {}; allowed: {}", self.key, self.found, self.allowed)
    }
}

impl Config {
    /// Reads a file, or takes the defaults, and fills what it leaves open from the environment, given as a lookup.
    ///
    /// # Errors
    /// When the file cannot be read, parsed, or holds values that cannot work.
    pub fn load(file: Option<&Path>, env: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let source = match file {
            Some(file) => {
                fs::read_to_string(file).map_err(|source| ConfigError::Read { file: file.to_owned(), source })?
            }
            None => String::new(),
        };
        let name = file.unwrap_or(Path::new("(no file)"));
        let mut config = Self::parse(&source, name)?;
        config.source = file.map(Path::to_owned);
        let set = |name: &str| env(name).filter(|value| !value.trim().is_empty());
        config.upstream.url = config.upstream.url.or_else(|| set("OPENAI_BASE_URL"));
        config.upstream.api_key = config.upstream.api_key.or_else(|| set("OPENAI_API_KEY").map(Secret::new));
        config.check(|key| match (locate(&source, key), key) {
            (Some(line), _) => Some(format!("{}:{line}", name.display())),
            (None, "upstream.url") => Some("OPENAI_BASE_URL".to_owned()),
            (None, "upstream.api_key") => Some("OPENAI_API_KEY".to_owned()),
            (None, _) => None,
        })?;
        Ok(config)
    }

    fn parse(source: &str, name: &Path) -> Result<Self, ConfigError> {
        let mut config: Self = toml::from_str(source).map_err(|error| {
            let before = source.get(..error.span().map_or(0, |span| span.start)).unwrap_or_default();
            let (line, column) =
                (before.matches('\n').count() + 1, before.chars().rev().take_while(|c| *c != '\n').count() + 1);
            ConfigError::Parse { file: name.to_owned(), line, column, problem: without_values(error.message()) }
        })?;
        config.agents.entry("default".to_owned()).or_default();
        Ok(config)
    }

    /// Nothing says where the model service is: the embedded simulator answers.
    pub fn is_simulated(&self) -> bool {
        self.upstream.url.is_none() && self.upstream.api_key.is_none()
    }

    /// Every value against what it may be. `place` finds where a key stands.
    ///
    /// # Errors
    /// All problems at once.
    pub fn check(&self, place: impl Fn(&str) -> Option<String>) -> Result<(), ConfigError> {
        let mut problems = Vec::new();
        let mut problem = |key: &str, found: String, allowed: &str| {
            problems.push(Problem { place: place(key), key: key.to_owned(), found, allowed: allowed.to_owned() });
        };
        for (key, found, least, most, unit) in self.ranges() {
            if !(least..=most).contains(&found) {
                problem(key, found.to_string(), &format!("{least} to {most} {unit}"));
            }
        }
        if self.audio.out_batch_ms > self.audio.out_lead_ms {
            problem("audio.out_batch_ms", self.audio.out_batch_ms.to_string(), "at most audio.out_lead_ms");
        }
        if !is_log_level(&self.log.level) {
            problem("log.level", format!("`{}`", self.log.level), LOG_LEVELS);
        }
        if !self.agents.contains_key(&self.openai.agent) {
            problem("openai.agent", format!("`{}`", self.openai.agent), "the name of a configured agent");
        }
        if let Some((name, _)) = self.openai.models.iter().find(|(from, to)| from.is_empty() || to.is_empty()) {
            problem(&format!("openai.models.{name}"), "an empty name".to_owned(), "names of models");
        }
        self.upstream.check("upstream", &mut problem);
        for (name, upstream) in &self.upstreams {
            upstream.check(&format!("upstreams.{name}"), &mut problem);
        }
        routes::check(self, &mut problem);
        self.incidents.check(&mut problem);
        self.text.check(self, &mut problem);
        self.auth.check(&mut problem);
        self.budget.check("budget", &mut problem);
        if !self.budget.key.is_empty() {
            let allowed = "nothing: who is asked for no credential has no key; tenants.NAME.budget.key";
            problem("budget.key", "limits".to_owned(), allowed);
        }
        self.ledger.check(&self.store, &mut problem);
        let (agents, upstreams) = (|a: &str| self.agents.contains_key(a), |u: &str| self.upstreams.contains_key(u));
        let mut hashes = BTreeMap::new();
        for (name, tenant) in &self.tenants {
            tenant.check(name, agents, upstreams, &mut problem);
            for (index, key) in tenant.keys.iter().enumerate() {
                if let Some(other) = hashes.insert(key.hash, name) {
                    let key = format!("tenants.{name}.keys[{index}].hash");
                    problem(&key, format!("a key that tenant `{other}` has"), "a key of its own");
                }
            }
        }
        for (name, agent) in &self.agents {
            agent.check(name, self.call.tool_timeout_s, &mut problem);
            if let Some(index) = agent.tools.iter().position(|tool| tool.expert().is_some())
                && self.text.expert.is_none()
            {
                let found = "`ask_expert`, and no text.expert".to_owned();
                problem(&format!("agents.{name}.tools[{index}].builtin"), found, "an expert that is configured");
            }
        }
        self.phone.check(agents, !self.tenants.is_empty(), &mut problem);
        if problems.is_empty() { Ok(()) } else { Err(ConfigError::Values { problems }) }
    }

    fn ranges(&self) -> [(&'static str, u64, u64, u64, &'static str); 19] {
        let (server, audio, call) = (&self.server, &self.audio, &self.call);
        [
            ("server.max_calls", server.max_calls as u64, 1, 1_000_000, "calls"),
            ("server.max_connections", server.max_connections as u64, 1, 1_000_000, "connections"),
            ("server.max_message_bytes", server.max_message_bytes as u64, 4_096, 16 << 20, "bytes"),
            ("server.drain_s", server.drain_s, 0, 3_600, "seconds"),
            ("openai.max_message_bytes", self.openai.max_message_bytes as u64, 64 << 10, 64 << 20, "bytes"),
            ("audio.chunk_ms", audio.chunk_ms, 20, 200, "ms"),
            ("audio.out_lead_ms", audio.out_lead_ms, 40, 10_000, "ms"),
            ("audio.out_batch_ms", audio.out_batch_ms, 20, 1_000, "ms"),
            ("call.max_s", call.max_s, 1, 604_800, "seconds"),
            ("call.idle_s", call.idle_s, 0, 86_400, "seconds"),
            ("call.silence_s", call.silence_s, 0, 86_400, "seconds"),
            ("call.tool_timeout_s", call.tool_timeout_s, 1, 600, "seconds"),
            ("call.stall_s", call.stall_s, 1, 600, "seconds"),
            ("call.max_backlog_s", call.max_backlog_s, 1, 3_600, "seconds"),
            ("call.resume_window_s", call.resume_window_s, 0, 3_600, "seconds"),
            ("call.reconnect_s", call.reconnect_s, 1, 600, "seconds"),
            ("turns.wait_ms", self.turns.wait_ms, 0, 60_000, "ms"),
            ("turns.batch_wait_ms", self.turns.batch_wait_ms, 0, 3_600_000, "ms"),
            ("call.history_tokens", call.history_tokens as u64, 500, 1_000_000, "tokens"),
        ]
    }
}

impl UpstreamConfig {
    fn check(&self, section: &str, problem: &mut impl FnMut(&str, String, &str)) {
        let key = |field: &str| format!("{section}.{field}");
        for (field, found, least, most, unit) in [
            ("connect_timeout_ms", self.connect_timeout_ms, 100, 60_000, "ms"),
            ("session_timeout_ms", self.session_timeout_ms, 100, 120_000, "ms"),
            ("attempts", u64::from(self.attempts), 1, 10, "tries"),
            ("max_message_bytes", self.max_message_bytes as u64, 64 << 10, 64 << 20, "bytes"),
            ("secret_ttl_s", self.secret_ttl_s, 10, 7_200, "seconds"),
        ] {
            if !(least..=most).contains(&found) {
                problem(&key(field), found.to_string(), &format!("{least} to {most} {unit}"));
            }
        }
        for (n, limits) in self.limits.iter().enumerate() {
            limits.check(&format!("{section}.limits[{n}]"), self.limits.get(..n).unwrap_or_default(), problem);
        }
        if let Some(url) = &self.url
            && let Err(allowed) = Endpoint::parse(url, self.plaintext)
        {
            problem(&key("url"), format!("`{url}`"), &allowed);
        }
        if self.model.is_empty() {
            problem(&key("model"), "nothing".to_owned(), "the name of a realtime model");
        }
        for (field, value) in [
            ("api_key", self.api_key.as_ref().map(Secret::expose)),
            ("organization", self.organization.as_deref()),
            ("project", self.project.as_deref()),
        ] {
            if value.is_some_and(|v| v.is_empty() || v.bytes().any(|b| !b.is_ascii_graphic())) {
                let found = "something that no HTTP header can hold".to_owned();
                problem(&key(field), found, "visible ASCII characters, no spaces or line ends");
            }
        }
        let rates = if self.dialect == Dialect::Beta { Codec::Pcm16.rates() } else { &[24_000] };
        if !rates.contains(&self.input_rate) {
            let allowed = "24000, or with dialect = \"beta\" also 8000, 16000 and 48000";
            problem(&key("input_rate"), self.input_rate.to_string(), allowed);
        }
        match &self.api_version {
            Some(version) if self.dialect != Dialect::Azure || version.is_empty() => {
                let allowed = "a version such as 2025-04-01-preview, with dialect = \"azure\"";
                problem(&key("api_version"), format!("`{version}`"), allowed);
            }
            _ => {}
        }
        let mints = self.dialect == Dialect::Ga || self.dialect == Dialect::Azure && self.api_version.is_none();
        if self.credentials == Credentials::Ephemeral && !mints {
            let allowed = "api_key; client secrets are made by services with dialect = \"ga\" or \"azure\"";
            problem(&key("credentials"), "ephemeral".to_owned(), allowed);
        }
    }
}

impl AgentConfig {
    /// Tokens that each conversation with it begins with, at four characters each: instructions and tools.
    pub fn base_tokens(&self) -> u64 {
        let tools = self.tools.iter().map(|tool| tool.description.len() + tool.parameters.to_string().len());
        (self.instructions.len() + tools.sum::<usize>()).div_ceil(4) as u64
    }

    /// `longest_tool`: how long a tool may take, seconds.
    fn check(&self, name: &str, longest_tool: u64, problem: &mut impl FnMut(&str, String, &str)) {
        let key = |field: &str| format!("agents.{name}.{field}");
        if name.is_empty() || name.len() > 64 || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        {
            problem(&format!("agents.{name}"), format!("`{name}`"), "1 to 64 letters, digits, `-`, `_`, `.`");
        }
        if self.voice.is_empty() {
            problem(&key("voice"), "nothing".to_owned(), "the service's name of a voice, such as `marin`");
        }
        if let Some(speed) = self.speed.filter(|s| !(0.25..=1.5).contains(s)) {
            problem(&key("speed"), speed.to_string(), "0.25 to 1.5");
        }
        let BargeInConfig { min_speech_ms, protect_ms, loud_db } = self.barge_in;
        for (field, found) in [("min_speech_ms", min_speech_ms), ("protect_ms", protect_ms)] {
            if found > 10_000 {
                problem(&key(&format!("barge_in.{field}")), found.to_string(), "0 to 10000 ms");
            }
        }
        if !(-90.0..=0.0).contains(&loud_db) {
            problem(&key("barge_in.loud_db"), loud_db.to_string(), "-90 to 0");
        }
        if self.silence.after_s > 3_600 {
            problem(&key("silence.after_s"), self.silence.after_s.to_string(), "0 to 3600 seconds");
        }
        if self.silence.times > 100 {
            problem(&key("silence.times"), self.silence.times.to_string(), "0 to 100");
        }
        if !(200..=30_000).contains(&self.keypad_ms) {
            problem(&key("keypad_ms"), self.keypad_ms.to_string(), "200 to 30000 ms");
        }
        if self.policy.max_output_tokens != Rule::Allow && self.max_output_tokens.is_none() {
            let found = "a rule for a limit that is not set".to_owned();
            problem(&key("policy.max_output_tokens"), found, "allow, or agents.NAME.max_output_tokens set");
        }
        if let Some(tokens) = self.max_output_tokens.filter(|t| !(1..=32_000).contains(t)) {
            problem(&key("max_output_tokens"), tokens.to_string(), "1 to 32000 tokens");
        }
        if let TurnDetection::ServerVad { threshold, prefix_padding_ms, silence_duration_ms } = self.turn_detection {
            if !(0.0..=1.0).contains(&threshold) {
                problem(&key("turn_detection.threshold"), threshold.to_string(), "0 to 1");
            }
            if prefix_padding_ms > 5_000 {
                problem(&key("turn_detection.prefix_padding_ms"), prefix_padding_ms.to_string(), "0 to 5000 ms");
            }
            if !(50..=10_000).contains(&silence_duration_ms) {
                problem(&key("turn_detection.silence_duration_ms"), silence_duration_ms.to_string(), "50 to 10000 ms");
            }
        }
        for (index, tool) in self.tools.iter().enumerate() {
            tool.check(&key(&format!("tools[{index}]")), longest_tool, problem);
            if self.tools.iter().take(index).any(|earlier| earlier.name == tool.name) {
                problem(&key(&format!("tools[{index}].name")), format!("`{}` twice", tool.name), "names that differ");
            }
        }
    }
}

/// A base URL, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Speak TLS.
    pub tls: bool,
    /// Name or address, without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Path without a slash at its end, such as `/v1`.
    pub path: String,
}

impl Endpoint {
    /// Takes `http`, `https`, `ws` and `wss` URLs; plain ones only to loopback, unless `plaintext`.
    ///
    /// # Errors
    /// What is allowed instead.
    pub fn parse(url: &str, plaintext: bool) -> Result<Self, String> {
        let allowed = || "a base URL such as `https://api.openai.com/v1` or `http://127.0.0.1:9000/v1`".to_owned();
        let uri: axum::http::Uri = url.trim().parse().map_err(|_| allowed())?;
        let tls = match uri.scheme_str() {
            Some("https" | "wss") => true,
            Some("http" | "ws") => false,
            _ => return Err(allowed()),
        };
        if uri.query().is_some() || uri.authority().is_some_and(|a| a.as_str().contains('@')) {
            return Err(format!("{}, without query or user name", allowed()));
        }
        let host = uri.host().filter(|h| !h.is_empty()).ok_or_else(allowed)?.trim_matches(['[', ']']).to_owned();
        if !tls && !plaintext && !is_loopback(&host) {
            return Err(
                "https or wss; plain http or ws only to loopback, or with `upstream.plaintext = true`".to_owned()
            );
        }
        let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
        if port == 0 {
            return Err(format!("{}, with a port from 1 on", allowed()));
        }
        Ok(Self { tls, host, port, path: uri.path().trim_end_matches('/').to_owned() })
    }
}

/// Whether a host name or address means this machine.
pub fn is_loopback(host: &str) -> bool {
    let host = host.trim_matches(['[', ']']);
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// A message without the value that it is about, for that may be a key.
fn without_values(message: &str) -> String {
    let message = message.trim_end();
    let kinds = [("invalid type: ", "a value of the wrong type"), ("invalid value: ", "a value that cannot be")];
    let kind = kinds.into_iter().find(|(begins, _)| message.starts_with(begins)).map(|(_, words)| words);
    match (kind, message.rsplit_once(", expected ")) {
        (Some(words), Some((_, expected))) => format!("{words}, expected {expected}"),
        (Some(words), None) => words.to_owned(),
        (None, _) => message.to_owned(),
    }
}

/// The line on which a dotted key stands, or its nearest parent.
fn locate(source: &str, key: &str) -> Option<usize> {
    let table = toml::de::DeTable::parse(source).ok()?;
    let mut at = None;
    let mut value = toml::de::DeValue::Table(table.into_inner());
    for part in key.split('.') {
        let (part, index) = match part.split_once('[') {
            Some((name, index)) => (name, index.trim_end_matches(']').parse::<usize>().ok()),
            None => (part, None),
        };
        let toml::de::DeValue::Table(mut table) = value else { break };
        let Some(found) = table.remove(part) else { break };
        at = Some(found.span().start);
        value = found.into_inner();
        if let (Some(index), toml::de::DeValue::Array(_)) = (index, &value) {
            let toml::de::DeValue::Array(array) = value else { break };
            let Some(item) = array.into_iter().nth(index) else { break };
            at = Some(item.span().start);
            value = item.into_inner();
        }
    }
    at.map(|at| source.get(..at).unwrap_or_default().matches('\n').count() + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(source: &str) -> Result<Config, String> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("test.toml");
        fs::write(&file, source).unwrap();
        Config::load(Some(&file), |_| None)
            .map_err(|e| e.to_string().replace(&format!("{}/", dir.path().display()), ""))
    }

    fn printed(config: &Config) -> String {
        toml::to_string(config).unwrap()
    }

    #[test]
    fn the_example_says_the_defaults_and_its_comments_are_valid_too() {
        let example = include_str!("../assets/voxrelay.toml");
        let defaults = printed(&load("").unwrap());
        assert_eq!(printed(&load(example).unwrap()), defaults);
        let uncomment = |line: &'static str| match line.strip_prefix("# ") {
            Some(l) if l.starts_with('[') || l.contains(" = ") && !l.contains("eagerness") => l,
            _ => line,
        };
        let uncommented: String = example.lines().map(|line| format!("{}\n", uncomment(line))).collect();
        let all = load(&uncommented).unwrap();
        assert_eq!(all.agents["default"].tools[0].name, "look_up_order");
        assert_eq!(all.agents["default"].speed, Some(1.0));
        assert!(all.upstream.api_key.is_some());
    }

    #[test]
    fn problems_name_line_key_value_and_what_is_allowed() {
        for (source, parts) in [
            ("[audio]\nchunk_ms = 5\n", &["test.toml:2: audio.chunk_ms: found 5; allowed: 20 to 200 ms"][..]),
            ("[audio]\nchunk = 5\n", &["line 2", "unknown field `chunk`", "chunk_ms"]),
            ("[server]\nlisten = 8080\n", &["line 2", "an IP address and a port"]),
            ("[server\n", &["line 1"]),
            ("[upstream]\nurl = \"http://example.com/v1\"\n", &["test.toml:2: upstream.url", "https or wss"]),
            (
                "[upstream]\nurl = \"example.com\"\n",
                &["upstream.url: found `example.com`; allowed: a base URL such as"],
            ),
            ("[upstream]\napi_key = \"a b\"\n", &["upstream.api_key", "visible ASCII"]),
            (
                "[agents.x]\nspeed = 9.0\nvoice = \"\"\n",
                &["test.toml:3: agents.x.voice", "test.toml:2: agents.x.speed: found 9; allowed: 0.25 to 1.5"],
            ),
            (
                "[agents.x.turn_detection]\ntype = \"server_vad\"\nthreshold = 2.0\n",
                &["test.toml:3: agents.x.turn_detection.threshold"],
            ),
            ("[agents.x.turn_detection]\ntype = \"magic\"\n", &["magic", "server_vad"]),
            ("[[agents.x.tools]]\nname = \"two words\"\n", &["test.toml:2: agents.x.tools[0].name: found `two words`"]),
            ("[ledger]\ngrace_s = 90000\n", &["test.toml:2: ledger.grace_s: found 90000; allowed: 0 to 86400 seconds"]),
            (
                "[store]\nfile = \"a.db\"\n[ledger]\nfile = \"a.db\"\n",
                &["test.toml:4: ledger.file: found `a.db`; allowed: another file than store.file"],
            ),
            (
                "[upstream]\ndialect = \"azure\"\ninput_rate = 16000\n",
                &["test.toml:3: upstream.input_rate: found 16000; allowed: 24000, or with dialect"],
            ),
            (
                "[upstream]\napi_version = \"2025-04-01-preview\"\n",
                &["test.toml:2: upstream.api_version: found `2025-04-01-preview`", "dialect = \"azure\""],
            ),
            ("[upstream]\ndialect = \"morse\"\n", &["line 2", "morse", "`ga`, `beta`, `azure`"]),
            ("[openai]\nagent = \"nobody\"\n", &["test.toml:2: openai.agent: found `nobody`; allowed: the name of a"]),
            ("[openai.models]\na = \"\"\n", &["test.toml:2: openai.models.a: found an empty name"]),
            ("[agents.x.policy]\nvoice = \"maybe\"\n", &["line 2", "maybe", "`allow`, `default`, `force`"]),
            (
                "[agents.x.policy]\nmax_output_tokens = \"force\"\n",
                &["test.toml:2: agents.x.policy.max_output_tokens: found a rule for a limit that is not set"],
            ),
            ("[budget.key]\nusd_day = 1\n", &["test.toml:1: budget.key: found limits; allowed: nothing"]),
            (
                "[tenants.a.budget.user]\nusd_day = 1e10\n",
                &["test.toml:2: tenants.a.budget.user.usd_day: found 10000000000; allowed: 0 to 1000000000 USD"],
            ),
            ("[budget.all]\nusd_day = -1\n", &["line 2", "found `-1`; allowed: an amount in USD"]),
            ("[log]\nlevel = \"a=b=c\"\n", &["test.toml:2: log.level"]),
            ("[log]\nlevel = \"loud\"\n", &["test.toml:2: log.level: found `loud`; allowed: off, error"]),
            ("[server]\nlisten = \"localhost\"\n", &["line 2", "found `localhost`; allowed: an IP address and a port"]),
        ] {
            let error = load(source).unwrap_err();
            for part in parts {
                assert!(error.contains(part), "{source:?} gave {error:?}, without {part:?}");
            }
        }
    }

    #[test]
    fn a_broken_file_is_described_and_not_quoted() {
        for source in [
            "[upstream]\napi_kye = \"sk-live-0123\"\n",
            "[upstream]\napi_key = \"sk-live-0123\n",
            "[upstream]\napi_key = sk-live-0123\n",
            "[upstream]\nsecret_ttl_s = \"sk-live-0123\"\n",
            "[tenants.acme]\nmax_calls = \"sk-live-0123\"\n",
            "[auth]\nsafety_secret = 12345678\nissuer = [\"sk-live-0123\"]\n",
            "[upstream]\nsecret_ttl_s = \"a\\\"sk-live-0123\"\n",
            "[[tenants.acme.keys]]\nlabel = \"x\"\nhash = \"sk-live-0123\"\n",
        ] {
            let error = load(source).unwrap_err();
            assert!(
                error.contains("line ") && !error.contains("sk-live") && !error.contains("12345678"),
                "{source}: {error}"
            );
        }
    }

    #[test]
    fn a_value_from_the_environment_is_found_there() {
        for (variable, value, key) in
            [("OPENAI_BASE_URL", "nonsense", "upstream.url"), ("OPENAI_API_KEY", "a b", "upstream.api_key")]
        {
            let error = Config::load(None, |name| (name == variable).then(|| value.to_owned())).unwrap_err();
            assert!(error.to_string().starts_with(&format!("{variable}: {key}: found ")), "{error}");
        }
    }

    #[test]
    fn secrets_are_never_printed() {
        let config =
            Config::load(None, |name| (name == "OPENAI_API_KEY").then(|| "sk-very-secret".to_owned())).unwrap();
        assert_eq!(config.upstream.api_key.as_ref().unwrap().expose(), "sk-very-secret");
        for text in [printed(&config), format!("{config:?}")] {
            assert!(!text.contains("very-secret"), "{text}");
        }
    }

    #[test]
    fn endpoints_are_taken_apart() {
        let of = |url| Endpoint::parse(url, false).map(|e| (e.tls, e.host, e.port, e.path));
        assert_eq!(of("https://api.openai.com/v1/"), Ok((true, "api.openai.com".into(), 443, "/v1".into())));
        assert_eq!(of("ws://[::1]:9000/v1"), Ok((false, "::1".into(), 9000, "/v1".into())));
        assert_eq!(of("http://localhost:9000"), Ok((false, "localhost".into(), 9000, String::new())));
        for bad in ["ftp://x/v1", "https://", "https://user@x/v1", "https://x/v1?a=b", "http://10.0.0.1/v1", "nonsense"]
        {
            assert!(of(bad).is_err(), "{bad}");
        }
    }
}
