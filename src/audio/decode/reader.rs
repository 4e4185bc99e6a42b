//! A recording read from front to back, block by block: ten hours of it need no more memory than ten seconds.
use std::{
    fs::File,
    io::{self, Cursor, Read, Seek},
    path::{Path, PathBuf},
    time::Duration,
};

use symphonia::core::{
    codecs::audio::AudioCodecId,
    errors::Error as SymphoniaError,
    formats::{FormatOptions, FormatReader, Track, TrackType, probe::Hint},
    meta::MetadataOptions,
};

use super::{
    DecodeError, Failure, codec_name,
    rate::RateChange,
    source::{Source, Trouble},
    track::{Sound, told},
};

/// What a file is, whatever its name says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Container {
    /// RIFF WAVE.
    Wav,
    /// FLAC, not in Ogg.
    Flac,
    /// MPEG layer 3.
    Mp3,
    /// AAC without a container (ADTS).
    Aac,
    /// MPEG-4 and its relatives: mp4, m4a, mov.
    Mp4,
    /// Ogg: Opus, Vorbis, FLAC.
    Ogg,
    /// Matroska as browsers write it.
    Webm,
    /// Any other Matroska.
    Matroska,
}

/// How long a file says that it plays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Length {
    /// It says so.
    Told(Duration),
    /// Guessed from its size: raw aac, and mp3 without an encoder's tag.
    Guessed(Duration),
    /// Only reading it will tell: what was written into a pipe.
    Unknown,
}

impl Length {
    /// Told or guessed.
    pub fn about(self) -> Option<Duration> {
        match self {
            Self::Told(length) | Self::Guessed(length) => Some(length),
            Self::Unknown => None,
        }
    }
}

/// What a file's beginning and its lengths tell, without decoding it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// What it is.
    pub container: Container,
    /// Its size, bytes.
    pub bytes: u64,
    /// The audio's codec, as people call it.
    pub codec: String,
    /// Channels of the audio, where the beginning says it.
    pub channels: Option<usize>,
    /// How long it plays.
    pub length: Length,
    /// There is a picture, too.
    pub video: bool,
    /// Its own lengths, or a missing end mark, say that it is cut short. Of flac and mp3 only decoding shows it.
    pub cut: bool,
}

/// One recording, being read: mono samples at one rate.
#[expect(missing_debug_implementations, reason = "symphonia's readers have none")]
pub struct Reader {
    path: PathBuf,
    /// `None`: the file's own.
    rate: Option<u32>,
    sound: Sound,
    change: Option<RateChange>,
    /// One packet's samples; kept to save the allocation.
    block: Vec<f32>,
    facts: Facts,
    ended: bool,
    /// Something was in it.
    any: bool,
    cut: bool,
    trouble: Trouble,
}

/// Looks at `path` without decoding it. Its name does not matter.
///
/// # Errors
/// When there is no such file, or no audio in it; that there is no decoder for it is none.
pub fn probe(path: impl AsRef<Path>) -> Result<Facts, DecodeError> {
    let path = path.as_ref();
    Opened::new(path).map(|opened| opened.facts)
}

/// The same of a file's bytes, which came under `name`.
///
/// # Errors
/// As [`probe`].
pub fn probe_bytes(name: impl AsRef<Path>, bytes: bytes::Bytes) -> Result<Facts, DecodeError> {
    Opened::bytes(name.as_ref(), bytes).map(|opened| opened.facts)
}

impl Reader {
    /// Opens `path` to read it as mono samples at `rate` Hz, in whatever of the known formats it is.
    ///
    /// # Errors
    /// When there is no such file, or no audio in it that can be decoded.
    pub fn open(path: impl AsRef<Path>, rate: u32) -> Result<Self, DecodeError> {
        let path = path.as_ref();
        if !(1_000..=192_000).contains(&rate) {
            return Err(DecodeError::Rate { found: rate });
        }
        Self::of(path, Opened::new(path)?, Some(rate))
    }

