//! When a reply may be asked for: the account's quota is asked first, and the caller told what becomes of it.
//!
//! Where the service finds the turns it also answers them by itself, past any quota; near the limit the relay takes that over
//! (`create_response: false`) and asks for each reply when it is granted. The change comes between turns: what the service has
//! confirmed by then decides who answers a turn.
use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Core, Output};
use crate::{
    admit::governor::Reason,
    call::{At, books::Booked, ms, slot::Want, turnstile::Word},
    client::wire::Usage,
    config::Govern,
    observe::fact::Fact,
    upstream::{Command, Ended},
};

/// What an account is told of a call's replies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum TurnAct {
    /// One shall be asked for, which uses so much at most.
    Ask {
        /// Names the wish; the one before it is forgotten.
        number: u64,
        /// What it may use.
        size: Size,
        /// It has failed for the account's limits before.
        again: bool,
    },
    /// It is not wanted any more.
    Forget,
    /// The service was asked.
    Asked {
        /// As for [`Self::Ask`]; more, if more was said meanwhile.
        size: Size,
    },
    /// It has another reply to end first, and will be asked again.
    Again,
    /// What it was asked for will not come.
    Never {
        /// What that has used; `None`: nobody knows.
        used: Option<Usage>,
    },
    /// A reply has begun.
    Began {
        /// The service's id.
        response: String,
        /// It is the one that we asked for.
        asked: bool,
        /// As for [`Self::Ask`].
        size: Size,
    },
    /// It is over.
    Over {
        /// The service's id.
        response: String,
        /// As for [`Self::Never`].
        used: Option<Usage>,
        /// What the next one may use.
        next: Size,
    },
    /// Somebody has begun to speak: see whether the answer can be paid.
    Look {
        /// What it may use.
        next: Size,
    },
    /// The session is lost, with all that ran or was asked for.
    Lost,
}

/// What a reply may use at most, tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// What it reads.
    pub input: u64,
    /// What it says.
    pub output: u64,
}

impl Size {
    /// Both.
    pub fn tokens(self) -> u64 {
        self.input + self.output
    }
}

/// How far a wish is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Gate {
    #[default]
    Closed,
    /// It was told, and the account has not answered yet.
    Asking,
    /// The account has said that it must wait.
    Waiting,
    Open,
}

/// Why a reply came later than it might have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delay {
    /// In numbers.
    pub reason: String,
    /// How long it waited, ms.
    pub waited_ms: u64,
}

/// What is known of the account, and of who answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Governing {
    gate: Gate,
    /// Of the last wish, and when it was told.
    number: u64,
    wished_at: At,
    /// How often the answer that is wanted has failed for the account's limits, and whether it is asked for again for that.
    failed: u8,
    again: bool,
    /// Why it waits, or had to.
    delay: Option<Delay>,
    /// Replies that had to wait, by the service's ids; the newest.
    delayed: VecDeque<(String, Delay)>,
    /// Little is left of the account's limits.
    scarce: bool,
    /// Little is left of a budget.
    tight: bool,
    /// The service answers turns by itself.
    answers: bool,
    /// What it was told of that, by which commands, and has not confirmed.
    told: VecDeque<(u64, bool)>,
    /// It will not have that changed, or does not say whether it has.
    stays: bool,
    /// When a refusal was written down last.
    refused_at: Option<At>,
    /// Tokens of the conversation that it has.
    before: u64,
    /// Tokens that no reply has read, and those that the replies since the last count have.
    unread: u64,
    reading: u64,
}

impl Default for Governing {
    fn default() -> Self {
        let (gate, told, delayed) = (Gate::Closed, VecDeque::new(), VecDeque::new());
        let (number, wished_at, delay) = (0, At::ZERO, None);
        Self {
            gate,
            number,
            wished_at,
            failed: 0,
            again: false,
            delay,
            delayed,
            scarce: false,
            tight: false,
            answers: true,
            told,
            stays: false,
            refused_at: None,
            before: 0,
            unread: 0,
            reading: 0,
        }
    }
}

/// Characters of a token, more or less.
const CHARS_PER_TOKEN: usize = 4;
/// The caller's audio that is a token, ms (realtime-protocol section 5).
const MS_PER_TOKEN: u64 = 100;
/// Delays of so many replies are remembered: those that may still be booked.
const DELAYED: usize = 8;
/// An answer is asked for so often at most.
const TRIES: u8 = 3;
/// Refusals of one call are written down so often at most.
const REFUSED_EVERY: Duration = Duration::from_secs(1);
/// Configurations that a service has not confirmed and still may.
const UNCONFIRMED: usize = 8;
/// A shorter wait is over before anything about it is said.
const WORTH_A_WORD: Duration = Duration::from_millis(700);
/// A service that says nothing to a change of who answers, and answers no turn within so long, has taken it.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);

