//! A world with one clock and one source of chance, in which calls run: real cores and outboxes, the real simulated service
//! through the real wire format, and clients that keep the contract.
//!
//! Nothing here waits: the next event is the earliest of what is on its way, what the clients mean to do, and what cores and
//! sessions want to be woken for. Connections keep the order of their messages and lose what is on its way when they break.
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, VecDeque},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::time::Instant;
use voxrelay::{
    call::{
        core::{Core, Input, Life, Output, Plan, Resume, continuity::lives},
        end::End,
    },
    client::{
        thin,
        wire::{AudioFormats, ClientMsg, ServerMsg},
    },
    config::{AgentConfig, ToolConfig},
    net::outbox::{Kind as Frame, Outbox},
    sim::{
        Faults, Knock, SimConfig,
        session::{Incoming, Output as Said, Session, World as Service},
    },
    upstream::{Command, Event, History as Told, SessionSetup, UpstreamError, ga},
};

use crate::{
    audio::{FORMAT, PER_MS, read, runs, speak},
    check::{At, Fact, History},
    client::{Client, Up, Wish},
    faults::{self, Fault, Kind, On},
};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
/// Audio in one message of the client, ms.
const FRAME_MS: u32 = 100;
/// What a socket holds that nobody has read, bytes.
const SOCKET: usize = 32 << 10;
/// The wall clock when a world begins.
const UNIX: u64 = 1_795_000_000;
/// A client that has not shown that it has the next token may use the one before again after so long (`call::returns`).
const UNPROVEN: Duration = Duration::from_secs(2);

/// How a world is.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) seed: u64,
    pub(crate) calls: usize,
    /// Each call lasts so long.
    pub(crate) length: Duration,
    /// The pauses between what a caller says, ms.
    pub(crate) pause: (u64, u64),
}

#[derive(Debug)]
enum Ev {
    /// To the core, over this link.
    Up(usize, u64, Up),
    Pong(usize),
    Arrive {
        link: usize,
        token: u64,
        got: u64,
    },
    /// To the client.
    Down(usize, Frame, Bytes, bool),
    Closed(usize),
    ServerSees(usize),
    ClientSees(usize),
    ClientReturns,
    Mic(u32, bool),
    Speak,
    Act,
    Tool(String),
    Hang,
    /// To a session.
    Ask(usize, Box<(Bytes, Command)>),
    /// From a session.
    Says(usize, String),
    Gone(usize),
    ServicePong(usize),
    Dialled {
        fails: bool,
    },
    Fault(usize),
}

struct Queued {
    at: At,
    order: u64,
    call: usize,
    ev: Ev,
}

impl PartialEq for Queued {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}
impl Eq for Queued {}
impl PartialOrd for Queued {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Queued {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

/// A client's connection.
#[derive(Debug)]
struct Link {
    whole: bool,
    up_last: At,
    down_last: At,
    in_flight: usize,
}

/// A session and its connection.
struct Leg {
    session: Session,
    began: At,
    whole: bool,
    up: bool,
    ask_last: At,
    say_last: At,
    /// Nothing comes from it before.
    held: At,
    /// It will never say anything again.
    deaf: bool,
    /// What it heard, unit by unit, and which of it is part of a turn.
    heard: Vec<Option<u32>>,
    taken: usize,
    speech: Option<(usize, usize)>,
    commits: VecDeque<(usize, usize)>,
}

struct Call {
    core: Core,
    outbox: Outbox,
    client: Client,
    setup: SessionSetup,
    history: History,
    links: Vec<Link>,
    server_link: Option<usize>,
    client_link: Option<usize>,
    tokens: (Option<u64>, u64, At),
    legs: Vec<Leg>,
    running: Option<usize>,
    next: Option<usize>,
    dialling: bool,
    dialling_next: bool,
    no_dial_until: At,
    twice: u32,
    faults: Vec<Fault>,
    auto: bool,
    first_audio: bool,
    over: bool,
    state: (bool, bool),
    utterance: Option<u64>,
    stays_away: bool,
    rng: StdRng,
    spins: u32,
}

/// What came of a run.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) histories: Vec<History>,
    /// Faults that were meant to be and fired, by kind; and those whose call was over before.
    pub(crate) fired: BTreeMap<Kind, u64>,
    pub(crate) never: Vec<String>,
    pub(crate) turns: u64,
}

pub(crate) struct World {
    config: Config,
    now: At,
    base: Instant,
    heap: BinaryHeap<Reverse<Queued>>,
    order: u64,
    calls: Vec<Call>,
    service: Arc<Service>,
    dialled: u64,
    turns: u64,
}

fn plan(auto: bool, transcribed: bool, rng: &mut StdRng) -> Plan {
    Plan {
        agent: "default".into(),
        audio: AudioFormats { input: FORMAT, output: FORMAT },
        upstream_input: FORMAT,
        upstream_output: FORMAT,
        auto_turns: auto,
        silence: 500 * MS,
        ends_speech: 500 * MS,
        greeting: rng.random_bool(0.2).then(|| "Hello.".to_owned()),
        chunk: 100 * MS,
        lead: rng.random_bool(0.8).then_some(400 * MS),
        batch: 100 * MS,
        tool_timeout: 30 * SECOND,
        max_backlog: 300 * SECOND,
        max_message_bytes: 262_144,
        transcribed,
        history_tokens: 4_000,
    }
}

impl Call {
    fn new(number: usize, config: &Config) -> Self {
        let mut rng = StdRng::seed_from_u64(config.seed.wrapping_mul(1_000).wrapping_add(number as u64));
        let auto = rng.random_bool(0.6);
        let transcribed = rng.random_bool(0.8);
        let calm = config.length.saturating_sub(60 * SECOND);
        let life = Life {
            call: format!("call_{number}"),
            max: 400 * 24 * 3_600 * SECOND,
            idle: None,
            stall: 10 * SECOND,
            credential: None,
        };
        let resume = Resume { token: "1".into(), window: 30 * SECOND };
        let tool = ToolConfig {
            name: "look".into(),
            description: String::new(),
            parameters: serde_json::json!({"type": "object", "properties": {}}),
        };
        let transcription = transcribed.then(|| "gpt-transcribe".to_owned());
        let agent = AgentConfig { tools: vec![tool], transcription, ..AgentConfig::default() };
        Self {
            core: Core::owner(life, plan(auto, transcribed, &mut rng), Some(resume)),
            outbox: Outbox::with_journal(),
            client: Client::default(),
            setup: SessionSetup { agent: Arc::new(agent), input: FORMAT, output: FORMAT, auto_turns: auto },
            history: History::default(),
            links: vec![Link { whole: true, up_last: At::ZERO, down_last: At::ZERO, in_flight: 0 }],
            server_link: Some(0),
            client_link: Some(0),
            tokens: (None, 1, At::ZERO),
            legs: Vec::new(),
            running: None,
            next: None,
            dialling: true,
            dialling_next: false,
            no_dial_until: At::ZERO,
            twice: 0,
            faults: faults::draw(&mut rng, calm),
            auto,
            first_audio: false,
            over: false,
            state: (true, true),
            utterance: None,
            stays_away: false,
            rng,
            spins: 0,
        }
    }

