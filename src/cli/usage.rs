//! `voxrelay usage`: what was used, summed up from the ledger. A relay may write to it meanwhile.
use std::{io, path::PathBuf, process::ExitCode};

use clap::Args;
use serde_json::{Map, Value};

use super::{Usage, serve, tell};
use crate::{
    config::Moment,
    ledger::{
        LedgerError,
        sums::{Ask, By, Sum, report},
    },
};

/// Arguments of `usage`.
#[derive(Debug, Args)]
pub struct UsageArgs {
    /// Configuration file (TOML); says where the ledger is
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The ledger [default: ledger.file of the configuration, or ledger.db in the user's data folder]
    #[arg(long, value_name = "FILE")]
    ledger: Option<PathBuf>,
    /// From then on, such as 2027-01-31 or 2027-01-31T12:00:00Z
    #[arg(long, value_name = "TIME", value_parser = moment)]
    since: Option<Moment>,
    /// Until before then
    #[arg(long, value_name = "TIME", value_parser = moment)]
    until: Option<Moment>,
    /// Only this tenant
    #[arg(long, value_name = "ID")]
    tenant: Option<String>,
    /// What is summed up; days are UTC
    #[arg(long, value_name = "WHAT", value_enum, default_value_t = By::Tenant)]
    by: By,
    /// For spreadsheets
    #[arg(long, conflicts_with = "json")]
    csv: bool,
    /// For programs
    #[arg(long)]
    json: bool,
}

/// A day begins at midnight, UTC.
fn moment(text: &str) -> Result<Moment, String> {
    let day = || format!("{text}T00:00:00Z").parse();
    let found = text.parse().or_else(|_: String| day());
    found.map_err(|_: String| "allowed: a day or a moment, such as 2027-01-31 or 2027-01-31T12:00:00Z".to_owned())
}

/// Does it.
///
/// # Errors
/// When there is no ledger, or it cannot be read.
pub fn run(args: UsageArgs) -> anyhow::Result<ExitCode> {
    let config = serve::load(args.config.as_deref())?;
    let file = args.ledger.clone().or(config.ledger.file).unwrap_or_else(serve::ledger_file);
    if file.as_os_str().is_empty() {
        return Err(Usage("ledger.file is empty: usage is written nowhere; --ledger names a file".to_owned()).into());
    }
    if args.since.zip(args.until).is_some_and(|(since, until)| since >= until) {
        return Err(Usage("--until must be later than --since".to_owned()).into());
    }
    let ms = |at: Moment| at.0.saturating_mul(1_000);
    let ask = Ask { since: args.since.map(ms), until: args.until.map(ms), tenant: args.tenant.clone(), by: args.by };
    let report = report(&file, &ask).map_err(|error| match error {
        LedgerError::Absent { .. } => {
            anyhow::Error::new(Usage(format!("{error}: `voxrelay serve` makes it; --ledger names another one")))
        }
        LedgerError::Other { .. } => Usage(error.to_string()).into(),
        error => error.into(),
    })?;
    let lines = match (&args, &report.total) {
        (UsageArgs { json: true, .. }, _) => {
            let all: Vec<Value> = report.sums.iter().map(|sum| Value::Object(record(ask.by, sum))).collect();
            vec![serde_json::to_string_pretty(&all)?]
        }
        (UsageArgs { csv: true, .. }, _) => csv(ask.by, &report.sums),
        (_, Some(total)) => table(ask.by, &report.sums, total),
        (_, None) => {
            tell(io::stderr(), &format!("nothing was used then, as far as {} says", file.display()));
            Vec::new()
        }
    };
    lines.iter().for_each(|line| tell(io::stdout(), line));
    Ok(ExitCode::SUCCESS)
}

/// A sum with its names, for programs.
fn record(by: By, sum: &Sum) -> Map<String, Value> {
    let names = by.names().iter().zip(&sum.names).map(|(name, value)| ((*name).to_owned(), value.as_str().into()));
    let mut record: Map<String, Value> = names.collect();
    if let Ok(Value::Object(numbers)) = serde_json::to_value(sum) {
        record.extend(numbers);
    }
    record
}

/// As RFC 4180 says, the names of the columns first.
fn csv(by: By, sums: &[Sum]) -> Vec<String> {
    let none = Sum { names: vec![String::new(); by.names().len()], ..Sum::default() };
    let head = record(by, &none).keys().cloned().collect::<Vec<_>>().join(",");
    let cell = |value: Value| match value {
        Value::String(text) if text.contains(['"', ',', '\n', '\r']) => format!("\"{}\"", text.replace('"', "\"\"")),
        Value::String(text) => text,
        other => other.to_string(),
    };
    let lines = sums.iter().map(|sum| {
        let cells = record(by, sum).into_iter().map(|(_, value)| cell(value));
        cells.collect::<Vec<_>>().join(",")
    });
    std::iter::once(head).chain(lines).collect()
}

/// A column of numbers, and how to read them.
type Column = (&'static str, fn(&Sum) -> String);

const COLUMNS: [Column; 13] = [
    ("calls", |sum| sum.calls.to_string()),
    ("replies", |sum| sum.replies.to_string()),
    ("text in", |sum| sum.input_text_tokens.to_string()),
    ("audio in", |sum| sum.input_audio_tokens.to_string()),
    ("cached", |sum| sum.cached_tokens.to_string()),
    ("text out", |sum| sum.output_text_tokens.to_string()),
    ("audio out", |sum| sum.output_audio_tokens.to_string()),
    ("audio min", |sum| minutes(sum.audio_ms)),
    ("heard min", |sum| minutes(sum.heard_ms)),
    ("transcripts", |sum| some(sum.transcriptions, "")),
    ("their tokens", |sum| some(sum.transcription_tokens, "")),
    ("their s", |sum| {
        if sum.transcription_seconds > 0.0 { format!("{:.1}", sum.transcription_seconds) } else { String::new() }
    }),
    ("estimates", |sum| some(sum.estimated, "~")),
];

fn some(count: u64, mark: &str) -> String {
    if count == 0 { String::new() } else { format!("{mark}{count}") }
}

fn minutes(ms: u64) -> String {
    format!("{}.{}", ms / 60_000, ms % 60_000 / 6_000)
}

/// Lines for people. A column in which nothing stands is left out.
fn table(by: By, sums: &[Sum], total: &Sum) -> Vec<String> {
    let head = by.names().iter().copied().chain(COLUMNS.iter().map(|(name, _)| *name)).map(str::to_owned).collect();
    let numbers = |sum: &Sum| COLUMNS.map(|(_, cell)| cell(sum));
    let line = |sum: &Sum| sum.names.iter().map(|name| printable(name)).chain(numbers(sum)).collect();
    let mut rows: Vec<Vec<String>> = std::iter::once(head).chain(sums.iter().map(line)).collect();
    if sums.len() > 1 {
        let names = std::iter::once("total".to_owned()).chain(by.names().iter().skip(1).map(|_| String::new()));
        rows.push(names.chain(numbers(total)).collect());
    }
    let mut lines = vec![String::new(); rows.len()];
    for at in 0..by.names().len() + COLUMNS.len() {
        let cells = || rows.iter().filter_map(|row| row.get(at));
        if cells().skip(1).all(String::is_empty) {
            continue;
        }
        let width = cells().map(|cell| cell.chars().count()).max().unwrap_or_default();
        for (line, cell) in lines.iter_mut().zip(cells()) {
            *line += &if at < by.names().len() { format!("{cell:<width$}  ") } else { format!("{cell:>width$}  ") };
        }
    }
    lines.iter_mut().for_each(|line| line.truncate(line.trim_end().len()));
    if total.estimated > 0 {
        let note =
            "~ so many replies and transcripts whose count the service did not tell: their numbers are estimates";
        lines.extend([String::new(), note.to_owned()]);
    }
    lines
}

/// Names that tenants choose must not move the cursor; what has none is a dash.
fn printable(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(names: &[&str], replies: u64) -> Sum {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        let total_tokens = replies * 100;
        Sum { names, calls: 1, replies, total_tokens, audio_ms: replies * 66_000, heard_ms: 6_000, ..Sum::default() }
    }

    #[test]
    fn the_table_shows_what_there_is_and_marks_estimates() {
        let sums = [sum(&["acme", "ann"], 2), Sum { estimated: 1, ..sum(&["a", "\u{1b}[2J"], 1) }];
        let total = Sum { estimated: 1, ..sum(&[], 3) };
        let want = "\
tenant  user  calls  replies  text in  audio in  cached  text out  audio out  audio min  heard min  estimates
acme    ann       1        2        0         0       0         0          0        2.2        0.1
a        [2J      1        1        0         0       0         0          0        1.1        0.1         ~1
total             1        3        0         0       0         0          0        3.3        0.1         ~1

~ so many replies and transcripts whose count the service did not tell: their numbers are estimates";
        assert_eq!(table(By::User, &sums, &total).join("\n"), want);
        let one = [Sum { transcriptions: 3, transcription_seconds: 2.25, ..sum(&[""], 0) }];
        let want = "\
agent  calls  replies  text in  audio in  cached  text out  audio out  audio min  heard min  transcripts  their s
-          1        0        0         0       0         0          0        0.0        0.1            3      2.2";
        assert_eq!(table(By::Agent, &one, &one[0]).join("\n"), want, "one is its own total");
    }

    #[test]
    fn spreadsheets_and_programs_get_the_same_columns() {
        let sums = [sum(&["acme", "a \"b\", c"], 2)];
        let lines = csv(By::Key, &sums);
        assert!(lines[0].starts_with("tenant,key,calls,replies,estimated,"), "{}", lines[0]);
        assert!(lines[1].starts_with("acme,\"a \"\"b\"\", c\",1,2,0,"), "{}", lines[1]);
        assert_eq!(lines[0].split(',').count() + 1, lines[1].split(',').count(), "one comma is quoted");
        assert_eq!(csv(By::Key, &[]), lines[..1]);
        let record = record(By::Key, &sums[0]);
        assert_eq!((record["tenant"].as_str(), record["total_tokens"].as_u64()), (Some("acme"), Some(200)));
        assert_eq!(record.keys().cloned().collect::<Vec<_>>().join(","), lines[0]);
    }

    #[test]
    fn a_day_is_a_moment_too() {
        assert_eq!(moment("2027-01-31"), Ok(Moment(1_801_353_600)));
        assert_eq!(moment("2027-01-31T12:00:00Z"), Ok(Moment(1_801_396_800)));
        for wrong in ["yesterday", "2027-13-01", "2027-01-31 12:00", ""] {
            assert!(moment(wrong).unwrap_err().contains("2027-01-31"), "{wrong}");
        }
    }
}
