//! Replies in the order in which they were, for whoever wants to know what would have been.
use std::path::Path;

use rusqlite::{Row, params};

use super::file::{self, LedgerError};
use crate::{admit::price::Usd, client::wire::Usage};

/// A reply, as far as it says where it went and what it used.
#[derive(Debug, Clone, PartialEq)]
pub struct Replied {
    /// When, Unix ms.
    pub at: u64,
    /// The call.
    pub call: String,
    /// Who pays.
    pub tenant: String,
    /// The end user.
    pub user: Option<String>,
    /// The agent that was called.
    pub agent: String,
    /// The model that answered.
    pub model: String,
    /// The account and the model; empty: not known.
    pub route: String,
    /// Tokens.
    pub usage: Usage,
    /// What it cost; none: not known.
    pub cost: Option<Usd>,
    /// Until its first audio, ms; none: not known.
    pub first_audio_ms: Option<u64>,
}

const COLUMNS: &str = "at, call, tenant, user, agent, model, route, cost, first_audio_ms, total_tokens, input_tokens,
    output_tokens, input_text_tokens, input_audio_tokens, input_image_tokens, cached_tokens, cached_text_tokens,
    cached_audio_tokens, cached_image_tokens, cache_write_tokens, output_text_tokens, output_audio_tokens";

impl Replied {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        let count = |name: &str| row.get::<_, i64>(name).map(|n| u64::try_from(n).unwrap_or_default());
        let usage = Usage {
            total_tokens: count("total_tokens")?,
            input_tokens: count("input_tokens")?,
            output_tokens: count("output_tokens")?,
            input_text_tokens: count("input_text_tokens")?,
            input_audio_tokens: count("input_audio_tokens")?,
            input_image_tokens: count("input_image_tokens")?,
            cached_tokens: count("cached_tokens")?,
            cached_text_tokens: count("cached_text_tokens")?,
            cached_audio_tokens: count("cached_audio_tokens")?,
            cached_image_tokens: count("cached_image_tokens")?,
            cache_write_tokens: count("cache_write_tokens")?,
            output_text_tokens: count("output_text_tokens")?,
            output_audio_tokens: count("output_audio_tokens")?,
        };
        Ok(Self {
            at: count("at")?,
            call: row.get("call")?,
            tenant: row.get("tenant")?,
            user: row.get("user")?,
            agent: row.get("agent")?,
            model: row.get("model")?,
            route: row.get("route")?,
            usage,
            cost: row.get::<_, Option<i64>>("cost")?.map(|pico| Usd::from_pico(pico.into())),
            first_audio_ms: row.get::<_, Option<i64>>("first_audio_ms")?.and_then(|ms| u64::try_from(ms).ok()),
        })
    }
}

/// Reads those from `since` until before `until`, Unix ms, the oldest first. Nothing is kept of them here, however many there are.
///
/// # Errors
/// When there is no ledger in this file, or it cannot be read.
pub fn replies(
    file: &Path,
    (since, until): (Option<u64>, Option<u64>),
    mut each: impl FnMut(Replied),
) -> Result<(), LedgerError> {
    let sql = file::open_to_read(file)?;
    let mut read = || {
        let query =
            format!("SELECT {COLUMNS} FROM usage WHERE kind = 'reply' AND at >= ?1 AND at < ?2 ORDER BY at, id");
        let moment = |at: Option<u64>, usual| at.map_or(usual, |at| i64::try_from(at).unwrap_or(i64::MAX));
        let mut query = sql.prepare(&query)?;
        let rows = query.query_map(params![moment(since, 0), moment(until, i64::MAX)], Replied::read)?;
        rows.into_iter().try_for_each(|row| row.map(&mut each))
    };
    read().map_err(|source| LedgerError::Sql { file: file.to_owned(), source })
}