impl Core {
    /// Whether the reply that is wanted may be asked for now; if nobody has asked that, it is asked.
    pub(super) fn may_ask(&mut self, now: At) -> bool {
        if self.plan.govern == Govern::Never && !self.governing.tight {
            return true;
        }
        match self.governing.gate {
            Gate::Open => {
                self.governing.gate = Gate::Closed;
                true
            }
            Gate::Asking | Gate::Waiting => false,
            Gate::Closed => {
                self.governing.gate = Gate::Asking;
                self.governing.number += 1;
                (self.governing.wished_at, self.governing.delay) = (now, None);
                let (number, size) = (self.governing.number, self.projected());
                let again = std::mem::take(&mut self.governing.again);
                self.turn_act(TurnAct::Ask { number, size, again });
                false
            }
        }
    }

    /// Nobody wants a reply now.
    pub(super) fn wants_none(&mut self) {
        if std::mem::take(&mut self.governing.gate) != Gate::Closed {
            self.turn_act(TurnAct::Forget);
        }
    }

    /// The service has not taken our request; it will be made again, or not.
    pub(super) fn not_asked(&mut self, again: bool) {
        if !again {
            return self.never_began();
        }
        self.wants_none();
        self.not_said();
        self.governing.gate = Gate::Open;
        self.turn_act(TurnAct::Again);
    }

    /// What the account says to a wish.
    pub(super) fn turn_word(&mut self, now: At, number: u64, word: Word) {
        if !matches!(self.governing.gate, Gate::Asking | Gate::Waiting) || self.governing.number != number {
            return; // it was forgotten meanwhile
        }
        if !self.slot.has_wish() && self.pass.is_none() && !matches!(word, Word::Granted) {
            return self.no_filler();
        }
        match word {
            Word::Granted => {
                self.governing.gate = Gate::Open;
                let waited = now.saturating_sub(self.governing.wished_at);
                if let Some(delay) = &mut self.governing.delay {
                    delay.waited_ms = ms(waited);
                }
                self.note(Fact::TurnAdmitted { waited });
            }
            Word::Waits(reason) => {
                self.governing.gate = Gate::Waiting;
                self.throttled(&reason);
            }
            Word::NotAgain => {
                self.governing.gate = Gate::Closed;
                let message = "no answer: the service refuses too many for its limits".to_owned();
                self.no_answer("rate_limited", message, None, true);
            }
            Word::TooDear(refused) => {
                self.governing.gate = Gate::Closed;
                self.too_dear(now, refused);
            }
            Word::Refused(reason) => {
                self.governing.gate = Gate::Closed;
                self.refused(now, reason.dimension.name(), reason.to_string());
                let (message, retryable) = match reason.wait {
                    Some(_) => (format!("no answer now: the account's limit is reached ({reason})"), true),
                    None => (format!("no answer: it is larger than the account's limit ({reason})"), false),
                };
                self.no_answer("rate_limited", message, reason.wait, retryable);
            }
        }
    }

    /// A filler is asked for, and is worth no wait: it is not said.
    fn no_filler(&mut self) {
        self.fillers.give_up();
        self.wants_none();
    }

    /// Nothing is asked of the account.
    pub(super) fn nothing_asked(&self) -> bool {
        matches!(self.governing.gate, Gate::Closed | Gate::Open)
    }

    /// Little is left of the account's limits, or of a budget.
    pub(super) fn is_short(&self) -> bool {
        self.governing.scarce || self.governing.tight
    }

    /// For the operator: metrics, log and ledger; of a caller that asks and asks, one a second.
    pub(super) fn refused(&mut self, now: At, limit: &'static str, reason: String) {
        if self.governing.refused_at.is_some_and(|at| now.saturating_sub(at) < REFUSED_EVERY) {
            return;
        }
        self.governing.refused_at = Some(now);
        self.note(Fact::TurnRefused { limit: limit.into(), reason: reason.clone() });
        let id = format!("{}-refused-{}", self.life.call, self.governing.number);
        self.out.push_back(Output::Book(Booked::refusal(&id, reason)));
    }

