//! Every fault does its damage, at its moment, and is counted.
use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use voxrelay::sim::{
    Faults, Limits, SimConfig,
    config::{Delay, Delays},
    session::{Output, World},
};

use super::support::{Client, good_knock, hello, of_type};

fn client(faults: &str) -> Client {
    Client::with_faults(SimConfig::instant(), faults)
}

fn fault(kind: &str, rest: &str) -> String {
    format!("[[fault]]\nkind = \"{kind}\"\n{rest}\n")
}

/// Everything but events, in order.
fn others(client: &mut Client) -> Vec<(u128, Output)> {
    let heard = std::mem::take(&mut client.heard);
    let others = heard.into_iter().filter(|(_, output)| !matches!(output, Output::Send(_)));
    others.map(|(at, output)| (at.as_millis(), output)).collect()
}

fn deltas(client: &Client) -> usize {
    let is_delta =
        |output: &Output| matches!(output, Output::Send(text) if text.contains("response.output_audio.delta"));
    client.heard.iter().filter(|(_, output)| is_delta(output)).count()
}

fn fired(client: &Client, kind: &str) -> u64 {
    client.world.stats().faults.get(kind).copied().unwrap_or(0)
}

#[test]
fn a_connection_dies_after_so_many_deltas() {
    for (rest, mid_frame, reset) in
        [("", false, false), ("mid_frame = true", true, false), ("reset = true\nmid_frame = true", true, true)]
    {
        let mut client = client(&fault("die", &format!("response = 1\nafter_deltas = 3\n{rest}")));
        client.send(json!({ "type": "response.create" }));
        client.wait(10_000);
        assert_eq!(deltas(&client), 3);
        let [(100, Output::Die { partial, reset: by_reset })] = &others(&mut client)[..] else { panic!("at 100 ms") };
        assert_eq!((partial.is_some(), *by_reset), (mid_frame, reset));
        assert_eq!(fired(&client, "die"), 1);
        client.send(json!({ "type": "response.create" }));
        client.wait(10_000);
        assert!(client.heard.is_empty(), "nothing comes after it");
        assert_eq!(client.session.deadline(), None);
    }
}

#[test]
fn only_the_session_that_is_meant_is_hit() {
    let world = World::new(
        SimConfig::instant(),
        Faults::from_toml(&fault("close", "session = 2\nat_ms = 50\ncode = 1012\nreason = \"restart\"")).unwrap(),
    );
    for number in 1..=3 {
        let mut client = Client::in_world(Arc::clone(&world), number, &good_knock());
        client.wait(1_000);
        let want = Output::Close { code: 1_012, reason: "restart".into() };
        let want = if number == 2 { vec![(50, want)] } else { vec![] };
        assert_eq!(others(&mut client), want, "session {number}");
    }
}

#[test]
fn faults_come_at_every_kind_of_moment() {
    for (moment, at_ms) in [
        ("at_ms = 120", 120),
        ("after_audio_ms = 1_000", 900),
        ("speech = 1", 200),
        ("turn = 1", 5_000 + 100),
        ("turn = 1\nafter_ms = 25", 5_000 + 125),
        ("response = 1", 5_000 + 100),
        ("response = 1\nafter_deltas = 2", 5_000 + 150),
    ] {
        let mut client = client(&fault("close", moment));
        client.update(
            json!({ "audio": { "input": { "turn_detection": { "type": "server_vad", "silence_duration_ms": 500 } } } }),
        );
        client.speak(&hello(), voxrelay::audio::Format::PCM_24K, 100);
        client.wait(1_000);
        let got: Vec<u128> = others(&mut client).iter().map(|(at, _)| *at).collect();
        assert_eq!(got, [at_ms], "{moment}");
    }
}

#[test]
fn sending_stalls_and_goes_on_in_order() {
    let mut client = client(&fault("stall_send", "response = 1\nafter_deltas = 1\nfor_ms = 6000"));
    client.wait(0);
    client.events();
    client.send(json!({ "type": "response.create" }));
    client.wait(5_999);
    assert_eq!(deltas(&client), 1);
    client.wait(1);
    let events = client.events();
    assert_eq!(events.last().unwrap()["type"], "rate_limits.updated", "all of it came at once");
    assert_eq!(of_type(&events, "response.output_audio.delta").len(), 31);
    let mut client = Client::with_faults(SimConfig::instant(), &fault("stall_send", ""));
    client.wait(100_000);
    assert!(client.heard.is_empty(), "for ever");
}

