//! Bodies that are held in memory: so many bytes of all, and no tenant more than half of them, so that nobody's large recordings stand in the
//! way of others' small questions.
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time,
};

use super::Kind;

/// Whoever waits longer for room is to come again.
const PATIENCE: Duration = Duration::from_secs(30);
/// What is counted, bytes.
const UNIT: usize = 1 << 10;

/// The room of a process.
#[derive(Debug)]
pub struct Room {
    questions: Pool,
    recordings: Pool,
}

#[derive(Debug)]
struct Pool {
    all: Arc<Semaphore>,
    units: usize,
    by_tenant: Mutex<HashMap<String, Arc<Semaphore>>>,
}

/// Some of it.
#[derive(Debug)]
pub struct Held {
    _own: Option<OwnedSemaphorePermit>,
    _all: OwnedSemaphorePermit,
}

impl Room {
    /// So many bytes; a quarter of them for questions, but at least for two of the largest of each kind.
    pub fn new(bytes: usize, question: usize, recording: usize) -> Self {
        let questions = (bytes / 4).max(2 * question);
        Self { questions: Pool::new(questions), recordings: Pool::new((bytes - bytes / 4).max(2 * recording)) }
    }

    /// Waits for room for a body; `tenant`: none where there are none. None: it was waited for long enough.
    pub async fn hold(&self, kind: Kind, tenant: Option<&str>, bytes: usize) -> Option<Held> {
        match kind {
            Kind::Response => self.questions.hold(tenant, bytes).await,
            Kind::Transcription => self.recordings.hold(tenant, bytes).await,
        }
    }

    /// The same for a long line of a batch's file. What has a day stands with the recordings, in no question's way.
    pub async fn hold_line(&self, tenant: Option<&str>, bytes: usize) -> Option<Held> {
        self.recordings.hold(tenant, bytes).await
    }
}

impl Pool {
    fn new(bytes: usize) -> Self {
        let units = (bytes / UNIT).max(2);
        Self { all: Arc::new(Semaphore::new(units)), units, by_tenant: Mutex::default() }
    }

    async fn hold(&self, tenant: Option<&str>, bytes: usize) -> Option<Held> {
        let units = u32::try_from(bytes.div_ceil(UNIT).clamp(1, self.units / 2)).ok()?;
        let own = tenant.map(|tenant| self.of(tenant));
        time::timeout(PATIENCE, async {
            // First its own: who waits there stands in nobody's way.
            let own = match own {
                Some(own) => Some(own.acquire_many_owned(units).await.ok()?),
                None => None,
            };
            let all = self.all.clone().acquire_many_owned(units).await.ok()?;
            Some(Held { _own: own, _all: all })
        })
        .await
        .ok()?
    }

    fn of(&self, tenant: &str) -> Arc<Semaphore> {
        let mut all = self.by_tenant.lock().unwrap_or_else(PoisonError::into_inner);
        let half = self.units / 2;
        // Nobody holds, or waits for, what only the table has.
        all.retain(|name, own| name == tenant || Arc::strong_count(own) > 1);
        all.entry(tenant.to_owned()).or_insert_with(|| Arc::new(Semaphore::new(half))).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn no_tenant_has_more_than_half_and_questions_have_their_own() {
        let room = Room::new(80 << 20, 1 << 20, 10 << 20);
        let hold = |tenant, mib: usize| room.hold(Kind::Transcription, Some(tenant), mib << 20);
        let held = [hold("a", 10).await.unwrap(), hold("a", 10).await.unwrap(), hold("a", 10).await.unwrap()];
        let began = time::Instant::now();
        assert!(hold("a", 10).await.is_none());
        assert_eq!(began.elapsed(), PATIENCE);
        let _other = hold("b", 30).await.unwrap();
        assert!(hold("c", 1).await.is_none(), "all is taken");
        let _question = room.hold(Kind::Response, Some("a"), 1 << 20).await.unwrap();
        drop(held);
        let _again = hold("a", 30).await.unwrap();
        let nobody = Room::new(80 << 20, 1 << 20, 10 << 20);
        let _first = nobody.hold(Kind::Transcription, None, 30 << 20).await.unwrap();
        let _second = nobody.hold(Kind::Transcription, None, 30 << 20).await.unwrap();
        // One that is larger than anything gets half, and no more than that is ever wanted.
        let room = Room::new(0, 1 << 20, 1 << 20);
        let _large = room.hold(Kind::Transcription, Some("a"), 1 << 30).await.unwrap();
    }
}
