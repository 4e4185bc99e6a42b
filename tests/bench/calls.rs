//! What calls cost the relay: memory of idle ones, CPU of speaking ones, and HAProxy beside it on the same audio.
//!
//! ```text
//! cargo bench --bench calls                                  # all four, with their defaults
//! cargo bench --bench calls -- idle [CALLS]                  # memory: 1000 calls
//! cargo bench --bench calls -- stream [CALLS] [SECS]         # CPU: 1000 calls speak for 20 s
//!      [--chunk-ms 100] [--no-gather] [--turns auto|manual] [--reply]
//! cargo bench --bench calls -- haproxy [CALLS] [SECS] [--rounds 5]   # ratio: 200 calls, 20 s a turn
//! cargo bench --bench calls -- passthrough [CALLS] [SECS] [--rounds 5]   # the same JSON through both: CPU and delay
//! cargo bench --bench calls -- phones [CALLS]                # telephone calls: added delay each way, CPU, memory: 100 calls
//! cargo bench --bench calls -- survive [clients|sessions|rotations|storm|restarts|all] [CALLS] [DROPS]   # what breaks loses nothing
//! cargo bench --bench calls -- heap [TURNS]                  # the heap does not grow in 1000000 turns
//! cargo bench --bench calls -- governed [TURNS]              # asking the quota adds 1 ms at p99 at most: 2000 turns of each
//! ```
//! `survive`, `heap` and `governed` are no part of all four: they take their time, and judge. See `calls/survive.rs`, `calls/heap.rs`,
//! `calls/governed.rs`.
//!
//! `haproxy` and `passthrough` need HAProxy (Debian and Ubuntu: `apt-get install haproxy`). A thousand calls need 2,100 open files in the
//! relay (`ulimit -Hn`). Environment: `BENCH_VERBOSE=1` shows the children's complaints; `BENCH_THREADS` is the number of
//! threads for the relay and for HAProxy (2); `BENCH_RELAY` names another relay binary, to compare two builds.
//!
//! The relay is the release binary in a process of its own; so are the callers (`load`) and the model service (`sink`),
//! so that their CPU does not count. Everything runs on loopback, where the kernel bills a sender for much of the
//! receiver's TCP work; that is so for the relay and for HAProxy alike. Audio carries numbers and due times: what is
//! lost, out of order, in another call or late is found at the service.
//!
//! A counting allocator serves `heap`; in the others it is in whatever shares this process (of `survive` and `governed` the relay, too).
//!
//! Stands outside the path, at both of its ends. Never judges, but for `survive`, `heap` and `governed`: it prints figures, and fails
//! only if it cannot get them.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a benchmark that panics says where; all its peers are its own"
)]
#[path = "calls/frames.rs"]
mod frames;
#[path = "calls/gap.rs"]
mod gap;
#[path = "calls/governed.rs"]
mod governed;
#[path = "calls/heap.rs"]
mod heap;
#[path = "calls/line.rs"]
mod line;
#[path = "calls/load.rs"]
mod load;
#[path = "calls/phones.rs"]
mod phones;
#[path = "calls/process.rs"]
mod process;
#[path = "calls/restarts.rs"]
mod restarts;
#[path = "calls/sink.rs"]
mod sink;
#[path = "calls/survive.rs"]
mod survive;

use std::{
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
    time::Duration,
};

use clap::{Parser, Subcommand};
use load::Form;
use process::{Figures, Memory, Process, Usage};
use survive::Part;
use tempfile::NamedTempFile;
use tokio::time::Instant;

/// Memory is read so long after the last thing that happened.
const SETTLE: Duration = Duration::from_secs(5);
/// Streaming before and after the time that is measured.
const MARGIN: Duration = Duration::from_secs(1);
/// Children may take so long to get ready, or to have passed on the last audio.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    mode: Option<Mode>,
    /// Said by cargo.
    #[arg(long, hide = true, global = true)]
    bench: bool,
}

