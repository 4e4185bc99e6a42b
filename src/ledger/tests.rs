//! The whole ledger: threads, real files, real failures.
use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use metrics_exporter_prometheus::PrometheusBuilder;
use rusqlite::Connection;

use super::{
    entry::tests::reply,
    sums::{Ask, By, Report, Sum, report},
    *,
};
use crate::{
    admit::price::{Cost, Usd},
    client::wire::Usage,
};

const GRACE: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(30);
const ALL: Ask = Ask { since: None, until: None, tenant: None, by: By::Tenant, most: None, patience: None };

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
    let ledger = Ledger::writing(Spool::new(grace), None, move |rows| {
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
async fn the_rows_of_a_call_are_known_before_they_are_written() {
    let (_dir, file) = folder();
    let ledger = Ledger::open(&file, GRACE).unwrap();
    ledger.book(reply("a", 1, false));
    assert_eq!(ledger.flush(PATIENCE).await, 0);
    let held = Connection::open(&file).unwrap();
    held.execute_batch("BEGIN IMMEDIATE").unwrap();
    ledger.book(reply("b", 1, false));
    ledger.book(Entry { call: "call_2".to_owned(), ..reply("c", 1, false) });
    assert_eq!(ledger.flush(Duration::from_millis(400)).await, 2, "one try is under way, or has failed");
    let want = HashSet::from(["a", "b"].map(str::to_owned));
    assert_eq!(ledger.ids_of("call_1", 0).unwrap(), want);
    drop(held);
    assert_eq!(ledger.flush(PATIENCE).await, 0);
    assert_eq!(ledger.ids_of("call_1", 0).unwrap(), want);
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
        input_tokens: 140,
        input_text_tokens: 40,
        input_audio_tokens: 100,
        cached_tokens: 20,
        cached_percent: Some("14.2".to_owned()),
        output_text_tokens: 10,
        output_audio_tokens: 50,
        total_tokens: 200,
        audio_ms: 4_000,
        heard_ms: 3_000,
        transcriptions: 1,
        transcription_tokens: 100,
        transcription_seconds: 2.5,
        unpriced: 3,
        ..Sum::default()
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
        (By::Route, vec![day("default/gpt-realtime-2.1", 4)]),
        (By::Call, vec![day("acme/call_1", 2), day("other/call_2", 1)]),
        (By::Day, vec![day("2026-11-21", 3), day("2026-11-22", 1)]),
    ] {
        assert_eq!(replies(Ask { by, ..ALL }), want, "{by:?}");
        assert_eq!(ask(Ask { by, ..ALL })[0].names.len(), by.names().len());
    }
    assert_eq!(replies(Ask { since: Some(at + 1), ..ALL }), [day("acme", 1)]);
    assert_eq!(replies(Ask { until: Some(at), ..ALL }), []);
    let nothing = Ask { tenant: Some("nobody".to_owned()), ..ALL };
    assert_eq!(report(&file, &nothing).unwrap(), Report { sums: Vec::new(), total: None });
}

#[tokio::test]
async fn what_was_spent_in_a_day_and_a_month_is_told_by_tenant_key_and_user() {
    const DAY: u64 = 86_400_000;
    let (_dir, file) = folder();
    let ledger = Ledger::open(&file, GRACE).unwrap();
    let at = reply("", 0, false).at;
    let cost = |pico| Some(Cost { text: Usd::from_pico(pico), ..Cost::default() });
    let ann = Some("ann".to_owned());
    ledger.book(Entry { at: at - 1, cost: cost(1_000), ..reply("before", 1_000, false) });
    ledger.book(Entry { cost: cost(7), ..reply("a", 10, false) });
    ledger.book(Entry { at: at + DAY, cost: cost(5), user: ann.clone(), ..reply("b", 20, true) });
    ledger.book(Entry {
        at: at + DAY,
        kind: Kind::Transcription,
        key: None,
        user: ann.clone(),
        ..reply("c", 3, false)
    });
    ledger.book(Entry { at: at + DAY, tenant: "other".to_owned(), cost: cost(2), ..reply("d", 4, false) });
    ledger.book(Entry { at: at + 2 * DAY, cost: cost(1_000), ..reply("after", 1_000, false) });
    assert_eq!(ledger.flush(PATIENCE).await, 0);
    let times = spent::Times { month: at, day: at + DAY, until: at + 2 * DAY };
    let mut found = spent::spent(&file, times).unwrap();
    found.sort_by_key(|one| (one.tenant.clone(), one.key.clone(), one.user.clone()));
    let told = found.iter().map(|one| {
        let of = |used: spent::Used| (used.usd.pico(), used.tokens, used.unpriced);
        let name = [Some(&one.tenant), one.key.as_ref(), one.user.as_ref()].into_iter().flatten().cloned();
        (name.collect::<Vec<_>>().join("/"), of(one.day), of(one.month))
    });
    let want = [
        ("acme", (5, 23, true), (12, 33, true)),
        ("acme/ann", (5, 23, true), (5, 23, true)),
        ("acme/backend", (5, 20, false), (12, 30, false)),
        ("other", (2, 4, false), (2, 4, false)),
        ("other/backend", (2, 4, false), (2, 4, false)),
    ];
    assert_eq!(told.collect::<Vec<_>>(), want.map(|(name, day, month)| (name.to_owned(), day, month)));
    assert!(spent::spent(&file.with_extension("none"), times).is_err());
}

#[test]
fn the_metric_of_money_says_what_the_file_says() {
    let (_dir, file) = folder();
    let recorder = PrometheusBuilder::new().build_recorder();
    let metrics = recorder.handle();
    let mut sinks = [Sink::open(&file).unwrap(), Sink::open(&file).unwrap()];
    let mut write = |which: usize, id: &str, micro: Option<i128>, estimated: bool| {
        let cost = micro.map(|micro| Cost { text: Usd::from_pico(micro * 1_000_000), ..Cost::default() });
        let row = Entry { cost, ..reply(id, 1, estimated) };
        metrics::with_local_recorder(&recorder, || sinks[which].write(&Rows::from([(row.key(), row)])).unwrap());
        let page = metrics.render();
        let of = |name: &str| {
            let line = format!("voxrelay_cost_{name}_total{{model=\"gpt-realtime-2.1\"}} ");
            page.lines().find_map(|found| found.strip_prefix(&line)?.parse::<i64>().ok()).unwrap_or_default()
        };
        let sums = "SELECT coalesce(sum(cost), 0) / 1000000, count(*) - count(cost) FROM usage";
        let sql = Connection::open(&file).unwrap();
        let sums: (i64, i64) = sql.query_row(sums, [], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
        ((of("microusd"), of("unknown")), sums)
    };
    for (name, which, id, micro, estimated) in [
        ("one", 0, "a", Some(100), false),
        ("told again when it was heard", 0, "a", Some(100), false),
        ("and by another process", 1, "a", Some(100), false),
        ("another", 1, "b", Some(40), true),
        ("whose count comes later", 0, "b", Some(70), false),
        ("and an estimate after it", 0, "b", Some(500), true),
        ("nobody knows", 0, "c", None, false),
        ("and is told again", 0, "c", None, false),
    ] {
        let (told, sums) = write(which, id, micro, estimated);
        assert_eq!(told, sums, "{name}");
    }
    let mut refusal = Entry { kind: Kind::Refusal, cost: Some(Cost::default()), ..reply("d", 0, false) };
    refusal.model = "whatever a client says".to_owned();
    metrics::with_local_recorder(&recorder, || sinks[0].write(&Rows::from([(refusal.key(), refusal)])).unwrap());
    assert!(!metrics.render().contains("whatever"), "a refused model makes no label");
}

#[tokio::test]
async fn none_takes_everything_and_keeps_nothing() {
    let none = Ledger::none();
    none.book(reply("a", 1, false));
    assert_eq!((none.health(Instant::now()), none.flush(PATIENCE).await), (Health::Good, 0));
}

/// A file as the first version wrote it, with a row.
fn first_version(file: &Path) {
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    let sql = Connection::open(file).unwrap();
    sql.execute_batch(
        "CREATE TABLE usage (
            kind TEXT NOT NULL, id TEXT NOT NULL, at INTEGER NOT NULL, call TEXT NOT NULL, session TEXT NOT NULL,
            tenant TEXT NOT NULL, key TEXT, user TEXT, agent TEXT NOT NULL, model TEXT NOT NULL, door TEXT NOT NULL,
            status TEXT NOT NULL, total_tokens INTEGER NOT NULL, input_tokens INTEGER NOT NULL,
            output_tokens INTEGER NOT NULL, input_text_tokens INTEGER NOT NULL, input_audio_tokens INTEGER NOT NULL,
            cached_tokens INTEGER NOT NULL, output_text_tokens INTEGER NOT NULL, output_audio_tokens INTEGER NOT NULL,
            seconds REAL, audio_ms INTEGER NOT NULL, heard_ms INTEGER NOT NULL, estimated INTEGER NOT NULL,
            PRIMARY KEY (kind, id)
        ) STRICT;
        CREATE INDEX usage_at ON usage (at);
        PRAGMA application_id = 0x76726C67; PRAGMA user_version = 1; PRAGMA journal_mode = WAL;",
    )
    .unwrap();
    first_version_writes(&sql, "old");
}

/// A row as the first version writes it.
fn first_version_writes(sql: &Connection, id: &str) {
    let row = "INSERT INTO usage (kind, id, at, call, session, tenant, agent, model, door, status, total_tokens,
            input_tokens, output_tokens, input_text_tokens, input_audio_tokens, cached_tokens, output_text_tokens,
            output_audio_tokens, audio_ms, heard_ms, estimated)
        VALUES ('reply', ?1, 1795219200000, 'call_0', 'sess_0', 'acme', 'default', 'gpt-realtime-2.1', 'thin', 'completed',
            253, 132, 121, 119, 13, 64, 30, 91, 4550, 4550, 0)";
    sql.execute(row, [id]).unwrap();
}

