//! Files on their way in and out: what is refused is said, what is cut off looks so, and what was paid is booked once, whoever reads.
use std::net::SocketAddr;

use reqwest::RequestBuilder;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
};

use super::*;
use crate::support::until;

/// A relay with a ledger, a tenant, and a service that takes long questions.
struct Desk {
    rig: Rig,
    key: String,
    config: Config,
    dir: tempfile::TempDir,
}

impl Desk {
    async fn new(change: impl FnOnce(&mut Config), faults: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (ledger, prices) = (dir.path().join("ledger.db"), dir.path().join("prices.toml"));
        std::fs::write(&prices, PRICES).unwrap();
        let (mut key, mut kept) = (String::new(), None);
        let mut sim = instant();
        sim.text.context_tokens = 1_000_000_000;
        let rig = Rig::with(
            |config| {
                (config.ledger.file, config.prices.file) = (Some(ledger), Some(prices));
                key = tenant(config, "acme", |tenant| tenant.budget.all.usd_day = Some("500".parse().unwrap()));
                change(config);
                kept = Some(config.clone());
            },
            sim,
            faults,
        )
        .await;
        Self { rig, key, config: kept.unwrap(), dir }
    }

    /// A batch of so many long questions that is done, whose answers are more than all sockets hold.
    async fn done(&self, many: usize) -> Value {
        let word = "a".repeat(700 << 10);
        let line = |n: usize| {
            let body = json!({"model": MODEL, "input": format!("{n} {word}"), "max_output_tokens": 1_000_000});
            json!({"custom_id": n.to_string(), "method": "POST", "url": "/v1/responses", "body": body}).to_string()
        };
        let lines: Vec<String> = (0..many).map(line).collect();
        self.rig.run(&self.key, &lines).await
    }

    fn content(&self, file: &Value) -> RequestBuilder {
        self.rig.request("GET", &format!("/v1/files/{}/content", file.as_str().unwrap()), &self.key)
    }

    fn rows(&self) -> Vec<Row> {
        rows(&self.dir.path().join("ledger.db"))
    }

    async fn written(&self, many: usize) {
        written(&self.dir.path().join("ledger.db"), many).await;
        assert_eq!(self.rows().len(), many);
    }

    /// Each answer is in the ledger once, and in the budget.
    async fn booked_once(&self, many: usize) {
        self.written(many).await;
        let stats = self.rig.sim.stats().text;
        let (rows, tokens) = (self.rows(), stats.batch_input_tokens + stats.batch_output_tokens);
        assert_eq!(rows.iter().map(|row| row.tokens.unsigned_abs()).sum::<u64>(), tokens);
        let spent: i128 = rows.iter().map(|row| i128::from(row.cost.unwrap())).sum();
        let limits = self.rig.ask("GET", "/v1/limits", &self.key).await;
        assert!(limits.text.contains(&format!("\"{}\"", Usd::from_pico(spent))), "{spent}: {}", limits.text);
    }
}

/// A download by a socket with little room, once there is a place for it and its first bytes are there.
async fn narrow(addr: SocketAddr, key: &str, file: &Value) -> TcpStream {
    let end = time::Instant::now() + PATIENCE;
    loop {
        let (tcp, status) = asks(addr, key, file).await;
        if status == "200" {
            return tcp;
        }
        assert!(status == "429" && time::Instant::now() < end, "{status}");
        time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

async fn asks(addr: SocketAddr, key: &str, file: &Value) -> (TcpStream, String) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4_096).unwrap();
    let mut tcp = socket.connect(addr).await.unwrap();
    let path = format!("/v1/files/{}/content", file.as_str().unwrap());
    let head = format!("GET {path} HTTP/1.1\r\nhost: {addr}\r\nauthorization: Bearer {key}\r\n\r\n");
    tcp.write_all(head.as_bytes()).await.unwrap();
    let mut first = [0; 12];
    tcp.read_exact(&mut first).await.unwrap();
    (tcp, String::from_utf8_lossy(&first[9..]).into_owned())
}

/// Whether what is left of an answer says that it is whole.
async fn is_whole(mut tcp: TcpStream) -> bool {
    let mut all = Vec::new();
    let _ = time::timeout(PATIENCE, tcp.read_to_end(&mut all)).await.expect("its connection ends");
    all.ends_with(b"\r\n0\r\n\r\n")
}

