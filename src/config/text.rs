//! `[text]`: requests for text (`/v1/responses`, `/v1/audio/transcriptions`), and which model answers those that leave it to us.
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Config;

/// `[text]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TextConfig {
    /// The model, or one of `[tiers]`, for what is routine.
    pub fast: String,
    /// The same for what is ambiguous, or where much depends on it.
    pub best: String,
    /// The same for what is hardest; none: there is no such. Who asks for it needs the scope `expert`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expert: Option<String>,
    /// Which of them answers a request for the model `auto`: the first rule that fits, and `fast` if none does.
    pub rules: Vec<TextRule>,
    /// Requests at once; more are refused with 503.
    pub max_requests: usize,
    /// Requests of one tenant at once; more are refused with 429.
    pub max_requests_of_tenant: usize,
    /// Longest body of a request for a response, bytes.
    pub max_body_bytes: usize,
    /// Longest recording in one request, bytes.
    pub max_audio_bytes: usize,
    /// Longest file of requests for a batch, bytes; it is on the disk until the service has it.
    pub max_batch_bytes: u64,
    /// How often batches that run are looked at, seconds: what nobody downloads is booked then.
    pub batch_look_s: u64,
    /// Bodies that are held at once, bytes; more wait for their turn.
    pub max_held_bytes: usize,
    /// What an answer is taken to use at most where its request does not say, tokens.
    pub output_tokens: u64,
    /// Longest time until an answer is whole, seconds.
    pub max_s: u64,
    /// A stream that stands still for so long has failed, on either side of us, seconds.
    pub stall_s: u64,
}

impl Default for TextConfig {
    fn default() -> Self {
        Self {
            fast: "gpt-5.6-luna".to_owned(),
            best: "gpt-5.6-terra".to_owned(),
            expert: None,
            rules: TextRule::usual(),
            max_requests: 1_000,
            max_requests_of_tenant: 250,
            max_body_bytes: 16 << 20,
            max_audio_bytes: 25 << 20,
            max_batch_bytes: 200_000_000,
            batch_look_s: 300,
            max_held_bytes: 256 << 20,
            output_tokens: 4_096,
            max_s: 600,
            stall_s: 120,
        }
    }
}

/// How much a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TextTier {
    /// Routine.
    Fast,
    /// Ambiguous, or much depends on it.
    Best,
    /// The hardest.
    Expert,
}

impl TextTier {
    /// Its name, which requests may ask for as their model.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fast => "fast",
            Self::Best => "best",
            Self::Expert => "expert",
        }
    }

    /// The tier of this name.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Fast, Self::Best, Self::Expert].into_iter().find(|tier| tier.name() == name)
    }
}

/// `[[text.rules]]`: all that it names must be so.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextRule {
    /// Who answers.
    pub tier: TextTier,
    /// It reads at least so many tokens, as far as they can be told beforehand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_input_tokens: Option<u64>,
    /// It has tools, or it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tools: Option<bool>,
    /// Its answer must have the shape of a JSON Schema, or need not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<bool>,
    /// Its `reasoning.effort` is one of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub effort: Vec<String>,
    /// It is one of these tenants'.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tenants: Vec<String>,
    /// Its `metadata` has these values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
}

impl TextRule {
    fn of(tier: TextTier) -> Self {
        let (effort, tenants, metadata) = (Vec::new(), Vec::new(), BTreeMap::new());
        Self { tier, min_input_tokens: None, tools: None, schema: None, effort, tenants, metadata }
    }

    /// What callers say of their requests, and how hard they want them to be thought about.
    fn usual() -> Vec<Self> {
        let says =
            |tier, name: &str, value: &str| Self { metadata: [(name.into(), value.into())].into(), ..Self::of(tier) };
        vec![
            says(TextTier::Expert, "difficulty", "hardest"),
            says(TextTier::Best, "stakes", "high"),
            says(TextTier::Best, "ambiguous", "true"),
            Self { effort: vec!["high".to_owned(), "xhigh".to_owned()], ..Self::of(TextTier::Best) },
        ]
    }
}

