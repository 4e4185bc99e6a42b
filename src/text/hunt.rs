//! The search for an answer: a route, its budgets, the account's quota, and a try; another one where that helps, as long as nothing of an
//! answer was passed on.
//!
//! What was granted is handed on with the answer ([`Found`]) to whoever settles it ([`super::run::Run`]). Reads no answer.
use std::{sync::Arc, time::Duration};

use rand::Rng as _;
use reqwest::Response as Answered;
use tokio::time::{self, Instant};
use tokio_util::sync::CancellationToken;

use super::{
    Kind,
    ask::{Asked, addressed},
    owned::Response,
    run::{No, Order, Texts, book, guess},
};
use crate::{
    admit::{
        budget::{Amount, Held, Purse},
        governor::{Dimension, Heard, Reason, TRIES, retry_wait},
        price::PriceList,
        quota::{Answer, Grant, Turn},
        router::{self, Route, Stage, Taken, TierId, Wish},
        routes::Routes,
    },
    call::books::Booked,
    client::wire::Usage,
    config::{Govern, USUAL_UPSTREAM, WhenSpent},
    observe::fact::Fact,
    upstream::{
        UpstreamError,
        open::Upstream,
        text::{self, NoAnswer},
    },
};

/// A try that has failed at once may be made again, even where nothing may wait.
const MOMENT: Duration = Duration::from_secs(1);

/// Where a request goes.
#[derive(Debug, Clone)]
pub(super) struct On {
    pub(super) upstream: Upstream,
    pub(super) route: Route,
    taken: Option<Taken>,
}

/// The search for an answer.
pub(super) struct Hunt<'a> {
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

/// What came of it.
pub(super) struct Found {
    pub(super) on: On,
    pub(super) grant: Grant,
    pub(super) held: Held,
    pub(super) answered: Answered,
    pub(super) began: Instant,
    pub(super) waited: Duration,
    pub(super) reason: Option<String>,
}

impl<'a> Hunt<'a> {
    /// For what has this name: a model, or a tier.
    pub(super) fn new(
        texts: &'a Arc<Texts>,
        order: &'a Order,
        name: &'a str,
        previous: Option<Response>,
        purse: &'a Purse,
        gone: &'a CancellationToken,
    ) -> Self {
        let (end, waited) = (Instant::now() + texts.patience(order.class), order.waited);
        let (tried, spent, reason) = (Vec::new(), false, None);
        Self { texts, order, name, previous, purse, gone, tried, spent, end, waited, reason }
    }

    pub(super) async fn answer(mut self) -> Result<Found, No> {
        let mut tries = 0;
        let (mut last, mut other) = (None::<UpstreamError>, None::<On>);
        loop {
            if self.gone.is_cancelled() {
                return Err(No::Gone);
            }
            let on = match other.take().map_or_else(|| self.on(), Ok) {
                Ok(on) => on,
                // All were tried: what they said is why.
                Err(no) => return Err(last.map_or(no, No::Service)),
            };
            // Nothing is held while it waits: the tenant's calls need it.
            match self.purse.ask(self.at_most(&on)) {
                Ok(room) => drop(room),
                Err(spent) if self.may_degrade() && !self.spent => {
                    tracing::debug!(limit = %spent.figures(), "something cheaper is looked for");
                    self.spent = true;
                    continue;
                }
                Err(spent) => return Err(No::Spent(spent)),
            }
            let grant = self.grant(&on).await?;
            let held = self.purse.ask(self.at_most(&on)).map_err(No::Spent)?;
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
                Err(NoAnswer::Told { status, body, model }) => {
                    grant.settle(Some(0));
                    if model {
                        on.tell(Routes::refused, self.texts);
                        self.tried.push(on.route.clone());
                        other = self.on().ok().filter(|_| on.taken.is_some());
                    }
                    if other.is_some() {
                        continue;
                    }
                    return Err(No::Told(status, body));
                }
                Err(NoAnswer::Error(error)) => error,
            };
            tries += 1;
            let verdict = error.verdict();
            self.failed(&on, &error, (grant, held), tries);
            tracing::info!(route = %on.route, %error, tries, "no answer");
            // One that has taken all the time that there is would do so again, and be billed again.
            let whole = matches!(error, UpstreamError::Timeout { .. });
            if whole || tries == TRIES {
                return Err(No::Service(error));
            }
            // Another route need not be waited for, and may have what this one's account has not.
            self.tried.push(on.route.clone());
            other = self.on().ok().filter(|_| on.taken.is_some());
            if other.is_some() {
                last = Some(error);
                continue;
            }
            let left = self.end.max(Instant::now() + MOMENT) - Instant::now();
            let wait = retry_wait(tries, verdict.retry_after, rand::rng().random(), left);
            let again = verdict.transient && on.upstream.quota().may_retry(&on.route.model);
            let Some(wait) = wait.filter(|_| again) else { return Err(No::Service(error)) };
            last = Some(error);
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
        let Order { who, asked, .. } = self.order;
        let content = addressed(
            &asked.content,
            &on.route.model,
            who.user().and_then(|_| who.safety_id()).filter(|_| asked.kind == Kind::Response),
        );
        let longest = Duration::from_secs(self.texts.config.max_s);
        let answered = on.upstream.rest().text(asked.kind.path(), content, who, longest).await?;
        on.upstream.board().headers(answered.headers());
        for heard in text::heard(answered.headers()) {
            on.upstream.quota().heard(&on.route.model, heard);
        }
        Ok(answered)
    }

    /// A try has failed: those are told who ought to know.
    fn failed(&self, on: &On, error: &UpstreamError, (grant, held): (Grant, Held), tries: u32) {
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
        // It may have been taken, and will be billed then.
        if matches!(error, UpstreamError::Timeout { .. } | UpstreamError::Broken(_)) {
            let row = format!("{}.{tries}", self.order.row);
            unanswered(self.texts, self.order, on, (grant, held), (&row, "failed"));
        }
    }
}

impl On {
    pub(super) fn tell(&self, tell: impl FnOnce(&Routes, &Taken), texts: &Texts) {
        if let Some(taken) = &self.taken {
            tell(&texts.routes, taken);
        }
    }

    pub(super) fn account(&self) -> &str {
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
        if let Some(granted) = self.granted.take() {
            unanswered(self.texts, self.order, self.on, granted, (&self.order.row, "cancelled"));
        }
    }
}

/// A request that may have been read, and has no answer: what it read is taken to be billed.
fn unanswered(texts: &Texts, order: &Order, on: &On, (grant, held): (Grant, Held), (row, status): (&str, &str)) {
    let prices = texts.prices.load_full();
    let (usage, seconds) = guess(&order.asked, 0, &prices, &on.route.model);
    grant.settle(None);
    held.settle(Amount::of(&prices, &on.route.model, &usage, seconds));
    Fact::Tokens { usage }.record();
    let booked = Booked { seconds, estimated: true, ..Booked::reply(row, status, usage) };
    book(texts, order, on, booked, &prices);
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
