//! The pass-through door: the client owns the conversation and speaks the service's own protocol; we watch and rule.
//!
//! Messages go by as they came. Decided here is only what must not be left to either side: what an agent has fixed, one
//! reply at a time, parts that the service takes, when a session may be spoken to. Nothing is truncated, cancelled or
//! paced: the client does that itself, and must not find it done twice.
mod keep;
mod reopen;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use self::keep::Keep;
use super::{Core, Output, Resume};
use crate::{
    audio::{Codec, Format},
    call::{At, end::End, policy::Policy, reply::Times},
    client::{
        openai::{self, INVALID_REQUEST, Kind, Problem, Said},
        wire::ReplyStatus,
    },
    observe::fact::Fact,
    upstream::{Ended, Event, ServiceError, UpstreamError, error::plain_code, event_id, ga},
};

/// Longest part of an append, characters of base64: with its envelope below the service's 15 MB.
const LONGEST_APPEND: usize = 14_900_000;
/// Replies that a client may want at once.
const WISHES: usize = 32;
/// Names our own update, so that the service's complaint is told from one about the client's.
const OPENING: u64 = 0;

/// What the pass-through door knows of a call.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Pass {
    policy: Policy,
    /// The session writes down what it hears, and answers nothing.
    only_writes: bool,
    stage: Stage,
    /// What the client said before it could be told to the service.
    held: VecDeque<Said>,
    held_bytes: usize,
    /// What the service takes, as far as it has said.
    input: Format,
    /// Half a sample of a binary frame, whose other half comes with the next.
    odd: Option<u8>,
    /// Replies that the client wants and the account has not granted.
    wishes: VecDeque<Wish>,
    /// The reply that the client asked for.
    asked: Option<Asked>,
    /// Replies beside the conversation that were asked for and have not begun.
    asides: u32,
    /// The client's names for them, the newest.
    aside_ids: VecDeque<String>,
    /// When the client last said anything but audio.
    spoke_at: At,
    /// The conversation's reply that runs.
    live: Option<(String, Times)>,
    /// The service's last word was an error: if it hangs up now, it has said why.
    complained: bool,
    /// What the client must know to come back, until it has been told.
    way_back: Option<Resume>,
    /// The reply that runs was stopped, since nobody takes it.
    stopped: bool,
    /// Another session may follow this one: it is not somebody else's call.
    follows: bool,
    /// What that would be told.
    keep: Keep,
    /// The reply that runs has said something.
    speaks: bool,
    /// The client's words for the reply that it asked for, and for the one that runs.
    asked_text: Option<Bytes>,
    last_asked: Option<Bytes>,
    /// What is asked for again in the next session.
    again: Option<Bytes>,
    /// Turns that were spoken again, and what the client calls each.
    retold: VecDeque<String>,
    names: Vec<(String, String)>,
    /// Audio that the running session heard again before it went on, bytes; and how far its clock is behind the client's.
    heard_again: u64,
    shift_ms: i64,
}

/// A reply that the client wants.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Wish {
    /// In no conversation.
    aside: bool,
    /// The client's name for it.
    event_id: Option<String>,
    /// As it goes to the service.
    text: Bytes,
}

/// What the client asked for. (An option in an option is not told from none once it is written down.)
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Asked {
    /// The client's name for it.
    event_id: Option<String>,
}

/// How far the session is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Stage {
    /// Not there.
    Dialling,
    /// It must take the agent's values first; what it has said meanwhile.
    Opening(Vec<Bytes>),
    /// The client and the service speak.
    Open,
    /// Another session is told what was: so many of its settings are not confirmed.
    Reopening {
        /// How many.
        updates: u8,
    },
}

impl Pass {
    pub(super) fn new(policy: Policy, only_writes: bool, follows: bool, way_back: Option<Resume>) -> Self {
        Self {
            policy,
            only_writes,
            stage: Stage::Dialling,
            held: VecDeque::new(),
            held_bytes: 0,
            wishes: VecDeque::new(),
            input: Format::PCM_24K,
            odd: None,
            asked: None,
            asides: 0,
            aside_ids: VecDeque::new(),
            spoke_at: At::ZERO,
            live: None,
            complained: false,
            way_back,
            stopped: false,
            follows,
            keep: Keep::default(),
            speaks: false,
            asked_text: None,
            last_asked: None,
            again: None,
            retold: VecDeque::new(),
            names: Vec::new(),
            heard_again: 0,
            shift_ms: 0,
        }
    }

