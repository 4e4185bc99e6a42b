//! Services that break, stall or reach their session's end under a call that goes on (fault matrix U1-U4, U8).
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time;
use voxrelay::sim::SimConfig;

use crate::{
    resume::{Line, assert_same, numbered, recorded},
    support::{Client, Got, Rig, tenant, until},
};

fn keeping() -> SimConfig {
    SimConfig { record_audio: true, ..SimConfig::default() }
}

fn base64(audio: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(audio)
}

/// How often a fault of the simulator happened.
fn faults(rig: &Rig, kind: &str) -> u64 {
    rig.sim.stats().faults.get(kind).copied().unwrap_or_default()
}

async fn notice(line: &mut Line, code: &str) {
    loop {
        if line.until("notice").await["code"] == code {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn u1_a_reset_while_nothing_happens_is_followed_by_a_session_that_knows_everything() {
    let dies = "[[fault]]\nkind = \"die\"\nsession = 1\nat_ms = 7_500\nreset = true\n";
    let rig = Rig::with(|_| {}, keeping(), dies).await;
    let mut line = Line::begin(&rig, "turns=manual").await;
    line.say(&json!({"type": "text", "text": "my name is Ada"})).await;
    assert_eq!(line.until("reply_ended").await["status"], "completed");
    notice(&mut line, "upstream_reconnecting").await;
    notice(&mut line, "upstream_resumed").await;
    assert_eq!(faults(&rig, "die"), 1);
    line.say(&json!({"type": "text", "text": "what is my name?"})).await;
    assert_eq!(line.until("reply_ended").await["status"], "completed");
    let items = rig.sim.stats().items.into_iter();
    let history: Vec<Value> = items.filter(|(session, _)| *session == 2).map(|(_, item)| item).collect();
    let texts: Vec<&str> = history.iter().map(|item| item["content"][0]["text"].as_str().unwrap_or("audio")).collect();
    assert_eq!((texts[0], texts[2], texts.len()), ("my name is Ada", "what is my name?", 4), "{history:?}");
    assert_eq!(history[1]["role"], "assistant");
    assert!(!texts[1].is_empty());
    assert_eq!(history[3]["content"][0]["type"], "output_audio", "after a text replay the model answers in audio");
}

#[tokio::test(flavor = "multi_thread")]
async fn u2_a_reset_in_the_middle_of_an_answer_never_says_anything_twice() {
    for deltas in [0, 1, 3] {
        let dies =
            format!("[[fault]]\nkind = \"die\"\nsession = 1\nreset = true\nresponse = 1\nafter_deltas = {deltas}\n");
        let rig = Rig::with(|_| {}, keeping(), &dies).await;
        let mut line = Line::begin(&rig, "turns=manual").await;
        let question = numbered(0, 48_000);
        for piece in question.chunks(9_600) {
            line.speak(piece).await;
        }
        line.say(&json!({"type": "commit"})).await;
        let mut ended = line.until("reply_ended").await;
        assert_eq!(ended["status"], "interrupted", "{deltas} deltas");
        let heard = ended["heard_ms"].as_u64().unwrap();
        if deltas == 0 {
            assert_eq!(heard, 0);
            ended = line.until("reply_ended").await; // asked for again, since nothing of it was heard
            assert_eq!((ended["status"].as_str(), ended["heard_ms"].as_u64()), (Some("completed"), Some(2_000)));
            assert_eq!(recorded(&rig).len(), 2);
            assert_same(&recorded(&rig)[1], &question, "the turn was heard again");
            assert_same(&line.audio, &question, "the simulator says back what it heard: once");
        } else {
            assert!(heard > 0 && heard < 2_000, "{heard}");
            assert_same(&line.audio, &question[..line.audio.len()], "what came of it, from its beginning");
            line.say(&json!({"type": "ping", "t": 1})).await;
            line.until("pong").await;
            assert_eq!(line.of("reply_started").len(), 1, "never begun again");
        }
        assert_eq!(faults(&rig, "die"), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn u3_a_reset_in_the_middle_of_an_utterance_loses_no_sample() {
    let dies = "[[fault]]\nkind = \"die\"\nsession = 1\nreset = true\nafter_audio_ms = 900\n\n\
                [[fault]]\nkind = \"die\"\nsession = 2\nafter_audio_ms = 1_500\n";
    let rig = Rig::with(|_| {}, keeping(), dies).await;
    let mut line = Line::begin(&rig, "turns=manual").await;
    let all = numbered(0, 60_000);
    for piece in all.chunks(960) {
        line.speak(piece).await;
        time::sleep(Duration::from_millis(10)).await;
    }
    until("both sessions have died", || faults(&rig, "die") == 2).await;
    line.say(&json!({"type": "commit"})).await;
    let ended = line.until("reply_ended").await;
    assert_eq!((ended["status"].as_str(), ended["audio_ms"].as_u64()), (Some("completed"), Some(2_500)));
    assert_same(&recorded(&rig)[2], &all, "the last session has heard all of it, once and in order");
    assert!(line.of("notice").iter().all(|notice| notice["code"] != "audio_gap"));
}

#[tokio::test(flavor = "multi_thread")]
async fn u4_a_session_is_left_ahead_of_its_cap_and_no_frame_is_lost() {
    let sim = SimConfig { session_cap_ms: 4_000, ..keeping() };
    let rig = Rig::with(|_| {}, sim, "").await;
    let mut line = Line::begin(&rig, "turns=manual").await;
    let (mut said, mut turns) = (Vec::new(), 0);
    for turn in 0..8 {
        let turn = numbered(turn * 12_000, 12_000);
        for piece in turn.chunks(960) {
            line.speak(piece).await;
            time::sleep(Duration::from_millis(20)).await;
        }
        said.push(turn);
        line.say(&json!({"type": "commit"})).await;
        assert_eq!(line.until("reply_ended").await["status"], "completed");
        turns += 1;
    }
    let rotated = line.of("notice").iter().filter(|notice| notice["code"] == "rotated").count();
    assert!(rotated >= 2, "{rotated} rotations in {turns} turns");
    assert!(line.of("notice").iter().all(|notice| notice["code"] == "rotated"), "no session reached its cap");
    assert_same(&line.audio, &said.concat(), "everything was heard and said back, once");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_may_have_a_call_change_its_session() {
    let mut key = String::new();
    let rig = Rig::configured(|c| key = tenant(c, "acme", |_| {})).await;
    let mut call = rig.dial("/v1/voice?turns=manual", &key).await.unwrap();
    let ready = call.until("ready").await;
    let path = format!("/v1/calls/{}/rotate", ready["call"].as_str().unwrap());
    until("a session", || rig.sim.stats().sessions_now == 1).await;
    assert_eq!(rig.ask("POST", &path, &key).await.status, 200);
    assert_eq!(call.until("notice").await["code"], "rotated");
    call.json(r#"{"type":"text","text":"hello"}"#).await;
    assert_eq!(call.until("reply_ended").await["status"], "completed");
    assert_eq!(rig.sim.stats().sessions_opened, 2);
    assert_eq!(rig.ask("POST", "/v1/calls/call_none/rotate", &key).await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn u8_a_service_that_stalls_and_is_dead_is_left() {
    // The connection lives, and nobody reads or answers.
    let stalls = "[[fault]]\nkind = \"stall_send\"\nsession = 1\nresponse = 1\nafter_deltas = 0\n\n\
                  [[fault]]\nkind = \"stall_read\"\nsession = 1\nresponse = 1\nafter_deltas = 0\n";
    let rig = Rig::with(|c| c.call.stall_s = 1, SimConfig::default(), stalls).await;
    let mut line = Line::begin(&rig, "turns=manual").await;
    line.say(&json!({"type": "text", "text": "hello"})).await;
    for code in ["stalled", "upstream_reconnecting", "upstream_resumed"] {
        assert_eq!(line.until("notice").await["code"], code);
    }
    while line.until("reply_ended").await["status"] != "completed" {}
    assert_eq!((faults(&rig, "stall_send"), faults(&rig, "stall_read")), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn both_sides_drop_at_once_and_the_call_goes_on() {
    let dies = "[[fault]]\nkind = \"die\"\nresponse = \"each\"\nafter_deltas = 2\ntimes = 3\n";
    let rig = Rig::with(|_| {}, keeping(), dies).await;
    let mut line = Line::begin(&rig, "turns=manual").await;
    for turn in 0..4 {
        line.speak(&numbered(turn * 24_000, 24_000)).await;
        line.say(&json!({"type": "commit"})).await;
        let mut replies = line.of("reply_ended").len();
        while line.of("reply_ended").len() == replies {
            match time::timeout(Duration::from_millis(120), line.hear()).await {
                Err(_) => {}
                Ok(Got::Json(_) | Got::Audio(_)) => continue,
                Ok(end) => panic!("{end:?}"),
            }
            line.lose();
            line.back().await;
            replies = replies.min(line.of("reply_ended").len());
        }
    }
    assert_eq!(faults(&rig, "die"), 3);
    let ended = line.of("reply_ended");
    assert_eq!(ended.last().unwrap()["status"], "completed");
    let mut started: Vec<String> = line.of("reply_started").iter().map(|m| m["reply"].to_string()).collect();
    let all = started.len();
    started.dedup();
    assert_eq!((started.len(), ended.len()), (all, all), "each reply begins once and ends once");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_openai_client_hears_nothing_of_a_session_that_is_lost_between_replies() {
    let dies = "[[fault]]\nkind = \"die\"\nsession = 1\nturn = 1\nafter_ms = 3_000\n";
    let rig = Rig::with(|_| {}, keeping(), dies).await;
    let mut client = Client::connect(&format!("ws://{}/v1/realtime", rig.relay.addr())).await;
    client.until("session.created").await;
    client
        .json(r#"{"type":"session.update","session":{"type":"realtime","instructions":"be short","audio":{"input":{"turn_detection":null,"transcription":{"model":"gpt-transcribe"}}}}}"#)
        .await;
    client.until("session.updated").await;
    let (mut kinds, mut answers) = (Vec::new(), 0);
    for turn in 0..3 {
        let audio = base64(&numbered(turn * 24_000, 24_000));
        client.json(&json!({"type": "input_audio_buffer.append", "audio": audio}).to_string()).await;
        client.json(r#"{"type":"input_audio_buffer.commit"}"#).await;
        client.json(r#"{"type":"response.create"}"#).await;
        loop {
            let event = client.json_next().await;
            kinds.push(event["type"].as_str().unwrap().to_owned());
            if event["type"] == "response.done" {
                assert_eq!(event["response"]["status"], "completed", "{event}");
                answers += 1;
                break;
            }
        }
        if turn == 0 {
            until("the session has died", || faults(&rig, "die") == 1).await;
        }
    }
    assert_eq!(answers, 3);
    assert!(!kinds.iter().any(|kind| kind == "session.created" || kind == "session.updated" || kind == "error"));
    assert_eq!(kinds.iter().filter(|kind| *kind == "input_audio_buffer.committed").count(), 3, "none of it was news");
    let stats = rig.sim.stats();
    assert_eq!(stats.sessions_opened, 2);
    let told: Vec<&Value> = stats.items.iter().filter(|(session, _)| *session == 2).map(|(_, item)| item).collect();
    assert_eq!(told[1]["role"], "assistant", "{told:?}");
    assert!(told[1]["content"][0]["text"].as_str().is_some_and(|text| !text.is_empty()), "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_openai_client_is_told_of_a_reply_that_broke_in_the_middle() {
    let dies = "[[fault]]\nkind = \"die\"\nsession = 1\nresponse = 1\nafter_deltas = 3\n";
    let rig = Rig::with(|_| {}, keeping(), dies).await;
    let mut client = Client::connect(&format!("ws://{}/v1/realtime", rig.relay.addr())).await;
    client.json(r#"{"type":"conversation.item.create","item":{"type":"message","role":"user","content":[{"type":"input_text","text":"hi"}]}}"#).await;
    client.json(r#"{"type":"response.create"}"#).await;
    let done = client.until("response.done").await;
    assert_eq!(
        (&done["response"]["status"], done["response"]["status_details"]["error"]["code"].as_str()),
        (&json!("failed"), Some("upstream_lost"))
    );
    assert_eq!(client.until("error").await["error"]["code"], "upstream_lost");
    client.json(r#"{"type":"response.create"}"#).await;
    assert_eq!(client.until("response.done").await["response"]["status"], "completed");
    assert_eq!(faults(&rig, "die"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_openai_clients_session_is_left_ahead_of_its_cap() {
    let sim = SimConfig { session_cap_ms: 3_000, ..keeping() };
    let rig = Rig::with(|_| {}, sim, "").await;
    let mut client = Client::connect(&format!("ws://{}/v1/realtime", rig.relay.addr())).await;
    client.until("session.created").await;
    for turn in 0..6 {
        time::sleep(Duration::from_millis(1_200)).await;
        let text = json!({"type": "conversation.item.create", "item": {"type": "message", "role": "user",
            "content": [{"type": "input_text", "text": format!("turn {turn}")}]}});
        client.json(&text.to_string()).await;
        client.json(r#"{"type":"response.create","response":{"output_modalities":["text"]}}"#).await;
        let done = client.until("response.done").await;
        assert_eq!(done["response"]["status"], "completed", "{done}");
    }
    assert!(rig.sim.stats().sessions_opened >= 3, "{}", rig.sim.stats().sessions_opened);
    assert_eq!(rig.sim.stats().errors.get("session_expired"), None, "no session reached its cap");
}
