//! The run: items out of the job, through the knife and the relay, and back into the job.
//!
//! Many items are under way at once, and pieces of a long one, too; how many requests that may be is [`Gate`]'s to say. Whatever is paid for
//! is in the job before anything else is done with it. What one file cannot have does not keep others from theirs; what no request can have
//! stops the run, with what is done kept. Decides nothing about how a thing looks on a screen ([`super::show`]).
use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rand::Rng as _;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tempfile::NamedTempFile;
use tokio::{
    sync::Semaphore,
    task::{JoinSet, spawn_blocking},
    time::{self, Instant},
};
use tokio_util::sync::CancellationToken;

use super::{
    cut::{self, Pieces, Plan, Whole},
    engine::{Answer, Engine, Failure, Upload, Wish},
    facts::{Facts, NO_WORDS},
    gate::{Gate, Pass},
    join::{self, join},
    relay::Relay,
    rounds::{self, Afoot, Rounds},
    source::{Opened, Source, Sources},
    store::{Begun, Content, End, Item, Known, Part, Store, StoreError, Task, Transcript, Usage},
    width::class,
};
use crate::{
    admit::price::Usd,
    text::{Kind, outcome::Outcome},
    wall::unix_now_ms,
};

/// Items under way beside the requests that run: those that are being looked at, or cut.
const AHEAD: usize = 3;
/// Tries of a request whose answer did not come.
const TRIES: u32 = 6;
/// Before the second one; doubles.
const PAUSE: Duration = Duration::from_millis(500);
/// Requests that run when it ends in order may take so long.
const LAST: Duration = Duration::from_secs(600);
/// So many failures in a row, and nothing good between them: it is the service, and not the files. It is asked again after a pause.
const IN_A_ROW: u32 = 8;
const OUTAGE: Duration = Duration::from_secs(5);
/// Nothing good has come for so long: the run ends, and may go on later.
const SILENT: Duration = Duration::from_secs(300);
const LATER: Duration = Duration::from_secs(600);
/// Texts are not longer, bytes.
const MAX_TEXT: u64 = 64 << 20;

/// Why a run came to its end before its work did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stopped {
    /// Somebody said so.
    Asked,
    /// No request would work.
    Refused {
        /// For programs.
        code: String,
        /// For people.
        message: String,
        /// When it may work again, Unix ms; none: when somebody has changed something.
        again_at: Option<u64>,
    },
    /// The job cannot be written.
    Job(String),
}

/// A run.
#[derive(Debug)]
pub struct Run {
    store: Arc<Store>,
    sources: Sources,
    engine: Arc<dyn Engine>,
    relay: Relay,
    gate: Gate,
    wish: Wish,
    limits: cut::Limits,
    extract: Option<Facts>,
    /// Pieces are kept here until they are sent.
    folder: PathBuf,
    texts: bool,
    rounds: Option<Rounds>,
    stop: CancellationToken,
    stopped: Mutex<Option<Stopped>>,
    retried: AtomicU64,
    /// When something came last, how often nothing has since, and whether anything ever did.
    came: Mutex<(Instant, u32, bool)>,
    notes: Mutex<Vec<String>>,
    /// Files that are decoded at once: more than the machine has cores for would only hold memory.
    hands: Semaphore,
}

/// What a run needs.
#[derive(Debug)]
pub struct Plans {
    /// The job.
    pub store: Arc<Store>,
    /// Where files are.
    pub sources: Sources,
    /// Who writes recordings down.
    pub engine: Arc<dyn Engine>,
    /// Who answers questions about them.
    pub relay: Relay,
    /// How many at once.
    pub gate: Gate,
    /// How they are to be written down.
    pub wish: Wish,
    /// What goes into one request.
    pub limits: cut::Limits,
    /// What is to be made of the texts; none: nothing.
    pub extract: Option<Facts>,
    /// Where pieces are kept.
    pub folder: PathBuf,
    /// The items are texts already.
    pub texts: bool,
    /// What is not urgent goes in batches; none: all goes at once.
    pub rounds: Option<Rounds>,
}

