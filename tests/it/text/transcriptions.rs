//! Recordings: every format as the service writes it, by time and by tokens, and what is wrong with an upload.
use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn every_format_is_the_services_own_and_booked_as_it_is_billed() {
    let (desk, other) = (Desk::new().await, service(SimConfig::instant(), "").await);
    let cases: [(&[(&str, &str)], &str); 7] = [
        (&[("model", "gpt-transcribe")], "application/json"),
        (&[("model", "gpt-transcribe"), ("stream", "true")], "text/event-stream"),
        (&[("model", "gpt-4o-transcribe"), ("prompt", "parcels")], "application/json"),
        (&[("model", "gpt-4o-transcribe"), ("stream", "true")], "text/event-stream"),
        (&[("model", "whisper-1"), ("response_format", "text")], "text/plain; charset=utf-8"),
        (&[("model", "whisper-1"), ("response_format", "srt")], "text/plain; charset=utf-8"),
        // The service ignores the wish for a stream.
        (&[("model", "whisper-1"), ("response_format", "verbose_json"), ("stream", "true")], "application/json"),
    ];
    let mut calls = Vec::new();
    for (fields, kind) in cases {
        let got = answer(desk.upload(form(hello(), fields))).await;
        let want = answer(direct(&other, "/audio/transcriptions").multipart(form(hello(), fields))).await;
        assert_eq!((got.status, &got.text), (200, &want.text), "{fields:?}");
        assert_eq!(got.header("content-type"), kind, "{fields:?}");
        assert!(got.text.len() > 20, "{}", got.text);
        calls.push(got.header("x-request-id").to_owned());
    }
    let (mut rows, bill) = (desk.rows(7).await, desk.bill());
    rows.sort_by_key(|row| calls.iter().position(|call| *call == row.call));
    assert!(rows.iter().all(|row| (row.kind.as_str(), row.door.as_str()) == ("transcription", "transcriptions")));
    assert!(rows.iter().all(|row| row.status == "completed"), "{rows:#?}");
    let seconds: Vec<f64> = rows.iter().filter_map(|row| row.seconds).collect();
    assert_eq!(seconds.len(), 5, "{rows:#?}");
    assert!((seconds.iter().sum::<f64>() * 1e3 - bill.billed_ms as f64).abs() < 5.0, "{seconds:?} {}", bill.billed_ms);
    // 0.006 USD a minute are 100 microdollars a second.
    let by_time = rows.iter().filter(|row| row.route.ends_with("/gpt-transcribe"));
    assert!(
        by_time.clone().all(|row| (row.cost.unwrap() as f64 - row.seconds.unwrap() * 1e8).abs() < 1.0),
        "{rows:#?}"
    );
    let by_tokens: Vec<&Row> = rows.iter().filter(|row| row.route.ends_with("4o-transcribe")).collect();
    let sum = |of: fn(&Row) -> u64| by_tokens.iter().map(|row| of(row)).sum::<u64>();
    assert_eq!((sum(|row| row.input), sum(|row| row.output)), (bill.heard_tokens, bill.written_tokens));
    let hints = by_tokens[0].input - by_tokens[1].input;
    let cost = (bill.heard_tokens - hints) * 6_000_000 + hints * 2_000_000 + bill.written_tokens * 10_000_000;
    assert_eq!(by_tokens.iter().filter_map(|row| row.cost).sum::<i64>(), i64::try_from(cost).unwrap());
    // Subtitles count nothing: what they have used is our guess.
    let guessed: Vec<bool> = rows.iter().map(|row| row.estimated).collect();
    assert_eq!(guessed, [false, false, false, false, true, true, false], "{rows:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_behind_a_tier_hears_and_what_counts_nothing_is_guessed_in_its_own_way() {
    let tiers = "[ears]\nroutes = [{ model = \"gpt-4o-transcribe\" }]\n";
    let desk = Desk::with(|config| config.tiers = toml::from_str(tiers).unwrap(), SimConfig::instant(), "").await;
    let fields = [("model", "ears"), ("response_format", "text")];
    let got = answer(desk.upload(form(hello(), &fields))).await;
    // That model writes JSON only, which it says itself.
    assert_eq!((got.status, got.code().as_str()), (400, "unsupported_value"), "{}", got.text);
    let got = answer(desk.upload(form(hello(), &fields[..1]))).await;
    assert_eq!((got.status, got.header("x-voxrelay-route")), (200, "default/gpt-4o-transcribe"), "{}", got.text);
    assert_eq!(got.header("x-voxrelay-tier"), "");
    let row = desk.row().await;
    assert_eq!((row.route.as_str(), row.seconds, row.estimated), ("default/gpt-4o-transcribe", None, false));
    assert!(row.input > 0 && row.cost > Some(0), "{row:?}");
    let broken = "[[fault]]\nkind = \"break_stream\"\ndoor = \"transcriptions\"\n";
    let desk = Desk::failing(broken).await;
    let fields = [("model", "gpt-4o-transcribe"), ("stream", "true")];
    let got = answer(desk.upload(form(hello(), &fields))).await;
    assert_eq!(events(&got.text).pop().unwrap().1["code"], "upstream_unavailable", "{}", got.text);
    let row = desk.row().await;
    assert_eq!((row.status.as_str(), row.estimated, row.seconds), ("failed", true, None), "{row:?}");
    assert!(row.input >= 54 && row.cost > Some(0), "{row:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_cannot_work_is_told_why_as_the_service_tells_it() {
    let desk = Desk::new().await;
    let model = [("model", "gpt-transcribe")];
    let without = Form::new().text("model", "gpt-transcribe");
    let text =
        Form::new().part("file", Part::bytes(b"not audio".to_vec()).file_name("a.wav")).text("model", "gpt-transcribe");
    for (what, form, status, code, param) in [
        ("no file", without, 400, "missing_required_parameter", "file"),
        ("no model", form(hello(), &[]), 400, "missing_required_parameter", "model"),
        ("empty", form(Vec::new(), &model), 400, "invalid_value", "file"),
        ("not audio", text, 400, "invalid_value", "file"),
        (
            "a strange format",
            form(hello(), &[model[0], ("response_format", "poem")]),
            400,
            "invalid_value",
            "response_format",
        ),
        ("a strange wish", form(hello(), &[model[0], ("stream", "perhaps")]), 400, "invalid_type", "stream"),
        ("another model", form(hello(), &[("model", "gpt-5.6-luna")]), 404, "model_not_found", "model"),
    ] {
        let got = answer(desk.upload(form)).await;
        let error = &got.json()["error"];
        assert_eq!((got.status, got.code().as_str()), (status, code), "{what}: {error}");
        assert_eq!(error["param"], param, "{what}: {error}");
        assert_eq!(error["type"], "invalid_request_error", "{what}: {error}");
        assert!(error["message"].is_string() && got.header("x-request-id").starts_with("text_"), "{what}: {error}");
    }
    let got = desk.rig.post(TRANSCRIPTIONS, &desk.key, json!({"model": "gpt-transcribe"})).await;
    assert_eq!((got.status, got.code().as_str()), (400, "invalid_multipart"));
    desk.rows(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recording_that_is_too_large_is_refused_before_it_is_read() {
    let desk = Desk::new().await;
    let fields = [("model", "gpt-transcribe")];
    let got = answer(desk.upload(form(vec![0; (25 << 20) + (65 << 10)], &fields))).await;
    assert_eq!(got.status, 413, "{}", got.text);
    assert!(got.json()["error"]["code"].is_string() && got.text.contains("limit"), "{}", got.text);
    assert_eq!(desk.asked(), 0);
    // The largest one goes, though nothing more would be held at once; what it is, the service may find out.
    let small = |config: &mut Config| {
        (config.text.max_audio_bytes, config.text.max_body_bytes) = (1 << 20, 1 << 20);
        config.text.max_held_bytes = 1 << 20;
    };
    let desk = Desk::with(small, SimConfig::instant(), "").await;
    for _ in 0..2 {
        let got = answer(desk.upload(form(vec![0; 1 << 20], &fields))).await;
        assert_eq!((got.status, got.code().as_str()), (400, "invalid_value"), "{}", got.text);
    }
}
