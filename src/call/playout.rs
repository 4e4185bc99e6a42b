//! Replies on their way to the loudspeaker, oldest first, and what becomes of them at a barge-in.
//!
//! A reply is announced when its audio begins, sent in frames of 20 ms at the pacer's moments, and over when it was
//! generated *and* played. Knows the service's ids only to name what must be truncated; asks for no reply itself.
use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{
    At,
    reply::{Generated, Late, Reply, Times},
};
use crate::{
    audio::{Format, lane::FRAME, pace::Pacer},
    client::wire::{ReplyStatus, Usage},
};

/// A client that reports its playback is waited for so long past the clock.
const REPORT_PATIENCE: Duration = Duration::from_secs(2);
/// The service's end of a reply that was cut off is waited for so long.
const CUT_PATIENCE: Duration = Duration::from_secs(2);

/// What to send next.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Say that this reply begins.
    Announce(String),
    /// 20 ms of audio, in the upstream format.
    Frame {
        /// The audio; the last one of a reply is filled up with silence.
        audio: Bytes,
        /// The first one of its reply.
        first: bool,
    },
    /// The reply's audio is complete: what filters hold back may follow.
    Tail,
}

/// What of an item was not heard, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unheard {
    /// Cut it to so many ms.
    Truncate {
        /// The item.
        item: String,
        /// Its audio part.
        content_index: u32,
        /// Heard of it, ms.
        audio_end_ms: u64,
    },
    /// Nothing of it was heard.
    Delete {
        /// The item.
        item: String,
    },
}

/// A reply that is over.
#[derive(Debug)]
pub struct Over {
    /// Itself.
    pub reply: Reply,
    /// How it ended.
    pub status: ReplyStatus,
    /// Why.
    pub reason: Option<String>,
    /// Received, ms.
    pub audio_ms: u64,
    /// Heard, ms.
    pub heard_ms: u64,
}

/// What a barge-in found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct BargeIn {
    /// Replies that the client shall drop, oldest first.
    pub clear: Vec<String>,
    /// Items, oldest first.
    pub unheard: Vec<Unheard>,
    /// The reply that the service still generates.
    pub generating: Option<String>,
    /// Replies, by the service's ids.
    pub cut: Vec<String>,
}

/// A reply that was being generated when its session was lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    /// The service's id.
    pub response: String,
    /// Its items.
    pub items: Vec<String>,
    /// Some of it was sent to the client, or the caller had moved on: nobody shall hear it begin again.
    pub begun: bool,
    /// Received, ms.
    pub audio_ms: u64,
}

/// What had to be given up of replies that nobody took.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Stopped {
    /// Items, oldest first.
    pub unheard: Vec<Unheard>,
    /// The reply that the service still generates.
    pub generating: Option<String>,
}

/// All replies of a call that are not over.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Playout {
    format: Format,
    pacer: Pacer,
    replies: VecDeque<Reply>,
    begun: u64,
    max_backlog: Duration,
    /// When each reply that was cut off is given up.
    cut_until: Option<At>,
    /// How late the client is, where that is known.
    #[serde(default)]
    late: Option<Late>,
}

impl Playout {
    /// `format` is what the service sends.
    pub fn new(format: Format, lead: Option<Duration>, batch: Duration, max_backlog: Duration) -> Self {
        let pacer = Pacer::new(format.rate, lead, batch);
        Self { format, pacer, replies: VecDeque::new(), begun: 0, max_backlog, cut_until: None, late: None }
    }

    /// The service began a reply; returns our id for it.
    pub fn begin(&mut self, response: &str, times: Times) -> String {
        for earlier in self.replies.iter_mut().filter(|r| !r.is_generated()) {
            // One reply at a time: the word that this one ended is lost.
            earlier.generated = Some(Generated { status: ReplyStatus::Incomplete, reason: Some("lost".to_owned()) });
            earlier.sent_all |= earlier.received() == 0;
        }
        self.begun += 1;
        let id = format!("r{}", self.begun);
        self.replies.push_back(Reply::new(id.clone(), response.to_owned(), times));
        id
    }

    /// A recording is played as a reply of its own, in the service's format: no service knows of it. Our id for it.
    pub fn play(&mut self, audio: Bytes) -> String {
        self.begun += 1;
        let id = format!("r{}", self.begun);
        let mut reply = Reply::new(id.clone(), format!("recording-{id}"), Times::default());
        let samples = (audio.len() / self.format.sample_bytes().unwrap_or(1)) as u64;
        reply.recorded(audio, samples);
        self.replies.push_back(reply);
        id
    }

