//! The relay, or any service of the same shape, as whole-file work asks it: one request, one answer or the reason why not.
//!
//! Tries nothing twice and waits for nothing: what a refusal means for the file, or for the whole run, is said here and acted on in
//! [`super::work`]. Recordings are sent from the disk, so that a request holds none of them in memory.
use std::time::Duration;

use axum::http::{HeaderMap, StatusCode, header::LOCATION};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use reqwest::{RequestBuilder, Response, multipart};
use rustls::pki_types::CertificateDer;
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::Value;

use super::engine::{Answer, Engine, Failure, NO_ADDRESS, Upload, Wish};
use crate::{
    caller::tls_config,
    upstream::{limits::QUOTA, rest::retry_after},
};

mod batches;

pub use batches::NoBatch;

/// Answers are not longer, bytes.
const MAX_ANSWER: usize = 64 << 20;
/// A wait beyond this is for another day.
const LONGEST_WAIT: Duration = Duration::from_secs(600);
/// What is waited for where a refusal names nothing.
const USUAL_WAIT: Duration = Duration::from_secs(2);
/// Longest text of an error that is shown, characters.
const SHOWN: usize = 300;

impl Wish {
    /// The form in which it is answered: one model tells speakers (realtime-protocol section 9).
    fn format(&self) -> &'static str {
        match () {
            () if self.diarizes() => "diarized_json",
            () if self.asks_for_times() => "verbose_json",
            () => "json",
        }
    }

    /// Whether the model tells who speaks.
    fn diarizes(&self) -> bool {
        self.model.ends_with("-diarize")
    }
}

/// Where to ask.
#[derive(Debug, Clone)]
pub struct Relay {
    http: reqwest::Client,
    base: String,
    key: Option<SecretString>,
}

impl Relay {
    /// At this base (`http://127.0.0.1:8080/v1`), with this credential. `ca`: authorities to trust besides the public ones; `longest`: a
    /// whole answer.
    ///
    /// # Errors
    /// What is wrong with the base.
    pub fn new(
        base: &str,
        key: Option<SecretString>,
        ca: Vec<CertificateDer<'static>>,
        longest: Duration,
    ) -> Result<Self, String> {
        let base = whole_base(base)?;
        let mut tls = tls_config(&ca).map_err(|e| e.to_string())?;
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .connect_timeout(Duration::from_secs(10))
            .timeout(longest)
            .pool_idle_timeout(Duration::from_secs(20))
            .user_agent(concat!("voxrelay/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|e| e.to_string())?;
        Ok(Self { http, base, key })
    }

    /// Where it asks.
    pub fn base(&self) -> &str {
        &self.base
    }

    fn request(&self, path: &str, key: &str) -> RequestBuilder {
        self.post(path).header("idempotency-key", key)
    }

    fn post(&self, path: &str) -> RequestBuilder {
        let request = self.http.post(format!("{}{path}", self.base)).header("x-voxrelay-class", "batch");
        match &self.key {
            Some(secret) => request.bearer_auth(secret.expose_secret()),
            None => request,
        }
    }

    /// Whether nothing is at the address for recordings. Asked without one: who has no such address hangs up in the middle of a long
    /// request, and its answer is lost.
    pub(super) async fn lacks_transcriptions(&self) -> bool {
        let answer = answer(self.post("/audio/transcriptions")).await;
        matches!(answer, Err(Failure::Stop { code, .. }) if code == NO_ADDRESS)
    }

    /// Has a recording written down. `key`: the same for the same question.
    ///
    /// # Errors
    /// Why it was not.
    pub async fn transcribe(&self, upload: &Upload, wish: &Wish, key: &str) -> Result<Answer, Failure> {
        let gone = |e: std::io::Error| Failure::Item {
            code: "unreadable".to_owned(),
            message: format!("{}: cannot be read: {e}", upload.path.display()),
        };
        let part = multipart::Part::file(&upload.path).await.map_err(gone)?.file_name(upload.name.clone());
        let part = part.mime_str(upload.media_type).map_err(|e| Failure::Again { message: e.to_string() })?;
        let mut form = multipart::Form::new().text("model", wish.model.clone());
        for (name, value) in [("language", &wish.language), ("prompt", &wish.prompt)] {
            if let Some(value) = value {
                form = form.text(name, value.clone());
            }
        }
        if wish.diarizes() {
            // What is longer than 30 s has to be cut by the service, and it wants to be told so.
            form = form.text("chunking_strategy", "auto");
        }
        // The file comes last, so that whoever reads the form as it comes knows what it is for.
        let form = form.text("response_format", wish.format()).part("file", part);
        answer(self.request("/audio/transcriptions", key).multipart(form)).await
    }

    /// Asks for a response.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn respond(&self, body: &Value, key: &str) -> Result<Answer, Failure> {
        answer(self.request("/responses", key).json(body)).await
    }
}

impl Engine for Relay {
    fn transcribe<'a>(
        &'a self,
        upload: &'a Upload,
        wish: &'a Wish,
        key: &'a str,
    ) -> BoxFuture<'a, Result<Answer, Failure>> {
        Box::pin(Relay::transcribe(self, upload, wish, key))
    }
}

