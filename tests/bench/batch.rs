//! Thousands of recordings through an account's limits: how near they are met, how often the service refuses, what somebody on the line
//! feels of it, and how much memory it takes.
//!
//! ```text
//! cargo bench --bench batch                        # all; about four minutes
//! cargo bench --bench batch -- limits [RPM] [FILES]    # 30, 500 and 5,000 requests a minute; or one of them
//! cargo bench --bench batch -- memory [FILES]          # 1,000 and 10,000 files without limits; or so many
//! ```
//! The simulator and the relay are this process, `voxrelay transcribe` is another one. The ideal is requests / (limit x 90 %), since that is
//! what the relay uses of a limit by default; beside it stand the one for all of the limit, and that of 90 % less a tenth of a minute's worth,
//! which may be used at once: of a short run that is much. 200,000 tokens a minute are the other
//! limit everywhere. At 30 a minute only a few files are sent, and at 500 half of the thousand, so that it does not take half an hour.
//! Who is on the line asks for transcriptions of class `interactive` on the same account and model, one for every fifteen of the limit.
//!
//! Stands outside the path, at both of its ends. Judges: it ends with 1 when a figure is not reached.
#![allow(clippy::unwrap_used, reason = "a benchmark that panics says where; all its peers are its own")]
use std::{
    fs,
    path::Path,
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    process::Command,
    runtime::Runtime,
    task::JoinSet,
    time::{self, Instant, MissedTickBehavior},
};
use voxrelay::{
    config::{Config, LimitsConfig, Secret},
    serve::Server,
    sim::{Faults, Limits, Sim, SimConfig},
};

/// Requests a minute, and files.
const RUNS: [(u64, usize); 3] = [(30, 20), (500, 500), (5_000, 1_000)];
const FILES: [usize; 2] = [1_000, 10_000];
const TOKENS: u64 = 200_000;
/// What the relay uses of a limit.
const USED: f64 = 0.9;
/// Requests on the line: one for so many of the limit.
const ON_THE_LINE: f64 = 15.0;
/// Promised: makespan against the ideal, refusals of all requests, p99 of the wait on the line, and memory.
const MOST_TIME: f64 = 1.10;
const MOST_REFUSED: f64 = 0.001;
const MOST_WAIT: Duration = Duration::from_millis(50);
const MOST_MIB: f64 = 100.0;
/// Samples a second of a recording, which plays for one.
const RATE: u32 = 8_000;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let number = |at: usize| args.get(at).map(|text| text.parse::<usize>().expect("a number"));
    let part = args.first().map(String::as_str);
    let runs = match (number(1).filter(|_| part == Some("limits")), number(2)) {
        (Some(rpm), files) => vec![(rpm as u64, files.unwrap_or(rpm.min(1_000)))],
        (None, _) => RUNS.to_vec(),
    };
    let counts = number(1).filter(|_| part == Some("memory")).map_or(FILES.to_vec(), |files| vec![files]);
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let kept = Runtime::new().unwrap().block_on(async {
        let mut kept = true;
        if part != Some("memory") {
            kept &= limits(&runs).await;
        }
        if part != Some("limits") {
            kept &= memory(&counts).await;
        }
        kept
    });
    if !kept {
        println!("A FIGURE IS NOT REACHED");
        std::process::exit(1);
    }
}

/// Whether a figure is reached, in words.
fn judged(is: bool) -> &'static str {
    if is { "" } else { " (!)" }
}

async fn limits(runs: &[(u64, usize)]) -> bool {
    println!(
        "requests a minute, files: makespan; of the ideal at 90 %, at 100 %, at 90 % after a burst; refused; on the line: waited p99, max, of how many; memory\n"
    );
    // Slow ones leave the machine to themselves, and to each other.
    let (slow, fast): (Vec<_>, Vec<_>) = runs.iter().partition(|(rpm, _)| *rpm < 2_000);
    let mut kept = true;
    for together in [slow, fast] {
        let mut all = JoinSet::new();
        for (rpm, files) in together {
            all.spawn(limited(rpm, files));
        }
        while let Some(one) = all.join_next().await {
            kept &= one.unwrap();
        }
    }
    kept
}

