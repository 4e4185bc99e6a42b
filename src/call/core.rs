//! The call core: messages, events and moments in; what to say to either side out.
//!
//! Owns no socket, task or clock, and sees bytes plus a duration, never samples. Time is the time since the call began, so
//! that a call can be written down and continued. One part, one file: [`client`] what the client says, [`service`] what
//! the service says, [`clock`] what time brings, and [`pass`] both sides where the client owns the conversation.
mod client;
mod clock;
mod pass;
mod service;
#[cfg(test)]
mod tests;

use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use self::pass::Pass;
use super::{
    At,
    end::End,
    intake::Intake,
    playout::{Over, Playout, Step, Unheard},
    policy::Policy,
    slot::{Slot, Want},
    tools::Tools,
    turn::Turn,
};
use crate::{
    audio::Format,
    client::{
        openai::{self, Said},
        wire::{AudioFormats, ClientMsg, ErrorBody, Limits, ServerMsg, Usage},
    },
    observe::fact::Fact,
    upstream::{Command, Event},
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
    /// How far ahead of the loudspeaker to send; none: as fast as it comes.
    pub lead: Option<Duration>,
    /// How much to send at one go.
    pub batch: Duration,
    /// How long a client may take for a tool.
    pub tool_timeout: Duration,
    /// Longest backlog of reply audio.
    pub max_backlog: Duration,
    /// Largest client message, bytes.
    pub max_message_bytes: usize,
}

impl Plan {
    /// Where the client owns the conversation, nothing was agreed.
    fn none() -> Self {
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
            lead: None,
            batch: Duration::from_millis(100),
            tool_timeout: Duration::ZERO,
            max_backlog: Duration::ZERO,
            max_message_bytes: 0,
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
    /// The session is up.
    SessionUp,
    /// The service said something.
    Service(Event),
    /// Pass-through: the service said something, in these words.
    Heard(Event, Bytes),
    /// The service answered a ping.
    ServicePong,
    /// There is no session, or no more.
    ServiceGone(End),
    /// The first audio of a reply has left our socket.
    FirstAudioLeft,
    /// This server goes away, so long from now.
    Drain(Duration),
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
    /// Tell the service.
    Service {
        /// Names the command.
        number: u64,
        /// What.
        command: Command,
    },
    /// Pass-through: tell the service in these words.
    Forward(Bytes),
    /// Pass-through: tell the client in these words.
    Relay {
        /// The message.
        text: Bytes,
        /// Say [`Input::FirstAudioLeft`] when it has left.
        first: bool,
    },
    /// See whether this is a good credential for the call, and say [`Input::Renewed`] or [`Input::NotRenewed`].
    Renew(Credential),
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
/// Kept for a session that is not up yet, bytes: minutes of audio, which the intake does not let come that fast.
const EARLY_MAX: usize = 16 << 20;

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
    /// The session is up.
    up: bool,
    /// What is for the service, while there is no session.
    early: Vec<(u64, Command)>,
    early_bytes: usize,
    commands: u64,
    sent: VecDeque<(u64, About)>,
    errors: u64,
    client_seen: At,
    message_seen: At,
    pinged: Option<At>,
    service_seen: At,
    stall: Stall,
    told_trouble: Option<At>,
    /// When the client's credential ends.
    credential_at: Option<At>,
    /// When the client is told so; none: it has been.
    expiring_at: Option<At>,
    drain_at: Option<At>,
    /// Nothing waits for the client's socket.
    client_has_all: bool,
    ended: bool,
}

/// How far a silent service has been asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Stall {
    #[default]
    None,
    /// Pinged, no answer yet.
    Asked,
    /// It lives, but says nothing.
    Alive,
}

impl Core {
    /// A call that begins now, whose conversation is ours; `ready` is its first output.
    pub fn owner(life: Life, plan: Plan, resume_window: Duration) -> Self {
        let ready = ServerMsg::Ready {
            call: life.call.clone(),
            resume: None,
            agent: plan.agent.clone(),
            audio: plan.audio,
            limits: Limits {
                max_message_bytes: plan.max_message_bytes as u64,
                max_call_s: life.max.as_secs(),
                resume_window_s: resume_window.as_secs(),
            },
        };
        let mut core = Self::new(life, plan, None);
        core.say(ready);
        core
    }

    /// A call that begins now, whose conversation is the client's.
    /// `only_writes`: the session writes down what it hears, and answers nothing.
    pub fn pass_through(life: Life, policy: Policy, only_writes: bool) -> Self {
        Self::new(life, Plan::none(), Some(Box::new(Pass::new(policy, only_writes))))
    }

