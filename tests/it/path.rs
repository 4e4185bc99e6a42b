//! Audio there and back: what the caller says is what the simulator heard, and what it speaks back is what the caller gets.
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;
use voxrelay::{
    audio::{
        Codec, Format,
        decode::decode_file,
        g711::Law,
        opus::{DEFAULT_BITRATE, Decoder, ENCODER_FRAME, Encoder},
    },
    config::{Eagerness, TurnDetection},
};

use crate::support::{Client, Got, Rig, clip};

fn format(codec: Codec, rate: u32) -> Format {
    Format::new(codec, Some(rate)).unwrap()
}

fn samples(path: &str, rate: u32) -> Vec<i16> {
    decode_file(format!("{}/{path}", env!("CARGO_MANIFEST_DIR")), rate).unwrap().samples
}

/// The clip as a client of this format sends it, message by message.
fn messages(path: &str, format: Format) -> Vec<Vec<u8>> {
    if format.codec == Codec::Opus {
        let mut encoder = Encoder::new(DEFAULT_BITRATE).unwrap();
        let encode = |frame: &[i16]| {
            let mut samples = frame.to_vec();
            samples.resize(ENCODER_FRAME, 0);
            let mut packet = Vec::new();
            encoder.encode(&samples, &mut packet).unwrap();
            packet
        };
        return samples(path, 24_000).chunks(ENCODER_FRAME).map(encode).collect();
    }
    let samples = samples(path, format.rate);
    let mut bytes = Vec::new();
    match Law::of(format.codec) {
        Some(law) => law.encode_into(&samples, &mut bytes),
        None => bytes.extend(samples.iter().flat_map(|s| s.to_le_bytes())),
    }
    bytes.chunks(format.bytes(Duration::from_millis(20))).map(<[u8]>::to_vec).collect()
}

/// What a client of this format hears, as samples, and at which rate.
fn heard(messages: &[Vec<u8>], format: Format) -> (Vec<i16>, u32) {
    let mut out = Vec::new();
    if format.codec == Codec::Opus {
        let mut decoder = Decoder::new(24_000).unwrap();
        for packet in messages {
            decoder.decode(packet, &mut out).unwrap();
        }
        return (out, 24_000);
    }
    let bytes = messages.concat();
    match Law::of(format.codec) {
        Some(law) => law.decode_into(&bytes, &mut out),
        None => out.extend(bytes.chunks_exact(2).map(|b| i16::from_le_bytes([b[0], b[1]]))),
    }
    (out, format.rate)
}

/// The normalised cross-correlation at the best lag up to 40 ms. The reference is given at 48 kHz, so that a lag need not be
/// a whole sample of the slower stream.
fn alike(said: &[i16], heard: &[i16], rate: u32) -> f64 {
    let step = (48_000 / rate) as usize;
    let at = |lag: usize, places: &mut dyn Iterator<Item = usize>| {
        let pairs = places.filter_map(|n| Some((*said.get((n * step).checked_sub(lag)?)?, *heard.get(n)?)));
        let (ab, aa, bb) = pairs.fold((0.0, 0.0, 0.0), |(ab, aa, bb), (a, b)| {
            let (a, b) = (f64::from(a), f64::from(b));
            (ab + a * b, aa + a * a, bb + b * b)
        });
        ab / (aa * bb).sqrt()
    };
    // The lag is sought in 2,000 samples of a quarter of a second of speech, then everything is compared.
    let second = rate as usize;
    let roughly = |lag: usize| at(lag, &mut (second..second * 5 / 4).step_by(6 / step));
    let best = (0..1_920).map(|lag| (roughly(lag), lag)).max_by(|a, b| a.0.total_cmp(&b.0)).unwrap().1;
    at(best, &mut (0..heard.len()))
}

