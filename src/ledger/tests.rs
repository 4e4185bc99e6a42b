//! The whole ledger: threads, real files, real failures.
use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use rusqlite::Connection;

use super::{
    entry::tests::reply,
    sums::{Ask, By, Report, Sum, report},
    *,
};
use crate::client::wire::Usage;

const GRACE: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(30);
const ALL: Ask = Ask { since: None, until: None, tenant: None, by: By::Tenant };

/// Ids, output tokens and estimates of all rows in a file.
fn rows(file: &Path) -> Vec<(String, u64, bool)> {
    let sql = Connection::open(file).unwrap();
    let mut ask = sql.prepare("SELECT id, output_tokens, estimated FROM usage ORDER BY id").unwrap();
    let rows = ask.query_map([], |row| Ok((row.get(0)?, u64::try_from(row.get::<_, i64>(1)?).unwrap(), row.get(2)?)));
    rows.unwrap().collect::<Result<_, _>>().unwrap()
}

fn folder() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("deep/ledger.db");
    (dir, file)
}

/// A ledger whose file fails when it is told to, and the count of tries that failed.
fn failing(file: &Path, grace: Duration) -> (Ledger, Arc<AtomicBool>, Arc<AtomicU64>) {
    let (fails, failed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let (told, count) = (fails.clone(), failed.clone());
    let mut sink = Sink::open(file).unwrap();
    let ledger = Ledger::writing(Spool::new(grace), move |rows| {
        if told.load(Ordering::SeqCst) {
            assert!(sink.fill() > 0);
        }
        let done = sink.write(rows);
        if let Err(LedgerError::Sql { source, .. }) = &done {
            // A full disk, and nothing else.
            assert_eq!(source.sqlite_error_code(), Some(rusqlite::ErrorCode::DiskFull), "{source}");
            count.fetch_add(1, Ordering::SeqCst);
        }
        done
    });
    (ledger.unwrap(), fails, failed)
}

async fn until(what: &str, so: impl Fn() -> bool) {
    let waited = time::timeout(PATIENCE, async {
        while !so() {
            time::sleep(Duration::from_millis(5)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("never came: {what}"));
}

#[tokio::test]
async fn the_file_holds_one_row_of_each_id_and_counts_stay() {
    use std::os::unix::fs::PermissionsExt as _;
    let (_dir, file) = folder();
    let ledger = Ledger::open(&file, GRACE).unwrap();
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    // Each of them is written before the next one comes: it is the file's rule that is tried here.
    for (id, tokens, estimated) in [
        ("count, count", 1, false),
        ("count, count", 2, false),
        ("count, estimate", 1, false),
        ("count, estimate", 2, true),
        ("estimate, count", 1, true),
        ("estimate, count", 2, false),
        ("estimate, estimate", 1, true),
        ("estimate, estimate", 2, true),
    ] {
        ledger.book(reply(id, tokens, estimated));
        assert_eq!(ledger.flush(PATIENCE).await, 0);
    }
    let same_id = Entry { kind: Kind::Transcription, ..reply("count, count", 9, false) };
    ledger.book(same_id);
    assert_eq!(ledger.flush(PATIENCE).await, 0);
    let want = [
        ("count, count", 2, false),
        ("count, count", 9, false),
        ("count, estimate", 1, false),
        ("estimate, count", 2, false),
        ("estimate, estimate", 2, true),
    ];
    let mut found = rows(&file);
    found.sort();
    assert_eq!(found, want.map(|(id, tokens, estimated)| (id.to_owned(), tokens, estimated)));
}

#[tokio::test]
async fn two_relays_share_a_file_and_a_row() {
    let (_dir, file) = folder();
    let (one, other) = (Ledger::open(&file, GRACE).unwrap(), Ledger::open(&file, GRACE).unwrap());
    one.book(reply("a", 1, true));
    assert_eq!(one.flush(PATIENCE).await, 0);
    other.book(reply("a", 5, false));
    other.book(reply("b", 1, false));
    assert_eq!(other.flush(PATIENCE).await, 0);
    assert_eq!(rows(&file), [("a".to_owned(), 5, false), ("b".to_owned(), 1, false)]);
}

#[tokio::test]
async fn a_full_disk_loses_nothing_and_doubles_nothing() {
    let (_dir, file) = folder();
    let (ledger, fails, failed) = failing(&file, Duration::ZERO);
    // More than the file's first pages hold.
    let long = |n: u64| Entry { user: Some("u".repeat(250)), ..reply(&format!("resp_{n:05}"), n, n.is_multiple_of(2)) };
    (0..300).for_each(|n| ledger.book(long(n)));
    assert_eq!(ledger.flush(PATIENCE).await, 0);
    fails.store(true, Ordering::SeqCst);
    // Some that are known, some that are new.
    (200..1_000).for_each(|n| ledger.book(Entry { estimated: false, ..long(n) }));
    until("three tries that failed", || failed.load(Ordering::SeqCst) >= 3).await;
    assert!(matches!(ledger.health(Instant::now()), Health::Refusing { .. }) && !ledger.accepts(Instant::now()));
    (900..1_100).for_each(|n| ledger.book(long(n)));
    let left = ledger.flush(Duration::from_millis(50)).await;
    let written = rows(&file).len();
    assert!(written < 1_000 && written + left >= 1_100, "{written} rows are in the file, {left} still here");
    fails.store(false, Ordering::SeqCst);
    assert_eq!(ledger.flush(PATIENCE).await, 0);
    assert!(ledger.accepts(Instant::now()));
    let want = (0..1_100_u64).map(|n| (format!("resp_{n:05}"), n, n.is_multiple_of(2) && !(200..1_000).contains(&n)));
    assert_eq!(rows(&file), want.collect::<Vec<_>>());
}

#[tokio::test]
async fn a_file_that_was_taken_away_is_made_anew() {
    let (dir, file) = folder();
    let ledger = Ledger::open(&file, GRACE).unwrap();
    ledger.book(reply("a", 1, false));
    assert_eq!(ledger.flush(PATIENCE).await, 0);
    let kept = dir.path().join("kept.db");
    fs::rename(&file, &kept).unwrap();
    ledger.book(reply("b", 1, false));
    assert_eq!(ledger.flush(PATIENCE).await, 0);
    assert_eq!(rows(&file), [("b".to_owned(), 1, false)]);
    assert_eq!(rows(&kept), [("a".to_owned(), 1, false)]);
    // A file where the folder should be: nothing can be written.
    fs::remove_dir_all(file.parent().unwrap()).unwrap();
    fs::write(file.parent().unwrap(), "in the way").unwrap();
    ledger.book(reply("c", 1, false));
    until("failing", || matches!(ledger.health(Instant::now()), Health::Failing { .. })).await;
    assert!(ledger.accepts(Instant::now()), "within the grace");
    fs::remove_file(file.parent().unwrap()).unwrap();
    assert_eq!(ledger.flush(PATIENCE).await, 0);
    assert_eq!((rows(&file), ledger.health(Instant::now())), (vec![("c".to_owned(), 1, false)], Health::Good));
}

#[tokio::test]
async fn what_a_killed_process_leaves_misses_at_most_the_last_second() {
    let (dir, file) = folder();
    let ledger = Ledger::open(&file, GRACE).unwrap();
    let began = Instant::now();
    let mut booked = Vec::new();
    // The files as they are at any moment are what `kill -9` leaves: nothing is asked to be finished.
    for copy in 0..3 {
        while began.elapsed() < Duration::from_millis(900 * (copy + 1)) {
            let id = format!("resp_{:05}", booked.len());
            ledger.book(reply(&id, 1, true));
            booked.push((began.elapsed(), id.clone()));
            // Some become known better at once.
            if booked.len().is_multiple_of(3) {
                ledger.book(reply(&id, 2, false));
            }
            time::sleep(Duration::from_millis(2)).await;
        }
        let left = dir.path().join(format!("copy-{copy}.db"));
        // Nobody writes while it is copied, so that the copy is one moment.
        let held = Connection::open(&file).unwrap();
        held.execute_batch("BEGIN IMMEDIATE").unwrap();
        let copied_at = began.elapsed();
        for end in ["-wal", ""] {
            let name = |file: &Path| PathBuf::from(format!("{}{end}", file.display()));
            fs::copy(name(&file), name(&left)).unwrap();
        }
        drop(held);
        let found: Vec<String> = rows(&left).into_iter().map(|(id, ..)| id).collect();
        let all: Vec<&String> = booked.iter().map(|(_, id)| id).collect();
        assert_eq!(found.iter().collect::<Vec<_>>(), all[..found.len()], "one of each, in order, none left out");
        let missing = &booked[found.len()..];
        let oldest = missing.first().map_or(Duration::ZERO, |(at, _)| copied_at - *at);
        assert!(oldest < Duration::from_secs(1), "a row {oldest:?} old is missing");
        // The next process goes on with it, and says the last second again.
        let next = Ledger::open(&left, GRACE).unwrap();
        booked.iter().for_each(|(_, id)| next.book(reply(id, 2, false)));
        assert_eq!(next.flush(PATIENCE).await, 0);
        assert_eq!(rows(&left).len(), booked.len());
    }
}

#[test]
fn the_last_one_that_goes_away_has_the_rest_written() {
    let (_dir, file) = folder();
    let ledger = Ledger::open(&file, GRACE).unwrap();
    let other = ledger.clone();
    ledger.book(reply("a", 1, false));
    drop(ledger);
    other.book(reply("b", 1, false));
    drop(other);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(until("both rows", || rows(&file).len() == 2));
}

#[test]
fn what_is_no_ledger_is_said_to_be_none_and_stays_as_it_is() {
    let (dir, file) = folder();
    let store = dir.path().join("voxrelay.db");
    drop(crate::admit::store::Store::open(&store).unwrap());
    let text = dir.path().join("text.db");
    fs::write(&text, "this is not a database, but it is long enough to look like one".repeat(20)).unwrap();
    for (file, why) in [(&store, "no usage ledger"), (&text, "not a database")] {
        let error = Ledger::open(file, GRACE).unwrap_err().to_string();
        assert!(error.contains(why) && error.contains(file.to_str().unwrap()), "{error}");
        let error = report(file, &ALL).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
    crate::admit::store::Store::open(&store).unwrap().tenants().unwrap();
    assert!(report(&file, &ALL).unwrap_err().to_string().contains("there is no ledger"));
    assert!(!file.exists(), "whoever reads makes none");
    drop(Ledger::open(&file, GRACE).unwrap());
    Connection::open(&file).unwrap().pragma_update(None, "user_version", 99).unwrap();
    assert!(Ledger::open(&file, GRACE).unwrap_err().to_string().contains("version 99"));
}

#[tokio::test]
async fn sums_are_those_of_the_rows_that_are_asked_for() {
    const DAY: u64 = 86_400_000;
    let (_dir, file) = folder();
    let ledger = Ledger::open(&file, GRACE).unwrap();
    let at = reply("", 0, false).at;
    let usage = Usage {
        total_tokens: 100,
        input_tokens: 70,
        output_tokens: 30,
        input_text_tokens: 20,
        input_audio_tokens: 50,
        cached_tokens: 10,
        output_text_tokens: 5,
        output_audio_tokens: 25,
        ..Usage::default()
    };
    let row = |id: &str| Entry { usage, ..reply(id, 0, false) };
    ledger.book(row("a"));
    ledger.book(Entry { estimated: true, user: Some("ann".to_owned()), at: at + DAY, ..row("b") });
    ledger.book(Entry { tenant: "other".to_owned(), call: "call_2".to_owned(), key: None, ..row("c") });
    let written_down =
        Entry { kind: Kind::Transcription, model: "gpt-transcribe".to_owned(), seconds: Some(2.5), ..row("d") };
    ledger.book(Entry { audio_ms: 0, heard_ms: 0, ..written_down });
    let hostile = Usage { total_tokens: u64::MAX, ..Usage::default() };
    ledger.book(Entry { tenant: "hostile".to_owned(), usage: hostile, seconds: Some(f64::NAN), ..row("e") });
    assert_eq!(ledger.flush(PATIENCE).await, 0);
    // The relay still has it open.
    let ask = |ask: Ask| report(&file, &ask).unwrap().sums;
    let acme = Sum {
        names: vec!["acme".to_owned()],
        calls: 1,
        replies: 2,
        estimated: 1,
        input_text_tokens: 40,
        input_audio_tokens: 100,
        cached_tokens: 20,
        output_text_tokens: 10,
        output_audio_tokens: 50,
        total_tokens: 200,
        audio_ms: 4_000,
        heard_ms: 3_000,
        transcriptions: 1,
        transcription_tokens: 100,
        transcription_seconds: 2.5,
    };
    assert_eq!(ask(ALL)[0], acme);
    let only = Report { sums: vec![acme.clone()], total: Some(Sum { names: Vec::new(), ..acme }) };
    assert_eq!(report(&file, &Ask { tenant: Some("acme".to_owned()), ..ALL }).unwrap(), only);
    let by_model = report(&file, &Ask { by: By::Model, ..ALL }).unwrap();
    assert_eq!(by_model.sums.iter().map(|sum| sum.calls).collect::<Vec<_>>(), [2, 1]);
    assert_eq!(by_model.total.unwrap().calls, 2, "one of them used both models");
    let replies = |asked: Ask| {
        let sums = ask(asked).into_iter().filter(|sum| sum.names[0] != "hostile");
        sums.map(|sum| (sum.names.join("/"), sum.replies)).collect::<Vec<_>>()
    };
    let day = |text: &str, n| (text.to_owned(), n);
    for (by, want) in [
        (By::Tenant, vec![day("acme", 2), day("other", 1)]),
        (By::Key, vec![day("acme/backend", 2), day("other/", 1)]),
        (By::User, vec![day("acme/", 1), day("acme/ann", 1), day("other/", 1)]),
        (By::Agent, vec![day("default", 4)]),
        (By::Model, vec![day("gpt-realtime-2.1", 4), day("gpt-transcribe", 0)]),
        (By::Call, vec![day("acme/call_1", 2), day("other/call_2", 1)]),
        (By::Day, vec![day("2026-11-21", 3), day("2026-11-22", 1)]),
    ] {
        assert_eq!(replies(Ask { by, ..ALL }), want, "{by:?}");
        assert_eq!(want[0].0.split('/').count(), by.names().len());
    }
    assert_eq!(replies(Ask { since: Some(at + 1), ..ALL }), [day("acme", 1)]);
    assert_eq!(replies(Ask { until: Some(at), ..ALL }), []);
    let nothing = Ask { tenant: Some("nobody".to_owned()), ..ALL };
    assert_eq!(report(&file, &nothing).unwrap(), Report { sums: Vec::new(), total: None });
}

#[tokio::test]
async fn none_takes_everything_and_keeps_nothing() {
    let none = Ledger::none();
    none.book(reply("a", 1, false));
    assert_eq!((none.health(Instant::now()), none.flush(PATIENCE).await), (Health::Good, 0));
}
