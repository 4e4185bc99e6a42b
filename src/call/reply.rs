//! One reply, from the service's first word to the loudspeaker's last: what was received, sent, heard, and when.
//!
//! The playback ledger per item lives here: reports of the client and the clock of the loudspeaker are only different
//! witnesses for what was heard.
use std::{collections::VecDeque, time::Duration};

use bytes::{Buf as _, Bytes};
use serde::{Deserialize, Serialize};

use super::{At, ms, turn::Marks};
use crate::{
    audio::{lane::FRAME, pace::Position},
    client::wire::{Latency, ReplyStatus, Usage},
    upstream::Ended,
};

/// A report is believed to go on for so long; a client that paused its loudspeaker says nothing more.
const REPORT_HOLDS: Duration = Duration::from_millis(1_000);

/// One audio part of a conversation item. Positions and lengths in samples of the reply.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// The service's id.
    pub id: String,
    /// The part that holds audio.
    pub content_index: u32,
    /// Where it begins.
    pub begin: u64,
    /// Received of it.
    pub received: u64,
}

/// The moments of a reply.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Times {
    /// Of the turn that is answered.
    pub turn: Marks,
    /// The service began.
    pub started: Option<At>,
    /// The first audio came in.
    pub first_delta: Option<At>,
    /// The first audio went out.
    pub first_audio: Option<At>,
}

impl Times {
    /// As the wire tells it.
    pub fn latency(&self) -> Latency {
        let since_end = |at: Option<At>| Some(ms(at?.saturating_sub(self.turn.end?)));
        Latency {
            committed_ms: since_end(self.turn.committed),
            reply_started_ms: since_end(self.started),
            first_delta_ms: since_end(self.first_delta),
            first_audio_ms: since_end(self.first_audio),
            relay_added_ms: self.relay_added().map(ms),
        }
    }

    /// From the first delta to the client's socket.
    pub fn relay_added(&self) -> Option<Duration> {
        Some(self.first_audio?.saturating_sub(self.first_delta?))
    }

    /// From the end of the caller's turn to the client's socket.
    pub fn answered_after(&self) -> Option<Duration> {
        Some(self.first_audio?.saturating_sub(self.turn.end?))
    }
}

impl From<Ended> for ReplyStatus {
    fn from(ended: Ended) -> Self {
        match ended {
            Ended::Completed => Self::Completed,
            Ended::Cancelled => Self::Interrupted,
            Ended::Incomplete => Self::Incomplete,
            Ended::Failed => Self::Failed,
        }
    }
}

/// A status as it is written down.
pub fn status_name(status: ReplyStatus) -> &'static str {
    match status {
        ReplyStatus::Completed => "completed",
        ReplyStatus::Interrupted => "interrupted",
        ReplyStatus::Incomplete => "incomplete",
        ReplyStatus::Failed => "failed",
    }
}

/// How a reply's generation ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Generated {
    /// How.
    pub status: ReplyStatus,
    /// Why.
    pub reason: Option<String>,
}

/// How late a client's loudspeaker is, and its word of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Late {
    /// A word to the client and its answer take so long.
    pub trip: Duration,
    /// So many samples it plays behind the clock, beside the way there: what it holds back. Smoothed.
    behind: Option<u64>,
}

impl Late {
    /// It was found to be so many samples behind.
    pub fn note(&mut self, behind: u64) {
        self.behind = Some(self.behind.map_or(behind, |before| (3 * before + behind) / 4));
    }
}

/// A reply that has not ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Reply {
    /// Our id, told to the client.
    pub id: String,
    /// The service's id.
    pub response: String,
    /// Its audio's parts.
    pub items: Vec<Item>,
    /// Moments.
    pub times: Times,
    /// Tokens.
    pub usage: Option<Usage>,
    /// Set when the service is done with it.
    pub generated: Option<Generated>,
    /// Set when it was cut off: what was heard of it then, in samples.
    pub cut: Option<u64>,
    /// The client knows of it.
    pub announced: bool,
    /// The last of its audio went out.
    pub sent_all: bool,
    waiting: VecDeque<Bytes>,
    waiting_bytes: usize,
    /// Received, samples.
    received: u64,
    /// Sent, samples, without what fills the last frame.
    sent: u64,
    /// Where in all that was sent it begins.
    begins: Option<Position>,
    /// The client's last word on what it has played, in samples of the reply, and when it came.
    report: Option<(u64, At)>,
}

impl Reply {
    /// A reply that begins.
    pub fn new(id: String, response: String, times: Times) -> Self {
        Self {
            id,
            response,
            items: Vec::new(),
            times,
            usage: None,
            generated: None,
            cut: None,
            announced: false,
            sent_all: false,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            received: 0,
            sent: 0,
            begins: None,
            report: None,
        }
    }

