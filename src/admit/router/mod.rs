//! Which account and model a call is sent to: tiers, names that stand for several routes (`[tiers]`).
//!
//! Whoever opens a session asks [`Router::choose`] before, and tells it what came of it: a session, a failure, a limit, first audio, a
//! reply. It stands before the wiring that dials ([`super::routes`]), and decides only: the time and chance are passed in. What it
//! knows is in memory, and begins anew with each process.
//!
//! **Words.** A `route` is an account and a model. A `tier` is a name for some of them. A `canary` is a route that is tried on a share
//! of a tier's calls, beside the `control`, the tier's own routes. To `degrade` is to take another tier in the one's place. To `hedge` is
//! to dial a second route while the first takes long; what comes first is used, and never are two replies asked for.
//!
//! | file | what it is |
//! |---|---|
//! | [`pick`] | the choice: who may be taken, in which order, and why |
//! | [`tell`] | what came of it |
//! | [`health`] | one route: its breakers, its figures, its limits |
//! | [`window`] | the newest figures of one kind |
//! | [`sticky`] | who went where before |
//! | [`canary`] | a candidate, and what is concluded of it |
//! | [`feed`] | what a service says of itself |
//! | [`reason`] | why this one, and why none |
//! | [`show`] | all of it, to be looked at |
use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    time::Duration,
};

use aws_lc_rs::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};

mod canary;
pub mod feed;
mod health;
mod pick;
mod reason;
mod show;
mod sticky;
mod tell;
#[cfg(test)]
mod tests;
mod window;

use self::{canary::Canary, feed::Feed, health::Health, sticky::Sticky};
pub use self::{
    canary::{Criterion, Figure, Finding, Spent, Standing},
    health::Stage,
    reason::{By, Cause, Passed, Reason, Refusal, Why, WhyNot},
    show::{CanaryView, RouteView, TierView, View},
};
use super::price::Usd;
use crate::{
    client::wire::Usage,
    config::{IncidentsConfig, RouteConfig, RoutePolicy, TierConfig},
};

/// Routes that are known at once; more than any configuration has.
const ROUTES: usize = 1_024;
/// A first dial earns a tenth of a hedge; so much can be saved up.
const SAVINGS: u32 = 10;
const TENTHS: u32 = 10;
/// Occurrences that nobody has asked for yet.
const NEWS: usize = 64;
/// A clock that goes back by less is two readings that have overtaken each other.
const OVERTAKEN: Duration = Duration::from_secs(1);

/// An account and a model.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Route {
    /// One of `[upstreams]`; none: `[upstream]`.
    pub upstream: Option<String>,
    /// The service's name of the model.
    pub model: String,
}

impl fmt::Display for Route {
    /// As the ledger has it: `default/gpt-realtime-2.1`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.upstream.as_deref().unwrap_or("default"), self.model)
    }
}

/// A tier of this router.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TierId(usize);

/// What is left of an account's quota for a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Headroom {
    /// Enough.
    Plenty,
    /// A few replies more would have to wait.
    Scarce,
    /// Replies wait.
    Nothing,
}

/// Somebody who wants a session.
#[derive(Clone, Copy)]
pub struct Wish<'a> {
    /// What was asked for.
    pub tier: TierId,
    /// Who pays.
    pub tenant: &'a str,
    /// The tenant's own account, for routes that name none; none: `[upstream]`.
    pub account: Option<&'a str>,
    /// The end user; none: nobody knows, and the next call may go elsewhere.
    pub user: Option<&'a str>,
    /// The call: it decides whether it is one of a canary's.
    pub call: &'a str,
    /// The route that the call has now, when it needs another session.
    pub current: Option<&'a Route>,
    /// Routes that were dialled for this session already, or are being dialled.
    pub tried: &'a [Route],
    /// Whether it may use a model or a tier of this name; whoever may use the tier that it asked for may use all its routes, and what it
    /// degrades to.
    pub may_use: &'a dyn Fn(&str) -> bool,
    /// What is left for a route.
    pub quota: &'a dyn Fn(&Route) -> Headroom,
    /// What a typical reply costs there; none: not known.
    pub price: &'a dyn Fn(&Route) -> Option<Usd>,
    /// Its budget is spent: degrade, where that can be done.
    pub spent: bool,
}

impl fmt::Debug for Wish<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tier, tenant, call, tried, .. } = self;
        f.debug_struct("Wish")
            .field("tier", tier)
            .field("tenant", tenant)
            .field("call", call)
            .field("tried", tried)
            .finish()
    }
}

/// A route that a session was given; facts are told of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    /// The tier whose route it is: the one that was asked for, or what that has degraded to.
    pub tier: String,
    /// Where to dial.
    pub route: Route,
    /// As the tier's candidate.
    pub canary: bool,
    /// Whose next call shall go there, too, if it gets a session.
    sticks: Option<u64>,
}

impl Taken {
    /// A session that comes up too late to be used: nobody's next call follows it.
    #[must_use]
    pub fn beaten(self) -> Self {
        Self { sticks: None, ..self }
    }
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// Where to dial.
    pub taken: Taken,
    /// Why another tier was taken than the one asked for; none: it was not.
    pub degraded: Option<Cause>,
    /// Why this route.
    pub reason: Reason,
    /// When no session is up after so long, [`Router::hedge`] may name a second route to dial beside; none: there is no other.
    pub hedge_after: Option<Duration>,
    /// There are others that might be dialled, should this one fail.
    pub others: bool,
}

/// An occurrence worth a line in a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// A route has failed so often in a row that it is left alone.
    Opened(Route),
    /// It works again.
    Closed(Route),
    /// A canary was judged.
    Judged {
        /// The tier.
        tier: String,
        /// Promoted, or rolled back.
        standing: Standing,
        /// What it was rolled back for.
        by: Option<Criterion>,
    },
}

