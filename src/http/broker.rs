//! The broker, for clients that speak to the service directly: what all of its addresses have in common.
//!
//! Everything is asked for by somebody who was identified, with the policy of their agent and tenant merged in, and answered in
//! the service's own shape. The account's key never leaves; texts of the service's are not passed on, its codes are. Who gets
//! what: [`secrets`] makes client secrets, [`exchange`] begins calls by SDP, [`control`] is for calls that run.
mod control;
mod exchange;
mod secrets;

use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    http::{Response, StatusCode, request::Parts},
    routing::post,
};
use serde_json::{Map, Value};

pub(crate) use self::exchange::Exchanges;
use super::body::BodyError;
use crate::{
    admit::{Denied, Principal, router},
    call::{books::Books, policy::Policy},
    client::openai::{INVALID_REQUEST, SERVER_ERROR},
    config::{Scope, USUAL_UPSTREAM},
    serve::{
        FULL_RETRY, Fields, Shared, fields, random_id,
        realtime::{self, Refusal, no_model},
    },
    upstream::{UpstreamError, limits::QUOTA, open::Upstream},
};

/// For OpenAI's base and for Azure's.
pub(crate) fn routes() -> Router<Arc<Shared>> {
    ["/v1", "/openai/v1"].into_iter().fold(Router::new(), |router, base| {
        router
            .route(&format!("{base}/realtime/client_secrets"), post(secrets::client_secrets))
            .route(&format!("{base}/realtime/calls"), post(exchange::calls))
            .route(&format!("{base}/realtime/calls/{{id}}/{{act}}"), post(control::act))
    })
}

pub(super) type Answer = Result<Response<Body>, Refusal>;

pub(super) fn answer(answer: Answer) -> Response<Body> {
    answer.unwrap_or_else(Response::from)
}

/// Whoever asks, with the right to ask for this; and who upstream is called by the end user that is named.
pub(super) async fn identify(
    shared: &Shared,
    head: &Parts,
    fields: &Fields,
    scope: Scope,
) -> Result<Principal, Refusal> {
    let who = shared.identify(head, fields).await?;
    // Whoever comes back with a client secret may do what it is for: exchange SDP.
    let exchanges = scope == Scope::Secret && who.secret().is_some();
    if !who.may(scope) && !exchanges {
        return Err(Denied::Scope(scope).into());
    }
    let user = head.headers.get("openai-safety-identifier").and_then(|user| user.to_str().ok());
    match user {
        Some(user) => realtime::named_user(shared, who, user),
        None => Ok(who),
    }
}

/// The model of a call that goes past us: its session's, or its client secret's; empty where neither names one.
fn model_of(who: &Principal, session: Option<&Value>) -> String {
    let named = session.and_then(|session| session.get("model")?.as_str());
    named.or(who.secret().and_then(|secret| secret.model.as_deref())).unwrap_or_default().to_owned()
}

/// Where the rows of such a call go.
fn books(shared: &Shared, who: &Principal, call: String, door: &'static str, model: String) -> Books {
    let agent = who.secret().map_or_else(|| realtime::usual_agent(shared, who), |secret| &secret.agent).to_owned();
    let (ledger, prices) = (shared.ledger.clone(), shared.prices.clone());
    let account = who.upstream().unwrap_or(USUAL_UPSTREAM).to_owned();
    Books { ledger, prices, call, agent, account, model, writer: None, door }
}

/// The query's fields; one that cannot be read is none: the paths here need none.
pub(super) fn query(head: &Parts) -> Fields {
    fields(&head.uri).unwrap_or_default()
}

pub(super) fn field<'f>(fields: &'f Fields, name: &str) -> Option<&'f str> {
    fields.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
}

/// The session of a client that speaks to the service by itself: its wishes, under the policy of its agent and tenant. And its
/// model, unless it only writes down.
pub(super) fn merge(
    shared: &Shared,
    who: &Principal,
    upstream: &Upstream,
    fields: &Fields,
    session: Map<String, Value>,
) -> Result<(Value, Option<String>), Refusal> {
    let agent = realtime::agent(shared, who, field(fields, "agent"))?;
    match session.get("type") {
        None | Some(Value::Null) => {}
        Some(kind) if kind == "realtime" => {}
        Some(kind) if kind == "transcription" => {
            let model = session.get("audio").and_then(|audio| audio.pointer("/input/transcription/model"));
            if let Some(model) = model.and_then(Value::as_str).filter(|model| !who.may_use(model)) {
                return Err(no_model(model));
            }
            return Ok((Value::Object(session), None));
        }
        Some(_) => {
            let message = "`session.type` must be 'realtime' or 'transcription'.";
            return Err(bad("invalid_value", message).at("session.type"));
        }
    }
    let asked = match session.get("model") {
        None | Some(Value::Null) => field(fields, "model"),
        Some(Value::String(model)) => Some(model.as_str()),
        Some(_) => return Err(bad("invalid_type", "`session.model` must be a string.").at("session.model")),
    };
    let name = realtime::model(shared, who, upstream, &agent, asked)?;
    let direct = shared.way(who, upstream, &name).direct(who, random_id("secret"));
    let model = direct.map_err(|why| match why {
        router::Why::Open => Refusal {
            retry_after: Some(crate::serve::FULL_RETRY),
            ..Refusal::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "upstream_unavailable",
                "the service does not answer".to_owned(),
            )
        },
        router::Why::Forbidden | router::Why::Tried => no_model(&name),
    })?;
    let models = who.tenant().map_or(&[][..], |tenant| &tenant.config.models);
    let policy = Policy::new(&agent, &model, who.policy()).with_models(models);
    if let Some(model) = policy.forbidden_model(&session) {
        return Err(no_model(model));
    }
    // An SDK writes down what it was not told as null; to clear the agent's tools is something that was told.
    let session = session.into_iter().filter(|(name, value)| !value.is_null() || name == "tools").collect();
    Ok((policy.merge(session), Some(model)))
}

