//! BATCHES: requests that have a day, in files, at a quota and a price of their own. The service keeps files and batches; whose they are is
//! written down with them, so that a relay remembers nothing and yet lets each tenant see its own only.
//!
//! A file has a name that says whose it is and what is in it ([`label`]); a batch has its tenant, its model and who has begun it in its
//! `metadata`; a file of answers belongs to the batch that names it. Where nobody is asked for a credential there is nobody to keep anything from. All of a
//! tenant's batches run on its own account, or the usual one: no other is looked through for what an id may mean.
//!
//! | file | what it is |
//! |---|---|
//! | [`label`] | a file's name |
//! | [`sheet`] | the lines of a file, checked and rewritten |
//! | [`lines`] | whole lines out of pieces |
//! | [`passing`] | files on their way back |
//! | [`create`] | the beginning of a batch, once |
//! | [`begun`] | batches that were begun and are not booked yet |
//! | [`books`] | answers among them, each booked once |
mod begun;
pub mod books;
pub mod create;
pub mod label;
pub mod lines;
pub mod passing;
pub mod sheet;

use std::{collections::HashMap, sync::Arc, time::Duration};

use axum::http::Method;
use reqwest::Response;
use serde_json::{Value, json};
use tokio::fs::File;
use tokio_util::sync::CancellationToken;

use self::{
    begun::{Known, usage_of},
    books::{Booking, Books},
    label::Label,
    passing::{Passing, Pieces},
};
use super::{
    ask::Wrong,
    room::Room,
    run::{No, Texts},
    share::{Place, Shares},
};
use crate::{
    admit::{Denied, Gate, Principal},
    client::wire::Usage,
    upstream::{UpstreamError, batches::object, open::Upstream, rest::is_call, text::NoAnswer},
};

/// The one address that requests in a file may be for.
pub const ENDPOINT: &str = "/v1/responses";
/// Fields of a batch's `metadata` that are the relay's.
const TENANT: &str = "voxrelay_tenant";
const MODEL: &str = "voxrelay_model";
/// The label of the key that has begun it, and that pays.
const KEY: &str = "voxrelay_key";
/// What it reads and writes at most, tokens.
const MOST: &str = "voxrelay_most";
/// What a repetition of the request that began it is known by.
const ONCE: &str = "voxrelay_once";
const OURS: [&str; 5] = [TENANT, MODEL, KEY, MOST, ONCE];
/// Fields of `metadata` that the service allows.
const MOST_METADATA: usize = 16;
/// Files that come in at once, and of one tenant: each is on the disk until the service has it.
const UPLOADS: usize = 16;
const UPLOADS_OF_TENANT: usize = 2;
/// Files that go out at once, and of one tenant.
const DOWNLOADS: usize = 32;
const DOWNLOADS_OF_TENANT: usize = 4;
/// Lists that are made at once, and of one tenant: each may ask the service many times.
const LISTS: usize = 8;
const LISTS_OF_TENANT: usize = 1;
/// Pages of the account's batches that are looked through for a tenant's own, and batches of one.
const PAGES: usize = 100;
const PAGE: usize = 100;
/// Where a batch may end.
const ENDS: [&str; 4] = ["completed", "failed", "expired", "cancelled"];
/// What is said of the account's limits.
const FULL: &str = "The limit of tokens that wait in batches is reached. Try again when other batches are done.";
const REFUSED: &str = "The service has refused the batch.";
/// A file goes to the service or comes from it within this.
const LONGEST: Duration = Duration::from_secs(3_600);

/// What these addresses stand on.
#[derive(Debug)]
pub struct Batches {
    texts: Arc<Texts>,
    gate: Arc<Gate>,
    /// Where long lines are held.
    room: Arc<Room>,
    uploads: Shares,
    downloads: Shares,
    creates: Shares,
    lists: Shares,
    books: Books,
    known: Known,
}

/// Why there is no answer.
#[derive(Debug)]
pub enum NoBatch {
    /// As for any request.
    No(No),
    /// The tenant has no such file.
    File(String),
    /// The tenant has no such batch.
    Batch(String),
    /// The request cannot work.
    Wrong(Wrong),
    /// Nothing may be begun now.
    Denied(Denied),
    /// The request's `Idempotency-Key` was another one's.
    Reused,
}

