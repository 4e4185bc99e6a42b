//! One request's way to the service: a route, its budgets, the account's quota, and a try; another one where that helps, as long as nothing
//! of an answer was passed on.
//!
//! What was granted goes into a [`Run`], which settles it when the answer is over, however that comes. Reads no answer ([`super::answer`]).
use std::{sync::Arc, time::Duration};

use axum::http::StatusCode;
use bytes::Bytes;
use rand::Rng as _;
use reqwest::Response as Answered;
use tokio::time::{self, Instant};
use tokio_util::sync::CancellationToken;

use super::{
    Kind,
    ask::{Asked, addressed},
    outcome::Outcome,
    owned::{Owned, Response},
    share::{Place, Shares},
    tier::{self, Caller, Chosen, NotChosen},
};
use crate::{
    admit::{
        Principal,
        budget::{Amount, Budgets, Held, Purse, Spent},
        governor::{Class, Dimension, Heard, Reason, retry_wait},
        price::{PriceList, Prices, Usd},
        quota::{Answer, Grant, Turn},
        router::{self, Headroom, Route, Stage, Taken, TierId, Wish},
        routes::Routes,
    },
    call::{
        books::{Booked, Books},
        core::Delay,
    },
    client::wire::Usage,
    config::{Govern, Scope, TextConfig, TurnsConfig, USUAL_UPSTREAM, WhenSpent},
    ledger::{Kind as Row, Ledger},
    observe::fact::Fact,
    upstream::{
        UpstreamError,
        accounts::Accounts,
        open::Upstream,
        text::{self, NoAnswer},
    },
};

/// What an answer of unknown length is taken to have written, bytes of its stream for a token: an event has much around a word.
const STREAMED: u64 = 150;

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
    /// What tells it apart, should it come again.
    pub key: Option<String>,
    /// The call runs, and keeps its own account at the budgets; `key` names the request within it.
    pub beside: bool,
    /// It may ask the expert, whatever its credential says: whoever configured it has allowed that.
    pub expert: bool,
}

