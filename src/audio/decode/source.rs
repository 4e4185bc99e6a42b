//! The bytes of a recording, read as they are wanted: a file, and what is known of it before anybody understands it.
//!
//! Stands under every reader of this room. Holds nothing of the file. Makes a file that is cut short readable up to the
//! cut, where its reader would give up at once: a film (mp4, m4a) whose last atom is incomplete goes on with zeros.
use std::{
    io::{self, Read, Seek, SeekFrom},
    sync::{Arc, Mutex, PoisonError},
};

use symphonia::core::io::{MediaSource, MediaSourceStream, MediaSourceStreamOptions};

/// So much of a file's beginning is looked at, bytes: a WebM says within it how long it is.
const HEAD: u64 = 4_200;
/// A film of more atoms than this is not counted through.
const MOST_ATOMS: usize = 1_000_000;

/// A file, with the zeros that stand for what is missing of it.
pub(super) struct Source<R> {
    inner: R,
    /// Bytes of the file.
    length: u64,
    /// Bytes with the zeros behind them.
    end: u64,
    at: u64,
    /// The file's own lengths say that there should be more of it.
    cut: bool,
    /// Read from front to back: a WebM's reader looks for the index at the end, and gives up where it is missing.
    forward: bool,
    head: Vec<u8>,
    trouble: Trouble,
}

/// What the system said when the file could not be read any further: its readers take any end for the end of the file.
#[derive(Debug, Clone, Default)]
pub(super) struct Trouble(Arc<Mutex<Option<io::Error>>>);

impl Trouble {
    /// Takes it.
    pub(super) fn take(&self) -> Option<io::Error> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn keep(&self, error: &io::Error) {
        let copy = error.raw_os_error().map_or_else(|| error.kind().into(), io::Error::from_raw_os_error);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(copy);
    }
}

impl<R: Read + Seek> Source<R> {
    /// Looks at a file's beginning, and at its lengths.
    pub(super) fn new(mut inner: R) -> io::Result<Self> {
        let length = inner.seek(SeekFrom::End(0))?;
        inner.rewind()?;
        let mut head = Vec::new();
        inner.by_ref().take(HEAD).read_to_end(&mut head)?;
        let (mut end, mut cut, mut forward) = (length, false, false);
        match head.as_slice() {
            [_, _, _, _, b'f', b't', b'y', b'p', ..] => {
                // A claim beyond reason is not filled up.
                if let Some(told) = mp4_end(&mut inner, length)?.filter(|told| *told > length && told / 64 <= length) {
                    (end, cut) = (told, true);
                }
            }
            [0x1A, 0x45, 0xDF, 0xA3, ..] => {
                cut = webm_end(&head).is_some_and(|end| end > length);
                forward = cut;
            }
            _ => {}
        }
        inner.rewind()?;
        Ok(Self { inner, length, end, at: 0, cut, forward, head, trouble: Trouble::default() })
    }

    /// Bytes of the file, without what was put behind them.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// The file says itself that it is cut short.
    pub(super) fn is_cut(&self) -> bool {
        self.cut
    }

    /// The file's first bytes.
    pub(super) fn head(&self) -> &[u8] {
        &self.head
    }

    /// Where to look for what the system said.
    pub(super) fn trouble(&self) -> Trouble {
        self.trouble.clone()
    }

    /// What a file ends with, at most so many bytes; then it is at its beginning again.
    pub(super) fn tail(&mut self, bytes: u64) -> io::Result<Vec<u8>> {
        self.inner.seek(SeekFrom::Start(self.length.saturating_sub(bytes)))?;
        let mut tail = Vec::new();
        self.inner.by_ref().take(bytes).read_to_end(&mut tail)?;
        self.inner.rewind()?;
        self.at = 0;
        Ok(tail)
    }
}

impl<R: Read + Seek + Send + Sync + 'static> Source<R> {
    /// For symphonia.
    pub(super) fn open(self) -> MediaSourceStream<'static> {
        MediaSourceStream::new(Box::new(self), MediaSourceStreamOptions::default())
    }
}

