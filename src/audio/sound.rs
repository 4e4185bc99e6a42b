//! Short recordings that the relay plays by itself, where no model is asked: a phrase while an answer waits.
//!
//! Read when the configuration is, and kept in every format that a service may answer in, so that a call only takes what it needs.
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;

use super::{
    Codec, Format,
    decode::{DecodeError, decode_file},
};

/// The longest one.
pub const LONGEST: Duration = Duration::from_secs(60);

/// Why a recording cannot be played.
#[derive(Debug, thiserror::Error)]
pub enum SoundError {
    /// It cannot be read.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// Nobody shall hear that much of it.
    #[error("{}: found {} s of audio; allowed: up to {} s", path.display(), found.as_secs(), LONGEST.as_secs())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// How long it plays.
        found: Duration,
    },
}

/// One recording.
#[derive(Debug)]
pub struct Sound {
    wide: Bytes,
    mulaw: Bytes,
    alaw: Bytes,
}

impl Sound {
    /// Reads a file, in any format that [`decode_file`] knows.
    ///
    /// # Errors
    /// When it cannot be read, or is longer than [`LONGEST`].
    pub fn read(path: &Path) -> Result<Self, SoundError> {
        let at = |format: Format| {
            let recording = decode_file(path, format.rate)?;
            if recording.duration() > LONGEST {
                return Err(SoundError::TooLong { path: path.into(), found: recording.duration() });
            }
            Ok(Bytes::from(recording.bytes(format.codec).unwrap_or_default()))
        };
        let narrow = |codec| at(Format { codec, rate: codec.default_rate() });
        Ok(Self { wide: at(Format::PCM_24K)?, mulaw: narrow(Codec::Mulaw)?, alaw: narrow(Codec::Alaw)? })
    }

    /// Its audio, in a format that services answer in.
    pub fn audio(&self, format: Format) -> Bytes {
        match format.codec {
            Codec::Mulaw => self.mulaw.clone(),
            Codec::Alaw => self.alaw.clone(),
            Codec::Pcm16 | Codec::Opus => self.wide.clone(),
        }
    }
}

/// A sound, again and again for so long; silence where there is none.
pub fn repeated(sound: &Bytes, format: Format, length: Duration) -> Bytes {
    let bytes = format.bytes(length);
    let once: &[u8] = if sound.is_empty() { &[format.silence()] } else { sound };
    once.iter().copied().cycle().take(bytes).collect()
}

/// All recordings of a configuration, by file.
#[derive(Debug, Default)]
pub struct Sounds(BTreeMap<PathBuf, Arc<Sound>>);

impl Sounds {
    /// Reads these files, each of which somebody wants.
    ///
    /// # Errors
    /// The first that cannot be read, and who wanted it.
    pub fn read<'a, W>(files: impl IntoIterator<Item = (W, &'a Path)>) -> Result<Self, (W, SoundError)> {
        let mut sounds = BTreeMap::new();
        for (who, file) in files {
            if !sounds.contains_key(file) {
                let sound = Sound::read(file).map_err(|error| (who, error))?;
                sounds.insert(file.to_owned(), Arc::new(sound));
            }
        }
        Ok(Self(sounds))
    }

    /// One of them.
    pub fn get(&self, file: &Path) -> Option<Arc<Sound>> {
        self.0.get(file).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/hello.wav")
    }

    #[test]
    fn a_sound_plays_as_long_in_every_format() {
        let (file, other) = (hello(), Path::new("/no/such/file.wav"));
        let sounds = Sounds::read([("a", file.as_path()), ("b", file.as_path())]).unwrap();
        let sound = sounds.get(&file).unwrap();
        let length = |format: Format| format.duration(sound.audio(format).len()).as_millis();
        let whole = length(Format::PCM_24K);
        assert!(whole > 1_000);
        for codec in [Codec::Mulaw, Codec::Alaw] {
            assert!(length(Format { codec, rate: 8_000 }).abs_diff(whole) <= 1, "{codec}");
        }
        assert!(sounds.get(other).is_none());
        let (who, error) = Sounds::read([("a", file.as_path()), ("b", other)]).unwrap_err();
        assert_eq!((who, error.to_string().as_str()), ("b", "/no/such/file.wav: no such file"));
    }

    #[test]
    fn a_minute_is_the_most() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("long.wav");
        super::super::decode::write_wav(&file, Format { codec: Codec::Pcm16, rate: 8_000 }, &vec![0; 61 * 16_000])
            .unwrap();
        let error = Sound::read(&file).unwrap_err().to_string();
        assert!(error.ends_with("found 61 s of audio; allowed: up to 60 s"), "{error}");
    }
}
