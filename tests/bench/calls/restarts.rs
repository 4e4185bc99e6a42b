//! Processes that follow one another under load (fault matrix O5): nobody is refused, and parked calls are found in the next.
//!
//! The relays are processes of their own, the release binary; the service, the parked callers and those who come in share this
//! one. Each connection is a WebSocket that waits for its first answer, then ends its call. A process is replaced by starting
//! the next one, and by nothing else.
use std::{
    fs,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::{SinkExt as _, StreamExt as _};
use tempfile::TempDir;
use tokio::{
    task::{JoinSet, block_in_place},
    time::{self, Instant, MissedTickBehavior},
};
use tokio_tungstenite::tungstenite::Message;
use voxrelay::sim::{Faults, Sim, SimConfig};

use super::{
    line::{Caller, dial, first},
    process::Process,
    survive::{COMPLAINTS, SEED, collect, fact, lost_and_doubled, none, promise, times},
};

/// Calls that are parked while a process is replaced.
const PARKED: usize = 5;
/// What each of them says after it, in frames.
const TURN: usize = 5;
/// The process before is gone within this: its patience, and a second.
const DRAIN: Duration = Duration::from_secs(3);
const LEAVES_WITHIN: Duration = Duration::from_secs(6);
/// Who has ended a call is told so within this.
const GOODBYE: Duration = Duration::from_secs(10);

/// What relays that follow one another have in common.
struct Site {
    dir: TempDir,
    sim: Sim,
}

impl Site {
    async fn new() -> Self {
        let sim = SimConfig { max_sessions: 100_000, ..SimConfig::default() };
        let sim = Sim::start("127.0.0.1:0".parse().unwrap(), sim, Faults::default()).await.unwrap();
        Self { dir: tempfile::tempdir().unwrap(), sim }
    }

    /// A relay that follows the one that runs, if one does; returns once it serves.
    fn start(&self, listen: &str) -> (Process, SocketAddr) {
        let config = self.dir.path().join("voxrelay.toml");
        let text = format!(
            "[server]\nlisten = \"{listen}\"\nhandover = \"{}\"\ndrain_s = {}\n[upstream]\nurl = \"{}\"\napi_key = \"bench\"\n\
             [ledger]\nfile = \"\"\n[store]\nfile = \"\"\n",
            self.dir.path().join("relay.sock").display(),
            DRAIN.as_secs(),
            self.sim.base_url(),
        );
        fs::write(&config, text).unwrap();
        let program = std::env::var_os("BENCH_RELAY").unwrap_or_else(|| env!("CARGO_BIN_EXE_voxrelay").into());
        let mut process = Process::start(program, ["serve".as_ref(), "--config".as_ref(), config.as_os_str()]);
        let addr = process.listening("listening on http://");
        (process, addr)
    }
}

/// What those who came in have seen.
#[derive(Default)]
struct Seen {
    over: AtomicBool,
    refused: AtomicU64,
    /// From the dial to the first answer.
    took: Mutex<Vec<Duration>>,
}

/// Comes in, waits for the first answer, and ends the call.
async fn come_in(addr: SocketAddr, seen: &Seen) -> Result<(), String> {
    let began = Instant::now();
    let mut ws = dial(addr, &format!("ws://{addr}/v1/voice")).await?;
    first(&mut ws, "ready").await?;
    seen.took.lock().unwrap().push(began.elapsed());
    let _ = ws.send(Message::text(r#"{"type":"close"}"#)).await; // its process may be leaving already
    let _ = time::timeout(GOODBYE, async { while let Some(Ok(_)) = ws.next().await {} }).await;
    Ok(())
}

/// So many come in each second until it is over.
async fn load(addr: SocketAddr, rate: u64, seen: Arc<Seen>) {
    let mut tick = time::interval(Duration::from_secs(1) / u32::try_from(rate).unwrap());
    tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut all = JoinSet::new();
    while !seen.over.load(Ordering::Relaxed) {
        tick.tick().await;
        let seen = seen.clone();
        all.spawn(async move {
            if let Err(why) = come_in(addr, &seen).await
                && seen.refused.fetch_add(1, Ordering::Relaxed) < COMPLAINTS as u64
            {
                println!("  {why}");
            }
        });
        while all.try_join_next().is_some() {}
    }
    all.join_all().await;
}

/// Replaces the process so often, `rate` connections a second all the while. Whether every promise was kept.
pub(crate) async fn restarts(count: usize, rate: u64) -> bool {
    println!(
        "restarts: {count} processes follow one another under {rate} new connections a second; {PARKED} calls are parked each time"
    );
    let site = Site::new().await;
    let (mut relay, addr) = block_in_place(|| site.start("127.0.0.1:0"));
    let seen = Arc::new(Seen::default());
    let mut loading = JoinSet::new();
    loading.spawn(load(addr, rate, seen.clone()));
    let began = Instant::now();
    let mut parked = Vec::new();
    for number in 0..PARKED {
        parked.push(Caller::begin(addr, number, SEED).await.unwrap());
    }
    let (mut lost, mut stayed) = (0, 0);
    for _ in 0..count {
        parked.iter_mut().for_each(Caller::lose);
        let (next, _) = block_in_place(|| site.start(&addr.to_string()));
        if let Err(why) = block_in_place(|| std::mem::replace(&mut relay, next).left(LEAVES_WITHIN)) {
            stayed += 1;
            println!("  {why}");
        }
        let mut turns = JoinSet::new();
        for mut caller in parked.drain(..) {
            turns.spawn(async move {
                caller.back().await?;
                caller.speak(TURN, false).await?;
                caller.answer(None).await?;
                Ok::<_, String>(caller)
            });
        }
        for turn in turns.join_all().await {
            match turn {
                Ok(caller) => parked.push(caller),
                Err(why) => {
                    lost += 1;
                    println!("  {why}");
                }
            }
        }
    }
    let length = began.elapsed();
    seen.over.store(true, Ordering::Relaxed);
    loading.join_all().await;
    let mut tallies = parked.into_iter().map(|caller| caller.tally).enumerate().collect();
    let took = std::mem::take(&mut *seen.took.lock().unwrap());
    let (refused, wanted) = (seen.refused.load(Ordering::Relaxed), length.as_secs() * rate * 9 / 10);
    let (samples_lost, doubled) = lost_and_doubled(&tallies);
    let kept = [
        promise("connections made", &format!(">= {wanted}"), took.len() as u64 >= wanted, &took.len().to_string()),
        none("connections refused", refused),
        none("processes that did not leave by themselves, with 0", stayed),
        none("parked calls lost", lost),
        none("samples lost", samples_lost),
        none("samples doubled", doubled),
    ];
    fact("new connections a second", format!("{:.0}", took.len() as f64 / length.as_secs_f64()));
    times("from the dial to the first answer", took);
    times("from the dial to `resumed`", collect(&mut tallies, |tally| &mut tally.back));
    println!();
    kept.into_iter().all(|kept| kept)
}
