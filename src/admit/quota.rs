//! An account's quota, shared by all who use the account: a [`Pool`] a model, and whoever waits for one.
//!
//! What is granted is a [`Grant`], which goes back by itself: settled by what was used, or released when it is dropped. Who waits holds
//! a [`Waiting`]; dropping it leaves the queue. Decides nothing ([`super::governor`] does), and sends nothing. One task wakes those whose
//! turn it is ([`Quota::run`]).
use std::{
    collections::{BTreeMap, HashMap},
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use metrics::gauge;
use tokio::{
    sync::{Notify, oneshot, watch},
    time::{self, Instant},
};

use super::{
    governor::{Ask, Asked, Class, Heard, Limits, Pool, Reason, Reservation, RetryBudget, Ticket, View},
    router::Headroom,
};
use crate::config::LimitsConfig;

/// Models that have a pool of their own, until some are used no more.
const MODELS: usize = 256;
/// While little is left, it is looked so often whether that is so.
const LOOK: Duration = Duration::from_millis(500);

/// Somebody who would like to have a reply.
#[derive(Debug, Clone, Copy)]
pub struct Turn<'a> {
    /// The model that shall answer.
    pub model: &'a str,
    /// Who pays.
    pub tenant: &'a str,
    /// Their part against others.
    pub weight: u32,
    /// Who goes first.
    pub class: Class,
    /// What it may use at most, tokens.
    pub tokens: u64,
    /// How long it may wait.
    pub patience: Duration,
}

/// The answer.
#[derive(Debug)]
pub enum Answer {
    /// Go.
    Granted(Grant),
    /// Wait for it; why.
    Waits(Waiting, Reason),
    /// There is no use in waiting.
    Refused(Reason),
}

type Said = Result<Grant, Reason>;
type Name = Arc<str>;

#[derive(Debug)]
struct Account {
    pool: Pool,
    retries: RetryBudget,
    waiting: HashMap<Ticket, oneshot::Sender<Said>>,
    scarce: watch::Sender<bool>,
}

impl Account {
    /// When somebody must look at it again.
    fn next(&mut self, now: Duration) -> Option<Duration> {
        let scarce = self.pool.is_scarce(now);
        self.scarce.send_if_modified(|told| std::mem::replace(told, scarce) != scarce);
        let look = (scarce && self.scarce.receiver_count() > 0).then(|| now + LOOK);
        [self.pool.next(now), look].into_iter().flatten().min()
    }

    fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.scarce.receiver_count() == 0 && self.pool.is_idle()
    }
}

#[derive(Debug, Default)]
struct Accounts {
    limits: Vec<LimitsConfig>,
    by_model: BTreeMap<Name, Account>,
    /// When [`Quota::run`] looks again.
    looks_at: Option<Duration>,
}

/// The first section that has this model in it.
fn section<'a>(limits: &'a [LimitsConfig], model: &str) -> Option<&'a LimitsConfig> {
    limits.iter().find(|of| of.covers(model))
}

fn limits_of(limits: &[LimitsConfig], model: &str) -> Limits {
    section(limits, model).map_or_else(Limits::default, Limits::from)
}

/// One account's quota.
#[derive(Debug)]
pub struct Quota {
    began: Instant,
    accounts: Mutex<Accounts>,
    sooner: Notify,
}

impl Quota {
    /// Nothing is used yet.
    pub fn new(limits: Vec<LimitsConfig>) -> Arc<Self> {
        let accounts = Mutex::new(Accounts { limits, ..Accounts::default() });
        Arc::new(Self { began: Instant::now(), accounts, sooner: Notify::new() })
    }

    fn accounts(&self) -> MutexGuard<'_, Accounts> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Other limits. What runs keeps what it has, who waits waits on or goes at once, and what the service has said stays known
    /// ([`Pool::reload`]).
    pub fn reload(&self, limits: Vec<LimitsConfig>) {
        let now = self.began.elapsed();
        let mut accounts = self.accounts();
        if accounts.limits == limits {
            return;
        }
        for (name, account) in &mut accounts.by_model {
            account.pool.reload(now, limits_of(&limits, name));
        }
        accounts.limits = limits;
        drop(accounts);
        // Who may go now, is let go by the task that always does it.
        self.sooner.notify_one();
    }

