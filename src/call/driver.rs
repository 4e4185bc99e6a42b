//! The one task of a call: the only place that waits or reads a clock.
//!
//! Reads both sockets, never waits for a write, and moves bytes where the core says. While a chunk gathers it leaves the
//! client's socket alone: system calls and wake-ups are what a relay costs, not bytes.
use std::{
    future::{self, Future},
    panic::AssertUnwindSafe,
    pin::{Pin, pin},
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt as _;
use tokio::{
    sync::watch,
    time::{self, Instant},
};
use tokio_util::sync::CancellationToken;

use super::{
    At,
    core::{Core, Input, Output, Plan},
    end::End,
};
use crate::{
    audio::lane::{Downlink, Uplink},
    client::{thin, wire::ServerMsg},
    config::Dialect,
    net::ws::{Frame, Socket, SocketError},
    observe::fact::Fact,
    upstream::{
        SessionSetup,
        open::{Session, Upstream, UpstreamError},
    },
};

/// Messages taken from one socket before the other has its turn.
const BUDGET: usize = 64;
/// Reply audio that the client's socket has not taken is held up to this, bytes (fault matrix C4).
const CLIENT_FULL: usize = 4 << 20;
/// Past this even a client that takes a little is too slow, bytes.
const CLIENT_OVERFULL: usize = 8 << 20;
/// A client that is full and takes nothing for so long is too slow (fault matrix C4).
const CLIENT_STALL: Duration = Duration::from_secs(10);
/// Bytes that the service may owe us the taking of.
const SERVICE_FULL: usize = 16 << 20;
/// The service takes nothing for so long.
const SERVICE_STALL: Duration = Duration::from_secs(10);
/// A message that was begun must be finished (fault matrix M1).
const HALF_MESSAGE: Duration = Duration::from_secs(10);
/// The client's socket is read at this pace while a reply may be interrupted, and at least so seldom otherwise.
const READ_PACE: Duration = Duration::from_millis(20);
/// Wake-ups of many calls fall on the same moments, so that one system call serves many.
const GRID: Duration = Duration::from_millis(20);
/// So many looks at a socket without any audio: the client has stopped, and may tell us when it goes on.
const EMPTY_LOOKS: u32 = 5;
/// Read buffers while much comes at once, and while nothing does, bytes. The first holds 100 ms of PCM at 24 kHz.
const BUSY_BUFFER: usize = 8 << 10;
const QUIET_BUFFER: usize = 512;
/// A quiet call gives its buffers back after so long.
const SHRINK_AFTER: Duration = Duration::from_secs(2);
/// How long a goodbye may take to be written, and to a client that we have just called slow.
const GOODBYE: Duration = Duration::from_secs(1);
const SLOW_GOODBYE: Duration = Duration::from_secs(10);

/// Everything that a call needs to run.
#[derive(Debug)]
pub struct Call {
    /// What was agreed.
    pub plan: Plan,
    /// How its session is set up.
    pub setup: SessionSetup,
    /// The model.
    pub model: String,
    /// Where sessions come from.
    pub upstream: Upstream,
    /// The client.
    pub client: Socket,
    /// Leave the client's socket alone while a chunk gathers.
    pub gather: bool,
    /// Set when the server goes away: the moment at which its patience ends.
    pub drain: watch::Receiver<Option<Instant>>,
    /// The server's patience is over.
    pub stop: CancellationToken,
}

type Opening = Pin<Box<dyn Future<Output = Result<Session, UpstreamError>> + Send>>;

enum Service {
    Opening(Opening),
    Up(Box<Socket>),
    Gone,
}

/// Runs a call to its end, and says goodbye to both sides.
pub fn run(call: Call) -> impl Future<Output = End> + Send {
    Fact::CallStarted.record();
    let began = Instant::now();
    let mut driver = Box::new(Driver::new(call, began));
    async move {
        // A panic is our bug, and the client shall hear of it (1011) rather than see its connection vanish.
        let end = match AssertUnwindSafe(driver.drive()).catch_unwind().await {
            Ok(end) => end,
            Err(_) => driver.broken(),
        };
        // A goodbye is large and short: an idle call shall not carry it.
        Box::pin(driver.goodbye(&end)).await;
        end
    }
}

struct Driver {
    id: String,
    core: Core,
    began: Instant,
    client: Socket,
    service: Service,
    dialect: Dialect,
    setup: SessionSetup,
    uplink: Uplink,
    downlink: Downlink,
    gather: bool,
    drain: Option<watch::Receiver<Option<Instant>>>,
    stop: CancellationToken,
    /// The client's socket is left alone until then.
    read_at: Option<Instant>,
    /// Looks at it that found no audio.
    empty_looks: u32,
    /// More may wait in a socket although it will not say so again.
    unread: bool,
    /// When something was last said by either side.
    active_at: Instant,
    shrunk: bool,
    /// Audio that a reply begins with is on its way out.
    first_audio: bool,
    converted: Vec<u8>,
    bytes_in: u64,
    bytes_out: u64,
}

enum Wake {
    Timer,
    Ready,
    Opened(Box<Result<Session, UpstreamError>>),
    Drain,
    Stop,
}

impl Driver {
    fn new(call: Call, began: Instant) -> Self {
        let Call { plan, setup, model, upstream, client, gather, drain, stop } = call;
        let (uplink, downlink) = (Uplink::new(plan.audio.input), Downlink::new(plan.audio.output));
        let dialect = upstream.config().dialect;
        let opening: Opening = Box::pin(async move { upstream.open(&model).await });
        Self {
            id: plan.call.clone(),
            core: Core::new(plan, Duration::ZERO),
            began,
            client,
            service: Service::Opening(opening),
            dialect,
            setup,
            uplink,
            downlink,
            gather,
            drain: Some(drain),
            stop,
            read_at: None,
            empty_looks: 0,
            unread: false,
            active_at: began,
            shrunk: false,
            first_audio: false,
            converted: Vec::new(),
            bytes_in: 0,
            bytes_out: 0,
        }
    }

    fn now(&self) -> At {
        self.began.elapsed()
    }

    async fn drive(&mut self) -> End {
        let mut timer = pin!(time::sleep_until(self.began));
        loop {
            if let Some(end) = self.pump() {
                return end;
            }
            let deadline = self.deadline();
            if timer.deadline() != deadline {
                timer.as_mut().reset(deadline);
            }
            match self.wait(timer.as_mut()).await {
                Wake::Timer | Wake::Ready => {}
                Wake::Opened(done) => match *done {
                    Ok(session) => self.session_up(session),
                    Err(error) => self.service_gone(&error),
                },
                Wake::Drain => self.drain_begins(),
                Wake::Stop => self.core.handle(self.now(), Input::ClientGone(End::Drained)),
            }
        }
    }

    /// Stop, then a due timer, then work: a flood must hide neither.
    async fn wait(&mut self, timer: Pin<&mut time::Sleep>) -> Wake {
        let gated = self.read_at.is_some();
        let Self { client, service, drain, stop, unread, .. } = self;
        let client_ready = future::poll_fn(|cx| {
            if !gated && client.poll_readable(cx).is_ready() {
                return std::task::Poll::Ready(());
            }
            client.poll_writable(cx).map(|_| ())
        });
        let service_ready = future::poll_fn(|cx| match service {
            Service::Opening(opening) => opening.as_mut().poll(cx).map(|done| Wake::Opened(Box::new(done))),
            Service::Up(socket) if socket.poll_readable(cx).is_ready() => std::task::Poll::Ready(Wake::Ready),
            Service::Up(socket) => socket.poll_writable(cx).map(|_| Wake::Ready),
            Service::Gone => std::task::Poll::Pending,
        });
        let draining = async {
            match drain {
                Some(drain) => drain.wait_for(Option::is_some).await.is_err(),
                None => future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => Wake::Stop,
            _ = draining => Wake::Drain,
            () = timer => Wake::Timer,
            wake = service_ready => wake,
            () = client_ready => Wake::Ready,
            () = tokio::task::yield_now(), if *unread => Wake::Ready,
        }
    }

    fn deadline(&self) -> Instant {
        let core = self.core.deadline(self.room()).map(|at| self.began + at);
        let half = self.client.unfinished_since().map(|at| at + HALF_MESSAGE);
        let stalled = self.client.stalled_since().map(|at| at + CLIENT_STALL);
        // Only where the moment has an effect: while a reply plays, buffers are not given back.
        let shrink = (!self.shrunk && self.core.is_quiet()).then_some(self.active_at + SHRINK_AFTER);
        let service = match &self.service {
            Service::Up(socket) => socket.stalled_since().map(|at| at + SERVICE_STALL),
            _ => None,
        };
        let now = Instant::now();
        // A deadline whose moment has passed without effect must not spin.
        let later = [half, stalled, service].map(|at| at.filter(|at| *at > now));
        let all = [core, self.read_at, shrink].into_iter().chain(later);
        all.flatten().min().unwrap_or(now + Duration::from_secs(3_600))
    }

    /// Everything that can be done now. `Some`: the call is over.
    fn pump(&mut self) -> Option<End> {
        self.unread = false;
        self.read_service();
        self.read_client();
        self.check_patience();
        self.core.handle(self.now(), Input::Tick);
        if let Some(end) = self.act() {
            return Some(end);
        }
        if self.first_audio && self.client.queued_bytes() == 0 {
            self.first_audio = false;
            self.core.handle(self.now(), Input::FirstAudioLeft);
            return self.act();
        }
        None
    }

    fn read_service(&mut self) {
        for _ in 0..BUDGET {
            let Service::Up(socket) = &mut self.service else { return };
            let frame = match socket.read() {
                Ok(None) => return,
                Ok(Some(frame)) => frame,
                Err(error) => return self.service_gone(&UpstreamError::Broken(error.to_string())),
            };
            self.active();
            match frame {
                Frame::Text(text) => {
                    let event = self.dialect.decode(&text);
                    self.core.handle(self.now(), Input::Service(event));
                }
                Frame::Pong => self.core.handle(self.now(), Input::ServicePong),
                Frame::Binary(_) => Fact::UnknownEvent.record(),
                Frame::Closed { code, reason } => return self.service_gone(&UpstreamError::closed(code, &reason)),
            }
        }
        self.unread = true;
    }

    fn read_client(&mut self) {
        if self.read_at.is_some_and(|at| Instant::now() < at) {
            return;
        }
        let looked = self.read_at.take().is_some();
        let mut audio = false;
        for _ in 0..BUDGET {
            let frame = match self.client.read() {
                Ok(None) => return self.leave_alone(audio, looked),
                Ok(Some(frame)) => frame,
                Err(error) => return self.core.handle(self.now(), Input::ClientGone(client_end(error))),
            };
            self.active();
            match frame {
                Frame::Binary(bytes) => {
                    audio = true;
                    self.client_audio(&bytes);
                }
                Frame::Text(text) => self.client_text(&text),
                Frame::Pong => self.core.handle(self.now(), Input::ClientPong),
                Frame::Closed { .. } => return self.core.handle(self.now(), Input::ClientGone(End::Asked)),
            }
        }
        self.unread = true;
    }

    /// While audio flows and a chunk gathers, the socket is looked at when it is time, and wakes nobody in between.
    fn leave_alone(&mut self, audio: bool, looked: bool) {
        self.empty_looks = if audio { 0 } else { self.empty_looks + 1 };
        let flows = audio || looked && self.empty_looks < EMPTY_LOOKS;
        if !flows || !self.gather {
            return self.client.watch(true);
        }
        let wait = if self.setup.auto_turns && !self.core.is_replying() { self.core.until_chunk() } else { READ_PACE };
        self.read_at = Some(on_grid(Instant::now() + wait.max(READ_PACE)));
        self.client.watch(false);
    }

    fn active(&mut self) {
        self.active_at = Instant::now();
        self.shrunk = false;
    }

    fn client_audio(&mut self, bytes: &Bytes) {
        self.bytes_in += bytes.len() as u64;
        if bytes.is_empty() {
            return self.core.handle(self.now(), Input::Ignored);
        }
        let now = self.now();
        self.converted.clear();
        match self.uplink.push(bytes, &mut self.converted) {
            Ok(length) => self.core.handle(now, Input::Audio { length, upstream: &self.converted }),
            Err(error) => self.core.handle(now, Input::InvalidAudio(error.to_string())),
        }
    }

    fn client_text(&mut self, text: &[u8]) {
        self.bytes_in += text.len() as u64;
        let now = self.now();
        let input = match thin::read(text) {
            thin::Text::Message(message) => {
                if message == crate::client::wire::ClientMsg::Commit && !self.setup.auto_turns {
                    self.converted.clear();
                    self.uplink.flush(&mut self.converted);
                    self.core.handle(now, Input::Flushed(&self.converted));
                }
                Input::Message(message)
            }
            thin::Text::Unknown => Input::Ignored,
            thin::Text::Invalid { field, message } => Input::Invalid { field, message },
        };
        self.core.handle(now, input);
    }

    /// Does what the core says and writes what the sockets take. `Some`: the call is over.
    fn act(&mut self) -> Option<End> {
        while let Some(output) = self.core.poll(self.now(), self.room()) {
            match output {
                Output::Send(message) => self.tell(&message, false),
                Output::SendNow(message) => self.tell(&message, true),
                Output::Audio { frame, first } => self.play(&frame, first),
                Output::AudioTail => {
                    let mut tail = Vec::new();
                    if self.downlink.flush(&mut tail).unwrap_or(false) {
                        self.bytes_out += tail.len() as u64;
                        self.client.send_binary(tail);
                    }
                }
                Output::DropAudio => {
                    self.client.drop_binary();
                    self.downlink.reset();
                }
                Output::DropInput => self.uplink.reset(),
                Output::Service { number, command } => {
                    if let Service::Up(socket) = &mut self.service {
                        socket.send_text(self.dialect.encode(&command, &self.setup, number));
                    }
                }
                Output::PingClient => self.client.send_ping(),
                Output::PingService => {
                    if let Service::Up(socket) = &mut self.service {
                        socket.send_ping();
                    }
                }
                Output::Fact(fact) => fact.record(),
                Output::End(end) => return Some(end),
            }
        }
        self.flush();
        None
    }

    /// The client's socket may be given more audio.
    fn room(&self) -> bool {
        self.client.queued_bytes() < CLIENT_FULL
    }

    fn tell(&mut self, message: &ServerMsg, now: bool) {
        let text = thin::write(message);
        self.bytes_out += text.len() as u64;
        if now { self.client.send_urgent(text) } else { self.client.send_text(text) }
    }

    fn play(&mut self, frame: &Bytes, first: bool) {
        self.first_audio |= first;
        if self.downlink.passthrough() {
            self.bytes_out += frame.len() as u64;
            return self.client.send_binary(frame.clone());
        }
        let mut out = Vec::new();
        match self.downlink.frame(frame, &mut out) {
            Ok(()) => {
                self.bytes_out += out.len() as u64;
                self.client.send_binary(out);
            }
            Err(error) => {
                tracing::error!(%error, "reply audio could not be converted");
                self.core.handle(self.now(), Input::ClientGone(End::Internal));
            }
        }
    }

    fn flush(&mut self) {
        if let Err(error) = self.client.flush() {
            self.core.handle(self.now(), Input::ClientGone(client_end(error)));
        }
        if let Service::Up(socket) = &mut self.service
            && let Err(error) = socket.flush()
        {
            self.service_gone(&UpstreamError::Broken(error.to_string()));
        }
    }

    /// Peers that begin and do not finish, or do not take what is theirs.
    fn check_patience(&mut self) {
        let now = Instant::now();
        let past = |since: Option<Instant>, patience| since.is_some_and(|at| now >= at + patience);
        if past(self.client.unfinished_since(), HALF_MESSAGE) {
            self.core.handle(self.now(), Input::ClientGone(End::HalfMessage));
        }
        let queued = self.client.queued_bytes();
        if queued >= CLIENT_OVERFULL || queued >= CLIENT_FULL && past(self.client.stalled_since(), CLIENT_STALL) {
            self.core.handle(self.now(), Input::ClientGone(End::SlowConsumer));
        }
        if let Service::Up(socket) = &self.service
            && (socket.queued_bytes() > SERVICE_FULL || past(socket.stalled_since(), SERVICE_STALL))
        {
            self.service_gone(&UpstreamError::Timeout { stage: "take our audio", after: SERVICE_STALL });
        }
        if self.unread {
            return; // buffers are in use
        }
        let quiet = !self.shrunk && past(Some(self.active_at), SHRINK_AFTER) && self.core.is_quiet();
        if quiet {
            self.shrunk = true;
            self.core.shrink();
            self.converted = Vec::new();
        }
        let service = match &mut self.service {
            Service::Up(socket) => Some(socket.as_mut()),
            _ => None,
        };
        for socket in [&mut self.client].into_iter().chain(service) {
            if quiet {
                socket.resize(QUIET_BUFFER);
            } else if socket.is_crowded(BUSY_BUFFER) {
                socket.resize(BUSY_BUFFER);
            }
        }
    }

    fn session_up(&mut self, session: Session) {
        Fact::SessionUp { after: self.began.elapsed() }.record();
        tracing::debug!(session = session.id, expires_at = session.expires_at, "session");
        self.service = Service::Up(Box::new(session.socket));
        self.core.handle(self.now(), Input::SessionUp);
    }

    fn service_gone(&mut self, error: &UpstreamError) {
        tracing::warn!(%error, "the service is gone");
        self.service = Service::Gone;
        self.core.handle(self.now(), Input::ServiceGone(End::upstream(error)));
    }

    fn drain_begins(&mut self) {
        let until = self.drain.take().and_then(|drain| *drain.borrow());
        let left = until.map_or(Duration::ZERO, |at| at.saturating_duration_since(Instant::now()));
        self.core.handle(self.now(), Input::Drain(left));
    }

    /// We panicked; the core, which would say why the call ends, is not to be asked any more.
    fn broken(&mut self) -> End {
        if let Some(error) = End::Internal.error(format!("{}-0", self.id)) {
            Fact::Refused { code: error.code.clone().into() }.record();
            self.tell(&ServerMsg::Error { error }, true);
        }
        End::Internal
    }

    async fn goodbye(mut self: Box<Self>, end: &End) {
        let report = end.report();
        let reason = report.code.unwrap_or_default();
        let (length, bytes_in, bytes_out) = (self.began.elapsed(), self.bytes_in, self.bytes_out);
        Fact::CallEnded { close: report.close, length, bytes_in, bytes_out }.record();
        // What was for the loudspeaker is not worth waiting for.
        self.client.drop_binary();
        let service = std::mem::replace(&mut self.service, Service::Gone);
        let client = async {
            if *end != End::ClientLost {
                let patience = if *end == End::SlowConsumer { SLOW_GOODBYE } else { GOODBYE };
                self.client.close(report.close, reason, patience).await;
            }
        };
        let service = async {
            if let Service::Up(socket) = service {
                socket.close(1000, "", GOODBYE).await;
            }
        };
        tokio::join!(client, service);
    }
}

fn client_end(error: SocketError) -> End {
    match error {
        SocketError::Protocol(_) => End::Framing,
        SocketError::Utf8 => End::Utf8,
        SocketError::TooLarge { got, limit } => End::MessageTooLarge { got, limit },
        SocketError::ControlFlood => End::ControlFlood,
        SocketError::Lost(_) => End::ClientLost,
    }
}

/// The next common moment of all calls, not before `at`.
fn on_grid(at: Instant) -> Instant {
    use std::sync::OnceLock;
    static ZERO: OnceLock<Instant> = OnceLock::new();
    let zero = *ZERO.get_or_init(|| at);
    let past = at.saturating_duration_since(zero).as_micros() % GRID.as_micros();
    match u64::try_from(past) {
        Ok(past) if past > 0 => at + GRID - Duration::from_micros(past),
        _ => at,
    }
}
