//! A recording on its way into a call, as a phone would send it: one frame every 20 ms.
//!
//! Pure: frames are encoded beforehand, time comes in as `now`, the duration since some start. Deadlines are absolute,
//! so a late wake-up does not make all that follow late.
use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;

use crate::audio::Format;

/// Length of a frame.
pub const FRAME: Duration = Duration::from_millis(20);

/// Sends a recording, then silence or nothing.
#[derive(Debug)]
pub struct Microphone {
    frames: VecDeque<Bytes>,
    silence: Option<Bytes>,
    opened_at: Option<Duration>,
    sent: u32,
}

impl Microphone {
    /// `frames` of [`FRAME`] each, in the agreed format. When they are through, `silence` is repeated for as long as the
    /// call lasts, so that a service that listens for the end of a turn can hear it; `None`: nothing more is sent.
    pub fn new(frames: impl IntoIterator<Item = Bytes>, silence: Option<Bytes>) -> Self {
        Self { frames: frames.into_iter().collect(), silence, opened_at: None, sent: 0 }
    }

    /// A microphone that hears nothing and sends nothing.
    pub fn mute() -> Self {
        Self::new([], None)
    }

    /// Begins to record. The first frame is full, and due, one frame later. Opening twice changes nothing.
    pub fn open(&mut self, now: Duration) {
        self.opened_at.get_or_insert(now);
    }

    /// Puts more frames behind those that wait.
    pub fn say(&mut self, frames: impl IntoIterator<Item = Bytes>) {
        self.frames.extend(frames);
    }

    /// When the next frame is due; `None`: there is none, or it is not open.
    pub fn deadline(&self) -> Option<Duration> {
        if self.frames.is_empty() && self.silence.is_none() {
            return None;
        }
        self.opened_at.map(|at| at + FRAME * (self.sent + 1))
    }

    /// The next frame, if it is due. Call until it says `None`: after a long sleep several are.
    pub fn take(&mut self, now: Duration) -> Option<Bytes> {
        if self.deadline().is_none_or(|at| now < at) {
            return None;
        }
        self.sent = self.sent.saturating_add(1);
        self.frames.pop_front().or_else(|| self.silence.clone())
    }

    /// Whether the recording is through; silence may follow.
    pub fn is_done(&self) -> bool {
        self.frames.is_empty()
    }

    /// Audio sent so far, silence included.
    pub fn sent(&self) -> Duration {
        FRAME * self.sent
    }
}

/// Cuts PCM or G.711 bytes into frames and fills the last up with silence. Opus has no bytes that could be cut: its
/// packets are the frames. `None` for it.
pub fn cut(audio: &[u8], format: Format) -> Option<Vec<Bytes>> {
    let size = format.bytes(FRAME);
    (size > 0).then(|| {
        let mut frames: Vec<Bytes> = audio.chunks(size).map(Bytes::copy_from_slice).collect();
        if let Some(last) = frames.last_mut().filter(|last| last.len() < size) {
            let mut full = last.to_vec();
            full.resize(size, format.silence());
            *last = full.into();
        }
        frames
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn t(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn frames(n: u8) -> Vec<Bytes> {
        (0..n).map(|i| Bytes::from(vec![i])).collect()
    }

    #[test]
    fn frames_leave_at_absolute_moments() {
        let mut mic = Microphone::new(frames(4), None);
        assert_eq!(mic.deadline(), None, "not open");
        mic.open(t(1_000));
        assert_eq!((mic.deadline(), mic.take(t(1_019))), (Some(t(1_020)), None));
        assert_eq!(mic.take(t(1_020)).unwrap()[..], [0]);
        assert_eq!(mic.take(t(1_020)), None);
        // A wake-up 15 ms late does not move the next deadline.
        assert_eq!(mic.take(t(1_055)).unwrap()[..], [1]);
        assert_eq!(mic.deadline(), Some(t(1_060)));
        // After a long sleep all that is due comes at once.
        assert_eq!((mic.take(t(9_000)).unwrap()[0], mic.take(t(9_000)).unwrap()[0]), (2, 3));
        assert!(mic.is_done());
        assert_eq!((mic.take(t(9_000)), mic.deadline(), mic.sent()), (None, None, t(80)));
    }

    #[test]
    fn silence_follows_for_as_long_as_one_listens() {
        let mut mic = Microphone::new(frames(1), Some(Bytes::from_static(b"-")));
        mic.open(t(0));
        let sent: Vec<Bytes> = std::iter::from_fn(|| mic.take(t(100))).collect();
        assert_eq!(sent, [Bytes::from(vec![0]), "-".into(), "-".into(), "-".into(), "-".into()]);
        assert!(mic.is_done());
        mic.say(frames(1));
        assert_eq!((mic.is_done(), mic.take(t(120)).unwrap()[0]), (false, 0));
        assert_eq!(Microphone::mute().deadline(), None);
    }

    #[test]
    fn cutting_loses_nothing_and_fills_up_the_last() {
        let frames = cut(&[7; 330], Format::MULAW).unwrap();
        assert_eq!(frames.iter().map(Bytes::len).collect::<Vec<_>>(), [160, 160, 160]);
        assert_eq!(frames[2][..11], [7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 0xFF]);
        assert_eq!(cut(&[1; 960], Format::PCM_24K).unwrap().len(), 1);
        assert_eq!(cut(&[], Format::PCM_24K).unwrap().len(), 0);
        assert_eq!(cut(&[1], Format::OPUS), None);
    }
}