    fn jitter(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(self.rng.random_range(from..to))
    }
}

impl World {
    pub(crate) fn new(config: Config) -> Self {
        let mut rng = StdRng::seed_from_u64(config.seed);
        let cap = Duration::from_secs(rng.random_range(45..400));
        let mut sim = SimConfig {
            seed: config.seed,
            session_cap_ms: u64::try_from(cap.as_millis()).unwrap_or(1),
            ..SimConfig::default()
        };
        sim.reply.word_ms = 120;
        sim.reply.speed = [1.5, 4.0, 10.0][rng.random_range(0..3)];
        sim.reply.delta_ms = 200;
        let calls = (0..config.calls).map(|number| Call::new(number, &config)).collect();
        let mut world = Self {
            now: At::ZERO,
            base: Instant::now(),
            heap: BinaryHeap::new(),
            order: 0,
            calls,
            service: Service::new(sim, Faults::default()),
            dialled: 0,
            turns: 0,
            config,
        };
        for call in 0..world.calls.len() {
            world.later(call, 150 * MS, Ev::Dialled { fails: false });
            world.later(call, 2 * SECOND, Ev::Speak);
            world.later(call, 20 * SECOND, Ev::Act);
            let length = world.config.length;
            world.later(call, length, Ev::Hang);
            for index in 0..world.calls[call].faults.len() {
                let at = world.calls[call].faults[index].at + faults::PATIENCE;
                world.later(call, at, Ev::Fault(index));
            }
            world.act(call);
        }
        world
    }

    fn later(&mut self, call: usize, after: Duration, ev: Ev) {
        self.at(call, self.now + after, ev);
    }

    fn at(&mut self, call: usize, at: At, ev: Ev) {
        self.order += 1;
        self.heap.push(Reverse(Queued { at, order: self.order, call, ev }));
    }

    fn note(&mut self, call: usize, fact: Fact) {
        let now = self.now;
        self.calls[call].history.note(now, fact);
    }

    /// Runs all calls to their ends; `until` may stop it before.
    pub(crate) fn run(&mut self) {
        loop {
            let queued = self.heap.peek().map(|Reverse(queued)| queued.at);
            let core = (0..self.calls.len()).filter_map(|call| self.core_due(call).map(|at| (at, call))).min();
            let legs = (0..self.calls.len()).filter_map(|call| self.session_due(call)).min();
            let Some(at) = [queued, core.map(|(at, _)| at), legs.map(|(at, ..)| at)].into_iter().flatten().min() else {
                return;
            };
            if self.calls.iter().all(|call| call.over) {
                return;
            }
            if at > self.now {
                self.calls.iter_mut().for_each(|call| call.spins = 0);
            }
            self.now = self.now.max(at);
            if queued == Some(at) {
                if let Some(Reverse(Queued { call, ev, .. })) = self.heap.pop() {
                    self.happen(call, ev);
                }
            } else if let Some((_, call, leg)) = legs.filter(|(due, ..)| *due == at) {
                self.session_acts(call, leg);
            } else if let Some((_, call)) = core {
                self.calls[call].spins += 1;
                assert!(
                    self.calls[call].spins < 10_000,
                    "seed {}: the core of call {call} wants to be woken for ever at {:?}",
                    self.config.seed,
                    self.now
                );
                self.input(call, Input::Tick);
            }
        }
    }

