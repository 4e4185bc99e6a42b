//! The sockets of the simulated service: HTTP, the upgrade, and one task a session.
//!
//! The only part of the simulator that waits, reads a clock or knows TCP. What is said, [`super::session`] decides. The
//! WebSocket is the library's own and not [`crate::net::ws`], so that a mistake there does not meet itself here.
use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::{Query, Request, State},
    http::{HeaderMap, HeaderValue, Response, StatusCode, header},
    routing::get,
};
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::{self, Instant},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        self, Message,
        error::ProtocolError,
        protocol::{CloseFrame, Role, WebSocketConfig, frame::coding::CloseCode},
    },
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

use super::{
    admit::{self, Knock},
    carrier::{Carrier, CarrierStats},
    config::SimConfig,
    faults::{FaultKind, Faults, Place},
    limits::Full,
    rest,
    session::{Incoming, Output, Session, World},
    stats::SimStats,
    text,
};
use crate::net::listen::{self, Upgrade, UpgradeError};
use crate::scripted::Dice;

/// Largest message taken: the longest append with its envelope.
const MAX_MESSAGE: usize = 24 << 20;
/// Past so many unsent bytes nothing more is read or generated until the client has taken some.
const HIGH_WATER: usize = 8 << 20;
/// A client that takes nothing for so long is gone.
const WRITE_STALL: Duration = Duration::from_secs(60);
/// Timers refuse times that are far away, as "for ever" is.
const LONGEST_SLEEP: Duration = Duration::from_secs(3_600);
/// Time for a goodbye.
const GOODBYE: Duration = Duration::from_secs(1);

/// A running simulator. Dropping it stops it.
#[derive(Debug)]
pub struct Sim {
    addr: SocketAddr,
    world: Arc<World>,
    carrier: Arc<Carrier>,
    tracker: TaskTracker,
    stop: CancellationToken,
    _stop_on_drop: DropGuard,
}

#[derive(Debug)]
struct Shared {
    world: Arc<World>,
    carrier: Arc<Carrier>,
    began: Instant,
    attempts: AtomicU64,
    tracker: TaskTracker,
    stop: CancellationToken,
}

impl Sim {
    /// Listens on `addr` (port 0 takes a free one) and serves until it is stopped or dropped.
    ///
    /// # Errors
    /// When the address cannot be had.
    pub async fn start(addr: SocketAddr, config: SimConfig, faults: Faults) -> io::Result<Self> {
        let listener = TcpListener::bind(addr).await?;
        let addr = listener.local_addr()?;
        let (world, tracker, stop) = (World::new(config, faults), TaskTracker::new(), CancellationToken::new());
        let carrier = Carrier::new(world.config.carrier.clone(), tracker.clone(), stop.clone());
        let shared = Arc::new(Shared {
            world: world.clone(),
            carrier: carrier.clone(),
            began: Instant::now(),
            attempts: AtomicU64::new(0),
            tracker: tracker.clone(),
            stop: stop.clone(),
        });
        let most = world.config.max_sessions.saturating_mul(2).min(1 << 20);
        let router = router(shared);
        let (tasks, until) = (tracker.clone(), stop.clone());
        let stops = listen::Stops { accepting: until.clone(), serving: until };
        tracker.spawn(async move { listen::serve(listener, None, router, most, &tasks, stops).await });
        Ok(Self { addr, world, carrier, tracker, _stop_on_drop: stop.clone().drop_guard(), stop })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// What a client is given as the service's base URL: `http://127.0.0.1:PORT/v1`.
    pub fn base_url(&self) -> String {
        format!("http://{}/v1", self.addr)
    }

    /// What was seen and done so far.
    pub fn stats(&self) -> SimStats {
        self.world.stats()
    }

    /// What telephone providers were asked for, and what became of it.
    pub fn carrier(&self) -> CarrierStats {
        self.carrier.stats()
    }

    /// Every client secret is unknown from now on; sessions go on.
    pub fn revoke_secrets(&self) {
        self.world.desk.revoke_secrets();
    }

    /// A call from the telephone network rings, to be accepted by its id.
    pub fn ring(&self, id: &str) {
        self.world.desk.ring(id);
    }

    /// Calls by WebRTC or telephone that have not been hung up.
    pub fn live_calls(&self) -> usize {
        self.world.desk.live_calls()
    }

    /// Closes every session with 1001 and waits for the goodbyes, at most a few seconds.
    pub async fn stop(self) {
        self.stop.cancel();
        self.tracker.close();
        // Whoever has not said goodbye by then is told nothing more.
        let _ = time::timeout(GOODBYE * 3, self.tracker.wait()).await;
    }
}

/// The addresses. The other dialects' sockets go here.
fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/v1/realtime", get(realtime))
        .route("/openai/v1/realtime", get(realtime))
        .route("/openai/realtime", get(realtime))
        .merge(rest::routes(shared.world.clone()))
        .merge(text::routes(shared.world.clone(), shared.began))
        .fallback(elsewhere)
        .method_not_allowed_fallback(|| async { error(StatusCode::METHOD_NOT_ALLOWED) })
        .with_state(shared)
}

