//! Parts: the requests that an item needs, each with its idempotency key and its answer, and what is made of the answers.
use std::{
    collections::BTreeMap,
    ops::{Add, AddAssign},
};

use aws_lc_rs::digest::{SHA256, digest};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use rusqlite::{OptionalExtension as _, Row as SqlRow, Transaction, params};
use serde_json::Value;

use super::{Content, State, Store, StoreError, Sums, Sure, signed, unsigned};
use crate::{admit::price::Usd, batch::join::Segment};

/// What idempotency keys begin with.
const PREFIX: &str = "vrj-";
/// A [`Usage`] of a row.
pub(super) const USAGE: &str = "input_tokens, output_tokens, audio_ms, cost, unpriced";
/// And of all rows.
pub(super) const SUMMED: &str = "coalesce(sum(input_tokens), 0), coalesce(sum(output_tokens), 0), coalesce(sum(audio_ms), 0), \
    coalesce(sum(cost), 0), coalesce(sum(unpriced), 0)";
/// `parts.kind` of what was billed for a file's earlier content.
const LOST: i64 = 9;

/// What a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Task {
    /// A piece of the recording to text.
    Piece = 0,
    /// A text, or a part of one, to an extract.
    Extract = 1,
    /// An extract that was not valid, once more.
    Repair = 2,
    /// Extracts of parts to one.
    Merge = 3,
}

/// One request of an item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// What for.
    pub task: Task,
    /// Which of them.
    pub number: u32,
    /// What exactly is asked besides: a piece's span for instance. An answer to something else is not taken for one to this.
    pub seal: String,
}

/// What a request, or several, was billed as.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens in.
    pub input_tokens: u64,
    /// Tokens out.
    pub output_tokens: u64,
    /// Audio that was billed by its length, ms.
    pub audio_ms: u64,
    /// What it cost, as far as that is known.
    pub cost: Usd,
    /// Requests of which it is not known.
    pub unpriced: u64,
}

impl Usage {
    /// What it cost; `None`: not known of all of it.
    pub fn price(&self) -> Option<Usd> {
        (self.unpriced == 0).then_some(self.cost)
    }
}

impl Add for Usage {
    type Output = Self;

    fn add(self, more: Self) -> Self {
        Self {
            input_tokens: self.input_tokens.saturating_add(more.input_tokens),
            output_tokens: self.output_tokens.saturating_add(more.output_tokens),
            audio_ms: self.audio_ms.saturating_add(more.audio_ms),
            cost: self.cost + more.cost,
            unpriced: self.unpriced.saturating_add(more.unpriced),
        }
    }
}

impl AddAssign for Usage {
    fn add_assign(&mut self, more: Self) {
        *self = *self + more;
    }
}

/// Reads what [`USAGE`] or [`SUMMED`] asks for.
pub(super) fn usage_at(row: &SqlRow<'_>, at: usize) -> rusqlite::Result<Usage> {
    let number = |more| row.get::<_, i64>(at + more);
    Ok(Usage {
        input_tokens: unsigned(number(0)?),
        output_tokens: unsigned(number(1)?),
        audio_ms: unsigned(number(2)?),
        cost: Usd::from_pico(number(3)?.into()),
        unpriced: unsigned(number(4)?),
    })
}

pub(super) fn pico(cost: Usd) -> i64 {
    i64::try_from(cost.pico()).unwrap_or(i64::MAX)
}

/// What is to be done about a part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Begun {
    /// Send it, under this idempotency key.
    Ask {
        /// The same for every try, in this process and after it.
        key: String,
        /// It was begun before, under the same key: an answer that the service has kept may be one that we have paid for.
        again: bool,
    },
    /// It was answered.
    Answered(String),
}

/// A recording's text.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Transcript {
    /// All of it.
    pub text: String,
    /// The language that was heard or asked for, as the service names it.
    pub language: Option<String>,
    /// The model that wrote it.
    pub model: String,
    /// Its parts with their times; none of a text that was given as one.
    pub segments: Vec<Segment>,
}

/// What was extracted from a text.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Extracted {
    /// `Some`: it is valid.
    pub json: Option<Value>,
    /// Why it is not.
    pub error: Option<String>,
    /// The model that made it.
    pub model: String,
}

impl Store {
    /// Before a request of a claimed item is sent. Its key is in the file when this comes back. That it was sent is not: whoever waits for leave
    /// to send may never get it.
    ///
    /// # Errors
    /// When the file cannot be written, or the item is not claimed.
    pub fn begin(&self, n: i64, part: &Part, now: u64) -> Result<Begun, StoreError> {
        let begun = self.change(Sure::Committed, |change, _| {
            let hash = "SELECT hash FROM items WHERE n = ?1 AND state = ?2";
            let hash: Option<Option<Vec<u8>>> =
                change.query_row(hash, params![n, State::Working], |row| row.get(0)).optional()?;
            let Some(hash) = hash else { return Ok(None) };
            self.begun(change, n, hash.as_deref(), part, now).map(Some)
        });
        begun?.ok_or(StoreError::NotWorking { n })
    }