    /// The reply with the service's id.
    pub fn by_response(&mut self, response: &str) -> Option<&mut Reply> {
        self.replies.iter_mut().find(|r| r.response == response)
    }

    /// Our id of a reply of the service.
    pub fn id_of(&self, response: &str) -> Option<&str> {
        self.replies.iter().find(|r| r.response == response).map(|r| r.id.as_str())
    }

    /// Audio of a reply so far, ms.
    pub fn audio_ms(&self, response: &str) -> u64 {
        let reply = self.replies.iter().find(|r| r.response == response);
        reply.map_or(0, |reply| reply.received() * 1_000 / u64::from(self.format.rate))
    }

    /// A delta. `false`: the backlog is full, and the reply should be stopped.
    pub fn receive(&mut self, now: At, response: &str, item: &str, content_index: u32, audio: Bytes) -> bool {
        let size = self.format.sample_bytes().unwrap_or(1);
        let backlog: usize = self.replies.iter().map(Reply::waiting_bytes).sum();
        let most = self.format.bytes(self.max_backlog);
        let Some(reply) = self.replies.iter_mut().find(|r| r.response == response) else { return true };
        if reply.cut.is_some() || reply.is_generated() {
            return true; // late: the caller has moved on, or we have
        }
        reply.times.first_delta.get_or_insert(now);
        let samples = (audio.len() / size) as u64;
        reply.receive(item, content_index, audio, samples);
        backlog <= most
    }

    /// The service ended a reply.
    pub fn generated(&mut self, response: &str, generated: Generated, usage: Option<Usage>) {
        if let Some(reply) = self.by_response(response) {
            reply.generated.get_or_insert(generated); // what we stopped ourselves keeps our reason
            reply.usage = usage.or(reply.usage);
            // A reply without audio, such as a tool call, has nothing to wait for.
            reply.sent_all |= reply.received() == 0;
        }
    }

    /// We end a reply; returns what to forget of the item that was cut by it.
    pub fn stop(&mut self, response: &str, generated: Generated) -> Option<Unheard> {
        self.generated(response, generated, None);
        let rate = self.format.rate;
        let item = self.by_response(response)?.items.last()?;
        let audio_end_ms = item.received * 1_000 / u64::from(rate);
        Some(Unheard::Truncate { item: item.id.clone(), content_index: item.content_index, audio_end_ms })
    }

    /// The session is lost. What came of its replies is still played, but for a reply of which nothing was sent: that can begin
    /// anew, and is forgotten.
    pub fn lost(&mut self) -> Vec<Broken> {
        let rate = u64::from(self.format.rate);
        let mut broken = Vec::new();
        for reply in self.replies.iter_mut().filter(|reply| !reply.is_generated()) {
            let begun = reply.sent() > 0 || reply.cut.is_some();
            broken.push(Broken {
                response: reply.response.clone(),
                items: reply.items.iter().map(|item| item.id.clone()).collect(),
                begun,
                audio_ms: reply.received() * 1_000 / rate,
            });
            if !begun {
                reply.cut(0);
            }
            let reason = Some("upstream_lost".to_owned());
            reply.generated = Some(Generated { status: ReplyStatus::Interrupted, reason });
            reply.sent_all |= reply.received() == 0;
        }
        // The client was told nothing of a reply that is not announced.
        self.replies.retain(|reply| reply.announced || reply.cut.is_none());
        broken
    }

    /// Nobody takes audio: more than `most` of what waits is given up, the newest first.
    pub fn keep(&mut self, most: Duration) -> Stopped {
        let size = self.format.sample_bytes().unwrap_or(1);
        let mut left = self.format.bytes(most) / size * size;
        let mut stopped = Stopped::default();
        for reply in self.replies.iter_mut().filter(|reply| reply.cut.is_none()) {
            let over = reply.waiting_bytes().saturating_sub(left);
            left -= reply.waiting_bytes() - over;
            if over == 0 {
                continue;
            }
            let before: Vec<u64> = reply.items.iter().map(|item| item.received).collect();
            reply.give_up(over, (over / size) as u64);
            for (item, _) in reply.items.iter().zip(before).filter(|(item, before)| item.received < *before) {
                let (id, content_index) = (item.id.clone(), item.content_index);
                let audio_end_ms = item.received * 1_000 / u64::from(self.format.rate);
                stopped.unheard.push(match item.received {
                    0 => Unheard::Delete { item: id },
                    _ => Unheard::Truncate { item: id, content_index, audio_end_ms },
                });
            }
            if !reply.is_generated() {
                stopped.generating = Some(reply.response.clone());
            }
            let reason = Some("nobody_there".to_owned());
            reply.generated = Some(Generated { status: ReplyStatus::Incomplete, reason });
        }
        stopped
    }

