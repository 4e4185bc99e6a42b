//! What one chunk and one delta cost: our way against the textbook's, in one run.
//!
//! ```text
//! cargo bench --bench hot_path
//! ```
//! Prints nanoseconds and allocations of one operation, and how many times faster ours is. Both sides are timed in turn,
//! in many short rounds, and a ratio is the median of the rounds' ratios, so that a busy machine disturbs both alike. The
//! counting allocator costs a few nanoseconds per allocation, which is in the figures of both sides.
//!
//! Stands beside the path: calls the two functions of the upstream dialect that every call runs ten times a second.
use std::{hint::black_box, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde::Serialize;
use tokio::time::Instant;
use voxrelay::upstream::{Event, ga, scan};

/// Length of one timed round.
const ROUND: Duration = Duration::from_millis(4);
/// Rounds of each side.
const ROUNDS: usize = 301;

fn main() {
    // `cargo test` may run benchmarks too, without saying `--bench`; one round shows that they work.
    let rounds = if std::env::args().any(|a| a == "--bench") { ROUNDS } else { 1 };
    let pcm = tone(4_800);
    let event = delta_event(&tone(9_600));
    println!("chunk: 100 ms of PCM16 24 kHz, {} bytes; delta event: {} bytes\n", pcm.len(), event.len());
    println!("{:<58} {:>9} {:>9} {:>7}   allocations", "operation", "textbook", "ours", "faster");
    let mut number = 0;
    compare(
        "append: serde struct + scalar base64 / ga::append",
        rounds,
        || textbook_append(&pcm),
        || {
            number += 1;
            ga::append(&pcm, number)
        },
    );
    compare(
        "delta: Value + scalar base64 / ga::audio_delta",
        rounds,
        || textbook_delta(&event),
        || ga::audio_delta(&event).expect("the event is a delta"),
    );
    compare(
        "delta, decoding left out: Value / scan::flat",
        rounds,
        || serde_json::from_str::<serde_json::Value>(&event).expect("the event is JSON"),
        || find_delta(&event).expect("the event has a delta"),
    );
}

/// A 440 Hz tone; its base64 is as varied as that of speech.
fn tone(bytes: u32) -> Vec<u8> {
    let sample = |n: u32| (f64::from(n) * std::f64::consts::TAU * 440.0 / 24_000.0).sin() * 20_000.0;
    #[expect(clippy::cast_possible_truncation, reason = "at most 20,000")]
    (0..bytes / 2).flat_map(|n| (sample(n) as i16).to_le_bytes()).collect()
}

/// A delta of 200 ms with the fields and the lengths of ids that the service sends.
fn delta_event(pcm: &[u8]) -> String {
    format!(
        concat!(
            r#"{{"type":"response.output_audio.delta","event_id":"event_DUzQZ0gkRzF3V8lWq1nQy","#,
            r#""response_id":"resp_DUzQYp3x7CwVt2cD9wFjd","item_id":"item_DUzQYqvD4m7T2Lk1sHbRa","#,
            r#""output_index":0,"content_index":0,"delta":"{}"}}"#
        ),
        STANDARD.encode(pcm)
    )
}

#[derive(Serialize)]
struct Append<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    event_id: String,
    audio: String,
}

fn textbook_append(pcm: &[u8]) -> String {
    let event = Append {
        kind: "input_audio_buffer.append",
        event_id: format!("event_{}", pcm.len()),
        audio: STANDARD.encode(pcm),
    };
    serde_json::to_string(&event).expect("a struct of strings")
}

fn textbook_delta(event: &str) -> Event {
    let value: serde_json::Value = serde_json::from_str(event).expect("the event is JSON");
    let text = |name: &str| value.get(name).and_then(serde_json::Value::as_str).unwrap_or_default();
    Event::Audio {
        response: text("response_id").to_owned(),
        item: text("item_id").to_owned(),
        content_index: value
            .get("content_index")
            .and_then(serde_json::Value::as_u64)
            .and_then(|n| u32::try_from(n).ok())
            .unwrap_or_default(),
        audio: Bytes::from(STANDARD.decode(text("delta")).expect("base64")),
    }
}

/// What [`ga::audio_delta`] does before it decodes.
fn find_delta(event: &str) -> Option<&str> {
    let mut found = None;
    let whole = scan::flat(event, |key, value| {
        if let ("delta", scan::Value::Str(delta)) = (key, value) {
            found = Some(delta);
        }
        true
    });
    found.filter(|_| whole)
}

/// Times both sides in turn and prints one line.
fn compare<A, B>(what: &str, rounds: usize, mut textbook: impl FnMut() -> A, mut ours: impl FnMut() -> B) {
    let count = |work: &mut dyn FnMut()| allocation_counter::measure(work).count_total;
    time(&mut textbook); // caches, tables made on first use
    time(&mut ours);
    let allocations = (count(&mut || drop(black_box(textbook()))), count(&mut || drop(black_box(ours()))));
    let mut pairs: Vec<(f64, f64)> = (0..rounds).map(|_| (time(&mut textbook), time(&mut ours))).collect();
    let (slow, fast) = (median(&mut pairs, |p| p.0), median(&mut pairs, |p| p.1));
    let ratio = median(&mut pairs, |p| p.0 / p.1);
    let (many, few) = allocations;
    println!("{what:<58} {slow:>6.0} ns {fast:>6.0} ns {ratio:>6.1}x   {many} / {few}");
}

/// Nanoseconds of one operation, over [`ROUND`].
fn time<T>(work: &mut impl FnMut() -> T) -> f64 {
    let (began, mut done) = (Instant::now(), 0_u32);
    while began.elapsed() < ROUND {
        for _ in 0..16 {
            black_box(work());
        }
        done += 16;
    }
    began.elapsed().as_secs_f64() * 1e9 / f64::from(done)
}

fn median<T>(of: &mut [T], by: impl Fn(&T) -> f64) -> f64 {
    of.sort_by(|a, b| by(a).total_cmp(&by(b)));
    of.get(of.len() / 2).map_or(f64::NAN, by)
}
