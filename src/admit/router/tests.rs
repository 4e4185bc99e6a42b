//! The whole router: tables, shares by chance that is seeded, figures in time that is passed in, and properties.
use proptest::prelude::*;
use rand::{SeedableRng as _, rngs::StdRng};

use super::{feed::Report, *};
use crate::config::Config;

const SECOND: Duration = Duration::from_secs(1);

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn config(source: &str) -> (BTreeMap<String, TierConfig>, IncidentsConfig) {
    let config: Config = toml::from_str(source).unwrap();
    (config.tiers, config.incidents)
}

/// A router, chance, and a clock that a test moves.
struct Bench {
    router: Router,
    rng: StdRng,
    now: Duration,
    calls: u64,
}

impl Bench {
    fn new(source: &str) -> Self {
        let (tiers, incidents) = config(source);
        let now = 1_000 * SECOND;
        Self { router: Router::new(&tiers, &incidents, now), rng: StdRng::seed_from_u64(7), now, calls: 0 }
    }

    /// Of another call each time, unless the change says which.
    fn ask<'a>(&mut self, tier: &str, change: impl FnOnce(&mut Wish<'a>)) -> Result<Choice, Refusal> {
        self.calls += 1;
        let call = format!("call_{}", self.calls);
        let mut wish = Wish {
            tier: self.router.resolve(tier).unwrap(),
            tenant: "acme",
            account: None,
            user: None,
            call: "",
            current: None,
            tried: &[],
            may_use: &|_| true,
            quota: &|_| Headroom::Plenty,
            price: &|_| None,
            spent: false,
        };
        change(&mut wish);
        let wish = if wish.call.is_empty() { Wish { call: &call, ..wish } } else { wish };
        self.router.choose(self.now, &wish, &mut self.rng)
    }

    fn choose(&mut self, tier: &str) -> Choice {
        self.ask(tier, |_| ()).unwrap()
    }

    /// The model and the reason.
    fn of<'a>(&mut self, change: impl FnOnce(&mut Wish<'a>)) -> (String, By) {
        let choice = self.ask("fast", change).unwrap();
        (choice.taken.route.model, choice.reason.by)
    }

    /// How often each model is taken in so many calls.
    fn shares(&mut self, calls: u32) -> BTreeMap<String, u32> {
        let mut shares = BTreeMap::new();
        (0..calls).for_each(|_| *shares.entry(self.choose("fast").taken.route.model).or_default() += 1);
        shares
    }

    fn fail(&mut self, model: &str, times: u32) {
        let taken = on("fast", model);
        (0..times).for_each(|_| self.router.failed(self.now, &taken, Stage::Connect));
    }

    fn heard(&mut self, taken: &Taken, times: u32, after: Duration) {
        (0..times).for_each(|_| self.router.first_audio(self.now, taken, after));
    }

    fn incident(&mut self, word: &str) {
        let report = Report::read(format!(r#"{{"status":"{word}"}}"#).as_bytes(), None);
        assert!(report.is_some());
        self.router.heard(self.now, report);
    }
}

fn on(tier: &str, model: &str) -> Taken {
    let route = Route { upstream: None, model: model.to_owned() };
    Taken { tier: tier.to_owned(), route, canary: false, sticks: None }
}

fn route(model: &str) -> Route {
    on("", model).route
}

const TWO: &str = r#"
    [tiers.fast]
    routes = [{ model = "a", weight = 9 }, { model = "b", weight = 1 }, { model = "spare", weight = 0 }]
"#;

fn policy(policy: &str) -> Bench {
    Bench::new(&TWO.replace("[tiers.fast]", &format!("[tiers.fast]\npolicy = \"{policy}\"\nsticky = false")))
}

#[test]
fn names_that_are_no_tiers_are_models() {
    let bench = Bench::new(TWO);
    assert!(bench.router.resolve("fast").is_some());
    assert_eq!(bench.router.resolve("gpt-realtime-2.1"), None);
}

#[test]
fn each_policy_takes_what_it_says() {
    let cheap = |route: &Route| Some(Usd::from_pico(if route.model == "b" { 1 } else { 2 }));
    let mut bench = policy("ordered");
    assert_eq!(bench.shares(50)["a"], 50);
    let mut bench = policy("cheapest");
    assert_eq!(bench.of(|wish| wish.price = &cheap), ("b".to_owned(), By::Price));
    assert_eq!(bench.of(|_| ()), ("a".to_owned(), By::Price), "the first of equals");
    // What has no price is not free.
    let only_a = |route: &Route| (route.model == "a").then(|| Usd::from_pico(9));
    assert_eq!(bench.of(|wish| wish.price = &only_a), ("a".to_owned(), By::Price));
    let mut bench = policy("fastest");
    let shares = bench.shares(1_000);
    assert!(
        (860..940).contains(&shares["a"]) && shares.len() == 2,
        "by weight, as long as nothing is known: {shares:?}"
    );
    bench.heard(&on("fast", "a"), 30, ms(900));
    bench.heard(&on("fast", "b"), 30, ms(500));
    let shares = bench.shares(1_000);
    assert!((880..935).contains(&shares["b"]), "nine in ten, and its part of the tenth: {shares:?}");
    bench.now += 700 * SECOND;
    assert!(bench.shares(1_000)["a"] > 860, "old figures say nothing");
}

#[test]
fn a_spare_is_taken_only_when_no_other_will_do() {
    let mut bench = policy("weighted");
    assert_eq!(bench.shares(500).len(), 2);
    bench.fail("a", 5);
    assert_eq!(bench.shares(100).keys().collect::<Vec<_>>(), ["b"]);
    bench.fail("b", 5);
    let choice = bench.choose("fast");
    assert_eq!((choice.taken.route.model.as_str(), choice.hedge_after), ("spare", None));
    let text = choice.to_string();
    let want = "fast default/spare by weight; passed over: default/a (open, next try in 1000 ms), default/b (open, next try in 1000 ms)";
    assert_eq!(text, want);
    bench.fail("spare", 5);
    let refusal = bench.ask("fast", |_| ()).unwrap_err();
    assert_eq!((refusal.why, refusal.retry_after, refusal.passed.len()), (Why::Open, Some(SECOND), 3));
}

#[test]
fn routes_that_are_slow_get_less_and_come_back() {
    let source = TWO.replace("[tiers.fast]", "[tiers.fast]\nfirst_audio_ms = 500\nsticky = false");
    let mut bench = Bench::new(&source);
    bench.heard(&on("fast", "a"), 30, ms(1_000));
    bench.heard(&on("fast", "b"), 30, ms(400));
    // 9 times a quarter, against 1.
    let shares = bench.shares(2_000);
    assert!((1_280..1_480).contains(&shares["a"]), "{shares:?}");
    let mut ordered = Bench::new(&source.replace("[tiers.fast]", "[tiers.fast]\npolicy = \"ordered\""));
    ordered.heard(&on("fast", "a"), 30, ms(1_000));
    let choice = ordered.choose("fast");
    assert_eq!(choice.taken.route.model, "b");
    assert_eq!(choice.reason.passed[0].why, WhyNot::Slow { p95_ms: 1_000 });
    ordered.heard(&on("fast", "a"), 256, ms(300));
    assert_eq!(ordered.choose("fast").taken.route.model, "a");
}

#[test]
fn a_limit_shifts_weight_and_is_neither_failure_nor_success() {
    let mut bench = policy("weighted");
    (0..9).for_each(|_| bench.router.limited(bench.now, &on("fast", "a"), None));
    // 9 / 16 against 1.
    let shares = bench.shares(2_000);
    assert!((620..830).contains(&shares["a"]), "{shares:?}");
    bench.now += 100 * SECOND;
    assert!(bench.shares(2_000)["a"] > 1_740, "it is forgotten");
    // A wait that is named is kept, as long as others will do.
    bench.router.limited(bench.now, &on("fast", "a"), Some(5 * SECOND));
    assert_eq!(bench.shares(100).keys().collect::<Vec<_>>(), ["b"]);
    bench.fail("b", 5);
    bench.fail("spare", 5);
    assert_eq!(bench.of(|_| ()), ("a".to_owned(), By::LastResort), "nobody is refused while it may be dialled");
    let view = bench.router.view(bench.now).tiers["fast"].routes[0].clone();
    assert_eq!((view.state, view.failures, view.held_ms, view.connect_p95_ms), ("closed", 0, 5_000, None));
}

#[test]
fn a_route_that_is_refused_is_left_alone_for_a_while() {
    let mut bench = policy("ordered");
    bench.router.refused(bench.now, &on("fast", "a"));
    let choice = bench.choose("fast");
    assert_eq!(
        (choice.taken.route.model.as_str(), choice.reason.passed[0].why),
        ("b", WhyNot::Refused { wait_ms: 30_000 })
    );
    bench.now += 31 * SECOND;
    assert_eq!(bench.choose("fast").taken.route.model, "a");
}

#[test]
fn quota_decides_before_weight() {
    let mut bench = policy("weighted");
    let quota = |of: [Headroom; 3]| {
        move |route: &Route| match route.model.as_str() {
            "a" => of[0],
            "b" => of[1],
            _ => of[2],
        }
    };
    use Headroom::{Nothing, Plenty, Scarce};
    for (of, want, by) in [
        ([Scarce, Plenty, Plenty], "b", By::Weight),
        ([Nothing, Scarce, Plenty], "spare", By::Weight),
        ([Nothing, Scarce, Scarce], "b", By::Weight),
        ([Nothing, Nothing, Scarce], "spare", By::Weight),
        ([Nothing, Nothing, Nothing], "a", By::LastResort),
    ] {
        let quota = quota(of);
        assert_eq!(bench.of(|wish| wish.quota = &quota), (want.to_owned(), by), "{of:?}");
    }
}

#[test]
fn who_may_use_a_tier_may_use_its_routes_and_who_may_not_may_use_those_of_its_models() {
    let mut bench = policy("weighted");
    let only = |name: &'static str| move |asked: &str| asked == name;
    let (fast, b, c) = (only("fast"), only("b"), only("c"));
    assert!(bench.ask("fast", |wish| wish.may_use = &fast).is_ok());
    (0..50).for_each(|_| assert_eq!(bench.of(|wish| wish.may_use = &b).0, "b"));
    let refusal = bench.ask("fast", |wish| wish.may_use = &c).unwrap_err();
    assert_eq!((refusal.why, refusal.retry_after), (Why::Forbidden, None));
    assert_eq!(refusal.passed[0].why, WhyNot::Forbidden);
}

#[test]
fn routes_without_an_account_are_the_tenants_own_and_fail_alone() {
    let source = r#"
        [tiers.fast]
        routes = [{ model = "m" }, { upstream = "second", model = "m", weight = 0 }]
    "#;
    let mut bench = Bench::new(source);
    let taken = bench.ask("fast", |wish| wish.account = Some("theirs")).unwrap().taken;
    assert_eq!(taken.route.to_string(), "theirs/m");
    (0..5).for_each(|_| bench.router.failed(bench.now, &taken, Stage::Connect));
    let spare = bench.ask("fast", |wish| wish.account = Some("theirs")).unwrap().taken;
    assert_eq!(spare.route.to_string(), "second/m");
    assert_eq!(bench.choose("fast").taken.route.to_string(), "default/m", "another account of another tenant");
    // Whose own account is that of the spare has one route, as the first one that leads there says.
    let refusal = bench.ask("fast", |wish| {
        wish.account = Some("second");
        wish.tried = std::slice::from_ref(&spare.route);
    });
    assert_eq!(refusal.unwrap_err().passed.len(), 1);
    let shown = bench.router.view(bench.now).tiers["fast"]
        .routes
        .iter()
        .map(|r| (r.route.to_string(), r.state))
        .collect::<Vec<_>>();
    assert_eq!(
        shown.iter().map(|(r, s)| (r.as_str(), *s)).collect::<Vec<_>>(),
        [("default/m", "closed"), ("theirs/m", "open"), ("second/m", "closed")]
    );
}

#[test]
fn those_that_were_tried_are_not_tried_again() {
    let mut bench = policy("weighted");
    let mut tried = Vec::new();
    for want in [["a", "b"], ["a", "b"], ["spare", "spare"]] {
        let taken = bench.ask("fast", |wish| wish.tried = &tried).unwrap().taken;
        assert!(want.contains(&taken.route.model.as_str()) && !tried.contains(&taken.route));
        tried.push(taken.route);
    }
    let refusal = bench.ask("fast", |wish| wish.tried = &tried).unwrap_err();
    assert_eq!((refusal.why, refusal.retry_after), (Why::Tried, None));
    assert!(
        refusal.to_string().starts_with("every route was tried; passed over: default/a (tried already), "),
        "{refusal}"
    );
}

#[test]
fn a_user_comes_back_to_where_they_were_while_it_is_well() {
    let mut bench = Bench::new(&TWO.replace("weight = 9", "weight = 1"));
    let as_ann = |bench: &mut Bench| bench.of(|wish| wish.user = Some("ann"));
    let first = bench.ask("fast", |wish| wish.user = Some("ann")).unwrap();
    assert_eq!(first.reason.by, By::Weight);
    // Nobody sticks to what never had a session.
    let by = (0..50).map(|_| as_ann(&mut bench).1).collect::<Vec<_>>();
    assert!(by.iter().all(|by| *by == By::Weight));
    bench.router.connected(bench.now, &first.taken, ms(200));
    let model = first.taken.route.model.clone();
    (0..50).for_each(|_| assert_eq!(as_ann(&mut bench), (model.clone(), By::Sticky)));
    let other = bench.ask("fast", |wish| (wish.user, wish.tenant) = (Some("ann"), "other")).unwrap();
    assert_eq!(other.reason.by, By::Weight, "another ann");
    bench.fail(&model, 5);
    assert_ne!(as_ann(&mut bench).0, model);
    let mut never = Bench::new(&TWO.replace("[tiers.fast]", "[tiers.fast]\nsticky = false"));
    let choice = never.ask("fast", |wish| wish.user = Some("ann")).unwrap();
    never.router.connected(never.now, &choice.taken, ms(200));
    assert_eq!(never.ask("fast", |wish| wish.user = Some("ann")).unwrap().reason.by, By::Weight);
}

#[test]
fn a_call_keeps_its_route_when_it_needs_another_session() {
    let mut bench = policy("weighted");
    let b = route("b");
    (0..50).for_each(|_| assert_eq!(bench.of(|wish| wish.current = Some(&b)), ("b".to_owned(), By::Current)));
    let spare = route("spare");
    assert_ne!(bench.of(|wish| wish.current = Some(&spare)).0, "spare", "a spare is left when others will do");
    bench.fail("b", 5);
    assert_eq!(bench.of(|wish| wish.current = Some(&b)).0, "a");
}

/// Connects every 10 ms to a route that is down, by the router's leave; what each of the ten seconds saw.
fn an_outage(policy: &str) {
    let source = format!("[tiers.fast]\npolicy = \"{policy}\"\nroutes = [{{ model = \"a\" }}]");
    let mut bench = Bench::new(&source);
    let (began, down) = (bench.now, |at: Duration| (SECOND..6 * SECOND).contains(&at));
    let (mut fifth, mut opened, mut closed, mut row, mut tries) = (None, None, None, 0, 0);
    while bench.now < began + 10 * SECOND {
        let at = bench.now - began;
        if let Ok(choice) = bench.ask("fast", |_| ()) {
            tries += u32::from(opened.is_some() && closed.is_none());
            if down(at) {
                row += 1;
                fifth = fifth.or((row == 5).then_some(at));
                bench.router.failed(bench.now, &choice.taken, Stage::Connect);
            } else {
                row = 0;
                bench.router.connected(bench.now, &choice.taken, ms(1));
            }
        }
        for news in bench.router.news() {
            match news {
                News::Opened(_) => assert!(opened.replace(at).is_none(), "once"),
                News::Closed(_) => assert!(closed.replace(at).is_none(), "once"),
                News::Judged { .. } => panic!("{news:?}"),
            }
        }
        bench.now += ms(10);
    }
    let (fifth, opened, closed) = (fifth.unwrap(), opened.unwrap(), closed.unwrap());
    assert!(opened - fifth <= SECOND, "opened {opened:?}, the fifth failed {fifth:?}");
    assert!(closed >= 6 * SECOND && closed - 6 * SECOND <= 2 * SECOND, "closed {closed:?}");
    assert!((4..=6).contains(&tries), "one try a second, not {tries}");
}

#[test]
fn the_breaker_opens_and_closes_in_time() {
    POLICIES.into_iter().for_each(an_outage);
}

#[test]
fn a_route_that_is_open_is_refused_at_once() {
    let mut bench = policy("weighted");
    ["a", "b", "spare"].into_iter().for_each(|model| bench.fail(model, 5));
    let began = std::time::SystemTime::now();
    (0..1_000).for_each(|_| assert!(bench.ask("fast", |_| ()).is_err()));
    let each = began.elapsed().unwrap_or_default() / 1_000;
    assert!(each < ms(10), "{each:?}");
}

#[test]
fn one_a_second_finds_out_and_the_others_stay_where_it_works() {
    for name in POLICIES {
        let mut bench = policy(name);
        bench.fail("a", 5);
        bench.now += ms(1_001);
        let choice = bench.choose("fast");
        assert_eq!((choice.taken.route.model.as_str(), choice.reason.by), ("a", By::Probe), "{name}");
        assert_eq!(choice.hedge_after, Some(HEDGE_LEAST), "it may be dead");
        (0..50).for_each(|_| assert_eq!(bench.choose("fast").taken.route.model, "b"));
        // What the policy would not have taken is not tried in its place.
        let mut bench = policy(name);
        bench.fail("b", 5);
        bench.now += ms(1_001);
        let tried = bench.choose("fast").taken.route.model == "b";
        assert_eq!(tried, matches!(name, "weighted" | "fastest"), "{name}");
    }
}

const HEDGE_LEAST: Duration = Duration::from_millis(300);

#[test]
fn first_audio_and_broken_replies_open_a_route_too() {
    for stage in [Stage::FirstAudio, Stage::MidStream] {
        let mut bench = policy("ordered");
        for _ in 0..5 {
            let taken = bench.choose("fast").taken;
            assert_eq!(taken.route.model, "a");
            bench.router.connected(bench.now, &taken, ms(100));
            bench.router.failed(bench.now, &taken, stage);
            bench.now += 2 * SECOND;
        }
        bench.now -= 2 * SECOND;
        assert_eq!(bench.choose("fast").taken.route.model, "b", "{stage:?}");
        bench.now += 2 * SECOND;
        let probe = bench.choose("fast");
        assert_eq!((probe.taken.route.model.as_str(), probe.reason.by), ("a", By::Probe));
        bench.router.connected(bench.now, &probe.taken, ms(100));
        assert_eq!(bench.choose("fast").taken.route.model, "b", "a session alone is no answer");
        bench.router.first_audio(bench.now, &probe.taken, ms(500));
        bench.router.replied(bench.now, &probe.taken, &Spent::default());
        assert_eq!(bench.choose("fast").taken.route.model, "a");
    }
}

#[test]
fn a_second_route_is_dialled_when_the_first_takes_long_and_not_too_often() {
    let mut bench = policy("weighted");
    let choice = bench.choose("fast");
    assert_eq!(choice.hedge_after, Some(SECOND), "nothing is known");
    for (took, want) in [(ms(40), HEDGE_LEAST), (ms(700), ms(700)), (9 * SECOND, 3 * SECOND)] {
        (0..300).for_each(|_| bench.router.connected(bench.now, &on("fast", "a"), took));
        let choice = bench.ask("fast", |wish| wish.tried = &[]).unwrap();
        if choice.taken.route.model == "a" {
            assert_eq!(choice.hedge_after, Some(want));
        }
    }
    let tier = bench.router.resolve("fast").unwrap();
    let hedge = |bench: &mut Bench, tried: &[Route], quota: &dyn Fn(&Route) -> Headroom| {
        let wish = Wish {
            tier,
            tenant: "acme",
            account: None,
            user: Some("ann"),
            call: "call",
            current: None,
            tried,
            may_use: &|_| true,
            quota,
            price: &|_| None,
            spent: false,
        };
        bench.router.hedge(bench.now, &wish, &mut bench.rng).map(|choice| choice.taken.route.model)
    };
    let plenty = |_: &Route| Headroom::Plenty;
    let scarce = |_: &Route| Headroom::Scarce;
    assert_eq!(hedge(&mut bench, &[route("a")], &plenty).as_deref(), Some("b"));
    assert_eq!(hedge(&mut bench, &[route("a")], &scarce), None, "only where there is room");
    bench.fail("b", 5);
    assert_eq!(hedge(&mut bench, &[route("a")], &plenty).as_deref(), Some("spare"));
    bench.now += ms(1_500);
    assert_eq!(hedge(&mut bench, &[route("a"), route("spare")], &plenty), None, "a hedge is no probe");
    // Ten are saved up, and each dial earns a tenth.
    let hedges = (0..100).filter(|_| hedge(&mut bench, &[route("a")], &plenty).is_some()).count();
    assert!(hedges <= 10, "{hedges}");
    (0..100).for_each(|_| drop(bench.ask("fast", |_| ())));
    let hedges = (0..100).filter(|_| hedge(&mut bench, &[route("a")], &plenty).is_some()).count();
    assert_eq!(hedges, 10);
}

const CHAIN: &str = r#"
    [tiers.fast]
    degrade_to = "cheap"
    routes = [{ model = "a" }, { model = "b" }]
    [tiers.cheap]
    degrade_to = "last"
    routes = [{ model = "c" }]
    [tiers.last]
    routes = [{ model = "d" }]
    [incidents]
    url = "https://status.example.com/"
"#;

/// The tier's models that are of a kind.
fn only(models: &'static [&'static str], headroom: Headroom) -> impl Fn(&Route) -> Headroom {
    move |route| if models.contains(&route.model.as_str()) { headroom } else { Headroom::Plenty }
}

