//! Why there is no session, or no answer: one vocabulary for sockets and REST, and what each failure means for a call.
use std::{io, sync::Arc, time::Duration};

use axum::http::StatusCode;

use super::{ServiceError, limits::QUOTA};
use crate::admit::governor::Reason;

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// No connection.
    #[error("cannot reach the service at {host}:{port}: {source}")]
    Unreachable {
        /// Where.
        host: String,
        /// Where.
        port: u16,
        /// Why.
        source: io::Error,
    },
    /// It took too long.
    #[error("the service did not {stage} within {} ms", after.as_millis())]
    Timeout {
        /// What was waited for.
        stage: &'static str,
        /// How long.
        after: Duration,
    },
    /// The upgrade was refused with an HTTP status.
    #[error("the service refused with HTTP {status}{}", code.as_deref().map(|c| format!(" ({c})")).unwrap_or_default())]
    Http {
        /// The status.
        status: StatusCode,
        /// The code in the body, if there is one.
        code: Option<String>,
        /// The wait that it asks for.
        retry_after: Option<Duration>,
        /// The field that it names.
        param: Option<String>,
    },
    /// The session was refused after the upgrade, or ended by the service.
    #[error("the service refused the session: {}", explain(code, *close))]
    Refused {
        /// The `error.code`, or its type.
        code: String,
        /// The close code that followed.
        close: Option<u16>,
    },
    /// There is no client secret to dial with.
    #[error("no credential for the service can be had: {error}")]
    NoCredential {
        /// Why none could be made.
        error: Arc<UpstreamError>,
        /// None is tried to be made before.
        retry_after: Duration,
    },
    /// It was not tried: the service has named a moment for the next try, or has failed too often in a row.
    #[error("{}; the next try is due in {} ms", if *limited { "the service has asked to be left alone" } else { "the service does not answer" }, retry_after.as_millis())]
    Paused {
        /// The service has named the moment.
        limited: bool,
        /// From now.
        retry_after: Duration,
    },
    /// It was not tried: the account has as many sessions as it may have, or has opened as many as it may in a minute.
    #[error("the account's limit is reached ({0})")]
    Limited(Reason),
    /// The connection ended, or was no WebSocket.
    #[error("the connection to the service broke: {0}")]
    Broken(String),
}

/// A service's code in words.
fn explain(code: &str, close: Option<u16>) -> String {
    let words = match code {
        "invalid_api_key" => "it does not know the API key",
        "insufficient_quota" | "credit_balance_exhausted" | "billing_hard_limit_reached" => "the account has no credit",
        "model_not_found" | "invalid_model" | "missing_model" => "it does not know the model",
        "beta_api_shape_disabled" => "it no longer speaks the beta protocol",
        "session_expired" => "the session reached its longest time",
        "rate_limit_exceeded" => "the rate limit is reached",
        // What a missing key gets: an error without a code of its own.
        _ if close == Some(3000) => "it wants an API key, or another one",
        _ => "",
    };
    let close = close.map(|c| format!(", close code {c}")).unwrap_or_default();
    match (words, code) {
        ("", "") => format!("no reason given{close}"),
        ("", code) => format!("{code}{close}"),
        (words, code) => format!("{words} ({code}{close})"),
    }
}

/// What a failure means for the call, in the words of the client protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// `error.code`
    pub code: &'static str,
    /// Close code, if the call ends by it.
    pub close: u16,
    /// Another try may help: at once from here, later from the client.
    pub transient: bool,
    /// The wait that the service named.
    pub retry_after: Option<Duration>,
}

