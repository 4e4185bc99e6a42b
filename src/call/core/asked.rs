//! What whoever chooses the routes of a call is told of its replies, and what its client is told of another model.
use serde_json::json;

use super::{Core, Output};
use crate::{
    admit::router::Stage,
    call::{At, answers::Told},
};

impl Core {
    /// Audio of a reply came.
    pub(super) fn heard_at(&mut self, now: At, response: &str) {
        if let Some(after) = self.answers.audio(now, response) {
            self.out.push_back(Output::Told(Told::FirstAudio(after)));
        }
    }

    /// How far the service was, if it fails now: it owes an answer of which nothing is heard, or it does not.
    pub fn stage(&self) -> Stage {
        let heard = self.slot.active().is_some_and(|response| self.answers.first_audio_ms(response).is_some());
        if self.slot.busy() && !self.wish_waits() && !heard { Stage::FirstAudio } else { Stage::MidStream }
    }

    /// Clients that own their conversation are told nothing: what the session says of its model is true there.
    pub(super) fn model_changed(&mut self, from: &str, to: &str, reason: &'static str) {
        if self.pass.is_some() {
            return;
        }
        let more = [("from", json!(from)), ("to", json!(to)), ("reason", json!(reason))];
        self.notice_with("model_changed", format!("`{to}` answers from here on ({reason})"), more);
    }
}
