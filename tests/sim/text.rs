//! Recordings and text over real sockets: what a client of the service would see, and what it would be billed.
use std::{collections::HashSet, time::Duration};

use reqwest::{
    header::HeaderMap,
    multipart::{Form, Part},
};
use serde_json::{Value, json};
use voxrelay::sim::{Faults, Knock, Limits, Sim, SimConfig, TextConfig};

use crate::support::{Client, hello};

const KEY: &str = "sk-good";

async fn sim(config: SimConfig, faults: &str) -> Sim {
    Sim::start("127.0.0.1:0".parse().unwrap(), config, Faults::from_toml(faults).unwrap()).await.unwrap()
}

fn http() -> reqwest::Client {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    reqwest::Client::new()
}

#[derive(Debug)]
struct Answer {
    status: u16,
    headers: HeaderMap,
    /// What came of the body, and whether all of it did.
    text: String,
    whole: bool,
}

impl Answer {
    async fn of(request: reqwest::RequestBuilder) -> Self {
        let mut response = request.send().await.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let mut bytes = Vec::new();
        let whole = loop {
            match response.chunk().await {
                Ok(Some(chunk)) => bytes.extend_from_slice(&chunk),
                Ok(None) => break true,
                Err(_) => break false,
            }
        };
        Self { status, headers, text: String::from_utf8(bytes).unwrap(), whole }
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    fn code(&self) -> String {
        self.json()["error"]["code"].as_str().unwrap_or_default().to_owned()
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("no {name}: {:?}", self.headers)).to_str().unwrap()
    }

    /// Events of a stream, each of which names its type twice.
    fn events(&self) -> Vec<Value> {
        let events = self.text.split_terminator("\n\n").map(|frame| {
            let (kind, data) = frame.split_once('\n').unwrap();
            let data: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
            assert_eq!(kind.strip_prefix("event: ").unwrap(), data["type"]);
            data
        });
        events.collect()
    }

    fn kinds(&self) -> Vec<String> {
        let mut kinds: Vec<String> = self.events().iter().map(|e| e["type"].as_str().unwrap().to_owned()).collect();
        kinds.dedup();
        kinds
    }
}

fn upload(name: &str, bytes: Vec<u8>, fields: &[(&str, &str)]) -> Form {
    let form = Form::new().part("file", Part::bytes(bytes).file_name(name.to_owned()));
    fields.iter().fold(form, |form, (name, value)| form.text((*name).to_owned(), (*value).to_owned()))
}

async fn transcribe(sim: &Sim, form: Form) -> Answer {
    Answer::of(http().post(format!("{}/audio/transcriptions", sim.base_url())).bearer_auth(KEY).multipart(form)).await
}

async fn spoken(sim: &Sim, fields: &[(&str, &str)]) -> Answer {
    transcribe(sim, upload("hello.wav", std::fs::read("assets/hello.wav").unwrap(), fields)).await
}

async fn post(sim: &Sim, path: &str, body: &Value) -> Answer {
    Answer::of(http().post(format!("{}{path}", sim.base_url())).bearer_auth(KEY).json(body)).await
}

async fn get(sim: &Sim, path: &str) -> Answer {
    Answer::of(http().get(format!("{}{path}", sim.base_url())).bearer_auth(KEY)).await
}

async fn respond(sim: &Sim, body: Value) -> Answer {
    let mut body = body;
    body["model"] = json!("gpt-5.6-luna");
    post(sim, "/responses", &body).await
}

fn text_of(response: &Value) -> &str {
    let message = response["output"].as_array().unwrap().iter().find(|item| item["type"] == "message");
    message.unwrap_or_else(|| panic!("{response}"))["content"][0]["text"].as_str().unwrap()
}

fn shape() -> Value {
    let schema = json!({
        "type": "object",
        "properties": {"reason": {"type": "string"}, "urgent": {"type": "boolean"}},
        "required": ["reason", "urgent"],
        "additionalProperties": false,
    });
    json!({"format": {"type": "json_schema", "name": "call", "strict": true, "schema": schema}})
}

