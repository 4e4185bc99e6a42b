//! A recording's rate to the wanted one, block by block, and floats to 16 bits.
//!
//! Long blocks: sharp filters, and nobody waits for them. What comes out is as if the whole were changed at once: no delay
//! at the front, and as long as it was.
use rubato::{Fft, FixedSync, Indexing, Resampler as _, audioadapter_buffers::direct::InterleavedSlice};

/// Full scale of 16 bits.
pub(super) const FULL_SCALE: f32 = 32_768.0;
/// Samples that are changed at once.
const BLOCK: usize = 4_096;

/// One recording's change of rate.
pub(super) struct RateChange {
    /// `None`: both rates are the same.
    filter: Option<Filter>,
}

struct Filter {
    fft: Fft<f32>,
    /// Not yet enough for a block.
    waiting: Vec<f32>,
    /// One block as it comes out.
    made: Vec<f32>,
    /// The filter's delay, as far as it still has to be left out.
    delay: usize,
    taken: u64,
    given: u64,
}

impl RateChange {
    pub(super) fn new(from: u32, to: u32) -> Result<Self, String> {
        if from == to {
            return Ok(Self { filter: None });
        }
        let fft = Fft::<f32>::new(from as usize, to as usize, BLOCK, 1, FixedSync::Both)
            .map_err(|error| error.to_string())?;
        let made = vec![0.0; fft.output_frames_max()];
        let delay = fft.output_delay();
        Ok(Self { filter: Some(Filter { fft, waiting: Vec::new(), made, delay, taken: 0, given: 0 }) })
    }

    /// Takes any number of samples and appends what they make.
    pub(super) fn push(&mut self, samples: &[f32], out: &mut Vec<i16>) -> Result<(), String> {
        let Some(filter) = &mut self.filter else {
            out.extend(samples.iter().copied().map(to_i16));
            return Ok(());
        };
        filter.taken += samples.len() as u64;
        filter.waiting.extend_from_slice(samples);
        while filter.waiting.len() >= filter.fft.input_frames_next() {
            filter.block(None, u64::MAX, out)?;
        }
        Ok(())
    }

    /// The end: appends what the filter still holds.
    pub(super) fn finish(&mut self, out: &mut Vec<i16>) -> Result<(), String> {
        let Some(filter) = &mut self.filter else { return Ok(()) };
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "positive, and far below 2^53")]
        let whole = (filter.fft.resample_ratio() * filter.taken as f64).ceil() as u64;
        while filter.given < whole {
            let left = filter.waiting.len();
            filter.block(Some(left), whole, out)?;
        }
        Ok(())
    }
}

impl Filter {
    /// One block, of which so many samples are there; no more comes out than until `whole` were given.
    fn block(&mut self, there: Option<usize>, whole: u64, out: &mut Vec<i16>) -> Result<(), String> {
        let room = self.fft.output_frames_next();
        self.made.resize(room, 0.0);
        let input = InterleavedSlice::new(&self.waiting, 1, self.waiting.len()).map_err(|error| error.to_string())?;
        let mut output = InterleavedSlice::new_mut(&mut self.made, 1, room).map_err(|error| error.to_string())?;
        let indexing = Indexing { input_offset: 0, output_offset: 0, active_channels_mask: None, partial_len: there };
        let (taken, given) =
            self.fft.process_into_buffer(&input, &mut output, Some(&indexing)).map_err(|error| error.to_string())?;
        self.waiting.drain(..taken.min(self.waiting.len()));
        let skipped = self.delay.min(given);
        self.delay -= skipped;
        let wanted = usize::try_from(whole - self.given).unwrap_or(usize::MAX).min(given - skipped);
        out.extend(self.made.iter().skip(skipped).take(wanted).copied().map(to_i16));
        self.given += wanted as u64;
        Ok(())
    }
}

#[expect(clippy::cast_possible_truncation, reason = "a cast cuts at full scale")]
fn to_i16(sample: f32) -> i16 {
    (sample * FULL_SCALE).round() as i16
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::audio::testing::hello;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn pieces_make_what_the_whole_makes(
            to in prop::sample::select(vec![8_000_u32, 16_000, 22_050, 24_000, 48_000]),
            length in 1_usize..30_000, piece in 1_usize..9_000,
        ) {
            let said = &hello()[..length];
            let floats: Vec<f32> = said.iter().map(|sample| f32::from(*sample) / FULL_SCALE).collect();
            let change = |piece: usize| {
                let (mut change, mut out) = (RateChange::new(24_000, to).unwrap(), Vec::new());
                floats.chunks(piece).for_each(|piece| change.push(piece, &mut out).unwrap());
                change.finish(&mut out).unwrap();
                out
            };
            let made = change(piece);
            prop_assert_eq!(made.len(), (length * to as usize).div_ceil(24_000));
            prop_assert!(made == change(length));
        }
    }
}
