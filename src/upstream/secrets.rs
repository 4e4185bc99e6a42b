//! Client secrets: made once, and used again for as long as they are good.
//!
//! One cache belongs to one account, that is to one provider, base URL and project. In it, a secret belongs to a session
//! configuration, a tenant and an end user. Whoever wants one that is not there makes it; everybody else waits for that one
//! request, and shares what comes of it. The request runs in a task of its own: nobody who gives up takes it along.
use std::{
    collections::HashMap,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use aws_lc_rs::digest::{SHA256, digest};
use futures_util::FutureExt as _;
use rand::Rng as _;
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{self, Instant},
};
use tokio_util::task::TaskTracker;

use super::{
    UpstreamError,
    rest::{Answer, Minted},
};
use crate::{admit::Principal, config::Secret, observe::fact::Fact};

/// Whoever waits for a secret is answered within this (fault matrix D1).
const PATIENCE: Duration = Duration::from_secs(3);
/// A failure is remembered for so long, by chance in between, so that a broken mint sees less than one try a second.
const REMEMBER: std::ops::Range<f64> = 1.0..5.0;
/// A wait that the service names is kept, and so much longer by chance, seconds, for many may have been told the same.
const AND_A_LITTLE: std::ops::Range<f64> = 0.0..0.25;
const LEAST_WAIT: Duration = Duration::from_secs(1);
/// It is kept up to this.
const LONGEST_WAIT: Duration = Duration::from_secs(600);
/// A secret that replaced a refused one and is refused so soon: it is not the secrets that are wrong.
const TOO_SOON: Duration = Duration::from_secs(10);
/// Secrets that are kept.
const KEPT: usize = 10_000;
/// And of one tenant.
const KEPT_OF_TENANT: usize = 1_000;
/// Secrets that are made at the same time, and of one tenant.
const FLIGHTS: usize = 64;
const FLIGHTS_OF_TENANT: usize = 16;

/// Which secret.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Wish {
    tenant: String,
    safety_id: Option<String>,
    /// Of a call that shares with nobody.
    call: Option<String>,
    /// Of those who are bound alike; empty: it stays with us.
    binding: String,
    /// Of the session and of the lifetime that is asked for.
    session: [u8; 32],
}

/// A secret that is good now.
#[derive(Debug, Clone)]
pub struct Lent {
    /// The secret.
    pub value: Secret,
    /// Counts the secrets of this cache.
    pub generation: u64,
    /// The service's answer to whoever asked first.
    pub answer: Answer,
    made_at: Instant,
    good_until: Instant,
    /// It was made since another one was refused.
    replaces: bool,
}

type Outcome = Result<Lent, Arc<UpstreamError>>;

#[derive(Debug, Default)]
struct Entry {
    current: Option<Lent>,
    flight: Option<watch::Receiver<Option<Outcome>>>,
    /// Until when nobody tries again, and why.
    failed: Option<(Instant, Arc<UpstreamError>)>,
    /// The last one was refused.
    refused: bool,
    used_at: Option<Instant>,
}

/// Makes secrets.
pub trait Mint: Send + Sync + 'static {
    /// Makes one.
    fn mint(&self, order: Order) -> impl Future<Output = Result<Minted, UpstreamError>> + Send;
}

/// All secrets of one account.
#[derive(Debug)]
pub struct Secrets<M> {
    mint: M,
    tasks: TaskTracker,
    entries: Mutex<Entries>,
}

#[derive(Debug, Default)]
struct Entries {
    by_wish: HashMap<Wish, Entry>,
    generations: u64,
    /// Secrets that are being made, by tenant.
    flights: HashMap<String, usize>,
    /// The account is asked for nothing before, whoever wants something: it said so.
    blocked: Option<(Instant, Arc<UpstreamError>)>,
}

/// The request for a secret.
#[derive(Debug, Clone)]
pub struct Order {
    wish: Wish,
    /// The request for it, as the service wants it.
    pub body: Value,
    /// Who wants it.
    pub who: Principal,
    /// A model that must be one that can be connected, or the secret would be good for nothing.
    pub connects: Option<String>,
}

