//! What the service answers is what comes, whole and as a stream, with its price; and a response is gone on from.
use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_answer_is_the_services_own_and_costs_what_the_service_counted() {
    let (desk, other) = (Desk::new().await, service(SimConfig::instant(), "").await);
    let body = json!({"model": LUNA, "input": "Where is my parcel?", "instructions": "Be kind.", "metadata": {"a": "b"},
        "text": {"format": {"type": "text"}}, "temperature": 0.5, "store": true});
    let (got, want) = (desk.ask(body.clone()).await, answer(direct(&other, "/responses").json(&body)).await);
    assert_eq!((got.status, timeless(&got.text)), (200, timeless(&want.text)));
    assert_eq!(got.header("content-type"), want.header("content-type"));
    assert_eq!((got.header("x-voxrelay-route"), got.header("x-voxrelay-waited-ms")), ("default/gpt-5.6-luna", "0"));
    for absent in ["x-voxrelay-tier", "x-voxrelay-tier-by", "x-ratelimit-limit-requests", "x-voxrelay-repeated"] {
        assert_eq!(got.header(absent), "", "{absent}");
    }
    let (row, bill) = (desk.row().await, desk.bill());
    assert!(bill.input_tokens > 4 && bill.output_tokens > 4, "{bill:?}");
    let cost = i64::try_from(bill.input_tokens * 2_000_000 + bill.output_tokens * 8_000_000).unwrap();
    let want = Row {
        call: got.header("x-request-id").to_owned(),
        kind: "reply".to_owned(),
        door: "responses".to_owned(),
        status: "completed".to_owned(),
        route: "default/gpt-5.6-luna".to_owned(),
        input: bill.input_tokens,
        output: bill.output_tokens,
        seconds: None,
        cost: Some(cost),
        estimated: false,
    };
    assert_eq!(row, want);
    let told: f64 = got.header("x-voxrelay-cost-usd").parse().unwrap();
    assert!((told * 1e12 - cost as f64).abs() < 1.0, "{told}");
    let usage = desk.rig.ask("GET", "/v1/usage?by=model", &desk.key).await.json();
    let sum = &usage["usage"][0];
    assert_eq!(
        (sum["model"].as_str(), sum["cost_usd"].as_str()),
        (Some(LUNA), Some(got.header("x-voxrelay-cost-usd")))
    );
    assert_eq!(sum["total_tokens"].as_u64(), Some(bill.input_tokens + bill.output_tokens), "{usage}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_the_services_own_with_events_that_nobody_knows() {
    for faults in ["", "[[fault]]\nkind = \"answer\"\nas = \"unknown_events\"\n"] {
        let desk = Desk::failing(faults).await;
        let other = service(SimConfig::instant(), faults).await;
        let body = streamed("Where is my parcel, and when will it be here?");
        let (got, want) = (desk.ask(body.clone()).await, answer(direct(&other, "/responses").json(&body)).await);
        assert_eq!((got.status, timeless(&got.text)), (200, timeless(&want.text)));
        assert_eq!((got.header("content-type"), got.header("cache-control")), ("text/event-stream", "no-store"));
        assert_eq!((got.header("x-accel-buffering"), got.header("x-voxrelay-cost-usd")), ("no", ""));
        let found = events(&got.text);
        let of = |kind: &str| found.iter().filter(|(name, _)| name == kind).count();
        assert_eq!(of("response.something_new") > 0, !faults.is_empty());
        assert_eq!((of("response.created"), of("response.completed"), of("error")), (1, 1, 0));
        let deltas: String = found.iter().filter_map(|(_, data)| data["delta"].as_str()).collect();
        let (_, done) = found.iter().find(|(name, _)| name == "response.output_text.done").unwrap();
        assert_eq!(done["text"], deltas.as_str());
        let (row, bill) = (desk.row().await, desk.bill());
        assert_eq!((row.status.as_str(), row.estimated), ("completed", false));
        assert_eq!((row.input, row.output), (bill.input_tokens, bill.output_tokens));
        assert_eq!(row.call, got.header("x-request-id"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_passed_on_before_the_next_one_is_made() {
    let desk = Desk::with(|_| {}, silent(), "").await;
    let mut response = desk.request(&streamed("hello")).send().await.unwrap();
    let text = read_until(&mut response, "response.in_progress\"").await;
    assert!(text.starts_with("event: response.created\n"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_about_the_request_is_said_in_the_services_words() {
    let (desk, other) = (Desk::new().await, service(SimConfig::instant(), "").await);
    for body in [
        json!({"model": LUNA}),
        json!({"model": LUNA, "input": "x", "of_tomorrow": 1}),
        json!({"model": LUNA, "input": [{"role": "pope", "content": "x"}]}),
        json!({"model": "gpt-of-yesterday", "input": "x"}),
        json!({"model": LUNA, "input": "x", "text": {"format": {"type": "json_schema", "name": "a", "strict": true, "schema": {"type": "object", "properties": {"a": {"type": "string"}}}}}}),
    ] {
        let (got, want) = (desk.ask(body.clone()).await, answer(direct(&other, "/responses").json(&body)).await);
        assert_eq!((got.status, &got.text), (want.status, &want.text), "{body}");
        assert!((400..500).contains(&got.status) && got.json()["error"]["message"].is_string());
    }
    for (body, status, code, param) in [
        (json!({"input": "x"}), 400, "missing_required_parameter", "model"),
        (json!({"model": LUNA, "input": "x", "background": true}), 400, "unsupported_parameter", "background"),
        (json!({"model": LUNA, "input": "x", "stream": "yes"}), 400, "invalid_type", "stream"),
    ] {
        let got = desk.ask(body.clone()).await;
        assert_eq!((got.status, got.code().as_str()), (status, code), "{body}");
        let error = &got.json()["error"];
        assert_eq!((error["param"].as_str(), error["type"].as_str()), (Some(param), Some("invalid_request_error")));
    }
    let got = answer(desk.rig.request("POST", RESPONSES, &desk.key).body("{")).await;
    assert_eq!((got.status, got.code().as_str()), (400, "invalid_json"));
    desk.rows(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_was_cut_is_gone_on_with_by_its_own_tenant_only() {
    let mut other = String::new();
    let desk = Desk::with(|config| other = tenant(config, "other", |_| {}), SimConfig::instant(), "").await;
    let question = "Tell me all that there is to be told about parcels, please.";
    let whole = text_of(&desk.ask(plain(question)).await.json());
    let mut short = plain(question);
    short["max_output_tokens"] = json!(16);
    let mut answer_now = desk.ask(short).await.json();
    assert_eq!(answer_now["incomplete_details"]["reason"], "max_output_tokens");
    let first = answer_now["id"].clone();
    let mut told = text_of(&answer_now);
    for turn in 0..20 {
        if answer_now["status"] == "completed" {
            break;
        }
        let mut next =
            json!({"model": LUNA, "input": [], "max_output_tokens": 16, "previous_response_id": answer_now["id"]});
        next["stream"] = json!(turn == 0);
        let got = desk.ask(next).await;
        answer_now = match turn {
            0 => events(&got.text).pop().unwrap().1["response"].clone(),
            _ => got.json(),
        };
        told += &text_of(&answer_now);
    }
    assert_eq!(told, whole);
    let before = desk.asked();
    let unknown = json!("resp_unknown");
    for (key, id) in [(&other, &first), (&desk.key, &unknown)] {
        let body = json!({"model": LUNA, "input": "go on", "previous_response_id": id});
        let got = desk.rig.post(RESPONSES, key, body).await;
        assert_eq!((got.status, got.code().as_str()), (400, "previous_response_not_found"), "{}", got.text);
        assert_eq!(got.json()["error"]["param"], "previous_response_id");
    }
    assert_eq!(desk.asked(), before, "the service was not asked");
}

fn text_of(response: &Value) -> String {
    let output = response["output"].as_array().unwrap_or_else(|| panic!("{response}")).iter();
    output.filter_map(|item| item["content"][0]["text"].as_str()).collect()
}
