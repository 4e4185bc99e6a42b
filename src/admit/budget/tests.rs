//! Budgets through their interfaces: tables, and properties of the accounts against a plain list of what happened.
use std::{collections::BTreeMap, sync::Arc, time::Duration};

use proptest::{collection::vec, prelude::*};

use super::*;
use crate::{
    config::{Moment, Scope, TenantConfig},
    ledger::spent::{Spending, Used},
};

/// 2026-11-28, half past eleven in the evening: a day and, two days later, a month are soon over.
const BEGAN: u64 = 1_795_908_600;

fn at(s: u64) -> Now {
    Now { since: Duration::from_secs(s), unix: BEGAN + s }
}

fn tokens(tokens: u64) -> Amount {
    Amount { usd: None, tokens }
}

fn usd(pico: i128, tokens: u64) -> Amount {
    Amount { usd: Some(Usd::from_pico(pico)), tokens }
}

fn subject(whose: Whose, name: &str) -> Subject {
    Subject { tenant: "acme".to_owned(), whose, name: name.to_owned() }
}

fn line(whose: Whose, name: &str, limits: &[(Window, Unit, i128)]) -> Line {
    let limits = limits.iter().map(|(window, unit, most)| Limit { window: *window, unit: *unit, most: *most });
    Line { subject: subject(whose, name), limits: limits.collect() }
}

fn subjects(lines: &[Line]) -> Vec<Subject> {
    lines.iter().map(|line| line.subject.clone()).collect()
}

#[test]
fn a_limit_leaves_no_room_for_what_does_not_fit_and_says_when_it_will() {
    let (minute, day, month) = (Window::Minute, Window::Day, Window::Month);
    let (midnight, december) = ("2026-11-29T00:00:00Z", "2026-12-01T00:00:00Z");
    // Used at 0 s, then another one is needed at 10 s.
    for (name, limits, used, need, want) in [
        ("fits", vec![(day, Unit::Tokens, 100)], tokens(60), tokens(40), None),
        (
            "one too many",
            vec![(day, Unit::Tokens, 100)],
            tokens(60),
            tokens(41),
            Some((day, Unit::Tokens, Some(midnight))),
        ),
        (
            "all is used",
            vec![(day, Unit::Tokens, 60)],
            tokens(60),
            tokens(0),
            Some((day, Unit::Tokens, Some(midnight))),
        ),
        ("nothing may be", vec![(day, Unit::Usd, 0)], tokens(0), usd(0, 0), Some((day, Unit::Usd, None))),
        ("money", vec![(day, Unit::Usd, 100)], usd(60, 0), usd(41, 0), Some((day, Unit::Usd, Some(midnight)))),
        (
            "no price, so only tokens count",
            vec![(day, Unit::Usd, 100), (month, Unit::Tokens, 50)],
            tokens(40),
            tokens(11),
            Some((month, Unit::Tokens, Some(december))),
        ),
        ("no price, no limit in tokens", vec![(day, Unit::Usd, 100)], tokens(1 << 40), tokens(1 << 40), None),
        ("never", vec![(day, Unit::Tokens, 100)], tokens(0), tokens(101), Some((day, Unit::Tokens, None))),
        (
            "the one that lasts longest",
            vec![(month, Unit::Tokens, 50), (minute, Unit::Tokens, 50), (day, Unit::Usd, 50)],
            usd(50, 50),
            usd(1, 1),
            Some((month, Unit::Tokens, Some(december))),
        ),
        (
            "a minute",
            vec![(minute, Unit::Tokens, 50)],
            tokens(50),
            tokens(1),
            Some((minute, Unit::Tokens, Some("2026-11-28T23:31:06Z"))),
        ),
        (
            "a call",
            vec![(Window::Call, Unit::Tokens, 50)],
            tokens(50),
            tokens(1),
            Some((Window::Call, Unit::Tokens, None)),
        ),
    ] {
        let mut accounts = Accounts::default();
        let lines = [line(Whose::Tenant, "", &limits)];
        accounts.add(at(0), subjects(&lines).iter(), used);
        let found = accounts.ask(at(10), &lines, need).err();
        let found = found.map(|spent| (spent.window, spent.unit, spent.resets_at.map(|at| Moment(at).to_string())));
        let want = want.map(|(window, unit, until)| (window, unit, until.map(str::to_owned)));
        assert_eq!(found, want, "{name}");
        if let Some((.., Some(until))) = want {
            let then: Moment = until.parse().unwrap();
            let later = Now { since: at(10).since + Duration::from_secs(then.0 - at(10).unix), unix: then.0 };
            assert_eq!(accounts.ask(later, &lines, need), Ok(()), "{name}: there is room then");
        }
    }
}

