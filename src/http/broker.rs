//! The broker, for clients that speak to the service directly: client secrets, SDP, and what is done to calls.
//!
//! Everything is asked for by somebody who was identified, with the policy of their agent and tenant merged in, and answered in
//! the service's own shape. The account's key never leaves; texts of the service's are not passed on, its codes are. A call that
//! was begun is watched ([`sideband`]), whatever becomes of the client that asked for it.
use std::{
    borrow::Cow,
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use aws_lc_rs::digest::{SHA256, digest};
use axum::{
    Router,
    body::Body,
    extract::{FromRequest as _, Multipart, Path, Request, State},
    http::{HeaderMap, HeaderValue, Response, StatusCode, header, request::Parts},
    response::IntoResponse as _,
    routing::post,
};
use bytes::Bytes;
use serde_json::{Map, Value};
use tokio::{
    sync::watch,
    time::{self, Instant},
};
use tracing::Instrument as _;

use super::body::{self, BodyError};
use crate::{
    admit::{Denied, Principal},
    call::{
        policy::Policy,
        sideband::{self, Watched},
    },
    client::openai::SERVER_ERROR,
    config::{Credentials, Scope, Secret},
    serve::{
        FULL_RETRY, Fields, Shared, fields, license, random_id,
        realtime::{self, Refusal, no_model},
    },
    upstream::{
        UpstreamError,
        limits::QUOTA,
        open::Upstream,
        rest::{Act, Taken, is_call},
        secrets::Order,
    },
    wall::unix_now,
};

/// Longest request for a secret or of an act, bytes.
const MAX_JSON: usize = 256 << 10;
/// Longest SDP with its session, bytes.
const MAX_SDP: usize = 512 << 10;
/// Longest SDP alone, bytes; browsers write a few thousand.
const LONGEST_OFFER: usize = 64 << 10;
/// Lifetimes that the service grants, seconds, and its own choice.
const LIVES: std::ops::RangeInclusive<u64> = 10..=7_200;
const LIFE: u64 = 600;
/// How long an idempotency key is remembered.
const REMEMBERED: Duration = Duration::from_secs(600);
/// A client that may come again for the answer of its call has so long for it.
const FETCH_WITHIN: Duration = Duration::from_secs(60);
/// A call that may have been taken is hung up within this.
const HANG_UP_WITHIN: Duration = Duration::from_secs(60);
/// Idempotency keys that are remembered.
const KEYS: usize = 10_000;
/// Of one end user, or of a tenant that names none.
const KEYS_OF_ONE: usize = 2_000;

/// For OpenAI's base and for Azure's.
pub(crate) fn routes() -> Router<Arc<Shared>> {
    ["/v1", "/openai/v1"].into_iter().fold(Router::new(), |router, base| {
        router
            .route(&format!("{base}/realtime/client_secrets"), post(client_secrets))
            .route(&format!("{base}/realtime/calls"), post(calls))
            .route(&format!("{base}/realtime/calls/{{id}}/{{act}}"), post(act))
    })
}

type Answer = Result<Response<Body>, Refusal>;

fn answer(answer: Answer) -> Response<Body> {
    answer.unwrap_or_else(Response::from)
}

/// Whoever asks, with the right to ask for this; and who upstream is called by the end user that is named.
async fn identify(shared: &Shared, head: &Parts, fields: &Fields, scope: Scope) -> Result<Principal, Refusal> {
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

/// The query's fields; one that cannot be read is none: the paths here need none.
fn query(head: &Parts) -> Fields {
    fields(&head.uri).unwrap_or_default()
}

fn field<'f>(fields: &'f Fields, name: &str) -> Option<&'f str> {
    fields.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
}

