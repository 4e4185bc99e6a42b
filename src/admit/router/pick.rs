//! The choice: of those that may be taken the best, and of equals the one that the tier's policy names.
//!
//! A route is passed over as long as another one is better in this order: well; well, but only a spare (weight 0); little quota left;
//! open, and due to be tried by one; without quota, or asked to be left alone. Within a tier slow ones and those that have hit limits get
//! less. Only what is open, was tried or is not allowed is never taken.
use std::time::Duration;

use rand::Rng;

use super::{
    By, Cause, Choice, Headroom, Passed, Reason, Refusal, Route, Router, SAVINGS, TENTHS, Taken, TierId, Why, WhyNot,
    Wish, draw, feed::Level, hash, health::State, show::ms,
};
use crate::{
    admit::price::Usd,
    config::{RouteConfig, RoutePolicy},
};

/// A route that is slower than it should be keeps so much of its weight, so that it can show that it is quick again.
const LEAST_PART: f64 = 0.05;
/// Of calls of a tier whose policy is `fastest`, so many go by weight, so that all routes have figures.
const EXPLORING: f64 = 0.1;
/// From so many limits on a route comes behind others.
const LIMITED_LATELY: f64 = 0.5;
/// A second route is dialled after so long at the soonest, at the latest, and where nothing is known.
const HEDGE_LEAST: Duration = Duration::from_millis(300);
const HEDGE_MOST: Duration = Duration::from_secs(3);
const HEDGE_UNKNOWN: Duration = Duration::from_secs(1);

/// How good a route is, the best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Well,
    Spare,
    Scarce,
    ScarceSpare,
    Probe,
    Short,
}

/// Ranks that are looked for in all tiers before the next ones are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Group {
    Well,
    Scarce,
    Probe,
    Short,
}

impl Group {
    const ALL: [Self; 4] = [Self::Well, Self::Scarce, Self::Probe, Self::Short];

    fn of(rank: Rank) -> Self {
        match rank {
            Rank::Well | Rank::Spare => Self::Well,
            Rank::Scarce | Rank::ScarceSpare => Self::Scarce,
            Rank::Probe => Self::Probe,
            Rank::Short => Self::Short,
        }
    }
}

/// A route that can be taken.
#[derive(Debug, Clone)]
struct Candidate {
    route: Route,
    /// Where it stands in the file.
    at: usize,
    weight: u32,
    rank: Rank,
    /// Slow, or limited lately: behind the others of its rank.
    behind: bool,
    /// What is left of its weight.
    part: f64,
    price: Option<Usd>,
    p95: Option<Duration>,
    /// How long it wants to be left alone.
    wait: Duration,
}

/// A tier that may be taken.
#[derive(Debug)]
struct Field {
    tier: TierId,
    name: String,
    policy: RoutePolicy,
    cause: Option<Cause>,
    candidates: Vec<Candidate>,
    /// The candidate of its canary, if the call is one of those that try it.
    canary: Option<Candidate>,
    passed: Vec<Passed>,
}

impl Router {
    /// Which route to dial now. Of those who ask while a route is open, one a second is given it.
    ///
    /// # Errors
    /// When there is none: all are open, were tried, or are not allowed.
    pub fn choose(&mut self, now: Duration, wish: &Wish<'_>, rng: &mut impl Rng) -> Result<Choice, Refusal> {
        let now = self.clock.at(now);
        if wish.tried.is_empty() {
            self.hedged = self.hedged.saturating_sub(1);
        }
        let (pressed, fields) = self.fields(now, wish);
        let all = || Group::ALL.into_iter().flat_map(|group| (0..fields.len()).map(move |at| (group, at)));
        // What the tier degrades to is taken even with little quota left, before the tier itself is.
        let degraded = if pressed { fields.len() - 1 } else { 0 };
        let first = (0..degraded).flat_map(|at| [(Group::Well, at), (Group::Scarce, at)]);
        for (group, at) in first.chain(all()) {
            let Some(field) = fields.get(at) else { continue };
            if let Some((candidate, by)) = self.pick(wish, field, group, rng) {
                // What was asked for comes first: whoever would get less finds out whether it is back.
                let due = fields.iter().take(at).find_map(|field| Some((field, due(field)?, By::Probe)));
                let (field, candidate, by) = due.unwrap_or((field, candidate, by));
                let passed = fields.iter().take(at + 1).flat_map(|field| field.passed.iter().cloned());
                let others = fields.iter().flat_map(|field| &field.candidates).any(|one| one.route != candidate.route);
                let well = |one: &Candidate| Group::of(one.rank) == Group::Well && one.route != candidate.route;
                let well = fields.iter().flat_map(|field| &field.candidates).any(well);
                let choice = self.take(now, wish, field, candidate, by, passed.collect());
                let hedge_after = choice.hedge_after.or((by == By::Probe && well).then_some(HEDGE_LEAST));
                return Ok(Choice { others, hedge_after, ..choice });
            }
        }
        Err(refusal(fields.into_iter().flat_map(|field| field.passed).collect()))
    }

