//! What a caller does: speaks, types, reports, answers tools, comes back.
use std::time::Duration;

use rand::Rng as _;
use voxrelay::client::wire::ClientMsg;

use super::{Ev, SECOND, World, line::Link};
use crate::{
    audio::{PER_MS, unit},
    check::{At, Fact},
    client::{Up, Wish},
    faults::On,
};

/// Audio in one message of the client, ms.
const FRAME_MS: u32 = 100;

impl World {
    pub(super) fn wishes(&mut self, call: usize, wishes: Vec<Wish>) {
        for wish in wishes {
            match wish {
                Wish::Write(number, up) => self.up(call, |link| Ev::Up(link, number, up)),
                Wish::Tool(call_id) => {
                    let after = self.calls[call].jitter(100, 4_000);
                    if self.calls[call].rng.random_bool(0.9) {
                        self.later(call, after, Ev::Tool(call_id));
                    }
                }
                Wish::GiveUp => self.calls[call].client.over = true,
            }
        }
    }

    pub(super) fn client_says(&mut self, call: usize, up: Up) {
        let wishes = self.calls[call].client.say(up);
        self.wishes(call, wishes);
    }

    pub(super) fn client_sees(&mut self, call: usize, link: usize) {
        let it = &mut self.calls[call];
        if it.client_link != Some(link) {
            return;
        }
        it.client_link = None;
        it.client.lost();
        it.links[link].whole = false;
        if it.client.over {
            return;
        }
        let away =
            if std::mem::replace(&mut it.stays_away, false) { it.jitter(33_000, 50_000) } else { it.jitter(50, 4_000) };
        self.later(call, away, Ev::ClientReturns);
    }

    pub(super) fn returns(&mut self, call: usize) {
        let it = &mut self.calls[call];
        if it.client_link.is_some() || it.client.over {
            return;
        }
        it.links.push(Link { whole: true, up_last: At::ZERO, down_last: At::ZERO, in_flight: 0 });
        it.client_link = Some(it.links.len() - 1);
        let (token, got) = (it.client.token, it.client.got);
        self.up(call, |link| Ev::Arrive { link, token, got });
    }

    pub(super) fn microphone(&mut self, call: usize, left: u32, loud: bool) {
        let it = &mut self.calls[call];
        let count = FRAME_MS * PER_MS;
        let from = it.client.position;
        if it.client.over {
            return;
        }
        if left > 0 {
            it.client.position += u64::from(count);
            self.client_says(call, Up::Audio { from, count, loud });
            self.moment(call, On::ClientAudio);
            return self.later(call, Duration::from_millis(FRAME_MS.into()), Ev::Mic(left - 1, loud));
        }
        let it = &mut self.calls[call];
        let (low, high) = self.config.pause;
        if loud && it.auto {
            // Some fall silent, some are cut off by their telephone.
            let silence = if it.rng.random_bool(0.8) { 8 } else { 0 };
            return self.microphone(call, silence, false);
        }
        if loud {
            let said = it.utterance.take().unwrap_or(0);
            if it.rng.random_bool(0.1) {
                let to = it.client.position;
                self.note(call, Fact::Discarded { from: unit(said), to: unit(to) });
                self.client_says(call, Up::Text(ClientMsg::Discard));
            } else {
                self.client_says(call, Up::Text(ClientMsg::Commit));
            }
        }
        let pause = self.calls[call].jitter(low, high);
        if self.now + pause + 30 * SECOND < self.config.length {
            self.later(call, pause, Ev::Speak);
        }
    }

    pub(super) fn client_acts(&mut self, call: usize) {
        let now = self.now;
        let it = &mut self.calls[call];
        let (low, high) = self.config.acts;
        let after = it.jitter(low, high);
        let message = match it.rng.random_range(0..8) {
            0 => Some(ClientMsg::Text { text: format!("and {}?", now.as_secs()) }),
            1 => Some(ClientMsg::Text { text: format!("call look {{\"n\": {}}}", now.as_secs()) }),
            2 => Some(ClientMsg::Interrupt { reply: None, played_ms: it.client.played(now).map(|(_, ms)| ms) }),
            3..7 => it.client.played(now).map(|(reply, ms)| ClientMsg::Played { reply, ms }),
            _ => Some(ClientMsg::Ping { t: serde_json::json!(1) }),
        };
        if let Some(message) = message.filter(|_| now + 30 * SECOND < self.config.length) {
            self.client_says(call, Up::Text(message));
        }
        self.later(call, after, Ev::Act);
    }

    /// As clients do that would rather not be called idle.
    pub(super) fn keepalive(&mut self, call: usize) {
        let every = self.config.keepalive.unwrap_or(Duration::MAX);
        if self.now + every < self.config.length {
            self.client_says(call, Up::Text(ClientMsg::Ping { t: serde_json::json!(self.now.as_secs()) }));
            self.later(call, every, Ev::Keepalive);
        }
    }
}
