//! A call's way to its account's quota and to its budgets: one reply at a time is asked for and granted; what runs is counted, and
//! settled.
//!
//! Says to both what the core decides, and to the core what they answer. Decides nothing.
use std::{pin::Pin, sync::Arc, time::Duration};

use tokio::sync::watch;

use super::core::{Size, TurnAct};
use crate::{
    admit::{
        Principal,
        budget::{Amount, Held, Low, Purse, Spent},
        governor::{Class, Dimension, Heard, Reason},
        price::Prices,
        quota::{Answer, Grant, Quota, Turn, Waiting},
    },
    client::wire::Usage,
    config::{Govern, WhenSpent},
    upstream::{Ended, Event, RateLimit, ServiceError, limits::Limit},
    wall::unix_now,
};

/// Replies of one session that are counted at once; the oldest is settled for one more.
const RUNNING: usize = 64;

/// What became of a wish.
#[derive(Debug)]
pub enum Word {
    /// Ask for the reply.
    Granted,
    /// Later; why.
    Waits(Reason),
    /// Not at all; why.
    Refused(Reason),
    /// It has failed, and so have too many others of the account.
    NotAgain,
    /// It cannot be paid.
    TooDear(TooDear),
}

/// Why a reply cannot be paid.
#[derive(Debug)]
pub struct TooDear {
    /// The limit.
    pub spent: Spent,
    /// When there is room again, as far as it is known.
    pub retry_after: Option<Duration>,
    /// What is said before the call ends.
    pub farewell: Option<String>,
    /// The call is about to become cheaper: the next answer may do.
    pub for_now: bool,
}

/// How a call's budgets stand.
#[derive(Debug, Default)]
pub struct Means {
    /// Limits of which little is left, each told once.
    pub low: Vec<Low>,
    /// The next reply must be asked for.
    pub tight: bool,
    /// It cannot be paid.
    pub spent: Option<Spent>,
    /// What is said before the call ends.
    pub farewell: Option<String>,
}

/// What the quota says.
#[derive(Debug)]
pub enum Says {
    /// To the wish of this number.
    Word(u64, Word),
    /// Whether little is left.
    Scarce(bool),
    /// How the budgets stand.
    Means(Means),
}

/// What a reply may use, of the account and of the budgets.
#[derive(Debug)]
struct Granted {
    quota: Grant,
    budget: Held,
}

impl Granted {
    /// The service was asked and nobody knows whether it has heard: its limits may count it, its bill does not.
    fn never_began(self) {
        self.quota.settle(None);
    }

    fn settle(self, used: Option<(u64, Amount)>) {
        let (tokens, amount) = used.unzip();
        self.quota.settle(tokens);
        let most = self.budget.amount();
        self.budget.settle(amount.unwrap_or(most));
    }
}

/// One call's. A reply goes through it from `waiting` to `granted` (it may be asked for), `asked` (the service was asked) and
/// `running`; those that the service begins by itself run at once.
#[derive(Debug)]
pub struct Turnstile {
    quota: Arc<Quota>,
    model: String,
    tenant: String,
    weight: u32,
    class: Class,
    patience: Duration,
    /// What the last wish was for.
    wished: Size,
    scarce: watch::Receiver<bool>,
    /// The account's limits keep nothing back.
    free: bool,
    purse: Purse,
    prices: Prices,
    waiting: Option<(u64, Pin<Box<Waiting>>, Held)>,
    granted: Option<Granted>,
    asked: Vec<Granted>,
    /// For the answer that the service is about to give.
    expected: Option<Held>,
    /// By the service's ids.
    running: Vec<(String, Granted)>,
}

impl Turnstile {
    /// For calls of this one with this model; a turn waits so long at most. `purse`: the call's.
    pub fn new(
        quota: Arc<Quota>,
        model: &str,
        who: &Principal,
        (govern, patience): (Govern, Duration),
        (purse, prices): (Purse, Prices),
    ) -> Self {
        let (model, tenant) = (model.to_owned(), who.tenant_id().to_owned());
        let (weight, class) = (who.weight(), who.class());
        let (scarce, free) = (quota.scarcity(&model), govern == Govern::Never);
        let (waiting, granted, expected, asked, running) = (None, None, None, Vec::new(), Vec::new());
        Self {
            quota,
            model,
            tenant,
            weight,
            class,
            patience,
            wished: Size::default(),
            scarce,
            free,
            purse,
            prices,
            waiting,
            granted,
            asked,
            expected,
            running,
        }
    }

