//! Why a call ends: the one place that turns reasons into error codes and close codes.
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::ms;
use crate::{
    client::wire::ErrorBody,
    upstream::{UpstreamError, Verdict},
};

/// What a client is asked to wait before it comes again, where nobody says more.
const COME_BACK: Duration = Duration::from_secs(2);

/// Why a call ended. Text is for people and never quotes what came from outside.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum End {
    /// The client said `close`, or closed its socket.
    #[error("the client ended the call")]
    Asked,
    /// The caller hung up, or the exchange did.
    #[error("the caller hung up")]
    HungUp,
    /// The agent hung up.
    #[error("the agent ended the call")]
    AgentHungUp,
    /// The agent took the call elsewhere.
    #[error("the call was transferred")]
    Transferred,
    /// The client is gone without a goodbye.
    #[error("the client's connection was lost")]
    ClientLost,
    /// The server goes away and its patience is over.
    #[error("this server is going away")]
    Drained,
    /// The client broke RFC 6455.
    #[error("framing violation")]
    Framing,
    /// The client sent text that is not UTF-8.
    #[error("text that is not UTF-8")]
    Utf8,
    /// Audio in a form that was not agreed.
    #[error("{0}")]
    InvalidAudio(String),
    /// Too many bad messages.
    #[error("20 invalid messages within 10 s")]
    BadMessages,
    /// Too many pings.
    #[error("too many control frames: at most 10 a second")]
    ControlFlood,
    /// A message, or a part of one, took too long.
    #[error("a message was begun and not finished within 10 s")]
    HalfMessage,
    /// Too much was sent while there was no session.
    #[error("more than {limit} bytes came before the service was there to take them")]
    TooMuchEarly {
        /// Allowed, bytes.
        limit: usize,
    },
    /// A message was announced that is too large.
    #[error("message of {got} bytes is over the {limit} byte limit")]
    MessageTooLarge {
        /// Announced, bytes.
        got: usize,
        /// Allowed, bytes.
        limit: usize,
    },
    /// Audio kept coming faster than four times real time.
    #[error("audio came faster than 4 times real time for 10 s")]
    AudioTooFast,
    /// Nothing came from the client.
    #[error("no message for {} s", .0.as_secs())]
    Idle(Duration),
    /// Audio came, but nobody has spoken.
    #[error("nobody has spoken for {} s", .0.as_secs())]
    Silent(Duration),
    /// The client answers no pings.
    #[error("no answer to two pings")]
    NoPong,
    /// The client's credential has ended.
    #[error("the credential of this call has ended")]
    TokenExpired,
    /// Its tenant or its key is gone.
    #[error("the credential of this call was revoked")]
    Revoked,
    /// Somebody who may has ended the call.
    #[error("the call was ended by its tenant")]
    EndedByTenant,
    /// The longest call.
    #[error("the longest call time of {} s is reached", .0.as_secs())]
    MaxTime(Duration),
    /// A budget has nothing left.
    #[error("{0}")]
    BudgetExhausted(String),
    /// A token that opens nothing.
    #[error("this call cannot be resumed: begin a new one")]
    ResumeRefused,
    /// The client is there with another socket.
    #[error("this call was resumed on another connection")]
    Superseded,
    /// The client does not read.
    #[error("the client takes its audio too slowly")]
    SlowConsumer,
    /// The service is gone, or would not have us.
    #[error("{message}")]
    Upstream {
        /// `error.code`
        code: String,
        /// Close code.
        close: u16,
        /// The client may come again.
        retryable: bool,
        /// After so long.
        retry_after: Option<Duration>,
        /// For people.
        message: String,
        /// The service's own words, where it had some.
        service: Option<ServiceWords>,
    },
    /// Our bug.
    #[error("internal error")]
    Internal,
}

/// How the service itself said that there is no session, or no more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceWords {
    /// Its error code; empty: none that could be shown.
    pub code: String,
    /// Its close code.
    pub close: Option<u16>,
}

/// What the client is told at the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// `error.code`; none: the close code says it all.
    pub code: Option<&'static str>,
    /// Close code.
    pub close: u16,
    /// The client may come again.
    pub retryable: bool,
    /// After so long.
    pub retry_after: Option<Duration>,
}

impl End {
    /// From a failed upstream.
    pub fn upstream(error: &UpstreamError) -> Self {
        let Verdict { code, close, transient, retry_after } = error.verdict();
        let service = match error {
            UpstreamError::Refused { code, close } => Some(ServiceWords { code: code.clone(), close: *close }),
            UpstreamError::Http { code: Some(code), .. } => Some(ServiceWords { code: code.clone(), close: None }),
            _ => None,
        };
        let (code, message) = (code.to_owned(), error.to_string());
        Self::Upstream { code, close, retryable: transient, retry_after, message, service }
    }

