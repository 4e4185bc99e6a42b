//! A recording to what can be uploaded: the file itself, or pieces of it that are cut where nobody speaks.
//!
//! Stands in front of the requests: [`plan`] looks at a file, [`Pieces`] makes one piece after the other. Pure but for the
//! file that is read, and blocking: it belongs on a thread that may wait. Holds a minute of the sound, whatever the file's
//! length; where a piece is kept is the caller's choice. The same file with the same limits always gives the same pieces,
//! so a job can go on with the fourth where three are done. Never trims silence: times stay the file's.
mod fingerprint;
pub(super) mod pause;

use std::{
    fs,
    io::{self, BufWriter, Seek, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use tokio_util::sync::CancellationToken;

pub use self::fingerprint::fingerprint;
use crate::audio::decode::{Container, DecodeError, Facts, Length, Reader, probe};

/// Samples per second of a piece: what speech models listen at.
pub const PIECE_RATE: u32 = 16_000;
/// Bytes in front of a piece's samples.
const WAV_HEAD: u64 = 44;
/// How much of a piece's end is looked at for a place to cut.
const WINDOW: Duration = Duration::from_secs(60);
/// How much is heard twice where somebody speaks all the time.
const OVERLAP: Duration = Duration::from_secs(2);
/// The last piece is not shorter: a model makes up words for half a second of breath.
const LAST: Duration = Duration::from_secs(10);
/// Pieces below this are no limit but a mistake.
const SHORTEST_LIMIT: Duration = Duration::from_secs(10);

/// What the service takes in one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most bytes of one upload. The service takes 25 MB; a bit less leaves room for the rest of the form.
    pub bytes: u64,
    /// The longest sound of one upload.
    pub longest: Duration,
    /// Shorter files are not sent at all.
    pub shortest: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes: 24_900_000, longest: Duration::from_secs(600), shortest: Duration::from_secs(5) }
    }
}

impl Limits {
    /// Most samples of a piece.
    fn samples(&self) -> Result<usize, CutError> {
        let by_bytes = self.bytes.saturating_sub(WAV_HEAD) / 2;
        let samples = by_bytes.min(samples(self.longest));
        if samples < self::samples(SHORTEST_LIMIT) {
            return Err(CutError::Limits { bytes: self.bytes, longest: self.longest });
        }
        Ok(usize::try_from(samples).unwrap_or(usize::MAX))
    }
}

/// What is to be done with a file.
#[derive(Debug)]
pub enum Plan {
    /// Send it as it is.
    Whole(Whole),
    /// Send pieces of it.
    Pieces(Pieces),
    /// Leave it: it is shorter than [`Limits::shortest`].
    TooShort {
        /// How long it plays.
        length: Duration,
    },
}

/// A file that can be sent as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Whole {
    /// The file.
    pub path: PathBuf,
    /// Its name for the upload, with the ending that its content asks for: the service goes by that. All of one kind have the same, for the same
    /// content under another name is the same question.
    pub name: String,
    /// Its media type.
    pub media_type: &'static str,
    /// Its size.
    pub bytes: u64,
    /// How long it plays, by its own word or counted.
    pub length: Duration,
}

/// Why a file could not be cut.
#[derive(Debug, thiserror::Error)]
pub enum CutError {
    /// It cannot be read.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// A piece could not be kept: the disk is full.
    #[error("a piece of {}: cannot be written: {source}", path.display())]
    Write {
        /// The file that is cut.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Nobody wants it any more.
    #[error("{}: given up", path.display())]
    Stopped {
        /// The file.
        path: PathBuf,
    },
    /// No piece fits into the limits.
    #[error(
        "pieces of at most {bytes} bytes and {} s; allowed: from {} bytes and {} s on", longest.as_secs_f64(),
        WAV_HEAD + 2 * samples(SHORTEST_LIMIT), SHORTEST_LIMIT.as_secs()
    )]
    Limits {
        /// Most bytes.
        bytes: u64,
        /// Longest sound.
        longest: Duration,
    },
}