fn version_of(file: &Path) -> i64 {
    Connection::open(file).unwrap().pragma_query_value(None, "user_version", |row| row.get(0)).unwrap()
}

#[tokio::test]
async fn a_file_of_the_first_version_is_read_as_it_is_and_grows_when_a_relay_opens_it() {
    let (_dir, file) = folder();
    first_version(&file);
    let ask = Ask { by: By::Route, ..ALL };
    let old = &report(&file, &ask).unwrap().sums[0];
    assert_eq!((old.names[0].as_str(), old.replies, old.cached_tokens, old.unpriced), ("", 1, 64, 1));
    assert_eq!((old.cost_usd, old.cached_percent.as_deref()), (Usd::default(), Some("48.4")));
    assert_eq!(version_of(&file), 1, "whoever reads changes nothing");
    // A relay of the first version has it open meanwhile.
    let elder = Connection::open(&file).unwrap();
    let ledger = Ledger::open(&file, GRACE).unwrap();
    assert_eq!(version_of(&file), 4);
    first_version_writes(&elder, "old, too");
    let cost = Cost { text: Usd::from_pico(7), cached: Usd::from_pico(3), ..Cost::default() };
    ledger.book(Entry { cost: Some(cost), ..reply("new", 1, false) });
    assert_eq!(ledger.flush(PATIENCE).await, 0);
    let sums = report(&file, &ask).unwrap().sums;
    let found = sums.iter().map(|sum| (sum.names[0].as_str(), sum.replies, sum.unpriced, sum.cost_usd.pico()));
    assert_eq!(found.collect::<Vec<_>>(), [("", 2, 2, 0), ("default/gpt-realtime-2.1", 1, 0, 10)]);
    drop(Ledger::open(&file, GRACE).unwrap());
    assert_eq!(version_of(&file), 4, "once is enough");
}

