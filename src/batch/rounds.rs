//! What is not urgent, in batches: rounds of gathering and waiting.
//!
//! In a round all items go as far as they can without an answer; their requests wait in the job. Then batches are made of all of them
//! ([`super::store::Store::batch_up`]), each with a file that is made of the job when it is wanted, and each goes its way ([`Batch`]): what to do next
//! is on the disk before it is done, so that whoever is killed goes on with the batch that there is, and never makes a second one. What
//! has come is merged into the job, and the next round begins, with repairs and mergers.
//!
//! What is sent directly: what follows from answers, where it is all there is and less than [`Rounds::few`]; what fits into no file; what
//! a batch was not able to answer, or has expired twice. Told to stop, it leaves: batches go on at the service.
//!
//! Files hold what people said, and are deleted at the service when their batch is over and merged; those that could not be are when
//! the run ends, or another one does ([`sweep`]). One stays: a file whose upload nobody has heard the end of. The service forgets it after
//! 30 days, and it has the batch's name.
use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use aws_lc_rs::rand;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use serde::Deserialize;
use tempfile::{NamedTempFile, TempPath};
use tokio::{
    fs::File,
    io::AsyncWriteExt as _,
    time::{self, Instant},
};

use super::{
    extract::batchapi::{
        Batch, Results,
        file::Limits,
        job::{Do, Ended},
        results::Answer,
    },
    relay::NoBatch,
    store::{Came, Store, StoreError},
    work::{Run, Stopped, usage_of},
};
use crate::{
    admit::price::Usd,
    text::Kind,
    wall::{unix_now, unix_now_ms},
};

/// Answers that are merged at once.
const AT_ONCE: usize = 500;
/// Longest line of an answer, bytes.
const LONGEST_LINE: usize = 64 << 20;
/// What is not begun within this, seconds, will not be soon; and when it may be.
const SILENT: u64 = 300;
const LATER_MS: u64 = 600_000;
/// Files are not deleted for longer than this.
const SWEEP: Duration = Duration::from_secs(30);
/// Longest list of them that is shown, characters.
const SHOWN: usize = 300;

/// How batches are made.
#[derive(Debug)]
pub struct Rounds {
    /// What a file may hold.
    pub limits: Limits,
    /// What follows from answers is sent directly where it is less than this.
    pub few: u64,
    /// Longest wait between two looks at a batch, seconds.
    pub look_every: u64,
    /// Batches that are under way shall end, and no new ones begin.
    pub cancel: bool,
    afoot: Mutex<BTreeMap<i64, Batch>>,
}

/// The batches that are under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Afoot {
    /// How many.
    pub batches: usize,
    /// Requests in them; 0 as long as the service has not counted them.
    pub requests: u64,
    /// Of them answered, or failed.
    pub done: u64,
    /// When the first of them is given up by the service, Unix seconds.
    pub until: Option<u64>,
}

