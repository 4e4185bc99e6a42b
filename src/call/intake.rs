//! What the client may send, and the count of it.
//!
//! Counts messages for `ack`, meters audio against the clock, and loses patience with nonsense. Knows nothing of turns.
use std::{collections::VecDeque, time::Duration};

use serde::{Deserialize, Serialize};

use super::At;

/// Audio may come this many times faster than it plays ... (fault matrix C8)
const MAX_SPEED: f64 = 4.0;
/// ... with a burst of this much on top.
const BURST: Duration = Duration::from_secs(30);
/// So long may a client go on sending too fast.
const TOO_FAST_PATIENCE: Duration = Duration::from_secs(10);
/// Refusals further apart than this are separate incidents.
const TOO_FAST_PAUSE: Duration = Duration::from_secs(2);
/// So many bad messages in [`BAD_WINDOW`] end a call (fault matrix C6).
const BAD_MESSAGES: usize = 20;
const BAD_WINDOW: Duration = Duration::from_secs(10);
/// Audio is acknowledged at least once a second.
const ACK_EVERY: Duration = Duration::from_millis(900);

/// What becomes of an audio message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AudioVerdict {
    /// Taken.
    Taken,
    /// Refused; `tell` the client, which is not done for every single message.
    TooFast {
        /// Say so.
        tell: bool,
    },
    /// Refused once too often.
    Enough,
}

/// One client's account.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Intake {
    messages: u64,
    audio: Duration,
    allowance: Duration,
    metered_at: At,
    too_fast: Option<(At, At)>,
    told_too_fast: Option<At>,
    bad: VecDeque<At>,
    ack_due: Option<At>,
}

impl Default for Intake {
    fn default() -> Self {
        Self {
            messages: 0,
            audio: Duration::ZERO,
            allowance: BURST,
            metered_at: Duration::ZERO,
            too_fast: None,
            told_too_fast: None,
            bad: VecDeque::new(),
            ack_due: None,
        }
    }
}

impl Intake {
    /// One text or binary message came, good or bad.
    pub fn count(&mut self) {
        self.messages += 1;
    }

    /// Messages so far.
    pub fn messages(&self) -> u64 {
        self.messages
    }

    /// Audio taken so far.
    pub fn audio(&self) -> Duration {
        self.audio
    }

    /// Meters an audio message.
    pub fn take_audio(&mut self, now: At, length: Duration) -> AudioVerdict {
        let refill = now.saturating_sub(self.metered_at).mul_f64(MAX_SPEED);
        // What was granted beyond the burst is used up, and does not come again.
        self.allowance = (self.allowance + refill).min(BURST.max(self.allowance));
        self.metered_at = now;
        let Some(left) = self.allowance.checked_sub(length) else { return self.refuse(now) };
        self.allowance = left;
        self.audio += length;
        self.ack_due.get_or_insert(now + ACK_EVERY);
        AudioVerdict::Taken
    }

    /// The client was away, or not heard, for so long: what it could have sent meanwhile it may send now, at once.
    pub fn resumed(&mut self, now: At, away: Duration) {
        self.allowance = BURST + away.mul_f64(MAX_SPEED);
        self.metered_at = now;
        self.too_fast = None;
    }

    fn refuse(&mut self, now: At) -> AudioVerdict {
        let first = match self.too_fast {
            Some((first, last)) if now.saturating_sub(last) < TOO_FAST_PAUSE => first,
            _ => now,
        };
        self.too_fast = Some((first, now));
        if now.saturating_sub(first) >= TOO_FAST_PATIENCE {
            return AudioVerdict::Enough;
        }
        let tell = self.told_too_fast.is_none_or(|at| now.saturating_sub(at) >= Duration::from_secs(1));
        if tell {
            self.told_too_fast = Some(now);
        }
        AudioVerdict::TooFast { tell }
    }

    /// One bad message; `true`: one too many.
    pub fn bad_message(&mut self, now: At) -> bool {
        self.bad.retain(|at| now.saturating_sub(*at) < BAD_WINDOW);
        self.bad.push_back(now);
        self.bad.len() >= BAD_MESSAGES
    }

    /// When an `ack` is due.
    pub fn ack_due(&self) -> Option<At> {
        self.ack_due
    }

    /// The `ack` was sent.
    pub fn acked(&mut self) {
        self.ack_due = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAME: Duration = Duration::from_millis(20);

    /// Sends audio `speed` times faster than real time for `secs` s; the verdicts that were no `Taken`.
    fn refused(speed: u32, secs: u64) -> Vec<AudioVerdict> {
        let mut intake = Intake::default();
        let mut now = Duration::ZERO;
        let mut out = Vec::new();
        while now < Duration::from_secs(secs) {
            let verdict = intake.take_audio(now, FRAME);
            if verdict != AudioVerdict::Taken {
                out.push(verdict);
            }
            now += FRAME / speed;
        }
        out
    }

    #[test]
    fn four_times_real_time_is_allowed_and_more_is_not() {
        assert_eq!(refused(1, 60), []);
        assert_eq!(refused(2, 60), [], "twice the agreed rate is a client's right");
        assert_eq!(refused(4, 60), []);
        let ten = refused(10, 60);
        assert_eq!(ten[0], AudioVerdict::TooFast { tell: true });
        assert_eq!(ten[1], AudioVerdict::TooFast { tell: false });
        assert_eq!(ten.last(), Some(&AudioVerdict::Enough));
        // 30 s of burst go in 30 / (10 - 4) = 5 s; ten seconds of refusals later it is enough.
        assert_eq!(refused(10, 14).iter().filter(|v| **v == AudioVerdict::Enough).count(), 0);
        assert_eq!(ten.iter().filter(|v| **v == AudioVerdict::TooFast { tell: true }).count(), 10);
    }

    #[test]
    fn a_burst_of_thirty_seconds_is_taken_at_once() {
        let mut intake = Intake::default();
        assert_eq!(intake.take_audio(Duration::ZERO, Duration::from_secs(30)), AudioVerdict::Taken);
        assert_eq!(intake.take_audio(Duration::ZERO, FRAME), AudioVerdict::TooFast { tell: true });
        assert_eq!(intake.take_audio(FRAME, FRAME), AudioVerdict::Taken);
        assert_eq!(intake.audio(), Duration::from_millis(30_020));
    }

    #[test]
    fn what_was_said_while_away_may_come_at_once() {
        let mut intake = Intake::default();
        intake.take_audio(Duration::ZERO, BURST);
        intake.resumed(Duration::from_secs(30), Duration::from_secs(30));
        assert_eq!(intake.take_audio(Duration::from_secs(30), Duration::from_secs(150)), AudioVerdict::Taken);
        assert!(matches!(intake.take_audio(Duration::from_secs(30), FRAME), AudioVerdict::TooFast { .. }));
    }

    #[test]
    fn twenty_bad_messages_in_ten_seconds_are_too_many() {
        let mut intake = Intake::default();
        let at = |n: u32| Duration::from_millis(600) * n;
        assert!((0..100).all(|n| !intake.bad_message(at(n))), "one each 600 ms is 17 in ten seconds");
        let mut intake = Intake::default();
        assert_eq!((0..30).position(|n| intake.bad_message(at(n) / 2)), Some(19));
    }

    #[test]
    fn audio_is_acknowledged_within_a_second() {
        let mut intake = Intake::default();
        intake.take_audio(Duration::from_secs(1), FRAME);
        intake.take_audio(Duration::from_secs(2), FRAME);
        assert_eq!(intake.ack_due(), Some(Duration::from_millis(1_900)));
        intake.acked();
        assert_eq!(intake.ack_due(), None);
    }
}
