//! A relay on a simulator, and clients that may misbehave.
use std::time::Duration;

use crate::canary;
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{self, Instant},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{self, Message, client::IntoClientRequest as _, protocol::CloseFrame},
};
use voxrelay::{
    admit::key,
    config::{Config, KeyConfig, Moment, Scope, Secret, TenantConfig},
    serve::Server,
    sim::{Faults, Sim, SimConfig},
};

/// Generous: these machines are busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A relay, and the service behind it.
pub(crate) struct Rig {
    pub(crate) relay: Server,
    pub(crate) sim: Sim,
}

impl Rig {
    pub(crate) async fn new() -> Self {
        Self::with(|_| {}, SimConfig::default(), "").await
    }

    pub(crate) async fn configured(change: impl FnOnce(&mut Config)) -> Self {
        Self::with(change, SimConfig::default(), "").await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut Config), sim: SimConfig, faults: &str) -> Self {
        let faults = if faults.is_empty() { Faults::default() } else { Faults::from_toml(faults).unwrap() };
        let sim = Sim::start("127.0.0.1:0".parse().unwrap(), sim, faults).await.unwrap();
        let mut config = config(&sim.base_url());
        change(&mut config);
        Self { relay: Server::start(config, None).await.unwrap(), sim }
    }

    pub(crate) fn url(&self, query: &str) -> String {
        format!("ws://{}/v1/voice?{query}", self.relay.addr())
    }

    pub(crate) async fn call(&self, query: &str) -> Client {
        Client::connect(&self.url(query)).await
    }
}

/// The key of the account that every rig has.
pub(crate) const API_KEY: &str = "sk-test-0f1e2d3c4b5a69788796a5b4c3d2e1f0";

/// The defaults, on a free port, towards `upstream`.
pub(crate) fn config(upstream: &str) -> Config {
    canary::listen();
    canary::plant(API_KEY);
    let mut config = Config::load(None, |_| None).unwrap();
    config.server.listen = "127.0.0.1:0".parse().unwrap();
    config.upstream.url = Some(upstream.to_owned());
    config.upstream.api_key = Some(Secret::new(API_KEY));
    // A machine that runs all these tests at once may take its time.
    (config.upstream.connect_timeout_ms, config.upstream.session_timeout_ms) = (30_000, 30_000);
    config
}

/// A tenant with one key that may do everything; the key.
pub(crate) fn tenant(config: &mut Config, id: &str, change: impl FnOnce(&mut TenantConfig)) -> String {
    tenant_with(config, id, &Scope::all(), change)
}

/// A tenant with one key of these scopes; the key.
pub(crate) fn tenant_with(
    config: &mut Config,
    id: &str,
    scopes: &[Scope],
    change: impl FnOnce(&mut TenantConfig),
) -> String {
    let (text, key) = new_key("test", scopes, None);
    let mut tenant = TenantConfig { keys: vec![key], ..TenantConfig::default() };
    change(&mut tenant);
    config.tenants.insert(id.to_owned(), tenant);
    text
}

/// A key, and what is kept of it.
pub(crate) fn new_key(label: &str, scopes: &[Scope], expires: Option<Moment>) -> (String, KeyConfig) {
    let text = key::generate().expose().to_owned();
    canary::plant(&text);
    let key =
        KeyConfig { label: label.to_owned(), hash: key::hash(&text), expires, scopes: scopes.to_vec(), budget: None };
    (text, key)
}

