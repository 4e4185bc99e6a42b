//! `/files`: what batches read, and what they have written.
use std::{
    collections::HashMap,
    sync::{Arc, MutexGuard, PoisonError},
};

use axum::{
    body::{Body, Bytes},
    extract::{FromRequest as _, Multipart, Path, Request, State},
    http::{HeaderMap, HeaderValue, Response, StatusCode, header},
};
use serde_json::{Value, json};
use tokio::time;

use super::{
    super::{
        faults::Place,
        rest::{Answer, No},
        validate::{Refusal, shorten},
    },
    Text,
    form::upload,
    sse,
    visit::Visit,
};

/// Largest file, bytes (the service's limit for batches).
const MAX_FILE: usize = 200 << 20;
/// Files that are kept; with so many of all kinds none is taken.
const MAX_KEPT: usize = 10_000;

/// All files.
#[derive(Debug, Default)]
pub(super) struct Files(HashMap<String, File>);

/// One file.
#[derive(Debug, Clone)]
pub(super) struct File {
    pub(super) account: String,
    pub(super) name: String,
    pub(super) purpose: String,
    pub(super) bytes: Bytes,
    /// Unix seconds.
    pub(super) created: u64,
}

impl File {
    fn json(&self, id: &str) -> Value {
        json!({
            "id": id,
            "object": "file",
            "bytes": self.bytes.len(),
            "created_at": self.created,
            "expires_at": null,
            "filename": self.name,
            "purpose": self.purpose,
            "status": "processed",
            "status_details": null,
        })
    }
}

impl Text {
    fn files(&self) -> MutexGuard<'_, Files> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An account's file.
    pub(super) fn file(&self, account: &str, id: &str) -> Option<File> {
        self.files().0.get(id).filter(|file| file.account == account).cloned()
    }

    /// Keeps a file that was uploaded.
    fn keep_file(&self, id: &str, file: File) -> Result<(), No> {
        let mut files = self.files();
        files.keep(id.to_owned(), file)?;
        self.world.stats.lock().text.files = files.0.len() as u64;
        Ok(())
    }

    /// Keeps a file that a batch has written, of which there are as many as batches allow.
    pub(super) fn write_file(&self, id: &str, file: File) {
        let mut files = self.files();
        files.0.insert(id.to_owned(), file);
        self.world.stats.lock().text.files = files.0.len() as u64;
    }

    fn drop_file(&self, id: &str) {
        let mut files = self.files();
        files.0.remove(id);
        self.world.stats.lock().text.files = files.0.len() as u64;
    }
}

impl Files {
    fn keep(&mut self, id: String, file: File) -> Result<(), No> {
        if self.0.len() >= MAX_KEPT {
            return Err(full("files", MAX_KEPT));
        }
        self.0.insert(id, file);
        Ok(())
    }
}

/// There is no room for more. The words are ours: the service's own limit is one of bytes.
pub(super) fn full(what: &str, most: usize) -> No {
    let message = format!("The simulator keeps at most {most} {what}.");
    No::new(StatusCode::SERVICE_UNAVAILABLE, Refusal::new("storage_full", message))
}

fn no_file(id: &str) -> No {
    let message = format!("No such File object: {}", shorten(id));
    No::new(StatusCode::NOT_FOUND, Refusal { code: None, ..Refusal::new("", message) }.at("id"))
}

/// Takes a file.
pub(super) async fn create(State(text): State<Arc<Text>>, request: Request) -> Response<Body> {
    let headers = request.headers().clone();
    let mut visit = Visit::new(&text, Place::Files, &headers);
    let answer = match visit.enter(&headers).await {
        Ok(()) => take(&mut visit, request).await,
        Err(no) => Err(no),
    };
    visit.leave(answer)
}

async fn take(visit: &mut Visit<'_>, request: Request) -> Answer {
    let broken = || No::bad(Refusal::new("invalid_multipart", "Could not parse multipart form"));
    let mut form = Multipart::from_request(request, &()).await.map_err(|_| broken())?;
    let (mut file, mut purpose) = (None, None);
    while let Some(field) = form.next_field().await.map_err(|_| broken())? {
        match field.name().unwrap_or_default() {
            "file" => {
                let name = field.file_name().unwrap_or("file").to_owned();
                file = Some((name, upload(field, MAX_FILE).await?));
            }
            "purpose" => purpose = Some(String::from_utf8_lossy(&upload(field, 1_024).await?).into_owned()),
            _ => drop(upload(field, MAX_FILE).await?),
        }
    }
    let (name, bytes) = file.ok_or_else(|| No::bad(Refusal::missing("file")))?;
    let purpose = purpose.ok_or_else(|| No::bad(Refusal::missing("purpose")))?;
    if purpose != "batch" {
        return Err(No::bad(Refusal::choice("purpose", &purpose, &["batch"])));
    }
    let text = visit.text;
    time::sleep(visit.dice.delay(text.world.config.delays.rest)).await;
    let id = visit.dice.id("file");
    let file =
        File { account: visit.account.clone(), name, purpose, bytes: bytes.into(), created: text.world.unix_now() };
    let answer = sse::json(&file.json(&id), visit.fault.as_ref());
    text.keep_file(&id, file)?;
    Ok(answer)
}

/// What a file is.
pub(super) async fn read(State(text): State<Arc<Text>>, Path(id): Path<String>, headers: HeaderMap) -> Response<Body> {
    let mut visit = Visit::new(&text, Place::Files, &headers);
    let answer = visit.enter(&headers).await.and_then(|()| {
        let file = text.file(&visit.account, &id).ok_or_else(|| no_file(&id))?;
        Ok(sse::json(&file.json(&id), visit.fault.as_ref()))
    });
    visit.leave(answer)
}

/// What is in a file.
pub(super) async fn content(
    State(text): State<Arc<Text>>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Response<Body> {
    let mut visit = Visit::new(&text, Place::Files, &headers);
    let answer = visit.enter(&headers).await.and_then(|()| {
        let file = text.file(&visit.account, &id).ok_or_else(|| no_file(&id))?;
        let mut response = Response::new(Body::from(file.bytes.clone()));
        let kind = HeaderValue::from_static("application/octet-stream");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        let body = String::from_utf8_lossy(&file.bytes).into_owned();
        Ok(sse::plain(response, body, visit.fault.as_ref()))
    });
    visit.leave(answer)
}

/// Forgets a file.
pub(super) async fn delete(
    State(text): State<Arc<Text>>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Response<Body> {
    let mut visit = Visit::new(&text, Place::Files, &headers);
    let answer = visit.enter(&headers).await.and_then(|()| {
        text.file(&visit.account, &id).ok_or_else(|| no_file(&id))?;
        text.drop_file(&id);
        Ok(sse::json(&json!({"id": id, "object": "file", "deleted": true}), visit.fault.as_ref()))
    });
    visit.leave(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_kept_is_not_taken() {
        let file = File {
            account: String::new(),
            name: String::new(),
            purpose: String::new(),
            bytes: Bytes::new(),
            created: 0,
        };
        let mut files = Files::default();
        (0..MAX_KEPT).for_each(|n| assert!(files.keep(n.to_string(), file.clone()).is_ok()));
        let no = files.keep("more".to_owned(), file).unwrap_err();
        assert!(matches!(no, No::Refused { status: StatusCode::SERVICE_UNAVAILABLE, .. }));
    }
}