    /// The service must take the agent's values first.
    pub(super) fn is_opening(&self) -> bool {
        matches!(self.stage, Stage::Opening(_))
    }

    /// If the session is lost, another one goes on.
    pub(super) fn goes_on(&self) -> bool {
        self.follows && !self.complained && !self.is_opening()
    }

    /// Its client can come back to another process.
    pub(super) fn knows_the_way(&self) -> bool {
        self.follows && self.way_back.is_none()
    }

    /// Nothing is under way that a change of sessions would tear apart.
    pub(super) fn is_settled(&self) -> bool {
        self.stage == Stage::Open && self.asides == 0
    }

    /// A session must take settings before anybody can speak.
    pub(super) fn awaits_settings(&self) -> bool {
        matches!(self.stage, Stage::Opening(_) | Stage::Reopening { .. })
    }

    /// When the client last said anything but audio.
    pub(super) fn spoke_at(&self) -> At {
        self.spoke_at
    }

    /// What the service takes.
    pub(super) fn input(&self) -> Format {
        self.input
    }

    /// Bytes that wait for the session.
    pub(super) fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// The service has said why it hangs up.
    pub(super) fn complained(&self) -> bool {
        self.complained
    }

    pub(super) fn first_audio_left(&mut self, now: At) {
        if let Some((_, times)) = &mut self.live {
            times.first_audio.get_or_insert(now);
        }
    }

    /// Whole samples of a binary frame.
    fn whole(&mut self, audio: &Bytes) -> Bytes {
        if self.input.codec != Codec::Pcm16 {
            return audio.clone();
        }
        let mut joined: Vec<u8> = self.odd.take().into_iter().collect();
        if joined.is_empty() && audio.len().is_multiple_of(2) {
            return audio.clone();
        }
        joined.extend_from_slice(audio);
        if !joined.len().is_multiple_of(2) {
            self.odd = joined.pop();
        }
        joined.into()
    }
}

impl Core {
    fn pass(&mut self) -> &mut Pass {
        self.pass.as_mut().expect("only asked where the call was built with one")
    }

    /// A text message of the client.
    pub(super) fn said(&mut self, now: At, said: Said) {
        (self.client_seen, self.message_seen) = (now, now);
        let asking = self.is_asking();
        let pass = self.pass();
        if !matches!(said.kind, Kind::Append { .. }) {
            pass.spoke_at = now;
        }
        // What comes behind a request shall not overtake it.
        if pass.stage != Stage::Open || asking || !pass.held.is_empty() {
            pass.held_bytes += said.text.len();
            pass.held.push_back(said);
            return;
        }
        self.rule(now, said);
    }

    /// A binary message of the client: the service refuses them, to us they are audio.
    pub(super) fn said_audio(&mut self, now: At, audio: &Bytes) {
        let whole = self.pass().whole(audio);
        if whole.is_empty() {
            (self.client_seen, self.message_seen) = (now, now);
            return;
        }
        self.said(now, Said::read(ga::append_unnamed(&whole)));
    }

