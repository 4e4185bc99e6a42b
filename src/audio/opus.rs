//! Opus packets (RFC 6716), mono, one packet a message and no container.
//!
//! Stands inside a [lane](super::lane) of a client that speaks Opus, and under [recordings](super::decode). The crate
//! behind it is young, so nothing of it shows here and it can be exchanged. Never trusts a packet's length: what it plays
//! is read from its table of contents, and bytes that are no packet are an error, not a panic.
use std::{io::Read, time::Duration};

use opus_pure::{Application, OggOpusReader, OpusDecoder, OpusEncoder, Trim, packet};

use super::resample::{RateError, Resampler};

/// Bit/s for speech over a good network; 16,000 does on poor ones.
pub const DEFAULT_BITRATE: u32 = 24_000;
/// The [`Encoder`]'s input rate, Hz.
pub const ENCODER_RATE: u32 = 24_000;
/// Samples of the one packet length that the [`Encoder`] makes: 20 ms.
pub const ENCODER_FRAME: usize = 480;
/// The encoder's look-ahead in samples, 6.5 ms: how late the sound is behind what went in.
pub const ENCODER_DELAY: usize = 156;

/// Bytes that are no Opus packet, or settings that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpusError {
    /// No bytes at all.
    #[error("an empty message is not an Opus packet")]
    Empty,
    /// The bytes contradict themselves.
    #[error("not an Opus packet ({bytes} bytes): {reason}")]
    Malformed {
        /// How many there were.
        bytes: usize,
        /// What is wrong with them.
        reason: &'static str,
    },
    /// A bitrate outside of what speech can use.
    #[error("an Opus bitrate of {found} bit/s; allowed: 6000 to 128000")]
    Bitrate {
        /// What was asked for.
        found: u32,
    },
    /// The encoder takes 20 ms at a time.
    #[error("an Opus frame of {found} samples; allowed: {ENCODER_FRAME}")]
    Frame {
        /// What was given.
        found: usize,
    },
    /// A recording whose channels are coded apart from each other.
    #[error("surround sound in Opus ({found} channels); allowed: mono and stereo")]
    Channels {
        /// Channels of the recording.
        found: u8,
    },
    /// A recording whose first bytes are no description of an Opus stream.
    #[error("no Opus stream: {0}")]
    Stream(String),
    /// A fault of the codec's own.
    #[error("Opus codec: {0}")]
    Codec(String),
}

impl OpusError {
    fn of(error: &opus_pure::Error, bytes: usize) -> Self {
        match error {
            opus_pure::Error::InvalidPacket(reason) => Self::Malformed { bytes, reason },
            opus_pure::Error::InvalidStream(_) | opus_pure::Error::Io(_) => Self::Stream(error.to_string()),
            other => Self::Codec(other.to_string()),
        }
    }
}

/// How long a packet plays: 2.5 to 120 ms, read from its first two bytes without decoding.
///
/// # Errors
/// When the bytes are empty or claim more than 120 ms.
pub fn duration(bytes: &[u8]) -> Result<Duration, OpusError> {
    samples_48k(bytes).map(|samples| Duration::from_nanos(samples as u64 * 1_000_000_000 / u64::from(DECODER_RATE)))
}

fn samples_48k(bytes: &[u8]) -> Result<usize, OpusError> {
    if bytes.is_empty() {
        return Err(OpusError::Empty);
    }
    packet::samples_48k(bytes).map_err(|error| OpusError::of(&error, bytes.len()))
}

/// The codec decodes at its own rate, whatever is wanted: at lower ones opus-pure 0.2.2 leaves out the bridging frames
/// between its modes, which costs up to 40 ms of clean sound at each switch (measured: 2 to 5 dB of signal to noise).
pub const DECODER_RATE: u32 = 48_000;

/// Packets to samples. One per stream: a packet is only understood after those before it.
#[derive(Debug)]
pub struct Decoder {
    /// 180 kB in all, so out of the way of those who keep a decoder beside smaller things.
    codec: Box<OpusDecoder>,
    resampler: Resampler,
    /// One packet at the codec's rate; kept to save its allocation.
    decoded: Vec<i16>,
}

impl Decoder {
    /// A decoder whose samples come at `rate` Hz.
    ///
    /// # Errors
    /// When there is no [way](Resampler::new) from 48 kHz to the rate.
    pub fn new(rate: u32) -> Result<Self, RateError> {
        let resampler = Resampler::new(DECODER_RATE, rate)?;
        let codec =
            OpusDecoder::new(DECODER_RATE.cast_signed(), 1).expect("48 kHz mono is what every Opus decoder can");
        Ok(Self { codec: Box::new(codec), resampler, decoded: Vec::new() })
    }

