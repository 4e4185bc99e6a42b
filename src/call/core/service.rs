//! What the service says.
use std::time::Duration;

use super::{About, Core, Output, Stall};
use crate::{
    call::{
        At,
        end::End,
        ms,
        reply::{Generated, Times},
        slot::{Began, Want},
        turn::Marks,
    },
    client::wire::{ErrorBody, ReplyStatus, Role, ServerMsg},
    observe::fact::Fact,
    upstream::{
        Command, Ended, Event, ServiceError, UpstreamError,
        error::{plain_code, plain_field},
        event_id,
    },
};

impl Core {
    pub(super) fn session_up(&mut self, now: At) {
        self.up = true;
        self.service_seen = now;
        if self.pass.is_some() {
            return; // the client sets its session up itself
        }
        let early = std::mem::take(&mut self.early);
        self.early_bytes = 0;
        self.ask(Command::Configure);
        if let Some(greeting) = self.plan.greeting.clone() {
            let instructions = format!("Greet the caller. Say exactly this, and nothing else: {greeting}");
            self.slot.want_first(Want { instructions: Some(instructions) });
            self.ask_for_reply(now);
        }
        for (number, command) in early {
            self.out.push_back(Output::Service { number, command });
        }
    }

    pub(super) fn service_pong(&mut self) {
        if self.stall == Stall::Asked {
            self.stall = Stall::Alive;
        }
    }

    pub(super) fn hear_service(&mut self, now: At, event: Event) {
        self.service_seen = now;
        self.stall = Stall::None;
        match event {
            Event::SpeechStarted { at_ms } => {
                let at_ms = self.turn.speech_started(at_ms);
                self.say(ServerMsg::SpeechStarted { at_ms });
                self.slot.hold_for_speech();
                self.barge_in(now, true);
            }
            Event::SpeechStopped { at_ms } => {
                let at_ms = self.turn.speech_stopped(now, at_ms);
                self.say(ServerMsg::SpeechStopped { at_ms });
                self.slot.expect_vad(now);
            }
            Event::Committed { .. } => self.turn.committed(now),
            Event::ReplyCreated { response, .. } => self.reply_created(now, &response),
            Event::Audio { response, item, content_index, audio } => {
                self.reply_audio(now, &response, &item, content_index, audio);
            }
            Event::ReplyText { response, item, text, last } => self.reply_text(&response, item, text, last),
            Event::UserText { item, text, last } => self.transcript(Role::User, item, None, text, last),
            Event::UserTextFailed { item } => self.transcript(Role::User, item, None, String::new(), true),
            Event::ToolCall { response, call_id, name, arguments } => {
                if self.tools.called(now, &response, &call_id, self.plan.tool_timeout) {
                    self.say(ServerMsg::ToolCall { call_id, name, arguments });
                }
            }
            Event::ReplyDone { response, ended, reason, retry_after, usage, .. } => {
                self.used(usage);
                self.slot.done(&response);
                if self.tools.reply_done(&response, ended == Ended::Completed) {
                    self.slot.want(Want { instructions: None });
                }
                let reason = reason.map(|r| plain_code(&r));
                if ended == Ended::Failed && self.playout.by_response(&response).is_some_and(|r| !r.is_generated()) {
                    self.reply_failed(reason.as_deref(), retry_after);
                }
                let status = ReplyStatus::from(ended);
                let reason = reason.filter(|_| matches!(status, ReplyStatus::Incomplete | ReplyStatus::Failed));
                self.playout.generated(&response, Generated { status, reason }, usage);
            }
            Event::Error(error) => self.service_error(now, error),
            Event::SessionCreated { .. }
            | Event::SessionUpdated { .. }
            | Event::AudioPasses
            | Event::RateLimits(_)
            | Event::Nothing => {}
            Event::Unknown => self.note(Fact::UnknownEvent),
        }
    }

    fn reply_created(&mut self, now: At, response: &str) {
        if self.playout.by_response(response).is_some() {
            return; // said twice
        }
        let began = self.slot.created(response);
        let turn = if began == Began::Wanted { self.turn.take_marks() } else { Marks::default() };
        self.playout.begin(response, Times { turn, started: Some(now), ..Times::default() });
        match began {
            Began::Wanted => {}
            Began::CalledOff => self.barge_in(now, true), // the cancel is already on its way
            Began::Untimely => self.barge_in(now, false),
        }
    }

    fn reply_audio(&mut self, now: At, response: &str, item: &str, content_index: u32, audio: bytes::Bytes) {
        if self.playout.receive(now, response, item, content_index, audio) {
            return;
        }
        let reason = Some("max_backlog".to_owned());
        let rest = self.playout.stop(response, Generated { status: ReplyStatus::Incomplete, reason });
        self.ask(Command::CancelReply { response: Some(response.to_owned()) });
        if let Some(rest) = rest {
            self.forget(rest);
        }
    }