#[test]
fn under_pressure_a_tier_degrades_and_no_longer() {
    let mut bench = Bench::new(CHAIN);
    fn of<'a>(bench: &mut Bench, change: impl FnOnce(&mut Wish<'a>)) -> (String, String, Option<Cause>) {
        let choice = bench.ask("fast", change).unwrap();
        (choice.taken.tier, choice.taken.route.model, choice.degraded)
    }
    let told = |tier: &str, model: &str, cause| (tier.to_owned(), model.to_owned(), cause);
    assert_eq!(of(&mut bench, |_| ()).2, None);
    let one_scarce = only(&["a"], Headroom::Scarce);
    assert_eq!(of(&mut bench, |wish| wish.quota = &one_scarce), told("fast", "b", None));
    let (scarce, nothing) = (only(&["a", "b"], Headroom::Scarce), only(&["a", "b"], Headroom::Nothing));
    for quota in [&scarce as &dyn Fn(&Route) -> Headroom, &nothing] {
        assert_eq!(of(&mut bench, |wish| wish.quota = quota), told("cheap", "c", Some(Cause::Quota)));
    }
    let all = |_: &Route| Headroom::Scarce;
    assert_eq!(of(&mut bench, |wish| wish.quota = &all).0, "fast", "it is no better there");
    let spent = |bench: &mut Bench| of(bench, |wish| wish.spent = true);
    assert_eq!(spent(&mut bench), told("cheap", "c", Some(Cause::Budget)));
    // Whoever may only use the tier's name may use what it stands for.
    let named = |name: &str| name == "fast";
    let choice = bench.ask("fast", |wish| (wish.spent, wish.may_use) = (true, &named)).unwrap();
    assert_eq!(choice.taken.tier, "cheap");
    for (word, tier) in [("minor", "fast"), ("major", "cheap"), ("critical", "cheap"), ("ok", "fast")] {
        bench.incident(word);
        let (found, _, cause) = of(&mut bench, |_| ());
        assert_eq!((found.as_str(), cause.is_some()), (tier, tier == "cheap"), "{word}");
    }
    bench.incident("critical");
    bench.now += 211 * SECOND;
    assert_eq!(of(&mut bench, |_| ()).0, "fast", "what was said long ago is not believed any more");
    bench.fail("c", 5);
    assert_eq!(spent(&mut bench), told("last", "d", Some(Cause::Budget)));
    bench.fail("d", 5);
    assert_eq!(spent(&mut bench).0, "fast", "nobody is refused who can be served");
    bench.fail("a", 5);
    bench.fail("b", 5);
    assert!(bench.ask("fast", |_| ()).is_err());
    bench.now += ms(1);
    bench.router.connected(bench.now, &on("cheap", "c"), ms(10));
    assert_eq!(of(&mut bench, |_| ()), told("cheap", "c", Some(Cause::Unavailable)));
}

