//! A [`Line`] and its [`Person`] on a real connection, in real time: the only place here that waits or reads a clock.
//!
//! The caller's frames go by absolute deadlines, so a late one does not make the next one late.
use std::time::Duration;

use tokio::time::{self, Instant};
use tokio_util::sync::CancellationToken;

use super::{
    dial::{Address, Connection, DialError},
    ear::Ear,
    line::{Ended, Line, Violation},
    person::{Person, Speech},
    setup::Setup,
    wire::{FRAME, Message},
};

/// A pause in a reply that is not its end.
const PAUSE: Duration = Duration::from_millis(400);
/// How long the connection may take to end after the call has.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// What happens on a call, as it does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// The stream is open.
    Connected,
    /// The caller begins to speak; `true`: over a reply.
    Speaks(bool),
    /// The caller has said it all, so much of it.
    Spoke(Duration),
    /// A reply begins to sound, so long after the caller's last word.
    Sounds(Duration),
    /// The relay has cleared what was queued.
    Cleared,
    /// The caller has pressed a key.
    Pressed(char),
    /// The relay has sent keys into the call.
    Keys(String),
    /// The relay has broken a rule.
    Violation(String),
    /// The call is over.
    Ended(Ended),
}

/// A call in figures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// How it ended.
    pub ended: Ended,
    /// What the caller said, with its silences.
    pub spoke: Duration,
    /// From the caller's first last word to the first sound after it.
    pub first_sound: Option<Duration>,
    /// How long something could be heard, all in all.
    pub heard: Duration,
    /// For each interruption: from its first audible sample to the last of the reply.
    pub silenced: Vec<Duration>,
    /// Marks that came back because they were played.
    pub marks_played: usize,
    /// Marks that a clear brought back.
    pub marks_cleared: usize,
    /// How often the relay cleared.
    pub clears: usize,
    /// Keys that the relay sent.
    pub keys: String,
    /// Broken rules.
    pub violations: Vec<Violation>,
}

impl Summary {
    /// What a line and its person know after the call.
    pub fn of(line: &Line, person: &Person, ended: Ended) -> Self {
        let ear = line.ear();
        let speeches = person.speeches();
        let first_sound = speeches.first().and_then(|speech| after(ear, speech.until));
        let cut = speeches.iter().filter(|speech| speech.interrupts);
        let marks = |played| line.marked().iter().filter(|mark| mark.played == played).count();
        Self {
            spoke: speeches.iter().map(|speech| speech.length).sum(),
            first_sound,
            heard: ear.audible(Duration::ZERO),
            silenced: cut
                .map(|speech| ear.sounds_until(speech.from, PAUSE).map_or(Duration::ZERO, |at| at - speech.from))
                .collect(),
            marks_played: marks(true),
            marks_cleared: marks(false),
            clears: line.clears().len(),
            keys: line.digits().to_owned(),
            violations: line.violations().to_vec(),
            ended,
        }
    }
}

fn after(ear: &Ear, said: Duration) -> Option<Duration> {
    ear.first_audible(said).map(|at| at - said)
}

/// A call that is over.
#[derive(Debug)]
pub struct Outcome {
    /// The line, with all that it has recorded.
    pub line: Line,
    /// What the caller said.
    pub speeches: Vec<Speech>,
    /// The call in figures.
    pub summary: Summary,
}

/// Calls `address`. `told` hears what happens; after `longest` the caller hangs up.
///
/// # Errors
/// When no stream came about.
pub async fn drive(
    address: &Address,
    setup: Setup,
    person: Person,
    longest: Duration,
    told: impl FnMut(Duration, Told),
) -> Result<Outcome, DialError> {
    drive_until(address, setup, person, longest, CancellationToken::new(), told).await
}

/// The same; where `over` is cancelled, the provider ends the stream, as if the caller had hung up.
///
/// # Errors
/// When no stream came about.
pub async fn drive_until(
    address: &Address,
    setup: Setup,
    person: Person,
    longest: Duration,
    over: CancellationToken,
    told: impl FnMut(Duration, Told),
) -> Result<Outcome, DialError> {
    let mut connection = address.connect().await?;
    let mut call = Call { line: Line::new(setup), person, told, over, seen: Seen::default() };
    let code = call.run(&mut connection, longest).await;
    connection.close(code).await;
    let Call { line, person, .. } = call;
    let ended = line.ended().cloned().unwrap_or_else(|| Ended {
        at: longest,
        who: super::line::Who::Caller,
        why: "the caller hung up".to_owned(),
        unheard: Duration::ZERO,
    });
    let summary = Summary::of(&line, &person, ended);
    let speeches = person.speeches().to_vec();
    Ok(Outcome { line, speeches, summary })
}

