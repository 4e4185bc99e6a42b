//! A world with one clock and one source of chance, in which calls run: real cores and outboxes, the real simulated service
//! through the real wire format, and clients that keep the contract.
//!
//! Nothing here waits: the next event is the earliest of what is on its way, what the clients mean to do, and what cores and
//! sessions want to be woken for. Connections keep the order of their messages and lose what is on its way when they break:
//! whole messages, since readers hand on no others, and whoever wrote one that was cut counts it as written in either case
//! (`tests/it/resume.rs` cuts them on real sockets).
mod call;
mod caller;
mod core;
mod line;
mod secrets;
mod service;
mod trouble;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    ops::Range,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::time::Instant;
use voxrelay::{
    call::{core::Input, end::End, turnstile::Word},
    client::wire::ClientMsg,
    net::outbox::Kind as Frame,
    sim::{Faults, SimConfig, SimStats, session::World as Service},
    upstream::Command,
};

use self::{call::Call, secrets::Purse};
use crate::{
    check::{At, Fact, History},
    client::Up,
    faults::{self, Kind},
};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
/// The wall clock when a world begins.
const UNIX: u64 = 1_795_000_000;

/// How a world is.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) seed: u64,
    pub(crate) calls: usize,
    /// Each call lasts so long.
    pub(crate) length: Duration,
    /// The pauses between what a caller says, ms.
    pub(crate) pause: (u64, u64),
    /// The pauses between what else it does, ms.
    pub(crate) acts: (u64, u64),
    /// It says at least so often that it is there.
    pub(crate) keepalive: Option<Duration>,
    /// A call without a message ends after so long.
    pub(crate) idle: Option<Duration>,
    /// A client's credential is good for so long.
    pub(crate) credential: Option<Duration>,
    /// A session's life; none: drawn.
    pub(crate) cap: Option<Duration>,
    /// A client secret's life; none: sessions are opened with a key.
    pub(crate) secret: Option<Duration>,
    /// What may break, and how many times.
    pub(crate) kinds: &'static [Kind],
    pub(crate) faults: Range<usize>,
}

impl Config {
    /// Calls of five minutes, and everything may break.
    pub(crate) fn stormy(seed: u64) -> Self {
        Self {
            seed,
            calls: 1 + usize::from(seed.is_multiple_of(8)),
            length: Duration::from_secs(300),
            pause: (2_000, 24_000),
            acts: (3_000, 15_000),
            keepalive: None,
            idle: None,
            credential: None,
            cap: None,
            secret: None,
            kinds: &faults::KINDS,
            faults: 2..9,
        }
    }
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
    Keepalive,
    Renewed,
    /// The account has room for a reply.
    Granted(u64),
    /// There is little left of it, or much.
    Scarce(bool),
    Tool(String),
    /// The relay has run a tool.
    Ran(String),
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
/// What came of a run.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) histories: Vec<History>,
    /// Faults that were meant to be and fired, by kind; and those whose call was over before.
    pub(crate) fired: BTreeMap<Kind, u64>,
    pub(crate) never: Vec<String>,
    pub(crate) turns: u64,
    /// What the service has seen and done.
    pub(crate) truth: SimStats,
    /// Client secrets that were made.
    pub(crate) minted: u64,
}

pub(crate) struct World {
    config: Config,
    now: At,
    base: Instant,
    heap: BinaryHeap<Reverse<Queued>>,
    order: u64,
    calls: Vec<Call>,
    service: Arc<Service>,
    purse: Option<Purse>,
    dialled: u64,
    turns: u64,
}

impl World {
    pub(crate) fn new(config: Config) -> Self {
        let mut rng = StdRng::seed_from_u64(config.seed);
        let drawn = Duration::from_secs(rng.random_range(45..400));
        let cap = config.cap.unwrap_or(drawn);
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
            purse: config.secret.map(Purse::new),
            dialled: 0,
            turns: 0,
            config,
        };
        for call in 0..world.calls.len() {
            world.later(call, 150 * MS, Ev::Dialled { fails: false });
            world.later(call, 2 * SECOND, Ev::Speak);
            world.later(call, 20 * SECOND, Ev::Act);
            if let Some(every) = world.config.keepalive {
                world.later(call, every, Ev::Keepalive);
            }
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
            Ev::Keepalive => self.keepalive(call),
            Ev::Renewed => self.input(call, Input::Renewed(self.config.credential)),
            Ev::Granted(number) => self.input(call, Input::Turn { number, word: Word::Granted }),
            Ev::Scarce(scarce) => self.input(call, Input::Scarce(scarce)),
            Ev::Tool(call_id) => {
                self.client_says(call, Up::Text(ClientMsg::ToolResult { call_id, output: "42".into() }));
            }
            Ev::Ran(call_id) => self.input(call, Input::ToolDone { call_id, output: "42".into() }),
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
        let truth = self.service.stats();
        Outcome {
            histories,
            fired,
            never,
            turns: self.turns,
            truth,
            minted: self.purse.map_or(0, |purse| purse.minted()),
        }
    }
}

fn hash(payload: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    payload.hash(&mut hasher);
    hasher.finish()
}
