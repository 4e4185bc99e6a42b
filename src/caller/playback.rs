//! A virtual loudspeaker: plays what it is given, at the speed of time, and knows what has been heard.
//!
//! Stands between the call and whatever the audio goes to. Pure: holds lengths, no samples; time comes in as `now`, the
//! duration since some start, and never runs backwards.
use std::{collections::VecDeque, sync::Arc, time::Duration};

/// Plays replies one after the other, in the order in which their audio came.
#[derive(Debug)]
pub struct Loudspeaker {
    report_every: Duration,
    /// Queued or playing, oldest first, each starting where or after the one before ends.
    line: VecDeque<Stretch>,
    tracks: Vec<Track>,
    /// When the queue has run dry, or will.
    dry_at: Duration,
    last_report: Duration,
    /// A stretch ended then and its track has not been reported since.
    report_due: Option<Duration>,
    underruns: u64,
    underrun_time: Duration,
}

/// Audio of one reply without a gap in it.
#[derive(Debug, Clone, Copy)]
struct Stretch {
    track: usize,
    start: Duration,
    len: Duration,
}

impl Stretch {
    fn end(&self) -> Duration {
        self.start + self.len
    }

    fn played(&self, now: Duration) -> Duration {
        now.saturating_sub(self.start).min(self.len)
    }
}

/// What is known of one reply.
#[derive(Debug)]
struct Track {
    reply: Arc<str>,
    received: Duration,
    /// Played of stretches that are no longer in the line.
    played: Duration,
    /// Its audio is no longer taken.
    cleared: bool,
    reported_ms: u64,
}

impl Loudspeaker {
    /// A silent one that wants to report positions every `report_every` while it plays.
    pub fn new(report_every: Duration) -> Self {
        Self {
            report_every,
            line: VecDeque::new(),
            tracks: Vec::new(),
            dry_at: Duration::ZERO,
            last_report: Duration::ZERO,
            report_due: None,
            underruns: 0,
            underrun_time: Duration::ZERO,
        }
    }

    /// Takes `len` of `reply`'s audio. `false`: dropped, since this reply was cleared.
    pub fn push(&mut self, now: Duration, reply: &Arc<str>, len: Duration) -> bool {
        self.advance(now);
        let index = self.track_or_new(reply);
        let Some(track) = self.tracks.get_mut(index) else { return false };
        if track.cleared {
            return false;
        }
        if now > self.dry_at && track.received > Duration::ZERO {
            self.underruns += 1;
            self.underrun_time += now - self.dry_at;
        }
        if self.line.is_empty() && track.played == Duration::ZERO {
            self.last_report = now;
        }
        track.received += len;
        let start = self.dry_at.max(now);
        match self.line.back_mut() {
            Some(last) if last.track == index && last.end() == start => last.len += len,
            _ => self.line.push_back(Stretch { track: index, start, len }),
        }
        self.dry_at = start + len;
        true
    }

    /// Drops what is queued of `reply` and takes no more of it. Returns how much of it was heard.
    pub fn clear(&mut self, now: Duration, reply: &str) -> Duration {
        self.advance(now);
        let Some(index) = self.tracks.iter().position(|t| &*t.reply == reply) else { return Duration::ZERO };
        let mut cursor = now;
        let mut heard = Duration::ZERO;
        self.line.retain_mut(|stretch| {
            if stretch.track == index {
                heard += stretch.played(now);
                return false;
            }
            if stretch.start > now {
                stretch.start = cursor;
            }
            cursor = stretch.end();
            true
        });
        self.dry_at = self.dry_at.min(cursor);
        let Some(track) = self.tracks.get_mut(index) else { return Duration::ZERO };
        track.cleared = true;
        track.played += heard;
        if ms(track.played) != track.reported_ms {
            self.report_due.get_or_insert(now);
        }
        track.played
    }

    /// How much of `reply` has been heard.
    pub fn position(&self, now: Duration, reply: &str) -> Duration {
        self.tracks.iter().position(|t| &*t.reply == reply).map_or(Duration::ZERO, |index| self.heard(now, index))
    }

    /// How long the queue still plays.
    pub fn queued(&self, now: Duration) -> Duration {
        self.dry_at.saturating_sub(now)
    }

    /// The reply that is being heard.
    pub fn playing(&self, now: Duration) -> Option<&str> {
        let stretch = self.line.iter().find(|s| s.start <= now && now < s.end())?;
        self.tracks.get(stretch.track).map(|t| &*t.reply)
    }

