//! The thin door: `/v1/voice`.
use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{Request, State},
    http::{HeaderValue, Response, StatusCode, header, request::Parts},
    response::IntoResponse as _,
};
use tokio::sync::OwnedSemaphorePermit;

use super::{FULL_RETRY, Refusal, Shared, fields, license, random_id, run, spawn};
use crate::{
    admit::{Denied, License, Principal},
    audio::lane::{upstream_format, upstream_input},
    call::{
        core::{Core, Plan},
        door::Door,
        driver::Call,
        end::{End, Report},
    },
    client::{
        thin::{self, Query},
        wire::{AudioFormats, ErrorBody, ServerMsg},
    },
    config::{AgentConfig, Config, Scope},
    net::{
        listen::{Upgrade, UpgradeError},
        ws::Socket,
    },
    observe::fact::Fact,
    upstream::{SessionSetup, Wanted, open::Upstream},
};

/// Somebody whose call would be taken.
struct Knock {
    who: Principal,
    query: Query,
    /// The agent's name, and the agent.
    name: String,
    agent: Arc<AgentConfig>,
    upstream: Upstream,
    model: String,
    slot: OwnedSemaphorePermit,
}

/// `GET /v1/voice`: the thin door. Pages of any origin may read why they were refused: that is all there is to read.
pub(super) async fn voice(state: State<Arc<Shared>>, request: Request) -> Response<Body> {
    let mut response = thin_door(state, request).await;
    response.headers_mut().insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    response
}

