use std::path::Path;

use aws_lc_rs::digest::{SHA256, digest};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::provider::{
    quirk::{Network, Quirks},
    setup::Provider,
};

const fn at(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A line that is open since 0, with `change` made to its setup.
fn line(provider: Provider, change: impl FnOnce(&mut Setup)) -> Line {
    let mut setup = Setup::new(provider, 1);
    change(&mut setup);
    let mut line = Line::new(setup);
    line.open(Duration::ZERO);
    drain(&mut line, Duration::ZERO);
    line
}

/// What the relay has got by `now`.
fn drain(line: &mut Line, now: Duration) -> Vec<Message> {
    std::iter::from_fn(|| line.poll(now)).collect()
}

fn texts(messages: Vec<Message>) -> Vec<Value> {
    let text = |message| match message {
        Message::Text(text) => serde_json::from_str(&text).unwrap(),
        other => json!(format!("{other:?}")),
    };
    messages.into_iter().map(text).collect()
}

/// A voice: never silent, and no two seconds alike.
fn voice(samples: usize) -> Vec<i16> {
    (0..samples).map(|n| 1_000 + i16::try_from(n * 7 % 20_000).unwrap()).collect()
}

/// The relay's message that plays `audio`, already in the line's coding.
fn play(line: &Line, audio: &[u8]) -> Message {
    let (stream, payload) = (&line.setup().ids.stream, STANDARD.encode(audio));
    let media = line.setup().reply;
    let message = match line.setup().provider {
        Provider::Twilio | Provider::SignalWire => {
            json!({ "event": "media", "streamSid": stream, "media": { "payload": payload } })
        }
        Provider::Telnyx => json!({ "event": "media", "media": { "payload": payload } }),
        Provider::Plivo => {
            let kind = if media.sample_bytes() == 1 { "audio/x-mulaw" } else { "audio/x-l16" };
            let media = json!({ "contentType": kind, "sampleRate": media.rate, "payload": payload });
            json!({ "event": "playAudio", "streamId": stream, "media": media })
        }
        Provider::AudioSocket => {
            let mut bytes = vec![0x10];
            bytes.extend(u16::try_from(audio.len()).unwrap().to_be_bytes());
            bytes.extend(audio);
            return Message::Binary(bytes.into());
        }
        _ => return Message::Binary(Bytes::copy_from_slice(audio)),
    };
    Message::Text(message.to_string())
}

fn say(line: &mut Line, now: Duration, samples: &[i16]) {
    let message = play(line, &line.setup().reply.encode(samples));
    line.handle(now, message);
}

fn mark(line: &Line, name: &str) -> Message {
    let stream = &line.setup().ids.stream;
    let message = match line.setup().provider {
        Provider::Plivo => json!({ "event": "checkpoint", "streamId": stream, "name": name }),
        Provider::Vonage => json!({ "action": "notify", "payload": { "mark": name } }),
        Provider::Jambonz => json!({ "type": "mark", "data": { "name": name } }),
        Provider::ChanWebSocket => json!({ "command": "MARK_MEDIA", "correlation_id": name }),
        _ => json!({ "event": "mark", "streamSid": stream, "mark": { "name": name } }),
    };
    Message::Text(message.to_string())
}

fn clear(line: &Line) -> Message {
    let stream = &line.setup().ids.stream;
    let message = match line.setup().provider {
        Provider::Plivo => json!({ "event": "clearAudio", "streamId": stream }),
        Provider::Vonage => json!({ "action": "clear" }),
        Provider::Jambonz => json!({ "type": "killAudio" }),
        Provider::ChanWebSocket => json!({ "command": "FLUSH_MEDIA" }),
        _ => json!({ "event": "clear", "streamSid": stream }),
    };
    Message::Text(message.to_string())
}

fn command(name: &str) -> Message {
    Message::Text(json!({ "command": name }).to_string())
}

/// Those with marks and a clear.
const MARKING: [Provider; 7] = [
    Provider::Twilio,
    Provider::SignalWire,
    Provider::Telnyx,
    Provider::Plivo,
    Provider::Vonage,
    Provider::Jambonz,
    Provider::ChanWebSocket,
];

/// A second of voice in 20 ms pieces.
fn second(line: &mut Line, now: Duration) -> Vec<i16> {
    let media = line.setup().reply;
    let samples = voice(media.rate as usize);
    for frame in samples.chunks(media.frame_samples()) {
        say(line, now, frame);
    }
    samples
}

#[test]
fn what_is_queued_sounds_in_real_time_and_a_mark_tells_its_end() {
    for provider in MARKING {
        let mut line = line(provider, |_| {});
        let media = line.setup().reply;
        let samples = second(&mut line, at(7));
        let message = mark(&line, "end");
        line.handle(at(7), message);
        assert_eq!(drain(&mut line, at(1_019)), [], "{provider:?}: not before its audio was played");
        let delay = line.setup().ear_delay;
        // The leg's clock ticks at 20 ms, the next one after the audio came.
        assert_eq!(line.ear().first_audible(at(0)), Some(at(20) + delay), "{provider:?}");
        assert_eq!(line.ear().heard(at(520) + delay), at(500), "{provider:?}");
        assert_eq!(line.deadline(), Some(at(1_020)), "{provider:?}");
        assert_eq!(drain(&mut line, at(1_020)).len(), 1, "{provider:?}");
        assert_eq!(line.marked(), [Marked { at: at(1_020), name: line.marked()[0].name.clone(), played: true }]);
        let heard = line.ear().samples(at(2_000));
        assert_eq!(heard, media.decode(&media.encode(&samples)), "{provider:?}");
        assert_eq!((line.violations(), line.deadline()), (&[][..], None), "{provider:?}");
    }
}

#[test]
fn a_clear_leaves_one_frame_and_what_becomes_of_marks_is_the_providers() {
    for provider in MARKING {
        let mut line = line(provider, |_| {});
        second(&mut line, at(0));
        let (end, stop) = (mark(&line, "end"), clear(&line));
        line.handle(at(0), end);
        assert_eq!(drain(&mut line, at(505)), []);
        line.handle(at(505), stop);
        let told = texts(drain(&mut line, at(505)));
        let delay = line.setup().ear_delay;
        assert_eq!(line.ear().last_audible(at(9_000)), Some(at(520) + delay), "{provider:?}");
        assert_eq!(line.clears(), [at(505)]);
        let later = texts(drain(&mut line, at(3_000)));
        match provider {
            Provider::Twilio | Provider::SignalWire | Provider::Telnyx => {
                assert_eq!((&told[0]["event"], &told[0]["mark"]["name"]), (&json!("mark"), &json!("end")));
                assert!(!line.marked()[0].played, "{provider:?}");
            }
            Provider::Plivo => assert_eq!(told[0]["event"], "clearedAudio"),
            Provider::Vonage => assert_eq!(told, [json!({ "event": "websocket:cleared" })]),
            // Not said by the reference: with no audio before it the mark comes as played.
            Provider::Jambonz => assert_eq!(later[0]["data"], json!({ "name": "end", "event": "playout" })),
            _ => assert!(told.is_empty()),
        }
        assert_eq!(told.len(), usize::from(!matches!(provider, Provider::Jambonz | Provider::ChanWebSocket)));
        assert_eq!(later.len(), usize::from(provider == Provider::Jambonz), "{provider:?}: {later:?}");
    }
}

#[test]
fn a_mark_comes_back_at_once_where_nothing_is_queued() {
    let mut line = line(Provider::Twilio, |_| {});
    let message = mark(&line, "now");
    line.handle(at(33), message);
    assert_eq!(texts(drain(&mut line, at(33)))[0]["mark"]["name"], "now");
    // In the middle of a frame: when its part of the frame was played.
    say(&mut line, at(100), &voice(80));
    let message = mark(&line, "half");
    line.handle(at(100), message);
    say(&mut line, at(100), &voice(80));
    assert_eq!(drain(&mut line, at(109)), []);
    assert_eq!(texts(drain(&mut line, at(110)))[0]["mark"]["name"], "half");
}

#[test]
fn broken_rules_are_told_and_not_heard() {
    let telnyx =
        |samples: usize| json!({ "event": "media", "media": { "payload": STANDARD.encode(vec![7; samples]) } });
    let text = |value: Value| Message::Text(value.to_string());
    let bytes = |bytes: usize| Message::Binary(vec![1; bytes].into());
    let cases: Vec<(Provider, Message, &str)> = vec![
        (Provider::Twilio, bytes(160), "31950: a binary message on a stream of text: 160 bytes"),
        (Provider::Twilio, text(json!({ "event": "hello" })), "31924"),
        (Provider::Twilio, Message::Text("{".into()), "31924"),
        (Provider::Twilio, text(json!({ "event": "clear", "streamSid": "MZ1" })), "names the stream MZ1"),
        (Provider::Twilio, text(json!({ "event": "clear" })), "names the stream nothing"),
        (Provider::SignalWire, text(json!({ "event": "media", "streamSid": "?" })), "names the stream ?"),
        (Provider::Telnyx, text(telnyx(159)), "19 ms of audio in a message; allowed: 20 to 30000 ms"),
        (Provider::Telnyx, text(telnyx(240_160)), "30020 ms of audio"),
        (Provider::Telnyx, text(json!({ "event": "media", "media": { "payload": "?" } })), "not base64"),
        (Provider::Telnyx, text(json!({ "event": "mark" })), "no string `mark.name`"),
        (Provider::Plivo, text(json!({ "event": "media" })), "neither `playAudio`"),
        (Provider::Vonage, bytes(639), "a message of 639 bytes; allowed: exactly 640, 20 ms"),
        (Provider::Vonage, bytes(1_280), "1280 bytes"),
        (Provider::Vonage, text(json!({ "action": "notify", "payload": "x" })), "no object `payload`"),
        (Provider::Jambonz, text(json!({ "type": "playAudio" })), "without `streaming`"),
        (Provider::AudioFork, bytes(640), "plays no binary audio"),
        (Provider::ChanWebSocket, bytes(959), "959 bytes beyond a multiple of 960 were dropped"),
        (Provider::ChanWebSocket, text(json!({ "command": "flush_media" })), "an unknown command `flush_media`"),
        (Provider::ChanWebSocket, Message::Text("FLUSH_MEDIA".into()), "not JSON"),
        (Provider::ChanWebSocket, bytes(65_501), "a message of 65501 bytes; allowed: 65500"),
        (Provider::AudioSocket, Message::Binary(Bytes::from_static(&[0x10, 0, 0])), "audio of no bytes"),
        (Provider::AudioSocket, Message::Binary(Bytes::from_static(&[0x03, 0, 1, 53])), "a frame of kind 0x03"),
        (Provider::AudioSocket, Message::Binary(Bytes::from_static(&[0x12, 0, 2, 1, 1])), "audio at 16000 Hz"),
    ];
    for (provider, message, want) in cases {
        let mut line = line(provider, |_| {});
        line.handle(at(10), message.clone());
        drain(&mut line, at(1_000));
        let violations = line.violations();
        assert!(violations.len() == 1 && violations[0].text.contains(want), "{provider:?} {message:?}: {violations:?}");
        assert_eq!(line.ear().heard(at(1_000)), at(0), "{provider:?} {message:?}");
        let fatal = want.contains("65500") || want.contains("of no bytes") || want.contains("kind");
        assert_eq!(line.ended().map(|ended| ended.who), fatal.then_some(Who::Provider), "{want}");
    }
}

#[test]
fn asterisk_says_stop_and_go_and_forgets_what_is_too_much() {
    let mut line = line(Provider::ChanWebSocket, |setup| setup.json_control = true);
    let frame = line.setup().reply.frame_samples();
    for _ in 0..899 {
        say(&mut line, at(0), &voice(frame));
    }
    // The tick at 0 takes one of them.
    assert_eq!(texts(drain(&mut line, at(0))), Vec::<Value>::new());
    say(&mut line, at(1), &voice(frame));
    assert_eq!(drain(&mut line, at(1)), []);
    say(&mut line, at(1), &voice(frame));
    assert_eq!(texts(drain(&mut line, at(1)))[0]["event"], "MEDIA_XOFF");
    for _ in 0..120 {
        say(&mut line, at(1), &voice(frame));
    }
    assert_eq!((line.violations()[0].times, line.violations().len()), (20, 1), "a thousand fit");
    line.handle(at(2), command("GET_STATUS"));
    let status = texts(drain(&mut line, at(2)));
    assert_eq!((&status[0]["queue_length"], &status[0]["queue_full"]), (&json!(1_000), &json!(true)));
    // Of a thousand, 201 must go before there are less than 800.
    assert_eq!(drain(&mut line, at(201 * 20 - 1)), []);
    assert_eq!(texts(drain(&mut line, at(201 * 20)))[0]["event"], "MEDIA_XON");
}

#[test]
fn asterisk_buffers_pauses_and_does_not_go_on_after_a_flush() {
    let mut line = line(Provider::ChanWebSocket, |_| {});
    let media = line.setup().reply;
    let samples = voice(media.frame_samples() * 3 + 100);
    let bytes = media.encode(&samples);
    line.handle(at(0), command("START_MEDIA_BUFFERING"));
    for piece in bytes.chunks(701) {
        line.handle(at(0), Message::Binary(Bytes::copy_from_slice(piece)));
    }
    line.handle(at(0), command("STOP_MEDIA_BUFFERING"));
    line.handle(at(0), command("REPORT_QUEUE_DRAINED"));
    assert_eq!(drain(&mut line, at(79)), []);
    let done = texts(drain(&mut line, at(80)));
    assert_eq!(done[0]["event"], "MEDIA_BUFFERING_COMPLETED");
    assert!(done[0].get("correlation_id").is_none());
    assert_eq!(done[1]["event"], "QUEUE_DRAINED");
    assert_eq!(line.ear().samples(at(1_000)), samples, "the last frame is short, nothing is lost");

    line.handle(at(1_000), command("PAUSE_MEDIA"));
    second(&mut line, at(1_000));
    drain(&mut line, at(1_500));
    line.handle(at(1_500), command("FLUSH_MEDIA"));
    let more = second(&mut line, at(1_500));
    drain(&mut line, at(2_000));
    assert_eq!(line.ear().heard(at(2_000)), media.length(samples.len()), "still paused");
    line.handle(at(2_000), command("CONTINUE_MEDIA"));
    drain(&mut line, at(4_000));
    assert_eq!(line.ear().samples(at(4_000)).len(), samples.len() + more.len());
    assert_eq!(line.violations(), []);
}

#[test]
fn buffers_have_their_providers_bounds() {
    let mut vonage = line(Provider::Vonage, |_| {});
    for _ in 0..3_080 {
        say(&mut vonage, at(1), &voice(320));
    }
    assert_eq!((vonage.violations()[0].times, vonage.queued()), (8, at(3_072 * 20)));
    let mut twilio = line(Provider::Twilio, |_| {});
    for _ in 0..601 {
        say(&mut twilio, at(1), &voice(8_000));
    }
    assert!(twilio.violations()[0].text.starts_with("31931"));
    assert_eq!(twilio.queued(), at(600_000));
    // Behind AudioSocket nothing holds a burst; a paced stream is heard whole.
    let mut burst = line(Provider::AudioSocket, |_| {});
    second(&mut burst, at(1));
    drain(&mut burst, at(2_000));
    assert_eq!((burst.ear().heard(at(2_000)), burst.violations().len()), (at(200), 1));
    let mut paced = line(Provider::AudioSocket, |_| {});
    for n in 0..50 {
        say(&mut paced, at(n * 20 + 3), &voice(160));
        drain(&mut paced, at(n * 20 + 3));
    }
    drain(&mut paced, at(2_000));
    assert_eq!((paced.ear().heard(at(2_000)), paced.violations()), (at(1_000), &[][..]));
}

#[test]
fn the_end_says_who_and_what_was_never_heard() {
    for provider in Provider::ALL {
        let mut line = line(provider, |_| {});
        line.hang_up(at(100));
        let said = drain(&mut line, at(100));
        let stops = matches!(provider, Provider::Twilio | Provider::SignalWire | Provider::Telnyx);
        assert_eq!(said.len(), 1 + usize::from(stops), "{provider:?}");
        assert_eq!(said.last(), Some(&Message::Close { code: 1_000 }));
        assert_eq!(line.ended().map(|ended| ended.who), Some(Who::Caller));
    }
    let mut line = line(Provider::Twilio, |_| {});
    second(&mut line, at(0));
    drain(&mut line, at(100));
    line.handle(at(410), Message::Close { code: 1_000 });
    drain(&mut line, at(5_000));
    let ended = line.ended().unwrap();
    assert_eq!((ended.who, ended.at, ended.unheard), (Who::Relay, at(410), at(580)));
    assert_eq!(line.ear().heard(at(5_000)), at(420));
}

#[test]
fn quirks_happen_and_are_counted() {
    let quirks = Quirks {
        pauses: true,
        duplicate_every: Some(10),
        swap_every: Some(7),
        stop: Stop::Twice,
        early_media: 2,
        wrong_stream_ids: true,
        start_after: at(100),
        holds: Duration::ZERO,
    };
    let mut line = line(Provider::Telnyx, |setup| setup.quirks = quirks);
    for n in 1..=50 {
        let loud = if n % 5 == 0 { vec![0; 160] } else { voice(160) };
        line.speak(at(n * 20), &loud);
    }
    line.hang_up(at(1_010));
    let messages = texts(drain(&mut line, at(1_010)));
    let injected = line.injected();
    assert_eq!((injected.early, injected.stops), (2, 2));
    assert!(injected.paused >= 8 && injected.duplicated >= 3 && injected.swapped >= 4, "{injected:?}");
    assert_eq!([&messages[0]["event"], &messages[1]["event"]], ["media", "media"], "before start");
    assert_eq!(messages[2]["event"], "connected");
    let media: Vec<u64> = messages
        .iter()
        .filter(|message| message["event"] == "media")
        .inspect(|message| assert_ne!(message["stream_id"], line.setup().ids.stream.as_str()))
        .map(|message| message["media"]["chunk"].as_str().unwrap().parse().unwrap())
        .collect();
    let pairs = || media.windows(2);
    assert_eq!(pairs().filter(|pair| pair[0] == pair[1]).count() as u64, injected.duplicated);
    assert_eq!(pairs().filter(|pair| pair[0] > pair[1]).count() as u64, injected.swapped);
    assert_eq!(line.injected().wrong_ids, injected.wrong_ids);
}

#[test]
fn a_network_delays_and_keeps_the_order() {
    let network = Network { to_relay: at(40), from_relay: at(60), jitter: at(30) };
    let mut line = line(Provider::Twilio, |setup| setup.network = network);
    assert!(line.deadline().is_some_and(|due| due >= at(40) && due <= at(70)));
    assert_eq!(drain(&mut line, at(100)).len(), 2);
    second(&mut line, at(100));
    drain(&mut line, at(3_000));
    let first = line.ear().first_audible(at(0)).unwrap();
    assert!(first >= at(160) && first <= at(210), "{first:?}");
    assert_eq!(line.ear().samples(at(3_000)).len(), 8_000);
}

proptest! {
    /// However a relay cuts its audio, the caller hears the same.
    #[test]
    fn any_cutting_gives_the_same_sound(
        cuts in proptest::collection::vec(1usize..900, 1..40),
        which in 0usize..5,
    ) {
        let provider = [Provider::Twilio, Provider::SignalWire, Provider::Plivo, Provider::Jambonz, Provider::ChanWebSocket][which];
        let mut line = line(provider, |_| {});
        let media = line.setup().reply;
        let samples = voice(4_001);
        let bytes = media.encode(&samples);
        if provider == Provider::ChanWebSocket {
            line.handle(at(3), command("START_MEDIA_BUFFERING"));
        }
        let mut rest = bytes.as_slice();
        let mut cuts = cuts.into_iter().cycle();
        while !rest.is_empty() {
            let (piece, more) = rest.split_at(cuts.next().unwrap().min(rest.len()));
            let message = play(&line, piece);
            line.handle(at(3), message);
            rest = more;
        }
        if provider == Provider::ChanWebSocket {
            line.handle(at(3), command("STOP_MEDIA_BUFFERING"));
        }
        drain(&mut line, at(9_000));
        prop_assert_eq!(line.ear().samples(at(9_000)), media.decode(&bytes));
        prop_assert_eq!(line.violations(), &[]);
        let end = line.ear().last_audible(at(9_000)).unwrap() - line.setup().ear_delay;
        prop_assert_eq!(end, at(20) + media.length(samples.len()), "without a gap");
    }
}

proptest! {
    /// Whatever a relay sends, a line says what is wrong with it and goes on or ends.
    #[test]
    fn no_bytes_of_a_relays_break_a_line(
        which in 0usize..9,
        messages in proptest::collection::vec((any::<bool>(), proptest::collection::vec(any::<u8>(), 0..2_000)), 1..20),
        event in "(media|mark|clear|playAudio|checkpoint|dtmf|sendDTMF|notify|killAudio|STOP_MEDIA_BUFFERING)",
    ) {
        let mut line = line(Provider::ALL[which], |_| {});
        for (n, (binary, bytes)) in messages.into_iter().enumerate() {
            let payload = STANDARD.encode(&bytes);
            let text = json!({ "event": event, "type": event, "action": event, "command": event, "name": payload,
                "streamSid": line.setup().ids.stream, "media": { "payload": payload }, "data": bytes });
            let message = if binary { Message::Binary(bytes.into()) } else { Message::Text(text.to_string()) };
            line.handle(at(n as u64 * 7), message);
            drain(&mut line, at(n as u64 * 7));
        }
        drain(&mut line, at(100_000));
        prop_assert!(line.ended().is_some() || line.queued().is_zero());
    }
}

/// One row of a transcript.
struct Row {
    at: Duration,
    to_relay: bool,
    message: Message,
}

/// What a transcript holds, and the SHA-256 of the caller's audio in it.
fn transcript(name: &str) -> (Vec<Row>, Option<String>) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/phone").join(name);
    let (mut rows, mut sum) = (Vec::new(), None);
    for line in std::fs::read_to_string(path).unwrap().lines() {
        let row: Value = serde_json::from_str(line).unwrap();
        if let Some(sha) = row["sha256"].as_str() {
            sum = Some(sha.to_owned());
        }
        let Some(data) = row["data"].as_str() else { continue };
        let message = match row["op"].as_str() {
            Some("text") => Message::Text(data.to_owned()),
            _ => Message::Binary(STANDARD.decode(data).unwrap().into()),
        };
        let to_relay = row["dir"] == "provider->app";
        rows.push(Row { at: at(row["t_ms"].as_u64().unwrap()), to_relay, message });
    }
    (rows, sum)
}