/// The base of a relay's addresses, without a slash at its end; a bare host is a relay's.
///
/// # Errors
/// What is wrong with it.
pub(super) fn whole_base(base: &str) -> Result<String, String> {
    let wrong = || {
        let shown: String = base.chars().take(SHOWN).collect();
        format!("found `{shown}`; allowed: the URL of a relay, such as http://127.0.0.1:8080/v1")
    };
    let url = reqwest::Url::parse(base).map_err(|_| wrong())?;
    if !["http", "https"].contains(&url.scheme()) || url.host_str().is_none() || url.query().is_some() {
        return Err(wrong());
    }
    let base = url.as_str().trim_end_matches('/');
    Ok(if url.path() == "/" { format!("{base}/v1") } else { base.to_owned() })
}

async fn answer(request: RequestBuilder) -> Result<Answer, Failure> {
    let response = request.send().await.map_err(|error| broke(&error))?;
    let (status, headers) = (response.status(), response.headers().clone());
    let body = read(response).await?;
    if !status.is_success() {
        return Err(failure(status, &headers, &body));
    }
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    Ok(Answer {
        cost: text("x-voxrelay-cost-usd").and_then(|cost| cost.parse().ok()),
        waited: text("x-voxrelay-waited-ms")
            .and_then(|ms| ms.parse().ok())
            .map(Duration::from_millis)
            .unwrap_or_default(),
        repeated: text("x-voxrelay-repeated").is_some(),
        route: text("x-voxrelay-route").map(str::to_owned),
        body,
    })
}

fn broke(error: &reqwest::Error) -> Failure {
    let mut cause: &dyn std::error::Error = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    match (error.is_connect(), error.is_timeout()) {
        (true, _) => Failure::Away { message: format!("the relay is not reached: {cause}") },
        (_, true) => Failure::Again { message: "no answer: it took too long".to_owned() },
        _ => Failure::Again { message: format!("no answer: {cause}") },
    }
}

async fn read(mut response: Response) -> Result<Bytes, Failure> {
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(|error| broke(&error))? {
        body.extend_from_slice(&piece);
        if body.len() > MAX_ANSWER {
            return Err(Failure::Item { code: "too_long".to_owned(), message: "the answer is too long".to_owned() });
        }
    }
    Ok(body.into())
}