impl<R: Read> Read for Source<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let within = |left: u64| usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let read = if self.at < self.length {
            let room = within(self.length - self.at);
            self.inner.read(buffer.get_mut(..room).unwrap_or_default()).inspect_err(|error| {
                if error.kind() != io::ErrorKind::Interrupted {
                    self.trouble.keep(error);
                }
            })?
        } else {
            let room = within(self.end.saturating_sub(self.at));
            buffer.get_mut(..room).unwrap_or_default().fill(0);
            room
        };
        self.at += read as u64;
        Ok(read)
    }
}

impl<R: Seek> Seek for Source<R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.end.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        let at = at.ok_or(io::ErrorKind::InvalidInput)?;
        self.inner.seek(SeekFrom::Start(at.min(self.length)))?;
        self.at = at;
        Ok(at)
    }
}

impl<R: Read + Seek + Send + Sync> MediaSource for Source<R> {
    fn is_seekable(&self) -> bool {
        !self.forward
    }

    fn byte_len(&self) -> Option<u64> {
        (!self.forward).then_some(self.end)
    }
}

/// Where the last atom of a film says that it ends.
fn mp4_end(file: &mut (impl Read + Seek), length: u64) -> io::Result<Option<u64>> {
    let mut at = 0_u64;
    for _ in 0..MOST_ATOMS {
        if at.saturating_add(8) > length {
            return Ok(Some(at));
        }
        file.seek(SeekFrom::Start(at))?;
        let mut header = Vec::new();
        file.by_ref().take(16).read_to_end(&mut header)?;
        let size = header.split_first_chunk::<4>().map_or(0, |(size, _)| u32::from_be_bytes(*size));
        let size = match size {
            1 => header.get(8..).and_then(|long| long.first_chunk()).map(|long| u64::from_be_bytes(*long)),
            size => Some(size.into()),
        };
        // 0 is "to the end of the file".
        let Some(next) = size.filter(|size| *size >= 8).and_then(|size| at.checked_add(size)) else {
            return Ok(None);
        };
        at = next;
    }
    Ok(None)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn source(bytes: &[u8]) -> Source<io::Cursor<Vec<u8>>> {
        Source::new(io::Cursor::new(bytes.to_vec())).unwrap()
    }

    #[test]
    fn a_file_says_itself_that_it_is_cut() {
        let huge = source(b"\0\0\0\x14ftypM4A \0\0\0\0M4A \0\0\0\x01mdat\0\0\0\x40\0\0\0\0");
        assert!(!huge.cut && huge.end == huge.length, "256 GiB of zeros");
        let cut = source(b"\0\0\0\x14ftypM4A \0\0\0\0M4A \0\0\x01\0mdat");
        assert!(cut.cut && cut.end == 20 + 256);
        for film in
            [&b"\0\0\0\x14ftypM4A \0\0\0\0M4A \0\0\0\0mdat"[..], b"\0\0\0\x03ftyp", b"\0\0\0\x08ftyp\0\0\0\x01mdat"]
        {
            assert!(!source(film).cut);
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
            assert_eq!(source(&file).cut, cut, "{segment:x?}");
        }
    }

    #[test]
    fn what_is_missing_reads_as_zeros() {
        let mut film = source(b"\0\0\0\x14ftypM4A \0\0\0\0M4A \0\0\0\x10mdat\x07");
        let mut all = Vec::new();
        film.read_to_end(&mut all).unwrap();
        assert_eq!(all, b"\0\0\0\x14ftypM4A \0\0\0\0M4A \0\0\0\x10mdat\x07\0\0\0\0\0\0\0");
        assert_eq!(film.seek(SeekFrom::End(-9)).unwrap(), 27);
        let mut end = [7; 9];
        film.read_exact(&mut end).unwrap();
        assert_eq!(end, *b"t\x07\0\0\0\0\0\0\0");
        assert_eq!(film.tail(3).unwrap(), b"at\x07");
    }

    #[test]
    fn a_broken_disk_is_no_end_of_the_file() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::from_raw_os_error(5))
            }
        }
        let trouble = Trouble::default();
        let mut source = Source {
            inner: Broken,
            length: 9,
            end: 9,
            at: 0,
            cut: false,
            forward: false,
            head: Vec::new(),
            trouble: trouble.clone(),
        };
        assert!(source.read(&mut [0; 4]).is_err());
        assert_eq!(trouble.take().and_then(|error| error.raw_os_error()), Some(5));
    }
}