    fn core_due(&self, call: usize) -> Option<At> {
        let call = self.calls.get(call)?;
        if call.over { None } else { call.core.deadline(call.outbox.bytes() < 4 << 20) }
    }

    fn session_due(&self, call: usize) -> Option<(At, usize, usize)> {
        let legs = self.calls.get(call)?.legs.iter().enumerate().rev().take(4);
        legs.filter(|(_, leg)| leg.whole)
            .filter_map(|(index, leg)| leg.session.deadline().map(|at| (leg.began + at, call, index)))
            .min()
    }

    // The core.

    fn input(&mut self, call: usize, input: Input<'_>) {
        if self.calls[call].over {
            return;
        }
        let now = self.now;
        let it = &mut self.calls[call];
        it.core.client_has_all(it.outbox.is_empty());
        it.core.handle(now, input);
        self.act(call);
    }

    fn act(&mut self, call: usize) {
        loop {
            let now = self.now;
            let it = &mut self.calls[call];
            let Some(output) = it.core.poll(now, it.outbox.bytes() < 4 << 20) else { break };
            if let Output::End(end) = output {
                return self.ended(call, &end);
            }
            self.output(call, output);
        }
        self.pump(call);
        let it = &mut self.calls[call];
        if it.first_audio && it.outbox.is_empty() {
            it.first_audio = false;
            let now = self.now;
            self.calls[call].core.handle(now, Input::FirstAudioLeft);
            return self.act(call);
        }
        let state = (it.core.is_connected(), it.running.is_some() || it.dialling);
        if state != it.state {
            it.state = state;
            self.note(call, Fact::Legs { client: state.0, service: state.1 });
        }
    }

    fn output(&mut self, call: usize, output: Output) {
        let it = &mut self.calls[call];
        match output {
            Output::Send(message @ ServerMsg::Ready { .. }) => it.outbox.uncounted(thin::write(&message)),
            Output::Send(message) => it.outbox.text(thin::write(&message)),
            Output::SendNow(message) => it.outbox.urgent(thin::write(&message)),
            Output::Audio { frame, first } => {
                it.first_audio |= first;
                it.outbox.binary(frame);
                self.moment(call, On::ReplyAudio);
            }
            Output::DropAudio => it.outbox.drop_binary(),
            Output::Service { number, command } => self.command(call, number, command),
            Output::Received(got) => it.outbox.received(got),
            Output::HangUp { why, word } => {
                if let Some(word) = word {
                    let (at, text) = (self.base + self.now, thin::write(&word));
                    it.outbox.said_last(at, &text);
                    if let Some(link) = it.server_link {
                        self.numbered(call, &text);
                        self.down(call, link, Frame::Text, text, true);
                    }
                }
                self.note(call, Fact::Told(format!("hang up: {why}")));
                if let Some(link) = self.calls[call].server_link.take() {
                    self.close_link(call, link);
                }
            }
            Output::Dial => self.dial(call),
            Output::DialNext => {
                it.next = None;
                it.dialling_next = true;
                self.dial_soon(call);
            }
            Output::Switch => {
                it.running = it.next.take();
                let session = it.running.unwrap_or(usize::MAX);
                self.note(call, Fact::Runs { session });
            }
            Output::Book(booked) => {
                let tokens = booked.usage.total_tokens;
                let fact = Fact::Booked { id: booked.id, estimated: booked.estimated, tokens };
                if booked.kind == voxrelay::ledger::Kind::Reply {
                    self.note(call, fact);
                }
            }
            Output::LeaveService => (it.running, it.next) = (None, None),
            Output::PingClient => it.outbox.ping(),
            Output::PingService => {
                if let Some(leg) = it.running.filter(|leg| it.legs[*leg].whole && !it.legs[*leg].deaf) {
                    self.later(call, 60 * MS, Ev::ServicePong(leg));
                }
            }
            Output::AudioTail | Output::DropInput | Output::HandOver | Output::Fact(_) => {}
            Output::Forward(_) | Output::Greet(_) | Output::Relay { .. } | Output::Renew(_) | Output::End(_) => {}
        }
    }

    fn ended(&mut self, call: usize, end: &End) {
        let it = &mut self.calls[call];
        it.over = true;
        let owed = it.core.uncounted();
        let leftover = it.core.deadline(true).is_some();
        for booked in owed {
            let tokens = booked.usage.total_tokens;
            self.note(call, Fact::Booked { id: booked.id, estimated: true, tokens });
        }
        self.note(call, Fact::End { why: end.to_string() });
        if leftover {
            self.note(call, Fact::Leftover);
        }
    }

