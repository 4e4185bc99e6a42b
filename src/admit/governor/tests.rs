//! The pool through its interface: tables and properties. What it does against a service is in `sim`.
use std::{collections::BTreeMap, time::Duration};

use proptest::{collection::vec, prelude::*};

use super::{Ask, Asked, Class, Dimension, Heard, Limits, Pool, Reason, Reservation, Ticket};
use crate::config::LimitsConfig;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// 900 tokens a second, 5,400 at once (540 in the lane); requests do not matter.
fn limits() -> Limits {
    Limits { tokens: Some(60_000), requests: Some(60_000), ..Limits::default() }
}

fn pool() -> Pool {
    Pool::new(limits(), Duration::ZERO)
}

fn ask(class: Class, tokens: u64) -> Ask<'static> {
    Ask { tenant: "a", weight: 1, class, tokens, until: ms(600_000) }
}

fn admitted(asked: Asked) -> Reservation {
    match asked {
        Asked::Admitted(reservation) => reservation,
        other => panic!("{other:?}"),
    }
}

fn waits(asked: Asked) -> (Ticket, Reason) {
    match asked {
        Asked::Waits(ticket, reason) => (ticket, reason),
        other => panic!("{other:?}"),
    }
}

fn refused(asked: Asked) -> Reason {
    match asked {
        Asked::Refused(reason) => reason,
        other => panic!("{other:?}"),
    }
}

fn shown(pool: &Pool, now: u64, dimension: Dimension) -> super::Shown {
    pool.view(ms(now)).dimensions.into_iter().find(|shown| shown.dimension == dimension).unwrap()
}

/// Polls whenever there is something to do; who went when, in milliseconds.
fn goes(pool: &mut Pool, mut now: Duration, until: u64) -> Vec<(Ticket, u64)> {
    let mut went = vec![];
    while let Some(next) = pool.next(now).filter(|next| *next <= ms(until)) {
        now = next;
        for (ticket, answer) in pool.poll(now) {
            let _reserved = answer.unwrap();
            went.push((ticket, u64::try_from(now.as_millis()).unwrap()));
        }
    }
    went
}

#[test]
fn nothing_scarce_nobody_waits() {
    let mut free = Pool::new(Limits::default(), ms(0));
    for class in [Class::Batch, Class::Interactive] {
        let reservation = admitted(free.ask(ms(0), ask(class, u64::MAX)));
        free.settle(ms(1), reservation, 7);
    }
    assert_eq!((free.next(ms(0)), shown(&free, 0, Dimension::Tokens).available), (None, None));
}

#[test]
fn larger_than_a_limit_is_refused_at_once_by_name() {
    let mut pool = pool();
    let reason = refused(pool.ask(ms(0), ask(Class::Interactive, 54_001)));
    assert_eq!(reason.to_string(), "tpm: need 54,001, have 54,000, never");
    let giant = admitted(pool.ask(ms(0), ask(Class::Interactive, 54_000)));
    pool.release(ms(0), giant);
    assert_eq!(shown(&pool, 0, Dimension::Tokens).refused, 1);
    for (limits, name) in [
        (Limits { requests: Some(0), ..limits() }, "rpm"),
        (Limits { requests_day: Some(0), ..limits() }, "rpd"),
        (Limits { tokens_day: Some(10), ..limits() }, "tpd"),
    ] {
        let mut pool = Pool::new(limits, ms(0));
        let reason = refused(pool.ask(ms(0), ask(Class::Interactive, 100)));
        assert_eq!((reason.dimension.name(), reason.wait), (name, None));
    }
}

#[test]
fn who_waits_goes_when_it_said() {
    let mut pool = pool();
    let first = admitted(pool.ask(ms(0), ask(Class::Interactive, 5_400)));
    let (ticket, reason) = waits(pool.ask(ms(0), ask(Class::Interactive, 1_800)));
    assert_eq!(reason.to_string(), "tpm: need 1,800, have 0, 2.0 s");
    assert!(pool.poll(ms(1_999)).is_empty());
    let (next, at) = (pool.next(ms(0)).unwrap(), ms(2_000));
    assert!(next <= at + ms(1) && next >= at - ms(1), "{next:?}");
    let went = goes(&mut pool, ms(0), 3_000);
    assert!(matches!(went.as_slice(), [(of, 2_000..=2_001)] if *of == ticket), "{went:?}");
    let (ticket, _) = waits(pool.ask(ms(2_001), ask(Class::Interactive, 3_000)));
    pool.settle(ms(2_010), first, 400);
    let at = pool.next(ms(2_010)).unwrap();
    assert_eq!((at, pool.poll(at).len()), (ms(2_010), 1), "what was not used is there for who waits: {ticket:?}");
}

