//! The pool: whether a request may go, who goes next, and what is known of the account.
//!
//! While nothing is scarce a request passes without touching the queue. A clock that goes back stands still.
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{
    Class, Dimension, Limits,
    aimd::Aimd,
    bucket::Purse,
    meter::{Meter, Short},
    queue::{Job, Queue, Ticket},
    reason::Reason,
    show::{Shown, View, Waiting, jain},
};

/// A batch request that has waited so long...
const AGED: Duration = Duration::from_secs(60);
/// ...goes after so many interactive ones.
const INTERACTIVE_PER_AGED: u32 = 10;
/// There is little left when so many requests of the usual size would not pass...
const SCARCE: u64 = 2;
/// ...and enough again when so many would, for so long.
const AMPLE: u64 = 3;
const AMPLE_FOR: Duration = Duration::from_secs(5);
/// How long the service wants us to wait, if it does not say.
const LIMITED: Duration = Duration::from_secs(1);
/// What it may say.
const LIMITED_RANGE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(120));

/// A request that would like to go.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    /// Who pays.
    pub tenant: &'a str,
    /// The tenant's part against others of its class; 0 counts as 1.
    pub weight: u32,
    /// Who goes first.
    pub class: Class,
    /// What it may use at most.
    pub tokens: u64,
    /// When to give up.
    pub until: Duration,
}

/// What one request may use. Goes back into the pool by [`Pool::settle`] or [`Pool::release`].
#[derive(Debug, PartialEq, Eq)]
#[must_use = "what is reserved stays reserved until it is settled or released"]
pub struct Reservation {
    tokens: u64,
    at: Duration,
}

impl Reservation {
    /// How many tokens.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// When it was granted.
    pub fn at(&self) -> Duration {
        self.at
    }
}

/// The answer to an [`Ask`].
#[derive(Debug, PartialEq, Eq)]
pub enum Asked {
    /// Go.
    Admitted(Reservation),
    /// Wait for [`Pool::poll`] to name the ticket.
    Waits(Ticket, Reason),
    /// It is larger than a limit, or has no time to wait.
    Refused(Reason),
}

/// What the service says of its limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// `rate_limits.updated`.
    Bucket {
        /// Of what.
        dimension: Dimension,
        /// The whole of it.
        limit: Option<u64>,
        /// What is left of it.
        remaining: Option<u64>,
        /// When it is whole again, from now.
        reset: Option<Duration>,
    },
    /// A request was refused for its rate (429), or a reply failed for it.
    Limited {
        /// Of what; `None`: not said, which counts as both requests and tokens.
        dimension: Option<Dimension>,
        /// How long to wait, from now.
        wait: Option<Duration>,
    },
}

#[derive(Debug)]
struct Place {
    class: Class,
    tenant: String,
    until: Duration,
}

#[derive(Debug)]
struct Granted {
    tokens: u64,
    weight: u32,
}

/// One account at the service.
#[derive(Debug)]
pub struct Pool {
    limits: Limits,
    now: Duration,
    aimd: Aimd,
    /// In the order of [`Dimension::ALL`].
    meters: [Meter; 6],
    interactive: Queue,
    batch: Queue,
    /// Interactive requests that went since the last batch request did, or had none to wait for.
    since_batch: u32,
    places: BTreeMap<Ticket, Place>,
    untils: BTreeSet<(Duration, Ticket)>,
    tickets: u64,
    granted: BTreeMap<String, Granted>,
    /// The size of a request that is large among the last ones, tokens.
    usual: u64,
    /// There was little left until then, and for a while after it.
    scarce_until: Option<Duration>,
}

impl Pool {
    /// A pool of which nothing is used.
    pub fn new(limits: Limits, now: Duration) -> Self {
        Self {
            now,
            aimd: Aimd::new(now),
            meters: Dimension::ALL.map(|dimension| Meter::new(dimension, now, &limits)),
            limits,
            interactive: Queue::default(),
            batch: Queue::default(),
            since_batch: 0,
            places: BTreeMap::new(),
            untils: BTreeSet::new(),
            tickets: 0,
            granted: BTreeMap::new(),
            usual: 0,
            scarce_until: None,
        }
    }

