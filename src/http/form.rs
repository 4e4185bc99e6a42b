//! A form that comes, part by part, with a file in it that is far larger than what may be held.
//!
//! Whoever reads a form holds what it cannot hand out yet, however much that is, and takes whatever it can get: here it gets a piece at a
//! time, and only so many bytes until something comes out.
use std::{
    future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use axum::{
    body::{Body, HttpBody as _},
    http::StatusCode,
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use multer::{Field, Multipart};

use super::{body::BodyError, text::NotAnswered};
use crate::serve::realtime::Refusal;

/// What a form takes beside its file, bytes.
pub(super) const FORM: u64 = 64 << 10;
/// What of it may come before a part begins, or goes on, bytes: until then all of it is held.
const AHEAD: u64 = 8 << 10;

/// Why no more of a form can be had.
#[derive(Debug, thiserror::Error)]
enum NoMore {
    #[error("no part begins, or goes on, within {AHEAD} bytes")]
    Ahead,
    #[error("it is over the limit")]
    TooLarge,
    #[error("it breaks off")]
    Broken,
}

/// A form that comes.
pub(super) struct Form<'b> {
    parts: Multipart<'b>,
    gate: Arc<Gate>,
    /// Longest file, bytes.
    most: u64,
}

/// Where pieces go in.
#[derive(Debug, Default)]
struct Gate {
    /// One piece may go in.
    open: AtomicBool,
    /// Bytes that went in since something came out.
    ahead: AtomicU64,
}

impl Gate {
    /// Lets something out, for which as much goes in as it takes.
    async fn out<T>(&self, mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>) -> T {
        self.open.store(false, Ordering::Relaxed);
        let out = future::poll_fn(|context| {
            loop {
                if let Poll::Ready(out) = poll(context) {
                    return Poll::Ready(out);
                }
                // Still open: nothing has come.
                if self.open.swap(true, Ordering::Relaxed) {
                    return Poll::Pending;
                }
            }
        });
        let out = out.await;
        self.ahead.store(0, Ordering::Relaxed);
        out
    }

    /// What goes in: at most `most` bytes, and no more once [`AHEAD`] went in and nothing came out.
    fn pieces<'b>(
        self: Arc<Self>,
        body: &'b mut Body,
        most: u64,
    ) -> impl Stream<Item = Result<Bytes, NoMore>> + Send + 'b {
        let mut came = 0_u64;
        stream::poll_fn(move |context| {
            if !self.open.load(Ordering::Relaxed) {
                // Whoever opens it asks again.
                return Poll::Pending;
            }
            if self.ahead.load(Ordering::Relaxed) > AHEAD {
                return Poll::Ready(Some(Err(NoMore::Ahead)));
            }
            loop {
                let frame = match ready!(Pin::new(&mut *body).poll_frame(context)) {
                    None => return Poll::Ready(None),
                    Some(Err(_)) => return Poll::Ready(Some(Err(NoMore::Broken))),
                    Some(Ok(frame)) => frame,
                };
                // Trailers say nothing of a form.
                let Ok(piece) = frame.into_data() else { continue };
                let length = piece.len() as u64;
                came = came.saturating_add(length);
                if came > most {
                    return Poll::Ready(Some(Err(NoMore::TooLarge)));
                }
                self.ahead.fetch_add(length, Ordering::Relaxed);
                self.open.store(false, Ordering::Relaxed);
                return Poll::Ready(Some(Ok(piece)));
            }
        })
    }
}

impl<'b> Form<'b> {
    pub(super) fn new(body: &'b mut Body, boundary: &str, most: u64) -> Self {
        let gate = Arc::new(Gate::default());
        Self { parts: Multipart::new(gate.clone().pieces(body, most.saturating_add(FORM)), boundary), gate, most }
    }

    pub(super) async fn next(&mut self) -> Result<Option<Field<'b>>, NotAnswered> {
        let part = self.gate.out(|context| self.parts.poll_next_field(context)).await;
        part.map_err(|error| self.no_more(error))
    }

    pub(super) async fn chunk(&self, part: &mut Field<'b>) -> Result<Option<Bytes>, NotAnswered> {
        let chunk = self.gate.out(|context| part.poll_next_unpin(context)).await.transpose();
        chunk.map_err(|error| self.no_more(error))
    }

    fn no_more(&self, error: multer::Error) -> NotAnswered {
        let multer::Error::StreamReadFailed(why) = error else { return broken(&NoMore::Broken) };
        match why.downcast::<NoMore>() {
            Ok(why) if matches!(*why, NoMore::TooLarge) => too_large(self.most).into(),
            Ok(why) => broken(&why),
            Err(_) => broken(&NoMore::Broken),
        }
    }
}

