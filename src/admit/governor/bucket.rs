//! Our own count of what may be sent: a [`Bucket`] for limits by the minute, a [`Window`] for those by the day.
//!
//! A minute is enforced in parts of it (`burst`), because services do: whoever sends a minute's worth at once is refused.
//! A day's worth may be used at once, but never twice in any 24 hours.
//!
//! A tenth of what comes into a bucket goes into its lane, from which only interactive requests take; when the lane is full,
//! all goes to the rest. Batch takes only what is over a lane's worth, so that somebody on the line always finds that much.
//! So batch can have the whole rate, and a bucket that a giant has emptied still has a tenth of it for who waits on the line.
use std::{collections::VecDeque, time::Duration};

use super::aimd::Aimd;

/// The lane's part of the rate, of the burst and of a day.
const LANE: f64 = 0.1;

/// Out of what a request is paid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purse {
    /// Everything: an interactive request.
    All,
    /// What is over when the lane's worth is left for others: a batch request.
    Rest,
    /// All but the lane, however empty that is: a batch request that has waited too long.
    Main,
    /// The lane only: an interactive request while such a one has its turn.
    Lane,
}

/// A limit by the minute.
#[derive(Debug)]
pub(super) struct Bucket {
    per_second: f64,
    most: u64,
    main_cap: f64,
    lane_cap: f64,
    main: f64,
    lane: f64,
    at: Duration,
}

impl Bucket {
    /// Full, for so many a minute.
    pub(super) fn new(now: Duration, limit: u64, use_percent: u8, burst: Duration) -> Self {
        let mut bucket =
            Self { per_second: 0.0, most: 0, main_cap: 0.0, lane_cap: 0.0, main: f64::MAX, lane: f64::MAX, at: now };
        bucket.tune(limit, use_percent, burst);
        bucket
    }

    /// Another limit. What is in it stays, as far as it fits.
    pub(super) fn tune(&mut self, limit: u64, use_percent: u8, burst: Duration) {
        let used = limit as f64 * f64::from(use_percent) / 100.0;
        let burst = burst.as_secs_f64().clamp(0.001, 60.0);
        // One request must fit, or none ever goes.
        let cap = if limit == 0 { 0.0 } else { (used * burst / 60.0).max(1.0) };
        self.per_second = used / 60.0;
        self.most = most(limit, use_percent);
        self.lane_cap = if cap < 2.0 { 0.0 } else { (cap * LANE).max(1.0) };
        self.main_cap = cap - self.lane_cap;
        (self.main, self.lane) = (self.main.min(self.main_cap), self.lane.min(self.lane_cap));
    }

    /// The largest request that can ever go.
    pub(super) fn most(&self) -> u64 {
        self.most
    }

    /// How long so much lasts at the full rate.
    pub(super) fn lasts(&self, amount: f64) -> Duration {
        Duration::try_from_secs_f64(amount / self.per_second).unwrap_or_default()
    }

    /// What is in it when it is full.
    pub(super) fn cap(&self) -> f64 {
        self.main_cap + self.lane_cap
    }

    /// What is in it now, without the lane and in the lane.
    pub(super) fn levels(&self, now: Duration, aimd: &Aimd) -> (f64, f64) {
        let came = if now > self.at { aimd.worth(self.at, now) * self.per_second } else { 0.0 };
        let (main_gap, lane_gap) = (self.main_cap - self.main, self.lane_cap - self.lane);
        let (main, lane) = ((came * (1.0 - LANE)).min(main_gap), (came * LANE).min(lane_gap));
        let over = came - main - lane;
        let (main, lane) = ((main + over).min(main_gap), (lane + over).min(lane_gap));
        (self.main + main, self.lane + lane)
    }

    /// Brings it up to `now`.
    pub(super) fn refill(&mut self, now: Duration, aimd: &Aimd) {
        (self.main, self.lane) = self.levels(now, aimd);
        self.at = self.at.max(now);
    }

    /// How much of it that purse holds.
    pub(super) fn have(&self, now: Duration, aimd: &Aimd, purse: Purse) -> f64 {
        let (main, lane) = self.levels(now, aimd);
        match purse {
            Purse::All if main < 0.0 => lane,
            Purse::All => main + lane,
            Purse::Rest => main + lane - self.lane_cap,
            Purse::Main => main,
            Purse::Lane => lane,
        }
    }

