//! The answers of a batch on their way to the tenant: passed on as they come, and each of them booked once, at the price of batches.
//!
//! What was booked is known from the ledger, so that a file that is downloaded again costs nothing, in this process or another one.
//! Whoever downloads it may leave: it is read to its end all the same, for it has been paid.
use std::{
    collections::{HashSet, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use reqwest::Response;
use serde_json::Value;
use tokio::{sync::mpsc, task::spawn_blocking, time};

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
    observe::fact::Fact,
};

/// Longest line, bytes; a longer one is passed on and not read.
const LONGEST: usize = 32 << 20;
/// Batches whose booked answers are remembered.
const REMEMBERED: usize = 32;
/// How long rows of ours are waited for before the ledger is read.
const FLUSH: Duration = Duration::from_secs(5);
/// The door, as the ledger calls it.
const DOOR: &str = "batches";
/// What whoever wants to know prices finds in each line.
const COST: &str = "voxrelay_cost_usd";

type Ids = Arc<Mutex<HashSet<String>>>;

/// What was booked of which batch.
#[derive(Debug, Default)]
pub(super) struct Books(Mutex<VecDeque<(String, Ids)>>);

impl Books {
    /// The answers of a batch that were booked. `None`: the ledger cannot be read now.
    async fn of(&self, texts: &Texts, batch: &str, created_ms: u64) -> Option<Ids> {
        let known = |all: &VecDeque<(String, Ids)>| all.iter().find(|(id, _)| id == batch).map(|(_, ids)| ids.clone());
        if let Some(ids) = known(&self.0.lock().unwrap_or_else(PoisonError::into_inner)) {
            return Some(ids);
        }
        texts.ledger.flush(FLUSH).await;
        let (ledger, call) = (texts.ledger.clone(), batch.to_owned());
        let read = spawn_blocking(move || ledger.ids_of(&call, created_ms)).await.ok()?;
        let ids = read.inspect_err(|error| tracing::warn!(%error, "what was booked of a batch is not known")).ok()?;
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Somebody else may have been quicker.
        if let Some(ids) = known(&all) {
            return Some(ids);
        }
        let ids = Ids::new(Mutex::new(ids));
        all.push_back((batch.to_owned(), ids.clone()));
        if all.len() > REMEMBERED {
            all.pop_front();
        }
        Some(ids)
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

/// A download's way to its reader.
pub type Pieces = mpsc::Sender<Result<Bytes, std::io::Error>>;

impl Booking {
    /// None: the ledger cannot be read now.
    pub(super) async fn new(
        texts: &Arc<Texts>,
        books: &Books,
        who: &Principal,
        batch: &Owned,
        tells: bool,
    ) -> Option<Self> {
        let booked = books.of(texts, &batch.id, batch.created_at.saturating_mul(1_000)).await?;
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
        if self.booked.lock().unwrap_or_else(PoisonError::into_inner).insert(outcome.id.clone()) {
            let rows = Rows { model: model.to_owned(), ..self.rows.clone() };
            let booked = Booked { batch: true, ..Booked::reply(&outcome.id, &outcome.status, usage) };
            rows.book(&self.who, "", booked, &prices);
            self.purse.spend(used);
            Fact::Tokens { usage }.record();
        }
        if self.tells { with_cost(line, used.usd?) } else { None }
    }

    /// Passes a download on, as fast as it is taken by `to`; whoever stands still for `stall` is let go, and the rest is booked.
    pub async fn pass(self, mut response: Response, to: Pieces, stall: Duration) {
        let mut to = Some(to);
        let mut rest: Vec<u8> = Vec::new();
        loop {
            let piece = match response.chunk().await {
                Ok(Some(piece)) => piece,
                Ok(None) => break,
                Err(_) => {
                    // What is there ends in the middle of a line, and must not look whole.
                    if let Some(to) = &to {
                        let _ = to.send(Err(std::io::Error::other("the service's answer broke off"))).await;
                    }
                    return;
                }
            };
            rest.extend_from_slice(&piece);
            let Some(end) = rest.iter().rposition(|b| *b == b'\n').map(|end| end + 1) else {
                if rest.len() > LONGEST {
                    send(&mut to, std::mem::take(&mut rest), stall).await;
                }
                continue;
            };
            let later = rest.split_off(end);
            let lines = std::mem::replace(&mut rest, later);
            send(&mut to, self.lines(&lines), stall).await;
        }
        send(&mut to, self.lines(&rest), stall).await;
    }

    fn lines(&self, lines: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(lines.len());
        for line in lines.split_inclusive(|b| *b == b'\n') {
            match self.line(line) {
                Some(told) => out.extend_from_slice(&told),
                None => out.extend_from_slice(line),
            }
        }
        out
    }
}

async fn send(to: &mut Option<Pieces>, piece: Vec<u8>, stall: Duration) {
    let Some(sender) = to.as_ref().filter(|_| !piece.is_empty()) else { return };
    let sent = time::timeout(stall, sender.send(Ok(piece.into()))).await;
    if !matches!(sent, Ok(Ok(()))) {
        *to = None;
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

    #[test]
    fn a_line_says_what_it_cost() {
        let cost: Usd = "0.25".parse().unwrap();
        let told = with_cost(b"{\"a\": {\"b\": 1}}\n", cost).unwrap();
        assert_eq!(String::from_utf8(told).unwrap(), "{\"a\": {\"b\": 1},\"voxrelay_cost_usd\":\"0.25\"}\n");
        assert_eq!(with_cost(b"\n", cost), None);
    }
}
