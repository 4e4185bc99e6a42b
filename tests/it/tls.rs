//! TLS at the door: calls over it, certificates that change, and peers that speak something else.
use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::Arc,
    time::Duration,
};

use futures_util::{SinkExt as _, StreamExt as _};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    net::TcpStream,
    time::{self, Instant},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_tungstenite::{WebSocketStream, tungstenite::Message};
use voxrelay::{
    caller::{self, Event, Options},
    cli::self_signed,
    config::TlsConfig,
    serve::Server,
};

use crate::support::{Raw, Rig, config};

const HOST: &str = "127.0.0.1";

/// A certificate and its key, there.
pub(crate) fn make(dir: &Path) -> TlsConfig {
    self_signed::certificate(dir, HOST.parse::<IpAddr>().unwrap()).unwrap()
}

/// What a client must trust.
pub(crate) fn root(files: &TlsConfig) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(&files.cert).unwrap()
}

async fn rig() -> (Rig, TlsConfig, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let files = make(dir.path());
    let rig = Rig::configured(|c| c.server.tls = Some(files.clone())).await;
    (rig, files, dir)
}

async fn connect(rig: &Rig, trusted: CertificateDer<'static>) -> std::io::Result<TlsStream<TcpStream>> {
    secure(rig.relay.addr(), trusted).await
}

async fn secure(addr: SocketAddr, trusted: CertificateDer<'static>) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted).unwrap();
    let tls = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let tcp = TcpStream::connect(addr).await?;
    TlsConnector::from(Arc::new(tls)).connect(ServerName::try_from(HOST).unwrap(), tcp).await
}

pub(crate) type Wss = WebSocketStream<TlsStream<TcpStream>>;

/// A call over TLS, and the first message that it is told.
pub(crate) async fn call(
    addr: SocketAddr,
    query: &str,
    trusted: CertificateDer<'static>,
) -> Result<(Wss, Value), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let stream = secure(addr, trusted).await.map_err(|error| text(&error))?;
    let url = format!("wss://{addr}/v1/voice?{query}");
    let (mut ws, _) = tokio_tungstenite::client_async(url, stream).await.map_err(|error| text(&error))?;
    loop {
        match time::timeout(Duration::from_secs(30), ws.next()).await {
            Ok(Some(Ok(Message::Ping(_)))) => {}
            Ok(Some(Ok(Message::Text(first)))) => return Ok((ws, serde_json::from_str(&first).map_err(|e| text(&e))?)),
            other => return Err(format!("{other:?}")),
        }
    }
}

async fn realtime(rig: &Rig, files: &TlsConfig) -> Wss {
    let stream = connect(rig, root(files)).await.unwrap();
    let url = format!("wss://{}/v1/realtime", rig.relay.addr());
    tokio_tungstenite::client_async(url, stream).await.unwrap().0
}

