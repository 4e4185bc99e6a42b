//! Speech into a reply that may be none: a cough, an echo, noise on the line.
//!
//! Where an agent has a guard, the service does not stop its replies by itself (`interrupt_response: false`): speech stops one when enough
//! of it was loud, and not within the reply's first words. What was not enough is answered by nobody, and the reply goes on. The guard
//! costs a caller who means it `min_speech` less what the service takes to hear speech.
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Core;
use crate::{call::At, observe::fact::Fact};

/// What speech must be to stop a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guard {
    /// So much of it is loud.
    pub min_speech: Duration,
    /// So much of the reply was heard.
    pub protect: Duration,
}

/// A pause in speech that does not end it.
const PAUSE: Duration = Duration::from_millis(300);

/// What was heard of the caller.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Suspicion {
    /// How much was loud, without a longer pause, and the pause that runs.
    loud: Duration,
    quiet: Duration,
    /// The most that was loud in one go since the service heard speech begin.
    most: Duration,
    /// When audio was heard last.
    heard_at: At,
    /// The service hears speech that has not stopped the reply.
    waits: bool,
    /// It has ended without doing so.
    was_nothing: bool,
}

impl Core {
    /// So much of the caller's audio was loud, or was not.
    pub(super) fn sounds(&mut self, now: At, length: Duration, loud: bool) {
        let Suspicion { loud: so_far, quiet, most, heard_at, .. } = &mut self.suspicion;
        // Lines that send nothing while nobody speaks are quiet, too.
        let gap = now.saturating_sub(std::mem::replace(heard_at, now)).saturating_sub(length);
        if gap >= PAUSE {
            *so_far = Duration::ZERO;
        }
        if loud {
            (*so_far, *quiet) = (*so_far + length, Duration::ZERO);
        } else {
            *quiet += length;
            if *quiet >= PAUSE {
                *so_far = Duration::ZERO;
            }
        }
        *most = (*most).max(*so_far);
        self.judge(now);
    }

    /// The service hears somebody speak: what sounds is stopped, or will be, or goes on.
    pub(super) fn speech_interrupts(&mut self, now: At) {
        if self.plan.guard.is_none() {
            self.moves_on();
            return self.barge_in(now, true);
        }
        (self.suspicion.was_nothing, self.suspicion.most) = (false, self.suspicion.loud);
        if self.playout.active() || self.slot.busy() {
            self.suspicion.waits = true;
            return self.judge(now);
        }
        self.moves_on();
        self.barge_in(now, false);
    }

    /// Stops what sounds once the speech is known to be speech.
    fn judge(&mut self, now: At) {
        let Some(guard) = self.plan.guard.filter(|_| self.suspicion.waits) else { return };
        let spoken = self.suspicion.loud >= guard.min_speech;
        // One of which nothing was heard has no first words yet, and one that has ended needs no protection.
        let protected = self.playout.heard(now).is_some_and(|heard| !heard.is_zero() && heard < guard.protect);
        if spoken && !protected {
            self.suspicion.waits = false;
            self.moves_on();
            self.barge_in(now, false);
        }
    }

    /// It hears that they have stopped.
    pub(super) fn speech_ends(&mut self) {
        if std::mem::take(&mut self.suspicion.waits) {
            // What was said into protected words does not stop them, but it is answered.
            let spoken = self.plan.guard.is_none_or(|guard| self.suspicion.most >= guard.min_speech);
            self.suspicion.was_nothing = !spoken && (self.playout.active() || self.slot.busy());
            if self.suspicion.was_nothing {
                self.note(Fact::FalseStart);
            }
        }
    }

    /// Somebody may be speaking, or not.
    pub(super) fn is_suspicious(&self) -> bool {
        self.suspicion.waits
    }

    /// Somebody speaks, for all that is known.
    pub(super) fn speaks(&self) -> bool {
        self.turn.speaking() && !self.suspicion.waits
    }

    /// The session that heard it is lost.
    pub(super) fn forget_suspicion(&mut self) {
        (self.suspicion.waits, self.suspicion.was_nothing) = (false, false);
    }