    /// So much of what was sent has not left us, or arrives only now.
    pub fn lacks(&mut self, now: At, late: Duration) {
        if !late.is_zero() {
            let size = self.format.sample_bytes().unwrap_or(1);
            self.pacer.lacks(now, (self.format.bytes(late) / size) as u64);
        }
    }

    /// What may be sent now; ask until `None`.
    pub fn next(&mut self, now: At) -> Option<Step> {
        let bytes = self.format.bytes(FRAME);
        let size = self.format.sample_bytes().unwrap_or(1);
        let frame = (bytes / size) as u64;
        // Also one without audio is announced in its turn: audio belongs to the reply that was announced last.
        let reply = self.replies.iter_mut().find(|r| !r.sent_all || !r.announced && r.cut.is_none())?;
        if !reply.announced {
            reply.announced = true;
            return Some(Step::Announce(reply.id.clone()));
        }
        let last = reply.is_generated();
        if reply.waiting_bytes() >= bytes || (last && reply.waiting_bytes() >= size) {
            if !self.pacer.may_send(now, frame) {
                return None;
            }
            let first = reply.sent() == 0;
            let mut audio = reply.take(bytes);
            reply.send(self.pacer.sent(), (audio.len() / size) as u64);
            audio.resize(bytes, self.format.silence());
            self.pacer.send(now, frame);
            return Some(Step::Frame { audio: audio.into(), first });
        }
        if !last {
            return None;
        }
        reply.sent_all = true;
        if reply.sent() > 0 { Some(Step::Tail) } else { self.next(now) }
    }

    /// The first audio of the newest sent reply has left us.
    pub fn first_audio_left(&mut self, now: At) {
        if let Some(reply) = self.replies.iter_mut().rev().find(|r| r.sent() > 0) {
            reply.times.first_audio.get_or_insert(now);
        }
    }

    /// A word to the client and its answer take so long.
    pub fn takes(&mut self, trip: Duration) {
        self.late.get_or_insert_default().trip = trip;
    }

    /// The client says what it has played of a reply.
    pub fn report(&mut self, now: At, reply: &str, played_ms: u64) {
        let samples = played_ms.saturating_mul(u64::from(self.format.rate)) / 1_000;
        if let Some(reply) = self.replies.iter_mut().find(|r| r.id == reply && r.cut.is_none()) {
            reply.report(now, samples);
            if let Some(late) = &mut self.late
                && let Some(behind) = reply.behind(now, self.pacer.played(now), self.format.rate, *late)
            {
                late.note(behind);
            }
        }
    }

    /// The reply that the client means: this one, or the one that plays; `None` when it is over or cut off.
    pub fn current(&self, reply: Option<&str>) -> Option<&str> {
        let mut open = self.replies.iter().filter(|r| r.cut.is_none());
        match reply {
            Some(id) => open.find(|r| r.id == id),
            None => open.next(),
        }
        .map(|r| r.id.as_str())
    }

    /// How much was heard of the reply that sounds.
    pub fn heard(&self, now: At) -> Option<Duration> {
        let reply = self.replies.iter().find(|r| r.cut.is_none())?;
        let heard = reply.heard(now, self.pacer.played(now), self.format.rate, self.late);
        Some(self.pacer.length(heard))
    }

    /// Something sounds, or is about to.
    pub fn active(&self) -> bool {
        self.replies.iter().any(|r| r.cut.is_none())
    }

    /// No reply is left, cut off or not.
    pub fn is_empty(&self) -> bool {
        self.replies.is_empty()
    }

    /// The caller speaks, types or presses: everything that sounds or waits is cut at what was heard.
    pub fn barge_in(&mut self, now: At) -> BargeIn {
        let played = self.pacer.played(now);
        let (rate, late) = (self.format.rate, self.late);
        let mut found = BargeIn::default();
        for reply in self.replies.iter_mut().filter(|r| r.cut.is_none()) {
            let heard = reply.heard(now, played, rate, late);
            reply.cut(heard);
            found.cut.push(reply.response.clone());
            if reply.announced {
                found.clear.push(reply.id.clone());
            }
            found.unheard.extend(unheard(reply, heard, rate));
            if !reply.is_generated() {
                found.generating = Some(reply.response.clone());
                self.cut_until = Some(now + CUT_PATIENCE);
            }
        }
        self.pacer.cut(now);
        found
    }

