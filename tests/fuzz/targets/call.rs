//! The call core: both sides say what they like, when they like.
//!
//! A script, one thing a line. The first says whose conversation it is and how (`owner manual fast never`, `pass force`);
//! then, with numbers in ms: `c JSON` and `s JSON` what the client and the service say, `a N` the client's audio, `w N` time
//! with every tick when it is due, `W N` time without, and the moments that [`Rig::moment`] knows by name. The socket's side is
//! honest: a session comes up only where one was asked for, and nobody speaks who is not there.
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use bytes::Bytes;
use serde_json::Value;
use voxrelay::{
    audio::Format,
    call::{
        At,
        core::{Core, Input, Life, Output, Plan, Resume},
        end::End,
        policy::Policy,
        tools::OwnTool,
    },
    client::{
        openai::Said,
        thin::{self, Text},
        wire::{AudioFormats, ServerMsg},
    },
    config::{AgentConfig, PolicyConfig, Rule},
    upstream::{Command, Event, UpstreamError, ga},
};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
/// What an agent has fixed.
const FIXED: &str = "Only what the agent says.";
/// Ticks at one moment; more are an endless loop.
const AT_ONCE: usize = 1_000;
/// Longest step of time, ms: the longest call and more.
const LONGEST_STEP: u64 = 5_000_000;

/// A call of any script.
pub(super) fn call(bytes: &[u8]) {
    let mut lines = bytes.split(|b| *b == b'\n');
    let mode = String::from_utf8_lossy(lines.next().unwrap_or_default()).into_owned();
    let mut rig = Rig::new(|word| mode.contains(word));
    for line in lines.take(400) {
        rig.line(line);
    }
    rig.ends();
}

/// A call with a clock of its own, and what is known of it outside.
struct Rig {
    core: Core,
    now: At,
    owner: bool,
    forced: bool,
    room: bool,
    /// The client is there, and answers pings.
    connected: bool,
    pongs: bool,
    /// A session is being opened; there is one; one is being opened beside it, or is there.
    dials: bool,
    up: bool,
    dials_next: bool,
    ended: bool,
    began: BTreeSet<String>,
    over: BTreeSet<String>,
    /// Tools that the relay runs itself.
    runs: BTreeSet<String>,
    /// Reply audio of the service by item, bytes.
    audio: BTreeMap<String, usize>,
}

impl Rig {
    fn new(says: impl Fn(&str) -> bool) -> Self {
        let life = Life {
            silence: None,
            call: "call_1".into(),
            max: 3_600 * SECOND,
            idle: says("idle").then_some(60 * SECOND),
            stall: 10 * SECOND,
            credential: says("token").then_some(90 * SECOND),
        };
        let resume = (!says("never")).then(|| Resume { token: "token".into(), window: 30 * SECOND });
        let (owner, forced) = (!says("pass"), says("force"));
        let core = if owner {
            Core::owner(life, plan(&says), resume)
        } else {
            let mut agent = AgentConfig { instructions: FIXED.to_owned(), ..AgentConfig::default() };
            if forced {
                agent.policy = PolicyConfig { instructions: Rule::Force, tools: Rule::Force, ..agent.policy };
            }
            let policy = Policy::new(&agent, "real-model", PolicyConfig::default());
            Core::pass_through(life, policy, says("writes"), !says("joined"), resume)
        };
        let mut rig = Self {
            core,
            now: At::ZERO,
            owner,
            forced,
            room: true,
            connected: true,
            pongs: true,
            dials: true,
            up: false,
            dials_next: false,
            ended: false,
            began: BTreeSet::new(),
            over: BTreeSet::new(),
            runs: BTreeSet::new(),
            audio: BTreeMap::new(),
        };
        rig.drain();
        rig
    }

    fn line(&mut self, line: &[u8]) {
        let (word, rest) = first_word(line);
        let number = std::str::from_utf8(rest).ok().and_then(|text| text.trim().parse::<u64>().ok()).unwrap_or(0);
        match word {
            b"c" if self.connected => self.client(rest),
            b"s" if self.up => self.service(rest),
            b"a" if self.connected => self.speak(number.min(2_000)),
            b"b" if self.connected && !self.owner => self.input(Input::SaidAudio(&Bytes::copy_from_slice(rest))),
            b"w" => self.pass(Duration::from_millis(number.min(LONGEST_STEP))),
            b"W" => {
                self.now += Duration::from_millis(number.min(LONGEST_STEP)); // a driver that was held up
                self.input(Input::Tick);
            }
            _ => self.moment(word, number),
        }
    }

