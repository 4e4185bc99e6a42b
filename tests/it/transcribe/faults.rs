//! A service that is not well at times: all is done in the end.
use voxrelay::sim::TextConfig;

use super::Desk;

const FAULTS: &str = "
    [[fault]]
    kind = \"refuse\"
    door = \"transcriptions\"
    status = 429
    retry_after_s = 1
    session = 4
    [[fault]]
    kind = \"refuse\"
    door = \"transcriptions\"
    status = 500
    every = 11
    [[fault]]
    kind = \"refuse\"
    door = \"transcriptions\"
    status = 503
    every = 17
    [[fault]]
    kind = \"hang\"
    door = \"transcriptions\"
    for_ms = 700
    every = 13
    [[fault]]
    kind = \"break_stream\"
    door = \"transcriptions\"
    every = 19
    [[fault]]
    kind = \"answer\"
    as = \"garbage\"
    door = \"transcriptions\"
    session = 30
";

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_fails_at_times_is_asked_again_and_all_is_done() {
    let desk = Desk::with(|_| {}, TextConfig::instant(), FAULTS).await;
    (0..60).for_each(|n| desk.made(&format!("in/{n:03}.wav"), n));
    let ran = desk.run(&["transcribe", "in", "--min-seconds", "1", "--out", "t.csv"]).await;
    assert_eq!((ran.code, desk.table("t.csv").len()), (0, 60), "{}", ran.said);
    let stats = desk.rig.sim.stats();
    let fired = |kind: &str| stats.faults.get(kind).copied().unwrap_or_default();
    assert!(fired("refuse") >= 8 && fired("hang") >= 4, "{:?}", stats.faults);
    assert!(fired("break_stream") >= 2 && fired("answer") == 1, "{:?}", stats.faults);
    // What was broken off or of no use was paid, and is asked for once more; nothing else is.
    assert_eq!(stats.text.paid_again(), fired("break_stream") + fired("answer"));
    let repeated = ran.said.lines().find(|line| line.starts_with("repeated")).unwrap_or_default();
    let repeated: u64 = repeated.split_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or_default();
    assert!(repeated >= fired("break_stream"), "{}", ran.said);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_file_that_the_service_never_answers_does_not_hold_up_the_others() {
    let faults = "[[fault]]\nkind = \"refuse\"\ndoor = \"transcriptions\"\nstatus = 400\nsession = 2\n\
                  body = '{\"error\":{\"message\":\"This one is not liked.\",\"type\":\"invalid_request_error\",\"code\":\"invalid_value\"}}'";
    let desk = Desk::with(|_| {}, TextConfig::instant(), faults).await;
    (0..5).for_each(|n| desk.made(&format!("in/{n}.wav"), n));
    let ran = desk.run(&["transcribe", "in", "--min-seconds", "1", "--out", "t.csv"]).await;
    assert_eq!((ran.code, desk.table("t.csv").len()), (1, 4), "{}", ran.said);
    let errors = desk.errors("t.errors.csv");
    let (code, message) = errors.values().next().unwrap();
    assert_eq!((errors.len(), code.as_str(), message.as_str()), (1, "invalid_value", "This one is not liked."));
    assert!(ran.said.contains("This one is not liked."), "{}", ran.said);
}
