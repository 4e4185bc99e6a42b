//! The run: items out of the job, through the knife and the relay, and back into the job.
//!
//! Many items are under way at once, and pieces of a long one, too; how many requests that may be is [`Gate`]'s to say. Whatever is paid for
//! is in the job before anything else is done with it. What one file cannot have does not keep others from theirs; what no request can have
//! stops the run, with what is done kept. Decides nothing about how a thing looks on a screen ([`super::show`]).
//!
//! [`look`] is before a request, [`pieces`] makes several of a long recording, [`ask`] sends one as often as it takes.
use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::{
    sync::Semaphore,
    task::{JoinSet, spawn_blocking},
};
use tokio_util::sync::CancellationToken;

pub(super) use self::ask::{Asker, usage_of};
use self::look::Copies;
use super::{
    cut::{self, Plan},
    engine::{Engine, Wish},
    facts::{Facts, NO_WORDS},
    gate::Gate,
    join::{self, join},
    relay::Relay,
    rounds::{self, Afoot, Rounds},
    source::{Source, Sources},
    store::{Content, End, Item, Known, Store, StoreError, Transcript},
};
use crate::wall::unix_now_ms;

mod ask;
mod look;
mod pieces;
#[cfg(test)]
mod tests;

/// Items under way beside the requests that run: those that are being looked at, or cut.
const AHEAD: usize = 3;

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
    sources: Box<dyn Source>,
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
    notes: Mutex<Vec<String>>,
    /// Files that are decoded at once: more than the machine has cores for would only hold memory.
    hands: Semaphore,
    /// What is fetched has room only as long as it is not too much.
    copies: Arc<Copies>,
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

impl Run {
    /// A run that has not begun.
    pub fn new(plans: Plans) -> Arc<Self> {
        let Plans { store, sources, engine, relay, gate, wish, limits, extract, folder, texts, rounds } = plans;
        let (stop, stopped) = (CancellationToken::new(), Mutex::new(None));
        let (retried, notes) = (AtomicU64::new(0), Mutex::new(Vec::new()));
        Arc::new(Self {
            store,
            sources: Box::new(sources),
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
            notes,
            hands: Semaphore::new(std::thread::available_parallelism().map_or(2, |cores| cores.get().max(2))),
            copies: Arc::default(),
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

    /// Does all that waits, or only what has come from batches. What was sent when it is stopped is paid for, and waited for.
    pub(super) async fn items(self: &Arc<Self>, only_ready: bool) {
        let mut items = JoinSet::new();
        loop {
            let room = (self.gate.files() + AHEAD).saturating_sub(items.len());
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
                // Where all that was sent fails, others are tried.
                () = self.gate.next_failure() => {}
                () = self.stop.cancelled() => break,
            }
        }
        while items.join_next().await.is_some() {}
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
            // Its text was paid for: only facts are missing.
            _ if item.has_transcript && self.is_unchanged(item).await? => self.words_of(item.n).await?,
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

    /// The words that an item has, or its end if they are all that is wanted.
    async fn words_of(&self, n: i64) -> Result<Words, Halt> {
        let all = self.on_disk(move |store| store.has_all(n)).await?;
        Ok(if all { Words::Ended(End::Done) } else { Words::There })
    }

    /// Its words.
    async fn transcript(self: &Arc<Self>, item: &Item) -> Result<Words, Halt> {
        let n = item.n;
        let here = self.open(&item.source).await?;
        let (plan, content) = self.look(here.path()).await?;
        if let Plan::TooShort { length } = plan {
            self.on_disk(move |store| store.measure(n, &content)).await?;
            let message =
                format!("{:.1} s long, shorter than {} s", length.as_secs_f64(), self.limits.shortest.as_secs_f64());
            return Ok(Words::Ended(End::Skipped { code: "too_short".to_owned(), message }));
        }
        if let Some(words) = self.known(n, content).await? {
            return Ok(words);
        }
        let parts = match plan {
            Plan::Whole(whole) => self.whole(item, whole).await?,
            Plan::Pieces(pieces) => self.pieces(item, pieces, here.path()).await?,
            Plan::TooShort { .. } => return Err(Halt::Later),
        };
        drop(here);
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
        let here = self.open(&item.source).await?;
        let (text, content) = self.read_text(here.path()).await?;
        if let Some(words) = self.known(n, content).await? {
            return Ok(words);
        }
        let transcript = Transcript { text, ..Transcript::default() };
        self.on_disk(move |store| store.put_transcript(n, &transcript)).await?;
        Ok(Words::There)
    }

    /// There is no room for what is made of files here: the run ends, as where there is none for the job.
    fn full(&self, folder: &Path) -> Halt {
        self.stop(Stopped::Job(StoreError::Full { file: folder.to_owned() }.to_string()));
        Halt::Later
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
