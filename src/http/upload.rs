//! A file of requests as it comes, from its form to the service.
//!
//! It is checked line by line while it comes, and kept on the disk until all of it is good: the service gets nothing of one that is not. In
//! memory are pieces, and the line that has begun; a long one has room of its own. Lines are read, and written, away from the threads that
//! carry calls. Whoever is refused while it sends is heard to its end, within bounds, so that it sees why.
use std::{
    fs, future,
    io::{self, BufWriter, Write as _},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{
    body::{Body, HttpBody as _},
    http::{StatusCode, header, request::Parts},
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use multer::{Field, Multipart};
use tokio::{
    fs::File,
    sync::mpsc,
    task::spawn_blocking,
    time::{self, Instant},
};

use super::{
    batches::{Answer, no_batch, shown},
    body::{self, BodyError},
    text::{NotAnswered, wrong},
};
use crate::{
    admit::Principal,
    client::openai::SERVER_ERROR,
    serve::{
        FULL_RETRY, Shared,
        realtime::{self, Refusal},
    },
    text::{
        ask::Wrong,
        batches::{
            label::Label,
            lines::{LONG, Lines},
            sheet::Sheet,
        },
        room::Held,
        share::Place,
    },
};

/// A file comes at least as fast as this, bytes a second.
const SLOWEST: u64 = 64 << 10;
/// What a form takes beside the file, bytes.
const FORM: u64 = 64 << 10;
/// What of it may come before a part begins, or goes on, bytes: until then all of it is held.
const AHEAD: u64 = 8 << 10;
/// Longest value of a part that is not the file, bytes.
const LONGEST_VALUE: usize = 64;
/// Who is refused after its file has begun is heard for so long.
const PASSED_OVER: Duration = Duration::from_secs(60);

/// Takes a file, and gives it to the service.
pub(super) async fn take(shared: &Arc<Shared>, who: &Principal, head: &Parts, mut body: Body) -> Answer {
    let most = shared.desk.texts().config.max_batch_bytes;
    let (boundary, place) = match begins(shared, who, head, most) {
        Ok(begins) => begins,
        Err(no) => {
            // One that waits to be told to go on sends nothing.
            if !head.headers.contains_key(header::EXPECT) {
                body::pass_over(&mut body, body::PATIENCE).await;
            }
            return Err(no);
        }
    };
    let longest = usize::try_from(length(head).unwrap_or(most)).unwrap_or(usize::MAX);
    let longest = longest.min(shared.desk.texts().config.max_body_bytes);
    let stall = Duration::from_secs(shared.desk.texts().config.stall_s);
    let upload = Upload { shared, who, most, longest, stall };
    let patience = Duration::from_secs(10 + most / SLOWEST);
    let came = time::timeout(patience, Box::pin(upload.parts(&mut body, &boundary))).await;
    let came = came.unwrap_or_else(|_| Err(Refusal::from(BodyError::TooSlow(patience)).into()));
    if came.is_err() {
        body::pass_over(&mut body, PASSED_OVER).await;
    }
    let (file, label) = came?;
    let object = shared.batches.upload(who, file, &label).await;
    drop(place);
    shown(object)
}

fn length(head: &Parts) -> Option<u64> {
    head.headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// The form's boundary, and a place, if the file may come at all.
fn begins(shared: &Shared, who: &Principal, head: &Parts, most: u64) -> Result<(String, Place), NotAnswered> {
    let kind = head.headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let boundary = multer::parse_boundary(kind).map_err(|_| {
        let message = "The body must be multipart/form-data, with the parts `file` and `purpose`.".to_owned();
        Refusal::new(StatusCode::BAD_REQUEST, "invalid_multipart", message)
    })?;
    if length(head).is_some_and(|length| length > most.saturating_add(FORM)) {
        return Err(too_large(most).into());
    }
    Ok((boundary, shared.batches.place(who).map_err(no_batch)?))
}

fn too_large(most: u64) -> Refusal {
    BodyError::TooLarge(usize::try_from(most).unwrap_or(usize::MAX)).into()
}

fn broken(what: &dyn std::fmt::Display) -> NotAnswered {
    let message = format!("The multipart body cannot be read: {what}.");
    Refusal::new(StatusCode::BAD_REQUEST, "invalid_multipart", message).into()
}

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

/// A form that comes. Whoever reads it holds what it cannot hand out yet, and takes whatever it can get: it gets the next piece once there is
/// nothing left to hand out.
struct Form<'b> {
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
    fn new(body: &'b mut Body, boundary: &str, most: u64) -> Self {
        let gate = Arc::new(Gate::default());
        Self { parts: Multipart::new(gate.clone().pieces(body, most.saturating_add(FORM)), boundary), gate, most }
    }

    async fn next(&mut self) -> Result<Option<Field<'b>>, NotAnswered> {
        let part = self.gate.out(|context| self.parts.poll_next_field(context)).await;
        part.map_err(|error| self.no_more(error))
    }

    async fn chunk(&self, part: &mut Field<'b>) -> Result<Option<Bytes>, NotAnswered> {
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

/// Lines on their way to where they are read, with their room; none: all have come.
type ToRead = Option<(Vec<u8>, Option<Held>)>;

/// One file that comes.
struct Upload<'a> {
    shared: &'a Arc<Shared>,
    who: &'a Principal,
    /// Longest file, bytes.
    most: u64,
    /// Longest line, bytes.
    longest: usize,
    /// Who sends nothing for so long is let go.
    stall: Duration,
}

impl Upload<'_> {
    async fn parts(&self, body: &mut Body, boundary: &str) -> Result<(File, Label), NotAnswered> {
        let mut form = Form::new(body, boundary, self.most);
        let missing = |param: &'static str| {
            let message = format!("Missing required parameter: '{param}'.");
            Refusal::new(StatusCode::BAD_REQUEST, "missing_required_parameter", message).at(param)
        };
        let (mut file, mut purpose) = (None, None);
        while let Some(mut part) = soon(self.stall, form.next()).await? {
            match part.name().unwrap_or_default() {
                "file" if file.is_some() => return Err(broken(&"part `file` is there twice")),
                "file" => file = Some(self.file(&form, part).await?),
                "purpose" => purpose = Some(soon(self.stall, value(&form, &mut part)).await?),
                // It would be lost on its way, and files would live longer than their owner thinks.
                name => {
                    let name: String = name.chars().take(64).collect();
                    let message = format!("`{name}` is not offered here; allowed: `file`, `purpose`.");
                    return Err(Refusal::new(StatusCode::BAD_REQUEST, "unknown_parameter", message).at(name).into());
                }
            }
        }
        let purpose = purpose.ok_or_else(|| missing("purpose"))?;
        if purpose != "batch" {
            let message = format!("`purpose`: found `{purpose}`; allowed: `batch`.");
            return Err(Refusal::new(StatusCode::BAD_REQUEST, "invalid_value", message).at("purpose").into());
        }
        Ok(file.ok_or_else(|| missing("file"))?)
    }

    /// The lines of a file, checked, on the disk, as the service shall read them.
    async fn file<'b>(&self, form: &Form<'b>, part: Field<'b>) -> Result<(File, Label), NotAnswered> {
        let (to, from) = mpsc::channel(1);
        let name = part.file_name().unwrap_or("file").to_owned();
        let (shared, who, longest) = (self.shared.clone(), self.who.clone(), self.longest);
        let reads = spawn_blocking(move || written(&shared, &who, &name, longest, from));
        let fed = self.feed(form, part, to).await;
        let lost = |_| {
            let message = "The file's lines cannot be read.".to_owned();
            let refusal = Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", message);
            Refusal { kind: SERVER_ERROR, ..refusal }
        };
        // What is wrong with an earlier line is said first.
        let read = reads.await.map_err(lost)??;
        fed?;
        let (file, label) = read.ok_or_else(|| broken(&NoMore::Broken))?;
        Ok((File::from_std(file), label))
    }

    /// Whole lines to where they are read.
    async fn feed<'b>(
        &self,
        form: &Form<'b>,
        mut part: Field<'b>,
        to: mpsc::Sender<ToRead>,
    ) -> Result<(), NotAnswered> {
        let (mut lines, mut came, mut held) = (Lines::default(), 0_u64, None::<Held>);
        // Room is held no longer than by any other body of that size.
        let mut until = None::<Instant>;
        loop {
            let left = until.filter(|_| held.is_some()).map(|at| at.saturating_duration_since(Instant::now()));
            let patience = left.unwrap_or(self.stall).min(self.stall);
            let Some(piece) = soon(patience, form.chunk(&mut part)).await? else { break };
            came = came.saturating_add(piece.len() as u64);
            if came > self.most {
                return Err(too_large(self.most).into());
            }
            if held.is_none() && lines.waiting() + piece.len() > LONG {
                held = Some(self.room().await?);
                until = Some(Instant::now() + Duration::from_secs(10 + self.longest as u64 / SLOWEST));
            }
            let whole = lines.feed(&piece);
            if lines.waiting() > self.longest {
                return Err(too_long(self.longest));
            }
            if !whole.is_empty() && to.send(Some((whole, held.take()))).await.is_err() {
                return Ok(());
            }
        }
        if to.send(Some((lines.take(), held))).await.is_ok() {
            let _ = to.send(None).await;
        }
        Ok(())
    }

    /// Room for a long line.
    async fn room(&self) -> Result<Held, NotAnswered> {
        let whose = self.who.tenant().map(|_| self.who.tenant_id());
        let held = self.shared.desk.room().hold_line(whose, self.longest).await;
        held.ok_or_else(|| overloaded("Too many bodies are held at once.").into())
    }
}