impl UpstreamError {
    /// By code *and* reason: 1013 alone may mean "restarting" or "no money" (realtime-protocol section 6).
    pub fn verdict(&self) -> Verdict {
        let of = |code, close, transient| Verdict { code, close, transient, retry_after: None };
        match self {
            Self::Unreachable { .. } => of("upstream_unavailable", 4503, true),
            Self::Timeout { .. } => of("upstream_timeout", 4504, true),
            Self::Broken(_) => of("upstream_unavailable", 4502, true),
            Self::Paused { limited, retry_after } => {
                let (code, close) = if *limited { ("rate_limited", 4429) } else { ("upstream_unavailable", 4503) };
                Verdict { retry_after: Some(*retry_after), ..of(code, close, true) }
            }
            Self::Limited(reason) => Verdict { retry_after: reason.wait, ..of("rate_limited", 4429, true) },
            Self::Http { status, code, retry_after, .. } => {
                let known = code.as_deref().and_then(by_code);
                let verdict = known.unwrap_or_else(|| match status.as_u16() {
                    401 | 403 => of("upstream_auth", 4502, false),
                    429 => of("rate_limited", 4429, true),
                    408 | 500..=599 => of("upstream_unavailable", 4503, true),
                    _ => of("upstream_refused", 4502, false),
                });
                Verdict { retry_after: *retry_after, ..verdict }
            }
            Self::NoCredential { error, retry_after } => {
                let verdict = error.verdict();
                // What is left of the wait, not all that was named when it began.
                let told = Verdict { retry_after: Some(*retry_after), ..verdict };
                match verdict.code {
                    "rate_limited" => told,
                    "upstream_auth" | "upstream_refused" => verdict,
                    _ => Verdict { code: "credentials_unavailable", close: 4503, ..told },
                }
            }
            Self::Refused { code, close } => by_code(code).unwrap_or_else(|| match close {
                Some(3000) => of("upstream_auth", 4502, false),
                Some(1001 | 1011 | 1012 | 1013) => of("upstream_unavailable", 4502, true),
                _ => of("upstream_refused", 4502, false),
            }),
        }
    }

    /// A session was lost by this: whether another one may do. Only what would fail again in the same way is final.
    pub fn another_may_do(&self) -> bool {
        match self {
            Self::Refused { close: Some(1000 | 1001 | 1005 | 1006 | 1011 | 1012), .. } => true,
            Self::Refused { code, close: Some(1013) | None } => by_code(code).is_none_or(|verdict| verdict.transient),
            error => error.verdict().transient,
        }
    }

    /// From a close frame alone; its reason may be `type.code`, or words.
    pub fn closed(close: Option<u16>, reason: &str) -> Self {
        let code = reason.rsplit('.').next().unwrap_or_default();
        let words = code.is_empty() || code.contains(' ');
        let code = match close {
            Some(1001) if reason.contains("maximum duration") => "session_expired",
            _ if words => "",
            _ => code,
        };
        Self::Refused { code: plain_code(code), close }
    }

    /// From an `error` event, and the close code behind it.
    pub fn refused(error: &ServiceError, close: Option<u16>) -> Self {
        let code = [&error.code, &error.kind].into_iter().find(|c| !c.is_empty()).cloned().unwrap_or_default();
        Self::Refused { code: plain_code(&code), close }
    }
}

fn by_code(code: &str) -> Option<Verdict> {
    let (code, close, transient) = match code {
        "invalid_api_key" | "invalid_authentication" | "insufficient_permissions" => ("upstream_auth", 4502, false),
        _ if QUOTA.contains(&code) => ("upstream_refused", 4502, false),
        "account_deactivated" | "model_not_found" | "invalid_model" | "missing_model" | "beta_api_shape_disabled" => {
            ("upstream_refused", 4502, false)
        }
        "rate_limit_exceeded" => ("rate_limited", 4429, true),
        "session_expired" | "server_error" => ("upstream_unavailable", 4502, true),
        _ => return None,
    };
    Some(Verdict { code, close, transient, retry_after: None })
}

/// Codes are short words with `_` and `.`; anything else may hold what must not be shown, such as a piece of a key.
pub fn plain_code(code: &str) -> String {
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'.';
    let plain = code.len() <= 64 && code.bytes().all(word) && code.bytes().filter(u8::is_ascii_digit).count() <= 3;
    if plain { code.to_owned() } else { "unknown".to_owned() }
}

