//! Texts from outside: of clients, of services, of people who write files.
use std::{fs, time::Duration};

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use bytes::Bytes;
use serde_json::Value;
use voxrelay::{
    admit::token::{Signer, SigningKey},
    beta::{self, BetaClient, BetaService},
    call::rate::Rerate,
    client::{
        openai::{self, Kind, Said},
        thin::{self, Query, Text},
        wire::ClientMsg,
    },
    config::{Config, Endpoint, KeyHash, Moment, Net, Secret},
    sim::Faults,
    upstream::{
        Event, ga,
        limits::{self, Board},
        rest,
    },
};

/// A thin client's text message: what was read says the same when it is written again.
pub(super) fn thin(bytes: &[u8]) {
    match thin::read(bytes) {
        Text::Message(ClientMsg::Ping { .. }) | Text::Unknown => {} // a float in it may differ in its last digit
        Text::Message(message) => {
            let again = serde_json::to_vec(&message).unwrap();
            assert_eq!(thin::read(&again), Text::Message(message));
        }
        Text::Invalid { message, .. } => assert!(message.len() < 400, "foreign text in errors stays short: {message}"),
    }
}

/// An event of a client that owns its conversation: it is to us what it is to any reader, and its parts are whole events.
pub(super) fn openai(bytes: &[u8]) {
    let said = Said::read(Bytes::copy_from_slice(bytes));
    let _ = beta::is_beta_update(bytes);
    let _ = openai::with_way_back(bytes, "call", "token", 30);
    let Ok(Value::Object(whole)) = serde_json::from_slice::<Value>(bytes) else { return };
    let ruled = match whole.get("type").and_then(Value::as_str) {
        Some("session.update" | "transcription_session.update") => said.kind == Kind::Configure,
        Some("response.create") => matches!(said.kind, Kind::CreateReply { .. }),
        Some("conversation.item.create") => matches!(said.kind, Kind::CreateItem { .. }),
        Some("input_audio_buffer.commit") => said.kind == Kind::Commit,
        Some("input_audio_buffer.append") => matches!(said.kind, Kind::Append { .. } | Kind::Other),
        _ => !matches!(said.kind, Kind::Configure | Kind::CreateReply { .. } | Kind::CreateItem { .. }),
    };
    assert!(ruled || matches!(said.kind, Kind::Invalid { .. }), "nothing passes as what it is not: {said:?}");
    if let Kind::Append { audio } = &said.kind {
        assert!(said.text.get(audio.clone()).is_some(), "{audio:?}");
        for longest in [0, 8, 13, 64, 1_000] {
            parts_are_whole(&whole, &said, longest);
        }
        let mut rerate = Rerate::to(16_000).expect("another rate");
        let again = rerate.apply(said.text.clone());
        let again: Value = serde_json::from_slice(&again).expect("audio at another rate leaves an event an event");
        assert_eq!(without_audio(again.as_object().expect("an object")), without_audio(&whole));
    }
}

fn without_audio(event: &serde_json::Map<String, Value>) -> serde_json::Map<String, Value> {
    event.iter().filter(|(key, _)| *key != "audio").map(|(key, value)| (key.clone(), value.clone())).collect()
}

fn parts_are_whole(whole: &serde_json::Map<String, Value>, said: &Said, longest: usize) {
    let Some(parts) = said.split(longest) else { return };
    let mut audio = String::new();
    for part in parts {
        let part: Value = serde_json::from_slice(&part).expect("a part is JSON");
        let part = part.as_object().expect("a part is an object");
        assert_eq!(without_audio(part), without_audio(whole), "all but the audio is as it was");
        let piece = part["audio"].as_str().expect("a part has audio");
        assert!(piece.len() <= longest.max(8), "{} of {longest}", piece.len());
        audio.push_str(piece);
    }
    assert_eq!(Some(audio.as_str()), whole["audio"].as_str(), "the parts are the whole");
}

/// The thin door's query: what it agrees to is possible, and its errors stay short.
pub(super) fn query(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let pair = |pair: &str| pair.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()));
    let fields: Vec<(String, String)> = text.split('&').filter_map(pair).collect();
    match Query::parse(&fields) {
        Ok(query) => {
            for format in [query.input, query.output] {
                assert!(format.codec.rates().contains(&format.rate), "{format:?}");
            }
        }
        Err(error) => assert!(error.message.chars().count() < 200, "{error}"),
    }
}

/// Call tokens: the bytes as a token, and as header and claims that are signed well. What is taken is good now.
pub(super) fn token(bytes: &[u8]) {
    const NOW: u64 = 1_795_000_000;
    const LONGEST: u64 = 86_400;
    let secret = "new-0123456789abcdef0123456789abcdef";
    let signer =
        Signer::new("voxrelay", &[SigningKey { id: "new".into(), secret: Secret::new(secret.to_owned()) }], LONGEST);
    let text = String::from_utf8_lossy(bytes);
    let (header, claims) = text.split_once('\n').unwrap_or(("", &text));
    let signed = [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part)).join(".");
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, secret.as_bytes());
    let tag = aws_lc_rs::hmac::sign(&key, signed.as_bytes());
    let signed = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(tag.as_ref()));
    for token in [text.as_ref(), &signed] {
        let Some(found) = signer.read(NOW, token) else { continue };
        let grant = found.grant;
        assert!(grant.kid == "new" && !grant.jti.is_empty() && grant.uses != Some(0), "{grant:?}");
        assert!(grant.made_at <= NOW + 10 && NOW < grant.expires_at, "{grant:?}");
        assert!(grant.expires_at - grant.made_at <= LONGEST, "{grant:?}");
    }
}

