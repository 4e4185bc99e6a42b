//! Requests that may come again: whoever repeats one with the same `Idempotency-Key` gets the first one's answer, and nothing is
//! begun twice.
//!
//! Keeps answers, not requests: what was asked for is told apart by a digest. One for each address that begins something.
use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use aws_lc_rs::digest::{SHA256, digest};
use axum::http::HeaderMap;
use tokio::{sync::watch, time::Instant};

/// How long a key is remembered.
const REMEMBERED: Duration = Duration::from_secs(600);
/// Keys that are remembered.
const KEYS: usize = 10_000;
/// Of one end user, or of a tenant that names none.
const KEYS_OF_ONE: usize = 2_000;

/// A tenant and an end user, and their key.
pub(crate) type Entry = (String, String);

/// Where an answer comes to.
pub(crate) type Landing<T> = watch::Receiver<Option<T>>;

/// Answers `T` by key, and what else belongs to each.
#[derive(Debug)]
pub(crate) struct Keys<T, X = ()>(Mutex<HashMap<Entry, Kept<T, X>>>);

impl<T, X> Default for Keys<T, X> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

#[derive(Debug)]
struct Kept<T, X> {
    mark: [u8; 32],
    at: Instant,
    landing: Landing<T>,
    more: X,
}

/// What a request with a key is.
#[derive(Debug)]
pub(crate) enum Begin<T, X> {
    /// The first: its answer is to be sent.
    First(watch::Sender<Option<T>>, Landing<T>),
    /// A repetition: here is its answer.
    Again(Landing<T>, X),
    /// Another request than the first one with this key.
    Other,
    /// Too many keys.
    Full,
}

impl<T, X: Clone> Keys<T, X> {
    /// Looks up what a request is; `mark`: see [`mark()`].
    pub(crate) fn begin(&self, entry: Entry, mark: [u8; 32], more: X) -> Begin<T, X> {
        let now = Instant::now();
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // What has ended without a word, by a bug of ours, is not remembered either.
        let dead = |landing: &Landing<T>| landing.has_changed().is_err() && landing.borrow().is_none();
        all.retain(|_, kept| now < kept.at + REMEMBERED && !dead(&kept.landing));
        if let Some(known) = all.get(&entry) {
            let again = || Begin::Again(known.landing.clone(), known.more.clone());
            return if known.mark == mark { again() } else { Begin::Other };
        }
        if all.len() >= KEYS || all.keys().filter(|(whose, _)| *whose == entry.0).count() >= KEYS_OF_ONE {
            return Begin::Full;
        }
        let (land, landing) = watch::channel(None);
        all.insert(entry, Kept { mark, at: now, landing: landing.clone(), more });
        Begin::First(land, landing)
    }

    /// Forgets this request, and none that was begun with the same key after it.
    pub(crate) fn forget(&self, entry: &Entry, land: &watch::Sender<Option<T>>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.get(entry).is_some_and(|kept| land.subscribe().same_channel(&kept.landing)) {
            all.remove(entry);
        }
    }
}

/// Tells requests apart.
pub(crate) fn mark(parts: [&[u8]; 2]) -> [u8; 32] {
    let [first, second] = parts;
    let whole = [&first.len().to_be_bytes()[..], first, second].concat();
    let mut mark = [0; 32];
    mark.copy_from_slice(digest(&SHA256, &whole).as_ref());
    mark
}

/// The header's key.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn key(headers: &HeaderMap) -> Result<Option<String>, String> {
    let mut keys = headers.get_all("idempotency-key").into_iter();
    let wrong = |found: &str| format!("`Idempotency-Key` must be 1 to 255 visible ASCII characters; found {found}.");
    let Some(key) = keys.next() else { return Ok(None) };
    if keys.next().is_some() {
        return Err(wrong("several"));
    }
    match key.to_str() {
        Ok(key) if (1..=255).contains(&key.len()) && key.bytes().all(|b| b.is_ascii_graphic()) => {
            Ok(Some(key.to_owned()))
        }
        Ok(key) => Err(wrong(&format!("{} characters", key.len()))),
        Err(_) => Err(wrong("others")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(key: &str) -> Entry {
        ("acme\n".to_owned(), key.to_owned())
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_leads_to_its_first_answer_for_ten_minutes() {
        let keys: Keys<u32> = Keys::default();
        let (one, other) = (mark([b"a", b""]), mark([b"", b"a"]));
        assert_ne!(one, other);
        let Begin::First(land, _) = keys.begin(entry("k"), one, ()) else { panic!() };
        let Begin::Again(landing, ()) = keys.begin(entry("k"), one, ()) else { panic!() };
        land.send(Some(7)).unwrap();
        assert_eq!(*landing.borrow(), Some(7));
        assert!(matches!(keys.begin(entry("k"), other, ()), Begin::Other));
        assert!(matches!(keys.begin(("else".into(), "k".into()), other, ()), Begin::First(..)), "somebody else's");
        keys.forget(&entry("k"), &watch::channel(None).0);
        assert!(matches!(keys.begin(entry("k"), one, ()), Begin::Again(..)), "another request's");
        tokio::time::advance(REMEMBERED).await;
        let Begin::First(land, _) = keys.begin(entry("k"), other, ()) else { panic!() };
        keys.forget(&entry("k"), &land);
        let Begin::First(land, _) = keys.begin(entry("k"), one, ()) else { panic!() };
        drop(land);
        assert!(matches!(keys.begin(entry("k"), other, ()), Begin::First(..)), "one without an answer is none");
    }

    #[tokio::test]
    async fn nobody_keeps_too_many_keys() {
        let keys: Keys<u32> = Keys::default();
        let lands: Vec<_> = (0..KEYS_OF_ONE).map(|n| keys.begin(entry(&n.to_string()), [0; 32], ())).collect();
        assert!(matches!(lands.last(), Some(Begin::First(..))));
        assert!(matches!(keys.begin(entry("more"), [0; 32], ()), Begin::Full));
    }
}
