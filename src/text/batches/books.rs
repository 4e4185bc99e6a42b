//! The answers of a batch as they are downloaded: each of them booked once, at the price of batches.
//!
//! What was booked is known from the ledger, so that a file that is downloaded again costs nothing, in this process or another one.
//! How lines get here, and where they go, is [`super::passing`]'s.
use std::{
    borrow::Cow,
    collections::{HashSet, VecDeque},
    hash::{BuildHasher as _, RandomState},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde_json::Value;
use tokio::{sync::OnceCell, task::spawn_blocking};

use super::{
    super::{Kind, outcome::Outcome, run::Texts},
    Owned,
};
use crate::{
    admit::{
        Principal,
        budget::{Amount, Purse},
        price::Usd,
    },
    call::books::{Booked, Books as Rows},
    config::USUAL_UPSTREAM,
    ledger::Ledger,
    observe::fact::Fact,
};

/// Batches whose booked answers are remembered while nobody downloads them, and answers of all of them together (16 bytes each).
const REMEMBERED: usize = 32;
const MOST_ANSWERS: usize = 500_000;
/// The door, as the ledger calls it.
pub(super) const DOOR: &str = "batches";
/// What whoever wants to know prices finds in each line.
const COST: &str = "voxrelay_cost_usd";

/// What was booked of a batch: the service's ids, as numbers. Read from the ledger once, by whoever comes first.
#[derive(Debug, Default)]
struct Known(OnceCell<Mutex<HashSet<u64>>>);

impl Known {
    fn ids(&self) -> Option<MutexGuard<'_, HashSet<u64>>> {
        self.0.get().map(|ids| ids.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What was booked of which batch, oldest first.
#[derive(Debug, Default)]
pub(super) struct Books {
    known: Mutex<VecDeque<(String, Arc<Known>)>>,
    hash: RandomState,
}

/// The answers of one batch that were booked.
#[derive(Debug)]
struct Ids {
    known: Arc<Known>,
    hash: RandomState,
}

impl Ids {
    /// Whether this answer was not booked before; from now on it is.
    fn is_new(&self, id: &str) -> bool {
        self.known.ids().is_some_and(|mut ids| ids.insert(self.hash.hash_one(id)))
    }
}

impl Books {
    /// How many answers of a batch were booked. `None`: the ledger cannot be read now.
    pub(super) async fn count(&self, texts: &Texts, batch: &Owned) -> Option<u64> {
        let ids = self.of(&texts.ledger, &batch.id, batch.created_at.saturating_mul(1_000)).await?;
        ids.known.ids().map(|ids| ids.len() as u64)
    }

    /// The answers of a batch that were booked. `None`: the ledger cannot be read now.
    async fn of(&self, ledger: &Ledger, batch: &str, created_ms: u64) -> Option<Ids> {
        let (known, hash) = (self.entry(batch), self.hash.clone());
        let read = known.0.get_or_try_init(async || {
            let (ledger, call, hash) = (ledger.clone(), batch.to_owned(), hash.clone());
            let read = spawn_blocking(move || {
                let ids = ledger.ids_of(&call, created_ms)?;
                Ok::<_, crate::ledger::LedgerError>(ids.iter().map(|id| hash.hash_one(id)).collect())
            });
            let read = read.await.map_err(drop)?;
            let ids = read.inspect_err(|error| tracing::warn!(%error, "what was booked of a batch is not known"));
            ids.map(Mutex::new).map_err(drop)
        });
        read.await.ok()?;
        Some(Ids { known, hash })
    }

    /// A batch's entry. Others are forgotten where there are too many, but none that somebody downloads: its rows may not be in the
    /// ledger yet, and whoever comes next would book them again.
    fn entry(&self, batch: &str) -> Arc<Known> {
        let mut all = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let known = all.iter().find(|(id, _)| id == batch).map(|(_, known)| known.clone());
        let known = known.unwrap_or_else(|| {
            all.push_back((batch.to_owned(), Arc::default()));
            all.back().map(|(_, known)| known.clone()).unwrap_or_default()
        });
        let mut many = all.len();
        let mut answers: usize = all.iter().filter_map(|(_, known)| known.ids().map(|ids| ids.len())).sum();
        all.retain(|(_, known)| {
            let stays = Arc::strong_count(known) > 1 || many <= REMEMBERED && answers <= MOST_ANSWERS;
            if !stays {
                (many, answers) = (many - 1, answers - known.ids().map_or(0, |ids| ids.len()));
            }
            stays
        });
        known
    }
}

/// One download.
#[derive(Debug)]
pub struct Booking {
    texts: Arc<Texts>,
    who: Principal,
    rows: Rows,
    purse: Purse,
    booked: Ids,
    /// Each line says what it cost.
    tells: bool,
}

impl Booking {
    /// None: the ledger cannot be read now.
    pub(super) async fn new(
        texts: &Arc<Texts>,
        books: &Books,
        who: &Principal,
        batch: &Owned,
        tells: bool,
    ) -> Option<Self> {
        let booked = books.of(&texts.ledger, &batch.id, batch.created_at.saturating_mul(1_000)).await?;
        let rows = Rows {
            ledger: texts.ledger.clone(),
            prices: texts.prices.clone(),
            call: batch.id.clone(),
            agent: String::new(),
            account: who.upstream().unwrap_or(USUAL_UPSTREAM).to_owned(),
            model: batch.model.clone(),
            writer: None,
            door: DOOR,
        };
        let purse = texts.budgets.purse(who, &batch.id, Amount::default());
        Some(Self { texts: texts.clone(), who: who.clone(), rows, purse, booked, tells })
    }

    /// A line of the output, and what it is as it goes on.
    fn line(&self, line: &[u8]) -> Option<Vec<u8>> {
        let read: Value = serde_json::from_slice(line).ok()?;
        let body = read.pointer("/response/body")?;
        let outcome = Outcome::of_value(body)?;
        let usage = outcome.usage?;
        let model = match self.rows.model.as_str() {
            "" => body.get("model").and_then(Value::as_str).unwrap_or_default(),
            model => model,
        };
        let prices = self.texts.prices.load_full();
        let used = Amount::of_batch(&prices, model, &usage);
        if self.booked.is_new(&outcome.id) {
            let rows = Rows { model: model.to_owned(), ..self.rows.clone() };
            let booked = Booked { batch: true, ..Booked::reply(&outcome.id, &outcome.status, usage) };
            rows.book(&self.who, "", booked, &prices);
            self.purse.spend_batch(used);
            Fact::Tokens { usage }.record();
        }
        if self.tells { with_cost(line, used.usd?) } else { None }
    }

    /// Books whole lines; as they go on.
    pub(super) fn lines(&self, lines: Vec<u8>) -> Vec<u8> {
        let told = |line| self.line(line).map_or(Cow::Borrowed(line), Cow::Owned);
        let read: Vec<Cow<'_, [u8]>> = lines.split_inclusive(|b| *b == b'\n').map(told).collect();
        if read.iter().all(|line| matches!(line, Cow::Borrowed(_))) {
            return lines;
        }
        read.concat()
    }
}

/// The line, with its price at its end; all else stays as it came.
fn with_cost(line: &[u8], cost: Usd) -> Option<Vec<u8>> {
    let end = line.iter().rposition(|b| *b == b'}')?;
    let (object, tail) = line.split_at_checked(end)?;
    Some([object, format!(",\"{COST}\":\"{cost}\"").as_bytes(), tail].concat())
}

impl Outcome {
    /// From a response that was read.
    fn of_value(body: &Value) -> Option<Self> {
        Self::read(Kind::Response, body.to_string().as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_somebody_downloads_is_not_forgotten_and_what_nobody_does_is() {
        let (books, ledger) = (Books::default(), Ledger::none());
        let slow = books.of(&ledger, "batch_slow", 0).await.unwrap();
        let idle = books.of(&ledger, "batch_idle", 0).await.unwrap();
        assert!(slow.is_new("resp_1") && idle.is_new("resp_1") && !idle.is_new("resp_1"));
        drop(idle);
        for n in 0..2 * REMEMBERED {
            books.of(&ledger, &format!("batch_{n}"), 0).await.unwrap();
        }
        let again = books.of(&ledger, "batch_slow", 0).await.unwrap();
        assert!(!again.is_new("resp_1") && again.is_new("resp_2") && !slow.is_new("resp_2"), "it is the same");
        assert_eq!(books.known.lock().unwrap().len(), REMEMBERED);
        assert!(books.of(&ledger, "batch_idle", 0).await.unwrap().is_new("resp_1"), "the ledger would have known");
    }

    #[tokio::test]
    async fn answers_are_few_bytes_and_few_are_remembered() {
        let (books, ledger) = (Books::default(), Ledger::none());
        for batch in ["batch_1", "batch_2", "batch_3"] {
            let ids = books.of(&ledger, batch, 0).await.unwrap();
            (0..MOST_ANSWERS / 2).for_each(|n| assert!(ids.is_new(&n.to_string())));
        }
        let _next = books.of(&ledger, "batch_4", 0).await.unwrap();
        let left: Vec<String> = books.known.lock().unwrap().iter().map(|(id, _)| id.clone()).collect();
        assert_eq!(left, ["batch_2", "batch_3", "batch_4"]);
    }

    #[test]
    fn a_line_says_what_it_cost() {
        let cost: Usd = "0.25".parse().unwrap();
        let told = with_cost(b"{\"a\": {\"b\": 1}}\n", cost).unwrap();
        assert_eq!(String::from_utf8(told).unwrap(), "{\"a\": {\"b\": 1},\"voxrelay_cost_usd\":\"0.25\"}\n");
        assert_eq!(with_cost(b"\n", cost), None);
    }
}
