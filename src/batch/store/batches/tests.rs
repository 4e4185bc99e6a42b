use std::path::{Path, PathBuf};

use super::*;
use crate::{
    admit::price::Usd,
    batch::{
        source::Listed,
        store::{Begun, Content, End, Extracted, Item, Known, Order, Params, Transcript},
    },
};

fn params_of_job() -> Params {
    let mut params = Params::default();
    params.extract.insert("schema".to_owned(), "{}".to_owned());
    params
}

fn made(ids: &[&str]) -> (tempfile::TempDir, PathBuf, Store) {
    let dir = tempfile::tempdir().unwrap();
    let file = Store::beside(&dir.path().join("table.csv"));
    let store = Store::create(&file, &params_of_job(), Path::new("/in")).unwrap();
    store
        .add(ids.iter().map(|id| Listed { id: (*id).to_owned(), source: format!("/in/{id}"), ..Listed::default() }))
        .unwrap();
    (dir, file, store)
}

fn again(file: &Path, store: Store) -> Store {
    drop(store);
    Store::resume(file, &params_of_job()).unwrap()
}

/// Claims the next item, whose content is this, and has its text.
fn read(store: &Store, hash: u8) -> Item {
    let item = store.claim(1, 1).unwrap().remove(0);
    let content = Content { hash: [hash; 32], bytes: 10, duration_ms: 0 };
    assert_eq!(store.describe(item.n, &content).unwrap(), Known::New);
    store.put_transcript(item.n, &Transcript { text: "words".to_owned(), ..Transcript::default() }).unwrap();
    item
}

fn part(key: &str) -> Part {
    let number = key.bytes().fold(7, |sum: u32, b| sum.wrapping_mul(31).wrapping_add(b.into()));
    Part { task: Task::Extract, number, seal: key.to_owned() }
}

fn park(store: &Store, item: &Item, keys: &[&str], follow: bool) {
    let pending = |key: &&str| Pending { part: part(key), line: format!("{key}\n"), tokens: 10, follow };
    store.park(item.n, &keys.iter().map(pending).collect::<Vec<_>>(), 2).unwrap();
}

fn answers(keys: &[&str]) -> Vec<(String, Came)> {
    let usage = Usage { input_tokens: 7, output_tokens: 3, cost: Usd::from_pico(1_000), ..Usage::default() };
    keys.iter().map(|key| ((*key).to_owned(), Came::Answer(format!("to {key}"), usage))).collect()
}

fn batch_up(store: &Store, requests: usize, few: u64) -> (u64, usize) {
    let mut names = 0;
    let name = || {
        names += 1;
        format!("batch {names}")
    };
    store.batch_up(Limits { requests, ..Limits::default() }, few, name).unwrap()
}

fn finish(store: &Store, item: &Item) {
    store.put_extract(item.n, &Extracted { json: Some(serde_json::json!({})), ..Extracted::default() }).unwrap();
    store.end(item.n, &End::Done, 9).unwrap();
}

