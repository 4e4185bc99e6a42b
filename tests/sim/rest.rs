//! The REST side, over real sockets: what a client of the service would see.
use std::time::Duration;

use futures_util::StreamExt as _;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::{self, Message, client::IntoClientRequest as _};
use voxrelay::sim::{Faults, Sim, SimConfig};

const OFFER: &str = "v=0\r\no=- 5 2 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\nm=audio 9 UDP/TLS/RTP/SAVPF 111\r\na=mid:0\r\n\
                     a=rtpmap:111 opus/48000/2\r\n";

async fn sim(config: SimConfig, faults: &str) -> Sim {
    Sim::start("127.0.0.1:0".parse().unwrap(), config, Faults::from_toml(faults).unwrap()).await.unwrap()
}

/// A client without TLS, which still wants to be told which cryptography it does not use.
fn http() -> reqwest::Client {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    reqwest::Client::new()
}

struct Answer {
    status: u16,
    headers: reqwest::header::HeaderMap,
    text: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap()
    }

    fn code(&self) -> String {
        self.json()["error"]["code"].as_str().unwrap_or_default().to_owned()
    }
}

async fn post(sim: &Sim, path: &str, key: &str, kind: &str, body: impl Into<reqwest::Body>) -> Answer {
    let request = http().post(format!("{}{path}", sim.base_url())).header("content-type", kind);
    let response = request.bearer_auth(key).body(body).send().await.unwrap();
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    Answer { status, headers, text: response.text().await.unwrap() }
}

async fn mint(sim: &Sim, body: Value) -> Answer {
    post(sim, "/realtime/client_secrets", "sk-good", "application/json", body.to_string()).await
}

/// The first message of a socket, and the close code if that comes first.
async fn first(sim: &Sim, query: &str, key: &str) -> Result<Value, u16> {
    let mut request = format!("ws://{}/v1/realtime{query}", sim.addr()).into_client_request().unwrap();
    request.headers_mut().insert("authorization", format!("Bearer {key}").parse().unwrap());
    let tcp = tokio::net::TcpStream::connect(sim.addr()).await.unwrap();
    let mut ws = match tokio_tungstenite::client_async(request, tcp).await {
        Ok((ws, _)) => ws,
        Err(tungstenite::Error::Http(response)) => return Err(response.status().as_u16()),
        Err(error) => panic!("{error}"),
    };
    loop {
        match ws.next().await.unwrap().unwrap() {
            Message::Text(text) => {
                let event: Value = serde_json::from_str(&text).unwrap();
                if event["type"] != "error" {
                    return Ok(event);
                }
            }
            Message::Close(frame) => return Err(frame.unwrap().code.into()),
            _ => {}
        }
    }
}

#[tokio::test]
async fn a_secret_opens_many_sessions_as_it_was_configured_until_it_expires() {
    let sim = sim(SimConfig { secret_min_s: 1, ..SimConfig::instant() }, "").await;
    let session = json!({"type": "realtime", "model": "gpt-realtime-2.1", "instructions": "Be brief."});
    let answer = mint(&sim, json!({"expires_after": {"anchor": "created_at", "seconds": 1}, "session": session})).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert!(answer.headers.contains_key("date") && answer.headers.contains_key("x-ratelimit-limit-requests"));
    let key = answer.json()["value"].as_str().unwrap().to_owned();
    assert!(key.starts_with("ek_"));
    assert_eq!(answer.json()["session"]["instructions"], "Be brief.");
    for query in ["", "", "?model=gpt-realtime-2.1"] {
        let created = first(&sim, query, &key).await.unwrap();
        assert_eq!(created["session"]["instructions"], "Be brief.", "{query}");
        assert_eq!(created["session"]["model"], "gpt-realtime-2.1", "{query}");
    }
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    assert_eq!(first(&sim, "", &key).await, Err(3_000));
    assert_eq!(first(&sim, "", "ek_unknown").await, Err(3_000));
    assert_eq!(sim.stats().sessions_by_secret, 3);
}

#[tokio::test]
async fn minting_is_refused_as_the_service_does() {
    let sim = sim(SimConfig::instant(), "").await;
    for (body, code) in [
        (json!({"expires_after": {"seconds": 9}}), "integer_below_min_value"),
        (json!({"expires_after": {"seconds": 7_201}}), "integer_above_max_value"),
        (json!({"expires_after": {"seconds": "600"}}), "invalid_type"),
        (json!({"expires_after": {"anchor": "now", "seconds": 600}}), "invalid_value"),
        (json!({"session": {"type": "realtime", "bogus": 1}}), "unknown_parameter"),
        (
            json!({"session": {"type": "realtime", "audio": {"input": {"format": {"type": "audio/pcm", "rate": 16_000}}}}}),
            "integer_below_min_value",
        ),
    ] {
        let answer = mint(&sim, body.clone()).await;
        assert_eq!((answer.status, answer.code().as_str()), (400, code), "{body}");
    }
    for (key, status, code) in [
        ("sk-bad-key", 401, "invalid_api_key"),
        ("sk-no-credit", 429, "insufficient_quota"),
        ("ek_1", 401, "invalid_api_key"),
    ] {
        let answer = post(&sim, "/realtime/client_secrets", key, "application/json", "{}").await;
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{key}");
    }
    assert_eq!(
        mint(&sim, json!({"session": {"type": "realtime", "model": "gpt-4o-realtime-preview"}})).await.status,
        200
    );
    let stats = sim.stats();
    assert_eq!((stats.mint_attempts, stats.mints), (10, 1));
}

