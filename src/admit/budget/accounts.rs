//! What each tenant, key, end user and call has used and may be using, against what it may. Pure, with the time passed in.
//!
//! Before a reply, what it may use at most is held in all of its accounts or in none ([`Accounts::ask`]); afterwards what it did use
//! takes the hold's place. What is used and held together never passes a limit, but by what was not asked for
//! ([`Accounts::hold`], [`Accounts::add`]) and by replies that used more than was held for them: that is counted in full.
use std::{collections::HashMap, time::Duration};

use serde::Serialize;

use super::{
    told::{Low, Spent, Standing},
    window::{Amount, Minute, Now, Period, Tally, Unit, Window, day_end, day_of, month_end, month_of},
};

/// End users that are remembered. Past it, a tenth is forgotten, the oldest ones of the tenants that have most: what they have used
/// counts no longer for their own limits.
const USERS: usize = 100_000;
/// Where only other batches stand in the way, one of them may be over in so many seconds.
const BATCH_ENDS: u64 = 300;

/// Whose account it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Whose {
    /// All calls of a tenant.
    Tenant,
    /// Those by one of its keys.
    Key,
    /// Those of one of its end users.
    User,
    /// One call.
    Call,
}

impl Whose {
    /// As it is shown.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tenant => "tenant",
            Self::Key => "key",
            Self::User => "user",
            Self::Call => "call",
        }
    }
}

/// One account. A key is known by its label, as in the ledger: two of the same label are one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subject {
    /// The tenant's id.
    pub tenant: String,
    /// Whose it is.
    pub whose: Whose,
    /// The key's label, the user's name, the call's id; empty for the tenant.
    pub name: String,
}

/// One limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// What it is for.
    pub window: Window,
    /// What it counts.
    pub unit: Unit,
    /// So much, pico-dollars or tokens.
    pub most: i128,
}

/// An account, and its limits as they are now.
#[derive(Debug, Clone)]
pub struct Line {
    /// Which.
    pub subject: Subject,
    /// What it may use.
    pub limits: Vec<Limit>,
}

#[derive(Debug, Default)]
struct Account {
    minute: Minute,
    day: Period,
    month: Period,
    whole: Tally,
    held: Tally,
    /// Replies for which something is held.
    holds: usize,
    /// Its call is over.
    closed: bool,
    /// Last used.
    touched: Duration,
}

impl Account {
    fn used(&self, now: Now, window: Window) -> Tally {
        match window {
            Window::Minute => self.minute.used(now.since),
            Window::Day => self.day.used(day_of(now.unix)),
            Window::Month => self.month.used(month_of(now.unix)),
            Window::Call => self.whole,
        }
    }

    /// Tells one window from the next.
    fn period(&self, now: Now, window: Window) -> u64 {
        match window {
            Window::Minute => now.since.as_secs() / 60,
            Window::Day => self.day.current(day_of(now.unix)),
            Window::Month => self.month.current(month_of(now.unix)),
            Window::Call => 0,
        }
    }

    /// When no more than `most` of this unit counts in the window any longer, Unix seconds; `None`: never.
    fn frees(&self, now: Now, window: Window, unit: Unit, most: i128) -> Option<u64> {
        let period = self.period(now, window);
        (most >= 0).then_some(())?;
        match window {
            Window::Minute => {
                let wait = self.minute.wait(now.since, unit, most);
                Some(now.unix.saturating_add(wait.as_secs() + 1))
            }
            Window::Day => Some(day_end(period)),
            Window::Month => Some(month_end(period)),
            Window::Call => None,
        }
    }

    fn add(&mut self, now: Now, more: Tally) {
        self.minute.add(now.since, more);
        self.add_slow(now, more);
    }

    /// The same of what came in a batch: it was used some time of its day, and says nothing of the last minute.
    fn add_slow(&mut self, now: Now, more: Tally) {
        self.day.add(day_of(now.unix), more);
        self.month.add(month_of(now.unix), more);
        self.whole.add(more);
        self.touched = now.since;
    }

    fn hold(&mut self, now: Now, amount: Tally) {
        self.held.add(amount);
        self.holds += 1;
        self.touched = now.since;
    }

