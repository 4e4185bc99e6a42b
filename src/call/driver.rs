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
use serde_json::json;
use tokio::{
    sync::watch,
    time::{self, Instant},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    At,
    answers::Told,
    books::{Booked, Books, Earlier},
    client_leg::ClientLeg,
    core::{Core, Input, LineAct, Output, continuity::lives},
    door::Door,
    end::End,
    rate::Rerate,
    returns::{self, Arrival, Ticket},
    service_leg::{Came, ServiceLeg, Up},
    tools,
    turnstile::{Says, Turnstile, Word},
    way::{On, Opened, Way, Whose},
    written::{Heir, Written},
};
use crate::{
    admit::{
        Asked, Cut, License,
        budget::{Amount, Budgets},
        router::Cause,
    },
    audio::{
        Codec, dtmf,
        sound::{self, Sound},
    },
    client::wire::ServerMsg,
    config::Govern,
    ledger::Kind,
    net::{
        outbox::Outbox,
        ws::{Frame, Socket, SocketError},
    },
    observe::fact::Fact,
    upstream::{
        Command, UpstreamError, Wanted, ga,
        limits::{self, Source},
    },
    wall::unix_now,
    webhook::{Done, Hooks},
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
/// Audio in one message to a thin client.
const MESSAGE: Duration = Duration::from_millis(20);
/// A call that is to become cheaper has another session within this.
const CHEAPER_WITHIN: Duration = Duration::from_secs(20);
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
    pub way: Way,
    /// The client.
    pub client: Client,
    /// The way back to it, where there is one.
    pub ticket: Option<Ticket>,
    /// Where its rows go.
    pub books: Books,
    /// How long a session that was lost is tried to be had anew.
    pub reconnect: Duration,
    /// Whether a turn waits for the account's limits, and how long.
    pub turns: (Govern, Duration),
    /// What the caller hears meanwhile.
    pub hold: Option<Arc<Sound>>,
    /// The tools that the relay runs itself.
    pub hooks: Hooks,
    /// What may be spent, and what it has spent in another process.
    pub budgets: Budgets,
    pub spent: Amount,
    /// The process that follows this one, if there is one.
    pub heir: Heir,
    /// Where goodbyes to sockets that the call has left go on.
    pub goodbyes: TaskTracker,
    /// Set when the server goes away: the moment at which its patience ends.
    pub drain: watch::Receiver<Option<Instant>>,
    /// The server's patience is over.
    pub stop: CancellationToken,
}

/// How a call comes to its task.
#[derive(Debug)]
pub enum Client {
    /// Its client has just come in.
    Here(Box<Socket>),
    /// Another process had it: its client will come back.
    Away {
        /// What it was told, and shall be.
        outbox: Outbox,
        /// How long the call has run.
        ran: Duration,
        /// The session that it had.
        session: String,
    },
}

/// Runs a call to its end, and says goodbye to both sides.
pub fn run(call: Call) -> impl Future<Output = End> + Send {
    run_telling(call, |_| ())
}

/// The same; `over` is told of the end before the goodbyes, which may take a while.
pub fn run_telling(call: Call, over: impl FnOnce(&End) + Send) -> impl Future<Output = End> + Send {
    Fact::CallStarted { door: call.door.name().into() }.record();
    let ran = if let Client::Away { ran, .. } = &call.client { *ran } else { Duration::ZERO };
    // The clock of a machine that has just started does not reach back so far; no call does there, either.
    let began = Instant::now().checked_sub(ran).unwrap_or_else(Instant::now);
    let mut driver = Box::new(Driver::new(call, began));
    async move {
        let end = loop {
            // A panic is our bug, and the client shall hear of it (1011) rather than see its connection vanish.
            let end = match AssertUnwindSafe(driver.drive()).catch_unwind().await {
                Ok(end) => end,
                Err(_) => driver.broken(),
            };
            if !driver.goes_over {
                break end;
            }
            match Box::pin(driver.hand_over()).await {
                Passed::Taken => return end,
                Passed::Ended => break end,
                Passed::Stays => {}
            }
        };
        over(&end);
        // A goodbye is large and short: an idle call shall not carry it.
        Box::pin(driver.goodbye(&end)).await;
        end
    }
}