/// Whether it is the model that the service would not have.
pub(super) fn is_no_model(error: &UpstreamError) -> bool {
    let code = match innermost(error) {
        UpstreamError::Http { code, .. } => code.as_deref().unwrap_or_default(),
        UpstreamError::Refused { code, .. } => code,
        _ => return false,
    };
    ["model_not_found", "invalid_model", "missing_model"].contains(&code)
}

/// Why there is no credential, rather than that there is none.
pub(super) fn innermost(error: &UpstreamError) -> &UpstreamError {
    match error {
        UpstreamError::NoCredential { error, .. } => innermost(error),
        other => other,
    }
}

/// Whether what was asked for may have been done all the same.
pub(super) fn is_unclear(error: &UpstreamError) -> bool {
    match error {
        UpstreamError::Timeout { .. } | UpstreamError::Broken(_) => true,
        // One that says that it is not available has done nothing.
        UpstreamError::Http { status, .. } => status.is_server_error() && *status != StatusCode::SERVICE_UNAVAILABLE,
        _ => false,
    }
}

pub(super) fn bad(code: &'static str, message: &str) -> Refusal {
    let status = if code == "invalid_api_key" { StatusCode::FORBIDDEN } else { StatusCode::BAD_REQUEST };
    Refusal::new(status, code, message.to_owned())
}

impl From<BodyError> for Refusal {
    fn from(error: BodyError) -> Self {
        let (status, code) = match error {
            BodyError::TooLarge(_) => (StatusCode::PAYLOAD_TOO_LARGE, "request_too_large"),
            BodyError::TooSlow(_) => (StatusCode::REQUEST_TIMEOUT, "request_timeout"),
            BodyError::Broken | BodyError::Form(_) => (StatusCode::BAD_REQUEST, "invalid_json"),
        };
        Self::new(status, code, format!("{error}."))
    }
}

/// The service's refusal in its own code, where that is about the request; what is about our account is ours.
pub(crate) fn refused(error: &UpstreamError) -> Refusal {
    let verdict = error.verdict();
    let inner = innermost(error);
    let (status, code, param) = match inner {
        UpstreamError::Http { status, code, param, .. } => (Some(*status), code.as_deref(), param.as_deref()),
        UpstreamError::Refused { code, .. } => (None, Some(code.as_str()), None),
        _ => (None, None, None),
    };
    let words = status.filter(|status| [400, 404, 409, 422].contains(&status.as_u16()));
    let quota = code.is_some_and(|code| QUOTA.contains(&code));
    let status = match (verdict.code, words) {
        (_, Some(status)) => status,
        ("rate_limited", _) => StatusCode::TOO_MANY_REQUESTS,
        _ if quota => StatusCode::TOO_MANY_REQUESTS,
        ("upstream_timeout", _) => StatusCode::GATEWAY_TIMEOUT,
        ("upstream_auth" | "upstream_refused", _) => StatusCode::BAD_GATEWAY,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    let code = match verdict.code {
        "rate_limited" => "rate_limit_exceeded",
        _ if quota => "insufficient_quota",
        ours => words.and(code.and_then(known)).unwrap_or(ours),
    };
    let kind = match status.as_u16() {
        400..=428 | 430..=499 => INVALID_REQUEST,
        429 if quota => "insufficient_quota",
        429 => "requests",
        _ => SERVER_ERROR,
    };
    // Why there is no secret for a session that the service would not have is not the caller's concern.
    let message = if words.is_some() { format!("{inner}.") } else { format!("{error}.") };
    let param = words.and(param).map(|param| param.to_owned().into());
    let retry_after = verdict.retry_after.or((verdict.transient && words.is_none()).then_some(FULL_RETRY));
    Refusal { kind, retry_after, param, ..Refusal::new(status, code, message) }
}

/// The service's codes about requests, as words of ours.
fn known(code: &str) -> Option<&'static str> {
    const CODES: [&str; 16] = [
        "invalid_value",
        "invalid_type",
        "unknown_parameter",
        "missing_required_parameter",
        "integer_below_min_value",
        "integer_above_max_value",
        "string_above_max_length",
        "invalid_offer",
        "invalid_json",
        "model_not_found",
        "invalid_model",
        "call_id_not_found",
        "invalid_call_state",
        "unsupported_content_type",
        "invalid_request_error",
        "invalid_multipart",
    ];
    CODES.into_iter().find(|known| *known == code)
}
