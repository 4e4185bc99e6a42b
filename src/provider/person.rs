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
    /// When something has sounded after the last word, be it the end of what was interrupted, and then nothing for so long.
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
        while self.script.front().is_some_and(|action| self.is_due(action.when, now, ear)) {
            let Some(action) = self.script.pop_front() else { break };
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

    fn is_due(&self, when: When, now: Duration, ear: &Ear) -> bool {
        let said = self.speeches.last().map_or(Duration::ZERO, |speech| speech.until);
        let silent = self.voice.is_empty();
        match when {
            When::At(at) => now >= at,
            When::Said => silent,
            When::Heard(length) => silent && ear.audible(said) >= length,
            When::Quiet(length) => {
                let last = ear.last_audible(now).filter(|at| *at > said);
                silent && last.is_some_and(|at| now >= at + length)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    #[test]
    fn a_script_is_done_in_its_order() {
        let voice = vec![5_000; 400]; // 50 ms
        let script = [
            Action { when: When::At(MS(40)), what: What::Say(voice.clone()) },
            Action { when: When::Said, what: What::Press("1#".to_owned()) },
            Action { when: When::Heard(MS(40)), what: What::Say(voice) },
            Action { when: When::Quiet(MS(100)), what: What::HangUp },
        ];
        let mut person = Person::new(Media::MULAW, script);
        let mut ear = Ear::new(Media::MULAW);
        let (mut spoken, mut keys, mut hung_up) = (Vec::new(), Vec::new(), None);
        for n in 1..60 {
            let now = MS(n * 20);
            // A reply from 200 to 300 ms: its end is what sounds last.
            if (200..300).contains(&(n * 20)) {
                ear.hear(now, vec![5_000; 160]);
            }
            let moment = person.moment(now, &ear);
            assert_eq!(moment.samples.len(), 160);
            if moment.samples.iter().any(|sample| is_audible(*sample)) {
                spoken.push(n * 20);
            }
            keys.extend(moment.key.map(|key| (n * 20, key)));
            if moment.hangs_up {
                hung_up.get_or_insert(n * 20);
            }
        }
        assert_eq!(spoken, [40, 60, 80, 220, 240, 260]);
        assert_eq!(keys, [(100, '1'), (300, '#')]);
        assert_eq!(hung_up, Some(400));
        let [first, second] = person.speeches() else { panic!("{:?}", person.speeches()) };
        assert_eq!((first.from, first.until, first.interrupts), (MS(20), MS(70), false));
        assert_eq!((second.from, second.interrupts), (MS(200), true));
    }
}