#[test]
fn no_session_is_ever_created() {
    let mut client = client(&fault("no_created", ""));
    client.wait(60_000);
    client.send(json!({ "type": "response.create" }));
    client.wait(60_000);
    assert!(client.heard.is_empty());
    assert_eq!(fired(&client, "no_created"), 1);
}

#[test]
fn events_are_late_with_jitter_and_never_overtake() {
    let mut client = client(&fault("delay", "ms = 300\njitter_ms = 100"));
    client.wait(299);
    assert!(client.heard.is_empty());
    client.send(json!({ "type": "response.create" }));
    client.wait(10_000);
    let times: Vec<u128> = client.heard.iter().map(|(at, _)| at.as_millis()).collect();
    assert!(times.is_sorted() && times.len() > 60);
    assert!((300..=400).contains(&times[0]), "{}", times[0]);
}

#[test]
fn reading_stalls_or_slows_down() {
    let mut stalled = client(&fault("stall_read", "at_ms = 10\nfor_ms = 500"));
    stalled.wait(1_000);
    assert_eq!(others(&mut stalled), [(10, Output::StallReads { until: Some(std::time::Duration::from_millis(510)) })]);
    let mut slow = client(&fault("slow_read", "bytes_per_s = 4_000"));
    assert_eq!(others(&mut slow), [(0, Output::SlowReads { bytes_per_s: 4_000, until: None })]);
}

#[test]
fn errors_come_in_bursts() {
    let mut client =
        client(&fault("error", "at_ms = 20\ncount = 50\ncode = \"rate_limit_exceeded\"\nerror_type = \"requests\""));
    client.wait(100);
    let events = client.events();
    let errors = of_type(&events, "error");
    assert_eq!(errors.len(), 50);
    assert_eq!(
        (&errors[0]["error"]["type"], &errors[0]["error"]["code"]),
        (&json!("requests"), &json!("rate_limit_exceeded"))
    );
    assert_eq!(client.world.stats().errors["rate_limit_exceeded"], 50);
    client.send(json!({ "type": "response.create" }));
    client.wait(10_000);
    assert_eq!(of_type(&client.events(), "response.done")[0]["response"]["status"], "completed", "the session goes on");
}

#[test]
fn a_response_fails_in_its_middle_and_the_next_one_does_not() {
    let mut client = client(&fault("fail_response", "response = 1\nafter_deltas = 2"));
    for (n, status) in [(1, "failed"), (2, "completed")] {
        client.send(json!({ "type": "response.create" }));
        client.wait(10_000);
        let events = client.events();
        let response = &of_type(&events, "response.done")[0]["response"];
        assert_eq!(response["status"], status);
        if n == 1 {
            assert_eq!(of_type(&events, "response.output_audio.delta").len(), 2);
            assert_eq!(response["output"][0]["status"], "incomplete", "its parts are closed");
            assert_eq!(response["usage"]["total_tokens"], 0);
        }
    }
    assert_eq!(client.world.stats().responses_by_status["failed"], 1);
}

#[test]
fn events_are_doubled_or_lost() {
    let both = fault("duplicate", "event = \"response.output_audio.delta\"\ncount = 2")
        + &fault("swallow", "event = \"response.done\"\ncount = 1");
    let mut client = client(&both);
    for (deltas, done) in [(33, 0), (31, 1)] {
        client.send(json!({ "type": "response.create" }));
        client.wait(10_000);
        let events = client.events();
        let got = of_type(&events, "response.output_audio.delta");
        assert_eq!((got.len(), of_type(&events, "response.done").len()), (deltas, done));
        if done == 0 {
            assert_eq!(got[0], got[1], "the same event, its id too");
        }
    }
}

fn transcribed(faults: &str, turns: usize) -> Vec<Value> {
    let delays = Delays { transcription: Delay::ms(200), ..Delays::none() };
    let mut client = Client::with_faults(SimConfig { delays, ..SimConfig::default() }, faults);
    client
        .update(json!({ "audio": { "input": { "turn_detection": null, "transcription": { "model": "whisper-1" } } } }));
    for _ in 0..turns {
        client.append(&hello()[..96_000]);
        client.send(json!({ "type": "input_audio_buffer.commit" }));
        client.wait(1_000);
    }
    client.wait(20_000);
    client.events()
}

