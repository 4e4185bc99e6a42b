//! Everything about the simulated service that can be turned: who is let in, limits, delays, and how it answers.
//!
//! All defaults stand here. They are what was seen at the service, less the round trip to it; an empty file is valid.
use std::time::Duration;

use serde::Deserialize;

use super::{carrier::CarrierConfig, limits::Limits, text::TextConfig};
pub use crate::scripted::Delay;

/// How the simulator behaves. `[sim]` in a configuration file.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SimConfig {
    /// Seeds every chance: ids, jitter, padding. The same seed and client give the same session.
    pub seed: u64,
    /// Voice models with their limits. A name that is not here but holds `realtime` is served with the limits of
    /// `gpt-realtime`; others are refused (4000 `invalid_model`).
    pub models: Vec<Model>,
    /// Names refused with 4004 `model_not_found`, as models without access are; one that ends in `*` stands for all that
    /// begin so.
    pub retired_models: Vec<String>,
    /// Keys refused with 3000 `invalid_api_key`, besides those that begin with `sk-bad`. Every other key is good.
    pub bad_keys: Vec<String>,
    /// Keys whose account has no credit left: 1013 `insufficient_quota`.
    pub quota_keys: Vec<String>,
    /// Models that nobody has credit for: 1013 `insufficient_quota`.
    pub quota_models: Vec<String>,
    /// Longest session, ms; the service's is 60 minutes. The error text and the close reason stay the service's.
    pub session_cap_ms: u64,
    /// In which shape it speaks the protocol.
    pub shape: Shape,
    /// What `pcm16` means in the beta's shape, Hz.
    pub pcm16_rate: u32,
    /// Time between PINGs, ms; 0 sends none.
    pub ping_ms: u64,
    /// A client that answers no PING for so long is cut off, ms; 0: never.
    pub pong_timeout_ms: u64,
    /// Most base64 characters in one append: 15 MiB of audio.
    pub max_append_chars: usize,
    /// Most audio in the input buffer, seconds.
    pub max_buffer_s: u64,
    /// Audio of past turns kept for `conversation.item.retrieve`, seconds a session; the oldest is forgotten first, while
    /// its length, its tokens and its transcript stay.
    pub keep_audio_s: u64,
    /// Most items in a conversation.
    pub max_items: usize,
    /// Sessions at once; more are refused with HTTP 503.
    pub max_sessions: usize,
    /// Instructions of a session that sets none.
    pub instructions: String,
    /// How long things take.
    pub delays: Delays,
    /// How it answers.
    pub reply: Reply,
    /// What each account may use, over all its sessions: the first entry that fits the model. None: as much as it likes.
    pub limits: Vec<Limits>,
    /// What `rate_limits.updated` tells where there are no limits.
    pub rate_limits: RateLimits,
    /// Silence that ends a turn under `semantic_vad`, by eagerness.
    pub semantic_silence: SemanticSilence,
    /// Tokens of one block of the prompt cache: cached tokens are a multiple of it.
    pub cache_block_tokens: u64,
    /// Keep all received audio, and all items of conversations, in the statistics.
    pub record_audio: bool,
    /// Shortest life of a client secret that may be asked for, seconds.
    pub secret_min_s: u64,
    /// How far the service's clock is ahead of this machine's, seconds: shown in `Date` and `expires_at`.
    pub clock_offset_s: i64,
    /// Who joins a call by its id hears an answer begin after so long, as if its caller had spoken, ms; 0: nobody speaks.
    pub caller_speaks_ms: u64,
    /// SDP answers break off after their first half, and never end.
    pub stall_answers: bool,
    /// Telephones and their providers.
    pub carrier: CarrierConfig,
    /// Recordings and text: transcriptions, responses, files and batches over REST.
    pub text: TextConfig,
}

impl Default for SimConfig {
    fn default() -> Self {
        Self {
            seed: 1,
            models: Model::known(),
            retired_models: vec!["gpt-4o-realtime-preview*".into(), "gpt-4o-mini-realtime-preview*".into()],
            bad_keys: Vec::new(),
            quota_keys: vec!["sk-no-credit".into()],
            quota_models: Vec::new(),
            session_cap_ms: 3_600_000,
            shape: Shape::Ga,
            pcm16_rate: 24_000,
            ping_ms: 20_260,
            pong_timeout_ms: 60_000,
            max_append_chars: 20_971_520,
            max_buffer_s: 1_800,
            keep_audio_s: 300,
            max_items: 10_000,
            max_sessions: 10_000,
            instructions:
                "You are the simulated voice of voxrelay. You say back what you hear, so that people can test \
                           their clients without a model."
                    .into(),
            delays: Delays::default(),
            reply: Reply::default(),
            limits: Vec::new(),
            rate_limits: RateLimits::default(),
            semantic_silence: SemanticSilence::default(),
            cache_block_tokens: 64,
            record_audio: false,
            secret_min_s: 10,
            clock_offset_s: 0,
            caller_speaks_ms: 0,
            stall_answers: false,
            carrier: CarrierConfig::default(),
            text: TextConfig::default(),
        }
    }
}