#[test]
fn what_waits_for_a_batch_is_nobodys_work_until_all_of_it_has_come() {
    let (_dir, file, store) = made(&["a", "b", "c"]);
    let a = read(&store, 1);
    park(&store, &a, &["a1", "a2"], false);
    let b = read(&store, 2);
    park(&store, &b, &["b1"], false);
    // Of the same content as the first one.
    let c = store.claim(1, 1).unwrap().remove(0);
    assert_eq!(store.describe(c.n, &Content { hash: [1; 32], bytes: 10, duration_ms: 0 }).unwrap(), Known::Held);
    assert_eq!((store.claim(9, 3).unwrap().len(), store.sums().waiting.items), (0, 3));
    assert_eq!(batch_up(&store, 2, 0), (2, 0));
    let live = store.live_batches().unwrap();
    assert_eq!(live.len(), 2);
    let (first, second) = (live[0].0, live[1].0);
    let store = again(&file, store);
    // Whoever was held is looked at once more, and waits again.
    let c = store.claim(9, 3).unwrap().remove(0);
    assert_eq!(store.describe(c.n, &Content { hash: [1; 32], bytes: 10, duration_ms: 0 }).unwrap(), Known::Held);
    assert_eq!(store.batch_lines(first, i64::MIN).unwrap().0, "a1\na2\n");
    assert_eq!(store.batch_lines(first, store.batch_lines(first, i64::MIN).unwrap().1).unwrap().0, "");
    store.merge(first, &answers(&["a1", "b1", "x"]), 4).unwrap();
    store.merge(first, &answers(&["a1"]), 4).unwrap();
    let store = again(&file, store);
    assert_eq!(store.batch_keys(first).unwrap(), ["a2"], "of another batch, or of none, is none of it");
    assert_eq!(store.claim(9, 3).unwrap().len(), 1, "and the one that was held, once more");
    store.merge(first, &answers(&["a2"]), 4).unwrap();
    store.batch_over(first, &Ended::Completed).unwrap();
    let ready = store.claim_ready(9, 5).unwrap();
    assert_eq!(ready.iter().map(|item| (item.id.as_str(), item.ready)).collect::<Vec<_>>(), [("a", true)]);
    assert_eq!(store.batched(a.n, &part("a2")).unwrap(), Batched::Answered("to a2".to_owned()));
    assert!(matches!(store.begin(a.n, &part("a1"), 6).unwrap(), Begun::Answered(_)));
    finish(&store, &ready[0]);
    let row = store.rows(&[State::Done], Order::Id).next().unwrap().unwrap();
    assert_eq!((row.started_ms, row.finished_ms), (Some(1), Some(9)), "the batch's time is in it");
    assert_eq!(store.slowest(1).unwrap()[0].took_ms, 8);
    let by_batch = store.by_batch().unwrap();
    assert_eq!((by_batch.batches, by_batch.answers, by_batch.usage.cost), (2, 2, Usd::from_pico(2_000)));
    assert_eq!(store.sums().usage.cost, Usd::from_pico(2_000));
    assert_eq!(again(&file, store).live_batches().unwrap().iter().map(|(n, _)| *n).collect::<Vec<_>>(), [second]);
}

#[test]
fn what_has_no_answer_goes_where_the_end_says() {
    let (_dir, file, store) = made(&["a"]);
    let a = read(&store, 1);
    park(&store, &a, &["a1"], false);
    for (ended, claimed, batched) in [(Ended::Expired, 0, Batched::New), (Ended::Expired, 1, Batched::Direct)] {
        assert_eq!(batch_up(&store, 9, 100).0, 1, "first ones are never few, and those that have expired are none");
        let n = store.live_batches().unwrap()[0].0;
        store.batch_over(n, &ended).unwrap();
        assert_eq!(store.claim(9, 3).unwrap().len(), claimed, "{ended:?}");
        assert_eq!(store.batched(a.n, &part("a1")).unwrap(), batched, "{ended:?}");
    }
    // What follows from answers is few.
    park(&store, &a, &["a2"], true);
    assert_eq!(batch_up(&store, 9, 2), (0, 1));
    assert_eq!(store.claim(9, 3).unwrap().len(), 1);
    park(&store, &a, &["a3"], true);
    assert_eq!(batch_up(&store, 9, 1), (1, 0));
    let n = store.live_batches().unwrap()[0].0;
    let failed = Came::Failed { code: "invalid_prompt".to_owned(), message: "no".to_owned() };
    store.merge(n, &[("a3".to_owned(), failed)], 4).unwrap();
    store.batch_over(n, &Ended::Completed).unwrap();
    assert_eq!(store.claim(9, 3).unwrap().len(), 1);
    assert!(
        matches!(store.batched(a.n, &part("a3")).unwrap(), Batched::Failed { code, .. } if code == "invalid_prompt")
    );
    // What was left by a batch that was cancelled is for another run.
    park(&store, &a, &["a4"], false);
    batch_up(&store, 9, 1);
    store.batch_over(store.live_batches().unwrap()[0].0, &Ended::Cancelled).unwrap();
    assert_eq!(store.claim(9, 3).unwrap().len(), 0);
    assert_eq!(batch_up(&store, 9, 1), (0, 0));
    let store = again(&file, store);
    assert_eq!(store.claim(9, 3).unwrap().len(), 1);
    assert_eq!(store.batched(a.n, &part("a4")).unwrap(), Batched::New);
    // What waits for a batch that nobody wants any more is sent directly.
    park(&store, &a, &["a5"], false);
    let store = again(&file, store);
    assert_eq!(store.claim(9, 3).unwrap().len(), 0);
    store.unpark().unwrap();
    assert_eq!(store.claim(9, 3).unwrap().len(), 1);
    assert_eq!(store.batched(a.n, &part("a5")).unwrap(), Batched::Direct);
    finish(&store, &a);
    assert_eq!(store.batched(a.n, &part("a3")).unwrap(), Batched::New, "another try of it is a new one");
}

