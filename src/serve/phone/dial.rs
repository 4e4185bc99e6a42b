//! Calls to telephones: the provider is asked to begin them, and their streams come to us.
//!
//! Everything that could refuse a call is asked before the provider is: the agent, the number's rules, the number that is shown, the
//! budget, a line. The line is the call's own from then on, so that whoever answers is not turned away. What becomes of it
//! [`super::dialled`] keeps; here is what waits and what sends.
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::http::StatusCode;
use rand::Rng as _;
use serde_json::Value;
use tokio::{
    sync::watch,
    time::{self, Instant},
};

use super::{
    Reserved, codec_of,
    dialled::{Book, By, Ended, JOINS_WITHIN, Joined, Loose, MARGIN, Order},
    insist,
    sender::SendError,
    stream::dialect,
    tickets::{self, Slot, Ticket},
};
use crate::{
    admit::Principal,
    audio::Codec,
    call::end::End,
    config::{DialConfig, E164, is_e164},
    http::idempotency::{Begin, Keys},
    phone::{
        Account, Incoming, Machine, Refusal as Turned, Status,
        event::Direction,
        numbers::{DialRefused, Dials},
        rest::{self, Ask, Stamp},
    },
    serve::{FULL_RETRY, Refusal, Shared, license, owner, random_id},
    wall::unix_now,
};

/// The provider says that a call is over: its stream has so long to end by itself.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// FreeSWITCH answers so long after the last ring.
const AFTER_RINGING: Duration = Duration::from_secs(10);

type Landed = Result<Value, Refusal>;

/// Calls that we begin, and the rules for them.
#[derive(Debug)]
pub(super) struct Dialling {
    rules: Dials,
    book: Mutex<Book<Reserved>>,
    keys: Keys<Landed>,
}

impl Dialling {
    pub(super) fn new(config: &DialConfig) -> Self {
        Self { rules: Dials::new(config), book: Mutex::default(), keys: Keys::default() }
    }

    fn book(&self) -> MutexGuard<'_, Book<Reserved>> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The stream of a call is there; `None`: the call was given up.
    pub(super) fn joins(&self, id: &str) -> Option<Joined<Reserved>> {
        self.book().joins(id, Instant::now())
    }
}

/// A call that somebody wishes for.
#[derive(Debug)]
pub(crate) struct Wish {
    pub(crate) to: String,
    pub(crate) agent: Option<String>,
    pub(crate) account: Option<String>,
    pub(crate) from: Option<String>,
    pub(crate) user: Option<String>,
    pub(crate) params: BTreeMap<String, String>,
    pub(crate) ring_s: u32,
    pub(crate) detect_machine: bool,
}

/// Why there is no call.
struct Failed {
    refusal: Refusal,
    /// There may be one all the same.
    unclear: bool,
}

impl<T: Into<Refusal>> From<T> for Failed {
    fn from(refusal: T) -> Self {
        Self { refusal: refusal.into(), unclear: false }
    }
}

/// Begins a call, or tells what became of the one that was begun with the same key; `mark`: what was asked for.
///
/// # Errors
/// Why not.
pub(crate) async fn begin(
    shared: &Arc<Shared>,
    who: Principal,
    wish: Wish,
    key: Option<String>,
    mark: [u8; 32],
) -> Landed {
    let entry = key.map(|key| (who.tenant_id().to_owned(), key));
    let (mut landing, land) = match entry.clone().map(|entry| shared.phones.dialling.keys.begin(entry, mark, ())) {
        None => {
            let (land, landing) = watch::channel(None);
            (landing, Some(land))
        }
        Some(Begin::First(land, landing)) => (landing, Some(land)),
        Some(Begin::Again(landing, ())) => (landing, None),
        Some(Begin::Other) => {
            let message = "this Idempotency-Key was used for another request".to_owned();
            return Err(Refusal::new(StatusCode::CONFLICT, "idempotency_error", message));
        }
        Some(Begin::Full) => {
            let message = "too many idempotency keys are in use".to_owned();
            let refusal = Refusal::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited", message);
            return Err(Refusal { retry_after: Some(FULL_RETRY), ..refusal });
        }
    };
    if let Some(land) = land {
        // In a task of its own: a client that goes away does not stop what rings already.
        let task = shared.clone();
        let work = async move {
            let landed = place(&task, who, wish).await;
            // What has begun nothing may be tried again; what may have begun something, not with this key.
            let again = landed.as_ref().is_err_and(|failed| !failed.unclear);
            if let Some(entry) = entry.filter(|_| again) {
                task.phones.dialling.keys.forget(&entry, &land);
            }
            drop(land.send(Some(landed.map_err(|failed| failed.refusal))));
        };
        shared.calls.spawn(Box::pin(work));
    }
    let landed = landing.wait_for(Option::is_some).await.ok().and_then(|landed| landed.clone());
    let lost = || Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the call was not begun".to_owned());
    landed.unwrap_or_else(|| Err(lost()))
}