    /// The same in a change, of one that is sure to be sent. `hash`: of the item's content.
    pub(super) fn begin_in(
        &self,
        change: &Transaction<'_>,
        n: i64,
        hash: Option<&[u8]>,
        part: &Part,
        now: u64,
    ) -> rusqlite::Result<Begun> {
        let begun = self.begun(change, n, hash, part, now)?;
        if let Begun::Ask { .. } = begun {
            attempted(change, n)?;
        }
        Ok(begun)
    }

    fn begun(
        &self,
        change: &Transaction<'_>,
        n: i64,
        hash: Option<&[u8]>,
        part: &Part,
        now: u64,
    ) -> rusqlite::Result<Begun> {
        let had = "SELECT round, seal, answer, key FROM parts WHERE item = ?1 AND kind = ?2 AND number = ?3";
        let had = change.prepare_cached(had)?.query_row(params![n, part.task as u8, part.number], |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?, row.get::<_, Option<String>>(2)?, row.get(3)?))
        });
        // Another try of an extraction that has failed is another question.
        let before = "SELECT tries FROM extracts WHERE item = ?1";
        let before = match part.task {
            Task::Piece => 0,
            _ => change.query_row(before, [n], |row| row.get(0)).optional()?.unwrap_or(0),
        };
        let had: Option<(_, _, _, String)> = had.optional()?;
        let (round, old) = match had {
            Some((_, seal, Some(answer), _)) if seal == part.seal => return Ok(Begun::Answered(answer)),
            Some((round, seal, None, key)) if seal == part.seal => (round, Some(key)),
            _ => (before, None),
        };
        let key = self.key(n, hash, part, round);
        let again = old.is_some_and(|old| old == key);
        let put = "INSERT INTO parts (item, kind, number, round, begun_ms, key, seal) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) \
                       ON CONFLICT DO UPDATE SET round = ?4, begun_ms = ?5, key = ?6, seal = ?7, answer = NULL, done_ms = NULL";
        let row = params![n, part.task as u8, part.number, round, signed(now), key, part.seal];
        change.prepare_cached(put)?.execute(row)?;
        Ok(Begun::Ask { key, again })
    }

    /// Made of what is asked alone, so that the same question has it again, in whichever item and whichever run. `round`: how
    /// many answers to it were of no use.
    fn key(&self, n: i64, hash: Option<&[u8]>, part: &Part, round: i64) -> String {
        let transcribe = &self.params.transcribe;
        let extract = (part.task != Task::Piece).then_some(&self.params.extract);
        // An item that was never looked at has no content but itself.
        let own = hash.is_none().then(|| (n, self.file.to_string_lossy()));
        let asked = (hash, own, transcribe, extract, part.task as u8, part.number, &part.seal, round);
        let asked = serde_json::to_vec(&asked).unwrap_or_default();
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(digest(&SHA256, &asked)))
    }

    /// The answers that an item's pieces have, by their numbers, with their seals.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn answered_pieces(&self, n: i64) -> Result<BTreeMap<u32, (String, String)>, StoreError> {
        let ask = "SELECT number, seal, answer FROM parts WHERE item = ?1 AND kind = ?2 AND answer IS NOT NULL";
        self.read(|sql| {
            let mut ask = sql.prepare_cached(ask)?;
            let rows =
                ask.query_map(params![n, Task::Piece as u8], |row| Ok((row.get(0)?, (row.get(1)?, row.get(2)?))));
            rows?.collect()
        })
    }

    /// A part's answer, and what it was billed as.
    ///
    /// # Errors
    /// When the file cannot be written, or the part was not begun.
    pub fn answered(&self, n: i64, part: &Part, answer: &str, usage: &Usage, now: u64) -> Result<(), StoreError> {
        self.bill(n, part, Some(answer), usage, None, now)
    }

    /// A try that was sent and has failed. `billed`: the service has answered, but the answer is of no use, so that the next try is another
    /// request, with another key. Without it nobody knows whether it was heard, and the next try has the same one.
    ///
    /// # Errors
    /// When the file cannot be written, or the part was not begun.
    pub fn failed_try(
        &self,
        n: i64,
        part: &Part,
        error: &str,
        billed: Option<&Usage>,
        now: u64,
    ) -> Result<(), StoreError> {
        if let Some(usage) = billed {
            return self.bill(n, part, None, usage, Some(error), now);
        }
        self.change(Sure::Committed, |change, _| {
            attempted(change, n)?;
            note(change, n, error)
        })
    }

    fn bill(
        &self,
        n: i64,
        part: &Part,
        answer: Option<&str>,
        usage: &Usage,
        error: Option<&str>,
        now: u64,
    ) -> Result<(), StoreError> {
        let put = "UPDATE parts SET answer = ?4, done_ms = ?5, input_tokens = input_tokens + ?6, \
                   output_tokens = output_tokens + ?7, audio_ms = audio_ms + ?8, cost = cost + ?9, unpriced = unpriced + ?10, \
                   round = round + (?4 IS NULL) WHERE item = ?1 AND kind = ?2 AND number = ?3 AND answer IS NULL";
        let Usage { input_tokens, output_tokens, audio_ms, cost, unpriced } = *usage;
        let done = self.change(Sure::Synced, |change, sums| {
            let row = params![
                n,
                part.task as u8,
                part.number,
                answer,
                answer.map(|_| signed(now)),
                signed(input_tokens),
                signed(output_tokens),
                signed(audio_ms),
                pico(cost),
                signed(unpriced)
            ];
            if change.prepare_cached(put)?.execute(row)? == 0 {
                return Ok(false);
            }
            attempted(change, n)?;
            error.map_or(Ok(()), |error| note(change, n, error))?;
            sums.usage += *usage;
            Ok(true)
        })?;
        if done { Ok(()) } else { Err(StoreError::NotWorking { n }) }
    }

    /// A claimed item's text, made of its pieces; what they were billed as is the item's, and they are gone.
    ///
    /// # Errors
    /// When the file cannot be written, or the item is not claimed.
    pub fn put_transcript(&self, n: i64, transcript: &Transcript) -> Result<(), StoreError> {
        let Transcript { text, language, model, segments } = transcript;
        let segments = serde_json::to_string(segments).unwrap_or_default();
        let put = format!(
            "INSERT INTO transcripts (item, {USAGE}, reused, model, language, text, segments) \
             SELECT ?1, {SUMMED}, NULL, ?2, ?3, ?4, ?5 FROM parts WHERE item = ?1 AND kind IN (?6, ?7) \
             ON CONFLICT (item) DO UPDATE SET model = ?2, language = ?3, text = ?4, segments = ?5"
        );
        let done = self.change(Sure::Committed, |change, _| {
            if !is_working(change, n)? {
                return Ok(false);
            }
            let row = params![n, model, language, text, segments, Task::Piece as u8, LOST];
            change.prepare_cached(&put)?.execute(row)?;
            let gone = "DELETE FROM parts WHERE item = ?1 AND kind IN (?2, ?3)";
            change.prepare_cached(gone)?.execute(params![n, Task::Piece as u8, LOST])?;
            Ok(true)
        })?;
        if done { Ok(()) } else { Err(StoreError::NotWorking { n }) }
    }

    /// An item's text, if it has one.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn transcript(&self, n: i64) -> Result<Option<Transcript>, StoreError> {
        let ask = "SELECT text, language, model, segments FROM transcripts WHERE item = ?";
        self.read(|sql| sql.query_row(ask, [n], |row| transcript_at(row, 0)).optional())
    }

    /// A claimed item's extract, made of its requests, as with [`Self::put_transcript`].
    ///
    /// # Errors
    /// When the file cannot be written, or the item is not claimed.
    pub fn put_extract(&self, n: i64, extracted: &Extracted) -> Result<(), StoreError> {
        let Extracted { json, error, model } = extracted;
        let json = json.as_ref().map(Value::to_string);
        // One that is not valid is made once more in another run, and both are billed.
        let put = format!(
            "INSERT INTO extracts (item, {USAGE}, model, error, json) \
             SELECT ?1, {SUMMED}, ?2, ?3, ?4 FROM \
                 (SELECT {USAGE} FROM parts WHERE item = ?1 AND kind BETWEEN ?5 AND ?6 UNION ALL SELECT {USAGE} FROM extracts WHERE item = ?1) \
             WHERE TRUE ON CONFLICT (item) DO UPDATE SET input_tokens = excluded.input_tokens, \
             output_tokens = excluded.output_tokens, audio_ms = excluded.audio_ms, cost = excluded.cost, \
             unpriced = excluded.unpriced, tries = tries + 1, model = ?2, error = ?3, json = ?4"
        );
        let done = self.change(Sure::Committed, |change, _| {
            if !is_working(change, n)? {
                return Ok(false);
            }
            let row = params![n, model, error, json, Task::Extract as u8, Task::Merge as u8];
            change.prepare_cached(&put)?.execute(row)?;
            let gone = "DELETE FROM parts WHERE item = ?1 AND kind BETWEEN ?2 AND ?3";
            change.prepare_cached(gone)?.execute(params![n, Task::Extract as u8, Task::Merge as u8])?;
            change.prepare_cached("DELETE FROM requests WHERE item = ?")?.execute([n])?;
            Ok(true)
        })?;
        if done { Ok(()) } else { Err(StoreError::NotWorking { n }) }
    }
}

