//! What may be used: a tenant's own limits, budgets, the account's limits, and who goes first.
use tokio::{task::JoinSet, time::Instant};
use voxrelay::{config::LimitsConfig, sim::Limits};

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_is_told_its_own_limits_and_when_to_come_again() {
    let desk = Desk::of_tenant(|t| (t.text_requests_per_minute, t.text_tokens_per_minute) = (12, 60_000)).await;
    let got = desk.ask(plain("hello")).await;
    assert_eq!((got.status, got.header("x-ratelimit-limit-requests")), (200, "12"), "{}", got.text);
    assert_eq!((got.header("x-ratelimit-limit-tokens"), got.header("x-ratelimit-remaining-requests")), ("60000", "6"));
    let left: u64 = got.header("x-ratelimit-remaining-tokens").parse().unwrap();
    assert!(left > 59_000, "{left}: what was reserved and not used comes back");
    let reset = got.header("x-ratelimit-reset-requests").strip_suffix("ms").unwrap().parse::<u64>().unwrap();
    assert!((4_000..=5_000).contains(&reset), "{reset}");
    assert_eq!(desk.ask(plain("hello")).await.status, 200);
    let got = desk.ask(plain("hello")).await;
    assert_eq!((got.status, got.code().as_str()), (429, "rate_limit_exceeded"), "{}", got.text);
    assert_eq!((got.header("retry-after"), got.header("x-ratelimit-remaining-requests")), ("5", "0"));
    assert!(got.json()["error"]["type"] == "requests" && got.text.contains("Your limit"), "{}", got.text);
    assert_eq!(desk.asked(), 2, "the service was not asked");
    let desk = Desk::of_tenant(|t| t.text_tokens_per_minute = 30_000).await;
    let mut large = plain("hello");
    large["max_output_tokens"] = json!(31_000);
    let got = desk.ask(large).await;
    assert_eq!((got.status, got.header("retry-after")), (429, ""), "no wait helps: {}", got.text);
    assert_eq!(desk.ask(plain("hello")).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_that_is_spent_ends_requests() {
    // Room for one answer of 1,000 tokens at 8 USD a million, and for what it reads.
    let desk = Desk::of_tenant(|t| t.budget.all.usd_day = Some("0.009".parse().unwrap())).await;
    let body = |most: u64| {
        let mut body = plain("hello");
        body["max_output_tokens"] = json!(most);
        body
    };
    let got = desk.ask(body(2_000)).await;
    assert_eq!((got.status, got.code().as_str()), (429, "budget_exhausted"), "{}", got.text);
    assert_eq!(got.json()["error"]["type"], "insufficient_quota");
    assert!(got.header("retry-after").parse::<u64>().unwrap() > 0 && desk.asked() == 0, "{:?}", got.headers);
    let mut answered = 0;
    let refused = loop {
        let got = desk.ask(body(1_000)).await;
        if got.status != 200 {
            break got;
        }
        answered += 1;
        assert!(answered < 100);
    };
    assert_eq!((refused.status, refused.code().as_str()), (429, "budget_exhausted"), "{}", refused.text);
    let rows = desk.rows(answered).await;
    let spent: i64 = rows.iter().filter_map(|row| row.cost).sum();
    assert!(answered > 1 && spent <= 9_000_000_000 && spent > 500_000_000, "{answered}: {spent}");
}

/// A service with limits, and a relay that knows them.
async fn limited(requests: u64, at_once: u64) -> Desk {
    // Its bucket holds more than ours, which is nine tenths of it in speed.
    let burst = (at_once + 4) as f64 / requests as f64;
    let limits = Limits { model: "gpt-5*".to_owned(), requests, burst, ..Limits::default() };
    let change = |config: &mut Config| {
        let burst_ms = at_once * 60_000 * 10 / 9 / requests + 1;
        config.upstream.limits = vec![LimitsConfig { requests: Some(requests), burst_ms, ..LimitsConfig::default() }];
        config.turns.wait_ms = 20_000;
    };
    Desk::with(change, SimConfig { limits: vec![limits], ..SimConfig::instant() }, "").await
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_once_wait_for_the_accounts_limits_and_the_service_refuses_nobody() {
    // So slow that a busy machine which takes seconds to ask still asks them at once.
    let desk = limited(300, 10).await;
    let mut all = JoinSet::new();
    for n in 0..30 {
        let request = desk.request(&json!({"model": LUNA, "input": "hello", "stream": n % 2 == 0}));
        all.spawn(answer(request));
    }
    let all = all.join_all().await;
    assert!(all.iter().all(|got| got.status == 200), "{all:#?}");
    let waited = |got: &Answer| got.header("x-voxrelay-waited-ms").parse::<u64>().unwrap();
    assert!(all.iter().filter(|got| waited(got) > 0).count() >= 15, "{:?}", all.iter().map(waited).collect::<Vec<_>>());
    let stats = desk.rig.sim.stats();
    assert_eq!((stats.limited.len(), stats.text.refused.len(), stats.text.requests["responses"]), (0, 0, 30));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_yields_to_whoever_waits() {
    let desk = limited(300, 20).await;
    let mut batch = JoinSet::new();
    for _ in 0..60 {
        batch.spawn(answer(desk.request(&plain("hello")).header("x-voxrelay-class", "batch")));
    }
    until("the batch takes what it may", || desk.asked() >= 10).await;
    let mut call =
        desk.rig.dial("/v1/voice?turns=manual&pace=fast", &desk.key).await.unwrap_or_else(|no| panic!("{no:?}"));
    let mut waited = Vec::new();
    for _ in 0..6 {
        let got = desk.ask(plain("Is anybody there?")).await;
        assert_eq!(got.status, 200, "{}", got.text);
        waited.push(got.header("x-voxrelay-waited-ms").parse::<u64>().unwrap());
    }
    let began = Instant::now();
    call.json(r#"{"type":"text","text":"Is anybody there?"}"#).await;
    call.until("reply_started").await;
    let heard = began.elapsed();
    let done = batch.try_join_next().map_or(0, |_| 1) + desk.bill().answered["responses"];
    assert!(done < 50, "the batch still waits: {done}");
    waited.sort_unstable();
    assert!(waited.last() < Some(&1_000), "{waited:?}");
    assert!(heard < Duration::from_secs(5), "{heard:?}");
    assert!(desk.rig.sim.stats().limited.is_empty(), "{:?}", desk.rig.sim.stats().limited);
    let got = answer(desk.request(&plain("x")).header("x-voxrelay-class", "vip")).await;
    assert_eq!((got.status, got.json()["error"]["param"].as_str()), (400, Some("X-Voxrelay-Class")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_has_so_many_places_and_the_relay_so_many_in_all() {
    let mut other = String::new();
    let change = |config: &mut Config| {
        (config.text.max_requests, config.text.max_requests_of_tenant) = (3, 2);
        other = tenant(config, "other", |_| {});
    };
    let desk = Desk::with(change, silent(), "").await;
    let stream = |key: &str| desk.rig.request("POST", RESPONSES, key).json(&streamed("hello")).send();
    let (one, two) = (stream(&desk.key).await.unwrap(), stream(&desk.key).await.unwrap());
    assert_eq!((one.status().as_u16(), two.status().as_u16()), (200, 200));
    let got = desk.ask(plain("hello")).await;
    assert_eq!((got.status, got.code().as_str()), (429, "rate_limit_exceeded"), "{}", got.text);
    let three = stream(&other).await.unwrap();
    let got = answer(desk.rig.request("POST", RESPONSES, &other).json(&plain("hello"))).await;
    assert_eq!((got.status, got.header("retry-after")), (503, "5"), "{}", got.text);
    drop((one, two, three));
    // Places of readers who have left are free again.
    desk.rows(3).await;
    assert_eq!(stream(&desk.key).await.unwrap().status(), 200);
}