impl SimConfig {
    /// A configuration without any waiting: for tests that want answers, not realism.
    pub fn instant() -> Self {
        Self { delays: Delays::none(), text: TextConfig::instant(), ..Self::default() }
    }

    /// The limits of a model that is served; `None` for one that is not.
    pub fn model(&self, name: &str) -> Option<Model> {
        let found = self.models.iter().find(|m| m.name == name).cloned();
        found.or_else(|| name.contains("realtime").then(|| Model::new(name, 32_768, 4_096, false)))
    }

    /// Whether a model's name is on the list of those that are gone.
    pub fn retired(&self, name: &str) -> bool {
        self.retired_models.iter().any(|pattern| match pattern.strip_suffix('*') {
            Some(start) => name.starts_with(start),
            None => name == pattern,
        })
    }

    /// The session cap.
    pub fn session_cap(&self) -> Duration {
        Duration::from_millis(self.session_cap_ms)
    }
}

/// The protocol's present shape, or its former one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Shape {
    /// Generally available: the beta is refused, as the live service refuses it.
    #[default]
    Ga,
    /// As compatible servers kept it.
    Beta,
}

impl std::str::FromStr for Shape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "ga" => Ok(Self::Ga),
            "beta" => Ok(Self::Beta),
            _ => Err(format!("found `{text}`; allowed: ga, beta")),
        }
    }
}

/// A voice model's limits.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// Its name.
    pub name: String,
    /// Tokens of context, the reply included.
    pub context_tokens: u64,
    /// Most tokens of one reply.
    pub max_output_tokens: u64,
    /// Whether sessions have `reasoning`.
    #[serde(default)]
    pub reasoning: bool,
}

impl Model {
    fn new(name: &str, context_tokens: u64, max_output_tokens: u64, reasoning: bool) -> Self {
        Self { name: name.to_owned(), context_tokens, max_output_tokens, reasoning }
    }

    /// A model that nobody has heard of yet.
    pub(super) fn named(name: &str) -> Self {
        Self::new(name, 32_768, 4_096, false)
    }

    /// What a session has that speaks with none.
    pub(super) fn none() -> Self {
        Self::new("", 0, 0, false)
    }

    /// The voice models in use in November 2026 (model pages of the service, read 2026-11-21).
    fn known() -> Vec<Self> {
        let two = ["gpt-realtime-2.1", "gpt-realtime-2.1-mini", "gpt-realtime-2"];
        let one = ["gpt-realtime-1.5", "gpt-realtime", "gpt-realtime-mini"];
        let two = two.iter().map(|name| Self::new(name, 128_000, 32_000, true));
        two.chain(one.iter().map(|name| Self::new(name, 32_768, 4_096, false))).collect()
    }
}

/// How long the service takes for each thing. Captures of the live service, less their round trip of 260 ms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Delays {
    /// Before the 101. 0.84-2.1 s was seen, most of it the way there.
    pub connect: Delay,
    /// From the 101 to `session.created`.
    pub created: Delay,
    /// From `session.update` to `session.updated`.
    pub updated: Delay,
    /// From the end of a turn to `input_audio_buffer.committed`.
    pub committed: Delay,
    /// From the request to `response.created`.
    pub response_created: Delay,
    /// From `response.created` to the first delta.
    pub first_delta: Delay,
    /// From `response.created` to the reply's item; never later than the first delta.
    pub item_added: Delay,
    /// From `committed` to the first words of the caller's transcript.
    pub transcription: Delay,
    /// From `response.done` to `rate_limits.updated`.
    pub rate_limits: Delay,
    /// From a REST request to its answer.
    pub rest: Delay,
}

impl Default for Delays {
    fn default() -> Self {
        Self {
            connect: Delay::ms(0),
            created: Delay::ms(4),
            updated: Delay::ms(1),
            committed: Delay::ms(1),
            response_created: Delay::ms(20),
            first_delta: Delay { ms: 180, jitter_ms: 40 },
            item_added: Delay::ms(100),
            transcription: Delay { ms: 900, jitter_ms: 60 },
            rate_limits: Delay::ms(43),
            rest: Delay::ms(2),
        }
    }
}

