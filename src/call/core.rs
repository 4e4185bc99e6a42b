//! The call core: messages, events and moments in; what to say to either side out.
//!
//! Owns no socket, task or clock, and sees bytes plus a duration, never samples. Time is the time since the call began, so
//! that a call can be written down and continued. One part, one file: [`client`] what the client says, [`service`] what
//! the service says, [`clock`] what time brings, [`away`] a client that is gone for a while, [`continuity`] one session after
//! another, [`heir`] a process that follows this one, [`govern`] and [`spend`] what limits and budgets leave, [`guard`] speech that may be
//! none, [`quiet`] a caller who says nothing, [`own`] and [`mod@line`] tools that the relay runs itself, and [`pass`] both sides
//! where the client owns the conversation.
mod asked;
mod away;
mod client;
mod clock;
pub mod continuity;
mod govern;
mod guard;
mod heir;
mod line;
mod own;
mod pass;
mod quiet;
mod service;
mod spend;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use self::{
    away::Away, continuity::Sessions, govern::Governing, guard::Suspicion, line::Errands, pass::Pass, quiet::Quiet,
    spend::Leaving,
};
pub use self::{
    govern::{Delay, Size, TurnAct},
    guard::Guard,
    line::{LineAct, LineTool},
    quiet::Prompt,
};
use super::{
    At,
    answers::{Answers, Told},
    books::Booked,
    end::End,
    filler::Fillers,
    intake::Intake,
    keypad::Keypad,
    mirror::{Cut, Mirror},
    playout::{Over, Playout, Step, Unheard},
    policy::Policy,
    reply::status_name,
    ring::Ring,
    slot::{Slot, Want},
    tools::{OwnTool, Tools},
    turn::Turn,
    turnstile::{Means, Word},
};
use crate::{
    audio::Format,
    client::{
        openai::{self, Said},
        wire::{AudioFormats, ClientMsg, ErrorBody, Limits, ReplyStatus, ServerMsg, Usage},
    },
    config::Govern,
    observe::fact::Fact,
    upstream::{Command, Event, History},
};

/// A call's own life, whoever owns its conversation.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Life {
    /// The call's id.
    pub call: String,
    /// Longest call.
    pub max: Duration,
    /// Longest time without a message; none: for ever.
    pub idle: Option<Duration>,
    /// Longest time in which neither side says anything, whatever audio comes; none: for ever.
    pub silence: Option<Duration>,
    /// A reply without an event for so long is stalled.
    pub stall: Duration,
    /// The client's credential is good for so long; none: as long as somebody else says.
    pub credential: Option<Duration>,
}

/// What was agreed at a door where the relay owns the conversation, and what the configuration allows.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plan {
    /// The agent's name.
    pub agent: String,
    /// What the client sends and gets.
    pub audio: AudioFormats,
    /// What goes upstream.
    pub upstream_input: Format,
    /// What comes from there.
    pub upstream_output: Format,
    /// The service finds the turns.
    pub auto_turns: bool,
    /// Silence that the service waits for before it calls speech ended.
    pub silence: Duration,
    /// Silence after which it certainly does.
    pub ends_speech: Duration,
    /// Said first.
    pub greeting: Option<String>,
    /// Audio gathered for one append.
    pub chunk: Duration,
    /// What speech must be to stop a reply; none: whatever the service takes for speech.
    pub guard: Option<Guard>,
    /// What is said to a caller who says nothing.
    pub prompt: Option<Prompt>,
    /// Keys are one number until nothing was pressed for so long.
    pub keypad: Duration,
    /// How far ahead of the loudspeaker to send; none: as fast as it comes.
    pub lead: Option<Duration>,
    /// How much to send at one go.
    pub batch: Duration,
    /// How long a client may take for a tool.
    pub tool_timeout: Duration,
    /// Tools that the relay runs itself, by their names.
    #[serde(default)]
    pub own_tools: BTreeMap<String, OwnTool>,
    /// Tools that are done with the line, by their names.
    #[serde(default)]
    pub line_tools: BTreeMap<String, LineTool>,
    /// How far the ear may be behind what is known to be heard: the agent leaves the line so much later.
    #[serde(default)]
    pub last_words: Duration,
    /// Longest backlog of reply audio.
    pub max_backlog: Duration,
    /// Largest client message, bytes.
    pub max_message_bytes: usize,
    /// The service writes down what the caller says.
    pub transcribed: bool,
    /// Tokens of the conversation that a new session is told.
    pub history_tokens: usize,
    /// Whether replies are asked for only when the account's quota allows it.
    pub govern: Govern,
    /// Tokens that a conversation begins with: instructions and tools.
    pub base_tokens: u64,
    /// Longest reply, tokens.
    pub reply_tokens: u64,
}

