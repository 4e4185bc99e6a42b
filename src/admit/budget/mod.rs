//! Budgets: what a tenant, a key, an end user and a call may spend, in money and in tokens, and what they have.
//!
//! Stands beside the way of audio. A door asks whether a call may begin ([`Budgets::may_begin`]); the call then has a [`Purse`]:
//! before each reply it asks for what that may use at most ([`Purse::ask`]), and afterwards says what it did use
//! ([`Held::settle`]). What is held goes back by itself when it is dropped. Limits are looked up at each question, so that a changed
//! configuration counts at once. What a model without a price uses counts in tokens only, and money is said to be incomplete.
//!
//! It sends nothing, ends nothing and waits for nothing; the lock is held for moments. Each process has its own accounts: they begin with
//! what the ledger knows of this day and this month ([`Budgets::add_earlier`]), and without one at zero; minutes begin at zero.
//!
//! | file | what it is |
//! |---|---|
//! | [`accounts`] | who has used and may be using what, against limits; pure |
//! | [`window`] | minutes, days and months, and amounts; pure |
//! | [`told`] | what is said of it |
pub mod accounts;
pub mod told;
pub mod window;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use arc_swap::ArcSwap;
use tokio::time::Instant;

pub use self::{
    accounts::Whose,
    told::{Low, Shown, Spent, Standing},
    window::{Amount, Unit, Window},
};
use self::{
    accounts::{Accounts, Limit, Line, Subject},
    told::LowKey,
    window::{Now, Tally},
};
use super::{gate::Gate, price::Usd, principal::Principal, tenant::Tenant};
use crate::{
    config::{AllowanceConfig, BudgetConfig, CallAllowanceConfig, WhenSpent},
    ledger::spent::{Spending, Used},
    wall::unix_now,
};

/// End users and calls that are shown, those that have used most of a limit.
const SHOWN: usize = 50;

/// All budgets of this process; clones share them.
#[derive(Debug, Clone)]
pub struct Budgets(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Knows the tenants as they are now; none: as they were when somebody came in.
    gate: Option<Arc<Gate>>,
    /// Of those who are asked for no credential.
    local: Arc<ArcSwap<BudgetConfig>>,
    began: Instant,
    accounts: Mutex<Accounts>,
}

impl Default for Budgets {
    /// Nobody but tenants has limits, and those that they came in with.
    fn default() -> Self {
        Self::begin(None, Arc::default())
    }
}

/// What somebody may spend, as it is now.
struct Terms {
    tenant: Option<Arc<Tenant>>,
    local: Arc<BudgetConfig>,
}

impl Terms {
    fn budget(&self) -> &BudgetConfig {
        self.tenant.as_ref().map_or(&self.local, |tenant| &tenant.config.budget)
    }

    /// The limits of a key.
    fn of_key(&self, label: &str) -> Vec<Limit> {
        let keys = self.tenant.as_ref().map_or(&[][..], |tenant| &tenant.config.keys);
        let own = keys.iter().find(|key| key.label == label).and_then(|key| key.budget.as_ref());
        limits(own.unwrap_or(&self.budget().key))
    }

    /// The limits of an account.
    fn of(&self, subject: &Subject) -> Vec<Limit> {
        match subject.whose {
            Whose::Tenant => limits(&self.budget().all),
            Whose::Key => self.of_key(&subject.name),
            Whose::User => limits(&self.budget().user),
            Whose::Call => limits_of_call(&self.budget().call),
        }
    }

    fn line(&self, tenant: &str, whose: Whose, name: &str) -> Line {
        let subject = Subject { tenant: tenant.to_owned(), whose, name: name.to_owned() };
        Line { limits: self.of(&subject), subject }
    }

