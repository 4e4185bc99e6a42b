//! Sums over a ledger, for people and programs who ask what was used.
use std::path::Path;

use rusqlite::{Connection, Row, params};
use serde::Serialize;

use super::file::{self, LedgerError};

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
    /// Text that the model read; what was cached is part of it.
    pub input_text_tokens: u64,
    /// Audio that the model heard; what was cached is part of it.
    pub input_audio_tokens: u64,
    /// Of the input: found in the service's cache.
    pub cached_tokens: u64,
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
}

impl Sum {
    fn read(row: &Row<'_>, names: usize) -> rusqlite::Result<Self> {
        let count = |at: usize| row.get::<_, i64>(names + at).map(|n| u64::try_from(n).unwrap_or_default());
        Ok(Self {
            names: (0..names).map(|at| row.get(at)).collect::<Result<_, _>>()?,
            calls: count(0)?,
            replies: count(1)?,
            estimated: count(2)?,
            input_text_tokens: count(3)?,
            input_audio_tokens: count(4)?,
            cached_tokens: count(5)?,
            output_text_tokens: count(6)?,
            output_audio_tokens: count(7)?,
            total_tokens: count(8)?,
            audio_ms: count(9)?,
            heard_ms: count(10)?,
            transcriptions: count(11)?,
            transcription_tokens: count(12)?,
            transcription_seconds: row.get(names + 13)?,
        })
    }
}

/// Sums, and all of them together.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// The names in order.
    pub sums: Vec<Sum>,
    /// Of all rows; `None`: there are none. A call that stands in several sums counts once here. It has no names.
    pub total: Option<Sum>,
}

/// Sums it up.
///
/// # Errors
/// When there is no ledger in this file, or it cannot be read.
pub fn report(file: &Path, ask: &Ask) -> Result<Report, LedgerError> {
    let read = |sql: &mut Connection| {
        // One moment for both, while a relay may write.
        let sql = sql.transaction()?;
        let sums = read(&sql, ask, ask.by.sql(), ask.by.names().len())?;
        Ok(Report { sums, total: read(&sql, ask, "'total'", 0)?.pop() })
    };
    let mut sql = file::open_to_read(file)?;
    read(&mut sql).map_err(|source| LedgerError::Sql { file: file.to_owned(), source })
}

fn read(sql: &Connection, ask: &Ask, group: &str, names: usize) -> rusqlite::Result<Vec<Sum>> {
    let of_replies = [
        "input_text_tokens",
        "input_audio_tokens",
        "cached_tokens",
        "output_text_tokens",
        "output_audio_tokens",
        "total_tokens",
        "audio_ms",
        "heard_ms",
    ];
    let of_replies = of_replies.map(|column| format!("ifnull(sum({column}) FILTER (WHERE kind = 'reply'), 0)"));
    let shown = if names > 0 { format!("{group}, ") } else { String::new() };
    let query = format!(
        "SELECT {shown} count(DISTINCT call), count(*) FILTER (WHERE kind = 'reply'), sum(estimated), {},
            count(*) FILTER (WHERE kind = 'transcription'),
            ifnull(sum(total_tokens) FILTER (WHERE kind = 'transcription'), 0),
            total(seconds) FILTER (WHERE kind = 'transcription')
        FROM usage WHERE at >= ?1 AND at < ?2 AND (?3 IS NULL OR tenant = ?3) GROUP BY {group} ORDER BY {group}",
        of_replies.join(", ")
    );
    let moment = |at: Option<u64>, usual| at.map_or(usual, |at| i64::try_from(at).unwrap_or(i64::MAX));
    let asked = params![moment(ask.since, 0), moment(ask.until, i64::MAX), ask.tenant];
    sql.prepare(&query)?.query_map(asked, |row| Sum::read(row, names))?.collect()
}
