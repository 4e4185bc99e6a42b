//! `voxrelay route`: what tiers of routes do. `simulate` replays the ledger through those of another configuration.
mod simulate;

use std::{
    io,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, Subcommand};
use serde_json::{Map, Value};

use self::simulate::{Plan, Report, Row};
use super::{
    Usage,
    columns::{aligned, csv_line, printable},
    serve, tell, usage,
};
use crate::{
    admit::price::{PriceList, Usd},
    config::{Config, Moment},
    ledger::replay::replies,
};

/// Arguments of `route`.
#[derive(Debug, Args)]
pub struct RouteArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Say what the replies of the ledger would have cost, and how soon they would have been heard, on the tiers of another
    /// configuration; nothing is dialled, nothing is changed
    Simulate(SimulateArgs),
}

#[derive(Debug, Args)]
struct SimulateArgs {
    /// The configuration with the tiers to try (TOML)
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The ledger [default: ledger.file of that configuration, or ledger.db in the user's data folder]
    #[arg(long, value_name = "FILE")]
    ledger: Option<PathBuf>,
    /// From then on, such as 2027-01-31 or 2027-01-31T12:00:00Z
    #[arg(long, value_name = "TIME", value_parser = Moment::day_or_moment)]
    since: Option<Moment>,
    /// Until before then
    #[arg(long, value_name = "TIME", value_parser = Moment::day_or_moment)]
    until: Option<Moment>,
    /// Take every reply as if this tier had been asked for [default: the tier of its agent, or one that has its model]
    #[arg(long, value_name = "NAME")]
    tier: Option<String>,
    /// Chance is thrown with this
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
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
/// When the configuration or the ledger cannot be used.
pub fn run(args: RouteArgs) -> anyhow::Result<ExitCode> {
    let Command::Simulate(args) = args.command;
    let config = serve::load(Some(&args.config))?;
    let prices = PriceList::load(config.prices.file.as_deref()).map_err(|error| Usage(error.to_string()))?;
    tiers(&config, &args.config, args.tier.as_deref())?;
    let file = usage::ledger_file(args.ledger, config.ledger.file.clone())?;
    let times = usage::time(args.since, args.until)?;
    let mut plan = Plan::new(&config, &prices, args.tier.as_deref());
    replies(&file, times, |reply| plan.learn(&reply)).map_err(usage::unreadable)?;
    let mut replay = plan.replay(args.seed);
    replies(&file, times, |reply| replay.reply(&reply)).map_err(usage::unreadable)?;
    let report = replay.report();
    let lines = match (args.json, args.csv) {
        (true, _) => {
            let all: Vec<Value> = report.rows.iter().map(|row| Value::Object(record(row))).collect();
            vec![serde_json::to_string_pretty(&all)?]
        }
        (_, true) => csv(&report),
        _ if report.rows.is_empty() => {
            tell(io::stderr(), &format!("no reply was given then, as far as {} says", file.display()));
            Vec::new()
        }
        _ => table(&report),
    };
    lines.iter().for_each(|line| tell(io::stdout(), line));
    Ok(ExitCode::SUCCESS)
}

/// Whether there is something to try.
fn tiers(config: &Config, file: &Path, named: Option<&str>) -> Result<(), Usage> {
    if config.tiers.is_empty() {
        let file = file.display();
        return Err(Usage(format!("{file} has no tiers, so that every call goes where it went; wanted: [tiers.NAME]")));
    }
    match named.filter(|name| !config.tiers.contains_key(*name)) {
        None => Ok(()),
        Some(name) => {
            let known = config.tiers.keys().cloned().collect::<Vec<_>>().join(", ");
            Err(Usage(format!("--tier: found `{name}`; allowed: a tier of {}: {known}", file.display())))
        }
    }
}

/// For programs: the fields in order. Amounts are text with all their digits.
fn record(row: &Row) -> Map<String, Value> {
    let usd = |usd: Usd| Value::String(usd.to_string());
    [
        ("tier", row.tier.as_deref().into()),
        ("route", row.route.as_str().into()),
        ("calls", row.calls.into()),
        ("replies", row.replies.into()),
        ("total_tokens", row.tokens.into()),
        ("cost_now_usd", usd(row.now.usd)),
        ("unpriced_now", row.now.unpriced.into()),
        ("cost_then_usd", usd(row.then.usd)),
        ("unpriced_then", row.then.unpriced.into()),
        ("first_audio_p95_now_ms", row.now.first_audio_ms.into()),
        ("first_audio_p95_then_ms", row.then.first_audio_ms.into()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into_iter()
    .collect()
}

fn csv(report: &Report) -> Vec<String> {
    let head = record(&Row::default()).keys().cloned().collect::<Vec<_>>().join(",");
    let lines = report.rows.iter().map(|row| csv_line(record(row).into_iter().map(|(_, value)| value)));
    std::iter::once(head).chain(lines).collect()
}

/// Lines for people.
fn table(report: &Report) -> Vec<String> {
    const HEAD: [&str; 9] =
        ["tier", "route", "calls", "replies", "tokens", "USD now", "USD then", "heard now, ms", "then, ms"];
    let usd = |side: &simulate::Side| match (side.unpriced, side.usd.rounded(4)) {
        (0, usd) => usd,
        (_, _) if side.usd == Usd::default() => "?".to_owned(),
        (_, usd) => format!("≥{usd}"),
    };
    let heard = |side: &simulate::Side| side.first_audio_ms.map(|ms| ms.to_string()).unwrap_or_default();
    let line = |row: &Row, names: [String; 2]| {
        let numbers = [row.calls.to_string(), row.replies.to_string(), row.tokens.to_string()];
        let costs = [usd(&row.now), usd(&row.then), heard(&row.now), heard(&row.then)];
        names.into_iter().chain(numbers).chain(costs).collect::<Vec<_>>()
    };
    let names = |row: &Row| [printable(row.tier.as_deref().unwrap_or_default()), printable(&row.route)];
    let mut rows = vec![HEAD.map(str::to_owned).to_vec()];
    rows.extend(report.rows.iter().map(|row| line(row, names(row))));
    if report.rows.len() > 1 {
        rows.push(line(&report.total, ["total".to_owned(), String::new()]));
    }
    let mut lines = aligned(&rows, 2);
    let mut notes = Vec::new();
    let Report { rows, total } = report;
    if rows.iter().any(|row| row.tier.is_none()) {
        notes.push("- no tier has the model of these replies: they stay where they were".to_owned());
    }
    let (now, then) = (total.now.unpriced, total.then.unpriced);
    if now + then > 0 {
        notes.push(format!("? ≥ of {} replies, {now} have no known cost now, and {then} none then", total.replies));
    }
    if total.then.first_audio_ms.is_none() {
        notes.push(
            "how soon replies are heard is not known: the ledger has too few figures for these routes".to_owned(),
        );
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

    fn row(tier: Option<&str>, route: &str, then: Usd, unpriced: u64) -> Row {
        let now = simulate::Side { usd: Usd::from_pico(7_205_600_000), unpriced: 0, first_audio_ms: Some(820) };
        let then = simulate::Side { usd: then, unpriced, first_audio_ms: None };
        Row { tier: tier.map(str::to_owned), route: route.to_owned(), calls: 2, replies: 3, tokens: 400, now, then }
    }

    #[test]
    fn the_table_says_what_was_and_what_would_be_and_what_nobody_knows() {
        let rows = vec![
            row(None, "default/x\u{1b}", Usd::from_pico(7_205_600_000), 0),
            row(Some("fast"), "second/mini", Usd::from_pico(1_000_000_000), 0),
            row(Some("fast"), "second/odd", Usd::default(), 3),
        ];
        let total = Row { tier: None, ..row(None, "", Usd::from_pico(8_205_600_000), 3) };
        let want = "\
tier   route        calls  replies  tokens  USD now  USD then  heard now, ms
-      default/x        2        3     400   0.0072    0.0072            820
fast   second/mini      2        3     400   0.0072    0.0010            820
fast   second/odd       2        3     400   0.0072         ?            820
total                   2        3     400   0.0072   ≥0.0082            820

- no tier has the model of these replies: they stay where they were
? ≥ of 3 replies, 0 have no known cost now, and 3 none then
how soon replies are heard is not known: the ledger has too few figures for these routes";
        let report = Report { rows, total };
        assert_eq!(table(&report).join("\n"), want);
        let lines = csv(&report);
        assert_eq!(lines.len(), 4);
        assert!(lines[0].starts_with("tier,route,calls,replies,total_tokens,cost_now_usd,"), "{}", lines[0]);
        assert_eq!(lines[2], "fast,second/mini,2,3,400,0.0072056,0,0.001,0,820,");
    }
}
