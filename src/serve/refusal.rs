//! What is said instead of an answer, in the words of the client protocol.
use std::time::Duration;

use axum::{
    body::Body,
    http::{HeaderValue, Response, StatusCode, header},
    response::IntoResponse as _,
};

use super::{FULL_RETRY, random_id};
use crate::{
    admit::Denied,
    call::ms,
    client::{thin, wire::ErrorBody},
    observe::fact::Fact,
    upstream::UpstreamError,
};

/// A refusal before the upgrade.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    pub(crate) code: &'static str,
    pub(crate) message: String,
    pub(crate) field: Option<&'static str>,
    pub(crate) retry_after: Option<Duration>,
}

impl Refusal {
    pub(crate) fn new(status: StatusCode, code: &'static str, message: String) -> Self {
        Self { status, code, message, field: None, retry_after: None }
    }

    /// A request that can never work.
    pub(crate) fn invalid(field: &'static str, message: String) -> Self {
        Self { field: Some(field), ..Self::new(StatusCode::BAD_REQUEST, "invalid_message", message) }
    }
}

impl From<Denied> for Refusal {
    fn from(denied: Denied) -> Self {
        let (status, code) = match denied {
            Denied::Credential => (StatusCode::UNAUTHORIZED, "unauthorized"),
            Denied::Origin(..) | Denied::Address | Denied::Scope(_) => (StatusCode::FORBIDDEN, "forbidden"),
            Denied::TooOften(_) => (StatusCode::TOO_MANY_REQUESTS, "rate_limited"),
            Denied::TooMany(_) => (StatusCode::TOO_MANY_REQUESTS, "concurrency_limited"),
            Denied::Taken => (StatusCode::CONFLICT, "invalid_call_state"),
            Denied::Store => (StatusCode::SERVICE_UNAVAILABLE, "overloaded"),
        };
        let retry_after = match denied {
            Denied::TooOften(wait) => Some(wait),
            Denied::TooMany(_) | Denied::Store => Some(FULL_RETRY),
            _ => None,
        };
        Self { retry_after, ..Self::new(status, code, denied.to_string()) }
    }
}

impl From<&UpstreamError> for Refusal {
    fn from(error: &UpstreamError) -> Self {
        let verdict = error.verdict();
        let status = match verdict.code {
            "rate_limited" => StatusCode::TOO_MANY_REQUESTS,
            "upstream_timeout" => StatusCode::GATEWAY_TIMEOUT,
            "upstream_auth" | "upstream_refused" => StatusCode::BAD_GATEWAY,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        let retry_after = verdict.retry_after.or(verdict.transient.then_some(FULL_RETRY));
        Self { retry_after, ..Self::new(status, verdict.code, error.to_string()) }
    }
}

impl From<Refusal> for Response<Body> {
    fn from(refusal: Refusal) -> Self {
        Fact::Refused { code: refusal.code.into() }.record();
        let body = thin::refusal(&ErrorBody {
            code: refusal.code.to_owned(),
            message: refusal.message,
            retryable: refusal.retry_after.is_some(),
            retry_after_ms: refusal.retry_after.map(ms),
            field: refusal.field.map(str::to_owned),
            request_id: random_id("req"),
        });
        let mut response = (refusal.status, [(header::CONTENT_TYPE, "application/json")], body).into_response();
        if refusal.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(after) = refusal.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(whole_seconds(after)));
        }
        response
    }
}

/// As `Retry-After` wants it: never earlier than told.
pub(crate) fn whole_seconds(wait: Duration) -> u64 {
    (wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(1)
}
