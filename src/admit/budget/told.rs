//! What is said of budgets: why something may not be, that little is left, how things stand, and all of it for `GET /v1/limits`.
//!
//! The texts are for whoever calls, and hold no figures: what a tenant spends is its own business.
use std::fmt;

use serde::Serialize;
use serde_json::{Value, json};

use super::{
    accounts::{Accounts, Line, Whose},
    window::{Now, Unit, Window},
};
use crate::{admit::price::Usd, config::Moment};

/// A limit that leaves no room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spent {
    /// Whose.
    pub whose: Whose,
    /// Of what time.
    pub window: Window,
    /// What it counts; the numbers here are pico-dollars or tokens.
    pub unit: Unit,
    /// What may be used.
    pub limit: i128,
    /// What is.
    pub used: i128,
    /// What replies that run may use, at most.
    pub held: i128,
    /// What was needed, at most.
    pub need: i128,
    /// When there is room again, Unix seconds; none: waiting does not help.
    pub resets_at: Option<u64>,
}

impl Spent {
    /// Only replies that run stand in the way: when they are over, there may be room.
    pub fn is_only_held(&self) -> bool {
        self.used < self.limit && self.used + self.need <= self.limit
    }
}

impl Spent {
    /// In numbers, for the operator: "tenant usd day: need 0.26, have 0.12".
    pub fn figures(&self) -> String {
        let shown = |amount: i128| match self.unit {
            Unit::Usd => Usd::from_pico(amount.max(0)).to_string(),
            Unit::Tokens => amount.max(0).to_string(),
        };
        let left = self.limit - self.used - self.held;
        let (whose, unit, window) = (self.whose.name(), self.unit.name(), self.window.name());
        format!("budget {whose} {unit} {window}: need {}, have {}", shown(self.need), shown(left))
    }
}

impl fmt::Display for Spent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let subject = subject(self.whose, self.window);
        match self.resets_at {
            _ if self.need > self.limit && self.limit > 0 => {
                write!(f, "this may cost more than {subject} has in all")
            }
            _ if self.is_only_held() => write!(f, "what is left of {subject} is held for answers that run"),
            Some(at) => write!(f, "{subject} is used up until {}", Moment(at)),
            None => write!(f, "{subject} is used up"),
        }
    }
}

fn subject(whose: Whose, window: Window) -> String {
    let whose = match whose {
        Whose::Tenant => "the tenant's",
        Whose::Key => "the key's",
        Whose::User => "the user's",
        Whose::Call => return "the call's budget".to_owned(),
    };
    let window = match window {
        Window::Minute => "minute",
        Window::Day => "day",
        Window::Month | Window::Call => "month",
    };
    format!("{whose} budget for this {window}")
}

/// Little is left of a limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Low {
    /// Whose.
    pub whose: Whose,
    /// Of what time.
    pub window: Window,
    /// What it counts; the numbers here are pico-dollars or tokens.
    pub unit: Unit,
    /// What is used.
    pub used: i128,
    /// What may be.
    pub limit: i128,
    /// How much of it that is, rounded down.
    pub percent: i128,
    /// Tells one minute, day or month from the next.
    pub period: u64,
}

/// What tells one warning from another.
pub type LowKey = (Whose, Window, Unit);

impl Low {
    /// Which limit, for people.
    pub fn name(&self) -> String {
        subject(self.whose, self.window)
    }

    /// What it is a warning of; each once in a period.
    pub fn key(&self) -> LowKey {
        (self.whose, self.window, self.unit)
    }
}

impl fmt::Display for Low {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} % of {} is used", self.percent, subject(self.whose, self.window))
    }
}

/// How things stand for a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// Limits of which so much is used that the call is to be warned, the fullest first.
    pub low: Vec<Low>,
    /// Another reply does not fit, even when all that run are over.
    pub spent: Option<Spent>,
    /// Another reply does not fit next to what replies that run may use.
    pub tight: bool,
}

/// A limit, for `GET /v1/limits`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Shown {
    /// Whose.
    pub scope: Whose,
    /// The key's label, the user's name, the call's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Of what time.
    pub window: Window,
    /// What it counts.
    pub unit: Unit,
    /// What may be used: USD as text, tokens as a number.
    pub limit: Value,
    /// What is.
    pub used: Value,
    /// What replies that run may use, at most, and of a day and a month batches, too.
    pub held: Value,
    /// When more is free of it; none: all is, or waiting does not help.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resets_at: Option<String>,
    /// Of money: all that was used has a price. If not, more was spent than is said here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub costs_known: Option<bool>,
    /// How much is used, per cent, so that the fullest can be shown first.
    #[serde(skip)]
    pub percent: i128,
}

/// An account's limits, as they are.
pub(super) fn show(accounts: &Accounts, now: Now, line: &Line) -> Vec<Shown> {
    let subject = &line.subject;
    let each = line.limits.iter().map(|limit| {
        let used = accounts.used(now, subject, limit.window);
        let shown = |n| quantity(limit.unit, n);
        let begun = match limit.window {
            Window::Day | Window::Month => accounts.begun(subject).get(limit.unit),
            Window::Minute | Window::Call => 0,
        };
        Shown {
            scope: subject.whose,
            name: Some(subject.name.clone()).filter(|name| !name.is_empty()),
            window: limit.window,
            unit: limit.unit,
            limit: shown(limit.most),
            used: shown(used.get(limit.unit)),
            held: shown(accounts.held(subject).get(limit.unit) + begun),
            resets_at: accounts.resets_at(now, subject, limit.window, limit.unit).map(|at| Moment(at).to_string()),
            costs_known: (limit.unit == Unit::Usd).then_some(!used.unpriced),
            percent: (used.get(limit.unit) * 100).checked_div(limit.most).unwrap_or(100),
        }
    });
    each.collect()
}

fn quantity(unit: Unit, n: i128) -> Value {
    match unit {
        Unit::Usd => json!(Usd::from_pico(n)),
        Unit::Tokens => json!(u64::try_from(n).unwrap_or_default()),
    }
}
