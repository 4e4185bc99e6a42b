//! Before and after the upgrade: refusals, health, the way out.
use std::time::Duration;

use tokio::time::{self, Instant};
use voxrelay::serve::{ServeError, Server};

use crate::support::{Got, Rig, config, get};

#[tokio::test(flavor = "multi_thread")]
async fn refusals_come_before_the_upgrade_with_field_and_allowed_values() {
    let rig = Rig::new().await;
    for (query, headers, status, code, field, part) in [
        ("agent=nobody", "", 404, "unknown_agent", "agent", "no agent `nobody` is configured"),
        ("format=mp3", "", 400, "invalid_query", "format", "allowed: pcm16, mulaw, alaw, opus"),
        ("rate=44100", "", 400, "invalid_query", "rate", "allowed: 8000, 16000, 24000, 48000"),
        ("out_format=opus&out_rate=8000", "", 400, "invalid_query", "out_rate", "allowed: 48000"),
        ("turns=both", "", 400, "invalid_query", "turns", "allowed: auto, manual"),
        ("", "Origin: https://evil.example\r\n", 403, "forbidden", "", "`https://evil.example` may not call"),
        ("", "Origin: null\r\n", 403, "forbidden", "", "`null` may not call"),
    ] {
        for upgrade in [
            "",
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
        ] {
            let (got, body, text) = get(&rig, &format!("/v1/voice?{query}"), &format!("{headers}{upgrade}")).await;
            assert_eq!(got, status, "{query} {headers}: {text}");
            assert_eq!(body["error"]["code"], code, "{query}");
            assert_eq!(body["error"]["field"].as_str().unwrap_or_default(), field, "{query}");
            assert!(body["error"]["message"].as_str().unwrap().contains(part), "{query}: {body}");
            assert!(body["error"]["request_id"].is_string());
            assert!(text.to_lowercase().contains("access-control-allow-origin: *\r\n"), "pages may read it: {text}");
        }
    }
    let (status, body, _) = get(&rig, "/v1/voice?format=mulaw", "").await;
    assert_eq!((status, body["ok"].as_bool()), (200, Some(true)));
    let (status, body, _) = get(&rig, "/v1/nothing", "").await;
    assert_eq!((status, body["error"]["code"].as_str()), (404, Some("not_found")));
    let bad_key = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: x\r\n";
    assert_eq!(get(&rig, "/v1/voice", bad_key).await.0, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn subprotocols_are_answered_and_tokens_never_echoed() {
    let rig = Rig::new().await;
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    for (offered, answered) in [
        ("", false),
        ("Sec-WebSocket-Protocol: voxrelay.v1, voxrelay.token.SECRET\r\n", true),
        ("Sec-WebSocket-Protocol: other\r\n", false),
    ] {
        let (status, _, text) = get(&rig, "/v1/voice", &format!("{upgrade}{offered}")).await;
        assert_eq!(status, 101, "{text}");
        assert_eq!(text.to_lowercase().contains("sec-websocket-protocol: voxrelay.v1\r\n"), answered, "{text}");
        assert!(!text.contains("SECRET"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_house_says_when_to_come_back() {
    let rig = Rig::configured(|c| c.server.max_calls = 1).await;
    let mut first = rig.call("").await;
    first.until("ready").await;
    let (status, body, text) = get(&rig, "/v1/voice", "").await;
    assert_eq!((status, body["error"]["code"].as_str()), (503, Some("overloaded")));
    assert_eq!(body["error"]["retry_after_ms"], 5_000);
    assert!(text.to_lowercase().contains("retry-after: 5\r\n"), "{text}");
    first.json(r#"{"type":"close"}"#).await;
    assert_eq!(first.next().await, Got::Closed(1000));
    drop(first);
    let began = Instant::now();
    while get(&rig, "/v1/voice", "").await.0 != 200 {
        assert!(began.elapsed() < Duration::from_secs(5), "the line was never freed");
        time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_resume_token_is_refused_as_the_contract_says() {
    let rig = Rig::new().await;
    let mut client = rig.call("resume=abc&got=3").await;
    assert_eq!(client.end().await, (Some("resume_refused".into()), 4410));
    assert_eq!(rig.sim.stats().sessions_opened, 0, "nothing happens upstream");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_and_the_agents_names_are_served() {
    let rig = Rig::configured(|c| {
        let secretive = c.agents["default"].clone();
        c.agents.insert("concierge".into(), secretive);
    })
    .await;
    let (status, body, text) = get(&rig, "/v1/agents", "").await;
    assert_eq!(status, 200, "{text}");
    assert_eq!(body, serde_json::json!({"agents": [{"name": "concierge"}, {"name": "default"}], "default": "default"}));
    let (status, _, text) = get(&rig, "/", "").await;
    assert_eq!(status, 200);
    assert!(text.to_lowercase().contains("content-security-policy: default-src 'none'"), "{text}");
    assert_eq!(get(&rig, "/web/voxrelay-client.js", "").await.0, 200);
    let (status, body, _) = get(&rig, "/web/nothing.js", "").await;
    assert_eq!((status, body["error"]["code"].as_str()), (404, Some("not_found")));
}

#[tokio::test(flavor = "multi_thread")]
async fn ready_says_what_was_agreed() {
    let rig = Rig::new().await;
    let mut client = rig.call("format=opus&out_format=mulaw&turns=manual").await;
    let ready = client.until("ready").await;
    assert_eq!(ready["audio"]["in"], serde_json::json!({"format": "opus", "rate": 48_000}));
    assert_eq!(ready["audio"]["out"], serde_json::json!({"format": "mulaw", "rate": 8_000}));
    assert_eq!(ready["agent"], "default");
    assert_eq!(ready["limits"]["max_message_bytes"], 262_144);
    assert!(ready["call"].as_str().unwrap().starts_with("call_"));
}

#[tokio::test(flavor = "multi_thread")]
async fn leaving_tells_every_client_and_keeps_its_time() {
    let rig = Rig::configured(|c| c.server.drain_s = 2).await;
    let mut client = rig.call("").await;
    client.until("ready").await;
    let addr = rig.relay.addr();
    assert_eq!(get(&rig, "/readyz", "").await.0, 200);
    assert_eq!(get(&rig, "/healthz", "").await.0, 200);
    let began = Instant::now();
    let left = tokio::task::JoinSet::from_iter([async move { rig.relay.drain(std::future::pending()).await }]);
    let draining = client.until("draining").await;
    assert!((1_500..=2_000).contains(&draining["deadline_ms"].as_u64().unwrap()), "{draining}");
    assert!(tokio::net::TcpStream::connect(addr).await.is_err(), "the listener is gone");
    assert_eq!(client.end().await, (None, 1001));
    left.join_all().await;
    assert!((1_900..4_500).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn impossible_addresses_are_refused_with_a_hint() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut wanted = config("http://127.0.0.1:1/v1");
    wanted.server.listen = taken.local_addr().unwrap();
    let error = Server::start(wanted, None).await.unwrap_err();
    assert!(matches!(error, ServeError::Listen { .. }));
    assert!(error.to_string().contains("choose another address with --listen"), "{error}");

    let mut open = config("http://127.0.0.1:1/v1");
    open.server.listen = "0.0.0.0:0".parse().unwrap();
    let error = Server::start(open.clone(), None).await.unwrap_err();
    assert!(error.to_string().contains("--insecure-open"), "{error}");
    open.server.insecure_open = true;
    Server::start(open, None).await.unwrap();
}
