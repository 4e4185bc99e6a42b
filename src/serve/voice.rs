//! The thin door: `/v1/voice`.
use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{Request, State},
    http::{HeaderValue, Response, StatusCode, header, request::Parts},
    response::IntoResponse as _,
};
use tokio::sync::OwnedSemaphorePermit;

use super::{FULL_RETRY, Refusal, Shared, come_back, fields, license, random_id, run};
use crate::{
    admit::{Denied, License, Principal, budget::Amount},
    audio::lane::{upstream_format, upstream_input},
    call::{
        books::Books,
        core::{Core, Plan},
        door::Door,
        driver::{Call, Client},
        way::Way,
    },
    client::{
        thin::{self, Query, Resume},
        wire::AudioFormats,
    },
    config::{AgentConfig, Config, Scope},
    net::listen::{Upgrade, UpgradeError},
    upstream::{SessionSetup, Wanted, open::Upstream},
};

/// Tokens of a reply, where neither the agent nor the service says less (realtime-protocol section 5).
const LONGEST_REPLY: u64 = 4_096;

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
    if let Some(resume) = query.resume.clone() {
        return Ok(Visitor::Returner(who, resume));
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
    if !shared.may_use(&who, &model) {
        let message = format!("agent `{shown}` has a model that this credential may not use");
        return Err(forbidden("agent", message));
    }
    let way = shared.way(&who, &upstream, &model);
    let model = &way.home().route.model;
    // Whoever comes back to a call that runs is no new one.
    if query.resume.is_none() {
        shared.accounts()?;
        let first = Amount::at_most(&shared.prices.load(), model, agent.base_tokens(), reply_tokens(&agent));
        shared.budgets.may_begin(&who, first).map_err(Denied::from)?;
    }
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
        let config = &task.config;
        let plan = plan(config, &way.home().upstream, &query, name, &agent);
        let audio = plan.audio;
        let (writer, hold) = (agent.transcription.clone(), task.hold(&agent));
        let setup = SessionSetup {
            input: plan.upstream_input,
            output: plan.upstream_output,
            auto_turns: query.auto_turns,
            agent,
        };
        let (ticket, resume) = task.way_back("thin").unzip();
        let books = Books {
            ledger: task.ledger.clone(),
            prices: task.prices.clone(),
            call: id.clone(),
            agent: plan.agent.clone(),
            account: way.home().account().to_owned(),
            model: way.home().route.model.clone(),
            writer,
            door: "thin",
        };
        Call {
            core: Core::owner(task.life(&who, id.clone()), plan, resume),
            id,
            door: Door::thin(setup, audio, config.audio.gather),
            license,
            wanted: Wanted::voice(way.home().route.model.as_str()),
            way,
            client: Client::Here(Box::new(client)),
            ticket,
            books,
            reconnect: task.reconnect(),
            turns: task.turns(&who),
            hold,
            budgets: task.budgets.clone(),
            spent: Amount::default(),
            heir: task.heir.clone(),
            goodbyes: task.calls.clone(),
            drain: task.drain.clone(),
            stop: task.stop.clone(),
        }
    });
    response
}

/// Tokens of the longest reply.
fn reply_tokens(agent: &AgentConfig) -> u64 {
    agent.max_output_tokens.map_or(LONGEST_REPLY, u64::from)
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
        keypad: millis(agent.keypad_ms),
        lead: query.realtime.then(|| millis(config.audio.out_lead_ms)),
        batch: millis(config.audio.out_batch_ms),
        tool_timeout: Duration::from_secs(config.call.tool_timeout_s),
        max_backlog: Duration::from_secs(config.call.max_backlog_s),
        max_message_bytes: config.server.max_message_bytes,
        transcribed: agent.transcription.is_some(),
        history_tokens: config.call.history_tokens,
        govern: config.turns.govern,
        base_tokens: agent.base_tokens(),
        reply_tokens: reply_tokens(agent),
    }
}
