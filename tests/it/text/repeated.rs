//! `Idempotency-Key`: whoever comes again gets the first answer, however that was cut off, and it is paid once.
use super::*;

const KEY: &str = "idempotency-key";

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_comes_again_gets_the_first_answer_and_is_paid_once() {
    let desk = Desk::new().await;
    for (key, body) in [("a", plain("Where is my parcel?")), ("b", streamed("Where is my parcel?"))] {
        let first = desk.keyed(key, body.clone()).await;
        assert_eq!((first.status, first.header("x-voxrelay-repeated")), (200, ""), "{}", first.text);
        for _ in 0..3 {
            let again = desk.keyed(key, body.clone()).await;
            assert_eq!((again.status, &again.text), (200, &first.text));
            assert_eq!(again.header("x-voxrelay-repeated"), "true");
            for same in ["content-type", "x-voxrelay-route", "x-voxrelay-cost-usd"] {
                assert_eq!(again.header(same), first.header(same), "{same}");
            }
            assert_eq!(again.header("x-request-id"), first.header("x-request-id"), "that of its row");
        }
        let other = desk.keyed(key, plain("And now?")).await;
        assert_eq!((other.status, other.code().as_str()), (409, "idempotency_key_reused"));
    }
    let bill = desk.bill();
    assert!(bill.idempotency_keys.is_empty(), "a tenant's key is nothing to the account's service");
    assert_eq!(bill.requests["responses"], 2);
    desk.rows(2).await;
    // The same key of another tenant, and none at all, are other requests.
    for key in ["", "x y", &"k".repeat(256)] {
        let got = desk.keyed(key, plain("hello")).await;
        assert_eq!((got.status, got.json()["error"]["param"].as_str()), (400, Some("Idempotency-Key")), "{key}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keys_request_is_its_tenants_own_and_forms_are_the_same_by_what_is_in_them() {
    let mut other = String::new();
    let desk = Desk::with(|config| other = tenant(config, "other", |_| {}), SimConfig::instant(), "").await;
    for key in [&desk.key, &other] {
        let got = answer(desk.rig.request("POST", RESPONSES, key).json(&plain("hello")).header(KEY, "k")).await;
        assert_eq!((got.status, got.header("x-voxrelay-repeated")), (200, ""));
    }
    // Each form has another boundary, as those of every SDK.
    let fields = [("model", "gpt-transcribe")];
    let ask = |form| answer(desk.upload(form).header(KEY, "k2"));
    let first = ask(form(hello(), &fields)).await;
    let again = ask(form(hello(), &fields)).await;
    assert_eq!((first.status, again.header("x-voxrelay-repeated")), (200, "true"), "{}", again.text);
    assert_eq!(first.text, again.text);
    let mut louder = hello();
    *louder.last_mut().unwrap() ^= 1;
    for other in [form(louder, &fields), form(hello(), &[fields[0], ("language", "en")])] {
        assert_eq!(ask(other).await.code(), "idempotency_key_reused");
    }
    assert_eq!((desk.bill().requests["transcriptions"], desk.bill().requests["responses"]), (1, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_first_one_runs_all_others_wait_for_its_answer() {
    let desk = Desk::with(|_| {}, slow(15), "").await;
    for body in [plain("Where is my parcel?"), streamed("Where is my parcel?")] {
        let key = body["stream"].to_string();
        let (one, two, three) = tokio::join!(
            desk.keyed(&key, body.clone()),
            desk.keyed(&key, body.clone()),
            desk.keyed(&key, body.clone())
        );
        assert_eq!((one.status, two.status, three.status), (200, 200, 200));
        assert!(one.text == two.text && two.text == three.text && one.text.len() > 100);
        let repeated = [one, two, three].iter().filter(|got| got.header("x-voxrelay-repeated") == "true").count();
        assert_eq!(repeated, 2);
    }
    assert_eq!(desk.bill().requests["responses"], 2);
    desk.rows(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_vanishes_and_comes_again_pays_once() {
    let desk = Desk::with(|_| {}, slow(15), "").await;
    // In the middle of a whole answer.
    let body = plain("Where is my parcel?");
    let request = desk.request(&body).header(KEY, "whole").send();
    let asked = || desk.bill().requests.get("responses").copied().unwrap_or_default();
    tokio::select! {
        got = request => panic!("{got:?}: it takes its time"),
        () = until("it was asked", || asked() == 1) => {}
    }
    let got = desk.keyed("whole", body).await;
    assert_eq!((got.status, got.header("x-voxrelay-repeated")), (200, "true"), "{}", got.text);
    assert_eq!(got.json()["status"], "completed");
    // In the middle of a stream.
    let body = streamed("Where is my parcel?");
    let mut first = desk.request(&body).header(KEY, "stream").send().await.unwrap();
    let begun = read_until(&mut first, "response.output_text.delta").await;
    drop(first);
    let got = desk.keyed("stream", body).await;
    assert_eq!((got.status, got.header("x-voxrelay-repeated")), (200, "true"), "{}", got.text);
    assert!(got.text.starts_with(&begun) && got.text.contains("event: response.completed"), "{}", got.text);
    let (rows, bill) = (desk.rows(2).await, desk.bill());
    assert_eq!(bill.requests["responses"], 2);
    assert!(rows.iter().all(|row| row.status == "completed" && !row.estimated), "{rows:#?}");
    assert_eq!(rows.iter().map(|row| row.output).sum::<u64>(), bill.output_tokens);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_is_not_remembered() {
    for (fault, status) in [
        ("kind = \"refuse\"\nstatus = 400\nbody = '{\"error\":{\"message\":\"no\",\"code\":\"no\"}}'", 400),
        ("kind = \"answer\"\nas = \"garbage\"", 502),
        ("kind = \"answer\"\nas = \"failed\"", 200),
        ("kind = \"break_stream\"", 502),
    ] {
        for stream in [false, true] {
            let desk = Desk::failing(&format!("[[fault]]\ndoor = \"responses\"\ntimes = 1\n{fault}\n")).await;
            let body = json!({"model": LUNA, "input": "hello", "stream": stream});
            let first = desk.keyed("k", body.clone()).await;
            // What breaks once it has begun has begun well.
            let streams = stream && fault.contains("stream");
            assert_eq!(first.status, if streams { 200 } else { status }, "{fault} {stream}: {}", first.text);
            let again = desk.keyed("k", body.clone()).await;
            assert_eq!(
                (again.status, again.header("x-voxrelay-repeated")),
                (200, ""),
                "{fault} {stream}: {}",
                again.text
            );
            assert!(again.text.contains("\"completed\""), "{fault} {stream}: {}", again.text);
            assert_eq!(desk.keyed("k", body).await.header("x-voxrelay-repeated"), "true", "{fault} {stream}");
            assert_eq!(desk.bill().requests["responses"], 2);
        }
    }
}
