//! Streams: a call's audio, from whoever connects to a call that begins.
//!
//! A stream is nobody's until it has shown a good token ([`super::tickets`]), and reaches no service before. From then on it is a call as
//! any other, whose messages are [`crate::client::phone`]'s. Pages are [`super`]'s business.
use std::{io, net::IpAddr, sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{Path, Request, State},
    http::{Response, StatusCode},
};
use futures_util::FutureExt as _;
use tokio::{net::TcpListener, sync::OwnedSemaphorePermit, time};
use tracing::Instrument as _;

use super::{
    Reserved, asked, codec_of, dial,
    dialled::Joined,
    forged, insist,
    places::{self, NoPlace, Place},
    tickets::{self, NoTicket, Slot, Ticket},
};
use crate::{
    admit::{License, Principal},
    call::{
        door::{Door, Lanes},
        driver,
        end::End,
        phone::{self, Phone, Remote},
        way::Way,
    },
    client::{
        phone::{
            Bad, Dialect, Packet, Said as Heard, Start,
            asterisk::Asterisk,
            audiosocket::AudioSocket,
            freeswitch,
            jambonz::{self, Listen},
            json::Json,
            plivo, signalwire, telnyx, twilio,
            vonage::Vonage,
        },
        wire::AudioFormats,
    },
    config::{AgentConfig, Config, PhoneKind},
    net::{
        audiosocket,
        listen::{Stops, Upgrade, UpgradeError},
        ws::{Frame, Socket, SocketError, SocketLimits},
    },
    observe::fact::Fact,
    phone::{
        Account, Incoming, StreamProof, TokenForm, fill,
        rest::{Stamp, Target},
    },
    serve::{
        READ_BUFFER, Refusal, ServeError, Shared, license,
        owner::{self, Owner},
        random_id,
    },
    wall::unix_now,
};

/// A stream says whose it is within this (telephony section 13).
const STARTS_WITHIN: Duration = Duration::from_secs(5);
/// Messages before that; providers send one or two.
const BEFORE_START: usize = 16;
/// Between two tries to have a port that another process has.
const BIND_AGAIN: Duration = Duration::from_millis(100);
/// A goodbye to one that never says so may take so long.
const GOODBYE: Duration = Duration::from_secs(1);

/// Where Asterisk's AudioSockets connect to; none: nowhere, or another process still has it.
///
/// # Errors
/// When the address cannot be had.
pub(in crate::serve) async fn bind(config: &Config, follows: bool) -> Result<Option<TcpListener>, ServeError> {
    let Some(addr) = config.phone.audiosocket.listen else { return Ok(None) };
    match TcpListener::bind(addr).await {
        Ok(listener) => Ok(Some(listener)),
        Err(error) if follows && error.kind() == io::ErrorKind::AddrInUse => Ok(None),
        Err(source) => Err(ServeError::AudioSocket { addr, source }),
    }
}

/// Takes AudioSockets in until it is to stop.
pub(in crate::serve) async fn listen(shared: Arc<Shared>, first: Option<TcpListener>, stops: Stops) {
    let Some(addr) = shared.config.phone.audiosocket.listen else { return };
    let bound = async {
        if let Some(listener) = first {
            return listener;
        }
        let mut told = false;
        loop {
            match TcpListener::bind(addr).await {
                Ok(listener) => return listener,
                Err(error) if !std::mem::replace(&mut told, true) => {
                    tracing::warn!(%addr, %error, "AudioSockets cannot come in yet; it is tried again");
                }
                Err(_) => {}
            }
            time::sleep(BIND_AGAIN).await;
        }
    };
    let listener = tokio::select! {
        listener = bound => listener,
        () = stops.accepting.cancelled() => return,
    };
    let max_message = AudioSocket::default().habits().max_message;
    let limits = SocketLimits { max_message, read_buffer: READ_BUFFER };
    let calls = shared.calls.clone();
    audiosocket::serve(listener, limits, places::MOST, &calls, stops, move |peer, socket| {
        let shared = shared.clone();
        async move {
            // Its UUID is there already, and an exchange has one address for all of its calls.
            let unknown = match shared.phones.unknown.take(None, None) {
                Ok(unknown) => unknown,
                Err(full) => return tracing::warn!(%peer, %full, "a stream is turned away"),
            };
            let dialect = Box::new(AudioSocket::default());
            Box::pin(Stream { socket, dialect, account: None }.run(shared, None, Some(unknown))).await;
        }
    })
    .await;
}

