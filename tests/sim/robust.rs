//! What clients may send: anything. Nothing of it makes the session panic, grow without bound or lie.
use std::time::Duration;

use proptest::{collection, prelude::*, test_runner::Config};
use serde_json::{Value, json};
use voxrelay::{
    audio::Format,
    sim::{SimConfig, config::Reply, session::Output},
};

use super::support::{Client, hello, of_type};

#[test]
fn an_append_has_a_longest_length() {
    let mut client = Client::new(SimConfig { max_append_chars: 1_000, ..SimConfig::instant() });
    client.wait(0);
    client.events();
    let append =
        |chars: usize| json!({ "type": "input_audio_buffer.append", "event_id": "a", "audio": "A".repeat(chars) });
    client.send(append(1_000));
    assert!(client.heard.is_empty());
    client.send(append(1_004));
    let error = client.events()[0]["error"].clone();
    assert_eq!(
        (&error["code"], &error["param"], &error["event_id"]),
        (&json!("string_above_max_length"), &json!("audio"), &json!("a"))
    );
    for (audio, why) in [("AAA", "bad padding"), ("AA==", "half a sample"), ("A_A=", "another alphabet")] {
        client.send(json!({ "type": "input_audio_buffer.append", "audio": audio }));
        assert_eq!(client.events()[0]["error"]["code"], "invalid_value", "{why}");
    }
    assert_eq!(SimConfig::default().max_append_chars, 15 * 1_024 * 1_024 / 3 * 4);
}

#[test]
fn the_input_buffer_has_a_longest_length() {
    let mut client = Client::new(SimConfig { max_buffer_s: 2, ..SimConfig::instant() });
    client.update(json!({ "audio": { "input": { "turn_detection": null } } }));
    let second = vec![0; 48_000];
    client.append(&second);
    client.append(&second);
    assert!(client.heard.is_empty());
    client.append(&[0; 2]);
    assert_eq!(client.events()[0]["error"]["code"], "input_audio_buffer_full");
    client.send(json!({ "type": "input_audio_buffer.clear" }));
    client.append(&second);
    assert_eq!(client.types(), ["input_audio_buffer.cleared"]);
}

#[test]
fn a_conversation_has_a_longest_length() {
    let mut client = Client::new(SimConfig { max_items: 3, ..SimConfig::instant() });
    client.wait(0);
    client.events();
    let item = json!({ "type": "message", "role": "user", "content": [{ "type": "input_text", "text": "x" }] });
    for _ in 0..3 {
        client.send(json!({ "type": "conversation.item.create", "item": item }));
    }
    assert_eq!(of_type(&client.events(), "conversation.item.done").len(), 3);
    client.send(json!({ "type": "conversation.item.create", "item": item }));
    assert_eq!(client.events()[0]["error"]["code"], "conversation_too_long");
    client.append(&hello());
    client.send(json!({ "type": "input_audio_buffer.commit" }));
    let events = client.events();
    assert!(of_type(&events, "input_audio_buffer.committed").is_empty());
}

#[test]
fn out_of_band_responses_are_not_without_number() {
    let mut client = Client::new(SimConfig::instant());
    client.wait(0);
    client.events();
    for _ in 0..40 {
        client.send(json!({ "type": "response.create", "response": { "conversation": "none" } }));
    }
    let events = client.events();
    assert_eq!(of_type(&events, "response.created").len(), 32);
    assert_eq!(of_type(&events, "error").len(), 8);
}

#[test]
fn a_refused_event_echoes_an_id_but_not_a_book() {
    let mut client = Client::new(SimConfig::instant());
    client.wait(0);
    client.events();
    client.send(json!({ "type": "x".repeat(10_000), "event_id": "y".repeat(10_000) }));
    let error = &client.events()[0]["error"];
    assert!(error["message"].as_str().unwrap().len() < 1_000);
    assert_eq!(error["event_id"].as_str().unwrap().len(), 512);
}

#[test]
fn an_update_that_is_refused_changes_nothing() {
    let mut client = Client::new(SimConfig::instant());
    client.wait(0);
    let before = client.events()[0]["session"].clone();
    for session in [
        json!({ "type": "realtime", "instructions": "new", "audio": { "input": { "format": { "type": "audio/pcm", "rate": 8_000 } } } }),
        json!({ "type": "realtime", "instructions": "new", "audio": { "output": { "speed": 9 } } }),
        json!({ "type": "realtime", "instructions": "new", "tools": [{ "type": "gun" }] }),
        json!({ "type": "realtime", "instructions": "new", "extra": null }),
    ] {
        client.send(json!({ "type": "session.update", "session": session }));
        assert_eq!(client.types(), ["error"]);
    }
    client.send(json!({ "type": "session.update", "session": { "type": "realtime" } }));
    client.wait(0);
    assert_eq!(client.events()[0]["session"], before);
}

