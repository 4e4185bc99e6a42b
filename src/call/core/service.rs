//! What the service says.
use std::time::Duration;

use super::{About, Core, Output, Stall};
use crate::{
    call::{
        At,
        books::Booked,
        end::End,
        ms,
        reply::{Generated, Times},
        slot::{Began, Want},
        turn::Marks,
    },
    client::wire::{ErrorBody, ReplyStatus, Role, ServerMsg},
    ledger::Kind,
    observe::fact::Fact,
    upstream::{
        Command, Ended, Event, Limit, ServiceError, UpstreamError,
        error::{plain_code, plain_field},
        event_id,
    },
};

impl Core {
    pub(super) fn service_pong(&mut self, now: At) {
        self.given_alive = self.given;
        match self.stall {
            Stall::Asked(_) if self.owes() => self.stall = Stall::Alive,
            Stall::Asked(_) => (self.stall, self.service_seen) = (Stall::None, now),
            Stall::None | Stall::Alive => {}
        }
    }

    pub(super) fn hear_service(&mut self, now: At, event: Event) {
        (self.service_seen, self.given_alive) = (now, self.given);
        self.stall = Stall::None;
        self.book(&event);
        match event {
            Event::SpeechStarted { at_ms } => {
                self.speech_heard();
                if let Some(at_ms) = self.turn.speech_started(at_ms) {
                    self.say(ServerMsg::SpeechStarted { at_ms });
                    self.caller_spoke();
                    self.slot.hold_for_speech();
                    self.speech_interrupts(now);
                    self.look_at_budget();
                }
            }
            Event::SpeechStopped { at_ms } => {
                self.speech_heard();
                self.speech_ends();
                let at_ms = self.turn.speech_stopped(now, at_ms);
                self.say(ServerMsg::SpeechStopped { at_ms });
                self.slot.expect_vad(now);
            }
            Event::Committed { item } => self.turn_made(now, &item),
            Event::ReplyCreated { response, .. } => self.reply_created(now, &response),
            Event::Audio { response, item, content_index, audio } => {
                self.reply_audio(now, &response, &item, content_index, audio);
            }
            Event::ReplyText { response, item, text, last } => self.reply_text(&response, item, text, last),
            Event::UserText { item, text, last: false, .. } => {
                if self.mirror.tells_pieces(&item) {
                    self.transcript(Role::User, item, None, text, false);
                }
            }
            Event::UserText { item, text, last: true, .. } => self.user_said(&item, text),
            Event::UserTextFailed { item } => self.user_said(&item, String::new()),
            Event::ToolCall { response, call_id, name, arguments } => {
                self.tool_called(now, &response, (call_id, name), arguments);
            }
            Event::ReplyDone { response, ended, reason, retry_after, usage, limit } => {
                self.used(usage);
                let limited = ended == Ended::Failed && limit.is_some_and(|limit| limit != Limit::Quota);
                let again = limited && self.tries_again(&response);
                let filler = self.slot.wanted(&response).is_some_and(|want| want.filler);
                self.slot.done(&response);
                self.turn_over(&response, ended, usage);
                self.goodbye_ended(&response, ended);
                if self.tools.reply_done(&response, ended == Ended::Completed) {
                    self.slot.want(Want::default());
                }
                let reason = reason.map(|r| plain_code(&r));
                if ended == Ended::Failed
                    && !again
                    && !filler
                    && self.playout.by_response(&response).is_some_and(|r| !r.is_generated())
                {
                    self.reply_failed(reason.as_deref(), retry_after);
                }
                let status = ReplyStatus::from(ended);
                let reason = reason.filter(|_| matches!(status, ReplyStatus::Incomplete | ReplyStatus::Failed));
                self.playout.generated(&response, Generated { status, reason }, usage);
            }
            Event::Error(error) => self.service_error(now, error),
            Event::SessionUpdated { hearing, .. } => self.configured(hearing.and_then(|hearing| hearing.answers)),
            Event::SessionCreated { .. }
            | Event::AudioPasses
            | Event::WordsPass
            | Event::InputCleared
            | Event::ItemDone
            | Event::ItemCut { .. }
            | Event::ItemGone { .. }
            | Event::RateLimits(_)
            | Event::Nothing => {}
            Event::Unknown => self.note(Fact::UnknownEvent),
        }
    }