    /// Whether a request may go. What is admitted is to be settled or released.
    pub fn ask(&mut self, now: Duration, ask: Ask<'_>) -> Asked {
        let now = self.pass(now);
        self.size(ask.tokens);
        let (purse, free) = match ask.class {
            Class::Interactive if self.batch_is_due(now) => (Purse::Lane, self.interactive.len() == 0),
            Class::Interactive => (Purse::All, self.interactive.len() == 0),
            Class::Batch => (Purse::Rest, self.interactive.len() + self.batch.len() == 0),
        };
        let short = self.short(now, purse, ask.tokens);
        if short.is_none() && free {
            return Asked::Admitted(self.grant(now, ask.tenant, ask.weight, ask.class, purse, ask.tokens));
        }
        let short = if purse == Purse::Lane { self.short(now, Purse::All, ask.tokens) } else { short };
        let reason = self.behind(now, ask.class, short, ask.tokens);
        if reason.wait.is_none() || ask.until <= now {
            self.refuse(&reason);
            return Asked::Refused(reason);
        }
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        let job = Job { tokens: ask.tokens, asked: now };
        self.queue(ask.class).push(ask.tenant, ask.weight, ticket, job);
        self.places.insert(ticket, Place { class: ask.class, tenant: ask.tenant.to_owned(), until: ask.until });
        self.untils.insert((ask.until, ticket));
        Asked::Waits(ticket, reason)
    }

    /// A request that has gone already, whatever is left: it is counted like one that was admitted.
    pub fn charge(&mut self, now: Duration, tenant: &str, weight: u32, class: Class, tokens: u64) -> Reservation {
        let now = self.pass(now);
        self.size(tokens);
        self.grant(now, tenant, weight, class, purse_of(class), tokens)
    }

    /// Whether so little is left that whoever asks for nothing should begin to ask. It begins when somebody waits, when the service
    /// has refused, or when a few requests of the usual size, but no more than half of what there ever is at once, would not pass;
    /// and it ends some time after there is more than that again.
    pub fn is_scarce(&mut self, now: Duration) -> bool {
        let now = self.pass(now);
        let few = if self.scarce_until.is_some() { AMPLE } else { SCARCE };
        let little = |meter: &Meter| {
            let wanted = need_of(meter.dimension, few, self.usual.saturating_mul(few));
            meter.have(now, &self.aimd, Purse::All) < wanted.min((meter.full().saturating_mul(few) / 4).max(1))
        };
        if !self.places.is_empty() || self.aimd.factor(now) < 1.0 || self.meters.iter().take(4).any(little) {
            self.scarce_until = Some(now + AMPLE_FOR);
        } else if self.scarce_until.is_some_and(|until| until <= now) {
            self.scarce_until = None;
        }
        self.scarce_until.is_some()
    }

    /// Whether a request of the usual size would have to wait.
    pub fn is_short(&mut self, now: Duration) -> bool {
        let now = self.pass(now);
        !self.places.is_empty() || self.short(now, Purse::All, self.usual).is_some()
    }

    /// Whether nobody has anything of it.
    pub fn is_idle(&self) -> bool {
        self.places.is_empty() && self.meters.iter().all(|meter| meter.reserved == 0)
    }

    /// Large requests are remembered for a while.
    fn size(&mut self, tokens: u64) {
        self.usual = tokens.max(self.usual - self.usual / 16);
    }

    /// Who may go now, and who has waited too long. Every ticket is named once.
    pub fn poll(&mut self, now: Duration) -> Vec<(Ticket, Result<Reservation, Reason>)> {
        let now = self.pass(now);
        let mut out = Vec::new();
        while let Some((until, ticket)) = self.untils.first().copied()
            && until <= now
        {
            let Some((class, job)) = self.take_out(ticket) else { break };
            let short = self.short(now, purse_of(class), job.tokens);
            let reason = self.behind(now, class, short, job.tokens);
            self.refuse(&reason);
            out.push((ticket, Err(reason)));
        }
        while let Some(named) = self.advance(now) {
            out.push(named);
        }
        out
    }

