//! What is before a request: the file is opened, or fetched, and looked at.
//!
//! What is fetched takes room on the disk until it is written down. So only some are fetched at once, and none while much is there already.
use std::{
    io,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, Semaphore, SemaphorePermit},
    task::spawn_blocking,
};
use tokio_util::sync::CancellationToken;

use super::{Halt, Run};
use crate::batch::{
    cut::{self, CutError, Plan, fingerprint},
    outage::TRIES,
    source::{FetchError, Opened, is_url},
    store::{Content, Item},
};

/// So many are fetched at once.
const FETCHED_AT_ONCE: usize = 8;
/// None is while copies of so many bytes are there.
const MOST_COPIED: u64 = 4 << 30;
/// A server that asks for more than this is asked again all the same.
const LONGEST_AFTER: Duration = Duration::from_secs(300);
/// Texts are not longer, bytes.
const MAX_TEXT: u64 = 64 << 20;

/// Room on the disk for what is fetched.
#[derive(Debug)]
pub(super) struct Copies {
    under_way: Semaphore,
    bytes: Mutex<u64>,
    freed: Notify,
}

impl Default for Copies {
    fn default() -> Self {
        Self { under_way: Semaphore::new(FETCHED_AT_ONCE), bytes: Mutex::new(0), freed: Notify::new() }
    }
}

impl Copies {
    fn bytes(&self) -> MutexGuard<'_, u64> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for leave to fetch one; none after the end.
    async fn room(&self) -> Option<SemaphorePermit<'_>> {
        let leave = self.under_way.acquire().await.ok();
        loop {
            let freed = self.freed.notified();
            if *self.bytes() < MOST_COPIED {
                return leave;
            }
            freed.await;
        }
    }

    /// One is there that has so many bytes.
    fn keep(self: &Arc<Self>, bytes: u64) -> Kept {
        *self.bytes() += bytes;
        Kept { copies: self.clone(), bytes }
    }
}

/// A copy's share of the room.
#[derive(Debug)]
struct Kept {
    copies: Arc<Copies>,
    bytes: u64,
}

impl Drop for Kept {
    fn drop(&mut self) {
        *self.copies.bytes() -= self.bytes;
        self.copies.freed.notify_waiters();
    }
}

/// A file that is here, as long as this is held.
#[derive(Debug)]
pub(super) struct Here {
    opened: Opened,
    /// Given back after the file is gone.
    _kept: Option<Kept>,
}

impl Here {
    /// Where.
    pub(super) fn path(&self) -> &Path {
        self.opened.path()
    }
}

/// Nothing more fits on the disk, or is allowed there.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

impl Run {
    /// Makes a file of an item's place, as often as it takes.
    pub(super) async fn open(&self, source: &str) -> Result<Here, Halt> {
        let mut tries = 0;
        loop {
            let opened = tokio::select! {
                biased;
                () = self.stop.cancelled() => return Err(Halt::Later),
                opened = self.open_once(source) => opened,
            };
            let error = match opened {
                Ok(here) => return Ok(here),
                Err(error) => error,
            };
            tries += 1;
            let after = match &error {
                FetchError::Copy(error) if is_full(error) => return Err(self.full(&self.folder)),
                FetchError::Status { after, .. } => after.unwrap_or_default().min(LONGEST_AFTER),
                _ => Duration::ZERO,
            };
            if !error.is_passing() || tries >= TRIES {
                return Err(Halt::bad(error.code(), error.to_string()));
            }
            if self.pause(tries, after).await {
                return Err(Halt::Later);
            }
        }
    }

    async fn open_once(&self, source: &str) -> Result<Here, FetchError> {
        if !is_url(source) {
            return Ok(Here { opened: self.sources.open(source).await?, _kept: None });
        }
        let _leave = self.copies.room().await;
        let opened = self.sources.open(source).await?;
        let bytes = std::fs::metadata(opened.path()).map_or(0, |there| there.len());
        Ok(Here { opened, _kept: Some(self.copies.keep(bytes)) })
    }