fn parse(message: &Message) -> Value {
    match message {
        Message::Text(text) => serde_json::from_str(text).unwrap_or_else(|_| words(text)),
        Message::Binary(bytes) => json!({ "binary": STANDARD.encode(bytes) }),
        Message::Close { .. } => Value::Null,
    }
}

/// Plain words as an object: what stands bare is under `id`.
fn words(text: &str) -> Value {
    let mut parts = text.split(' ');
    let mut message = json!({ "event": parts.next() });
    for part in parts {
        match part.split_once(':').filter(|(key, _)| key.chars().all(|c| c.is_ascii_lowercase() || c == '_')) {
            Some((key, value)) => message[key] = json!(value),
            None => message["id"] = json!(part),
        }
    }
    message
}

/// Names and kinds of everything in a message; audio, event names and names of marks as they are.
fn shape(message: &Value) -> Value {
    match message {
        Value::Object(map) => map
            .iter()
            .map(|(key, value)| {
                let kept = ["event", "payload", "name", "binary", "id", "digit", "correlation_id", "type", "mark"];
                let whole = kept.contains(&key.as_str()) && value.is_string();
                (key.clone(), if whole { value.clone() } else { shape(value) })
            })
            .collect(),
        Value::Array(list) => json!(list.iter().map(shape).collect::<Vec<_>>()),
        Value::String(_) => json!("text"),
        Value::Number(_) => json!("number"),
        other => other.clone(),
    }
}