    /// Appends a packet's samples to `out` and returns how long they play. Stereo is mixed down.
    ///
    /// # Errors
    /// When the packet cannot be decoded. Then `out` is as before, and so is the decoder for all but a codec's own fault.
    pub fn decode(&mut self, bytes: &[u8], out: &mut Vec<i16>) -> Result<Duration, OpusError> {
        let samples = samples_48k(bytes)?;
        self.run(bytes, samples, out)?;
        duration(bytes)
    }

    /// Appends 20 ms that sound as if the stream went on, in place of a packet that is lost or too late. After three in
    /// a row silence is better.
    ///
    /// # Errors
    /// Only for a fault of the codec's own.
    pub fn conceal(&mut self, out: &mut Vec<i16>) -> Result<(), OpusError> {
        self.run(&[], DECODER_RATE as usize / 50, out)
    }

    /// The end of the stream: appends what the change of rate still holds. Whether there was something.
    pub fn flush(&mut self, out: &mut Vec<i16>) -> bool {
        self.resampler.flush(out)
    }

    /// Drops what the change of rate still holds. The codec goes on: the sender's does too.
    pub fn drop_tail(&mut self) {
        self.resampler.reset();
    }

    /// How late the sound is behind the packets, beside the encoder's own delay.
    pub fn delay(&self) -> Duration {
        self.resampler.delay()
    }

    fn run(&mut self, bytes: &[u8], samples: usize, out: &mut Vec<i16>) -> Result<(), OpusError> {
        self.decoded.resize(samples, 0);
        let made = self.codec.decode_s16(bytes, samples, &mut self.decoded);
        let made = made.map_err(|error| OpusError::of(&error, bytes.len()))?;
        self.resampler.push(self.decoded.get(..made).unwrap_or(&self.decoded), out);
        Ok(())
    }
}

/// Samples to packets: speech at 24 kHz, 20 ms a packet, variable bitrate.
#[derive(Debug)]
pub struct Encoder {
    /// 145 kB in all.
    codec: Box<OpusEncoder>,
}

/// A 20 ms packet holds one frame, which is at most this long (RFC 6716 section 3.4), and its table of contents.
const MAX_PACKET: usize = 1 + 1_275;

impl Encoder {
    /// An encoder that spends about `bitrate` bit/s: [`DEFAULT_BITRATE`], or 6,000 to 128,000.
    ///
    /// # Errors
    /// When the bitrate is outside of that.
    pub fn new(bitrate: u32) -> Result<Self, OpusError> {
        if !(6_000..=128_000).contains(&bitrate) {
            return Err(OpusError::Bitrate { found: bitrate });
        }
        let mut codec = OpusEncoder::new(ENCODER_RATE.cast_signed(), 1, Application::Voip)
            .expect("24 kHz mono is among the few layouts that Opus names");
        codec.bitrate_bps = bitrate.cast_signed();
        // Half the work of 10 for a difference that speech hardly shows.
        codec.complexity = 5;
        Ok(Self { codec: Box::new(codec) })
    }

    /// Appends the packet of 20 ms of samples to `out` and returns its length in bytes.
    ///
    /// # Errors
    /// When there are not [`ENCODER_FRAME`] samples, or for a fault of the codec's own; `out` is then as before.
    pub fn encode(&mut self, samples: &[i16], out: &mut Vec<u8>) -> Result<usize, OpusError> {
        if samples.len() != ENCODER_FRAME {
            return Err(OpusError::Frame { found: samples.len() });
        }
        let mut bytes = [0; MAX_PACKET];
        let length = self.codec.encode_s16(samples, ENCODER_FRAME, &mut bytes);
        let length = length.map_err(|error| OpusError::of(&error, 0))?;
        out.extend_from_slice(bytes.get(..length).unwrap_or(&bytes));
        Ok(length)
    }
}

/// How an Opus stream in a file describes itself: `OpusHead`, RFC 7845 section 5.1, in Ogg and WebM alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Samples at [`DECODER_RATE`] before the sound begins: the encoder's delay.
    pub pre_skip: usize,
    /// Wanted loudness, 1/256 dB.
    gain: i16,
}

