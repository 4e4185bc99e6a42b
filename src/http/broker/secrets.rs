//! `POST /v1/realtime/client_secrets`: secrets for clients that will connect by themselves. Those who ask for the same, and are
//! bound alike, are given the same one.
use std::sync::Arc;

use axum::{
    body::Body,
    extract::{Request, State},
    http::{Response, header},
    response::IntoResponse as _,
};
use serde_json::{Map, Value};

use super::{Answer, answer, bad, field, identify, is_no_model, merge, query, refused};
use crate::{
    admit::{Denied, budget::Amount},
    config::Scope,
    http::body,
    serve::{
        Shared, random_id,
        realtime::{self, Refusal, no_model},
    },
    upstream::secrets::Order,
    wall::unix_now,
};

/// Longest request, bytes.
const MAX_BODY: usize = 64 << 10;
/// Lifetimes that the service grants, seconds, and its own choice.
const LIVES: std::ops::RangeInclusive<u64> = 10..=7_200;
const LIFE: u64 = 600;

/// `POST /v1/realtime/client_secrets`
pub(super) async fn client_secrets(State(shared): State<Arc<Shared>>, request: Request) -> Response<Body> {
    answer(secret(&shared, request).await)
}

async fn secret(shared: &Shared, request: Request) -> Answer {
    let (head, body) = request.into_parts();
    let fields = query(&head);
    let who = identify(shared, &head, &fields, Scope::Secret).await?;
    if who.secret().is_some() {
        return Err(bad(
            "invalid_api_key",
            "A client secret cannot make another one: use a tenant key or a call token.",
        ));
    }
    let asked = body::object(body, MAX_BODY).await?;
    let token_left = who.token().map(|token| token.expires_at.saturating_sub(unix_now()));
    let life = lifetime(&asked)?;
    let life = token_left.map_or(life, |left| within(life, left));
    let session = match asked.get("session") {
        None | Some(Value::Null) => Map::new(),
        Some(Value::Object(session)) => session.clone(),
        Some(_) => return Err(bad("invalid_type", "`session` must be an object.").at("session")),
    };
    let upstream = realtime::upstream(shared, &who)?;
    let (session, model) = merge(shared, &who, &upstream, &fields, session)?;
    // What is used with it at the service goes past us: it is only given while there is something left.
    shared.budgets.may_begin(&who, Amount::default()).map_err(Denied::from)?;
    shared.gate.spend(&who, unix_now()).await?;
    let agent = field(&fields, "agent").unwrap_or_else(|| realtime::usual_agent(shared, &who));
    let order = Order::to_give(&session, life, &who, agent, model.clone(), &random_id("secret"));
    // One that is about to end is no use to somebody who has yet to connect.
    let lent = upstream.secrets().get(&order, 0.5).await;
    if lent.is_err() {
        shared.gate.give_back(&who).await;
    }
    let lent = lent
        .map_err(|error| model.as_deref().filter(|_| is_no_model(&error)).map_or_else(|| refused(&error), no_model))?;
    shared.gate.gave(&lent.value, &who, agent, model.as_deref(), lent.left(), unix_now());
    let headers = [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")];
    Ok((headers, lent.answer.0.to_string()).into_response())
}

/// A life that ends within `left`, seconds: one of a few lengths, so that those who ask for the same at different moments can be
/// given the same.
fn within(life: u64, left: u64) -> u64 {
    const LENGTHS: [u64; 8] = [10, 30, 60, 300, 600, 1_800, 3_600, 7_200];
    if life <= left {
        return life;
    }
    LENGTHS.into_iter().rev().find(|length| *length <= left).unwrap_or(*LIVES.start())
}

/// `expires_after`, seconds.
fn lifetime(asked: &Map<String, Value>) -> Result<u64, Refusal> {
    const FIELD: &str = "expires_after.seconds";
    let Some(Value::Object(after)) = asked.get("expires_after").filter(|after| !after.is_null()) else {
        return match asked.get("expires_after") {
            None | Some(Value::Null) => Ok(LIFE),
            Some(_) => Err(bad("invalid_type", "`expires_after` must be an object.").at("expires_after")),
        };
    };
    if after.get("anchor").is_some_and(|anchor| anchor != "created_at") {
        return Err(bad("invalid_value", "`expires_after.anchor` must be 'created_at'.").at("expires_after.anchor"));
    }
    let Some(seconds) = after.get("seconds").filter(|seconds| !seconds.is_null()) else { return Ok(LIFE) };
    let message = format!("`{FIELD}` must be a whole number from {} to {}.", LIVES.start(), LIVES.end());
    seconds.as_u64().filter(|life| LIVES.contains(life)).ok_or_else(|| bad("invalid_value", &message).at(FIELD))
}
