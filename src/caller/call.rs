//! One call on one socket: messages out, events in.
//!
//! Sending never waits: a message goes into the socket's bounded buffer and leaves while [`Call::next`] is polled. So
//! one task can speak and listen without either holding up the other.
use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{Sink as _, Stream as _};
use tokio::time::{Instant, timeout_at};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Error as WsError, Message, protocol::CloseFrame},
};

use super::{ConnectError, socket::Socket};
use crate::client::wire::{AudioFormats, ClientMsg, ErrorBody, Limits, ServerMsg};

/// What the server said first.
#[derive(Debug, Clone, PartialEq)]
pub struct Ready {
    /// The call's id; the server's log has it too.
    pub call: String,
    /// Token to come back with; `None` while the server has no resume.
    pub resume: Option<String>,
    /// The agent that answers.
    pub agent: String,
    /// Agreed formats.
    pub audio: AudioFormats,
    /// Limits of this call.
    pub limits: Limits,
}

/// What came from the server.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Reply audio in the agreed format.
    Audio {
        /// The reply that started last; `None` where none did.
        reply: Option<Arc<str>>,
        /// One message.
        data: Bytes,
    },
    /// A message that we know. Boxed: most events are audio.
    Message(Box<ServerMsg>),
    /// A text that we do not know: from a newer server, perhaps. As it came.
    Unknown(String),
    /// The last event.
    Ended(CallEnd),
}

/// How a call ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallEnd {
    /// Close code; 1006 where the connection ended without a close frame, 1005 where that held no code.
    pub code: u16,
    /// The close frame's text, or what happened to the connection.
    pub reason: String,
    /// The server's last `error`, where the code is one that is preceded by one.
    pub error: Option<ErrorBody>,
}

impl CallEnd {
    /// Whether this is the end that was asked for.
    pub fn is_normal(&self) -> bool {
        self.code == 1000
    }
}

impl fmt::Display for CallEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "close code {}", self.code)?;
        match &self.error {
            Some(error) => write!(f, ", {}: {}", error.code, error.message),
            None if self.reason.is_empty() => Ok(()),
            None => write!(f, ", {}", self.reason),
        }
    }
}

/// Why a message was not taken. [`Call::next`] knows more about a call that is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The call is over.
    #[error("the call is over")]
    Over,
    /// The server has not read for so long that the buffer (4 MiB) is full.
    #[error("the server does not read; the message was dropped")]
    Backlog,
}

/// A call that is ready.
#[derive(Debug)]
pub struct Call {
    ws: WebSocketStream<Socket>,
    ready: Ready,
    reply: Option<Arc<str>>,
    last_error: Option<ErrorBody>,
    over: bool,
}

impl Call {
    /// Waits for the first message.
    pub(super) async fn ready_on(mut ws: WebSocketStream<Socket>) -> Result<Self, ConnectError> {
        let mut last_error = None;
        loop {
            let found = match std::future::poll_fn(|cx| poll_ws(&mut ws, cx)).await {
                Received::Text(text) => match serde_json::from_str(&text) {
                    Ok(ServerMsg::Ready { call, resume, agent, audio, limits }) => {
                        let ready = Ready { call, resume, agent, audio, limits };
                        return Ok(Self { ws, ready, reply: None, last_error: None, over: false });
                    }
                    Ok(ServerMsg::Error { error }) => {
                        last_error = Some(error);
                        continue;
                    }
                    _ => text.chars().take(200).collect(),
                },
                Received::Binary(data) => format!("{} bytes of audio", data.len()),
                Received::End(code, reason) => {
                    return Err(ConnectError::Ended(Box::new(call_end(code, reason, last_error))));
                }
            };
            return Err(ConnectError::NotReady { found });
        }
    }

    /// What the server said first.
    pub fn ready(&self) -> &Ready {
        &self.ready
    }

    /// Input audio in the agreed format; PCM may be cut anywhere, Opus is one packet a message.
    ///
    /// # Errors
    /// As for every message: see [`SendError`].
    pub fn audio(&mut self, data: Bytes) -> Result<(), SendError> {
        self.put(Message::Binary(data))
    }

