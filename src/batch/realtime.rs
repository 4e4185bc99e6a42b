//! Recordings through a Realtime transcription session, for services that have no address for files.
//!
//! Stands beside [`super::relay`], as the other [`Engine`]: a session for each recording, in OpenAI's protocol, so that a relay's door
//! takes it as well as a service's own. The file is read while it is sent, as fast as the other side takes it and no faster, and in turns
//! that end at pauses ([`sound`]); what is said about them is put in order by [`record`]. Tries nothing twice. Nothing tells a session that
//! it is the same as one before: what broke and is tried again is paid again.
mod record;
mod sound;

use std::{future::poll_fn, io, task::Poll, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use futures_util::future::BoxFuture;
use rustls::pki_types::CertificateDer;
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::json;
use tokio::time::{self, Instant};

use self::{
    record::{Problem, Record, meaning},
    sound::{RATE, Sound},
};
use super::{
    engine::{Answer, Engine, Failure, NO_ADDRESS, Upload, Wish},
    relay::{refusal, whole_base},
};
use crate::{
    caller::{ConnectError, Knock, websocket},
    net::ws::{Frame, Socket, SocketError, SocketLimits},
};

/// Connection and upgrade may take so long.
const CONNECT: Duration = Duration::from_secs(20);
/// Nothing is heard, and nothing more is taken, for so long: it is given up.
const PATIENCE: Duration = Duration::from_secs(60);
/// After an error so long is waited for the close that says whether it was the end.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How long a goodbye may take.
const GOODBYE: Duration = Duration::from_secs(1);
/// What is taken from the service: transcripts of minutes, and whatever else it likes to tell.
const LIMITS: SocketLimits = SocketLimits { max_message: 4 << 20, read_buffer: 8 << 10 };

/// Where sessions are opened.
#[derive(Debug, Clone)]
pub struct Realtime {
    url: String,
    key: Option<SecretString>,
    ca: Vec<CertificateDer<'static>>,
    /// A whole recording.
    longest: Duration,
    patience: Duration,
}

impl Realtime {
    /// At this base (`http://127.0.0.1:8080/v1`), with this credential. `ca`: authorities to trust besides the public ones; `longest`: a
    /// whole recording, from the connection to its last word.
    ///
    /// # Errors
    /// What is wrong with the base.
    pub fn new(
        base: &str,
        key: Option<SecretString>,
        ca: Vec<CertificateDer<'static>>,
        longest: Duration,
    ) -> Result<Self, String> {
        let base = whole_base(base)?;
        // `http` becomes `ws`, and `https` `wss`.
        let url = format!("ws{}/realtime?intent=transcription", base.trim_start_matches("http"));
        Ok(Self { url, key, ca, longest, patience: PATIENCE })
    }

    /// Has a recording written down.
    ///
    /// # Errors
    /// Why it was not.
    pub async fn transcribe(&self, upload: &Upload, wish: &Wish) -> Result<Answer, Failure> {
        let whole = Box::pin(async {
            // What cannot be read needs no session.
            let mut sound = Sound::open(&upload.path).await?;
            let mut session = self.open().await?;
            let answer = session.write_down(&mut sound, wish).await;
            session.leave().await;
            answer
        });
        let late = || Failure::Again { message: format!("no answer within {} s", self.longest.as_secs_f64()) };
        time::timeout(self.longest, whole).await.unwrap_or_else(|_| Err(late()))
    }

    async fn open(&self) -> Result<Session, Failure> {
        let authorized = |key: &SecretString| format!("Bearer {}", key.expose_secret()).into();
        let headers: Vec<_> = self.key.iter().map(|key| ("Authorization".to_owned(), authorized(key))).collect();
        let knock = Knock { url: &self.url, subprotocol: None, headers: &headers, roots: &self.ca };
        let late = ConnectError::Timeout { what: "the upgrade to a WebSocket", limit: CONNECT };
        let opening = time::timeout(CONNECT, Box::pin(websocket(&knock, LIMITS))).await;
        let socket = opening.unwrap_or(Err(late)).map_err(|error| no_session(&error))?;
        Ok(Session { socket, record: Record::default(), heard: Instant::now(), patience: self.patience })
    }
}

impl Engine for Realtime {
    fn transcribe<'a>(
        &'a self,
        upload: &'a Upload,
        wish: &'a Wish,
        _key: &'a str,
    ) -> BoxFuture<'a, Result<Answer, Failure>> {
        Box::pin(Self::transcribe(self, upload, wish))
    }
}

/// What it means that no session could be had.
fn no_session(error: &ConnectError) -> Failure {
    let stop = |code: &str| Failure::Stop { code: code.to_owned(), message: error.to_string(), wait: None };
    match error {
        ConnectError::Refused(refused) => {
            let code = refused.error.as_ref().map_or("refused", |error| error.code.as_str()).to_owned();
            refusal(refused.status, code, error.to_string(), refused.retry_after())
        }
        ConnectError::NotWebSocket(_) => stop(NO_ADDRESS),
        ConnectError::Url(_) | ConnectError::Token => stop("invalid_value"),
        _ => {
            let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
            // Nothing was said yet.
            Failure::Away { message: format!("no answer: {error}{cause}") }
        }
    }
}

