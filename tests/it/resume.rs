//! Clients that lose their socket and come back (fault matrix C1-C4, C10; client-protocol.md, "Resume").
//!
//! [`Line`] is a client that keeps its half of the contract to the letter: it counts, keeps and says again, and notes all
//! that it hears, so that what was lost or doubled shows.
use std::{collections::VecDeque, net::SocketAddr, time::Duration};

use serde_json::{Value, json};
use tokio::time::{self, Instant};
use tokio_tungstenite::tungstenite::Message;
use voxrelay::{
    chaos::{Direction, Fault, Kind, Nth, Part, Proxy, Script, When},
    sim::SimConfig,
};

use crate::support::{Client, Got, Rig, tenant, until};

/// One thing that a client says.
#[derive(Clone)]
enum Word {
    Text(String),
    Audio(Vec<u8>),
}

/// A client that comes back.
pub(crate) struct Line {
    client: Option<Client>,
    base: String,
    key: Option<String>,
    token: String,
    pub(crate) call: String,
    /// Heard so far, and said.
    got: u64,
    said: u64,
    /// What no `ack` covers.
    kept: VecDeque<Word>,
    /// Messages, in the order in which they came.
    pub(crate) heard: Vec<Value>,
    /// Audio, likewise.
    pub(crate) audio: Vec<u8>,
}

impl Line {
    pub(crate) async fn begin(rig: &Rig, query: &str) -> Self {
        Self::at(rig.relay.addr(), query, None).await
    }

    async fn with_key(rig: &Rig, query: &str, key: Option<&str>) -> Self {
        Self::at(rig.relay.addr(), query, key).await
    }

    /// At this address, which may be that of a bad network.
    pub(crate) async fn at(addr: SocketAddr, query: &str, key: Option<&str>) -> Self {
        let base = format!("ws://{addr}/v1/voice");
        let mut client = dial(&format!("{base}?{query}"), key).await;
        let ready = client.until("ready").await;
        assert!(ready["limits"]["resume_window_s"].as_u64().is_some_and(|window| window > 0));
        Self {
            client: Some(client),
            base,
            key: key.map(str::to_owned),
            token: ready["resume"].as_str().expect("a token").to_owned(),
            call: ready["call"].as_str().unwrap().to_owned(),
            got: 0,
            said: 0,
            kept: VecDeque::new(),
            heard: Vec::new(),
            audio: Vec::new(),
        }
    }

    pub(crate) async fn say(&mut self, word: &Value) {
        self.put(Word::Text(word.to_string())).await;
    }

    pub(crate) async fn speak(&mut self, audio: &[u8]) {
        self.put(Word::Audio(audio.to_vec())).await;
    }

    async fn put(&mut self, word: Word) {
        self.said += 1;
        self.kept.push_back(word.clone());
        self.write(word).await;
    }

    async fn write(&mut self, word: Word) {
        // Away: it is said when we are back.
        let Some(client) = &mut self.client else { return };
        // Of a socket that is gone one hears so; what it did not take is said again on the next.
        match word {
            Word::Text(text) => client.tries(Message::text(text)).await,
            Word::Audio(audio) => client.tries(Message::binary(audio)).await,
        }
    }

    /// The next message or audio.
    pub(crate) async fn hear(&mut self) -> Got {
        let heard = self.client.as_mut().expect("connected").next().await;
        match &heard {
            Got::Json(message) => {
                self.got += 1;
                if let ("ack", Some(got)) = (message["type"].as_str().unwrap_or_default(), message["got"].as_u64()) {
                    while self.said - (self.kept.len() as u64) < got {
                        self.kept.pop_front();
                    }
                }
                self.heard.push(message.clone());
            }
            Got::Audio(audio) => {
                self.got += 1;
                self.audio.extend_from_slice(audio);
            }
            Got::Closed(_) | Got::Lost => {}
        }
        heard
    }

    pub(crate) async fn until(&mut self, kind: &str) -> Value {
        loop {
            match self.hear().await {
                Got::Json(message) if message["type"] == kind => return message,
                Got::Json(_) | Got::Audio(_) => {}
                end => panic!("{end:?} before `{kind}`"),
            }
        }
    }

    /// Hears for so long.
    pub(crate) async fn listen(&mut self, length: Duration) {
        let end = Instant::now() + length;
        while time::timeout_at(end, self.hear()).await.is_ok() {}
    }