    /// Audio came, of `samples`.
    pub fn receive(&mut self, item: &str, content_index: u32, audio: Bytes, samples: u64) {
        match self.items.iter_mut().find(|i| i.id == item && i.content_index == content_index) {
            Some(known) => known.received += samples,
            None => {
                self.items.push(Item { id: item.to_owned(), content_index, begin: self.received, received: samples });
            }
        }
        self.received += samples;
        self.waiting_bytes += audio.len();
        self.waiting.push_back(audio);
    }

    /// All of it is there, and no part of any conversation.
    pub fn recorded(&mut self, audio: Bytes, samples: u64) {
        self.received = samples;
        self.waiting_bytes = audio.len();
        self.waiting.push_back(audio);
        self.generated = Some(Generated { status: ReplyStatus::Completed, reason: None });
    }

    /// Bytes that wait to be sent.
    pub fn waiting_bytes(&self) -> usize {
        self.waiting_bytes
    }

    /// Takes up to `bytes` of what waits.
    pub fn take(&mut self, bytes: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(bytes);
        while let Some(front) = self.waiting.front_mut() {
            let take = front.len().min(bytes - out.len());
            out.extend_from_slice(front.get(..take).unwrap_or_default());
            front.advance(take);
            if front.is_empty() {
                self.waiting.pop_front();
            }
            if out.len() == bytes {
                break;
            }
        }
        self.waiting_bytes -= out.len();
        out
    }

    /// Gives up the last so many bytes of what waits, which are so many samples: they were never said.
    pub fn give_up(&mut self, bytes: usize, samples: u64) {
        let mut left = bytes;
        while let Some(last) = self.waiting.back_mut().filter(|_| left > 0) {
            let drop = last.len().min(left);
            last.truncate(last.len() - drop);
            left -= drop;
            if last.is_empty() {
                self.waiting.pop_back();
            }
        }
        self.waiting_bytes -= bytes - left;
        self.received -= samples;
        for item in &mut self.items {
            item.received = item.received.min(self.received.saturating_sub(item.begin));
        }
    }

    /// So many samples of it went out, at this place of all that was sent.
    pub fn send(&mut self, at: Position, samples: u64) {
        self.begins.get_or_insert(at);
        self.sent += samples;
    }

    /// Received, samples.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Sent, samples.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Where its audio ends in all that was sent.
    pub fn ends(&self) -> Position {
        self.begins.unwrap_or(0) + self.sent
    }

    /// The client says what it has played. A loudspeaker never runs back, and never plays what it has not got.
    pub fn report(&mut self, now: At, samples: u64) {
        let samples = samples.min(self.sent).max(self.report.map_or(0, |(s, _)| s));
        self.report = Some((samples, now));
    }

    /// The client has said what it plays.
    pub fn is_reported(&self) -> bool {
        self.report.is_some()
    }

    /// When all that was sent will have been heard, by the client's word; `None`: it has not said enough.
    pub fn report_ends(&self, rate: u32) -> Option<At> {
        let (samples, at) = self.report?;
        let left = self.sent.saturating_sub(samples);
        let left = Duration::from_micros((left * 1_000_000).div_ceil(u64::from(rate)));
        (left <= REPORT_HOLDS).then(|| at + left)
    }

    /// Heard by now, samples: the client's word, taken forward, else the clock's `played` position.
    ///
    /// What was heard of a reply that is cut is what was played until the cut takes effect. The clock needs no correction for that: it
    /// runs from the sending, so it is ahead of the client's loudspeaker by the way there, which is as long as the cut's. A word of the
    /// client's is late by the way back, and the cut takes the way there, so the round trip is added where it is known, however unlike
    /// the two ways are; and half of the frame that the cut finds begun. A word that is early by chance can make that too long only up
    /// to the clock: no loudspeaker is ahead of that. Until the first word on a reply, the loudspeaker is as far behind as it was.
    pub fn heard(&self, now: At, played: Position, rate: u32, late: Option<Late>) -> u64 {
        if let Some(cut) = self.cut {
            return cut;
        }
        let Some(begins) = self.begins else { return 0 };
        let clock = played.saturating_sub(begins);
        let Some((samples, at)) = self.report else {
            let behind = late.and_then(|late| late.behind).unwrap_or(0);
            return clock.saturating_sub(behind).min(self.sent);
        };
        let on_its_way = late.map_or(Duration::ZERO, |late| late.trip + FRAME / 2);
        let since = now.saturating_sub(at).min(REPORT_HOLDS) + on_its_way;
        let more = u64::try_from(since.as_micros()).unwrap_or(0) * u64::from(rate) / 1_000_000;
        let most = if late.is_some() { clock.max(samples) } else { u64::MAX };
        (samples + more).min(most).min(self.sent)
    }

    /// How far behind the clock the client plays, by its word, samples; none: by then all that was sent has been played.
    pub fn behind(&self, now: At, played: Position, rate: u32, late: Late) -> Option<u64> {
        let clock = played.saturating_sub(self.begins?);
        let heard = self.heard(now, played, rate, Some(late));
        (heard < self.sent).then(|| clock.saturating_sub(heard))
    }

