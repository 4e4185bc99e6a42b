//! A call's way to its account's quota: one reply at a time is asked for and granted; what runs is counted, and settled.
//!
//! Says to the quota what the core decides, and to the core what the quota answers. Decides nothing.
use std::{pin::Pin, sync::Arc, time::Duration};

use tokio::sync::watch;

use super::core::TurnAct;
use crate::{
    admit::{
        governor::{Class, Dimension, Heard, Reason},
        quota::{Answer, Grant, Quota, Turn, Waiting},
    },
    upstream::{Ended, Event, RateLimit, ServiceError, limits::Limit},
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
}

/// What the quota says.
#[derive(Debug)]
pub enum Says {
    /// To the wish of this number.
    Word(u64, Word),
    /// Whether little is left.
    Scarce(bool),
}

/// One call's. A reply goes through it from `waiting` to `granted` (it may be asked for), `asked` (the service was asked) and
/// `running`; those that the service begins by itself run at once.
#[derive(Debug)]
pub struct Turnstile {
    quota: Arc<Quota>,
    model: String,
    tenant: String,
    weight: u32,
    patience: Duration,
    scarce: watch::Receiver<bool>,
    waiting: Option<(u64, Pin<Box<Waiting>>)>,
    granted: Option<Grant>,
    asked: Option<Grant>,
    /// By the service's ids.
    running: Vec<(String, Grant)>,
}

impl Turnstile {
    /// For calls of this tenant with this model; a turn waits so long at most.
    pub fn new(quota: Arc<Quota>, model: &str, (tenant, weight): (&str, u32), patience: Duration) -> Self {
        let (model, tenant) = (model.to_owned(), tenant.to_owned());
        let scarce = quota.scarcity(&model);
        let (waiting, granted, asked, running) = (None, None, None, Vec::new());
        Self { quota, model, tenant, weight, patience, scarce, waiting, granted, asked, running }
    }

    fn turn(&self, tokens: u64) -> Turn<'_> {
        let Self { model, tenant, weight, patience, .. } = self;
        Turn { model, tenant, weight: *weight, class: Class::Interactive, tokens, patience: *patience }
    }

    /// Does what the core says; what it is to be told.
    pub fn act(&mut self, act: TurnAct) -> Option<Says> {
        match act {
            TurnAct::Ask { number, tokens } => {
                self.forget();
                let word = match self.quota.ask(self.turn(tokens)) {
                    Answer::Granted(grant) => {
                        self.granted = Some(grant);
                        Word::Granted
                    }
                    Answer::Waits(waiting, reason) => {
                        self.waiting = Some((number, Box::pin(waiting)));
                        Word::Waits(reason)
                    }
                    Answer::Refused(reason) => Word::Refused(reason),
                };
                return Some(Says::Word(number, word));
            }
            TurnAct::Forget => self.forget(),
            TurnAct::Asked { tokens } => {
                // More was said while it waited.
                let grant = self.granted.take_if(|grant| grant.tokens() >= tokens);
                self.granted = None;
                self.asked = grant.or_else(|| Some(self.quota.charge(self.turn(tokens))));
            }
            TurnAct::Again => self.granted = self.asked.take(),
            TurnAct::Never { used } => {
                if let Some(grant) = self.asked.take() {
                    grant.settle(used);
                }
            }
            TurnAct::Began { response, asked, tokens } => {
                if self.running.len() == RUNNING {
                    self.running.remove(0).1.settle(None);
                }
                let grant = self.asked.take_if(|_| asked).unwrap_or_else(|| self.quota.charge(self.turn(tokens)));
                self.running.push((response, grant));
            }
            TurnAct::Over { response, used } => self.over(&response, used),
            TurnAct::Lost => self.lose(),
        }
        None
    }

    /// Nothing waits any more, and nothing may be asked for.
    pub fn forget(&mut self) {
        (self.waiting, self.granted) = (None, None);
    }

    /// A reply is over.
    pub fn over(&mut self, response: &str, used: Option<u64>) {
        if let Some(at) = self.running.iter().position(|(running, _)| running == response) {
            self.running.swap_remove(at).1.settle(used);
        }
    }

    fn lose(&mut self) {
        let running = std::mem::take(&mut self.running).into_iter().map(|(_, grant)| grant);
        running.chain(self.asked.take()).for_each(|grant| grant.settle(None));
    }

    /// Whether little is left.
    pub fn is_scarce(&mut self) -> bool {
        *self.scarce.borrow_and_update()
    }

    /// Waits for what the quota has to say.
    pub async fn says(&mut self) -> Says {
        let waiting = async {
            match &mut self.waiting {
                Some((number, waiting)) => (*number, waiting.as_mut().await),
                None => std::future::pending().await,
            }
        };
        let (number, said) = tokio::select! {
            said = waiting => said,
            Ok(()) = self.scarce.changed() => return Says::Scarce(*self.scarce.borrow_and_update()),
        };
        self.waiting = None;
        let word = match said {
            Ok(grant) => {
                self.granted = Some(grant);
                Word::Granted
            }
            Err(reason) => Word::Refused(reason),
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