    /// Hears for so long, or until it has heard this; comes back by itself when the network takes the socket away.
    async fn hears_on(&mut self, length: Duration, wanted: &str) {
        let end = Instant::now() + length;
        while self.of(wanted).is_empty() {
            match time::timeout_at(end, self.hear()).await {
                Ok(Got::Lost) => {
                    self.client = None;
                    self.back().await;
                }
                Ok(Got::Json(_) | Got::Audio(_)) => {}
                Ok(Got::Closed(code)) => panic!("closed with {code}"),
                Err(_) => return,
            }
        }
    }

    /// The network takes the socket away.
    pub(crate) fn lose(&mut self) {
        self.client.take().expect("connected").reset();
    }

    pub(crate) fn way_back(&self) -> String {
        format!("{}?resume={}&got={}", self.base, self.token, self.got)
    }

    /// Comes back on another socket, and says again what was not taken.
    pub(crate) async fn back(&mut self) -> Duration {
        let began = Instant::now();
        let mut client = dial(&self.way_back(), self.key.as_deref()).await;
        let resumed = client.json_next().await;
        assert_eq!(resumed["type"], "resumed", "{resumed}");
        assert_eq!(resumed["call"], self.call.as_str());
        let took = began.elapsed();
        self.token = resumed["resume"].as_str().expect("the next token").to_owned();
        let got = resumed["got"].as_u64().unwrap();
        let first = self.said - self.kept.len() as u64;
        assert!(got >= first, "{got} of {} messages, {first} of which were acknowledged", self.said);
        self.client = Some(client);
        let again: Vec<Word> = self.kept.iter().skip(usize::try_from(got - first).unwrap()).cloned().collect();
        for word in again {
            self.write(word).await;
        }
        took
    }

    /// Tries a way back that must lead nowhere: what is said, the close code and the time it took.
    pub(crate) async fn refused(url: &str, key: Option<&str>) -> (Value, u16, Duration) {
        let began = Instant::now();
        let mut client = dial(url, key).await;
        let mut error = client.json_next().await["error"].take();
        error.as_object_mut().unwrap().remove("request_id");
        let (_, close) = client.end().await;
        (error, close, began.elapsed())
    }

    pub(crate) fn of(&self, kind: &str) -> Vec<&Value> {
        self.heard.iter().filter(|message| message["type"] == kind).collect()
    }
}

async fn dial(url: &str, key: Option<&str>) -> Client {
    match key {
        None => Client::connect(url).await,
        Some(key) => {
            let rest = url.trim_start_matches("ws://");
            let (host, path) = rest.split_once('/').unwrap();
            let bearer = format!("Bearer {key}");
            let headers = [("authorization", bearer.as_str())];
            Client::dial(host.parse().unwrap(), &format!("/{path}"), &headers).await.unwrap()
        }
    }
}

/// A simulator that keeps what it hears.
fn keeping() -> SimConfig {
    SimConfig { record_audio: true, ..SimConfig::default() }
}

/// All audio that sessions were given, in their order.
pub(crate) fn recorded(rig: &Rig) -> Vec<Vec<u8>> {
    rig.sim.stats().recorded.into_iter().map(|recorded| recorded.audio).collect()
}

/// Two pieces of audio are the same; where they begin to differ, if not.
pub(crate) fn assert_same(found: &[u8], want: &[u8], what: &str) {
    let differ = found.iter().zip(want).position(|(a, b)| a != b);
    assert!(found == want, "{what}: {} bytes for {}, and they differ at {differ:?}", found.len(), want.len());
}

