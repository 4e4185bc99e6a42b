//! The connections between a client and the relay: what is on its way, in order, and gone when they break.
use std::time::Duration;

use bytes::Bytes;
use voxrelay::{
    call::{core::Input, end::End},
    client::{
        thin,
        wire::{ClientMsg, ServerMsg},
    },
    net::outbox::Kind as Frame,
};

use super::{Ev, MS, SECOND, World, call::Call, hash};
use crate::{
    audio::{FORMAT, speak, unit},
    check::{At, Fact},
    client::Up,
};

/// What a socket holds that nobody has read, bytes.
const SOCKET: usize = 32 << 10;
/// A client that has not shown that it has the next token may use the one before again after so long (`call::returns`).
const UNPROVEN: Duration = Duration::from_secs(2);

/// A client's connection.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) whole: bool,
    pub(super) up_last: At,
    pub(super) down_last: At,
    pub(super) in_flight: usize,
}

impl World {
    pub(super) fn numbered(&mut self, call: usize, payload: &Bytes) {
        let number = self.calls[call].outbox.said();
        self.note(call, Fact::Numbered { number, hash: hash(payload) });
    }

    pub(super) fn pump(&mut self, call: usize) {
        loop {
            let it = &mut self.calls[call];
            let Some(link) = it.server_link else { return };
            if it.links[link].in_flight > SOCKET {
                return;
            }
            let Some(next) = it.outbox.pop() else { return };
            let before = it.outbox.said();
            it.outbox.taken(self.base + self.now, next.kind, &next.payload, next.counts());
            let greeting =
                next.payload.starts_with(br#"{"type":"ready""#) || next.payload.starts_with(br#"{"type":"resumed""#);
            if it.outbox.said() > before {
                self.numbered(call, &next.payload);
            }
            self.down(call, link, next.kind, next.payload, !greeting);
        }
    }

    pub(super) fn down(&mut self, call: usize, link: usize, kind: Frame, payload: Bytes, counted: bool) {
        let it = &mut self.calls[call];
        let delay = it.jitter(5, 80);
        let here = &mut it.links[link];
        let at = (self.now + delay).max(here.down_last);
        here.down_last = at;
        here.in_flight += payload.len();
        self.at(call, at, Ev::Down(link, kind, payload, counted));
    }

    pub(super) fn up(&mut self, call: usize, ev: impl FnOnce(usize) -> Ev) {
        let it = &mut self.calls[call];
        let Some(link) = it.client_link else { return };
        let delay = it.jitter(5, 80);
        let here = &mut it.links[link];
        let at = (self.now + delay).max(here.up_last);
        here.up_last = at;
        self.at(call, at, ev(link));
    }

    /// The server closes it; what it said before still comes.
    pub(super) fn close_link(&mut self, call: usize, link: usize) {
        let at = self.calls[call].links[link].down_last + 5 * MS;
        self.at(call, at.max(self.now), Ev::Closed(link));
    }

    pub(super) fn reaches(&mut self, call: usize, link: usize, number: u64, up: Up) {
        let it = &mut self.calls[call];
        if !it.links[link].whole || it.server_link != Some(link) {
            return;
        }
        it.tokens.0 = None; // whoever speaks has read `resumed`
        self.note(call, Fact::Reached { number });
        match up {
            Up::Audio { from, count, loud } => {
                let audio = speak(from, count, loud);
                let from = unit(from);
                self.note(call, Fact::Heard { from, to: from + count, loud });
                let it = &self.calls[call];
                let silent = it.running.is_some_and(|leg| {
                    it.legs[leg].deaf || it.legs[leg].say_last > self.now + SECOND || it.legs[leg].held > self.now
                });
                if it.auto && silent {
                    self.note(call, Fact::Silent { from, to: from + count });
                }
                let length = FORMAT.duration(audio.len());
                self.input(call, Input::Audio { length, upstream: &audio });
            }
            Up::Text(message) => {
                if message == ClientMsg::Commit {
                    self.input_flush(call);
                }
                self.input(call, Input::Message(message));
            }
        }
    }

    pub(super) fn input_flush(&mut self, call: usize) {
        self.input(call, Input::Flushed(&[]));
    }

    pub(super) fn arrives(&mut self, call: usize, link: usize, token: u64, got: u64) {
        let now = self.now;
        let it = &mut self.calls[call];
        if !it.links[link].whole {
            return;
        }
        let (before, current, since) = it.tokens;
        let waits = it.server_link.is_some() && now < since + UNPROVEN;
        let good = current == token || before == Some(token) && !waits;
        if !good || !it.outbox.has_since(got) {
            let error = End::ResumeRefused.error("r".into()).expect("a refusal is told");
            self.down(call, link, Frame::Text, thin::write(&ServerMsg::Error { error }), false);
            self.note(call, Fact::Told(format!("resume refused: token {token} of {before:?} {current}, got {got}")));
            return self.close_link(call, link);
        }
        it.tokens = (Some(token), current.max(token) + 1, now);
        let resume = Some(it.tokens.1.to_string());
        let greeting = ServerMsg::Resumed { call: "call".into(), resume, got: it.core.received() };
        let old = it.server_link.replace(link);
        let late = it.outbox.say_again(got).unwrap_or(0);
        it.outbox.uncounted(thin::write(&greeting));
        it.outbox.ping();
        if let Some(old) = old {
            self.close_link(call, old);
        }
        self.note(call, Fact::Told(format!("back with {got}, {late} frames late")));
        let late = 20 * MS * u32::try_from(late).unwrap_or(u32::MAX);
        self.input(call, Input::ClientBack { late, credential: self.config.credential });
    }

    pub(super) fn comes(&mut self, call: usize, link: usize, kind: Frame, payload: &Bytes, counted: bool) {
        let now = self.now;
        let it = &mut self.calls[call];
        it.links[link].in_flight -= payload.len().min(it.links[link].in_flight);
        if it.client_link == Some(link) && it.links[link].whole {
            if kind == Frame::Ping {
                self.up(call, Ev::Pong);
            } else {
                if counted {
                    let number = it.client.got + 1;
                    it.history.note(now, Fact::Got { number, hash: hash(payload) });
                }
                let Call { client, history, .. } = it;
                let wishes = match kind {
                    Frame::Binary => client.audio(now, payload, history),
                    _ => client.text(now, payload, history),
                };
                self.wishes(call, wishes);
            }
        }
        self.pump(call);
    }
}
