//! The ledger's replies, sent through the tiers of another configuration. Pure: replies in, sums out.
//!
//! Read twice: to learn how soon each route is heard and what a tier's reply uses, and to send each call where the router would. Quota,
//! failures, incidents and budgets are not replayed, and a canary keeps its share. What another model would have said instead is not
//! known: each reply uses the tokens that it did.
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    time::Duration,
};

use rand::{SeedableRng as _, rngs::StdRng};

use crate::{
    admit::{
        price::{PriceList, Usd},
        router::{Headroom, Route, Router, Taken, TierId, Wish, typical_reply},
    },
    client::wire::Usage,
    config::Config,
    ledger::replay::Replied,
};

/// Figures that are kept of a route: the newest.
const FIGURES: usize = 10_000;
/// With fewer nothing is said.
const ENOUGH: usize = 20;
/// How long a session takes to come up, where it does not matter.
const CONNECTS: Duration = Duration::from_millis(300);

/// How soon replies were heard, ms.
#[derive(Debug, Clone, Default)]
struct Heard(VecDeque<u64>);

impl Heard {
    fn add(&mut self, ms: u64) {
        if self.0.len() == FIGURES {
            self.0.pop_front();
        }
        self.0.push_back(ms);
    }

    /// What 95 of 100 stay within.
    fn p95(&self) -> Option<u64> {
        let mut sorted: Vec<u64> = self.0.iter().copied().collect();
        sorted.sort_unstable();
        let at = (sorted.len() * 95).div_ceil(100).checked_sub(1)?;
        sorted.get(at).copied().filter(|_| sorted.len() >= ENOUGH)
    }
}

/// What a tier's replies use together.
#[derive(Debug, Clone, Default)]
struct Used {
    replies: u64,
    sum: Usage,
}

impl Used {
    fn add(&mut self, usage: &Usage) {
        self.replies += 1;
        for (sum, more) in fields(&mut self.sum).into_iter().zip(fields(&mut usage.clone())) {
            *sum = sum.saturating_add(*more);
        }
    }

    /// Of one of them; of none, what a typical one uses.
    fn mean(&self) -> Usage {
        let mut mean = if self.replies > 0 { self.sum } else { typical_reply() };
        fields(&mut mean).into_iter().for_each(|field| *field /= self.replies.max(1));
        mean
    }
}

fn fields(usage: &mut Usage) -> [&mut u64; 13] {
    [
        &mut usage.total_tokens,
        &mut usage.input_tokens,
        &mut usage.output_tokens,
        &mut usage.input_text_tokens,
        &mut usage.input_audio_tokens,
        &mut usage.input_image_tokens,
        &mut usage.cached_tokens,
        &mut usage.cached_text_tokens,
        &mut usage.cached_audio_tokens,
        &mut usage.cached_image_tokens,
        &mut usage.cache_write_tokens,
        &mut usage.output_text_tokens,
        &mut usage.output_audio_tokens,
    ]
}

/// What is to be tried, and what is known of it.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    config: &'a Config,
    prices: &'a PriceList,
    only: Option<&'a str>,
    /// By route, as the ledger has it.
    by_route: HashMap<String, Heard>,
    by_model: HashMap<String, Heard>,
    by_tier: HashMap<&'a str, Used>,
}

impl<'a> Plan<'a> {
    /// `only`: every reply is one of this tier.
    pub(super) fn new(config: &'a Config, prices: &'a PriceList, only: Option<&'a str>) -> Self {
        let (by_route, by_model, by_tier) = (HashMap::new(), HashMap::new(), HashMap::new());
        Self { config, prices, only, by_route, by_model, by_tier }
    }

    /// Takes a reply's figures.
    pub(super) fn learn(&mut self, reply: &Replied) {
        if let Some(ms) = reply.first_audio_ms {
            self.by_route.entry(reply.route.clone()).or_default().add(ms);
            self.by_model.entry(reply.model.clone()).or_default().add(ms);
        }
        if let Some(tier) = self.tier(reply) {
            self.by_tier.entry(tier).or_default().add(&reply.usage);
        }
    }

