//! Telephones: the pages that providers ask for at `/phone/ACCOUNT/...`.
//!
//! A webhook is believed for its signature ([`crate::phone`]), and its answer gives out a token for one stream ([`tickets`]). What comes
//! with it is [`stream`]'s business; calls that we begin are [`dial`]'s.
pub(crate) mod dial;
mod dialled;
mod places;
mod sender;
mod stream;
mod tickets;

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
    time::Duration,
};

use axum::{
    Router,
    body::{self, Body},
    extract::{Path, Request, State},
    http::{Response, StatusCode, header, request::Parts},
    response::IntoResponse as _,
    routing::{any, get},
};
use bytes::Bytes;
use tokio::{sync::OwnedSemaphorePermit, time};

use self::{dial::Dialling, places::Places, sender::Sender, tickets::Ticket};
pub(super) use self::{
    stream::{bind, listen},
    tickets::{News, Slot, Tickets},
};
use super::{Refusal, Shared, owner};
use crate::{
    admit::License,
    audio::{Codec, Format},
    config::{PhoneCodec, PhoneConfig},
    observe::fact::Fact,
    phone::{
        Account, Asked, Incoming, Refusal as Turned, Replays, Said, Verified, Written, numbers::Numbers, rest::Ask,
    },
    wall::unix_now,
};

/// A webhook is not longer, bytes.
const MAX_WEBHOOK: usize = 64 << 10;
/// A webhook's body comes within this.
const WEBHOOK_WITHIN: Duration = Duration::from_secs(10);

/// All accounts with telephone providers, and what they have under way.
#[derive(Debug)]
pub(crate) struct Phones {
    accounts: BTreeMap<String, Arc<Account>>,
    numbers: Numbers,
    /// What webhooks were answered.
    replays: Replays<Arc<OnceLock<Result<Told, Refusal>>>>,
    pub(super) tickets: Arc<Tickets>,
    /// Streams that have not said whose they are.
    unknown: Places,
    sender: Sender,
    dialling: Dialling,
}

/// What a call holds before it begins.
#[derive(Debug)]
struct Reserved {
    line: OwnedSemaphorePermit,
    license: License,
}

impl Phones {
    /// # Errors
    /// Which setting cannot be used, and why.
    pub(super) fn new(config: &PhoneConfig) -> Result<Self, String> {
        let accounts = Account::open_all(config)?;
        Ok(Self {
            accounts: accounts.into_iter().map(|(name, account)| (name, Arc::new(account))).collect(),
            numbers: Numbers::new(config),
            replays: Replays::default(),
            tickets: Arc::new(Tickets::new(Duration::from_secs(config.token_ttl_s))),
            unknown: Places::default(),
            sender: Sender::new()?,
            dialling: Dialling::new(&config.dial),
        })
    }

    fn account(&self, name: &str) -> Result<&Arc<Account>, Refusal> {
        self.accounts.get(name).ok_or_else(|| {
            let shown: String = name.chars().take(64).collect();
            let message = format!("no account `{shown}` with a telephone provider is configured (phone.accounts)");
            Refusal::new(StatusCode::NOT_FOUND, "not_found", message)
        })
    }
}

pub(super) fn routes() -> Router<Arc<Shared>> {
    Router::new()
        .route("/phone/{account}/voice", any(voice))
        .route("/phone/{account}/status", any(status))
        .route("/phone/{account}/transfer", any(transfer))
        .route("/phone/{account}/stream", get(stream::stream))
}

fn forged(account: &Account, reason: &str) -> Refusal {
    tracing::warn!(account = account.name(), reason, "a request in a telephone provider's name is refused");
    let message = "the request is not signed as this account's requests are".to_owned();
    Fact::Refused { code: "forbidden".into() }.record();
    Refusal::new(StatusCode::FORBIDDEN, "forbidden", message)
}

/// A genuine request of an account's provider.
struct Genuine {
    account: Arc<Account>,
    head: Parts,
    body: Bytes,
    verified: Verified,
}