#[test]
fn a_way_that_leads_back_is_walked_once() {
    let source = CHAIN.replace("[tiers.last]", "[tiers.last]\ndegrade_to = \"fast\"");
    let mut bench = Bench::new(&source);
    assert_eq!(bench.ask("fast", |wish| wish.spent = true).unwrap().taken.tier, "cheap");
    ["a", "b", "c", "d"].into_iter().for_each(|model| bench.fail(model, 5));
    assert_eq!(bench.ask("fast", |_| ()).unwrap_err().why, Why::Open);
    let mut alone = Bench::new("[tiers.fast]\ndegrade_to = \"fast\"\nroutes = [{ model = \"a\" }]\n[tiers.none]");
    assert_eq!(alone.choose("fast").taken.route.model, "a");
    assert_eq!(alone.ask("none", |_| ()).unwrap_err().why, Why::Forbidden, "a tier without routes refuses");
}

#[test]
fn weights_that_are_all_nothing_are_equal() {
    let mut bench = Bench::new("[tiers.fast]\nroutes = [{ model = \"a\", weight = 0 }, { model = \"b\", weight = 0 }]");
    let shares = bench.shares(1_000);
    assert!((430..570).contains(&shares["a"]), "{shares:?}");
}

#[test]
fn a_clock_that_leaps_does_no_harm() {
    let mut bench = policy("weighted");
    bench.fail("a", 5);
    // Back: time stands still, and goes on.
    bench.now = SECOND;
    assert_eq!(bench.shares(20).len(), 1);
    bench.now = 2 * SECOND + ms(100);
    assert_eq!(bench.choose("fast").reason.by, By::Probe, "a second has passed since");
    // Two readings that have overtaken each other make it no faster.
    let mut clock = Clock { read: ms(0), passed: ms(0) };
    let passed = [5, 3, 6, 5, 10].map(|at| clock.at(ms(at)).as_millis());
    assert_eq!(passed, [5, 5, 6, 6, 10]);
    // Ahead: everything is old, and nobody is refused.
    bench.router.limited(bench.now, &on("fast", "b"), Some(90 * SECOND));
    bench.now += 1_000_000 * SECOND;
    let view = bench.router.view(bench.now);
    assert!(view.tiers["fast"].routes.iter().all(|route| route.held_ms == 0 && route.state != "open"), "{view:?}");
    assert!(bench.ask("fast", |_| ()).is_ok());
}

