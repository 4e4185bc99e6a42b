//! The server: listens, checks at the doors, hands each call to a task of its own, and leaves in good order.
//!
//! Here stands the thin door; [`realtime`] is OpenAI's.
mod realtime;

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::{Query as UrlQuery, Request, State},
    http::{HeaderValue, Response, StatusCode, header},
    response::IntoResponse as _,
    routing::get,
};
use metrics_exporter_prometheus::PrometheusHandle;
use rand::Rng as _;
use tokio::{
    net::TcpListener,
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::JoinSet,
    time::{self, Instant},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument as _;

use crate::{
    audio::lane::{upstream_format, upstream_input},
    call::{
        core::{Core, Life, Plan},
        door::Door,
        driver::{self, Call},
        end::{End, Report},
        ms,
    },
    client::{
        door,
        thin::{self, Query},
        wire::{AudioFormats, ErrorBody, ServerMsg},
    },
    config::{AgentConfig, Config, TlsConfig},
    http::pages,
    net::{
        listen::{self, Pending, Upgrade, UpgradeError},
        tls::{Files, Tls, TlsError},
        ws::{Socket, SocketLimits},
    },
    observe::fact::Fact,
    upstream::{SessionSetup, Wanted, open::Upstream},
};

/// Read buffer of a client's socket, bytes; grows with the message that is read.
const READ_BUFFER: usize = 1 << 10;
/// What a full server asks a client to wait.
const FULL_RETRY: Duration = Duration::from_secs(5);
/// Goodbyes after the last turn may take so long.
const GOODBYES: Duration = Duration::from_millis(900);
/// How often histograms are tidied.
const METRICS_UPKEEP: Duration = Duration::from_secs(5);

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address is taken, or not ours.
    #[error("cannot listen on {addr}: {source} (choose another address with --listen or `server.listen`)")]
    Listen {
        /// Which.
        addr: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// Anybody could come in.
    #[error(
        "server.listen: {addr} can be reached from other machines, and no tenant is configured, so that nobody would be \
         asked for a credential; listen on a loopback address such as 127.0.0.1:8080, or say --insecure-open"
    )]
    Open {
        /// Where.
        addr: SocketAddr,
    },
    /// The service's address cannot work.
    #[error("upstream.url: {0}")]
    Upstream(String),
    /// The certificate cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

#[derive(Debug)]
struct Shared {
    config: Config,
    agents: BTreeMap<String, Arc<AgentConfig>>,
    upstream: Upstream,
    slots: Arc<Semaphore>,
    draining: AtomicBool,
    drain: watch::Receiver<Option<Instant>>,
    calls: TaskTracker,
    stop: CancellationToken,
    metrics: Option<PrometheusHandle>,
}

impl Shared {
    fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// The origin of a page that may not call.
    fn foreign_page<'r>(&self, request: &'r Request) -> Option<&'r str> {
        let headers = request.headers();
        let origin = headers.get(header::ORIGIN).map(|v| v.to_str().unwrap_or("null"));
        let host = headers.get(header::HOST).and_then(|v| v.to_str().ok());
        origin.filter(|_| !door::origin_allowed(origin, host, self.config.server.insecure_open))
    }

    /// A line for a call, or why there is none now.
    fn line(&self) -> Result<OwnedSemaphorePermit, &'static str> {
        if self.is_draining() {
            return Err("this server is going away");
        }
        self.slots.clone().try_acquire_owned().map_err(|_| "all lines are taken")
    }
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    addr: SocketAddr,
    shared: Arc<Shared>,
    drain: watch::Sender<Option<Instant>>,
    /// Ends accepting.
    closed: CancellationToken,
    tasks: JoinSet<()>,
}

