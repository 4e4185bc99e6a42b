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
    io::BufRead,
    path::{Component, Path, PathBuf},
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
    fetch::{FetchError, Limits, Opened, Source, Sources},
    looks::Wanted,
    manifest::{ManifestError, manifest},
};

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
    /// What.
    pub place: String,
    /// Why.
    pub reason: String,
}

/// One thing that was found.
pub type Found = Result<Listed, Unread>;

/// What the arguments of a command mean: files, folders with what is `wanted` in them, globs and URLs. Paths are meant from `base`, which
/// is absolute.
pub fn arguments(base: &Path, arguments: Vec<OsString>, wanted: Wanted) -> impl Iterator<Item = Found> + use<> {
    let base = base.to_owned();
    arguments.into_iter().flat_map(move |argument| self::argument(&base, &argument, wanted))
}

fn argument(base: &Path, argument: &OsString, wanted: Wanted) -> Box<dyn Iterator<Item = Found>> {
    let Some(text) = argument.to_str() else { return one(Err(not_utf8(Path::new(argument)))) };
    if is_url(text) {
        return one(Ok(at_url(text)));
    }
    let path = absolute(base, Path::new(text));
    // A file may have a name that looks like a pattern.
    if path.symlink_metadata().is_err() && walk::is_pattern(text) {
        return walk::pattern(base, &path, wanted);
    }
    walk::path(base, &path, wanted)
}

/// What a list means, one path or URL a line (or between NULs, if its beginning has one). Paths are meant from `base`.
pub fn list(base: &Path, list: impl BufRead + 'static, wanted: Wanted) -> impl Iterator<Item = Found> {
    let base = base.to_owned();
    list::Lines::new(list).flat_map(move |line| match line {
        Err(unread) => one(Err(unread)),
        Ok(line) if is_url(&line) => one(Ok(at_url(&line))),
        Ok(line) => walk::path(&base, &absolute(&base, Path::new(&line)), wanted),
    })
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
    Unread { place: path.to_string_lossy().into_owned(), reason: "its name is not UTF-8".to_owned() }
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
