//! One batch from its file to its end: upload, creation, waiting, download. Says what to do next ([`Batch::next`]) and is told what came
//! of it; waits for nothing itself. Times are Unix seconds: a batch outlives processes.
//!
//! A batch must not be created twice, for both would be paid. The state is kept *before* each step: where creation was asked for and its
//! answer is not known, the next step is to look for the batch by our own name in its `metadata`, and only where it is not there, twice
//! with a pause between, to create it. A search that is refused has found nothing out. Everything else may be done twice. What a state of
//! the service's means for us:
//!
//! | `status` | next |
//! |---|---|
//! | `validating`, `in_progress`, `finalizing`, `cancelling`, one that is not known | wait, and look again |
//! | `completed` | download; what is missing goes directly |
//! | `expired` | download what was done; the rest goes into a further batch once, then directly |
//! | `cancelled` | download what was done and paid; the rest stays undone |
//! | `failed` | for the account's limit of waiting tokens: create it later; else the batch has failed, and nothing was done |
//! | one of the last four, and answers are nowhere | look again a few times; then it has failed |
//!
//! A step that was not done is done again after a pause that grows; how often, depends on what was said ([`Batch::refused`],
//! [`Batch::gone`], [`Batch::lost`]). Files that it leaves at the service hold what people said: [`Batch::files`] names them, for whoever
//! deletes them when it is over.
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    super::schema::shortened,
    file::{KEY, create},
};

/// First and longest wait between two looks, seconds.
const FIRST_WAIT: u64 = 5;
const LONGEST_WAIT: u64 = 300;
/// How often a batch is created that finds no place among the waiting tokens: one every five minutes, for two days.
const MOST_REFUSALS: u32 = 576;
/// How often a batch is looked for before it is taken not to be there, and the pause between, seconds: a creation may be on its way.
const SEARCHES: u32 = 2;
const BETWEEN_SEARCHES: u64 = 30;
/// How often in a row it is refused to look at a batch or its files, about twenty minutes, before it is given up.
const MOST_DENIALS: u32 = 12;
/// The same where the service does not know them.
const MOST_ABSENCES: u32 = 3;
/// How often a batch is looked at that has ended and does not say where its answers are.
const MOST_UNNAMED: u32 = 5;

/// What to do. Keep the batch before doing it. Where it was not done: [`Batch::refused`], [`Batch::gone`] or [`Batch::lost`].
#[derive(Debug, Clone, PartialEq)]
pub enum Do {
    /// `POST /v1/files` with `purpose` `batch`, then [`Batch::uploaded`].
    Upload,
    /// `POST /v1/batches` with this body, then [`Batch::created`].
    Create(Value),
    /// `GET /v1/batches`, from this id on, then [`Batch::listed`].
    Find {
        /// `after`
        after: Option<String>,
    },
    /// Nothing, up to then; Unix seconds.
    Wait(u64),
    /// `GET /v1/batches/{id}`, then [`Batch::seen`].
    Look(String),
    /// `POST /v1/batches/{id}/cancel`, then [`Batch::seen`].
    Cancel(String),
    /// `GET /v1/files/{id}/content`, merge what is in it, then [`Batch::downloaded`].
    Download(String),
    /// It is over.
    Over(Ended),
}

/// How a batch ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    /// All was run.
    Completed,
    /// Its day was over.
    Expired,
    /// It was cancelled, by us or by others.
    Cancelled,
    /// It was not run.
    Failed {
        /// The service's.
        code: String,
        /// What it says.
        message: String,
    },
}

/// What becomes of requests without an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rest {
    /// Into a further batch.
    Batch,
    /// To `/v1/responses`, at its price.
    Direct,
    /// Nothing: for a further run of the job.
    Left,
}

impl Ended {
    fn failed(code: &str, message: &str) -> Self {
        Self::Failed { code: shortened(code, 100), message: shortened(message, 300) }
    }

    /// What becomes of requests without an answer. `expired`: batches of this job that have expired before.
    pub fn rest(&self, expired: u32) -> Rest {
        match self {
            Self::Expired if expired == 0 => Rest::Batch,
            Self::Completed | Self::Expired => Rest::Direct,
            Self::Cancelled | Self::Failed { .. } => Rest::Left,
        }
    }
}

