//! What was seen of a service's limits: which one was hit, by whom and when, and how full its buckets were last.
//!
//! The answer to "why am I rate limited?", from headers, `rate_limits.updated`, failed replies, refused connections and closes.
//! Decides nothing, and holds no text of the service's: plain codes and numbers only.
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::http::HeaderMap;
use metrics::counter;
use serde::{Deserialize, Serialize};

use super::{Event, RateLimit, ServiceError, UpstreamError};
use crate::wall::unix_now;

/// Hits that are remembered.
const HITS: usize = 256;
/// Buckets that are remembered; the service has a handful.
const BUCKETS: usize = 64;

/// Which limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// Making client secrets.
    Mint,
    /// Opening sessions or calls.
    Connect,
    /// Requests a minute (RPM).
    Requests,
    /// Tokens a minute (TPM).
    Tokens,
    /// Requests or tokens a day (RPD, TPD).
    Day,
    /// Sessions or requests at once.
    Concurrency,
    /// The account's credit, or a spending limit. No wait helps.
    Quota,
}

impl Limit {
    /// Its name in metrics and answers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mint => "mint",
            Self::Connect => "connect",
            Self::Requests => "requests",
            Self::Tokens => "tokens",
            Self::Day => "day",
            Self::Concurrency => "concurrency",
            Self::Quota => "quota",
        }
    }

    /// What it means, and what helps.
    pub fn advice(self) -> &'static str {
        match self {
            Self::Mint => {
                "client secrets are made too often: `credentials = \"ephemeral\"` makes one and uses it again"
            }
            Self::Connect => {
                "sessions are opened too often: keep them for a whole call, and wait as long as the service says"
            }
            Self::Requests => {
                "too many replies a minute: caching credentials does not change it; ask for fewer, or for a higher limit"
            }
            Self::Tokens => {
                "too many tokens a minute, and the whole conversation counts for every reply: shorter histories and replies help, caching credentials does not"
            }
            Self::Day => "the day's limit is used up: another account or tomorrow helps, a wait of seconds does not",
            Self::Concurrency => "too much at once: fewer calls at a time help",
            Self::Quota => "no credit, or a spending limit is reached: no wait helps, it must be raised at the service",
        }
    }
}

/// Where it was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// A request for a client secret.
    Mint,
    /// A request about a call by WebRTC or telephone.
    Call,
    /// A request for text.
    Text,
    /// The opening of a session.
    Connect,
    /// A failed reply.
    Reply,
    /// An `error` event.
    Event,
    /// The end of a session.
    Close,
}

/// Codes for an account that has no money: no wait helps (realtime-protocol section 6).
pub const QUOTA: [&str; 4] = [
    "insufficient_quota",
    "credit_balance_exhausted",
    "organization_spend_limit_exceeded",
    "billing_hard_limit_reached",
];

/// Which limit an error's code and text mean; `None`: none of them. The words are those of the service's own texts, such as
/// "on requests per day (RPD)" (realtime-protocol section 4.3).
pub fn classify(code: &str, message: &str) -> Option<Limit> {
    if QUOTA.contains(&code) {
        return Some(Limit::Quota);
    }
    if !["rate_limit_exceeded", "rate_limit_error", "requests", "tokens"].contains(&code) {
        return None;
    }
    let text = message.to_ascii_lowercase();
    let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
    Some(match code {
        _ if says(&["per day", "(rpd)", "(tpd)"]) => Limit::Day,
        _ if says(&["concurrent", "at the same time"]) => Limit::Concurrency,
        _ if says(&["tokens per min", "(tpm)"]) => Limit::Tokens,
        "tokens" => Limit::Tokens,
        _ => Limit::Requests,
    })
}

/// One bucket as the service last showed it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Bucket {
    /// Its size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    /// What is left.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remaining: Option<u64>,
    /// Until it is full again, seconds. Not the wait for one request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reset_s: Option<f64>,
    /// When this was seen, Unix seconds.
    pub seen_at: u64,
}

/// One limit that was hit.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Hit {
    /// Which.
    pub limit: Limit,
    /// Where.
    pub source: Source,
    /// When, Unix seconds.
    pub at: u64,
    /// The wait that the service named, ms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
    #[serde(skip)]
    tenant: String,
}

/// What was seen of one account.
#[derive(Debug, Default)]
pub struct Board(Mutex<Seen>);

#[derive(Debug, Default)]
struct Seen {
    buckets: BTreeMap<String, Bucket>,
    hits: VecDeque<Hit>,
}

impl Board {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The headers of a REST answer: `x-ratelimit-{limit,remaining,reset}-NAME`. They are shown and decide nothing: they are of requests
    /// to that address, not of sessions and replies.
    pub fn headers(&self, headers: &HeaderMap) {
        let now = unix_now();
        let mut seen = self.seen();
        for (name, value) in headers {
            let Some((field, bucket)) = name.as_str().strip_prefix("x-ratelimit-").and_then(|n| n.split_once('-'))
            else {
                continue;
            };
            if !["limit", "remaining", "reset"].contains(&field) {
                continue;
            }
            let Some(bucket) = seen.bucket(bucket, now) else { continue };
            let value = value.to_str().unwrap_or_default().trim();
            match field {
                "limit" => bucket.limit = value.parse().ok(),
                "remaining" => bucket.remaining = value.parse().ok(),
                _ => bucket.reset_s = duration(value).map(|reset| reset.as_secs_f64()),
            }
        }
    }

