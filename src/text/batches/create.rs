//! The beginning of a batch: once, however often it is asked for, and only where the budgets have what it may come to.
//!
//! What makes a repetition known stands in the batch's `metadata`, so that it is known after a lost answer and after a restart, too. A
//! tenant's batches are begun one after the other: a repetition waits for what it repeats.
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use axum::http::Method;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Map, Value};
use tokio::time;

use super::{
    Batches, ENDPOINT, KEY, MODEL, MOST, MOST_METADATA, NoBatch, ONCE, OURS, Owned, PAGE, TENANT, begun::usage_of,
    label::Label, sheet::UNNAMED, shown, wrong,
};
use crate::{
    admit::{Principal, budget::Amount},
    text::{ask::Wrong, run::No, share::Full},
    upstream::UpstreamError,
    wall::unix_now,
};

/// Batches that are begun at once, and those of one tenant, which wait for each other.
const CREATES: usize = 256;
const CREATES_OF_TENANT: usize = 16;
/// How long a key leads to its batch, and how long after it another try of a client that sends none may come, seconds.
const KEY_LASTS: u64 = 86_400;
const RETRY_LASTS: u64 = 600;
/// How long those that stand in the way of another one are looked at.
const LOOK: Duration = Duration::from_secs(20);
/// Longest value in `metadata`, letters (OpenAI's API reference).
const LONGEST: usize = 512;

/// How a request to begin a batch may be one that was made before.
#[derive(Debug, Clone, Default)]
pub struct Repeats {
    /// Its `Idempotency-Key`.
    pub key: Option<String>,
    /// Its client says that it is not the first try.
    pub retried: bool,
}

/// A batch that was asked for.
#[derive(Debug)]
pub struct Made {
    /// It, as its tenant sees it.
    pub batch: Value,
    /// It was begun by an earlier request.
    pub repeated: bool,
}

/// What tells a request from others: by its key, and by what it asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Once {
    key: String,
    body: String,
}

impl Once {
    fn of(who: &Principal, repeats: &Repeats, asked: &Map<String, Value>) -> Self {
        let digest = |text: &str| {
            let digest = digest(&SHA256, text.as_bytes());
            URL_SAFE_NO_PAD.encode(digest.as_ref().get(..16).unwrap_or_default())
        };
        let key = repeats.key.as_ref().map_or(String::new(), |key| {
            digest(&format!("{}\n{}\n{key}", who.tenant_id(), who.user().unwrap_or_default()))
        });
        Self { key, body: digest(&Value::Object(asked.clone()).to_string()) }
    }

    fn written(&self) -> String {
        format!("{}.{}", self.key, self.body)
    }

    fn read(text: &str) -> Option<Self> {
        let (key, body) = text.split_once('.')?;
        Some(Self { key: key.to_owned(), body: body.to_owned() })
    }

    /// Whether this batch is what it asks for already; `Err`: it has its key, and was asked for otherwise.
    fn is(&self, batch: &Owned, retried: bool, now: u64) -> Result<bool, ()> {
        let Some(other) = batch.once.as_deref().and_then(Self::read) else { return Ok(false) };
        let lasts = if self.key.is_empty() { RETRY_LASTS } else { KEY_LASTS };
        let asks = !self.key.is_empty() || retried;
        if !asks || self.key != other.key || batch.created_at.saturating_add(lasts) < now {
            return Ok(false);
        }
        match (self.body == other.body, self.key.is_empty()) {
            (true, _) => Ok(true),
            (false, true) => Ok(false),
            (false, false) => Err(()),
        }
    }
}

impl Batches {
    /// Begins a batch. What its requests may come to at most must be left in the budgets of days and months, beside what others may that
    /// were begun before; nothing of it is held from calls.
    ///
    /// # Errors
    /// Why it is not begun.
    pub async fn create(
        &self,
        who: &Principal,
        mut asked: Map<String, Value>,
        repeats: Repeats,
    ) -> Result<Made, NoBatch> {
        let once = Once::of(who, &repeats, &asked);
        let file = checked(&asked)?;
        let mut metadata = metadata(asked.get("metadata"))?;
        let full = |full| NoBatch::No(No::Full(full));
        let _place = self.creates.place(who.tenant_id(), CREATES, CREATES_OF_TENANT).map_err(full)?;
        let _turn = self.known.turn(who.tenant_id()).await;
        if let Some(made) = self.made_before(who, &once, repeats.retried).await? {
            return Ok(made);
        }
        if who.user().is_some() && self.texts.budgets.limits_users(who) {
            return Err(wrong("user", "unsupported_parameter", UNNAMED.to_owned()).into());
        }
        let (object, _) = self.owned_file(who, &file).await.map_err(|no| match no {
            NoBatch::File(id) => {
                let id: String = id.chars().take(64).collect();
                wrong("input_file_id", "invalid_value", format!("No such File object: {id}")).into()
            }
            other => other,
        })?;
        let label = object.get("filename").and_then(Value::as_str).and_then(Label::read);
        let payer = self.payer(who);
        let mut insert = |field: &str, value: String| metadata.insert(field.to_owned(), value.into());
        insert(TENANT, who.tenant_id().to_owned());
        insert(ONCE, once.written());
        payer.key_label().map(|label| insert(KEY, label.chars().take(LONGEST).collect()));
        let mut most = Amount::default();
        match label {
            Some(label) => {
                // Rights may have been others when the file came, or those of another key.
                self.texts.may_have(who, &label.model)?;
                let usage = usage_of(label.input, label.output);
                most = Amount::of_batch(&self.texts.prices.load(), &label.model, &usage);
                insert(MOST, format!("{} {}", label.input, label.output));
                insert(MODEL, label.model);
            }
            None if who.tenant().is_some() => return Err(NoBatch::File(file)),
            None => {}
        }
        if !self.known.has_room() {
            return Err(full(Full::All));
        }
        self.take_up(who).await;
        let counts = match self.texts.budgets.begin_batch(&payer, most) {
            Ok(counts) => counts,
            Err(_) => {
                // What has ended may have come to less than it might. What takes longer is booked later.
                let _ = time::timeout(LOOK, self.look(Some(who.tenant_id()))).await;
                self.texts.budgets.begin_batch(&payer, most).map_err(|spent| NoBatch::No(No::Spent(spent)))?
            }
        };
        asked.insert("metadata".to_owned(), metadata.into());
        let made = self.ask(who, Method::POST, "/batches", Some(&asked.into())).await;
        if let Err(NoBatch::No(No::Service(error))) = &made
            && may_have_come(error)
        {
            self.take_up_again(who).await;
        }
        let batch = made?;
        if let Some(owned) = Owned::read(&batch) {
            self.known.began(payer, owned, counts);
        }
        Ok(Made { batch: shown(batch), repeated: false })
    }