#[test]
fn all_accounts_hold_or_none_and_others_that_run_are_told_apart_from_what_is_used() {
    let mut accounts = Accounts::default();
    let lines = [
        line(Whose::Tenant, "", &[(Window::Day, Unit::Tokens, 100)]),
        line(Whose::User, "ann", &[(Window::Day, Unit::Tokens, 50)]),
    ];
    accounts.ask(at(0), &lines, tokens(40)).unwrap();
    let spent = accounts.ask(at(0), &lines, tokens(20)).unwrap_err();
    assert_eq!(
        (spent.whose, spent.held, spent.is_only_held(), spent.resets_at),
        (Whose::User, 40, true, Some(BEGAN + 1))
    );
    assert_eq!(spent.to_string(), "what is left of the user's budget for this day is held for answers that run");
    assert_eq!(
        accounts.held(&subject(Whose::Tenant, "")).get(Unit::Tokens),
        40,
        "nothing was held of what was refused"
    );
    // More than was held: in full.
    accounts.over(at(1), &subjects(&lines), tokens(40), Some(tokens(70)));
    let used =
        |accounts: &Accounts, whose, name| accounts.used(at(1), &subject(whose, name), Window::Day).get(Unit::Tokens);
    assert_eq!((used(&accounts, Whose::Tenant, ""), used(&accounts, Whose::User, "ann")), (70, 70));
    let spent = accounts.ask(at(1), &lines, tokens(1)).unwrap_err();
    assert_eq!(spent.to_string(), "the user's budget for this day is used up until 2026-11-29T00:00:00Z");
    let spent = accounts.ask(at(1), &lines[..1], tokens(101)).unwrap_err();
    assert_eq!(spent.to_string(), "this may cost more than the tenant's budget for this day has in all");
}

#[test]
fn how_things_stand_is_low_then_tight_then_spent() {
    let mut accounts = Accounts::default();
    let lines = [line(Whose::Tenant, "", &[(Window::Day, Unit::Tokens, 1_000), (Window::Month, Unit::Usd, 1_000)])];
    let mut look = |used: Amount, others: Amount| {
        accounts.add(at(0), subjects(&lines).iter(), used);
        accounts.hold(at(0), subjects(&lines).iter(), others);
        let standing = accounts.standing(at(0), &lines, usd(100, 100), 80);
        accounts.over(at(0), &subjects(&lines), others, None);
        let low = standing.low.iter().map(|low| (low.window, low.percent)).collect::<Vec<_>>();
        (low, standing.spent.map(|spent| spent.window), standing.tight)
    };
    assert_eq!(look(usd(799, 0), tokens(0)), (vec![], None, false));
    assert_eq!(look(usd(1, 0), tokens(0)), (vec![(Window::Month, 80)], None, false));
    assert_eq!(look(usd(0, 850), tokens(100)), (vec![(Window::Day, 85), (Window::Month, 80)], None, true));
    assert_eq!(look(usd(0, 60), tokens(0)), (vec![(Window::Day, 91), (Window::Month, 80)], Some(Window::Day), true));
    assert_eq!(
        look(usd(300, 0), tokens(0)),
        (vec![(Window::Month, 110), (Window::Day, 91)], Some(Window::Month), true)
    );
    let lines = [line(Whose::Tenant, "", &[(Window::Day, Unit::Usd, 0)])];
    assert_eq!(Accounts::default().standing(at(0), &lines, tokens(0), 100).low[0].percent, 100, "of nothing");
}