    fn release(&mut self, amount: Tally) {
        self.held.subtract(amount);
        self.holds = self.holds.saturating_sub(1);
    }

    /// Nothing of it counts any more.
    fn is_over(&self, now: Now) -> bool {
        let nothing = |window| self.used(now, window) == Tally::default();
        self.holds == 0 && [Window::Minute, Window::Day, Window::Month].into_iter().all(nothing)
    }
}

/// All accounts.
#[derive(Debug)]
pub struct Accounts {
    all: HashMap<Subject, Account>,
    /// What batches may come to that were begun and are not counted yet. It stands in the way of other batches only: they have a day,
    /// and calls would have nothing left for as long.
    begun: HashMap<Subject, Tally>,
    /// The latest that the clock on the wall has ever said when something changed: it does not go back.
    latest: u64,
    users: usize,
    most_users: usize,
    nothing: Account,
}

impl Default for Accounts {
    fn default() -> Self {
        Self::remembering(USERS)
    }
}

impl Accounts {
    pub(super) fn remembering(most_users: usize) -> Self {
        Self {
            all: HashMap::new(),
            begun: HashMap::new(),
            latest: 0,
            users: 0,
            most_users,
            nothing: Account::default(),
        }
    }

    fn clock(&self, now: Now) -> Now {
        Now { unix: now.unix.max(self.latest), ..now }
    }

    /// The same for a change.
    fn tick(&mut self, now: Now) -> Now {
        let now = self.clock(now);
        self.latest = now.unix;
        now
    }

    fn account(&self, subject: &Subject) -> &Account {
        self.all.get(subject).unwrap_or(&self.nothing)
    }

    fn account_mut(&mut self, now: Now, subject: &Subject) -> &mut Account {
        if subject.whose == Whose::User && !self.all.contains_key(subject) {
            if self.users >= self.most_users {
                self.forget(now);
            }
            self.users += 1;
        }
        self.all.entry(subject.clone()).or_default()
    }

    /// Makes room for a tenth: what no longer counts goes, and if that is not enough, of each tenant that has more users than there is
    /// room for, if all had as many, the oldest.
    fn forget(&mut self, now: Now) {
        self.all.retain(|subject, account| subject.whose == Whose::Call || !account.is_over(now));
        let mut by_tenant: HashMap<String, Vec<Duration>> = HashMap::new();
        for (subject, account) in self.all.iter().filter(|(subject, _)| subject.whose == Whose::User) {
            // What is held stays, and counts as the youngest.
            let touched = if account.holds == 0 { account.touched } else { Duration::MAX };
            match by_tenant.get_mut(&subject.tenant) {
                Some(all) => all.push(touched),
                None => drop(by_tenant.insert(subject.tenant.clone(), vec![touched])),
            }
        }
        let room = self.most_users - self.most_users.div_ceil(10);
        let each = level(by_tenant.values().map(Vec::len), room);
        let goes = by_tenant.into_iter().filter_map(|(tenant, mut touched)| {
            touched.sort_unstable();
            let count = touched.len().saturating_sub(each);
            let last = *touched.get(count.checked_sub(1)?)?;
            // All that are older, and so many of those that are as old.
            let older = touched.partition_point(|touched| *touched < last);
            Some((tenant, (last, count - older)))
        });
        let mut goes: HashMap<String, (Duration, usize)> = goes.collect();
        self.all.retain(|subject, account| {
            let of = goes.get_mut(&subject.tenant).filter(|_| subject.whose == Whose::User && account.holds == 0);
            let Some((last, as_old)) = of.filter(|(last, _)| account.touched <= *last) else { return true };
            if account.touched < *last {
                return false;
            }
            let stays = *as_old == 0;
            *as_old = as_old.saturating_sub(1);
            stays
        });
        self.users = self.all.keys().filter(|subject| subject.whose == Whose::User).count();
    }