impl Rounds {
    /// With these limits; see the fields.
    pub fn new(limits: Limits, few: u64, look_every: u64, cancel: bool) -> Self {
        Self { limits, few, look_every, cancel, afoot: Mutex::default() }
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<i64, Batch>> {
        self.afoot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn afoot(&self) -> Option<Afoot> {
        let all = self.all();
        let counts = || all.values().map(Batch::counts);
        (!all.is_empty()).then(|| Afoot {
            batches: all.len(),
            requests: counts().map(|counts| counts.total).sum(),
            done: counts().map(|counts| counts.completed + counts.failed).sum(),
            until: all.values().filter_map(Batch::expires_at).min(),
        })
    }
}

/// Round after round, until nothing is left to do.
pub(super) async fn run(run: &Arc<Run>, rounds: &Rounds) -> Result<(), StoreError> {
    loop {
        if !rounds.cancel {
            run.items(false).await;
        }
        if run.stopped().is_some() {
            return Ok(());
        }
        let freed = match rounds.cancel {
            true => 0,
            false => {
                let (limits, few) = (rounds.limits, rounds.few);
                run.on_disk(move |store| store.batch_up(limits, few, name)).await?.1
            }
        };
        let live = run.on_disk(|store| store.live_batches()).await?;
        if live.is_empty() && freed == 0 {
            return Ok(());
        }
        let mut ways: FuturesUnordered<_> =
            live.into_iter().map(|(n, batch)| Way { run, rounds, n, batch }.go()).collect();
        let mut why = None;
        loop {
            let ended = tokio::select! {
                ended = ways.next() => ended,
                () = run.stopping().cancelled() => return Ok(()),
            };
            match ended.transpose()? {
                None => break,
                Some(Ended::Completed | Ended::Expired) => {}
                Some(Ended::Cancelled) => {
                    let message = "the batch was cancelled; what was done of it is kept, and paid".to_owned();
                    why = why.or(Some(("batch_cancelled".to_owned(), message)));
                }
                Some(Ended::Failed { code, message }) => {
                    why = Some((code, format!("the batch has failed: {message}")));
                }
            }
        }
        if why.is_some() || rounds.cancel {
            // What has come is taken along.
            run.items(true).await;
            if let Some((code, message)) = why {
                run.stop(Stopped::Refused { code, message, again_at: None });
            }
            return Ok(());
        }
    }
}

/// A batch's name, which no other has.
fn name() -> String {
    let mut random = [0; 16];
    // Without chance it is still told apart, by the time.
    if rand::fill(&mut random).is_err() {
        random = u128::from(unix_now_ms()).to_be_bytes();
    }
    format!("vrb-{}", URL_SAFE_NO_PAD.encode(random))
}

/// One batch, and how far it is.
struct Way<'a> {
    run: &'a Arc<Run>,
    rounds: &'a Rounds,
    n: i64,
    batch: Batch,
}

impl Way<'_> {
    /// To its end.
    async fn go(mut self) -> Result<Ended, StoreError> {
        self.batch.look_every(self.rounds.look_every);
        self.batch.resumed(unix_now());
        if self.rounds.cancel {
            self.batch.cancel();
        }
        loop {
            let step = self.batch.next(unix_now());
            self.keep().await?;
            let done = match &step {
                Do::Over(ended) => return self.over(ended.clone()).await,
                Do::Wait(until) => {
                    time::sleep(Duration::from_secs(until.saturating_sub(unix_now()))).await;
                    continue;
                }
                Do::Upload => self.upload().await?,
                Do::Create(body) => {
                    let created = self.run.relay().create_batch(body).await;
                    created.map(|batch| {
                        if self.batch.created(&batch, unix_now()).is_err() {
                            self.batch.lost(unix_now());
                        }
                    })
                }
                Do::Find { after } => {
                    let page = self.run.relay().list_batches(after.as_deref()).await;
                    page.map(|page| {
                        if self.batch.listed(&page, unix_now()).is_err() {
                            self.batch.lost(unix_now());
                        }
                    })
                }
                Do::Look(id) => {
                    let seen = self.run.relay().look_at_batch(id).await;
                    seen.map(|batch| drop(self.batch.seen(&batch, unix_now())))
                }
                Do::Cancel(id) => {
                    let seen = self.run.relay().cancel_batch(id).await;
                    seen.map(|batch| drop(self.batch.seen(&batch, unix_now())))
                }
                Do::Download(file) => self.download(file).await?,
            };
            if let Err(no) = done {
                self.failed(&step, no).await;
            }
        }
    }

    /// It has ended, and what came of it is in the job.
    async fn over(self, ended: Ended) -> Result<Ended, StoreError> {
        // Whoever wants no more of it wants nothing sent in its place.
        let given_up = self.rounds.cancel && !matches!(ended, Ended::Failed { .. });
        let (n, over) = (self.n, if given_up { Ended::Cancelled } else { ended.clone() });
        let direct = over == Ended::Completed;
        let rest = self.run.on_disk(move |store| store.batch_over(n, &over)).await?;
        if direct && rest > 0 {
            let all = self.batch.counts().total;
            self.run.note(format!(
                "{rest} of {all} requests of a batch have no answer, and are asked directly, at the usual price"
            ));
        }
        self.rounds.all().remove(&n);
        // Whoever comes too late here is met by the sweep.
        if let Ok(tidied) = time::timeout(SWEEP, tidy(self.run, n, self.batch)).await {
            tidied?;
        }
        Ok(ended)
    }

