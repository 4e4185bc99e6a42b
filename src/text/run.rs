//! One request's way to the service and its account: what was granted goes into a [`Run`], which settles it when the answer is over, however
//! that comes.
//!
//! Who looks for an answer is [`super::hunt`]; who reads it is [`super::answer`].
use std::{sync::Arc, time::Duration};

use axum::http::StatusCode;
use bytes::Bytes;
use reqwest::Response as Answered;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    Kind,
    ask::Asked,
    hunt::{Found, Hunt, On},
    outcome::Outcome,
    owned::{Owned, Response},
    share::{Full, Place, Shares},
    tier::{self, Caller, Chosen, NotChosen},
};
use crate::{
    admit::{
        Principal,
        budget::{Amount, Budgets, Held, Purse, Spent},
        governor::{Class, Reason},
        price::{PriceList, Prices, Usd},
        quota::Grant,
        router::{self, Headroom, Route, Stage},
        routes::Routes,
    },
    call::{
        books::{Booked, Books},
        core::Delay,
    },
    client::wire::Usage,
    config::{Scope, TextConfig, TextTier, TurnsConfig},
    ledger::{Kind as Row, Ledger},
    observe::fact::Fact,
    upstream::{UpstreamError, accounts::Accounts},
};

/// What an answer of unknown length is taken to have written, bytes of its stream for a token: an event has much around a word.
const STREAMED: u64 = 150;
/// What a model writes in a second at least, tokens, seen or not: one that reasons shows little of it until the end. A rule of thumb.
const A_SECOND: u64 = 50;

/// Everything that requests for text stand on; one of a process.
#[derive(Debug)]
pub struct Texts {
    /// `[text]`
    pub config: TextConfig,
    /// `[turns]`
    pub turns: TurnsConfig,
    /// The accounts.
    pub accounts: Arc<Accounts>,
    /// The tiers.
    pub routes: Arc<Routes>,
    /// Where usage is written down.
    pub ledger: Ledger,
    /// What it costs.
    pub prices: Prices,
    /// What may be spent.
    pub budgets: Budgets,
    /// Tenants' own limits.
    pub shares: Shares,
    /// Responses that can be gone on from.
    pub owned: Owned,
}

/// A request, and whose it is.
#[derive(Debug)]
pub struct Order {
    /// Who asks.
    pub who: Principal,
    /// What for.
    pub asked: Asked,
    /// The call that its row belongs to.
    pub call: String,
    /// The agent; empty: none.
    pub agent: String,
    /// Where it came in.
    pub door: &'static str,
    /// Who goes first.
    pub class: Class,
    /// What its row goes by as long as the service has not named its answer.
    pub row: String,
    /// It has waited for so long already.
    pub waited: Duration,
    /// The call runs, and keeps its own account at the budgets; `key` names the request within it.
    pub beside: bool,
    /// It may ask the expert, whatever its credential says: whoever configured it has allowed that.
    pub expert: bool,
}

/// Why there is no answer.
#[derive(Debug)]
pub enum No {
    /// There is no such model, or not for the caller.
    Model(String),
    /// It wants this scope.
    Scope(Scope),
    /// There is no such response, or it is another's.
    Previous(String),
    /// Too many requests run.
    Full(Full),
    /// The tenant's own limit leaves no room.
    Share(Reason),
    /// The account's limits leave none, and it was waited for long enough.
    Quota(Reason),
    /// A budget leaves none.
    Spent(Spent),
    /// The service finds the request wrong, in its own words.
    Told(StatusCode, Bytes),
    /// The service does not answer.
    Service(UpstreamError),
    /// Nobody waits for it any more.
    Gone,
}

/// A request whose answer is under way. Dropped without a word, it is taken to have used what it might.
#[derive(Debug)]
pub struct Run {
    texts: Arc<Texts>,
    order: Order,
    chosen: Chosen,
    on: On,
    grant: Option<Grant>,
    held: Option<Held>,
    share: Option<Grant>,
    began: Instant,
    waited: Duration,
    reason: Option<String>,
    first: Option<Duration>,
    passed: u64,
    id: String,
    done: bool,
    // Dropped last: its account at the budgets ends, and its place is free.
    _purse: Purse,
    _place: Place,
}

