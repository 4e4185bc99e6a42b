//! Between samples and the messages of a call, on the caller's side.
//!
//! Pure. Rates are not changed here: the recording is read at [`recording_rate`].
use bytes::Bytes;

use crate::{
    audio::{
        Codec, Format,
        g711::Law,
        opus::{self, Decoder, Encoder, OpusError},
        resample::RateError,
    },
    caller::cut,
};

/// Silence after which a repeated Opus packet is nothing but silence.
const SETTLED: usize = 10;

/// The rate in Hz at which a recording must be read to be sent as `format`.
pub(super) fn recording_rate(format: Format) -> u32 {
    if format.codec == Codec::Opus { opus::ENCODER_RATE } else { format.rate }
}

/// A recording as messages of 20 ms, and the message that silence is made of.
#[derive(Debug)]
pub(super) struct Speech {
    pub(super) frames: Vec<Bytes>,
    pub(super) silence: Bytes,
}

impl Speech {
    /// `samples` at [`recording_rate`].
    pub(super) fn encode(samples: &[i16], format: Format) -> Result<Self, OpusError> {
        let mut bytes = Vec::with_capacity(samples.len() * 2);
        match Law::of(format.codec) {
            Some(law) => law.encode_into(samples, &mut bytes),
            None if format.codec == Codec::Opus => return Self::encode_opus(samples),
            None => bytes.extend(samples.iter().flat_map(|sample| sample.to_le_bytes())),
        }
        let frames = cut(&bytes, format).unwrap_or_default();
        let silence = vec![format.silence(); format.bytes(crate::caller::FRAME)].into();
        Ok(Self { frames, silence })
    }

    fn encode_opus(samples: &[i16]) -> Result<Self, OpusError> {
        let mut encoder = Encoder::new(opus::DEFAULT_BITRATE)?;
        let mut packet = |samples: &[i16]| {
            let mut frame = [0; opus::ENCODER_FRAME];
            frame.iter_mut().zip(samples).for_each(|(to, from)| *to = *from);
            let mut bytes = Vec::new();
            encoder.encode(&frame, &mut bytes).map(|_| Bytes::from(bytes))
        };
        let mut frames = samples.chunks(opus::ENCODER_FRAME).map(&mut packet).collect::<Result<Vec<_>, _>>()?;
        // The encoder is a few milliseconds late: the recording's end is in one packet more.
        frames.push(packet(&[])?);
        for _ in 0..SETTLED {
            packet(&[])?;
        }
        Ok(Self { frames, silence: packet(&[])? })
    }
}

/// Turns a reply's messages into samples at the agreed rate.
#[derive(Debug)]
pub(super) enum Ear {
    Pcm,
    Law(Law),
    /// Boxed: the codec's state is large.
    Opus(Box<Decoder>),
}

impl Ear {
    pub(super) fn new(format: Format) -> Result<Self, RateError> {
        Ok(match Law::of(format.codec) {
            Some(law) => Self::Law(law),
            None if format.codec == Codec::Opus => Self::Opus(Box::new(Decoder::new(format.rate)?)),
            None => Self::Pcm,
        })
    }

    /// Appends a message's samples.
    pub(super) fn hear(&mut self, message: &[u8], out: &mut Vec<i16>) -> Result<(), OpusError> {
        match self {
            Self::Pcm => out.extend(message.as_chunks::<2>().0.iter().map(|bytes| i16::from_le_bytes(*bytes))),
            Self::Law(law) => law.decode_into(message, out),
            Self::Opus(decoder) => {
                decoder.decode(message, out)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A second of a 440 Hz tone.
    fn tone(rate: u32) -> Vec<i16> {
        let step = std::f64::consts::TAU * 440.0 / f64::from(rate);
        #[expect(clippy::cast_possible_truncation, reason = "within 10,000")]
        (0..rate).map(|n| (10_000.0 * (step * f64::from(n)).sin()) as i16).collect()
    }

    /// Cosine between the two, the second moved by `late` samples.
    fn likeness(said: &[i16], heard: &[i16], late: usize) -> f64 {
        let pairs = || said.iter().zip(&heard[late..]).map(|(a, b)| (f64::from(*a), f64::from(*b)));
        let product: f64 = pairs().map(|(a, b)| a * b).sum();
        let energy = |of: fn((f64, f64)) -> f64| pairs().map(of).map(|x| x * x).sum::<f64>().sqrt();
        product / (energy(|(a, _)| a) * energy(|(_, b)| b))
    }

    #[test]
    fn what_is_said_is_what_is_heard() {
        for (format, want) in [
            (Format { codec: Codec::Pcm16, rate: 8_000 }, 1.0),
            (Format::PCM_24K, 1.0),
            (Format { codec: Codec::Pcm16, rate: 48_000 }, 1.0),
            (Format::MULAW, 0.999),
            (Format::ALAW, 0.999),
            (Format::OPUS, 0.99),
        ] {
            let said = tone(recording_rate(format));
            let speech = Speech::encode(&said, format).unwrap();
            let (mut ear, mut heard) = (Ear::new(format).unwrap(), Vec::new());
            for frame in &speech.frames {
                ear.hear(frame, &mut heard).unwrap();
            }
            let step = format.rate as usize / recording_rate(format) as usize;
            let heard: Vec<i16> = heard.into_iter().step_by(step).collect();
            assert!(heard.len() >= said.len(), "{format}: {} of {}", heard.len(), said.len());
            // The codec's own filters are not exact to the sample.
            let late =
                if format.codec == Codec::Opus { opus::ENCODER_DELAY - 8..opus::ENCODER_DELAY + 8 } else { 0..1 };
            let likeness = late.map(|late| likeness(&said[..said.len() - 480], &heard, late)).fold(0.0, f64::max);
            assert!(likeness >= want - 1e-9, "{format}: {likeness}");
        }
    }

    #[test]
    fn silence_is_silent_for_as_long_as_it_lasts() {
        for format in [Format::PCM_24K, Format::MULAW, Format::ALAW, Format::OPUS] {
            let speech = Speech::encode(&tone(recording_rate(format)), format).unwrap();
            let (mut ear, mut heard) = (Ear::new(format).unwrap(), Vec::new());
            for frame in &speech.frames {
                ear.hear(frame, &mut heard).unwrap();
            }
            // The first tenth of a second may still hold the tone's decay.
            let quiet_from = heard.len() + format.rate as usize / 10;
            for _ in 0..50 {
                ear.hear(&speech.silence, &mut heard).unwrap();
            }
            let loudest = heard[quiet_from..].iter().map(|s| s.unsigned_abs()).max();
            assert!(loudest.unwrap() < 20, "{format}: {loudest:?}");
        }
    }

    #[test]
    fn an_odd_message_and_a_broken_packet_do_no_harm() {
        let mut heard = Vec::new();
        Ear::new(Format::PCM_24K).unwrap().hear(&[1, 0, 9], &mut heard).unwrap();
        assert_eq!(heard, [1]);
        assert!(Ear::new(Format::OPUS).unwrap().hear(&[], &mut heard).is_err());
        assert_eq!(heard, [1]);
    }
}