#[test]
fn what_is_remembered_of_routes_is_bounded() {
    let mut bench = Bench::new(TWO);
    for n in 0..3_000 {
        bench.router.failed(bench.now + ms(n), &on("fast", &format!("m{n}")), Stage::Connect);
    }
    assert_eq!(bench.router.routes.len(), ROUTES);
    assert!(bench.router.routes.contains_key(&route("m2999")) && !bench.router.routes.contains_key(&route("m0")));
    assert!(bench.router.news().len() <= NEWS);
}

const CANARY: &str = r#"
    [tiers.fast]
    routes = [{ model = "a" }]
    canary = { model = "next", share_percent = 20, min_calls = 50, observe_s = 600 }
    [incidents]
    url = "https://status.example.com/"
"#;

/// What a call on either side does.
#[derive(Clone, Copy)]
struct Habits {
    /// One in so many sessions breaks; 0: none.
    breaks: u64,
    audio_ms: u64,
    /// Millionths of a dollar.
    micro: Option<i128>,
    /// One in so many tool calls fails; 0: there are none.
    tool_fails: u64,
}

const USUAL: Habits = Habits { breaks: 40, audio_ms: 600, micro: Some(7_000), tool_fails: 20 };

impl Bench {
    /// So many calls, one a second.
    fn live(&mut self, calls: u64, control: Habits, candidate: Habits) {
        for n in 1..=calls {
            self.now += SECOND;
            let taken = self.choose("fast").taken;
            let habits = if taken.canary { candidate } else { control };
            self.router.connected(self.now, &taken, ms(150));
            let spread = n % 7;
            self.router.first_audio(self.now, &taken, ms(habits.audio_ms + 10 * spread));
            let usd = habits.micro.map(|micro| Usd::from_pico((micro + 100 * i128::from(spread)) * 1_000_000));
            let (tools, failed) =
                (u64::from(habits.tool_fails > 0), habits.tool_fails > 0 && n % habits.tool_fails == 0);
            self.router.replied(self.now, &taken, &Spent { usd, tools, tools_failed: u64::from(failed) });
            if habits.breaks > 0 && n.is_multiple_of(habits.breaks) {
                self.router.failed(self.now, &taken, Stage::MidStream);
            }
        }
    }

