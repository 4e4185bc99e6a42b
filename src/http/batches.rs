//! `/v1/files` and `/v1/batches`, as any SDK asks for them: who asks, the file as it comes, and the answer.
//!
//! A file is checked line by line while it comes, and kept on the disk until all of it is good: the service gets nothing of one that is
//! not. Whose files and batches are is [`crate::text::batches`]'s to say.
use std::{collections::HashMap, io, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::{Path, Query, Request, State},
    http::{HeaderValue, Response, StatusCode, header, request::Parts},
    response::IntoResponse as _,
    routing::{get, post},
};
use futures_util::{TryStreamExt as _, stream};
use multer::{Field, Multipart};
use serde_json::Value;
use tokio::{
    fs::File,
    io::{AsyncWriteExt as _, BufWriter},
    sync::mpsc,
    time,
};

use super::{
    body,
    text::{NotAnswered, identify, not, put, wrong},
};
use crate::{
    admit::Principal,
    serve::{
        Shared, random_id,
        realtime::{self, Refusal},
    },
    text::{
        ask::Wrong,
        batches::{Content, NoBatch, Wanted, label::Label, sheet::Sheet},
        run::No,
    },
};

/// Longest body that makes a batch, bytes.
const MAX_CREATE: usize = 64 << 10;
/// A file comes at least as fast as this, bytes a second.
const SLOWEST: u64 = 64 << 10;
/// Pieces on their way to a slow reader.
const PIECES: usize = 16;

pub(crate) fn routes() -> Router<Arc<Shared>> {
    ["/v1", "/openai/v1"].into_iter().fold(Router::new(), |router, base| {
        router
            .route(&format!("{base}/files"), post(upload))
            .route(&format!("{base}/files/{{id}}"), get(file).delete(delete))
            .route(&format!("{base}/files/{{id}}/content"), get(content))
            .route(&format!("{base}/batches"), post(create).get(list))
            .route(&format!("{base}/batches/{{id}}"), get(batch))
            .route(&format!("{base}/batches/{{id}}/cancel"), post(cancel))
    })
}

type Answer = Result<Response<Body>, NotAnswered>;