    /// How far it is, on the disk and on the screen.
    async fn keep(&self) -> Result<(), StoreError> {
        let (n, batch) = (self.n, self.batch.clone());
        self.rounds.all().insert(n, batch.clone());
        self.run.on_disk(move |store| store.put_batch(n, &batch)).await
    }

    /// A step was not done.
    async fn failed(&mut self, step: &Do, no: NoBatch) {
        let now = unix_now();
        match no {
            NoBatch::Stop { code, message, wait } => {
                let again_at = wait.map(|wait| unix_now_ms() + u64::try_from(wait.as_millis()).unwrap_or(0));
                self.stop(code, message, again_at).await
            }
            // It may run, so that it is not made once more; the job keeps that it is to be looked for.
            NoBatch::Never { code, message } if matches!(step, Do::Find { .. }) => {
                let message = format!("whether a batch that was asked for is there cannot be found out: {message}");
                self.stop(code, message, None).await
            }
            NoBatch::Gone if matches!(step, Do::Upload | Do::Find { .. }) => {
                let message = "there is nobody here who takes batches".to_owned();
                self.stop("not_found".to_owned(), message, None).await
            }
            NoBatch::Later { code, message } => {
                self.batch.refused(step, &code, &message, true, now);
                self.give_up_if_stuck(&code, &message, now).await;
            }
            NoBatch::Never { code, message } => self.batch.refused(step, &code, &message, false, now),
            NoBatch::Gone => self.batch.gone(step, now),
            NoBatch::Lost(why) => {
                tracing::info!(%why, "a step of a batch is done once more");
                self.batch.lost(now);
                self.give_up_if_stuck("service_unavailable", &why, now).await;
            }
        }
    }

    /// What has not begun does not get on by itself, as a batch does that is looked at in vain: another run may go on with it.
    async fn give_up_if_stuck(&self, code: &str, why: &str, now: u64) {
        if self.batch.stuck_since().is_some_and(|since| now.saturating_sub(since) > SILENT) {
            self.stop(code.to_owned(), why.to_owned(), Some(unix_now_ms() + LATER_MS)).await
        }
    }

    /// The run ends, and whoever waits for it leaves now.
    async fn stop(&self, code: String, message: String, again_at: Option<u64>) {
        self.run.stop(Stopped::Refused { code, message, again_at });
        std::future::pending().await
    }

    async fn upload(&mut self) -> Result<Result<(), NoBatch>, StoreError> {
        let file = match self.file().await? {
            Ok(file) => file,
            Err(error) => {
                let (code, message) = ("no_room".to_owned(), format!("{}: {error}", self.run.folder().display()));
                return Ok(Err(NoBatch::Stop { code, message, wait: None }));
            }
        };
        let name = format!("{}.jsonl", self.batch.key());
        let uploaded = self.run.relay().upload_batch(&file, name).await;
        Ok(uploaded.and_then(|object| self.batch.uploaded(&object).map_err(|odd| NoBatch::Lost(odd.to_string()))))
    }

    /// The lines, in a file of a moment.
    async fn file(&self) -> Result<Result<TempPath, std::io::Error>, StoreError> {
        let path: PathBuf = self.run.folder().to_owned();
        let made = NamedTempFile::new_in(path).map(NamedTempFile::into_parts);
        let (file, path) = match made {
            Ok(made) => made,
            Err(error) => return Ok(Err(error)),
        };
        let (mut file, n, mut after) = (File::from_std(file), self.n, i64::MIN);
        loop {
            let (lines, last) = self.run.on_disk(move |store| store.batch_lines(n, after)).await?;
            if lines.is_empty() {
                return Ok(file.flush().await.map(|()| path));
            }
            if let Err(error) = file.write_all(lines.as_bytes()).await {
                return Ok(Err(error));
            }
            after = last;
        }
    }

    /// Merges what is in one of its files.
    async fn download(&mut self, file: &str) -> Result<Result<(), NoBatch>, StoreError> {
        let n = self.n;
        let keys = self.run.on_disk(move |store| store.batch_keys(n)).await?;
        let mut merger = Merger { way: self, results: Results::new(keys), came: Vec::new() };
        let read = merger.file(file).await?;
        // However it ended, what came is paid.
        merger.put().await?;
        let odd = merger.results.odd();
        if odd.broken + odd.unknown > 0 {
            tracing::info!(odd.broken, odd.unknown, odd.doubled, "lines of a batch that gave nothing");
        }
        if read.is_ok() {
            self.batch.downloaded();
        }
        Ok(read)
    }
}

