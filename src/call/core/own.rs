//! Tools that the relay runs itself: when they are run, what the caller hears meanwhile, and what becomes of them when the call moves
//! to another process.
//!
//! Who runs them is outside ([`Output::RunTool`], [`super::Input::ToolDone`]); that each has exactly one result is kept here.
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, time::Duration};

use serde_json::json;

use super::{Core, Output};
use crate::{
    call::{
        At,
        slot::Want,
        tools::{OwnTool, Run},
    },
    client::wire::ServerMsg,
    upstream::Command,
};

/// What the model is told of a tool that was given up.
const GIVEN_UP: &str = "the caller went on before there was an answer: it was not waited for";

/// Whoever runs a tool says within its time what came of it; after so much more nothing does.
const LAST_RESORT: Duration = Duration::from_secs(1);

impl Core {
    /// The model wants a tool, which may have been said before.
    pub(super) fn tool_called(
        &mut self,
        now: At,
        response: &str,
        (call_id, name): (String, String),
        arguments: String,
    ) {
        if self.line_called(now, response, (&call_id, &name), &arguments) {
            return;
        }
        let own = self.plan.own_tools.get(&name);
        let run = own.map(|_| Run { name: name.clone(), arguments: arguments.clone() });
        let timeout = own.map_or(self.plan.tool_timeout, |own| own.timeout + LAST_RESORT);
        if !self.tools.called(now, response, &call_id, timeout, run.clone()) {
            return;
        }
        self.mirror.called(response, &call_id, &name, &arguments);
        let Some(run) = run else { return self.say(ServerMsg::ToolCall { call_id, name, arguments }) };
        let yields = self.plan.own_tools.get(&name).is_some_and(|own| own.yields);
        // It was on its way when the caller moved on.
        if yields && self.playout.by_response(response).is_none_or(|reply| reply.cut.is_some()) {
            return self.give_up(call_id);
        }
        if let Some(own) = self.plan.own_tools.get(&name)
            && self.playout.audio_ms(response) == 0
        {
            self.fillers.called(now, response, &call_id, own);
        }
        let more = [("tool", json!(name)), ("call_id", json!(call_id))];
        self.notice_with("tool_running", format!("the tool `{name}` is at work"), more);
        self.run_tool(call_id, run);
    }

    fn run_tool(&mut self, call_id: String, Run { name, arguments }: Run) {
        self.out.push_back(Output::RunTool { call_id, name, arguments });
    }

    /// What came of a tool that the relay has run.
    pub(super) fn tool_done(&mut self, call_id: String, output: String) {
        if self.tools.is_own(&call_id)
            && let Some(go_on) = self.tools.answered(&call_id)
        {
            self.answer_tool(call_id, output, go_on);
        }
    }

    /// The caller goes on: no filler is due any more, and what gives way to them is not waited for.
    pub(super) fn moves_on(&mut self) {
        self.fillers.moved_on();
        for call_id in self.yielding() {
            self.out.push_back(Output::DropTool { call_id: call_id.clone() });
            self.give_up(call_id);
        }
    }

    /// Tools that run and give way to the caller: which calls.
    pub(super) fn yielding(&self) -> Vec<String> {
        let yields = |run: &Run| self.plan.own_tools.get(&run.name).is_some_and(|own| own.yields);
        self.tools.own().into_iter().filter(|(_, run)| yields(run)).map(|(call_id, _)| call_id).collect()
    }

    /// A tool has no result, and the model does not go on by that: the caller's turn is what it answers next.
    fn give_up(&mut self, call_id: String) {
        if self.tools.answered(&call_id).is_some() {
            self.answer_tool(call_id, json!({"error": GIVEN_UP}).to_string(), false);
        }
    }

    /// The results of tools that nobody gave.
    pub(super) fn late_tools(&mut self, now: At) {
        for (call_id, run) in self.tools.late(now, self.is_connected()) {
            let go_on = self.tools.answered(&call_id).unwrap_or(false);
            let why = match run {
                Some(Run { name, .. }) => format!("{name} gave no answer in time"),
                None => format!("the tool gave no result within {} s", self.plan.tool_timeout.as_secs()),
            };
            self.answer_tool(call_id, json!({"error": why}).to_string(), go_on);
        }
    }

    /// Another process goes on with the call, where its agent has these tools. Nobody knows what became of those that ran: they
    /// are run again where that does no harm.
    pub fn has_own_tools(&mut self, own: BTreeMap<String, OwnTool>) {
        self.plan.own_tools = own;
    }

    pub(super) fn own_tools_go_on(&mut self, now: At) {
        for (call_id, run) in self.tools.own() {
            match self.plan.own_tools.get(&run.name).filter(|own| own.idempotent) {
                Some(own) => {
                    self.tools.runs_again(now, &call_id, own.timeout + LAST_RESORT);
                    self.run_tool(call_id, run);
                }
                None => {
                    let why = format!("{} was interrupted; nobody knows whether it was done", run.name);
                    self.tool_done(call_id, json!({"error": why}).to_string());
                }
            }
        }
    }

    /// The line is free for a sentence that nobody has asked for: nobody speaks, is about to, or waits to be answered, and there is
    /// no shortage of anything.
    fn may_fill(&self) -> bool {
        // By hand, what was recorded since the last turn is somebody who speaks.
        let speaks = self.turn.speaking() || !self.plan.auto_turns && self.turn.open() < self.ring.end();
        let free = self.slot.idle() && !speaks && !self.playout.active() && self.keypad.is_empty();
        free && self.up && self.is_connected() && self.leaving.is_none() && !self.is_short()
    }

    /// When a filler is due, if it could be said.
    pub(super) fn fills_at(&self) -> Option<At> {
        self.fillers.deadline().filter(|_| self.may_fill() && self.nothing_asked())
    }

    /// A filler is due; whether the account is being asked for it, or the service.
    pub(super) fn fills(&mut self, now: At) -> bool {
        let due = self.fillers.deadline().is_some_and(|at| now >= at);
        if !due || !self.may_fill() {
            return false;
        }
        if !self.may_ask(now) {
            return true;
        }
        let Some(text) = self.fillers.take(now) else { return false };
        let instructions = format!("Say exactly this, and nothing else: {text}");
        let want = Want { filler: true, ..Want::told(instructions.clone()) };
        if self.slot.fill(self.commands, want) {
            self.service_seen = now;
            self.turn_asked();
            self.answers.asked(now);
            self.ask(Command::CreateReply { instructions: Some(instructions), no_tools: true });
        }
        true
    }

    /// A tool has its result: a filler that has not begun shall not come before it.
    pub(super) fn result_came(&mut self, call_id: &str) {
        if self.fillers.answered(call_id) && self.slot.call_off_filler() {
            self.ask(Command::CancelReply { response: None });
        }
    }
}
