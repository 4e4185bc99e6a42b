//! One session of the simulated service, without a socket: client frames go in with their time, [`Output`]s come out.
//!
//! Owns no socket, task or clock; `server` does. The parts: `commands` carries out what the client asks, `response` the
//! replies, `transcribe` the caller's transcripts, `damage` the faults.
use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use serde_json::{Map, Value, json};

pub use super::outbox::Output;
use super::{
    admit::{self, Admitted, Knock, Rejected},
    beta,
    config::{Model, Shape, SimConfig},
    conversation::{Clip, Conversation, Item, Place},
    damage::Damage,
    faults::{FaultBook, FaultScript, Faults, Moment},
    input::{Detection, Input, Turn},
    limits::{Accounts, Full, Taken},
    outbox::Outbox,
    response::{Request, Run},
    rest::Desk,
    settings::Settings,
    stats::{SimStats, Stats},
    tokens::Cache,
    transcribe::Held,
    vad::Thresholds,
    validate::Refusal,
};
use crate::scripted::Dice;

/// What is written to a client that does not read, bytes; past it the connection dies.
const MAX_UNSENT: usize = 128 << 20;
/// The service's words at the cap, whatever the cap is: clients match on them.
const EXPIRED: &str = "Your session hit the maximum duration of 60 minutes.";

/// What all sessions of a simulator share.
#[derive(Debug)]
pub struct World {
    pub(super) config: SimConfig,
    pub(super) faults: Arc<FaultBook>,
    pub(super) stats: Arc<Stats>,
    pub(super) desk: Desk,
    pub(super) accounts: Arc<Accounts>,
}

impl World {
    /// A service that behaves like this.
    pub fn new(config: SimConfig, faults: Faults) -> Arc<Self> {
        let stats = Arc::new(Stats::default());
        Arc::new(Self {
            config,
            faults: FaultBook::new(faults, stats.clone()),
            stats,
            desk: Desk::default(),
            accounts: Arc::default(),
        })
    }

    /// What was seen and done so far.
    pub fn stats(&self) -> SimStats {
        self.stats.snapshot()
    }
}

/// A message of the client.
#[derive(Debug, Clone, Copy)]
pub enum Incoming<'m> {
    /// A text frame.
    Text(&'m str),
    /// A binary frame: the service refuses it.
    Binary(&'m [u8]),
}

/// Something that happens by itself at its time.
#[derive(Debug, Clone)]
pub(super) enum Act {
    /// The session is too old.
    Cap,
    /// The fault of this number.
    Fault(usize),
    /// A transcript's next event.
    Transcript(super::transcribe::Event),
    /// A transcript that was held back has waited long enough.
    ReleaseTranscripts,
    /// After a response that used so many tokens.
    RateLimits(u64),
    /// The reply's audio has been played, as far as the service knows; only if nothing has happened since (the number).
    PlaybackOver(u64),
    /// Nobody has spoken since: the number, and where the silence began, ms.
    IdleTimeout(u64, u64),
}

/// How often things have happened.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) speech: u64,
    pub(super) turns: u64,
    pub(super) responses: u64,
    /// Anything that ends an idle wait.
    pub(super) activity: u64,
}

/// One session.
#[derive(Debug)]
pub struct Session {
    pub(super) world: Arc<World>,
    pub(super) number: u64,
    /// Who pays.
    key: String,
    /// When it began, by the clock that all sessions share.
    began: Duration,
    pub(super) dice: Dice,
    pub(super) faults: FaultScript,
    pub(super) damage: Damage,
    /// It speaks the protocol in its former shape.
    pub(super) beta: bool,
    /// It joined a call, whose audio goes another way.
    joins: bool,
    id: String,
    expires_at: u64,
    pub(super) conversation_id: String,
    pub(super) settings: Settings,
    pub(super) input: Input,
    /// The item that speech under way will become.
    speech_item: Option<String>,
    pub(super) conversation: Conversation,
    pub(super) runs: Vec<Run>,
    pub(super) cache: Cache,
    pub(super) held: Option<Held>,
    pub(super) counts: Counts,
    /// Tokens of the last minute, leaking away: when, and how many.
    pub(super) spent: (Duration, f64),
    timers: BTreeMap<(Duration, u64), Act>,
    timer_count: u64,
    out: Outbox,
    pub(super) now: Duration,
    ended: bool,
}