impl Texts {
    /// Sends a request; its answer has begun: whole ones are still to be read. `gone`: nobody waits for it any more; what was sent
    /// already is waited for all the same, for it will be billed.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn open(self: &Arc<Self>, order: Order, gone: &CancellationToken) -> Result<(Run, Answered), No> {
        let most = (self.config.max_requests, self.config.max_requests_of_tenant);
        let place = self.shares.place(order.who.tenant_id(), most.0, most.1).map_err(No::Full)?;
        let previous = self.previous(&order)?;
        let chosen = self.choose(&order)?;
        let tokens = order.asked.input_tokens.saturating_add(order.asked.output_tokens);
        let share = self.shares.take(&order.who, tokens).map_err(No::Share)?;
        let purse = match order.beside {
            true => self.budgets.beside(&order.who, &order.call),
            false => self.budgets.purse(&order.who, &order.call, Amount::default()),
        };
        let hunt = Hunt::new(self, &order, &chosen.name, previous, &purse, gone);
        let Found { on, grant, held, answered, began, waited, reason } = hunt.answer().await?;
        let run = Run {
            texts: self.clone(),
            id: order.row.clone(),
            order,
            chosen,
            on,
            grant: Some(grant),
            held: Some(held),
            share,
            began,
            waited,
            reason,
            first: None,
            passed: 0,
            done: false,
            _purse: purse,
            _place: place,
        };
        Ok((run, answered))
    }

    pub(super) fn patience(&self, class: Class) -> Duration {
        let TurnsConfig { wait_ms, batch_wait_ms, .. } = self.turns;
        Duration::from_millis(if class == Class::Batch { batch_wait_ms } else { wait_ms })
    }

    /// The response that it goes on from.
    fn previous(&self, order: &Order) -> Result<Option<Response>, No> {
        let Some(id) = &order.asked.previous else { return Ok(None) };
        let known = self.owned.get(id).filter(|response| response.tenant == order.who.tenant_id());
        // Where nobody is asked for a credential, there is nobody to keep it from; it may be of an earlier process.
        match known {
            None if order.who.tenant().is_some() => Err(No::Previous(id.clone())),
            known => Ok(known),
        }
    }

    fn choose(&self, order: &Order) -> Result<Chosen, No> {
        let Order { who, asked, .. } = order;
        self.chosen(who, asked, order.expert, |name| self.is_short(who, name))
    }

    /// Who answers what is asked for. `is_short`: whether requests for what has this name would have to wait now; `expert`: the expert may
    /// be asked whatever the caller's scopes are.
    pub(super) fn chosen(
        &self,
        who: &Principal,
        asked: &Asked,
        expert: bool,
        is_short: impl Fn(&str) -> bool,
    ) -> Result<Chosen, No> {
        let caller = Caller { tenant: who.tenant_id(), expert: expert || who.may(Scope::Expert) };
        let chosen = tier::choose(&self.config, asked, caller, is_short);
        let chosen = chosen.map_err(|why| match why {
            NotChosen::Unknown => No::Model(asked.model.clone()),
            NotChosen::Scope => No::Scope(Scope::Expert),
        })?;
        if chosen.tier.is_none() && !caller.expert && self.is_expert(who, &chosen.name) {
            return Err(No::Scope(Scope::Expert));
        }
        let named = chosen.tier.is_some_and(|tier| who.may_use(tier.name()));
        if named
            || who.may_use(&chosen.name)
            || self.reach(who, &chosen.name).iter().any(|route| who.may_use(&route.model))
        {
            return Ok(chosen);
        }
        Err(No::Model(asked.model.clone()))
    }

    /// Whether one may have answers of this model, whatever it was called when it was asked for.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn may_have(&self, who: &Principal, model: &str) -> Result<(), No> {
        if !who.may(Scope::Expert) && self.is_expert(who, model) {
            return Err(No::Scope(Scope::Expert));
        }
        let behind = |name: &String| {
            let name = TextTier::named(name).map_or(Some(name.as_str()), |tier| self.config.behind(tier));
            name.is_some_and(|name| self.reach(who, name).iter().any(|route| route.model == model))
        };
        let named = who.tenant().is_some_and(|tenant| tenant.config.models.iter().any(behind));
        if named || who.may_use(model) { Ok(()) } else { Err(No::Model(model.to_owned())) }
    }

    /// Whether only the expert stands behind this name.
    fn is_expert(&self, who: &Principal, name: &str) -> bool {
        let behind = |tier| {
            let of = self.config.behind(tier).into_iter();
            let reach = of.clone().flat_map(|of| self.reach(who, of)).map(|route| route.model);
            of.map(str::to_owned).chain(reach).any(|known| known == name)
        };
        behind(TextTier::Expert) && !behind(TextTier::Fast) && !behind(TextTier::Best)
    }

    pub(super) fn reach(&self, who: &Principal, name: &str) -> Vec<Route> {
        match self.routes.resolve(name) {
            Some(tier) => self.routes.reach(tier, who.upstream()),
            None => vec![Route { upstream: who.upstream().map(str::to_owned), model: name.to_owned() }],
        }
    }

    /// Whether all that has this name has nothing left.
    fn is_short(&self, who: &Principal, name: &str) -> bool {
        self.reach(who, name).iter().all(|route| self.headroom(route) == Headroom::Nothing)
    }

    pub(super) fn headroom(&self, route: &Route) -> Headroom {
        let upstream = self.accounts.get(route.upstream.as_deref());
        upstream.map_or(Headroom::Nothing, |upstream| upstream.quota().headroom(&route.model))
    }
}