#[tokio::test]
async fn faults_stand_at_their_doors() {
    let faults = "[[fault]]\nkind = \"refuse\"\ndoor = \"mint\"\nsession = 1\nstatus = 429\nretry_after_s = 2\n\
                  [[fault]]\nkind = \"expiry\"\noffset_s = -5\nsession = 2\n\
                  [[fault]]\nkind = \"refuse\"\ndoor = \"calls\"\nstatus = 503\ntimes = 1\n";
    let sim = sim(SimConfig::instant(), faults).await;
    let refused = mint(&sim, json!({})).await;
    assert_eq!((refused.status, refused.headers["retry-after"].to_str().unwrap()), (429, "2"));
    let expired = mint(&sim, json!({})).await.json()["expires_at"].as_u64().unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    assert!(expired < now, "{expired} {now}");
    assert!(mint(&sim, json!({})).await.json()["expires_at"].as_u64().unwrap() > now);
    for status in [503, 201] {
        assert_eq!(post(&sim, "/realtime/calls", "sk-good", "application/sdp", OFFER).await.status, status);
    }
    assert!(first(&sim, "?model=gpt-realtime", "sk-good").await.is_ok(), "the sessions' door is another one");
    assert_eq!(sim.stats().faults["refuse"], 2);
    assert!(Faults::from_toml("[[fault]]\nkind = \"refuse\"\ndoor = \"back\"\n").unwrap_err().contains("\"mint\""));
}

#[tokio::test]
async fn calls_are_answered_joined_and_hung_up() {
    let sim = sim(SimConfig { caller_speaks_ms: 1, ..SimConfig::instant() }, "").await;
    let form = reqwest::multipart::Form::new()
        .text("sdp", OFFER)
        .text("session", json!({"type": "realtime", "model": "gpt-realtime"}).to_string());
    let request = http().post(format!("{}/realtime/calls", sim.base_url())).bearer_auth("sk-good");
    let response = request.multipart(form).send().await.unwrap();
    assert_eq!(response.status(), 201);
    let place = response.headers()["location"].to_str().unwrap().to_owned();
    assert!(response.text().await.unwrap().starts_with("v=0"));
    let id = place.rsplit('/').next().unwrap().to_owned();
    assert!(first(&sim, &format!("?call_id={id}"), "sk-good").await.is_ok());
    assert_eq!(first(&sim, "?call_id=rtc_unknown", "sk-good").await, Err(404));
    for (act, body, status) in [
        ("refer", "{}", 400),
        ("refer", r#"{"target_uri":"tel:+491234"}"#, 200),
        ("accept", "{}", 409),
        ("hangup", "", 200),
        ("hangup", "", 404),
        ("sing", "", 404),
    ] {
        let answer = post(&sim, &format!("/realtime/calls/{id}/{act}"), "sk-good", "application/json", body).await;
        assert_eq!(answer.status, status, "{act}: {}", answer.text);
    }
    assert_eq!(first(&sim, &format!("?call_id={id}"), "sk-good").await, Err(404));
    sim.ring("rtc_sip");
    assert_eq!(first(&sim, "?call_id=rtc_sip", "sk-good").await, Err(404), "nobody has taken it yet");
    let session = json!({"type": "realtime", "model": "gpt-realtime"}).to_string();
    assert_eq!(post(&sim, "/realtime/calls/rtc_sip/accept", "sk-good", "application/json", session).await.status, 200);
    assert_eq!(sim.live_calls(), 1);
    for (kind, body, status) in [
        ("application/sdp", "", 400),
        ("application/sdp", "hello", 400),
        ("text/plain", OFFER, 415),
        ("multipart/form-data; boundary=x", "nothing", 400),
    ] {
        assert_eq!(post(&sim, "/realtime/calls", "sk-good", kind, body).await.status, status, "{kind}");
    }
}

#[tokio::test]
async fn who_joins_a_call_hears_what_it_costs_and_no_audio() {
    let sim = sim(SimConfig { caller_speaks_ms: 1, ..SimConfig::instant() }, "").await;
    let place = post(&sim, "/realtime/calls", "sk-good", "application/sdp", OFFER).await.headers["location"]
        .to_str()
        .unwrap()
        .to_owned();
    let id = place.rsplit('/').next().unwrap();
    let mut request = format!("ws://{}/v1/realtime?call_id={id}", sim.addr()).into_client_request().unwrap();
    request.headers_mut().insert("authorization", "Bearer sk-good".parse().unwrap());
    let tcp = tokio::net::TcpStream::connect(sim.addr()).await.unwrap();
    let (mut ws, _) = tokio_tungstenite::client_async(request, tcp).await.unwrap();
    let mut kinds = Vec::new();
    while kinds.last().is_none_or(|kind| kind != "response.done") {
        if let Message::Text(text) = ws.next().await.unwrap().unwrap() {
            let event: Value = serde_json::from_str(&text).unwrap();
            kinds.push(event["type"].as_str().unwrap().to_owned());
            assert!(
                event["type"] != "response.done" || event["response"]["usage"]["total_tokens"].as_u64().unwrap() > 0
            );
        }
    }
    assert!(!kinds.iter().any(|kind| kind == "response.output_audio.delta"), "{kinds:?}");
    post(&sim, &format!("/realtime/calls/{id}/hangup"), "sk-good", "application/json", "").await;
    let closed = loop {
        if let Message::Close(frame) = ws.next().await.unwrap().unwrap() {
            break frame.unwrap().code;
        }
    };
    assert_eq!(u16::from(closed), 1_000);
}
