//! A caller and a service of few words, who keep nothing: what grows while they talk is the relay's.
//!
//! Drives the real call core, outbox and wire format in virtual time, a turn in some tens of microseconds. Turns differ: words
//! and typed ones, tools, interruptions, telephones that cut off the end of speech, lost sockets, lost sessions and others in
//! their place. Judges nothing; the bench `heap` and the test of the same name look at the heap meanwhile.
use std::{sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use tokio::time::Instant;
use voxrelay::{
    audio::Format,
    call::{
        core::{Core, Input, Life, Output, Plan, Resume},
        end::End,
    },
    client::{
        thin,
        wire::{AudioFormats, ClientMsg, ServerMsg},
    },
    config::{AgentConfig, Govern},
    net::outbox::Outbox,
    upstream::{Command, SessionSetup, UpstreamError, ga},
};

const MS: Duration = Duration::from_millis(1);
const FORMAT: Format = Format::MULAW;
/// Audio in one message of either side.
const FRAME: Duration = Duration::from_millis(20);
/// Messages of a spoken turn, and of an answer.
const FRAMES: usize = 8;
const DELTAS: usize = 3;
/// A call that does not come to rest within this has lost its way.
const PATIENCE: Duration = Duration::from_secs(60);
const SOCKET_ROOM: usize = 4 << 20;

/// How a call is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Way {
    /// The service finds the turns.
    pub(crate) auto: bool,
    /// Somebody writes down what the caller says.
    pub(crate) transcribed: bool,
}

/// The live heap may grow by so much once it is warm, bytes.
pub(crate) const GROWTH: i64 = 64 << 10;
/// Turns of a call, where many follow one another.
const SHORT: u64 = 20;

/// What became of the heap in one kind of calls.
#[derive(Debug)]
pub(crate) struct Soaked {
    pub(crate) what: &'static str,
    pub(crate) turns: u64,
    /// The most that lived in the first turns that were warm, bytes.
    pub(crate) warm: i64,
    /// How much more lived in as many of the last ones.
    pub(crate) growth: i64,
    pub(crate) rows: u64,
    pub(crate) rotations: u64,
    pub(crate) sessions_lost: u64,
    pub(crate) tools: u64,
}

impl std::fmt::Display for Soaked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { what, turns, warm, growth, rows, rotations, sessions_lost, tools } = self;
        write!(
            f,
            "{what}: {turns} turns, {rows} rows, {tools} tools, {rotations} rotations, {sessions_lost} sessions lost; {warm} bytes warm, {growth:+} in the end"
        )
    }
}

/// So many turns: in two calls that do not end, and in many short ones.
pub(crate) fn soak(turns: u64) -> [Soaked; 3] {
    let by_hand = Way { auto: false, transcribed: false };
    let by_ear = Way { auto: true, transcribed: true };
    [
        endless("a call by ear, written down", by_ear, turns * 2 / 5),
        endless("a call by hand, not written down", by_hand, turns * 2 / 5),
        many("calls of 20 turns", [by_hand, by_ear], turns / 5),
    ]
}

/// The live heap, turn by turn. The conversation that is kept swings between its bound and twice that, so peaks are
/// compared: of a fifth of all turns after the first fifth, and of the last fifth.
#[derive(Default)]
struct Gauge {
    live: i64,
    warm: i64,
    last: i64,
}

impl Gauge {
    fn measure(&mut self, n: u64, of: u64, work: impl FnOnce()) {
        self.live += allocation_counter::measure(work).bytes_current;
        match n * 5 / of {
            1 => self.warm = self.warm.max(self.live),
            4 => self.last = self.last.max(self.live),
            _ => {}
        }
    }
}

fn endless(what: &'static str, way: Way, turns: u64) -> Soaked {
    let mut gauge = Gauge::default();
    let mut call = None;
    for n in 0..turns {
        gauge.measure(n, turns, || call.get_or_insert_with(|| Call::begin(way)).turn());
    }
    let call = call.expect("there were turns");
    let Call { rows, rotations, sessions_lost, tools, .. } = call;
    call.end();
    let growth = gauge.last - gauge.warm;
    Soaked { what, turns, warm: gauge.warm, growth, rows, rotations, sessions_lost, tools }
}