/// How a client may come back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resume {
    /// With this token; not to be written down with the call.
    #[serde(skip)]
    pub token: String,
    /// For so long.
    pub window: Duration,
}

impl Plan {
    /// Where the client owns the conversation, nothing was agreed.
    pub(super) fn none() -> Self {
        Self {
            agent: String::new(),
            audio: AudioFormats { input: Format::PCM_24K, output: Format::PCM_24K },
            upstream_input: Format::PCM_24K,
            upstream_output: Format::PCM_24K,
            auto_turns: false,
            silence: Duration::ZERO,
            ends_speech: Duration::ZERO,
            greeting: None,
            chunk: Duration::from_millis(100),
            guard: None,
            prompt: None,
            keypad: Duration::ZERO,
            lead: None,
            batch: Duration::from_millis(100),
            tool_timeout: Duration::ZERO,
            own_tools: BTreeMap::new(),
            line_tools: BTreeMap::new(),
            last_words: Duration::ZERO,
            max_backlog: Duration::ZERO,
            max_message_bytes: 0,
            transcribed: false,
            history_tokens: 0,
            govern: Govern::Always,
            base_tokens: 0,
            reply_tokens: 4_096,
        }
    }
}

/// What happened.
#[derive(Debug)]
pub enum Input<'a> {
    /// A binary message from the client.
    Audio {
        /// How long it plays.
        length: Duration,
        /// The same audio in the upstream format; may be shorter or longer by what a filter holds back.
        upstream: &'a [u8],
    },
    /// How the audio sounds that comes next; only where there is a guard.
    Sounds {
        /// How long it plays.
        length: Duration,
        /// It is as loud as a voice.
        loud: bool,
    },
    /// What the filter held back, in the upstream format: a turn ends.
    Flushed(&'a [u8]),
    /// A binary message that is not what was agreed.
    InvalidAudio(String),
    /// A text message.
    Message(ClientMsg),
    /// A text message that makes no sense.
    Invalid {
        /// The field that is wrong.
        field: Option<String>,
        /// What was found, and what is allowed.
        message: String,
    },
    /// A text message of a type that we do not know.
    Ignored,
    /// The caller pressed a key of a telephone.
    Key(char),
    /// What the line says of itself, for the model: an answering machine has picked up, and such.
    LineSays(&'a str),
    /// A word to a telephone and its answer take so long by now: so late are its marks, and what cuts a reply.
    RoundTrip(Duration),
    /// Pass-through: an event of the client.
    Said(Said),
    /// Pass-through: a binary message of the client.
    SaidAudio(&'a Bytes),
    /// The client's next credential was found good, for so long from now.
    Renewed(Option<Duration>),
    /// It was not.
    NotRenewed,
    /// The client answered a ping.
    ClientPong,
    /// The client is gone, or must go.
    ClientGone(End),
    /// It is back, on another socket; so long play the messages that it gets only now. Its credential is good for so long.
    ClientBack {
        /// Audio that it had not got.
        late: Duration,
        /// As for [`Self::Renewed`].
        credential: Option<Duration>,
    },
    /// The session is up, and will live for so long, as far as it says.
    SessionUp(Option<Duration>),
    /// The session that shall follow is up, or cannot be had.
    NextSession(Result<Option<Duration>, ()>),
    /// The call shall have another session, when it is a good moment.
    Rotate,
    /// The service said something.
    Service(Event),
    /// Pass-through: the service said something, in these words.
    Heard(Event, Bytes),
    /// The service answered a ping.
    ServicePong,
    /// There is no session, or no more; whether another one may help.
    ServiceGone(End, bool),
    /// The first audio of a reply has left our socket.
    FirstAudioLeft,
    /// More waits for a client that is away than is kept for it; so much that there is no hope.
    TooMuchKept(bool),
    /// This server goes away, so long from now.
    Drain(Duration),
    /// It stays, after all.
    Stay,
    /// Another process takes calls over from this one, or will not.
    Heir(bool),
    /// What the account says to a reply that shall be asked for.
    Turn {
        /// Names the wish.
        number: u64,
        /// What it says.
        word: Word,
    },
    /// What the caller hears while an answer waits, in the format that [`Output::Hold`] named.
    Hold(Bytes),
    /// Whether little is left of what the account may use.
    Scarce(bool),
    /// How the call's budgets stand.
    Means(Means),
    /// What came of [`Output::RunTool`].
    ToolDone {
        /// The tool call.
        call_id: String,
        /// For the model.
        output: String,
    },
    /// What is to be played for [`Output::Line`], in the format that it named.
    Plays {
        /// The tool call.
        call_id: String,
        /// The audio.
        audio: Bytes,
    },
    /// Another model answers from here on.
    ModelChanged {
        /// The model before; at the beginning, the tier that was asked for.
        from: String,
        /// The model.
        to: String,
        /// Why, in a word.
        reason: &'static str,
    },
    /// Time passed.
    Tick,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Output {
    /// Tell the client, behind what was told before.
    Send(ServerMsg),
    /// Tell the client, before audio that is queued.
    SendNow(ServerMsg),
    /// Reply audio: 20 ms in the upstream format.
    Audio {
        /// The audio.
        frame: Bytes,
        /// Say [`Input::FirstAudioLeft`] when it has left.
        first: bool,
    },
    /// Send what the filter holds back: the reply's audio is complete.
    AudioTail,
    /// Drop queued audio and forget what the filter holds back.
    DropAudio,
    /// Forget what the filter for the caller's audio holds back.
    DropInput,
    /// The answer waits: say [`Input::Hold`] if there is something to play meanwhile, in this format.
    Hold(Format),
    /// Run a tool, and say [`Input::ToolDone`].
    RunTool {
        /// The tool call.
        call_id: String,
        /// The tool.
        name: String,
        /// JSON in a string, as the model wrote it.
        arguments: String,
    },
    /// Nobody waits for what a tool gives any more.
    DropTool {
        /// The tool call.
        call_id: String,
    },
    /// Do something with the line.
    Line {
        /// The tool call.
        call_id: String,
        /// What.
        act: LineAct,
    },
    /// Tell the service.
    Service {
        /// Names the command.
        number: u64,
        /// What.
        command: Command,
    },
    /// Pass-through: tell the service in these words.
    Forward(Bytes),
    /// Pass-through: tell the client first, in words that are not counted.
    Greet(Bytes),
    /// Pass-through: tell the client in these words.
    Relay {
        /// The message.
        text: Bytes,
        /// Say [`Input::FirstAudioLeft`] when it has left.
        first: bool,
    },
    /// See whether this is a good credential for the call, and say [`Input::Renewed`] or [`Input::NotRenewed`].
    Renew(Credential),
    /// The client has all messages up to this number.
    Received(u64),
    /// Close the client's socket, and keep the call for it.
    HangUp {
        /// Why.
        why: End,
        /// What it is told before.
        word: Option<ServerMsg>,
    },
    /// Write the call down and give it to the process that follows: nothing more is decided here.
    HandOver,
    /// Open a session in place of the one that there is, or was.
    Dial,
    /// Open a session beside the running one.
    DialNext,
    /// Leave the running session for the one beside it.
    Switch,
    /// Leave every session.
    LeaveService,
    /// A reply was counted.
    Book(Booked),
    /// Tell the account.
    Turn(TurnAct),
    /// Tell whoever chooses where sessions are opened.
    Told(Told),
    /// Ping the client.
    PingClient,
    /// Ping the service.
    PingService,
    /// Note it.
    Fact(Fact),
    /// The call is over; the last output.
    End(End),
}

/// A credential on its way: not for any log, and not to be written down with the call.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct Credential(#[serde(skip)] pub String);

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credential(..)")
    }
}

/// What a command was about, for when it fails.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum About {
    Configure,
    Answers,
    Retell,
    Commit,
    Text,
    ToolOutput,
    Reply,
    Cancel,
    Truncate { item: String, content_index: u32, retried: bool },
    Delete,
    ClearInput,
}

