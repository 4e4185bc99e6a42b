//! What batches may come to, who pays for them, and that they are paid once, whoever takes their answers.
use super::*;
use crate::support::new_key;

/// A relay with a ledger and prices, a tenant, and its key.
struct Shop {
    dir: tempfile::TempDir,
    config: Config,
    rig: Rig,
    key: String,
}

impl Shop {
    async fn new(change: impl FnOnce(&mut TenantConfig), sim: TextConfig, faults: &str) -> Self {
        Self::with(|_| {}, change, sim, faults).await
    }

    async fn with(
        all: impl FnOnce(&mut Config),
        change: impl FnOnce(&mut TenantConfig),
        sim: TextConfig,
        faults: &str,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("prices.toml"), PRICES).unwrap();
        let (mut key, mut kept) = (String::new(), None);
        let rig = Rig::with(
            |config| {
                config.ledger.file = Some(dir.path().join("ledger.db"));
                config.prices.file = Some(dir.path().join("prices.toml"));
                key = tenant(config, "acme", change);
                all(config);
                kept = Some(config.clone());
            },
            SimConfig { text: sim, ..SimConfig::instant() },
            faults,
        )
        .await;
        Self { dir, config: kept.unwrap(), rig, key }
    }

    fn ledger(&self) -> std::path::PathBuf {
        self.dir.path().join("ledger.db")
    }

    /// Another process takes the place of this one.
    async fn restart(self) -> Self {
        let Self { dir, config, rig: Rig { relay, sim }, key } = self;
        relay.drain(std::future::ready(())).await;
        let relay = Server::start(config.clone(), None).await.unwrap();
        Self { dir, config, rig: Rig { relay, sim }, key }
    }

    async fn file(&self, lines: &[String]) -> String {
        let file = self.rig.upload(&self.key, lines).await;
        assert_eq!(file.status, 200, "{}", file.text);
        id(&file.json()).to_owned()
    }

    async fn begin(&self, file: &str) -> Answer {
        self.rig.begin(&self.key, file, json!({})).await
    }

    /// What is held of a limit of the tenant.
    async fn held(&self, window: &str) -> String {
        let limits = self.rig.ask("GET", "/v1/limits", &self.key).await.json();
        let budgets = limits["budgets"].as_array().unwrap();
        let of = |row: &&Value| row["scope"] == "tenant" && row["window"] == window;
        budgets.iter().find(of).unwrap()["held"].to_string()
    }

    /// Tokens that the simulator has billed for batches.
    fn billed(&self) -> u64 {
        let text = self.rig.sim.stats().text;
        text.batch_input_tokens + text.batch_output_tokens
    }
}

fn day(usd: &str) -> AllowanceConfig {
    AllowanceConfig { usd_day: Some(usd.parse().unwrap()), ..AllowanceConfig::default() }
}

fn some(many: usize) -> Vec<String> {
    (0..many).map(|n| line(&n.to_string(), MODEL, "one")).collect()
}