impl Server {
    /// Listens and serves from now on. `metrics`: what the metrics page shows.
    ///
    /// # Errors
    /// When the address cannot be had or should not be, or the upstream's makes no sense.
    pub async fn start(config: Config, metrics: Option<PrometheusHandle>) -> Result<Self, ServeError> {
        let addr = config.server.listen;
        if !addr.ip().is_loopback() && !config.server.insecure_open {
            return Err(ServeError::Open { addr });
        }
        let upstream = Upstream::new(Arc::new(config.upstream.clone())).map_err(ServeError::Upstream)?;
        let tls =
            config.server.tls.clone().map(|TlsConfig { cert, key }| Tls::load(Files { cert, key })).transpose()?;
        let listener = TcpListener::bind(addr).await.map_err(|source| ServeError::Listen { addr, source })?;
        let addr = listener.local_addr().map_err(|source| ServeError::Listen { addr, source })?;
        let (drain, draining) = watch::channel(None);
        let max_connections = config.server.max_connections;
        let shared = Arc::new(Shared {
            upstream,
            slots: Arc::new(Semaphore::new(config.server.max_calls)),
            draining: AtomicBool::new(false),
            drain: draining,
            calls: TaskTracker::new(),
            stop: CancellationToken::new(),
            metrics: metrics.clone(),
            agents: config.agents.iter().map(|(name, agent)| (name.clone(), Arc::new(agent.clone()))).collect(),
            config,
        });
        let closed = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let (router, stop, tracker) = (router(shared.clone()), closed.clone(), shared.calls.clone());
        let acceptor = tls.as_ref().map(Tls::acceptor);
        tasks.spawn(async move { listen::serve(listener, acceptor, router, max_connections, &tracker, stop).await });
        tls.into_iter().for_each(|tls| drop(tasks.spawn(tls.watch())));
        if let Some(metrics) = metrics {
            tasks.spawn(async move {
                loop {
                    time::sleep(METRICS_UPKEEP).await;
                    metrics.run_upkeep();
                }
            });
        }
        Ok(Self { addr, shared, drain, closed, tasks })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Tells every client, lets running turns finish for `server.drain_s`, then ends what is left. `hurry` cuts it short.
    pub async fn drain(mut self, hurry: impl Future<Output = ()>) {
        let grace = Duration::from_secs(self.shared.config.server.drain_s);
        self.shared.draining.store(true, Ordering::Release);
        // Nobody is left to hear it when no call runs.
        let _ = self.drain.send(Some(Instant::now() + grace));
        self.closed.cancel();
        self.shared.calls.close();
        tokio::select! {
            () = self.shared.calls.wait() => {}
            () = hurry => {}
            () = time::sleep(grace) => {}
        }
        self.shared.stop.cancel();
        if time::timeout(GOODBYES, self.shared.calls.wait()).await.is_err() {
            tracing::warn!(left = self.shared.calls.len(), "calls were cut off");
        }
        self.tasks.abort_all();
    }
}

fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/v1/voice", get(voice))
        .route("/v1/realtime", get(realtime::realtime))
        .route("/openai/v1/realtime", get(realtime::realtime))
        .route("/openai/realtime", get(realtime::azure_preview))
        .route("/v1/agents", get(agents))
        .merge(pages::routes())
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics_page))
        .fallback(nowhere)
        .with_state(shared)
}

async fn ready(State(shared): State<Arc<Shared>>) -> (StatusCode, &'static str) {
    if shared.is_draining() { (StatusCode::SERVICE_UNAVAILABLE, "draining\n") } else { (StatusCode::OK, "ready\n") }
}

/// `GET /v1/agents`: whom one can call, by name. No more of an agent is public.
async fn agents(State(shared): State<Arc<Shared>>) -> Response<Body> {
    let agents: Vec<_> = shared.agents.keys().map(|name| serde_json::json!({"name": name})).collect();
    let body = serde_json::json!({"agents": agents, "default": "default"});
    ([(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}

async fn metrics_page(State(shared): State<Arc<Shared>>) -> Response<Body> {
    match &shared.metrics {
        Some(metrics) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], metrics.render()).into_response(),
        None => (StatusCode::NOT_FOUND, "no metrics are collected in this process\n").into_response(),
    }
}

async fn nowhere(request: Request) -> Response<Body> {
    let message = format!(
        "nothing at `{}`; calls are at /v1/voice and /v1/realtime",
        request.uri().path().chars().take(80).collect::<String>()
    );
    Refusal::new(StatusCode::NOT_FOUND, "not_found", message).into()
}

/// A refusal before the upgrade.
#[derive(Debug)]
struct Refusal {
    status: StatusCode,
    code: &'static str,
    message: String,
    field: Option<&'static str>,
    retry_after: Option<Duration>,
}

impl Refusal {
    fn new(status: StatusCode, code: &'static str, message: String) -> Self {
        Self { status, code, message, field: None, retry_after: None }
    }
}

impl From<Refusal> for Response<Body> {
    fn from(refusal: Refusal) -> Self {
        Fact::Refused { code: refusal.code.into() }.record();
        let body = thin::refusal(&ErrorBody {
            code: refusal.code.to_owned(),
            message: refusal.message,
            retryable: refusal.retry_after.is_some(),
            retry_after_ms: refusal.retry_after.map(ms),
            field: refusal.field.map(str::to_owned),
            request_id: random_id("req"),
        });
        let mut response = (refusal.status, [(header::CONTENT_TYPE, "application/json")], body).into_response();
        if let Some(after) = refusal.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(after.as_secs().max(1)));
        }
        response
    }
}

fn random_id(kind: &str) -> String {
    format!("{kind}_{:016x}", rand::rng().random::<u64>())
}

/// `GET /v1/voice`: the thin door. Pages of any origin may read why they were refused: that is all there is to read.
async fn voice(state: State<Arc<Shared>>, request: Request) -> Response<Body> {
    let mut response = thin_door(state, request).await;
    response.headers_mut().insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    response
}

