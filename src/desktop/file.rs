//! Recordings in place of devices, at the speed of time: a file as the microphone, and what the loudspeaker plays into
//! another.
//!
//! For machines without sound, and for tests: it keeps tokio's clock, takes any rate and number of channels, has a
//! latency if it shall, and can be made to disappear.
use std::{
    collections::VecDeque,
    fmt,
    fs::File,
    io::BufWriter,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use hound::{SampleFormat, WavSpec, WavWriter};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};

use super::{
    io::{AudioIo, DeviceError, Running, Side, Want},
    tap::{self, Complaints, MicEnd, SpeakerEnd},
};
use crate::audio::decode::{DecodeError, decode_file};

/// The end of a recording is told so much later: by then the frame that holds its last sample is full.
const SETTLED: Duration = Duration::from_millis(40);
/// Errors of a device that reports nothing else any more.
const STORM: usize = 1_000;

/// How a device is lost, for tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// It says that it is gone.
    Gone,
    /// It reports errors, a thousand at once, none of which says that it is gone.
    Storm,
    /// It never calls again.
    Silence,
}

/// What one opening of a device comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It cannot be opened.
    Refused,
    /// It is lost after so long.
    Lost(Duration, Loss),
}

/// A file that is a microphone or a loudspeaker. Beyond its script it always opens and stays.
pub struct FileIo {
    name: String,
    rate: u32,
    channels: usize,
    latency: Duration,
    script: Mutex<VecDeque<Fate>>,
    half: Half,
}

enum Half {
    Microphone { samples: Arc<[i16]>, place: Arc<AtomicUsize> },
    Loudspeaker { tape: Arc<Tape> },
}

impl FileIo {
    /// A recording in any usual format, as a microphone that records at `rate` Hz. After its end it hears silence.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn microphone(path: &Path, rate: u32) -> Result<Self, DecodeError> {
        let recording = decode_file(path, rate)?;
        let half = Half::Microphone { samples: recording.samples.into(), place: Arc::default() };
        Ok(Self::new(path, rate, half))
    }

    /// A wav file as a loudspeaker that plays at `rate` Hz: everything from its opening on, silence too.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn loudspeaker(path: &Path, rate: u32) -> Result<Self, hound::Error> {
        let spec = WavSpec { channels: 1, sample_rate: rate, bits_per_sample: 16, sample_format: SampleFormat::Int };
        let tape = Arc::new(Tape(Mutex::new(WavWriter::create(path, spec)?)));
        Ok(Self::new(path, rate, Half::Loudspeaker { tape }))
    }

    fn new(path: &Path, rate: u32, half: Half) -> Self {
        let name = path.display().to_string();
        Self { name, rate, channels: 1, latency: Duration::ZERO, script: Mutex::default(), half }
    }

    /// So many channels: a microphone hears the same on all of them.
    #[must_use]
    pub fn with_channels(self, channels: usize) -> Self {
        Self { channels, ..self }
    }

    /// A loudspeaker that is heard so long after it was given its samples.
    #[must_use]
    pub fn with_latency(self, latency: Duration) -> Self {
        Self { latency, ..self }
    }

    /// What the next openings come to.
    #[must_use]
    pub fn with_script(self, script: impl IntoIterator<Item = Fate>) -> Self {
        Self { script: Mutex::new(script.into_iter().collect()), ..self }
    }

    fn fate(&self, side: Side) -> Result<Option<(Duration, Loss)>, DeviceError> {
        match self.script.lock().unwrap_or_else(PoisonError::into_inner).pop_front() {
            Some(Fate::Refused) => {
                Err(DeviceError::Failed { side, device: self.name.clone(), why: "it was told to".to_owned() })
            }
            Some(Fate::Lost(after, loss)) => Ok(Some((after, loss))),
            None => Ok(None),
        }
    }
}

impl fmt::Debug for FileIo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileIo").field("name", &self.name).field("rate", &self.rate).finish_non_exhaustive()
    }
}

