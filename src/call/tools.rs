//! Tools of both kinds, those that the client answers and those that the relay runs itself: each call goes out once, and gets one
//! result, if need be that it timed out.
//!
//! The service announces a call twice; a client may never answer. The model goes on once a reply has ended and all its
//! calls have results.
use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::At;
use crate::config::{AgentConfig, ExpertConfig, WebhookConfig};

/// Calls remembered by their ids: the service announces one again within its reply, and a reply makes a handful.
const SEEN: usize = 256;

/// A tool that the relay runs itself, as far as a call's decisions go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnTool {
    /// Whoever runs it gives a result, good or bad, within this.
    pub timeout: Duration,
    /// Running it twice does no harm.
    pub idempotent: bool,
    /// Said while it takes long.
    pub filler: Option<String>,
    /// How long the caller hears nothing before that.
    pub filler_after: Duration,
    /// It is given up when the caller goes on: what they say now is more than its result.
    #[serde(default)]
    pub yields: bool,
}

impl OwnTool {
    /// Those of an agent, by their names.
    pub fn of(agent: &AgentConfig) -> BTreeMap<String, Self> {
        let http = |http: &WebhookConfig| Self {
            timeout: Duration::from_secs(http.timeout_s),
            idempotent: http.idempotent,
            filler: http.filler.clone(),
            filler_after: Duration::from_millis(http.filler_after_ms),
            yields: false,
        };
        let expert = |expert: ExpertConfig| Self {
            timeout: Duration::from_secs(expert.deadline_s),
            // A question that is asked twice costs more, and changes nothing.
            idempotent: true,
            filler: Some(expert.filler).filter(|filler| !filler.trim().is_empty()),
            filler_after: Duration::from_millis(expert.filler_after_ms),
            yields: true,
        };
        let own = agent.tools.iter().filter_map(|tool| {
            let own = tool.http.as_ref().map(http).or_else(|| tool.expert().map(expert))?;
            Some((tool.name.clone(), own))
        });
        own.collect()
    }
}

/// A tool call that the relay runs itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// The tool.
    pub name: String,
    /// JSON in a string, as the model wrote it.
    pub arguments: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Pending {
    response: String,
    until: At,
    /// The relay runs it itself; none: the client.
    #[serde(default)]
    run: Option<Run>,
}

/// The calls of one reply.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Batch {
    open: usize,
    /// The reply has ended; the value says whether to its end.
    ended: Option<bool>,
}

/// A call's tools.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Tools {
    pending: BTreeMap<String, Pending>,
    batches: BTreeMap<String, Batch>,
    /// The newest, the oldest first.
    seen: VecDeque<String>,
}

impl Tools {
    /// The model wants a tool; `false` when that was known. `run`: the relay runs it itself.
    pub fn called(&mut self, now: At, response: &str, call_id: &str, timeout: Duration, run: Option<Run>) -> bool {
        if self.pending.contains_key(call_id) || self.seen.iter().any(|seen| seen == call_id) {
            return false;
        }
        if self.seen.len() == SEEN {
            self.seen.pop_front();
        }
        self.seen.push_back(call_id.to_owned());
        self.batches.entry(response.to_owned()).or_default().open += 1;
        self.pending.insert(call_id.to_owned(), Pending { response: response.to_owned(), until: now + timeout, run });
        true
    }

    /// Whether the relay runs this one itself, and has no result yet.
    pub fn is_own(&self, call_id: &str) -> bool {
        self.pending.get(call_id).is_some_and(|pending| pending.run.is_some())
    }

    /// Whether the relay runs one itself.
    pub fn runs_own(&self) -> bool {
        self.pending.values().any(|pending| pending.run.is_some())
    }

    /// Those that the relay runs itself: which calls.
    pub fn own(&self) -> Vec<(String, Run)> {
        self.pending.iter().filter_map(|(id, pending)| Some((id.clone(), pending.run.clone()?))).collect()
    }

    /// It is run once more, and has so long again.
    pub fn runs_again(&mut self, now: At, call_id: &str, timeout: Duration) {
        if let Some(pending) = self.pending.get_mut(call_id) {
            pending.until = now + timeout;
        }
    }

    /// A result is there. `None`: nobody waits for it; else whether the model shall go on now.
    pub fn answered(&mut self, call_id: &str) -> Option<bool> {
        let response = self.pending.remove(call_id)?.response;
        if let Some(batch) = self.batches.get_mut(&response) {
            batch.open = batch.open.saturating_sub(1);
        }
        Some(self.go_on(&response))
    }

    /// A reply ended, `completed` or not. Returns whether the model shall go on now.
    pub fn reply_done(&mut self, response: &str, completed: bool) -> bool {
        if let Some(batch) = self.batches.get_mut(response) {
            batch.ended = Some(completed);
        }
        self.go_on(response)
    }

    /// The session is lost in the middle of a reply: whatever it has called goes on. Returns whether the model shall go on now.
    pub fn reply_lost(&mut self, response: &str) -> bool {
        match self.batches.get(response) {
            Some(Batch { ended: None, .. }) => self.reply_done(response, true),
            _ => false,
        }
    }

    /// The client was away for so long, in which it could answer nothing.
    pub fn resumed(&mut self, away: Duration) {
        self.pending.values_mut().filter(|p| p.run.is_none()).for_each(|pending| pending.until += away);
    }