pub(super) fn too_large(most: u64) -> Refusal {
    BodyError::TooLarge(usize::try_from(most).unwrap_or(usize::MAX)).into()
}

pub(super) fn broken(what: &dyn std::fmt::Display) -> NotAnswered {
    let message = format!("The multipart body cannot be read: {what}.");
    Refusal::new(StatusCode::BAD_REQUEST, "invalid_multipart", message).into()
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    const MOST: u64 = 1 << 20;

    /// A body that comes as fast as it is taken, and how much of it was.
    fn comes(text: &[u8], piece: usize) -> (Body, Arc<AtomicU64>) {
        let taken = Arc::new(AtomicU64::new(0));
        let (count, pieces): (_, Vec<Bytes>) =
            (taken.clone(), text.chunks(piece).map(Bytes::copy_from_slice).collect());
        let pieces = pieces.into_iter().inspect(move |piece| {
            count.fetch_add(piece.len() as u64, Ordering::Relaxed);
        });
        (Body::from_stream(stream::iter(pieces.map(Ok::<_, io::Error>))), taken)
    }

    fn part(name: &str) -> Vec<u8> {
        format!("--b\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n").into_bytes()
    }

    /// The parts of a form, or its refusal.
    async fn read(body: &mut Body) -> Result<Vec<(String, Vec<u8>)>, Refusal> {
        let refused = |no| match no {
            NotAnswered::Refused(refusal) => refusal,
            NotAnswered::Told(..) => panic!(),
        };
        let (mut form, mut parts) = (Form::new(body, "b", MOST), Vec::new());
        while let Some(mut part) = form.next().await.map_err(refused)? {
            let (name, mut bytes) = (part.name().unwrap().to_owned(), Vec::new());
            while let Some(piece) = form.chunk(&mut part).await.map_err(refused)? {
                bytes.extend_from_slice(&piece);
            }
            parts.push((name, bytes));
        }
        Ok(parts)
    }

    #[tokio::test]
    async fn what_is_no_part_is_not_gathered() {
        let junk = vec![b'x'; 8 << 20];
        let no_end = [b"--b\r\nContent-Disposition: ", junk.as_slice()].concat();
        let after = [part("purpose").as_slice(), b"batch\r\n--b\r\nX-", junk.as_slice()].concat();
        for body in [&junk, &no_end, &after] {
            for piece in [1 << 10, 64 << 10] {
                let (mut body, taken) = comes(body, piece);
                let refusal = read(&mut body).await.unwrap_err();
                assert_eq!((refusal.status.as_u16(), refusal.code), (400, "invalid_multipart"));
                assert!(refusal.message.contains("within 8192 bytes"), "{}", refusal.message);
                let taken = taken.load(Ordering::Relaxed);
                assert!(taken <= 2 * AHEAD + 3 * piece as u64, "{taken} bytes were taken");
            }
        }
    }

    #[tokio::test]
    async fn a_form_is_read_however_it_comes_and_is_bounded() {
        let file: Vec<u8> = (0..MOST).map(|n| b"ab\r\n--c"[usize::try_from(n % 7).unwrap()]).collect();
        let form = [&part("purpose"), &b"batch\r\n"[..], &part("file"), &file, b"\r\n--b--\r\n"].concat();
        for piece in [7, 1 << 10, 200 << 10, form.len()] {
            let (mut body, _) = comes(&form, piece);
            let parts = read(&mut body).await.unwrap();
            assert!(parts == [("purpose".to_owned(), b"batch".to_vec()), ("file".to_owned(), file.clone())], "{piece}");
        }
        let many = [part("purpose").as_slice(), b"batch\r\n"].concat().repeat(1 << 15);
        let (mut body, taken) = comes(&[part("file"), vec![b'x'; 4 << 20]].concat(), 16 << 10);
        assert_eq!(read(&mut body).await.unwrap_err().status.as_u16(), 413);
        assert!(taken.load(Ordering::Relaxed) <= MOST + FORM + (16 << 10));
        let (mut body, _) = comes(&many, 16 << 10);
        assert_eq!(read(&mut body).await.unwrap_err().status.as_u16(), 413, "whatever it is made of");
        // Small parts do not let more in than they are.
        let (mut body, taken) = comes(&many, 16 << 10);
        let mut form = Form::new(&mut body, "b", MOST);
        for _ in 0..100 {
            let mut part = form.next().await.ok().flatten().unwrap();
            assert!(form.chunk(&mut part).await.ok().flatten().unwrap() == "batch");
            assert!(form.chunk(&mut part).await.ok().flatten().is_none());
        }
        assert_eq!(taken.load(Ordering::Relaxed), 16 << 10);
    }
}