/// Commands remembered for their errors; the service answers within a round trip.
const REMEMBERED: usize = 64;
/// A client hears of its credential's end so long before.
const EXPIRES_SOON: Duration = Duration::from_secs(60);
/// What a client writes is kept for a session that is not up yet, bytes; of its audio, what the ring keeps.
const EARLY_MAX: usize = 16 << 20;
/// Audio of turns that nobody writes down, which new sessions are told: so long at most.
const HISTORY_AUDIO: Duration = Duration::from_secs(60);

/// A call's decisions.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Core {
    life: Life,
    plan: Plan,
    /// Set where the client owns the conversation.
    pass: Option<Box<Pass>>,
    out: VecDeque<Output>,
    intake: Intake,
    turn: Turn,
    slot: Slot,
    playout: Playout,
    tools: Tools,
    /// What is said while they run.
    #[serde(default)]
    fillers: Fillers,
    errands: Errands,
    keypad: Keypad,
    suspicion: Suspicion,
    quiet: Quiet,
    /// What was said, for the next session.
    mirror: Mirror,
    /// What the caller's audio was, for the next session.
    ring: Ring,
    /// The position in it up to which the running session has it.
    given: u64,
    /// What it had when it last gave a sign of life; set aside once it is known to be deaf.
    given_alive: u64,
    deaf_since: Option<u64>,
    sessions: Sessions,
    /// Turns that we committed and the service has not confirmed: by which command, and what they go by.
    awaited: VecDeque<(u64, String)>,
    /// The session is up.
    up: bool,
    /// What the client wrote while there was no session, bytes.
    early_bytes: usize,
    /// How long a call is kept for a client that is away; none: not at all.
    resume_window: Option<Duration>,
    away: Option<Away>,
    /// The service's last count, and replies of the running session that it has not counted.
    last_usage: Option<Usage>,
    /// The model that writes down what the caller says, once a session has said so.
    #[serde(default)]
    writer: Option<String>,
    uncounted: Vec<String>,
    governing: Governing,
    /// It says goodbye, since it may spend no more.
    leaving: Option<Leaving>,
    /// How soon the newest replies were heard.
    #[serde(default)]
    answers: Answers,
    commands: u64,
    sent: VecDeque<(u64, About)>,
    errors: u64,
    client_seen: At,
    message_seen: At,
    /// When somebody spoke, typed or asked last.
    spoke_at: At,
    pinged: Option<At>,
    service_seen: At,
    stall: Stall,
    told_trouble: Option<At>,
    /// When the client's credential ends.
    credential_at: Option<At>,
    /// When the client is told so; none: it has been.
    expiring_at: Option<At>,
    drain_at: Option<At>,
    /// Another process takes the call over, rather than that it ends with this one.
    #[serde(skip)]
    heir: bool,
    /// It was told to: time brings nothing more here.
    #[serde(skip)]
    gone: bool,
    /// Nothing waits for the client's socket.
    client_has_all: bool,
    ended: bool,
}