    fn command(&mut self, call: usize, number: u64, command: Command) {
        let name = match &command {
            Command::Append(_) => "append",
            Command::Commit => "commit",
            Command::CreateReply { .. } => "create reply",
            Command::CancelReply { .. } => "cancel",
            Command::Configure { listens: true } => "listen",
            Command::Configure { listens: false } => "do not listen",
            Command::Retell { .. } => "retell",
            Command::UserText { .. } => "text",
            Command::ToolOutput { .. } => "tool output",
            Command::Truncate { .. } => "truncate",
            Command::DeleteItem { .. } => "delete",
            Command::ClearInput => "clear",
        };
        let it = &mut self.calls[call];
        let Some(leg) = it.running.filter(|leg| it.legs[*leg].whole) else { return };
        let text = ga::encode(&command, &it.setup, number);
        let delay = it.jitter(20, 60);
        let leg_at = &mut it.legs[leg];
        let at = (self.now + delay).max(leg_at.ask_last);
        leg_at.ask_last = at;
        match &command {
            Command::Append(audio) => {
                let units = runs(read(audio).flatten());
                self.note(call, Fact::Append { session: leg, units });
            }
            Command::Retell { item: Told::UserAudio { audio }, .. } => {
                let units = runs(read(audio).flatten());
                self.note(call, Fact::Turn { session: leg, units });
            }
            Command::ToolOutput { call_id, .. } => self.note(call, Fact::Answered { call_id: call_id.clone() }),
            _ => self.note(call, Fact::Asked(name)),
        }
        let on = match command {
            Command::Commit => Some(On::AskedCommit),
            Command::CreateReply { .. } => Some(On::AskedReply),
            _ => None,
        };
        self.at(call, at, Ev::Ask(leg, Box::new((text, command))));
        if let Some(on) = on {
            self.moment(call, on);
        }
    }

    fn dial(&mut self, call: usize) {
        let it = &mut self.calls[call];
        it.running = None;
        it.next = None;
        let on_its_way = std::mem::replace(&mut it.dialling_next, false);
        it.dialling = true;
        if !on_its_way {
            self.dial_soon(call);
        }
    }

    fn dial_soon(&mut self, call: usize) {
        let it = &mut self.calls[call];
        let fails = self.now < it.no_dial_until;
        let after = if fails { it.jitter(2_000, 6_000) } else { it.jitter(80, 500) };
        self.later(call, after, Ev::Dialled { fails });
    }

    fn dialled(&mut self, call: usize, fails: bool) {
        // Whoever is missed most gets what comes; one that nobody wants is closed.
        let it = &mut self.calls[call];
        let next = !it.dialling;
        if next && !it.dialling_next {
            return;
        }
        if fails {
            if next {
                it.dialling_next = false;
                return self.input(call, Input::NextSession(Err(())));
            }
            it.dialling = false;
            let error = UpstreamError::Broken("refused".into());
            return self.input(call, Input::ServiceGone(End::upstream(&error), error.another_may_do()));
        }
        self.dialled += 1;
        let knock = Knock { key: Some("sk-good".into()), model: Some("gpt-realtime".into()), ..Knock::default() };
        let session = Session::new(self.service.clone(), self.dialled, &knock, UNIX + self.now.as_secs());
        let (now, zero) = (self.now, self.now);
        it.legs.push(Leg {
            session,
            began: now,
            whole: true,
            up: false,
            ask_last: zero,
            say_last: zero,
            held: At::ZERO,
            deaf: false,
            heard: Vec::new(),
            taken: 0,
            speech: None,
            commits: VecDeque::new(),
        });
    }

    fn session_up(&mut self, call: usize, leg: usize, expires_at: Option<u64>) {
        let it = &mut self.calls[call];
        it.legs[leg].up = true;
        let lives = lives(expires_at, UNIX + self.now.as_secs());
        if it.dialling {
            it.dialling = false;
            it.running = Some(leg);
            self.note(call, Fact::Runs { session: leg });
            self.input(call, Input::SessionUp(lives));
        } else if it.dialling_next {
            it.dialling_next = false;
            it.next = Some(leg);
            self.input(call, Input::NextSession(Ok(lives)));
            self.moment(call, On::NextReady);
        }
    }

    fn session_acts(&mut self, call: usize, leg: usize) {
        let now = self.now;
        let it = &mut self.calls[call];
        let since = now.saturating_sub(it.legs[leg].began);
        it.legs[leg].session.tick(since);
        self.session_speaks(call, leg);
    }

    fn session_speaks(&mut self, call: usize, leg: usize) {
        while let Some(said) = self.calls[call].legs[leg].session.poll() {
            let now = self.now;
            let it = &mut self.calls[call];
            let delay = it.jitter(20, 60);
            let here = &mut it.legs[leg];
            let at = (now + delay).max(here.say_last).max(here.held);
            here.say_last = at;
            if here.deaf {
                continue;
            }
            match said {
                Said::Send(text) => self.at(call, at, Ev::Says(leg, text)),
                Said::Close { .. } | Said::Die { .. } => self.at(call, at, Ev::Gone(leg)),
                Said::StallReads { .. } | Said::SlowReads { .. } => {}
            }
        }
    }