#[test]
fn a_clock_that_goes_back_gives_nothing_back() {
    let mut accounts = Accounts::default();
    let lines = [line(Whose::Tenant, "", &[(Window::Day, Unit::Tokens, 100), (Window::Month, Unit::Tokens, 1_000)])];
    let tomorrow = Now { since: Duration::from_secs(10), unix: BEGAN + 86_400 };
    accounts.add(tomorrow, subjects(&lines).iter(), tokens(100));
    for s in [0, 1_000, 1_800, 80_000] {
        let spent =
            accounts.ask(Now { since: Duration::from_secs(20), unix: BEGAN + s }, &lines, tokens(1)).unwrap_err();
        assert_eq!(spent.resets_at.map(|at| Moment(at).to_string()).as_deref(), Some("2026-11-30T00:00:00Z"));
    }
    let next = Now { since: Duration::from_secs(100), unix: BEGAN + 2 * 86_400 };
    assert_eq!(accounts.ask(next, &lines, tokens(1)), Ok(()));
    assert_eq!(accounts.used(next, &lines[0].subject, Window::Month).get(Unit::Tokens), 100);
}

#[test]
fn users_are_forgotten_the_oldest_of_whoever_has_most() {
    let mut accounts = Accounts::remembering(100);
    let user = |tenant: &str, n: u64| Subject { tenant: tenant.to_owned(), whose: Whose::User, name: n.to_string() };
    for n in 0..5 {
        accounts.add(at(0), [&user("small", n)], tokens(7));
    }
    accounts.hold(at(0), [&user("large", 0)], tokens(1));
    for n in 1..10_000 {
        accounts.add(at(n / 10), [&user("large", n)], tokens(7));
        assert!(accounts.len() <= 100);
    }
    let day = |accounts: &Accounts, of: &Subject| accounts.used(at(1_000), of, Window::Day).get(Unit::Tokens);
    assert!((0..5).all(|n| day(&accounts, &user("small", n)) == 7), "others' users stay");
    assert_eq!((day(&accounts, &user("large", 9_999)), day(&accounts, &user("large", 1))), (7, 0));
    assert_eq!(accounts.held(&user("large", 0)).get(Unit::Tokens), 1, "what is held stays");
    accounts.over(at(1_000), &[user("large", 0)], tokens(1), None);
    // Two months later nothing of it counts any more, and all of it makes room for one.
    let later = Now { since: Duration::from_secs(9_000_000), unix: BEGAN + 9_000_000 };
    (0..101).for_each(|n| accounts.add(later, [&user("new", n)], tokens(1)));
    assert_eq!(accounts.names("large", Whose::User).count(), 0);
    assert_eq!(accounts.names("new", Whose::User).count(), 101 - 10);
}

/// What may happen to the accounts of two tenants' users, each in calls of their own.
#[derive(Debug, Clone)]
enum Step {
    /// A call asks for so much of both.
    Ask { call: usize, tokens: u64, usd: Option<u16> },
    /// A reply that nobody asked for has begun.
    Charge { call: usize, tokens: u64, usd: Option<u16> },
    /// One of the replies is over, and has used so many hundredths of what was held.
    Settle { which: usize, percent: u64 },
    /// One of them is given back.
    Release { which: usize },
    /// A transcription.
    Spend { call: usize, tokens: u64 },
    /// Time goes by.
    Pass { s: u64 },
    /// The clock on the wall is set.
    Set { back: bool, s: u64 },
}

fn steps(charges: bool, most_percent: u64, clock: bool) -> impl Strategy<Value = Vec<Step>> {
    let money = || proptest::option::weighted(0.8, any::<u16>());
    let step = prop_oneof![
        6 => (0..4usize, 0..900u64, money()).prop_map(|(call, tokens, usd)| Step::Ask { call, tokens, usd }),
        if charges { 2 } else { 0 } => (0..4usize, 0..900u64, money()).prop_map(|(call, tokens, usd)| Step::Charge { call, tokens, usd }),
        4 => (any::<usize>(), 0..=most_percent).prop_map(|(which, percent)| Step::Settle { which, percent }),
        1 => any::<usize>().prop_map(|which| Step::Release { which }),
        if charges { 1 } else { 0 } => (0..4usize, 0..300u64).prop_map(|(call, tokens)| Step::Spend { call, tokens }),
        3 => prop_oneof![0..30u64, 0..4_000u64, 0..200_000u64].prop_map(|s| Step::Pass { s }),
        if clock { 1 } else { 0 } => (any::<bool>(), 0..200_000u64).prop_map(|(back, s)| Step::Set { back, s }),
    ];
    vec(step, 1..80)
}