    /// Everything that is over by now.
    pub fn over(&mut self, now: At) -> Vec<Over> {
        let mut over = Vec::new();
        loop {
            let at = self.ends().position(|end| end.is_some_and(|end| now >= end));
            let Some(at) = at else { return over };
            if let Some(reply) = self.replies.remove(at) {
                over.push(self.close(reply, now));
            }
        }
    }

    /// Ends every reply, as failed where it was not generated to its end: the service is gone.
    pub fn fail_all(&mut self, now: At, reason: &str) -> Vec<Over> {
        let mut over = Vec::new();
        while let Some(mut reply) = self.replies.pop_front() {
            if reply.generated.is_none() && reply.cut.is_none() {
                reply.generated = Some(Generated { status: ReplyStatus::Failed, reason: Some(reason.to_owned()) });
            }
            over.push(self.close(reply, now));
        }
        over
    }

    fn close(&self, reply: Reply, now: At) -> Over {
        let ms = |samples: u64| samples * 1_000 / u64::from(self.format.rate);
        let generated = reply.generated.clone();
        let (status, reason) = match (reply.cut, generated) {
            // A reply that failed by itself is not made an interrupted one by what came after.
            (_, Some(Generated { status: ReplyStatus::Failed, reason })) => (ReplyStatus::Failed, reason),
            (Some(_), _) => (ReplyStatus::Interrupted, None),
            (None, Some(generated)) => (generated.status, generated.reason),
            (None, None) => (ReplyStatus::Failed, None),
        };
        let heard = reply.heard(now, self.pacer.played(now), self.format.rate, self.late);
        Over { status, reason, audio_ms: ms(reply.received()), heard_ms: ms(heard), reply }
    }

    /// When each reply is over, as far as is known. One that the client does not know yet, such as a tool call, waits for the
    /// audio before it: what comes after `reply_started` is the audio of that reply.
    fn ends(&self) -> impl Iterator<Item = Option<At>> {
        let mut sounds = false;
        self.replies.iter().map(move |reply| {
            let end = self.over_at(reply).filter(|_| reply.announced || !sounds);
            sounds |= reply.cut.is_none() && !reply.sent_all;
            end
        })
    }

    fn over_at(&self, reply: &Reply) -> Option<At> {
        if reply.cut.is_some() {
            return if reply.is_generated() { Some(At::ZERO) } else { self.cut_until };
        }
        if !reply.is_generated() || !reply.sent_all {
            return None;
        }
        if reply.sent() == 0 {
            return Some(At::ZERO);
        }
        let clock = self.pacer.plays_at(reply.ends());
        Some(match reply.report_ends(self.format.rate) {
            Some(end) => end,
            None if reply.is_reported() => clock + REPORT_PATIENCE,
            None => clock,
        })
    }

    /// When to look again: the next frame, if there is `room` for it, or the end of a reply.
    pub fn deadline(&self, room: bool) -> Option<At> {
        let sends =
            self.replies.iter().find(|r| !r.sent_all).filter(|r| {
                r.waiting_bytes() >= self.format.bytes(FRAME) || (r.is_generated() && r.waiting_bytes() > 0)
            });
        let send = sends.filter(|_| room).map(|_| self.pacer.next_send());
        self.ends().flatten().chain(send).min()
    }
}

/// What to tell the service about each item of a reply that was cut at `heard` samples.
fn unheard(reply: &Reply, heard: u64, rate: u32) -> Vec<Unheard> {
    let mut items = Vec::new();
    for (index, item) in reply.items.iter().enumerate() {
        let heard = heard.saturating_sub(item.begin).min(item.received);
        // An item is known to be complete when the next one has begun, or the reply is.
        let complete = reply.is_generated() || index + 1 < reply.items.len();
        // Truncating what was heard to its end would only delete its transcript.
        if heard == 0 {
            items.push(Unheard::Delete { item: item.id.clone() });
        } else if !(complete && heard == item.received) {
            let audio_end_ms = heard * 1_000 / u64::from(rate);
            items.push(Unheard::Truncate { item: item.id.clone(), content_index: item.content_index, audio_end_ms });
        }
    }
    items
}
