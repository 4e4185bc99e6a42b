//! The thin door: `/v1/voice`.
use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{Request, State},
    http::{HeaderValue, Response, StatusCode, header, request::Parts},
    response::IntoResponse as _,
};
use tokio::sync::OwnedSemaphorePermit;

use super::{
    FULL_RETRY, Refusal, Shared, come_back, fields, license,
    owner::{self, Owner},
    random_id, run,
};
use crate::{
    admit::{Denied, License, Principal},
    call::{door::Door, way::Way},
    client::{
        thin::{self, Query, Resume},
        wire::AudioFormats,
    },
    config::{AgentConfig, Scope},
    net::listen::{Upgrade, UpgradeError},
};

/// Somebody whose call would be taken.
struct Knock {
    who: Principal,
    query: Query,
    /// The agent's name, and the agent.
    name: String,
    agent: Arc<AgentConfig>,
    way: Way,
    slot: OwnedSemaphorePermit,
}

/// Who may come in, and what for.
enum Visitor {
    /// A new call.
    Caller(Box<Knock>),
    /// One that goes on, which has its agent, its formats and its line.
    Returner(Principal, Resume),
}

/// `GET /v1/voice`: the thin door. Pages of any origin may read why they were refused: that is all there is to read.
pub(super) async fn voice(state: State<Arc<Shared>>, request: Request) -> Response<Body> {
    let mut response = thin_door(state, request).await;
    response.headers_mut().insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    response
}

async fn thin_door(State(shared): State<Arc<Shared>>, request: Request) -> Response<Body> {
    let (head, body) = request.into_parts();
    let visitor = match knock(&shared, &head).await {
        Err(refusal) => return refusal.into(),
        Ok(visitor) => visitor,
    };
    let mut request = Request::from_parts(head, body);
    match (Upgrade::from_request(&mut request), visitor) {
        (Ok(upgrade), Visitor::Returner(who, Resume { token, got })) => {
            let (response, pending) = upgrade.accept(thin::PROTOCOL);
            let max_message = shared.config.server.max_message_bytes;
            come_back(&shared, "thin", who, pending, max_message, &token, got);
            response
        }
        (Ok(upgrade), Visitor::Caller(knock)) => {
            let id = random_id("call");
            match license(&shared, &knock.who, &id, "thin").await {
                Ok(license) => admit(&shared, *knock, license, id, upgrade),
                Err(denied) => Refusal::from(denied).into(),
            }
        }
        (Err(UpgradeError::NotAsked), Visitor::Returner(..)) => {
            let body = serde_json::json!({"ok": true, "message": "open it as a WebSocket to come back to the call"});
            ([(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
        }
        (Err(UpgradeError::NotAsked), Visitor::Caller(knock)) => {
            let Knock { query, name, .. } = *knock;
            let body = serde_json::json!({"ok": true, "agent": name,
                "audio": AudioFormats { input: query.input, output: query.output },
                "message": "this call would be taken; open it as a WebSocket"});
            ([(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
        }
        (Err(error), _) => Refusal::new(StatusCode::BAD_REQUEST, "invalid_query", error.to_string()).into(),
    }
}

/// All checks of a request's head that cost nothing and count nothing.
async fn knock(shared: &Shared, head: &Parts) -> Result<Visitor, Refusal> {
    let invalid = |message| Refusal::new(StatusCode::BAD_REQUEST, "invalid_query", message);
    let fields = fields(&head.uri);
    let who = shared.identify(head, fields.as_ref().unwrap_or(&Vec::new())).await?;
    let query = Query::parse(&fields.map_err(invalid)?);
    let query = query.map_err(|e| Refusal { field: Some(e.field), ..invalid(e.message) })?;
    if !who.may(Scope::Call) {
        return Err(Denied::Scope(Scope::Call).into());
    }
    if who.secret().is_some() {
        let message =
            "a client secret opens /v1/realtime and exchanges SDP; here a tenant key or a call token is needed";
        return Err(Refusal::new(StatusCode::FORBIDDEN, "forbidden", message.to_owned()));
    }
    if let Some(resume) = query.resume.clone() {
        return Ok(Visitor::Returner(who, resume));
    }
    let name = query.agent.clone().unwrap_or_else(|| who.agent("default").to_owned());
    let (agent, way) =
        owner::meet(shared, &who, &name, [("format", query.input.codec), ("out_format", query.output.codec)])?;
    let slot = shared.line().map_err(|why| Refusal {
        retry_after: Some(FULL_RETRY),
        ..Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", why.to_owned())
    })?;
    Ok(Visitor::Caller(Box::new(Knock { who, query, name, agent, way, slot })))
}

/// Answers 101 and runs the call in a task of its own.
fn admit(shared: &Arc<Shared>, knock: Knock, license: License, id: String, upgrade: Upgrade) -> Response<Body> {
    let (response, pending) = upgrade.accept(thin::PROTOCOL);
    let max_message = shared.config.server.max_message_bytes;
    let Knock { who, query, name, agent, way, slot } = knock;
    let task = shared.clone();
    run(shared, &who.clone(), &id.clone(), slot, pending, max_message, move |client| {
        let millis = Duration::from_millis;
        let audio = AudioFormats { input: query.input, output: query.output };
        let lead = query.realtime.then(|| millis(task.config.audio.out_lead_ms));
        let (auto_turns, comes_back, gather) = (query.auto_turns, true, task.config.audio.gather);
        let door = |setup| Door::thin(setup, audio, gather);
        Owner { who, license, id, name, agent, way, audio, auto_turns, lead, comes_back }.call(&task, client, door)
    });
    response
}