struct Call<F> {
    line: Line,
    person: Person,
    told: F,
    over: CancellationToken,
    seen: Seen,
}

/// What has been told already.
#[derive(Debug, Default)]
struct Seen {
    speeches: usize,
    spoken: usize,
    sounded: usize,
    clears: usize,
    violations: usize,
    keys: usize,
    ended: bool,
}

impl<F: FnMut(Duration, Told)> Call<F> {
    /// Runs to the end; returns the code to close with.
    async fn run(&mut self, connection: &mut Connection, longest: Duration) -> u16 {
        let began = Instant::now();
        let (mut frame, mut open) = (FRAME, true);
        self.line.open(Duration::ZERO);
        (self.told)(Duration::ZERO, Told::Connected);
        loop {
            let now = began.elapsed();
            while frame <= now {
                self.frame(frame, longest);
                frame += FRAME;
            }
            while let Some(message) = self.line.poll(now) {
                if let Message::Close { code } = message {
                    self.tell(now);
                    return code;
                }
                connection.send(message);
            }
            self.tell(now);
            let ended = self.line.ended().map(|ended| ended.at + self.line.setup().network.to_relay + LAST_WORDS);
            if ended.is_some_and(|at| now >= at) {
                return 1_000;
            }
            let wake = self.line.deadline().map_or(frame, |at| at.min(frame)).max(now);
            tokio::select! {
                biased;
                got = connection.next(), if open => {
                    open = matches!(got, Ok(Message::Text(_) | Message::Binary(_)));
                    match got {
                        Ok(message) => self.line.handle(began.elapsed(), message),
                        Err(why) => self.line.lost(began.elapsed(), &why),
                    }
                }
                () = time::sleep_until(began + wake) => {}
            }
        }
    }

    /// 20 ms of the caller.
    fn frame(&mut self, now: Duration, longest: Duration) {
        let moment = self.person.moment(now, self.line.ear());
        self.line.speak(now, &moment.samples);
        if let Some(key) = moment.key {
            self.line.press(now, key);
            (self.told)(now, Told::Pressed(key));
        }
        if moment.hangs_up || now >= longest || self.over.is_cancelled() {
            self.line.hang_up(now);
        }
    }

    /// Says what is new.
    fn tell(&mut self, now: Duration) {
        let speeches = self.person.speeches();
        if let Some(speech) = speeches.get(self.seen.speeches) {
            self.seen.speeches += 1;
            (self.told)(now, Told::Speaks(speech.interrupts));
        }
        if self.seen.spoken < self.seen.speeches && !self.person.is_speaking() {
            let length = speeches.get(self.seen.spoken).map_or(Duration::ZERO, |speech| speech.length);
            self.seen.spoken += 1;
            (self.told)(now, Told::Spoke(length));
        }
        if self.seen.sounded < self.seen.spoken {
            let said = speeches.get(self.seen.sounded).map_or(Duration::ZERO, |speech| speech.until);
            // What is still sounding when the words are over is not the answer to them.
            let from = self.line.ear().sounds_until(said, FRAME).unwrap_or(said);
            let interrupts = speeches.get(self.seen.sounded).is_some_and(|speech| speech.interrupts);
            let from = if interrupts { from } else { said };
            if let Some(at) = self.line.ear().first_audible(from).filter(|at| *at <= now) {
                self.seen.sounded += 1;
                (self.told)(at, Told::Sounds(at - said));
            }
        }
        if let Some(at) = self.line.clears().get(self.seen.clears) {
            self.seen.clears += 1;
            (self.told)(*at, Told::Cleared);
        }
        if let Some(violation) = self.line.violations().get(self.seen.violations) {
            self.seen.violations += 1;
            (self.told)(violation.at, Told::Violation(violation.text.clone()));
        }
        if let Some(keys) = self.line.digits().get(self.seen.keys..).filter(|keys| !keys.is_empty()) {
            self.seen.keys += keys.len();
            (self.told)(now, Told::Keys(keys.to_owned()));
        }
        if let Some(ended) = self.line.ended().filter(|_| !self.seen.ended) {
            self.seen.ended = true;
            (self.told)(ended.at, Told::Ended(ended.clone()));
        }
    }
}

#[cfg(test)]
mod tests;