    fn go_on(&mut self, response: &str) -> bool {
        let over = self.batches.get(response).is_some_and(|b| b.open == 0 && b.ended.is_some());
        // A reply that failed or was cut off is not continued: the caller or the service has moved on.
        over && self.batches.remove(response).and_then(|b| b.ended).unwrap_or(false)
    }

    /// The calls that timed out by now, and the tools that the relay runs itself; send their results and say [`Self::answered`].
    /// Without a client that could answer (`connected`), its own wait.
    pub fn late(&self, now: At, connected: bool) -> Vec<(String, Option<Run>)> {
        let late = self.waiting(connected).filter(|(_, p)| now >= p.until);
        late.map(|(id, p)| (id.clone(), p.run.clone())).collect()
    }

    /// When the next one times out.
    pub fn deadline(&self, connected: bool) -> Option<At> {
        self.waiting(connected).map(|(_, p)| p.until).min()
    }

    fn waiting(&self, connected: bool) -> impl Iterator<Item = (&String, &Pending)> {
        self.pending.iter().filter(move |(_, pending)| connected || pending.run.is_some())
    }
}

/// Whether a result says that there is none: it is an object that has an `error`.
pub fn has_failed(output: &str) -> bool {
    #[derive(serde::Deserialize)]
    struct Output {
        error: Option<serde::de::IgnoredAny>,
    }
    serde_json::from_str(output).is_ok_and(|Output { error }| error.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(30);
    const T0: At = Duration::ZERO;

    #[test]
    fn a_call_goes_out_once_and_the_model_goes_on_once() {
        let mut tools = Tools::default();
        assert!(tools.called(T0, "r", "a", TIMEOUT, None));
        assert!(!tools.called(T0, "r", "a", TIMEOUT, None), "announced twice");
        assert!(tools.called(T0, "r", "b", TIMEOUT, None));
        assert_eq!(tools.answered("a"), Some(false));
        assert!(!tools.reply_done("r", true), "b is open");
        assert_eq!(tools.answered("b"), Some(true));
        assert_eq!(tools.answered("b"), None);
        assert!(!tools.called(T0, "r", "a", TIMEOUT, None), "never run twice");
    }

    #[test]
    fn a_call_of_days_remembers_no_more_than_it_needs() {
        let mut tools = Tools::default();
        tools.called(T0, "r", "open", TIMEOUT, None);
        for n in 0..10 * SEEN {
            assert!(tools.called(T0, "r", &format!("call_{n}"), TIMEOUT, None));
            assert!(!tools.called(T0, "r", &format!("call_{n}"), TIMEOUT, None));
            tools.answered(&format!("call_{n}"));
        }
        assert_eq!(tools.seen.len(), SEEN);
        assert!(!tools.called(T0, "r", "open", TIMEOUT, None), "it has no result yet, however old it is");
    }

    #[test]
    fn a_result_before_the_replys_end_waits_for_it() {
        let mut tools = Tools::default();
        tools.called(T0, "r", "a", TIMEOUT, None);
        assert_eq!(tools.answered("a"), Some(false));
        assert!(tools.reply_done("r", true));
        assert!(!tools.reply_done("other", true), "a reply without tools needs no continuation");
    }

    #[test]
    fn a_tool_outlives_the_session_that_called_it() {
        let mut tools = Tools::default();
        tools.called(T0, "r", "a", TIMEOUT, None);
        assert!(!tools.reply_lost("r"), "a is open");
        assert_eq!(tools.answered("a"), Some(true));
        tools.called(T0, "s", "b", TIMEOUT, None);
        assert_eq!(tools.answered("b"), Some(false));
        assert!(tools.reply_lost("s"));
        assert!(!tools.reply_lost("s") && !tools.reply_lost("other"));
        tools.called(T0, "t", "c", TIMEOUT, None);
        tools.resumed(TIMEOUT);
        assert_eq!(tools.deadline(true), Some(TIMEOUT * 2));
    }

    #[test]
    fn a_failed_reply_is_not_continued() {
        let mut tools = Tools::default();
        tools.called(T0, "r", "a", TIMEOUT, None);
        assert!(!tools.reply_done("r", false));
        assert_eq!(tools.answered("a"), Some(false));
    }

    #[test]
    fn a_client_that_never_answers_is_late() {
        let mut tools = Tools::default();
        tools.called(T0, "r", "a", TIMEOUT, None);
        assert_eq!(tools.deadline(true), Some(TIMEOUT));
        assert!(tools.late(TIMEOUT - Duration::from_millis(1), true).is_empty());
        assert_eq!(tools.late(TIMEOUT, true), [("a".to_owned(), None)]);
    }

    #[test]
    fn a_tool_of_the_relays_waits_for_no_client() {
        let mut tools = Tools::default();
        let run = Run { name: "look_up".into(), arguments: "{}".into() };
        tools.called(T0, "r", "a", TIMEOUT, None);
        tools.called(T0, "r", "b", TIMEOUT / 2, Some(run.clone()));
        assert!(tools.is_own("b") && !tools.is_own("a") && tools.runs_own());
        assert_eq!((tools.deadline(true), tools.deadline(false)), (Some(TIMEOUT / 2), Some(TIMEOUT / 2)));
        tools.resumed(TIMEOUT);
        assert_eq!(tools.late(TIMEOUT, true), [("b".to_owned(), Some(run.clone()))], "its time goes on");
        assert_eq!(tools.own(), [("b".to_owned(), run)]);
        tools.answered("b");
        assert_eq!((tools.deadline(true), tools.deadline(false), tools.runs_own()), (Some(TIMEOUT * 2), None, false));
    }
}
