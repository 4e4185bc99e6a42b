use std::collections::BTreeMap;

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use serde_json::json;

use super::*;
use crate::{
    admit::price::Usd,
    batch::source::{Listed, Unread},
};

fn params() -> Params {
    let of = |name: &str, value: &str| BTreeMap::from([(name.to_owned(), value.to_owned())]);
    Params { transcribe: of("model", "whisper"), extract: of("schema", "{}") }
}

fn listed(id: &str) -> Listed {
    Listed { id: id.to_owned(), source: format!("/in/{id}"), ..Listed::default() }
}

fn row(id: &str, source: &str, line: u64) -> Listed {
    Listed { id: id.into(), source: source.into(), line: Some(line), ..Listed::default() }
}

fn content(hash: u8) -> Content {
    Content { hash: [hash; 32], bytes: 10, duration_ms: 1_000 }
}

fn piece(number: u32) -> Part {
    Part { task: Task::Piece, number, seal: String::new() }
}

fn made() -> (tempfile::TempDir, PathBuf, Store) {
    let dir = tempfile::tempdir().unwrap();
    let file = Store::beside(&dir.path().join("table.csv"));
    let store = Store::create(&file, &params(), Path::new("/in")).unwrap();
    (dir, file, store)
}

const PRICE: Usage =
    Usage { input_tokens: 3, output_tokens: 2, audio_ms: 500, cost: Usd::from_pico(1_000_007), unpriced: 0 };

/// A service that does the same request once, and remembers what it was asked.
#[derive(Default)]
struct Service {
    paid: BTreeMap<String, usize>,
}

impl Service {
    fn ask(&mut self, key: &str) -> String {
        let paid = self.paid.len();
        let at = *self.paid.entry(key.to_owned()).or_insert(paid);
        format!("answer {at}")
    }
}

/// The process dies at a step: what comes after it does not happen.
struct Life {
    steps: usize,
}

#[derive(Debug)]
struct Killed;

impl Life {
    fn step(&mut self) -> Result<(), Killed> {
        self.steps = self.steps.checked_sub(1).ok_or(Killed)?;
        Ok(())
    }
}

/// `a` and `b` have the same content, `c` another in five pieces, `d` is skipped, `e` fails.
const IDS: [&str; 5] = ["a", "b", "c", "d", "e"];

fn live(store: &Store, service: &mut Service, life: &mut Life, now: u64) -> Result<(), Killed> {
    store.add(IDS.iter().map(|id| listed(id))).unwrap();
    life.step()?;
    loop {
        let items = store.claim(2, now).unwrap();
        life.step()?;
        if items.is_empty() {
            return Ok(());
        }
        for item in items {
            do_item(store, &item, service, life, now)?;
        }
    }
}

fn do_item(store: &Store, item: &Item, service: &mut Service, life: &mut Life, now: u64) -> Result<(), Killed> {
    let ends = |end: End| store.end(item.n, &end, now).unwrap();
    let (hash, pieces) = match item.id.as_str() {
        "a" | "b" => (1, 2),
        "c" => (2, 5),
        "d" => {
            ends(End::Skipped { code: "too_short".into(), message: "1 s".into() });
            return life.step();
        }
        _ => {
            ends(End::Failed { code: "not_audio".into(), message: "a text".into() });
            return life.step();
        }
    };
    let known = store.describe(item.n, &content(hash)).unwrap();
    life.step()?;
    match known {
        Known::Held => return Ok(()),
        Known::Transcribed { complete: true } => {
            ends(End::Done);
            return life.step();
        }
        Known::Transcribed { complete: false } => {}
        Known::New => {
            let mut text = String::new();
            for number in 0..pieces {
                text += &ask(store, item.n, &piece(number), service, life, now)?;
            }
            store.put_transcript(item.n, &Transcript { text, model: "m".into(), ..Transcript::default() }).unwrap();
            life.step()?;
        }
    }
    let part = Part { task: Task::Extract, number: 0, seal: "text".into() };
    let answer = ask(store, item.n, &part, service, life, now)?;
    store.put_extract(item.n, &Extracted { json: Some(json!({"a": answer})), ..Extracted::default() }).unwrap();
    life.step()?;
    ends(End::Done);
    life.step()
}

