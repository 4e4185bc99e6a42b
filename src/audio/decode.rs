//! Recordings: any usual audio file to mono samples at one rate, and answers to a wav file.
//!
//! Stands beside the live path, for the commands and for batches, never on a call's way: a [`Reader`] reads a file block by
//! block, [`decode_file`] all of it into memory. Symphonia reads the containers and most codecs; it knows no Opus, so those
//! packets go to [`super::opus`]. Of a file that is cut short, what is there is decoded. A voice is what is wanted, so
//! channels are mixed to one.
mod rate;
mod reader;
mod source;
mod track;

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use symphonia::core::codecs::audio::{AudioCodecId, well_known as codec};

pub use self::reader::{Container, Facts, Length, Reader, probe, probe_bytes};
use self::source::Trouble;
use super::{
    format::{Codec, Format},
    g711::Law,
    opus::OpusError,
};

/// A decoded recording: mono, signed 16 bit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recording {
    /// The samples.
    pub samples: Vec<i16>,
    /// Samples per second.
    pub rate: u32,
    /// The file ends before it should, or part of it could not be read: worth a warning.
    pub truncated: bool,
}

impl Recording {
    /// How long it plays.
    pub fn duration(&self) -> Duration {
        Format { codec: Codec::Pcm16, rate: self.rate.max(1) }.duration(self.samples.len() * 2)
    }

    /// The samples in the bytes of a call's format, which must be of the recording's rate: PCM16 or G.711. `None` for
    /// Opus, which is made packet by packet.
    pub fn bytes(&self, codec: Codec) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        match (codec, Law::of(codec)) {
            (_, Some(law)) => law.encode_into(&self.samples, &mut bytes),
            (Codec::Pcm16, _) => bytes.extend(self.samples.iter().flat_map(|sample| sample.to_le_bytes())),
            _ => return None,
        }
        Some(bytes)
    }
}

/// Why a file could not be made into a [`Recording`].
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Nothing there.
    #[error("{}: no such file", path.display())]
    NotFound {
        /// The file.
        path: PathBuf,
    },
    /// Something there, but it cannot be read.
    #[error("{}: cannot be read: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file of no bytes.
    #[error("{}: the file is empty (0 bytes)", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// No container that we know.
    #[error("{}: not an audio file that can be read; known are wav, flac, mp3, ogg and opus, m4a and aac, webm and mkv", path.display())]
    NotAudio {
        /// The file.
        path: PathBuf,
    },
    /// A film or a subtitle file.
    #[error("{}: there is no audio track in this file", path.display())]
    NoTrack {
        /// The file.
        path: PathBuf,
    },
    /// Audio, but in a codec that we have no decoder for.
    #[error("{}: its audio is {codec}, which cannot be decoded here", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The codec, as people call it.
        codec: String,
    },
    /// A container that we know, but nothing in it can be decoded.
    #[error("{}: damaged or cut short, nothing in it can be decoded ({reason})", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What the reader stumbled over.
        reason: String,
    },
    /// A rate that no recording is wanted at.
    #[error("a recording at {found} Hz; allowed: 1000 to 192000")]
    Rate {
        /// What was asked for.
        found: u32,
    },
}

/// Reads `path` into mono samples at `rate` Hz, in whatever of the known formats it is; its name does not matter.
///
/// # Errors
/// When there is no such file, or no audio in it that can be decoded: see [`DecodeError`].
pub fn decode_file(path: impl AsRef<Path>, rate: u32) -> Result<Recording, DecodeError> {
    let mut reader = Reader::open(path, rate)?;
    let mut samples = Vec::new();
    while reader.read(&mut samples)? {}
    Ok(Recording { samples, rate, truncated: reader.truncated() })
}

/// Reads a file's bytes, which came under `name`, into mono samples at `rate` Hz; without a rate, at the file's own.
///
/// # Errors
/// When there is no audio in it that can be decoded: see [`DecodeError`].
pub fn decode_bytes(
    name: impl AsRef<Path>,
    bytes: impl Into<Bytes>,
    rate: Option<u32>,
) -> Result<Recording, DecodeError> {
    let mut reader = Reader::of_bytes(name, bytes.into(), rate)?;
    let mut samples = Vec::new();
    while reader.read(&mut samples)? {}
    Ok(Recording { samples, rate: reader.rate(), truncated: reader.truncated() })
}

