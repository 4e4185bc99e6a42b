//! The server: listens, checks at the doors, hands each call to a task of its own, and leaves in good order.
//!
//! [`voice`] is the thin door, [`phone`] that of telephones, [`realtime`] OpenAI's; [`handover`] is how another process goes on where this one leaves; what is asked over plain HTTP stands in [`crate::http`]. Whoever comes in
//! anywhere has passed [`Shared::identify`].
mod handover;
mod owner;
pub(crate) mod phone;
pub(crate) mod realtime;
pub(crate) mod refusal;
mod voice;

use std::{
    future, io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd as _, OwnedFd},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use axum::{
    Router,
    body::Body,
    extract::{Query as UrlQuery, Request, State},
    http::{Method, Response, StatusCode, Uri, header, request::Parts},
    response::IntoResponse as _,
    routing::get,
};
use metrics_exporter_prometheus::PrometheusHandle;
use rand::Rng as _;
use tokio::{
    net::TcpListener,
    sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch},
    task::JoinSet,
    time::{self, Instant},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument as _;

pub use self::handover::HandoverError;
use self::{
    handover::{Offer, Predecessor, WaitingRoom},
    phone::Phones,
    refusal::Refusal,
};
use crate::{
    admit::{
        Denied, Gate, Head, License, Principal,
        budget::{
            Amount, Budgets,
            window::{day_start, month_start},
        },
        gate::good_for,
        governor::Class,
        price::{PriceError, PriceList, Prices},
        router::Route,
        routes::Routes,
        sources::{self, Agents, Live, Reload, Sources},
        store::StoreError,
    },
    audio::sound::{Sound, Sounds},
    call::{
        core::{Life, Resume},
        driver::{self, Call},
        end::End,
        returns::{self, Arrival, Returns, Ticket},
        way::Way,
        written::Heir,
    },
    config::{AgentConfig, Config, Govern, LedgerConfig, TlsConfig, UpstreamConfig},
    http::{batches, broker, calls, cors, dial, pages, text, tokens, usage},
    ledger::{
        Health, Ledger, LedgerError,
        spent::{Times, spent},
    },
    net::{
        inherit,
        listen::{self, Peer, Pending, Stops},
        tls::{Files, Tls, TlsError},
        ws::{Socket, SocketLimits},
    },
    text::{
        batches::Batches,
        expert::{Asker, Expert},
        owned::Owned,
        run::Texts,
        share::Shares,
    },
    upstream::{accounts::Accounts, open::Upstream, status::StatusPage},
    wall::{unix_now, unix_now_ms},
    webhook::{Hooks, Webhooks, Whose},
};