    /// Cuts it off: nothing more of it is sent.
    pub fn cut(&mut self, heard: u64) {
        self.cut = Some(heard.min(self.sent));
        self.waiting = VecDeque::new();
        self.waiting_bytes = 0;
        self.sent_all = true;
    }

    /// The service will send no more of it.
    pub fn is_generated(&self) -> bool {
        self.generated.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply() -> Reply {
        let mut reply = Reply::new("r1".into(), "resp".into(), Times::default());
        reply.receive("a", 0, Bytes::from(vec![1; 960]), 480);
        reply.receive("b", 0, Bytes::from(vec![2; 1_920]), 960);
        reply
    }

    #[test]
    fn items_follow_each_other_in_the_reply() {
        let mut reply = reply();
        reply.receive("a", 0, Bytes::from(vec![1; 2]), 1);
        let spans: Vec<_> = reply.items.iter().map(|i| (i.id.as_str(), i.begin, i.received)).collect();
        assert_eq!(spans, [("a", 0, 481), ("b", 480, 960)]);
        assert_eq!(reply.take(1_000).len(), 1_000);
        assert_eq!(reply.waiting_bytes(), 1_882);
    }

    #[test]
    fn witnesses_are_bounded_by_what_was_sent() {
        let mut reply = reply();
        assert_eq!(reply.heard(Duration::from_secs(9), 9_999, 24_000, None), 0, "nothing was sent");
        reply.send(1_000, 480);
        assert_eq!(reply.heard(Duration::ZERO, 1_240, 24_000, None), 240);
        assert_eq!(reply.heard(Duration::ZERO, 9_999, 24_000, None), 480);
        reply.report(Duration::ZERO, 100);
        assert_eq!(reply.heard(Duration::ZERO, 9_999, 24_000, None), 100, "the client knows better than the clock");
        assert_eq!(reply.heard(Duration::from_millis(10), 9_999, 24_000, None), 340);
        reply.report(Duration::from_millis(10), 99_999);
        assert_eq!(reply.heard(Duration::from_millis(10), 0, 24_000, None), 480);
        reply.cut(300);
        assert_eq!(reply.heard(Duration::from_secs(5), 9_999, 24_000, None), 300);
        assert_eq!(reply.waiting_bytes(), 0);
    }

    #[test]
    fn the_round_trip_is_added_to_a_word_that_comes_late_and_never_passes_the_clock() {
        let ms = Duration::from_millis;
        let late = |trip| Some(Late { trip: ms(trip), behind: None });
        let mut reply = Reply::new("r1".into(), "resp".into(), Times::default());
        reply.send(1_000, 24_000);
        assert_eq!(reply.heard(ms(300), 1_000 + 7_200, 24_000, late(100)), 7_200, "the clock as it is");
        reply.report(ms(300), 4_800);
        let heard = |reply: &Reply, played: u64, trip| reply.heard(ms(310), 1_000 + played, 24_000, trip);
        assert_eq!(heard(&reply, 7_440, None), 5_040, "a client that is not measured");
        assert_eq!(heard(&reply, 9_000, late(100)), 7_680);
        assert_eq!(heard(&reply, 7_000, late(100)), 7_000, "no loudspeaker is ahead of the clock");
        assert_eq!(heard(&reply, 4_000, late(100)), 4_800, "but for its own word");
        assert_eq!(heard(&reply, 99_000, late(60_000)), 24_000, "nor of what was sent");
    }

    #[test]
    fn a_loudspeaker_that_was_behind_is_behind_until_its_first_word() {
        let ms = Duration::from_millis;
        let mut late = Late { trip: ms(90), behind: None };
        let mut reply = Reply::new("r1".into(), "resp".into(), Times::default());
        reply.send(0, 24_000);
        reply.report(ms(400), 4_800);
        late.note(reply.behind(ms(400), 9_600, 24_000, late).unwrap());
        assert_eq!(late.behind, Some(2_400), "100 ms: 200 ms played and 100 under way, of 400");
        late.note(0);
        assert_eq!(late.behind, Some(1_800));
        late.note(reply.behind(ms(400), 6_000, 24_000, late).unwrap());
        assert_eq!(late.behind, Some(1_350), "never ahead");
        reply.report(ms(1_000), 24_000);
        assert_eq!(reply.behind(ms(1_000), 24_000, 24_000, late), None);
        let mut next = Reply::new("r2".into(), "resp".into(), Times::default());
        next.send(24_000, 24_000);
        assert_eq!(next.heard(ms(2_000), 24_000 + 4_800, 24_000, Some(late)), 4_800 - 1_350);
        assert_eq!(next.heard(ms(2_000), 24_000 + 480, 24_000, Some(late)), 0);
    }
}
