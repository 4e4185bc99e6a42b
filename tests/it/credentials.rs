//! Client secrets instead of the account's key: made once, used again, replaced when they are refused.
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;
use tokio::time::{self, Instant};
use voxrelay::{
    config::{Config, Credentials, Govern},
    sim::SimConfig,
};

use crate::support::{Got, Rig, tenant, until};

fn ephemeral(config: &mut Config) {
    config.upstream.credentials = Credentials::Ephemeral;
}

async fn rig(faults: &str) -> Rig {
    Rig::with(ephemeral, SimConfig { secret_min_s: 1, ..SimConfig::default() }, faults).await
}

/// A call that was opened and has said hello; what it was told before its session, if that was its end.
async fn open(rig: &Rig) -> Result<crate::support::Client, (Option<String>, u16)> {
    let before = rig.sim.stats().sessions_opened;
    let mut call = rig.call("turns=manual").await;
    call.until("ready").await;
    call.json(r#"{"type":"text","text":"hello"}"#).await;
    loop {
        match call.next().await {
            Got::Json(message) if message["type"] == "reply_started" => return Ok(call),
            Got::Json(message) if message["type"] == "error" => {
                let code = message["error"]["code"].as_str().map(str::to_owned);
                return Err((code, call.end().await.1));
            }
            Got::Json(_) | Got::Audio(_) => {}
            end => panic!("{end:?} after {before} sessions"),
        }
    }
}

#[tokio::test]
async fn many_cold_calls_make_one_secret_and_many_refusals_one_more() {
    let rig = rig("").await;
    let calls = join_all((0..60).map(|_| open(&rig))).await;
    assert!(calls.iter().all(Result::is_ok));
    let stats = rig.sim.stats();
    assert_eq!((stats.mint_attempts, stats.mints, stats.sessions_by_secret), (1, 1, 60));
    drop(calls);
    rig.sim.revoke_secrets();
    let calls = join_all((0..60).map(|_| open(&rig))).await;
    assert!(calls.iter().all(Result::is_ok), "nobody notices");
    assert_eq!(rig.sim.stats().mints, 2);
}

#[tokio::test]
async fn while_the_mint_is_down_good_secrets_are_used_and_it_is_left_in_peace() {
    let faults = "[[fault]]\nkind = \"refuse\"\ndoor = \"mint\"\nstatus = 503\nchance = 1.0\n";
    let down = rig(faults).await;
    let began = Instant::now();
    let refused = join_all((0..30).map(|_| open(&down))).await;
    for refused in refused {
        assert_eq!(refused.err(), Some((Some("credentials_unavailable".to_owned()), 4503)));
    }
    let tries = down.sim.stats().mint_attempts;
    assert!(tries as f64 <= 1.0 + began.elapsed().as_secs_f64(), "{tries} in {:?}", began.elapsed());
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "an answer within three seconds, and the time that this machine takes"
    );
    // Up at first, then down for good: sessions go on being opened.
    let faults =
        (2..40).map(|n| format!("[[fault]]\nkind = \"refuse\"\ndoor = \"mint\"\nsession = {n}\nstatus = 503\n"));
    let later = rig(&faults.collect::<String>()).await;
    for _ in 0..3 {
        assert!(open(&later).await.is_ok());
    }
    assert_eq!(later.sim.stats().mints, 1);
}

#[tokio::test]
async fn a_secret_with_an_end_that_cannot_be_is_neither_used_nor_asked_for_again_and_again() {
    for offset in [-10, 0, 2, 1_000_000] {
        let rig = rig(&format!("[[fault]]\nkind = \"expiry\"\noffset_s = {offset}\n")).await;
        let calls = join_all((0..20).map(|_| open(&rig))).await;
        assert!(
            calls.iter().all(|call| matches!(call, Err((Some(code), 4503)) if code == "credentials_unavailable")),
            "{offset}"
        );
        let stats = rig.sim.stats();
        assert!(stats.mint_attempts <= 4, "{offset}: {}", stats.mint_attempts);
        assert_eq!(stats.sessions_by_secret, 0);
    }
}

#[tokio::test]
async fn clocks_that_differ_do_not_matter() {
    for offset in [-7_200, -30, 30, 100_000] {
        let sim = SimConfig { clock_offset_s: offset, ..SimConfig::default() };
        let rig = Rig::with(ephemeral, sim, "").await;
        assert!(open(&rig).await.is_ok(), "{offset}");
        assert!(open(&rig).await.is_ok(), "{offset}");
        assert_eq!(rig.sim.stats().mints, 1, "{offset}");
    }
}

#[tokio::test]
async fn a_wait_that_the_mint_asks_for_is_kept_and_told() {
    let faults = "[[fault]]\nkind = \"refuse\"\ndoor = \"mint\"\nstatus = 429\nretry_after_s = 60\n";
    let rig = rig(faults).await;
    for _ in 0..5 {
        let mut call = rig.call("").await;
        let error = call.until("error").await["error"].clone();
        assert_eq!((error["code"].as_str(), error["retryable"].as_bool()), (Some("rate_limited"), Some(true)));
        let wait = error["retry_after_ms"].as_u64().unwrap();
        assert!((50_000..=61_000).contains(&wait), "{wait}");
        assert_eq!(call.end().await.1, 4429);
    }
    assert_eq!(rig.sim.stats().mint_attempts, 1);
}