fn ask(store: &Store, n: i64, part: &Part, service: &mut Service, life: &mut Life, now: u64) -> Result<String, Killed> {
    let begun = store.begin(n, part, now).unwrap();
    life.step()?;
    match begun {
        Begun::Answered(answer) => Ok(answer),
        Begun::Ask { key, .. } => {
            let answer = service.ask(&key);
            life.step()?;
            store.answered(n, part, &answer, &PRICE, now).unwrap();
            life.step()?;
            Ok(answer)
        }
    }
}

/// What is left of a job when its process is gone: the bytes of its files, the log cut short if the power went too.
fn left(file: &Path, to: &Path, cut: Option<f64>) {
    let log = |file: &Path| PathBuf::from(format!("{}-wal", file.display()));
    let _ = std::fs::remove_file(log(to));
    std::fs::copy(file, to).unwrap();
    if let Ok(mut bytes) = std::fs::read(log(file)) {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of a length")]
        bytes.truncate((bytes.len() as f64 * cut.unwrap_or(1.0)) as usize);
        std::fs::write(log(to), bytes).unwrap();
    }
}

fn open(file: &Path) -> Store {
    match Store::resume(file, &params()) {
        Err(StoreError::Absent { .. } | StoreError::Empty { .. }) => {
            Store::create(file, &params(), Path::new("/in")).unwrap()
        }
        other => other.unwrap(),
    }
}

/// Kills a job again and again until it is done.
fn killed_again_and_again(seed: u64, first: Option<usize>, power: bool) {
    let dir = tempfile::tempdir().unwrap();
    let mut dice = StdRng::seed_from_u64(seed);
    let (mut service, mut lives) = (Service::default(), 0);
    let mut file = dir.path().join("0");
    let store = loop {
        let store = open(&file);
        lives += 1;
        // What is answered is in the sums; what was paid for but not booked is asked for again under its key.
        assert!(store.sums().usage.input_tokens <= 3 * service.paid.len() as u64);
        let steps = first.filter(|_| lives == 1).unwrap_or_else(|| dice.random_range(1..40));
        // Kills without end would be a test of patience.
        let mut life = Life { steps: if lives > 4 { usize::MAX } else { steps } };
        match live(&store, &mut service, &mut life, 1_000 * lives) {
            Ok(()) => break store,
            Err(Killed) => {
                let next = dir.path().join(lives.to_string());
                left(&file, &next, power.then(|| dice.random_range(0.0..1.0)));
                file = next;
            }
        }
    };
    assert_eq!(service.paid.len(), 2 + 1 + 5 + 1, "seed {seed}: each question once");
    let sums = store.sums();
    assert_eq!(sums.usage.cost, Usd::from_pico(9 * 1_000_007), "seed {seed}: what is booked is what was paid");
    assert_eq!((sums.done.items, sums.failed.items, sums.skipped.items, sums.items()), (3, 1, 1, 5), "seed {seed}");
    assert_eq!(sums.reused, 1);
    assert_eq!(sums, Sums::read(&store.inner().sql).unwrap(), "kept and counted are the same");
    let rows: Vec<Row> = store.rows(&[State::Done], Order::Listed).map(Result::unwrap).collect();
    assert_eq!(rows.iter().map(|row| row.id.as_str()).collect::<Vec<_>>(), ["a", "b", "c"]);
    let text = |n: usize| &rows[n].transcript.as_ref().unwrap().text;
    assert!(text(0) == text(1) && text(2).matches("answer").count() == 5);
    assert!(rows.iter().all(|row| row.extract.is_some()));
    let left: i64 = store.read(|sql| sql.query_row("SELECT count(*) FROM parts", [], |row| row.get(0))).unwrap();
    assert_eq!(left, 0, "what was joined is gone");
}

#[test]
fn killed_anywhere_nothing_is_lost_and_nothing_is_paid_twice() {
    for step in 0..48 {
        killed_again_and_again(step as u64, Some(step), false);
    }
}

#[test]
fn a_power_cut_loses_no_more_than_the_log_did() {
    for seed in 0..24 {
        killed_again_and_again(100 + seed, None, true);
    }
}

