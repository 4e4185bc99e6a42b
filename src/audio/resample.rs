//! Changes the rate of a live stream: mono, 16 bit, cut anywhere, between any two usual rates from 8 to 192 kHz.
//!
//! Stands inside a [lane](super::lane), one per direction and for the whole call; never made anew per chunk. A polyphase
//! FIR: Kaiser window, 52 periods of the lower rate long, flat to 0.86 of its Nyquist frequency, closed from 1.095 on.
//! The coefficients are made once per process and shared; a call holds 110 to 640 bytes of past samples, with 96 and 192 kHz up to 2.5 KB.
//! Worst of all pairs, as the tests measure it: ripple 0.0005 dB to 0.85 of Nyquist, aliases -88.5 and images -91.2 dB
//! beyond 1.1 of it, THD+N -94.2 dB.
//!
//! Why not rubato's `Fft`, which reaches the same quality: measured with 20 ms chunks it holds 20 to 62 KB per direction
//! (an idle call may have 24 KiB), delays by 10 ms (this: 1.1 to 3.3) and takes only whole chunks. Both cost 2 to 8 us
//! for 20 ms (rubato 5.0.1, 2 cores, 2026-11). Recordings go through rubato: there, sharp filters are all that counts.
use std::{
    f64::consts::PI,
    sync::{Mutex, OnceLock},
    time::Duration,
};

/// One stream's change of rate.
///
/// As many milliseconds come out as went in, at every sample, so 20 ms pieces stay 20 ms pieces. The sound is late by
/// [`delay`](Self::delay); [`flush`](Self::flush) brings the rest out at the end.
#[derive(Debug)]
pub struct Resampler {
    /// `None`: both rates are the same.
    filter: Option<&'static Filter>,
    /// The last input samples, oldest first; as many as the filter looks back.
    history: Box<[i16]>,
    /// Where the next output lies after the input so far, in steps of the common rate (`up` steps an input sample).
    next: usize,
    /// Something went in since the start or the last reset.
    used: bool,
    delay: Duration,
}

/// Rates between which a stream cannot be changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cannot resample from {from} Hz to {to} Hz; the usual rates of 8000 to 192000 Hz are possible")]
pub struct RateError {
    /// Asked for as input, Hz.
    pub from: u32,
    /// Asked for as output, Hz.
    pub to: u32,
}

impl Resampler {
    /// A resampler from `from_hz` to `to_hz`, whatever sound cards, telephones and services have. Equal rates are allowed: samples
    /// are copied, without delay.
    ///
    /// # Errors
    /// When a rate is 0 or more than 24 times the other, or both have next to nothing in common.
    pub fn new(from_hz: u32, to_hz: u32) -> Result<Self, RateError> {
        let error = RateError { from: from_hz, to: to_hz };
        if from_hz == 0 || to_hz == 0 {
            return Err(error);
        }
        if from_hz == to_hz {
            return Ok(Self::with(None, from_hz, to_hz));
        }
        let filter = Filter::shared(from_hz, to_hz).ok_or(error)?;
        Ok(Self::with(Some(filter), from_hz, to_hz))
    }

    fn with(filter: Option<&'static Filter>, from_hz: u32, to_hz: u32) -> Self {
        let history = filter.map_or_else(Box::default, |filter| vec![0; filter.look_back()].into());
        Self { filter, history, next: 0, used: false, delay: delay(from_hz, to_hz) }
    }

    /// By how much the sound is late: half the filter's length.
    pub fn delay(&self) -> Duration {
        self.delay
    }

    /// Takes any number of samples and appends what they make to `out`.
    ///
    /// After `n` samples since the start, `n * to / from` have come out, rounded up.
    pub fn push(&mut self, input: &[i16], out: &mut Vec<i16>) {
        let Some(filter) = self.filter else {
            out.extend_from_slice(input);
            return;
        };
        self.used |= !input.is_empty();
        out.reserve(input.len() * filter.up / filter.down + 1);
        for block in input.chunks(BLOCK) {
            self.next = filter.run(&self.history, block, self.next, out);
            remember(&mut self.history, block);
        }
    }

    /// Ends a stream: appends what the filter still holds, [`delay`](Self::delay) long, and starts afresh.
    ///
    /// Nothing comes where nothing went in. Whether something came is the answer.
    pub fn flush(&mut self, out: &mut Vec<i16>) -> bool {
        let Some(filter) = self.filter else { return false };
        if !self.used {
            return false;
        }
        self.push(SILENCE.get(..filter.tail()).unwrap_or(&SILENCE), out);
        self.reset();
        true
    }