    /// Does something with a model's pool, and then lets go whoever may go.
    fn with<R>(self: &Arc<Self>, model: &str, work: impl FnOnce(Duration, &Name, &mut Account) -> R) -> R {
        let now = self.began.elapsed();
        let mut accounts = self.accounts();
        let name = self.name(&mut accounts, model);
        let Accounts { limits, by_model, looks_at } = &mut *accounts;
        let account = by_model.entry(name.clone()).or_insert_with(|| {
            let limits = limits_of(limits, &name);
            let (waiting, scarce) = (HashMap::new(), watch::Sender::new(false));
            Account { pool: Pool::new(limits, now), retries: RetryBudget::default(), waiting, scarce }
        });
        let done = work(now, &name, account);
        let left = self.go_on(now, &name, account);
        let next = account.next(now);
        let sooner = next.is_some_and(|at| looks_at.is_none_or(|looks| at < looks));
        if sooner {
            *looks_at = next;
        }
        drop(accounts);
        drop(left); // grants that nobody waits for any more, which takes the lock again
        if sooner {
            self.sooner.notify_one();
        }
        done
    }

    /// The pool of a model: its own, or that of its section when there are too many, or when the session names its model later.
    fn name(&self, accounts: &mut Accounts, model: &str) -> Name {
        if let Some((name, _)) = accounts.by_model.get_key_value(model) {
            return name.clone();
        }
        if accounts.by_model.len() >= MODELS {
            accounts.by_model.retain(|_, account| !account.is_idle());
        }
        let room = accounts.by_model.len() < MODELS && !model.is_empty();
        Name::from(if room { model } else { section(&accounts.limits, model).map_or("*", |section| &section.model) })
    }

    /// Lets go whoever may go now. Grants that nobody takes are given back, once the lock is free.
    fn go_on(self: &Arc<Self>, now: Duration, name: &Name, account: &mut Account) -> Vec<Said> {
        let mut left = Vec::new();
        for (ticket, said) in account.pool.poll(now) {
            let said = said.map(|reservation| self.grant(name, reservation));
            match account.waiting.remove(&ticket) {
                Some(waiting) => left.extend(waiting.send(said).err()),
                None => left.push(said),
            }
        }
        left
    }

    fn grant(self: &Arc<Self>, name: &Name, reservation: Reservation) -> Grant {
        Grant { quota: self.clone(), name: name.clone(), reservation: Some(reservation) }
    }

    /// Whether a reply may be asked for now.
    pub fn ask(self: &Arc<Self>, turn: Turn<'_>) -> Answer {
        let Turn { model, tenant, weight, class, tokens, patience } = turn;
        self.with(model, |now, name, account| {
            account.retries.request();
            match account.pool.ask(now, Ask { tenant, weight, class, tokens, until: now + patience }) {
                Asked::Admitted(reservation) => Answer::Granted(self.grant(name, reservation)),
                Asked::Refused(reason) => Answer::Refused(reason),
                Asked::Waits(ticket, reason) => {
                    let (said, answer) = oneshot::channel();
                    account.waiting.insert(ticket, said);
                    Answer::Waits(Waiting { quota: self.clone(), name: name.clone(), ticket, answer }, reason)
                }
            }
        })
    }

    /// A reply that nobody asked us for has begun: it is counted, whatever is left.
    pub fn charge(self: &Arc<Self>, turn: Turn<'_>) -> Grant {
        let Turn { model, tenant, weight, class, tokens, .. } = turn;
        self.with(model, |now, name, account| {
            account.retries.request();
            self.grant(name, account.pool.charge(now, tenant, weight, class, tokens))
        })
    }

    /// Whether a reply that has failed for the limits may be asked for again: a tenth of all may.
    pub fn may_retry(self: &Arc<Self>, model: &str) -> bool {
        self.with(model, |_, _, account| account.retries.retry())
    }

    /// Whether a session of a model may be opened now.
    ///
    /// # Errors
    /// There are too many, or too many have come. Nobody waits here: who is refused comes again.
    pub fn connect(self: &Arc<Self>, model: &str) -> Result<SessionSeat, Reason> {
        self.with(model, |now, name, account| {
            account.pool.connect(now).map(|()| SessionSeat { quota: self.clone(), name: name.clone() })
        })
    }

    /// Somebody has come too often to no avail.
    pub fn gave_up(self: &Arc<Self>, model: &str, reason: &Reason) {
        self.with(model, |_, _, account| account.pool.gave_up(reason));
    }