/// Samples that tell where they are from.
pub(crate) fn numbered(from: usize, samples: usize) -> Vec<u8> {
    (from..from + samples).flat_map(|n| u16::try_from(n % 60_000).unwrap().to_le_bytes()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn c1_a_reset_in_the_middle_of_an_utterance_loses_and_doubles_nothing() {
    let rig = Rig::with(|_| {}, keeping(), "").await;
    let mut line = Line::begin(&rig, "turns=manual").await;
    let all = numbered(0, 48_000);
    for (n, piece) in all.chunks(960).enumerate() {
        line.speak(piece).await;
        if n % 20 == 15 {
            line.lose();
            // What is said while away is said again.
            time::sleep(Duration::from_millis(30)).await;
        }
        if n % 20 == 19 {
            let took = line.back().await;
            assert!(took < Duration::from_secs(2), "{took:?}");
        }
    }
    line.say(&json!({"type": "commit"})).await;
    let ended = line.until("reply_ended").await;
    assert_eq!((ended["status"].as_str(), ended["audio_ms"].as_u64()), (Some("completed"), Some(2_000)));
    assert_eq!(recorded(&rig).len(), 1, "the upstream was kept");
    assert_same(&recorded(&rig)[0], &all, "what the session heard");
    assert_eq!(line.audio.len(), all.len(), "the answer is as long");
    assert_eq!(rig.sim.stats().sessions_opened, 1, "the upstream was kept");
    assert_eq!(line.of("reply_started").len(), 1);
}

/// The reader has a part of a message, and the one who wrote it all of it: it was not said.
#[tokio::test(flavor = "multi_thread")]
async fn c1_a_reset_in_the_middle_of_a_message_counts_nothing_of_it() {
    for (direction, nth) in [(Direction::ToServer, 9), (Direction::ToClient, 20)] {
        let rig = Rig::with(|_| {}, keeping(), "").await;
        let torn = (1..=4).fold(Script::new(0), |script, connection| {
            let when = When::Frame { nth: Nth::At(nth), part: Part::Middle };
            script.with(Fault::new(Kind::Reset).on(connection).to(direction).when(when))
        });
        let network = Proxy::start("127.0.0.1:0".parse().unwrap(), rig.relay.addr(), torn).await.unwrap();
        let mut line = Line::at(network.addr(), "turns=manual", None).await;
        let all = numbered(0, 48_000);
        for piece in all.chunks(960) {
            line.speak(piece).await;
            line.hears_on(Duration::from_millis(10), "reply_ended").await;
        }
        line.say(&json!({"type": "commit"})).await;
        line.hears_on(Duration::from_secs(20), "reply_ended").await;
        let ended = line.of("reply_ended");
        assert_eq!((ended.len(), &ended[0]["status"], &ended[0]["audio_ms"]), (1, &json!("completed"), &json!(2_000)));
        assert_eq!(network.stats().count("reset"), 4, "{direction:?}");
        assert_eq!(recorded(&rig).len(), 1, "the upstream was kept");
        assert_same(&recorded(&rig)[0], &all, "what the session heard");
        assert_same(&line.audio, &all, "what the caller heard of the echo");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn c1_a_reset_in_the_middle_of_an_answer_goes_on_where_it_was() {
    let rig = Rig::new().await;
    let mut whole = Line::begin(&rig, "turns=manual").await;
    let mut cut = Line::begin(&rig, "turns=manual").await;
    let question = std::fs::read("tests/clips/tone_1k_-12dbfs_24k.wav").unwrap();
    let question = &question[44..44 + 48_000].repeat(2);
    whole.speak(question).await;
    whole.say(&json!({"type": "commit"})).await;
    whole.until("reply_ended").await;
    cut.speak(question).await;
    cut.say(&json!({"type": "commit"})).await;
    let mut drops = 0;
    while cut.of("reply_ended").is_empty() {
        cut.listen(Duration::from_millis(250)).await;
        if cut.of("reply_ended").is_empty() {
            cut.lose();
            time::sleep(Duration::from_millis(100)).await;
            cut.back().await;
            drops += 1;
        }
    }
    assert!(drops >= 4, "{drops}");
    assert_same(&cut.audio, &whole.audio, "audio with drops in it");
    let kinds = |line: &Line| {
        let said = line.heard.iter().filter(|m| !["ack", "transcript"].contains(&m["type"].as_str().unwrap()));
        said.map(|m| m["type"].to_string()).collect::<Vec<_>>()
    };
    assert_eq!(kinds(&cut), kinds(&whole));
    let ended = cut.of("reply_ended")[0];
    assert_eq!((ended["status"].as_str(), &ended["heard_ms"]), (Some("completed"), &ended["audio_ms"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn c3_a_client_that_returns_takes_over_from_its_old_socket() {
    let rig = Rig::new().await;
    let mut line = Line::begin(&rig, "").await;
    let mut old = line.client.take().unwrap();
    let took = line.back().await;
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert_eq!(old.end().await, (Some("superseded".to_owned()), 4409));
    line.say(&json!({"type": "ping", "t": 1})).await;
    line.until("pong").await;
    assert_eq!(rig.sim.stats().sessions_opened, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_that_lead_nowhere_are_refused_alike() {
    let (mut acme, mut other) = Default::default();
    let rig = Rig::configured(|c| {
        acme = tenant(c, "acme", |_| {});
        other = tenant(c, "other", |_| {});
    })
    .await;
    let mut line = Line::with_key(&rig, "", Some(&acme)).await;
    let first = line.way_back();
    line.back().await;
    line.say(&json!({"type": "ping", "t": 1})).await;
    line.until("pong").await;
    let unknown = format!("{}?resume=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA&got=0", line.base);
    let beyond = format!("{}?resume={}&got=99999", line.base, line.token);
    let used = Line::refused(&first, Some(&acme)).await;
    assert_eq!(
        (used.0["code"].as_str(), used.0["field"].as_str(), used.1),
        (Some("resume_refused"), Some("resume"), 4410)
    );
    let foreign = Line::refused(&line.way_back(), Some(&other)).await;
    for (what, refused) in [
        ("unknown", Line::refused(&unknown, Some(&acme)).await),
        ("foreign", foreign),
        ("more than there was", Line::refused(&beyond, Some(&acme)).await),
    ] {
        assert_eq!((&refused.0, refused.1), (&used.0, used.1), "{what}");
        let differ = refused.2.abs_diff(used.2);
        assert!(differ < Duration::from_millis(500), "{what}: {differ:?}");
    }
    line.lose();
    line.back().await;
    line.say(&json!({"type": "ping", "t": 2})).await;
    line.until("pong").await;
    let nobody = rig.ask("GET", "/v1/voice?resume=x&got=0", "vrk_nobody").await;
    assert_eq!(nobody.status, 401, "a token is no credential");
    assert_eq!(rig.ask("GET", "/v1/voice?resume=x", &acme).await.status, 400, "how many messages?");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_was_lost_with_its_socket_does_not_lose_the_call() {
    let rig = Rig::new().await;
    let mut line = Line::begin(&rig, "").await;
    let way = line.way_back();
    line.lose();
    // The request arrives, and the answer never does.
    for _ in 0..3 {
        let host = way.trim_start_matches("ws://").split('/').next().unwrap();
        let mut raw = crate::support::Raw::connect(host.parse().unwrap()).await;
        let path = way.split_once(host).unwrap().1;
        let head = raw
            .request(&format!(
                "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                 Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            ))
            .await;
        assert!(head.starts_with("HTTP/1.1 101"), "{head}");
        raw.reset();
        time::sleep(Duration::from_millis(100)).await;
    }
    line.back().await;
    line.say(&json!({"type": "ping", "t": 1})).await;
    line.until("pong").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c4_a_slow_client_may_come_back_for_what_it_did_not_take() {
    let mut sim = SimConfig::default();
    sim.reply.speed = 1_000.0;
    let rig = Rig::with(|_| {}, sim, "").await;
    let mut line = Line::begin(&rig, "").await;
    // A message that is too large closes the socket, and is not counted: the call goes on.
    line.client.as_mut().unwrap().audio(&vec![0; 300_000]).await;
    let mut ends = Vec::new();
    while let Got::Json(message) = line.hear().await {
        ends.push(message["error"]["code"].clone());
    }
    assert_eq!(ends, ["message_too_large"]);
    line.client = None;
    line.back().await;
    line.say(&json!({"type": "text", "text": "hello"})).await;
    assert_eq!(line.until("reply_ended").await["status"], "completed");
}

#[tokio::test(flavor = "multi_thread")]
async fn c10_a_client_that_does_not_come_back_ends_its_call() {
    let rig = Rig::configured(|c| c.call.resume_window_s = 1).await;
    let mut client = rig.call("turns=manual").await;
    let ready = client.until("ready").await;
    for _ in 0..100 {
        client.audio(&[1; 960]).await;
    }
    client.json(r#"{"type":"commit"}"#).await;
    client.until("reply_started").await;
    client.reset();
    until("the session is given up", || rig.sim.stats().sessions_now == 0).await;
    let way = format!("ws://{}/v1/voice?resume={}&got=3", rig.relay.addr(), ready["resume"].as_str().unwrap());
    assert_eq!(Line::refused(&way, None).await.1, 4410);
}

/// A call behind a network that is cut in the middle of an utterance, and all that is said: half of it has arrived.
async fn cut_off(rig: &Rig) -> (Proxy, Line, Vec<u8>) {
    let network = Proxy::start("127.0.0.1:0".parse().unwrap(), rig.relay.addr(), Script::default()).await.unwrap();
    let mut line = Line::at(network.addr(), "turns=manual", None).await;
    let all = numbered(0, 24_000);
    line.speak(&all[..24_000]).await;
    line.until("ack").await;
    network.cut();
    line.speak(&all[24_000..]).await;
    (network, line, all)
}

#[tokio::test(flavor = "multi_thread")]
async fn n3_ten_seconds_without_a_network_lose_nothing_and_close_nobody() {
    let rig = Rig::with(|_| {}, keeping(), "").await;
    let (network, mut line, all) = cut_off(&rig).await;
    line.say(&json!({"type": "commit"})).await;
    time::sleep(Duration::from_secs(10)).await;
    assert_eq!(recorded(&rig)[0].len(), 24_000, "nothing passes");
    network.heal();
    let ended = line.until("reply_ended").await;
    assert_eq!((ended["status"].as_str(), ended["audio_ms"].as_u64()), (Some("completed"), Some(1_000)));
    assert_same(&recorded(&rig)[0], &all, "what the session heard");
    assert_eq!((network.stats().count("blackhole"), network.stats().connections), (2, 1), "both ways, one connection");
}

#[tokio::test(flavor = "multi_thread")]
async fn n3_forty_seconds_without_a_network_are_a_drop_and_the_call_is_resumed() {
    let rig = Rig::with(|c| c.call.resume_window_s = 60, keeping(), "").await;
    let (network, mut line, all) = cut_off(&rig).await;
    time::sleep(Duration::from_secs(40)).await;
    // The client has noticed, too, and has another network.
    line.base = format!("ws://{}/v1/voice", rig.relay.addr());
    line.client = None;
    line.back().await;
    line.say(&json!({"type": "commit"})).await;
    let ended = line.until("reply_ended").await;
    assert_eq!((ended["status"].as_str(), ended["audio_ms"].as_u64()), (Some("completed"), Some(1_000)));
    assert_same(&recorded(&rig)[0], &all, "what the session heard");
    let told: Vec<&str> = line.of("error").iter().filter_map(|error| error["error"]["code"].as_str()).collect();
    assert_eq!(told, ["idle_timeout"], "why it was closed is among what was missed");
    assert_eq!(network.stats().count("blackhole"), 2, "both ways");
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_are_not_kept_where_that_is_not_wanted() {
    let rig = Rig::configured(|c| c.call.resume_window_s = 0).await;
    let mut client = rig.call("").await;
    let ready = client.until("ready").await;
    assert_eq!((&ready["resume"], &ready["limits"]["resume_window_s"]), (&Value::Null, &json!(0)));
    until("a session", || rig.sim.stats().sessions_now == 1).await;
    client.reset();
    until("the session is given up", || rig.sim.stats().sessions_now == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_goodbye_ends_the_call_and_a_close_frame_of_somebody_who_leaves_does_not() {
    let rig = Rig::new().await;
    for (code, kept) in [(1000u16, false), (1001, true)] {
        let mut client = rig.call("").await;
        let ready = client.until("ready").await;
        client.close_with(code).await;
        let way = format!("ws://{}/v1/voice?resume={}&got=0", rig.relay.addr(), ready["resume"].as_str().unwrap());
        time::sleep(Duration::from_millis(100)).await;
        let mut again = Client::connect(&way).await;
        let first = again.json_next().await;
        assert_eq!(first["type"] == "resumed", kept, "{code}: {first}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_openai_client_that_asks_for_it_can_come_back_too() {
    let rig = Rig::new().await;
    let base = format!("ws://{}/v1/realtime", rig.relay.addr());
    let mut plain = Client::connect(&base).await;
    assert_eq!(plain.json_next().await.get("voxrelay"), None);
    plain.reset();
    let mut client = Client::connect(&format!("{base}?voxrelay_resume=1")).await;
    let created = client.json_next().await;
    assert_eq!(
        (created["type"].as_str(), created["voxrelay"]["resume_window_s"].as_u64()),
        (Some("session.created"), Some(30))
    );
    let mut token = created["voxrelay"]["resume"].as_str().unwrap().to_owned();
    let ask = r#"{"type":"response.create"}"#;
    client.json(r#"{"type":"conversation.item.create","item":{"type":"message","role":"user","content":[{"type":"input_text","text":"hi"}]}}"#).await;
    client.json(ask).await;
    let (mut events, mut got) = (Vec::new(), 0);
    loop {
        let event = client.json_next().await;
        got += 1;
        events.push(event["event_id"].as_str().unwrap().to_owned());
        if event["type"] == "response.done" {
            break;
        }
        if got % 5 == 0 {
            client.reset();
            client = Client::connect(&format!("{base}?voxrelay_resume={token}&voxrelay_got={got}")).await;
            let resumed = client.json_next().await;
            assert_eq!((resumed["type"].as_str(), resumed["got"].as_u64()), (Some("voxrelay.resumed"), Some(2)));
            token = resumed["resume"].as_str().unwrap().to_owned();
        }
    }
    let mut once = events.clone();
    once.sort();
    once.dedup();
    assert_eq!(once.len(), events.len(), "no event twice");
    assert!(got > 10, "{got} events, and a drop after each fifth");
    let stats = rig.sim.stats();
    assert_eq!((stats.sessions_opened, stats.responses), (2, 1));
}
