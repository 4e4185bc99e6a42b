//! Whole conversations: that what was said comes back, that the books are right, that options do what they say.
use serde_json::{Value, json};
use voxrelay::{
    audio::{Codec, Format},
    sim::{
        SimConfig,
        config::{Delay, Delays, Model, RateLimits, Reply},
        session::Output,
    },
};

use super::support::{Client, as_codec, audio_of, hello, of_type, raw_wav, wav};

fn instant() -> SimConfig {
    SimConfig::instant()
}

fn at_once() -> SimConfig {
    SimConfig { reply: Reply { speed: 0.0, word_ms: 0, ..Reply::default() }, ..instant() }
}

fn manual() -> Value {
    json!({ "audio": { "input": { "turn_detection": null } } })
}

/// Settings of a telephone leg that waits half a second.
fn formats(input: &str, output: &str) -> Value {
    json!({ "audio": {
        "input": { "format": { "type": input }, "turn_detection": { "type": "server_vad", "silence_duration_ms": 500 } },
        "output": { "format": { "type": output } },
    } })
}

/// Commits audio by hand and asks for a reply; gives all events until nothing more comes.
fn turn(client: &mut Client, audio: &[u8], response: Value) -> Vec<Value> {
    client.append(audio);
    client.send(json!({ "type": "input_audio_buffer.commit" }));
    client.send(json!({ "type": "response.create", "response": response }));
    client.wait(60_000);
    client.events()
}

fn usage(events: &[Value]) -> Value {
    of_type(events, "response.done")[0]["response"]["usage"].clone()
}

#[test]
fn what_was_said_comes_back_byte_for_byte() {
    let pcm = hello();
    let mulaw = raw_wav("tests/clips/hello_question_telephone_8k_ulaw.wav");
    let alaw = as_codec(&wav_8k(&mulaw), Codec::Alaw);
    for (name, format, kind, audio) in [
        ("pcm", Format::PCM_24K, "audio/pcm", &pcm),
        ("mu-law", Format::MULAW, "audio/pcmu", &mulaw),
        ("A-law", Format::ALAW, "audio/pcma", &alaw),
    ] {
        let mut client = Client::new(instant());
        client.update(formats(kind, kind));
        client.speak(audio, format, 20);
        client.wait(10_000);
        let events = client.events();
        let [started] = of_type(&events, "input_audio_buffer.speech_started")[..] else { panic!("{name}: one turn") };
        let [stopped] = of_type(&events, "input_audio_buffer.speech_stopped")[..] else { panic!("{name}: one turn") };
        let ms = |event: &Value, key: &str| usize::try_from(event[key].as_u64().unwrap()).unwrap();
        let per_ms = format.bytes_per_ms().unwrap();
        let said = &audio[ms(started, "audio_start_ms") * per_ms..ms(stopped, "audio_end_ms") * per_ms];
        assert_eq!(audio_of(&events, None), said, "{name}");
    }
}

fn wav_8k(mulaw: &[u8]) -> Vec<u8> {
    let law = voxrelay::audio::g711::Law::of(Codec::Mulaw).unwrap();
    mulaw.iter().flat_map(|code| law.decode(*code).to_le_bytes()).collect()
}

#[test]
fn another_output_format_has_the_same_length() {
    let mut client = Client::new(instant());
    client.update(formats("audio/pcm", "audio/pcmu"));
    client.update(manual());
    let events = turn(&mut client, &hello()[..48 * 2_345], json!({}));
    assert_eq!(audio_of(&events, None).len(), 8 * 2_345);
    let events = turn(
        &mut client,
        &hello()[..48 * 500],
        json!({ "audio": { "output": { "format": { "type": "audio/pcma" } } } }),
    );
    assert_eq!(audio_of(&events, None).len(), 8 * 500, "a format for one response");
}

#[test]
fn several_turns_since_the_last_reply_come_back_in_order() {
    let mut client = Client::new(instant());
    client.update(manual());
    let audio = hello();
    let (one, two) = (&audio[48_000..96_000], &audio[96_000..110_000]);
    client.append(one);
    client.send(json!({ "type": "input_audio_buffer.commit" }));
    let events = turn(&mut client, two, json!({}));
    assert_eq!(audio_of(&events, None), [one, two].concat());
    client.send(json!({ "type": "response.create" }));
    client.wait(10_000);
    let greeting = audio_of(&client.events(), None);
    assert_eq!(Format::PCM_24K.duration(greeting.len()).as_millis(), 6_165, "nothing new was said: the bundled voice");
}