    /// A second route to dial while the first takes long: a route that is well, as long as hedges are a tenth of dials. What was dialled
    /// already stands in [`Wish::tried`].
    pub fn hedge(&mut self, now: Duration, wish: &Wish<'_>, rng: &mut impl Rng) -> Option<Choice> {
        let now = self.clock.at(now);
        if self.hedged + TENTHS > SAVINGS * TENTHS {
            return None;
        }
        let (_, fields) = self.fields(now, wish);
        let (field, best) = fields.iter().find_map(|field| Some((field, best(&field.candidates, Group::Well)?)))?;
        let (candidate, by) = by_policy(field.policy, &best, rng)?;
        self.hedged += TENTHS;
        Some(self.take(now, wish, field, candidate, by, field.passed.clone()))
    }

    /// The tiers that may be taken, in order, and whether what was asked for comes last.
    fn fields(&self, now: Duration, wish: &Wish<'_>) -> (bool, Vec<Field>) {
        let incident = self.feed.level(now) >= Level::Major;
        let pressed = match (wish.spent, incident) {
            (true, _) => Some(Cause::Budget),
            (false, true) => Some(Cause::Incident),
            (false, false) => None,
        };
        let asked = self.field(now, wish, wish.tier, None);
        // What keeps one from a tier that nothing else speaks against.
        let short =
            |field: &Field| field.candidates.iter().any(|one| one.rank > Rank::Spare && one.rank != Rank::Probe);
        let cause =
            pressed.unwrap_or(if asked.as_ref().is_some_and(short) { Cause::Quota } else { Cause::Unavailable });
        let mut fields = Vec::new();
        let mut next = self.tier(wish.tier).and_then(|tier| tier.degrade_to);
        // A configuration that was not checked may lead back.
        while let Some(tier) = next.filter(|_| fields.len() < self.tiers.len()) {
            fields.extend(self.field(now, wish, tier, Some(cause)));
            next = self.tier(tier).and_then(|tier| tier.degrade_to);
        }
        let degrades = pressed.is_some() && !fields.is_empty() && asked.is_some();
        let place = if degrades { fields.len() } else { 0 };
        fields.splice(place..place, asked);
        (degrades, fields)
    }

    fn field(&self, now: Duration, wish: &Wish<'_>, id: TierId, cause: Option<Cause>) -> Option<Field> {
        let (tier, asked) = (self.tier(id)?, self.tier(wish.tier)?);
        let all = (wish.may_use)(&asked.name) || (wish.may_use)(&tier.name);
        let mut field = Field {
            tier: id,
            name: tier.name.clone(),
            policy: tier.policy,
            cause,
            candidates: Vec::new(),
            canary: None,
            passed: Vec::new(),
        };
        let resolve = |upstream: &Option<String>, model: &String| Route {
            upstream: upstream.clone().or_else(|| wish.account.map(str::to_owned)),
            model: model.clone(),
        };
        let mut own: Vec<Route> = Vec::new();
        for (at, config) in tier.routes.iter().enumerate() {
            let route = resolve(&config.upstream, &config.model);
            // The tenant's own account may be one that another route names.
            if own.contains(&route) {
                continue;
            }
            own.push(route.clone());
            let (candidate, why) = self.candidate(now, wish, all, tier.goal, (at, config), route.clone());
            field.candidates.extend(candidate);
            field.passed.extend(why.map(|why| Passed { route, why }));
        }
        if let Some(canary) = &tier.canary {
            let config =
                RouteConfig { upstream: canary.config.upstream.clone(), model: canary.config.model.clone(), weight: 1 };
            let route = resolve(&config.upstream, &config.model);
            let stays = wish.current.is_none_or(|current| *current == route);
            if stays && !own.contains(&route) && draw(&["canary", &tier.name, wish.call]) < canary.share() {
                let (candidate, why) = self.candidate(now, wish, all, None, (0, &config), route.clone());
                field.canary = candidate.filter(|one| matches!(one.rank, Rank::Well | Rank::Probe));
                field.passed.extend(why.map(|why| Passed { route, why }));
            }
        }
        Some(field)
    }