    fn canary(&mut self) -> CanaryView {
        self.router.view(self.now).tiers["fast"].canary.clone().unwrap()
    }
}

#[test]
fn a_share_of_calls_tries_the_candidate_and_the_same_call_always() {
    let mut bench = Bench::new(CANARY);
    let canaries = (0..5_000).filter(|_| bench.choose("fast").taken.canary).count();
    assert!((900..1_100).contains(&canaries), "{canaries}");
    let of = |bench: &mut Bench, call: &str| bench.ask("fast", |wish| wish.call = call).unwrap().taken.canary;
    let calls: Vec<String> = (0..200).map(|n| format!("c{n}")).collect();
    let first: Vec<bool> = calls.iter().map(|call| of(&mut bench, call)).collect();
    let mut other = Bench::new(CANARY);
    assert_eq!(first, calls.iter().map(|call| of(&mut other, call)).collect::<Vec<_>>(), "in every process");
    let one = |is: bool| calls.iter().zip(&first).find(|(_, canary)| **canary == is).unwrap().0;
    let (canary, control) = (one(true), one(false));
    // A call that has a session keeps what it has.
    let (a, next) = (route("a"), route("next"));
    assert_eq!(bench.of(|wish| (wish.call, wish.current) = (canary, Some(&a))), ("a".to_owned(), By::Current));
    assert_eq!(bench.of(|wish| (wish.call, wish.current) = (canary, Some(&next))), ("next".to_owned(), By::Canary));
    // A user of the canary does not stick to it.
    let choice = bench.ask("fast", |wish| (wish.call, wish.user) = (canary, Some("ann"))).unwrap();
    bench.router.connected(bench.now, &choice.taken, ms(1));
    assert_eq!(bench.of(|wish| (wish.call, wish.user) = (control, Some("ann"))).0, "a");
    // It is passed over when it cannot be had.
    let tried = [route("next")];
    assert_eq!(bench.of(|wish| (wish.call, wish.tried) = (canary, &tried)).0, "a");
    bench.fail("next", 5);
    assert_eq!(bench.of(|wish| wish.call = canary).0, "a");
}

