//! Hears speech: an energy detector with an adaptive noise floor.
//!
//! Takes samples, gives back where speech began and ended, counted in samples from its own start; looks at 20 ms at a
//! time. Knows nothing of bytes, items or padding: that is [`super::input`]'s.
use std::collections::VecDeque;

/// Frames a second.
const FRAMES: u32 = 50;
/// A floor is never taken for lower or higher than this, dBFS: quieter rooms make no difference, and what is louder is
/// no noise.
const FLOOR: (f64, f64) = (-50.0, -30.0);
/// Frames over which the floor is sought: any three seconds of speech hold a pause.
const MEMORY: usize = 150;
/// Frames that must be loud in a row before it is speech.
const ONSET: u64 = 3;
/// Share of the new frame in the smoothed power.
const SMOOTHING: f64 = 0.35;

/// When the detector fires.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Thresholds {
    /// 0 to 1, as in the session's configuration: higher wants louder speech.
    pub(super) level: f64,
    /// Silence that ends speech, ms.
    pub(super) silence_ms: u64,
}

/// What the detector found, in samples from its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heard {
    /// Speech began here.
    Began(u64),
    /// Speech has ended; here the silence was long enough.
    Ended(u64),
}

/// The detector of one stream of samples.
#[derive(Debug)]
pub(super) struct Vad {
    rate: u32,
    seen: u64,
    power: Option<f64>,
    recent: VecDeque<f64>,
    loud_in_a_row: u64,
    /// While speech goes on: where the last frame that belonged to it ended.
    speech_until: Option<u64>,
}

impl Vad {
    /// For samples at `rate` Hz.
    pub(super) fn new(rate: u32) -> Self {
        Self { rate, seen: 0, power: None, recent: VecDeque::new(), loud_in_a_row: 0, speech_until: None }
    }

    /// Samples of one frame: what [`Self::frame`] wants.
    pub(super) fn frame_samples(&self) -> usize {
        usize::try_from(self.rate / FRAMES).unwrap_or(1).max(1)
    }

    /// Whether speech goes on.
    pub(super) fn speaking(&self) -> bool {
        self.speech_until.is_some()
    }

    /// Forgets the speech that goes on; the noise floor stays.
    pub(super) fn interrupt(&mut self) {
        self.speech_until = None;
        self.loud_in_a_row = 0;
    }

    /// Takes the next frame.
    pub(super) fn frame(&mut self, samples: &[i16], thresholds: Thresholds) -> Option<Heard> {
        self.seen += samples.len() as u64;
        let power = samples.iter().map(|s| f64::from(*s).powi(2)).sum::<f64>() / samples.len().max(1) as f64;
        let smooth = self.power.map_or(power, |before| before + SMOOTHING * (power - before));
        self.power = Some(smooth);
        let (level, smooth) = (dbfs(power), dbfs(smooth));
        self.recent.push_back(smooth);
        if self.recent.len() > MEMORY {
            self.recent.pop_front();
        }
        let floor = self.recent.iter().copied().fold(f64::INFINITY, f64::min).clamp(FLOOR.0, FLOOR.1);
        // Over silence the threshold spans 24 dB, over loud noise 12: nobody speaks 24 dB louder than that.
        let over = thresholds.level * (12.0 + 0.6 * (FLOOR.1 - floor));
        match self.speech_until {
            None => self.onset(level >= floor + over),
            Some(until) => self.offset(until, level >= floor + over / 2.0, thresholds.silence_ms),
        }
    }

    fn onset(&mut self, loud: bool) -> Option<Heard> {
        self.loud_in_a_row = if loud { self.loud_in_a_row + 1 } else { 0 };
        if self.loud_in_a_row < ONSET {
            return None;
        }
        self.loud_in_a_row = 0;
        self.speech_until = Some(self.seen);
        Some(Heard::Began(self.seen.saturating_sub(ONSET * u64::from(self.rate / FRAMES))))
    }

    fn offset(&mut self, until: u64, loud: bool, silence_ms: u64) -> Option<Heard> {
        if loud {
            self.speech_until = Some(self.seen);
            return None;
        }
        let end = until + silence_ms * u64::from(self.rate) / 1_000;
        if self.seen < end {
            return None;
        }
        self.interrupt();
        Some(Heard::Ended(end.min(self.seen)))
    }
}

fn dbfs(power: f64) -> f64 {
    10.0 * (power.max(0.25) / (32_768.0 * 32_768.0)).log10()
}