#[tokio::test]
async fn a_recording_is_written_down_as_each_model_does_and_billed() {
    let sim = sim(SimConfig::instant(), "").await;
    let newest = spoken(&sim, &[("model", "gpt-transcribe")]).await;
    assert_eq!(newest.status, 200, "{}", newest.text);
    let body = newest.json();
    let words = body["text"].as_str().unwrap().to_owned();
    assert!(words.split(' ').count() > 5, "{words}");
    let seconds = body["usage"]["seconds"].as_f64().unwrap();
    assert_eq!((&body["usage"]["type"], seconds > 3.0), (&json!("duration"), true), "{body}");
    let tokens =
        spoken(&sim, &[("model", "gpt-4o-transcribe"), ("prompt", "abcd efg"), ("language", "en")]).await.json();
    assert_eq!(tokens["text"], words);
    let usage = &tokens["usage"];
    assert_eq!((&usage["type"], &usage["input_token_details"]["text_tokens"]), (&json!("tokens"), &json!(3)));
    assert_eq!(
        usage["total_tokens"].as_u64(),
        Some(usage["input_tokens"].as_u64().unwrap() + usage["output_tokens"].as_u64().unwrap())
    );
    let whisper = |format: &'static str| [("model", "whisper-1"), ("response_format", format)];
    assert_eq!(spoken(&sim, &whisper("text")).await.text, format!("{words}\n"));
    assert!(spoken(&sim, &whisper("srt")).await.text.starts_with("1\n00:00:0"));
    assert!(spoken(&sim, &whisper("vtt")).await.text.starts_with("WEBVTT\n\n00:00:0"));
    let mut fields = whisper("verbose_json").to_vec();
    fields.extend([("timestamp_granularities[]", "word"), ("timestamp_granularities[]", "segment")]);
    let verbose = spoken(&sim, &fields).await.json();
    assert_eq!(verbose["words"].as_array().unwrap().len(), words.split(' ').count());
    assert!(verbose["segments"][0]["end"].as_f64().unwrap() <= verbose["duration"].as_f64().unwrap(), "{verbose}");
    let stats = sim.stats().text;
    let ms = u64::try_from(Duration::from_secs_f64(seconds).as_millis()).unwrap();
    assert_eq!((stats.heard_ms, stats.billed_ms), (6 * ms, 5 * ms));
    assert_eq!(stats.heard_tokens, usage["input_tokens"].as_u64().unwrap());
    assert_eq!((stats.requests["transcriptions"], stats.answered["transcriptions"], stats.paid_again()), (6, 6, 0));
}

#[tokio::test]
async fn every_usual_format_is_heard() {
    let sim = sim(SimConfig::instant(), "").await;
    for file in ["assets/hello.wav", "assets/reply.flac"] {
        let form = upload(file, std::fs::read(file).unwrap(), &[("model", "gpt-transcribe")]);
        let answer = transcribe(&sim, form).await;
        assert!(answer.json()["text"].as_str().is_some_and(|text| !text.is_empty()), "{file}: {}", answer.text);
    }
}

#[tokio::test]
async fn a_session_writes_down_the_same_words() {
    let sim = sim(SimConfig::instant(), "").await;
    let words = spoken(&sim, &[("model", "gpt-transcribe")]).await.json()["text"].as_str().unwrap().to_owned();
    let knock = Knock { key: Some(KEY.into()), intent: Some("transcription".into()), ..Knock::default() };
    let mut client = Client::with(SimConfig::instant(), Faults::default(), &knock);
    let input = json!({"transcription": {"model": "gpt-transcribe"}, "turn_detection": null});
    client.send(json!({"type": "session.update", "session": {"type": "transcription", "audio": {"input": input}}}));
    client.append(&hello());
    client.send(json!({"type": "input_audio_buffer.commit"}));
    client.wait(5_000);
    let events = client.events();
    let done = events.iter().find(|event| event["type"] == "conversation.item.input_audio_transcription.completed");
    assert_eq!(done.unwrap_or_else(|| panic!("{events:?}"))["transcript"], words);
}

