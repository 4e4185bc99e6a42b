//! What the simulator has seen and done: the truth that tests compare a client's story with.
use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use serde::Serialize;
use tokio::time::Instant;

use super::{
    text::TextStats,
    tokens::{InputUsage, Tokens},
};
use crate::audio::Format;

/// Most entries of a log: a soak test must not fill the memory.
const MAX_LOG: usize = 100_000;

/// Tokens of all `response.done`, by kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct UsageStats {
    /// Text in; what was cached is part of it.
    pub text: u64,
    /// Audio in; what was cached is part of it.
    pub audio: u64,
    /// Text in that was cached.
    pub cached_text: u64,
    /// Audio in that was cached.
    pub cached_audio: u64,
    /// Text out.
    pub output_text: u64,
    /// Audio out.
    pub output_audio: u64,
}

/// Counters since the start.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct SimStats {
    /// Connection attempts to `/v1/realtime`, refused ones too.
    pub attempts: u64,
    /// Attempts refused before the 101, by HTTP status.
    pub refused: BTreeMap<u16, u64>,
    /// Sessions that got a `session.created`.
    pub sessions_opened: u64,
    /// Sockets that are open now.
    pub sessions_now: u64,
    /// Closes by the client, by code; 1006: it went without a goodbye.
    pub closed_by_client: BTreeMap<u16, u64>,
    /// Closes of ours, by code; 1006: cut by a fault.
    pub closed_by_us: BTreeMap<u16, u64>,
    /// Client events of all kinds.
    pub client_events: u64,
    /// `input_audio_buffer.append` events.
    pub appends: u64,
    /// Audio bytes in them.
    pub append_bytes: u64,
    /// Turns committed, by the client or the detector.
    pub commits: u64,
    /// Responses created.
    pub responses: u64,
    /// `response.create` events; other responses answer turns that were found.
    pub responses_asked: u64,
    /// Responses by their final status.
    pub responses_by_status: BTreeMap<String, u64>,
    /// Cancels that found a response.
    pub cancels: u64,
    /// Truncations that were accepted.
    pub truncates: Vec<Truncation>,
    /// Function calls made.
    pub function_calls: u64,
    /// Audio deltas sent, and their bytes.
    pub deltas: u64,
    /// Audio bytes sent.
    pub delta_bytes: u64,
    /// `error` events by code (`null` where there is none).
    pub errors: BTreeMap<String, u64>,
    /// Faults that fired, by kind.
    pub faults: BTreeMap<String, u64>,
    /// PINGs sent.
    pub pings: u64,
    /// PONGs received.
    pub pongs: u64,
    /// Tokens of all `response.done`.
    pub tokens: u64,
    /// The same by kind.
    pub usage: UsageStats,
    /// Replies and sessions that the account's limits refused, by limit.
    pub limited: BTreeMap<String, u64>,
    /// Requests for a client secret, refused ones too.
    pub mint_attempts: u64,
    /// Client secrets made.
    pub mints: u64,
    /// REST requests refused, by HTTP status.
    pub rest_refused: BTreeMap<u16, u64>,
    /// WebRTC calls begun.
    pub calls: u64,
    /// What was done to calls: `hangup`, `refer`, `accept`, `reject`.
    pub call_acts: BTreeMap<String, u64>,
    /// Sockets that joined a call by its id.
    pub sidebands: u64,
    /// Every `OpenAI-Safety-Identifier` that came, in this order.
    pub safety_ids: Vec<String>,
    /// Sessions that were opened with a client secret.
    pub sessions_by_secret: u64,
    /// Recordings and text over REST.
    pub text: TextStats,
    /// Received audio, when `record_audio` is set.
    #[serde(skip)]
    pub recorded: Vec<Recorded>,
    /// Items of conversations as they were complete, with the number of their session, when `record_audio` is set.
    #[serde(skip)]
    pub items: Vec<(u64, serde_json::Value)>,
}

/// One accepted truncation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Truncation {
    /// Number of the session, from 1.
    pub session: u64,
    /// The item.
    pub item_id: String,
    /// Where it was cut, ms.
    pub audio_end_ms: u64,
    /// How long it was before, ms.
    pub had_ms: u64,
}

/// Audio that one session has received in one format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// Number of the session, from 1.
    pub session: u64,
    /// Its format.
    pub format: Format,
    /// All of it.
    pub audio: Vec<u8>,
    /// When each append came, and how long `audio` was with it, bytes.
    pub came: Vec<(Instant, usize)>,
}

/// The counters of a running simulator.
#[derive(Debug, Default)]
pub(super) struct Stats(Mutex<SimStats>);

impl Stats {
    /// The counters, to be changed.
    pub(super) fn lock(&self) -> MutexGuard<'_, SimStats> {
        // Counters are whole at any time: a panic elsewhere does not spoil them.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The counters as they are now.
    pub(super) fn snapshot(&self) -> SimStats {
        self.lock().clone()
    }

    pub(super) fn fault(&self, kind: &str) {
        *self.lock().faults.entry(kind.to_owned()).or_default() += 1;
    }

    pub(super) fn error(&self, code: Option<&str>) {
        *self.lock().errors.entry(code.unwrap_or("null").to_owned()).or_default() += 1;
    }

    pub(super) fn append(&self, session: u64, format: Format, audio: &[u8], record: bool) {
        let mut stats = self.lock();
        stats.appends += 1;
        stats.append_bytes += audio.len() as u64;
        if !record {
            return;
        }
        let now = Instant::now();
        match stats.recorded.iter_mut().rev().find(|r| r.session == session) {
            Some(recorded) if recorded.format == format => {
                recorded.audio.extend_from_slice(audio);
                recorded.came.push((now, recorded.audio.len()));
            }
            _ => {
                let came = vec![(now, audio.len())];
                stats.recorded.push(Recorded { session, format, audio: audio.to_vec(), came });
            }
        }
    }

    pub(super) fn item(&self, session: u64, item: &serde_json::Value) {
        self.lock().items.push((session, item.clone()));
    }

    pub(super) fn truncation(&self, truncation: Truncation) {
        let mut stats = self.lock();
        if stats.truncates.len() < MAX_LOG {
            stats.truncates.push(truncation);
        }
    }

    pub(super) fn response_done(&self, status: &str, input: InputUsage, output: Tokens) {
        let mut stats = self.lock();
        *stats.responses_by_status.entry(status.to_owned()).or_default() += 1;
        stats.tokens += input.all.total() + output.total();
        let usage = &mut stats.usage;
        usage.text += input.all.text;
        usage.audio += input.all.audio;
        usage.cached_text += input.cached.text;
        usage.cached_audio += input.cached.audio;
        usage.output_text += output.text;
        usage.output_audio += output.audio;
    }

    pub(super) fn limited(&self, limit: &str) {
        *self.lock().limited.entry(limit.to_owned()).or_default() += 1;
    }

    pub(super) fn delta(&self, bytes: usize) {
        let mut stats = self.lock();
        stats.deltas += 1;
        stats.delta_bytes += bytes as u64;
    }

    /// A socket is gone.
    pub(super) fn closed(&self, by_client: bool, code: u16) {
        let mut stats = self.lock();
        let closes = if by_client { &mut stats.closed_by_client } else { &mut stats.closed_by_us };
        *closes.entry(code).or_default() += 1;
    }
}