    /// The same for a file's bytes, which came under `name`; without a rate at the file's own.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn of_bytes(name: impl AsRef<Path>, bytes: bytes::Bytes, rate: Option<u32>) -> Result<Self, DecodeError> {
        let name = name.as_ref();
        if let Some(found) = rate.filter(|rate| !(1_000..=192_000).contains(rate)) {
            return Err(DecodeError::Rate { found });
        }
        Self::of(name, Opened::bytes(name, bytes)?, rate)
    }

    fn of(path: &Path, opened: Opened, rate: Option<u32>) -> Result<Self, DecodeError> {
        let Opened { format, track, cut, facts, trouble } = opened;
        let sound = Sound::open(format, &track, cut).map_err(|failure| failure.at(path, &trouble))?;
        let (path, block) = (path.to_owned(), Vec::new());
        Ok(Self { path, rate, sound, change: None, block, facts, ended: false, any: false, cut, trouble })
    }

    /// Samples per second; of a file that is read at its own rate, once something of it was read.
    pub fn rate(&self) -> u32 {
        self.rate.unwrap_or_else(|| self.sound.rate())
    }

    /// What the file's beginning tells.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Appends the next samples, a packet's or a few: at most seconds. Whether there were any; at the end there are none.
    ///
    /// # Errors
    /// When the file cannot be read any further, or, at its end, when next to nothing in it could be decoded.
    pub fn read(&mut self, out: &mut Vec<i16>) -> Result<bool, DecodeError> {
        let before = out.len();
        while !self.ended && out.len() == before {
            self.step(out).map_err(|failure| failure.at(&self.path, &self.trouble))?;
        }
        Ok(out.len() > before)
    }

    fn step(&mut self, out: &mut Vec<i16>) -> Result<(), Failure> {
        self.block.clear();
        if self.sound.next(&mut self.block)? {
            if self.block.is_empty() {
                return Ok(());
            }
            self.any = true;
            let change = match &mut self.change {
                Some(change) => change,
                none => none.insert(
                    RateChange::new(self.sound.rate(), self.rate.unwrap_or(self.sound.rate()))
                        .map_err(Failure::Damaged)?,
                ),
            };
            return change.push(&self.block, out).map_err(Failure::Damaged);
        }
        self.ended = true;
        self.cut |= self.sound.is_cut();
        if let Some(error) = self.trouble.take() {
            return Err(Failure::Unreadable(error));
        }
        if !self.any {
            return Err(Failure::Damaged("it holds no samples".to_owned()));
        }
        self.change.as_mut().map_or(Ok(()), |change| change.finish(out)).map_err(Failure::Damaged)
    }

    /// At the end: the file ends before it should, or part of it could not be read.
    pub fn truncated(&self) -> bool {
        self.cut
    }
}

/// A file, or what came out of a pipe.
trait Bytes: Read + Seek + Send + Sync {}

impl<T: Read + Seek + Send + Sync> Bytes for T {}

/// A file that was found to be audio.
struct Opened {
    format: Box<dyn FormatReader>,
    track: Track,
    cut: bool,
    facts: Facts,
    trouble: Trouble,
}