/// `POST /v1/realtime/client_secrets`
async fn client_secrets(State(shared): State<Arc<Shared>>, request: Request) -> Response<Body> {
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
    let asked = body::object(body, MAX_JSON).await?;
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

/// The session of a client that speaks to the service by itself: its wishes, under the policy of its agent and tenant. And its
/// model, unless it only writes down.
fn merge(
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
    let model = realtime::model(shared, who, upstream, &agent, asked)?;
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
fn is_no_model(error: &UpstreamError) -> bool {
    let code = match innermost(error) {
        UpstreamError::Http { code, .. } => code.as_deref().unwrap_or_default(),
        UpstreamError::Refused { code, .. } => code,
        _ => return false,
    };
    ["model_not_found", "invalid_model", "missing_model"].contains(&code)
}

/// Why there is no credential, rather than that there is none.
fn innermost(error: &UpstreamError) -> &UpstreamError {
    match error {
        UpstreamError::NoCredential { error, .. } => innermost(error),
        other => other,
    }
}

/// `POST /v1/realtime/calls`
async fn calls(State(shared): State<Arc<Shared>>, request: Request) -> Response<Body> {
    answer(begin(&shared, request).await)
}

async fn begin(shared: &Arc<Shared>, request: Request) -> Answer {
    let (head, body) = request.into_parts();
    let fields = query(&head);
    let who = identify(shared, &head, &fields, Scope::Secret).await?;
    let upstream = realtime::upstream(shared, &who)?;
    let key = idempotency_key(&head.headers)?;
    let (offer, session) = offer_of(&head.headers, body).await?;
    if let Some(secret) = who.secret().filter(|secret| !who.may_call(&secret.agent)) {
        let message = format!("Agent `{}` is not one that this credential may call.", secret.agent);
        return Err(Refusal::new(StatusCode::FORBIDDEN, "forbidden", message));
    }
    let session = match who.secret() {
        // The session is the secret's, made under the policy.
        Some(_) if session.is_some() => {
            let message = "A client secret has a session already: send the SDP alone, as application/sdp.";
            return Err(bad("invalid_request", message).at("session"));
        }
        Some(_) => None,
        None => Some(merge(shared, &who, &upstream, &fields, session.unwrap_or_default())?.0),
    };
    let mark = mark(&offer, session.as_ref());
    let whose = format!("{}\n{}", who.tenant_id(), who.user().unwrap_or_default());
    let entry = key.clone().map(|key| (whose, key));
    let fetched = Arc::new(AtomicBool::new(false));
    let (mut landing, fetched, land) =
        match entry.clone().map(|entry| shared.exchanges.begin(entry, mark, fetched.clone())) {
            None => {
                let (land, landing) = watch::channel(None);
                (landing, fetched, Some(land))
            }
            Some(Begin::First(land, landing)) => (landing, fetched, Some(land)),
            Some(Begin::Again(landing, fetched)) => (landing, fetched, None),
            Some(Begin::Other) => {
                let message = "This Idempotency-Key was used for another request.";
                let refusal = Refusal::new(StatusCode::CONFLICT, "idempotency_error", message.to_owned());
                return Err(refusal.at("Idempotency-Key"));
            }
            Some(Begin::Full) => {
                let message = "Too many idempotency keys are in use.".to_owned();
                let refusal = Refusal::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_exceeded", message);
                return Err(Refusal { retry_after: Some(FULL_RETRY), ..refusal });
            }
        };
    if let Some(land) = land {
        // In a task of its own: a client that goes away does not stop what may be billed already.
        let asked = Asked { who, upstream, offer, session };
        let answer = Answering { land, entry, fetched: fetched.clone() };
        let task = shared.clone();
        shared.calls.spawn(async move { exchange(&task, asked, answer).await }.in_current_span());
    }
    let landed = landing.wait_for(Option::is_some).await.ok().and_then(|landed| landed.clone());
    let landed = landed.unwrap_or_else(|| Err(Refused::internal()));
    fetched.store(true, Ordering::Release);
    landed.map_err(Refusal::from).map(|taken| {
        let headers = [
            (header::CONTENT_TYPE, HeaderValue::from_static("application/sdp")),
            (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        ];
        let mut response = (StatusCode::CREATED, headers, taken.sdp).into_response();
        if let Ok(place) = HeaderValue::try_from(format!("/v1/realtime/calls/{}", taken.call)) {
            response.headers_mut().insert(header::LOCATION, place);
        }
        response
    })
}

/// The body's SDP, and the session beside it.
async fn offer_of(headers: &HeaderMap, body: Body) -> Result<(Bytes, Option<Map<String, Value>>), Refusal> {
    let whole = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = whole.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let (offer, session) = match kind.as_str() {
        "application/sdp" => (body::read(body, MAX_SDP).await?, None),
        "multipart/form-data" => parts(whole, body).await?,
        _ => {
            let message =
                "Unsupported content type: use application/sdp, or multipart/form-data with parts `sdp` and `session`.";
            let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
            return Err(Refusal::new(status, "unsupported_content_type", message.to_owned()).at("Content-Type"));
        }
    };
    if offer.len() > LONGEST_OFFER {
        return Err(BodyError::TooLarge(LONGEST_OFFER).into());
    }
    let wrong = match std::str::from_utf8(&offer) {
        _ if offer.is_empty() => Some("The SDP offer is empty."),
        Err(_) => Some("The SDP offer is not UTF-8."),
        Ok(sdp) if !sdp.starts_with("v=0") => Some("The SDP offer does not begin with `v=0`."),
        Ok(sdp) if !sdp.lines().any(|line| line.starts_with("m=audio ")) => Some("The SDP offer has no audio."),
        Ok(_) => None,
    };
    wrong.map_or(Ok((offer, session)), |message| Err(bad("invalid_offer", message).at("sdp")))
}

/// The parts of a multipart body. A part that stands there twice could be read one way here and the other way there.
async fn parts(kind: &str, body: Body) -> Result<(Bytes, Option<Map<String, Value>>), Refusal> {
    let whole = body::read(body, MAX_SDP).await?;
    let broken =
        |what: &dyn std::fmt::Display| bad("invalid_multipart", &format!("The multipart body cannot be read: {what}."));
    let mut request = Request::new(Body::from(whole));
    request.headers_mut().extend(HeaderValue::from_str(kind).map(|kind| (header::CONTENT_TYPE, kind)));
    let mut form = Multipart::from_request(request, &()).await.map_err(|e| broken(&e))?;
    let (mut offer, mut session) = (None, None);
    while let Some(part) = form.next_field().await.map_err(|_| broken(&"it breaks off"))? {
        let name = part.name().unwrap_or_default().to_owned();
        let bytes = part.bytes().await.map_err(|_| broken(&"a part breaks off"))?;
        let (slot, name) = match name.as_str() {
            "sdp" => (&mut offer, "sdp"),
            "session" => (&mut session, "session"),
            other => {
                let other: String = other.chars().take(64).collect();
                return Err(bad("unknown_parameter", &format!("Unknown part `{other}`; known: sdp, session.")));
            }
        };
        if slot.replace(bytes).is_some() {
            return Err(bad("invalid_multipart", &format!("Part `{name}` is there twice.")).at(name));
        }
    }
    let missing = || bad("missing_required_parameter", "Missing required part: `sdp`.").at("sdp");
    let session = match session.as_deref().map(serde_json::from_slice) {
        None => None,
        Some(Ok(Value::Object(session))) => Some(session),
        Some(_) => return Err(bad("invalid_json", "Part `session` must be a JSON object.").at("session")),
    };
    Ok((offer.ok_or_else(missing)?, session))
}

/// A call that is asked for.
struct Asked {
    who: Principal,
    upstream: Upstream,
    offer: Bytes,
    /// None: the client secret has one.
    session: Option<Value>,
}

/// Those who wait for the answer.
struct Answering {
    land: watch::Sender<Option<Landed>>,
    /// They may come again with this.
    entry: Option<Entry>,
    /// Somebody was given the answer.
    fetched: Arc<AtomicBool>,
}

/// Exchanges SDP and watches the call that it begins.
async fn exchange(shared: &Arc<Shared>, asked: Asked, answer: Answering) {
    let Asked { who, upstream, offer, session } = asked;
    let Answering { land, entry, fetched } = answer;
    let begun = async {
        let line = shared.line().map_err(|why| Refused {
            retry_after: Some(FULL_RETRY),
            ..Refused::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", format!("The call cannot be taken: {why}."))
        })?;
        let id = random_id("call");
        let license =
            license(shared, &who, &id, "webrtc").await.map_err(|denied| Refused::from(Refusal::from(denied)))?;
        match ask(&upstream, &who, &id, offer, session).await {
            Ok(taken) => Ok((line, license, taken)),
            Err(error) => {
                // What has certainly begun nothing has used nothing.
                if !is_unclear(&error) {
                    shared.gate.give_back(&who).await;
                }
                Err(Refused::from(refused(&error)))
            }
        }
    };
    let (line, mut license, taken) = match begun.await {
        Ok(begun) => begun,
        Err(refused) => {
            // What has failed may be tried again: it is forgotten before anybody hears of it.
            entry.iter().for_each(|entry| shared.exchanges.forget(entry, &land));
            return drop(land.send(Some(Err(refused))));
        }
    };
    let Taken { call, sdp } = taken;
    license.rename(&call);
    let sdp = match sdp {
        Ok(sdp) => sdp,
        Err(error) => {
            // The call is there, and costs, although nobody can answer it.
            entry.iter().for_each(|entry| shared.exchanges.forget(entry, &land));
            drop(land.send(Some(Err(Refused::from(refused(&error))))));
            sideband::hang_up(&upstream, &call, &license, HANG_UP_WITHIN).await;
            return drop(line);
        }
    };
    let life = shared.life(&who, call.clone());
    let heard = land.send(Some(Ok(Answered { call: call.clone(), sdp }))).is_ok();
    let may_be_fetched = match (heard, entry.is_some()) {
        (_, true) => Some(FETCH_WITHIN),
        (false, false) => Some(Duration::ZERO),
        (true, false) => None,
    };
    let (id, tenant) = (call.clone(), who.tenant_id().to_owned());
    let unfetched = async {
        // A client that went away may come again for its answer, but not for ever: until then the call costs.
        if let Some(patience) = may_be_fetched {
            time::sleep(patience).await;
            if !fetched.load(Ordering::Acquire) {
                tracing::info!(call = id, "nobody came for the answer of this call: it is hung up");
                shared.gate.roster().end(&id, &tenant);
            }
        }
        std::future::pending().await
    };
    let (drain, stop) = (shared.drain(), shared.stop.clone());
    let watched = Watched { call, door: "webrtc", life, license, upstream, drain, stop };
    tokio::select! {
        () = watch_call(watched) => {}
        () = unfetched => {}
    }
    drop(line);
}

async fn watch_call(watched: Watched) {
    let span = tracing::info_span!("call", id = watched.call, tenant = watched.license.who().tenant_id());
    let end = sideband::run(watched).instrument(span).await;
    tracing::debug!(%end, "end");
}

/// The exchange itself, with what the account opens sessions with. A cached secret that is refused is replaced once.
async fn ask(
    upstream: &Upstream,
    who: &Principal,
    call: &str,
    offer: Bytes,
    session: Option<Value>,
) -> Result<Taken, UpstreamError> {
    let rest = upstream.rest();
    let Some(session) = session else {
        let secret = who.secret().map(|secret| &secret.value);
        let taken = rest.exchange(offer, None, secret, who).await;
        if let (Err(error), Some(secret)) = (&taken, secret)
            && error.verdict().code == "upstream_auth"
        {
            upstream.secrets().refused_when_brought(secret);
        }
        return taken;
    };
    if upstream.config().credentials == Credentials::ApiKey {
        return rest.exchange(offer, Some(&session), None, who).await;
    }
    let order = Order::new(&session, upstream.config().secret_ttl_s, who, Some(call));
    let mut renewed = false;
    loop {
        let lent = upstream.secrets().get(&order, 0.0).await?;
        let secret: &Secret = &lent.value;
        let error = match rest.exchange(offer.clone(), None, Some(secret), who).await {
            Err(error) if error.verdict().code == "upstream_auth" => error,
            done => return done,
        };
        upstream.secrets().refused(&order, lent.generation, &error);
        if std::mem::replace(&mut renewed, true) {
            return Err(error);
        }
    }
}

/// `POST /v1/realtime/calls/{id}/{hangup,refer,accept,reject}`
async fn act(
    State(shared): State<Arc<Shared>>,
    Path((id, act)): Path<(String, String)>,
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
    let asked = body::object(body, MAX_JSON).await?;
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
    let line = shared.line().map_err(|why| Refusal {
        kind: SERVER_ERROR,
        retry_after: Some(FULL_RETRY),
        ..Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", format!("The call cannot be taken: {why}."))
    })?;
    // The place is taken first: of two who accept the same call, one is too late.
    let license = license(shared, &who, id, "sip").await?;
    // In a task of its own, for the call may be billed whether or not anybody hears of it.
    let (task, call) = (shared.clone(), id.to_owned());
    let (told, tells) = tokio::sync::oneshot::channel();
    shared.calls.spawn(async move {
        let body = Some(session.to_string().into());
        let accepted = upstream.rest().act(&call, Act::Accept, body, &who).await;
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
                watch_call(Watched { call, door: "sip", life, license, upstream, drain, stop }).await;
            }
        }
        drop(line);
    });
    tells.await.unwrap_or_else(|_| Err(Refused::internal().into())).map(|()| StatusCode::OK.into_response())
}

/// Whether what was asked for may have been done all the same.
fn is_unclear(error: &UpstreamError) -> bool {
    match error {
        UpstreamError::Timeout { .. } | UpstreamError::Broken(_) => true,
        // One that says that it is not available has done nothing.
        UpstreamError::Http { status, .. } => status.is_server_error() && *status != StatusCode::SERVICE_UNAVAILABLE,
        _ => false,
    }
}

fn bad(code: &'static str, message: &str) -> Refusal {
    let status = if code == "invalid_api_key" { StatusCode::FORBIDDEN } else { StatusCode::BAD_REQUEST };
    Refusal::new(status, code, message.to_owned())
}

impl From<BodyError> for Refusal {
    fn from(error: BodyError) -> Self {
        let (status, code) = match error {
            BodyError::TooLarge(_) => (StatusCode::PAYLOAD_TOO_LARGE, "request_too_large"),
            BodyError::TooSlow => (StatusCode::REQUEST_TIMEOUT, "request_timeout"),
            BodyError::Broken | BodyError::Form(_) => (StatusCode::BAD_REQUEST, "invalid_json"),
        };
        Self::new(status, code, format!("{error}."))
    }
}

/// The service's refusal in its own code, where that is about the request; what is about our account is ours.
fn refused(error: &UpstreamError) -> Refusal {
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
        400..=428 | 430..=499 => crate::client::openai::INVALID_REQUEST,
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

/// A refusal that several may be told.
#[derive(Debug, Clone)]
pub(crate) struct Refused {
    status: StatusCode,
    kind: &'static str,
    code: &'static str,
    message: String,
    param: Option<Cow<'static, str>>,
    retry_after: Option<Duration>,
}

impl Refused {
    fn new(status: StatusCode, code: &'static str, message: String) -> Self {
        Self { status, kind: SERVER_ERROR, code, message, param: None, retry_after: None }
    }

    fn internal() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "An internal error.".to_owned())
    }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        let Refusal { status, kind, code, message, param, retry_after } = refusal;
        Self { status, kind, code, message, param, retry_after }
    }
}

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Self {
        let Refused { status, kind, code, message, param, retry_after } = refused;
        Self { status, kind, code, message, param, retry_after }
    }
}