impl Run {
    /// What was asked for.
    pub fn asked(&self) -> &Asked {
        &self.order.asked
    }

    /// The call that its row belongs to.
    pub fn call(&self) -> &str {
        &self.order.call
    }

    /// Which model answers, and who says so.
    pub fn chosen(&self) -> &Chosen {
        &self.chosen
    }

    /// The account and the model.
    pub fn route(&self) -> String {
        self.on.route.to_string()
    }

    /// How long it had to wait for the account's limits.
    pub fn waited(&self) -> Duration {
        self.waited
    }

    /// So many bytes of its answer have come.
    pub fn came(&mut self, bytes: usize) {
        if self.first.is_none() {
            let first = self.began.elapsed();
            self.first = Some(first);
            self.on.tell(|routes, taken| routes.first_audio(taken, first), &self.texts);
            Fact::TextBegan { door: self.order.door.into(), after: first }.record();
        }
        self.passed += bytes as u64;
    }

    /// The service calls it this.
    pub fn named(&mut self, id: &str) {
        if !id.is_empty() {
            id.clone_into(&mut self.id);
        }
    }

    /// It is over; what it has cost, if that is known.
    pub fn over(mut self, outcome: Outcome) -> Option<Usd> {
        self.named(&outcome.id);
        if self.order.asked.is_kept() && !outcome.id.is_empty() {
            let tokens = outcome.usage.map_or(0, |usage| usage.total_tokens);
            let (tenant, route) = (self.order.who.tenant_id().to_owned(), self.on.route.clone());
            self.texts.owned.put(&outcome.id, Response { tenant, route, tokens });
        }
        if outcome.status == "failed" {
            self.on.tell(|routes, taken| routes.failed(taken, Stage::MidStream), &self.texts);
        }
        let counted = outcome.usage.is_some() || outcome.seconds.is_some();
        self.settle(&outcome.status, counted.then_some((outcome.usage.unwrap_or_default(), outcome.seconds)))
    }

    /// It broke off.
    pub fn broke(mut self) {
        self.on.tell(|routes, taken| routes.failed(taken, Stage::MidStream), &self.texts);
        self.settle("failed", None);
    }

