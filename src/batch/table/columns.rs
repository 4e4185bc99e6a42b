//! Which columns a table has, and what stands in them.
use serde_json::{Map, Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::Row;
use crate::batch::{extract::column, store::State};

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Text.
    Text,
    /// A whole number.
    Int,
    /// A number.
    Double,
    /// Yes or no.
    Bool,
    /// Unix ms in [`Value`]s; a moment in what is written.
    Moment,
    /// Anything, as JSON.
    Json,
}

/// Where a column's values come from.
#[derive(Debug, Clone)]
enum Origin {
    Row(fn(&Row) -> Value),
    Metadata(String),
    Extract(String),
}

/// One column.
#[derive(Debug, Clone)]
pub(super) struct Column {
    pub(super) name: String,
    pub(super) kind: Kind,
    from: Origin,
}

type Fixed = (&'static str, Kind, fn(&Row) -> Value);

const RESULTS: [Fixed; 15] = [
    ("id", Kind::Text, |row| json!(row.id)),
    ("file", Kind::Text, |row| json!(row.source)),
    ("duration_s", Kind::Double, |row| seconds(row.duration_ms)),
    ("language", Kind::Text, |row| json!(row.transcript.as_ref().and_then(|transcript| transcript.language.as_ref()))),
    ("transcript", Kind::Text, |row| json!(row.transcript.as_ref().map(|transcript| &transcript.text))),
    ("model", Kind::Text, |row| json!(row.transcript.as_ref().map(|transcript| &transcript.model))),
    ("input_tokens", Kind::Int, |row| json!(row.usage.input_tokens)),
    ("output_tokens", Kind::Int, |row| json!(row.usage.output_tokens)),
    ("audio_s", Kind::Double, |row| seconds(Some(row.usage.audio_ms))),
    ("cost_usd", Kind::Double, |row| cost(row)),
    ("reused", Kind::Bool, |row| json!(row.reused)),
    ("started", Kind::Moment, |row| json!(row.started_ms)),
    ("finished", Kind::Moment, |row| json!(row.finished_ms)),
    ("attempts", Kind::Int, |row| json!(row.attempts)),
    ("first_error", Kind::Text, |row| json!(row.first_error)),
];

/// The first ones tell a list of errors from other tables.
const ERRORS: [Fixed; 9] = [
    ("id", Kind::Text, |row| json!(row.id)),
    ("file", Kind::Text, |row| json!(row.source)),
    ("state", Kind::Text, |row| json!(if row.state == State::Skipped { "skipped" } else { "failed" })),
    ("code", Kind::Text, |row| json!(row.code)),
    ("message", Kind::Text, |row| json!(row.message)),
    ("attempts", Kind::Int, |row| json!(row.attempts)),
    ("duration_s", Kind::Double, |row| seconds(row.duration_ms)),
    ("cost_usd", Kind::Double, |row| cost(row)),
    ("finished", Kind::Moment, |row| json!(row.finished_ms)),
];
/// Of these columns.
const TELLING: usize = 4;

fn cost(row: &Row) -> Value {
    json!(row.usage.price().and_then(|cost| cost.to_string().parse::<f64>().ok()))
}

fn seconds(ms: Option<u64>) -> Value {
    // Exact to the ms, and shown without more digits.
    json!(ms.and_then(|ms| u32::try_from(ms).ok()).map(|ms| f64::from(ms) / 1_000.0))
}

/// Those of files that are done.
pub(super) fn of_results(metadata: &[String], schema: Option<&Value>) -> Vec<Column> {
    let mut columns = fixed(&RESULTS);
    add_metadata(&mut columns, metadata);
    for column::Column { name, kind } in schema.map(column::columns).unwrap_or_default() {
        let unique = unique(&columns, &name, "extract");
        columns.push(Column { name: unique, kind: kind.into(), from: Origin::Extract(name) });
    }
    columns
}

/// Those of files that are not.
pub(super) fn of_errors(metadata: &[String]) -> Vec<Column> {
    let mut columns = fixed(&ERRORS);
    add_metadata(&mut columns, metadata);
    columns
}

/// Whether a table of these columns is a list of errors.
pub(super) fn are_errors(names: &[&str]) -> bool {
    names.len() >= TELLING && ERRORS.iter().zip(names).take(TELLING).all(|((own, ..), name)| own == name)
}

fn fixed(columns: &[Fixed]) -> Vec<Column> {
    let column =
        |(name, kind, from): &Fixed| Column { name: (*name).to_owned(), kind: *kind, from: Origin::Row(*from) };
    columns.iter().map(column).collect()
}

fn add_metadata(columns: &mut Vec<Column>, metadata: &[String]) {
    for name in metadata {
        // A manifest says nothing about types, and a table that is written twice shall have the same ones.
        let unique = unique(columns, name, "manifest");
        columns.push(Column { name: unique, kind: Kind::Text, from: Origin::Metadata(name.clone()) });
    }
}

/// A name that no other column has.
fn unique(columns: &[Column], name: &str, of: &str) -> String {
    let mut unique = name.to_owned();
    while columns.iter().any(|column| column.name == unique) {
        unique = format!("{of}_{unique}");
    }
    unique
}

impl From<column::Kind> for Kind {
    fn from(kind: column::Kind) -> Self {
        match kind {
            column::Kind::String => Self::Text,
            column::Kind::Integer => Self::Int,
            column::Kind::Number => Self::Double,
            column::Kind::Boolean => Self::Bool,
            column::Kind::Json => Self::Json,
        }
    }
}

impl Column {
    pub(super) fn value(&self, row: &Row) -> Value {
        let of = |fields: Option<&Map<String, Value>>, name: &String| {
            fields.and_then(|fields| fields.get(name)).cloned().unwrap_or(Value::Null)
        };
        match &self.from {
            Origin::Row(value) => value(row),
            Origin::Metadata(name) => of(Some(&row.metadata), name),
            Origin::Extract(name) => of(row.extract.as_ref().and_then(Value::as_object), name),
        }
    }
}

/// As text: what is in a csv, and in a text column of anything.
pub(super) fn text_of(value: &Value, kind: Kind) -> Option<String> {
    match (value, kind) {
        (Value::Null, _) => None,
        (value, Kind::Moment) => Some(moment(value)),
        (Value::String(text), Kind::Text) => Some(text.clone()),
        // One column, one kind of content.
        (value, _) => Some(value.to_string()),
    }
}

/// A moment as RFC 3339 has it, UTC, to the ms.
pub(super) fn moment(value: &Value) -> String {
    let ms = i128::from(value.as_u64().unwrap_or_default());
    let at = OffsetDateTime::from_unix_timestamp_nanos(ms * 1_000_000).ok();
    at.and_then(|at| at.format(&Rfc3339).ok()).unwrap_or_default()
}