    /// A `rate_limits.updated`.
    pub fn updated(&self, limits: &[RateLimit]) {
        let now = unix_now();
        let mut seen = self.seen();
        for RateLimit { name, limit, remaining, reset_seconds } in limits {
            if let Some(bucket) = seen.bucket(name, now) {
                (bucket.limit, bucket.remaining, bucket.reset_s) = (*limit, *remaining, *reset_seconds);
            }
        }
    }

    /// A limit was hit.
    pub fn hit(&self, limit: Limit, source: Source, tenant: &str, retry_after: Option<Duration>) {
        counter!("voxrelay_upstream_limits_total", "limit" => limit.name()).increment(1);
        let mut seen = self.seen();
        if seen.hits.len() == HITS {
            seen.hits.pop_front();
        }
        let retry_after_ms = retry_after.map(|wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX));
        let at = unix_now();
        seen.hits.push_back(Hit { limit, source, at, retry_after_ms, tenant: tenant.to_owned() });
    }

    /// A request or a session was refused; noted if a limit was why.
    pub fn refused(&self, source: Source, tenant: &str, error: &UpstreamError) {
        let (code, status) = match error {
            UpstreamError::Http { code, status, .. } => (code.as_deref().unwrap_or_default(), status.as_u16()),
            UpstreamError::Refused { code, .. } => (code.as_str(), 0),
            _ => return, // and a credential that could not be had was noted when it was asked for
        };
        let limit = match (classify(code, ""), source) {
            (Some(Limit::Quota), _) => Limit::Quota,
            (Some(_), Source::Mint) => Limit::Mint,
            (Some(_), Source::Connect | Source::Call) => Limit::Connect,
            (Some(limit), _) => limit,
            (None, Source::Mint) if status == 429 => Limit::Mint,
            (None, Source::Text) if status == 429 => Limit::Requests,
            (None, _) if status == 429 => Limit::Connect,
            (None, _) => return,
        };
        self.hit(limit, source, tenant, error.verdict().retry_after);
    }

    /// The buckets as they were seen last, by name.
    pub fn buckets(&self) -> BTreeMap<String, Bucket> {
        self.seen().buckets.clone()
    }

    /// What a tenant has hit, the newest first.
    pub fn hits(&self, tenant: &str) -> Vec<Hit> {
        self.seen().hits.iter().rev().filter(|hit| hit.tenant == tenant).cloned().collect()
    }
}

/// Notes what an event of a session says of limits.
pub fn heard(board: &Board, tenant: &str, event: &Event) {
    match event {
        Event::RateLimits(limits) => board.updated(limits),
        Event::ReplyDone { limit: Some(limit), retry_after, .. } => {
            board.hit(*limit, Source::Reply, tenant, *retry_after)
        }
        Event::Error(ServiceError { limit: Some(limit), retry_after, .. }) => {
            board.hit(*limit, Source::Event, tenant, *retry_after);
        }
        _ => {}
    }
}

impl Seen {
    fn bucket(&mut self, name: &str, now: u64) -> Option<&mut Bucket> {
        let plain =
            (1..=64).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b));
        if !plain || self.buckets.len() >= BUCKETS && !self.buckets.contains_key(name) {
            return None;
        }
        let fresh = Bucket { limit: None, remaining: None, reset_s: None, seen_at: now };
        let bucket = self.buckets.entry(name.to_owned()).or_insert(fresh);
        bucket.seen_at = now;
        Some(bucket)
    }
}