/// The caller's audio in a message.
fn audio(message: &Value) -> Option<Vec<u8>> {
    let payload = message["media"]["payload"].as_str().or(message["binary"].as_str())?;
    Some(STANDARD.decode(payload).unwrap())
}

#[test]
fn the_transcripts_could_have_been_ours() {
    let parameters = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    };
    let twilio = parameters(&[("token", "relay-token-1"), ("from_number", "+15005550006")]);
    let token = parameters(&[("token", "relay-token-1")]);
    for (file, provider, media, reply, parameters) in [
        ("twilio.jsonl", Provider::Twilio, Media::MULAW, Media::MULAW, twilio),
        ("telnyx_pcmu.jsonl", Provider::Telnyx, Media::MULAW, Media::MULAW, token.clone()),
        ("telnyx_pcma.jsonl", Provider::Telnyx, Media::ALAW, Media::MULAW, token.clone()),
        ("plivo.jsonl", Provider::Plivo, Media::MULAW, Media::MULAW, token.clone()),
        ("vonage_16k.jsonl", Provider::Vonage, Media::l16(16_000), Media::l16(16_000), token.clone()),
        ("jambonz_listen.jsonl", Provider::Jambonz, Media::l16(24_000), Media::l16(24_000), token.clone()),
        (
            "asterisk_chan_websocket_json.jsonl",
            Provider::ChanWebSocket,
            Media::l16(16_000),
            Media::l16(16_000),
            vec![("TOKEN".to_owned(), "relay-token-1".to_owned())],
        ),
        (
            "asterisk_chan_websocket_plain.jsonl",
            Provider::ChanWebSocket,
            Media::l16(16_000),
            Media::l16(16_000),
            vec![],
        ),
    ] {
        let (rows, sum) = transcript(file);
        let mut setup = Setup::new(provider, 1);
        (setup.media, setup.reply, setup.parameters) = (media, reply, parameters);
        setup.json_control = !file.contains("plain");
        if let Some(Message::Text(text)) = rows.iter().find(|row| !row.to_relay).map(|row| &row.message) {
            let named: Value = serde_json::from_str(text).unwrap_or_default();
            if let Some(stream) = named["streamSid"].as_str().or(named["streamId"].as_str()) {
                setup.ids.stream = stream.to_owned();
            }
        }
        let (line, heard) = replay(&rows, setup);
        let ours: Vec<Value> = line
            .journal()
            .iter()
            .filter(|entry| entry.direction == Direction::ToRelay)
            .map(|entry| shape(&parse(&entry.message)))
            .filter(|shape| !shape.is_null())
            .collect();
        let theirs: Vec<Value> = rows
            .iter()
            .filter(|row| row.to_relay && !is_flow(&row.message))
            .map(|row| shape(&parse(&row.message)))
            .collect();
        for (n, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
            assert_eq!(ours, theirs, "{file}, message {n} of the provider's");
        }
        assert_eq!(ours.len(), theirs.len(), "{file}");
        assert_eq!(line.violations(), [], "{file}: the relay's rows are understood");
        let sent: usize = rows
            .iter()
            .filter(|row| !row.to_relay)
            .filter_map(|row| audio(&parse(&row.message)))
            .map(|audio| audio.len())
            .sum();
        let cut = !line.clears().is_empty();
        let played = line.ear().samples(at(60_000)).len() * reply.sample_bytes();
        assert!(played == sent || cut && played > sent / 2, "{file}: {played} of {sent}");
        if let Some(sum) = sum {
            let digest = digest(&SHA256, &Media::l16(8_000).encode(&heard));
            assert_eq!(digest.as_ref().iter().map(|b| format!("{b:02x}")).collect::<String>(), sum, "{file}");
        }
    }
}