    /// A route, unless it cannot be taken; and what speaks against it.
    fn candidate(
        &self,
        now: Duration,
        wish: &Wish<'_>,
        all_allowed: bool,
        goal: Option<Duration>,
        (at, config): (usize, &RouteConfig),
        route: Route,
    ) -> (Option<Candidate>, Option<WhyNot>) {
        if !all_allowed && !(wish.may_use)(&route.model) {
            return (None, Some(WhyNot::Forbidden));
        }
        if wish.tried.contains(&route) {
            return (None, Some(WhyNot::Tried));
        }
        let health = self.routes.get(&route);
        let state = health.map_or(State::Closed, |health| health.state(now));
        if let State::Open(next) = state {
            return (None, Some(WhyNot::Open { next_ms: ms(next) }));
        }
        let held = health.and_then(|health| health.held(now));
        let penalty = health.map_or(0.0, |health| health.penalty(now));
        let p95 = health.and_then(|health| health.first_audio_p95(now));
        let slow = goal.zip(p95).filter(|(goal, p95)| p95 > goal);
        let spare = config.weight == 0;
        let (rank, why) = match ((wish.quota)(&route), held) {
            (_, Some((wait, true))) => (Rank::Short, Some(WhyNot::Refused { wait_ms: ms(wait) })),
            (_, Some((wait, false))) => (Rank::Short, Some(WhyNot::Limited { wait_ms: ms(wait) })),
            _ if state == State::HalfOpen => (Rank::Probe, Some(WhyNot::HalfOpen)),
            (Headroom::Nothing, None) => (Rank::Short, Some(WhyNot::NoQuota)),
            (Headroom::Scarce, None) if spare => (Rank::ScarceSpare, Some(WhyNot::ScarceQuota)),
            (Headroom::Scarce, None) => (Rank::Scarce, Some(WhyNot::ScarceQuota)),
            (Headroom::Plenty, None) if spare => (Rank::Spare, Some(WhyNot::Spare)),
            (Headroom::Plenty, None) => (Rank::Well, None),
        };
        let limited_lately = penalty >= LIMITED_LATELY;
        let why = why.or_else(|| slow.map(|(_, p95)| WhyNot::Slow { p95_ms: ms(p95) }));
        let why = why.or(limited_lately.then_some(WhyNot::LimitedLately));
        let speed = slow.map_or(1.0, |(goal, p95)| (goal.as_secs_f64() / p95.as_secs_f64()).powi(2).max(LEAST_PART));
        let candidate = Candidate {
            at,
            weight: config.weight,
            rank,
            behind: slow.is_some() || limited_lately,
            part: f64::from(config.weight.max(1)) * speed * 0.5_f64.powf(penalty),
            price: (wish.price)(&route),
            p95,
            wait: held.map_or(Duration::ZERO, |(wait, _)| wait),
            route,
        };
        (Some(candidate), why)
    }

