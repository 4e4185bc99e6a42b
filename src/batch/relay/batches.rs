//! Files and batches at the relay, as whole-file work asks for them: one request, one answer or the reason why not.
use std::{path::Path, time::Duration};

use axum::http::{Method, StatusCode};
use reqwest::{RequestBuilder, Response, multipart};
use secrecy::ExposeSecret as _;
use serde_json::Value;

use super::{Failure, Relay, broke, is_money, read, told};

/// A file goes or comes within this.
const LONGEST_FILE: Duration = Duration::from_secs(3_600);
/// A file is forgotten within this.
const LONGEST_DELETE: Duration = Duration::from_secs(10);

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoBatch {
    /// No request will work, now or today.
    Stop {
        /// For programs.
        code: String,
        /// For people.
        message: String,
        /// When it may work again; none: when somebody has changed something.
        wait: Option<Duration>,
    },
    /// Not now: nothing was done.
    Later {
        /// For programs.
        code: String,
        /// For people.
        message: String,
    },
    /// This one will never work.
    Never {
        /// For programs.
        code: String,
        /// For people.
        message: String,
    },
    /// There is no such file or batch.
    Gone,
    /// It may have been heard or not.
    Lost(String),
}

impl Relay {
    fn batches(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.base)).header("x-voxrelay-class", "batch");
        match &self.key {
            Some(secret) => request.bearer_auth(secret.expose_secret()),
            None => request,
        }
    }

    /// Uploads a file of requests under this name; its object.
    ///
    /// # Errors
    /// Why it was not taken.
    pub async fn upload_batch(&self, file: &Path, name: String) -> Result<Value, NoBatch> {
        let gone = |error: std::io::Error| NoBatch::Lost(format!("{}: cannot be read: {error}", file.display()));
        let part = multipart::Part::file(file).await.map_err(gone)?.file_name(name);
        let part = part.mime_str("application/jsonl").map_err(|error| NoBatch::Lost(error.to_string()))?;
        let form = multipart::Form::new().text("purpose", "batch").part("file", part);
        object(self.batches(Method::POST, "/files").multipart(form).timeout(LONGEST_FILE)).await
    }

    /// Makes a batch; it.
    ///
    /// # Errors
    /// Why it was not made.
    pub async fn create_batch(&self, body: &Value) -> Result<Value, NoBatch> {
        object(self.batches(Method::POST, "/batches").json(body)).await
    }

    /// A page of batches, newest first.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn list_batches(&self, after: Option<&str>) -> Result<Value, NoBatch> {
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.append_pair("limit", "100").extend_pairs(after.map(|after| ("after", after)));
        object(self.batches(Method::GET, &format!("/batches?{}", query.finish()))).await
    }

    /// A batch.
    ///
    /// # Errors
    /// Why it cannot be seen.
    pub async fn look_at_batch(&self, id: &str) -> Result<Value, NoBatch> {
        object(self.batches(Method::GET, &format!("/batches/{id}"))).await
    }

    /// Ends a batch early; it.
    ///
    /// # Errors
    /// Why it was not ended.
    pub async fn cancel_batch(&self, id: &str) -> Result<Value, NoBatch> {
        object(self.batches(Method::POST, &format!("/batches/{id}/cancel")).header("content-length", "0")).await
    }

    /// What is in a file, on its way; a relay says in each line what it cost.
    ///
    /// # Errors
    /// Why it cannot be had.
    pub async fn batch_file(&self, id: &str) -> Result<Response, NoBatch> {
        let request = self.batches(Method::GET, &format!("/files/{id}/content")).header("x-voxrelay-costs", "lines");
        sent(request.timeout(LONGEST_FILE)).await
    }

    /// Has a file forgotten.
    ///
    /// # Errors
    /// Why it was not.
    pub async fn delete_file(&self, id: &str) -> Result<Value, NoBatch> {
        object(self.batches(Method::DELETE, &format!("/files/{id}")).timeout(LONGEST_DELETE)).await
    }
}

async fn sent(request: RequestBuilder) -> Result<Response, NoBatch> {
    let response = request.send().await.map_err(|error| lost(broke(&error)))?;
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let headers = response.headers().clone();
    let body = read(response).await.unwrap_or_default();
    let (code, message, wait) = told(status, &headers, &body);
    Err(meaning(status, code, message, wait))
}

async fn object(request: RequestBuilder) -> Result<Value, NoBatch> {
    let body = read(sent(request).await?).await.map_err(lost)?;
    serde_json::from_slice(&body).map_err(|error| NoBatch::Lost(format!("the answer is not JSON: {error}")))
}

fn lost(failure: Failure) -> NoBatch {
    let (Failure::Item { message, .. }
    | Failure::Wait { message, .. }
    | Failure::Away { message }
    | Failure::Again { message }
    | Failure::Stop { message, .. }) = failure;
    NoBatch::Lost(message)
}

fn meaning(status: StatusCode, code: String, message: String, wait: Option<Duration>) -> NoBatch {
    match (status.as_u16(), code.as_str()) {
        (401..=403, _) => NoBatch::Stop { code, message, wait },
        (429, money) if is_money(money) => NoBatch::Stop { code, message, wait },
        // The relay's own account: no batch will fare better.
        (502, "upstream_auth" | "upstream_refused") => NoBatch::Stop { code, message, wait: None },
        (429, _) => NoBatch::Later { code, message },
        (404, _) => NoBatch::Gone,
        (408 | 409 | 425 | 500..=599, _) => NoBatch::Lost(format!("HTTP {status}: {message}")),
        _ => NoBatch::Never { code, message },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_told_apart() {
        for (status, code, want) in [
            (400, "mixed_models", "never"),
            (413, "request_too_large", "never"),
            (401, "invalid_api_key", "stop"),
            (403, "forbidden", "stop"),
            (429, "budget_exhausted", "stop"),
            (429, "insufficient_quota", "stop"),
            (502, "upstream_auth", "stop"),
            (429, "rate_limit_exceeded", "later"),
            (404, "not_found", "gone"),
            (409, "", "lost"),
            (502, "upstream_unavailable", "lost"),
            (503, "overloaded", "lost"),
        ] {
            let found = match meaning(StatusCode::from_u16(status).unwrap(), code.to_owned(), String::new(), None) {
                NoBatch::Stop { .. } => "stop",
                NoBatch::Later { .. } => "later",
                NoBatch::Never { .. } => "never",
                NoBatch::Gone => "gone",
                NoBatch::Lost(_) => "lost",
            };
            assert_eq!(found, want, "{status} {code}");
        }
    }
}
