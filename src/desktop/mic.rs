//! From a microphone's ring to frames of 20 ms at 24 kHz, and how loud it is.
//!
//! Pure: takes what is there whenever it is asked.
use super::tap::MicEnd;
use crate::audio::{
    Format,
    resample::{RateError, Resampler},
};

/// What a call gets from us.
pub const RATE: u32 = Format::PCM_24K.rate;
/// Samples of a frame.
pub const FRAME: usize = 480;
/// How much of the level is left after a frame of silence: half of it after 100 ms.
const FALL: f32 = 0.87;
/// The quietest level that the meter shows, dB below full scale.
const FLOOR: f32 = -60.0;

/// A microphone, or the lack of one.
#[derive(Debug, Default)]
pub struct Mic {
    line: Option<(MicEnd, Resampler)>,
    raw: Vec<i16>,
    pcm: Vec<i16>,
    level: f32,
    lost: u64,
    over: bool,
}

impl Mic {
    /// Listens to this one from now on.
    ///
    /// # Errors
    /// When its rate is absurd.
    pub fn attach(&mut self, end: MicEnd) -> Result<(), RateError> {
        let resampler = Resampler::new(end.rate(), RATE)?;
        self.line = Some((end, resampler));
        Ok(())
    }

    /// Gives the device's end away; what it has said already stays.
    pub fn detach(&mut self) -> Option<MicEnd> {
        self.pump();
        let (end, _) = self.line.take()?;
        self.lost += end.lost();
        self.level = 0.0;
        Some(end)
    }

    /// The device's end.
    pub fn end(&self) -> Option<&MicEnd> {
        self.line.as_ref().map(|(end, _)| end)
    }

    /// Takes what the device has said.
    pub fn pump(&mut self) {
        let Some((end, resampler)) = &mut self.line else { return };
        self.raw.clear();
        end.take(&mut self.raw);
        resampler.push(&self.raw, &mut self.pcm);
        self.over |= end.is_over();
    }

    /// The next frame, if one is complete.
    pub fn frame(&mut self) -> Option<Vec<i16>> {
        if self.pcm.len() < FRAME {
            return None;
        }
        let frame: Vec<i16> = self.pcm.drain(..FRAME).collect();
        self.level = rms(&frame).max(self.level * FALL);
        Some(frame)
    }

    /// Whether a recording is through, and all of it has become frames.
    pub fn is_over(&self) -> bool {
        self.over && self.pcm.len() < FRAME
    }

    /// How loud it is, 0 (nothing, or -60 dB) to 1 (full scale).
    pub fn level(&self) -> f32 {
        (1.0 - 20.0 * self.level.max(1e-6).log10() / FLOOR).clamp(0.0, 1.0)
    }

    /// Samples that were lost since nobody took them in time.
    pub fn lost(&self) -> u64 {
        self.lost + self.line.as_ref().map_or(0, |(end, _)| end.lost())
    }
}

/// Root mean square, 1 is full scale.
fn rms(samples: &[i16]) -> f32 {
    let energy: f32 = samples.iter().map(|sample| (f32::from(*sample) / 32_768.0).powi(2)).sum();
    (energy / samples.len().max(1) as f32).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desktop::tap;

    /// A tone of `samples` at `amplitude` of full scale.
    fn tone(samples: u16, amplitude: f32) -> Vec<f32> {
        (0..samples).map(|n| amplitude * (f32::from(n) * 0.1).sin()).collect()
    }

    #[test]
    fn any_rate_becomes_frames_of_20_ms_and_nothing_is_lost() {
        for (rate, frames) in [(8_000, 50), (24_000, 50), (44_100, 50), (48_000, 50)] {
            let (mut capture, end) = tap::microphone(rate);
            let mut mic = Mic::default();
            mic.attach(end).unwrap();
            for piece in tone(u16::try_from(rate).unwrap(), 0.5).chunks(441) {
                capture.hear(piece.iter().copied(), 1);
                mic.pump();
            }
            let got = std::iter::from_fn(|| mic.frame()).inspect(|frame| assert_eq!(frame.len(), FRAME)).count();
            assert_eq!((got, mic.lost(), mic.is_over()), (frames, 0, false), "{rate}");
            assert!((0.84..0.86).contains(&mic.level()), "-9 dB of 60: {}", mic.level());
        }
        let (_capture, end) = tap::microphone(900);
        assert!(Mic::default().attach(end).is_err());
    }

    #[test]
    fn the_level_falls_and_a_lost_device_has_none() {
        let (mut capture, end) = tap::microphone(24_000);
        let mut mic = Mic::default();
        mic.attach(end).unwrap();
        assert_eq!(mic.level(), 0.0);
        capture.hear(tone(480, 1.0), 1);
        capture.hear(tone(4_800, 0.0), 1);
        mic.pump();
        let levels: Vec<f32> = std::iter::from_fn(|| mic.frame().map(|_| mic.level())).collect();
        assert!(levels.is_sorted_by(|a, b| a > b) && levels[0] > 0.9 && levels[10] < 0.8, "{levels:?}");
        capture.hear(tone(480, 1.0), 1);
        assert!(mic.detach().is_some() && mic.detach().is_none());
        assert_eq!(mic.level(), 0.0);
        assert!(mic.frame().is_some(), "what it has said before");
    }

    #[test]
    fn the_end_of_a_recording_is_known_when_it_has_become_frames() {
        let (mut capture, end) = tap::microphone(24_000);
        let mut mic = Mic::default();
        mic.attach(end).unwrap();
        capture.hear(tone(970, 0.5), 1);
        capture.is_over();
        mic.pump();
        assert!(mic.frame().is_some() && !mic.is_over());
        assert!(mic.frame().is_some() && mic.is_over() && mic.frame().is_none());
    }
}
