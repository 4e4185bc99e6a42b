//! Occurrences worth a metric and perhaps a log line. Labels hold only words of ours; audio, transcripts and keys are never
//! part of a fact.
use std::{borrow::Cow, time::Duration};

use metrics::{counter, gauge, histogram};
use serde::{Deserialize, Serialize};

use crate::client::wire::{ReplyStatus, Usage};

/// Something happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Fact {
    /// A call began.
    CallStarted {
        /// At which door.
        door: Cow<'static, str>,
    },
    /// A call ended, with this close code.
    CallEnded {
        /// The close code.
        close: u16,
        /// How long it was.
        length: Duration,
        /// From the client, bytes.
        bytes_in: u64,
        /// To the client, bytes.
        bytes_out: u64,
    },
    /// A client was refused at the door, or one of its requests was.
    Refused {
        /// `error.code`
        code: Cow<'static, str>,
    },
    /// A session came up.
    SessionUp {
        /// After so long.
        after: Duration,
    },
    /// A service has failed so often in a row that it is left alone.
    ServiceSilent,
    /// It answers again.
    ServiceAnswers,
    /// An answer has to wait for the account's limits.
    TurnWaits {
        /// The limit.
        limit: Cow<'static, str>,
        /// In numbers.
        reason: String,
    },
    /// It may be asked for, after so long.
    TurnAdmitted {
        /// Zero where it did not have to wait.
        waited: Duration,
    },
    /// It will not be asked for.
    TurnRefused {
        /// The limit.
        limit: Cow<'static, str>,
        /// In numbers.
        reason: String,
    },
    /// A route of a tier has failed so often in a row that it is left alone.
    RouteSilent {
        /// The account and the model.
        route: String,
    },
    /// It works again.
    RouteAnswers {
        /// The account and the model.
        route: String,
    },
    /// A tier's candidate was judged.
    CanaryJudged {
        /// The tier.
        tier: String,
        /// `promoted` or `rolled_back`.
        standing: Cow<'static, str>,
        /// What it was rolled back for.
        by: Option<Cow<'static, str>>,
    },
    /// A reply is over.
    ReplyEnded {
        /// How it ended.
        status: ReplyStatus,
        /// From the end of the caller's turn to the first audio.
        answered_after: Option<Duration>,
        /// Of it, in the relay itself.
        relay_added: Option<Duration>,
    },
    /// The service has counted a reply's tokens.
    Tokens {
        /// Its count.
        usage: Usage,
    },
    /// Rows of the usage ledger that were written say what a model has cost.
    Spent {
        /// Which; one of a bounded number.
        model: String,
        /// So many millionths of a US dollar more.
        microusd: u64,
        /// Rows of which nobody knows the cost.
        unpriced: u64,
    },
    /// Rows of the usage ledger were written.
    UsageWritten {
        /// So many.
        rows: usize,
        /// So many more have come meanwhile.
        waiting: usize,
    },
    /// They could not be written, and are tried again.
    UsageUnwritten {
        /// So many wait.
        waiting: usize,
    },
    /// There is no room left to keep one until it can be written.
    UsageLost {
        /// Since rows could be written last.
        first: bool,
    },
    /// A client secret was made.
    SecretMade {
        /// After so long.
        after: Duration,
    },
    /// None could be made.
    SecretFailed {
        /// `error.code`
        code: Cow<'static, str>,
    },
    /// A client secret was used.
    SecretUsed {
        /// So long after it was made.
        age: Duration,
        /// After so long a wait for it.
        waited: Duration,
    },
    /// A tool that the relay runs itself has come to its end.
    ToolRan {
        /// Its name; one of a bounded number.
        tool: String,
        /// `ok`, or what went wrong.
        outcome: Cow<'static, str>,
        /// How long it took, all tries together.
        took: Duration,
    },
    /// The answer to a request for text has begun to come.
    TextBegan {
        /// At which door.
        door: Cow<'static, str>,
        /// So long after it was sent.
        after: Duration,
    },
    /// It is over.
    TextEnded {
        /// At which door.
        door: Cow<'static, str>,
        /// How it ended.
        status: String,
        /// So long after it was sent.
        took: Duration,
    },
    /// The service said something that we do not know.
    UnknownEvent,
    /// The service complained about something that had already happened.
    SwallowedError,
    /// Speech into a reply was none.
    FalseStart,
    /// The service complained.
    ServiceError,
}

