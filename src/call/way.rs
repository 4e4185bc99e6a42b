//! Where a call's sessions come from: always the same account and model, or the routes of a tier, chosen anew for each session.
//!
//! Dials what the router names ([`crate::admit::router`]), and tells it what came of it. Of two sessions that are dialled at once, the
//! one that is up first is used, before anything is asked of either; never are two replies asked for. [`super::service_leg`] keeps what
//! is opened here. Decides nothing: neither which route, nor when a call wants a session.
use std::{
    future::Future,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use rand::Rng as _;
use tokio::time::{self, Instant};
use tokio_util::task::TaskTracker;

use crate::{
    admit::{
        Principal,
        quota::SessionSeat,
        router::{Cause, Choice, Headroom, Refusal, Route, Spent, Stage, Taken, TierId, Why, Wish},
        routes::Routes,
    },
    client::wire::Usage,
    config::USUAL_UPSTREAM,
    upstream::{
        Ended, Event, ServiceError, UpstreamError, Wanted,
        accounts::Accounts,
        open::{Session, Upstream},
    },
};

/// As long as there are others, none may take longer until its session is up.
const GIVES_UP: Duration = Duration::from_secs(3);
/// One that came too late has so long for it, and for its goodbye.
const BEATEN: Duration = Duration::from_secs(3);
const GOODBYE: Duration = Duration::from_secs(1);
/// A call's first session is tried for so long, in so many rounds, where one may help.
const FIRST: Duration = Duration::from_secs(3);
const FIRST_ROUNDS: u32 = 3;
/// A call that has lost its session waits for its turn at one account so long, if it may go to another.
const TURN: Duration = Duration::from_secs(1);
/// The pause before a second round; doubles, and half of it is chance.
const PAUSE: Duration = Duration::from_millis(150);
/// No pause between rounds is longer, unless all routes have failed too often, or the service has said so.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// A session that is being opened.
pub type Opening = Pin<Box<dyn Future<Output = Result<Opened, UpstreamError>> + Send>>;

/// A session that was opened, and where.
#[derive(Debug)]
pub struct Opened {
    /// The session.
    pub session: Session,
    /// Where it runs.
    pub on: Arc<On>,
}

/// Where a session runs.
#[derive(Debug)]
pub struct On {
    /// The account.
    pub upstream: Upstream,
    /// Its name, and the model.
    pub route: Route,
    chosen: Option<Chosen>,
}

/// What the router is told of it by.
#[derive(Debug)]
struct Chosen {
    routes: Arc<Routes>,
    taken: Taken,
    degraded: Option<Cause>,
}

impl On {
    /// The account, as the ledger calls it.
    pub fn account(&self) -> &str {
        self.route.upstream.as_deref().unwrap_or(USUAL_UPSTREAM)
    }

    /// Why it is no route of the tier that was asked for; none: it is, or no tier was.
    pub fn degraded(&self) -> Option<Cause> {
        self.chosen.as_ref()?.degraded
    }

    fn tell(&self, tell: impl FnOnce(&Routes, &Taken)) {
        if let Some(Chosen { routes, taken, .. }) = &self.chosen {
            tell(routes, taken);
        }
    }

    /// There is no session, for this reason. What was never dialled says nothing of the route.
    fn not_opened(&self, error: &UpstreamError) {
        let verdict = error.verdict();
        match (error, verdict.code) {
            (UpstreamError::Paused { .. } | UpstreamError::Limited(_), _) => {}
            (_, "rate_limited") => self.tell(|routes, taken| routes.limited(taken, verdict.retry_after)),
            (_, "upstream_auth" | "upstream_refused") => self.tell(Routes::refused),
            _ => self.tell(|routes, taken| routes.failed(taken, Stage::Connect)),
        }
    }

    /// A session that was up is lost. One that has reached its longest time did what it should; limits are no failures.
    pub fn lost(&self, error: &UpstreamError) {
        let verdict = error.verdict();
        match (error, verdict.code) {
            (UpstreamError::Refused { code, .. }, _) if code == "session_expired" => {}
            (_, "rate_limited") => self.tell(|routes, taken| routes.limited(taken, verdict.retry_after)),
            (_, "upstream_auth" | "upstream_refused") if !error.another_may_do() => self.tell(Routes::refused),
            // However many were lost with the same service, in whatever they did.
            _ => self.failed(Stage::MidStream),
        }
    }

    /// A reply failed, or a session did.
    pub fn failed(&self, stage: Stage) {
        self.tell(|routes, taken| routes.failed(taken, stage));
    }

    /// A reply is heard, so long after it was asked for.
    pub fn first_audio(&self, after: Duration) {
        self.tell(|routes, taken| routes.first_audio(taken, after));
    }

    /// What an event of the session says of the route. `stage`: how far the reply that runs is; `tools`: those that were answered since a
    /// reply ended last, and how many of them had failed.
    pub fn heard(&self, event: &Event, stage: impl FnOnce() -> Stage, tools: &mut (u64, u64)) {
        if self.chosen.is_none() {
            return;
        }
        match event {
            Event::ReplyDone { ended: Ended::Failed, limit: Some(_), retry_after, .. }
            | Event::Error(ServiceError { limit: Some(_), retry_after, .. }) => {
                self.tell(|routes, taken| routes.limited(taken, *retry_after));
            }
            Event::ReplyDone { ended: Ended::Failed, .. } => self.failed(stage()),
            Event::ReplyDone { usage, .. } => self.replied(usage.as_ref(), std::mem::take(tools)),
            _ => {}
        }
    }

    fn replied(&self, usage: Option<&Usage>, (tools, tools_failed): (u64, u64)) {
        self.tell(|routes, taken| {
            let usd = usage.and_then(|usage| routes.cost(&taken.route, usage));
            routes.replied(taken, &Spent { usd, tools, tools_failed });
        });
    }
}

/// Who wants sessions, and which.
#[derive(Debug, Clone)]
pub struct Whose {
    /// The kind of session. Its model is the one that was resolved at the door; a tier's route has its own.
    pub wanted: Wanted,
    /// Who pays.
    pub who: Principal,
    /// The call.
    pub call: String,
}

/// A tier, for one call.
#[derive(Debug)]
struct Tier {
    name: String,
    id: TierId,
    routes: Arc<Routes>,
    accounts: Arc<Accounts>,
    /// Routes that it cannot take: no such account, or one that wants audio of another rate.
    barred: Vec<Route>,
    spent: AtomicBool,
}

/// A call's way to its sessions.
#[derive(Debug, Clone)]
pub struct Way {
    home: Arc<On>,
    tier: Option<Arc<Tier>>,
}

impl Way {
    /// Always this account, and this model of it.
    pub fn fixed(upstream: Upstream, account: Option<&str>, model: &str) -> Self {
        let route = Route { upstream: account.map(str::to_owned), model: model.to_owned() };
        Self { home: Arc::new(On { upstream, route, chosen: None }), tier: None }
    }

    /// The routes of a tier; `account`: the tenant's own. `None`: none of them can be dialled, or may be used.
    pub fn tier(name: &str, routes: &Arc<Routes>, accounts: &Arc<Accounts>, who: &Principal) -> Option<Self> {
        let id = routes.resolve(name)?;
        let reach = routes.reach(id, who.upstream());
        let account = |route: &Route| accounts.get(route.upstream.as_deref());
        let may = |route: &&Route| who.may_use(name) || who.may_use(&route.model);
        let (upstream, route) = reach.iter().filter(may).find_map(|route| Some((account(route)?, route)))?;
        let rate = upstream.config().input_rate;
        let fits = |route: &&Route| account(route).is_none_or(|upstream| upstream.config().input_rate != rate);
        let barred = reach.iter().filter(fits).cloned().collect();
        let home = On { upstream: upstream.clone(), route: route.clone(), chosen: None };
        let (name, spent) = (name.to_owned(), AtomicBool::new(false));
        let tier = Tier { name, id, routes: routes.clone(), accounts: accounts.clone(), barred, spent };
        Some(Self { home: Arc::new(home), tier: Some(Arc::new(tier)) })
    }

    /// The model that somebody who speaks to the service directly gets: chosen now, and among the routes of the tenant's own account, whose
    /// client secret or call it will be. `call`: decides as a call's id does.
    ///
    /// # Errors
    /// Why there is none.
    pub fn direct(&self, who: &Principal, call: String) -> Result<String, Why> {
        let Some(tier) = &self.tier else { return Ok(self.home.route.model.clone()) };
        let whose = Arc::new(Whose { wanted: Wanted::voice(""), who: who.clone(), call });
        let mut hunt = Hunt::new(tier, &whose, &TaskTracker::new(), None);
        let reach = tier.routes.reach(tier.id, who.upstream()).into_iter();
        hunt.tried.extend(reach.filter(|route| route.upstream.as_deref() != who.upstream()));
        hunt.ask(Routes::choose).map(|choice| choice.taken.route.model).map_err(|refusal| refusal.why)
    }

    /// Where sessions come from as long as nothing was chosen: of a tier, its first route.
    pub fn home(&self) -> &Arc<On> {
        &self.home
    }

    /// The tier's name.
    pub fn tier_name(&self) -> Option<&str> {
        self.tier.as_ref().map(|tier| tier.name.as_str())
    }

    /// Little is left of the call's budget, so that its next sessions shall be those of `degrade_to`, if there is one: whether there is. The
    /// running session stays.
    pub fn degrade(&self) -> bool {
        let Some(tier) = self.tier.as_ref().filter(|tier| tier.routes.degrades(tier.id)) else { return false };
        tier.spent.store(true, Ordering::Relaxed);
        true
    }

    /// Opens a call's first session.
    pub fn open(&self, whose: &Arc<Whose>, goodbyes: &TaskTracker) -> Opening {
        match &self.tier {
            Some(tier) => Hunt::new(tier, whose, goodbyes, None).begin(),
            None => {
                let (whose, on) = (whose.clone(), self.home.clone());
                Box::pin(async move {
                    let session = on.upstream.open(&whose.wanted, &whose.who, &whose.call).await?;
                    Ok(Opened { session, on })
                })
            }
        }
    }

    /// Opens another one, within `patience`. `current`: where the one before ran; `seat`: its place, if it may be had.
    pub fn reopen(
        &self,
        whose: &Arc<Whose>,
        goodbyes: &TaskTracker,
        patience: Duration,
        current: Option<Route>,
        seat: Option<SessionSeat>,
    ) -> Opening {
        match &self.tier {
            Some(tier) => {
                let seat = current.clone().zip(seat);
                Hunt { current, seat, ..Hunt::new(tier, whose, goodbyes, Some(patience)) }.begin()
            }
            None => {
                let (whose, on) = (whose.clone(), self.home.clone());
                Box::pin(async move {
                    let Whose { wanted, who, call } = &*whose;
                    let session = on.upstream.reopen(wanted, who, call, patience, seat).await?;
                    Ok(Opened { session, on })
                })
            }
        }
    }
}

/// What came of one dial.
struct Dialled {
    on: Arc<On>,
    took: Duration,
    done: Result<Session, (UpstreamError, Option<SessionSeat>)>,
}

type Dial = Pin<Box<dyn Future<Output = Dialled> + Send>>;

/// The search for one session among a tier's routes.
struct Hunt {
    tier: Arc<Tier>,
    whose: Arc<Whose>,
    goodbyes: TaskTracker,
    /// The call has had a session before.
    again: bool,
    end: Instant,
    current: Option<Route>,
    seat: Option<(Route, SessionSeat)>,
    /// What cannot be dialled, and then what was, in this round.
    tried: Vec<Route>,
    rounds: u32,
}

impl Hunt {
    /// `patience`: how long a session that was lost is looked for; none: it is the call's first.
    fn new(tier: &Arc<Tier>, whose: &Arc<Whose>, goodbyes: &TaskTracker, patience: Option<Duration>) -> Self {
        Self {
            tier: tier.clone(),
            whose: whose.clone(),
            goodbyes: goodbyes.clone(),
            again: patience.is_some(),
            end: Instant::now() + patience.unwrap_or(FIRST),
            current: None,
            seat: None,
            tried: tier.barred.clone(),
            rounds: 0,
        }
    }

    fn begin(self) -> Opening {
        Box::pin(self.session())
    }

    async fn session(mut self) -> Result<Opened, UpstreamError> {
        let mut last: Option<UpstreamError> = None;
        loop {
            match self.ask(Routes::choose) {
                Ok(choice) => match self.race(choice).await {
                    Ok(opened) => return Ok(opened),
                    // What may help later says more than what never will.
                    Err(error) if last.as_ref().is_none_or(|_| error.verdict().transient) => last = Some(error),
                    Err(_) => {}
                },
                Err(refusal) => {
                    let Some(pause) = self.pause(last.as_ref(), &refusal) else {
                        let retry_after = refusal.retry_after.unwrap_or(PAUSE);
                        return Err(last.unwrap_or(UpstreamError::Paused { limited: false, retry_after }));
                    };
                    tracing::info!(tier = self.tier.name, why = ?refusal.why, "no route has a session, trying again");
                    time::sleep(pause).await;
                    self.tried.truncate(self.tier.barred.len());
                }
            }
        }
    }

    /// How long to wait before all routes are tried once more; `None`: there is no use, or no time.
    fn pause(&mut self, last: Option<&UpstreamError>, refusal: &Refusal) -> Option<Duration> {
        self.rounds += 1;
        let verdict = last.map(UpstreamError::verdict);
        let hung = matches!(last, Some(UpstreamError::Timeout { .. }));
        let for_good = verdict.is_some_and(|verdict| !verdict.transient) && refusal.why != Why::Open;
        let useless = refusal.why == Why::Forbidden || for_good;
        if useless || !self.again && (hung || self.rounds >= FIRST_ROUNDS) {
            return None;
        }
        let none_was_dialled = self.tried.len() == self.tier.barred.len();
        let open = refusal.retry_after.filter(|_| none_was_dialled).unwrap_or_default();
        let named = verdict.and_then(|verdict| verdict.retry_after).unwrap_or_default();
        let own = (PAUSE * 2_u32.pow(self.rounds.min(8) - 1)).min(LONGEST_PAUSE);
        let pause = own.mul_f64(rand::rng().random_range(0.5..1.0)).max(open).max(named);
        (Instant::now() + pause < self.end).then_some(pause)
    }

    /// Asks the router for this call.
    fn ask<R>(&self, ask: impl FnOnce(&Routes, &Wish<'_>) -> R) -> R {
        let Tier { id, routes, accounts, spent, .. } = &*self.tier;
        let Whose { who, call, .. } = &*self.whose;
        let quota = |route: &Route| {
            let upstream = accounts.get(route.upstream.as_deref());
            upstream.map_or(Headroom::Nothing, |upstream| upstream.quota().headroom(&route.model))
        };
        let wish = Wish {
            tier: *id,
            tenant: who.tenant_id(),
            account: who.upstream(),
            user: who.user(),
            call,
            current: self.current.as_ref(),
            tried: &self.tried,
            may_use: &|name| who.may_use(name),
            quota: &quota,
            price: &|route| routes.price(route),
            spent: spent.load(Ordering::Relaxed),
        };
        ask(routes, &wish)
    }

    /// Dials a route, and a second one beside it if it takes long.
    async fn race(&mut self, first: Choice) -> Result<Opened, UpstreamError> {
        let mut hedges = first.hedge_after.is_some();
        let mut hedge = pin!(time::sleep(first.hedge_after.unwrap_or_default()));
        let mut dials: FuturesUnordered<Dial> = self.dial(first).into_iter().collect();
        let mut last = UpstreamError::Paused { limited: false, retry_after: PAUSE };
        loop {
            tokio::select! {
                dialled = dials.next() => {
                    let Some(Dialled { on, took, done }) = dialled else { return Err(last) };
                    match done {
                        Ok(session) => {
                            on.tell(|routes, taken| routes.connected(taken, took));
                            dials.into_iter().for_each(|dial| drop(self.goodbyes.spawn(beaten(dial))));
                            return Ok(Opened { session, on });
                        }
                        Err((error, seat)) => {
                            tracing::info!(route = %on.route, %error, "no session on this route");
                            on.not_opened(&error);
                            self.seat = seat.map(|seat| (on.route.clone(), seat)).or(self.seat.take());
                            last = error;
                        }
                    }
                }
                () = hedge.as_mut(), if hedges => {
                    hedges = false;
                    let second = self.ask(Routes::hedge);
                    dials.extend(second.and_then(|second| self.dial(Choice { others: true, ..second })));
                }
            }
        }
    }

    /// `None`: its account is not there.
    fn dial(&mut self, choice: Choice) -> Option<Dial> {
        let Choice { taken, degraded, reason, others, .. } = choice;
        let route = taken.route.clone();
        tracing::debug!(route = %route, by = reason.by.name(), degraded = degraded.map(Cause::name), "dialling");
        self.tried.push(route.clone());
        let upstream = self.tier.accounts.get(route.upstream.as_deref())?.clone();
        let seat = self.seat.take_if(|(of, _)| *of == route).map(|(_, seat)| seat);
        let began = Instant::now();
        let end = match (others, self.again) {
            (true, true) => self.end.min(began + TURN),
            (true, false) => began,
            (false, _) => self.end,
        };
        let (whose, again) = (self.whose.clone(), self.again);
        let wanted = Wanted { model: route.model.clone(), ..whose.wanted.clone() };
        let chosen = Some(Chosen { routes: self.tier.routes.clone(), taken, degraded });
        let on = Arc::new(On { upstream, route, chosen });
        Some(Box::pin(async move {
            let once = Box::pin(on.upstream.once((&wanted, &whose.who, &whose.call), seat, again, end));
            let done = if others {
                let late = UpstreamError::Timeout { stage: "say session.created", after: GIVES_UP };
                time::timeout_at(end.max(began) + GIVES_UP, once).await.unwrap_or(Err((late, None)))
            } else {
                once.await
            };
            Dialled { on, took: began.elapsed(), done }
        }))
    }
}

/// A session that came too late is hung up before anything is asked of it; its route is none the worse for it.
async fn beaten(dial: Dial) {
    let Ok(Dialled { on, took, done }) = time::timeout(BEATEN, dial).await else { return };
    match done {
        Ok(session) => {
            on.tell(|routes, taken| routes.connected(&taken.clone().beaten(), took));
            session.socket.close(1000, "", GOODBYE).await;
        }
        Err((error, _)) => on.not_opened(&error),
    }
}