/// The accounts of a call: a tenant's, a user's (two calls each), and its own.
fn lines_of(call: usize) -> Vec<Line> {
    let all = |n: i128| {
        [Window::Minute, Window::Day, Window::Month]
            .into_iter()
            .zip([1, 3, 6])
            .flat_map(move |(window, times)| [(window, Unit::Tokens, n * times), (window, Unit::Usd, 40 * n * times)])
            .collect::<Vec<_>>()
    };
    vec![
        line(Whose::Tenant, "", &all(2_000)),
        line(Whose::User, if call < 2 { "ann" } else { "bob" }, &all(1_200)),
        line(Whose::Call, &call.to_string(), &[(Window::Call, Unit::Tokens, 5_000), (Window::Call, Unit::Usd, 90_000)]),
    ]
}

/// The accounts, and beside them what happened.
#[derive(Default)]
struct Model {
    accounts: Accounts,
    now_s: u64,
    unix: u64,
    held: Vec<(Vec<Line>, Amount)>,
    /// Whose, since, Unix (as far as it has ever been), how much.
    used: Vec<(Subject, u64, u64, Amount)>,
    /// Caps of what was not asked for, by account.
    unasked: BTreeMap<Subject, (i128, i128)>,
    latest: u64,
}

impl Model {
    fn now(&self) -> Now {
        Now { since: Duration::from_secs(self.now_s), unix: self.unix }
    }

    fn count(&mut self, lines: &[Line], used: Amount) {
        self.latest = self.latest.max(self.unix);
        self.used.extend(lines.iter().map(|line| (line.subject.clone(), self.now_s, self.latest, used)));
    }

    fn unasked(&mut self, lines: &[Line], cap: Amount) {
        for line in lines {
            let (tokens, usd) = self.unasked.entry(line.subject.clone()).or_default();
            *tokens += i128::from(cap.tokens);
            *usd += cap.usd.unwrap_or_default().pico();
        }
    }

    fn step(&mut self, step: Step) {
        let amount = |tokens, usd: Option<u16>| Amount { usd: usd.map(|n| Usd::from_pico(n.into())), tokens };
        let now = self.now();
        match step {
            Step::Ask { call, tokens, usd } => {
                let (lines, need) = (lines_of(call), amount(tokens, usd));
                if self.accounts.ask(now, &lines, need).is_ok() {
                    self.held.push((lines, need));
                }
            }
            Step::Charge { call, tokens, usd } => {
                let (lines, need) = (lines_of(call), amount(tokens, usd));
                self.accounts.hold(now, &subjects(&lines), need);
                self.unasked(&lines, need);
                self.held.push((lines, need));
            }
            Step::Settle { which, percent } if !self.held.is_empty() => {
                let (lines, held) = self.held.swap_remove(which % self.held.len());
                let part = |n: i128| n * i128::from(percent) / 100;
                let used = Amount {
                    usd: held.usd.map(|usd| Usd::from_pico(part(usd.pico()))),
                    tokens: u64::try_from(part(held.tokens.into())).unwrap(),
                };
                self.accounts.over(now, &subjects(&lines), held, Some(used));
                self.count(&lines, used);
            }
            Step::Release { which } if !self.held.is_empty() => {
                let (lines, held) = self.held.swap_remove(which % self.held.len());
                self.accounts.over(now, &subjects(&lines), held, None);
            }
            Step::Spend { call, tokens } => {
                let (lines, used) = (lines_of(call), amount(tokens, None));
                self.accounts.add(now, &subjects(&lines), used);
                self.unasked(&lines, used);
                self.count(&lines, used);
            }
            Step::Settle { .. } | Step::Release { .. } => {}
            Step::Pass { s } => (self.now_s, self.unix) = (self.now_s + s, self.unix + s),
            Step::Set { back: true, s } => self.unix -= s,
            Step::Set { back: false, s } => self.unix += s,
        }
    }