/// One recording's session.
#[derive(Debug)]
struct Session {
    socket: Socket,
    record: Record,
    /// When something was last heard.
    heard: Instant,
    patience: Duration,
}

impl Session {
    async fn write_down(&mut self, sound: &mut Sound, wish: &Wish) -> Result<Answer, Failure> {
        self.until(Record::is_created).await?;
        self.say(&setup(wish));
        // Some services take audio for what they were told before.
        self.until(Record::is_set_up).await?;
        while let Some(chunk) = sound.next().await? {
            let audio: Vec<u8> = chunk.samples.iter().flat_map(|sample| sample.to_le_bytes()).collect();
            self.socket
                .send_text(format!(r#"{{"type":"input_audio_buffer.append","audio":"{}"}}"#, BASE64.encode(audio)));
            if let Some(length) = chunk.ends {
                self.say(&json!({"type": "input_audio_buffer.commit"}));
                self.record.sent(length);
            }
            self.taken().await?;
        }
        self.until(Record::is_complete).await?;
        Ok(self.record.answer())
    }

    fn say(&mut self, event: &serde_json::Value) {
        self.socket.send_text(event.to_string());
    }

    /// Waits until the connection has taken what was said, and takes what comes meanwhile.
    async fn taken(&mut self) -> Result<(), Failure> {
        self.socket.flush().map_err(|error| broke(&error))?;
        while !self.socket.is_flushed() {
            self.step().await?;
        }
        // What a peer that takes much has said is not left for later.
        while self.hear().await? {}
        self.heard = Instant::now();
        Ok(())
    }

    /// Waits until it is so.
    async fn until(&mut self, so: impl Fn(&Record) -> bool) -> Result<(), Failure> {
        while !so(&self.record) {
            self.step().await?;
        }
        Ok(())
    }

    /// Takes a message, or waits until there is one or the connection takes more.
    async fn step(&mut self) -> Result<(), Failure> {
        if self.hear().await? {
            return Ok(());
        }
        self.socket.flush().map_err(|error| broke(&error))?;
        let since = self.socket.stalled_since().map_or(self.heard, |stalled| stalled.max(self.heard));
        match time::timeout_at(since + self.patience, ready(&self.socket)).await {
            Ok(ready) => ready.map_err(|error| broke(&SocketError::Lost(error))),
            Err(_) => {
                Err(Failure::Again { message: format!("nothing was heard for {} s", self.patience.as_secs_f64()) })
            }
        }
    }

    /// Takes a message, if there is one.
    async fn hear(&mut self) -> Result<bool, Failure> {
        match self.socket.read().map_err(|error| broke(&error))? {
            None => return Ok(false),
            Some(Frame::Text(text)) => {
                if let Some(problem) = self.record.hear(&text) {
                    return Err(self.end(problem).await);
                }
            }
            Some(Frame::Closed { code, reason }) => return Err(meaning(&Problem::of_close(&reason), code)),
            Some(Frame::Binary(_) | Frame::Pong) => {}
        }
        self.heard = Instant::now();
        Ok(true)
    }

    /// What an error means; where it is the session's end, its close follows at once (realtime-protocol section 6).
    async fn end(&mut self, problem: Problem) -> Failure {
        let closed = async {
            loop {
                match self.socket.next().await {
                    Ok(Frame::Closed { code, .. }) => return code,
                    Ok(_) => {}
                    Err(_) => return None,
                }
            }
        };
        let code = time::timeout(LAST_WORDS, closed).await.unwrap_or_default();
        meaning(&problem, code)
    }

    async fn leave(self) {
        Box::pin(self.socket.close(1_000, "", GOODBYE)).await;
    }
}

/// How it is to be written down: turns are ended by us.
fn setup(wish: &Wish) -> serde_json::Value {
    let mut transcription = json!({"model": wish.model});
    for (name, value) in [("language", &wish.language), ("prompt", &wish.prompt)] {
        if let (Some(value), Some(fields)) = (value, transcription.as_object_mut()) {
            fields.insert(name.to_owned(), value.as_str().into());
        }
    }
    let format = json!({"type": "audio/pcm", "rate": RATE});
    let input = json!({"format": format, "turn_detection": null, "transcription": transcription});
    json!({"type": "session.update", "session": {"type": "transcription", "audio": {"input": input}}})
}

async fn ready(socket: &Socket) -> io::Result<()> {
    poll_fn(|cx| match socket.poll_readable(cx) {
        Poll::Pending => socket.poll_writable(cx),
        ready => ready,
    })
    .await
}

fn broke(error: &SocketError) -> Failure {
    Failure::Again { message: format!("no answer: {error}") }
}

#[cfg(test)]
mod tests;
