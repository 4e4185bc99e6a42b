//! What time brings: deadlines of all parts in one, and the call's own limits.
use std::time::Duration;

use super::{Core, Output, Stall};
use crate::{
    call::{At, end::End, ms, reply::Generated},
    client::wire::{ReplyStatus, ServerMsg},
    upstream::{Command, UpstreamError},
};

/// A quiet client is asked whether it lives (fault matrix C2).
const PING_EVERY: Duration = Duration::from_secs(15);
/// A conversation in which nothing was said for so long waits for nobody: no answer to a turn, no result of a tool.
const NO_MORE_COMES: Duration = Duration::from_secs(2);
/// A service that has said nothing for so long, and owes nothing, is asked whether it lives: it could be deaf.
const QUIET_SERVICE: Duration = Duration::from_secs(30);
/// Two pings without any sign of life.
const DEAD_AFTER: Duration = Duration::from_secs(33);

impl Core {
    /// When to say [`super::Input::Tick`] at the latest. `room`: the client's socket has room for audio.
    pub fn deadline(&self, room: bool) -> Option<At> {
        if self.ended || self.gone {
            return None;
        }
        let always = [
            Some(self.life.max),
            self.away.map(|away| away.until),
            self.turn.deadline(self.is_connected()),
            self.slot.deadline(),
            self.session_due(),
            self.stalls_at(),
            self.drain_at,
            self.leaves_at(),
            self.leaves_by(),
            self.gone_by(),
            self.tools.deadline(self.is_connected()),
            self.fills_at(),
        ];
        let connected = [
            self.credential_at,
            self.expiring_at,
            self.life.idle.map(|idle| self.message_seen + idle),
            self.silent_at(),
            Some(self.ping_at()),
            Some(self.client_seen + DEAD_AFTER),
            self.intake.ack_due(),
            self.playout.deadline(room),
            self.keypad.deadline(),
            self.prompts_at(),
            self.leaves_line_at(),
        ];
        let connected = connected.into_iter().filter(|_| self.is_connected());
        always.into_iter().chain(connected).flatten().min()
    }

    fn ping_at(&self) -> At {
        self.pinged.map_or(self.client_seen, |at| at.max(self.client_seen)) + PING_EVERY
    }

    /// The service owes us something.
    pub(super) fn owes(&self) -> bool {
        self.slot.busy() && !self.wish_waits() || self.pass.as_ref().is_some_and(|pass| pass.awaits_settings())
    }

    fn stalls_at(&self) -> Option<At> {
        if !self.up {
            return None;
        }
        match self.stall {
            Stall::None => Some(self.service_seen + if self.owes() { self.life.stall } else { QUIET_SERVICE }),
            Stall::Asked(at) => Some(at + self.life.stall),
            Stall::Alive => self.owes().then_some(self.service_seen + self.life.stall * 2),
        }
    }

    /// A client that owns its conversation is told nothing before it must leave: the best moment is the next quiet one. So it is
    /// for a call that another process goes on with.
    fn leaves_at(&self) -> Option<At> {
        self.drain_at?;
        let Some(pass) = self.pass.as_ref().filter(|_| !self.has_successor()) else { return self.goes_over_at() };
        let quiet = self.is_quiet() && self.client_has_all;
        quiet.then(|| self.service_seen.max(pass.spoke_at()) + NO_MORE_COMES)
    }

    pub(super) fn tick(&mut self, now: At, may_change: bool) {
        if self.ended {
            return;
        }
        if let Some(end) = self.time_is_up(now) {
            return self.leave(now, end);
        }
        self.turn.tick(now, self.is_connected());
        if self.slot.tick(now) {
            self.nobody_answered(now);
        }
        self.late_tools(now);
        self.tick_sessions(now, may_change);
        if self.stalls_at().is_some_and(|at| now >= at) {
            self.stalled(now);
        }
        if self.is_connected() {
            self.tick_client(now);
        }
    }

    fn tick_client(&mut self, now: At) {
        if self.expiring_at.take_if(|at| now >= *at).is_some() {
            self.credential_expires(now);
        }
        if now >= self.ping_at() {
            self.pinged = Some(now);
            self.out.push_back(Output::PingClient);
        }
        if self.intake.ack_due().is_some_and(|at| now >= at) {
            self.intake.acked();
            let ack = ServerMsg::Ack { got: self.intake.messages(), audio_ms: ms(self.intake.audio()) };
            self.say(ack);
        }
        self.take_number(now);
        if let Some(end) = self.prompt(now) {
            self.leave(now, end);
        }
    }

