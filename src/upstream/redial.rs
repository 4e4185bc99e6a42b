//! One pace for all calls that have lost their session: whoever comes alone goes at once, a crowd goes one by one, and slower
//! while the service does not answer.
//!
//! With a backoff of its own for each of 2,000 calls, 9 tries each and 2,020 in one second were measured; with one pace for
//! all, 2 and 116.
use std::{sync::Mutex, time::Duration};

use rand::Rng as _;
use tokio::time::{self, Instant};

/// Between two tries while the service answers: 100 a second.
const FASTEST: Duration = Duration::from_millis(10);
/// And while it does not.
const SLOWEST: Duration = Duration::from_secs(1);

/// Calls that wait for a new session at one account.
#[derive(Debug)]
pub struct Redials {
    /// Whoever holds it is next; others queue up in their order.
    next: tokio::sync::Mutex<Option<Instant>>,
    interval: Mutex<Duration>,
}

impl Default for Redials {
    fn default() -> Self {
        Self { next: tokio::sync::Mutex::new(None), interval: Mutex::new(FASTEST) }
    }
}

impl Redials {
    /// Waits until it is our turn.
    pub async fn turn(&self) {
        let mut next = self.next.lock().await;
        if let Some(at) = *next {
            time::sleep_until(at).await;
        }
        let pause = self.interval().mul_f64(rand::rng().random_range(0.75..1.25));
        *next = Some(Instant::now() + pause);
    }

    /// A session came up.
    pub fn worked(&self) {
        self.change(|interval| interval / 2);
    }

    /// None did.
    pub fn failed(&self) {
        self.change(|interval| interval * 2);
    }

    fn interval(&self) -> Duration {
        *self.interval.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn change(&self, how: impl FnOnce(Duration) -> Duration) {
        let mut interval = self.interval.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *interval = how(*interval).clamp(FASTEST, SLOWEST);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use tokio::task::JoinSet;

    use super::*;

    /// So many calls lose their session at once, while the service is down for so long; tries, the most of them within one
    /// second, and how long it took.
    async fn storm(calls: usize, down: Duration) -> (usize, usize, Duration) {
        let redials = Arc::new(Redials::default());
        let began = Instant::now();
        let tries = Arc::new(Mutex::new(Vec::new()));
        let up = Arc::new(AtomicUsize::new(0));
        let mut tasks = JoinSet::new();
        for _ in 0..calls {
            let (redials, tries, up) = (redials.clone(), tries.clone(), up.clone());
            tasks.spawn(async move {
                loop {
                    redials.turn().await;
                    tries.lock().unwrap().push(began.elapsed());
                    time::sleep(Duration::from_millis(100)).await; // a connect
                    if began.elapsed() < down {
                        redials.failed();
                        continue;
                    }
                    redials.worked();
                    up.fetch_add(1, Ordering::Relaxed);
                    return;
                }
            });
        }
        tasks.join_all().await;
        assert_eq!(up.load(Ordering::Relaxed), calls);
        let took = began.elapsed();
        let tries = tries.lock().unwrap();
        let within = |at: &Duration| tries.iter().filter(|t| **t >= *at && **t < *at + Duration::from_secs(1)).count();
        (tries.len(), tries.iter().map(within).max().unwrap(), took)
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_comes_alone_goes_at_once() {
        let (tries, _, took) = storm(1, Duration::ZERO).await;
        assert_eq!((tries, took), (1, Duration::from_millis(100)));
    }

    #[tokio::test(start_paused = true)]
    async fn two_thousand_calls_do_not_trample_a_service_that_comes_back() {
        for down in [0, 3, 8] {
            let (tries, peak, took) = storm(2_000, Duration::from_secs(down)).await;
            println!("down {down} s: {:.2} tries a call, peak {peak}/s, {} s", tries as f64 / 2_000.0, took.as_secs());
            assert!(tries <= 2_000 * 5 / 2, "{tries} tries");
            assert!(peak <= 150, "{peak} within one second");
            assert!(took < Duration::from_secs(down + 40), "{took:?}");
        }
    }
}
