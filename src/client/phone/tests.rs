//! Every dialect against transcripts of what its provider and others' adapters say (tests/golden/phone).
use std::{fs, path::Path};

use aws_lc_rs::digest::{SHA256, digest};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde_json::Value;

use super::{
    Dialect, Packet, Said, Start,
    asterisk::Asterisk,
    audiosocket::AudioSocket,
    jambonz::{self, Listen},
    json::Json,
    plivo, signalwire, telnyx, twilio,
    vonage::Vonage,
};
use crate::audio::{Codec, Format, g711::Law};

fn rows(name: &str) -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/phone").join(name);
    fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn packet(row: &Value) -> Packet {
    let data = row["data"].as_str().unwrap();
    match row["op"].as_str().unwrap() {
        "text" => Packet::Text(Bytes::copy_from_slice(data.as_bytes())),
        _ => Packet::Binary(STANDARD.decode(data).unwrap().into()),
    }
}

fn pcm(format: Format, bytes: &[u8]) -> Vec<u8> {
    let mut samples = Vec::new();
    match Law::of(format.codec) {
        None => return bytes.to_vec(),
        Some(law) => law.decode_into(bytes, &mut samples),
    }
    samples.iter().flat_map(|sample| sample.to_le_bytes()).collect()
}

/// What was read of a transcript.
#[derive(Debug, Default)]
struct Heard {
    start: Option<Start>,
    pcm: Vec<u8>,
    digits: String,
    played: Vec<String>,
    full: Vec<bool>,
    stopped: bool,
}

fn hear(heard: &mut Heard, said: Said) {
    match said {
        Said::Nothing => {}
        Said::Start(start) => assert!(heard.start.replace(*start).is_none(), "one start"),
        Said::Audio(media) => {
            let format = heard.start.as_ref().expect("a start before audio").input;
            heard.pcm.extend(pcm(format, &media.bytes));
        }
        Said::Digit(digit) => heard.digits.push(digit),
        Said::Played(mark) => heard.played.push(mark),
        Said::Full(full) => heard.full.push(full),
        Said::Stop(_) => heard.stopped = true,
    }
}

/// Reads all that the provider says, checks what must have come of it, and our words against those of the transcript: the same JSON,
/// whatever the order of its fields, and the same audio.
fn replay(name: &str, dialect: &mut dyn Dialect) -> Heard {
    let mut heard = Heard::default();
    for row in rows(name) {
        match row["dir"].as_str() {
            Some("provider->app") => {
                let said = dialect.read(&packet(&row)).unwrap_or_else(|error| panic!("{name}: {error} in {row}"));
                hear(&mut heard, said);
            }
            Some("expect") => {
                if let Some(want) = row["sha256"].as_str() {
                    let sum: String = digest(&SHA256, &heard.pcm).as_ref().iter().map(|b| format!("{b:02x}")).collect();
                    assert_eq!(
                        (sum.as_str(), heard.pcm.len() as u64),
                        (want, row["bytes"].as_u64().unwrap()),
                        "{name}"
                    );
                }
                if let Some(digit) = row["digit"].as_str() {
                    assert!(heard.digits.ends_with(digit), "{name}");
                }
            }
            Some("app->provider") => ours(name, dialect, &row),
            _ => {}
        }
    }
    heard
}