    fn throttled(&mut self, reason: &Reason) {
        self.governing.delay = Some(Delay { reason: reason.to_string(), waited_ms: 0 });
        self.note(Fact::TurnWaits { limit: reason.dimension.name().into(), reason: reason.to_string() });
        let more = [("wait_ms", json!(reason.wait.map(ms))), ("reason", json!(reason.to_string()))];
        self.notice_with("throttled", format!("the answer waits for the account's limits ({reason})"), more);
        if self.pass.is_none() && reason.wait.is_none_or(|wait| wait >= WORTH_A_WORD) {
            self.out.push_back(Output::Hold(self.plan.upstream_output));
        }
    }

    /// Plays something to a caller whose answer still waits.
    pub(super) fn holds(&mut self, audio: Bytes) {
        if self.governing.gate == Gate::Waiting {
            self.playout.play(audio);
        }
    }

    /// A reply of ours failed for the account's limits: whether it is asked for again, when they allow it. Not if any of it was heard, or the
    /// caller has moved on, and not for ever.
    pub(super) fn tries_again(&mut self, response: &str) -> bool {
        let unheard =
            self.playout.by_response(response).is_some_and(|reply| reply.received() == 0 && reply.cut.is_none());
        let tried = self.governing.failed + 1 >= TRIES || self.plan.govern == Govern::Never || self.leaving.is_some();
        if !unheard || tried || self.turn.speaking() || self.slot.has_wish() {
            return false;
        }
        let Some(want) = self.slot.wanted(response).filter(|want| !want.filler) else { return false };
        self.governing.failed += 1;
        self.governing.again = true;
        self.slot.want_first(want);
        true
    }

    /// Tokens that a reply uses at most: the conversation so far, what has come since, and the longest answer.
    pub(super) fn projected(&self) -> Size {
        let Governing { before, unread, reading, .. } = self.governing;
        Size { input: before + unread + reading, output: self.plan.reply_tokens }
    }

    /// A session begins, and is told so many characters of the conversation.
    pub(super) fn told_anew(&mut self, chars: usize) {
        (self.governing.unread, self.governing.reading) = (0, 0);
        self.governing.before = self.plan.base_tokens + chars.div_ceil(CHARS_PER_TOKEN) as u64;
    }

    /// The client has written so many characters more.
    pub(super) fn unread(&mut self, chars: usize) {
        self.governing.unread += chars.div_ceil(CHARS_PER_TOKEN) as u64;
    }

    /// It has said a turn of so many ms.
    pub(super) fn unheard(&mut self, length_ms: u64) {
        self.governing.unread += length_ms.div_ceil(MS_PER_TOKEN);
    }

    /// The service has counted a reply, and all that it has read.
    pub(super) fn counted(&mut self, usage: Usage) {
        self.governing.before = usage.input_tokens + usage.output_tokens;
        self.governing.failed = 0;
        self.governing.reading = 0;
    }

    /// A reply begins, and reads everything so far. `asked`: it is the one that we asked for.
    pub(super) fn turn_began(&mut self, response: &str, asked: bool) {
        let size = self.projected();
        self.governing.reading += std::mem::take(&mut self.governing.unread);
        if let Some(delay) = self.governing.delay.take_if(|_| asked) {
            if self.governing.delayed.len() == DELAYED {
                self.governing.delayed.pop_front();
            }
            self.governing.delayed.push_back((response.to_owned(), delay));
        }
        self.turn_act(TurnAct::Began { response: response.to_owned(), asked, size });
    }

    /// Why this reply had to wait, if it had to.
    pub(super) fn delay_of(&self, response: &str) -> Option<Delay> {
        let delayed = self.governing.delayed.iter().find(|(id, _)| id == response);
        delayed.map(|(_, delay)| delay.clone())
    }

    /// The request that may be made now goes out.
    pub(super) fn turn_asked(&mut self) {
        let size = self.projected();
        self.turn_act(TurnAct::Asked { size });
    }

    /// A reply is over. One that failed without a count has used nothing.
    pub(super) fn turn_over(&mut self, response: &str, ended: Ended, usage: Option<Usage>) {
        let nothing = (ended == Ended::Failed).then(Usage::default);
        let (used, next) = (usage.or(nothing), self.projected());
        self.turn_act(TurnAct::Over { response: response.to_owned(), used, next });
        if !self.slot.busy() {
            // What we asked for was this one, although it looked like the service's own.
            self.never_began();
        }
    }

    /// A request that went out was refused.
    pub(super) fn never_began(&mut self) {
        self.turn_act(TurnAct::Never { used: Some(Usage::default()) });
    }

    /// The reply that runs, or was asked for, is given up.
    pub(super) fn turn_given_up(&mut self) {
        let act = match self.slot.active() {
            Some(response) => TurnAct::Over { response: response.to_owned(), used: None, next: self.projected() },
            None => TurnAct::Never { used: None },
        };
        self.turn_act(act);
    }

