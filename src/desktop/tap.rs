//! The rings between a device's callbacks and us.
//!
//! [`Capture`] and [`Playback`] are the callbacks' ends: they never wait, lock or allocate. [`MicEnd`] and [`SpeakerEnd`]
//! are ours. Samples are mono, signed 16 bit, at the device's rate; a callback hands in and gets floats, which every
//! sample format can be made from, exactly for 16 bit.
//!
//! What a loudspeaker plays is counted in samples since it was opened. Each callback leaves a [`Stamp`]: which samples
//! it has handed to the device, and when they will be heard. That is the only source of what was heard.
use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use rtrb::{Consumer, Producer, RingBuffer};
use tokio::time::Instant;

/// What a microphone's ring holds: we take it out every few milliseconds.
const MIC_RING: Duration = Duration::from_secs(2);
/// What a loudspeaker's ring holds. What is dropped from it costs a callback nothing, so it may be long.
const SPEAKER_RING: Duration = Duration::from_millis(500);
/// Stamps that nobody has looked at: 10 s of callbacks that come every 10 ms.
const STAMPS: usize = 1_024;

/// How a stream fares. Written by its callbacks, read by us.
#[derive(Debug, Default)]
pub struct Health {
    callbacks: AtomicU64,
    errors: AtomicU64,
    gone: AtomicBool,
    end: OnceLock<String>,
    first: OnceLock<String>,
}

impl Health {
    /// Callbacks so far.
    pub fn callbacks(&self) -> u64 {
        self.callbacks.load(Ordering::Acquire)
    }

    /// Errors so far.
    pub fn errors(&self) -> u64 {
        self.errors.load(Ordering::Acquire)
    }

    /// The device said that it is gone.
    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    /// The text of the error that was the end, else of the first one.
    pub fn why(&self) -> Option<&str> {
        self.end.get().or_else(|| self.first.get()).map(String::as_str)
    }

    /// The device reports an error; `gone`: it will not come back by itself. Returns how many there have been.
    pub fn complain(&self, gone: bool, text: impl FnOnce() -> String) -> u64 {
        if gone {
            self.end.get_or_init(text);
            self.gone.store(true, Ordering::Release);
        } else {
            self.first.get_or_init(text);
        }
        self.errors.fetch_add(1, Ordering::AcqRel) + 1
    }
}

/// A ring for a microphone of this rate.
pub fn microphone(rate: u32) -> (Capture, MicEnd) {
    let (producer, consumer) = RingBuffer::new(samples(MIC_RING, rate));
    let shared = Arc::new(MicShared::default());
    (Capture { ring: producer, shared: Arc::clone(&shared) }, MicEnd { ring: consumer, shared, rate })
}

#[derive(Debug, Default)]
struct MicShared {
    health: Health,
    lost: AtomicU64,
    over: AtomicBool,
}

/// The microphone callback's end.
#[derive(Debug)]
pub struct Capture {
    ring: Producer<i16>,
    shared: Arc<MicShared>,
}

impl Capture {
    /// Interleaved samples of `channels` channels, mixed to one. What finds no room is lost, and counted.
    pub fn hear(&mut self, samples: impl IntoIterator<Item = f32>, channels: usize) {
        self.shared.health.callbacks.fetch_add(1, Ordering::AcqRel);
        let (mut sum, mut seen) = (0.0, 0);
        for sample in samples {
            sum += sample;
            seen += 1;
            if seen >= channels {
                let mixed = to_i16(sum / channels.max(1) as f32);
                if self.ring.push(mixed).is_err() {
                    self.shared.lost.fetch_add(1, Ordering::AcqRel);
                }
                (sum, seen) = (0.0, 0);
            }
        }
    }

    /// A recording is through; what follows is silence.
    pub fn is_over(&self) {
        self.shared.over.store(true, Ordering::Release);
    }

    /// For errors, which come on another path than samples.
    pub fn complaints(&self) -> Complaints {
        Complaints(Arc::clone(&self.shared) as Arc<dyn HasHealth>)
    }
}

/// Our end of a microphone.
#[derive(Debug)]
pub struct MicEnd {
    ring: Consumer<i16>,
    shared: Arc<MicShared>,
    rate: u32,
}

impl MicEnd {
    /// The device's rate, Hz.
    pub fn rate(&self) -> u32 {
        self.rate
    }

    /// How it fares.
    pub fn health(&self) -> &Health {
        &self.shared.health
    }

    /// Samples that found no room.
    pub fn lost(&self) -> u64 {
        self.shared.lost.load(Ordering::Acquire)
    }

    /// Whether a recording is through and all of it was taken.
    pub fn is_over(&self) -> bool {
        self.shared.over.load(Ordering::Acquire) && self.ring.is_empty()
    }

    /// Appends all that is there.
    pub fn take(&mut self, out: &mut Vec<i16>) {
        if let Ok(chunk) = self.ring.read_chunk(self.ring.slots()) {
            out.extend(chunk);
        }
    }
}

