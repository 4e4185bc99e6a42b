//! What an account may use of a model in a minute and a day: counted over all its sessions, and refused as the service refuses.
//!
//! Buckets fill steadily and hold a part of a minute's worth, so that a minute's tokens in its first second are too many; a reply
//! takes what it reads and the most it may say when it is created, and gets back what it did not use at its end (realtime-protocol
//! section 5; how large the buckets are is a guess). No clock of its own: `now` is the simulator's.
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::Deserialize;
use serde_json::{Value, json};

use super::config::SimConfig;

const MINUTE: f64 = 60.0;
const DAY: f64 = 86_400.0;

/// Limits of an account, for models of this name. `[[sim.limits]]`; 0 stands for no limit.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// The model; one that ends in `*` stands for all that begin so.
    pub model: String,
    /// Tokens a minute (TPM).
    pub tokens: u64,
    /// Replies a minute (RPM).
    pub requests: u64,
    /// Tokens a day (TPD).
    pub tokens_day: u64,
    /// Replies a day (RPD).
    pub requests_day: u64,
    /// Sessions opened a minute.
    pub connects: u64,
    /// Sessions at once.
    pub sessions: u64,
    /// How much of a minute's worth may be used in one moment, minutes: 1 is all of it.
    pub burst: f64,
    /// What others use of the same account all the time, as a share of its limits: 0.3 leaves 70 %.
    pub others: f64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            model: "*".to_owned(),
            tokens: 0,
            requests: 0,
            tokens_day: 0,
            requests_day: 0,
            connects: 0,
            sessions: 0,
            burst: 1.0,
            others: 0.0,
        }
    }
}

impl Limits {
    fn fits(&self, model: &str) -> bool {
        self.model.strip_suffix('*').map_or(self.model == model, |start| model.starts_with(start))
    }
}

/// Which of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Dimension {
    Tokens,
    Requests,
    TokensDay,
    RequestsDay,
    Connects,
    Sessions,
}

impl Dimension {
    /// As the statistics count it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Tokens => "tokens",
            Self::Requests => "requests",
            Self::TokensDay => "tokens_day",
            Self::RequestsDay => "requests_day",
            Self::Connects => "connects",
            Self::Sessions => "sessions",
        }
    }

    /// The `type` of the service's error.
    pub(super) fn kind(self) -> &'static str {
        match self {
            Self::Tokens | Self::TokensDay => "tokens",
            _ => "requests",
        }
    }

    /// As the service's texts call it ("on tokens per min (TPM)": seen for RPD, the others by analogy).
    fn words(self) -> &'static str {
        match self {
            Self::Tokens => "tokens per min (TPM)",
            Self::Requests => "requests per min (RPM)",
            Self::TokensDay => "tokens per day (TPD)",
            Self::RequestsDay => "requests per day (RPD)",
            Self::Connects => "sessions per min",
            Self::Sessions => "concurrent sessions",
        }
    }
}

/// A refusal.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Full {
    pub(super) which: Dimension,
    /// When the same would be taken; none: never.
    pub(super) wait: Option<Duration>,
    /// In the service's words.
    pub(super) message: String,
}

#[derive(Debug, Clone)]
struct Bucket {
    limit: f64,
    /// What is refilled in a second.
    rate: f64,
    /// What it holds at most.
    size: f64,
    level: f64,
    at: Duration,
}

impl Bucket {
    /// `length`: seconds in which `limit` may be used; `burst`: how much of it at once; `others`: what they use of it.
    fn new(limit: u64, length: f64, burst: f64, others: f64) -> Option<Self> {
        #[expect(clippy::cast_precision_loss, reason = "limits are far below 2^52")]
        let limit = limit as f64;
        let left = (1.0 - others).clamp(0.0, 1.0);
        let (rate, size) = (limit / length * left, (limit * burst).max(1.0));
        (limit > 0.0).then_some(Self { limit, rate, size, level: size, at: Duration::ZERO })
    }

