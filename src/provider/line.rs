//! One call at the provider: what the relay says goes in, what the provider says comes out.
//!
//! Stands between a socket ([`mod@super::drive`], or a test's own wire) and the caller ([`super::person`]). Owns no socket, task or
//! clock: times are arguments, counted from the line's beginning. Which words are used is [`super::dialect`]'s business; here
//! is what they do to the [`super::playout`] buffer, and so to the caller's [`Ear`].
use std::{collections::VecDeque, time::Duration};

use super::{
    dialect::{self, Command, Dialect, OnClear, Pieces, Rules, Said, Status},
    ear::{Ear, is_audible},
    playout::{Playout, Tag},
    quirk::{Injected, Stop, Wire},
    setup::Setup,
    wire::{FRAME, Media, Message},
};

/// A usual goodbye.
const CLOSE_NORMAL: u16 = 1_000;
/// A provider's error ended the connection.
const CLOSE_ERROR: u16 = 1_011;

/// Which way a message went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the provider.
    ToRelay,
    /// From the relay.
    FromRelay,
}

/// A message and when the provider sent it or had it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Since the line's beginning.
    pub at: Duration,
    /// Which way.
    pub direction: Direction,
    /// What.
    pub message: Message,
}

/// A rule of the provider that the relay has broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// When, the first time.
    pub at: Duration,
    /// What is wrong, and what is allowed.
    pub text: String,
    /// How often in a row.
    pub times: u64,
}

/// Who ended a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// The person on the telephone.
    Caller,
    /// The relay: with a command, or by closing.
    Relay,
    /// The provider, because a rule was broken.
    Provider,
}

/// How a call ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// When.
    pub at: Duration,
    /// Who.
    pub who: Who,
    /// In words.
    pub why: String,
    /// What was queued and will never be heard.
    pub unheard: Duration,
}

/// A mark that came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marked {
    /// When.
    pub at: Duration,
    /// The relay's name of it; Vonage's payload as JSON.
    pub name: String,
    /// Its audio has been played; otherwise a clear brought it.
    pub played: bool,
}

/// One call.
#[derive(Debug)]
pub struct Line {
    setup: Setup,
    rules: Rules,
    dialect: Box<dyn Dialect>,
    playout: Playout,
    ear: Ear,
    /// Bytes that do not make a sample, or a frame, yet.
    leftover: Vec<u8>,
    buffering: bool,
    xoff: bool,
    tell_drained: bool,
    from_relay: Wire,
    to_relay: Wire,
    incoming: VecDeque<(Duration, Message)>,
    outgoing: VecDeque<(Duration, Message)>,
    start_at: Option<Duration>,
    started: Option<Duration>,
    /// What the caller said that does not fill a frame yet.
    voice: Vec<i16>,
    /// A media message that waits for the one that overtakes it.
    overtaken: Option<Message>,
    sent: u64,
    clears: Vec<Duration>,
    marked: Vec<Marked>,
    digits: String,
    violations: Vec<Violation>,
    journal: Vec<Entry>,
    injected: Injected,
    ended: Option<Ended>,
}

impl Line {
    /// A call whose connection is not open yet; see [`Self::open`].
    pub fn new(setup: Setup) -> Self {
        let rules = dialect::rules(&setup);
        let network = setup.network;
        Self {
            rules,
            dialect: dialect::dialect(&setup),
            playout: Playout::new(setup.reply, rules.whole_frames, rules.marks_wait, setup.quirks.holds),
            ear: Ear::new(setup.reply),
            leftover: Vec::new(),
            buffering: false,
            xoff: false,
            tell_drained: false,
            from_relay: Wire::new(network.from_relay, network.jitter, setup.seed),
            to_relay: Wire::new(network.to_relay, network.jitter, !setup.seed),
            incoming: VecDeque::new(),
            outgoing: VecDeque::new(),
            start_at: None,
            started: None,
            voice: Vec::new(),
            overtaken: None,
            sent: 0,
            clears: Vec::new(),
            marked: Vec::new(),
            digits: String::new(),
            violations: Vec::new(),
            journal: Vec::new(),
            injected: Injected::default(),
            ended: None,
            setup,
        }
    }

    /// The connection is open: the stream starts.
    pub fn open(&mut self, now: Duration) {
        self.start_at = Some(now + self.setup.quirks.start_after);
        self.advance(now);
    }

    /// A message of the relay's, as it leaves the relay.
    pub fn handle(&mut self, now: Duration, message: Message) {
        let arrives = self.from_relay.arrival(now);
        self.incoming.push_back((arrives, message));
        self.advance(now);
    }

