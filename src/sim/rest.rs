//! The REST side: client secrets, and WebRTC and SIP calls as far as they can be had without media.
//!
//! What it follows: the API's specification (client_secrets, calls; read 2026-08) and what was seen at the service. A secret
//! opens any number of sessions until it expires; its expiry ends none. A call is answered with a canned SDP that a browser
//! takes; no media ever flows, and the call lives until it is hung up.
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{FromRequest as _, Multipart, Path, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header},
    routing::post,
};
use futures_util::{StreamExt as _, stream};
use serde_json::{Value, json};
use tokio::time::{self, Instant};
use tokio_util::sync::CancellationToken;

use super::{
    admit::{self, Knock},
    faults::{FaultKind, Place},
    sdp,
    session::World,
    settings::Settings,
    validate::{INVALID_REQUEST, Refusal},
};
use crate::scripted::Dice;

/// Bodies are not longer, bytes.
const MAX_BODY: usize = 1 << 20;
/// Lifetimes that the service grants, seconds, and its own choice.
const TTL_MAX: u64 = 7_200;
const TTL: u64 = 600;
/// Calls and secrets that are remembered.
const MAX_KEPT: usize = 100_000;

/// Secrets and calls of a running simulator.
#[derive(Debug, Default)]
pub(super) struct Desk {
    secrets: Mutex<HashMap<String, Secret>>,
    calls: Mutex<HashMap<String, Call>>,
    mints: AtomicU64,
    exchanges: AtomicU64,
    acts: AtomicU64,
}

#[derive(Debug, Clone)]
struct Secret {
    until: Instant,
    session: Value,
    /// The key that made it.
    account: Option<String>,
}

#[derive(Debug, Clone)]
struct Call {
    session: Value,
    /// A call from the telephone network that nobody has taken yet.
    ringing: bool,
    over: CancellationToken,
}

impl Desk {
    fn secrets(&self) -> MutexGuard<'_, HashMap<String, Secret>> {
        self.secrets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn calls(&self) -> MutexGuard<'_, HashMap<String, Call>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks a client secret up and puts what it stands for into `knock`.
    pub(super) fn look_up(&self, knock: &mut Knock) {
        let Some(key) = knock.key.as_deref().filter(|key| key.starts_with("ek_")) else { return };
        match self.secrets().get(key) {
            Some(secret) if secret.until > Instant::now() => {
                (knock.session, knock.account) = (Some(secret.session.clone()), secret.account.clone());
            }
            _ => knock.unknown_secret = true,
        }
    }

    /// The call that a sideband asks for: its session, and what ends it.
    pub(super) fn join(&self, id: &str) -> Option<(Value, CancellationToken)> {
        let calls = self.calls();
        let call = calls.get(id).filter(|call| !call.ringing && !call.over.is_cancelled())?;
        Some((call.session.clone(), call.over.clone()))
    }

    pub(super) fn revoke_secrets(&self) {
        self.secrets().clear();
    }

    pub(super) fn ring(&self, id: &str) {
        let call = Call { session: Value::Null, ringing: true, over: CancellationToken::new() };
        self.calls().insert(id.to_owned(), call);
    }

    pub(super) fn live_calls(&self) -> usize {
        self.calls().values().filter(|call| !call.ringing && !call.over.is_cancelled()).count()
    }
}

/// The addresses, for OpenAI's base and for Azure's.
pub(super) fn routes<S: Clone + Send + Sync + 'static>(world: Arc<World>) -> Router<S> {
    let mut router = Router::new();
    for base in ["/v1", "/openai/v1"] {
        router = router
            .route(&format!("{base}/realtime/client_secrets"), post(client_secrets))
            .route(&format!("{base}/realtime/calls"), post(calls))
            .route(&format!("{base}/realtime/calls/{{id}}/{{act}}"), post(act));
    }
    router.with_state(world)
}

/// A refusal of the REST side.
#[derive(Debug)]
pub(super) enum No {
    /// Told as the service tells its errors.
    Refused { status: StatusCode, refusal: Refusal },
    /// Told in words that are already written.
    Written(Box<Response<Body>>),
}

impl No {
    pub(super) fn new(status: StatusCode, refusal: Refusal) -> Self {
        Self::Refused { status, refusal }
    }

    pub(super) fn bad(refusal: Refusal) -> Self {
        Self::new(StatusCode::BAD_REQUEST, refusal)
    }

    pub(super) fn told(self) -> Response<Body> {
        match self {
            Self::Refused { status, refusal } => json_answer(status, &error_json(&refusal)),
            Self::Written(response) => *response,
        }
    }
}

pub(super) type Answer = Result<Response<Body>, No>;

