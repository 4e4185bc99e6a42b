//! What the tests of this room measure with: the question that people try first, and how alike two recordings are.
//!
//! Only in test builds.
use std::path::{Path, PathBuf};

use rubato::audioadapter_buffers::direct::InterleavedSlice;
use rubato::{Fft, FixedSync, Resampler as _};

/// A file of the repository.
pub(crate) fn file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// `assets/hello.wav`: 5.4 s of speech, 24 kHz.
pub(crate) fn hello() -> Vec<i16> {
    let mut wav = hound::WavReader::open(file("assets/hello.wav")).unwrap();
    assert_eq!(wav.spec().sample_rate, 24_000);
    wav.samples::<i16>().map(Result::unwrap).collect()
}

/// [`hello`] at another rate.
pub(crate) fn hello_at(rate: u32) -> Vec<i16> {
    resampled(&hello(), 24_000, rate)
}

/// Samples at another rate, without delay, made by a resampler that is not ours.
pub(crate) fn resampled(samples: &[i16], from: u32, to: u32) -> Vec<i16> {
    if from == to {
        return samples.to_vec();
    }
    let samples: Vec<f32> = samples.iter().copied().map(f32::from).collect();
    // 960 samples are whole at every pair of our rates, and so is half of what they make: its delay.
    let mut resampler = Fft::<f32>::new(from as usize, to as usize, 960, 1, FixedSync::Both).unwrap();
    let input = InterleavedSlice::new(&samples, 1, samples.len()).unwrap();
    let out = resampler.process_all(&input, samples.len(), None).unwrap();
    #[expect(clippy::cast_possible_truncation, reason = "rounded")]
    out.take_data().into_iter().map(|s| s.round() as i16).collect()
}

/// How alike `heard` is to `said`, at the lag (in samples, positive: `heard` is later) at which it is most: 1 is the same.
pub(crate) fn correlation(said: &[i16], heard: &[i16], max_lag: usize) -> (f64, isize) {
    let max_lag = isize::try_from(max_lag).unwrap();
    // The lag is sought in the loudest part, for speed, then everything is compared.
    let window = 6_000.min(said.len());
    let energy = |at: usize| said[at..at + window].iter().map(|s| f64::from(*s).powi(2)).sum::<f64>();
    let loudest = (0..=said.len() - window).step_by(3_000).max_by(|a, b| energy(*a).total_cmp(&energy(*b))).unwrap();
    let best = (-max_lag..=max_lag)
        .max_by(|a, b| {
            let at = |lag| alike(&said[loudest..loudest + window], heard, loudest.cast_signed() + lag);
            at(*a).total_cmp(&at(*b))
        })
        .unwrap();
    (alike(said, heard, best), best)
}

/// Normalised correlation; what `heard` does not have counts as silence.
fn alike(said: &[i16], heard: &[i16], lag: isize) -> f64 {
    let (early, late) = (lag.min(0).unsigned_abs().min(said.len()), lag.max(0).unsigned_abs().min(heard.len()));
    let heard = &heard[late..heard.len().min(said.len() - early + late)];
    let energy = |samples: &[i16]| samples.iter().map(|s| i64::from(*s) * i64::from(*s)).sum::<i64>() as f64;
    let both = said[early..].iter().zip(heard).map(|(said, heard)| i64::from(*said) * i64::from(*heard)).sum::<i64>();
    let energies = energy(said) * energy(heard);
    if energies == 0.0 { 0.0 } else { both as f64 / energies.sqrt() }
}