    /// The tier that its call would ask for: that of its agent; else what its model's name means; else the first that has its model.
    fn tier(&self, reply: &Replied) -> Option<&'a str> {
        let tiers = &self.config.tiers;
        let known = |name: &str| tiers.get_key_value(name).map(|(name, _)| name.as_str());
        let agents = || known(self.config.agents.get(&reply.agent)?.model.as_deref()?);
        let means = || known(self.config.openai.models.get(&reply.model)?);
        let has = |routes: &[crate::config::RouteConfig]| routes.iter().any(|route| route.model == reply.model);
        let holds = || tiers.iter().find(|(_, tier)| has(&tier.routes)).map(|(name, _)| name.as_str());
        self.only.or_else(agents).or_else(means).or_else(holds)
    }

    /// How soon a route was heard: itself, or wherever its model was.
    fn heard(&self, route: &Route) -> Option<&Heard> {
        let enough = |heard: &&Heard| heard.0.len() >= ENOUGH;
        self.by_route.get(&route.to_string()).filter(enough).or_else(|| self.by_model.get(&route.model).filter(enough))
    }

    fn cost(&self, model: &str, usage: &Usage) -> Option<Usd> {
        self.prices.cost(model, usage, None).map(|cost| cost.total())
    }

    /// What is known is known: now each call is sent somewhere.
    pub(super) fn replay(self, seed: u64) -> Replay<'a> {
        let router = Router::new(&self.config.tiers, &self.config.incidents, Duration::ZERO);
        let mean = self.by_tier.iter().map(|(tier, used)| (*tier, used.mean())).collect();
        let (calls, groups) = (HashMap::new(), BTreeMap::new());
        Replay { plan: self, router, mean, rng: StdRng::seed_from_u64(seed), began: None, calls, groups, sent: 0 }
    }
}

/// One side's sums.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Side {
    /// What it costs, as far as is known.
    pub(super) usd: Usd,
    /// Replies whose cost is not known.
    pub(super) unpriced: u64,
    /// What 95 of 100 replies are heard within, ms.
    pub(super) first_audio_ms: Option<u64>,
}

impl Side {
    fn add(&mut self, usd: Option<Usd>) {
        match usd {
            Some(usd) => self.usd += usd,
            None => self.unpriced += 1,
        }
    }
}

/// What goes to a route.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Row {
    /// Whose route it is; none: no tier's, and the replies stay where they were.
    pub(super) tier: Option<String>,
    pub(super) route: String,
    pub(super) calls: u64,
    pub(super) replies: u64,
    pub(super) tokens: u64,
    /// As it was.
    pub(super) now: Side,
    /// As it would have been.
    pub(super) then: Side,
}

#[derive(Debug, Clone, Default)]
struct Group {
    row: Row,
    now: Heard,
    then: Heard,
}

/// All of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Report {
    /// By tier and route.
    pub(super) rows: Vec<Row>,
    /// Of all of them.
    pub(super) total: Row,
}

/// Sends calls where the tiers would.
#[derive(Debug)]
pub(super) struct Replay<'a> {
    plan: Plan<'a>,
    router: Router,
    mean: HashMap<&'a str, Usage>,
    rng: StdRng,
    began: Option<u64>,
    /// Where each call went; none: nowhere else than it did.
    calls: HashMap<String, Option<Taken>>,
    groups: BTreeMap<(Option<String>, String), Group>,
    sent: usize,
}