    /// The accounts of whoever speaks, and of their call.
    fn lines(&self, who: &Principal, call: Option<&str>) -> Vec<Line> {
        let (tenant, key) = (who.tenant_id(), who.key_label());
        let mut lines = vec![self.line(tenant, Whose::Tenant, "")];
        lines.extend(key.map(|label| self.line(tenant, Whose::Key, &label)));
        lines.extend(who.user().map(|user| self.line(tenant, Whose::User, user)));
        lines.extend(call.map(|call| self.line(tenant, Whose::Call, call)));
        lines
    }
}

fn limits(of: &AllowanceConfig) -> Vec<Limit> {
    let all = [
        (Window::Minute, of.usd_minute, of.tokens_minute),
        (Window::Day, of.usd_day, of.tokens_day),
        (Window::Month, of.usd_month, of.tokens_month),
    ];
    all.into_iter().flat_map(limits_in).collect()
}

fn limits_of_call(of: &CallAllowanceConfig) -> Vec<Limit> {
    limits_in((Window::Call, of.usd, of.tokens)).collect()
}

fn limits_in((window, usd, tokens): (Window, Option<Usd>, Option<u64>)) -> impl Iterator<Item = Limit> {
    let usd = usd.map(|usd| Limit { window, unit: Unit::Usd, most: usd.pico() });
    usd.into_iter().chain(tokens.map(|tokens| Limit { window, unit: Unit::Tokens, most: i128::from(tokens) }))
}

impl Budgets {
    /// Of these tenants, and with these limits for those who are asked for no credential. Nothing is used yet.
    pub fn new(gate: Arc<Gate>, local: Arc<ArcSwap<BudgetConfig>>) -> Self {
        Self::begin(Some(gate), local)
    }

    fn begin(gate: Option<Arc<Gate>>, local: Arc<ArcSwap<BudgetConfig>>) -> Self {
        let accounts = Mutex::default();
        Self(Arc::new(Inner { gate, local, began: Instant::now(), accounts }))
    }

    fn accounts(&self) -> MutexGuard<'_, Accounts> {
        self.0.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Now {
        Now { since: self.0.began.elapsed(), unix: unix_now() }
    }

    fn terms(&self, who: &Principal) -> Terms {
        let now = self.0.gate.as_ref().and_then(|gate| gate.tenant(who.tenant_id()));
        Terms { tenant: who.tenant().cloned().map(|before| now.unwrap_or(before)), local: self.0.local.load_full() }
    }

    /// Whether a call may begin whose first reply may use so much; nothing is held for it. What is held for others does not
    /// count: they will not use all of it.
    ///
    /// # Errors
    /// Which limit leaves no room.
    pub fn may_begin(&self, who: &Principal, need: Amount) -> Result<(), Spent> {
        // An account without a name is nobody's: a call that has used nothing yet.
        let lines = self.terms(who).lines(who, Some(""));
        self.accounts().blocks(self.now(), &lines, need, false).map_or(Ok(()), Err)
    }

    /// A batch may begin that comes to so much at most: that counts for other batches from now on, and for nothing else. A day and a month
    /// are looked at; what a minute and a call may use says nothing of what has a day.
    ///
    /// # Errors
    /// Which limit leaves no room.
    pub fn begin_batch(&self, who: &Principal, need: Amount) -> Result<Begun, Spent> {
        let lines = self.lines_of_batch(who);
        self.accounts().begin_batch(self.now(), &lines, need)?;
        Ok(self.begun(lines, need))
    }

    /// A batch runs already that may come to so much.
    pub fn batch_began(&self, who: &Principal, need: Amount) -> Begun {
        let lines = self.lines_of_batch(who);
        self.accounts().batch_began(lines.iter().map(|line| &line.subject), need);
        self.begun(lines, need)
    }

    fn begun(&self, lines: Vec<Line>, amount: Amount) -> Begun {
        Begun { budgets: self.clone(), subjects: lines.into_iter().map(|line| line.subject).collect(), amount }
    }

    fn lines_of_batch(&self, who: &Principal) -> Vec<Line> {
        let mut lines = self.terms(who).lines(who, None);
        for line in &mut lines {
            line.limits.retain(|limit| matches!(limit.window, Window::Day | Window::Month));
        }
        lines
    }