/// What a refusal says: its code, its message, and the wait that it names.
fn told(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> (String, String, Option<Duration>) {
    let found = serde_json::from_slice::<Value>(body).unwrap_or_default();
    let text = |field: &str| found.get("error").and_then(|error| error.get(field)?.as_str());
    let message: String = text("message").unwrap_or_default().chars().take(SHOWN).collect();
    let message = if message.is_empty() { format!("HTTP {status}") } else { message };
    let code = text("code").or(text("type")).unwrap_or("refused").to_owned();
    let to = headers.get(LOCATION).and_then(|to| to.to_str().ok()).filter(|_| status.is_redirection());
    let message = match to {
        Some(to) => format!("HTTP {status}: it is now at {}", to.chars().take(SHOWN).collect::<String>()),
        None => message,
    };
    (code, message, retry_after(headers))
}

/// What a refusal means.
fn failure(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Failure {
    let (code, message, wait) = told(status, headers, body);
    // No wait makes a request smaller.
    if status == StatusCode::TOO_MANY_REQUESTS && wait.is_none() && is_too_large(&message) {
        return Failure::Item { code, message };
    }
    refusal(status.as_u16(), code, message, wait)
}

/// More than all that is ever allowed at once: how a relay says it, and OpenAI itself. Other services may mean nothing but "later".
fn is_too_large(message: &str) -> bool {
    ["The request is larger than", "Request too large"].iter().any(|says| message.starts_with(says))
}

/// It is money that is missing, not speed.
pub(super) fn is_money(code: &str) -> bool {
    code == "budget_exhausted" || QUOTA.contains(&code)
}

/// What an HTTP status means, with the code of the error that came with it, or `refused`.
pub(super) fn refusal(status: u16, code: String, message: String, wait: Option<Duration>) -> Failure {
    match (status, code.as_str()) {
        (401 | 403, _) => Failure::Stop { code, message, wait: None },
        (300..=399, _) => {
            let message = format!("{message}; --url must be where the relay is, for nobody is followed elsewhere");
            Failure::Stop { code: "moved".to_owned(), message, wait: None }
        }
        // The relay's own account: no file will fare better.
        (502, "upstream_auth" | "upstream_refused") => Failure::Stop { code, message, wait: None },
        (402, _) if wait.is_none() => Failure::Stop { code, message, wait },
        (402 | 429, _) => too_much(wait, code, message),
        // The service is in trouble, perhaps with this file alone.
        (503, "upstream_unavailable") => Failure::Again { message },
        (503, _) => Failure::Wait { wait: wait.unwrap_or(USUAL_WAIT), message },
        // The model, or the address: not this file's fault.
        (404, "model_not_found") => Failure::Stop { code, message, wait: None },
        (404 | 405 | 501, "refused" | "not_found" | "invalid_request_error" | "unknown_url" | "upstream_refused") => {
            let message = format!("{message}: there is nobody here who writes recordings down or answers questions");
            Failure::Stop { code: NO_ADDRESS.to_owned(), message, wait: None }
        }
        // The first request with this key has failed meanwhile, and may be sent again.
        (409, "idempotency_key_failed") => Failure::Again { message },
        (409, "idempotency_key_reused") => Failure::Item { code, message },
        (408 | 409 | 425 | 500..=599, _) => Failure::Again { message: format!("HTTP {status}: {message}") },
        _ => Failure::Item { code, message },
    }
}

/// Too much was asked for. A wait that is too long is for another day; money that others hold comes back soon, and other money not at all.
pub(super) fn too_much(wait: Option<Duration>, code: String, message: String) -> Failure {
    let another_day = wait.map_or(is_money(&code), |wait| wait > LONGEST_WAIT);
    if another_day {
        Failure::Stop { code, message, wait }
    } else {
        Failure::Wait { wait: wait.unwrap_or(USUAL_WAIT), message }
    }
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderName, HeaderValue};

    use super::*;

    #[test]
    fn refusals_are_told_apart() {
        let told = |status: u16, code: &str, wait: Option<&str>, message: &str| {
            let body = format!(r#"{{"error":{{"message":"{message}","code":"{code}"}}}}"#);
            let headers =
                wait.map(|wait| (HeaderName::from_static("retry-after"), HeaderValue::from_str(wait).unwrap()));
            let headers =
                headers.into_iter().chain([(HeaderName::from_static("x-request-id"), HeaderValue::from_static("r"))]);
            failure(StatusCode::from_u16(status).unwrap(), &headers.collect(), body.as_bytes())
        };
        let of = |status, code: &str, wait| told(status, code, wait, "No.");
        for (status, code, wait, want) in [
            (400, "invalid_value", None, "item"),
            (413, "request_too_large", None, "item"),
            (401, "invalid_api_key", None, "stop"),
            (403, "forbidden", None, "stop"),
            (404, "model_not_found", None, "stop"),
            (404, "not_found", None, "stop"),
            (404, "upstream_refused", None, "stop"),
            (402, "payment_required", None, "stop"),
            (405, "refused", None, "stop"),
            (501, "not_found", None, "stop"),
            (429, "rate_limit_exceeded", Some("2"), "wait"),
            (429, "rate_limit_exceeded", Some("86400"), "stop"),
            // Of a service that is no relay.
            (429, "rate_limit_exceeded", None, "wait"),
            (429, "1302", None, "wait"),
            (301, "refused", None, "stop"),
            (308, "refused", None, "stop"),
            (429, "budget_exhausted", Some("3600"), "stop"),
            (429, "budget_exhausted", Some("1"), "wait"),
            (429, "budget_exhausted", None, "stop"),
            (502, "upstream_auth", None, "stop"),
            (502, "upstream_refused", None, "stop"),
            (503, "upstream_unavailable", Some("5"), "again"),
            (503, "accounting_unavailable", Some("5"), "wait"),
            (409, "idempotency_key_reused", None, "item"),
            (429, "insufficient_quota", None, "stop"),
            (503, "overloaded", Some("5"), "wait"),
            (503, "overloaded", None, "wait"),
            (409, "idempotency_key_failed", Some("1"), "again"),
            (502, "upstream_unavailable", None, "again"),
            (500, "server_error", None, "again"),
        ] {
            let found = match of(status, code, wait) {
                Failure::Item { .. } => "item",
                Failure::Away { .. } => "away",
                Failure::Wait { .. } => "wait",
                Failure::Again { .. } => "again",
                Failure::Stop { .. } => "stop",
            };
            assert_eq!(found, want, "{status} {code} {wait:?}");
        }
        for message in [
            "The request is larger than your limit (tokens a minute: 900 of 800).",
            "The request is larger than the account's limit (tokens a minute).",
            "Request too large for gpt-4o in organization org-x on tokens per min (TPM): Limit 30000, Requested 50000.",
        ] {
            let failure = told(429, "rate_limit_exceeded", None, message);
            assert!(matches!(failure, Failure::Item { .. }), "{failure:?}");
        }
    }

    #[test]
    fn an_address_that_has_moved_is_named() {
        let headers = [(LOCATION, HeaderValue::from_static("https://relay.example/v1/audio/transcriptions"))];
        let failure = failure(StatusCode::PERMANENT_REDIRECT, &headers.into_iter().collect(), b"<html>");
        let Failure::Stop { code, message, wait: None } = failure else { panic!("{failure:?}") };
        assert_eq!(code, "moved");
        assert!(message.contains("now at https://relay.example/v1/audio/transcriptions; --url must be"), "{message}");
    }

    #[test]
    fn bases_are_urls() {
        let base =
            |text| Relay::new(text, None, Vec::new(), Duration::from_secs(1)).map(|relay| relay.base().to_owned());
        assert_eq!(base("http://127.0.0.1:8080").unwrap(), "http://127.0.0.1:8080/v1");
        assert_eq!(base("https://api.openai.com/v1/").unwrap(), "https://api.openai.com/v1");
        for wrong in ["", "relay", "ws://127.0.0.1/v1", "http://h/v1?key=x"] {
            assert!(base(wrong).unwrap_err().contains("allowed: the URL of a relay"), "{wrong}");
        }
    }
}