impl Order {
    /// What its row goes by as long as the service has not named the answer.
    fn id(&self) -> &str {
        // A call has rows of other requests, and perhaps one of its own.
        self.key.as_deref().filter(|_| self.beside).unwrap_or(&self.call)
    }
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
    /// Too many requests run; whether it is the tenant's own part.
    Full,
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

/// Where a request goes.
#[derive(Debug, Clone)]
struct On {
    upstream: Upstream,
    route: Route,
    taken: Option<Taken>,
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
        let place = self.shares.place(order.who.tenant_id(), most.0, most.1).ok_or(No::Full)?;
        let previous = self.previous(&order)?;
        let chosen = self.choose(&order)?;
        let tokens = order.asked.input_tokens.saturating_add(order.asked.output_tokens);
        let share = self.shares.take(&order.who, tokens).map_err(No::Share)?;
        let purse = match order.beside {
            true => self.budgets.beside(&order.who, &order.call),
            false => self.budgets.purse(&order.who, &order.call, Amount::default()),
        };
        let hunt = Hunt {
            texts: self,
            order: &order,
            name: &chosen.name,
            previous,
            purse: &purse,
            tried: Vec::new(),
            spent: false,
            end: Instant::now() + self.patience(order.class),
            waited: Duration::ZERO,
            reason: None,
            gone,
        };
        let Found { on, grant, held, answered, began, waited, reason } = hunt.answer().await?;
        let run = Run {
            texts: self.clone(),
            id: order.id().to_owned(),
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

    fn patience(&self, class: Class) -> Duration {
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
        let caller = Caller { tenant: who.tenant_id(), expert: order.expert || who.may(Scope::Expert) };
        let chosen = tier::choose(&self.config, asked, caller, |name| self.is_short(who, name));
        let chosen = chosen.map_err(|why| match why {
            NotChosen::Unknown => No::Model(asked.model.clone()),
            NotChosen::Scope => No::Scope(Scope::Expert),
        })?;
        let named = chosen.tier.is_some_and(|tier| who.may_use(tier.name()));
        if named
            || who.may_use(&chosen.name)
            || self.reach(who, &chosen.name).iter().any(|route| who.may_use(&route.model))
        {
            return Ok(chosen);
        }
        Err(No::Model(asked.model.clone()))
    }

    fn reach(&self, who: &Principal, name: &str) -> Vec<Route> {
        match self.routes.resolve(name) {
            Some(tier) => self.routes.reach(tier, who.upstream()),
            None => vec![Route { upstream: who.upstream().map(str::to_owned), model: name.to_owned() }],
        }
    }

    /// Whether all that has this name has nothing left.
    fn is_short(&self, who: &Principal, name: &str) -> bool {
        self.reach(who, name).iter().all(|route| self.headroom(route) == Headroom::Nothing)
    }

    fn headroom(&self, route: &Route) -> Headroom {
        let upstream = self.accounts.get(route.upstream.as_deref());
        upstream.map_or(Headroom::Nothing, |upstream| upstream.quota().headroom(&route.model))
    }
}

/// The search for an answer.
struct Hunt<'a> {
    texts: &'a Arc<Texts>,
    order: &'a Order,
    name: &'a str,
    previous: Option<Response>,
    purse: &'a Purse,
    gone: &'a CancellationToken,
    tried: Vec<Route>,
    /// Its budget is spent: something cheaper, if there is such.
    spent: bool,
    end: Instant,
    waited: Duration,
    reason: Option<String>,
}

struct Found {
    on: On,
    grant: Grant,
    held: Held,
    answered: Answered,
    began: Instant,
    waited: Duration,
    reason: Option<String>,
}

impl Hunt<'_> {
    async fn answer(mut self) -> Result<Found, No> {
        let mut tries = 0;
        let mut last: Option<UpstreamError> = None;
        loop {
            let on = match self.on() {
                Ok(on) => on,
                // All were tried: what they said is why.
                Err(no) => return Err(last.map_or(no, No::Service)),
            };
            let held = match self.purse.ask(self.at_most(&on)) {
                Ok(held) => held,
                Err(spent) if self.may_degrade() && !self.spent => {
                    tracing::debug!(limit = %spent.figures(), "something cheaper is looked for");
                    self.spent = true;
                    continue;
                }
                Err(spent) => return Err(No::Spent(spent)),
            };
            let grant = self.grant(&on).await?;
            let began = Instant::now();
            let sent = Sent { texts: self.texts, order: self.order, on: &on, granted: Some((grant, held)) };
            let answer = self.send(&on).await;
            let Some((grant, held)) = sent.over() else { return Err(No::Gone) };
            let error = match answer {
                Ok(answered) => {
                    on.tell(|routes, taken| routes.connected(taken, began.elapsed()), self.texts);
                    let (waited, reason) = (self.waited, self.reason.take());
                    return Ok(Found { on, grant, held, answered, began, waited, reason });
                }
                Err(NoAnswer::Told { status, body }) => {
                    grant.settle(Some(0));
                    return Err(No::Told(status, body));
                }
                Err(NoAnswer::Error(error)) => error,
            };
            let verdict = error.verdict();
            self.failed(&on, &error, grant);
            tries += 1;
            let left = self.end.max(Instant::now() + Duration::from_secs(1)) - Instant::now();
            let wait = retry_wait(tries, verdict.retry_after, rand::rng().random(), left);
            let Some(wait) = wait.filter(|_| verdict.transient) else { return Err(No::Service(error)) };
            tracing::info!(route = %on.route, %error, tries, "no answer, trying again");
            last = Some(error);
            // Another route need not be waited for.
            self.tried.push(on.route.clone());
            if on.taken.is_some() && self.on().is_ok() {
                continue;
            }
            if !on.upstream.quota().may_retry(&on.route.model) {
                return Err(last.map_or(No::Gone, No::Service));
            }
            self.tried.clear();
            tokio::select! {
                () = time::sleep(wait) => {}
                () = self.gone.cancelled() => return Err(No::Gone),
            }
        }
    }

    fn may_degrade(&self) -> bool {
        let tier = self.texts.routes.resolve(self.name);
        self.purse.when_spent().0 == WhenSpent::Degrade && tier.is_some_and(|tier| self.texts.routes.degrades(tier))
    }