async fn until(ws: &mut Wss, kind: &str) -> Value {
    time::timeout(Duration::from_secs(30), async {
        loop {
            if let Message::Text(text) = ws.next().await.unwrap().unwrap() {
                let event: Value = serde_json::from_str(&text).unwrap();
                if event["type"] == kind {
                    return event;
                }
            }
        }
    })
    .await
    .unwrap_or_else(|_| panic!("no {kind} within 30 s"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_over_tls_is_a_call() {
    let (rig, files, _dir) = rig().await;
    let url = format!("wss://{}/v1/voice", rig.relay.addr());
    let options = Options { roots: vec![root(&files)], ..Options::default() };
    let mut call = caller::connect(&url, &options).await.unwrap();
    call.text("hello").unwrap();
    let mut audio = 0;
    loop {
        match time::timeout(Duration::from_secs(30), call.next()).await.unwrap().unwrap() {
            Event::Audio { data, .. } => audio += data.len(),
            Event::Message(message) if format!("{message:?}").starts_with("ReplyEnded") => break,
            Event::Dropped(end) | Event::Ended(end) => panic!("{end}"),
            Event::Resumed { .. } | Event::Message(_) | Event::Unknown(_) => {}
        }
    }
    assert!(audio > 24_000);
    assert!(caller::connect(&url, &Options::default()).await.is_err(), "nobody vouches for it");
    assert!(caller::connect(&url.replace("wss", "ws"), &Options::default()).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn large_messages_and_many_small_ones_pass() {
    let (rig, files, _dir) = rig().await;
    let mut ws = realtime(&rig, &files).await;
    let update = r#"{"type":"session.update","session":{"type":"realtime","audio":{"input":{"turn_detection":null}}}}"#;
    ws.send(Message::text(update)).await.unwrap();
    let long = format!(r#"{{"type":"input_audio_buffer.append","audio":"{}"}}"#, "AAAAAAAA".repeat(500_000));
    ws.send(Message::text(long)).await.unwrap();
    for _ in 0..2_000 {
        ws.send(Message::text(r#"{"type":"input_audio_buffer.append","audio":"AAAAAAAA"}"#)).await.unwrap();
    }
    ws.send(Message::text(r#"{"type":"input_audio_buffer.commit"}"#)).await.unwrap();
    let item = until(&mut ws, "input_audio_buffer.committed").await["item_id"].clone();
    assert_eq!(rig.sim.stats().append_bytes, 3_000_000 + 2_000 * 6);
    ws.send(Message::text(format!(r#"{{"type":"conversation.item.retrieve","item_id":{item}}}"#))).await.unwrap();
    let retrieved = until(&mut ws, "conversation.item.retrieved").await;
    assert_eq!(retrieved["item"]["content"][0]["audio"].as_str().map(str::len), Some(4_016_000), "4 MB in one message");
    ws.close(None).await.unwrap();
    while let Some(Ok(message)) = ws.next().await {
        assert!(message.is_close() || message.is_text(), "{message:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_certificate_is_taken_and_a_broken_one_is_not() {
    let (rig, files, _dir) = rig().await;
    let old = root(&files);
    let mut running = realtime(&rig, &files).await;
    until(&mut running, "session.created").await;
    // Broken first: the old one stays.
    std::fs::write(&files.cert, "nonsense").unwrap();
    time::sleep(Duration::from_secs(3)).await;
    connect(&rig, old.clone()).await.unwrap();
    let other = tempfile::tempdir().unwrap();
    let new = make(other.path());
    std::fs::rename(&new.key, &files.key).unwrap();
    std::fs::rename(&new.cert, &files.cert).unwrap();
    let began = Instant::now();
    while connect(&rig, root(&files)).await.is_err() {
        assert!(began.elapsed() < Duration::from_secs(20), "the new certificate is not taken");
        time::sleep(Duration::from_millis(100)).await;
    }
    assert!(connect(&rig, old).await.is_err());
    running.send(Message::text(r#"{"type":"response.cancel"}"#)).await.unwrap();
    until(&mut running, "error").await; // it answers, as before
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_cannot_serve_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let good = make(dir.path());
    let other = make(tempfile::tempdir().unwrap().path());
    let empty = dir.path().join("empty.pem");
    std::fs::write(&empty, "").unwrap();
    let missing = dir.path().join("missing.pem");
    for (cert, key, parts) in [
        (&missing, &good.key, ["server.tls.cert: cannot read", "missing.pem"]),
        (&empty, &good.key, ["server.tls.cert: ", "holds no certificate; wanted: PEM with at least one CERTIFICATE"]),
        (&good.cert, &empty, ["server.tls.key: ", "holds no key that can be used; wanted: PEM with one PRIVATE KEY"]),
        (&good.cert, &good.cert, ["server.tls.key: ", "no key that can be used"]),
        (&good.cert, &other.key, ["server.tls.key: cannot read", "self-signed"]),
    ] {
        let mut config = config("http://127.0.0.1:1/v1");
        config.server.tls = Some(TlsConfig { cert: cert.clone(), key: key.clone() });
        let error = Server::start(config, None).await.unwrap_err().to_string();
        for part in parts {
            assert!(error.contains(part), "{error}");
        }
    }
    let strange = tempfile::tempdir().unwrap();
    let strange = make(strange.path());
    let mut config = config("http://127.0.0.1:1/v1");
    std::fs::copy(&strange.key, dir.path().join("strange.key")).unwrap();
    config.server.tls = Some(TlsConfig { cert: good.cert, key: dir.path().join("strange.key") });
    let error = Server::start(config, None).await.unwrap_err().to_string();
    assert!(error.contains("cannot serve the certificate in"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_http_is_told_and_silence_is_ended() {
    let (rig, files, _dir) = rig().await;
    let mut raw = Raw::connect(rig.relay.addr()).await;
    let answer = raw.request("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 400") && answer.ends_with("use https:// or wss://\n"), "{answer}");
    // TLS spoken to a port without it ends as broken HTTP.
    let plain = Rig::new().await;
    assert!(connect(&plain, root(&files)).await.is_err());
    // Nothing, and half a hello.
    for bytes in [&b""[..], &[0x16, 0x03, 0x01, 0x02]] {
        let mut raw = Raw::connect(rig.relay.addr()).await;
        raw.send(bytes).await;
        let began = Instant::now();
        let (_, close, _) = raw.end().await;
        assert_eq!(close, None);
        assert!((9..15).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    }
}