/// A duration as Go writes them (`1m26.4s`, `12ms`, `6m0s`, `1h2m3s`, also with `d`), or bare seconds.
pub fn duration(text: &str) -> Option<Duration> {
    let text = text.trim();
    let bounded = |seconds: f64| (0.0..1e9).contains(&seconds).then(|| Duration::from_secs_f64(seconds));
    if let Ok(seconds) = text.parse::<f64>() {
        return bounded(seconds);
    }
    let (mut rest, mut sum) = (text, 0.0);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, behind) = rest.split_at(digits);
        let unit = behind.find(|c: char| c.is_ascii_digit()).unwrap_or(behind.len());
        let (unit, behind) = behind.split_at(unit);
        let seconds = match unit {
            "d" => 86_400.0,
            "h" => 3_600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" | "μs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        sum += number.parse::<f64>().ok()? * seconds;
        rest = behind;
    }
    (!text.is_empty()).then(|| bounded(sum)).flatten()
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderName, HeaderValue, StatusCode};

    use super::*;

    #[test]
    fn durations_are_read_in_all_spellings() {
        for (text, want) in [
            ("12ms", Some(0.012)),
            ("1s", Some(1.0)),
            ("7.66s", Some(7.66)),
            ("0s", Some(0.0)),
            ("6m0s", Some(360.0)),
            ("1m26.4s", Some(86.4)),
            ("1h2m3s", Some(3_723.0)),
            ("1d2h", Some(93_600.0)),
            ("250us", Some(0.000_25)),
            ("51030.103", Some(51_030.103)),
            (" 3 ", Some(3.0)),
            ("", None),
            ("soon", None),
            ("5x", None),
            ("-3s", None),
            ("1e99", None),
            ("s", None),
        ] {
            let got = duration(text).map(|d| d.as_secs_f64());
            let near = got.zip(want).map_or(got == want, |(got, want)| (got - want).abs() < 1e-9);
            assert!(near, "{text}: {got:?}");
        }
    }

    #[test]
    fn limits_are_told_apart() {
        let text = |what: &str| {
            format!("Rate limit reached for gpt-realtime in organization org-1 on {what}: Limit 1, Used 1.")
        };
        for (code, message, want) in [
            ("insufficient_quota", String::new(), Some(Limit::Quota)),
            ("rate_limit_exceeded", text("requests per day (RPD)"), Some(Limit::Day)),
            ("rate_limit_exceeded", text("tokens per min (TPM)"), Some(Limit::Tokens)),
            ("rate_limit_exceeded", text("requests per min (RPM)"), Some(Limit::Requests)),
            ("rate_limit_exceeded", "Too many concurrent sessions.".into(), Some(Limit::Concurrency)),
            ("rate_limit_exceeded", String::new(), Some(Limit::Requests)),
            ("invalid_value", text("requests per day (RPD)"), None),
        ] {
            assert_eq!(classify(code, &message), want, "{code} {message}");
        }
    }

    #[test]
    fn headers_that_make_no_sense_show_nothing() {
        let absurd = [
            "",
            "soon",
            "-1",
            "-3s",
            "1e99",
            "5x",
            "NaN",
            "inf",
            "0x10",
            "99999999999999999999",
            "9\u{e9}",
            "1 000",
            "4,999",
        ];
        for value in absurd {
            let board = Board::default();
            let value = HeaderValue::from_bytes(value.as_bytes()).unwrap();
            let known = ["limit", "remaining", "reset"].map(|field| format!("x-ratelimit-{field}-requests"));
            let of = |value: &HeaderValue| -> HeaderMap {
                known.iter().map(|name| (HeaderName::try_from(name).unwrap(), value.clone())).collect()
            };
            board.headers(&of(&HeaderValue::from_static("7")));
            board.headers(&of(&value));
            let shown = board.buckets()["requests"];
            assert_eq!((shown.limit, shown.remaining, shown.reset_s), (None, None, None), "{value:?}");
        }
        let board = Board::default();
        board.headers(&HeaderMap::new());
        let strange =
            ["x-ratelimit-", "x-ratelimit-limit", "x-ratelimit-limit-", "x-ratelimit-policy-requests", "x-limit-a"];
        let named = |name| (HeaderName::from_static(name), HeaderValue::from_static("1"));
        board.headers(&strange.into_iter().map(named).collect());
        assert!(board.buckets().is_empty(), "{:?}", board.buckets());
    }

    #[test]
    fn a_board_shows_what_was_seen_last_and_to_whom_it_happened() {
        let board = Board::default();
        let headers: HeaderMap = [
            ("x-ratelimit-limit-requests", "5000"),
            ("x-ratelimit-remaining-requests", "4999"),
            ("x-ratelimit-reset-requests", "12ms"),
            ("x-ratelimit-limit-project-tokens", "10"),
            ("x-ratelimit-nonsense", "1"),
        ]
        .into_iter()
        .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
        .collect();
        board.headers(&headers);
        let tokens =
            RateLimit { name: "tokens".into(), limit: Some(100), remaining: Some(3), reset_seconds: Some(0.5) };
        board.updated(&[tokens]);
        let buckets = board.buckets();
        assert_eq!(buckets["requests"].remaining, Some(4_999));
        assert_eq!((buckets["project-tokens"].limit, buckets["tokens"].reset_s), (Some(10), Some(0.5)));
        let http = |code: Option<&str>| UpstreamError::Http {
            status: StatusCode::TOO_MANY_REQUESTS,
            code: code.map(str::to_owned),
            retry_after: Some(Duration::from_secs(2)),
            param: None,
        };
        board.refused(Source::Mint, "a", &http(None));
        board.refused(Source::Mint, "a", &http(Some("insufficient_quota")));
        board.refused(Source::Connect, "b", &http(Some("rate_limit_exceeded")));
        board.refused(Source::Connect, "b", &UpstreamError::Broken("x".into()));
        let hits = |tenant| board.hits(tenant).iter().map(|hit| (hit.limit, hit.retry_after_ms)).collect::<Vec<_>>();
        assert_eq!(hits("a"), [(Limit::Quota, None), (Limit::Mint, Some(2_000))].map(|(l, _)| (l, Some(2_000))));
        assert_eq!(hits("b"), [(Limit::Connect, Some(2_000))]);
        assert_eq!(hits("c"), []);
        (0..1_000).for_each(|_| board.hit(Limit::Day, Source::Reply, "c", None));
        assert_eq!(board.hits("c").len(), HITS);
    }
}