#[test]
fn a_candidate_as_good_as_the_others_is_promoted_and_a_worse_one_rolled_back_for_what_it_is_worse_in() {
    let worse = |change: fn(&mut Habits)| {
        let mut habits = USUAL;
        change(&mut habits);
        habits
    };
    for (name, candidate, want) in [
        ("equal", USUAL, None),
        ("better", worse(|h| (h.breaks, h.audio_ms, h.micro) = (0, 300, Some(1_000))), None),
        ("a little dearer", worse(|h| h.micro = Some(8_000)), None),
        ("breaks", worse(|h| h.breaks = 3), Some(Criterion::Errors)),
        ("slow", worse(|h| h.audio_ms = 1_000), Some(Criterion::FirstAudio)),
        ("dear", worse(|h| h.micro = Some(14_000)), Some(Criterion::Cost)),
        ("clumsy", worse(|h| h.tool_fails = 2), Some(Criterion::FailedTools)),
    ] {
        let mut bench = Bench::new(CANARY);
        bench.live(200, USUAL, candidate);
        assert_eq!(bench.canary().standing, Standing::Running, "{name}: too few calls");
        bench.live(2_000, USUAL, candidate);
        let standing = if want.is_some() { Standing::RolledBack } else { Standing::Promoted };
        let canary = bench.canary();
        assert_eq!(canary.standing, standing, "{name}: {canary:#?}");
        let judged =
            bench.router.news().into_iter().filter(|news| matches!(news, News::Judged { .. })).collect::<Vec<_>>();
        assert_eq!(judged, [News::Judged { tier: "fast".to_owned(), standing, by: want }], "{name}");
        let share = if want.is_some() { 0.0 } else { 100.0 };
        assert_eq!(canary.share_percent, share);
        let canaries = (0..500).filter(|_| bench.choose("fast").taken.canary).count();
        assert_eq!(canaries, if want.is_some() { 0 } else { 500 }, "{name}");
        let found =
            canary.figures.iter().filter(|figure| figure.finding == Finding::Worse).map(|figure| figure.criterion);
        assert!(found.eq(want), "{name}: {canary:#?}");
    }
}