    /// The caller's audio is a turn: one that we committed, or one that the service found.
    fn turn_made(&mut self, now: At, item: &str) {
        self.give_up_words(now);
        self.answers.asked(now);
        self.sessions.turn_at = now;
        if let Some((_, id)) = self.awaited.pop_front() {
            self.turn.committed(now);
            return self.mirror.rename(&id, item);
        }
        let (from, to) = self.turn.found(now);
        self.keep_turn(Some(item), from, to);
        self.turn_found();
    }

    /// All that the caller said in a turn, as far as it can be had.
    fn user_said(&mut self, item: &str, text: String) {
        if let Some(shown) = self.mirror.heard(item, &text) {
            self.transcript(Role::User, shown, None, text, true);
        }
    }

    /// What the service has counted.
    pub(super) fn book(&mut self, event: &Event) {
        if let Some(writer) = event.writer() {
            self.writer = Some(writer.to_owned());
        }
        match event {
            Event::ReplyCreated { response, .. } if !self.uncounted.contains(response) => {
                self.uncounted.push(response.clone());
            }
            Event::ReplyDone { response, .. } => self.uncounted.retain(|open| open != response),
            _ => {}
        }
        let Some(mut booked) = Booked::counted(event) else { return };
        match booked.kind {
            Kind::Reply | Kind::Refusal | Kind::Call => {
                booked.delay = self.delay_of(&booked.id);
                self.last_usage = Some(booked.usage);
                self.counted(booked.usage);
            }
            Kind::Transcription => booked.writer.clone_from(&self.writer),
        }
        let (audio_ms, first_audio_ms) = (self.playout.audio_ms(&booked.id), self.answers.first_audio_ms(&booked.id));
        let transcription = booked.kind == Kind::Transcription;
        self.out.push_back(Output::Book(Booked { audio_ms, first_audio_ms, ..booked }));
        if transcription {
            self.look_at_budget();
        }
    }

    fn reply_created(&mut self, now: At, response: &str) {
        if self.playout.by_response(response).is_some() {
            return; // said twice
        }
        self.turn_began(response, self.slot.is_ours());
        self.answers.began(now, response);
        self.prompt_began();
        let began = self.slot.created(response);
        self.mirror.replies(response);
        let turn = if began == Began::Wanted { self.turn.take_marks() } else { Marks::default() };
        self.playout.begin(response, Times { turn, started: Some(now), ..Times::default() });
        match began {
            Began::Wanted => {}
            Began::CalledOff => self.barge_in(now, true), // the cancel is already on its way
            // Whether somebody speaks is not known yet.
            Began::Untimely if self.is_suspicious() => {}
            Began::Untimely => self.barge_in(now, false),
        }
    }

    fn reply_audio(&mut self, now: At, response: &str, item: &str, content_index: u32, audio: bytes::Bytes) {
        let length = ms(self.plan.upstream_output.duration(audio.len()));
        self.fillers.speaks(response);
        self.heard_at(now, response);
        if self.playout.by_response(response).is_some_and(|reply| reply.cut.is_none() && !reply.is_generated()) {
            self.mirror.said_audio(response, item, length);
        }
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
        match cut {
            true => self.mirror.said_rest(&item, &text),
            false => self.mirror.said_words(response, &item, &text, last),
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
        if let Some(at) = self.awaited.iter().position(|(sent, _)| Some(*sent) == number)
            && let Some((_, id)) = self.awaited.remove(at)
        {
            self.mirror.remove(&id);
        }
        let busy = code == "conversation_already_has_active_response";
        let filler = number.is_some_and(|n| self.slot.asks_filler(n));
        if let Some(again) = number.and_then(|n| self.slot.refused(n, busy)) {
            self.not_asked(again);
            if again {
                self.it_answers_after_all();
            }
            if busy || filler {
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
            // What a session is told of the ones before is worth no call: it knows a little less.
            (Some(About::Delete | About::Cancel | About::ClearInput | About::Retell), _) => {
                self.note(Fact::SwallowedError);
            }
            // Then it answers by itself, as before.
            (Some(About::Answers), _) => {
                self.answers_as_before(number);
                self.note(Fact::SwallowedError);
            }
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
