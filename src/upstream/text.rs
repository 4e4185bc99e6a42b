//! The service's REST side for text: responses and transcriptions. One request, one try; who is asked, and how often, is decided above.
use std::time::Duration;

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use bytes::Bytes;
use reqwest::{Body, RequestBuilder, Response, multipart};
use serde_json::{Map, Value, json};

use super::{
    UpstreamError, error,
    limits::{self, Source},
    rest::{self, Rest},
};
use crate::admit::{
    Principal,
    governor::{Dimension, Heard},
};

/// Codes for a model that the service does not know.
const MODEL_CODES: [&str; 3] = ["model_not_found", "invalid_model", "missing_model"];

/// A part of a form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Its name.
    pub name: String,
    /// The file's name, if it is a file.
    pub file: Option<String>,
    /// Its type.
    pub mime: Option<String>,
    /// What is in it.
    pub bytes: Bytes,
}

/// A body.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    /// JSON.
    Json(Map<String, Value>),
    /// A form.
    Form(Vec<Part>),
}

/// Why there is no answer.
#[derive(Debug)]
pub enum NoAnswer {
    /// The request is wrong, in the service's own words.
    Told {
        /// Its status.
        status: StatusCode,
        /// Its body, JSON.
        body: Bytes,
        /// It is the model that it does not know: another route's may do.
        model: bool,
    },
    /// Something else.
    Error(UpstreamError),
}

impl Rest {
    /// Sends a request, whose answer is whole within `longest`.
    ///
    /// # Errors
    /// Why there is no answer. Words of the service's are passed on only where they are about the request, and look as if they had no
    /// key in them.
    pub async fn text(
        &self,
        path: &str,
        content: Content,
        who: &Principal,
        longest: Duration,
    ) -> Result<Response, NoAnswer> {
        let request = self.request(path, who, None);
        let request = match content {
            Content::Json(object) => request.json(&object),
            Content::Form(parts) => request.multipart(form(parts).map_err(NoAnswer::Error)?),
        };
        self.told(request, who, longest).await
    }

    /// Sends what is ready to be sent.
    pub(super) async fn told(
        &self,
        request: RequestBuilder,
        who: &Principal,
        longest: Duration,
    ) -> Result<Response, NoAnswer> {
        let response = match request.timeout(longest).send().await {
            Ok(response) => response,
            Err(error) if error.is_timeout() && !error.is_connect() => {
                let timeout = UpstreamError::Timeout { stage: "answer a request", after: longest };
                return Err(NoAnswer::Error(timeout));
            }
            Err(error) => return Err(NoAnswer::Error(self.unsent(&error))),
        };
        let status = StatusCode::from_u16(response.status().as_u16()).unwrap_or(StatusCode::BAD_GATEWAY);
        if status.is_success() {
            return Ok(response);
        }
        // What is about the account is said in words of ours.
        if [400, 404, 409, 413, 415, 422].contains(&status.as_u16()) {
            let body = rest::read(response).await.unwrap_or_default();
            return Err(told(status, body));
        }
        let error = rest::refusal(response).await;
        self.board.refused(Source::Text, who.tenant_id(), &error);
        Err(NoAnswer::Error(error))
    }
}

fn told(status: StatusCode, body: Bytes) -> NoAnswer {
    let found = serde_json::from_slice::<Value>(&body).ok();
    let error = found.as_ref().and_then(|body| body.get("error")).filter(|error| error.is_object());
    let text = |field: &str| error?.get(field)?.as_str();
    let code = text("code").map(error::plain_code);
    let model = code.as_deref().is_some_and(|code| MODEL_CODES.contains(&code));
    if error.is_some() && !has_key(&body) {
        return NoAnswer::Told { status, body, model };
    }
    let param = text("param").and_then(error::plain_field);
    let error = json!({"error": {"message": "The service refused the request.", "type": "invalid_request_error", "param": param, "code": code}});
    NoAnswer::Told { status, body: error.to_string().into(), model }
}

