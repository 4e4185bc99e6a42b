//! Money: a call is warned when little is left of a budget, and ends with a farewell when nothing is.
//!
//! What a reply may cost is asked together with its tokens ([`super::govern`]); here is what becomes of the answers. Decides, and
//! counts nothing.
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Core, Output, TurnAct};
use crate::{
    admit::budget::{Low, Spent},
    call::{At, end::End, slot::Want, turnstile::Means},
    client::wire::{ErrorBody, ServerMsg},
};

/// A farewell that does not come to its end within so long is cut.
const FAREWELL: At = At::from_secs(20);
/// A budget that is only held for others is asked again after so long, ms.
const HELD_MS: u64 = 1_000;

/// A call that says goodbye.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Leaving {
    /// Why.
    why: String,
    /// At the latest then.
    until: At,
    /// The farewell was asked for.
    pub(super) asked: bool,
}

impl Core {
    /// How the budgets stand.
    pub(super) fn means(&mut self, now: At, means: Means) {
        let Means { low, tight, spent, farewell } = means;
        self.is_tight(tight);
        low.iter().for_each(|low| self.budget_low(low));
        if let Some(spent) = spent {
            self.spent(now, &spent, farewell);
        }
    }

    /// A reply was refused for this. `farewell`: as for [`Means`].
    pub(super) fn too_dear(&mut self, now: At, spent: &Spent, farewell: Option<String>) {
        self.slot.drop_next();
        self.refused("budget", spent.figures());
        if !spent.is_only_held() {
            return self.spent(now, spent, farewell);
        }
        let error = self.error("budget_exhausted", format!("no answer now: {spent}"), true);
        self.say(ServerMsg::Error { error: ErrorBody { retry_after_ms: Some(HELD_MS), ..error } });
    }

    fn budget_low(&mut self, low: &Low) {
        let more = [
            ("scope", json!(low.whose)),
            ("window", json!(low.window)),
            ("unit", json!(low.unit)),
            ("percent", json!(low.percent.clamp(0, 100))),
        ];
        let more = more.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        let message = format!("{}: {} % are used", low.name(), low.percent);
        self.say(ServerMsg::Notice { code: "budget_low".to_owned(), message, more });
    }

    /// The call may spend no more.
    fn spent(&mut self, now: At, spent: &Spent, farewell: Option<String>) {
        if self.leaving.is_some() {
            return;
        }
        let why = spent.to_string();
        // Words that nobody hears are worth nothing; and where the conversation is the client's, it is not for us to speak.
        let Some(farewell) = farewell.filter(|_| self.pass.is_none() && self.up && self.is_connected()) else {
            return self.end(now, End::BudgetExhausted(why));
        };
        self.leaving = Some(Leaving { why, until: now + FAREWELL, asked: false });
        self.slot.drop_waiting();
        self.slot.never_spoke();
        self.wants_none();
        let instructions = format!("Say goodbye to the caller. Say exactly this, and nothing else: {farewell}");
        self.slot.want(Want { instructions: Some(instructions) });
    }

    /// When a call that says goodbye ends: when that is said, at the latest when its time is over.
    pub(super) fn leaves_by(&self) -> Option<At> {
        let leaving = self.leaving.as_ref()?;
        let said = leaving.asked && !self.slot.busy() && self.playout.is_empty();
        Some(if said { At::ZERO } else { leaving.until })
    }

    /// Its end, if it is time.
    pub(super) fn has_left(&self, now: At) -> Option<End> {
        self.leaves_by().filter(|at| now >= *at)?;
        self.leaving.as_ref().map(|leaving| End::BudgetExhausted(leaving.why.clone()))
    }

    /// A turn begins: what other calls have spent meanwhile may leave no room for its answer.
    pub(super) fn look_at_budget(&mut self) {
        let next = self.projected();
        self.out.push_back(Output::Turn(TurnAct::Look { next }));
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
        admit::budget::{Unit, Whose, Window},
        call::turnstile::Word,
        client::wire::ClientMsg,
        config::Govern,
        upstream::{Command, Ended, Event},
    };

    fn rig(govern: Govern, auto_turns: bool) -> Rig {
        Rig::new(Plan { govern, auto_turns, reply_tokens: 100, ..plan() })
    }

    fn spent(used: i128, held: i128) -> Spent {
        let (whose, window, unit) = (Whose::User, Window::Day, Unit::Tokens);
        Spent { whose, window, unit, limit: 1_000, used, held, need: 150, resets_at: None }
    }

    fn low(percent: i128) -> Low {
        let (whose, window, unit) = (Whose::Tenant, Window::Month, Unit::Usd);
        Low { whose, window, unit, used: percent, limit: 100, percent, period: 1 }
    }

    fn end(rig: &Rig) -> Option<(At, u16)> {
        rig.log.iter().find_map(|(at, output)| match output {
            Output::End(end) => Some((*at, end.report().close)),
            _ => None,
        })
    }

    fn farewell() -> Means {
        Means { spent: Some(spent(900, 0)), tight: true, farewell: Some("That is all for today.".into()), low: vec![] }
    }