#[tokio::test]
async fn a_transcript_is_streamed_word_by_word() {
    let sim = sim(SimConfig::instant(), "").await;
    let answer = spoken(&sim, &[("model", "gpt-4o-transcribe"), ("stream", "true"), ("include[]", "logprobs")]).await;
    assert_eq!(answer.header("content-type"), "text/event-stream; charset=utf-8");
    assert_eq!(answer.kinds(), ["transcript.text.delta", "transcript.text.done"]);
    let events = answer.events();
    let (done, deltas) = events.split_last().unwrap();
    let said: String = deltas.iter().map(|event| event["delta"].as_str().unwrap()).collect();
    assert_eq!(done["text"], said);
    assert!(done["usage"]["total_tokens"].as_u64().unwrap() > 0 && deltas[0]["logprobs"][0]["token"].is_string());
}

#[tokio::test]
async fn uploads_are_refused_as_the_service_does() {
    let text = TextConfig { max_file_bytes: 300_000, max_audio_s: 1, ..TextConfig::instant() };
    let sim = sim(SimConfig { text, ..SimConfig::instant() }, "").await;
    let wav = std::fs::read("assets/hello.wav").unwrap();
    let short = wav[..44 + 4_000].to_vec();
    for (name, file, fields, status, code, says) in [
        ("a.wav", wav.clone(), vec![], 400, "missing_required_parameter", "'model'"),
        ("a.wav", wav.clone(), vec![("model", "gpt-5.6-luna")], 404, "model_not_found", "does not exist"),
        ("a.wav", wav.clone(), vec![("model", "gpt-live-transcribe")], 400, "invalid_value", "not supported"),
        ("a.wav", wav.clone(), vec![("model", "whisper-1"), ("response_format", "xml")], 400, "invalid_value", "'xml'"),
        (
            "a.wav",
            wav.clone(),
            vec![("model", "gpt-4o-transcribe"), ("response_format", "srt")],
            400,
            "unsupported_value",
            "'srt'",
        ),
        (
            "a.wav",
            wav.clone(),
            vec![("model", "whisper-1"), ("language", "english")],
            400,
            "invalid_language_format",
            "ISO-639-1",
        ),
        ("a.wav", wav.clone(), vec![("model", "whisper-1"), ("bogus", "1")], 400, "unknown_parameter", "'bogus'"),
        ("a.wav", wav.clone(), vec![("model", "gpt-4o-transcribe")], 400, "invalid_value", "is longer than 1 seconds"),
        ("a.txt", wav.clone(), vec![("model", "whisper-1")], 400, "", "Invalid file format"),
        (
            "a.wav",
            b"not audio at all".to_vec(),
            vec![("model", "whisper-1")],
            400,
            "invalid_value",
            "corrupted or unsupported",
        ),
        ("a.wav", Vec::new(), vec![("model", "whisper-1")], 400, "invalid_value", "corrupted or unsupported"),
        ("a.wav", short, vec![("model", "whisper-1")], 400, "audio_too_short", "0.1 seconds"),
        ("a.wav", vec![0; 300_001], vec![("model", "whisper-1")], 413, "", "(300001 bytes read)"),
    ] {
        let answer = transcribe(&sim, upload(name, file, &fields)).await;
        let message = answer.json()["error"]["message"].as_str().unwrap().to_owned();
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{fields:?}: {message}");
        assert!(message.contains(says), "{fields:?}: {message}");
    }
    let nothing = transcribe(&sim, Form::new().text("model", "whisper-1")).await;
    assert_eq!((nothing.status, nothing.code().as_str()), (400, "missing_required_parameter"));
    let stats = sim.stats();
    assert_eq!((stats.text.heard_ms, stats.text.refused[&413], stats.rest_refused[&413]), (0, 1, 1));
}

