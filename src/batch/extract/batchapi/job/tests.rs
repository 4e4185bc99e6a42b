use serde_json::json;

use super::*;

fn batch(status: &str) -> Value {
    json!({"id": "batch_1", "object": "batch", "status": status, "metadata": {KEY: "k"},
        "output_file_id": null, "error_file_id": null, "request_counts": {"total": 3, "completed": 1, "failed": 0}})
}

/// A batch that was created at second 1,000.
fn running() -> Batch {
    let mut it = Batch::new("k");
    it.uploaded(&json!({"id": "file-1"})).unwrap();
    assert!(matches!(it.next(1_000), Do::Create(_)));
    it.created(&batch("validating"), 1_000).unwrap();
    it
}

/// The service's name of it, while it runs.
fn id_of(it: &Batch) -> Option<&str> {
    match &it.stage {
        Stage::Look { batch, .. } => Some(batch),
        _ => None,
    }
}

/// As another process would find it.
fn kept(it: &Batch) -> Batch {
    serde_json::from_str(&serde_json::to_string(it).unwrap()).unwrap()
}

#[test]
fn from_the_file_to_the_end() {
    let mut it = Batch::new("k");
    assert_eq!(it.next(1_000), Do::Upload);
    assert!(it.uploaded(&json!({})).is_err());
    it.uploaded(&json!({"id": "file-1", "object": "file"})).unwrap();
    let Do::Create(body) = it.next(1_000) else { panic!() };
    let want = json!({"input_file_id": "file-1", "endpoint": "/v1/responses", "completion_window": "24h",
        "metadata": {"voxrelay_batch": "k"}});
    assert_eq!(body, want);
    it.created(&batch("validating"), 1_000).unwrap();
    assert_eq!(id_of(&it), Some("batch_1"));
    let (mut now, mut waits) = (1_000, Vec::new());
    for status in ["in_progress"; 14].into_iter().chain(["of_tomorrow", "finalizing"]) {
        let Do::Wait(at) = it.next(now) else { panic!() };
        waits.push(at - now);
        now = at;
        it = kept(&it);
        assert_eq!(it.next(now), Do::Look("batch_1".to_owned()));
        it.seen(&batch(status), now).unwrap();
    }
    assert!(waits[0] <= 8 && waits.is_sorted() && waits[15] == LONGEST_WAIT, "{waits:?}");
    assert_eq!(it.counts(), Counts { total: 3, completed: 1, failed: 0 });
    let mut done = batch("completed");
    (done["output_file_id"], done["error_file_id"]) = ("file-2".into(), "file-3".into());
    it.seen(&done, now).unwrap();
    for file in ["file-2", "file-3"] {
        let wanted = Do::Download(file.to_owned());
        assert_eq!(kept(&it).next(now), wanted);
        assert_eq!(it.next(now), wanted, "as often as it takes");
        it.downloaded();
    }
    it = kept(&it);
    assert_eq!(it.next(now), Do::Over(Ended::Completed));
    assert_eq!(it.files(), ["file-1", "file-2", "file-3"]);
    it.deleted("file-2");
    assert_eq!(kept(&it).files(), ["file-1", "file-3"]);
    assert_eq!(id_of(&it), None);
}

#[test]
fn each_end_has_its_meaning() {
    let failed = |code: &str, message: &str| Ended::Failed { code: code.to_owned(), message: message.to_owned() };
    let error = json!({"data": [{"code": "model_not_found", "message": "no such model", "line": 4}]});
    let table = [
        ("completed", json!("f"), json!(null), Ended::Completed, [Rest::Direct, Rest::Direct]),
        ("expired", json!("f"), json!(null), Ended::Expired, [Rest::Batch, Rest::Direct]),
        ("expired", json!(null), json!(null), Ended::Expired, [Rest::Batch, Rest::Direct]),
        ("cancelled", json!("f"), json!(null), Ended::Cancelled, [Rest::Left, Rest::Left]),
        ("failed", json!(null), error, failed("model_not_found", "no such model (line 4)"), [Rest::Left, Rest::Left]),
        ("failed", json!(null), json!(null), failed("batch_failed", "no message"), [Rest::Left, Rest::Left]),
    ];
    for (status, output, errors, ended, rest) in table {
        let mut it = running();
        let mut object = batch(status);
        (object["output_file_id"], object["errors"]) = (output.clone(), errors);
        object["request_counts"]["completed"] = u64::from(output.is_string()).into();
        it.seen(&object, 1_010).unwrap();
        if output.is_string() {
            assert_eq!(it.next(1_010), Do::Download("f".to_owned()), "{status}");
            it.downloaded();
        }
        assert_eq!(it.next(1_010), Do::Over(ended.clone()), "{status}");
        assert_eq!([ended.rest(0), ended.rest(1)], rest, "{status}");
    }
}