impl Genuine {
    async fn of(shared: &Shared, name: &str, request: Request) -> Result<Self, Refusal> {
        let account = shared.phones.account(name)?.clone();
        let (head, body) = request.into_parts();
        let body = time::timeout(WEBHOOK_WITHIN, body::to_bytes(body, MAX_WEBHOOK)).await.map_err(|_| {
            let message = format!("the body: not all of it came within {} s", WEBHOOK_WITHIN.as_secs());
            Refusal::new(StatusCode::REQUEST_TIMEOUT, "invalid_message", message)
        })?;
        let body = body.map_err(|_| {
            let message = format!("the body: found more than {MAX_WEBHOOK} bytes, or not all of it");
            Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "message_too_large", message)
        })?;
        let verified = account.verify(&asked(&head, &body), unix_now());
        let verified = verified.map_err(|error| forged(&account, error.reason()))?;
        Ok(Self { account, head, body, verified })
    }

    fn asked(&self) -> Asked<'_> {
        asked(&self.head, &self.body)
    }

    /// Does what it asks for; or, where it was shown before and its provider has not got the answer, says that once more.
    fn once(&self, shared: &Shared, work: impl FnOnce() -> Result<Told, Refusal>) -> Result<Response<Body>, Refusal> {
        let answer = shared.phones.replays.answer(&self.verified, self.asked().digest(), unix_now());
        let answer = answer.map_err(|error| forged(&self.account, error.reason()))?;
        if answer.get().is_some() {
            tracing::info!(
                account = self.account.name(),
                page = self.head.uri.path(),
                "a webhook that came before is answered as it was"
            );
        }
        answer.get_or_init(work).clone().map(Told::into_response)
    }
}

