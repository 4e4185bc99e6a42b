//! G.711: the telephone's two logarithmic codes, mu-law and A-law, one byte a sample.
//!
//! Used where telephone audio must be heard or made as PCM (recordings, tests, the simulated service). A call's own path
//! never comes here: a G.711 leg asks the service for G.711 and its bytes are copied ([`super::lane`]).
//! Rounding is that of ITU-T G.191 (one's complement). Other encoders differ from it by one step at segment edges.

use super::format::Codec;

/// Which of the two codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Law {
    /// mu-law: North America and Japan.
    Mu,
    /// A-law: the rest of the world.
    A,
}

impl Law {
    /// The law of a codec; `None` for codecs that are not G.711.
    pub fn of(codec: Codec) -> Option<Self> {
        match codec {
            Codec::Mulaw => Some(Self::Mu),
            Codec::Alaw => Some(Self::A),
            Codec::Pcm16 | Codec::Opus => None,
        }
    }

    /// One sample to its code.
    pub fn encode(self, sample: i16) -> u8 {
        match self {
            Self::Mu => mu_encode(sample),
            Self::A => a_encode(sample),
        }
    }

    /// One code to its sample.
    pub fn decode(self, code: u8) -> i16 {
        lookup(self.table(), code)
    }

    /// Appends the codes of `samples` to `out`.
    pub fn encode_into(self, samples: &[i16], out: &mut Vec<u8>) {
        match self {
            Self::Mu => out.extend(samples.iter().map(|sample| mu_encode(*sample))),
            Self::A => out.extend(samples.iter().map(|sample| a_encode(*sample))),
        }
    }

    /// Appends the samples of `codes` to `out`.
    pub fn decode_into(self, codes: &[u8], out: &mut Vec<i16>) {
        let table = self.table();
        out.extend(codes.iter().map(|code| lookup(table, *code)));
    }

    fn table(self) -> &'static [i16; 256] {
        match self {
            Self::Mu => &MU_SAMPLES,
            Self::A => &A_SAMPLES,
        }
    }
}

static MU_SAMPLES: [i16; 256] = table(Law::Mu);
static A_SAMPLES: [i16; 256] = table(Law::A);

#[expect(clippy::indexing_slicing, reason = "a byte is always inside 256 entries")]
fn lookup(table: &[i16; 256], code: u8) -> i16 {
    table[code as usize]
}

#[expect(clippy::indexing_slicing, clippy::cast_possible_truncation, reason = "code runs from 0 to 255")]
const fn table(law: Law) -> [i16; 256] {
    let mut samples = [0; 256];
    let mut code = 0;
    while code < 256 {
        samples[code] = match law {
            Law::Mu => mu_decode(code as u8),
            Law::A => a_decode(code as u8),
        };
        code += 1;
    }
    samples
}

/// Sent inverted: sign (1 is positive), 3 bits of segment, 4 bits of step; 33 is the bias of the 14 bit code.
const fn mu_decode(code: u8) -> i16 {
    let bits = !code;
    let segment = (bits >> 4) & 7;
    let step = (bits & 0xF) as i16;
    let size = (((step << 3) + (33 << 2)) << segment) - (33 << 2);
    if code & 0x80 == 0 { -size } else { size }
}

/// Sent with every other bit inverted; the lowest two segments have steps of the same size.
const fn a_decode(code: u8) -> i16 {
    let bits = code ^ 0x55;
    let segment = (bits >> 4) & 7;
    let half = ((bits & 0xF) as i16) << 4 | 8;
    let size = if segment == 0 { half } else { (half + 0x100) << (segment - 1) };
    if bits & 0x80 == 0 { -size } else { size }
}

// Arithmetic, not 64 KiB of table: a few instructions, and the cache stays with the calls.
#[expect(clippy::cast_possible_truncation, reason = "segment is at most 7, step at most 15")]
fn mu_encode(sample: i16) -> u8 {
    // One's complement, so -1 counts as 0: this is G.191's rounding.
    let size = (sample ^ (sample >> 15)).unsigned_abs();
    let biased = ((size >> 2) + 33).min(0x1FFF);
    let segment = 10 - biased.leading_zeros();
    let step = (biased >> (segment + 1)) & 0xF;
    let bits = (segment << 4) as u8 | step as u8;
    let sign = if sample < 0 { 0 } else { 0x80 };
    sign | (bits ^ 0x7F)
}

