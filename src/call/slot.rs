//! One reply at a time: the service writes only one reply to a conversation and refuses a second request.
//!
//! The slot is taken by our request or by the service's own turn detection; whoever comes second waits here. Decides when
//! a request goes out, never what is in it.
use std::{collections::VecDeque, time::Duration};

use serde::{Deserialize, Serialize};

use super::At;

/// After so long without an answer the service will not begin by itself any more: an empty turn gets no reply.
const VAD_PATIENCE: Duration = Duration::from_secs(3);

/// A reply that somebody wants.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Want {
    /// For this reply only.
    pub instructions: Option<String>,
    /// It fills the time while a tool runs: nobody asks for it twice.
    #[serde(default)]
    pub filler: bool,
}

impl Want {
    /// A reply to this instruction.
    pub fn told(instructions: String) -> Self {
        Self { instructions: Some(instructions), filler: false }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum State {
    Free,
    /// Requested by us, not begun.
    Requested,
    /// Running; the service's id, if we know it, and what was wanted by it.
    Active(Option<String>, Want),
}

/// What we asked for last.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Request {
    /// Of our command.
    number: u64,
    want: Want,
    /// The caller has moved on.
    called_off: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Waiting {
    want: Want,
    /// The service's own reply to the caller's speech will answer it, if there is one.
    covered: bool,
}

/// What a reply that begins is to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Began {
    /// It shall be heard.
    Wanted,
    /// It was called off before it began; the service knows.
    CalledOff,
    /// The caller speaks already; the service stops only what runs when speech begins.
    Untimely,
}

/// What was under way in a session that is lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    /// The reply that ran, if its name was known.
    pub response: Option<String>,
    /// What was wanted by it, or by the request that had not become one.
    pub want: Option<Want>,
}

/// The conversation's one slot.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Slot {
    state: State,
    /// Kept beyond the beginning of a reply: it may turn out that another one began.
    request: Option<Request>,
    waiting: VecDeque<Waiting>,
    /// The service will begin a reply by itself, until then.
    vad_until: Option<At>,
}

impl Default for Slot {
    fn default() -> Self {
        Self { state: State::Free, request: None, waiting: VecDeque::new(), vad_until: None }
    }
}

impl Slot {
    /// Somebody wants a reply. Two plain wishes are one: a reply answers everything said before it.
    pub fn want(&mut self, want: Want) {
        if want.instructions.is_some() || !self.waiting.iter().any(|w| w.want.instructions.is_none() && !w.covered) {
            self.waiting.push_back(Waiting { want, covered: false });
        }
    }

    /// Somebody wants a reply before all others.
    pub fn want_first(&mut self, want: Want) {
        self.waiting.push_front(Waiting { want, covered: false });
    }

    /// Somebody wants a reply, and nobody speaks.
    pub fn has_wish(&self) -> bool {
        self.vad_until.is_none() && !self.waiting.is_empty()
    }

    /// The reply that begins now is the one that we asked for: the service begins none by itself while the caller speaks.
    pub fn is_ours(&self) -> bool {
        self.state == State::Requested && (self.vad_until == Some(At::MAX) || self.vad_until.is_none())
    }

    /// The request that may go out now, as command `number`.
    pub fn next(&mut self, number: u64) -> Option<Want> {
        if self.state != State::Free || self.vad_until.is_some() {
            return None;
        }
        let want = self.drop_next()?;
        self.state = State::Requested;
        self.request = Some(Request { number, want: want.clone(), called_off: false });
        Some(want)
    }

    /// As [`Self::next`], for a filler: where nothing waits or runs.
    pub fn fill(&mut self, number: u64, want: Want) -> bool {
        let free = self.idle();
        if free {
            self.state = State::Requested;
            self.request = Some(Request { number, want, called_off: false });
        }
        free
    }

    /// The filler that was asked for has become needless; whether it has not begun, and the service has to be told.
    pub fn call_off_filler(&mut self) -> bool {
        let filler = self.request.as_ref().is_some_and(|request| request.want.filler);
        self.state == State::Requested && filler && self.call_off()
    }

    /// Command `number` asks for a filler.
    pub fn asks_filler(&self, number: u64) -> bool {
        self.request.as_ref().is_some_and(|request| request.number == number && request.want.filler)
    }

    /// The request that would go out next is given up, with all that it would have answered.
    pub fn drop_next(&mut self) -> Option<Want> {
        let want = self.waiting.pop_front()?.want;
        if want.instructions.is_none() {
            self.waiting.retain(|w| w.want.instructions.is_some());
        }
        Some(want)
    }

    /// As [`Self::drop_next`], if it is a plain wish; whether it was.
    pub fn drop_plain(&mut self) -> bool {
        let plain = self.waiting.front().is_some_and(|next| next.want.instructions.is_none());
        plain && self.drop_next().is_some()
    }

    /// The caller speaks: the service will answer this turn by itself, once it ends.
    pub fn hold_for_speech(&mut self) {
        self.vad_until = Some(At::MAX);
    }