/// Why something is not there.
pub(super) enum Halt {
    /// It will not be in this run.
    Bad {
        /// For programs.
        code: String,
        /// For people.
        message: String,
    },
    /// The run ends: another one goes on with it.
    Later,
    /// The job cannot be written, so that nothing can be kept.
    Job(StoreError),
}

impl Halt {
    pub(super) fn bad(code: &str, message: impl Into<String>) -> Self {
        Self::Bad { code: code.to_owned(), message: message.into() }
    }
}

impl From<StoreError> for Halt {
    fn from(error: StoreError) -> Self {
        Self::Job(error)
    }
}

/// What became of an item's words.
enum Words {
    /// They are in the job.
    There,
    /// Another item with the same content is just being worked on, and this one waits for it.
    Another,
    /// Nothing more is to be done.
    Ended(End),
}

/// What was heard in a piece, and the model that has heard it.
type Heard = (join::Part, String);

/// A piece that was written down, as the job keeps it.
#[derive(Debug, Serialize, Deserialize)]
struct Written {
    transcript: join::Transcript,
    model: String,
}

impl Run {
    /// A run that has not begun.
    pub fn new(plans: Plans) -> Arc<Self> {
        let Plans { store, sources, engine, relay, gate, wish, limits, extract, folder, texts, rounds } = plans;
        let (stop, stopped) = (CancellationToken::new(), Mutex::new(None));
        let (retried, notes) = (AtomicU64::new(0), Mutex::new(Vec::new()));
        let came = Mutex::new((Instant::now(), 0, false));
        Arc::new(Self {
            store,
            sources,
            engine,
            relay,
            gate,
            wish,
            limits,
            extract,
            folder,
            texts,
            rounds,
            stop,
            stopped,
            retried,
            came,
            notes,
            hands: Semaphore::new(std::thread::available_parallelism().map_or(2, |cores| cores.get().max(2))),
        })
    }

    /// The gate.
    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    /// The job.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Requests that were sent once more.
    pub fn retried(&self) -> u64 {
        self.retried.load(Ordering::Relaxed)
    }

    /// What somebody should know of files that were done all the same.
    pub fn notes(&self) -> Vec<String> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Nothing new is begun from now on.
    pub fn stop(&self, why: Stopped) {
        let mut stopped = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        stopped.get_or_insert(why);
        self.stop.cancel();
    }

    /// Why it has stopped; none: it has not.
    pub fn stopped(&self) -> Option<Stopped> {
        self.stopped.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether requests about texts go in batches.
    pub(super) fn has_batches(&self) -> bool {
        self.rounds.is_some()
    }

    /// The relay.
    pub(super) fn relay(&self) -> &Relay {
        &self.relay
    }

    /// Where files that live for a moment are kept.
    pub(super) fn folder(&self) -> &std::path::Path {
        &self.folder
    }

    /// Told when it is to end.
    pub(super) fn stopping(&self) -> &CancellationToken {
        &self.stop
    }

    /// The batches that are under way at the service; none: none is.
    pub fn afoot(&self) -> Option<Afoot> {
        self.rounds.as_ref().and_then(Rounds::afoot)
    }

    /// Does all that waits, and what then comes of batches.
    pub async fn run(self: &Arc<Self>) {
        match &self.rounds {
            None => self.items(false).await,
            Some(rounds) => {
                if let Err(error) = rounds::run(self, rounds).await {
                    self.stop(Stopped::Job(error.to_string()));
                }
            }
        }
        rounds::sweep(self).await;
    }

    /// Does all that waits, or only what has come from batches. What runs when it is stopped is waited for, but not for long.
    pub(super) async fn items(self: &Arc<Self>, only_ready: bool) {
        let mut items = JoinSet::new();
        loop {
            let room = (self.gate.standing().width + AHEAD).saturating_sub(items.len());
            let more = match self.stop.is_cancelled() || room == 0 {
                true => Vec::new(),
                false => match self.on_disk(move |store| claim(store, room, only_ready)).await {
                    Ok(more) => more,
                    Err(error) => {
                        self.stop(Stopped::Job(error.to_string()));
                        Vec::new()
                    }
                },
            };
            for item in more {
                let run = self.clone();
                items.spawn(async move { run.item(item).await });
            }
            tokio::select! {
                done = items.join_next() => match done {
                    None => return,
                    Some(Ok(Ok(()))) => {}
                    Some(Ok(Err(error))) => self.stop(Stopped::Job(error.to_string())),
                    Some(Err(panicked)) => self.stop(Stopped::Job(panicked.to_string())),
                },
                () = self.stop.cancelled() => break,
            }
        }
        let last = async { while items.join_next().await.is_some() {} };
        let _ = time::timeout(LAST, last).await;
    }

    pub(super) async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let store = self.store.clone();
        match spawn_blocking(move || work(&store)).await {
            Ok(done) => done,
            Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
        }
    }

