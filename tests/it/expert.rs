//! An agent that asks the expert in the middle of a call: a service of its own behind `text.expert`, whose counters say what came, and
//! the ledger, which says what it cost.
use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Json, Router,
    body::Body,
    extract::State,
    http::{HeaderMap, Response},
    routing::post,
};
use futures_util::stream;
use rusqlite::Connection;
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinSet, time, time::Instant};
use voxrelay::{
    config::{Config, ExpertConfig, RouteConfig, TierConfig, ToolConfig, UpstreamConfig},
    sim::SimConfig,
};

use crate::support::{Client, Got, PATIENCE, Rig, until};

pub(crate) const MODEL: &str = "gpt-5.6-terra";
const ASK: &str =
    r#"{"type":"text","text":"call ask_expert {\"question\":\"Why is it late?\",\"context\":\"Order 7.\"}"}"#;

/// What the service does.
#[derive(Debug, Clone)]
pub(crate) enum Does {
    /// Answers after so long, and has used so many tokens.
    Answers(Duration, u64),
    /// Says the beginning, and then nothing for ever.
    Stalls,
    /// Takes the request, and says nothing at all.
    IsSilent,
    /// Refuses with this status.
    Refuses(u16),
    /// Says the beginning, and breaks off.
    BreaksOff,
}

/// Requests that are being answered.
struct Open(Arc<AtomicUsize>);