impl Fact {
    /// Counts it, and logs it where a person may want to know.
    pub fn record(&self) {
        match self {
            Self::CallStarted { door } => {
                counter!("voxrelay_calls_total", "door" => door.clone()).increment(1);
                gauge!("voxrelay_calls_active").increment(1);
                tracing::info!(%door, "call started");
            }
            Self::CallEnded { close, length, bytes_in, bytes_out } => {
                gauge!("voxrelay_calls_active").decrement(1);
                counter!("voxrelay_calls_ended_total", "close" => close.to_string()).increment(1);
                counter!("voxrelay_client_bytes_total", "direction" => "in").increment(*bytes_in);
                counter!("voxrelay_client_bytes_total", "direction" => "out").increment(*bytes_out);
                tracing::info!(close, seconds = length.as_secs_f64(), bytes_in, bytes_out, "call ended");
            }
            Self::Refused { code } => {
                counter!("voxrelay_errors_total", "code" => code.clone()).increment(1);
                tracing::debug!(%code, "request refused");
            }
            Self::ServiceSilent => {
                gauge!("voxrelay_services_open").increment(1);
                counter!("voxrelay_breaker_opened_total").increment(1);
                tracing::warn!("the service has failed too often in a row: it is tried once a second until it answers");
            }
            Self::ServiceAnswers => {
                gauge!("voxrelay_services_open").decrement(1);
                tracing::info!("the service answers again");
            }
            Self::RouteSilent { route } => {
                gauge!("voxrelay_routes_open").increment(1);
                counter!("voxrelay_route_opened_total").increment(1);
                tracing::warn!(%route, "a route has failed too often in a row: it is tried once a second until it works");
            }
            Self::RouteAnswers { route } => {
                gauge!("voxrelay_routes_open").decrement(1);
                tracing::info!(%route, "a route works again");
            }
            Self::CanaryJudged { tier, standing, by } => {
                counter!("voxrelay_canaries_judged_total", "standing" => standing.clone()).increment(1);
                tracing::warn!(%tier, %standing, by = by.as_deref().unwrap_or_default(), "a canary was judged");
            }
            Self::SessionUp { after } => {
                histogram!("voxrelay_session_up_seconds").record(after.as_secs_f64());
                tracing::info!(seconds = after.as_secs_f64(), "session up");
            }
            Self::TurnWaits { limit, reason } => {
                counter!("voxrelay_turns_delayed_total", "limit" => limit.clone()).increment(1);
                tracing::info!(%reason, "an answer waits for the account's limits");
            }
            Self::TurnAdmitted { waited } => {
                histogram!("voxrelay_turn_wait_seconds").record(waited.as_secs_f64());
            }
            Self::TurnRefused { limit, reason } => {
                counter!("voxrelay_turns_refused_total", "limit" => limit.clone()).increment(1);
                tracing::warn!(%reason, "an answer was refused");
            }
            Self::ReplyEnded { status, answered_after, relay_added } => {
                reply_ended(*status, *answered_after, *relay_added);
            }
            Self::Tokens { usage } => tokens_used(usage),
            Self::Spent { model, microusd, unpriced } => {
                counter!("voxrelay_cost_microusd_total", "model" => model.clone()).increment(*microusd);
                counter!("voxrelay_cost_unknown_total", "model" => model.clone()).increment(*unpriced);
            }
            Self::UsageWritten { rows, waiting } => {
                counter!("voxrelay_ledger_rows_total").increment(*rows as u64);
                waits(*waiting);
            }
            Self::UsageUnwritten { waiting } => {
                counter!("voxrelay_ledger_failures_total").increment(1);
                waits(*waiting);
            }
            Self::UsageLost { first } => {
                counter!("voxrelay_ledger_lost_total").increment(1);
                if *first {
                    tracing::error!("usage is lost: it cannot be written, and there is no room left to keep it");
                }
            }
            Self::SecretMade { after } => {
                counter!("voxrelay_secrets_made_total").increment(1);
                tracing::info!(seconds = after.as_secs_f64(), "client secret made");
            }
            Self::SecretFailed { code } => {
                counter!("voxrelay_secrets_failed_total", "code" => code.clone()).increment(1);
            }
            Self::SecretUsed { age, waited } => {
                let how = if waited.is_zero() { "ready" } else { "waited" };
                counter!("voxrelay_secrets_used_total", "how" => how).increment(1);
                histogram!("voxrelay_secret_age_seconds").record(age.as_secs_f64());
                histogram!("voxrelay_secret_wait_seconds").record(waited.as_secs_f64());
            }
            Self::ToolRan { tool, outcome, took } => {
                counter!("voxrelay_tools_total", "tool" => tool.clone(), "outcome" => outcome.clone()).increment(1);
                histogram!("voxrelay_tool_seconds").record(took.as_secs_f64());
                tracing::info!(tool, %outcome, seconds = took.as_secs_f64(), "a tool was run");
            }
            Self::TextBegan { door, after } => {
                histogram!("voxrelay_text_first_seconds", "door" => door.clone()).record(after.as_secs_f64());
            }
            Self::TextEnded { door, status, took } => {
                let known =
                    ["completed", "incomplete", "failed", "cancelled"].into_iter().find(|known| known == status);
                let status = known.unwrap_or("other");
                counter!("voxrelay_texts_total", "door" => door.clone(), "status" => status).increment(1);
                histogram!("voxrelay_text_seconds", "door" => door.clone()).record(took.as_secs_f64());
                tracing::debug!(%door, status, seconds = took.as_secs_f64(), "a request for text is over");
            }
            Self::UnknownEvent => {
                counter!("voxrelay_unknown_events_total").increment(1);
                tracing::debug!("unknown event skipped");
            }
            Self::FalseStart => counter!("voxrelay_false_starts_total").increment(1),
            Self::SwallowedError => counter!("voxrelay_swallowed_errors_total").increment(1),
            Self::ServiceError => {
                counter!("voxrelay_service_errors_total").increment(1);
                tracing::warn!("the service refused a request");
            }
        }
    }
}