#[test]
fn a_job_is_one_process_at_a_time() {
    let (_dir, file, store) = made();
    let busy = Store::resume(&file, &params()).unwrap_err();
    assert!(matches!(busy, StoreError::Busy { .. }), "{busy}");
    drop(store);
    Store::resume(&file, &params()).unwrap();
}

#[test]
fn a_job_is_resumed_with_its_own_parameters_only() {
    let (_dir, file, store) = made();
    store.add([listed("a")]).unwrap();
    store.claim(1, 1).unwrap();
    drop(store);
    let mut other = params();
    other.transcribe.insert("model".into(), "other".into());
    other.transcribe.insert("prompt".into(), "x".repeat(100));
    other.extract.clear();
    let error = Store::resume(&file, &other).unwrap_err().to_string();
    for part in
        ["model was `whisper`, now `other`", "prompt was not given, now `xxx", "extract schema was `{}`, now not given"]
    {
        assert!(error.contains(part), "{error}");
    }
    assert!(matches!(Store::create(&file, &params(), Path::new("/")), Err(StoreError::Exists { .. })));
    assert!(matches!(Store::resume(&file.with_extension("none"), &params()), Err(StoreError::Absent { .. })));
    assert_eq!(Store::resume(&file, &params()).unwrap().base(), Path::new("/in"));
}

#[test]
fn a_job_of_which_nothing_was_begun_is_begun_anew() {
    let (_dir, file, store) = made();
    store.add([row("1", "/a", 2), row("2", "/b", 3)]).unwrap();
    drop(store);
    let (other, base) = (Params::default(), Path::new("/elsewhere"));
    let store = Store::create(&file, &other, base).unwrap();
    assert_eq!((store.sums().items(), store.base(), store.columns().unwrap()), (0, base, vec![]));
    store.add([row("1", "/c", 2)]).unwrap();
    // What was asked for is something to go on with, also where all of it waits again.
    let n = store.claim(1, 1).unwrap()[0].n;
    store.begin(n, &piece(0), 2).unwrap();
    store.end(n, &End::Released, 3).unwrap();
    drop(store);
    assert!(matches!(Store::create(&file, &other, base), Err(StoreError::Exists { .. })));
    // Its name alone is no job, and none of another's.
    let name = file.with_extension("name");
    std::fs::write(&name, "").unwrap();
    assert!(matches!(Store::resume(&name, &params()), Err(StoreError::Empty { .. })));
    Store::create(&name, &params(), base).unwrap();
}

#[test]
fn a_listing_is_whole_or_it_is_nothing() {
    let (_dir, file, store) = made();
    let known = || Listed { metadata: [("agent".to_owned(), json!("A"))].into_iter().collect(), ..row("1", "/a", 2) };
    store.add([known()]).unwrap();
    let more = || (2..9_000_u64).map(|n| Entry::Item(row(&n.to_string(), "/b", n)));
    let unread = |place: &str| {
        let (place, file) = (place.to_owned(), format!("/in/{place}"));
        Entry::Unread(Unread { place, file, reason: "permission denied".to_owned() })
    };
    let wrong = store.add(more().chain([unread("x"), Entry::Wrong("line 9000: no".to_owned())])).unwrap();
    assert_eq!(wrong.wrong.as_deref(), Some("line 9000: no"));
    let other = Listed { metadata: [("other".to_owned(), json!(1))].into_iter().collect(), ..row("1", "/c", 9_000) };
    assert_eq!(store.add(more().chain([Entry::Item(other)])).unwrap().clashes.len(), 1);
    assert_eq!((store.sums().items(), store.sums().unread, store.columns().unwrap()), (1, 0, vec!["agent".to_owned()]));
    store.add(more().chain([unread("x"), unread("y"), unread("x"), unread("1")])).unwrap();
    assert_eq!((store.sums().items(), store.sums().unread), (8_999, 2), "an item tells by itself what becomes of it");
    drop(store);
    let store = Store::resume(&file, &params()).unwrap();
    let told: Vec<Row> = store.unread().map(Result::unwrap).collect();
    let [x, y] = &told[..] else { panic!("{told:?}") };
    assert_eq!((x.id.as_str(), x.source.as_str(), y.message.as_deref()), ("x", "/in/x", Some("permission denied")));
    assert_eq!((store.sums().unread, store.sums()), (2, Sums::read(&store.inner().sql).unwrap()));
    // What can be read meanwhile is no longer told.
    store.add((0..300).map(|n| unread(&format!("u{n}"))).chain([Entry::Item(row("x", "/in/x", 7))])).unwrap();
    assert_eq!((store.unread().count(), store.sums().unread), (300, 300));
}