#[test]
fn nothing_is_concluded_from_too_little() {
    // One failure of fifty is chance: neither promoted nor rolled back by it.
    let mut bench = Bench::new(CANARY);
    let sound = Habits { breaks: 0, ..USUAL };
    bench.live(700, sound, sound);
    let taken = Taken { canary: true, ..on("fast", "next") };
    let mut early = Bench::new(CANARY);
    early.live(240, sound, sound);
    early.router.failed(early.now, &taken, Stage::MidStream);
    early.live(60, sound, sound);
    let canary = early.canary();
    assert!(canary.sessions >= 50 && canary.control_sessions >= 50, "{canary:?}");
    assert_eq!((canary.standing, canary.figures[0].finding), (Standing::Running, Finding::Unsure), "{canary:?}");
    assert_eq!(bench.canary().standing, Standing::Promoted, "the same without it, and after the time to observe");
    // Costs that only one side knows are waited for; those that nobody knows are not judged.
    for (control, want) in [(Some(7_000), Standing::Running), (None, Standing::Promoted)] {
        let mut bench = Bench::new(CANARY);
        let unpriced = Habits { micro: None, ..sound };
        bench.live(1_000, Habits { micro: control, ..sound }, unpriced);
        assert_eq!(bench.canary().standing, want, "{:?}", bench.canary());
    }
    // Neither are tools that were not called.
    let toolless = Habits { tool_fails: 0, ..sound };
    let mut bench = Bench::new(CANARY);
    bench.live(1_000, toolless, toolless);
    assert_eq!((bench.canary().standing, bench.canary().figures[3].finding), (Standing::Promoted, Finding::NotJudged));
}

#[test]
fn an_incident_pauses_promotion_and_not_a_roll_back() {
    let live = |candidate: Habits| {
        let mut bench = Bench::new(CANARY);
        for _ in 0..20 {
            bench.incident("minor");
            bench.live(100, USUAL, candidate);
        }
        bench
    };
    let mut bench = live(USUAL);
    assert_eq!(bench.canary().standing, Standing::Paused);
    bench.incident("ok");
    assert_eq!(bench.canary().standing, Standing::Promoted, "and goes on when it is over");
    assert_eq!(live(Habits { audio_ms: 2_000, ..USUAL }).canary().standing, Standing::RolledBack);
}

#[test]
fn a_candidate_that_the_service_does_not_know_is_rolled_back_and_limits_are_not_its_fault() {
    let mut bench = Bench::new(CANARY);
    let (mut refused, mut limited) = (0, 0);
    for _ in 0..1_000 {
        bench.now += 40 * SECOND;
        let taken = bench.choose("fast").taken;
        if taken.canary && bench.canary().sessions < 20 && limited < 100 {
            limited += 1;
            bench.router.limited(bench.now, &taken, None);
        } else if taken.canary {
            refused += 1;
            bench.router.refused(bench.now, &taken);
        } else {
            bench.router.connected(bench.now, &taken, ms(100));
        }
    }
    let canary = bench.canary();
    assert_eq!((canary.standing, canary.sessions), (Standing::RolledBack, 50), "{canary:?} {limited}");
    assert_eq!((refused, limited), (50, 100));
}

#[test]
fn the_view_is_json_with_figures() {
    let mut bench =
        Bench::new(&format!("{CANARY}\n[tiers.cheap]\npolicy = \"cheapest\"\nroutes = [{{ model = \"c\" }}]"));
    bench.live(40, USUAL, USUAL);
    let view = serde_json::to_value(bench.router.view(bench.now)).unwrap();
    let fast = &view["tiers"]["fast"];
    assert_eq!((&view["incident"]["state"], &fast["policy"]), (&"unknown".into(), &"weighted".into()));
    assert_eq!((&fast["routes"][0]["model"], &fast["routes"][0]["connect_p95_ms"]), (&"a".into(), &150.into()));
    assert_eq!(
        (&fast["canary"]["standing"], &fast["canary"]["figures"][0]["finding"]),
        (&"running".into(), &"unsure".into())
    );
    assert_eq!(view["tiers"]["cheap"]["routes"][0]["state"], "closed");
}

#[test]
fn a_route_that_was_taken_can_be_written_down() {
    let mut bench = Bench::new(TWO);
    let taken = bench.ask("fast", |wish| wish.user = Some("ann")).unwrap().taken;
    let read: Taken = serde_json::from_str(&serde_json::to_string(&taken).unwrap()).unwrap();
    assert_eq!(read, taken);
}

/// What happens to a route.
#[derive(Debug, Clone)]
enum Happens {
    Failed(usize, Stage),
    Connected(usize),
    Limited(usize, u64),
    Refused(usize),
    Heard(usize, u64),
    Passes(u64),
}

