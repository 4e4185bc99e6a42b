//! `voxrelay extract --batch-api` from outside: a real process, killed where it hurts, and the bill at the simulator.
use std::{
    ops::Deref,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::time;
use voxrelay::sim::{
    SimConfig,
    config::{Delay, Delays},
    text::TextConfig,
};

use super::{
    PRICES,
    desk::{Desk, interrupt, kill, until},
    rows, written,
};
use crate::support::{Rig, tenant};

/// A folder of texts, a relay, and a job.
struct Work {
    desk: Desk,
    rig: Rig,
}

impl Deref for Work {
    type Target = Desk;

    fn deref(&self) -> &Desk {
        &self.desk
    }
}

impl Work {
    async fn new(texts: usize, sim: TextConfig, faults: &str) -> Self {
        let mut desk = Desk::new(texts);
        std::fs::write(desk.at("prices.toml"), PRICES).unwrap();
        let (ledger, prices) = (desk.at("ledger.db"), desk.at("prices.toml"));
        let change = |config: &mut voxrelay::config::Config| {
            (config.ledger.file, config.prices.file) = (Some(ledger.clone()), Some(prices.clone()));
            desk.key = tenant(config, "acme", |_| {});
        };
        // An answer takes its time: whoever is killed when a request came does not have it.
        let delays = Delays { rest: Delay::ms(300), ..SimConfig::instant().delays };
        let rig = Rig::with(change, SimConfig { text: sim, delays, ..SimConfig::instant() }, faults).await;
        desk.url = format!("http://{}", rig.relay.addr());
        Self { desk, rig }
    }

    /// The simulator's requests at a door.
    fn came(&self, door: &str) -> u64 {
        self.rig.sim.stats().text.requests.get(door).copied().unwrap_or_default()
    }

    async fn batches(&self) -> usize {
        let list = self.rig.ask("GET", "/v1/batches", &self.key).await;
        list.json()["data"].as_array().unwrap().len()
    }

    /// Nothing was paid twice, the ledger knows what was, and nothing stays at the service.
    async fn bill_is_right(&self, by_batch: usize) {
        let stats = self.rig.sim.stats().text;
        assert_eq!((stats.paid_again(), stats.files), (0, 0), "{stats:?}");
        written(&self.at("ledger.db"), by_batch).await;
        let rows = rows(&self.at("ledger.db"));
        let booked: i64 = rows.iter().map(|row| row.tokens).sum();
        assert_eq!(rows.len(), by_batch);
        assert_eq!(u64::try_from(booked).unwrap(), stats.batch_input_tokens + stats.batch_output_tokens);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_become_facts_by_batches_at_half_the_price() {
    let work = Work::new(6, TextConfig::instant(), "").await;
    let (code, said) = work.run(&["texts/*.txt", "--batch-api"]).await;
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("by batch   6 answers of 1 batches, 0.00"), "{said}");
    assert_eq!((work.table(), work.batches().await, work.came("responses")), (6, 1, 0), "{said}");
    work.bill_is_right(6).await;
    let pico: i64 = rows(&work.at("ledger.db")).iter().map(|row| row.cost.unwrap()).sum();
    let cost = voxrelay::admit::price::Usd::from_pico(pico.into());
    assert!(said.contains(&format!("cost       {cost} USD\n")), "{cost}: {said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_killed_goes_on_with_the_batch_that_there_is() {
    // Long enough for a slow machine to do all of this meanwhile.
    let slow = TextConfig { batch_ms: 12_000, ..TextConfig::instant() };
    let work = Work::new(6, slow, "").await;
    let mut args = vec!["texts/*.txt", "--batch-api"];
    // Where the file is there, where the batch was asked for, and while it runs.
    for (what, door) in [("a file", "files"), ("a batch", "batches"), ("a look", "batches")] {
        let before = work.came(door);
        let child = work.start(&args);
        until(what, async || work.came(door) > before).await;
        kill(child);
        args = vec!["--resume", "--batch-api"];
    }
    let before = work.came("batches");
    let child = work.start(&args);
    until("a look", async || work.came("batches") > before).await;
    // Told to stop it leaves at once, and says what goes on.
    let began = time::Instant::now();
    let (code, said) = interrupt(child).await;
    assert_eq!(code, 1, "{said}");
    assert!(began.elapsed() < Duration::from_secs(10), "{said}");
    assert!(said.contains("1 batches go on at the service"), "{said}");
    // Without the flag it goes on all the same: they are paid.
    let (code, said) = work.run(&["--resume"]).await;
    assert_eq!((code, work.table(), work.batches().await), (0, 6, 1), "{said}");
    assert_eq!(work.came("responses"), 0);
    work.bill_is_right(6).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_expired_goes_into_another_batch_and_then_directly() {
    let faults = "[[fault]]\nkind = \"answer\"\nas = \"expired\"\ndoor = \"batches\"\n";
    let text = TextConfig { batch_ms: 1_000, ..TextConfig::instant() };
    let work = Work::new(8, text, faults).await;
    let (code, said) = work.run(&["texts/*.txt", "--batch-api"]).await;
    assert_eq!((code, work.table(), work.batches().await), (0, 8, 2), "{said}");
    // Half, then half of the other half; the rest is asked by itself.
    assert!(said.contains("by batch   6 answers of 2 batches"), "{said}");
    assert_eq!(work.came("responses"), 2, "{said}");
    work.bill_is_right(6).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_batch_gives_what_it_has_done() {
    let slow = TextConfig { batch_ms: 12_000, ..TextConfig::instant() };
    let work = Work::new(12, slow, "").await;
    let child = work.start(&["texts/*.txt", "--batch-api"]);
    until("a line", async || {
        // Looking makes the simulator do what should have been done by now.
        work.batches().await;
        work.came("batch_lines") >= 3
    })
    .await;
    kill(child);
    let (code, said) = work.run(&["--resume", "--cancel-batch"]).await;
    let done = work.table();
    assert!(code == 1 && (3..12).contains(&done), "{done}: {said}");
    assert!(said.contains("the batch was cancelled"), "{said}");
    assert_eq!(work.came("batch_lines"), done as u64, "no more than that is paid");
    let (code, said) = work.run(&["--resume", "--cancel-batch"]).await;
    assert!(code == 2 && said.contains("no batch of this job is under way"), "{said}");
    let (code, said) = work.run(&["--resume"]).await;
    assert_eq!((code, work.table(), work.batches().await), (0, 12, 1), "{said}");
    assert_eq!(work.came("responses"), 12 - done as u64);
    work.bill_is_right(done).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_that_fail_are_named_repaired_or_asked_directly() {
    let faults = "[[fault]]\nkind = \"refuse\"\ndoor = \"batch_lines\"\nstatus = 400\nsession = 2\n\
                  [[fault]]\nkind = \"refuse\"\ndoor = \"batch_lines\"\nstatus = 500\nsession = 3\n\
                  [[fault]]\nkind = \"answer\"\nas = \"malformed\"\ndoor = \"batch_lines\"\nsession = 4\n\
                  [[fault]]\nkind = \"answer\"\nas = \"incomplete\"\ndoor = \"batch_lines\"\nsession = 5\n";
    let work = Work::new(6, TextConfig::instant(), faults).await;
    let (code, said) = work.run(&["texts/*.txt", "--batch-api"]).await;
    assert_eq!((code, work.table(), work.batches().await), (1, 5, 1), "{said}");
    // The one with 500, a repair, and one with more room.
    assert_eq!(work.came("responses"), 3, "{said}");
    let errors: Vec<PathBuf> = std::fs::read_dir(work.dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    let errors = errors.iter().find(|file| name(file).contains("error") && name(file).ends_with(".csv")).unwrap();
    assert!(std::fs::read_to_string(errors).unwrap().lines().count() == 2, "{said}");
    work.bill_is_right(4).await;
    // What failed is tried again: by itself, for a batch of it was asked for no more.
    let (code, said) = work.run(&["--resume"]).await;
    assert_eq!((code, work.table()), (0, 6), "{said}");
    // Where there are enough of them, they go into a batch of their own.
    let many = Work::new(6, TextConfig::instant(), faults).await;
    let (code, said) = many.run(&["texts/*.txt", "--batch-api", "--batch-few", "1"]).await;
    assert_eq!((code, many.table(), many.batches().await, many.came("responses")), (1, 5, 2, 1), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_as_large_as_is_allowed_and_what_cannot_be_is_said() {
    let work = Work::new(5, TextConfig::instant(), "").await;
    let (code, said) = work.run(&["texts/*.txt", "--batch-api", "--batch-tokens", "900"]).await;
    assert_eq!((code, work.table(), work.came("responses")), (0, 5, 0), "{said}");
    assert!(work.batches().await > 1, "{said}");
    work.bill_is_right(5).await;
    let faults = "[[fault]]\nkind = \"answer\"\nas = \"failed\"\ndoor = \"batches\"\n";
    let work = Work::new(2, TextConfig::instant(), faults).await;
    let (code, said) = work.run(&["texts/*.txt", "--batch-api"]).await;
    assert_eq!((code, work.table()), (1, 0), "{said}");
    assert!(said.contains("stopped: the batch has failed: ") && said.contains("2 left"), "{said}");
    let (code, said) = work.run(&["--resume"]).await;
    assert_eq!((code, work.table(), work.came("responses")), (0, 2, 2), "{said}");
}

fn name(file: &Path) -> String {
    file.file_name().unwrap().to_string_lossy().into_owned()
}