    fn fill(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.at).as_secs_f64();
        self.level = (self.level + passed * self.rate).min(self.size);
        self.at = self.at.max(now);
    }

    /// How long until so much may be taken; none: never. More than it holds may be taken when it is full.
    fn wait(&self, amount: f64) -> Option<f64> {
        let needed = amount.min(self.size) - self.level;
        match amount <= self.limit {
            true if needed <= 0.0 => Some(0.0),
            true if self.rate > 0.0 => Some(needed / self.rate),
            _ => None,
        }
    }

    fn full_in(&self) -> f64 {
        if self.rate > 0.0 { (self.size - self.level) / self.rate } else { 0.0 }
    }
}

/// One account's buckets for the models of one [`Limits`].
#[derive(Debug)]
struct Account {
    buckets: Vec<(Dimension, Bucket)>,
    sessions: u64,
}

impl Account {
    fn new(limits: &Limits) -> Self {
        let Limits { burst, others, .. } = *limits;
        let all = [
            (Dimension::Requests, Bucket::new(limits.requests, MINUTE, burst, others)),
            (Dimension::Tokens, Bucket::new(limits.tokens, MINUTE, burst, others)),
            (Dimension::RequestsDay, Bucket::new(limits.requests_day, DAY, 1.0, others)),
            (Dimension::TokensDay, Bucket::new(limits.tokens_day, DAY, 1.0, others)),
            (Dimension::Connects, Bucket::new(limits.connects, MINUTE, burst, others)),
        ];
        let buckets = all.into_iter().filter_map(|(which, bucket)| Some((which, bucket?))).collect();
        Self { buckets, sessions: 0 }
    }

    /// Takes all of it, or nothing.
    fn take(&mut self, now: Duration, wanted: &[(Dimension, f64)], model: &str) -> Result<(), Full> {
        let amount = |which: Dimension| wanted.iter().find(|(of, _)| *of == which).map_or(0.0, |(_, amount)| *amount);
        for (which, bucket) in &mut self.buckets {
            bucket.fill(now);
            let amount = amount(*which);
            if amount == 0.0 {
                continue;
            }
            let wait = bucket.wait(amount);
            if wait != Some(0.0) {
                let (limit, used) = (bucket.limit, (bucket.size - bucket.level).max(0.0).round());
                let words = which.words();
                let message = match wait {
                    Some(wait) => format!(
                        "Rate limit reached for {model} in organization org-simulated on {words}: Limit {limit}, Used {used}, \
                         Requested {amount}. Please try again in {}.",
                        spelled(wait)
                    ),
                    None => format!(
                        "Request too large for {model} in organization org-simulated on {words}: Limit {limit}, Requested \
                         {amount}. The input or output tokens must be reduced in order to run successfully."
                    ),
                };
                return Err(Full { which: *which, wait: wait.map(Duration::from_secs_f64), message });
            }
        }
        for (which, bucket) in &mut self.buckets {
            bucket.level -= amount(*which);
        }
        Ok(())
    }
}

/// As the service writes durations: `166ms`, `7.66s`, `1m26.4s`, `6m0s`, `1h2m3s`.
pub(super) fn spelled(seconds: f64) -> String {
    let ms = (seconds.max(0.0) * 1_000.0).ceil();
    if ms < 1_000.0 {
        return format!("{ms}ms");
    }
    let (hours, rest) = ((ms / 3_600_000.0).floor(), ms % 3_600_000.0);
    let (minutes, seconds) = ((rest / 60_000.0).floor(), (rest % 60_000.0) / 1_000.0);
    match (hours > 0.0, minutes > 0.0) {
        (true, _) => format!("{hours}h{minutes}m{}s", seconds.floor()),
        (false, true) => format!("{minutes}m{seconds}s"),
        (false, false) => format!("{seconds}s"),
    }
}

/// All accounts.
#[derive(Debug, Default)]
pub(super) struct Accounts(Mutex<HashMap<(String, usize), Account>>);

/// What a reply has taken. Dropped without a word, all of it stays used.
#[derive(Debug, Clone)]
pub(super) struct Taken {
    key: String,
    at: usize,
    tokens: u64,
}