#[tokio::test]
async fn a_file_of_a_later_version_gets_its_columns_and_keeps_its_costs() {
    gets(2, &["first_audio_ms", "waited_ms", "reason", "cache_write_tokens"]).await;
    gets(3, &["cache_write_tokens"]).await;
}

/// A file of this version, which had all but these.
async fn gets(version: i64, columns: &[&str]) {
    let (_dir, file) = folder();
    let cost = Cost { text: Usd::from_pico(7), ..Cost::default() };
    let ledger = Ledger::open(&file, GRACE).unwrap();
    ledger.book(Entry { cost: Some(cost), ..reply("old", 1, false) });
    assert_eq!(ledger.flush(PATIENCE).await, 0);
    drop(ledger);
    let elder = Connection::open(&file).unwrap();
    elder.busy_timeout(PATIENCE).unwrap();
    for column in columns {
        elder.execute_batch(&format!("ALTER TABLE usage DROP COLUMN {column}")).unwrap();
    }
    elder.pragma_update(None, "user_version", version).unwrap();
    let costs = || report(&file, &ALL).unwrap().total.map(|total| (total.replies, total.cost_usd.pico()));
    assert_eq!((costs(), version_of(&file)), (Some((1, 7)), version), "whoever reads changes nothing");
    let ledger = Ledger::open(&file, GRACE).unwrap();
    ledger.book(Entry { first_audio_ms: Some(640), ..reply("new", 1, false) });
    ledger.book(Entry { first_audio_ms: Some(0), ..reply("at once", 1, false) });
    let written = Usage { cache_write_tokens: 5, ..reply("", 1, false).usage };
    ledger.book(Entry { usage: written, ..reply("a", 1, false) });
    assert_eq!(ledger.flush(PATIENCE).await, 0);
    let sql = Connection::open(&file).unwrap();
    let mut ask = sql.prepare("SELECT first_audio_ms FROM usage ORDER BY id DESC").unwrap();
    let found = ask.query_map([], |row| row.get::<_, Option<i64>>(0)).unwrap().collect::<Result<Vec<_>, _>>();
    assert_eq!(found.unwrap(), [None, Some(640), Some(0), None]);
    assert_eq!((costs(), version_of(&file)), (Some((4, 7)), 4));
    let mut read = Vec::new();
    replay::replies(&file, (None, None), |reply| read.push(reply.usage.cache_write_tokens)).unwrap();
    read.sort_unstable();
    assert_eq!(read, [0, 0, 0, 5]);
}

