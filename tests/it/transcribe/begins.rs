//! Before anything is sent, and after all of it: whoever ends the command then loses nothing either, and another command goes on.
use std::{
    fs,
    io::Write as _,
    process::{Child, Stdio},
};

use rusqlite::Connection;

use super::{Desk, end, signal};
use crate::support::until;

const ARGS: [&str; 6] = ["transcribe", "-", "--min-seconds", "1", "--out", "t.csv"];

impl Desk {
    /// The command, whose list has a first file and is not at its end.
    async fn listing(&self, more: &[&str]) -> Child {
        let mut command = self.command(&[&ARGS[..], more].concat());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.as_mut().unwrap().write_all(b"in/1.wav\n").unwrap();
        until("it lists", || self.path("t.csv.voxrelay-job-pieces").exists()).await;
        child
    }

    /// The same, to its end.
    async fn listed(&self, more: &[&str]) -> super::Ran {
        let mut child = self.listing(more).await;
        child.stdin.as_mut().unwrap().write_all(b"in/2.wav\n").unwrap();
        end(child).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_stopped_while_listing_leaves_nothing() {
    let desk = Desk::new().await;
    (1..3).for_each(|n| desk.made(&format!("in/{n}.wav"), n));
    let before = fs::read_dir(desk.dir.path()).unwrap().count();
    for name in ["-INT", "-TERM"] {
        let mut child = desk.listing(&[]).await;
        let _not_at_its_end = child.stdin.take();
        signal(&child, name);
        let ran = end(child).await;
        assert!(ran.code == 1 && ran.said.contains("stopped, before anything was sent"), "{}", ran.said);
        assert_eq!(fs::read_dir(desk.dir.path()).unwrap().count(), before, "{name}");
    }
    let ran = desk.listed(&[]).await;
    assert_eq!((ran.code, desk.table("t.csv").len()), (0, 2), "{}", ran.said);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_killed_while_listing_begins_again_or_goes_on() {
    for more in [&[][..], &["--resume"]] {
        let desk = Desk::new().await;
        (1..3).for_each(|n| desk.made(&format!("in/{n}.wav"), n));
        let mut child = desk.listing(&[]).await;
        child.kill().unwrap();
        child.wait().unwrap();
        let nothing = desk.run(&["transcribe", "--min-seconds", "1", "--out", "t.csv", "--resume"]).await;
        assert!(nothing.code == 2 && nothing.said.contains("name the files again"), "{}", nothing.said);
        let ran = desk.listed(more).await;
        assert_eq!((ran.code, desk.table("t.csv").len()), (0, 2), "{more:?}: {}", ran.said);
    }
    // No further than its name.
    let desk = Desk::new().await;
    (1..3).for_each(|n| desk.made(&format!("in/{n}.wav"), n));
    fs::write(desk.path("t.csv.voxrelay-job"), "").unwrap();
    let ran = desk.listed(&["--resume"]).await;
    assert_eq!((ran.code, desk.table("t.csv").len()), (0, 2), "{}", ran.said);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_manifest_adds_nothing_to_a_job() {
    let desk = Desk::new().await;
    (1..4).for_each(|n| desk.made(&format!("in/{n}.wav"), n));
    let manifest = |rows: &str| fs::write(desk.path("m.csv"), format!("id,path\n{rows}")).unwrap();
    let args = ["transcribe", "--manifest", "m.csv", "--min-seconds", "1", "--out", "t.csv"];
    manifest("a,in/1.wav\n");
    assert_eq!(desk.run(&args).await.code, 0);
    for (rows, says) in [("a,in/1.wav\nb,in/2.wav\nc\n", "line 4"), ("b,in/2.wav\na,in/3.wav\n", "id `a` means")] {
        manifest(rows);
        let ran = desk.run(&[&args[..], &["--resume"]].concat()).await;
        assert!(ran.code == 2 && ran.said.contains(says), "{}", ran.said);
    }
    manifest("a,in/1.wav\nc,in/3.wav\n");
    let ran = desk.run(&[&args[..], &["--resume"]].concat()).await;
    assert_eq!(
        (ran.code, desk.table("t.csv").len()),
        (0, 2),
        "what the broken ones had named is not in it: {}",
        ran.said
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_change_what_is_asked_may_be_another_when_it_goes_on() {
    let desk = Desk::new().await;
    desk.made("in/1.wav", 1);
    fs::write(desk.path("s.json"), SCHEMA).unwrap();
    let args = ["transcribe", "in", "--min-seconds", "1", "--out", "texts", "--extract"];
    let ran = desk.run(&[&args[..], &["s.json"]].concat()).await;
    assert_eq!(ran.code, 0, "{}", ran.said);
    let paid = desk.paid().requests;
    for more in [&["./s.json", "--resume", "--srt"][..], &["s.json", "--resume", "--vtt"]] {
        let ran = desk.run(&[&args[..], more].concat()).await;
        assert_eq!(ran.code, 0, "{}", ran.said);
    }
    assert!(desk.path("texts/in/1.wav.srt").exists() && desk.path("texts/in/1.wav.vtt").exists());
    assert_eq!(desk.paid().requests, paid);
    fs::write(desk.path("s.json"), SCHEMA.replace("topic", "theme")).unwrap();
    let other = desk.run(&[&args[..], &["s.json", "--resume"]].concat()).await;
    assert!(other.code == 2 && other.said.contains("extract schema was"), "{}", other.said);
}

const SCHEMA: &str = r#"{"type": "object", "properties": {"topic": {"type": "string"}}, "required": ["topic"],
    "additionalProperties": false}"#;
/// So many that their files take a while.
const MANY: u32 = 3_000;
/// As if as many files as that had been done: what takes time shall be what is written of them.
const DONE: &str = "WITH RECURSIVE more (n) AS (SELECT 2 UNION ALL SELECT n + 1 FROM more WHERE n < ?)
    INSERT INTO items (n, state, bytes, duration_ms, seen, id, source, metadata)
    SELECT n, 2, 1, 1, 1, printf('%04d', n), '/' || n, '{}' FROM more";
const TEXTS: &str = "INSERT INTO transcripts SELECT i.n, 0, 0, 0, 0, 0, NULL, t.model, t.language, t.text, t.segments
    FROM items i JOIN transcripts t ON t.item = 1 WHERE i.n > 1";

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_while_results_are_written_ends_it_and_another_run_writes_them() {
    let desk = Desk::new().await;
    desk.made("one.wav", 1);
    let args = ["transcribe", "one.wav", "--min-seconds", "1", "--out", "texts", "--srt", "--vtt"];
    assert_eq!(desk.run(&args).await.code, 0);
    let job = Connection::open(desk.path("texts.voxrelay-job")).unwrap();
    job.execute(DONE, [MANY]).unwrap();
    job.execute(TEXTS, []).unwrap();
    drop(job);
    let args = [&args[..], &["--resume"]].concat();
    let all = 4 * MANY as usize;
    let child = desk.start(&args);
    until("it writes", || desk.path("texts/0002.txt").exists()).await;
    signal(&child, "-INT");
    let ran = end(child).await;
    assert!(ran.code == 1 && ran.said.contains("the results are not written"), "{}", ran.said);
    let left: Vec<_> = fs::read_dir(desk.path("texts")).unwrap().map(|file| file.unwrap().file_name()).collect();
    assert!((5..all).contains(&left.len()), "all is written");
    assert!(left.iter().all(|name| !name.to_string_lossy().starts_with('.')), "something is half written");
    let ran = desk.run(&args).await;
    assert_eq!((ran.code, fs::read_dir(desk.path("texts")).unwrap().count()), (0, all), "{}", ran.said);
    assert_eq!(desk.paid().requests["transcriptions"], 1);
}