/// How far a silent service has been asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Stall {
    #[default]
    None,
    /// Pinged then, no answer yet.
    Asked(At),
    /// It lives, but says nothing.
    Alive,
}

impl Core {
    /// A call that begins now, whose conversation is ours; `ready` is its first output.
    pub fn owner(life: Life, plan: Plan, resume: Option<Resume>) -> Self {
        let window = resume.as_ref().map(|resume| resume.window);
        let ready = ServerMsg::Ready {
            call: life.call.clone(),
            resume: resume.map(|resume| resume.token),
            agent: plan.agent.clone(),
            audio: plan.audio,
            limits: Limits {
                max_message_bytes: plan.max_message_bytes as u64,
                max_call_s: life.max.as_secs(),
                resume_window_s: window.unwrap_or_default().as_secs(),
            },
        };
        let mut core = Self::new(life, plan, None);
        core.resume_window = window;
        core.sessions.opening = true;
        core.say(ready);
        core
    }

    /// A call that begins now, whose conversation is the client's.
    /// `only_writes`: the session writes down what it hears, and answers nothing.
    /// `follows`: another session may follow one that is lost; `resume`: the client has asked to be able to come back.
    pub fn pass_through(life: Life, policy: Policy, only_writes: bool, follows: bool, resume: Option<Resume>) -> Self {
        let window = resume.as_ref().map(|resume| resume.window);
        let mut core = Self::new(life, Plan::none(), Some(Box::new(Pass::new(policy, only_writes, follows, resume))));
        core.resume_window = window;
        core
    }