#[derive(Subcommand)]
enum Mode {
    /// Memory of idle calls.
    Idle {
        #[arg(default_value_t = 1_000)]
        calls: usize,
    },
    /// CPU of calls that speak.
    Stream {
        #[arg(default_value_t = 1_000)]
        calls: usize,
        #[arg(default_value_t = 20)]
        secs: u64,
        #[command(flatten)]
        relay: RelayArgs,
        /// The service answers all the time.
        #[arg(long)]
        reply: bool,
    },
    /// CPU beside HAProxy's.
    Haproxy {
        #[arg(default_value_t = 200)]
        calls: usize,
        #[arg(default_value_t = 20)]
        secs: u64,
        #[arg(long, default_value_t = 5)]
        rounds: usize,
    },
    /// CPU and delay of OpenAI's own protocol beside HAProxy's, on the same messages.
    Passthrough {
        #[arg(default_value_t = 200)]
        calls: usize,
        #[arg(default_value_t = 20)]
        secs: u64,
        #[arg(long, default_value_t = 5)]
        rounds: usize,
    },
    /// Sockets, sessions and services that break under calls; ends with 1 when a promise is broken.
    Survive {
        #[arg(default_value = "all")]
        part: Part,
        /// 1000, rotations 200, in a storm 2000; restarts: how many, 100.
        calls: Option<usize>,
        /// Sockets lost, sessions lost or sessions left, in all; 10000, rotations 1000; restarts: new connections a second, 200.
        drops: Option<usize>,
        /// With as many open files as allowed (a child of this benchmark).
        #[arg(long, hide = true)]
        here: bool,
    },
    /// Telephone calls that speak both ways.
    Phones {
        #[arg(default_value_t = 100)]
        calls: usize,
    },
    /// What lives on the heap after many turns; ends with 1 when it has grown.
    Heap {
        #[arg(default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(5_000..))]
        turns: u64,
    },
    /// Time that an answer waits because the quota is asked first; ends with 1 when it is more than promised.
    Governed {
        /// Of each kind of relay.
        #[arg(default_value_t = 2_000)]
        turns: usize,
    },
    /// The model service (a child of this benchmark).
    #[command(hide = true)]
    Sink,
    /// Telephones and the model service (a child of this benchmark).
    #[command(hide = true)]
    PhoneEnds { calls: usize },
    /// The callers (a child of this benchmark).
    #[command(hide = true)]
    Load { addr: SocketAddr, path: String, form: Form, calls: usize },
}

#[derive(clap::Args, Clone)]
struct RelayArgs {
    #[arg(long, default_value_t = 100)]
    chunk_ms: u64,
    /// The relay wakes for every frame.
    #[arg(long)]
    no_gather: bool,
    #[arg(long, default_value = "auto")]
    turns: String,
    /// The agent fixes its instructions.
    #[arg(skip)]
    policy: bool,
}

impl Default for RelayArgs {
    fn default() -> Self {
        Self { chunk_ms: 100, no_gather: false, turns: "auto".to_owned(), policy: false }
    }
}

fn main() {
    let args = Args::parse();
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let relay = RelayArgs::default();
    match args.mode {
        Some(Mode::Sink) => runtime().block_on(sink::run()),
        Some(Mode::Load { addr, path, form, calls }) => runtime().block_on(load::run(addr, path, form, calls)),
        Some(Mode::Idle { calls }) => idle(calls),
        Some(Mode::PhoneEnds { calls }) => runtime().block_on(phones::ends(calls)),
        Some(Mode::Phones { calls }) => phones::run(calls),
        Some(Mode::Heap { turns }) => heap::run(turns),
        Some(Mode::Governed { turns }) => governed::run(turns),
        Some(Mode::Survive { part, calls, drops, here: true }) => survive::run(part, calls, drops),
        Some(Mode::Survive { here: false, .. }) => process::again_with_all_files("--here"),
        Some(Mode::Stream { calls, secs, relay, reply }) => stream(calls, Duration::from_secs(secs), &relay, reply),
        Some(Mode::Haproxy { calls, secs, rounds }) => haproxy(calls, Duration::from_secs(secs), rounds),
        Some(Mode::Passthrough { calls, secs, rounds }) => passthrough(calls, Duration::from_secs(secs), rounds),
        // `cargo test` may run benchmarks too, without saying `--bench`; a small one shows that they work.
        None if !args.bench => stream(4, Duration::from_secs(1), &relay, true),
        None => {
            idle(1_000);
            stream(1_000, Duration::from_secs(20), &relay, false);
            haproxy(200, Duration::from_secs(20), 5);
            passthrough(200, Duration::from_secs(20), 5);
        }
    }
}