/// A call's id, and its SDP answer.
#[derive(Debug, Clone)]
pub(crate) struct Answered {
    call: String,
    sdp: Bytes,
}

type Landed = Result<Answered, Refused>;
/// A tenant and an end user, and their key.
type Entry = (String, String);

/// SDP exchanges by idempotency key: a request that comes again gets the first one's answer, and begins no second call.
#[derive(Debug, Default)]
pub(crate) struct Exchanges(Mutex<HashMap<Entry, Exchange>>);

#[derive(Debug)]
struct Exchange {
    mark: [u8; 32],
    at: Instant,
    landing: watch::Receiver<Option<Landed>>,
    fetched: Arc<AtomicBool>,
}

enum Begin {
    First(watch::Sender<Option<Landed>>, watch::Receiver<Option<Landed>>),
    Again(watch::Receiver<Option<Landed>>, Arc<AtomicBool>),
    Other,
    Full,
}

impl Exchanges {
    fn begin(&self, entry: Entry, mark: [u8; 32], fetched: Arc<AtomicBool>) -> Begin {
        let now = Instant::now();
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // What has ended without a word, by a bug of ours, is not remembered either.
        let dead =
            |landing: &watch::Receiver<Option<Landed>>| landing.has_changed().is_err() && landing.borrow().is_none();
        all.retain(|_, exchange| now < exchange.at + REMEMBERED && !dead(&exchange.landing));
        if let Some(known) = all.get(&entry) {
            let again = || Begin::Again(known.landing.clone(), known.fetched.clone());
            return if known.mark == mark { again() } else { Begin::Other };
        }
        if all.len() >= KEYS || all.keys().filter(|(whose, _)| *whose == entry.0).count() >= KEYS_OF_ONE {
            return Begin::Full;
        }
        let (land, landing) = watch::channel(None);
        all.insert(entry, Exchange { mark, at: now, landing: landing.clone(), fetched });
        Begin::First(land, landing)
    }

