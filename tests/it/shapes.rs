//! Clients and services in other shapes than each other's: every door on compatible servers and on Azure.
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use voxrelay::{
    audio::{Format, lane::Uplink},
    config::{Config, Dialect, Secret},
    sim::{Shape, SimConfig},
};

use crate::support::{Client, Got, Rig, clip};

const GA: &str = "/v1/realtime?model=gpt-realtime-2.1";
const PREVIEW: &str = "/openai/realtime?api-version=2025-04-01-preview&deployment=gpt-realtime-2.1";

async fn rig(sim: SimConfig, change: impl FnOnce(&mut Config)) -> Rig {
    Rig::with(change, sim, "").await
}

fn beta(pcm16_rate: u32) -> SimConfig {
    SimConfig { shape: Shape::Beta, pcm16_rate, ..SimConfig::default() }
}

async fn dial(rig: &Rig, path: &str) -> Client {
    Client::connect(&format!("ws://{}{path}", rig.relay.addr())).await
}

/// A turn by hand of a GA client, or of a legacy one; what came back, and every event.
async fn turn(client: &mut Client, legacy: bool, said: &[u8]) -> (Vec<u8>, Vec<Value>) {
    let mut events = vec![client.until("session.created").await];
    client
        .json(if legacy {
            r#"{"type":"session.update","session":{"modalities":["text","audio"],"turn_detection":null}}"#
        } else {
            r#"{"type":"session.update","session":{"type":"realtime","audio":{"input":{"turn_detection":null}}}}"#
        })
        .await;
    events.push(client.until("session.updated").await);
    for piece in said.chunks(9_600) {
        client.json(&format!(r#"{{"type":"input_audio_buffer.append","audio":"{}"}}"#, STANDARD.encode(piece))).await;
    }
    client.json(r#"{"type":"input_audio_buffer.commit"}"#).await;
    client.json(r#"{"type":"response.create"}"#).await;
    let delta = if legacy { "response.audio.delta" } else { "response.output_audio.delta" };
    let mut audio = Vec::new();
    loop {
        let event = client.json_next().await;
        assert_ne!(event["type"], "error", "{event}");
        if event["type"] == delta {
            audio.extend(STANDARD.decode(event["delta"].as_str().unwrap()).unwrap());
        }
        let over = event["type"] == "response.done";
        events.push(event);
        if over {
            return (audio, events);
        }
    }
}

fn kinds(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["type"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_client_speaks_to_a_service_in_the_shape_of_the_beta() {
    let rig = rig(beta(24_000), |c| c.upstream.dialect = Dialect::Beta).await;
    let said = clip("assets/hello.wav");
    let (heard, events) = turn(&mut dial(&rig, GA).await, false, &said).await;
    assert!(heard == said, "a GA client");
    assert_eq!(events[1]["session"]["audio"]["input"]["format"], json!({"type": "audio/pcm", "rate": 24_000}));
    let kinds = kinds(&events);
    let many = |kind: &str| kinds.iter().filter(|k| **k == kind).count();
    assert_eq!((many("conversation.item.added"), many("conversation.item.done")), (2, 2), "{kinds:?}");
    assert!(many("response.output_audio_transcript.done") == 1 && many("response.audio.delta") == 0);
    let (heard, events) = turn(&mut dial(&rig, PREVIEW).await, true, &said).await;
    assert!(heard == said, "a legacy client");
    assert!(events[0]["session"]["modalities"].is_array());
    // A thin client.
    let mut thin = rig.call("turns=manual&pace=fast").await;
    for piece in said.chunks(9_600) {
        thin.audio(piece).await;
    }
    thin.json(r#"{"type":"commit"}"#).await;
    let mut heard = Vec::new();
    loop {
        match thin.next().await {
            Got::Audio(audio) => heard.extend(audio),
            Got::Json(message) if message["type"] == "reply_ended" => break,
            Got::Json(message) => assert_ne!(message["type"], "error", "{message}"),
            end => panic!("{end:?}"),
        }
    }
    assert!(heard.starts_with(&said), "{} bytes of {}", heard.len(), said.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tool_is_called_by_its_name_through_a_service_that_leaves_it_out() {
    let rig = rig(beta(24_000), |c| c.upstream.dialect = Dialect::Beta).await;
    let mut client = dial(&rig, GA).await;
    client
        .json(r#"{"type":"session.update","session":{"type":"realtime","tools":[{"type":"function","name":"look_up","parameters":{"type":"object"}}]}}"#)
        .await;
    client
        .json(r#"{"type":"conversation.item.create","item":{"type":"message","role":"user","content":[{"type":"input_text","text":"call look_up {}"}]}}"#)
        .await;
    client.json(r#"{"type":"response.create"}"#).await;
    let done = client.until("response.function_call_arguments.done").await;
    assert_eq!(done["name"], "look_up", "{done}");
    client.until("conversation.item.done").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_hears_16_khz_gets_it() {
    let rig = rig(beta(16_000), |c| {
        c.upstream.dialect = Dialect::Beta;
        c.upstream.input_rate = 16_000;
    })
    .await;
    let said = clip("assets/hello.wav");
    let mut low = Vec::new();
    Uplink::towards(Format::PCM_24K, 16_000).push(&said, &mut low).unwrap();
    let (heard, _) = turn(&mut dial(&rig, GA).await, false, &said).await;
    let sent = rig.sim.stats().append_bytes;
    assert!(sent.abs_diff(low.len() as u64) < 640, "{sent} bytes at 16 kHz, {} expected", low.len());
    // It speaks back what it heard, at 24 kHz again: as long, and as loud.
    assert!(heard.len().abs_diff(said.len()) < 4_800, "{} of {}", heard.len(), said.len());
    let power = |bytes: &[u8]| {
        let samples = bytes.as_chunks::<2>().0;
        samples.iter().map(|s| f64::from(i16::from_le_bytes(*s)).powi(2)).sum::<f64>() / samples.len() as f64
    };
    assert!((power(&heard) / power(&said) - 1.0).abs() < 0.1);
    let mut thin = rig.call("turns=manual&rate=8000").await;
    thin.audio(&vec![0; 16_000]).await;
    thin.json(r#"{"type":"commit"}"#).await;
    thin.until("reply_started").await;
    assert!((rig.sim.stats().append_bytes - sent).abs_diff(32_000) < 640, "a second from 8 to 16 kHz");
}

#[tokio::test(flavor = "multi_thread")]
async fn azure_is_dialled_by_its_paths_and_its_key() {
    let said = clip("assets/hello.wav");
    for version in [None, Some("2025-04-01-preview")] {
        let rig = rig(SimConfig::default(), |c| {
            c.upstream.dialect = Dialect::Azure;
            c.upstream.api_version = version.map(str::to_owned);
        })
        .await;
        let (heard, _) = turn(&mut dial(&rig, GA).await, false, &said).await;
        assert!(heard == said, "{version:?}");
        let mut transcribing = dial(&rig, "/v1/realtime?intent=transcription").await;
        if version.is_none() {
            assert_eq!(transcribing.json_next().await["session"]["type"], "transcription");
        }
    }
    for (key, model, code, close) in [
        ("sk-bad-key", "gpt-realtime-2.1", "upstream_auth", 3000),
        ("sk-good", "no-such-deployment", "upstream_refused", 4000),
    ] {
        let rig = rig(SimConfig::default(), |c| {
            c.upstream.dialect = Dialect::Azure;
            c.upstream.api_key = Some(Secret::new(key));
        })
        .await;
        let mut client = dial(&rig, &format!("/v1/realtime?model={model}")).await;
        assert_eq!(client.end().await, (Some(code.to_owned()), close), "{key} {model}: {:?}", rig.sim.stats().refused);
    }
}