/// Deletes what batches that are over have left at the service, of this run or earlier ones.
pub(super) async fn sweep(run: &Run) {
    if matches!(run.stopped(), Some(Stopped::Asked | Stopped::Job(_))) {
        return;
    }
    let swept = async {
        let end = Instant::now() + SWEEP;
        for (n, batch) in run.on_disk(Store::littering).await? {
            match time::timeout_at(end, tidy(run, n, batch)).await {
                Ok(tidied) => tidied?,
                Err(_) => break,
            }
        }
        run.on_disk(Store::littering).await
    };
    match swept.await {
        Err(error) => run.stop(Stopped::Job(error.to_string())),
        Ok(left) if left.is_empty() => {}
        Ok(left) => {
            let files: Vec<&str> = left.iter().flat_map(|(_, batch)| batch.files()).map(String::as_str).collect();
            let names = files.join(", ").chars().take(SHOWN).collect::<String>();
            run.note(format!(
                "{} files of batches are still at the service, until --resume deletes them: {names}",
                files.len()
            ));
        }
    }
}

/// Deletes the files of a batch that is over. What is not deleted stays noted: whoever is killed here tries once more.
async fn tidy(run: &Run, n: i64, mut batch: Batch) -> Result<(), StoreError> {
    for file in batch.files().to_vec() {
        match run.relay().delete_file(&file).await {
            Ok(_) | Err(NoBatch::Gone) => batch.deleted(&file),
            Err(no) => tracing::info!(?no, file, "a file of a batch is not deleted"),
        }
    }
    run.on_disk(move |store| store.put_batch(n, &batch)).await
}

/// Answers on their way into the job.
struct Merger<'a, 'b> {
    way: &'a Way<'b>,
    results: Results,
    came: Vec<(String, Came)>,
}

impl Merger<'_, '_> {
    async fn file(&mut self, file: &str) -> Result<Result<(), NoBatch>, StoreError> {
        let mut response = match self.way.run.relay().batch_file(file).await {
            Ok(response) => response,
            Err(no) => return Ok(Err(no)),
        };
        let mut rest = Vec::new();
        loop {
            let piece = match response.chunk().await {
                Ok(Some(piece)) => piece,
                Ok(None) => break,
                // What came is kept; the rest comes with the next try.
                Err(_) => return Ok(Err(NoBatch::Lost("the file broke off".to_owned()))),
            };
            rest.extend_from_slice(&piece);
            let Some(end) = rest.iter().rposition(|b| *b == b'\n').map(|end| end + 1) else {
                if rest.len() > LONGEST_LINE {
                    rest.clear();
                }
                continue;
            };
            let later = rest.split_off(end);
            for line in std::mem::replace(&mut rest, later).split(|b| *b == b'\n') {
                self.line(line).await?;
            }
        }
        self.line(&rest).await?;
        Ok(Ok(()))
    }

    async fn line(&mut self, line: &[u8]) -> Result<(), StoreError> {
        let Some((key, answer)) = self.results.line(line) else { return Ok(()) };
        let came = match answer {
            Answer::Again => return Ok(()),
            Answer::Failed { code, message } => Came::Failed { code, message },
            Answer::Response(body) => {
                let body = body.to_string();
                let usage = usage_of(Kind::Response, body.as_bytes(), cost(line));
                Came::Answer(body, usage)
            }
        };
        self.came.push((key, came));
        if self.came.len() >= AT_ONCE { self.put().await } else { Ok(()) }
    }

    async fn put(&mut self) -> Result<(), StoreError> {
        let (n, came) = (self.way.n, std::mem::take(&mut self.came));
        if came.is_empty() {
            return Ok(());
        }
        self.way.run.on_disk(move |store| store.merge(n, &came, unix_now_ms())).await
    }
}

/// What a line has cost, where a relay says it.
fn cost(line: &[u8]) -> Option<Usd> {
    #[derive(Deserialize)]
    struct Priced {
        voxrelay_cost_usd: Option<Usd>,
    }
    serde_json::from_slice::<Priced>(line).ok()?.voxrelay_cost_usd
}