    fn reply_text(&mut self, response: &str, item: String, text: String, last: bool) {
        let cut = self.playout.by_response(response).is_none_or(|r| r.cut.is_some());
        if cut && !last {
            return;
        }
        let reply = self.playout.id_of(response).map(str::to_owned);
        self.transcript(Role::Assistant, item, reply, text, last);
    }

    fn transcript(&mut self, role: Role, item: String, reply: Option<String>, text: String, last: bool) {
        let (delta, text) = if last { (None, Some(text)) } else { (Some(text), None) };
        self.say(ServerMsg::Transcript { role, item, reply, delta, text, last });
    }

    fn reply_failed(&mut self, reason: Option<&str>, retry_after: Option<Duration>) {
        let limited = reason.is_some_and(|r| r.contains("rate_limit"));
        let code = if limited { "rate_limited" } else { "reply_failed" };
        let message = format!("the service failed to answer ({})", reason.unwrap_or("no reason given"));
        let error = self.error(code, message, true);
        self.say(ServerMsg::Error { error: ErrorBody { retry_after_ms: retry_after.map(ms), ..error } });
    }

    fn service_error(&mut self, now: At, error: ServiceError) {
        let number = error.event_id.as_deref().and_then(event_id::read);
        let at = number.and_then(|n| self.sent.iter().position(|(sent, _)| *sent == n));
        let about = at.and_then(|at| self.sent.remove(at)).map(|(_, about)| about);
        let code = plain_code(if error.code.is_empty() { &error.kind } else { &error.code });
        if number.is_some_and(|n| self.slot.refused(n, code == "conversation_already_has_active_response")) {
            if code == "conversation_already_has_active_response" {
                self.note(Fact::SwallowedError);
            } else {
                self.reply_failed(Some(&code), error.retry_after);
            }
            return;
        }
        match (about, code.as_str()) {
            // They say that what we asked for has already happened.
            (_, "response_cancel_not_active" | "input_audio_buffer_commit_empty") => {
                self.note(Fact::SwallowedError);
            }
            (Some(About::Truncate { item, content_index, retried }), _) => {
                self.note(Fact::SwallowedError);
                if let (Some(audio_end_ms), false) = (shorter_than_thought(&error.message), retried) {
                    self.ask(Command::Truncate { item: item.clone(), content_index, audio_end_ms });
                    self.sent.pop_back();
                    self.remember(self.commands - 1, About::Truncate { item, content_index, retried: true });
                }
            }
            (Some(About::Delete | About::Cancel | About::ClearInput), _) => self.note(Fact::SwallowedError),
            (Some(About::Configure), _) => {
                let param =
                    error.param.as_deref().and_then(plain_field).map(|p| format!(" at {p}")).unwrap_or_default();
                let refused = UpstreamError::refused(&error, None);
                let mut end = End::upstream(&refused);
                if let End::Upstream { message, .. } = &mut end {
                    *message = format!("the service refused the agent's configuration ({code}{param})");
                }
                self.end(now, end);
            }
            // The close that follows says the same and ends the call.
            (_, "session_expired") => {}
            (about, code) => self.trouble(now, about, code, error.retry_after),
        }
    }

    /// An error that no rule covers: told to the client, but not once per chunk.
    fn trouble(&mut self, now: At, about: Option<About>, code: &str, retry_after: Option<Duration>) {
        let what = match about {
            Some(About::Text) => "a typed turn",
            Some(About::ToolOutput) => "a tool's result",
            Some(About::Commit) => "the turn",
            _ => "a request",
        };
        self.note(Fact::ServiceError);
        if self.told_trouble.is_some_and(|at| now.saturating_sub(at) < Duration::from_secs(1)) {
            return;
        }
        self.told_trouble = Some(now);
        let limited = code.contains("rate_limit");
        let kind = if limited { "rate_limited" } else { "upstream_refused" };
        let error = self.error(kind, format!("the service refused {what} ({code})"), limited);
        self.say(ServerMsg::Error { error: ErrorBody { retry_after_ms: retry_after.map(ms), ..error } });
    }
}

/// "Audio content of 9250ms is already shorter than 57340ms": the service may count a little less than it sent.
fn shorter_than_thought(message: &str) -> Option<u64> {
    let (_, rest) = message.split_once("Audio content of ")?;
    let (length, _) = rest.split_once("ms is already shorter")?;
    length.trim().parse().ok()
}
