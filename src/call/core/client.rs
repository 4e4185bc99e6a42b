//! What the client says.
use super::{Core, Credential, Input, Output};
use crate::{
    call::{At, end::End, intake::AudioVerdict, slot::Want},
    client::wire::{ClientMsg, ServerMsg},
    upstream::Command,
};

impl Core {
    pub(super) fn hear_client(&mut self, now: At, input: Input<'_>) {
        self.client_seen = now;
        self.message_seen = now;
        if !matches!(input, Input::Flushed(_)) {
            self.intake.count();
        }
        match input {
            Input::Audio { length, upstream } => match self.intake.take_audio(now, length) {
                AudioVerdict::Taken => self.turn.audio(now, upstream),
                AudioVerdict::TooFast { tell: false } => {}
                AudioVerdict::TooFast { tell: true } => self.refuse(
                    "audio_too_fast",
                    "audio came faster than 4 times real time after a burst of 30 s; this audio was not taken"
                        .to_owned(),
                    None,
                    true,
                ),
                AudioVerdict::Enough => self.leave(now, End::AudioTooFast),
            },
            Input::Flushed(upstream) => self.turn.audio(now, upstream),
            Input::InvalidAudio(why) => self.end(now, End::InvalidAudio(why)),
            Input::Invalid { field, message } => {
                self.refuse("invalid_message", message, field.as_deref(), false);
                if self.intake.bad_message(now) {
                    self.end(now, End::BadMessages);
                }
            }
            Input::Key(key) => self.key(now, key),
            Input::RoundTrip(trip) => self.playout.takes(trip),
            Input::Message(message) => self.message(now, message),
            _ => {}
        }
    }

    fn message(&mut self, now: At, message: ClientMsg) {
        match message {
            ClientMsg::Commit => self.commit(now),
            ClientMsg::Discard => self.discard(),
            ClientMsg::Interrupt { reply, played_ms } => self.interrupt(now, reply.as_deref(), played_ms),
            ClientMsg::Played { reply, ms } => self.playout.report(now, &reply, ms),
            ClientMsg::Text { text } => self.text(now, text),
            ClientMsg::ToolResult { call_id, output } => self.tool_result(&call_id, output),
            ClientMsg::Ping { t } => self.out.push_back(Output::SendNow(ServerMsg::Pong { t })),
            ClientMsg::Close => self.end(now, End::Asked),
            ClientMsg::Token { token } => self.out.push_back(Output::Renew(Credential(token))),
            ClientMsg::Ack { got } => self.out.push_back(Output::Received(got)),
        }
    }

    fn commit(&mut self, now: At) {
        if self.plan.auto_turns {
            return self.refuse(
                "wrong_mode",
                "`commit` belongs to manual turns; this call was opened with turns=auto".to_owned(),
                Some("type"),
                false,
            );
        }
        let Some((from, to)) = self.turn.commit(now) else {
            let why = "there is no audio since the last turn".to_owned();
            return self.refuse("nothing_to_commit", why, None, false);
        };
        self.take_turn(now);
        self.send_chunks();
        let id = self.keep_turn(None, from, to);
        self.commit_turn(id);
        self.slot.want(Want::default());
    }

    /// The caller takes the turn by hand: whatever the model does or was asked for is over.
    fn take_turn(&mut self, now: At) {
        self.slot.drop_waiting();
        self.moves_on();
        self.caller_objects();
        self.barge_in(now, false);
    }

    fn discard(&mut self) {
        if self.plan.auto_turns {
            return self.refuse(
                "wrong_mode",
                "`discard` belongs to manual turns; this call was opened with turns=auto".to_owned(),
                Some("type"),
                false,
            );
        }
        self.turn.discard();
        self.out.push_back(Output::DropInput);
        self.ask(Command::ClearInput);
    }

    fn interrupt(&mut self, now: At, reply: Option<&str>, played_ms: Option<u64>) {
        let Some(current) = self.playout.current(reply).map(str::to_owned) else {
            let comes = self.slot.busy() || self.slot.has_wish() || !self.yielding().is_empty();
            if reply.is_none() && comes {
                self.take_turn(now); // asked for, or about to be
            }
            return;
        };
        if let Some(played) = played_ms {
            self.playout.report(now, &current, played);
        }
        self.take_turn(now);
    }

    /// A key: what sounds is over, and the number that it belongs to is a typed turn once it is complete.
    fn key(&mut self, now: At, key: char) {
        if self.keypad.is_empty() && !self.speaks() {
            self.take_turn(now);
        }
        self.keypad.press(now + self.plan.keypad, key);
        self.take_number(now);
    }

    /// A number that is complete.
    pub(super) fn take_number(&mut self, now: At) {
        if let Some(keys) = self.keypad.number(now) {
            self.text(now, format!("[The caller pressed {keys} on the telephone's keypad.]"));
        }
    }

    pub(super) fn text(&mut self, now: At, text: String) {
        self.caller_spoke();
        self.mirror.typed(&text);
        if self.speaks() {
            // It joins the turn that is spoken; the service answers both.
            return self.ask(Command::UserText { text });
        }
        self.take_turn(now);
        self.turn.ended(now);
        self.ask(Command::UserText { text });
        self.slot.want(Want::default());
    }

    fn tool_result(&mut self, call_id: &str, output: String) {
        // What the relay runs itself is none of the client's.
        let theirs = !self.tools.is_own(call_id);
        let Some(go_on) = theirs.then(|| self.tools.answered(call_id)).flatten() else {
            let why = format!("no tool call `{}` waits for a result", call_id.chars().take(64).collect::<String>());
            return self.refuse("unknown_call", why, Some("call_id"), false);
        };
        self.answer_tool(call_id.to_owned(), output, go_on);
    }

    pub(super) fn answer_tool(&mut self, call_id: String, output: String, go_on: bool) {
        self.result_came(&call_id);
        self.errand_has_result(&call_id);
        self.mirror.result(&call_id, &output);
        self.ask(Command::ToolOutput { call_id, output });
        if go_on {
            self.slot.want(Want::default());
        }
    }
}
