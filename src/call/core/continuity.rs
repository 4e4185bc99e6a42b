//! One conversation over many sessions: what happens when one is lost, when one begins, and when one is left for the next.
//!
//! A drop, a rotation and a hand-over are the same thing: a new session is told the conversation ([`Mirror`]) and hears the
//! caller's audio that is part of no turn yet ([`Ring`]); what was being said goes on from what the client has of it. The
//! caller hears nothing twice, and is told what is lost.
//!
//! [`Mirror`]: crate::call::mirror::Mirror
//! [`Ring`]: crate::call::ring::Ring
#[cfg(test)]
mod tests;

use std::{collections::VecDeque, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Core, Output, Stall};
use crate::{
    call::{
        At,
        answers::Told,
        books::Booked,
        end::End,
        mirror::Retell,
        ms,
        playout::Broken,
        slot::{Lost, Want},
    },
    client::wire::{Role, ServerMsg, Usage},
    upstream::{Command, History, UpstreamError},
};

/// A session that says nothing about its end lives so long (realtime-protocol section 0).
const USUAL_LIFE: Duration = Duration::from_secs(3_600);
/// The next one is got ready this share of its life before its end: 5 of 60 minutes ...
const AHEAD_SHARE: u32 = 12;
/// ... but not later than this before, if half of its life is as long.
const AHEAD: Duration = Duration::from_secs(2);
/// At the last, it is left so long before its end ...
const LAST_MOMENT: Duration = Duration::from_secs(10);
/// ... or this share of its life before, if that is short.
const LAST_SHARE: u32 = 100;
/// A second session that cannot be had is tried again after so long.
const TRY_AGAIN: Duration = Duration::from_secs(5);
/// Audio outside speech that a new session hears again: the beginning of speech that nobody has noticed yet may be in it.
const BEFORE_SPEECH: Duration = Duration::from_secs(2);
/// A new session that does not hear the speech that the one before heard, within so long, will not.
const HEARS_WITHIN: Duration = Duration::from_secs(5);
/// What the caller said is waited for so long before a session is left that would have written it down.
const WORDS_PATIENCE: Duration = Duration::from_secs(5);
/// So many sessions may be lost within [`LOSSES_WITHIN`]: a service that takes calls only to drop them is none.
const LOSSES: usize = 8;
const LOSSES_WITHIN: Duration = Duration::from_secs(60);
/// A token of the service's own audio (realtime-protocol section 5), ms.
const MS_PER_TOKEN_OUT: u64 = 50;

/// How far the next session is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Next {
    /// None is asked for.
    #[default]
    None,
    /// It is being opened.
    Opening,
    /// It is up, and will live until then.
    Ready(Option<At>),
}

/// Sessions of a call.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Sessions {
    /// There has been one.
    pub(super) had_one: bool,
    /// One is being opened because there is none.
    pub(super) opening: bool,
    /// When to get ready to leave the running one, and when it must be left.
    leave_at: Option<At>,
    last_moment: Option<At>,
    pub(super) next: Next,
    lost_at: VecDeque<At>,
    /// Speech that the running session has not heard yet is given up then.
    hears_by: Option<At>,
    /// When the service made the last turn.
    pub(super) turn_at: At,
}

impl Sessions {
    fn begins(&mut self, now: At, lives: Option<Duration>) {
        let life = lives.unwrap_or(USUAL_LIFE);
        let end = now + life;
        let ahead = (life / AHEAD_SHARE).max(AHEAD.min(life / 2));
        self.leave_at = Some(end.saturating_sub(ahead));
        self.last_moment = Some(end.saturating_sub(LAST_MOMENT.min(life / LAST_SHARE)));
        (self.had_one, self.opening, self.next) = (true, false, Next::None);
    }

    /// One too many was lost.
    fn lost(&mut self, now: At) -> bool {
        self.lost_at.retain(|at| now.saturating_sub(*at) < LOSSES_WITHIN);
        self.lost_at.push_back(now);
        self.lost_at.len() > LOSSES
    }
}