impl Head {
    /// Reads an `OpusHead`.
    ///
    /// # Errors
    /// When it is none, or one of surround sound.
    pub fn parse(bytes: &[u8]) -> Result<Self, OpusError> {
        match bytes {
            [b'O', b'p', b'u', b's', b'H', b'e', b'a', b'd', _, channels, s0, s1, _, _, _, _, g0, g1, family, ..] => {
                let pre_skip = u16::from_le_bytes([*s0, *s1]);
                Self::new(*channels, *family, pre_skip, i16::from_le_bytes([*g0, *g1]))
            }
            _ => Err(OpusError::Stream(format!("{} bytes that are no OpusHead", bytes.len()))),
        }
    }

    fn new(channels: u8, family: u8, pre_skip: u16, gain: i16) -> Result<Self, OpusError> {
        if family == 0 && (1..=2).contains(&channels) {
            Ok(Self { pre_skip: pre_skip.into(), gain })
        } else {
            Err(OpusError::Channels { found: channels })
        }
    }

    /// A decoder for the stream, at [`DECODER_RATE`].
    ///
    /// # Errors
    /// None are known.
    pub fn decoder(&self) -> Result<Decoder, RateError> {
        let mut decoder = Decoder::new(DECODER_RATE)?;
        decoder.codec.gain_q8 = self.gain.into();
        Ok(decoder)
    }
}

/// Reads an Ogg Opus file (RFC 7845), packet by packet. Of a damaged one, what comes before the damage.
#[derive(Debug)]
pub struct OggReader<R: Read> {
    reader: OggOpusReader<R>,
    decoder: Decoder,
    trim: Trim,
    /// One packet's samples; kept to save the allocation.
    decoded: Vec<i16>,
    whole: bool,
}

impl<R: Read> OggReader<R> {
    /// Reads the file's beginning.
    ///
    /// # Errors
    /// When not even that can be read, or it is surround sound.
    pub fn new(file: R) -> Result<Self, OpusError> {
        let stream = |error: opus_pure::Error| OpusError::of(&error, 0);
        let reader = OggOpusReader::new(file).map_err(stream)?;
        let head = reader.head();
        let known = Head::new(head.channel_count, head.mapping_family, head.pre_skip, head.output_gain_q8)?;
        let decoder = known.decoder().map_err(|error| OpusError::Codec(error.to_string()))?;
        let trim = Trim::new(head, DECODER_RATE.cast_signed(), 1).map_err(stream)?;
        Ok(Self { reader, decoder, trim, decoded: Vec::new(), whole: false })
    }

    /// The next packet's samples: mono, at [`DECODER_RATE`]; `None` at the end.
    pub fn read(&mut self) -> Option<&[i16]> {
        let packet = self.reader.read_packet().ok().flatten()?;
        self.decoded.clear();
        // A packet that cannot be decoded still takes its time.
        if self.decoder.decode(&packet.data, &mut self.decoded).is_err() {
            self.decoded.resize(samples_48k(&packet.data).unwrap_or(0), 0);
        }
        self.whole = packet.end_of_stream;
        Some(self.trim.keep(&packet, &self.decoded))
    }

    /// At the end: the recording went on to its end mark, and all of it could be read.
    pub fn is_whole(&self) -> bool {
        self.whole
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::BufReader};

    use opus_pure::Bandwidth;
    use proptest::prelude::*;

    use super::*;
    use crate::audio::testing::{correlation, file, hello};

    /// The packets of the clip, as libopus made them.
    fn clip() -> Vec<Vec<u8>> {
        let clip = File::open(file("tests/clips/hello_question_opus.ogg")).unwrap();
        let mut reader = OggOpusReader::new(BufReader::new(clip)).unwrap();
        reader.packets().map(|packet| packet.unwrap().data).collect()
    }

    fn encode(samples: &[i16], bitrate: u32) -> Vec<Vec<u8>> {
        let mut encoder = Encoder::new(bitrate).unwrap();
        let packet = |frame: &[i16]| {
            let mut bytes = Vec::new();
            assert_eq!(encoder.encode(frame, &mut bytes), Ok(bytes.len()));
            bytes
        };
        samples.chunks_exact(ENCODER_FRAME).map(packet).collect()
    }