    fn turn_act(&mut self, act: TurnAct) {
        self.out.push_back(Output::Turn(act));
    }

    /// The session is lost. A wish that has not been granted, or not been used, keeps its place.
    pub(super) fn turns_lost(&mut self) {
        self.governing.told.clear();
        self.governing.answers = true;
        self.forget_suspicion();
        if self.slot.busy() && self.slot.active().is_none() {
            self.not_said();
        }
        self.turn_act(TurnAct::Lost);
    }

    /// A wish was told that the account has not answered.
    pub fn is_asking(&self) -> bool {
        self.governing.gate == Gate::Asking
    }

    /// Another process goes on: the account knows nothing of what was asked of the one before.
    pub(super) fn turns_anew(&mut self) {
        self.governing.gate = Gate::Closed;
    }

    /// Little is left, or no longer.
    pub(super) fn scarce(&mut self, scarce: bool) {
        self.governing.scarce = scarce;
    }

    /// The same of a budget.
    pub(super) fn is_tight(&mut self, tight: bool) {
        self.governing.tight = tight;
    }

    fn wants_answers(&self) -> bool {
        let asks = match self.plan.govern {
            Govern::Never => false,
            Govern::NearLimit => self.governing.scarce,
            Govern::Always => true,
        };
        !asks && !self.governing.tight && self.leaving.is_none() && self.plan.guard.is_none()
    }

    /// Sets the session up. `listens`: the service may find turns. A service that will not leave the answers to us shall not refuse
    /// the whole because little is left.
    pub(super) fn configure(&mut self, listens: bool) {
        // What may be no turn at all shall not be answered before that is known.
        let answers = self.plan.govern != Govern::Always && self.plan.guard.is_none();
        self.tell_who_answers(answers);
        self.ask(Command::Configure { listens, answers });
    }

    fn tell_who_answers(&mut self, answers: bool) {
        let told = &mut self.governing.told;
        if told.len() == UNCONFIRMED {
            told.pop_front();
        }
        told.push_back((self.commands, answers));
    }

    /// The service has taken a configuration, and answers by itself, as far as it says.
    pub(super) fn configured(&mut self, answers: Option<bool>) {
        let told = self.governing.told.pop_front().map(|(_, answers)| answers);
        self.governing.stays |= answers.is_some_and(|answers| told.is_some_and(|told| told != answers));
        self.governing.answers = answers.or(told).unwrap_or(self.governing.answers);
    }

    /// It has not taken this change: it goes on as before.
    pub(super) fn answers_as_before(&mut self, number: Option<u64>) {
        self.governing.told.retain(|(told, _)| Some(*told) != number);
        self.governing.stays = true;
    }

    /// Another reply ran when we asked for the answer to a turn that the service has found: then it answers by itself after all.
    pub(super) fn it_answers_after_all(&mut self) {
        if self.plan.auto_turns && !self.governing.answers && self.slot.drop_plain() {
            (self.governing.answers, self.governing.stays) = (true, true);
        }
    }

    /// Changes who answers, between turns.
    pub(super) fn change_who_answers(&mut self) {
        let Governing { told, answers, stays, .. } = &self.governing;
        let (now, wanted) = (told.back().map_or(*answers, |(_, told)| *told), self.wants_answers());
        let quiet = self.slot.idle() && !self.turn.speaking() && !self.turn.has_speech();
        // What cannot be paid must not be answered, and speech lasts longer than it takes to say so.
        let urgent = !wanted && self.governing.tight && self.turn.speaking();
        if self.up && self.plan.auto_turns && now != wanted && !stays && (quiet || urgent) {
            self.tell_who_answers(wanted);
            self.ask(Command::Answers { answers: wanted });
        }
    }

    /// The service has found a turn: whoever answers it.
    pub(super) fn turn_found(&mut self) {
        let nothing = self.was_false_start();
        if !self.governing.answers {
            self.slot.never_spoke();
            if !nothing {
                self.slot.want(Want::default());
            }
        }
    }

    /// The service has not answered a turn that it has found, if it has found one: either there was nothing to answer, or it has
    /// been told not to and does not say so.
    pub(super) fn nobody_answered(&mut self, now: At) {
        let found = now.saturating_sub(self.sessions.turn_at) < ANSWERS_WITHIN;
        if found && self.governing.told.back().is_some_and(|(_, answers)| !answers) {
            self.governing.told.clear();
            (self.governing.answers, self.governing.stays) = (false, true);
            self.slot.want(Want::default());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            Input, Plan,
            tests::{MS, Rig, SECOND, plan},
        },
        *,
    };
    use crate::{
        admit::governor::Dimension,
        audio::Format,
        client::wire::{ClientMsg, ReplyStatus, ServerMsg, Usage},
        upstream::{Ended, Event, Hearing},
    };