#[tokio::test]
async fn limits_are_those_of_replies_and_every_answer_tells_how_they_stand() {
    let limits = vec![Limits { model: "gpt-*".into(), requests: 2, tokens: 10_000, ..Limits::default() }];
    let sim = sim(SimConfig { limits, ..SimConfig::instant() }, "").await;
    let first = respond(&sim, json!({"input": "hello", "max_output_tokens": 4_000})).await;
    assert_eq!((first.status, first.header("x-ratelimit-limit-requests")), (200, "2"));
    assert_eq!(first.header("x-ratelimit-remaining-requests"), "1");
    assert_eq!(first.header("x-ratelimit-limit-tokens"), "10000");
    let used = first.json()["usage"]["total_tokens"].as_f64().unwrap();
    let left: f64 = first.header("x-ratelimit-remaining-tokens").parse().unwrap();
    assert!((left - (10_000.0 - used)).abs() <= 10.0, "what was not used is given back: {left} {used}");
    assert!(first.header("x-ratelimit-reset-requests").ends_with('s'));
    assert_eq!(respond(&sim, json!({"input": "hello"})).await.status, 200);
    let third = spoken(&sim, &[("model", "gpt-4o-transcribe")]).await;
    assert_eq!((third.status, third.code().as_str()), (429, "rate_limit_exceeded"), "{}", third.text);
    assert_eq!(third.json()["error"]["type"], "requests");
    let wait: u64 = third.header("retry-after-ms").parse().unwrap();
    assert!((1_000..=30_000).contains(&wait), "{wait}");
    assert_eq!(third.header("retry-after"), wait.div_ceil(1_000).to_string());
    assert_eq!(third.header("x-ratelimit-remaining-requests"), "0");
    let large = respond(&sim, json!({"input": "hello", "max_output_tokens": 20_000})).await;
    assert_eq!(large.status, 429, "{}", large.text);
    let stats = sim.stats();
    assert_eq!((stats.limited["requests"], stats.text.refused[&429]), (2, 2));
    assert_eq!(stats.text.heard_ms, 0, "what is refused is not paid");
    let other =
        Answer::of(http().post(format!("{}/responses", sim.base_url())).bearer_auth("sk-bad-1").json(&json!({}))).await;
    assert_eq!((other.status, other.code().as_str()), (401, "invalid_api_key"));
    let poor =
        Answer::of(http().post(format!("{}/responses", sim.base_url())).bearer_auth("sk-no-credit").json(&json!({})))
            .await;
    assert_eq!((poor.status, poor.code().as_str()), (429, "insufficient_quota"));
}

#[tokio::test]
async fn a_text_is_answered_and_can_be_read_again() {
    let sim = sim(SimConfig::instant(), "").await;
    let answer = respond(&sim, json!({"input": "where is my parcel?", "metadata": {"call": "7"}})).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let response = answer.json();
    assert_eq!((&response["status"], &response["object"]), (&json!("completed"), &json!("response")));
    assert!(text_of(&response).contains("4 words"), "{response}");
    assert_eq!(response["usage"]["output_tokens_details"]["reasoning_tokens"], 0);
    let id = response["id"].as_str().unwrap();
    assert_eq!(get(&sim, &format!("/responses/{id}")).await.json(), response);
    let request = |key: &str| http().delete(format!("{}/responses/{id}", sim.base_url())).bearer_auth(key);
    assert_eq!(Answer::of(request("sk-other")).await.status, 404, "another account's");
    assert_eq!(Answer::of(request(KEY)).await.json()["deleted"], true);
    assert_eq!(get(&sim, &format!("/responses/{id}")).await.status, 404);
    let stats = sim.stats().text;
    assert_eq!(
        (stats.requests["responses"], stats.input_tokens),
        (1, response["usage"]["input_tokens"].as_u64().unwrap())
    );
    assert_eq!(stats.output_tokens, response["usage"]["output_tokens"].as_u64().unwrap());
}

#[tokio::test]
async fn a_stream_has_all_its_events_in_order() {
    let sim = sim(SimConfig::instant(), "").await;
    let answer = respond(&sim, json!({"input": "hello there", "stream": true, "reasoning": {"effort": "low"}})).await;
    assert_eq!(
        answer.kinds(),
        [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.output_item.done",
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.delta",
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.completed",
        ]
    );
    let events = answer.events();
    assert!(events.iter().enumerate().all(|(n, event)| event["sequence_number"] == n));
    let said: String = events.iter().filter_map(|event| event["delta"].as_str()).collect();
    let last = &events.last().unwrap()["response"];
    assert_eq!(
        (said.as_str(), last["usage"]["output_tokens_details"]["reasoning_tokens"].as_u64()),
        (text_of(last), Some(64))
    );
    let tools = json!([{"type": "function", "name": "look_up", "parameters": {"type": "object", "properties": {}}}]);
    let call = respond(&sim, json!({"input": "call look_up {\"order\": 7}", "tools": tools, "stream": true})).await;
    let kinds = call.kinds();
    assert!(kinds.contains(&"response.function_call_arguments.delta".to_owned()), "{kinds:?}");
    let item = call.events().pop().unwrap()["response"]["output"][0].clone();
    assert_eq!((&item["name"], &item["arguments"]), (&json!("look_up"), &json!("{\"order\": 7}")));
}

