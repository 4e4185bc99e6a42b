//! The checks of a request's head, in order, before anything is done for it: how often its address comes, its credential, its
//! origin, its address, how often its tenant comes. Whoever passes is a [`Principal`].
//!
//! Whatever is wrong with a credential, the answer is the same one; the doors see to it that it takes the same time, too.
use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use aws_lc_rs::hmac;
use axum::http::{HeaderMap, header};
use rand::Rng as _;
use tokio::{sync::Semaphore, time};

use super::{
    budget::Spent,
    key,
    pace::Pace,
    principal::{Brought, Grant, LOCAL, Named, Principal},
    roster::{Asked, Cut, NoSeat, Roster, Seat},
    store::{Store, StoreError},
    tenant::{Tenant, Tenants},
    token::{self, Signer, Uses},
};
use crate::config::{KeyHash, Net, Scope, Secret, is_loopback};

/// Client secrets given away that are remembered.
const REMEMBERED: usize = 100_000;
/// Uses that are counted at the same time, and how long one may wait for that.
const COUNTING: usize = 4;
const COUNT_WITHIN: Duration = Duration::from_secs(3);
/// What is said to everybody whose credential is not good.
pub const NO_CREDENTIAL: &str = "a valid credential is needed: a tenant key or a call token as `Authorization: Bearer ...`, \
                                 from a browser a call token as subprotocol `voxrelay.token.TOKEN`, or as `?token=TOKEN`";

/// A request's head, as far as it says who asks.
#[derive(Debug, Clone, Copy, Default)]
pub struct Head<'r> {
    /// The first credential that it shows.
    pub credential: Option<Credential<'r>>,
    /// `Origin`; what is no text is `null`.
    pub origin: Option<&'r str>,
    /// `Host`
    pub host: Option<&'r str>,
}

/// What somebody shows at the door.
#[derive(Clone, Copy)]
pub struct Credential<'r> {
    text: &'r str,
    /// It stood in the URL, which gets logged on its way: no place for a key.
    in_url: bool,
}

impl std::fmt::Debug for Credential<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credential(..)")
    }
}

impl<'r> Head<'r> {
    /// Reads a head. A credential is, in this order: a bearer token, Azure's `api-key`, a subprotocol that carries one (ours,
    /// OpenAI's), `token` of the query.
    pub fn of(headers: &'r HeaderMap, query: &'r [(String, String)]) -> Self {
        let text = |name| headers.get(name).and_then(|value: &axum::http::HeaderValue| value.to_str().ok());
        let bearer = text(header::AUTHORIZATION.as_str()).and_then(|value| {
            let (scheme, token) = value.trim().split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
        });
        let protocols = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).into_iter().filter_map(|v| v.to_str().ok());
        let mut protocols = protocols.flat_map(|list| list.split(',')).map(str::trim);
        let offered = || protocols.find_map(|p| PROTOCOLS.iter().find_map(|prefix| p.strip_prefix(prefix)));
        let shown = bearer.or_else(|| text("api-key").map(str::trim)).or_else(offered);
        let in_url = || query.iter().find(|(name, _)| name == "token").map(|(_, value)| value.as_str());
        let credential = match shown.filter(|text| !text.is_empty()) {
            Some(text) => Some(Credential { text, in_url: false }),
            None => in_url().map(|text| Credential { text, in_url: true }),
        };
        let origin = headers.get(header::ORIGIN).map(|v| v.to_str().unwrap_or("null"));
        Self { credential, origin, host: text(header::HOST.as_str()) }
    }
}

/// Subprotocols that carry a credential begin so; never echoed.
const PROTOCOLS: [&str; 2] = ["voxrelay.token.", "openai-insecure-api-key."];