/// How an account's streams speak.
pub(super) fn dialect(account: &Account) -> Box<dyn Dialect> {
    match account.kind() {
        PhoneKind::Twilio => Box::new(Json::new(&twilio::TABLE, None)),
        PhoneKind::Signalwire => Box::new(Json::new(&signalwire::TABLE, None)),
        // What comes is the leg's codec, what goes is what the markup asked for.
        PhoneKind::Telnyx => Box::new(Json::new(&telnyx::TABLE, codec_of(account))),
        PhoneKind::Plivo => Box::new(Json::new(&plivo::TABLE, None)),
        PhoneKind::Vonage => Box::new(Vonage),
        PhoneKind::Jambonz => Box::new(Listen::new(&jambonz::HABITS)),
        PhoneKind::Asterisk => Box::new(Asterisk::default()),
        PhoneKind::Freeswitch => Box::new(Listen::new(&freeswitch::HABITS)),
    }
}

/// A stream's own name of its call is the webhook's.
fn same_name(kind: PhoneKind) -> bool {
    matches!(kind, PhoneKind::Twilio | PhoneKind::Signalwire | PhoneKind::Plivo | PhoneKind::Jambonz)
}

/// `/phone/ACCOUNT/stream`: a call's audio.
pub(super) async fn stream(
    State(shared): State<Arc<Shared>>,
    Path(name): Path<String>,
    request: Request,
) -> Response<Body> {
    open(&shared, &name, request).await.unwrap_or_else(|refusal| refusal.into())
}

async fn open(shared: &Arc<Shared>, name: &str, request: Request) -> Result<Response<Body>, Refusal> {
    let account = shared.phones.account(name)?.clone();
    let (head, body) = request.into_parts();
    let proof = account.verify_stream(&asked(&head, &[])).map_err(|error| forged(&account, error.reason()))?;
    let token = account.stream_token(&asked(&head, &[]));
    let address = shared.address(&head);
    let mut request = Request::from_parts(head, body);
    let upgrade = Upgrade::from_request(&mut request).map_err(|error| match error {
        UpgradeError::NotAsked => Refusal::new(StatusCode::UPGRADE_REQUIRED, "invalid_query", error.to_string()),
        error => Refusal::new(StatusCode::BAD_REQUEST, "invalid_query", error.to_string()),
    })?;
    // A token that is shown already is taken before anything is held for whoever shows it; the call is told its name later, if at all.
    let shown = match token.as_deref() {
        Some(token) => {
            let ticket = take(shared, Some(token), Some(account.name()), None).await;
            Some(ticket.map_err(|error| no_token(&account, &error))?)
        }
        None => None,
    };
    // Strangers shall not stand in the way of those that have shown something.
    let unknown = match (proof, &shown) {
        (StreamProof::Proven, _) | (_, Some(_)) => None,
        (StreamProof::TokenOnly, None) => {
            let place = shared.phones.unknown.take(Some(account.name()), shared.gate.counts(address));
            Some(place.map_err(|full| no_place(&account, address, full))?)
        }
    };
    let dialect = dialect(&account);
    let habits = dialect.habits();
    let (response, pending) = upgrade.accept(habits.protocol);
    let task = shared.clone();
    let work = async move {
        let limits = SocketLimits { max_message: habits.max_message, read_buffer: READ_BUFFER };
        match pending.socket(limits).await {
            Ok(socket) => Stream { socket, dialect, account: Some(account) }.run(task, shown, unknown).await,
            Err(error) => tracing::debug!(%error, "upgrade failed"),
        }
    };
    shared.calls.spawn(Box::pin(work));
    Ok(response)
}