#[test]
fn a_long_turn_with_a_pause_is_two_turns_with_a_barge_in_between() {
    let mut client = Client::new(SimConfig { delays: Delays::default(), ..SimConfig::default() });
    client.wait(10);
    client.update(formats("audio/pcm", "audio/pcm"));
    let audio = decoded("tests/clips/long_turn_pause_24k.flac");
    client.speak(&audio, Format::PCM_24K, 100);
    client.wait(10_000);
    let events = client.events();
    let done: Vec<&str> =
        of_type(&events, "response.done").iter().map(|e| e["response"]["status"].as_str().unwrap()).collect();
    assert_eq!(done.len(), 2, "{done:?}");
    assert_eq!(done[1], "completed");
    let order: Vec<&str> = events
        .iter()
        .filter_map(|e| e["type"].as_str())
        .filter(|t| ["input_audio_buffer.speech_started", "input_audio_buffer.committed", "response.done"].contains(t))
        .collect();
    assert_eq!(order[0], "input_audio_buffer.speech_started");
    assert_eq!(of_type(&events, "input_audio_buffer.committed").len(), 2);
}

fn decoded(name: &str) -> Vec<u8> {
    voxrelay::audio::decode::decode_file(name, 24_000).unwrap().bytes(Codec::Pcm16).unwrap()
}

#[test]
fn silence_and_dither_make_no_turn() {
    let mut client = Client::new(instant());
    client.wait(0);
    client.events();
    client.speak(&wav("tests/clips/silence_then_dither_24k.wav"), Format::PCM_24K, 20);
    client.wait(5_000);
    assert_eq!(client.types(), Vec::<String>::new());
}

#[test]
fn vad_flags_are_obeyed() {
    for (create, interrupt, statuses) in [
        (true, true, vec!["cancelled", "completed"]),
        (false, false, vec!["completed"]),
        (false, true, vec!["cancelled"]),
    ] {
        let mut client = Client::new(SimConfig { reply: Reply { speed: 1.0, ..Reply::default() }, ..instant() });
        let vad = json!({ "type": "server_vad", "silence_duration_ms": 500, "create_response": create, "interrupt_response": interrupt });
        client.update(json!({ "audio": { "input": { "turn_detection": vad } } }));
        client.send(json!({ "type": "response.create" }));
        client.speak(&hello(), Format::PCM_24K, 100);
        client.wait(20_000);
        let events = client.events();
        assert_eq!(of_type(&events, "input_audio_buffer.committed").len(), 1, "committed in any case");
        let done = of_type(&events, "response.done");
        let got: Vec<&str> = done.iter().map(|e| e["response"]["status"].as_str().unwrap()).collect();
        assert_eq!(got, statuses, "create {create}, interrupt {interrupt}");
    }
    // Not interrupted, and a response is still running when the turn ends: the service can make no second one.
    let mut client = Client::new(SimConfig { reply: Reply { speed: 0.9, ..Reply::default() }, ..instant() });
    let vad = json!({ "type": "server_vad", "silence_duration_ms": 500, "interrupt_response": false });
    client.update(json!({ "audio": { "input": { "turn_detection": vad } } }));
    client.send(json!({ "type": "response.create" }));
    client.speak(&hello(), Format::PCM_24K, 100);
    client.wait(20_000);
    let events = client.events();
    assert_eq!(of_type(&events, "error")[0]["error"]["code"], "conversation_already_has_active_response");
    assert_eq!(of_type(&events, "response.done").len(), 1);
}

#[test]
fn two_items_in_one_reply_lose_nothing_and_the_first_may_end_late() {
    let reply = Reply { items: 2, late_done_ms: 60, ..Reply::default() };
    let mut client = Client::new(SimConfig { reply, ..instant() });
    client.update(manual());
    let audio = &hello()[..48 * 2_000];
    let events = turn(&mut client, audio, json!({}));
    assert_eq!(audio_of(&events, None), audio);
    let done = of_type(&events, "response.done")[0];
    let items: Vec<Value> =
        done["response"]["output"].as_array().unwrap().iter().map(|item| item["id"].clone()).collect();
    assert_eq!(items.len(), 2);
    assert_eq!(audio_of(&events, Some(&items[0])).len(), 48 * 1_000);
    let at = |kind: &str, item: &Value| events.iter().position(|e| e["type"] == kind && e["item_id"] == *item).unwrap();
    assert!(
        at("response.output_audio.done", &items[0]) > at("response.output_audio.delta", &items[1]),
        "the first item ends after the second has begun"
    );
}