    /// Forgets everything: the next sample is the first of a new stream.
    pub fn reset(&mut self) {
        self.history.fill(0);
        self.next = 0;
        self.used = false;
    }
}

/// The [`delay`](Resampler::delay) of a resampler between two rates, without making one.
pub fn delay(from_hz: u32, to_hz: u32) -> Duration {
    let lower = u64::from(from_hz.min(to_hz).max(1));
    if from_hz == to_hz { Duration::ZERO } else { Duration::from_nanos(HALF as u64 * 1_000_000_000 / lower) }
}

/// Half the filter's length in samples of the lower rate: the delay. Even, so that it is whole at both rates of the usual pairs.
const HALF: usize = 26;
/// The highest ratio of two rates: a telephone at 192 kHz and a service at 8.
const MAX_RATIO: usize = 24;
/// Most phases of a filter; 11025 and 24000 Hz need 320.
const MAX_PHASES: usize = 640;
/// Input samples at a time; bounds the stack.
const BLOCK: usize = 480;
/// Coefficients are dotted in groups of this many, which the compiler turns into vector instructions; 16 and 32 are slower.
const LANES: usize = 8;
/// Most coefficients of one phase.
const MAX_TAPS: usize = (2 * HALF * MAX_RATIO + 1).next_multiple_of(LANES);
/// Attenuation aimed at, dB; decides the window.
const ATTENUATION: f64 = 96.0;
/// Middle of the transition, as part of the lower rate's Nyquist frequency.
const CUTOFF: f64 = 0.9775;
static SILENCE: [i16; HALF * MAX_RATIO] = [0; HALF * MAX_RATIO];

/// The coefficients for one ratio of rates.
#[derive(Debug)]
struct Filter {
    /// The common rate is `up` times the input rate and `down` times the output rate.
    up: usize,
    down: usize,
    /// Coefficients of each phase, a multiple of [`LANES`].
    taps: usize,
    /// `up` phases of `taps` coefficients, for the oldest sample first.
    phases: Vec<f32>,
}

impl Filter {
    /// The one filter of this process for a ratio that calls of the client protocol have: found without a lock.
    fn usual(from_hz: u32, to_hz: u32) -> Option<&'static Self> {
        const RATIOS: [(usize, usize); 8] = [(2, 1), (3, 1), (6, 1), (3, 2), (2, 3), (1, 2), (1, 3), (1, 6)];
        static FILTERS: [OnceLock<Filter>; RATIOS.len()] = [const { OnceLock::new() }; RATIOS.len()];
        let same = |(up, down): (usize, usize)| from_hz as usize * up == to_hz as usize * down;
        let (filter, (up, down)) = FILTERS.iter().zip(RATIOS).find(|(_, ratio)| same(*ratio))?;
        Some(filter.get_or_init(|| Self::design(up, down)))
    }

    /// The same for any ratio that is not absurd; `None` for those that are. Few are ever asked for: a computer has a handful of
    /// sound cards, and a telephone one of nine rates.
    fn shared(from_hz: u32, to_hz: u32) -> Option<&'static Self> {
        static MADE: Mutex<Vec<&'static Filter>> = Mutex::new(Vec::new());
        if let Some(filter) = Self::usual(from_hz, to_hz) {
            return Some(filter);
        }
        let (from, to) = (from_hz as usize, to_hz as usize);
        let common = greatest_common_divisor(from, to);
        let (up, down) = (to.checked_div(common)?, from.checked_div(common)?);
        let (low, high) = (up.min(down), up.max(down));
        if low == 0 || high > low * MAX_RATIO || high > MAX_PHASES {
            return None;
        }
        let mut made = MADE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let known = made.iter().copied().find(|filter| (filter.up, filter.down) == (up, down));
        Some(known.unwrap_or_else(|| {
            let filter: &'static Self = Box::leak(Box::new(Self::design(up, down)));
            made.push(filter);
            filter
        }))
    }

    /// Windowed sinc at the common rate, cut into `up` phases.
    fn design(up: usize, down: usize) -> Self {
        let ratio = up.max(down);
        let half = HALF * ratio;
        let beta = 0.1102 * (ATTENUATION - 8.7);
        let tap = |n: usize| {
            let x = n as f64 - half as f64;
            let angle = PI * CUTOFF * x / ratio as f64;
            let sinc = if n == half { 1.0 } else { angle.sin() / angle };
            sinc * bessel_i0(beta * (1.0 - (x / half as f64).powi(2)).max(0.0).sqrt())
        };
        let prototype: Vec<f64> = (0..=2 * half).map(tap).collect();
        // `up - 1` of `up` input samples at the common rate are zeros.
        let gain = up as f64 / prototype.iter().sum::<f64>();
        let taps = prototype.len().div_ceil(up).next_multiple_of(LANES);
        let coefficient = |phase: usize, age: usize| prototype.get(phase + age * up).map_or(0.0, |tap| tap * gain);
        let phases =
            (0..up).flat_map(|phase| (0..taps).rev().map(move |age| (phase, age))).map(|(p, a)| coefficient(p, a));
        #[expect(clippy::cast_possible_truncation, reason = "f32 holds a coefficient to -144 dB")]
        let phases = phases.map(|c| c as f32).collect();
        Self { up, down, taps, phases }
    }

    /// Past samples that an output needs beside the newest.
    fn look_back(&self) -> usize {
        self.taps - 1
    }

    /// Zeros that push the last input through: the delay, in input samples.
    fn tail(&self) -> usize {
        (HALF * self.up.max(self.down)).div_ceil(self.up)
    }

    /// Appends all outputs that lie within `block`, which follows `history`; `next` as in [`Resampler`], and the new one.
    #[expect(clippy::indexing_slicing, reason = "history is look_back long, block at most BLOCK, and at < block.len()")]
    fn run(&self, history: &[i16], block: &[i16], next: usize, out: &mut Vec<i16>) -> usize {
        let mut line = [0_f32; MAX_TAPS + BLOCK];
        let (past, now) = line.split_at_mut(history.len());
        fill(past, history);
        fill(now, block);
        let (mut at, mut phase) = (next / self.up, next % self.up);
        while at < block.len() {
            let coefficients = &self.phases[phase * self.taps..(phase + 1) * self.taps];
            out.push(round(dot(coefficients, &line[at..at + self.taps])));
            phase += self.down;
            // Not by division: that costs more than a vector of the sum above.
            while phase >= self.up {
                phase -= self.up;
                at += 1;
            }
        }
        (at - block.len()) * self.up + phase
    }
}

