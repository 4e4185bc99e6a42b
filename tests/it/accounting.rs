//! The usage ledger at the doors (fault matrix D2, O2), and `voxrelay usage` on its file.
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use rusqlite::Connection;
use serde_json::json;
use tokio::time::Instant;
use voxrelay::{
    client::wire::Usage,
    ledger::{Entry, Health, Kind, Ledger},
    sim::SimConfig,
};

use crate::{
    commands::{Listening, run, voxrelay},
    resume::{Line, numbered},
    support::{Answer, Got, PATIENCE, Rig, get, tenant, until},
};

fn entry(id: &str) -> Entry {
    Entry {
        id: id.to_owned(),
        kind: Kind::Reply,
        call: "call_1".to_owned(),
        session: "sess_1".to_owned(),
        tenant: "acme".to_owned(),
        key: Some("backend".to_owned()),
        user: Some("ann".to_owned()),
        agent: "default".to_owned(),
        model: "gpt-realtime-2.1".to_owned(),
        route: "default/gpt-realtime-2.1".to_owned(),
        door: "thin".into(),
        at: 1_795_219_200_000,
        status: "completed".to_owned(),
        usage: Usage { total_tokens: 30, input_tokens: 10, output_tokens: 20, ..Usage::default() },
        seconds: None,
        audio_ms: 90_000,
        heard_ms: 60_000,
        first_audio_ms: None,
        waited_ms: None,
        reason: None,
        estimated: false,
        cost: None,
    }
}

/// A ledger that somebody else holds: whoever writes is told that it is busy, for as long as this lives.
struct Held(Connection);

impl Held {
    fn hold(file: &Path) -> Self {
        let sql = Connection::open(file).unwrap();
        sql.execute_batch("BEGIN IMMEDIATE").unwrap();
        Self(sql)
    }

    /// Nobody has written meanwhile.
    fn rows(&self) -> i64 {
        self.0.query_row("SELECT count(*) FROM usage", [], |row| row.get(0)).unwrap()
    }
}

async fn rig(file: &Path, grace_s: u64) -> (Rig, String) {
    let (file, mut key) = (file.to_owned(), String::new());
    let rig = Rig::configured(|config| {
        config.ledger.file = Some(file);
        config.ledger.grace_s = grace_s;
        key = tenant(config, "acme", |_| {});
    })
    .await;
    (rig, key)
}

fn folder() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ledger.db");
    (dir, file)
}

/// Every door that opens sessions, and what it says.
async fn refusals(rig: &Rig, key: &str) -> Vec<(&'static str, Answer)> {
    let asked = |what, request: reqwest::RequestBuilder| async move { (what, crate::support::answer(request).await) };
    let upgrade = |path| {
        let headers = [("connection", "Upgrade"), ("upgrade", "websocket"), ("sec-websocket-version", "13")];
        let request = rig.request("GET", path, key).header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
        headers.into_iter().fold(request, |request, (name, value)| request.header(name, value))
    };
    let sdp = rig.request("POST", "/v1/realtime/calls", key).header("content-type", "application/sdp");
    let offer = "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\nm=audio 9 UDP/TLS/RTP/SAVPF 111\r\n";
    let accept = rig.request("POST", "/v1/realtime/calls/rtc_u1_ringing/accept", key);
    vec![
        asked("thin", upgrade("/v1/voice")).await,
        asked("thin, only asked", rig.request("GET", "/v1/voice", key)).await,
        asked("openai", upgrade("/v1/realtime?model=gpt-realtime-2.1")).await,
        asked("webrtc", sdp.body(offer)).await,
        asked("sip", accept.json(&json!({"type": "realtime"}))).await,
    ]
}