/// A configuration, and the small texts in it.
pub(super) fn config(bytes: &[u8]) {
    thread_local!(static FILE: tempfile::NamedTempFile = tempfile::NamedTempFile::new().unwrap());
    FILE.with(|file| {
        fs::write(file.path(), bytes).unwrap();
        match Config::load(Some(file.path()), |_| None) {
            Ok(config) => assert!(config.agents.contains_key("default") && config.audio.chunk_ms >= 20),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    });
    for line in String::from_utf8_lossy(bytes).lines() {
        let value = line.split_once('=').map_or(line, |(_, value)| value).trim().trim_matches('"');
        for plaintext in [false, true] {
            if let Ok(endpoint) = Endpoint::parse(value, plaintext) {
                assert!(!endpoint.host.is_empty() && endpoint.port > 0, "{endpoint:?}");
            }
        }
        let _ = (voxrelay::config::parse_listen(value), voxrelay::config::is_log_level(value));
        let _ = (voxrelay::config::is_origin(value), value.parse::<Net>());
        if let Ok(hash) = value.parse::<KeyHash>() {
            assert_eq!(hash.to_string().parse::<KeyHash>().ok(), Some(hash));
        }
        if let Ok(moment) = value.parse::<Moment>() {
            assert_eq!(moment.to_string().parse::<Moment>().ok(), Some(moment), "{value}");
        }
    }
}

/// The simulator's fault file: an error says a line that there is.
pub(super) fn faults(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let Err(error) = Faults::from_toml(&text) else { return };
    let line = error.split_once("line ").and_then(|(_, rest)| rest.split([':', ',']).next()?.trim().parse().ok());
    let lines = text.matches('\n').count() + 1;
    assert!(line.is_none_or(|line: usize| (1..=lines + 1).contains(&line)), "{lines} lines: {error}");
}

/// Waits that services name: in headers (`name: value`, one a line), in sentences and bare. None is absurd.
pub(super) fn waits(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let sane = |wait: Option<Duration>| assert!(wait.is_none_or(|wait| wait.as_secs() < 300_000_000_000), "{wait:?}");
    let mut headers = HeaderMap::new();
    for line in text.lines() {
        let (bare, said) = (limits::duration(line), ga::retry_after(&format!("Please try again in {line}")));
        sane(bare);
        sane(said);
        if let (Some(bare), Some(said)) = (bare, said) {
            assert!((bare.as_secs_f64() - said.as_secs_f64()).abs() < 1e-3, "{line}: {bare:?}, {said:?}");
        }
        if let Some((name, value)) = line.split_once(':')
            && let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value.trim()))
        {
            headers.append(name, value);
        }
    }
    sane(rest::retry_after(&headers));
    let board = Board::default();
    board.headers(&headers);
    for bucket in board.buckets().values() {
        assert!(bucket.reset_s.is_none_or(|seconds| (0.0..1e9).contains(&seconds)), "{bucket:?}");
    }
}

/// A service's message: the fast ways see what the slow one sees, and audio arrives as it was written.
pub(super) fn upstream(bytes: &[u8]) {
    let (event, glance) = (ga::decode(bytes), ga::glance(bytes));
    limits::heard(&Board::default(), "tenant", &event);
    let only_glanced_at = matches!(
        glance,
        Event::AudioPasses
            | Event::WordsPass
            | Event::ItemDone
            | Event::ItemCut { .. }
            | Event::ItemGone { .. }
            | Event::InputCleared
            | Event::Nothing
            | Event::Unknown
    );
    if !only_glanced_at {
        assert_eq!(glance, event);
    }
    if let Event::SessionCreated { hearing: Some(hearing), .. } | Event::SessionUpdated { hearing: Some(hearing), .. } =
        &event
    {
        let _ = hearing.input.duration(4_800);
    }
    let Ok(value) = serde_json::from_slice::<Value>(bytes) else { return };
    if let Event::Audio { response, item, audio, .. } = &event {
        let text = |field: &str| value[field].as_str().unwrap_or_default();
        assert_eq!((text("response_id"), text("item_id")), (response.as_str(), item.as_str()));
        assert_eq!(STANDARD.decode(text("delta")).as_deref(), Ok(audio.as_ref()));
    }
    if glance == Event::AudioPasses {
        assert!(matches!(event, Event::Audio { .. } | Event::Unknown), "{event:?}");
    }
}

/// Messages, one a line, in the beta's shape and the present one: each way makes events of events.
pub(super) fn beta(bytes: &[u8]) {
    let (mut client, mut service) = (BetaClient::new(Some("model".to_owned())), BetaService::default());
    for line in bytes.split(|b| *b == b'\n').take(64) {
        let line = Bytes::copy_from_slice(line);
        let is_event = matches!(serde_json::from_slice(&line), Ok(Value::Object(_)));
        let ways = [client.up(line.clone()), client.down(line.clone()), service.up(line.clone()), service.down(line)];
        for text in ways.into_iter().flatten().filter(|_| is_event) {
            assert!(matches!(serde_json::from_slice(&text), Ok(Value::Object(_))), "{text:?}");
            let _ = ga::decode(&text);
        }
    }
}
