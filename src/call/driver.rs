//! The one task of a call: the only place that waits or reads a clock.
//!
//! Reads both sockets, never waits for a write, and moves bytes where the core says. While a chunk gathers it leaves the
//! client's socket alone: system calls and wake-ups are what a relay costs, not bytes.
use std::{
    future::{self, Future},
    panic::AssertUnwindSafe,
    pin::{Pin, pin},
    sync::Arc,
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
    core::{Core, Input, Output},
    door::Door,
    end::End,
    rate::Rerate,
};
use crate::{
    admit::{Cut, License},
    audio::Codec,
    client::wire::ServerMsg,
    net::ws::{Frame, Socket, SocketError},
    observe::fact::Fact,
    upstream::{
        Command, Shape, UpstreamError, Wanted, ga,
        limits::{self, Board, Source},
        open::{Session, Upstream},
    },
    wall::unix_now,
};

/// Messages taken from one socket before the other has its turn.
const BUDGET: usize = 64;
/// Reply audio that the client's socket has not taken is held up to this, bytes (fault matrix C4).
const CLIENT_FULL: usize = 4 << 20;
/// Past this even a client that takes a little is too slow, bytes: where we pace, and where the service's burst of one whole
/// reply (300 s, 19 MB of base64) comes at once.
const CLIENT_OVERFULL: usize = 8 << 20;
const CLIENT_OVERFULL_UNPACED: usize = 32 << 20;
/// A client that is full and takes nothing for so long is too slow (fault matrix C4).
const CLIENT_STALL: Duration = Duration::from_secs(10);
/// Bytes that the service may owe us the taking of: the longest append on top of what makes us stop reading.
const SERVICE_FULL: usize = 32 << 20;
/// A client that owns its conversation is not read while so much waits for the service, bytes.
const SERVICE_BEHIND: usize = 1 << 20;
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
    /// The call's id.
    pub id: String,
    /// What decides.
    pub core: Core,
    /// What the client speaks.
    pub door: Door,
    /// Its right to go on, and who speaks for it.
    pub license: License,
    /// The session that it wants.
    pub wanted: Wanted,
    /// Where sessions come from.
    pub upstream: Upstream,
    /// The client.
    pub client: Socket,
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
    Fact::CallStarted { door: call.door.name().into() }.record();
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
    door: Door,
    service: Service,
    shape: Shape,
    /// The service takes PCM at another rate than a client of its protocol sends.
    rerate: Option<Rerate>,
    drain: Option<watch::Receiver<Option<Instant>>>,
    stop: CancellationToken,
    license: License,
    board: Arc<Board>,
    /// Somebody has ended the call.
    cut: bool,
    /// The client's socket is left alone until then.
    read_at: Option<Instant>,
    /// Looks at it that found no audio.
    empty_looks: u32,
    /// It was not read to its end, since the service is behind: messages may lie in its buffer.
    held_back: bool,
    /// More may wait in a socket although it will not say so again.
    unread: bool,
    /// When something was last said by either side.
    active_at: Instant,
    shrunk: bool,
    /// Audio that a reply begins with is on its way out.
    first_audio: bool,
    bytes_in: u64,
    bytes_out: u64,
}

enum Wake {
    Timer,
    Ready,
    Opened(Box<Result<Session, UpstreamError>>),
    Drain,
    Stop,
    Cut(Cut),
}