    /// Works on a file, with no more of them at once than the machine has cores.
    pub(super) async fn by_hand<T: Send + 'static>(
        &self,
        work: impl FnOnce(&CancellationToken) -> T + Send + 'static,
    ) -> Result<T, Halt> {
        let stop = self.stop.clone();
        let _hand = tokio::select! {
            biased;
            () = self.stop.cancelled() => return Err(Halt::Later),
            hand = self.hands.acquire() => hand,
        };
        // A decoder that falls over one file is no reason to leave the others.
        spawn_blocking(move || work(&stop)).await.map_err(|panicked| Halt::bad("undecodable", panicked.to_string()))
    }

    /// What is to be done with a file, and what is in it.
    pub(super) async fn look(&self, path: &Path) -> Result<(Plan, Content), Halt> {
        let (path, limits) = (path.to_owned(), self.limits);
        self.by_hand(move |stop| look(&path, &limits, stop)).await?
    }

    /// A text file, whole.
    pub(super) async fn read_text(&self, path: &Path) -> Result<(String, Content), Halt> {
        let path = path.to_owned();
        self.by_hand(move |stop| read_text(&path, stop)).await?
    }

    /// Whether an item whose text is in the job has the file that it was made of, as far as anybody can tell: what lies elsewhere, and what is
    /// gone, is not asked for again.
    pub(super) async fn is_unchanged(&self, item: &Item) -> Result<bool, Halt> {
        if is_url(&item.source) {
            return Ok(true);
        }
        let (path, hash) = (item.source.clone(), item.hash);
        self.by_hand(move |stop| {
            if !std::fs::metadata(&path).is_ok_and(|there| there.is_file()) {
                return Ok(true);
            }
            match fingerprint(&path, stop) {
                Ok(found) => Ok(Some(found) == hash),
                Err(CutError::Stopped { .. }) => Err(Halt::Later),
                Err(_) => Ok(true),
            }
        })
        .await?
    }
}

fn look(path: &Path, limits: &cut::Limits, stop: &CancellationToken) -> Result<(Plan, Content), Halt> {
    let plan = cut::plan(path, limits, stop).map_err(|error| halt(&error))?;
    let hash = fingerprint(path, stop).map_err(|error| unreadable(&error))?;
    let bytes = std::fs::metadata(path).map_or(0, |there| there.len());
    let length = match &plan {
        Plan::Whole(whole) => whole.length,
        Plan::Pieces(pieces) => pieces.about().unwrap_or_default(),
        Plan::TooShort { length } => *length,
    };
    let duration_ms = u64::try_from(length.as_millis()).unwrap_or(u64::MAX);
    Ok((plan, Content { hash, bytes, duration_ms }))
}

fn unreadable(error: &CutError) -> Halt {
    match error {
        CutError::Stopped { .. } => Halt::Later,
        other => Halt::bad("unreadable", other.to_string()),
    }
}

fn read_text(path: &Path, stop: &CancellationToken) -> Result<(String, Content), Halt> {
    let broken = |error: &io::Error| Halt::bad("unreadable", format!("{}: cannot be read: {error}", path.display()));
    let bytes = std::fs::metadata(path).map_err(|error| broken(&error))?.len();
    if bytes > MAX_TEXT {
        return Err(Halt::bad("too_large", format!("{}: {bytes} bytes; allowed: {MAX_TEXT}", path.display())));
    }
    let text = std::fs::read(path).map_err(|error| broken(&error))?;
    let text = String::from_utf8(text)
        .map_err(|_| Halt::bad("not_text", format!("{}: it is not UTF-8 text", path.display())))?;
    if text.trim().is_empty() {
        return Err(Halt::bad("empty", format!("{}: there is no text in it", path.display())));
    }
    let hash = fingerprint(path, stop).map_err(|error| unreadable(&error))?;
    Ok((text, Content { hash, bytes, duration_ms: 0 }))
}

/// What it means for a file that it cannot be cut.
pub(super) fn halt(error: &CutError) -> Halt {
    let code = match error {
        CutError::Stopped { .. } => return Halt::Later,
        CutError::Write { .. } => "no_room",
        CutError::Limits { .. } => "limits",
        CutError::Decode(error) => error.code(),
    };
    Halt::bad(code, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn much_that_is_there_keeps_more_from_being_fetched() {
        let copies = Arc::new(Copies::default());
        let large = copies.keep(MOST_COPIED);
        let small = copies.keep(1);
        let mut waiting = std::pin::pin!(copies.room());
        assert!(futures_util::poll!(waiting.as_mut()).is_pending());
        drop(small);
        assert!(futures_util::poll!(waiting.as_mut()).is_pending());
        drop(large);
        assert!(waiting.await.is_some());
        assert_eq!(*copies.bytes(), 0);
    }
}
