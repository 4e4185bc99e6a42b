//! `voxrelay transcribe` and `extract` as people run them: the real command, against a relay of this process on the simulator, whose count of
//! what was paid is the truth.
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use rusqlite::Connection;
use voxrelay::{
    admit::price::Usd,
    config::Config,
    sim::{SimConfig, TextConfig, TextStats},
};

use crate::{
    commands::voxrelay,
    support::{PATIENCE, Rig},
};

mod bad;
mod begins;
mod ends;
mod faults;
mod long;
mod sources;
mod tables;

/// What generated recordings have, Hz.
const RATE: u32 = 8_000;
/// Every clip of the tests, by its path.
const CLIPS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clips");

/// A relay with books, on the simulator, and a folder to work in.
struct Desk {
    rig: Rig,
    dir: tempfile::TempDir,
    token: Option<String>,
}

/// What a command came to.
#[derive(Debug)]
struct Ran {
    code: i32,
    said: String,
}

impl Desk {
    async fn new() -> Self {
        Self::with(|_| {}, TextConfig::instant(), "").await
    }

    async fn with(change: impl FnOnce(&mut Config), text: TextConfig, faults: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ledger = dir.path().join(".ledger.db");
        let change = |config: &mut Config| {
            config.ledger.file = Some(ledger);
            change(config);
        };
        let sim = SimConfig { text, ..SimConfig::instant() };
        Self { rig: Rig::with(change, sim, faults).await, dir, token: None }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A recording that no other number has; its words follow from it.
    fn made(&self, name: &str, number: u64) {
        wav(&self.path(name), RATE, 1, &sound(number, RATE));
    }

    /// The command, in the folder, towards the relay.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = voxrelay();
        let url = format!("http://{}/v1", self.rig.relay.addr());
        command.current_dir(self.dir.path()).args(args).args(["--url", &url, "--progress", "never"]);
        if let Some(token) = &self.token {
            command.args(["--token", token]);
        }
        command
    }

    fn start(&self, args: &[&str]) -> Child {
        self.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    async fn run(&self, args: &[&str]) -> Ran {
        end(self.start(args)).await
    }

    fn paid(&self) -> TextStats {
        self.rig.sim.stats().text
    }

    /// What the relay has booked: its cost, and seconds of audio.
    async fn booked(&self) -> (Usd, f64) {
        assert_eq!(self.rig.relay.ledger().flush(PATIENCE).await, 0);
        let sums = "SELECT sum(cost), sum(seconds) FROM usage";
        let (cost, seconds): (i64, f64) = Connection::open(self.path(".ledger.db"))
            .unwrap()
            .query_row(sums, [], |row| Ok((row.get(0)?, row.get::<_, Option<f64>>(1)?.unwrap_or_default())))
            .unwrap();
        (Usd::from_pico(cost.into()), seconds)
    }

    /// A table that was written, and the one of errors beside it.
    fn table(&self, name: &str) -> Vec<Row> {
        let mut reader = csv::Reader::from_path(self.path(name)).unwrap();
        let names = reader.headers().unwrap().clone();
        let row = |record: csv::StringRecord| {
            names.iter().zip(&record).map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
        };
        reader.records().map(|record| row(record.unwrap())).collect()
    }

    /// Errors by id: code, and message.
    fn errors(&self, name: &str) -> BTreeMap<String, (String, String)> {
        let rows = self.table(name);
        rows.iter().map(|row| (row["id"].clone(), (row["code"].clone(), row["message"].clone()))).collect()
    }
}

type Row = BTreeMap<String, String>;

/// What rows cost together, and ms of audio that they were billed.
fn bill(rows: &[Row]) -> (Usd, u64) {
    let costs = rows.iter().map(|row| row["cost_usd"].parse::<Usd>().unwrap().pico()).sum();
    let ms = rows.iter().map(|row| whole(row["audio_s"].parse::<f64>().unwrap() * 1_000.0)).sum();
    (Usd::from_pico(costs), ms)
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a number of ms, rounded")]
fn whole(ms: f64) -> u64 {
    ms.round() as u64
}

/// Waits for a command's end.
async fn end(child: Child) -> Ran {
    let output = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap()).await.unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!said.contains("panicked"), "{said}");
    Ran { code: output.status.code().unwrap_or(-1), said }
}

fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args([name, &child.id().to_string()]).status().unwrap().success());
}

/// Words of one tone each with pauses between them, about two seconds; `number` tells them from others.
fn sound(number: u64, rate: u32) -> Vec<i16> {
    let mut dice = StdRng::seed_from_u64(number);
    let mut samples = vec![0; rate as usize / 5];
    for _ in 0..4 {
        let (length, pause) = (dice.random_range(12..22), dice.random_range(15..25));
        let (height, level) = (dice.random_range(150.0..900.0), dice.random_range(2_000.0..20_000.0));
        for at in 0..length * rate / 50 {
            let angle = f64::from(at) * height * std::f64::consts::TAU / f64::from(rate);
            #[expect(clippy::cast_possible_truncation, reason = "within 16 bits")]
            samples.push((angle.sin() * level) as i16);
        }
        samples.resize(samples.len() + (pause * rate / 50) as usize, 0);
    }
    samples
}

/// Each sample on all channels.
fn wav(file: &Path, rate: u32, channels: u16, samples: &[i16]) {
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    let spec =
        hound::WavSpec { channels, sample_rate: rate, bits_per_sample: 16, sample_format: hound::SampleFormat::Int };
    let mut wav = hound::WavWriter::create(file, spec).unwrap();
    for sample in samples {
        (0..channels).for_each(|_| wav.write_sample(*sample).unwrap());
    }
    wav.finalize().unwrap();
}