    /// The caller's turn is over: the service is about to answer, and with it everything that waits by now.
    pub fn expect_vad(&mut self, now: At) {
        if !matches!(self.state, State::Active(..)) || self.vad_until.is_some() {
            self.vad_until = Some(now + VAD_PATIENCE);
            self.waiting.iter_mut().for_each(|w| w.covered = true);
        }
    }

    /// The client asks the service itself; `false`: a reply runs or is asked for already.
    pub fn take(&mut self) -> bool {
        let free = self.state == State::Free;
        if free {
            self.state = State::Requested;
        }
        free
    }

    /// What the client asked for itself will not come. `busy`: since another reply runs.
    pub fn not_taken(&mut self, busy: bool) {
        if self.state == State::Requested {
            self.state = if busy { State::Active(None, Want::default()) } else { State::Free };
        }
    }

    /// A reply began.
    pub fn created(&mut self, response: &str) -> Began {
        let speaking = self.vad_until == Some(At::MAX);
        let ours = self.is_ours();
        let want = self.request.as_ref().filter(|_| ours).map(|request| request.want.clone()).unwrap_or_default();
        self.state = State::Active(Some(response.to_owned()), want);
        if ours {
            let called_off = self.request.as_ref().is_some_and(|r| r.called_off);
            return match (called_off, speaking) {
                (true, _) => Began::CalledOff,
                (false, true) => Began::Untimely,
                (false, false) => Began::Wanted,
            };
        }
        self.waiting.retain(|w| !w.covered || w.want.instructions.is_some());
        self.vad_until = None;
        Began::Wanted
    }

    /// A reply ended.
    pub fn done(&mut self, response: &str) {
        if matches!(&self.state, State::Active(id, _) if id.as_deref().is_none_or(|id| id == response)) {
            self.state = State::Free;
        }
    }

    /// Our command `number` was refused. `busy`: another reply runs; ours waits for its end.
    /// If it was a request for a reply: whether it will be made again.
    pub fn refused(&mut self, number: u64, busy: bool) -> Option<bool> {
        let request = self.request.take_if(|r| r.number == number)?;
        let again = busy && !request.called_off && !request.want.filler;
        if again {
            self.want_first(request.want);
        }
        if self.state == State::Requested {
            self.state = if busy { State::Active(None, Want::default()) } else { State::Free };
        }
        Some(again)
    }

    /// The caller has moved on from a reply that has not begun, or that we know nothing of. Returns whether the service
    /// has to be told.
    pub fn call_off(&mut self) -> bool {
        match (&self.state, &mut self.request) {
            (State::Requested, Some(request)) => !std::mem::replace(&mut request.called_off, true),
            (state, _) => matches!(state, State::Active(None, _)),
        }
    }

    /// Forgets a reply that will never end.
    pub fn free(&mut self) {
        self.state = State::Free;
        self.request = None;
    }

    /// The session is lost, and with it what was under way.
    pub fn lost(&mut self) -> Lost {
        let request = self.request.take().filter(|request| !request.called_off);
        let lost = match std::mem::replace(&mut self.state, State::Free) {
            State::Free => Lost { response: None, want: None },
            State::Requested => Lost { response: None, want: request.map(|request| request.want) },
            State::Active(response, want) => Lost { response, want: Some(want) },
        };
        let lost = Lost { want: lost.want.filter(|want| !want.filler), ..lost };
        // The service was about to answer; while the caller speaks, the next session will.
        let owed = self.vad_until.take_if(|at| *at != At::MAX).is_some();
        self.waiting.iter_mut().for_each(|w| w.covered = false);
        if owed {
            self.want(Want::default());
        }
        lost
    }

    /// Nobody speaks, although it was heard so.
    pub fn never_spoke(&mut self) {
        self.vad_until = None;
    }

    /// Forgets what waits: the caller has moved on.
    pub fn drop_waiting(&mut self) {
        self.waiting.clear();
    }

    /// A reply runs or was requested.
    pub fn busy(&self) -> bool {
        self.state != State::Free
    }

    /// Nothing runs, waits or is expected.
    pub fn idle(&self) -> bool {
        !self.busy() && self.waiting.is_empty() && self.vad_until.is_none()
    }

    /// The running reply at the service.
    pub fn active(&self) -> Option<&str> {
        match &self.state {
            State::Active(id, _) => id.as_deref(),
            _ => None,
        }
    }

    /// What was wanted by the reply that runs.
    pub fn wanted(&self, response: &str) -> Option<Want> {
        match &self.state {
            State::Active(id, want) if id.as_deref() == Some(response) => Some(want.clone()),
            _ => None,
        }
    }

    /// When to call [`Self::tick`].
    pub fn deadline(&self) -> Option<At> {
        self.vad_until.filter(|at| *at != At::MAX)
    }