/// One run at a limit.
async fn limited(rpm: u64, files: usize) -> bool {
    let dir = tempfile::tempdir().unwrap();
    made(dir.path(), files);
    let limit = Limits { requests: rpm, tokens: TOKENS, ..Limits::default() };
    let sim = service(SimConfig { limits: vec![limit], ..SimConfig::default() }).await;
    let mut config = Config::load(None, |_| None).unwrap();
    config.server.listen = "127.0.0.1:0".parse().unwrap();
    config.upstream.url = Some(sim.base_url());
    config.upstream.api_key = Some(Secret::new("bench"));
    config.upstream.limits =
        vec![LimitsConfig { requests: Some(rpm), tokens: Some(TOKENS), ..LimitsConfig::default() }];
    let relay = Server::start(config, None).await.unwrap();
    let url = format!("http://{}/v1", relay.addr());
    let waits = Arc::new(Mutex::new(Vec::new()));
    let mut line = JoinSet::new();
    line.spawn(on_the_line(url.clone(), Duration::from_secs_f64(60.0 * ON_THE_LINE / rpm as f64), waits.clone()));
    let began = Instant::now();
    let mib = transcribe(dir.path(), |command| {
        command.args(["--url", &url]);
    })
    .await;
    let took = began.elapsed().as_secs_f64();
    line.shutdown().await;
    let mut waits = waits.lock().unwrap().clone();
    waits.sort();
    let text = sim.stats().text;
    let asked = text.requests.get("transcriptions").copied().unwrap_or_default();
    let refused = text.refused.get(&429).copied().unwrap_or_default() as f64 / asked.max(1) as f64;
    // What is on the line takes its part of the limit.
    let ideal = asked as f64 * 60.0 / (rpm as f64 * USED);
    // And what is left of it when the relay has used at once what it may.
    let after = ideal - f64::min(asked as f64, rpm as f64 * USED / 10.0) * 60.0 / (rpm as f64 * USED);
    let (share, p99) = (took / ideal, at_share(&waits, 0.99));
    let most = waits.last().copied().unwrap_or_default();
    let good = [share <= MOST_TIME, refused <= MOST_REFUSED, p99 <= MOST_WAIT, mib <= MOST_MIB];
    println!(
        "{rpm:>5} {files:>6}: {took:>6.1} s; {share:.3}{} {:.3} {:.3}; {:.2} %{}; {} ms{} {} ms of {}; {mib:.0} MiB{}",
        judged(good[0]),
        took / (ideal * USED),
        took / after,
        refused * 100.0,
        judged(good[1]),
        p99.as_millis(),
        judged(good[2]),
        most.as_millis(),
        waits.len(),
        judged(good[3]),
    );
    good == [true; 4]
}

/// Without limits, the relay inside of the command: memory alone.
async fn memory(counts: &[usize]) -> bool {
    println!("\nfiles, without limits, the relay inside: time, memory at its highest\n");
    let mut kept = true;
    for files in counts {
        let dir = tempfile::tempdir().unwrap();
        made(dir.path(), *files);
        let sim = service(SimConfig::instant()).await;
        let began = Instant::now();
        let mib = transcribe(dir.path(), |command| {
            command.env("OPENAI_BASE_URL", sim.base_url()).env("OPENAI_API_KEY", "bench");
        })
        .await;
        println!("{files:>6}: {:>6.1} s, {mib:.0} MiB{}", began.elapsed().as_secs_f64(), judged(mib <= MOST_MIB));
        kept &= mib <= MOST_MIB;
    }
    kept
}

async fn service(config: SimConfig) -> Sim {
    Sim::start("127.0.0.1:0".parse().unwrap(), config, Faults::default()).await.unwrap()
}