impl From<No> for NoBatch {
    fn from(no: No) -> Self {
        Self::No(no)
    }
}

impl From<NoAnswer> for NoBatch {
    fn from(no: NoAnswer) -> Self {
        Self::No(match no {
            NoAnswer::Told { status, body, .. } => No::Told(status, body),
            NoAnswer::Error(error) => No::Service(error),
        })
    }
}

impl From<Wrong> for NoBatch {
    fn from(wrong: Wrong) -> Self {
        Self::Wrong(wrong)
    }
}

/// A batch that the tenant may see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owned {
    /// The service's id.
    pub id: String,
    /// The model that answers; empty: not known, it was not made by a relay.
    pub model: String,
    /// Unix seconds.
    pub created_at: u64,
    /// Whose it is.
    tenant: Option<String>,
    /// The label of the key that has begun it.
    key: Option<String>,
    /// What a repetition of the request that began it is known by.
    once: Option<String>,
    /// What it may come to at most.
    most: Usage,
    /// What it came to so far, where the service says so.
    used: Option<Usage>,
    /// Nothing more comes of it.
    ended: bool,
    /// Answers in its output.
    completed: u64,
    output: Option<String>,
    errors: Option<String>,
}

/// A page of a list that is wanted.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// What comes after this batch.
    pub after: Option<String>,
    /// So many.
    pub limit: usize,
}

/// What is in a file, on its way.
#[derive(Debug)]
pub struct Content {
    /// The service's answer.
    pub response: Response,
    /// Answers are booked as they pass; none: they are requests.
    pub booking: Option<Booking>,
}

impl Batches {
    /// Of a process.
    pub fn new(texts: Arc<Texts>, gate: Arc<Gate>, room: Arc<Room>) -> Self {
        let (uploads, downloads, creates, lists) = Default::default();
        let (books, known) = Default::default();
        Self { texts, gate, room, uploads, downloads, creates, lists, books, known }
    }

    /// A place for one file more.
    ///
    /// # Errors
    /// All, or all of the tenant's, are taken.
    pub fn place(&self, who: &Principal) -> Result<Place, NoBatch> {
        self.uploads.place(who.tenant_id(), UPLOADS, UPLOADS_OF_TENANT).map_err(|full| NoBatch::No(No::Full(full)))
    }

    /// How a file of this one's is passed on.
    pub fn passing(&self, who: &Principal, to: Pieces, stop: CancellationToken, place: Option<Place>) -> Passing {
        let stall = Duration::from_secs(self.texts.config.stall_s);
        let tenant = who.tenant().map(|_| who.tenant_id().to_owned());
        Passing { to, stall, stop, room: self.room.clone(), tenant, place }
    }

    /// A place for one download more.
    ///
    /// # Errors
    /// As [`Self::place`].
    pub fn download(&self, who: &Principal) -> Result<Place, NoBatch> {
        let most = if who.tenant().is_some() { DOWNLOADS_OF_TENANT } else { DOWNLOADS };
        self.downloads.place(who.tenant_id(), DOWNLOADS, most).map_err(|full| NoBatch::No(No::Full(full)))
    }

    fn upstream(&self, who: &Principal) -> Result<&Upstream, No> {
        let unknown = || No::Service(UpstreamError::Broken("its account is not configured".to_owned()));
        self.texts.accounts.get(who.upstream()).ok_or_else(unknown)
    }

    async fn ask(&self, who: &Principal, method: Method, path: &str, body: Option<&Value>) -> Result<Value, NoBatch> {
        let longest = Duration::from_secs(self.texts.config.max_s);
        let response = self.upstream(who)?.rest().batch(method, path, body, who, longest).await?;
        Ok(object(response).await?)
    }

    /// Gives a file of checked requests to the service; its object.
    ///
    /// # Errors
    /// Why it does not take it.
    pub async fn upload(&self, who: &Principal, file: File, label: &Label) -> Result<Value, NoBatch> {
        let response = self.upstream(who)?.rest().upload_batch(file, label.write(), who, LONGEST).await?;
        Ok(shown_file(object(response).await?))
    }