impl TextConfig {
    /// The model, or the one of `[tiers]`, that stands behind a tier.
    pub fn behind(&self, tier: TextTier) -> Option<&str> {
        match tier {
            TextTier::Fast => Some(&self.fast),
            TextTier::Best => Some(&self.best),
            TextTier::Expert => self.expert.as_deref(),
        }
    }

    pub(super) fn check(&self, config: &Config, problem: &mut impl FnMut(&str, String, &str)) {
        let named =
            [("text.fast", Some(&self.fast)), ("text.best", Some(&self.best)), ("text.expert", self.expert.as_ref())];
        for (field, name) in named {
            if name.is_some_and(|name| name.is_empty() || name.len() > 128) {
                problem(
                    field,
                    format!("`{}`", name.map_or("", String::as_str)),
                    "the name of a model, or of one of [tiers]",
                );
            }
        }
        for (field, found, least, most, unit) in [
            ("max_requests", self.max_requests as u64, 1, 100_000, "requests"),
            ("max_requests_of_tenant", self.max_requests_of_tenant as u64, 1, 100_000, "requests"),
            ("max_body_bytes", self.max_body_bytes as u64, 1 << 10, 256 << 20, "bytes"),
            ("max_audio_bytes", self.max_audio_bytes as u64, 1 << 10, 1 << 30, "bytes"),
            ("max_batch_bytes", self.max_batch_bytes, 1 << 10, 1 << 30, "bytes"),
            ("batch_look_s", self.batch_look_s, 1, 86_400, "seconds"),
            ("output_tokens", self.output_tokens, 1, 1_000_000, "tokens"),
            ("max_s", self.max_s, 1, 86_400, "seconds"),
            ("stall_s", self.stall_s, 1, 3_600, "seconds"),
        ] {
            if !(least..=most).contains(&found) {
                problem(&format!("text.{field}"), found.to_string(), &format!("{least} to {most} {unit}"));
            }
        }
        let largest = self.max_audio_bytes.max(self.max_body_bytes);
        if !(largest..=64 << 30).contains(&self.max_held_bytes) {
            let allowed = format!("{largest} (the largest body) to {} bytes", 64_u64 << 30);
            problem("text.max_held_bytes", self.max_held_bytes.to_string(), &allowed);
        }
        for (at, rule) in self.rules.iter().enumerate() {
            let key = |field: &str| format!("text.rules[{at}].{field}");
            if rule.tier == TextTier::Expert && self.expert.is_none() && self.rules != TextRule::usual() {
                problem(&key("tier"), "`expert`, and no text.expert".to_owned(), "a tier that is configured");
            }
            if let Some(name) = rule.tenants.iter().find(|name| {
                !config.tenants.is_empty() && !config.tenants.contains_key(*name) && config.store.file.is_none()
            }) {
                problem(&key("tenants"), format!("`{name}`"), "the names of tenants");
            }
            if *rule == TextRule::of(rule.tier) && at + 1 < self.rules.len() {
                problem(&key("tier"), "a rule that fits everything, before others".to_owned(), "the wider rule last");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_no_sense_is_named() {
        for (source, field) in [
            ("[text]\nfast = \"\"", "text.fast"),
            ("[text]\nmax_s = 0", "text.max_s"),
            ("[text]\nmax_held_bytes = 5", "text.max_held_bytes"),
            ("[[text.rules]]\ntier = \"expert\"", "text.rules[0].tier"),
            ("[[text.rules]]\ntier = \"best\"\n[[text.rules]]\ntier = \"fast\"\ntools = true", "text.rules[0].tier"),
        ] {
            let config: Config = toml::from_str(source).unwrap();
            let mut found = Vec::new();
            config.text.check(&config, &mut |field, _, _| found.push(field.to_owned()));
            assert_eq!(found, [field], "{source}");
        }
        let config = Config::default();
        config.text.check(&config, &mut |field, found, _| panic!("{field}: {found}"));
    }
}
