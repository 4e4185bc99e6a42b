//! The sessions of a call: the real simulated service, the real wire format, and a connection between them.
use std::collections::VecDeque;

use bytes::Bytes;
use voxrelay::{
    call::{
        core::{Input, continuity::lives},
        end::End,
    },
    sim::{
        Knock,
        session::{Incoming, Output as Said, Session},
    },
    upstream::{Command, Event, UpstreamError, ga},
};

use super::{Ev, UNIX, World};
use crate::{
    audio::{PER_MS, read, runs},
    check::{At, Fact},
    faults::On,
};

/// A session and its connection.
pub(super) struct Leg {
    pub(super) session: Session,
    pub(super) began: At,
    pub(super) whole: bool,
    pub(super) up: bool,
    pub(super) ask_last: At,
    pub(super) say_last: At,
    /// Nothing comes from it before.
    pub(super) held: At,
    /// It will never say anything again.
    pub(super) deaf: bool,
    /// What it heard, unit by unit, and which of it is part of a turn.
    pub(super) heard: Vec<Option<u32>>,
    pub(super) taken: usize,
    pub(super) speech: Option<(usize, usize)>,
    pub(super) commits: VecDeque<(usize, usize)>,
}

impl World {
    pub(super) fn dial(&mut self, call: usize) {
        let it = &mut self.calls[call];
        it.running = None;
        it.next = None;
        let on_its_way = std::mem::replace(&mut it.dialling_next, false);
        it.dialling = true;
        if !on_its_way {
            self.dial_soon(call);
        }
    }

    pub(super) fn dial_soon(&mut self, call: usize) {
        let it = &mut self.calls[call];
        let fails = self.now < it.no_dial_until;
        let after = if fails { it.jitter(2_000, 6_000) } else { it.jitter(80, 500) };
        self.later(call, after, Ev::Dialled { fails });
    }

    pub(super) fn dialled(&mut self, call: usize, fails: bool) {
        // Whoever is missed most gets what comes; one that nobody wants is closed.
        let it = &mut self.calls[call];
        let next = !it.dialling;
        if next && !it.dialling_next {
            return;
        }
        if fails {
            if next {
                it.dialling_next = false;
                return self.input(call, Input::NextSession(Err(())));
            }
            it.dialling = false;
            let error = UpstreamError::Broken("refused".into());
            return self.input(call, Input::ServiceGone(End::upstream(&error), error.another_may_do()));
        }
        self.dialled += 1;
        let (key, has_expired) = match &mut self.purse {
            Some(purse) => purse.take(self.now),
            None => ("sk-good".to_owned(), false),
        };
        let model = Some("gpt-realtime".into());
        let knock = Knock { key: Some(key), unknown_secret: has_expired, model, ..Knock::default() };
        let session = Session::new(self.service.clone(), self.dialled, &knock, UNIX + self.now.as_secs());
        let (now, zero) = (self.now, self.now);
        it.legs.push(Leg {
            session,
            began: now,
            whole: true,
            up: false,
            ask_last: zero,
            say_last: zero,
            held: At::ZERO,
            deaf: false,
            heard: Vec::new(),
            taken: 0,
            speech: None,
            commits: VecDeque::new(),
        });
    }

    pub(super) fn session_up(&mut self, call: usize, leg: usize, expires_at: Option<u64>) {
        let it = &mut self.calls[call];
        it.legs[leg].up = true;
        let lives = lives(expires_at, UNIX + self.now.as_secs());
        if it.dialling {
            it.dialling = false;
            it.running = Some(leg);
            self.note(call, Fact::Runs { session: leg });
            self.input(call, Input::SessionUp(lives));
        } else if it.dialling_next {
            it.dialling_next = false;
            it.next = Some(leg);
            self.input(call, Input::NextSession(Ok(lives)));
            self.moment(call, On::NextReady);
        }
    }

    pub(super) fn session_acts(&mut self, call: usize, leg: usize) {
        let now = self.now;
        let it = &mut self.calls[call];
        let since = now.saturating_sub(it.legs[leg].began);
        it.legs[leg].session.tick(since);
        self.session_speaks(call, leg);
    }

    pub(super) fn session_speaks(&mut self, call: usize, leg: usize) {
        while let Some(said) = self.calls[call].legs[leg].session.poll() {
            let now = self.now;
            let it = &mut self.calls[call];
            let delay = it.jitter(20, 60);
            let here = &mut it.legs[leg];
            let at = (now + delay).max(here.say_last).max(here.held);
            here.say_last = at;
            if here.deaf {
                continue;
            }
            match said {
                Said::Send(text) => self.at(call, at, Ev::Says(leg, text)),
                Said::Close { .. } | Said::Die { .. } => self.at(call, at, Ev::Gone(leg)),
                Said::StallReads { .. } | Said::SlowReads { .. } => {}
            }
        }
    }

