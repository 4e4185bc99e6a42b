//! An account's limits, met rather than hit (docs/quota.md): a simulator that says no, and callers who share what there is.
use std::time::Duration;

use serde_json::Value;
use tokio::{task::JoinSet, time::Instant};
use voxrelay::{
    config::{Config, Govern, LimitsConfig},
    sim::{Limits, SimConfig},
};

use crate::support::{Client, Got, Rig, clip};

/// A service with so many tokens a minute, and a relay that knows of it.
async fn rig(tokens: u64, change: impl FnOnce(&mut Config)) -> Rig {
    let limits = Limits { tokens, burst: 0.1, ..Limits::default() };
    let mut sim = SimConfig { limits: vec![limits], ..SimConfig::instant() };
    sim.reply.speed = 0.0;
    Rig::with(
        |config| {
            config.upstream.limits = vec![LimitsConfig { tokens: Some(tokens), ..LimitsConfig::default() }];
            config.agents.entry("default".to_owned()).or_default().max_output_tokens = Some(200);
            change(config);
        },
        sim,
        "",
    )
    .await
}

/// Says something and waits for what becomes of it: `reply_ended` or an error; and how often it was told to wait.
async fn turn(client: &mut Client) -> (Value, usize) {
    client.json(r#"{"type":"text","text":"Hello, how are you today?"}"#).await;
    outcome(client).await
}

async fn outcome(client: &mut Client) -> (Value, usize) {
    let mut throttled = 0;
    loop {
        match client.next().await {
            Got::Json(message) if message["type"] == "notice" && message["code"] == "throttled" => throttled += 1,
            Got::Json(message) if ["reply_ended", "error"].contains(&message["type"].as_str().unwrap()) => {
                return (message, throttled);
            }
            Got::Json(_) | Got::Audio(_) => {}
            end => panic!("{end:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_callers_at_once_wait_their_turn_and_the_service_refuses_nobody() {
    let rig = rig(12_000, |config| config.turns.wait_ms = 20_000).await;
    let mut callers = JoinSet::new();
    for _ in 0..16 {
        let mut client = rig.call("turns=manual&pace=fast").await;
        callers.spawn(async move {
            client.until("ready").await;
            turn(&mut client).await
        });
    }
    let said = callers.join_all().await;
    let waited: usize = said.iter().map(|(_, throttled)| throttled).sum();
    for (ended, _) in &said {
        assert_eq!(
            (ended["type"].as_str(), ended["status"].as_str()),
            (Some("reply_ended"), Some("completed")),
            "{ended}"
        );
    }
    let stats = rig.sim.stats();
    assert_eq!((stats.limited.len(), stats.responses), (0, 16), "{:?}", stats.limited);
    assert!(waited > 0, "there was not room for all of them at once");
    let report = rig.ask("GET", "/v1/limits", "").await.json();
    let pool = &report["upstream"]["quota"]["gpt-realtime-2.1"];
    let tokens = pool["dimensions"].as_array().unwrap().iter().find(|shown| shown["dimension"] == "tokens").unwrap();
    assert_eq!(
        (tokens["limit"].as_u64(), tokens["reserved"].as_u64()),
        (Some(12_000), Some(0)),
        "{pool}: all is settled"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_waits_hears_the_agents_recording_before_the_answer() {
    let hold = |config: &mut Config| {
        config.turns.wait_ms = 20_000;
        config.agents.entry("default".to_owned()).or_default().hold_audio = Some("assets/hello.wav".into());
    };
    let rig = rig(1_000, hold).await;
    let mut client = rig.call("turns=manual&pace=fast").await;
    for _ in 0..20 {
        client.json(r#"{"type":"text","text":"Hello, how are you today?"}"#).await;
        let (mut audio, mut ended, mut throttled) = (Vec::new(), Vec::new(), false);
        while ended.len() < 1 + usize::from(throttled) {
            match client.next().await {
                Got::Audio(frame) if ended.is_empty() => audio.extend(frame),
                Got::Json(message) if message["code"] == "throttled" => throttled = true,
                Got::Json(message) if message["type"] == "reply_ended" => ended.push(message),
                Got::Json(message) if message["type"] == "error" => panic!("{message}"),
                Got::Json(_) | Got::Audio(_) => {}
                end => panic!("{end:?}"),
            }
        }
        if throttled {
            let (recording, answer) = (&ended[0], &ended[1]);
            assert_eq!((&recording["status"], &recording["usage"]), (&"completed".into(), &Value::Null), "{recording}");
            assert!(answer["usage"]["total_tokens"].as_u64() > Some(0), "{answer}");
            // The file is at the service's rate: what is heard is what is in it, filled up to a whole frame.
            let speech = clip("assets/hello.wav");
            assert!(audio.starts_with(&speech) && audio.len() - speech.len() < 960);
            return;
        }
    }
    panic!("a thousand tokens a minute are not enough for twenty answers");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_larger_than_the_limit_is_refused_by_name_and_what_waits_too_long_is_told_when() {
    let small = rig(200, |_| {}).await;
    let mut client = small.call("turns=manual").await;
    let (error, _) = turn(&mut client).await;
    assert_eq!(error["error"]["code"], "rate_limited", "{error}");
    assert!(error["error"]["message"].as_str().unwrap().contains("tpm"), "{error}");
    assert_eq!(small.sim.stats().responses, 0);
    // One takes what there is; the next would have to wait for longer than it may.
    let rig = rig(1_000, |config| config.turns.wait_ms = 500).await;
    let mut first = rig.call("turns=manual&pace=fast").await;
    assert_eq!(turn(&mut first).await.0["status"], "completed");
    let began = Instant::now();
    let mut refused = None;
    for _ in 0..20 {
        let (said, throttled) = turn(&mut first).await;
        if said["type"] == "error" {
            refused = Some((said["error"].clone(), throttled));
            break;
        }
    }
    let (error, throttled) = refused.expect("a thousand tokens a minute are not enough for twenty answers");
    assert_eq!(
        (error["code"].as_str(), error["retryable"].as_bool(), throttled),
        (Some("rate_limited"), Some(true), 1),
        "{error}"
    );
    assert!(error["retry_after_ms"].as_u64().unwrap() > 0, "{error}");
    assert!(began.elapsed() < Duration::from_secs(20));
    assert!(rig.sim.stats().limited.is_empty());
    // The call goes on, and its next turn is answered once there is room.
    tokio::time::sleep(Duration::from_millis(error["retry_after_ms"].as_u64().unwrap())).await;
    assert_eq!(turn(&mut first).await.0["status"], "completed");
}

/// Says something aloud, and hears the beginning of the answer.
async fn spoken_turn(client: &mut Client) {
    let speech = clip("assets/hello.wav");
    client.stream(&speech[..72_000], 960).await; // a second and a half
    client.stream(&vec![0; 48_000], 960).await;
    client.until("reply_started").await;
    client.json(r#"{"type":"interrupt"}"#).await;
    let (ended, _) = outcome(client).await;
    assert!(["completed", "interrupted"].contains(&ended["status"].as_str().unwrap_or_default()), "{ended}");
}

#[tokio::test(flavor = "multi_thread")]
async fn turns_that_the_service_finds_are_asked_for_by_the_relay_where_it_governs() {
    let mut all = JoinSet::new();
    for govern in [Govern::Always, Govern::NearLimit, Govern::Never] {
        all.spawn(async move {
            let rig = rig(60_000, |config| config.turns.govern = govern).await;
            let mut client = rig.call("turns=auto").await;
            for n in 1..=2 {
                spoken_turn(&mut client).await;
                assert_eq!(rig.sim.stats().responses, n, "{govern:?}: one answer a turn");
            }
            let asked = rig.sim.stats().responses_asked;
            assert_eq!(asked, if govern == Govern::Always { 2 } else { 0 }, "{govern:?}");
            assert!(rig.sim.stats().limited.is_empty());
        });
    }
    all.join_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn near_the_limit_the_relay_takes_over_and_gives_it_back() {
    // Room for one answer at once, and for the next one some seconds later.
    let rig = rig(6_000, |_| {}).await;
    let mut client = rig.call("turns=auto").await;
    for n in 1..=3 {
        spoken_turn(&mut client).await;
        assert_eq!(rig.sim.stats().responses, n, "one answer a turn, whoever asks");
    }
    let asked = rig.sim.stats().responses_asked;
    assert!(asked > 0, "little was left after the first");
    // A while later there is enough: the service answers by itself again.
    tokio::time::sleep(Duration::from_secs(12)).await;
    spoken_turn(&mut client).await;
    assert_eq!((rig.sim.stats().responses, rig.sim.stats().responses_asked), (4, asked));
    assert!(rig.sim.stats().limited.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_are_opened_at_the_accounts_pace_and_no_more_than_it_may_have() {
    // Ten sessions a second, of which one at once, and six in all.
    let limits = Limits { connects: 600, sessions: 6, burst: 0.1 / 6.0, ..Limits::default() };
    let sim = SimConfig { limits: vec![limits], ..SimConfig::instant() };
    let change = |config: &mut Config| {
        let known = LimitsConfig { connects: Some(600), sessions: Some(6), burst_ms: 100, ..LimitsConfig::default() };
        config.upstream.limits = vec![known];
    };
    let rig = Rig::with(change, sim, "").await;
    let mut callers = JoinSet::new();
    for _ in 0..6 {
        let mut client = rig.call("turns=manual&pace=fast").await;
        callers.spawn(async move {
            client.until("ready").await;
            let (said, _) = turn(&mut client).await;
            (client, said["status"].clone())
        });
    }
    let mut callers = callers.join_all().await;
    assert!(callers.iter().all(|(_, status)| status == "completed"), "all within the three seconds of a connect");
    // One more is told why, and when to come again.
    let mut seventh = rig.call("turns=manual").await;
    let error = seventh.until("error").await;
    let (code, message) = (&error["error"]["code"], error["error"]["message"].as_str().unwrap());
    assert!(code == "rate_limited" && message.contains("sessions: need 1, have 0"), "{error}");
    assert!(error["error"]["retry_after_ms"].as_u64().is_some_and(|ms| ms > 0), "{error}");
    assert_eq!(seventh.end().await.1, 4429);
    // A place that becomes free is taken again.
    let (mut first, _) = callers.pop().unwrap();
    first.json(r#"{"type":"close"}"#).await;
    first.end().await;
    let mut next = rig.call("turns=manual&pace=fast").await;
    assert_eq!(turn(&mut next).await.0["status"], "completed");
    assert!(rig.sim.stats().limited.is_empty(), "{:?}", rig.sim.stats().limited);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_refusal_of_the_service_nothing_is_asked_for_until_the_moment_that_it_named() {
    let faults = "[[fault]]\nkind = \"fail_response\"\ncode = \"rate_limit_exceeded\"\nresponse = 1\n";
    let rig = Rig::with(|config| config.turns.wait_ms = 500, SimConfig::instant(), faults).await;
    let mut client = rig.call("turns=manual&pace=fast").await;
    let (failed, _) = turn(&mut client).await;
    assert_eq!((failed["type"].as_str(), failed["status"].as_str()), (Some("reply_ended"), Some("failed")));
    // It would be asked for again, had the service not named a moment that nobody waits for.
    let (refused, throttled) = outcome(&mut client).await;
    let (code, message) = (&refused["error"]["code"], refused["error"]["message"].as_str().unwrap_or_default());
    assert!(code == "rate_limited" && throttled == 1 && message.contains("rpd: need 1, have 0"), "{refused}");
    let told = Duration::from_millis(refused["error"]["retry_after_ms"].as_u64().unwrap());
    assert!(told > Duration::from_secs(60) && told < Duration::from_secs(87), "{told:?}: it said 1m26.4s");
    let (refused, _) = turn(&mut client).await;
    assert_eq!(refused["error"]["code"], "rate_limited", "{refused}");
    assert_eq!(rig.sim.stats().responses, 1, "the service was not asked again");
}

#[tokio::test(flavor = "multi_thread")]
async fn at_the_limit_of_sessions_a_call_changes_over_in_its_own_place() {
    let limits = Limits { sessions: 1, ..Limits::default() };
    let sim = SimConfig { limits: vec![limits], session_cap_ms: 4_000, ..SimConfig::instant() };
    let change = |config: &mut Config| {
        config.upstream.limits = vec![LimitsConfig { sessions: Some(1), ..LimitsConfig::default() }];
    };
    let rig = Rig::with(change, sim, "").await;
    let mut client = rig.call("turns=manual&pace=fast").await;
    let began = Instant::now();
    for _ in 0..3 {
        assert_eq!(turn(&mut client).await.0["status"], "completed");
        // Others want the place too.
        let mut other = rig.call("turns=manual").await;
        assert_eq!(other.end().await, (Some("rate_limited".to_owned()), 4429));
        client.json(r#"{"type":"ping","t":1}"#).await;
    }
    assert!(began.elapsed() > Duration::from_secs(9) && rig.sim.stats().sessions_opened >= 3, "{:?}", rig.sim.stats());
}
