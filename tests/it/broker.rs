//! The broker, from outside: client secrets and SDP for clients that speak to the service directly, and the end of their calls.
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt as _, time};
use voxrelay::{
    config::{AgentConfig, Config, Credentials, Govern, PolicyConfig, Rule, Scope},
    sim::SimConfig,
};

use crate::support::{Answer, Got, Raw, Rig, answer, tenant, tenant_with, until};

const OFFER: &str = "v=0\r\no=- 5 2 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\nm=audio 9 UDP/TLS/RTP/SAVPF 111\r\na=mid:0\r\n\
                     a=rtpmap:111 opus/48000/2\r\n";
const SECRETS: &str = "/v1/realtime/client_secrets";
const CALLS: &str = "/v1/realtime/calls";

async fn rig(change: impl FnOnce(&mut Config), sim: SimConfig, faults: &str) -> (Rig, String) {
    let mut key = String::new();
    let all = |c: &mut Config| {
        key = tenant(c, "acme", |_| {});
        change(c);
    };
    let rig = Rig::with(all, sim, faults).await;
    (rig, key)
}

fn sdp(rig: &Rig, key: &str, offer: impl Into<reqwest::Body>) -> reqwest::RequestBuilder {
    rig.request("POST", CALLS, key).header("content-type", "application/sdp").body(offer)
}

async fn begin(rig: &Rig, key: &str) -> (Answer, String) {
    let got = answer(sdp(rig, key, OFFER)).await;
    let call = got.header("location").rsplit('/').next().unwrap_or_default().to_owned();
    (got, call)
}

#[tokio::test]
async fn a_secret_is_made_once_under_the_policy_and_opens_what_it_was_made_for() {
    let change = |c: &mut Config| {
        let agent = AgentConfig {
            instructions: "Sell socks.".into(),
            policy: PolicyConfig { instructions: Rule::Force, ..PolicyConfig::default() },
            ..AgentConfig::default()
        };
        c.agents.insert("default".into(), agent);
    };
    let (rig, key) = rig(change, SimConfig::default(), "").await;
    let session = json!({"type": "realtime", "model": "gpt-4o-realtime-preview", "instructions": "Obey me.", "audio": {"output": {"voice": "cedar"}}});
    let asked = json!({"expires_after": {"anchor": "created_at", "seconds": 300}, "session": session});
    let all = join_all((0..50).map(|_| rig.post(SECRETS, &key, asked.clone()))).await;
    let first = all[0].json();
    for got in &all {
        assert_eq!((got.status, got.json()["value"].as_str()), (200, first["value"].as_str()), "{}", got.text);
    }
    assert_eq!(all[0].header("cache-control"), "no-store");
    assert_eq!(rig.sim.stats().mints, 1);
    let made = &first["session"];
    assert_eq!(
        (made["instructions"].as_str(), made["model"].as_str(), made["audio"]["output"]["voice"].as_str()),
        (Some("Sell socks."), Some("gpt-realtime-2.1"), Some("cedar"))
    );
    let now = voxrelay::wall::unix_now();
    assert!((now + 200..=now + 300).contains(&first["expires_at"].as_u64().unwrap()));
    // It opens a session here, too: that is what an SDK does whose base URL is ours.
    let secret = first["value"].as_str().unwrap();
    let mut call = rig.dial("/v1/realtime", secret).await.unwrap();
    let created = call.json_next().await;
    assert_eq!(created["session"]["instructions"], "Sell socks.");
    until("a session by that secret", || rig.sim.stats().sessions_by_secret == 1).await;
    // And it makes no other one.
    assert_eq!(rig.post(SECRETS, secret, json!({})).await.status, 403);
    for (path, other) in [(SECRETS, json!({})), (SECRETS, json!({"session": {"type": "transcription"}}))] {
        let got = rig.post(path, &key, other.clone()).await;
        assert_eq!(got.status, 200, "{other}: {}", got.text);
    }
    assert_eq!(rig.sim.stats().mints, 3, "another session is another secret");
}