impl Delays {
    /// Everything at once.
    pub fn none() -> Self {
        let none = Delay::ms(0);
        Self {
            connect: none,
            created: none,
            updated: none,
            committed: none,
            response_created: none,
            first_delta: none,
            item_added: none,
            transcription: none,
            rate_limits: none,
            rest: none,
        }
    }
}

/// What the reply's audio is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReplyAudio {
    /// What the caller said, the bundled voice where there is nothing to say back.
    Echo,
    /// Always the bundled voice.
    Voice,
}

/// How it answers.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Reply {
    /// What is said.
    pub audio: ReplyAudio,
    /// Seconds of audio generated in one second; 0 sends the whole reply at once.
    pub speed: f64,
    /// Audio in one delta, ms.
    pub delta_ms: u64,
    /// Time between the words of a text reply, of a transcript or of a function call's arguments, ms.
    pub word_ms: u64,
    /// Audio items in one reply, 1 to 8; the newest models send two.
    pub items: usize,
    /// With several items: how long after the next item's first delta an item's `.done` events come, ms.
    pub late_done_ms: u64,
    /// The service believes each item to be so much shorter than the audio it sent, ms; 85 was seen. Truncation checks
    /// use the shorter length.
    pub shortfall_ms: u64,
    /// Function called in every reply to something that the caller said, if the session has it; `*`: the first one. Its arguments may
    /// follow, such as `transfer {"to": "support"}`.
    pub call_tool: Option<String>,
    /// A reply that calls a function says something before, as models do that say goodbye and hang up.
    pub speaks_with_calls: bool,
}

impl Default for Reply {
    fn default() -> Self {
        Self {
            audio: ReplyAudio::Echo,
            speed: 4.0,
            delta_ms: 200,
            word_ms: 20,
            items: 1,
            late_done_ms: 0,
            shortfall_ms: 0,
            call_tool: None,
            speaks_with_calls: false,
        }
    }
}

/// What `rate_limits.updated` tells after each reply. Nothing of it is enforced: that is what [`SimConfig::limits`] is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RateLimits {
    /// Tokens a minute; 0 sends no such entry.
    pub tokens: u64,
    /// Requests a day; 0 sends no such entry, as the service does today.
    pub requests: u64,
    /// Requests a minute over REST, as its headers show them.
    pub rest_requests: u64,
}

impl Default for RateLimits {
    fn default() -> Self {
        Self { tokens: 15_000_000, requests: 0, rest_requests: 5_000 }
    }
}

/// Silence after which `semantic_vad` takes a turn for complete, ms. There is no semantics here: the defaults are the
/// service's longest waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SemanticSilence {
    /// Eagerness `low`.
    pub low_ms: u64,
    /// Eagerness `medium` and `auto`.
    pub medium_ms: u64,
    /// Eagerness `high`.
    pub high_ms: u64,
}

impl Default for SemanticSilence {
    fn default() -> Self {
        Self { low_ms: 8_000, medium_ms: 4_000, high_ms: 2_000 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_file_is_the_default() {
        assert_eq!(toml::from_str::<SimConfig>("").unwrap(), SimConfig::default());
    }

    #[test]
    fn delays_are_a_number_or_a_table() {
        let config: SimConfig =
            toml::from_str("[delays]\ncreated = 7\nupdated = { ms = 260, jitter_ms = 40 }\n").unwrap();
        assert_eq!(config.delays.created, Delay::ms(7));
        assert_eq!(config.delays.updated, Delay { ms: 260, jitter_ms: 40 });
        assert_eq!(config.delays.committed, Delays::default().committed);
    }

    #[test]
    fn mistakes_are_named_with_their_line() {
        for (text, want) in [
            ("sed = 1", "unknown field `sed`"),
            ("seed = 1\n[delays]\ncreated = -1", "line 3"),
            ("[delays]\ncreated = { ms = 1, jitter = 2 }", "unknown field `jitter`, expected `ms` or `jitter_ms`"),
            ("[reply]\naudio = \"parrot\"", "expected `echo` or `voice`"),
        ] {
            let error = toml::from_str::<SimConfig>(text).unwrap_err().to_string();
            assert!(error.contains(want), "{text}: {error}");
        }
    }

    #[test]
    fn models_are_known_guessed_or_refused() {
        let config = SimConfig::default();
        assert_eq!(config.model("gpt-realtime-2.1").map(|m| m.context_tokens), Some(128_000));
        assert_eq!(config.model("my-realtime-finetune").map(|m| m.max_output_tokens), Some(4_096));
        assert_eq!(config.model("gpt-4o-transcribe"), None);
        assert!(config.retired("gpt-4o-realtime-preview-2024-12-17"));
        assert!(!config.retired("gpt-realtime"));
    }
}
