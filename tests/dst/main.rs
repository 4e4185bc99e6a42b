//! Calls in virtual time under faults drawn from a seed, and what must be true of every history (docs: CONTRIBUTING.md).
#![expect(clippy::indexing_slicing, clippy::unwrap_used, reason = "a test may panic")]
mod audio;
mod check;
mod client;
mod day;
mod faults;
mod heap;
mod quick;
mod world;

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use faults::{KINDS, Kind};
use world::{Config, Outcome, World};

fn run(config: Config) -> Outcome {
    let mut world = World::new(config);
    world.run();
    world.outcome()
}

/// What is wrong with a seed, and its faults.
fn judge(seed: u64) -> (Vec<String>, BTreeMap<Kind, u64>, u64) {
    let outcome = std::panic::catch_unwind(|| run(Config::stormy(seed)));
    let Ok(outcome) = outcome else { return (vec!["panicked".to_owned()], BTreeMap::new(), 0) };
    let mut wrong = outcome.never;
    for (number, history) in outcome.histories.iter().enumerate() {
        wrong.extend(history.check().into_iter().map(|what| format!("call {number}: {what}")));
    }
    (wrong, outcome.fired, outcome.turns)
}

fn seeds(from: u64, to: u64) {
    let (next, bad) = (AtomicU64::new(from), Mutex::new(BTreeMap::new()));
    let turns = AtomicU64::new(0);
    let fired = Mutex::new(BTreeMap::<Kind, u64>::new());
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= to {
                        return;
                    }
                    let (wrong, its, count) = judge(seed);
                    turns.fetch_add(count, Ordering::Relaxed);
                    for (kind, count) in its {
                        *fired.lock().unwrap().entry(kind).or_default() += count;
                    }
                    if !wrong.is_empty() {
                        bad.lock().unwrap().insert(seed, wrong);
                    }
                }
            });
        }
    });
    let (bad, fired) = (bad.into_inner().unwrap(), fired.into_inner().unwrap());
    println!("{} seeds, faults fired: {fired:?}", to - from);
    for (seed, wrong) in bad.iter().take(40) {
        let first = wrong.first().map_or("", String::as_str);
        println!(
            "seed {seed}: {} wrong: {first}\n  DST_SEED={seed} cargo test --test dst replay -- --nocapture",
            wrong.len()
        );
    }
    assert!(turns.into_inner() > (to - from) * 10, "too few turns to teach anything");
    assert!(
        bad.is_empty(),
        "{} of {} seeds failed: {:?}",
        bad.len(),
        to - from,
        bad.keys().take(50).collect::<Vec<_>>()
    );
    for kind in KINDS {
        assert!(fired.get(&kind).is_some_and(|count| *count > 0), "{kind:?} never fired");
    }
}

#[test]
fn every_call_keeps_its_promises_whatever_breaks() {
    seeds(0, 500);
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in [3, 8, 21] {
        let hashes = || run(Config::stormy(seed)).histories.iter().map(check::History::hash).collect::<Vec<_>>();
        assert_eq!(hashes(), hashes(), "seed {seed}");
    }
    let other = |seed| run(Config::stormy(seed)).histories[0].hash();
    assert_ne!(other(1), other(2));
}

/// `DST_SEED=17 cargo test --test dst replay -- --nocapture`
#[test]
fn replay() {
    let Some(seed) = std::env::var("DST_SEED").ok().and_then(|seed| seed.parse().ok()) else { return };
    let outcome = run(Config::stormy(seed));
    let mut wrong = outcome.never;
    for (number, history) in outcome.histories.iter().enumerate() {
        println!("call {number}");
        for (at, fact) in &history.log {
            match fact {
                check::Fact::Audio { audio } => println!("{:>10.3}  audio {} bytes", at.as_secs_f64(), audio.len()),
                check::Fact::Delta { response, audio } => {
                    println!("{:>10.3}  delta of {response} {} bytes", at.as_secs_f64(), audio.len());
                }
                check::Fact::Got { .. } | check::Fact::Numbered { .. } | check::Fact::Reached { .. } => {}
                fact => println!("{:>10.3}  {fact:?}", at.as_secs_f64()),
            }
        }
        wrong.extend(history.check().into_iter().map(|what| format!("call {number}: {what}")));
    }
    assert!(wrong.is_empty(), "seed {seed}:\n{}", wrong.join("\n"));
}

/// `DST_SEEDS=1000..2000 cargo test --release --test dst -- --ignored --nocapture many`
#[test]
#[ignore = "as many seeds as DST_SEEDS says"]
fn many() {
    let range = std::env::var("DST_SEEDS").unwrap_or_else(|_| "1000..2000".to_owned());
    let (from, to) = range.split_once("..").expect("DST_SEEDS=FROM..TO");
    seeds(from.parse().unwrap(), to.parse().unwrap());
}
