//! Bodies of requests: bounded in size and time, since whoever sends one has a connection of ours.
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde_json::{Map, Value};
use tokio::time;

/// A body that was begun must be finished.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// What is too long is read so far, for its sender to see why it is refused, bytes.
const MOST_PASSED_OVER: usize = 256 << 20;

/// Why there is no body.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// More than is allowed, bytes.
    #[error("the body is over the {0} byte limit")]
    TooLarge(usize),
    /// It did not come.
    #[error("the body did not come within {} s", .0.as_secs())]
    TooSlow(Duration),
    /// The connection broke.
    #[error("the body broke off")]
    Broken,
    /// Not what is wanted.
    #[error("{0}")]
    Form(String),
}

/// All of it, at most `limit` bytes.
///
/// # Errors
/// When it is too long or comes too slowly.
pub async fn read(body: Body, limit: usize) -> Result<Bytes, BodyError> {
    read_within(body, limit, PATIENCE).await
}

/// The same within this time.
///
/// # Errors
/// As [`read`].
pub async fn read_within(body: Body, limit: usize, patience: Duration) -> Result<Bytes, BodyError> {
    let body = time::timeout(patience, Limited::new(body, limit).collect()).await;
    let body = body.map_err(|_| BodyError::TooSlow(patience))?;
    body.map(http_body_util::Collected::to_bytes)
        .map_err(|error| if error.is::<LengthLimitError>() { BodyError::TooLarge(limit) } else { BodyError::Broken })
}

/// Takes what comes and keeps nothing of it, up to a bound in size and for so long: whoever is cut off while it sends sees no refusal.
pub async fn pass_over(body: &mut Body, patience: Duration) {
    let all = async {
        let mut left = MOST_PASSED_OVER;
        // Who sends no more hears what there is to hear.
        while let Ok(Some(Ok(frame))) = time::timeout(PATIENCE, body.frame()).await {
            left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
            if left == 0 {
                return;
            }
        }
    };
    let _ = time::timeout(patience, all).await;
}

/// A JSON object; an empty body is an empty one.
///
/// # Errors
/// When it is none, or as [`read`].
pub async fn object(body: Body, limit: usize) -> Result<Map<String, Value>, BodyError> {
    let body = read(body, limit).await?;
    if body.iter().all(u8::is_ascii_whitespace) {
        return Ok(Map::new());
    }
    match serde_json::from_slice(&body) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(BodyError::Form("the body must be a JSON object".to_owned())),
        Err(error) => Err(BodyError::Form(format!("the body is not JSON: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{StreamExt as _, stream};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn bodies_are_bounded_in_size_and_time() {
        assert_eq!(read(Body::from("hello"), 5).await.unwrap(), "hello");
        assert_eq!(read(Body::from("hello!"), 5).await, Err(BodyError::TooLarge(5)));
        let stalled = stream::iter([Ok::<_, std::io::Error>("he")]).chain(stream::pending());
        let began = time::Instant::now();
        assert_eq!(read(Body::from_stream(stalled), 5).await, Err(BodyError::TooSlow(PATIENCE)));
        assert_eq!(began.elapsed(), PATIENCE);
        let broken = stream::iter([Err::<Bytes, _>(std::io::Error::other("gone"))]);
        assert_eq!(read(Body::from_stream(broken), 5).await, Err(BodyError::Broken));
        assert!(object(Body::from(" "), 5).await.unwrap().is_empty());
        assert!(matches!(object(Body::from("[]"), 5).await, Err(BodyError::Form(_))));
        assert!(matches!(object(Body::from("{"), 5).await, Err(BodyError::Form(_))));
    }
}