    fn decode<P: AsRef<[u8]>>(packets: &[P], rate: u32) -> Vec<i16> {
        let (mut decoder, mut out) = (Decoder::new(rate).unwrap(), Vec::new());
        for packet in packets {
            let before = out.len();
            let played = decoder.decode(packet.as_ref(), &mut out).unwrap();
            assert_eq!(played, duration(packet.as_ref()).unwrap());
            assert_eq!(Duration::from_secs((out.len() - before) as u64) / rate, played);
        }
        out
    }

    #[test]
    fn the_length_is_in_the_table_of_contents() {
        // RFC 6716 section 3.1: SILK 10 20 40 60, hybrid 10 20, CELT 2.5 5 10 20 ms.
        let silk = [10_000, 20_000, 40_000, 60_000];
        let (hybrid, celt) = ([10_000, 20_000], [2_500, 5_000, 10_000, 20_000]);
        let all = silk.iter().cycle().take(12).chain(hybrid.iter().cycle().take(4)).chain(celt.iter().cycle().take(16));
        for (config, micros) in (0_u8..32).zip(all) {
            let frame = Duration::from_micros(*micros);
            assert_eq!(duration(&[config << 3]), Ok(frame), "config {config}, one frame");
            assert_eq!(duration(&[config << 3 | 1, 0, 0]), Ok(frame * 2), "config {config}, two frames");
            for frames in 1..=48 {
                let want =
                    (frame * u32::from(frames) <= Duration::from_millis(120)).then_some(frame * u32::from(frames));
                assert_eq!(duration(&[config << 3 | 3, frames]).ok(), want, "config {config}, {frames} frames");
            }
        }
    }

    #[test]
    fn what_is_no_packet_is_refused_and_changes_nothing() {
        let good = clip();
        let table: [(&str, &[u8], &str); 6] = [
            ("empty", &[], "an empty message is not an Opus packet"),
            ("over 120 ms", &[0x1B, 3, 0], "not an Opus packet (3 bytes): packet claims more than 120 ms"),
            ("no frames", &[0x0B, 0], "not an Opus packet (2 bytes): code 3 packet declares zero frames"),
            ("no frame count", &[0x0B], "not an Opus packet (1 bytes): code 3 packet has no frame count"),
            ("halves of unequal length", &[0x09, 1, 2, 3], "not an Opus packet (4 bytes)"),
            ("frame longer than 1275 bytes", &[0x08; 1_400], "not an Opus packet (1400 bytes)"),
        ];
        let mut decoder = Decoder::new(24_000).unwrap();
        let mut heard = Vec::new();
        for packet in &good {
            for (name, bytes, want) in table {
                let before = heard.len();
                let error = decoder.decode(bytes, &mut heard).unwrap_err().to_string();
                assert!(error.starts_with(want), "{name}: {error}");
                assert_eq!(heard.len(), before, "{name}");
            }
            decoder.decode(packet, &mut heard).unwrap();
        }
        assert!(heard == decode(&good, 24_000), "bad packets in between changed what was heard");
    }

    #[test]
    fn libopus_is_understood_at_every_rate() {
        let said = hello();
        for rate in [8_000, 16_000, 24_000, 48_000] {
            let mut resampler = Resampler::new(rate, 24_000).unwrap();
            let mut heard = Vec::new();
            resampler.push(&decode(&clip(), rate), &mut heard);
            let (alike, lag) = correlation(&said, &heard, 400);
            println!("{rate} Hz: {alike:.4} at {lag}");
            assert!(alike >= 0.95, "{rate} Hz: {alike:.4}");
        }
    }

    #[test]
    fn speech_comes_through_and_costs_what_it_should() {
        let said = hello();
        for (bitrate, want) in [(16_000, 0.93), (DEFAULT_BITRATE, 0.945), (32_000, 0.95)] {
            let packets = encode(&said, bitrate);
            let heard = decode(&packets, 24_000);
            let (alike, lag) = correlation(&said, &heard, 400);
            assert_eq!(Encoder::new(bitrate).unwrap().codec.lookahead(), ENCODER_DELAY);
            let late = ENCODER_DELAY as f64 + Decoder::new(24_000).unwrap().delay().as_secs_f64() * 24_000.0;
            let bits = packets.iter().map(Vec::len).sum::<usize>() * 8;
            let rate = bits as f64 / (packets.len() as f64 / 50.0);
            println!("{bitrate} bit/s: {alike:.4} at {lag} samples, {rate:.0} bit/s");
            assert!(alike >= want, "{bitrate} bit/s: {alike:.4}");
            assert!((lag as f64 - late).abs() <= 2.0, "late by {lag} samples, says {late}");
            assert!((0.5..1.15).contains(&(rate / f64::from(bitrate))), "{bitrate} bit/s: {rate:.0}");
        }
    }

