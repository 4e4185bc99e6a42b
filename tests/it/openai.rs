//! The OpenAI door from outside: any client of the Realtime protocol, good and bad, against the relay and its simulator.
use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use tokio::time;
use voxrelay::{
    config::{OtherModels, PolicyConfig, Rule},
    sim::SimConfig,
};

use crate::support::{Client, Got, Raw, Rig, clip, get};

const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

async fn dial(rig: &Rig, path: &str) -> Client {
    Client::connect(&format!("ws://{}{path}", rig.relay.addr())).await
}

async fn session(rig: &Rig) -> Client {
    let mut client = dial(rig, "/v1/realtime?model=gpt-realtime-2.1").await;
    assert_eq!(client.json_next().await["type"], "session.created");
    client
}

async fn manual(rig: &Rig) -> Client {
    let mut client = session(rig).await;
    client
        .json(r#"{"type":"session.update","session":{"type":"realtime","audio":{"input":{"turn_detection":null}}}}"#)
        .await;
    client.until("session.updated").await;
    client
}

fn append(audio: &[u8]) -> String {
    format!(r#"{{"type":"input_audio_buffer.append","audio":"{}"}}"#, STANDARD.encode(audio))
}

/// Commits what was said and collects the reply's audio.
async fn answer(client: &mut Client) -> Vec<u8> {
    client.json(r#"{"type":"input_audio_buffer.commit"}"#).await;
    client.json(r#"{"type":"response.create"}"#).await;
    reply(client).await
}

async fn reply(client: &mut Client) -> Vec<u8> {
    let mut audio = Vec::new();
    loop {
        let event = client.json_next().await;
        match event["type"].as_str().unwrap() {
            "response.output_audio.delta" => audio.extend(STANDARD.decode(event["delta"].as_str().unwrap()).unwrap()),
            "response.done" => {
                assert_eq!(event["response"]["status"], "completed", "{event}");
                return audio;
            }
            "error" => panic!("{event}"),
            _ => {}
        }
    }
}

async fn error_code(client: &mut Client) -> String {
    client.until("error").await["error"]["code"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_said_comes_back_to_the_byte_by_hand_and_by_voice_activity() {
    let rig = Rig::new().await;
    let said = clip("assets/hello.wav");
    let mut client = manual(&rig).await;
    for piece in said.chunks(4_802) {
        client.json(&append(piece)).await;
    }
    assert!(answer(&mut client).await == said, "the manual turn's audio");
    let mut client = session(&rig).await;
    let patient = json!({"type": "server_vad", "silence_duration_ms": 900});
    let update = json!({"type": "realtime", "audio": {"input": {"turn_detection": patient}}});
    client.json(&json!({"type": "session.update", "session": update}).to_string()).await;
    for piece in said.chunks(960) {
        client.json(&append(piece)).await;
    }
    client.json(&append(&vec![0; 48_000])).await;
    client.until("input_audio_buffer.speech_stopped").await;
    let heard = reply(&mut client).await;
    let at = said.windows(4_800).position(|w| w == &heard[..4_800]).expect("it begins within what was said");
    let common = heard.len().min(said.len() - at);
    assert!(common > 48_000 && heard[..common] == said[at..at + common]);
}

#[tokio::test(flavor = "multi_thread")]
async fn binary_frames_are_audio_and_events_may_come_before_the_session() {
    let rig =
        Rig::with(|_| {}, toml::from_str("[delays]\nconnect = 300\n").unwrap_or_else(|e| panic!("{e}")), "").await;
    let said = clip("assets/hello.wav");
    let mut client = dial(&rig, "/v1/realtime?model=gpt-realtime-2.1").await;
    client
        .json(r#"{"type":"session.update","session":{"type":"realtime","audio":{"input":{"turn_detection":null}}}}"#)
        .await;
    for piece in said.chunks(961) {
        client.audio(piece).await;
    }
    assert_eq!(client.json_next().await["type"], "session.created", "first and unprompted");
    assert!(answer(&mut client).await == said);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_append_of_the_services_own_longest_and_one_of_a_byte() {
    let rig = Rig::with(|_| {}, toml::from_str("max_buffer_s = 1000\n").unwrap(), "").await;
    let mut client = manual(&rig).await;
    let audio: Vec<u8> = (0..15_728_640u32).map(|n| (n / 7 % 251) as u8).collect();
    let text = append(&audio);
    assert_eq!(text.len() - r#"{"type":"input_audio_buffer.append","audio":""}"#.len(), 20_971_520);
    client.json(&text).await;
    client.json(r#"{"type":"input_audio_buffer.commit"}"#).await;
    client.until("input_audio_buffer.committed").await;
    let stats = rig.sim.stats();
    assert_eq!((stats.errors.len(), stats.append_bytes, stats.appends), (0, 15_728_640, 2), "in two parts");
    client.json(&append(&[1])).await;
    assert_eq!(error_code(&mut client).await, "invalid_value", "half a sample, says the service");
    // One more character than the service takes is told, and the call goes on.
    client.json(&format!(r#"{{"type":"input_audio_buffer.append","audio":"{}"}}"#, "A".repeat(21_100_000))).await;
    assert_eq!(client.end().await, (Some("message_too_large".into()), 1009));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_longest_appends_back_to_back_all_arrive() {
    let rig = Rig::with(|_| {}, toml::from_str("max_buffer_s = 2000\n").unwrap(), "").await;
    let mut client = manual(&rig).await;
    let text = append(&vec![7; 15_728_640]);
    for _ in 0..4 {
        client.json(&text).await;
    }
    client.json(r#"{"type":"input_audio_buffer.commit"}"#).await;
    client.until("input_audio_buffer.committed").await;
    assert_eq!((rig.sim.stats().append_bytes, rig.sim.stats().appends), (4 * 15_728_640, 8));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_while_the_service_is_dialled_is_kept_whole() {
    let rig = Rig::with(|_| {}, toml::from_str("[delays]\nconnect = 1500\n").unwrap(), "").await;
    let mut client = dial(&rig, "/v1/realtime").await;
    // More than is held before the client is left alone, and behind it small messages in the same breath.
    let image = format!("data:image/png;base64,{}", "A".repeat(1_300_000));
    let item = json!({"type": "message", "role": "user", "content": [{"type": "input_image", "image_url": image}]});
    client.json(&json!({"type": "conversation.item.create", "event_id": "big", "item": item}).to_string()).await;
    for n in 0..200 {
        client
            .json(
                &json!({"type": "conversation.item.delete", "event_id": format!("n{n}"), "item_id": "none"})
                    .to_string(),
            )
            .await;
    }
    assert_eq!(client.json_next().await["type"], "session.created");
    for n in 0..200 {
        assert_eq!(client.until("error").await["error"]["event_id"], format!("n{n}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_hangs_up_in_the_middle_of_a_reply_gets_its_goodbye_back() {
    let rig = Rig::new().await;
    for _ in 0..5 {
        let mut client = manual(&rig).await;
        client.json(&append(&clip("assets/hello.wav"))).await;
        client.json(r#"{"type":"input_audio_buffer.commit"}"#).await;
        client.json(r#"{"type":"response.create"}"#).await;
        client.until("response.output_audio.delta").await;
        assert_eq!(client.until_closed_by_us().await, Got::Closed(1000));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_events_are_answered_as_the_service_would_and_the_call_goes_on() {
    let rig = Rig::new().await;
    let mut client = manual(&rig).await;
    for (text, code) in [
        ("no json", "invalid_json"),
        ("[]", "invalid_event"),
        (r#"{"event_id":"x"}"#, "invalid_event"),
        (r#"{"type":"input_audio_buffer.append","audio":"not base64!"}"#, "invalid_value"),
        (r#"{"type":"input_audio_buffer.append"}"#, "missing_required_parameter"),
        (r#"{"type":"input_audio_buffer.commit"}"#, "input_audio_buffer_commit_empty"),
        (r#"{"type":"response.cancel"}"#, "response_cancel_not_active"),
        (
            r#"{"type":"conversation.item.truncate","item_id":"nobody","content_index":0,"audio_end_ms":1}"#,
            "item_truncate_invalid_item_id",
        ),
        (r#"{"type":"session.update","session":{"type":"realtime","bogus":1}}"#, "unknown_parameter"),
        (r#"{"type":"of_tomorrow"}"#, "invalid_value"),
    ] {
        client.json(text).await;
        assert_eq!(error_code(&mut client).await, code, "{text}");
    }
    client.json(r#"{"type":"response.create","event_id":"one"}"#).await;
    client.json(r#"{"type":"response.create","event_id":"two"}"#).await;
    let error = client.until("error").await;
    assert_eq!(error["error"]["code"], "conversation_already_has_active_response");
    assert_eq!(error["error"]["event_id"], "two");
    client.until("response.done").await;
    client.json(&append(&clip("assets/hello.wav"))).await;
    assert!(!answer(&mut client).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_look_like_the_services_own() {
    let rig = Rig::configured(|c| c.openai.other_models = OtherModels::Refuse).await;
    for (path, headers, status, code, param) in [
        ("/v1/realtime?model=gpt-of-tomorrow", "", 404, "model_not_found", "model"),
        ("/v1/realtime?intent=singing", "", 400, "invalid_value", "intent"),
        ("/v1/realtime?intent=transcription&model=gpt-transcribe", "", 400, "invalid_value", "model"),
        ("/v1/realtime?agent=nobody", "", 404, "unknown_agent", "agent"),
        ("/v1/realtime", "Origin: https://evil.example\r\n", 403, "forbidden", ""),
        (
            "/v1/realtime",
            "Sec-WebSocket-Protocol: other, openai-insecure-api-key.SECRET\r\n",
            400,
            "invalid_subprotocol",
            "",
        ),
    ] {
        let (got, body, text) = get(&rig, path, &format!("{UPGRADE}{headers}")).await;
        assert_eq!((got, body["error"]["code"].as_str()), (status, Some(code)), "{path} {headers}: {text}");
        assert_eq!(body["error"]["param"].as_str().unwrap_or_default(), param);
        assert!(body["error"]["message"].is_string() && body["error"]["type"] == "invalid_request_error");
        assert!(!text.contains("SECRET"));
    }
    let (status, body, text) = get(&rig, "/v1/realtime?model=gpt-realtime-2.1", "").await;
    assert_eq!((status, body["error"]["code"].as_str()), (426, Some("upgrade_required")), "{text}");
    let (status, _, text) = get(&rig, "/v1/realtime?call_id=rtc_1", UPGRADE).await;
    assert_eq!((status, text.split("\r\n\r\n").nth(1)), (404, Some("")), "as the service: an empty body");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_subprotocol_is_realtime_and_no_key_is_echoed() {
    let rig = Rig::new().await;
    for (headers, answered) in [
        ("", false),
        ("Authorization: Bearer SECRET\r\n", false),
        ("api-key: SECRET\r\n", false),
        ("Sec-WebSocket-Protocol: realtime, openai-insecure-api-key.SECRET, openai-agents-sdk.0.20\r\n", true),
        ("Sec-WebSocket-Protocol: openai-insecure-api-key.SECRET, realtime\r\nAuthorization: Bearer SECRET\r\n", true),
        ("Sec-WebSocket-Extensions: permessage-deflate\r\n", false),
    ] {
        for path in
            ["/v1/realtime", "/v1/realtime?model=gpt-realtime-2.1", "/openai/v1/realtime?model=gpt-realtime-2.1"]
        {
            let (status, _, text) = get(&rig, path, &format!("{UPGRADE}{headers}")).await;
            let text = text.to_lowercase();
            assert_eq!(status, 101, "{path} {headers}: {text}");
            assert_eq!(text.contains("sec-websocket-protocol: realtime\r\n"), answered, "{headers}: {text}");
            assert!(!text.contains("secret") && !text.contains("extensions"), "{text}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_service_says_to_a_bad_model_is_told_with_its_close_code() {
    let rig = Rig::new().await;
    let mut client = dial(&rig, "/v1/realtime?model=gpt-5").await;
    assert_eq!(client.end().await, (Some("invalid_model".into()), 4000));
    let rig = Rig::configured(|c| c.upstream.api_key = Some(voxrelay::config::Secret::new("sk-no-credit"))).await;
    let mut client = dial(&rig, "/v1/realtime").await;
    assert_eq!(client.end().await, (Some("insufficient_quota".into()), 1013));
    let rig = Rig::configured(|c| c.upstream.api_key = Some(voxrelay::config::Secret::new("sk-bad-key"))).await;
    let mut client = dial(&rig, "/v1/realtime").await;
    assert_eq!(client.end().await, (Some("upstream_auth".into()), 3000));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_ends_each_session_at_once_is_told_in_its_own_words() {
    let expired = "[[fault]]\nkind = \"close\"\nat_ms = 200\ncode = 1001\n\
                   reason = \"Your session hit the maximum duration of 60 minutes.\"\n";
    let rig = Rig::with(|_| {}, SimConfig::default(), expired).await;
    let mut client = session(&rig).await;
    assert_eq!(client.end().await, (Some("session_expired".into()), 1001));
    assert!(rig.sim.stats().faults.get("close").is_some_and(|times| *times > 5), "it was tried again before");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agents_policy_holds() {
    let rig = Rig::configured(|c| {
        let agent = c.agents.get_mut("default").unwrap();
        agent.instructions = "Be brief.".into();
        agent.max_output_tokens = Some(300);
        agent.policy = PolicyConfig {
            instructions: Rule::Force,
            max_output_tokens: Rule::Force,
            voice: Rule::Default,
            ..PolicyConfig::default()
        };
    })
    .await;
    let mut client = dial(&rig, "/v1/realtime").await;
    let created = client.json_next().await;
    let session = |event: &Value| {
        let s = &event["session"];
        (s["instructions"].clone(), s["max_output_tokens"].clone(), s["audio"]["output"]["voice"].clone())
    };
    assert_eq!(
        (created["type"].as_str(), session(&created)),
        (Some("session.created"), (json!("Be brief."), json!(300), json!("marin")))
    );
    client
        .json(r#"{"type":"session.update","session":{"type":"realtime","instructions":"Obey.","max_output_tokens":"inf","audio":{"output":{"voice":"cedar"}}}}"#)
        .await;
    assert_eq!(session(&client.until("session.updated").await), (json!("Be brief."), json!(300), json!("cedar")));
    client.json(r#"{"type":"session.update","session":{"type":"realtime","max_output_tokens":100}}"#).await;
    assert_eq!(session(&client.until("session.updated").await).1, json!(100));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_during_the_handshake_leaves_nothing_behind() {
    let rig = Rig::configured(|c| c.server.max_calls = 1).await;
    for _ in 0..3 {
        let mut raw = Raw::connect(rig.relay.addr()).await;
        raw.send(format!("GET /v1/realtime HTTP/1.1\r\nHost: localhost\r\n{UPGRADE}\r\n").as_bytes()).await;
        drop(raw); // during the handshake
    }
    // The one line that there is is free again, and of the sessions only this client's is left.
    let began = time::Instant::now();
    while get(&rig, "/v1/realtime", "").await.0 != 426 || rig.sim.stats().sessions_now > 0 {
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", rig.sim.stats());
        time::sleep(Duration::from_millis(20)).await;
    }
    let _client = session(&rig).await;
    assert_eq!(rig.sim.stats().sessions_now, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_is_told_and_closed() {
    let rig = Rig::with(|_| {}, toml::from_str("max_buffer_s = 1000\n").unwrap(), "").await;
    let mut client = manual(&rig).await;
    client.json(&append(&vec![7; 9_000_000])).await;
    client.json(r#"{"type":"input_audio_buffer.commit"}"#).await;
    let item = client.until("input_audio_buffer.committed").await["item_id"].clone();
    let retrieve = json!({"type": "conversation.item.retrieve", "item_id": item}).to_string();
    for _ in 0..8 {
        client.json(&retrieve).await; // 12 MB of base64 each, of which nothing is read
    }
    let began = time::Instant::now();
    while rig.sim.stats().sessions_now > 0 {
        assert!(began.elapsed() < Duration::from_secs(60), "the call goes on");
        time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(client.end().await, (Some("slow_consumer".into()), 1013));
    assert_eq!(session(&rig).await.until_closed_by_us().await, Got::Closed(1000), "others go on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leaving_server_says_1001() {
    let rig = Rig::new().await;
    let mut client = session(&rig).await;
    let Rig { relay, sim } = rig;
    let leaving = tokio::task::spawn_blocking(move || {
        tokio::runtime::Handle::current().block_on(relay.drain(std::future::pending()))
    });
    assert_eq!(client.next().await, Got::Closed(1001));
    drop(client);
    leaving.await.unwrap();
    sim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn legacy_clients_speak_the_beta_and_are_answered_in_it() {
    let rig = Rig::new().await;
    let said = clip("assets/hello.wav");
    // By Azure's preview path, and by nothing but the shape of their first update.
    for path in ["/openai/realtime?api-version=2025-04-01-preview&deployment=gpt-4o-realtime-preview", "/v1/realtime"] {
        let mut client = dial(&rig, path).await;
        let created = client.json_next().await;
        assert_eq!(created["type"], "session.created");
        assert_eq!(created["session"]["modalities"].is_array(), path.starts_with("/openai"), "{created}");
        client
            .json(r#"{"type":"session.update","session":{"modalities":["text","audio"],"voice":"alloy","input_audio_format":"pcm16","turn_detection":null,"temperature":0.7}}"#)
            .await;
        let updated = client.until("session.updated").await;
        assert_eq!(updated["session"]["temperature"], 0.7, "{updated}");
        assert_eq!(
            (&updated["session"]["voice"], &updated["session"]["turn_detection"]),
            (&json!("alloy"), &Value::Null)
        );
        for piece in said.chunks(48_000) {
            client.json(&append(piece)).await;
        }
        client.json(r#"{"type":"input_audio_buffer.commit"}"#).await;
        client.json(r#"{"type":"response.create","response":{"modalities":["text","audio"]}}"#).await;
        let (mut audio, mut created, mut kinds) = (Vec::new(), 0, Vec::new());
        loop {
            let event = client.json_next().await;
            let kind = event["type"].as_str().unwrap().to_owned();
            match kind.as_str() {
                "response.audio.delta" => audio.extend(STANDARD.decode(event["delta"].as_str().unwrap()).unwrap()),
                "conversation.item.created" => created += 1,
                "response.done" => {
                    assert_eq!(event["response"]["modalities"], json!(["text", "audio"]));
                    assert_eq!(event["response"]["output"][0]["content"][0]["type"], "audio");
                    break;
                }
                "error" => panic!("{event}"),
                _ => kinds.push(kind),
            }
        }
        assert!(audio == said, "{path}");
        assert_eq!(created, 2, "the caller's turn and the answer, once each");
        assert!(
            !kinds.iter().any(|k| k.contains("output_audio") || k.ends_with("item.added") && k.starts_with("conv"))
        );
    }
}
