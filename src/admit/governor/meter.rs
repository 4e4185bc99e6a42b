//! One dimension: what we have counted ourselves, and what the service says.
use std::time::Duration;

use super::{
    Dimension, Limits,
    aimd::Aimd,
    bucket::{Bucket, Purse, Window},
    view::Seen,
};

/// The shortest wait that is named: nobody is to be woken for less.
const SHORTEST: Duration = Duration::from_millis(1);

/// Our own count.
#[derive(Debug)]
enum Own {
    Unlimited,
    Minute(Bucket),
    Day(Window),
    /// So many at once, which are all of `reserved`.
    Count(u64),
}

/// Why a dimension does not let a request go.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Short {
    /// What there is; if `wait` is `None`, the most that there ever is.
    pub(super) have: u64,
    /// `None`: it never goes.
    pub(super) wait: Option<Duration>,
}

#[derive(Debug)]
pub(super) struct Meter {
    pub(super) dimension: Dimension,
    configured: Option<u64>,
    seen: Seen,
    own: Own,
    /// Nothing before this moment.
    hold: Duration,
    /// In the hands of requests that run.
    pub(super) reserved: u64,
    /// Requests that were refused for it.
    pub(super) refused: u64,
}

impl Meter {
    pub(super) fn new(dimension: Dimension, now: Duration, limits: &Limits) -> Self {
        let seen = Seen::new(dimension.daily());
        let (own, hold) = (Own::Unlimited, Duration::ZERO);
        let mut meter = Self { dimension, configured: None, seen, own, hold, reserved: 0, refused: 0 };
        meter.tune(now, limits);
        meter
    }

    /// Other limits. What was counted stays; where nothing was counted, what is reserved is.
    pub(super) fn tune(&mut self, now: Duration, limits: &Limits) {
        self.configured = match self.dimension {
            Dimension::Requests => limits.requests,
            Dimension::Tokens => limits.tokens,
            Dimension::RequestsDay => limits.requests_day,
            Dimension::TokensDay => limits.tokens_day,
            Dimension::Connects => limits.connects,
            Dimension::Sessions => limits.sessions,
        };
        let (percent, burst) = (limits.use_percent.clamp(1, 100), limits.burst);
        match (self.limit(), &mut self.own) {
            (None, own) => *own = Own::Unlimited,
            (Some(limit), Own::Minute(bucket)) => bucket.tune(limit, percent, burst),
            (Some(limit), Own::Day(window)) => window.tune(limit, percent),
            (Some(limit), own) => {
                *own = match self.dimension {
                    Dimension::Sessions => Own::Count(limit),
                    _ if self.dimension.daily() => {
                        let mut window = Window::new(limit, percent);
                        window.take(now, self.reserved);
                        Own::Day(window)
                    }
                    _ => {
                        let mut bucket = Bucket::new(now, limit, percent, burst);
                        bucket.take(Purse::All, self.reserved as f64);
                        Own::Minute(bucket)
                    }
                }
            }
        }
    }

    /// The limit that counts: the lower one of what is configured and what the service has named.
    pub(super) fn limit(&self) -> Option<u64> {
        match (self.configured, self.seen.limit()) {
            (Some(configured), Some(seen)) => Some(configured.min(seen)),
            (configured, seen) => configured.or(seen),
        }
    }

    /// Whether the service has named it.
    pub(super) fn learned(&self) -> bool {
        self.seen.limit().is_some_and(|seen| self.configured.is_none_or(|configured| seen < configured))
    }

    /// Whether so much may be taken now.
    pub(super) fn check(&self, now: Duration, aimd: &Aimd, purse: Purse, need: u64) -> Result<(), Short> {
        if need == 0 {
            return Ok(());
        }
        let hold = (self.hold > now).then(|| self.hold - now);
        let (most, own) = match &self.own {
            Own::Unlimited => (u64::MAX, None),
            Own::Minute(bucket) => (bucket.most(), bucket.wait(now, aimd, purse, need as f64)),
            Own::Day(window) => (window.most(purse), window.wait(now, purse, need)),
            // Nobody knows when a session ends.
            Own::Count(limit) => (*limit, (self.reserved >= *limit).then_some(Duration::from_secs(1))),
        };
        if need > most {
            return Err(Short { have: most, wait: None });
        }
        let view = self.seen.wait(now, need as f64 + self.kept(now, aimd, purse));
        match hold.max(own).max(view) {
            None => Ok(()),
            Some(wait) => Err(Short { have: self.have(now, aimd, purse), wait: Some(wait.max(SHORTEST)) }),
        }
    }

