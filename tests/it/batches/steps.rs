//! `voxrelay extract --batch-api` against a service that says no where it hurts: no batch is begun twice, no answer is lost or paid again,
//! and nothing that people said stays behind.
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    desk::{Desk, interrupt, kill, until},
    service::{Act, End, Service, all, answer, line_of, response},
};

const BEGIN: [&str; 2] = ["texts/*.txt", "--batch-api"];
const GO_ON: [&str; 2] = ["--resume", "--batch-api"];

async fn desk(texts: usize, script: impl Fn(usize, &[Value]) -> End + Send + 'static) -> (Desk, Service) {
    let service = Service::new(script).await;
    (Desk { url: service.url.clone(), key: "sk-some".to_owned(), ..Desk::new(texts) }, service)
}

/// Each row is of its own text.
fn rows_are_right(desk: &Desk, rows: usize) {
    let found = desk.rows();
    assert_eq!(found.len(), rows, "{found:?}");
    for row in found {
        let number = row.split_once("texts/").unwrap().1.split('.').next().unwrap().to_owned();
        assert!(row.contains(&format!("call {number},")), "{row}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_search_that_is_refused_leads_to_no_second_batch() {
    let (desk, service) = desk(4, all).await;
    service.rule("POST /v1/batches", Act::Lose, 1);
    service.rule("GET /v1/batches?", Act::Refuse(429), 2);
    let (code, said) = desk.run(&BEGIN).await;
    assert_eq!((service.met("POST /v1/batches"), service.met("GET /v1/batches?")), (1, 2));
    assert_eq!((code, service.counts()), (0, (1, 0, 0)), "{said}");
    rows_are_right(&desk, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_search_that_is_refused_for_good_stops_the_run_and_not_the_batch() {
    let (desk, service) = desk(4, all).await;
    service.rule("POST /v1/batches", Act::Lose, 1);
    service.rule("GET /v1/batches?", Act::Refuse(400), 2);
    for args in [BEGIN, GO_ON] {
        let (code, said) = desk.run(&args).await;
        assert_eq!((code, service.counts()), (1, (1, 0, 1)), "{said}");
        assert!(said.contains("whether a batch that was asked for is there cannot be found out: No, 400."), "{said}");
    }
    assert_eq!(service.met("GET /v1/batches?"), 2);
    let (code, said) = desk.run(&GO_ON).await;
    assert_eq!((code, service.counts()), (0, (1, 0, 0)), "{said}");
    rows_are_right(&desk, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn looks_that_are_refused_have_an_end_and_pauses_before_it() {
    let (desk, service) = desk(2, all).await;
    service.rule("GET /v1/batches/", Act::Refuse(400), usize::MAX);
    let began = Instant::now();
    let (code, said) = desk.run(&BEGIN).await;
    assert_eq!((code, service.met("GET /v1/batches/")), (1, 12), "{said}");
    assert!(began.elapsed() > Duration::from_secs(10), "{said}");
    assert!(
        said.contains("stopped: the batch has failed: the service has it, and does not show it: No, 400."),
        "{said}"
    );
    // Its own file is deleted; those of its answers nobody knows.
    assert_eq!(service.counts(), (1, 0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_kept_whatever_becomes_of_the_file_of_errors() {
    let script = |_: usize, lines: &[Value]| End {
        errors: vec![line_of(&lines[0], 500, &json!({}))],
        output: lines[1..].iter().map(answer).collect(),
        ..all(0, lines)
    };
    for (act, times) in [(Act::Refuse(404), usize::MAX), (Act::Refuse(500), 1)] {
        let (desk, service) = desk(5, script).await;
        // The third file: after the requests and the answers.
        service.rule("GET /v1/files/file-3/content", act, times);
        let (code, said) = desk.run(&BEGIN).await;
        assert_eq!(service.met("GET /v1/files/file-3/content"), times.min(3), "{said}");
        assert_eq!((code, service.counts()), (0, (1, 1, 0)), "{said}");
        assert!(said.contains("by batch   4 answers of 1 batches"), "{said}");
        assert!(said.contains("note: 1 of 5 requests of a batch have no answer, and are asked directly"), "{said}");
        rows_are_right(&desk, 5);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_are_nowhere_are_not_asked_for_again_without_a_word() {
    let (desk, service) = desk(3, |n, lines| End { unnamed: true, ..all(n, lines) }).await;
    let (code, said) = desk.run(&BEGIN).await;
    assert_eq!((code, service.counts()), (1, (1, 0, 0)), "{said}");
    assert!(said.contains("it has ended with 3 answers, and names no file of them (no_output_file)"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_come_in_any_order_twice_broken_or_not_at_all() {
    let script = |n: usize, lines: &[Value]| {
        let mut end = all(n, lines);
        end.output.reverse();
        // The first text's is left out, the last one's there twice.
        end.output.pop();
        end.output.insert(1, end.output[0].clone());
        end.output.insert(2, end.output[1][..40].to_owned());
        end.output.push(line_of(&json!({"custom_id": "nobody's"}), 200, &response("{}")));
        end
    };
    let (desk, service) = desk(6, script).await;
    let (code, said) = desk.run(&BEGIN).await;
    assert_eq!((code, service.counts()), (0, (1, 1, 0)), "{said}");
    assert!(said.contains("by batch   5 answers of 1 batches"), "{said}");
    assert!(said.contains("note: 1 of 6 requests of a batch have no answer"), "{said}");
    rows_are_right(&desk, 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_file_has_one_model_repairs_too() {
    let script = |n: usize, lines: &[Value]| match lines.len() {
        // Repairs are fewer than first requests.
        3 => End {
            output: lines.iter().map(|line| line_of(line, 200, &response("{\"topic\": 5}"))).collect(),
            ..all(n, lines)
        },
        _ => all(n, lines),
    };
    let (desk, service) = desk(5, script).await;
    let tokens = "1100";
    let args = ["texts/*.txt", "--batch-api", "--batch-few", "1", "--batch-tokens", tokens];
    let (code, said) = desk.run(&args).await;
    let models = service.models();
    assert!(models.len() > 2, "several, and one of repairs: {models:?}\n{said}");
    assert!(models.iter().all(|models| models.iter().eq(["fast"])), "{models:?}");
    assert_eq!((code, service.counts()), (0, (models.len(), 0, 0)), "{said}");
    rows_are_right(&desk, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_stopped_in_any_step_goes_on_with_the_batch_that_there_is() {
    for orderly in [true, false] {
        let (desk, service) = desk(4, all).await;
        let mut args = BEGIN;
        for (step, act) in [
            ("POST /v1/files", Act::Hang),
            ("POST /v1/batches", Act::DoAndHang),
            ("GET /v1/batches?", Act::Hang),
            ("GET /v1/batches/", Act::Hang),
            ("GET /v1/files/", Act::Hang),
            ("DELETE /v1/files/", Act::DoAndHang),
        ] {
            service.rule(step, act, 1);
            let child = desk.start(&args);
            until(step, async || service.met(step) == 1).await;
            if orderly {
                let (code, said) = interrupt(child).await;
                assert_eq!(code, 1, "{step}: {said}");
            } else {
                kill(child);
            }
            args = GO_ON;
        }
        // The last one has left files, and nothing else to do.
        assert_eq!(service.counts(), (1, 0, 1), "the answers, for the requests were deleted");
        let (code, said) = desk.run(&["--resume"]).await;
        assert_eq!((code, service.counts()), (0, (1, 0, 0)), "{said}");
        rows_are_right(&desk, 4);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_cancels_too_late_pays_for_nothing_more() {
    let script = |n: usize, lines: &[Value]| {
        let mut end = all(n, lines);
        end.output.pop();
        end
    };
    let (desk, service) = desk(4, script).await;
    service.rule("GET /v1/batches/", Act::Hang, 1);
    let child = desk.start(&BEGIN);
    until("a look", async || service.met("GET /v1/batches/") == 1).await;
    kill(child);
    let (code, said) = desk.run(&["--resume", "--cancel-batch"]).await;
    assert_eq!((code, service.counts()), (1, (1, 0, 0)), "{said}");
    rows_are_right(&desk, 3);
    let (code, said) = desk.run(&["--resume"]).await;
    assert_eq!((code, service.counts()), (0, (1, 1, 0)), "{said}");
    rows_are_right(&desk, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_could_not_be_deleted_are_named_and_the_next_run_does_it() {
    let (desk, service) = desk(2, all).await;
    service.rule("DELETE /v1/files/", Act::Refuse(500), 4);
    let (code, said) = desk.run(&BEGIN).await;
    assert_eq!((code, service.met("DELETE /v1/files/"), service.counts()), (0, 4, (1, 0, 2)), "{said}");
    assert!(
        said.contains("2 files of batches are still at the service, until --resume deletes them: file-1, file-2"),
        "{said}"
    );
    assert!(service.file_names()[0].starts_with("vrb-"), "its batch's name: {:?}", service.file_names());
    let (code, said) = desk.run(&["--resume"]).await;
    assert_eq!((code, service.counts()), (0, (1, 0, 0)), "{said}");
}