impl Open {
    fn new(open: &Arc<AtomicUsize>) -> Self {
        open.fetch_add(1, Ordering::SeqCst);
        Self(open.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[derive(Clone)]
struct Seen {
    does: Does,
    came: Arc<Mutex<Vec<(HeaderMap, Value)>>>,
    open: Arc<AtomicUsize>,
}

/// The service that the expert is at.
pub(crate) struct Service {
    url: String,
    seen: Seen,
    _tasks: JoinSet<()>,
}

impl Service {
    pub(crate) async fn new(does: Does) -> Self {
        let seen = Seen { does, came: Arc::default(), open: Arc::default() };
        let router = Router::new().route("/v1/responses", post(respond)).with_state(seen.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, seen, _tasks: tasks }
    }

    /// Its agent asks here.
    pub(crate) fn configure(&self, config: &mut Config, expert: ExpertConfig) {
        let account = UpstreamConfig { url: Some(self.url.clone()), ..config.upstream.clone() };
        config.upstreams.insert("text".to_owned(), account);
        let route = RouteConfig { upstream: Some("text".to_owned()), model: MODEL.to_owned(), weight: 1 };
        config.tiers.insert("thinker".to_owned(), TierConfig { routes: vec![route], ..TierConfig::default() });
        config.text.expert = Some("thinker".to_owned());
        let tool: ToolConfig = toml::from_str("builtin = \"ask_expert\"").unwrap();
        config.agents.get_mut("default").unwrap().tools = vec![ToolConfig { expert: Some(expert), ..tool }];
    }

    pub(crate) fn count(&self) -> usize {
        self.seen.came.lock().unwrap().len()
    }

    fn open(&self) -> usize {
        self.seen.open.load(Ordering::SeqCst)
    }
}

fn event(name: &str, more: &Value) -> String {
    let mut data = json!({"type": name});
    data.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    format!("event: {name}\ndata: {data}\n\n")
}

async fn respond(State(seen): State<Seen>, headers: HeaderMap, Json(body): Json<Value>) -> Response<Body> {
    let open = Open::new(&seen.open);
    let number = {
        let mut came = seen.came.lock().unwrap();
        came.push((headers, body));
        came.len()
    };
    let id = format!("resp_expert_{number}");
    let delta = |text: &str| event("response.output_text.delta", &json!({"delta": text}));
    let created = event("response.created", &json!({"response": {"id": id}}));
    let begun = created + &delta("The truck has ") + &delta("broken down. It wi");
    let mut pieces: Vec<Result<String, std::io::Error>> = vec![Ok(begun)];
    match seen.does {
        Does::Answers(after, tokens) => {
            time::sleep(after).await;
            let usage = json!({"input_tokens": 100, "output_tokens": tokens - 100, "total_tokens": tokens});
            let whole = json!({"response": {"id": id, "status": "completed", "usage": usage}});
            pieces.push(Ok(delta("ll come on Friday.") + &event("response.completed", &whole)));
        }
        Does::BreaksOff => pieces.push(Err(std::io::Error::other("gone"))),
        Does::IsSilent => std::future::pending().await,
        Does::Refuses(status) => {
            let body = json!({"error": {"message": "hidden", "code": "x"}}).to_string();
            return Response::builder().status(status).body(body.into()).unwrap();
        }
        Does::Stalls => {}
    }
    let ends = !matches!(seen.does, Does::Stalls);
    let stream = stream::unfold((pieces.into_iter(), open), move |(mut pieces, open)| async move {
        match pieces.next() {
            Some(piece) => {
                // What goes out must have gone before the connection breaks.
                time::sleep(Duration::from_millis(100)).await;
                Some((piece, (pieces, open)))
            }
            None if ends => None,
            None => std::future::pending().await,
        }
    });
    Response::builder().header("content-type", "text/event-stream").body(Body::from_stream(stream)).unwrap()
}

/// A relay whose agent asks the expert at a service.
struct Asking {
    rig: Rig,
    service: Service,
    file: PathBuf,
    _dir: tempfile::TempDir,
}

/// What the ledger says of a question.
#[derive(Debug, PartialEq)]
struct Row {
    id: String,
    call: String,
    agent: String,
    door: String,
    route: String,
    status: String,
    total: i64,
    estimated: bool,
}

impl Asking {
    async fn new(does: Does, expert: ExpertConfig, change: impl FnOnce(&mut Config)) -> Self {
        let (service, dir) = (Service::new(does).await, tempfile::tempdir().unwrap());
        let file = dir.path().join("ledger.db");
        let named = file.clone();
        let change = |config: &mut Config| {
            config.ledger.file = Some(named);
            service.configure(config, expert);
            config.agents.get_mut("default").unwrap().max_output_tokens = Some(1_000);
            change(config);
            config.check(|_| None).unwrap();
        };
        let rig = Rig::with(change, SimConfig::default(), "").await;
        Self { rig, service, file, _dir: dir }
    }

    /// A call that has asked, and its id.
    async fn asked(&self) -> (Client, String) {
        let mut client = self.rig.call("pace=fast").await;
        let call = client.until("ready").await["call"].as_str().unwrap().to_owned();
        client.json(ASK).await;
        let notice = client.until("notice").await;
        assert_eq!((notice["code"].as_str(), notice["tool"].as_str()), (Some("tool_running"), Some("ask_expert")));
        (client, call)
    }

    async fn rows(&self) -> Vec<Row> {
        assert_eq!(self.rig.relay.ledger().flush(PATIENCE).await, 0);
        let sql = Connection::open(&self.file).unwrap();
        let query = "SELECT id, call, agent, door, route, status, total_tokens, estimated FROM usage WHERE kind = 'reply' AND model = ?1";
        let mut found = sql.prepare(query).unwrap();
        let row = |row: &rusqlite::Row<'_>| {
            let (id, call, agent, door) = (row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?);
            let (route, status, total, estimated) = (row.get(4)?, row.get(5)?, row.get(6)?, row.get(7)?);
            Ok(Row { id, call, agent, door, route, status, total, estimated })
        };
        found.query_map([MODEL], row).unwrap().map(Result::unwrap).collect()
    }

    /// The one row that there is, once there is one.
    async fn row(&self, call: &str, status: &str) -> Row {
        let end = Instant::now() + PATIENCE;
        let rows = loop {
            let rows = self.rows().await;
            if !rows.is_empty() {
                break rows;
            }
            assert!(Instant::now() < end, "nothing was booked");
            time::sleep(Duration::from_millis(20)).await;
        };
        let [row] = <[Row; 1]>::try_from(rows).unwrap();
        let want = (call, "default", "thin", "text/gpt-5.6-terra", status);
        assert_eq!((&*row.call, &*row.agent, &*row.door, &*row.route, &*row.status), want);
        row
    }
}

/// The words of the next reply that has some.
async fn words(client: &mut Client) -> String {
    loop {
        let Got::Json(message) = client.next().await else { continue };
        match message["type"].as_str() {
            Some("transcript") if message["final"] == true && message["role"] == "assistant" => {
                return message["text"].as_str().unwrap().to_owned();
            }
            Some("error") => panic!("{message}"),
            _ => {}
        }
    }
}

fn quiet() -> ExpertConfig {
    ExpertConfig { filler: String::new(), ..ExpertConfig::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_expert_says_is_spoken_after_a_word_to_the_caller_and_booked_to_the_call() {
    let expert = ExpertConfig { filler_after_ms: 300, ..ExpertConfig::default() };
    let asking = Asking::new(Does::Answers(Duration::from_millis(2_500), 900), expert, |_| {}).await;
    let (mut client, call) = asking.asked().await;
    let filler = words(&mut client).await;
    assert!(!filler.contains("truck"), "{filler}");
    let answer = words(&mut client).await;
    assert!(answer.contains("The truck has broken down. It will come on Friday."), "{answer}");
    let row = asking.row(&call, "completed").await;
    assert_eq!((row.id.as_str(), row.total, row.estimated), ("resp_expert_1", 900, false));
    let (headers, body) = asking.service.seen.came.lock().unwrap()[0].clone();
    assert_eq!((&body["model"], &body["stream"], &body["store"]), (&json!(MODEL), &json!(true), &json!(false)));
    assert!(body["instructions"].as_str().unwrap().contains("`default`"), "{body}");
    let asked = body["input"][0]["content"].as_str().unwrap();
    let end = "What else there is to know:\nOrder 7.\n\nThe question:\nWhy is it late?";
    assert!(asked.starts_with("The conversation so far:\nCaller: call ask_expert ") && asked.ends_with(end), "{asked}");
    assert!(!headers.contains_key("idempotency-key"));
    assert_eq!(asking.service.count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_time_is_up_what_was_said_by_then_must_do() {
    let asking = Asking::new(Does::Stalls, ExpertConfig { deadline_s: 1, ..quiet() }, |_| {}).await;
    let (mut client, call) = asking.asked().await;
    let answer = words(&mut client).await;
    let partial = "The truck has broken down. It (the expert was still speaking)";
    assert!(answer.contains(partial), "{answer}");
    until("the request is dropped", || asking.service.open() == 0).await;
    let row = asking.row(&call, "cancelled").await;
    assert!(row.estimated && row.id == "resp_expert_1" && row.total > 20, "{row:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expert_who_says_nothing_is_not_waited_for_and_has_read_the_question() {
    let asking = Asking::new(Does::IsSilent, ExpertConfig { deadline_s: 1, ..quiet() }, |_| {}).await;
    let (mut client, call) = asking.asked().await;
    let answer = words(&mut client).await;
    assert!(answer.contains("the expert gave no answer in time"), "{answer}");
    until("the request is dropped", || asking.service.open() == 0).await;
    let row = asking.row(&call, "cancelled").await;
    assert!(row.estimated && row.id.starts_with(&format!("{call}-")) && row.total > 20, "{row:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_wrong_is_the_models_to_tell_and_quotes_nothing() {
    for (does, want, booked) in [
        (Does::Refuses(400), "the expert did not accept the question", false),
        (Does::Refuses(401), "the expert could not be reached", false),
        (Does::BreaksOff, "The truck has broken down. It (the answer breaks off here)", true),
    ] {
        let asking = Asking::new(does.clone(), quiet(), |_| {}).await;
        let (mut client, call) = asking.asked().await;
        let answer = words(&mut client).await;
        assert!(answer.contains(want) && !answer.contains("hidden"), "{does:?}: {answer}");
        assert_eq!(asking.service.count(), 1, "{does:?}");
        if booked {
            assert!(asking.row(&call, "failed").await.estimated, "{does:?}");
        } else {
            assert_eq!(asking.rows().await, [], "{does:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_that_the_calls_budget_cannot_pay_is_not_asked() {
    // An answer of the expert's may use 4,096 tokens, and one of the call's own 1,000.
    let does = Does::Answers(Duration::ZERO, 200);
    let asking = Asking::new(does, quiet(), |config| config.budget.call.tokens = Some(4_000)).await;
    let (mut client, _) = asking.asked().await;
    let answer = words(&mut client).await;
    assert!(answer.contains("nothing is left of the budget for asking the expert"), "{answer}");
    assert_eq!((asking.service.count(), asking.rows().await), (0, vec![]));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_expert_has_used_is_of_the_calls_budget() {
    let does = Does::Answers(Duration::ZERO, 7_800);
    let asking = Asking::new(does, quiet(), |config| config.budget.call.tokens = Some(8_000)).await;
    let (mut client, call) = asking.asked().await;
    assert_eq!(client.end().await, (Some("budget_exhausted".to_owned()), 4402), "no answer can be paid any more");
    assert_eq!(asking.row(&call, "completed").await.total, 7_800);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_who_hangs_up_or_goes_on_leaves_no_request_behind() {
    for hangs_up in [true, false] {
        let asking = Asking::new(Does::Stalls, quiet(), |_| {}).await;
        let (mut client, call) = asking.asked().await;
        until("the expert is speaking", || asking.service.open() == 1).await;
        let began = Instant::now();
        if hangs_up {
            client.json(r#"{"type":"close"}"#).await;
            assert_eq!(client.end().await, (None, 1000));
        } else {
            client.json(r#"{"type":"text","text":"never mind"}"#).await;
            // What the simulator says next answers the text, and no result.
            let answer = words(&mut client).await;
            assert!(!answer.contains("truck"), "{answer}");
        }
        until("the request is dropped", || asking.service.open() == 0).await;
        assert!(began.elapsed() < Duration::from_secs(15), "not when the time is up");
        assert!(asking.row(&call, "cancelled").await.estimated);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tool_is_offered_where_the_conversation_is_ours_and_needs_an_expert() {
    let asking = Asking::new(Does::Stalls, quiet(), |_| {}).await;
    let mut client = asking.rig.dial("/v1/realtime", "any").await.unwrap();
    client.until("session.created").await;
    client.json(r#"{"type":"session.update","session":{"type":"realtime"}}"#).await;
    assert_eq!(client.until("session.updated").await["session"]["tools"], json!([]));
    let mut config: Config = toml::from_str("[[agents.default.tools]]\nbuiltin = \"ask_expert\"").unwrap();
    let problems = config.check(|_| None).unwrap_err().to_string();
    assert!(problems.contains("agents.default.tools[0].builtin") && problems.contains("text.expert"), "{problems}");
    config.text.expert = Some(MODEL.to_owned());
    config.check(|_| None).unwrap();
    // One that is asked all the same says so.
    let rig = Rig::configured(|config| {
        let tool = toml::from_str("builtin = \"ask_expert\"").unwrap();
        config.agents.get_mut("default").unwrap().tools = vec![tool];
    })
    .await;
    let mut client = rig.call("pace=fast").await;
    client.json(ASK).await;
    let answer = words(&mut client).await;
    assert!(answer.contains("there is no expert to ask"), "{answer}");
}