impl World {
    /// Faults and the bookkeeping that all addresses share.
    async fn rest(&self, place: Place, number: u64, work: impl Future<Output = Answer>) -> Response<Body> {
        let answer = match self.fault(place, number).await {
            Err(no) => Err(no),
            Ok(_) => {
                time::sleep(Dice::new(self.config.seed ^ 0x3E57, number).delay(self.config.delays.rest)).await;
                work.await
            }
        };
        self.answered(answer)
    }

    /// What is scripted for the `number`-th request at a door, refusals and waits carried out.
    pub(super) async fn fault(&self, place: Place, number: u64) -> Result<Option<FaultKind>, No> {
        match self.faults.at_door(place, number) {
            Some(FaultKind::Refuse { status, retry_after_s, body }) => {
                Err(No::Written(Box::new(super::server::refusal(status, retry_after_s, body))))
            }
            Some(FaultKind::Hang { for_ms }) => {
                time::sleep(for_ms.map_or(Duration::from_secs(3_600), Duration::from_millis)).await;
                Ok(None)
            }
            fault => Ok(fault),
        }
    }

    /// An answer as it goes out: refusals counted, and with the headers that all have.
    pub(super) fn answered(&self, answer: Answer) -> Response<Body> {
        let mut response = answer.unwrap_or_else(No::told);
        if !response.status().is_success() {
            *self.stats.lock().rest_refused.entry(response.status().as_u16()).or_default() += 1;
        }
        self.dress(response.headers_mut());
        response
    }

    /// The headers that every answer of the service has.
    fn dress(&self, headers: &mut HeaderMap) {
        let limits = &self.config.rate_limits;
        let set = [
            ("x-ratelimit-limit-requests", limits.rest_requests.to_string()),
            ("x-ratelimit-remaining-requests", limits.rest_requests.saturating_sub(1).to_string()),
            ("x-ratelimit-reset-requests", "12ms".to_owned()),
            ("date", http_date(self.unix_now())),
            ("x-request-id", "req_sim".to_owned()),
            // A client of the live service gets it, and must neither need nor keep it.
            ("set-cookie", "__cf_bm=sim; path=/; HttpOnly; Secure".to_owned()),
        ];
        for (name, value) in set {
            if let Ok(value) = HeaderValue::try_from(value) {
                headers.insert(HeaderName::from_static(name), value);
            }
        }
    }

    /// The service's clock, Unix seconds.
    pub(super) fn unix_now(&self) -> u64 {
        let ours = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        ours.saturating_add_signed(self.config.clock_offset_s)
    }

    /// Who asks: a key that is good, with the session of a secret if it is one.
    pub(super) fn who(&self, headers: &HeaderMap) -> Result<Knock, No> {
        let mut knock = super::server::knock(headers, &[], &HashMap::new());
        self.desk.look_up(&mut knock);
        let status = StatusCode::UNAUTHORIZED;
        admit::key(&self.config, &knock).map_err(|rejected| No::new(status, rejected.refusal))?;
        if self.config.quota_keys.iter().any(|poor| Some(poor) == knock.key.as_ref()) {
            let message = "You exceeded your current quota, please check your plan and billing details.";
            let refusal = Refusal { kind: "insufficient_quota".into(), ..Refusal::new("insufficient_quota", message) };
            return Err(No::new(StatusCode::TOO_MANY_REQUESTS, refusal));
        }
        Ok(knock)
    }

    /// A session as its secret or call shows it, or why it makes none. A model that is gone is found out at the
    /// connection, not here (realtime-protocol section 6).
    fn session(&self, asked: &Value) -> Result<Value, No> {
        let settings = match asked.get("type").and_then(Value::as_str) {
            Some("transcription") => {
                let mut settings = Settings::transcription();
                settings.update(asked, false).map_err(No::bad)?;
                settings
            }
            _ => {
                let name = asked.get("model").and_then(Value::as_str).unwrap_or("gpt-realtime");
                let model = self.config.model(name).unwrap_or_else(|| super::config::Model::named(name));
                let mut settings = Settings::new(model, self.config.instructions.clone());
                settings.update(asked, false).map_err(No::bad)?;
                settings
            }
        };
        Ok(settings.json(&Dice::new(self.config.seed, asked.to_string().len() as u64).id("sess"), 0))
    }
}

