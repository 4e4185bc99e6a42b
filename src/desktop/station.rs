//! A call with a microphone and a loudspeaker on it: the one place of this room that waits.
//!
//! The counterpart of [`crate::caller::Phone`], whose loudspeaker is a clock and whose microphone is a recording. Sends
//! what the gate lets through, plays what comes, stops at `clear`, tells the relay what was heard, and replaces devices
//! that disappear. What is said to people, and when a call is over, is decided by whoever holds the station.
use std::{
    collections::VecDeque,
    fmt,
    future::{self, Future},
    mem,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};

use super::{
    gate::{Gate, Pass},
    io::{AudioIo, DeviceError, Running, Side, Want},
    keeper::{Keeper, Why},
    mic::{FRAME, Mic},
    speaker::Speaker,
    tap::{MicEnd, SpeakerEnd},
};
use crate::{
    caller::{Call, Event},
    client::wire::{ClientMsg, ServerMsg},
};

/// How often the rings are looked after. Adds half of it to the way of the caller's voice, on average.
const TICK: Duration = Duration::from_millis(10);
/// How often the relay is told what was heard.
const REPORT_EVERY: Duration = Duration::from_millis(100);

/// What a station needs of a call: [`Call`], or a test's own.
pub trait Line {
    /// Sends audio, PCM16 at 24 kHz. A call that is over says so by its last event.
    fn audio(&mut self, data: Bytes);
    /// Sends a message.
    fn say(&mut self, message: &ClientMsg);
    /// The next event; `None` after the last. Cancel safe.
    fn next(&mut self) -> impl Future<Output = Option<Event>>;
}

impl Line for Call {
    fn audio(&mut self, data: Bytes) {
        let _over = self.audio(data);
    }

    fn say(&mut self, message: &ClientMsg) {
        let _over = self.send(message);
    }

    async fn next(&mut self) -> Option<Event> {
        Call::next(self).await
    }
}

/// Which devices, and how they are used.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Opens the microphone.
    pub microphone: Arc<dyn AudioIo>,
    /// Which of them.
    pub input: Want,
    /// Opens the loudspeaker.
    pub loudspeaker: Arc<dyn AudioIo>,
    /// Which of them.
    pub output: Want,
    /// Push-to-talk: the caller ends the turn.
    pub manual: bool,
    /// The microphone is not heard while a reply sounds.
    pub half_duplex: bool,
}

/// Something happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// A recording that is the microphone is through; silence follows. Once.
    Spoken,
    /// Something came from the server.
    Event(Event),
    /// Something became of a device.
    Note(Note),
}

/// What became of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// It is in use.
    Opened {
        /// Which of the two.
        side: Side,
        /// Its name.
        device: String,
    },
    /// It is no longer.
    Lost {
        /// Which of the two.
        side: Side,
        /// Its name.
        device: String,
        /// What it said.
        why: Why,
    },
    /// The one that was asked for cannot be had; another is in use.
    Replaced {
        /// Which of the two.
        side: Side,
        /// The other.
        device: String,
        /// Why not the one that was asked for.
        error: DeviceError,
    },
    /// There is none. It is tried again and again.
    Missing {
        /// Which of the two.
        side: Side,
        /// What the last one said.
        error: DeviceError,
    },
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Opened { side, device } => write!(f, "{side}: {device}"),
            Self::Lost { side, device, why } => write!(f, "the {side} {device} is lost: {why}"),
            Self::Replaced { side, device, error } => write!(f, "{side}: {device} instead, since {error}"),
            Self::Missing { side, error } => write!(f, "no {side}: {error}; waiting for one"),
        }
    }
}

/// What the caller's button did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pressed {
    /// Push-to-talk: the turn is over and asks for an answer.
    Committed,
    /// A reply was stopped; with push-to-talk the caller has the word.
    Interrupted,
    /// Push-to-talk: the caller has the word.
    Word,
    /// Nothing: no reply sounds.
    Nothing,
}

/// Speaks and listens. Nothing moves while [`Station::next`] is not polled.
#[derive(Debug)]
pub struct Station<L> {
    line: L,
    began: Instant,
    tick_at: Instant,
    gate: Gate,
    manual: bool,
    mic: Mic,
    speaker: Speaker,
    input: Device,
    output: Device,
    jobs: JoinSet<(Side, Opened)>,
    steps: VecDeque<Step>,
    /// The reply that has started and not ended.
    reply: Option<Arc<str>>,
    /// A reply that the caller stops: the relay is told when it is known how much was heard.
    stopping: Option<Arc<str>>,
    spoken: bool,
}