    /// One item, to its end.
    async fn item(self: Arc<Self>, item: Item) -> Result<(), StoreError> {
        let n = item.n;
        let end = match self.item_to_end(&item).await {
            Ok(None) => return Ok(()),
            Ok(Some(end)) => end,
            Err(Halt::Bad { code, message }) if code == NO_WORDS => End::Skipped { code, message },
            Err(Halt::Bad { code, message }) => End::Failed { code, message },
            Err(Halt::Later) => End::Released,
            Err(Halt::Job(error)) => return Err(error),
        };
        self.on_disk(move |store| store.end(n, &end, unix_now_ms())).await
    }

    /// `None`: it waits for another one with the same content, or for a batch.
    async fn item_to_end(self: &Arc<Self>, item: &Item) -> Result<Option<End>, Halt> {
        let words = match self.texts {
            _ if item.ready => Words::There,
            true => self.text(item).await?,
            false => self.transcript(item).await?,
        };
        match words {
            Words::There => {}
            Words::Another => return Ok(None),
            Words::Ended(end) => return Ok(Some(end)),
        }
        match &self.extract {
            Some(facts) if !facts.of(self, item).await? => Ok(None),
            _ => Ok(Some(End::Done)),
        }
    }

    /// Its words.
    async fn transcript(self: &Arc<Self>, item: &Item) -> Result<Words, Halt> {
        let n = item.n;
        let opened = self.open(&item.source).await?;
        let (path, limits) = (opened.path().to_owned(), self.limits);
        let looked = {
            let _hand = self.hands.acquire().await;
            spawn_blocking(move || look(&path, &limits)).await
        };
        let (plan, content) = looked.map_err(|panicked| Halt::bad("undecodable", panicked.to_string()))??;
        if let Plan::TooShort { length } = plan {
            let message =
                format!("{:.1} s long, shorter than {} s", length.as_secs_f64(), self.limits.shortest.as_secs_f64());
            return Ok(Words::Ended(End::Skipped { code: "too_short".to_owned(), message }));
        }
        if let Some(words) = self.known(n, content).await? {
            return Ok(words);
        }
        let parts = match plan {
            Plan::Whole(whole) => self.whole(n, whole).await?,
            Plan::Pieces(pieces) => self.pieces(item, pieces).await?,
            Plan::TooShort { .. } => return Err(Halt::Later),
        };
        drop(opened);
        let model = parts.first().map_or_else(|| self.wish.model.clone(), |(_, model)| model.clone());
        let parts: Vec<join::Part> = parts.into_iter().map(|(part, _)| part).collect();
        let transcript = kept(join(&parts), self.wish.language.as_ref(), model);
        self.on_disk(move |store| store.put_transcript(n, &transcript)).await?;
        Ok(Words::There)
    }