/// What a call is to show and whom it reaches, as far as that is allowed.
struct Allowed {
    account: Arc<Account>,
    agent: String,
    from: String,
}

fn allow(shared: &Shared, who: &Principal, wish: &Wish) -> Result<Allowed, Refusal> {
    let account = account(shared, wish.account.as_deref())?;
    let agent = wish.agent.clone().unwrap_or_else(|| who.agent("default").to_owned());
    let from = from(shared, who, &account, wish.from.as_deref())?;
    let codec = codec_of(&account).map_or(Codec::Mulaw, |format| format.codec);
    owner::meet(shared, who, &agent, [("account", codec), ("account", codec)])?;
    Ok(Allowed { account, agent, from })
}

fn account(shared: &Shared, named: Option<&str>) -> Result<Arc<Account>, Refusal> {
    let accounts = &shared.phones.accounts;
    let names = || accounts.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
    let wrong = |found: &str| {
        let allowed = if accounts.is_empty() { "none is configured (phone.accounts)".to_owned() } else { names() };
        Refusal::invalid("account", format!("`account`: found {found}; allowed: {allowed}"))
    };
    match (named, accounts.len()) {
        (Some(name), _) => accounts.get(name).cloned().ok_or_else(|| wrong(&quoted(name))),
        (None, 1) => accounts.values().next().cloned().ok_or_else(|| wrong("nothing")),
        (None, _) => Err(wrong("nothing")),
    }
}

/// The number that a call shows.
fn from(shared: &Shared, who: &Principal, account: &Account, named: Option<&str>) -> Result<String, Refusal> {
    let usual = account.caller();
    let Some(from) = named else {
        let name = account.name();
        return usual.map(str::to_owned).ok_or_else(|| {
            let message =
                format!("`from`: found nothing, and phone.accounts.{name}.caller says nothing; allowed: {E164}");
            Refusal::invalid("from", message)
        });
    };
    let tenant = who.tenant().map(|_| who.tenant_id());
    if usual == Some(from) || shared.phones.numbers.may_show(from, account.name(), tenant) {
        return Ok(from.to_owned());
    }
    let allowed = "a number of this tenant's that the account has (phone.numbers), or the account's caller";
    let message = format!("`from`: found {}; allowed: {allowed}", quoted(from));
    Err(Refusal { field: Some("from"), ..Refusal::new(StatusCode::FORBIDDEN, "forbidden", message) })
}

fn quoted(text: &str) -> String {
    format!("`{}`", text.chars().take(64).collect::<String>())
}

/// By the rules for numbers. Who may call it now has used one of the calls of this minute.
fn take(shared: &Shared, who: &Principal, to: &str) -> Result<(), Refusal> {
    let refused = match shared.phones.dialling.rules.take(who.tenant_id(), to, unix_now()) {
        Ok(()) => return Ok(()),
        Err(refused) => refused,
    };
    let message = format!("`to`: {refused}");
    Err(match refused {
        DialRefused::NoNumber => Refusal::invalid("to", message),
        DialRefused::NotAllowed => {
            Refusal { field: Some("to"), ..Refusal::new(StatusCode::FORBIDDEN, "forbidden", message) }
        }
        DialRefused::TooMany { retry_s, .. } => Refusal {
            retry_after: Some(Duration::from_secs(retry_s)),
            ..Refusal::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited", message)
        },
    })
}

/// A line and a place for a call, before anybody is asked for it.
async fn reserve(shared: &Shared, who: &Principal, account: &Account, call: &str) -> Result<Reserved, Refusal> {
    let line = shared.line().map_err(|why| Refusal {
        retry_after: Some(FULL_RETRY),
        ..Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", why.to_owned())
    })?;
    let license = license(shared, who, call, dialect(account).habits().name).await?;
    Ok(Reserved { line, license })
}