impl Core {
    /// The session is gone, or must be given up. `another`: a new one may help.
    pub(super) fn session_lost(&mut self, now: At, why: End, another: bool) {
        let next = std::mem::take(&mut self.sessions.next);
        // A client that has been told why shall not be told again that it goes on; nor one that has no session of its own.
        if self.pass.as_ref().is_some_and(|pass| !pass.goes_on()) {
            return self.end(now, why);
        }
        let too_many = self.up && self.sessions.lost(now);
        let had_one = self.up;
        if had_one {
            self.let_go(now);
        }
        if had_one && (!another || too_many) {
            self.out.push_back(Output::LeaveService);
        }
        if !another || too_many || !had_one {
            self.sessions.opening = false;
            return self.leave(now, why);
        }
        self.notice("upstream_reconnecting", "the connection to the service broke; the call goes on with another one");
        match next {
            Next::Ready(end) => {
                self.out.push_back(Output::Switch);
                self.begin_session(now, end.map(|end| end.saturating_sub(now)));
                self.notice("upstream_resumed", "the call goes on");
            }
            // One that is on its way will do; else one is asked for.
            Next::Opening | Next::None => self.dial(),
        }
    }

    pub(super) fn dial(&mut self) {
        self.sessions.opening = true;
        self.out.push_back(Output::Dial);
    }

    /// The session that was asked for, because there was none, is up.
    pub(super) fn session_up(&mut self, now: At, lives: Option<Duration>) {
        let again = self.sessions.had_one;
        self.begin_session(now, lives);
        if again {
            self.notice("upstream_resumed", "the call goes on");
        }
    }

    /// A session runs, whoever's the conversation is.
    fn begin_session(&mut self, now: At, lives: Option<Duration>) {
        if self.pass.is_none() {
            return self.session_begins(now, lives);
        }
        let again = self.sessions.had_one;
        self.sessions.begins(now, lives);
        match again {
            true => self.pass_begins(now),
            // The client sets its session up itself.
            false => (self.up, self.service_seen) = (true, now),
        }
    }

    /// Nothing more comes from the running session.
    pub(super) fn let_go(&mut self, now: At) {
        for booked in self.uncounted() {
            self.out.push_back(Output::Book(booked));
        }
        self.uncounted.clear();
        self.answers.lost();
        match self.pass {
            Some(_) => self.pass_lost(now),
            None => self.give_up_session(now),
        }
    }

    /// A session that shall follow the running one is up, or cannot be had.
    pub(super) fn next_session(&mut self, now: At, found: Result<Option<Duration>, ()>) {
        match found {
            Ok(lives) => self.sessions.next = Next::Ready(lives.map(|lives| now + lives)),
            Err(()) => {
                self.sessions.next = Next::None;
                self.sessions.leave_at = Some(now + TRY_AGAIN);
            }
        }
    }

    /// Somebody wants the call to have another session.
    pub(super) fn rotate(&mut self, now: At) {
        if self.up {
            self.sessions.leave_at = Some(now);
        }
    }

    /// When [`Self::tick_sessions`] has something to do.
    pub(super) fn session_due(&self) -> Option<At> {
        if !self.up || self.pass.as_ref().is_some_and(|pass| !pass.goes_on()) {
            return None;
        }
        let rotation = match self.sessions.next {
            Next::None => self.sessions.leave_at,
            Next::Opening => None,
            Next::Ready(_) => self.leaves_session_at(),
        };
        [rotation, self.sessions.hears_by].into_iter().flatten().min()
    }

    /// When the running session may be left: between turns, with everything written down, or at the last moment.
    fn leaves_session_at(&self) -> Option<At> {
        [self.settled_at(), self.sessions.last_moment].into_iter().flatten().min()
    }

    /// When nobody speaks and everything is written down.
    pub(super) fn settled_at(&self) -> Option<At> {
        let settled = self.pass.as_ref().is_none_or(|pass| pass.is_settled());
        let quiet = self.slot.idle() && self.playout.is_empty() && !self.turn.speaking() && settled;
        let settled = if self.mirror.waits_for_words() { self.sessions.turn_at + WORDS_PATIENCE } else { At::ZERO };
        quiet.then_some(settled)
    }

    pub(super) fn tick_sessions(&mut self, now: At, may_change: bool) {
        if !self.up || self.pass.as_ref().is_some_and(|pass| !pass.goes_on()) {
            return;
        }
        if self.sessions.hears_by.take_if(|at| now >= *at).is_some() {
            self.turn.never_spoke();
            self.slot.never_spoke();
        }
        match self.sessions.next {
            Next::None if self.sessions.leave_at.is_some_and(|at| now >= at) => {
                (self.sessions.next, self.sessions.leave_at) = (Next::Opening, None);
                self.out.push_back(Output::DialNext);
            }
            Next::Ready(end) if may_change && self.leaves_session_at().is_some_and(|at| now >= at) => {
                self.let_go(now);
                self.out.push_back(Output::Switch);
                self.begin_session(now, end.map(|end| end.saturating_sub(now)));
                self.notice("rotated", "the call goes on in a new session");
            }
            _ => {}
        }
    }

