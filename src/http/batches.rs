//! `/v1/files` and `/v1/batches`, as any SDK asks for them: who asks, the file as it comes, and the answer.
//!
//! How a file comes is [`mod@upload`]'s; whose files and batches are, and how a file goes out, [`crate::text::batches`]'s.
use std::{collections::HashMap, sync::Arc};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{HeaderValue, Response, StatusCode, header},
    response::IntoResponse as _,
    routing::{get, post},
};
use serde_json::Value;

use super::{
    body, idempotency,
    part::Part,
    text::{self, NotAnswered, identify, not, put, reused},
    upload,
};
use crate::{
    admit::Principal,
    serve::{Shared, fields, random_id, realtime::Refusal},
    text::{
        batches::{
            Content, NoBatch, Wanted,
            create::{Made, Repeats},
            passing,
        },
        run::No,
        share::Place,
    },
};

/// Longest body that makes a batch, bytes.
const MAX_CREATE: usize = 64 << 10;
/// What SDKs of OpenAI say with a try that is not the first, where they have no key.
const RETRY: &str = "x-stainless-retry-count";

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

pub(super) type Answer = Result<Response<Body>, NotAnswered>;

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

pub(super) fn shown(object: Result<Value, NoBatch>) -> Answer {
    let object = object.map_err(no_batch)?;
    Ok(([(header::CONTENT_TYPE, "application/json")], object.to_string()).into_response())
}

pub(super) fn no_batch(no: NoBatch) -> NotAnswered {
    let none = |message: String| Refusal::new(StatusCode::NOT_FOUND, "not_found", message);
    let short = |id: &str| id.chars().take(64).collect::<String>();
    match no {
        NoBatch::No(no) => not(no),
        NoBatch::File(id) => none(format!("No such File object: {}", short(&id))).at("id").into(),
        NoBatch::Batch(id) => none(format!("No batch found with id '{}'.", short(&id))).into(),
        NoBatch::Wrong(wrong) => text::wrong(wrong).into(),
        NoBatch::Denied(denied) => Refusal::from(denied).into(),
        NoBatch::Reused => reused().into(),
    }
}

async fn upload(State(shared): State<Arc<Shared>>, request: Request) -> Response<Body> {
    let (head, body) = request.into_parts();
    let uploaded = async {
        let who = identify(&shared, &head).await?;
        upload::take(&shared, &who, &head, body).await
    };
    answered(uploaded.await)
}

async fn file(State(shared): State<Arc<Shared>>, Part(id): Part, request: Request) -> Response<Body> {
    let (head, _) = request.into_parts();
    let found = async {
        let who = identify(&shared, &head).await?;
        shown(shared.batches.file(&who, &id).await)
    };
    answered(found.await)
}

async fn delete(State(shared): State<Arc<Shared>>, Part(id): Part, request: Request) -> Response<Body> {
    let (head, _) = request.into_parts();
    let deleted = async {
        let who = identify(&shared, &head).await?;
        shown(shared.batches.delete(&who, &id).await)
    };
    answered(deleted.await)
}

async fn content(State(shared): State<Arc<Shared>>, Part(id): Part, request: Request) -> Response<Body> {
    let (head, _) = request.into_parts();
    let passed = async {
        let who = identify(&shared, &head).await?;
        let tells = head.headers.get("x-voxrelay-costs").is_some_and(|wish| wish == "lines");
        let place = shared.batches.download(&who).map_err(no_batch)?;
        let content = shared.batches.content(&who, &id, tells).await.map_err(no_batch)?;
        Ok(pass(&shared, &who, content, place))
    };
    answered(passed.await)
}

async fn create(State(shared): State<Arc<Shared>>, request: Request) -> Response<Body> {
    let (head, body) = request.into_parts();
    let created = async {
        let who = identify(&shared, &head).await?;
        let asked = body::object(body, MAX_CREATE).await.map_err(Refusal::from)?;
        let key = idempotency::key(&head.headers)
            .map_err(|wrong| Refusal::new(StatusCode::BAD_REQUEST, "invalid_value", wrong).at("Idempotency-Key"))?;
        let retried = head.headers.get(RETRY).is_some_and(|count| count != "0");
        // Whoever asks may leave; a batch that was asked for is paid.
        let (tell, told) = tokio::sync::oneshot::channel();
        let batches = shared.batches.clone();
        let repeats = Repeats { key, retried };
        shared.calls.spawn(async move { drop(tell.send(Box::pin(batches.create(&who, asked, repeats)).await)) });
        let Made { batch, repeated } = told.await.map_err(|_| not(No::Gone))?.map_err(no_batch)?;
        let mut response = shown(Ok(batch))?;
        if repeated {
            put(response.headers_mut(), "x-voxrelay-repeated", "true");
        }
        Ok(response)
    };
    answered(created.await)
}

async fn list(State(shared): State<Arc<Shared>>, request: Request) -> Response<Body> {
    let (head, _) = request.into_parts();
    let found = async {
        let who = identify(&shared, &head).await?;
        let query = fields(&head.uri)
            .map_err(|wrong| Refusal::new(StatusCode::BAD_REQUEST, "invalid_value", format!("{wrong}.")))?;
        let query: HashMap<String, String> = query.into_iter().collect();
        shown(shared.batches.list(&who, Wanted::of(&query)).await)
    };
    answered(found.await)
}

async fn batch(State(shared): State<Arc<Shared>>, Part(id): Part, request: Request) -> Response<Body> {
    let (head, _) = request.into_parts();
    let found = async {
        let who = identify(&shared, &head).await?;
        shown(shared.batches.batch(&who, &id).await)
    };
    answered(found.await)
}

async fn cancel(State(shared): State<Arc<Shared>>, Part(id): Part, request: Request) -> Response<Body> {
    let (head, _) = request.into_parts();
    let cancelled = async {
        let who = identify(&shared, &head).await?;
        shown(shared.batches.cancel(&who, &id).await)
    };
    answered(cancelled.await)
}

/// A file on its way to whoever wants it.
fn pass(shared: &Shared, who: &Principal, content: Content, place: Place) -> Response<Body> {
    let kind = content.response.headers().get(header::CONTENT_TYPE).cloned();
    let (to, reader) = passing::channel();
    shared.calls.spawn(content.pass(shared.batches.passing(who, to, shared.stop.clone(), Some(place))));
    let mut answer = Response::new(Body::from_stream(reader));
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