/// Why somebody may not come in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// No credential, or none that is good.
    #[error("{NO_CREDENTIAL}")]
    Credential,
    /// A page that may not call.
    #[error("Origin `{0}` may not call; allowed: {1}")]
    Origin(String, &'static str),
    /// An address that may not call.
    #[error("this address is not one that the tenant may call from")]
    Address,
    /// A key for other things.
    #[error("this key has no scope `{}`", .0.name())]
    Scope(Scope),
    /// The address or the tenant comes too often.
    #[error("too many requests; come back in {} ms", .0.as_millis())]
    TooOften(Duration),
    /// The tenant has as many calls as it may have.
    #[error("the tenant has {0} calls already, as many as it may have at once")]
    TooMany(usize),
    /// There is a call of this id already.
    #[error("this call was taken already")]
    Taken,
    /// What counts the uses of tokens cannot be asked now.
    #[error("the store cannot be used now")]
    Store,
    /// What may be spent is spent.
    #[error("{0}")]
    Budget(Box<Spent>),
    /// What a call would use cannot be written down.
    #[error("usage cannot be written down now, so that no new call is taken")]
    Accounting,
}

impl From<Spent> for Denied {
    fn from(spent: Spent) -> Self {
        Self::Budget(Box::new(spent))
    }
}

/// Everybody who comes in passes here.
#[derive(Debug)]
pub struct Gate {
    tenants: ArcSwap<Tenants>,
    /// While there are no tenants, nobody is asked.
    open: bool,
    /// The operator wants even strangers.
    insecure: bool,
    /// There have been tenants: whatever becomes of them, nobody comes in without a credential any more.
    closed: AtomicBool,
    signer: ArcSwap<Signer>,
    uses: Uses,
    store: ArcSwap<Option<Arc<Store>>>,
    safety: ArcSwap<Vec<u8>>,
    counting: Arc<Semaphore>,
    pace: Pace,
    proxies: Vec<Net>,
    roster: Roster,
    given: Mutex<Given>,
}

/// Client secrets that were given away.
#[derive(Debug, Default)]
struct Given {
    by_hash: HashMap<KeyHash, Gift>,
    /// When those that have ended were last looked for.
    tidied: u64,
}

/// To whom a client secret was given, and what for. The tenant is looked up anew at each use: it may have changed.
#[derive(Debug, Clone)]
struct Gift {
    /// None: nobody was asked.
    tenant: Option<String>,
    key: Option<KeyHash>,
    user: Option<String>,
    token: Option<Grant>,
    agent: String,
    model: Option<String>,
    until: u64,
}

/// How a gate stands, whoever the tenants are.
#[derive(Debug, Clone, Default)]
pub struct Terms {
    /// While there are no tenants, nobody is asked.
    pub open: bool,
    /// Then pages of the host that they call come in, too.
    pub insecure: bool,
    /// Requests of one address in a minute; 0: no limit.
    pub per_minute: u32,
    /// Proxies whose `X-Forwarded-For` is believed.
    pub proxies: Vec<Net>,
}

impl Gate {
    /// Nobody comes in without a credential, although there are no tenants now: there were some.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// A gate without tenants, at `unix`, seconds.
    pub fn new(terms: Terms, signer: Signer, unix: u64) -> Self {
        let Terms { open, insecure, per_minute, proxies } = terms;
        Self {
            tenants: ArcSwap::default(),
            open,
            insecure,
            closed: AtomicBool::new(false),
            signer: ArcSwap::from_pointee(signer),
            uses: Uses::new(unix),
            store: ArcSwap::default(),
            safety: ArcSwap::from_pointee(key::chance().to_vec()),
            counting: Arc::new(Semaphore::new(COUNTING)),
            pace: Pace::new(per_minute),
            proxies,
            roster: Roster::default(),
            given: Mutex::default(),
        }
    }

    /// These are the tenants from now on. Calls of those who are none any more, and of keys that are gone, are cut.
    pub fn set_tenants(&self, tenants: Tenants, unix: u64) {
        self.closed.fetch_or(!tenants.is_empty(), Ordering::AcqRel);
        self.pace.keep_tenants(|id| tenants.get(id).is_some());
        self.tenants.store(Arc::new(tenants));
        self.sweep(unix);
    }