#[test]
fn who_has_waited_too_long_is_told_and_who_leaves_is_not() {
    let mut pool = pool();
    let _giant = admitted(pool.ask(ms(0), ask(Class::Interactive, 54_000)));
    let short = Ask { until: ms(500), ..ask(Class::Interactive, 1_000) };
    let (gone, _) = waits(pool.ask(ms(0), short));
    let (late, _) = waits(pool.ask(ms(0), short));
    pool.cancel(gone);
    pool.cancel(gone);
    assert_eq!(pool.next(ms(0)), Some(ms(500)));
    let told = pool.poll(ms(500));
    assert!(matches!(told.as_slice(), [(ticket, Err(reason))] if *ticket == late && reason.wait.is_some()), "{told:?}");
    assert_eq!((pool.next(ms(500)), pool.poll(ms(9_000)).len()), (None, 0));
    let now = Ask { until: ms(500), ..ask(Class::Batch, 5_000) };
    assert!(refused(pool.ask(ms(500), now)).wait.is_some(), "no time to wait");
}

#[test]
fn a_giant_waits_no_longer_than_it_must() {
    for class in [Class::Interactive, Class::Batch] {
        let mut pool = pool();
        let _used = admitted(pool.ask(ms(0), ask(Class::Interactive, 5_400)));
        let (giant, _) = waits(pool.ask(ms(0), Ask { tenant: "b", ..ask(class, 20_000) }));
        for _ in 0..50 {
            waits(pool.ask(ms(0), ask(class, 500)));
        }
        let went = goes(&mut pool, ms(0), 120_000);
        let at = went.iter().position(|(ticket, _)| *ticket == giant).unwrap();
        // The others of its tenant's size go first as long as they cost less; then the bucket fills once.
        assert!(at <= 40 && went[at].1 <= 6_000 + 1_000 * 20 * 1_000 / 900 + 10, "{class:?}: {at} {:?}", went[at]);
        assert_eq!(went.len(), 51);
    }
}

#[test]
fn a_tenth_is_kept_for_who_waits_on_the_line() {
    let mut pool = pool();
    let _giant = admitted(pool.ask(ms(0), ask(Class::Batch, 54_000)));
    assert!(matches!(pool.ask(ms(0), ask(Class::Batch, 10)), Asked::Waits(..)));
    let _first = admitted(pool.ask(ms(0), ask(Class::Interactive, 540)));
    let (second, _) = waits(pool.ask(ms(0), ask(Class::Interactive, 180)));
    let went = goes(&mut pool, ms(0), 3_000);
    assert!(matches!(went.as_slice(), [(ticket, 2_000..=2_001)] if *ticket == second), "90 a second: {went:?}");
}

#[test]
fn batch_that_is_old_goes_after_ten_interactive_ones() {
    let mut pool = pool();
    let _used = admitted(pool.ask(ms(0), ask(Class::Interactive, 5_400)));
    let (batch, _) = waits(pool.ask(ms(0), ask(Class::Batch, 2_000)));
    // More than there is rate for, all the time.
    let mut went = vec![];
    for n in 0..1_200 {
        let now = ms(n * 100);
        let _ = pool.ask(now, ask(Class::Interactive, 120));
        went.extend(pool.poll(now).into_iter().map(|(ticket, _)| (ticket, n * 100)));
    }
    let at = went.iter().find(|(ticket, _)| *ticket == batch).map(|(_, at)| *at).expect("it starves");
    assert!((60_000..65_000).contains(&at), "{at}");
}

