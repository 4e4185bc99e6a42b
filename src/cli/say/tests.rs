//! The whole command against a scripted door over loopback.
use clap::Parser;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use super::*;
use crate::{
    audio::decode::write_wav,
    caller::testbed::{Door, Fake, resumed},
};

#[derive(Debug, Parser)]
struct Command {
    #[command(flatten)]
    say: SayArgs,
}

fn args(words: &[&str]) -> Result<SayArgs, clap::Error> {
    Command::try_parse_from(std::iter::once(&"say").chain(words)).map(|command| command.say)
}

/// A recording of `ms` of a rising ramp at 8 kHz: every sample is its own witness.
fn ramp(folder: &Path, ms: usize) -> (PathBuf, Vec<i16>) {
    let samples: Vec<i16> = (0i16..).step_by(3).take(ms * 8).collect();
    let bytes: Vec<u8> = samples.iter().flat_map(|sample| sample.to_le_bytes()).collect();
    let file = folder.join("question.wav");
    write_wav(&file, Format { codec: Codec::Pcm16, rate: 8_000 }, &bytes).unwrap();
    (file, samples)
}

fn saved(file: &Path) -> Vec<i16> {
    hound::WavReader::open(file).unwrap().samples().collect::<Result<_, _>>().unwrap()
}

const READY: &str = r#"{"type":"ready","call":"call_1","resume":null,"agent":"default","audio":{"in":{"format":"pcm16","rate":8000},"out":{"format":"pcm16","rate":8000}},"limits":{"max_message_bytes":262144,"max_call_s":14400,"resume_window_s":0}}"#;

fn ended(reply: &str, status: &str) -> String {
    let latency = json!({"committed_ms": 11, "reply_started_ms": 12, "first_delta_ms": 13, "first_audio_ms": 14, "relay_added_ms": 1});
    json!({"type": "reply_ended", "reply": reply, "status": status, "audio_ms": 300, "heard_ms": 300, "latency": latency})
        .to_string()
}

/// Reads audio up to the next text, which is not a playback report.
async fn read_turn(door: &mut Door) -> (Vec<u8>, Value) {
    let mut audio = Vec::new();
    loop {
        match door.next().await.expect("the caller stays") {
            Message::Binary(data) => audio.extend_from_slice(&data),
            Message::Text(text) => match serde_json::from_str::<Value>(&text).unwrap() {
                report if report["type"] == "played" => {}
                other => return (audio, other),
            },
            _ => {}
        }
    }
}

/// Runs the command and returns what it printed and how it ended.
async fn say(words: &[&str], url: &str) -> (String, Result<(), String>) {
    let mut out = Vec::new();
    let plan = Plan::new(&args(words).unwrap()).unwrap();
    let result = plan.call(url, &mut Screen::new(&mut out, false)).await;
    (String::from_utf8(out).unwrap(), result.map_err(|error| format!("{error:#}")))
}

