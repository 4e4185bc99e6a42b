//! How much may be sent to the service now, and who is next.
//!
//! A [`Pool`] is one account at the service. Requests [`Pool::ask`] it before they go and tell it afterwards what they used;
//! what the service says about its limits is [`Pool::heard`]. It stands before the wiring that waits and sends, and decides
//! only: the time is passed in, nothing here sleeps, and nothing is read from a socket.
//!
//! **Words.** A `dimension` is one thing that is limited. `use` is the part of a limit that we take (`use_percent`). A
//! `reservation` is what a request may use at most; settling it gives the rest back. The `lane` is the tenth of the rate that
//! only interactive requests may take. A `view` of the service is what it said last is left.
//!
//! | file | what it is |
//! |---|---|
//! | [`pool`] | the pool: dimensions, queue and refusals together |
//! | [`meter`] | one dimension: our own count and the service's |
//! | [`bucket`] | our own count: a bucket for the minute, a window for the day |
//! | [`aimd`] | how much of its rate the pool takes after a refusal |
//! | [`view`] | what the service says is left, and how that ages |
//! | [`queue`] | who waits, and whose turn it is |
//! | [`reason`] | why not now |
//! | [`retry`] | how long to wait before another try, and how many there may be |
//! | [`show`] | all of it, to be looked at |
use std::time::Duration;

use serde::{Deserialize, Serialize};

mod aimd;
mod bucket;
mod meter;
mod pool;
mod queue;
mod reason;
mod retry;
mod show;
mod view;

#[cfg(test)]
mod sim;
#[cfg(test)]
mod tests;

pub use self::{
    pool::{Ask, Asked, Heard, Pool, Reservation},
    queue::Ticket,
    reason::Reason,
    retry::{RetryBudget, TRIES, retry_wait},
    show::{Shown, View, Waiting},
};

/// What the service allows. `None`: not limited, or learned from what the service says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Requests a minute.
    pub requests: Option<u64>,
    /// Tokens a minute.
    pub tokens: Option<u64>,
    /// Requests in any 24 hours.
    pub requests_day: Option<u64>,
    /// Tokens in any 24 hours.
    pub tokens_day: Option<u64>,
    /// New sessions a minute.
    pub connects: Option<u64>,
    /// Sessions at once. A count is exact: this one is used wholly.
    pub sessions: Option<u64>,
    /// How much of each limit is used, per cent; 1 to 100.
    pub use_percent: u8,
    /// How much of a minute may be used at once; at most 60 s.
    pub burst: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            requests: None,
            tokens: None,
            requests_day: None,
            tokens_day: None,
            connects: None,
            sessions: None,
            use_percent: 90,
            burst: Duration::from_secs(6),
        }
    }
}

/// Who goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// Somebody waits for it on the line.
    Interactive,
    /// It can wait.
    Batch,
}

impl Class {
    /// Metric label.
    pub fn name(self) -> &'static str {
        match self {
            Self::Interactive => "interactive",
            Self::Batch => "batch",
        }
    }
}

/// One thing that is limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dimension {
    /// Requests a minute.
    Requests,
    /// Tokens a minute.
    Tokens,
    /// Requests a day.
    RequestsDay,
    /// Tokens a day.
    TokensDay,
    /// New sessions a minute.
    Connects,
    /// Sessions at once.
    Sessions,
}

impl Dimension {
    /// All of them, in the order in which they are looked at.
    pub const ALL: [Self; 6] =
        [Self::Requests, Self::Tokens, Self::RequestsDay, Self::TokensDay, Self::Connects, Self::Sessions];

    /// Metric label, and how the trade calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Requests => "rpm",
            Self::Tokens => "tpm",
            Self::RequestsDay => "rpd",
            Self::TokensDay => "tpd",
            Self::Connects => "connects",
            Self::Sessions => "sessions",
        }
    }

    /// Counted by the day.
    fn daily(self) -> bool {
        matches!(self, Self::RequestsDay | Self::TokensDay)
    }
}
