//! `/v1/calls` and `/v1/limits`: what a tenant has running, what it may have, and the end of a call.
use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{Response, StatusCode, header},
    response::IntoResponse as _,
    routing::{delete, get, post},
};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::part::Part;
use crate::{
    admit::{Denied, Principal},
    config::{Net, Scope},
    serve::{Shared, refusal::Refusal},
    upstream::open::Upstream,
};

pub(crate) fn routes() -> Router<Arc<Shared>> {
    Router::new()
        .route("/v1/calls", get(list))
        .route("/v1/calls/{id}", delete(end))
        .route("/v1/calls/{id}/rotate", post(rotate))
        .route("/v1/limits", get(limits))
}

pub(super) async fn admin(shared: &Shared, request: Request) -> Result<Principal, Refusal> {
    let (head, _) = request.into_parts();
    let who = shared.identify(&head, &Vec::new()).await?;
    if who.may(Scope::Admin) && who.secret().is_none() { Ok(who) } else { Err(Denied::Scope(Scope::Admin).into()) }
}

pub(super) fn answer(result: Result<Value, Refusal>) -> Response<Body> {
    match result {
        Ok(body) => ([(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response(),
        Err(refusal) => refusal.into(),
    }
}

/// `GET /v1/calls`: the tenant's calls, the oldest first.
async fn list(State(shared): State<Arc<Shared>>, request: Request) -> Response<Body> {
    let who = admin(&shared, request).await;
    answer(who.map(|who| json!({"calls": shared.gate.roster().of(who.tenant_id())})))
}

/// `DELETE /v1/calls/{id}`: the call ends at once. Other tenants' calls are as unknown as those that never were.
async fn end(State(shared): State<Arc<Shared>>, Part(id): Part, request: Request) -> Response<Body> {
    let done = admin(&shared, request).await.and_then(|who| match shared.gate.roster().end(&id, who.tenant_id()) {
        true => Ok(json!({"id": id, "ended": true})),
        false => Err(unknown()),
    });
    answer(done)
}

/// `POST /v1/calls/{id}/rotate`: the call goes on in another session of the service, from its next quiet moment on.
async fn rotate(State(shared): State<Arc<Shared>>, Part(id): Part, request: Request) -> Response<Body> {
    let done = admin(&shared, request).await.and_then(|who| match shared.gate.roster().rotate(&id, who.tenant_id()) {
        true => Ok(json!({"id": id, "rotates": true})),
        false => Err(unknown()),
    });
    answer(done)
}

fn unknown() -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, "unknown_call", "there is no such call of this tenant".to_owned())
}

/// `GET /v1/limits`: what the tenant may have, has, and has hit at the service.
async fn limits(State(shared): State<Arc<Shared>>, request: Request) -> Response<Body> {
    answer(admin(&shared, request).await.map(|who| report(&shared, &who)))
}

/// The account's pools, as far as the tenant may use their models. Who else waits there is nobody's business.
fn quota(upstream: &Upstream, who: &Principal) -> Value {
    let (tenant, mut pools) = (who.tenant_id(), upstream.quota().view());
    pools.retain(|model, _| who.may_use(model));
    for pool in pools.values_mut() {
        pool.waiting.retain(|waiting| waiting.tenant == tenant);
    }
    json!(pools)
}

/// The tiers that the tenant may use, and how their routes are: all tenants' calls have made them so. `null`: there are none.
fn tiers(shared: &Shared, who: &Principal) -> Value {
    let mut view = shared.routes.view();
    view.tiers.retain(|name, _| shared.may_use(who, name));
    if view.tiers.is_empty() { Value::Null } else { json!(view) }
}

fn report(shared: &Shared, who: &Principal) -> Value {
    let config = who.tenant().map(|tenant| &tenant.config);
    let some = |n: u64| (n > 0).then_some(n);
    let call = &shared.config.call;
    let upstream = shared.upstream(who).map(|upstream| {
        let hits = upstream.board().hits(who.tenant_id());
        let advice = hits.first().map(|hit| hit.limit.advice());
        json!({"buckets": upstream.board().buckets(), "hits": hits, "advice": advice,
            "quota": quota(upstream, who),
            "breaker": upstream.breaker().shown(Instant::now())})
    });
    json!({
        "tenant": who.tenant_id(),
        "limits": {
            "calls": config.and_then(|c| some(c.max_calls as u64)),
            "connects_per_minute": config.and_then(|c| some(u64::from(c.connects_per_minute))),
            "text_requests_per_minute": config.and_then(|c| some(c.text_requests_per_minute)),
            "text_tokens_per_minute": config.and_then(|c| some(c.text_tokens_per_minute)),
            "max_call_s": who.max_call_s(call.max_s),
            "idle_s": some(who.idle_s(call.idle_s)),
            "agents": config.map(|c| &c.agents).filter(|list| !list.is_empty()),
            "models": config.map(|c| &c.models).filter(|list| !list.is_empty()),
            "origins": config.map(|c| &c.origins),
            "addresses": config.map(|c| c.addresses.iter().map(Net::to_string).collect::<Vec<_>>()).filter(|l| !l.is_empty()),
        },
        "budgets": shared.budgets.view(who),
        "now": {"calls": shared.gate.roster().count(who.tenant_id())},
        "upstream": upstream,
        "routes": tiers(shared, who),
    })
}