#[tokio::test]
async fn requests_for_secrets_that_make_no_sense_are_refused_by_field() {
    let change = |c: &mut Config| {
        let only = tenant(c, "only", |t| t.models = vec!["gpt-realtime-2.1".into()]);
        c.agents.insert("of-only".into(), AgentConfig { instructions: only, ..AgentConfig::default() });
    };
    let (rig, key) = rig(change, SimConfig::default(), "").await;
    for (body, status, code, param) in [
        (json!({"expires_after": {"seconds": 9}}), 400, "invalid_value", "expires_after.seconds"),
        (json!({"expires_after": {"seconds": 7201}}), 400, "invalid_value", "expires_after.seconds"),
        (json!({"expires_after": {"seconds": "600"}}), 400, "invalid_value", "expires_after.seconds"),
        (json!({"expires_after": {"anchor": "now"}}), 400, "invalid_value", "expires_after.anchor"),
        (json!({"expires_after": 600}), 400, "invalid_type", "expires_after"),
        (json!({"session": "realtime"}), 400, "invalid_type", "session"),
        (json!({"session": {"type": "singing"}}), 400, "invalid_value", "session.type"),
        (json!({"session": {"type": "realtime", "model": 7}}), 400, "invalid_type", "session.model"),
        (json!({"session": {"type": "realtime", "bogus": 1}}), 400, "unknown_parameter", "session.bogus"),
        (json!({"session": {"type": "realtime", "model": "gpt-5"}}), 404, "model_not_found", "model"),
    ] {
        let got = rig.post(SECRETS, &key, body.clone()).await;
        let found = got.json()["error"]["param"].as_str().unwrap_or_default().to_owned();
        assert_eq!((got.status, got.code().as_str(), found.as_str()), (status, code, param), "{body}: {}", got.text);
    }
    for (body, status) in [("{", 400), ("[]", 400), (&*"x".repeat(70_000), 413)] {
        let got = answer(rig.request("POST", SECRETS, &key).body(body.to_owned())).await;
        assert_eq!(got.status, status, "{}", got.text);
    }
    assert_eq!(rig.sim.stats().mints, 0);
    let agent = rig.post(&format!("{SECRETS}?agent=nobody"), &key, json!({})).await;
    assert_eq!((agent.status, agent.code().as_str()), (404, "unknown_agent"));
}

#[tokio::test]
async fn a_model_that_cannot_be_connected_is_found_out_before_its_secret_is_made() {
    let (rig, key) = rig(|c| c.openai.models.clear(), SimConfig::default(), "").await;
    let ask = |model: &str| rig.post(SECRETS, &key, json!({"session": {"type": "realtime", "model": model}}));
    for _ in 0..2 {
        let got = ask("gpt-4o-realtime-preview").await;
        assert_eq!((got.status, got.code().as_str()), (404, "model_not_found"));
    }
    assert_eq!(rig.sim.stats().mint_attempts, 0);
    for _ in 0..3 {
        assert_eq!(ask("gpt-realtime").await.status, 200);
    }
    assert_eq!(rig.sim.stats().sessions_opened, 1, "it is tried once");
}

#[tokio::test]
async fn sdp_is_exchanged_raw_or_with_a_session_by_key_or_by_secret() {
    for credentials in [Credentials::ApiKey, Credentials::Ephemeral] {
        let (rig, key) = rig(|c| c.upstream.credentials = credentials, SimConfig::default(), "").await;
        let secret = rig.post(SECRETS, &key, json!({"session": {"type": "realtime", "model": "gpt-realtime"}})).await;
        let secret = secret.json()["value"].as_str().unwrap().to_owned();
        let token = rig.token(&key, json!({"user": "ann", "direct": true})).await;
        let form = reqwest::multipart::Form::new()
            .text("sdp", OFFER)
            .text("session", json!({"type": "realtime", "model": "gpt-realtime"}).to_string());
        for (n, request) in [
            sdp(&rig, &key, OFFER),
            sdp(&rig, &secret, OFFER),
            sdp(&rig, &token, OFFER),
            rig.request("POST", CALLS, &key).multipart(form),
            rig.request("POST", &format!("/openai{CALLS}?model=gpt-realtime"), &key)
                .header("content-type", "application/sdp; charset=utf-8")
                .body(OFFER),
        ]
        .into_iter()
        .enumerate()
        {
            let got = answer(request).await;
            assert_eq!(got.status, 201, "{n}: {}", got.text);
            assert!(got.text.starts_with("v=0") && got.header("content-type") == "application/sdp", "{n}");
            assert!(got.header("location").starts_with("/v1/realtime/calls/rtc_"), "{n}");
            assert!(got.headers.get("set-cookie").is_none(), "cookies are the service's own");
        }
        assert_eq!(rig.sim.stats().calls, 5);
        until("all are watched", || rig.sim.stats().sidebands == 5).await;
        assert_eq!(rig.ask("GET", "/v1/calls", &key).await.json()["calls"].as_array().unwrap().len(), 5);
    }
}