async fn client_secrets(State(world): State<Arc<World>>, request: Request) -> Response<Body> {
    let number = world.desk.mints.fetch_add(1, Ordering::Relaxed) + 1;
    world.stats.lock().mint_attempts += 1;
    let headers = request.headers().clone();
    let work = async {
        let knock = world.who(&headers)?;
        if knock.session.is_some() {
            let message = "A client secret cannot create another one: use an API key.";
            return Err(No::new(StatusCode::UNAUTHORIZED, Refusal::new("invalid_api_key", message)));
        }
        let body: Value = serde_json::from_slice(&body(request).await?)
            .map_err(|_| No::bad(Refusal::new("invalid_json", "We could not parse the JSON body of your request.")))?;
        let ttl = ttl(&world, &body)?;
        let asked = body.get("session").cloned().unwrap_or_else(|| json!({"type": "realtime"}));
        let session = world.session(&asked)?;
        let value = Dice::new(world.config.seed ^ 0x5EC4E7, number).id("ek");
        let mut secrets = world.desk.secrets();
        let now = Instant::now();
        if secrets.len() >= MAX_KEPT {
            secrets.retain(|_, secret| secret.until > now);
        }
        secrets.insert(
            value.clone(),
            Secret { until: now + Duration::from_secs(ttl), session: asked, account: knock.key },
        );
        drop(secrets);
        let mut stats = world.stats.lock();
        stats.mints += 1;
        stats
            .safety_ids
            .extend(headers.get("openai-safety-identifier").and_then(|v| v.to_str().ok()).map(str::to_owned));
        drop(stats);
        let shown = match world.faults.at_door(Place::Expiry, number) {
            Some(FaultKind::Expiry { offset_s }) => world.unix_now().saturating_add_signed(offset_s),
            _ => world.unix_now() + ttl,
        };
        Ok(json_answer(StatusCode::OK, &json!({"value": value, "expires_at": shown, "session": session})))
    };
    world.rest(Place::Mint, number, work).await
}

/// How long a secret is to live, seconds.
fn ttl(world: &World, body: &Value) -> Result<u64, No> {
    let Some(asked) = body.get("expires_after") else { return Ok(TTL) };
    if asked.get("anchor").is_some_and(|anchor| anchor != "created_at") {
        return Err(No::bad(Refusal::choice("expires_after.anchor", "another one", &["created_at"])));
    }
    let Some(seconds) = asked.get("seconds") else { return Ok(TTL) };
    let least = world.config.secret_min_s;
    match seconds.as_u64() {
        Some(ttl) if (least..=TTL_MAX).contains(&ttl) => Ok(ttl),
        Some(ttl) if ttl < least => {
            let message =
                format!("Invalid 'expires_after.seconds': expected a value >= {least}, but got {ttl} instead.");
            Err(No::bad(Refusal::new("integer_below_min_value", &*message).at("expires_after.seconds")))
        }
        Some(ttl) => {
            let message =
                format!("Invalid 'expires_after.seconds': expected a value <= {TTL_MAX}, but got {ttl} instead.");
            Err(No::bad(Refusal::new("integer_above_max_value", &*message).at("expires_after.seconds")))
        }
        None => {
            let message = "Invalid type for 'expires_after.seconds': expected an integer.";
            Err(No::bad(Refusal::new("invalid_type", message).at("expires_after.seconds")))
        }
    }
}

async fn calls(State(world): State<Arc<World>>, request: Request) -> Response<Body> {
    let number = world.desk.exchanges.fetch_add(1, Ordering::Relaxed) + 1;
    let headers = request.headers().clone();
    let work = async {
        let knock = world.who(&headers)?;
        let kind = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let (offer, session) = if kind.starts_with("application/sdp") {
            (body(request).await?, None)
        } else if kind.starts_with("multipart/form-data") {
            parts(request).await?
        } else {
            let message = "Unsupported content type: use application/sdp or multipart/form-data.";
            return Err(No::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, Refusal::new("unsupported_content_type", message)));
        };
        let session = session.or(knock.session).unwrap_or_else(|| json!({"type": "realtime", "model": "gpt-realtime"}));
        let model = session.get("model").and_then(Value::as_str).map(str::to_owned);
        let asked =
            Knock { key: knock.key.clone(), model: model.or(Some("gpt-realtime".to_owned())), ..Knock::default() };
        admit::admit(&world.config, &asked).map_err(|rejected| {
            let status = if rejected.close_code == 4_004 { StatusCode::NOT_FOUND } else { StatusCode::BAD_REQUEST };
            No::new(status, rejected.refusal)
        })?;
        world.session(&session)?;
        let offer = String::from_utf8_lossy(&offer).into_owned();
        let answer = sdp::answer(&offer).ok_or_else(|| {
            No::bad(Refusal::new("invalid_offer", "Failed to parse SDP offer: it has no audio section.").at("sdp"))
        })?;
        let id = Dice::new(world.config.seed ^ 0xCA11, number).id("rtc");
        world.desk.calls().insert(id.clone(), Call { session, ringing: false, over: CancellationToken::new() });
        let mut stats = world.stats.lock();
        stats.calls += 1;
        stats
            .safety_ids
            .extend(headers.get("openai-safety-identifier").and_then(|v| v.to_str().ok()).map(str::to_owned));
        drop(stats);
        let body = if world.config.stall_answers {
            let half = answer.get(..answer.len() / 2).unwrap_or_default().to_owned();
            let never = stream::iter([Ok::<_, std::io::Error>(half)]).chain(stream::pending());
            Body::from_stream(never)
        } else {
            Body::from(answer)
        };
        let mut response = Response::new(body);
        *response.status_mut() = StatusCode::CREATED;
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/sdp"));
        if let Ok(place) = HeaderValue::try_from(format!("/v1/realtime/calls/{id}")) {
            response.headers_mut().insert(header::LOCATION, place);
        }
        Ok(response)
    };
    world.rest(Place::Calls, number, work).await
}

