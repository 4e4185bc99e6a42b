//! A tenant's own part: what it may ask for in a minute, and how much at once. What the account's limits allow is another matter.
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::{
    admit::{
        Principal,
        governor::{Class, Dimension, Reason},
        quota::{Answer, Grant, Quota, Turn},
    },
    config::LimitsConfig,
};

/// How much of a minute's worth may be asked for at once.
const BURST: Duration = Duration::from_secs(10);
/// Its limits are not by model.
const ALL: &str = "*";

/// What is left of a limit, as headers say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Left {
    /// `requests` or `tokens`
    pub name: &'static str,
    /// In a minute.
    pub limit: u64,
    /// Now.
    pub remaining: u64,
    /// Until all of it is there again.
    pub reset: Duration,
}

/// A tenant's limits, as they were configured when they were made: requests and tokens.
type Own = ((u64, u64), Arc<Quota>);

/// Limits and places of all tenants.
#[derive(Debug, Default)]
pub struct Shares {
    limits: Mutex<HashMap<String, Own>>,
    running: Arc<Mutex<HashMap<String, usize>>>,
}

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// All are taken.
    All,
    /// The tenant has as many as it may.
    Own,
}

/// A place among the requests that run.
#[derive(Debug)]
pub struct Place {
    running: Arc<Mutex<HashMap<String, usize>>>,
    tenant: String,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut running = lock(&self.running);
        if let Some(count) = running.get_mut(&self.tenant) {
            *count -= 1;
            if *count == 0 {
                running.remove(&self.tenant);
            }
        }
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shares {
    /// A place for one request more.
    ///
    /// # Errors
    /// All, or all of its tenant, are taken.
    pub fn place(&self, tenant: &str, most: usize, most_of_tenant: usize) -> Result<Place, Full> {
        let mut running = lock(&self.running);
        let all: usize = running.values().sum();
        let own = running.get(tenant).copied().unwrap_or_default();
        if all >= most {
            return Err(Full::All);
        }
        if own >= most_of_tenant {
            return Err(Full::Own);
        }
        running.insert(tenant.to_owned(), own + 1);
        Ok(Place { running: self.running.clone(), tenant: tenant.to_owned() })
    }

    /// The limits of a tenant as they are configured now; none: it has none of its own.
    fn of(&self, who: &Principal) -> Option<Arc<Quota>> {
        let config = &who.tenant()?.config;
        let wanted = (config.text_requests_per_minute, config.text_tokens_per_minute);
        let some = |n: u64| (n > 0).then_some(n);
        let mut limits = lock(&self.limits);
        if wanted == (0, 0) {
            limits.remove(who.tenant_id());
            return None;
        }
        let section = || LimitsConfig {
            model: ALL.to_owned(),
            requests: some(wanted.0),
            tokens: some(wanted.1),
            use_percent: 100,
            burst_ms: u64::try_from(BURST.as_millis()).unwrap_or(u64::MAX),
            ..LimitsConfig::default()
        };
        let new = || (wanted, Quota::new(vec![section()]));
        let (known, quota) = limits.entry(who.tenant_id().to_owned()).or_insert_with(new);
        if *known != wanted {
            *known = wanted;
            quota.reload(vec![section()]);
        }
        Some(quota.clone())
    }

    /// Takes what a request may use from its tenant's limits.
    ///
    /// # Errors
    /// Which limit leaves no room, and for how long.
    pub fn take(&self, who: &Principal, tokens: u64) -> Result<Option<Grant>, Reason> {
        let Some(quota) = self.of(who) else { return Ok(None) };
        let turn = Turn {
            model: ALL,
            tenant: who.tenant_id(),
            weight: 1,
            class: Class::Interactive,
            tokens,
            patience: Duration::ZERO,
        };
        match quota.ask(turn) {
            Answer::Granted(grant) => Ok(Some(grant)),
            Answer::Waits(_, reason) | Answer::Refused(reason) => Err(reason),
        }
    }

    /// What is left of them.
    pub fn left(&self, who: &Principal) -> Vec<Left> {
        let Some(quota) = self.of(who) else { return Vec::new() };
        let Some(view) = quota.view().remove(ALL) else {
            // Nobody has asked for anything yet: it is all there.
            let config = who.tenant().map(|tenant| &tenant.config);
            let limits =
                config.map(|of| [("requests", of.text_requests_per_minute), ("tokens", of.text_tokens_per_minute)]);
            let whole = |(name, limit)| Left { name, limit, remaining: limit, reset: Duration::ZERO };
            return limits.into_iter().flatten().filter(|(_, limit)| *limit > 0).map(whole).collect();
        };
        let shown = view.dimensions.iter().filter_map(|shown| {
            let name = match shown.dimension {
                Dimension::Requests => "requests",
                Dimension::Tokens => "tokens",
                _ => return None,
            };
            let (limit, available) = (shown.limit?, shown.available?);
            // What may be asked for at once is less than a minute's worth; a caller counts in minutes.
            let at_once = (limit as f64 * BURST.as_secs_f64() / 60.0).max(1.0);
            let missing = (1.0 - (available as f64 / at_once).min(1.0)).max(0.0);
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a part of the limit")]
            let remaining = (limit as f64 * (1.0 - missing)).round() as u64;
            Some(Left { name, limit, remaining, reset: BURST.mul_f64(missing) })
        });
        shown.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{admit::tenant::Tenant, config::TenantConfig};

    fn tenant(requests: u64, tokens: u64) -> Principal {
        let config = TenantConfig {
            text_requests_per_minute: requests,
            text_tokens_per_minute: tokens,
            ..TenantConfig::default()
        };
        Principal::of_tenant(Arc::new(Tenant { id: "acme".to_owned(), config }))
    }

    #[tokio::test(start_paused = true)]
    async fn a_tenants_limits_are_its_own_and_come_back() {
        let shares = Shares::default();
        assert!(shares.take(&Principal::operator(), 1_000_000_000).unwrap().is_none());
        let who = tenant(60, 6_000);
        let of = |name| shares.left(&who).into_iter().find(|left| left.name == name).unwrap();
        assert_eq!(of("requests"), Left { name: "requests", limit: 60, remaining: 60, reset: Duration::ZERO });
        let grants: Vec<_> = (0..10).map(|_| shares.take(&who, 10).unwrap().unwrap()).collect();
        let reason = shares.take(&who, 10).unwrap_err();
        assert_eq!((reason.dimension, reason.wait.unwrap().as_secs()), (Dimension::Requests, 1));
        assert_eq!(of("requests").remaining, 0);
        assert_eq!(of("requests").reset.as_secs(), 10);
        grants.into_iter().for_each(|grant| grant.settle(Some(10)));
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(of("requests").remaining, 30);
        let reason = shares.take(&who, 5_000).map(|grant| grant.map(|grant| grant.settle(Some(5_000))));
        assert!(reason.is_ok(), "a large one goes when all is there: {reason:?}");
        assert_eq!(shares.take(&who, 100).unwrap_err().dimension, Dimension::Tokens);
        assert!(shares.take(&tenant(600, 0), 100).unwrap().is_some(), "other limits count at once");
    }

    #[test]
    fn places_are_few_and_come_back() {
        let shares = Shares::default();
        let first = shares.place("a", 3, 2).unwrap();
        let _second = shares.place("a", 3, 2).unwrap();
        assert_eq!(shares.place("a", 3, 2).unwrap_err(), Full::Own);
        let _third = shares.place("b", 3, 2).unwrap();
        assert_eq!(shares.place("b", 3, 2).unwrap_err(), Full::All);
        drop(first);
        assert!(shares.place("b", 3, 2).is_ok());
    }
}