/// The model service's place.
struct Sink {
    process: Process,
    addr: SocketAddr,
}

impl Sink {
    fn start() -> Self {
        let mut process = Process::role(&["sink"]);
        let addr = process.listening("listening ");
        Self { process, addr }
    }

    fn stats(&mut self) -> Figures {
        self.process.say("stats");
        self.process.figures()
    }

    /// Waits until a figure is what it should be; whether it came to that in time.
    fn wait(&mut self, name: &str, wanted: u64, patience: Duration) -> bool {
        let end = Instant::now() + patience;
        while self.stats().get(name) != wanted {
            if Instant::now() > end {
                return false;
            }
            thread::sleep(Duration::from_millis(50));
        }
        true
    }
}

/// A relay of its own process, on the sink.
struct Relay {
    process: Process,
    addr: SocketAddr,
    _config: NamedTempFile,
}

impl Relay {
    fn start(sink: &Sink, calls: usize, args: &RelayArgs) -> Self {
        let config = NamedTempFile::new().unwrap();
        let text = format!(
            "[server]\nlisten = \"127.0.0.1:0\"\nmax_calls = {}\n[upstream]\nurl = \"http://{}/v1\"\napi_key = \"bench\"\n\
             [audio]\nchunk_ms = {}\ngather = {}\n{}",
            calls.max(1),
            sink.addr,
            args.chunk_ms,
            !args.no_gather,
            if args.policy { "[agents.default.policy]\ninstructions = \"force\"\n" } else { "" }
        );
        fs::write(&config, text).unwrap();
        let program = std::env::var_os("BENCH_RELAY").unwrap_or_else(|| env!("CARGO_BIN_EXE_voxrelay").into());
        let mut process = Process::start(program, ["serve".as_ref(), "--config".as_ref(), config.path().as_os_str()]);
        let addr = process.listening("listening on http://");
        Self { process, addr, _config: config }
    }
}

/// Callers of the relay whose sessions are all up.
fn callers(relay: &Relay, sink: &mut Sink, calls: usize, turns: &str) -> Process {
    let configured = sink.stats().get("configured");
    let load = load(relay.addr, &format!("/v1/voice?turns={turns}"), "raw", calls);
    assert!(sink.wait("configured", configured + calls as u64, PATIENCE), "not every session came up");
    load
}

fn load(addr: SocketAddr, path: &str, form: &str, calls: usize) -> Process {
    let mut load = Process::role(&["load", &addr.to_string(), path, form, &calls.to_string()]);
    assert_eq!(load.line(), format!("up {calls}"));
    load
}

