//! The runner against real sockets, whose own counters say what came.
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::{
    Router,
    body::{Body, Bytes},
    http::{HeaderMap, Response, StatusCode},
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use futures_util::{StreamExt as _, stream};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::*;
use crate::config::{Secret, ToolConfig, WebhookConfig};

const SECRET: &str = "0123456789abcdef";
/// Generous: these machines are busy.
const PATIENCE: Duration = Duration::from_secs(20);

type Made = dyn Fn() -> Response<Body> + Send + Sync;
type Answer = dyn Fn(usize) -> Response<Body> + Send + Sync;

/// A server that answers each request by its number, from 0.
struct Server {
    addr: SocketAddr,
    came: Arc<Mutex<Vec<(HeaderMap, Bytes)>>>,
    _tasks: JoinSet<()>,
}

impl Server {
    async fn new(answer: impl Fn(usize) -> Response<Body> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (came, answer): (Arc<Mutex<Vec<_>>>, Arc<Answer>) = (Arc::default(), Arc::new(answer));
        let kept = came.clone();
        let router = Router::new().fallback(move |headers: HeaderMap, body: Bytes| {
            let number = {
                let mut came = kept.lock().unwrap();
                came.push((headers, body));
                came.len() - 1
            };
            let answer = answer(number);
            async move { answer }
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { addr, came, _tasks: tasks }
    }

    fn count(&self) -> usize {
        self.came.lock().unwrap().len()
    }

    fn url(&self) -> String {
        format!("http://{}/look_up", self.addr)
    }
}

fn says(status: u16, kind: &str, body: impl Into<Body>) -> Response<Body> {
    Response::builder().status(status).header("content-type", kind).body(body.into()).unwrap()
}

fn http(url: &str) -> WebhookConfig {
    toml::from_str(&format!("url = \"{url}\"\nsecret = \"{SECRET}\"\nallow_private = true\nmax_bytes = 1000")).unwrap()
}

fn hooks(http: WebhookConfig) -> Hooks {
    let tool = ToolConfig {
        builtin: None,
        targets: Default::default(),
        expert: None,
        name: "look_up".into(),
        description: String::new(),
        parameters: json!({"type": "object"}),
        http: Some(http),
    };
    let agent = AgentConfig { tools: vec![tool], ..AgentConfig::default() };
    let whose =
        Whose { call: "call_1".into(), agent: "default".into(), tenant: "acme".into(), user: Some("ann".into()) };
    Webhooks::new().unwrap().of(&agent, &whose)
}

fn nothing(turns: usize) -> String {
    assert_eq!(turns, 0, "a webhook is told nothing of the conversation");
    String::new()
}

async fn run(hooks: &mut Hooks, arguments: &str) -> String {
    hooks.run("c1".into(), "look_up", arguments.into(), nothing);
    let done = time::timeout(PATIENCE, hooks.done()).await.unwrap();
    assert_eq!(done.call_id, "c1");
    done.output
}

async fn run_once(http: WebhookConfig) -> String {
    run(&mut hooks(http), "{}").await
}

fn error(output: &str) -> String {
    serde_json::from_str::<Value>(output).unwrap()["error"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn what_is_sent_is_signed_and_says_who_for_and_the_answer_is_passed_on() {
    let server = Server::new(|_| says(200, "application/json", "{ \"state\" : \"on its way\" }")).await;
    let headers = BTreeMap::from([("authorization".to_owned(), Secret::new("Bearer hidden"))]);
    let output = run(&mut hooks(WebhookConfig { headers, ..http(&server.url()) }), r#"{"order":7}"#).await;
    assert_eq!(output, r#"{"state":"on its way"}"#);
    let (headers, body) = server.came.lock().unwrap()[0].clone();
    let of = |name: &str| headers[name].to_str().unwrap().to_owned();
    assert_eq!((of("webhook-id"), of("idempotency-key")), ("call_1-c1".into(), "call_1-c1".into()));
    assert_eq!((of("authorization"), of("content-type")), ("Bearer hidden".into(), "application/json".into()));
    let timestamp: u64 = of("webhook-timestamp").parse().unwrap();
    assert!(crate::wall::unix_now().abs_diff(timestamp) < 60);
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, SECRET.as_bytes());
    let signed = format!("call_1-c1.{timestamp}.{}", std::str::from_utf8(&body).unwrap());
    let tag = BASE64_STANDARD.decode(of("webhook-signature").strip_prefix("v1,").unwrap()).unwrap();
    aws_lc_rs::hmac::verify(&key, signed.as_bytes(), &tag).unwrap();
    assert_eq!(
        serde_json::from_slice::<Value>(&body).unwrap(),
        json!({"call": "call_1", "agent": "default", "tenant": "acme", "tool": "look_up", "call_id": "c1",
            "arguments": {"order": 7}, "caller": {"user": "ann"}})
    );
}

#[tokio::test]
async fn every_answer_becomes_a_result_and_a_failure_quotes_nothing() {
    let broken = || {
        let pieces = stream::unfold(0, |n| async move {
            // The head leaves by itself only where the body keeps it waiting.
            time::sleep(Duration::from_millis(n * 100)).await;
            let piece = if n == 0 { Ok(Bytes::from("{\"a\":")) } else { Err(std::io::Error::other("gone")) };
            Some((piece, n + 1))
        });
        says(200, "application/json", Body::from_stream(pieces))
    };
    let long = || "x".repeat(1_001);
    let endless = || Body::from_stream(stream::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from("y".repeat(300)))));
    let too_large = "the answer of look_up was larger than 1000 bytes, and was not taken";
    let cases: Vec<(Box<Made>, Result<&str, &str>)> = vec![
        (Box::new(|| says(200, "text/plain", "it is late\n")), Ok("it is late")),
        (Box::new(|| says(200, "text/html", "[1, 2]")), Ok("[1,2]")),
        (Box::new(|| says(204, "text/plain", "")), Ok(r#"{"status":"ok"}"#)),
        (Box::new(|| says(200, "application/json", "\"x\"")), Ok("\"x\"")),
        (
            Box::new(|| says(200, "application/json; charset=utf-8", "<html>")),
            Err("the answer of look_up could not be read"),
        ),
        (Box::new(|| says(200, "text/plain", vec![0xff, 0xfe])), Err("the answer of look_up could not be read")),
        (Box::new(|| says(200, "text/plain", "a\0b")), Err("the answer of look_up could not be read")),
        (Box::new(move || says(200, "text/plain", long())), Err(too_large)),
        (Box::new(move || says(200, "text/plain", endless())), Err(too_large)),
        (Box::new(broken), Err("the answer of look_up broke off")),
        (Box::new(|| says(500, "text/plain", "hidden")), Err("look_up failed with HTTP status 500")),
        (Box::new(|| says(404, "text/plain", "hidden")), Err("look_up failed with HTTP status 404")),
    ];
    for (answer, want) in cases {
        let server = Server::new(move |_| answer()).await;
        let output = run_once(http(&server.url())).await;
        match want {
            Ok(want) => assert_eq!(output, want),
            Err(want) => assert_eq!(error(&output), want),
        }
        assert_eq!(server.count(), 1, "not idempotent, not again");
    }
}

#[tokio::test]
async fn only_what_may_be_run_twice_is_tried_again_and_only_where_that_may_help() {
    let answers =
        |statuses: &'static [u16]| move |n: usize| says(*statuses.get(n).unwrap_or(&200), "text/plain", "fine");
    for (statuses, idempotent, retries, want, came) in [
        (&[500_u16, 429][..], true, 2, Ok("fine"), 3),
        (&[503, 502, 500], true, 2, Err("look_up failed with HTTP status 500"), 3),
        (&[503, 502, 500], true, 1, Err("look_up failed with HTTP status 502"), 2),
        (&[500], true, 0, Err("look_up failed with HTTP status 500"), 1),
        (&[500], false, 2, Err("look_up failed with HTTP status 500"), 1),
        (&[400], true, 2, Err("look_up failed with HTTP status 400"), 1),
    ] {
        let server = Server::new(answers(statuses)).await;
        let output = run_once(WebhookConfig { idempotent, retries, ..http(&server.url()) }).await;
        match want {
            Ok(want) => assert_eq!(output, want),
            Err(want) => assert_eq!(error(&output), want),
        }
        assert_eq!(server.count(), came, "{statuses:?}");
        let ids: Vec<_> =
            server.came.lock().unwrap().iter().map(|(headers, _)| headers["webhook-id"].clone()).collect();
        assert!(ids.iter().all(|id| id == "call_1-c1"));
    }
    // Nobody listens there.
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let output = run_once(WebhookConfig { idempotent: true, ..http(&format!("http://{free}/")) }).await;
    assert_eq!(error(&output), "look_up could not be reached");
}

#[tokio::test]
async fn a_wait_that_is_asked_for_is_kept_or_not_begun() {
    let busy = |n: usize| match n {
        0 => Response::builder().status(429).header("retry-after", "1").body(Body::empty()).unwrap(),
        _ => says(200, "text/plain", "fine"),
    };
    let server = Server::new(busy).await;
    let began = Instant::now();
    let output = run_once(WebhookConfig { idempotent: true, ..http(&server.url()) }).await;
    assert_eq!((output.as_str(), server.count()), ("fine", 2));
    assert!(began.elapsed() >= Duration::from_secs(1));
    let server =
        Server::new(|_| Response::builder().status(503).header("retry-after", "60").body(Body::empty()).unwrap()).await;
    let began = Instant::now();
    let output = run_once(WebhookConfig { idempotent: true, ..http(&server.url()) }).await;
    assert_eq!((error(&output).as_str(), server.count()), ("look_up failed with HTTP status 503", 1));
    assert!(began.elapsed() < Duration::from_secs(8), "a wait past its time is not begun");
}

#[tokio::test]
async fn whoever_drips_or_is_silent_has_no_more_than_its_time() {
    let drip = |_: usize| {
        let pieces = stream::unfold((), |()| async {
            time::sleep(Duration::from_millis(50)).await;
            Some((Ok::<_, std::io::Error>(Bytes::from(" ")), ()))
        });
        says(200, "text/plain", Body::from_stream(pieces.take(900)))
    };
    let server = Server::new(drip).await;
    let began = Instant::now();
    let output = run_once(WebhookConfig { timeout_s: 1, idempotent: true, ..http(&server.url()) }).await;
    assert_eq!((error(&output).as_str(), server.count()), ("look_up gave no answer in time", 1));
    assert!(began.elapsed() >= Duration::from_secs(1));
    // It accepts, and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", silent.local_addr().unwrap());
    let output = run_once(WebhookConfig { timeout_s: 1, ..http(&url) }).await;
    assert_eq!(error(&output), "look_up gave no answer in time");
}

#[tokio::test]
async fn addresses_of_this_machine_are_not_dialled_however_they_are_named() {
    let server = Server::new(|_| says(200, "text/plain", "inside")).await;
    let port = server.addr.port();
    // A name that means this machine, the address itself, and its other ways of being written.
    for host in ["localhost", "127.0.0.1", "[::ffff:127.0.0.1]", "2130706433", "0x7f.1"] {
        let url = format!("http://{host}:{port}/");
        let output = run_once(WebhookConfig { allow_private: false, idempotent: true, ..http(&url) }).await;
        assert_eq!(error(&output), "look_up could not be reached", "{host}");
    }
    assert_eq!(server.count(), 0);
    let named = format!("http://localhost:{port}/");
    assert_eq!(run_once(http(&named)).await, "inside", "where it is allowed");
    // Looked up by whoever dials: nothing but the guard stands between the name and the socket.
    let public = Webhooks::new().unwrap().public;
    let refused = public.get(named).send().await.unwrap_err();
    assert!(format!("{refused:?}").contains("NotPublic"), "{refused:?}");
    assert_eq!(server.count(), 1);
}

#[tokio::test]
async fn nobody_is_sent_on() {
    let inside = Server::new(|_| says(200, "text/plain", "inside")).await;
    for status in [301, 302, 303, 307, 308] {
        let to = inside.url();
        let server = Server::new(move |_| {
            Response::builder().status(status).header("location", to.as_str()).body(Body::empty()).unwrap()
        })
        .await;
        let output = run_once(WebhookConfig { idempotent: true, ..http(&server.url()) }).await;
        assert_eq!(error(&output), format!("look_up failed with HTTP status {status}"));
        assert_eq!((server.count(), inside.count()), (1, 0));
    }
}

#[tokio::test]
async fn a_call_runs_some_at_once_and_none_when_it_is_over() {
    static OPEN: AtomicUsize = AtomicUsize::new(0);
    static MOST: AtomicUsize = AtomicUsize::new(0);
    struct Open;
    impl Drop for Open {
        fn drop(&mut self) {
            OPEN.fetch_sub(1, Ordering::SeqCst);
        }
    }
    let slow = |_: usize| {
        MOST.fetch_max(OPEN.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        let open = Open;
        let pieces = stream::once(async move {
            let _open = open;
            time::sleep(Duration::from_millis(100)).await;
            Ok::<_, std::io::Error>(Bytes::from("fine"))
        });
        Response::builder().status(StatusCode::OK).body(Body::from_stream(pieces)).unwrap()
    };
    let server = Server::new(slow).await;
    let mut hooks = hooks(http(&server.url()));
    for n in 0..9 {
        hooks.run(format!("c{n}"), "look_up", "{}".into(), nothing);
    }
    hooks.run("other".into(), "gone", "{}".into(), nothing);
    let mut done = Vec::new();
    while hooks.is_busy() {
        done.push(time::timeout(PATIENCE, hooks.done()).await.unwrap());
    }
    let other = done.iter().find(|done| done.call_id == "other").unwrap();
    assert_eq!(error(&other.output), "gone is not available any more");
    assert_eq!((done.len(), server.count()), (10, 9));
    assert!((2..=AT_ONCE).contains(&MOST.load(Ordering::SeqCst)), "{MOST:?}");
    for n in 0..9 {
        hooks.run(format!("c{n}"), "look_up", "{}".into(), nothing);
    }
    hooks.stop();
    assert!(time::timeout(Duration::from_secs(1), hooks.done()).await.is_err(), "no results any more");
    assert!(server.count() < 18);
}

#[tokio::test]
async fn what_is_given_up_has_no_result_and_the_others_have() {
    let slow = |_: usize| {
        let piece = stream::once(async {
            time::sleep(Duration::from_millis(300)).await;
            Ok::<_, std::io::Error>(Bytes::from("fine"))
        });
        says(200, "text/plain", Body::from_stream(piece))
    };
    let server = Server::new(slow).await;
    let mut hooks = hooks(http(&server.url()));
    hooks.run("a".into(), "look_up", "{}".into(), nothing);
    hooks.run("b".into(), "look_up", "{}".into(), nothing);
    hooks.run("c".into(), "gone", "{}".into(), nothing);
    hooks.give_up("a");
    hooks.give_up("c");
    hooks.give_up("unknown");
    let done = time::timeout(PATIENCE, hooks.done()).await.unwrap();
    assert_eq!((done.call_id.as_str(), done.output.as_str()), ("b", "fine"));
    assert!(time::timeout(Duration::from_secs(1), hooks.done()).await.is_err() && !hooks.is_busy());
    assert!(hooks.stops.is_empty());
}