/// An object of the service's that is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}: found {found}; expected {expected}")]
pub struct Odd {
    what: &'static str,
    found: String,
    expected: &'static str,
}

impl Odd {
    fn new(what: &'static str, found: &Value, expected: &'static str) -> Self {
        Self { what, found: shortened(&found.to_string(), 200), expected }
    }
}

/// Requests of a batch, as the service counts them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counts {
    /// All.
    pub total: u64,
    /// Answered.
    pub completed: u64,
    /// Failed.
    pub failed: u64,
}

/// One batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    key: String,
    stage: Stage,
    cancel: bool,
    counts: Counts,
    /// When the service gives it up, Unix seconds.
    #[serde(default)]
    expires_at: Option<u64>,
    /// Its files at the service.
    #[serde(default)]
    files: Vec<String>,
    /// How long is waited between two looks at most, seconds.
    #[serde(skip)]
    longest: Longest,
    #[serde(skip)]
    misses: Misses,
}

/// Steps in a row that were not done. Another process begins anew.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Misses {
    steps: u32,
    /// Of them those to which the service has said no.
    denials: u32,
    /// When the first was, and when the next step may be, Unix seconds.
    since: u64,
    until: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Longest(u64);

impl Default for Longest {
    fn default() -> Self {
        Self(LONGEST_WAIT)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Stage {
    Upload,
    /// `asked`: creation was asked for, and nothing is known of it. `after`: so far it was looked for; `searches`: in vain, to the end.
    Create {
        file: String,
        asked: bool,
        after: Option<String>,
        #[serde(default)]
        searches: u32,
        not_before: u64,
        refusals: u32,
    },
    /// `unnamed`: how often it had ended without naming files.
    Look {
        file: String,
        batch: String,
        at: u64,
        wait: u64,
        refusals: u32,
        cancelling: bool,
        #[serde(default)]
        unnamed: u32,
    },
    /// `files`: those that are still to be read; `errors`: the one of them that holds no answers.
    Download {
        files: Vec<String>,
        errors: Option<String>,
        ended: Ended,
    },
    Over {
        ended: Ended,
    },
}

impl Batch {
    /// `key`: our own name of it, at most 512 letters, that no other batch of the account has.
    pub fn new(key: &str) -> Self {
        let (stage, counts, longest) = (Stage::Upload, Counts::default(), Longest::default());
        let (files, misses) = (Vec::new(), Misses::default());
        Self { key: key.to_owned(), stage, cancel: false, counts, expires_at: None, files, longest, misses }
    }

    /// Our own name of it.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// It is looked at every so many seconds at least; at first more often.
    pub fn look_every(&mut self, longest: u64) {
        self.longest = Longest(longest.max(1));
    }

    /// When the service gives it up, Unix seconds, as far as that is known.
    pub fn expires_at(&self) -> Option<u64> {
        self.expires_at
    }

    /// What the service has counted when it was last looked at.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// What the service has of it in files, by their ids: nobody needs them when it is over.
    pub fn files(&self) -> &[String] {
        &self.files
    }

    /// A file of its is not at the service any more.
    pub fn deleted(&mut self, file: &str) {
        self.files.retain(|kept| kept != file);
    }

    /// Nothing has come of anything since then, Unix seconds, and it is not known to run: without that it will not get on.
    pub fn stuck_since(&self) -> Option<u64> {
        let begun = matches!(self.stage, Stage::Look { .. } | Stage::Download { .. } | Stage::Over { .. });
        (self.misses.steps > 0 && !begun).then_some(self.misses.since)
    }

    /// Another process goes on with it at `now`: a creation that was asked for may still be on its way, and is looked for a little later.
    pub fn resumed(&mut self, now: u64) {
        let soon = now.saturating_add(FIRST_WAIT.min(self.longest.0));
        if let Stage::Create { asked: true, after, not_before, .. } = &mut self.stage {
            (*after, *not_before) = (None, soon);
        }
    }

    /// It shall end soon. What was done is paid and downloaded all the same.
    pub fn cancel(&mut self) {
        self.cancel = true;
    }

    /// What to do, `now` in Unix seconds. Keep `self` before doing it.
    pub fn next(&mut self, now: u64) -> Do {
        // A clock that was set back must not stop us for long.
        let longest = self.longest.0;
        let later = |at: u64| Some(at.min(now.saturating_add(longest))).filter(|at| *at > now);
        let never_made = matches!(&self.stage, Stage::Upload | Stage::Create { asked: false, .. });
        if self.cancel && never_made {
            self.stage = Stage::Over { ended: Ended::Cancelled };
        }
        if let Stage::Over { ended } = &self.stage {
            return Do::Over(ended.clone());
        }
        if let Some(at) = later(self.misses.until) {
            return Do::Wait(at);
        }
        match &mut self.stage {
            Stage::Upload => Do::Upload,
            Stage::Create { not_before, .. } if later(*not_before).is_some() => {
                *not_before = later(*not_before).unwrap_or(now);
                Do::Wait(*not_before)
            }
            Stage::Create { asked: true, after, .. } => Do::Find { after: after.clone() },
            Stage::Create { file, asked, searches, .. } => {
                (*asked, *searches) = (true, 0);
                Do::Create(create(file, &self.key))
            }
            Stage::Look { batch, cancelling, at, .. } if self.cancel && !*cancelling => {
                // Asked for once, and then looked at: whether it was heard shows there.
                *cancelling = true;
                *at = now.saturating_add(FIRST_WAIT.min(longest));
                Do::Cancel(batch.clone())
            }
            Stage::Look { batch, at, .. } => match later(*at) {
                Some(at) => Do::Wait(at),
                None => Do::Look(batch.clone()),
            },
            Stage::Download { files, ended, .. } => match files.first() {
                Some(file) => Do::Download(file.clone()),
                None => Do::Over(ended.clone()),
            },
            Stage::Over { ended } => Do::Over(ended.clone()),
        }
    }

    /// The file is there; `file` is the service's answer.
    ///
    /// # Errors
    /// It names no file.
    pub fn uploaded(&mut self, file: &Value) -> Result<(), Odd> {
        let id = id(file).ok_or_else(|| Odd::new("file", file, "an object with an id"))?;
        self.done();
        if self.stage == Stage::Upload {
            self.files.push(id.clone());
            self.stage = Stage::Create { file: id, asked: false, after: None, searches: 0, not_before: 0, refusals: 0 };
        }
        Ok(())
    }

    /// The batch is there; `batch` is the service's answer.
    ///
    /// # Errors
    /// It names no batch; it will be looked for.
    pub fn created(&mut self, batch: &Value, now: u64) -> Result<(), Odd> {
        let id = id(batch).ok_or_else(|| Odd::new("batch", batch, "an object with an id"))?;
        self.done();
        if let Stage::Create { file, refusals, .. } = &self.stage {
            let (file, refusals) = (file.clone(), *refusals);
            let first = FIRST_WAIT.min(self.longest.0);
            let (at, wait) = (now.saturating_add(first), longer(first, self.longest.0));
            self.stage = Stage::Look { file, batch: id, at, wait, refusals, cancelling: false, unnamed: 0 };
            self.seen(batch, now)?;
        }
        Ok(())
    }

    /// The service has said no to a step. `again`: it may say yes later, as for 429. Only a no to the creation itself means that there is no
    /// batch: one to the search for it leaves that open.
    pub fn refused(&mut self, step: &Do, code: &str, message: &str, again: bool, now: u64) {
        match step {
            Do::Upload if !again => self.end(code, message),
            Do::Create(_) => {
                let longest = self.longest.0;
                let Stage::Create { asked, after, not_before, refusals, .. } = &mut self.stage else { return };
                if again && *refusals < MOST_REFUSALS {
                    (*asked, *after) = (false, None);
                    *refusals += 1;
                    *not_before = now.saturating_add(longest);
                } else {
                    self.end(code, message);
                }
            }
            Do::Look(_) | Do::Cancel(_) | Do::Download(_) if !again => {
                let message = format!("the service has it, and does not show it: {message}");
                self.denied(MOST_DENIALS, code, &message, now);
            }
            _ => self.missed(now),
        }
    }

    /// The service does not know what a step was about. It is asked again: who asks at the wrong place, or too soon, is told the same.
    pub fn gone(&mut self, step: &Do, now: u64) {
        match step {
            Do::Create(_) => self.refused(step, "file_not_found", "the service does not know its file", false, now),
            Do::Download(_) => {
                let message = "the service does not know the file of its answers any more";
                self.denied(MOST_ABSENCES, "file_not_found", message, now);
            }
            _ => {
                let message = "the service does not know this batch any more";
                self.denied(MOST_ABSENCES, "batch_not_found", message, now);
            }
        }
    }

    /// What came of the last step is not known: the network was.
    pub fn lost(&mut self, now: u64) {
        self.missed(now);
    }

    /// A step was done.
    fn done(&mut self) {
        self.misses = Misses::default();
    }

    /// A step was not done, and is done again after a pause that grows.
    fn missed(&mut self, now: u64) {
        let (longest, misses) = (self.longest.0, &mut self.misses);
        let wait = (0..misses.steps.min(30)).fold(FIRST_WAIT.min(longest), |wait, _| longer(wait, longest));
        if misses.steps == 0 {
            misses.since = now;
        }
        misses.steps = misses.steps.saturating_add(1);
        misses.until = now.saturating_add(wait);
    }

    /// The same, and the service has said no: after `most` of them it is believed.
    fn denied(&mut self, most: u32, code: &str, message: &str, now: u64) {
        self.missed(now);
        self.misses.denials += 1;
        if self.misses.denials < most {
            return;
        }
        let Stage::Download { files, errors, .. } = &mut self.stage else { return self.end(code, message) };
        // Without the file of errors nothing is missed but why some have none; what is in the other one is taken all the same.
        if files.first() == errors.as_ref() {
            return self.downloaded();
        }
        let errors = errors.take();
        let ended = Ended::failed(code, message);
        self.stage = Stage::Download { files: errors.clone().into_iter().collect(), errors, ended };
        self.done();
    }

    /// A page of the account's batches.
    ///
    /// # Errors
    /// It is no list.
    pub fn listed(&mut self, list: &Value, now: u64) -> Result<(), Odd> {
        let odd = || Odd::new("batches", list, "a list");
        let all = list.get("data").and_then(Value::as_array).ok_or_else(odd)?;
        let named = |batch: &&Value| batch.pointer(&format!("/metadata/{KEY}")).is_some_and(|key| *key == self.key);
        // One that could not be run is none: the newest comes first, and another may have taken its place.
        if let Some(ours) = all.iter().filter(named).find(|batch| !refusal(batch)) {
            return self.created(ours, now);
        }
        let more = list.get("has_more").is_some_and(|more| more == true);
        // A page may have none of ours, and more to come.
        let last = list.get("last_id").and_then(Value::as_str).map(str::to_owned);
        let last = last.or_else(|| all.last().and_then(id)).filter(|_| more);
        if more && last.is_none() {
            return Err(odd());
        }
        // A creation that was lost, and lost again after this, gets nowhere.
        (self.misses.denials, self.misses.until) = (0, 0);
        let pause = BETWEEN_SEARCHES.min(self.longest.0);
        if let Stage::Create { asked, after, searches, not_before, .. } = &mut self.stage {
            *after = last;
            if after.is_none() {
                *searches += 1;
                *asked = *searches < SEARCHES;
                *not_before = if *asked { now.saturating_add(pause) } else { 0 };
            }
        }
        Ok(())
    }

    /// The batch as it is now.
    ///
    /// # Errors
    /// It has no status; it will be looked at again.
    pub fn seen(&mut self, batch: &Value, now: u64) -> Result<(), Odd> {
        if let Some(Ok(counts)) = batch.get("request_counts").map(Counts::deserialize) {
            self.counts = counts;
        }
        if let Some(at) = batch.get("expires_at").and_then(Value::as_u64) {
            self.expires_at = Some(at);
        }
        let longest = self.longest.0;
        let Stage::Look { file, at, wait, refusals, cancelling, .. } = &mut self.stage else { return Ok(()) };
        put_off(at, wait, now, longest);
        let status = batch.get("status").and_then(Value::as_str);
        let status = status.ok_or_else(|| Odd::new("batch", batch, "an object with a status"))?;
        self.misses = Misses::default();
        let ended = match status {
            "completed" => Ended::Completed,
            "expired" => Ended::Expired,
            "cancelled" => Ended::Cancelled,
            "cancelling" => {
                *cancelling = true;
                return Ok(());
            }
            "failed" if refusal(batch) && *refusals < MOST_REFUSALS => {
                let (file, refusals) = (file.clone(), *refusals + 1);
                let not_before = now.saturating_add(longest);
                self.stage = Stage::Create { file, asked: false, after: None, searches: 0, not_before, refusals };
                return Ok(());
            }
            "failed" => {
                let text = |field: &str| batch.pointer(&format!("/errors/data/0/{field}")).and_then(Value::as_str);
                let line = batch.pointer("/errors/data/0/line").and_then(Value::as_u64);
                let place = line.map(|line| format!(" (line {line})")).unwrap_or_default();
                let message = format!("{}{place}", text("message").unwrap_or("no message"));
                self.end(text("code").unwrap_or("batch_failed"), &message);
                return Ok(());
            }
            _ => {
                *cancelling = false;
                return Ok(());
            }
        };
        self.ended(batch, ended);
        Ok(())
    }

    /// It has ended, and something was done of it: in the files that it names.
    fn ended(&mut self, batch: &Value, mut ended: Ended) {
        let file =
            |field: &str| batch.get(field).and_then(Value::as_str).filter(|id| !id.is_empty()).map(str::to_owned);
        let (output, errors) = (file("output_file_id"), file("error_file_id"));
        let answers = self.counts.completed;
        let nowhere = output.is_none() && (answers > 0 || (errors.is_none() && ended == Ended::Completed));
        if let Stage::Look { unnamed, .. } = &mut self.stage
            && nowhere
        {
            *unnamed += 1;
            if *unnamed < MOST_UNNAMED {
                return;
            }
            // Its requests would go a second time otherwise, at twice the price.
            let message =
                format!("the service says that it has ended with {answers} answers, and names no file of them");
            ended = Ended::failed("no_output_file", &message);
        }
        let files: Vec<String> = [&output, &errors].into_iter().flatten().cloned().collect();
        self.files.extend(files.iter().cloned());
        self.stage = if files.is_empty() { Stage::Over { ended } } else { Stage::Download { files, errors, ended } };
    }

    /// What was in the file is merged and kept.
    pub fn downloaded(&mut self) {
        self.done();
        if let Stage::Download { files, ended, .. } = &mut self.stage {
            if !files.is_empty() {
                files.remove(0);
            }
            if files.is_empty() {
                self.stage = Stage::Over { ended: ended.clone() };
            }
        }
    }

    fn end(&mut self, code: &str, message: &str) {
        self.stage = Stage::Over { ended: Ended::failed(code, message) };
    }
}

fn id(object: &Value) -> Option<String> {
    object.get("id").and_then(Value::as_str).filter(|id| !id.is_empty()).map(str::to_owned)
}

/// It has failed for the account's limit of tokens that may wait.
fn refusal(batch: &Value) -> bool {
    batch.get("status").is_some_and(|status| status == "failed")
        && batch.pointer("/errors/data/0/code").is_some_and(|code| code == "token_limit_exceeded")
}

fn longer(wait: u64, longest: u64) -> u64 {
    (wait + wait.div_ceil(2)).min(longest)
}

fn put_off(at: &mut u64, wait: &mut u64, now: u64, longest: u64) {
    *at = now.saturating_add(*wait);
    *wait = longer(*wait, longest);
}

#[cfg(test)]
mod tests;
