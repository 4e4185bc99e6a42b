//! Faults that fire.
use voxrelay::call::core::Input;

use super::{Ev, MS, SECOND, World};
use crate::{
    check::Fact,
    faults::{Fault, Kind, On},
};

impl World {
    pub(super) fn moment(&mut self, call: usize, on: On) {
        let now = self.now;
        let faults = &mut self.calls[call].faults;
        let due = faults.iter().position(|fault| !fault.fired && fault.at <= now && fault.on == on);
        let Some(index) = due else { return };
        match faults[index].skip.checked_sub(1) {
            Some(skip) => faults[index].skip = skip,
            None => self.fire(call, index),
        }
    }

    pub(super) fn fire(&mut self, call: usize, index: usize) {
        let now = self.now;
        let it = &mut self.calls[call];
        it.faults[index].fired = true;
        let Fault { kind, before, .. } = it.faults[index];
        it.history.note(now, Fact::Fault { name: NAMES[kind as usize] });
        let last = it.history.log.iter().rev().find_map(|(_, fact)| match fact {
            Fact::Heard { from, to, .. } => Some((from.saturating_sub(800), *to)),
            _ => None,
        });
        if let (true, Kind::SessionDeaf | Kind::SessionStalls, Some((from, to))) = (it.auto, kind, last) {
            // Speech that had begun for less than the service needs to notice it.
            it.history.note(now, Fact::Silent { from, to });
        }
        let (soon, later) = (it.jitter(1, 1_500), it.jitter(1, 3_000));
        match kind {
            Kind::ClientLost | Kind::HalfOpen | Kind::LongAway => {
                it.stays_away |= kind == Kind::LongAway;
                let Some(link) = it.client_link else { return };
                it.links[link].whole = false;
                self.later(call, later, Ev::ClientSees(link));
                if kind != Kind::HalfOpen {
                    self.later(call, soon, Ev::ServerSees(link));
                }
            }
            Kind::ClientStalls => {
                let Some(link) = it.client_link else { return };
                let until = now + it.jitter(2_000, 20_000);
                it.links[link].down_last = it.links[link].down_last.max(until);
            }
            Kind::SessionLost | Kind::NoDial => {
                if kind == Kind::NoDial {
                    it.no_dial_until = now + it.jitter(500, 8_000);
                }
                let Some(leg) = it.running.or(it.next) else { return };
                // It may take a while until we see it; what it says meanwhile is lost.
                it.legs[leg].whole = false;
                if before {
                    self.session_gone(call, leg, "broke");
                } else {
                    it.legs[leg].whole = true;
                    self.later(call, MS, Ev::Gone(leg));
                }
            }
            Kind::SessionDeaf => {
                if let Some(leg) = it.running {
                    it.legs[leg].deaf = true;
                    // Nobody asks a service that owes no reply whether it lives: in the end, TCP does.
                    self.later(call, 40 * SECOND, Ev::Gone(leg));
                }
            }
            Kind::SessionStalls => {
                if let Some(leg) = it.running {
                    it.legs[leg].held = now + it.jitter(1_000, 25_000);
                }
            }
            Kind::Rotate => self.input(call, Input::Rotate),
            Kind::Twice => it.twice += 3,
        }
    }
}

const NAMES: [&str; 10] = [
    "client lost",
    "half open",
    "long away",
    "client stalls",
    "session lost",
    "no dial",
    "session deaf",
    "session stalls",
    "rotate",
    "twice",
];