    /// Takes what the service says of a model's limits.
    pub fn heard(self: &Arc<Self>, model: &str, heard: Heard) {
        self.with(model, |now, _, account| account.pool.heard(now, heard));
    }

    /// Whether so little of a model is left that whoever lets the service answer by itself should ask instead.
    pub fn scarcity(self: &Arc<Self>, model: &str) -> watch::Receiver<bool> {
        self.with(model, |_, _, account| account.scarce.subscribe())
    }

    /// What is left for a model, for whoever may go elsewhere.
    pub fn headroom(self: &Arc<Self>, model: &str) -> Headroom {
        self.with(model, |now, _, account| match (account.pool.is_short(now), account.pool.is_scarce(now)) {
            (true, _) => Headroom::Nothing,
            (false, true) => Headroom::Scarce,
            (false, false) => Headroom::Plenty,
        })
    }

    /// The pools as they are, by model.
    pub fn view(&self) -> BTreeMap<String, View> {
        let now = self.began.elapsed();
        let accounts = self.accounts();
        accounts.by_model.iter().map(|(model, account)| (model.to_string(), account.pool.view(now))).collect()
    }

    /// Brings the metrics up to now.
    pub fn measure(&self, account: &str) {
        // What clients call a model may be anything; of those that have answered there are few.
        for (model, view) in self.view().into_iter().filter(|(_, view)| view.granted > 0) {
            let (account, model) = (account.to_owned(), model.clone());
            for shown in &view.dimensions {
                let labels = [
                    ("account", account.clone()),
                    ("model", model.clone()),
                    ("limit", shown.dimension.name().to_owned()),
                ];
                if let Some(available) = shown.available {
                    gauge!("voxrelay_quota_left", &labels).set(available as f64);
                }
                gauge!("voxrelay_quota_reserved", &labels).set(shown.reserved as f64);
            }
            for class in [Class::Interactive, Class::Batch] {
                let waiting: usize = view.waiting.iter().filter(|who| who.class == class).map(|who| who.waiting).sum();
                let labels =
                    [("account", account.clone()), ("model", model.clone()), ("class", class.name().to_owned())];
                gauge!("voxrelay_quota_waiting", &labels).set(waiting as f64);
            }
            gauge!("voxrelay_quota_fairness", "account" => account, "model" => model).set(view.fairness);
        }
    }

    /// Wakes whoever's turn has come; for ever.
    pub async fn run(self: Arc<Self>) {
        loop {
            let sooner = self.sooner.notified();
            match self.look() {
                Some(at) => {
                    let _ = time::timeout_at(self.began + at, sooner).await;
                }
                None => sooner.await,
            }
        }
    }

    /// Lets go whoever may go, and says when to look again.
    fn look(self: &Arc<Self>) -> Option<Duration> {
        let now = self.began.elapsed();
        let mut accounts = self.accounts();
        let (mut left, mut next) = (Vec::new(), None);
        for (name, account) in &mut accounts.by_model {
            left.extend(self.go_on(now, name, account));
            next = [next, account.next(now)].into_iter().flatten().min();
        }
        accounts.looks_at = next;
        drop(accounts);
        drop(left);
        next
    }
}

impl From<&LimitsConfig> for Limits {
    fn from(section: &LimitsConfig) -> Self {
        Self {
            requests: section.requests,
            tokens: section.tokens,
            requests_day: section.requests_day,
            tokens_day: section.tokens_day,
            connects: section.connects,
            sessions: section.sessions,
            use_percent: section.use_percent,
            burst: Duration::from_millis(section.burst_ms),
        }
    }
}

/// A session's, as long as it is open.
#[derive(Debug)]
#[must_use = "dropped, the session has ended"]
pub struct SessionSeat {
    quota: Arc<Quota>,
    name: Name,
}

impl SessionSeat {
    /// Whether another session of this model may be opened in the place of this one.
    ///
    /// # Errors
    /// As for [`Quota::connect`].
    pub fn again(&self) -> Result<(), Reason> {
        self.quota.with(&self.name, |now, _, account| account.pool.reconnect(now))
    }
}

impl Drop for SessionSeat {
    fn drop(&mut self) {
        self.quota.with(&self.name, |_, _, account| account.pool.left());
    }
}