    /// What stands in the way of something that needs so much: the limit that is there longest. `held`: also what is held for others.
    pub fn blocks(&self, now: Now, lines: &[Line], need: Amount, held: bool) -> Option<Spent> {
        // As soon as one of the replies that run is over.
        self.blocked(now, lines, need, held, (|subject| self.held(subject), 1))
    }

    /// The same of a batch, for which what other batches may come to counts.
    fn blocks_batch(&self, now: Now, lines: &[Line], need: Amount) -> Option<Spent> {
        self.blocked(now, lines, need, true, (|subject| self.begun(subject), BATCH_ENDS))
    }

    /// `others`: what else is not used yet, and after how many seconds less of it may be there.
    fn blocked(
        &self,
        now: Now,
        lines: &[Line],
        need: Amount,
        held: bool,
        (others, soon): (impl Fn(&Subject) -> Tally, u64),
    ) -> Option<Spent> {
        let (now, need) = (self.clock(now), Tally::of(need));
        let limits = lines.iter().flat_map(|line| line.limits.iter().map(move |limit| (&line.subject, *limit)));
        let blocking = limits.filter_map(|(subject, Limit { window, unit, most })| {
            let account = self.account(subject);
            let (used, others, need) = (account.used(now, window).get(unit), others(subject).get(unit), need.get(unit));
            let fits_alone = used < most && used + need <= most;
            let fits = fits_alone && (!held || used + others + need <= most);
            (!fits).then(|| Spent {
                whose: subject.whose,
                window,
                unit,
                limit: most,
                used,
                held: others,
                need,
                resets_at: match fits_alone {
                    true => Some(now.unix + soon),
                    false => account.frees(now, window, unit, (most - need).min(most - 1)),
                },
            })
        });
        blocking.max_by_key(|spent| spent.resets_at.unwrap_or(u64::MAX))
    }

    /// A batch begins that may come to so much: it counts for other batches until [`Self::batch_over`].
    ///
    /// # Errors
    /// When that is more than one of these accounts has left; then it does not count.
    pub fn begin_batch(&mut self, now: Now, lines: &[Line], need: Amount) -> Result<(), Spent> {
        let now = self.tick(now);
        match self.blocks_batch(now, lines, need) {
            Some(spent) => Err(spent),
            None => {
                self.batch_began(lines.iter().map(|line| &line.subject), need);
                Ok(())
            }
        }
    }