/// What is no address of the service's may be a telephone provider's.
async fn elsewhere(State(shared): State<Arc<Shared>>, request: Request) -> Response<Body> {
    shared.carrier.answer(request).await.unwrap_or_else(|| error(StatusCode::NOT_FOUND))
}

fn error(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::from(admit::http_error(status.as_u16()).to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// `GET /v1/realtime`: everybody gets 101, and the verdict on the socket.
async fn realtime(
    State(shared): State<Arc<Shared>>,
    Query(query): Query<HashMap<String, String>>,
    mut request: Request,
) -> Response<Body> {
    let world = &shared.world;
    let number = shared.attempts.fetch_add(1, Ordering::Relaxed) + 1;
    world.stats.lock().attempts += 1;
    let refused = |response: Response<Body>| {
        *world.stats.lock().refused.entry(response.status().as_u16()).or_default() += 1;
        response
    };
    match world.faults.at_door(Place::Session, number) {
        Some(FaultKind::Refuse { status, retry_after_s, body }) => {
            return refused(refusal(status, retry_after_s, body));
        }
        Some(FaultKind::Hang { for_ms }) => {
            let hang = for_ms.map_or(Duration::from_secs(1 << 30), Duration::from_millis);
            let _ = shared.stop.run_until_cancelled(time::sleep(hang)).await;
        }
        _ => {}
    }
    let delay = Dice::new(world.config.seed ^ 0xC0, number).delay(world.config.delays.connect);
    if !delay.is_zero() {
        let _ = shared.stop.run_until_cancelled(time::sleep(delay)).await;
    }
    let joined = query.get("call_id").map(|id| world.desk.join(id));
    if let Some(None) = joined {
        // An unknown id: 404 with an empty body, as the service does.
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NOT_FOUND;
        return refused(response);
    }
    let joined = joined.flatten();
    if world.stats.lock().sessions_now >= world.config.max_sessions as u64 {
        return refused(error(StatusCode::SERVICE_UNAVAILABLE));
    }
    let upgrade = match Upgrade::from_request(&mut request) {
        Ok(upgrade) => upgrade,
        Err(UpgradeError::NotAsked) => return refused(error(StatusCode::UPGRADE_REQUIRED)),
        Err(_) => return refused(error(StatusCode::BAD_REQUEST)),
    };
    let azure = request.uri().path().starts_with("/openai/");
    let preview = request.uri().path() == "/openai/realtime";
    let mut knock = Knock { preview, ..knock(request.headers(), upgrade.protocols(), &query) };
    world.desk.look_up(&mut knock);
    let over = joined.map(|(session, over)| {
        (knock.session, knock.joins) = (Some(session), true);
        world.stats.lock().sidebands += 1;
        over
    });
    let mut stats = world.stats.lock();
    stats.safety_ids.extend(header_of(request.headers(), "openai-safety-identifier"));
    stats.sessions_by_secret += u64::from(knock.session.is_some() && !knock.joins);
    drop(stats);
    if azure && let Err(rejected) = admit::admit(&world.config, &knock) {
        let (status, body) = admit::azure_error(&rejected);
        return refused(refusal(status, None, Some(body.to_string())));
    }
    let who = (knock.account(), knock.model.as_deref().unwrap_or_default());
    let connected = match knock.joins {
        true => Ok(None),
        false => world.accounts.connect(&world.config, who, shared.began.elapsed()),
    };
    let seat = match connected {
        Ok(seat) => seat,
        Err(full) => {
            world.stats.limited(full.which.name());
            return refused(too_many(&full));
        }
    };
    let (mut response, pending) = upgrade.accept("realtime");
    // A client of the live service gets these, and must neither need nor keep them.
    let headers = response.headers_mut();
    headers.insert("cf-ray", HeaderValue::from_static("0000000000000000-SIM"));
    headers.insert(header::SET_COOKIE, HeaderValue::from_static("__cf_bm=sim; path=/; HttpOnly; Secure"));
    let task = shared.clone();
    shared.tracker.spawn(async move {
        match pending.stream().await {
            Ok((tcp, read_already)) => serve(&task, number, &knock, over, tcp, read_already).await,
            Err(error) => tracing::debug!(%error, "the client left during the upgrade"),
        }
        drop(seat);
    });
    response
}

pub(super) fn refusal(status: u16, retry_after_s: Option<u64>, body: Option<String>) -> Response<Body> {
    let mut response = error(StatusCode::from_u16(status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE));
    if let Some(body) = body {
        *response.body_mut() = Body::from(body);
    }
    if let Some(seconds) = retry_after_s {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// What an account is told whose limit is reached (the service's REST side; at the upgrade a guess).
pub(super) fn too_many(full: &Full) -> Response<Body> {
    let kind = full.which.kind();
    let body =
        json!({ "error": { "message": full.message, "type": kind, "param": null, "code": "rate_limit_exceeded" } });
    // What can never be taken is not to be tried again.
    let Some(wait) = full.wait else { return refusal(429, None, Some(body.to_string())) };
    let mut response = refusal(429, Some(wait.as_secs() + u64::from(wait.subsec_nanos() > 0)), Some(body.to_string()));
    if let Ok(ms) = HeaderValue::try_from(wait.as_nanos().div_ceil(1_000_000).to_string()) {
        response.headers_mut().insert("retry-after-ms", ms);
    }
    response
}

fn header_of(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
}

pub(super) fn knock(headers: &HeaderMap, protocols: &[String], query: &HashMap<String, String>) -> Knock {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let bearer = header("authorization").and_then(|value| {
        let (scheme, key) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| key.trim().to_owned())
    });
    let offered = || protocols.iter().find_map(|p| p.strip_prefix("openai-insecure-api-key.").map(str::to_owned));
    Knock {
        key: bearer.or_else(|| header("api-key").map(str::to_owned)).or_else(offered),
        model: query.get("model").or(query.get("deployment")).cloned(),
        intent: query.get("intent").cloned(),
        beta: header("openai-beta").is_some_and(|value| value.contains("realtime"))
            || protocols.iter().any(|p| p.starts_with("openai-beta.realtime")),
        ..Knock::default()
    }
}

async fn serve(
    shared: &Shared,
    number: u64,
    knock: &Knock,
    over: Option<CancellationToken>,
    tcp: TcpStream,
    read_already: Vec<u8>,
) {
    let config = WebSocketConfig::default()
        .read_buffer_size(8 << 10)
        .write_buffer_size(16 << 10)
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE));
    let ws = WebSocketStream::from_partially_read(tcp, read_already, Role::Server, Some(config)).await;
    let world = shared.world.clone();
    let unix_now = world.unix_now();
    let speaks_at = Duration::from_millis(world.config.caller_speaks_ms);
    let _open = Open::new(world.clone());
    let link = Link {
        session: Session::new(world.clone(), number, knock, unix_now).begun_at(shared.began.elapsed()),
        ws,
        began: Instant::now(),
        ending: None,
        unflushed: false,
        blocked_since: None,
        read_from: Duration::ZERO,
        slow: None,
        ping_at: Duration::from_millis(world.config.ping_ms),
        ping_due: false,
        pong_at: Duration::ZERO,
        stopping: None,
        speaks_at: (over.is_some() && !speaks_at.is_zero()).then_some(speaks_at),
        over: over.unwrap_or_default(),
        world,
    };
    link.run(&shared.stop).await;
}

/// Counts an open socket, however it ends.
struct Open(Arc<World>);

impl Open {
    fn new(world: Arc<World>) -> Self {
        world.stats.lock().sessions_now += 1;
        Self(world)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.stats.lock().sessions_now -= 1;
    }
}

/// What a wait ended with.
enum Event {
    Message(Message),
    /// The session's end is written out.
    Ended(Output),
    Lost(Option<tungstenite::Error>),
}

/// One socket and its session.
struct Link {
    world: Arc<World>,
    session: Session,
    ws: WebSocketStream<TcpStream>,
    began: Instant,
    /// The close or the cut that comes once everything before it is written.
    ending: Option<Output>,
    unflushed: bool,
    blocked_since: Option<Duration>,
    /// Nothing is read before this.
    read_from: Duration,
    /// Bytes a second, and until when.
    slow: Option<(u64, Option<Duration>)>,
    ping_at: Duration,
    ping_due: bool,
    pong_at: Duration,
    /// Since when the simulator wants to be gone.
    stopping: Option<Duration>,
    /// Ends when the call that it joined does.
    over: CancellationToken,
    /// When the caller of that call speaks.
    speaks_at: Option<Duration>,
}

impl Link {
    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    async fn run(mut self, stop: &CancellationToken) {
        loop {
            // What is due comes before what comes in: a flood must not hide it.
            if self.wake_at() <= self.now() && !self.on_time() {
                return self.world.stats.closed(false, 1_006);
            }
            let timer = self.began + self.wake_at();
            let over = self.over.clone();
            let event = tokio::select! {
                biased;
                () = over.cancelled(), if self.stopping.is_none() => {
                    let now = self.now();
                    self.stopping = Some(now);
                    self.session.hang_up(now);
                    continue;
                }
                () = stop.cancelled(), if self.stopping.is_none() => {
                    let now = self.now();
                    self.stopping = Some(now);
                    self.session.go_away(now);
                    continue;
                }
                event = std::future::poll_fn(|cx| self.poll(cx)) => event,
                () = time::sleep_until(timer) => continue,
            };
            match event {
                Event::Message(message) => {
                    if !self.on_message(message).await {
                        return;
                    }
                }
                Event::Ended(output) => return self.end(output).await,
                Event::Lost(error) => return self.lost(error).await,
            }
        }
    }

    /// Writing is stuck and enough waits: the session stands still.
    fn congested(&self) -> bool {
        self.blocked_since.is_some() && self.session.unsent_bytes() > HIGH_WATER
    }

    /// When there is something to do even if the socket stays silent.
    fn wake_at(&self) -> Duration {
        let session = match self.blocked_since {
            // What waits to be written waits for the socket, not for a time.
            Some(_) if self.congested() => None,
            Some(_) => self.session.next_act(),
            None => self.session.deadline(),
        };
        let wakes = [
            session,
            self.blocked_since.map(|since| since + WRITE_STALL),
            (self.world.config.ping_ms > 0 && self.ending.is_none()).then_some(self.ping_at),
            (self.read_from > self.now()).then_some(self.read_from),
            self.stopping.map(|since| since + GOODBYE),
            self.speaks_at,
        ];
        wakes.into_iter().flatten().min().unwrap_or(LONGEST_SLEEP).min(self.now() + LONGEST_SLEEP)
    }

    /// Does what is due; `false`: the client is taken for dead.
    fn on_time(&mut self) -> bool {
        let now = self.now();
        if self.speaks_at.take_if(|at| now >= *at).is_some() {
            self.session.handle(now, Incoming::Text(r#"{"type":"response.create"}"#));
        }
        if !self.congested() {
            self.session.tick(now);
        }
        let late = |since: Option<Duration>, patience| since.is_some_and(|since| now >= since + patience);
        if late(self.blocked_since, WRITE_STALL) || late(self.stopping, GOODBYE) {
            return false;
        }
        let config = &self.world.config;
        if config.ping_ms > 0 && now >= self.ping_at {
            let patience = Duration::from_millis(config.pong_timeout_ms);
            // A socket that we do not read brings no pongs.
            if !patience.is_zero() && self.read_from <= now && now >= self.pong_at + patience {
                return false;
            }
            self.ping_at = now + Duration::from_millis(config.ping_ms);
            self.ping_due = true;
        }
        true
    }

    /// Writes what can be written, reads what may be read.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        if let Err(error) = self.poll_write(cx) {
            return Poll::Ready(Event::Lost(Some(error)));
        }
        if !self.unflushed
            && let Some(output) = self.ending.take()
        {
            return Poll::Ready(Event::Ended(output));
        }
        if self.ending.is_some() || self.congested() || self.now() < self.read_from {
            return Poll::Pending;
        }
        match self.ws.poll_next_unpin(cx) {
            Poll::Ready(Some(Ok(message))) => Poll::Ready(Event::Message(message)),
            Poll::Ready(Some(Err(error))) => Poll::Ready(Event::Lost(Some(error))),
            Poll::Ready(None) => Poll::Ready(Event::Lost(None)),
            Poll::Pending => Poll::Pending,
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Result<(), tungstenite::Error> {
        loop {
            match self.ws.poll_ready_unpin(cx) {
                Poll::Ready(ready) => ready?,
                Poll::Pending => {
                    self.blocked_since = self.blocked_since.or(Some(self.began.elapsed()));
                    return Ok(());
                }
            }
            self.blocked_since = None;
            let Some(message) = self.next_message() else { break };
            self.ws.start_send_unpin(message)?;
            self.unflushed = true;
        }
        if self.unflushed {
            match self.ws.poll_flush_unpin(cx) {
                Poll::Ready(flushed) => {
                    flushed?;
                    self.unflushed = false;
                }
                Poll::Pending => self.blocked_since = self.blocked_since.or(Some(self.began.elapsed())),
            }
        }
        Ok(())
    }

    fn next_message(&mut self) -> Option<Message> {
        if self.ending.is_some() {
            return None;
        }
        if std::mem::take(&mut self.ping_due) {
            self.world.stats.lock().pings += 1;
            return Some(Message::Ping(vec![0x73, 0x69, 0x6D, 0x21].into())); // four bytes, as the service sends
        }
        loop {
            match self.session.poll()? {
                Output::Send(text) => return Some(Message::text(text)),
                Output::StallReads { until } => self.read_from = until.unwrap_or(Duration::from_secs(1 << 40)),
                Output::SlowReads { bytes_per_s, until } => self.slow = Some((bytes_per_s, until)),
                ending => {
                    self.ending = Some(ending);
                    return None;
                }
            }
        }
    }

    /// Takes a message; `false`: the client has said goodbye.
    async fn on_message(&mut self, message: Message) -> bool {
        let now = self.now();
        if let Some((bytes_per_s, until)) = self.slow
            && until.is_none_or(|until| now < until)
        {
            let pause = Duration::from_secs_f64(message.len() as f64 / bytes_per_s.max(1) as f64);
            self.read_from = self.read_from.max(now + pause);
        }
        match message {
            Message::Text(text) => self.session.handle(now, Incoming::Text(&text)),
            Message::Binary(bytes) => self.session.handle(now, Incoming::Binary(&bytes)),
            Message::Ping(_) => self.unflushed = true, // the library has queued the pong
            Message::Pong(_) => {
                self.pong_at = now;
                self.world.stats.lock().pongs += 1;
            }
            Message::Close(frame) => {
                // 1005: a close frame without a code (RFC 6455 section 7.1.5).
                let code = frame.map_or(1_005, |frame| frame.code.into());
                self.world.stats.closed(true, code);
                // The library has queued the echo.
                let _ = time::timeout(GOODBYE, self.ws.flush()).await;
                self.drain().await;
                return false;
            }
            Message::Frame(_) => {} // never given out by reading
        }
        true
    }

    async fn end(mut self, output: Output) {
        match output {
            Output::Die { partial, reset } => self.cut(partial, reset).await,
            Output::Close { code, reason } => self.say_goodbye(code, reason).await,
            Output::Send(_) | Output::StallReads { .. } | Output::SlowReads { .. } => {} // these are no ends
        }
    }

    async fn say_goodbye(&mut self, code: u16, reason: String) {
        self.world.stats.closed(false, code);
        let frame = CloseFrame { code: CloseCode::from(code), reason: reason.into() };
        let _ = time::timeout(GOODBYE, self.ws.close(Some(frame))).await;
        self.drain().await;
    }

    /// Ends the connection as a dead network does: the client sees 1006.
    async fn cut(&mut self, partial: Option<String>, reset: bool) {
        self.world.stats.closed(false, 1_006);
        let tcp = self.ws.get_mut();
        if let Some(text) = partial {
            let half = half_a_frame(&text);
            let _ = time::timeout(GOODBYE, tcp.write_all(&half)).await;
        }
        if reset {
            // With no time to linger, closing the socket sends a reset.
            let _ = socket2::SockRef::from(&*tcp).set_linger(Some(Duration::ZERO));
        } else {
            let _ = time::timeout(GOODBYE, tcp.shutdown()).await;
            self.drain().await;
        }
    }

    /// The connection cannot go on. What the client did wrong is said in the close code; the library says nothing.
    async fn lost(mut self, error: Option<tungstenite::Error>) {
        let fault = match error {
            Some(tungstenite::Error::Capacity(_)) => Some((1_009, "message too big")),
            Some(tungstenite::Error::Utf8(_)) => Some((1_007, "invalid UTF-8")),
            Some(tungstenite::Error::Protocol(ProtocolError::ResetWithoutClosingHandshake)) => None,
            Some(tungstenite::Error::Protocol(_)) => Some((1_002, "protocol error")),
            _ => None,
        };
        match fault {
            Some((code, reason)) => self.say_goodbye(code, reason.to_owned()).await,
            None => self.world.stats.closed(true, 1_006),
        }
    }

    /// Takes in what the client still sends: unread bytes cause a reset that can destroy our last words.
    async fn drain(&mut self) {
        let mut sink = [0u8; 4_096];
        let tcp = self.ws.get_mut();
        let drained = async { while tcp.read(&mut sink).await.is_ok_and(|n| n > 0) {} };
        let _ = time::timeout(GOODBYE, drained).await;
    }
}

/// The head of a text frame and half of what it announces (RFC 6455 section 5.2).
fn half_a_frame(text: &str) -> Vec<u8> {
    let mut frame = vec![0x81];
    match u16::try_from(text.len()) {
        Ok(len) if len < 126 => frame.extend(u8::try_from(len)),
        Ok(len) => {
            frame.push(126);
            frame.extend(len.to_be_bytes());
        }
        Err(_) => {
            frame.push(127);
            frame.extend((text.len() as u64).to_be_bytes());
        }
    }
    frame.extend(text.as_bytes().iter().take(text.len() / 2));
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_frame_announces_the_whole() {
        for (len, head) in [
            (100, vec![0x81, 100]),
            (4_096, vec![0x81, 126, 0x10, 0x00]),
            (70_000, vec![0x81, 127, 0, 0, 0, 0, 0, 1, 0x11, 0x70]),
        ] {
            let frame = half_a_frame(&"x".repeat(len));
            assert_eq!(frame[..head.len()], head[..], "{len}");
            assert_eq!(frame.len(), head.len() + len / 2, "{len}");
        }
    }

    #[test]
    fn the_key_comes_from_the_header_or_the_subprotocol() {
        let mut headers = HeaderMap::new();
        let offered = ["realtime".to_owned(), "openai-insecure-api-key.sk-2".to_owned()];
        let query = HashMap::from([("model".to_owned(), "m".to_owned())]);
        assert_eq!(knock(&headers, &offered, &query).key.as_deref(), Some("sk-2"));
        headers.insert("authorization", HeaderValue::from_static("bearer sk-1"));
        let got = knock(&headers, &offered, &query);
        assert_eq!((got.key.as_deref(), got.model.as_deref(), got.beta), (Some("sk-1"), Some("m"), false));
        headers.insert("openai-beta", HeaderValue::from_static("realtime=v1"));
        assert!(knock(&headers, &[], &query).beta);
        assert!(knock(&HeaderMap::new(), &["openai-beta.realtime-v1".to_owned()], &query).beta);
        assert_eq!(knock(&HeaderMap::new(), &[], &query).key, None);
    }
}