    fn rule(&mut self, now: At, said: Said) {
        match &said.kind {
            Kind::Append { audio } => {
                self.turn.passed(now, audio.len() / 4 * 3);
                let (written, speaking, format) = (self.turn.written(), self.turn.speaking(), self.pass().input);
                match said.split(LONGEST_APPEND) {
                    Some(parts) => parts.into_iter().for_each(|part| {
                        self.pass().keep.append(written, &part, speaking, format);
                        self.forward(part);
                    }),
                    None => {
                        self.pass().keep.append(written, &said.text, speaking, format);
                        self.forward(said.text);
                    }
                }
            }
            Kind::Commit => {
                self.turn.ended(now);
                let written = self.turn.written();
                self.pass().keep.commit(written);
                self.forward(said.text);
            }
            Kind::Configure => self.rule_update(said),
            Kind::CreateItem { system: true } if self.pass().policy.fixes_instructions() => {
                let message = "The instructions are fixed here: items of the role 'system' are not taken.";
                self.complain("invalid_value", message.to_owned(), Some("item.role"), said.event_id);
            }
            Kind::CreateItem { .. } => {
                self.pass().keep.make(&said.text);
                self.forward_named(said.text);
            }
            Kind::CreateReply { aside } => self.rule_reply(now, *aside, said),
            Kind::Cancel { named } => {
                if !*named {
                    self.take_back();
                }
                self.forward_named(said.text);
            }
            Kind::Other => self.forward_named(said.text),
            Kind::Invalid { code, message } => {
                let (code, message) = (code.clone(), message.clone());
                self.complain(&code, message, None, said.event_id);
                if self.intake.bad_message(now) {
                    self.end(now, End::BadMessages);
                }
            }
        }
    }

    fn rule_update(&mut self, said: Said) {
        let only_writes = self.pass().only_writes;
        let (mut speaks, mut forbidden) = (false, None);
        let ruled = rewritten(&said.text, "session", |session| {
            speaks = only_writes && session.get("type").is_some_and(|kind| kind != "transcription");
            forbidden =
                self.pass().policy.forbidden_model(session).map(|model| model.chars().take(64).collect::<String>());
            self.pass().policy.rule_session(session)
        });
        if speaks {
            let message =
                "Passing a realtime session update event to a transcription session is not allowed.".to_owned();
            return self.complain("invalid_value", message, Some("session.type"), said.event_id);
        }
        if let Some(model) = forbidden {
            let message = format!("The model `{model}` does not exist or you do not have access to it.");
            let field = Some("session.audio.input.transcription.model");
            return self.complain("model_not_found", message, field, said.event_id);
        }
        if let Ok(text) = &ruled {
            self.pass().keep.set(text.as_ref().unwrap_or(&said.text));
        }
        self.forward_ruled(ruled, said);
    }

    fn forward_ruled(&mut self, ruled: Result<Option<Bytes>, serde_json::Error>, said: Said) {
        match ruled {
            Ok(text) => self.forward(text.unwrap_or(said.text)),
            // Somebody else might be able to read it, and what we have not ruled must not get there.
            Err(error) => {
                let message = format!("The message is not valid JSON: {error}.");
                self.complain("invalid_json", message, None, said.event_id);
            }
        }
    }

    fn rule_reply(&mut self, now: At, aside: bool, said: Said) {
        if self.pass().only_writes {
            let message = "The event 'response.create' is not supported in transcription sessions.".to_owned();
            return self.complain("invalid_value", message, Some("type"), said.event_id);
        }
        let ruled = rewritten(&said.text, "response", |response| self.pass().policy.rule_reply(response));
        if ruled.is_err() {
            return self.forward_ruled(ruled, said);
        }
        if self.pass().wishes.len() == WISHES {
            let message = format!("More than {WISHES} requests for responses wait for the account's limits.");
            return self.complain("rate_limit_exceeded", message, None, said.event_id);
        }
        if !aside && !self.slot.take() {
            let running = self.slot.active().map(|id| format!(" in progress: {id}")).unwrap_or_default();
            let message = format!(
                "Conversation already has an active response{running}. Wait until the response is finished before \
                 creating a new one."
            );
            return self.complain("conversation_already_has_active_response", message, None, said.event_id);
        }
        if !aside {
            self.turn.asked(now);
        }
        let Said { text, event_id, .. } = said;
        let text = ruled.ok().flatten().unwrap_or(text);
        self.pass().wishes.push_back(Wish { aside, event_id, text });
    }

    /// Asks for what the client wants answered next, when it is granted; and goes on with what the client has said since.
    pub(super) fn pass_asks(&mut self, now: At) {
        self.ask_wishes(now);
        self.say_held(now);
    }