/// We would say the same.
fn ours(name: &str, dialect: &mut dyn Dialect, row: &Value) {
    let theirs = packet(row);
    let text = String::from_utf8_lossy(theirs.bytes()).into_owned();
    let json = |packet: &Packet| serde_json::from_slice::<Value>(packet.bytes()).unwrap();
    let message = serde_json::from_str::<Value>(&text).unwrap_or(Value::Null);
    let word = ["event", "action", "command", "type"].iter().find_map(|key| message[*key].as_str().map(str::to_owned));
    let word = word.unwrap_or_else(|| text.split(' ').next().unwrap().to_owned());
    let mark = |id: &str| dialect.mark(id).unwrap();
    let own = match (&theirs, word.as_str()) {
        (Packet::Binary(audio), _) => {
            assert_eq!(dialect.audio(audio.clone()), Some(theirs.clone()), "{name}");
            return;
        }
        (_, "media" | "playAudio") => {
            let audio = STANDARD.decode(message["media"]["payload"].as_str().unwrap()).unwrap();
            dialect.audio(audio.into()).unwrap()
        }
        (_, "mark") => mark(message.pointer("/mark/name").or(message.pointer("/data/name")).unwrap().as_str().unwrap()),
        (_, "checkpoint") => mark(message["name"].as_str().unwrap()),
        (_, "notify") => mark(message["payload"]["mark"].as_str().unwrap()),
        (_, "MARK_MEDIA") => {
            let id = message["correlation_id"].as_str().or(text.split(' ').nth(1));
            mark(id.unwrap())
        }
        (_, "clear" | "clearAudio" | "killAudio" | "FLUSH_MEDIA") => dialect.clear().unwrap(),
        (_, "HANGUP" | "disconnect") => dialect.hang_up().unwrap(),
        // What we have no use for.
        (_, "clearMarks" | "GET_STATUS" | "START_MEDIA_BUFFERING" | "STOP_MEDIA_BUFFERING") => return,
        (_, other) => panic!("{name}: {other}"),
    };
    match message {
        Value::Null => assert_eq!(own, theirs, "{name}"),
        message => {
            let mut own = json(&own);
            // Plivo's own pages name the rate in the message, others leave it to the stream.
            if message["media"]["sampleRate"].is_null()
                && let Some(media) = own.get_mut("media").and_then(Value::as_object_mut)
            {
                media.remove("sampleRate");
            }
            assert_eq!(own, message, "{name}");
        }
    }
}

#[test]
fn twilio_is_understood_and_spoken() {
    let heard = replay("twilio.jsonl", &mut Json::new(&twilio::TABLE, None));
    let start = heard.start.unwrap();
    assert_eq!(start.call.as_deref(), Some("CA00000000000000000000000000000001"));
    assert_eq!((start.input, start.output), (Format::MULAW, Format::MULAW));
    assert!(start.params["token"].starts_with("rel"));
    assert_eq!((heard.digits.as_str(), heard.stopped), ("5", true));
    assert_eq!(heard.played, ["item_1:400", "item_2:400"]);
}

#[test]
fn telnyx_has_a_codec_for_each_way() {
    for (name, input) in [("telnyx_pcmu.jsonl", Format::MULAW), ("telnyx_pcma.jsonl", Format::ALAW)] {
        let heard = replay(name, &mut Json::new(&telnyx::TABLE, Some(Format::MULAW)));
        let start = heard.start.unwrap();
        assert_eq!((start.input, start.output), (input, Format::MULAW));
        assert_eq!((start.from.as_deref(), start.to.as_deref()), (Some("+13125550100"), Some("+13125550101")));
        assert_eq!(start.call.as_deref(), Some("v3:fixture-call-control-id"));
        assert!(heard.stopped && heard.digits == "5" && heard.played == ["item_1:400"]);
    }
}

#[test]
fn plivo_and_vonage_and_jambonz() {
    let heard = replay("plivo.jsonl", &mut Json::new(&plivo::TABLE, None));
    let start = heard.start.unwrap();
    assert_eq!((start.params["token"].as_str(), start.input), ("relaytoken1", Format::MULAW));
    assert_eq!((heard.digits.as_str(), heard.played), ("5", vec!["item_1:400".to_owned()]));
    let heard = replay("vonage_16k.jsonl", &mut Vonage);
    let start = heard.start.unwrap();
    let wide = |rate| Format { codec: Codec::Pcm16, rate };
    assert_eq!((start.params["token"].as_str(), start.input), ("relay-token-1", wide(16_000)));
    assert_eq!((heard.digits.as_str(), heard.played), ("5", vec!["item_1:400".to_owned()]));
    let heard = replay("jambonz_listen.jsonl", &mut Listen::new(&jambonz::HABITS));
    let start = heard.start.unwrap();
    assert_eq!((start.from.as_deref(), start.output), (Some("15551234567"), wide(24_000)));
    assert!(start.params["token"].starts_with('r'));
    assert_eq!((heard.digits.as_str(), heard.played), ("5", vec!["item_1:400".to_owned()]), "what was cleared was not");
}

