//! Calls that run: `POST /v1/realtime/calls/{id}/{hangup,refer,accept,reject}`, and how they are watched.
use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{Request, State},
    http::{Response, StatusCode},
    response::IntoResponse as _,
};
use serde_json::Value;
use tracing::Instrument as _;

use super::{Answer, answer, identify, is_unclear, merge, query, refused};
use crate::{
    admit::{Denied, Principal},
    call::sideband::{self, Watched},
    client::openai::SERVER_ERROR,
    config::Scope,
    http::{body, part::Part},
    serve::{
        Shared, license,
        realtime::{self, Refusal, line},
    },
    upstream::{
        open::Upstream,
        rest::{Act, is_call},
    },
};

/// Longest request, bytes.
const MAX_BODY: usize = 256 << 10;
/// A call that may have been taken is hung up within this.
pub(super) const HANG_UP_WITHIN: Duration = Duration::from_secs(60);

/// Our bug.
pub(super) fn internal() -> Refusal {
    let status = StatusCode::INTERNAL_SERVER_ERROR;
    Refusal { kind: SERVER_ERROR, ..Refusal::new(status, "internal", "An internal error.".to_owned()) }
}

/// Watches a call to its end.
pub(super) async fn watch_call(watched: Watched) {
    let span = tracing::info_span!("call", id = watched.books.call, tenant = watched.license.who().tenant_id());
    let end = sideband::run(watched).instrument(span).await;
    tracing::debug!(%end, "end");
}

/// `POST /v1/realtime/calls/{id}/{hangup,refer,accept,reject}`
pub(super) async fn act(
    State(shared): State<Arc<Shared>>,
    Part((id, act)): Part<(String, String)>,
    request: Request,
) -> Response<Body> {
    answer(control(&shared, &id, &act, request).await)
}

async fn control(shared: &Arc<Shared>, id: &str, name: &str, request: Request) -> Answer {
    let (head, body) = request.into_parts();
    let fields = query(&head);
    let act: Result<Act, ()> = name.parse();
    // A call that rings belongs to nobody yet: whoever may take calls from the telephone network may take it.
    let takes = matches!(act, Ok(Act::Accept | Act::Reject));
    let who = identify(shared, &head, &fields, if takes { Scope::Sip } else { Scope::Secret }).await?;
    let nobody = || {
        let message = "No such call.".to_owned();
        Refusal::new(StatusCode::NOT_FOUND, "call_id_not_found", message).at("call_id")
    };
    let act = act.map_err(|()| nobody())?;
    if who.secret().is_some() {
        return Err(Denied::Scope(Scope::Secret).into());
    }
    let owner = shared.gate.roster().who(id);
    let own = owner.as_ref().is_some_and(|owner| who.steers(owner));
    if act == Act::Refer && who.token().is_some() {
        // A caller could send the call to any number, at its tenant's cost.
        return Err(Denied::Scope(Scope::Secret).into());
    }
    if !is_call(id) || owner.is_some() && !own || !own && !takes {
        return Err(nobody());
    }
    let upstream = realtime::upstream(shared, &who)?;
    let asked = body::object(body, MAX_BODY).await?;
    if act == Act::Accept {
        let (session, _) = merge(shared, &who, &upstream, &fields, asked)?;
        return accept(shared, id, who, upstream, session).await;
    }
    let body = (!asked.is_empty()).then(|| Value::Object(asked).to_string().into());
    upstream.rest().act(id, act, body, &who).await.map_err(|error| refused(&error))?;
    if act == Act::HangUp {
        shared.gate.roster().end(id, who.tenant_id());
    }
    Ok(StatusCode::OK.into_response())
}

/// Takes a call from the telephone network, and watches it.
async fn accept(shared: &Arc<Shared>, id: &str, who: Principal, upstream: Upstream, session: Value) -> Answer {
    let line = line(shared)?;
    // The place is taken first: of two who accept the same call, one is too late.
    let license = license(shared, &who, id, "sip").await?;
    // In a task of its own, for the call may be billed whether or not anybody hears of it.
    let (task, call) = (shared.clone(), id.to_owned());
    let (told, tells) = tokio::sync::oneshot::channel();
    shared.calls.spawn(async move {
        let model = super::model_of(&who, Some(&session));
        let accepted = upstream.accept(&model, &call, &session, &who).await;
        match accepted {
            // Nobody knows whether it was taken, so that it is taken to be.
            Err(error) if is_unclear(&error) => {
                let _ = told.send(Err(refused(&error)));
                sideband::hang_up(&upstream, &call, &license, HANG_UP_WITHIN).await;
            }
            Err(error) => drop(told.send(Err(refused(&error)))),
            Ok(()) => {
                let life = task.life(&who, call.clone());
                // It goes on, whoever has asked for it.
                let _ = told.send(Ok(()));
                let (drain, stop) = (task.drain(), task.stop.clone());
                let books = super::books(&task, &who, call, "sip", model);
                watch_call(Watched { books, life, license, upstream, drain, stop }).await;
            }
        }
        drop(line);
    });
    tells.await.unwrap_or_else(|_| Err(internal())).map(|()| StatusCode::OK.into_response())
}