/// What a reply may use.
#[derive(Debug)]
#[must_use = "dropped, it is given back"]
pub struct Grant {
    quota: Arc<Quota>,
    name: Name,
    reservation: Option<Reservation>,
}

impl Grant {
    /// What it may use, tokens.
    pub fn tokens(&self) -> u64 {
        self.reservation.as_ref().map_or(0, Reservation::tokens)
    }

    /// The reply is over, and has used so many tokens; `None`: nobody knows, so all of it.
    pub fn settle(mut self, used: Option<u64>) {
        if let Some(reservation) = self.reservation.take() {
            let used = used.unwrap_or(reservation.tokens());
            self.quota.with(&self.name, |now, _, account| account.pool.settle(now, reservation, used));
        }
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        if let Some(reservation) = self.reservation.take() {
            self.quota.with(&self.name, |now, _, account| account.pool.release(now, reservation));
        }
    }
}

/// Somebody who waits.
#[derive(Debug)]
pub struct Waiting {
    quota: Arc<Quota>,
    name: Name,
    ticket: Ticket,
    answer: oneshot::Receiver<Said>,
}

impl Future for Waiting {
    type Output = Said;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Said> {
        // The other end is kept until it has answered.
        Pin::new(&mut self.answer).poll(cx).map(|said| said.expect("every ticket is named once"))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.answer.close();
        let ticket = self.ticket;
        self.quota.with(&self.name, |_, _, account| {
            account.pool.cancel(ticket);
            account.waiting.remove(&ticket);
        });
        drop(self.answer.try_recv()); // what came meanwhile goes back
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::JoinSet;

    use super::{
        super::governor::{Dimension, Shown},
        *,
    };

    const SECOND: Duration = Duration::from_secs(1);

    fn quota(tokens: u64) -> Arc<Quota> {
        let limits = LimitsConfig { tokens: Some(tokens), ..LimitsConfig::default() };
        Quota::new(vec![limits])
    }

    fn turn(tokens: u64) -> Turn<'static> {
        let patience = 60 * SECOND;
        Turn { model: "m", tenant: "t", weight: 1, class: Class::Interactive, tokens, patience }
    }

