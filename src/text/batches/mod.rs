//! BATCHES: requests that have a day, in files, at a quota and a price of their own. The service keeps files and batches; whose they are is
//! written down with them, so that a relay remembers nothing and yet lets each tenant see its own only.
//!
//! A file has a name that says whose it is and what is in it ([`label`]); a batch has its tenant and its model in its `metadata`; a file
//! of answers belongs to the batch that names it. Where nobody is asked for a credential there is nobody to keep anything from. All of a
//! tenant's batches run on its own account, or the usual one: no other is looked through for what an id may mean.
//!
//! | file | what it is |
//! |---|---|
//! | [`label`] | a file's name |
//! | [`sheet`] | the lines of a file, checked and rewritten |
//! | [`lines`] | whole lines out of pieces |
//! | [`passing`] | files on their way back |
//! | [`books`] | answers among them, each booked once |
pub mod books;
pub mod label;
pub mod lines;
pub mod passing;
pub mod sheet;

use std::{collections::HashMap, sync::Arc, time::Duration};

use axum::http::Method;
use reqwest::Response;
use serde_json::{Map, Value, json};
use tokio::fs::File;

use self::{
    books::{Booking, Books},
    label::Label,
};
use super::{
    ask::Wrong,
    run::{No, Texts},
    share::{Place, Shares},
};
use crate::{
    admit::{Denied, Principal, budget::Amount},
    client::wire::Usage,
    upstream::{UpstreamError, batches::object, open::Upstream, rest::is_call, text::NoAnswer},
};

/// The one address that requests in a file may be for.
pub const ENDPOINT: &str = "/v1/responses";
/// Fields of a batch's `metadata` that are the relay's.
const TENANT: &str = "voxrelay_tenant";
const MODEL: &str = "voxrelay_model";
/// Fields of `metadata` that the service allows.
const MOST_METADATA: usize = 16;
/// Files that come in at once, and of one tenant: each is on the disk until the service has it.
const UPLOADS: usize = 16;
const UPLOADS_OF_TENANT: usize = 2;
/// Files that go out at once, and of one tenant.
const DOWNLOADS: usize = 32;
const DOWNLOADS_OF_TENANT: usize = 4;
/// Pages of the account's batches that are looked through for a tenant's own, and batches of one.
const PAGES: usize = 100;
const PAGE: usize = 100;
/// A file goes to the service or comes from it within this.
const LONGEST: Duration = Duration::from_secs(3_600);

/// What these addresses stand on.
#[derive(Debug)]
pub struct Batches {
    texts: Arc<Texts>,
    uploads: Shares,
    downloads: Shares,
    books: Books,
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
    files: Vec<String>,
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
    pub fn new(texts: Arc<Texts>) -> Self {
        Self { texts, uploads: Shares::default(), downloads: Shares::default(), books: Books::default() }
    }

    /// A place for one file more.
    ///
    /// # Errors
    /// All, or all of the tenant's, are taken.
    pub fn place(&self, who: &Principal) -> Result<Place, NoBatch> {
        self.uploads.place(who.tenant_id(), UPLOADS, UPLOADS_OF_TENANT).map_err(|full| NoBatch::No(No::Full(full)))
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
                Ok((_, owned)) => Some(owned).filter(|owned| owned.files.iter().any(|file| file == id)),
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
                let booking = Booking::new(&self.texts, &self.books, who, batch, tells).await;
                Some(booking.ok_or(NoBatch::Denied(Denied::Accounting))?)
            }
        };
        let path = format!("/files/{id}/content");
        let response = self.upstream(who)?.rest().batch(Method::GET, &path, None, who, LONGEST).await?;
        Ok(Content { response, booking })
    }

    /// Forgets a file.
    ///
    /// # Errors
    /// As [`Self::file`].
    pub async fn delete(&self, who: &Principal, id: &str) -> Result<Value, NoBatch> {
        self.owned_file(who, id).await?;
        self.ask(who, Method::DELETE, &format!("/files/{id}"), None).await
    }

    /// Begins a batch. What its requests may come to at most must be left in the budgets now; nothing is held for it.
    ///
    /// # Errors
    /// Why it is not begun.
    pub async fn create(&self, who: &Principal, mut asked: Map<String, Value>) -> Result<Value, NoBatch> {
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
                return Err(wrong(field, "invalid_value", message).into());
            }
        }
        let (object, _) = self.owned_file(who, &file).await.map_err(|no| match no {
            NoBatch::File(id) => {
                let id: String = id.chars().take(64).collect();
                wrong("input_file_id", "invalid_value", format!("No such File object: {id}")).into()
            }
            other => other,
        })?;
        let label = object.get("filename").and_then(Value::as_str).and_then(Label::read);
        let mut metadata = metadata(asked.get("metadata"))?;
        metadata.insert(TENANT.to_owned(), who.tenant_id().into());
        match label {
            Some(label) => {
                let (input_tokens, output_tokens) = (label.input, label.output);
                let total_tokens = input_tokens.saturating_add(output_tokens);
                let usage = Usage { input_tokens, output_tokens, total_tokens, ..Usage::default() };
                let most = Amount::of_batch(&self.texts.prices.load(), &label.model, &usage);
                let begun = self.texts.budgets.may_begin(who, most);
                begun.map_err(|spent| NoBatch::No(No::Spent(spent)))?;
                metadata.insert(MODEL.to_owned(), label.model.into());
            }
            None if who.tenant().is_some() => return Err(NoBatch::File(file)),
            None => {}
        }
        asked.insert("metadata".to_owned(), metadata.into());
        self.ask(who, Method::POST, "/batches", Some(&asked.into())).await.map(shown)
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

    /// The tenant's batches, newest first: the account's are looked through until there are as many as are wanted.
    ///
    /// # Errors
    /// When they cannot be had, or there are too many others among them.
    pub async fn list(&self, who: &Principal, wanted: Wanted) -> Result<Value, NoBatch> {
        if wanted.after.as_deref().is_some_and(|after| !is_call(after)) {
            return Err(wrong("after", "invalid_value", "`after` must be the id of a batch.".to_owned()).into());
        }
        let (mut after, mut found) = (wanted.after, Vec::new());
        for _ in 0..PAGES {
            let from = after.as_ref().map_or(String::new(), |after| format!("&after={after}"));
            let page = self.ask(who, Method::GET, &format!("/batches?limit={PAGE}{from}"), None).await?;
            let all = page.get("data").and_then(Value::as_array).cloned().unwrap_or_default();
            let last = all.last().and_then(|batch| batch.get("id")?.as_str()).filter(|id| is_call(id));
            after = last.map(str::to_owned);
            for batch in all.into_iter().filter(|batch| owned(who, batch).is_some()) {
                if found.len() == wanted.limit {
                    return Ok(listed(found, true));
                }
                found.push(shown(batch));
            }
            let more = page.get("has_more").is_some_and(|more| more == true);
            if !more || after.is_none() {
                return Ok(listed(found, false));
            }
        }
        if found.is_empty() {
            let message = format!("none of the account's last {} batches is the tenant's", PAGES * PAGE);
            return Err(NoBatch::No(No::Service(UpstreamError::Broken(message))));
        }
        Ok(listed(found, true))
    }
}

