//! Samples: the bundled voice, and what was said in one format as the same length of another.
//!
//! Works on whole clips, so a conversion is free of delay and exact to the sample.
use std::{
    f64::consts::PI,
    io::Cursor,
    sync::{Mutex, PoisonError},
};

use bytes::Bytes;
use symphonia::core::{
    codecs::audio::AudioDecoderOptions,
    errors::Error,
    formats::{FormatOptions, TrackType, probe::Hint},
    io::MediaSourceStream,
    meta::MetadataOptions,
};

use crate::audio::{Format, g711::Law};

/// The second voice of the speech fixtures, made for this project.
const REPLY_FLAC: &[u8] = include_bytes!("../../assets/reply.flac");
/// What it says.
pub(super) const REPLY_TEXT: &str =
    "It is sunny in Paris, with a high of twenty four degrees. Would you like the forecast for tomorrow as well?";
/// Zero crossings of the low pass on either side of a sample.
const CROSSINGS: i64 = 24;
/// Pass band, as a share of what the slower rate can carry.
const PASS: f64 = 0.94;

/// The bundled voice in `format`. Decoded and converted when it is first needed, then kept.
pub(super) fn bundled(format: Format) -> Bytes {
    static KEPT: Mutex<Vec<(Format, Bytes)>> = Mutex::new(Vec::new());
    // What is kept is whole at any time: a panic elsewhere does not spoil it.
    let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, voice)) = kept.iter().find(|(known, _)| *known == format) {
        return voice.clone();
    }
    let samples = decode_flac(REPLY_FLAC).expect("the bundled clip decodes: a test plays it");
    let voice = convert(&Bytes::from(encode(&samples, Format::PCM_24K)), Format::PCM_24K, format);
    kept.push((format, voice.clone()));
    voice
}

pub(super) fn decode_flac(flac: &'static [u8]) -> Result<Vec<i16>, Error> {
    let stream = MediaSourceStream::new(Box::new(Cursor::new(flac)), Default::default());
    let mut reader = symphonia::default::get_probe().probe(
        &Hint::new(),
        stream,
        FormatOptions::default(),
        MetadataOptions::default(),
    )?;
    let track = reader.default_track(TrackType::Audio).ok_or(Error::DecodeError("no audio track"))?;
    let params = track.codec_params.as_ref().and_then(|p| p.audio()).ok_or(Error::DecodeError("no audio codec"))?;
    let mut decoder = symphonia::default::get_codecs().make_audio_decoder(params, &AudioDecoderOptions::default())?;
    let (mut samples, mut piece) = (Vec::new(), Vec::<i16>::new());
    while let Some(packet) = reader.next_packet()? {
        decoder.decode(&packet)?.copy_to_vec_interleaved(&mut piece);
        samples.extend_from_slice(&piece);
    }
    Ok(samples)
}

/// `bytes` of one format as the same length of another; the same bytes where the formats are the same.
pub(super) fn convert(bytes: &Bytes, from: Format, to: Format) -> Bytes {
    if from == to {
        return bytes.clone();
    }
    let samples = decode(bytes, from);
    Bytes::from(encode(&resample(&samples, from.rate, to.rate), to))
}

/// The samples of PCM16 or G.711 bytes; half a sample at the end is left out.
pub(super) fn decode(bytes: &[u8], format: Format) -> Vec<i16> {
    match Law::of(format.codec) {
        Some(law) => {
            let mut samples = Vec::with_capacity(bytes.len());
            law.decode_into(bytes, &mut samples);
            samples
        }
        None => bytes.as_chunks().0.iter().map(|pair| i16::from_le_bytes(*pair)).collect(),
    }
}

fn encode(samples: &[i16], format: Format) -> Vec<u8> {
    match Law::of(format.codec) {
        Some(law) => {
            let mut bytes = Vec::with_capacity(samples.len());
            law.encode_into(samples, &mut bytes);
            bytes
        }
        None => samples.iter().flat_map(|sample| sample.to_le_bytes()).collect(),
    }
}

