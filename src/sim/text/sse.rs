//! An answer's body: a stream of events at its pace, or JSON; and how either breaks.
use std::{collections::VecDeque, io, time::Duration};

use axum::{
    body::{Body, Bytes},
    http::{HeaderValue, Response, StatusCode, header},
};
use futures_util::stream;
use serde_json::{Value, json};
use tokio::time;

use super::super::{
    faults::{FaultKind, How},
    rest::json_answer,
};

/// So long before a connection is cut, for what was said before to be on its way.
const FLUSH: Duration = Duration::from_millis(20);

/// One event, and how long it is waited for.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Event {
    pub(super) kind: &'static str,
    pub(super) data: Value,
    pub(super) after: Duration,
}

impl Event {
    /// An event that comes with the one before.
    pub(super) fn new(kind: &'static str, data: Value) -> Self {
        Self { kind, data, after: Duration::ZERO }
    }

    /// An event that comes later.
    pub(super) fn after(self, after: Duration) -> Self {
        Self { after, ..self }
    }

    fn written(&self) -> Bytes {
        Bytes::from(format!("event: {}\ndata: {}\n\n", self.kind, self.data))
    }
}

/// Events as they go out, with what is scripted for them.
pub(super) fn stream(events: Vec<Event>, fault: Option<&FaultKind>) -> Response<Body> {
    let mut pieces = Pieces::new();
    let (pause, end) = match fault {
        Some(FaultKind::SlowStream { pause_ms }) => (Duration::from_millis(*pause_ms), None),
        Some(FaultKind::BreakStream { after_events, clean }) => (Duration::ZERO, Some((*after_events, *clean))),
        _ => (Duration::ZERO, None),
    };
    // A stream that breaks never tells its end, however late the break was meant to be.
    let most = end.map_or(usize::MAX, |(after, _)| {
        usize::try_from(after).unwrap_or(usize::MAX).min(events.len().saturating_sub(1))
    });
    let unknown = matches!(fault, Some(FaultKind::Answer { how: How::UnknownEvents, .. }));
    for event in events.iter().take(most) {
        pieces.push_back((event.after + pause, Ok(event.written())));
        if unknown {
            let data = json!({"type": "response.something_new", "sequence_number": null, "news": {"of": event.kind}});
            pieces.push_back((pause, Ok(Event::new("response.something_new", data).written())));
        }
    }
    if let Some((_, false)) = end {
        pieces.push_back(cut());
    }
    let mut response = Response::new(paced(pieces));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

/// JSON as it goes out, with what is scripted for it.
pub(super) fn json(body: &Value, fault: Option<&FaultKind>) -> Response<Body> {
    plain(json_answer(StatusCode::OK, body), body.to_string(), fault)
}

/// A body of another kind, in the same way. `response` has it already.
pub(super) fn plain(mut response: Response<Body>, body: String, fault: Option<&FaultKind>) -> Response<Body> {
    match fault {
        Some(FaultKind::BreakStream { clean, .. }) => {
            let half = Bytes::from(body.into_bytes());
            let half = half.slice(..half.len() / 2);
            let end = (!clean).then(cut);
            *response.body_mut() = paced([(Duration::ZERO, Ok(half))].into_iter().chain(end).collect());
        }
        Some(FaultKind::Answer { how: How::Garbage, .. }) => {
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html"));
            *response.body_mut() = Body::from("<html><body>Bad gateway</body></html>");
        }
        Some(FaultKind::SlowStream { pause_ms }) => {
            *response.body_mut() = paced([(Duration::from_millis(*pause_ms), Ok(Bytes::from(body)))].into());
        }
        _ => {}
    }
    response
}

/// Pieces of a body, each with how long it is waited for.
type Pieces = VecDeque<(Duration, io::Result<Bytes>)>;

fn paced(pieces: Pieces) -> Body {
    Body::from_stream(stream::unfold(pieces, |mut pieces| async {
        let (after, piece) = pieces.pop_front()?;
        if !after.is_zero() {
            time::sleep(after).await;
        }
        Some((piece, pieces))
    }))
}

/// The end of a connection. What comes with it at once would not be sent any more.
fn cut() -> (Duration, io::Result<Bytes>) {
    (FLUSH, Err(io::Error::other("cut by a fault")))
}
