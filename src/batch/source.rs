//! What is to be done: files, folders, globs, lists and manifests become a stream of [`Listed`] items, and each item a local file
//! when its turn comes.
//!
//! Stands before [`super::store`], which takes the stream as it comes: nothing here holds more than a folder's open handles,
//! however many files there are. Nothing is sent to a service, and no file is changed. What cannot be read is one [`Unread`]
//! among the items and never their end.
//!
//! An item's id is its path as seen from the folder in which the job was begun, so that two files of one name are two items and
//! a file that is named twice is one; a manifest's id is its own.
use std::{
    ffi::OsString,
    fmt,
    io::BufRead,
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use serde_json::{Map, Value};

pub mod fetch;
mod list;
mod looks;
mod manifest;
#[cfg(feature = "s3")]
mod s3;
#[cfg(test)]
mod tests;
mod walk;

pub use self::{
    fetch::{FetchError, Limits, Opened, Remote, Source, Sources},
    looks::Wanted,
    manifest::{ManifestError, manifest},
};

/// What the name of a folder ends in where a job keeps its copies and pieces: none of them is a source, whoever has left it.
pub const PIECES: &str = ".voxrelay-job-pieces";

/// A file to be done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listed {
    /// Its name in tables; unique in a job.
    pub id: String,
    /// Where it is: an absolute path, or a URL.
    pub source: String,
    /// What a manifest says of it besides.
    pub metadata: Map<String, Value>,
    /// Its line in the manifest.
    pub line: Option<u64>,
}

/// Something that was given, or is in a folder that was, and cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {reason}")]
pub struct Unread {
    /// What, as it is shown.
    pub place: String,
    /// Where it is: an absolute path, or a URL; empty where that is not known.
    pub file: String,
    /// Why.
    pub reason: String,
}

/// One thing that was found.
pub type Found = Result<Listed, Unread>;

/// Folders that are not on this machine.
pub trait Folders: fmt::Debug + Send + Sync {
    /// Names what is in one. Each step may wait for an answer.
    fn list(&self, place: &str) -> Box<dyn Iterator<Item = Found>>;
}

/// How sources are looked for.
#[derive(Debug, Clone)]
pub struct Search {
    base: PathBuf,
    wanted: Wanted,
    results: Option<PathBuf>,
    elsewhere: Arc<dyn Folders>,
}

impl Search {
    /// Paths are meant from `base`, which is absolute; in folders there is something else than what is `wanted`. `results`: the folder in
    /// which results are, and which is passed by where it is in another one; absolute.
    pub fn new(base: &Path, wanted: Wanted, results: Option<&Path>, elsewhere: Arc<dyn Folders>) -> Self {
        Self { base: base.to_owned(), wanted, results: results.map(|folder| absolute(base, folder)), elsewhere }
    }

    /// What the arguments of a command mean: files, folders with what is wanted in them, globs, URLs, and `-` for the list of `input`.
    pub fn arguments(self, arguments: Vec<OsString>, input: impl BufRead + 'static) -> impl Iterator<Item = Found> {
        let mut input: Option<Box<dyn BufRead>> = Some(Box::new(input));
        arguments.into_iter().flat_map(move |argument| match argument.to_str() {
            None => one(Err(not_utf8(&self.base.join(argument)))),
            // It is read once, however often it is named.
            Some("-") => match input.take() {
                Some(input) => Box::new(self.clone().list(input)) as Box<dyn Iterator<Item = Found>>,
                None => Box::new(std::iter::empty()),
            },
            Some(text) => self.argument(text),
        })
    }

    fn argument(&self, text: &str) -> Box<dyn Iterator<Item = Found>> {
        if is_url(text) {
            return self.url(text);
        }
        let path = absolute(&self.base, Path::new(text));
        // A file may have a name that looks like a pattern.
        if path.symlink_metadata().is_err() && walk::is_pattern(text) {
            return walk::pattern(self, &path);
        }
        walk::path(self, &path)
    }

    /// What a list means, one path or URL a line (or between NULs, if its beginning has one).
    pub fn list(self, list: impl BufRead + 'static) -> impl Iterator<Item = Found> {
        list::Lines::new(list).flat_map(move |line| match line {
            Err(unread) => one(Err(unread)),
            Ok(line) if is_url(&line) => self.url(&line),
            Ok(line) => walk::path(&self, &absolute(&self.base, Path::new(&line))),
        })
    }

    /// A URL, or what is wanted of a folder elsewhere.
    fn url(&self, url: &str) -> Box<dyn Iterator<Item = Found>> {
        if !Sources::is_folder(url) {
            return one(Ok(at_url(url)));
        }
        let (wanted, above) = (self.wanted, url.len());
        Box::new(self.elsewhere.list(url).filter(move |found| {
            let below = found.as_ref().map_or("", |listed| listed.source.get(above..).unwrap_or_default());
            found.is_err() || (wanted.is_named(Path::new(below)) && !below.split('/').any(|name| name.starts_with('.')))
        }))
    }
}

fn one(found: Found) -> Box<dyn Iterator<Item = Found>> {
    Box::new(std::iter::once(found))
}

/// Whether something is not on this machine.
pub(super) fn is_url(text: &str) -> bool {
    let scheme = text.split_once("://").map(|(scheme, _)| scheme.to_ascii_lowercase());
    scheme.is_some_and(|scheme| matches!(scheme.as_str(), "http" | "https" | "s3"))
}

fn at_url(url: &str) -> Listed {
    Listed { id: url.to_owned(), source: url.to_owned(), ..Listed::default() }
}

fn at_path(base: &Path, path: &Path) -> Found {
    let Some(source) = path.to_str() else { return Err(not_utf8(path)) };
    let id = path.strip_prefix(base).ok().and_then(Path::to_str).unwrap_or(source);
    Ok(Listed { id: id.to_owned(), source: source.to_owned(), ..Listed::default() })
}

fn not_utf8(path: &Path) -> Unread {
    let place = path.to_string_lossy().into_owned();
    Unread { file: place.clone(), place, reason: "its name is not UTF-8".to_owned() }
}

/// A path with neither `.` nor `..` in it. Symbolic links are not looked at: a name is a name.
fn absolute(base: &Path, path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for part in base.join(path).components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => drop(clean.pop()),
            part => clean.push(part),
        }
    }
    clean
}