/// Sends all of a form, whatever is said meanwhile; the answer.
async fn sends(desk: &Desk, body: &[u8]) -> String {
    let addr = desk.rig.relay.addr();
    let mut tcp = TcpStream::connect(addr).await.unwrap();
    let length = body.len();
    let head = format!(
        "POST /v1/files HTTP/1.1\r\nhost: {addr}\r\nauthorization: Bearer {}\r\ncontent-length: {length}\r\n\
         content-type: multipart/form-data; boundary=b\r\n\r\n",
        desk.key
    );
    tcp.write_all(head.as_bytes()).await.unwrap();
    for piece in body.chunks(1 << 20) {
        tcp.write_all(piece).await.expect("it is heard to its end");
    }
    let (mut answer, mut buffer) = (Vec::new(), [0; 4_096]);
    while !answer.ends_with(b"}}") {
        let read = time::timeout(PATIENCE, tcp.read(&mut buffer)).await.expect("no answer").unwrap();
        assert!(read > 0, "{}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&buffer[..read]);
    }
    String::from_utf8(answer).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_refused_while_it_sends_sees_why() {
    let desk = Desk::new(|config| config.text.max_batch_bytes = 40 << 20, "").await;
    let part = "--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"f\"\r\n\r\n";
    let good = line("a", MODEL, "one");
    let rest = "x".repeat(30 << 20);
    for (body, status, says) in [
        (format!("{part}{good}\n{{\n{rest}\r\n--b--\r\n"), 400, "Line 2: no JSON object"),
        (format!("{part}{good}\n{rest}\r\n--b--\r\n"), 400, "A line is over the 16777216 byte limit."),
        (rest.clone(), 400, "no part begins, or goes on, within 8192 bytes"),
        (format!("--b\r\nX-{rest}"), 400, "no part begins, or goes on, within 8192 bytes"),
        (format!("{part}{rest}{rest}\r\n--b--\r\n"), 413, "the body is over the 41943040 byte limit"),
    ] {
        let answer = sends(&desk, body.as_bytes()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")) && answer.contains(says), "{says}: {answer}");
    }
    // Who waits to be told to go on hears it at once, and sends nothing.
    let began = time::Instant::now();
    let addr = desk.rig.relay.addr();
    let mut tcp = TcpStream::connect(addr).await.unwrap();
    let head = format!(
        "POST /v1/files HTTP/1.1\r\nhost: {addr}\r\nauthorization: Bearer {}\r\ncontent-length: 100000000\r\n\
         content-type: multipart/form-data; boundary=b\r\nexpect: 100-continue\r\n\r\n",
        desk.key
    );
    tcp.write_all(head.as_bytes()).await.unwrap();
    let mut first = [0; 12];
    tcp.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 413");
    assert!(began.elapsed() < std::time::Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(desk.rig.sim.stats().text.requests.get("files"), None, "the service has seen none of it");
    // All places are free again.
    for _ in 0..3 {
        assert_eq!(desk.rig.upload(&desk.key, std::slice::from_ref(&good)).await.status, 200);
    }
}

/// Begins a form whose file goes on for so many bytes, and sends this much of it.
async fn begins(desk: &Desk, length: usize, sent: &str) -> TcpStream {
    let addr = desk.rig.relay.addr();
    let mut tcp = TcpStream::connect(addr).await.unwrap();
    let part = "--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"f\"\r\n\r\n";
    let head = format!(
        "POST /v1/files HTTP/1.1\r\nhost: {addr}\r\nauthorization: Bearer {}\r\ncontent-length: {length}\r\n\
         content-type: multipart/form-data; boundary=b\r\n\r\n{part}{sent}",
        desk.key
    );
    tcp.write_all(head.as_bytes()).await.unwrap();
    tcp
}

#[tokio::test(flavor = "multi_thread")]
async fn long_lines_wait_for_room_and_who_sends_no_more_gives_it_back() {
    let small = |config: &mut Config| {
        (config.text.max_body_bytes, config.text.max_audio_bytes) = (1 << 20, 1 << 20);
        (config.text.max_held_bytes, config.text.stall_s) = (1 << 20, 3);
    };
    let desk = Desk::new(small, "").await;
    let long = [line("a", MODEL, &"x".repeat(600 << 10))];
    let began = time::Instant::now();
    // All that a tenant may hold; and the line never ends.
    let mut first = begins(&desk, 2 << 20, &"x".repeat(300 << 10)).await;
    time::sleep(std::time::Duration::from_millis(500)).await;
    let short = desk.rig.upload(&desk.key, &[line("a", MODEL, "x")]).await;
    assert_eq!(short.status, 200, "{}", short.text);
    assert!(began.elapsed() < std::time::Duration::from_secs(2), "a short line waits for nothing");
    assert_eq!(desk.rig.upload(&desk.key, &long).await.status, 200);
    assert!(began.elapsed() >= std::time::Duration::from_secs(3), "{:?}: it waited", began.elapsed());
    let mut all = [0; 12];
    first.read_exact(&mut all).await.unwrap();
    assert_eq!(&all, b"HTTP/1.1 408");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_stands_still_in_a_download_sees_that_it_is_cut_off_and_has_all_of_it_booked() {
    let desk = Desk::new(|config| config.text.stall_s = 1, "").await;
    let done = desk.done(12).await;
    let file = &done["output_file_id"];
    let size: u64 =
        desk.rig.ask("GET", &format!("/v1/files/{}", file.as_str().unwrap()), &desk.key).await.json()["bytes"]
            .as_u64()
            .unwrap();
    assert!(size > 8 << 20, "{size}: more than all sockets hold");
    let still = narrow(desk.rig.relay.addr(), &desk.key, file).await;
    // The last of them are read only once it is let go.
    desk.booked_once(12).await;
    assert!(!is_whole(still).await);
    // And whoever comes again has it, at no further cost.
    let whole = desk.content(file).send().await.unwrap().text().await.unwrap();
    assert_eq!((whole.len() as u64, whole.lines().count()), (size, 12));
    desk.booked_once(12).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_downloads_at_once_are_booked_once() {
    let desk = Desk::new(|_| {}, "").await;
    let lines: Vec<String> = (0..200).map(|n| line(&n.to_string(), MODEL, "Where is my parcel?")).collect();
    let done = desk.rig.run(&desk.key, &lines).await;
    let file = &done["output_file_id"];
    let read = || async { desk.content(file).send().await.unwrap().text().await.unwrap() };
    let (one, two, three) = tokio::join!(read(), read(), read());
    assert_eq!(one.lines().count(), 200);
    assert!(one == two && two == three);
    desk.booked_once(200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_that_the_service_breaks_off_looks_so_and_is_booked_once() {
    // The file, twice its object, and what is in it.
    let fault = "[[fault]]\nkind = \"break_stream\"\ndoor = \"files\"\nsession = 4\n";
    let desk = Desk::new(|_| {}, fault).await;
    let lines: Vec<String> = (0..100).map(|n| line(&n.to_string(), MODEL, "Where is my parcel?")).collect();
    let done = desk.rig.run(&desk.key, &lines).await;
    let file = &done["output_file_id"];
    assert!(desk.content(file).send().await.unwrap().text().await.is_err());
    assert_eq!(desk.rig.sim.stats().faults.get("break_stream"), Some(&1));
    until("some are booked", || !desk.rows().is_empty()).await;
    let half = desk.rows().len();
    assert!((40..60).contains(&half), "{half}");
    assert_eq!(desk.content(file).send().await.unwrap().text().await.unwrap().lines().count(), 100);
    desk.booked_once(100).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn downloads_have_places_that_no_reader_keeps_by_standing_still() {
    let desk = Desk::new(|config| config.text.stall_s = 2, "").await;
    let done = desk.done(12).await;
    for file in [&done["input_file_id"], &done["output_file_id"]] {
        let mut still = Vec::new();
        for _ in 0..4 {
            still.push(narrow(desk.rig.relay.addr(), &desk.key, file).await);
        }
        let refused = answer(desk.content(file)).await;
        assert_eq!(refused.status, 429);
        assert_eq!(refused.code(), "rate_limit_exceeded", "{}", refused.text);
        assert!(!refused.header("retry-after").is_empty());
        let end = time::Instant::now() + PATIENCE;
        while answer(desk.content(file)).await.status != 200 {
            assert!(time::Instant::now() < end, "the places are kept");
            time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_ends_waits_for_no_download_and_who_comes_again_and_leaves_has_the_rest_booked() {
    let mut desk = Desk::new(|_| {}, "").await;
    let done = desk.done(12).await;
    let file = &done["output_file_id"];
    let tcp = narrow(desk.rig.relay.addr(), &desk.key, file).await;
    let Rig { relay, sim } = desk.rig;
    relay.drain(std::future::ready(())).await;
    assert!(!is_whole(tcp).await);
    desk.rig = Rig { relay: Server::start(desk.config.clone(), None).await.unwrap(), sim };
    let before = desk.rows().len();
    assert!(before < 12, "{before}: it was in the middle");
    // Long before it would be let go for standing still.
    drop(narrow(desk.rig.relay.addr(), &desk.key, file).await);
    desk.booked_once(12).await;
    assert_eq!(desk.content(file).send().await.unwrap().text().await.unwrap().lines().count(), 12);
    desk.booked_once(12).await;
}