/// What a webhook is answered.
#[derive(Debug, Clone)]
enum Told {
    /// That it was heard.
    Heard,
    /// In words.
    Words { content_type: &'static str, body: Bytes },
}

impl Told {
    fn into_response(self) -> Response<Body> {
        match self {
            Self::Heard => StatusCode::NO_CONTENT.into_response(),
            Self::Words { content_type, body } => ([(header::CONTENT_TYPE, content_type)], body).into_response(),
        }
    }
}

fn asked<'a>(head: &'a Parts, body: &'a [u8]) -> Asked<'a> {
    let target = head.uri.path_and_query().map_or("/", |target| target.as_str());
    Asked { method: &head.method, target, headers: &head.headers, body }
}

fn unclear(error: &impl ToString) -> Refusal {
    Refusal::new(StatusCode::BAD_REQUEST, "invalid_message", error.to_string())
}

/// The answer; what it cannot say is done.
fn answer(shared: &Arc<Shared>, account: &Arc<Account>, written: Written) -> Told {
    let Written { content_type, body, then } = written;
    then.into_iter().for_each(|ask| insist(shared, account, ask));
    Told::Words { content_type, body: body.into() }
}

fn insist(shared: &Arc<Shared>, account: &Arc<Account>, ask: Ask) {
    let (shared_too, account) = (shared.clone(), account.clone());
    shared.calls.spawn(async move { shared_too.phones.sender.insist(&account, ask).await });
}

/// `/phone/ACCOUNT/voice`: somebody calls; how the provider reaches us.
async fn voice(State(shared): State<Arc<Shared>>, Path(name): Path<String>, request: Request) -> Response<Body> {
    let done = async {
        let genuine = Genuine::of(&shared, &name, request).await?;
        genuine.once(&shared, || called(&shared, &genuine))
    };
    done.await.unwrap_or_else(|refusal: Refusal| refusal.into())
}

fn called(shared: &Arc<Shared>, genuine: &Genuine) -> Result<Told, Refusal> {
    let account = &genuine.account;
    let call = match account.incoming(&genuine.asked()).map_err(|error| unclear(&error))? {
        Said::Call(call) => call,
        Said::Status(status) => {
            tracing::debug!(account = account.name(), ?status, "news of a call");
            dial::hear(shared, account, &status);
            return Ok(Told::Heard);
        }
    };
    // A call that we began is never one of phone.numbers, even if we know it no more.
    let invited = match call.dial {
        Some(_) => dial::invite(shared, account, &call),
        None => invite(shared, account, &call).map(|token| (call.clone(), token)),
    };
    let written = match invited {
        Ok((call, token)) => account.connect(&call, &token),
        Err(why) => account.refuse(&call, why),
    };
    written.map(|written| answer(shared, account, written)).map_err(|error| {
        tracing::error!(account = account.name(), %error, "a call cannot be answered");
        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the call cannot be answered".to_owned())
    })
}

/// A token for the call's stream; or what its caller shall hear instead.
fn invite(shared: &Shared, account: &Account, call: &Incoming) -> Result<String, Turned> {
    let called = call.to.as_deref().unwrap_or_default();
    let Some(number) = shared.phones.numbers.find(called, account.name()) else {
        tracing::warn!(account = account.name(), called, "nobody is configured for this number (phone.numbers)");
        return Err(Turned::Nobody);
    };
    let Some(who) = shared.gate.by_phone(number.tenant.as_deref()) else {
        tracing::warn!(number = number.number, tenant = number.tenant, "the number's tenant is not there");
        return Err(Turned::Nobody);
    };
    // A telephone call is a connect like any other, and its caller hears that the line is busy.
    if let Err(denied) = shared.gate.comes(&who) {
        tracing::warn!(account = account.name(), called, why = %denied, "a call is turned away");
        return Err(Turned::Busy);
    }
    let who = match &call.from {
        Some(from) => shared.gate.for_user(who, from.clone()),
        None => who,
    };
    let codec = codec_of(account).map_or(Codec::Mulaw, |format| format.codec);
    owner::meet(shared, &who, &number.agent, [("codec", codec), ("codec", codec)]).map_err(|refusal| {
        tracing::warn!(
            account = account.name(),
            called,
            code = refusal.code,
            why = refusal.message,
            "a call is turned away"
        );
        match refusal.code {
            "unknown_agent" | "forbidden" => Turned::Nobody,
            _ => Turned::Busy,
        }
    })?;
    // Who is answered shall not be hung up on a moment later.
    if !shared.has_line() || shared.gate.is_full(&who) {
        tracing::warn!(account = account.name(), called, "a call is turned away: all lines are taken");
        return Err(Turned::Busy);
    }
    let token = tickets::token(account.token_form());
    let (account, agent) = (account.name().to_owned(), number.agent.clone());
    match shared.phones.tickets.put(&token, Ticket { account, call: call.clone(), agent, who, dial: None }) {
        true => Ok(token),
        false => Err(Turned::Busy),
    }
}

/// `/phone/ACCOUNT/status`: what has become of a call.
async fn status(State(shared): State<Arc<Shared>>, Path(name): Path<String>, request: Request) -> Response<Body> {
    let done = async {
        let genuine = Genuine::of(&shared, &name, request).await?;
        genuine.once(&shared, || {
            let status = genuine.account.status(&genuine.asked()).map_err(|error| unclear(&error))?;
            tracing::info!(account = name, call = status.call, progress = ?status.progress, duration_s = status.duration_s, "news of a call");
            dial::hear(&shared, &genuine.account, &status);
            Ok(Told::Heard)
        })
    };
    done.await.unwrap_or_else(|refusal: Refusal| refusal.into())
}

/// `/phone/ACCOUNT/transfer`: markup that takes a call elsewhere, for providers that fetch it.
async fn transfer(State(shared): State<Arc<Shared>>, Path(name): Path<String>, request: Request) -> Response<Body> {
    let done = async {
        let genuine = Genuine::of(&shared, &name, request).await?;
        let written = genuine.account.transfer_page(&genuine.asked()).map_err(|error| unclear(&error))?;
        Ok(answer(&shared, &genuine.account, written).into_response())
    };
    done.await.unwrap_or_else(|refusal: Refusal| refusal.into())
}

/// The format that an account's provider is asked for.
fn codec_of(account: &Account) -> Option<Format> {
    let (codec, rate) = account.audio();
    let codec = match codec {
        PhoneCodec::Pcmu => Codec::Mulaw,
        PhoneCodec::Pcma => Codec::Alaw,
        PhoneCodec::L16 => Codec::Pcm16,
    };
    Format::new(codec, Some(rate)).ok()
}