/// One manual turn; the reply's messages and its `reply_ended`.
async fn turn(client: &mut Client, messages: &[Vec<u8>]) -> (Vec<Vec<u8>>, Value) {
    for message in messages {
        client.audio(message).await;
    }
    client.json(r#"{"type":"commit"}"#).await;
    let mut audio = Vec::new();
    loop {
        match client.next().await {
            Got::Audio(bytes) => audio.push(bytes),
            Got::Json(message) if message["type"] == "reply_ended" => return (audio, message),
            Got::Json(message) => assert_ne!(message["type"], "error", "{message}"),
            end => panic!("{end:?} in the middle of a turn"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_format_comes_back_as_it_was_said() {
    let rig = Rig::new().await;
    let formats = [
        format(Codec::Pcm16, 8_000),
        format(Codec::Pcm16, 16_000),
        Format::PCM_24K,
        format(Codec::Pcm16, 48_000),
        Format::MULAW,
        Format::ALAW,
        Format::OPUS,
    ];
    let mut calls = tokio::task::JoinSet::new();
    for (input, output) in formats.iter().flat_map(|input| formats.map(|output| (*input, output))) {
        let url = rig.url(&format!(
            "turns=manual&pace=fast&format={}&rate={}&out_format={}&out_rate={}",
            input.codec, input.rate, output.codec, output.rate
        ));
        calls.spawn(async move {
            let mut client = Client::connect(&url).await;
            let (audio, ended) = turn(&mut client, &messages(CLIP, input)).await;
            (url, input, output, audio, ended)
        });
    }
    let said = samples(CLIP, 48_000);
    for (url, input, output, audio, ended) in calls.join_all().await {
        assert_eq!(ended["status"], "completed", "{url}");
        if let Some(bytes) = output.bytes_per_ms() {
            assert!(audio.iter().all(|m| m.len() == bytes * 20), "{url}: messages of 20 ms");
        }
        let (heard, rate) = heard(&audio, output);
        let alike = alike(&said, &heard, rate);
        // Opus is lossy in waveform, G.711 a little; PCM passes filters only.
        let least = match [input, output].map(|f| f.codec) {
            [Codec::Opus, Codec::Opus] => 0.85,
            codecs if codecs.contains(&Codec::Opus) => 0.9,
            codecs if codecs.iter().any(|c| Law::of(*c).is_some()) => 0.95,
            _ => 0.99,
        };
        assert!(alike >= least, "{url}: {alike:.4}");
    }
}

const CLIP: &str = "tests/clips/hello_question_8k.flac";

#[tokio::test(flavor = "multi_thread")]
async fn plain_pcm_and_telephone_codecs_come_back_bit_for_bit() {
    let rig = Rig::new().await;
    for format in [Format::PCM_24K, Format::MULAW, Format::ALAW] {
        let mut client = rig.call(&format!("turns=manual&pace=fast&format={}", format.codec)).await;
        let sent = messages("assets/hello.wav", format);
        let (audio, ended) = turn(&mut client, &sent).await;
        let (sent, got) = (sent.concat(), audio.concat());
        assert_eq!(&got[..sent.len()], &sent[..], "{format}");
        assert!(got[sent.len()..].iter().all(|b| *b == format.silence()), "{format}: filled up with silence");
        assert_eq!(ended["audio_ms"], sent.len() / format.bytes_per_ms().unwrap(), "{format}");
        assert_eq!(ended["heard_ms"], ended["audio_ms"], "{format}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn automatic_turns_hear_the_pause_and_the_interruption() {
    let rig = Rig::new().await;
    let mut client = rig.call("").await;
    let said = clip("tests/clips/long_turn_pause_24k.flac");
    let mut at = Instant::now();
    let mut events = Vec::new();
    let silence = vec![0u8; 960];
    let mut frames = said.chunks(960);
    while events.iter().filter(|e: &&Value| e["type"] == "reply_ended").count() < 2 {
        client.audio(frames.next().unwrap_or(&silence)).await;
        at += Duration::from_millis(20);
        while let Ok(got) = tokio::time::timeout_at(at, client.next()).await {
            match got {
                Got::Json(message) => events.push(message),
                Got::Audio(_) => {}
                end => panic!("{end:?}"),
            }
        }
    }
    let words: Vec<&str> = events
        .iter()
        .filter_map(|e| e["type"].as_str())
        .filter(|t| !matches!(*t, "ack" | "transcript" | "ready"))
        .collect();
    assert_eq!(
        words,
        [
            "speech_started",
            "speech_stopped",
            "reply_started",
            "speech_started",
            "clear",
            "reply_ended",
            "speech_stopped",
            "reply_started",
            "reply_ended"
        ]
    );
    let ended: Vec<&Value> = events.iter().filter(|e| e["type"] == "reply_ended").collect();
    assert_eq!(ended[0]["status"], "interrupted");
    let (heard, audio) = (ended[0]["heard_ms"].as_u64().unwrap(), ended[0]["audio_ms"].as_u64().unwrap());
    assert!(heard < audio && heard > 100, "{heard} of {audio} ms");
    assert_eq!(ended[1]["status"], "completed");
    // The service was told what was heard, of the right item, to the millisecond that the caller was told.
    let truncates = rig.sim.stats().truncates;
    assert_eq!(truncates.len(), 1);
    assert_eq!(truncates[0].audio_end_ms, heard);
    // The pause of the clip begins at 3.44 s and ends at 5.04 s.
    let times = |kind: &str| {
        events.iter().filter(|e| e["type"] == kind).map(|e| e["at_ms"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    let (started, stopped) = (times("speech_started"), times("speech_stopped"));
    assert!((3_700..4_300).contains(&stopped[0]), "{stopped:?}");
    assert!((4_500..5_200).contains(&started[1]), "{started:?}");
    let latency = &ended[1]["latency"];
    let order =
        ["committed_ms", "reply_started_ms", "first_delta_ms", "first_audio_ms"].map(|k| latency[k].as_u64().unwrap());
    assert!(order.is_sorted() && order[0] >= 400, "{latency}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_typed_turn_and_a_tool_of_the_client_are_answered() {
    let rig = Rig::configured(|config| {
        let agent = config.agents.get_mut("default").unwrap();
        agent.tools = vec![voxrelay::config::ToolConfig {
            builtin: None,
            targets: Default::default(),
            expert: None,
            name: "look_up".into(),
            description: String::new(),
            parameters: json!({"type": "object"}),
            http: None,
        }];
    })
    .await;
    let mut client = rig.call("pace=fast").await;
    client.json(r#"{"type":"text","text":"call look_up {\"order\":7}"}"#).await;
    let call = client.until("tool_call").await;
    assert_eq!((call["name"].as_str(), call["arguments"].as_str()), (Some("look_up"), Some(r#"{"order":7}"#)));
    client.json(&json!({"type": "tool_result", "call_id": "wrong", "output": "x"}).to_string()).await;
    assert_eq!(client.until("error").await["error"]["code"], "unknown_call");
    client
        .json(&json!({"type": "tool_result", "call_id": call["call_id"], "output": "it is on its way"}).to_string())
        .await;
    let words = loop {
        let transcript = client.until("transcript").await;
        if transcript["final"] == true && transcript["role"] == "assistant" {
            break transcript["text"].as_str().unwrap().to_owned();
        }
    };
    assert!(words.contains("it is on its way"), "{words}");
    let ended = client.until("reply_ended").await;
    assert_eq!(ended["status"], "completed");
    assert!(ended["audio_ms"].as_u64().unwrap() > 1_000);
    assert!(ended["usage"]["total_tokens"].as_u64().unwrap() > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_greeting_is_said_first_and_replies_keep_playing_time() {
    let rig = Rig::configured(|c| c.agents.get_mut("default").unwrap().greeting = Some("Welcome!".into())).await;
    let mut client = rig.call("turns=manual").await;
    let (mut first, mut bytes) = (None, 0);
    let ended = loop {
        match client.next().await {
            Got::Audio(audio) => {
                first.get_or_insert_with(Instant::now);
                bytes += audio.len();
            }
            Got::Json(message) if message["type"] == "reply_ended" => break message,
            Got::Json(_) => {}
            end => panic!("{end:?}"),
        }
    };
    let played = Duration::from_millis(bytes as u64 / 48);
    let took = first.unwrap().elapsed();
    assert!(took + Duration::from_millis(60) >= played, "a reply of {played:?} was over after {took:?}");
    assert!(took < played + Duration::from_secs(3), "a reply of {played:?} was over after {took:?}");
    assert_eq!(ended["heard_ms"], ended["audio_ms"]);
    assert_eq!(ended["latency"]["committed_ms"], Value::Null, "nobody had spoken");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupt_truncates_at_what_the_client_played() {
    let rig = Rig::new().await;
    let mut client = rig.call("turns=manual").await;
    for message in messages("assets/hello.wav", Format::PCM_24K) {
        client.audio(&message).await;
    }
    client.json(r#"{"type":"commit"}"#).await;
    let reply = client.until("reply_started").await["reply"].clone();
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    client.json(&json!({"type": "interrupt", "reply": reply, "played_ms": 777}).to_string()).await;
    assert_eq!(client.until("clear").await["reply"], reply);
    let ended = client.until("reply_ended").await;
    assert_eq!((ended["status"].as_str(), ended["heard_ms"].as_u64()), (Some("interrupted"), Some(777)));
    let began = Instant::now();
    while rig.sim.stats().truncates.is_empty() {
        assert!(began.elapsed() < Duration::from_secs(10), "the service was never told");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(rig.sim.stats().truncates[0].audio_end_ms, 777);
}

#[tokio::test(flavor = "multi_thread")]
async fn speech_that_breaks_off_is_answered_however_long_the_service_would_wait() {
    let patient = TurnDetection::SemanticVad { eagerness: Eagerness::Low };
    let rig = Rig::configured(|config| {
        config.agents.get_mut("default").unwrap().turn_detection = patient;
    })
    .await;
    let mut client = rig.call("").await;
    client.until("ready").await;
    client.stream(&clip("assets/hello.wav")[..48_000], 960).await;
    assert!(
        client.until("speech_stopped").await["at_ms"].as_u64().unwrap() <= 1_000,
        "inserted silence does not count"
    );
    assert_eq!(client.until("reply_ended").await["status"], "completed");
}
