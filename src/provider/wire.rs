//! What passes between a provider and the relay, and how sound is written in it.
use std::{fmt, time::Duration};

use bytes::Bytes;

use crate::audio::g711::Law;

/// A packet of telephone audio: what every provider here cuts speech into.
pub const FRAME: Duration = Duration::from_millis(20);
/// Frames in a second.
const FRAMES: u32 = 50;

/// One message, either way.
#[derive(Clone, PartialEq, Eq)]
pub enum Message {
    /// A text message of a WebSocket.
    Text(String),
    /// A binary message of a WebSocket; with AudioSocket, the next bytes of the connection.
    Binary(Bytes),
    /// The end of the connection.
    Close {
        /// The WebSocket's close code; 1000 where the connection has none.
        code: u16,
    },
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write!(f, "Text({text})"),
            Self::Binary(bytes) => write!(f, "Binary({} bytes)", bytes.len()),
            Self::Close { code } => write!(f, "Close({code})"),
        }
    }
}

/// How samples become bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Coding {
    /// G.711 mu-law, one byte a sample.
    Mulaw,
    /// G.711 A-law, one byte a sample.
    Alaw,
    /// 16 bit linear, the low byte first.
    L16,
    /// 16 bit linear, the high byte first, as the RFC for RTP has it and few send it.
    L16Be,
}

/// Sound on the wire of one direction: mono.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Media {
    /// How samples become bytes.
    pub coding: Coding,
    /// Samples per second.
    pub rate: u32,
}

impl Media {
    /// mu-law at 8 kHz.
    pub const MULAW: Self = Self { coding: Coding::Mulaw, rate: 8_000 };
    /// A-law at 8 kHz.
    pub const ALAW: Self = Self { coding: Coding::Alaw, rate: 8_000 };

    /// 16 bit linear at `rate` Hz, low byte first.
    pub fn l16(rate: u32) -> Self {
        Self { coding: Coding::L16, rate }
    }

    /// Bytes of one sample.
    pub fn sample_bytes(self) -> usize {
        match self.coding {
            Coding::Mulaw | Coding::Alaw => 1,
            Coding::L16 | Coding::L16Be => 2,
        }
    }

    /// Samples in 20 ms.
    pub fn frame_samples(self) -> usize {
        (self.rate / FRAMES) as usize
    }

    /// Bytes of 20 ms.
    pub fn frame_bytes(self) -> usize {
        self.frame_samples() * self.sample_bytes()
    }

    /// How long so many samples sound.
    pub fn length(self, samples: usize) -> Duration {
        Duration::from_nanos((samples as u64).saturating_mul(1_000_000_000) / u64::from(self.rate.max(1)))
    }

    /// Samples that begin within `length`.
    pub fn samples(self, length: Duration) -> usize {
        let samples = length.as_nanos() * u128::from(self.rate) / 1_000_000_000;
        usize::try_from(samples).unwrap_or(usize::MAX)
    }

    /// Samples as they are sent.
    pub fn encode(self, samples: &[i16]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(samples.len() * self.sample_bytes());
        match self.coding {
            Coding::Mulaw => Law::Mu.encode_into(samples, &mut bytes),
            Coding::Alaw => Law::A.encode_into(samples, &mut bytes),
            Coding::L16 => bytes.extend(samples.iter().flat_map(|sample| sample.to_le_bytes())),
            Coding::L16Be => bytes.extend(samples.iter().flat_map(|sample| sample.to_be_bytes())),
        }
        bytes
    }

    /// The samples in `bytes`; half a sample at the end is not looked at.
    pub fn decode(self, bytes: &[u8]) -> Vec<i16> {
        let mut samples = Vec::with_capacity(bytes.len() / self.sample_bytes());
        match self.coding {
            Coding::Mulaw => Law::Mu.decode_into(bytes, &mut samples),
            Coding::Alaw => Law::A.decode_into(bytes, &mut samples),
            Coding::L16 => samples.extend(bytes.as_chunks().0.iter().map(|pair| i16::from_le_bytes(*pair))),
            Coding::L16Be => samples.extend(bytes.as_chunks().0.iter().map(|pair| i16::from_be_bytes(*pair))),
        }
        samples
    }
}

impl fmt::Display for Media {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.coding {
            Coding::Mulaw => "mu-law",
            Coding::Alaw => "A-law",
            Coding::L16 => "L16",
            Coding::L16Be => "L16 (high byte first)",
        };
        write!(f, "{name} {} Hz", self.rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_have_the_sizes_of_the_references() {
        for (media, bytes) in [
            (Media::MULAW, 160),
            (Media::l16(8_000), 320),
            (Media::l16(16_000), 640),
            (Media::l16(24_000), 960),
            (Media::l16(44_100), 1_764),
        ] {
            assert_eq!((media.frame_bytes(), media.length(media.frame_samples())), (bytes, FRAME), "{media}");
        }
    }

    #[test]
    fn linear_audio_comes_back_in_either_order() {
        let samples = [0, 1, -1, 256, i16::MIN, i16::MAX];
        for coding in [Coding::L16, Coding::L16Be] {
            let media = Media { coding, rate: 16_000 };
            assert_eq!(media.decode(&media.encode(&samples)), samples);
        }
        assert_eq!(Media::l16(8_000).encode(&[0x0102]), [2, 1]);
    }
}