    /// Sessions are another account's or model's from now on: what runs is settled where it ran, and who waits there waits here; what it
    /// is to be told.
    pub fn moves(&mut self, quota: Arc<Quota>, model: &str) -> Option<Says> {
        let waits = self.waiting.take().map(|(number, ..)| number);
        self.forget();
        self.lose();
        self.scarce = quota.scarcity(model);
        (self.quota, self.model) = (quota, model.to_owned());
        waits.and_then(|number| self.act(TurnAct::Ask { number, size: self.wished, again: false }))
    }

    fn turn(&self, size: Size) -> Turn<'_> {
        let Self { model, tenant, weight, class, patience, .. } = self;
        let tokens = size.tokens();
        Turn { model, tenant, weight: *weight, class: *class, tokens, patience: *patience }
    }

    fn at_most(&self, size: Size) -> Amount {
        Amount::at_most(&self.prices.load(), &self.model, size.input, size.output)
    }

    fn used(&self, usage: &Usage) -> (u64, Amount) {
        (usage.total_tokens, Amount::of(&self.prices.load(), &self.model, usage, None))
    }

    /// Does what the core says; what it is to be told.
    pub fn act(&mut self, act: TurnAct) -> Option<Says> {
        match act {
            TurnAct::Ask { again: true, number, .. } if !self.quota.may_retry(&self.model) => {
                return Some(Says::Word(number, Word::NotAgain));
            }
            TurnAct::Ask { number, size, .. } => return Some(Says::Word(number, self.ask(number, size))),
            TurnAct::Forget => self.forget(),
            TurnAct::Asked { size } => {
                // More was said while it waited.
                let granted = self.granted.take().filter(|granted| granted.quota.tokens() >= size.tokens());
                let granted = granted.unwrap_or_else(|| self.charge(size));
                self.asked.push(granted);
            }
            TurnAct::Again => self.granted = self.asked.pop(),
            TurnAct::Never { used } => {
                let used = used.map(|usage| self.used(&usage));
                self.asked.drain(..).for_each(|granted| granted.settle(used));
            }
            TurnAct::Began { response, asked, size } => {
                if self.running.len() == RUNNING {
                    self.running.remove(0).1.settle(None);
                }
                let granted = if asked { self.asked.pop() } else { None };
                let granted = granted.unwrap_or_else(|| self.charge(size));
                self.running.push((response, granted));
            }
            TurnAct::Over { response, used, next } => {
                self.over(&response, used.as_ref());
                return Some(Says::Means(self.means(next)));
            }
            TurnAct::Look { next } => return Some(Says::Means(self.look(next))),
            TurnAct::Lost => self.lose(),
        }
        None
    }

    fn ask(&mut self, number: u64, size: Size) -> Word {
        self.forget();
        (self.expected, self.wished) = (None, size);
        let budget = match self.purse.ask(self.at_most(size)) {
            Ok(held) => held,
            Err(spent) => {
                let wait = spent.resets_at.map(|at| Duration::from_secs(at.saturating_sub(unix_now()).max(1)));
                let farewell = self.purse.when_spent().1;
                return Word::TooDear(TooDear { spent, retry_after: wait, farewell, for_now: false });
            }
        };
        if self.free {
            self.granted = Some(Granted { quota: self.quota.charge(self.turn(size)), budget });
            return Word::Granted;
        }
        match self.quota.ask(self.turn(size)) {
            Answer::Granted(quota) => {
                self.granted = Some(Granted { quota, budget });
                Word::Granted
            }
            Answer::Waits(waiting, reason) => {
                self.waiting = Some((number, Box::pin(waiting), budget));
                Word::Waits(reason)
            }
            Answer::Refused(reason) => Word::Refused(reason),
        }
    }

    /// A reply that nobody asked for, or that has become larger meanwhile.
    fn charge(&mut self, size: Size) -> Granted {
        self.expected = None;
        Granted { quota: self.quota.charge(self.turn(size)), budget: self.purse.charge(self.at_most(size)) }
    }

    /// The service may answer by itself soon: that is held now, so that all who begin to speak at once see each other.
    fn look(&mut self, next: Size) -> Means {
        self.expected = None;
        let mut means = self.means(next);
        match self.purse.ask(self.at_most(next)) {
            Ok(held) => self.expected = Some(held),
            Err(_) => means.tight = true,
        }
        means
    }

    fn means(&mut self, next: Size) -> Means {
        let need = self.at_most(next);
        let standing = self.purse.standing(need);
        let farewell = standing.spent.as_ref().and_then(|_| self.purse.when_spent().1);
        Means { low: standing.low, tight: standing.tight || standing.spent.is_some(), spent: standing.spent, farewell }
    }

    /// What was used beside replies, by this model: words that were written down.
    pub fn spend(&self, model: &str, usage: &Usage, seconds: Option<f64>) {
        self.purse.spend(Amount::of(&self.prices.load(), model, usage, seconds));
    }

    /// Whether the call shall go on with something cheaper, when little is left.
    pub fn degrades(&self) -> bool {
        self.purse.when_spent().0 == WhenSpent::Degrade
    }

    /// What the call has used so far.
    pub fn spent(&self) -> Amount {
        self.purse.used()
    }

    /// Nothing waits any more, and nothing may be asked for.
    pub fn forget(&mut self) {
        (self.waiting, self.granted) = (None, None);
    }

    /// A reply is over.
    pub fn over(&mut self, response: &str, used: Option<&Usage>) {
        let used = used.map(|usage| self.used(usage));
        if let Some(at) = self.running.iter().position(|(running, _)| running == response) {
            self.running.swap_remove(at).1.settle(used);
        }
    }

    fn lose(&mut self) {
        self.expected = None;
        self.running.drain(..).for_each(|(_, granted)| granted.settle(None));
        self.asked.drain(..).for_each(Granted::never_began);
    }

    /// Whether little is left.
    pub fn is_scarce(&mut self) -> bool {
        *self.scarce.borrow_and_update()
    }

    /// Waits for what the quota has to say.
    pub async fn says(&mut self) -> Says {
        let waiting = async {
            match &mut self.waiting {
                Some((number, waiting, _)) => (*number, waiting.as_mut().await),
                None => std::future::pending().await,
            }
        };
        let (number, said) = tokio::select! {
            said = waiting => said,
            Ok(()) = self.scarce.changed() => return Says::Scarce(*self.scarce.borrow_and_update()),
        };
        let budget = self.waiting.take().map(|(.., budget)| budget);
        let word = match (said, budget) {
            (Ok(quota), Some(budget)) => {
                self.granted = Some(Granted { quota, budget });
                Word::Granted
            }
            (Err(reason), _) => Word::Refused(reason),
            (Ok(_), None) => unreachable!("whoever waits has a budget for it"),
        };
        Says::Word(number, word)
    }

    /// Tells the quota what an event of the session says of limits.
    pub fn heard(&self, event: &Event) {
        match event {
            Event::RateLimits(limits) => {
                limits.iter().filter_map(bucket).for_each(|heard| self.quota.heard(&self.model, heard));
            }
            Event::ReplyDone { ended: Ended::Failed, limit: Some(limit), retry_after, .. }
            | Event::Error(ServiceError { limit: Some(limit), retry_after, .. }) => {
                if let Some(dimension) = dimension(*limit) {
                    let dimension = Some(dimension);
                    self.quota.heard(&self.model, Heard::Limited { dimension, wait: *retry_after });
                }
            }
            _ => {}
        }
    }
}