    /// What the caller says: any number of samples at [`Setup::media`]'s rate. Each 20 ms become a message.
    pub fn speak(&mut self, now: Duration, samples: &[i16]) {
        self.advance(now);
        self.voice.extend_from_slice(samples);
        let frame = self.setup.media.frame_samples().max(1);
        while self.voice.len() >= frame {
            let rest = self.voice.split_off(frame);
            let spoken = std::mem::replace(&mut self.voice, rest);
            self.say_frame(now, &spoken);
        }
    }

    /// The caller presses a key.
    pub fn press(&mut self, now: Duration, digit: char) {
        self.advance(now);
        if let (Some(started), None) = (self.started, &self.ended) {
            let message = self.dialect.digit(digit, ms(now.saturating_sub(started)));
            self.send(now, message);
        }
    }

    /// The caller hangs up.
    pub fn hang_up(&mut self, now: Duration) {
        self.advance(now);
        if self.ended.is_none() {
            self.end(now, Who::Caller, "the caller hung up".to_owned());
        }
    }

    /// The connection is gone without a goodbye.
    pub fn lost(&mut self, now: Duration, why: &str) {
        self.advance(now);
        if self.ended.is_none() {
            self.end(now, Who::Relay, format!("the connection was lost: {why}"));
        }
    }

    /// The next message that has reached the relay.
    pub fn poll(&mut self, now: Duration) -> Option<Message> {
        self.run(now, |_, _| true);
        let (arrives, _) = self.outgoing.front()?;
        if *arrives > now { None } else { self.outgoing.pop_front().map(|(_, message)| message) }
    }

    /// When to call [`Self::poll`] again, if nothing is said meanwhile.
    pub fn deadline(&self) -> Option<Duration> {
        let out = self.outgoing.front().map(|(at, _)| *at);
        [out, self.next_event().map(|(at, _)| at)].into_iter().flatten().min()
    }

    /// What the caller has heard.
    pub fn ear(&self) -> &Ear {
        &self.ear
    }

    /// The call as it was set up.
    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    /// Audio that is queued at the provider and has not been played.
    pub fn queued(&self) -> Duration {
        self.playout.queued()
    }

    /// Rules that the relay has broken.
    pub fn violations(&self) -> &[Violation] {
        &self.violations
    }

    /// When the relay cleared the queue.
    pub fn clears(&self) -> &[Duration] {
        &self.clears
    }

    /// Marks that came back, played or not.
    pub fn marked(&self) -> &[Marked] {
        &self.marked
    }

    /// Keys that the relay has sent into the call.
    pub fn digits(&self) -> &str {
        &self.digits
    }

    /// Every message both ways, where [`Setup::journal`] asks for it.
    pub fn journal(&self) -> &[Entry] {
        &self.journal
    }

    /// What was done on request ([`super::quirk`]).
    pub fn injected(&self) -> Injected {
        self.injected
    }

    /// How the call ended; `None`: it goes on.
    pub fn ended(&self) -> Option<&Ended> {
        self.ended.as_ref()
    }

    /// Does everything that is due, in the order in which it is. The leg's clock stands just before its tick at `now`: what else
    /// arrives at `now` is still played by it.
    fn advance(&mut self, now: Duration) {
        self.run(now, |at, due| at < now || !matches!(due, Due::Tick));
    }

    fn run(&mut self, now: Duration, wanted: impl Fn(Duration, Due) -> bool) {
        while let Some((at, event)) = self.next_event().filter(|(at, due)| *at <= now && wanted(*at, *due)) {
            match event {
                Due::Start => self.start(at),
                Due::Tag => {
                    if let Some(tag) = self.playout.take_due() {
                        self.came_out(at, &tag, true);
                    }
                }
                Due::Arrival => {
                    if let Some((_, message)) = self.incoming.pop_front() {
                        self.arrived(at, message);
                    }
                }
                Due::Tick => self.tick(),
            }
        }
    }

    /// What is next. At the same moment: what has been played is told first, and what arrives may still be played.
    fn next_event(&self) -> Option<(Duration, Due)> {
        if self.ended.is_some() {
            return None;
        }
        let start = self.start_at.filter(|_| self.started.is_none()).map(|at| (at, Due::Start));
        let tag = self.playout.next_due().map(|at| (at, Due::Tag));
        let arrival = self.incoming.front().map(|(at, _)| (*at, Due::Arrival));
        let tick = self.playout.next_tick().map(|at| (at, Due::Tick));
        [start, tag, arrival, tick].into_iter().flatten().min_by_key(|(at, _)| *at)
    }

    fn start(&mut self, now: Duration) {
        self.started = Some(now);
        for message in self.dialect.start() {
            self.send(now, message);
        }
    }

    fn send(&mut self, now: Duration, message: Message) {
        self.note(now, Direction::ToRelay, &message);
        let arrives = self.to_relay.arrival(now);
        self.outgoing.push_back((arrives, message));
    }