#[test]
fn what_is_no_job_is_said_to_be_none() {
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("text");
    std::fs::write(&text, "this is no database, but long enough to look like one ".repeat(20)).unwrap();
    assert!(matches!(Store::resume(&text, &params()), Err(StoreError::Other { .. })));
    let other = dir.path().join("other");
    Connection::open(&other).unwrap().execute_batch("CREATE TABLE t (x)").unwrap();
    assert!(matches!(Store::create(&other, &params(), Path::new("/")), Err(StoreError::Other { .. })));
    let (_dir, file, store) = made();
    drop(store);
    Connection::open(&file).unwrap().pragma_update(None, "user_version", 99).unwrap();
    assert!(Store::resume(&file, &params()).unwrap_err().to_string().contains("version 99"));
}

#[test]
fn a_full_disk_stops_the_run_with_what_is_done() {
    let (_dir, file, store) = made();
    store.add([listed("a")]).unwrap();
    let n = store.claim(1, 1).unwrap()[0].n;
    store.begin(n, &piece(0), 2).unwrap();
    store.answered(n, &piece(0), "paid for", &PRICE, 3).unwrap();
    let before = store.sums();
    let pages: i64 = store.inner().sql.pragma_query_value(None, "page_count", |row| row.get(0)).unwrap();
    store.inner().sql.pragma_update_and_check(None, "max_page_count", pages, |row| row.get::<_, i64>(0)).unwrap();
    let full = store.add((0..1_000).map(|n| listed(&format!("{n}{}", "x".repeat(100))))).unwrap_err();
    assert!(matches!(full, StoreError::Full { .. }) && full.to_string().contains("--resume"), "{full}");
    assert_eq!(store.sums(), before, "sums are those of the file");
    drop(store);
    let store = Store::resume(&file, &params()).unwrap();
    assert_eq!(store.sums().usage, PRICE);
    assert_eq!(store.claim(1, 4).unwrap()[0].n, n);
    assert_eq!(store.begin(n, &piece(0), 5).unwrap(), Begun::Answered("paid for".into()));
}

#[test]
fn a_hundred_thousand_items_are_listed_counted_and_claimed_in_order() {
    let (_dir, _file, store) = made();
    let many = || (0..100_000).map(|n| listed(&format!("folder/{n:06}.wav")));
    let added = store.add(many()).unwrap();
    assert_eq!((added.new, added.known, added.clashes.len()), (100_000, 0, 0));
    assert_eq!(store.add(many()).unwrap().known, 100_000, "named twice, meant once");
    let mut claimed = 0;
    while let Some(item) = store.claim(1_000, 1).unwrap().into_iter().nth(999) {
        claimed += 1_000;
        assert_eq!(item.id, format!("folder/{:06}.wav", claimed - 1));
        if claimed == 20_000 {
            break;
        }
    }
    assert_eq!((store.sums().waiting.items, store.sums().working.items), (80_000, 20_000));
    let rows = store.rows(&[State::Waiting], Order::Id).map(Result::unwrap);
    assert!(rows.enumerate().all(|(at, row)| row.n == at as i64 + 20_001));
}

#[test]
fn ids_that_mean_two_things_are_told_with_their_lines() {
    let (_dir, file, store) = made();
    let rows = || [row("1", "/a", 2), row("2", "/b", 3)];
    store.add(rows()).unwrap();
    let clashes = |added: Added| added.clashes.iter().map(Clash::to_string).collect::<Vec<_>>();
    let twice = clashes(store.add([row("1", "/a", 4), row("2", "/c", 5)]).unwrap());
    assert_eq!(
        twice,
        ["line 4: id `1` is that of line 2 already", "line 5: id `2` is that of line 3 already (`/b`, now `/c`)"]
    );
    drop(store);
    let store = Store::resume(&file, &params()).unwrap();
    assert_eq!(store.add(rows()).unwrap().known, 2, "the same manifest, another run");
    drop(store);
    let store = Store::resume(&file, &params()).unwrap();
    assert_eq!(
        clashes(store.add([row("1", "/other", 2)]).unwrap()),
        ["line 2: id `1` means `/a` already, now `/other`"]
    );
}