    /// These keys sign and verify from now on.
    pub fn set_signer(&self, signer: Signer) {
        self.signer.store(Arc::new(signer));
    }

    /// The secret behind safety identifiers.
    pub fn set_safety_secret(&self, secret: &Secret) {
        self.safety.store(Arc::new(secret.expose().as_bytes().to_vec()));
    }

    /// What remembers the uses of tokens.
    pub fn set_store(&self, store: Option<Arc<Store>>) {
        self.store.store(Arc::new(store));
    }

    /// Cuts calls whose credential is no longer good.
    pub fn sweep(&self, unix: u64) {
        let cut = self.roster.sweep(|who| self.is_good(who, unix));
        if cut > 0 {
            tracing::info!(calls = cut, "credentials were revoked or have expired: calls cut");
        }
    }

    /// Nobody is asked for a credential.
    pub fn is_open(&self) -> bool {
        self.open && !self.closed.load(Ordering::Acquire)
    }

    /// A tenant, as it is now.
    pub fn tenant(&self, id: &str) -> Option<Arc<Tenant>> {
        self.tenants.load().get(id).cloned()
    }

    /// Nobody at all could come in: strangers are not to be served, and there are no tenants.
    pub fn has_nobody(&self) -> bool {
        !self.open && self.tenants.load().is_empty()
    }

    /// Calls that run.
    pub fn roster(&self) -> &Roster {
        &self.roster
    }

    /// Where a request comes from: the peer, or what the proxies that we trust say of it.
    pub fn address(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let trusted = |address: IpAddr| self.proxies.iter().any(|net| net.contains(address));
        if !trusted(peer) {
            return peer;
        }
        let lists = headers.get_all("x-forwarded-for").into_iter().filter_map(|v| v.to_str().ok());
        let hops: Vec<&str> = lists.flat_map(|list| list.split(',')).map(str::trim).collect();
        let mut last = peer;
        for hop in hops.into_iter().rev() {
            // What is no address was not written by a proxy that we trust.
            let with_port = || hop.parse::<std::net::SocketAddr>().map(|address| address.ip());
            let bare = hop.trim_matches(['[', ']']).parse::<IpAddr>();
            let Ok(address) = bare.or_else(|_| with_port()) else { break };
            last = address;
            if !trusted(address) {
                break;
            }
        }
        last
    }

    /// One more request of this address, before anything is looked at.
    ///
    /// # Errors
    /// [`Denied::TooOften`].
    pub fn pace(&self, address: IpAddr) -> Result<(), Denied> {
        let counts = self.counts(address);
        counts.map_or(Ok(()), |address| self.pace.address(address)).map_err(Denied::TooOften)
    }

    /// An address, where what comes from it is counted. This machine's own programs are not; a proxy on it that tells us nothing stands
    /// for everybody outside.
    pub fn counts(&self, address: IpAddr) -> Option<IpAddr> {
        let own = address.to_canonical().is_loopback() && !self.proxies.iter().any(|net| net.contains(address));
        (!own).then_some(address)
    }

