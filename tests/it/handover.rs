//! Deploys: one process goes, another one comes (fault matrix O1, O5; docs/deploys.md). Real processes, a service in this one.
use std::{
    io::{Read as _, Write as _},
    net::SocketAddr,
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures_util::SinkExt as _;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
    time::{self, Instant},
};
use tokio_tungstenite::tungstenite::Message;
use voxrelay::{
    config::{KeyConfig, Scope},
    provider::{self, Provider, Reach, Setup},
    sim::{Faults, Sim, SimConfig},
    wall::unix_now,
};

use crate::{
    canary,
    commands::{Listening, run, voxrelay},
    resume::{Line, assert_same, numbered},
    support::{Client, Got, http, new_key, until},
    tls,
};

/// What relays that follow one another have in common.
struct Site {
    dir: tempfile::TempDir,
    sim: Sim,
    addr: SocketAddr,
    /// Further arguments of each.
    args: Vec<String>,
}

impl Site {
    /// The first relay runs. `drain_s`: their patience.
    async fn new(sim: SimConfig, drain_s: u64) -> (Self, Listening) {
        let site = Self::prepared(sim, drain_s, "").await;
        let first = site.start();
        (Self { addr: first.addr, ..site }, first)
    }

    /// None runs yet. `more`: of the configuration.
    async fn prepared(sim: SimConfig, drain_s: u64, more: &str) -> Self {
        let sim = Sim::start("127.0.0.1:0".parse().unwrap(), sim, Faults::default()).await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        let site = Self { dir, sim, addr: "127.0.0.1:0".parse().unwrap(), args: Vec::new() };
        site.configure(drain_s, more);
        site
    }

    /// The configuration of those that are started from now on. The ones that run read it anew only when they are told.
    fn configure(&self, drain_s: u64, more: &str) {
        let config = format!(
            "[server]\ndrain_s = {drain_s}\n[upstream]\nconnect_timeout_ms = 30000\nsession_timeout_ms = 30000\n{more}"
        );
        std::fs::write(self.dir.path().join("voxrelay.toml"), config).unwrap();
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("relay.sock")
    }

    fn command(&self) -> std::process::Command {
        let mut command = voxrelay();
        command.args(["serve", "--listen", &self.addr.to_string(), "--upstream", &self.sim.base_url()]);
        command.arg("--config").arg(self.dir.path().join("voxrelay.toml"));
        command.arg("--handover").arg(self.socket()).arg("--ledger").arg(self.dir.path().join("ledger.db"));
        // Tenants of one test are none of the others.
        command.args(&self.args).env("OPENAI_API_KEY", "sk-test").env("XDG_DATA_HOME", self.dir.path().join("data"));
        command
    }

    fn start(&self) -> Listening {
        tokio::task::block_in_place(|| Listening::start(&mut self.command()))
    }
}

/// Waits for the end of a process, which must be a good one.
fn left(relay: Listening) -> String {
    let (code, stderr) = tokio::task::block_in_place(|| relay.end());
    assert_eq!(code, 0, "{stderr}");
    stderr
}