    /// A file's object, if the tenant may see it.
    ///
    /// # Errors
    /// It may not, or there is none.
    pub async fn file(&self, who: &Principal, id: &str) -> Result<Value, NoBatch> {
        self.owned_file(who, id).await.map(|(file, _)| shown_file(file))
    }

    /// A file's object, and of a file of answers the batch.
    async fn owned_file(&self, who: &Principal, id: &str) -> Result<(Value, Option<Owned>), NoBatch> {
        let none = || NoBatch::File(id.to_owned());
        if !is_call(id) {
            return Err(none());
        }
        let file = match self.ask(who, Method::GET, &format!("/files/{id}"), None).await {
            Err(NoBatch::No(No::Told(status, _))) if status == 404 => return Err(none()),
            file => file?,
        };
        let name = file.get("filename").and_then(Value::as_str).unwrap_or_default();
        if let Some(label) = Label::read(name) {
            return if sees(who, Some(&label.tenant)) { Ok((file, None)) } else { Err(none()) };
        }
        // Of answers: the service names the file after the batch.
        let of_batch = name.strip_suffix("_output.jsonl").or_else(|| name.strip_suffix("_error.jsonl"));
        let batch = match of_batch.filter(|batch| is_call(batch)) {
            Some(batch) => match self.owned(who, batch).await {
                Ok((_, owned)) => Some(owned)
                    .filter(|owned| [&owned.output, &owned.errors].iter().any(|file| file.as_deref() == Some(id))),
                Err(NoBatch::Batch(_)) => None,
                Err(other) => return Err(other),
            },
            None => None,
        };
        match batch {
            None if who.tenant().is_some() => Err(none()),
            batch => Ok((file, batch)),
        }
    }

    /// What is in a file. `tells`: each answer says what it cost.
    ///
    /// # Errors
    /// As [`Self::file`]; and where it could not be booked.
    pub async fn content(&self, who: &Principal, id: &str, tells: bool) -> Result<Content, NoBatch> {
        let (_, batch) = self.owned_file(who, id).await?;
        let booking = match &batch {
            None => None,
            Some(batch) => {
                let booking = Booking::new(&self.texts, &self.books, &self.payer_of(who, batch), batch, tells).await;
                Some(booking.ok_or(NoBatch::Denied(Denied::Accounting))?)
            }
        };
        let path = format!("/files/{id}/content");
        let response = self.upstream(who)?.rest().batch(Method::GET, &path, None, who, LONGEST).await?;
        Ok(Content { response, booking })
    }

    /// Whoever has begun it pays, whoever takes the answers.
    fn payer_of(&self, who: &Principal, batch: &Owned) -> Principal {
        let payer = batch.tenant.as_deref().and_then(|tenant| self.gate.payer(tenant, batch.key.as_deref()));
        payer.unwrap_or_else(|| who.clone())
    }

    /// Forgets a file. Answers that nobody has read are booked before.
    ///
    /// # Errors
    /// As [`Self::file`].
    pub async fn delete(&self, who: &Principal, id: &str) -> Result<Value, NoBatch> {
        let (_, batch) = self.owned_file(who, id).await?;
        if let Some(batch) = batch.filter(|batch| batch.output.as_deref() == Some(id)) {
            self.settle(&self.payer_of(who, &batch), &batch).await;
        }
        self.ask(who, Method::DELETE, &format!("/files/{id}"), None).await
    }

    /// A batch as it is now.
    ///
    /// # Errors
    /// The tenant has none of this id.
    pub async fn batch(&self, who: &Principal, id: &str) -> Result<Value, NoBatch> {
        self.owned(who, id).await.map(|(batch, _)| shown(batch))
    }

    async fn owned(&self, who: &Principal, id: &str) -> Result<(Value, Owned), NoBatch> {
        let none = || NoBatch::Batch(id.to_owned());
        if !is_call(id) {
            return Err(none());
        }
        let batch = match self.ask(who, Method::GET, &format!("/batches/{id}"), None).await {
            Err(NoBatch::No(No::Told(status, _))) if status == 404 => return Err(none()),
            batch => batch?,
        };
        let owned = owned(who, &batch).ok_or_else(none)?;
        self.seen(&owned);
        Ok((batch, owned))
    }