    /// Who asks, from `address`, at `unix`, seconds.
    ///
    /// # Errors
    /// Why they may not come in.
    pub fn knock(&self, head: Head<'_>, address: IpAddr, unix: u64) -> Result<Principal, Denied> {
        if self.is_open() {
            // A page whose name was pointed at this machine asks for its own host, and sends no Origin where it only reads.
            let here = self.insecure || head.host.is_none_or(|host| is_loopback(host_name(host)));
            if !here || !origin_allowed(head.origin, head.host, self.insecure) {
                return Err(foreign(&head, "this server's own pages and loopback"));
            }
            let brought = head.credential.and_then(|credential| self.given(credential.text, unix));
            return Ok(brought.unwrap_or_else(Principal::local));
        }
        let credential = head.credential.ok_or(Denied::Credential)?;
        if credential.in_url && !is_token(credential.text) {
            return Err(Denied::Credential);
        }
        let who = self.identify(credential.text, unix).ok_or(Denied::Credential)?;
        let tenant = who.tenant().ok_or(Denied::Credential)?;
        let only = who.token().and_then(|token| token.origin.as_deref());
        if let Some(origin) = head.origin.or(only.map(|_| "none")) {
            let own = head.host.is_some_and(|host| host_of(origin).is_some_and(|o| o.eq_ignore_ascii_case(host)));
            let listed = || own || tenant.config.origins.iter().any(|allowed| allowed == origin);
            if !only.map_or_else(listed, |only| only == origin) {
                return Err(foreign(&head, "this server's own pages, and those of the tenant's `origins`"));
            }
        }
        if !tenant.config.addresses.is_empty() && !tenant.config.addresses.iter().any(|net| net.contains(address)) {
            return Err(Denied::Address);
        }
        self.comes(&who)?;
        Ok(who)
    }

    /// One more connect of this principal's tenant; whoever knocks is counted there.
    ///
    /// # Errors
    /// [`Denied::TooOften`].
    pub fn comes(&self, who: &Principal) -> Result<(), Denied> {
        let Some(tenant) = who.tenant() else { return Ok(()) };
        self.pace.tenant(&tenant.id, tenant.config.connects_per_minute).map_err(Denied::TooOften)
    }

    /// Whose credential this is, if it is good at `unix`.
    pub fn identify(&self, credential: &str, unix: u64) -> Option<Principal> {
        let tenants = self.tenants.load();
        // The same work for everybody: a hash, and a look into a table.
        let hash = key::hash_shown(credential);
        if is_token(credential) {
            let found = self.signer.load().read(unix, credential)?;
            let tenant = tenants.get(&found.tenant)?;
            let key = tenant.config.keys.iter().find(|key| key.hash.digits(token::DIGITS) == found.key)?;
            tenant.key(key.hash, unix)?;
            // Whoever may make tokens may open calls by them; the other way to the service must be granted by both.
            let direct = found.grant.direct && key.scopes.contains(&Scope::Secret);
            let scopes = if direct { vec![Scope::Call, Scope::Secret] } else { vec![Scope::Call] };
            let who = Principal::new(Some(tenant.clone()), Some(key.hash), scopes, Some(found.grant));
            return Some(match found.user {
                Some(user) => self.for_user(who, user),
                None => who,
            });
        }
        if credential.starts_with("ek_") {
            return self.given(credential, unix);
        }
        let (tenant, scopes) = tenants.by_key(hash, unix)?;
        Some(Principal::new(Some(tenant.clone()), Some(hash), scopes.to_vec(), None))
    }

    /// Who comes back with a client secret that we gave away: somebody who may use it, and nothing else.
    fn given(&self, credential: &str, unix: u64) -> Option<Principal> {
        let hash = key::hash_shown(credential);
        let given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        let gift = given.by_hash.get(&hash).filter(|gift| unix < gift.until)?.clone();
        drop(given);
        let tenant = match &gift.tenant {
            Some(id) => Some(self.tenants.load().get(id)?.clone()),
            None => None,
        };
        let who = Principal::new(tenant, gift.key, vec![Scope::Call], gift.token);
        let who = match gift.user {
            Some(user) => self.for_user(who, user),
            None => who,
        };
        let secret = Brought { value: Secret::new(credential), agent: gift.agent, model: gift.model };
        self.is_good(&who, unix).then(|| who.with_secret(secret))
    }

    /// Somebody who came in at another process, if they still might here: to go on with their call, and nothing else.
    pub fn knows(&self, named: Named, unix: u64) -> Option<Principal> {
        let Named { tenant, key, token, user } = named;
        let tenant = match &tenant {
            Some(id) => Some(self.tenants.load().get(id)?.clone()),
            None => None,
        };
        let who = Principal::new(tenant, key, vec![Scope::Call], token);
        let who = match user {
            Some(user) => self.for_user(who, user),
            None => who,
        };
        self.is_good(&who, unix).then_some(who)
    }