    /// Nothing more comes from the running session.
    pub(super) fn give_up_session(&mut self, now: At) {
        self.up = false;
        (self.stall, self.service_seen) = (Stall::None, now);
        self.sent.clear();
        self.awaited.clear();
        if let Some((from, to)) = self.turn.heard_out() {
            self.keep_turn(None, from, to); // it was about to be committed, and is answered by us
        }
        self.turns_lost();
        let lost = self.slot.lost();
        let mut again = lost.want.clone().filter(|_| lost.response.is_none());
        for reply in self.playout.lost() {
            again = self.reply_broken(&reply, &lost).or(again);
        }
        if let Some(want) = again {
            self.slot.want_first(want);
        }
    }

    /// What shall be asked for again.
    fn reply_broken(&mut self, reply: &Broken, lost: &Lost) -> Option<Want> {
        let called = self.mirror.has_called(&reply.response);
        if called && self.tools.reply_lost(&reply.response) {
            self.slot.want(Want::default());
        }
        if reply.begun || called {
            self.mirror.cut_silent(&reply.response);
            for item in &reply.items {
                self.mirror.cut(item, None);
            }
            self.mirror.answered(&reply.response);
            return None;
        }
        for item in self.mirror.unsaid(&reply.response) {
            // The client shall not wait for the rest of words that nobody says.
            let (delta, text, last) = (None, Some(String::new()), true);
            self.say(ServerMsg::Transcript { role: Role::Assistant, item, reply: None, delta, text, last });
        }
        lost.want.clone().filter(|_| lost.response.as_deref() == Some(&reply.response))
    }

    pub(super) fn estimate(&self, response: &str, audio_ms: u64) -> Booked {
        let first_audio_ms = self.answers.first_audio_ms(response);
        Booked { first_audio_ms, ..estimate_of(self.last_usage, response, audio_ms) }
    }

    /// A session is there: it is set up, told what was said, and hears what was not answered.
    fn session_begins(&mut self, now: At, lives: Option<Duration>) {
        let first = !self.sessions.had_one;
        self.sessions.begins(now, lives);
        (self.up, self.early_bytes) = (true, 0);
        self.service_seen = now;
        self.give_up_words(now);
        let steps = self.mirror.retell(self.ring.begin());
        let turns = self.plan.auto_turns && steps.iter().any(|step| matches!(step, Retell::Turn { .. }));
        self.told_anew(steps.iter().map(Retell::chars).sum());
        // While turns of before are spoken again, the service shall not find others in them.
        self.configure(!turns);
        if let Some(greeting) = self.plan.greeting.clone().filter(|_| first) {
            let instructions = format!("Greet the caller. Say exactly this, and nothing else: {greeting}");
            self.slot.want_first(Want::told(instructions));
            self.ask_for_reply(now);
        }
        let mut heard = 0;
        for step in steps {
            match step {
                Retell::Item { id, item } => {
                    if let History::UserAudio { audio } = &item {
                        self.unheard(ms(self.plan.upstream_input.duration(audio.len())));
                    }
                    self.ask(Command::Retell { id, after: None, item });
                }
                Retell::Turn { id, from, to } => {
                    self.unheard(self.turn.length_ms(from, to));
                    heard += self.speak_again(from, to);
                    self.commit_turn(id);
                }
                Retell::Lost { from, to } => self.audio_gap(from, to),
            }
        }
        if turns {
            self.configure(true);
        }
        let open = self.turn.open();
        let unheard = if self.turn.speaking() || !self.plan.auto_turns {
            open
        } else {
            let back = self.plan.upstream_input.bytes(BEFORE_SPEECH) as u64;
            open.max(self.given.saturating_sub(back))
        };
        let from = unheard.max(self.ring.begin());
        // Whether a deaf service heard speech begin, nobody knows; what is older than the ring keeps of silence is lost.
        let unheard = self.deaf_since.take().map_or(unheard, |deaf| open.max(deaf).min(unheard));
        if unheard < from {
            self.audio_gap(unheard, from);
        }
        self.turn.session_hears(from, heard);
        self.speak_again(from, self.ring.end());
        self.given = self.ring.end();
        self.sessions.hears_by = self.turn.speaking().then_some(now + HEARS_WITHIN);
    }