/// How much of a clip is speech rather than silence, ms; for transcripts, which is why it needs no floor.
pub(super) fn active_ms(samples: &[i16], rate: u32) -> u64 {
    let frame = usize::try_from(rate / FRAMES).unwrap_or(1).max(1);
    let loud = samples.chunks_exact(frame).filter(|frame| {
        let power = frame.iter().map(|s| f64::from(*s).powi(2)).sum::<f64>() / frame.len() as f64;
        power > 200.0 * 200.0
    });
    loud.count() as u64 * u64::from(1_000 / FRAMES)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: u32 = 24_000;

    fn run(samples: &[i16], rate: u32, thresholds: Thresholds) -> Vec<(char, u64)> {
        let mut vad = Vad::new(rate);
        let frames = samples.chunks_exact(vad.frame_samples());
        let heard: Vec<Heard> = frames.filter_map(|frame| vad.frame(frame, thresholds)).collect();
        let ms = |samples: u64| samples * 1_000 / u64::from(rate);
        let said = heard.into_iter().map(|h| match h {
            Heard::Began(at) => ('b', ms(at)),
            Heard::Ended(at) => ('e', ms(at)),
        });
        said.collect()
    }

    fn wav(name: &str) -> (Vec<i16>, u32) {
        let mut reader = hound::WavReader::open(format!("tests/clips/{name}")).unwrap();
        let rate = reader.spec().sample_rate;
        (reader.samples::<i16>().map(Result::unwrap).collect(), rate)
    }

    fn hello() -> Vec<i16> {
        hound::WavReader::open("assets/hello.wav").unwrap().samples::<i16>().map(Result::unwrap).collect()
    }

    const HALF_SECOND: Thresholds = Thresholds { level: 0.5, silence_ms: 500 };

    #[test]
    fn a_question_is_one_turn_at_half_a_second_and_three_at_the_services_default() {
        assert_eq!(run(&hello(), RATE, HALF_SECOND), [('b', 240), ('e', 5_120)]);
        let short = run(&hello(), RATE, Thresholds { silence_ms: 200, ..HALF_SECOND });
        assert_eq!(short.iter().filter(|(kind, _)| *kind == 'e').count(), 3, "its pauses split it: {short:?}");
    }

    #[test]
    fn silence_and_dither_are_no_speech() {
        let (samples, rate) = wav("silence_then_dither_24k.wav");
        for level in [0.1, 0.5, 0.9] {
            assert_eq!(run(&samples, rate, Thresholds { level, silence_ms: 200 }), []);
        }
    }

    #[test]
    fn a_tone_is_speech_and_a_quiet_one_only_at_a_low_threshold() {
        let (tone, rate) = wav("tone_1k_-12dbfs_24k.wav");
        let padded: Vec<i16> =
            std::iter::repeat_n(0, 12_000).chain(tone).chain(std::iter::repeat_n(0, 24_000)).collect();
        assert_eq!(run(&padded, rate, HALF_SECOND), [('b', 500), ('e', 2_000)]);
        let quiet: Vec<i16> = padded.iter().map(|s| s / 30).collect();
        assert_eq!(run(&quiet, rate, HALF_SECOND), [], "-45 dBFS");
        assert_eq!(run(&quiet, rate, Thresholds { level: 0.1, ..HALF_SECOND }).len(), 2);
    }

    #[test]
    fn speech_is_found_in_noise() {
        let (samples, from) = wav("noisy_question_16k.wav");
        for rate in [16_000, RATE, 8_000] {
            let heard = run(&crate::sim::voice::resample(&samples, from, rate), rate, HALF_SECOND);
            let [('b', began), ('e', ended)] = heard[..] else { panic!("{rate} Hz: {heard:?}") };
            assert!((200..=400).contains(&began), "{rate} Hz: began at {began} ms");
            assert!((4_900..=5_300).contains(&ended), "{rate} Hz: ended at {ended} ms");
        }
    }

    #[test]
    fn noise_that_sets_in_is_learned_within_seconds() {
        let mut noise = 1u32;
        let mut next = || {
            noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            i16::try_from((noise >> 16) % 3_000).unwrap() - 1_500
        };
        let samples: Vec<i16> = (0..RATE * 10).map(|n| if n < RATE { 0 } else { next() }).collect();
        let heard = run(&samples, RATE, HALF_SECOND);
        let ended = heard.iter().find(|(kind, _)| *kind == 'e').map(|(_, at)| *at);
        assert!(ended.is_some_and(|at| at < 5_500), "{heard:?}");
        assert_eq!(heard.len(), 2, "and stays quiet: {heard:?}");
    }

    #[test]
    fn active_time_is_what_the_fixtures_say() {
        let active = active_ms(&hello(), RATE);
        assert!((3_400..=4_020).contains(&active), "{active} ms");
    }
}