#[test]
fn a_client_that_does_not_read_is_cut_off() {
    let mut client = Client::new(SimConfig { reply: Reply { speed: 0.0, ..Reply::default() }, ..SimConfig::instant() });
    client.update(json!({ "audio": { "input": { "turn_detection": null } } }));
    // The session is asked for much and never polled.
    let item = json!({ "type": "message", "role": "user", "content": [{ "type": "input_text", "text": "x".repeat(1 << 19) }] });
    let create = json!({ "type": "conversation.item.create", "item": item }).to_string();
    let mut most = 0;
    for _ in 0..100 {
        client.session.handle(Duration::ZERO, voxrelay::sim::session::Incoming::Text(&create));
        most = most.max(client.session.unsent_bytes());
        client.session.handle(
            Duration::ZERO,
            voxrelay::sim::session::Incoming::Text(r#"{"type":"response.create","response":{"conversation":"none"}}"#),
        );
        most = most.max(client.session.unsent_bytes());
    }
    assert!(most > 10 << 20 && most < 200 << 20, "{most} bytes");
}

/// Events that are nearly right: real types and fields with odd values.
fn odd_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        prop_oneof![
            Just("realtime"),
            Just("message"),
            Just("user"),
            Just("assistant"),
            Just("server_vad"),
            Just("audio/pcmu"),
            Just("audio/pcma"),
            Just("audio/pcm"),
            Just("auto"),
            Just("none"),
            Just("inf"),
            Just("root"),
            Just("item_reference"),
            Just("function_call_output"),
            Just("function"),
            Just("required"),
            Just("input_text"),
            Just("input_audio"),
            Just("output_text"),
            Just("AAAA"),
            Just("text"),
            Just("semantic_vad"),
            Just("retention_ratio"),
            Just("whisper-1"),
        ]
        .prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
    ];
    let key = || {
        prop_oneof![
            Just("type"),
            Just("session"),
            Just("audio"),
            Just("input"),
            Just("output"),
            Just("format"),
            Just("rate"),
            Just("turn_detection"),
            Just("silence_duration_ms"),
            Just("prefix_padding_ms"),
            Just("threshold"),
            Just("idle_timeout_ms"),
            Just("item"),
            Just("id"),
            Just("role"),
            Just("content"),
            Just("text"),
            Just("item_id"),
            Just("content_index"),
            Just("audio_end_ms"),
            Just("response"),
            Just("conversation"),
            Just("tools"),
            Just("name"),
            Just("max_output_tokens"),
            Just("metadata"),
            Just("previous_item_id"),
            Just("call_id"),
            Just("transcription"),
            Just("model"),
            Just("truncation"),
            Just("retention_ratio"),
            Just("output_modalities"),
            Just("instructions"),
            Just("tool_choice"),
            Just("event_id"),
            Just("voice"),
            Just("eagerness"),
            Just("noise_reduction"),
        ]
        .prop_map(str::to_owned)
    };
    leaf.prop_recursive(5, 40, 6, move |inner| {
        prop_oneof![
            collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            collection::btree_map(key(), inner, 0..6).prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn odd_event() -> impl Strategy<Value = String> {
    let types = prop_oneof![
        Just("session.update"),
        Just("input_audio_buffer.append"),
        Just("input_audio_buffer.commit"),
        Just("input_audio_buffer.clear"),
        Just("conversation.item.create"),
        Just("conversation.item.retrieve"),
        Just("conversation.item.truncate"),
        Just("conversation.item.delete"),
        Just("response.create"),
        Just("response.cancel"),
    ];
    let field = prop_oneof![
        Just("session"),
        Just("audio"),
        Just("item"),
        Just("item_id"),
        Just("response"),
        Just("response_id"),
        Just("audio_end_ms"),
        Just("content_index"),
        Just("previous_item_id"),
        Just("event_id"),
    ];
    prop_oneof![
        4 => (types, collection::vec((field, odd_value()), 0..4)).prop_map(|(kind, fields)| {
            let mut event = json!({ "type": kind });
            for (name, value) in fields {
                event[name] = value;
            }
            event.to_string()
        }),
        1 => odd_value().prop_map(|value| value.to_string()),
        1 => ".{0,40}",
    ]
}

#[derive(Debug, Clone)]
enum Act {
    Event(String),
    Binary(Vec<u8>),
    Speech(usize),
    Update(usize),
    Create,
    TruncateLast(u64),
    DeleteLast,
    Cancel,
    Commit,
    Wait(u64),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => odd_event().prop_map(Act::Event),
        1 => collection::vec(any::<u8>(), 0..50).prop_map(Act::Binary),
        4 => (1usize..2_000).prop_map(Act::Speech),
        2 => (0usize..6).prop_map(Act::Update),
        2 => Just(Act::Create),
        1 => (0u64..3_000).prop_map(Act::TruncateLast),
        1 => Just(Act::DeleteLast),
        1 => Just(Act::Cancel),
        1 => Just(Act::Commit),
        3 => (0u64..3_000).prop_map(Act::Wait),
    ]
}

fn updates() -> [Value; 6] {
    let input = |value: Value| json!({ "audio": { "input": value } });
    [
        input(json!({ "turn_detection": null })),
        input(json!({ "turn_detection": { "type": "server_vad", "idle_timeout_ms": 5_000, "prefix_padding_ms": 0 } })),
        input(
            json!({ "turn_detection": { "type": "semantic_vad", "eagerness": "high" }, "format": { "type": "audio/pcmu" } }),
        ),
        input(json!({ "format": { "type": "audio/pcm" }, "transcription": { "model": "gpt-4o-transcribe" } })),
        json!({ "output_modalities": ["text"], "audio": { "output": { "format": { "type": "audio/pcma" } } } }),
        json!({ "output_modalities": ["audio"], "tools": [{ "type": "function", "name": "f" }], "max_output_tokens": 40 }),
    ]
}

/// What must be true of every session, whatever it was told.
#[derive(Default)]
struct Watch {
    open: Vec<Value>,
    items: Vec<Value>,
    last_item: Value,
}

impl Watch {
    fn look(&mut self, outputs: impl Iterator<Item = (Duration, Output)>) {
        for (_, output) in outputs {
            let Output::Send(text) = output else { continue };
            let event: Value = serde_json::from_str(&text).unwrap();
            let response = event["response"]["id"].clone();
            match event["type"].as_str().unwrap() {
                "response.created" => self.open.push(response),
                "response.done" => {
                    let at = self.open.iter().position(|id| *id == response).expect("done once, after created");
                    self.open.remove(at);
                    let usage = &event["response"]["usage"];
                    let count = |key: &str| usage[key].as_u64().unwrap();
                    assert_eq!(count("total_tokens"), count("input_tokens") + count("output_tokens"));
                    let details = &usage["input_token_details"];
                    assert!(details["cached_tokens"].as_u64() <= usage["input_tokens"].as_u64());
                }
                "conversation.item.added" => {
                    assert!(!self.items.contains(&event["item"]["id"]), "an item is added once");
                    let before = &event["previous_item_id"];
                    assert!(before.is_null() || self.items.contains(before), "behind one that is there");
                    self.items.push(event["item"]["id"].clone());
                    self.last_item = event["item"]["id"].clone();
                }
                "conversation.item.deleted" => self.items.retain(|id| *id != event["item_id"]),
                "response.output_audio.delta" => assert!(self.open.contains(&event["response_id"])),
                _ => {}
            }
        }
    }
}

proptest! {
    #![proptest_config(Config { cases: 64, ..Config::default() })]

    #[test]
    fn no_client_can_make_it_panic_or_lie(acts in collection::vec(act(), 1..40), piece in 200usize..9_000) {
        let mut client = Client::new(SimConfig { keep_audio_s: 2, ..SimConfig::default() });
        let (audio, mut at, mut watch) = (hello(), 0, Watch::default());
        for act in acts {
            match act {
                Act::Event(text) => client.send_text(&text),
                Act::Binary(bytes) => client.send_binary(&bytes),
                Act::Speech(ms) => {
                    let to = (at + ms * 48).min(audio.len());
                    for piece in audio[at..to].chunks(piece & !1) {
                        client.append(piece);
                    }
                    at = if to == audio.len() { 0 } else { to };
                }
                Act::Update(n) => {
                    let mut session = updates()[n].clone();
                    session["type"] = json!("realtime");
                    client.send(json!({ "type": "session.update", "session": session }));
                }
                Act::Create => client.send(json!({ "type": "response.create" })),
                Act::TruncateLast(ms) => client.send(json!({
                    "type": "conversation.item.truncate", "item_id": watch.last_item, "content_index": 0, "audio_end_ms": ms,
                })),
                Act::DeleteLast => client.send(json!({ "type": "conversation.item.delete", "item_id": watch.last_item })),
                Act::Cancel => client.send(json!({ "type": "response.cancel" })),
                Act::Commit => client.send(json!({ "type": "input_audio_buffer.commit" })),
                Act::Wait(ms) => client.wait(ms),
            }
            watch.look(client.heard.drain(..));
        }
        // Nobody speaks any more: every response that was created is done.
        client.send(json!({ "type": "session.update", "session": { "type": "realtime", "audio": { "input": { "turn_detection": null } } } }));
        client.wait(600_000);
        watch.look(client.heard.drain(..));
        prop_assert!(watch.open.is_empty(), "never done: {:?}", watch.open);
    }

}

proptest! {
    #![proptest_config(Config { cases: 12, ..Config::default() })]

    #[test]
    fn a_turn_does_not_depend_on_how_the_audio_was_cut(piece in 100usize..20_000) {
        let mut client = Client::new(SimConfig::instant());
        client.update(json!({ "audio": { "input": { "turn_detection": { "type": "server_vad", "silence_duration_ms": 500 } } } }));
        for piece in hello().chunks(piece * 2) {
            client.append(piece);
        }
        client.wait(10_000);
        let events = client.events();
        prop_assert_eq!(&of_type(&events, "input_audio_buffer.speech_stopped")[0]["audio_end_ms"], &json!(5_120));
        prop_assert_eq!(super::support::audio_of(&events, None).len(), Format::PCM_24K.bytes(Duration::from_millis(5_120)));
    }
}