/// The path of a field, such as `session.tools[0].name`; `None`: it could be something else.
pub fn plain_field(path: &str) -> Option<String> {
    let bare: String = path.chars().filter(|c| !['[', ']'].contains(c)).collect();
    (!path.is_empty() && (bare.is_empty() || plain_code(&bare) == bare)).then(|| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_told_apart_by_code_and_reason() {
        let event = |code: &str, kind: &str, close| {
            let error = ServiceError { code: code.into(), kind: kind.into(), ..ServiceError::default() };
            UpstreamError::refused(&error, close)
        };
        for (error, code, close, transient) in [
            (event("invalid_api_key", "invalid_request_error", Some(3000)), "upstream_auth", 4502, false),
            (event("", "invalid_request_error", Some(3000)), "upstream_auth", 4502, false),
            (event("model_not_found", "invalid_request_error", Some(4004)), "upstream_refused", 4502, false),
            (event("insufficient_quota", "insufficient_quota", Some(1013)), "upstream_refused", 4502, false),
            (
                UpstreamError::closed(Some(1013), "insufficient_quota.insufficient_quota"),
                "upstream_refused",
                4502,
                false,
            ),
            (UpstreamError::closed(Some(1013), ""), "upstream_unavailable", 4502, true),
            (UpstreamError::closed(Some(3000), "invalid_request_error.invalid_api_key"), "upstream_auth", 4502, false),
            (
                UpstreamError::closed(Some(1001), "Your session hit the maximum duration of 60 minutes."),
                "upstream_unavailable",
                4502,
                true,
            ),
            (event("rate_limit_exceeded", "", Some(1013)), "rate_limited", 4429, true),
            (
                UpstreamError::Http { status: StatusCode::UNAUTHORIZED, code: None, retry_after: None, param: None },
                "upstream_auth",
                4502,
                false,
            ),
            (
                UpstreamError::Http {
                    status: StatusCode::TOO_MANY_REQUESTS,
                    code: Some("insufficient_quota".into()),
                    retry_after: None,
                    param: None,
                },
                "upstream_refused",
                4502,
                false,
            ),
            (
                UpstreamError::Http { status: StatusCode::BAD_GATEWAY, code: None, retry_after: None, param: None },
                "upstream_unavailable",
                4503,
                true,
            ),
            (
                UpstreamError::Http { status: StatusCode::NOT_FOUND, code: None, retry_after: None, param: None },
                "upstream_refused",
                4502,
                false,
            ),
            (UpstreamError::Broken("x".into()), "upstream_unavailable", 4502, true),
        ] {
            let verdict = error.verdict();
            assert_eq!((verdict.code, verdict.close, verdict.transient), (code, close, transient), "{error}");
        }
    }

    #[test]
    fn codes_are_words_and_fields_are_paths() {
        for (code, plain) in [
            ("invalid_api_key", true),
            ("", true),
            ("401", true),
            ("sk-abc", false),
            ("sk0f1e2d3c", false),
            ("Bearer x", false),
            (&"x".repeat(65), false),
        ] {
            assert_eq!(plain_code(code) == code, plain, "{code}");
        }
        for (path, plain) in
            [("session.tools[0].name", true), ("type", true), ("sk-abc", false), ("a b", false), ("", false)]
        {
            assert_eq!(plain_field(path).is_some(), plain, "{path}");
        }
    }

    #[test]
    fn foreign_text_never_gets_into_an_error() {
        let error = ServiceError { code: "Incorrect API key provided: sk-abc***xyz".into(), ..ServiceError::default() };
        assert!(!UpstreamError::refused(&error, None).to_string().contains("sk-abc"));
        assert!(!UpstreamError::closed(Some(4000), "key sk-abc is bad").to_string().contains("sk-abc"));
    }
}
