//! Sums over a ledger, for people and programs who ask what was used.
use std::path::Path;

use rusqlite::{Connection, Row, params, types::FromSql};
use serde::Serialize;
use serde_json::{Map, Value};
use tokio::time::Instant;

use super::file::{self, LedgerError};
use crate::admit::price::Usd;

/// SQLite looks so often whether anybody still waits, in steps of its machine.
const LOOK: i32 = 10_000;

/// What is summed up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum By {
    /// Who pays.
    Tenant,
    /// Their keys, by label.
    Key,
    /// Their end users.
    User,
    /// Agents.
    Agent,
    /// Models.
    Model,
    /// Accounts and models.
    Route,
    /// Calls.
    Call,
    /// Days, UTC.
    Day,
}

impl By {
    /// Names of the columns that tell sums apart.
    pub fn names(self) -> &'static [&'static str] {
        match self {
            Self::Tenant => &["tenant"],
            // Two tenants may have keys, or users, of the same name.
            Self::Key => &["tenant", "key"],
            Self::User => &["tenant", "user"],
            Self::Agent => &["agent"],
            Self::Model => &["model"],
            Self::Route => &["route"],
            Self::Call => &["tenant", "call"],
            Self::Day => &["day"],
        }
    }

    fn sql(self) -> &'static str {
        match self {
            Self::Tenant => "tenant",
            Self::Key => "tenant, ifnull(key, '')",
            Self::User => "tenant, ifnull(user, '')",
            Self::Agent => "agent",
            Self::Model => "model",
            Self::Route => "route",
            Self::Call => "tenant, call",
            Self::Day => "date(at / 1000, 'unixepoch')",
        }
    }
}

/// Which rows.
#[derive(Debug, Clone)]
pub struct Ask {
    /// From then on, Unix ms.
    pub since: Option<u64>,
    /// Until before then, Unix ms.
    pub until: Option<u64>,
    /// Only this tenant's.
    pub tenant: Option<String>,
    /// What is summed up.
    pub by: By,
    /// So many sums at most.
    pub most: Option<usize>,
    /// When whoever asks has waited enough.
    pub patience: Option<Instant>,
}

/// What was used. Tokens are those of replies, unless they say otherwise.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Sum {
    /// As [`By::names`] says.
    #[serde(skip)]
    pub names: Vec<String>,
    /// Calls that have used something.
    pub calls: u64,
    /// Replies.
    pub replies: u64,
    /// Rows, of replies and of transcriptions, whose numbers are estimates.
    pub estimated: u64,
    /// Everything that the model read and heard.
    pub input_tokens: u64,
    /// Text that the model read; what was cached is part of it.
    pub input_text_tokens: u64,
    /// Audio that the model heard; what was cached is part of it.
    pub input_audio_tokens: u64,
    /// Images that it saw; what was cached is part of it.
    pub input_image_tokens: u64,
    /// Of the input: found in the service's cache.
    pub cached_tokens: u64,
    /// How much of the input that is, percent with one digit after the point; none: there was no input.
    pub cached_percent: Option<String>,
    /// Text that the model wrote.
    pub output_text_tokens: u64,
    /// Audio that it spoke.
    pub output_audio_tokens: u64,
    /// Everything, as the service counted it.
    pub total_tokens: u64,
    /// Audio of the replies, ms.
    pub audio_ms: u64,
    /// Of it really heard, ms.
    pub heard_ms: u64,
    /// Times that a caller's words were written down.
    pub transcriptions: u64,
    /// Tokens for that.
    pub transcription_tokens: u64,
    /// Seconds for that, where those are billed.
    pub transcription_seconds: f64,
    /// How long calls by telephone were, seconds.
    pub call_seconds: f64,
    /// Who ended a call by telephone (`caller`, `agent`, `tenant`, `service`, `relay`, `lost`), and why; only by call.
    pub ended_by: Option<String>,
    /// See `ended_by`.
    pub ended_why: Option<String>,
    /// What all this costs, transcriptions too, as far as it is known.
    pub cost_usd: Usd,
    /// Of it: text, read and written.
    pub cost_text_usd: Usd,
    /// Of it: audio, heard and spoken, and what is billed by time.
    pub cost_audio_usd: Usd,
    /// Of it: images.
    pub cost_image_usd: Usd,
    /// Of it: what the service had in its cache.
    pub cost_cached_usd: Usd,
    /// Of it, beside this: transcriptions.
    pub cost_transcription_usd: Usd,
    /// Rows whose cost is not known: with any of them the sums are at least so much.
    pub unpriced: u64,
}