#[tokio::test]
async fn requests_are_refused_as_the_service_does() {
    let sim = sim(
        SimConfig { text: TextConfig { context_tokens: 100, ..TextConfig::instant() }, ..SimConfig::instant() },
        "",
    )
    .await;
    let mut loose = shape();
    loose["format"]["schema"]["additionalProperties"] = json!(true);
    for (body, status, code, says) in [
        (json!({}), 400, "missing_required_parameter", "'input'"),
        (json!({"input": "x", "bogus": 1}), 400, "unknown_parameter", "'bogus'"),
        (json!({"input": 1}), 400, "invalid_type", "'input'"),
        (json!({"input": "x", "max_output_tokens": 1}), 400, "integer_below_min_value", ">= 16"),
        (json!({"input": "x", "text": loose}), 400, "invalid_json_schema", "Invalid schema for response_format 'call'"),
        (json!({"input": "x", "text": {"format": {"type": "json_object"}}}), 400, "", "the word 'json'"),
        (json!({"input": "x", "previous_response_id": "resp_0"}), 400, "previous_response_not_found", "'resp_0'"),
        (json!({"input": "x".repeat(401)}), 400, "context_length_exceeded", "context window"),
    ] {
        let answer = respond(&sim, body.clone()).await;
        let message = answer.json()["error"]["message"].as_str().unwrap().to_owned();
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{body}: {message}");
        assert!(message.contains(says), "{body}: {message}");
    }
    let unknown = post(&sim, "/responses", &json!({"model": "gpt-realtime-2.1", "input": "x"})).await;
    assert_eq!((unknown.status, unknown.code().as_str()), (404, "model_not_found"));
    let request = http().post(format!("{}/responses", sim.base_url())).bearer_auth(KEY).body("{");
    assert_eq!(Answer::of(request).await.status, 400);
}

#[tokio::test]
async fn json_fits_its_schema_and_a_cut_answer_is_gone_on_with() {
    let sim = sim(SimConfig::instant(), "").await;
    let input = "the parcel for order seven arrived broken on monday and the caller wants all of the money back";
    let whole = respond(&sim, json!({"input": input, "text": shape()})).await.json();
    let fields: Value = serde_json::from_str(text_of(&whole)).unwrap();
    assert!(input.contains(fields["reason"].as_str().unwrap()) && fields["urgent"].is_boolean(), "{fields}");
    let whole = respond(&sim, json!({"input": input})).await.json();
    let first = respond(&sim, json!({"input": input, "max_output_tokens": 16})).await.json();
    assert_eq!(
        (&first["status"], &first["incomplete_details"]["reason"]),
        (&json!("incomplete"), &json!("max_output_tokens"))
    );
    let more = json!({"input": "go on", "previous_response_id": first["id"], "stream": true});
    let more = respond(&sim, more).await;
    assert_eq!(more.kinds().last().unwrap(), "response.completed");
    let more = more.events().pop().unwrap()["response"].clone();
    assert_eq!([text_of(&first), text_of(&more)].concat(), text_of(&whole));
    let carried = first["usage"]["total_tokens"].as_u64().unwrap();
    assert!(more["usage"]["input_tokens"].as_u64().unwrap() > carried, "what was before is read again");
}