impl Drop for Turnstile {
    /// What runs when a call ends goes on at the service, and nobody knows for how long.
    fn drop(&mut self) {
        self.lose();
    }
}

fn bucket(limit: &RateLimit) -> Option<Heard> {
    // Requests are told by the day where they are told at all (realtime-protocol section 5).
    let dimension = match limit.name.as_str() {
        "tokens" => Dimension::Tokens,
        "requests" if limit.reset_seconds.is_some_and(|reset| reset > 120.0) => Dimension::RequestsDay,
        "requests" => Dimension::Requests,
        _ => return None,
    };
    let reset = limit.reset_seconds.filter(|reset| (0.0..1e9).contains(reset)).map(Duration::from_secs_f64);
    Some(Heard::Bucket { dimension, limit: limit.limit, remaining: limit.remaining, reset })
}

fn dimension(limit: Limit) -> Option<Dimension> {
    Some(match limit {
        Limit::Tokens => Dimension::Tokens,
        Limit::Requests => Dimension::Requests,
        // Which of the two is not told apart; a day's tokens are limited more rarely.
        Limit::Day => Dimension::RequestsDay,
        Limit::Connect => Dimension::Connects,
        Limit::Concurrency => Dimension::Sessions,
        // Of nothing that a reply takes.
        Limit::Mint | Limit::Quota => return None,
    })
}