    /// One was begun, whatever is left.
    pub fn batch_began<'s>(&mut self, subjects: impl IntoIterator<Item = &'s Subject>, need: Amount) {
        for subject in subjects {
            self.begun.entry(subject.clone()).or_default().add(Tally::of(need));
        }
    }

    /// What it came to was counted, or it came to nothing.
    pub fn batch_over(&mut self, subjects: &[Subject], need: Amount) {
        for subject in subjects {
            let Some(begun) = self.begun.get_mut(subject) else { continue };
            begun.subtract(Tally::of(need));
            if (begun.usd, begun.tokens) == (0, 0) {
                self.begun.remove(subject);
            }
        }
    }

    /// What batches that were begun may come to.
    pub fn begun(&self, subject: &Subject) -> Tally {
        self.begun.get(subject).copied().unwrap_or_default()
    }

    /// Something of a batch was used: it counts for its day and its month.
    pub fn add_batch<'s>(&mut self, now: Now, subjects: impl IntoIterator<Item = &'s Subject>, used: Amount) {
        let now = self.tick(now);
        for subject in subjects {
            self.account_mut(now, subject).add_slow(now, Tally::of(used));
        }
    }

    /// Holds so much in all of these accounts.
    ///
    /// # Errors
    /// When that is more than one of them has left; then nothing is held.
    pub fn ask(&mut self, now: Now, lines: &[Line], need: Amount) -> Result<(), Spent> {
        let now = self.tick(now);
        match self.blocks(now, lines, need, true) {
            Some(spent) => Err(spent),
            None => {
                self.hold(now, lines.iter().map(|line| &line.subject), need);
                Ok(())
            }
        }
    }

    /// Holds so much in these accounts, whatever is left.
    pub fn hold<'s>(&mut self, now: Now, subjects: impl IntoIterator<Item = &'s Subject>, need: Amount) {
        let now = self.tick(now);
        for subject in subjects {
            self.account_mut(now, subject).hold(now, Tally::of(need));
        }
    }

    /// What was held is held no longer; what was used instead, if anything was.
    pub fn over(&mut self, now: Now, subjects: &[Subject], held: Amount, used: Option<Amount>) {
        let now = self.tick(now);
        for subject in subjects {
            // What is held in an account keeps it.
            let Some(account) = self.all.get_mut(subject) else { continue };
            account.release(Tally::of(held));
            if let Some(used) = used {
                account.add(now, Tally::of(used));
            }
            if account.closed && account.holds == 0 {
                self.all.remove(subject);
            }
        }
    }

    /// Something was used for which nothing was held.
    pub fn add<'s>(&mut self, now: Now, subjects: impl IntoIterator<Item = &'s Subject>, used: Amount) {
        let now = self.tick(now);
        for subject in subjects {
            self.account_mut(now, subject).add(now, Tally::of(used));
        }
    }

    /// Something was used before this process began: in the day and in the month of `then`.
    pub fn add_earlier(&mut self, now: Now, then: u64, subject: &Subject, day: Tally, month: Tally) {
        let account = self.account_mut(now, subject);
        account.day.add_earlier(day_of(then), day);
        account.month.add_earlier(month_of(then), month);
    }

    /// How things stand, where `need` is what another reply may use.
    pub fn standing(&self, now: Now, lines: &[Line], need: Amount, warn_percent: u8) -> Standing {
        let now = self.clock(now);
        let mut low: Vec<Low> = Vec::new();
        for (line, limit) in lines.iter().flat_map(|line| line.limits.iter().map(move |limit| (line, limit))) {
            let Limit { window, unit, most } = *limit;
            let account = self.account(&line.subject);
            let used = account.used(now, window).get(unit);
            // Of nothing, all is used.
            let percent = (used * 100).checked_div(most).unwrap_or(100);
            if percent >= i128::from(warn_percent) {
                let period = account.period(now, window);
                low.push(Low { whose: line.subject.whose, window, unit, used, limit: most, percent, period });
            }
        }
        low.sort_by_key(|low| std::cmp::Reverse(low.percent));
        Standing {
            low,
            spent: self.blocks(now, lines, need, false),
            tight: self.blocks(now, lines, need, true).is_some(),
        }
    }

    /// What an account has used of a window.
    pub fn used(&self, now: Now, subject: &Subject, window: Window) -> Tally {
        self.account(subject).used(self.clock(now), window)
    }

    /// What is held in an account.
    pub fn held(&self, subject: &Subject) -> Tally {
        self.account(subject).held
    }

    /// When more is free of a limit, Unix seconds, where something is used of it; `None`: never, or it is all free.
    pub fn resets_at(&self, now: Now, subject: &Subject, window: Window, unit: Unit) -> Option<u64> {
        let (now, account) = (self.clock(now), self.account(subject));
        let used = account.used(now, window).get(unit);
        (used > 0).then(|| account.frees(now, window, unit, used - 1)).flatten()
    }

    /// A call is over; its account goes as soon as nothing is held in it.
    pub fn close(&mut self, call: &Subject) {
        if let Some(account) = self.all.get_mut(call) {
            account.closed = true;
            if account.holds == 0 {
                self.all.remove(call);
            }
        }
    }

    /// Names of a tenant's accounts of this kind.
    pub fn names(&self, tenant: &str, whose: Whose) -> impl Iterator<Item = &Subject> {
        self.all.keys().filter(move |subject| subject.whose == whose && subject.tenant == tenant)
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }
}

/// The most that each may have so that all of them have no more than `room` together.
fn level(counts: impl Iterator<Item = usize> + Clone, room: usize) -> usize {
    let fits = |each: usize| counts.clone().map(|count| count.min(each)).sum::<usize>() <= room;
    let (mut least, mut most) = (0, counts.clone().max().unwrap_or_default());
    while least < most {
        let middle = most - (most - least) / 2;
        if fits(middle) { least = middle } else { most = middle - 1 }
    }
    least
}