impl Session {
    /// Answers a client that has got its 101: a session, or the error and the close that the service has for it.
    /// `number` counts connection attempts from 1; `unix_now` is for `expires_at`, seconds. Time begins at zero.
    pub fn new(world: Arc<World>, number: u64, knock: &Knock, unix_now: u64) -> Self {
        let admitted = admit::admit(&world.config, knock);
        let settings = match &admitted {
            Ok(Admitted::Voice(model)) => Settings::new(model.clone(), world.config.instructions.clone()),
            Ok(Admitted::Transcription) => Settings::transcription(),
            Err(_) => Settings::new(Model::none(), String::new()),
        };
        let beta = knock.preview || world.config.shape == Shape::Beta;
        let mut settings = settings;
        if let (Ok(_), Some(session)) = (&admitted, &knock.session) {
            // It was found good when the secret was made.
            let _ = settings.update(session, false);
        }
        if beta {
            settings.hear_pcm_at(world.config.pcm16_rate);
        }
        let mut dice = Dice::new(world.config.seed, number);
        let mut session = Self {
            number,
            key: knock.account().to_owned(),
            began: Duration::ZERO,
            faults: world.faults.script(number),
            damage: Damage::default(),
            beta,
            joins: knock.joins,
            id: dice.id("sess"),
            expires_at: unix_now + world.config.session_cap_ms.div_ceil(1_000),
            conversation_id: dice.id("conv"),
            input: Input::new(settings.input_format, None),
            settings,
            speech_item: None,
            conversation: Conversation::default(),
            runs: Vec::new(),
            cache: Cache::default(),
            held: None,
            counts: Counts::default(),
            spent: (Duration::ZERO, 0.0),
            timers: BTreeMap::new(),
            timer_count: 0,
            out: Outbox::default(),
            now: Duration::ZERO,
            ended: false,
            dice,
            world,
        };
        match admitted {
            Ok(_) => session.open(),
            Err(rejected) => session.reject(&rejected),
        }
        session
    }

    /// The same, which began at this moment of a clock that all sessions of the world share: what an account has used is counted
    /// by it.
    pub fn begun_at(self, began: Duration) -> Self {
        Self { began, ..self }
    }

    fn open(&mut self) {
        self.listen();
        self.at(self.world.config.session_cap(), Act::Cap);
        self.moment(Moment::Start);
        if self.ended {
            return;
        }
        self.world.stats.lock().sessions_opened += 1;
        let session = self.settings.json(&self.id, self.expires_at);
        let delay = self.dice.delay(self.world.config.delays.created);
        self.send_after(delay, "session.created", json!({ "session": session }));
    }

    fn reject(&mut self, rejected: &Rejected) {
        self.refuse(&rejected.refusal, None);
        self.close(rejected.close_code, &rejected.reason());
    }

    /// Takes a message. Give it the time of a monotonic clock.
    pub fn handle(&mut self, now: Duration, message: Incoming<'_>) {
        self.tick(now);
        if self.ended {
            return;
        }
        self.world.stats.lock().client_events += 1;
        match message {
            Incoming::Text(text) => self.text(text),
            Incoming::Binary(_) => {
                let message = "Binary messages are not supported: send JSON text messages.";
                self.refuse(&Refusal::new("invalid_event", message), None);
            }
        }
        self.tick(now);
    }

    /// Does what is due. Call it at [`Self::deadline`]; early and late calls do no harm.
    pub fn tick(&mut self, now: Duration) {
        while !self.ended {
            let timer = self.timers.first_key_value().map(|((at, _), _)| *at);
            let step = self.next_step();
            match (timer, step) {
                (Some(timer), _) if timer <= now && step.is_none_or(|(at, _)| timer <= at) => {
                    self.now = self.now.max(timer);
                    if let Some((_, act)) = self.timers.pop_first() {
                        self.act(act);
                    }
                }
                (_, Some((at, run))) if at <= now => {
                    self.now = self.now.max(at);
                    self.step(run);
                }
                _ => break,
            }
        }
        self.now = self.now.max(now);
        if self.out.bytes() > MAX_UNSENT && !self.ended {
            self.die(None, true);
        }
    }

    /// What the socket is to do now, oldest first.
    pub fn poll(&mut self) -> Option<Output> {
        self.out.pop(self.now)
    }