fn idle(calls: usize) {
    println!("idle: {calls} calls, each a client leg and an upstream leg, plain WebSocket");
    let mut sink = Sink::start();
    let relay = Relay::start(&sink, calls, &RelayArgs::default());
    thread::sleep(Duration::from_secs(1));
    let empty = relay.process.memory();
    let mut load = callers(&relay, &mut sink, calls, "auto");
    thread::sleep(SETTLE);
    let idle = relay.process.memory();
    load.say("stream 1000");
    let sent = load.figures().get("sent");
    let talking = relay.process.memory();
    let whole = sink.wait("bytes", sent, SETTLE);
    thread::sleep(SETTLE);
    let quiet = relay.process.memory();
    load.end();
    assert!(sink.wait("open", 0, PATIENCE), "sessions stayed open after their calls");
    thread::sleep(SETTLE);
    let after = relay.process.memory();

    println!("{:<44} {:>10} {:>10} {:>14}", "", "RSS", "anonymous", "RSS per call");
    let row = |what: &str, memory: Memory, per_call: bool| {
        let more = memory.rss as f64 - empty.rss as f64;
        let each = if per_call { format!("{:.1} KiB", more / calls as f64) } else { String::new() };
        println!("{what:<44} {:>6} KiB {:>6} KiB {each:>14}", memory.rss, memory.anonymous);
    };
    row("before the first call", empty, false);
    row("all calls up, 5 s later", idle, true);
    row("while all speak", talking, true);
    row("each has spoken for 1 s, 5 s later", quiet, true);
    row("all calls gone, 5 s later", after, true);
    println!("audio: {}\n", if whole { "nothing lost" } else { "SOME WAS LOST" });
}

fn stream(calls: usize, length: Duration, args: &RelayArgs, reply: bool) {
    println!(
        "stream: {calls} calls speak for {} s in frames of 20 ms; chunks of {} ms, gathering {}, turns {}{}",
        length.as_secs(),
        args.chunk_ms,
        if args.no_gather { "off" } else { "on" },
        args.turns,
        if reply { ", and are answered all the time" } else { "" }
    );
    let mut sink = Sink::start();
    let relay = Relay::start(&sink, calls, args);
    let mut load = callers(&relay, &mut sink, calls, &args.turns);
    let whole = length + MARGIN * 2;
    if reply {
        sink.process.say(&format!("reply {}", whole.as_millis()));
    }
    load.say(&format!("stream {}", whole.as_millis()));
    thread::sleep(MARGIN);
    let (before, sink_before, load_before) = (relay.process.usage(), sink.process.usage(), load.usage());
    thread::sleep(length);
    let (used, sink_used, load_used) =
        (relay.process.usage() - before, sink.process.usage() - sink_before, load.usage() - load_before);
    let memory = relay.process.memory();
    let sent = load.figures();
    sink.wait("bytes", sent.get("sent"), Duration::from_secs(3));
    let got = sink.stats();

    let lost = sent.get("sent").saturating_sub(got.get("bytes"));
    println!("audio sent {} bytes, arrived {}, lost {lost}", sent.get("sent"), got.get("bytes"));
    println!(
        "appends {:.1} per call and second; frames not where they belong {}, calls closed early {}",
        got.get("appends") as f64 / calls as f64 / whole.as_secs_f64(),
        got.get("wrong"),
        sent.get("closed")
    );
    print_usage("relay", used, Some(calls));
    print_usage("service (not counted)", sink_used, None);
    print_usage("callers (not counted)", load_used, None);
    println!("relay memory {} KiB, {:.1} KiB per call", memory.rss, memory.rss as f64 / calls as f64);
    print_ages(&got);
    println!(
        "callers were late by at most {:.1} ms; moments (of 1 ms) later than a frame: {}",
        sent.get("worst_us") as f64 / 1e3,
        sent.get("late")
    );
    if reply {
        thread::sleep(MARGIN); // the pacer's lead is in the callers' hands before it is played
        let each = sent.get("heard") as f64 / calls as f64 / 48_000.0;
        println!(
            "answers: {each:.2} s heard per call by then; the longest gap {:.1} ms",
            sent.get("gap_us") as f64 / 1e3
        );
    }
    println!();
}