    fn governed(govern: Govern, auto_turns: bool) -> Rig {
        Rig::new(Plan { govern, auto_turns, base_tokens: 50, reply_tokens: 100, ..plan() })
    }

    fn acts(rig: &Rig) -> Vec<TurnAct> {
        let act = |output: &Output| if let Output::Turn(act) = output { Some(act.clone()) } else { None };
        rig.log.iter().filter_map(|(_, output)| act(output)).collect()
    }

    fn asks(rig: &Rig) -> usize {
        let ask = |output: &Output| matches!(output, Output::Service { command: Command::CreateReply { .. }, .. });
        rig.log.iter().filter(|(_, output)| ask(output)).count()
    }

    /// What the account says to the last wish.
    fn word(rig: &mut Rig, word: Word) {
        let number = rig.core.governing.number;
        rig.input(Input::Turn { number, word });
    }

    fn reason(wait: Option<u64>) -> Reason {
        let wait = wait.map(Duration::from_millis);
        Reason { dimension: Dimension::Tokens, need: 1_830, have: 240, wait, ahead: 0 }
    }

    fn done(rig: &mut Rig, response: &str, ended: Ended, usage: Option<Usage>) {
        let (reason, retry_after, limit) = (None, None, None);
        rig.event(Event::ReplyDone { response: response.into(), ended, reason, retry_after, limit, usage });
    }

    /// The service refuses what it was last asked.
    fn refuse_last(rig: &mut Rig, code: &str) {
        let number = |output: &Output| if let Output::Service { number, .. } = output { Some(*number) } else { None };
        let number = rig.log.iter().rev().find_map(|(_, output)| number(output)).unwrap();
        rig.error(number, code, "no");
    }

    /// So much is read, and a hundred tokens said.
    fn size(input: u64) -> Size {
        Size { input, output: 100 }
    }

    fn began(response: &str, asked: bool, size: Size) -> TurnAct {
        TurnAct::Began { response: response.into(), asked, size }
    }

    fn over(response: &str, used: Option<Usage>, next: Size) -> TurnAct {
        TurnAct::Over { response: response.into(), used, next }
    }

    #[test]
    fn a_reply_is_asked_for_when_it_is_granted_and_settled_by_what_it_used() {
        let mut rig = governed(Govern::NearLimit, false);
        rig.message(ClientMsg::Text { text: "x".repeat(40) });
        let size = size(50 + 10);
        assert_eq!((acts(&rig), asks(&rig)), (vec![TurnAct::Ask { number: 1, size, again: false }], 0));
        word(&mut rig, Word::Waits(reason(Some(700))));
        assert!(rig.said().contains(&"notice throttled".to_owned()));
        rig.pass(SECOND);
        assert_eq!((acts(&rig).len(), asks(&rig)), (1, 0), "it is asked once");
        word(&mut rig, Word::Granted);
        assert_eq!(asks(&rig), 1);
        rig.created("resp_1");
        let usage = Usage { total_tokens: 90, input_tokens: 60, output_tokens: 30, ..Usage::default() };
        done(&mut rig, "resp_1", Ended::Completed, Some(usage));
        let want = [TurnAct::Asked { size }, began("resp_1", true, size), over("resp_1", Some(usage), self::size(90))];
        assert_eq!(acts(&rig)[1..4], want);
        // The next one reads the first, and a second of what the caller said since; not the silence before it.
        rig.speak(SECOND);
        rig.message(ClientMsg::Discard);
        rig.speak(SECOND);
        rig.message(ClientMsg::Commit);
        assert_eq!(acts(&rig).last(), Some(&TurnAct::Ask { number: 2, size: self::size(90 + 10), again: false }));
        // A word to the first is none to the second.
        rig.input(Input::Turn { number: 1, word: Word::Granted });
        assert_eq!(asks(&rig), 1);
    }

