//! Batches (docs/batches.md): whose files and batches are, what is checked, what is booked at which price.
use std::path::Path;

use rusqlite::Connection;
use serde_json::{Value, json};
use tokio::time;
use voxrelay::{
    admit::price::Usd,
    config::{AllowanceConfig, Config, Scope, TenantConfig},
    serve::Server,
    sim::{SimConfig, text::TextConfig},
};

use crate::support::{Answer, PATIENCE, Rig, answer, config, tenant, tenant_with};

mod budgets;
mod command;
mod desk;
mod files;
mod rights;
mod service;
mod steps;

const MODEL: &str = "gpt-5.6-luna";
/// A dollar for a million tokens that are read, ten for those that are written.
const PRICES: &str = "[models.\"gpt-5.6-luna\"]\nas_of = \"2026-11-28\"\nsource = \"test\"\ntext_in = \"1\"\ntext_cached = \"1\"\ntext_out = \"10\"\n";

fn line(id: &str, model: &str, input: &str) -> String {
    let body = json!({"model": model, "input": input, "max_output_tokens": 50});
    json!({"custom_id": id, "method": "POST", "url": "/v1/responses", "body": body}).to_string()
}

fn instant() -> SimConfig {
    SimConfig { text: TextConfig::instant(), ..SimConfig::instant() }
}

impl Rig {
    async fn upload(&self, key: &str, lines: &[String]) -> Answer {
        self.upload_bytes(key, lines.join("\n").into_bytes()).await
    }

    async fn upload_bytes(&self, key: &str, bytes: Vec<u8>) -> Answer {
        let part = reqwest::multipart::Part::bytes(bytes).file_name("my lines.jsonl");
        let form = reqwest::multipart::Form::new().text("purpose", "batch").part("file", part);
        answer(self.request("POST", "/v1/files", key).multipart(form)).await
    }

    async fn begin(&self, key: &str, file: &str, metadata: Value) -> Answer {
        let asked = json!({"input_file_id": file, "endpoint": "/v1/responses", "completion_window": "24h",
            "metadata": metadata});
        self.post("/v1/batches", key, asked).await
    }

    /// Uploads, begins, and waits for the end.
    async fn run(&self, key: &str, lines: &[String]) -> Value {
        let file = self.upload(key, lines).await;
        assert_eq!(file.status, 200, "{}", file.text);
        let begun = self.begin(key, id(&file.json()), json!({"mine": "yes"})).await;
        assert_eq!(begun.status, 200, "{}", begun.text);
        self.end(key, id(&begun.json())).await
    }