#[tokio::test]
async fn a_manual_turn_comes_back_whole() {
    let folder = tempfile::tempdir().unwrap();
    let (file, samples) = ramp(folder.path(), 290);
    let out = folder.path().join("answer.wav");
    let fake = Fake::start(async |mut door| {
        assert!(
            door.request.contains("format=pcm16&rate=8000&out_format=pcm16&out_rate=8000&turns=manual&pace=realtime")
        );
        door.text(READY).await;
        let (audio, message) = read_turn(&mut door).await;
        assert_eq!(message, json!({"type": "commit"}));
        door.text(r#"{"type":"reply_started","reply":"r1"}"#).await;
        for frame in audio.chunks(320) {
            door.binary(frame).await;
        }
        door.text(r#"{"type":"transcript","role":"assistant","item":"i","reply":"r1","delta":"Hello th"}"#).await;
        door.text(
            r#"{"type":"transcript","role":"assistant","item":"i","reply":"r1","text":"Hello there.","final":true}"#,
        )
        .await;
        door.text(&ended("r1", "completed")).await;
        assert_eq!(read_turn(&mut door).await.1, json!({"type": "close"}));
        door.close(1000, "").await;
    })
    .await;
    let words = [file.to_str().unwrap(), "--manual", "--rate", "8000", "--out", out.to_str().unwrap()];
    let (printed, result) = say(&words, &fake.url).await;
    fake.finished().await;
    assert_eq!(result, Ok(()), "{printed}");
    for want in [
        "call_1 with agent default: sending pcm16@8000, getting pcm16@8000, manual turns",
        "saying question.wav: 0.29 s",
        "agent: Hello there.",
        "reply 1 completed: 0.30 s heard of 0.30 s",
        "first delta at the relay             13 ms",
        "0.30 s, reply 1 (0.30 s)",
    ] {
        assert!(printed.contains(want), "{want:?} in\n{printed}");
    }
    let heard = saved(&out);
    assert_eq!(heard[..samples.len()], samples);
    assert_eq!(heard[samples.len()..], [0; 80], "filled up to a whole frame");
}

#[tokio::test]
async fn an_interrupted_reply_is_saved_as_far_as_it_was_heard() {
    let folder = tempfile::tempdir().unwrap();
    let (file, _) = ramp(folder.path(), 100);
    let out = folder.path().join("answer.wav");
    let fake = Fake::start(async |mut door| {
        door.text(READY).await;
        door.text(r#"{"type":"speech_started","at_ms":0}"#).await;
        door.text(r#"{"type":"speech_stopped","at_ms":40}"#).await;
        door.text(r#"{"type":"reply_started","reply":"r1"}"#).await;
        door.binary(&[1; 16_000]).await; // a second
        door.text(r#"{"type":"transcript","role":"assistant","item":"i","reply":"r1","delta":"I was say"}"#).await;
        // 10 frames later the caller speaks again.
        for _ in 0..10 {
            while !matches!(door.next().await, Some(Message::Binary(_))) {}
        }
        door.text(r#"{"type":"speech_started","at_ms":150}"#).await;
        door.text(r#"{"type":"clear","reply":"r1"}"#).await;
        door.text(&ended("r1", "interrupted")).await;
        door.text(r#"{"type":"speech_stopped","at_ms":180}"#).await;
        door.text(r#"{"type":"reply_started","reply":"r2"}"#).await;
        door.binary(&[2; 1_600]).await; // 100 ms
        door.text(&ended("r2", "completed")).await;
        assert_eq!(read_turn(&mut door).await.1, json!({"type": "close"}));
        door.close(1000, "").await;
    })
    .await;
    let words = [file.to_str().unwrap(), "--rate", "8000", "--out", out.to_str().unwrap()];
    let (printed, result) = say(&words, &fake.url).await;
    fake.finished().await;
    assert_eq!(result, Ok(()), "{printed}");
    assert!(printed.contains("sending silence until the last turn is answered"), "{printed}");
    assert!(printed.contains("agent: I was say ..."), "{printed}");
    assert!(printed.contains("end heard at                        0.04 s      0.18 s"), "{printed}");
    assert!(printed.contains(" s, cut from 1.00 s), reply 2 (0.10 s)"), "{printed}");
    let heard = saved(&out);
    let first = heard.iter().filter(|sample| **sample == 0x0101).count();
    assert_eq!(heard.iter().filter(|sample| **sample == 0x0202).count(), 800);
    // Ten frames of 20 ms have passed, and not a whole second.
    assert!((1_000..8_000).contains(&first), "{first}");
}

#[tokio::test]
async fn a_typed_turn_needs_no_recording() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("answer.wav");
    let fake = Fake::start(async |mut door| {
        door.text(READY).await;
        assert_eq!(door.read_text().await, json!({"type": "text", "text": "hi"}));
        door.text(r#"{"type":"tool_call","call_id":"c1","name":"weather","arguments":"{}"}"#).await;
        assert_eq!(read_turn(&mut door).await.1["call_id"], "c1");
        door.text(r#"{"type":"reply_started","reply":"r1"}"#).await;
        door.binary(&[3; 320]).await;
        door.text(&ended("r1", "completed")).await;
        assert_eq!(read_turn(&mut door).await.1, json!({"type": "close"}));
        door.close(1000, "").await;
    })
    .await;
    let (printed, result) = say(&["--text", "hi", "--out", out.to_str().unwrap()], &fake.url).await;
    fake.finished().await;
    assert_eq!(result, Ok(()), "{printed}");
    assert!(printed.contains("asks for the tool weather"), "{printed}");
    assert_eq!(saved(&out), [0x0303; 160]);
}

/// A connection that drops in the middle of the question and in the middle of the answer: what was said arrives whole, what
/// was answered is saved whole, and the command has worked.
#[tokio::test]
async fn a_drop_in_the_question_and_one_in_the_answer_are_survived() {
    let folder = tempfile::tempdir().unwrap();
    let (file, samples) = ramp(folder.path(), 600);
    let out = folder.path().join("answer.wav");
    let fake = Fake::house(async |mut doors| {
        let mut door = doors.open().await;
        door.text(&READY.replace("null", "\"t1\"").replace(":0}", ":30}")).await;
        let mut audio = Vec::new();
        for _ in 0..10 {
            audio.extend(door.read_binary().await);
        }
        drop(door);

        let mut door = doors.open().await;
        assert!(door.request.starts_with("/v1/voice?resume=t1&got=0 "), "{}", door.request);
        door.text(&resumed("t2", 10)).await;
        let (rest, message) = read_turn(&mut door).await;
        assert_eq!(message, json!({"type": "commit"}));
        audio.extend(rest);
        door.text(r#"{"type":"reply_started","reply":"r1"}"#).await;
        let (first, second) = audio.split_at(4_800);
        door.binary(first).await;
        drop(door);

        let mut door = doors.open().await;
        let got = door.request.split("&got=").nth(1).unwrap().split(' ').next().unwrap().to_owned();
        assert!(door.request.starts_with("/v1/voice?resume=t2&got="), "{}", door.request);
        // 30 frames and the commit; playback reports may have come behind them, and come again.
        door.text(&resumed("t3", 31)).await;
        if got == "1" {
            door.binary(first).await;
        }
        door.binary(second).await;
        door.text(&ended("r1", "completed")).await;
        assert_eq!(read_turn(&mut door).await.1, json!({"type": "close"}));
        door.close(1000, "").await;
    })
    .await;
    let words = [file.to_str().unwrap(), "--manual", "--rate", "8000", "--out", out.to_str().unwrap()];
    let (printed, result) = say(&words, &fake.url).await;
    fake.finished().await;
    assert_eq!(result, Ok(()), "{printed}");
    assert_eq!(printed.matches("connection lost (close code 1006, ").count(), 2, "{printed}");
    assert_eq!(printed.matches("back after 0.").count(), 2, "{printed}");
    assert_eq!(saved(&out), samples);
}

#[tokio::test]
async fn a_call_that_fails_says_why() {
    const ERROR: &str = r#"{"type":"error","error":{"code":"upstream_auth","message":"the key was not accepted","retryable":false,"request_id":"q"}}"#;
    let folder = tempfile::tempdir().unwrap();
    let (file, _) = ramp(folder.path(), 60);
    let out = folder.path().join("answer.wav");
    let words = [file.to_str().unwrap(), "--manual", "--wait", "1", "--out", out.to_str().unwrap()];
    for (code, want) in [
        (Some(4502), "the call ended before it was answered: close code 4502, upstream_auth: the key was not accepted"),
        (None, "no answer: nothing has come for 1 s (--wait)"),
    ] {
        let fake = Fake::start(async move |mut door| {
            door.text(READY).await;
            if let Some(code) = code {
                door.text(ERROR).await;
                door.close(code, "").await;
            } else {
                while read_turn(&mut door).await.1["type"] != "close" {}
                door.close(1000, "").await;
            }
        })
        .await;
        let (printed, result) = say(&words, &fake.url).await;
        fake.finished().await;
        assert_eq!(result, Err(want.to_owned()), "{printed}");
        assert!(printed.contains("nothing was heard, so nothing is saved") && !out.exists(), "{printed}");
    }
}

#[test]
fn what_cannot_work_is_said_before_the_call() {
    let folder = tempfile::tempdir().unwrap();
    let (file, _) = ramp(folder.path(), 60);
    let file = file.to_str().unwrap();
    let empty = folder.path().join("empty.wav");
    std::fs::write(&empty, b"").unwrap();
    let folder = folder.path().to_str().unwrap();
    for (words, want) in [
        (
            vec![file, "--rate", "44100"],
            "--rate: rate 44100 is not possible with pcm16; allowed: 8000, 16000, 24000, 48000",
        ),
        (vec![file, "--out-format", "opus", "--out-rate", "8000"], "--out-rate: rate 8000 is not possible with opus"),
        (vec![file, "--out", folder], "is a folder"),
        (vec![file, "--out", "no/such/folder/x.wav"], "--out: there is no folder no/such/folder"),
        (vec!["no_such_file.wav"], "no_such_file.wav"),
        (vec![empty.to_str().unwrap()], "empty.wav"),
        (vec!["--text", "  "], "--text is empty"),
    ] {
        let error = Plan::new(&args(&words).unwrap()).err().map(|error| format!("{error:#}"));
        assert!(error.as_ref().is_some_and(|error| error.contains(want)), "{words:?}: {error:?}");
    }
}

#[test]
fn the_formats_that_are_not_asked_for_follow_the_contract() {
    let folder = tempfile::tempdir().unwrap();
    let (file, _) = ramp(folder.path(), 60);
    let file = file.to_str().unwrap();
    for (words, want) in [
        (vec![file], (Codec::Pcm16, 24_000, Codec::Pcm16, 24_000)),
        (vec![file, "--rate", "16000"], (Codec::Pcm16, 16_000, Codec::Pcm16, 16_000)),
        (vec![file, "--format", "mulaw", "--out-format", "pcm16"], (Codec::Mulaw, 8_000, Codec::Pcm16, 8_000)),
        (vec![file, "--rate", "16000", "--out-format", "alaw"], (Codec::Pcm16, 16_000, Codec::Alaw, 8_000)),
        (
            vec![file, "--format", "opus", "--out-format", "pcm16", "--out-rate", "24000"],
            (Codec::Opus, 48_000, Codec::Pcm16, 24_000),
        ),
    ] {
        let options = Plan::new(&args(&words).unwrap()).unwrap().options;
        let got = (options.format, options.rate, options.out_format, options.out_rate);
        assert_eq!(got, (Some(want.0), Some(want.1), Some(want.2), Some(want.3)), "{words:?}");
    }
}

#[test]
fn bad_arguments_name_what_is_allowed() {
    for (words, wants) in [
        (vec!["f", "--format", "mp3"], vec!["'mp3'", "--format", "pcm16, mulaw, alaw, opus"]),
        (vec!["f", "--pace", "slow"], vec!["'slow'", "--pace", "realtime, fast"]),
        (vec!["f", "--rate", "fast"], vec!["'fast'", "--rate", "8000, 16000, 24000, 48000"]),
        (vec!["f", "--wait", "0"], vec!["'0'", "--wait", "1..=86400"]),
        (vec![], vec!["<FILE>"]),
        (vec!["f", "--text", "x"], vec!["cannot be used with"]),
    ] {
        let error = args(&words).unwrap_err().to_string();
        for want in wants {
            assert!(error.contains(want), "{want}: {error}");
        }
    }
    let debug = format!("{:?}", args(&["f", "--token", "sesame"]).unwrap());
    assert!(!debug.contains("sesame"), "{debug}");
}