    fn new(life: Life, plan: Plan, pass: Option<Box<Pass>>) -> Self {
        let credential_at = life.credential;
        let turn = Turn::new(plan.upstream_input, plan.chunk, plan.auto_turns, plan.silence, plan.ends_speech);
        let playout = Playout::new(plan.upstream_output, plan.lead, plan.batch, plan.max_backlog);
        let mirror = Mirror::new(plan.history_tokens, plan.transcribed, plan.upstream_input.bytes(HISTORY_AUDIO));
        Self {
            life,
            plan,
            pass,
            out: VecDeque::new(),
            intake: Intake::default(),
            turn,
            slot: Slot::default(),
            playout,
            tools: Tools::default(),
            fillers: Fillers::default(),
            errands: Errands::default(),
            keypad: Keypad::default(),
            suspicion: Suspicion::default(),
            quiet: Quiet::default(),
            mirror,
            ring: Ring::default(),
            given: 0,
            given_alive: 0,
            deaf_since: None,
            sessions: Sessions::default(),
            awaited: VecDeque::new(),
            up: false,
            early_bytes: 0,
            resume_window: None,
            away: None,
            last_usage: None,
            writer: None,
            uncounted: Vec::new(),
            governing: Governing::default(),
            leaving: None,
            answers: Answers::default(),
            commands: 0,
            sent: VecDeque::new(),
            errors: 0,
            client_seen: At::ZERO,
            message_seen: At::ZERO,
            spoke_at: At::ZERO,
            pinged: None,
            service_seen: At::ZERO,
            stall: Stall::None,
            told_trouble: None,
            credential_at,
            expiring_at: credential_at.map(|end| warning(At::ZERO, end)),
            drain_at: None,
            heir: false,
            gone: false,
            client_has_all: true,
            ended: false,
        }
    }

    /// Takes what happened. Empty [`Self::poll`] before the next.
    pub fn handle(&mut self, now: At, input: Input<'_>) {
        if self.ended {
            return;
        }
        if says_something(&input) || self.somebody_speaks() {
            self.spoke_at = now;
        }
        // Sessions are changed only where nobody reads on from the old one before it is done.
        let may_change = matches!(input, Input::Tick);
        match input {
            Input::Audio { .. }
            | Input::Flushed(_)
            | Input::InvalidAudio(_)
            | Input::Message(_)
            | Input::Key(_)
            | Input::RoundTrip(_)
            | Input::Invalid { .. }
            | Input::Ignored => self.hear_client(now, input),
            Input::LineSays(news) => self.line_says(now, news),
            Input::Sounds { length, loud } => self.sounds(now, length, loud),
            Input::Said(said) => self.said(now, said),
            Input::SaidAudio(audio) => self.said_audio(now, audio),
            Input::Renewed(good_for) => self.renewed(now, good_for),
            Input::NotRenewed => {
                let message = "`token` is no valid credential for this call; the one before stays in force".to_owned();
                self.refuse("unauthorized", message, Some("token"), true);
            }
            Input::ClientPong => self.client_seen = now,
            Input::ClientGone(end) => self.leave(now, end),
            Input::ClientBack { late, credential } => {
                self.back(now, late);
                self.renewed(now, credential);
            }
            Input::ServiceGone(end, another) => self.session_lost(now, end, another),
            Input::SessionUp(lives) => self.session_up(now, lives),
            Input::NextSession(found) => self.next_session(now, found),
            Input::Rotate => self.rotate(now),
            // Words of a session that was given up.
            Input::Heard(..) | Input::Service(_) if !self.up => {}
            Input::Heard(event, text) => self.heard(now, event, text),
            Input::Service(event) => self.hear_service(now, event),
            Input::ServicePong => self.service_pong(now),
            Input::FirstAudioLeft => match &mut self.pass {
                Some(pass) => pass.first_audio_left(now),
                None => self.playout.first_audio_left(now),
            },
            Input::TooMuchKept(hopeless) => self.too_much_kept(now, hopeless),
            Input::Drain(length) => self.drain(now, length),
            Input::Stay => {
                self.has_heir(false);
                self.drain_at = None;
            }
            Input::Heir(there) => self.has_heir(there),
            Input::Turn { number, word } => self.turn_word(now, number, word),
            Input::Hold(audio) => self.holds(audio),
            Input::Scarce(scarce) => self.scarce(scarce),
            Input::Means(means) => self.means(now, means),
            Input::ToolDone { call_id, output } => {
                if !self.errand_done(now, &call_id, &output) {
                    self.tool_done(call_id, output);
                }
            }
            Input::Plays { call_id, audio } => self.plays(&call_id, audio),
            Input::ModelChanged { from, to, reason } => self.model_changed(&from, &to, reason),
            Input::Tick => {}
        }
        if self.held_bytes() + self.early_bytes > EARLY_MAX && !self.up {
            self.end(now, End::TooMuchEarly { limit: EARLY_MAX });
        }
        self.tick(now, may_change);
        let kept = self.ring.end();
        self.send_chunks();
        if self.ring.end() > kept {
            self.forget_audio(); // with what is new, and not with each message
        }
        self.change_who_answers();
        self.note_quiet(now);
        self.ask_for_reply(now);
        self.keep_output();
        if self.is_connected() {
            self.end_replies(now);
            self.run_errands(now);
        }
    }