#[expect(clippy::cast_possible_truncation, reason = "segment is at most 7, step at most 15")]
fn a_encode(sample: i16) -> u8 {
    let size = (sample ^ (sample >> 15)).unsigned_abs() >> 4;
    let bits = if size < 32 {
        size as u8
    } else {
        let segment = 12 - size.leading_zeros();
        let step = (size >> (segment - 1)) & 0xF;
        (segment << 4) as u8 | step as u8
    };
    let sign = if sample < 0 { 0 } else { 0x80 };
    (sign | bits) ^ 0x55
}

#[cfg(test)]
mod tests {
    use audio_codec_algorithms as oracle;

    use super::*;

    const ITU: [(Law, &[u8], &[u8]); 2] = [
        (
            Law::Mu,
            include_bytes!("../../tests/clips/g711/ulaw_decode_256_s16le.bin"),
            include_bytes!("../../tests/clips/g711/ulaw_encode_65536_itu.bin"),
        ),
        (
            Law::A,
            include_bytes!("../../tests/clips/g711/alaw_decode_256_s16le.bin"),
            include_bytes!("../../tests/clips/g711/alaw_encode_65536_itu.bin"),
        ),
    ];

    #[test]
    fn every_code_and_every_sample_is_the_itus() {
        for (law, decoded, encoded) in ITU {
            for code in 0..=255_u8 {
                let at = usize::from(code) * 2;
                let want = i16::from_le_bytes([decoded[at], decoded[at + 1]]);
                assert_eq!(law.decode(code), want, "{law:?} code {code:#04x}");
            }
            for (sample, want) in (i16::MIN..=i16::MAX).zip(encoded) {
                assert_eq!(law.encode(sample), *want, "{law:?} sample {sample}");
            }
        }
    }

    #[test]
    fn a_second_implementation_agrees() {
        for code in 0..=255 {
            assert_eq!(Law::Mu.decode(code), oracle::decode_ulaw(code), "mu {code:#04x}");
            assert_eq!(Law::A.decode(code), oracle::decode_alaw(code), "A {code:#04x}");
        }
        for sample in i16::MIN..=i16::MAX {
            assert_eq!(Law::Mu.encode(sample), oracle::encode_ulaw(sample), "mu {sample}");
            assert_eq!(Law::A.encode(sample), oracle::encode_alaw(sample), "A {sample}");
        }
    }

    #[test]
    fn coding_again_changes_nothing() {
        for code in 0..=255_u8 {
            assert_eq!(Law::A.encode(Law::A.decode(code)), code);
            // mu-law has two zeros; the negative one comes back as the positive one.
            let want = if code == 0x7F { 0xFF } else { code };
            assert_eq!(Law::Mu.encode(Law::Mu.decode(code)), want);
        }
    }

    #[test]
    fn slices_are_samples_in_a_row() {
        let samples: Vec<i16> = (-300..300).map(|n| n * 109).collect();
        for law in [Law::Mu, Law::A] {
            let (mut codes, mut back) = (vec![1], vec![2]);
            law.encode_into(&samples, &mut codes);
            law.decode_into(&codes[1..], &mut back);
            assert_eq!(codes[1..], samples.iter().map(|s| law.encode(*s)).collect::<Vec<_>>());
            assert_eq!(back[1..], codes[1..].iter().map(|c| law.decode(*c)).collect::<Vec<_>>());
            assert_eq!((codes[0], back[0]), (1, 2), "what was there stays");
        }
    }

    #[test]
    fn laws_belong_to_codecs() {
        let laws = Codec::ALL.map(Law::of);
        assert_eq!(laws, [None, Some(Law::Mu), Some(Law::A), None]);
    }
}
