//! `/v1/responses` and `/v1/audio/transcriptions`, as any SDK asks for them: who asks, the body, and the answer with its headers.
//!
//! What a request is worth and where it goes is [`crate::text`]'s. What was sent to the service is finished whoever goes meanwhile, so
//! that its cost is known; with an `Idempotency-Key` its answer is kept for whoever comes again.
use std::{borrow::Cow, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header, request::Parts},
    response::IntoResponse as _,
    routing::post,
};
use bytes::Bytes;
use futures_util::stream;
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{body, broker::refused, idempotency};
use crate::{
    admit::{Denied, Principal, governor::Class},
    client::openai::SERVER_ERROR,
    config::{Scope, TextConfig},
    serve::{
        FULL_RETRY, Shared, random_id,
        realtime::{self, Refusal, no_model},
    },
    text::{
        Kind,
        answer::{self, Kept, Passing, Whole},
        ask::{self, Wrong},
        kept::{Answers, Begin, Land, Landing},
        room::Room,
        run::{No, Order, Run, Texts},
        share::Full,
    },
};

/// A recording comes at least as fast as this, bytes a second; anything smaller has the time of [`body::read`].
const SLOWEST: u64 = 64 << 10;
/// What a form takes beside the recording, bytes.
const FORM: usize = 64 << 10;

/// What these addresses stand on.
#[derive(Debug)]
pub(crate) struct Desk {
    texts: Arc<Texts>,
    answers: Answers,
    room: Arc<Room>,
}

impl Desk {
    pub(crate) fn new(texts: Arc<Texts>) -> Self {
        let TextConfig { max_held_bytes, max_body_bytes, max_audio_bytes, .. } = texts.config;
        let room = Arc::new(Room::new(max_held_bytes, max_body_bytes, max_audio_bytes + FORM));
        Self { texts, answers: Answers::default(), room }
    }

    /// The requests of a process.
    pub(crate) fn texts(&self) -> &Arc<Texts> {
        &self.texts
    }

    /// Where large bodies are held, and long lines of files.
    pub(crate) fn room(&self) -> &Arc<Room> {
        &self.room
    }
}

pub(crate) fn routes() -> Router<Arc<Shared>> {
    ["/v1", "/openai/v1"].into_iter().fold(Router::new(), |router, base| {
        router
            .route(&format!("{base}/responses"), post(responses))
            .route(&format!("{base}/audio/transcriptions"), post(transcriptions))
    })
}

async fn responses(State(shared): State<Arc<Shared>>, request: Request) -> Response<Body> {
    answered(&shared, Kind::Response, request).await
}

async fn transcriptions(State(shared): State<Arc<Shared>>, request: Request) -> Response<Body> {
    answered(&shared, Kind::Transcription, request).await
}

async fn answered(shared: &Arc<Shared>, kind: Kind, request: Request) -> Response<Body> {
    let id = random_id("text");
    let (head, body) = request.into_parts();
    let (who, answer) = match identify(shared, &head).await {
        Ok(who) => (Some(who.clone()), answer_to(shared, kind, who, &head, body, &id).await),
        Err(refusal) => (None, Err(refusal.into())),
    };
    let mut response = match answer {
        Ok(response) => response,
        Err(NotAnswered::Refused(refusal)) => refusal.into(),
        Err(NotAnswered::Told(status, body)) => {
            (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
        }
    };
    let headers = response.headers_mut();
    // One that is given again has the id of its row.
    if !headers.contains_key("x-request-id") {
        put(headers, "x-request-id", &id);
    }
    for left in who.iter().flat_map(|who| shared.desk.texts.shares.left(who)) {
        let name = left.name;
        put(headers, &format!("x-ratelimit-limit-{name}"), &left.limit.to_string());
        put(headers, &format!("x-ratelimit-remaining-{name}"), &left.remaining.to_string());
        put(headers, &format!("x-ratelimit-reset-{name}"), &format!("{}ms", left.reset.as_millis()));
    }
    response
}

pub(super) fn put(headers: &mut HeaderMap, name: &str, value: &str) {
    if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
        headers.insert(name, value);
    }
}

/// Why there is no answer.
pub(super) enum NotAnswered {
    /// In our words.
    Refused(Refusal),
    /// In the service's.
    Told(StatusCode, Bytes),
}

