//! Opens one session: TCP, TLS, the upgrade, and the wait for `session.created`.
//!
//! The service answers 101 to everybody; bad keys, unknown models and empty accounts come after it as an `error` event and
//! a close. So a session counts as up at `session.created`, and everything before is one operation with one deadline.
use std::{
    collections::HashMap,
    future::Future,
    io,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::http::{HeaderValue, Request, StatusCode, header};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use rand::Rng as _;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::{self, Instant},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_tungstenite::tungstenite::{
    handshake::{client::generate_key, derive_accept_key},
    protocol::Role,
};

use tokio_util::task::TaskTracker;

use super::{
    Event, ServiceError, Shape, UpstreamError, Wanted, azure, beta,
    breaker::{Answer, Breaker},
    error::plain_code,
    ga,
    limits::{Board, Source},
    redial::Redials,
    rest::{self, Act, Minted, Rest, Taken},
    secrets::{Lent, Mint, Order, Secrets},
};
use crate::{
    admit::{
        Principal,
        governor::{Dimension, Heard},
        quota::{Quota, SessionSeat},
    },
    config::{Credentials, Dialect, Endpoint, Secret, UpstreamConfig},
    net::{
        io::Io,
        tls,
        ws::{Frame, Socket, SocketLimits},
    },
    observe::fact::Fact,
};

/// Read buffer of an upstream socket, bytes; grows with the event that is read.
const READ_BUFFER: usize = 1 << 10;
/// How much of a refusal's body is read, bytes.
const MAX_REFUSAL: usize = 16 << 10;
/// A model that could be connected is taken to be one for so long.
const MODEL_KNOWN: Duration = Duration::from_secs(3_600);
/// And one that could not, for so long.
const MODEL_REFUSED: Duration = Duration::from_secs(3);
/// Models that are remembered.
const MODELS: usize = 1_000;
/// First pause between tries; doubles, and half of it is chance.
const RETRY_PAUSE: Duration = Duration::from_millis(150);
/// No wait between tries is longer; a longer one that the service names is told to the caller instead.
const RETRY_WAIT_MAX: Duration = Duration::from_secs(3);

/// An upstream that can be dialled: an account, and the client secrets that were made with it.
#[derive(Debug, Clone)]
pub struct Upstream {
    account: Arc<Account>,
    secrets: Arc<Secrets<Arc<Account>>>,
}

/// One account at a service: checked, with its credential.
pub struct Account {
    config: Arc<UpstreamConfig>,
    endpoint: Endpoint,
    tls: TlsConnector,
    rest: Rest,
    board: Arc<Board>,
    models: Models,
    redials: Redials,
    breaker: Breaker,
    quota: Arc<Quota>,
    goodbyes: TaskTracker,
}

impl std::fmt::Debug for Account {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Account").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

/// A session that is up.
#[derive(Debug)]
pub struct Session {
    /// Its socket.
    pub socket: Socket,
    /// How its messages are written.
    pub shape: Shape,
    /// Its id at the service.
    pub id: String,
    /// When the service will end it, Unix seconds.
    pub expires_at: Option<u64>,
    /// Its first message, `session.created`, in the GA shape.
    pub created: Bytes,
    /// Its place among those that the account may have; none for another's call that was joined.
    pub seat: Option<SessionSeat>,
}

impl Upstream {
    /// Checks the address and prepares TLS.
    ///
    /// # Errors
    /// What is allowed instead of the configured URL.
    pub fn new(config: Arc<UpstreamConfig>) -> Result<Self, String> {
        let board = Arc::new(Board::default());
        let url = config.url.as_deref().unwrap_or("https://api.openai.com/v1");
        let endpoint = Endpoint::parse(url, config.plaintext)?;
        let mut tls = tls::client()?;
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let rest = Rest::new(config.clone(), &endpoint, tls.clone(), board.clone())?;
        let (tls, models) = (TlsConnector::from(Arc::new(tls)), Models::default());
        let (redials, breaker) = (Redials::default(), Breaker::default());
        let quota = Quota::new(config.limits.clone());
        let goodbyes = TaskTracker::new();
        let account =
            Arc::new(Account { config, endpoint, tls, rest, board, models, redials, breaker, quota, goodbyes });
        Ok(Self { secrets: Secrets::new(account.clone()), account })
    }

    /// The account's REST side.
    pub fn rest(&self) -> &Rest {
        &self.account.rest
    }

    /// The account's client secrets.
    pub fn secrets(&self) -> &Arc<Secrets<Arc<Account>>> {
        &self.secrets
    }

    /// What was seen of the account's limits.
    pub fn board(&self) -> &Arc<Board> {
        &self.account.board
    }

    /// How connects to the account have gone.
    pub fn breaker(&self) -> &Breaker {
        &self.account.breaker
    }

    /// What the account may use.
    pub fn quota(&self) -> &Arc<Quota> {
        &self.account.quota
    }

    /// The section that this was made from.
    pub fn config(&self) -> &UpstreamConfig {
        &self.account.config
    }

    /// Opens a session for somebody who may have one, trying again where that may help. `call`: the id of the call that it
    /// is for.
    ///
    /// # Errors
    /// The last try's.
    pub async fn open(&self, wanted: &Wanted, who: &Principal, call: &str) -> Result<Session, UpstreamError> {
        let order = self.order(wanted, who, call);
        let end = Instant::now() + RETRY_WAIT_MAX;
        self.breaker().first_try();
        let (mut tried, mut last) = (0, None);
        loop {
            if let Err((limited, paused)) = self.admitted(end).await {
                // What was found out says more than that others have found the same.
                return Err(last.filter(|_| !limited).unwrap_or(paused));
            }
            let seat = match self.seat(wanted, None, end).await {
                Ok(seat) => seat,
                Err((limited, _)) => return Err(last.unwrap_or(limited)),
            };
            let error = match self.attempt(wanted, who, &order).await {
                Ok(session) => return Ok(Session { seat, ..session }),
                Err(error) => error,
            };
            drop(seat);
            let verdict = error.verdict();
            tried += 1;
            let own = RETRY_PAUSE * 2u32.pow(tried.min(8) - 1);
            let pause = own.mul_f64(rand::rng().random_range(0.5..1.0)).max(verdict.retry_after.unwrap_or_default());
            // A caller has waited long enough when the time for a session is over (fault matrix U7), or for a credential (D1).
            let hung = match error {
                UpstreamError::Timeout { .. } => true,
                UpstreamError::NoCredential { .. } => Instant::now() + pause > end,
                _ => false,
            };
            let enough = hung || tried >= self.config().attempts || pause > RETRY_WAIT_MAX;
            if enough || !verdict.transient || !self.breaker().may_retry() {
                return Err(error);
            }
            tracing::info!(%error, tried, "upstream session failed, trying again");
            last = Some(error);
            time::sleep(pause).await;
        }
    }

    /// A place among the sessions that the account may have and open, until `end` at most; `seat`: that of the session before.
    async fn seat(
        &self,
        wanted: &Wanted,
        mut seat: Option<SessionSeat>,
        end: Instant,
    ) -> Result<Option<SessionSeat>, (UpstreamError, Option<SessionSeat>)> {
        if wanted.joins.is_some() {
            return Ok(None);
        }
        loop {
            let taken = match seat.take() {
                Some(seat) => match seat.again() {
                    Ok(()) => Ok(Some(seat)),
                    Err(reason) => Err((Some(seat), reason)),
                },
                None => self.quota().connect(&wanted.model).map(Some).map_err(|reason| (None, reason)),
            };
            let reason = match taken {
                Ok(taken) => return Ok(taken),
                Err((kept, reason)) => {
                    seat = kept;
                    reason
                }
            };
            // Whoever waits for the same moment does not come all at once.
            let wait = reason.wait.map(|wait| wait + RETRY_PAUSE.mul_f64(rand::rng().random()));
            match wait.map(|wait| Instant::now() + wait).filter(|at| *at <= end) {
                Some(at) => time::sleep_until(at).await,
                None => {
                    self.quota().gave_up(&wanted.model, &reason);
                    return Err((UpstreamError::Limited(reason), seat));
                }
            }
        }
    }

    /// Waits until the account may be dialled, until `end` at most; else whether it is the service's own wish that it may not.
    async fn admitted(&self, end: Instant) -> Result<(), (bool, UpstreamError)> {
        loop {
            let (limited, retry_after) = match self.breaker().ask(Instant::now()) {
                Answer::Go => return Ok(()),
                Answer::Held(wait) => (true, wait),
                Answer::Open(wait) => (false, wait),
            };
            if !limited || Instant::now() + retry_after > end {
                return Err((limited, UpstreamError::Paused { limited, retry_after }));
            }
            // Whoever waited for the same moment does not come all at once.
            let later = RETRY_PAUSE.mul_f64(rand::rng().random());
            time::sleep(retry_after + later).await;
        }
    }

    /// Opens a session for a call that has lost one: at once if nobody else does, and else in its turn, so that a service that
    /// comes back is not trampled; until `patience` is over. `seat`: that of the session that it had.
    ///
    /// # Errors
    /// The last try's.
    pub async fn reopen(
        &self,
        wanted: &Wanted,
        who: &Principal,
        call: &str,
        patience: Duration,
        mut seat: Option<SessionSeat>,
    ) -> Result<Session, UpstreamError> {
        let order = self.order(wanted, who, call);
        let end = Instant::now() + patience;
        let mut last = None;
        loop {
            if time::timeout_at(end, self.account.redials.turn()).await.is_err() {
                return Err(last.unwrap_or(UpstreamError::Timeout { stage: "take another session", after: patience }));
            }
            // The pace of its own finds out when the service is back; a moment that it has named is kept.
            let held = self.breaker().held(Instant::now());
            if Instant::now() + held >= end {
                return Err(last.unwrap_or(UpstreamError::Paused { limited: true, retry_after: held }));
            }
            time::sleep(held).await;
            let taken = match self.seat(wanted, seat.take(), end).await {
                Ok(taken) => taken,
                Err((limited, _)) => return Err(last.unwrap_or(limited)),
            };
            let error = match self.attempt(wanted, who, &order).await {
                Ok(session) => {
                    self.account.redials.worked();
                    return Ok(Session { seat: taken, ..session });
                }
                Err(error) => error,
            };
            let verdict = error.verdict();
            seat = taken; // its place is not lost by a try that fails
            // What is wrong with this call, or its quota, says nothing about the service.
            if verdict.transient && verdict.code != "rate_limited" {
                self.account.redials.failed();
            }
            let pause = verdict.retry_after.unwrap_or_default();
            if !verdict.transient || Instant::now() + pause >= end {
                return Err(error);
            }
            tracing::info!(%error, "no new session yet, trying again");
            last = Some(error);
            time::sleep(pause).await;
        }
    }

    /// Opens a session, with one try: for whoever has other accounts to go to. What must be waited for before (a moment that the service
    /// has named, a place among its sessions, or for calls that have lost one, `again`, their turn) is waited for until `end`.
    /// `seat`: that of the session before; it is given back where there is none.
    ///
    /// # Errors
    /// The try's, or that there was none ([`UpstreamError::Paused`], [`UpstreamError::Limited`]).
    pub async fn once(
        &self,
        (wanted, who, call): (&Wanted, &Principal, &str),
        seat: Option<SessionSeat>,
        again: bool,
        end: Instant,
    ) -> Result<Session, (UpstreamError, Option<SessionSeat>)> {
        let paused = |limited, retry_after| UpstreamError::Paused { limited, retry_after };
        if again && time::timeout_at(end, self.account.redials.turn()).await.is_err() {
            return Err((paused(false, RETRY_PAUSE), seat));
        }
        // How often an account is dialled that does not answer is said by whoever chooses it.
        let held = self.breaker().held(Instant::now());
        if !held.is_zero() {
            if Instant::now() + held > end {
                return Err((paused(true, held), seat));
            }
            time::sleep(held).await;
        }
        let taken = self.seat(wanted, seat, end).await?;
        let order = self.order(wanted, who, call);
        match self.attempt(wanted, who, &order).await {
            Ok(session) => {
                self.account.redials.worked();
                Ok(Session { seat: taken, ..session })
            }
            Err(error) => {
                let verdict = error.verdict();
                if again && verdict.transient && verdict.code != "rate_limited" {
                    self.account.redials.failed();
                }
                Err((error, taken))
            }
        }
    }

    /// Begins a call by SDP, which is a session of this model ([`Rest::exchange`]); empty: nobody knows which.
    ///
    /// # Errors
    /// Why there is no call.
    pub async fn exchange(
        &self,
        model: &str,
        offer: Bytes,
        session: Option<&Value>,
        secret: Option<&Secret>,
        who: &Principal,
    ) -> Result<Taken, UpstreamError> {
        let taken = self.rest().exchange(offer, session, secret, who).await;
        taken.inspect_err(|error| self.account.no_session(model, error))
    }

    /// Takes a call from the telephone network, which is a session of this model ([`Rest::act`]).
    ///
    /// # Errors
    /// Why it was not taken.
    pub async fn accept(&self, model: &str, call: &str, session: &Value, who: &Principal) -> Result<(), UpstreamError> {
        let accepted = self.rest().act(call, Act::Accept, Some(session.to_string().into()), who).await;
        accepted.inspect_err(|error| self.account.no_session(model, error))
    }

    fn order(&self, wanted: &Wanted, who: &Principal, call: &str) -> Order {
        Order::new(&wanted.session(), self.config().secret_ttl_s, who, Some(call))
    }

    /// One try, with a client secret made anew where the one that we had is good no more.
    async fn attempt(&self, wanted: &Wanted, who: &Principal, order: &Order) -> Result<Session, UpstreamError> {
        let tried = Box::pin(self.attempt_with_credential(wanted, who, order)).await;
        match &tried {
            Ok(_) if self.breaker().worked() => Fact::ServiceAnswers.record(),
            Err(error) if self.breaker().failed(Instant::now(), &error.verdict()) => Fact::ServiceSilent.record(),
            _ => {}
        }
        tried
    }

    async fn attempt_with_credential(
        &self,
        wanted: &Wanted,
        who: &Principal,
        order: &Order,
    ) -> Result<Session, UpstreamError> {
        let mut renewed = false;
        loop {
            let (error, lent) = match self.credential(wanted, who, order).await {
                Err(error) => (error, None),
                Ok(credential) => match self.account.open(wanted, who, &credential).await {
                    Ok(session) => return Ok(session),
                    Err(error) => (error, credential.generation()),
                },
            };
            let refused = error.verdict().code == "upstream_auth";
            if let (Some(secret), true) = (who.secret().filter(|_| wanted.joins.is_none()), refused) {
                self.secrets.refused_when_brought(&secret.value);
            }
            if let (Some(generation), true) = (lent, refused) {
                // Revoked, or it ended sooner than it said: one more is made for everybody, and tried once (fault matrix U11).
                self.secrets.refused(order, generation, &error);
                if !std::mem::replace(&mut renewed, true) {
                    continue;
                }
            }
            return Err(error);
        }
    }

    /// What a session is opened with.
    async fn credential(&self, wanted: &Wanted, who: &Principal, order: &Order) -> Result<Credential, UpstreamError> {
        match (who.secret(), self.config().credentials) {
            // Whoever joins a call steers it: that is the account's own right.
            _ if wanted.joins.is_some() => Ok(Credential::Key),
            (Some(secret), _) => Ok(Credential::Brought(secret.value.clone())),
            (None, Credentials::ApiKey) => Ok(Credential::Key),
            (None, Credentials::Ephemeral) => self.secrets.get(order, 0.0).await.map(Credential::Lent),
        }
    }
}

impl Mint for Arc<Account> {
    async fn mint(&self, order: Order) -> Result<Minted, UpstreamError> {
        if let Some(model) = &order.connects {
            self.can_connect(model, &order.who).await?;
        }
        self.rest.mint(&order.body, &order.who).await
    }
}

impl Account {
    /// Whether sessions of this model can be opened, tried once an hour by opening one: nothing is said in it, so that it costs
    /// nothing. The service makes secrets even for models that nobody can connect to (realtime-protocol section 6).
    async fn can_connect(&self, model: &str, who: &Principal) -> Result<(), UpstreamError> {
        let known = self.models.of(model);
        let mut known = known.lock().await;
        match &*known {
            Some((at, None)) if at.elapsed() < MODEL_KNOWN => return Ok(()),
            // Not before the moment that it names.
            Some((at, Some(error))) if Instant::now() < *at => {
                let retry_after = *at - Instant::now();
                return Err(UpstreamError::NoCredential { error: error.clone(), retry_after });
            }
            _ => {}
        }
        match self.open(&Wanted::voice(model), who, &Credential::Key).await {
            Ok(session) => {
                *known = Some((Instant::now(), None));
                // Its goodbye is nobody's concern who waits for the secret.
                self.goodbyes.spawn(session.socket.close(1000, "", Duration::from_secs(1)));
                Ok(())
            }
            Err(error) => {
                let retry_after = error.verdict().retry_after.unwrap_or_default().max(MODEL_REFUSED);
                let error = Arc::new(error);
                *known = Some((Instant::now() + retry_after, Some(error.clone())));
                Err(UpstreamError::NoCredential { error, retry_after })
            }
        }
    }

    /// Opens a session; what its refusal says of limits is noted.
    async fn open(&self, wanted: &Wanted, who: &Principal, credential: &Credential) -> Result<Session, UpstreamError> {
        let opened = self.dial(wanted, who, credential).await;
        if let Err(error) = &opened {
            self.board.refused(Source::Connect, who.tenant_id(), error);
            // A call that is joined has its session already.
            if wanted.joins.is_none() {
                self.no_session(&wanted.model, error);
            }
        }
        opened
    }

    /// The service would not begin a session of this model, whichever way it was asked for one: if it has come to a limit, the quota
    /// knows. What a REST answer says is left (`x-ratelimit-*`) is of requests to that address, and none of what the quota counts.
    fn no_session(&self, model: &str, error: &UpstreamError) {
        let verdict = error.verdict();
        if verdict.code == "rate_limited" {
            let heard = Heard::Limited { dimension: Some(Dimension::Connects), wait: verdict.retry_after };
            self.quota.heard(model, heard);
        }
    }

    async fn dial(&self, wanted: &Wanted, who: &Principal, credential: &Credential) -> Result<Session, UpstreamError> {
        let connect = Duration::from_millis(self.config.connect_timeout_ms);
        let whole = Duration::from_millis(self.config.session_timeout_ms);
        let end = Instant::now() + whole;
        let stream = within(Instant::now() + connect, connect, "accept a connection", self.connect()).await?;
        let socket = within(end, whole, "answer the handshake", self.upgrade(stream, wanted, who, credential)).await?;
        within(end, whole, "say session.created", self.created(socket)).await
    }

    async fn connect(&self) -> Result<MaybeTls, UpstreamError> {
        let Endpoint { tls, host, port, .. } = &self.endpoint;
        let unreachable = |source| UpstreamError::Unreachable { host: host.clone(), port: *port, source };
        let tcp = TcpStream::connect((host.as_str(), *port)).await.map_err(unreachable)?;
        tcp.set_nodelay(true).map_err(unreachable)?;
        if !tls {
            return Ok(MaybeTls::Plain(tcp));
        }
        let name = ServerName::try_from(host.clone()).map_err(|e| unreachable(io::Error::other(e)))?;
        self.tls.connect(name, tcp).await.map(|tls| MaybeTls::Tls(Box::new(tls))).map_err(unreachable)
    }

    async fn upgrade(
        &self,
        stream: MaybeTls,
        wanted: &Wanted,
        who: &Principal,
        credential: &Credential,
    ) -> Result<Socket, UpstreamError> {
        let key = generate_key();
        let request = self.request(&key, wanted, who, credential).map_err(|e| UpstreamError::Broken(e.to_string()))?;
        let limits = SocketLimits { max_message: self.config.max_message_bytes, read_buffer: READ_BUFFER };
        let (io, read_already) = match stream {
            MaybeTls::Plain(tcp) => {
                let (tcp, read): (TcpStream, _) = exchange(tcp, request, &key).await?;
                (Io::plain(tcp), read)
            }
            MaybeTls::Tls(tls) => {
                let (tls, read): (TlsStream<TcpStream>, _) = exchange(*tls, request, &key).await?;
                let (tcp, session) = tls.into_inner();
                (Io::tls(tcp, session), read)
            }
        };
        Ok(Socket::new(io, Role::Client, limits, read_already.to_vec()))
    }

    fn request(
        &self,
        key: &str,
        wanted: &Wanted,
        who: &Principal,
        credential: &Credential,
    ) -> Result<Request<Empty<Bytes>>, axum::http::Error> {
        let Endpoint { tls, host, port, .. } = &self.endpoint;
        let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
        let host = if *port == if *tls { 443 } else { 80 } { host } else { format!("{host}:{port}") };
        let mut request = Request::get(self.session_path(wanted, credential))
            .header(header::HOST, host)
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "websocket")
            .header(header::SEC_WEBSOCKET_VERSION, "13")
            .header(header::SEC_WEBSOCKET_KEY, key)
            .header(header::USER_AGENT, concat!("voxrelay/", env!("CARGO_PKG_VERSION")));
        if let Some(secret) = credential.secret().or(self.config.api_key.as_ref()) {
            let (name, value) = rest::credential_header(self.config.dialect, secret.expose());
            let mut value = HeaderValue::try_from(value)?;
            value.set_sensitive(true);
            request = request.header(name, value);
        }
        if self.config.dialect == Dialect::Beta {
            let (name, value) = beta::HEADER;
            request = request.header(name, value);
        }
        for (name, value) in [
            ("openai-organization", self.config.organization.as_deref()),
            ("openai-project", self.config.project.as_deref()),
            ("openai-safety-identifier", who.safety_id()),
        ] {
            if let Some(value) = value {
                request = request.header(name, value);
            }
        }
        request.body(Empty::new())
    }

    fn session_path(&self, wanted: &Wanted, credential: &Credential) -> String {
        let base = &self.endpoint.path;
        // A client secret already names the model, and some servers refuse to hear it twice.
        let secret = credential.secret().or(self.config.api_key.as_ref());
        let bound = secret.is_some_and(|key| key.expose().starts_with("ek_")) && !self.config.model_with_secret;
        match self.config.dialect {
            Dialect::Ga => ga::session_path(base, wanted, bound),
            Dialect::Beta => beta::session_path(base, wanted),
            Dialect::Azure => azure::session_path(base, self.config.api_version.as_deref(), wanted, bound),
        }
    }

    /// The first event that is no error makes the session; an error is followed by a close with its code.
    async fn created(&self, mut socket: Socket) -> Result<Session, UpstreamError> {
        let mut refusal: Option<ServiceError> = None;
        let mut shape = Shape::of(&self.config);
        loop {
            let frame = match socket.next().await {
                Ok(frame) => frame,
                Err(error) => {
                    return Err(match refusal {
                        Some(refusal) => UpstreamError::refused(&refusal, None),
                        None => UpstreamError::Broken(error.to_string()),
                    });
                }
            };
            match frame {
                Frame::Text(text) => {
                    let mut up = None;
                    shape.incoming(text, |text| match ga::decode(&text) {
                        Event::SessionCreated { id, expires_at, .. } => up = Some((id, expires_at, text)),
                        Event::Error(error) => refusal = Some(error),
                        _ => {}
                    });
                    if let Some((id, expires_at, created)) = up {
                        return Ok(Session { socket, shape, id, expires_at, created, seat: None });
                    }
                }
                Frame::Closed { code, reason } => {
                    return Err(match refusal {
                        Some(refusal) => UpstreamError::refused(&refusal, code),
                        None => UpstreamError::closed(code, &reason),
                    });
                }
                Frame::Binary(_) | Frame::Pong => {}
            }
        }
    }
}

/// Models that could be connected, or why not, and when.
#[derive(Debug, Default)]
struct Models(Mutex<HashMap<String, Tried>>);

type Tried = Arc<tokio::sync::Mutex<Option<(Instant, Option<Arc<UpstreamError>>)>>>;

impl Models {
    /// One at a time is tried, whoever asks.
    fn of(&self, model: &str) -> Tried {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MODELS {
            all.clear();
        }
        all.entry(model.to_owned()).or_default().clone()
    }
}

/// What one session is opened with.
enum Credential {
    /// The account's key, if there is one.
    Key,
    /// A client secret of the cache.
    Lent(Lent),
    /// The client secret that a client came with.
    Brought(Secret),
}

impl Credential {
    fn secret(&self) -> Option<&Secret> {
        match self {
            Self::Key => None,
            Self::Lent(lent) => Some(&lent.value),
            Self::Brought(secret) => Some(secret),
        }
    }

    fn generation(&self) -> Option<u64> {
        match self {
            Self::Lent(lent) => Some(lent.generation),
            Self::Key | Self::Brought(_) => None,
        }
    }
}

enum MaybeTls {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

async fn within<T>(
    end: Instant,
    after: Duration,
    stage: &'static str,
    work: impl Future<Output = Result<T, UpstreamError>>,
) -> Result<T, UpstreamError> {
    time::timeout_at(end, work).await.unwrap_or(Err(UpstreamError::Timeout { stage, after }))
}

/// Sends the handshake and takes the stream back; a refusal's body is read for its code.
async fn exchange<S>(stream: S, request: Request<Empty<Bytes>>, key: &str) -> Result<(S, Bytes), UpstreamError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let broken = |e: hyper::Error| UpstreamError::Broken(e.to_string());
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let mut connection = pin!(connection.with_upgrades());
    let mut talk = pin!(async move {
        let response = sender.send_request(request).await.map_err(broken)?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(refusal(response).await);
        }
        let accept = response.headers().get(header::SEC_WEBSOCKET_ACCEPT);
        if accept.is_none_or(|a| a.as_bytes() != derive_accept_key(key.as_bytes()).as_bytes()) {
            return Err(UpstreamError::Broken("its handshake answer is not the one for our key".to_owned()));
        }
        hyper::upgrade::on(response).await.map_err(broken)
    });
    let mut running = true;
    let upgraded = loop {
        tokio::select! {
            done = talk.as_mut() => break done?,
            _ = connection.as_mut(), if running => running = false,
        }
    };
    let parts =
        upgraded.downcast::<TokioIo<S>>().map_err(|_| UpstreamError::Broken("not our own stream".to_owned()))?;
    Ok((parts.io.into_inner(), parts.read_buf))
}

async fn refusal(response: axum::http::Response<hyper::body::Incoming>) -> UpstreamError {
    let (head, body) = response.into_parts();
    let retry_after = rest::retry_after(&head.headers);
    let body =
        Limited::new(body, MAX_REFUSAL).collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let code =
        serde_json::from_slice::<Value>(&body).ok().and_then(|v| v.pointer("/error/code")?.as_str().map(plain_code));
    UpstreamError::Http { status: head.status, code, retry_after, param: None }
}
