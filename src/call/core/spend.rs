//! Money: a call is warned when little is left of a budget, and ends with a farewell when nothing is.
//!
//! What a reply may cost is asked together with its tokens ([`super::govern`]); here is what becomes of the answers. Decides, and
//! counts nothing.
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Core, Output, TurnAct};
use crate::{
    admit::budget::{Low, Spent, Whose, Window},
    call::{
        At,
        end::End,
        ms,
        slot::Want,
        turnstile::{Means, TooDear},
    },
    client::wire::{ErrorBody, ServerMsg},
    upstream::Command,
};

/// A farewell that does not come to its end within so long is cut.
const FAREWELL: At = At::from_secs(20);
/// A budget that is only held for others is asked again after so long.
const HELD: Duration = Duration::from_secs(1);

/// A call that may spend no more, and ends when what is paid for has been heard.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Leaving {
    /// Why.
    why: String,
    /// What is said before.
    farewell: Option<String>,
    /// It was asked for.
    asked: bool,
    /// At the latest then.
    until: At,
}

impl Core {
    /// How the budgets stand.
    pub(super) fn means(&mut self, now: At, means: Means) {
        let Means { low, tight, spent, farewell } = means;
        self.is_tight(tight);
        low.iter().for_each(|low| self.budget_low(low));
        // A minute's budget comes back while the caller waits; the next answer is asked for, and refused as long as it does not.
        if let Some(spent) = spent.filter(|spent| spent.window != Window::Minute) {
            self.spent(now, &spent, farewell);
        }
    }

    /// A reply was refused for this.
    pub(super) fn too_dear(&mut self, now: At, refused: TooDear) {
        let TooDear { spent, retry_after, farewell, for_now } = refused;
        self.refused(now, "budget", spent.figures());
        let soon = for_now || spent.is_only_held();
        if !soon && spent.window != Window::Minute {
            return self.spent(now, &spent, farewell);
        }
        let wait = if soon { Some(HELD) } else { retry_after };
        self.no_answer("budget_exhausted", format!("no answer now: {spent}"), wait, true);
    }

    fn budget_low(&mut self, low: &Low) {
        let mut more = vec![("scope", json!(low.whose)), ("window", json!(low.window)), ("unit", json!(low.unit))];
        let mut message = format!("{}: little is left", low.name());
        // How much a tenant has spent is nothing for its callers.
        if matches!(low.whose, Whose::User | Whose::Call) {
            let percent = low.percent.clamp(0, 100);
            more.push(("percent", json!(percent)));
            message = format!("{}: {percent} % are used", low.name());
        }
        self.notice_with("budget_low", message, more);
    }

    /// The call may spend no more.
    fn spent(&mut self, now: At, spent: &Spent, farewell: Option<String>) {
        if self.leaving.is_some() {
            return;
        }
        let why = spent.to_string();
        // Where the conversation is the client's, it is not for us to speak, and nobody knows what it has heard.
        if self.pass.is_some() {
            return self.end(now, End::BudgetExhausted(why));
        }
        self.slot.drop_waiting();
        self.slot.never_spoke();
        self.wants_none();
        let farewell = farewell.filter(|_| self.up && self.is_connected());
        self.leaving = Some(Leaving { why, farewell, asked: false, until: now + self.plan.max_backlog });
    }

    /// Asks for the farewell, once nothing else runs, and for nothing else; whether the call says goodbye.
    pub(super) fn says_goodbye(&mut self, now: At) -> bool {
        let Some(leaving) = &mut self.leaving else { return false };
        self.slot.drop_waiting();
        let farewell = leaving.farewell.as_ref().filter(|_| !leaving.asked && self.up && !self.slot.busy());
        let Some(farewell) = farewell else { return true };
        let instructions = format!("Say goodbye to the caller. Say exactly this, and nothing else: {farewell}");
        // What is still to be heard of the answer before it has its own time.
        (leaving.asked, leaving.until) = (true, now + self.plan.max_backlog + FAREWELL);
        self.slot.never_spoke();
        self.slot.want(Want::told(instructions));
        if let Some(Want { instructions, .. }) = self.slot.next(self.commands) {
            self.service_seen = now;
            self.answers.asked(now);
            self.turn_asked();
            self.ask(Command::CreateReply { instructions, no_tools: false });
        }
        true
    }

    /// What was asked for will be asked for again, since it has not begun.
    pub(super) fn not_said(&mut self) {
        if let Some(leaving) = &mut self.leaving {
            leaving.asked = false;
        }
    }

    /// When a call that says goodbye ends: when all is heard, at the latest when its time is over.
    pub(super) fn leaves_by(&self) -> Option<At> {
        let leaving = self.leaving.as_ref()?;
        let waits = leaving.farewell.is_some() && !leaving.asked;
        let said = !waits && !self.slot.busy() && self.playout.is_empty();
        Some(if said { At::ZERO } else { leaving.until })
    }

    /// Its end, if it is time.
    pub(super) fn has_left(&self, now: At) -> Option<End> {
        self.leaves_by().filter(|at| now >= *at)?;
        self.leaving.as_ref().map(|leaving| End::BudgetExhausted(leaving.why.clone()))
    }

    /// Somebody begins to speak, or was written down: what has been spent meanwhile, here and by others, may leave no room for an
    /// answer.
    pub(super) fn look_at_budget(&mut self) {
        let next = self.projected();
        self.out.push_back(Output::Turn(TurnAct::Look { next }));
    }