/// Read buffer of a client's socket, bytes; grows with the message that is read.
const READ_BUFFER: usize = 1 << 10;
/// What a full server asks a client to wait.
pub(crate) const FULL_RETRY: Duration = Duration::from_secs(5);
/// Whoever has no good credential is told so after this, whatever is wrong with it.
const UNKNOWN_AFTER: Duration = Duration::from_millis(2);
/// A request whose connection was accepted before another process came may take so long to come.
const LATE_REQUESTS: Duration = Duration::from_secs(1);
/// Goodbyes after the last turn may take so long.
const GOODBYES: Duration = Duration::from_millis(900);
/// Between two tries to serve again.
const SERVE_AGAIN: Duration = Duration::from_millis(100);
/// The last rows of usage may take so long, where they cannot be written at once.
const LAST_ROWS: Duration = Duration::from_secs(1);
/// A start waits so long for what budgets begin with.
const REMEMBER_WITHIN: Duration = Duration::from_millis(250);
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
    /// AudioSockets cannot come in there.
    #[error("phone.audiosocket.listen: cannot listen on {addr}: {source}")]
    AudioSocket {
        /// Which.
        addr: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// An account with a telephone provider cannot be used.
    #[error("{0}")]
    Phone(String),
    /// A recording cannot be played.
    #[error("{0}")]
    Sound(String),
    /// The status page cannot be asked.
    #[error("incidents.url: {0}")]
    Incidents(String),
    /// No webhook could be called.
    #[error("webhooks: {0}")]
    Webhooks(String),
    /// The system has no thread left.
    #[error("no thread can be had: {0}")]
    Thread(io::Error),
    /// What outlives a process cannot be had.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Usage cannot be written down.
    #[error("{0} (--ledger or `ledger.file` names another one; `ledger.file = \"\"`: none)")]
    Ledger(#[from] LedgerError),
    /// Prices cannot be read.
    #[error(transparent)]
    Prices(#[from] PriceError),
    /// The relay that runs does not hand over.
    #[error("server.handover: {0}")]
    Handover(#[from] HandoverError),
    /// The certificate cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) gate: Arc<Gate>,
    agents: Arc<ArcSwap<Agents>>,
    /// What they play by themselves.
    sounds: Arc<ArcSwap<Sounds>>,
    pub(crate) accounts: Arc<Accounts>,
    pub(crate) routes: Arc<Routes>,
    pub(crate) exchanges: broker::Exchanges,
    returns: Returns,
    /// The process that follows this one, once there is one.
    heir: Heir,
    /// Where clients wait for calls of the process before.
    before: OnceLock<WaitingRoom>,
    pub(crate) ledger: Ledger,
    pub(crate) prices: Prices,
    pub(crate) budgets: Budgets,
    webhooks: Webhooks,
    /// Readers of it at once.
    pub(crate) readers: Arc<Semaphore>,
    slots: Arc<Semaphore>,
    draining: AtomicBool,
    drain: watch::Receiver<Option<Instant>>,
    pub(crate) calls: TaskTracker,
    pub(crate) stop: CancellationToken,
    metrics: Option<PrometheusHandle>,
    pub(crate) phones: Phones,
    /// Requests for text.
    pub(crate) desk: text::Desk,
    /// Requests that have a day.
    pub(crate) batches: Arc<Batches>,
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
        let address = self.address(head);
        self.gate.pace(address)?;
        self.knock(head, fields, address).await
    }

    /// The same for addresses that are asked many times in a row: whoever has a good key is paced by its tenant's limits alone, all
    /// others by where they come from.
    ///
    /// # Errors
    /// Why they may not come in.
    pub(crate) async fn identify_often(&self, head: &Parts) -> Result<Principal, Denied> {
        let address = self.address(head);
        let who = self.knock(head, &Vec::new(), address).await;
        match &who {
            Ok(who) if who.tenant().is_some() => {}
            _ => self.gate.pace(address)?,
        }
        who
    }

    async fn knock(&self, head: &Parts, fields: &Fields, address: IpAddr) -> Result<Principal, Denied> {
        let began = Instant::now();
        let who = self.gate.knock(Head::of(&head.headers, fields), address, unix_now());
        if matches!(who, Err(Denied::Credential)) {
            time::sleep_until(began + UNKNOWN_AFTER).await;
        }
        who
    }

    /// Where a request comes from.
    fn address(&self, head: &Parts) -> IpAddr {
        let peer = head.extensions.get::<Peer>().map_or([0, 0, 0, 0].into(), |peer| peer.0.ip());
        self.gate.address(peer, &head.headers)
    }

    /// A line for a call, or why there is none now.
    pub(crate) fn line(&self) -> Result<OwnedSemaphorePermit, &'static str> {
        // A request that was on its way when another process came: its call goes there, too.
        if self.is_draining() && !self.heir.is_there() {
            return Err("this server is going away");
        }
        self.slots.clone().try_acquire_owned().map_err(|_| "all lines are taken")
    }

    /// Whether there would be a line now.
    fn has_line(&self) -> bool {
        (!self.is_draining() || self.heir.is_there()) && self.slots.available_permits() > 0
    }

    /// Whether what a new call uses can be written down.
    ///
    /// # Errors
    /// [`Denied::Accounting`].
    pub(crate) fn accounts(&self) -> Result<(), Denied> {
        if self.ledger.accepts(Instant::now()) { Ok(()) } else { Err(Denied::Accounting) }
    }

    /// Tells when the server goes away.
    pub(crate) fn drain(&self) -> watch::Receiver<Option<Instant>> {
        self.drain.clone()
    }

    /// What is played while an agent's answer waits.
    fn hold(&self, agent: &AgentConfig) -> Option<Arc<Sound>> {
        self.sounds.load().get(agent.hold_audio.as_deref()?)
    }

    /// The tools of an agent that the relay runs itself, for one call.
    fn hooks(&self, name: &str, agent: &AgentConfig, who: &Principal, (call, door): (&str, &'static str)) -> Hooks {
        let (call, name, tenant) = (call.to_owned(), name.to_owned(), who.tenant_id().to_owned());
        let whose = Whose { call, agent: name, tenant, user: who.user().map(str::to_owned) };
        let mut hooks = self.webhooks.of(agent, &whose);
        let asks = agent.tools.iter().filter_map(|tool| Some((&tool.name, tool.expert()?)));
        for (tool, config) in asks {
            let (call, agent) = (whose.call.clone(), whose.agent.clone());
            let asker = Asker { who: who.clone(), call, agent, door };
            hooks.add(tool, Arc::new(Expert::new(self.desk.texts().clone(), config, asker)));
        }
        hooks
    }

    /// An agent, as it is now.
    pub(crate) fn agent(&self, name: &str) -> Option<Arc<AgentConfig>> {
        self.agents.load().get(name).cloned()
    }

    /// The account of whoever pays; `None`: it is not configured.
    pub(crate) fn upstream(&self, who: &Principal) -> Option<&Upstream> {
        self.accounts.get(who.upstream())
    }

    /// How a call that asks for this model, or this tier, comes to its sessions. The tiers are those of the start.
    pub(crate) fn way(&self, who: &Principal, upstream: &Upstream, name: &str) -> Way {
        Way::tier(name, &self.routes, &self.accounts, who)
            .unwrap_or_else(|| Way::fixed(upstream.clone(), who.upstream(), name))
    }

    /// Whether somebody may use what has this name: a model; or a tier, at least in part.
    pub(crate) fn may_use(&self, who: &Principal, name: &str) -> bool {
        who.may_use(name) || self.reach(who, name).iter().any(|route| who.may_use(&route.model))
    }

    /// Whether this is a tier that may come to this model.
    fn leads_to(&self, who: &Principal, tier: &str, model: &str) -> bool {
        self.reach(who, tier).iter().any(|route| route.model == model)
    }

    fn reach(&self, who: &Principal, tier: &str) -> Vec<Route> {
        self.routes.resolve(tier).map(|tier| self.routes.reach(tier, who.upstream())).unwrap_or_default()
    }

    /// The way back to a call that came in at this door, and what its client is told of it; none, where calls are not kept.
    fn way_back(&self, door: &'static str) -> Option<(Ticket, Resume)> {
        let window = Duration::from_secs(self.config.call.resume_window_s);
        (!window.is_zero()).then(|| {
            let mut ticket = self.returns.ticket(door);
            let token = ticket.first();
            (ticket, Resume { token, window })
        })
    }

    /// How long a session that was lost is tried to be had anew.
    fn reconnect(&self) -> Duration {
        Duration::from_secs(self.config.call.reconnect_s)
    }

    /// Whether a turn waits for the account's limits, and how long.
    fn turns(&self, who: &Principal) -> (Govern, Duration) {
        let turns = &self.config.turns;
        let wait_ms = if who.class() == Class::Batch { turns.batch_wait_ms } else { turns.wait_ms };
        (turns.govern, Duration::from_millis(wait_ms))
    }

    /// The limits of a call.
    pub(crate) fn life(&self, who: &Principal, call: String) -> Life {
        let (usual, secs) = (&self.config.call, Duration::from_secs);
        let idle = who.idle_s(usual.idle_s);
        Life {
            call,
            max: secs(who.max_call_s(usual.max_s)),
            idle: (idle > 0).then(|| secs(idle)),
            silence: (usual.silence_s > 0).then(|| secs(usual.silence_s)),
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

/// What it takes to accept.
#[derive(Debug)]
struct Entrance {
    /// The listening socket, once more, where another process may get it. Nowhere else: whoever connects to a socket that is open
    /// and that nobody accepts from waits for nothing.
    socket: Option<Arc<OwnedFd>>,
    tls: Option<Tls>,
    router: Router,
    max_connections: usize,
}

impl Entrance {
    /// The listening socket, to accept from; waits while there is no descriptor for it. None: no other process could get it.
    async fn listener(&self) -> Option<TcpListener> {
        let socket = self.socket.as_ref()?;
        loop {
            let copy = socket.try_clone().map(std::net::TcpListener::from);
            match copy.and_then(TcpListener::from_std) {
                Ok(listener) => return Some(listener),
                Err(error) => {
                    tracing::warn!(%error, "the process that followed is gone, and this one cannot serve again yet");
                    time::sleep(SERVE_AGAIN).await;
                }
            }
        }
    }
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    addr: SocketAddr,
    shared: Arc<Shared>,
    drain: watch::Sender<Option<Instant>>,
    entrance: Entrance,
    /// Where Asterisk's AudioSockets come in, until somebody accepts there.
    phones: Option<TcpListener>,
    /// Ends accepting, and connections that speak HTTP.
    stops: Stops,
    /// Ends what is not about calls.
    over: CancellationToken,
    /// This process was told to leave, whoever else serves.
    leaving: CancellationToken,
    /// How often another process has begun to serve in place of this one, or was gone again: odd while one does. (Not a flag: one that
    /// comes back before anybody has looked would be the one before.)
    followed: watch::Sender<u64>,
    reload: Reload,
    tasks: JoinSet<()>,
}

impl Server {
    /// Listens and serves from now on. `metrics`: what the metrics page shows.
    ///
    /// # Errors
    /// When the address cannot be had or should not be, or the upstream's makes no sense.
    pub async fn start(config: Config, metrics: Option<PrometheusHandle>) -> Result<Self, ServeError> {
        let addr = config.server.listen;
        let accounts = Arc::new(accounts(&config)?);
        let prices = Arc::new(ArcSwap::from_pointee(PriceList::load(config.prices.file.as_deref())?));
        let sounds = Arc::new(ArcSwap::from_pointee(sources::sounds(&config).map_err(ServeError::Sound)?));
        let live = Live { prices: prices.clone(), sounds: sounds.clone(), quotas: accounts.quotas() };
        let sources = Sources::open(&config, live)?;
        let gate = sources.gate();
        if gate.has_nobody() {
            return Err(ServeError::Open { addr });
        }
        let tls =
            config.server.tls.clone().map(|TlsConfig { cert, key }| Tls::load(Files { cert, key })).transpose()?;
        let ledger = open_ledger(&config.ledger)?;
        let budgets = Budgets::new(gate.clone(), sources.budget());
        let mut tasks = JoinSet::new();
        remember(&config.ledger, &budgets, &mut tasks).await;
        let mut before = match &config.server.handover {
            Some(path) => Predecessor::ask(path).await?,
            None => None,
        };
        let failed = |source| ServeError::Listen { addr, source };
        let listener = match before.as_mut().and_then(|before| before.listener(addr)) {
            Some(inherited) => inherited.map_err(failed)?,
            None => TcpListener::bind(addr).await.map_err(failed)?,
        };
        let addr = listener.local_addr().map_err(failed)?;
        let phones = phone::bind(&config, before.is_some()).await?;
        let copy = config.server.handover.is_some().then(|| listener.as_fd().try_clone_to_owned());
        let socket = copy.transpose().map_err(failed)?.map(Arc::new);
        let (drain, draining) = watch::channel(None);
        let max_connections = config.server.max_connections;
        let routes = Routes::new(&config, prices.clone());
        let texts = Arc::new(Texts {
            config: config.text.clone(),
            turns: config.turns.clone(),
            accounts: accounts.clone(),
            routes: routes.clone(),
            ledger: ledger.clone(),
            prices: prices.clone(),
            budgets: budgets.clone(),
            shares: Shares::default(),
            owned: Owned::default(),
        });
        let desk = text::Desk::new(texts.clone());
        let batches = Arc::new(Batches::new(texts, gate.clone(), desk.room().clone()));
        let shared = Arc::new(Shared {
            gate,
            agents: sources.agents(),
            sounds,
            accounts,
            routes,
            exchanges: broker::Exchanges::default(),
            returns: Returns::default(),
            heir: Heir::default(),
            before: OnceLock::new(),
            ledger,
            prices,
            budgets,
            webhooks: Webhooks::new().map_err(ServeError::Webhooks)?,
            readers: Arc::new(Semaphore::new(usage::READERS)),
            slots: Arc::new(Semaphore::new(config.server.max_calls)),
            draining: AtomicBool::new(false),
            drain: draining,
            calls: TaskTracker::new(),
            stop: CancellationToken::new(),
            metrics: metrics.clone(),
            phones: Phones::new(&config.phone).map_err(ServeError::Phone)?,
            batches,
            desk,
            config,
        });
        let (router, stops, over) = (router(shared.clone()), Stops::default(), CancellationToken::new());
        let reload = sources.watch(over.clone()).map_err(ServeError::Thread)?;
        tls.iter().for_each(|tls| drop(tasks.spawn(tls.clone().watch())));
        if let Some(metrics) = metrics {
            tasks.spawn(async move {
                loop {
                    time::sleep(METRICS_UPKEEP).await;
                    metrics.run_upkeep();
                }
            });
        }
        for (_, upstream) in shared.accounts.all() {
            tasks.spawn(upstream.quota().clone().run());
        }
        tasks.spawn(shared.batches.clone().keep());
        if let Some(page) = StatusPage::new(&shared.config.incidents).map_err(ServeError::Incidents)? {
            let routes = shared.routes.clone();
            tasks.spawn(page.watch(move |report| routes.heard(report)));
        }
        let entrance = Entrance { socket, tls, router, max_connections };
        let followed = watch::Sender::new(0);
        let leaving = CancellationToken::new();
        let mut server = Self { addr, shared, drain, entrance, phones, stops, over, leaving, followed, reload, tasks };
        server.accept(listener);
        server.follow(before).await?;
        Ok(server)
    }

    /// Accepts from now on.
    fn accept(&mut self, listener: TcpListener) {
        let Entrance { tls, router, max_connections, .. } = &self.entrance;
        let (tls, router, max_connections) = (tls.as_ref().map(Tls::acceptor), router.clone(), *max_connections);
        let (tracker, stops) = (self.shared.calls.clone(), self.stops.clone());
        self.tasks.spawn(phone::listen(self.shared.clone(), self.phones.take(), stops.clone()));
        self.tasks.spawn(async move { listen::serve(listener, tls, router, max_connections, &tracker, stops).await });
    }

    /// Takes over from the process before, if there is one, and waits for the one that follows.
    async fn follow(&mut self, before: Option<Predecessor>) -> Result<(), ServeError> {
        let (Some(path), Some(socket)) = (&self.shared.config.server.handover, &self.entrance.socket) else {
            return Ok(());
        };
        if let Some(mut before) = before {
            let (room, wishes) = WaitingRoom::new();
            // Before it leaves: its clients may come at once.
            let _ = self.shared.before.set(room);
            before.leaves().await?;
            self.tasks.spawn(before.take_over(self.shared.clone(), wishes));
        }
        let listener = inherit::listen(path).map_err(|source| HandoverError::Path { path: path.clone(), source })?;
        let offer = Offer {
            path: path.clone(),
            socket: socket.clone(),
            heir: self.shared.heir.clone(),
            followed: self.followed.clone(),
            drain: self.drain.clone(),
            leaving: self.leaving.clone(),
            returns: self.shared.returns.clone(),
            tickets: self.shared.phones.tickets.clone(),
        };
        self.tasks.spawn(offer.keep(listener));
        Ok(())
    }

    /// Waits until another process serves in place of this one.
    pub async fn followed(&self) {
        // The sender is ours.
        let _ = self.followed.subscribe().wait_for(|changes| is_followed(*changes)).await;
    }

    /// Reads agents, tenants, budgets, signing keys, prices and limits anew, now, all of them or none; the log says what came of it.
    pub fn reload(&self) {
        self.reload.now();
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Where usage is written down.
    pub fn ledger(&self) -> &Ledger {
        &self.shared.ledger
    }

    /// Tells every client, lets running turns finish for `server.drain_s`, then ends what is left. `hurry` cuts it short.
    pub async fn drain(mut self, hurry: impl Future<Output = ()>) {
        self.leaving.cancel();
        self.empty(Duration::ZERO, hurry, future::pending()).await;
    }

    /// The same for the process that serves in place of this one. `false`: that one is gone before this one was, which serves
    /// again, with the calls that it still has.
    pub async fn leave(&mut self, hurry: impl Future<Output = ()>) -> bool {
        let mut followed = self.followed.subscribe();
        let began = *followed.borrow_and_update();
        let alone = async { drop(followed.wait_for(|changes| *changes != began || !is_followed(*changes)).await) };
        // Whoever was connected when another process came would be refused without need.
        if self.empty(LATE_REQUESTS, hurry, alone).await {
            return true;
        }
        let Some(listener) = self.entrance.listener().await else {
            self.end().await;
            return true;
        };
        self.stops.accepting = CancellationToken::new();
        if self.stops.serving.is_cancelled() {
            self.stops.serving = CancellationToken::new();
        }
        self.shared.calls.reopen();
        self.shared.draining.store(false, Ordering::Release);
        self.drain.send_replace(None);
        self.accept(listener);
        false
    }

    /// Until nobody is left, and the end of it all; `late` for requests on their way. `false`: `stays` came first, and nothing was
    /// ended but accepting.
    async fn empty(
        &mut self,
        late: Duration,
        hurry: impl Future<Output = ()>,
        stays: impl Future<Output = ()>,
    ) -> bool {
        let grace = Duration::from_secs(self.shared.config.server.drain_s);
        self.shared.draining.store(true, Ordering::Release);
        self.drain.send_replace(Some(Instant::now() + grace));
        self.stops.accepting.cancel();
        self.shared.calls.close();
        let over = async {
            time::sleep(late.min(grace / 2)).await;
            self.stops.serving.cancel();
            self.shared.calls.wait().await;
        };
        tokio::select! {
            biased;
            () = stays => return false,
            () = over => {}
            () = hurry => {}
            () = time::sleep(grace) => {}
        }
        self.end().await;
        true
    }

    async fn end(&mut self) {
        self.leaving.cancel();
        self.stops.serving.cancel();
        self.over.cancel();
        self.shared.stop.cancel();
        if time::timeout(GOODBYES, self.shared.calls.wait()).await.is_err() {
            tracing::warn!(left = self.shared.calls.len(), "calls were cut off");
        }
        let unwritten = self.shared.ledger.flush(LAST_ROWS).await;
        if unwritten > 0 {
            tracing::error!(rows = unwritten, "usage could not be written before the end");
        }
        self.tasks.abort_all();
    }
}

/// See [`Server`]'s `followed`.
fn is_followed(changes: u64) -> bool {
    changes % 2 == 1
}

fn accounts(config: &Config) -> Result<Accounts, ServeError> {
    let dial = |section: String, config: &UpstreamConfig| {
        Upstream::new(Arc::new(config.clone())).map_err(|problem| ServeError::Upstream { section, problem })
    };
    let usual = dial("upstream".to_owned(), &config.upstream)?;
    let others = config.upstreams.iter();
    let named = others.map(|(name, config)| Ok((name.clone(), dial(format!("upstreams.{name}"), config)?)));
    Ok(Accounts::new(usual, named.collect::<Result<_, ServeError>>()?))
}

fn open_ledger(config: &LedgerConfig) -> Result<Ledger, LedgerError> {
    match config.file.as_ref().filter(|file| !file.as_os_str().is_empty()) {
        Some(file) => Ledger::open(file, Duration::from_secs(config.grace_s)),
        None => Ok(Ledger::none()),
    }
}

/// Gives budgets what the ledger knows of this day and this month. A large one is read on while calls are taken.
async fn remember(config: &LedgerConfig, budgets: &Budgets, tasks: &mut JoinSet<()>) {
    let Some(file) = config.file.clone().filter(|file| !file.as_os_str().is_empty()) else { return };
    let (budgets, unix, (done, read)) = (budgets.clone(), unix_now(), oneshot::channel::<()>());
    let ms = |unix: u64| unix * 1_000;
    let times = Times { month: ms(month_start(unix)), day: ms(day_start(unix)), until: unix_now_ms() };
    tasks.spawn_blocking(move || {
        match spent(&file, times) {
            Ok(all) => budgets.add_earlier(unix, &all),
            Err(error) => tracing::error!(%error, "the ledger cannot be read: budgets begin at zero"),
        }
        drop(done);
    });
    let _ = time::timeout(REMEMBER_WITHIN, read).await;
}

fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/v1/realtime", get(realtime::realtime))
        .route("/openai/v1/realtime", get(realtime::realtime))
        .route("/openai/realtime", get(realtime::azure_preview))
        .merge(cors::around(&shared, for_pages()))
        .merge(phone::routes())
        .merge(dial::routes())
        .merge(pages::routes())
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics_page))
        .fallback(nowhere)
        .method_not_allowed_fallback(not_so)
        .with_state(shared)
}

/// What web pages of other origins ask for, too.
fn for_pages() -> Router<Arc<Shared>> {
    let own = Router::new().route("/v1/voice", get(voice::voice)).route("/v1/agents", get(agents));
    let own = own.merge(tokens::routes()).merge(calls::routes()).merge(usage::routes());
    let own = own.merge(broker::routes()).merge(text::routes()).merge(batches::routes());
    // In here, so that a page may read it too.
    own.method_not_allowed_fallback(not_so)
}

async fn ready(State(shared): State<Arc<Shared>>) -> (StatusCode, &'static str) {
    const UNAVAILABLE: StatusCode = StatusCode::SERVICE_UNAVAILABLE;
    match shared.ledger.health(Instant::now()) {
        _ if shared.is_draining() => (UNAVAILABLE, "draining\n"),
        Health::Good => (StatusCode::OK, "ready\n"),
        Health::Failing { .. } => (StatusCode::OK, "ready, but usage cannot be written\n"),
        Health::Refusing { .. } => (UNAVAILABLE, "degraded: usage cannot be written, new calls are refused\n"),
    }
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
    shared.accounts.all().for_each(|(name, upstream)| upstream.quota().measure(name));
    match &shared.metrics {
        Some(metrics) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], metrics.render()).into_response(),
        None => (StatusCode::NOT_FOUND, "no metrics are collected in this process\n").into_response(),
    }
}

async fn nowhere(uri: Uri) -> Response<Body> {
    let message = format!("nothing at `{}`; calls are at /v1/voice and /v1/realtime", start_of(&uri));
    Refusal::new(StatusCode::NOT_FOUND, "not_found", message).into()
}

/// There is something, but not by this method. The router adds `Allow`.
async fn not_so(method: Method, uri: Uri) -> Response<Body> {
    let message = format!("`{}` takes no {method}; the header `Allow` says what it takes", start_of(&uri));
    Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "not_found", message).into()
}