/// One side's device: how to open it, when, and what keeps it open.
#[derive(Debug)]
struct Device {
    io: Arc<dyn AudioIo>,
    keeper: Keeper,
    name: String,
    guard: Guard,
}

#[derive(Default)]
struct Guard(Option<Box<dyn Send>>);

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Guard").field(&self.0.is_some()).finish()
    }
}

/// What opening has come to: the device, and why it is not the one that was asked for.
#[derive(Debug)]
enum Opened {
    Microphone(Result<(Running<MicEnd>, Option<DeviceError>), DeviceError>),
    Loudspeaker(Result<(Running<SpeakerEnd>, Option<DeviceError>), DeviceError>),
    /// An old device is closed.
    Closed,
}

impl<L: Line> Station<L> {
    /// Opens both devices and begins to talk on `line`.
    ///
    /// # Errors
    /// When a device cannot be had: later losses are survived, but what is asked for must be there at first.
    pub async fn start(line: L, setup: Setup) -> Result<Self, DeviceError> {
        let Setup { microphone, input, loudspeaker, output, manual, half_duplex } = setup;
        let now = Instant::now();
        let mut station = Self {
            line,
            began: now,
            tick_at: now + TICK,
            gate: Gate::new(manual, half_duplex),
            manual,
            mic: Mic::default(),
            speaker: Speaker::new(REPORT_EVERY),
            input: Device::new(microphone, Side::Microphone, input.clone()),
            output: Device::new(loudspeaker, Side::Loudspeaker, output.clone()),
            jobs: JoinSet::new(),
            steps: VecDeque::new(),
            reply: None,
            stopping: None,
            spoken: false,
        };
        station.input.open(&mut station.jobs, vec![input]);
        station.output.open(&mut station.jobs, vec![output]);
        while let Some(job) = station.jobs.join_next().await {
            let (side, opened) = job.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
            station.opened(Instant::now(), side, opened)?;
        }
        station.began = Instant::now();
        station.tick_at = station.began + TICK;
        Ok(station)
    }

    /// What happens next, and when: the duration since the station began. `None` after the call's end. Cancel safe.
    pub async fn next(&mut self) -> Option<(Duration, Step)> {
        loop {
            if let Some(step) = self.steps.pop_front() {
                return Some((self.now(), step));
            }
            let job = async {
                match self.jobs.join_next().await {
                    Some(job) => job,
                    None => future::pending().await,
                }
            };
            tokio::select! {
                biased; // the rings go first: a flood of messages must not let the loudspeaker run dry
                () = sleep_until(self.tick_at) => {
                    let now = Instant::now();
                    // One that is late is made up for once, not by a burst.
                    self.tick_at = (self.tick_at + TICK).max(now);
                    self.tick(now);
                }
                job = job => {
                    let (side, opened) = job.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
                    self.reopened(side, opened);
                }
                event = self.line.next() => {
                    self.event(Instant::now(), event?);
                }
            }
        }
    }

    /// The caller's button. With push-to-talk it ends the turn, or asks for the word; else it stops the reply.
    pub fn press(&mut self) -> Pressed {
        if self.manual && self.gate.has_word() {
            self.gate.give_word(false);
            self.line.say(&ClientMsg::Commit);
            return Pressed::Committed;
        }
        self.gate.give_word(true);
        match self.reply.take() {
            Some(reply) => {
                if self.speaker.clear(&reply) {
                    self.stopping = Some(reply);
                }
                Pressed::Interrupted
            }
            None if self.manual => {
                // What was asked for and has not begun.
                self.line.say(&ClientMsg::Interrupt { reply: None, played_ms: None });
                Pressed::Word
            }
            None => Pressed::Nothing,
        }
    }

    /// Mutes the microphone, or no longer. Whether it is muted now.
    pub fn toggle_mute(&mut self) -> bool {
        self.gate.mute(!self.gate.is_muted());
        self.gate.is_muted()
    }

    /// Sends a message of the caller's own.
    pub fn say(&mut self, message: &ClientMsg) {
        self.line.say(message);
    }

    /// Now, as [`Station::next`] counts it.
    pub fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// How loud the microphone is, 0 to 1; `None`: there is none.
    pub fn level(&self) -> Option<f32> {
        self.mic.end().map(|_| self.mic.level())
    }