    fn sum(&self, of: &Subject, unit: Unit, counts: impl Fn(u64, u64) -> bool) -> i128 {
        let own = self.used.iter().filter(|(subject, since, unix, _)| subject == of && counts(*since, *unix));
        own.map(|(.., used)| Tally::of(*used).get(unit)).sum()
    }
}

fn model() -> Model {
    Model { unix: BEGAN, latest: BEGAN, ..Model::default() }
}

proptest! {
    #[test]
    fn what_is_used_and_held_of_what_was_granted_never_passes_a_limit(steps in steps(false, 100, true)) {
        let mut model = model();
        for step in steps {
            model.step(step);
            for Line { subject, limits } in (0..4).flat_map(lines_of) {
                for Limit { window, unit, most } in limits {
                    let both = model.accounts.used(model.now(), &subject, window).get(unit) + model.accounts.held(&subject).get(unit);
                    prop_assert!(both <= most, "{subject:?} {window:?} {unit:?}: {both} of {most}");
                }
            }
        }
    }

    #[test]
    fn what_nobody_asked_for_passes_a_limit_by_its_caps_at_most(steps in steps(true, 100, true)) {
        let mut model = model();
        for step in steps {
            model.step(step);
            for Line { subject, limits } in (0..4).flat_map(lines_of) {
                let (tokens, usd) = model.unasked.get(&subject).copied().unwrap_or_default();
                for Limit { window, unit, most } in limits {
                    let both = model.accounts.used(model.now(), &subject, window).get(unit) + model.accounts.held(&subject).get(unit);
                    let caps = if unit == Unit::Usd { usd } else { tokens };
                    prop_assert!(both <= most + caps, "{subject:?} {window:?} {unit:?}: {both} of {most} and {caps}");
                }
            }
        }
    }

    #[test]
    fn nothing_leaks_and_what_counts_is_what_was_used(steps in steps(true, 250, false)) {
        let mut model = model();
        for step in steps {
            model.step(step);
            let now = model.now();
            for Line { subject, .. } in (0..4).flat_map(lines_of) {
                for unit in [Unit::Usd, Unit::Tokens] {
                    let held: i128 = model.held.iter().filter(|(lines, _)| subjects(lines).contains(&subject))
                        .map(|(_, held)| Tally::of(*held).get(unit)).sum();
                    prop_assert_eq!(model.accounts.held(&subject).get(unit), held);
                    let used = |window| model.accounts.used(now, &subject, window).get(unit);
                    prop_assert_eq!(used(Window::Day), model.sum(&subject, unit, |_, unix| unix / 86_400 == now.unix / 86_400));
                    let month = window::month_start(now.unix);
                    prop_assert_eq!(used(Window::Month), model.sum(&subject, unit, |_, unix| window::month_start(unix) == month));
                    prop_assert_eq!(used(Window::Call), model.sum(&subject, unit, |_, _| true));
                    // A minute at least, and five seconds more at most.
                    let minute = used(Window::Minute);
                    prop_assert!(minute >= model.sum(&subject, unit, |since, _| since + 60 > model.now_s));
                    prop_assert!(minute <= model.sum(&subject, unit, |since, _| since + 65 >= model.now_s));
                }
            }
        }
        while !model.held.is_empty() {
            model.step(Step::Release { which: 0 });
        }
        for Line { subject, .. } in (0..4).flat_map(lines_of) {
            prop_assert_eq!((model.accounts.held(&subject).usd, model.accounts.held(&subject).tokens), (0, 0));
        }
        (0..4).for_each(|call: u64| model.accounts.close(&subject(Whose::Call, &call.to_string())));
        prop_assert!(model.accounts.len() <= 3, "calls leave nothing behind");
    }

    #[test]
    fn no_clock_makes_what_counts_less_within_its_day(steps in steps(true, 100, true)) {
        let mut model = model();
        let (mut before, mut latest) = (BTreeMap::new(), 0);
        for step in steps {
            model.step(step);
            // Nothing happens, but the clock is looked at.
            model.accounts.hold(model.now(), &[], tokens(0));
            let later = model.unix / 86_400 > latest / 86_400;
            latest = latest.max(model.unix);
            for Line { subject, .. } in (0..4).flat_map(lines_of) {
                let used = model.accounts.used(model.now(), &subject, Window::Day).get(Unit::Tokens);
                let before = before.insert(subject, used).unwrap_or_default();
                prop_assert!(later || used >= before, "{before} before, {used} now");
            }
        }
    }
}

