//! Batches: requests that wait for one or are in one, and how far each batch is. An answer goes to its part, as if it had come directly.
//!
//! What is kept of a request is its line, so that the file can be made again however often it takes. An item whose requests are in a batch
//! is [`State::Parked`]: nobody has it in memory. When all of them have come it is [`State::Ready`], and goes the same way again, now
//! with answers.
use rusqlite::{OptionalExtension as _, Transaction, params};

use super::{
    Part, State, Store, StoreError, Sums, Sure, Task, Usage,
    items::counted,
    parts::{USAGE, pico, usage_at},
    signed, unsigned,
};
use crate::batch::extract::batchapi::{
    Batch, Packer,
    file::Limits,
    job::{Ended, Rest},
};

/// `requests.state` is [`Stands`]; `expired`: batches that expired with it in them; `follow`: it follows from an answer.
pub(super) const SCHEMA: &str = "
    CREATE TABLE batches (
        n INTEGER PRIMARY KEY, live INTEGER NOT NULL, requests INTEGER NOT NULL, answered INTEGER NOT NULL DEFAULT 0,
        input_tokens INTEGER NOT NULL DEFAULT 0, output_tokens INTEGER NOT NULL DEFAULT 0, audio_ms INTEGER NOT NULL DEFAULT 0,
        cost INTEGER NOT NULL DEFAULT 0, unpriced INTEGER NOT NULL DEFAULT 0, state TEXT NOT NULL
    ) STRICT;
    CREATE TABLE requests (
        n INTEGER PRIMARY KEY, item INTEGER NOT NULL, state INTEGER NOT NULL, batch INTEGER, number INTEGER NOT NULL,
        expired INTEGER NOT NULL DEFAULT 0, follow INTEGER NOT NULL, bytes INTEGER NOT NULL, tokens INTEGER NOT NULL,
        key TEXT NOT NULL UNIQUE, code TEXT, message TEXT, line TEXT NOT NULL
    ) STRICT;
    CREATE INDEX requests_item ON requests (item);
    CREATE INDEX requests_batch ON requests (batch, state);
";

/// Where a request stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Stands {
    /// It waits for a batch.
    Pending = 0,
    /// It is in one.
    Sent = 1,
    /// It shall be sent by itself.
    Direct = 2,
    /// The service will not answer it.
    Failed = 3,
    /// Its batch has failed or was cancelled: for another run.
    Left = 4,
}

/// A request that can wait for a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pending {
    /// Which it is; its seal is its `custom_id`.
    pub part: Part,
    /// As a line.
    pub line: String,
    /// What it reads, tokens.
    pub tokens: u64,
    /// It follows from an answer: a repair, a merger, another try.
    pub follow: bool,
}

/// What is known of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Batched {
    /// Nothing: it may go into a batch.
    New,
    /// It was answered.
    Answered(String),
    /// The service will not answer it.
    Failed {
        /// For programs.
        code: String,
        /// For people.
        message: String,
    },
    /// It shall be sent by itself.
    Direct,
}

/// What has come for a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Came {
    /// Its answer, and what that was billed as.
    Answer(String, Usage),
    /// The service will not answer it.
    Failed {
        /// For programs.
        code: String,
        /// For people.
        message: String,
    },
}

/// What came by batches.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ByBatch {
    /// Batches.
    pub batches: u64,
    /// Answers.
    pub answers: u64,
    /// What they were billed as.
    pub usage: Usage,
}

/// When a job is opened: what was left of batches is free again.
pub(super) fn begin(change: &Transaction<'_>) -> rusqlite::Result<()> {
    change.execute("DELETE FROM requests WHERE state = ?", [Stands::Left as u8])?;
    free(change).map(drop)
}

/// Parked items of which nothing is under way any more are ready; how many.
fn free(change: &Transaction<'_>) -> rusqlite::Result<usize> {
    let (parked, ready) = (State::Parked as u8, State::Ready as u8);
    let (pending, sent, left) = (Stands::Pending as u8, Stands::Sent as u8, Stands::Left as u8);
    let put = format!(
        "UPDATE items SET state = {ready} WHERE state = {parked} AND NOT EXISTS \
         (SELECT 1 FROM requests r WHERE r.item = items.n AND r.state IN ({pending}, {sent}, {left}))"
    );
    change.execute(&put, [])
}

