//! What people take away: one row per file that is done, and beside it one per file that is not.
//!
//! Stands after [`super::store`], reads it row by row, and holds no more of it than a page. A file appears whole or not at all:
//! it is written under another name, and renamed. Nothing is written outside of the place that was named, whatever a file's or
//! a manifest's ids are, and nothing over what results are made of ([`Guard`]).
//!
//! A csv is data: what begins with `=`, `+`, `-` or `@` stands in it as it was said. Whoever opens it in a spreadsheet imports
//! its columns as text.
use std::{
    fs::File,
    io::{self, BufWriter, Write as _},
    path::{Path, PathBuf},
};

use serde_json::Value;
use tempfile::{NamedTempFile, TempPath};
use tokio_util::sync::CancellationToken;

use super::store::{Order, Row, State, Store, StoreError};

mod columns;
mod files;
mod guard;
mod lines;
mod parquet;
#[cfg(test)]
mod tests;

use self::columns::{Column, Kind};
pub use self::{files::Subtitles, guard::Guard};

/// What a table is written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One JSON object a line.
    Jsonl,
    /// RFC 4180.
    Csv,
    /// Parquet, with typed columns.
    Parquet,
    /// A folder with files for each recording.
    Folder,
}

impl Format {
    /// What an output's name asks for; a name without one of the known extensions is a folder.
    ///
    /// # Errors
    /// What to say of a name that looks like another kind of table.
    pub fn of(out: &Path) -> Result<Self, String> {
        let extension = out.extension().and_then(|extension| extension.to_str()).map(str::to_ascii_lowercase);
        match extension.as_deref() {
            Some("jsonl" | "ndjson") => Ok(Self::Jsonl),
            Some("csv") => Ok(Self::Csv),
            Some("parquet") => Ok(Self::Parquet),
            Some(other @ ("json" | "tsv" | "xlsx" | "xls" | "txt" | "srt" | "vtt")) => {
                Err(format!("out: found `.{other}`, allowed are .jsonl, .csv, .parquet, or a folder"))
            }
            _ => Ok(Self::Folder),
        }
    }
}

/// Where results go, and as what.
#[derive(Debug, Clone)]
pub struct Output {
    /// The file, or the folder.
    pub out: PathBuf,
    /// What is written there.
    pub format: Format,
    /// Beside each text, in a folder.
    pub subtitles: Subtitles,
    /// The schema that extracts have: its top-level properties are columns.
    pub schema: Option<Value>,
    /// How rows are sorted.
    pub order: Order,
    /// Told when nobody waits for it any more.
    pub stop: CancellationToken,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Rows of files that are done.
    pub rows: u64,
    /// Rows of files that cannot be read, failed or were skipped.
    pub errors: u64,
    /// Where those are; `None`: there are none.
    pub errors_at: Option<PathBuf>,
}

