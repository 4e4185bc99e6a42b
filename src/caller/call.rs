//! One call: messages out, events in, over as many connections as it takes.
//!
//! Sending never waits: a message is counted and kept, goes into the socket's bounded buffer, and leaves while
//! [`Call::next`] is polled. So one task can speak and listen without either holding up the other. When the connection
//! drops, the same poll has it again, as [`super::resume`] says when and with what; meanwhile messages are only kept.
use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::Sink as _;
use secrecy::SecretString;
use tokio::time::{Instant, Sleep, sleep_until, timeout_at};
use tokio_tungstenite::tungstenite::Message;

use super::{
    ConnectError, Options,
    connect::{MAX_BACKLOG, dial},
    frames::{Received, Ws, poll_ws},
    options::Target,
    resume::{Due, Resume},
};
use crate::client::wire::{AudioFormats, ClientMsg, ErrorBody, Limits, ServerMsg};

/// What the server said first.
#[derive(Debug, Clone, PartialEq)]
pub struct Ready {
    /// The call's id; the server's log has it too.
    pub call: String,
    /// The first token to come back with, which the call does by itself; `None`: the server keeps no calls.
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
    /// The connection is lost in this way, and is being had again. What is sent meanwhile is kept; what the server says
    /// meanwhile comes later. [`Event::Resumed`] or [`Event::Ended`] follows.
    Dropped(CallEnd),
    /// It is back: nothing was lost, nothing comes twice.
    Resumed {
        /// For how long it was away.
        after: Duration,
    },
    /// The last event.
    Ended(CallEnd),
}

/// How a call ended, or one of its connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallEnd {
    /// Close code; 1006 where the connection ended without a close frame, 1005 where that held no code.
    pub code: u16,
    /// The close frame's text, or what happened to the connection.
    pub reason: String,
    /// The server's last `error`, where the code is one that is preceded by one.
    pub error: Option<ErrorBody>,
    /// Why the call did not come back after it, where that was tried.
    pub not_resumed: Option<String>,
}

impl CallEnd {
    /// `error` belongs to this end only where the protocol announces such ends by one: not to 1006, which means that the
    /// network or a process died, nor to what was asked for.
    pub(super) fn new(code: u16, reason: String, error: Option<ErrorBody>) -> Self {
        let announced = !matches!(code, 1000 | 1001 | 1002 | 1005 | 1006 | 1007);
        Self { code, reason, error: error.filter(|_| announced), not_resumed: None }
    }

    /// How long the server asks to wait.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        self.error.as_ref().and_then(|error| error.retry_after_ms).map(Duration::from_millis)
    }

    /// Whether this is the end that was asked for.
    pub fn is_normal(&self) -> bool {
        self.code == 1000
    }
}

impl fmt::Display for CallEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "close code {}", self.code)?;
        match &self.error {
            Some(error) => write!(f, ", {}: {}", error.code, error.message)?,
            None if self.reason.is_empty() => {}
            None => write!(f, ", {}", self.reason)?,
        }
        match &self.not_resumed {
            Some(why) => write!(f, "; the call did not come back: {why}"),
            None => Ok(()),
        }
    }
}

/// Why a message was not taken. [`Call::next`] knows more about a call that is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The call is over.
    #[error("the call is over")]
    Over,
    /// The server has not read, or has not been there, for so long that what waits for it (8 MiB) is full.
    #[error("the server does not read; the message was dropped")]
    Backlog,
    /// The server would refuse it and close the connection.
    #[error("a message of {bytes} bytes is over the server's limit of {limit}; it was not sent")]
    TooLarge {
        /// Its length.
        bytes: usize,
        /// `limits.max_message_bytes`, or less where the socket's own buffer is smaller.
        limit: usize,
    },
}

/// A call that is ready.
pub struct Call {
    url: String,
    options: Options,
    link: Link,
    resume: Resume,
    /// Set to the account's next deadline whenever there is nothing to read.
    alarm: Pin<Box<Sleep>>,
    ready: Ready,
    reply: Option<Arc<str>>,
    last_error: Option<ErrorBody>,
    over: bool,
}

type Dialled = Result<(Box<Ws>, ServerMsg), ConnectError>;

/// The present connection.
enum Link {
    Up(Box<Ws>),
    Dialling(Pin<Box<dyn Future<Output = Dialled> + Send>>),
    Down,
}

/// What the link came to.
enum Found {
    Frame(Received),
    Dialled(Box<Dialled>),
}

impl fmt::Debug for Call {
    /// Not the address, which may hold a token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ready, resume, over, .. } = self;
        f.debug_struct("Call")
            .field("call", &ready.call)
            .field("resume", resume)
            .field("over", over)
            .finish_non_exhaustive()
    }
}