async fn act(
    State(world): State<Arc<World>>,
    Path((id, act)): Path<(String, String)>,
    request: Request,
) -> Response<Body> {
    let number = world.desk.acts.fetch_add(1, Ordering::Relaxed) + 1;
    let headers = request.headers().clone();
    let work = async {
        let knock = world.who(&headers)?;
        if knock.session.is_some() {
            let message = "A client secret cannot control a call: use an API key.";
            return Err(No::new(StatusCode::UNAUTHORIZED, Refusal::new("invalid_api_key", message)));
        }
        let body = body(request).await?;
        let body: Value = if body.is_empty() {
            json!({})
        } else {
            serde_json::from_slice(&body).map_err(|_| No::bad(Refusal::new("invalid_json", "The body is not JSON.")))?
        };
        let nobody = || {
            let message = format!("No call found with id '{}'.", super::validate::shorten(&id));
            No::new(StatusCode::NOT_FOUND, Refusal::new("call_id_not_found", &*message))
        };
        let mut calls = world.desk.calls();
        let call = calls.get_mut(&id).filter(|call| !call.over.is_cancelled()).ok_or_else(nobody)?;
        match (act.as_str(), call.ringing) {
            ("accept", true) => {
                call.session = world.session(&body).map(|_| body)?;
                call.ringing = false;
            }
            ("reject", true) | ("hangup", false) => call.over.cancel(),
            ("refer", false) => {
                let target = body.get("target_uri").and_then(Value::as_str).unwrap_or_default();
                if !target.starts_with("tel:") && !target.starts_with("sip:") {
                    let message = "Invalid 'target_uri': use a tel: or sip: URI.";
                    return Err(No::bad(Refusal::new("invalid_value", message).at("target_uri")));
                }
            }
            ("accept" | "reject" | "refer" | "hangup", _) => {
                let message = "The call is not in a state that allows this.";
                return Err(No::new(StatusCode::CONFLICT, Refusal::new("invalid_call_state", message)));
            }
            _ => return Err(No::new(StatusCode::NOT_FOUND, Refusal::new("unknown_url", "Unknown request URL."))),
        }
        drop(calls);
        *world.stats.lock().call_acts.entry(act.clone()).or_default() += 1;
        Ok(Response::new(Body::empty()))
    };
    world.rest(Place::Acts, number, work).await
}

async fn body(request: Request) -> Result<Bytes, No> {
    axum::body::to_bytes(request.into_body(), MAX_BODY).await.map_err(|_| too_large())
}

fn too_large() -> No {
    No::new(StatusCode::PAYLOAD_TOO_LARGE, Refusal::new("request_too_large", "The request body is too large."))
}

/// The parts `sdp` and `session` of a multipart body.
async fn parts(request: Request) -> Result<(Bytes, Option<Value>), No> {
    let broken = || No::bad(Refusal::new("invalid_multipart", "The multipart body cannot be read."));
    let mut form = Multipart::from_request(request, &()).await.map_err(|_| broken())?;
    let (mut offer, mut session) = (None, None);
    while let Some(field) = form.next_field().await.map_err(|_| broken())? {
        let name = field.name().unwrap_or_default().to_owned();
        let bytes = field.bytes().await.map_err(|_| broken())?;
        match name.as_str() {
            "sdp" => offer = Some(bytes),
            "session" => {
                let read = serde_json::from_slice(&bytes);
                session = Some(
                    read.map_err(|_| No::bad(Refusal::new("invalid_json", "`session` is not JSON.").at("session")))?,
                );
            }
            _ => {}
        }
    }
    let missing =
        || No::bad(Refusal::new("missing_required_parameter", "Missing required parameter: 'sdp'.").at("sdp"));
    Ok((offer.ok_or_else(missing)?, session))
}

/// An error as the service writes it.
pub(super) fn error_json(refusal: &Refusal) -> Value {
    let kind = if refusal.kind.is_empty() { INVALID_REQUEST } else { &refusal.kind };
    json!({"error": {"message": refusal.message, "type": kind, "param": refusal.param, "code": refusal.code}})
}

pub(super) fn json_answer(status: StatusCode, body: &Value) -> Response<Body> {
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// A moment as HTTP writes it (RFC 9110 section 5.6.7).
fn http_date(unix: u64) -> String {
    httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(unix))
}
