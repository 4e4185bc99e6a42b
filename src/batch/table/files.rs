//! A folder with files for each recording: its text, everything about it as JSON, and subtitles.
//!
//! Names are those of the ids, folders and all, so that a folder of recordings becomes a folder of texts of the same shape. What
//! cannot be a name here (`..`, control characters, a name that is too long) is written otherwise, and then has a piece of the
//! id's hash behind it: two ids never share a file.
use std::{fmt::Write as _, path::PathBuf};

use aws_lc_rs::digest::{SHA256, digest};
use serde_json::{Map, Value, json};

use super::{Fresh, Kind, Output, Row, State, Store, TableError, columns};
use crate::batch::store::Transcript;

/// Longest name, bytes: file systems take 255, and the hash and the extension come behind it.
const LONGEST: usize = 200;
/// What is written beside each text.
const EXTENSIONS: [&str; 4] = ["txt", "json", "srt", "vtt"];
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
        let name = name(&row.id);
        let put = |extension: &str, text: String| {
            let file = output.out.join(format!("{name}.{extension}"));
            Fresh::write(&file, text.as_bytes()).map_err(broken(&file))
        };
        let transcript = row.transcript.clone().unwrap_or_default();
        if output.subtitles.srt {
            put("srt", srt(&transcript, row.duration_ms))?;
        }
        if output.subtitles.vtt {
            put("vtt", vtt(&transcript, row.duration_ms))?;
        }
        let fields = columns.iter().map(|column| {
            let value = column.value(&row);
            let value = if column.kind == Kind::Moment { json!(columns::text_of(&value, Kind::Moment)) } else { value };
            (column.name.clone(), value)
        });
        let mut fields: Map<String, Value> = fields.collect();
        let seconds = |ms: u64| u32::try_from(ms).map(|ms| f64::from(ms) / 1_000.0).unwrap_or_default();
        let segments = transcript.segments.iter().map(
            |segment| json!({"start": seconds(segment.start_ms), "end": seconds(segment.end_ms), "text": segment.text}),
        );
        fields.insert("segments".to_owned(), segments.collect());
        put("json", format!("{:#}\n", Value::Object(fields)))?;
        put("txt", format!("{}\n", transcript.text.trim_end()))?;
        rows += 1;
    }
    Ok(rows)
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
        name.push('-');
        for byte in digest(&SHA256, id.as_bytes()).as_ref().iter().take(HASH) {
            let _ = write!(name, "{byte:02x}");
        }
    }
    name
}

/// Subtitles, each line of a number of segments; a text without times is one that is shown all the time.
fn shown(transcript: &Transcript, duration_ms: Option<u64>) -> Vec<(u64, u64, String)> {
    // A blank line would end it, and an arrow would be taken for times.
    let plain = |text: &str| {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        lines.collect::<Vec<_>>().join("\n").replace("-->", "->")
    };
    let segments = transcript.segments.iter().map(|segment| (segment.start_ms, segment.end_ms, plain(&segment.text)));
    let mut shown: Vec<_> = segments.filter(|(_, _, text)| !text.is_empty()).collect();
    if shown.is_empty() && !transcript.text.trim().is_empty() {
        shown.push((0, duration_ms.unwrap_or_default(), plain(&transcript.text)));
    }
    shown
}

fn clock(ms: u64, point: char) -> String {
    let (seconds, minutes) = (ms / 1_000, ms / 60_000);
    format!("{:02}:{:02}:{:02}{point}{:03}", minutes / 60, minutes % 60, seconds % 60, ms % 1_000)
}

fn srt(transcript: &Transcript, duration_ms: Option<u64>) -> String {
    let mut text = String::new();
    for (n, (start, end, words)) in shown(transcript, duration_ms).into_iter().enumerate() {
        let _ = write!(text, "{}\n{} --> {}\n{words}\n\n", n + 1, clock(start, ','), clock(end, ','));
    }
    text
}

fn vtt(transcript: &Transcript, duration_ms: Option<u64>) -> String {
    let mut text = "WEBVTT\n\n".to_owned();
    for (start, end, words) in shown(transcript, duration_ms) {
        let words = words.replace('&', "&amp;").replace('<', "&lt;");
        let _ = write!(text, "{} --> {}\n{words}\n\n", clock(start, '.'), clock(end, '.'));
    }
    text
}