async fn healthy(addr: SocketAddr) -> bool {
    let ask = async {
        let mut tcp = TcpStream::connect(addr).await?;
        tcp.write_all(format!("GET /healthz HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n").as_bytes()).await?;
        let mut answer = String::new();
        tcp.read_to_string(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    ask.await.is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn o5_no_connection_is_refused_while_processes_follow_one_another() {
    const RESTARTS: usize = 10;
    let (site, mut relay) = Site::new(SimConfig::default(), 3).await;
    let (over, refused, served) =
        (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let (addr, done) = (site.addr, over.clone());
    let (bad, good) = (refused.clone(), served.clone());
    let mut load = JoinSet::new();
    load.spawn(async move {
        let mut asking = JoinSet::new();
        let mut tick = time::interval(Duration::from_millis(10));
        for n in 0.. {
            tick.tick().await;
            if done.load(Ordering::Relaxed) {
                break;
            }
            asking.spawn(async move {
                if n % 2 == 0 {
                    return healthy(addr).await;
                }
                let mut client = Client::connect(&format!("ws://{addr}/v1/voice")).await;
                let ready = client.json_next().await["type"] == "ready";
                client.json(r#"{"type":"close"}"#).await;
                ready
            });
        }
        while let Some(asked) = asking.join_next().await {
            let counter = if asked.unwrap_or(false) { &good } else { &bad };
            counter.fetch_add(1, Ordering::Relaxed);
        }
    });
    for _ in 0..RESTARTS {
        time::sleep(Duration::from_millis(200)).await;
        let next = site.start();
        assert_eq!(next.addr, site.addr);
        left(std::mem::replace(&mut relay, next));
    }
    over.store(true, Ordering::Relaxed);
    load.join_all().await;
    let (refused, served) = (refused.load(Ordering::Relaxed), served.load(Ordering::Relaxed));
    assert_eq!(refused, 0, "of {}", refused + served);
    assert!(served > 200, "{served}");
}

/// Hears until the server goes away.
async fn until_sent_away(line: &mut Line) {
    loop {
        match line.hear().await {
            Got::Json(_) | Got::Audio(_) => {}
            end => return assert_eq!(end, Got::Closed(1001)),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn o5_an_utterance_goes_on_in_the_next_process() {
    let (site, first) = Site::new(SimConfig { record_audio: true, ..SimConfig::default() }, 10).await;
    let mut line = Line::at(site.addr, "turns=manual", None).await;
    let all = numbered(0, 48_000);
    let (before, after) = all.split_at(48_000);
    for piece in before.chunks(960) {
        line.speak(piece).await;
    }
    line.listen(Duration::from_millis(300)).await;
    let second = site.start();
    until_sent_away(&mut line).await;
    assert_eq!(line.of("draining").len(), 1);
    line.lose();
    for piece in after.chunks(960) {
        line.speak(piece).await;
    }
    line.back().await;
    line.say(&json!({"type": "commit"})).await;
    let ended = line.until("reply_ended").await;
    assert_eq!((ended["status"].as_str(), ended["audio_ms"].as_u64()), (Some("completed"), Some(2_000)));
    assert_eq!(line.audio.len(), all.len());
    let stats = site.sim.stats();
    assert_eq!(stats.recorded.len(), 2, "one session in each process");
    assert_same(&stats.recorded[1].audio, &all, "what the second session heard");
    assert_eq!(line.of("reply_started").len(), 1);
    let log = left(first);
    assert!(log.contains("the call was handed over"), "{log}");
    drop(second);
}

#[tokio::test(flavor = "multi_thread")]
async fn o5_an_answer_that_does_not_fit_the_grace_goes_on_in_the_next_process() {
    let mut sim = SimConfig::default();
    sim.reply.speed = 1_000.0;
    let (site, first) = Site::new(sim, 1).await;
    let question = numbered(0, 120_000); // five seconds
    let mut whole = Line::at(site.addr, "turns=manual", None).await;
    whole.speak(&question).await;
    whole.say(&json!({"type": "commit"})).await;
    whole.until("reply_ended").await;
    let mut cut = Line::at(site.addr, "turns=manual", None).await;
    cut.speak(&question).await;
    cut.say(&json!({"type": "commit"})).await;
    cut.until("reply_started").await;
    let second = site.start();
    until_sent_away(&mut cut).await;
    let had = cut.audio.len();
    assert!(had > 0 && had < whole.audio.len(), "{had} bytes came before");
    cut.lose();
    time::sleep(Duration::from_millis(200)).await;
    cut.back().await;
    let ended = cut.until("reply_ended").await;
    assert_eq!((ended["status"].as_str(), &ended["heard_ms"]), (Some("completed"), &ended["audio_ms"]), "{ended}");
    assert_same(&cut.audio, &whole.audio, "an answer over two processes");
    left(first);
    drop(second);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_away_or_comes_early_finds_its_call_in_the_next_process() {
    let mut sim = SimConfig::default();
    sim.reply.speed = 1_000.0;
    let (site, first) = Site::new(sim, 20).await;
    let mut away = Line::at(site.addr, "turns=manual", None).await;
    let mut early = Line::at(site.addr, "turns=manual", None).await;
    early.speak(&numbered(0, 120_000)).await;
    early.say(&json!({"type": "commit"})).await;
    while early.audio.is_empty() {
        early.hear().await; // an answer that has not begun to sound would begin anew
    }
    early.listen(Duration::from_millis(200)).await;
    away.lose();
    let second = site.start();
    // Its answer fits the grace: the first process would keep it for seconds, had it not come before.
    early.until("draining").await;
    early.lose();
    let took = early.back().await;
    assert!(took < Duration::from_secs(2), "{took:?}");
    away.back().await;
    away.say(&json!({"type": "text", "text": "hello"})).await;
    for line in [&mut early, &mut away] {
        let ended = line.until("reply_ended").await;
        assert_eq!(ended["status"], "completed", "{ended} after {:?}", line.heard);
    }
    assert_eq!((early.audio.len(), away.of("draining").len()), (240_000, 0));
    left(first);
    drop(second);
}

/// A client of OpenAI's protocol that has asked to be able to come back.
struct Keeper {
    client: Client,
    way: String,
    got: u64,
    said: Vec<String>,
}

impl Keeper {
    async fn say(&mut self, text: String) {
        self.client.json(&text).await;
        self.said.push(text);
    }

    async fn until(&mut self, kind: &str) -> Value {
        loop {
            let event = self.client.json_next().await;
            self.got += 1;
            if event["type"] == kind {
                return event;
            }
        }
    }

    /// Comes back where it was, and says again what was not taken.
    async fn back(&mut self, addr: SocketAddr) {
        let url = format!("ws://{addr}/v1/realtime?voxrelay_resume={}&voxrelay_got={}", self.way, self.got);
        self.client = Client::connect(&url).await;
        let resumed = self.client.json_next().await;
        assert_eq!(resumed["type"], "voxrelay.resumed", "{resumed}");
        self.way = resumed["resume"].as_str().unwrap().to_owned();
        let taken = usize::try_from(resumed["got"].as_u64().unwrap()).unwrap();
        for text in self.said.get(taken..).unwrap().to_vec() {
            self.client.json(&text).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn o5_a_call_of_openais_protocol_goes_on_in_the_next_process_if_its_client_asked_for_it() {
    let (site, first) = Site::new(SimConfig { record_audio: true, ..SimConfig::default() }, 10).await;
    let url = format!("ws://{}/v1/realtime", site.addr);
    let mut plain = Client::connect(&url).await;
    plain.until("session.created").await;
    let mut client = Client::connect(&format!("{url}?voxrelay_resume=1")).await;
    let created = client.until("session.created").await;
    let way = created["voxrelay"]["resume"].as_str().unwrap().to_owned();
    let mut keeper = Keeper { client, way, got: 0, said: Vec::new() };
    // A legacy client: what it calls things must be known in the next process, too.
    let update = |temperature: f64| {
        json!({"type": "session.update", "session": {"modalities": ["text", "audio"], "turn_detection": null,
            "input_audio_format": "pcm16", "temperature": temperature}})
        .to_string()
    };
    keeper.say(update(0.7)).await;
    keeper.until("session.updated").await;
    let append = |audio: &[u8]| json!({"type": "input_audio_buffer.append", "audio": STANDARD.encode(audio)});
    let all = numbered(0, 48_000);
    let (before, after) = all.split_at(48_000);
    keeper.say(append(before).to_string()).await;
    until("the service has it", || site.sim.stats().recorded.iter().any(|heard| heard.audio.len() == 48_000)).await;
    let second = site.start();
    assert_eq!(keeper.client.next().await, Got::Closed(1001));
    assert_eq!(plain.end().await, (None, 1001));
    keeper.back(site.addr).await;
    keeper.say(append(after).to_string()).await;
    keeper.say(r#"{"type":"input_audio_buffer.commit"}"#.to_owned()).await;
    keeper.say(r#"{"type":"response.create"}"#.to_owned()).await;
    let done = keeper.until("response.done").await;
    assert_eq!(
        (done["response"]["status"].as_str(), &done["response"]["modalities"]),
        (Some("completed"), &json!(["text", "audio"])),
        "{done}"
    );
    keeper.say(r#"{"type":"session.update","session":{"instructions":"Be brief."}}"#.to_owned()).await;
    assert_eq!(keeper.until("session.updated").await["session"]["temperature"], 0.7);
    let recorded = site.sim.stats().recorded;
    assert_same(&recorded.last().unwrap().audio, &all, "what the session in the second process heard");
    assert_eq!(recorded.len(), 2, "one in each process");
    let log = left(first);
    assert_eq!(log.matches("the call was handed over").count(), 1, "{log}");
    drop(second);
}

#[tokio::test(flavor = "multi_thread")]
async fn o1_without_a_successor_turns_finish_and_calls_end() {
    let (site, relay) = Site::new(SimConfig::default(), 2).await;
    let mut quiet = Line::at(site.addr, "turns=manual", None).await;
    let mut busy = Line::at(site.addr, "turns=manual", None).await;
    busy.speak(&numbered(0, 12_000)).await;
    busy.say(&json!({"type": "commit"})).await;
    busy.until("reply_started").await;
    let began = Instant::now();
    relay.signal("-TERM");
    assert_eq!(quiet.until("draining").await["deadline_ms"].as_u64().map(|ms| ms <= 2_000), Some(true));
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    assert!(!healthy(site.addr).await, "nobody is let in");
    assert_eq!(busy.until("reply_ended").await["status"], "completed");
    until_sent_away(&mut busy).await;
    until_sent_away(&mut quiet).await;
    left(relay);
    assert!(began.elapsed() < Duration::from_secs(2 + 1 + 2), "{:?}", began.elapsed());
    let again = site.start();
    assert_eq!(Line::refused(&quiet.way_back(), None).await.1, 4410);
    // A second signal makes an end at once.
    let mut client = Client::connect(&format!("ws://{}/v1/voice", again.addr)).await;
    client.until("ready").await;
    let began = Instant::now();
    again.signal("-TERM");
    client.until("draining").await;
    again.signal("-TERM");
    assert_eq!(client.end().await, (None, 1001));
    left(again);
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn o2_after_a_kill_it_is_ready_at_once_and_no_row_is_missing_or_double() {
    let (site, relay) = Site::new(SimConfig::default(), 2).await;
    let mut line = Line::at(site.addr, "turns=manual&pace=fast", None).await;
    for turn in 0..3 {
        line.speak(&numbered(turn * 12_000, 12_000)).await;
        line.say(&json!({"type": "commit"})).await;
        line.until("reply_ended").await;
    }
    let rows = || {
        let sql = rusqlite::Connection::open(site.dir.path().join("ledger.db")).unwrap();
        sql.query_row("SELECT count(*), count(DISTINCT id) FROM usage WHERE kind = 'reply'", [], |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?))
        })
        .unwrap()
    };
    until("what is older than a second is written", || rows() == (3, 3)).await;
    line.speak(&numbered(36_000, 12_000)).await;
    line.say(&json!({"type": "commit"})).await;
    line.until("reply_started").await;
    relay.signal("-KILL");
    drop(relay);
    let began = Instant::now();
    let _again = site.start();
    assert!(healthy(site.addr).await);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    let (all, different) = rows();
    assert!(all == different && (3..=4).contains(&all), "{all} rows, {different} replies");
    assert_eq!(Line::refused(&line.way_back(), None).await.1, 4410, "old calls are answered plainly");
}

/// A process that may have so many files and sockets open.
fn limited(files: u32, sim: &Sim) -> Listening {
    let inner = voxrelay();
    let mut command = std::process::Command::new("sh");
    command.arg("-c").arg(format!("ulimit -n {files}; exec \"$0\" \"$@\"")).arg(inner.get_program());
    command.args(["serve", "--listen", "127.0.0.1:0", "--upstream", &sim.base_url()]).env("OPENAI_API_KEY", "sk-test");
    for (name, value) in inner.get_envs() {
        match value {
            Some(value) if name != "OPENAI_API_KEY" => command.env(name, value),
            Some(_) => &mut command,
            None if name != "OPENAI_API_KEY" => command.env_remove(name),
            None => &mut command,
        };
    }
    tokio::task::block_in_place(|| Listening::start(&mut command))
}

#[tokio::test(flavor = "multi_thread")]
async fn o4_used_up_descriptors_disturb_no_call_and_come_back() {
    let sim = Sim::start("127.0.0.1:0".parse().unwrap(), SimConfig::default(), Faults::default()).await.unwrap();
    let relay = limited(64, &sim);
    let mut call = Client::connect(&format!("ws://{}/v1/voice", relay.addr)).await;
    call.until("ready").await;
    let mut held = Vec::new();
    for _ in 0..80 {
        held.push(TcpStream::connect(relay.addr).await.unwrap());
    }
    let refused = time::timeout(Duration::from_millis(500), healthy(relay.addr)).await;
    assert!(!refused.unwrap_or(false), "there is nothing left for one more");
    call.json(r#"{"type":"text","text":"hello"}"#).await;
    assert_eq!(call.until("reply_ended").await["status"], "completed", "who is in, is served");
    drop(held);
    let began = Instant::now();
    while !healthy(relay.addr).await {
        assert!(began.elapsed() < Duration::from_secs(5), "it has not recovered");
    }
}

fn ask(site: &Site, words: &[u8]) -> String {
    let mut peer = UnixStream::connect(site.socket()).unwrap();
    peer.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    peer.write_all(words).unwrap();
    let mut answer = String::new();
    let _ = peer.read_to_string(&mut answer);
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_asks_for_a_handover_wrongly_changes_nothing() {
    let (site, first) = Site::new(SimConfig::default(), 10).await;
    let mut line = Line::at(site.addr, "", None).await;
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(site.socket()).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    let silent = UnixStream::connect(site.socket()).unwrap();
    tokio::task::block_in_place(|| {
        let other = ask(&site, b"voxrelay handover 999\n");
        assert!(other.starts_with("refused: found `voxrelay handover 999`; allowed: `voxrelay handover "), "{other}");
        assert!(ask(&site, b"GET / HTTP/1.1\n").starts_with("refused: "));
        assert_eq!(ask(&site, &[b'x'; 100_000][..200]), "", "no line within two seconds");
        assert_eq!(ask(&site, b"\xff\xfe\n"), "");
        // One that asks well, gets the socket, and dies before it serves.
        let mut dies = UnixStream::connect(site.socket()).unwrap();
        dies.write_all(b"voxrelay handover 5\n").unwrap();
        dies.read_exact(&mut [0; 10]).unwrap();
    });
    line.say(&json!({"type": "ping", "t": 1})).await;
    line.until("pong").await;
    assert!(line.of("draining").is_empty() && healthy(site.addr).await);
    let second = site.start();
    until_sent_away(&mut line).await;
    line.lose();
    line.back().await;
    left(first);
    drop((second, silent));
}

/// How far a process comes that follows and dies.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Dies {
    Connected,
    WithTheListener,
    Serving,
    WithACall,
}

/// Whether a relay says at once that it is ready.
fn is_ready(addr: SocketAddr) -> bool {
    let mut tcp = std::net::TcpStream::connect(addr).unwrap();
    tcp.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    tcp.write_all(format!("GET /readyz HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n").as_bytes()).unwrap();
    let mut answer = [0; 12];
    tcp.read_exact(&mut answer).is_ok() && &answer == b"HTTP/1.1 200"
}

/// A process that follows as far as that, and is gone; how long the call is that it had, if it had one.
fn follow_and_die(site: &Site, when: Dies) -> Option<usize> {
    let mut peer = UnixStream::connect(site.socket()).unwrap();
    peer.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut say = |words: &[u8], answer: &[u8]| {
        peer.write_all(words).unwrap();
        let mut heard = vec![0; answer.len()];
        peer.read_exact(&mut heard).unwrap();
        assert_eq!(heard, answer);
    };
    if when == Dies::Connected {
        return None;
    }
    say(b"voxrelay handover 5\n", b"voxrelay handover 5\n");
    if when == Dies::WithTheListener {
        return None;
    }
    say(b"serving\n", b"yours\n");
    if when == Dies::Serving {
        // The one before has noticed: it lets nobody in any more, or says that it is not ready.
        while is_ready(site.addr) {}
        return None;
    }
    loop {
        let mut length = [0; 4];
        peer.read_exact(&mut length).unwrap();
        let mut message = vec![0; u32::from_be_bytes(length) as usize];
        peer.read_exact(&mut message).unwrap();
        // Others tell of telephone calls whose streams are on their way.
        if message.first() == Some(&b'c') {
            return Some(message.len());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_successor_that_dies_on_the_way_loses_nothing_and_the_next_one_takes_over() {
    let (site, first) = Site::new(SimConfig { record_audio: true, ..SimConfig::default() }, 20).await;
    // One speaks, one is away, one hears an answer that fits the grace.
    let mut speaks = Line::at(site.addr, "turns=manual", None).await;
    let mut away = Line::at(site.addr, "turns=manual", None).await;
    let mut hears = Line::at(site.addr, "turns=manual", None).await;
    let all = numbered(0, 72_000);
    let mut pieces = all.chunks(960 * 25);
    speaks.speak(pieces.next().unwrap()).await;
    away.say(&json!({"type": "ping", "t": 1})).await;
    away.until("pong").await;
    away.lose();
    let mut followed = 0;
    for when in [Dies::Connected, Dies::WithTheListener, Dies::Serving, Dies::WithACall, Dies::WithACall] {
        hears.speak(&numbered(0, 12_000)).await;
        hears.say(&json!({"type": "commit"})).await;
        hears.until("reply_started").await;
        let had = tokio::task::block_in_place(|| follow_and_die(&site, when));
        assert_eq!(had.is_some_and(|bytes| bytes > 1_000), when == Dies::WithACall, "{when:?}: {had:?}");
        assert!(healthy(site.addr).await, "{when:?}: it serves");
        followed += usize::from([Dies::Serving, Dies::WithACall].contains(&when));
        // Whoever hears something hears it out; whoever speaks goes on; whoever is away comes back; and others come in.
        assert_eq!(hears.until("reply_ended").await["status"], "completed", "{when:?}");
        speaks.speak(pieces.next().unwrap()).await;
        speaks.say(&json!({"type": "ping", "t": 2})).await;
        speaks.until("pong").await;
        away.back().await;
        away.say(&json!({"type": "ping", "t": 3})).await;
        away.until("pong").await;
        away.lose();
        let mut other = Client::connect(&format!("ws://{}/v1/voice", site.addr)).await;
        assert_eq!(other.json_next().await["type"], "ready", "{when:?}");
        other.json(r#"{"type":"close"}"#).await;
    }
    let ready = tokio::task::block_in_place(|| first.get("/readyz"));
    assert!(ready.ends_with("\nready\n"), "{ready}");
    for line in [&speaks, &away, &hears] {
        assert!(line.of("notice").is_empty(), "it kept its session: {:?}", line.heard);
    }
    // The next one is no worse off for it.
    let second = site.start();
    for line in [&mut speaks, &mut hears] {
        until_sent_away(line).await;
        line.lose();
    }
    // Told before it was over, or not at all.
    assert!((1..=followed + 1).contains(&speaks.of("draining").len()), "{:?}", speaks.heard);
    for line in [&mut speaks, &mut hears, &mut away] {
        line.back().await;
    }
    speaks.say(&json!({"type": "commit"})).await;
    let ended = speaks.until("reply_ended").await;
    assert_eq!((ended["status"].as_str(), ended["audio_ms"].as_u64()), (Some("completed"), Some(3_000)));
    assert!(site.sim.stats().recorded.iter().any(|session| session.audio == all), "one session heard all of it, once");
    let log = left(first);
    assert_eq!(log.matches("the process that followed is gone: this one serves again").count(), 2 * followed, "{log}");
    drop(second);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn over_tls_no_connection_is_refused_and_a_parked_call_is_found_in_the_next_process() {
    const RESTARTS: usize = 3;
    let mut site = Site::prepared(SimConfig::default(), 3, "").await;
    let files = tls::make(site.dir.path());
    let paths = [("--tls-cert", &files.cert), ("--tls-key", &files.key)];
    site.args = paths.iter().flat_map(|(name, file)| [(*name).to_owned(), file.display().to_string()]).collect();
    let mut relay = site.start();
    let (addr, root) = (relay.addr, tls::root(&files));
    site.addr = addr;
    assert!(!healthy(addr).await, "it speaks TLS and nothing else");
    let (parked, ready) = tls::call(addr, "", root.clone()).await.unwrap();
    assert_eq!(ready["type"], "ready");
    let (call, mut token) = (ready["call"].clone(), ready["resume"].as_str().unwrap().to_owned());
    drop(parked);
    let over = Arc::new(AtomicBool::new(false));
    let (done, trusted) = (over.clone(), root.clone());
    let mut load = JoinSet::new();
    load.spawn(async move {
        let mut asking = JoinSet::new();
        let mut tick = time::interval(Duration::from_millis(25));
        while !done.load(Ordering::Relaxed) {
            tick.tick().await;
            let trusted = trusted.clone();
            asking.spawn(async move {
                let (mut ws, first) = tls::call(addr, "", trusted).await?;
                let _ = ws.send(Message::text(r#"{"type":"close"}"#)).await;
                if first["type"] == "ready" { Ok(()) } else { Err(first.to_string()) }
            });
        }
        asking.join_all().await
    });
    for _ in 0..RESTARTS {
        time::sleep(Duration::from_millis(300)).await;
        let next = site.start();
        let log = left(std::mem::replace(&mut relay, next));
        assert!(log.contains("the call was handed over"), "{log}");
        // The process before has left: this one has it, or nobody.
        let (back, resumed) = tls::call(addr, &format!("resume={token}&got=0"), root.clone()).await.unwrap();
        assert_eq!((resumed["type"].as_str(), &resumed["call"]), (Some("resumed"), &call), "{resumed}");
        token = resumed["resume"].as_str().unwrap().to_owned();
        drop(back);
    }
    over.store(true, Ordering::Relaxed);
    let asked: Vec<Result<(), String>> = load.join_all().await.into_iter().flatten().collect();
    let refused: Vec<_> = asked.iter().filter_map(|asked| asked.as_ref().err()).collect();
    assert!(refused.is_empty(), "{} of {}: {refused:?}", refused.len(), asked.len());
    assert!(asked.len() > 50, "{}", asked.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_whose_key_the_next_process_does_not_know_ends_and_is_booked_once() {
    let ((old, old_key), (new, new_key)) = (new_key("old", &Scope::all(), None), new_key("new", &Scope::all(), None));
    let tenant = |keys: &[&KeyConfig]| {
        let key =
            |key: &&KeyConfig| format!("[[tenants.acme.keys]]\nlabel = \"{}\"\nhash = \"{}\"\n", key.label, key.hash);
        keys.iter().map(key).collect::<String>()
    };
    let mut sim = SimConfig::default();
    sim.reply.speed = 1.0; // an answer that is still being made
    let mut site = Site::prepared(sim, 10, &tenant(&[&old_key, &new_key])).await;
    let first = site.start();
    site.addr = first.addr;
    let mut revoked = Line::at(site.addr, "turns=manual", Some(&old)).await;
    let mut stays = Line::at(site.addr, "turns=manual", Some(&new)).await;
    for line in [&mut revoked, &mut stays] {
        line.speak(&numbered(0, 120_000)).await;
        line.say(&json!({"type": "commit"})).await;
        while line.audio.is_empty() {
            line.hear().await;
        }
        line.lose();
    }
    let opened = site.sim.stats().sessions_opened;
    assert_eq!(opened, 2);
    site.configure(10, &tenant(&[&new_key]));
    let second = site.start();
    let log = left(first);
    assert_eq!(log.matches("the call could not be handed over").count(), 1, "{log}");
    assert_eq!(log.matches("the call was handed over").count(), 1, "{log}");
    // With its own key nobody comes in; with another one of the tenant, there is no such call.
    let path = revoked.way_back().replace(&format!("ws://{}", site.addr), "");
    let bearer = format!("Bearer {old}");
    let Err((status, code)) = Client::dial(site.addr, &path, &[("authorization", &bearer)]).await else {
        panic!("a revoked key came in");
    };
    assert_eq!((status, code.as_str()), (401, "unauthorized"));
    let (error, close, _) = Line::refused(&revoked.way_back(), Some(&new)).await;
    assert_eq!((error["code"].as_str(), close), (Some("resume_refused"), 4410));
    stays.back().await;
    let ended = stays.until("reply_ended").await;
    assert_eq!(site.sim.stats().sessions_opened, opened + 1, "nothing upstream for the one that was revoked");
    stays.say(&json!({"type": "close"})).await;
    while !matches!(stays.hear().await, Got::Closed(1000)) {}
    second.signal("-TERM");
    left(second);
    let sql = rusqlite::Connection::open(site.dir.path().join("ledger.db")).unwrap();
    let mut rows = sql.prepare("SELECT key, status FROM usage WHERE kind = 'reply' AND call = ?1").unwrap();
    let mut of = |line: &Line| -> Vec<(String, String)> {
        rows.query_map([&line.call], |row| Ok((row.get(0)?, row.get(1)?))).unwrap().map(Result::unwrap).collect()
    };
    assert_eq!(of(&revoked), [("old".to_owned(), "interrupted".to_owned())]);
    assert_eq!(of(&stays).len(), 1, "{ended}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_telephone_call_that_was_answered_here_has_its_stream_in_the_next_process() {
    const TOKEN: &str = "phone-key-of-a-handover-0123456789";
    const PUBLIC: &str = "https://relay.example.com";
    let phones = format!(
        "[phone]\npublic_url = \"{PUBLIC}\"\n[phone.accounts.plivo]\nauth_token = \"{TOKEN}\"\n\
         account = \"MA00000000000000000000\"\n[[phone.numbers]]\nnumber = \"*\"\nagent = \"default\"\n"
    );
    canary::plant(TOKEN);
    let mut site = Site::prepared(SimConfig::instant(), 5, &phones).await;
    let first = site.start();
    site.addr = first.addr;
    let asked = async |seed: u64| {
        let mut setup = Setup::new(Provider::Plivo, seed);
        let reach = Reach {
            voice_url: Some(format!("http://{}/phone/plivo/voice", site.addr)),
            public_url: Some(PUBLIC.to_owned()),
            auth_token: Some(TOKEN.into()),
            ..Reach::default()
        };
        reach.reach(&mut setup, unix_now()).await.unwrap();
        setup
    };
    let open = async |setup: &Setup| {
        let mut client = Client::dial(site.addr, "/phone/plivo/stream", &[]).await.unwrap();
        let mut line = provider::Line::new(setup.clone());
        line.open(Duration::ZERO);
        while let Some(message) = line.poll(Duration::ZERO) {
            let provider::Message::Text(text) = message else { panic!("text") };
            client.json(&text).await;
        }
        client
    };
    let (used, at_once, later) = (asked(1).await, asked(2).await, asked(3).await);
    let stays = open(&used).await;
    let opened = |n: u64| site.sim.stats().sessions_opened == n;
    until("the first call's session is up", || opened(1)).await;
    let second = site.start();
    let quick = open(&at_once).await;
    until("the second call's session is up", || opened(2)).await;
    stays.close_with(1000).await;
    left(first);
    let slow = open(&later).await;
    until("the third call's session is up", || opened(3)).await;
    for setup in [&used, &at_once, &later] {
        assert_eq!(open(setup).await.end().await.1, 1008, "each token is good once");
    }
    assert!(opened(3));
    for client in [quick, slow] {
        client.close_with(1000).await;
    }
    second.signal("-TERM");
    left(second);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_is_refused_the_handover_says_so_and_leaves() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("relay.sock");
    for answer in ["refused: found `voxrelay handover 5`; allowed: `voxrelay handover 999`\n", "voxrelay handover 5\n"]
    {
        let listener = UnixListener::bind(&path).unwrap();
        let other = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.read_exact(&mut [0; 20]).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
        });
        let mut command = voxrelay();
        command.args(["serve", "--listen", "127.0.0.1:0", "--handover"]).arg(&path);
        let (code, _, stderr) = tokio::task::block_in_place(|| run(&mut command));
        other.join().unwrap();
        assert_eq!(code, 1, "{stderr}");
        assert!(
            stderr.contains("server.handover: the relay that listens at") && stderr.contains(answer.trim()),
            "{stderr}"
        );
        std::fs::remove_file(&path).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn o3_sighup_takes_a_configuration_whole_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("voxrelay.toml");
    let agent = |name: &str| format!("[agents.{name}]\ninstructions = \"x\"\n");
    std::fs::write(&file, agent("one")).unwrap();
    let mut command = voxrelay();
    command.args(["serve", "--listen", "127.0.0.1:0", "--config"]).arg(&file);
    let relay = tokio::task::block_in_place(|| Listening::start(&mut command));
    let agents = || {
        let body = relay.get("/v1/agents");
        let body = body.split("\r\n\r\n").nth(1).unwrap_or_default();
        serde_json::from_str::<Value>(body).unwrap_or_default()["agents"].to_string()
    };
    let has = async |name: &str| {
        let end = Instant::now() + Duration::from_secs(20);
        while !agents().contains(name) {
            assert!(Instant::now() < end, "{name} never came");
            time::sleep(Duration::from_millis(20)).await;
        }
    };
    has("one").await;
    relay.signal("-HUP"); // nothing has changed
    time::sleep(Duration::from_millis(400)).await;
    std::fs::write(&file, format!("{}[audio]\nchunk_ms = 1\n", agent("two"))).unwrap();
    relay.signal("-HUP");
    time::sleep(Duration::from_millis(600)).await;
    assert!(agents().contains("one") && !agents().contains("two"), "a broken one is not taken in part");
    std::fs::write(&file, agent("three")).unwrap();
    relay.signal("-HUP");
    has("three").await;
    relay.signal("-TERM");
    let log = left(relay);
    for words in [
        "the configuration has not changed",
        "audio.chunk_ms: found 1; allowed: 20 to 200 ms",
        "the changed configuration is refused: what was in force stays in force",
        "the changed configuration is read: agents, tenants, budgets, signing keys, prices and limits",
    ] {
        assert!(log.contains(words), "{words}: {log}");
    }
}

/// A list in which every token of the model costs so many USD a million.
fn price_list(usd: &str) -> String {
    let prices: String =
        ["text_in", "audio_in", "text_out", "audio_out"].map(|kind| format!("{kind} = {usd}\n")).concat();
    format!("[models.house-realtime]\nas_of = \"2026-11-01\"\nsource = \"us\"\n{prices}")
}

#[tokio::test(flavor = "multi_thread")]
async fn sighup_takes_prices_and_limits_for_calls_that_run_and_refuses_a_broken_one_whole() {
    let (key, config) = new_key("ops", &Scope::all(), None);
    let mut site = Site::prepared(SimConfig::instant(), 10, "").await;
    let (list, ledger) = (site.dir.path().join("prices.toml"), site.dir.path().join("ledger.db"));
    let configure = |site: &Site, tokens: u64| {
        let more = format!(
            "model = \"house-realtime\"\n[[upstream.limits]]\ntokens = {tokens}\n[prices]\nfile = {list:?}\n[agents.default]\n\
             max_output_tokens = 200\n[[tenants.acme.keys]]\nlabel = \"ops\"\nhash = \"{}\"\nscopes = [\"admin\", \"call\"]\n",
            config.hash
        );
        site.configure(10, &more);
    };
    std::fs::write(&list, price_list("\"1\"")).unwrap();
    configure(&site, 1_000_000);
    let relay = site.start();
    site.addr = relay.addr;
    let mut line = Line::at(site.addr, "turns=manual&pace=fast", Some(&key)).await;
    let limit = || async {
        let report = http().get(format!("http://{}/v1/limits", site.addr)).bearer_auth(&key);
        let report: Value = serde_json::from_str(&report.send().await.unwrap().text().await.unwrap()).unwrap();
        report.pointer("/upstream/quota/house-realtime/dimensions/1/limit").cloned().unwrap_or_default()
    };
    let is = async |tokens: u64| {
        let end = Instant::now() + Duration::from_secs(20);
        while limit().await != tokens {
            assert!(Instant::now() < end, "{tokens} never came");
            time::sleep(Duration::from_millis(20)).await;
        }
    };
    let answered = async |line: &mut Line| {
        let before = line.of("reply_ended").len();
        line.speak(&numbered(0, 9_600)).await;
        line.say(&json!({"type": "commit"})).await;
        while line.of("reply_ended").len() == before {
            line.hear().await;
        }
    };
    // What a token of the last row has cost, pico-dollars.
    let price = |rows: i64| {
        let sql = rusqlite::Connection::open(&ledger).unwrap();
        let row =
            "SELECT cost / total_tokens, count(*) OVER () FROM usage WHERE kind = 'reply' ORDER BY at DESC LIMIT 1";
        let found = sql.query_row(row, [], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)));
        found.ok().filter(|(_, all)| *all == rows).map(|(price, _)| price)
    };
    answered(&mut line).await;
    until("the first is booked", || price(1).is_some()).await;
    assert_eq!((price(1), limit().await), (Some(1_000_000), 1_000_000.into()));
    // Only the list is broken: the limits that came with it are not taken either.
    std::fs::write(&list, price_list("2.0")).unwrap();
    configure(&site, 2_000_000);
    relay.signal("-HUP");
    time::sleep(Duration::from_millis(600)).await;
    answered(&mut line).await;
    until("the second is booked", || price(2).is_some()).await;
    assert_eq!((price(2), limit().await), (Some(1_000_000), 1_000_000.into()));
    // Only the limits are broken.
    std::fs::write(&list, price_list("\"3\"")).unwrap();
    configure(&site, 0);
    relay.signal("-HUP");
    time::sleep(Duration::from_millis(600)).await;
    answered(&mut line).await;
    until("the third is booked", || price(3).is_some()).await;
    assert_eq!((price(3), limit().await), (Some(1_000_000), 1_000_000.into()));
    // Both are good. The call has been there all the time.
    configure(&site, 3_000_000);
    relay.signal("-HUP");
    is(3_000_000).await;
    answered(&mut line).await;
    until("the fourth is booked", || price(4).is_some()).await;
    assert_eq!(price(4), Some(3_000_000));
    // A list alone is seen, too, and nobody has to say so. What was booked keeps its price.
    std::fs::write(&list, price_list("\"4\"")).unwrap();
    let end = Instant::now() + Duration::from_secs(20);
    let mut rows = 4;
    while price(rows) != Some(4_000_000) {
        assert!(Instant::now() < end, "the list was never read");
        answered(&mut line).await;
        rows += 1;
        until("it is booked", || price(rows).is_some()).await;
    }
    let sql = rusqlite::Connection::open(&ledger).unwrap();
    let all =
        "SELECT group_concat(cost / total_tokens, ' ') FROM (SELECT * FROM usage WHERE kind = 'reply' ORDER BY at)";
    let all: String = sql.query_row(all, [], |row| row.get(0)).unwrap();
    assert!(all.starts_with("1000000 1000000 1000000 3000000 ") && all.ends_with("000 4000000"), "{all}");
    // So small that the next answer never fits.
    configure(&site, 20);
    relay.signal("-HUP");
    is(20).await;
    line.say(&json!({"type": "text", "text": "And now?"})).await;
    let error = line.until("error").await;
    assert_eq!(error["error"]["code"], "rate_limited", "{error}");
    line.say(&json!({"type": "close"})).await;
    relay.signal("-TERM");
    let log = left(relay);
    let refused = "the changed configuration is refused: what was in force stays in force";
    assert_eq!(log.matches(refused).count(), 2, "{log}");
    for words in ["models.\"house-realtime\".audio_in: found 2.0", "upstream.limits[0].tokens: found 0; allowed: 1 to"]
    {
        assert!(log.contains(words), "{words}: {log}");
    }
}
