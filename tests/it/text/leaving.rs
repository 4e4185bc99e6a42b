//! Readers that leave or stand still, and a relay that leaves.
use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket},
    sync::oneshot,
};
use voxrelay::serve::Server;

use super::*;
use crate::support::config;

/// A service that begins a stream, says nothing more, and tells when it is left.
async fn left(listener: TcpListener, tell: oneshot::Sender<()>) {
    let (mut tcp, _) = listener.accept().await.unwrap();
    let mut buffer = [0; 4_096];
    assert!(tcp.read(&mut buffer).await.unwrap() > 0);
    let event = "event: response.created\ndata: {\"type\":\"response.created\",\"response\":{\"id\":\"resp_1\"}}\n\n";
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    tcp.write_all(format!("{head}{:x}\r\n{event}\r\n", event.len()).as_bytes()).await.unwrap();
    while tcp.read(&mut buffer).await.is_ok_and(|n| n > 0) {}
    let _ = tell.send(());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_without_a_reader_is_stopped_at_the_service() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}/v1", listener.local_addr().unwrap());
    let (tell, told) = oneshot::channel();
    let mut service = tokio::task::JoinSet::new();
    service.spawn(left(listener, tell));
    let desk = Desk::with(|config| config.upstream.url = Some(address), SimConfig::instant(), "").await;
    let mut response = desk.request(&streamed("hello")).send().await.unwrap();
    read_until(&mut response, "\n\n").await;
    drop(response);
    time::timeout(PATIENCE, told).await.expect("it goes on for nobody").unwrap();
    let row = desk.row().await;
    assert_eq!((row.status.as_str(), row.estimated), ("cancelled", true));
    assert!(row.input > 0 && row.cost > Some(0), "{row:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_answer_is_finished_whoever_leaves() {
    let desk = Desk::with(|_| {}, slow(10), "").await;
    let body = plain("Where is my parcel?");
    tokio::select! {
        got = desk.request(&body).send() => panic!("{got:?}: it takes its time"),
        () = until("it was asked", || desk.asked() == 1) => {}
    }
    let row = desk.row().await;
    assert_eq!((row.status.as_str(), row.estimated, row.output), ("completed", false, desk.bill().output_tokens));
}

/// A request for a stream, from a socket with little room for what comes.
async fn narrow(addr: SocketAddr, key: &str, body: &Value) -> tokio::net::TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4_096).unwrap();
    let mut tcp = socket.connect(addr).await.unwrap();
    let body = body.to_string();
    let head = format!(
        "POST {RESPONSES} HTTP/1.1\r\nhost: {addr}\r\nauthorization: Bearer {key}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    tcp.write_all(head.as_bytes()).await.unwrap();
    tcp.write_all(body.as_bytes()).await.unwrap();
    tcp
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_stands_still_is_let_go() {
    let mut sim = SimConfig::instant();
    sim.text.context_tokens = 100_000_000;
    let desk = Desk::with(|config| config.text.stall_s = 1, sim, "").await;
    // One long word comes back many times: far more than all buffers on the way hold.
    let body = streamed(&"a".repeat(1 << 20));
    let mut tcp = narrow(desk.rig.relay.addr(), &desk.key, &body).await;
    let row = desk.row().await;
    assert_eq!((row.status.as_str(), row.estimated), ("cancelled", true), "{row:?}");
    let mut all = Vec::new();
    let end = time::timeout(PATIENCE, tcp.read_to_end(&mut all)).await;
    assert!(end.is_ok(), "its connection ends");
    assert!(!String::from_utf8_lossy(&all).contains("response.completed"), "{} bytes", all.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_is_finished_while_the_relay_leaves() {
    let sim = service(slow(30), "").await;
    let dir = tempfile::tempdir().unwrap();
    let ledger = dir.path().join("ledger.db");
    let mut config = config(&sim.base_url());
    let key = tenant(&mut config, "acme", |_| {});
    config.ledger.file = Some(ledger.clone());
    let relay = Server::start(config, None).await.unwrap();
    let url = format!("http://{}{RESPONSES}", relay.addr());
    let mut stream = http().post(&url).bearer_auth(&key).json(&streamed("Where is my parcel?")).send().await.unwrap();
    let begun = read_until(&mut stream, "response.output_text.delta").await;
    let whole = http().post(&url).bearer_auth(&key).json(&plain("Where is my parcel?")).send();
    let rest = async {
        until("both were asked", || sim.stats().text.requests["responses"] == 2).await;
        relay.drain(std::future::pending()).await;
    };
    let (whole, text, ()) = tokio::join!(whole, stream.text(), rest);
    assert!((begun + &text.unwrap()).contains("event: response.completed"));
    assert_eq!(whole.unwrap().json::<Value>().await.unwrap()["status"], "completed");
    let rows = rows(&ledger);
    assert!(rows.len() == 2 && rows.iter().all(|row| row.status == "completed" && !row.estimated), "{rows:#?}");
}
