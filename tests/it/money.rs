//! What replies cost, from outside: the ledger's sum against the service's own count, `GET /v1/usage`, and what `check` says.
use std::path::{Path, PathBuf};

use base64::Engine as _;
use rusqlite::Connection;
use serde_json::{Value, json};
use voxrelay::{
    admit::price::{Cost, PriceList, Usd},
    client::wire::Usage,
    config::Scope,
    ledger::{Entry, Kind},
    sim::{Faults, Sim, SimConfig},
};

use crate::{
    commands::{Listening, run, voxrelay},
    resume::{Line, numbered},
    support::{PATIENCE, Rig, http, new_key, tenant, tenant_with, until},
};

fn folder() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ledger.db");
    (dir, file)
}

fn sql<T: rusqlite::types::FromSql>(file: &Path, query: &str) -> T {
    Connection::open(file).unwrap().query_row(query, [], |row| row.get(0)).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ledgers_sum_is_the_services_count_at_the_lists_prices() {
    let (_dir, file) = folder();
    let named = file.clone();
    let rig = Rig::with(|c| c.ledger.file = Some(named), SimConfig::default(), "").await;
    let mut line = Line::begin(&rig, "turns=manual&pace=fast").await;
    for turn in 0..4 {
        // 5 s, so that the service caches something.
        line.speak(&numbered(turn * 120_000, 120_000)).await;
        line.say(&json!({"type": "commit"})).await;
        let answered = line.of("reply_ended").len();
        while line.of("reply_ended").len() == answered {
            line.hear().await;
        }
    }
    let written = || sql::<i64>(&file, "SELECT count(*) FROM usage WHERE kind = 'transcription'");
    until("all is written down", || written() == 4).await;
    line.say(&json!({"type": "close"})).await;
    until("the call is over", || rig.sim.stats().sessions_now == 0).await;
    assert_eq!(rig.relay.ledger().flush(PATIENCE).await, 0);
    let truth = rig.sim.stats().usage;
    assert!(truth.cached_text > 0 && truth.cached_audio > 0, "nothing was cached: {truth:?}");
    // 4, 32, 0.40, 24 and 64 USD a million, in pico-dollars: by hand, so that the list is tried, too.
    let replies = (truth.text - truth.cached_text) * 4_000_000
        + (truth.audio - truth.cached_audio) * 32_000_000
        + (truth.cached_text + truth.cached_audio) * 400_000
        + truth.output_text * 24_000_000
        + truth.output_audio * 64_000_000;
    let booked: i64 = sql(&file, "SELECT sum(cost) FROM usage WHERE kind = 'reply'");
    assert_eq!(u64::try_from(booked), Ok(replies));
    // 0.0045 USD a minute: 75 microdollars a second.
    let seconds: f64 = sql(&file, "SELECT sum(seconds) FROM usage WHERE kind = 'transcription'");
    assert!((20.0..21.0).contains(&seconds), "{seconds}");
    let spoken: i64 = sql(&file, "SELECT sum(cost) FROM usage WHERE kind = 'transcription'");
    assert_eq!(Usd::from_pico(spoken.into()).rounded(6), format!("{:.6}", seconds * 0.000_075));
    let route: String = sql(&file, "SELECT group_concat(route) FROM (SELECT DISTINCT route FROM usage ORDER BY route)");
    assert_eq!(route, "default/gpt-realtime-2.1,default/gpt-transcribe");
    let usage = |args: &[&str]| run(voxrelay().args(["usage", "--json", "--ledger"]).arg(&file).args(args)).1;
    let all: serde_json::Value = serde_json::from_str(&usage(&["--by", "tenant"])).unwrap();
    let pico = i128::from(booked) + i128::from(spoken);
    assert_eq!(all[0]["cost_usd"], Usd::from_pico(pico).to_string(), "{all}");
    assert_eq!(
        (all[0]["unpriced"].as_u64(), all[0]["cached_tokens"].as_u64()),
        (Some(0), Some(truth.cached_text + truth.cached_audio))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn at_the_other_door_words_are_priced_by_the_model_that_the_client_chose_for_them() {
    let (_dir, file) = folder();
    let named = file.clone();
    let rig = Rig::configured(|c| c.ledger.file = Some(named)).await;
    let mut call = rig.dial("/v1/realtime?model=gpt-realtime-2.1", "").await.unwrap_or_else(|no| panic!("{no:?}"));
    call.until("session.created").await;
    let input = json!({"turn_detection": null, "transcription": {"model": "gpt-4o-transcribe"}});
    let update = json!({"type": "session.update", "session": {"type": "realtime", "audio": {"input": input}}});
    call.json(&update.to_string()).await;
    call.until("session.updated").await;
    let audio = base64::engine::general_purpose::STANDARD.encode(numbered(0, 48_000));
    call.json(&json!({"type": "input_audio_buffer.append", "audio": audio}).to_string()).await;
    call.json(r#"{"type":"input_audio_buffer.commit"}"#).await;
    let spent = call.until("conversation.item.input_audio_transcription.completed").await["usage"].clone();
    assert_eq!((spent["type"].as_str(), spent["input_tokens"].as_i64()), (Some("tokens"), Some(20)), "{spent}");
    let written = || sql::<i64>(&file, "SELECT count(*) FROM usage");
    until("it is booked", || written() == 1).await;
    let model: String = sql(&file, "SELECT kind || ' ' || model FROM usage");
    assert_eq!(model, "transcription gpt-4o-transcribe");
    // 2.50 and 10 USD a million.
    let want = 20 * 2_500_000 + spent["output_tokens"].as_i64().unwrap() * 10_000_000;
    assert_eq!(sql::<i64>(&file, "SELECT cost FROM usage"), want);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_without_a_price_costs_nobody_knows_what_and_an_own_list_knows() {
    let prices = "[models.house-realtime]\nas_of = \"2026-11-01\"\nsource = \"us\"\ntext_in = \"1\"\naudio_in = \"1\"\n\
                  text_out = \"1\"\naudio_out = \"1\"\n";
    for own in [false, true] {
        let (dir, file) = folder();
        let (named, list) = (file.clone(), dir.path().join("prices.toml"));
        std::fs::write(&list, prices).unwrap();
        let change = |c: &mut voxrelay::config::Config| {
            c.ledger.file = Some(named);
            c.prices.file = own.then_some(list);
            c.upstream.model = "house-realtime".to_owned();
        };
        let rig = Rig::configured(change).await;
        let mut line = Line::begin(&rig, "turns=manual&pace=fast").await;
        line.speak(&numbered(0, 24_000)).await;
        line.say(&json!({"type": "commit"})).await;
        line.until("reply_ended").await;
        assert_eq!(rig.relay.ledger().flush(PATIENCE).await, 0);
        let (cost, tokens): (Option<i64>, i64) = Connection::open(&file)
            .unwrap()
            .query_row("SELECT cost, total_tokens FROM usage WHERE kind = 'reply'", [], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .unwrap();
        assert_eq!(cost, own.then_some(tokens * 1_000_000), "with a list of our own: {own}");
    }
}

fn entry(tenant: &str, id: &str, at: u64) -> Entry {
    Entry {
        id: id.to_owned(),
        kind: Kind::Reply,
        call: format!("call of {id}"),
        session: "sess_1".to_owned(),
        tenant: tenant.to_owned(),
        key: None,
        user: Some(format!("user of {tenant}")),
        agent: "default".to_owned(),
        model: "gpt-realtime-2.1".to_owned(),
        route: "default/gpt-realtime-2.1".to_owned(),
        door: "thin".into(),
        at,
        status: "completed".to_owned(),
        usage: Usage { total_tokens: 30, input_tokens: 10, output_tokens: 20, ..Usage::default() },
        seconds: None,
        audio_ms: 1_000,
        heard_ms: 1_000,
        first_audio_ms: None,
        waited_ms: None,
        reason: None,
        estimated: false,
        cost: Some(Cost { audio: Usd::from_pico(7_205_600_000), ..Cost::default() }),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_sees_its_own_usage_and_nobody_elses() {
    const DAY: u64 = 86_400_000;
    let (_dir, file) = folder();
    let (named, mut acme, mut other) = (file.clone(), String::new(), String::new());
    let rig = Rig::configured(|c| {
        c.ledger.file = Some(named);
        acme = tenant(c, "acme", |_| {});
        other = tenant_with(c, "other", &[Scope::Admin], |_| {});
    })
    .await;
    let at = 1_795_219_200_000;
    for (tenant, id, at) in [("acme", "a", at), ("acme", "b", at + DAY), ("other", "c", at)] {
        rig.relay.ledger().book(entry(tenant, id, at));
    }
    assert_eq!(rig.relay.ledger().flush(PATIENCE).await, 0);
    let ask = |query: &str, key: &str| {
        let (path, key) = (format!("/v1/usage?{query}"), key.to_owned());
        let rig = &rig;
        async move { rig.ask("GET", &path, &key).await }
    };
    for by in ["tenant", "key", "user", "agent", "model", "route", "call", "day"] {
        let (ours, theirs) = (ask(&format!("by={by}"), &acme).await, ask(&format!("by={by}"), &other).await);
        assert_eq!((ours.status, theirs.status), (200, 200), "{by}: {}", ours.text);
        assert!(!ours.text.contains("other") && !ours.text.contains("of c"), "{by}: {}", ours.text);
        assert!(!theirs.text.contains("acme"), "{by}: {}", theirs.text);
        assert_eq!(
            (ours.json()["total"]["replies"].as_u64(), theirs.json()["total"]["replies"].as_u64()),
            (Some(2), Some(1))
        );
    }
    let got = ask("by=day&since=2026-11-22", &acme).await.json();
    assert_eq!((got["by"].as_str(), got["usage"].as_array().map(Vec::len)), (Some("day"), Some(1)), "{got}");
    let day = &got["usage"][0];
    assert_eq!((day["day"].as_str(), day["cost_usd"].as_str()), (Some("2026-11-22"), Some("0.0072056")), "{got}");
    assert_eq!(day["unpriced"], 0);
    // The same as the command says.
    let told = run(voxrelay().args(["usage", "--json", "--by", "day", "--tenant", "acme", "--ledger"]).arg(&file)).1;
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    assert_eq!(ask("by=day", &acme).await.json()["usage"], told);
    let nothing = ask("until=2020-01-01", &acme).await.json();
    assert_eq!((nothing["usage"].as_array().map(Vec::len), nothing["total"].is_null()), (Some(0), true));
    for query in ["by=colour", "tenant=other", "since=soon"] {
        let got = ask(query, &acme).await;
        assert_eq!((got.status, got.code().as_str()), (400, "invalid_query"), "{query}");
    }
    // The file is no ledger any more.
    std::fs::remove_file(&file).unwrap();
    let got = ask("", &acme).await;
    assert_eq!((got.status, got.code().as_str()), (503, "accounting_unavailable"));
    assert!(got.header("retry-after") == "5" && !got.text.contains("ledger.db"), "{}", got.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_metrics_say_what_usage_says_also_of_calls_that_dropped() {
    let (dir, ledger) = folder();
    let sim = Sim::start("127.0.0.1:0".parse().unwrap(), SimConfig::default(), Faults::default()).await.unwrap();
    let (key, hashed) = new_key("ops", &Scope::all(), None);
    let house = "[agents.default]\n[agents.house]\nmodel = \"house-realtime\"\n";
    let keys =
        format!("[[tenants.acme.keys]]\nlabel = \"ops\"\nhash = \"{}\"\nscopes = [\"admin\", \"call\"]\n", hashed.hash);
    let config = dir.path().join("voxrelay.toml");
    std::fs::write(&config, format!("{house}{keys}")).unwrap();
    let mut command = voxrelay();
    command.args(["serve", "--listen", "127.0.0.1:0", "--upstream", &sim.base_url(), "--config"]).arg(&config);
    command.env("OPENAI_API_KEY", "sk-test").env("XDG_DATA_HOME", dir.path()).arg("--ledger").arg(&ledger);
    let relay = tokio::task::block_in_place(|| Listening::start(&mut command));
    for (agent, drops) in [("default", true), ("house", false)] {
        let query = format!("turns=manual&pace=fast&agent={agent}");
        let mut line = Line::at(relay.addr, &query, Some(&key)).await;
        for _ in 0..2 {
            line.speak(&numbered(0, 24_000)).await;
            line.say(&json!({"type": "commit"})).await;
            if drops {
                while line.audio.is_empty() {
                    line.hear().await;
                }
                line.lose();
                line.back().await;
                line.audio.clear();
            }
            line.until("reply_ended").await;
        }
        line.say(&json!({"type": "close"})).await;
        until("the call is over", || sim.stats().sessions_now == 0).await;
    }
    // Replies and what was said, of two calls.
    until("all is written", || sql::<i64>(&ledger, "SELECT count(*) FROM usage") == 8).await;
    let metric = |name: &str, model: &str| {
        let line = format!("voxrelay_cost_{name}_total{{model=\"{model}\"}} ");
        relay
            .get("/metrics")
            .lines()
            .find_map(|found| found.strip_prefix(&line)?.parse::<i128>().ok())
            .unwrap_or_default()
    };
    let url = format!("http://{}/v1/usage?by=model", relay.addr);
    let text = http().get(url).bearer_auth(&key).send().await.unwrap().text().await.unwrap();
    let usage: Value = serde_json::from_str(&text).unwrap();
    let mut found = Vec::new();
    for sum in usage["usage"].as_array().unwrap() {
        let (model, unpriced) = (sum["model"].as_str().unwrap(), sum["unpriced"].as_i64().unwrap());
        let cost: Usd = sum["cost_usd"].as_str().map_or(Usd::default(), |usd| usd.parse().unwrap());
        let want = (cost.pico() / 1_000_000, i128::from(unpriced));
        // The page may be rendered before the last of it is told.
        until(model, || (metric("microusd", model), metric("unknown", model)) == want).await;
        found.push((model, want.0 > 0, unpriced));
    }
    found.sort_unstable();
    assert_eq!(
        found,
        [("gpt-realtime-2.1", true, 0), ("gpt-transcribe", true, 0), ("house-realtime", false, 2)],
        "{usage}"
    );
}

#[tokio::test]
async fn without_a_ledger_there_is_no_usage() {
    let mut key = String::new();
    let rig = Rig::configured(|c| key = tenant(c, "acme", |_| {})).await;
    let got = rig.ask("GET", "/v1/usage", &key).await;
    assert_eq!((got.status, got.code().as_str()), (404, "no_ledger"));
}

#[test]
fn check_and_serve_say_what_has_no_price_and_refuse_a_broken_list() {
    let dir = tempfile::tempdir().unwrap();
    let (config, list) = (dir.path().join("voxrelay.toml"), dir.path().join("prices.toml"));
    let prices = format!("[prices]\nfile = {:?}\n", list.display().to_string());
    std::fs::write(&config, format!("{prices}[upstream]\nmodel = \"house-realtime\"\n")).unwrap();
    std::fs::write(&list, "[models.house-realtime]\nas_of = \"2020-01-01\"\nsource = \"us\"\ntext_in = \"1\"\n")
        .unwrap();
    let check = |key: &str| {
        let mut check = voxrelay();
        if !key.is_empty() {
            check.env("OPENAI_API_KEY", key);
        }
        run(check.args(["check", "--config"]).arg(&config))
    };
    let (code, _, stderr) = check("sk-test-1");
    assert!(code == 0 && stderr.contains("the prices for `house-realtime` are of 2020-01-01"), "{stderr}");
    let (code, _, stderr) = check("");
    assert!(code == 0 && !stderr.contains("2020-01-01"), "the simulator costs nothing: {stderr}");
    std::fs::write(&list, "").unwrap();
    let (code, _, stderr) = check("sk-test-1");
    assert!(code == 0 && stderr.contains("no price is known for `house-realtime`"), "{stderr}");
    std::fs::write(&list, "[models.house-realtime]\nas_of = \"2020-01-01\"\nsource = \"us\"\ntext_in = 1.5\n").unwrap();
    for command in ["check", "serve"] {
        let (code, _, stderr) = run(voxrelay().args([command, "--config"]).arg(&config));
        assert!(code == 2 && stderr.contains("models.\"house-realtime\".text_in: found 1.5"), "{stderr}");
    }
    assert!(PriceList::load(Some(&list)).is_err());
}
