use std::{path::Path, sync::Arc};

use super::*;
use crate::{
    audio::testing::file,
    batch::{engine::Either, join::Transcript, relay::Relay},
    config::{Config, Secret},
    serve::Server,
    sim::{Faults, Sim, SimConfig},
    text::{Kind, outcome::Outcome},
};

const LONGEST: Duration = Duration::from_secs(60);

/// A file of so many samples at 24 kHz.
pub(super) fn wav(length: usize, sample: impl Fn(usize) -> i16) -> tempfile::NamedTempFile {
    let out = tempfile::NamedTempFile::new().unwrap();
    let spec =
        hound::WavSpec { channels: 1, sample_rate: RATE, bits_per_sample: 16, sample_format: hound::SampleFormat::Int };
    let mut writer = hound::WavWriter::create(out.path(), spec).unwrap();
    // A square, so that there is something to be heard.
    (0..length).for_each(|at| {
        let loud = sample(at);
        writer.write_sample(if at % 80 < 40 { loud } else { -loud }).unwrap();
    });
    writer.finalize().unwrap();
    out
}

/// 80 seconds: half a second of sound, half a second of nothing, each one a bit louder than the last.
fn spoken() -> tempfile::NamedTempFile {
    let second = RATE as usize;
    let louder = |at: usize| i16::try_from(2_000 + at / second * 100).unwrap();
    wav(80 * second, |at| if at % second < second / 2 { louder(at) } else { 0 })
}

fn upload(path: impl AsRef<Path>) -> Upload {
    Upload { path: path.as_ref().to_owned(), name: "a.wav".to_owned(), media_type: "audio/wav" }
}

fn hello() -> Upload {
    upload(file("assets/hello.wav"))
}

fn wish() -> Wish {
    let (language, prompt) = (Some("en".to_owned()), Some("voxrelay".to_owned()));
    Wish { model: "gpt-transcribe".to_owned(), language, prompt, times: false }
}

async fn sim(faults: &str) -> Sim {
    let faults = if faults.is_empty() { Faults::default() } else { Faults::from_toml(faults).unwrap() };
    Sim::start("127.0.0.1:0".parse().unwrap(), SimConfig::instant(), faults).await.unwrap()
}

fn key(text: &str) -> Option<SecretString> {
    Some(text.to_owned().into())
}

fn sessions(base: &str) -> Realtime {
    Realtime::new(base, key("sk-good"), Vec::new(), LONGEST).unwrap()
}

fn rest(base: &str) -> Relay {
    Relay::new(base, key("sk-good"), Vec::new(), LONGEST).unwrap()
}

fn text(answer: &Answer) -> String {
    Transcript::read(&answer.body).unwrap().text
}

#[tokio::test]
async fn a_session_says_what_the_address_for_files_says() {
    let sim = sim("").await;
    let long = spoken();
    for (upload, turns) in [(hello(), 1), (upload(long.path()), 2)] {
        let want = rest(&sim.base_url()).transcribe(&upload, &wish(), "k").await.unwrap();
        let before = sim.stats();
        let found = sessions(&sim.base_url()).transcribe(&upload, &wish()).await.unwrap();
        assert!(text(&want).len() > 20, "{}", text(&want));
        assert_eq!(text(&found), text(&want));
        let seconds = |answer: &Answer| Outcome::read(Kind::Transcription, &answer.body).unwrap().seconds.unwrap();
        assert!((seconds(&found) - seconds(&want)).abs() < 0.1, "{} {}", seconds(&found), seconds(&want));
        let (now, last) = (sim.stats(), Transcript::read(&found.body).unwrap().segments.pop().unwrap());
        assert!((last.end_s - seconds(&want)).abs() < 0.1 && last.estimated, "{last:?}");
        assert_eq!((now.commits - before.commits, now.sessions_opened - before.sessions_opened), (turns, 1));
        assert_eq!(now.errors, before.errors);
    }
    assert_eq!(sim.stats().closed_by_client.get(&1_000), Some(&2), "{:?}", sim.stats().closed_by_client);
    sim.stop().await;
}

