//! Telephone calls in real time: what the relay adds each way, and what a call costs.
//!
//! Twilio's dialect and G.711, so that nothing is transcoded and stamps pass. Callers and model service are one process, so that one
//! clock sees a frame go in and come out; the relay is another. The service speaks as fast as it is heard, so that no frame waits for
//! the pacer, and chunks are frames: what is measured is the relay and nothing that it waits for by design.
use std::{
    fs,
    io::BufRead as _,
    net::SocketAddr,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures_util::{SinkExt as _, StreamExt as _};
use secrecy::ExposeSecret as _;
use tempfile::NamedTempFile;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    task::JoinSet,
    time::{self, Instant, MissedTickBehavior},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, client::IntoClientRequest as _, http::HeaderName},
};
use voxrelay::{
    provider::{self, Address, Line, Provider, Reach, Setup},
    wall::unix_now,
};

use super::{
    frames::{self, FRAME_US, Stamp},
    print_usage,
    process::Process,
};

const KEY: &str = "bench-auth-token";
const FRAME: Duration = Duration::from_micros(FRAME_US);
/// Bytes of 20 ms of G.711.
const BYTES: usize = 160;
/// Handshakes at once.
const DIALLING: usize = 32;
/// Calls are measured for so long, after so long in which they settle.
const SETTLE: Duration = Duration::from_secs(3);
const LENGTH: Duration = Duration::from_secs(20);

const CREATED: &str = r#"{"type":"session.created","event_id":"event_1","session":{"type":"realtime","object":"realtime.session","id":"sess_bench","expires_at":4102444800}}"#;
const UPDATED: &str =
    r#"{"type":"session.updated","event_id":"event_2","session":{"type":"realtime","id":"sess_bench"}}"#;
const REPLY: &str =
    r#"{"type":"response.created","event_id":"event_3","response":{"id":"resp_1","status":"in_progress"}}"#;

/// How old frames were, microseconds, each way.
#[derive(Default)]
struct Ages {
    up: Vec<i32>,
    down: Vec<i32>,
}

type Shared = Arc<Mutex<Ages>>;

/// Runs and prints.
pub(crate) fn run(calls: usize) {
    println!("phones: {calls} calls in Twilio's dialect, G.711 both ways at once, chunks of 20 ms, no gathering");
    let mut ends = Process::role(&["phone-ends", &calls.to_string()]);
    let service = ends.listening("listening ");
    let config = NamedTempFile::new().unwrap();
    let text = format!(
        "[server]\nlisten = \"127.0.0.1:0\"\nmax_calls = {calls}\n[upstream]\nurl = \"http://{service}/v1\"\napi_key = \"bench\"\n\
         [audio]\nchunk_ms = 20\ngather = false\n[phone]\npublic_url = \"https://relay.example.com\"\n\
         [phone.accounts.twilio]\naccount = \"AC00000000000000000000000000000000\"\nauth_token = \"{KEY}\"\n\
         [[phone.numbers]]\nnumber = \"*\"\nagent = \"default\"\n"
    );
    fs::write(&config, text).unwrap();
    let program = std::env::var_os("BENCH_RELAY").unwrap_or_else(|| env!("CARGO_BIN_EXE_voxrelay").into());
    let mut relay = Process::start(program, ["serve".as_ref(), "--config".as_ref(), config.path().as_os_str()]);
    let addr = relay.listening("listening on http://");
    thread::sleep(Duration::from_secs(1));
    let empty = relay.memory();
    ends.say(&format!("call {addr}"));
    assert_eq!(ends.line(), format!("up {calls}"));
    ends.say("stream");
    thread::sleep(SETTLE);
    ends.say("measure");
    let (before, ends_before) = (relay.usage(), ends.usage());
    thread::sleep(LENGTH);
    let (used, ends_used) = (relay.usage() - before, ends.usage() - ends_before);
    let memory = relay.memory();
    ends.say("stats");
    let got = ends.figures();
    for (way, name) in [("up", "caller to service"), ("down", "service to caller")] {
        let ms = |q: &str| got.get(&format!("{way}_{q}")) as f64 / 1e3;
        let frame = FRAME.as_secs_f64() * 1e3;
        let frames = got.get(&format!("{way}_frames"));
        let wanted = LENGTH.as_secs() * 1_000_000 / FRAME_US * calls as u64;
        println!(
            "{name}: {frames} of {wanted} frames; added {:.1} / {:.1} / {:.1} ms (p50 / p99 / max), with the frame's 20 ms {:.1} / {:.1}",
            ms("p50"),
            ms("p99"),
            ms("max"),
            ms("p50") + frame,
            ms("p99") + frame
        );
    }
    print_usage("relay", used, Some(calls));
    print_usage("both ends (not counted)", ends_used, None);
    let more = memory.rss.saturating_sub(empty.rss) as f64 / calls as f64;
    println!("relay memory {} KiB, {more:.1} KiB more per call\n", memory.rss);
}