    /// Audio of the ring, once more; how much, bytes.
    fn speak_again(&mut self, from: u64, to: u64) -> u64 {
        let pieces: Vec<_> = self.ring.slice(from, to).collect();
        let mut length = 0;
        for piece in pieces {
            length += piece.len() as u64;
            self.ask(Command::Append(piece));
        }
        length
    }

    /// Words of turns that were answered long ago will not come any more.
    pub(super) fn give_up_words(&mut self, now: At) {
        if now >= self.sessions.turn_at + WORDS_PATIENCE {
            self.mirror.give_up_words();
        }
    }

    /// The service shall make a turn of what it has heard; `id`: what the turn goes by.
    pub(super) fn commit_turn(&mut self, id: String) {
        if self.up {
            self.awaited.push_back((self.commands, id));
            self.ask(Command::Commit);
        }
    }

    /// The caller's turn; what it goes by.
    pub(super) fn keep_turn(&mut self, id: Option<&str>, from: u64, to: u64) -> String {
        let length = self.turn.length_ms(from, to);
        self.unheard(length);
        let Self { mirror, ring, .. } = self;
        mirror.spoken(id, (from, to), length, || ring.slice(from, to).flatten().collect())
    }

    /// Audio that no session will hear.
    fn audio_gap(&mut self, from: u64, to: u64) {
        let (from_ms, to_ms) = (self.turn.client_ms(from), self.turn.client_ms(to));
        let more = [("from_ms", json!(from_ms)), ("to_ms", json!(to_ms)), ("reason", json!("buffer_full"))];
        let message = format!("the model did not hear what was said from {from_ms} to {to_ms} ms");
        self.notice_with("audio_gap", message, more);
    }

    /// Speech that the new session hears too is confirmed.
    pub(super) fn speech_heard(&mut self) {
        self.sessions.hears_by = None;
    }

    /// Audio that nobody will need is forgotten.
    pub(super) fn forget_audio(&mut self) {
        let format = self.plan.upstream_input;
        let open = self.turn.open();
        // A turn that is spoken, heard to its end or gathered is needed from its beginning; silence, for what may turn out to
        // be speech.
        let listens = self.plan.auto_turns && !self.turn.speaking() && !self.turn.has_speech();
        let back = self.given.saturating_sub(format.bytes(BEFORE_SPEECH) as u64);
        let open = if listens { open.max(back) } else { open };
        let needed = self.mirror.needs_from().map_or(open, |from| from.min(open));
        self.ring.forget(needed, format);
    }

    /// What the service does not answer: first ask whether it lives, then do as if it had hung up (fault matrix U8).
    pub(super) fn service_is_dead(&mut self, now: At) {
        self.deaf_since = Some(self.given_alive);
        let stage = self.stage();
        self.out.push_back(Output::Told(Told::Dead(stage)));
        let silent = UpstreamError::Timeout { stage: "answer a ping", after: self.life.stall };
        self.session_lost(now, End::upstream(&silent), true);
    }
}

/// The drop ate the service's count: what a reply must have cost at least, with the whole conversation `before` it.
pub(super) fn estimate_of(before: Option<Usage>, response: &str, audio_ms: u64) -> Booked {
    let before = before.unwrap_or_default();
    let input = before.input_tokens + before.output_tokens;
    let output = audio_ms / MS_PER_TOKEN_OUT;
    let usage = Usage {
        total_tokens: input + output,
        input_tokens: input,
        output_tokens: output,
        input_text_tokens: before.input_text_tokens + before.output_text_tokens,
        input_audio_tokens: before.input_audio_tokens + before.output_audio_tokens,
        output_audio_tokens: output,
        ..Usage::default()
    };
    Booked { audio_ms, estimated: true, ..Booked::reply(response, "lost", usage) }
}

/// A session's end on its own clock, as time from now; `None`: it does not say, or says nonsense.
pub fn lives(expires_at: Option<u64>, unix: u64) -> Option<Duration> {
    const SHORTEST: u64 = 1;
    let left = expires_at?.checked_sub(unix)?;
    // A clock that is wrong by hours shall not make us change sessions each second, nor never.
    (SHORTEST..=24 * 3_600).contains(&left).then(|| Duration::from_secs(left))
}