impl Replay<'_> {
    /// The next reply; they come in their order.
    pub(super) fn reply(&mut self, reply: &Replied) {
        let began = *self.began.get_or_insert(reply.at);
        let now = Duration::from_millis(reply.at.saturating_sub(began));
        let known = self.calls.get(&reply.call).cloned();
        let taken = known.clone().unwrap_or_else(|| self.sends(now, reply));
        if known.is_none() {
            self.calls.insert(reply.call.clone(), taken.clone());
        }
        let now_usd = reply.cost.or_else(|| self.plan.cost(&reply.model, &reply.usage));
        let (tier, route, then_usd, then_ms) = match &taken {
            None => {
                let was = if reply.route.is_empty() { &reply.model } else { &reply.route };
                (None, was.clone(), now_usd, reply.first_audio_ms)
            }
            Some(taken) => {
                let usd = self.plan.cost(&taken.route.model, &reply.usage);
                let heard = self.plan.heard(&taken.route);
                // One of those that were, in turn: all of them together are as they were.
                let ms = heard.and_then(|heard| heard.0.get(self.sent % heard.0.len()).copied());
                (Some(taken.tier.clone()), taken.route.to_string(), usd, ms)
            }
        };
        self.sent += 1;
        if let Some((taken, ms)) = taken.as_ref().zip(then_ms) {
            // Told of the route, and of no tier: nothing is concluded of its canary.
            let mut told = taken.clone();
            told.tier.clear();
            self.router.first_audio(now, &told, Duration::from_millis(ms));
        }
        let group = self.groups.entry((tier.clone(), route.clone())).or_default();
        (group.row.tier, group.row.route) = (tier, route);
        group.row.calls += u64::from(known.is_none());
        group.row.replies += 1;
        group.row.tokens = group.row.tokens.saturating_add(reply.usage.total_tokens);
        group.row.now.add(now_usd);
        group.row.then.add(then_usd);
        reply.first_audio_ms.into_iter().for_each(|ms| group.now.add(ms));
        then_ms.into_iter().for_each(|ms| group.then.add(ms));
    }

    /// Where a call goes at its first reply.
    fn sends(&mut self, now: Duration, reply: &Replied) -> Option<Taken> {
        let Self { plan, router, mean, rng, .. } = self;
        let tier: TierId = router.resolve(plan.tier(reply)?)?;
        let tenant = plan.config.tenants.get(&reply.tenant);
        let was = reply.route.split_once('/').map(|(account, _)| account);
        let was = was.filter(|account| plan.config.upstreams.contains_key(*account));
        let account = match tenant {
            Some(tenant) => tenant.upstream.as_deref(),
            None => was,
        };
        let usage = mean.get(plan.tier(reply)?).copied().unwrap_or_else(typical_reply);
        let models = tenant.map_or(&[][..], |tenant| &tenant.models);
        let choice = router.choose(
            now,
            &Wish {
                tier,
                tenant: &reply.tenant,
                account,
                user: reply.user.as_deref(),
                call: &reply.call,
                current: None,
                tried: &[],
                may_use: &|name| models.is_empty() || models.iter().any(|allowed| allowed == name),
                quota: &|_| Headroom::Plenty,
                price: &|route| plan.cost(&route.model, &usage),
                spent: false,
            },
            rng,
        );
        let taken = choice.ok()?.taken;
        let mut told = taken.clone();
        told.tier.clear();
        router.connected(now, &told, CONNECTS);
        Some(taken)
    }

    /// The sums.
    pub(super) fn report(self) -> Report {
        let mut total = Group { row: Row { calls: self.calls.len() as u64, ..Row::default() }, ..Group::default() };
        let mut rows = Vec::new();
        for (_, mut group) in self.groups {
            group.row.now.first_audio_ms = group.now.p95();
            group.row.then.first_audio_ms = group.then.p95();
            let (row, sum) = (&group.row, &mut total.row);
            sum.replies += row.replies;
            sum.tokens = sum.tokens.saturating_add(row.tokens);
            for (sum, side) in [(&mut sum.now, &row.now), (&mut sum.then, &row.then)] {
                sum.usd += side.usd;
                sum.unpriced += side.unpriced;
            }
            group.now.0.iter().for_each(|ms| total.now.add(*ms));
            group.then.0.iter().for_each(|ms| total.then.add(*ms));
            rows.push(group.row);
        }
        total.row.now.first_audio_ms = total.now.p95();
        total.row.then.first_audio_ms = total.then.p95();
        Report { rows, total: total.row }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = r#"
        [upstreams.second]
        [agents.default]
        [agents.quick]
        model = "fast"
        [openai.models]
        old = "fast"
        [tenants.strict]
        models = ["gpt-realtime-2.1"]
        upstream = "second"
        [tiers.fast]
        routes = [{ model = "gpt-realtime-2.1", weight = 1 }, { upstream = "second", model = "gpt-realtime-2.1-mini", weight = 3 }]
        [tiers.other]
        policy = "cheapest"
        routes = [{ model = "gpt-realtime-2" }, { model = "gpt-realtime-2.1-mini" }]
    "#;

    fn replied(call: u64, agent: &str, model: &str) -> Replied {
        Replied {
            at: 1_795_219_200_000 + call * 1_000,
            call: format!("call_{call}"),
            tenant: "acme".to_owned(),
            user: None,
            agent: agent.to_owned(),
            model: model.to_owned(),
            route: format!("default/{model}"),
            // 0.004 USD at 2.1, 0.0006 at mini.
            usage: Usage { total_tokens: 1_000, input_tokens: 1_000, input_text_tokens: 1_000, ..Usage::default() },
            cost: Some(Usd::from_pico(5_000_000_000)),
            first_audio_ms: None,
        }
    }

    fn simulate(only: Option<&str>, replies: &[Replied], seed: u64) -> Report {
        let config: Config = toml::from_str(CONFIG).unwrap();
        let prices = PriceList::load(None).unwrap();
        let mut plan = Plan::new(&config, &prices, only);
        replies.iter().for_each(|reply| plan.learn(reply));
        let mut replay = plan.replay(seed);
        replies.iter().for_each(|reply| replay.reply(reply));
        replay.report()
    }

    #[test]
    fn calls_go_where_the_weights_say_and_their_replies_with_them() {
        let calls = |n: u64| [replied(n, "quick", "gpt-realtime-2.1"), replied(n, "quick", "gpt-realtime-2.1")];
        let replies: Vec<Replied> = (0..400).flat_map(calls).collect();
        let report = simulate(None, &replies, 1);
        let [large, mini] = &report.rows[..] else { panic!("{report:?}") };
        assert_eq!((large.tier.as_deref(), large.route.as_str()), (Some("fast"), "default/gpt-realtime-2.1"));
        assert_eq!(mini.route, "second/gpt-realtime-2.1-mini");
        assert!((260..340).contains(&mini.calls) && mini.replies == 2 * mini.calls, "{mini:?}");
        assert_eq!(large.calls + mini.calls, 400);
        let usd = |replies: u64, pico: i128| Usd::from_pico(i128::from(replies) * pico);
        assert_eq!(mini.now.usd, usd(mini.replies, 5_000_000_000), "as it was booked");
        assert_eq!((mini.then.usd, mini.then.unpriced), (usd(mini.replies, 600_000_000), 0));
        assert_eq!(large.then.usd, usd(large.replies, 4_000_000_000), "by today's list");
        assert_eq!(report.total.now.usd, usd(800, 5_000_000_000));
        assert_eq!((report.total.calls, report.total.replies, report.total.tokens), (400, 800, 800_000));
        assert_eq!(simulate(None, &replies, 1), report, "the same seed");
        assert_ne!(simulate(None, &replies, 2), report);
    }

    #[test]
    fn the_tier_is_the_agents_or_what_the_name_means_or_one_that_has_the_model_or_none() {
        let strict = |model: &str| Replied { tenant: "strict".to_owned(), ..replied(9, "quick", model) };
        for (reply, only, want) in [
            (replied(1, "quick", "anything"), None, Some("fast")),
            (replied(1, "default", "old"), None, Some("fast")),
            (replied(1, "default", "gpt-realtime-2.1-mini"), None, Some("fast")),
            (replied(1, "default", "gpt-realtime-2"), None, Some("other")),
            (replied(1, "gone", "gpt-realtime-2"), None, Some("other")),
            (replied(1, "default", "unknown"), None, None),
            (replied(1, "default", "unknown"), Some("other"), Some("other")),
        ] {
            let report = simulate(only, std::slice::from_ref(&reply), 1);
            assert_eq!(report.rows[0].tier.as_deref(), want, "{reply:?}");
        }
        // By the list, the mean reply is cheaper there; and what stays costs what it did.
        assert_eq!(simulate(Some("other"), &[replied(1, "x", "y")], 1).rows[0].route, "default/gpt-realtime-2.1-mini");
        let stays = simulate(None, &[replied(1, "default", "unknown")], 1);
        assert_eq!((&stays.rows[0].now, stays.rows[0].route.as_str()), (&stays.rows[0].then, "default/unknown"));
        // A tenant's models and account count.
        (0..20)
            .for_each(|seed| assert_eq!(simulate(None, &[strict("x")], seed).rows[0].route, "second/gpt-realtime-2.1"));
    }

    #[test]
    fn users_come_back_to_their_route() {
        let ann = |n| Replied { user: Some("ann".to_owned()), ..replied(n, "quick", "x") };
        assert_eq!(simulate(None, &(0..50).map(ann).collect::<Vec<_>>(), 3).rows.len(), 1);
    }

    #[test]
    fn how_soon_a_route_is_heard_is_what_it_was_or_what_its_model_was_elsewhere() {
        let heard = |n: u64, model: &str, ms: u64| Replied { first_audio_ms: Some(ms), ..replied(n, "quick", model) };
        let slow = |n| heard(n, "gpt-realtime-2.1", 900 + n % 10);
        let quick = |n| heard(n, "gpt-realtime-2.1-mini", 400 + n % 10);
        let report = simulate(None, &(0..400).map(slow).chain((400..600).map(quick)).collect::<Vec<_>>(), 1);
        let then: Vec<_> = report.rows.iter().map(|row| (row.route.as_str(), row.then.first_audio_ms)).collect();
        assert_eq!(then, [("default/gpt-realtime-2.1", Some(909)), ("second/gpt-realtime-2.1-mini", Some(409))]);
        assert!(report.rows.iter().all(|row| row.now.first_audio_ms == Some(909)), "{report:?}");
        let few = simulate(None, &(0..19).map(slow).collect::<Vec<_>>(), 1);
        assert_eq!((few.total.now.first_audio_ms, few.total.then.first_audio_ms), (None, None));
    }

    #[test]
    fn times_that_go_back_and_costs_that_nobody_knows_do_no_harm() {
        let mut replies: Vec<Replied> = (0..30).map(|n| replied(n, "quick", "x")).collect();
        replies[20].at = 0;
        replies.iter_mut().for_each(|reply| reply.cost = None);
        let report = simulate(None, &replies, 1);
        assert_eq!((report.total.replies, report.total.now.unpriced, report.total.then.unpriced), (30, 30, 0));
        assert_eq!(simulate(None, &[], 1).rows, []);
    }
}