#[test]
fn a_useless_answer_is_paid_for_and_asked_for_under_another_key() {
    let (_dir, _file, store) = made();
    store.add([listed("a")]).unwrap();
    let n = store.claim(1, 1).unwrap()[0].n;
    store.describe(n, &content(1)).unwrap();
    let begun = |part: &Part| match store.begin(n, part, 2).unwrap() {
        Begun::Ask { key, again } => (key, again),
        Begun::Answered(_) => panic!("nobody has answered"),
    };
    let key = |part: &Part| begun(part).0;
    let part = piece(0);
    let (first, again) = begun(&part);
    assert!(!again && begun(&part) == (first.clone(), true), "the same question, which may have been heard");
    store.failed_try(n, &part, "connection lost", None, 3).unwrap();
    assert_eq!(key(&part), first, "perhaps it was heard");
    store.failed_try(n, &part, "no JSON", Some(&PRICE), 4).unwrap();
    let (second, again) = begun(&part);
    assert!(second != first && !again, "nobody has been asked this");
    let other = Part { seal: "0-5".into(), ..part.clone() };
    assert!(![first, second].contains(&key(&other)), "another span is another question");
    store.answered(n, &other, "yes", &PRICE, 5).unwrap();
    assert!(store.answered(n, &other, "yes", &PRICE, 6).is_err(), "once");
    assert!(matches!(store.begin(n, &part, 7).unwrap(), Begun::Ask { .. }), "an answer to something else is none");
    assert_eq!(store.sums().usage, PRICE + PRICE);
    store.put_transcript(n, &Transcript::default()).unwrap();
    store.end(n, &End::Done, 9).unwrap();
    let row = store.rows(&[State::Done], Order::Id).next().unwrap().unwrap();
    assert_eq!((row.usage, row.attempts, row.first_error.as_deref()), (PRICE + PRICE, 3, Some("connection lost")));
    assert_eq!((row.started_ms, row.finished_ms), (Some(1), Some(9)));
}

#[test]
fn a_file_begins_once_and_anew_where_it_had_failed() {
    let (_dir, file, store) = made();
    store.add([listed("a")]).unwrap();
    let store = {
        store.claim(1, 1).unwrap();
        drop(store);
        Store::resume(&file, &params()).unwrap()
    };
    let n = store.claim(1, 100).unwrap()[0].n;
    store.describe(n, &content(1)).unwrap();
    store.end(n, &End::Released, 101).unwrap();
    store.claim(1, 200).unwrap();
    let started = |state| store.rows(&[state], Order::Id).next().unwrap().unwrap().started_ms;
    assert_eq!(started(State::Working), Some(1), "in another run, and before a pause");
    store.end(n, &End::Failed { code: "x".into(), message: "y".into() }, 201).unwrap();
    store.retry_failed().unwrap();
    store.claim(1, 300).unwrap();
    assert_eq!(started(State::Working), Some(300));
}

#[test]
fn what_is_not_wanted_is_measured_all_the_same() {
    let (_dir, _file, store) = made();
    store.add([listed("a")]).unwrap();
    let n = store.claim(1, 1).unwrap()[0].n;
    store.measure(n, &content(1)).unwrap();
    store.end(n, &End::Skipped { code: "too_short".into(), message: "1 s".into() }, 2).unwrap();
    let row = store.rows(&[State::Skipped], Order::Id).next().unwrap().unwrap();
    assert_eq!((row.duration_ms, row.bytes, store.sums().skipped.duration_ms), (Some(1_000), Some(10), 1_000));
    assert!(matches!(store.measure(n, &content(1)), Err(StoreError::NotWorking { .. })));
    assert_eq!(store.sums(), Sums::read(&store.inner().sql).unwrap());
}