    /// Says what is in an item's file; its words, if nobody need ask for them any more.
    async fn known(&self, n: i64, content: Content) -> Result<Option<Words>, Halt> {
        Ok(match self.on_disk(move |store| store.describe(n, &content)).await? {
            Known::New => None,
            Known::Held => Some(Words::Another),
            Known::Transcribed { complete: true } => Some(Words::Ended(End::Done)),
            Known::Transcribed { complete: false } => Some(Words::There),
        })
    }

    /// A text that is there already, as [`Self::transcript`].
    async fn text(self: &Arc<Self>, item: &Item) -> Result<Words, Halt> {
        let n = item.n;
        let opened = self.open(&item.source).await?;
        let path = opened.path().to_owned();
        let read = spawn_blocking(move || read_text(&path)).await;
        let (text, content) = read.unwrap_or_else(|panicked| std::panic::resume_unwind(panicked.into_panic()))?;
        if let Some(words) = self.known(n, content).await? {
            return Ok(words);
        }
        let transcript = Transcript { text, ..Transcript::default() };
        self.on_disk(move |store| store.put_transcript(n, &transcript)).await?;
        Ok(Words::There)
    }

    async fn open(&self, source: &str) -> Result<Opened, Halt> {
        let mut tries = 0;
        loop {
            let error = match self.sources.open(source).await {
                Ok(opened) => return Ok(opened),
                Err(error) => error,
            };
            tries += 1;
            if !error.is_passing() || tries >= TRIES {
                return Err(Halt::bad(error.code(), error.to_string()));
            }
            if self.pause(tries).await {
                return Err(Halt::Later);
            }
        }
    }

    /// Waits before another try; whether the run ends meanwhile.
    async fn pause(&self, tries: u32) -> bool {
        let pause = PAUSE * 2_u32.pow(tries.min(6) - 1);
        let pause = pause.mul_f64(rand::rng().random_range(0.75..1.25));
        tokio::select! {
            () = time::sleep(pause) => false,
            () = self.stop.cancelled() => true,
        }
    }

    /// A recording that is sent as it is.
    async fn whole(self: &Arc<Self>, n: i64, whole: Whole) -> Result<Vec<Heard>, Halt> {
        let Whole { path, name, media_type, length, .. } = whole;
        let part = Part { task: Task::Piece, number: 0, seal: format!("whole {}", length.as_millis()) };
        let pass = self.enter().await?;
        let upload = Upload { path, name, media_type };
        let Written { transcript, model } = self.piece(n, part, upload, pass).await?;
        let (start, overlap) = (Duration::ZERO, Duration::ZERO);
        Ok(vec![(join::Part { start, length, overlap, transcript }, model)])
    }