/// Reads text, language, model and segments.
pub(super) fn transcript_at(row: &SqlRow<'_>, at: usize) -> rusqlite::Result<Transcript> {
    let segments: String = row.get(at + 3)?;
    Ok(Transcript {
        text: row.get(at)?,
        language: row.get(at + 1)?,
        model: row.get(at + 2)?,
        segments: serde_json::from_str(&segments).unwrap_or_default(),
    })
}

fn is_working(change: &Transaction<'_>, n: i64) -> rusqlite::Result<bool> {
    let ask = "SELECT 1 FROM items WHERE n = ?1 AND state = ?2";
    Ok(change.query_row(ask, params![n, State::Working], |_| Ok(())).optional()?.is_some())
}

/// One more request was sent for it.
fn attempted(change: &Transaction<'_>, n: i64) -> rusqlite::Result<()> {
    change.prepare_cached("UPDATE items SET attempts = attempts + 1 WHERE n = ?")?.execute([n]).map(drop)
}

fn note(change: &Transaction<'_>, n: i64, error: &str) -> rusqlite::Result<()> {
    let put = "UPDATE items SET first_error = coalesce(first_error, ?2) WHERE n = ?1";
    change.prepare_cached(put)?.execute(params![n, error]).map(drop)
}

/// The file has another content: nothing of an item is good any more, but what it was billed.
pub(super) fn forget(change: &Transaction<'_>, n: i64, sums: &mut Sums) -> rusqlite::Result<()> {
    let reused = "SELECT count(*) FROM transcripts WHERE item = ? AND reused IS NOT NULL";
    sums.reused = sums.reused.saturating_sub(change.query_row(reused, [n], |row| row.get(0)).map(unsigned)?);
    let all = ["parts", "transcripts", "extracts"].map(|table| format!("SELECT {USAGE} FROM {table} WHERE item = ?1"));
    let ask = format!("SELECT {SUMMED} FROM ({})", all.join(" UNION ALL "));
    let Usage { input_tokens, output_tokens, audio_ms, cost, unpriced } =
        change.query_row(&ask, [n], |row| usage_at(row, 0))?;
    for table in ["parts", "transcripts", "extracts", "requests"] {
        change.execute(&format!("DELETE FROM {table} WHERE item = ?"), [n])?;
    }
    let put =
        format!("INSERT INTO parts (item, kind, number, {USAGE}, key, seal) VALUES (?, ?, 0, ?, ?, ?, ?, ?, '', '')");
    let (tokens, audio_ms) = ((signed(input_tokens), signed(output_tokens)), signed(audio_ms));
    change.execute(&put, params![n, LOST, tokens.0, tokens.1, audio_ms, pico(cost), signed(unpriced)]).map(drop)
}