impl Store {
    /// What is known of a request of a claimed item.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn batched(&self, n: i64, part: &Part) -> Result<Batched, StoreError> {
        self.read(|sql| {
            let ask = "SELECT answer FROM parts WHERE item = ?1 AND kind = ?2 AND number = ?3 AND seal = ?4";
            let answer = sql
                .prepare_cached(ask)?
                .query_row(params![n, part.task as u8, part.number, part.seal], |row| row.get::<_, Option<String>>(0));
            if let Some(answer) = answer.optional()?.flatten() {
                return Ok(Batched::Answered(answer));
            }
            let ask = "SELECT state, code, message FROM requests WHERE key = ?1 AND item = ?2";
            let found = sql.prepare_cached(ask)?.query_row(params![part.seal, n], |row| {
                let text = |at| row.get::<_, Option<String>>(at).map(Option::unwrap_or_default);
                Ok((row.get::<_, u8>(0)?, text(1)?, text(2)?))
            });
            Ok(match found.optional()? {
                Some((state, code, message)) if state == Stands::Failed as u8 => Batched::Failed { code, message },
                Some((state, ..)) if state == Stands::Direct as u8 => Batched::Direct,
                _ => Batched::New,
            })
        })
    }

    /// A claimed item's requests wait for a batch, and so does the item.
    ///
    /// # Errors
    /// When the file cannot be written, or the item is not claimed.
    pub fn park(&self, n: i64, pending: &[Pending], now: u64) -> Result<(), StoreError> {
        let put = "INSERT INTO requests (item, state, number, follow, bytes, tokens, key, line) \
                   VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) ON CONFLICT (key) DO NOTHING";
        let parked = self.change(Sure::Committed, |change, sums| {
            let put_item = "UPDATE items SET state = ?2 WHERE n = ?1 AND state = ?3 RETURNING bytes, duration_ms, hash";
            let item = change.query_row(put_item, params![n, State::Parked, State::Working], |row| {
                Ok((counted(row, 0)?, row.get::<_, Option<Vec<u8>>>(2)?))
            });
            let Some((count, hash)) = item.optional()? else { return Ok(None) };
            sums.moved(State::Working, State::Parked, count);
            for Pending { part, line, tokens, follow } in pending {
                self.begin_in(change, n, hash.as_deref(), part, now)?;
                let (bytes, tokens) = (line.len() as u64, signed(*tokens));
                let row =
                    params![n, Stands::Pending as u8, part.number, follow, signed(bytes), tokens, part.seal, line];
                change.prepare_cached(put)?.execute(row)?;
            }
            Ok(Some(()))
        });
        parked?.ok_or(StoreError::NotWorking { n })
    }

    /// Makes batches of all that waits for one, with these names; how many. What follows from answers, and is all there is, and less than
    /// `few`, is sent directly, as is what fits into no file; how many items became ready.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn batch_up(
        &self,
        limits: Limits,
        few: u64,
        mut name: impl FnMut() -> String,
    ) -> Result<(u64, usize), StoreError> {
        self.change(Sure::Committed, |change, _| {
            let (pending, direct) = (Stands::Pending as u8, Stands::Direct as u8);
            let ask = "SELECT count(*), coalesce(sum(NOT follow OR expired > 0), 0) FROM requests WHERE state = ?";
            let (all, first) =
                change.query_row(ask, [pending], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)))?;
            if first == 0 && unsigned(all) < few {
                change.execute("UPDATE requests SET state = ?2 WHERE state = ?1", params![pending, direct])?;
                return Ok((0, free(change)?));
            }
            let waiting = {
                let mut ask = change.prepare("SELECT n, bytes, tokens FROM requests WHERE state = ? ORDER BY n")?;
                let rows = ask.query_map([pending], |row| {
                    Ok((row.get::<_, i64>(0)?, unsigned(row.get(1)?), unsigned(row.get(2)?)))
                })?;
                rows.collect::<rusqlite::Result<Vec<_>>>()?
            };
            let (mut packer, mut made, mut batch) = (Packer::new(limits), 0, 0);
            let put = "UPDATE requests SET state = ?2, batch = ?3 WHERE n = ?1";
            for (n, bytes, tokens) in waiting {
                let Ok(file) = packer.put(bytes, tokens) else {
                    change.prepare_cached(put)?.execute(params![n, direct, None::<i64>])?;
                    continue;
                };
                if file as u64 >= made {
                    made = file as u64 + 1;
                    let state = serde_json::to_string(&Batch::new(&name())).unwrap_or_default();
                    change.execute("INSERT INTO batches (live, requests, state) VALUES (1, 0, ?)", [state])?;
                    batch = change.last_insert_rowid();
                }
                change.prepare_cached(put)?.execute(params![n, Stands::Sent as u8, batch])?;
                change.prepare_cached("UPDATE batches SET requests = requests + 1 WHERE n = ?")?.execute([batch])?;
            }
            Ok((made, free(change)?))
        })
    }

    /// Batches that are not over, with their numbers.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn live_batches(&self) -> Result<Vec<(i64, Batch)>, StoreError> {
        self.batches("live")
    }

    /// Batches that are over, and have files at the service.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn littering(&self) -> Result<Vec<(i64, Batch)>, StoreError> {
        self.batches("NOT live AND json_array_length(state, '$.files') > 0")
    }

    fn batches(&self, which: &str) -> Result<Vec<(i64, Batch)>, StoreError> {
        self.read(|sql| {
            let mut ask = sql.prepare(&format!("SELECT n, state FROM batches WHERE {which} ORDER BY n"))?;
            let rows = ask.query_map([], |row| {
                let (n, state) = (row.get::<_, i64>(0)?, row.get::<_, String>(1)?);
                let broken = |e| rusqlite::Error::FromSqlConversionFailure(1, rusqlite::types::Type::Text, Box::new(e));
                Ok((n, serde_json::from_str(&state).map_err(broken)?))
            })?;
            rows.collect()
        })
    }

    /// How far a batch is; on the disk when this comes back.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn put_batch(&self, n: i64, batch: &Batch) -> Result<(), StoreError> {
        let state = serde_json::to_string(batch).unwrap_or_default();
        self.change(Sure::Synced, |change, _| {
            change.prepare_cached("UPDATE batches SET state = ?2 WHERE n = ?1")?.execute(params![n, state]).map(drop)
        })
    }

    /// The requests of a batch that have no answer, in their order: their keys.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn batch_keys(&self, n: i64) -> Result<Vec<String>, StoreError> {
        self.read(|sql| {
            let mut ask = sql.prepare("SELECT key FROM requests WHERE batch = ?1 AND state = ?2 ORDER BY n")?;
            ask.query_map(params![n, Stands::Sent as u8], |row| row.get(0))?.collect()
        })
    }

    /// The lines of a batch, some at a time: those after this number, and the number to go on from; empty at the end.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn batch_lines(&self, n: i64, after: i64) -> Result<(String, i64), StoreError> {
        const SOME: usize = 1 << 20;
        self.read(|sql| {
            let ask = "SELECT n, line FROM requests WHERE batch = ?1 AND state = ?2 AND n > ?3 ORDER BY n";
            let mut ask = sql.prepare_cached(ask)?;
            let mut rows = ask.query(params![n, Stands::Sent as u8, after])?;
            let (mut lines, mut last) = (String::new(), after);
            while let Some(row) = rows.next()? {
                last = row.get(0)?;
                lines.push_str(row.get_ref(1)?.as_str()?);
                if lines.len() >= SOME {
                    break;
                }
            }
            Ok((lines, last))
        })
    }

    /// What has come for some requests of a batch.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn merge(&self, n: i64, came: &[(String, Came)], now: u64) -> Result<(), StoreError> {
        self.change(Sure::Synced, |change, sums| {
            came.iter().try_for_each(|(key, came)| merge(change, sums, n, key, came, now))
        })
    }

    /// A batch is over; what becomes of requests without an answer, [`Ended::rest`] says. How many they are.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn batch_over(&self, n: i64, ended: &Ended) -> Result<usize, StoreError> {
        self.change(Sure::Synced, |change, _| {
            let stands = |rest| match rest {
                Rest::Batch => Stands::Pending as u8,
                Rest::Direct => Stands::Direct as u8,
                Rest::Left => Stands::Left as u8,
            };
            let put = "UPDATE requests SET state = CASE WHEN expired = 0 THEN ?3 ELSE ?4 END, expired = expired + ?5, batch = NULL \
                       WHERE batch = ?1 AND state = ?2";
            let expired = *ended == Ended::Expired;
            let row = params![n, Stands::Sent as u8, stands(ended.rest(0)), stands(ended.rest(1)), expired];
            let rest = change.execute(put, row)?;
            change.execute("UPDATE batches SET live = 0 WHERE n = ?", [n])?;
            free(change)?;
            Ok(rest)
        })
    }

    /// Nothing waits for a batch any more: all that did is sent directly.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn unpark(&self) -> Result<(), StoreError> {
        self.change(Sure::Committed, |change, _| {
            let put = "UPDATE requests SET state = ?2 WHERE state = ?1";
            change.execute(put, params![Stands::Pending as u8, Stands::Direct as u8])?;
            free(change).map(drop)
        })
    }

    /// What came by batches.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn by_batch(&self) -> Result<ByBatch, StoreError> {
        let ask = format!(
            "SELECT count(*), coalesce(sum(answered), 0), {} FROM batches",
            USAGE.split(", ").map(|name| format!("coalesce(sum({name}), 0)")).collect::<Vec<_>>().join(", ")
        );
        self.read(|sql| {
            sql.query_row(&ask, [], |row| {
                Ok(ByBatch { batches: unsigned(row.get(0)?), answers: unsigned(row.get(1)?), usage: usage_at(row, 2)? })
            })
        })
    }
}