fn answered(answer: Answer) -> Response<Body> {
    let mut response = match answer {
        Ok(response) => response,
        Err(NotAnswered::Refused(refusal)) => refusal.into(),
        Err(NotAnswered::Told(status, body)) => {
            (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
        }
    };
    put(response.headers_mut(), "x-request-id", &random_id("batch"));
    response
}

fn shown(object: Result<Value, NoBatch>) -> Answer {
    let object = object.map_err(no_batch)?;
    Ok(([(header::CONTENT_TYPE, "application/json")], object.to_string()).into_response())
}

fn no_batch(no: NoBatch) -> NotAnswered {
    let none = |message: String| Refusal::new(StatusCode::NOT_FOUND, "not_found", message);
    let short = |id: &str| id.chars().take(64).collect::<String>();
    match no {
        NoBatch::No(no) => not(no),
        NoBatch::File(id) => none(format!("No such File object: {}", short(&id))).at("id").into(),
        NoBatch::Batch(id) => none(format!("No batch found with id '{}'.", short(&id))).into(),
        NoBatch::Wrong(wrong) => self::wrong(wrong).into(),
        NoBatch::Denied(denied) => Refusal::from(denied).into(),
    }
}

async fn upload(State(shared): State<Arc<Shared>>, request: Request) -> Response<Body> {
    let (head, body) = request.into_parts();
    let uploaded = async {
        let who = identify(&shared, &head).await?;
        take(&shared, &who, &head, body).await
    };
    answered(uploaded.await)
}

async fn file(State(shared): State<Arc<Shared>>, Path(id): Path<String>, request: Request) -> Response<Body> {
    let (head, _) = request.into_parts();
    let found = async {
        let who = identify(&shared, &head).await?;
        shown(shared.batches.file(&who, &id).await)
    };
    answered(found.await)
}

async fn delete(State(shared): State<Arc<Shared>>, Path(id): Path<String>, request: Request) -> Response<Body> {
    let (head, _) = request.into_parts();
    let deleted = async {
        let who = identify(&shared, &head).await?;
        shown(shared.batches.delete(&who, &id).await)
    };
    answered(deleted.await)
}

async fn content(State(shared): State<Arc<Shared>>, Path(id): Path<String>, request: Request) -> Response<Body> {
    let (head, _) = request.into_parts();
    let passed = async {
        let who = identify(&shared, &head).await?;
        let tells = head.headers.get("x-voxrelay-costs").is_some_and(|wish| wish == "lines");
        let content = shared.batches.content(&who, &id, tells).await.map_err(no_batch)?;
        Ok(pass(&shared, content))
    };
    answered(passed.await)
}

async fn create(State(shared): State<Arc<Shared>>, request: Request) -> Response<Body> {
    let (head, body) = request.into_parts();
    let created = async {
        let who = identify(&shared, &head).await?;
        let asked = body::object(body, MAX_CREATE).await.map_err(Refusal::from)?;
        // Whoever asks may leave; a batch that was asked for is paid.
        let (tell, told) = tokio::sync::oneshot::channel();
        let batches = shared.batches.clone();
        shared.calls.spawn(async move { drop(tell.send(batches.create(&who, asked).await)) });
        match told.await {
            Ok(created) => shown(created),
            Err(_) => Err(not(No::Gone)),
        }
    };
    answered(created.await)
}

async fn list(
    State(shared): State<Arc<Shared>>,
    Query(query): Query<HashMap<String, String>>,
    request: Request,
) -> Response<Body> {
    let (head, _) = request.into_parts();
    let found = async {
        let who = identify(&shared, &head).await?;
        shown(shared.batches.list(&who, Wanted::of(&query)).await)
    };
    answered(found.await)
}

async fn batch(State(shared): State<Arc<Shared>>, Path(id): Path<String>, request: Request) -> Response<Body> {
    let (head, _) = request.into_parts();
    let found = async {
        let who = identify(&shared, &head).await?;
        shown(shared.batches.batch(&who, &id).await)
    };
    answered(found.await)
}

async fn cancel(State(shared): State<Arc<Shared>>, Path(id): Path<String>, request: Request) -> Response<Body> {
    let (head, _) = request.into_parts();
    let cancelled = async {
        let who = identify(&shared, &head).await?;
        shown(shared.batches.cancel(&who, &id).await)
    };
    answered(cancelled.await)
}

/// A file that comes.
async fn take(shared: &Shared, who: &Principal, head: &Parts, body: Body) -> Answer {
    let batches = &shared.batches;
    let _place = batches.place(who).map_err(no_batch)?;
    let most = shared.desk.texts().config.max_batch_bytes;
    let kind = head.headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let boundary = multer::parse_boundary(kind).map_err(|_| {
        let message = "The body must be multipart/form-data, with the parts `file` and `purpose`.".to_owned();
        Refusal::new(StatusCode::BAD_REQUEST, "invalid_multipart", message)
    })?;
    let mut form = Multipart::new(body.into_data_stream().map_err(io::Error::other), boundary);
    let patience = Duration::from_secs(10 + most / SLOWEST);
    let read = time::timeout(patience, parts(shared, who, &mut form, most)).await;
    let read = read.map_err(|_| Refusal::from(body::BodyError::TooSlow(patience)))?;
    let (file, label) = read?;
    shown(batches.upload(who, file, &label).await)
}

fn broken(what: &dyn std::fmt::Display) -> NotAnswered {
    let message = format!("The multipart body cannot be read: {what}.");
    Refusal::new(StatusCode::BAD_REQUEST, "invalid_multipart", message).into()
}

async fn parts(
    shared: &Shared,
    who: &Principal,
    form: &mut Multipart<'_>,
    most: u64,
) -> Result<(File, Label), NotAnswered> {
    let missing = |param: &'static str| {
        let message = format!("Missing required parameter: '{param}'.");
        Refusal::new(StatusCode::BAD_REQUEST, "missing_required_parameter", message).at(param)
    };
    let (mut file, mut purpose) = (None, None);
    while let Some(mut field) = form.next_field().await.map_err(|_| broken(&"it breaks off"))? {
        match field.name().unwrap_or_default() {
            "file" if file.is_some() => return Err(broken(&"part `file` is there twice")),
            "file" => file = Some(lines(shared, who, field, most).await?),
            "purpose" => purpose = Some(short(&mut field).await?),
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

/// A short text in a form.
async fn short(field: &mut Field<'_>) -> Result<String, NotAnswered> {
    let mut text = Vec::new();
    while let Some(piece) = field.chunk().await.map_err(|_| broken(&"a part breaks off"))? {
        text.extend_from_slice(&piece);
        if text.len() > 64 {
            return Err(broken(&"a part is too long"));
        }
    }
    String::from_utf8(text).map_err(|_| broken(&"a part is not text"))
}

/// The lines of a file, checked, on the disk, as the service shall read them.
async fn lines(
    shared: &Shared,
    who: &Principal,
    mut field: Field<'_>,
    most: u64,
) -> Result<(File, Label), NotAnswered> {
    let texts = shared.desk.texts();
    let longest = texts.config.max_body_bytes;
    let name = field.file_name().unwrap_or("file").to_owned();
    let no_room = |error: io::Error| {
        tracing::warn!(%error, "a file of requests cannot be kept");
        let message = "The file cannot be kept: there is no room for it.".to_owned();
        let refusal = Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", message);
        Refusal { kind: crate::client::openai::SERVER_ERROR, ..refusal }
    };
    let file = tempfile::tempfile().map_err(no_room)?;
    let mut to = BufWriter::new(File::from_std(file));
    let mut sheet = Sheet::new(texts, who);
    let name_of = |user: &str| {
        let who = realtime::named_user(shared, who.clone(), user).map_err(|refusal| refusal.message)?;
        Ok(who.safety_id().map(str::to_owned))
    };
    let (mut rest, mut came) = (Vec::new(), 0_u64);
    loop {
        let piece = field.chunk().await.map_err(|_| broken(&"a part breaks off"))?;
        let whole = piece.is_none();
        if let Some(piece) = piece {
            came += piece.len() as u64;
            rest.extend_from_slice(&piece);
        }
        if came > most {
            let most = usize::try_from(most).unwrap_or(usize::MAX);
            return Err(Refusal::from(body::BodyError::TooLarge(most)).into());
        }
        let end = if whole { rest.len() } else { rest.iter().rposition(|b| *b == b'\n').map_or(0, |end| end + 1) };
        let later = rest.split_off(end);
        for line in std::mem::replace(&mut rest, later).split_inclusive(|b| *b == b'\n') {
            if let Some(line) = sheet.line(line, name_of).map_err(wrong)? {
                to.write_all(&line).await.map_err(no_room)?;
            }
        }
        if rest.len() > longest {
            let message = format!("A line is over the {longest} byte limit.");
            return Err(wrong(Wrong { code: "request_too_large", message, param: Some("file") }).into());
        }
        if whole {
            break;
        }
    }
    to.flush().await.map_err(no_room)?;
    Ok((to.into_inner(), sheet.label(&name).map_err(wrong)?))
}

/// A file on its way to whoever wants it.
fn pass(shared: &Shared, content: Content) -> Response<Body> {
    let Content { response, booking } = content;
    let kind = response.headers().get(header::CONTENT_TYPE).cloned();
    let body = match booking {
        None => Body::from_stream(response.bytes_stream()),
        Some(booking) => {
            let (to, reader) = mpsc::channel(PIECES);
            let stall = Duration::from_secs(shared.desk.texts().config.stall_s);
            shared.calls.spawn(booking.pass(response, to, stall));
            Body::from_stream(stream::unfold(reader, |mut reader| async move {
                reader.recv().await.map(|piece| (piece, reader))
            }))
        }
    };
    let mut answer = Response::new(body);
    let kind = kind.unwrap_or(HeaderValue::from_static("application/octet-stream"));
    answer.headers_mut().insert(header::CONTENT_TYPE, kind);
    answer
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::share::Full;

    #[test]
    fn what_is_anothers_does_not_exist() {
        for (no, status) in [
            (NoBatch::File("file-1".to_owned()), 404),
            (NoBatch::Batch("batch_1".to_owned()), 404),
            (NoBatch::No(No::Full(Full::Own)), 429),
        ] {
            let NotAnswered::Refused(refusal) = no_batch(no) else { panic!() };
            assert_eq!(refusal.status, status, "{refusal:?}");
        }
    }
}