/// What came of giving a call to another process.
enum Passed {
    /// That one has it.
    Taken,
    /// It would not have it.
    Ended,
    /// That one is gone: the call goes on here.
    Stays,
}

struct Driver {
    id: String,
    core: Core,
    began: Instant,
    client: ClientLeg,
    door: Door,
    service: ServiceLeg,
    /// The running session's id, and when the last one that was missing was asked for.
    session: String,
    dialled_at: Instant,
    /// The service takes PCM at another rate than a client of its protocol sends.
    rerate: Option<Rerate>,
    ticket: Option<Ticket>,
    /// Where the last session runs, or ran.
    on: Arc<On>,
    books: Books,
    /// Of another route, before it.
    earlier: Earlier,
    /// Tools that were answered since a reply ended, and of them those that had failed.
    tools: (u64, u64),
    turnstile: Turnstile,
    hold: Option<Arc<Sound>>,
    hooks: Hooks,
    /// It has asked for something cheaper since then.
    cheaper_since: Option<Instant>,
    goodbyes: TaskTracker,
    drain: watch::Receiver<Option<Instant>>,
    /// The core was told that this server goes away.
    leaving: bool,
    stop: CancellationToken,
    license: License,
    heir: Heir,
    /// The core wants the call to be written down.
    goes_over: bool,
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
    Service(Came),
    Arrived(Box<Arrival>),
    Turn(Says),
    Tool(Done),
    Recalled,
    /// Until then; `None`: the server stays, after all.
    Drain(Option<Instant>),
    Stop,
    Cut(Cut),
    Rotate,
    /// Of the line.
    News(String),
}

