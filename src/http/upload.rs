//! A file of requests as it comes, from its form to the service.
//!
//! It is checked line by line while it comes, and kept on the disk until all of it is good: the service gets nothing of one that is not. In
//! memory are pieces, and the line that has begun; a long one has room of its own. Lines are read, and written, away from the threads that
//! carry calls. Whoever is refused while it sends is heard to its end, within bounds, so that it sees why.
use std::{
    fs,
    io::{self, BufWriter, Write as _},
    sync::Arc,
    time::Duration,
};

use axum::{
    body::Body,
    http::{StatusCode, header, request::Parts},
};
use multer::Field;
use tokio::{
    fs::File,
    sync::mpsc,
    task::spawn_blocking,
    time::{self, Instant},
};

use super::{
    batches::{Answer, no_batch, shown},
    body::{self, BodyError},
    form::{FORM, Form, broken, too_large},
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
        let (file, label) = read.ok_or_else(|| broken(&"it breaks off"))?;
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