    /// The client's request waits for the account.
    pub(super) fn wish_waits(&self) -> bool {
        self.pass.as_ref().is_some_and(|pass| pass.wishes.iter().any(|wish| !wish.aside))
    }

    fn ask_wishes(&mut self, now: At) {
        loop {
            if self.pass().wishes.is_empty() {
                return self.wants_none();
            }
            if !self.up || self.pass().stage != Stage::Open || !self.may_ask(now) {
                return;
            }
            let Some(Wish { aside, event_id, text }) = self.pass().wishes.pop_front() else { return };
            self.turn_asked();
            if aside {
                let pass = self.pass();
                pass.asides += 1;
                pass.aside_ids.extend(event_id);
                if pass.aside_ids.len() > WISHES {
                    pass.aside_ids.pop_front();
                }
            } else {
                self.answers.asked(now);
                self.slot.take(); // a session that was lost meanwhile has freed it
                self.pass().asked = Some(Asked { event_id });
                self.pass().asked_text = Some(text.clone());
                self.service_seen = now; // it owes us an answer from here on
            }
            self.forward(text);
        }
    }

    /// What the client wants answered next will not be.
    pub(super) fn wish_refused(&mut self, code: &str, message: String) {
        let Some(Wish { aside, event_id, .. }) = self.pass().wishes.pop_front() else { return };
        if !aside {
            self.slot.not_taken(false);
        }
        // As the service calls it.
        let code = if code == "budget_exhausted" { "insufficient_quota" } else { "rate_limit_exceeded" };
        self.complain(code, message, None, event_id);
    }

    /// The client takes back what has not been asked for yet.
    fn take_back(&mut self) {
        if self.pass().wishes.iter().any(|wish| !wish.aside) {
            self.pass().wishes.retain(|wish| wish.aside);
            self.slot.not_taken(false);
            self.wants_none();
        }
    }

    fn forward(&mut self, text: Bytes) {
        self.out.push_back(Output::Forward(text));
    }

    /// What may name an item that another session has made.
    fn forward_named(&mut self, text: Bytes) {
        let text = self.pass().in_services_words(text);
        self.forward(text);
    }

    /// Answers in the service's place.
    fn complain(&mut self, code: &str, message: String, param: Option<&str>, event_id: Option<String>) {
        self.note(Fact::Refused { code: code.to_owned().into() });
        self.errors += 1;
        let kind = INVALID_REQUEST;
        let problem = Problem { kind, code: code.to_owned(), message, param: param.map(str::to_owned), event_id };
        let text = openai::error_event(&problem, &self.life.call, self.errors);
        self.out.push_back(Output::Relay { text, first: false });
    }

    /// A message of the service, and what it is.
    pub(super) fn heard(&mut self, now: At, event: Event, text: Bytes) {
        self.service_seen = now;
        self.stall = super::Stall::None;
        self.pass().complained = matches!(event, Event::Error(_));
        if self.pass().stage != Stage::Open {
            return self.heard_early(now, event, text);
        }
        let mut first = false;
        self.book(&event);
        self.keep(&event, &text);
        let text = self.pass().in_clients_words(&event, text);
        match event {
            Event::AudioPasses => first = self.audio_passes(now),
            Event::SessionUpdated { hearing: Some(hearing), .. } => self.listens(hearing),
            Event::SpeechStarted { at_ms } => {
                self.turn.speech_started(at_ms);
            }
            Event::SpeechStopped { at_ms } => {
                self.turn.speech_stopped(now, at_ms);
            }
            Event::Committed { item } => {
                let (_, to) = self.turn.found(now);
                self.answers.asked(now);
                self.pass().keep.turn(&item, to);
            }
            Event::WordsPass => self.words_pass(&text),
            Event::ReplyCreated { aside: true, response } if self.pass().asides > 0 => {
                self.turn_began(&response, true);
                self.pass().asides -= 1;
            }
            // Some services say of no reply which conversation it belongs to.
            Event::ReplyCreated { response, .. } => {
                self.turn_began(&response, self.slot.is_ours());
                self.answers.began(now, &response);
                self.slot.created(&response);
                let turn = self.turn.take_marks();
                let times = Times { turn, started: Some(now), ..Times::default() };
                let pass = self.pass();
                (pass.asked, pass.live) = (None, Some((response, times)));
                (pass.last_asked, pass.speaks) = (pass.asked_text.take(), false);
                pass.keep.said_all();
            }
            Event::ReplyDone { response, ended, usage, .. } => {
                self.used(usage);
                self.reply_passed(&response, ended);
                self.turn_over(&response, ended, usage);
            }
            Event::Error(error) if !self.error_passes(&error) => return,
            Event::Unknown => self.note(Fact::UnknownEvent),
            _ => {}
        }
        self.out.push_back(Output::Relay { text, first });
    }

