//! Services that are not there, refuse, stall or vanish: each ends the call with the contract's code and words.
use std::time::Duration;

use tokio::{net::TcpListener, time::Instant};
use voxrelay::config::Secret;

use crate::support::{Client, Got, Rig, config};

const NEVER_CREATED: &str = "[[fault]]\nkind = \"no_created\"\n";
const DIES_IN_A_REPLY: &str = "[[fault]]\nkind = \"die\"\nresponse = 1\nafter_deltas = 3\ntimes = 1\n";
const SLOW_TO_OPEN: &str = "[[fault]]\nkind = \"hang\"\nfor_ms = 1_000\n";

fn refuse(status: u16) -> String {
    format!("[[fault]]\nkind = \"refuse\"\nstatus = {status}\n")
}

async fn end_of(client: &mut Client) -> (String, u16, String) {
    let error = client.until("error").await;
    let (code, close) = client.end().await;
    assert_eq!(code, None, "one error, then the close");
    (error["error"]["code"].as_str().unwrap().to_owned(), close, error["error"]["message"].as_str().unwrap().to_owned())
}

/// A call on a service that is told by its URL.
async fn call_on(url: &str, change: impl FnOnce(&mut voxrelay::config::Config)) -> (Client, voxrelay::serve::Server) {
    let mut config = config(url);
    change(&mut config);
    let relay = voxrelay::serve::Server::start(config, None).await.unwrap();
    let client = Client::connect(&format!("ws://{}/v1/voice", relay.addr())).await;
    (client, relay)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_is_not_there() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (mut client, _relay) = call_on(&format!("http://{nobody}/v1"), |_| {}).await;
    client.until("ready").await;
    let (code, close, message) = end_of(&mut client).await;
    assert_eq!((code.as_str(), close), ("upstream_unavailable", 4503));
    assert!(message.contains(&format!("cannot reach the service at {nobody}")), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_takes_the_connection_and_says_nothing() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/v1", silent.local_addr().unwrap());
    let (mut client, _relay) = call_on(&url, |c| {
        c.upstream.session_timeout_ms = 500;
        c.upstream.attempts = 2;
    })
    .await;
    let (code, close, message) = end_of(&mut client).await;
    assert_eq!((code.as_str(), close), ("upstream_timeout", 4504));
    assert!(message.contains("within 500 ms"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_is_never_created() {
    let rig = Rig::with(
        |c| {
            c.upstream.session_timeout_ms = 500;
            c.upstream.attempts = 1;
        },
        voxrelay::sim::SimConfig::default(),
        NEVER_CREATED,
    )
    .await;
    let mut client = rig.call("").await;
    let (code, close, message) = end_of(&mut client).await;
    assert_eq!((code.as_str(), close), ("upstream_timeout", 4504));
    assert!(message.contains("session.created"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_models_and_accounts_that_are_refused() {
    for (key, model, code, part) in [
        ("sk-bad-key", "gpt-realtime-2.1", "upstream_auth", "it does not know the API key"),
        ("sk-good", "no-such-model", "upstream_refused", "it does not know the model"),
    ] {
        let rig = Rig::configured(|c| {
            c.upstream.api_key = Some(Secret::new(key));
            c.upstream.model = model.to_owned();
        })
        .await;
        let mut client = rig.call("").await;
        let (got, close, message) = end_of(&mut client).await;
        assert_eq!((got.as_str(), close), (code, 4502), "{message}");
        assert!(message.contains(part) && !message.contains(key), "{message}");
        assert_eq!(rig.sim.stats().sessions_opened, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn http_refusals_are_told_apart_and_some_are_tried_again() {
    for (status, code, close) in [
        (401, "upstream_auth", 4502),
        (403, "upstream_auth", 4502),
        (429, "rate_limited", 4429),
        (503, "upstream_unavailable", 4503),
    ] {
        let rig = Rig::with(|_| {}, voxrelay::sim::SimConfig::default(), &refuse(status)).await;
        let mut client = rig.call("").await;
        let (got, got_close, message) = end_of(&mut client).await;
        assert_eq!((got.as_str(), got_close), (code, close), "{status}: {message}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_vanishes_in_the_middle_of_a_reply() {
    let rig = Rig::with(|_| {}, voxrelay::sim::SimConfig::default(), DIES_IN_A_REPLY).await;
    let mut client = rig.call("").await;
    client.json(r#"{"type":"text","text":"hello"}"#).await;
    assert_eq!(client.until("notice").await["code"], "upstream_reconnecting");
    assert_eq!(client.until("notice").await["code"], "upstream_resumed");
    let ended = client.until("reply_ended").await;
    assert_eq!((ended["status"].as_str(), ended["reason"].as_str()), (Some("interrupted"), Some("upstream_lost")));
    assert_eq!(ended["audio_ms"], ended["heard_ms"], "what came of it was heard to its end");
    assert_eq!(rig.sim.stats().faults.get("die"), Some(&1));
    client.json(r#"{"type":"text","text":"and now?"}"#).await;
    assert_eq!(client.until("reply_ended").await["status"], "completed", "the call goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_said_before_the_session_is_up_is_not_lost() {
    let sim = voxrelay::sim::SimConfig::default();
    let rig = Rig::with(|_| {}, sim, SLOW_TO_OPEN).await;
    let mut client = rig.call("turns=manual&pace=fast").await;
    let began = Instant::now();
    for _ in 0..50 {
        client.audio(&[1; 960]).await;
    }
    client.json(r#"{"type":"commit"}"#).await;
    let ended = client.until("reply_ended").await;
    assert_eq!(ended["audio_ms"], 1_000);
    assert!(began.elapsed() > Duration::from_millis(800), "the fault did not happen");
}

/// Events and fields that nobody has heard of, before and in the middle of a reply, twice.
const UNHEARD_OF: &str = "[[fault]]\nkind = \"unknown_events\"\nat_ms = 1\ncount = 2\ntimes = 2\n\
                          [[fault]]\nkind = \"unknown_fields\"\nat_ms = 1\ntimes = 2\n\
                          [[fault]]\nkind = \"unknown_events\"\nresponse = 1\nafter_deltas = 2\ntimes = 2\n";

#[tokio::test(flavor = "multi_thread")]
async fn u10_what_nobody_knows_passes_where_the_client_speaks_the_services_protocol_and_is_left_out_elsewhere() {
    let rig = Rig::with(|_| {}, voxrelay::sim::SimConfig::default(), UNHEARD_OF).await;
    let mut thin = rig.call("pace=fast").await;
    thin.json(r#"{"type":"text","text":"hello"}"#).await;
    let ended = loop {
        match thin.next().await {
            Got::Json(message) if message["type"] == "reply_ended" => break message,
            Got::Json(message) => {
                assert_ne!(message["type"], "error", "{message}");
                assert!(!message.to_string().contains("sim"), "{message}");
            }
            Got::Audio(_) => {}
            end => panic!("{end:?}"),
        }
    };
    assert_eq!(ended["status"], "completed");
    assert_eq!(rig.sim.stats().faults.get("unknown_events"), Some(&2));
    let mut passed = Client::connect(&format!("ws://{}/v1/realtime", rig.relay.addr())).await;
    passed.until("session.created").await;
    passed.json(r#"{"type":"response.create","response":{"output_modalities":["audio"]}}"#).await;
    let (mut unknown, mut fields) = (Vec::new(), 0);
    loop {
        let event = passed.json_next().await;
        match event["type"].as_str().unwrap() {
            "sim.unknown_event" => unknown.push((event["number"].clone(), event["delta"].clone())),
            "response.done" => break,
            _ => fields += usize::from(event["sim_unknown"]["delta"] == serde_json::json!([1, null, "x"])),
        }
    }
    let want = |n: u64| (serde_json::json!(n), serde_json::json!("bm90IGF1ZGlv"));
    assert_eq!(unknown, [want(0), want(1), want(0)], "to the byte");
    assert!(fields > 3, "{fields}");
    assert_eq!(rig.sim.stats().faults.get("unknown_events"), Some(&4), "the faults did happen");
}

#[tokio::test(flavor = "multi_thread")]
async fn u6_a_service_that_fails_is_left_alone_but_for_a_try_a_second_and_taken_again_at_once() {
    let down = "[[fault]]\nkind = \"refuse\"\nstatus = 503\ntimes = 8\n";
    let rig = Rig::with(|_| {}, voxrelay::sim::SimConfig::instant(), down).await;
    let mut failed = 0;
    let began = Instant::now();
    while rig.sim.stats().attempts < 5 {
        let (code, close, _) = end_of(&mut rig.call("").await).await;
        assert_eq!((code.as_str(), close), ("upstream_unavailable", 4503));
        failed += 1;
        assert!(failed < 5 && began.elapsed() < Duration::from_secs(10));
    }
    assert_eq!(rig.sim.stats().attempts, 5, "three tries, and the two that make five");
    // Open: whoever comes is told so at once, and the service is asked once a second.
    let open = Instant::now();
    let mut told = 0;
    while rig.sim.stats().attempts < 8 {
        let asked = Instant::now();
        let mut client = rig.call("").await;
        client.until("ready").await;
        let error = client.until("error").await;
        assert_eq!(client.end().await.1, 4503);
        let error = &error["error"];
        assert_eq!(error["code"], "upstream_unavailable");
        if error["message"].as_str().unwrap().contains("the next try is due in") {
            told += 1;
            assert!(error["retry_after_ms"].as_u64().unwrap() <= 1_000, "{error}");
            assert!(asked.elapsed() < Duration::from_millis(250), "{:?}", asked.elapsed());
        }
        assert!(open.elapsed() < Duration::from_secs(20));
    }
    assert!(told > 10, "{told}");
    assert!(open.elapsed() > Duration::from_millis(2_500), "three tries in {:?}", open.elapsed());
    assert_eq!(rig.sim.stats().faults.get("refuse"), Some(&8), "the service did fail");
    // It is well again: found out by whoever comes within a second or so.
    let well = Instant::now();
    loop {
        let mut client = rig.call("").await;
        client.json(r#"{"type":"text","text":"hello"}"#).await;
        let answer = loop {
            match client.next().await {
                Got::Json(message) if message["type"] == "reply_started" => break true,
                Got::Closed(_) => break false,
                _ => {}
            }
        };
        if answer {
            break;
        }
        assert!(well.elapsed() < Duration::from_secs(5));
    }
    assert_eq!(rig.sim.stats().attempts, 9);
}

#[tokio::test(flavor = "multi_thread")]
async fn u5_a_wait_that_the_service_names_is_kept_by_all_calls_and_a_longer_one_is_told() {
    let limited = "[[fault]]\nkind = \"refuse\"\nstatus = 429\nretry_after_s = 2\ntimes = 1\n";
    let rig = Rig::with(|_| {}, voxrelay::sim::SimConfig::instant(), limited).await;
    let began = Instant::now();
    let mut first = rig.call("").await;
    super::support::until("the service has said no", || rig.sim.stats().attempts == 1).await;
    let mut second = rig.call("").await;
    for client in [&mut first, &mut second] {
        client.json(r#"{"type":"text","text":"hello"}"#).await;
        client.until("reply_started").await;
    }
    assert!(began.elapsed() >= Duration::from_secs(2), "never earlier than told: {:?}", began.elapsed());
    assert_eq!(rig.sim.stats().attempts, 3, "one was refused, and each came once after it");
    let limited = "[[fault]]\nkind = \"refuse\"\nstatus = 429\nretry_after_s = 30\ntimes = 1\n";
    let rig = Rig::with(|_| {}, voxrelay::sim::SimConfig::instant(), limited).await;
    for tries in [1, 1] {
        let mut client = rig.call("").await;
        let error = client.until("error").await["error"].clone();
        assert_eq!((error["code"].as_str(), client.end().await.1), (Some("rate_limited"), 4429));
        assert!((25_000..=30_000).contains(&error["retry_after_ms"].as_u64().unwrap()), "{error}");
        assert_eq!(rig.sim.stats().attempts, tries, "the second did not even ask");
    }
}