/// XOFF and XON stand in the transcripts without the thousand frames that cause them.
fn is_flow(message: &Message) -> bool {
    matches!(message, Message::Text(text) if text.contains("MEDIA_XO"))
}

/// Plays a transcript's two sides to a line; also what the caller said in it.
fn replay(rows: &[Row], setup: Setup) -> (Line, Vec<i16>) {
    let media = setup.media;
    let mut line = Line::new(setup);
    let mut said = Vec::new();
    line.open(at(0));
    for row in rows {
        drain(&mut line, row.at.saturating_sub(at(1)));
        if !row.to_relay {
            line.handle(row.at, row.message.clone());
            continue;
        }
        let message = parse(&row.message);
        let digit = message["dtmf"]["digit"].as_str().or(message["dtmf"].as_str()).or(message["digit"].as_str());
        if let Some(audio) = audio(&message) {
            let samples = media.decode(&audio);
            line.speak(row.at, &samples);
            said.extend(samples);
        } else if let Some(digit) = digit {
            line.press(row.at, digit.chars().next().unwrap());
        } else if message["event"] == "stop" {
            line.hang_up(row.at);
        }
    }
    drain(&mut line, at(10_000));
    (line, said)
}

#[test]
fn asterisks_flow_control_has_the_transcripts_words() {
    for (file, json) in [("asterisk_chan_websocket_json.jsonl", true), ("asterisk_chan_websocket_plain.jsonl", false)] {
        let wanted: Vec<_> = transcript(file)
            .0
            .into_iter()
            .filter(|row| is_flow(&row.message))
            .map(|row| shape(&parse(&row.message)))
            .collect();
        let mut line = line(Provider::ChanWebSocket, |setup| setup.json_control = json);
        let frame = line.setup().reply.frame_samples();
        (0..950).for_each(|_| say(&mut line, at(0), &voice(frame)));
        let told: Vec<_> = drain(&mut line, at(20_000)).iter().map(|message| shape(&parse(message))).collect();
        assert_eq!(told, wanted, "{file}");
    }
}