fn slow() -> TextConfig {
    TextConfig { batch_ms: 600_000, ..TextConfig::instant() }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_call_and_a_minute_may_use_says_nothing_of_a_batch() {
    let shop = Shop::new(
        |tenant| {
            tenant.budget.all.tokens_minute = Some(150);
            tenant.budget.all.tokens_month = Some(1_000_000);
            tenant.budget.call.tokens = Some(150);
        },
        TextConfig::instant(),
        "",
    )
    .await;
    let done = shop.rig.run(&shop.key, &some(40)).await;
    assert_eq!(shop.rig.lines(&shop.key, &done["output_file_id"]).await.len(), 40);
    written(&shop.ledger(), 40).await;
    assert!(shop.billed() > 150, "{}", shop.billed());
    // The answers have come within this minute: its calls and requests have all of theirs.
    let asked = json!({"model": MODEL, "input": "one", "max_output_tokens": 50});
    let got = shop.rig.post("/v1/responses", &shop.key, asked).await;
    assert_eq!(got.status, 200, "{}", got.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_that_run_count_for_others_until_they_are_over_and_after_a_restart_too() {
    // One of two lines comes to half a thousandth of a dollar at most.
    let mut shop = Shop::new(|tenant| tenant.budget.all = day("0.0006"), slow(), "").await;
    let file = shop.file(&some(2)).await;
    let first = shop.begin(&file).await;
    assert_eq!(first.status, 200, "{}", first.text);
    assert_ne!(shop.held("day").await, "\"0\"");
    for again in 0..2 {
        let second = shop.begin(&file).await;
        assert_eq!((second.status, second.code().as_str()), (429, "budget_exhausted"), "{again}: {}", second.text);
        shop = shop.restart().await;
    }
    let cancelled = shop.rig.ask("POST", &format!("/v1/batches/{}/cancel", id(&first.json())), &shop.key).await;
    assert_eq!(cancelled.status, 200, "{}", cancelled.text);
    let second = shop.begin(&file).await;
    assert_eq!(second.status, 200, "the first came to nothing: {}", second.text);
    assert_eq!(shop.rig.sim.stats().text.batch_output_tokens, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_came_of_a_batch_takes_the_place_of_what_might_have_come() {
    let shop = Shop::new(|tenant| tenant.budget.all = day("0.011"), TextConfig::instant(), "").await;
    let long = some(2).into_iter().map(|line| line.replace(":50}", ":500}"));
    let file = shop.file(&long.collect::<Vec<_>>()).await;
    // Each may come to half of it, and comes to much less; nobody looks at one.
    for n in 0..3 {
        let begun = shop.begin(&file).await;
        assert_eq!(begun.status, 200, "{n}: {}", begun.text);
    }
    // Those that stood in the way were booked by the way.
    written(&shop.ledger(), 4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_downloads_is_booked_and_paid_once() {
    let expired = "[[fault]]\nkind = \"answer\"\nas = \"expired\"\ndoor = \"batches\"\n";
    // All of it, and half of it.
    for (faults, status, many) in [("", "completed", 8), (expired, "expired", 4)] {
        let text = TextConfig { batch_ms: 200, ..TextConfig::instant() };
        let shop = Shop::with(|config| config.text.batch_look_s = 1, |_| {}, text, faults).await;
        let file = shop.file(&some(8)).await;
        let begun = shop.begin(&file).await.json();
        written(&shop.ledger(), many).await;
        let booked = rows(&shop.ledger());
        assert_eq!(booked.len(), many);
        let tokens: i64 = booked.iter().map(|row| row.tokens).sum();
        assert_eq!(u64::try_from(tokens).unwrap(), shop.billed());
        let used = shop.rig.ask("GET", "/v1/usage", &shop.key).await.text;
        let done = shop.rig.end(&shop.key, id(&begun)).await;
        assert_eq!(done["status"], status);
        assert_eq!(shop.rig.lines(&shop.key, &done["output_file_id"]).await.len(), many);
        let shop = shop.restart().await;
        assert_eq!(shop.rig.lines(&shop.key, &done["output_file_id"]).await.len(), many);
        assert_eq!(rows(&shop.ledger()), booked);
        assert_eq!(shop.rig.ask("GET", "/v1/usage", &shop.key).await.text, used);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_are_deleted_unread_are_paid_all_the_same() {
    let shop = Shop::new(|_| {}, TextConfig::instant(), "").await;
    let done = shop.rig.run(&shop.key, &some(3)).await;
    let output = done["output_file_id"].as_str().unwrap();
    let got = shop.rig.ask("DELETE", &format!("/v1/files/{output}"), &shop.key).await;
    assert_eq!((got.status, &got.json()["deleted"]), (200, &json!(true)), "{}", got.text);
    written(&shop.ledger(), 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_earlier_process_has_begun_is_booked_by_the_one_that_follows() {
    let text = TextConfig { batch_ms: 200, ..TextConfig::instant() };
    let shop = Shop::with(|config| config.text.batch_look_s = 86_400, |_| {}, text, "").await;
    let file = shop.file(&some(3)).await;
    assert_eq!(shop.begin(&file).await.status, 200);
    let mut shop = shop;
    shop.config.text.batch_look_s = 1;
    let shop = shop.restart().await;
    // Whoever begins another one has those of before looked for.
    assert_eq!(shop.begin(&file).await.status, 200);
    written(&shop.ledger(), 6).await;
    let tokens: i64 = rows(&shop.ledger()).iter().map(|row| row.tokens).sum();
    assert_eq!(u64::try_from(tokens).unwrap(), shop.billed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_was_cancelled_is_paid_as_far_as_it_came() {
    let text = TextConfig { batch_ms: 3_000, ..TextConfig::instant() };
    let shop = Shop::new(|_| {}, text, "").await;
    let file = shop.file(&some(30)).await;
    let begun = shop.begin(&file).await.json();
    let path = format!("/v1/batches/{}", id(&begun));
    let end = time::Instant::now() + PATIENCE;
    while shop.rig.ask("GET", &path, &shop.key).await.json()["request_counts"]["completed"].as_u64() < Some(3) {
        assert!(time::Instant::now() < end);
        time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert_eq!(shop.rig.ask("POST", &format!("{path}/cancel"), &shop.key).await.status, 200);
    let done = shop.rig.end(&shop.key, id(&begun)).await;
    let came = shop.rig.lines(&shop.key, &done["output_file_id"]).await.len();
    assert!(done["status"] == "cancelled" && (3..30).contains(&came), "{done}");
    written(&shop.ledger(), came).await;
    let tokens: i64 = rows(&shop.ledger()).iter().map(|row| row.tokens).sum();
    assert_eq!((rows(&shop.ledger()).len(), u64::try_from(tokens).unwrap()), (came, shop.billed()));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_that_has_begun_a_batch_pays_whoever_takes_its_answers() {
    let (other, config) = new_key("other", &Scope::all(), None);
    let shop = Shop::new(
        |tenant| {
            tenant.keys.push(config);
            tenant.budget.key = day("0.0006");
        },
        TextConfig::instant(),
        "",
    )
    .await;
    let file = shop.file(&some(2)).await;
    let begun = shop.begin(&file).await.json();
    let done = shop.rig.end(&other, id(&begun)).await;
    assert_eq!(shop.rig.lines(&other, &done["output_file_id"]).await.len(), 2);
    written(&shop.ledger(), 2).await;
    let sql = Connection::open(shop.ledger()).unwrap();
    let keys = "SELECT count(*), min(key), max(key) FROM usage WHERE door = 'batches'";
    let found: (i64, String, String) =
        sql.query_row(keys, [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).unwrap();
    assert_eq!(found, (2, "test".to_owned(), "test".to_owned()));
    let limits = shop.rig.ask("GET", "/v1/limits", &other).await.json();
    let used = |name: &str| {
        let of = |row: &&Value| row["scope"] == "key" && row["name"] == name;
        limits["budgets"].as_array().unwrap().iter().find(of).unwrap()["used"].clone()
    };
    assert_eq!(used("other"), "0", "{limits}");
    assert_ne!(used("test"), "0", "{limits}");
}

#[tokio::test(flavor = "multi_thread")]
async fn at_most_is_at_most_and_end_users_with_a_budget_are_not_in_batches() {
    let open =
        json!({"custom_id": "a", "method": "POST", "url": "/v1/responses", "body": {"model": MODEL, "input": "one"}});
    let mut named = open.clone();
    named["body"]["safety_identifier"] = "ann".into();
    let mut free = String::new();
    let shop = Shop::with(
        |config| free = tenant(config, "free", |_| {}),
        |tenant| (tenant.budget.all, tenant.budget.user) = (day("50"), day("1")),
        TextConfig::instant(),
        "",
    )
    .await;
    for (key, most) in [(&shop.key, json!(4_096)), (&free, Value::Null)] {
        let file = shop.rig.upload(key, &[open.to_string()]).await;
        assert_eq!(file.status, 200, "{}", file.text);
        let sent = shop.rig.ask("GET", &format!("/v1/files/{}/content", id(&file.json())), key).await.json();
        assert_eq!(sent["body"]["max_output_tokens"], most);
    }
    let got = shop.rig.upload(&shop.key, &[named.to_string()]).await;
    assert_eq!((got.status, got.code().as_str()), (400, "unsupported_parameter"), "{}", got.text);
    assert!(got.text.contains("Line 1: `user`"), "{}", got.text);
    assert_eq!(shop.rig.upload(&free, &[named.to_string()]).await.status, 200);
    let file = shop.file(&[open.to_string()]).await;
    let asked = json!({"input_file_id": file, "endpoint": "/v1/responses", "completion_window": "24h"});
    let by = shop.rig.request("POST", "/v1/batches", &shop.key).header("openai-safety-identifier", "ann").json(&asked);
    let got = answer(by).await;
    assert_eq!((got.status, got.code().as_str()), (400, "unsupported_parameter"), "{}", got.text);
    assert!(!shop.rig.sim.stats().text.requests.contains_key("batch_lines"));
}