    /// A session takes a command.
    pub(super) fn asked(&mut self, call: usize, leg: usize, text: &Bytes, command: &Command) {
        let now = self.now;
        let it = &mut self.calls[call];
        let near = it.client.position;
        let here = &mut it.legs[leg];
        if !here.whole {
            return;
        }
        match command {
            Command::Append(audio) => here.heard.extend(read(audio, near)),
            Command::Commit => {
                here.commits.push_back((here.taken, here.heard.len()));
                here.taken = here.heard.len();
            }
            Command::ClearInput => here.taken = here.heard.len(),
            _ => {}
        }
        let since = now.saturating_sub(here.began);
        let text = std::str::from_utf8(text).expect("JSON is UTF-8");
        here.session.handle(since, Incoming::Text(text));
        self.session_speaks(call, leg);
    }

    /// A session's event arrives.
    pub(super) fn says(&mut self, call: usize, leg: usize, text: &str) {
        let it = &mut self.calls[call];
        if !it.legs[leg].whole {
            return;
        }
        let event = ga::decode(text.as_bytes());
        if let Event::SessionCreated { expires_at, .. } = &event
            && !it.legs[leg].up
        {
            return self.session_up(call, leg, *expires_at);
        }
        if it.running != Some(leg) {
            return;
        }
        let on = match &event {
            Event::SpeechStarted { .. } => Some(On::SpeechStarted),
            Event::SpeechStopped { .. } => Some(On::SpeechStopped),
            Event::Committed { .. } => Some(On::Committed),
            Event::ReplyCreated { .. } => Some(On::Created),
            Event::Audio { .. } => Some(On::Delta),
            Event::ReplyDone { .. } => Some(On::Done),
            Event::UserText { last: true, .. } => Some(On::Words),
            _ => None,
        };
        if let Some(on) = on {
            self.moment(call, on);
        }
        let it = &mut self.calls[call];
        // A fault before the event has taken it along.
        if it.over || it.running != Some(leg) || !it.legs[leg].whole {
            return;
        }
        self.tell(call, leg, &event);
        let twice = matches!(
            event,
            Event::ReplyCreated { .. } | Event::ReplyDone { .. } | Event::ToolCall { .. } | Event::SpeechStarted { .. }
        );
        let it = &mut self.calls[call];
        let again = (twice && it.twice > 0).then(|| event.clone());
        self.input(call, Input::Service(event));
        if let Some(event) = again.filter(|_| self.calls[call].running == Some(leg)) {
            self.calls[call].twice -= 1;
            self.input(call, Input::Service(event));
        }
    }

    /// Writes down what the core is about to hear.
    pub(super) fn tell(&mut self, call: usize, leg: usize, event: &Event) {
        let here = &mut self.calls[call].legs[leg];
        let unit = |ms: u64| usize::try_from(ms * u64::from(PER_MS)).unwrap_or(usize::MAX);
        let fact = match event {
            Event::SpeechStarted { at_ms } => {
                here.speech = Some((unit(*at_ms), usize::MAX));
                Fact::Told(format!("speech started at {at_ms} in session {leg}"))
            }
            Event::SpeechStopped { at_ms } => {
                if let Some((_, to)) = &mut here.speech {
                    *to = unit(*at_ms);
                    here.taken = here.taken.max(unit(*at_ms));
                }
                Fact::Told(format!("speech stopped at {at_ms} in session {leg}"))
            }
            Event::Committed { .. } => {
                let found = here.speech.filter(|(_, to)| *to != usize::MAX);
                let (from, to) = match found {
                    Some(found) => {
                        here.speech = None;
                        found
                    }
                    None => here.commits.pop_front().unwrap_or((0, 0)),
                };
                let units = here.heard.get(from..to.min(here.heard.len())).unwrap_or_default();
                Fact::Turn { session: leg, units: runs(units.iter().flatten().copied()) }
            }
            Event::ReplyCreated { response, .. } => Fact::Created { response: response.clone() },
            Event::Audio { response, audio, .. } => Fact::Delta { response: response.clone(), audio: audio.to_vec() },
            Event::ReplyDone { response, usage, .. } => {
                self.turns += 1;
                Fact::Done { response: response.clone(), tokens: usage.map(|usage| usage.total_tokens) }
            }
            Event::Error(error) => Fact::Told(format!("service error {}: {}", error.code, error.message)),
            _ => return,
        };
        self.note(call, fact);
    }

    pub(super) fn session_gone(&mut self, call: usize, leg: usize, why: &'static str) {
        let it = &mut self.calls[call];
        it.legs[leg].whole = false;
        let error = UpstreamError::Broken("reset".into());
        let gone = || Input::ServiceGone(End::upstream(&error), error.another_may_do());
        if it.running == Some(leg) {
            it.running = None;
            self.note(call, Fact::NoSession { why });
            self.input(call, gone());
        } else if it.next == Some(leg) {
            it.next = None;
            self.input(call, Input::NextSession(Err(())));
        } else if !it.legs[leg].up {
            // It broke before it was greeted.
            if it.dialling {
                it.dialling = false;
                self.input(call, gone());
            } else if it.dialling_next {
                it.dialling_next = false;
                self.input(call, Input::NextSession(Err(())));
            }
        }
    }
}
