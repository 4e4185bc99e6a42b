//! A folder with files for each recording: its text, everything about it as JSON, and subtitles.
//!
//! Names are those of the ids, folders and all, so that a folder of recordings becomes a folder of texts of the same shape. What
//! cannot be a name here (`..`, control characters, a name that is too long) is written otherwise, and then has a piece of the
//! id's hash behind it: two ids never share a file. Where all of its folders together are too long, it is in none of them.
use std::{
    fmt::Write as _,
    io,
    path::{Path, PathBuf},
};

use aws_lc_rs::digest::{SHA256, digest};
use serde_json::{Map, Value, json};

use super::{Fresh, Kind, Output, Row, State, Store, TableError, columns};
use crate::batch::join::{
    Segment,
    subtitles::{srt, vtt},
};

/// Longest name, bytes: file systems take 255, and the hash and the extension come behind it.
const LONGEST: usize = 200;
/// The same of one that is in no folder, for file systems that take less.
const SHORT: usize = 60;
/// What is written beside each text.
pub(super) const EXTENSIONS: [&str; 4] = ["txt", "json", "srt", "vtt"];
/// Bytes of a hash that tell two ids apart.
const HASH: usize = 8;

/// Which subtitles are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Subtitles {
    /// SubRip.
    pub srt: bool,
    /// WebVTT.
    pub vtt: bool,
}

/// Writes them all; how many recordings.
pub(super) fn write(output: &Output, store: &Store) -> Result<u64, TableError> {
    let broken = |file: &PathBuf| {
        let file = file.clone();
        move |source| TableError::Write { file, source }
    };
    std::fs::create_dir_all(&output.out).map_err(broken(&output.out))?;
    let columns = columns::of_results(&store.columns()?, output.schema.as_ref());
    let mut rows = 0;
    for row in store.rows(&[State::Done], output.order) {
        let row: Row = row?;
        output.go_on()?;
        let transcript = row.transcript.clone().unwrap_or_default();
        let fields = columns.iter().map(|column| {
            let value = column.value(&row);
            let value = if column.kind == Kind::Moment { json!(columns::text_of(&value, Kind::Moment)) } else { value };
            (column.name.clone(), value)
        });
        let mut fields: Map<String, Value> = fields.collect();
        let segments = transcript.segments.iter().map(shown);
        fields.insert("segments".to_owned(), segments.collect());
        let mut texts = vec![
            ("json", format!("{:#}\n", Value::Object(fields))),
            ("txt", format!("{}\n", transcript.text.trim_end())),
        ];
        if output.subtitles.srt {
            texts.push(("srt", srt(&transcript.segments)));
        }
        if output.subtitles.vtt {
            texts.push(("vtt", vtt(&transcript.segments)));
        }
        let done = match put(&output.out, &name(&row.id), &texts) {
            Err((_, error)) if error.kind() == io::ErrorKind::InvalidFilename => {
                put(&output.out, &short_name(&row.id), &texts)
            }
            done => done,
        };
        done.map_err(|(file, source)| TableError::Write { file, source })?;
        rows += 1;
    }
    Ok(rows)
}

/// Writes what there is of one recording, under one name.
fn put(out: &Path, name: &str, texts: &[(&str, String)]) -> Result<(), (PathBuf, io::Error)> {
    texts.iter().try_for_each(|(extension, text)| {
        let file = out.join(format!("{name}.{extension}"));
        Fresh::write(&file, text.as_bytes()).map_err(|error| (file, error))
    })
}

/// An id's path below the folder, without its extension; the recording's own stays, for two of one name may differ in it.
pub(super) fn name(id: &str) -> String {
    let mut changed = false;
    let mut names = Vec::new();
    let parts: Vec<&str> = id.split('/').collect();
    for (at, part) in parts.iter().enumerate() {
        let is_file = at + 1 == parts.len();
        let odd = |c: char| c.is_control() || "\\:*?\"<>|".contains(c);
        let mut plain: String = part.chars().map(|c| if odd(c) { '_' } else { c }).collect();
        while plain.len() > LONGEST {
            plain.pop();
        }
        // Hidden files, `.` and `..` among them; and what Windows would not have.
        if plain.starts_with('.') {
            plain.replace_range(..1, "_");
        }
        let ours = |extension: &str| plain.strip_suffix(extension).is_some_and(|name| name.ends_with('.'));
        if plain.is_empty() || (!is_file && EXTENSIONS.iter().any(|extension| ours(extension))) {
            plain.push('_');
        }
        changed |= plain != *part;
        names.push(plain);
    }
    let mut name = names.join("/");
    if changed {
        name += &told_apart(id);
    }
    name
}

/// The same without its folders.
fn short_name(id: &str) -> String {
    let name = name(id);
    let mut short = name.rsplit('/').next().unwrap_or_default().to_owned();
    while short.len() > SHORT {
        short.pop();
    }
    short + &told_apart(id)
}

/// What no other id has.
fn told_apart(id: &str) -> String {
    let mut hash = "-".to_owned();
    for byte in digest(&SHA256, id.as_bytes()).as_ref().iter().take(HASH) {
        let _ = write!(hash, "{byte:02x}");
    }
    hash
}

/// A segment as the service writes one, and who spoke and whether its times are a guess, where that is so.
fn shown(segment: &Segment) -> Value {
    let ms = |seconds: f64| (seconds * 1_000.0).round() / 1_000.0;
    let mut shown = Map::new();
    shown.insert("start".to_owned(), json!(ms(segment.start_s)));
    shown.insert("end".to_owned(), json!(ms(segment.end_s)));
    shown.insert("text".to_owned(), json!(segment.text));
    if let Some(speaker) = &segment.speaker {
        shown.insert("speaker".to_owned(), json!(speaker));
    }
    if segment.estimated {
        shown.insert("estimated".to_owned(), json!(true));
    }
    Value::Object(shown)
}
