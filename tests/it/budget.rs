//! Budgets at the doors (docs/budgets.md): who may begin what, what a start knows of the ledger, and what a tenant is shown.
use std::time::Duration;

use serde_json::{Value, json};
use tokio::{task::JoinSet, time};
use voxrelay::{
    admit::price::{Cost, Usd},
    client::wire::Usage,
    config::{AllowanceConfig, Config, TenantConfig, WhenSpent},
    ledger::{Entry, Kind, Ledger},
    sim::SimConfig,
    wall::{unix_now, unix_now_ms},
};

use crate::support::{Answer, Client, Got, PATIENCE, Rig, tenant};

/// Everything that begins something: by which door, and the answer.
async fn doors(rig: &Rig, key: &str) -> Vec<(&'static str, Answer)> {
    let sdp = "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\nm=audio 9 UDP/TLS/RTP/SAVPF 111\r\na=mid:0\r\na=rtpmap:111 opus/48000/2\r\n";
    let offer = rig.request("POST", "/v1/realtime/calls", key).header("content-type", "application/sdp").body(sdp);
    vec![
        ("voice", rig.ask("GET", "/v1/voice", key).await),
        ("secret", rig.post("/v1/realtime/client_secrets", key, json!({})).await),
        ("sdp", crate::support::answer(offer).await),
    ]
}

/// Both sockets.
async fn sockets(rig: &Rig, key: &str) -> Vec<Result<(), (u16, String)>> {
    let mut found = vec![];
    for path in ["/v1/voice", "/v1/realtime"] {
        found.push(rig.dial(path, key).await.map(drop));
    }
    found
}