/// So many recordings, each a second long and with a content of its own.
fn made(dir: &Path, files: usize) {
    fs::create_dir(dir.join("in")).unwrap();
    for number in 0..files {
        fs::write(dir.join(format!("in/{number:05}.wav")), wav(number)).unwrap();
    }
}

fn wav(number: usize) -> Vec<u8> {
    let spec =
        hound::WavSpec { channels: 1, sample_rate: RATE, bits_per_sample: 8, sample_format: hound::SampleFormat::Int };
    let mut bytes = std::io::Cursor::new(Vec::new());
    let mut wav = hound::WavWriter::new(&mut bytes, spec).unwrap();
    for at in 0..RATE as usize {
        // A square wave, and the number as clicks in front of it.
        let sample = if at < 32 { ((number >> at) & 1) * 9 } else { ((at / (10 + number % 30)) & 1) * 60 };
        wav.write_sample(i8::try_from(sample).unwrap()).unwrap();
    }
    wav.finalize().unwrap();
    bytes.into_inner()
}

/// Runs the command over all of them; its memory at its highest, MiB.
async fn transcribe(dir: &Path, change: impl FnOnce(&mut Command)) -> f64 {
    let mut command = Command::new(env!("CARGO_BIN_EXE_voxrelay"));
    command.current_dir(dir).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    for name in ["OPENAI_API_KEY", "OPENAI_BASE_URL", "RUST_LOG", "VOXRELAY_TOKEN"] {
        command.env_remove(name);
    }
    command.env("XDG_DATA_HOME", dir).args([
        "transcribe",
        "in",
        "--min-seconds",
        "0.5",
        "--out",
        "t.csv",
        "--progress",
        "never",
    ]);
    change(&mut command);
    let child = command.spawn().unwrap();
    let status = format!("/proc/{}/status", child.id().unwrap());
    let mut highest = 0.0_f64;
    let mut ticks = time::interval(Duration::from_millis(20));
    let ended = child.wait_with_output();
    tokio::pin!(ended);
    let output = loop {
        tokio::select! {
            output = &mut ended => break output.unwrap(),
            _ = ticks.tick() => {
                // What it has ever had, so that nothing between two looks is missed but the very end.
                let status = fs::read_to_string(&status).unwrap_or_default();
                let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
                let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok());
                highest = highest.max(kib.unwrap_or_default() / 1_024.0);
            }
        }
    };
    let said = String::from_utf8_lossy(&output.stderr);
    if std::env::var_os("BENCH_VERBOSE").is_some() {
        println!("{said}");
    }
    assert!(output.status.success(), "{said}");
    let rows = csv::Reader::from_path(dir.join("t.csv")).unwrap().into_records().count();
    assert_eq!(rows, fs::read_dir(dir.join("in")).unwrap().count(), "{said}");
    highest
}

/// Somebody asks now and then, and notes how long it took to be let in.
async fn on_the_line(url: String, every: Duration, waits: Arc<Mutex<Vec<Duration>>>) {
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let mut ticks = time::interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    let mut number = 1 << 20;
    let mut asking = JoinSet::new();
    loop {
        ticks.tick().await;
        number += 1;
        let (http, url, waits) = (http.clone(), format!("{url}/audio/transcriptions"), waits.clone());
        asking.spawn(async move {
            let file = reqwest::multipart::Part::bytes(wav(number)).file_name("line.wav");
            let form = reqwest::multipart::Form::new().text("model", "gpt-transcribe").part("file", file);
            let answer = http.post(url).multipart(form).send().await.unwrap();
            let waited = answer.headers().get("x-voxrelay-waited-ms").and_then(|ms| ms.to_str().ok()?.parse().ok());
            // Who was refused has waited for ever.
            waits.lock().unwrap().push(waited.map_or(Duration::from_secs(3_600), Duration::from_millis));
        });
        while asking.try_join_next().is_some() {}
    }
}

/// The value below which this share lies, of sorted ones.
fn at_share(sorted: &[Duration], share: f64) -> Duration {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index")]
    let at = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(at.saturating_sub(1)).copied().unwrap_or_default()
}
