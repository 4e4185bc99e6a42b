//! Folders and globs. Hidden files are passed by, links are followed and their loops left out.
use std::path::{Component, Path, PathBuf};

use globset::{Glob, GlobBuilder, GlobMatcher};
use walkdir::{DirEntry, WalkDir};

use super::{Found, PIECES, Search, Unread, at_path, looks::Wanted, not_utf8, one};

/// A file, or all that is wanted in a folder.
pub(super) fn path(search: &Search, path: &Path) -> Box<dyn Iterator<Item = Found>> {
    let base = &search.base;
    match path.metadata() {
        Ok(there) if there.is_dir() => folder(search.clone(), path),
        Ok(there) if there.is_file() => one(at_path(base, path)),
        Ok(_) => one(Err(unread(base, path, "it is neither a file nor a folder".to_owned()))),
        Err(error) => one(Err(unread(base, path, reason(&error)))),
    }
}

fn folder(search: Search, folder: &Path) -> Box<dyn Iterator<Item = Found>> {
    let results = search.results.clone();
    let walk = WalkDir::new(folder).follow_links(true).into_iter();
    let walk = walk.filter_entry(move |entry| is_shown(results.as_deref(), entry));
    Box::new(walk.filter_map(move |entry| match entry {
        Ok(entry) => {
            (entry.file_type().is_file() && search.wanted.is(entry.path())).then(|| at_path(&search.base, entry.path()))
        }
        Err(error) => stumbled(&search.base, &error).map(Err),
    }))
}

/// Not hidden, and neither what jobs keep for a while nor what comes of this one.
fn is_shown(results: Option<&Path>, entry: &DirEntry) -> bool {
    let name = entry.file_name().as_encoded_bytes();
    let kept = || entry.file_type().is_dir() && name.ends_with(PIECES.as_bytes());
    entry.depth() == 0 || !(name.starts_with(b".") || kept() || results == Some(entry.path()))
}

/// What to tell of an error; `None`: of a link to a folder that it is in, nothing is lost.
fn stumbled(base: &Path, error: &walkdir::Error) -> Option<Unread> {
    if error.loop_ancestor().is_some() {
        return None;
    }
    let reason = error.io_error().map_or_else(|| error.to_string(), reason);
    Some(unread(base, error.path().unwrap_or(base), reason))
}

fn unread(base: &Path, path: &Path, reason: String) -> Unread {
    let place = path.strip_prefix(base).unwrap_or(path);
    Unread { place: place.to_string_lossy().into_owned(), file: path.to_string_lossy().into_owned(), reason }
}

fn reason(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "no such file".to_owned(),
        std::io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        _ => error.to_string(),
    }
}

/// Whether a text that names no file is a pattern.
pub(super) fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?', '[', '{'])
}

/// What a glob finds, whoever did not expand it: `*` and `?` within a name, `**` across folders, `[a-z]`, `{a,b}`. A folder
/// that it finds is walked.
pub(super) fn pattern(search: &Search, pattern: &Path) -> Box<dyn Iterator<Item = Found>> {
    let (base, wanted, results) = (search.base.clone(), search.wanted, search.results.clone());
    let pattern = match Pattern::new(pattern) {
        Ok(pattern) => pattern,
        Err(reason) => return one(Err(unread(&base, pattern, reason))),
    };
    let none = unread(&base, &pattern.whole, "no file matches".to_owned());
    let pruned = pattern.clone();
    let walk = WalkDir::new(&pattern.root).follow_links(true).into_iter();
    let walk = walk.filter_entry(move |entry| is_shown(results.as_deref(), entry) && pruned.leads_on(entry));
    let found = walk.filter_map(move |entry| match entry {
        Ok(entry) => pattern.finds(&entry, wanted).then(|| at_path(&base, entry.path())),
        Err(error) if error.depth() == 0 => None,
        Err(error) => stumbled(&base, &error).map(Err),
    });
    // A pattern that finds nothing is a mistake in most cases.
    let mut found = found.peekable();
    if found.peek().is_none() { one(Err(none)) } else { Box::new(found) }
}

/// A glob, taken apart so that only folders are opened that can have something in them.
#[derive(Debug, Clone)]
struct Pattern {
    whole: PathBuf,
    /// The folder above all that it can find.
    root: PathBuf,
    /// Matches a path below the root.
    exact: GlobMatcher,
    /// Matches what is in a folder that the whole matches.
    beneath: GlobMatcher,
    /// One for each name below the root, as far as its place is known.
    names: Vec<GlobMatcher>,
    /// After those, any depth may match.
    deep: bool,
}

impl Pattern {
    fn new(whole: &Path) -> Result<Self, String> {
        let glob = |text: &str| {
            let glob: Result<Glob, _> = GlobBuilder::new(text).literal_separator(true).build();
            glob.map(|glob| glob.compile_matcher()).map_err(|error| format!("not a pattern: {}", error.kind()))
        };
        let names: Vec<Component<'_>> = whole.components().collect();
        let names: Vec<&str> = names.iter().filter_map(|name| name.as_os_str().to_str()).collect();
        if whole.to_str().is_none() {
            return Err(not_utf8(whole).reason);
        }
        let fixed = names.iter().take_while(|name| !is_pattern(name)).count();
        let (root, rest) = names.split_at_checked(fixed).unwrap_or((&names, &[]));
        let below = rest.join("/");
        let known: Vec<GlobMatcher> =
            rest.iter().take_while(|name| !name.contains("**")).map_while(|name| glob(name).ok()).collect();
        Ok(Self {
            whole: whole.to_owned(),
            root: root.iter().collect(),
            exact: glob(&below)?,
            beneath: glob(&format!("{below}/**"))?,
            deep: known.len() < rest.len(),
            names: known,
        })
    }

    fn leads_on(&self, entry: &DirEntry) -> bool {
        match entry.depth().checked_sub(1).map(|at| self.names.get(at)) {
            None => true,
            Some(Some(name)) => name.is_match(entry.file_name()),
            // Either anything may match, or all above this have matched and it is in a folder that was found.
            Some(None) => true,
        }
    }

    fn finds(&self, entry: &DirEntry, wanted: Wanted) -> bool {
        let Ok(below) = entry.path().strip_prefix(&self.root) else { return false };
        let exact = self.exact.is_match(below);
        let beneath = !exact && (!self.deep || self.beneath.is_match(below)) && entry.depth() > self.names.len();
        entry.file_type().is_file() && (exact || beneath && wanted.is(entry.path()))
    }
}