/// Takes a ticket, be it that the process before has given out its token. For the arguments see [`tickets::Tickets::take`].
async fn take(
    shared: &Shared,
    token: Option<&str>,
    account: Option<&str>,
    call: Option<&str>,
) -> Result<Ticket, NoTicket> {
    let before = shared.before.get();
    if let Some(before) = before {
        before.tickets().await;
    }
    let ticket = shared.phones.tickets.take(token, account, call);
    if let (Some(before), Some(token), Ok(_)) = (before, token, &ticket) {
        before.used(&Slot::of(token));
    }
    ticket
}

fn no_token(account: &Account, error: &NoTicket) -> Refusal {
    tracing::warn!(account = account.name(), %error, "a stream is turned away");
    Refusal::new(StatusCode::FORBIDDEN, "forbidden", "the stream's token is not good here".to_owned())
}

fn no_place(account: &Account, address: IpAddr, full: NoPlace) -> Refusal {
    tracing::warn!(account = account.name(), %address, %full, "a stream is turned away");
    let (status, code) = match full {
        NoPlace::Address => (StatusCode::TOO_MANY_REQUESTS, "rate_limited"),
        NoPlace::Account | NoPlace::All => (StatusCode::SERVICE_UNAVAILABLE, "overloaded"),
    };
    Refusal { retry_after: Some(STARTS_WITHIN), ..Refusal::new(status, code, full.to_string()) }
}

/// A stream that has not said whose it is.
struct Stream {
    socket: Socket,
    dialect: Box<dyn Dialect>,
    /// None: any account's (AudioSocket).
    account: Option<Arc<Account>>,
}