    /// Forgets this exchange, and none that was begun with the same key after it.
    fn forget(&self, entry: &Entry, land: &watch::Sender<Option<Landed>>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.get(entry).is_some_and(|exchange| land.subscribe().same_channel(&exchange.landing)) {
            all.remove(entry);
        }
    }
}

/// Tells requests apart.
fn mark(offer: &[u8], session: Option<&Value>) -> [u8; 32] {
    let session = session.map(Value::to_string).unwrap_or_default();
    let whole = [&offer.len().to_be_bytes()[..], offer, session.as_bytes()].concat();
    let mut mark = [0; 32];
    mark.copy_from_slice(digest(&SHA256, &whole).as_ref());
    mark
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Refusal> {
    let mut keys = headers.get_all("idempotency-key").into_iter();
    let wrong = |found: &str| {
        let message = format!("`Idempotency-Key` must be 1 to 255 visible ASCII characters; found {found}.");
        bad("invalid_value", &message).at("Idempotency-Key")
    };
    let Some(key) = keys.next() else { return Ok(None) };
    if keys.next().is_some() {
        return Err(wrong("several"));
    }
    match key.to_str() {
        Ok(key) if (1..=255).contains(&key.len()) && key.bytes().all(|b| b.is_ascii_graphic()) => {
            Ok(Some(key.to_owned()))
        }
        Ok(key) => Err(wrong(&format!("{} characters", key.len()))),
        Err(_) => Err(wrong("others")),
    }
}