#[test]
fn asterisk_speaks_plainly_or_in_json() {
    for name in ["asterisk_chan_websocket_json.jsonl", "asterisk_chan_websocket_plain.jsonl"] {
        let heard = replay(name, &mut Asterisk::default());
        let start = heard.start.unwrap();
        assert_eq!(start.input, Format { codec: Codec::Pcm16, rate: 16_000 });
        assert_eq!(start.call.as_deref(), Some("pbx1-1767225600.1"));
        assert_eq!((heard.digits.as_str(), heard.played), ("5", vec!["item_1:400".to_owned()]));
        assert_eq!(heard.full, [true, false]);
    }
}

#[test]
fn asterisk_has_linear_audio_of_nine_rates() {
    for (name, rate, bytes) in [
        ("slin", 8_000, 320),
        ("slin12", 12_000, 480),
        ("slin16", 16_000, 640),
        ("slin24", 24_000, 960),
        ("slin32", 32_000, 1_280),
        ("slin44", 44_100, 1_764),
        ("slin48", 48_000, 1_920),
        ("slin96", 96_000, 3_840),
        ("slin192", 192_000, 7_680),
    ] {
        let start = Packet::Text(format!("MEDIA_START connection_id:c channel_id:1 format:{name}").into());
        let Ok(Said::Start(start)) = Asterisk::default().read(&start) else { panic!("{name}") };
        assert_eq!((start.input, start.output), (start.output, Format { codec: Codec::Pcm16, rate }), "{name}");
        assert_eq!(start.input.bytes(std::time::Duration::from_millis(20)), bytes, "{name}: a frame");
    }
}

#[test]
fn asterisk_gets_whole_frames_only() {
    let mut asterisk = Asterisk::default();
    let start =
        br#"{"event":"MEDIA_START","connection_id":"c","channel_id":"1","format":"ulaw","optimal_frame_size":480}"#;
    asterisk.read(&Packet::Text(Bytes::from_static(start))).unwrap();
    let mut got = Vec::new();
    for frame in 0..4_u8 {
        got.extend(asterisk.audio(vec![frame; 160].into()));
    }
    got.extend(asterisk.tail());
    let sizes: Vec<usize> = got.iter().map(|packet| packet.bytes().len()).collect();
    assert_eq!(sizes, [480, 480]);
    assert_eq!(got[1].bytes()[..160], [3; 160]);
    assert_eq!(got[1].bytes()[160..], [0xFF; 320], "silence of mu-law");
    assert_eq!(asterisk.tail(), None);
    asterisk.audio(Bytes::from_static(&[9; 160]));
    asterisk.clear();
    assert_eq!(asterisk.tail(), None, "what was held is dropped, too");
}

#[test]
fn signalwire_names_rates_and_takes_keys() {
    let mut wire = Json::new(&signalwire::TABLE, None);
    let start = br#"{"event":"start","start":{"streamSid":"s","callSid":"c","mediaFormat":{"encoding":"audio/x-L16","sampleRate":24000},"customParameters":{}}}"#;
    let Ok(Said::Start(start)) = wire.read(&Packet::Text(Bytes::from_static(start))) else { panic!() };
    assert_eq!(start.input, Format::PCM_24K);
    let media = br#"{"event":"media","media":{"payload":"AAA="}}"#;
    assert!(matches!(wire.read(&Packet::Text(Bytes::from_static(media))), Ok(Said::Audio(_))), "without any id");
    let pressed = wire.press("12#").unwrap();
    assert_eq!(&pressed.bytes()[..], br#"{"event":"dtmf","streamSid":"s","dtmf":{"digit":"12#"}}"#);
}

/// Cuts a stream of frames, as the reader of the socket does.
fn frames(mut bytes: &[u8]) -> Vec<Packet> {
    let mut packets = Vec::new();
    while let [kind, high, low, rest @ ..] = bytes {
        let (body, after) = rest.split_at(usize::from(u16::from_be_bytes([*high, *low])));
        packets.push(Packet::Binary([&[*kind], body].concat().into()));
        bytes = after;
    }
    packets
}

#[test]
fn audiosocket_starts_with_its_first_audio() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/phone/audiosocket_from_asterisk.bin");
    let (mut socket, mut heard, mut bad) = (AudioSocket::default(), Heard::default(), Vec::new());
    for packet in frames(&fs::read(path).unwrap()) {
        match socket.read(&packet) {
            Ok(said) => hear(&mut heard, said),
            Err(error) => bad.push(error.to_string()),
        }
    }
    let start = heard.start.unwrap();
    assert_eq!((start.stream.as_str(), start.input.rate), ("40325ec2-5efd-4bd3-805f-53576e581d13", 8_000));
    assert_eq!((heard.digits.as_str(), heard.stopped), ("5", true));
    // The stream has five frames of another rate, to see whether a reader knows their kind.
    assert_eq!(bad, ["audio of kind 0x12; this call began with 0x10"; 5]);
    assert_eq!(
        socket.audio(Bytes::from_static(&[7; 4])),
        Some(Packet::Binary(Bytes::from_static(&[0x10, 7, 7, 7, 7])))
    );
}