impl Accounts {
    fn lock(&self) -> MutexGuard<'_, HashMap<(String, usize), Account>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<R>(
        &self,
        config: &SimConfig,
        key: &str,
        model: &str,
        work: impl FnOnce(usize, &Limits, &mut Account) -> R,
    ) -> Option<R> {
        let (at, limits) = config.limits.iter().enumerate().find(|(_, limits)| limits.fits(model))?;
        let mut accounts = self.lock();
        let account = accounts.entry((key.to_owned(), at)).or_insert_with(|| Account::new(limits));
        Some(work(at, limits, account))
    }

    /// A reply that reads and says so many tokens at most is created.
    ///
    /// # Errors
    /// When the account has not so much left.
    #[expect(clippy::cast_precision_loss, reason = "tokens are far below 2^52")]
    pub(super) fn reply(
        &self,
        config: &SimConfig,
        (key, model): (&str, &str),
        now: Duration,
        tokens: u64,
    ) -> Result<Option<Taken>, Full> {
        let wanted = [
            (Dimension::Requests, 1.0),
            (Dimension::Tokens, tokens as f64),
            (Dimension::RequestsDay, 1.0),
            (Dimension::TokensDay, tokens as f64),
        ];
        let taken = self.with(config, key, model, |at, _, account| {
            account.take(now, &wanted, model).map(|()| Taken { key: key.to_owned(), at, tokens })
        });
        taken.transpose()
    }

    /// It is over, and has used so many.
    #[expect(clippy::cast_precision_loss, reason = "tokens are far below 2^52")]
    pub(super) fn settle(&self, now: Duration, taken: &Taken, used: u64) {
        if let Some(account) = self.lock().get_mut(&(taken.key.clone(), taken.at)) {
            for (which, bucket) in &mut account.buckets {
                if matches!(which, Dimension::Tokens | Dimension::TokensDay) {
                    bucket.fill(now);
                    bucket.level = (bucket.level + taken.tokens as f64 - used as f64).min(bucket.size);
                }
            }
        }
    }

    /// A session begins.
    ///
    /// # Errors
    /// When there are too many already, or too many were opened of late.
    pub(super) fn connect(
        self: &Arc<Self>,
        config: &SimConfig,
        (key, model): (&str, &str),
        now: Duration,
    ) -> Result<Option<Seat>, Full> {
        let seat = self.with(config, key, model, |at, limits, account| {
            if limits.sessions > 0 && account.sessions >= limits.sessions {
                let which = Dimension::Sessions;
                let message = format!(
                    "Rate limit reached for {model} in organization org-simulated on {}: Limit {}, Used {}, Requested 1.",
                    which.words(),
                    limits.sessions,
                    account.sessions
                );
                return Err(Full { which, wait: Some(Duration::from_secs(1)), message });
            }
            account.take(now, &[(Dimension::Connects, 1.0)], model)?;
            account.sessions += 1;
            Ok(Seat { accounts: self.clone(), key: key.to_owned(), at })
        });
        seat.transpose()
    }

    /// How the limits of a minute stand; none: there are no limits for this.
    pub(super) fn standing(
        &self,
        config: &SimConfig,
        (key, model): (&str, &str),
        now: Duration,
    ) -> Option<Vec<Standing>> {
        self.with(config, key, model, |_, _, account| {
            let shown = account.buckets.iter_mut().filter_map(|(which, bucket)| {
                let name = match which {
                    Dimension::Requests => "requests",
                    Dimension::Tokens => "tokens",
                    _ => return None,
                };
                bucket.fill(now);
                let remaining = bucket.level.max(0.0).floor();
                Some(Standing { name, limit: bucket.limit, remaining, full_in: bucket.full_in() })
            });
            shown.collect()
        })
    }

    /// What `rate_limits.updated` says; none: there are no limits for this.
    pub(super) fn told(&self, config: &SimConfig, who: (&str, &str), now: Duration) -> Option<Vec<Value>> {
        let shown = self.standing(config, who, now)?.into_iter().map(|standing| {
            json!({
                "name": standing.name,
                "limit": standing.limit,
                "remaining": standing.remaining,
                "reset_seconds": (standing.full_in * 1_000.0).round() / 1_000.0,
            })
        });
        Some(shown.collect())
    }
}