async fn place(shared: &Arc<Shared>, who: Principal, wish: Wish) -> Result<Value, Failed> {
    if !is_e164(&wish.to) {
        let message = format!("`to`: found {}; allowed: {E164}", quoted(&wish.to));
        return Err(Refusal::invalid("to", message).into());
    }
    let who = shared.gate.for_user(who, wish.user.clone().unwrap_or_else(|| wish.to.clone()));
    let Allowed { account, agent, from } = allow(shared, &who, &wish)?;
    let (id, call) = (random_id("dial"), random_id("call"));
    let (token, reference) = (tickets::token(account.token_form()), format!("{:032x}", rand::rng().random::<u128>()));
    let dial = rest::Dial {
        number: &wish.to,
        from: Some(&from),
        token: &token,
        reference: &reference,
        ring_s: wish.ring_s,
        detect_machine: wish.detect_machine,
        key: Some(&id),
    };
    let ask = account.rest(Stamp { now: unix_now(), nonce: &nonce() }).dial(&dial).map_err(|unable| {
        let message = format!("account `{}` cannot dial: {unable}", account.name());
        Refusal { field: Some("account"), ..Refusal::new(StatusCode::BAD_REQUEST, "unsupported", message) }
    })?;
    take(shared, &who, &wish.to)?;
    let reserved = reserve(shared, &who, &account, &call).await?;
    let ring = Duration::from_secs(u64::from(wish.ring_s));
    // Before the request: whoever answers at once comes with its token before we hear of it.
    let slot = (!account.asks_back()).then(|| Slot::of(&token));
    if slot.is_some() {
        let call = Incoming {
            from: Some(from.clone()),
            to: Some(wish.to.clone()),
            direction: Direction::Outbound,
            custom: wish.params.clone(),
            ..Incoming::default()
        };
        let ticket = Ticket {
            account: account.name().to_owned(),
            call,
            agent: agent.clone(),
            who: who.clone(),
            dial: Some(id.clone()),
        };
        if !shared.phones.tickets.put_for(ring + MARGIN + JOINS_WITHIN, &token, ticket) {
            return Err(too_many().into());
        }
    }
    let order = Order {
        id: id.clone(),
        reference: Slot::of(&reference),
        account: account.name().to_owned(),
        agent,
        to: wish.to,
        from,
        params: wish.params,
        ring,
        who: who.clone(),
        call,
        reserved: Some(reserved),
        unix: unix_now(),
    };
    if !shared.phones.dialling.book().place(order, slot, Instant::now()) {
        slot.iter().for_each(|slot| shared.phones.tickets.withdraw(slot));
        return Err(too_many().into());
    }
    shared.calls.spawn(watch_over(shared.clone(), account.clone(), id.clone()));
    tracing::info!(dial = id, tenant = who.tenant_id(), account = account.name(), "a call is begun");
    if account.rings_first() {
        let (task, id) = (shared.clone(), id.clone());
        let patience = ring + AFTER_RINGING;
        shared.calls.spawn(async move { drop(send(&task, &account, &id, slot, &ask, patience).await) });
    } else {
        send(shared, &account, &id, slot, &ask, super::sender::PATIENCE).await?;
    }
    shown(shared, who.tenant_id(), &id).map_err(Failed::from)
}

fn too_many() -> Refusal {
    let message = "too many calls are under way".to_owned();
    let refusal = Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", message);
    Refusal { retry_after: Some(FULL_RETRY), ..refusal }
}

fn nonce() -> String {
    format!("{:032x}", rand::rng().random::<u128>())
}