    fn reserved(quota: &Quota) -> u64 {
        quota.view().values().flat_map(|view| &view.dimensions).map(|shown| shown.reserved).sum()
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_is_woken_when_there_is_room_and_nobody_is_woken_for_nothing() {
        let quota = quota(6_000);
        let mut looks = 0;
        let run = quota.clone().run();
        let waits = async {
            let first = match quota.ask(turn(500)) {
                Answer::Granted(grant) => grant,
                other => panic!("{other:?}"),
            };
            let Answer::Waits(waiting, reason) = quota.ask(turn(500)) else { panic!("there is no room for two") };
            let began = Instant::now();
            let grant = waiting.await.expect("its time comes");
            let waited = began.elapsed();
            let named = reason.wait.unwrap();
            assert!(waited >= named && waited <= named + 20 * Duration::from_millis(1), "{waited:?}, {named:?}");
            first.settle(Some(500));
            drop(grant);
        };
        let mut run = std::pin::pin!(run);
        let mut waits = std::pin::pin!(waits);
        // A paused clock moves only when nobody has anything to do: a task that spins would be seen here.
        std::future::poll_fn(|cx| {
            looks += 1;
            let _ = run.as_mut().poll(cx);
            waits.as_mut().poll(cx)
        })
        .await;
        assert!(looks < 30, "{looks} times");
        assert_eq!(reserved(&quota), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_leaves_the_queue_or_the_call_gives_back_what_it_had() {
        let quota = quota(6_000);
        let Answer::Granted(first) = quota.ask(turn(400)) else { panic!() };
        let Answer::Waits(waiting, _) = quota.ask(turn(400)) else { panic!() };
        drop(first); // lets the other one go, who does not look any more
        drop(waiting);
        assert_eq!(reserved(&quota), 0);
        assert!(quota.view().values().all(|view| view.waiting.is_empty()));
    }

    fn with_tokens(tokens: u64) -> Vec<LimitsConfig> {
        vec![LimitsConfig { tokens: Some(tokens), ..LimitsConfig::default() }]
    }

    fn shown(quota: &Quota, dimension: Dimension) -> Shown {
        let view = &quota.view()["m"];
        view.dimensions.iter().find(|shown| shown.dimension == dimension).unwrap().clone()
    }

    #[tokio::test(start_paused = true)]
    async fn other_limits_keep_what_runs_and_who_waits_and_what_was_learned() {
        let quota = quota(6_000); // 540 at once, 90 a second
        let mut run = JoinSet::new();
        run.spawn(quota.clone().run());
        let named = Heard::Bucket { dimension: Dimension::Requests, limit: Some(50), remaining: None, reset: None };
        quota.heard("m", named);
        let Answer::Granted(first) = quota.ask(turn(500)) else { panic!() };
        let Answer::Waits(mut second, reason) = quota.ask(turn(500)) else { panic!() };
        let Answer::Waits(third, _) = quota.ask(turn(2_000)) else { panic!("it is not too large yet") };
        assert!(reason.wait.unwrap() > 5 * SECOND, "{reason}");
        let began = Instant::now();
        // The same once more is none: nobody is woken, and nothing is counted anew.
        quota.reload(with_tokens(6_000));
        assert!(time::timeout(SECOND, &mut second).await.is_err());
        quota.reload(with_tokens(60_000)); // 5,400 at once, 900 a second
        let second = second.await.expect("it goes");
        let waited = began.elapsed();
        assert!(waited > SECOND && waited < 2 * SECOND, "{waited:?}: there were 130, and it needs 500");
        assert_eq!(shown(&quota, Dimension::Tokens).reserved, 1_000, "both still run");
        let requests = shown(&quota, Dimension::Requests);
        assert_eq!((requests.reserved, requests.limit, requests.learned), (2, Some(50), true), "named by the service");
        quota.reload(with_tokens(1_000));
        let refused = third.await.expect_err("it will never fit");
        assert_eq!((refused.dimension, refused.wait), (Dimension::Tokens, None), "{refused}");
        first.settle(Some(100));
        assert_eq!(shown(&quota, Dimension::Tokens).reserved, 500);
        drop(second);
        assert_eq!(reserved(&quota), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_that_is_new_counts_what_runs_already() {
        let quota = Quota::new(Vec::new());
        let grant = quota.charge(turn(500));
        let day =
            LimitsConfig { tokens_day: Some(1_000), use_percent: 100, burst_ms: 60_000, ..LimitsConfig::default() };
        quota.reload(vec![LimitsConfig { tokens: Some(600), ..day }]);
        let left = |dimension| shown(&quota, dimension).available;
        assert_eq!((left(Dimension::Tokens), left(Dimension::TokensDay)), (Some(100), Some(500)));
        grant.settle(Some(200));
        assert_eq!((left(Dimension::Tokens), left(Dimension::TokensDay)), (Some(400), Some(800)));
        quota.reload(Vec::new());
        assert_eq!((left(Dimension::Tokens), left(Dimension::TokensDay)), (None, None), "no limits any more");
    }

    #[tokio::test(start_paused = true)]
    async fn everybody_hears_that_little_is_left_and_later_that_there_is_enough() {
        let quota = quota(60_000);
        let mut scarce = quota.scarcity("m");
        assert!(!*scarce.borrow());
        let run = quota.clone().run();
        let told = async {
            let grant = quota.charge(turn(5_000));
            scarce.changed().await.unwrap();
            assert!(*scarce.borrow_and_update());
            grant.settle(Some(5_000));
            let began = Instant::now();
            scarce.changed().await.unwrap();
            assert!(!*scarce.borrow_and_update());
            began.elapsed()
        };
        let took = tokio::select! {
            () = run => unreachable!("it runs for ever"),
            took = told => took,
        };
        assert!(took > 5 * SECOND && took < 15 * SECOND, "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn more_models_than_there_are_pools_share_the_one_of_their_section() {
        let quota = quota(6_000);
        let grants: Vec<_> = (0..MODELS).map(|n| quota.charge(Turn { model: &format!("m{n}"), ..turn(10) })).collect();
        let shared = quota.charge(Turn { model: "one more", ..turn(10) });
        assert!(quota.view().contains_key("*"));
        drop(grants);
        drop(quota.charge(Turn { model: "and another", ..turn(10) }));
        assert_eq!(
            quota.view().keys().collect::<Vec<_>>(),
            ["*", "and another"],
            "those that nobody used any more are gone"
        );
        drop(shared);
        assert_eq!(reserved(&quota), 0);
    }
}