#[test]
fn what_the_service_says_counts_if_it_is_less() {
    let said = |limit, remaining| Heard::Bucket { dimension: Dimension::Tokens, limit, remaining, reset: None };
    for (configured, heard, limit, available) in [
        (Some(60_000), said(Some(60_000), Some(1_000)), 60_000, 1_000),
        (Some(60_000), said(Some(60_000), Some(50_000)), 60_000, 5_400),
        (Some(60_000), said(Some(6_000), None), 6_000, 540),
        (Some(60_000), said(Some(600_000), None), 60_000, 5_400),
        (Some(60_000), said(Some(0), Some(u64::MAX)), 60_000, 5_400),
        (None, said(Some(60_000), None), 60_000, 5_400),
        (None, said(Some(60_000), Some(100)), 60_000, 100),
    ] {
        let mut pool = Pool::new(Limits { tokens: configured, ..Limits::default() }, ms(0));
        pool.heard(ms(0), heard);
        let shown = shown(&pool, 0, Dimension::Tokens);
        assert_eq!((shown.limit, shown.available), (Some(limit), Some(available)), "{configured:?} {heard:?}");
        assert_eq!(shown.learned, configured != Some(limit));
    }
}

#[test]
fn what_the_service_says_follows_what_we_do() {
    let said = |remaining| Heard::Bucket {
        dimension: Dimension::Tokens,
        limit: None,
        remaining: Some(remaining),
        reset: None,
    };
    let left = |pool: &Pool| shown(pool, 0, Dimension::Tokens).available.unwrap();
    for (name, before, after, used, want) in [
        ("reserved since", 2_000, None, None, 800),
        ("settled", 2_000, None, Some(200), 1_800),
        ("released", 2_000, None, Some(0), 2_000),
        ("a reply that does not know of it yet", 2_000, Some(2_000), None, 800),
        ("settled after one that does", 2_000, Some(500), Some(200), 1_500),
        ("released after one that cannot know of it", 2_000, Some(500), Some(0), 500),
    ] {
        let mut pool = pool();
        pool.heard(ms(0), said(before));
        let reservation = admitted(pool.ask(ms(0), ask(Class::Interactive, 1_200)));
        if let Some(after) = after {
            pool.heard(Duration::from_nanos(1), said(after));
        }
        match used {
            Some(0) => pool.release(ms(0), reservation),
            Some(used) => pool.settle(ms(0), reservation, used),
            None => assert_eq!(reservation.at(), ms(0)),
        }
        assert_eq!(left(&pool), want, "{name}");
    }
}

#[test]
fn a_refusal_of_the_service_holds_everybody_back() {
    let limited = |dimension, wait| Heard::Limited { dimension, wait };
    let (tokens, huge) = (Some(Dimension::Tokens), Some(Duration::MAX));
    for (heard, wait, factor) in [
        (limited(None, None), 1_000, 0.5),
        (limited(tokens, Some(ms(0))), 10, 0.5),
        (limited(tokens, Some(ms(700))), 700, 0.5),
        (limited(tokens, huge), 120_000, 0.5),
        (limited(Some(Dimension::RequestsDay), Some(ms(700))), 700, 1.0),
    ] {
        let mut pool = pool();
        pool.heard(ms(0), heard);
        assert_eq!(pool.view(ms(0)).factor, factor);
        let (_, reason) = waits(pool.ask(ms(0), ask(Class::Interactive, 1)));
        assert_eq!(reason.wait, Some(ms(wait)), "{heard:?}");
        assert!(pool.poll(ms(wait - 1)).is_empty() && pool.poll(ms(wait)).len() == 1, "{heard:?}");
    }
}

#[test]
fn sessions_by_the_minute_and_at_once() {
    let limits = Limits { connects: Some(100), sessions: Some(3), ..Limits::default() };
    let mut pool = Pool::new(limits, ms(0));
    for _ in 0..3 {
        pool.connect(ms(0)).unwrap();
    }
    assert_eq!(pool.connect(ms(0)).unwrap_err().to_string(), "sessions: need 1, have 0, 1.0 s");
    pool.left();
    pool.connect(ms(0)).unwrap();
    let mut another = || {
        pool.left();
        pool.connect(ms(0)).is_ok()
    };
    let closed = (0..20).filter(|_| another()).count();
    let reason = pool.connect(ms(0)).unwrap_err();
    assert_eq!((closed, reason.dimension), (5, Dimension::Connects), "{reason}");
    for _ in 0..9 {
        pool.left();
    }
    assert_eq!(shown(&pool, 0, Dimension::Sessions).reserved, 0);
}