/// The same sound at another rate, by a windowed sinc with one set of taps for every phase.
pub(super) fn resample(samples: &[i16], from: u32, to: u32) -> Vec<i16> {
    if from == to || from == 0 || to == 0 {
        return samples.to_vec();
    }
    let (from, to) = (i64::from(from), i64::from(to));
    let divisor = gcd(from, to);
    let (step, phases) = (from / divisor, to / divisor);
    // Where the output is slower, the low pass must be lower and longer.
    let cutoff = (to as f64 / from as f64).min(1.0);
    let reach = CROSSINGS * ((from + to - 1) / to).max(1);
    let taps: Vec<Vec<f64>> = (0..phases).map(|phase| taps(phase as f64 / phases as f64, cutoff, reach)).collect();
    let length = samples.len() as i64 * to / from;
    let at = |position: i64| usize::try_from(position).ok().and_then(|p| samples.get(p)).map_or(0.0, |s| f64::from(*s));
    let out = (0..length).map(|n| {
        let (whole, phase) = (n * step / phases, n * step % phases);
        let taps = usize::try_from(phase).ok().and_then(|p| taps.get(p)).map_or(&[][..], Vec::as_slice);
        let sum: f64 = (whole - reach..).zip(taps).map(|(position, tap)| at(position) * tap).sum();
        round(sum)
    });
    out.collect()
}

/// Weights of the samples from `-reach` to `reach` around a point that lies `offset` behind sample 0.
fn taps(offset: f64, cutoff: f64, reach: i64) -> Vec<f64> {
    let weight = |k: i64| {
        let x = k as f64 - offset;
        let window =
            0.42 + 0.5 * (PI * x / (reach + 1) as f64).cos() + 0.08 * (2.0 * PI * x / (reach + 1) as f64).cos();
        let band = cutoff * PASS;
        let sinc = if x.abs() < 1e-9 { 1.0 } else { (PI * x * band).sin() / (PI * x * band) };
        sinc * band * window.max(0.0)
    };
    let weights: Vec<f64> = (-reach..=reach).map(weight).collect();
    let sum: f64 = weights.iter().sum();
    weights.into_iter().map(|w| w / sum).collect()
}

fn gcd(a: i64, b: i64) -> i64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn round(value: f64) -> i16 {
    #[expect(clippy::cast_possible_truncation, reason = "clamped to the range first")]
    let sample = value.round().clamp(f64::from(i16::MIN), f64::from(i16::MAX)) as i16;
    sample
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tone(hz: f64, rate: u32, samples: usize) -> Vec<i16> {
        (0..samples).map(|n| round((2.0 * PI * hz * n as f64 / f64::from(rate)).sin() * 8_000.0)).collect()
    }

    fn snr_db(want: &[i16], got: &[i16]) -> f64 {
        let inner = 200..want.len() - 200;
        let power: f64 = want[inner.clone()].iter().map(|w| f64::from(*w).powi(2)).sum();
        let error: f64 =
            want[inner.clone()].iter().zip(&got[inner]).map(|(w, g)| (f64::from(*w) - f64::from(*g)).powi(2)).sum();
        10.0 * (power / error.max(1e-9)).log10()
    }

    #[test]
    fn the_bundled_clip_is_six_seconds_of_speech() {
        let pcm = bundled(Format::PCM_24K);
        assert_eq!(Format::PCM_24K.duration(pcm.len()).as_millis(), 6_165);
        let loud = decode(&pcm, Format::PCM_24K).iter().filter(|s| s.unsigned_abs() > 1_000).count();
        assert!(loud > 20_000, "{loud} loud samples");
        assert_eq!(Format::MULAW.duration(bundled(Format::MULAW).len()).as_millis(), 6_165);
    }

    #[test]
    fn a_tone_survives_every_change_of_rate() {
        for (from, to) in [(8_000, 24_000), (24_000, 8_000), (48_000, 24_000), (24_000, 48_000), (44_100, 24_000)] {
            let got = resample(&tone(1_000.0, from, from as usize), from, to);
            assert_eq!(got.len(), to as usize, "one second stays one second");
            let snr = snr_db(&tone(1_000.0, to, to as usize), &got);
            assert!(snr > 60.0, "{from} to {to}: {snr:.1} dB");
        }
    }

    #[test]
    fn what_the_slower_rate_cannot_carry_is_gone() {
        let got = resample(&tone(6_000.0, 24_000, 24_000), 24_000, 8_000);
        let peak = got[100..7_900].iter().map(|s| s.unsigned_abs()).max().unwrap();
        assert!(peak < 8, "alias of {peak}");
    }

    #[test]
    fn the_same_format_is_the_same_bytes() {
        let bytes = Bytes::from_static(&[1, 2, 3, 4, 5]);
        assert_eq!(convert(&bytes, Format::PCM_24K, Format::PCM_24K), bytes);
        let there = convert(&Bytes::from(vec![0x55; 800]), Format::ALAW, Format::PCM_24K);
        assert_eq!(there.len(), 4_800, "100 ms");
    }
}