impl From<Refusal> for NotAnswered {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

pub(super) async fn identify(shared: &Shared, head: &Parts) -> Result<Principal, Refusal> {
    let who = shared.identify_often(head).await?;
    if !who.may(Scope::Text) || who.secret().is_some() {
        return Err(Denied::Scope(Scope::Text).into());
    }
    shared.accounts()?;
    let user = head.headers.get("openai-safety-identifier").and_then(|user| user.to_str().ok());
    user.map_or(Ok(who.clone()), |user| realtime::named_user(shared, who, user))
}

/// Who goes first: what the tenant is, and last of all whoever says so.
fn class(head: &Parts, who: &Principal) -> Result<Class, Refusal> {
    match head.headers.get("x-voxrelay-class").map(HeaderValue::as_bytes) {
        None | Some(b"interactive") => Ok(who.class()),
        Some(b"batch") => Ok(Class::Batch),
        Some(_) => {
            let message = "`X-Voxrelay-Class` must be `interactive` or `batch`.".to_owned();
            Err(Refusal::new(StatusCode::BAD_REQUEST, "invalid_value", message).at("X-Voxrelay-Class"))
        }
    }
}

async fn answer_to(
    shared: &Arc<Shared>,
    kind: Kind,
    who: Principal,
    head: &Parts,
    body: Body,
    id: &str,
) -> Result<Response<Body>, NotAnswered> {
    let class = class(head, &who)?;
    let key = idempotency::key(&head.headers)
        .map_err(|wrong| Refusal::new(StatusCode::BAD_REQUEST, "invalid_value", wrong).at("Idempotency-Key"))?;
    let desk = &shared.desk;
    let config = &desk.texts.config;
    let limit = if kind == Kind::Response { config.max_body_bytes } else { config.max_audio_bytes + FORM };
    let length = head.headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    let room = length.unwrap_or(limit).min(limit);
    if length.is_some_and(|length: usize| length > limit) {
        body::pass_over(&mut { body }, body::PATIENCE).await;
        return Err(Refusal::from(body::BodyError::TooLarge(limit)).into());
    }
    let came = Instant::now();
    let whose = who.tenant().map(|_| who.tenant_id());
    let held = desk.room.hold(kind, whose, room).await.ok_or_else(|| Refusal {
        kind: SERVER_ERROR,
        retry_after: Some(FULL_RETRY),
        ..Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", "Too many bodies are held at once.".to_owned())
    })?;
    let waited = came.elapsed();
    let patience = Duration::from_secs(10 + room as u64 / SLOWEST);
    let body = body::read_within(body, limit, patience).await.map_err(Refusal::from)?;
    let form = head.headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let asked = match kind {
        Kind::Response => ask::response(&body, config.output_tokens),
        Kind::Transcription => ask::transcription(form, body).await,
    };
    let asked = asked.map_err(wrong)?;
    if who.tenant().is_some() {
        ask::keeps_to_itself(&asked).map_err(wrong)?;
    }
    let who = match &asked.user {
        Some(user) => realtime::named_user(shared, who, user)?,
        None => who,
    };
    let (asked, land) = match key {
        None => (asked, None),
        Some(key) => {
            // A recording is long, and others wait for this thread.
            let marked = tokio::task::spawn_blocking(move || (ask::mark(&asked), asked)).await;
            let (mark, asked) = marked.map_err(|_| lost("The request cannot be read."))?;
            match desk.answers.begin((who.tenant_id().to_owned(), who.user().unwrap_or_default().to_owned(), key), mark)
            {
                Begin::First(land) => (asked, Some(land)),
                Begin::Again(landing) => return again(landing).await,
                Begin::Other => return Err(reused().into()),
            }
        }
    };
    let (stream, row) = (asked.stream, id.to_owned());
    let (call, agent, door) = (row.clone(), String::new(), kind.door());
    let order = Order { who, asked, call, agent, door, class, row, waited, beside: false, expert: false };
    let gone = CancellationToken::new();
    let leaves = gone.clone().drop_guard();
    let (tell, told) = oneshot::channel();
    let work = Work { shared: shared.clone(), order, gone, land, stream };
    let stop = shared.stop.clone();
    shared.calls.spawn(async move {
        // What is dropped settles itself, before the last rows are written.
        let _ = stop.run_until_cancelled(Box::pin(work.run(tell))).await;
        drop(held);
    });
    let told = told.await;
    leaves.disarm();
    told.unwrap_or_else(|_| Err(lost("The request was given up.").into()))
}

pub(super) fn reused() -> Refusal {
    let message = "This `Idempotency-Key` was used for another request.".to_owned();
    Refusal::new(StatusCode::CONFLICT, "idempotency_key_reused", message).at("Idempotency-Key")
}

/// An answer that was asked for before.
async fn again(mut landing: Landing) -> Result<Response<Body>, NotAnswered> {
    let kept = landing.wait_for(Option::is_some).await.ok().and_then(|kept| kept.clone().flatten());
    let Some(kept) = kept else {
        let message = "The first request with this `Idempotency-Key` has no answer that could be given again; come with a new key.";
        let refusal = Refusal::new(StatusCode::CONFLICT, "idempotency_key_failed", message.to_owned());
        return Err(Refusal { retry_after: Some(Duration::from_secs(1)), ..refusal }.at("Idempotency-Key").into());
    };
    let mut response = Response::new(Body::from(kept.body.clone()));
    response.headers_mut().clone_from(&kept.head);
    put(response.headers_mut(), "x-voxrelay-repeated", "true");
    Ok(response)
}

/// A request that is answered, whoever waits for it.
struct Work {
    shared: Arc<Shared>,
    order: Order,
    gone: CancellationToken,
    land: Option<Land>,
    stream: bool,
}

impl Work {
    async fn run(self, tell: oneshot::Sender<Result<Response<Body>, NotAnswered>>) {
        let Self { shared, order, gone, land, stream } = self;
        let (run, answered) = match shared.desk.texts.open(order, &gone).await {
            Ok(opened) => opened,
            Err(no) => {
                // The next one with this key is a first one.
                drop(land);
                let _ = tell.send(Err(not(no)));
                return;
            }
        };
        let mut response = Response::new(Body::empty());
        describe(response.headers_mut(), &run);
        let kept = if stream && answer::is_stream(&answered) {
            let (to, reader) = answer::channel();
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
            response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
            // Proxies that gather answers would hold back the words.
            put(response.headers_mut(), "x-accel-buffering", "no");
            *response.body_mut() = Body::from_stream(pieces(reader));
            let stall = Duration::from_secs(shared.desk.texts.config.stall_s);
            let keeps = land.is_some().then(|| response.headers().clone());
            let passing = Passing { to, stall, keeps, stop: shared.stop.clone() };
            let _ = tell.send(Ok(response));
            answer::pass(run, answered, passing).await
        } else {
            match answer::whole(run, answered).await {
                Ok(Whole { mime, body, cost, failed }) => {
                    response.headers_mut().insert(header::CONTENT_TYPE, mime);
                    if let Some(cost) = cost {
                        put(response.headers_mut(), "x-voxrelay-cost-usd", &cost.to_string());
                    }
                    let head = response.headers().clone();
                    let kept = (land.is_some() && !failed && body.len() <= answer::MAX_KEPT)
                        .then(|| Arc::new(Kept { head, body: body.clone() }));
                    *response.body_mut() = Body::from(body);
                    let _ = tell.send(Ok(response));
                    kept
                }
                Err(why) => {
                    let _ = tell.send(Err(lost(why.message()).into()));
                    None
                }
            }
        };
        if let (Some(kept), Some(land)) = (kept, land) {
            land.keep(kept);
        }
    }
}

fn pieces(reader: mpsc::Receiver<Bytes>) -> impl stream::Stream<Item = Result<Bytes, std::convert::Infallible>> {
    stream::unfold(reader, |mut reader| async move { reader.recv().await.map(|piece| (Ok(piece), reader)) })
}

/// What an answer's headers say of its way.
fn describe(headers: &mut HeaderMap, run: &Run) {
    put(headers, "x-request-id", run.call());
    put(headers, "x-voxrelay-route", &run.route());
    if let Some(tier) = run.chosen().tier {
        put(headers, "x-voxrelay-tier", tier.name());
        put(headers, "x-voxrelay-tier-by", run.chosen().by);
    }
    put(headers, "x-voxrelay-waited-ms", &run.waited().as_millis().to_string());
}

pub(super) fn wrong(wrong: Wrong) -> Refusal {
    let Wrong { code, message, param } = wrong;
    Refusal { param: param.map(Cow::Borrowed), ..Refusal::new(StatusCode::BAD_REQUEST, code, message) }
}

fn lost(message: &str) -> Refusal {
    let refusal = Refusal::new(StatusCode::BAD_GATEWAY, "upstream_unavailable", message.to_owned());
    Refusal { kind: SERVER_ERROR, retry_after: Some(Duration::from_secs(1)), ..refusal }
}

pub(super) fn not(no: No) -> NotAnswered {
    let limited = |message: String, wait: Option<Duration>| Refusal {
        kind: "requests",
        retry_after: wait,
        ..Refusal::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_exceeded", message)
    };
    let refusal = match no {
        No::Told(status, body) => return NotAnswered::Told(status, body),
        No::Model(name) => no_model(&name),
        No::Scope(scope) => Denied::Scope(scope).into(),
        No::Previous(id) => {
            let id: String = id.chars().take(64).collect();
            let message = format!("Previous response with id '{id}' not found.");
            Refusal::new(StatusCode::BAD_REQUEST, "previous_response_not_found", message).at("previous_response_id")
        }
        No::Full(Full::Own) => limited("You have too many requests at once.".to_owned(), Some(FULL_RETRY)),
        No::Full(Full::All) => Refusal {
            kind: SERVER_ERROR,
            retry_after: Some(FULL_RETRY),
            ..Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", "Too many requests run at once.".to_owned())
        },
        No::Share(reason) => match reason.wait {
            Some(wait) => limited(format!("Your limit is reached ({reason})."), Some(wait)),
            None => limited(format!("The request is larger than your limit ({reason})."), None),
        },
        No::Quota(reason) => match reason.wait {
            Some(wait) => limited(format!("The account's limit is reached ({reason})."), Some(wait)),
            None => limited(format!("The request is larger than the account's limit ({reason})."), None),
        },
        No::Spent(spent) => Denied::Budget(Box::new(spent)).into(),
        No::Service(error) => refused(&error),
        No::Gone => lost("The request was given up."),
    };
    NotAnswered::Refused(refusal)
}
