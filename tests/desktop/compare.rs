//! Is what was heard what was said? At 8 kHz, where speech is.
use crate::sound::RATE;

/// Samples of the envelope's blocks: 10 ms.
const BLOCK: usize = RATE as usize / 100;
/// Samples that are compared at a time: half a second.
const WINDOW: usize = RATE as usize / 2;
/// How far a stretch may be from where the whole lies: buffers, and a glitch or two.
const SLACK: usize = RATE as usize / 4;
/// Every so manieth sample is enough to find the place.
const ROUGH: usize = 8;
/// Louder than this is no silence.
const LOUD: u16 = 200;

/// Which part of `said`, in half seconds that are not silent, is found in `heard`, and where that begins, seconds.
pub(crate) fn likeness(said: &[i16], heard: &[i16]) -> (f64, f64) {
    let at = align(&envelope(said), &envelope(heard)) * BLOCK;
    let windows =
        said.chunks_exact(WINDOW).enumerate().filter(|(_, window)| energy(window) > 1e6 * WINDOW as f64 / 40.0);
    let found: Vec<bool> = windows
        .map(|(n, window)| {
            let from = (at + n * WINDOW).saturating_sub(SLACK);
            let places = (from..=at + n * WINDOW + SLACK).filter_map(|from| heard.get(from..from + WINDOW));
            let rough = |heard: &[i16]| correlation(window, heard, ROUGH);
            let best = places.max_by(|a, b| rough(a).total_cmp(&rough(b)));
            best.is_some_and(|best| correlation(window, best, 1) >= 0.9)
        })
        .collect();
    let good = found.iter().filter(|found| **found).count();
    (good as f64 / found.len().max(1) as f64, at as f64 / f64::from(RATE))
}

/// The first stretch of sound without half a second of silence in it: its beginning and its length, seconds.
pub(crate) fn loud_stretch(heard: &[i16]) -> Option<(f64, f64)> {
    let is_loud = |sample: &i16| sample.unsigned_abs() > LOUD;
    let begin = heard.iter().position(is_loud)?;
    let mut end = begin;
    while let Some(next) =
        heard.get(end + 1..(end + 1 + WINDOW).min(heard.len())).and_then(|next| next.iter().rposition(is_loud))
    {
        end += next + 1;
    }
    let seconds = |samples: usize| samples as f64 / f64::from(RATE);
    Some((seconds(begin), seconds(end - begin)))
}

/// How loud it is, 10 ms at a time.
fn envelope(samples: &[i16]) -> Vec<f64> {
    samples.chunks(BLOCK).map(|block| (energy(block) / BLOCK as f64).sqrt()).collect()
}

/// Where `part` fits best into `whole`.
fn align(part: &[f64], whole: &[f64]) -> usize {
    let fit = |at: usize| -> f64 {
        let pairs = part.iter().zip(whole.iter().skip(at));
        let (product, there) = pairs.fold((0.0, 0.0), |(product, there), (a, b)| (product + a * b, there + b * b));
        product / f64::max(there.sqrt(), 1.0)
    };
    (0..whole.len()).max_by(|a, b| fit(*a).total_cmp(&fit(*b))).unwrap_or(0)
}

fn energy(samples: &[i16]) -> f64 {
    samples.iter().map(|sample| f64::from(*sample).powi(2)).sum()
}

/// Cosine between every `step`th sample of the two.
fn correlation(a: &[i16], b: &[i16], step: usize) -> f64 {
    let pairs = a.iter().zip(b).step_by(step).map(|(a, b)| (f64::from(*a), f64::from(*b)));
    let (product, a, b) = pairs.fold((0.0, 0.0, 0.0), |(ab, aa, bb), (a, b)| (ab + a * b, aa + a * a, bb + b * b));
    product / f64::max((a * b).sqrt(), 1.0)
}