#[tokio::test]
async fn two_recordings_at_once_are_two_sessions() {
    let sim = sim("").await;
    let other = upload(file("tests/clips/long_turn_pause_24k.flac"));
    let (engine, rest) = (sessions(&sim.base_url()), rest(&sim.base_url()));
    let (hello, wish) = (hello(), wish());
    let (one, two) = tokio::join!(engine.transcribe(&hello, &wish), engine.transcribe(&other, &wish));
    let (one, two) = (text(&one.unwrap()), text(&two.unwrap()));
    assert_eq!(one, text(&rest.transcribe(&hello, &wish, "a").await.unwrap()));
    assert_eq!(two, text(&rest.transcribe(&other, &wish, "b").await.unwrap()));
    assert_ne!(one, two);
    assert_eq!(sim.stats().sessions_opened, 2);
    sim.stop().await;
}

#[tokio::test]
async fn a_relay_in_between_changes_no_word() {
    let sim = sim("").await;
    let mut config = Config::load(None, |_| None).unwrap();
    config.server.listen = "127.0.0.1:0".parse().unwrap();
    config.upstream.url = Some(sim.base_url());
    config.upstream.api_key = Some(Secret::new("sk-good"));
    let relay = Server::start(config, None).await.unwrap();
    let base = format!("http://{}/v1", relay.addr());
    let long = spoken();
    for (key, upload) in [("a", hello()), ("b", upload(long.path()))] {
        let found = sessions(&base).transcribe(&upload, &wish()).await.unwrap();
        assert_eq!(text(&found), text(&rest(&base).transcribe(&upload, &wish(), key).await.unwrap()));
    }
    relay.drain(std::future::ready(())).await;
    sim.stop().await;
}

/// What becomes of a recording where this goes wrong, and how often it did.
async fn failed(faults: &str) -> (Failure, Sim) {
    let sim = sim(faults).await;
    let mut engine = sessions(&sim.base_url());
    engine.patience = Duration::from_millis(300);
    (engine.transcribe(&hello(), &wish()).await.unwrap_err(), sim)
}

#[tokio::test]
async fn what_goes_wrong_is_told_apart() {
    let faults = [
        ("kind = \"fail_transcript\"\nturn = 1", "fail_transcript", "item audio_unintelligible"),
        ("kind = \"refuse\"\nstatus = 401", "refuse", "stop"),
        ("kind = \"refuse\"\nstatus = 404\nbody = \"\"", "refuse", "stop not_found"),
        ("kind = \"refuse\"\nstatus = 429\nretry_after_s = 7", "refuse", "wait 7s"),
        ("kind = \"refuse\"\nstatus = 500", "refuse", "again"),
        ("kind = \"close\"\ncode = 1013\nreason = \"overloaded\"", "close", "wait 2s"),
        (
            "kind = \"close\"\ncode = 1013\nreason = \"insufficient_quota.insufficient_quota\"",
            "close",
            "stop insufficient_quota",
        ),
        ("kind = \"close\"\ncode = 1001\nreason = \"restart\"\nafter_audio_ms = 2000", "close", "again"),
        ("kind = \"die\"\nafter_audio_ms = 2000", "die", "again"),
        ("kind = \"die\"\nafter_audio_ms = 2000\nreset = true", "die", "again"),
        (
            "kind = \"error\"\ncode = \"server_error\"\nerror_type = \"server_error\"\nafter_audio_ms = 100",
            "error",
            "again",
        ),
        ("kind = \"no_created\"", "no_created", "again"),
        ("kind = \"stall_send\"\nafter_audio_ms = 5000", "stall_send", "again"),
        ("kind = \"swallow\"\nevent = \"conversation.item.input_audio_transcription.completed\"", "swallow", "again"),
    ];
    let all = faults.map(async |(fault, kind, want)| {
        let (failure, sim) = failed(&format!("[[fault]]\n{fault}\n")).await;
        let found = match &failure {
            Failure::Item { code, .. } => format!("item {code}"),
            Failure::Stop { code, .. } => format!("stop {code}"),
            Failure::Wait { wait, .. } => format!("wait {wait:?}"),
            Failure::Away { .. } => "away".to_owned(),
            Failure::Again { .. } => "again".to_owned(),
        };
        assert!(found.starts_with(want), "{fault}: {failure:?}");
        assert!(sim.stats().faults.get(kind).is_some_and(|fired| *fired > 0), "{fault}: {:?}", sim.stats().faults);
        sim.stop().await;
    });
    futures_util::future::join_all(all).await;
}