    /// Somebody who calls one of this tenant's numbers, or is called for it: whoever asks has seen that a telephone provider vouches
    /// for it. `None`: there is no such tenant.
    pub fn by_phone(&self, tenant: Option<&str>) -> Option<Principal> {
        match tenant {
            Some(id) => Some(Principal::by_phone(Some(self.tenants.load().get(id)?.clone()))),
            None => (!self.closed.load(Ordering::Acquire)).then(|| Principal::by_phone(None)),
        }
    }

    /// Whoever pays for what a tenant's key has begun, long after it came in; without a label, or where there is no such key any more, its
    /// tenant. `None`: there is no such tenant.
    pub fn payer(&self, tenant: &str, label: Option<&str>) -> Option<Principal> {
        let Some(tenant) = self.tenant(tenant) else {
            return (tenant == LOCAL && self.is_open()).then(Principal::local);
        };
        let key = tenant.config.keys.iter().find(|key| Some(key.label.as_str()) == label).map(|key| key.hash);
        Some(Principal::new(Some(tenant), key, vec![Scope::Text], None))
    }

    /// The same principal for one of its end users, who upstream is called by what nobody can turn back.
    pub fn for_user(&self, who: Principal, user: String) -> Principal {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &self.safety.load());
        let tag = hmac::sign(&key, format!("{}\n{user}", who.tenant_id()).as_bytes());
        let id = tag.as_ref().iter().take(20).map(|byte| format!("{byte:02x}")).collect();
        who.for_user(user, id)
    }

    /// Whether a principal that came in before still might.
    pub fn is_good(&self, who: &Principal, unix: u64) -> bool {
        if who.token().is_some_and(|token| !self.signer.load().knows(&token.kid)) {
            return false;
        }
        match (who.tenant(), who.key()) {
            // Without tenants, nobody who reaches us is asked; a telephone provider reaches us from anywhere.
            (None, _) => self.is_open() || who.is_by_phone() && !self.closed.load(Ordering::Acquire),
            (Some(tenant), Some(key)) => {
                self.tenants.load().get(&tenant.id).is_some_and(|tenant| tenant.key(key, unix).is_some())
            }
            (Some(tenant), None) => who.is_by_phone() && self.tenants.load().get(&tenant.id).is_some(),
        }
    }

    /// A token that grants this to whoever has it. `who` must have come with a key.
    ///
    /// # Errors
    /// When its key may not make tokens, or is none.
    pub fn grant(&self, who: &Principal, user: Option<String>, grant: Grant, unix: u64) -> Result<Secret, Denied> {
        let by_key = who.token().is_none() && who.secret().is_none();
        let key = who.key().filter(|_| by_key && who.may(Scope::Token));
        let (tenant, key) = who.tenant().zip(key).ok_or(Denied::Scope(Scope::Token))?;
        let grant = Grant { jti: format!("{:032x}", rand::rng().random::<u128>()), ..grant };
        self.signer.load().sign(unix, &tenant.id, key, user, &grant).map_err(|_| Denied::Store)
    }

    /// Longest life of a token, seconds.
    pub fn longest_token_s(&self) -> u64 {
        self.signer.load().longest_s()
    }

    /// Takes one of the uses of the principal's token, where it has a number of them.
    ///
    /// # Errors
    /// When there is none left, or nobody can tell.
    pub async fn spend(&self, who: &Principal, unix: u64) -> Result<(), Denied> {
        let Some((grant, uses)) = who.token().and_then(|grant| Some((grant, grant.uses?))) else { return Ok(()) };
        let taken = match self.store.load().as_ref() {
            None => self.uses.take(unix, grant),
            Some(store) => {
                // A store that somebody else holds shall not take all threads that may wait.
                let turn = time::timeout(COUNT_WITHIN, self.counting.clone().acquire_owned()).await;
                let turn = turn.map_err(|_| Denied::Store)?;
                let (store, jti, ends) = (store.clone(), grant.jti.clone(), grant.expires_at);
                let taken = tokio::task::spawn_blocking(move || {
                    let taken = store.take_use(&jti, uses, ends, unix);
                    drop(turn);
                    taken
                });
                let taken = taken.await.unwrap_or_else(|_| Ok(false));
                taken.map_err(|error: StoreError| {
                    tracing::error!(%error, "a token's use cannot be counted");
                    Denied::Store
                })?
            }
        };
        if taken { Ok(()) } else { Err(Denied::Credential) }
    }

    /// Gives a use back that was taken for what did not come to be.
    pub async fn give_back(&self, who: &Principal) {
        let Some(grant) = who.token().filter(|grant| grant.uses.is_some()) else { return };
        match self.store.load().as_ref() {
            None => self.uses.give_back(grant),
            Some(store) => {
                let (store, jti) = (store.clone(), grant.jti.clone());
                let given = tokio::task::spawn_blocking(move || store.give_use_back(&jti)).await;
                if let Ok(Err(error)) = given {
                    tracing::error!(%error, "a token's use cannot be given back");
                }
            }
        }
    }

    /// Remembers a client secret that was given to somebody, made under this agent's policy for this model. It may come back
    /// for `left`, and no longer than the token that it was made with is good.
    pub fn gave(&self, secret: &Secret, who: &Principal, agent: &str, model: Option<&str>, left: Duration, unix: u64) {
        let hash = key::hash(secret.expose());
        let end = unix.saturating_add(left.as_secs());
        let until = who.token().map_or(end, |token| token.expires_at.min(end));
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        if given.by_hash.len() >= REMEMBERED && given.tidied != unix {
            given.tidied = unix;
            given.by_hash.retain(|_, gift| unix < gift.until);
        }
        // It is only given to people who are bound alike; whoever may have it longest counts.
        let known = given.by_hash.get(&hash).map(|gift| gift.until);
        if known.is_some_and(|known| known >= until) || known.is_none() && given.by_hash.len() >= REMEMBERED {
            return;
        }
        let gift = Gift {
            tenant: who.tenant().map(|tenant| tenant.id.clone()),
            key: who.key(),
            user: who.user().map(str::to_owned),
            // Uses were taken when the secret was made; and it is nobody's token alone that it stands for.
            token: who.token().map(|token| Grant { jti: String::new(), uses: None, ..token.clone() }),
            agent: agent.to_owned(),
            model: model.map(str::to_owned),
            until,
        };
        given.by_hash.insert(hash, gift);
    }

    /// A call of this principal, which knocked a moment ago.
    ///
    /// # Errors
    /// When its tenant has as many calls as it may have.
    pub fn admit(self: &Arc<Self>, id: &str, who: &Principal, door: &'static str) -> Result<License, Denied> {
        let most = who.tenant().map_or(0, |tenant| tenant.config.max_calls);
        let seat = self.roster.enter(id, who, door, most).map_err(|why| match why {
            NoSeat::Full => Denied::TooMany(most),
            NoSeat::Taken => Denied::Taken,
        })?;
        Ok(License { gate: self.clone(), seat, who: who.clone() })
    }

    /// Whether this principal's tenant has as many calls as it may have.
    pub fn is_full(&self, who: &Principal) -> bool {
        let most = who.tenant().map_or(0, |tenant| tenant.config.max_calls);
        most > 0 && self.roster.count(who.tenant_id()) >= most
    }

    /// Whether pages of this origin may read answers at all; which tenant's they are, only the credential says.
    pub fn origin_is_known(&self, origin: &str, host: Option<&str>) -> bool {
        let own = host.is_some_and(|host| host_of(origin).is_some_and(|o| o.eq_ignore_ascii_case(host)));
        match self.is_open() {
            true => origin_allowed(Some(origin), host, self.insecure),
            false => own || self.tenants.load().origin_is_known(origin),
        }
    }
}