    fn level(samples: &[i16]) -> f64 {
        (samples.iter().map(|s| f64::from(*s).powi(2)).sum::<f64>() / samples.len() as f64).sqrt()
    }

    #[test]
    fn a_lost_packet_is_covered_by_more_of_the_same() {
        let packets = clip();
        let mut covered = Vec::new();
        for lost in 20..packets.len() - 1 {
            let (mut decoder, mut heard) = (Decoder::new(48_000).unwrap(), Vec::new());
            for packet in &packets[lost - 10..lost] {
                decoder.decode(packet, &mut heard).unwrap();
            }
            let before = level(&heard[heard.len() - 960..]);
            heard.clear();
            decoder.conceal(&mut heard).unwrap();
            assert_eq!(heard.len(), 960);
            if before > 1_500.0 {
                covered.push(level(&heard) / before);
            }
            for _ in 0..25 {
                heard.clear();
                decoder.conceal(&mut heard).unwrap();
            }
            assert!(level(&heard) < 30.0, "packet {lost}: still at {:.0} after half a second", level(&heard));
        }
        // A packet's level over that of the one before it, where that one was loud.
        covered.sort_by(f64::total_cmp);
        let (middle, loudest) = (covered[covered.len() / 2], covered[covered.len() - 1]);
        assert!((0.5..1.3).contains(&middle) && loudest < 3.0, "{middle:.2}, {loudest:.2} of {}", covered.len());
    }

    #[test]
    fn settings_that_cannot_be_are_refused() {
        for bitrate in [0, 5_999, 128_001, u32::MAX] {
            assert_eq!(Encoder::new(bitrate).unwrap_err(), OpusError::Bitrate { found: bitrate });
        }
        let mut encoder = Encoder::new(DEFAULT_BITRATE).unwrap();
        let mut out = vec![7];
        assert_eq!(encoder.encode(&[0; 479], &mut out), Err(OpusError::Frame { found: 479 }));
        assert_eq!(out, [7]);
        assert!(Decoder::new(44_101).is_err());
    }

    #[test]
    fn loud_noise_fits_into_a_packet() {
        let noise: Vec<i16> = (0..4_800_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 16) as u16 as i16).collect();
        for packet in encode(&noise, 128_000) {
            assert!(packet.len() <= MAX_PACKET && duration(&packet) == Ok(Duration::from_millis(20)));
        }
    }

    #[test]
    fn a_stereo_packet_is_mixed_down() {
        let mut stereo = OpusEncoder::new(24_000, 2, Application::Voip).unwrap();
        stereo.force_bandwidth = Some(Bandwidth::Wideband);
        let said = hello();
        let mut bytes = [0; 2_000];
        let packets: Vec<Vec<u8>> = said
            .chunks_exact(480)
            .map(|frame| {
                let both: Vec<i16> = frame.iter().flat_map(|s| [*s, *s / 2]).collect();
                let length = stereo.encode_s16(&both, 480, &mut bytes).unwrap();
                bytes[..length].to_vec()
            })
            .collect();
        let (alike, _) = correlation(&said, &decode(&packets, 24_000), 400);
        assert!(alike > 0.9, "{alike:.3}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]
        #[test]
        fn random_bytes_never_panic(
            packets in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 1..12),
        ) {
            let (mut decoder, mut out) = (Decoder::new(48_000).unwrap(), Vec::new());
            for packet in packets {
                let before = out.len();
                match decoder.decode(&packet, &mut out) {
                    Ok(played) => prop_assert_eq!(Duration::from_secs((out.len() - before) as u64) / 48_000, played),
                    Err(_) => prop_assert_eq!(out.len(), before),
                }
            }
        }

        #[test]
        fn damaged_packets_never_panic(
            damage in proptest::collection::vec((0_usize..270, 0_usize..60, any::<u8>(), 0_usize..150), 1..40),
        ) {
            let good = clip();
            let (mut decoder, mut out) = (Decoder::new(48_000).unwrap(), Vec::new());
            for (which, place, byte, length) in damage {
                let mut packet = good[which % good.len()].clone();
                packet.truncate(length);
                if let Some(place) = packet.get_mut(place) {
                    *place = byte;
                }
                let _ = decoder.decode(&packet, &mut out);
            }
        }
    }
}