#[tokio::test]
async fn past_the_grace_new_calls_are_refused_at_every_door_until_it_can_be_written_again() {
    let (_dir, file) = folder();
    let (rig, key) = rig(&file, 0).await;
    let mut before = rig.dial("/v1/voice?turns=manual", &key).await.unwrap_or_else(|refused| panic!("{refused:?}"));
    before.until("ready").await;
    assert_eq!(get(&rig, "/readyz", "").await.0, 200);
    let held = Held::hold(&file);
    rig.relay.ledger().book(entry("resp_1"));
    until("no more calls", || !rig.relay.ledger().accepts(Instant::now())).await;
    let (status, _, text) = get(&rig, "/readyz", "").await;
    assert!(status == 503 && text.ends_with("degraded: usage cannot be written, new calls are refused\n"), "{text}");
    for (door, refused) in refusals(&rig, &key).await {
        assert_eq!(
            (refused.status, refused.code().as_str()),
            (503, "accounting_unavailable"),
            "{door}: {}",
            refused.text
        );
        let wait: u64 = refused.header("retry-after").parse().unwrap();
        assert!(wait >= 1, "{door}: {wait}");
    }
    // What runs goes on, and may still be booked.
    before.json(r#"{"type":"ping","t":1}"#).await;
    assert_eq!(before.until("pong").await["t"], 1);
    rig.relay.ledger().book(entry("resp_2"));
    // Whoever comes back to a call is answered as ever: by the call, not by the ledger.
    let mut back = rig.dial("/v1/voice?resume=unknown&got=0", &key).await.unwrap_or_else(|no| panic!("{no:?}"));
    assert_eq!(back.end().await, (Some("resume_refused".to_owned()), 4410));
    assert_eq!(held.rows(), 0, "the fault was there all the time");
    drop(held);
    assert_eq!(rig.relay.ledger().flush(PATIENCE).await, 0);
    assert_eq!((get(&rig, "/readyz", "").await.0, rig.relay.ledger().health(Instant::now())), (200, Health::Good));
    let mut after = rig.dial("/v1/voice", &key).await.unwrap_or_else(|refused| panic!("{refused:?}"));
    after.until("ready").await;
    // Said again by somebody who does not know better.
    rig.relay.ledger().book(Entry { estimated: true, ..entry("resp_1") });
    assert_eq!(rig.relay.ledger().flush(PATIENCE).await, 0);
    assert_eq!(Held::hold(&file).rows(), 2, "nothing lost, nothing doubled");
}

#[tokio::test]
async fn within_the_grace_calls_are_taken_and_readyz_has_a_word() {
    let (_dir, file) = folder();
    let (rig, key) = rig(&file, 86_400).await;
    let held = Held::hold(&file);
    rig.relay.ledger().book(entry("resp_1"));
    until("failing", || matches!(rig.relay.ledger().health(Instant::now()), Health::Failing { .. })).await;
    let (status, _, text) = get(&rig, "/readyz", "").await;
    assert!(status == 200 && text.ends_with("ready, but usage cannot be written\n"), "{text}");
    for path in ["/v1/voice", "/v1/realtime"] {
        let mut call = rig.dial(path, &key).await.unwrap_or_else(|refused| panic!("{path}: {refused:?}"));
        assert!(matches!(call.next().await, Got::Json(_)), "{path}");
    }
    assert_eq!(held.rows(), 0);
}

#[tokio::test]
async fn a_relay_that_leaves_has_written_everything() {
    let (_dir, file) = folder();
    let (rig, _) = rig(&file, 60).await;
    (0..1_000).for_each(|n| rig.relay.ledger().book(entry(&format!("resp_{n}"))));
    rig.relay.drain(std::future::ready(())).await;
    assert_eq!(Held::hold(&file).rows(), 1_000);
}

#[tokio::test]
async fn a_relay_whose_ledger_cannot_be_opened_does_not_start() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("voxrelay.db");
    drop(voxrelay::admit::store::Store::open(&store).unwrap());
    let mut config = crate::support::config("http://127.0.0.1:9/v1");
    config.ledger.file = Some(store.clone());
    let error = voxrelay::serve::Server::start(config, None).await.unwrap_err().to_string();
    for part in ["no usage ledger", "voxrelay.db", "--ledger", "ledger.file"] {
        assert!(error.contains(part), "{error}");
    }
}