#[tokio::test]
async fn sdp_that_is_none_is_refused() {
    let (rig, key) = rig(|_| {}, SimConfig::default(), "").await;
    let part =
        |name: &str, text: &str| format!("--b\r\ncontent-disposition: form-data; name=\"{name}\"\r\n\r\n{text}\r\n");
    let form = |parts: &[String]| format!("{}--b--\r\n", parts.concat());
    let multipart = "multipart/form-data; boundary=b";
    let session = r#"{"type":"realtime"}"#;
    for (kind, body, status, code) in [
        ("application/sdp", String::new(), 400, "invalid_offer"),
        ("application/sdp", "hello".to_owned(), 400, "invalid_offer"),
        ("application/sdp", "v=0\r\nm=video 9 X 0\r\n".to_owned(), 400, "invalid_offer"),
        ("application/sdp", format!("v=0\r\nm=audio 9 X 0\r\n{}", "x".repeat(1 << 20)), 413, "request_too_large"),
        ("application/sdp", format!("v=0\r\nm=audio 9 X 0\r\n{}", "x".repeat(100_000)), 413, "request_too_large"),
        ("application/json", OFFER.to_owned(), 415, "unsupported_content_type"),
        ("text/plain", OFFER.to_owned(), 415, "unsupported_content_type"),
        ("", OFFER.to_owned(), 415, "unsupported_content_type"),
        ("multipart/form-data", form(&[part("sdp", OFFER)]), 400, "invalid_multipart"),
        (multipart, "nothing".to_owned(), 400, "invalid_multipart"),
        (multipart, form(&[]), 400, "missing_required_parameter"),
        (multipart, form(&[part("session", session)]), 400, "missing_required_parameter"),
        (multipart, form(&[part("sdp", OFFER), part("sdp", OFFER)]), 400, "invalid_multipart"),
        (
            multipart,
            form(&[part("sdp", OFFER), part("session", session), part("session", session)]),
            400,
            "invalid_multipart",
        ),
        (multipart, form(&[part("sdp", OFFER), part("session", "{")]), 400, "invalid_json"),
        (multipart, form(&[part("sdp", OFFER), part("session", "[]")]), 400, "invalid_json"),
        (multipart, form(&[part("sdp", OFFER), part("more", "x")]), 400, "unknown_parameter"),
        (
            multipart,
            form(&[part("sdp", OFFER), part("session", r#"{"type":"realtime","bogus":1}"#)]),
            400,
            "unknown_parameter",
        ),
        (multipart, part("sdp", OFFER), 400, "invalid_multipart"),
    ] {
        let mut request = rig.request("POST", CALLS, &key).body(body.clone());
        if !kind.is_empty() {
            request = request.header("content-type", kind);
        }
        let got = answer(request).await;
        let shown: String = body.chars().take(120).collect();
        assert_eq!((got.status, got.code().as_str()), (status, code), "{kind}: {shown}: {}", got.text);
    }
    let wrong = reqwest::Body::from(vec![b'v', b'=', b'0', 0xFF]);
    assert_eq!(answer(sdp(&rig, &key, wrong)).await.status, 400);
    let secret = rig.post(SECRETS, &key, json!({})).await.json()["value"].as_str().unwrap().to_owned();
    let with_session = rig.request("POST", CALLS, &secret).header("content-type", multipart);
    let with_session = with_session.body(form(&[part("sdp", OFFER), part("session", session)]));
    assert_eq!(answer(with_session).await.status, 400, "the session is the secret's");
    assert_eq!(rig.sim.stats().calls, 0);
    // A body that stalls takes a connection, and only for a while.
    let mut raw = Raw::connect(rig.relay.addr()).await;
    let head = format!(
        "POST {CALLS} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {key}\r\ncontent-type: application/sdp\r\ncontent-length: 500\r\n\r\nv=0"
    );
    raw.tcp.write_all(head.as_bytes()).await.unwrap();
    let answered = raw.request("").await;
    assert!(answered.starts_with("HTTP/1.1 408"), "{answered}");
}

#[tokio::test]
async fn a_request_that_comes_again_begins_no_second_call() {
    let (rig, key) = rig(|c| drop(tenant(c, "other", |_| {})), SimConfig::default(), "").await;
    let keyed = |idempotency: &str, offer: &str| {
        sdp(&rig, &key, offer.to_owned()).header("idempotency-key", idempotency.to_owned())
    };
    let all = join_all((0..10).map(|_| answer(keyed("k1", OFFER)))).await;
    let place = all[0].header("location").to_owned();
    for got in &all {
        assert_eq!((got.status, got.header("location"), &got.text), (201, place.as_str(), &all[0].text));
    }
    assert_eq!(answer(keyed("k1", OFFER)).await.header("location"), place, "later, too");
    assert_eq!(rig.sim.stats().calls, 1);
    let other = answer(keyed("k1", &OFFER.replace("a=mid:0", "a=mid:1"))).await;
    assert_eq!((other.status, other.code().as_str()), (409, "idempotency_error"));
    for wrong in ["", "with space", &"x".repeat(256)] {
        assert_eq!(answer(keyed(wrong, OFFER)).await.status, 400, "{wrong}");
    }
    let twice = keyed("a", OFFER).header("idempotency-key", "b");
    assert_eq!(answer(twice).await.status, 400);
}

#[tokio::test]
async fn another_tenants_idempotency_key_is_another_key() {
    let mut other = String::new();
    let (rig, key) = rig(|c| other = tenant(c, "other", |_| {}), SimConfig::default(), "").await;
    let mut places = Vec::new();
    for key in [&key, &other] {
        places
            .push(answer(sdp(&rig, key, OFFER).header("idempotency-key", "same")).await.header("location").to_owned());
    }
    assert_ne!(places[0], places[1]);
    assert_eq!(rig.sim.stats().calls, 2);
}

#[tokio::test]
async fn what_has_failed_may_be_tried_again_with_the_same_key() {
    let faults = "[[fault]]\nkind = \"refuse\"\ndoor = \"calls\"\nsession = 1\nstatus = 503\n";
    let (rig, key) = rig(|_| {}, SimConfig::default(), faults).await;
    for status in [503, 201] {
        let got = answer(sdp(&rig, &key, OFFER).header("idempotency-key", "k")).await;
        assert_eq!(got.status, status, "{}", got.text);
    }
}

#[tokio::test]
async fn a_client_that_goes_away_in_the_middle_leaves_no_call_that_costs() {
    let faults = "[[fault]]\nkind = \"hang\"\ndoor = \"calls\"\nfor_ms = 600\n";
    let (rig, key) = rig(|_| {}, SimConfig::default(), faults).await;
    let gone = sdp(&rig, &key, OFFER).timeout(Duration::from_millis(200)).send().await;
    assert!(gone.is_err(), "it gave up");
    until("the call came to be all the same", || rig.sim.stats().calls == 1).await;
    until("and was hung up", || rig.sim.live_calls() == 0).await;
    // With a key it may come back for it.
    let keyed = || sdp(&rig, &key, OFFER).header("idempotency-key", "k");
    assert!(keyed().timeout(Duration::from_millis(200)).send().await.is_err());
    until("the second call", || rig.sim.stats().calls == 2).await;
    time::sleep(Duration::from_millis(300)).await;
    let got = answer(keyed()).await;
    assert_eq!((got.status, rig.sim.stats().calls, rig.sim.live_calls()), (201, 2, 1));
}

#[tokio::test]
async fn a_call_that_passes_us_by_obeys_our_clock() {
    let (mut short, mut idle) = (String::new(), String::new());
    let change = |c: &mut Config| {
        short = tenant(c, "short", |t| t.max_call_s = Some(2));
        idle = tenant(c, "idle", |t| t.idle_s = Some(1));
    };
    let (rig, key) = rig(change, SimConfig { caller_speaks_ms: 100, ..SimConfig::instant() }, "").await;
    // The longest call, silence, a token's end, and its tenant's word.
    let token = rig.token(&key, json!({"expires_in_s": 5, "direct": true})).await;
    for (n, key) in [&short, &idle, &token].into_iter().enumerate() {
        let (got, _) = begin(&rig, key).await;
        assert_eq!(got.status, 201, "{n}");
        until("it is watched", || rig.sim.stats().sidebands == n as u64 + 1).await;
    }
    until("all three are hung up", || rig.sim.stats().call_acts.get("hangup") == Some(&3)).await;
    assert_eq!(rig.sim.live_calls(), 0);
    let (_, call) = begin(&rig, &key).await;
    until("it is watched", || rig.sim.stats().sidebands == 4).await;
    assert_eq!(rig.ask("DELETE", &format!("/v1/calls/{call}"), &short).await.status, 404, "another tenant's");
    assert_eq!(rig.ask("DELETE", &format!("/v1/calls/{call}"), &key).await.status, 200);
    until("it is hung up", || rig.sim.live_calls() == 0).await;
    until("nothing is left", || rig.sim.stats().sessions_now == 0).await;
    assert_eq!(rig.ask("GET", "/v1/calls", &key).await.json()["calls"], json!([]));
}

#[tokio::test]
async fn a_call_whose_socket_breaks_is_joined_again_and_its_end_is_noticed() {
    let faults = "[[fault]]\nkind = \"die\"\nsession = 1\nat_ms = 100\n[[fault]]\nkind = \"close\"\nsession = 2\nat_ms = 100\ncode = 1000\n";
    let (rig, key) = rig(|_| {}, SimConfig::default(), faults).await;
    let (_, call) = begin(&rig, &key).await;
    until("it is joined a third time", || rig.sim.stats().sidebands == 3).await;
    assert_eq!(rig.sim.live_calls(), 1, "a socket's end is not the call's");
    // The caller hangs up at the service, without a word to us.
    let direct = crate::support::http().post(format!("{}/realtime/calls/{call}/hangup", rig.sim.base_url()));
    assert_eq!(direct.bearer_auth("sk-any").send().await.unwrap().status(), 200);
    let end = time::Instant::now() + crate::support::PATIENCE;
    while rig.ask("GET", "/v1/calls", &key).await.json()["calls"] != json!([]) {
        assert!(time::Instant::now() < end, "its end was not noticed");
        time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(rig.sim.stats().call_acts["hangup"], 1, "there was nothing more to hang up");
}

#[tokio::test]
async fn calls_are_controlled_by_their_own_tenant() {
    let (mut other, mut sip) = (String::new(), String::new());
    let change = |c: &mut Config| {
        other = tenant(c, "other", |_| {});
        sip = tenant_with(c, "sip", &[Scope::Sip, Scope::Secret], |_| {});
    };
    let (rig, key) = rig(change, SimConfig::default(), "").await;
    let (_, call) = begin(&rig, &key).await;
    let act = |key: &str, call: &str, act: &str, body: Value| {
        let request = rig.request("POST", &format!("{CALLS}/{call}/{act}"), key).json(&body);
        answer(request)
    };
    for (who, id, what, body, status) in [
        (&other, call.as_str(), "hangup", json!({}), 404),
        (&other, &call, "refer", json!({"target_uri": "tel:+491"}), 404),
        (&other, &call, "reject", json!({}), 404),
        (&key, "rtc_unknown", "hangup", json!({}), 404),
        (&key, "..", "hangup", json!({}), 404),
        (&key, &call, "sing", json!({}), 404),
        (&key, &call, "refer", json!({}), 400),
        (&key, &call, "refer", json!({"target_uri": "tel:+491"}), 200),
        (&key, &call, "hangup", json!({}), 200),
    ] {
        let got = act(who, id, what, body).await;
        assert_eq!(got.status, status, "{what} {id}: {}", got.text);
    }
    until("nothing is left", || rig.sim.live_calls() == 0 && rig.sim.stats().sessions_now == 0).await;
    // From the telephone network.
    rig.sim.ring("rtc_sip1");
    rig.sim.ring("rtc_sip2");
    assert_eq!(act(&sip, "rtc_sip1", "accept", json!({"type": "realtime", "model": "gpt-realtime"})).await.status, 200);
    until("it is watched", || rig.sim.stats().sidebands >= 2).await;
    assert_eq!(act(&other, "rtc_sip1", "hangup", json!({})).await.status, 404);
    assert_eq!(act(&sip, "rtc_sip2", "reject", json!({"status_code": 486})).await.status, 200);
    assert_eq!(act(&sip, "rtc_sip2", "accept", json!({})).await.status, 404, "it is gone");
    assert_eq!(act(&sip, "rtc_sip1", "hangup", json!({})).await.status, 200);
    until("nothing is left", || rig.sim.live_calls() == 0).await;
}

#[tokio::test]
async fn a_client_joins_its_own_call_and_no_other() {
    let mut other = String::new();
    let (rig, key) = rig(|c| other = tenant(c, "other", |_| {}), SimConfig::default(), "").await;
    let (_, call) = begin(&rig, &key).await;
    until("it is watched", || rig.sim.stats().sidebands == 1).await;
    let mut joined = rig.dial(&format!("/v1/realtime?call_id={call}"), &key).await.unwrap();
    assert_eq!(joined.json_next().await["type"], "session.created");
    assert_eq!(rig.dial(&format!("/v1/realtime?call_id={call}"), &other).await.err().map(|e| e.0), Some(404));
    assert_eq!(rig.dial("/v1/realtime?call_id=rtc_x", &key).await.err().map(|e| e.0), Some(404));
}

#[tokio::test]
async fn the_services_refusals_are_told_with_their_code_and_wait_and_none_of_their_text() {
    let body = r#"{\"error\":{\"message\":\"Incorrect key sk-abc***xyz\",\"type\":\"t\",\"code\":\"CODE\"}}"#;
    for (status, code, want, told, wait) in [
        (401, "invalid_api_key", 502, "upstream_auth", false),
        (403, "unsupported_country", 502, "upstream_auth", false),
        (404, "model_not_found", 404, "model_not_found", false),
        (409, "invalid_call_state", 409, "invalid_call_state", false),
        (429, "rate_limit_exceeded", 429, "rate_limit_exceeded", true),
        (429, "insufficient_quota", 429, "insufficient_quota", true),
        (500, "server_error", 503, "upstream_unavailable", true),
        (503, "overloaded", 503, "upstream_unavailable", true),
    ] {
        let faults = format!(
            "[[fault]]\nkind = \"refuse\"\ndoor = \"calls\"\nstatus = {status}\nretry_after_s = 7\nbody = \"{}\"\n",
            body.replace("CODE", code)
        );
        let (rig, key) = rig(|_| {}, SimConfig::default(), &faults).await;
        let (got, _) = begin(&rig, &key).await;
        assert_eq!((got.status, got.code().as_str()), (want, told), "{status} {code}: {}", got.text);
        assert!(!got.text.contains("sk-abc"), "{}", got.text);
        assert!(!wait || got.header("retry-after") == "7", "{status} {code}: {:?}", got.headers);
        let mint = faults.replace("\"calls\"", "\"mint\"");
        let (rig, key) = self::rig(|_| {}, SimConfig::default(), &mint).await;
        let got = rig.post(SECRETS, &key, json!({})).await;
        assert_eq!(
            (got.status, got.code().as_str()),
            (if want == 503 { 503 } else { want }, if want == 503 { "credentials_unavailable" } else { told }),
            "{}",
            got.text
        );
        assert!(!got.text.contains("sk-abc") && (!wait || !got.header("retry-after").is_empty()));
    }
    let (rig, key) = rig(
        |c| c.upstream.session_timeout_ms = 500,
        SimConfig::default(),
        "[[fault]]\nkind = \"hang\"\ndoor = \"calls\"\n",
    )
    .await;
    let (got, _) = begin(&rig, &key).await;
    assert_eq!((got.status, got.code().as_str()), (504, "upstream_timeout"));
}

#[tokio::test]
async fn pages_of_known_origins_may_ask() {
    let change = |c: &mut Config| {
        c.tenants.get_mut("acme").unwrap().origins = vec!["https://app.example".into()];
    };
    let (rig, key) = rig(change, SimConfig::default(), "").await;
    for (origin, known) in [("https://app.example", true), ("https://evil.example", false), ("null", false)] {
        for path in [SECRETS, CALLS, "/v1/tokens", "/v1/calls/x", "/v1/limits", "/v1/voice", "/v1/agents"] {
            let preflight = rig.request("OPTIONS", path, "").header("origin", origin);
            let preflight = preflight.header("access-control-request-method", "POST");
            let got = answer(preflight.header("access-control-request-headers", "authorization, content-type")).await;
            let allowed = got.header("access-control-allow-origin") == origin;
            assert_eq!((got.status, allowed), (if known { 204 } else { 403 }, known), "{path} {origin}");
            assert_eq!(
                got.header("access-control-allow-headers"),
                if known { "authorization, content-type" } else { "" }
            );
        }
        let got = answer(sdp(&rig, &key, OFFER).header("origin", origin)).await;
        assert_eq!(got.status, if known { 201 } else { 403 }, "{origin}");
        assert_eq!(got.header("access-control-allow-origin") == origin, known);
        assert!(!known || got.header("access-control-expose-headers").contains("Location"));
    }
}

#[tokio::test]
async fn a_client_secret_does_what_it_is_for_and_nothing_else() {
    let change = |c: &mut Config| {
        c.agents.insert("other".into(), AgentConfig::default());
    };
    let (rig, key) = rig(change, SimConfig::default(), "").await;
    let asked = json!({"session": {"type": "realtime", "model": "gpt-realtime"}});
    let secret = rig.post(SECRETS, &key, asked.clone()).await.json()["value"].as_str().unwrap().to_owned();
    let (_, call) = begin(&rig, &key).await;
    until("it is watched", || rig.sim.stats().sidebands == 1).await;
    for (method, path) in [
        ("POST", "/v1/tokens".to_owned()),
        ("GET", "/v1/calls".to_owned()),
        ("GET", "/v1/limits".to_owned()),
        ("DELETE", format!("/v1/calls/{call}")),
        ("GET", "/v1/voice".to_owned()),
        ("POST", SECRETS.to_owned()),
        ("POST", format!("{CALLS}/{call}/hangup")),
        ("POST", format!("{CALLS}/{call}/accept")),
    ] {
        assert_eq!(rig.ask(method, &path, &secret).await.status, 403, "{method} {path}");
    }
    for (path, status) in [
        (format!("/v1/realtime?call_id={call}"), 404),
        ("/v1/realtime?agent=other".to_owned(), 403),
        ("/v1/realtime?model=gpt-realtime-2.1".to_owned(), 400),
    ] {
        assert_eq!(rig.dial(&path, &secret).await.err().map(|e| e.0), Some(status), "{path}");
    }
    // It cannot be made something else by asking for another kind.
    let mut odd = rig.dial("/v1/realtime?intent=transcription", &secret).await.unwrap();
    assert_eq!(odd.json_next().await["session"]["type"], "realtime");
    assert!(rig.dial("/v1/realtime?model=gpt-realtime", &secret).await.is_ok());
    let refused = rig.dial(&format!("/v1/realtime?call_id={call}&intent=transcription"), &key).await;
    assert_eq!(refused.err().map(|e| e.0), Some(400), "a joined call says itself what it is");
}

#[tokio::test]
async fn a_token_makes_secrets_only_as_it_was_told_to() {
    let (rig, key) = rig(|_| {}, SimConfig::default(), "").await;
    let plain = rig.token(&key, json!({})).await;
    assert_eq!(rig.post(SECRETS, &plain, json!({})).await.status, 403);
    let once = rig.token(&key, json!({"direct": true, "uses": 1, "expires_in_s": 30})).await;
    let made = rig.post(SECRETS, &once, json!({"expires_after": {"seconds": 7_200}})).await;
    assert_eq!(made.status, 200, "{}", made.text);
    let left = made.json()["expires_at"].as_u64().unwrap() - voxrelay::wall::unix_now();
    assert!(left <= 31, "no longer than the token: {left}");
    assert_eq!(rig.post(SECRETS, &once, json!({})).await.status, 401, "it is used up");
    // Those who are bound differently are not given the same one.
    let mut values = Vec::new();
    for asked in
        [json!({"direct": true, "max_call_s": 60}), json!({"direct": true}), json!({"direct": true, "max_call_s": 60})]
    {
        let token = rig.token(&key, asked).await;
        values.push(rig.post(SECRETS, &token, json!({})).await.json()["value"].as_str().unwrap().to_owned());
    }
    values.push(rig.post(SECRETS, &key, json!({})).await.json()["value"].as_str().unwrap().to_owned());
    assert_eq!((values[0] == values[2], values[0] != values[1], values[1] != values[3]), (true, true, true));
}

#[tokio::test]
async fn a_users_token_steers_its_own_calls() {
    let (rig, key) = rig(|_| {}, SimConfig::default(), "").await;
    let (ann, bob) = (json!({"direct": true, "user": "ann"}), json!({"direct": true, "user": "bob"}));
    let (ann, bob) = (rig.token(&key, ann).await, rig.token(&key, bob).await);
    let (_, call) = begin(&rig, &ann).await;
    until("it is watched", || rig.sim.stats().sidebands == 1).await;
    for (who, act, status) in [(&bob, "hangup", 404), (&bob, "refer", 403), (&ann, "refer", 403), (&ann, "hangup", 200)]
    {
        let body = json!({"target_uri": "tel:+491"});
        assert_eq!(rig.post(&format!("{CALLS}/{call}/{act}"), who, body).await.status, status, "{act}");
    }
}

#[tokio::test]
async fn a_server_that_goes_away_hangs_up_what_nobody_would_watch() {
    let (rig, key) = rig(|c| c.server.drain_s = 4, SimConfig::default(), "").await;
    let (_, _) = begin(&rig, &key).await;
    until("it is watched", || rig.sim.stats().sidebands == 1).await;
    rig.relay.drain(std::future::pending()).await;
    assert_eq!(rig.sim.live_calls(), 0);
}

#[tokio::test]
async fn a_use_that_came_to_nothing_is_given_back() {
    let faults = "[[fault]]\nkind = \"refuse\"\ndoor = \"calls\"\nsession = 1\nstatus = 503\n\
                  [[fault]]\nkind = \"refuse\"\ndoor = \"mint\"\nsession = 1\nstatus = 400\n";
    let (rig, key) = rig(|_| {}, SimConfig::default(), faults).await;
    let once = rig.token(&key, json!({"direct": true, "uses": 1})).await;
    for status in [503, 201, 401] {
        assert_eq!(answer(sdp(&rig, &once, OFFER)).await.status, status);
    }
    let once = rig.token(&key, json!({"direct": true, "uses": 1})).await;
    for status in [400, 200, 401] {
        let session = json!({"session": {"type": "realtime", "instructions": status.to_string()}});
        assert_eq!(rig.post(SECRETS, &once, session).await.status, status);
    }
    // The secret that it made begins calls, without another use, and joins them.
    let once = rig.token(&key, json!({"direct": true, "uses": 1, "user": "ann"})).await;
    let secret = rig.post(SECRETS, &once, json!({})).await.json()["value"].as_str().unwrap().to_owned();
    let (got, call) = begin(&rig, &secret).await;
    assert_eq!(got.status, 201, "{}", got.text);
    assert!(rig.dial(&format!("/v1/realtime?call_id={call}"), &once).await.is_ok(), "its user's own call");
}

#[tokio::test]
async fn a_secret_that_the_service_refuses_is_given_to_nobody_any_more() {
    let (rig, key) = rig(|_| {}, SimConfig::default(), "").await;
    let mint = async || rig.post(SECRETS, &key, json!({})).await.json()["value"].as_str().unwrap().to_owned();
    let first = mint().await;
    assert_eq!(mint().await, first);
    rig.sim.revoke_secrets();
    let refused = answer(sdp(&rig, &first, OFFER)).await;
    assert_eq!((refused.status, refused.code().as_str()), (401, "invalid_api_key"), "the client is to get another one");
    let second = mint().await;
    assert_ne!(second, first);
    rig.sim.revoke_secrets();
    let mut call = rig.dial("/v1/realtime", &second).await.unwrap();
    assert_eq!(call.end().await.1, 3000);
    assert_ne!(mint().await, second);
}

#[tokio::test]
async fn a_call_whose_answer_was_lost_is_hung_up() {
    let (rig, key) =
        rig(|c| c.upstream.session_timeout_ms = 1_000, SimConfig { stall_answers: true, ..SimConfig::default() }, "")
            .await;
    let (got, _) = begin(&rig, &key).await;
    assert!(got.status >= 500, "{}", got.text);
    until("it is hung up", || rig.sim.stats().calls == 1 && rig.sim.live_calls() == 0).await;
}

/// What the service refused for a limit, and where.
#[derive(Debug, Clone, Copy)]
enum Refused {
    Sdp,
    Accept,
    HangUp,
    Mint,
    /// The session that is tried before a secret is given away.
    Trial,
}

/// A relay whose service has refused that; with `code`, 429 and a wait of a minute.
async fn after_refusal(what: Refused, code: &str) -> (Rig, String) {
    let door = match what {
        Refused::Sdp => "calls",
        Refused::Accept | Refused::HangUp => "acts",
        Refused::Mint => "mint",
        Refused::Trial => "session",
    };
    let faults = format!(
        "[[fault]]\nkind = \"refuse\"\ndoor = \"{door}\"\nsession = 1\nstatus = 429\nretry_after_s = 60\n\
         body = \"{{\\\"error\\\":{{\\\"code\\\":\\\"{code}\\\"}}}}\"\n"
    );
    let (rig, key) = rig(|_| {}, SimConfig::instant(), &faults).await;
    let got = match what {
        Refused::Sdp => begin(&rig, &key).await.0,
        Refused::Accept => {
            rig.sim.ring("rtc_rings");
            rig.post(&format!("{CALLS}/rtc_rings/accept"), &key, json!({})).await
        }
        Refused::HangUp => {
            let (_, call) = begin(&rig, &key).await;
            rig.post(&format!("{CALLS}/{call}/hangup"), &key, json!({})).await
        }
        Refused::Mint | Refused::Trial => rig.post(SECRETS, &key, json!({})).await,
    };
    assert_eq!(got.status, 429, "{what:?}: {}", got.text);
    let stats = rig.sim.stats();
    let refused = stats.refused.get(&429).copied().unwrap_or_default()
        + stats.rest_refused.get(&429).copied().unwrap_or_default();
    assert_eq!(refused, 1, "{what:?}");
    (rig, key)
}

#[tokio::test]
async fn a_session_that_is_refused_for_a_limit_holds_back_the_others_whichever_way_it_was_asked_for() {
    for (what, code, held) in [
        (Refused::Sdp, "rate_limit_exceeded", true),
        (Refused::Sdp, "", true),
        (Refused::Accept, "rate_limit_exceeded", true),
        (Refused::Trial, "rate_limit_exceeded", true),
        // No money is no moment to wait for; and these begin no session.
        (Refused::Sdp, "insufficient_quota", false),
        (Refused::Mint, "rate_limit_exceeded", false),
        (Refused::HangUp, "rate_limit_exceeded", false),
    ] {
        let (rig, key) = after_refusal(what, code).await;
        let dialled = rig.sim.stats().sessions_opened + rig.sim.stats().refused.values().sum::<u64>();
        let mut call = rig.dial("/v1/voice?turns=manual&pace=fast", &key).await.unwrap();
        call.json(r#"{"type":"text","text":"Hello."}"#).await;
        if !held {
            call.until("reply_started").await;
            continue;
        }
        let error = call.until("error").await["error"].clone();
        let message = error["message"].as_str().unwrap();
        assert!(error["code"] == "rate_limited" && message.contains("connects: need 1, have 0"), "{what:?}: {error}");
        let wait = error["retry_after_ms"].as_u64().unwrap();
        assert!((50_000..=60_000).contains(&wait), "{what:?}: {wait}, not the minute that was named once");
        let stats = rig.sim.stats();
        assert_eq!(stats.sessions_opened + stats.refused.values().sum::<u64>(), dialled, "{what:?}: it was dialled");
    }
}

#[tokio::test]
async fn what_rest_answers_say_is_left_is_of_their_address_and_keeps_no_reply_back() {
    // One request a minute over REST, of which none is left.
    let mut sim = SimConfig::instant();
    sim.rate_limits.rest_requests = 1;
    let (rig, key) = rig(|c| c.turns.govern = Govern::Always, sim, "").await;
    assert_eq!(rig.post(SECRETS, &key, json!({})).await.status, 200);
    assert_eq!(begin(&rig, &key).await.0.status, 201);
    let mut call = rig.dial("/v1/voice?turns=manual&pace=fast", &key).await.unwrap();
    for _ in 0..3 {
        call.json(r#"{"type":"text","text":"Hello."}"#).await;
        loop {
            match call.next().await {
                Got::Json(message) if message["type"] == "reply_started" => break,
                Got::Json(message) => {
                    assert!(message["type"] != "error" && message["code"] != "throttled", "{message}")
                }
                Got::Audio(_) => {}
                end => panic!("{end:?}"),
            }
        }
        call.json(r#"{"type":"interrupt"}"#).await;
        call.until("reply_ended").await;
    }
    let upstream = rig.ask("GET", "/v1/limits", &key).await.json()["upstream"].clone();
    assert_eq!(upstream["buckets"]["requests"]["remaining"], 0, "it is shown: {upstream}");
    let requests = &upstream["quota"]["gpt-realtime-2.1"]["dimensions"][0];
    assert_eq!((&requests["dimension"], &requests["learned"]), (&json!("requests"), &json!(false)), "{requests}");
}