fn merge(change: &Transaction<'_>, sums: &mut Sums, n: i64, key: &str, came: &Came, now: u64) -> rusqlite::Result<()> {
    let ask = "SELECT item, number FROM requests WHERE key = ?1 AND batch = ?2 AND state = ?3";
    let found = change
        .prepare_cached(ask)?
        .query_row(params![key, n, Stands::Sent as u8], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, u32>(1)?)));
    let Some((item, number)) = found.optional()? else { return Ok(()) };
    let (answer, usage) = match came {
        Came::Failed { code, message } => {
            let put = "UPDATE requests SET state = ?2, code = ?3, message = ?4, line = '' WHERE key = ?1";
            let row = params![key, Stands::Failed as u8, code, message];
            return change.prepare_cached(put)?.execute(row).map(drop);
        }
        Came::Answer(answer, usage) => (answer, *usage),
    };
    let Usage { input_tokens, output_tokens, audio_ms, cost, unpriced } = usage;
    let (tokens, audio_ms, unpriced) =
        ((signed(input_tokens), signed(output_tokens)), signed(audio_ms), signed(unpriced));
    let more = "input_tokens = input_tokens + ?1, output_tokens = output_tokens + ?2, audio_ms = audio_ms + ?3, \
                cost = cost + ?4, unpriced = unpriced + ?5";
    let put = format!(
        "UPDATE parts SET {more}, answer = ?6, done_ms = ?7 WHERE item = ?8 AND kind = ?9 AND number = ?10 AND answer IS NULL"
    );
    let row = params![
        tokens.0,
        tokens.1,
        audio_ms,
        pico(cost),
        unpriced,
        answer,
        signed(now),
        item,
        Task::Extract as u8,
        number
    ];
    change.prepare_cached(&put)?.execute(row)?;
    let put = format!("UPDATE batches SET {more}, answered = answered + 1 WHERE n = ?6");
    change.prepare_cached(&put)?.execute(params![tokens.0, tokens.1, audio_ms, pico(cost), unpriced, n])?;
    change.prepare_cached("DELETE FROM requests WHERE key = ?")?.execute([key])?;
    sums.usage += usage;
    Ok(())
}

#[cfg(test)]
mod tests;