/// What comes within so long.
async fn soon<T>(patience: Duration, comes: impl Future<Output = Result<T, NotAnswered>>) -> Result<T, NotAnswered> {
    let come = time::timeout(patience, comes).await;
    come.unwrap_or_else(|_| Err(Refusal::from(BodyError::TooSlow(patience)).into()))
}

fn overloaded(message: &str) -> Refusal {
    let refusal = Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", message.to_owned());
    Refusal { kind: SERVER_ERROR, retry_after: Some(FULL_RETRY), ..refusal }
}

fn too_long(longest: usize) -> NotAnswered {
    let message = format!("A line is over the {longest} byte limit.");
    wrong(Wrong { code: "request_too_large", message, param: Some("file") }).into()
}

/// A short text in a form.
async fn value<'b>(form: &Form<'b>, part: &mut Field<'b>) -> Result<String, NotAnswered> {
    let mut text = Vec::new();
    while let Some(piece) = form.chunk(part).await? {
        text.extend_from_slice(&piece);
        if text.len() > LONGEST_VALUE {
            return Err(broken(&"a part is too long"));
        }
    }
    String::from_utf8(text).map_err(|_| broken(&"a part is not text"))
}

/// Reads lines until all have come, and writes them as the service shall read them; a thread of its own. None: not all have come.
fn written(
    shared: &Shared,
    who: &Principal,
    name: &str,
    longest: usize,
    mut from: mpsc::Receiver<ToRead>,
) -> Result<Option<(fs::File, Label)>, NotAnswered> {
    let no_room = |error: io::Error| {
        tracing::warn!(%error, "a file of requests cannot be kept");
        overloaded("The file cannot be kept: there is no room for it.")
    };
    let mut to = BufWriter::new(tempfile::tempfile().map_err(no_room)?);
    let mut sheet = Sheet::new(shared.desk.texts(), who);
    let name_of = |user: &str| {
        let who = realtime::named_user(shared, who.clone(), user).map_err(|refusal| refusal.message)?;
        Ok(who.safety_id().map(str::to_owned))
    };
    loop {
        let Some(come) = from.blocking_recv() else { return Ok(None) };
        let Some((lines, _held)) = come else { break };
        for line in lines.split_inclusive(|b| *b == b'\n') {
            if line.len() > longest {
                return Err(too_long(longest));
            }
            if let Some(line) = sheet.line(line, name_of).map_err(wrong)? {
                to.write_all(&line).map_err(no_room)?;
            }
        }
    }
    let file = to.into_inner().map_err(|error| no_room(error.into_error()))?;
    Ok(Some((file, sheet.label(name).map_err(wrong)?)))
}

#[cfg(test)]
mod tests {
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