#[test]
fn a_batch_is_never_created_twice() {
    let mut it = Batch::new("k");
    it.uploaded(&json!({"id": "file-1"})).unwrap();
    assert!(matches!(it.next(1_000), Do::Create(_)));
    // Killed before the answer: it is looked for, page by page, when it has had the time to arrive.
    let mut soon = kept(&it);
    soon.resumed(1_001);
    assert_eq!(soon.next(1_001), Do::Wait(1_001 + FIRST_WAIT));
    assert_eq!(soon.next(1_006), Do::Find { after: None });
    let mut it = kept(&it);
    assert_eq!(it.next(1_001), Do::Find { after: None });
    let other = json!({"id": "batch_0", "status": "completed", "metadata": {KEY: "other"}});
    it.listed(&json!({"data": [other, {"id": "batch_x", "metadata": null}], "has_more": true}), 1_001).unwrap();
    let mut it = kept(&it);
    assert_eq!(it.next(1_002), Do::Find { after: Some("batch_x".to_owned()) });
    let mut there = it.clone();
    there.listed(&json!({"data": [batch("in_progress")], "has_more": true}), 1_002).unwrap();
    assert_eq!(id_of(&there), Some("batch_1"));
    assert!(matches!(there.next(1_002), Do::Wait(_)));
    assert!(it.listed(&json!({}), 1_002).is_err());
    assert!(it.listed(&json!({"data": [], "has_more": true}), 1_002).is_err(), "there is more, nobody knows where");
    let none = json!({"data": [other], "has_more": false});
    it.listed(&none, 1_002).unwrap();
    // Not there yet, perhaps.
    assert_eq!(it.next(1_003), Do::Wait(1_002 + BETWEEN_SEARCHES));
    assert_eq!(it.next(1_032), Do::Find { after: None });
    it.listed(&none, 1_032).unwrap();
    assert!(matches!(it.next(1_033), Do::Create(_)), "it is not there");
    // The network was gone: the same, a little later.
    it.lost(1_033);
    assert_eq!(it.next(1_033), Do::Wait(1_033 + FIRST_WAIT));
    assert_eq!(it.next(1_040), Do::Find { after: None });
    assert_eq!(it.stuck_since(), Some(1_033));
    // Searches that go well get it on no better than creations that do not.
    it.listed(&none, 1_040).unwrap();
    it.listed(&none, 1_070).unwrap();
    assert!(matches!(it.next(1_071), Do::Create(_)));
    it.lost(1_071);
    assert_eq!(it.stuck_since(), Some(1_033));
    it.created(&batch("in_progress"), 1_080).unwrap();
    assert_eq!(it.stuck_since(), None);
}

#[test]
fn a_search_that_is_refused_has_found_nothing_out() {
    let mut it = Batch::new("k");
    it.uploaded(&json!({"id": "file-1"})).unwrap();
    assert!(matches!(it.next(1_000), Do::Create(_)));
    it.lost(1_000);
    let mut now = 1_000;
    for round in 0..40 {
        now = waited(&mut it, now);
        let step = it.next(now);
        assert!(matches!(step, Do::Find { .. }), "{round}: {step:?}");
        it.refused(&step, "rate_limit_exceeded", "later", round % 2 == 0, now);
        it.resumed(now);
    }
    let mut cancelled = it.clone();
    cancelled.cancel();
    now = waited(&mut cancelled, now);
    assert_eq!(cancelled.next(now), Do::Find { after: None }, "it may run");
    it.listed(&json!({"data": [batch("in_progress")]}), now).unwrap();
    assert_eq!(id_of(&it), Some("batch_1"));
}

/// Waits until there is something else to do.
fn waited(it: &mut Batch, mut now: u64) -> u64 {
    while let Do::Wait(until) = it.next(now) {
        assert!(until > now && until <= now + LONGEST_WAIT, "{now}: {until}");
        now = until;
    }
    now
}