/// Whether one who speaks for `who` may see what is `tenant`'s. Where nobody is asked for a credential there is nobody to keep it from.
fn sees(who: &Principal, tenant: Option<&str>) -> bool {
    who.tenant().is_none() || tenant == Some(who.tenant_id())
}

fn owned(who: &Principal, batch: &Value) -> Option<Owned> {
    let text = |field: &str| batch.pointer(field).and_then(Value::as_str);
    sees(who, text(&format!("/metadata/{TENANT}"))).then_some(())?;
    let files = ["/output_file_id", "/error_file_id"].into_iter().filter_map(text).map(str::to_owned).collect();
    let created_at = batch.get("created_at").and_then(Value::as_u64).unwrap_or_default();
    let model = text(&format!("/metadata/{MODEL}")).unwrap_or_default().to_owned();
    Some(Owned { id: text("/id")?.to_owned(), model, created_at, files })
}

/// A batch without what is the relay's.
fn shown(mut batch: Value) -> Value {
    let metadata = batch.get_mut("metadata").and_then(Value::as_object_mut);
    let bare = metadata.is_some_and(|metadata| {
        metadata.retain(|name, _| name != TENANT && name != MODEL);
        metadata.is_empty()
    });
    if bare {
        batch.as_object_mut().and_then(|batch| batch.insert("metadata".to_owned(), Value::Null));
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

fn listed(batches: Vec<Value>, more: bool) -> Value {
    let id = |batch: Option<&Value>| batch.and_then(|batch| batch.get("id").cloned());
    let (first, last) = (id(batches.first()), id(batches.last()));
    json!({"object": "list", "data": batches, "first_id": first, "last_id": last, "has_more": more})
}

fn wrong(field: &'static str, code: &'static str, message: String) -> Wrong {
    Wrong { code, message, param: Some(field) }
}

/// What the tenant says of its batch.
fn metadata(asked: Option<&Value>) -> Result<Map<String, Value>, Wrong> {
    let most = MOST_METADATA - 2;
    let metadata = match asked {
        None | Some(Value::Null) => Map::new(),
        Some(Value::Object(metadata)) if metadata.len() <= most => metadata.clone(),
        Some(_) => {
            let message = format!("`metadata` must be an object of at most {most} strings.");
            return Err(wrong("metadata", "invalid_value", message));
        }
    };
    match metadata.keys().find(|name| *name == TENANT || *name == MODEL) {
        Some(name) => Err(wrong("metadata", "invalid_value", format!("`metadata.{name}` is the relay's own."))),
        None => Ok(metadata),
    }
}

impl Wanted {
    /// From a query; a number that is none is the usual one.
    pub fn of(query: &HashMap<String, String>) -> Self {
        let limit = query.get("limit").and_then(|limit| limit.parse().ok()).unwrap_or(20).clamp(1, PAGE);
        Self { after: query.get("after").cloned(), limit }
    }
}