    /// Ends a batch early.
    ///
    /// # Errors
    /// As [`Self::batch`], or why it is not.
    pub async fn cancel(&self, who: &Principal, id: &str) -> Result<Value, NoBatch> {
        self.owned(who, id).await?;
        self.ask(who, Method::POST, &format!("/batches/{id}/cancel"), None).await.map(shown)
    }

    /// A page of the account's batches, newest first, and what the next one comes after; none: it was the last.
    async fn page(
        &self,
        who: &Principal,
        after: Option<&str>,
        limit: usize,
    ) -> Result<(Vec<Value>, Option<String>), NoBatch> {
        let from = after.map_or(String::new(), |after| format!("&after={after}"));
        let page = self.ask(who, Method::GET, &format!("/batches?limit={limit}{from}"), None).await?;
        let all = page.get("data").and_then(Value::as_array).cloned().unwrap_or_default();
        let last = all.last().and_then(|batch| batch.get("id")?.as_str()).filter(|id| is_call(id)).map(str::to_owned);
        let more = page.get("has_more").is_some_and(|more| more == true);
        Ok((all, last.filter(|_| more)))
    }

    /// The tenant's batches, newest first: the account's are looked through until there are as many as are wanted, or many were looked
    /// at. Then the page may have none, and there is more after its `last_id`.
    ///
    /// # Errors
    /// When they cannot be had, or the tenant has another list made.
    pub async fn list(&self, who: &Principal, wanted: Wanted) -> Result<Value, NoBatch> {
        if wanted.after.as_deref().is_some_and(|after| !is_call(after)) {
            return Err(wrong("after", "invalid_value", "`after` must be the id of a batch.".to_owned()).into());
        }
        let most = if who.tenant().is_some() { LISTS_OF_TENANT } else { LISTS };
        let place = self.lists.place(who.tenant_id(), LISTS, most);
        let _place = place.map_err(|full| NoBatch::No(No::Full(full)))?;
        let (mut after, mut found) = (wanted.after, Vec::new());
        for _ in 0..PAGES {
            let (page, next) = self.page(who, after.as_deref(), PAGE).await?;
            for batch in page {
                let Some(owned) = owned(who, &batch) else { continue };
                if found.len() == wanted.limit {
                    return Ok(listed(found, true, None));
                }
                self.seen(&owned);
                found.push(shown(batch));
            }
            after = next;
            if after.is_none() {
                return Ok(listed(found, false, None));
            }
        }
        Ok(listed(found, true, after))
    }
}

/// Whether one who speaks for `who` may see what is `tenant`'s. Where nobody is asked for a credential there is nobody to keep it from.
fn sees(who: &Principal, tenant: Option<&str>) -> bool {
    who.tenant().is_none() || tenant == Some(who.tenant_id())
}

fn owned(who: &Principal, batch: &Value) -> Option<Owned> {
    Owned::read(batch).filter(|batch| sees(who, batch.tenant.as_deref()))
}

impl Owned {
    fn read(batch: &Value) -> Option<Self> {
        let text = |field: &str| batch.pointer(field).and_then(Value::as_str).map(str::to_owned);
        let number = |field: &str| batch.pointer(field).and_then(Value::as_u64);
        let ours = |field: &str| text(&format!("/metadata/{field}"));
        let most = ours(MOST).and_then(|most| {
            let (input, output) = most.split_once(' ')?;
            Some(usage_of(input.parse().ok()?, output.parse().ok()?))
        });
        let used = number("/usage/input_tokens").zip(number("/usage/output_tokens"));
        Some(Self {
            id: text("/id")?,
            model: ours(MODEL).unwrap_or_default(),
            created_at: number("/created_at").unwrap_or_default(),
            tenant: ours(TENANT),
            key: ours(KEY),
            once: ours(ONCE),
            most: most.unwrap_or_default(),
            used: used.map(|(input, output)| usage_of(input, output)),
            ended: text("/status").is_some_and(|status| ENDS.contains(&status.as_str())),
            completed: number("/request_counts/completed").unwrap_or_default(),
            output: text("/output_file_id").filter(|id| is_call(id)),
            errors: text("/error_file_id"),
        })
    }
}