#[tokio::test]
async fn answers_go_wrong_as_they_are_told_to() {
    let faults = r#"
        fault = [
            { kind = "answer", as = "malformed", session = 1 },
            { kind = "answer", as = "misfit", session = 2 },
            { kind = "answer", as = "refusal", message = "No.", session = 3 },
            { kind = "answer", as = "failed", session = 4 },
            { kind = "answer", as = "incomplete", session = 5 },
            { kind = "answer", as = "garbage", session = 6 },
            { kind = "break_stream", session = 7 },
            { kind = "refuse", door = "responses", status = 503, retry_after_s = 3, session = 8 },
            { kind = "refuse", door = "transcriptions", status = 500, every = 2 },
        ]"#;
    let sim = sim(SimConfig::instant(), faults).await;
    let ask = || respond(&sim, json!({"input": "json, please: a b c d e f g", "text": shape()}));
    assert!(serde_json::from_str::<Value>(text_of(&ask().await.json())).is_err());
    let misfit: Value = serde_json::from_str(text_of(&ask().await.json())).unwrap();
    assert!(misfit.get("reason").is_none(), "{misfit}");
    let refusal = ask().await.json();
    assert_eq!(refusal["output"][0]["content"][0], json!({"type": "refusal", "refusal": "No."}));
    let failed = ask().await.json();
    assert_eq!((&failed["status"], &failed["error"]["code"]), (&json!("failed"), &json!("server_error")));
    assert_eq!(ask().await.json()["status"], "incomplete");
    let garbage = ask().await;
    assert!(garbage.status == 200 && garbage.text.starts_with("<html>"), "{garbage:?}");
    let broken = ask().await;
    assert!(!broken.whole && serde_json::from_str::<Value>(&broken.text).is_err(), "{broken:?}");
    let refused = ask().await;
    assert_eq!((refused.status, refused.header("retry-after")), (503, "3"));
    assert!(refused.headers.contains_key("x-ratelimit-remaining-tokens"));
    let mut statuses = Vec::new();
    for _ in 0..4 {
        statuses.push(spoken(&sim, &[("model", "whisper-1")]).await.status);
    }
    assert_eq!(statuses, [200, 500, 200, 500]);
    let stats = sim.stats();
    assert_eq!((stats.faults["answer"], stats.faults["break_stream"], stats.faults["refuse"]), (6, 1, 3));
    assert_eq!(stats.text.paid_again(), 5 + 1, "the failed and the refused one cost nothing; two recordings are one");
}

#[tokio::test]
async fn streams_break_and_hold_unknown_events() {
    let faults = r#"
        fault = [
            { kind = "break_stream", after_events = 4, session = 1 },
            { kind = "break_stream", after_events = 9999, clean = true, session = 2 },
            { kind = "answer", as = "unknown_events", session = 3 },
            { kind = "slow_stream", pause_ms = 15, session = 4 },
            { kind = "answer", as = "refusal", session = 5 },
        ]"#;
    let sim = sim(SimConfig::instant(), faults).await;
    let ask = || respond(&sim, json!({"input": "hello", "stream": true}));
    let cut = ask().await;
    assert_eq!((cut.events().len(), cut.whole), (4, false));
    let ended = ask().await;
    assert!(ended.whole && ended.kinds().last().unwrap() == "response.output_item.done", "{:?}", ended.kinds());
    let unknown = ask().await;
    assert!(unknown.kinds().contains(&"response.something_new".to_owned()));
    let began = tokio::time::Instant::now();
    let slow = ask().await;
    assert!(began.elapsed() >= Duration::from_millis(15) * u32::try_from(slow.events().len()).unwrap());
    let kinds = ask().await.kinds();
    assert!(kinds.contains(&"response.refusal.done".to_owned()), "{kinds:?}");
}

#[tokio::test]
async fn repeated_requests_are_paid_again_and_counted() {
    let sim = sim(SimConfig::instant(), "").await;
    for (key, text) in [("a", "one"), ("a", "one"), ("b", "two")] {
        let request =
            http().post(format!("{}/responses", sim.base_url())).bearer_auth(KEY).header("idempotency-key", key);
        let answer = Answer::of(request.json(&json!({"model": "gpt-5.6-luna", "input": text}))).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
    }
    let stats = sim.stats().text;
    assert_eq!((stats.paid.len(), stats.paid_again(), stats.idempotency_keys["a"]), (2, 1, 2));
}

fn line(id: &str, input: &str) -> String {
    let body = json!({"model": "gpt-5.6-luna", "input": input, "max_output_tokens": 4_000});
    json!({"custom_id": id, "method": "POST", "url": "/v1/responses", "body": body}).to_string()
}

/// Uploads lines and begins a batch of them.
async fn batch(sim: &Sim, lines: &[String]) -> Value {
    let part = Part::bytes(lines.join("\n").into_bytes()).file_name("lines.jsonl");
    let form = Form::new().text("purpose", "batch").part("file", part);
    let file =
        Answer::of(http().post(format!("{}/files", sim.base_url())).bearer_auth(KEY).multipart(form)).await.json();
    let body = json!({"input_file_id": file["id"], "endpoint": "/v1/responses", "completion_window": "24h"});
    let batch = post(sim, "/batches", &body).await;
    assert_eq!(batch.status, 200, "{}", batch.text);
    batch.json()
}