#[test]
fn other_limits_let_others_go() {
    let mut pool = pool();
    let reservation = admitted(pool.ask(ms(0), ask(Class::Interactive, 5_400)));
    let (large, _) = waits(pool.ask(ms(0), ask(Class::Interactive, 20_000)));
    let (small, _) = waits(pool.ask(ms(0), ask(Class::Interactive, 1_000)));
    pool.reload(ms(1), Limits { tokens: Some(10_000), ..limits() });
    let told = pool.poll(ms(1));
    assert!(
        matches!(told.as_slice(), [(ticket, Err(reason))] if *ticket == large && reason.wait.is_none()),
        "{told:?}"
    );
    assert_eq!(shown(&pool, 1, Dimension::Tokens).reserved, 5_400);
    pool.reload(ms(2), Limits::default());
    assert!(matches!(pool.poll(ms(2)).as_slice(), [(ticket, Ok(_))] if *ticket == small));
    pool.settle(ms(3), reservation, 0);
    assert_eq!(shown(&pool, 3, Dimension::Tokens).reserved, 1_000);
}

#[test]
fn limits_are_read_with_their_defaults() {
    let read = Limits::from(&toml::from_str::<LimitsConfig>("tokens = 5\nburst_ms = 250").unwrap());
    assert_eq!(read, Limits { tokens: Some(5), burst: ms(250), ..Limits::default() });
    assert!(toml::from_str::<LimitsConfig>("token = 5").is_err());
    let json = serde_json::to_value(pool().view(ms(0))).unwrap();
    assert_eq!(json.pointer("/dimensions/1/available"), Some(&5_400.into()), "{json}");
}

#[derive(Debug, Clone)]
enum Step {
    Ask { tenant: usize, batch: bool, tokens: u64, patience: u64 },
    Pass(u64),
    Back(u64),
    Settle { which: usize, percent: u64 },
    Release(usize),
    Cancel(usize),
    Limited(u64),
    Said { remaining: u64, limit: Option<u64> },
}

fn step(most: u64) -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..3usize, any::<bool>(), 0..most, 1_000..300_000u64)
            .prop_map(|(tenant, batch, tokens, patience)| Step::Ask { tenant, batch, tokens, patience }),
        4 => (0..3_000u64).prop_map(Step::Pass),
        1 => (0..3_000u64).prop_map(Step::Back),
        3 => (any::<usize>(), 0..150u64).prop_map(|(which, percent)| Step::Settle { which, percent }),
        1 => any::<usize>().prop_map(Step::Release),
        1 => any::<usize>().prop_map(Step::Cancel),
        1 => (0..5_000u64).prop_map(Step::Limited),
        1 => (0..80_000u64, proptest::option::of(0..100_000u64))
            .prop_map(|(remaining, limit)| Step::Said { remaining, limit }),
    ]
}

const TENANTS: [&str; 3] = ["a", "b", "c"];
const WEIGHTS: [u32; 3] = [0, 1, 2];

/// A pool, and everything that it has ever said.
#[derive(Debug)]
struct Watched {
    pool: Pool,
    held: Vec<Reservation>,
    waiting: Vec<(Ticket, usize, Class)>,
    went: Vec<(Duration, u64)>,
}

impl Watched {
    fn ask(&mut self, now: Duration, tenant: usize, class: Class, tokens: u64, patience: u64) {
        let ask = Ask { tenant: TENANTS[tenant], weight: WEIGHTS[tenant], class, tokens, until: now + ms(patience) };
        match self.pool.ask(now, ask) {
            Asked::Admitted(reservation) => self.goes(now, reservation),
            Asked::Waits(ticket, _) => self.waiting.push((ticket, tenant, class)),
            Asked::Refused(reason) => assert!(reason.wait.is_none(), "{reason}"),
        }
    }

    fn goes(&mut self, now: Duration, reservation: Reservation) {
        self.went.push((now, reservation.tokens()));
        self.held.push(reservation);
    }

    fn poll(&mut self, now: Duration) {
        for (ticket, answer) in self.pool.poll(now) {
            let at = self.waiting.iter().position(|(waiting, ..)| *waiting == ticket).expect("named once");
            let (_, tenant, class) = self.waiting.remove(at);
            if let Ok(reservation) = answer {
                let before = self.waiting.iter().any(|(other, t, c)| *t == tenant && *c == class && *other < ticket);
                assert!(!before, "somebody of its tenant and class was there before {ticket:?}");
                self.goes(now, reservation);
            }
        }
        assert!(self.pool.next(now).is_none_or(|next| next > now), "there is nothing left to do");
    }

