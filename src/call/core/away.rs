//! The client is away: the call is kept for it, and goes on where it was when it is back (client-protocol.md, "Resume").
//!
//! Its socket is gone, or was closed by us for a reason that coming back may mend. Meanwhile the loudspeaker's clock stands,
//! the service is still heard, and what it says is kept up to a bound.
use std::time::Duration;

use super::{Core, Output};
use crate::{
    call::{At, end::End},
    client::wire::{ErrorBody, ServerMsg},
    upstream::Command,
};

/// Reply audio that is kept for a client that is away (client-protocol.md, "Resume").
const KEPT: Duration = Duration::from_secs(30);

/// Since when the client is away, and until when its call is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct Away {
    pub(super) since: At,
    pub(super) until: At,
}

impl Core {
    /// The client is gone or must go: the call is kept for it, if it can come back, and ends otherwise.
    pub(super) fn leave(&mut self, now: At, why: End) {
        if why == End::Drained && self.has_successor() {
            return self.hand_over();
        }
        let Some(window) = self.resume_window.filter(|_| why.may_come_back()) else { return self.end(now, why) };
        if let Some(away) = self.away {
            if now >= away.until {
                self.end(now, why);
            }
            return; // nobody is there to be told; who comes back is served, or told then
        }
        let request_id = self.request_id();
        let word = why.error(request_id).map(|error| self.last_word(error));
        self.out.push_back(Output::HangUp { why, word });
        let since = self.client_seen.min(now);
        self.away = Some(Away { since, until: now + window });
        self.keep_output();
    }

    fn last_word(&mut self, error: ErrorBody) -> ServerMsg {
        self.note(crate::observe::fact::Fact::Refused { code: error.code.clone().into() });
        ServerMsg::Error { error }
    }

    /// The client is back; `late` is how long those messages play that it gets only now.
    pub(super) fn back(&mut self, now: At, late: Duration) {
        // One that takes over from a socket that only seemed to live has been away, too.
        let since = self.away.take().map_or(self.client_seen, |away| away.since);
        let away = now.saturating_sub(since);
        (self.client_seen, self.message_seen, self.pinged) = (now, now, None);
        self.intake.resumed(now, away);
        self.tools.resumed(away);
        self.turn.resumed(now);
        self.playout.lacks(now, late);
        if !self.up && !self.sessions.opening {
            self.dial(); // it was given up, while nobody was there
        }
    }

    /// The client is there.
    pub fn is_connected(&self) -> bool {
        self.away.is_none()
    }

    /// More than is kept is not said: the model shall not believe that it was.
    pub(super) fn keep_output(&mut self) {
        if self.away.is_none() || self.pass.is_some() {
            return;
        }
        let stopped = self.playout.keep(KEPT);
        if let Some(response) = stopped.generating {
            self.ask(Command::CancelReply { response: Some(response) });
        }
        for item in stopped.unheard {
            self.forget(item);
        }
    }
}