/// One of an account's limits, as it is shown.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Standing {
    /// `requests` or `tokens`.
    pub(super) name: &'static str,
    /// In a minute.
    pub(super) limit: f64,
    pub(super) remaining: f64,
    /// Seconds until all of it may be used again.
    pub(super) full_in: f64,
}

/// A session of an account, as long as it lives.
#[derive(Debug)]
pub(super) struct Seat {
    accounts: Arc<Accounts>,
    key: String,
    at: usize,
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some(account) = self.accounts.lock().get_mut(&(self.key.clone(), self.at)) {
            account.sessions = account.sessions.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const WHO: (&str, &str) = ("sk-1", "gpt-realtime-2.1");

    fn config(limits: Limits) -> SimConfig {
        SimConfig { limits: vec![limits], ..SimConfig::default() }
    }

    #[test]
    fn a_reply_takes_what_it_may_use_and_gets_back_what_it_did_not() {
        let config = config(Limits { tokens: 6_000, ..Limits::default() });
        let accounts = Accounts::default();
        let first = accounts.reply(&config, WHO, Duration::ZERO, 4_000).unwrap().unwrap();
        let full = accounts.reply(&config, WHO, Duration::ZERO, 4_000).unwrap_err();
        assert_eq!((full.which, full.wait), (Dimension::Tokens, Some(20 * SECOND)), "100 tokens a second");
        assert!(
            full.message.ends_with("Limit 6000, Used 4000, Requested 4000. Please try again in 20s."),
            "{}",
            full.message
        );
        accounts.settle(Duration::ZERO, &first, 1_000);
        assert!(accounts.reply(&config, WHO, Duration::ZERO, 4_000).is_ok());
        assert!(accounts.reply(&config, ("sk-2", WHO.1), Duration::ZERO, 6_000).is_ok(), "another account");
        let told = accounts.told(&config, WHO, SECOND).unwrap();
        assert_eq!(told, [json!({"name": "tokens", "limit": 6_000.0, "remaining": 1_100.0, "reset_seconds": 49.0})]);
        let large = accounts.reply(&config, WHO, 60 * SECOND, 6_001).unwrap_err();
        assert!(large.wait.is_none() && large.message.starts_with("Request too large"), "{}", large.message);
    }

    #[test]
    fn a_minutes_worth_is_not_for_its_first_second_and_others_have_their_share() {
        let config = config(Limits { tokens: 6_000, burst: 1.0 / 60.0, others: 0.5, ..Limits::default() });
        let accounts = Accounts::default();
        assert!(accounts.reply(&config, WHO, Duration::ZERO, 500).is_ok(), "a large one, when the bucket is full");
        let full = accounts.reply(&config, WHO, Duration::ZERO, 100).unwrap_err();
        assert_eq!(full.wait, Some(10 * SECOND), "400 too many, and 100 more, at 50 a second");
        assert!(accounts.reply(&config, WHO, 10 * SECOND, 100).is_ok());
    }

    #[test]
    fn sessions_are_counted_as_long_as_they_live() {
        let config = config(Limits { sessions: 1, connects: 2, ..Limits::default() });
        let accounts = Arc::new(Accounts::default());
        let seat = accounts.connect(&config, WHO, Duration::ZERO).unwrap();
        assert_eq!(accounts.connect(&config, WHO, Duration::ZERO).unwrap_err().which, Dimension::Sessions);
        drop(seat);
        assert!(accounts.connect(&config, WHO, Duration::ZERO).is_ok());
        assert_eq!(accounts.connect(&config, WHO, Duration::ZERO).unwrap_err().wait, Some(30 * SECOND));
    }

    #[test]
    fn durations_are_spelled_as_the_service_does() {
        for (seconds, want) in
            [(0.166, "166ms"), (7.66, "7.66s"), (86.4, "1m26.4s"), (360.0, "6m0s"), (3_723.5, "1h2m3s"), (0.0, "0ms")]
        {
            assert_eq!(spelled(seconds), want);
        }
    }
}