/// As much of a path as a message wants to repeat.
fn start_of(uri: &Uri) -> String {
    uri.path().chars().take(80).collect()
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

/// Hands an upgraded socket to the call that a token leads to; where there is none, says so, in the same words for all.
fn come_back(
    shared: &Shared,
    door: &'static str,
    who: Principal,
    pending: Pending,
    max_message: usize,
    token: &str,
    got: u64,
) {
    let (token, returns, before) = (returns::token_hash(token), shared.returns.clone(), shared.before.get().cloned());
    let task = async move {
        let limits = SocketLimits { max_message, read_buffer: READ_BUFFER };
        let Ok(socket) = pending.socket(limits).await else { return };
        let arrival = Box::new(Arrival { token, socket, who, got });
        let arrived = match (returns.hand_over(door, arrival), before) {
            (Err(arrival), Some(before)) => before.wait(&returns, door, arrival).await,
            (arrived, _) => arrived,
        };
        if let Err(arrival) = arrived {
            returns::leave(arrival.socket, door, End::ResumeRefused, random_id("call")).await;
        }
    };
    shared.calls.spawn(Box::pin(task));
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

/// Takes a use of the principal's token, and a place for its call: the last checks, for they count. Only for calls that are new.
///
/// # Errors
/// When there is none left, or nothing left to spend.
pub(crate) async fn license(shared: &Shared, who: &Principal, id: &str, door: &'static str) -> Result<License, Denied> {
    shared.accounts()?;
    shared.budgets.may_begin(who, Amount::default())?;
    let license = shared.gate.admit(id, who, door)?;
    shared.gate.spend(who, unix_now()).await?;
    Ok(license)
}