/// What one callback has handed to the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// The first of them, counted since the device was opened.
    pub first: u64,
    /// How many.
    pub count: u64,
    /// When the first of them is heard.
    pub heard_at: Instant,
}

/// A ring for a loudspeaker of this rate.
pub fn loudspeaker(rate: u32) -> (Playback, SpeakerEnd) {
    let (producer, consumer) = RingBuffer::new(samples(SPEAKER_RING, rate));
    let (stamp, stamps) = RingBuffer::new(STAMPS);
    let shared = Arc::new(SpeakerShared::default());
    let end = SpeakerEnd { ring: producer, stamps, shared: Arc::clone(&shared), written: 0, rate };
    (Playback { ring: consumer, stamps: stamp, shared, read: 0 }, end)
}

#[derive(Debug, Default)]
struct SpeakerShared {
    health: Health,
    /// Samples before this one shall not be played.
    drop_until: AtomicU64,
    /// Samples that are no longer in the ring: played or dropped.
    read: AtomicU64,
}

/// The loudspeaker callback's end.
#[derive(Debug)]
pub struct Playback {
    ring: Consumer<i16>,
    stamps: Producer<Stamp>,
    shared: Arc<SpeakerShared>,
    read: u64,
}

impl Playback {
    /// Fills `frames` by `put`, which gets each frame and its sample. The first of them is heard at `heard_at`; where
    /// there are no samples, silence is.
    pub fn fill<F>(
        &mut self,
        frames: impl ExactSizeIterator<Item = F>,
        heard_at: Instant,
        mut put: impl FnMut(F, f32),
    ) {
        self.shared.health.callbacks.fetch_add(1, Ordering::AcqRel);
        self.drop_what_is_cleared();
        let count = self.ring.slots().min(frames.len());
        let first = self.read;
        let mut taken = self.ring.read_chunk(count).ok().into_iter().flatten();
        for frame in frames {
            put(frame, taken.next().map_or(0.0, from_i16));
        }
        drop(taken);
        if count > 0 {
            self.read += count as u64;
            // Ours is the only other end, and looks often; where it does not, nothing is heard that could be told.
            let _full = self.stamps.push(Stamp { first, count: count as u64, heard_at });
        }
        // After the stamp: who sees the number sees the stamp.
        self.shared.read.store(self.read, Ordering::Release);
    }

    fn drop_what_is_cleared(&mut self) {
        let until = self.shared.drop_until.load(Ordering::Acquire);
        let over = usize::try_from(until.saturating_sub(self.read)).unwrap_or(usize::MAX).min(self.ring.slots());
        if let Ok(chunk) = self.ring.read_chunk(over) {
            chunk.commit_all();
            self.read += over as u64;
        }
    }

    /// For errors, which come on another path than samples.
    pub fn complaints(&self) -> Complaints {
        Complaints(Arc::clone(&self.shared) as Arc<dyn HasHealth>)
    }
}

/// Our end of a loudspeaker.
#[derive(Debug)]
pub struct SpeakerEnd {
    ring: Producer<i16>,
    stamps: Consumer<Stamp>,
    shared: Arc<SpeakerShared>,
    written: u64,
    rate: u32,
}

impl SpeakerEnd {
    /// The device's rate, Hz.
    pub fn rate(&self) -> u32 {
        self.rate
    }

    /// How it fares.
    pub fn health(&self) -> &Health {
        &self.shared.health
    }

    /// Samples that find room.
    pub fn room(&self) -> usize {
        self.ring.slots()
    }

    /// Samples given so far.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Gives samples; returns how many found room.
    pub fn give(&mut self, samples: &[i16]) -> usize {
        let (taken, _) = self.ring.push_partial_slice(samples);
        self.written += taken.len() as u64;
        taken.len()
    }

    /// Nothing that is in the ring now shall be played. Done at the next callback: [`Self::is_dropped`].
    pub fn drop_all(&mut self) {
        self.shared.drop_until.store(self.written, Ordering::Release);
    }

    /// Whether all that was to be dropped is.
    pub fn is_dropped(&self) -> bool {
        self.shared.read.load(Ordering::Acquire) >= self.shared.drop_until.load(Ordering::Acquire)
    }

    /// The oldest stamp that was not seen yet.
    pub fn stamp(&mut self) -> Option<Stamp> {
        self.stamps.pop().ok()
    }
}

/// Where a device's errors go.
#[derive(Clone)]
pub struct Complaints(Arc<dyn HasHealth>);

impl Complaints {
    /// See [`Health::complain`].
    pub fn complain(&self, gone: bool, text: impl FnOnce() -> String) -> u64 {
        self.0.health().complain(gone, text)
    }

    /// Callbacks of the same stream so far.
    pub fn callbacks(&self) -> u64 {
        self.0.health().callbacks()
    }
}

impl std::fmt::Debug for Complaints {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Complaints").field(self.0.health()).finish()
    }
}