    /// What to do next, oldest first. `audio`: the client's socket has room for audio.
    pub fn poll(&mut self, now: At, audio: bool) -> Option<Output> {
        if let Some(out) = self.out.pop_front() {
            return Some(out);
        }
        if self.ended || !audio || !self.is_connected() {
            return None;
        }
        Some(match self.playout.next(now)? {
            Step::Announce(reply) => Output::Send(ServerMsg::ReplyStarted { reply }),
            Step::Frame { audio: frame, first } => Output::Audio { frame, first },
            Step::Tail => Output::AudioTail,
        })
    }

    /// The last turns of the conversation in words, for whoever is asked about it.
    pub fn dialogue(&self, turns: usize) -> String {
        self.mirror.dialogue(turns)
    }

    /// A reply sounds or is on its way: an interruption must be noticed at once.
    pub fn is_replying(&self) -> bool {
        self.playout.active() || self.slot.busy()
    }

    /// Nothing was said for long and nothing is under way: buffers may be given back.
    pub fn is_quiet(&self) -> bool {
        self.slot.idle() && self.playout.is_empty() && !self.turn.speaking()
    }

    /// Whether something waits for the client's socket.
    pub fn client_has_all(&mut self, all: bool) {
        self.client_has_all = all;
    }

    /// So much audio that was sent has not left us: it has not been heard, whatever the clock says.
    pub fn client_lacks(&mut self, now: At, audio: Duration) {
        self.playout.lacks(now, audio);
    }

    /// Pass-through: what the service takes, as far as it has said.
    pub fn passing(&self) -> Option<Format> {
        self.pass.as_ref().map(|pass| pass.input())
    }

    /// Pass-through: bytes of the client that wait for the session.
    pub fn held_bytes(&self) -> usize {
        self.pass.as_ref().map_or(0, |pass| pass.held_bytes())
    }

    /// A message of the client came, good or bad; where the client owns the conversation, nobody else counts.
    pub fn count_message(&mut self) {
        self.intake.count();
    }

    /// Messages of the client so far.
    pub fn received(&self) -> u64 {
        self.intake.messages()
    }

    /// Audio until the next chunk is whole.
    pub fn until_chunk(&self) -> Duration {
        self.turn.until_chunk()
    }

    /// Gives buffers back.
    pub fn shrink(&mut self) {
        self.turn.shrink();
        self.out.shrink_to_fit();
        self.forget_audio();
        self.ring.shrink();
    }

    fn say(&mut self, message: ServerMsg) {
        self.out.push_back(Output::Send(message));
    }

    fn note(&mut self, fact: Fact) {
        self.out.push_back(Output::Fact(fact));
    }

    /// The service has counted a reply.
    fn used(&mut self, usage: Option<Usage>) {
        if let Some(usage) = usage {
            self.note(Fact::Tokens { usage });
        }
    }

    fn notice(&mut self, code: &str, message: &str) {
        self.notice_with(code, message.to_owned(), []);
    }