/// Both ends. A child: listens as the service, and obeys `call ADDR`, `stream`, `measure` and `stats`.
pub(crate) async fn ends(calls: usize) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("listening {}", listener.local_addr().unwrap());
    let ages = Shared::default();
    let (speaks, spoken) = watch::channel(false);
    let (orders, mut obeyed) = mpsc::unbounded_channel();
    thread::spawn(move || std::io::stdin().lock().lines().map_while(Result::ok).all(|line| orders.send(line).is_ok()));
    let mut tasks = JoinSet::new();
    let mut sessions = 0;
    loop {
        tokio::select! {
            order = obeyed.recv() => match order.as_deref().map(|order| order.split_once(' ').unwrap_or((order, ""))) {
                Some(("call", addr)) => {
                    tasks.spawn(dial(addr.parse().unwrap(), calls, spoken.clone(), ages.clone()));
                }
                Some(("stream", _)) => drop(speaks.send_replace(true)),
                Some(("measure", _)) => *ages.lock().unwrap() = Ages::default(),
                Some(("stats", _)) => println!("{}", stats(&ages)),
                _ => return,
            },
            accepted = listener.accept() => {
                let offset = offset(sessions, calls);
                sessions += 1;
                tasks.spawn(session(accepted.unwrap().0, offset, spoken.clone(), ages.clone()));
            }
            Some(done) = tasks.join_next() => done.unwrap(),
        }
    }
}

fn stats(ages: &Shared) -> String {
    let mut ages = ages.lock().unwrap();
    let Ages { up, down } = &mut *ages;
    let figures = |name: &str, ages: &mut Vec<i32>| {
        ages.sort_unstable();
        let last = ages.len().saturating_sub(1);
        let at = |percent: usize| ages.get(last * percent / 100).map_or(0, |age| (*age).max(0));
        format!("{name}_frames={} {name}_p50={} {name}_p99={} {name}_max={}", ages.len(), at(50), at(99), at(100))
    };
    format!("{} {}", figures("up", up), figures("down", down))
}

/// Calls do not speak at the same moment.
fn offset(number: usize, calls: usize) -> Duration {
    FRAME * u32::try_from(number % calls).unwrap() / u32::try_from(calls).unwrap()
}

async fn dial(relay: SocketAddr, calls: usize, speaks: watch::Receiver<bool>, ages: Shared) {
    let (mut talking, mut dialling) = (JoinSet::new(), JoinSet::new());
    let mut up = Vec::new();
    for number in 0..calls {
        if dialling.len() == DIALLING {
            up.push(dialling.join_next().await.unwrap().unwrap());
        }
        dialling.spawn(open(relay, number));
    }
    while let Some(call) = dialling.join_next().await {
        up.push(call.unwrap());
    }
    println!("up {}", up.len());
    for (number, (ws, stream)) in up.into_iter().enumerate() {
        talking.spawn(talk(ws, stream, offset(number, calls), speaks.clone(), ages.clone()));
    }
    while let Some(done) = talking.join_next().await {
        done.unwrap();
    }
}

/// Asks the webhook, opens the stream, says its start.
async fn open(relay: SocketAddr, number: usize) -> (WebSocketStream<TcpStream>, String) {
    let mut setup = Setup::new(Provider::Twilio, number as u64);
    setup.journal = false;
    let reach = Reach {
        voice_url: Some(format!("http://{relay}/phone/twilio/voice")),
        public_url: Some("https://relay.example.com".to_owned()),
        auth_token: Some(KEY.into()),
        ..Reach::default()
    };
    let Address::WebSocket { url, headers, .. } = reach.reach(&mut setup, unix_now()).await.unwrap().address else {
        unreachable!("Twilio's streams are WebSockets")
    };
    let mut request = url.into_client_request().unwrap();
    for (name, value) in &headers {
        let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
        request.headers_mut().insert(name, value.expose_secret().parse().unwrap());
    }
    let tcp = TcpStream::connect(relay).await.unwrap();
    tcp.set_nodelay(true).unwrap();
    let (mut ws, _) = tokio_tungstenite::client_async(request, tcp).await.unwrap();
    let stream = setup.ids.stream.clone();
    let mut line = Line::new(setup);
    line.open(Duration::ZERO);
    while let Some(provider::Message::Text(text)) = line.poll(Duration::ZERO) {
        ws.send(Message::text(text)).await.unwrap();
    }
    (ws, stream)
}