#[tokio::test]
async fn replies_are_read_in_their_order_from_files_of_every_version() {
    let (_dir, file) = folder();
    first_version(&file);
    let read = |times| {
        let mut found = Vec::new();
        replay::replies(&file, times, |reply| found.push(reply)).unwrap();
        found
    };
    let old = read((None, None));
    assert_eq!((old.len(), old[0].usage.cached_tokens, old[0].route.as_str(), old[0].cost), (1, 64, "", None));
    let ledger = Ledger::open(&file, GRACE).unwrap();
    let at = reply("", 0, false).at;
    let cost = Some(Cost { audio: Usd::from_pico(9), ..Cost::default() });
    ledger.book(Entry { at: at + 2, first_audio_ms: Some(640), ..reply("third", 3, false) });
    ledger.book(Entry { at: at + 1, cost, user: Some("ann".to_owned()), ..reply("second", 2, false) });
    ledger.book(Entry { kind: Kind::Transcription, ..reply("words", 9, false) });
    assert_eq!(ledger.flush(PATIENCE).await, 0);
    let all = read((None, None));
    let told = all.iter().map(|one| (one.usage.output_tokens, one.cost.map(Usd::pico), one.first_audio_ms));
    assert_eq!(told.collect::<Vec<_>>(), [(121, None, None), (2, Some(9), None), (3, None, Some(640))]);
    assert_eq!((all[1].user.as_deref(), all[1].route.as_str()), (Some("ann"), "default/gpt-realtime-2.1"));
    assert_eq!((read((Some(at + 1), None)).len(), read((None, Some(at + 2))).len()), (2, 2));
}

#[tokio::test]
async fn sums_of_costs_are_exact_however_large_they_are() {
    let (_dir, file) = folder();
    let ledger = Ledger::open(&file, GRACE).unwrap();
    // More together than a number of SQLite holds, and odd.
    let most = Usd::from_pico(i128::from(i64::MAX));
    for n in 0..3_i32 {
        ledger.book(Entry {
            cost: Some(Cost { audio: most, ..Cost::default() }),
            ..reply(&format!("large {n}"), 1, false)
        });
    }
    let small =
        Cost { text: Usd::from_pico(1), image: Usd::from_pico(20), cached: Usd::from_pico(300), ..Cost::default() };
    ledger.book(Entry { cost: Some(small), kind: Kind::Transcription, ..reply("small", 1, false) });
    ledger.book(reply("unknown", 1, false));
    assert_eq!(ledger.flush(PATIENCE).await, 0);
    let sum = report(&file, &ALL).unwrap().total.unwrap();
    let three = 3 * i128::from(i64::MAX);
    let found = [sum.cost_usd, sum.cost_text_usd, sum.cost_audio_usd, sum.cost_image_usd, sum.cost_cached_usd];
    assert_eq!(found.map(Usd::pico), [three + 321, 1, three, 20, 300]);
    assert_eq!((sum.cost_transcription_usd.pico(), sum.unpriced), (321, 1));
    assert_eq!(sum.cost_usd.to_string(), "27670116.110564327742");
    // A better count brings its own cost, and an unknown one takes the known one away.
    ledger.book(Entry { cost: Some(small), ..reply("unknown", 2, false) });
    ledger.book(reply("large 0", 2, false));
    assert_eq!(ledger.flush(PATIENCE).await, 0);
    let sum = report(&file, &ALL).unwrap().total.unwrap();
    assert_eq!((sum.cost_usd.pico(), sum.unpriced), (three / 3 * 2 + 642, 1));
}

#[tokio::test]
async fn whoever_asks_has_an_end_of_patience_and_of_appetite() {
    let (_dir, file) = folder();
    let ledger = Ledger::open(&file, GRACE).unwrap();
    (0..5_000).for_each(|n| ledger.book(Entry { agent: format!("agent {n:04}"), ..reply(&n.to_string(), 1, false) }));
    assert_eq!(ledger.flush(PATIENCE).await, 0);
    let some = report(&file, &Ask { by: By::Agent, most: Some(3), ..ALL }).unwrap();
    assert_eq!((some.sums.len(), some.total.unwrap().replies), (3, 5_000));
    let late = report(&file, &Ask { patience: Some(Instant::now()), ..ALL }).unwrap_err().to_string();
    assert!(late.contains("interrupted"), "{late}");
    let patient = Ask { patience: Some(Instant::now() + PATIENCE), ..ALL };
    assert_eq!(report(&file, &patient).unwrap().total.unwrap().replies, 5_000);
}