    /// Any text message.
    ///
    /// # Errors
    /// See [`SendError`].
    pub fn send(&mut self, message: &ClientMsg) -> Result<(), SendError> {
        let json = serde_json::to_string(message).expect("these types hold nothing that JSON cannot");
        self.send_raw(json)
    }

    /// A text as it stands, for what the types cannot say.
    ///
    /// # Errors
    /// See [`SendError`].
    pub fn send_raw(&mut self, text: impl Into<String>) -> Result<(), SendError> {
        self.put(Message::Text(text.into().into()))
    }

    /// Manual turns: answer what was said since the last turn.
    ///
    /// # Errors
    /// See [`SendError`].
    pub fn commit(&mut self) -> Result<(), SendError> {
        self.send(&ClientMsg::Commit)
    }

    /// Manual turns: forget what was said since the last turn.
    ///
    /// # Errors
    /// See [`SendError`].
    pub fn discard(&mut self) -> Result<(), SendError> {
        self.send(&ClientMsg::Discard)
    }

    /// Stop `reply` (or whichever plays); `played_ms` of it were heard.
    ///
    /// # Errors
    /// See [`SendError`].
    pub fn interrupt(&mut self, reply: Option<&str>, played_ms: Option<u64>) -> Result<(), SendError> {
        self.send(&ClientMsg::Interrupt { reply: reply.map(str::to_owned), played_ms })
    }

    /// `ms` of `reply` have left the loudspeaker.
    ///
    /// # Errors
    /// See [`SendError`].
    pub fn played(&mut self, reply: &str, ms: u64) -> Result<(), SendError> {
        self.send(&ClientMsg::Played { reply: reply.to_owned(), ms })
    }

    /// A typed user turn.
    ///
    /// # Errors
    /// See [`SendError`].
    pub fn text(&mut self, text: &str) -> Result<(), SendError> {
        self.send(&ClientMsg::Text { text: text.to_owned() })
    }

    /// Answers a `tool_call`.
    ///
    /// # Errors
    /// See [`SendError`].
    pub fn tool_result(&mut self, call_id: &str, output: &str) -> Result<(), SendError> {
        self.send(&ClientMsg::ToolResult { call_id: call_id.to_owned(), output: output.to_owned() })
    }

    /// Asks for a `pong` that holds `t`.
    ///
    /// # Errors
    /// See [`SendError`].
    pub fn ping(&mut self, t: serde_json::Value) -> Result<(), SendError> {
        self.send(&ClientMsg::Ping { t })
    }

    /// Asks the server to end the call; [`Event::Ended`] follows.
    ///
    /// # Errors
    /// See [`SendError`].
    pub fn close(&mut self) -> Result<(), SendError> {
        self.send(&ClientMsg::Close)
    }

    /// Closes and waits for the end, at most `within`. Events that still come are dropped.
    pub async fn hang_up(mut self, within: Duration) -> CallEnd {
        let deadline = Instant::now() + within;
        // A call that is already over tells its end below.
        let _over = self.close();
        let waited = timeout_at(deadline, async {
            while let Some(event) = self.next().await {
                if let Event::Ended(end) = event {
                    return Some(end);
                }
            }
            None
        });
        let silent = "the server did not close the call in time";
        waited.await.ok().flatten().unwrap_or_else(|| call_end(1006, silent.into(), None))
    }

    /// The next event; `None` after [`Event::Ended`]. Nothing leaves or arrives while this is not polled. Cancel safe.
    pub async fn next(&mut self) -> Option<Event> {
        std::future::poll_fn(|cx| self.poll_event(cx)).await
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        if self.over {
            return Poll::Ready(None);
        }
        let received = std::task::ready!(poll_ws(&mut self.ws, cx));
        Poll::Ready(Some(match received {
            Received::Binary(data) => Event::Audio { reply: self.reply.clone(), data },
            Received::Text(text) => match serde_json::from_str::<ServerMsg>(&text) {
                Ok(message) => {
                    match &message {
                        ServerMsg::ReplyStarted { reply } => self.reply = Some(reply.as_str().into()),
                        ServerMsg::Error { error } => self.last_error = Some(error.clone()),
                        _ => {}
                    }
                    Event::Message(Box::new(message))
                }
                Err(_) => Event::Unknown(text),
            },
            Received::End(code, reason) => {
                self.over = true;
                Event::Ended(call_end(code, reason, self.last_error.take()))
            }
        }))
    }

