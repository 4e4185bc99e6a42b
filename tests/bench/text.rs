//! How much later the first event of a streamed answer comes through the relay, and the last one.
//!
//! ```text
//! cargo bench --bench text [-- REQUESTS]        # 1000 of each
//! ```
//! The simulator answers at once, in words; a request to it and one through the relay take turns, on connections that are open already, so
//! that both meet the same machine. Simulator, relay and client share this process and its cores: the figures are from above.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a benchmark that panics says where")]
use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;
use voxrelay::{
    config::{Config, Secret},
    serve::Server,
    sim::{Faults, Sim, SimConfig},
};

/// Requests before it counts: connections are made, code is warm.
const WARM: usize = 50;
/// Wanted of the first event, at the 99th of a hundred.
const WANTED: Duration = Duration::from_millis(1);

async fn once(http: &reqwest::Client, base: &str, number: usize) -> (Duration, Duration, usize) {
    let body =
        json!({"model": "gpt-5.4-mini", "stream": true, "input": format!("Question {number}: how long does it take?")});
    let began = Instant::now();
    let mut response = http.post(format!("{base}/responses")).bearer_auth("sk-bench").json(&body).send().await.unwrap();
    assert_eq!(response.status(), 200);
    let mut first = None;
    let mut bytes = 0;
    while let Some(piece) = response.chunk().await.unwrap() {
        first.get_or_insert_with(|| began.elapsed());
        bytes += piece.len();
    }
    (first.unwrap(), began.elapsed(), bytes)
}

fn at(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() - 1) * percent / 100]
}

#[tokio::main]
async fn main() {
    let requests = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(1_000);
    let mut config = SimConfig::instant();
    config.text.word_ms = 1;
    let sim = Sim::start("127.0.0.1:0".parse().unwrap(), config, Faults::default()).await.unwrap();
    let mut config = Config::load(None, |_| None).unwrap();
    config.server.listen = "127.0.0.1:0".parse().unwrap();
    config.upstream.url = Some(sim.base_url());
    config.upstream.api_key = Some(Secret::new("sk-bench"));
    let relay = Server::start(config, None).await.unwrap();
    let through = format!("http://{}/v1", relay.addr());
    // It speaks no TLS, and still wants to be told which cryptography it does not use.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let (mut direct, mut relayed) = (Vec::new(), Vec::new());
    for number in 0..WARM + requests {
        // Whoever is first in a pair is so every other time.
        let (one, other) = if number % 2 == 0 {
            let one = once(&http, &sim.base_url(), number).await;
            (one, once(&http, &through, number).await)
        } else {
            let other = once(&http, &through, number).await;
            (once(&http, &sim.base_url(), number).await, other)
        };
        assert!(one.2.abs_diff(other.2) < 64, "as many bytes, but for ids");
        if number >= WARM {
            direct.push(one);
            relayed.push(other);
        }
    }
    println!(
        "{requests} streamed answers each, {} bytes on average",
        direct.iter().map(|one| one.2).sum::<usize>() / requests
    );
    println!("{:<14} {:>10} {:>10} {:>10} {:>10}", "", "first p50", "first p99", "last p50", "last p99");
    let sorted = |all: &[(Duration, Duration, usize)], last: bool| {
        let mut times: Vec<_> = all.iter().map(|one| if last { one.1 } else { one.0 }).collect();
        times.sort_unstable();
        times
    };
    let mut shown = Vec::new();
    for (name, all) in [("direct", &direct), ("through", &relayed)] {
        let (first, last) = (sorted(all, false), sorted(all, true));
        let row = [at(&first, 50), at(&first, 99), at(&last, 50), at(&last, 99)];
        let text: Vec<String> = row.iter().map(|time| format!("{:>7.2} ms", time.as_secs_f64() * 1e3)).collect();
        println!("{name:<14} {}", text.join(" "));
        shown.push(row);
    }
    let added = shown[1][1].saturating_sub(shown[0][1]);
    println!(
        "first event, added at p99: {:.2} ms (wanted: at most {:.0})",
        added.as_secs_f64() * 1e3,
        WANTED.as_secs_f64() * 1e3
    );
    relay.drain(std::future::ready(())).await;
    sim.stop().await;
}