    /// The one to take of these ranks in this tier.
    fn pick<'f>(
        &self,
        wish: &Wish<'_>,
        field: &'f Field,
        group: Group,
        rng: &mut impl Rng,
    ) -> Option<(&'f Candidate, By)> {
        if let Some(canary) = field.canary.as_ref().filter(|_| group == Group::Well) {
            return Some((canary, if canary.rank == Rank::Probe { By::Probe } else { By::Canary }));
        }
        let best = best(&field.candidates, group)?;
        match group {
            Group::Probe => best.first().map(|one| (*one, By::Probe)),
            Group::Short => best.into_iter().min_by_key(|one| one.wait).map(|one| (one, By::LastResort)),
            Group::Well | Group::Scarce => {
                let kept =
                    |route: Option<&Route>| best.iter().find(|one| !one.behind && Some(&one.route) == route).copied();
                if let Some(current) = kept(wish.current) {
                    return Some((current, By::Current));
                }
                let before = self.sticky_key(wish, field).and_then(|key| self.sticky.get(key));
                if let Some(sticky) = kept(before) {
                    return Some((sticky, By::Sticky));
                }
                let (picked, by) = by_policy(field.policy, &best, rng)?;
                let due = field.candidates.iter().filter(|one| one.rank == Rank::Probe && one.weight > 0);
                let probe = due.into_iter().find(|one| comes_before(field.policy, one, picked));
                Some(probe.map_or((picked, by), |probe| (probe, By::Probe)))
            }
        }
    }

    fn sticky_key(&self, wish: &Wish<'_>, field: &Field) -> Option<u64> {
        let sticky = self.tier(field.tier).is_some_and(|tier| tier.sticky);
        wish.user.filter(|_| sticky).map(|user| hash(&["sticky", &field.name, wish.tenant, user]))
    }

    fn take(
        &mut self,
        now: Duration,
        wish: &Wish<'_>,
        field: &Field,
        candidate: &Candidate,
        by: By,
        mut passed: Vec<Passed>,
    ) -> Choice {
        let route = candidate.route.clone();
        let canary = field.canary.as_ref().is_some_and(|one| one.route == route);
        let sticks = self.sticky_key(wish, field).filter(|_| !canary);
        let health = self.health(now, &route);
        health.tries(now);
        let after = match by {
            By::Probe => HEDGE_LEAST,
            _ => health.connect_p95(now).unwrap_or(HEDGE_UNKNOWN).clamp(HEDGE_LEAST, HEDGE_MOST),
        };
        let other = field.candidates.iter().any(|one| Group::of(one.rank) == Group::Well && one.route != route);
        passed.retain(|passed| passed.route != route);
        Choice {
            taken: Taken { tier: field.name.clone(), route, canary, sticks },
            degraded: field.cause,
            reason: Reason { by, passed },
            hedge_after: other.then_some(after),
            others: other,
        }
    }
}

/// A route that has failed, and is to be tried now.
fn due(field: &Field) -> Option<&Candidate> {
    field.candidates.iter().find(|one| one.rank == Rank::Probe && one.weight > 0)
}

/// Those of the best rank of a group, in the order of the file.
fn best(candidates: &[Candidate], group: Group) -> Option<Vec<&Candidate>> {
    let of_group = || candidates.iter().filter(|one| Group::of(one.rank) == group);
    let best = of_group().map(|one| one.rank).min()?;
    Some(of_group().filter(|one| one.rank == best).collect())
}

fn by_policy<'f>(policy: RoutePolicy, best: &[&'f Candidate], rng: &mut impl Rng) -> Option<(&'f Candidate, By)> {
    let all = best.iter().copied();
    match policy {
        RoutePolicy::Weighted => by_chance(best, rng).map(|one| (one, By::Weight)),
        RoutePolicy::Ordered => all.min_by_key(|one| (one.behind, one.at)).map(|one| (one, By::Order)),
        RoutePolicy::Cheapest => all.min_by_key(|one| (one.behind, price(one), one.at)).map(|one| (one, By::Price)),
        RoutePolicy::Fastest => {
            let known = all.filter(|one| one.p95.is_some()).min_by_key(|one| (one.behind, one.p95, one.at));
            match known {
                None => by_chance(best, rng).map(|one| (one, By::Weight)),
                Some(_) if rng.random_bool(EXPLORING) => by_chance(best, rng).map(|one| (one, By::Exploring)),
                Some(known) => Some((known, By::Speed)),
            }
        }
    }
}

/// What is not known is dearest.
fn price(one: &Candidate) -> (bool, Option<Usd>) {
    (one.price.is_none(), one.price)
}

fn by_chance<'f>(best: &[&'f Candidate], rng: &mut impl Rng) -> Option<&'f Candidate> {
    let mut left = rng.random::<f64>() * best.iter().map(|one| one.part).sum::<f64>();
    let found = best.iter().find(|one| {
        left -= one.part;
        left < 0.0
    });
    found.or(best.last()).copied()
}

/// Whether the policy would take the one rather than the other, were both well.
fn comes_before(policy: RoutePolicy, one: &Candidate, other: &Candidate) -> bool {
    match policy {
        RoutePolicy::Weighted | RoutePolicy::Fastest => true,
        RoutePolicy::Ordered => one.at < other.at,
        RoutePolicy::Cheapest => (price(one), one.at) < (price(other), other.at),
    }
}

fn refusal(passed: Vec<Passed>) -> Refusal {
    let open = passed.iter().filter_map(|passed| match passed.why {
        WhyNot::Open { next_ms } => Some(Duration::from_millis(next_ms)),
        _ => None,
    });
    let retry_after = open.min();
    let why = match retry_after {
        Some(_) => Why::Open,
        None if passed.iter().any(|passed| passed.why == WhyNot::Tried) => Why::Tried,
        None => Why::Forbidden,
    };
    Refusal { why, retry_after, passed }
}