    fn moment(&mut self, word: &[u8], number: u64) {
        let lives = (number > 0).then(|| Duration::from_secs(number.min(86_400)));
        let lost = || End::upstream(&UpstreamError::Broken("reset".into()));
        match word {
            b"up" if self.dials => {
                (self.dials, self.up) = (false, true);
                self.input(Input::SessionUp(lives));
            }
            b"next" if self.dials_next => {
                self.dials_next = false;
                self.input(Input::NextSession(Ok(lives)));
            }
            b"nonext" if self.dials_next => {
                self.dials_next = false;
                self.input(Input::NextSession(Err(())));
            }
            b"gone" if self.up || self.dials => {
                (self.up, self.dials) = (false, false);
                self.input(Input::ServiceGone(lost(), number == 0));
            }
            b"lost" if self.connected => self.input(Input::ClientGone(End::ClientLost)),
            b"bye" if self.connected => self.input(Input::ClientGone(End::Asked)),
            b"back" => {
                self.connected = true; // also one that takes the place of another
                self.input(Input::ClientBack { late: Duration::from_millis(number.min(60_000)), credential: lives });
            }
            b"flushed" if self.owner && self.connected => self.input(Input::Flushed(&[3; 96])),
            b"key" if self.owner && self.connected => self.input(Input::Key(if number == 0 { '#' } else { '7' })),
            b"hold" if self.owner => self.input(Input::Hold(Bytes::from(vec![4; 9_600]))),
            b"noise" if self.owner && self.connected => self.input(Input::InvalidAudio("no packet".into())),
            b"ran" if self.owner => {
                if let Some(call_id) = self.runs.pop_first() {
                    self.input(Input::ToolDone { call_id, output: "done".into() });
                }
            }
            b"renewed" => self.input(Input::Renewed(lives)),
            b"refused" => self.input(Input::NotRenewed),
            b"pong" => self.input(Input::ClientPong),
            b"spong" if self.up => self.input(Input::ServicePong),
            b"kept" if !self.connected => self.input(Input::TooMuchKept(number > 0)),
            b"rotate" => self.input(Input::Rotate),
            b"stay" => self.input(Input::Stay),
            b"drain" => self.input(Input::Drain(Duration::from_millis(number.min(3_600_000)))),
            b"silent" => self.pongs = false,
            b"full" => self.room = false,
            b"room" => self.room = true,
            b"has" => self.core.client_has_all(number == 0),
            b"shrink" => self.core.shrink(),
            b"save" => self.save(),
            _ => {}
        }
    }

    fn client(&mut self, text: &[u8]) {
        if !self.owner {
            return self.input(Input::Said(Said::read(Bytes::copy_from_slice(text))));
        }
        self.input(match thin::read(text) {
            Text::Message(message) => Input::Message(message),
            Text::Unknown => Input::Ignored,
            Text::Invalid { field, message } => Input::Invalid { field, message },
        });
    }

    fn service(&mut self, text: &[u8]) {
        if !self.owner {
            return self.input(Input::Heard(ga::glance(text), Bytes::copy_from_slice(text)));
        }
        let event = ga::decode(text);
        if is_nameless(&event) {
            return;
        }
        if let Event::Audio { item, audio, .. } = &event {
            *self.audio.entry(item.clone()).or_default() += audio.len();
        }
        self.input(Input::Service(event));
    }

    fn speak(&mut self, length: u64) {
        for _ in 0..length / 20 {
            if self.owner && self.connected {
                self.input(Input::Audio { length: 20 * MS, upstream: &[1; 960] });
                self.pass(20 * MS);
            }
        }
    }

    fn input(&mut self, input: Input<'_>) {
        self.core.handle(self.now, input);
        self.drain();
    }

    fn drain(&mut self) {
        let mut said = 0;
        while let Some(output) = self.core.poll(self.now, self.room) {
            said += 1;
            assert!(!self.ended, "something behind the end: {output:?}");
            assert!(said < 200_000, "it never stops: {output:?}");
            self.look(output);
        }
    }

    fn look(&mut self, output: Output) {
        match output {
            Output::Audio { frame, first } => {
                assert_eq!(Format::PCM_24K.duration(frame.len()), 20 * MS);
                if first {
                    self.core.handle(self.now, Input::FirstAudioLeft);
                }
            }
            Output::Relay { first: true, .. } => self.core.handle(self.now, Input::FirstAudioLeft),
            Output::Forward(text) => self.ruled(&text),
            Output::Service { command: Command::Truncate { item, audio_end_ms, .. }, .. } => {
                let had = Format::PCM_24K.duration(self.audio.get(&item).copied().unwrap_or(0)).as_millis();
                assert!(u128::from(audio_end_ms) <= had, "{item} cut at {audio_end_ms} of {had} ms");
            }
            Output::Service { .. } => assert!(self.up, "nobody is there to be told"),
            Output::Send(message) | Output::SendNow(message) => self.told(&message),
            Output::RunTool { call_id, .. } => _ = self.runs.insert(call_id),
            Output::DropTool { call_id } => assert!(self.runs.remove(&call_id), "{call_id} does not run"),
            Output::Dial => (self.dials, self.up) = (true, false),
            Output::DialNext => self.dials_next = true,
            Output::Switch => (self.up, self.dials) = (true, false),
            Output::LeaveService => (self.up, self.dials, self.dials_next) = (false, false, false),
            Output::HangUp { .. } => self.connected = false,
            Output::PingClient if self.pongs => self.core.handle(self.now, Input::ClientPong),
            Output::End(_) => self.ended = true,
            _ => {}
        }
    }