#[test]
fn transcripts_change_their_order() {
    let order = |faults: &str, turns| {
        let events = transcribed(faults, turns);
        let items: Vec<&Value> =
            of_type(&events, "input_audio_buffer.committed").iter().map(|e| &e["item_id"]).collect();
        let done = of_type(&events, "conversation.item.input_audio_transcription.completed");
        done.iter().map(|e| items.iter().position(|item| **item == e["item_id"]).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(order("", 3), [0, 1, 2]);
    assert_eq!(order(&fault("reorder_transcripts", "turn = 1"), 3), [1, 0, 2]);
    assert_eq!(
        order(&fault("reorder_transcripts", "turn = 1"), 1),
        [0],
        "with nobody to overtake it comes late, not never"
    );
}

#[test]
fn a_transcript_fails_alone() {
    let events = transcribed(&fault("fail_transcript", "turn = 2"), 3);
    assert_eq!(of_type(&events, "conversation.item.input_audio_transcription.failed").len(), 1);
    assert_eq!(of_type(&events, "conversation.item.input_audio_transcription.completed").len(), 2);
}

#[test]
fn the_unknown_and_the_oversized_are_sent() {
    let all = fault("unknown_events", "at_ms = 10\ncount = 3")
        + &fault("unknown_fields", "at_ms = 20\nfor_ms = 100")
        + &fault("oversized", "at_ms = 30\nbytes = 1_000_000");
    let mut client = client(&all);
    client.wait(25);
    let events = client.events();
    assert_eq!(of_type(&events, "sim.unknown_event").len(), 3);
    client.wait(5);
    let Some((_, Output::Send(big))) = client.heard.pop_front() else { panic!() };
    assert_eq!(big.len(), 1_000_000);
    client.send(json!({ "type": "input_audio_buffer.clear" }));
    assert!(client.events()[0].get("sim_unknown").is_some());
    client.wait(200);
    client.send(json!({ "type": "input_audio_buffer.clear" }));
    assert!(client.events()[0].get("sim_unknown").is_none());
}

#[test]
fn a_session_dies_before_its_reply_and_the_audio_so_far_is_known() {
    let config = SimConfig { record_audio: true, ..SimConfig::instant() };
    let mut client = Client::with_faults(config, &fault("die", "after_audio_ms = 500\nreset = true"));
    let audio = hello();
    for piece in audio.chunks(4_800).take(10) {
        client.send(json!({ "type": "input_audio_buffer.append", "audio": STANDARD.encode(piece) }));
    }
    let stats = client.world.stats();
    assert_eq!(stats.appends, 5);
    assert_eq!(stats.recorded[0].audio, audio[..24_000]);
    assert!(matches!(others(&mut client)[..], [(0, Output::Die { reset: true, .. })]));
}

#[test]
fn what_the_account_does_not_have_is_refused_and_asked_for_again_later() {
    let limits = Limits { tokens: 6_000, ..Limits::default() };
    let mut client = Client::new(SimConfig { limits: vec![limits], ..SimConfig::instant() });
    client.wait(10);
    client.update(json!({ "max_output_tokens": 3_000 }));
    client.send(json!({ "type": "conversation.item.create", "item": {
        "type": "message", "role": "user", "content": [{ "type": "input_text", "text": "Hello" }] } }));
    let create = json!({ "type": "response.create", "response": { "output_modalities": ["text"] } });
    let done = |client: &mut Client| {
        client.send(create.clone());
        client.wait(5_000);
        let events = client.events();
        let response = of_type(&events, "response.done")[0]["response"].clone();
        (response, of_type(&events, "rate_limits.updated")[0]["rate_limits"][0].clone())
    };
    let (first, told) = done(&mut client);
    assert_eq!(first["status"], "completed");
    let used = first["usage"]["total_tokens"].as_u64().unwrap();
    assert_eq!((told["limit"].as_f64(), used < 100), (Some(6_000.0), true), "{told}: the rest was given back");
    // Another session of the same account uses all of it up.
    let mut other = Client::in_world(client.world.clone(), 2, &good_knock());
    other.wait(10);
    for _ in 0..2 {
        other.send(json!({ "type": "response.create", "response": { "max_output_tokens": 2_900 } }));
        other.send(
            json!({ "type": "response.create", "response": { "max_output_tokens": 2_900, "conversation": "none" } }),
        );
    }
    let (refused, _) = done(&mut client);
    let error = &refused["status_details"]["error"];
    assert_eq!((refused["status"].as_str(), error["code"].as_str()), (Some("failed"), Some("rate_limit_exceeded")));
    assert!(error["message"].as_str().unwrap().contains("on tokens per min (TPM): Limit 6000"), "{error}");
    assert_eq!((&refused["usage"]["total_tokens"], &refused["output"]), (&json!(0), &json!([])));
    client.wait(60_000);
    assert_eq!(done(&mut client).0["status"], "completed");
    assert_eq!(client.world.stats().limited["tokens"], client.world.stats().responses_by_status["failed"]);
}