    /// Leave for a request, if the run does not end.
    async fn enter(&self) -> Result<Pass, Halt> {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Err(Halt::Later),
            pass = self.gate.enter() => Ok(pass),
        }
    }

    /// A recording in pieces: the next one is cut when there is leave to send it.
    async fn pieces(self: &Arc<Self>, item: &Item, mut pieces: Pieces) -> Result<Vec<Heard>, Halt> {
        let n = item.n;
        let mut requests: JoinSet<(usize, Result<Heard, Halt>)> = JoinSet::new();
        let mut done = BTreeMap::new();
        let mut bad = None;
        let mut more = true;
        loop {
            while let Some(ended) = if more { requests.try_join_next() } else { requests.join_next().await } {
                let (index, ended) = ended.unwrap_or_else(|panicked| std::panic::resume_unwind(panicked.into_panic()));
                match ended {
                    Ok(part) => drop(done.insert(index, part)),
                    Err(Halt::Job(error)) => return Err(error.into()),
                    Err(halt) => bad = bad.or(Some(halt)),
                }
            }
            // What has been sent is paid for: its answers are taken down before it ends.
            if bad.is_some() {
                more = false;
            }
            if !more {
                if requests.is_empty() {
                    break;
                }
                continue;
            }
            let pass = match self.enter().await {
                Ok(pass) => pass,
                Err(halt) => {
                    bad = Some(halt);
                    continue;
                }
            };
            let folder = self.folder.clone();
            let hand = self.hands.acquire().await;
            let cut = spawn_blocking(move || {
                let piece = NamedTempFile::new_in(&folder)
                    .map_err(|error| Halt::bad("no_room", format!("{}: {error}", folder.display())))
                    .and_then(|mut file| {
                        let piece = pieces.write_next(file.as_file_mut());
                        piece.map(|piece| (piece, file)).map_err(|error| Halt::bad(code_of(&error), error.to_string()))
                    });
                (pieces, piece)
            });
            let cut = cut.await;
            drop(hand);
            let (back, cut) = match cut {
                Ok(cut) => cut,
                // A decoder that falls over one file is no reason to leave the others.
                Err(panicked) => {
                    bad = Some(Halt::bad("undecodable", panicked.to_string()));
                    while let Some(last) = requests.join_next().await {
                        let (_, last) =
                            last.unwrap_or_else(|panicked| std::panic::resume_unwind(panicked.into_panic()));
                        if let Err(Halt::Job(error)) = last {
                            return Err(error.into());
                        }
                    }
                    break;
                }
            };
            pieces = back;
            let (piece, file) = match cut {
                Ok((Some(piece), file)) => (piece, file),
                Ok((None, _)) => {
                    if pieces.truncated() {
                        self.note(format!(
                            "{}: cut short, or part of it cannot be read; what is there was written down",
                            item.id
                        ));
                    }
                    more = false;
                    continue;
                }
                Err(halt) => {
                    bad = Some(halt);
                    continue;
                }
            };
            let run = self.clone();
            requests.spawn(async move {
                let number = u32::try_from(piece.index).unwrap_or(u32::MAX);
                let seal = format!("{}+{}", piece.start.as_millis(), piece.length.as_millis());
                let part = Part { task: Task::Piece, number, seal };
                let name = format!("piece-{}.wav", piece.index + 1);
                let upload = Upload { path: file.path().to_owned(), name, media_type: "audio/wav" };
                let written = run.piece(n, part, upload, pass).await;
                drop(file);
                let part = |Written { transcript, model }| {
                    (join::Part { start: piece.start, length: piece.length, overlap: piece.overlap, transcript }, model)
                };
                (piece.index, written.map(part))
            });
        }
        bad.map_or_else(|| Ok(done.into_values().collect()), Err)
    }

    /// One recording, or one piece of one: from the job if it was answered, and else from the service.
    async fn piece(self: &Arc<Self>, n: i64, part: Part, upload: Upload, pass: Pass) -> Result<Written, Halt> {
        let send = |key: String| {
            let upload = &upload;
            async move { self.engine.transcribe(upload, &self.wish, &key).await }
        };
        let read = |answer: &Answer| {
            let transcript = join::Transcript::read(&answer.body).map_err(|error| error.to_string())?;
            let model = answer.route.as_deref().and_then(|route| route.rsplit('/').next());
            let model = model.unwrap_or(&self.wish.model).to_owned();
            serde_json::to_string(&Written { transcript, model }).map_err(|error| error.to_string())
        };
        let bytes = std::fs::metadata(&upload.path).map_or(0, |there| there.len());
        let class = class(0, bytes);
        let answer = self.ask(n, part, pass, (Kind::Transcription, class), send, read).await?;
        serde_json::from_str(&answer).map_err(|error| Halt::bad("job_damaged", error.to_string()))
    }

    /// Asks for a response about an item's text; its body, as it came.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) async fn respond(self: &Arc<Self>, n: i64, part: Part, body: &Value) -> Result<String, Halt> {
        let pass = self.enter().await?;
        let send = |key: String| async move { self.relay.respond(body, &key).await };
        let read = |answer: &Answer| {
            serde_json::from_slice::<Value>(&answer.body)
                .map_err(|error| format!("the answer is not JSON: {error}"))?;
            String::from_utf8(answer.body.to_vec()).map_err(|error| error.to_string())
        };
        self.ask(n, part, pass, (Kind::Response, class(1, body.to_string().len() as u64)), send, read).await
    }

    /// One request, as often as it takes. `read`: what of its answer is kept.
    async fn ask<F: Future<Output = Result<Answer, Failure>>>(
        self: &Arc<Self>,
        n: i64,
        part: Part,
        pass: Pass,
        (kind, class): (Kind, usize),
        send: impl Fn(String) -> F,
        read: impl Fn(&Answer) -> Result<String, String>,
    ) -> Result<String, Halt> {
        let (part, mut pass) = (Arc::new(part), Some(pass));
        let mut tries = 0;
        loop {
            let asked = part.clone();
            let key = match self.on_disk(move |store| store.begin(n, &asked, unix_now_ms())).await? {
                Begun::Answered(answer) => return Ok(answer),
                Begun::Ask { key } => key,
            };
            let own = match pass.take() {
                Some(pass) => pass,
                None => self.enter().await?,
            };
            let began = Instant::now();
            let failure = match send(key).await {
                Ok(answer) => {
                    if !answer.repeated {
                        own.answered(began.elapsed(), answer.waited, class);
                    }
                    *self.came.lock().unwrap_or_else(PoisonError::into_inner) = (Instant::now(), 0, true);
                    let usage = usage(kind, &answer);
                    let asked = part.clone();
                    let kept = read(&answer);
                    match kept {
                        Ok(kept) => {
                            let told = kept.clone();
                            self.on_disk(move |store| store.answered(n, &asked, &told, &usage, unix_now_ms())).await?;
                            return Ok(kept);
                        }
                        Err(problem) => {
                            let told = problem.clone();
                            let billed =
                                move |store: &Store| store.failed_try(n, &asked, &told, Some(&usage), unix_now_ms());
                            self.on_disk(billed).await?;
                            tries += 3;
                            if tries >= TRIES {
                                return Err(Halt::bad("strange_answer", problem));
                            }
                            continue;
                        }
                    }
                }
                Err(failure) => failure,
            };
            drop(own);
            match failure {
                Failure::Item { code, message } => return Err(Halt::Bad { code, message }),
                Failure::Stop { code, message, wait } => {
                    let again_at = wait.map(|wait| unix_now_ms() + u64::try_from(wait.as_millis()).unwrap_or(0));
                    self.stop(Stopped::Refused { code, message, again_at });
                    return Err(Halt::Later);
                }
                Failure::Wait { wait, message } => {
                    self.nothing_came(false, &message);
                    self.gate.refused(wait.mul_f64(rand::rng().random_range(1.0..1.1)), &message);
                    self.retried.fetch_add(1, Ordering::Relaxed);
                }
                Failure::Again { message } => {
                    let out = self.nothing_came(true, &message);
                    self.retried.fetch_add(1, Ordering::Relaxed);
                    if out {
                        self.gate.refused(OUTAGE.mul_f64(rand::rng().random_range(1.0..1.2)), &message);
                        continue;
                    }
                    tries += 1;
                    let (asked, told) = (part.clone(), message.clone());
                    self.on_disk(move |store| store.failed_try(n, &asked, &told, None, unix_now_ms())).await?;
                    if tries >= TRIES {
                        return Err(Halt::bad("no_answer", message));
                    }
                    if self.pause(tries).await {
                        return Err(Halt::Later);
                    }
                }
            }
        }
    }

    /// A request has failed, and another one of it may not. Whether the service is out rather than this file a bad one.
    fn nothing_came(&self, broken: bool, message: &str) -> bool {
        let (since, in_a_row, ever) = {
            let mut came = self.came.lock().unwrap_or_else(PoisonError::into_inner);
            came.1 += u32::from(broken);
            *came
        };
        // Nobody waits for what never was there.
        if since.elapsed() > SILENT || (!ever && in_a_row >= IN_A_ROW) {
            let again_at = unix_now_ms() + u64::try_from(LATER.as_millis()).unwrap_or(0);
            let (code, message) = ("service_unavailable".to_owned(), message.to_owned());
            self.stop(Stopped::Refused { code, message, again_at: Some(again_at) });
        }
        in_a_row >= IN_A_ROW
    }

    pub(super) fn note(&self, note: String) {
        const MOST: usize = 100;
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        if notes.len() < MOST {
            notes.push(note);
        }
    }
}