/// Says what is to be done with the file at `path`; its name does not matter.
///
/// A file goes as it is where the service knows its container, its length and size are within the limits, it has one or
/// two channels, its beginning can be decoded and its own lengths do not say that it is cut short. All others are decoded,
/// what of them is there. A file that does not know how long it is is decoded once only to count: `stop` ends that.
///
/// # Errors
/// When there is no such file, no audio in it, or none that can be decoded; when it is a pipe; when the limits are no limits; when it was
/// stopped.
pub fn plan(path: impl AsRef<Path>, limits: &Limits, stop: &CancellationToken) -> Result<Plan, CutError> {
    let path = path.as_ref();
    let most = limits.samples()?;
    // It is read more than once.
    if fs::metadata(path).is_ok_and(|there| !there.is_file() && !there.is_dir()) {
        let source = io::Error::other("it is no regular file");
        return Err(DecodeError::Unreadable { path: path.into(), source }.into());
    }
    let facts = probe(path)?;
    let length = match facts.length {
        Length::Told(length) if !facts.cut => Some(length),
        _ => count(path, limits, stop)?,
    };
    if let Some(length) = length.filter(|length| *length < limits.shortest) {
        return Ok(Plan::TooShort { length });
    }
    let within = length.filter(|length| *length <= limits.longest && facts.bytes <= limits.bytes);
    let sent = upload(&facts).filter(|_| !facts.cut && facts.channels.is_none_or(|channels| channels <= 2));
    if let (Some(length), Some((ending, media_type))) = (within, sent)
        && begins(path)?
    {
        let name = format!("audio.{ending}");
        return Ok(Plan::Whole(Whole { path: path.into(), name, media_type, bytes: facts.bytes, length }));
    }
    let reader = Reader::open(path, PIECE_RATE)?;
    Ok(Plan::Pieces(Pieces::new(path, Box::new(reader), most, facts.length.about().or(length))))
}

/// How long a file plays that does not know it; `None` where that is longer than any limit.
fn count(path: &Path, limits: &Limits, stop: &CancellationToken) -> Result<Option<Duration>, CutError> {
    let enough = samples(limits.longest.max(limits.shortest));
    let (mut reader, mut counted, mut block) = (Reader::open(path, PIECE_RATE)?, 0, Vec::new());
    while reader.read(&mut block)? {
        counted += block.len() as u64;
        block.clear();
        if stop.is_cancelled() {
            return Err(CutError::Stopped { path: path.to_owned() });
        }
        if counted > enough {
            return Ok(None);
        }
    }
    Ok(Some(time(counted)))
}

/// Whether a file's beginning is what its head says. What only the service can decode it may have as it is.
fn begins(path: &Path) -> Result<bool, CutError> {
    match Reader::open(path, PIECE_RATE) {
        Ok(mut reader) => Ok(reader.read(&mut Vec::new())?),
        Err(DecodeError::Unsupported { .. }) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

/// The ending and media type of what the service takes as it is: flac mp3 mp4 mpeg mpga m4a ogg wav webm.
fn upload(facts: &Facts) -> Option<(&'static str, &'static str)> {
    match facts.container {
        Container::Wav => Some(("wav", "audio/wav")),
        Container::Flac => Some(("flac", "audio/flac")),
        Container::Mp3 => Some(("mp3", "audio/mpeg")),
        Container::Mp4 if facts.video => Some(("mp4", "video/mp4")),
        Container::Mp4 => Some(("m4a", "audio/mp4")),
        Container::Ogg => Some(("ogg", "audio/ogg")),
        Container::Webm if facts.video => Some(("webm", "video/webm")),
        Container::Webm => Some(("webm", "audio/webm")),
        Container::Aac | Container::Matroska => None,
    }
}

/// One piece of a recording: a wav file, mono, 16 bit, [`PIECE_RATE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Its number, from 0.
    pub index: usize,
    /// Where in the recording it begins.
    pub start: Duration,
    /// How long it plays.
    pub length: Duration,
    /// So much of its beginning is the end of the piece before it.
    pub overlap: Duration,
    /// There is none after it.
    pub last: bool,
}

/// Mono samples at [`PIECE_RATE`], from front to back.
trait Samples: Send {
    /// Appends some. Whether there were any.
    fn read(&mut self, out: &mut Vec<i16>) -> Result<bool, DecodeError>;
    /// At the end: not all of it was there.
    fn truncated(&self) -> bool;
}

impl Samples for Reader {
    fn read(&mut self, out: &mut Vec<i16>) -> Result<bool, DecodeError> {
        Reader::read(self, out)
    }

    fn truncated(&self) -> bool {
        Reader::truncated(self)
    }
}

/// A recording that is cut into pieces, one after the other.
pub struct Pieces {
    path: PathBuf,
    sound: Box<dyn Samples>,
    /// Most samples of a piece.
    most: usize,
    about: Option<Duration>,
    /// What was read and belongs to no piece yet.
    held: Vec<i16>,
    /// Where `held` begins, samples.
    at: u64,
    /// Samples at the front of `held` that were in the piece before, too.
    overlap: usize,
    next: usize,
    ended: bool,
    done: bool,
}

impl std::fmt::Debug for Pieces {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pieces").field("path", &self.path).field("next", &self.next).finish_non_exhaustive()
    }
}