    fn put(&mut self, message: Message) -> Result<(), SendError> {
        if self.over {
            return Err(SendError::Over);
        }
        match Pin::new(&mut self.ws).start_send(message) {
            Ok(()) => Ok(()),
            Err(WsError::WriteBufferFull(_)) => Err(SendError::Backlog),
            Err(_) => Err(SendError::Over),
        }
    }
}

/// `error` belongs to this end only where the protocol announces such ends by one: not to 1006, which means that the
/// network or a process died, nor to what was asked for.
fn call_end(code: u16, reason: String, error: Option<ErrorBody>) -> CallEnd {
    let announced = !matches!(code, 1000 | 1001 | 1002 | 1005 | 1006 | 1007);
    CallEnd { code, reason, error: error.filter(|_| announced) }
}

enum Received {
    Text(String),
    Binary(Bytes),
    End(u16, String),
}

/// Writes what waits, reads one message. Reading goes first where writing fails: the reason may stand in the last bytes.
fn poll_ws(ws: &mut WebSocketStream<Socket>, cx: &mut Context<'_>) -> Poll<Received> {
    let _sent = Pin::new(&mut *ws).poll_flush(cx);
    loop {
        let message = std::task::ready!(Pin::new(&mut *ws).poll_next(cx));
        return Poll::Ready(match message {
            Some(Ok(Message::Text(text))) => Received::Text(text.as_str().to_owned()),
            Some(Ok(Message::Binary(data))) => Received::Binary(data),
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {
                // tungstenite has queued the pong.
                let _sent = Pin::new(&mut *ws).poll_flush(cx);
                continue;
            }
            Some(Ok(Message::Close(frame))) => {
                let _answered = Pin::new(&mut *ws).poll_flush(cx);
                let (code, reason) = match frame {
                    Some(CloseFrame { code, reason }) => (code.into(), reason.as_str().to_owned()),
                    None => (1005, String::new()),
                };
                Received::End(code, reason)
            }
            Some(Err(error)) => Received::End(1006, error.to_string()),
            None => Received::End(1006, "the connection ended".into()),
        });
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        audio::Format,
        caller::{
            Options, connect,
            testbed::{self, Fake, READY},
        },
        client::wire::{ReplyStatus, Role},
    };

    #[tokio::test]
    async fn a_call_becomes_ready_and_is_hung_up() {
        let fake = Fake::start(async |mut door| {
            door.text(READY).await;
            assert_eq!(door.read_text().await, json!({"type": "close"}));
            door.close(1000, "").await;
        })
        .await;
        let call = connect(&fake.url, &Options::default()).await.unwrap();
        assert_eq!(call.ready().call, "call_1");
        assert_eq!(call.ready().audio.output, Format::MULAW);
        assert_eq!(call.ready().resume, None);
        let end = call.hang_up(Duration::from_secs(5)).await;
        assert!(end.is_normal(), "{end}");
        fake.finished().await;
    }

    #[tokio::test]
    async fn every_message_has_the_shape_of_the_contract() {
        let fake = Fake::start(async |mut door| {
            door.text(READY).await;
            for want in [
                json!({"type": "commit"}),
                json!({"type": "discard"}),
                json!({"type": "interrupt"}),
                json!({"type": "interrupt", "reply": "r1", "played_ms": 420}),
                json!({"type": "played", "reply": "r1", "ms": 40}),
                json!({"type": "text", "text": "hi"}),
                json!({"type": "tool_result", "call_id": "c", "output": "4"}),
                json!({"type": "ping", "t": [1, "x"]}),
                json!({"type": "whatever"}),
            ] {
                assert_eq!(door.read_text().await, want);
            }
            assert_eq!(door.read_binary().await, [1, 2, 3]);
            door.close(1000, "").await;
        })
        .await;
        let mut call = connect(&fake.url, &Options::default()).await.unwrap();
        call.commit().unwrap();
        call.discard().unwrap();
        call.interrupt(None, None).unwrap();
        call.interrupt(Some("r1"), Some(420)).unwrap();
        call.played("r1", 40).unwrap();
        call.text("hi").unwrap();
        call.tool_result("c", "4").unwrap();
        call.ping(json!([1, "x"])).unwrap();
        call.send_raw(r#"{"type":"whatever"}"#).unwrap();
        call.audio(Bytes::from_static(&[1, 2, 3])).unwrap();
        assert!(matches!(call.next().await, Some(Event::Ended(end)) if end.is_normal()));
        assert_eq!(call.next().await, None);
        assert_eq!(call.commit(), Err(SendError::Over));
        fake.finished().await;
    }

    #[tokio::test]
    async fn audio_belongs_to_the_reply_that_started_last() {
        let fake = Fake::start(async |mut door| {
            door.text(READY).await;
            door.binary(b"0").await;
            door.text(r#"{"type":"reply_started","reply":"r1"}"#).await;
            door.binary(b"1").await;
            door.text(r#"{"type":"reply_started","reply":"r2"}"#).await;
            door.binary(b"2").await;
            door.close(1000, "").await;
        })
        .await;
        let mut call = connect(&fake.url, &Options::default()).await.unwrap();
        let mut got = Vec::new();
        while let Some(event) = call.next().await {
            if let Event::Audio { reply, data } = event {
                got.push((reply.as_deref().map(str::to_owned), data));
            }
        }
        let want = [(None, "0"), (Some("r1"), "1"), (Some("r2"), "2")];
        let want = want.map(|(reply, data)| (reply.map(str::to_owned), Bytes::from_static(data.as_bytes())));
        assert_eq!(got, want);
        fake.finished().await;
    }

    #[tokio::test]
    async fn messages_of_tomorrow_are_kept_as_they_came() {
        let known = r#"{"type":"transcript","role":"user","item":"i","text":"hello","final":true,"new_field":1}"#;
        let fake = Fake::start(async move |mut door| {
            door.text(READY).await;
            door.text(r#"{"type":"hologram","x":1}"#).await;
            door.text("not json").await;
            door.text(known).await;
            door.text(r#"{"type":"notice","code":"audio_gap","message":"m","from_ms":1,"to_ms":2}"#).await;
            door.close(1000, "").await;
        })
        .await;
        let mut call = connect(&fake.url, &Options::default()).await.unwrap();
        assert_eq!(call.next().await, Some(Event::Unknown(r#"{"type":"hologram","x":1}"#.into())));
        assert_eq!(call.next().await, Some(Event::Unknown("not json".into())));
        let Some(Event::Message(message)) = call.next().await else { panic!("the transcript is known") };
        let ServerMsg::Transcript { role: Role::User, text, last: true, .. } = *message else { panic!("{message:?}") };
        assert_eq!(text.as_deref(), Some("hello"));
        let Some(Event::Message(message)) = call.next().await else { panic!("the notice is known") };
        let ServerMsg::Notice { code, more, .. } = *message else { panic!("{message:?}") };
        assert_eq!((code.as_str(), more.get("to_ms")), ("audio_gap", Some(&json!(2))));
        assert!(testbed::end_of(&mut call).await.is_normal());
        fake.finished().await;
    }

    #[tokio::test]
    async fn an_end_knows_the_error_before_it() {
        const ERROR: &str = r#"{"type":"error","error":{"code":"slow_consumer","message":"read faster","retryable":true,"retry_after_ms":50,"request_id":"q"}}"#;
        for (code, says) in [(4508, true), (1000, false)] {
            let fake = Fake::start(async move |mut door| {
                door.text(READY).await;
                door.text(ERROR).await;
                door.binary(b"late audio").await;
                door.close(code, "why").await;
            })
            .await;
            let mut call = connect(&fake.url, &Options::default()).await.unwrap();
            let end = testbed::end_of(&mut call).await;
            assert_eq!(
                (end.code, end.error.as_ref().map(|e| e.code.as_str())),
                (code, says.then_some("slow_consumer"))
            );
            fake.finished().await;
        }
    }

    #[tokio::test]
    async fn a_dropped_connection_is_1006_and_blames_no_old_error() {
        let fake = Fake::start(async |mut door| {
            door.text(READY).await;
            door.text(
                r#"{"type":"error","error":{"code":"wrong_mode","message":"m","retryable":false,"request_id":"q"}}"#,
            )
            .await;
            drop(door);
        })
        .await;
        let mut call = connect(&fake.url, &Options::default()).await.unwrap();
        let end = testbed::end_of(&mut call).await;
        assert_eq!((end.code, end.error), (1006, None));
        fake.finished().await;
    }

    #[tokio::test]
    async fn a_frame_over_the_cap_ends_the_call_instead_of_filling_memory() {
        let fake = Fake::start(async |mut door| {
            door.text(READY).await;
            door.binary(&vec![0; 1024 * 1024 + 1]).await;
            door.gone().await;
        })
        .await;
        let mut call = connect(&fake.url, &Options::default()).await.unwrap();
        let end = testbed::end_of(&mut call).await;
        assert!(end.code == 1006 && end.reason.contains("too long"), "{end}");
        drop(call);
        fake.finished().await;
    }

    #[tokio::test]
    async fn a_server_that_does_not_read_fills_a_bounded_buffer() {
        let (open, wait) = tokio::sync::oneshot::channel::<()>();
        let fake = Fake::start(async |mut door| {
            door.text(READY).await;
            let _closed = wait.await;
        })
        .await;
        let mut call = connect(&fake.url, &Options::default()).await.unwrap();
        let chunk = Bytes::from(vec![0; 256 * 1024]);
        // 4 MiB of ours and what the system's own buffers take: a few megabytes on loopback.
        let full = (0..1_000).find_map(|n| call.audio(chunk.clone()).err().map(|error| (n, error)));
        let (n, error) = full.expect("250 MiB fit into no buffer");
        assert_eq!(error, SendError::Backlog, "after {n} messages");
        drop(open);
        fake.finished().await;
    }

    #[tokio::test]
    async fn no_ready_is_no_call() {
        const ERROR: &str = r#"{"type":"error","error":{"code":"upstream_unavailable","message":"no service","retryable":true,"request_id":"q"}}"#;
        let options = Options { ready_timeout: Duration::from_millis(50), ..Options::default() };
        for (texts, code, want) in [
            (vec![ERROR], Some(4503), "ended before it was ready: close code 4503, upstream_unavailable: no service"),
            (vec![r#"{"type":"pong","t":1}"#], None, "first message is not `ready` but {\"type\":\"pong\""),
            (vec![], None, "waiting for `ready` took longer than 0.05 s"),
        ] {
            let fake = Fake::start(async move |mut door| {
                for text in texts {
                    door.text(text).await;
                }
                if let Some(code) = code {
                    door.close(code, "").await;
                }
                door.gone().await;
            })
            .await;
            let error = connect(&fake.url, &options).await.unwrap_err().to_string();
            assert!(error.contains(want), "{want}: {error}");
            fake.finished().await;
        }
    }

    #[tokio::test]
    async fn pings_are_answered_while_only_listening() {
        let fake = Fake::start(async |mut door| {
            door.text(READY).await;
            door.ping(b"are you there").await;
            assert_eq!(door.read_pong().await, b"are you there");
            door.close(1000, "").await;
        })
        .await;
        let mut call = connect(&fake.url, &Options::default()).await.unwrap();
        assert!(testbed::end_of(&mut call).await.is_normal());
        fake.finished().await;
    }

    #[tokio::test]
    async fn the_request_holds_what_was_asked_for() {
        let fake = Fake::start(async |mut door| {
            door.text(READY).await;
            door.text(
                r#"{"type":"reply_ended","reply":"r","status":"completed","audio_ms":20,"heard_ms":20,"latency":{}}"#,
            )
            .await;
            door.close(1000, &door.request.clone()).await;
        })
        .await;
        let options = Options { agent: Some("a b".into()), token: Some("sesame".into()), ..Options::default() };
        let mut call = connect(&fake.url, &options).await.unwrap();
        let Some(Event::Message(message)) = call.next().await else { panic!("reply_ended is known") };
        assert!(matches!(*message, ServerMsg::ReplyEnded { status: ReplyStatus::Completed, heard_ms: 20, .. }));
        let end = testbed::end_of(&mut call).await;
        assert_eq!(end.reason, "/v1/voice?agent=a%20b Bearer sesame voxrelay.v1");
        fake.finished().await;
    }
}
