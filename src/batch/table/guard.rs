//! What results are never written over: what they are made of, and a list of errors that is somebody else's.
//!
//! Looks at what is there before anything is paid, and changes nothing.
use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Read as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use csv::ReaderBuilder;
use parquet::file::reader::{FileReader as _, SerializedFileReader};
use serde_json::{Map, Value};

use super::{Format, Output, columns, files::EXTENSIONS};

/// Longest first line of a list of errors, bytes.
const LONGEST: u64 = 1 << 20;

/// What is where results will be.
#[derive(Debug, Clone)]
pub struct Guard {
    /// Files that will be replaced, as the system knows them.
    files: Vec<(PathBuf, (u64, u64))>,
    /// The folder, with a file for each item.
    folder: Option<PathBuf>,
    /// The items are texts, as what is written is.
    texts: bool,
}

impl Output {
    /// What is there now. `texts`: the items are texts already.
    ///
    /// # Errors
    /// What to say of something that is in the way, or of a file where errors will be listed, and which is somebody else's.
    pub fn guard(&self, texts: bool) -> Result<Guard, String> {
        if let Ok(there) = fs::metadata(&self.out)
            && there.is_dir() != (self.format == Format::Folder)
        {
            let (found, wanted) = if there.is_dir() { ("a folder", "a file") } else { ("a file", "a folder") };
            let out = self.out.display();
            return Err(format!(
                "--out: `{out}` is {found}, and results would be {wanted} of this name; name another one"
            ));
        }
        let errors = self.errors();
        let format = if self.format == Format::Folder { Format::Jsonl } else { self.format };
        if errors.symlink_metadata().is_ok() && !is_list_of_errors(&errors, format) {
            let errors = errors.display();
            return Err(format!(
                "--out: errors would be listed in `{errors}`, and what is there is no such list; move it, or name another --out"
            ));
        }
        let (folder, own) = match self.format {
            Format::Folder => (fs::canonicalize(&self.out).ok(), None),
            _ => (None, Some(self.out.clone())),
        };
        let there = |file: PathBuf| same(&file).map(|same| (file, same));
        Ok(Guard { files: own.into_iter().chain([errors]).filter_map(there).collect(), folder, texts })
    }
}

impl Guard {
    /// What to say of a file that something is made of, if it would be written over; `what` it is.
    ///
    /// # Errors
    /// That.
    pub fn file(&self, what: &str, file: &Path) -> Result<(), String> {
        let Some(same) = (!self.files.is_empty()).then(|| same(file)).flatten() else { return Ok(()) };
        match self.files.iter().find(|(_, own)| *own == same) {
            Some((own, _)) => Err(format!(
                "--out: `{}` is {what}, and results would be written over it; name another one",
                own.display()
            )),
            None => Ok(()),
        }
    }

    /// The same of an item's file, which in a folder of results would be taken for one of them, or one of them for it.
    ///
    /// # Errors
    /// What to say of it.
    pub fn item(&self, file: &Path) -> Result<(), String> {
        self.file("an input", file)?;
        let Some(folder) = &self.folder else { return Ok(()) };
        let extension = file.extension().and_then(|extension| extension.to_str());
        let alike = self.texts || extension.is_some_and(|extension| EXTENSIONS.contains(&extension));
        if alike && fs::canonicalize(file).is_ok_and(|file| file.starts_with(folder)) {
            let (folder, file) = (folder.display(), file.display());
            return Err(format!(
                "--out: `{file}` is an input, and in the folder of results `{folder}`; name another one"
            ));
        }
        Ok(())
    }
}

/// A file as the system knows it, whatever it is called.
fn same(file: &Path) -> Option<(u64, u64)> {
    fs::metadata(file).ok().map(|there| (there.dev(), there.ino()))
}

/// Whether a file is a list of errors that this program has written.
pub(super) fn is_list_of_errors(file: &Path, format: Format) -> bool {
    let is_file = fs::metadata(file).is_ok_and(|there| there.is_file());
    let Some(opened) = is_file.then(|| File::open(file).ok()).flatten() else { return false };
    match format {
        Format::Csv => ReaderBuilder::new()
            .from_reader(BufReader::new(opened.take(LONGEST)))
            .headers()
            .is_ok_and(|names| columns::are_errors(&names.iter().collect::<Vec<_>>())),
        Format::Jsonl | Format::Folder => {
            let mut line = String::new();
            let read = BufReader::new(opened.take(LONGEST)).read_line(&mut line);
            let fields: Map<String, Value> = serde_json::from_str(&line).unwrap_or_default();
            read.is_ok() && columns::are_errors(&fields.keys().map(String::as_str).collect::<Vec<_>>())
        }
        Format::Parquet => SerializedFileReader::new(opened).is_ok_and(|reader| {
            let columns = reader.metadata().file_metadata().schema_descr().columns();
            columns::are_errors(&columns.iter().map(|column| column.name()).collect::<Vec<_>>())
        }),
    }
}