    #[test]
    fn a_caller_who_waits_hears_something_that_no_service_knows_of() {
        let mut rig = governed(Govern::NearLimit, false);
        let holds = |rig: &Rig| rig.log.iter().filter(|(_, output)| matches!(output, Output::Hold(_))).count();
        rig.message(ClientMsg::Text { text: "hello".into() });
        word(&mut rig, Word::Waits(reason(Some(600))));
        assert_eq!(holds(&rig), 0, "it is over before anything is said");
        rig.message(ClientMsg::Interrupt { reply: None, played_ms: None });
        rig.input(Input::Hold(Bytes::from(vec![1; 48_000])));
        assert!(!rig.said().contains(&"reply_started".to_owned()), "nobody waits any more");
        rig.message(ClientMsg::Text { text: "hello?".into() });
        word(&mut rig, Word::Waits(reason(Some(2_000))));
        assert_eq!(holds(&rig), 1);
        rig.input(Input::Hold(Bytes::from(vec![1; 48_000])));
        rig.pass(2 * SECOND);
        let ended = rig.log.iter().find_map(|(at, output)| match output {
            Output::Send(ServerMsg::ReplyEnded { reply, status, audio_ms, heard_ms, usage, .. }) => {
                Some((*at, reply.clone(), *status, *audio_ms, *heard_ms, *usage))
            }
            _ => None,
        });
        assert_eq!(ended, Some((SECOND, "r1".into(), ReplyStatus::Completed, 1_000, 1_000, None)));
        // The caller speaks into the next one: it is cut, and the service has nothing to forget.
        rig.message(ClientMsg::Text { text: "still there?".into() });
        word(&mut rig, Word::Waits(reason(None)));
        rig.input(Input::Hold(Bytes::from(vec![1; 48_000])));
        rig.pass(300 * MS);
        let before = rig.log.len();
        rig.message(ClientMsg::Interrupt { reply: None, played_ms: None });
        assert!(rig.log[before..].iter().any(|(_, o)| matches!(o, Output::SendNow(ServerMsg::Clear { .. }))));
        assert!(!rig.log[before..].iter().any(|(_, o)| matches!(o, Output::Service { .. })));
        assert!(!rig.log.iter().any(|(_, o)| matches!(o, Output::Book(_))));
    }

    #[test]
    fn what_is_refused_is_told_and_what_is_not_wanted_any_more_is_forgotten() {
        for (wait, retryable) in [(Some(5_000), true), (None, false)] {
            let mut rig = governed(Govern::Always, false);
            rig.message(ClientMsg::Text { text: "hello".into() });
            word(&mut rig, Word::Refused(reason(wait)));
            let told = rig.log.iter().find_map(|(_, output)| match output {
                Output::Send(ServerMsg::Error { error }) => {
                    Some((error.code.clone(), error.retryable, error.retry_after_ms))
                }
                _ => None,
            });
            assert_eq!(told, Some(("rate_limited".to_owned(), retryable, wait)));
            rig.pass(10 * SECOND);
            assert_eq!((acts(&rig).len(), asks(&rig)), (1, 0), "the caller asks again, or not");
        }
        let mut rig = governed(Govern::Always, false);
        rig.message(ClientMsg::Text { text: "hello?".into() });
        rig.message(ClientMsg::Interrupt { reply: None, played_ms: None });
        assert_eq!(acts(&rig).last(), Some(&TurnAct::Forget), "the caller does not wait for it");
        word(&mut rig, Word::Granted);
        assert_eq!(asks(&rig), 0);
        rig.speak(100 * MS);
        rig.message(ClientMsg::Commit);
        word(&mut rig, Word::Granted);
        assert_eq!(asks(&rig), 1);
    }

    #[test]
    fn of_two_wishes_the_refused_one_is_dropped_and_the_other_is_asked_for() {
        let mut rig = governed(Govern::Always, false);
        rig.core.slot.want(Want::told("say hello".into()));
        rig.message(ClientMsg::Ping { t: serde_json::Value::Null });
        rig.core.slot.want(Want::default());
        word(&mut rig, Word::Refused(reason(Some(1_000))));
        assert!(matches!(acts(&rig).last(), Some(TurnAct::Ask { number: 2, .. })));
        word(&mut rig, Word::Granted);
        assert!(rig.said().contains(&"CreateReply".to_owned()), "the plain one");
    }

    #[test]
    fn a_request_that_met_another_reply_keeps_what_was_granted() {
        let mut rig = governed(Govern::Always, false);
        rig.message(ClientMsg::Text { text: "hello".into() });
        word(&mut rig, Word::Granted);
        refuse_last(&mut rig, "conversation_already_has_active_response");
        assert_eq!(acts(&rig).last(), Some(&TurnAct::Again));
        rig.created("resp_other");
        assert!(matches!(acts(&rig).last(), Some(TurnAct::Began { asked: false, .. })));
        rig.done("resp_other", Ended::Completed);
        assert_eq!(asks(&rig), 2, "without another word");
        assert!(matches!(acts(&rig).last(), Some(TurnAct::Asked { .. })));
        // Refused for another reason it has used nothing.
        refuse_last(&mut rig, "server_error");
        assert_eq!(acts(&rig).last(), Some(&TurnAct::Never { used: Some(Usage::default()) }));
    }

