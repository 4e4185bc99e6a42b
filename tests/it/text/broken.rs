//! What breaks: before the first byte it is tried again, after it it is told and booked.
use tokio::{task::JoinSet, time::Instant};

use super::*;

fn refuse(status: u16, more: &str) -> String {
    format!("[[fault]]\nkind = \"refuse\"\ndoor = \"responses\"\nstatus = {status}\n{more}\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_before_the_first_byte_is_tried_again() {
    let limited = "retry_after_s = 1\nbody = '{\"error\":{\"message\":\"slow\",\"code\":\"rate_limit_exceeded\"}}'";
    let mut all = JoinSet::new();
    for (status, more, least) in [(500, "", 450), (503, "retry_after_s = 1", 950), (429, limited, 950)] {
        for stream in [false, true] {
            all.spawn(async move {
                let desk = Desk::failing(&refuse(status, &format!("times = 1\n{more}"))).await;
                let began = Instant::now();
                let got = desk.ask(json!({"model": LUNA, "input": "hello", "stream": stream})).await;
                assert_eq!(got.status, 200, "{status}: {}", got.text);
                assert!(began.elapsed() >= Duration::from_millis(least), "{status}: {:?}", began.elapsed());
                assert_eq!(desk.rig.sim.stats().faults.get("refuse"), Some(&1));
                assert_eq!((desk.bill().requests["responses"], desk.bill().answered["responses"]), (2, 1));
                assert_eq!(desk.row().await.status, "completed");
            });
        }
    }
    all.join_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_tried_more_than_three_times_and_few_are_tried_again() {
    let desk =
        Desk::failing(&(refuse(503, "session = 21") + &refuse(503, "session = 22") + &refuse(503, "session = 23")))
            .await;
    for _ in 0..20 {
        assert_eq!(desk.ask(plain("hello")).await.status, 200);
    }
    let got = desk.ask(plain("hello")).await;
    assert_eq!((got.status, got.code().as_str()), (503, "upstream_unavailable"), "{}", got.text);
    assert!(!got.header("retry-after").is_empty());
    assert_eq!(desk.asked(), 23);
    desk.rows(20).await;
    // Without others that went well there is one try more, for all of them.
    let desk = Desk::failing(&refuse(500, "")).await;
    for _ in 0..4 {
        assert_eq!(desk.ask(plain("hello")).await.status, 503);
    }
    assert_eq!(desk.asked(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_other_try_would_mend_is_not_tried_again() {
    let of = |code: &str| format!("body = '{{\"error\":{{\"message\":\"Key sk-abc\",\"code\":\"{code}\"}}}}'");
    for (status, code, want) in [
        (429, "insufficient_quota", (429, "insufficient_quota")),
        (401, "invalid_api_key", (502, "upstream_auth")),
        (403, "insufficient_permissions", (502, "upstream_auth")),
    ] {
        let desk = Desk::failing(&refuse(status, &of(code))).await;
        let got = desk.ask(plain("hello")).await;
        assert_eq!((got.status, got.code().as_str()), want, "{}", got.text);
        assert!(!got.text.contains("sk-") && !got.text.contains("Key"), "{}", got.text);
        assert_eq!(got.header("retry-after"), "", "waiting does not help");
        assert_eq!(desk.asked(), 1);
        desk.rows(0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_breaks_is_told_and_not_tried_again() {
    for clean in [false, true] {
        for after in [1, 5] {
            let fault = format!("[[fault]]\nkind = \"break_stream\"\nafter_events = {after}\nclean = {clean}\n");
            let desk = Desk::failing(&fault).await;
            let got = desk.ask(streamed("hello")).await;
            let found = events(&got.text);
            let (name, data) = found.last().unwrap();
            assert_eq!((name.as_str(), data["type"].as_str()), ("error", Some("error")), "{}", got.text);
            assert_eq!(
                (data["code"].as_str(), data["sequence_number"].as_u64()),
                (Some("upstream_unavailable"), Some(after))
            );
            assert_eq!(found.len() as u64, after + 1);
            assert_eq!((desk.asked(), desk.rig.sim.stats().faults["break_stream"]), (1, 1));
            let row = desk.row().await;
            assert_eq!((row.status.as_str(), row.estimated), ("failed", true));
            assert!(row.input > 0 && row.cost > Some(0), "{row:?}");
        }
    }
    // The service's own failure is its own event.
    let desk = Desk::failing("[[fault]]\nkind = \"answer\"\nas = \"failed\"\n").await;
    let got = desk.ask(streamed("hello")).await;
    let last = events(&got.text).pop().unwrap();
    assert_eq!((last.0.as_str(), desk.row().await.status.as_str()), ("response.failed", "failed"), "{}", got.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_none_is_not_passed_on() {
    let fault = |kind: &str, door: &str| format!("[[fault]]\nkind = {kind}\ndoor = \"{door}\"\n");
    for kind in ["\"answer\"\nas = \"garbage\"", "\"break_stream\"", "\"break_stream\"\nclean = true"] {
        let desk = Desk::failing(&(fault(kind, "responses") + &fault(kind, "transcriptions"))).await;
        let fields = [("model", "gpt-transcribe")];
        let told = [desk.ask(plain("hello")).await, answer(desk.upload(form(hello(), &fields))).await];
        for got in told {
            assert_eq!((got.status, got.code().as_str()), (502, "upstream_unavailable"), "{kind}: {}", got.text);
            assert!(!got.text.contains("html") && got.header("retry-after") == "1", "{}", got.text);
        }
        let rows = desk.rows(2).await;
        assert!(rows.iter().all(|row| row.status == "failed" && row.estimated && row.cost > Some(0)), "{rows:#?}");
        assert_eq!(desk.asked(), 2, "it was paid for: no other try");
        if kind.contains("garbage") {
            let text = [fields[0], ("response_format", "text")];
            for fields in [&text[..], &[("model", "gpt-4o-transcribe"), ("stream", "true")]] {
                assert_eq!(answer(desk.upload(form(hello(), fields))).await.status, 502, "{fields:?}");
            }
            assert_eq!(desk.ask(streamed("hello")).await.status, 502);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_come_in_time_is_given_up_and_taken_to_be_used() {
    let fault = "[[fault]]\nkind = \"hang\"\ndoor = \"responses\"\n";
    let desk = Desk::with(|config| config.text.max_s = 1, SimConfig::instant(), fault).await;
    let began = Instant::now();
    let got = desk.ask(plain("hello")).await;
    assert_eq!((got.status, got.code().as_str()), (504, "upstream_timeout"), "{}", got.text);
    assert!(began.elapsed() < Duration::from_millis(2_500), "{:?}: once", began.elapsed());
    assert_eq!(desk.asked(), 1);
    let row = desk.row().await;
    assert_eq!((row.status.as_str(), row.estimated, row.output), ("failed", true, 0));
    assert!(row.cost > Some(0), "{row:?}");
    // A stream that stands still ends with the event that says so.
    let desk = Desk::with(|config| config.text.stall_s = 1, silent(), "").await;
    let got = desk.ask(streamed("hello")).await;
    assert_eq!(events(&got.text).pop().unwrap().1["code"], "upstream_unavailable", "{}", got.text);
    assert_eq!(desk.row().await.status, "failed");
}
