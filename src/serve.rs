//! The server: listens, checks at the doors, hands each call to a task of its own, and leaves in good order.
//!
//! [`voice`] is the thin door, [`realtime`] OpenAI's; what is asked over plain HTTP stands in [`crate::http`]. Whoever comes in
//! anywhere has passed [`Shared::identify`].
pub(crate) mod realtime;
pub(crate) mod refusal;
mod voice;

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

use arc_swap::ArcSwap;
use axum::{
    Router,
    body::Body,
    extract::{Query as UrlQuery, Request, State},
    http::{Response, StatusCode, Uri, header, request::Parts},
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

use self::refusal::Refusal;
use crate::{
    admit::{
        Denied, Gate, Head, License, Principal,
        gate::good_for,
        sources::{Agents, Sources},
        store::StoreError,
    },
    call::{
        core::Life,
        driver::{self, Call},
    },
    config::{AgentConfig, Config, TlsConfig, UpstreamConfig},
    http::{broker, calls, cors, pages, tokens},
    net::{
        listen::{self, Peer, Pending},
        tls::{Files, Tls, TlsError},
        ws::{Socket, SocketLimits},
    },
    upstream::open::Upstream,
    wall::unix_now,
};

/// Read buffer of a client's socket, bytes; grows with the message that is read.
const READ_BUFFER: usize = 1 << 10;
/// What a full server asks a client to wait.
pub(crate) const FULL_RETRY: Duration = Duration::from_secs(5);
/// Whoever has no good credential is told so after this, whatever is wrong with it.
const UNKNOWN_AFTER: Duration = Duration::from_millis(2);
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
        "server.listen: {addr} can be reached from other machines, by itself or through server.trusted_proxies, and no tenant is configured, so that nobody would be \
         asked for a credential; make one with `voxrelay tenant add`, listen on a loopback address such as 127.0.0.1:8080, or \
         say --insecure-open"
    )]
    Open {
        /// Where.
        addr: SocketAddr,
    },
    /// A service's address cannot work.
    #[error("{section}.url: {problem}")]
    Upstream {
        /// Which.
        section: String,
        /// Why.
        problem: String,
    },
    /// The system has no thread left.
    #[error("no thread can be had: {0}")]
    Thread(io::Error),
    /// What outlives a process cannot be had.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The certificate cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) gate: Arc<Gate>,
    agents: Arc<ArcSwap<Agents>>,
    upstream: Upstream,
    upstreams: BTreeMap<String, Upstream>,
    pub(crate) exchanges: broker::Exchanges,
    slots: Arc<Semaphore>,
    draining: AtomicBool,
    drain: watch::Receiver<Option<Instant>>,
    pub(crate) calls: TaskTracker,
    pub(crate) stop: CancellationToken,
    metrics: Option<PrometheusHandle>,
}

/// Fields of a query.
pub(crate) type Fields = Vec<(String, String)>;

impl Shared {
    fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Who asks. Every way to the upstream begins here.
    ///
    /// # Errors
    /// Why they may not come in.
    pub(crate) async fn identify(&self, head: &Parts, fields: &Fields) -> Result<Principal, Denied> {
        let began = Instant::now();
        let headers = &head.headers;
        let peer = head.extensions.get::<Peer>().map_or([0, 0, 0, 0].into(), |peer| peer.0.ip());
        let address = self.gate.address(peer, headers);
        self.gate.pace(address)?;
        let who = self.gate.knock(Head::of(headers, fields), address, unix_now());
        if matches!(who, Err(Denied::Credential)) {
            time::sleep_until(began + UNKNOWN_AFTER).await;
        }
        who
    }

    /// A line for a call, or why there is none now.
    pub(crate) fn line(&self) -> Result<OwnedSemaphorePermit, &'static str> {
        if self.is_draining() {
            return Err("this server is going away");
        }
        self.slots.clone().try_acquire_owned().map_err(|_| "all lines are taken")
    }

    /// Tells when the server goes away.
    pub(crate) fn drain(&self) -> watch::Receiver<Option<Instant>> {
        self.drain.clone()
    }

    /// An agent, as it is now.
    pub(crate) fn agent(&self, name: &str) -> Option<Arc<AgentConfig>> {
        self.agents.load().get(name).cloned()
    }

    /// The account of whoever pays; `None`: it is not configured.
    pub(crate) fn upstream(&self, who: &Principal) -> Option<&Upstream> {
        who.upstream().map_or(Some(&self.upstream), |name| self.upstreams.get(name))
    }

    /// The limits of a call.
    pub(crate) fn life(&self, who: &Principal, call: String) -> Life {
        let (usual, secs) = (&self.config.call, Duration::from_secs);
        let idle = who.idle_s(usual.idle_s);
        Life {
            call,
            max: secs(who.max_call_s(usual.max_s)),
            idle: (idle > 0).then(|| secs(idle)),
            stall: secs(usual.stall_s),
            credential: good_for(who, unix_now()),
        }
    }
}