    #[test]
    fn what_runs_in_a_lost_session_is_settled_and_what_waits_keeps_its_place() {
        let mut rig = governed(Govern::Always, false);
        rig.message(ClientMsg::Text { text: "hello".into() });
        rig.input(Input::ServiceGone(crate::call::end::End::Internal, true));
        rig.input(Input::SessionUp(None));
        assert_eq!(acts(&rig)[1..], [TurnAct::Lost]);
        word(&mut rig, Word::Granted);
        assert_eq!(asks(&rig), 1);
    }

    #[test]
    fn near_the_limit_turns_that_the_service_finds_are_asked_for_and_never_answered_twice() {
        let mut rig = governed(Govern::NearLimit, true);
        let updated = || Event::SessionUpdated { hearing: None, writer: None };
        rig.event(updated());
        rig.said();
        // While somebody speaks nothing changes.
        rig.speak(100 * MS);
        rig.event(Event::SpeechStarted { at_ms: 0 });
        rig.input(Input::Scarce(true));
        rig.pass(SECOND);
        rig.event(Event::SpeechStopped { at_ms: 100 });
        rig.event(Event::Committed { item: "item_1".into() });
        assert_eq!(asks(&rig), 0, "the service answers this one");
        rig.created("resp_1");
        assert!(!rig.said().contains(&"Answers false".to_owned()));
        rig.done("resp_1", Ended::Completed);
        rig.pass(SECOND);
        assert!(rig.said().contains(&"Answers false".to_owned()));
        // A turn that is found before the service has taken it is the service's, one after it is ours.
        rig.event(updated());
        rig.speak(100 * MS);
        rig.event(Event::SpeechStarted { at_ms: 1_000 });
        rig.event(Event::SpeechStopped { at_ms: 1_100 });
        rig.event(Event::Committed { item: "item_2".into() });
        word(&mut rig, Word::Granted);
        assert_eq!(asks(&rig), 1);
        rig.created("resp_2");
        rig.input(Input::Scarce(false));
        rig.done("resp_2", Ended::Completed);
        rig.pass(SECOND);
        assert!(rig.said().contains(&"Answers true".to_owned()));
        assert_eq!(asks(&rig), 1);
    }

    /// Speech of a caller that the service finds.
    fn found(rig: &mut Rig, item: &str) {
        rig.speak(100 * MS);
        rig.event(Event::SpeechStarted { at_ms: 1_000 });
        rig.event(Event::SpeechStopped { at_ms: 1_100 });
        rig.event(Event::Committed { item: item.into() });
    }

    #[test]
    fn a_service_that_will_not_change_who_answers_goes_on_as_before_and_one_that_says_nothing_is_found_out() {
        let mut rig = governed(Govern::NearLimit, true);
        rig.event(Event::SessionUpdated { hearing: None, writer: None });
        rig.input(Input::Scarce(true));
        refuse_last(&mut rig, "invalid_value");
        rig.pass(20 * SECOND);
        let said = rig.said();
        assert_eq!(said.iter().filter(|word| *word == "Answers false").count(), 1, "it is not asked again: {said:?}");
        assert!(!said.iter().any(|word| word.starts_with("end")), "{said:?}");
        found(&mut rig, "item_1");
        rig.pass(10 * SECOND);
        assert_eq!(asks(&rig), 0, "the service answers");
        // Never confirmed: who answers is seen when nobody does.
        let mut rig = governed(Govern::Always, true);
        found(&mut rig, "item_1");
        rig.pass(2 * SECOND);
        assert!(matches!(acts(&rig)[..], [TurnAct::Look { .. }]), "nothing is asked for yet");
        rig.pass(2 * SECOND);
        word(&mut rig, Word::Granted);
        assert_eq!(asks(&rig), 1);
    }

    /// What the service says of a configuration that it has taken.
    fn updated(answers: Option<bool>) -> Event {
        let hearing = Hearing { input: Format::PCM_24K, silence: None, answers };
        Event::SessionUpdated { hearing: Some(hearing), writer: None }
    }