    fn check(&self, now: Duration) {
        let view = self.pool.view(now);
        let reserved: BTreeMap<_, _> = view.dimensions.iter().map(|shown| (shown.dimension, shown.reserved)).collect();
        assert_eq!(reserved[&Dimension::Requests], self.held.len() as u64);
        assert_eq!(reserved[&Dimension::Tokens], self.held.iter().map(Reservation::tokens).sum::<u64>());
        assert_eq!(view.waiting.iter().map(|waiting| waiting.waiting).sum::<usize>(), self.waiting.len());
    }
}

/// Takes the steps, then lets time pass until nobody waits.
fn run(steps: Vec<Step>, gives_back: bool) -> Watched {
    let mut watched = Watched { pool: pool(), held: vec![], waiting: vec![], went: vec![] };
    let mut now = Duration::ZERO;
    let taken = |of: &mut Watched, which: usize| (!of.held.is_empty()).then(|| of.held.remove(which % of.held.len()));
    for step in steps {
        match step {
            Step::Ask { tenant, batch, tokens, patience } => {
                let class = if batch { Class::Batch } else { Class::Interactive };
                watched.ask(now, tenant, class, tokens, patience);
            }
            Step::Pass(by) => now += ms(by),
            Step::Back(by) => {
                let told = watched.pool.poll(now.saturating_sub(ms(by)));
                assert!(told.is_empty(), "{told:?}");
            }
            Step::Settle { which, percent } => {
                if let Some(reservation) = taken(&mut watched, which) {
                    let used = reservation.tokens() * if gives_back { percent } else { 100 } / 100;
                    watched.pool.settle(now, reservation, used);
                }
            }
            Step::Release(which) if gives_back => {
                if let Some(reservation) = taken(&mut watched, which) {
                    watched.pool.release(now, reservation);
                }
            }
            Step::Cancel(which) if !watched.waiting.is_empty() => {
                let at = which % watched.waiting.len();
                let (ticket, ..) = watched.waiting.remove(at);
                watched.pool.cancel(ticket);
            }
            Step::Limited(wait) => watched.pool.heard(now, Heard::Limited { dimension: None, wait: Some(ms(wait)) }),
            Step::Said { remaining, limit } => {
                // A limit that is learned may be too low for who waits.
                let limit = limit.filter(|_| gives_back);
                let heard =
                    Heard::Bucket { dimension: Dimension::Tokens, limit, remaining: Some(remaining), reset: None };
                watched.pool.heard(now, heard);
            }
            Step::Release(_) | Step::Cancel(_) => {}
        }
        watched.poll(now);
        watched.check(now);
    }
    let mut woken = 0;
    while let Some(next) = watched.pool.next(now) {
        now = next;
        watched.poll(now);
        woken += 1;
        assert!(woken < 20_000, "nobody goes: {:?}", watched.pool.view(now));
    }
    assert!(watched.waiting.is_empty(), "everybody is told: {:?}", watched.waiting);
    watched.check(now);
    watched
}

/// The most that went in any 60 s.
fn worst_minute(went: &[(Duration, u64)]) -> u64 {
    let from = |at: Duration| went.iter().filter(move |(other, _)| *other >= at && *other <= at + ms(60_000));
    went.iter().map(|(at, _)| from(*at).map(|(_, tokens)| tokens).sum()).max().unwrap_or(0)
}

proptest! {
    #[test]
    fn what_is_reserved_is_accounted_for_and_everybody_is_told(steps in vec(step(60_000), 0..120)) {
        run(steps, true);
    }

    #[test]
    fn no_minute_is_over_the_limit(steps in vec(step(4_800), 0..200)) {
        let worst = worst_minute(&run(steps, false).went);
        prop_assert!(worst <= 60_000, "{}", worst);
    }

    #[test]
    fn a_giant_is_at_most_once_over_what_is_used(steps in vec(step(54_000), 0..60)) {
        let watched = run(steps, false);
        let (worst, giant) = (worst_minute(&watched.went), watched.went.iter().map(|(_, tokens)| *tokens).max());
        prop_assert!(worst <= 54_000 + giant.unwrap_or(0).max(6_000), "{} {:?}", worst, giant);
    }
}