#[tokio::test]
async fn a_session_that_is_refused_after_the_upgrade_stops_the_run() {
    let sim = sim("").await;
    let engine = Realtime::new(&sim.base_url(), key("sk-bad"), Vec::new(), LONGEST).unwrap();
    let other = Wish { model: "gpt-of-tomorrow".to_owned(), ..wish() };
    for (engine, wish, want) in
        [(engine, wish(), "invalid_api_key"), (sessions(&sim.base_url()), other, "invalid_value")]
    {
        let failure = engine.transcribe(&hello(), &wish).await.unwrap_err();
        assert!(matches!(&failure, Failure::Stop { code, .. } if code == want), "{failure:?}");
    }
    let wordy = Wish { model: "whisper-1".to_owned(), prompt: Some("x".repeat(1_025)), ..wish() };
    let failure = sessions(&sim.base_url()).transcribe(&hello(), &wordy).await.unwrap_err();
    assert!(matches!(&failure, Failure::Item { code, .. } if code == "string_above_max_length"), "{failure:?}");
    sim.stop().await;
    let gone = sessions("http://127.0.0.1:1").transcribe(&hello(), &wish()).await.unwrap_err();
    assert!(matches!(gone, Failure::Away { .. }), "{gone:?}");
}

#[tokio::test]
async fn a_file_is_read_no_faster_than_it_is_taken() {
    let sim = sim("[[fault]]\nkind = \"stall_read\"\nafter_audio_ms = 1000\n").await;
    let long = wav(600 * RATE as usize, |_| 1_000);
    let mut engine = sessions(&sim.base_url());
    engine.patience = Duration::from_secs(1);
    let mut sound = Sound::open(long.path()).await.unwrap();
    let mut session = engine.open().await.unwrap();
    let failure = session.write_down(&mut sound, &wish()).await.unwrap_err();
    assert!(matches!(failure, Failure::Again { .. }), "{failure:?}");
    assert_eq!(sim.stats().faults.get("stall_read"), Some(&1));
    assert!(session.socket.queued_bytes() < 100_000, "{} bytes wait", session.socket.queued_bytes());
    assert!(sound.next().await.unwrap().is_some_and(|chunk| chunk.samples.len() > 1_000), "it was read to its end");
    drop(session);
    sim.stop().await;
}

#[tokio::test]
async fn where_there_is_no_address_for_files_sessions_take_over_once() {
    let sim = sim("[[fault]]\nkind = \"refuse\"\ndoor = \"transcriptions\"\nstatus = 404\nbody = \"\"\n").await;
    let either: Arc<dyn Engine> = Arc::new(Either::new(rest(&sim.base_url()), sessions(&sim.base_url())));
    let mut refused = Vec::new();
    for _ in 0..3 {
        let answer = either.transcribe(&hello(), &wish(), "k").await.unwrap();
        assert!(text(&answer).len() > 5);
        refused.push(sim.stats().faults.get("refuse").copied().unwrap_or_default());
    }
    // Twice where it had hung up before the recording was out.
    assert!(
        matches!(refused[..], [1..=2, second, third] if second == refused[0] && third == refused[0]),
        "{refused:?}"
    );
    assert_eq!(sim.stats().sessions_opened, 3);
    sim.stop().await;
}

#[tokio::test]
async fn where_there_is_one_it_is_taken_for_good() {
    let sim =
        sim("[[fault]]\nkind = \"refuse\"\ndoor = \"transcriptions\"\nsession = 2\nstatus = 404\nbody = \"\"\n").await;
    let either = Either::new(rest(&sim.base_url()), sessions(&sim.base_url()));
    let transcribe = async |key| Engine::transcribe(&either, &hello(), &wish(), key).await;
    assert!(transcribe("a").await.is_ok());
    let failure = transcribe("b").await.unwrap_err();
    // It may have hung up before the recording was out.
    let lost = matches!(failure, Failure::Again { .. });
    assert!(lost || matches!(&failure, Failure::Stop { code, .. } if code == NO_ADDRESS), "{failure:?}");
    assert!(transcribe("c").await.is_ok());
    assert_eq!(sim.stats().attempts, 0, "no session was asked for");
    sim.stop().await;
}

#[test]
fn addresses_are_those_of_the_base() {
    for (base, want) in [
        ("http://127.0.0.1:8080/v1", "ws://127.0.0.1:8080/v1/realtime?intent=transcription"),
        ("https://relay.example", "wss://relay.example/v1/realtime?intent=transcription"),
    ] {
        assert_eq!(sessions(base).url, want);
    }
    assert!(Realtime::new("ws://h", None, Vec::new(), LONGEST).unwrap_err().contains("allowed"));
}