impl Order {
    /// A secret for this `session` that lives `ttl_s` seconds; `call`: for nobody else.
    pub fn new(session: &Value, ttl_s: u64, who: &Principal, call: Option<&str>) -> Self {
        let body = json!({"expires_after": {"anchor": "created_at", "seconds": ttl_s}, "session": session});
        let mut hash = [0; 32];
        hash.copy_from_slice(digest(&SHA256, body.to_string().as_bytes()).as_ref());
        let wish = Wish {
            tenant: who.tenant_id().to_owned(),
            safety_id: who.safety_id().map(str::to_owned),
            call: call.filter(|_| !who.shares_secrets()).map(str::to_owned),
            binding: String::new(),
            session: hash,
        };
        Self { wish, body, who: who.clone(), connects: None }
    }

    /// One to be given away: only to people who are bound alike, and only if its model can be connected.
    pub fn to_give(
        session: &Value,
        ttl_s: u64,
        who: &Principal,
        agent: &str,
        model: Option<String>,
        alone: &str,
    ) -> Self {
        let order = Self::new(session, ttl_s, who, Some(alone));
        let wish = Wish { binding: format!("{agent} {}", who.binding()), ..order.wish };
        Self { wish, connects: model, ..order }
    }
}

impl<M: Mint> Secrets<M> {
    /// Nothing is there yet.
    pub fn new(mint: M) -> Arc<Self> {
        Arc::new(Self { mint, tasks: TaskTracker::new(), entries: Mutex::default() })
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A secret that has at least this share of its life before it, made if there is none.
    ///
    /// # Errors
    /// Why none can be had now, and when it will be tried again.
    pub async fn get(self: &Arc<Self>, order: &Order, share: f64) -> Result<Lent, UpstreamError> {
        let until = Instant::now() + PATIENCE;
        let began = Instant::now();
        loop {
            let mut flight = match self.look(order, share, began) {
                Look::Good(lent) => return Ok(lent),
                Look::Failed(error, until) => return self.what_is_left(order, began).ok_or_else(|| none(error, until)),
                Look::Wait(flight) => flight,
            };
            let landed = time::timeout_at(until, flight.wait_for(Option::is_some)).await;
            match landed {
                Err(_) => {
                    let slow = UpstreamError::Timeout { stage: "make a client secret", after: PATIENCE };
                    let none = || none(Arc::new(slow), Instant::now() + Duration::from_secs(1));
                    return self.what_is_left(order, began).ok_or_else(none);
                }
                Ok(Ok(outcome)) => match outcome.as_ref() {
                    Some(Ok(lent)) => {
                        Fact::SecretUsed { age: lent.made_at.elapsed(), waited: began.elapsed() }.record();
                        return Ok(lent.clone());
                    }
                    Some(Err(error)) => {
                        let error = error.clone();
                        drop(outcome);
                        let until =
                            self.entries().by_wish.get(&order.wish).and_then(|e| e.failed.as_ref().map(|f| f.0));
                        let none = || none(error, until.unwrap_or_else(Instant::now));
                        return self.what_is_left(order, began).ok_or_else(none);
                    }
                    None => {}
                },
                // The runtime is going away.
                Ok(Err(_)) => {
                    let gone = UpstreamError::Broken("the relay is going away".to_owned());
                    return Err(none(Arc::new(gone), Instant::now()));
                }
            }
        }
    }

    /// Whoever wants one that lives long takes what there is, if no other can be had.
    fn what_is_left(self: &Arc<Self>, order: &Order, began: Instant) -> Option<Lent> {
        match self.look(order, 0.0, began) {
            Look::Good(lent) => Some(lent),
            Look::Wait(_) | Look::Failed(..) => None,
        }
    }

    fn look(self: &Arc<Self>, order: &Order, share: f64, began: Instant) -> Look {
        let now = Instant::now();
        let mut entries = self.entries();
        let entries = &mut *entries;
        let blocked = entries.blocked.clone().filter(|(until, _)| *until > now);
        let own = entries.flights.get(&order.wish.tenant).copied().unwrap_or_default();
        let all: usize = entries.flights.values().sum();
        let crowded = || {
            let busy = UpstreamError::Timeout { stage: "make so many client secrets", after: PATIENCE };
            (now + Duration::from_secs(1), Arc::new(busy))
        };
        let blocked = blocked.or_else(|| (all >= FLIGHTS || own >= FLIGHTS_OF_TENANT).then(crowded));
        if !entries.by_wish.contains_key(&order.wish) {
            entries.make_room(now, &order.wish.tenant);
        }
        let entry = entries.by_wish.entry(order.wish.clone()).or_default();
        entry.used_at = Some(now);
        let failed = entry.failed.as_ref().filter(|(until, _)| *until > now).cloned().or(blocked);
        if let Some(lent) = entry.current.as_ref().filter(|lent| lent.is_good(now, share)) {
            let lent = lent.clone();
            let life = lent.good_until - lent.made_at;
            if now >= lent.made_at + life.mul_f64(0.8) && entry.flight.is_none() && failed.is_none() {
                self.take_off(entry, &mut entries.flights, order); // the next one is ready before this one ends
            }
            Fact::SecretUsed { age: now - lent.made_at, waited: now - began }.record();
            return Look::Good(lent);
        }
        if let Some(flight) = &entry.flight {
            return Look::Wait(flight.clone());
        }
        match failed {
            Some((until, error)) => Look::Failed(error, until),
            None => Look::Wait(self.take_off(entry, &mut entries.flights, order)),
        }
    }

    /// Begins to make one.
    fn take_off(
        self: &Arc<Self>,
        entry: &mut Entry,
        flights: &mut HashMap<String, usize>,
        order: &Order,
    ) -> watch::Receiver<Option<Outcome>> {
        let (land, flight) = watch::channel(None);
        entry.flight = Some(flight.clone());
        *flights.entry(order.wish.tenant.clone()).or_default() += 1;
        let (secrets, order, began) = (self.clone(), order.clone(), Instant::now());
        self.tasks.spawn(async move {
            // A bug in there is a failure like others, and shall not be waited for.
            let made = AssertUnwindSafe(secrets.mint.mint(order.clone())).catch_unwind().await;
            let made = made.unwrap_or_else(|_| Err(UpstreamError::Broken("an internal error".to_owned())));
            let outcome = secrets.landed(&order, made, began);
            // Perhaps nobody waits any more.
            let _ = land.send(Some(outcome));
        });
        flight
    }

    fn landed(&self, order: &Order, made: Result<Minted, UpstreamError>, began: Instant) -> Outcome {
        let wish = &order.wish;
        let now = Instant::now();
        let mut entries = self.entries();
        let entries = &mut *entries;
        entries.generations += 1;
        if let Some(own) = entries.flights.get_mut(&wish.tenant) {
            *own = own.saturating_sub(1);
        }
        entries.flights.retain(|_, own| *own > 0);
        let generation = entries.generations;
        let entry = entries.by_wish.entry(wish.clone()).or_default();
        entry.flight = None;
        match made {
            Ok(Minted { value, life, answer }) => {
                let replaces = std::mem::take(&mut entry.refused);
                // It echoes the session, and only those whom it is given see it.
                let answer = if order.wish.binding.is_empty() { Answer(Value::Null) } else { answer };
                let lent = Lent { value, generation, answer, made_at: now, good_until: began + life, replaces };
                (entry.current, entry.failed) = (Some(lent.clone()), None);
                Fact::SecretMade { after: began.elapsed() }.record();
                Ok(lent)
            }
            Err(error) => {
                let error = Arc::new(error);
                let until = now + wait(&error);
                entry.failed = Some((until, error.clone()));
                if error.verdict().code == "rate_limited" {
                    let later = entries.blocked.as_ref().map_or(until, |(known, _)| until.max(*known));
                    entries.blocked = Some((later, error.clone()));
                }
                Fact::SecretFailed { code: error.verdict().code.into() }.record();
                tracing::warn!(%error, "no client secret could be made");
                Err(error)
            }
        }
    }

    /// The service refused a secret that somebody came back with: it is given to nobody any more.
    pub fn refused_when_brought(&self, value: &Secret) {
        let mut entries = self.entries();
        for entry in entries.by_wish.values_mut() {
            if entry.current.take_if(|lent| lent.value.expose() == value.expose()).is_some() {
                entry.refused = true;
            }
        }
    }

    /// The service refused the secret of this generation. Only if it is still the one that is lent, it is forgotten: of
    /// all that were refused with it, one makes the next.
    pub fn refused(&self, order: &Order, generation: u64, error: &UpstreamError) {
        let now = Instant::now();
        let mut entries = self.entries();
        let Some(entry) = entries.by_wish.get_mut(&order.wish) else { return };
        let Some(lent) = entry.current.take_if(|lent| lent.generation == generation) else { return };
        entry.refused = true;
        if lent.replaces && now < lent.made_at + TOO_SOON {
            let refused = Arc::new(UpstreamError::Refused { code: "invalid_api_key".into(), close: Some(3000) });
            entry.failed = Some((now + wait(error), refused));
        }
    }
}

impl Lent {
    /// Still good, with this share of its life before it.
    fn is_good(&self, now: Instant, share: f64) -> bool {
        self.good_until > now && self.good_until - now >= (self.good_until - self.made_at).mul_f64(share)
    }