/// Takes a transcript over from an item of the same content, with a valid extract if there is one, for nothing. `false`: there
/// is none, and the item has none of its own.
pub(super) fn take_over(
    change: &Transaction<'_>,
    n: i64,
    content: &Content,
    sums: &mut Sums,
) -> rusqlite::Result<bool> {
    let own = "SELECT 1 FROM transcripts WHERE item = ?";
    if change.query_row(own, [n], |_| Ok(())).optional()?.is_some() {
        return Ok(true);
    }
    // One with an extract before one without.
    let other = "SELECT t.item FROM items i JOIN transcripts t ON t.item = i.n LEFT JOIN extracts e ON e.item = i.n \
                 WHERE i.hash = ?1 AND i.n <> ?2 ORDER BY e.json IS NULL, t.item LIMIT 1";
    let other: Option<i64> = change.query_row(other, params![content.hash, n], |row| row.get(0)).optional()?;
    let Some(other) = other else { return Ok(false) };
    let text = format!(
        "INSERT INTO transcripts (item, {USAGE}, reused, model, language, text, segments) \
         SELECT ?1, 0, 0, 0, 0, 0, item, model, language, text, segments FROM transcripts WHERE item = ?2"
    );
    change.execute(&text, params![n, other])?;
    let extract = format!(
        "INSERT INTO extracts (item, {USAGE}, model, error, json) \
         SELECT ?1, 0, 0, 0, 0, 0, model, NULL, json FROM extracts WHERE item = ?2 AND json IS NOT NULL"
    );
    change.execute(&extract, params![n, other])?;
    sums.reused += 1;
    Ok(true)
}