    /// When to call [`Self::tick`] and [`Self::poll`] again; `None`: not before the client says something.
    pub fn deadline(&self) -> Option<Duration> {
        [self.next_act(), self.out.next_at()].into_iter().flatten().min()
    }

    /// When something happens in the session, whether or not its socket takes anything.
    pub(super) fn next_act(&self) -> Option<Duration> {
        let timer = self.timers.first_key_value().map(|((at, _), _)| *at);
        let step = self.next_step().map(|(at, _)| at);
        [timer, step].into_iter().flatten().filter(|_| !self.ended).min()
    }

    /// Bytes that wait for their time or for the socket.
    pub fn unsent_bytes(&self) -> usize {
        self.out.bytes()
    }

    /// The call that it joined is over.
    pub fn hang_up(&mut self, now: Duration) {
        self.now = self.now.max(now);
        self.out.drop_late(self.now);
        self.close(1_000, "");
    }

    /// The service goes away: a close frame at once.
    pub fn go_away(&mut self, now: Duration) {
        self.now = self.now.max(now);
        self.out.drop_late(self.now);
        self.close(1_001, "");
    }

    // What follows is for the other parts of a session.

    /// Sends an event.
    pub(super) fn send(&mut self, kind: &str, fields: Value) {
        self.send_after(Duration::ZERO, kind, fields);
    }

    /// Sends an event after a delay; the order of events stays.
    pub(super) fn send_after(&mut self, delay: Duration, kind: &str, fields: Value) {
        if self.ended || self.joins && kind == "response.output_audio.delta" {
            return;
        }
        if self.world.config.record_audio
            && kind == "conversation.item.done"
            && let Some(item) = fields.get("item")
        {
            self.world.stats.item(self.number, item);
        }
        if self.beta {
            if let Some((kind, fields)) = beta::said(kind, fields) {
                self.send_as(delay, &kind, fields);
            }
            return;
        }
        self.send_as(delay, kind, fields);
    }

    fn send_as(&mut self, delay: Duration, kind: &str, fields: Value) {
        let mut event = Map::new();
        event.insert("type".into(), json!(kind));
        event.insert("event_id".into(), json!(self.dice.id("event")));
        if let Value::Object(fields) = fields {
            event.extend(fields);
        }
        let copies = self.damage.copies(kind);
        self.damage.fields(&mut event, self.now);
        let lag = self.damage.lag(self.now).map_or(Duration::ZERO, |delay| self.faults.lag(delay));
        let text = Value::Object(event).to_string();
        for _ in 0..copies {
            self.out.push(self.now + delay + lag, Output::Send(text.clone()));
        }
    }

    /// Sends text that is no event of the protocol.
    pub(super) fn send_raw(&mut self, text: String) {
        if !self.ended {
            self.out.push(self.now, Output::Send(text));
        }
    }

    /// Sends an `error` event; `event_id` is the client's.
    pub(super) fn refuse(&mut self, refusal: &Refusal, event_id: Option<&str>) {
        self.world.stats.error(refusal.code.as_deref());
        let error = json!({
            "type": refusal.kind,
            "code": refusal.code,
            "message": refusal.message,
            "param": refusal.param,
            "event_id": event_id,
        });
        self.send("error", json!({ "error": error }));
    }

    /// Says goodbye.
    pub(super) fn close(&mut self, code: u16, reason: &str) {
        if !self.ended {
            self.out.push(self.now, Output::Close { code, reason: reason.to_owned() });
            self.end();
        }
    }

    /// Ends the connection without a goodbye.
    pub(super) fn die(&mut self, partial: Option<String>, reset: bool) {
        if !self.ended {
            self.out.drop_late(self.now);
            self.out.push(self.now, Output::Die { partial, reset });
            self.end();
        }
    }

    fn end(&mut self) {
        self.ended = true;
        self.timers.clear();
        self.runs.clear();
    }

    /// Tells the socket something about reading.
    pub(super) fn reading(&mut self, output: Output) {
        self.out.push(self.now, output);
    }

    /// Sends nothing until then.
    pub(super) fn hold(&mut self, until: Duration) {
        self.out.hold(until);
    }

    /// Does something later.
    pub(super) fn at(&mut self, at: Duration, act: Act) {
        if !self.ended {
            self.timer_count += 1;
            self.timers.insert((at, self.timer_count), act);
        }
    }