#[test]
fn what_finds_no_place_waits_for_it() {
    let full = || {
        let mut object = batch("failed");
        object["errors"] = json!({"data": [{"code": "token_limit_exceeded", "message": "enqueued"}]});
        object
    };
    let mut it = running();
    it.seen(&full(), 2_000).unwrap();
    assert_eq!(it.next(2_000), Do::Wait(2_000 + LONGEST_WAIT));
    assert!(matches!(it.next(2_300), Do::Create(_)));
    // The one that had no place is not the one that is looked for.
    assert_eq!(it.next(2_301), Do::Find { after: None });
    for now in [2_301, 2_331] {
        assert_eq!(it.next(now), Do::Find { after: None });
        it.listed(&json!({"data": [full()], "has_more": false}), now).unwrap();
    }
    let step = it.next(2_332);
    assert!(matches!(step, Do::Create(_)));
    it.refused(&step, "rate_limit_exceeded", "later", true, 2_332);
    assert_eq!(it.next(2_332), Do::Wait(2_332 + LONGEST_WAIT));
    assert!(matches!(it.next(2_700), Do::Create(_)));
    for gone in [false, true] {
        let mut hopeless = it.clone();
        match gone {
            true => hopeless.gone(&step, 2_700),
            false => hopeless.refused(&step, "file_not_found", "no", false, 2_700),
        }
        let over = hopeless.next(2_700);
        assert!(matches!(&over, Do::Over(Ended::Failed { code, .. }) if code == "file_not_found"), "{over:?}");
    }
    let mut now = 2_700;
    let mut tries = 0;
    while !matches!(it.next(now), Do::Over(_)) {
        it.refused(&step, "rate_limit_exceeded", "later", true, now);
        now += LONGEST_WAIT;
        tries += 1;
    }
    assert!((500..600).contains(&tries), "{tries}");
}

#[test]
fn cancelled_at_any_time() {
    let mut it = Batch::new("k");
    it.cancel();
    assert_eq!(it.next(1_000), Do::Over(Ended::Cancelled));

    let mut it = Batch::new("k");
    it.uploaded(&json!({"id": "file-1"})).unwrap();
    it.next(1_000);
    it.cancel();
    assert_eq!(it.next(1_000), Do::Find { after: None }, "it may be there");
    it.created(&batch("in_progress"), 1_000).unwrap();
    assert_eq!(it.next(1_000), Do::Cancel("batch_1".to_owned()));
    // Whether it was heard is looked for, and asked again where it was not; never without a pause.
    it.lost(1_000);
    assert!(matches!(it.next(1_000), Do::Wait(_)));
    assert_eq!(it.next(1_100), Do::Look("batch_1".to_owned()));
    it.seen(&batch("in_progress"), 1_100).unwrap();
    assert_eq!(kept(&it).next(1_100), Do::Cancel("batch_1".to_owned()));
    it.next(1_100);
    it.seen(&batch("cancelling"), 1_101).unwrap();
    assert!(matches!(it.next(1_101), Do::Wait(_)));
    let mut done = batch("cancelled");
    done["output_file_id"] = "file-2".into();
    it.seen(&done, 1_200).unwrap();
    assert_eq!(it.next(1_200), Do::Download("file-2".to_owned()));
}

#[test]
fn a_page_without_any_of_ours_is_not_the_last_one() {
    let mut it = Batch::new("k");
    it.uploaded(&json!({"id": "file-1"})).unwrap();
    assert!(matches!(it.next(1_000), Do::Create(_)));
    it.listed(&json!({"data": [], "has_more": true, "last_id": "batch_9"}), 1_000).unwrap();
    assert_eq!(it.next(1_000), Do::Find { after: Some("batch_9".to_owned()) });
}

#[test]
fn a_file_that_is_refused_ends_it_and_looks_come_as_often_as_is_wanted() {
    let mut it = Batch::new("k");
    assert_eq!(it.stuck_since(), None);
    it.refused(&Do::Upload, "busy", "no", true, 1_000);
    assert_eq!(it.next(1_000), Do::Wait(1_000 + FIRST_WAIT));
    assert_eq!(it.next(1_005), Do::Upload);
    it.lost(1_010);
    assert_eq!(it.stuck_since(), Some(1_000));
    it.refused(&Do::Upload, "mixed_models", "Line 3", false, 1_010);
    assert!(matches!(it.next(1_010), Do::Over(Ended::Failed { code, .. }) if code == "mixed_models"));
    let mut it = Batch::new("k");
    it.look_every(1);
    it.uploaded(&json!({"id": "file-1"})).unwrap();
    it.next(1_000);
    let mut there = batch("in_progress");
    there["expires_at"] = 87_400.into();
    it.created(&there, 1_000).unwrap();
    assert_eq!(it.expires_at(), Some(87_400));
    for now in 1_000..1_010 {
        assert_eq!(it.next(now), Do::Wait(now + 1));
        it.seen(&there, now + 1).unwrap();
    }
}

#[test]
fn odd_things_do_not_stop_it() {
    let mut it = running();
    assert!(it.seen(&json!({"id": "batch_1"}), 1_010).is_err());
    assert!(matches!(it.next(1_010), Do::Wait(_)));
    it.lost(1_020);
    assert!(matches!(it.next(1_020), Do::Wait(_)));
    assert_eq!(it.stuck_since(), None, "it runs, whoever cannot see it");
    assert_eq!(it.next(0), Do::Wait(LONGEST_WAIT), "a clock that was set back");
    assert_eq!(it.next(5_000), Do::Look("batch_1".to_owned()));
}

