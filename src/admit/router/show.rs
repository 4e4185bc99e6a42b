//! The router as it is now, for people and metrics.
use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;

use super::{
    Figure, Health, Route, Router, Standing, Tier,
    feed::{Level, Shown},
    health::State,
};
use crate::config::RoutePolicy;

/// All of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct View {
    /// By name.
    pub tiers: BTreeMap<String, TierView>,
    /// What the service says of itself.
    pub incident: Shown,
}

/// One tier.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TierView {
    /// How one of its routes is chosen.
    pub policy: RoutePolicy,
    /// How soon 95 of 100 replies should be heard, ms.
    pub first_audio_ms: Option<u64>,
    /// What is taken in its place.
    pub degrade_to: Option<String>,
    /// Its routes; one that names no account stands once for each account that it was dialled at.
    pub routes: Vec<RouteView>,
    /// Its candidate.
    pub canary: Option<CanaryView>,
}

/// One route.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RouteView {
    /// The account and the model.
    #[serde(flatten)]
    pub route: Route,
    /// Its part against the others.
    pub weight: u32,
    /// `closed`, `open`, or `half_open`: one may try it.
    pub state: &'static str,
    /// Failures in a row.
    pub failures: u32,
    /// It is left alone for so long, for the service has named a wait or refused it, ms.
    pub held_ms: u64,
    /// Limits that were hit lately; each halves its weight, and counts half after 10 s.
    pub penalty: f64,
    /// What 95 of 100 sessions were up within, ms; none: too few are known.
    pub connect_p95_ms: Option<u64>,
    /// What 95 of 100 replies were heard within, ms; none: too few are known.
    pub first_audio_p95_ms: Option<u64>,
}

/// A candidate.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CanaryView {
    /// Where it goes.
    #[serde(flatten)]
    pub route: Route,
    /// How it stands.
    pub standing: Standing,
    /// The share of calls that it gets, per cent.
    pub share_percent: f64,
    /// Sessions on it.
    pub sessions: u64,
    /// Sessions on the tier's own routes.
    pub control_sessions: u64,
    /// What it is judged by; once it was judged, what that was.
    pub figures: Vec<Figure>,
}

impl Router {
    /// As it is at `now`.
    pub fn view(&mut self, now: Duration) -> View {
        let now = self.clock.at(now);
        let tiers = self.tiers.iter().map(|tier| (tier.name.clone(), self.tier_view(now, tier))).collect();
        View { tiers, incident: self.feed.shown(now) }
    }

    fn tier_view(&self, now: Duration, tier: &Tier) -> TierView {
        let routes = tier.routes.iter().flat_map(|config| {
            let of = |route: &Route, health| route_view(now, route, config.weight, health);
            // Accounts that the tier names are not those of tenants.
            let named = |route: &Route| {
                tier.routes.iter().any(|one| one.upstream == route.upstream && one.model == route.model)
            };
            let known = self.routes.iter().filter(|(route, _)| {
                let tenants = config.upstream.is_none() && (route.upstream.is_none() || !named(route));
                route.model == config.model && (route.upstream == config.upstream || tenants)
            });
            let known: Vec<RouteView> = known.map(|(route, health)| of(route, Some(health))).collect();
            let fresh = || of(&Route { upstream: config.upstream.clone(), model: config.model.clone() }, None);
            if known.is_empty() { vec![fresh()] } else { known }
        });
        let canary = tier.canary.as_ref().map(|canary| {
            let (sessions, control_sessions) = canary.sessions();
            CanaryView {
                route: Route { upstream: canary.config.upstream.clone(), model: canary.config.model.clone() },
                standing: canary.standing(now, self.feed.level(now) > Level::None),
                share_percent: canary.share() * 100.0,
                sessions,
                control_sessions,
                figures: canary.figures(now),
            }
        });
        TierView {
            policy: tier.policy,
            first_audio_ms: tier.goal.map(ms),
            degrade_to: tier.degrade_to.and_then(|to| self.tier(to)).map(|to| to.name.clone()),
            routes: routes.collect(),
            canary,
        }
    }
}

fn route_view(now: Duration, route: &Route, weight: u32, health: Option<&Health>) -> RouteView {
    let state = match health.map(|health| health.state(now)) {
        None | Some(State::Closed) => "closed",
        Some(State::HalfOpen) => "half_open",
        Some(State::Open(_)) => "open",
    };
    RouteView {
        route: route.clone(),
        weight,
        state,
        failures: health.map_or(0, Health::failures),
        held_ms: health.and_then(|health| health.held(now)).map_or(0, |(wait, _)| ms(wait)),
        penalty: health.map_or(0.0, |health| (health.penalty(now) * 100.0).round() / 100.0),
        connect_p95_ms: health.and_then(|health| health.connect_p95(now)).map(ms),
        first_audio_p95_ms: health.and_then(|health| health.first_audio_p95(now)).map(ms),
    }
}

/// As the wire has it.
pub(super) fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