    fn time_is_up(&self, now: At) -> Option<End> {
        if let Some(end) = self.has_left(now) {
            return Some(end);
        }
        if now >= self.life.max {
            return Some(End::MaxTime(self.life.max));
        }
        if self.away.is_some_and(|away| now >= away.until) {
            return Some(End::ClientLost);
        }
        if [self.drain_at, self.leaves_at()].into_iter().flatten().any(|at| now >= at) {
            return Some(End::Drained);
        }
        if !self.is_connected() {
            return None;
        }
        if self.credential_at.is_some_and(|at| now >= at) {
            return Some(End::TokenExpired);
        }
        if now >= self.client_seen + DEAD_AFTER {
            return Some(End::NoPong);
        }
        if self.silent_at().is_some_and(|at| now >= at) {
            return self.life.silence.map(End::Silent);
        }
        self.life.idle.filter(|idle| now >= self.message_seen + *idle).map(End::Idle)
    }

    /// When a call ends in which nobody speaks. Speech that goes on, or an answer that is heard, is no silence.
    fn silent_at(&self) -> Option<At> {
        self.life.silence.filter(|_| !self.somebody_speaks()).map(|silence| self.spoke_at + silence)
    }

    pub(super) fn somebody_speaks(&self) -> bool {
        self.turn.speaking() || self.playout.active() || self.slot.busy()
    }

    fn credential_expires(&mut self, now: At) {
        let left = self.credential_at.unwrap_or(now).saturating_sub(now);
        // Rounded up: a client that waits as long as it is told shall not come too late.
        let secs = ms(left).div_ceil(1_000);
        let message = format!("the credential of this call ends in {secs} s: send another one as `token`");
        self.notice_with("token_expiring", message, [("in_s", serde_json::json!(secs))]);
    }

    pub(super) fn renewed(&mut self, now: At, good_for: Option<Duration>) {
        self.credential_at = good_for.map(|left| now + left);
        self.expiring_at = self.credential_at.map(|end| super::warning(now, end));
    }

    pub(super) fn drain(&mut self, now: At, length: Duration) {
        if self.drain_at.is_none() {
            self.drain_at = Some(now + length);
            if self.has_successor() && !self.is_connected() {
                return; // whoever comes back comes to the other process
            }
            self.out.push_back(Output::SendNow(ServerMsg::Draining { deadline_ms: ms(length) }));
        }
    }

    /// The service says nothing although a reply is due: first ask whether it lives, then give up the reply, or the
    /// session if it does not even answer a ping (fault matrix U8).
    fn stalled(&mut self, now: At) {
        match self.stall {
            Stall::None if !self.owes() => {
                self.stall = Stall::Asked(now);
                self.out.push_back(Output::PingService);
            }
            Stall::None => {
                self.stall = Stall::Asked(now);
                let secs = self.life.stall.as_secs();
                self.notice("stalled", &format!("the service has said nothing for {secs} s although a reply is due"));
                self.out.push_back(Output::PingService);
            }
            Stall::Alive if self.pass.as_ref().is_some_and(|pass| pass.awaits_settings()) => {
                let silent = UpstreamError::Timeout { stage: "take the agent's configuration", after: self.life.stall };
                self.end(now, End::upstream(&silent));
            }
            Stall::Alive if self.pass.is_some() => {
                // The reply is the client's to give up; one that was never begun shall not keep others away.
                self.stall = Stall::None;
                self.service_seen = now;
                self.slot.not_taken(false);
            }
            Stall::Alive => {
                self.stall = Stall::None;
                self.service_seen = now;
                let response = self.slot.active().map(str::to_owned);
                if let Some(response) = &response {
                    // Its count may never come; if it does, it takes the estimate's place.
                    let estimate = self.estimate(response, self.playout.audio_ms(response));
                    self.out.push_back(Output::Book(estimate));
                    let reason = Some("stalled".to_owned());
                    self.playout.generated(response, Generated { status: ReplyStatus::Failed, reason }, None);
                }
                self.turn_given_up();
                self.ask(Command::CancelReply { response });
                self.slot.free();
                self.refuse("reply_failed", "the service stopped in the middle of its answer".to_owned(), None, true);
            }
            Stall::Asked(_) => self.service_is_dead(now),
        }
    }
}