    /// Takes out the timers that `wanted` chooses, in their order.
    pub(super) fn take_timers(&mut self, wanted: impl Fn(&Act) -> bool) -> Vec<Act> {
        let mut taken = Vec::new();
        self.timers.retain(|_, act| {
            let take = wanted(act);
            if take {
                taken.push(act.clone());
            }
            !take
        });
        taken
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Cap => self.expire(),
            Act::Fault(fault) => self.fault(fault),
            Act::Transcript(event) => self.transcript(event),
            Act::ReleaseTranscripts => self.release_transcripts(),
            Act::RateLimits(tokens) => self.rate_limits(tokens),
            Act::PlaybackOver(activity) => self.playback_over(activity),
            Act::IdleTimeout(activity, from_ms) => self.idle_timeout(activity, from_ms),
        }
    }

    fn expire(&mut self) {
        self.refuse(&Refusal::new("session_expired", EXPIRED), None);
        self.close(1_001, EXPIRED);
    }

    /// Lets the faults of a moment happen. Those of a response wait for the end of the step they are in.
    pub(super) fn moment(&mut self, moment: Moment) {
        for due in self.faults.due(moment) {
            if due.after.is_zero() && !matches!(moment, Moment::Response(..)) {
                self.fault(due.fault);
            } else {
                self.at(self.now + due.after, Act::Fault(due.fault));
            }
        }
    }

    /// Sets the detector up as the settings say.
    pub(super) fn listen(&mut self) {
        let detection = self.settings.turn_detection.as_ref().map(|detection| {
            let (level, prefix_ms, silence_ms) = detection.vad(self.world.config.semantic_silence);
            let idle_ms = detection.idle_timeout_ms().unwrap_or(0);
            Detection { thresholds: Thresholds { level, silence_ms }, prefix_ms, idle_ms }
        });
        self.input.configure(self.settings.input_format, detection);
        if !self.input.speaking() {
            self.speech_item = None;
        }
    }

    /// The session object as it is now.
    pub(super) fn session_json(&self) -> Value {
        self.settings.json(&self.id, self.expires_at)
    }

    /// Takes decoded audio.
    pub(super) fn hear(&mut self, audio: &[u8]) {
        let (config, format) = (&self.world.config, self.input.format());
        self.world.stats.append(self.number, format, audio, config.record_audio);
        for turn in self.input.append(audio) {
            match turn {
                Turn::Began { start_ms } => self.speech_began(start_ms),
                Turn::Ended { end_ms, audio } => self.speech_ended(end_ms, audio),
            }
        }
        self.moment(Moment::Audio(self.input.position_ms()));
    }

    fn speech_began(&mut self, start_ms: u64) {
        let item_id = self.dice.id("item");
        self.counts.activity += 1;
        self.counts.speech += 1;
        self.send("input_audio_buffer.speech_started", json!({ "audio_start_ms": start_ms, "item_id": item_id }));
        self.speech_item = Some(item_id);
        if self.settings.turn_detection.as_ref().is_some_and(|detection| detection.interrupt_response) {
            self.cancel_active("turn_detected");
        }
        self.moment(Moment::Speech(self.counts.speech));
    }

    fn speech_ended(&mut self, end_ms: u64, audio: Bytes) {
        let item_id = self.speech_item.take().unwrap_or_else(|| self.dice.id("item"));
        self.send("input_audio_buffer.speech_stopped", json!({ "audio_end_ms": end_ms, "item_id": item_id }));
        if self.commit(item_id, audio, false)
            && self.settings.turn_detection.as_ref().is_some_and(|detection| detection.create_response)
        {
            self.respond(Request::of_turn(&self.settings), None);
        }
    }

    /// The id of the turn that the client commits.
    pub(super) fn turn_id(&mut self) -> String {
        self.speech_item.take().unwrap_or_else(|| self.dice.id("item"))
    }

    /// Forgets the speech under way.
    pub(super) fn forget_speech(&mut self) {
        self.speech_item = None;
    }

    /// Makes a turn of audio; `false`: the conversation would not take it.
    pub(super) fn commit(&mut self, item_id: String, audio: Bytes, idle: bool) -> bool {
        self.counts.activity += 1;
        let clip = Clip::new(self.input.format(), audio);
        let item = Item::spoken(item_id.clone(), clip.clone(), idle);
        let shown = item.json(false);
        let before = match self.conversation.insert(item, Place::End, self.world.config.max_items) {
            Ok(before) => before,
            Err(refusal) => {
                self.refuse(&refusal, None);
                return false;
            }
        };
        let delay = self.dice.delay(self.world.config.delays.committed);
        self.send_after(
            delay,
            "input_audio_buffer.committed",
            json!({ "previous_item_id": before, "item_id": item_id }),
        );
        self.send("conversation.item.added", json!({ "previous_item_id": before, "item": shown }));
        self.send("conversation.item.done", json!({ "previous_item_id": before, "item": shown }));
        self.world.stats.lock().commits += 1;
        self.counts.turns += 1;
        self.transcribe(&item_id, &clip, delay);
        self.moment(Moment::Turn(self.counts.turns));
        self.conversation.forget_audio(self.world.config.keep_audio_s);
        true
    }

    /// Starts the wait for a caller that says nothing, as long as the reply is still being played.
    pub(super) fn wait_for_playback(&mut self, audio_ms: u64) {
        let idle = self.settings.turn_detection.as_ref().and_then(|detection| detection.idle_timeout_ms());
        if idle.is_some() {
            self.at(self.now + Duration::from_millis(audio_ms), Act::PlaybackOver(self.counts.activity));
        }
    }

    fn playback_over(&mut self, activity: u64) {
        let idle = self.settings.turn_detection.as_ref().and_then(|detection| detection.idle_timeout_ms());
        if let Some(idle) = idle
            && activity == self.counts.activity
        {
            let from_ms = self.input.position_ms();
            self.at(self.now + Duration::from_millis(idle), Act::IdleTimeout(activity, from_ms));
        }
    }

    fn idle_timeout(&mut self, activity: u64, from_ms: u64) {
        if activity != self.counts.activity || self.settings.turn_detection.is_none() || self.active().is_some() {
            return;
        }
        let item_id = self.dice.id("item");
        let times = json!({ "audio_start_ms": from_ms, "audio_end_ms": self.input.position_ms(), "item_id": item_id });
        self.send("input_audio_buffer.timeout_triggered", times);
        let audio = self.input.take_since(from_ms);
        if self.commit(item_id, audio, true) {
            self.respond(Request::of_turn(&self.settings), None);
        }
    }

    /// Takes what a reply will need at most from the account.
    pub(super) fn take_tokens(&mut self, tokens: u64) -> Result<Option<Taken>, Full> {
        let who = (self.key.as_str(), self.settings.model.name.as_str());
        let taken = self.world.accounts.reply(&self.world.config, who, self.began + self.now, tokens);
        taken.inspect_err(|full| self.world.stats.limited(full.which.name()))
    }

    /// A reply that has taken so much has used so much.
    pub(super) fn settle_tokens(&mut self, taken: &Taken, used: u64) {
        self.world.accounts.settle(self.began + self.now, taken, used);
    }

    /// Tells how much of the token budget is left after a response.
    fn rate_limits(&mut self, tokens: u64) {
        let who = (self.key.as_str(), self.settings.model.name.as_str());
        if let Some(told) = self.world.accounts.told(&self.world.config, who, self.began + self.now) {
            return self.send("rate_limits.updated", json!({ "rate_limits": told }));
        }
        let limits = self.world.config.rate_limits;
        let per_second = limits.tokens as f64 / 60.0;
        let (since, level) = self.spent;
        let level = (level - (self.now.saturating_sub(since)).as_secs_f64() * per_second).max(0.0) + tokens as f64;
        self.spent = (self.now, level);
        let mut list = Vec::new();
        if limits.requests > 0 {
            let used = self.counts.responses.min(limits.requests);
            let reset = used as f64 * 86_400.0 / limits.requests as f64;
            list.push(json!({
                "name": "requests",
                "limit": limits.requests,
                "remaining": limits.requests - used,
                "reset_seconds": (reset * 1_000.0).round() / 1_000.0,
            }));
        }
        if limits.tokens > 0 {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "at most the limit, which is an u64"
            )]
            let used = level.min(limits.tokens as f64).round() as u64;
            list.push(json!({
                "name": "tokens",
                "limit": limits.tokens,
                "remaining": limits.tokens.saturating_sub(used),
                "reset_seconds": (level / per_second * 1_000.0).round() / 1_000.0,
            }));
        }
        if !list.is_empty() {
            self.send("rate_limits.updated", json!({ "rate_limits": list }));
        }
    }
}