    #[test]
    fn a_caller_is_told_that_little_is_left_and_of_what() {
        let mut rig = rig(Govern::NearLimit, false);
        rig.input(Input::Means(Means { low: vec![low(83)], ..Means::default() }));
        let told = rig.log.iter().find_map(|(_, output)| match output {
            Output::Send(ServerMsg::Notice { code, message, more }) => {
                Some((code.clone(), message.clone(), more.clone()))
            }
            _ => None,
        });
        let (code, message, more) = told.unwrap();
        assert_eq!(
            (code.as_str(), message.as_str()),
            ("budget_low", "the tenant's budget for this month: 83 % are used")
        );
        assert_eq!(json!(more), json!({"scope": "tenant", "window": "month", "unit": "usd", "percent": 83}));
        assert_eq!(end(&rig), None);
    }

    #[test]
    fn without_a_farewell_the_call_ends_at_once_and_with_one_when_it_was_heard() {
        let mut silent = rig(Govern::NearLimit, false);
        silent.input(Input::Means(Means { farewell: None, ..farewell() }));
        assert_eq!(end(&silent), Some((At::ZERO, 4402)));
        assert!(silent.said().contains(&"error budget_exhausted".to_owned()));
        let mut rig = rig(Govern::NearLimit, false);
        rig.input(Input::Means(farewell()));
        assert!(rig.said().contains(&"CreateReply with instructions".to_owned()), "whatever the account's limits say");
        // What is said meanwhile is answered by nobody.
        rig.message(ClientMsg::Ping { t: json!(1) });
        rig.created("resp_bye");
        rig.reply_audio("resp_bye", "a", 2 * SECOND);
        rig.done("resp_bye", Ended::Completed);
        rig.pass(SECOND);
        assert_eq!(end(&rig), None, "it sounds");
        rig.pass(2 * SECOND);
        let (at, close) = end(&rig).unwrap();
        assert!(close == 4402 && at >= 2 * SECOND && at < 3 * SECOND, "{at:?}");
    }

    #[test]
    fn a_farewell_that_never_comes_keeps_no_call_and_nothing_is_answered_behind_it() {
        let mut rig = rig(Govern::NearLimit, false);
        rig.message(ClientMsg::Text { text: "hello".into() });
        rig.input(Input::Turn { number: 1, word: Word::Granted });
        rig.created("resp_1");
        rig.input(Input::Means(farewell()));
        rig.done("resp_1", Ended::Completed);
        rig.message(ClientMsg::Text { text: "one more".into() });
        rig.pass(19 * SECOND);
        assert_eq!(end(&rig), None);
        rig.pass(2 * SECOND);
        assert_eq!(end(&rig).map(|(_, close)| close), Some(4402));
        let said = rig.said();
        let asked = said.iter().filter(|word| word.starts_with("CreateReply")).count();
        assert_eq!(asked, 2, "the answer and the farewell: {said:?}");
    }

    #[test]
    fn what_is_only_held_for_others_refuses_one_answer_and_no_call() {
        let mut rig = rig(Govern::NearLimit, false);
        rig.message(ClientMsg::Text { text: "hello".into() });
        rig.input(Input::Turn { number: 1, word: Word::TooDear(spent(800, 150), None) });
        assert!(rig.said().contains(&"error budget_exhausted".to_owned()));
        rig.pass(SECOND);
        assert_eq!(end(&rig), None);
        let booked = rig.log.iter().find_map(|(_, output)| match output {
            Output::Book(booked) => booked.delay.clone().map(|delay| (booked.status.clone(), delay.reason)),
            _ => None,
        });
        let why = "budget user tokens day: need 150, have 50".to_owned();
        assert_eq!(booked, Some(("refused".to_owned(), why)), "and the operator knows why");
        rig.message(ClientMsg::Text { text: "hello".into() });
        rig.input(Input::Turn { number: 2, word: Word::TooDear(spent(900, 0), None) });
        assert_eq!(end(&rig).map(|(_, close)| close), Some(4402));
    }

    #[test]
    fn near_the_end_of_a_budget_the_relay_asks_for_answers_even_where_limits_are_no_matter() {
        let mut rig = rig(Govern::Never, true);
        rig.event(Event::SessionUpdated { hearing: None, writer: None });
        rig.said();
        rig.speak(100 * MS);
        rig.event(Event::SpeechStarted { at_ms: 0 });
        assert!(matches!(rig.log.last(), Some((_, Output::Turn(TurnAct::Look { .. })))), "others may have spent it");
        rig.input(Input::Means(Means { tight: true, ..Means::default() }));
        assert!(rig.said().contains(&"Answers false".to_owned()), "while the caller speaks");
        rig.event(Event::SessionUpdated { hearing: None, writer: None });
        rig.event(Event::SpeechStopped { at_ms: 100 });
        rig.event(Event::Committed { item: "item_1".into() });
        let asked = |rig: &Rig| {
            let ask = |output: &Output| matches!(output, Output::Service { command: Command::CreateReply { .. }, .. });
            rig.log.iter().filter(|(_, output)| ask(output)).count()
        };
        assert_eq!(asked(&rig), 0);
        rig.input(Input::Turn { number: 1, word: Word::Granted });
        assert_eq!(asked(&rig), 1);
    }
}