#[test]
fn the_caller_is_transcribed_when_that_is_asked_for() {
    let delays = Delays { transcription: Delay::ms(300), ..Delays::none() };
    let mut client = Client::new(SimConfig { delays, ..SimConfig::default() });
    let transcription = json!({ "model": "gpt-transcribe", "language": "en" });
    client.update(json!({
        "include": ["item.input_audio_transcription.logprobs"],
        "audio": { "input": { "turn_detection": null, "transcription": transcription } },
    }));
    client.append(&hello());
    client.send(json!({ "type": "input_audio_buffer.commit" }));
    client.wait(299);
    let events = client.events();
    let item = of_type(&events, "input_audio_buffer.committed")[0]["item_id"].clone();
    assert!(of_type(&events, "conversation.item.input_audio_transcription.delta").is_empty());
    client.wait(1_000);
    let events = client.events();
    let deltas = of_type(&events, "conversation.item.input_audio_transcription.delta");
    let words: String = deltas.iter().map(|e| e["delta"].as_str().unwrap()).collect();
    let [completed] = of_type(&events, "conversation.item.input_audio_transcription.completed")[..] else { panic!() };
    assert_eq!((completed["transcript"].as_str(), &completed["item_id"]), (Some(words.as_str()), &item));
    assert_eq!(completed["usage"], json!({ "type": "duration", "seconds": 5.399 }));
    assert_eq!(completed["logprobs"].as_array().unwrap().len(), deltas.len());
    client.send(json!({ "type": "conversation.item.retrieve", "item_id": item }));
    assert_eq!(client.events()[0]["item"]["content"][0]["transcript"], words);
}

#[test]
fn the_context_grows_and_its_prefix_is_cached() {
    let mut client = Client::new(at_once());
    client.update(json!({ "instructions": "x".repeat(400), "audio": { "input": { "turn_detection": null } } }));
    let audio = hello();
    let (mut before, mut all) = (0, 0);
    for n in 0..4 {
        let events = turn(&mut client, &audio[..48 * 3_000], json!({}));
        let usage = usage(&events);
        let count = |key: &str| usage[key].as_u64().unwrap();
        assert_eq!(count("output_tokens"), 60 + 8, "3 s of audio and the transcript");
        assert_eq!(count("input_tokens"), 100 + 30 + n * (30 + 68), "everything is input again");
        let cached = usage["input_token_details"]["cached_tokens"].as_u64().unwrap();
        assert_eq!(cached, before / 64 * 64, "turn {n}");
        let split = &usage["input_token_details"]["cached_tokens_details"];
        assert_eq!(split["text_tokens"].as_u64().unwrap() + split["audio_tokens"].as_u64().unwrap(), cached);
        before = count("total_tokens");
        all += before;
    }
    assert_eq!(client.world.stats().tokens, all);
    // A new instruction is a new prefix.
    client.update(json!({ "instructions": "y" }));
    assert_eq!(usage(&turn(&mut client, &audio[..4_800], json!({})))["input_token_details"]["cached_tokens"], 0);
}

fn small_model() -> SimConfig {
    let model = Model { name: "gpt-realtime".into(), context_tokens: 300, max_output_tokens: 100, reasoning: false };
    SimConfig { models: vec![model], ..at_once() }
}

#[test]
fn an_overfull_context_is_cut_or_refused_as_the_session_wants() {
    let second = &hello()[..48 * 1_000];
    let inputs = |truncation: Value| {
        let mut client = Client::new(small_model());
        client.update(
            json!({ "truncation": truncation, "instructions": "", "audio": { "input": { "turn_detection": null } } }),
        );
        let mut inputs = Vec::new();
        for _ in 0..8 {
            let events = turn(&mut client, second, json!({}));
            match of_type(&events, "error").first() {
                Some(error) => inputs.push(error["error"]["code"].clone()),
                None => inputs.push(usage(&events)["input_tokens"].clone()),
            }
        }
        inputs
    };
    // Each turn adds 10 tokens of the caller and 28 of the reply; the limit is 200.
    let auto = inputs(json!("auto"));
    assert_eq!(auto[..5], [json!(10), json!(48), json!(86), json!(124), json!(162)]);
    assert_eq!(auto[5..], [json!(200), json!(200), json!(200)], "the oldest turn leaves each time");
    let retain = inputs(json!({ "type": "retention_ratio", "retention_ratio": 0.5 }));
    assert_eq!(retain[5], json!(200));
    assert_eq!(retain[6], json!(86), "cut to half, so that the next turns fit: {retain:?}");
    assert_eq!(inputs(json!("disabled"))[6], "context_length_exceeded");
}