    /// A session takes a command.
    fn asked(&mut self, call: usize, leg: usize, text: &Bytes, command: &Command) {
        let now = self.now;
        let it = &mut self.calls[call];
        let here = &mut it.legs[leg];
        if !here.whole {
            return;
        }
        match command {
            Command::Append(audio) => here.heard.extend(read(audio)),
            Command::Commit => {
                here.commits.push_back((here.taken, here.heard.len()));
                here.taken = here.heard.len();
            }
            Command::ClearInput => here.taken = here.heard.len(),
            _ => {}
        }
        let since = now.saturating_sub(here.began);
        let text = std::str::from_utf8(text).expect("JSON is UTF-8");
        here.session.handle(since, Incoming::Text(text));
        self.session_speaks(call, leg);
    }

    /// A session's event arrives.
    fn says(&mut self, call: usize, leg: usize, text: &str) {
        let it = &mut self.calls[call];
        if !it.legs[leg].whole {
            return;
        }
        let event = ga::decode(text.as_bytes());
        if let Event::SessionCreated { expires_at, .. } = &event
            && !it.legs[leg].up
        {
            return self.session_up(call, leg, *expires_at);
        }
        if it.running != Some(leg) {
            return;
        }
        let on = match &event {
            Event::SpeechStarted { .. } => Some(On::SpeechStarted),
            Event::SpeechStopped { .. } => Some(On::SpeechStopped),
            Event::Committed { .. } => Some(On::Committed),
            Event::ReplyCreated { .. } => Some(On::Created),
            Event::Audio { .. } => Some(On::Delta),
            Event::ReplyDone { .. } => Some(On::Done),
            Event::UserText { last: true, .. } => Some(On::Words),
            _ => None,
        };
        if let Some(on) = on {
            self.moment(call, on);
        }
        let it = &mut self.calls[call];
        // A fault before the event has taken it along.
        if it.over || it.running != Some(leg) || !it.legs[leg].whole {
            return;
        }
        self.tell(call, leg, &event);
        let twice = matches!(
            event,
            Event::ReplyCreated { .. } | Event::ReplyDone { .. } | Event::ToolCall { .. } | Event::SpeechStarted { .. }
        );
        let it = &mut self.calls[call];
        let again = (twice && it.twice > 0).then(|| event.clone());
        self.input(call, Input::Service(event));
        if let Some(event) = again.filter(|_| self.calls[call].running == Some(leg)) {
            self.calls[call].twice -= 1;
            self.input(call, Input::Service(event));
        }
    }

    /// Writes down what the core is about to hear.
    fn tell(&mut self, call: usize, leg: usize, event: &Event) {
        let here = &mut self.calls[call].legs[leg];
        let unit = |ms: u64| usize::try_from(ms * u64::from(PER_MS)).unwrap_or(usize::MAX);
        let fact = match event {
            Event::SpeechStarted { at_ms } => {
                here.speech = Some((unit(*at_ms), usize::MAX));
                Fact::Told(format!("speech started at {at_ms} in session {leg}"))
            }
            Event::SpeechStopped { at_ms } => {
                if let Some((_, to)) = &mut here.speech {
                    *to = unit(*at_ms);
                    here.taken = here.taken.max(unit(*at_ms));
                }
                Fact::Told(format!("speech stopped at {at_ms} in session {leg}"))
            }
            Event::Committed { .. } => {
                let found = here.speech.filter(|(_, to)| *to != usize::MAX);
                let (from, to) = match found {
                    Some(found) => {
                        here.speech = None;
                        found
                    }
                    None => here.commits.pop_front().unwrap_or((0, 0)),
                };
                let units = here.heard.get(from..to.min(here.heard.len())).unwrap_or_default();
                Fact::Turn { session: leg, units: runs(units.iter().flatten().copied()) }
            }
            Event::ReplyCreated { response, .. } => Fact::Created { response: response.clone() },
            Event::Audio { response, audio, .. } => Fact::Delta { response: response.clone(), audio: audio.to_vec() },
            Event::ReplyDone { response, usage, .. } => {
                self.turns += 1;
                Fact::Done { response: response.clone(), tokens: usage.map(|usage| usage.total_tokens) }
            }
            Event::Error(error) => Fact::Told(format!("service error {}: {}", error.code, error.message)),
            _ => return,
        };
        self.note(call, fact);
    }

    fn session_gone(&mut self, call: usize, leg: usize, why: &'static str) {
        let it = &mut self.calls[call];
        it.legs[leg].whole = false;
        let error = UpstreamError::Broken("reset".into());
        let gone = || Input::ServiceGone(End::upstream(&error), error.another_may_do());
        if it.running == Some(leg) {
            it.running = None;
            self.note(call, Fact::NoSession { why });
            self.input(call, gone());
        } else if it.next == Some(leg) {
            it.next = None;
            self.input(call, Input::NextSession(Err(())));
        } else if !it.legs[leg].up {
            // It broke before it was greeted.
            if it.dialling {
                it.dialling = false;
                self.input(call, gone());
            } else if it.dialling_next {
                it.dialling_next = false;
                self.input(call, Input::NextSession(Err(())));
            }
        }
    }

    // The client's connection.

    fn numbered(&mut self, call: usize, payload: &Bytes) {
        let number = self.calls[call].outbox.said();
        self.note(call, Fact::Numbered { number, hash: hash(payload) });
    }