    /// A notice with fields of its own.
    fn notice_with(&mut self, code: &str, message: String, more: impl IntoIterator<Item = (&'static str, Value)>) {
        let more = more.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        self.say(ServerMsg::Notice { code: code.to_owned(), message, more });
    }

    /// One request failed, the call goes on.
    fn refuse(&mut self, code: &'static str, message: String, field: Option<&str>, retryable: bool) {
        let error = self.error(code, message, retryable);
        self.say(ServerMsg::Error { error: ErrorBody { field: field.map(str::to_owned), ..error } });
    }

    fn error(&mut self, code: &'static str, message: String, retryable: bool) -> ErrorBody {
        self.note(Fact::Refused { code: code.into() });
        let request_id = self.request_id();
        ErrorBody { code: code.to_owned(), message, retryable, retry_after_ms: None, field: None, request_id }
    }

    fn request_id(&mut self) -> String {
        self.errors += 1;
        format!("{}-{}", self.life.call, self.errors)
    }

    /// Tells the service, if there is a session.
    fn ask(&mut self, command: Command) {
        self.unread(written(&command));
        if !self.up {
            self.early_bytes += written(&command);
            return; // the next session is told the conversation as it is then
        }
        let number = self.commands;
        self.commands += 1;
        if let Some(about) = about(&command) {
            self.remember(number, about);
        }
        self.out.push_back(Output::Service { number, command });
    }

    fn remember(&mut self, number: u64, about: About) {
        if self.sent.len() == REMEMBERED {
            self.sent.pop_front();
        }
        self.sent.push_back((number, about));
    }

    fn send_chunks(&mut self) {
        let chunks: Vec<Bytes> = self.turn.take_ready().collect();
        for chunk in chunks {
            self.ring.push(chunk.clone());
            if self.up {
                self.given = self.ring.end();
            }
            self.ask(Command::Append(chunk));
        }
    }

    fn ask_for_reply(&mut self, now: At) {
        if self.pass.is_some() {
            return self.pass_asks(now);
        }
        if self.says_goodbye(now) {
            return;
        }
        if !self.slot.has_wish() {
            if !self.fills(now) {
                self.wants_none();
            }
            return;
        }
        if !self.up || self.slot.busy() || !self.may_ask(now) {
            return;
        }
        if let Some(Want { instructions, .. }) = self.slot.next(self.commands) {
            self.service_seen = now; // it owes us an answer from here on, however long it was silent before
            self.turn_asked();
            self.answers.asked(now);
            self.ask(Command::CreateReply { instructions, no_tools: false });
        }
    }

    /// The caller takes the turn: what sounds is cut at what was heard, in the order in which it must happen: positions,
    /// local queue, `clear`, cancel, truncate. `service_cancels`: it stops its reply by itself.
    fn barge_in(&mut self, now: At, service_cancels: bool) {
        if !service_cancels && self.slot.call_off() {
            self.ask(Command::CancelReply { response: None });
        }
        if !self.playout.active() {
            return;
        }
        let found = self.playout.barge_in(now);
        for response in &found.cut {
            self.mirror.cut_silent(response);
        }
        self.out.push_back(Output::DropAudio);
        for reply in found.clear {
            self.out.push_back(Output::SendNow(ServerMsg::Clear { reply }));
        }
        if let (Some(response), false) = (found.generating, service_cancels) {
            self.ask(Command::CancelReply { response: Some(response) });
        }
        for item in found.unheard {
            self.forget(item);
        }
    }

    fn forget(&mut self, item: Unheard) {
        let (id, heard) = match &item {
            Unheard::Truncate { item, audio_end_ms, .. } => (item, *audio_end_ms),
            Unheard::Delete { item } => (item, 0),
        };
        // A session that was only told the item's words has no voice to cut.
        match self.mirror.cut(id, Some(heard)) {
            None => {}
            Some(Cut::Nothing) => return,
            Some(Cut::Replace { old, before, new }) => {
                self.ask(Command::DeleteItem { item: old });
                if let Some((id, text)) = new {
                    self.ask(Command::Retell { id: Some(id), after: before, item: History::Assistant { text } });
                }
                return;
            }
        }
        self.ask(match item {
            Unheard::Truncate { item, content_index, audio_end_ms } => {
                Command::Truncate { item, content_index, audio_end_ms }
            }
            Unheard::Delete { item } => Command::DeleteItem { item },
        });
    }

    fn end_replies(&mut self, now: At) {
        for over in self.playout.over(now) {
            self.reply_ended(over);
        }
    }

    fn reply_ended(&mut self, over: Over) {
        let Over { reply, status, reason, audio_ms, heard_ms } = over;
        if !reply.announced {
            self.say(ServerMsg::ReplyStarted { reply: reply.id.clone() });
        }
        self.note(Fact::ReplyEnded {
            status,
            answered_after: reply.times.answered_after(),
            relay_added: reply.times.relay_added(),
        });
        let latency = reply.times.latency();
        let usage = reply.usage;
        if heard_ms > 0 || status == ReplyStatus::Completed {
            self.mirror.answered(&reply.response); // one that nobody heard answers nothing
        }
        if let Some(usage) = usage {
            let booked = Booked::reply(&reply.response, status_name(status), usage);
            let (delay, first_audio_ms) =
                (self.delay_of(&reply.response), self.answers.first_audio_ms(&reply.response));
            self.out.push_back(Output::Book(Booked { audio_ms, heard_ms, first_audio_ms, delay, ..booked }));
        }
        self.played(&reply.id, status);
        self.say(ServerMsg::ReplyEnded { reply: reply.id, status, reason, audio_ms, heard_ms, usage, latency });
    }

    /// Nobody will hear the reply that runs; its count is still to come.
    fn stop_reply(&mut self) {
        let Some(response) = self.slot.active().filter(|_| self.up).map(str::to_owned) else { return };
        match &self.pass {
            Some(_) => self.out.push_back(Output::Forward(Bytes::from_static(br#"{"type":"response.cancel"}"#))),
            None => self.ask(Command::CancelReply { response: Some(response) }),
        }
    }

    /// What a call that is over must have used at least beside what was counted: replies that had no end.
    pub fn uncounted(&self) -> Vec<Booked> {
        let open = self.uncounted.iter();
        open.map(|response| self.estimate(response, self.playout.audio_ms(response))).collect()
    }

    fn end(&mut self, now: At, end: End) {
        let end = self.line_ends(end);
        if self.is_connected() && !matches!(end, End::Asked | End::HungUp | End::Transferred | End::ClientLost) {
            let reason = end.report().code.unwrap_or("call_ended");
            for over in self.playout.fail_all(now, reason) {
                self.reply_ended(over);
            }
        }
        self.stop_reply();
        let request_id = self.request_id();
        let word = match &self.pass {
            _ if !self.is_connected() => None,
            Some(pass) if pass.complained() && matches!(end, End::Upstream { .. }) => None,
            Some(_) => openai::end_event(&end, request_id).map(|text| Output::Relay { text, first: false }),
            None => end.error(request_id).map(|error| Output::SendNow(ServerMsg::Error { error })),
        };
        if let (Some(word), Some(code)) = (word, end.report().code) {
            self.note(Fact::Refused { code: code.into() });
            self.out.push_back(Output::DropAudio); // the reason shall not wait behind it
            self.out.push_back(word);
        }
        self.out.push_back(Output::End(end));
        self.ended = true;
    }
}

/// When a client is told of its credential's end: a minute before, or a fifth of its life.
fn warning(now: At, end: At) -> At {
    end.saturating_sub((end.saturating_sub(now) / 5).min(EXPIRES_SOON))
}

/// What a client can make large by writing, bytes.
fn written(command: &Command) -> usize {
    match command {
        Command::UserText { text } => text.len(),
        Command::ToolOutput { output, .. } => output.len(),
        _ => 0,
    }
}

/// Audio alone says nothing: it may be silence.
fn says_something(input: &Input<'_>) -> bool {
    match input {
        Input::Message(message) => matches!(
            message,
            ClientMsg::Commit | ClientMsg::Text { .. } | ClientMsg::ToolResult { .. } | ClientMsg::Interrupt { .. }
        ),
        Input::Said(said) => matches!(said.kind, openai::Kind::Commit | openai::Kind::CreateReply { .. }),
        Input::ClientBack { .. } | Input::Key(_) | Input::LineSays(_) | Input::ToolDone { .. } => true,
        Input::Service(event) | Input::Heard(event, _) => matches!(
            event,
            Event::SpeechStarted { .. }
                | Event::SpeechStopped { .. }
                | Event::ReplyCreated { .. }
                | Event::Audio { .. }
                | Event::AudioPasses
                | Event::UserText { .. }
                | Event::ReplyDone { .. }
        ),
        _ => false,
    }
}

fn about(command: &Command) -> Option<About> {
    Some(match command {
        Command::Append(_) => return None,
        Command::Configure { .. } => About::Configure,
        Command::Answers { .. } => About::Answers,
        Command::Retell { .. } => About::Retell,
        Command::Commit => About::Commit,
        Command::ClearInput => About::ClearInput,
        Command::UserText { .. } => About::Text,
        Command::ToolOutput { .. } => About::ToolOutput,
        Command::CreateReply { .. } => About::Reply,
        Command::CancelReply { .. } => About::Cancel,
        Command::Truncate { item, content_index, .. } => {
            About::Truncate { item: item.clone(), content_index: *content_index, retried: false }
        }
        Command::DeleteItem { .. } => About::Delete,
    })
}