impl Driver {
    fn new(call: Call, began: Instant) -> Self {
        let Call { id, core, door, license, wanted, upstream, client, drain, stop } = call;
        let rerate = Rerate::to(upstream.config().input_rate).filter(|_| door.setup().is_none());
        let (board, who, call) = (upstream.board().clone(), license.who().clone(), id.clone());
        let opening: Opening = Box::pin(async move { upstream.open(&wanted, &who, &call).await });
        Self {
            id,
            core,
            began,
            client,
            door,
            service: Service::Opening(opening),
            shape: Shape::default(),
            rerate,
            drain: Some(drain),
            stop,
            license,
            board,
            cut: false,
            read_at: None,
            empty_looks: 0,
            held_back: false,
            unread: false,
            active_at: began,
            shrunk: false,
            first_audio: false,
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
                Wake::Cut(cut) => {
                    self.cut = true;
                    let end = match cut {
                        Cut::Revoked => End::Revoked,
                        Cut::Ended => End::EndedByTenant,
                    };
                    self.core.handle(self.now(), Input::ClientGone(end));
                }
            }
        }
    }

    /// Stop, then a due timer, then work: a flood must hide neither.
    async fn wait(&mut self, timer: Pin<&mut time::Sleep>) -> Wake {
        let gated = self.read_at.is_some();
        let Self { client, service, drain, stop, unread, license, cut, .. } = self;
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
            why = license.cut(), if !*cut => Wake::Cut(why),
            _ = draining => Wake::Drain,
            () = timer => Wake::Timer,
            wake = service_ready => wake,
            () = client_ready => Wake::Ready,
            () = tokio::task::yield_now(), if *unread => Wake::Ready,
        }
    }

    fn deadline(&self) -> Instant {
        let core = self.core.deadline(self.room()).map(|at| self.began + at);
        let half = self.client.unfinished_until(HALF_MESSAGE);
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
        self.core.client_has_all(self.client.is_flushed());
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
                Frame::Text(text) => self.service_text(text),
                Frame::Pong => self.core.handle(self.now(), Input::ServicePong),
                Frame::Binary(_) => Fact::UnknownEvent.record(),
                Frame::Closed { code, reason } => return self.service_gone(&UpstreamError::closed(code, &reason)),
            }
        }
        self.unread = true;
    }

    fn service_text(&mut self, text: Bytes) {
        let now = self.now();
        let Self { shape, core, door, board, license, .. } = self;
        let passes = door.setup().is_none();
        shape.incoming(text, |text| {
            let event = if passes { ga::glance(&text) } else { ga::decode(&text) };
            limits::heard(board, license.who().tenant_id(), &event);
            core.handle(now, if passes { Input::Heard(event, text) } else { Input::Service(event) });
        });
    }

    /// The service has enough to take: a client that sends without measure waits in its own socket.
    fn service_behind(&self) -> bool {
        let queued = match &self.service {
            Service::Up(socket) => socket.queued_bytes(),
            _ => 0,
        };
        self.door.setup().is_none() && queued + self.core.held_bytes() > SERVICE_BEHIND
    }

    fn read_client(&mut self) {
        if self.read_at.is_some_and(|at| Instant::now() < at) {
            return;
        }
        if self.service_behind() {
            self.held_back = true;
            self.read_at = Some(Instant::now() + READ_PACE);
            // Its silence is ours.
            self.client.excuse();
            self.core.handle(self.now(), Input::ClientPong);
            return self.client.watch(false);
        }
        let looked = self.read_at.take().is_some();
        let (mut audio, taken) = (false, self.bytes_in);
        for _ in 0..BUDGET {
            // What was taken in just now is nowhere counted yet.
            if self.service_behind() || self.bytes_in - taken > SERVICE_BEHIND as u64 {
                self.held_back = true;
                break;
            }
            let frame = match self.client.read() {
                Ok(None) => {
                    self.held_back = false;
                    return self.leave_alone(audio, looked);
                }
                Ok(Some(frame)) => frame,
                Err(error) => return self.core.handle(self.now(), Input::ClientGone(client_end(error))),
            };
            self.active();
            match frame {
                Frame::Binary(bytes) => {
                    audio = true;
                    self.bytes_in += bytes.len() as u64;
                    self.door.binary(&mut self.core, self.began.elapsed(), &bytes);
                }
                Frame::Text(text) => {
                    self.bytes_in += text.len() as u64;
                    self.door.text(&mut self.core, self.began.elapsed(), text);
                }
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
        if !flows || !self.door.gathers() {
            return self.client.watch(true);
        }
        let wait = if self.door.auto_turns() && !self.core.is_replying() { self.core.until_chunk() } else { READ_PACE };
        self.read_at = Some(on_grid(Instant::now() + wait.max(READ_PACE)));
        self.client.watch(false);
    }

    fn active(&mut self) {
        self.active_at = Instant::now();
        self.shrunk = false;
    }

    /// Does what the core says and writes what the sockets take. `Some`: the call is over.
    fn act(&mut self) -> Option<End> {
        while let Some(output) = self.core.poll(self.now(), self.room()) {
            match output {
                Output::Send(message) => self.tell(&message, false),
                Output::SendNow(message) => self.tell(&message, true),
                Output::Audio { frame, first } => self.play(&frame, first),
                Output::AudioTail => {
                    if let Some(tail) = self.door.tail() {
                        self.bytes_out += tail.len() as u64;
                        self.client.send_binary(tail);
                    }
                }
                Output::DropAudio => {
                    self.client.drop_binary();
                    self.door.drop_audio();
                }
                Output::DropInput => self.door.drop_input(),
                Output::Service { number, command } => self.command(&command, number),
                Output::Forward(text) => self.forward(text),
                Output::Relay { text, first } => {
                    self.first_audio |= first;
                    self.relay(text);
                }
                Output::Renew(credential) => {
                    let input = match self.license.renew(&credential.0, unix_now()) {
                        Ok(good_for) => Input::Renewed(good_for),
                        Err(_) => Input::NotRenewed,
                    };
                    self.core.handle(self.now(), input);
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
        let Some(text) = self.door.write(message) else { return };
        self.bytes_out += text.len() as u64;
        if now { self.client.send_urgent(text) } else { self.client.send_text(text) }
    }

    fn relay(&mut self, text: Bytes) {
        let Self { door, client, bytes_out, .. } = self;
        door.relay(text, |text| {
            *bytes_out += text.len() as u64;
            client.send_text(text);
        });
    }

    fn command(&mut self, command: &Command, number: u64) {
        if let Some(setup) = self.door.setup() {
            self.forward(ga::encode(command, setup, number));
        }
    }

    fn forward(&mut self, mut text: Bytes) {
        if let (Some(rerate), Some(Codec::Pcm16)) = (&mut self.rerate, self.core.passing().map(|input| input.codec)) {
            text = rerate.apply(text);
        }
        if let Service::Up(socket) = &mut self.service {
            self.shape.outgoing(text, |text| socket.send_text(text));
        }
    }

    fn play(&mut self, frame: &Bytes, first: bool) {
        self.first_audio |= first;
        match self.door.play(frame) {
            Ok(audio) => {
                self.bytes_out += audio.len() as u64;
                self.client.send_binary(audio);
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
        if self.client.unfinished_until(HALF_MESSAGE).is_some_and(|at| now >= at) {
            self.core.handle(self.now(), Input::ClientGone(End::HalfMessage));
        }
        let queued = self.client.queued_bytes();
        let overfull = if self.door.setup().is_some() { CLIENT_OVERFULL } else { CLIENT_OVERFULL_UNPACED };
        if queued >= overfull || queued >= CLIENT_FULL && past(self.client.stalled_since(), CLIENT_STALL) {
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
            self.door.shrink();
        }
        let service = match &mut self.service {
            Service::Up(socket) => Some(socket.as_mut()),
            _ => None,
        };
        let client = (!self.held_back).then_some(&mut self.client);
        for socket in client.into_iter().chain(service) {
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
        self.shape = session.shape;
        self.core.handle(self.now(), Input::SessionUp);
        if self.door.setup().is_none() {
            let created = ga::glance(&session.created);
            self.core.handle(self.now(), Input::Heard(created, session.created));
        }
    }

    fn service_gone(&mut self, error: &UpstreamError) {
        tracing::warn!(%error, "the service is gone");
        if matches!(self.service, Service::Up(_)) {
            self.board.refused(Source::Close, self.license.who().tenant_id(), error);
        }
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
        let (close, reason) = self.door.close(end);
        let (length, bytes_in, bytes_out) = (self.began.elapsed(), self.bytes_in, self.bytes_out);
        Fact::CallEnded { close, length, bytes_in, bytes_out }.record();
        // What was for the loudspeaker is not worth waiting for.
        self.client.drop_binary();
        let service = std::mem::replace(&mut self.service, Service::Gone);
        let client = async {
            if *end != End::ClientLost {
                let patience = if *end == End::SlowConsumer { SLOW_GOODBYE } else { GOODBYE };
                self.client.close(close, &reason, patience).await;
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