    /// Who ended the call, in a word.
    pub fn who(&self) -> &'static str {
        match self {
            Self::Asked | Self::HungUp => "caller",
            Self::AgentHungUp | Self::Transferred => "agent",
            Self::ClientLost | Self::NoPong => "lost",
            Self::EndedByTenant => "tenant",
            Self::Upstream { .. } => "service",
            _ => "relay",
        }
    }

    /// The client may come back to the same call (client-protocol.md, "Close codes").
    pub fn may_come_back(&self) -> bool {
        match self {
            Self::ClientLost
            | Self::MessageTooLarge { .. }
            | Self::AudioTooFast
            | Self::Idle(_)
            | Self::Silent(_)
            | Self::NoPong
            | Self::TokenExpired
            | Self::Revoked
            | Self::SlowConsumer
            | Self::Upstream { .. } => true,
            Self::Asked
            | Self::HungUp
            | Self::AgentHungUp
            | Self::Transferred
            | Self::Drained
            | Self::Framing
            | Self::Utf8
            | Self::InvalidAudio(_)
            | Self::BadMessages
            | Self::ControlFlood
            | Self::HalfMessage
            | Self::TooMuchEarly { .. }
            | Self::EndedByTenant
            | Self::MaxTime(_)
            | Self::BudgetExhausted(_)
            | Self::ResumeRefused
            | Self::Superseded
            | Self::Internal => false,
        }
    }

    /// What the client is told before the close; `None`: the close code says it all.
    pub fn error(&self, request_id: String) -> Option<ErrorBody> {
        let Report { code, retryable, retry_after, .. } = self.report();
        Some(ErrorBody {
            code: code?.to_owned(),
            message: self.to_string(),
            retryable,
            retry_after_ms: retry_after.map(ms),
            field: None,
            request_id,
        })
    }

    /// Error code, close code, and whether coming back helps.
    pub fn report(&self) -> Report {
        let of = |code: &'static str, close, retryable| Report {
            code: (!code.is_empty()).then_some(code),
            close,
            retryable,
            retry_after: None,
        };
        match self {
            Self::Asked | Self::HungUp | Self::AgentHungUp | Self::Transferred | Self::ClientLost => {
                of("", 1000, false)
            }
            Self::Drained => of("", 1001, true),
            Self::Framing => of("", 1002, false),
            Self::Utf8 => of("", 1007, false),
            Self::InvalidAudio(_) => of("invalid_audio", 1003, false),
            Self::BadMessages | Self::ControlFlood | Self::HalfMessage | Self::TooMuchEarly { .. } => {
                of("policy_violation", 1008, false)
            }
            Self::MessageTooLarge { .. } => of("message_too_large", 1009, true),
            Self::AudioTooFast => Report { retry_after: Some(COME_BACK), ..of("audio_too_fast", 4429, true) },
            Self::Idle(_) | Self::Silent(_) | Self::NoPong => of("idle_timeout", 4408, true),
            Self::TokenExpired => of("token_expired", 4401, true),
            Self::Revoked => of("unauthorized", 4401, true),
            Self::EndedByTenant => of("forbidden", 4403, false),
            Self::MaxTime(_) => of("max_call_time", 4440, false),
            Self::BudgetExhausted(_) => of("budget_exhausted", 4402, false),
            Self::ResumeRefused => of("resume_refused", 4410, false),
            Self::Superseded => of("superseded", 4409, false),
            Self::SlowConsumer => of("slow_consumer", 4508, true),
            Self::Internal => of("internal", 1011, true),
            Self::Upstream { code, close, retryable, retry_after, .. } => Report {
                code: Some(known(code)),
                close: *close,
                retryable: *retryable,
                retry_after: retry_after.or(retryable.then_some(COME_BACK)),
            },
        }
    }
}

/// The contract's own word for an upstream code.
fn known(code: &str) -> &'static str {
    const CODES: [&str; 6] = [
        "upstream_refused",
        "upstream_timeout",
        "upstream_auth",
        "rate_limited",
        "upstream_unavailable",
        "credentials_unavailable",
    ];
    CODES.into_iter().find(|c| *c == code).unwrap_or("upstream_unavailable")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_may_come_again_is_told_when() {
        let broken = End::upstream(&UpstreamError::Broken("reset".into()));
        let refused = End::upstream(&UpstreamError::closed(Some(3000), "invalid_request_error.invalid_api_key"));
        for (end, code, close, wait) in [
            (End::AudioTooFast, "audio_too_fast", 4429, Some(2_000)),
            (broken, "upstream_unavailable", 4502, Some(2_000)),
            (refused, "upstream_auth", 4502, None),
            (End::TooMuchEarly { limit: 1 }, "policy_violation", 1008, None),
            (End::Internal, "internal", 1011, None),
            (End::BudgetExhausted("used up".into()), "budget_exhausted", 4402, None),
        ] {
            let error = end.error("call-1".to_owned()).unwrap();
            assert_eq!((error.code.as_str(), end.report().close, error.retry_after_ms), (code, close, wait));
            assert_eq!(error.retryable, ![1008, 4402].contains(&close) && code != "upstream_auth");
        }
        assert_eq!(End::Drained.error("call-1".to_owned()), None);
    }
}