    fn new(life: Life, plan: Plan, pass: Option<Box<Pass>>) -> Self {
        let credential_at = life.credential;
        let turn = Turn::new(plan.upstream_input, plan.chunk, plan.auto_turns, plan.silence, plan.ends_speech);
        let playout = Playout::new(plan.upstream_output, plan.lead, plan.batch, plan.max_backlog);
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
            up: false,
            early: Vec::new(),
            early_bytes: 0,
            commands: 0,
            sent: VecDeque::new(),
            errors: 0,
            client_seen: At::ZERO,
            message_seen: At::ZERO,
            pinged: None,
            service_seen: At::ZERO,
            stall: Stall::None,
            told_trouble: None,
            credential_at,
            expiring_at: credential_at.map(|end| warning(At::ZERO, end)),
            drain_at: None,
            client_has_all: true,
            ended: false,
        }
    }

    /// Takes what happened. Empty [`Self::poll`] before the next.
    pub fn handle(&mut self, now: At, input: Input<'_>) {
        if self.ended {
            return;
        }
        match input {
            Input::Audio { .. }
            | Input::Flushed(_)
            | Input::InvalidAudio(_)
            | Input::Message(_)
            | Input::Invalid { .. }
            | Input::Ignored => self.hear_client(now, input),
            Input::Said(said) => self.said(now, said),
            Input::SaidAudio(audio) => self.said_audio(now, audio),
            Input::Renewed(good_for) => self.renewed(now, good_for),
            Input::NotRenewed => {
                let message = "`token` is no valid credential for this call; the one before stays in force".to_owned();
                self.refuse("unauthorized", message, Some("token"), true);
            }
            Input::ClientPong => self.client_seen = now,
            Input::ClientGone(end) | Input::ServiceGone(end) => self.end(now, end),
            Input::SessionUp => self.session_up(now),
            Input::Heard(event, text) => self.heard(now, event, text),
            Input::Service(event) => self.hear_service(now, event),
            Input::ServicePong => self.service_pong(),
            Input::FirstAudioLeft => match &mut self.pass {
                Some(pass) => pass.first_audio_left(now),
                None => self.playout.first_audio_left(now),
            },
            Input::Drain(length) => self.drain(now, length),
            Input::Tick => {}
        }
        if self.early_bytes > EARLY_MAX {
            self.end(now, End::TooMuchEarly { limit: EARLY_MAX });
        }
        self.tick(now);
        self.send_chunks();
        self.ask_for_reply(now);
        self.end_replies(now);
    }

    /// What to do next, oldest first. `audio`: the client's socket has room for audio.
    pub fn poll(&mut self, now: At, audio: bool) -> Option<Output> {
        if let Some(out) = self.out.pop_front() {
            return Some(out);
        }
        if self.ended || !audio {
            return None;
        }
        Some(match self.playout.next(now)? {
            Step::Announce(reply) => Output::Send(ServerMsg::ReplyStarted { reply }),
            Step::Frame { audio: frame, first } => Output::Audio { frame, first },
            Step::Tail => Output::AudioTail,
        })
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

    /// Pass-through: what the service takes, as far as it has said.
    pub fn passing(&self) -> Option<Format> {
        self.pass.as_ref().map(|pass| pass.input())
    }

    /// Pass-through: bytes of the client that wait for the session.
    pub fn held_bytes(&self) -> usize {
        self.pass.as_ref().map_or(0, |pass| pass.held_bytes())
    }

    /// Audio until the next chunk is whole.
    pub fn until_chunk(&self) -> Duration {
        self.turn.until_chunk()
    }

    /// Gives buffers back.
    pub fn shrink(&mut self) {
        self.turn.shrink();
        self.out.shrink_to_fit();
        self.early.shrink_to_fit();
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
        let more = serde_json::Map::new();
        self.say(ServerMsg::Notice { code: code.to_owned(), message: message.to_owned(), more });
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

    /// Tells the service, now or as soon as there is a session.
    fn ask(&mut self, command: Command) {
        let number = self.commands;
        self.commands += 1;
        if let Some(about) = about(&command) {
            self.remember(number, about);
        }
        if self.up {
            self.out.push_back(Output::Service { number, command });
        } else {
            self.early_bytes += size(&command);
            self.early.push((number, command));
        }
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
            self.ask(Command::Append(chunk));
        }
    }

    fn ask_for_reply(&mut self, now: At) {
        if !self.up {
            return;
        }
        if let Some(Want { instructions }) = self.slot.next(self.commands) {
            self.service_seen = now; // it owes us an answer from here on, however long it was silent before
            self.ask(Command::CreateReply { instructions });
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
        self.say(ServerMsg::ReplyEnded { reply: reply.id, status, reason, audio_ms, heard_ms, usage, latency });
    }

    fn end(&mut self, now: At, end: End) {
        if !matches!(end, End::Asked | End::ClientLost) {
            let reason = end.report().code.unwrap_or("call_ended");
            for over in self.playout.fail_all(now, reason) {
                self.reply_ended(over);
            }
        }
        let request_id = self.request_id();
        let word = match &self.pass {
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

/// What a client can make large.
fn size(command: &Command) -> usize {
    match command {
        Command::Append(audio) => audio.len(),
        Command::UserText { text } => text.len(),
        Command::ToolOutput { output, .. } => output.len(),
        _ => 0,
    }
}

fn about(command: &Command) -> Option<About> {
    Some(match command {
        Command::Append(_) => return None,
        Command::Configure => About::Configure,
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