fn many(what: &'static str, ways: [Way; 2], turns: u64) -> Soaked {
    let mut gauge = Gauge::default();
    let (mut rows, mut tools, calls) = (0, 0, turns / SHORT);
    for n in 0..calls {
        gauge.measure(n, calls, || {
            let mut call = Call::begin(if n.is_multiple_of(2) { ways[0] } else { ways[1] });
            (0..SHORT).for_each(|_| call.turn());
            rows += call.rows;
            tools += call.tools;
            call.end();
        });
    }
    let growth = gauge.last - gauge.warm;
    Soaked { what, turns, warm: gauge.warm, growth, rows, rotations: 0, sessions_lost: 0, tools }
}

/// One call, as long as one likes.
pub(crate) struct Call {
    way: Way,
    core: Core,
    outbox: Outbox,
    setup: SessionSetup,
    base: Instant,
    now: Duration,
    frame: Vec<u8>,
    delta: String,
    turns: u64,
    items: u64,
    begun: u64,
    /// The running session's audio so far, bytes.
    heard: usize,
    /// What the service owes: commits to confirm, replies to give.
    commits: u32,
    asked: u32,
    /// What the relay wants of the line.
    wants: Option<Wants>,
    /// A tool that the model waits for.
    tool: Option<String>,
    /// Rows of replies, estimates too.
    pub(crate) rows: u64,
    pub(crate) rotations: u64,
    pub(crate) sessions_lost: u64,
    pub(crate) tools: u64,
    over: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Wants {
    Session,
    NextSession,
}

impl Call {
    pub(crate) fn begin(way: Way) -> Self {
        let plan = Plan {
            agent: "default".into(),
            audio: AudioFormats { input: FORMAT, output: FORMAT },
            upstream_input: FORMAT,
            upstream_output: FORMAT,
            auto_turns: way.auto,
            silence: 500 * MS,
            ends_speech: 500 * MS,
            greeting: None,
            chunk: 100 * MS,
            guard: None,
            prompt: None,
            keypad: Duration::from_millis(1_500),
            lead: Some(400 * MS),
            batch: 100 * MS,
            tool_timeout: Duration::from_secs(30),
            line_tools: Default::default(),
            last_words: Duration::ZERO,
            own_tools: std::collections::BTreeMap::new(),
            max_backlog: Duration::from_secs(300),
            max_message_bytes: 262_144,
            transcribed: way.transcribed,
            history_tokens: 4_000,
            govern: Govern::Never,
            base_tokens: 0,
            reply_tokens: 0,
        };
        let life = Life {
            call: "call_1".into(),
            max: Duration::MAX / 4,
            idle: None,
            silence: None,
            stall: Duration::from_secs(10),
            credential: None,
        };
        let resume = Resume { token: "1".into(), window: Duration::from_secs(30) };
        let setup = SessionSetup {
            agent: Arc::new(AgentConfig::default()),
            input: FORMAT,
            output: FORMAT,
            auto_turns: way.auto,
        };
        let frame = vec![0x20; FORMAT.bytes(FRAME)];
        let mut call = Self {
            way,
            core: Core::owner(life, plan, Some(resume)),
            outbox: Outbox::with_journal(),
            setup,
            base: Instant::now(),
            now: Duration::ZERO,
            delta: STANDARD.encode(vec![0x30; FORMAT.bytes(FRAME * 2)]),
            frame,
            turns: 0,
            items: 0,
            begun: 0,
            heard: 0,
            commits: 0,
            asked: 0,
            wants: None,
            tool: None,
            rows: 0,
            rotations: 0,
            sessions_lost: 0,
            tools: 0,
            over: false,
        };
        call.input(Input::SessionUp(None));
        call
    }