impl Driver {
    fn new(call: Call, began: Instant) -> Self {
        let Call { id, mut core, door, license, wanted, way, client, ticket, books, reconnect, turns, .. } = call;
        let Call { hold, hooks, budgets, spent, heir, goodbyes, drain, stop, .. } = call;
        let on = way.home().clone();
        let rerate = Rerate::to(on.upstream.config().input_rate).filter(|_| door.setup().is_none());
        let whose = Whose { wanted, who: license.who().clone(), call: id.clone() };
        let purse = budgets.purse(license.who(), &id, spent);
        let (quota, model) = (on.upstream.quota().clone(), &on.route.model);
        let turnstile = Turnstile::new(quota, model, license.who(), turns, (purse, books.prices.clone()));
        let (service, client, session) = match client {
            Client::Here(socket) => {
                let service = ServiceLeg::new(whose, way, reconnect, goodbyes.clone());
                (service, ClientLeg::new(*socket, ticket.is_some()), String::new())
            }
            Client::Away { outbox, session, .. } => {
                // The core says when it wants a session.
                let service = ServiceLeg::resumed(whose, way, reconnect, goodbyes.clone(), books.route());
                core.continues(began.elapsed());
                (service, ClientLeg::away(outbox), session)
            }
        };
        Self {
            id,
            core,
            began,
            client,
            door,
            service,
            session,
            dialled_at: began,
            rerate,
            ticket,
            on,
            books,
            earlier: Earlier::default(),
            tools: (0, 0),
            turnstile,
            hold,
            hooks,
            cheaper_since: None,
            goodbyes,
            drain,
            leaving: false,
            stop,
            license,
            heir,
            goes_over: false,
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
                Wake::Service(came) => self.service_came(came),
                Wake::Turn(says) => self.turn_says(says),
                Wake::Tool(Done { call_id, output }) => {
                    self.core.handle(self.now(), Input::ToolDone { call_id, output });
                }
                Wake::Arrived(arrival) => self.arrived(*arrival),
                Wake::Recalled => self.recalled(),
                Wake::Drain(until) => self.drain(until),
                Wake::Stop => self.core.handle(self.now(), Input::ClientGone(End::Drained)),
                Wake::Rotate => self.core.handle(self.now(), Input::Rotate),
                Wake::News(news) => self.core.handle(self.now(), Input::LineSays(&news)),
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
        let Self { client, service, ticket, drain, leaving, stop, unread, license, cut, turnstile, hooks, .. } = self;
        let ticket = ticket.as_ref();
        let client_ready = future::poll_fn(|cx| {
            if !gated && client.poll_readable(cx).is_ready() {
                return std::task::Poll::Ready(());
            }
            client.poll_writable(cx).map(|_| ())
        });
        let service_ready = future::poll_fn(|cx| service.poll(cx));
        let arrived = async {
            match ticket {
                Some(ticket) => ticket.arrival().await,
                None => future::pending().await,
            }
        };
        let recalled = async {
            match ticket {
                Some(ticket) => ticket.recalled().await,
                None => future::pending().await,
            }
        };
        let draining = async {
            let changed = drain.wait_for(|until| until.is_some() != *leaving).await.map(|until| *until);
            match changed {
                Ok(until) => until,
                Err(_) if *leaving => future::pending().await,
                Err(_) => Some(Instant::now()), // the server is gone
            }
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => Wake::Stop,
            asked = license.asked(), if !*cut => match asked {
                Asked::Cut(why) => Wake::Cut(why),
                Asked::Rotate => Wake::Rotate,
                Asked::Tell(news) => Wake::News(news),
            },
            until = draining => Wake::Drain(until),
            () = recalled => Wake::Recalled,
            () = timer => Wake::Timer,
            says = turnstile.says() => Wake::Turn(says),
            done = hooks.done(), if hooks.is_busy() => Wake::Tool(done),
            came = service_ready => Wake::Service(came),
            arrival = arrived => Wake::Arrived(arrival),
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
        let service = self.service.socket().and_then(Socket::stalled_since).map(|at| at + SERVICE_STALL);
        let now = Instant::now();
        // A deadline whose moment has passed without effect must not spin.
        let later = [half, stalled, service].map(|at| at.filter(|at| *at > now));
        let all = [core, self.read_at, shrink].into_iter().chain(later);
        all.flatten().min().unwrap_or(now + Duration::from_secs(3_600))
    }

    /// Everything that can be done now. `Some`: the call is over.
    fn pump(&mut self) -> Option<End> {
        self.unread = false;
        // Before anything is heard of either side: what is said to it decides by what was heard.
        self.core.client_lacks(self.now(), playing(self.client.waiting_audio()));
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
            let Some(up) = self.service.running() else { return };
            let frame = match up.socket.read() {
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
        let Self { service, core, door, on, license, turnstile, tools, .. } = self;
        let Some(up) = service.running() else { return };
        let passes = door.setup().is_none();
        up.shape.incoming(text, |text| {
            let event = if passes { ga::glance(&text) } else { ga::decode(&text) };
            limits::heard(on.upstream.board(), license.who().tenant_id(), &event);
            turnstile.heard(&event);
            on.heard(&event, || core.stage(), tools);
            core.handle(now, if passes { Input::Heard(event, text) } else { Input::Service(event) });
        });
    }

    /// The service has enough to take: a client that sends without measure waits in its own socket.
    fn service_behind(&self) -> bool {
        let queued = self.service.socket().map_or(0, Socket::queued_bytes);
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
            if let Some(socket) = self.client.socket() {
                socket.excuse();
            }
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
            if let Some(ticket) = &mut self.ticket {
                ticket.settle(); // whoever speaks after `resumed` has read it
            }
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
                // Whoever goes away for another reason than being done may come back.
                Frame::Closed { code, .. } => {
                    let end = if matches!(code, None | Some(1000)) { self.door.closed() } else { End::ClientLost };
                    return self.core.handle(self.now(), Input::ClientGone(end));
                }
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
        loop {
            if let Some(end) = self.do_all() {
                return Some(end);
            }
            // A socket that breaks while it is written to gives more to do.
            if !self.flush() {
                return self.goes_over.then_some(End::Drained);
            }
        }
    }

    fn do_all(&mut self) -> Option<End> {
        while let Some(output) = self.core.poll(self.now(), self.room()) {
            match output {
                Output::Send(message @ ServerMsg::Ready { .. }) => {
                    if let Some(text) = self.door.write(&message) {
                        self.client.outbox().uncounted(text);
                    }
                }
                Output::Send(message) => self.tell(&message, false),
                Output::SendNow(message) => self.tell(&message, true),
                Output::Audio { frame, first } => self.play(&frame, first),
                Output::AudioTail => {
                    self.bytes_out += self.door.tail(self.client.outbox()) as u64;
                }
                Output::DropAudio => {
                    self.client.outbox().drop_binary();
                    self.door.drop_audio();
                }
                Output::DropInput => self.door.drop_input(),
                Output::Hold(format) => {
                    if let Some(sound) = &self.hold {
                        self.core.handle(self.now(), Input::Hold(sound.audio(format)));
                    }
                }
                Output::Line { call_id, act } => self.line(call_id, act),
                Output::RunTool { call_id, name, arguments } => {
                    let Self { hooks, core, .. } = self;
                    hooks.run(call_id, &name, arguments, |turns| core.dialogue(turns));
                }
                Output::DropTool { call_id } => self.hooks.give_up(&call_id),
                Output::Service { number, command } => self.command(&command, number),
                Output::Forward(text) => self.forward(text),
                Output::Greet(text) => {
                    let Self { door, client, .. } = self;
                    door.relay(text, |text| client.outbox().uncounted(text));
                }
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
                Output::Received(got) => self.client.outbox().received(got),
                Output::HangUp { why, word } => self.hang_up(&why, word.as_ref()),
                Output::HandOver => self.goes_over = true,
                Output::Dial => {
                    self.dialled_at = Instant::now();
                    self.service.dial();
                }
                Output::DialNext => self.service.dial_next(),
                Output::Switch => {
                    self.service.switch();
                    if let Some(on) = self.service.on().cloned() {
                        self.moves_to(on);
                    }
                    self.session = self.service.id().unwrap_or_default().to_owned();
                }
                Output::Told(Told::FirstAudio(after)) => self.on.first_audio(after),
                Output::Told(Told::Dead(stage)) => self.on.failed(stage),
                Output::LeaveService => self.service.leave_all(),
                Output::Book(booked) => self.book(booked),
                Output::Turn(act) => {
                    if let Some(says) = self.turnstile.act(act) {
                        self.turn_says(says);
                    }
                }
                Output::PingClient => self.client.outbox().ping(),
                Output::PingService => {
                    if let Some(up) = self.service.running() {
                        up.socket.send_ping();
                    }
                }
                Output::Fact(fact) => fact.record(),
                Output::End(end) => {
                    self.goes_over = false; // its client has ended it meanwhile: there is nothing to go on with
                    return Some(end);
                }
            }
        }
        None
    }

    /// Does something with the line.
    fn line(&mut self, call_id: String, act: LineAct) {
        let nowhere = || json!({"error": "this call is not by telephone: it cannot be transferred"}).to_string();
        let input = match act {
            LineAct::Transfer(to) => match self.door.remote() {
                Some(remote) => return self.hooks.spawn(call_id, remote.transfer(to)),
                None => Input::ToolDone { call_id, output: nowhere() },
            },
            LineAct::Press(keys, format) => match self.door.press(&keys, self.client.outbox()) {
                true => Input::ToolDone { call_id, output: json!({"ok": true}).to_string() },
                false => Input::Plays { call_id, audio: dtmf::sound(&keys, format).into() },
            },
            LineAct::Hold(length, format) => {
                let sound = self.hold.as_ref().map(|sound| sound.audio(format)).unwrap_or_default();
                Input::Plays { call_id, audio: sound::repeated(&sound, format, length) }
            }
        };
        self.core.handle(self.now(), input);
    }

    fn turn_says(&mut self, mut says: Says) {
        self.cheaper(&mut says);
        let input = match says {
            Says::Word(number, word) => Input::Turn { number, word },
            Says::Scarce(scarce) => Input::Scarce(scarce),
            Says::Means(means) => Input::Means(means),
        };
        self.core.handle(self.now(), input);
    }

    /// Where little is left of a budget and there is something cheaper, the call goes on with that before anything else becomes of it.
    fn cheaper(&mut self, says: &mut Says) {
        let little = match says {
            Says::Means(means) => !means.low.is_empty() || means.spent.is_some(),
            Says::Word(_, Word::TooDear(_)) => true,
            Says::Word(..) | Says::Scarce(_) => false,
        };
        if !little || !self.turnstile.degrades() {
            return;
        }
        let now = Instant::now();
        if self.cheaper_since.is_none() && self.service.way().degrade() {
            self.cheaper_since = Some(now);
            self.core.handle(self.now(), Input::Rotate);
        }
        let there = self.on.degraded() == Some(Cause::Budget);
        if there || self.cheaper_since.is_none_or(|since| now > since + CHEAPER_WITHIN) {
            return;
        }
        match says {
            Says::Means(means) => (means.tight, means.spent) = (true, None),
            Says::Word(_, Word::TooDear(refused)) => refused.for_now = true,
            Says::Word(..) | Says::Scarce(_) => {}
        }
    }

    /// The client's socket may be given more audio.
    fn room(&self) -> bool {
        self.client.queued_bytes() < CLIENT_FULL && !self.door.is_full(self.now())
    }

    fn tell(&mut self, message: &ServerMsg, urgent: bool) {
        self.bytes_out += self.door.tell(self.now(), message, urgent, self.client.outbox()) as u64;
    }

    fn relay(&mut self, text: Bytes) {
        let Self { door, client, bytes_out, .. } = self;
        door.relay(text, |text| {
            *bytes_out += text.len() as u64;
            client.outbox().text(text);
        });
    }

    fn command(&mut self, command: &Command, number: u64) {
        if let Command::ToolOutput { output, .. } = command {
            self.tools = (self.tools.0 + 1, self.tools.1 + u64::from(tools::has_failed(output)));
        }
        if let Some(setup) = self.door.setup() {
            self.forward(ga::encode(command, setup, number));
        }
    }

    fn forward(&mut self, mut text: Bytes) {
        if let (Some(rerate), Some(Codec::Pcm16)) = (&mut self.rerate, self.core.passing().map(|input| input.codec)) {
            text = rerate.apply(text);
        }
        if let Some(up) = self.service.running() {
            up.shape.outgoing(text, |text| up.socket.send_text(text));
        }
    }

    fn play(&mut self, frame: &Bytes, first: bool) {
        self.first_audio |= first;
        match self.door.play(frame, self.client.outbox()) {
            Ok(bytes) => self.bytes_out += bytes as u64,
            Err(error) => {
                tracing::error!(%error, "reply audio could not be converted");
                self.core.handle(self.now(), Input::ClientGone(End::Internal));
            }
        }
    }

    /// Writes what the sockets take; whether one of them is gone.
    fn flush(&mut self) -> bool {
        let mut gone = false;
        if let Err(error) = self.client.flush() {
            gone = true;
            self.core.handle(self.now(), Input::ClientGone(client_end(error)));
        }
        if let Some(up) = self.service.running()
            && let Err(error) = up.socket.flush()
        {
            gone = true;
            self.service_gone(&UpstreamError::Broken(error.to_string()));
        }
        gone
    }

    /// Peers that begin and do not finish, or do not take what is theirs.
    fn check_patience(&mut self) {
        let now = Instant::now();
        let past = |since: Option<Instant>, patience| since.is_some_and(|at| now >= at + patience);
        if self.client.unfinished_until(HALF_MESSAGE).is_some_and(|at| now >= at) {
            self.core.handle(self.now(), Input::ClientGone(End::HalfMessage));
        }
        if !self.client.is_here() {
            let queued = self.client.queued_bytes();
            if queued > CLIENT_OVERFULL {
                self.core.handle(self.now(), Input::TooMuchKept(queued > CLIENT_OVERFULL_UNPACED));
            }
            return self.check_service(now);
        }
        let queued = self.client.queued_bytes();
        let overfull = if self.door.setup().is_some() { CLIENT_OVERFULL } else { CLIENT_OVERFULL_UNPACED };
        if queued >= overfull || queued >= CLIENT_FULL && past(self.client.stalled_since(), CLIENT_STALL) {
            self.core.handle(self.now(), Input::ClientGone(End::SlowConsumer));
        }
        self.check_service(now);
    }

    fn check_service(&mut self, now: Instant) {
        let past = |since: Option<Instant>, patience| since.is_some_and(|at| now >= at + patience);
        if let Some(socket) = self.service.socket()
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
        let service = self.service.running().map(|up| &mut up.socket);
        let client = if self.held_back { None } else { self.client.socket() };
        for socket in client.into_iter().chain(service) {
            if quiet {
                socket.resize(QUIET_BUFFER);
            } else if socket.is_crowded(BUSY_BUFFER) {
                socket.resize(BUSY_BUFFER);
            }
        }
    }

    fn service_came(&mut self, came: Came) {
        match came {
            Came::Ready => {}
            Came::Opened(done) => match *done {
                Ok(opened) => self.session_up(opened),
                Err(error) => self.service_gone(&error),
            },
            Came::Next(found) => {
                if let Err(error) = &found {
                    tracing::warn!(%error, "no session to follow the running one");
                }
                let found = found.map(|expires_at| lives(expires_at, unix_now())).map_err(drop);
                self.core.handle(self.now(), Input::NextSession(found));
            }
        }
    }

    fn session_up(&mut self, opened: Opened) {
        self.moves_to(opened.on.clone());
        let session = &opened.session;
        Fact::SessionUp { after: self.dialled_at.elapsed() }.record();
        tracing::debug!(session = session.id, expires_at = session.expires_at, "session");
        self.session.clone_from(&session.id);
        let (lives, created) = (lives(session.expires_at, unix_now()), session.created.clone());
        self.service.runs(opened);
        let scarce = self.turnstile.is_scarce();
        self.turn_says(Says::Scarce(scarce));
        self.core.handle(self.now(), Input::SessionUp(lives));
        if self.door.setup().is_none() {
            self.core.handle(self.now(), Input::Heard(ga::glance(&created), created));
        }
    }

    /// A session runs on this route from now on.
    fn moves_to(&mut self, on: Arc<On>) {
        let (to, first) = (&on.route.model, self.session.is_empty());
        let (was, degraded) = (self.on.degraded(), on.degraded());
        let reason = degraded.map_or(if was.is_some() { "recovered" } else { "route" }, Cause::name);
        let from = match (first, self.service.way().tier_name()) {
            (true, tier) => tier.filter(|_| degraded.is_some()),
            (false, _) => Some(self.books.model.as_str()).filter(|model| model != to),
        };
        if let Some(from) = from {
            tracing::info!(from, to, reason, "another model answers");
            let (from, to) = (from.to_owned(), to.clone());
            self.core.handle(self.now(), Input::ModelChanged { from, to, reason });
        }
        if self.books.route() != on.route {
            self.earlier.moves(&self.books, &self.session);
            (self.books.account, self.books.model) = (on.account().to_owned(), on.route.model.clone());
        }
        let moves = self.on.route != on.route;
        self.on = on;
        if moves {
            self.rerate = Rerate::to(self.on.upstream.config().input_rate).filter(|_| self.door.setup().is_none());
            let says = self.turnstile.moves(self.on.upstream.quota().clone(), &self.on.route.model);
            says.into_iter().for_each(|says| self.turn_says(says));
            let scarce = self.turnstile.is_scarce();
            self.turn_says(Says::Scarce(scarce));
        }
    }

    fn service_gone(&mut self, error: &UpstreamError) {
        tracing::warn!(%error, "the service is gone");
        if self.service.socket().is_some() {
            self.on.upstream.board().refused(Source::Close, self.license.who().tenant_id(), error);
            self.on.lost(error);
        }
        self.service.lost();
        self.core.handle(self.now(), Input::ServiceGone(End::upstream(error), error.another_may_do()));
    }

    /// The client's socket goes, and the call stays for it.
    fn hang_up(&mut self, why: &End, word: Option<&ServerMsg>) {
        let word = word.and_then(|message| self.door.write(message));
        // What it has not taken, it gets on its next one.
        let Some(socket) = self.client.part(word) else { return };
        (self.read_at, self.held_back, self.empty_looks) = (None, false, 0);
        tracing::info!(%why, "the client is away");
        let (code, reason) = self.door.close(why);
        let patience = if *why == End::SlowConsumer { SLOW_GOODBYE } else { GOODBYE };
        self.goodbyes.spawn(async move { socket.close(code, &reason, patience).await });
    }

    /// Somebody comes back with a token.
    fn arrived(&mut self, arrival: Arrival) {
        let Arrival { token, socket, who, got } = arrival;
        let (connected, door) = (self.client.is_here(), self.door.name());
        let Some(ticket) = self.ticket.as_mut().filter(|ticket| ticket.is_good(&token, connected)) else {
            return self.refuse(socket);
        };
        if !self.client.outbox().has_since(got) {
            return self.refuse(socket);
        }
        let Ok(credential) = self.license.adopt(who, unix_now()) else { return self.refuse(socket) };
        let next = ticket.after(token);
        let greeting = self.door.resumed(&self.id, next, self.core.received());
        if connected && let Some(old) = self.client.part(None) {
            self.goodbyes.spawn(returns::leave(old, door, End::Superseded, self.id.clone()));
        }
        match self.client.take_in(socket, greeting, got) {
            Err(socket) => self.refuse(*socket),
            Ok(late) => {
                tracing::info!(late, "the client is back");
                (self.read_at, self.cut) = (None, false);
                self.core.handle(self.now(), Input::ClientBack { late: playing(late), credential });
                self.active();
            }
        }
    }

    fn refuse(&self, socket: Socket) {
        self.goodbyes.spawn(returns::leave(socket, self.door.name(), End::ResumeRefused, self.id.clone()));
    }

    fn book(&mut self, booked: Booked) {
        match booked.kind {
            Kind::Transcription => {
                self.turnstile.spend(self.books.model_of(&booked), &booked.usage, booked.seconds);
            }
            // Its count is lost: what it must have used.
            Kind::Reply if booked.estimated => self.turnstile.over(&booked.id, Some(&booked.usage)),
            Kind::Reply | Kind::Refusal | Kind::Call => {}
        }
        let place = self.earlier.of(&booked, &self.books.prices);
        let (books, session) = place.before.unwrap_or((&self.books, &self.session));
        books.book(self.license.who(), session, booked, &place.prices);
    }

    fn drain(&mut self, until: Option<Instant>) {
        self.leaving = until.is_some();
        let Some(until) = until else { return self.core.handle(self.now(), Input::Stay) };
        self.core.handle(self.now(), Input::Heir(self.heir.is_there()));
        self.core.handle(self.now(), Input::Drain(until.saturating_duration_since(Instant::now())));
    }

    /// The client is at the door of the process that follows.
    fn recalled(&mut self) {
        if self.heir.is_there() {
            self.core.handle(self.now(), Input::Heir(true));
            self.core.handle(self.now(), Input::ClientGone(End::Drained));
        }
    }

    /// Gives the call to the process that follows; only then is the client told to go there.
    async fn hand_over(&mut self) -> Passed {
        // What the client says from now on it says again there, for nobody acknowledges it.
        let socket = self.client.part(None);
        let written = self.written().and_then(|written| written.write());
        let taken = match written {
            Some(call) => self.heir.take(call).await,
            None => Some(false),
        };
        if taken != Some(true) {
            tracing::warn!("the call could not be handed over");
            self.goes_over = false;
            socket.into_iter().for_each(|socket| self.client.rejoin(socket));
            let leaves = *self.drain.borrow();
            // The next one may be there already.
            let stays = leaves.is_none() || taken.is_none() && self.heir.is_there();
            if stays && self.drain.has_changed().is_ok() {
                self.drain(None);
                leaves.into_iter().for_each(|until| self.drain(Some(until)));
                return Passed::Stays;
            }
            self.core.handle(self.now(), Input::Heir(false));
            self.core.handle(self.now(), Input::ClientGone(End::Drained));
            self.act();
            return Passed::Ended;
        }
        tracing::info!("the call was handed over");
        self.turnstile.forget();
        self.hooks.stop();
        let (close, reason) = self.door.close(&End::Drained);
        let (length, bytes_in, bytes_out) = (self.began.elapsed(), self.bytes_in, self.bytes_out);
        Fact::CallEnded { close, length, bytes_in, bytes_out }.record();
        // A reply that is lost with its session is booked there.
        let service = self.service.end();
        let client = async {
            if let Some(socket) = socket {
                socket.close(close, &reason, GOODBYE).await;
            }
        };
        let service = async {
            if let Some(up) = service {
                up.goodbye().await;
            }
        };
        tokio::join!(client, service);
        Passed::Taken
    }

    /// The call as another process can go on with it; `None`: it cannot.
    fn written(&mut self) -> Option<Written> {
        let ticket = self.ticket.as_ref()?;
        let written = Written {
            id: self.id.clone(),
            ran: self.began.elapsed(),
            core: self.core.clone(),
            door: self.door.written(self.service.intent())?,
            agent: self.books.agent.clone(),
            tier: self.service.way().tier_name().map(str::to_owned),
            account: self.books.account.clone(),
            model: self.books.model.clone(),
            who: self.license.who().named(),
            session: self.session.clone(),
            spent: self.turnstile.spent(),
            tokens: ticket.tokens().to_vec(),
            said: 0,
            kept: Vec::new(),
            waiting: Vec::new(),
        };
        Some(written.with_outbox(self.client.outbox()))
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
        if self.door.is_phone() {
            self.book(Booked::call(&self.id, length, end));
        }
        if let Some(mut ticket) = self.ticket.take()
            && let Some(arrival) = ticket.close()
        {
            self.refuse(arrival.socket);
        }
        self.turnstile.forget();
        self.hooks.stop();
        // What was for the loudspeaker is not worth waiting for.
        self.client.outbox().drop_binary();
        if *end != End::Transferred {
            self.door.farewell(self.client.outbox());
        }
        let mut socket = self.client.take();
        let client = async {
            if let Some(socket) = socket.take().filter(|_| *end != End::ClientLost) {
                let patience = if *end == End::SlowConsumer { SLOW_GOODBYE } else { GOODBYE };
                socket.close(close, &reason, patience).await;
            }
        };
        let mut owed = self.core.uncounted();
        let running = self.service.end();
        let service = async {
            if let Some(mut up) = running {
                if !owed.is_empty() {
                    // What is not counted by then stays an estimate.
                    let _ = time::timeout(GOODBYE, last_counts(&mut up, &mut owed)).await;
                }
                up.goodbye().await;
            }
            owed
        };
        let ((), owed) = tokio::join!(client, service);
        for booked in owed {
            self.turnstile.over(&booked.id, Some(&booked.usage));
            self.book(booked);
        }
    }
}

/// The service's counts of replies that were stopped with their call, in place of our estimates.
async fn last_counts(up: &mut Up, owed: &mut [Booked]) {
    while owed.iter().any(|booked| booked.estimated) {
        match up.socket.next().await {
            Ok(Frame::Text(text)) => up.shape.incoming(text, |text| {
                let counted = Booked::counted(&ga::glance(&text));
                for booked in owed.iter_mut() {
                    if let Some(counted) = counted.as_ref().filter(|counted| counted.id == booked.id) {
                        let Booked { audio_ms, first_audio_ms, .. } = *booked;
                        *booked = Booked { audio_ms, first_audio_ms, ..counted.clone() };
                    }
                }
            }),
            Ok(Frame::Closed { .. }) | Err(_) => return,
            Ok(Frame::Binary(_) | Frame::Pong) => {}
        }
    }
}

/// How long so many audio messages play.
fn playing(messages: usize) -> Duration {
    MESSAGE * u32::try_from(messages).unwrap_or(u32::MAX)
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
