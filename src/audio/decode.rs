//! Recordings: any usual audio file to mono samples at one rate, and answers to a wav file.
//!
//! Stands beside the live path, for the commands and for batches: whole files, in memory, never on a call's way. Symphonia
//! reads the containers and most codecs; it knows no Opus, so those packets go to [`super::opus`]. Of a file that is
//! cut short, what is there is decoded. A voice is what is wanted, so channels are mixed to one.
use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use rubato::{Fft, FixedSync, Resampler as _, audioadapter_buffers::direct::InterleavedSlice};
use symphonia::core::{
    codecs::audio::{AudioCodecId, AudioCodecParameters, AudioDecoder, AudioDecoderOptions, well_known as codec},
    errors::Error as SymphoniaError,
    formats::{FormatOptions, FormatReader, Track, TrackType, probe::Hint},
    io::{MediaSource, MediaSourceStream, MediaSourceStreamOptions, ReadOnlySource},
    meta::MetadataOptions,
    packet::Packet,
};

use super::{
    format::{Codec, Format},
    g711::Law,
    opus::{self, Head, OpusError},
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
    let path = path.as_ref();
    if !(1_000..=192_000).contains(&rate) {
        return Err(DecodeError::Rate { found: rate });
    }
    let bytes = fs::read(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => DecodeError::NotFound { path: path.into() },
        _ => DecodeError::Unreadable { path: path.into(), source },
    })?;
    if bytes.is_empty() {
        return Err(DecodeError::Empty { path: path.into() });
    }
    let extension = path.extension().and_then(|extension| extension.to_str());
    let sound = read(bytes, extension).map_err(|failure| failure.of(path))?;
    if sound.samples.is_empty() {
        let reason = "it holds no samples".to_owned();
        return Err(DecodeError::Damaged { path: path.into(), reason });
    }
    let samples = change_rate(&sound.samples, sound.rate, rate).map_err(|reason| Failure::Damaged(reason).of(path))?;
    Ok(Recording { samples, rate, truncated: sound.cut })
}

/// Mono sound as the file has it; full scale is 1.
struct Sound {
    samples: Vec<f32>,
    rate: u32,
    /// Something is missing.
    cut: bool,
}

/// A [`DecodeError`] that does not know its file yet.
enum Failure {
    NotAudio,
    NoTrack,
    Unsupported(String),
    Damaged(String),
}