    fn pump(&mut self, call: usize) {
        loop {
            let it = &mut self.calls[call];
            let Some(link) = it.server_link else { return };
            if it.links[link].in_flight > SOCKET {
                return;
            }
            let Some(next) = it.outbox.pop() else { return };
            let before = it.outbox.said();
            it.outbox.taken(self.base + self.now, next.kind, &next.payload, next.counts());
            let greeting =
                next.payload.starts_with(br#"{"type":"ready""#) || next.payload.starts_with(br#"{"type":"resumed""#);
            if it.outbox.said() > before {
                self.numbered(call, &next.payload);
            }
            self.down(call, link, next.kind, next.payload, !greeting);
        }
    }

    fn down(&mut self, call: usize, link: usize, kind: Frame, payload: Bytes, counted: bool) {
        let it = &mut self.calls[call];
        let delay = it.jitter(5, 80);
        let here = &mut it.links[link];
        let at = (self.now + delay).max(here.down_last);
        here.down_last = at;
        here.in_flight += payload.len();
        self.at(call, at, Ev::Down(link, kind, payload, counted));
    }

    fn up(&mut self, call: usize, ev: impl FnOnce(usize) -> Ev) {
        let it = &mut self.calls[call];
        let Some(link) = it.client_link else { return };
        let delay = it.jitter(5, 80);
        let here = &mut it.links[link];
        let at = (self.now + delay).max(here.up_last);
        here.up_last = at;
        self.at(call, at, ev(link));
    }

    /// The server closes it; what it said before still comes.
    fn close_link(&mut self, call: usize, link: usize) {
        let at = self.calls[call].links[link].down_last + 5 * MS;
        self.at(call, at.max(self.now), Ev::Closed(link));
    }

    fn wishes(&mut self, call: usize, wishes: Vec<Wish>) {
        for wish in wishes {
            match wish {
                Wish::Write(number, up) => self.up(call, |link| Ev::Up(link, number, up)),
                Wish::Tool(call_id) => {
                    let after = self.calls[call].jitter(100, 4_000);
                    if self.calls[call].rng.random_bool(0.9) {
                        self.later(call, after, Ev::Tool(call_id));
                    }
                }
                Wish::GiveUp => self.calls[call].client.over = true,
            }
        }
    }

    fn client_says(&mut self, call: usize, up: Up) {
        let wishes = self.calls[call].client.say(up);
        self.wishes(call, wishes);
    }

    fn happen(&mut self, call: usize, ev: Ev) {
        if self.calls[call].over {
            return;
        }
        match ev {
            Ev::Up(link, number, up) => self.reaches(call, link, number, up),
            Ev::Pong(link) => {
                if self.calls[call].server_link == Some(link) && self.calls[call].links[link].whole {
                    self.input(call, Input::ClientPong);
                }
            }
            Ev::Arrive { link, token, got } => self.arrives(call, link, token, got),
            Ev::Down(link, kind, payload, counted) => self.comes(call, link, kind, &payload, counted),
            Ev::Closed(link) | Ev::ClientSees(link) => self.client_sees(call, link),
            Ev::ServerSees(link) => {
                if self.calls[call].server_link == Some(link) {
                    self.input(call, Input::ClientGone(End::ClientLost));
                }
            }
            Ev::ClientReturns => self.returns(call),
            Ev::Mic(left, loud) => self.microphone(call, left, loud),
            Ev::Speak => {
                let it = &mut self.calls[call];
                let length = it.rng.random_range(5..40);
                it.utterance = Some(it.client.position);
                self.microphone(call, length, true);
            }
            Ev::Act => self.client_acts(call),
            Ev::Tool(call_id) => {
                self.client_says(call, Up::Text(ClientMsg::ToolResult { call_id, output: "42".into() }));
            }
            Ev::Hang => self.client_says(call, Up::Text(ClientMsg::Close)),
            Ev::Ask(leg, asked) => self.asked(call, leg, &asked.0, &asked.1),
            Ev::Says(leg, text) => self.says(call, leg, &text),
            Ev::Gone(leg) => {
                if self.calls[call].legs[leg].whole {
                    self.session_gone(call, leg, "closed by the service");
                }
            }
            Ev::ServicePong(leg) => {
                if self.calls[call].running == Some(leg) {
                    self.input(call, Input::ServicePong);
                }
            }
            Ev::Dialled { fails } => self.dialled(call, fails),
            Ev::Fault(index) => {
                if !self.calls[call].faults[index].fired {
                    self.fire(call, index);
                }
            }
        }
    }

    fn reaches(&mut self, call: usize, link: usize, number: u64, up: Up) {
        let it = &mut self.calls[call];
        if !it.links[link].whole || it.server_link != Some(link) {
            return;
        }
        it.tokens.0 = None; // whoever speaks has read `resumed`
        self.note(call, Fact::Reached { number });
        match up {
            Up::Audio { from, count, loud } => {
                let audio = speak(from, count, loud);
                let from = u32::try_from(from % u64::from(crate::audio::ROUND)).unwrap_or(0);
                self.note(call, Fact::Heard { from, to: from + count, loud });
                let it = &self.calls[call];
                let silent = it.running.is_some_and(|leg| {
                    it.legs[leg].deaf || it.legs[leg].say_last > self.now + SECOND || it.legs[leg].held > self.now
                });
                if it.auto && silent {
                    self.note(call, Fact::Silent { from, to: from + count });
                }
                let length = FORMAT.duration(audio.len());
                self.input(call, Input::Audio { length, upstream: &audio });
            }
            Up::Text(message) => {
                if message == ClientMsg::Commit {
                    self.input_flush(call);
                }
                self.input(call, Input::Message(message));
            }
        }
    }

    fn input_flush(&mut self, call: usize) {
        self.input(call, Input::Flushed(&[]));
    }

    fn arrives(&mut self, call: usize, link: usize, token: u64, got: u64) {
        let now = self.now;
        let it = &mut self.calls[call];
        if !it.links[link].whole {
            return;
        }
        let (before, current, since) = it.tokens;
        let waits = it.server_link.is_some() && now < since + UNPROVEN;
        let good = current == token || before == Some(token) && !waits;
        if !good || !it.outbox.has_since(got) {
            let error = End::ResumeRefused.error("r".into()).expect("a refusal is told");
            self.down(call, link, Frame::Text, thin::write(&ServerMsg::Error { error }), false);
            self.note(call, Fact::Told(format!("resume refused: token {token} of {before:?} {current}, got {got}")));
            return self.close_link(call, link);
        }
        it.tokens = (Some(token), current.max(token) + 1, now);
        let resume = Some(it.tokens.1.to_string());
        let greeting = ServerMsg::Resumed { call: "call".into(), resume, got: it.core.received() };
        let old = it.server_link.replace(link);
        let late = it.outbox.say_again(got).unwrap_or(0);
        it.outbox.uncounted(thin::write(&greeting));
        it.outbox.ping();
        if let Some(old) = old {
            self.close_link(call, old);
        }
        self.note(call, Fact::Told(format!("back with {got}, {late} frames late")));
        let late = 20 * MS * u32::try_from(late).unwrap_or(u32::MAX);
        self.input(call, Input::ClientBack { late, credential: None });
    }

    fn comes(&mut self, call: usize, link: usize, kind: Frame, payload: &Bytes, counted: bool) {
        let now = self.now;
        let it = &mut self.calls[call];
        it.links[link].in_flight -= payload.len().min(it.links[link].in_flight);
        if it.client_link == Some(link) && it.links[link].whole {
            if kind == Frame::Ping {
                self.up(call, Ev::Pong);
            } else {
                if counted {
                    let number = it.client.got + 1;
                    it.history.note(now, Fact::Got { number, hash: hash(payload) });
                }
                let Call { client, history, .. } = it;
                let wishes = match kind {
                    Frame::Binary => client.audio(now, payload, history),
                    _ => client.text(now, payload, history),
                };
                self.wishes(call, wishes);
            }
        }
        self.pump(call);
    }

    fn client_sees(&mut self, call: usize, link: usize) {
        let it = &mut self.calls[call];
        if it.client_link != Some(link) {
            return;
        }
        it.client_link = None;
        it.client.lost();
        it.links[link].whole = false;
        if it.client.over {
            return;
        }
        let away =
            if std::mem::replace(&mut it.stays_away, false) { it.jitter(33_000, 50_000) } else { it.jitter(50, 4_000) };
        self.later(call, away, Ev::ClientReturns);
    }

    fn returns(&mut self, call: usize) {
        let it = &mut self.calls[call];
        if it.client_link.is_some() || it.client.over {
            return;
        }
        it.links.push(Link { whole: true, up_last: At::ZERO, down_last: At::ZERO, in_flight: 0 });
        it.client_link = Some(it.links.len() - 1);
        let (token, got) = (it.client.token, it.client.got);
        self.up(call, |link| Ev::Arrive { link, token, got });
    }

    fn microphone(&mut self, call: usize, left: u32, loud: bool) {
        let it = &mut self.calls[call];
        let count = FRAME_MS * PER_MS;
        let from = it.client.position;
        if it.client.over {
            return;
        }
        if left > 0 {
            it.client.position += u64::from(count);
            self.client_says(call, Up::Audio { from, count, loud });
            self.moment(call, On::ClientAudio);
            return self.later(call, Duration::from_millis(FRAME_MS.into()), Ev::Mic(left - 1, loud));
        }
        let it = &mut self.calls[call];
        let (low, high) = self.config.pause;
        if loud && it.auto {
            // Some fall silent, some are cut off by their telephone.
            let silence = if it.rng.random_bool(0.8) { 8 } else { 0 };
            return self.microphone(call, silence, false);
        }
        if loud {
            let said = it.utterance.take().unwrap_or(0);
            if it.rng.random_bool(0.1) {
                let to = it.client.position;
                let unit = |at: u64| u32::try_from(at % u64::from(crate::audio::ROUND)).unwrap_or(0);
                self.note(call, Fact::Discarded { from: unit(said), to: unit(to) });
                self.client_says(call, Up::Text(ClientMsg::Discard));
            } else {
                self.client_says(call, Up::Text(ClientMsg::Commit));
            }
        }
        let pause = self.calls[call].jitter(low, high);
        if self.now + pause + 30 * SECOND < self.config.length {
            self.later(call, pause, Ev::Speak);
        }
    }

    fn client_acts(&mut self, call: usize) {
        let now = self.now;
        let it = &mut self.calls[call];
        let after = it.jitter(3_000, 15_000);
        let message = match it.rng.random_range(0..8) {
            0 => Some(ClientMsg::Text { text: format!("and {}?", now.as_secs()) }),
            1 => Some(ClientMsg::Text { text: format!("call look {{\"n\": {}}}", now.as_secs()) }),
            2 => Some(ClientMsg::Interrupt { reply: None, played_ms: it.client.played(now).map(|(_, ms)| ms) }),
            3..7 => it.client.played(now).map(|(reply, ms)| ClientMsg::Played { reply, ms }),
            _ => Some(ClientMsg::Ping { t: serde_json::json!(1) }),
        };
        if let Some(message) = message.filter(|_| now + 30 * SECOND < self.config.length) {
            self.client_says(call, Up::Text(message));
        }
        self.later(call, after, Ev::Act);
    }

    // Faults.

    fn moment(&mut self, call: usize, on: On) {
        let now = self.now;
        let faults = &mut self.calls[call].faults;
        let due = faults.iter().position(|fault| !fault.fired && fault.at <= now && fault.on == on);
        let Some(index) = due else { return };
        match faults[index].skip.checked_sub(1) {
            Some(skip) => faults[index].skip = skip,
            None => self.fire(call, index),
        }
    }

    fn fire(&mut self, call: usize, index: usize) {
        let now = self.now;
        let it = &mut self.calls[call];
        it.faults[index].fired = true;
        let Fault { kind, before, .. } = it.faults[index];
        it.history.note(now, Fact::Fault { name: NAMES[kind as usize] });
        let last = it.history.log.iter().rev().find_map(|(_, fact)| match fact {
            Fact::Heard { from, to, .. } => Some((from.saturating_sub(800), *to)),
            _ => None,
        });
        if let (true, Kind::SessionDeaf | Kind::SessionStalls, Some((from, to))) = (it.auto, kind, last) {
            // Speech that had begun for less than the service needs to notice it.
            it.history.note(now, Fact::Silent { from, to });
        }
        let (soon, later) = (it.jitter(1, 1_500), it.jitter(1, 3_000));
        match kind {
            Kind::ClientLost | Kind::HalfOpen | Kind::LongAway => {
                it.stays_away |= kind == Kind::LongAway;
                let Some(link) = it.client_link else { return };
                it.links[link].whole = false;
                self.later(call, later, Ev::ClientSees(link));
                if kind != Kind::HalfOpen {
                    self.later(call, soon, Ev::ServerSees(link));
                }
            }
            Kind::ClientStalls => {
                let Some(link) = it.client_link else { return };
                let until = now + it.jitter(2_000, 20_000);
                it.links[link].down_last = it.links[link].down_last.max(until);
            }
            Kind::SessionLost | Kind::NoDial => {
                if kind == Kind::NoDial {
                    it.no_dial_until = now + it.jitter(500, 8_000);
                }
                let Some(leg) = it.running.or(it.next) else { return };
                // It may take a while until we see it; what it says meanwhile is lost.
                it.legs[leg].whole = false;
                if before {
                    self.session_gone(call, leg, "broke");
                } else {
                    it.legs[leg].whole = true;
                    self.later(call, MS, Ev::Gone(leg));
                }
            }
            Kind::SessionDeaf => {
                if let Some(leg) = it.running {
                    it.legs[leg].deaf = true;
                    // Nobody asks a service that owes no reply whether it lives: in the end, TCP does.
                    self.later(call, 40 * SECOND, Ev::Gone(leg));
                }
            }
            Kind::SessionStalls => {
                if let Some(leg) = it.running {
                    it.legs[leg].held = now + it.jitter(1_000, 25_000);
                }
            }
            Kind::Rotate => self.input(call, Input::Rotate),
            Kind::Twice => it.twice += 3,
        }
    }

    pub(crate) fn outcome(self) -> Outcome {
        let mut fired = BTreeMap::new();
        let mut never = Vec::new();
        for call in &self.calls {
            let end =
                call.history.log.iter().rev().find_map(|(at, fact)| matches!(fact, Fact::End { .. }).then_some(*at));
            for fault in &call.faults {
                if fault.fired {
                    *fired.entry(fault.kind).or_default() += 1;
                } else if end.is_none_or(|end| fault.at + faults::PATIENCE < end) {
                    never.push(format!("{fault:?} never fired"));
                }
            }
        }
        let histories = self.calls.into_iter().map(|call| call.history).collect();
        Outcome { histories, fired, never, turns: self.turns }
    }
}

const NAMES: [&str; 10] = [
    "client lost",
    "half open",
    "long away",
    "client stalls",
    "session lost",
    "no dial",
    "session deaf",
    "session stalls",
    "rotate",
    "twice",
];

fn hash(payload: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    payload.hash(&mut hasher);
    hasher.finish()
}
