//! How much was used in a window of time: the last minute, a day and a month of the calendar (UTC), a whole call.
//!
//! A window that has begun stays until a later one: a clock that goes back gives nothing back. The minute goes by the monotonic
//! clock and slides in steps: what was used counts for 60 to 65 s.
use std::{collections::VecDeque, time::Duration};

use serde::{Deserialize, Serialize};
use time::{Date, Month, OffsetDateTime};

use crate::{
    admit::price::{PriceList, Usd},
    client::wire::Usage,
};

/// Steps of the minute, ms.
const STEP_MS: u128 = 5_000;
/// After so many further steps what was used in one no longer counts.
const STEPS: u64 = 12;
/// Seconds of a day.
const DAY: u64 = 86_400;
/// No reply uses more tokens.
const MOST_TOKENS: u64 = 1 << 48;

/// A moment, on both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// The monotonic one, from whenever it began.
    pub since: Duration,
    /// The one on the wall, Unix seconds.
    pub unix: u64,
}

/// What a limit is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Window {
    /// The last minute.
    Minute,
    /// Today, UTC.
    Day,
    /// This month, UTC.
    Month,
    /// All of a call.
    Call,
}

impl Window {
    /// As it is shown.
    pub fn name(self) -> &'static str {
        match self {
            Self::Minute => "minute",
            Self::Day => "day",
            Self::Month => "month",
            Self::Call => "call",
        }
    }
}

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    /// Money.
    Usd,
    /// Tokens.
    Tokens,
}

impl Unit {
    /// As it is shown.
    pub fn name(self) -> &'static str {
        match self {
            Self::Usd => "usd",
            Self::Tokens => "tokens",
        }
    }
}

/// What something uses, or may use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amount {
    /// Money; none: nobody knows, for there is no price. Then only the tokens count.
    pub usd: Option<Usd>,
    /// Tokens.
    pub tokens: u64,
}

impl Amount {
    /// What this usage of a model comes to. `seconds`: the audio that was written down, where the service counts that.
    pub fn of(prices: &PriceList, model: &str, usage: &Usage, seconds: Option<f64>) -> Self {
        let cost = prices.cost(model, usage, seconds);
        Self { usd: cost.map(|cost| cost.total()), tokens: usage.total_tokens }
    }

    /// The same of something that came in a batch, at its price.
    pub fn of_batch(prices: &PriceList, model: &str, usage: &Usage) -> Self {
        Self { usd: prices.batch_cost(model, usage).map(|cost| cost.total()), tokens: usage.total_tokens }
    }

    /// What a reply comes to at most that reads and writes so many tokens: all of the dearest kind.
    pub fn at_most(prices: &PriceList, model: &str, input_tokens: u64, output_tokens: u64) -> Self {
        let total_tokens = input_tokens.saturating_add(output_tokens);
        Self::of(prices, model, &Usage { input_tokens, output_tokens, total_tokens, ..Usage::default() }, None)
    }
}

/// Sums, whole pico-dollars and tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    pub(super) usd: i128,
    pub(super) tokens: i128,
    /// Something of it has no price.
    pub(super) unpriced: bool,
}

impl Tally {
    /// So much of each. A sum never overflows: an amount is at most 9 million dollars and 2^48 tokens.
    pub(super) fn of(amount: Amount) -> Self {
        let usd = amount.usd.map(|usd| usd.pico().clamp(0, i128::from(i64::MAX)));
        Self {
            usd: usd.unwrap_or_default(),
            tokens: i128::from(amount.tokens.min(MOST_TOKENS)),
            unpriced: usd.is_none() && amount.tokens > 0,
        }
    }

    /// As much of it as has a price.
    pub(super) fn amount(&self) -> Amount {
        let priced = self.usd > 0 || !self.unpriced;
        Amount { usd: priced.then(|| Usd::from_pico(self.usd)), tokens: u64::try_from(self.tokens).unwrap_or(u64::MAX) }
    }

    pub(super) fn add(&mut self, more: Self) {
        self.usd += more.usd;
        self.tokens += more.tokens;
        self.unpriced |= more.unpriced;
    }

    /// Takes away what was added before.
    pub(super) fn subtract(&mut self, less: Self) {
        self.usd -= less.usd;
        self.tokens -= less.tokens;
    }

    /// How much of this.
    pub(super) fn get(&self, unit: Unit) -> i128 {
        match unit {
            Unit::Usd => self.usd,
            Unit::Tokens => self.tokens,
        }
    }
}

/// The last minute.
#[derive(Debug, Default)]
pub(super) struct Minute(VecDeque<(u64, Tally)>);

fn step(since: Duration) -> u64 {
    u64::try_from(since.as_millis() / STEP_MS).unwrap_or(u64::MAX)
}

impl Minute {
    pub(super) fn add(&mut self, since: Duration, more: Tally) {
        let step = step(since);
        while self.0.front().is_some_and(|(at, _)| step > at.saturating_add(STEPS)) {
            self.0.pop_front();
        }
        match self.0.back_mut() {
            Some((at, sum)) if *at >= step => sum.add(more),
            _ => self.0.push_back((step, more)),
        }
    }

    fn counting(&self, since: Duration) -> impl Iterator<Item = &(u64, Tally)> {
        let step = step(since);
        self.0.iter().filter(move |(at, _)| step <= at.saturating_add(STEPS))
    }

    pub(super) fn used(&self, since: Duration) -> Tally {
        self.counting(since).fold(Tally::default(), |mut sum, (_, more)| {
            sum.add(*more);
            sum
        })
    }

