//! What of the microphone reaches the call: all of it, silence in its place, or nothing.
//!
//! Pure: the moment comes in as `now`.
use std::time::Duration;

use tokio::time::Instant;

/// Half duplex: so long after a reply the room still sounds of it, and the microphone's own ring is behind.
const TAIL: Duration = Duration::from_millis(300);

/// What to do with a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    /// Send it.
    Voice,
    /// Send as much silence: the service goes on listening for the end of a turn.
    Silence,
    /// Send nothing.
    Nothing,
}

/// Half duplex, push-to-talk and mute.
#[derive(Debug)]
pub struct Gate {
    manual: bool,
    half_duplex: bool,
    muted: bool,
    /// Push-to-talk: the caller has the word.
    word: bool,
    deaf_until: Option<Instant>,
}

impl Gate {
    /// One in which the caller has the word.
    pub fn new(manual: bool, half_duplex: bool) -> Self {
        Self { manual, half_duplex, muted: false, word: true, deaf_until: None }
    }

    /// What to do with a frame that was heard now, while a reply sounds or not.
    pub fn pass(&mut self, now: Instant, sounding: bool) -> Pass {
        if sounding {
            self.deaf_until = Some(now + TAIL);
        }
        let deaf = self.half_duplex && self.deaf_until.is_some_and(|until| now < until);
        match (self.manual && !self.word, self.muted || deaf) {
            (true, _) => Pass::Nothing,
            (_, true) => Pass::Silence,
            _ => Pass::Voice,
        }
    }

    /// Push-to-talk: whether the caller has the word.
    pub fn has_word(&self) -> bool {
        self.word
    }

    /// Push-to-talk: gives the caller the word, or takes it.
    pub fn give_word(&mut self, word: bool) {
        self.word = word;
    }

    /// Whether the microphone is muted.
    pub fn is_muted(&self) -> bool {
        self.muted
    }

    /// Mutes the microphone, or no longer.
    pub fn mute(&mut self, muted: bool) {
        self.muted = muted;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_half_duplex_microphone_is_deaf_while_a_reply_sounds_and_a_little_longer() {
        let (began, ms) = (Instant::now(), Duration::from_millis);
        let mut open = Gate::new(false, false);
        let mut half = Gate::new(false, true);
        for (at, sounding, want) in [
            (0, false, Pass::Voice),
            (20, true, Pass::Silence),
            (500, true, Pass::Silence),
            (799, false, Pass::Silence),
            (800, false, Pass::Voice),
        ] {
            assert_eq!(half.pass(began + ms(at), sounding), want, "{at}");
            assert_eq!(open.pass(began + ms(at), sounding), Pass::Voice, "{at}");
        }
    }

    #[test]
    fn who_has_not_the_word_is_not_heard_and_who_is_muted_is_silent() {
        let now = Instant::now();
        for (manual, word, muted, want) in [
            (false, true, true, Pass::Silence),
            (false, false, false, Pass::Voice),
            (true, true, false, Pass::Voice),
            (true, true, true, Pass::Silence),
            (true, false, false, Pass::Nothing),
            (true, false, true, Pass::Nothing),
        ] {
            let mut gate = Gate::new(manual, false);
            assert!(gate.has_word() && !gate.is_muted());
            gate.give_word(word);
            gate.mute(muted);
            assert_eq!(gate.pass(now, true), want, "{manual} {word} {muted}");
        }
    }
}