/// Numbers of replies, summed up.
const OF_REPLIES: [&str; 10] = [
    "input_tokens",
    "input_text_tokens",
    "input_audio_tokens",
    "input_image_tokens",
    "cached_tokens",
    "output_text_tokens",
    "output_audio_tokens",
    "total_tokens",
    "audio_ms",
    "heard_ms",
];
/// Costs, summed up: each as whole millionths of a dollar, and the pico-dollars beside them, so that no sum is more than a
/// number can hold.
const COSTS: [&str; 5] = ["cost", "cost_text", "cost_audio", "cost_image", "cost_cached"];
const SPLIT: i64 = 1_000_000;

/// Reads the columns of a row, one after the other.
struct Columns<'a, 'r> {
    row: &'a Row<'r>,
    at: usize,
}

impl Columns<'_, '_> {
    fn next<T: FromSql>(&mut self) -> rusqlite::Result<T> {
        self.at += 1;
        self.row.get(self.at - 1)
    }

    fn count(&mut self) -> rusqlite::Result<u64> {
        self.next::<i64>().map(|n| u64::try_from(n).unwrap_or_default())
    }

    fn usd(&mut self) -> rusqlite::Result<Usd> {
        let (millionths, pico) = (self.next::<i64>()?, self.next::<i64>()?);
        Ok(Usd::from_pico(i128::from(millionths) * i128::from(SPLIT) + i128::from(pico)))
    }
}

impl Sum {
    /// In the order in which [`read`] asks.
    fn read(row: &Row<'_>, names: usize) -> rusqlite::Result<Self> {
        let mut next = Columns { row, at: 0 };
        let mut sum = Self {
            names: (0..names).map(|_| next.next()).collect::<Result<_, _>>()?,
            calls: next.count()?,
            replies: next.count()?,
            estimated: next.count()?,
            input_tokens: next.count()?,
            input_text_tokens: next.count()?,
            input_audio_tokens: next.count()?,
            input_image_tokens: next.count()?,
            cached_tokens: next.count()?,
            cached_percent: None,
            output_text_tokens: next.count()?,
            output_audio_tokens: next.count()?,
            total_tokens: next.count()?,
            audio_ms: next.count()?,
            heard_ms: next.count()?,
            transcriptions: next.count()?,
            transcription_tokens: next.count()?,
            transcription_seconds: next.next()?,
            call_seconds: next.next()?,
            ended_by: next.next()?,
            ended_why: next.next()?,
            cost_usd: next.usd()?,
            cost_text_usd: next.usd()?,
            cost_audio_usd: next.usd()?,
            cost_image_usd: next.usd()?,
            cost_cached_usd: next.usd()?,
            cost_transcription_usd: next.usd()?,
            unpriced: next.count()?,
        };
        sum.cached_percent = percent(sum.cached_tokens, sum.input_tokens);
        Ok(sum)
    }
}

impl Sum {
    /// With its names, for programs: the fields in order.
    pub fn record(&self, by: By) -> Map<String, Value> {
        let names = by.names().iter().zip(&self.names).map(|(name, value)| ((*name).to_owned(), value.as_str().into()));
        let mut record: Map<String, Value> = names.collect();
        if let Ok(Value::Object(numbers)) = serde_json::to_value(self) {
            record.extend(numbers);
        }
        record
    }
}

/// A share, rounded down: 100.0 is all of it. `None`: of nothing.
fn percent(part: u64, whole: u64) -> Option<String> {
    let thousandths = (u128::from(part) * 1_000).checked_div(u128::from(whole))?;
    Some(format!("{}.{}", thousandths / 10, thousandths % 10))
}