/// The fields of a request's query.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn fields(uri: &Uri) -> Result<Fields, String> {
    UrlQuery::<Fields>::try_from_uri(uri).map(|UrlQuery(fields)| fields).map_err(|e| format!("unreadable query: {e}"))
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
        let sources = Sources::open(&config)?;
        let gate = sources.gate();
        if gate.has_nobody() {
            return Err(ServeError::Open { addr });
        }
        let dial = |section: String, config: &UpstreamConfig| {
            Upstream::new(Arc::new(config.clone())).map_err(|problem| ServeError::Upstream { section, problem })
        };
        let upstream = dial("upstream".to_owned(), &config.upstream)?;
        let others = config.upstreams.iter();
        let upstreams = others.map(|(name, config)| Ok((name.clone(), dial(format!("upstreams.{name}"), config)?)));
        let upstreams = upstreams.collect::<Result<_, ServeError>>()?;
        let tls =
            config.server.tls.clone().map(|TlsConfig { cert, key }| Tls::load(Files { cert, key })).transpose()?;
        let listener = TcpListener::bind(addr).await.map_err(|source| ServeError::Listen { addr, source })?;
        let addr = listener.local_addr().map_err(|source| ServeError::Listen { addr, source })?;
        let (drain, draining) = watch::channel(None);
        let max_connections = config.server.max_connections;
        let shared = Arc::new(Shared {
            gate,
            agents: sources.agents(),
            upstream,
            upstreams,
            exchanges: broker::Exchanges::default(),
            slots: Arc::new(Semaphore::new(config.server.max_calls)),
            draining: AtomicBool::new(false),
            drain: draining,
            calls: TaskTracker::new(),
            stop: CancellationToken::new(),
            metrics: metrics.clone(),
            config,
        });
        let closed = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let (router, stop, tracker) = (router(shared.clone()), closed.clone(), shared.calls.clone());
        let acceptor = tls.as_ref().map(Tls::acceptor);
        tasks.spawn(async move { listen::serve(listener, acceptor, router, max_connections, &tracker, stop).await });
        sources.watch(closed.clone()).map_err(ServeError::Thread)?;
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
        .route("/v1/realtime", get(realtime::realtime))
        .route("/openai/v1/realtime", get(realtime::realtime))
        .route("/openai/realtime", get(realtime::azure_preview))
        .merge(cors::around(&shared, for_pages()))
        .merge(pages::routes())
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics_page))
        .fallback(nowhere)
        .with_state(shared)
}

/// What web pages of other origins ask for, too.
fn for_pages() -> Router<Arc<Shared>> {
    let own = Router::new().route("/v1/voice", get(voice::voice)).route("/v1/agents", get(agents));
    own.merge(tokens::routes()).merge(calls::routes()).merge(broker::routes())
}

async fn ready(State(shared): State<Arc<Shared>>) -> (StatusCode, &'static str) {
    if shared.is_draining() { (StatusCode::SERVICE_UNAVAILABLE, "draining\n") } else { (StatusCode::OK, "ready\n") }
}

/// `GET /v1/agents`: whom one can call, by name. No more of an agent is public.
async fn agents(State(shared): State<Arc<Shared>>, request: Request) -> Response<Body> {
    let (head, _) = request.into_parts();
    let fields = fields(&head.uri).unwrap_or_default();
    let who = match shared.identify(&head, &fields).await {
        Ok(who) => who,
        Err(denied) => return Refusal::from(denied).into(),
    };
    let agents = shared.agents.load();
    let names = agents.keys().filter(|name| who.may_call(name));
    let agents: Vec<_> = names.map(|name| serde_json::json!({"name": name})).collect();
    let body = serde_json::json!({"agents": agents, "default": who.agent("default")});
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

/// A name for something of ours.
pub(crate) fn random_id(kind: &str) -> String {
    format!("{kind}_{:016x}", rand::rng().random::<u64>())
}

/// Runs a call, made of its socket, to its end.
fn run(
    shared: &Shared,
    who: &Principal,
    id: &str,
    slot: OwnedSemaphorePermit,
    pending: Pending,
    max_message: usize,
    call: impl FnOnce(Socket) -> Call + Send + 'static,
) {
    spawn(shared, who, id, slot, pending, max_message, |socket| async move {
        let end = driver::run(call(socket)).await;
        tracing::debug!(%end, "end");
    });
}

/// Does something with an upgraded socket in a task of its own, which takes a line until it ends.
fn spawn<F: Future<Output = ()> + Send>(
    shared: &Shared,
    who: &Principal,
    id: &str,
    slot: OwnedSemaphorePermit,
    pending: Pending,
    max_message: usize,
    work: impl FnOnce(Socket) -> F + Send + 'static,
) {
    let span = tracing::info_span!("call", id, tenant = who.tenant_id());
    let task = async move {
        let limits = SocketLimits { max_message, read_buffer: READ_BUFFER };
        match pending.socket(limits).await {
            Ok(socket) => Box::pin(work(socket)).await,
            Err(error) => tracing::debug!(%error, "upgrade failed"),
        }
        drop(slot);
    };
    shared.calls.spawn(task.instrument(span));
}

/// Takes a use of the principal's token, and a place for its call: the last checks, for they count.
///
/// # Errors
/// When there is none left.
pub(crate) async fn license(shared: &Shared, who: &Principal, id: &str, door: &'static str) -> Result<License, Denied> {
    let license = shared.gate.admit(id, who, door)?;
    shared.gate.spend(who, unix_now()).await?;
    Ok(license)
}
