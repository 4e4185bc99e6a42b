//! Answers for whoever comes again: a request with an `Idempotency-Key` is paid once, and the same one that comes later gets its answer.
//!
//! The oldest answers go when there are too many bytes of them; a request that still runs stays known, however long it runs. One tenant's keys
//! are nothing to another's.
use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::watch, time::Instant};

use super::answer::Kept;

/// How long an answer is kept after it was given.
const REMEMBERED: Duration = Duration::from_secs(600);
/// What all of them may hold, bytes; and those of one tenant.
const MOST: usize = 64 << 20;
const MOST_OF_TENANT: usize = MOST / 2;
/// What an answer takes beside its body, bytes.
const AROUND: usize = 1_536;

/// Whose key it is: tenant, end user, key.
pub type Key = (String, String, String);
/// Where an answer comes to; none in it: there is none that could be given again.
pub type Landing = watch::Receiver<Option<Option<Arc<Kept>>>>;

/// What a request with a key is.
#[derive(Debug)]
pub enum Begin {
    /// The first: its answer is to be landed.
    First(Land),
    /// One that comes again.
    Again(Landing),
    /// Another request than the first one with this key.
    Other,
}

/// The answers of a process.
#[derive(Debug, Default)]
pub struct Answers(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    all: HashMap<Key, Slot>,
    /// Those that were given, the oldest first.
    given: VecDeque<(Instant, u64, Key)>,
    bytes: HashMap<String, usize>,
    whole: usize,
    last: u64,
}

#[derive(Debug)]
struct Slot {
    mark: [u8; 32],
    number: u64,
    bytes: usize,
    landing: Landing,
}

/// A first request's. Dropped without an answer, its key is forgotten, and the next one is a first one again.
#[derive(Debug)]
pub struct Land {
    state: Arc<Mutex<State>>,
    key: Key,
    number: u64,
    to: watch::Sender<Option<Option<Arc<Kept>>>>,
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Answers {
    /// Looks up what a request is. `mark`: tells requests apart.
    pub fn begin(&self, key: Key, mark: [u8; 32]) -> Begin {
        let mut state = lock(&self.0);
        state.forget_old(Instant::now());
        if let Some(slot) = state.all.get(&key) {
            return if slot.mark == mark { Begin::Again(slot.landing.clone()) } else { Begin::Other };
        }
        state.last += 1;
        let (number, (to, landing)) = (state.last, watch::channel(None));
        state.all.insert(key.clone(), Slot { mark, number, bytes: 0, landing });
        Begin::First(Land { state: self.0.clone(), key, number, to })
    }
}

impl Land {
    /// This is the answer.
    pub fn keep(self, kept: Arc<Kept>) {
        let bytes = kept.body.len() + AROUND;
        // Whoever waits gets it, also where it is not kept.
        let _ = self.to.send(Some(Some(kept)));
        let mut state = lock(&self.state);
        let (key, number) = (self.key.clone(), self.number);
        if let Some(slot) = state.all.get_mut(&key).filter(|slot| slot.number == number) {
            slot.bytes = bytes;
            state.whole += bytes;
            *state.bytes.entry(key.0.clone()).or_default() += bytes;
            state.given.push_back((Instant::now(), number, key.clone()));
        }
        state.make_room(&key.0);
    }
}

impl Drop for Land {
    fn drop(&mut self) {
        if self.to.borrow().is_some() {
            return;
        }
        let mut state = lock(&self.state);
        if state.all.get(&self.key).is_some_and(|slot| slot.number == self.number) {
            state.all.remove(&self.key);
        }
        drop(state);
        let _ = self.to.send(Some(None));
    }
}

impl State {
    fn forget_old(&mut self, now: Instant) {
        while self.given.front().is_some_and(|(at, ..)| now >= *at + REMEMBERED) {
            self.forget(0);
        }
    }

    fn make_room(&mut self, tenant: &str) {
        while self.whole > MOST {
            self.forget(0);
        }
        while self.bytes.get(tenant).is_some_and(|bytes| *bytes > MOST_OF_TENANT) {
            let Some(at) = self.given.iter().position(|(_, _, key)| key.0 == tenant) else { return };
            self.forget(at);
        }
    }

    fn forget(&mut self, at: usize) {
        let Some((_, number, key)) = self.given.remove(at) else { return };
        let Some(slot) = self.all.get(&key).filter(|slot| slot.number == number) else { return };
        let bytes = slot.bytes;
        self.all.remove(&key);
        self.whole -= bytes;
        if let Some(of_tenant) = self.bytes.get_mut(&key.0) {
            *of_tenant -= bytes;
            if *of_tenant == 0 {
                self.bytes.remove(&key.0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderMap;
    use bytes::Bytes;

    use super::*;

    fn key(tenant: &str, name: &str) -> Key {
        (tenant.to_owned(), String::new(), name.to_owned())
    }

    fn answer(bytes: usize) -> Arc<Kept> {
        Arc::new(Kept { head: HeaderMap::new(), body: Bytes::from(vec![b'x'; bytes]) })
    }

    fn first(answers: &Answers, key: Key) -> Land {
        match answers.begin(key, [1; 32]) {
            Begin::First(land) => land,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_leads_to_its_answer_for_ten_minutes_after_it_was_given() {
        let answers = Answers::default();
        let land = first(&answers, key("a", "k"));
        tokio::time::advance(REMEMBERED * 2).await;
        let Begin::Again(mut landing) = answers.begin(key("a", "k"), [1; 32]) else { panic!("it still runs") };
        assert!(matches!(answers.begin(key("a", "k"), [2; 32]), Begin::Other));
        land.keep(answer(3));
        assert_eq!(landing.wait_for(Option::is_some).await.unwrap().clone().flatten().unwrap().body, "xxx");
        let _others = first(&answers, key("b", "k"));
        tokio::time::advance(REMEMBERED - Duration::from_secs(1)).await;
        assert!(matches!(answers.begin(key("a", "k"), [1; 32]), Begin::Again(_)));
        tokio::time::advance(Duration::from_secs(1)).await;
        let land = first(&answers, key("a", "k"));
        let Begin::Again(mut landing) = answers.begin(key("a", "k"), [1; 32]) else { panic!() };
        drop(land);
        assert!(landing.wait_for(Option::is_some).await.unwrap().clone().flatten().is_none(), "a failure is none");
        let _again = first(&answers, key("a", "k"));
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_go_for_new_ones_and_one_tenant_does_not_drive_others_out() {
        let answers = Answers::default();
        first(&answers, key("b", "other")).keep(answer(1_000));
        for n in 0..100 {
            first(&answers, key("a", &n.to_string())).keep(answer(1 << 20));
        }
        assert!(matches!(answers.begin(key("b", "other"), [1; 32]), Begin::Again(_)));
        assert!(matches!(answers.begin(key("a", "99"), [1; 32]), Begin::Again(_)));
        let _forgotten = first(&answers, key("a", "3"));
        let state = lock(&answers.0);
        assert!(state.bytes["a"] <= MOST_OF_TENANT && state.whole <= MOST);
        assert_eq!(state.whole, state.bytes.values().sum::<usize>());
    }
}