/// Asks the provider, and keeps what it says.
async fn send(
    shared: &Arc<Shared>,
    account: &Arc<Account>,
    id: &str,
    slot: Option<Slot>,
    ask: &Ask,
    patience: Duration,
) -> Result<(), Failed> {
    let dialling = &shared.phones.dialling;
    let error = match shared.phones.sender.send_within(patience, account, ask).await {
        Ok(done) => {
            let call = done.call.unwrap_or_default();
            slot.iter().for_each(|slot| shared.phones.tickets.name(slot, &call));
            let loose = dialling.book().begun(id, &call);
            tie(shared, account, loose);
            return Ok(());
        }
        Err(error) => error,
    };
    tracing::warn!(dial = id, account = account.name(), %error, "a call was not begun");
    let failed = failed(id, &error);
    let reason = if account.rings_first() { unanswered(&error) } else { "failed" };
    let reason = if failed.unclear { "unknown" } else { reason };
    let ended = Ended::new(reason, By::Provider).saying(error.to_string());
    let loose = dialling.book().give_up(id, ended, Instant::now());
    tie(shared, account, loose.unwrap_or_default());
    // Nobody has been told its id.
    if !failed.unclear && !account.rings_first() {
        dialling.book().forget(id);
    }
    Err(failed)
}

/// What FreeSWITCH says of a telephone that rang.
fn unanswered(error: &SendError) -> &'static str {
    let text = error.to_string();
    let word = |word: &str| text.contains(word);
    if word("NO_ANSWER") || word("NO_USER_RESPONSE") {
        "no_answer"
    } else if word("USER_BUSY") {
        "busy"
    } else if word("CALL_REJECTED") {
        "rejected"
    } else {
        "failed"
    }
}

/// What whoever asked is told.
fn failed(id: &str, error: &SendError) -> Failed {
    let all_the_same = |text: &dyn std::fmt::Display| format!("{text}; a call may have begun all the same ({id})");
    let (status, code, message, retry_after, unclear) = match error {
        SendError::Refused { failure, retry_after } if failure.status == 429 => {
            let wait = Some(retry_after.unwrap_or(FULL_RETRY));
            (StatusCode::TOO_MANY_REQUESTS, "rate_limited", failure.to_string(), wait, false)
        }
        // One that says that it is not available has done nothing.
        SendError::Refused { failure, .. } if failure.status >= 500 && failure.status != 503 => {
            (StatusCode::BAD_GATEWAY, "provider_refused", all_the_same(failure), None, true)
        }
        SendError::Refused { failure, retry_after } => {
            (StatusCode::BAD_GATEWAY, "provider_refused", failure.to_string(), *retry_after, false)
        }
        SendError::Unreachable(_) => {
            (StatusCode::BAD_GATEWAY, "provider_unreachable", error.to_string(), Some(FULL_RETRY), false)
        }
        SendError::Unanswered(_) => (StatusCode::GATEWAY_TIMEOUT, "provider_timeout", all_the_same(error), None, true),
    };
    Failed { refusal: Refusal { retry_after, ..Refusal::new(status, code, message) }, unclear }
}

/// Does what is left to be done.
fn tie(shared: &Arc<Shared>, account: &Arc<Account>, loose: Loose) {
    let Loose { withdraw, hang_up, ends, found } = loose;
    withdraw.iter().for_each(|slot| shared.phones.tickets.withdraw(slot));
    if let Some((call, tenant)) = ends {
        shared.gate.roster().end(&call, &tenant);
    }
    if let Some((call, tenant, who)) = found
        && let Some(news) = late(who)
    {
        let told = shared.gate.roster().tell(&call, &tenant, news.to_owned());
        tracing::info!(call, found = who.name(), told, "who or what has answered is known while the call runs");
    }
    let Some(call) = hang_up else { return };
    match account.rest(Stamp { now: unix_now(), nonce: &nonce() }).hang_up(&call) {
        Ok(ask) => insist(shared, account, ask),
        Err(error) => tracing::debug!(%error, "the provider is not told to hang up"),
    }
}

/// What a conversation is told of who or what has answered, when it has begun without knowing; none: it goes on as it is.
fn late(found: Machine) -> Option<&'static str> {
    match found {
        Machine::Machine => Some("an answering machine has picked up; its greeting may still be going on."),
        Machine::Beep => Some("this is an answering machine, and its greeting is over: what is said now is recorded."),
        Machine::Fax => Some("a fax machine has picked up."),
        Machine::Human | Machine::Unknown => None,
    }
}