    /// When [`Self::poll`] has something to do. `None`: nobody waits. Ask again after every change.
    pub fn next(&self, now: Duration) -> Option<Duration> {
        let now = now.max(self.now);
        let (until, _) = self.untils.first()?;
        let goes = self.turns(now).into_iter().flatten().filter_map(|(class, purse)| {
            let (_, _, job) = self.queue_of(class).head()?;
            let wait = self.short(now, purse, job.tokens).and_then(|short| short.wait);
            Some(now + wait.unwrap_or_default())
        });
        Some(goes.min().map_or(*until, |at| at.min(*until)).max(now))
    }

    /// Nobody waits for it any more.
    pub fn cancel(&mut self, ticket: Ticket) {
        self.take_out(ticket);
    }

    /// A request has ended and used so much; what it did not use goes back.
    pub fn settle(&mut self, now: Duration, reservation: Reservation, used: u64) {
        self.end(now, &reservation, 1, used);
    }

    /// A request never reached the service; all goes back.
    pub fn release(&mut self, now: Duration, reservation: Reservation) {
        self.end(now, &reservation, 0, 0);
    }

    /// A session would like to open. [`Self::left`] is to be called when it has ended.
    ///
    /// # Errors
    /// There are too many, or too many have come. Nothing waits: the caller comes again.
    pub fn connect(&mut self, now: Duration) -> Result<(), Reason> {
        let now = self.pass(now);
        let aimd = &self.aimd;
        let [.., connects, sessions] = &mut self.meters;
        for meter in [&mut *connects, &mut *sessions] {
            if let Err(short) = meter.check(now, aimd, Purse::All, 1) {
                return Err(reason(meter.dimension, 1, short));
            }
        }
        connects.take(now, aimd, Purse::All, 1);
        connects.reserved = 0; // it is over as soon as it has happened
        sessions.take(now, aimd, Purse::All, 1);
        Ok(())
    }

    /// A session would like to open in the place of one that is lost: it has its place.
    ///
    /// # Errors
    /// As for [`Self::connect`].
    pub fn reconnect(&mut self, now: Duration) -> Result<(), Reason> {
        let now = self.pass(now);
        let aimd = &self.aimd;
        let [.., connects, _] = &mut self.meters;
        connects.check(now, aimd, Purse::All, 1).map_err(|short| reason(connects.dimension, 1, short))?;
        connects.take(now, aimd, Purse::All, 1);
        connects.reserved = 0;
        Ok(())
    }

    /// Somebody has given up for this reason.
    pub fn gave_up(&mut self, reason: &Reason) {
        self.refuse(reason);
    }

    /// A session has ended.
    pub fn left(&mut self) {
        let [.., sessions] = &mut self.meters;
        sessions.reserved = sessions.reserved.saturating_sub(1);
    }

    /// Takes what the service says.
    pub fn heard(&mut self, now: Duration, heard: Heard) {
        let now = self.pass(now);
        match heard {
            Heard::Bucket { dimension, limit, remaining, reset } => {
                let limits = &self.limits;
                let meters = self.meters.iter_mut();
                for meter in meters.filter(|meter| meter.dimension == dimension) {
                    meter.refill(now, &self.aimd);
                    meter.hear(now, limits, limit, remaining, reset);
                }
            }
            Heard::Limited { dimension, wait } => {
                let rates = [Dimension::Requests, Dimension::Tokens];
                let wait = wait.unwrap_or(LIMITED).clamp(LIMITED_RANGE.0, LIMITED_RANGE.1);
                for meter in &mut self.meters {
                    meter.refill(now, &self.aimd);
                    if dimension.map_or(rates.contains(&meter.dimension), |named| named == meter.dimension) {
                        meter.limited(now + wait);
                    }
                }
                if dimension.is_none_or(|named| rates.contains(&named)) {
                    self.aimd.halve(now);
                }
            }
        }
    }