/// Why there is no table.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The job cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Nobody waits for it any more.
    #[error("the results are not written; what is done is kept, and --resume writes them")]
    Stopped,
    /// It cannot be written.
    #[error("cannot write `{}`: {source}", file.display())]
    Write {
        /// Which.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A table that is being written.
trait Table {
    /// One more row, a value for each column.
    fn row(&mut self, values: &[Value]) -> io::Result<()>;
    /// After the last one.
    fn end(self: Box<Self>) -> io::Result<()>;
}

/// A file that is being written: its name, and the one that it has meanwhile.
struct Fresh {
    file: PathBuf,
    temp: TempPath,
}

impl Output {
    /// Where files that failed are listed: beside the table, or in the folder.
    pub fn errors(&self) -> PathBuf {
        match self.format {
            Format::Folder => self.out.join("errors.jsonl"),
            _ => {
                let mut name = self.out.file_stem().unwrap_or_default().to_owned();
                name.push(".errors.");
                name.push(self.out.extension().unwrap_or_default());
                self.out.with_file_name(name)
            }
        }
    }

    /// Writes what there is so far. Done again later, it takes the place of what was there.
    ///
    /// # Errors
    /// When the job cannot be read, or something cannot be written: then what was there is there still, but in a folder, where
    /// each file stands for itself.
    pub fn write(&self, store: &Store) -> Result<Written, TableError> {
        let metadata = store.columns()?;
        let rows = match self.format {
            Format::Folder => files::write(self, store)?,
            format => {
                let columns = columns::of_results(&metadata, self.schema.as_ref());
                self.table(&self.out, format, &columns, store.rows(&[State::Done], self.order))?
            }
        };
        let errors_at = self.errors();
        let columns = columns::of_errors(&metadata);
        let format = if self.format == Format::Folder { Format::Jsonl } else { self.format };
        let sums = store.sums();
        if sums.failed.items + sums.skipped.items + sums.unread == 0 {
            // From an earlier run, perhaps.
            if !guard::is_list_of_errors(&errors_at, format) {
                return Ok(Written { rows, errors: 0, errors_at: None });
            }
            match std::fs::remove_file(&errors_at) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(TableError::Write { file: errors_at, source });
                }
                _ => return Ok(Written { rows, errors: 0, errors_at: None }),
            }
        }
        let listed = store.unread().chain(store.rows(&[State::Failed, State::Skipped], self.order));
        let errors = self.table(&errors_at, format, &columns, listed)?;
        Ok(Written { rows, errors, errors_at: Some(errors_at) })
    }

    /// Whether it is still waited for.
    fn go_on(&self) -> Result<(), TableError> {
        if self.stop.is_cancelled() { Err(TableError::Stopped) } else { Ok(()) }
    }

    fn table(
        &self,
        file: &Path,
        format: Format,
        columns: &[Column],
        listed: impl Iterator<Item = Result<Row, StoreError>>,
    ) -> Result<u64, TableError> {
        let broken = |source| TableError::Write { file: file.to_owned(), source };
        let (fresh, opened) = Fresh::new(file).map_err(broken)?;
        let mut table: Box<dyn Table> = match format {
            Format::Jsonl | Format::Folder => Box::new(lines::Jsonl::new(opened, columns)),
            Format::Csv => Box::new(lines::Csv::new(opened, columns).map_err(broken)?),
            Format::Parquet => Box::new(parquet::Parquet::new(opened, columns).map_err(broken)?),
        };
        let mut rows = 0;
        let mut values = Vec::with_capacity(columns.len());
        for row in listed {
            self.go_on()?;
            let row = row?;
            values.clear();
            values.extend(columns.iter().map(|column| column.value(&row)));
            table.row(&values).map_err(broken)?;
            rows += 1;
        }
        table.end().map_err(broken)?;
        fresh.appear().map_err(broken)?;
        Ok(rows)
    }
}

impl Fresh {
    /// A file that nobody sees yet, in the folder of the one that it will be.
    fn new(file: &Path) -> io::Result<(Self, BufWriter<File>)> {
        let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder)?;
        let made = tempfile::Builder::new().prefix(".voxrelay-").permissions(everybodys()).tempfile_in(folder)?;
        let (opened, temp) = NamedTempFile::into_parts(made);
        Ok((Self { file: file.to_owned(), temp }, BufWriter::new(opened)))
    }

    fn appear(self) -> io::Result<()> {
        // A name that outlives the power shall not stand for a file that does not.
        File::open(&self.temp)?.sync_all()?;
        self.temp.persist(&self.file).map_err(|error| error.error)
    }

    /// A whole file at once. It is made anew soon if it is lost, so nobody waits for the disk.
    fn write(file: &Path, bytes: &[u8]) -> io::Result<()> {
        let (fresh, mut opened) = Self::new(file)?;
        opened.write_all(bytes)?;
        opened.flush()?;
        fresh.temp.persist(&fresh.file).map_err(|error| error.error)
    }
}

/// As any program makes files, less what the user's mask forbids; temporary ones are nobody else's otherwise.
fn everybodys() -> std::fs::Permissions {
    std::os::unix::fs::PermissionsExt::from_mode(0o666)
}