    /// Whether what this one has done in batches has a limit.
    pub fn limits_batches(&self, who: &Principal) -> bool {
        self.lines_of_batch(who).iter().any(|line| !line.limits.is_empty())
    }

    /// Whether each of its end users has one.
    pub fn limits_users(&self, who: &Principal) -> bool {
        !limits(&self.terms(who).budget().user).is_empty()
    }

    /// The purse of a call. `used`: what it has used in another process that it comes from; of a new one nothing.
    pub fn purse(&self, who: &Principal, call: &str, used: Amount) -> Purse {
        let mut purse = self.beside(who, call);
        purse.closes = true;
        if used != Amount::default() {
            self.accounts().add(self.now(), [&purse.subject()], used);
        }
        purse
    }

    /// Another purse of a call that runs, for what is done for it beside its replies.
    pub fn beside(&self, who: &Principal, call: &str) -> Purse {
        let (who, call, told) = (who.clone(), call.to_owned(), BTreeMap::new());
        Purse { budgets: self.clone(), who, call, told, closes: false }
    }

    /// Takes over what was used in the day and the month of `then`, Unix seconds, before this process began.
    pub fn add_earlier(&self, then: u64, all: &[Spending]) {
        let now = self.now();
        // A lock for each: whoever has many users does not keep others waiting.
        for one in all {
            let subject = |whose, name: &str| Subject { tenant: one.tenant.clone(), whose, name: name.to_owned() };
            let subject = match (&one.key, &one.user) {
                (Some(label), _) => subject(Whose::Key, label),
                (_, Some(user)) => subject(Whose::User, user),
                (None, None) => subject(Whose::Tenant, ""),
            };
            let tally = |used: Used| Tally { usd: used.usd.pico(), tokens: used.tokens, unpriced: used.unpriced };
            self.accounts().add_earlier(now, then, &subject, tally(one.day), tally(one.month));
        }
    }

    /// What a tenant may spend and has, for its own eyes: its limits, those of its keys, and of end users and calls those that
    /// have used most.
    pub fn view(&self, who: &Principal) -> Vec<Shown> {
        let (terms, now, tenant) = (self.terms(who), self.now(), who.tenant_id());
        let keys = terms.tenant.as_ref().map_or(&[][..], |tenant| &tenant.config.keys);
        let keys: BTreeSet<&str> = keys.iter().map(|key| key.label.as_str()).collect();
        let accounts = self.accounts();
        let mut shown = told::show(&accounts, now, &terms.line(tenant, Whose::Tenant, ""));
        for label in keys {
            shown.extend(told::show(&accounts, now, &terms.line(tenant, Whose::Key, label)));
        }
        for whose in [Whose::User, Whose::Call] {
            let limits = terms.line(tenant, whose, "").limits;
            if limits.is_empty() {
                continue;
            }
            let lines = accounts.names(tenant, whose).map(|of| Line { subject: of.clone(), limits: limits.clone() });
            let mut all: Vec<Shown> = lines.flat_map(|line| told::show(&accounts, now, &line)).collect();
            all.sort_by(|a, b| b.percent.cmp(&a.percent).then_with(|| a.name.cmp(&b.name)));
            all.truncate(SHOWN);
            shown.extend(all);
        }
        shown
    }
}

/// One call's way to the budgets. Dropping it forgets what the call has used ([`Budgets::beside`]: not); what its tenant, key and user
/// have, stays.
#[derive(Debug)]
pub struct Purse {
    budgets: Budgets,
    who: Principal,
    call: String,
    /// Warnings that the call has had, and in which period.
    told: BTreeMap<LowKey, u64>,
    /// Dropping it forgets what the call has used.
    closes: bool,
}

impl Purse {
    fn subject(&self) -> Subject {
        Subject { tenant: self.who.tenant_id().to_owned(), whose: Whose::Call, name: self.call.clone() }
    }