#[tokio::test]
async fn usage_sums_up_what_a_running_relay_writes() {
    let (dir, file) = folder();
    let usage = |args: &[&str]| run(voxrelay().arg("usage").arg("--ledger").arg(&file).args(args));
    let (code, stdout, stderr) = usage(&[]);
    assert!(
        code == 2 && stdout.is_empty() && stderr.contains("there is no ledger") && stderr.contains("--ledger"),
        "{stderr}"
    );
    assert!(!file.exists(), "whoever asks makes none");
    let ledger = Ledger::open(&file, Duration::from_secs(60)).unwrap();
    let (code, stdout, stderr) = usage(&[]);
    assert!(code == 0 && stdout.is_empty() && stderr.contains("nothing was used"), "{stdout}{stderr}");
    ledger.book(entry("resp_1"));
    ledger.book(Entry { estimated: true, user: None, ..entry("resp_2") });
    ledger.book(Entry { tenant: "other".to_owned(), at: 1_795_305_600_000, ..entry("resp_3") });
    assert_eq!(ledger.flush(PATIENCE).await, 0);
    let (code, stdout, stderr) = usage(&[]);
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let lines: Vec<Vec<String>> = stdout.lines().map(words).collect();
    assert_eq!((code, stderr.as_str()), (0, ""));
    let line = ["acme", "1", "2", "0", "0", "0", "0.0", "0", "0", "3.0", "2.0", "~1", "?"];
    assert_eq!(lines[1], line, "{stdout}");
    assert_eq!((&lines[3][..3], lines.len()), (&words("total 1 3")[..], 7), "{stdout}");
    assert!(stdout.contains("estimates") && stdout.contains("the cost of 3 of 3 replies"), "{stdout}");
    let (_, stdout, _) = usage(&["--by", "route", "--cost"]);
    assert!(stdout.contains("default/gpt-realtime-2.1") && stdout.contains("cached USD"), "{stdout}");
    let (_, stdout, _) = usage(&["--json", "--by", "user", "--tenant", "acme", "--until", "2026-11-22"]);
    let json: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((json[0]["user"].as_str(), json[0]["estimated"].as_u64()), (Some(""), Some(1)));
    assert_eq!((json[1]["user"].as_str(), json[1]["total_tokens"].as_u64()), (Some("ann"), Some(30)));
    let (_, stdout, _) = usage(&["--csv", "--by", "day", "--since", "2026-11-22T00:00:00Z"]);
    assert_eq!(stdout.lines().nth(1).map(|line| line.starts_with("2026-11-22,1,1,0,")), Some(true), "{stdout}");
    for (args, part) in [
        (&["--since", "soon"][..], "2027-01-31"),
        (&["--since", "2027-01-31", "--until", "2027-01-30"], "--until must be later"),
        (&["--by", "colour"], "tenant"),
        (&["--csv", "--json"], "--json"),
    ] {
        let (code, _, stderr) = usage(args);
        assert!(code == 2 && stderr.contains(part), "{args:?}: {stderr}");
    }
    drop(ledger);
    // Another kind of file; and none at all.
    let config = dir.path().join("none.toml");
    std::fs::write(&config, "[ledger]\nfile = \"\"\n").unwrap();
    let (code, _, stderr) = run(voxrelay().arg("usage").arg("--config").arg(&config));
    assert!(code == 2 && stderr.contains("ledger.file is empty"), "{stderr}");
    let (code, _, stderr) = run(voxrelay().arg("usage").arg("--ledger").arg(&config));
    assert!(code == 1 && stderr.contains("none.toml"), "{stderr}");
}