    /// Where to.
    fn on(&self) -> Result<On, No> {
        let texts = self.texts;
        let account = |upstream: Option<&str>| {
            let unknown = || UpstreamError::Broken("its account is not configured".to_owned());
            texts.accounts.get(upstream).cloned().ok_or_else(|| No::Service(unknown()))
        };
        let fixed = |upstream: Option<String>, model: String| {
            let route = Route { upstream, model };
            Ok(On { upstream: account(route.upstream.as_deref())?, route, taken: None })
        };
        match (texts.routes.resolve(self.name), &self.previous) {
            // What has been said is kept by one account.
            (None, Some(previous)) => fixed(previous.route.upstream.clone(), self.name.to_owned()),
            (None, None) => fixed(self.order.who.upstream().map(str::to_owned), self.name.to_owned()),
            (Some(tier), previous) => self.chosen(tier, previous.as_ref()).and_then(|taken| {
                let upstream = account(taken.route.upstream.as_deref())?;
                Ok(On { upstream, route: taken.route.clone(), taken: Some(taken) })
            }),
        }
    }

    fn chosen(&self, tier: TierId, previous: Option<&Response>) -> Result<Taken, No> {
        let (texts, who) = (self.texts, &self.order.who);
        let mut tried = self.tried.clone();
        if let Some(previous) = previous {
            let reach = texts.routes.reach(tier, who.upstream()).into_iter();
            tried.extend(reach.filter(|route| route.upstream != previous.route.upstream));
        }
        let wish = Wish {
            tier,
            tenant: who.tenant_id(),
            account: who.upstream(),
            user: who.user(),
            call: &self.order.call,
            current: previous.map(|previous| &previous.route),
            tried: &tried,
            may_use: &|name| who.may_use(name) || name == self.name,
            quota: &|route| texts.headroom(route),
            price: &|route| texts.routes.price(route),
            spent: self.spent,
        };
        texts.routes.choose(&wish).map(|choice| choice.taken).map_err(|refusal| match refusal.why {
            router::Why::Forbidden => No::Model(self.order.asked.model.clone()),
            router::Why::Open | router::Why::Tried => {
                let retry_after = refusal.retry_after.unwrap_or(Duration::from_secs(1));
                No::Service(UpstreamError::Paused { limited: false, retry_after })
            }
        })
    }

    fn input_tokens(&self) -> u64 {
        let before = self.previous.as_ref().map_or(0, |previous| previous.tokens);
        self.order.asked.input_tokens.saturating_add(before)
    }

    fn at_most(&self, on: &On) -> Amount {
        let Asked { output_tokens, seconds, .. } = self.order.asked;
        at_most(&self.texts.prices.load(), &on.route.model, self.input_tokens(), output_tokens, seconds)
    }

    /// Asks the account's quota, and waits for it.
    async fn grant(&mut self, on: &On) -> Result<Grant, No> {
        let Order { who, asked, class, .. } = self.order;
        let (texts, quota) = (self.texts, on.upstream.quota());
        let began = Instant::now();
        let turn = Turn {
            model: &on.route.model,
            tenant: who.tenant_id(),
            weight: who.weight(),
            class: *class,
            tokens: self.input_tokens().saturating_add(asked.output_tokens),
            patience: self.end.saturating_duration_since(began),
        };
        if texts.turns.govern == Govern::Never {
            return Ok(quota.charge(turn));
        }
        let refused = |reason: Reason| {
            let limit = reason.dimension.name().into();
            Fact::TurnRefused { limit, reason: reason.to_string() }.record();
            No::Quota(reason)
        };
        match quota.ask(turn) {
            Answer::Granted(grant) => Ok(grant),
            Answer::Refused(reason) => Err(refused(reason)),
            Answer::Waits(waiting, reason) => {
                Fact::TurnWaits { limit: reason.dimension.name().into(), reason: reason.to_string() }.record();
                self.reason = Some(reason.to_string());
                let said = tokio::select! {
                    said = waiting => said,
                    () = self.gone.cancelled() => return Err(No::Gone),
                };
                self.waited += began.elapsed();
                Fact::TurnAdmitted { waited: began.elapsed() }.record();
                said.map_err(refused)
            }
        }
    }

    async fn send(&self, on: &On) -> Result<Answered, NoAnswer> {
        let Order { who, asked, key, .. } = self.order;
        let content = addressed(
            &asked.content,
            &on.route.model,
            who.user().and_then(|_| who.safety_id()).filter(|_| asked.kind == Kind::Response),
        );
        let longest = Duration::from_secs(self.texts.config.max_s);
        let answered = on.upstream.rest().text(asked.kind.path(), content, who, key.as_deref(), longest).await?;
        on.upstream.board().headers(answered.headers());
        for heard in text::heard(answered.headers()) {
            on.upstream.quota().heard(&on.route.model, heard);
        }
        Ok(answered)
    }

