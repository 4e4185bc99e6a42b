//! Calls that go by the routes of a tier (docs/routes.md): two simulators as two accounts, one of which misbehaves.
use std::{path::Path, time::Duration};

use serde_json::{Value, json};
use tokio::time::{self, Instant};
use tokio_tungstenite::tungstenite::Message;
use voxrelay::{
    config::{CanaryConfig, Config, OtherModels, RouteConfig, RoutePolicy, Secret, TierConfig, UpstreamConfig},
    sim::{Faults, Sim, SimConfig},
};

use crate::{
    resume::{Line, assert_same, numbered, recorded},
    support::{Client, Got, Rig, tenant, until},
};

const LARGE: &str = "gpt-realtime-2.1";
const MINI: &str = "gpt-realtime-2.1-mini";
/// As soon as can be asked of a machine that runs all tests at once; what hangs takes ten times as long.
const SOON: Duration = Duration::from_secs(5);

fn route(upstream: Option<&str>, model: &str) -> RouteConfig {
    RouteConfig { upstream: upstream.map(str::to_owned), model: model.to_owned(), weight: 1 }
}

/// A relay, the account `default` with these faults, and the account `second`.
struct Two {
    rig: Rig,
    second: Sim,
}

impl Two {
    /// With a tier `fast`: the large model of the first account, and then the small one of the second.
    async fn new(first: &str, second: &str, change: impl FnOnce(&mut Config)) -> Self {
        let kept = || SimConfig { record_audio: true, ..SimConfig::instant() };
        // Another seed: no two answers have the same id.
        let (one, two) = (kept(), SimConfig { seed: 2, ..kept() });
        let faults = if second.is_empty() { Faults::default() } else { Faults::from_toml(second).unwrap() };
        let second = Sim::start("127.0.0.1:0".parse().unwrap(), two, faults).await.unwrap();
        let url = second.base_url();
        let change = |config: &mut Config| {
            let account =
                UpstreamConfig { url: Some(url), api_key: config.upstream.api_key.clone(), ..config.upstream.clone() };
            config.upstreams.insert("second".to_owned(), account);
            let tier = TierConfig {
                policy: RoutePolicy::Ordered,
                routes: vec![route(None, LARGE), route(Some("second"), MINI)],
                ..TierConfig::default()
            };
            config.tiers.insert("fast".to_owned(), tier);
            config.agents.entry("default".to_owned()).or_default().model = Some("fast".to_owned());
            change(config);
        };
        Self { rig: Rig::with(change, one, first).await, second }
    }

    fn faults(&self, kind: &str) -> u64 {
        self.rig.sim.stats().faults.get(kind).copied().unwrap_or_default()
    }

    /// Sessions at the first account, and at the second.
    fn sessions(&self) -> (u64, u64) {
        (self.rig.sim.stats().sessions_opened, self.second.stats().sessions_opened)
    }

    async fn view(&self) -> Value {
        self.rig.ask("GET", "/v1/limits", "").await.json()["routes"]["tiers"]["fast"].clone()
    }
}

