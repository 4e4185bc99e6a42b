//! A Batch API whose every answer is in a test's hand: what it refuses, keeps waiting, mixes up or leaves out.
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard},
};

use axum::{
    Router,
    body::Body,
    extract::{FromRequest as _, Multipart, Request, State as Shared},
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinSet};

/// What becomes of some requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Act {
    /// Nothing is done.
    Refuse(u16),
    /// It is done, and nobody hears of it.
    Lose,
    /// Nothing is done, and nothing said.
    Hang,
    /// It is done, and nothing said.
    DoAndHang,
}

/// The first `times` requests that begin so.
#[derive(Debug)]
struct Rule {
    request: &'static str,
    act: Act,
    times: usize,
    met: usize,
}

/// How a batch ends: its status, and the lines of its files.
#[derive(Debug, Default)]
pub(super) struct End {
    pub(super) status: &'static str,
    pub(super) output: Vec<String>,
    pub(super) errors: Vec<String>,
    /// Its files are not named.
    pub(super) unnamed: bool,
}

/// What becomes of a batch: of its number, from 0, and its lines.
type Script = Box<dyn Fn(usize, &[Value]) -> End + Send>;

struct World {
    rules: Vec<Rule>,
    script: Script,
    /// Name, and content.
    files: BTreeMap<String, (String, String)>,
    batches: Vec<Value>,
    /// The models that each file names.
    models: Vec<BTreeSet<String>>,
    /// Requests at `/responses`.
    direct: usize,
    number: usize,
}

/// The service.
pub(super) struct Service {
    pub(super) url: String,
    world: Arc<Mutex<World>>,
    _server: JoinSet<()>,
}

impl Service {
    pub(super) async fn new(script: impl Fn(usize, &[Value]) -> End + Send + 'static) -> Self {
        let world = World {
            rules: Vec::new(),
            script: Box::new(script),
            files: BTreeMap::new(),
            batches: Vec::new(),
            models: Vec::new(),
            direct: 0,
            number: 0,
        };
        let world = Arc::new(Mutex::new(world));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let app = Router::new().fallback(handle).with_state(world.clone());
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { url, world, _server: server }
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    /// `request`: how it begins, such as `GET /v1/batches?`.
    pub(super) fn rule(&self, request: &'static str, act: Act, times: usize) {
        self.world().rules.push(Rule { request, act, times, met: 0 });
    }

    /// How often a rule was met.
    pub(super) fn met(&self, request: &str) -> usize {
        self.world().rules.iter().filter(|rule| rule.request == request).map(|rule| rule.met).sum()
    }

    /// Batches that were begun, requests that came directly, and files that are there.
    pub(super) fn counts(&self) -> (usize, usize, usize) {
        let world = self.world();
        (world.batches.len(), world.direct, world.files.len())
    }

    /// The models that each file has named.
    pub(super) fn models(&self) -> Vec<BTreeSet<String>> {
        self.world().models.clone()
    }

    pub(super) fn file_names(&self) -> Vec<String> {
        self.world().files.values().map(|(name, _)| name.clone()).collect()
    }
}

/// Every line is answered.
pub(super) fn all(_: usize, lines: &[Value]) -> End {
    End { status: "completed", output: lines.iter().map(answer).collect(), ..End::default() }
}

/// The line that answers a line.
pub(super) fn answer(line: &Value) -> String {
    line_of(line, 200, &response(&topic(line)))
}

/// A line of a file of answers or errors.
pub(super) fn line_of(line: &Value, status: u16, body: &Value) -> String {
    json!({"id": "batch_req_1", "custom_id": line["custom_id"], "error": null,
        "response": {"status_code": status, "request_id": "r", "body": body}})
    .to_string()
}

/// What a request is about.
fn topic(request: &Value) -> String {
    let text = request.to_string();
    let (_, call) = text.split_once("This is call ").unwrap();
    let number: String = call.chars().take_while(char::is_ascii_digit).collect();
    json!({"topic": format!("call {number}"), "urgent": false}).to_string()
}

/// A response that says this.
pub(super) fn response(text: &str) -> Value {
    json!({"id": "resp_1", "object": "response", "status": "completed", "model": "m-1", "error": null,
        "output": [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]}],
        "usage": {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15}})
}