    fn note(&mut self, at: Duration, direction: Direction, message: &Message) {
        if self.setup.journal {
            self.journal.push(Entry { at, direction, message: message.clone() });
        }
    }

    fn say_frame(&mut self, now: Duration, spoken: &[i16]) {
        let quirks = self.setup.quirks;
        if self.ended.is_some() {
            return;
        }
        if self.started.is_none() {
            if self.injected.early >= quirks.early_media || self.start_at.is_none() {
                return;
            }
            self.injected.early += 1;
        }
        if quirks.pauses && !spoken.iter().copied().any(is_audible) {
            self.injected.paused += 1;
            return;
        }
        // The time at which the frame began.
        let at_ms = self.started.map_or(0, |started| ms(now.saturating_sub(started)));
        let message = self.dialect.media(&self.setup.media.encode(spoken), at_ms);
        self.sent += 1;
        self.injected.wrong_ids += u64::from(quirks.wrong_stream_ids);
        let due = |every: Option<u64>| every.is_some_and(|every| self.sent.is_multiple_of(every.max(1)));
        let (twice, late) = (due(quirks.duplicate_every), due(quirks.swap_every));
        if late && self.overtaken.is_none() {
            self.overtaken = Some(message);
            return;
        }
        if twice {
            self.injected.duplicated += 1;
            self.send(now, message.clone());
        }
        self.send(now, message);
        if let Some(overtaken) = self.overtaken.take() {
            self.injected.swapped += 1;
            self.send(now, overtaken);
        }
    }

    fn arrived(&mut self, now: Duration, message: Message) {
        self.note(now, Direction::FromRelay, &message);
        if let Message::Close { code } = message {
            let how = if code == CLOSE_NORMAL { String::new() } else { format!(" with code {code}") };
            return self.end(now, Who::Relay, format!("the relay closed the connection{how}"));
        }
        if self.started.is_none() {
            self.fault(now, "a message before the stream has started".to_owned());
        }
        for command in self.dialect.take(&message) {
            if self.ended.is_none() {
                self.obey(now, command);
            }
        }
    }

    fn obey(&mut self, now: Duration, command: Command) {
        match command {
            Command::Play(audio) => self.play(now, &audio),
            Command::Mark(name) => self.playout.tag(now, Tag::Mark(name)),
            Command::Clear => self.clear(now),
            Command::ClearMarks => {
                for tag in self.playout.clear_tags() {
                    self.came_out(now, &tag, false);
                }
            }
            Command::HangUp => self.end(now, Who::Relay, "the relay hung up".to_owned()),
            Command::Digits(digits) => self.digits.push_str(&digits),
            Command::Buffer => self.buffering = true,
            Command::Buffered(id) => {
                self.buffering = false;
                let last = std::mem::take(&mut self.leftover);
                let samples = self.setup.reply.decode(&last);
                self.queue(now, samples);
                self.playout.tag(now, Tag::Buffered(id));
            }
            Command::Pause(paused) => self.playout.pause(now, paused),
            Command::Status => {
                let status = Status {
                    queued: self.playout.frames(),
                    full: self.xoff,
                    buffering: self.buffering,
                    paused: self.playout.is_paused(),
                };
                self.tell(now, &Said::Status(status));
            }
            Command::TellDrained => {
                self.tell_drained = true;
                self.playout.wake(now);
            }
            Command::Nothing => {}
            Command::Fault(text) => self.fault(now, text),
            Command::Fatal(text) => {
                self.fault(now, text.clone());
                self.tell(now, &Said::Error);
                self.end(now, Who::Provider, format!("the provider hung up because of {text}"));
            }
        }
    }

    fn tell(&mut self, now: Duration, said: &Said<'_>) {
        if let Some(message) = self.dialect.say(said) {
            self.send(now, message);
        }
    }

    fn fault(&mut self, now: Duration, text: String) {
        match self.violations.last_mut() {
            Some(last) if last.text == text => last.times += 1,
            _ => self.violations.push(Violation { at: now, text, times: 1 }),
        }
    }