    /// Other limits. Who waits, waits on; reservations stay.
    pub fn reload(&mut self, now: Duration, limits: Limits) {
        let now = self.pass(now);
        for meter in &mut self.meters {
            meter.refill(now, &self.aimd);
            meter.tune(now, &limits);
        }
        self.limits = limits;
    }

    /// The pool as it is.
    pub fn view(&self, now: Duration) -> View {
        let now = now.max(self.now);
        let dimensions = self.meters.iter().map(|meter| {
            let available = Some(meter.have(now, &self.aimd, Purse::All)).filter(|have| *have < u64::MAX);
            Shown {
                dimension: meter.dimension,
                limit: meter.limit(),
                learned: meter.learned(),
                available,
                reserved: meter.reserved,
                refused: meter.refused,
            }
        });
        let waiting = [Class::Interactive, Class::Batch].into_iter().flat_map(|class| {
            let of = move |(tenant, waiting): (&str, usize)| Waiting { class, tenant: tenant.to_owned(), waiting };
            self.queue_of(class).by_tenant().map(of)
        });
        let shares = self.granted.values().map(|granted| granted.tokens as f64 / f64::from(granted.weight));
        View {
            dimensions: dimensions.collect(),
            factor: self.aimd.factor(now),
            waiting: waiting.collect(),
            granted: self.granted.values().map(|granted| granted.tokens).fold(0, u64::saturating_add),
            fairness: jain(shares),
        }
    }

    fn pass(&mut self, now: Duration) -> Duration {
        self.now = self.now.max(now);
        self.now
    }

    fn queue(&mut self, class: Class) -> &mut Queue {
        match class {
            Class::Interactive => &mut self.interactive,
            Class::Batch => &mut self.batch,
        }
    }

    fn queue_of(&self, class: Class) -> &Queue {
        match class {
            Class::Interactive => &self.interactive,
            Class::Batch => &self.batch,
        }
    }

    /// The batch request whose turn it is has waited too long.
    fn batch_is_due(&self, now: Duration) -> bool {
        let aged = |job: &Job| now.saturating_sub(job.asked) >= AGED;
        self.since_batch >= INTERACTIVE_PER_AGED && self.batch.head().is_some_and(|(_, _, job)| aged(job))
    }

    /// Who may go next, and out of what it is paid. If the first cannot go yet, the second may.
    fn turns(&self, now: Duration) -> [Option<(Class, Purse)>; 2] {
        let first = if self.batch_is_due(now) {
            return [Some((Class::Batch, Purse::Main)), Some((Class::Interactive, Purse::Lane))];
        } else if self.interactive.len() > 0 {
            Class::Interactive
        } else {
            Class::Batch
        };
        [Some((first, purse_of(first))), None]
    }

    /// Lets the next one go, or turns it away if a limit has become lower than what it needs.
    fn advance(&mut self, now: Duration) -> Option<(Ticket, Result<Reservation, Reason>)> {
        for (class, purse) in self.turns(now).into_iter().flatten() {
            let Some((_, ticket, job)) = self.queue_of(class).head() else { continue };
            let tokens = job.tokens;
            match self.short(now, purse, tokens) {
                Some(reason) if reason.wait.is_none() => {
                    self.take_out(ticket);
                    self.refuse(&reason);
                    return Some((ticket, Err(reason)));
                }
                Some(_) => {}
                None => {
                    let weight = self.queue_of(class).head_weight();
                    self.queue(class).pop();
                    let place = self.forget(ticket)?;
                    return Some((ticket, Ok(self.grant(now, &place.tenant, weight, class, purse, tokens))));
                }
            }
        }
        None
    }

    /// The dimension that keeps it back longest.
    fn short(&self, now: Duration, purse: Purse, tokens: u64) -> Option<Reason> {
        let mut worst: Option<Reason> = None;
        for meter in self.meters.iter().take(4) {
            let need = need_of(meter.dimension, 1, tokens);
            let Err(short) = meter.check(now, &self.aimd, purse, need) else { continue };
            let longest = |reason: &Reason| reason.wait.unwrap_or(Duration::MAX);
            let found = reason(meter.dimension, need, short);
            if worst.as_ref().is_none_or(|worst| longest(&found) > longest(worst)) {
                worst = Some(found);
            }
        }
        worst
    }