    /// One more turn, to its end.
    pub(crate) fn turn(&mut self) {
        self.turns += 1;
        let n = self.turns;
        let (tool, interrupted) = (n % 5 == 2, n % 7 == 4);
        match n % 10 {
            3 => self.input(Input::Message(ClientMsg::Text { text: format!("and what is {n}?") })),
            _ => self.speaks(n % 6 == 1),
        }
        if n % 10 != 3 && self.way.auto {
            self.replies(tool, interrupted);
        } else {
            self.answers(tool, interrupted);
        }
        if let Some(call_id) = self.tool.take() {
            self.input(Input::Message(ClientMsg::ToolResult { call_id, output: r#"{"found":42}"#.into() }));
            self.answers(false, false);
        }
        self.rest();
        if n.is_multiple_of(3) {
            let got = self.outbox.said();
            self.input(Input::Message(ClientMsg::Ack { got }));
        }
        if n % 50 == 20 {
            self.away();
        }
        match n % 400 {
            150 => self.input(Input::Rotate),
            350 => {
                self.sessions_lost += 1;
                let error = UpstreamError::Broken("reset".into());
                self.input(Input::ServiceGone(End::upstream(&error), error.another_may_do()));
            }
            _ => {}
        }
        self.rest();
    }

    /// The caller hangs up.
    pub(crate) fn end(mut self) {
        self.input(Input::Message(ClientMsg::Close));
        assert!(self.over, "a call that was asked to end has ended");
    }

    // The caller.

    /// A few frames; `cut`: and then the telephone sends nothing more.
    fn speaks(&mut self, cut: bool) {
        let frame = std::mem::take(&mut self.frame);
        for n in 0..FRAMES {
            self.input(Input::Audio { length: FRAME, upstream: &frame });
            self.pass(FRAME);
            if n == FRAMES / 2 && self.way.auto {
                let at = self.heard_ms();
                self.says(&format!(
                    r#"{{"type":"input_audio_buffer.speech_started","audio_start_ms":{at},"item_id":"i"}}"#
                ));
            }
        }
        self.frame = frame;
        if !self.way.auto {
            self.input(Input::Flushed(&[]));
            return self.input(Input::Message(ClientMsg::Commit));
        }
        if cut {
            self.pass(Duration::from_secs(1));
        }
        let (at, item) = (self.heard_ms(), self.item());
        self.says(&format!(r#"{{"type":"input_audio_buffer.speech_stopped","audio_end_ms":{at},"item_id":"{item}"}}"#));
        self.says(&format!(r#"{{"type":"input_audio_buffer.committed","item_id":"{item}"}}"#));
        self.words(&item);
    }

    /// The client's socket is gone for two seconds.
    fn away(&mut self) {
        self.input(Input::ClientGone(End::ClientLost));
        self.pass(Duration::from_secs(2));
        let got = self.outbox.said().saturating_sub(2);
        let late = self.outbox.say_again(got).unwrap_or(0);
        self.outbox.uncounted(thin::write(&ServerMsg::Resumed { call: "call_1".into(), resume: None, got: 0 }));
        let late = FRAME * u32::try_from(late).unwrap_or(u32::MAX);
        self.input(Input::ClientBack { late, credential: None });
    }

    // The service.

    fn item(&mut self) -> String {
        self.items += 1;
        format!("item_{:021}", self.items)
    }

    fn heard_ms(&self) -> u128 {
        FORMAT.duration(self.heard).as_millis()
    }

    fn words(&mut self, item: &str) {
        if self.way.transcribed {
            let n = self.turns;
            self.says(&format!(
                r#"{{"type":"conversation.item.input_audio_transcription.completed","item_id":"{item}","content_index":0,"transcript":"This is what I say in turn {n}."}}"#
            ));
        }
    }

    /// Confirms and answers whatever it is asked for, until it owes nothing.
    fn answers(&mut self, tool: bool, interrupted: bool) {
        let (mut tool, mut interrupted) = (tool, interrupted);
        while self.commits + self.asked > 0 {
            if self.commits > 0 {
                self.commits -= 1;
                let item = self.item();
                self.says(&format!(r#"{{"type":"input_audio_buffer.committed","item_id":"{item}"}}"#));
                self.words(&item);
            } else {
                self.asked -= 1;
                self.replies(std::mem::take(&mut tool), std::mem::take(&mut interrupted));
            }
        }
    }

    fn replies(&mut self, tool: bool, interrupted: bool) {
        self.begun += 1;
        let (response, item, delta) = (format!("resp_{:021}", self.begun), self.item(), self.delta.clone());
        self.says(&format!(
            r#"{{"type":"response.created","response":{{"id":"{response}","conversation_id":"conv"}}}}"#
        ));
        for _ in 0..DELTAS {
            self.says(&format!(r#"{{"type":"response.output_audio_transcript.delta","response_id":"{response}","item_id":"{item}","output_index":0,"content_index":0,"delta":"some words "}}"#));
            self.says(&format!(r#"{{"type":"response.output_audio.delta","response_id":"{response}","item_id":"{item}","output_index":0,"content_index":0,"delta":"{delta}"}}"#));
            self.pass(FRAME);
        }
        let status = if interrupted {
            self.input(Input::Message(ClientMsg::Interrupt { reply: None, played_ms: Some(20) }));
            "cancelled"
        } else {
            self.says(&format!(r#"{{"type":"response.output_audio_transcript.done","response_id":"{response}","item_id":"{item}","output_index":0,"content_index":0,"transcript":"some words some words some words"}}"#));
            "completed"
        };
        if tool {
            let call_id = format!("call_{:016}", self.begun);
            self.says(&format!(r#"{{"type":"response.function_call_arguments.done","response_id":"{response}","item_id":"{item}t","output_index":1,"call_id":"{call_id}","name":"look","arguments":"{{}}"}}"#));
            (self.tool, self.tools) = (Some(call_id), self.tools + 1);
        }
        self.says(&format!(r#"{{"type":"response.done","response":{{"id":"{response}","conversation_id":"conv","status":"{status}","usage":{{"total_tokens":50,"input_tokens":30,"output_tokens":20}}}}}}"#));
    }

    fn says(&mut self, text: &str) {
        self.input(Input::Service(ga::decode(text.as_bytes())));
    }

    // The relay.

    /// Lets time pass, and what is due with it.
    fn pass(&mut self, length: Duration) {
        let until = self.now + length;
        while let Some(at) = self.core.deadline(true).filter(|at| *at <= until) {
            self.now = self.now.max(at);
            self.input(Input::Tick);
        }
        self.now = until;
    }

    /// Until everything is said and heard.
    fn rest(&mut self) {
        let patience = self.now + PATIENCE;
        loop {
            self.answers(false, false);
            match self.wants.take() {
                Some(Wants::Session) => self.session(Input::SessionUp(None)),
                Some(Wants::NextSession) => self.input(Input::NextSession(Ok(None))),
                None if self.core.is_quiet() && self.commits + self.asked == 0 => break,
                None => self.pass(FRAME),
            }
            assert!(self.now < patience, "turn {} of {:?} does not come to rest", self.turns, self.way);
        }
        self.pass(500 * MS);
        self.core.shrink();
    }

    fn session(&mut self, up: Input<'_>) {
        (self.heard, self.commits, self.asked) = (0, 0, 0);
        self.input(up);
    }

    fn input(&mut self, input: Input<'_>) {
        self.core.client_has_all(self.outbox.is_empty());
        self.core.handle(self.now, input);
        while let Some(output) = self.core.poll(self.now, self.outbox.bytes() < SOCKET_ROOM) {
            self.output(output);
        }
        while self.core.is_connected()
            && let Some(next) = self.outbox.pop()
        {
            self.outbox.taken(self.base + self.now, next.kind, &next.payload, next.counts());
        }
    }

    fn output(&mut self, output: Output) {
        match output {
            Output::Send(message @ ServerMsg::Ready { .. }) => self.outbox.uncounted(thin::write(&message)),
            Output::Send(message) => self.outbox.text(thin::write(&message)),
            Output::SendNow(message) => self.outbox.urgent(thin::write(&message)),
            Output::Audio { frame, .. } => self.outbox.binary(frame),
            Output::DropAudio => self.outbox.drop_binary(),
            Output::Received(got) => self.outbox.received(got),
            Output::Service { number, command } => {
                std::hint::black_box(ga::encode(&command, &self.setup, number));
                match command {
                    Command::Append(audio) => self.heard += audio.len(),
                    Command::Commit => self.commits += 1,
                    Command::CreateReply { .. } => self.asked += 1,
                    _ => {}
                }
            }
            Output::Dial => self.wants = Some(Wants::Session),
            Output::DialNext => self.wants = Some(Wants::NextSession),
            Output::Switch => {
                self.rotations += 1;
                (self.heard, self.commits, self.asked) = (0, 0, 0);
            }
            Output::Book(row) => self.rows += u64::from(row.kind == voxrelay::ledger::Kind::Reply),
            Output::PingClient => {
                self.outbox.ping();
                self.core.handle(self.now, Input::ClientPong);
            }
            Output::PingService => self.core.handle(self.now, Input::ServicePong),
            Output::End(End::Asked) => self.over = true,
            Output::End(end) => panic!("turn {} of {:?}: {end}", self.turns, self.way),
            Output::Turn(_) | Output::Told(_) | Output::Fact(_) | Output::AudioTail | Output::HangUp { .. } => {}
            _ => panic!("{output:?}"),
        }
    }
}