/// A typed turn, whose answer is cut as soon as it is heard; how it ended, whether an error was told, and the notices before.
async fn turn(client: &mut Client) -> (String, usize, Vec<Value>) {
    client.json(r#"{"type":"text","text":"Hello there"}"#).await;
    let (mut errors, mut notices) = (0, Vec::new());
    loop {
        match client.next().await {
            Got::Json(message) if message["type"] == "error" => errors += 1,
            Got::Json(message) if message["type"] == "notice" => notices.push(message),
            Got::Json(message) if message["type"] == "reply_ended" => {
                return (message["status"].as_str().unwrap().to_owned(), errors, notices);
            }
            Got::Audio(_) => client.tries(Message::text(r#"{"type":"interrupt"}"#)).await,
            Got::Json(_) => {}
            end => panic!("{end:?}"),
        }
    }
}

fn is_heard(status: &str) -> bool {
    ["completed", "interrupted"].contains(&status)
}

/// A call of one turn, which must work; how long it took.
async fn call(two: &Two) -> Duration {
    let began = Instant::now();
    let mut client = two.rig.call("turns=manual&pace=fast").await;
    let (ended, errors, notices) = turn(&mut client).await;
    assert!(is_heard(&ended) && errors == 0, "{ended}, {errors} errors");
    assert!(notices.is_empty(), "{notices:?}: the call has had one model from its beginning");
    let took = began.elapsed();
    client.json(r#"{"type":"close"}"#).await;
    client.end().await;
    took
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_that_is_down_is_noticed_by_nobody_left_alone_and_taken_again_when_it_is_back() {
    let two = Two::new("[[fault]]\nkind = \"refuse\"\nstatus = 503\ntimes = 5\n", "", |_| {}).await;
    for n in 1..=5 {
        let took = call(&two).await;
        assert!(took < SOON, "{took:?}");
        assert_eq!((two.faults("refuse"), two.sessions()), (n, (0, n)), "one try each");
    }
    let opened = Instant::now();
    assert_eq!(two.view().await["routes"][0]["failures"], 5);
    call(&two).await;
    if opened.elapsed() < Duration::from_secs(1) {
        assert_eq!(two.sessions(), (0, 6), "nobody waits for it");
    }
    // It is back: one of the calls that come finds out, and all others follow.
    while two.sessions().0 == 0 {
        assert!(opened.elapsed() < 2 * SOON, "{}", two.view().await);
        time::sleep(Duration::from_millis(200)).await;
        call(&two).await;
    }
    let second = two.sessions().1;
    call(&two).await;
    assert_eq!((two.sessions(), two.faults("refuse")), ((2, second), 5));
    assert_eq!(two.view().await["routes"][0]["state"], "closed");
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_that_are_hit_at_one_account_shift_calls_to_the_other_and_are_no_success() {
    let limited = "[[fault]]\nkind = \"refuse\"\nstatus = 429\nretry_after_s = 60\n";
    let two = Two::new(limited, "", |_| {}).await;
    for _ in 0..4 {
        assert!(call(&two).await < SOON);
    }
    assert_eq!((two.faults("refuse"), two.sessions()), (1, (0, 4)), "the wait that it named is kept");
    let view = two.view().await;
    let first = &view["routes"][0];
    assert_eq!((first["state"].as_str(), first["failures"].as_u64()), (Some("closed"), Some(0)), "{view}");
    assert!(first["held_ms"].as_u64().is_some_and(|ms| ms > 30_000), "{view}");
    assert!(first["penalty"].as_f64().is_some_and(|penalty| penalty > 0.1), "{view}");
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_fail_for_a_limit_are_told_of_their_route() {
    let fails = "[[fault]]\nkind = \"fail_response\"\ncode = \"rate_limit_exceeded\"\nresponse = 1\ntimes = 1\n";
    let two = Two::new(fails, "", |_| {}).await;
    let mut client = two.rig.call("turns=manual&pace=fast").await;
    let (ended, errors, _) = turn(&mut client).await;
    assert_eq!((ended.as_str(), errors, two.faults("fail_response")), ("failed", 0, 1), "{}", two.view().await);
    assert!(call(&two).await < SOON);
    assert_eq!(two.sessions(), (1, 1), "the next call goes elsewhere");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_whose_account_dies_goes_on_at_the_other_one_with_another_model_and_says_nothing_twice() {
    let dies = "[[fault]]\nkind = \"die\"\nsession = 1\nreset = true\nresponse = 1\nafter_deltas = 0\n\n\
                [[fault]]\nkind = \"refuse\"\nsession = 2\n\n[[fault]]\nkind = \"refuse\"\nsession = 3\n";
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ledger.db");
    let two = Two::new(dies, "", |config| config.ledger.file = Some(file.clone())).await;
    let mut line = Line::begin(&two.rig, "turns=manual").await;
    let question = numbered(0, 48_000);
    for piece in question.chunks(9_600) {
        line.speak(piece).await;
    }
    line.say(&json!({"type": "commit"})).await;
    assert_eq!(line.until("reply_ended").await["status"], "interrupted");
    let ended = line.until("reply_ended").await;
    assert_eq!((ended["status"].as_str(), ended["heard_ms"].as_u64()), (Some("completed"), Some(2_000)));
    assert_same(&line.audio, &question, "what the other one heard, and said back: once");
    assert_same(&recorded(&two.rig)[0], &question, "the first one had it, too");
    let notices = line.of("notice");
    let codes: Vec<&str> = notices.iter().map(|notice| notice["code"].as_str().unwrap()).collect();
    assert_eq!(codes, ["upstream_reconnecting", "model_changed", "upstream_resumed"]);
    let changed = &notices[1];
    assert_eq!((changed["from"].as_str(), changed["to"].as_str()), (Some(LARGE), Some(MINI)), "{changed}");
    assert_eq!((changed["reason"].as_str(), two.faults("die"), two.sessions()), (Some("route"), 1, (1, 1)));
    line.say(&json!({"type": "close"})).await;
    assert_eq!(two.rig.relay.ledger().flush(SOON).await, 0);
    let rows = rows(&file);
    let on = |route: &str| rows.iter().filter(|row| row.0 == route).count();
    assert_eq!((on("default/gpt-realtime-2.1"), on("second/gpt-realtime-2.1-mini")), (1, 1), "{rows:?}");
    assert!(rows.iter().any(|row| row.0.starts_with("second/") && row.1.is_some()), "{rows:?}");
}

/// Of each row of a ledger: its route, how soon it was heard, its model.
fn rows(file: &Path) -> Vec<(String, Option<i64>, String)> {
    let sql = rusqlite::Connection::open(file).unwrap();
    let mut ask = sql.prepare("SELECT route, first_audio_ms, model FROM usage WHERE kind = 'reply'").unwrap();
    let rows = ask.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).unwrap();
    rows.map(Result::unwrap).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_route_is_dialled_beside_one_that_hangs_and_only_one_answers() {
    let two = Two::new("[[fault]]\nkind = \"hang\"\n", "", |_| {}).await;
    for n in 1..=3 {
        let took = call(&two).await;
        assert!(took < SOON && took > Duration::from_millis(900), "{took:?}");
        assert_eq!((two.faults("hang"), two.second.stats().responses), (n, n), "one answer each");
    }
    assert_eq!(two.sessions(), (0, 3));
    // What was left behind is known in time, although nobody waited for it.
    let end = Instant::now() + 2 * SOON;
    while two.view().await["routes"][0]["failures"] != 3 {
        assert!(Instant::now() < end, "{}", two.view().await);
        time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_comes_too_late_is_hung_up_before_anything_was_said() {
    let two = Two::new("[[fault]]\nkind = \"hang\"\nfor_ms = 1_500\ntimes = 1\n", "", |_| {}).await;
    assert!(call(&two).await < SOON);
    until("the late one is hung up", || {
        let stats = two.rig.sim.stats();
        stats.sessions_opened == stats.sessions_now + 1 || stats.closed_by_client.contains_key(&1000)
    })
    .await;
    let stats = two.rig.sim.stats();
    assert_eq!((two.faults("hang"), stats.client_events, stats.responses), (1, 0, 0), "{stats:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_candidate_that_fails_is_rolled_back() {
    // The first answer of each of its sessions fails, and the second does not.
    let fails = "[[fault]]\nkind = \"fail_response\"\nresponse = 1\n";
    let two = Two::new("", fails, |config| {
        let fast = config.tiers.get_mut("fast").unwrap();
        fast.routes.pop();
        fast.canary = Some(CanaryConfig {
            upstream: Some("second".to_owned()),
            model: MINI.to_owned(),
            share_percent: 50.0,
            promoted_percent: 100.0,
            min_calls: 10,
            observe_s: 3_600,
            max_error_percent: 1.0,
            max_first_audio_percent: 100.0,
            max_cost_percent: 100.0,
            max_failed_tools_percent: 2.0,
        });
    })
    .await;
    let mut calls = 0;
    while two.view().await["canary"]["standing"] == "running" {
        calls += 1;
        assert!(calls < 150, "{}", two.view().await);
        let mut client = two.rig.call("turns=manual&pace=fast").await;
        turn(&mut client).await;
        assert!(is_heard(&turn(&mut client).await.0));
        client.json(r#"{"type":"close"}"#).await;
        client.end().await;
    }
    let canary = two.view().await["canary"].clone();
    assert_eq!((canary["standing"].as_str(), canary["share_percent"].as_f64()), (Some("rolled_back"), Some(0.0)));
    assert!(two.second.stats().faults["fail_response"] >= 10, "{canary}");
    let figures = canary["figures"].as_array().unwrap();
    assert!(figures.iter().any(|one| one["criterion"] == "errors" && one["finding"] == "worse"), "{canary}");
    let tried = two.second.stats().sessions_opened;
    for _ in 0..5 {
        call(&two).await;
    }
    assert_eq!(two.second.stats().sessions_opened, tried, "it gets no more calls");
}

/// The model that a session at the pass-through door says it has.
async fn model(client: &mut Client) -> String {
    client.until("session.created").await["session"]["model"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_openai_ask_for_a_tier_as_for_a_model_as_far_as_their_tenant_may() {
    let (mut all, mut by_name, mut by_model, mut neither) = <(String, String, String, String)>::default();
    let two = Two::new("", "", |config| {
        config.openai.other_models = OtherModels::Refuse;
        all = tenant(config, "all", |_| {});
        by_name = tenant(config, "by-name", |tenant| tenant.models = vec!["fast".to_owned()]);
        by_model = tenant(config, "by-model", |tenant| tenant.models = vec![MINI.to_owned()]);
        neither = tenant(config, "neither", |tenant| tenant.models = vec!["gpt-realtime-1.5".to_owned()]);
    })
    .await;
    for (key, want) in [(&all, LARGE), (&by_name, LARGE), (&by_model, MINI)] {
        let mut client = two.rig.dial("/v1/realtime?model=fast", key).await.ok().unwrap();
        assert_eq!(model(&mut client).await, want);
        // What it calls the model it may say again; it is not passed on.
        client
            .json(r#"{"type":"session.update","session":{"type":"realtime","model":"fast","instructions":"hi"}}"#)
            .await;
        let updated = client.until("session.updated").await;
        assert_eq!(
            (updated["session"]["model"].as_str(), updated["session"]["instructions"].as_str()),
            (Some(want), Some("hi"))
        );
        client.json(r#"{"type":"conversation.item.create","item":{"type":"message","role":"user","content":[{"type":"input_text","text":"hi"}]}}"#).await;
        client.json(r#"{"type":"response.create"}"#).await;
        assert_eq!(client.until("response.done").await["response"]["status"], "completed");
        client.until_closed_by_us().await;
    }
    assert_eq!(two.sessions(), (2, 1));
    let refused = two.rig.dial("/v1/realtime?model=fast", &neither).await.err();
    assert_eq!(refused, Some((404, "model_not_found".to_owned())));
    let refused = two.rig.dial("/v1/voice", &neither).await.err();
    assert_eq!(refused, Some((403, "forbidden".to_owned())));
    let refused = two.rig.dial("/v1/realtime?model=slow", &all).await.err();
    assert_eq!(refused, Some((404, "model_not_found".to_owned())));
    // A client secret is made for a model of the tenant's own account.
    let body = json!({"session": {"type": "realtime", "model": "fast"}});
    let made = two.rig.post("/v1/realtime/client_secrets", &all, body.clone()).await;
    assert_eq!((made.status, made.json()["session"]["model"].as_str()), (200, Some(LARGE)), "{}", made.text);
    let refused = two.rig.post("/v1/realtime/client_secrets", &by_model, body).await;
    assert_eq!((refused.status, refused.code().as_str()), (404, "model_not_found"), "that one is the other account's");
    for (key, seen) in [(&all, true), (&by_model, true), (&neither, false)] {
        let view = two.rig.ask("GET", "/v1/limits", key).await.json();
        assert_eq!(view["routes"]["tiers"]["fast"].is_object(), seen, "{view}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_begins_in_another_tier_is_told_so() {
    // The service knows neither the key nor, therefore, the account.
    let two = Two::new("", "", |config| {
        let cheap = TierConfig { routes: vec![route(Some("second"), MINI)], ..TierConfig::default() };
        config.tiers.insert("cheap".to_owned(), cheap);
        let fast = config.tiers.get_mut("fast").unwrap();
        (fast.routes, fast.degrade_to) = (vec![route(None, LARGE)], Some("cheap".to_owned()));
        config.upstream.api_key = Some(Secret::new("sk-bad-key"));
    })
    .await;
    let mut client = two.rig.call("turns=manual&pace=fast").await;
    let (ended, errors, notices) = turn(&mut client).await;
    assert!(is_heard(&ended) && errors == 0, "{ended}");
    let said = |field: &str| notices[0][field].as_str().unwrap().to_owned();
    let told = [said("code"), said("from"), said("to"), said("reason")];
    assert_eq!(told, ["model_changed", "fast", MINI, "unavailable"]);
    assert_eq!((notices.len(), two.sessions()), (1, (0, 1)));
}
