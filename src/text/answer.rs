//! An answer on its way back: whole, or as a stream that is passed on as it comes.
//!
//! A stream is read only as fast as its reader takes it. Whatever ends it, what it has used is settled; one that ends without the event
//! that says so has failed, and its reader is told.
use std::{sync::Arc, time::Duration};

use axum::http::{HeaderMap, HeaderValue};
use bytes::Bytes;
use reqwest::Response as Answered;
use serde_json::{Map, Value};
use tokio::{sync::mpsc, time};
use tokio_util::sync::CancellationToken;

use super::{
    Kind,
    outcome::{Outcome, Said, said},
    run::Run,
    sse::Events,
};
use crate::{admit::price::Usd, upstream::text::content_type};

/// Answers are not longer, bytes.
const MAX_ANSWER: usize = 64 << 20;
/// Pieces on their way to a slow reader.
const PIECES: usize = 16;
/// An answer that may be asked for again is kept up to this, bytes.
pub const MAX_KEPT: usize = 1 << 20;

/// An answer that may be asked for again.
#[derive(Debug, Clone)]
pub struct Kept {
    /// Its headers: what it is, where it came from, what it cost.
    pub head: HeaderMap,
    /// All of it.
    pub body: Bytes,
}

/// Why a whole answer did not come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    /// It broke off.
    Broke,
    /// It is none.
    Strange,
    /// It is too long.
    TooLong,
}

impl Lost {
    /// In words.
    pub fn message(self) -> &'static str {
        match self {
            Self::Broke => "The service's answer broke off.",
            Self::Strange => "The service's answer is not one to such a request.",
            Self::TooLong => "The service's answer is too long.",
        }
    }
}

/// A whole answer.
#[derive(Debug)]
pub struct Whole {
    /// Its type.
    pub mime: HeaderValue,
    /// All of it.
    pub body: Bytes,
    /// What it cost; none: not known.
    pub cost: Option<Usd>,
    /// It says that it has failed: another try is another request.
    pub failed: bool,
}

/// Whether this answer is a stream, whatever was asked for: some models know none.
pub fn is_stream(answered: &Answered) -> bool {
    let mime = content_type(answered.headers());
    mime.as_bytes().to_ascii_lowercase().starts_with(b"text/event-stream")
}

/// Reads a whole answer, and settles what it has used.
///
/// # Errors
/// Why there is none; what it may have used is settled, too.
pub async fn whole(mut run: Run, mut answered: Answered) -> Result<Whole, Lost> {
    let kind = run.asked().kind;
    let mime = content_type(answered.headers());
    let mut body = Vec::new();
    loop {
        match answered.chunk().await {
            Ok(Some(piece)) => {
                run.came(piece.len());
                body.extend_from_slice(&piece);
                if body.len() > MAX_ANSWER {
                    run.broke();
                    return Err(Lost::TooLong);
                }
            }
            Ok(None) => break,
            Err(_) => {
                run.broke();
                return Err(Lost::Broke);
            }
        }
    }
    // A page is what stands between us and the service says.
    let is_page = mime.as_bytes().starts_with(b"text/html");
    let is_object = || serde_json::from_slice::<Map<String, Value>>(&body).is_ok();
    let strange = is_page || (run.asked().json && !is_object());
    match Outcome::read(kind, &body).filter(|_| !strange) {
        Some(outcome) => {
            let failed = outcome.status == "failed";
            Ok(Whole { mime, body: body.into(), cost: run.over(outcome), failed })
        }
        None => {
            run.broke();
            Err(Lost::Strange)
        }
    }
}

/// How a stream is passed on.
#[derive(Debug)]
pub struct Passing {
    /// To its reader; dropped when it ends.
    pub to: mpsc::Sender<Bytes>,
    /// Nothing comes, or nobody reads, for so long: it is over.
    pub stall: Duration,
    /// It may be asked for again, with this head, so that it is read to its end whoever goes.
    pub keeps: Option<HeaderMap>,
    /// The process ends.
    pub stop: CancellationToken,
}

/// The way to a reader.
pub fn channel() -> (mpsc::Sender<Bytes>, mpsc::Receiver<Bytes>) {
    mpsc::channel(PIECES)
}

/// Passes a stream on, to its end. What it was, if that may be asked for again.
pub async fn pass(mut run: Run, mut answered: Answered, passing: Passing) -> Option<Arc<Kept>> {
    let Passing { to, stall, keeps, stop } = passing;
    let kind = run.asked().kind;
    let (mut reader, mut kept) = (Some(to), keeps.map(|head| (head, Vec::new())));
    let (mut events, mut count, mut ended, mut stopped) = (Events::default(), 0_u64, None::<Said>, false);
    loop {
        let left = async {
            match &reader {
                // One that may be asked for again is read to its end.
                Some(to) if kept.is_none() => to.closed().await,
                None if kept.is_none() => {}
                _ => std::future::pending().await,
            }
        };
        let piece = tokio::select! {
            biased;
            () = stop.cancelled() => {
                stopped = true;
                break;
            }
            () = left => return None,
            piece = time::timeout(stall, answered.chunk()) => piece,
        };
        let Ok(Ok(Some(piece))) = piece else { break };
        run.came(piece.len());
        events.feed(&piece, |event| {
            count += 1;
            match said(kind, &event) {
                Said::Began(id) => run.named(&id),
                // A complaint may come before the event that ends it.
                Said::Failed => ended = ended.take().or(Some(Said::Failed)),
                said @ Said::Ended(_) => ended = Some(said),
                Said::Other => {}
            }
        });
        if let Some((_, all)) = &mut kept {
            all.extend_from_slice(&piece);
            if all.len() > MAX_KEPT {
                kept = None;
            }
        }
        if let Some(to) = &reader
            && !matches!(time::timeout(stall, to.send(piece)).await, Ok(Ok(())))
        {
            // Gone, or too slow.
            reader = None;
            if kept.is_none() {
                break;
            }
        }
    }
    match ended {
        Some(Said::Ended(outcome)) => {
            let good = outcome.status != "failed";
            run.over(outcome);
            kept.filter(|_| good).map(|(head, body)| Arc::new(Kept { head, body: body.into() }))
        }
        told => {
            // The service did nothing wrong where it is we who go, or its reader.
            let left = reader.is_none() && told.is_none();
            if stopped || left {
                drop(run)
            } else {
                run.broke()
            }
            if let (None, Some(to)) = (told, reader) {
                let _ = time::timeout(stall, to.send(broken(kind, events.is_between(), count))).await;
            }
            None
        }
    }
}

/// The event that says that a stream has failed.
fn broken(kind: Kind, between: bool, number: u64) -> Bytes {
    let gap = if between { "" } else { "\n\n" };
    let number = if kind == Kind::Response { format!(",\"sequence_number\":{number}") } else { String::new() };
    format!(
        "{gap}event: error\ndata: {{\"type\":\"error\",\"code\":\"upstream_unavailable\",\"message\":\"The service's answer broke off.\",\
         \"param\":null{number}}}\n\n"
    )
    .into()
}
