//! Whoever runs a tool: what it gets, and what it gives.
use std::{fmt::Debug, time::Duration};

use futures_util::future::BoxFuture;
use serde_json::json;
use tokio::time::Instant;

/// A tool call.
#[derive(Debug)]
pub struct Job {
    /// Names it within its call.
    pub call_id: String,
    /// JSON in a string, as the model wrote it.
    pub arguments: String,
    /// The last turns of the conversation, a line each; empty for whoever asks for none.
    pub dialogue: String,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ran {
    /// For metrics: `ok`, or what went wrong in a word.
    pub outcome: &'static str,
    /// For the model.
    pub output: String,
}

impl Ran {
    /// There is no result.
    pub fn failed(outcome: &'static str, what: &str) -> Self {
        Self { outcome, output: failure(what) }
    }

    /// There was none in time.
    pub fn late(name: &str) -> Self {
        Self::failed("timeout", &format!("{name} gave no answer in time"))
    }
}

/// Runs one of an agent's tools, for one call.
pub trait Runner: Debug + Send + Sync {
    /// How long it may take, its wait for others of the call included.
    fn timeout(&self) -> Duration;

    /// So many turns of the conversation are told to it.
    fn turns(&self) -> usize {
        0
    }

    /// Has a result by `end`, good or bad. Dropped, it is given up.
    fn run(&self, job: Job, end: Instant) -> BoxFuture<'_, Ran>;
}

/// What the model is told in place of a result.
pub(super) fn failure(what: &str) -> String {
    json!({"error": what}).to_string()
}