    /// The batch that an earlier request has begun, if this one repeats it.
    async fn made_before(&self, who: &Principal, once: &Once, retried: bool) -> Result<Option<Made>, NoBatch> {
        if once.key.is_empty() && !retried {
            return Ok(None);
        }
        let (now, tenant) = (unix_now(), Some(who.tenant_id()));
        let mut found = self.known.find(who.tenant_id(), |batch| once.is(batch, retried, now) != Ok(false));
        if found.is_none() {
            let (page, _) = self.page(who, None, PAGE).await?;
            let mut page = page.iter().filter_map(Owned::read).filter(|batch| batch.tenant.as_deref() == tenant);
            found = page.find(|batch| once.is(batch, retried, now) != Ok(false));
            // Its answer was lost, and nobody knows of it.
            found.clone().into_iter().filter(|batch| !batch.ended).for_each(|batch| self.adopt(batch));
        }
        let Some(found) = found else { return Ok(None) };
        once.is(&found, retried, now).map_err(|()| NoBatch::Reused)?;
        let (batch, _) = self.owned(who, &found.id).await?;
        Ok(Some(Made { batch: shown(batch), repeated: true }))
    }
}

/// Whether the service may have done what was asked for.
fn may_have_come(error: &UpstreamError) -> bool {
    !matches!(error, UpstreamError::Http { status, .. } if status.is_client_error())
}

/// The file that is to be worked off.
fn checked(asked: &Map<String, Value>) -> Result<String, Wrong> {
    let text = |field: &'static str| match asked.get(field) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(_) => Err(wrong(field, "invalid_type", format!("`{field}` must be a string."))),
        None => Err(wrong(field, "missing_required_parameter", format!("Missing required parameter: '{field}'."))),
    };
    let file = text("input_file_id")?;
    for (field, allowed) in [("endpoint", ENDPOINT), ("completion_window", "24h")] {
        let found = text(field)?;
        if found != allowed {
            let found: String = found.chars().take(64).collect();
            let message = format!("`{field}`: found `{found}`; allowed: `{allowed}`.");
            return Err(wrong(field, "invalid_value", message));
        }
    }
    Ok(file)
}

/// What the tenant says of its batch.
fn metadata(asked: Option<&Value>) -> Result<Map<String, Value>, Wrong> {
    let most = MOST_METADATA - OURS.len();
    let metadata = match asked {
        None | Some(Value::Null) => Map::new(),
        Some(Value::Object(metadata)) if metadata.len() <= most => metadata.clone(),
        Some(_) => {
            let message = format!("`metadata` must be an object of at most {most} strings.");
            return Err(wrong("metadata", "invalid_value", message));
        }
    };
    match metadata.keys().find(|name| OURS.contains(&name.as_str())) {
        Some(name) => Err(wrong("metadata", "invalid_value", format!("`metadata.{name}` is the relay's own."))),
        None => Ok(metadata),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_repetition_is_known_by_its_key_or_by_what_it_asks_for() {
        let who = Principal::operator();
        let asked = |file: &str| json!({"input_file_id": file}).as_object().cloned().unwrap_or_default();
        let once = |key: Option<&str>, file: &str| {
            let repeats = Repeats { key: key.map(str::to_owned), retried: false };
            Once::of(&who, &repeats, &asked(file))
        };
        let batch = |once: &Once| {
            let of = json!({"id": "batch_1", "created_at": 1_000, "metadata": {ONCE: once.written()}});
            Owned::read(&of).unwrap()
        };
        let (key, none) = (batch(&once(Some("k"), "a")), batch(&once(None, "a")));
        for (name, of, asks, retried, now, want) in [
            ("the same key", &key, once(Some("k"), "a"), false, 80_000, Ok(true)),
            ("the same key, long ago", &key, once(Some("k"), "a"), false, 90_000, Ok(false)),
            ("the same key for something else", &key, once(Some("k"), "b"), false, 1_000, Err(())),
            ("another key", &key, once(Some("l"), "a"), true, 1_000, Ok(false)),
            ("no key", &key, once(None, "a"), true, 1_000, Ok(false)),
            ("another try", &none, once(None, "a"), true, 1_600, Ok(true)),
            ("another try, long ago", &none, once(None, "a"), true, 1_601, Ok(false)),
            ("a first try", &none, once(None, "a"), false, 1_000, Ok(false)),
            ("another try of something else", &none, once(None, "b"), true, 1_000, Ok(false)),
        ] {
            assert_eq!(asks.is(of, retried, now), want, "{name}");
        }
        assert!(once(Some("k"), "a").written().len() < LONGEST);
    }
}