/// Sums, and all of them together.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// The names in order.
    pub sums: Vec<Sum>,
    /// Of all rows; `None`: there are none. A call that stands in several sums counts once here. It has no names.
    pub total: Option<Sum>,
}

/// Sums it up. Reads the file: nothing for a task that must not wait.
///
/// # Errors
/// When there is no ledger in this file, it cannot be read, or that takes longer than anybody waits.
pub fn report(file: &Path, ask: &Ask) -> Result<Report, LedgerError> {
    let read = |sql: &mut Connection| {
        // One moment for both, while a relay may write.
        let sql = sql.transaction()?;
        let sums = read(&sql, ask, ask.by.sql(), ask.by.names().len())?;
        Ok(Report { sums, total: read(&sql, ask, "'total'", 0)?.pop() })
    };
    let mut sql = file::open_to_read(file)?;
    if let Some(end) = ask.patience {
        sql.progress_handler(LOOK, Some(move || Instant::now() >= end))
            .map_err(|source| LedgerError::Sql { file: file.to_owned(), source })?;
    }
    read(&mut sql).map_err(|source| LedgerError::Sql { file: file.to_owned(), source })
}

fn read(sql: &Connection, ask: &Ask, group: &str, names: usize) -> rusqlite::Result<Vec<Sum>> {
    let of_replies = OF_REPLIES.map(|column| format!("ifnull(sum({column}) FILTER (WHERE kind = 'reply'), 0)"));
    let cost = |column: &str, rows: &str| {
        format!("ifnull(sum({column} / {SPLIT}){rows}, 0), ifnull(sum({column} % {SPLIT}){rows}, 0)")
    };
    let costs = COSTS.map(|column| cost(column, ""));
    // Of several calls, there is no one who ended them.
    let ended = match ask.by {
        By::Call if names > 0 => {
            ["status", "reason"].map(|column| format!("max({column}) FILTER (WHERE kind = 'call')"))
        }
        _ => ["NULL", "NULL"].map(str::to_owned),
    };
    let ended = ended.join(", ");
    let shown = if names > 0 { format!("{group}, ") } else { String::new() };
    let query = format!(
        "SELECT {shown} count(DISTINCT call), count(*) FILTER (WHERE kind = 'reply'), sum(estimated), {},
            count(*) FILTER (WHERE kind = 'transcription'),
            ifnull(sum(total_tokens) FILTER (WHERE kind = 'transcription'), 0),
            total(seconds) FILTER (WHERE kind = 'transcription'),
            total(seconds) FILTER (WHERE kind = 'call'), {ended},
            {}, {}, count(*) - count(cost)
        FROM usage WHERE at >= ?1 AND at < ?2 AND (?3 IS NULL OR tenant = ?3) GROUP BY {group} ORDER BY {group} LIMIT ?4",
        of_replies.join(", "),
        costs.join(", "),
        cost("cost", " FILTER (WHERE kind = 'transcription')"),
    );
    let moment = |at: Option<u64>, usual| at.map_or(usual, |at| i64::try_from(at).unwrap_or(i64::MAX));
    let most = ask.most.and_then(|most| i64::try_from(most).ok()).unwrap_or(-1);
    let asked = params![moment(ask.since, 0), moment(ask.until, i64::MAX), ask.tenant, most];
    sql.prepare(&query)?.query_map(asked, |row| Sum::read(row, names))?.collect()
}

#[cfg(test)]
mod tests {
    use super::percent;

    #[test]
    fn a_share_is_rounded_down() {
        for (part, whole, want) in [
            (64, 132, Some("48.4")),
            (0, 5, Some("0.0")),
            (5, 5, Some("100.0")),
            (999_999, 1_000_000, Some("99.9")),
            (0, 0, None),
            (u64::MAX, u64::MAX, Some("100.0")),
        ] {
            assert_eq!(percent(part, whole).as_deref(), want);
        }
    }
}