async fn handle(Shared(world): Shared<Arc<Mutex<World>>>, request: Request) -> Response {
    let asked = format!("{} {}", request.method(), request.uri());
    let act = {
        let mut world = world.lock().unwrap();
        let rule = world.rules.iter_mut().find(|rule| asked.starts_with(rule.request) && rule.met < rule.times);
        rule.map(|rule| {
            rule.met += 1;
            rule.act
        })
    };
    match act {
        None => work(&world, &asked, request).await,
        Some(Act::Refuse(status)) => refusal(status),
        Some(Act::Hang) => std::future::pending().await,
        Some(Act::Lose) => {
            work(&world, &asked, request).await;
            refusal(502)
        }
        Some(Act::DoAndHang) => {
            work(&world, &asked, request).await;
            std::future::pending().await
        }
    }
}

fn refusal(status: u16) -> Response {
    let body = json!({"error": {"message": format!("No, {status}."), "code": null, "type": "scripted"}});
    (StatusCode::from_u16(status).unwrap(), axum::Json(body)).into_response()
}

async fn work(world: &Mutex<World>, asked: &str, request: Request) -> Response {
    let (method, path) = asked.split_once(' ').unwrap();
    let path = path.split('?').next().unwrap().strip_prefix("/v1/").unwrap();
    let pieces: Vec<&str> = path.split('/').collect();
    match (method, pieces.as_slice()) {
        ("POST", ["files"]) => upload(world, request).await,
        ("POST", ["batches"]) => create(world, &body(request).await),
        ("POST", ["responses"]) => {
            world.lock().unwrap().direct += 1;
            axum::Json(response(&topic(&body(request).await))).into_response()
        }
        ("GET", ["batches"]) => {
            let newest: Vec<Value> = world.lock().unwrap().batches.iter().rev().cloned().collect();
            axum::Json(json!({"object": "list", "data": newest, "has_more": false})).into_response()
        }
        // It has just ended.
        ("POST", ["batches", _, "cancel"]) => refusal(409),
        ("GET", ["batches", id]) => look(&mut world.lock().unwrap(), id),
        ("GET", ["files", id, "content"]) => match world.lock().unwrap().files.get(*id) {
            Some((_, content)) => Body::from(content.clone()).into_response(),
            None => refusal(404),
        },
        ("DELETE", ["files", id]) => match world.lock().unwrap().files.remove(*id) {
            Some(_) => axum::Json(json!({"id": id, "deleted": true})).into_response(),
            None => refusal(404),
        },
        _ => refusal(404),
    }
}

async fn body(request: Request) -> Value {
    let bytes = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

async fn upload(world: &Mutex<World>, request: Request) -> Response {
    let mut form = Multipart::from_request(request, &()).await.unwrap();
    let mut file = (String::new(), String::new());
    while let Some(field) = form.next_field().await.unwrap() {
        if field.name() == Some("file") {
            file = (field.file_name().unwrap().to_owned(), field.text().await.unwrap());
        }
    }
    let mut world = world.lock().unwrap();
    let models = lines(&file.1).iter().map(|line| line["body"]["model"].as_str().unwrap().to_owned()).collect();
    world.models.push(models);
    let id = world.keep(file);
    axum::Json(json!({"id": id, "object": "file"})).into_response()
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn create(world: &Mutex<World>, asked: &Value) -> Response {
    let mut world = world.lock().unwrap();
    if !world.files.contains_key(asked["input_file_id"].as_str().unwrap()) {
        return refusal(400);
    }
    let batch = json!({"id": format!("batch_{}", world.batches.len()), "object": "batch", "status": "in_progress",
        "input_file_id": asked["input_file_id"], "metadata": asked["metadata"], "output_file_id": null, "error_file_id": null});
    world.batches.push(batch.clone());
    axum::Json(batch).into_response()
}

/// It has ended when it is looked at first.
fn look(world: &mut World, id: &str) -> Response {
    let Some(at) = world.batches.iter().position(|batch| batch["id"] == id) else { return refusal(404) };
    if world.batches[at]["status"] == "in_progress" {
        let input = world.batches[at]["input_file_id"].as_str().unwrap();
        let asked = lines(&world.files[input].1);
        let End { status, output, errors, unnamed } = (world.script)(at, &asked);
        let batch = &mut world.batches[at];
        batch["status"] = status.into();
        batch["request_counts"] = json!({"total": asked.len(), "completed": output.len(), "failed": errors.len()});
        if !unnamed {
            for (name, lines) in [("output_file_id", output), ("error_file_id", errors)] {
                if !lines.is_empty() {
                    let file = world.keep((format!("{id}_{name}.jsonl"), lines.join("\n")));
                    world.batches[at][name] = file.into();
                }
            }
        }
    }
    axum::Json(world.batches[at].clone()).into_response()
}

impl World {
    fn keep(&mut self, file: (String, String)) -> String {
        self.number += 1;
        let id = format!("file-{}", self.number);
        self.files.insert(id.clone(), file);
        id
    }
}