#[tokio::test]
async fn a_secret_that_the_service_will_never_have_stops_after_one_more() {
    let rig = rig("").await;
    assert!(open(&rig).await.is_ok());
    let refusals = (1..400).map(|n| format!("[[fault]]\nkind = \"refuse\"\nsession = {n}\nstatus = 401\n"));
    let never = Rig::with(ephemeral, SimConfig::default(), &refusals.collect::<String>()).await;
    let calls = join_all((0..20).map(|_| open(&never))).await;
    assert!(
        calls.iter().all(|call| matches!(call, Err((Some(code), 4502)) if code == "upstream_auth")),
        "{:?}",
        calls.len()
    );
    let stats = never.sim.stats();
    assert!(stats.mints <= 2, "{}", stats.mints);
    assert!(stats.attempts <= 40, "one retry each: {}", stats.attempts);
}

#[tokio::test]
async fn tenants_and_end_users_share_no_secret_and_calls_only_where_they_may() {
    let (mut one, mut two, mut alone) = (String::new(), String::new(), String::new());
    let change = |c: &mut Config| {
        ephemeral(c);
        one = tenant(c, "one", |_| {});
        two = tenant(c, "two", |_| {});
        alone = tenant(c, "alone", |t| t.share_secrets = false);
    };
    let rig = Rig::with(change, SimConfig::default(), "").await;
    let mut opened = 0;
    let mut made = Vec::new();
    for key in [&one, &one, &two, &alone, &alone, &one] {
        let _call = rig.dial("/v1/voice", key).await.unwrap();
        opened += 1;
        until("a session", || rig.sim.stats().sessions_by_secret == opened).await;
        made.push(rig.sim.stats().mints);
    }
    assert_eq!(made, [1, 1, 2, 3, 4, 4]);
    for (user, mints) in [("ann", 5), ("bob", 6), ("ann", 6)] {
        let token = rig.token(&one, json!({"user": user})).await;
        let _call = rig.dial("/v1/voice", &token).await.unwrap();
        opened += 1;
        until("a session", || rig.sim.stats().sessions_by_secret == opened).await;
        assert_eq!(rig.sim.stats().mints, mints, "{user}");
    }
    assert!(rig.sim.stats().safety_ids.len() >= 5, "the mint and the session hear who it is");
}

#[tokio::test]
async fn a_session_outlives_its_secret() {
    let change = |c: &mut Config| {
        ephemeral(c);
        c.upstream.secret_ttl_s = 10;
    };
    let rig = Rig::with(change, SimConfig::default(), "").await;
    let mut call = open(&rig).await.unwrap();
    call.until("reply_ended").await;
    time::sleep(Duration::from_secs(8)).await;
    rig.sim.revoke_secrets();
    call.json(r#"{"type":"text","text":"still there?"}"#).await;
    call.until("reply_started").await;
    // A later call has a secret of its own time.
    assert!(open(&rig).await.is_ok());
    assert_eq!(rig.sim.stats().mints, 2);
}

#[tokio::test]
async fn a_tenant_sees_which_limit_it_has_hit() {
    let (mut key, mut other) = (String::new(), String::new());
    let change = |c: &mut Config| {
        ephemeral(c);
        c.turns.govern = Govern::Never; // the next one shall be asked for all the same
        key = tenant(c, "acme", |t| t.max_calls = 7);
        other = tenant(c, "other", |_| {});
    };
    let faults = "[[fault]]\nkind = \"refuse\"\ndoor = \"mint\"\nsession = 1\nstatus = 429\nretry_after_s = 1\n\
                  [[fault]]\nkind = \"fail_response\"\ncode = \"rate_limit_exceeded\"\nresponse = 1\n";
    let rig = Rig::with(change, SimConfig::default(), faults).await;
    let mut call = rig.dial("/v1/voice?turns=manual", &key).await.unwrap();
    call.json(r#"{"type":"text","text":"hello"}"#).await;
    let ended = call.until("reply_ended").await;
    assert_eq!((ended["status"].as_str(), ended["reason"].as_str()), (Some("failed"), Some("rate_limit_exceeded")));
    call.json(r#"{"type":"text","text":"again"}"#).await;
    assert_eq!(call.until("reply_ended").await["status"], "completed");
    let mut seen = rig.ask("GET", "/v1/limits", &key).await.json();
    while seen["upstream"]["buckets"]["tokens"].is_null() {
        time::sleep(Duration::from_millis(20)).await; // it comes after the reply
        seen = rig.ask("GET", "/v1/limits", &key).await.json();
    }
    let hits: Vec<_> = seen["upstream"]["hits"].as_array().unwrap().iter().map(|hit| hit["limit"].clone()).collect();
    assert_eq!(hits, ["day", "mint"], "the newest first: {seen}");
    assert_eq!(seen["upstream"]["hits"][1]["retry_after_ms"], 1_000);
    assert!(seen["upstream"]["advice"].as_str().unwrap().contains("day's limit"));
    assert_eq!((seen["limits"]["calls"].as_u64(), seen["now"]["calls"].as_u64()), (Some(7), Some(1)));
    assert_eq!(seen["upstream"]["buckets"]["requests"]["limit"], 5_000);
    let others = rig.ask("GET", "/v1/limits", &other).await.json();
    assert_eq!(others["upstream"]["hits"], json!([]), "what others have hit is theirs");
}
