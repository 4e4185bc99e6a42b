//! Who is on the telephone: speaks, listens, presses keys, interrupts and hangs up, by a script.
//!
//! Pure: asked for 20 ms at a time. Hears only through the [`Ear`], as a person does.
use std::{collections::VecDeque, time::Duration};

use super::{
    ear::{Ear, is_audible},
    wire::{FRAME, Media},
};

/// From one key to the next.
const KEYS_APART: Duration = Duration::from_millis(200);

/// When something is done; actions are done in their order, so each waits for those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// At this moment of the line.
    At(Duration),
    /// As soon as all that was to be said has been said.
    Said,
    /// When a reply has sounded for so long since the last word.
    Heard(Duration),
    /// When a reply has sounded, and then nothing for so long.
    Quiet(Duration),
}

/// What is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// Say these samples, at the line's rate.
    Say(Vec<i16>),
    /// Press these keys.
    Press(String),
    /// Hang up.
    HangUp,
}

/// One line of the script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Action {
    /// When.
    pub when: When,
    /// What.
    pub what: What,
}

/// 20 ms of a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moment {
    /// What is said; silence is zeros.
    pub samples: Vec<i16>,
    /// A key that is pressed now.
    pub key: Option<char>,
    /// The receiver goes down.
    pub hangs_up: bool,
}

/// Something that was said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Speech {
    /// When its first audible sample was spoken.
    pub from: Duration,
    /// When its last audible sample was over.
    pub until: Duration,
    /// It began while a reply could be heard.
    pub interrupts: bool,
    /// How long it is, with its silences.
    pub length: Duration,
}

/// The caller.
#[derive(Debug)]
pub struct Person {
    media: Media,
    script: VecDeque<Action>,
    voice: VecDeque<i16>,
    keys: VecDeque<char>,
    next_key: Duration,
    speeches: Vec<Speech>,
}

impl Person {
    /// Somebody with this to do, on a line of this kind.
    pub fn new(media: Media, script: impl IntoIterator<Item = Action>) -> Self {
        Self {
            media,
            script: script.into_iter().collect(),
            voice: VecDeque::new(),
            keys: VecDeque::new(),
            next_key: Duration::ZERO,
            speeches: Vec::new(),
        }
    }

    /// What was said so far, begun at least.
    pub fn speeches(&self) -> &[Speech] {
        &self.speeches
    }

    /// Whether words are still to be said.
    pub fn is_speaking(&self) -> bool {
        !self.voice.is_empty()
    }

    /// The 20 ms that end at `now`.
    pub fn moment(&mut self, now: Duration, ear: &Ear) -> Moment {
        let mut hangs_up = false;
        while let Some(action) =
            self.script.pop_front_if(|action| is_due(action.when, now, ear, &self.voice, &self.speeches))
        {
            match action.what {
                What::Say(samples) => self.say(now, ear, samples),
                What::Press(keys) => self.keys.extend(keys.chars()),
                What::HangUp => hangs_up = true,
            }
        }
        let mut key = None;
        if now >= self.next_key && !self.keys.is_empty() {
            key = self.keys.pop_front();
            self.next_key = now + KEYS_APART;
        }
        let frame = self.media.frame_samples();
        let mut samples: Vec<i16> = self.voice.drain(..frame.min(self.voice.len())).collect();
        samples.resize(frame, 0);
        Moment { samples, key, hangs_up }
    }

    fn say(&mut self, now: Duration, ear: &Ear, samples: Vec<i16>) {
        // What is given out at `now` was spoken in the 20 ms before it.
        let begins = now.saturating_sub(FRAME) + self.media.length(self.voice.len());
        let first = samples.iter().position(|sample| is_audible(*sample)).unwrap_or(0);
        let last = samples.iter().rposition(|sample| is_audible(*sample)).unwrap_or(0);
        let interrupts = ear.last_audible(now).is_some_and(|at| at + KEYS_APART > now);
        self.speeches.push(Speech {
            from: begins + self.media.length(first),
            until: begins + self.media.length(last + 1),
            interrupts,
            length: self.media.length(samples.len()),
        });
        self.voice.extend(samples);
    }
}

fn is_due(when: When, now: Duration, ear: &Ear, voice: &VecDeque<i16>, speeches: &[Speech]) -> bool {
    let said = speeches.last().map_or(Duration::ZERO, |speech| speech.until);
    match when {
        When::At(at) => now >= at,
        When::Said => voice.is_empty(),
        When::Heard(length) => voice.is_empty() && ear.audible(said) >= length && !length.is_zero(),
        When::Quiet(length) => {
            let last = ear.last_audible(now).filter(|at| *at > said);
            voice.is_empty() && last.is_some_and(|at| now >= at + length)
        }
    }
}