impl Failure {
    fn of(self, path: &Path) -> DecodeError {
        let path = path.to_owned();
        match self {
            Self::NotAudio => DecodeError::NotAudio { path },
            Self::NoTrack => DecodeError::NoTrack { path },
            Self::Unsupported(codec) => DecodeError::Unsupported { path, codec },
            Self::Damaged(reason) => DecodeError::Damaged { path, reason },
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

fn read(bytes: Vec<u8>, extension: Option<&str>) -> Result<Sound, Failure> {
    let source = Source::new(bytes);
    let mut hint = Hint::new();
    if let Some(extension) = extension {
        hint.with_extension(extension);
    }
    let probe = symphonia::default::get_probe();
    let mut format =
        probe.probe(&hint, source.open(), FormatOptions::default(), MetadataOptions::default()).map_err(|error| {
            match error {
                SymphoniaError::Unsupported(reason) if reason.starts_with("core (probe)") => Failure::NotAudio,
                SymphoniaError::LimitError(_) => Failure::NotAudio,
                other => Failure::Damaged(other.to_string()),
            }
        })?;
    // MPEG layers 1 and 2 are hardly in use, but many a binary file looks like them.
    let container = format.format_info().short_name;
    if matches!(container, "mp1" | "mp2") {
        return Err(Failure::NotAudio);
    }
    let track = format.default_track(TrackType::Audio).ok_or(Failure::NoTrack)?.clone();
    let parameters = track.codec_params.as_ref().and_then(|parameters| parameters.audio()).ok_or(Failure::NoTrack)?;
    let mut sound = if parameters.codec != codec::CODEC_ID_OPUS {
        decode_track(&mut *format, &track, parameters, source.cut)?
    } else if container == "ogg" {
        let ogg = opus::read_ogg(&source.bytes)?;
        let samples = ogg.samples.iter().map(|sample| f32::from(*sample) / FULL_SCALE).collect();
        Sound { samples, rate: opus::DECODER_RATE, cut: !ogg.whole }
    } else {
        decode_opus_track(&mut *format, &track, parameters, source.cut)?
    };
    sound.cut |= source.cut;
    Ok(sound)
}

const FULL_SCALE: f32 = 32_768.0;

/// All packets of one track, with symphonia's decoder.
fn decode_track(
    format: &mut dyn FormatReader,
    track: &Track,
    parameters: &AudioCodecParameters,
    padded: bool,
) -> Result<Sound, Failure> {
    let container = format.format_info().short_name;
    let mut decoder = symphonia::default::get_codecs()
        .make_audio_decoder(parameters, &AudioDecoderOptions::default())
        .map_err(|_| Failure::Unsupported(codec_name(parameters.codec)))?;
    let mut sound = Sound { samples: Vec::new(), rate: 0, cut: false };
    let (mut decoded, mut failed) = (0_usize, 0_usize);
    let ended_early = each_packet(format, track.id, padded, |packet| match append(&mut *decoder, packet, &mut sound) {
        Ok(()) => decoded += 1,
        Err(_) => failed += 1,
    });
    if decoded == 0 || failed > decoded {
        // An mp3 header is two bytes, so anything may hold one.
        let reason = format!("{failed} of {} packets are broken", failed + decoded);
        return Err(if container == "mp3" { Failure::NotAudio } else { Failure::Damaged(reason) });
    }
    finish(&mut sound, format, track, ended_early);
    Ok(sound)
}

/// Hands every packet of the track to `take`. Whether the file ended within something.
fn each_packet(format: &mut dyn FormatReader, track: u32, padded: bool, mut take: impl FnMut(&Packet)) -> bool {
    loop {
        match format.next_packet() {
            // What `Source` put in place of what is missing.
            Ok(Some(packet)) if padded && packet.data.iter().all(|byte| *byte == 0) => return true,
            Ok(Some(packet)) if packet.track_id == track => take(&packet),
            Ok(Some(_)) => {}
            // Another stream is chained to this one: the recording is the first.
            Ok(None) | Err(SymphoniaError::ResetRequired) => return false,
            Err(_) => return true,
        }
    }
}

/// Decodes one packet and mixes its channels to one.
fn append(decoder: &mut dyn AudioDecoder, packet: &Packet, sound: &mut Sound) -> Result<(), SymphoniaError> {
    let decoded = decoder.decode(packet)?;
    let (rate, channels) = (decoded.spec().rate(), decoded.spec().channels().count().max(1));
    if sound.rate == 0 {
        sound.rate = rate;
    } else if rate != sound.rate {
        return Err(SymphoniaError::DecodeError("the rate changes within the file"));
    }
    let mut interleaved: Vec<f32> = Vec::new();
    decoded.copy_to_vec_interleaved(&mut interleaved);
    let mixed = interleaved.chunks_exact(channels).map(|frame| frame.iter().sum::<f32>() / channels as f32);
    sound.samples.extend(mixed);
    Ok(())
}

/// Judges by the container's own figures what is missing, and takes off what an encoder put around the sound.
fn finish(sound: &mut Sound, format: &dyn FormatReader, track: &Track, ended_early: bool) {
    let declared = track.num_frames.filter(|frames| *frames > 0);
    let have = sound.samples.len() as u64;
    // Figures of raw aac, and of mp3 without an encoder's tag, are guesses from the length of the file.
    let (told, endless) = match format.format_info().short_name {
        "aac" => (None, false),
        "mp3" => (declared.filter(|_| track.delay.is_some()), false),
        // A wav or mkv that was written into a pipe does not know its length and just stops.
        "wave" => (declared, declared.is_none()),
        "matroska" => (None, true),
        _ => (declared, false),
    };
    let tolerance = u64::from(sound.rate) / 20;
    sound.cut |= ended_early && !endless || told.is_some_and(|told| have + tolerance < told);
    if format.format_info().short_name == "isomp4" {
        sound.samples.truncate(declared.and_then(|frames| usize::try_from(frames).ok()).unwrap_or(usize::MAX));
        let lead = declared.and_then(|frames| mp4_lead(format, frames, sound.rate)).unwrap_or(0);
        sound.samples.drain(..lead.min(sound.samples.len()));
    }
}

/// Samples that an AAC encoder put before the sound. Symphonia 0.6 knows no edit lists, but the film's length says how
/// much of the track is to be played, in milliseconds; what is over is an encoder's lead-in where it is as long as one.
fn mp4_lead(format: &dyn FormatReader, frames: u64, rate: u32) -> Option<usize> {
    /// ffmpeg and most others, fdk-aac, Apple.
    const KNOWN: [usize; 3] = [1_024, 2_048, 2_112];
    let info = format.media_info();
    let played = info.time_base?.calc_duration(info.duration?)?;
    let played = played.as_nanos().unsigned_abs() * u128::from(rate) / 1_000_000_000;
    let lead = usize::try_from(u128::from(frames).checked_sub(played)?).ok()?;
    KNOWN.into_iter().find(|known| known.abs_diff(lead) <= rate as usize / 1_000 + 1)
}

/// Opus in WebM, Matroska or MP4: symphonia finds the packets, our decoder understands them.
fn decode_opus_track(
    format: &mut dyn FormatReader,
    track: &Track,
    parameters: &AudioCodecParameters,
    padded: bool,
) -> Result<Sound, Failure> {
    let head = match Head::parse(parameters.extra_data.as_deref().unwrap_or_default()) {
        Err(OpusError::Stream(_)) => {
            return Err(Failure::Unsupported("Opus whose description cannot be read".to_owned()));
        }
        head => head?,
    };
    let mut decoder = head.decoder().map_err(|error| Failure::Damaged(error.to_string()))?;
    let (mut samples, mut broken) = (Vec::new(), false);
    each_packet(format, track.id, padded, |packet| broken |= decoder.decode(&packet.data, &mut samples).is_err());
    let samples = samples.iter().skip(head.pre_skip).map(|sample| f32::from(*sample) / FULL_SCALE).collect();
    Ok(Sound { samples, rate: opus::DECODER_RATE, cut: broken })
}

/// A file's bytes, and whether its own lengths say that there should be more of them.
struct Source {
    bytes: Vec<u8>,
    cut: bool,
    /// Read from front to back: a WebM's reader looks for the index at the end, and gives up where it is missing.
    forward: bool,
}

impl Source {
    /// Makes a file that is cut short readable up to the cut, where its reader would give up at once: a film (mp4, m4a)
    /// whose last atom is incomplete is filled up with zeros.
    fn new(mut bytes: Vec<u8>) -> Self {
        let (cut, forward) = match bytes.as_slice() {
            [_, _, _, _, b'f', b't', b'y', b'p', ..] => match mp4_end(&bytes) {
                // A claim beyond reason is not filled up.
                Some(end) if end > bytes.len() && end / 64 <= bytes.len() => {
                    bytes.resize(end, 0);
                    (true, false)
                }
                _ => (false, false),
            },
            [0x1A, 0x45, 0xDF, 0xA3, ..] => {
                let cut = webm_end(&bytes).is_some_and(|end| end > bytes.len() as u64);
                (cut, cut)
            }
            _ => (false, false),
        };
        Self { bytes, cut, forward }
    }

    fn open(&self) -> MediaSourceStream<'_> {
        let bytes = io::Cursor::new(self.bytes.as_slice());
        let source: Box<dyn MediaSource> =
            if self.forward { Box::new(ReadOnlySource::new(bytes)) } else { Box::new(bytes) };
        MediaSourceStream::new(source, MediaSourceStreamOptions::default())
    }
}

/// Where the last atom of a film says that it ends.
fn mp4_end(bytes: &[u8]) -> Option<usize> {
    let mut at = 0_usize;
    while let Some(header) = bytes.get(at..at + 8) {
        let (size, _) = header.split_first_chunk::<4>()?;
        let size = match u32::from_be_bytes(*size) {
            // To the end of the file.
            0 => return None,
            1 => usize::try_from(u64::from_be_bytes(*bytes.get(at + 8..)?.first_chunk()?)).ok()?,
            size => usize::try_from(size).ok()?,
        };
        if size < 8 {
            return None;
        }
        at = at.checked_add(size)?;
    }
    Some(at)
}

/// Where a WebM says that it ends; `None` where it does not know. The segment's id is followed by its length: the first
/// byte's leading zeros say of how many bytes, all ones is unknown.
fn webm_end(bytes: &[u8]) -> Option<u64> {
    const SEGMENT: [u8; 4] = [0x18, 0x53, 0x80, 0x67];
    let start = bytes.windows(4).take(4_096).position(|id| id == SEGMENT)? + 4;
    let first = *bytes.get(start)?;
    let width = first.leading_zeros() as usize + 1;
    let rest = bytes.get(start + 1..start + width)?;
    let all_ones = (1_u64 << (7 * width).min(63)) - 1;
    let high = u64::from(first) & ((0x80 >> (width - 1).min(7)) - 1);
    let length = rest.iter().fold(high, |length, byte| length << 8 | u64::from(*byte));
    (width <= 8 && length != all_ones).then(|| (start + width) as u64 + length)
}

/// To `to` Hz and 16 bits.
fn change_rate(samples: &[f32], from: u32, to: u32) -> Result<Vec<i16>, String> {
    if from == to {
        return Ok(samples.iter().copied().map(to_i16).collect());
    }
    // Long blocks: sharp filters, and nobody waits for them.
    let mut resampler =
        Fft::<f32>::new(from as usize, to as usize, 4_096, 1, FixedSync::Both).map_err(|error| error.to_string())?;
    let input = InterleavedSlice::new(samples, 1, samples.len()).map_err(|error| error.to_string())?;
    let out = resampler.process_all(&input, samples.len(), None).map_err(|error| error.to_string())?;
    Ok(out.take_data().into_iter().map(to_i16).collect())
}

#[expect(clippy::cast_possible_truncation, reason = "a cast cuts at full scale")]
fn to_i16(sample: f32) -> i16 {
    (sample * FULL_SCALE).round() as i16
}

fn codec_name(id: AudioCodecId) -> String {
    let name = match id {
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
    fn a_file_says_itself_that_it_is_cut() {
        let huge = b"\0\0\0\x14ftypM4A \0\0\0\0M4A \0\0\0\x01mdat\0\0\0\x40\0\0\0\0".to_vec();
        let source = Source::new(huge.clone());
        assert!(!source.cut && source.bytes == huge, "256 GiB of zeros");
        let source = Source::new(b"\0\0\0\x14ftypM4A \0\0\0\0M4A \0\0\x01\0mdat".to_vec());
        assert!(source.cut && source.bytes.len() == 20 + 256);
        for film in
            [&b"\0\0\0\x14ftypM4A \0\0\0\0M4A \0\0\0\0mdat"[..], b"\0\0\0\x03ftyp", b"\0\0\0\x08ftyp\0\0\0\x01mdat"]
        {
            assert!(!Source::new(film.to_vec()).cut);
        }
        for (segment, cut) in [
            (&[0x01, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0][..], false),
            (&[0x01, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFE, 0, 0][..], true),
            (&[0xFF, 0, 0], false),
            (&[0x82, 0, 0], false),
            (&[0x83, 0, 0], true),
            (&[0x40, 0x03, 0, 0], true),
            (&[0x40, 0x02, 0, 0], false),
            (&[0x00, 0x03, 0, 0], false),
            (&[0x01, 0, 0], false),
            (&[], false),
        ] {
            let file = [&[0x1A, 0x45, 0xDF, 0xA3, 0x80, 0x18, 0x53, 0x80, 0x67][..], segment].concat();
            assert_eq!(Source::new(file).cut, cut, "{segment:x?}");
        }
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
            if let Ok(sound) = read(bytes, None) {
                prop_assert!(sound.rate > 0 && change_rate(&sound.samples, sound.rate, 8_000).is_ok());
            }
        }
    }
}