impl DecodeError {
    /// For programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => "absent",
            Self::Unreadable { .. } => "unreadable",
            Self::Empty { .. } => "empty",
            Self::NotAudio { .. } => "not_audio",
            Self::NoTrack { .. } => "no_audio_track",
            Self::Unsupported { .. } => "codec_unsupported",
            Self::Damaged { .. } => "damaged",
            Self::Rate { .. } => "limits",
        }
    }
}

/// A [`DecodeError`] that does not know its file yet.
enum Failure {
    NotAudio,
    NoTrack,
    Unsupported(String),
    Damaged(String),
    Unreadable(io::Error),
}

impl Failure {
    /// For this file. Where the system could not read any further, that is the reason, whatever its reader made of it.
    fn at(self, path: &Path, trouble: &Trouble) -> DecodeError {
        let path = path.to_owned();
        match (trouble.take(), self) {
            (Some(source), _) | (None, Self::Unreadable(source)) => DecodeError::Unreadable { path, source },
            (None, Self::NotAudio) => DecodeError::NotAudio { path },
            (None, Self::NoTrack) => DecodeError::NoTrack { path },
            (None, Self::Unsupported(codec)) => DecodeError::Unsupported { path, codec },
            (None, Self::Damaged(reason)) => DecodeError::Damaged { path, reason },
        }
    }
}

impl From<OpusError> for Failure {
    fn from(error: OpusError) -> Self {
        match error {
            OpusError::Channels { found } => Self::Unsupported(format!("surround Opus ({found} channels)")),
            other => Self::Damaged(other.to_string()),
        }
    }
}

fn codec_name(id: AudioCodecId) -> String {
    let name = match id {
        codec::CODEC_ID_OPUS => "Opus",
        codec::CODEC_ID_ALAC => "Apple Lossless (ALAC)",
        codec::CODEC_ID_AC3 | codec::CODEC_ID_EAC3 | codec::CODEC_ID_AC4 => "Dolby Digital (AC-3)",
        codec::CODEC_ID_DCA => "DTS",
        codec::CODEC_ID_SPEEX => "Speex",
        codec::CODEC_ID_WMA => "Windows Media Audio",
        codec::CODEC_ID_AAC => "a kind of AAC that is not AAC-LC",
        codec::CODEC_ID_WAVPACK => "WavPack",
        codec::CODEC_ID_MONKEYS_AUDIO => "Monkey's Audio",
        codec::CODEC_ID_ADPCM_G722 => "G.722",
        codec::CODEC_ID_ADPCM_G726 | codec::CODEC_ID_ADPCM_G726LE => "G.726",
        codec::CODEC_ID_MP1 | codec::CODEC_ID_MP2 => "MPEG layer 1 or 2",
        other => return format!("of an unknown codec ({other})"),
    };
    name.to_owned()
}

/// Why an answer was not saved.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// Packets, once in a row, cannot be told apart.
    #[error("{}: Opus cannot be written as a wav file; decode it first", path.display())]
    Opus {
        /// The file.
        path: PathBuf,
    },
    /// The file could not be made.
    #[error("{}: cannot be written: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: hound::Error,
    },
}