    /// When no more than `most` of it counts any longer; zero: now.
    pub(super) fn wait(&self, since: Duration, unit: Unit, most: i128) -> Duration {
        let mut left = self.used(since).get(unit);
        let mut at = since;
        for (step, sum) in self.counting(since) {
            if left <= most {
                break;
            }
            left -= sum.get(unit);
            let ends = u128::from(step.saturating_add(STEPS + 1)) * STEP_MS;
            at = Duration::from_millis(u64::try_from(ends).unwrap_or(u64::MAX));
        }
        at.saturating_sub(since)
    }
}

/// A day or a month of the calendar.
#[derive(Debug, Default)]
pub(super) struct Period {
    index: u64,
    used: Tally,
}

impl Period {
    /// The one that counts when the calendar says `index`.
    pub(super) fn current(&self, index: u64) -> u64 {
        self.index.max(index)
    }

    pub(super) fn used(&self, index: u64) -> Tally {
        if index > self.index { Tally::default() } else { self.used }
    }

    pub(super) fn add(&mut self, index: u64, more: Tally) {
        if index > self.index {
            *self = Self { index, used: Tally::default() };
        }
        self.used.add(more);
    }

    /// Adds what was used in the period `index`, if that one still counts.
    pub(super) fn add_earlier(&mut self, index: u64, more: Tally) {
        if index >= self.index {
            self.add(index, more);
        }
    }
}

/// Days since 1970.
pub(super) fn day_of(unix: u64) -> u64 {
    unix / DAY
}

/// When a day begins, Unix seconds.
pub fn day_start(unix: u64) -> u64 {
    day_of(unix) * DAY
}

/// When a day is over, Unix seconds.
pub(super) fn day_end(day: u64) -> u64 {
    (day + 1) * DAY
}

fn date_of(unix: u64) -> Date {
    let at = i64::try_from(unix).ok().and_then(|unix| OffsetDateTime::from_unix_timestamp(unix).ok());
    at.map_or(Date::MAX, OffsetDateTime::date)
}

/// Months since the year 0.
pub(super) fn month_of(unix: u64) -> u64 {
    let date = date_of(unix);
    u64::try_from(date.year()).unwrap_or_default() * 12 + u64::from(u8::from(date.month())) - 1
}

fn month_begins(month: u64) -> u64 {
    let first = || {
        let (year, of_year) = (i32::try_from(month / 12).ok()?, u8::try_from(month % 12 + 1).ok()?);
        Date::from_calendar_date(year, Month::try_from(of_year).ok()?, 1).ok()
    };
    let begins = first().unwrap_or(Date::MAX).midnight().assume_utc().unix_timestamp();
    u64::try_from(begins).unwrap_or_default()
}

/// When a month begins, Unix seconds.
pub fn month_start(unix: u64) -> u64 {
    month_begins(month_of(unix))
}

/// When a month is over, Unix seconds.
pub(super) fn month_end(month: u64) -> u64 {
    month_begins(month + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Moment;

    fn unix(text: &str) -> u64 {
        text.parse::<Moment>().unwrap().0
    }

    #[test]
    fn days_and_months_are_those_of_the_calendar() {
        for (at, day, day_ends, month, month_ends) in [
            (
                "2026-11-28T09:00:00Z",
                "2026-11-28T00:00:00Z",
                "2026-11-29T00:00:00Z",
                "2026-11-01T00:00:00Z",
                "2026-12-01T00:00:00Z",
            ),
            (
                "2026-12-31T23:59:59Z",
                "2026-12-31T00:00:00Z",
                "2027-01-01T00:00:00Z",
                "2026-12-01T00:00:00Z",
                "2027-01-01T00:00:00Z",
            ),
            (
                "2028-02-29T00:00:00Z",
                "2028-02-29T00:00:00Z",
                "2028-03-01T00:00:00Z",
                "2028-02-01T00:00:00Z",
                "2028-03-01T00:00:00Z",
            ),
        ] {
            let at = unix(at);
            assert_eq!((day_start(at), day_end(day_of(at))), (unix(day), unix(day_ends)));
            assert_eq!((month_start(at), month_end(month_of(at))), (unix(month), unix(month_ends)));
        }
        assert!(month_of(u64::MAX) >= month_of(unix("9999-12-31T00:00:00Z")), "no panic at the end of days");
        month_end(month_of(u64::MAX));
    }

    #[test]
    fn a_minute_slides() {
        let (ms, one) = (Duration::from_millis, Tally { usd: 3, tokens: 10, unpriced: false });
        let mut minute = Minute::default();
        minute.add(ms(1_000), one);
        minute.add(ms(4_999), one);
        minute.add(ms(31_000), one);
        let tokens = |minute: &Minute, at| minute.used(ms(at)).get(Unit::Tokens);
        assert_eq!(
            [31_000, 61_000, 64_999, 65_000, 94_999, 95_000].map(|at| tokens(&minute, at)),
            [30, 30, 30, 10, 10, 0]
        );
        for (most, wait) in [(30, 0), (29, 34_000), (10, 34_000), (9, 64_000)] {
            assert_eq!(minute.wait(ms(31_000), Unit::Tokens, most), ms(wait), "{most}");
        }
        // A clock that went back: nothing is given back, and nothing is lost.
        minute.add(ms(10_000), one);
        assert_eq!((tokens(&minute, 10_000), tokens(&minute, 31_000)), (40, 40));
        minute.add(ms(200_000), one);
        assert_eq!((tokens(&minute, 200_000), minute.0.len()), (10, 1));
    }
}
