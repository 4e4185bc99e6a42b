//! What is said instead of an answer, in the words of the client protocol.
use std::time::Duration;

use axum::{
    body::Body,
    http::{HeaderValue, Response, StatusCode, header},
    response::IntoResponse as _,
};
use bytes::Bytes;

use super::{FULL_RETRY, random_id};
use crate::{
    admit::{Denied, budget::Spent},
    call::ms,
    client::{thin, wire::ErrorBody},
    observe::fact::Fact,
    wall::unix_now,
};

/// Whoever would have to wait for longer is to give up, and nobody is told to come back later than in a day.
const LONGEST_WAIT: Duration = Duration::from_secs(3_600);
const A_DAY: Duration = Duration::from_secs(86_400);

/// A refusal before the upgrade.
#[derive(Debug, Clone)]
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
        let (status, retry_after) = verdict(&denied);
        let code = match denied {
            Denied::Credential => "unauthorized",
            Denied::Origin(..) | Denied::Address | Denied::Scope(_) => "forbidden",
            Denied::TooOften(_) => "rate_limited",
            Denied::TooMany(_) => "concurrency_limited",
            Denied::Taken => "invalid_call_state",
            Denied::Store => "overloaded",
            Denied::Budget(_) => "budget_exhausted",
            Denied::Accounting => "accounting_unavailable",
        };
        Self { retry_after, ..Self::new(status, code, denied.to_string()) }
    }
}

/// Status and wait of a denial, in whatever words it is told.
pub(super) fn verdict(denied: &Denied) -> (StatusCode, Option<Duration>) {
    match denied {
        Denied::Credential => (StatusCode::UNAUTHORIZED, None),
        Denied::Origin(..) | Denied::Address | Denied::Scope(_) => (StatusCode::FORBIDDEN, None),
        Denied::TooOften(wait) => (StatusCode::TOO_MANY_REQUESTS, Some(*wait)),
        Denied::TooMany(_) => (StatusCode::TOO_MANY_REQUESTS, Some(FULL_RETRY)),
        Denied::Taken => (StatusCode::CONFLICT, None),
        Denied::Budget(spent) => (StatusCode::TOO_MANY_REQUESTS, Some(until(spent, unix_now()))),
        Denied::Store | Denied::Accounting => (StatusCode::SERVICE_UNAVAILABLE, Some(FULL_RETRY)),
    }
}

/// When to ask again for a budget that is spent; where waiting does not help, tomorrow somebody may have changed it.
fn until(spent: &Spent, unix: u64) -> Duration {
    let wait = |at: u64| Duration::from_secs(at.saturating_sub(unix).max(1));
    spent.resets_at.map_or(A_DAY, wait).min(A_DAY)
}

impl From<Refusal> for Response<Body> {
    fn from(refusal: Refusal) -> Self {
        Fact::Refused { code: refusal.code.into() }.record();
        let soon = refusal.retry_after.filter(|after| *after <= LONGEST_WAIT);
        let body = thin::refusal(&ErrorBody {
            code: refusal.code.to_owned(),
            message: refusal.message,
            retryable: soon.is_some(),
            retry_after_ms: soon.map(ms),
            field: refusal.field.map(str::to_owned),
            request_id: random_id("req"),
        });
        answer(refusal.status, body, refusal.retry_after)
    }
}

/// A refusal's answer, with the headers that go with its status and its wait.
pub(super) fn answer(status: StatusCode, body: Bytes, retry_after: Option<Duration>) -> Response<Body> {
    let mut response = (status, [(header::CONTENT_TYPE, "application/json")], body).into_response();
    let headers = response.headers_mut();
    if status == StatusCode::UNAUTHORIZED {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if status == StatusCode::UPGRADE_REQUIRED {
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    }
    if let Some(after) = retry_after {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(whole_seconds(after)));
    }
    response
}

/// As `Retry-After` wants it: never earlier than told.
fn whole_seconds(wait: Duration) -> u64 {
    (wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(1)
}
