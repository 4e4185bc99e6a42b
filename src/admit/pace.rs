//! Connects a minute, by address and by tenant: a flood is turned away before anything expensive is done for it.
//!
//! The buckets are the library's (GCRA); the clock is tokio's, which tests can stop. Tables are bounded: addresses that have
//! been quiet are forgotten, and while more than [`ADDRESSES`] are not quiet, all of them share one bucket.
use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    num::NonZeroU32,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use governor::{
    Quota, RateLimiter,
    clock::Clock,
    middleware::NoOpMiddleware,
    state::{InMemoryState, NotKeyed, keyed::DashMapStateStore},
};

/// Addresses that are remembered.
const ADDRESSES: usize = 65_536;
/// How often the table is looked at, requests.
const LOOK_EVERY: usize = 1_024;
/// As often as so many addresses may come all of them together while the table is full.
const CROWD: u32 = 100;

/// The runtime's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct RuntimeClock;

impl Clock for RuntimeClock {
    type Instant = std::time::Instant;

    fn now(&self) -> Self::Instant {
        tokio::time::Instant::now().into_std()
    }
}

type Middleware = NoOpMiddleware<std::time::Instant>;
type ByAddress = RateLimiter<IpAddr, DashMapStateStore<IpAddr>, RuntimeClock, Middleware>;
type Bucket = RateLimiter<NotKeyed, InMemoryState, RuntimeClock, Middleware>;

/// How often one may come.
#[derive(Debug)]
pub struct Pace {
    addresses: Option<ByAddress>,
    /// For everybody while the table is full.
    crowd: Option<Bucket>,
    asked: AtomicUsize,
    full: AtomicBool,
    tenants: Mutex<HashMap<String, (u32, Arc<Bucket>)>>,
}

impl Pace {
    /// `per_minute`: of one address; 0: no limit.
    pub fn new(per_minute: u32) -> Self {
        let quota = NonZeroU32::new(per_minute).map(Quota::per_minute);
        let addresses = quota.map(|quota| RateLimiter::new(quota, DashMapStateStore::default(), RuntimeClock));
        let crowd = NonZeroU32::new(per_minute.saturating_mul(CROWD)).map(Quota::per_minute);
        let crowd = crowd.map(|quota| RateLimiter::direct_with_clock(quota, RuntimeClock));
        let (asked, full) = (AtomicUsize::new(0), AtomicBool::new(false));
        Self { addresses, crowd, asked, full, tenants: Mutex::default() }
    }

    /// One more from this address.
    ///
    /// # Errors
    /// How long to wait.
    pub fn address(&self, address: IpAddr) -> Result<(), Duration> {
        let (Some(addresses), Some(crowd)) = (&self.addresses, &self.crowd) else { return Ok(()) };
        let address = address.to_canonical();
        // Counting a table means to walk through it.
        if self.asked.fetch_add(1, Ordering::Relaxed) % LOOK_EVERY == LOOK_EVERY - 1 {
            if addresses.len() > ADDRESSES / 2 {
                addresses.retain_recent();
                addresses.shrink_to_fit();
            }
            self.full.store(addresses.len() > ADDRESSES, Ordering::Relaxed);
        }
        let full = self.full.load(Ordering::Relaxed);
        let wait = if full { crowd.check().err() } else { addresses.check_key(&network(address)).err() };
        wait.map_or(Ok(()), |not_until| Err(wait_of(&not_until)))
    }

    /// One more from this tenant, which may come so often; 0: no limit.
    ///
    /// # Errors
    /// How long to wait.
    pub fn tenant(&self, id: &str, per_minute: u32) -> Result<(), Duration> {
        let Some(limit) = NonZeroU32::new(per_minute) else { return Ok(()) };
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = || Arc::new(RateLimiter::direct_with_clock(Quota::per_minute(limit), RuntimeClock));
        let entry = tenants.entry(id.to_owned()).or_insert_with(|| (per_minute, fresh()));
        if entry.0 != per_minute {
            *entry = (per_minute, fresh());
        }
        let bucket = entry.1.clone();
        drop(tenants);
        bucket.check().map_err(|not_until| wait_of(&not_until))
    }

    /// Forgets tenants that are gone.
    pub fn keep_tenants(&self, known: impl Fn(&str) -> bool) {
        self.tenants.lock().unwrap_or_else(PoisonError::into_inner).retain(|id, _| known(id));
    }
}

fn wait_of(not_until: &governor::NotUntil<std::time::Instant>) -> Duration {
    not_until.wait_time_from(RuntimeClock.now()).max(Duration::from_millis(1))
}

/// What counts as one address: whoever has one IPv6 address has a whole network of them.
pub fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_address_that_comes_too_often_waits_and_others_do_not() {
        let pace = Pace::new(60);
        let (one, other) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        assert_eq!((0..100).filter(|_| pace.address(one).is_ok()).count(), 60);
        let wait = pace.address(one).unwrap_err();
        assert!(wait <= Duration::from_secs(1), "{wait:?}");
        assert_eq!(pace.address(other), Ok(()));
        tokio::time::advance(wait).await;
        assert_eq!(pace.address(one), Ok(()));
        for _ in 0..1_000 {
            assert_eq!(Pace::new(0).address(one), Ok(()), "no limit");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_network_of_ipv6_addresses_is_one() {
        let pace = Pace::new(10);
        let passed = (0..100u16).filter(|n| {
            let address = Ipv6Addr::new(0x2001, 0xdb8, 0, 7, *n, 1, 2, 3);
            pace.address(IpAddr::V6(address)).is_ok()
        });
        assert_eq!(passed.count(), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn tenants_have_limits_of_their_own_that_can_be_changed() {
        let pace = Pace::new(60);
        assert_eq!((0..50).filter(|_| pace.tenant("a", 5).is_ok()).count(), 5);
        assert_eq!((0..50).filter(|_| pace.tenant("b", 0).is_ok()).count(), 50);
        assert_eq!((0..50).filter(|_| pace.tenant("a", 7).is_ok()).count(), 7, "a new limit");
        pace.keep_tenants(|id| id == "b");
        assert_eq!((0..50).filter(|_| pace.tenant("a", 7).is_ok()).count(), 7, "forgotten");
    }

    #[tokio::test(start_paused = true)]
    async fn the_table_of_addresses_is_bounded() {
        let pace = Pace::new(1);
        let address = |n: u32| IpAddr::V4((0x0A00_0000 + n).into());
        let passed = (0..300_000).filter(|n| pace.address(address(*n)).is_ok()).count();
        let kept = pace.addresses.as_ref().map(RateLimiter::len).unwrap_or_default();
        let most = ADDRESSES + LOOK_EVERY;
        assert!(kept <= most && passed <= most + CROWD as usize, "{kept} {passed}");
        tokio::time::advance(Duration::from_secs(130)).await;
        let passed = (0..2_000).filter(|n| pace.address(address(400_000 + *n)).is_ok()).count();
        assert!(passed > 500, "those that are quiet are forgotten: {passed}");
    }
}