fn greatest_common_divisor(mut a: usize, mut b: usize) -> usize {
    while b > 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// Keeps the newest samples of `history` followed by `block`.
fn remember(history: &mut [i16], block: &[i16]) {
    history.copy_within(block.len().min(history.len()).., 0);
    for (place, sample) in history.iter_mut().rev().zip(block.iter().rev()) {
        *place = *sample;
    }
}

fn fill(line: &mut [f32], samples: &[i16]) {
    for (place, sample) in line.iter_mut().zip(samples) {
        *place = f32::from(*sample);
    }
}

/// Sum of products in [`LANES`] independent sums: a single one could not be vectorised.
fn dot(coefficients: &[f32], samples: &[f32]) -> f32 {
    let mut sums = [0_f32; LANES];
    let (coefficients, samples) = (coefficients.as_chunks::<LANES>().0, samples.as_chunks::<LANES>().0);
    for (coefficients, samples) in coefficients.iter().zip(samples) {
        for ((sum, coefficient), sample) in sums.iter_mut().zip(coefficients).zip(samples) {
            *sum += coefficient * sample;
        }
    }
    sums.iter().sum()
}

/// To the nearest sample, cut at full scale. Shifted to positive numbers, where a cast rounds down: `f32::round` is a
/// library call on plain x86-64.
#[expect(clippy::cast_possible_truncation, reason = "clamped to 16 bits")]
fn round(sample: f32) -> i16 {
    const SHIFT: i32 = 32_768;
    let shifted = sample.clamp(-32_768.0, 32_767.0) + 32_768.5;
    (shifted as i32 - SHIFT) as i16
}

/// Modified Bessel function of the first kind, order 0, by its power series.
fn bessel_i0(x: f64) -> f64 {
    let mut term = 1.0;
    let mut sum = 1.0;
    for k in 1..60_u8 {
        term *= (x / 2.0 / f64::from(k)).powi(2);
        sum += term;
    }
    sum
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RATES: [u32; 4] = [8_000, 16_000, 24_000, 48_000];

    /// Of the client protocol, any with any; and the others of telephones, with the services' own and, up, with the extremes.
    fn pairs() -> impl Iterator<Item = (u32, u32)> {
        let usual = RATES.into_iter().flat_map(|from| RATES.into_iter().map(move |to| (from, to)));
        let lines = [12_000, 32_000, 44_100, 96_000, 192_000].into_iter();
        let lines = lines.flat_map(|line| [(line, 24_000), (24_000, line)]);
        let extremes = [(44_100, 8_000), (12_000, 16_000), (192_000, 8_000)];
        usual.filter(|(from, to)| from != to).chain(lines).chain(extremes)
    }

    /// A sine of `amplitude` (1 is full scale) with whole samples.
    fn tone(hz: f64, rate: u32, samples: usize, amplitude: f64) -> Vec<i16> {
        let step = 2.0 * PI * hz / f64::from(rate);
        #[expect(clippy::cast_possible_truncation, reason = "below full scale")]
        (0..samples).map(|n| (32_767.0 * amplitude * (step * n as f64).sin()).round() as i16).collect()
    }

    /// What comes out of a fresh resampler for `input`, fed in 20 ms pieces.
    fn resample(from: u32, to: u32, input: &[i16]) -> Vec<i16> {
        let mut resampler = Resampler::new(from, to).unwrap();
        let mut out = Vec::new();
        input.chunks(from as usize / 50).for_each(|piece| resampler.push(piece, &mut out));
        out
    }

    /// Root mean square, 1 is full scale.
    fn rms(samples: &[f64]) -> f64 {
        (samples.iter().map(|s| s * s).sum::<f64>() / samples.len() as f64).sqrt()
    }

    fn middle_half(samples: &[i16]) -> Vec<f64> {
        samples[samples.len() / 4..samples.len() * 3 / 4].iter().map(|s| f64::from(*s) / 32_768.0).collect()
    }

    /// Least squares fit of a sine: its amplitude, and the RMS of what is left.
    fn fit(samples: &[f64], hz: f64, rate: u32) -> (f64, f64) {
        let step = 2.0 * PI * hz / f64::from(rate);
        let (mut cc, mut cs, mut ss, mut yc, mut ys) = (0.0, 0.0, 0.0, 0.0, 0.0);
        for (n, y) in samples.iter().enumerate() {
            let (s, c) = (step * n as f64).sin_cos();
            (cc, cs, ss, yc, ys) = (cc + c * c, cs + c * s, ss + s * s, yc + y * c, ys + y * s);
        }
        let det = cc * ss - cs * cs;
        let (a, b) = ((yc * ss - ys * cs) / det, (ys * cc - yc * cs) / det);
        let left: Vec<f64> = samples
            .iter()
            .enumerate()
            .map(|(n, y)| {
                let (s, c) = (step * n as f64).sin_cos();
                y - a * c - b * s
            })
            .collect();
        (a.hypot(b), rms(&left))
    }

    fn db(ratio: f64) -> f64 {
        20.0 * ratio.log10()
    }

    const LOUD: f64 = 0.891_25; // -1 dBFS

    #[test]
    fn the_passband_is_flat_to_085_of_the_lower_nyquist() {
        for (from, to) in pairs() {
            let nyquist = f64::from(from.min(to)) / 2.0;
            for part in [0.05, 0.2, 0.4, 0.6, 0.75, 0.8, 0.85] {
                let out = resample(from, to, &tone(part * nyquist, from, from as usize / 5, LOUD));
                let (amplitude, _) = fit(&middle_half(&out), part * nyquist, to);
                let ripple = db(amplitude / LOUD);
                println!("{from} to {to} Hz: {ripple:+.4} dB at {part} of Nyquist");
                assert!(ripple.abs() <= 0.1, "{from} to {to} Hz: {ripple:.3} dB at {part} of Nyquist");
            }
        }
    }

    #[test]
    fn what_the_lower_rate_cannot_hold_is_gone() {
        for (from, to) in pairs() {
            let nyquist = f64::from(from.min(to)) / 2.0;
            let input_rms = LOUD / 2_f64.sqrt();
            if from > to {
                // Aliases: nothing of a tone from 1.1 of Nyquist up may come through.
                for part in [1.1, 1.15, 1.2, 1.35, 1.5, 1.8, 2.0, 2.5, 2.95, 4.1, 5.9] {
                    let hz = part * nyquist;
                    if hz < f64::from(from) / 2.0 {
                        let out = resample(from, to, &tone(hz, from, from as usize / 5, LOUD));
                        let alias = db(rms(&middle_half(&out)) / input_rms);
                        println!("{from} to {to} Hz: alias {alias:.1} dB at {part} of Nyquist");
                        assert!(alias <= -75.0, "{from} to {to} Hz: alias {alias:.1} dB at {part} of Nyquist");
                    }
                }
            }
            // Images: beside the tone itself nothing may be there. One of 0.9 of Nyquist has its nearest at 1.1.
            for part in [0.1, 0.3, 0.5, 0.7, 0.8, 0.85, 0.9] {
                let hz = part * nyquist;
                let out = resample(from, to, &tone(hz, from, from as usize / 5, LOUD));
                let (_, left) = fit(&middle_half(&out), hz, to);
                let image = db(left / input_rms);
                println!("{from} to {to} Hz: images {image:.1} dB at {part} of Nyquist");
                assert!(image <= -75.0, "{from} to {to} Hz: images {image:.1} dB of a tone at {part} of Nyquist");
            }
        }
    }

    #[test]
    fn a_tone_stays_clean() {
        for (from, to) in pairs() {
            let out = resample(from, to, &tone(997.0, from, from as usize / 2, LOUD));
            let (amplitude, left) = fit(&middle_half(&out), 997.0, to);
            let thd_n = db(left * 2_f64.sqrt() / amplitude);
            println!("{from} to {to} Hz: THD+N {thd_n:.1} dB");
            assert!(thd_n <= -90.0, "{from} to {to} Hz: THD+N {thd_n:.1} dB");
        }
    }

    #[test]
    fn it_is_late_by_what_it_says_and_never_more_than_10_ms() {
        for (from, to) in pairs() {
            let mut resampler = Resampler::new(from, to).unwrap();
            let delay = resampler.delay();
            assert!(delay <= Duration::from_millis(10), "{from} to {to}: {delay:?}");
            // A slow bump: its centre of gravity moves by the delay.
            let length = from as usize / 10;
            #[expect(clippy::cast_possible_truncation, reason = "below full scale")]
            let bump: Vec<i16> =
                (0..length).map(|n| (10_000.0 * (1.0 - (2.0 * PI * n as f64 / length as f64).cos())) as i16).collect();
            let mut out = Vec::new();
            resampler.push(&bump, &mut out);
            assert!(resampler.flush(&mut out));
            let centre = |samples: &[i16], rate: u32| {
                let weight: f64 = samples.iter().map(|s| f64::from(*s)).sum();
                let moment: f64 = samples.iter().enumerate().map(|(n, s)| n as f64 * f64::from(*s)).sum();
                moment / weight / f64::from(rate)
            };
            let late = centre(&out, to) - centre(&bump, from);
            assert!((late - delay.as_secs_f64()).abs() < 20e-6, "{from} to {to}: {late} s, says {delay:?}");
        }
    }

    #[test]
    fn twenty_milliseconds_in_are_twenty_out() {
        for (from, to) in pairs() {
            let mut resampler = Resampler::new(from, to).unwrap();
            let piece = tone(440.0, from, from as usize / 50, 0.5);
            for n in 0..100 {
                let mut out = Vec::new();
                resampler.push(&piece, &mut out);
                assert_eq!(out.len(), to as usize / 50, "{from} to {to}, piece {n}");
            }
            let mut tail = Vec::new();
            assert!(resampler.flush(&mut tail));
            // Exactly the delay where that is a whole number of samples at both rates.
            let usual = RATES.contains(&from) && RATES.contains(&to);
            let slack = if usual {
                Duration::from_nanos(2)
            } else {
                Duration::from_secs(1) / from.min(to) + Duration::from_nanos(2)
            };
            let tail = Duration::from_secs(tail.len() as u64) / to;
            assert!(tail.abs_diff(resampler.delay()) <= slack, "{from} to {to}: a tail of {tail:?}");
        }
    }

    #[test]
    fn equal_rates_are_a_copy() {
        for rate in RATES {
            let mut resampler = Resampler::new(rate, rate).unwrap();
            let mut out = Vec::new();
            resampler.push(&[1, -2, 3], &mut out);
            assert!(!resampler.flush(&mut out));
            assert_eq!((out.as_slice(), resampler.delay()), (&[1, -2, 3][..], Duration::ZERO));
        }
    }

    #[test]
    fn full_scale_is_cut_not_wrapped() {
        // A square wave overshoots by 9 %.
        let square: Vec<i16> = (0..1_600).map(|n| if n / 80 % 2 == 0 { i16::MAX } else { i16::MIN }).collect();
        for (from, to) in pairs() {
            let out = resample(from, to, &square);
            assert!(out.contains(&i16::MAX) && out.contains(&i16::MIN), "{from} to {to}");
            let wrapped = out.windows(2).any(|w| w[0] == i16::MAX && w[1] < -20_000 && to > from * 2);
            assert!(!wrapped, "{from} to {to}: a step from one end to the other");
        }
    }

    #[test]
    fn a_reset_forgets_and_a_flush_starts_afresh() {
        let (noise, speech) = (tone(3_000.0, 24_000, 555, 0.9), tone(300.0, 24_000, 960, 0.5));
        for to in [8_000, 16_000, 48_000] {
            let clean = resample(24_000, to, &speech);
            let mut resampler = Resampler::new(24_000, to).unwrap();
            let mut out = Vec::new();
            assert!(!resampler.flush(&mut out), "nothing in, nothing out");
            resampler.push(&noise, &mut out);
            resampler.reset();
            out.clear();
            resampler.push(&speech, &mut out);
            assert_eq!(out, clean, "after a reset");
            assert!(resampler.flush(&mut out));
            out.clear();
            resampler.push(&speech, &mut out);
            assert_eq!(out, clean, "after a flush");
        }
    }

    #[test]
    fn the_rates_of_sound_cards_are_as_clean() {
        const DEVICES: [u32; 3] = [11_025, 22_050, 88_200];
        for (from, to) in DEVICES.into_iter().flat_map(|device| [(device, 24_000), (24_000, device)]) {
            let mut resampler = Resampler::new(from, to).unwrap();
            let (input, mut out) = (tone(997.0, from, from as usize / 2, LOUD), Vec::new());
            input.chunks(from as usize / 100).for_each(|piece| resampler.push(piece, &mut out));
            assert_eq!(out.len(), (input.len() * to as usize).div_ceil(from as usize), "{from} to {to}");
            let (amplitude, left) = fit(&middle_half(&out), 997.0, to);
            let thd_n = db(left * 2_f64.sqrt() / amplitude);
            assert!(thd_n <= -85.0 && db(amplitude / LOUD).abs() < 0.1, "{from} to {to} Hz: THD+N {thd_n:.1} dB");
            // Above 1.1 of the lower Nyquist frequency nothing may come down.
            if from * 10 > to * 13 {
                let mut out = Vec::new();
                resampler.reset();
                resampler.push(&tone(f64::from(to) * 0.6, from, from as usize / 5, LOUD), &mut out);
                let alias = db(rms(&middle_half(&out)));
                assert!(alias <= -75.0, "{from} to {to} Hz: alias {alias:.1} dB");
            }
            let mut tail = Vec::new();
            assert!(resampler.flush(&mut tail) && !tail.is_empty());
        }
    }

    #[test]
    fn rates_that_nobody_has_are_refused() {
        for (from, to) in [(0, 24_000), (24_000, 0), (0, 0), (384_000, 8_000), (24_000, 999), (44_101, 24_000)] {
            let error = Resampler::new(from, to).unwrap_err().to_string();
            assert!(error.contains(&format!("from {from} Hz to {to} Hz")), "{error}");
        }
        assert_eq!(Resampler::new(44_100, 44_100).unwrap().delay(), Duration::ZERO);
    }

    #[test]
    fn a_call_holds_little() {
        for (from, to) in pairs() {
            let resampler = Resampler::new(from, to).unwrap();
            let bytes = size_of_val(&resampler) + size_of_val(&*resampler.history);
            let most = if from > 48_000 { 2_600 } else { 720 };
            assert!(bytes <= most, "{from} to {to}: {bytes} bytes");
        }
    }

    proptest! {
        #[test]
        fn any_cut_gives_the_same(
            pair in 0_usize..25, samples in proptest::collection::vec(any::<i16>(), 0..3_000),
            cuts in proptest::collection::vec(0_usize..1_200, 0..20),
        ) {
            let (from, to) = pairs().nth(pair).unwrap();
            let (mut whole, mut pieces) = (Vec::new(), Vec::new());
            let mut resampler = Resampler::new(from, to).unwrap();
            resampler.push(&samples, &mut whole);
            prop_assert_eq!(whole.len(), (samples.len() * to as usize).div_ceil(from as usize));
            resampler.flush(&mut whole);
            let mut rest = samples.as_slice();
            for cut in cuts {
                let (piece, after) = rest.split_at(cut.min(rest.len()));
                resampler.push(piece, &mut pieces);
                rest = after;
            }
            resampler.push(rest, &mut pieces);
            resampler.flush(&mut pieces);
            prop_assert_eq!(whole, pieces);
        }
    }
}