/// A batch without what is the relay's, and without what is the account's.
fn shown(mut batch: Value) -> Value {
    let metadata = batch.get_mut("metadata").and_then(Value::as_object_mut);
    let bare = metadata.is_some_and(|metadata| {
        metadata.retain(|name, _| !OURS.contains(&name.as_str()));
        metadata.is_empty()
    });
    if bare {
        batch.as_object_mut().and_then(|batch| batch.insert("metadata".to_owned(), Value::Null));
    }
    let errors = batch.pointer_mut("/errors/data").and_then(Value::as_array_mut);
    for error in errors.into_iter().flatten().filter_map(Value::as_object_mut) {
        let says = |field: &str| error.get(field).and_then(Value::as_str).unwrap_or_default();
        let own = match says("code") {
            "token_limit_exceeded" => FULL,
            // The account's organization, by its id.
            _ if says("message").contains("org-") => REFUSED,
            _ => continue,
        };
        error.insert("message".to_owned(), own.into());
    }
    batch
}

/// A file under the name that its owner gave it.
fn shown_file(mut file: Value) -> Value {
    let label = file.get("filename").and_then(Value::as_str).and_then(Label::read);
    if let (Some(label), Some(file)) = (label, file.as_object_mut()) {
        file.insert("filename".to_owned(), label.name.into());
    }
    file
}

/// A page of a list. `looked`: there are no more than these up to this batch, whosever it is.
fn listed(batches: Vec<Value>, more: bool, looked: Option<String>) -> Value {
    let id = |batch: Option<&Value>| batch.and_then(|batch| batch.get("id").cloned());
    let (first, last) = (id(batches.first()), looked.map(Value::from).or_else(|| id(batches.last())));
    json!({"object": "list", "data": batches, "first_id": first, "last_id": last, "has_more": more})
}

fn wrong(field: &'static str, code: &'static str, message: String) -> Wrong {
    Wrong { code, message, param: Some(field) }
}

impl Wanted {
    /// From a query; a number that is none is the usual one.
    pub fn of(query: &HashMap<String, String>) -> Self {
        let limit = query.get("limit").and_then(|limit| limit.parse().ok()).unwrap_or(20).clamp(1, PAGE);
        Self { after: query.get("after").cloned(), limit }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_says_how_to_go_on() {
        let batch = |id: &str| json!({"id": id});
        for (batches, more, looked, want) in [
            (vec![batch("a"), batch("b")], true, None, json!(["a", "b", true])),
            (vec![batch("a")], true, Some("z"), json!(["a", "z", true])),
            (vec![], true, Some("z"), json!([null, "z", true])),
            (vec![], false, None, json!([null, null, false])),
        ] {
            let page = listed(batches, more, looked.map(str::to_owned));
            assert_eq!(json!([page["first_id"], page["last_id"], page["has_more"]]), want);
        }
    }

    #[test]
    fn nothing_of_the_relays_or_of_the_accounts_is_shown() {
        let error = |code: &str, message: &str| json!({"code": code, "message": message, "line": 3});
        let batch = json!({"id": "batch_1", "metadata": {TENANT: "a", KEY: "k", MOST: "1 2", ONCE: ".x", MODEL: "m", "mine": "y"},
            "errors": {"data": [error("token_limit_exceeded", "Limit: 90,000 enqueued tokens."),
                error("x", "Not for org-abc."), error("x", "Invalid schema.")]}});
        let seen = shown(batch);
        assert_eq!(seen["metadata"], json!({"mine": "y"}));
        let messages: Vec<&Value> = seen["errors"]["data"].as_array().unwrap().iter().map(|e| &e["message"]).collect();
        assert_eq!(messages, [&json!(FULL), &json!(REFUSED), &json!("Invalid schema.")]);
        assert_eq!(seen["errors"]["data"][0]["line"], 3);
    }
}