fn reply_ended(status: ReplyStatus, answered_after: Option<Duration>, relay_added: Option<Duration>) {
    let status = match status {
        ReplyStatus::Completed => "completed",
        ReplyStatus::Interrupted => "interrupted",
        ReplyStatus::Incomplete => "incomplete",
        ReplyStatus::Failed => "failed",
    };
    counter!("voxrelay_replies_total", "status" => status).increment(1);
    if let Some(after) = answered_after {
        histogram!("voxrelay_first_audio_seconds").record(after.as_secs_f64());
    }
    if let Some(added) = relay_added {
        histogram!("voxrelay_relay_added_seconds").record(added.as_secs_f64());
    }
    tracing::info!(status, "reply ended");
}

fn tokens_used(usage: &Usage) {
    let of = |direction: &'static str, kind: &'static str, count: u64| {
        counter!("voxrelay_tokens_total", "direction" => direction, "kind" => kind).increment(count);
    };
    of("in", "text", usage.input_text_tokens);
    of("in", "audio", usage.input_audio_tokens);
    of("out", "text", usage.output_text_tokens);
    of("out", "audio", usage.output_audio_tokens);
    counter!("voxrelay_cached_tokens_total").increment(usage.cached_tokens);
    tracing::info!(input = usage.input_tokens, output = usage.output_tokens, "tokens used");
}

/// Rows of the ledger that are not written yet.
fn waits(rows: usize) {
    gauge!("voxrelay_ledger_waiting").set(u32::try_from(rows).unwrap_or(u32::MAX));
}