fn who(change: impl FnOnce(&mut TenantConfig)) -> Principal {
    let key = crate::admit::key::hash("a key");
    let scopes = Scope::all();
    let mut config = TenantConfig {
        keys: vec![crate::config::KeyConfig {
            label: "backend".to_owned(),
            hash: key,
            expires: None,
            scopes: scopes.clone(),
            budget: None,
        }],
        ..TenantConfig::default()
    };
    change(&mut config);
    let tenant = Tenant { id: "acme".to_owned(), config };
    Principal::new(Some(Arc::new(tenant)), Some(key), scopes, None).for_user("ann".to_owned(), "safe".to_owned())
}

#[test]
fn a_purse_counts_for_tenant_key_user_and_call_and_gives_back_what_is_dropped() {
    let budgets = Budgets::default();
    let who = who(|tenant| {
        tenant.budget.all.tokens_month = Some(1_000);
        tenant.budget.key.tokens_month = Some(900);
        tenant.budget.user.usd_month = Some(Usd::from_pico(100));
        tenant.budget.call.tokens = Some(500);
    });
    let mut purse = budgets.purse(&who, "call_1", Amount::default());
    drop(purse.ask(usd(60, 400)).unwrap());
    let first = purse.ask(usd(60, 400)).unwrap();
    assert_eq!(purse.ask(usd(10, 101)).unwrap_err().whose, Whose::Call);
    assert_eq!(purse.ask(usd(41, 10)).unwrap_err().whose, Whose::User);
    first.settle(usd(50, 420));
    assert_eq!(purse.used(), usd(50, 420));
    purse.spend(tokens(10));
    let standing = purse.standing(usd(1, 1));
    assert_eq!(standing.low.iter().map(|low| (low.whose, low.percent)).collect::<Vec<_>>(), [(Whose::Call, 86)]);
    assert_eq!(standing.low[0].to_string(), "86 % of the call's budget is used");
    assert!(purse.standing(usd(1, 1)).low.is_empty(), "once is enough");
    purse.charge(usd(200, 10)).settle(usd(200, 10));
    let standing = purse.standing(usd(1, 1));
    assert_eq!(
        (standing.low[0].whose, standing.spent.unwrap().whose, standing.tight),
        (Whose::User, Whose::User, true)
    );
    let shown = budgets.view(&who);
    let row = |scope, unit| shown.iter().find(|row| row.scope == scope && row.unit == unit).unwrap();
    assert_eq!(serde_json::to_value(row(Whose::Key, Unit::Tokens)).unwrap()["used"], 440);
    let user = serde_json::to_value(row(Whose::User, Unit::Usd)).unwrap();
    assert_eq!(
        (&user["name"], &user["limit"], &user["used"]),
        (&"ann".into(), &"0.0000000001".into(), &"0.00000000025".into())
    );
    assert_eq!((&user["costs_known"], &user["held"]), (&false.into(), &"0".into()), "the transcription had no price");
    assert_eq!(row(Whose::Call, Unit::Tokens).name.as_deref(), Some("call_1"));
    drop(purse);
    assert!(budgets.view(&who).iter().all(|row| row.scope != Whose::Call));
    // The user's money is gone; another call of theirs does not begin.
    assert_eq!(budgets.may_begin(&who, usd(1, 1)).unwrap_err().whose, Whose::User);
    // Handed over, a call has what it had.
    let second = budgets.purse(&who, "call_2", usd(0, 490));
    assert_eq!(second.ask(usd(0, 11)).unwrap_err().whose, Whose::Call);
}

