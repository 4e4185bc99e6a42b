//! Manifests: csv, tsv or jsonl with an `id`, a `path` (or `file`, or `url`), and whatever else shall stand in the table.
//!
//! Unlike a folder, a manifest is somebody's word for what is to be done: what is wrong with it ends the run before it begins.
//! Ids that come twice are found by [`crate::batch::store`], which knows them all.
use std::{
    fs::File,
    io::{self, BufRead as _, BufReader, Read as _},
    path::{Path, PathBuf},
};

use csv::{ReaderBuilder, StringRecord};
use serde_json::{Map, Value};

use super::{Listed, absolute, is_url};

/// Names of the column that says where a file is.
const WHERE: [&str; 3] = ["path", "file", "url"];
/// Longest line of a jsonl manifest, bytes.
const LONGEST: u64 = 1 << 20;

/// What is wrong with a manifest.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// It cannot be read.
    #[error("manifest `{}`: {source}", file.display())]
    Read {
        /// Which.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Its name says nothing about what is in it.
    #[error("manifest `{}`: its name must end in .csv, .tsv or .jsonl", file.display())]
    Kind {
        /// Which.
        file: PathBuf,
    },
    /// A line of it.
    #[error("manifest `{}`: line {line}: {problem}", file.display())]
    Line {
        /// Which.
        file: PathBuf,
        /// From 1.
        line: u64,
        /// What was found and what is allowed.
        problem: String,
    },
}

/// The items of a manifest, read as they are asked for. Relative paths are meant from the folder that it is in.
///
/// # Errors
/// When there is none, or it has not the columns that it must have.
pub fn manifest(file: &Path) -> Result<Box<dyn Iterator<Item = Result<Listed, ManifestError>>>, ManifestError> {
    let read = |source| ManifestError::Read { file: file.to_owned(), source };
    let whole = std::path::absolute(file).map_err(read)?;
    let folder = whole.parent().unwrap_or(&whole).to_owned();
    let extension = file.extension().and_then(|extension| extension.to_str()).map(str::to_ascii_lowercase);
    let separator = match extension.as_deref() {
        Some("csv") => Some(b','),
        Some("tsv" | "tab") => Some(b'\t'),
        Some("jsonl" | "ndjson") => None,
        _ => return Err(ManifestError::Kind { file: file.to_owned() }),
    };
    let mut opened = BufReader::new(File::open(file).map_err(read)?);
    // Excel begins with a byte order mark.
    if opened.fill_buf().map_err(read)?.starts_with(b"\xEF\xBB\xBF") {
        opened.consume(3);
    }
    match separator {
        Some(separator) => table(file.to_owned(), folder, opened, separator),
        None => Ok(Box::new(Objects { file: file.to_owned(), folder, lines: opened, line: 0, ended: false })),
    }
}

fn table(
    file: PathBuf,
    folder: PathBuf,
    opened: BufReader<File>,
    separator: u8,
) -> Result<Box<dyn Iterator<Item = Result<Listed, ManifestError>>>, ManifestError> {
    // The reader takes a record for ended at its CR, and its LF for the next one's beginning: it counts one line too few.
    let head = opened.buffer();
    let crlf = head.iter().position(|b| *b == b'\n').and_then(|lf| head.get(lf.checked_sub(1)?)) == Some(&b'\r');
    let late = u64::from(crlf);
    let mut reader = ReaderBuilder::new().delimiter(separator).from_reader(opened);
    let header = reader.headers().map_err(|error| of_csv(&file, &error, 0))?.clone();
    let wrong = |problem| ManifestError::Line { file: file.clone(), line: 1, problem };
    let names: Vec<String> = header.iter().map(|name| name.trim().to_owned()).collect();
    if let Some(twice) = names.iter().enumerate().find(|(at, name)| names.iter().take(*at).any(|other| other == *name))
    {
        return Err(wrong(format!("two columns are named `{}`", twice.1)));
    }
    let has = |wanted: &str| names.iter().any(|name| name == wanted);
    if !has("id") || !WHERE.iter().any(|name| has(name)) {
        let found = names.join(", ");
        return Err(wrong(format!("columns `id` and one of `path`, `file`, `url` are needed, found: {found}")));
    }
    Ok(Box::new(reader.into_records().map(move |record| {
        let record: StringRecord = record.map_err(|error| of_csv(&file, &error, late))?;
        let line = record.position().map_or(0, csv::Position::line) + late;
        let fields = names.iter().cloned().zip(record.iter().map(|field| Value::String(field.to_owned())));
        item(fields.collect(), line, &folder).map_err(|problem| ManifestError::Line {
            file: file.clone(),
            line,
            problem,
        })
    })))
}

fn of_csv(file: &Path, error: &csv::Error, late: u64) -> ManifestError {
    let file = file.to_owned();
    let line = error.position().map_or(0, csv::Position::line) + late;
    let problem = match error.kind() {
        csv::ErrorKind::Io(source) => {
            return ManifestError::Read { file, source: io::Error::new(source.kind(), source.to_string()) };
        }
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
            format!("{len} fields, and the first line has {expected_len}")
        }
        csv::ErrorKind::Utf8 { .. } => "not UTF-8".to_owned(),
        _ => error.to_string(),
    };
    ManifestError::Line { file, line, problem }
}

/// A jsonl manifest.
struct Objects {
    file: PathBuf,
    folder: PathBuf,
    lines: BufReader<File>,
    line: u64,
    ended: bool,
}

impl Iterator for Objects {
    type Item = Result<Listed, ManifestError>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.ended {
            self.line += 1;
            let mut text = String::new();
            let found = match (&mut self.lines).take(LONGEST).read_line(&mut text) {
                Ok(0) => {
                    self.ended = true;
                    continue;
                }
                Ok(_) if text.trim().is_empty() => continue,
                Ok(_) => serde_json::from_str::<Map<String, Value>>(&text)
                    .map_err(|error| format!("not a JSON object: {error}"))
                    .and_then(|fields| item(fields, self.line, &self.folder)),
                Err(error) if error.kind() == io::ErrorKind::InvalidData => Err("not UTF-8".to_owned()),
                Err(source) => {
                    self.ended = true;
                    return Some(Err(ManifestError::Read { file: self.file.clone(), source }));
                }
            };
            self.ended = found.is_err();
            let (file, line) = (self.file.clone(), self.line);
            return Some(found.map_err(|problem| ManifestError::Line { file, line, problem }));
        }
        None
    }
}

/// # Errors
/// What is wrong with a line.
fn item(mut fields: Map<String, Value>, line: u64, folder: &Path) -> Result<Listed, String> {
    let id = match fields.shift_remove("id") {
        Some(Value::String(id)) => id.trim().to_owned(),
        Some(Value::Number(id)) => id.to_string(),
        Some(other) => return Err(format!("id: found {other}, allowed are text and numbers")),
        None => return Err("id is missing".to_owned()),
    };
    if id.is_empty() {
        return Err("id is empty".to_owned());
    }
    let place =
        WHERE.iter().find(|name| fields.get(**name).and_then(Value::as_str).is_some_and(|text| !text.is_empty()));
    let Some(place) = place else { return Err("one of path, file and url must say where it is".to_owned()) };
    let place = fields.shift_remove(*place).and_then(|place| place.as_str().map(str::to_owned)).unwrap_or_default();
    let source =
        if is_url(&place) { place } else { absolute(folder, Path::new(&place)).to_string_lossy().into_owned() };
    Ok(Listed { id, source, metadata: fields, line: Some(line) })
}