    fn lines(&self) -> Vec<Line> {
        self.budgets.terms(&self.who).lines(&self.who, Some(&self.call))
    }

    fn held(&self, lines: Vec<Line>, amount: Amount) -> Held {
        let subjects = lines.into_iter().map(|line| line.subject).collect();
        Held { budgets: self.budgets.clone(), subjects, amount, live: true }
    }

    /// Asks for a reply that may use so much.
    ///
    /// # Errors
    /// Which limit leaves no room; of several, the one that does so longest.
    pub fn ask(&self, need: Amount) -> Result<Held, Spent> {
        let lines = self.lines();
        self.budgets.accounts().ask(self.budgets.now(), &lines, need)?;
        Ok(self.held(lines, need))
    }

    /// A reply that nobody asked us for has begun: so much is held, whatever is left.
    #[must_use = "dropped, it is given back"]
    pub fn charge(&self, need: Amount) -> Held {
        let lines = self.lines();
        self.budgets.accounts().hold(self.budgets.now(), lines.iter().map(|line| &line.subject), need);
        self.held(lines, need)
    }

    /// Something was used that nobody asked for: a transcription.
    pub fn spend(&self, used: Amount) {
        let lines = self.lines();
        self.budgets.accounts().add(self.budgets.now(), lines.iter().map(|line| &line.subject), used);
    }

    /// Something came in a batch: it counts for its day and its month, not for the last minute.
    pub fn spend_batch(&self, used: Amount) {
        let lines = self.lines();
        self.budgets.accounts().add_batch(self.budgets.now(), lines.iter().map(|line| &line.subject), used);
    }

    /// How things stand, where `need` is what another reply may use. Of what is low, only what was not told before; telling it
    /// once is telling the call.
    pub fn standing(&mut self, need: Amount) -> Standing {
        let warn = self.budgets.terms(&self.who).budget().warn_percent;
        let lines = self.lines();
        let mut standing = self.budgets.accounts().standing(self.budgets.now(), &lines, need, warn);
        standing.low.retain(|low| self.told.insert(low.key(), low.period).is_none_or(|before| before < low.period));
        standing
    }

    /// What becomes of the call when it may spend no more, and what is said before it ends.
    pub fn when_spent(&self) -> (WhenSpent, Option<String>) {
        let terms = self.budgets.terms(&self.who);
        (terms.budget().when_spent, terms.budget().farewell.clone())
    }

    /// What the call has used, for [`Budgets::purse`] in another process.
    pub fn used(&self) -> Amount {
        self.budgets.accounts().used(self.budgets.now(), &self.subject(), Window::Call).amount()
    }
}

impl Drop for Purse {
    fn drop(&mut self) {
        if self.closes {
            self.budgets.accounts().close(&self.subject());
        }
    }
}

/// What a batch may come to, for as long as it is not counted what it did. Dropped, it counts no longer.
#[derive(Debug)]
pub struct Begun {
    budgets: Budgets,
    subjects: Vec<Subject>,
    amount: Amount,
}

impl Drop for Begun {
    fn drop(&mut self) {
        self.budgets.accounts().batch_over(&self.subjects, self.amount);
    }
}

/// What a reply may use.
#[derive(Debug)]
#[must_use = "dropped, it is given back"]
pub struct Held {
    budgets: Budgets,
    subjects: Vec<Subject>,
    amount: Amount,
    live: bool,
}

impl Held {
    /// So much, at most.
    pub fn amount(&self) -> Amount {
        self.amount
    }

    /// The reply is over, and has used so much: more than was held is counted, too.
    pub fn settle(mut self, used: Amount) {
        self.give_back(Some(used));
    }

    fn give_back(&mut self, used: Option<Amount>) {
        if std::mem::take(&mut self.live) {
            self.budgets.accounts().over(self.budgets.now(), &self.subjects, self.amount, used);
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.give_back(None);
    }
}

#[cfg(test)]
mod tests;