impl Opened {
    fn new(path: &Path) -> Result<Self, DecodeError> {
        let unreadable = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => DecodeError::NotFound { path: path.into() },
            _ => DecodeError::Unreadable { path: path.into(), source },
        };
        let mut file = File::open(path).map_err(unreadable)?;
        let file: Box<dyn Bytes> = if file.metadata().map_err(unreadable)?.is_file() {
            Box::new(file)
        } else {
            // A pipe cannot be read twice. A folder can be opened, and says now what it is.
            let mut all = Vec::new();
            file.read_to_end(&mut all).map_err(unreadable)?;
            Box::new(Cursor::new(all))
        };
        Self::read(path, file)
    }

    fn bytes(name: &Path, bytes: bytes::Bytes) -> Result<Self, DecodeError> {
        Self::read(name, Box::new(Cursor::new(bytes)))
    }

    fn read(path: &Path, file: Box<dyn Bytes>) -> Result<Self, DecodeError> {
        let unreadable = |source: io::Error| DecodeError::Unreadable { path: path.into(), source };
        let mut source = Source::new(file).map_err(unreadable)?;
        if source.length() == 0 {
            return Err(DecodeError::Empty { path: path.into() });
        }
        let ogg_cut = source.head().starts_with(b"OggS") && !ends_marked(&mut source).map_err(unreadable)?;
        let trouble = source.trouble();
        let extension = path.extension().and_then(|extension| extension.to_str());
        Self::of(source, extension, ogg_cut).map_err(|failure| failure.at(path, &trouble))
    }

    fn of(source: Source<Box<dyn Bytes>>, extension: Option<&str>, ogg_cut: bool) -> Result<Self, Failure> {
        let (bytes, cut, trouble) = (source.length(), source.is_cut(), source.trouble());
        let webm = source.head().windows(4).take(64).any(|word| word == b"webm");
        let mut hint = Hint::new();
        if let Some(extension) = extension {
            hint.with_extension(extension);
        }
        let format = symphonia::default::get_probe()
            .probe(&hint, source.open(), FormatOptions::default(), MetadataOptions::default())
            .map_err(|error| match error {
                SymphoniaError::Unsupported(reason) if reason.starts_with("core (probe)") => Failure::NotAudio,
                SymphoniaError::LimitError(_) => Failure::NotAudio,
                other => Failure::Damaged(other.to_string()),
            })?;
        let container = match format.format_info().short_name {
            "wave" => Container::Wav,
            "flac" => Container::Flac,
            "mp3" => Container::Mp3,
            "aac" => Container::Aac,
            "isomp4" => Container::Mp4,
            "ogg" => Container::Ogg,
            "matroska" if webm => Container::Webm,
            "matroska" => Container::Matroska,
            // MPEG layers 1 and 2 are hardly in use, but many a binary file looks like them.
            _ => return Err(Failure::NotAudio),
        };
        let track = format.default_track(TrackType::Audio).ok_or(Failure::NoTrack)?.clone();
        let parameters = track.codec_params.as_ref().and_then(|parameters| parameters.audio());
        let parameters = parameters.ok_or(Failure::NoTrack)?;
        let channels = parameters.channels.as_ref().map(|channels| channels.count());
        // A wav's length is in its head, and whether it is there in the file's.
        let data = || {
            let frame = u64::from(parameters.bits_per_sample? / 8) * channels? as u64;
            told("wave", &track)?.checked_mul(frame)
        };
        let short = container == Container::Wav && data().is_some_and(|data| data > bytes);
        let facts = Facts {
            container,
            bytes,
            codec: name(parameters.codec),
            channels,
            length: length(&*format, &track, parameters.sample_rate),
            video: format.tracks().iter().any(|track| track.track_type() == Some(TrackType::Video)),
            cut: cut || ogg_cut || short,
        };
        Ok(Self { format, track, cut, facts, trouble })
    }
}

/// An Ogg file's last page is marked as such.
fn ends_marked(source: &mut Source<Box<dyn Bytes>>) -> io::Result<bool> {
    /// A page is not longer.
    const PAGE: u64 = 27 + 255 + 255 * 255;
    const LAST: u8 = 4;
    let tail = source.tail(PAGE)?;
    let page = tail.windows(6).rev().find(|page| page.starts_with(b"OggS\0"));
    Ok(page.and_then(|page| page.last()).is_some_and(|flags| flags & LAST != 0))
}

