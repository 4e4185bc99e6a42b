//! One batch from its file to its end: upload, creation, waiting, download. Says what to do next ([`Batch::next`]) and is told what came
//! of it; waits for nothing itself. Times are Unix seconds: a batch outlives processes.
//!
//! A batch must not be created twice, for both would be paid. The state is kept *before* each step: where creation was asked for and its
//! answer is not known, the next step is to look for the batch by our own name in its `metadata`, and only where it is not there to create
//! it. Everything else may be done twice. What a state of the service's means for us:
//!
//! | `status` | next |
//! |---|---|
//! | `validating`, `in_progress`, `finalizing`, `cancelling`, one that is not known | wait, and look again |
//! | `completed` | download; what is missing goes directly |
//! | `expired` | download what was done; the rest goes into a further batch once, then directly |
//! | `cancelled` | download what was done and paid; the rest stays undone |
//! | `failed` | for the account's limit of waiting tokens: create it later; else the batch has failed, and nothing was done |
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

/// What to do. Keep the batch before doing it.
#[derive(Debug, Clone, PartialEq)]
pub enum Do {
    /// `POST /v1/files` with `purpose` `batch`, then [`Batch::uploaded`].
    Upload,
    /// `POST /v1/batches` with this body, then [`Batch::created`], [`Batch::refused`], or [`Batch::lost`] if nothing is known.
    Create(Value),
    /// `GET /v1/batches`, from this id on, then [`Batch::listed`].
    Find {
        /// `after`
        after: Option<String>,
    },
    /// Nothing, up to then; Unix seconds.
    Wait(u64),
    /// `GET /v1/batches/{id}`, then [`Batch::seen`] or [`Batch::lost`].
    Look(String),
    /// `POST /v1/batches/{id}/cancel`, then [`Batch::seen`] or [`Batch::lost`].
    Cancel(String),
    /// `GET /v1/files/{id}/content` for each, in this order, merge what is in them, then [`Batch::downloaded`].
    Download(Vec<String>),
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
    /// How long is waited between two looks at most, seconds.
    #[serde(skip)]
    longest: Longest,
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
    /// `asked`: creation was asked for, and nothing is known of it. `after`: so far it was looked for.
    Create {
        file: String,
        asked: bool,
        after: Option<String>,
        not_before: u64,
        refusals: u32,
    },
    Look {
        file: String,
        batch: String,
        at: u64,
        wait: u64,
        refusals: u32,
        cancelling: bool,
    },
    Download {
        files: Vec<String>,
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
        Self { key: key.to_owned(), stage, cancel: false, counts, expires_at: None, longest }
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

    /// The service's name of the batch, while it has one and is not over.
    pub fn id(&self) -> Option<&str> {
        match &self.stage {
            Stage::Look { batch, .. } => Some(batch),
            _ => None,
        }
    }

    /// The service has it, or its files.
    pub fn is_at_the_service(&self) -> bool {
        matches!(self.stage, Stage::Look { .. } | Stage::Download { .. })
    }

    /// Another process goes on with it at `now`: a creation that was asked for may still be on its way, and is looked for a little later.
    pub fn resumed(&mut self, now: u64) {
        if matches!(self.stage, Stage::Create { asked: true, .. }) {
            self.lost(now);
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
        match &mut self.stage {
            Stage::Upload => Do::Upload,
            Stage::Create { not_before, .. } if later(*not_before).is_some() => {
                *not_before = later(*not_before).unwrap_or(now);
                Do::Wait(*not_before)
            }
            Stage::Create { asked: true, after, .. } => Do::Find { after: after.clone() },
            Stage::Create { file, asked, .. } => {
                *asked = true;
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
            Stage::Download { files, .. } => Do::Download(files.clone()),
            Stage::Over { ended } => Do::Over(ended.clone()),
        }
    }

    /// The file is there; `file` is the service's answer.
    ///
    /// # Errors
    /// It names no file.
    pub fn uploaded(&mut self, file: &Value) -> Result<(), Odd> {
        let id = id(file).ok_or_else(|| Odd::new("file", file, "an object with an id"))?;
        if self.stage == Stage::Upload {
            self.stage = Stage::Create { file: id, asked: false, after: None, not_before: 0, refusals: 0 };
        }
        Ok(())
    }

    /// The batch is there; `batch` is the service's answer.
    ///
    /// # Errors
    /// It names no batch; it will be looked for.
    pub fn created(&mut self, batch: &Value, now: u64) -> Result<(), Odd> {
        let id = id(batch).ok_or_else(|| Odd::new("batch", batch, "an object with an id"))?;
        if let Stage::Create { file, refusals, .. } = &self.stage {
            let (file, refusals) = (file.clone(), *refusals);
            let first = FIRST_WAIT.min(self.longest.0);
            let (at, wait, cancelling) = (now.saturating_add(first), longer(first, self.longest.0), false);
            self.stage = Stage::Look { file, batch: id, at, wait, refusals, cancelling };
            self.seen(batch, now)?;
        }
        Ok(())
    }

    /// The service has said no to the file or to the creation: none was made. `again`: it may say yes later, as for 429 and 5xx.
    pub fn refused(&mut self, code: &str, message: &str, again: bool, now: u64) {
        let longest = self.longest.0;
        if self.stage == Stage::Upload && !again {
            return self.end(code, message);
        }
        let Stage::Create { asked, after, not_before, refusals, .. } = &mut self.stage else { return };
        if again && *refusals < MOST_REFUSALS {
            (*asked, *after) = (false, None);
            *refusals += 1;
            *not_before = now.saturating_add(longest);
        } else {
            self.end(code, message);
        }
    }

    /// What came of the last step is not known: the network was.
    pub fn lost(&mut self, now: u64) {
        match &mut self.stage {
            Stage::Create { not_before, .. } => *not_before = now.saturating_add(FIRST_WAIT.min(self.longest.0)),
            Stage::Look { at, wait, .. } => put_off(at, wait, now, self.longest.0),
            Stage::Upload | Stage::Download { .. } | Stage::Over { .. } => {}
        }
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
        if let Stage::Create { asked, after, .. } = &mut self.stage {
            let more = list.get("has_more").is_some_and(|more| more == true);
            // A page may have none of ours, and more to come.
            let last = list.get("last_id").and_then(Value::as_str).map(str::to_owned);
            *after = last.or_else(|| all.last().and_then(id)).filter(|_| more);
            *asked = after.is_some();
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
        let ended = match status.ok_or_else(|| Odd::new("batch", batch, "an object with a status"))? {
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
                self.stage = Stage::Create { file, asked: false, after: None, not_before, refusals };
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
        let file = |field: &str| batch.get(field).and_then(Value::as_str).map(str::to_owned);
        let files: Vec<String> = ["output_file_id", "error_file_id"].into_iter().filter_map(file).collect();
        self.stage = if files.is_empty() { Stage::Over { ended } } else { Stage::Download { files, ended } };
        Ok(())
    }

    /// The service does not know the batch, or its files, any more.
    pub fn gone(&mut self) {
        if matches!(self.stage, Stage::Look { .. } | Stage::Download { .. }) {
            self.end("batch_not_found", "the service does not know this batch or its files any more");
        }
    }

    /// What was in its files is merged and kept.
    pub fn downloaded(&mut self) {
        if let Stage::Download { ended, .. } = &self.stage {
            self.stage = Stage::Over { ended: ended.clone() };
        }
    }

    fn end(&mut self, code: &str, message: &str) {
        let (code, message) = (shortened(code, 100), shortened(message, 300));
        self.stage = Stage::Over { ended: Ended::Failed { code, message } };
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
mod tests {
    use serde_json::json;

    use super::*;

    fn batch(status: &str) -> Value {
        json!({"id": "batch_1", "object": "batch", "status": status, "metadata": {KEY: "k"},
            "output_file_id": null, "error_file_id": null, "request_counts": {"total": 3, "completed": 1, "failed": 0}})
    }

    /// A batch that was created at second 1,000.
    fn running() -> Batch {
        let mut it = Batch::new("k");
        it.uploaded(&json!({"id": "file-1"})).unwrap();
        assert!(matches!(it.next(1_000), Do::Create(_)));
        it.created(&batch("validating"), 1_000).unwrap();
        it
    }

    /// As another process would find it.
    fn kept(it: &Batch) -> Batch {
        serde_json::from_str(&serde_json::to_string(it).unwrap()).unwrap()
    }

    #[test]
    fn from_the_file_to_the_end() {
        let mut it = Batch::new("k");
        assert_eq!(it.next(1_000), Do::Upload);
        assert!(it.uploaded(&json!({})).is_err());
        it.uploaded(&json!({"id": "file-1", "object": "file"})).unwrap();
        let Do::Create(body) = it.next(1_000) else { panic!() };
        let want = json!({"input_file_id": "file-1", "endpoint": "/v1/responses", "completion_window": "24h",
            "metadata": {"voxrelay_batch": "k"}});
        assert_eq!(body, want);
        it.created(&batch("validating"), 1_000).unwrap();
        assert_eq!(it.id(), Some("batch_1"));
        let (mut now, mut waits) = (1_000, Vec::new());
        for status in ["in_progress"; 14].into_iter().chain(["of_tomorrow", "finalizing"]) {
            let Do::Wait(at) = it.next(now) else { panic!() };
            waits.push(at - now);
            now = at;
            it = kept(&it);
            assert_eq!(it.next(now), Do::Look("batch_1".to_owned()));
            it.seen(&batch(status), now).unwrap();
        }
        assert!(waits[0] <= 8 && waits.is_sorted() && waits[15] == LONGEST_WAIT, "{waits:?}");
        assert_eq!(it.counts(), Counts { total: 3, completed: 1, failed: 0 });
        let mut done = batch("completed");
        (done["output_file_id"], done["error_file_id"]) = ("file-2".into(), "file-3".into());
        it.seen(&done, now).unwrap();
        let files = vec!["file-2".to_owned(), "file-3".to_owned()];
        assert_eq!(kept(&it).next(now), Do::Download(files.clone()));
        assert_eq!(it.next(now), Do::Download(files), "as often as it takes");
        it.downloaded();
        assert_eq!(kept(&it).next(now), Do::Over(Ended::Completed));
        assert_eq!(it.id(), None);
    }

    #[test]
    fn each_end_has_its_meaning() {
        let failed = |code: &str, message: &str| Ended::Failed { code: code.to_owned(), message: message.to_owned() };
        let error = json!({"data": [{"code": "model_not_found", "message": "no such model", "line": 4}]});
        let table = [
            ("completed", json!("f"), json!(null), Ended::Completed, [Rest::Direct, Rest::Direct]),
            ("expired", json!("f"), json!(null), Ended::Expired, [Rest::Batch, Rest::Direct]),
            ("expired", json!(null), json!(null), Ended::Expired, [Rest::Batch, Rest::Direct]),
            ("cancelled", json!("f"), json!(null), Ended::Cancelled, [Rest::Left, Rest::Left]),
            (
                "failed",
                json!(null),
                error,
                failed("model_not_found", "no such model (line 4)"),
                [Rest::Left, Rest::Left],
            ),
            ("failed", json!(null), json!(null), failed("batch_failed", "no message"), [Rest::Left, Rest::Left]),
        ];
        for (status, output, errors, ended, rest) in table {
            let mut it = running();
            let mut object = batch(status);
            (object["output_file_id"], object["errors"]) = (output.clone(), errors);
            it.seen(&object, 1_010).unwrap();
            if output.is_string() {
                assert_eq!(it.next(1_010), Do::Download(vec!["f".to_owned()]), "{status}");
                it.downloaded();
            }
            assert_eq!(it.next(1_010), Do::Over(ended.clone()), "{status}");
            assert_eq!([ended.rest(0), ended.rest(1)], rest, "{status}");
        }
    }

    #[test]
    fn a_batch_is_never_created_twice() {
        let mut it = Batch::new("k");
        it.uploaded(&json!({"id": "file-1"})).unwrap();
        assert!(matches!(it.next(1_000), Do::Create(_)));
        // Killed before the answer: it is looked for, page by page, when it has had the time to arrive.
        let mut soon = kept(&it);
        soon.resumed(1_001);
        assert_eq!(soon.next(1_001), Do::Wait(1_001 + FIRST_WAIT));
        assert_eq!(soon.next(1_006), Do::Find { after: None });
        let mut it = kept(&it);
        assert_eq!(it.next(1_001), Do::Find { after: None });
        let other = json!({"id": "batch_0", "status": "completed", "metadata": {KEY: "other"}});
        it.listed(&json!({"data": [other, {"id": "batch_x", "metadata": null}], "has_more": true}), 1_001).unwrap();
        let mut it = kept(&it);
        assert_eq!(it.next(1_002), Do::Find { after: Some("batch_x".to_owned()) });
        let mut there = it.clone();
        there.listed(&json!({"data": [batch("in_progress")], "has_more": true}), 1_002).unwrap();
        assert_eq!(there.id(), Some("batch_1"));
        assert!(matches!(there.next(1_002), Do::Wait(_)));
        assert!(it.listed(&json!({}), 1_002).is_err());
        it.listed(&json!({"data": [other], "has_more": false}), 1_002).unwrap();
        assert!(matches!(it.next(1_003), Do::Create(_)), "it is not there");
        // The network was gone: the same, a little later.
        it.lost(1_003);
        assert_eq!(it.next(1_003), Do::Wait(1_003 + FIRST_WAIT));
        assert_eq!(it.next(1_010), Do::Find { after: None });
    }

    #[test]
    fn what_finds_no_place_waits_for_it() {
        let full = || {
            let mut object = batch("failed");
            object["errors"] = json!({"data": [{"code": "token_limit_exceeded", "message": "enqueued"}]});
            object
        };
        let mut it = running();
        it.seen(&full(), 2_000).unwrap();
        assert_eq!(it.next(2_000), Do::Wait(2_000 + LONGEST_WAIT));
        assert!(matches!(it.next(2_300), Do::Create(_)));
        // The one that had no place is not the one that is looked for.
        assert_eq!(it.next(2_301), Do::Find { after: None });
        it.listed(&json!({"data": [full()], "has_more": false}), 2_301).unwrap();
        assert!(matches!(it.next(2_302), Do::Create(_)));
        it.refused("rate_limit_exceeded", "later", true, 2_302);
        assert_eq!(it.next(2_302), Do::Wait(2_302 + LONGEST_WAIT));
        assert!(matches!(it.next(2_700), Do::Create(_)));
        let mut hopeless = it.clone();
        hopeless.refused("invalid_request", "no", false, 2_700);
        let want = Ended::Failed { code: "invalid_request".to_owned(), message: "no".to_owned() };
        assert_eq!(hopeless.next(2_700), Do::Over(want));
        let mut now = 2_700;
        let mut tries = 0;
        while !matches!(it.next(now), Do::Over(_)) {
            it.refused("rate_limit_exceeded", "later", true, now);
            now += LONGEST_WAIT;
            tries += 1;
        }
        assert!((500..600).contains(&tries), "{tries}");
    }

    #[test]
    fn cancelled_at_any_time() {
        let mut it = Batch::new("k");
        it.cancel();
        assert_eq!(it.next(1_000), Do::Over(Ended::Cancelled));

        let mut it = Batch::new("k");
        it.uploaded(&json!({"id": "file-1"})).unwrap();
        it.next(1_000);
        it.cancel();
        assert_eq!(it.next(1_000), Do::Find { after: None }, "it may be there");
        it.created(&batch("in_progress"), 1_000).unwrap();
        assert_eq!(it.next(1_000), Do::Cancel("batch_1".to_owned()));
        // Whether it was heard is looked for, and asked again where it was not; never without a pause.
        it.lost(1_000);
        assert!(matches!(it.next(1_000), Do::Wait(_)));
        assert_eq!(it.next(1_100), Do::Look("batch_1".to_owned()));
        it.seen(&batch("in_progress"), 1_100).unwrap();
        assert_eq!(kept(&it).next(1_100), Do::Cancel("batch_1".to_owned()));
        it.next(1_100);
        it.seen(&batch("cancelling"), 1_101).unwrap();
        assert!(matches!(it.next(1_101), Do::Wait(_)));
        let mut done = batch("cancelled");
        done["output_file_id"] = "file-2".into();
        it.seen(&done, 1_200).unwrap();
        assert_eq!(it.next(1_200), Do::Download(vec!["file-2".to_owned()]));
    }

    #[test]
    fn a_page_without_any_of_ours_is_not_the_last_one() {
        let mut it = Batch::new("k");
        it.uploaded(&json!({"id": "file-1"})).unwrap();
        assert!(matches!(it.next(1_000), Do::Create(_)));
        it.listed(&json!({"data": [], "has_more": true, "last_id": "batch_9"}), 1_000).unwrap();
        assert_eq!(it.next(1_000), Do::Find { after: Some("batch_9".to_owned()) });
    }

    #[test]
    fn a_file_that_is_refused_ends_it_and_looks_come_as_often_as_is_wanted() {
        let mut it = Batch::new("k");
        it.refused("too_large", "no", true, 1_000);
        assert_eq!(it.next(1_000), Do::Upload);
        it.refused("mixed_models", "Line 3", false, 1_000);
        assert!(matches!(it.next(1_000), Do::Over(Ended::Failed { code, .. }) if code == "mixed_models"));
        let mut it = Batch::new("k");
        it.look_every(1);
        it.uploaded(&json!({"id": "file-1"})).unwrap();
        it.next(1_000);
        let mut there = batch("in_progress");
        there["expires_at"] = 87_400.into();
        it.created(&there, 1_000).unwrap();
        assert_eq!(it.expires_at(), Some(87_400));
        for now in 1_000..1_010 {
            assert_eq!(it.next(now), Do::Wait(now + 1));
            it.seen(&there, now + 1).unwrap();
        }
    }

    #[test]
    fn odd_things_do_not_stop_it() {
        let mut it = running();
        assert!(it.seen(&json!({"id": "batch_1"}), 1_010).is_err());
        assert!(matches!(it.next(1_010), Do::Wait(_)));
        it.lost(1_020);
        assert!(matches!(it.next(1_020), Do::Wait(_)));
        assert_eq!(it.next(0), Do::Wait(LONGEST_WAIT), "a clock that was set back");
        assert_eq!(it.next(5_000), Do::Look("batch_1".to_owned()));
        it.gone();
        assert!(matches!(it.next(5_000), Do::Over(Ended::Failed { code, .. }) if code == "batch_not_found"));
    }
}
