//! What an agent does with the line itself: hangs up, transfers the call, presses keys, puts the caller on hold.
//!
//! The model asks for it as for any tool; it is done when everything that was said before has been heard, since a goodbye that nobody hears
//! is none. A caller who speaks up meanwhile is not hung up on, nor transferred: the model is told, and answers.
use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Core, Output};
use crate::{
    audio::{Format, dtmf},
    call::{At, end::End, tools::Run},
    client::wire::ReplyStatus,
    config::{AgentConfig, Builtin, ToolConfig},
    upstream::Ended,
};

/// A tool that is done with the line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum LineTool {
    /// Ends the call.
    HangUp,
    /// Takes the call to one of these, by their names.
    Transfer(BTreeMap<String, String>),
    /// Presses keys.
    SendDtmf,
    /// Plays the agent's recording.
    Hold,
}

/// What to do with the line; say [`super::Input::ToolDone`], or [`super::Input::Plays`] where it is something to be played.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum LineAct {
    /// Take the call to this number or address.
    Transfer(String),
    /// Press these keys; as sound, it is to be in this format.
    Press(String, Format),
    /// Play what callers on hold hear, for so long, in this format.
    Hold(Duration, Format),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum What {
    HangUp,
    Transfer(String),
    Press(String),
    Hold(Duration),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum State {
    /// What was said before has not been heard.
    Waits,
    /// Somebody does it.
    Runs,
    /// It is played, as this reply of ours.
    Plays(String),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Errand {
    call_id: String,
    /// The reply that it was called in.
    response: String,
    what: What,
    state: State,
}

impl Errand {
    /// It ends the call here.
    fn leaves(&self) -> bool {
        matches!(self.what, What::HangUp | What::Transfer(_))
    }

    fn is_transferring(&self) -> bool {
        self.state == State::Runs && matches!(self.what, What::Transfer(_))
    }
}

/// What is to be done, and is under way.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Errands {
    all: Vec<Errand>,
    /// Since when nothing stands in the way of leaving the line.
    #[serde(default)]
    free_since: Option<At>,
    /// The call goes elsewhere: it ends here by then.
    gone_by: Option<At>,
}

/// The longest that any of it may take.
const LONGEST: Duration = Duration::from_secs(600);
/// A caller is on hold for so long where the model does not say, and at most.
const HOLD: u64 = 30;
const LONGEST_HOLD: u64 = 300;
/// A call that was taken elsewhere has left us within this.
const GONE_WITHIN: Duration = Duration::from_secs(15);
/// What the model is told when a caller speaks up.
const OBJECTED: &str = "the caller spoke before it was done: it was not done";
/// Keys that are pressed in one go.
const MOST_KEYS: usize = 32;

impl LineTool {
    /// Those of an agent, by their names.
    pub fn of(agent: &AgentConfig) -> BTreeMap<String, Self> {
        let of = |tool: &ToolConfig| {
            let line = match tool.builtin? {
                Builtin::HangUp => Self::HangUp,
                Builtin::Transfer => Self::Transfer(tool.targets.clone()),
                Builtin::SendDtmf => Self::SendDtmf,
                Builtin::Hold => Self::Hold,
                Builtin::AskExpert => return None,
            };
            Some((tool.name.clone(), line))
        };
        agent.tools.iter().filter_map(of).collect()
    }

    /// What the model asks for.
    ///
    /// # Errors
    /// What is wrong with it, for the model.
    fn read(&self, arguments: &str) -> Result<What, String> {
        let arguments: Value = match arguments.trim() {
            "" => Value::Null,
            text => serde_json::from_str(text).map_err(|_| "the arguments are no JSON".to_owned())?,
        };
        match self {
            Self::HangUp => Ok(What::HangUp),
            Self::Transfer(targets) => {
                let to = arguments.get("to").and_then(Value::as_str).unwrap_or_default();
                let names = || targets.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
                let target = targets.get(to).ok_or_else(|| format!("`to` must be one of: {}", names()))?;
                Ok(What::Transfer(target.clone()))
            }
            Self::SendDtmf => {
                let keys = arguments.get("keys").and_then(Value::as_str).unwrap_or_default();
                if !dtmf::are_keys(keys) || keys.len() > MOST_KEYS {
                    return Err(format!("`keys` must be 1 to {MOST_KEYS} of 0 to 9, *, #, A to D, and w for a pause"));
                }
                Ok(What::Press(keys.to_owned()))
            }
            Self::Hold => {
                let seconds = arguments.get("seconds").and_then(Value::as_u64).unwrap_or(HOLD);
                Ok(What::Hold(Duration::from_secs(seconds.clamp(1, LONGEST_HOLD))))
            }
        }
    }
}

impl Core {
    /// The model wants something done with the line; `false`: that is none of its tools.
    pub(super) fn line_called(&mut self, now: At, response: &str, call: (&str, &str), arguments: &str) -> bool {
        let (call_id, name) = call;
        let Some(what) = self.plan.line_tools.get(name).map(|tool| tool.read(arguments)) else { return false };
        let run = Run { name: name.to_owned(), arguments: arguments.to_owned() };
        if !self.tools.called(now, response, call_id, LONGEST, Some(run)) {
            return true; // said twice
        }
        self.mirror.called(response, call_id, name, arguments);
        match what {
            // It was on its way when the caller moved on.
            Ok(_) if self.playout.by_response(response).is_none_or(|reply| reply.cut.is_some()) => {
                self.tool_done(call_id.to_owned(), json!({"error": OBJECTED}).to_string());
            }
            Ok(what) => {
                let (call_id, response) = (call_id.to_owned(), response.to_owned());
                self.errands.all.push(Errand { call_id, response, what, state: State::Waits });
            }
            Err(why) => self.tool_done(call_id.to_owned(), json!({"error": why}).to_string()),
        }
        true
    }

    /// Does what can be done by now, and lets the model go on behind what is done.
    pub(super) fn run_errands(&mut self, now: At) {
        if self.ended || self.plan.line_tools.is_empty() {
            return;
        }
        self.next_errand(now);
        self.ask_for_reply(now);
    }

    fn next_errand(&mut self, now: At) {
        if self.errands.gone_by.is_some_and(|at| now >= at) {
            return self.end(now, End::Transferred);
        }
        if self.turn.speaking() {
            self.errands.free_since = None;
            // What may be a cough is waited for.
            if !self.is_suspicious() {
                self.caller_objects();
            }
            return;
        }
        let busy = self.playout.active() || !self.slot.idle() || !self.keypad.is_empty();
        let under_way = self.errands.all.iter().any(|e| e.state != State::Waits);
        // Nobody is left behind whose result somebody waits for.
        let leaves = self.errands.all.first().is_some_and(Errand::leaves);
        let owes = leaves && self.tools.own().iter().any(|(id, _)| self.errands.all.iter().all(|e| e.call_id != *id));
        if busy || under_way || owes {
            self.errands.free_since = None;
            return;
        }
        if leaves && now < *self.errands.free_since.get_or_insert(now) + self.plan.last_words {
            return;
        }
        let Some(errand) = self.errands.all.first_mut() else { return };
        errand.state = State::Runs;
        let (call_id, format) = (errand.call_id.clone(), self.plan.upstream_output);
        let act = match errand.what.clone() {
            What::HangUp => return self.end(now, End::AgentHungUp),
            What::Transfer(to) => LineAct::Transfer(to),
            What::Press(keys) => LineAct::Press(keys, format),
            What::Hold(length) => LineAct::Hold(length, format),
        };
        self.out.push_back(Output::Line { call_id, act });
    }

    /// When the line is left, if nothing comes between.
    pub(super) fn leaves_line_at(&self) -> Option<At> {
        let leaves = self.errands.all.first().is_some_and(|e| e.leaves() && e.state == State::Waits);
        self.errands.free_since.filter(|_| leaves).map(|at| at + self.plan.last_words)
    }

    /// The line says something of itself: a turn for the model, as keys are. One who is about to leave has no use for it.
    pub(super) fn line_says(&mut self, now: At, news: &str) {
        if self.pass.is_none() && self.errands.gone_by.is_none() && !self.errands.all.iter().any(Errand::leaves) {
            self.text(now, format!("[The line says: {news}]"));
        }
    }

    /// The caller speaks, or presses a key, before the line is left: it stays.
    pub(super) fn caller_objects(&mut self) {
        self.stay(|errand| errand.leaves());
    }

    /// The reply that wanted the line to be left did not come to its end.
    pub(super) fn goodbye_ended(&mut self, response: &str, ended: Ended) {
        if ended != Ended::Completed {
            self.stay(|errand| errand.leaves() && errand.response == response);
        }
    }

    fn stay(&mut self, which: impl Fn(&Errand) -> bool) {
        let waits = self.errands.all.iter().filter(|e| e.state == State::Waits && which(e));
        let stays: Vec<String> = waits.map(|e| e.call_id.clone()).collect();
        for call_id in stays {
            self.tool_done(call_id, json!({"error": OBJECTED}).to_string());
        }
    }

    /// It has a result, from whomever.
    pub(super) fn errand_has_result(&mut self, call_id: &str) {
        self.errands.all.retain(|errand| errand.call_id != call_id);
    }

    /// Something is to be played for an errand.
    pub(super) fn plays(&mut self, call_id: &str, audio: Bytes) {
        let Some(errand) = self.errands.all.iter_mut().find(|e| e.call_id == call_id && e.state == State::Runs) else {
            return;
        };
        errand.state = State::Plays(self.playout.play(audio));
    }

    /// A reply is over: perhaps it was one of these.
    pub(super) fn played(&mut self, reply: &str, status: ReplyStatus) {
        let played = |e: &&Errand| matches!(&e.state, State::Plays(id) if id == reply);
        let Some(call_id) = self.errands.all.iter().find(played).map(|e| e.call_id.clone()) else { return };
        let output = match status {
            ReplyStatus::Completed => json!({"ok": true}),
            _ => json!({"ok": false, "reason": "the caller interrupted it"}),
        };
        self.tool_done(call_id, output.to_string());
    }

    /// A result of one of these. What took the call elsewhere has none: the model has nobody to talk to any more.
    pub(super) fn errand_done(&mut self, now: At, call_id: &str, output: &str) -> bool {
        let Some(errand) = self.errands.all.iter().find(|e| e.call_id == call_id) else { return false };
        let went = errand.is_transferring() && !crate::call::tools::has_failed(output);
        if went {
            self.errands.gone_by = Some(now + GONE_WITHIN);
        }
        went
    }

    /// When a call that was taken elsewhere ends here at the latest.
    pub(super) fn gone_by(&self) -> Option<At> {
        self.errands.gone_by
    }

    /// Why a call ends whose line is gone, or going: providers let a stream end before they say that they have done it.
    pub(super) fn line_ends(&self, end: End) -> End {
        let goes = self.errands.gone_by.is_some() || self.errands.all.iter().any(Errand::is_transferring);
        if goes && end != End::Internal { End::Transferred } else { end }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            Input, Plan,
            tests::{MS, Rig, SECOND, plan},
        },
        *,
    };
    use crate::upstream::{Command, Event};

    fn rig() -> Rig {
        let targets = [("support".to_owned(), "+15550123".to_owned())];
        let line_tools = [
            ("hang_up".to_owned(), LineTool::HangUp),
            ("transfer".to_owned(), LineTool::Transfer(targets.into())),
            ("send_dtmf".to_owned(), LineTool::SendDtmf),
            ("hold".to_owned(), LineTool::Hold),
        ];
        Rig::new(Plan { line_tools: line_tools.into(), ..plan() })
    }

    /// The model says something for a second, and calls a tool with it.
    fn calls(rig: &mut Rig, tool: &str, arguments: &str) {
        rig.created("resp_1");
        rig.reply_audio("resp_1", "item_1", SECOND);
        let (response, call_id) = ("resp_1".into(), "call_1".into());
        rig.event(Event::ToolCall { response, call_id, name: tool.into(), arguments: arguments.into() });
        rig.done("resp_1", Ended::Completed);
    }

    fn acts(rig: &Rig) -> Vec<(At, LineAct)> {
        let act = |(at, output): &(At, Output)| match output {
            Output::Line { act, .. } => Some((*at, act.clone())),
            _ => None,
        };
        rig.log.iter().filter_map(act).collect()
    }

    fn results(rig: &Rig) -> Vec<String> {
        let result = |(_, output): &(At, Output)| match output {
            Output::Service { command: Command::ToolOutput { output, .. }, .. } => Some(output.clone()),
            _ => None,
        };
        rig.log.iter().filter_map(result).collect()
    }

    fn end(rig: &Rig) -> Option<(At, End)> {
        rig.log.iter().find_map(|(at, output)| match output {
            Output::End(end) => Some((*at, end.clone())),
            _ => None,
        })
    }

    #[test]
    fn the_agent_hangs_up_when_its_goodbye_was_heard() {
        let mut rig = rig();
        calls(&mut rig, "hang_up", "{}");
        rig.pass(3 * SECOND);
        assert_eq!(end(&rig), Some((SECOND, End::AgentHungUp)));
        assert_eq!(End::AgentHungUp.who(), "agent");
    }

    #[test]
    fn where_the_ear_is_behind_the_line_is_left_when_it_has_caught_up() {
        let behind = || Rig::new(Plan { last_words: 300 * MS, ..rig().core.plan });
        let mut rig = behind();
        calls(&mut rig, "hang_up", "{}");
        rig.pass(3 * SECOND);
        assert_eq!(end(&rig), Some((1_300 * MS, End::AgentHungUp)));
        let mut rig = behind();
        calls(&mut rig, "transfer", r#"{"to":"support"}"#);
        rig.pass(1_200 * MS);
        rig.event(Event::SpeechStarted { at_ms: 1_200 });
        rig.pass(2 * SECOND);
        assert_eq!((end(&rig), acts(&rig)), (None, vec![]), "who speaks up in between is heard");
    }

    #[test]
    fn a_caller_who_speaks_up_is_not_hung_up_on() {
        for tool in [("hang_up", ""), ("transfer", r#"{"to":"support"}"#)] {
            let mut rig = rig();
            calls(&mut rig, tool.0, tool.1);
            rig.pass(500 * MS);
            rig.event(Event::SpeechStarted { at_ms: 500 });
            rig.pass(2 * SECOND);
            assert_eq!((end(&rig), acts(&rig)), (None, vec![]));
            assert!(results(&rig)[0].contains("the caller spoke"), "{:?}", results(&rig));
        }
    }

    #[test]
    fn a_call_is_transferred_when_that_was_heard_and_ends_as_such() {
        let mut rig = rig();
        calls(&mut rig, "transfer", r#"{"to":"support"}"#);
        rig.pass(2 * SECOND);
        assert_eq!(acts(&rig), [(SECOND, LineAct::Transfer("+15550123".into()))]);
        rig.input(Input::ToolDone { call_id: "call_1".into(), output: r#"{"ok":true}"#.into() });
        assert_eq!(results(&rig), Vec::<String>::new(), "nobody goes on talking");
        rig.pass(SECOND);
        rig.input(Input::ClientGone(End::HungUp));
        assert_eq!(end(&rig), Some((3 * SECOND, End::Transferred)));
    }

    #[test]
    fn a_transfer_that_fails_is_the_models_to_tell() {
        let mut rig = rig();
        calls(&mut rig, "transfer", r#"{"to":"support"}"#);
        rig.pass(2 * SECOND);
        rig.input(Input::ToolDone { call_id: "call_1".into(), output: r#"{"error":"refused"}"#.into() });
        assert_eq!(results(&rig), [r#"{"error":"refused"}"#]);
        rig.pass(60 * SECOND);
        assert_eq!(end(&rig), None);
    }

    #[test]
    fn a_transferred_call_that_does_not_leave_ends_all_the_same() {
        let mut rig = rig();
        calls(&mut rig, "transfer", r#"{"to":"support"}"#);
        rig.pass(2 * SECOND);
        rig.input(Input::ToolDone { call_id: "call_1".into(), output: r#"{"ok":true}"#.into() });
        rig.pass(20 * SECOND);
        assert_eq!(end(&rig), Some((17 * SECOND, End::Transferred)));
    }

    #[test]
    fn keys_and_hold_are_played_and_then_the_model_goes_on() {
        for (tool, arguments, act) in [
            ("send_dtmf", r#"{"keys":"12#"}"#, LineAct::Press("12#".into(), Format::PCM_24K)),
            ("hold", r#"{"seconds":2}"#, LineAct::Hold(2 * SECOND, Format::PCM_24K)),
            ("hold", "", LineAct::Hold(30 * SECOND, Format::PCM_24K)),
        ] {
            let mut rig = rig();
            calls(&mut rig, tool, arguments);
            rig.pass(2 * SECOND);
            assert_eq!(acts(&rig), [(SECOND, act)]);
            rig.input(Input::Plays { call_id: "call_1".into(), audio: Bytes::from(vec![1; 96_000]) });
            rig.pass(1_900 * MS);
            assert_eq!(results(&rig), Vec::<String>::new());
            rig.pass(200 * MS);
            assert_eq!(results(&rig), [r#"{"ok":true}"#]);
        }
    }

    #[test]
    fn a_caller_who_speaks_takes_the_call_off_hold() {
        let mut rig = rig();
        calls(&mut rig, "hold", "{}");
        rig.pass(2 * SECOND);
        rig.input(Input::Plays { call_id: "call_1".into(), audio: Bytes::from(vec![1; 96_000]) });
        rig.pass(500 * MS);
        rig.event(Event::SpeechStarted { at_ms: 2_500 });
        rig.pass(100 * MS);
        assert_eq!(results(&rig), [r#"{"ok":false,"reason":"the caller interrupted it"}"#]);
    }

    #[test]
    fn what_the_line_says_of_itself_is_a_turn_for_the_model() {
        let typed = |rig: &Rig| {
            let typed = |(at, output): &(At, Output)| match output {
                Output::Service { command: Command::UserText { text }, .. } => Some((*at, text.clone())),
                _ => None,
            };
            rig.log.iter().filter_map(typed).collect::<Vec<_>>()
        };
        let mut rig = rig();
        rig.created("resp_1");
        rig.reply_audio("resp_1", "item_1", SECOND);
        rig.pass(300 * MS);
        rig.input(Input::LineSays("a machine"));
        assert_eq!(typed(&rig), [(300 * MS, "[The line says: a machine]".to_owned())]);
        assert!(rig.said().iter().any(|said| said == "clear r1"), "nobody hears what was meant for somebody else");
        rig.done("resp_1", Ended::Cancelled);
        rig.pass(SECOND);
        let asks = |(_, output): &&(At, Output)| {
            matches!(output, Output::Service { command: Command::CreateReply { .. }, .. })
        };
        assert_eq!(rig.log.iter().filter(asks).count(), 1, "it is answered");
        // A goodbye is said to its end.
        let mut rig = super::tests::rig();
        calls(&mut rig, "hang_up", "{}");
        rig.pass(500 * MS);
        rig.input(Input::LineSays("a beep"));
        rig.pass(2 * SECOND);
        assert_eq!((typed(&rig), end(&rig)), (vec![], Some((SECOND, End::AgentHungUp))));
    }

    #[test]
    fn what_makes_no_sense_is_told_to_the_model() {
        for (tool, arguments, want) in [
            ("transfer", r#"{"to":"+15559999"}"#, "must be one of: support"),
            ("transfer", "", "must be one of: support"),
            ("send_dtmf", r#"{"keys":"1+2"}"#, "must be 1 to 32 of"),
            ("send_dtmf", "nonsense", "no JSON"),
        ] {
            let mut rig = rig();
            calls(&mut rig, tool, arguments);
            rig.pass(SECOND);
            assert!(results(&rig)[0].contains(want), "{tool} {arguments}: {:?}", results(&rig));
            assert_eq!((acts(&rig), end(&rig)), (vec![], None));
        }
    }
}