    /// How long until so much may be taken; `None`: now. A request larger than what fits goes when all is full.
    pub(super) fn wait(&self, now: Duration, aimd: &Aimd, purse: Purse, need: f64) -> Option<Duration> {
        let (main, lane) = self.levels(now, aimd);
        let (main_need, lane_need) = (need.min(self.main_cap), need.min(self.lane_cap));
        let by_all = || (need.min(self.cap()) - main - lane).max(-main) / self.per_second;
        let by_main = || {
            let (gap, lane_gap) = (main_need - main, self.lane_cap - lane);
            let beside = lane_gap * (1.0 - LANE) / LANE;
            if gap <= beside { gap / (1.0 - LANE) } else { lane_gap / LANE + (gap - beside) }.max(0.0) / self.per_second
        };
        // Never for giants: at a tenth of the rate they would keep the lane empty for minutes.
        let by_lane = || match self.lane_cap > 0.0 && need <= self.cap() {
            true => (lane_need - lane) / (self.per_second * LANE),
            false => f64::INFINITY,
        };
        let worth = match purse {
            Purse::All if indebted(main) => by_lane().min(by_all()),
            Purse::All => by_all(),
            Purse::Rest => (main_need + self.lane_cap - main - lane) / self.per_second,
            Purse::Main => by_main(),
            Purse::Lane => by_lane(),
        };
        let slack = 1e-6 * (1.0 + need) / self.per_second;
        let longest = Duration::from_secs(86_400);
        (worth > slack).then(|| Duration::try_from_secs_f64(aimd.takes(now, worth)).unwrap_or(longest).min(longest))
    }

    /// Takes it. What does not fit stays as a debt.
    pub(super) fn take(&mut self, purse: Purse, need: f64) {
        match purse {
            Purse::Rest | Purse::Main => self.main -= need,
            Purse::Lane => self.lane -= need,
            Purse::All if indebted(self.main) => self.lane -= need,
            Purse::All => {
                let from_main = need.min(self.main.max(0.0));
                let from_lane = (need - from_main).min(self.lane.max(0.0));
                self.main -= need - from_lane;
                self.lane -= from_lane;
            }
        }
    }

    /// Gives back, or takes more if negative.
    pub(super) fn give(&mut self, amount: f64) {
        let main = (self.main + amount).min(self.main_cap);
        let over = self.main + amount - main;
        (self.main, self.lane) = (main, (self.lane + over).min(self.lane_cap));
    }

    /// The service has refused: what we thought was in it is not.
    pub(super) fn empty(&mut self) {
        (self.main, self.lane) = (self.main.min(0.0), self.lane.min(0.0));
    }
}

/// A giant has left a debt, which the lane does not share.
fn indebted(main: f64) -> bool {
    main < -1e-6
}

/// What `use_percent` of a limit is, in whole requests or tokens; one at least.
fn most(limit: u64, use_percent: u8) -> u64 {
    let used = u128::from(limit) * u128::from(use_percent) / 100;
    u64::try_from(used).unwrap_or(u64::MAX).max(limit.min(1))
}

const DAY: u64 = 86_400;
/// A day is counted in parts of so many seconds; what was used comes back when its part is wholly a day old.
const PART: u64 = 900;

/// A limit by the day.
#[derive(Debug)]
pub(super) struct Window {
    most: u64,
    /// Oldest first: number of the part, used in it.
    parts: VecDeque<(u64, u64)>,
    used: u64,
}

impl Window {
    pub(super) fn new(limit: u64, use_percent: u8) -> Self {
        Self { most: most(limit, use_percent), parts: VecDeque::new(), used: 0 }
    }

    pub(super) fn tune(&mut self, limit: u64, use_percent: u8) {
        self.most = most(limit, use_percent);
    }

    /// The largest request that can ever go.
    pub(super) fn most(&self, purse: Purse) -> u64 {
        let batch = matches!(purse, Purse::Rest | Purse::Main);
        let kept = if batch && self.most >= 10 { self.most / 10 } else { 0 };
        self.most - kept
    }

    /// When a part comes back.
    fn back(part: u64) -> Duration {
        Duration::from_secs((part + 1).saturating_mul(PART).saturating_add(DAY))
    }

    pub(super) fn have(&self, now: Duration, purse: Purse) -> u64 {
        let old = self.parts.iter().take_while(|(part, _)| Self::back(*part) <= now).map(|(_, used)| used);
        self.most(purse).saturating_sub(self.used - old.sum::<u64>())
    }

    /// How long until so much may be taken; `None`: now.
    pub(super) fn wait(&self, now: Duration, purse: Purse, need: u64) -> Option<Duration> {
        let (most, mut used) = (self.most(purse), self.used);
        let fits = |used: u64| used.saturating_add(need) <= most;
        let mut at = now;
        for (part, of_part) in &self.parts {
            let back = Self::back(*part);
            if back > now && fits(used) {
                break;
            }
            used -= of_part;
            at = at.max(back);
        }
        (at > now).then(|| at - now)
    }

    pub(super) fn take(&mut self, now: Duration, amount: u64) {
        while let Some((part, used)) = self.parts.front().copied()
            && Self::back(part) <= now
        {
            self.used -= used;
            self.parts.pop_front();
        }
        self.used = self.used.saturating_add(amount);
        let part = now.as_secs() / PART;
        match self.parts.back_mut() {
            Some((last, used)) if *last >= part => *used = used.saturating_add(amount),
            _ => self.parts.push_back((part, amount)),
        }
    }