async fn look(sim: &Sim, batch: &Value) -> Value {
    get(sim, &format!("/batches/{}", batch["id"].as_str().unwrap())).await.json()
}

async fn lines_of(sim: &Sim, file: &Value) -> Vec<Value> {
    let content = get(sim, &format!("/files/{}/content", file.as_str().unwrap())).await.text;
    content.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn ids(lines: &[Value]) -> Vec<&str> {
    lines.iter().map(|line| line["custom_id"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_batchs_lines_come_in_no_order_and_one_may_be_lost() {
    let names: Vec<String> = (0..20).map(|n| n.to_string()).collect();
    let lines: Vec<String> = names.iter().map(|name| line(name, "one")).collect();
    let fault = "[[fault]]\nkind = \"answer\"\nas = \"lost\"\ndoor = \"batch_lines\"\nsession = 3";
    let mut orders = Vec::new();
    for (seed, faults) in [(1, ""), (1, fault), (1, ""), (2, "")] {
        let sim = sim(SimConfig { seed, ..SimConfig::instant() }, faults).await;
        let done = look(&sim, &batch(&sim, &lines).await).await;
        let output = lines_of(&sim, &done["output_file_id"]).await;
        let lost = usize::from(!faults.is_empty());
        assert_eq!(sim.stats().faults.get("answer").copied().unwrap_or_default(), lost as u64);
        assert_eq!(done["request_counts"], json!({"total": 20, "completed": 20 - lost, "failed": 0}));
        assert_eq!((output.len(), &done["error_file_id"]), (20 - lost, &Value::Null));
        assert_eq!(ids(&output).contains(&"2"), lost == 0, "the third one");
        let paid: u64 =
            output.iter().map(|line| line["response"]["body"]["usage"]["total_tokens"].as_u64().unwrap()).sum();
        assert_eq!(done["usage"]["total_tokens"], paid);
        orders.push(ids(&output).join(","));
    }
    assert_ne!(orders[0], names.join(","));
    assert!(orders[0] == orders[2] && orders[0] != orders[3], "the dice's: {orders:?}");
}

#[tokio::test]
async fn a_batchs_usage_is_that_of_its_lines() {
    let sim = sim(SimConfig::instant(), "").await;
    let long = json!({"model": "gpt-5.6-luna", "input": "word ".repeat(2_000)});
    let first = post(&sim, "/responses", &long).await.json();
    let body = json!({"model": "gpt-5.6-luna", "input": "go on", "previous_response_id": first["id"],
        "reasoning": {"effort": "high"}});
    let line = json!({"custom_id": "a", "method": "POST", "url": "/v1/responses", "body": body}).to_string();
    let done = look(&sim, &batch(&sim, &[line]).await).await;
    let output = lines_of(&sim, &done["output_file_id"]).await;
    for part in ["/input_tokens", "/input_tokens_details/cached_tokens", "/output_tokens_details/reasoning_tokens"] {
        let count = output[0]["response"]["body"]["usage"].pointer(part).unwrap();
        assert!(count.as_u64() > Some(0), "{part}: {output:?}");
        assert_eq!(done["usage"].pointer(part).unwrap(), count, "{part}");
    }
}

#[tokio::test]
async fn a_batch_is_worked_off_line_by_line_at_a_price_of_its_own() {
    let faults = "[[fault]]\nkind = \"refuse\"\ndoor = \"batch_lines\"\nstatus = 500\nsession = 2";
    let sim = sim(SimConfig::instant(), faults).await;
    let bad = json!({"custom_id": "d", "method": "POST", "url": "/v1/responses", "body": {"model": "gpt-5.6-luna"}});
    let begun = batch(&sim, &[line("a", "one"), line("b", "two"), line("c", "three"), bad.to_string()]).await;
    assert_eq!(begun["status"], "validating");
    let done = look(&sim, &begun).await;
    assert_eq!(done["status"], "completed", "{done}");
    assert_eq!(done["request_counts"], json!({"total": 4, "completed": 2, "failed": 2}));
    let output = lines_of(&sim, &done["output_file_id"]).await;
    assert_eq!(HashSet::from_iter(ids(&output)), HashSet::from(["a", "c"]));
    assert!(text_of(&output[0]["response"]["body"]).contains("1 words"), "{output:?}");
    let errors = lines_of(&sim, &done["error_file_id"]).await;
    let codes: HashSet<_> = errors.iter().map(|line| line["response"]["status_code"].as_u64().unwrap()).collect();
    assert_eq!(codes, HashSet::from([500, 400]));
    let stats = sim.stats().text;
    let paid: u64 = output.iter().map(|line| line["response"]["body"]["usage"]["total_tokens"].as_u64().unwrap()).sum();
    assert_eq!((stats.batch_input_tokens + stats.batch_output_tokens, stats.input_tokens), (paid, 0));
    assert_eq!(look(&sim, &begun).await, done, "looking changes nothing");
    assert_eq!(get(&sim, "/batches").await.json()["data"][0]["id"], done["id"]);
    let over = post(&sim, &format!("/batches/{}/cancel", done["id"].as_str().unwrap()), &json!({})).await;
    assert_eq!(over.status, 409);
}

#[tokio::test]
async fn batches_are_cancelled_and_expire_with_what_is_done() {
    let text = TextConfig { batch_ms: 3_600_000, ..TextConfig::instant() };
    let faults = "[[fault]]\nkind = \"answer\"\nas = \"failed\"\ndoor = \"batches\"\nsession = 4";
    let slow = sim(SimConfig { text, ..SimConfig::instant() }, faults).await;
    let begun = batch(&slow, &[line("a", "one"), line("b", "two")]).await;
    assert_eq!(look(&slow, &begun).await["status"], "in_progress");
    let path = format!("/batches/{}/cancel", begun["id"].as_str().unwrap());
    assert_eq!(post(&slow, &path, &json!({})).await.json()["status"], "cancelled");
    assert_eq!(look(&slow, &batch(&slow, &[line("a", "one")]).await).await["status"], "failed", "as it is scripted");
    assert_eq!(slow.stats().text.batch_input_tokens, 0);
    let text = TextConfig { batch_ms: 1, batch_expires_ms: 0, ..TextConfig::instant() };
    let late = sim(SimConfig { text, ..SimConfig::instant() }, "").await;
    let begun = batch(&late, &[line("a", "one"), line("b", "two")]).await;
    let expired = look(&late, &begun).await;
    assert_eq!(expired["status"], "expired", "{expired}");
    let errors = lines_of(&late, &expired["error_file_id"]).await;
    assert_eq!((errors.len(), &errors[0]["error"]["code"]), (2, &json!("batch_expired")));
}

#[tokio::test]
async fn batches_that_are_no_good_fail() {
    let text = TextConfig { batch_tokens: 70, batch_ms: 3_600_000, ..TextConfig::instant() };
    let sim = sim(SimConfig { text, ..SimConfig::instant() }, "").await;
    for (lines, code) in [
        (vec!["{".to_owned()], "invalid_json_line"),
        (vec![], "empty_file"),
        (vec!["{}".to_owned()], "missing_required_parameter"),
        (vec![line("a", "x"), line("a", "y")], "duplicate_custom_id"),
        (vec![line("a", "x").replace("/v1/responses", "/v1/embeddings")], "mismatched_url"),
        (vec![line("a", "x"), line("b", "x").replace("gpt-5.6-luna", "gpt-5.6-sol")], "mismatched_model"),
        (vec![line("a", &"long ".repeat(100))], "token_limit_exceeded"),
    ] {
        let begun = batch(&sim, &lines).await;
        let failed = look(&sim, &begun).await;
        assert_eq!(
            (&failed["status"], &failed["errors"]["data"][0]["code"]),
            (&json!("failed"), &json!(code)),
            "{failed}"
        );
    }
    let first = batch(&sim, &[line("a", "x"), line("b", "y")]).await;
    assert_eq!(look(&sim, &first).await["status"], "in_progress");
    let second = batch(&sim, &[line("c", "x"), line("d", "y"), line("e", "z")]).await;
    assert_eq!(look(&sim, &second).await["status"], "failed", "the queue is full");
}