    /// Good for so long.
    pub fn left(&self) -> Duration {
        self.good_until.saturating_duration_since(Instant::now())
    }
}

impl Entries {
    /// Makes room for one more of this tenant: what is no longer good goes, and if that is not enough, what was not used for
    /// longest, of the tenant first.
    fn make_room(&mut self, now: Instant, tenant: &str) {
        let own = self.by_wish.keys().filter(|wish| wish.tenant == tenant).count();
        if own < KEPT_OF_TENANT && self.by_wish.len() < KEPT {
            return;
        }
        let good = |entry: &Entry| {
            let failed = entry.failed.as_ref().is_some_and(|(until, _)| *until > now);
            entry.flight.is_some() || failed || entry.current.as_ref().is_some_and(|lent| lent.good_until > now)
        };
        self.by_wish.retain(|_, entry| good(entry));
        let of_tenant = |wish: &Wish| wish.tenant == tenant;
        if self.by_wish.keys().filter(|wish| of_tenant(wish)).count() >= KEPT_OF_TENANT {
            self.drop_older_half(of_tenant);
        }
        if self.by_wish.len() >= KEPT {
            self.drop_older_half(|_| true);
        }
    }

    fn drop_older_half(&mut self, of: impl Fn(&Wish) -> bool) {
        let mut used: Vec<_> =
            self.by_wish.iter().filter(|(wish, _)| of(wish)).filter_map(|(_, entry)| entry.used_at).collect();
        let middle = used.len() / 2;
        if used.is_empty() {
            return;
        }
        let (_, median, _) = used.select_nth_unstable(middle);
        let median = *median;
        self.by_wish.retain(|wish, entry| !of(wish) || entry.flight.is_some() || entry.used_at > Some(median));
    }
}

enum Look {
    Good(Lent),
    Wait(watch::Receiver<Option<Outcome>>),
    Failed(Arc<UpstreamError>, Instant),
}

fn none(error: Arc<UpstreamError>, until: Instant) -> UpstreamError {
    UpstreamError::NoCredential { error, retry_after: until.saturating_duration_since(Instant::now()) }
}

/// For how long a failure is remembered: as long as the service says and a little more, or by chance.
fn wait(error: &UpstreamError) -> Duration {
    let mut dice = rand::rng();
    match error.verdict().retry_after {
        Some(told) => told.clamp(LEAST_WAIT, LONGEST_WAIT) + Duration::from_secs_f64(dice.random_range(AND_A_LITTLE)),
        None => Duration::from_secs_f64(dice.random_range(REMEMBER)),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    use axum::http::StatusCode;
    use futures_util::future::join_all;

    use super::*;
    use crate::upstream::rest::Answer;

    /// A mint that counts, and does what it is told.
    #[derive(Debug, Clone, Default)]
    struct Fake(Arc<Inner>);

    #[derive(Debug, Default)]
    struct Inner {
        tries: AtomicU64,
        down: AtomicBool,
        panics: AtomicBool,
        takes_ms: AtomicU64,
        retry_after_s: AtomicU64,
        times: Mutex<Vec<Instant>>,
    }

    const LIFE: Duration = Duration::from_secs(100);

    impl Mint for Fake {
        async fn mint(&self, _: Order) -> Result<Minted, UpstreamError> {
            let number = self.0.tries.fetch_add(1, Ordering::Relaxed) + 1;
            self.0.times.lock().unwrap().push(Instant::now());
            time::sleep(Duration::from_millis(self.0.takes_ms.load(Ordering::Relaxed))).await;
            assert!(!self.0.panics.swap(false, Ordering::Relaxed), "as it was told");
            if self.0.down.load(Ordering::Relaxed) {
                let retry_after = match self.0.retry_after_s.load(Ordering::Relaxed) {
                    0 => None,
                    seconds => Some(Duration::from_secs(seconds)),
                };
                let status =
                    if retry_after.is_some() { StatusCode::TOO_MANY_REQUESTS } else { StatusCode::BAD_GATEWAY };
                return Err(UpstreamError::Http { status, code: None, retry_after, param: None });
            }
            let value = Secret::new(format!("ek_{number}"));
            Ok(Minted { value, life: LIFE, answer: Answer(Value::Null) })
        }
    }

    impl Fake {
        fn tries(&self) -> u64 {
            self.0.tries.load(Ordering::Relaxed)
        }

        fn down(&self, down: bool) {
            self.0.down.store(down, Ordering::Relaxed);
        }
    }

    fn order(session: &str) -> Order {
        Order::new(&json!({"model": session}), 600, &Principal::operator(), None)
    }

    fn cache() -> (Fake, Arc<Secrets<Fake>>) {
        let fake = Fake::default();
        fake.0.takes_ms.store(50, Ordering::Relaxed);
        (fake.clone(), Secrets::new(fake))
    }

    async fn get(secrets: &Arc<Secrets<Fake>>) -> Result<Lent, UpstreamError> {
        secrets.get(&order("m"), 0.0).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_thousand_cold_calls_make_one_secret() {
        let (fake, secrets) = cache();
        let all = join_all((0..1_000).map(|_| get(&secrets))).await;
        assert!(all.iter().all(|lent| lent.as_ref().unwrap().value.expose() == "ek_1"));
        assert_eq!(fake.tries(), 1);
        for other in ["m2", "m3", "m2"] {
            secrets.get(&order(other), 0.0).await.unwrap();
        }
        assert_eq!(fake.tries(), 3, "another session is another secret");
    }

    #[tokio::test(start_paused = true)]
    async fn a_thousand_refusals_make_one_more() {
        let (fake, secrets) = cache();
        let first = get(&secrets).await.unwrap();
        let refusal = UpstreamError::closed(Some(3000), "invalid_request_error.invalid_api_key");
        let again = (0..1_000).map(|_| async {
            secrets.refused(&order("m"), first.generation, &refusal);
            get(&secrets).await.unwrap().generation
        });
        let generations = join_all(again).await;
        assert!(generations.iter().all(|generation| *generation == generations[0]));
        assert_eq!(fake.tries(), 2);
        // A late refusal of the old one does not hurt the new one.
        secrets.refused(&order("m"), first.generation, &refusal);
        assert_eq!((get(&secrets).await.unwrap().generation, fake.tries()), (generations[0], 2));
        // The new one is refused, too: nobody makes one after the other.
        secrets.refused(&order("m"), generations[0], &refusal);
        assert_eq!(get(&secrets).await.unwrap_err().verdict().code, "upstream_auth");
        assert_eq!(fake.tries(), 2);
        time::advance(Duration::from_secs(5)).await;
        assert!(get(&secrets).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn who_gives_up_takes_nobody_along() {
        let (fake, secrets) = cache();
        let mut leader = Box::pin(get(&secrets));
        assert!(time::timeout(Duration::from_millis(10), leader.as_mut()).await.is_err(), "it waits");
        let follower = get(&secrets);
        drop(leader);
        assert!(follower.await.is_ok());
        assert_eq!(fake.tries(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_bug_is_a_failure_like_others() {
        let (fake, secrets) = cache();
        fake.0.panics.store(true, Ordering::Relaxed);
        let all = join_all((0..10).map(|_| get(&secrets))).await;
        assert!(all.iter().all(Result::is_err));
        time::sleep(Duration::from_secs(5)).await;
        assert!(get(&secrets).await.is_ok());
        assert_eq!((fake.tries(), secrets.entries().flights.len()), (2, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_secret_that_came_back_refused_is_given_to_nobody_any_more() {
        let (fake, secrets) = cache();
        let lent = get(&secrets).await.unwrap();
        secrets.refused_when_brought(&Secret::new("ek_other"));
        assert_eq!(get(&secrets).await.unwrap().generation, lent.generation);
        secrets.refused_when_brought(&lent.value);
        assert_ne!(get(&secrets).await.unwrap().generation, lent.generation);
        assert_eq!(fake.tries(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_sees_no_more_than_one_try_a_second_and_good_secrets_are_used() {
        let (fake, secrets) = cache();
        let first = get(&secrets).await.unwrap();
        fake.down(true);
        let (began, mut failed) = (Instant::now(), 0);
        // 100 calls a second, from the time at which it would be made anew to long after its end.
        while began.elapsed() < LIFE + Duration::from_secs(60) {
            match get(&secrets).await {
                Ok(lent) => assert_eq!(lent.generation, first.generation),
                Err(error) => {
                    let verdict = error.verdict();
                    assert_eq!(
                        (verdict.code, verdict.close, verdict.transient),
                        ("credentials_unavailable", 4503, true)
                    );
                    assert!(began.elapsed() > LIFE - Duration::from_secs(1), "a good one was there");
                    failed += 1;
                }
            }
            time::sleep(Duration::from_millis(10)).await;
        }
        assert!(failed > 1_000, "{failed}");
        let times = fake.0.times.lock().unwrap().clone();
        assert!(times.windows(2).skip(1).all(|pair| pair[1] - pair[0] >= Duration::from_secs(1)), "{times:?}");
        assert!(times.len() > 10, "it is tried again and again");
        fake.down(false);
        time::sleep(Duration::from_secs(5)).await;
        assert!(get(&secrets).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_made_anew_before_it_ends() {
        let (fake, secrets) = cache();
        get(&secrets).await.unwrap();
        time::advance(LIFE.mul_f64(0.79)).await;
        get(&secrets).await.unwrap();
        time::sleep(Duration::from_secs(1)).await;
        assert_eq!(fake.tries(), 1);
        time::advance(LIFE.mul_f64(0.02)).await;
        for _ in 0..100 {
            assert_eq!(get(&secrets).await.unwrap().value.expose(), "ek_1", "nobody waits");
        }
        time::sleep(Duration::from_millis(60)).await;
        assert_eq!((get(&secrets).await.unwrap().value.expose(), fake.tries()), ("ek_2", 2));
        // One that must live longer is another matter.
        time::advance(LIFE / 2).await;
        let lent = secrets.get(&order("m"), 0.9).await.unwrap();
        assert_eq!(lent.value.expose(), "ek_3");
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_that_the_service_names_is_kept() {
        let (fake, secrets) = cache();
        fake.down(true);
        fake.0.retry_after_s.store(30, Ordering::Relaxed);
        for _ in 0..29 {
            let verdict = get(&secrets).await.unwrap_err().verdict();
            assert_eq!((verdict.code, verdict.close), ("rate_limited", 4429));
            time::sleep(Duration::from_secs(1)).await;
        }
        assert_eq!(fake.tries(), 1);
        time::sleep(Duration::from_secs(2)).await;
        fake.down(false);
        assert!(get(&secrets).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_counts_for_everybody_of_the_account_and_a_failure_for_its_own_kind() {
        let (fake, secrets) = cache();
        let good = secrets.get(&order("good"), 0.0).await.unwrap();
        fake.down(true);
        assert!(secrets.get(&order("m1"), 0.0).await.is_err());
        assert!(secrets.get(&order("m2"), 0.0).await.is_err());
        assert_eq!(fake.tries(), 3, "another session may be another matter");
        fake.0.retry_after_s.store(30, Ordering::Relaxed);
        assert!(secrets.get(&order("m3"), 0.0).await.is_err());
        for other in ["m4", "m5"] {
            let error = secrets.get(&order(other), 0.0).await.unwrap_err();
            assert_eq!(error.verdict().code, "rate_limited");
        }
        assert_eq!(fake.tries(), 4, "the account has said when");
        let lent = secrets.get(&order("good"), 1.0).await.unwrap();
        assert_eq!(lent.generation, good.generation, "what there is is better than nothing");
    }

    #[tokio::test(start_paused = true)]
    async fn only_so_many_are_made_at_once() {
        let (fake, secrets) = cache();
        let of = |tenant: usize, n: usize| {
            let order = order(&n.to_string());
            Order { wish: Wish { tenant: tenant.to_string(), ..order.wish }, ..order }
        };
        let one: Vec<Order> = (0..100).map(|n| of(0, n)).collect();
        let all = join_all(one.iter().map(|order| secrets.get(order, 0.0))).await;
        assert_eq!(all.iter().filter(|got| got.is_ok()).count(), FLIGHTS_OF_TENANT, "one tenant has its share");
        let many: Vec<Order> =
            (1..8).flat_map(|tenant| (0..16).map(move |n| (tenant, n))).map(|(t, n)| of(t, n)).collect();
        let all = join_all(many.iter().map(|order| secrets.get(order, 0.0))).await;
        assert_eq!(all.iter().filter(|got| got.is_ok()).count(), FLIGHTS, "and all of them together");
        assert_eq!(fake.tries(), (FLIGHTS_OF_TENANT + FLIGHTS) as u64);
        assert_eq!(secrets.entries().flights.len(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_is_answered_within_three_seconds() {
        let (fake, secrets) = cache();
        fake.0.takes_ms.store(8_000, Ordering::Relaxed);
        let began = Instant::now();
        let verdict = get(&secrets).await.unwrap_err().verdict();
        assert_eq!((verdict.code, began.elapsed()), ("credentials_unavailable", PATIENCE));
        time::sleep(Duration::from_secs(6)).await;
        assert!(get(&secrets).await.is_ok(), "what was begun was not for nothing");
        assert_eq!(fake.tries(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn the_cache_is_bounded() {
        let (fake, secrets) = cache();
        fake.0.takes_ms.store(0, Ordering::Relaxed);
        let of = |tenant: usize, n: usize| {
            let order = order(&n.to_string());
            Order { wish: Wish { tenant: tenant.to_string(), ..order.wish }, ..order }
        };
        for (tenant, n) in (0..12).flat_map(|tenant| (0..KEPT_OF_TENANT + 100).map(move |n| (tenant, n))) {
            secrets.get(&of(tenant, n), 0.0).await.unwrap();
            time::advance(Duration::from_micros(1)).await;
        }
        let kept = |of: &dyn Fn(&Wish) -> bool| secrets.entries().by_wish.keys().filter(|wish| of(wish)).count();
        let (all, of_one) = (kept(&|_| true), kept(&|wish| wish.tenant == "11"));
        assert!(all <= KEPT && of_one <= KEPT_OF_TENANT, "{all} {of_one}");
        let tries = fake.tries();
        secrets.get(&of(11, KEPT_OF_TENANT + 99), 0.0).await.unwrap();
        assert_eq!(fake.tries(), tries, "the newest are still there");
    }
}