impl AudioIo for FileIo {
    fn open_microphone(&self, want: &Want) -> Result<Running<MicEnd>, DeviceError> {
        let side = Side::Microphone;
        let Half::Microphone { samples, place } = &self.half else { return Err(DeviceError::None { side }) };
        let fate = self.fate(side)?;
        let (mut capture, end) = tap::microphone(self.rate);
        let (samples, place, channels) = (Arc::clone(samples), Arc::clone(place), self.channels);
        let complaints = capture.complaints();
        let settled = samples.len() + self.frames(SETTLED);
        let period = self.frames(want.period).max(1);
        let mut task = JoinSet::new();
        task.spawn(paced(want.period, fate, complaints, move |_| {
            let at = place.fetch_add(period, Ordering::AcqRel);
            let piece = (at..at + period).map(|n| samples.get(n).copied().unwrap_or(0));
            let piece = piece.flat_map(|sample| std::iter::repeat_n(f32::from(sample) / 32_768.0, channels));
            capture.hear(piece, channels);
            if at + period >= settled {
                capture.is_over();
            }
        }));
        Ok(Running { device: self.name.clone(), end, guard: Box::new(task) })
    }

    fn open_loudspeaker(&self, want: &Want) -> Result<Running<SpeakerEnd>, DeviceError> {
        let side = Side::Loudspeaker;
        let Half::Loudspeaker { tape } = &self.half else { return Err(DeviceError::None { side }) };
        let fate = self.fate(side)?;
        let (mut playback, end) = tap::loudspeaker(self.rate);
        let complaints = playback.complaints();
        let mut frames = vec![0.0_f32; self.frames(want.period).max(1) * self.channels];
        let (channels, latency) = (self.channels, self.latency);
        let (writer, told) = (Arc::clone(tape), complaints.clone());
        let mut task = JoinSet::new();
        task.spawn(paced(want.period, fate, complaints, move |now| {
            playback.fill(frames.chunks_exact_mut(channels), now + latency, |frame, sample| frame.fill(sample));
            if let Err(error) = writer.write(frames.iter().step_by(channels)) {
                told.complain(true, || format!("cannot be written: {error}"));
            }
        }));
        let guard = Box::new((task, Flush(Arc::clone(tape))));
        Ok(Running { device: self.name.clone(), end, guard })
    }
}

impl FileIo {
    fn frames(&self, length: Duration) -> usize {
        usize::try_from(length.as_millis() * u128::from(self.rate) / 1_000).unwrap_or(usize::MAX)
    }
}

/// Calls back every `period`, at absolute moments, until the device is lost.
async fn paced(
    period: Duration,
    fate: Option<(Duration, Loss)>,
    complaints: Complaints,
    mut callback: impl FnMut(Instant),
) {
    let began = Instant::now();
    let mut at = began;
    loop {
        at += period;
        sleep_until(at).await;
        match fate.filter(|(after, _)| at > began + *after) {
            None => callback(at),
            Some((_, loss)) => {
                let (gone, errors) = match loss {
                    Loss::Gone => (true, 1),
                    Loss::Storm => (false, STORM),
                    Loss::Silence => (false, 0),
                };
                (0..errors).for_each(|_| {
                    complaints.complain(gone, || "the script says so".to_owned());
                });
                return;
            }
        }
    }
}

/// What a loudspeaker has played.
struct Tape(Mutex<WavWriter<BufWriter<File>>>);

impl Tape {
    fn write<'a>(&self, samples: impl Iterator<Item = &'a f32>) -> Result<(), hound::Error> {
        let mut wav = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        #[expect(clippy::cast_possible_truncation, reason = "these were 16 bits before")]
        samples.map(|sample| (sample * 32_768.0) as i16).try_for_each(|sample| wav.write_sample(sample))
    }
}

/// Makes the file whole when the device is closed.
struct Flush(Arc<Tape>);

impl Drop for Flush {
    fn drop(&mut self) {
        // A disk that is full was complained of by the callback.
        let _full = self.0.0.lock().unwrap_or_else(PoisonError::into_inner).flush();
    }
}
