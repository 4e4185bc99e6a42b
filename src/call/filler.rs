//! What a caller hears while a tool takes long: one sentence for a turn, and none once there is something better to hear.
//!
//! Decides whether a sentence is due. Whether the line is free for it, and that it is asked for, is the core's.
use serde::{Deserialize, Serialize};

use super::{At, tools::OwnTool};

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Waiting {
    call_id: String,
    response: String,
    text: String,
    at: At,
}

/// Sentences that wait for their moment.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Fillers {
    waiting: Vec<Waiting>,
    /// This turn has had its own.
    said: bool,
    /// It was asked for on account of this tool call.
    on_account: Option<String>,
}

impl Fillers {
    /// A reply has called a tool.
    pub fn called(&mut self, now: At, response: &str, call_id: &str, own: &OwnTool) {
        if let Some(text) = own.filler.clone().filter(|_| !self.said) {
            let (call_id, response) = (call_id.to_owned(), response.to_owned());
            self.waiting.push(Waiting { call_id, response, text, at: now + own.filler_after });
        }
    }

    /// A result is there. Whether what was asked for has become needless by it.
    pub fn answered(&mut self, call_id: &str) -> bool {
        self.waiting.retain(|waiting| waiting.call_id != call_id);
        self.on_account.take_if(|on| on == call_id).is_some()
    }

    /// The reply that called says something itself.
    pub fn speaks(&mut self, response: &str) {
        self.waiting.retain(|waiting| waiting.response != response);
    }

    /// The caller has moved on: the next turn may have a sentence of its own.
    pub fn moved_on(&mut self) {
        *self = Self::default();
    }

    /// When the first one is due.
    pub fn deadline(&self) -> Option<At> {
        self.waiting.iter().map(|waiting| waiting.at).min()
    }

    /// The one that is due; the turn will have no other.
    pub fn take(&mut self, now: At) -> Option<String> {
        let due = self.waiting.iter().filter(|waiting| now >= waiting.at).min_by_key(|waiting| waiting.at)?;
        self.on_account = Some(due.call_id.clone());
        let text = due.text.clone();
        self.give_up();
        Some(text)
    }

    /// This turn goes without.
    pub fn give_up(&mut self) {
        self.waiting.clear();
        self.said = true;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const MS: At = Duration::from_millis(1);

    fn tool(filler: &str, after: u32) -> OwnTool {
        let filler = (!filler.is_empty()).then(|| filler.to_owned());
        OwnTool { timeout: 10_000 * MS, idempotent: false, filler, filler_after: after * MS, yields: false }
    }

    #[test]
    fn the_first_that_is_due_is_said_and_no_other() {
        let mut fillers = Fillers::default();
        fillers.called(At::ZERO, "r", "none", &tool("", 0));
        assert_eq!(fillers.deadline(), None);
        fillers.called(At::ZERO, "r", "slow", &tool("slow", 900));
        fillers.called(At::ZERO, "r", "quick", &tool("quick", 500));
        assert_eq!((fillers.deadline(), fillers.take(499 * MS)), (Some(500 * MS), None));
        assert_eq!(fillers.take(1_000 * MS).as_deref(), Some("quick"));
        fillers.called(2_000 * MS, "r2", "again", &tool("again", 0));
        assert_eq!((fillers.deadline(), fillers.take(9_000 * MS)), (None, None), "once in a turn");
        assert!(!fillers.answered("slow") && fillers.answered("quick") && !fillers.answered("quick"));
        fillers.moved_on();
        fillers.called(MS, "r3", "next", &tool("next", 0));
        assert_eq!(fillers.take(MS).as_deref(), Some("next"));
    }

    #[test]
    fn a_result_or_words_of_the_model_are_better() {
        let mut fillers = Fillers::default();
        fillers.called(At::ZERO, "r", "a", &tool("a", 500));
        fillers.answered("a");
        fillers.called(At::ZERO, "r", "b", &tool("b", 500));
        fillers.speaks("r");
        assert_eq!((fillers.deadline(), fillers.take(500 * MS)), (None, None));
    }
}