/// A call's right to go on.
#[derive(Debug)]
pub struct License {
    gate: Arc<Gate>,
    seat: Seat,
    who: Principal,
}

impl License {
    /// Who speaks for the call.
    pub fn who(&self) -> &Principal {
        &self.who
    }

    /// The call has another id from now on: the service's own, once it is known.
    pub fn rename(&mut self, id: &str) {
        self.seat.rename(id);
    }

    /// Waits until somebody ends the call.
    pub async fn cut(&mut self) -> Cut {
        self.seat.cut().await
    }

    /// Waits until somebody wants something of the call.
    pub async fn asked(&mut self) -> Asked {
        self.seat.asked().await
    }

    /// Takes another credential for the same call, at `unix`: a key or a call token of the same tenant, and for the same user, if
    /// for any. It prolongs the call and takes no use; what it grants besides counts for calls that are opened with it. How
    /// long it is good; `None` inside: as long as its key is.
    ///
    /// # Errors
    /// When it is not good.
    pub fn renew(&mut self, credential: &str, unix: u64) -> Result<Option<Duration>, Denied> {
        let found = self.gate.identify(credential, unix).ok_or(Denied::Credential)?;
        self.adopt(found, unix)
    }

    /// The call goes on for whoever has shown this credential, under the conditions of [`Self::renew`].
    ///
    /// # Errors
    /// When it is not good for this call.
    pub fn adopt(&mut self, found: Principal, unix: u64) -> Result<Option<Duration>, Denied> {
        let grant = |who: &Principal, field: fn(&Grant) -> Option<String>| who.token().and_then(field);
        // What the new one is bound to, the call must have been bound to as well.
        let bound = |field: fn(&Grant) -> Option<String>| {
            grant(&found, field).is_none_or(|new| grant(&self.who, field).is_some_and(|old| old == new))
        };
        let same_user = found.user().is_none() || found.user() == self.who.user();
        if found.tenant_id() != self.who.tenant_id()
            || found.secret().is_some()
            || !same_user
            || !found.may(Scope::Call)
            || !bound(|grant| grant.agent.clone())
            || !bound(|grant| grant.origin.clone())
        {
            return Err(Denied::Credential);
        }
        let good_for = good_for(&found, unix);
        // It goes on for whom it was opened.
        let found = match (found.user(), self.who.user()) {
            (None, Some(user)) => self.gate.for_user(found, user.to_owned()),
            _ => found,
        };
        self.seat.renew(found);
        Ok(good_for)
    }
}

