//! The proxy over real sockets. What is decided, the lane's tests know; here is what the other ends see of it.
use std::io::ErrorKind;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    task::JoinSet,
};

use super::*;

/// Generous: these machines are busy.
const PATIENCE: Duration = Duration::from_secs(30);
/// Long enough for bytes that nothing holds back.
const SOON: Duration = Duration::from_millis(300);

fn free() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

struct Pair {
    proxy: Proxy,
    listener: TcpListener,
}

impl Pair {
    async fn new(script: &str) -> Self {
        let listener = TcpListener::bind(free()).await.unwrap();
        let script = Script::from_toml(script).unwrap();
        Self { proxy: Proxy::start(free(), listener.local_addr().unwrap(), script).await.unwrap(), listener }
    }

    async fn client(&self) -> TcpStream {
        TcpStream::connect(self.proxy.addr()).await.unwrap()
    }

    async fn both(&self) -> (TcpStream, TcpStream) {
        let client = self.client().await;
        (client, soon(self.listener.accept()).await.unwrap().0)
    }

    async fn counted(&self, kind: &str, times: u64) {
        let end = Instant::now() + PATIENCE;
        while self.proxy.stats().count(kind) < times {
            assert!(Instant::now() < end, "{kind}: {:?}", self.proxy.stats());
            time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(self.proxy.stats().count(kind), times, "{kind}");
    }
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    time::timeout(PATIENCE, what).await.expect("nothing within 30 s")
}

/// Everything to the end, and how it ended.
async fn rest(tcp: &mut TcpStream) -> (Vec<u8>, io::Result<()>) {
    let mut got = Vec::new();
    let end = soon(tcp.read_to_end(&mut got)).await;
    (got, end.map(drop))
}

async fn is_reset(tcp: &mut TcpStream) {
    let error = rest(tcp).await.1.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

async fn nothing_comes(tcp: &mut TcpStream) {
    let mut byte = [0];
    assert!(time::timeout(SOON, tcp.read(&mut byte)).await.is_err(), "something came");
}

async fn comes(tcp: &mut TcpStream, want: &[u8]) {
    let mut got = vec![0; want.len()];
    soon(tcp.read_exact(&mut got)).await.unwrap();
    assert_eq!(got, want);
}

#[tokio::test]
async fn without_faults_every_byte_passes_both_ways_to_the_end() {
    let pair = Pair::new("").await;
    let (mut client, mut server) = pair.both().await;
    let stream: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    let mut tasks = JoinSet::new();
    let sent = stream.clone();
    tasks.spawn(async move {
        client.write_all(&sent).await.unwrap();
        client.shutdown().await.unwrap();
        rest(&mut client).await.0
    });
    let echo = rest(&mut server).await.0;
    assert!(echo == stream);
    server.write_all(&echo).await.unwrap();
    drop(server);
    assert!(soon(tasks.join_next()).await.unwrap().unwrap() == stream, "the client hears after its own end");
    let stats = pair.proxy.stats();
    assert_eq!((stats.to_server_bytes, stats.to_client_bytes), (3_000_000, 3_000_000));
    assert_eq!((stats.connections, stats.faults.len()), (1, 0));
}

#[tokio::test]
async fn who_does_not_read_is_felt_by_who_writes() {
    let pair = Pair::new("").await;
    let (mut client, _server) = pair.both().await;
    let mut sent = 0;
    while let Ok(written) = time::timeout(SOON, client.write(&[7; 65_536])).await {
        sent += written.unwrap();
        assert!(sent < 64 << 20, "the proxy takes everything");
    }
    let room = KERNEL_BUFFER as usize * 4 + (64 << 10);
    let passed = usize::try_from(pair.proxy.stats().to_server_bytes).unwrap();
    assert!(sent > 0 && sent - passed < room + (4 << 20), "{sent} sent, {passed} passed");
}

#[tokio::test]
async fn a_peer_that_resets_is_seen_as_one_that_resets() {
    let pair = Pair::new("").await;
    let (client, mut server) = pair.both().await;
    SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
    is_reset(&mut server).await;
    assert_eq!(pair.proxy.stats().count("reset"), 0);
}

#[tokio::test]
async fn a_reset_after_bytes_is_a_reset_for_both() {
    let pair =
        Pair::new("[[fault]]\nkind = \"reset\"\ndirection = \"to_server\"\nafter_bytes = 4\nconnection = 1").await;
    let (mut client, mut server) = pair.both().await;
    client.write_all(b"seven..").await.unwrap();
    is_reset(&mut client).await;
    is_reset(&mut server).await;
    pair.counted("reset", 1).await;
    assert_eq!(pair.proxy.stats().to_server_bytes, 4);
    let (mut client, mut server) = pair.both().await;
    client.write_all(b"seven..").await.unwrap();
    comes(&mut server, b"seven..").await;
}

#[tokio::test]
async fn a_close_is_an_end_for_both_and_half_of_one_for_the_receiver() {
    let pair = Pair::new(
        "[[fault]]\nkind = \"close\"\nconnection = 1\ndirection = \"to_client\"\nafter_bytes = 3\n\
         [[fault]]\nkind = \"half_close\"\nconnection = 2\ndirection = \"to_client\"\nafter_bytes = 3",
    )
    .await;
    let (mut client, mut server) = pair.both().await;
    server.write_all(b"hello").await.unwrap();
    let (got, end) = rest(&mut client).await;
    assert!(got == b"hel" && end.is_ok(), "{end:?}");
    assert!(rest(&mut server).await.1.is_ok(), "a FIN and no RST");
    pair.counted("close", 1).await;
    let (mut client, mut server) = pair.both().await;
    server.write_all(b"hello").await.unwrap();
    assert_eq!(rest(&mut client).await.0, b"hel");
    client.write_all(b"still here").await.unwrap();
    comes(&mut server, b"still here").await;
    pair.counted("half_close", 1).await;
}

#[tokio::test]
async fn refused_and_stalled_clients_reach_nobody() {
    let pair = Pair::new(
        "[[fault]]\nkind = \"refuse\"\nconnection = 1\n[[fault]]\nkind = \"stall\"\nconnection = 2\n\
         [[fault]]\nkind = \"stall\"\nconnection = 3\nfor_ms = 400",
    )
    .await;
    is_reset(&mut pair.client().await).await;
    pair.counted("refuse", 1).await;
    let mut stalled = pair.client().await;
    stalled.write_all(b"anybody?").await.unwrap();
    nothing_comes(&mut stalled).await;
    pair.counted("stall", 1).await;
    assert!(pair.listener.accept().now_or_never().is_none(), "nobody was connected");
    let began = Instant::now();
    let (mut client, mut server) = pair.both().await;
    assert!(began.elapsed() > Duration::from_millis(350), "for so long");
    client.write_all(b"at last").await.unwrap();
    comes(&mut server, b"at last").await;
    drop(stalled);
    let end = Instant::now() + PATIENCE;
    while pair.proxy.stats().connections_now > 1 {
        assert!(Instant::now() < end, "the stalled one has gone, and is still kept");
        time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn nobody_behind_the_proxy_is_a_reset() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let proxy = Proxy::start(free(), nobody, Script::default()).await.unwrap();
    is_reset(&mut TcpStream::connect(proxy.addr()).await.unwrap()).await;
}

#[tokio::test]
async fn a_cut_holds_bytes_ends_and_new_connections_until_it_heals() {
    let pair = Pair::new("").await;
    let (mut client, mut server) = pair.both().await;
    client.write_all(b"before").await.unwrap();
    comes(&mut server, b"before").await;
    pair.proxy.cut();
    pair.counted("blackhole", 2).await;
    client.write_all(b"during").await.unwrap();
    client.shutdown().await.unwrap();
    let mut late = pair.client().await;
    late.write_all(b"knock").await.unwrap();
    nothing_comes(&mut server).await;
    assert!(pair.listener.accept().now_or_never().is_none(), "new connections hang");
    pair.proxy.heal();
    assert_eq!(rest(&mut server).await.0, b"during", "all of it, and the end");
    let mut server = soon(pair.listener.accept()).await.unwrap().0;
    comes(&mut server, b"knock").await;
}

#[tokio::test]
async fn all_can_be_reset_and_the_script_changed_while_they_run() {
    let pair = Pair::new("").await;
    let (mut one, mut other) = (pair.both().await, pair.both().await);
    pair.proxy.reset_all();
    for tcp in [&mut one.0, &mut one.1, &mut other.0, &mut other.1] {
        is_reset(tcp).await;
    }
    pair.counted("reset", 2).await;
    let (mut client, mut server) = pair.both().await;
    client.write_all(b"fine").await.unwrap();
    comes(&mut server, b"fine").await;
    pair.proxy.set(Script::from_toml("[[fault]]\nkind = \"flip\"\ndirection = \"to_server\"\nbit = 0").unwrap());
    pair.counted("flip", 1).await;
    client.write_all(b"aaa").await.unwrap();
    comes(&mut server, b"`aa").await;
    assert_eq!(pair.proxy.stats().connections, 3);
}

#[tokio::test]
async fn slow_links_take_their_time() {
    let pair = Pair::new(
        "[[fault]]\nkind = \"rate\"\nbytes_per_s = 10_000\ndirection = \"to_server\"\n\
         [[fault]]\nkind = \"delay\"\nms = 400\ndirection = \"to_client\"",
    )
    .await;
    let (mut client, mut server) = pair.both().await;
    let began = Instant::now();
    server.write_all(b"late").await.unwrap();
    comes(&mut client, b"late").await;
    assert!(began.elapsed() >= Duration::from_millis(399), "{:?}", began.elapsed());
    let began = Instant::now();
    client.write_all(&[1; 10_000]).await.unwrap();
    comes(&mut server, &[1; 10_000]).await;
    assert!(began.elapsed() >= Duration::from_millis(800), "{:?}", began.elapsed());
    assert_eq!((pair.proxy.stats().count("rate"), pair.proxy.stats().count("delay")), (1, 1));
}

#[tokio::test]
async fn dropping_the_proxy_ends_its_connections() {
    let pair = Pair::new("").await;
    let (mut client, mut server) = pair.both().await;
    let (addr, listener) = (pair.proxy.addr(), pair.listener);
    drop(pair.proxy);
    let _ = (rest(&mut client).await, rest(&mut server).await);
    assert!(TcpStream::connect(addr).await.is_err(), "nobody listens");
    drop(listener);
}
