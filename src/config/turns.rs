//! `[turns]` and `[[upstream.limits]]`: what an account may use, and what that means for calls.
use serde::{Deserialize, Serialize};

/// Whether replies are asked for only when the account's limits allow it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Govern {
    /// Each reply, also those to turns that the service finds.
    Always,
    /// Those that the relay asks for; the service answers turns that it finds by itself until little is left.
    #[default]
    NearLimit,
    /// None: limits are hit, and said when they are.
    Never,
}

/// `[turns]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TurnsConfig {
    /// Whether replies are asked for only when the account's limits allow it.
    pub govern: Govern,
    /// How long an answer may wait for them, ms.
    pub wait_ms: u64,
    /// The same for tenants of class `batch`.
    pub batch_wait_ms: u64,
}

impl Default for TurnsConfig {
    fn default() -> Self {
        Self { govern: Govern::NearLimit, wait_ms: 3_000, batch_wait_ms: 60_000 }
    }
}

/// `[[upstream.limits]]`: what the account may use of a model; what is left out is learned from the service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsConfig {
    /// The model; one that ends in `*` stands for all that begin so, each with limits of its own.
    pub model: String,
    /// Replies a minute (RPM).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests: Option<u64>,
    /// Tokens a minute (TPM).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u64>,
    /// Replies a day (RPD).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests_day: Option<u64>,
    /// Tokens a day (TPD).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_day: Option<u64>,
    /// New sessions a minute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connects: Option<u64>,
    /// Sessions at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sessions: Option<u64>,
    /// How much of each is used, per cent; of sessions at once all.
    pub use_percent: u8,
    /// How much of a minute's worth may be used at once, ms.
    pub burst_ms: u64,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            model: "*".to_owned(),
            requests: None,
            tokens: None,
            requests_day: None,
            tokens_day: None,
            connects: None,
            sessions: None,
            use_percent: 90,
            burst_ms: 6_000,
        }
    }
}

impl LimitsConfig {
    /// Whether these are the limits of this model.
    pub fn covers(&self, model: &str) -> bool {
        match self.model.strip_suffix('*') {
            Some(start) => model.starts_with(start),
            None => self.model == model,
        }
    }

    /// `section`: its own name; `before`: those that are looked at before it.
    pub(super) fn check(&self, section: &str, before: &[Self], problem: &mut impl FnMut(&str, String, &str)) {
        let model = &self.model;
        let plain = model.strip_suffix('*').unwrap_or(model);
        if model.is_empty() || plain.contains('*') {
            let allowed = "the name of a model, or how names begin and then `*`";
            problem(&format!("{section}.model"), format!("`{model}`"), allowed);
        } else if let Some(other) = before.iter().find(|other| other.covers(plain)) {
            let found = format!("`{model}`, of which all are in `{}` before it", other.model);
            problem(&format!("{section}.model"), found, "the narrower one first, each once");
        }
        for (field, found, most, unit) in [
            ("requests", self.requests, 1 << 32, "requests a minute"),
            ("tokens", self.tokens, 1 << 40, "tokens a minute"),
            ("requests_day", self.requests_day, 1 << 40, "requests a day"),
            ("tokens_day", self.tokens_day, 1 << 48, "tokens a day"),
            ("connects", self.connects, 1 << 32, "sessions a minute"),
            ("sessions", self.sessions, 1 << 32, "sessions"),
            ("use_percent", Some(u64::from(self.use_percent)), 100, "per cent"),
            ("burst_ms", Some(self.burst_ms), 60_000, "ms"),
        ] {
            if let Some(found) = found.filter(|found| !(1..=most).contains(found)) {
                problem(&format!("{section}.{field}"), found.to_string(), &format!("1 to {most} {unit}"));
            }
        }
    }
}