    /// The turn that was found is none; asked once.
    pub(super) fn was_false_start(&mut self) -> bool {
        std::mem::take(&mut self.suspicion.was_nothing)
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            Input, Output, Plan,
            tests::{MS, Rig, SECOND, plan},
        },
        *,
    };
    use crate::{
        client::wire::ServerMsg,
        upstream::{Command, Event},
    };

    fn rig(min_speech: Duration, protect: Duration) -> Rig {
        let mut rig = Rig::new(Plan { guard: Some(Guard { min_speech, protect }), ..plan() });
        rig.event(Event::SessionUpdated { hearing: None, writer: None });
        rig.created("resp_1");
        rig.reply_audio("resp_1", "item_1", 4 * SECOND);
        rig.pass(SECOND);
        rig
    }

    /// The caller is heard for so long.
    fn hear(rig: &mut Rig, length: Duration, loud: bool) {
        for _ in 0..length.as_millis() / 20 {
            rig.input(Input::Sounds { length: 20 * MS, loud });
            rig.input(Input::Audio { length: 20 * MS, upstream: &[1; 960] });
            rig.pass(20 * MS);
        }
    }

    fn clears(rig: &Rig) -> Vec<At> {
        let clear = |output: &Output| matches!(output, Output::SendNow(ServerMsg::Clear { .. }));
        rig.log.iter().filter(|(_, output)| clear(output)).map(|(at, _)| *at).collect()
    }

    fn asked(rig: &Rig) -> usize {
        let ask = |output: &Output| matches!(output, Output::Service { command: Command::CreateReply { .. }, .. });
        rig.log.iter().filter(|(_, output)| ask(output)).count()
    }

    #[test]
    fn speech_stops_a_reply_when_enough_of_it_was_loud() {
        let mut rig = rig(300 * MS, Duration::ZERO);
        hear(&mut rig, 100 * MS, true);
        rig.event(Event::SpeechStarted { at_ms: 1_000 });
        assert!(clears(&rig).is_empty());
        hear(&mut rig, 400 * MS, true);
        assert_eq!(clears(&rig), [1_280 * MS], "what was loud before the service heard it counts");
        let cancelled =
            |(_, output): &(At, Output)| matches!(output, Output::Service { command: Command::CancelReply { .. }, .. });
        assert!(rig.log.iter().any(cancelled), "the service does not stop it by itself");
    }

    #[test]
    fn a_cough_stops_nothing_and_is_answered_by_nobody() {
        let mut rig = rig(300 * MS, Duration::ZERO);
        rig.event(Event::SpeechStarted { at_ms: 1_000 });
        hear(&mut rig, 200 * MS, true);
        hear(&mut rig, 500 * MS, false);
        rig.event(Event::SpeechStopped { at_ms: 1_700 });
        rig.event(Event::Committed { item: "item_cough".into() });
        let before = asked(&rig);
        rig.pass(6 * SECOND);
        assert_eq!((clears(&rig), asked(&rig)), (vec![], before));
        let facts = rig.log.iter().filter(|(_, output)| *output == Output::Fact(Fact::FalseStart)).count();
        assert_eq!(facts, 1);
        // Once the reply is over, the same is a turn.
        rig.event(Event::SpeechStarted { at_ms: 9_000 });
        hear(&mut rig, 200 * MS, true);
        rig.event(Event::SpeechStopped { at_ms: 9_700 });
        rig.event(Event::Committed { item: "item_yes".into() });
        assert!(rig.core.suspicion.loud > Duration::ZERO && !rig.core.suspicion.was_nothing);
    }

    #[test]
    fn nobody_interrupts_the_first_words() {
        let mut rig = rig(100 * MS, 2 * SECOND);
        rig.event(Event::SpeechStarted { at_ms: 1_000 });
        hear(&mut rig, 2 * SECOND, true);
        let first = clears(&rig);
        assert!(first.len() == 1 && first[0] >= 2 * SECOND && first[0] <= 2_040 * MS, "{first:?}");
    }
}