fn print_usage(what: &str, (used, over): (Usage, Duration), calls: Option<usize>) {
    let secs = over.as_secs_f64();
    let each = calls.map(|n| format!(", {:.0} us per call and second", used.cpu() * 1e6 / secs / n as f64));
    println!(
        "{what:<22} CPU {:.2} s of {secs:.1} s (user {:.2}, system {:.2}) = {:.2} cores, {:.0} waits/s{}",
        used.cpu(),
        used.user,
        used.system,
        used.cpu() / secs,
        used.wakes as f64 / secs,
        each.unwrap_or_default()
    );
}

fn print_ages(got: &Figures) {
    let ms = |name: String| format!("{:.1}", got.get(&name) as f64 / 1e3);
    let ages = |which: &str| ["p50", "p99", "max"].map(|q| ms(format!("{which}_{q}"))).join(" / ");
    println!(
        "audio's age at the service, ms, p50 / p99 / max: newest of a chunk {}, oldest {}",
        ages("newest"),
        ages("oldest")
    );
}

/// HAProxy as a tunnel for WebSockets, on the sink.
struct Haproxy {
    process: Process,
    addr: SocketAddr,
    _config: NamedTempFile,
}

impl Haproxy {
    /// `None`: it is not installed.
    fn start(sink: &Sink, calls: usize) -> Option<Self> {
        let found = std::process::Command::new("haproxy").arg("-v").output().is_ok_and(|o| o.status.success());
        if !found {
            return None;
        }
        let addr = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let config = NamedTempFile::new().unwrap();
        let text = format!(
            "global\n  nbthread {}\n  maxconn {}\ndefaults\n  mode http\n  timeout connect 5s\n  timeout client 60s\n  \
             timeout server 60s\n  timeout tunnel 1h\nfrontend in\n  bind {addr}\n  default_backend out\nbackend out\n  \
             server sink {}\n",
            process::threads(),
            calls + 100,
            sink.addr
        );
        fs::write(&config, text).unwrap();
        let process = Process::start("haproxy", ["-db".as_ref(), "-f".as_ref(), config.path().as_os_str()]);
        let end = Instant::now() + PATIENCE;
        while TcpStream::connect(addr).is_err() {
            assert!(Instant::now() < end, "haproxy does not listen; run with BENCH_VERBOSE=1 to see why");
            thread::sleep(Duration::from_millis(20));
        }
        Some(Self { process, addr, _config: config })
    }
}

/// CPU of one contender while its calls speak.
fn turn(process: &Process, mut load: Process, sink: &mut Sink, length: Duration) -> (Usage, Duration) {
    let before = sink.stats();
    load.say(&format!("stream {}", (length + MARGIN * 2).as_millis()));
    thread::sleep(MARGIN);
    let usage = process.usage();
    thread::sleep(length);
    let used = process.usage() - usage;
    let sent = load.figures();
    let arrived = before.get("bytes") + sent.get("sent");
    if !sink.wait("bytes", arrived, Duration::from_secs(3)) || sink.stats().get("wrong") > before.get("wrong") {
        println!("  AUDIO WAS LOST in this turn");
    }
    if sent.get("late") > 0 {
        println!("  callers were late by up to {:.0} ms in this turn", sent.get("worst_us") as f64 / 1e3);
    }
    load.end();
    sink.wait("open", 0, PATIENCE);
    used
}