/// Says no to every step until it is over: how often, how long it took, and how it ended.
fn denied(it: &mut Batch, mut now: u64, no: impl Fn(&mut Batch, &Do, u64)) -> (u32, u64, Ended) {
    let (mut times, began) = (0, now);
    loop {
        now = waited(it, now);
        match it.next(now) {
            Do::Over(ended) => return (times, now - began, ended),
            step => no(it, &step, now),
        }
        times += 1;
        assert!(times < 1_000, "for ever");
    }
}

#[test]
fn looks_that_are_refused_come_ever_more_slowly_and_not_for_ever() {
    let (times, took, ended) = denied(&mut running(), 1_000, |it, step, now| it.refused(step, "x", "no", false, now));
    let want = Ended::failed("x", "the service has it, and does not show it: no");
    assert_eq!((times, ended), (MOST_DENIALS, want));
    assert!((600..3_600).contains(&took), "{took} s");
    let (times, took, ended) = denied(&mut running(), 1_000, Batch::gone);
    assert!(matches!(ended, Ended::Failed { code, .. } if code == "batch_not_found"));
    assert!(times == MOST_ABSENCES && took > FIRST_WAIT, "{times} in {took} s");
    // One look that is answered makes good for all of them; and who is only told to wait waits.
    let mut it = running();
    let mut now = 1_000;
    for round in 0..100 {
        now = waited(&mut it, now);
        let step = it.next(now);
        match round % 10 {
            9 => it.seen(&batch("in_progress"), now).unwrap(),
            _ => it.refused(&step, "x", "no", false, now),
        }
    }
    assert_eq!(id_of(&it), Some("batch_1"));
    for _ in 0..100 {
        now = waited(&mut it, now);
        let step = it.next(now);
        it.refused(&step, "rate_limit_exceeded", "later", true, now);
        assert_eq!(it.next(now + 1), Do::Wait(it.misses.until));
    }
    assert_eq!(id_of(&it), Some("batch_1"));
}

#[test]
fn answers_are_taken_without_errors_and_errors_without_answers() {
    let both = || {
        let (mut it, mut done) = (running(), batch("completed"));
        (done["output_file_id"], done["error_file_id"]) = ("file-2".into(), "file-3".into());
        it.seen(&done, 1_010).unwrap();
        it
    };
    let of = |id: &str| Do::Download(id.to_owned());
    // Only why some have no answer is not known then.
    let mut it = both();
    assert_eq!(it.next(1_010), of("file-2"));
    it.downloaded();
    let (times, _, ended) = denied(&mut it, 1_010, Batch::gone);
    assert_eq!((times, ended), (MOST_ABSENCES, Ended::Completed));
    // Answers that are gone are paid, and nobody asks for them again without a word.
    let mut it = both();
    let (mut now, mut seen) = (1_010, Vec::new());
    let ended = loop {
        now = waited(&mut it, now);
        match it.next(now) {
            Do::Over(ended) => break ended,
            step if step == of("file-2") => it.gone(&step, now),
            step => {
                seen.push(step);
                it = kept(&it);
                it.downloaded();
            }
        }
    };
    assert_eq!(seen, [of("file-3")]);
    assert!(matches!(ended, Ended::Failed { code, .. } if code == "file_not_found"));
}

#[test]
fn an_end_that_names_no_answers_is_looked_at_again_and_then_it_has_failed() {
    for (status, completed, errors) in
        [("completed", 0, None), ("completed", 2, Some("file-3")), ("expired", 2, None), ("cancelled", 1, None)]
    {
        let mut end = batch(status);
        (end["request_counts"]["completed"], end["error_file_id"]) = (completed.into(), errors.into());
        let (mut it, mut now, mut looks) = (running(), 1_000, 0);
        let ended = loop {
            now = waited(&mut it, now);
            match it.next(now) {
                Do::Over(ended) => break ended,
                Do::Look(_) => {
                    looks += 1;
                    let mut late = it.clone();
                    it.seen(&end, now).unwrap();
                    let mut named = end.clone();
                    named["output_file_id"] = "file-2".into();
                    late.seen(&named, now).unwrap();
                    assert_eq!(late.next(now), Do::Download("file-2".to_owned()), "it was only late");
                }
                step => {
                    assert_eq!(step, Do::Download("file-3".to_owned()));
                    it.downloaded();
                }
            }
        };
        assert_eq!(looks, MOST_UNNAMED, "{status}");
        assert!(matches!(&ended, Ended::Failed { code, .. } if code == "no_output_file"), "{status}: {ended:?}");
        assert_eq!(ended.rest(0), Rest::Left, "{status}");
    }
}
