//! Calls that last: a day of virtual time, with all the ends of sessions, credentials and secrets that come in it.
//!
//! ```sh
//! cargo test --test dst -- --nocapture day::
//! ```
use std::{collections::BTreeMap, time::Duration};

use crate::{
    check::{Fact, History},
    faults::Kind,
    run,
    world::{Config, Outcome},
};

const HOUR: u64 = 3_600;
/// What breaks on the way eats no count of the service: the rows must be equal to its own books.
const KINDS: [Kind; 3] = [Kind::ClientLost, Kind::HalfOpen, Kind::Twice];

/// A call of so many hours, in which somebody says something now and then.
fn long(seed: u64, hours: u64) -> Config {
    let faults = usize::try_from(hours).unwrap();
    Config {
        calls: 1,
        length: Duration::from_secs(hours * HOUR),
        pause: (10_000, 600_000),
        acts: (60_000, 900_000),
        keepalive: Some(Duration::from_secs(240)),
        idle: Some(Duration::from_secs(900)),
        credential: Some(Duration::from_secs(HOUR / 2)), // one that comes back brings another
        cap: Some(Duration::from_secs(HOUR)),
        secret: Some(Duration::from_secs(600)),
        kinds: &KINDS,
        faults: faults..faults + 1,
        ..Config::stormy(seed)
    }
}

fn told(history: &History, what: &str) -> usize {
    history.log.iter().filter(|(_, fact)| matches!(fact, Fact::Told(told) if told == what)).count()
}

/// Each reply's row, as the ledger keeps it.
fn rows(history: &History) -> BTreeMap<&str, (bool, u64)> {
    let mut rows = BTreeMap::new();
    for (_, fact) in &history.log {
        if let Fact::Booked { id, estimated, tokens } = fact {
            rows.insert(id.as_str(), (*estimated, *tokens));
        }
    }
    rows
}

/// Lets a call last so long; everything that is promised, and that what should have happened did.
fn lasts(seed: u64, hours: u64) {
    let Outcome { histories, fired, never, turns, truth, minted } = run(long(seed, hours));
    let [history] = histories.as_slice() else { panic!("one call") };
    let mut wrong = never;
    wrong.extend(history.check());
    assert!(wrong.is_empty(), "seed {seed}:\n{}", wrong.join("\n"));

    let (ended, end) = history.log.iter().rev().find(|(_, fact)| matches!(fact, Fact::End { .. })).unwrap();
    assert!(ended.as_secs() >= hours * HOUR, "seed {seed}: over after {ended:?}: {end:?}");
    assert!(matches!(end, Fact::End { why } if why.contains("client ended the call")), "seed {seed}: {end:?}");
    assert!(turns >= hours * 6, "seed {seed}: {turns} turns in {hours} h teach little");
    assert_eq!(fired.values().sum::<u64>(), hours, "seed {seed}: a fault an hour: {fired:?}");

    // The service's own count: each session is left before its cap, none is lost.
    let rotations = told(history, "notice rotated") as u64;
    assert!(rotations >= hours, "seed {seed}: {rotations} rotations in {hours} h");
    assert_eq!(truth.sessions_opened, rotations + 1, "seed {seed}");
    assert_eq!(truth.errors.get("session_expired"), None, "seed {seed}: a session reached its cap");
    assert_eq!(truth.errors, BTreeMap::new(), "seed {seed}: no session was refused or asked for nonsense");

    // Every end of a credential was seen before it came, and no session was opened with a secret that had ended.
    let renewed = told(history, "notice token_expiring") as u64;
    let late = "hang up: the credential of this call has ended";
    assert_eq!(told(history, late), 0, "seed {seed}: a credential was renewed too late");
    assert!(renewed >= hours, "seed {seed}: {renewed} renewals in {hours} h");
    assert!(minted > hours, "seed {seed}: {minted} secrets for {rotations} rotations, each older than its life");

    // The ledger is the service's truth, to the token.
    let rows = rows(history);
    assert_eq!(rows.len() as u64, truth.responses, "seed {seed}: rows and responses");
    assert!(
        rows.values().all(|(estimated, _)| !estimated),
        "seed {seed}: nothing was lost that would need an estimate"
    );
    assert_eq!(rows.values().map(|(_, tokens)| tokens).sum::<u64>(), truth.tokens, "seed {seed}: tokens");
    println!("seed {seed}: {hours} h, {turns} turns, {rotations} rotations, {renewed} renewals, {minted} secrets");
}

#[test]
fn a_day_loses_nothing_at_twenty_four_caps() {
    lasts(1, 24);
}

/// The other way to make turns.
#[test]
fn a_day_of_a_caller_who_commits_by_hand() {
    lasts(6, 24);
}

/// Shorter ones, of both ways to make turns, with and without words that are written down.
#[test]
fn three_hours_lose_nothing_at_three_caps() {
    for seed in 3..9 {
        lasts(seed, 3);
    }
}