/// 20 ms of G.711 that say when they were sent.
fn audio(number: u16) -> String {
    let mut audio = [0x7E; BYTES];
    #[expect(clippy::cast_possible_truncation, reason = "stamps wrap")]
    audio[..6].copy_from_slice(&Stamp { number, due: frames::wall() as u32 }.bytes());
    STANDARD.encode(audio)
}

/// The age of audio that stands behind `key`, microseconds.
fn age(text: &str, key: &str) -> Option<i32> {
    let at = memchr::memmem::find(text.as_bytes(), key.as_bytes())? + key.len();
    let stamp = STANDARD.decode(text.get(at..at + 8)?).ok()?;
    Some(frames::since(Stamp::read(&stamp)?.due, frames::wall()))
}

async fn begin(mut speaks: watch::Receiver<bool>, offset: Duration) -> time::Interval {
    let _ = speaks.wait_for(|speaks| *speaks).await;
    let mut interval = time::interval_at(Instant::now() + offset, FRAME);
    interval.set_missed_tick_behavior(MissedTickBehavior::Burst);
    interval
}

async fn talk(
    ws: WebSocketStream<TcpStream>,
    stream: String,
    offset: Duration,
    speaks: watch::Receiver<bool>,
    ages: Shared,
) {
    let (mut write, mut read) = ws.split();
    let speaking = async {
        let mut interval = begin(speaks, offset).await;
        for number in 0_u64.. {
            interval.tick().await;
            let media = format!(
                r#"{{"event":"media","sequenceNumber":"{}","media":{{"track":"inbound","chunk":"{}","timestamp":"{}","payload":"{}"}},"streamSid":"{stream}"}}"#,
                number + 2,
                number + 1,
                number * 20,
                audio(number.to_le_bytes().first_chunk().map_or(0, |low| u16::from_le_bytes(*low)))
            );
            if write.send(Message::text(media)).await.is_err() {
                return;
            }
        }
    };
    let hearing = async {
        while let Some(Ok(message)) = read.next().await {
            if let Some(age) = message.to_text().ok().and_then(|text| age(text, r#""payload":""#)) {
                ages.lock().unwrap().down.push(age);
            }
        }
    };
    tokio::select! { () = speaking => {}, () = hearing => {} }
}

async fn session(tcp: TcpStream, offset: Duration, speaks: watch::Receiver<bool>, ages: Shared) {
    tcp.set_nodelay(true).unwrap();
    let Ok(ws) = tokio_tungstenite::accept_async(tcp).await else { return };
    let (mut write, mut read) = ws.split();
    if write.send(Message::text(CREATED)).await.is_err() {
        return;
    }
    let (configured, mut update) = mpsc::unbounded_channel();
    let speaking = async {
        if update.recv().await.is_none() || write.send(Message::text(UPDATED)).await.is_err() {
            return;
        }
        let mut interval = begin(speaks, offset).await;
        if write.send(Message::text(REPLY)).await.is_err() {
            return;
        }
        for number in 0.. {
            interval.tick().await;
            let delta = format!(
                r#"{{"type":"response.output_audio.delta","event_id":"event_4","response_id":"resp_1","item_id":"item_1","output_index":0,"content_index":0,"delta":"{}"}}"#,
                audio(number)
            );
            if write.send(Message::text(delta)).await.is_err() {
                return;
            }
        }
    };
    let hearing = async {
        while let Some(Ok(message)) = read.next().await {
            let Ok(text) = message.to_text() else { continue };
            if text.contains(r#""type":"session.update""#) {
                let _ = configured.send(());
            } else if let Some(age) = age(text, r#""audio":""#) {
                ages.lock().unwrap().up.push(age);
            }
        }
    };
    tokio::select! { () = speaking => {}, () = hearing => {} }
}
