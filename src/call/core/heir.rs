//! A process that follows this one and goes on with its calls: when a call goes over, and how it goes on there.
//!
//! For the conversation that is a session lost and a client away ([`super::continuity`], [`super::away`]); nothing else is
//! decided here. A client that cannot come back, or has not been told how, ends with its process.
use super::{Core, Output, away::Away, continuity::Next};
use crate::call::At;

impl Core {
    pub(super) fn has_heir(&mut self, there: bool) {
        self.heir = there;
        self.gone &= there;
    }

    /// Another process takes this call, and its client can come back to it there.
    pub(super) fn has_successor(&self) -> bool {
        let knows_the_way = self.pass.as_ref().is_none_or(|pass| pass.knows_the_way());
        self.heir && knows_the_way && self.resume_window.is_some()
    }

    /// When a call that another process takes may go: between turns, or at once if nobody is there; not while a tool runs here, which
    /// could not be gone on with.
    pub(super) fn goes_over_at(&self) -> Option<At> {
        if !self.has_successor() || self.tools.runs_own() {
            return None;
        }
        if !self.is_connected() {
            return Some(At::ZERO);
        }
        self.settled_at().filter(|_| self.client_has_all)
    }

    pub(super) fn hand_over(&mut self) {
        if !std::mem::replace(&mut self.gone, true) {
            self.out.push_back(Output::HandOver);
        }
    }

    /// The call was another process's: its client is away, and the session that it had is lost.
    pub fn continues(&mut self, now: At) {
        (self.drain_at, self.sessions.next, self.client_has_all) = (None, Next::None, true);
        if self.away.is_none() {
            let since = self.client_seen.min(now);
            self.away = Some(Away { since, until: now + self.resume_window.unwrap_or_default() });
        }
        self.turns_anew();
        if self.up {
            self.let_go(now);
            self.notice("upstream_reconnecting", "the call moved to another process of the relay");
            self.dial();
        } else if self.sessions.opening {
            self.dial();
        }
        self.own_tools_go_on(now);
        self.keep_output();
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            Plan,
            tests::{MS, Rig, SECOND, plan},
        },
        *,
    };
    use crate::{
        call::{core::Input, end::End},
        client::wire::ClientMsg,
        upstream::Ended,
    };

    /// The process goes away and another one follows.
    fn follow(rig: &mut Rig) {
        rig.input(Input::Heir(true));
        rig.input(Input::Drain(10 * SECOND));
    }

    fn goes_over(rig: &Rig) -> Option<At> {
        rig.log.iter().find(|(_, output)| *output == Output::HandOver).map(|(at, _)| *at)
    }

    /// The other process reads the call and goes on with it.
    fn over_there(rig: &mut Rig) {
        let written = serde_json::to_string(&rig.core).unwrap();
        rig.core = serde_json::from_str(&written).unwrap();
        rig.said();
        rig.core.continues(rig.now);
    }

    #[test]
    fn a_call_goes_over_when_its_turn_is_over_and_nobody_hears_of_an_end() {
        let mut rig = Rig::new(Plan { auto_turns: false, ..plan() });
        rig.speak(SECOND);
        rig.message(ClientMsg::Commit);
        rig.created("resp_1");
        rig.reply_audio("resp_1", "a", SECOND);
        follow(&mut rig);
        rig.done("resp_1", Ended::Completed);
        assert_eq!(goes_over(&rig), None, "the answer sounds");
        rig.pass(6 * SECOND);
        assert!(goes_over(&rig).is_some_and(|at| at >= 2 * SECOND), "{:?}", goes_over(&rig));
        assert!(!rig.log.iter().any(|(_, output)| matches!(output, Output::End(_))));
    }

    #[test]
    fn a_call_that_does_not_get_quiet_goes_over_at_the_last_moment_and_one_without_an_heir_ends() {
        for heir in [true, false] {
            let mut rig = Rig::new(plan());
            rig.message(ClientMsg::Text { text: "hello".into() });
            rig.created("resp_1");
            rig.reply_audio("resp_1", "a", 20 * SECOND);
            follow(&mut rig);
            rig.input(Input::Heir(heir));
            rig.pass(9 * SECOND);
            assert_eq!(goes_over(&rig), None);
            rig.pass(SECOND);
            let ended = rig.log.iter().any(|(_, output)| *output == Output::End(End::Drained));
            assert_eq!((goes_over(&rig).is_some(), ended), (heir, !heir));
        }
    }

    #[test]
    fn it_goes_on_with_another_session_and_its_client_comes_back_within_the_window() {
        let mut rig = Rig::new(Plan { auto_turns: false, ..plan() });
        rig.speak(SECOND);
        follow(&mut rig);
        assert!(goes_over(&rig).is_some(), "a turn that is spoken is no reason to wait: it is kept");
        over_there(&mut rig);
        rig.pass(100 * MS);
        rig.input(Input::SessionUp(None));
        assert_eq!(rig.said(), ["notice upstream_reconnecting", "dial", "notice upstream_resumed"]);
        rig.pass(25 * SECOND);
        rig.input(Input::ClientBack { late: At::ZERO, credential: None });
        rig.message(ClientMsg::Commit);
        assert_eq!(rig.said(), ["Commit", "CreateReply"]);
        // And nobody comes back to this one.
        follow(&mut rig);
        rig.input(Input::ClientGone(End::ClientLost));
        over_there(&mut rig);
        rig.pass(31 * SECOND);
        assert!(rig.log.iter().any(|(_, output)| *output == Output::End(End::ClientLost)));
    }

    #[test]
    fn who_is_away_is_not_told_that_the_other_process_goes() {
        let mut rig = Rig::new(plan());
        rig.input(Input::ClientGone(End::ClientLost));
        rig.said();
        follow(&mut rig);
        assert!(goes_over(&rig).is_some());
        assert!(!rig.said().iter().any(|word| word.contains("draining")));
    }
}