    /// A try has failed: those are told who ought to know.
    fn failed(&self, on: &On, error: &UpstreamError, grant: Grant) {
        let verdict = error.verdict();
        match verdict.code {
            "rate_limited" => {
                let heard = Heard::Limited { dimension: None::<Dimension>, wait: verdict.retry_after };
                on.upstream.quota().heard(&on.route.model, heard);
                on.tell(|routes, taken| routes.limited(taken, verdict.retry_after), self.texts);
            }
            "upstream_auth" | "upstream_refused" => on.tell(Routes::refused, self.texts),
            _ => on.tell(|routes, taken| routes.failed(taken, Stage::Connect), self.texts),
        }
        match error {
            // It may have been taken, and counted.
            UpstreamError::Timeout { .. } | UpstreamError::Broken(_) => grant.settle(None),
            _ => drop(grant),
        }
    }
}

impl On {
    fn tell(&self, tell: impl FnOnce(&Routes, &Taken), texts: &Texts) {
        if let Some(taken) = &self.taken {
            tell(&texts.routes, taken);
        }
    }

    fn account(&self) -> &str {
        self.route.upstream.as_deref().unwrap_or(USUAL_UPSTREAM)
    }
}

/// A request that was sent. Dropped before it has an answer, it is taken to have been read: it will be billed.
struct Sent<'a> {
    texts: &'a Texts,
    order: &'a Order,
    on: &'a On,
    granted: Option<(Grant, Held)>,
}

impl Sent<'_> {
    /// It has an answer, or will have none.
    fn over(mut self) -> Option<(Grant, Held)> {
        self.granted.take()
    }
}

impl Drop for Sent<'_> {
    fn drop(&mut self) {
        let Some((grant, held)) = self.granted.take() else { return };
        let (texts, order) = (self.texts, self.order);
        let ((usage, seconds), prices) = (guess(&order.asked, 0), texts.prices.load_full());
        grant.settle(None);
        held.settle(Amount::of(&prices, &self.on.route.model, &usage, seconds));
        Fact::Tokens { usage }.record();
        let booked = Booked { seconds, estimated: true, ..Booked::reply(order.id(), "cancelled", usage) };
        book(texts, order, self.on, booked, &prices);
    }
}

/// What a request comes to at most: the dearer of its tokens and its time, where it is not known which is billed.
fn at_most(prices: &PriceList, model: &str, input: u64, output: u64, seconds: Option<f64>) -> Amount {
    let tokens = Amount::at_most(prices, model, input, output);
    let time = seconds.map(|seconds| Amount::of(prices, model, &Usage::default(), Some(seconds)));
    let usd = match (tokens.usd, time.and_then(|time| time.usd)) {
        (Some(one), Some(other)) => Some(one.max(other)),
        (one, other) => one.or(other),
    };
    Amount { usd, tokens: tokens.tokens }
}

impl Run {
    /// What was asked for.
    pub fn asked(&self) -> &Asked {
        &self.order.asked
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
        if self.order.asked.kind == Kind::Response && !outcome.id.is_empty() {
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
        self.on.tell(
            |routes, taken| routes.replied(taken, &router::Spent { usd: used.usd, tools: 0, tools_failed: 0 }),
            &self.texts,
        );
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
        let written = if status == "completed" { self.passed / 4 } else { self.passed / STREAMED };
        guess(&self.order.asked, written)
    }
}

/// What is taken to be used where nobody counted, with so many tokens written.
fn guess(asked: &Asked, written: u64) -> (Usage, Option<f64>) {
    if asked.kind == Kind::Transcription {
        return (Usage::default(), asked.seconds);
    }
    let (input, output) = (asked.input_tokens, written.min(asked.output_tokens));
    let usage = Usage {
        total_tokens: input + output,
        input_tokens: input,
        input_text_tokens: input,
        output_tokens: output,
        output_text_tokens: output,
        ..Usage::default()
    };
    (usage, None)
}

/// Writes a row.
fn book(texts: &Texts, order: &Order, on: &On, booked: Booked, prices: &PriceList) {
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