    async fn end(&self, key: &str, batch: &str) -> Value {
        let end = time::Instant::now() + PATIENCE;
        loop {
            let found = self.ask("GET", &format!("/v1/batches/{batch}"), key).await;
            assert_eq!(found.status, 200, "{}", found.text);
            let found = found.json();
            if !["validating", "in_progress", "finalizing"].contains(&found["status"].as_str().unwrap()) {
                return found;
            }
            assert!(time::Instant::now() < end, "never ended: {found}");
            time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }

    async fn lines(&self, key: &str, file: &Value) -> Vec<Value> {
        let path = format!("/v1/files/{}/content", file.as_str().unwrap());
        let got = answer(self.request("GET", &path, key).header("x-voxrelay-costs", "lines")).await;
        assert_eq!(got.status, 200, "{}", got.text);
        got.text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

fn id(object: &Value) -> &str {
    object["id"].as_str().unwrap()
}

/// A row of the ledger; its cost in pico-dollars.
#[derive(Debug, PartialEq)]
struct Row {
    id: String,
    /// Tenant, kind, model.
    of: [String; 3],
    tokens: i64,
    cost: Option<i64>,
}

/// The rows of batches.
fn rows(file: &Path) -> Vec<Row> {
    let sql = Connection::open(file).unwrap();
    let rows = "SELECT id, tenant, kind, model, total_tokens, cost FROM usage WHERE door = 'batches' ORDER BY id";
    let mut ask = sql.prepare(rows).unwrap();
    let rows = ask.query_map([], |row| {
        let of = [row.get(1)?, row.get(2)?, row.get(3)?];
        Ok(Row { id: row.get(0)?, of, tokens: row.get(4)?, cost: row.get(5)? })
    });
    rows.unwrap().map(Result::unwrap).collect()
}

async fn written(file: &Path, many: usize) {
    let end = time::Instant::now() + PATIENCE;
    while rows(file).len() < many {
        assert!(time::Instant::now() < end, "{:?}", rows(file));
        time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_sees_its_own_batches_only_and_after_a_restart_too() {
    let dir = tempfile::tempdir().unwrap();
    let (ledger, prices) = (dir.path().join("ledger.db"), dir.path().join("prices.toml"));
    std::fs::write(&prices, PRICES).unwrap();
    let mut kept: Option<Config> = None;
    let (mut ours, mut theirs) = (String::new(), String::new());
    let mut rig = Rig::with(
        |config| {
            (config.ledger.file, config.prices.file) = (Some(ledger.clone()), Some(prices.clone()));
            ours = tenant(config, "acme", |tenant| tenant.budget.all.usd_day = Some("5".parse().unwrap()));
            theirs = tenant(config, "other", |_| {});
            kept = Some(config.clone());
        },
        instant(),
        "",
    )
    .await;
    let file = rig.upload(&ours, &[line("a", MODEL, "one"), line("b", "fast", "two")]).await;
    assert_eq!(file.status, 200, "{}", file.text);
    assert_eq!(file.json()["filename"], "my lines.jsonl", "as its owner calls it");
    let input = id(&file.json()).to_owned();
    let restart = async |rig: Rig| {
        let Rig { relay, sim } = rig;
        relay.drain(std::future::ready(())).await;
        Rig { relay: Server::start(kept.clone().unwrap(), None).await.unwrap(), sim }
    };
    rig = restart(rig).await;
    let begun = rig.begin(&ours, &input, json!({"mine": "yes"})).await;
    assert_eq!(begun.status, 200, "{}", begun.text);
    let batch = id(&begun.json()).to_owned();
    rig = restart(rig).await;
    let done = rig.end(&ours, &batch).await;
    assert_eq!((&done["status"], &done["metadata"]), (&json!("completed"), &json!({"mine": "yes"})), "{done}");
    let output = done["output_file_id"].as_str().unwrap().to_owned();
    let paths = [
        ("GET", format!("/v1/files/{input}")),
        ("GET", format!("/v1/files/{input}/content")),
        ("GET", format!("/v1/files/{output}")),
        ("GET", format!("/v1/files/{output}/content")),
        ("DELETE", format!("/v1/files/{output}")),
        ("DELETE", format!("/v1/files/{input}")),
        ("GET", format!("/v1/batches/{batch}")),
        ("POST", format!("/v1/batches/{batch}/cancel")),
        ("GET", format!("/openai/v1/batches/{batch}")),
        ("GET", "/v1/batches/batch_0".to_owned()),
        ("GET", "/v1/files/..%2Fbatches/content".to_owned()),
    ];
    for (method, path) in &paths {
        let got = rig.ask(method, path, &theirs).await;
        assert_eq!(got.status, 404, "{method} {path}: {}", got.text);
    }
    let stolen = rig.begin(&theirs, &input, json!({})).await;
    assert_eq!((stolen.status, stolen.code().as_str()), (400, "invalid_value"), "{}", stolen.text);
    let theirs_done = rig.run(&theirs, &[line("x", MODEL, "theirs")]).await;
    let listed = async |key: &str, query: &str| {
        let list = rig.ask("GET", &format!("/v1/batches{query}"), key).await.json();
        list["data"].as_array().unwrap().iter().map(|batch| id(batch).to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(listed(&ours, "").await, [batch.as_str()]);
    assert_eq!(listed(&theirs, "?limit=1").await, [id(&theirs_done).to_owned()]);
    assert_eq!(listed(&ours, &format!("?after={batch}")).await, Vec::<String>::new());
    // All of it is there for its owner; and is paid once, however often it is taken.
    let lines = rig.lines(&ours, &done["output_file_id"]).await;
    written(&ledger, 2).await;
    let first = rows(&ledger);
    assert_eq!(rig.lines(&ours, &done["output_file_id"]).await, lines);
    rig = restart(rig).await;
    assert_eq!(rig.lines(&ours, &done["output_file_id"]).await, lines);
    assert_eq!(rows(&ledger), first);
    assert_eq!((lines.len(), first.len()), (2, 2));
    for line in &lines {
        let body = &line["response"]["body"];
        let row = first.iter().find(|row| row.id == body["id"].as_str().unwrap()).unwrap();
        assert_eq!(row.of, ["acme", "reply", MODEL]);
        let count = |field: &str| body["usage"][field].as_i64().unwrap();
        let (read, wrote) = (count("input_tokens"), count("output_tokens"));
        assert_eq!((row.tokens, row.cost), (read + wrote, Some((read + 10 * wrote) * 1_000_000 / 2)), "half the price");
        let cost: Usd = line["voxrelay_cost_usd"].as_str().unwrap().parse().unwrap();
        assert_eq!(Some(cost.pico()), row.cost.map(i128::from));
    }
    let usage = rig.ask("GET", "/v1/limits", &ours).await;
    let spent: i128 = first.iter().map(|row| i128::from(row.cost.unwrap())).sum();
    assert!(usage.text.contains(&Usd::from_pico(spent).to_string()), "{spent}: {}", usage.text);
    assert_eq!(rig.ask("DELETE", &format!("/v1/files/{input}"), &ours).await.json()["deleted"], true);
    assert_eq!(rig.ask("GET", &format!("/v1/files/{input}"), &ours).await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_lines_are_named_and_the_service_gets_nothing_of_them() {
    let mut keys = [String::new(), String::new()];
    let rig = Rig::with(
        |config| {
            config.text.expert = Some("gpt-5.6-sol".to_owned());
            config.text.max_batch_bytes = 4_096;
            keys[0] = tenant_with(config, "acme", &[Scope::Text], |_| {});
            keys[1] = tenant(config, "narrow", |tenant| tenant.models = vec!["gpt-5.6-terra".to_owned()]);
        },
        instant(),
        "",
    )
    .await;
    let good = line("a", MODEL, "one");
    let with = |field: &str, value: Value| {
        let mut line: Value = serde_json::from_str(&line("b", MODEL, "two")).unwrap();
        *line.pointer_mut(field).unwrap() = value;
        line.to_string()
    };
    let mut stream: Value = serde_json::from_str(&good).unwrap();
    (stream["custom_id"], stream["body"]["stream"]) = ("s".into(), true.into());
    for (second, code, says) in [
        ("{".to_owned(), "invalid_json_line", "Line 3: no JSON object"),
        ("[]".to_owned(), "invalid_json_line", "Line 3"),
        (good.clone(), "duplicate_custom_id", "Line 3: `custom_id` \"a\""),
        (with("/custom_id", json!(5)), "invalid_value", "Line 3: `custom_id`"),
        (with("/method", json!("GET")), "invalid_method", "allowed: \"POST\""),
        (
            with("/url", json!("/v1/embeddings")),
            "mismatched_url",
            "found \"/v1/embeddings\"; allowed: \"/v1/responses\"",
        ),
        (with("/body", json!([])), "invalid_value", "Line 3: `body`"),
        (with("/body/model", json!("best")), "mixed_models", "Line 3: the model `best` (`gpt-5.6-terra`)"),
        (with("/body/model", json!("expert")), "forbidden", "Line 3: the model `expert` needs the scope"),
        (with("/body/model", json!(null)), "missing_required_parameter", "Line 3"),
        (stream.to_string(), "unsupported_parameter", "Line 3: `stream`"),
        (format!("\n{}", line("c", MODEL, "three")), "invalid_json_line", "Line 3: is empty"),
    ] {
        let other = line("o", MODEL, "other");
        let got = rig.upload(&keys[0], &[good.clone(), other, second.clone(), good.clone(), String::new()]).await;
        assert_eq!((got.status, got.code().as_str()), (400, code), "{second}: {}", got.text);
        assert!(got.json()["error"]["message"].as_str().unwrap().contains(says), "{says}: {}", got.text);
    }
    let got = rig.upload(&keys[1], std::slice::from_ref(&good)).await;
    assert_eq!((got.status, got.code().as_str()), (400, "model_not_found"), "{}", got.text);
    let got = rig.upload(&keys[0], &[]).await;
    assert_eq!((got.status, got.code().as_str()), (400, "empty_file"), "{}", got.text);
    let got = rig.upload(&keys[0], &[line("a", MODEL, &"x".repeat(5_000))]).await;
    assert_eq!(got.status, 413, "{}", got.text);
    for (form, param) in [
        (reqwest::multipart::Form::new().text("purpose", "fine-tune"), "purpose"),
        (reqwest::multipart::Form::new().text("purpose", "batch"), "file"),
        (reqwest::multipart::Form::new().text("expires_after[seconds]", "60"), "expires_after[seconds]"),
    ] {
        let got = answer(rig.request("POST", "/v1/files", &keys[0]).multipart(form)).await;
        assert_eq!((got.status, got.json()["error"]["param"].as_str()), (400, Some(param)), "{}", got.text);
    }
    assert_eq!(rig.sim.stats().text.requests.get("files"), None, "the service has seen none of it");
    let file = rig.upload(&keys[0], &[good]).await.json();
    for (asked, param) in [
        (json!({"endpoint": "/v1/responses", "completion_window": "24h"}), "input_file_id"),
        (json!({"input_file_id": file["id"], "endpoint": "/v1/embeddings", "completion_window": "24h"}), "endpoint"),
        (
            json!({"input_file_id": file["id"], "endpoint": "/v1/responses", "completion_window": "1h"}),
            "completion_window",
        ),
        (
            json!({"input_file_id": file["id"], "endpoint": "/v1/responses", "completion_window": "24h",
                "metadata": {"voxrelay_tenant": "other"}}),
            "metadata",
        ),
    ] {
        let got = rig.post("/v1/batches", &keys[0], asked).await;
        assert_eq!((got.status, got.json()["error"]["param"].as_str()), (400, Some(param)), "{}", got.text);
    }
    assert_eq!(rig.sim.stats().text.requests.get("batches"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_might_cost_more_than_is_left_is_not_begun() {
    let dir = tempfile::tempdir().unwrap();
    let prices = dir.path().join("prices.toml");
    std::fs::write(&prices, PRICES).unwrap();
    // Two lines write at most 100 tokens: half a thousandth of a dollar in a batch, and a little for what they read.
    let mut keys = [String::new(), String::new()];
    let rig = Rig::with(
        |config| {
            config.prices.file = Some(prices.clone());
            for (key, (id, usd)) in keys.iter_mut().zip([("poor", "0.0004"), ("rich", "0.0006")]) {
                *key = tenant(config, id, |tenant| {
                    tenant.budget.all =
                        AllowanceConfig { usd_day: Some(usd.parse().unwrap()), ..AllowanceConfig::default() };
                });
            }
        },
        instant(),
        "",
    )
    .await;
    let lines = [line("a", MODEL, "one"), line("b", MODEL, "two")];
    for (key, status) in keys.iter().zip([429, 200]) {
        let file = rig.upload(key, &lines).await;
        assert_eq!(file.status, 200, "{}", file.text);
        let begun = rig.begin(key, id(&file.json()), json!(null)).await;
        assert_eq!(begun.status, status, "{}", begun.text);
        if status == 429 {
            assert_eq!(begun.code(), "budget_exhausted");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nobody_is_asked_for_a_credential_nothing_is_kept_from_anybody() {
    let rig = Rig::with(|_| {}, instant(), "").await;
    let done = rig.run("", &[line("a", "auto", "one")]).await;
    assert_eq!(rig.lines("", &done["output_file_id"]).await.len(), 1);
    let before = config(&rig.sim.base_url());
    let other = Rig { relay: Server::start(before, None).await.unwrap(), sim: rig.sim };
    assert_eq!(other.end("", id(&done)).await["id"], done["id"]);
    assert_eq!(other.ask("GET", "/v1/batches", "").await.json()["data"].as_array().unwrap().len(), 1);
    let queue = TextConfig { batch_tokens: 1, ..TextConfig::instant() };
    let full = Rig::with(|_| {}, SimConfig { text: queue, ..SimConfig::instant() }, "").await;
    let failed = full.run("", &[line("a", MODEL, "one")]).await;
    assert_eq!(failed["status"], "failed");
    let error = &failed["errors"]["data"][0];
    assert_eq!(error["code"], "token_limit_exceeded", "as the service says it");
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("limit of tokens") && !message.contains("org-") && !message.contains(char::is_numeric));
}