    /// Whether the microphone is muted.
    pub fn is_muted(&self) -> bool {
        self.gate.is_muted()
    }

    /// Push-to-talk: whether the caller has the word.
    pub fn has_word(&self) -> bool {
        self.gate.has_word()
    }

    /// Whether a reply sounds, or will in a moment.
    pub fn is_sounding(&self) -> bool {
        self.speaker.is_sounding(Instant::now())
    }

    /// The reply that is being heard.
    pub fn playing(&self) -> Option<&str> {
        self.speaker.playing(Instant::now()).map(|reply| &**reply)
    }

    /// How much of a reply has been heard.
    pub fn position(&self, reply: &str) -> Duration {
        self.speaker.position(Instant::now(), reply)
    }

    /// How often a reply's audio ran dry and then went on, and for how long in all.
    pub fn underruns(&self) -> (u64, Duration) {
        self.speaker.underruns()
    }

    /// Samples of the microphone that were lost since nobody took them in time.
    pub fn lost(&self) -> u64 {
        self.mic.lost()
    }

    /// Errors that the devices in use have recovered from, and the first one's text.
    pub fn hiccups(&self) -> Vec<(Side, u64, String)> {
        let healths = [
            (Side::Microphone, self.mic.end().map(MicEnd::health)),
            (Side::Loudspeaker, self.speaker.device().map(SpeakerEnd::health)),
        ];
        let counted = healths.into_iter().filter_map(|(side, health)| {
            let health = health.filter(|health| health.errors() > 0)?;
            Some((side, health.errors(), health.why().unwrap_or_default().to_owned()))
        });
        counted.collect()
    }

    /// Closes both devices and gives the call back.
    pub async fn stop(mut self) -> L {
        self.input.close(&mut self.jobs);
        self.output.close(&mut self.jobs);
        while self.jobs.join_next().await.is_some() {}
        self.line
    }

    /// Looks after both rings and both devices.
    fn tick(&mut self, now: Instant) {
        self.speaker.pump(now);
        while let Some((reply, ms)) = self.speaker.settled() {
            let reply_of = reply.to_string();
            self.line.say(&match self.stopping.take_if(|stopping| *stopping == reply) {
                Some(_) => ClientMsg::Interrupt { reply: Some(reply_of), played_ms: Some(ms) },
                None => ClientMsg::Played { reply: reply_of, ms },
            });
        }
        while let Some((reply, ms)) = self.speaker.report(now) {
            self.line.say(&ClientMsg::Played { reply: reply.to_string(), ms });
        }
        self.mic.pump();
        while let Some(frame) = self.mic.frame() {
            match self.gate.pass(now, self.speaker.is_sounding(now)) {
                Pass::Voice => self.line.audio(frame.iter().flat_map(|sample| sample.to_le_bytes()).collect()),
                Pass::Silence => self.line.audio(Bytes::from_static(&[0; FRAME * 2])),
                Pass::Nothing => {}
            }
        }
        if self.mic.is_over() && !mem::replace(&mut self.spoken, true) {
            self.steps.push_back(Step::Spoken);
        }
        self.look_after_devices(now);
    }

    fn look_after_devices(&mut self, now: Instant) {
        let lost = self.mic.end().and_then(|end| self.input.keeper.look(now, end.health()));
        if let Some(why) = lost {
            self.mic.detach();
            let device = self.input.close(&mut self.jobs);
            self.steps.push_back(Step::Note(Note::Lost { side: Side::Microphone, device, why }));
        }
        let lost = self.speaker.device().and_then(|end| self.output.keeper.look(now, end.health()));
        if let Some(why) = lost {
            self.speaker.detach();
            let device = self.output.close(&mut self.jobs);
            self.steps.push_back(Step::Note(Note::Lost { side: Side::Loudspeaker, device, why }));
        }
        for device in [&mut self.input, &mut self.output] {
            if device.keeper.is_due(now) {
                let wants = device.keeper.wants();
                device.open(&mut self.jobs, wants);
            }
        }
    }

    fn reopened(&mut self, side: Side, opened: Opened) {
        let now = Instant::now();
        let Err(error) = self.opened(now, side, opened) else { return };
        let keeper = &mut self.device(side).keeper;
        keeper.failed(now);
        if keeper.failures == 1 {
            self.steps.push_back(Step::Note(Note::Missing { side, error }));
        }
    }

