//! The router, shared by all calls: it reads the clock, throws the dice, and says what has happened.
//!
//! Decides nothing ([`super::router`] does), and dials nothing.
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::{
    price::{Prices, Usd},
    router::{
        Choice, Criterion, News, Refusal, Route, Router, Spent, Stage, Standing, Taken, TierId, View, Wish,
        feed::Report, typical_reply,
    },
};
use crate::{client::wire::Usage, config::Config, observe::fact::Fact};

/// All tiers of a process.
#[derive(Debug)]
pub struct Routes {
    began: Instant,
    router: Mutex<Router>,
    prices: Prices,
}

impl Routes {
    /// The tiers of a configuration; nothing is known of their routes yet.
    pub fn new(config: &Config, prices: Prices) -> Arc<Self> {
        let router = Mutex::new(Router::new(&config.tiers, &config.incidents, Duration::ZERO));
        Arc::new(Self { began: Instant::now(), router, prices })
    }

    fn router(&self) -> MutexGuard<'_, Router> {
        self.router.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<R>(&self, work: impl FnOnce(&mut Router, Duration) -> R) -> R {
        let mut router = self.router();
        let done = work(&mut router, self.began.elapsed());
        let news = router.news();
        drop(router);
        news.into_iter().for_each(told);
        done
    }

    /// The tier of this name; `None`: it is a model's.
    pub fn resolve(&self, name: &str) -> Option<TierId> {
        self.router().resolve(name)
    }

    /// Whether its calls have somewhere cheaper to go ([`Router::degrades`]).
    pub fn degrades(&self, tier: TierId) -> bool {
        self.router().degrades(tier)
    }

    /// Where its calls may come to ([`Router::reach`]).
    pub fn reach(&self, tier: TierId, account: Option<&str>) -> Vec<Route> {
        self.router().reach(tier, account)
    }

    /// What a reply has cost there; `None`: not known.
    pub fn cost(&self, route: &Route, usage: &Usage) -> Option<Usd> {
        self.prices.load().cost(&route.model, usage, None).map(|cost| cost.total())
    }

    /// What a typical reply costs there; `None`: not known. For [`Wish::price`].
    pub fn price(&self, route: &Route) -> Option<Usd> {
        self.cost(route, &typical_reply())
    }

    /// Which route to dial now ([`Router::choose`]).
    ///
    /// # Errors
    /// When there is none: all are open, were tried, or are not allowed.
    pub fn choose(&self, wish: &Wish<'_>) -> Result<Choice, Refusal> {
        self.with(|router, now| router.choose(now, wish, &mut rand::rng()))
    }

    /// A second one beside it ([`Router::hedge`]).
    pub fn hedge(&self, wish: &Wish<'_>) -> Option<Choice> {
        self.with(|router, now| router.hedge(now, wish, &mut rand::rng()))
    }

    /// A session is up, so long after it was dialled.
    pub fn connected(&self, on: &Taken, took: Duration) {
        self.with(|router, now| router.connected(now, on, took));
    }

    /// There is none, or it failed later ([`Router::failed`]).
    pub fn failed(&self, on: &Taken, stage: Stage) {
        self.with(|router, now| router.failed(now, on, stage));
    }

    /// The service has said that a limit is reached (429), and how long to wait, or not.
    pub fn limited(&self, on: &Taken, wait: Option<Duration>) {
        self.with(|router, now| router.limited(now, on, wait));
    }

    /// The service does not know the key or the model, or the account has no credit.
    pub fn refused(&self, on: &Taken) {
        self.with(|router, now| router.refused(now, on));
    }

    /// A reply is heard, so long after the service had all that it needed for it.
    pub fn first_audio(&self, on: &Taken, after: Duration) {
        self.with(|router, now| router.first_audio(now, on, after));
    }

    /// A reply came to its end, or was cut by its caller.
    pub fn replied(&self, on: &Taken, spent: &Spent) {
        self.with(|router, now| router.replied(now, on, spent));
    }

    /// The status page says this; `None`: it could not be read. For [`crate::upstream::status::StatusPage::watch`].
    pub fn heard(&self, report: Option<Report>) {
        self.with(|router, now| router.heard(now, report));
    }

    /// All of it, as it is.
    pub fn view(&self) -> View {
        self.with(Router::view)
    }
}

fn told(news: News) {
    let fact = match news {
        News::Opened(route) => Fact::RouteSilent { route: route.to_string() },
        News::Closed(route) => Fact::RouteAnswers { route: route.to_string() },
        News::Judged { tier, standing, by } => {
            let standing = if standing == Standing::Promoted { "promoted" } else { "rolled_back" };
            Fact::CanaryJudged { tier, standing: standing.into(), by: by.map(|by| Criterion::name(by).into()) }
        }
    };
    fact.record();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admit::{
        price::PriceList,
        router::{By, Headroom, Why},
    };

    #[tokio::test(start_paused = true)]
    async fn all_calls_share_what_one_has_learned_in_time() {
        let source = "[tiers.fast]\npolicy = \"cheapest\"\nroutes = [{ model = \"gpt-realtime-2.1\" }, { model = \"gpt-realtime-2.1-mini\" }]";
        let config: Config = toml::from_str(source).unwrap();
        let routes = Routes::new(&config, Arc::new(arc_swap::ArcSwap::from_pointee(PriceList::load(None).unwrap())));
        let tier = routes.resolve("fast").unwrap();
        let choose = || {
            routes.choose(&Wish {
                tier,
                tenant: "local",
                account: None,
                user: None,
                call: "call_1",
                current: None,
                tried: &[],
                may_use: &|_| true,
                quota: &|_| Headroom::Plenty,
                price: &|route| routes.price(route),
                spent: false,
            })
        };
        let mini = choose().unwrap().taken;
        assert_eq!(mini.route.model, "gpt-realtime-2.1-mini", "by the list of prices");
        (0..5).for_each(|_| routes.failed(&mini, Stage::Connect));
        let large = choose().unwrap().taken;
        assert_eq!(large.route.model, "gpt-realtime-2.1");
        (0..5).for_each(|_| routes.failed(&large, Stage::Connect));
        assert_eq!(choose().unwrap_err().why, Why::Open);
        tokio::time::advance(Duration::from_millis(1_001)).await;
        let probe = choose().unwrap();
        assert_eq!(probe.reason.by, By::Probe);
        routes.connected(&probe.taken, Duration::from_millis(80));
        let states = routes.view().tiers.remove("fast").unwrap().routes;
        assert_eq!(states.iter().filter(|route| route.state == "closed").count(), 1, "{states:?}");
    }
}