/// Ends a call whose stream does not come, and one that would come to nobody.
async fn watch_over(shared: Arc<Shared>, account: Arc<Account>, id: String) {
    let mut drain = shared.drain();
    loop {
        let Some((deadline, news)) = shared.phones.dialling.book().waits(&id) else { return };
        let loose = tokio::select! {
            () = news.notified() => None,
            () = time::sleep_until(deadline) => shared.phones.dialling.book().expire(&id, Instant::now()),
            // The process that follows knows nothing of it.
            _ = drain.wait_for(Option::is_some) => {
                let ended = Ended::new("canceled", By::Relay).saying("this server is going away".to_owned());
                shared.phones.dialling.book().give_up(&id, ended, Instant::now())
            }
        };
        if let Some(loose) = loose {
            tracing::info!(dial = id, "a call is given up");
            tie(&shared, &account, loose);
        }
    }
}

/// The provider's news of a call, be it one of these or not.
pub(super) fn hear(shared: &Arc<Shared>, account: &Arc<Account>, status: &Status) {
    let mut loose = shared.phones.dialling.book().hear(account.name(), status, Instant::now());
    if let Some((call, tenant)) = loose.ends.take() {
        let task = shared.clone();
        shared.calls.spawn(async move {
            time::sleep(LAST_WORDS).await;
            if task.gate.roster().end(&call, &tenant) {
                tracing::warn!(call, "the provider's call is over, its stream was not");
            }
        });
    }
    tie(shared, account, loose);
}

/// A token for the stream of a call that we began and that its provider asks for now; with what is known of the call.
pub(super) fn invite(shared: &Shared, account: &Account, call: &Incoming) -> Result<(Incoming, String), Turned> {
    let found = shared.phones.dialling.book().asks(account.name(), call, Instant::now());
    let Some(found) = found else {
        tracing::warn!(account = account.name(), call = call.call, "no call that we began waits for this");
        return Err(Turned::Nobody);
    };
    found.withdraw.iter().for_each(|slot| shared.phones.tickets.withdraw(slot));
    let token = tickets::token(account.token_form());
    let ticket = Ticket {
        account: account.name().to_owned(),
        call: found.call.clone(),
        agent: found.agent,
        who: found.who,
        dial: Some(found.id.clone()),
    };
    if !shared.phones.tickets.put(&token, ticket) {
        return Err(Turned::Busy);
    }
    shared.phones.dialling.book().invited(&found.id, Slot::of(&token));
    Ok((found.call, token))
}

/// The provider's id of a call.
pub(super) fn provider(shared: &Shared, id: &str) -> Option<String> {
    shared.phones.dialling.book().provider(id).map(str::to_owned)
}

/// A call's stream is over.
pub(super) fn left(shared: &Shared, id: &str, end: &End) {
    let ended = match end {
        // Some streams only close when the telephone is put down.
        End::HungUp | End::Asked | End::ClientLost => Ended::new("completed", By::Callee),
        End::EndedByTenant => Ended::new("completed", By::Tenant),
        other => Ended::new("completed", By::Relay).saying(other.to_string()),
    };
    shared.phones.dialling.book().left(id, ended, Instant::now());
}

/// A call's stream was turned away.
pub(super) fn failed_here(shared: &Arc<Shared>, account: &str, id: &str, why: String) {
    let call = shared.phones.dialling.book().left(id, Ended::new("failed", By::Relay).saying(why), Instant::now());
    if let Some(account) = shared.phones.accounts.get(account) {
        tie(shared, account, Loose { hang_up: call, ..Loose::default() });
    }
}

fn unknown() -> Refusal {
    let message = "there is no such call of this tenant".to_owned();
    Refusal::new(StatusCode::NOT_FOUND, "unknown_dial", message)
}

/// A call as its tenant is told.
///
/// # Errors
/// It has no such call.
pub(crate) fn shown(shared: &Shared, tenant: &str, id: &str) -> Landed {
    shared.phones.dialling.book().shown(id, tenant, Instant::now()).ok_or_else(unknown)
}

/// Ends a call for its tenant.
///
/// # Errors
/// It has no such call, or no more.
pub(crate) fn hang_up(shared: &Arc<Shared>, tenant: &str, id: &str) -> Result<(), Refusal> {
    let (loose, account) = {
        let mut book = shared.phones.dialling.book();
        let account = book.account(id).and_then(|name| shared.phones.accounts.get(name)).cloned();
        (book.hang_up(id, tenant, Instant::now()), account)
    };
    let (loose, account) = loose.zip(account).ok_or_else(unknown)?;
    tie(shared, &account, loose);
    Ok(())
}