#[test]
fn a_reply_over_its_tokens_is_incomplete() {
    let mut client = Client::new(at_once());
    client.update(manual());
    let events = turn(&mut client, &hello(), json!({ "max_output_tokens": 50 }));
    let response = &of_type(&events, "response.done")[0]["response"];
    assert_eq!(response["status"], "incomplete");
    assert_eq!(response["status_details"], json!({ "type": "incomplete", "reason": "max_output_tokens" }));
    assert_eq!(response["output"][0]["status"], "incomplete");
    assert_eq!(response["usage"]["output_tokens"], 50);
    assert_eq!(response["max_output_tokens"], 50);
}

#[test]
fn truncation_shortens_what_the_model_remembers() {
    let reply = Reply { shortfall_ms: 85, ..Reply::default() };
    let mut client = Client::new(SimConfig { reply, ..instant() });
    client.update(manual());
    let events = turn(&mut client, &hello()[..48 * 2_000], json!({}));
    let item = of_type(&events, "response.output_item.done")[0]["item"]["id"].clone();
    let truncate = |ms: u64| json!({ "type": "conversation.item.truncate", "item_id": item, "content_index": 0, "audio_end_ms": ms });
    client.send(truncate(1_950));
    assert_eq!(client.events()[0]["error"]["message"], "Audio content of 1915ms is already shorter than 1950ms");
    client.send(truncate(1_915));
    assert_eq!(client.events()[0]["type"], "conversation.item.truncated");
    let events = turn(&mut client, &hello()[..48 * 1_000], json!({}));
    let details = &usage(&events)["input_token_details"];
    assert_eq!(details["audio_tokens"], 20 + 38 + 10, "2 s of the caller, 1.9 s heard of the reply, 1 s new");
    let [truncation] = &client.world.stats().truncates[..] else { panic!() };
    assert_eq!((truncation.session, truncation.audio_end_ms, truncation.had_ms), (1, 1_915, 2_000));
}

#[test]
fn semantic_vad_waits_as_long_as_its_eagerness() {
    for (eagerness, silence) in [("high", 2_000), ("auto", 4_000), ("medium", 4_000), ("low", 8_000)] {
        let mut client = Client::new(at_once());
        client.update(
            json!({ "audio": { "input": { "turn_detection": { "type": "semantic_vad", "eagerness": eagerness } } } }),
        );
        client.speak(&hello(), Format::PCM_24K, 100);
        client.speak(&vec![0; 48 * 9_000], Format::PCM_24K, 100);
        let events = client.events();
        assert_eq!(
            of_type(&events, "input_audio_buffer.speech_stopped")[0]["audio_end_ms"],
            4_620 + silence,
            "{eagerness}"
        );
    }
}

#[test]
fn rate_limits_tell_of_requests_when_asked_to() {
    let rate_limits = RateLimits { tokens: 600_000, requests: 100, ..RateLimits::default() };
    let mut client = Client::new(SimConfig { rate_limits, ..at_once() });
    client.wait(0);
    client.events();
    client.send(json!({ "type": "response.create" }));
    client.wait(0);
    let events = client.events();
    let limits = &of_type(&events, "rate_limits.updated")[0]["rate_limits"];
    let used = usage(&events)["total_tokens"].as_u64().unwrap();
    assert_eq!(limits[0], json!({ "name": "requests", "limit": 100, "remaining": 99, "reset_seconds": 864.0 }));
    assert_eq!(limits[1]["remaining"], 600_000 - used);
    assert_eq!(limits[1]["reset_seconds"], ((used as f64 / 10_000.0) * 1_000.0).round() / 1_000.0);
}

