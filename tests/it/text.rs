//! Requests for text (docs/text.md) from outside: a real relay, the simulator behind it, and its bill against the ledger.
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use reqwest::{
    RequestBuilder,
    multipart::{Form, Part},
};
use rusqlite::Connection;
use serde_json::{Value, json};
use tokio::time;
use voxrelay::{
    config::{Config, TenantConfig, UpstreamConfig},
    sim::{Faults, Sim, SimConfig, TextStats},
};

use crate::support::{API_KEY, Answer, PATIENCE, Rig, answer, http, tenant, until};

mod answers;
mod broken;
mod doors;
mod leaving;
mod limits;
mod repeated;
mod tiers;
mod transcriptions;

const LUNA: &str = "gpt-5.6-luna";
const RESPONSES: &str = "/v1/responses";
const TRANSCRIPTIONS: &str = "/v1/audio/transcriptions";
/// Pico-dollars of a token, and of a minute.
const PRICES: &str = "
    [models.\"gpt-5.6-luna\"]\nas_of = \"2026-11-01\"\nsource = \"us\"\ntext_in = \"2\"\ntext_cached = \"1\"\ntext_out = \"8\"
    [models.\"gpt-5.6-terra\"]\nas_of = \"2026-11-01\"\nsource = \"us\"\ntext_in = \"4\"\ntext_out = \"16\"
    [models.\"gpt-transcribe\"]\nas_of = \"2026-11-01\"\nsource = \"us\"\nminute = \"0.006\"
    [models.\"gpt-4o-transcribe\"]\nas_of = \"2026-11-01\"\nsource = \"us\"\ntext_in = \"2\"\naudio_in = \"6\"\ntext_out = \"10\"
";

/// A relay with a tenant, a ledger and prices of its own.
struct Desk {
    rig: Rig,
    key: String,
    ledger: PathBuf,
    _dir: tempfile::TempDir,
}

/// What the ledger has of a request.
#[derive(Debug, Clone, PartialEq)]
struct Row {
    call: String,
    kind: String,
    door: String,
    status: String,
    route: String,
    input: u64,
    output: u64,
    seconds: Option<f64>,
    cost: Option<i64>,
    estimated: bool,
}

impl Desk {
    async fn new() -> Self {
        Self::with(|_| {}, SimConfig::instant(), "").await
    }

    async fn failing(faults: &str) -> Self {
        Self::with(|_| {}, SimConfig::instant(), faults).await
    }

    async fn of_tenant(change: impl FnOnce(&mut TenantConfig)) -> Self {
        Self::with(|config| change(config.tenants.get_mut("acme").unwrap()), SimConfig::instant(), "").await
    }

    async fn with(change: impl FnOnce(&mut Config), sim: SimConfig, faults: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (ledger, prices) = (dir.path().join("ledger.db"), dir.path().join("prices.toml"));
        std::fs::write(&prices, PRICES).unwrap();
        let (mut key, file) = (String::new(), ledger.clone());
        let rig = Rig::with(
            |config| {
                (config.ledger.file, config.prices.file) = (Some(file), Some(prices));
                key = tenant(config, "acme", |_| {});
                change(config);
            },
            sim,
            faults,
        )
        .await;
        Self { rig, key, ledger, _dir: dir }
    }

    fn request(&self, body: &Value) -> RequestBuilder {
        self.rig.request("POST", RESPONSES, &self.key).json(body)
    }

    async fn ask(&self, body: Value) -> Answer {
        answer(self.request(&body)).await
    }

    async fn keyed(&self, key: &str, body: Value) -> Answer {
        answer(self.request(&body).header("idempotency-key", key)).await
    }

    fn upload(&self, form: Form) -> RequestBuilder {
        self.rig.request("POST", TRANSCRIPTIONS, &self.key).multipart(form)
    }

    /// So many rows, and no more, once they are written.
    async fn rows(&self, count: usize) -> Vec<Row> {
        let mut found = Vec::new();
        for _ in 0..PATIENCE.as_millis() / 20 {
            assert_eq!(self.rig.relay.ledger().flush(PATIENCE).await, 0);
            found = rows(&self.ledger);
            if found.len() >= count {
                break;
            }
            time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(found.len(), count, "{found:#?}");
        found
    }

    async fn row(&self) -> Row {
        self.rows(1).await.remove(0)
    }

    fn bill(&self) -> TextStats {
        self.rig.sim.stats().text
    }

    /// Requests that came to the service.
    fn asked(&self) -> u64 {
        self.bill().requests.values().sum()
    }
}

fn rows(ledger: &Path) -> Vec<Row> {
    let file = Connection::open(ledger).unwrap();
    let columns = "call, kind, door, status, route, input_tokens, output_tokens, seconds, cost, estimated";
    let mut query = file.prepare(&format!("SELECT {columns} FROM usage ORDER BY rowid")).unwrap();
    let found = query.query_map([], |row| {
        Ok(Row {
            call: row.get(0)?,
            kind: row.get(1)?,
            door: row.get(2)?,
            status: row.get(3)?,
            route: row.get(4)?,
            input: row.get::<_, i64>(5)?.unsigned_abs(),
            output: row.get::<_, i64>(6)?.unsigned_abs(),
            seconds: row.get(7)?,
            cost: row.get(8)?,
            estimated: row.get(9)?,
        })
    });
    found.unwrap().map(Result::unwrap).collect()
}

fn plain(input: &str) -> Value {
    json!({"model": LUNA, "input": input})
}

fn streamed(input: &str) -> Value {
    json!({"model": LUNA, "input": input, "stream": true})
}

fn hello() -> Vec<u8> {
    std::fs::read("assets/hello.wav").unwrap()
}

fn form(file: Vec<u8>, fields: &[(&str, &str)]) -> Form {
    let form = Form::new().part("file", Part::bytes(file).file_name("hello.wav").mime_str("audio/wav").unwrap());
    fields.iter().fold(form, |form, (name, value)| form.text((*name).to_owned(), (*value).to_owned()))
}

/// Another service, or the same asked without a relay.
async fn service(config: SimConfig, faults: &str) -> Sim {
    Sim::start("127.0.0.1:0".parse().unwrap(), config, Faults::from_toml(faults).unwrap()).await.unwrap()
}

fn direct(sim: &Sim, path: &str) -> RequestBuilder {
    http().post(format!("{}{path}", sim.base_url())).bearer_auth(API_KEY)
}

/// An account at another service.
fn account(config: &Config, sim: &Sim) -> UpstreamConfig {
    UpstreamConfig { url: Some(sim.base_url()), ..config.upstream.clone() }
}

/// A body without its moments.
fn timeless(text: &str) -> String {
    let mut pieces = text.split("_at\":");
    let first = pieces.next().unwrap_or_default().to_owned();
    pieces.fold(first, |all, piece| all + "_at\":" + piece.trim_start_matches(|c: char| c.is_ascii_digit()))
}

/// The events of a stream: names and data.
fn events(text: &str) -> Vec<(String, Value)> {
    let events = text.split_terminator("\n\n").map(|event| {
        let (name, data) = event.split_once('\n').unwrap_or_else(|| panic!("{event}"));
        let data = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        (name.strip_prefix("event: ").unwrap().to_owned(), data)
    });
    events.collect()
}

/// Reads a stream until so much of it has come.
async fn read_until(response: &mut reqwest::Response, part: &str) -> String {
    let mut text = String::new();
    while !text.contains(part) {
        let piece = time::timeout(PATIENCE, response.chunk()).await.expect("nothing came").unwrap();
        text.push_str(std::str::from_utf8(&piece.unwrap_or_else(|| panic!("{text}"))).unwrap());
    }
    text
}

/// A service whose streams begin, and then say nothing more for as long as a test lasts.
fn silent() -> SimConfig {
    let mut config = SimConfig::instant();
    config.text.response.ms = 3_600_000;
    config
}

/// A service whose words take their time.
fn slow(word_ms: u64) -> SimConfig {
    let mut config = SimConfig::instant();
    config.text.word_ms = word_ms;
    config
}
