//! Tools that the relay runs itself: what a webhook answers is spoken, and no client has to do with it.
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use aws_lc_rs::hmac;
use axum::{Json, Router, body::Bytes, extract::State, http::HeaderMap, routing::post};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinSet, time};
use voxrelay::{
    config::{Config, ToolConfig, WebhookConfig},
    wall::unix_now,
};

use crate::{
    canary,
    support::{Client, Got, Rig},
};

const SECRET: &str = "whsec_c2VjcmV0LW9mLXRoZS10b29sLXNlcnZlcg==";

type Came = Arc<Mutex<Vec<(HeaderMap, Value)>>>;

/// A tool's own server, which takes so long. Whoever signs wrongly is not heard.
pub(crate) struct Tools {
    url: String,
    came: Came,
    _tasks: JoinSet<()>,
}

impl Tools {
    pub(crate) async fn new(takes: Duration) -> Self {
        canary::plant(SECRET);
        canary::plant("c2VjcmV0LW9mLXRoZS10b29sLXNlcnZlcg==");
        let look_up = move |State(came): State<Came>, headers: HeaderMap, body: Bytes| async move {
            verify(&headers, &body);
            let body = serde_json::from_slice(&body).unwrap();
            came.lock().unwrap().push((headers, body));
            time::sleep(takes).await;
            Json(json!({"state": "it is on its way"}))
        };
        let came = Came::default();
        let router = Router::new().route("/look_up", post(look_up)).with_state(came.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/look_up", listener.local_addr().unwrap());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, came, _tasks: tasks }
    }

    /// Every request so far.
    pub(crate) fn came(&self) -> Vec<(HeaderMap, Value)> {
        self.came.lock().unwrap().clone()
    }

    pub(crate) fn configure(&self, config: &mut Config, filler: Option<&str>) {
        let mut http: WebhookConfig =
            toml::from_str(&format!("url = \"{}\"\nsecret = \"{SECRET}\"", self.url)).unwrap();
        (http.allow_private, http.filler, http.filler_after_ms) = (true, filler.map(str::to_owned), 300);
        let tool = |name: &str, http| ToolConfig {
            builtin: None,
            targets: Default::default(),
            expert: None,
            name: name.into(),
            description: String::new(),
            parameters: json!({"type": "object"}),
            http,
        };
        let agent = config.agents.get_mut("default").unwrap();
        agent.tools = vec![tool("look_up", Some(http)), tool("show", None)];
    }
}

/// As standardwebhooks.com wants it: over the id, the time and the body.
fn verify(headers: &HeaderMap, body: &[u8]) {
    let of = |name: &str| headers[name].to_str().unwrap();
    assert!(unix_now().abs_diff(of("webhook-timestamp").parse().unwrap()) < 60);
    let key = STANDARD.decode(SECRET.strip_prefix("whsec_").unwrap()).unwrap();
    let signed = [of("webhook-id").as_bytes(), of("webhook-timestamp").as_bytes(), body].join(&b'.');
    let tag = STANDARD.decode(of("webhook-signature").strip_prefix("v1,").unwrap()).unwrap();
    hmac::verify(&hmac::Key::new(hmac::HMAC_SHA256, &key), &signed, &tag).unwrap();
}

/// The words of the next reply that has some, and how many replies have ended by then.
async fn words(client: &mut Client) -> (String, usize) {
    let mut ended = 0;
    loop {
        let Got::Json(message) = client.next().await else { continue };
        match message["type"].as_str() {
            Some("reply_ended") => ended += 1,
            Some("transcript") if message["final"] == true && message["role"] == "assistant" => {
                return (message["text"].as_str().unwrap().to_owned(), ended);
            }
            Some("error") => panic!("{message}"),
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_webhook_answers_is_spoken_with_what_the_client_answers_in_the_same_turn() {
    let tools = Tools::new(Duration::ZERO).await;
    let rig = Rig::configured(|config| tools.configure(config, None)).await;
    let mut client = rig.call("pace=fast").await;
    client.json(r#"{"type":"text","text":"call look_up {\"order\":7} call show {}"}"#).await;
    let notice = client.until("notice").await;
    assert_eq!((notice["code"].as_str(), notice["tool"].as_str()), (Some("tool_running"), Some("look_up")));
    let call = client.until("tool_call").await;
    assert_eq!(call["name"], "show", "the other one is none of the client's");
    let theirs = json!({"type": "tool_result", "call_id": notice["call_id"], "output": "x"});
    client.json(&theirs.to_string()).await;
    assert_eq!(client.until("error").await["error"]["code"], "unknown_call");
    client.json(&json!({"type": "tool_result", "call_id": call["call_id"], "output": "shown"}).to_string()).await;
    let (words, _) = words(&mut client).await;
    assert!(words.contains("it is on its way") && words.contains("shown"), "one answer for both: {words}");
    let ended = client.until("reply_ended").await;
    assert_eq!(ended["status"], "completed");
    assert!(ended["audio_ms"].as_u64().unwrap() > 1_000);
    let (_, body) = tools.came()[0].clone();
    assert_eq!((body["tool"].as_str(), &body["arguments"]), (Some("look_up"), &json!({"order": 7})));
    assert_eq!((body["agent"].as_str(), &body["call_id"]), (Some("default"), &notice["call_id"]));
    assert_eq!(tools.came().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_who_waits_hears_so() {
    let tools = Tools::new(Duration::from_millis(2_500)).await;
    let rig = Rig::configured(|config| tools.configure(config, Some("One moment, I am looking that up."))).await;
    let mut client = rig.call("pace=fast").await;
    client.json(r#"{"type":"text","text":"call look_up {}"}"#).await;
    let (filler, before) = words(&mut client).await;
    assert!(!filler.contains("it is on its way") && before == 1, "{filler}");
    let (answer, between) = words(&mut client).await;
    assert!(answer.contains("it is on its way"), "{answer}");
    assert!(between <= 1 && tools.came().len() == 1);
    assert_eq!(client.until("reply_ended").await["status"], "completed");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_conversation_is_the_clients_no_tool_of_the_relays_is_offered() {
    let tools = Tools::new(Duration::ZERO).await;
    let rig = Rig::configured(|config| {
        tools.configure(config, None);
        let agent = config.agents.get_mut("default").unwrap();
        agent.policy.tools = voxrelay::config::Rule::Force;
        agent.tools.push(tool("builtin = \"hang_up\""));
    })
    .await;
    let mut client = rig.dial("/v1/realtime", "any").await.unwrap();
    client.until("session.created").await;
    client.json(r#"{"type":"session.update","session":{"type":"realtime"}}"#).await;
    let names = client.until("session.updated").await["session"]["tools"].clone();
    let names: Vec<_> = names.as_array().unwrap().iter().map(|tool| tool["name"].clone()).collect();
    assert_eq!(names, ["show"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_runs_for_a_call_that_is_over() {
    let tools = Tools::new(Duration::from_secs(60)).await;
    let rig = Rig::configured(|config| tools.configure(config, None)).await;
    let mut client = rig.call("pace=fast").await;
    client.json(r#"{"type":"text","text":"call look_up {}"}"#).await;
    client.until("notice").await;
    client.json(r#"{"type":"close"}"#).await;
    let (error, close) = client.end().await;
    assert_eq!((error, close), (None, 1000));
    let began = time::Instant::now();
    rig.relay.drain(std::future::pending()).await;
    assert!(began.elapsed() < Duration::from_secs(5), "the call is waited for by nobody");
}

/// An agent with everything that can be done with a line.
fn line_tools(config: &mut Config) {
    let agent = config.agents.get_mut("default").unwrap();
    agent.hold_audio = Some("assets/hello.wav".into());
    agent.tools = ["hang_up", "send_dtmf", "hold"].map(|name| tool(&format!("builtin = \"{name}\""))).into();
    agent.tools.push(tool("builtin = \"transfer\"\ntargets = { support = \"+15550123\" }"));
}

pub(crate) fn tool(text: &str) -> ToolConfig {
    toml::from_str(text).unwrap()
}

/// All audio up to the end of so many replies.
async fn audio_of(client: &mut Client, replies: usize) -> Vec<Vec<u8>> {
    let mut all = vec![Vec::new()];
    loop {
        match client.next().await {
            Got::Audio(frame) => all.last_mut().unwrap().extend(frame),
            Got::Json(message) if message["type"] == "reply_ended" => {
                if all.len() == replies {
                    return all;
                }
                all.push(Vec::new());
            }
            Got::Json(message) => assert_ne!(message["type"], "error", "{message}"),
            end => panic!("{end:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_hangs_up() {
    let rig = Rig::configured(line_tools).await;
    let mut client = rig.call("pace=fast").await;
    client.json(r#"{"type":"text","text":"call hang_up {}"}"#).await;
    let (error, close) = client.end().await;
    assert_eq!((error, close), (None, 1000));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_presses_keys_and_puts_on_hold_and_the_model_goes_on() {
    let rig = Rig::configured(line_tools).await;
    let mut client = rig.call("pace=fast").await;
    client.json(r#"{"type":"text","text":"call send_dtmf {\"keys\":\"12#\"}"}"#).await;
    // The reply that called, the keys, and the answer to their result.
    let said = audio_of(&mut client, 3).await;
    let keys = voxrelay::audio::dtmf::sound("12#", voxrelay::audio::Format::PCM_24K);
    assert!(said[1].starts_with(&keys) && said[1].len() - keys.len() < 960, "{} bytes", said[1].len());
    assert!(said[2].len() > 48_000);
    client.json(r#"{"type":"text","text":"call hold {\"seconds\":1}"}"#).await;
    let said = audio_of(&mut client, 3).await;
    assert!(said[1] == crate::support::clip("assets/hello.wav")[..48_000], "one second of the agent's recording");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_there_is_no_telephone_nothing_is_transferred_and_the_model_says_so() {
    let rig = Rig::configured(line_tools).await;
    let mut client = rig.call("pace=fast").await;
    client.json(r#"{"type":"text","text":"call transfer {\"to\":\"support\"}"}"#).await;
    let (said, _) = words(&mut client).await;
    assert!(said.contains("not by telephone"), "{said}");
}