#[test]
fn nonsense_is_told_by_its_field() {
    let twilio = || -> Box<dyn Dialect> { Box::new(Json::new(&twilio::TABLE, None)) };
    let asterisk = || -> Box<dyn Dialect> { Box::new(Asterisk::default()) };
    let text = |text: &str| Packet::Text(Bytes::copy_from_slice(text.as_bytes()));
    let start = text(r#"{"event":"start","start":{"streamSid":"MZ1","mediaFormat":{"encoding":"PCMU"}}}"#);
    for (mut dialect, before, said, want) in [
        (twilio(), None, text("[]"), "a message must be a JSON object"),
        (twilio(), None, text("{"), "not JSON"),
        (twilio(), None, text(r#"{"media":{}}"#), "missing field `event`"),
        (twilio(), None, text(r#"{"event":7}"#), "invalid type"),
        (twilio(), None, Packet::Binary(Bytes::new()), "a binary message; this stream has text messages only"),
        (twilio(), None, text(r#"{"event":"media"}"#), "there is no `media`"),
        (twilio(), None, text(r#"{"event":"media","media":{"payload":"?"}}"#), "media.payload is no base64"),
        (twilio(), None, text(r#"{"event":"start","start":{}}"#), "there is no `start.streamSid`"),
        (twilio(), None, text(r#"{"event":"start","start":{"streamSid":"MZ1"}}"#), "no `start.mediaFormat.encoding`"),
        (
            twilio(),
            None,
            text(r#"{"event":"start","start":{"streamSid":"MZ1","mediaFormat":{"encoding":"OPUS"}}}"#),
            "`OPUS` is not known; allowed: PCMU, PCMA, L16",
        ),
        (
            twilio(),
            None,
            text(
                r#"{"event":"start","start":{"streamSid":"MZ1","mediaFormat":{"encoding":"L16","sampleRate":11025}}}"#,
            ),
            "11025",
        ),
        (
            twilio(),
            Some(&start),
            text(r#"{"event":"media","streamSid":"MZ2","media":{}}"#),
            "stream `MZ2` is another one",
        ),
        (twilio(), Some(&start), text(r#"{"event":"dtmf","dtmf":{"digit":"55"}}"#), "`55` is no key"),
        (twilio(), Some(&start), text(r#"{"event":"mark"}"#), "there is no `mark.name`"),
        (asterisk(), None, text("MEDIA_START format:g729"), "`g729` is not known"),
        (
            asterisk(),
            None,
            text("MEDIA_START format:slin11"),
            "format `slin11` is not known; allowed: ulaw, alaw, slin,",
        ),
        (asterisk(), None, text("MEDIA_START format:slin8"), "format `slin8` is not known"),
        (asterisk(), None, text("MEDIA_START format:slin optimal_frame_size:0"), "optimal_frame_size 0"),
        (asterisk(), None, text("DTMF_END"), "is no key"),
        (Box::new(Vonage), None, text(r#"{"event":"websocket:connected"}"#), "content-type"),
        (
            Box::new(AudioSocket::default()),
            None,
            Packet::Binary(Bytes::from_static(&[0x10, 0])),
            "before the call's UUID",
        ),
        (Box::new(AudioSocket::default()), None, Packet::Binary(Bytes::from_static(&[0x20])), "kind 0x20 is not known"),
        (Box::new(AudioSocket::default()), None, Packet::Binary(Bytes::from_static(&[1, 2])), "1 bytes; a UUID has 16"),
    ] {
        before.into_iter().for_each(|before| drop(dialect.read(before).unwrap()));
        let error = dialect.read(&said).expect_err(want).to_string();
        assert!(error.contains(want), "{error} / {want}");
    }
}