    /// What there is at once when nothing is taken.
    pub(super) fn full(&self) -> u64 {
        match &self.own {
            Own::Unlimited => u64::MAX,
            Own::Minute(bucket) => whole(bucket.cap()),
            Own::Day(window) => window.most(Purse::All),
            Own::Count(limit) => *limit,
        }
    }

    /// What a batch request leaves of the service's view: the lane.
    fn kept(&self, now: Duration, aimd: &Aimd, purse: Purse) -> f64 {
        match &self.own {
            Own::Minute(bucket) if matches!(purse, Purse::Rest | Purse::Main) => bucket.levels(now, aimd).1.max(0.0),
            _ => 0.0,
        }
    }

    /// What there is now, for that purse.
    pub(super) fn have(&self, now: Duration, aimd: &Aimd, purse: Purse) -> u64 {
        if now < self.hold {
            return 0;
        }
        let own = match &self.own {
            Own::Unlimited => u64::MAX,
            Own::Minute(bucket) => whole(bucket.have(now, aimd, purse)),
            Own::Day(window) => window.have(now, purse),
            Own::Count(limit) => limit.saturating_sub(self.reserved),
        };
        self.seen.left(now).map_or(own, |left| own.min(whole(left - self.kept(now, aimd, purse))))
    }

    /// How long so much lasts at the full rate.
    pub(super) fn lasts(&self, amount: u64) -> Duration {
        match &self.own {
            Own::Minute(bucket) => bucket.lasts(amount as f64),
            _ => Duration::ZERO,
        }
    }

    /// Takes what [`Self::check`] has allowed.
    pub(super) fn take(&mut self, now: Duration, aimd: &Aimd, purse: Purse, amount: u64) {
        self.reserved = self.reserved.saturating_add(amount);
        self.seen.take(now, amount as f64);
        match &mut self.own {
            Own::Minute(bucket) => {
                bucket.refill(now, aimd);
                bucket.take(purse, amount as f64);
            }
            Own::Day(window) => window.take(now, amount),
            Own::Unlimited | Own::Count(_) => {}
        }
    }

    /// A request that had reserved so much at `taken` ends, having used so much.
    pub(super) fn settle(&mut self, now: Duration, aimd: &Aimd, taken: Duration, reserved: u64, used: u64) {
        self.reserved = self.reserved.saturating_sub(reserved);
        let back = reserved as f64 - used as f64;
        // A view that is newer than a request that never arrived does not know of it.
        if used > 0 || self.seen.heard().is_some_and(|heard| heard <= taken) {
            self.seen.take(now, -back);
        }
        match &mut self.own {
            Own::Minute(bucket) => {
                bucket.refill(now, aimd);
                bucket.give(back);
            }
            Own::Day(window) if used > reserved => window.take(now, used - reserved),
            Own::Day(window) => window.give(taken, reserved - used),
            Own::Unlimited | Own::Count(_) => {}
        }
    }

    /// What a reply says of it.
    pub(super) fn hear(
        &mut self,
        now: Duration,
        limits: &Limits,
        limit: Option<u64>,
        remaining: Option<u64>,
        reset: Option<Duration>,
    ) {
        // How many sessions there are we know ourselves.
        let remaining = remaining.filter(|_| self.dimension != Dimension::Sessions);
        let known = self.limit();
        self.seen.hear(now, self.configured, limit, remaining, reset);
        if self.limit() != known {
            self.tune(now, limits);
        }
    }

    /// Brings the count up to `now`: the rate is about to change.
    pub(super) fn refill(&mut self, now: Duration, aimd: &Aimd) {
        if let Own::Minute(bucket) = &mut self.own {
            bucket.refill(now, aimd);
        }
    }

    /// The service has refused: nothing before `until`. The count is brought up to now before.
    pub(super) fn limited(&mut self, until: Duration) {
        self.hold = self.hold.max(until);
        if let Own::Minute(bucket) = &mut self.own {
            bucket.empty();
        }
    }
}

/// Whole tokens, none if there is a debt.
#[expect(clippy::cast_possible_truncation, reason = "a cast of a float saturates")]
pub(super) fn whole(amount: f64) -> u64 {
    (amount + 1e-6).max(0.0) as u64
}