#[test]
fn a_line_that_fits_into_no_file_is_sent_directly() {
    let (_dir, _file, store) = made(&["a"]);
    let a = read(&store, 1);
    park(&store, &a, &["a1"], false);
    assert_eq!(batch_up(&store, 0, 1), (0, 1));
    assert_eq!(store.batched(a.n, &part("a1")).unwrap(), Batched::Direct);
}

#[test]
fn files_at_the_service_are_known_until_they_are_deleted() {
    let (_dir, file, store) = made(&["a"]);
    let a = read(&store, 1);
    park(&store, &a, &["a1"], false);
    batch_up(&store, 9, 0);
    let (n, mut batch) = store.live_batches().unwrap().remove(0);
    batch.uploaded(&serde_json::json!({"id": "file-1"})).unwrap();
    store.put_batch(n, &batch).unwrap();
    assert_eq!(store.littering().unwrap(), [], "it is needed");
    assert_eq!(store.batch_over(n, &Ended::Completed).unwrap(), 1);
    let store = again(&file, store);
    let (n, mut batch) = store.littering().unwrap().remove(0);
    assert_eq!(batch.files(), ["file-1"]);
    batch.deleted("file-1");
    store.put_batch(n, &batch).unwrap();
    assert_eq!(again(&file, store).littering().unwrap(), []);
}

#[test]
fn what_was_ready_and_begun_is_ready_again_however_the_run_ends() {
    let (_dir, file, store) = made(&["a", "b", "c"]);
    let [a, b, c] = [1, 2, 3].map(|hash| read(&store, hash));
    park(&store, &a, &["a-0"], false);
    park(&store, &b, &["b-0"], false);
    batch_up(&store, 9, 0);
    let n = store.live_batches().unwrap()[0].0;
    store.merge(n, &answers(&["a-0"]), 3).unwrap();
    store.merge(n, &[("b-0".to_owned(), Came::Failed { code: "x".into(), message: "y".into() })], 3).unwrap();
    store.batch_over(n, &Ended::Completed).unwrap();
    let ready = |store: &Store| store.claim_ready(9, 4).unwrap().iter().map(|item| item.n).collect::<Vec<_>>();
    assert_eq!(ready(&store), [a.n, b.n]);
    // Killed; and told to stop.
    let store = again(&file, store);
    assert_eq!(ready(&store), [a.n, b.n]);
    for n in [a.n, b.n] {
        store.end(n, &End::Released, 5).unwrap();
    }
    assert_eq!(ready(&store), [a.n, b.n]);
    assert_eq!(store.claim(9, 6).unwrap().iter().map(|item| item.n).collect::<Vec<_>>(), [c.n], "nothing came for it");
}