    /// Takes a device that was opened into use.
    fn opened(&mut self, now: Instant, side: Side, opened: Opened) -> Result<(), DeviceError> {
        let (device, guard, other, attached) = match opened {
            Opened::Closed => return Ok(()),
            Opened::Microphone(opened) => {
                let (Running { device, end, guard }, other) = opened?;
                (device, guard, other, self.mic.attach(end))
            }
            Opened::Loudspeaker(opened) => {
                let (Running { device, end, guard }, other) = opened?;
                (device, guard, other, self.speaker.attach(end))
            }
        };
        attached.map_err(|error| DeviceError::Failed { side, device: device.clone(), why: error.to_string() })?;
        let place = self.device(side);
        place.name.clone_from(&device);
        place.guard = Guard(Some(guard));
        place.keeper.opened(now);
        self.steps.push_back(Step::Note(match other {
            None => Note::Opened { side, device },
            Some(error) => Note::Replaced { side, device, error },
        }));
        Ok(())
    }

    fn device(&mut self, side: Side) -> &mut Device {
        match side {
            Side::Microphone => &mut self.input,
            Side::Loudspeaker => &mut self.output,
        }
    }

    fn event(&mut self, now: Instant, event: Event) {
        match &event {
            Event::Audio { reply: Some(reply), data } => {
                let samples = data.as_chunks::<2>().0.iter().map(|bytes| i16::from_le_bytes(*bytes));
                self.speaker.hear(now, reply, samples);
            }
            Event::Message(message) => self.message(message),
            // A lost connection stops neither side: the call keeps what is said, the loudspeaker plays what it has.
            Event::Audio { reply: None, .. }
            | Event::Unknown(_)
            | Event::Dropped(_)
            | Event::Resumed { .. }
            | Event::Ended(_) => {}
        }
        self.steps.push_back(Step::Event(event));
    }

    fn message(&mut self, message: &ServerMsg) {
        match message {
            ServerMsg::Clear { reply } => {
                self.speaker.clear(reply);
            }
            ServerMsg::ReplyStarted { reply } => {
                self.reply = Some(Arc::from(reply.as_str()));
                self.gate.give_word(false);
            }
            ServerMsg::ReplyEnded { reply, .. } => {
                self.speaker.end(reply);
                // Not one that the caller has stopped: since then there may be another turn.
                if self.reply.take_if(|open| **open == **reply).is_some() {
                    self.gate.give_word(true);
                }
            }
            ServerMsg::Error { .. } if self.reply.is_none() => self.gate.give_word(true),
            _ => {}
        }
    }
}

impl Device {
    fn new(io: Arc<dyn AudioIo>, side: Side, want: Want) -> Self {
        Self { io, keeper: Keeper::new(side, want), name: String::new(), guard: Guard::default() }
    }

    /// Tries `wants` one after the other, where it may take its time.
    fn open(&self, jobs: &mut JoinSet<(Side, Opened)>, wants: Vec<Want>) {
        let (io, side) = (Arc::clone(&self.io), self.keeper.side);
        jobs.spawn_blocking(move || {
            let opened = match side {
                Side::Microphone => Opened::Microphone(first(&wants, side, |want| io.open_microphone(want))),
                Side::Loudspeaker => Opened::Loudspeaker(first(&wants, side, |want| io.open_loudspeaker(want))),
            };
            (side, opened)
        });
    }

    /// Closes it, where that may take its time. What it was called.
    fn close(&mut self, jobs: &mut JoinSet<(Side, Opened)>) -> String {
        let (guard, side) = (mem::take(&mut self.guard), self.keeper.side);
        jobs.spawn_blocking(move || {
            drop(guard);
            (side, Opened::Closed)
        });
        mem::take(&mut self.name)
    }
}

/// The first that opens, and why none before it did.
fn first<T>(
    wants: &[Want],
    side: Side,
    open: impl Fn(&Want) -> Result<T, DeviceError>,
) -> Result<(T, Option<DeviceError>), DeviceError> {
    let mut error = None;
    for want in wants {
        match open(want) {
            Ok(opened) => return Ok((opened, error)),
            Err(failed) => error = error.or(Some(failed)),
        }
    }
    Err(error.unwrap_or(DeviceError::None { side }))
}

#[cfg(test)]
mod tests;