    /// Gives back what was taken then; what is older than a day has come back already.
    pub(super) fn give(&mut self, taken: Duration, amount: u64) {
        let part = taken.as_secs() / PART;
        if let Some((_, used)) = self.parts.iter_mut().rev().find(|(at, _)| *at == part) {
            let back = amount.min(*used);
            (*used, self.used) = (*used - back, self.used - back);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    /// 1,000 a second, 6,000 at once, 600 of them in the lane.
    fn bucket() -> (Bucket, Aimd) {
        (Bucket::new(s(0.0), 60_000, 100, s(6.0)), Aimd::new(s(0.0)))
    }

    #[test]
    fn purses() {
        // Taken by batch, then by interactive; who asks for how much; seconds to wait.
        for (name, batch, interactive, purse, need, want) in [
            ("full", 0.0, 0.0, Purse::All, 6_000.0, 0.0),
            ("a giant when it is full", 0.0, 0.0, Purse::All, 50_000.0, 0.0),
            ("a giant of batch too", 0.0, 0.0, Purse::Rest, 50_000.0, 0.0),
            ("batch leaves the lane", 5_400.0, 0.0, Purse::Rest, 100.0, 0.1),
            ("interactive has it", 5_400.0, 0.0, Purse::All, 600.0, 0.0),
            ("and waits for more", 5_400.0, 0.0, Purse::All, 700.0, 0.1),
            ("batch lets the lane fill first", 5_400.0, 600.0, Purse::Rest, 100.0, 0.7),
            ("but not when it has waited too long", 5_400.0, 600.0, Purse::Main, 90.0, 0.1),
            ("all at once then", 5_400.0, 600.0, Purse::Main, 5_400.0, 6.0),
            ("meanwhile a tenth for interactive", 5_400.0, 600.0, Purse::Lane, 60.0, 0.6),
            ("who may have all", 5_400.0, 600.0, Purse::All, 60.0, 0.06),
            ("after a giant the lane is there", 50_000.0, 0.0, Purse::All, 600.0, 0.0),
            ("with a tenth of the rate", 50_000.0, 600.0, Purse::All, 60.0, 0.6),
        ] {
            let (mut bucket, aimd) = bucket();
            bucket.take(Purse::Rest, batch);
            bucket.take(Purse::All, interactive);
            let wait = bucket.wait(s(0.0), &aimd, purse, need).unwrap_or_default().as_secs_f64();
            assert!((wait - want).abs() < 1e-6, "{name}: {wait}");
            let at = s(wait + 1e-9);
            assert!(bucket.wait(at, &aimd, purse, need).is_none_or(|wait| wait < s(0.000_1)), "{name}: not then");
        }
    }

    #[test]
    fn small_limits_let_one_go() {
        for (limit, wait) in [(1, 66.667), (2, 33.334), (10, 6.667), (30, 2.223)] {
            let (mut bucket, aimd) = (Bucket::new(s(0.0), limit, 90, s(6.0)), Aimd::new(s(0.0)));
            while bucket.wait(s(0.0), &aimd, Purse::All, 1.0).is_none() {
                bucket.take(Purse::All, 1.0);
            }
            let next = bucket.wait(s(0.0), &aimd, Purse::All, 1.0).unwrap();
            assert!(next <= s(wait), "{limit}: {next:?}");
            assert!(bucket.most() >= 1);
        }
        assert_eq!(Bucket::new(s(0.0), 0, 90, s(6.0)).most(), 0);
        assert_eq!(Bucket::new(s(0.0), u64::MAX, 100, s(6.0)).most(), u64::MAX);
    }

    #[test]
    fn a_day_comes_back_part_by_part() {
        let h = |hours: u64| Duration::from_secs(hours * 3_600);
        let mut window = Window::new(1_000, 90);
        window.take(h(8), 500);
        window.take(h(12), 400);
        assert_eq!((window.have(h(12), Purse::All), window.have(h(12), Purse::Rest)), (0, 0));
        let back = |hours: u64| h(hours) + Duration::from_secs(PART);
        assert_eq!(window.wait(h(12), Purse::All, 1), Some(back(32) - h(12)));
        assert_eq!(window.wait(h(12), Purse::All, 501), Some(back(36) - h(12)));
        assert_eq!((window.wait(back(32), Purse::All, 500), window.wait(back(32), Purse::Rest, 410)), (None, None));
        assert_eq!(window.have(back(32), Purse::All), 500);
        window.give(h(12), 100);
        assert_eq!(window.have(h(13), Purse::All), 100);
        window.take(back(33), 600);
        window.give(h(8), 500);
        assert_eq!(window.have(back(33), Purse::All), 0, "what has come back is not given back again");
    }
}
