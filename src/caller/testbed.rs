//! A scripted server on a loopback socket, for the tests of this room only.
use std::{future::Future, time::Duration};

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_tungstenite::{
    WebSocketStream, accept_hdr_async,
    tungstenite::{
        Message,
        handshake::server::{Request, Response},
        http::HeaderValue,
        protocol::CloseFrame,
    },
};

use super::{Call, CallEnd, Event};

/// A `ready` with mu-law both ways.
pub(crate) const READY: &str = r#"{"type":"ready","call":"call_1","resume":null,"agent":"default","audio":{"in":{"format":"mulaw","rate":8000},"out":{"format":"mulaw","rate":8000}},"limits":{"max_message_bytes":262144,"max_call_s":14400,"resume_window_s":0}}"#;

/// A `ready` of a call that is kept for 30 s, to be had again with `token`.
pub(crate) fn resumable(token: &str) -> String {
    READY
        .replace(r#""resume":null"#, &format!(r#""resume":"{token}""#))
        .replace(r#""resume_window_s":0"#, r#""resume_window_s":30"#)
}

/// A `resumed` that has `got` messages; `token` is the next.
pub(crate) fn resumed(token: &str, got: u64) -> String {
    serde_json::json!({"type": "resumed", "call": "call_1", "resume": token, "got": got}).to_string()
}

/// Serves connections by a script.
pub(crate) struct Fake {
    pub(crate) url: String,
    task: JoinSet<()>,
}

impl Fake {
    /// For one connection.
    pub(crate) async fn start<F>(script: impl FnOnce(Door) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send,
    {
        Self::house(async |mut doors| script(doors.open().await).await).await
    }

    /// For as many as the script lets in.
    pub(crate) async fn house<F>(script: impl FnOnce(Doors) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("ws://{}", listener.local_addr().unwrap());
        let mut task = JoinSet::new();
        task.spawn(async move { script(Doors { listener }).await });
        Self { url, task }
    }

    /// Passes the script's panics on; a script that waits for something that never comes fails too.
    pub(crate) async fn finished(mut self) {
        let ended = tokio::time::timeout(Duration::from_secs(20), self.task.join_next()).await;
        ended.expect("the script has ended").unwrap().unwrap();
    }
}

/// Where callers come in, one after the other.
pub(crate) struct Doors {
    listener: TcpListener,
}

impl Doors {
    /// Lets the next one in.
    pub(crate) async fn open(&mut self) -> Door {
        let (tcp, _) = self.listener.accept().await.unwrap();
        Door::open(tcp).await
    }

    /// Answers the next one's request as it stands, and hangs up. The request's first line.
    pub(crate) async fn refuse(&mut self, answer: &str) -> String {
        let (mut tcp, _) = self.listener.accept().await.unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            assert!(tcp.read_buf(&mut request).await.unwrap() > 0, "a whole request");
        }
        tcp.write_all(answer.as_bytes()).await.unwrap();
        String::from_utf8(request).unwrap().lines().next().unwrap().to_owned()
    }
}

/// The server's end of one connection.
pub(crate) struct Door {
    ws: WebSocketStream<TcpStream>,
    /// Path and query, credential and subprotocol of the request.
    pub(crate) request: String,
}

impl Door {
    async fn open(tcp: TcpStream) -> Self {
        // The system would hold small frames back for real milliseconds, which a paused clock does not see.
        tcp.set_nodelay(true).unwrap();
        let mut seen = String::new();
        #[expect(clippy::result_large_err, reason = "the library's own type")]
        let ws = accept_hdr_async(tcp, |request: &Request, mut response: Response| {
            let header = |name| request.headers().get(name).map_or("-", |v| v.to_str().unwrap());
            seen = format!("{} {} {}", request.uri(), header("authorization"), header("sec-websocket-protocol"));
            response.headers_mut().insert("sec-websocket-protocol", HeaderValue::from_static("voxrelay.v1"));
            Ok(response)
        });
        let ws = ws.await.unwrap();
        Self { ws, request: seen }
    }

    pub(crate) async fn text(&mut self, text: &str) {
        self.ws.send(Message::Text(text.into())).await.unwrap();
    }

    pub(crate) async fn binary(&mut self, data: &[u8]) {
        self.ws.send(Message::Binary(data.to_vec().into())).await.unwrap();
    }

    pub(crate) async fn ping(&mut self, data: &[u8]) {
        self.ws.send(Message::Ping(data.to_vec().into())).await.unwrap();
    }

    pub(crate) async fn close(&mut self, code: u16, reason: &str) {
        let frame = CloseFrame { code: code.into(), reason: reason.into() };
        self.ws.send(Message::Close(Some(frame))).await.unwrap();
        self.gone().await;
    }

    pub(crate) async fn next(&mut self) -> Option<Message> {
        self.ws.next().await.and_then(Result::ok)
    }

    pub(crate) async fn read_text(&mut self) -> Value {
        match self.next().await {
            Some(Message::Text(text)) => serde_json::from_str(&text).unwrap(),
            other => panic!("wanted a text, got {other:?}"),
        }
    }

    pub(crate) async fn read_binary(&mut self) -> Vec<u8> {
        match self.next().await {
            Some(Message::Binary(data)) => data.to_vec(),
            other => panic!("wanted audio, got {other:?}"),
        }
    }

    pub(crate) async fn read_pong(&mut self) -> Vec<u8> {
        match self.next().await {
            Some(Message::Pong(data)) => data.to_vec(),
            other => panic!("wanted a pong, got {other:?}"),
        }
    }

    /// Reads until the client is gone.
    pub(crate) async fn gone(&mut self) {
        while self.next().await.is_some() {}
    }
}

/// Drops events up to the end.
pub(crate) async fn end_of(call: &mut Call) -> CallEnd {
    loop {
        if let Event::Ended(end) = call.next().await.unwrap() {
            return end;
        }
    }
}