    /// How often a reply's audio ran dry and then went on, and for how long in all.
    pub fn underruns(&self) -> (u64, Duration) {
        (self.underruns, self.underrun_time)
    }

    /// When [`Self::report`] has something to say; `None`: not before more audio comes.
    pub fn deadline(&self) -> Option<Duration> {
        if self.report_due.is_some() {
            return self.report_due;
        }
        self.line.front().map(|first| first.end().min(self.last_report.max(first.start) + self.report_every))
    }

    /// A reply and how many ms of it have been heard: every so often while it plays, and once when it stops. Call until
    /// it says `None`.
    pub fn report(&mut self, now: Duration) -> Option<(Arc<str>, u64)> {
        self.advance(now);
        if self.deadline().is_none_or(|at| now < at) {
            return None;
        }
        for index in 0..self.tracks.len() {
            let heard = ms(self.heard(now, index));
            let Some(track) = self.tracks.get_mut(index) else { break };
            if track.reported_ms != heard {
                track.reported_ms = heard;
                return Some((Arc::clone(&track.reply), heard));
            }
        }
        self.last_report = now;
        self.report_due = None;
        None
    }

    /// Moves what has been played from the line to its track.
    fn advance(&mut self, now: Duration) {
        while let Some(first) = self.line.front().copied().filter(|first| first.end() <= now) {
            self.line.pop_front();
            if let Some(track) = self.tracks.get_mut(first.track) {
                track.played += first.len;
            }
            self.report_due.get_or_insert(first.end());
        }
    }

    fn heard(&self, now: Duration, index: usize) -> Duration {
        let queued: Duration = self.line.iter().filter(|s| s.track == index).map(|s| s.played(now)).sum();
        self.tracks.get(index).map_or(Duration::ZERO, |t| t.played) + queued
    }

    fn track_or_new(&mut self, reply: &Arc<str>) -> usize {
        self.tracks.iter().position(|t| t.reply == *reply).unwrap_or_else(|| {
            self.tracks.push(Track {
                reply: Arc::clone(reply),
                received: Duration::ZERO,
                played: Duration::ZERO,
                cleared: false,
                reported_ms: 0,
            });
            self.tracks.len() - 1
        })
    }
}