#[test]
fn that_something_went_wrong_with_an_item_is_known_in_the_next_run() {
    let (_dir, file, store) = made();
    store.add(["a", "b", "c"].map(listed)).unwrap();
    let items = store.claim(3, 1).unwrap();
    assert!(items.iter().all(|item| !item.failed_before));
    store.end(items[0].n, &End::Failed { code: "no_answer".into(), message: "HTTP 500".into() }, 2).unwrap();
    store.begin(items[1].n, &piece(0), 2).unwrap();
    store.failed_try(items[1].n, &piece(0), "HTTP 500", None, 3).unwrap();
    store.retry_failed().unwrap();
    drop(store);
    let items = Store::resume(&file, &params()).unwrap().claim(3, 5).unwrap();
    assert_eq!(items.iter().map(|item| item.failed_before).collect::<Vec<_>>(), [true, true, false]);
}

#[test]
fn a_file_that_has_changed_is_done_anew_and_what_it_cost_stays() {
    let (_dir, _file, store) = made();
    store.add([listed("a")]).unwrap();
    let n = store.claim(1, 1).unwrap()[0].n;
    store.describe(n, &content(1)).unwrap();
    store.begin(n, &piece(0), 2).unwrap();
    store.answered(n, &piece(0), "old", &PRICE, 3).unwrap();
    store.put_transcript(n, &Transcript::default()).unwrap();
    store.end(n, &End::Released, 4).unwrap();
    assert!(store.claim(1, 5).unwrap()[0].has_transcript);
    assert_eq!(store.describe(n, &content(2)).unwrap(), Known::New);
    assert_eq!(store.transcript(n).unwrap(), None);
    store.begin(n, &piece(0), 6).unwrap();
    store.answered(n, &piece(0), "new", &PRICE, 7).unwrap();
    store.put_transcript(n, &Transcript::default()).unwrap();
    store.end(n, &End::Done, 8).unwrap();
    assert_eq!(store.sums().usage, PRICE + PRICE);
    assert_eq!(store.sums(), Sums::read(&store.inner().sql).unwrap());
}

#[test]
fn a_twin_waits_for_the_one_that_is_at_work_and_does_it_itself_when_that_fails() {
    let (_dir, _file, store) = made();
    store.add(["a", "b", "c"].map(listed)).unwrap();
    let claimed: Vec<i64> = store.claim(9, 1).unwrap().iter().map(|item| item.n).collect();
    let [a, b, c] = claimed[..] else { panic!("three") };
    let known = |n| store.describe(n, &content(1)).unwrap();
    // Whoever says it first, of those that are at work, waits: nobody knows of the others what they have.
    assert_eq!([a, b, c].map(known), [Known::New, Known::Held, Known::Held]);
    assert!(store.claim(9, 2).unwrap().is_empty() && store.sums().waiting.items == 2);
    assert!(matches!(store.end(b, &End::Done, 3), Err(StoreError::NotWorking { .. })), "it is not claimed any more");
    store.end(a, &End::Failed { code: "x".into(), message: "y".into() }, 3).unwrap();
    assert_eq!(store.claim(9, 4).unwrap().len(), 2);
    // The other way round now, for both are known to have the same.
    assert_eq!([b, c].map(known), [Known::Held, Known::New]);
    let (b, c) = (c, b);
    store.put_transcript(b, &Transcript { text: "hello".into(), ..Transcript::default() }).unwrap();
    store.end(b, &End::Done, 5).unwrap();
    assert_eq!(store.claim(9, 6).unwrap().len(), 1);
    assert_eq!(known(c), Known::Transcribed { complete: false }, "an extract is wanted, and there was none");
    assert_eq!(store.transcript(c).unwrap().unwrap().text, "hello");
    store.end(c, &End::Done, 9).unwrap();
    assert_eq!(store.retry_failed().unwrap(), 1);
    assert_eq!((store.sums().waiting.items, store.sums().failed.items), (1, 0));
    let slow: Vec<(String, u64)> = store.slowest(10).unwrap().into_iter().map(|slow| (slow.id, slow.took_ms)).collect();
    assert_eq!(slow, [("b".to_owned(), 3), ("c".to_owned(), 1)]);
}
