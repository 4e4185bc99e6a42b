//! `voxrelay usage`: what was used, and what it cost, summed up from the ledger. A relay may write to it meanwhile.
use std::{io, path::PathBuf, process::ExitCode};

use clap::Args;
use serde_json::Value;

use super::{
    Usage,
    columns::{aligned, csv_line, printable},
    serve, tell,
};
use crate::{
    admit::price::Usd,
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
    #[arg(long, value_name = "TIME", value_parser = Moment::day_or_moment)]
    since: Option<Moment>,
    /// Until before then
    #[arg(long, value_name = "TIME", value_parser = Moment::day_or_moment)]
    until: Option<Moment>,
    /// Only this tenant
    #[arg(long, value_name = "ID")]
    tenant: Option<String>,
    /// What is summed up; days are UTC
    #[arg(long, value_name = "WHAT", value_enum, default_value_t = By::Tenant)]
    by: By,
    /// The table shows what it cost, and what for, in place of tokens
    #[arg(long, conflicts_with_all = ["csv", "json"])]
    cost: bool,
    /// For spreadsheets
    #[arg(long, conflicts_with = "json")]
    csv: bool,
    /// For programs
    #[arg(long)]
    json: bool,
}

/// Does it.
///
/// # Errors
/// When there is no ledger, or it cannot be read.
pub fn run(args: UsageArgs) -> anyhow::Result<ExitCode> {
    let config = serve::load(args.config.as_deref())?;
    let file = ledger_file(args.ledger.clone(), config.ledger.file)?;
    let (since, until) = time(args.since, args.until)?;
    let ask = Ask { since, until, tenant: args.tenant.clone(), by: args.by, most: None, patience: None };
    let report = report(&file, &ask).map_err(unreadable)?;
    let lines = match (&args, &report.total) {
        (UsageArgs { json: true, .. }, _) => {
            let all: Vec<Value> = report.sums.iter().map(|sum| Value::Object(sum.record(ask.by))).collect();
            vec![serde_json::to_string_pretty(&all)?]
        }
        (UsageArgs { csv: true, .. }, _) => csv(ask.by, &report.sums),
        (UsageArgs { cost: true, .. }, Some(total)) => table(ask.by, &COSTS, &report.sums, total),
        (_, Some(total)) => table(ask.by, &TOKENS, &report.sums, total),
        (_, None) => {
            tell(io::stderr(), &format!("nothing was used then, as far as {} says", file.display()));
            Vec::new()
        }
    };
    lines.iter().for_each(|line| tell(io::stdout(), line));
    Ok(ExitCode::SUCCESS)
}

/// The ledger to read.
pub(super) fn ledger_file(named: Option<PathBuf>, configured: Option<PathBuf>) -> Result<PathBuf, Usage> {
    let file = named.or(configured).unwrap_or_else(serve::ledger_file);
    if file.as_os_str().is_empty() {
        return Err(Usage("ledger.file is empty: usage is written nowhere; --ledger names a file".to_owned()));
    }
    Ok(file)
}

/// From when until when, Unix ms.
pub(super) fn time(since: Option<Moment>, until: Option<Moment>) -> Result<(Option<u64>, Option<u64>), Usage> {
    if since.zip(until).is_some_and(|(since, until)| since >= until) {
        return Err(Usage("--until must be later than --since".to_owned()));
    }
    let ms = |at: Moment| at.0.saturating_mul(1_000);
    Ok((since.map(ms), until.map(ms)))
}

/// Why a ledger cannot be read, for whoever typed its name.
pub(super) fn unreadable(error: LedgerError) -> anyhow::Error {
    match error {
        LedgerError::Absent { .. } => {
            Usage(format!("{error}: `voxrelay serve` makes it; --ledger names another one")).into()
        }
        LedgerError::Other { .. } => Usage(error.to_string()).into(),
        error => error.into(),
    }
}

/// As RFC 4180 says, the names of the columns first.
fn csv(by: By, sums: &[Sum]) -> Vec<String> {
    let none = Sum { names: vec![String::new(); by.names().len()], ..Sum::default() };
    let head = none.record(by).keys().cloned().collect::<Vec<_>>().join(",");
    let lines = sums.iter().map(|sum| csv_line(sum.record(by).into_iter().map(|(_, value)| value)));
    std::iter::once(head).chain(lines).collect()
}