#[test]
fn what_the_ledger_knows_counts_from_the_start() {
    let budgets = Budgets::default();
    let who = who(|tenant| {
        tenant.budget.all.usd_day = Some(Usd::from_pico(100));
        tenant.keys[0].budget = Some(AllowanceConfig { tokens_month: Some(50), ..AllowanceConfig::default() });
        tenant.budget.key.tokens_month = Some(5);
        tenant.budget.user.tokens_day = Some(20);
    });
    assert_eq!(budgets.may_begin(&who, Amount::default()), Ok(()));
    let used = |pico: i128, tokens: i128| Used { usd: Usd::from_pico(pico), tokens, unpriced: false };
    let spending = |key: Option<&str>, user: Option<&str>, day, month| Spending {
        tenant: "acme".to_owned(),
        key: key.map(str::to_owned),
        user: user.map(str::to_owned),
        day,
        month,
    };
    let now = unix_now();
    budgets.add_earlier(now, &[spending(None, None, used(99, 1), used(500, 9))]);
    assert_eq!(budgets.may_begin(&who, usd(1, 1)), Ok(()));
    assert_eq!(budgets.may_begin(&who, usd(2, 1)).unwrap_err().whose, Whose::Tenant);
    budgets.add_earlier(now, &[spending(None, Some("ann"), used(0, 19), used(0, 19))]);
    assert_eq!(budgets.may_begin(&who, usd(0, 2)).unwrap_err().whose, Whose::User);
    budgets.add_earlier(now, &[spending(Some("backend"), None, used(0, 0), used(0, 50))]);
    assert_eq!(budgets.may_begin(&who, Amount::default()).unwrap_err().whose, Whose::Key);
    // Of a day that is over when the ledger has been read, nothing counts but in its month.
    let purse = budgets.purse(&who, "call_1", Amount::default());
    purse.spend(tokens(1));
    budgets.add_earlier(now - 40 * 86_400, &[spending(None, None, used(100, 100), used(100, 100))]);
    let shown = budgets.view(&who);
    let tenant = shown.iter().find(|row| row.scope == Whose::Tenant).unwrap();
    assert_eq!((tenant.used.as_str(), tenant.costs_known), (Some("0.000000000099"), Some(false)));
}

#[test]
fn a_batch_goes_by_days_and_months_and_by_other_batches() {
    let budgets = Budgets::default();
    let who = who(|tenant| {
        tenant.budget.all.tokens_minute = Some(10);
        tenant.budget.all.tokens_day = Some(1_000);
        tenant.budget.call.tokens = Some(10);
    });
    let first = budgets.begin_batch(&who, tokens(600)).unwrap();
    let spent = budgets.begin_batch(&who, tokens(401)).unwrap_err();
    assert_eq!((spent.window, spent.held, spent.is_only_held()), (Window::Day, 600, true));
    let held = |budgets: &Budgets| {
        let all = budgets.view(&who).into_iter().filter(|row| row.scope == Whose::Tenant);
        all.map(|row| (row.window, row.held.as_u64().unwrap())).collect::<Vec<_>>()
    };
    assert_eq!(held(&budgets), [(Window::Minute, 0), (Window::Day, 600)]);
    // Calls have all that is not used.
    let purse = budgets.purse(&who, "call_1", Amount::default());
    assert!(purse.ask(tokens(10)).is_ok());
    let second = budgets.begin_batch(&who, tokens(400)).unwrap();
    drop(first);
    let running = budgets.batch_began(&who, tokens(900));
    assert_eq!(budgets.begin_batch(&who, tokens(1)).unwrap_err().held, 1_300);
    drop((second, running));
    // What came in one takes nothing of the minute.
    budgets.purse(&who, "batch_1", Amount::default()).spend_batch(tokens(500));
    assert!(purse.ask(tokens(10)).is_ok());
    assert_eq!(budgets.begin_batch(&who, tokens(501)).unwrap_err().used, 500);
    assert!(budgets.accounts().begun(&subject(Whose::Tenant, "")) == Tally::default());
    assert!(budgets.limits_batches(&who) && !budgets.limits_users(&who));
}