fn nothing() -> AllowanceConfig {
    AllowanceConfig { usd_month: Some(Usd::default()), ..AllowanceConfig::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_may_spend_nothing_begins_nothing_at_any_door() {
    type Change = fn(&mut TenantConfig);
    let changes: [(&str, Change); 4] = [
        ("tenant", |tenant| tenant.budget.all = nothing()),
        ("key", |tenant| tenant.budget.key = nothing()),
        ("own", |tenant| tenant.keys[0].budget = Some(nothing())),
        ("call", |tenant| tenant.budget.call.tokens = Some(0)),
    ];
    let (mut keys, mut free) = (vec![], String::new());
    let rig = Rig::configured(|config| {
        keys.extend(changes.map(|(id, change)| (id, tenant(config, id, change))));
        free = tenant(config, "free", |_| {});
    })
    .await;
    for (id, key) in &keys {
        for (door, got) in doors(&rig, key).await {
            assert_eq!((got.status, got.code().as_str()), (429, "budget_exhausted"), "{id} at {door}: {}", got.text);
            assert_eq!(got.header("retry-after"), "86400", "{id} at {door}: no use in waiting");
            assert!(!got.text.contains("USD") && got.text.contains("budget"), "{}", got.text);
        }
        for refused in sockets(&rig, key).await {
            assert_eq!(refused, Err((429, "budget_exhausted".to_owned())), "{id}");
        }
    }
    let body = rig.ask("GET", "/v1/voice", &keys[0].1).await.json()["error"].clone();
    assert_eq!((body["retryable"].as_bool(), body.get("retry_after_ms")), (Some(false), None), "{body}");
    let stats = rig.sim.stats();
    assert_eq!((stats.attempts, stats.mint_attempts, stats.calls), (0, 0, 0), "nothing upstream happened");
    for (door, got) in doors(&rig, &free).await {
        assert!(got.status < 300, "{door}: {}", got.text);
    }
    assert_eq!(sockets(&rig, &free).await, [Ok(()), Ok(())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_asked_for_no_credential_has_a_budget_too_and_a_first_reply_must_fit() {
    // The longest reply of the default agent is 4,096 tokens: 0.26 USD.
    for (usd, taken) in [("0.20", false), ("0.30", true)] {
        let rig = Rig::configured(|config| config.budget.call.usd = Some(usd.parse().unwrap())).await;
        let got = rig.ask("GET", "/v1/voice", "").await;
        assert_eq!(
            (got.status, got.code().as_str()),
            if taken { (200, "") } else { (429, "budget_exhausted") },
            "{}",
            got.text
        );
        assert!(taken || got.text.contains("this may cost more than the call's budget has in all"), "{}", got.text);
    }
    let rig = Rig::configured(|config| config.budget.all = nothing()).await;
    assert_eq!(
        Client::dial(rig.relay.addr(), "/v1/realtime", &[]).await.err(),
        Some((429, "budget_exhausted".to_owned()))
    );
}

/// A row of now.
fn row(id: &str, tenant: &str, user: &str, cost: Option<i128>) -> Entry {
    Entry {
        id: id.to_owned(),
        kind: Kind::Reply,
        call: "call_1".to_owned(),
        session: "sess_1".to_owned(),
        tenant: tenant.to_owned(),
        key: Some("test".to_owned()),
        user: Some(user.to_owned()),
        agent: "default".to_owned(),
        model: "gpt-realtime-2.1".to_owned(),
        route: "default/gpt-realtime-2.1".to_owned(),
        door: "thin".into(),
        at: unix_now_ms() - 1_000,
        status: "completed".to_owned(),
        usage: Usage { total_tokens: 30, input_tokens: 10, output_tokens: 20, ..Usage::default() },
        seconds: None,
        audio_ms: 1_000,
        heard_ms: 1_000,
        estimated: false,
        first_audio_ms: None,
        waited_ms: None,
        reason: None,
        cost: cost.map(|pico| Cost { audio: Usd::from_pico(pico), ..Cost::default() }),
    }
}

/// A relay on a ledger that knows these rows.
async fn on_a_ledger(rows: Vec<Entry>, change: impl FnOnce(&mut Config)) -> (tempfile::TempDir, Rig) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ledger.db");
    let ledger = Ledger::open(&file, Duration::from_secs(60)).unwrap();
    rows.into_iter().for_each(|row| ledger.book(row));
    assert_eq!(ledger.flush(PATIENCE).await, 0);
    drop(ledger);
    let rig = Rig::configured(|config| {
        config.ledger.file = Some(file);
        change(config);
    })
    .await;
    (dir, rig)
}

/// The tenant's rows of `GET /v1/limits`, once the ledger is read: where it is large, that is later.
async fn shown(rig: &Rig, key: &str) -> Vec<Value> {
    let end = time::Instant::now() + PATIENCE;
    loop {
        let budgets = rig.ask("GET", "/v1/limits", key).await.json()["budgets"].clone();
        let budgets: Vec<Value> = serde_json::from_value(budgets).unwrap();
        if budgets.iter().any(|row| row["used"] != "0" && row["used"] != 0) {
            return budgets;
        }
        assert!(time::Instant::now() < end, "the ledger was never read: {budgets:?}");
        time::sleep(Duration::from_millis(5)).await;
    }
}

/// Until no day has just begun, or is about to end.
async fn not_at_midnight() {
    while !(5..86_400 - 60).contains(&(unix_now() % 86_400)) {
        time::sleep(Duration::from_secs(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_remembers_what_the_ledger_knows_and_a_tenant_is_shown_it() {
    not_at_midnight().await;
    let (mut acme, mut other) = (String::new(), String::new());
    let rows = vec![
        row("a", "acme", "ann", Some(600_000_000_000)),
        row("b", "acme", "bob", Some(300_000_000_000)),
        row("c", "acme", "bob", None),
        row("d", "other", "ann", Some(9_000_000_000_000)),
    ];
    let (_dir, rig) = on_a_ledger(rows, |config| {
        acme = tenant(config, "acme", |tenant| {
            tenant.budget.all.usd_day = Some("1".parse().unwrap());
            tenant.budget.user =
                AllowanceConfig { usd_month: Some("0.60".parse().unwrap()), ..AllowanceConfig::default() };
            tenant.keys[0].budget =
                Some(AllowanceConfig { tokens_month: Some(1_000_000), ..AllowanceConfig::default() });
        });
        other = tenant(config, "other", |_| {});
    })
    .await;
    let shown = shown(&rig, &acme).await;
    assert_eq!(shown.len(), 4, "{shown:?}");
    let midnight = voxrelay::config::Moment((unix_now() / 86_400 + 1) * 86_400).to_string();
    let want = json!({"scope": "tenant", "window": "day", "unit": "usd", "limit": "1", "used": "0.9", "held": "0",
        "resets_at": midnight, "costs_known": false});
    assert_eq!(shown[0], want);
    let key = &shown[1];
    assert_eq!((&key["scope"], &key["name"], &key["used"]), (&json!("key"), &json!("test"), &json!(90)), "{key}");
    assert_eq!(
        (&shown[2]["name"], &shown[2]["used"], &shown[2]["costs_known"]),
        (&json!("ann"), &json!("0.6"), &json!(true))
    );
    assert_eq!(
        (&shown[3]["name"], &shown[3]["used"], &shown[3]["costs_known"]),
        (&json!("bob"), &json!("0.3"), &json!(false))
    );
    assert_eq!(
        rig.ask("GET", "/v1/limits", &other).await.json()["budgets"],
        json!([]),
        "others' are nobody's business"
    );
    // A tenth of a dollar is left of the day: less than a first reply may cost. Others may begin.
    let got = rig.ask("GET", "/v1/voice", &acme).await;
    assert_eq!((got.status, got.code().as_str()), (429, "budget_exhausted"), "{}", got.text);
    assert!(
        got.text.contains(&format!("the tenant's budget for this day is used up until {midnight}")),
        "{}",
        got.text
    );
    let left = 86_400 - unix_now() % 86_400;
    let wait: u64 = got.header("retry-after").parse().unwrap();
    assert!((left..=left + 60).contains(&wait), "{wait} s are told, {left} s are left of the day");
    assert_eq!(
        got.json()["error"]["retryable"].as_bool(),
        Some(wait <= 3_600),
        "what takes longer than an hour is not waited for"
    );
    // Something is left, so that a client that asks for its replies itself may come in; and its user has nothing left.
    assert!(rig.dial("/v1/realtime", &acme).await.is_ok());
    for (user, taken) in [("ann", false), ("bob", true)] {
        let token = rig.token(&acme, json!({"user": user})).await;
        let dialled = rig.dial("/v1/realtime", &token).await.map(drop);
        assert_eq!(dialled.is_ok(), taken, "{user}: {dialled:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_that_is_changed_in_the_file_counts_within_a_second() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("voxrelay.toml");
    let write = |usd: &str| std::fs::write(&file, format!("[budget.all]\nusd_day = {usd}\n")).unwrap();
    write("0");
    let sim = voxrelay::sim::Sim::start(
        "127.0.0.1:0".parse().unwrap(),
        voxrelay::sim::SimConfig::default(),
        voxrelay::sim::Faults::default(),
    )
    .await
    .unwrap();
    let mut config = crate::support::config(&sim.base_url());
    config.budget = Config::load(Some(&file), |_| None).unwrap().budget;
    config.source = Some(file.clone());
    let rig = Rig { relay: voxrelay::serve::Server::start(config, None).await.unwrap(), sim };
    assert_eq!(rig.ask("GET", "/v1/voice", "").await.status, 429);
    write("50");
    let end = time::Instant::now() + PATIENCE;
    while rig.ask("GET", "/v1/voice", "").await.status != 200 {
        assert!(time::Instant::now() < end, "the change was never seen");
        time::sleep(Duration::from_millis(20)).await;
    }
}

/// Types and waits for the answer; `None`: the call is over, with these last words and this code.
async fn answered(client: &mut Client, seen: &mut Vec<Value>) -> Result<(), u16> {
    client.json(r#"{"type":"text","text":"Hello, how are you today?"}"#).await;
    loop {
        match client.next().await {
            Got::Json(message) if message["type"] == "reply_ended" || message["error"]["retryable"] == true => {
                seen.push(message);
                return Ok(());
            }
            Got::Json(message) => seen.push(message),
            Got::Audio(_) => {}
            Got::Closed(code) => return Err(code),
            Got::Lost => panic!("lost"),
        }
    }
}

/// Types until the budget ends the call, after fewer turns than `most`: after how many.
async fn spends_all(client: &mut Client, seen: &mut Vec<Value>, most: usize) -> usize {
    let mut turns = 0;
    let close = loop {
        match answered(client, seen).await {
            Ok(()) => turns += 1,
            Err(code) => break code,
        }
        assert!(turns < most);
    };
    assert_eq!(close, 4402);
    turns
}

/// Tokens, by the service's own count.
fn used(rig: &Rig) -> u64 {
    let usage = rig.sim.stats().usage;
    usage.text + usage.audio + usage.output_text + usage.output_audio
}

fn quick() -> SimConfig {
    let mut sim = SimConfig::instant();
    (sim.reply.speed, sim.reply.word_ms) = (0.0, 40);
    sim
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_warned_says_goodbye_and_ends_within_its_budget() {
    let file = tempfile::tempdir().unwrap();
    let ledger = file.path().join("ledger.db");
    let mut key = String::new();
    let change = |config: &mut Config| {
        config.ledger.file = Some(ledger.clone());
        config.agents.entry("default".to_owned()).or_default().max_output_tokens = Some(100);
        key = tenant(config, "acme", |tenant| {
            tenant.budget.call.tokens = Some(3_000);
            tenant.budget.farewell = Some("That is all for today. Goodbye!".to_owned());
        });
    };
    let rig = Rig::with(change, quick(), "").await;
    let mut client = rig.dial("/v1/voice?turns=manual&pace=fast", &key).await.unwrap();
    let mut seen = vec![];
    let turns = spends_all(&mut client, &mut seen, 100).await;
    let of = |kind: &str| seen.iter().filter(|message| message["type"] == kind).cloned().collect::<Vec<_>>();
    let low: Vec<Value> = of("notice").into_iter().filter(|notice| notice["code"] == "budget_low").collect();
    assert_eq!(low.len(), 1, "once: {low:?}");
    assert!(low[0]["percent"].as_u64().unwrap() >= 80 && low[0]["scope"] == "call", "{}", low[0]);
    assert_eq!(of("error").last().unwrap()["error"]["code"], "budget_exhausted");
    let words = of("transcript").iter().filter_map(|said| said["text"].as_str().map(str::to_owned)).next_back();
    assert!(words.is_some_and(|words| !words.is_empty()), "it said goodbye");
    // What was used is what the service says, and not more than the budget and one answer.
    let used = used(&rig);
    assert!(used > 2_400 && used <= 3_000 + 1_000, "{used} tokens in {turns} turns");
    let report = rig.ask("GET", "/v1/limits", &key).await.json();
    assert!(report["budgets"].as_array().unwrap().iter().all(|of| of["held"] == 0 || of["held"] == "0"), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenants_calls_share_a_budget_and_none_of_them_ends_far_behind_it() {
    let mut key = String::new();
    let change = |config: &mut Config| {
        config.agents.entry("default".to_owned()).or_default().max_output_tokens = Some(100);
        key = tenant(config, "acme", |tenant| tenant.budget.all.tokens_day = Some(4_000));
    };
    let rig = Rig::with(change, quick(), "").await;
    let mut calls = JoinSet::new();
    for _ in 0..6 {
        let mut client = rig.dial("/v1/voice?turns=manual&pace=fast", &key).await.unwrap();
        calls.spawn(async move {
            let mut seen = vec![];
            // Who is refused because others have what is left asks again, a little later.
            for _ in 0..200 {
                if let Err(close) = answered(&mut client, &mut seen).await {
                    return close;
                }
                time::sleep(Duration::from_millis(100)).await;
            }
            0
        });
    }
    assert_eq!(calls.join_all().await, vec![4402; 6]);
    let used = used(&rig);
    assert!(used > 2_000 && used <= 4_000, "{used}: every answer was asked for, and had to fit");
    let (code, why) = rig.dial("/v1/voice", &key).await.map(drop).unwrap_err();
    assert_eq!((code, why.as_str()), (429, "budget_exhausted"));
}

#[tokio::test(flavor = "multi_thread")]
async fn at_openais_door_the_end_of_a_budget_is_an_end_of_quota() {
    let mut key = String::new();
    let change = |config: &mut Config| {
        key = tenant(config, "acme", |tenant| tenant.budget.call.tokens = Some(600));
    };
    let rig = Rig::with(change, quick(), "").await;
    let mut client = rig.dial("/v1/realtime?model=gpt-realtime-2.1", &key).await.unwrap();
    client.until("session.created").await;
    let (mut error, mut turns) = (Value::Null, 0);
    let close = loop {
        client.json(r#"{"type":"conversation.item.create","item":{"type":"message","role":"user","content":[{"type":"input_text","text":"Hello there, how are you?"}]}}"#).await;
        client.json(r#"{"type":"response.create"}"#).await;
        let over = loop {
            match client.next().await {
                Got::Json(message) if message["type"] == "error" => error = message["error"].clone(),
                Got::Json(message) if message["type"] == "response.done" => break None,
                Got::Json(_) | Got::Audio(_) => {}
                Got::Closed(code) => break Some(code),
                Got::Lost => panic!("lost"),
            }
        };
        match over {
            Some(code) => break code,
            None => turns += 1,
        }
        assert!(turns < 50);
    };
    assert_eq!((close, error["code"].as_str()), (1013, Some("insufficient_quota")), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_goes_on_with_something_cheaper_as_long_as_that_fits() {
    let mut key = String::new();
    let change = |config: &mut Config| {
        let agent = config.agents.entry("default".to_owned()).or_default();
        (agent.max_output_tokens, agent.model) = (Some(100), Some("best".to_owned()));
        config.tiers = toml::from_str(
            "[best]\ndegrade_to = \"cheap\"\nroutes = [{ model = \"gpt-realtime-2.1\" }]\n\
             [cheap]\nroutes = [{ model = \"gpt-realtime-2.1-mini\" }]\n",
        )
        .unwrap();
        key = tenant(config, "acme", |tenant| {
            tenant.budget.call.usd = Some("0.03".parse().unwrap());
            tenant.budget.when_spent = WhenSpent::Degrade;
            tenant.budget.warn_percent = 40;
        });
    };
    let rig = Rig::with(change, quick(), "").await;
    let mut client = rig.dial("/v1/voice?turns=manual&pace=fast", &key).await.unwrap();
    let mut seen = vec![];
    spends_all(&mut client, &mut seen, 200).await;
    let at = |code: &str| seen.iter().position(|message| message["code"] == code);
    let (low, changed) = (at("budget_low").unwrap(), at("model_changed").expect("it became cheaper"));
    assert!(low < changed, "{seen:?}");
    let notice = &seen[changed];
    assert_eq!(
        (notice["to"].as_str(), notice["reason"].as_str()),
        (Some("gpt-realtime-2.1-mini"), Some("budget")),
        "{notice}"
    );
    let answers = seen[changed..].iter().filter(|message| message["type"] == "reply_ended").count();
    assert!(answers > 0, "and went on");
}