    #[test]
    fn a_service_that_goes_on_answering_whatever_it_confirms_is_believed_by_what_it_does() {
        // It says so itself.
        let mut rig = governed(Govern::NearLimit, true);
        rig.event(updated(Some(true)));
        rig.input(Input::Scarce(true));
        rig.event(updated(Some(true)));
        found(&mut rig, "item_1");
        rig.created("resp_1");
        rig.done("resp_1", Ended::Completed);
        assert_eq!(asks(&rig), 0);
        // It does not: then its own answer runs when ours is asked for.
        let mut rig = governed(Govern::Always, true);
        rig.event(updated(None));
        for (n, asked) in [(1, 1), (2, 1)] {
            found(&mut rig, &format!("item_{n}"));
            word(&mut rig, Word::Granted);
            rig.created(&format!("resp_{n}"));
            if n == 1 {
                refuse_last(&mut rig, "conversation_already_has_active_response");
            }
            rig.done(&format!("resp_{n}"), Ended::Completed);
            rig.pass(5 * SECOND);
            assert_eq!(asks(&rig), asked, "turn {n} is answered once");
        }
    }

    #[test]
    fn a_session_that_is_told_less_is_taken_to_read_less() {
        let mut rig = governed(Govern::Always, false);
        rig.message(ClientMsg::Text { text: "x".repeat(400) });
        word(&mut rig, Word::Granted);
        rig.created("resp_1");
        let usage = Usage { total_tokens: 30_000, input_tokens: 29_000, output_tokens: 1_000, ..Usage::default() };
        done(&mut rig, "resp_1", Ended::Completed, Some(usage));
        rig.input(Input::ServiceGone(crate::call::end::End::Internal, true));
        rig.input(Input::SessionUp(None));
        rig.message(ClientMsg::Text { text: "x".repeat(40) });
        // What the agent begins with, the first text told again, the second, and the answer.
        assert_eq!(acts(&rig).last(), Some(&TurnAct::Ask { number: 2, size: size(50 + 100 + 10), again: false }));
    }

    /// The service fails the reply that runs for a limit, having said nothing.
    fn limited(rig: &mut Rig, response: &str) {
        let (reason, limit) = (Some("rate_limit_exceeded".to_owned()), Some(crate::upstream::Limit::Tokens));
        let retry_after = Some(Duration::from_millis(400));
        let (response, ended, usage) = (response.into(), Ended::Failed, None);
        rig.event(Event::ReplyDone { response, ended, reason, retry_after, limit, usage });
    }

    #[test]
    fn an_answer_that_failed_for_a_limit_is_asked_for_again_by_rule() {
        let mut rig = governed(Govern::NearLimit, false);
        rig.message(ClientMsg::Text { text: "hello".into() });
        word(&mut rig, Word::Granted);
        rig.created("resp_1");
        rig.said();
        limited(&mut rig, "resp_1");
        assert!(!rig.said().iter().any(|word| word.starts_with("error")), "it is not over");
        let again = |rig: &Rig| matches!(acts(rig).last(), Some(TurnAct::Ask { again: true, .. }));
        assert!(again(&rig), "{:?}", acts(&rig));
        word(&mut rig, Word::Granted);
        rig.created("resp_2");
        limited(&mut rig, "resp_2");
        word(&mut rig, Word::Granted);
        rig.created("resp_3");
        limited(&mut rig, "resp_3");
        assert!(rig.said().contains(&"error rate_limited".to_owned()), "three tries are enough");
        assert_eq!(asks(&rig), 3);
        // Nothing is said twice: not if some of it came, nor for a caller who has said something else meanwhile.
        rig.message(ClientMsg::Text { text: "hello".into() });
        word(&mut rig, Word::Granted);
        rig.created("resp_4");
        rig.reply_audio("resp_4", "a", SECOND);
        limited(&mut rig, "resp_4");
        assert!(!again(&rig));
        // And an account whose answers fail one after the other gets no more tries.
        let mut rig = governed(Govern::NearLimit, false);
        rig.message(ClientMsg::Text { text: "hello".into() });
        word(&mut rig, Word::Granted);
        rig.created("resp_1");
        limited(&mut rig, "resp_1");
        word(&mut rig, Word::NotAgain);
        assert!(rig.said().contains(&"error rate_limited".to_owned()));
        rig.pass(5 * SECOND);
        assert_eq!(asks(&rig), 1);
    }

    #[test]
    fn a_reply_that_is_given_up_is_settled_as_if_it_had_used_all() {
        let mut rig = governed(Govern::Always, false);
        rig.message(ClientMsg::Text { text: "hello".into() });
        word(&mut rig, Word::Granted);
        rig.created("resp_1");
        rig.pass(10 * SECOND);
        rig.input(Input::ServicePong);
        rig.pass(11 * SECOND);
        assert_eq!(acts(&rig).last(), Some(&over("resp_1", None, size(50 + 2))));
    }
}