impl Pieces {
    fn new(path: &Path, sound: Box<dyn Samples>, most: usize, about: Option<Duration>) -> Self {
        let path = path.to_owned();
        Self { path, sound, most, about, held: Vec::new(), at: 0, overlap: 0, next: 0, ended: false, done: false }
    }

    /// How long the recording plays, as far as it says so: for a forecast.
    pub fn about(&self) -> Option<Duration> {
        self.about
    }

    /// After the last piece: the file ends before it should, or part of it could not be read.
    pub fn truncated(&self) -> bool {
        self.sound.truncated()
    }

    /// Writes the next piece into `sink`, from where that stands on. `None`: there are no more.
    ///
    /// # Errors
    /// When the recording cannot be read any further, or the sink takes no more; there are no more pieces then.
    pub fn write_next(&mut self, sink: &mut (impl Write + Seek)) -> Result<Option<Piece>, CutError> {
        let spec = hound::WavSpec {
            channels: 1,
            sample_rate: PIECE_RATE,
            bits_per_sample: 16,
            sample_format: hound::SampleFormat::Int,
        };
        let path = self.path.clone();
        let failed = |error: hound::Error| {
            let source = match error {
                hound::Error::IoError(source) => source,
                other => io::Error::other(other),
            };
            CutError::Write { path: path.clone(), source }
        };
        if self.done {
            return Ok(None);
        }
        let mut wav = hound::WavWriter::new(BufWriter::new(sink), spec).map_err(failed)?;
        let piece = self.cut(|samples| samples.iter().try_for_each(|sample| wav.write_sample(*sample)).map_err(failed));
        let finished = wav.finalize().map_err(failed);
        let piece = piece.and_then(|piece| finished.map(|()| piece));
        self.done |= piece.is_err();
        piece
    }

    /// Passes over the next piece, which somebody has already.
    ///
    /// # Errors
    /// When the recording cannot be read any further; there are no more pieces then.
    pub fn skip(&mut self) -> Result<Option<Piece>, CutError> {
        let piece = self.cut(|_| Ok(()));
        self.done |= piece.is_err();
        piece
    }

    /// Hands the next piece's samples to `take`.
    fn cut(&mut self, mut take: impl FnMut(&[i16]) -> Result<(), CutError>) -> Result<Option<Piece>, CutError> {
        if self.done {
            return Ok(None);
        }
        let (start, overlap) = (self.at, self.overlap);
        // A quarter of a short piece is not too much to look at, either.
        let window = usize::try_from(samples(WINDOW)).unwrap_or(usize::MAX).min(self.most / 2);
        let ahead = usize::try_from(samples(LAST)).unwrap_or(usize::MAX).min(self.most / 4);
        // What is in this piece wherever it ends.
        let mut sure = self.most - window;
        while sure > 0 && self.fill(1)? {
            let now = sure.min(self.held.len());
            take(self.held.get(..now).unwrap_or_default())?;
            self.let_go(now);
            sure -= now;
        }
        self.fill(window + ahead)?;
        let last = self.ended && self.held.len() <= window;
        let end = if last {
            self.overlap = 0;
            self.held.len()
        } else {
            // Where the recording ends soon after, the last piece gets its share.
            let latest = window.min(self.held.len().saturating_sub(ahead)).max(1);
            let shared = usize::try_from(samples(OVERLAP)).unwrap_or(usize::MAX).min(window / 4);
            let found = pause::find(self.held.get(..latest).unwrap_or_default(), shared);
            self.overlap = if found.silent { 0 } else { shared.min(found.at) };
            found.at
        };
        take(self.held.get(..end).unwrap_or_default())?;
        let length = self.at - start + end as u64;
        self.let_go(end - self.overlap);
        self.done = last;
        let index = self.next;
        self.next += 1;
        let overlap = time(overlap as u64);
        Ok(Some(Piece { index, start: time(start), length: time(length), overlap, last }))
    }

    /// Reads on until so many samples are held. Whether there are that many.
    fn fill(&mut self, samples: usize) -> Result<bool, CutError> {
        while !self.ended && self.held.len() < samples {
            self.ended = !self.sound.read(&mut self.held)?;
        }
        Ok(self.held.len() >= samples)
    }

    fn let_go(&mut self, samples: usize) {
        self.held.drain(..samples);
        self.at += samples as u64;
    }
}

/// At [`PIECE_RATE`].
fn samples(time: Duration) -> u64 {
    u64::try_from(time.as_nanos() * u128::from(PIECE_RATE) / 1_000_000_000).unwrap_or(u64::MAX)
}

/// At [`PIECE_RATE`], where a sample is a whole number of nanoseconds.
fn time(samples: u64) -> Duration {
    Duration::from_nanos(samples * (1_000_000_000 / u64::from(PIECE_RATE)))
}

#[cfg(test)]
mod tests;