/// Why a stream becomes no call.
#[derive(Debug, thiserror::Error)]
enum NoCall {
    #[error("it did not say whose it is within {} s", STARTS_WITHIN.as_secs())]
    Silent,
    #[error("audio before its start")]
    Early,
    #[error("its first message: {0}")]
    Bad(#[from] Bad),
    #[error("more than {BEFORE_START} messages before its start")]
    Talkative,
    #[error("{0}")]
    Socket(#[from] SocketError),
    #[error("it was closed before it began")]
    Closed,
    #[error("{0}")]
    Ticket(#[from] NoTicket),
    #[error("its call was given up")]
    GivenUp,
    #[error("{0}")]
    Refused(String),
}

impl NoCall {
    /// Providers are told no more than that their stream is not wanted.
    fn close(&self) -> u16 {
        match self {
            Self::Socket(SocketError::TooLarge { .. }) => 1009,
            Self::Socket(_) => 1002,
            Self::Closed => 1000,
            Self::Silent | Self::Early | Self::Bad(_) | Self::Talkative => 1008,
            Self::Ticket(_) | Self::GivenUp | Self::Refused(_) => 1008,
        }
    }
}

impl Stream {
    /// `shown`: what it has shown before it was one.
    async fn run(mut self, shared: Arc<Shared>, shown: Option<Ticket>, unknown: Option<Place>) {
        let provider = self.dialect.habits().name;
        let begun = match time::timeout(STARTS_WITHIN, self.start()).await {
            Ok(Ok(start)) => self.known(&shared, &start, shown).await.map(|ticket| (start, ticket)),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(NoCall::Silent),
        };
        let (start, ticket) = match begun {
            Ok(begun) => begun,
            Err(error) => return self.turn_away(&error).await,
        };
        drop(unknown);
        let joined = ticket.dial.as_ref().map(|dial| shared.phones.dialling.joins(dial).ok_or(NoCall::GivenUp));
        let joined = match joined.transpose() {
            Ok(joined) => joined,
            Err(error) => return self.turn_away(&error).await,
        };
        let id = joined.as_ref().map_or_else(|| random_id("call"), |joined| joined.call.clone());
        let span = tracing::info_span!("call", id, tenant = ticket.who.tenant_id(), provider);
        Box::pin(self.call(shared, id, start, ticket, joined)).instrument(span).await;
    }

    /// Its first message that means something.
    async fn start(&mut self) -> Result<Start, NoCall> {
        for _ in 0..BEFORE_START {
            let packet = match self.socket.next().await? {
                Frame::Text(text) => Packet::Text(text),
                Frame::Binary(bytes) => Packet::Binary(bytes),
                Frame::Pong => continue,
                Frame::Closed { .. } => return Err(NoCall::Closed),
            };
            match self.dialect.read(&packet)? {
                Heard::Start(start) => return Ok(*start),
                Heard::Audio(_) => return Err(NoCall::Early),
                Heard::Stop(_) => return Err(NoCall::Closed),
                Heard::Nothing | Heard::Digit(_) | Heard::Played(_) | Heard::Full(_) => {}
            }
        }
        Err(NoCall::Talkative)
    }

    async fn known(&self, shared: &Shared, start: &Start, shown: Option<Ticket>) -> Result<Ticket, NoCall> {
        if let Some(ticket) = shown {
            return Ok(ticket);
        }
        let token = start.params.get("token");
        let account = self.account.as_deref();
        let call = start.call.as_deref().filter(|_| account.is_some_and(|account| same_name(account.kind())));
        Ok(take(shared, token.map(String::as_str), account.map(Account::name), call).await?)
    }

    async fn turn_away(mut self, error: &NoCall) {
        tracing::warn!(provider = self.dialect.habits().name, %error, "a stream is turned away");
        Fact::Refused { code: "unauthorized".into() }.record();
        if let Some(packet) = self.dialect.hang_up() {
            phone::control(self.socket.outbox(), packet, false);
        }
        self.socket.close(error.close(), "", GOODBYE).await;
    }

    async fn call(
        self,
        shared: Arc<Shared>,
        id: String,
        start: Start,
        ticket: Ticket,
        joined: Option<Joined<Reserved>>,
    ) {
        let Ticket { account, mut call, agent, who, dial } = ticket;
        call.machine = joined.as_ref().and_then(|joined| joined.machine).or(call.machine);
        let reserved = joined.map(|joined| joined.reserved);
        let ready = match self.admit(&shared, &id, &start, &agent, &who, reserved).await {
            Ok(ready) => ready,
            Err(refusal) => {
                if let Some(dial) = dial {
                    dial::failed_here(&shared, &account, &dial, refusal.message.clone());
                }
                let error = NoCall::Refused(format!("{}: {}", refusal.code, refusal.message));
                leave(&shared, &account, &call.call);
                return self.turn_away(&error).await;
            }
        };
        let Ready { found, way, license, slot } = ready;
        tracing::info!(to = call.to, account, agent, input = %start.input, output = %start.output, "a telephone call");
        let Self { mut socket, dialect, .. } = self;
        if let Some(packet) = dialect.take() {
            phone::control(socket.outbox(), packet, false);
        }
        let audio = AudioFormats { input: start.input, output: start.output };
        let (lead, gather) = (Some(dialect.habits().lead), shared.config.audio.gather);
        let remote = remote(&shared, &account, &call.call);
        let order = shared.phones.accounts.get(&account).map(|account| account.byte_order()).unwrap_or_default();
        let door = |setup| {
            let phone = Phone::new(Lanes::new(setup, audio, gather), dialect, &start);
            Door::phone(phone.with_byte_order(order).with_remote(remote))
        };
        let (auto_turns, comes_back) = (true, false);
        let agent_of = told(&found, &call);
        let owner = Owner { who, license, id, name: agent, agent: agent_of, way, audio, auto_turns, lead, comes_back };
        let (task, begun) = (shared.clone(), dial.clone());
        // What was to be heard was heard by then: the line shall not wait for two goodbyes.
        let over = move |end: &End| {
            if !matches!(end, End::HungUp | End::Transferred) {
                let known = begun.and_then(|dial| dial::provider(&task, &dial));
                leave(&task, &account, &known.unwrap_or(call.call));
            }
        };
        let end = driver::run_telling(owner.call(&shared, socket, door), over).await;
        tracing::info!(%end, by = end.who(), "the telephone call is over");
        drop(slot);
        if let Some(dial) = dial {
            dial::left(&shared, &dial, &end);
        }
    }

    async fn admit(
        &self,
        shared: &Shared,
        id: &str,
        start: &Start,
        agent: &str,
        who: &Principal,
        reserved: Option<Reserved>,
    ) -> Result<Ready, Refusal> {
        let codecs = [("codec", start.input.codec), ("codec", start.output.codec)];
        if !shared.gate.is_good(who, unix_now()) {
            let message = "the tenant of this number is there no more".to_owned();
            return Err(Refusal::new(StatusCode::FORBIDDEN, "forbidden", message));
        }
        let (found, way) = owner::meet(shared, who, agent, codecs)?;
        if let Some(Reserved { line: slot, license }) = reserved {
            return Ok(Ready { found, way, license, slot });
        }
        let slot =
            shared.line().map_err(|why| Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", why.to_owned()))?;
        let license = license(shared, who, id, self.dialect.habits().name).await?;
        Ok(Ready { found, way, license, slot })
    }
}

/// Whoever has the line, to be asked for a transfer.
fn remote(shared: &Arc<Shared>, account: &str, call: &str) -> Option<Remote> {
    let account = shared.phones.accounts.get(account)?.clone();
    let (shared, call) = (shared.clone(), call.to_owned());
    Some(Remote::new(move |to| {
        let (shared, account, call) = (shared.clone(), account.clone(), call.clone());
        let transfer = async move {
            let target = Target::parse(&to).map_err(|error| error.to_string())?;
            let nonce = tickets::token(TokenForm::Alphanumeric);
            let ask = account.rest(Stamp { now: unix_now(), nonce: &nonce }).transfer(&call, &target);
            let sent = shared.phones.sender.send(&account, &ask.map_err(|error| error.to_string())?).await;
            sent.map(drop).map_err(|error| {
                tracing::warn!(%error, "the call could not be transferred");
                "the call could not be transferred".to_owned()
            })
        };
        transfer.boxed()
    }))
}

/// What a call needs before it begins.
struct Ready {
    found: Arc<AgentConfig>,
    way: Way,
    license: License,
    slot: OwnedSemaphorePermit,
}

/// The agent, told who calls.
fn told(agent: &Arc<AgentConfig>, call: &Incoming) -> Arc<AgentConfig> {
    let greeting = agent.greeting.as_deref();
    if ![Some(agent.instructions.as_str()), greeting].into_iter().flatten().any(fill::has_places) {
        return agent.clone();
    }
    let mut told = AgentConfig::clone(agent);
    told.instructions = fill::fill(&agent.instructions, call);
    told.greeting = greeting.map(|greeting| fill::fill(greeting, call));
    Arc::new(told)
}

/// Where closing a stream does not end its call, the provider is told to.
fn leave(shared: &Arc<Shared>, account: &str, call: &str) {
    let Some(account) = shared.phones.accounts.get(account) else { return };
    let lasts =
        matches!(account.kind(), PhoneKind::Telnyx | PhoneKind::Plivo | PhoneKind::Vonage | PhoneKind::Freeswitch);
    if !lasts {
        return;
    }
    let nonce = tickets::token(TokenForm::Alphanumeric);
    match account.rest(Stamp { now: unix_now(), nonce: &nonce }).hang_up(call) {
        Ok(ask) => insist(shared, account, ask),
        Err(error) => tracing::debug!(%error, "the provider is not told to hang up"),
    }
}