/// A text as the job keeps it.
fn kept(joined: join::Transcript, language: Option<&String>, model: String) -> Transcript {
    Transcript {
        text: joined.text,
        language: joined.language.or_else(|| language.cloned()),
        model,
        segments: joined.segments,
    }
}

fn claim(store: &Store, room: usize, only_ready: bool) -> Result<Vec<Item>, StoreError> {
    if only_ready { store.claim_ready(room, unix_now_ms()) } else { store.claim(room, unix_now_ms()) }
}

/// What an answer says that it has used.
fn usage(kind: Kind, answer: &Answer) -> Usage {
    usage_of(kind, &answer.body, answer.cost)
}

/// The same of a body that cost so much.
pub(super) fn usage_of(kind: Kind, body: &[u8], cost: Option<Usd>) -> Usage {
    let outcome = Outcome::read(kind, body);
    let tokens = outcome.as_ref().and_then(|outcome| outcome.usage).unwrap_or_default();
    let seconds = outcome.and_then(|outcome| outcome.seconds).unwrap_or_default();
    Usage {
        input_tokens: tokens.input_tokens,
        output_tokens: tokens.output_tokens,
        audio_ms: u64::try_from(Duration::try_from_secs_f64(seconds).unwrap_or_default().as_millis())
            .unwrap_or(u64::MAX),
        cost: cost.unwrap_or_default(),
        unpriced: u64::from(cost.is_none()),
    }
}