/// A column of numbers, and how to read them.
type Column = (&'static str, fn(&Sum) -> String);

const TOKENS: [Column; 18] = [
    ("calls", |sum| sum.calls.to_string()),
    ("replies", |sum| sum.replies.to_string()),
    ("text in", |sum| sum.input_text_tokens.to_string()),
    ("audio in", |sum| sum.input_audio_tokens.to_string()),
    ("images in", |sum| some(sum.input_image_tokens, "")),
    ("cached", |sum| sum.cached_tokens.to_string()),
    ("cached %", |sum| sum.cached_percent.clone().unwrap_or_default()),
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
    ("phone min", |sum| if sum.call_seconds > 0.0 { format!("{:.1}", sum.call_seconds / 60.0) } else { String::new() }),
    ("ended by", |sum| sum.ended_by.clone().unwrap_or_default()),
    ("USD", all_of_it),
];

const COSTS: [Column; 10] = [
    ("calls", |sum| sum.calls.to_string()),
    ("replies", |sum| sum.replies.to_string()),
    ("cached %", |sum| sum.cached_percent.clone().unwrap_or_default()),
    ("text USD", |sum| dollars(sum.cost_text_usd)),
    ("audio USD", |sum| dollars(sum.cost_audio_usd)),
    (
        "images USD",
        |sum| if sum.cost_image_usd == Usd::default() { String::new() } else { dollars(sum.cost_image_usd) },
    ),
    ("cached USD", |sum| dollars(sum.cost_cached_usd)),
    ("USD", all_of_it),
    ("for transcripts", |sum| if sum.transcriptions > 0 { dollars(sum.cost_transcription_usd) } else { String::new() }),
    ("no price", |sum| some(sum.unpriced, "")),
];

fn dollars(usd: Usd) -> String {
    usd.rounded(4)
}

/// Nothing where nothing of it has a price.
fn all_of_it(sum: &Sum) -> String {
    match (sum.unpriced, dollars(sum.cost_usd)) {
        (0, usd) => usd,
        (_, _) if sum.cost_usd == Usd::default() => "?".to_owned(),
        (_, usd) => format!("≥{usd}"),
    }
}

fn some(count: u64, mark: &str) -> String {
    if count == 0 { String::new() } else { format!("{mark}{count}") }
}

fn minutes(ms: u64) -> String {
    format!("{}.{}", ms / 60_000, ms % 60_000 / 6_000)
}

/// Lines for people. A column in which nothing stands is left out.
fn table(by: By, columns: &[Column], sums: &[Sum], total: &Sum) -> Vec<String> {
    let head = by.names().iter().copied().chain(columns.iter().map(|(name, _)| *name)).map(str::to_owned).collect();
    let numbers = |sum: &Sum| columns.iter().map(|(_, cell)| cell(sum)).collect::<Vec<_>>();
    let line = |sum: &Sum| sum.names.iter().map(|name| printable(name)).chain(numbers(sum)).collect();
    let mut rows: Vec<Vec<String>> = std::iter::once(head).chain(sums.iter().map(line)).collect();
    if sums.len() > 1 {
        let names = std::iter::once("total".to_owned()).chain(by.names().iter().skip(1).map(|_| String::new()));
        rows.push(names.chain(numbers(total)).collect());
    }
    let mut lines = aligned(&rows, by.names().len());
    let mut notes = Vec::new();
    if total.estimated > 0 && rows.first().is_some_and(|head| head.iter().any(|name| name == "estimates")) {
        notes.push(
            "~ so many replies and transcripts whose count the service did not tell: their numbers are estimates"
                .to_owned(),
        );
    }
    if total.unpriced > 0 {
        notes.push(format!(
            "? ≥ the cost of {} of {} replies and transcripts is not known: their models had no price, or they are older than prices",
            total.unpriced,
            total.replies + total.transcriptions
        ));
    }
    if !notes.is_empty() {
        lines.push(String::new());
    }
    lines.extend(notes);
    lines
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
tenant  user  calls  replies  text in  audio in  cached  text out  audio out  audio min  heard min  estimates     USD
acme    ann       1        2        0         0       0         0          0        2.2        0.1             0.0000
a        [2J      1        1        0         0       0         0          0        1.1        0.1         ~1  0.0000
total             1        3        0         0       0         0          0        3.3        0.1         ~1  0.0000

~ so many replies and transcripts whose count the service did not tell: their numbers are estimates";
        assert_eq!(table(By::User, &TOKENS, &sums, &total).join("\n"), want);
        let one = [Sum { transcriptions: 3, transcription_seconds: 2.25, ..sum(&[""], 0) }];
        let want = "\
agent  calls  replies  text in  audio in  cached  text out  audio out  audio min  heard min  transcripts  their s     USD
-          1        0        0         0       0         0          0        0.0        0.1            3      2.2  0.0000";
        assert_eq!(table(By::Agent, &TOKENS, &one, &one[0]).join("\n"), want, "one is its own total");
    }

    #[test]
    fn what_has_no_price_is_marked_wherever_it_counts() {
        let usd = Usd::from_pico;
        let example = Sum {
            cached_percent: Some("48.4".to_owned()),
            cost_usd: usd(7_205_600_000),
            cost_text_usd: usd(940_000_000),
            cost_audio_usd: usd(6_240_000_000),
            cost_cached_usd: usd(25_600_000),
            ..sum(&["default/a"], 1)
        };
        let unknown = Sum { unpriced: 2, ..sum(&["default/b"], 2) };
        let both = Sum { unpriced: 2, ..Sum { names: Vec::new(), replies: 3, ..example.clone() } };
        let partly = Sum { names: vec!["default/c".to_owned()], unpriced: 1, ..example.clone() };
        let want = "\
route      calls  replies  cached %  text USD  audio USD  cached USD      USD  no price
default/a      1        1      48.4    0.0009     0.0062      0.0000   0.0072
default/b      1        2              0.0000     0.0000      0.0000        ?         2
default/c      1        1      48.4    0.0009     0.0062      0.0000  ≥0.0072         1
total          1        3      48.4    0.0009     0.0062      0.0000  ≥0.0072         2

? ≥ the cost of 2 of 3 replies and transcripts is not known: their models had no price, or they are older than prices";
        assert_eq!(table(By::Route, &COSTS, &[example.clone(), unknown, partly], &both).join("\n"), want);
        let line = table(By::Route, &TOKENS, std::slice::from_ref(&example), &example).pop().unwrap();
        assert!(line.ends_with("  0.0072"), "{line}");
        // For programs: every digit.
        let record = example.record(By::Route);
        assert_eq!((record["cost_usd"].as_str(), record["cached_percent"].as_str()), (Some("0.0072056"), Some("48.4")));
        let [head, line] = &csv(By::Route, &[example])[..] else { panic!() };
        let cells: Vec<(&str, &str)> = head.split(',').zip(line.split(',')).collect();
        assert!(
            cells.contains(&("cost_usd", "0.0072056")) && cells.contains(&("cost_cached_usd", "0.0000256")),
            "{cells:?}"
        );
        assert!(cells.contains(&("unpriced", "0")), "{cells:?}");
    }

    #[test]
    fn spreadsheets_and_programs_get_the_same_columns() {
        let sums = [sum(&["acme", "a \"b\", c"], 2)];
        let lines = csv(By::Key, &sums);
        assert!(lines[0].starts_with("tenant,key,calls,replies,estimated,"), "{}", lines[0]);
        assert!(lines[1].starts_with("acme,\"a \"\"b\"\", c\",1,2,0,"), "{}", lines[1]);
        assert_eq!(lines[0].split(',').count() + 1, lines[1].split(',').count(), "one comma is quoted");
        assert_eq!(csv(By::Key, &[]), lines[..1]);
        let record = sums[0].record(By::Key);
        assert_eq!((record["tenant"].as_str(), record["total_tokens"].as_u64()), (Some("acme"), Some(200)));
        assert_eq!(record.keys().cloned().collect::<Vec<_>>().join(","), lines[0]);
    }

    #[test]
    fn a_day_is_a_moment_too() {
        assert_eq!(Moment::day_or_moment("2027-01-31"), Ok(Moment(1_801_353_600)));
        assert_eq!(Moment::day_or_moment("2027-01-31T12:00:00Z"), Ok(Moment(1_801_396_800)));
        for wrong in ["yesterday", "2027-13-01", "2027-01-31 12:00", ""] {
            assert!(Moment::day_or_moment(wrong).unwrap_err().contains("2027-01-31"), "{wrong}");
        }
    }
}