    /// The same for somebody who comes after all who wait: a guess, since nobody knows what will be given back.
    fn behind(&self, now: Duration, class: Class, short: Option<Reason>, tokens: u64) -> Reason {
        let ahead = match class {
            Class::Interactive => (self.interactive.len(), self.interactive.tokens()),
            Class::Batch => (
                self.interactive.len() + self.batch.len(),
                self.interactive.tokens().saturating_add(self.batch.tokens()),
            ),
        };
        let slowest = self.meters.iter().take(2).max_by_key(|meter| {
            let (requests, tokens) = (ahead.0 as u64, ahead.1);
            meter.lasts(need_of(meter.dimension, requests, tokens))
        });
        let (dimension, lasts) = slowest.map_or((Dimension::Requests, Duration::ZERO), |meter| {
            (meter.dimension, meter.lasts(need_of(meter.dimension, ahead.0 as u64, ahead.1)))
        });
        let mut reason = short.unwrap_or_else(|| {
            let need = need_of(dimension, 1, tokens);
            let have = self.meters.iter().find(|meter| meter.dimension == dimension);
            let have = have.map_or(0, |meter| meter.have(now, &self.aimd, purse_of(class)));
            Reason { dimension, need, have, wait: Some(Duration::from_millis(1)), ahead: 0 }
        });
        reason.wait = reason.wait.map(|wait| wait.saturating_add(lasts));
        reason.ahead = self.queue_of(class).len();
        reason
    }

    fn refuse(&mut self, reason: &Reason) {
        for meter in self.meters.iter_mut().filter(|meter| meter.dimension == reason.dimension) {
            meter.refused += 1;
        }
    }

    fn grant(
        &mut self,
        now: Duration,
        tenant: &str,
        weight: u32,
        class: Class,
        purse: Purse,
        tokens: u64,
    ) -> Reservation {
        for meter in self.meters.iter_mut().take(4) {
            meter.take(now, &self.aimd, purse, need_of(meter.dimension, 1, tokens));
        }
        self.since_batch = match class {
            Class::Interactive if self.batch.len() > 0 => self.since_batch.saturating_add(1),
            _ => 0,
        };
        let weight = weight.max(1);
        match self.granted.get_mut(tenant) {
            Some(granted) => {
                granted.tokens = granted.tokens.saturating_add(tokens);
                granted.weight = weight;
            }
            None => {
                self.granted.insert(tenant.to_owned(), Granted { tokens, weight });
            }
        }
        Reservation { tokens, at: now }
    }

    fn end(&mut self, now: Duration, reservation: &Reservation, requests: u64, used: u64) {
        let now = self.pass(now);
        for meter in self.meters.iter_mut().take(4) {
            let dimension = meter.dimension;
            let (had, used) = (need_of(dimension, 1, reservation.tokens), need_of(dimension, requests, used));
            meter.settle(now, &self.aimd, reservation.at, had, used);
        }
    }

    /// Takes somebody out of the queue who does not go.
    fn take_out(&mut self, ticket: Ticket) -> Option<(Class, Job)> {
        let place = self.forget(ticket)?;
        let job = self.queue(place.class).remove(&place.tenant, ticket)?;
        Some((place.class, job))
    }

    fn forget(&mut self, ticket: Ticket) -> Option<Place> {
        let place = self.places.remove(&ticket)?;
        self.untils.remove(&(place.until, ticket));
        Some(place)
    }
}

fn purse_of(class: Class) -> Purse {
    match class {
        Class::Interactive => Purse::All,
        Class::Batch => Purse::Rest,
    }
}

fn need_of(dimension: Dimension, requests: u64, tokens: u64) -> u64 {
    match dimension {
        Dimension::Tokens | Dimension::TokensDay => tokens,
        _ => requests,
    }
}

fn reason(dimension: Dimension, need: u64, short: Short) -> Reason {
    Reason { dimension, need, have: short.have, wait: short.wait, ahead: 0 }
}