/// The answer to a request over plain HTTP.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: reqwest::header::HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {}", self.text))
    }

    pub(crate) fn code(&self) -> String {
        self.json()["error"]["code"].as_str().unwrap_or_default().to_owned()
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

/// A client without TLS, which still wants to be told which cryptography it does not use.
pub(crate) fn http() -> reqwest::Client {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    reqwest::Client::builder().no_proxy().build().unwrap()
}

impl Rig {
    pub(crate) fn request(&self, method: &str, path: &str, key: &str) -> reqwest::RequestBuilder {
        let url = format!("http://{}{path}", self.relay.addr());
        let request = http().request(method.parse().unwrap(), url).timeout(PATIENCE);
        if key.is_empty() { request } else { request.bearer_auth(key) }
    }

    pub(crate) async fn ask(&self, method: &str, path: &str, key: &str) -> Answer {
        answer(self.request(method, path, key)).await
    }

    pub(crate) async fn post(&self, path: &str, key: &str, body: Value) -> Answer {
        answer(self.request("POST", path, key).json(&body)).await
    }

    /// A call token that grants what is asked for.
    pub(crate) async fn token(&self, key: &str, asked: Value) -> String {
        let made = self.post("/v1/tokens", key, asked).await;
        assert_eq!(made.status, 201, "{}", made.text);
        let token = made.json()["token"].as_str().unwrap().to_owned();
        canary::plant(&token);
        token
    }

    /// A call at a door with this credential; or the status of the refusal, and its code.
    pub(crate) async fn dial(&self, path: &str, key: &str) -> Result<Client, (u16, String)> {
        Client::dial(self.relay.addr(), path, &[("authorization", &format!("Bearer {key}"))]).await
    }
}

pub(crate) async fn answer(request: reqwest::RequestBuilder) -> Answer {
    let response = request.send().await.unwrap();
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    Answer { status, headers, text: response.text().await.unwrap() }
}

/// Waits until something is so.
pub(crate) async fn until(what: &str, so: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < end, "never came: {what}");
        time::sleep(Duration::from_millis(5)).await;
    }
}

/// What a client got.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Got {
    Json(Value),
    Audio(Vec<u8>),
    Closed(u16),
    /// The connection vanished without a close frame.
    Lost,
}

/// A well-behaved WebSocket, driven by hand.
pub(crate) struct Client {
    ws: WebSocketStream<TcpStream>,
}

impl Client {
    pub(crate) async fn connect(url: &str) -> Self {
        let host = url.trim_start_matches("ws://").split('/').next().unwrap();
        let tcp = TcpStream::connect(host).await.unwrap();
        let (ws, _) = tokio_tungstenite::client_async(url, tcp).await.unwrap();
        Self { ws }
    }