#[test]
fn serve_keeps_a_ledger_where_something_costs_or_somebody_names_one() {
    let dir = tempfile::tempdir().unwrap();
    let serve = |args: &[&str], key: &str| {
        let mut command = voxrelay();
        command.args(["serve", "--listen", "127.0.0.1:0"]).args(args).env("XDG_DATA_HOME", dir.path());
        if !key.is_empty() {
            command.env("OPENAI_API_KEY", key);
        }
        let relay = Listening::start(&mut command);
        relay.signal("-TERM");
        assert_eq!(relay.end().0, 0);
    };
    let (usual, named) = (dir.path().join("voxrelay/ledger.db"), dir.path().join("named.db"));
    serve(&[], "");
    assert!(!usual.exists(), "the simulator costs nothing");
    serve(&["--ledger", named.to_str().unwrap()], "");
    assert!(named.exists() && !usual.exists());
    serve(&[], "sk-test-1");
    assert!(usual.exists());
    let (code, _, stderr) = run(voxrelay().arg("usage").env("XDG_DATA_HOME", dir.path()));
    assert!(code == 0 && stderr.contains("ledger.db"), "{stderr}");
    let broken = named.join("below");
    let (code, _, stderr) = run(voxrelay().args(["serve", "--listen", "127.0.0.1:0", "--ledger"]).arg(&broken));
    assert!(code == 2 && stderr.contains("below") && stderr.contains("--ledger"), "{stderr}");
}

/// What the ledger has of replies: id, whether it is an estimate, status, tokens.
fn replies(file: &Path) -> Vec<(String, bool, String, i64)> {
    let sql = Connection::open(file).unwrap();
    let mut rows = sql.prepare("SELECT id, estimated, status, total_tokens FROM usage WHERE kind = 'reply'").unwrap();
    let rows = rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))).unwrap();
    rows.collect::<Result<_, _>>().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_reply_has_one_row_through_drops_of_both_sides_and_the_sum_is_the_services_own() {
    let (_dir, file) = folder();
    let dies = "[[fault]]\nkind = \"die\"\nsession = 1\nresponse = 2\nafter_deltas = 2\n\n\
                [[fault]]\nkind = \"die\"\nsession = 2\nresponse = 2\nafter_deltas = 0\n";
    let named = file.clone();
    let rig = Rig::with(|c| c.ledger.file = Some(named), SimConfig::default(), dies).await;
    let mut line = Line::begin(&rig, "turns=manual&pace=fast").await;
    for turn in 0..5 {
        line.speak(&numbered(turn * 12_000, 12_000)).await;
        line.say(&json!({"type": "commit"})).await;
        line.until("reply_started").await;
        line.lose();
        line.back().await;
        let answered = line.of("reply_ended").len();
        while line.of("reply_ended").len() == answered {
            line.hear().await;
        }
    }
    // The last one may be one that was asked for again.
    line.say(&json!({"type": "close"})).await;
    until("the call is over", || rig.sim.stats().sessions_now == 0).await;
    // The session is gone a moment before its last row is booked.
    until("each reply is booked", || replies(&file).len() as u64 >= rig.sim.stats().responses).await;
    rig.relay.ledger().flush(PATIENCE).await;
    let stats = rig.sim.stats();
    assert_eq!(stats.faults.get("die"), Some(&2));
    let rows = replies(&file);
    assert_eq!(rows.len() as u64, stats.responses, "one row of each reply: {rows:?}");
    let estimates: Vec<_> = rows.iter().filter(|(_, estimated, ..)| *estimated).collect();
    assert_eq!(estimates.len(), 2, "where a drop ate the count: {rows:?}");
    let counted: i64 = rows.iter().filter(|(_, estimated, ..)| !estimated).map(|(.., tokens)| tokens).sum();
    assert_eq!(u64::try_from(counted), Ok(stats.tokens), "{rows:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn c10_what_a_reply_has_used_whose_caller_never_came_back_is_booked() {
    let (_dir, file) = folder();
    let named = file.clone();
    let rig = Rig::configured(|c| {
        c.ledger.file = Some(named);
        c.call.resume_window_s = 1;
    })
    .await;
    let mut line = Line::begin(&rig, "turns=manual").await;
    for _ in 0..5 {
        line.speak(&[1; 240_000]).await;
    }
    line.say(&json!({"type": "commit"})).await;
    line.until("reply_started").await;
    line.lose();
    until("the session is given up", || rig.sim.stats().sessions_now == 0).await;
    until("it is booked", || replies(&file).len() == 1).await;
    let rows = replies(&file);
    let (_, estimated, status, tokens) = &rows[0];
    assert_eq!((*estimated, status.as_str()), (false, "interrupted"), "the service was waited for");
    assert_eq!(u64::try_from(*tokens), Ok(rig.sim.stats().tokens));
}