#[test]
fn delays_are_kept_and_order_too() {
    let delays = Delays {
        created: Delay::ms(5),
        updated: Delay::ms(260),
        committed: Delay::ms(30),
        response_created: Delay::ms(40),
        first_delta: Delay::ms(200),
        item_added: Delay::ms(100),
        ..Delays::none()
    };
    let mut client = Client::new(SimConfig { delays, ..SimConfig::default() });
    let when = |client: &mut Client, kind: &str| {
        let found = client
            .heard
            .iter()
            .find(|(_, output)| matches!(output, Output::Send(text) if text.contains(&format!("\"type\":\"{kind}\""))));
        found.map(|(at, _)| u64::try_from(at.as_millis()).unwrap())
    };
    client.send(json!({ "type": "session.update", "session": { "type": "realtime", "audio": { "input": { "turn_detection": null } } } }));
    client.wait(1_000);
    assert_eq!(when(&mut client, "session.created"), Some(5));
    assert_eq!(when(&mut client, "session.updated"), Some(260));
    client.append(&hello());
    client.send(json!({ "type": "input_audio_buffer.commit" }));
    client.send(json!({ "type": "response.create" }));
    client.wait(1_000);
    assert_eq!(when(&mut client, "input_audio_buffer.committed"), Some(1_030));
    assert_eq!(when(&mut client, "response.created"), Some(1_040));
    assert_eq!(when(&mut client, "response.output_item.added"), Some(1_140));
    assert_eq!(when(&mut client, "response.output_audio.delta"), Some(1_240));
    let early = client.heard.iter().map(|(at, _)| *at).collect::<Vec<_>>();
    assert!(early.is_sorted());
}

#[test]
fn the_same_seed_gives_the_same_session() {
    let story = |seed| {
        let mut client = Client::new(SimConfig { seed, ..SimConfig::default() });
        client.wait(10);
        client.update(formats("audio/pcm", "audio/pcm"));
        client.speak(&hello(), Format::PCM_24K, 100);
        client.wait(10_000);
        client.heard.iter().map(|(at, output)| format!("{at:?} {output:?}")).collect::<Vec<_>>()
    };
    assert_eq!(story(5), story(5));
    assert_ne!(story(5), story(6));
}

#[test]
fn calls_of_functions_can_be_forced_for_speech() {
    let reply = Reply { call_tool: Some("get_weather".into()), ..Reply::default() };
    let mut client = Client::new(SimConfig { reply, ..instant() });
    let tool = json!({ "type": "function", "name": "get_weather", "parameters": { "type": "object" } });
    client.update(json!({ "tools": [tool], "audio": { "input": { "turn_detection": null } } }));
    let events = turn(&mut client, &hello(), json!({}));
    let call = of_type(&events, "response.function_call_arguments.done")[0].clone();
    assert_eq!((call["name"].as_str(), call["arguments"].as_str()), (Some("get_weather"), Some("{}")));
    assert_eq!(client.world.stats().function_calls, 1);
    let output = json!({ "type": "function_call_output", "call_id": call["call_id"], "output": "rain" });
    client.send(json!({ "type": "conversation.item.create", "item": output }));
    client.send(json!({ "type": "response.create" }));
    client.wait(10_000);
    let events = client.events();
    assert_eq!(of_type(&events, "response.output_audio_transcript.done")[0]["transcript"], "The tool said: rain");
    assert!(!audio_of(&events, None).is_empty());
    let stray = json!({ "type": "function_call_output", "call_id": "call_unknown", "output": "" });
    client.send(json!({ "type": "conversation.item.create", "item": stray }));
    assert_eq!(client.events()[0]["error"]["code"], "invalid_tool_call_id");
}

#[test]
fn a_new_session_can_be_seeded_with_an_old_conversation() {
    let mut client = Client::new(at_once());
    client.wait(0);
    client.events();
    let message = |id: &str, role: &str, kind: &str, text: &str| json!({ "id": id, "type": "message", "role": role, "content": [{ "type": kind, "text": text }] });
    let items = [
        message("a", "system", "input_text", "The caller is Ann."),
        message("b", "user", "input_text", "Hello"),
        message("c", "assistant", "output_text", "Hi Ann"),
        json!({ "id": "d", "type": "function_call", "call_id": "k", "name": "f", "arguments": "{}" }),
        json!({ "id": "e", "type": "function_call_output", "call_id": "k", "output": "done" }),
    ];
    for item in items {
        client.send(json!({ "type": "conversation.item.create", "item": item }));
    }
    let done: Vec<Value> =
        of_type(&client.events(), "conversation.item.done").iter().map(|e| e["previous_item_id"].clone()).collect();
    assert_eq!(done, [Value::Null, json!("a"), json!("b"), json!("c"), json!("d")]);
}
