//! Keys of a telephone as sound: two tones at once (ITU-T Q.23), for lines that take keys in no other way.
use std::{f64::consts::TAU, time::Duration};

use super::{Codec, Format, g711::Law};

/// How long a key sounds, and how long the pause behind it is. Networks want 40 ms of each at least (ITU-T Q.24).
const SOUNDS: Duration = Duration::from_millis(100);
const PAUSE: Duration = Duration::from_millis(80);
/// `w`, as in dial strings.
const WAIT: Duration = Duration::from_millis(500);
/// Of each of the two tones, of full scale: -9 dB together at most.
const AMPLITUDE: f64 = 0.17;
/// A tone that begins or ends at once clicks.
const FADE: Duration = Duration::from_millis(4);

/// The two tones of a key, Hz.
fn tones(key: char) -> Option<(f64, f64)> {
    const ROWS: [f64; 4] = [697.0, 770.0, 852.0, 941.0];
    const COLUMNS: [f64; 4] = [1_209.0, 1_336.0, 1_477.0, 1_633.0];
    let at = "123A456B789C*0#D".find(key.to_ascii_uppercase())?;
    Some((*ROWS.get(at / 4)?, *COLUMNS.get(at % 4)?))
}

/// Whether these are keys, and pauses (`w`).
pub fn are_keys(keys: &str) -> bool {
    !keys.is_empty() && keys.chars().all(|key| key == 'w' || tones(key).is_some())
}

/// The sound of these keys, in PCM16 or G.711; what is no key is passed over.
pub fn sound(keys: &str, format: Format) -> Vec<u8> {
    let samples = |length: Duration| format.bytes(length) / format.sample_bytes().unwrap_or(1);
    let (length, fade) = (samples(SOUNDS), samples(FADE).max(1));
    let mut out: Vec<i16> = Vec::new();
    for key in keys.chars() {
        if key == 'w' {
            out.resize(out.len() + samples(WAIT), 0);
        }
        let Some((low, high)) = tones(key) else { continue };
        for n in 0..length {
            #[expect(clippy::cast_precision_loss, reason = "a key has a few thousand samples")]
            let (t, edge) = (n as f64 / f64::from(format.rate), n.min(length - 1 - n) as f64 / fade as f64);
            let wave = (TAU * low * t).sin() + (TAU * high * t).sin();
            #[expect(clippy::cast_possible_truncation, reason = "at most a third of full scale")]
            out.push((wave * AMPLITUDE * edge.min(1.0) * 32_767.0) as i16);
        }
        out.resize(out.len() + samples(PAUSE), 0);
    }
    let mut bytes = Vec::new();
    match (Law::of(format.codec), format.codec) {
        (Some(law), _) => law.encode_into(&out, &mut bytes),
        (None, Codec::Pcm16) => bytes.extend(out.iter().flat_map(|sample| sample.to_le_bytes())),
        (None, _) => {}
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How much of a tone is in these samples (Goertzel).
    fn power(samples: &[i16], hz: f64, rate: u32) -> f64 {
        let step = TAU * hz / f64::from(rate);
        let (mut re, mut im) = (0.0, 0.0);
        for (n, sample) in samples.iter().enumerate() {
            re += f64::from(*sample) * (step * n as f64).cos();
            im += f64::from(*sample) * (step * n as f64).sin();
        }
        (re * re + im * im).sqrt() / samples.len() as f64
    }

    #[test]
    fn each_key_has_its_two_tones_in_every_format() {
        for format in [Format::PCM_24K, Format::MULAW, Format::ALAW] {
            for (at, key) in "123A456B789C*0#D".chars().enumerate() {
                let bytes = sound(&key.to_string(), format);
                assert_eq!(format.duration(bytes.len()), SOUNDS + PAUSE, "{format}");
                let mut samples = Vec::new();
                match Law::of(format.codec) {
                    Some(law) => law.decode_into(&bytes, &mut samples),
                    None => samples.extend(bytes.chunks(2).map(|b| i16::from_le_bytes([b[0], b[1]]))),
                }
                samples.truncate(samples.len() * 100 / 180);
                let rows = [697.0, 770.0, 852.0, 941.0].map(|hz| power(&samples, hz, format.rate));
                let columns = [1_209.0, 1_336.0, 1_477.0, 1_633.0].map(|hz| power(&samples, hz, format.rate));
                let loudest = |all: [f64; 4]| all.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0;
                assert_eq!((loudest(rows), loudest(columns)), (at / 4, at % 4), "{key} in {format}");
            }
        }
    }

    #[test]
    fn keys_follow_each_other_and_what_is_none_is_told() {
        assert!(are_keys("0123456789*#ABCDabcdw") && !are_keys("") && !are_keys("1 2") && !are_keys("1+"));
        let length = Format::MULAW.duration(sound("12w3", Format::MULAW).len());
        assert_eq!(length, 3 * (SOUNDS + PAUSE) + WAIT);
        assert!(sound("x", Format::MULAW).is_empty());
    }
}