    /// What another session would have to be told.
    fn keep(&mut self, event: &Event, text: &Bytes) {
        let keep = &mut self.pass().keep;
        match event {
            Event::SessionUpdated { .. } => keep.session(text),
            Event::ItemDone => keep.done(text),
            Event::ItemCut { item, audio_end_ms } => keep.cut(item, *audio_end_ms),
            Event::ItemGone { item } => keep.gone(item),
            Event::InputCleared => keep.clear(),
            Event::Error(ServiceError { event_id: Some(id), .. }) => keep.refused(id),
            Event::UserText { item, text, last: true, .. } => keep.words(item, text),
            _ => {}
        }
    }

    fn words_pass(&mut self, text: &[u8]) {
        let pass = self.pass();
        pass.speaks = true;
        if let Some((response, _)) = &pass.live {
            pass.keep.says(response, text);
        }
    }

    /// Whether it is the first of its reply.
    fn audio_passes(&mut self, now: At) -> bool {
        match &mut self.pass().live {
            Some((response, times)) if times.first_delta.is_none() => {
                times.first_delta = Some(now);
                let response = response.clone();
                self.heard_at(now, &response);
                true
            }
            _ => false,
        }
    }

    fn listens(&mut self, hearing: crate::upstream::Hearing) {
        let pass = self.pass();
        if pass.input != hearing.input {
            (pass.input, pass.odd) = (hearing.input, None);
        }
        self.turn.listens(hearing.input, hearing.silence.unwrap_or_default());
    }

    fn reply_passed(&mut self, response: &str, ended: Ended) {
        self.slot.done(response);
        self.pass().stopped = false;
        let status = ReplyStatus::from(ended);
        let over = self.pass().live.take_if(|(id, _)| id == response);
        if over.is_some() {
            self.pass().keep.said_all();
        }
        let times = over.map(|(_, times)| times).unwrap_or_default();
        let (answered_after, relay_added) = (times.answered_after(), times.relay_added());
        self.note(Fact::ReplyEnded { status, answered_after, relay_added });
    }

    /// Whether it is for the client.
    fn error_passes(&mut self, error: &ServiceError) -> bool {
        if error.code == "session_expired" && self.pass().follows {
            self.pass().complained = false;
            return false; // another session follows
        }
        self.note(Fact::ServiceError);
        if UpstreamError::refused(error, None).verdict().code == "upstream_auth" {
            // It is our key that was refused, and its ends may stand in the text: the end of the call is told in our words.
            self.pass().complained = false;
            return false;
        }
        let about = |asked: &mut Asked| error.event_id.is_none() || asked.event_id == error.event_id;
        if self.pass().asked.take_if(about).is_some() {
            self.slot.not_taken(error.code == "conversation_already_has_active_response");
            self.never_began();
        } else if let Some(id) = &error.event_id
            && let Some(at) = self.pass().aside_ids.iter().position(|aside| aside == id)
        {
            self.pass().aside_ids.remove(at);
            self.pass().asides = self.pass().asides.saturating_sub(1);
            self.never_began();
        }
        true
    }

