//! Which files of a folder are recordings: by their names, and those without a known one by how they begin; which are texts, by their
//! names alone. What was named itself is not asked.
use std::{fs::File, io::Read as _, path::Path};

/// Extensions of recordings and films.
const EXTENSIONS: [&str; 36] = [
    "3gp", "aac", "ac3", "aif", "aifc", "aiff", "alac", "amr", "au", "avi", "awb", "caf", "flac", "m4a", "m4b", "m4v",
    "mka", "mkv", "mov", "mp2", "mp3", "mp4", "mpeg", "mpg", "mpga", "oga", "ogg", "ogv", "opus", "snd", "spx", "wav",
    "wave", "webm", "wma", "wmv",
];
/// Those whose files are surely something else, so that nobody has to look into them.
const OTHERS: [&str; 20] = [
    "bmp", "csv", "docx", "gif", "gz", "html", "jpeg", "jpg", "json", "jsonl", "log", "md", "parquet", "pdf", "png",
    "srt", "txt", "vtt", "xml", "zip",
];
/// Those of texts.
const TEXTS: [&str; 3] = ["txt", "text", "md"];
/// So much of a file is looked at, bytes.
const HEAD: usize = 16;

/// What is looked for in folders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// Recordings and films.
    Recordings,
    /// Texts.
    Texts,
}

impl Wanted {
    /// Whether a file of a folder looks like it.
    pub(super) fn is(self, path: &Path) -> bool {
        self.is_named(path) || (self == Self::Recordings && is_recording(path))
    }

    /// Whether a name says so.
    pub(super) fn is_named(self, path: &Path) -> bool {
        let known = match self {
            Self::Recordings => &EXTENSIONS[..],
            Self::Texts => &TEXTS,
        };
        has_one_of(path, known)
    }
}

fn has_one_of(path: &Path, known: &[&str]) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str()).map(str::to_ascii_lowercase);
    extension.is_some_and(|extension| known.contains(&extension.as_str()))
}

/// Whether a file begins like a recording, if its name does not say that it is none. One that cannot be read does: then somebody is told.
fn is_recording(path: &Path) -> bool {
    if has_one_of(path, &OTHERS) {
        return false;
    }
    let mut head = Vec::with_capacity(HEAD);
    let read = File::open(path).and_then(|file| file.take(16).read_to_end(&mut head));
    read.is_err() || begins_like_one(&head)
}

fn begins_like_one(head: &[u8]) -> bool {
    let at = |from: usize, what: &[u8]| head.get(from..from + what.len()) == Some(what);
    let is = |what: &[u8]| at(0, what);
    let container = (is(b"RIFF") || is(b"RIFX") || is(b"RF64")) && (at(8, b"WAVE") || at(8, b"AVI "))
        || is(b"FORM") && (at(8, b"AIFF") || at(8, b"AIFC"))
        || at(4, b"ftyp");
    let named = [&b"fLaC"[..], b"OggS", b"ID3", b"caff", b"#!AMR", b".snd", &[0x1A, 0x45, 0xDF, 0xA3]]
        .iter()
        .any(|name| is(name));
    container || named || is_mpeg_frame(head)
}

/// The header of an MPEG audio frame (ISO/IEC 11172-3, 2.4.1.3) or an ADTS one (13818-7): eleven bits of sync would be in many
/// a file, so what may not be in the others is looked at as well. Layer I is hardly in use, and UTF-16 begins like it.
fn is_mpeg_frame(head: &[u8]) -> bool {
    let &[0xFF, second, third, ..] = head else { return false };
    if second & 0xF6 == 0xF0 {
        return (third >> 2) & 0x0F < 13;
    }
    let (version, layer) = ((second >> 3) & 3, (second >> 1) & 3);
    let (bitrate, rate) = (third >> 4, (third >> 2) & 3);
    second & 0xE0 == 0xE0 && version != 1 && matches!(layer, 1 | 2) && !matches!(bitrate, 0 | 15) && rate != 3
}

#[test]
fn recordings_are_known_by_how_they_begin() {
    for (name, head, want) in [
        ("wav", &b"RIFF\x24\0\0\0WAVEfmt "[..], true),
        ("a picture in RIFF", b"RIFF\x24\0\0\0WEBPVP8 ", false),
        ("mp3", &[0xFF, 0xFB, 0x90, 0x64, 0, 0, 0, 0], true),
        ("adts", &[0xFF, 0xF1, 0x50, 0x80, 0, 0, 0, 0], true),
        ("utf-16 text", &[0xFF, 0xFE, b'a', 0, b'b', 0], false),
        ("m4a", b"\0\0\0\x20ftypM4A ", true),
        ("webm", &[0x1A, 0x45, 0xDF, 0xA3, 1], true),
        ("jpeg", &[0xFF, 0xD8, 0xFF, 0xE0], false),
        ("text", b"hello, this is no", false),
        ("nothing", b"", false),
    ] {
        assert_eq!(begins_like_one(head), want, "{name}");
    }
}