    /// Gives back what was not used, and books what was. `counted`: by the service.
    fn settle(&mut self, status: &str, counted: Option<(Usage, Option<f64>)>) -> Option<Usd> {
        if std::mem::replace(&mut self.done, true) {
            return None;
        }
        let (usage, seconds) = counted.unwrap_or_else(|| self.guess(status));
        let prices = self.texts.prices.load_full();
        let asked = &self.order.asked;
        let model = self.on.route.model.clone();
        // What is counted by time takes its part of a limit by tokens all the same.
        let tokens = if usage.total_tokens > 0 { usage.total_tokens } else { asked.input_tokens };
        let tokens = counted.is_some().then_some(tokens);
        for grant in [self.grant.take(), self.share.take()].into_iter().flatten() {
            grant.settle(tokens);
        }
        let used = Amount::of(&prices, &model, &usage, seconds);
        if let Some(held) = self.held.take() {
            held.settle(used);
        }
        // One that broke is no sign that its route is well.
        if ["completed", "incomplete"].contains(&status) {
            let spent = router::Spent { usd: used.usd, tools: 0, tools_failed: 0 };
            self.on.tell(|routes, taken| routes.replied(taken, &spent), &self.texts);
        }
        Fact::TextEnded { door: self.order.door.into(), status: status.to_owned(), took: self.began.elapsed() }
            .record();
        Fact::Tokens { usage }.record();
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let delay = self.reason.take().map(|reason| Delay { reason, waited_ms: ms(self.waited) });
        let booked = Booked {
            seconds,
            delay,
            first_audio_ms: self.first.map(ms),
            estimated: counted.is_none(),
            ..Booked::reply(&self.id, status, usage)
        };
        book(&self.texts, &self.order, &self.on, booked, &prices);
        used.usd
    }

    /// What an answer that was never counted has used, as far as it came.
    fn guess(&self, status: &str) -> (Usage, Option<f64>) {
        let seen = if status == "completed" { self.passed / 4 } else { self.passed / STREAMED };
        let written = seen.max(self.began.elapsed().as_secs().saturating_mul(A_SECOND));
        guess(&self.order.asked, written, &self.texts.prices.load(), &self.on.route.model)
    }
}

/// What is taken to be used where nobody counted, with so many tokens written.
pub(super) fn guess(asked: &Asked, written: u64, prices: &PriceList, model: &str) -> (Usage, Option<f64>) {
    let (input, output) = (asked.input_tokens, written.min(asked.output_tokens));
    let audio = if asked.kind == Kind::Transcription { input } else { 0 };
    let usage = Usage {
        total_tokens: input + output,
        input_tokens: input,
        input_text_tokens: input - audio,
        input_audio_tokens: audio,
        output_tokens: output,
        output_text_tokens: output,
        ..Usage::default()
    };
    if asked.kind == Kind::Response {
        return (usage, None);
    }
    // Some models are billed by time, others by tokens; what has no price is told by time.
    let timed = prices.cost(model, &Usage::default(), asked.seconds).is_some();
    match timed || prices.cost(model, &usage, None).is_none() {
        true => (Usage::default(), asked.seconds),
        false => (usage, None),
    }
}

/// Writes a row.
pub(super) fn book(texts: &Texts, order: &Order, on: &On, booked: Booked, prices: &PriceList) {
    let model = on.route.model.clone();
    let kind = match order.asked.kind {
        Kind::Response => Row::Reply,
        Kind::Transcription => Row::Transcription,
    };
    let booked = Booked { kind, writer: Some(model.clone()), ..booked };
    let books = Books {
        ledger: texts.ledger.clone(),
        prices: texts.prices.clone(),
        call: order.call.clone(),
        agent: order.agent.clone(),
        account: on.account().to_owned(),
        model,
        writer: None,
        door: order.door,
    };
    books.book(&order.who, "", booked, prices);
}

impl Drop for Run {
    fn drop(&mut self) {
        self.settle("cancelled", None);
    }
}