    /// Before the client may speak: the agent's values go first, and the client sees a session that has them.
    fn heard_early(&mut self, now: At, event: Event, text: Bytes) {
        match (event, std::mem::replace(&mut self.pass().stage, Stage::Dialling)) {
            (event, Stage::Reopening { updates }) => {
                self.pass().stage = Stage::Reopening { updates };
                self.heard_reopening(now, event, updates);
            }
            (Event::SessionCreated { hearing, .. }, Stage::Dialling) => {
                self.pass().keep.session(&text);
                hearing.into_iter().for_each(|hearing| self.listens(hearing));
                match self.pass().policy.opening() {
                    None => self.open(now, vec![text]),
                    Some(session) => {
                        self.pass().stage = Stage::Opening(vec![text]);
                        self.forward(update(&session));
                    }
                }
            }
            (Event::SessionUpdated { hearing, .. }, Stage::Opening(mut waiting)) => {
                hearing.into_iter().for_each(|hearing| self.listens(hearing));
                self.pass().keep.session(&text);
                if let Some(created) = waiting.first_mut() {
                    *created = with_session_of(created, &text).unwrap_or_else(|| created.clone());
                }
                self.open(now, waiting);
            }
            (Event::Error(error), _) => {
                // The words that follow are ours: the service's are about something that the client never said.
                self.pass().complained = false;
                let mut end = End::upstream(&UpstreamError::refused(&error, None));
                if let End::Upstream { message, .. } = &mut end {
                    *message = format!("the service refused the agent's configuration ({})", plain_code(&error.code));
                }
                self.end(now, end);
            }
            (_, mut stage) => {
                if let Stage::Opening(waiting) = &mut stage {
                    waiting.push(text);
                }
                self.pass().stage = stage;
            }
        }
    }

    /// More waits for a client that is away than is kept: the reply is stopped. What came of it until then is kept, so that
    /// neither side believes in more of it than the other has.
    pub(super) fn too_much_kept(&mut self, now: At, hopeless: bool) {
        match &mut self.pass {
            _ if hopeless => self.end(now, End::SlowConsumer),
            Some(pass) if pass.live.is_some() && !pass.stopped => {
                pass.stopped = true;
                self.forward(Bytes::from_static(br#"{"type":"response.cancel"}"#));
            }
            _ => {}
        }
    }

    fn open(&mut self, now: At, mut told: Vec<Bytes>) {
        if let Some(Resume { token, window }) = self.pass().way_back.take()
            && let Some(created) = told.first()
            && let Some(text) = openai::with_way_back(created, &self.life.call, &token, window.as_secs())
        {
            told.remove(0);
            self.out.push_back(Output::Greet(text));
        }
        for text in told {
            self.out.push_back(Output::Relay { text, first: false });
        }
        self.pass().stage = Stage::Open;
        self.say_held(now);
    }

    /// What the client said while it could not be told to the service.
    fn say_held(&mut self, now: At) {
        while !self.ended && self.pass().stage == Stage::Open && !self.is_asking() {
            let pass = self.pass();
            let Some(said) = pass.held.pop_front() else { return };
            pass.held_bytes = pass.held_bytes.saturating_sub(said.text.len());
            self.rule(now, said);
            self.ask_wishes(now);
        }
    }
}

/// Names a message of ours.
fn string_id(request: &str) -> String {
    format!("event_{request}")
}

fn update(session: &Value) -> Bytes {
    let mut id = String::new();
    event_id::write(OPENING, &mut id);
    json!({"type": "session.update", "event_id": id, "session": session}).to_string().into()
}

/// The message with the object in `field` changed; `None`: it stays as it is, to the byte.
fn rewritten(
    text: &[u8],
    field: &str,
    rule: impl FnOnce(&mut Map<String, Value>) -> bool,
) -> Result<Option<Bytes>, serde_json::Error> {
    let mut message: Value = serde_json::from_slice(text)?;
    let changed = message.get_mut(field).and_then(Value::as_object_mut).is_some_and(rule);
    Ok(changed.then(|| message.to_string().into()))
}

/// `session.created` with the session of a `session.updated`.
fn with_session_of(created: &[u8], updated: &[u8]) -> Option<Bytes> {
    let mut created: Value = serde_json::from_slice(created).ok()?;
    let updated: Value = serde_json::from_slice(updated).ok()?;
    *created.get_mut("session")? = updated.get("session")?.clone();
    Some(created.to_string().into())
}