/// What a reply is taken to use, where prices of routes are compared: a minute into a call, and mostly from the cache.
pub fn typical_reply() -> Usage {
    Usage {
        total_tokens: 1_200,
        input_tokens: 1_000,
        output_tokens: 200,
        input_text_tokens: 400,
        input_audio_tokens: 600,
        cached_tokens: 700,
        cached_text_tokens: 300,
        cached_audio_tokens: 400,
        output_text_tokens: 50,
        output_audio_tokens: 150,
        ..Usage::default()
    }
}

/// One tier.
#[derive(Debug)]
struct Tier {
    name: String,
    policy: RoutePolicy,
    /// How soon 95 of 100 replies should be heard.
    goal: Option<Duration>,
    degrade_to: Option<TierId>,
    sticky: bool,
    routes: Vec<RouteConfig>,
    canary: Option<Canary>,
}

/// All tiers, and what is known of their routes.
#[derive(Debug)]
pub struct Router {
    tiers: Vec<Tier>,
    names: BTreeMap<String, TierId>,
    routes: BTreeMap<Route, Health>,
    sticky: Sticky,
    feed: Feed,
    /// Tenths of hedges that were spent of the savings.
    hedged: u32,
    clock: Clock,
    news: VecDeque<News>,
}

impl Router {
    /// Nothing is known yet. A configuration that was not checked does no harm.
    pub fn new(tiers: &BTreeMap<String, TierConfig>, incidents: &IncidentsConfig, now: Duration) -> Self {
        let names: BTreeMap<String, TierId> =
            tiers.keys().enumerate().map(|(at, name)| (name.clone(), TierId(at))).collect();
        let tier = |(name, config): (&String, &TierConfig)| Tier {
            name: name.clone(),
            policy: config.policy,
            goal: config.first_audio_ms.map(Duration::from_millis),
            degrade_to: config.degrade_to.as_ref().and_then(|to| names.get(to)).copied(),
            sticky: config.sticky,
            routes: config.routes.clone(),
            canary: config.canary.clone().map(|canary| Canary::new(canary, Duration::ZERO)),
        };
        Self {
            tiers: tiers.iter().map(tier).collect(),
            routes: BTreeMap::new(),
            sticky: Sticky::default(),
            feed: Feed::new(incidents.url.as_ref().map(|_| Duration::from_secs(incidents.poll_s))),
            hedged: 0,
            clock: Clock { read: now, passed: Duration::ZERO },
            news: VecDeque::new(),
            names,
        }
    }

    /// The tier of this name; `None`: it is a model's, and none of ours.
    pub fn resolve(&self, name: &str) -> Option<TierId> {
        self.names.get(name).copied()
    }

    /// Whether there is another tier for calls of this one that may spend no more.
    pub fn degrades(&self, id: TierId) -> bool {
        self.tier(id).is_some_and(|tier| tier.degrade_to.is_some())
    }

    /// All routes that a call of this tier may come to, candidates and what it degrades to among them. `account`: as in [`Wish`].
    pub fn reach(&self, id: TierId, account: Option<&str>) -> Vec<Route> {
        let (mut all, mut next) = (Vec::new(), self.tier(id));
        // A configuration that was not checked may lead back.
        for _ in 0..self.tiers.len() {
            let Some(tier) = next else { break };
            let own = tier.routes.iter().map(|route| (&route.upstream, &route.model));
            let canary = tier.canary.iter().map(|canary| (&canary.config.upstream, &canary.config.model));
            all.extend(own.chain(canary).map(|(upstream, model)| Route {
                upstream: upstream.clone().or_else(|| account.map(str::to_owned)),
                model: model.clone(),
            }));
            next = tier.degrade_to.and_then(|to| self.tier(to));
        }
        all
    }

    /// What has happened since it was asked last.
    pub fn news(&mut self) -> Vec<News> {
        self.news.drain(..).collect()
    }

    fn happened(&mut self, news: News) {
        if self.news.len() < NEWS {
            self.news.push_back(news);
        }
    }

    fn tier(&self, id: TierId) -> Option<&Tier> {
        self.tiers.get(id.0)
    }

    /// What is known of a route, from now on.
    fn health(&mut self, now: Duration, route: &Route) -> &mut Health {
        if self.routes.len() >= ROUTES
            && !self.routes.contains_key(route)
            && let Some(oldest) = self.routes.iter().min_by_key(|(_, health)| health.touched).map(|(oldest, _)| oldest)
        {
            let oldest = oldest.clone();
            self.routes.remove(&oldest);
        }
        let health = self.routes.entry(route.clone()).or_insert_with(|| Health::new(now));
        health.touched = now;
        health
    }
}

/// Time as it has passed for us: a clock that goes back stands still, and then goes on from where it is.
#[derive(Debug)]
struct Clock {
    read: Duration,
    passed: Duration,
}

impl Clock {
    fn at(&mut self, now: Duration) -> Duration {
        if now >= self.read {
            self.passed += now - self.read;
            self.read = now;
        } else if self.read - now > OVERTAKEN {
            self.read = now;
        }
        self.passed
    }
}

/// The same for the same words, in every process.
fn hash(words: &[&str]) -> u64 {
    let joined: Vec<u8> = words.iter().flat_map(|word| word.bytes().chain([0])).collect();
    digest(&SHA256, &joined).as_ref().iter().take(8).fold(0, |all, byte| all << 8 | u64::from(*byte))
}

/// A number from 0 to 1, always the same for these words.
fn draw(words: &[&str]) -> f64 {
    // 53 bits are what a float holds.
    (hash(words) >> 11) as f64 / (1_u64 << 53) as f64
}