async fn thin_door(State(shared): State<Arc<Shared>>, mut request: Request) -> Response<Body> {
    match knock(&shared, &request) {
        Err(refusal) => refusal.into(),
        Ok((query, slot)) => match Upgrade::from_request(&mut request) {
            Ok(upgrade) => admit(&shared, query, slot, upgrade),
            Err(UpgradeError::NotAsked) => {
                let body = serde_json::json!({"ok": true, "agent": query.agent,
                    "audio": AudioFormats { input: query.input, output: query.output },
                    "message": "this call would be taken; open it as a WebSocket"});
                ([(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
            }
            Err(error) => Refusal::new(StatusCode::BAD_REQUEST, "invalid_query", error.to_string()).into(),
        },
    }
}

/// All checks of a request's head, in the order of the contract's statuses.
fn knock(shared: &Shared, request: &Request) -> Result<(Query, OwnedSemaphorePermit), Refusal> {
    if let Some(origin) = shared.foreign_page(request) {
        let message = format!("Origin `{origin}` may not call; allowed: this server's own pages and loopback");
        return Err(Refusal::new(StatusCode::FORBIDDEN, "forbidden", message));
    }
    let UrlQuery(fields) = UrlQuery::<Vec<(String, String)>>::try_from_uri(request.uri())
        .map_err(|e| Refusal::new(StatusCode::BAD_REQUEST, "invalid_query", format!("unreadable query: {e}")))?;
    let query = Query::parse(&fields).map_err(|e| Refusal {
        field: Some(e.field),
        ..Refusal::new(StatusCode::BAD_REQUEST, "invalid_query", e.message)
    })?;
    if !shared.agents.contains_key(&query.agent) {
        let message = format!("no agent `{}` is configured", query.agent.chars().take(64).collect::<String>());
        return Err(Refusal { field: Some("agent"), ..Refusal::new(StatusCode::NOT_FOUND, "unknown_agent", message) });
    }
    let slot = shared.line().map_err(|why| Refusal {
        retry_after: Some(FULL_RETRY),
        ..Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", why.to_owned())
    })?;
    Ok((query, slot))
}

/// Answers 101 and runs the call in a task of its own.
fn admit(shared: &Arc<Shared>, query: Query, slot: OwnedSemaphorePermit, upgrade: Upgrade) -> Response<Body> {
    // A list that was offered must be answered from, and a token in it must never be echoed.
    let protocol = upgrade.protocols().iter().any(|p| p == thin::PROTOCOL).then_some(thin::PROTOCOL);
    let (response, pending) = upgrade.accept(protocol);
    let max_message = shared.config.server.max_message_bytes;
    if query.resume {
        spawn(shared, slot, pending, max_message, |id, socket| async move { refuse_resume(socket, &id).await });
        return response;
    }
    let task = shared.clone();
    let agent = task.agents.get(&query.agent).cloned().unwrap_or_default();
    run(shared, slot, pending, max_message, move |id, client| call(&task, &query, agent, id, client));
    response
}

/// Runs a call, made of its id and its client's socket, to its end.
fn run(
    shared: &Shared,
    slot: OwnedSemaphorePermit,
    pending: Pending,
    max_message: usize,
    call: impl FnOnce(String, Socket) -> Call + Send + 'static,
) {
    spawn(shared, slot, pending, max_message, |id, socket| async move {
        let end = driver::run(call(id, socket)).await;
        tracing::debug!(%end, "end");
    });
}

/// Does something with an upgraded socket in a task of its own, which has an id and takes a line until it ends.
fn spawn<F: Future<Output = ()> + Send>(
    shared: &Shared,
    slot: OwnedSemaphorePermit,
    pending: Pending,
    max_message: usize,
    work: impl FnOnce(String, Socket) -> F + Send + 'static,
) {
    let id = random_id("call");
    let span = tracing::info_span!("call", id);
    let task = async move {
        let limits = SocketLimits { max_message, read_buffer: READ_BUFFER };
        match pending.socket(limits).await {
            Ok(socket) => Box::pin(work(id, socket)).await,
            Err(error) => tracing::debug!(%error, "upgrade failed"),
        }
        drop(slot);
    };
    shared.calls.spawn(task.instrument(span));
}

fn call(shared: &Shared, query: &Query, agent: Arc<AgentConfig>, id: String, client: Socket) -> Call {
    let config = &shared.config;
    let model = agent.model.as_ref().unwrap_or(&config.upstream.model);
    let wanted = Wanted::voice(model);
    let plan = plan(config, query, &agent);
    let audio = plan.audio;
    let setup =
        SessionSetup { input: plan.upstream_input, output: plan.upstream_output, auto_turns: query.auto_turns, agent };
    Call {
        core: Core::owner(life(config, id.clone()), plan, Duration::ZERO),
        id,
        door: Door::thin(setup, audio, config.audio.gather),
        wanted,
        upstream: shared.upstream.clone(),
        client,
        drain: shared.drain.clone(),
        stop: shared.stop.clone(),
    }
}

fn life(config: &Config, call: String) -> Life {
    let config = &config.call;
    Life {
        call,
        max: Duration::from_secs(config.max_s),
        idle: (config.idle_s > 0).then(|| Duration::from_secs(config.idle_s)),
        stall: Duration::from_secs(config.stall_s),
    }
}

fn plan(config: &Config, query: &Query, agent: &AgentConfig) -> Plan {
    let millis = Duration::from_millis;
    Plan {
        agent: query.agent.clone(),
        audio: AudioFormats { input: query.input, output: query.output },
        upstream_input: upstream_input(query.input, config.upstream.input_rate),
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