/// Writes audio in a call's `format` as a PCM16 wav file of the same rate; G.711 is decoded. Half a sample at the end is
/// left out.
///
/// # Errors
/// When the format is Opus, or the file cannot be written.
pub fn write_wav(path: impl AsRef<Path>, format: Format, bytes: &[u8]) -> Result<(), WriteError> {
    let path = path.as_ref();
    let mut samples = Vec::new();
    match (format.codec, Law::of(format.codec)) {
        (_, Some(law)) => law.decode_into(bytes, &mut samples),
        (Codec::Pcm16, _) => samples.extend(bytes.as_chunks::<2>().0.iter().map(|sample| i16::from_le_bytes(*sample))),
        _ => return Err(WriteError::Opus { path: path.into() }),
    }
    let spec = hound::WavSpec {
        channels: 1,
        sample_rate: format.rate,
        bits_per_sample: 16,
        sample_format: hound::SampleFormat::Int,
    };
    let write = || {
        let mut wav = hound::WavWriter::create(path, spec)?;
        samples.iter().try_for_each(|sample| wav.write_sample(*sample))?;
        wav.finalize()
    };
    write().map_err(|source| WriteError::File { path: path.into(), source })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;
    use crate::audio::testing::{correlation, file, hello_at};

    fn clip(name: &str) -> PathBuf {
        file("tests/clips").join(name)
    }

    /// A file of these bytes, and its folder, which goes away when it is dropped.
    fn saved(name: &str, bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        (folder, path)
    }

    const HELLO: f64 = 5.399_6;

    #[test]
    fn every_clip_is_read_whole() {
        // Seconds; how far they may be off; what of "hello" must be in it, and how late it may be, ms.
        let table = [
            ("hello_question_24k.mp3", HELLO, 0.002, Some((0.99, 1))),
            ("hello_question_44k1_stereo.mp3", HELLO, 0.002, Some((0.99, 1))),
            ("hello_question_24k.m4a", HELLO, 0.002, Some((0.96, 1))),
            // Raw AAC says nothing of the frame before the sound, no whole number of samples here, and the rest of the last.
            ("hello_question_24k.aac", HELLO, 0.065, Some((0.93, 43))),
            ("hello_question_opus.ogg", HELLO, 0.01, Some((0.95, 1))),
            ("hello_question_opus.webm", HELLO, 0.02, Some((0.95, 1))),
            ("hello_question_opus_live.webm", HELLO, 0.02, Some((0.95, 1))),
            ("hello_question_vorbis.ogg", HELLO, 0.001, Some((0.98, 1))),
            ("hello_question_8k.flac", HELLO, 0.001, Some((0.999, 1))),
            ("hello_question_telephone_8k_ulaw.wav", HELLO, 0.001, None),
            ("hello_question_8k_alaw.wav", HELLO, 0.001, Some((0.999, 1))),
            ("hello_question_8k_8bit.wav", HELLO, 0.001, Some((0.99, 1))),
            ("noisy_question_16k.wav", HELLO, 0.001, Some((0.89, 1))),
            ("hello_word_8k_stereo_float.wav", 0.7, 0.001, None),
            ("film_with_sound.mp4", 1.0, 0.05, None),
            ("long_turn_pause_24k.flac", 9.158, 0.001, None),
            ("silence_then_dither_24k.wav", 2.0, 0.000_1, None),
            ("tone_1k_-12dbfs_24k.wav", 1.0, 0.000_1, None),
        ];
        let said = hello_at(8_000);
        for (name, seconds, slack, speech) in table {
            for rate in [8_000, 24_000] {
                let recording = decode_file(clip(name), rate).unwrap();
                let off = recording.duration().as_secs_f64() - seconds;
                assert!(off.abs() <= slack, "{name} at {rate} Hz: {off:+.4} s off");
                assert!(!recording.truncated, "{name}");
                if let Some((want, late)) = speech.filter(|_| rate == 8_000) {
                    let (alike, lag) = correlation(&said, &recording.samples, 8 * late + 8);
                    println!("{name}: {alike:.4} at {lag}, {off:+.4} s");
                    assert!(alike >= want, "{name}: {alike:.4}");
                    assert!(lag.unsigned_abs() <= 8 * late, "{name}: late by {lag} samples");
                }
            }
        }
    }

    #[test]
    fn samples_of_the_wanted_rate_are_not_touched() {
        let recording = decode_file(file("assets/hello.wav"), 24_000).unwrap();
        assert!(recording.samples == hello_at(24_000));
    }

    #[test]
    fn telephone_recordings_are_decoded_as_calls_are() {
        for (name, law) in [("hello_question_telephone_8k_ulaw.wav", Law::Mu), ("hello_question_8k_alaw.wav", Law::A)] {
            let bytes = fs::read(clip(name)).unwrap();
            let data = bytes.windows(4).position(|id| id == b"data").unwrap() + 8;
            let mut want = Vec::new();
            law.decode_into(&bytes[data..data + 43_197], &mut want);
            assert!(decode_file(clip(name), 8_000).unwrap().samples == want, "{name}");
        }
    }

    #[test]
    fn channels_are_mixed_to_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("stereo.wav");
        let spec = hound::WavSpec {
            channels: 2,
            sample_rate: 8_000,
            bits_per_sample: 16,
            sample_format: hound::SampleFormat::Int,
        };
        let mut wav = hound::WavWriter::create(&path, spec).unwrap();
        for n in 0..800_i16 {
            wav.write_sample(n * 10).unwrap();
            wav.write_sample(-n * 4).unwrap();
        }
        wav.finalize().unwrap();
        let want: Vec<i16> = (0..800).map(|n| n * 3).collect();
        assert_eq!(decode_file(&path, 8_000).unwrap().samples, want);
    }

    #[test]
    fn what_cannot_be_read_says_why() {
        let folder = tempfile::tempdir().unwrap();
        let put = |name: &str, bytes: &[u8]| {
            let path = folder.path().join(name);
            fs::write(&path, bytes).unwrap();
            path
        };
        let m4a = fs::read(clip("hello_question_24k.m4a")).unwrap();
        let index = m4a.windows(4).position(|atom| atom == b"moov").unwrap() - 4;
        let size = u32::from_be_bytes(*m4a[index..].first_chunk().unwrap()) as usize;
        let without_index = [&m4a[..index], &m4a[index + size..]].concat();
        let noise: Vec<u8> = (0..40_000_u32).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[1]).collect();
        let wav = fs::read(clip("tone_1k_-12dbfs_24k.wav")).unwrap();
        let table = [
            (folder.path().join("nowhere.wav"), "no such file"),
            (folder.path().to_owned(), "cannot be read: "),
            (put("empty.wav", &[]), "the file is empty (0 bytes)"),
            (
                put("text.wav", "To be, or not to be.\n".repeat(999).as_bytes()),
                "not an audio file that can be read; known",
            ),
            (put("noise.mp3", &noise), "not an audio file that can be read; known"),
            (clip("film_without_sound.mp4"), "there is no audio track in this file"),
            (clip("hello_word_alac.m4a"), "its audio is Apple Lossless (ALAC), which cannot be decoded here"),
            (
                put("half.m4a", &without_index),
                "damaged or cut short, nothing in it can be decoded (unsupported feature: isomp4: missing moov atom)",
            ),
            (put("header.wav", &wav[..44]), "damaged or cut short, nothing in it can be decoded ("),
            (
                put("short.ogg", &fs::read(clip("hello_question_opus.ogg")).unwrap()[..60]),
                "damaged or cut short, nothing in it can be decoded (",
            ),
        ];
        for (path, want) in table {
            let error = decode_file(&path, 24_000).unwrap_err().to_string();
            let rest = error.strip_prefix(&format!("{}: ", path.display())).expect("an error names its file");
            assert!(rest.starts_with(want), "{error}");
        }
        let error = decode_file(clip("tone_1k_-12dbfs_24k.wav"), 0).unwrap_err().to_string();
        assert_eq!(error, "a recording at 0 Hz; allowed: 1000 to 192000");
    }

    #[test]
    fn a_file_that_is_cut_short_is_read_up_to_the_cut() {
        for name in [
            "hello_question_24k.mp3",
            "hello_question_24k.m4a",
            "hello_question_24k.aac",
            "hello_question_opus.ogg",
            "hello_question_opus.webm",
            "hello_question_vorbis.ogg",
            "hello_question_8k.flac",
            "hello_question_telephone_8k_ulaw.wav",
            "noisy_question_16k.wav",
            "hello_word_8k_stereo_float.wav",
        ] {
            let bytes = fs::read(clip(name)).unwrap();
            let whole = decode_file(clip(name), 8_000).unwrap();
            let (_folder, path) = saved(name, &bytes[..bytes.len() * 7 / 10]);
            let cut = decode_file(&path, 8_000).unwrap();
            let part = cut.samples.len() as f64 / whole.samples.len() as f64;
            println!("{name}: {part:.2} of it");
            assert!(cut.truncated, "{name}: {part:.2} of it and no warning");
            // Ogg pages hold a second, and what is on a cut one is lost.
            assert!((0.35..0.8).contains(&part), "{name}: {part:.2} of the sound in 0.7 of the file");
            let (alike, lag) = correlation(&cut.samples[..cut.samples.len() * 9 / 10], &whole.samples, 40);
            assert!(alike > 0.99 && lag == 0, "{name}: {alike:.3} at {lag}");
        }
    }

    #[test]
    fn a_wav_that_was_piped_does_not_know_its_length() {
        let mut wav = fs::read(clip("tone_1k_-12dbfs_24k.wav")).unwrap();
        wav[4..8].fill(0xFF);
        wav[40..44].fill(0xFF);
        let (_folder, path) = saved("piped.wav", &wav);
        let recording = decode_file(&path, 24_000).unwrap();
        assert_eq!((recording.samples.len(), recording.truncated), (24_000, false));
    }

    #[test]
    fn an_answer_is_saved_in_a_format_that_every_player_knows() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("reply.wav");
        let recording = decode_file(file("assets/hello.wav"), 8_000).unwrap();
        for (format, exact) in
            [(Format { codec: Codec::Pcm16, rate: 8_000 }, true), (Format::MULAW, false), (Format::ALAW, false)]
        {
            let bytes = recording.bytes(format.codec).unwrap();
            write_wav(&path, format, &bytes).unwrap();
            let wav = hound::WavReader::open(&path).unwrap();
            assert_eq!((wav.spec().sample_rate, wav.spec().bits_per_sample, wav.spec().channels), (8_000, 16, 1));
            let back = decode_file(&path, 8_000).unwrap();
            assert_eq!(back.samples.len(), recording.samples.len());
            let (alike, lag) = correlation(&recording.samples, &back.samples, 10);
            assert!(alike > 0.999 && lag == 0, "{format}: {alike}");
            assert_eq!(back == recording, exact, "{format}");
        }
        write_wav(&path, Format::PCM_24K, &[1, 0, 2]).unwrap();
        assert_eq!(decode_file(&path, 24_000).unwrap().samples, [1], "half a sample is left out");
        assert!(recording.bytes(Codec::Opus).is_none());
        let error = write_wav(&path, Format::OPUS, &[]).unwrap_err().to_string();
        assert!(error.ends_with("reply.wav: Opus cannot be written as a wav file; decode it first"), "{error}");
        let error = write_wav(folder.path().join("no/reply.wav"), Format::PCM_24K, &[]).unwrap_err().to_string();
        assert!(error.contains("no/reply.wav: cannot be written: "), "{error}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]
        #[test]
        fn damaged_files_never_panic(
            which in 0_usize..9, places in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
            headers in proptest::collection::vec((0_usize..600, any::<u8>()), 0..3), cut in 0_usize..20_000,
        ) {
            let names = [
                "hello_question_24k.mp3", "hello_question_24k.m4a", "hello_question_24k.aac", "hello_question_opus.ogg",
                "hello_question_opus.webm", "hello_question_vorbis.ogg", "hello_question_8k.flac",
                "hello_question_8k_alaw.wav", "film_with_sound.mp4",
            ];
            let mut bytes = fs::read(clip(names[which])).unwrap();
            for (place, byte) in places {
                let length = bytes.len();
                bytes[place.index(length)] = byte;
            }
            for (place, byte) in headers {
                if let Some(there) = bytes.get_mut(place) {
                    *there = byte;
                }
            }
            bytes.truncate(bytes.len().saturating_sub(cut));
            let (_folder, path) = saved("damaged", &bytes);
            if let Ok(sound) = decode_file(&path, 8_000) {
                prop_assert!(!sound.samples.is_empty());
            }
        }
    }
}