fn haproxy(calls: usize, length: Duration, rounds: usize) {
    println!(
        "haproxy: {calls} calls speak for {} s a turn; raw audio through voxrelay, the same as JSON events of 20 ms \
         through HAProxy; {} threads each",
        length.as_secs(),
        process::threads()
    );
    let mut sink = Sink::start();
    let Some(haproxy) = Haproxy::start(&sink, calls) else {
        println!("HAProxy is not installed (Debian and Ubuntu: apt-get install haproxy); nothing measured\n");
        return;
    };
    let args = |chunk_ms, no_gather| RelayArgs { chunk_ms, no_gather, ..RelayArgs::default() };
    let gathering = Relay::start(&sink, calls, &args(100, false));
    let waking = Relay::start(&sink, calls, &args(20, true));
    println!(
        "{:<7} {:>22} {:>22} {:>22} {:>9} {:>9}",
        "round", "HAProxy (A)", "100 ms chunks (B)", "20 ms, no gathering (C)", "B / A", "C / A"
    );
    let mut ratios = (Vec::new(), Vec::new());
    for round in 1..=rounds {
        let of_relay = |relay: &Relay, sink: &mut Sink| {
            let load = callers(relay, sink, calls, "auto");
            turn(&relay.process, load, sink, length)
        };
        let b = of_relay(&gathering, &mut sink);
        let tunnelled = load(haproxy.addr, "/v1/realtime?model=bench", "json", calls);
        let a = turn(&haproxy.process, tunnelled, &mut sink, length);
        let c = of_relay(&waking, &mut sink);
        let share = |(used, over): (Usage, Duration)| used.cpu() / over.as_secs_f64();
        let cell = |(used, over): (Usage, Duration)| {
            let secs = over.as_secs_f64();
            format!("{:.3} cores {:>6.0} w/s", used.cpu() / secs, used.wakes as f64 / secs)
        };
        ratios.0.push(share(b) / share(a));
        ratios.1.push(share(c) / share(a));
        println!(
            "{round:<7} {:>22} {:>22} {:>22} {:>9.3} {:>9.3}",
            cell(a),
            cell(b),
            cell(c),
            share(b) / share(a),
            share(c) / share(a)
        );
    }
    println!(
        "median of the rounds: with 100 ms chunks {:.3}, without gathering {:.3}\n",
        median(ratios.0),
        median(ratios.1)
    );
}

fn passthrough(calls: usize, length: Duration, rounds: usize) {
    println!(
        "passthrough: {calls} calls speak for {} s a turn in JSON events of 20 ms; the same through voxrelay's OpenAI door (with \
         a policy, limits and metrics) and through HAProxy; {} threads each",
        length.as_secs(),
        process::threads()
    );
    let mut sink = Sink::start();
    let Some(haproxy) = Haproxy::start(&sink, calls) else {
        println!("HAProxy is not installed (Debian and Ubuntu: apt-get install haproxy); nothing measured\n");
        return;
    };
    let relay = Relay::start(&sink, calls, &RelayArgs { policy: true, ..RelayArgs::default() });
    println!("{:<7} {:>44} {:>44} {:>9} {:>14}", "round", "HAProxy (A)", "voxrelay (B)", "B / A", "p99 B - A");
    let (mut ratios, mut added) = (Vec::new(), Vec::new());
    for round in 1..=rounds {
        let mut of = |process: &Process, addr| {
            let load = load(addr, "/v1/realtime?model=bench", "json", calls);
            sink.process.say("reset");
            let (used, over) = turn(process, load, &mut sink, length);
            let got = sink.stats();
            let ages = ["p50", "p99"].map(|q| got.get(&format!("newest_{q}")) as f64 / 1e3);
            (used.cpu() / over.as_secs_f64(), used.wakes as f64 / over.as_secs_f64(), ages)
        };
        let a = of(&haproxy.process, haproxy.addr);
        let b = of(&relay.process, relay.addr);
        let cell = |(cores, wakes, [p50, p99]): (f64, f64, [f64; 2])| {
            format!("{cores:.3} cores {wakes:>6.0} w/s {p50:>5.2}/{p99:>5.2} ms")
        };
        ratios.push(b.0 / a.0);
        added.push(b.2[1] - a.2[1]);
        println!("{round:<7} {:>44} {:>44} {:>9.3} {:>11.2} ms", cell(a), cell(b), b.0 / a.0, b.2[1] - a.2[1]);
    }
    println!("median of the rounds: CPU {:.3}, added at p99 {:.2} ms (ages: p50/p99)\n", median(ratios), median(added));
}

fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of.get(of.len() / 2).copied().unwrap_or(f64::NAN)
}
