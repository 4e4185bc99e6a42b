//! What a stream of audio is made of: codec and rate, always mono.
use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

/// How samples are written. The names are the ones of the client protocol's `format` field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Codec {
    /// Signed 16 bit little-endian PCM.
    Pcm16,
    /// G.711 mu-law, one byte a sample.
    Mulaw,
    /// G.711 A-law, one byte a sample.
    Alaw,
    /// Opus, one packet a message.
    Opus,
}

impl Codec {
    /// Every codec, in the order in which they are offered to people.
    pub const ALL: [Self; 4] = [Self::Pcm16, Self::Mulaw, Self::Alaw, Self::Opus];

    /// The name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pcm16 => "pcm16",
            Self::Mulaw => "mulaw",
            Self::Alaw => "alaw",
            Self::Opus => "opus",
        }
    }

    /// Rates in Hz that the client protocol allows for this codec.
    pub fn rates(self) -> &'static [u32] {
        match self {
            Self::Pcm16 => &[8_000, 16_000, 24_000, 48_000],
            Self::Mulaw | Self::Alaw => &[8_000],
            Self::Opus => &[48_000],
        }
    }

    /// The rate in Hz when a client names none.
    pub fn default_rate(self) -> u32 {
        match self {
            Self::Pcm16 => 24_000,
            Self::Mulaw | Self::Alaw => 8_000,
            Self::Opus => 48_000,
        }
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a format was refused; `field` is the query field it came from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// No such codec.
    #[error("format `{found}` is not known; allowed: pcm16, mulaw, alaw, opus")]
    Codec {
        /// What was asked for.
        found: String,
    },
    /// The codec exists, but not at this rate.
    #[error("rate {found} is not possible with {codec}; allowed: {}", list(codec.rates()))]
    Rate {
        /// The codec asked for.
        codec: Codec,
        /// The rate asked for, Hz.
        found: u32,
    },
}

fn list(rates: &[u32]) -> String {
    rates.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")
}

impl FromStr for Codec {
    type Err = FormatError;

    fn from_str(s: &str) -> Result<Self, FormatError> {
        Self::ALL.into_iter().find(|c| c.name() == s).ok_or_else(|| FormatError::Codec { found: s.to_owned() })
    }
}

/// Codec and rate of one mono stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Format {
    /// The codec; on the wire the field is called `format`.
    #[serde(rename = "format")]
    pub codec: Codec,
    /// Samples per second.
    pub rate: u32,
}

impl Format {
    /// The service's own format: PCM16 at 24 kHz.
    pub const PCM_24K: Self = Self { codec: Codec::Pcm16, rate: 24_000 };
    /// G.711 mu-law at 8 kHz.
    pub const MULAW: Self = Self { codec: Codec::Mulaw, rate: 8_000 };
    /// G.711 A-law at 8 kHz.
    pub const ALAW: Self = Self { codec: Codec::Alaw, rate: 8_000 };
    /// Opus; the rate is the one of its RTP clock.
    pub const OPUS: Self = Self { codec: Codec::Opus, rate: 48_000 };

    /// A codec at `rate`, or at its default rate.
    ///
    /// # Errors
    /// When the codec has no such rate.
    pub fn new(codec: Codec, rate: Option<u32>) -> Result<Self, FormatError> {
        let rate = rate.unwrap_or(codec.default_rate());
        if codec.rates().contains(&rate) {
            Ok(Self { codec, rate })
        } else {
            Err(FormatError::Rate { codec, found: rate })
        }
    }

    /// Bytes of one sample; `None` for Opus, whose packets have no fixed size.
    pub fn sample_bytes(self) -> Option<usize> {
        match self.codec {
            Codec::Pcm16 => Some(2),
            Codec::Mulaw | Codec::Alaw => Some(1),
            Codec::Opus => None,
        }
    }

    /// Bytes of the whole samples of one millisecond; `None` for Opus.
    pub fn bytes_per_ms(self) -> Option<usize> {
        self.sample_bytes().map(|bytes| bytes * (self.rate as usize / 1_000))
    }

    /// How long `bytes` of this format play; zero for Opus.
    pub fn duration(self, bytes: usize) -> Duration {
        match self.sample_bytes() {
            Some(size) => {
                // In two steps: positions that services name may be absurd, and their nanoseconds no u64.
                let (samples, rate) = ((bytes / size) as u64, u64::from(self.rate.max(1)));
                Duration::from_secs(samples / rate) + Duration::from_nanos(samples % rate * 1_000_000_000 / rate)
            }
            None => Duration::ZERO,
        }
    }

    /// Bytes of the whole samples that fit into `length`; zero for Opus.
    pub fn bytes(self, length: Duration) -> usize {
        let samples = length.as_nanos() * u128::from(self.rate) / 1_000_000_000;
        usize::try_from(samples).unwrap_or(usize::MAX / 2) * self.sample_bytes().unwrap_or(0)
    }

    /// The byte that silence is made of; zero for Opus.
    pub fn silence(self) -> u8 {
        match self.codec {
            Codec::Mulaw => 0xFF,
            Codec::Alaw => 0xD5,
            Codec::Pcm16 | Codec::Opus => 0,
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.codec, self.rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_codec_knows_its_rates() {
        for (codec, rate, want) in [
            (Codec::Pcm16, None, Ok(24_000)),
            (Codec::Pcm16, Some(8_000), Ok(8_000)),
            (Codec::Mulaw, None, Ok(8_000)),
            (Codec::Opus, None, Ok(48_000)),
            (Codec::Alaw, Some(16_000), Err("rate 16000 is not possible with alaw; allowed: 8000")),
            (
                Codec::Pcm16,
                Some(44_100),
                Err("rate 44100 is not possible with pcm16; allowed: 8000, 16000, 24000, 48000"),
            ),
        ] {
            let got = Format::new(codec, rate).map(|f| f.rate).map_err(|e| e.to_string());
            assert_eq!(got, want.map_err(str::to_owned), "{codec} {rate:?}");
        }
    }

    #[test]
    fn bytes_and_time_agree() {
        assert_eq!(Format::PCM_24K.bytes_per_ms(), Some(48));
        assert_eq!(Format::PCM_24K.bytes(Duration::from_millis(20)), 960);
        assert_eq!(Format::PCM_24K.duration(4_800), Duration::from_millis(100));
        assert_eq!(Format::MULAW.duration(160), Duration::from_millis(20));
        assert_eq!(Format::MULAW.bytes(Duration::from_millis(20)), 160);
        assert_eq!(Format::OPUS.bytes_per_ms(), None);
    }
}
