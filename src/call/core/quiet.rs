//! A caller who says nothing: asked whether there is still anybody, and in the end hung up on.
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Core;
use crate::call::{At, end::End, slot::Want};

/// What is said into silence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prompt {
    /// After so long.
    pub after: Duration,
    /// This.
    pub say: String,
    /// So often; the call ends when nothing is said to the last one either.
    pub times: u32,
}

/// How long nobody has said anything.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Quiet {
    since: At,
    said: u32,
    /// It was asked for, and has not begun.
    asked: bool,
}

impl Core {
    /// Somebody speaks, or something is under way.
    pub(super) fn note_quiet(&mut self, now: At) {
        if self.plan.prompt.is_some() && (self.is_at_work() || !self.up) {
            self.quiet.since = now;
        }
    }

    fn is_at_work(&self) -> bool {
        self.somebody_speaks() || !self.slot.idle() || self.tools.deadline(true).is_some()
    }

    /// The caller has said something.
    pub(super) fn caller_spoke(&mut self) {
        (self.quiet.said, self.quiet.asked) = (0, false);
    }

    /// A reply begins: what was asked for is said, and counts. One that was refused does not.
    pub(super) fn prompt_began(&mut self) {
        if std::mem::take(&mut self.quiet.asked) {
            self.quiet.said += 1;
        }
    }

    /// When silence has lasted too long.
    pub(super) fn prompts_at(&self) -> Option<At> {
        let prompt = self.plan.prompt.as_ref().filter(|_| self.up && self.leaving.is_none() && self.pass.is_none())?;
        (!self.is_at_work()).then_some(self.quiet.since + prompt.after)
    }

    /// Says what is said into silence; the end, if it was said often enough.
    pub(super) fn prompt(&mut self, now: At) -> Option<End> {
        self.prompts_at().filter(|at| now >= *at)?;
        let prompt = self.plan.prompt.as_ref()?;
        if self.quiet.said >= prompt.times {
            return Some(End::Silent(prompt.after));
        }
        let instructions =
            format!("Nobody has said anything for a while. Say exactly this, and nothing else: {}", prompt.say);
        (self.quiet.since, self.quiet.asked) = (now, true);
        self.slot.want(Want::told(instructions));
        None
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            Input, Output, Plan,
            tests::{Rig, SECOND, plan},
        },
        *,
    };
    use crate::upstream::{Command, Ended, Event};

    fn rig() -> Rig {
        let prompt = Prompt { after: 8 * SECOND, say: "Are you still there?".into(), times: 2 };
        Rig::new(Plan { prompt: Some(prompt), ..plan() })
    }

    fn asked(rig: &Rig) -> Vec<At> {
        let ask = |output: &Output| {
            matches!(output, Output::Service { command: Command::CreateReply { instructions: Some(said), .. }, .. }
                if said.contains("Are you still there?"))
        };
        rig.log.iter().filter(|(_, output)| ask(output)).map(|(at, _)| *at).collect()
    }

    /// The service says what it was asked to.
    fn says(rig: &mut Rig, response: &str) {
        rig.created(response);
        rig.reply_audio(response, &format!("item_{response}"), SECOND);
        rig.done(response, Ended::Completed);
    }

    #[test]
    fn silence_is_asked_about_and_then_the_call_ends() {
        let mut rig = rig();
        rig.pass(8 * SECOND);
        assert_eq!(asked(&rig), [8 * SECOND]);
        says(&mut rig, "resp_1");
        rig.pass(9 * SECOND);
        assert_eq!(asked(&rig), [8 * SECOND, 17 * SECOND], "counted from the end of what was said");
        says(&mut rig, "resp_2");
        rig.pass(9 * SECOND);
        let end = rig.log.iter().find_map(|(at, output)| match output {
            Output::End(end) | Output::HangUp { why: end, .. } => Some((*at, end.clone())),
            _ => None,
        });
        assert_eq!(end, Some((26 * SECOND, End::Silent(8 * SECOND))));
    }

    #[test]
    fn whoever_answers_is_asked_anew() {
        let mut rig = rig();
        rig.pass(8 * SECOND);
        says(&mut rig, "resp_1");
        rig.pass(3 * SECOND);
        rig.event(Event::SpeechStarted { at_ms: 11_000 });
        rig.pass(2 * SECOND);
        rig.event(Event::SpeechStopped { at_ms: 13_000 });
        says(&mut rig, "resp_2");
        rig.pass(9 * SECOND);
        assert_eq!(asked(&rig).len(), 2);
        says(&mut rig, "resp_3");
        rig.input(Input::Key('1'));
        rig.input(Input::Key('#'));
        says(&mut rig, "resp_4");
        rig.pass(9 * SECOND);
        assert_eq!(asked(&rig).len(), 3, "a key is an answer, too");
    }
}