    /// Audio, by the provider's rule of pieces.
    fn play(&mut self, now: Duration, audio: &[u8]) {
        let media = self.setup.reply;
        let frame = media.frame_bytes();
        match self.rules.pieces {
            Pieces::Exact if audio.len() != frame => {
                let text = format!("a message of {} bytes; allowed: exactly {frame}, 20 ms", audio.len());
                return self.fault(now, text);
            }
            Pieces::Between(least, most) => {
                let length = media.length(audio.len() / media.sample_bytes());
                if length < least || length > most {
                    let (found, least, most) = (ms(length), ms(least), ms(most));
                    return self.fault(now, format!("{found} ms of audio in a message; allowed: {least} to {most} ms"));
                }
            }
            Pieces::Multiple if !self.buffering => {
                let over = audio.len() % frame.max(1);
                if over > 0 {
                    self.fault(now, format!("{over} bytes beyond a multiple of {frame} were dropped"));
                }
                let whole = audio.get(..audio.len() - over).unwrap_or_default();
                return self.frames(now, media, whole);
            }
            Pieces::Exact | Pieces::Any | Pieces::Multiple => {}
        }
        self.leftover.extend_from_slice(audio);
        // While Asterisk's queue is fed by the turn, only whole frames enter it.
        let unit = if self.rules.pieces == Pieces::Multiple { frame } else { media.sample_bytes() };
        let rest = self.leftover.split_off(self.leftover.len() - self.leftover.len() % unit.max(1));
        let whole = std::mem::replace(&mut self.leftover, rest);
        if self.rules.pieces == Pieces::Multiple {
            self.frames(now, media, &whole);
        } else {
            let samples = media.decode(&whole);
            self.queue(now, samples);
        }
    }

    fn frames(&mut self, now: Duration, media: Media, whole: &[u8]) {
        for frame in whole.chunks(media.frame_bytes().max(1)) {
            let samples = media.decode(frame);
            self.queue(now, samples);
        }
    }

    /// Into the queue, as far as it has room.
    fn queue(&mut self, now: Duration, mut samples: Vec<i16>) {
        if samples.is_empty() {
            return;
        }
        if let Some(capacity) = self.rules.capacity {
            let room = capacity.saturating_sub(self.playout.frames());
            let fits = if self.rules.whole_frames { room.min(1) * samples.len() } else { room * self.frame_samples() };
            if samples.len() > fits {
                samples.truncate(fits);
                self.fault(now, self.rules.overflow.to_owned());
            }
        }
        self.playout.push(now, samples);
        if !self.xoff && self.rules.flow.is_some_and(|(stop, _)| self.playout.frames() >= stop) {
            self.xoff = true;
            self.tell(now, &Said::Xoff);
        }
    }

    fn frame_samples(&self) -> usize {
        self.setup.reply.frame_samples()
    }

    fn clear(&mut self, now: Duration) {
        self.clears.push(now);
        self.leftover.clear();
        self.buffering = false;
        let tags = self.playout.clear();
        match self.rules.on_clear {
            OnClear::Returned => tags.iter().for_each(|tag| self.came_out(now, tag, false)),
            OnClear::Lost => {}
            OnClear::Kept => tags.into_iter().for_each(|tag| self.playout.tag(now, tag)),
        }
        self.tell(now, &Said::Cleared);
        if self.xoff {
            self.playout.wake(now); // the next tick sees that there is room
        }
    }

    fn came_out(&mut self, now: Duration, tag: &Tag, played: bool) {
        match tag {
            Tag::Mark(name) => {
                self.marked.push(Marked { at: now, name: name.clone(), played });
                self.tell(now, &Said::Mark { name, played });
            }
            Tag::Buffered(id) => self.tell(now, &Said::Buffered(id.as_deref())),
        }
    }

    fn tick(&mut self) {
        let Some(tick) = self.playout.tick() else { return };
        let empty = tick.samples.is_empty();
        self.ear.hear(tick.at + self.setup.ear_delay, tick.samples);
        if self.xoff && self.rules.flow.is_some_and(|(_, go)| self.playout.frames() < go) {
            self.xoff = false;
            self.tell(tick.at, &Said::Xon);
        }
        if self.tell_drained && empty {
            self.tell_drained = false;
            while self.playout.next_due().is_some_and(|at| at <= tick.at) {
                if let Some(tag) = self.playout.take_due() {
                    self.came_out(tick.at, &tag, true);
                }
            }
            self.tell(tick.at, &Said::Drained);
        } else if self.tell_drained {
            self.playout.wake(tick.at + FRAME);
        }
    }

    fn end(&mut self, now: Duration, who: Who, why: String) {
        let unheard = self.playout.queued();
        self.playout.clear();
        if let Some(overtaken) = self.overtaken.take() {
            self.send(now, overtaken); // nothing came any more to overtake it
        }
        if who == Who::Caller {
            let times = match self.setup.quirks.stop {
                Stop::Once => 1,
                Stop::Never => 0,
                Stop::Twice => 2,
            };
            for _ in 0..times {
                if let Some(stop) = self.dialect.stop() {
                    self.injected.stops += 1;
                    self.send(now, stop);
                }
            }
        }
        let code = if who == Who::Provider { CLOSE_ERROR } else { CLOSE_NORMAL };
        self.send(now, Message::Close { code });
        self.ended = Some(Ended { at: now, who, why, unheard });
    }
}

/// Kinds of what can be due.
#[derive(Debug, Clone, Copy)]
enum Due {
    Start,
    Tag,
    Arrival,
    Tick,
}

fn ms(length: Duration) -> u64 {
    u64::try_from(length.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
