//! How the addresses for recordings and text behave. All defaults stand here.
use std::time::Duration;

use serde::Deserialize;

use super::super::config::Delay;

/// `[text]` in the simulator's configuration file.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TextConfig {
    /// From a recording's upload to its transcript, whatever its length.
    pub transcription: Delay,
    /// And for each second of audio so many seconds more.
    pub transcription_share: f64,
    /// From a request at `/responses` to its first words.
    pub response: Delay,
    /// Time between the words of an answer, ms; an answer that is not streamed takes as long.
    pub word_ms: u64,
    /// Models that answer at `/responses`; a name that ends in `*` stands for all that begin so.
    pub models: Vec<String>,
    /// Tokens of context, the answer included.
    pub context_tokens: u64,
    /// Largest file to transcribe, bytes.
    pub max_file_bytes: usize,
    /// Longest recording that the `gpt-4o` transcription models take, seconds.
    pub max_audio_s: u64,
    /// How long a batch is validated, ms.
    pub batch_validating_ms: u64,
    /// How long a batch's lines take together, ms.
    pub batch_ms: u64,
    /// How long a batch's files are written, ms.
    pub batch_finalizing_ms: u64,
    /// When a batch that is not done expires, ms; the service's window is a day.
    pub batch_expires_ms: u64,
    /// Most tokens of an account's unfinished batches (the queue's own limit); 0: no limit.
    pub batch_tokens: u64,
}

impl Default for TextConfig {
    fn default() -> Self {
        Self {
            transcription: Delay::ms(200),
            transcription_share: 0.02,
            response: Delay { ms: 300, jitter_ms: 60 },
            word_ms: 20,
            models: ["gpt-4*", "gpt-5*", "gpt-6*", "o3*", "o4*"].map(str::to_owned).into(),
            context_tokens: 128_000,
            max_file_bytes: 25 << 20,
            max_audio_s: 1_400,
            batch_validating_ms: 200,
            batch_ms: 1_000,
            batch_finalizing_ms: 200,
            batch_expires_ms: 86_400_000,
            batch_tokens: 0,
        }
    }
}

impl TextConfig {
    /// Everything at once, batches too.
    pub fn instant() -> Self {
        Self {
            transcription: Delay::ms(0),
            transcription_share: 0.0,
            response: Delay::ms(0),
            word_ms: 0,
            batch_validating_ms: 0,
            batch_ms: 0,
            batch_finalizing_ms: 0,
            ..Self::default()
        }
    }

    /// Whether a model answers at `/responses`.
    pub(super) fn answers(&self, model: &str) -> bool {
        // Their names begin like those of models that only listen or speak.
        let other = ["transcribe", "realtime", "tts", "audio"].iter().any(|kind| model.contains(kind));
        !other
            && self
                .models
                .iter()
                .any(|known| known.strip_suffix('*').map_or(known == model, |start| model.starts_with(start)))
    }

    /// What a recording's length adds to the time that its transcription takes.
    pub(super) fn listening(&self, audio: Duration) -> Duration {
        audio.mul_f64(self.transcription_share.clamp(0.0, 1_000.0))
    }
}
