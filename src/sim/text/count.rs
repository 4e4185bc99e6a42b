//! What the addresses for recordings and text have done: the bill that a client's story is compared with.
use std::collections::BTreeMap;

use serde::Serialize;

/// Most entries of a table: a soak test must not fill the memory.
const MAX_KEPT: usize = 100_000;

/// Counters since the start. A thing is counted as paid when its answer begins to go out: what is given up before costs
/// nothing, what is broken off after does.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct TextStats {
    /// Requests by address (`transcriptions`, `responses`, `files`, `batches`), and lines of batches (`batch_lines`); refused
    /// ones too.
    pub requests: BTreeMap<String, u64>,
    /// Those of them that were answered with what they asked for.
    pub answered: BTreeMap<String, u64>,
    /// Refusals by HTTP status.
    pub refused: BTreeMap<u16, u64>,
    /// Audio transcribed, ms.
    pub heard_ms: u64,
    /// The part of it that is billed by its length, ms.
    pub billed_ms: u64,
    /// Tokens of the audio that is billed by tokens.
    pub heard_tokens: u64,
    /// Tokens of the transcripts of it.
    pub written_tokens: u64,
    /// Tokens that `/responses` has read; what was cached is part of it.
    pub input_tokens: u64,
    /// Tokens of it that were cached.
    pub cached_tokens: u64,
    /// Tokens that `/responses` has written, reasoning included.
    pub output_tokens: u64,
    /// Tokens that batches have read, at a price of their own.
    pub batch_input_tokens: u64,
    /// Tokens that batches have written.
    pub batch_output_tokens: u64,
    /// Files that are there: uploaded, or written by batches, and not deleted.
    pub files: u64,
    /// How often each `Idempotency-Key` came. The service does not answer from memory: a repeated request is paid again.
    pub idempotency_keys: BTreeMap<String, u64>,
    /// How often each content was paid, by a hash of the request without its `stream`.
    pub paid: BTreeMap<u64, u64>,
}

impl TextStats {
    /// Payments for what was paid before.
    pub fn paid_again(&self) -> u64 {
        self.paid.values().map(|times| times.saturating_sub(1)).sum()
    }

    /// A request came; its number at this address, from 1.
    pub(super) fn came(&mut self, address: &str, key: Option<&str>) -> u64 {
        if let Some(key) =
            key.filter(|key| self.idempotency_keys.len() < MAX_KEPT || self.idempotency_keys.contains_key(*key))
        {
            *self.idempotency_keys.entry(key.to_owned()).or_default() += 1;
        }
        let number = self.requests.entry(address.to_owned()).or_default();
        *number += 1;
        *number
    }

    /// It ended so.
    pub(super) fn ended(&mut self, address: &str, status: u16) {
        match status {
            200..=299 => *self.answered.entry(address.to_owned()).or_default() += 1,
            _ => *self.refused.entry(status).or_default() += 1,
        }
    }

    /// This content costs.
    pub(super) fn pays(&mut self, content: u64) {
        if self.paid.len() < MAX_KEPT || self.paid.contains_key(&content) {
            *self.paid.entry(content).or_default() += 1;
        }
    }
}