async fn thin_door(State(shared): State<Arc<Shared>>, request: Request) -> Response<Body> {
    let (head, body) = request.into_parts();
    let knock = match knock(&shared, &head).await {
        Err(refusal) => return refusal.into(),
        Ok(knock) => knock,
    };
    let mut request = Request::from_parts(head, body);
    match Upgrade::from_request(&mut request) {
        Ok(upgrade) if knock.query.resume => refuse(&shared, knock, upgrade),
        Ok(upgrade) => {
            let id = random_id("call");
            match license(&shared, &knock.who, &id, "thin").await {
                Ok(license) => admit(&shared, knock, license, id, upgrade),
                Err(denied) => Refusal::from(denied).into(),
            }
        }
        Err(UpgradeError::NotAsked) => {
            let Knock { query, name, .. } = knock;
            let body = serde_json::json!({"ok": true, "agent": name,
                "audio": AudioFormats { input: query.input, output: query.output },
                "message": "this call would be taken; open it as a WebSocket"});
            ([(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
        }
        Err(error) => Refusal::new(StatusCode::BAD_REQUEST, "invalid_query", error.to_string()).into(),
    }
}

/// All checks of a request's head that cost nothing and count nothing.
async fn knock(shared: &Shared, head: &Parts) -> Result<Knock, Refusal> {
    let invalid = |message| Refusal::new(StatusCode::BAD_REQUEST, "invalid_query", message);
    let fields = fields(&head.uri);
    let who = shared.identify(head, fields.as_ref().unwrap_or(&Vec::new())).await?;
    let query = Query::parse(&fields.map_err(invalid)?);
    let query = query.map_err(|e| Refusal { field: Some(e.field), ..invalid(e.message) })?;
    let forbidden =
        |field, message| Refusal { field: Some(field), ..Refusal::new(StatusCode::FORBIDDEN, "forbidden", message) };
    if !who.may(Scope::Call) {
        return Err(Denied::Scope(Scope::Call).into());
    }
    if who.secret().is_some() {
        let message =
            "a client secret opens /v1/realtime and exchanges SDP; here a tenant key or a call token is needed";
        return Err(Refusal::new(StatusCode::FORBIDDEN, "forbidden", message.to_owned()));
    }
    let name = query.agent.clone().unwrap_or_else(|| who.agent("default").to_owned());
    let shown: String = name.chars().take(64).collect();
    let Some(agent) = shared.agent(&name) else {
        let message = format!("no agent `{shown}` is configured");
        return Err(Refusal { field: Some("agent"), ..Refusal::new(StatusCode::NOT_FOUND, "unknown_agent", message) });
    };
    if !who.may_call(&name) {
        return Err(forbidden("agent", format!("agent `{shown}` is not one that this credential may call")));
    }
    for (field, codec) in [("format", query.input.codec), ("out_format", query.output.codec)] {
        if !who.may_speak(codec) {
            return Err(forbidden(field, format!("{field} `{codec}` is not one that this credential may use")));
        }
    }
    let upstream = shared.upstream(&who).cloned().ok_or_else(|| {
        let message = "the tenant's service is not configured".to_owned();
        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "upstream_unavailable", message)
    })?;
    let model = agent.model.as_ref().unwrap_or(&upstream.config().model).clone();
    if !who.may_use(&model) {
        let message = format!("agent `{shown}` has a model that this credential may not use");
        return Err(forbidden("agent", message));
    }
    let slot = shared.line().map_err(|why| Refusal {
        retry_after: Some(FULL_RETRY),
        ..Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", why.to_owned())
    })?;
    Ok(Knock { who, query, name, agent, upstream, model, slot })
}

/// Answers 101, and that this call cannot be resumed: it counts for nothing.
fn refuse(shared: &Shared, knock: Knock, upgrade: Upgrade) -> Response<Body> {
    let protocol = upgrade.protocols().iter().any(|p| p == thin::PROTOCOL).then_some(thin::PROTOCOL);
    let (response, pending) = upgrade.accept(protocol);
    let (id, max_message) = (random_id("call"), shared.config.server.max_message_bytes);
    let call = id.clone();
    spawn(shared, &knock.who, &id, knock.slot, pending, max_message, |socket| async move {
        refuse_resume(socket, &call).await
    });
    response
}

/// Answers 101 and runs the call in a task of its own.
fn admit(shared: &Arc<Shared>, knock: Knock, license: License, id: String, upgrade: Upgrade) -> Response<Body> {
    // A list that was offered must be answered from, and a token in it must never be echoed.
    let protocol = upgrade.protocols().iter().any(|p| p == thin::PROTOCOL).then_some(thin::PROTOCOL);
    let (response, pending) = upgrade.accept(protocol);
    let max_message = shared.config.server.max_message_bytes;
    let Knock { who, query, name, agent, upstream, model, slot } = knock;
    let task = shared.clone();
    run(shared, &who.clone(), &id.clone(), slot, pending, max_message, move |client| {
        let config = &task.config;
        let plan = plan(config, &upstream, &query, name, &agent);
        let audio = plan.audio;
        let setup = SessionSetup {
            input: plan.upstream_input,
            output: plan.upstream_output,
            auto_turns: query.auto_turns,
            agent,
        };
        Call {
            core: Core::owner(task.life(&who, id.clone()), plan, Duration::ZERO),
            id,
            door: Door::thin(setup, audio, config.audio.gather),
            license,
            wanted: Wanted::voice(model),
            upstream,
            client,
            drain: task.drain.clone(),
            stop: task.stop.clone(),
        }
    });
    response
}

fn plan(config: &Config, upstream: &Upstream, query: &Query, name: String, agent: &AgentConfig) -> Plan {
    let millis = Duration::from_millis;
    Plan {
        agent: name,
        audio: AudioFormats { input: query.input, output: query.output },
        upstream_input: upstream_input(query.input, upstream.config().input_rate),
        upstream_output: upstream_format(query.output),
        auto_turns: query.auto_turns,
        silence: agent.turn_detection.silence(),
        ends_speech: agent.turn_detection.longest_silence(),
        greeting: agent.greeting.clone(),
        chunk: millis(config.audio.chunk_ms),
        lead: query.realtime.then(|| millis(config.audio.out_lead_ms)),
        batch: millis(config.audio.out_batch_ms),
        tool_timeout: Duration::from_secs(config.call.tool_timeout_s),
        max_backlog: Duration::from_secs(config.call.max_backlog_s),
        max_message_bytes: config.server.max_message_bytes,
    }
}

/// Calls are not kept yet, so no token can be a known one: the answer is the contract's for every unknown token.
async fn refuse_resume(mut socket: Socket, id: &str) {
    let end = End::ResumeRefused;
    let Report { code, close, .. } = end.report();
    if let Some(error) = end.error(format!("{id}-1")) {
        Fact::Refused { code: error.code.clone().into() }.record();
        let error = ErrorBody { field: Some("resume".to_owned()), ..error };
        socket.send_text(thin::write(&ServerMsg::Error { error }));
    }
    socket.close(close, code.unwrap_or_default(), Duration::from_secs(1)).await;
}
