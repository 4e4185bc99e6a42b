//! The service's REST side for batches: files of requests, and what becomes of them. One request, one try; whose they are is decided
//! above.
use std::time::Duration;

use axum::http::{HeaderValue, Method, header};
use bytes::Bytes;
use reqwest::{Body, Response, multipart};
use serde_json::Value;
use tokio::{fs::File, io::AsyncSeekExt as _};

use super::{
    UpstreamError,
    rest::{self, Rest},
    text::NoAnswer,
};
use crate::admit::Principal;

impl Rest {
    /// Asks for something of the service's files and batches, whose answer is whole within `longest`. `path`: under the base, made of
    /// checked pieces.
    ///
    /// # Errors
    /// Why there is no answer, as of [`Rest::text`].
    pub async fn batch(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        who: &Principal,
        longest: Duration,
    ) -> Result<Response, NoAnswer> {
        let bare = body.is_none() && method == Method::POST;
        let request = self.request_by(method, path, who, None);
        let request = match body {
            Some(body) => request.json(body),
            None if bare => request.header(header::CONTENT_LENGTH, HeaderValue::from_static("0")),
            None => request,
        };
        self.told(request, who, longest).await
    }

    /// Uploads a file of requests under this name.
    ///
    /// # Errors
    /// As [`Self::batch`].
    pub async fn upload_batch(
        &self,
        mut file: File,
        name: String,
        who: &Principal,
        longest: Duration,
    ) -> Result<Response, NoAnswer> {
        let broken = |error: &dyn std::fmt::Display| NoAnswer::Error(UpstreamError::Broken(error.to_string()));
        let length = file.metadata().await.map_err(|error| broken(&error))?.len();
        file.rewind().await.map_err(|error| broken(&error))?;
        let part = multipart::Part::stream_with_length(Body::from(file), length).file_name(name);
        let part = part.mime_str("application/jsonl").map_err(|error| broken(&error))?;
        let form = multipart::Form::new().text("purpose", "batch").part("file", part);
        self.told(self.request("/files", who, None).multipart(form), who, longest).await
    }
}

/// Longest list, bytes: a hundred batches, each with all the metadata that there may be.
const MAX_LIST: usize = 16 << 20;

/// The object in an answer, which may be a list.
///
/// # Errors
/// When it breaks off, or is none.
pub async fn object(response: Response) -> Result<Value, NoAnswer> {
    let body: Bytes = rest::read_up_to(response, MAX_LIST).await.map_err(NoAnswer::Error)?;
    let object = serde_json::from_slice(&body).ok().filter(Value::is_object);
    object.ok_or_else(|| NoAnswer::Error(UpstreamError::Broken("the service's answer is no JSON object".to_owned())))
}