    /// A wish is turned down; the call goes on.
    pub(super) fn no_answer(&mut self, code: &'static str, message: String, wait: Option<Duration>, retryable: bool) {
        if self.pass.is_some() {
            return self.wish_refused(code, message);
        }
        self.slot.drop_next();
        let error = self.error(code, message, retryable);
        self.say(ServerMsg::Error { error: ErrorBody { retry_after_ms: wait.map(ms), ..error } });
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

    fn dear(spent: Spent) -> TooDear {
        TooDear { spent, retry_after: None, farewell: None, for_now: false }
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
            ("budget_low", "the tenant's budget for this month: little is left")
        );
        assert_eq!(json!(more), json!({"scope": "tenant", "window": "month", "unit": "usd"}));
        rig.input(Input::Means(Means { low: vec![Low { whose: Whose::Call, ..low(83) }], ..Means::default() }));
        let told = rig.log.iter().rev().find_map(|(_, output)| match output {
            Output::Send(ServerMsg::Notice { more, .. }) => more.get("percent").cloned(),
            _ => None,
        });
        assert_eq!((told, end(&rig)), (Some(json!(83)), None), "how much a tenant has used is no caller's business");
    }

    #[test]
    fn the_call_ends_when_all_that_is_paid_for_and_the_farewell_were_heard() {
        let mut silent = rig(Govern::NearLimit, false);
        silent.message(ClientMsg::Text { text: "hello".into() });
        silent.input(Input::Turn { number: 1, word: Word::Granted });
        silent.created("resp_1");
        silent.reply_audio("resp_1", "a", 2 * SECOND);
        silent.done("resp_1", Ended::Completed);
        silent.input(Input::Means(Means { farewell: None, ..farewell() }));
        silent.pass(SECOND);
        assert_eq!(end(&silent), None, "what is paid for is heard");
        silent.pass(2 * SECOND);
        assert_eq!(end(&silent).map(|(_, close)| close), Some(4402));
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
    fn nothing_takes_the_farewells_place_and_nothing_is_answered_behind_it() {
        let mut rig = rig(Govern::NearLimit, false);
        rig.message(ClientMsg::Text { text: "hello".into() });
        rig.input(Input::Turn { number: 1, word: Word::Granted });
        rig.created("resp_1");
        rig.input(Input::Means(farewell()));
        // The farewell waits for the answer that runs, whatever is said meanwhile; and is asked for again if it cannot be had.
        rig.message(ClientMsg::Text { text: "one more".into() });
        rig.done("resp_1", Ended::Completed);
        rig.message(ClientMsg::Interrupt { reply: None, played_ms: None });
        let asked =
            |rig: &mut Rig| rig.said().into_iter().filter(|word| word.starts_with("CreateReply")).collect::<Vec<_>>();
        assert_eq!(asked(&mut rig), ["CreateReply", "CreateReply with instructions"]);
        rig.input(Input::ServiceGone(End::Internal, true));
        rig.input(Input::SessionUp(None));
        assert_eq!(asked(&mut rig), ["CreateReply with instructions"]);
        rig.created("resp_bye");
        rig.reply_audio("resp_bye", "a", SECOND);
        rig.done("resp_bye", Ended::Completed);
        rig.message(ClientMsg::Text { text: "and one more".into() });
        rig.pass(2 * SECOND);
        assert_eq!((end(&rig).map(|(_, close)| close), asked(&mut rig).len()), (Some(4402), 0));
    }

    #[test]
    fn a_farewell_that_never_comes_keeps_no_call_for_ever() {
        let mut rig = rig(Govern::NearLimit, false);
        rig.input(Input::Means(farewell()));
        rig.created("resp_bye");
        for _ in 0..400 {
            rig.reply_audio("resp_bye", "a", SECOND);
            rig.pass(SECOND);
        }
        assert_eq!(end(&rig).map(|(_, close)| close), Some(4402));
    }

    #[test]
    fn a_client_that_is_away_hears_what_was_kept_for_it_before_the_call_ends() {
        let mut rig = rig(Govern::NearLimit, false);
        rig.message(ClientMsg::Text { text: "hello".into() });
        rig.input(Input::Turn { number: 1, word: Word::Granted });
        rig.created("resp_1");
        rig.reply_audio("resp_1", "a", 2 * SECOND);
        rig.input(Input::ClientGone(End::ClientLost));
        rig.done("resp_1", Ended::Completed);
        rig.input(Input::Means(farewell()));
        rig.pass(5 * SECOND);
        assert_eq!(end(&rig), None);
        rig.input(Input::ClientBack { late: At::ZERO, credential: None });
        rig.pass(4 * SECOND);
        assert_eq!(end(&rig).map(|(_, close)| close), Some(4402));
    }

    #[test]
    fn a_minutes_budget_refuses_answers_and_ends_no_call() {
        let mut rig = rig(Govern::NearLimit, false);
        let minute = Spent { window: Window::Minute, ..spent(900, 0) };
        rig.input(Input::Means(Means { spent: Some(minute.clone()), tight: true, ..Means::default() }));
        rig.message(ClientMsg::Text { text: "hello".into() });
        let refused = TooDear { retry_after: Some(40 * SECOND), ..dear(minute) };
        rig.input(Input::Turn { number: 1, word: Word::TooDear(refused) });
        let wait = rig.log.iter().find_map(|(_, output)| match output {
            Output::Send(ServerMsg::Error { error }) => error.retry_after_ms,
            _ => None,
        });
        assert_eq!((wait, end(&rig)), (Some(40_000), None));
    }

    #[test]
    fn what_is_only_held_for_others_refuses_one_answer_and_no_call() {
        let mut rig = rig(Govern::NearLimit, false);
        rig.message(ClientMsg::Text { text: "hello".into() });
        rig.input(Input::Turn { number: 1, word: Word::TooDear(dear(spent(800, 150))) });
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
        rig.input(Input::Turn { number: 2, word: Word::TooDear(dear(spent(900, 0))) });
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
