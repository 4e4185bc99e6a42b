//! Where in a stretch of sound nobody speaks, by its loudness alone.
//!
//! A telephone's hiss is no silence by any fixed measure, so quiet is what is near the quietest tenth and well below the
//! loudest. A real pause is so for [`PAUSE`] frames in a row.
use super::PIECE_RATE;

/// Samples of a frame, 10 ms.
const FRAME: usize = PIECE_RATE as usize / 100;
/// Frames of the shortest pause: between words there is less, within them up to 150 ms.
const PAUSE: usize = 30;
/// Frames over which the quietest place is sought where there is no pause.
const BREATH: usize = 20;
/// Mean square of -60 dBFS: quiet in any surroundings.
const SILENCE: f64 = 1_073.741_824;
/// A pause is at most so much louder than the quietest tenth: 8 dB.
const ABOVE_FLOOR: f64 = 6.31;
/// And so much below the loudest tenth: 12 dB.
const BELOW_SPEECH: f64 = 15.85;

/// A place to cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::batch) struct Place {
    /// Samples before it.
    pub(in crate::batch) at: usize,
    /// It is within a pause: no word is cut.
    pub(in crate::batch) silent: bool,
}

/// The middle of the longest pause in `sound`, the last of them if there are several; else its quietest place, at least
/// `from` samples in.
pub(in crate::batch) fn find(sound: &[i16], from: usize) -> Place {
    let loudness: Vec<f64> = sound.chunks_exact(FRAME).map(mean_square).collect();
    let Some(limit) = quiet(&loudness) else { return Place { at: sound.len(), silent: false } };
    let (mut longest, mut begun) = (0..0, 0);
    for (frame, loud) in loudness.iter().map(|loud| *loud > limit).chain([true]).enumerate() {
        if loud {
            if frame - begun >= PAUSE.max(longest.len()) {
                longest = begun..frame;
            }
            begun = frame + 1;
        }
    }
    if !longest.is_empty() {
        return Place { at: (longest.start + longest.end) / 2 * FRAME, silent: true };
    }
    let breaths = loudness.windows(BREATH).map(|breath| breath.iter().sum::<f64>()).enumerate();
    let quietest = breaths.skip(from.div_ceil(FRAME)).min_by(|(_, a), (_, b)| a.total_cmp(b));
    let at = quietest.map_or(sound.len(), |(frame, _)| (frame + BREATH / 2) * FRAME);
    Place { at, silent: false }
}

/// What counts as quiet among these frames, mean square. `None` where there is no sound at all to judge.
pub(in crate::batch) fn quiet(loudness: &[f64]) -> Option<f64> {
    let mut sorted = loudness.to_vec();
    sorted.sort_by(f64::total_cmp);
    let floor = *sorted.get(sorted.len() / 10)?;
    let speech = *sorted.get(sorted.len() * 9 / 10)?;
    Some((floor * ABOVE_FLOOR).min(speech / BELOW_SPEECH).max(SILENCE))
}

fn mean_square(frame: &[i16]) -> f64 {
    let sum: i64 = frame.iter().map(|sample| i64::from(*sample).pow(2)).sum();
    sum as f64 / FRAME as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audio::testing::hello_at;

    /// The sentence's pause between its two questions, seconds.
    const BETWEEN: std::ops::Range<f64> = 1.88..2.26;

    fn seconds(place: Place) -> f64 {
        place.at as f64 / f64::from(PIECE_RATE)
    }

    /// Speech without the silence around it.
    fn speech() -> Vec<i16> {
        hello_at(PIECE_RATE)[3_520..73_920].to_vec()
    }

    /// Noise that does not change, of so much amplitude.
    fn noise(samples: usize, amplitude: i32) -> Vec<i16> {
        let mut seed = 1_u32;
        let next = |_| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let part = i32::from((seed >> 16) as u16) - 32_768;
            i16::try_from(part * amplitude / 32_768).unwrap()
        };
        (0..samples).map(next).collect()
    }

    #[test]
    fn a_pause_between_sentences_is_found() {
        let place = find(&speech(), 0);
        assert!(place.silent && BETWEEN.contains(&(seconds(place) + 0.22)), "{:.2}", seconds(place));
        // On a line that hisses at -40 dBFS, and one at a tenth of the level.
        let hiss: Vec<i16> = speech().iter().zip(noise(70_400, 560)).map(|(a, b)| a.saturating_add(b)).collect();
        let place = find(&hiss, 0);
        assert!(place.silent && BETWEEN.contains(&(seconds(place) + 0.22)), "{:.2}", seconds(place));
        let soft: Vec<i16> = speech().iter().map(|sample| sample / 10).collect();
        let place = find(&soft, 0);
        assert!(place.silent && BETWEEN.contains(&(seconds(place) + 0.22)), "{:.2}", seconds(place));
    }

    #[test]
    fn the_longest_pause_wins_and_of_equals_the_last() {
        let word = &speech()[..16_000];
        let gap = |ms: usize| vec![0; ms * 16];
        let sound = [word, &gap(800), word, &gap(2_000), word, &gap(900), word].concat();
        let place = find(&sound, 0);
        assert!(place.silent && (seconds(place) - 3.8).abs() < 0.1, "{:.2}", seconds(place));
        let sound = [noise(16_000, 9_000), gap(500), noise(16_000, 9_000), gap(500), noise(8_000, 9_000)].concat();
        assert_eq!(find(&sound, 0), Place { at: 44_000, silent: true });
        assert_eq!(find(&gap(4_000), 0), Place { at: 32_000, silent: true }, "silence all over");
    }

    #[test]
    fn where_nobody_stops_it_is_the_quietest_place() {
        let dip = [noise(32_000, 9_000), noise(3_200, 7_000), noise(32_000, 9_000)].concat();
        let place = find(&dip, 0);
        assert!(!place.silent && (place.at.cast_signed() - 33_600).abs() < 500, "{place:?}");
        let late = find(&dip, 48_000);
        assert!(!late.silent && late.at >= 48_000, "{late:?}");
        assert_eq!(find(&[], 0), Place { at: 0, silent: false });
        assert_eq!(find(&[1; 200], 900), Place { at: 200, silent: false });
    }
}