/// What is to be done with a file, and what is in it.
fn look(path: &std::path::Path, limits: &cut::Limits) -> Result<(Plan, Content), Halt> {
    let plan = cut::plan(path, limits).map_err(|error| Halt::bad(code_of(&error), error.to_string()))?;
    let hash = cut::fingerprint(path).map_err(|error| Halt::bad("unreadable", error.to_string()))?;
    let bytes = std::fs::metadata(path).map_or(0, |there| there.len());
    let length = match &plan {
        Plan::Whole(whole) => whole.length,
        Plan::Pieces(pieces) => pieces.about().unwrap_or_default(),
        Plan::TooShort { length } => *length,
    };
    let duration_ms = u64::try_from(length.as_millis()).unwrap_or(u64::MAX);
    Ok((plan, Content { hash, bytes, duration_ms }))
}

/// A text file, whole.
fn read_text(path: &std::path::Path) -> Result<(String, Content), Halt> {
    let unreadable =
        |error: &dyn std::fmt::Display| Halt::bad("unreadable", format!("{}: cannot be read: {error}", path.display()));
    let bytes = std::fs::metadata(path).map_err(|error| unreadable(&error))?.len();
    if bytes > MAX_TEXT {
        return Err(Halt::bad("too_large", format!("{}: {bytes} bytes; allowed: {MAX_TEXT}", path.display())));
    }
    let text = std::fs::read(path).map_err(|error| unreadable(&error))?;
    let text = String::from_utf8(text)
        .map_err(|_| Halt::bad("not_text", format!("{}: it is not UTF-8 text", path.display())))?;
    if text.trim().is_empty() {
        return Err(Halt::bad("empty", format!("{}: there is no text in it", path.display())));
    }
    let hash = cut::fingerprint(path).map_err(|error| unreadable(&error))?;
    Ok((text, Content { hash, bytes, duration_ms: 0 }))
}

/// For programs.
fn code_of(error: &cut::CutError) -> &'static str {
    match error {
        cut::CutError::Write { .. } => "no_room",
        cut::CutError::Limits { .. } => "limits",
        cut::CutError::Decode(error) => error.code(),
    }
}
