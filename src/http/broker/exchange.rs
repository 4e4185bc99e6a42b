//! `POST /v1/realtime/calls`: SDP in, SDP out, and a call that is watched whatever becomes of the client that asked for it.
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{
    body::Body,
    extract::{FromRequest as _, Multipart, Request, State},
    http::{HeaderMap, HeaderValue, Response, StatusCode, header},
    response::IntoResponse as _,
};
use bytes::Bytes;
use serde_json::{Map, Value};
use tokio::{sync::watch, time};
use tracing::Instrument as _;

use super::{
    Answer, answer, bad,
    control::{HANG_UP_WITHIN, internal, watch_call},
    identify, is_unclear, merge, query, refused,
};
use crate::{
    admit::{Denied, Principal},
    call::sideband::{self, Watched},
    config::{Credentials, Scope, Secret},
    http::{
        body::{self, BodyError},
        idempotency::{self, Begin, Entry, Keys, mark},
    },
    serve::{
        FULL_RETRY, Shared, license, random_id,
        realtime::{self, Refusal, line},
    },
    upstream::{UpstreamError, open::Upstream, rest::Taken, secrets::Order},
};

/// Longest SDP with its session, bytes.
const MAX_BODY: usize = 512 << 10;
/// Longest SDP alone, bytes; browsers write a few thousand.
const LONGEST_OFFER: usize = 64 << 10;
/// A client that may come again for the answer of its call has so long for it.
const FETCH_WITHIN: Duration = Duration::from_secs(60);

/// `POST /v1/realtime/calls`
pub(super) async fn calls(State(shared): State<Arc<Shared>>, request: Request) -> Response<Body> {
    answer(begin(&shared, request).await)
}

async fn begin(shared: &Arc<Shared>, request: Request) -> Answer {
    let (head, body) = request.into_parts();
    let fields = query(&head);
    let who = identify(shared, &head, &fields, Scope::Secret).await?;
    let upstream = realtime::upstream(shared, &who)?;
    let key = idempotency::key(&head.headers);
    let key = key.map_err(|wrong| bad("invalid_value", &wrong).at("Idempotency-Key"))?;
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
    let asked = session.as_ref().map(Value::to_string).unwrap_or_default();
    let mark = mark([&offer, asked.as_bytes()]);
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
    let landed = landed.unwrap_or_else(|| Err(internal()));
    fetched.store(true, Ordering::Release);
    landed.map(|taken| {
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
        "application/sdp" => (body::read(body, MAX_BODY).await?, None),
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
    let whole = body::read(body, MAX_BODY).await?;
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
    let model = super::model_of(&who, session.as_ref());
    let Answering { land, entry, fetched } = answer;
    let begun = async {
        let line = line(shared)?;
        let id = random_id("call");
        let license = license(shared, &who, &id, "webrtc").await?;
        match ask(&upstream, &model, &who, &id, offer, session).await {
            Ok(taken) => Ok::<_, Refusal>((line, license, taken)),
            Err(error) => {
                // What has certainly begun nothing has used nothing.
                if !is_unclear(&error) {
                    shared.gate.give_back(&who).await;
                }
                // A secret that the service does not know any more is the client's to replace.
                let stale = who.secret().is_some() && error.verdict().code == "upstream_auth";
                Err(if stale { Denied::Credential.into() } else { refused(&error) })
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
            drop(land.send(Some(Err(refused(&error)))));
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
    let books = super::books(shared, &who, call, "webrtc", model);
    let watched = Watched { books, life, license, upstream, drain, stop };
    tokio::select! {
        () = watch_call(watched) => {}
        () = unfetched => {}
    }
    drop(line);
}

/// The exchange itself, with what the account opens sessions with. A cached secret that is refused is replaced once.
async fn ask(
    upstream: &Upstream,
    model: &str,
    who: &Principal,
    call: &str,
    offer: Bytes,
    session: Option<Value>,
) -> Result<Taken, UpstreamError> {
    let Some(session) = session else {
        let secret = who.secret().map(|secret| &secret.value);
        let taken = upstream.exchange(model, offer, None, secret, who).await;
        if let (Err(error), Some(secret)) = (&taken, secret)
            && error.verdict().code == "upstream_auth"
        {
            upstream.secrets().refused_when_brought(secret);
        }
        return taken;
    };
    if upstream.config().credentials == Credentials::ApiKey {
        return upstream.exchange(model, offer, Some(&session), None, who).await;
    }
    let order = Order::new(&session, upstream.config().secret_ttl_s, who, Some(call));
    let mut renewed = false;
    loop {
        let lent = upstream.secrets().get(&order, 0.0).await?;
        let secret: &Secret = &lent.value;
        let error = match upstream.exchange(model, offer.clone(), None, Some(secret), who).await {
            Err(error) if error.verdict().code == "upstream_auth" => error,
            done => return done,
        };
        upstream.secrets().refused(&order, lent.generation, &error);
        if std::mem::replace(&mut renewed, true) {
            return Err(error);
        }
    }
}

/// A call's id, and its SDP answer.
#[derive(Debug, Clone)]
pub(crate) struct Answered {
    call: String,
    sdp: Bytes,
}

type Landed = Result<Answered, Refusal>;

/// SDP exchanges by idempotency key, and whether somebody was given the answer.
pub(crate) type Exchanges = Keys<Landed, Arc<AtomicBool>>;