fn ms(length: Duration) -> u64 {
    u64::try_from(length.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn t(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// A loudspeaker that got `frames` frames of 20 ms of reply `r1` at `at`.
    fn playing(at: u64, frames: usize) -> (Loudspeaker, Arc<str>) {
        let (mut speaker, reply) = (Loudspeaker::new(t(100)), Arc::from("r1"));
        for _ in 0..frames {
            assert!(speaker.push(t(at), &reply, t(20)));
        }
        (speaker, reply)
    }

    /// Every report and its moment up to `until`, as a driver would make them.
    fn reports(speaker: &mut Loudspeaker, until: u64) -> Vec<(u64, String, u64)> {
        let mut all = Vec::new();
        while let Some(at) = speaker.deadline().filter(|at| *at <= t(until)) {
            while let Some((reply, heard)) = speaker.report(at) {
                all.push((ms(at), reply.to_string(), heard));
            }
        }
        all
    }

    #[test]
    fn plays_at_the_speed_of_time() {
        let (speaker, _) = playing(1_000, 10);
        for (now, heard, queued) in
            [(1_000, 0, 200), (1_007, 7, 193), (1_199, 199, 1), (1_200, 200, 0), (9_000, 200, 0)]
        {
            assert_eq!((speaker.position(t(now), "r1"), speaker.queued(t(now))), (t(heard), t(queued)), "{now}");
        }
        assert_eq!((speaker.playing(t(1_199)), speaker.playing(t(1_200))), (Some("r1"), None));
        assert_eq!(speaker.position(t(1_100), "unknown"), t(0));
    }

    #[test]
    fn a_late_frame_is_an_underrun_and_a_late_reply_is_not() {
        let (mut speaker, reply) = playing(0, 2);
        speaker.push(t(40), &reply, t(20)); // just in time
        assert_eq!(speaker.underruns(), (0, t(0)));
        speaker.push(t(75), &reply, t(20)); // dry since 60
        assert_eq!(speaker.underruns(), (1, t(15)));
        assert_eq!(speaker.position(t(80), "r1"), t(65));
        speaker.push(t(500), &Arc::from("r2"), t(20));
        assert_eq!(speaker.underruns(), (1, t(15)));
    }

    #[test]
    fn a_clear_cuts_at_what_was_heard_and_stays_cut() {
        let (mut speaker, reply) = playing(0, 10);
        assert_eq!(speaker.clear(t(50), "r1"), t(50));
        assert_eq!(speaker.queued(t(50)), t(0));
        assert!(!speaker.push(t(60), &reply, t(20)), "the rest of a cleared reply");
        assert_eq!(speaker.position(t(900), "r1"), t(50));
        assert_eq!(speaker.clear(t(900), "r1"), t(50), "twice changes nothing");
        assert_eq!(speaker.clear(t(900), "unknown"), t(0));
        assert!(speaker.push(t(1_000), &Arc::from("r2"), t(20)));
        assert_eq!(speaker.position(t(1_010), "r2"), t(10));
        assert_eq!(speaker.underruns(), (0, t(0)));
    }

    #[test]
    fn what_is_queued_behind_a_cleared_reply_moves_up() {
        let (mut speaker, _) = playing(0, 5);
        let (second, third) = (Arc::from("r2"), Arc::from("r3"));
        speaker.push(t(0), &second, t(60)); // 100..160
        speaker.push(t(0), &third, t(20)); // 160..180
        assert_eq!(speaker.clear(t(30), "r2"), t(0));
        assert_eq!((speaker.queued(t(30)), speaker.position(t(120), "r3")), (t(90), t(20)));
        assert_eq!(speaker.clear(t(40), "r1"), t(40));
        assert_eq!((speaker.queued(t(40)), speaker.playing(t(41))), (t(20), Some("r3")));
        assert_eq!(speaker.position(t(200), "r1"), t(40));
    }

    #[test]
    fn reports_come_on_time_and_once_at_the_end() {
        let (mut speaker, _) = playing(1_000, 13);
        let want = [(1_100, 100), (1_200, 200), (1_260, 260)].map(|(at, heard)| (at, "r1".to_owned(), heard));
        assert_eq!(reports(&mut speaker, 9_000), want);
        assert_eq!(speaker.deadline(), None);
    }

    #[test]
    fn a_clear_is_reported_at_once() {
        let (mut speaker, _) = playing(0, 10);
        speaker.clear(t(42), "r1");
        assert_eq!(reports(&mut speaker, 9_000), [(42, "r1".to_owned(), 42)]);
        assert_eq!(speaker.deadline(), None);
    }

    #[test]
    fn two_replies_are_reported_apart() {
        let (mut speaker, _) = playing(0, 3);
        speaker.push(t(0), &Arc::from("r2"), t(20));
        let want = [(60, "r1", 60), (80, "r2", 20)].map(|(at, reply, heard)| (at, reply.to_owned(), heard));
        assert_eq!(reports(&mut speaker, 9_000), want);
    }

    proptest! {
        /// Whatever comes when: positions never go back, never pass what was taken, and end at it unless cleared.
        #[test]
        fn heard_never_runs_backwards(steps in prop::collection::vec((0u64..80, 0usize..3, 0u64..60, 0u32..12), 1..80)) {
            let replies: Vec<Arc<str>> = ["a", "b", "c"].map(Arc::from).to_vec();
            let mut speaker = Loudspeaker::new(t(100));
            let (mut now, mut taken, mut seen, mut cleared) = (t(0), [t(0); 3], [t(0); 3], [false; 3]);
            for (wait, which, len, what) in steps {
                now += t(wait);
                if what == 0 {
                    speaker.clear(now, &replies[which]);
                    cleared[which] |= taken[which] > t(0);
                } else if speaker.push(now, &replies[which], t(len)) {
                    taken[which] += t(len);
                }
                while speaker.report(now).is_some() {}
                for i in 0..3 {
                    let heard = speaker.position(now, &replies[i]);
                    prop_assert!(seen[i] <= heard && heard <= taken[i], "{} {heard:?} {seen:?} {taken:?}", i);
                    seen[i] = heard;
                }
            }
            now += speaker.queued(now);
            for i in 0..3 {
                let heard = speaker.position(now, &replies[i]);
                prop_assert!(heard == taken[i] || cleared[i] && heard < taken[i], "{} of {:?}", i, taken[i]);
            }
            while speaker.report(now).is_some() {}
            prop_assert_eq!(speaker.deadline(), None);
        }
    }
}