trait HasHealth: Send + Sync {
    fn health(&self) -> &Health;
}

impl HasHealth for MicShared {
    fn health(&self) -> &Health {
        &self.health
    }
}

impl HasHealth for SpeakerShared {
    fn health(&self) -> &Health {
        &self.health
    }
}

/// Samples of `length` at `rate`.
fn samples(length: Duration, rate: u32) -> usize {
    usize::try_from(length.as_millis() * u128::from(rate) / 1_000).unwrap_or(usize::MAX)
}

const FULL_SCALE: f32 = 32_768.0;

#[expect(clippy::cast_possible_truncation, reason = "clamped to 16 bits; not a number becomes 0")]
fn to_i16(sample: f32) -> i16 {
    (sample * FULL_SCALE).round().clamp(-32_768.0, 32_767.0) as i16
}

fn from_i16(sample: i16) -> f32 {
    f32::from(sample) / FULL_SCALE
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(playback: &mut Playback, frames: usize, at: Instant) -> Vec<i16> {
        let mut out = vec![7.0_f32; frames];
        playback.fill(out.iter_mut(), at, |frame, sample| *frame = sample);
        out.into_iter().map(to_i16).collect()
    }

    #[test]
    fn every_sample_survives_the_floats_and_channels_are_mixed() {
        assert!((i16::MIN..=i16::MAX).all(|sample| to_i16(from_i16(sample)) == sample));
        assert_eq!([1.5, -2.0, f32::NAN].map(to_i16), [i16::MAX, i16::MIN, 0]);
        let (mut capture, mut end) = microphone(8_000);
        capture.hear([100, 200, -7, -9].map(from_i16), 2);
        capture.hear([5].map(from_i16), 1);
        let mut out = Vec::new();
        end.take(&mut out);
        assert_eq!((out, end.health().callbacks(), end.lost()), (vec![150, -8, 5], 2, 0));
        capture.is_over();
        assert!(end.is_over());
    }

    #[test]
    fn a_microphone_that_nobody_empties_loses_the_newest() {
        let (mut capture, mut end) = microphone(1_000);
        capture.hear((0..2_500).map(from_i16), 1);
        assert_eq!(end.lost(), 500);
        capture.is_over();
        assert!(!end.is_over(), "there is still something to take");
        let mut out = Vec::new();
        end.take(&mut out);
        assert_eq!((out.len(), out[0], out[1_999]), (2_000, 0, 1_999));
    }

    #[test]
    fn what_was_dropped_is_not_played_and_what_was_played_is_stamped() {
        let (mut playback, mut end) = loudspeaker(1_000);
        let at = Instant::now();
        assert_eq!(fill(&mut playback, 2, at), [0, 0], "silence");
        assert_eq!((end.room(), end.give(&[1, 2, 3, 4, 5])), (500, 5));
        assert_eq!(fill(&mut playback, 2, at), [1, 2]);
        end.drop_all();
        assert!(!end.is_dropped());
        assert_eq!(end.give(&[6, 7]), 2, "behind what is dropped");
        assert_eq!(fill(&mut playback, 3, at), [6, 7, 0]);
        assert!(end.is_dropped());
        let stamps: Vec<Stamp> = std::iter::from_fn(|| end.stamp()).collect();
        let want = [(0, 2), (5, 2)].map(|(first, count)| Stamp { first, count, heard_at: at });
        assert_eq!(stamps, want);
        assert_eq!((end.written(), end.room(), end.health().callbacks()), (7, 500, 3));
        assert_eq!((end.give(&[0; 600]), end.give(&[1])), (500, 0));
    }

    #[test]
    fn callbacks_do_not_allocate() {
        let (mut capture, _mic) = microphone(48_000);
        let (mut playback, mut end) = loudspeaker(48_000);
        let (mut frames, now) = ([0.0_f32; 960], Instant::now());
        end.give(&[7; 960]);
        let counted = allocation_counter::measure(|| {
            capture.hear(frames.iter().copied(), 2);
            playback.fill(frames.chunks_exact_mut(2), now, |frame, sample| frame.fill(sample));
            end.drop_all();
            playback.fill(frames.chunks_exact_mut(2), now, |frame, sample| frame.fill(sample));
        });
        assert_eq!((counted.count_total, end.is_dropped()), (0, true));
    }

    #[test]
    fn a_device_that_complains_is_counted_and_quoted_once() {
        let (playback, end) = loudspeaker(1_000);
        let complaints = playback.complaints();
        assert_eq!(complaints.complain(false, || "a click".into()), 1);
        assert_eq!((end.health().is_gone(), end.health().why()), (false, Some("a click")));
        assert_eq!(complaints.complain(true, || "unplugged".into()), 2);
        complaints.complain(true, || unreachable!("one text is enough"));
        assert_eq!((end.health().is_gone(), end.health().errors(), end.health().why()), (true, 3, Some("unplugged")));
    }
}