    /// With these headers; or the status of the refusal, and its code.
    pub(crate) async fn dial(
        addr: std::net::SocketAddr,
        path: &str,
        headers: &[(&'static str, &str)],
    ) -> Result<Self, (u16, String)> {
        let mut request = format!("ws://{addr}{path}").into_client_request().unwrap();
        for (name, value) in headers {
            request.headers_mut().insert(*name, value.parse().unwrap());
        }
        let tcp = TcpStream::connect(addr).await.unwrap();
        match tokio_tungstenite::client_async(request, tcp).await {
            Ok((ws, _)) => Ok(Self { ws }),
            Err(tungstenite::Error::Http(response)) => {
                let body: Value =
                    serde_json::from_slice(response.body().as_deref().unwrap_or_default()).unwrap_or_default();
                Err((response.status().as_u16(), body["error"]["code"].as_str().unwrap_or_default().to_owned()))
            }
            Err(error) => panic!("{error}"),
        }
    }

    pub(crate) async fn json(&mut self, text: &str) {
        self.ws.send(Message::text(text)).await.unwrap();
    }

    /// On a socket that may be gone.
    pub(crate) async fn tries(&mut self, message: Message) {
        let _ = self.ws.send(message).await;
    }

    pub(crate) async fn audio(&mut self, bytes: &[u8]) {
        self.ws.send(Message::binary(bytes.to_vec())).await.unwrap();
    }

    pub(crate) async fn next(&mut self) -> Got {
        let next = time::timeout(PATIENCE, async {
            loop {
                match self.ws.next().await {
                    Some(Ok(Message::Text(text))) => return Got::Json(serde_json::from_str(&text).unwrap()),
                    Some(Ok(Message::Binary(bytes))) => return Got::Audio(bytes.to_vec()),
                    Some(Ok(Message::Close(Some(CloseFrame { code, .. })))) => return Got::Closed(code.into()),
                    Some(Ok(Message::Close(None))) => return Got::Closed(1005),
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => return Got::Lost,
                }
            }
        });
        next.await.expect("the relay said nothing for 30 s")
    }

    /// The next message, JSON.
    pub(crate) async fn json_next(&mut self) -> Value {
        match self.next().await {
            Got::Json(message) => message,
            other => panic!("{other:?} instead of a message"),
        }
    }

    /// Reads until a message of this type; what else comes is left out.
    pub(crate) async fn until(&mut self, kind: &str) -> Value {
        loop {
            match self.next().await {
                Got::Json(message) if message["type"] == kind => return message,
                Got::Json(_) | Got::Audio(_) => {}
                end => panic!("{end:?} before `{kind}`"),
            }
        }
    }

    /// Reads to the end: the last error, and the close code.
    pub(crate) async fn end(&mut self) -> (Option<String>, u16) {
        let mut code = None;
        loop {
            match self.next().await {
                Got::Json(message) if message["type"] == "error" => {
                    code = message["error"]["code"].as_str().map(str::to_owned);
                }
                Got::Json(_) | Got::Audio(_) => {}
                Got::Closed(close) => return (code, close),
                Got::Lost => return (code, 1006),
            }
        }
    }

    /// The connection is gone in an instant, without a word: a reset.
    pub(crate) fn reset(self) {
        let tcp = self.ws.into_inner();
        socket2::SockRef::from(&tcp).set_linger(Some(Duration::ZERO)).unwrap();
    }

    /// Says goodbye with this code, and leaves.
    pub(crate) async fn close_with(mut self, code: u16) {
        let frame = CloseFrame { code: code.into(), reason: "".into() };
        self.ws.send(Message::Close(Some(frame))).await.unwrap();
    }

    /// Says goodbye and waits for the answer.
    pub(crate) async fn until_closed_by_us(&mut self) -> Got {
        let frame = CloseFrame { code: 1000.into(), reason: "".into() };
        self.ws.send(Message::Close(Some(frame))).await.unwrap();
        loop {
            if let end @ (Got::Closed(_) | Got::Lost) = self.next().await {
                return end;
            }
        }
    }

    /// Audio in real time, 20 ms at a time.
    pub(crate) async fn stream(&mut self, audio: &[u8], frame: usize) {
        let mut at = Instant::now();
        for piece in audio.chunks(frame) {
            self.audio(piece).await;
            at += Duration::from_millis(20);
            time::sleep_until(at).await;
        }
    }
}

/// Bare TCP that has shaken hands, for bytes that no library would send.
pub(crate) struct Raw {
    pub(crate) tcp: TcpStream,
}

impl Raw {
    pub(crate) async fn connect(addr: std::net::SocketAddr) -> Self {
        Self { tcp: TcpStream::connect(addr).await.unwrap() }
    }

    /// As [`Client::reset`].
    pub(crate) fn reset(self) {
        socket2::SockRef::from(&self.tcp).set_linger(Some(Duration::ZERO)).unwrap();
    }

    pub(crate) async fn upgraded(addr: std::net::SocketAddr) -> Self {
        let mut raw = Self::connect(addr).await;
        let head = raw
            .request(
                "GET /v1/voice HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                 Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            )
            .await;
        assert!(head.starts_with("HTTP/1.1 101"), "{head}");
        assert!(head.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "the answer to RFC 6455's own example key: {head}");
        raw
    }

    /// Sends a request and reads the answer's head, and its body if there is one.
    pub(crate) async fn request(&mut self, text: &str) -> String {
        self.tcp.write_all(text.as_bytes()).await.unwrap();
        let mut out = Vec::new();
        loop {
            let mut byte = [0];
            if time::timeout(PATIENCE, self.tcp.read(&mut byte)).await.unwrap().unwrap_or(0) == 0 {
                break;
            }
            out.push(byte[0]);
            let Some(head) = out.windows(4).position(|w| w == b"\r\n\r\n") else { continue };
            let text = String::from_utf8_lossy(&out).to_lowercase();
            let length =
                text.split("content-length: ").nth(1).and_then(|t| t.split("\r\n").next()?.parse::<usize>().ok());
            if out.len() >= head + 4 + length.unwrap_or(0) {
                break;
            }
        }
        String::from_utf8_lossy(&out).into_owned()
    }

    /// A masked frame with a mask of zeros.
    pub(crate) fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut out = vec![first];
        match payload.len() {
            n @ 0..126 => out.push(0x80 | u8::try_from(n).unwrap()),
            n @ 126..65_536 => {
                out.push(0x80 | 126);
                out.extend(u16::try_from(n).unwrap().to_be_bytes());
            }
            n => {
                out.push(0x80 | 127);
                out.extend((n as u64).to_be_bytes());
            }
        }
        out.extend([0; 4]);
        out.extend(payload);
        out
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        self.tcp.write_all(bytes).await.unwrap();
    }

    /// Reads frames to the end: error codes that were told, the close code, and how long it took.
    pub(crate) async fn end(&mut self) -> (Vec<String>, Option<u16>, Duration) {
        let began = Instant::now();
        let mut bytes = Vec::new();
        let mut buffer = [0; 4096];
        let mut close = None;
        let mut errors = Vec::new();
        while close.is_none() {
            match time::timeout(PATIENCE, self.tcp.read(&mut buffer)).await.expect("no end within 30 s") {
                Ok(0) | Err(_) => break,
                Ok(n) => bytes.extend_from_slice(&buffer[..n]),
            }
            while let Some((opcode, payload, rest)) = server_frame(&bytes) {
                if opcode == 8 {
                    close = Some(u16::from_be_bytes([payload[0], payload[1]]));
                } else if opcode == 1 {
                    let message: Value = serde_json::from_slice(&payload).unwrap();
                    errors.extend(message["error"]["code"].as_str().map(str::to_owned));
                }
                bytes = rest;
            }
        }
        (errors, close, began.elapsed())
    }
}

fn server_frame(bytes: &[u8]) -> Option<(u8, Vec<u8>, Vec<u8>)> {
    let (first, second) = (*bytes.first()?, *bytes.get(1)?);
    let (length, at) = match second {
        126 => (usize::from(u16::from_be_bytes([*bytes.get(2)?, *bytes.get(3)?])), 4),
        127 => (usize::try_from(u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?)).ok()?, 10),
        n => (usize::from(n), 2),
    };
    let payload = bytes.get(at..at + length)?.to_vec();
    Some((first & 0x0F, payload, bytes[at + length..].to_vec()))
}

/// Status and JSON body of a plain GET.
pub(crate) async fn get(rig: &Rig, path: &str, headers: &str) -> (u16, Value, String) {
    let mut raw = Raw::connect(rig.relay.addr()).await;
    let text = raw.request(&format!("GET {path} HTTP/1.1\r\nHost: {}\r\n{headers}\r\n", rig.relay.addr())).await;
    let status = text.split(' ').nth(1).unwrap().parse().unwrap();
    let body = text.split("\r\n\r\n").nth(1).unwrap_or_default();
    (status, serde_json::from_str(body).unwrap_or_default(), text)
}

/// A clip of the tests, PCM16 at 24 kHz.
pub(crate) fn clip(name: &str) -> Vec<u8> {
    let path = format!("{}/{name}", env!("CARGO_MANIFEST_DIR"));
    let recording = voxrelay::audio::decode::decode_file(path, 24_000).unwrap();
    recording.samples.iter().flat_map(|s| s.to_le_bytes()).collect()
}