const FROM_ASTERISK: &[u8] = include_bytes!("../../../tests/golden/phone/audiosocket_from_asterisk.bin");
const TO_ASTERISK: &[u8] = include_bytes!("../../../tests/golden/phone/audiosocket_to_asterisk.bin");

fn frames(mut bytes: &[u8]) -> Vec<(u8, &[u8])> {
    let mut frames = Vec::new();
    while let [kind, high, low, rest @ ..] = bytes {
        let (payload, more) = rest.split_at(usize::from(u16::from_be_bytes([*high, *low])));
        frames.push((*kind, payload));
        bytes = more;
    }
    frames
}

#[test]
fn audiosockets_bytes_are_asterisks() {
    let mut ours = Vec::new();
    let mut take = |line: &mut Line, now| {
        for message in drain(line, now) {
            if let Message::Binary(bytes) = message {
                ours.extend_from_slice(&bytes);
            }
        }
    };
    let mut setup = Setup::new(Provider::AudioSocket, 1);
    setup.ids.stream = "40325ec2-5efd-4bd3-805f-53576e581d13".to_owned();
    let mut narrow = Line::new(setup.clone());
    narrow.open(at(0));
    // The channel's rate changes in the fixture; here that is a second channel, whose UUID is not looked at.
    let mut wide = Line::new(setup.with_media(Media::l16(16_000)).unwrap());
    wide.open(at(0));
    drain(&mut wide, at(0));
    for (kind, payload) in frames(FROM_ASTERISK) {
        match kind {
            0x10 => narrow.speak(at(10), &Media::l16(8_000).decode(payload)),
            0x12 => wide.speak(at(10), &Media::l16(16_000).decode(payload)),
            0x03 => narrow.press(at(10), char::from(payload[0])),
            0xFF => wide.handle(at(10), Message::Binary(Bytes::from_static(&[0x42, 0, 0]))),
            _ => {}
        }
        take(&mut narrow, at(10));
        take(&mut wide, at(10));
    }
    assert!(ours == FROM_ASTERISK, "{} bytes of {}", ours.len(), FROM_ASTERISK.len());
}

#[test]
fn audiosocket_frames_may_come_in_any_pieces() {
    let said: Vec<i16> =
        frames(TO_ASTERISK).iter().flat_map(|(_, payload)| Media::l16(8_000).decode(payload)).collect();
    for size in 1..=7 {
        let mut line = line(Provider::AudioSocket, |_| {});
        let (audio, hang_up) = TO_ASTERISK.split_at(TO_ASTERISK.len() - 3);
        for piece in audio.chunks(size) {
            line.handle(at(0), Message::Binary(Bytes::copy_from_slice(piece)));
        }
        drain(&mut line, at(500));
        for piece in hang_up.chunks(size) {
            line.handle(at(500), Message::Binary(Bytes::copy_from_slice(piece)));
        }
        assert_eq!(line.ear().samples(at(500)), said, "in pieces of {size}");
        assert_eq!(line.ended().map(|ended| (ended.who, ended.unheard)), Some((Who::Relay, at(0))));
        assert_eq!(line.violations(), []);
    }
}