impl Call {
    /// Takes a connection on which `ready` came.
    pub(super) fn new(ws: Box<Ws>, ready: Ready, url: String, options: Options) -> Self {
        let now = Instant::now();
        let token = ready.resume.clone().filter(|_| options.resume);
        let window = Duration::from_secs(ready.limits.resume_window_s);
        // A message that fills the socket's buffer would never leave.
        let max_message = usize::try_from(ready.limits.max_message_bytes).unwrap_or(usize::MAX).min(MAX_BACKLOG / 2);
        let resume = Resume::new(now, token, window, max_message);
        Self {
            url,
            options,
            link: Link::Up(ws),
            alarm: Box::pin(sleep_until(resume.deadline())),
            resume,
            ready,
            reply: None,
            last_error: None,
            over: false,
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
        match message {
            ClientMsg::Close => self.resume.hang_up(),
            ClientMsg::Token { token } => {
                self.options.token = Some(SecretString::from(token.as_str()));
                self.resume.renew();
            }
            _ => {}
        }
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

    /// Asks the server to end the call; [`Event::Ended`] follows. While the connection is lost that is the end at once.
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
        waited.await.ok().flatten().unwrap_or_else(|| CallEnd::new(1006, silent.into(), None))
    }

    /// The next event; `None` after [`Event::Ended`]. Nothing leaves or arrives while this is not polled. Cancel safe.
    pub async fn next(&mut self) -> Option<Event> {
        std::future::poll_fn(|cx| self.poll_event(cx)).await
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        loop {
            if self.over {
                return Poll::Ready(None);
            }
            let now = Instant::now();
            if let Some(got) = self.resume.ack(now) {
                // A server that does not read gets none; the next is due with the next message.
                let _full = self.send(&ClientMsg::Ack { got });
            }
            let event = match self.poll_link(cx) {
                Poll::Ready(Found::Frame(frame)) => self.take(now, frame),
                Poll::Ready(Found::Dialled(dialled)) => self.dialled(now, *dialled),
                Poll::Pending => {
                    let at = self.resume.deadline();
                    if self.alarm.deadline() != at {
                        self.alarm.as_mut().reset(at);
                    }
                    std::task::ready!(self.alarm.as_mut().poll(cx));
                    self.act(now)
                }
            };
            if event.is_some() {
                return Poll::Ready(event);
            }
        }
    }

    /// Writes what there is room for, reads one frame; or goes on dialling.
    fn poll_link(&mut self, cx: &mut Context<'_>) -> Poll<Found> {
        match &mut self.link {
            Link::Up(ws) => loop {
                write(ws, &mut self.resume);
                let found = poll_ws(ws, cx);
                // What has just left made room; nobody would wake us for that.
                if found.is_ready() || self.resume.unwritten().is_none() || !write(ws, &mut self.resume) {
                    return found.map(Found::Frame);
                }
            },
            Link::Dialling(dialling) => dialling.as_mut().poll(cx).map(|dialled| Found::Dialled(Box::new(dialled))),
            Link::Down => Poll::Pending,
        }
    }

    fn take(&mut self, now: Instant, frame: Received) -> Option<Event> {
        self.resume.heard(now);
        match frame {
            Received::Binary(data) => {
                self.resume.received(now);
                Some(Event::Audio { reply: self.reply.clone(), data })
            }
            Received::Text(text) => {
                self.resume.received(now);
                let Ok(message) = serde_json::from_str::<ServerMsg>(&text) else { return Some(Event::Unknown(text)) };
                match &message {
                    ServerMsg::ReplyStarted { reply } => self.reply = Some(reply.as_str().into()),
                    ServerMsg::Error { error } => self.last_error = Some(error.clone()),
                    ServerMsg::Ack { got, .. } => self.resume.acked(*got),
                    _ => {}
                }
                Some(Event::Message(Box::new(message)))
            }
            Received::Control => None,
            Received::End(code, reason) => {
                let end = CallEnd::new(code, reason, self.last_error.take());
                Some(self.dropped(now, end))
            }
            Received::Unreadable(reason) => Some(self.ended(CallEnd::new(1006, reason, None))),
        }
    }

    /// The clock's part.
    fn act(&mut self, now: Instant) -> Option<Event> {
        match self.resume.due(now)? {
            Due::Silent => Some(self.dropped(now, CallEnd::new(1006, "nothing came for 35 s".into(), None))),
            Due::Over(end) => Some(self.ended(end)),
            Due::Dial { token, got } => {
                let options = self.options.clone();
                let target = Target::resuming(&self.url, &token, got);
                self.link = Link::Dialling(Box::pin(async move { dial(target?, options, "resumed").await }));
                None
            }
        }
    }

    fn dropped(&mut self, now: Instant, end: CallEnd) -> Event {
        match self.resume.dropped(now, end.clone(), rand::random()) {
            Ok(()) => {
                self.link = Link::Down;
                Event::Dropped(end)
            }
            Err(end) => self.ended(*end),
        }
    }

    fn dialled(&mut self, now: Instant, dialled: Dialled) -> Option<Event> {
        self.link = Link::Down;
        let result = match dialled {
            Ok((ws, ServerMsg::Resumed { resume, got, .. })) => {
                let resumed = self.resume.resumed(now, got, resume);
                if resumed.is_ok() {
                    self.link = Link::Up(ws);
                }
                resumed.map(|after| Some(Event::Resumed { after }))
            }
            Ok(_ready) => {
                let error = ConnectError::NotReady { wanted: "resumed", found: "the `ready` of a new call".into() };
                self.resume.failed(now, &error, rand::random()).map(|()| None)
            }
            Err(error) => self.resume.failed(now, &error, rand::random()).map(|()| None),
        };
        result.unwrap_or_else(|end| Some(self.ended(*end)))
    }

    fn ended(&mut self, end: CallEnd) -> Event {
        self.over = true;
        self.link = Link::Down;
        Event::Ended(end)
    }

    fn put(&mut self, message: Message) -> Result<(), SendError> {
        if self.over {
            return Err(SendError::Over);
        }
        self.resume.push(message)?;
        if let Link::Up(ws) = &mut self.link {
            write(ws, &mut self.resume);
        }
        Ok(())
    }
}

/// Moves what is unwritten into the socket's buffer, as far as there is room. Whether anything was moved. A socket that
/// fails takes nothing; reading it tells why.
fn write(ws: &mut Ws, account: &mut Resume) -> bool {
    let mut wrote = false;
    while let Some(message) = account.unwritten() {
        if Pin::new(&mut *ws).start_send(message.clone()).is_err() {
            break;
        }
        account.wrote();
        wrote = true;
    }
    wrote
}

#[cfg(test)]
mod tests;
