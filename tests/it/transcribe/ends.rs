//! However a run ends (killed, interrupted, without anything to do), another one goes on with it, and nothing is lost or paid twice.
use std::{
    fs,
    io::{BufRead as _, BufReader},
    time::Duration,
};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::time::{self, Instant};
use voxrelay::sim::{TextConfig, config::Delay};

use super::{Desk, RATE, bill, end, signal, sound, wav, whole};
use crate::support::until;

const KILLS: usize = 20;
const SCHEMA: &str = r#"{"type": "object", "properties": {"topic": {"type": "string"}, "angry": {"type": "boolean"}},
    "required": ["topic", "angry"], "additionalProperties": false}"#;

#[tokio::test(flavor = "multi_thread")]
async fn killed_twenty_times_nothing_is_lost_and_nothing_is_paid_twice() {
    let text = TextConfig {
        transcription: Delay { ms: 40, jitter_ms: 40 },
        response: Delay { ms: 30, jitter_ms: 20 },
        ..TextConfig::instant()
    };
    let desk = Desk::with(|_| {}, text, "").await;
    (0..150).for_each(|n| desk.made(&format!("in/{n:03}.wav"), n));
    (0..10).for_each(|n| desk.made(&format!("in/copies/{n}.wav"), n));
    let long: Vec<i16> = (200..250).flat_map(|n| sound(n, RATE)).collect();
    wav(&desk.path("in/long.wav"), RATE, 1, &long);
    fs::write(desk.path("schema.json"), SCHEMA).unwrap();
    let args = [
        "transcribe",
        "in",
        "--min-seconds",
        "1",
        "--piece-seconds",
        "20",
        "--extract",
        "schema.json",
        "--out",
        "out/t.csv",
    ];
    let mut dice = StdRng::seed_from_u64(8);
    for kill in 0..KILLS {
        let more = if kill == 0 { &["--jobs", "2"][..] } else { &["--jobs", "2", "--resume"] };
        let mut child = desk.start(&[&args[..], more].concat());
        if kill == 0 {
            until("there is a job", || desk.path("out/t.csv.voxrelay-job").exists()).await;
        }
        time::sleep(Duration::from_millis(dice.random_range(30..400))).await;
        assert!(child.try_wait().unwrap().is_none(), "{kill}: too few files, it was done before it was killed");
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let before = desk.paid();
    assert!(before.answered["transcriptions"] > 10 && before.answered["responses"] > 5, "{:?}", before.answered);
    let ran = desk
        .run(
            &["transcribe", "in", "--resume", "--jobs", "16", "--min-seconds", "1", "--piece-seconds", "20"]
                .iter()
                .chain(&["--extract", "schema.json", "--out", "out/t.csv"])
                .copied()
                .collect::<Vec<_>>(),
        )
        .await;
    assert_eq!(ran.code, 0, "{}", ran.said);
    let (rows, paid) = (desk.table("out/t.csv"), desk.paid());
    assert_eq!(rows.len(), 161);
    assert!(rows.iter().all(|row| !row["transcript"].is_empty() && !row["topic"].is_empty()));
    assert_eq!((paid.paid_again(), paid.refused.len()), (0, 0));
    let ((cost, ms), (booked, seconds)) = (bill(&rows), desk.booked().await);
    assert_eq!((ms, whole(seconds * 1_000.0), cost), (paid.billed_ms, paid.billed_ms, booked));
    let left: Vec<_> = fs::read_dir(desk.path("out")).unwrap().map(|file| file.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "a table, its job, and nothing that killed runs have left: {left:?}");
    // Nothing is left to do.
    let ran = desk.run(&[&args[..], &["--resume"]].concat()).await;
    assert_eq!((ran.code, desk.paid().requests), (0, paid.requests), "{}", ran.said);
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_waits_for_what_was_sent_and_leaves_a_table() {
    let text = TextConfig { transcription: Delay::ms(200), ..TextConfig::instant() };
    let desk = Desk::with(|_| {}, text, "").await;
    (0..40).for_each(|n| desk.made(&format!("in/{n:03}.wav"), n));
    let args = ["transcribe", "in", "--min-seconds", "1", "--out", "t.csv", "--jobs", "2"];
    let child = desk.start(&args);
    until("some are done", || desk.paid().answered.get("transcriptions").is_some_and(|done| *done >= 5)).await;
    signal(&child, "-INT");
    let ran = end(child).await;
    assert_eq!(ran.code, 1, "{}", ran.said);
    for part in ["stopping: what was sent is waited for", "stopped; what is done is kept", "--resume"] {
        assert!(ran.said.contains(part), "{part}: {}", ran.said);
    }
    let (rows, paid) = (desk.table("t.csv"), desk.paid());
    assert_eq!(
        (rows.len() as u64, paid.requests["transcriptions"]),
        (paid.answered["transcriptions"], rows.len() as u64)
    );
    assert!(rows.len() < 40);
    let ran = desk.run(&[&args[..6], &["--resume"]].concat()).await;
    assert_eq!((ran.code, desk.table("t.csv").len(), desk.paid().paid_again()), (0, 40, 0), "{}", ran.said);
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_once_more_waits_for_nothing() {
    let text = TextConfig { transcription: Delay::ms(60_000), ..TextConfig::instant() };
    let desk = Desk::with(|_| {}, text, "").await;
    (0..4).for_each(|n| desk.made(&format!("in/{n:03}.wav"), n));
    let mut child = desk.start(&["transcribe", "in", "--min-seconds", "1", "--out", "t.csv"]);
    until("all are sent", || desk.paid().requests.get("transcriptions") == Some(&4)).await;
    signal(&child, "-INT");
    let mut said = BufReader::new(child.stderr.take().unwrap()).lines();
    let line = tokio::task::spawn_blocking(move || said.next().unwrap().unwrap()).await.unwrap();
    assert!(line.contains("once more to stop at once"), "{line}");
    let asked = Instant::now();
    signal(&child, "-INT");
    let code = tokio::task::spawn_blocking(move || child.wait().unwrap().code()).await.unwrap();
    assert_eq!(code, Some(1));
    assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
    assert_eq!(desk.table("t.csv").len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_gone_on_with_as_it_was_begun_or_not_at_all() {
    let desk = Desk::new().await;
    desk.made("in/1.wav", 1);
    let args = ["transcribe", "in", "--min-seconds", "1", "--out", "t.csv"];
    let absent = desk.run(&[&args[..], &["--resume"]].concat()).await;
    assert!(absent.code == 2 && absent.said.contains("there is no job"), "{}", absent.said);
    assert_eq!(desk.run(&args).await.code, 0);
    let again = desk.run(&args).await;
    assert!(again.code == 2 && again.said.contains("--resume goes on with it"), "{}", again.said);
    for (more, difference) in [
        (&["--language", "de"][..], "language was not given, now `de`"),
        (&["--model", "whisper-1"], "model was `gpt-transcribe`, now `whisper-1`"),
        (&["--extract", "survey"], "extract "),
    ] {
        let other = desk.run(&[&args[..], &["--resume"], more].concat()).await;
        assert!(other.code == 2 && other.said.contains(difference), "{difference}: {}", other.said);
    }
    // More files may be.
    desk.made("in/2.wav", 2);
    assert_eq!(desk.run(&[&args[..], &["--resume"]].concat()).await.code, 0);
    assert_eq!((desk.table("t.csv").len(), desk.paid().requests["transcriptions"]), (2, 2));
}