/// How long a principal's token is good; none: it has no end of its own.
pub fn good_for(who: &Principal, unix: u64) -> Option<Duration> {
    who.token().map(|token| Duration::from_secs(token.expires_at.saturating_sub(unix)))
}

/// A JWT has two dots, and a key has none.
fn is_token(credential: &str) -> bool {
    credential.contains('.')
}

fn foreign(head: &Head<'_>, allowed: &'static str) -> Denied {
    Denied::Origin(head.origin.unwrap_or("none").chars().take(80).collect(), allowed)
}

/// Host and port of an origin.
fn host_of(origin: &str) -> Option<&str> {
    origin.split_once("://").map(|(_, authority)| authority)
}

/// Whether a browser page of `origin` may call us where nobody is asked for a credential: only pages of our own or of this
/// machine are let in; programs send no `Origin`.
///
/// `open`: we were told to serve everybody, and a page of our own is one from the host that it calls.
fn origin_allowed(origin: Option<&str>, host: Option<&str>, open: bool) -> bool {
    let Some(origin) = origin else { return true };
    let Some(authority) = host_of(origin) else { return false };
    if is_loopback(host_name(authority)) {
        return true;
    }
    // A name of somebody else's that points at this machine would match its own Host: rebinding. Not without being told.
    open && host.is_some_and(|host| host.eq_ignore_ascii_case(authority))
}

/// `host:port` or `[v6]:port` without the port.
fn host_name(authority: &str) -> &str {
    match authority.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    }
}