    /// Stops expecting a reply that does not come; whether it does so now.
    pub fn tick(&mut self, now: At) -> bool {
        let over = self.vad_until.is_some_and(|at| now >= at);
        if over {
            self.vad_until = None;
            self.waiting.iter_mut().for_each(|w| w.covered = false);
        }
        over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain() -> Want {
        Want::default()
    }

    #[test]
    fn the_second_request_waits_for_the_first_reply() {
        let mut slot = Slot::default();
        slot.want(plain());
        assert_eq!(slot.next(1), Some(plain()));
        slot.want(plain());
        slot.want(plain());
        assert_eq!(slot.next(2), None);
        assert_eq!(slot.created("resp_1"), Began::Wanted);
        assert_eq!(slot.next(2), None);
        slot.done("resp_other");
        assert_eq!(slot.next(2), None, "another reply's end frees nothing");
        slot.done("resp_1");
        assert_eq!(slot.next(2), Some(plain()), "two plain wishes were one");
        assert_eq!(slot.created("resp_2"), Began::Wanted);
        slot.done("resp_2");
        assert!(slot.idle());
    }

    #[test]
    fn the_services_own_reply_answers_what_waits() {
        let mut slot = Slot::default();
        slot.hold_for_speech();
        slot.want(plain());
        slot.want(Want::told("greet".into()));
        assert_eq!(slot.next(1), None, "nobody talks into the caller's speech");
        slot.expect_vad(Duration::from_secs(1));
        assert_eq!(slot.created("resp_vad"), Began::Wanted);
        slot.done("resp_vad");
        assert_eq!(slot.next(2).and_then(|w| w.instructions).as_deref(), Some("greet"));
    }

    #[test]
    fn a_request_that_lost_the_race_is_made_again() {
        let mut slot = Slot::default();
        slot.want(plain());
        slot.next(7);
        assert_eq!(slot.refused(6, true), None, "another command");
        assert_eq!(slot.refused(7, true), Some(true));
        assert_eq!(slot.next(8), None);
        slot.done("resp_vad");
        assert_eq!(slot.next(8), Some(plain()));
        assert_eq!(slot.refused(8, false), Some(false));
        assert!(slot.idle());
    }

    #[test]
    fn a_client_that_asks_by_itself_has_the_slot_until_the_end() {
        let mut slot = Slot::default();
        assert!(slot.take());
        assert!(!slot.take(), "asked for already");
        slot.not_taken(false);
        assert!(slot.take());
        slot.not_taken(true);
        assert!(!slot.take(), "the service's own reply runs");
        slot.done("resp_vad");
        assert!(slot.take());
        slot.created("resp_1");
        slot.not_taken(false);
        assert!(!slot.take(), "a late error frees nothing");
        slot.done("resp_1");
        assert!(slot.idle());
    }

    #[test]
    fn what_a_lost_session_owed_is_known() {
        let greet = Want::told("greet".into());
        let mut slot = Slot::default();
        slot.want(greet.clone());
        slot.next(1);
        assert_eq!(slot.clone().lost(), Lost { response: None, want: Some(greet.clone()) }, "asked for, not begun");
        slot.created("resp_1");
        assert_eq!(slot.clone().lost(), Lost { response: Some("resp_1".into()), want: Some(greet) });
        slot.done("resp_1");
        slot.expect_vad(Duration::ZERO);
        assert_eq!(slot.lost(), Lost { response: None, want: None });
        assert_eq!(slot.next(2), Some(plain()), "the service was about to answer");
        slot.call_off();
        assert_eq!(slot.lost().want, None, "nobody wants it any more");
        slot.hold_for_speech();
        slot.lost();
        slot.want(plain());
        assert_eq!(slot.next(3), None, "the caller goes on speaking");
    }

    #[test]
    fn a_filler_takes_nobodys_place_and_is_asked_for_once() {
        let filler = Want { filler: true, ..Want::told("one moment".into()) };
        let mut slot = Slot::default();
        slot.want(plain());
        assert!(!slot.fill(1, filler.clone()), "somebody wants an answer");
        slot.next(1);
        assert!(!slot.fill(2, filler.clone()), "an answer is asked for");
        slot.created("resp_1");
        slot.done("resp_1");
        assert!(slot.fill(3, filler.clone()) && slot.asks_filler(3));
        assert!(slot.call_off_filler() && !slot.call_off_filler());
        assert_eq!(slot.created("resp_2"), Began::CalledOff);
        slot.done("resp_2");
        assert!(slot.fill(4, filler.clone()));
        assert_eq!(slot.refused(4, true), Some(false), "never again");
        slot.done("resp_other");
        assert!(slot.fill(5, filler.clone()));
        slot.created("resp_3");
        assert!(!slot.call_off_filler(), "it is heard to its end");
        assert_eq!(slot.lost(), Lost { response: Some("resp_3".into()), want: None });
        assert!(slot.fill(6, filler));
        assert_eq!(slot.lost(), Lost { response: None, want: None });
        assert!(slot.idle());
    }

    #[test]
    fn an_empty_turn_gets_no_reply() {
        let mut slot = Slot::default();
        slot.hold_for_speech();
        slot.expect_vad(Duration::from_secs(1));
        slot.want(plain());
        assert_eq!(slot.next(1), None);
        assert_eq!(slot.deadline(), Some(Duration::from_secs(4)));
        slot.tick(Duration::from_secs(4));
        assert_eq!(slot.next(1), Some(plain()));
    }
}