fn length(format: &dyn FormatReader, track: &Track, rate: Option<u32>) -> Length {
    let container = format.format_info().short_name;
    let seconds = |frames: u64| {
        let rate = rate.filter(|rate| *rate > 0)?;
        Duration::try_from_secs_f64(frames as f64 / f64::from(rate)).ok()
    };
    let media = || {
        let info = format.media_info();
        let nanos = info.time_base?.calc_duration(info.duration?)?.as_nanos();
        Some(Duration::from_nanos(u64::try_from(nanos).ok()?)).filter(|length| !length.is_zero())
    };
    let told = match container {
        "isomp4" | "matroska" => media().or_else(|| seconds(told(container, track)?)),
        _ => told(container, track).and_then(seconds),
    };
    let guess =
        || track.num_frames.filter(|frames| *frames > 0 && matches!(container, "mp3" | "aac")).and_then(seconds);
    told.map(Length::Told).or_else(|| guess().map(Length::Guessed)).unwrap_or(Length::Unknown)
}

fn name(codec: AudioCodecId) -> String {
    let known = symphonia::default::get_codecs().get_audio_decoder(codec);
    known.map_or_else(|| codec_name(codec), |known| known.codec.info.long_name.to_owned())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::audio::testing::file;

    #[test]
    fn a_file_is_known_without_decoding_it() {
        // What it is, its codec, channels, seconds (told or guessed), and whether there is a picture.
        let table = [
            ("hello_question_24k.mp3", Container::Mp3, "MPEG Audio Layer 3", 1, Some((5.4, true)), false),
            ("hello_question_44k1_stereo.mp3", Container::Mp3, "MPEG Audio Layer 3", 2, Some((5.4, true)), false),
            ("hello_question_24k.m4a", Container::Mp4, "Advanced Audio Coding", 1, Some((5.4, true)), false),
            ("hello_question_24k.aac", Container::Aac, "Advanced Audio Coding", 1, Some((5.4, false)), false),
            ("hello_question_opus.ogg", Container::Ogg, "Opus", 1, Some((5.4, true)), false),
            ("hello_question_opus.webm", Container::Webm, "Opus", 1, Some((5.4, true)), false),
            ("hello_question_opus_live.webm", Container::Webm, "Opus", 1, None, false),
            ("hello_question_vorbis.ogg", Container::Ogg, "Vorbis", 1, Some((5.4, true)), false),
            ("hello_question_8k.flac", Container::Flac, "Free Lossless Audio Codec", 1, Some((5.4, true)), false),
            ("hello_question_8k_alaw.wav", Container::Wav, "PCM", 1, Some((5.4, true)), false),
            ("hello_word_8k_stereo_float.wav", Container::Wav, "PCM", 2, Some((0.7, true)), false),
            ("film_with_sound.mp4", Container::Mp4, "Advanced Audio Coding", 1, Some((1.0, true)), true),
            ("hello_word_alac.m4a", Container::Mp4, "Apple Lossless (ALAC)", 1, Some((0.5, true)), false),
        ];
        for (name, container, codec, channels, seconds, video) in table {
            let path = file("tests/clips").join(name);
            let facts = probe(&path).unwrap();
            println!("{name}: {facts:?}");
            assert_eq!((facts.container, facts.video, facts.cut), (container, video, false), "{name}");
            assert!(facts.codec.starts_with(codec), "{name}: {}", facts.codec);
            assert!(facts.channels.is_none_or(|found| found == channels), "{name}: {:?}", facts.channels);
            assert_eq!(facts.bytes, fs::metadata(&path).unwrap().len());
            assert_eq!(matches!(facts.length, Length::Told(_)), seconds.is_some_and(|(_, told)| told), "{name}");
            match (facts.length.about(), seconds) {
                (Some(found), Some((seconds, told))) => {
                    let slack = if told { 0.05 } else { 0.3 };
                    assert!((found.as_secs_f64() - seconds).abs() < slack, "{name}: {found:?}");
                }
                (found, want) => assert!(found.is_none() && want.is_none(), "{name}: {found:?}"),
            }
        }
    }
}
