//! How loud audio is: enough to tell a voice from a line that is quiet.
use super::{Codec, Format, g711::Law};

/// Whether this audio, PCM16 or G.711, is louder than `decibels` of full scale (negative), on average over all of it.
pub fn is_louder(format: Format, bytes: &[u8], decibels: f64) -> bool {
    let (sum, count) = match (format.codec, Law::of(format.codec)) {
        (_, Some(law)) => (bytes.iter().map(|code| square(law.decode(*code))).sum::<f64>(), bytes.len()),
        (Codec::Pcm16, _) => {
            let pairs = bytes.chunks_exact(2).map(|pair| match pair {
                [low, high] => square(i16::from_le_bytes([*low, *high])),
                _ => 0.0,
            });
            (pairs.sum(), bytes.len() / 2)
        }
        _ => return true,
    };
    #[expect(clippy::cast_precision_loss, reason = "a message holds no 2^52 samples")]
    let mean = sum / (count.max(1) as f64);
    mean > 10f64.powf(decibels / 10.0)
}

/// Of full scale.
fn square(sample: i16) -> f64 {
    let part = f64::from(sample) / 32_768.0;
    part * part
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tone_is_as_loud_as_it_is_in_every_format() {
        // 1 kHz with an amplitude of a tenth: -20 dB, and 3 less for the sine.
        let tone: Vec<i16> = [0, 2_317, 3_277, 2_317, 0, -2_317, -3_277, -2_317].repeat(100);
        let pcm: Vec<u8> = tone.iter().flat_map(|sample| sample.to_le_bytes()).collect();
        let coded = |law: Law| tone.iter().map(|sample| law.encode(*sample)).collect::<Vec<u8>>();
        let wide = Format { codec: Codec::Pcm16, rate: 8_000 };
        for (format, bytes) in [(wide, pcm), (Format::MULAW, coded(Law::Mu)), (Format::ALAW, coded(Law::A))] {
            assert!(is_louder(format, &bytes, -23.5) && !is_louder(format, &bytes, -22.5), "{format}");
            assert!(!is_louder(format, &vec![format.silence(); 320], -70.0), "{format}");
        }
        assert!(!is_louder(wide, &[], -90.0));
    }
}