    fn told(&mut self, message: &ServerMsg) {
        match message {
            ServerMsg::ReplyStarted { reply } => assert!(self.began.insert(reply.clone()), "{reply} begins twice"),
            ServerMsg::ReplyEnded { reply, audio_ms, heard_ms, .. } => {
                assert!(self.began.contains(reply), "{reply} ends before it begins");
                assert!(self.over.insert(reply.clone()), "{reply} ends twice");
                assert!(heard_ms <= audio_ms, "{reply}: heard {heard_ms} of {audio_ms} ms");
            }
            _ => {}
        }
    }

    /// What is fixed is fixed, for whatever reader.
    fn ruled(&self, text: &[u8]) {
        // The reply that runs is called off at the end of a call, also where the end was that of its session.
        assert!(self.up || text == br#"{"type":"response.cancel"}"#, "nobody is there to be told");
        let Ok(event) = serde_json::from_slice::<Value>(text) else { return };
        let part = match event["type"].as_str() {
            Some("session.update") => &event["session"],
            Some("response.create") => &event["response"],
            Some("conversation.item.create") if self.forced => {
                return assert_ne!(event["item"]["role"], "system", "{event}");
            }
            _ => return,
        };
        if let (true, Some(instructions)) = (self.forced, part.get("instructions")) {
            assert_eq!(instructions, FIXED, "{event}");
        }
    }

    /// Lets time pass, waking the core exactly when it asked to be.
    fn pass(&mut self, length: Duration) {
        let end = self.now + length;
        let mut at_once = 0;
        while let Some(at) = self.core.deadline(self.room).filter(|at| *at <= end) {
            at_once = if at > self.now { 0 } else { at_once + 1 };
            assert!(at_once < AT_ONCE, "at {:?} it wants to be woken for ever", self.now);
            self.now = self.now.max(at);
            self.input(Input::Tick);
        }
        self.now = end;
    }

    /// Written down and read again it is the same call.
    fn save(&mut self) {
        let written = serde_json::to_value(&self.core).expect("a call can be written down");
        self.core = serde_json::from_value(written.clone()).expect("and read again");
        assert_eq!(serde_json::to_value(&self.core).unwrap(), written);
    }

    /// A call has an end, and nothing comes behind it.
    fn ends(&mut self) {
        self.pass(Duration::from_millis(LONGEST_STEP));
        assert!(self.ended, "the longest call is over");
        assert!(self.core.deadline(true).is_none());
        for input in [Input::Tick, Input::SessionUp(None), Input::Rotate, Input::ClientGone(End::Asked)] {
            self.core.handle(self.now, input);
            assert_eq!(self.core.poll(self.now, true), None);
        }
        let _ = self.core.uncounted();
    }
}

fn plan(says: impl Fn(&str) -> bool) -> Plan {
    Plan {
        agent: "default".into(),
        audio: AudioFormats { input: Format::PCM_24K, output: Format::PCM_24K },
        upstream_input: Format::PCM_24K,
        upstream_output: Format::PCM_24K,
        auto_turns: !says("manual"),
        silence: 500 * MS,
        ends_speech: 500 * MS,
        greeting: says("greets").then(|| "Hello.".to_owned()),
        chunk: 100 * MS,
        guard: None,
        prompt: None,
        keypad: 1_500 * MS,
        lead: (!says("fast")).then_some(400 * MS),
        batch: 100 * MS,
        tool_timeout: 30 * SECOND,
        line_tools: Default::default(),
        last_words: Duration::ZERO,
        own_tools: own_tools(&says),
        max_backlog: 20 * SECOND,
        max_message_bytes: 262_144,
        transcribed: !says("unwritten"),
        history_tokens: 1_000,
        govern: voxrelay::config::Govern::Always,
        base_tokens: 0,
        reply_tokens: 0,
    }
}

fn own_tools(says: impl Fn(&str) -> bool) -> BTreeMap<String, OwnTool> {
    let (timeout, filler_after) = (5 * SECOND, 500 * MS);
    let (idempotent, yields, filler) = (says("idempotent"), says("yields"), Some("One moment.".into()));
    let own = OwnTool { timeout, idempotent, filler, filler_after, yields };
    says("runs").then(|| ("look_up".to_owned(), own)).into_iter().collect()
}

/// Audio and words of an item without an id: the mirror cannot keep them yet, and says so by a panic.
fn is_nameless(event: &Event) -> bool {
    matches!(event, Event::Audio { item, .. } | Event::ReplyText { item, .. } if item.is_empty())
}

/// The first word of a line, and what stands behind it.
fn first_word(line: &[u8]) -> (&[u8], &[u8]) {
    match line.iter().position(|b| *b == b' ') {
        Some(found) => (&line[..found], &line[found + 1..]),
        None => (line, &[]),
    }
}