/// Whether something looks like an API key: `sk-` at the beginning of a word, and much behind it.
fn has_key(body: &[u8]) -> bool {
    const LEAST: usize = 8;
    memchr::memmem::find_iter(body, b"sk-").any(|at| {
        let word = |b: &u8| b.is_ascii_alphanumeric() || b"-_*".contains(b);
        let begins =
            at.checked_sub(1).and_then(|before| body.get(before)).is_none_or(|before| !before.is_ascii_alphanumeric());
        let behind = body.get(at + 3..).unwrap_or_default();
        begins && behind.iter().take_while(|b| word(b)).count() >= LEAST
    })
}

fn form(parts: Vec<Part>) -> Result<multipart::Form, UpstreamError> {
    parts.into_iter().try_fold(multipart::Form::new(), |form, Part { name, file, mime, bytes }| {
        let length = bytes.len() as u64;
        let mut part = multipart::Part::stream_with_length(Body::from(bytes), length);
        if let Some(file) = file {
            part = part.file_name(file);
        }
        if let Some(mime) = mime {
            part = part.mime_str(&mime).map_err(|e| UpstreamError::Broken(e.to_string()))?;
        }
        Ok(form.part(name, part))
    })
}

/// What the headers of an answer say of the account's limits for its model (`x-ratelimit-*`).
pub fn heard(headers: &HeaderMap) -> impl Iterator<Item = Heard> + '_ {
    let number = |field: &str, name: &str| {
        let value = headers.get(format!("x-ratelimit-{field}-{name}")).map(HeaderValue::to_str)?.ok()?;
        Some(value.trim().to_owned())
    };
    [("requests", Dimension::Requests), ("tokens", Dimension::Tokens)].into_iter().filter_map(
        move |(name, dimension)| {
            let limit = number("limit", name).and_then(|limit| limit.parse().ok());
            let remaining = number("remaining", name).and_then(|left| left.parse().ok());
            let reset = number("reset", name).and_then(|reset| limits::duration(&reset));
            (limit.is_some() || remaining.is_some()).then_some(Heard::Bucket { dimension, limit, remaining, reset })
        },
    )
}

/// The type of an answer's body. A copy: the value itself would keep all of what was read with it for as long as it is kept.
pub fn content_type(headers: &HeaderMap) -> HeaderValue {
    let found = headers.get(header::CONTENT_TYPE).and_then(|value| HeaderValue::from_bytes(value.as_bytes()).ok());
    found.unwrap_or(HeaderValue::from_static("application/json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_the_service_are_passed_on_where_they_are_about_the_request() {
        let of = |body: &str| told(StatusCode::BAD_REQUEST, Bytes::from(body.to_owned()));
        for (message, passes) in [
            ("Invalid schema.", true),
            ("Unknown task-list in disk-image sk-1.", true),
            ("Incorrect API key provided: sk-proj-abcdef012345.", false),
            ("sk-***************wxyz", false),
        ] {
            let said =
                format!(r#"{{"error":{{"message":"{message}","code":"invalid_json_schema","param":"text.format"}}}}"#);
            let NoAnswer::Told { body, .. } = of(&said) else { panic!("{message}") };
            assert_eq!(body == said.as_bytes(), passes, "{message}");
            let body: Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(
                (&body["error"]["code"], &body["error"]["param"]),
                (&json!("invalid_json_schema"), &json!("text.format"))
            );
        }
        for odd in ["<html>", r#"{"error":"x"}"#] {
            let NoAnswer::Told { body, .. } = of(odd) else { panic!("{odd}") };
            assert!(String::from_utf8_lossy(&body).contains("The service refused the request."), "{odd}");
        }
        assert!(matches!(of(r#"{"error":{"code":"model_not_found"}}"#), NoAnswer::Told { model: true, .. }));
    }

    #[test]
    fn limits_are_read_from_headers() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("x-ratelimit-limit-requests", "500"),
            ("x-ratelimit-remaining-requests", "499"),
            ("x-ratelimit-reset-requests", "120ms"),
            ("x-ratelimit-remaining-tokens", "many"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        let found: Vec<_> = heard(&headers).collect();
        let reset = Some(Duration::from_millis(120));
        let want = Heard::Bucket { dimension: Dimension::Requests, limit: Some(500), remaining: Some(499), reset };
        assert_eq!(format!("{found:?}"), format!("{:?}", [want]));
    }
}