fn happens() -> impl Strategy<Value = Happens> {
    let at = 0..4_usize;
    prop_oneof![
        4 => (at.clone(), prop_oneof![Just(Stage::Connect), Just(Stage::FirstAudio), Just(Stage::MidStream)])
            .prop_map(|(at, stage)| Happens::Failed(at, stage)),
        1 => at.clone().prop_map(Happens::Connected),
        1 => (at.clone(), 0..5_000_u64).prop_map(|(at, wait)| Happens::Limited(at, wait)),
        1 => at.clone().prop_map(Happens::Refused),
        1 => (at, 100..3_000_u64).prop_map(|(at, after)| Happens::Heard(at, after)),
        2 => (0..1_500_u64).prop_map(Happens::Passes),
    ]
}

const POLICIES: [&str; 4] = ["weighted", "ordered", "cheapest", "fastest"];

proptest! {
    #[test]
    fn what_is_open_is_never_taken_while_another_will_do_and_nobody_is_refused_who_can_be_served(
        policy in 0..4_usize,
        weights in proptest::collection::vec(0..5_u32, 4),
        headroom in proptest::collection::vec(0..3_u8, 4),
        events in proptest::collection::vec(happens(), 0..120),
        seed in any::<u64>(),
    ) {
        let routes = weights.iter().enumerate().map(|(at, weight)| format!("{{ model = \"m{at}\", weight = {weight} }}"));
        let source = format!(
            "[tiers.fast]\npolicy = \"{}\"\nfirst_audio_ms = 500\nroutes = [{}]",
            POLICIES[policy],
            routes.collect::<Vec<_>>().join(", ")
        );
        let mut bench = Bench::new(&source);
        bench.rng = StdRng::seed_from_u64(seed);
        let models: Vec<Taken> = (0..4).map(|at| on("fast", &format!("m{at}"))).collect();
        let quota = |route: &Route| {
            let at = models.iter().position(|one| one.route == *route).unwrap();
            [Headroom::Plenty, Headroom::Scarce, Headroom::Nothing][usize::from(headroom[at])]
        };
        for event in events {
            match event {
                Happens::Failed(at, stage) => bench.router.failed(bench.now, &models[at], stage),
                Happens::Connected(at) => bench.router.connected(bench.now, &models[at], ms(100)),
                Happens::Limited(at, wait) => bench.router.limited(bench.now, &models[at], Some(ms(wait))),
                Happens::Refused(at) => bench.router.refused(bench.now, &models[at]),
                Happens::Heard(at, after) => bench.router.first_audio(bench.now, &models[at], ms(after)),
                Happens::Passes(by) => bench.now += ms(by),
            }
            let before = bench.router.view(bench.now).tiers["fast"].routes.clone();
            let state = |route: &Route| before.iter().find(|one| one.route == *route).unwrap().state;
            match bench.ask("fast", |wish| wish.quota = &quota) {
                Ok(choice) => {
                    prop_assert_ne!(state(&choice.taken.route), "open");
                    if state(&choice.taken.route) == "half_open" {
                        let after = bench.router.view(bench.now).tiers["fast"].routes.clone();
                        let after = after.iter().find(|one| one.route == choice.taken.route).unwrap();
                        prop_assert_eq!(after.state, "open", "one at a time");
                    }
                }
                Err(refusal) => {
                    prop_assert!(before.iter().all(|route| route.state == "open"), "{refusal}: {before:?}");
                    prop_assert!(refusal.retry_after.is_some_and(|wait| wait <= SECOND && wait > Duration::ZERO));
                }
            }
        }
    }

    #[test]
    fn shares_are_what_the_weights_say(weights in proptest::collection::vec(0..20_u32, 2..6), seed in any::<u64>()) {
        let all: u32 = weights.iter().sum();
        prop_assume!(all > 0);
        let routes = weights.iter().enumerate().map(|(at, weight)| format!("{{ model = \"m{at}\", weight = {weight} }}"));
        let mut bench = Bench::new(&format!("[tiers.fast]\nroutes = [{}]", routes.collect::<Vec<_>>().join(", ")));
        bench.rng = StdRng::seed_from_u64(seed);
        let calls = 3_000;
        let shares = bench.shares(calls);
        for (at, weight) in weights.iter().enumerate() {
            let share = f64::from(*weight) / f64::from(all);
            let found = f64::from(shares.get(&format!("m{at}")).copied().unwrap_or_default());
            // Five standard deviations: a false alarm in a million.
            let bound = 5.0 * (f64::from(calls) * share * (1.0 - share)).sqrt();
            prop_assert!((found - f64::from(calls) * share).abs() <= bound, "{weights:?} gave {shares:?}");
        }
    }

    #[test]
    fn whatever_tiers_lead_to_a_choice_ends(leads in proptest::collection::vec(0..5_usize, 5), spent in any::<bool>(), down in 0..32_u8) {
        let tier = |(at, to): (usize, &usize)| format!("[tiers.t{at}]\ndegrade_to = \"t{to}\"\nroutes = [{{ model = \"m{at}\" }}]\n");
        let mut bench = Bench::new(&leads.iter().enumerate().map(tier).collect::<String>());
        for at in (0..5).filter(|at| down & (1 << at) != 0) {
            (0..5).for_each(|_| bench.router.failed(bench.now, &on("t", &format!("m{at}")), Stage::Connect));
        }
        // Those that can be reached.
        let mut reached = vec![0];
        while !reached.contains(&leads[*reached.last().unwrap()]) {
            reached.push(leads[*reached.last().unwrap()]);
        }
        let up = reached.iter().any(|at| down & (1 << at) == 0);
        prop_assert_eq!(bench.ask("t0", |wish| wish.spent = spent).is_ok(), up);
    }
}
