//! `voxrelay route simulate` as a person types it, and what is said of tiers that cannot be.
use std::path::Path;

use voxrelay::{
    admit::price::{Cost, Usd},
    client::wire::Usage,
    ledger::{Entry, Kind, Ledger},
};

use crate::{
    commands::{run, voxrelay},
    support::PATIENCE,
};

fn reply(n: u64) -> Entry {
    Entry {
        id: format!("resp_{n}"),
        kind: Kind::Reply,
        call: format!("call_{}", n / 4),
        session: "sess_1".to_owned(),
        tenant: "acme".to_owned(),
        key: None,
        user: Some(format!("user_{}", n / 8)),
        agent: "default".to_owned(),
        model: "gpt-realtime-2.1".to_owned(),
        route: "default/gpt-realtime-2.1".to_owned(),
        door: "thin".into(),
        at: 1_795_219_200_000 + n * 1_000,
        status: "completed".to_owned(),
        usage: Usage { total_tokens: 1_000, output_tokens: 1_000, output_audio_tokens: 1_000, ..Usage::default() },
        seconds: None,
        audio_ms: 50_000,
        heard_ms: 40_000,
        first_audio_ms: Some(600 + n % 100),
        waited_ms: None,
        reason: None,
        estimated: false,
        cost: Some(Cost { audio: Usd::from_pico(64_000_000_000), ..Cost::default() }),
    }
}

const TIERS: &str = "
    [upstreams.second]
    [agents.default]
    model = \"fast\"
    [tiers.fast]
    routes = [{ model = \"gpt-realtime-2.1\" }, { upstream = \"second\", model = \"gpt-realtime-2.1-mini\" }]
    canary = { upstream = \"second\", model = \"gpt-realtime-2\", share_percent = 20 }
";

/// Runs `voxrelay route simulate` on a configuration: exit code, standard output, standard error.
fn simulate(folder: &Path, config: &str, args: &[&str]) -> (i32, String, String) {
    let file = folder.join("new.toml");
    std::fs::write(&file, config).unwrap();
    run(voxrelay().args(["route", "simulate", "--config"]).arg(file).args(args))
}

#[tokio::test]
async fn simulate_says_what_replies_would_have_cost_and_how_soon_they_would_have_been_heard() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ledger.db");
    let named = file.to_str().unwrap();
    let ledger = Ledger::open(&file, PATIENCE).unwrap();
    (0..800).for_each(|n| ledger.book(reply(n)));
    assert_eq!(ledger.flush(PATIENCE).await, 0);
    let (code, stdout, stderr) = simulate(dir.path(), TIERS, &["--ledger", named, "--json"]);
    assert_eq!(code, 0, "{stderr}");
    let rows: Vec<serde_json::Value> = serde_json::from_str(&stdout).unwrap();
    let sum = |field: &str| rows.iter().map(|row| row[field].as_u64().unwrap()).sum::<u64>();
    assert_eq!((rows.len(), sum("replies"), sum("calls"), sum("total_tokens")), (3, 800, 200, 800_000), "{stdout}");
    for row in &rows {
        let (replies, then) = (row["replies"].as_u64().unwrap(), row["cost_then_usd"].as_str().unwrap());
        // 64 and 20 USD a million.
        let (each, heard) = match row["route"].as_str().unwrap() {
            "default/gpt-realtime-2.1" => (64_000_000_000_u64, Some(694)),
            "second/gpt-realtime-2.1-mini" => (20_000_000_000, None),
            "second/gpt-realtime-2" => (64_000_000_000, None),
            other => panic!("{other}"),
        };
        let usd = |pico: u64| Usd::from_pico((pico * replies).into()).to_string();
        assert_eq!((then, row["cost_now_usd"].as_str().unwrap()), (usd(each).as_str(), usd(64_000_000_000).as_str()));
        assert_eq!(
            (row["tier"].as_str(), row["first_audio_p95_then_ms"].as_u64().is_some()),
            (Some("fast"), heard.is_some())
        );
        // Half, half, and a fifth of the calls before that.
        assert!((80..520).contains(&replies), "{row}");
    }
    let (code, stdout, _) = simulate(dir.path(), TIERS, &["--ledger", named]);
    assert!(code == 0 && stdout.starts_with("tier   route "), "{stdout}");
    assert!(stdout.contains("\ntotal  ") && stdout.contains("USD then") && stdout.contains("51.2000"), "{stdout}");
    let (_, stdout, _) = simulate(dir.path(), TIERS, &["--ledger", named, "--csv", "--since", "2026-11-21T00:13:00Z"]);
    assert_eq!(
        stdout.lines().skip(1).map(|line| line.split(',').nth(3).unwrap().parse::<u64>().unwrap()).sum::<u64>(),
        20
    );
    let (code, stdout, stderr) = simulate(dir.path(), TIERS, &["--ledger", named, "--until", "2020-01-01"]);
    assert!(code == 0 && stdout.is_empty() && stderr.contains("no reply was given then"), "{stderr}");
}

#[test]
fn what_cannot_be_simulated_is_said_in_words() {
    let dir = tempfile::tempdir().unwrap();
    let cycle = "[tiers.a]\ndegrade_to = \"b\"\nroutes = [{ model = \"m\" }]\n[tiers.b]\ndegrade_to = \"a\"\nroutes = [{ model = \"m\" }]\n";
    for (config, args, want) in [
        ("", &[][..], "has no tiers, so that every call goes where it went; wanted: [tiers.NAME]"),
        (TIERS, &["--tier", "best"], "--tier: found `best`; allowed: a tier of "),
        (TIERS, &["--ledger", "/nowhere/ledger.db"], "there is no ledger `/nowhere/ledger.db`"),
        (&format!("{TIERS}[ledger]\nfile = \"\"\n"), &[], "ledger.file is empty"),
        (TIERS, &["--since", "2026-11-22", "--until", "2026-11-21"], "--until must be later than --since"),
        (TIERS, &["--since", "soon"], "allowed: a day or a moment"),
        (cycle, &[], "new.toml:2: tiers.a.degrade_to: found a -> b -> a; allowed: a tier from which no way leads back"),
        ("[tiers.a]\n", &[], "new.toml:1: tiers.a.routes: found none; allowed: at least one [[tiers.a.routes]]"),
    ] {
        let (code, _, stderr) = simulate(dir.path(), config, args);
        assert!(code == 2 && stderr.contains(want), "{config} {args:?}: {code} {stderr}");
    }
}
