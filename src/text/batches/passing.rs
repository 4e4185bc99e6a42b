//! A file on its way to whoever wants it, as fast as it is taken.
//!
//! Of answers each line is booked as it passes, whoever leaves or stands still: they are read to their end, for they have been paid. Files of
//! requests nobody has to pay: they end with their reader. What ends early, for whatever reason, never looks whole.
use std::{io, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{Stream, stream};
use reqwest::Response;
use tokio::{sync::mpsc, task::spawn_blocking, time};
use tokio_util::sync::CancellationToken;

use super::{
    super::{
        room::{Held, Room},
        share::Place,
    },
    Content,
    books::Booking,
    lines::{LONG, Lines},
};

/// Longest line, bytes; a longer one is passed on and not read.
const LONGEST: usize = 32 << 20;
/// Pieces on their way to a slow reader.
const PIECES: usize = 2;
/// From so many bytes on lines are read where nobody waits for the thread.
const WORK: usize = 64 << 10;

/// How a file is passed on.
#[derive(Debug)]
pub struct Passing {
    /// To its reader.
    pub to: Pieces,
    /// Nothing comes, or nobody reads, for so long: it is over.
    pub stall: Duration,
    /// The process ends: what was not booked is booked with the next download.
    pub stop: CancellationToken,
    /// Where long lines are held.
    pub room: Arc<Room>,
    /// Whose room; none where there are no tenants.
    pub tenant: Option<String>,
    /// Its place among all downloads; none: nobody has asked for it, and the relay books what has come.
    pub place: Option<Place>,
}

/// The way to a reader: pieces, and none once all of them have come.
pub type Pieces = mpsc::Sender<Option<Bytes>>;

/// The way to a reader, and what it reads: an error where not all has come.
pub fn channel() -> (Pieces, impl Stream<Item = io::Result<Bytes>> + Send + 'static) {
    let (to, from) = mpsc::channel(PIECES);
    let pieces = stream::unfold(Some(from), |from: Option<mpsc::Receiver<Option<Bytes>>>| async {
        let mut from = from?;
        match from.recv().await {
            Some(Some(piece)) => Some((Ok(piece), Some(from))),
            Some(None) => None,
            None => Some((Err(io::Error::other("the file broke off")), None)),
        }
    });
    (to, pieces)
}

impl Content {
    /// Passes it on, to its end.
    pub async fn pass(self, passing: Passing) {
        let Self { response, booking } = self;
        let stop = passing.stop.clone();
        let passed = async {
            match booking {
                None => plain(response, passing).await,
                Some(booking) => booked(response, passing, Arc::new(booking)).await,
            }
        };
        let _ = stop.run_until_cancelled(Box::pin(passed)).await;
    }
}

/// The next piece of an answer of the service; `Err`: it broke off, or stands still.
async fn next(response: &mut Response, stall: Duration) -> Result<Option<Bytes>, ()> {
    time::timeout(stall, response.chunk()).await.map_err(drop)?.map_err(drop)
}

/// Whether it was taken.
async fn send(to: &Pieces, piece: Option<Bytes>, stall: Duration) -> bool {
    matches!(time::timeout(stall, to.send(piece)).await, Ok(Ok(())))
}

async fn plain(mut response: Response, passing: Passing) {
    let Passing { to, stall, .. } = &passing;
    while let Ok(piece) = next(&mut response, *stall).await {
        let whole = piece.is_none();
        if !send(to, piece, *stall).await || whole {
            return;
        }
    }
}

async fn booked(mut response: Response, passing: Passing, booking: Arc<Booking>) {
    let Passing { to, stall, room, tenant, place: _place, .. } = passing;
    let (mut to, mut lines, mut held) = (Some(to), Lines::default(), None::<Held>);
    // What breaks off ends in the middle of a line, which is then neither booked nor passed on.
    while let Ok(piece) = next(&mut response, stall).await {
        let ended = piece.is_none();
        if let Some(piece) = &piece
            && held.is_none()
            && lines.waiting() + piece.len() > LONG
        {
            held = Some(hold(&room, tenant.as_deref()).await);
        }
        let whole = match &piece {
            Some(piece) => lines.feed(piece),
            None => lines.take(),
        };
        let out = read(&booking, whole).await;
        let Some(mut out) = out else { return };
        if lines.waiting() > LONGEST {
            tracing::warn!(bytes = lines.waiting(), "a line of a batch's answers is too long to be booked");
            out.extend(lines.take());
        }
        for piece in [Some(out).filter(|out| !out.is_empty()).map(Bytes::from).map(Some), ended.then_some(None)] {
            if let (Some(piece), Some(way)) = (piece, &to)
                && !send(way, piece, stall).await
            {
                to = None;
            }
        }
        if lines.waiting() <= LONG {
            held = None;
        }
        if ended {
            return;
        }
    }
}

/// Room for a long line, however long that takes: what has begun to pass is not given up.
async fn hold(room: &Room, tenant: Option<&str>) -> Held {
    loop {
        if let Some(held) = room.hold_line(tenant, LONGEST).await {
            return held;
        }
    }
}

/// Books lines; as they go on. None: that went wrong.
async fn read(booking: &Arc<Booking>, lines: Vec<u8>) -> Option<Vec<u8>> {
    if lines.len() < WORK {
        return Some(booking.lines(lines));
    }
    let booking = booking.clone();
    spawn_blocking(move || booking.lines(lines)).await.ok()
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::{StreamExt as _, future};
    use tokio::time::Instant;

    use super::{super::super::share::Shares, *};

    const STALL: Duration = Duration::from_secs(120);

    /// A file of the service that nobody pays for, and how it is passed on.
    fn file(
        pieces: impl Stream<Item = io::Result<&'static str>> + Send + 'static,
    ) -> (Content, Passing, impl Stream<Item = io::Result<Bytes>>) {
        let body = reqwest::Body::wrap_stream(pieces);
        let content = Content { response: axum::http::Response::new(body).into(), booking: None };
        let (to, reader) = channel();
        let (stop, room, place) = (CancellationToken::new(), Room::new(0, 1, 1), Shares::default().place("a", 1, 1));
        let place = place.ok();
        (content, Passing { to, stall: STALL, stop, room: Arc::new(room), tenant: None, place }, reader)
    }

    /// What a reader gets: pieces, and whether they are all.
    async fn read(reader: impl Stream<Item = io::Result<Bytes>>) -> (String, bool) {
        let (mut reader, mut text) = (pin!(reader), String::new());
        while let Some(piece) = reader.next().await {
            match piece {
                Ok(piece) => text.push_str(std::str::from_utf8(&piece).unwrap()),
                Err(_) => return (text, false),
            }
        }
        (text, true)
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_looks_whole_only_where_it_is() {
        let broken = || Err(io::Error::other("gone"));
        let (content, passing, reader) = file(stream::iter([Ok("a"), Ok("b"), Ok("c")]));
        assert_eq!(future::join(content.pass(passing), read(reader)).await.1, ("abc".to_owned(), true));
        let (content, passing, reader) = file(stream::iter([Ok("a"), Ok("b"), broken()]));
        assert_eq!(future::join(content.pass(passing), read(reader)).await.1, ("ab".to_owned(), false));
        let (content, passing, reader) = file(stream::iter([Ok("a")]).chain(stream::pending()));
        let began = Instant::now();
        assert_eq!(future::join(content.pass(passing), read(reader)).await.1, ("a".to_owned(), false));
        assert_eq!(began.elapsed(), STALL, "the service stands still");
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_stands_still_is_let_go_and_sees_that_it_was() {
        let (content, passing, reader) = file(stream::repeat_with(|| Ok("a")));
        let began = Instant::now();
        content.pass(passing).await;
        assert_eq!((began.elapsed(), read(reader).await), (STALL, ("a".repeat(PIECES), false)));
        // However it ends: the service breaks off, and nobody reads.
        let pieces = stream::iter([Ok("a"), Ok("a"), Err(io::Error::other("gone"))]);
        let (content, passing, reader) = file(pieces);
        let began = Instant::now();
        content.pass(passing).await;
        assert_eq!((began.elapsed(), read(reader).await), (Duration::ZERO, ("aa".to_owned(), false)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_that_ends_waits_for_no_reader() {
        let (content, passing, reader) = file(stream::repeat_with(|| Ok("a")));
        let (began, stop) = (Instant::now(), passing.stop.clone());
        let stops = async {
            time::sleep(Duration::from_secs(1)).await;
            stop.cancel();
        };
        future::join(content.pass(passing), stops).await;
        assert_eq!((began.elapsed().as_secs(), read(reader).await), (1, ("a".repeat(PIECES), false)));
    }
}
