//! A piece of an address, such as an id: one that cannot be read is refused in the shape that SDKs read, as everything else is.
use axum::{
    body::Body,
    extract::{FromRequestParts, Path},
    http::{Response, StatusCode, request::Parts},
    response::{IntoResponse, Response as Answer},
};
use serde::de::DeserializeOwned;

use crate::serve::realtime::Refusal;

/// What stands in the address.
#[derive(Debug)]
pub(crate) struct Part<T = String>(pub(crate) T);

/// It is no text.
#[derive(Debug)]
pub(crate) struct Unreadable;

impl IntoResponse for Unreadable {
    fn into_response(self) -> Answer {
        let message = "The address cannot be read: a part of it is not UTF-8.".to_owned();
        let refusal: Response<Body> = Refusal::new(StatusCode::BAD_REQUEST, "invalid_value", message).into();
        refusal
    }
}

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Part<T> {
    type Rejection = Unreadable;

    async fn from_request_parts(head: &mut Parts, state: &S) -> Result<Self, Unreadable> {
        Path::from_request_parts(head, state).await.map(|Path(part)| Self(part)).map_err(|_| Unreadable)
    }
}
