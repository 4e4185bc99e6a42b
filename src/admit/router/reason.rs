//! Why this route, and why none.
use std::{fmt, time::Duration};

use serde::Serialize;

use super::{Choice, Route};

/// What decided among the routes that would do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum By {
    /// The call has it already.
    Current,
    /// Its user had it before.
    Sticky,
    /// The call is one of the canary's.
    Canary,
    /// Chance, by weight.
    Weight,
    /// It stands first.
    Order,
    /// It costs least.
    Price,
    /// It is heard soonest.
    Speed,
    /// So that others than the fastest have figures, too.
    Exploring,
    /// It is tried whether it works again.
    Probe,
    /// None is well; this one will do soonest.
    LastResort,
}

impl By {
    /// As [`Reason`] says it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Current => "current",
            Self::Sticky => "sticky",
            Self::Canary => "canary",
            Self::Weight => "weight",
            Self::Order => "order",
            Self::Price => "price",
            Self::Speed => "speed",
            Self::Exploring => "exploring",
            Self::Probe => "probe",
            Self::LastResort => "last resort",
        }
    }
}

/// Why another tier was taken than the one asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// The budget is spent.
    Budget,
    /// The service says that something is wrong with it.
    Incident,
    /// Too little is left of the quota.
    Quota,
    /// None of its routes works.
    Unavailable,
}

impl Cause {
    /// For the notice `model_changed`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Budget => "budget",
            Self::Incident => "incident",
            Self::Quota => "quota",
            Self::Unavailable => "unavailable",
        }
    }
}

/// What speaks against a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WhyNot {
    /// It was dialled for this session already.
    Tried,
    /// The tenant may not use it.
    Forbidden,
    /// It has failed too often in a row; it is tried again in so many ms.
    Open {
        /// From now.
        next_ms: u64,
    },
    /// It has failed too often in a row, and may be tried by one.
    HalfOpen,
    /// The service has asked for so many ms.
    Limited {
        /// From now.
        wait_ms: u64,
    },
    /// The service knew its key or its model not; it is left alone for so many ms.
    Refused {
        /// From now.
        wait_ms: u64,
    },
    /// Nothing is left of its quota.
    NoQuota,
    /// Little is left of its quota.
    ScarceQuota,
    /// It is heard too late.
    Slow {
        /// What 95 of 100 replies stay within.
        p95_ms: u64,
    },
    /// It has hit a limit lately.
    LimitedLately,
    /// It has a weight of 0.
    Spare,
}

impl fmt::Display for WhyNot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tried => f.write_str("tried already"),
            Self::Forbidden => f.write_str("not allowed"),
            Self::Open { next_ms } => write!(f, "open, next try in {next_ms} ms"),
            Self::HalfOpen => f.write_str("half open"),
            Self::Limited { wait_ms } => write!(f, "limited for {wait_ms} ms"),
            Self::Refused { wait_ms } => write!(f, "refused, next try in {wait_ms} ms"),
            Self::NoQuota => f.write_str("no quota left"),
            Self::ScarceQuota => f.write_str("little quota left"),
            Self::Slow { p95_ms } => write!(f, "slow, p95 {p95_ms} ms"),
            Self::LimitedLately => f.write_str("limited lately"),
            Self::Spare => f.write_str("weight 0"),
        }
    }
}

/// A route that was not taken, and what spoke against it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Passed {
    /// Which.
    pub route: Route,
    /// What spoke against it.
    pub why: WhyNot,
}

/// Why a route was taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reason {
    /// What decided.
    pub by: By,
    /// Routes that something spoke against, in the order in which they stand in the file.
    pub passed: Vec<Passed>,
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} by {}", self.taken.tier, self.taken.route, self.reason.by.name())?;
        if let Some(cause) = self.degraded {
            write!(f, "; degraded: {}", cause.name())?;
        }
        passed_over(f, &self.reason.passed)
    }
}

fn passed_over(f: &mut fmt::Formatter<'_>, passed: &[Passed]) -> fmt::Result {
    for (at, Passed { route, why }) in passed.iter().enumerate() {
        write!(f, "{}{route} ({why})", if at == 0 { "; passed over: " } else { ", " })?;
    }
    Ok(())
}

/// Why there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// The tenant may use none of them.
    Forbidden,
    /// Those that were not tried are open.
    Open,
    /// All were tried.
    Tried,
}

/// No route: why, and of each why not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub why: Why,
    /// The next try is due in so long; none: waiting does not help.
    pub retry_after: Option<Duration>,
    /// Of each.
    pub passed: Vec<Passed>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.why {
            Why::Forbidden => "no route may be used",
            Why::Open => "no route works",
            Why::Tried => "every route was tried",
        })?;
        passed_over(f, &self.passed)
    }
}
