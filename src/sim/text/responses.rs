//! `POST /responses`, and what is kept of its answers: to be read again, deleted, or gone on with.
use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, PoisonError},
    time::Duration,
};

use axum::{
    body::Body,
    extract::{Path, Request, State},
    http::{HeaderMap, Response, StatusCode},
};
use serde_json::{Value, json};
use tokio::time;

use super::{
    super::{
        faults::{How, Place},
        rest::{Answer, No},
        validate::{Refusal, shorten},
    },
    Text,
    ask::Asked,
    hash,
    render::{Rendered, Usage},
    say::{End, Spoken, say},
    sse,
    visit::{Visit, body, parse, spoken},
};
use crate::scripted::Dice;

/// Longest body, bytes.
const MAX_BODY: usize = 32 << 20;
/// Answers that are kept; the oldest is forgotten first.
const MAX_KEPT: usize = 10_000;
/// From so many tokens on a prefix is cached, in steps of the second number.
const CACHE: (u64, u64) = (1_024, 128);

/// Answers that were stored.
#[derive(Debug, Default)]
pub(super) struct Kept {
    answers: HashMap<String, Stored>,
    order: VecDeque<String>,
}

/// An answer that was stored.
#[derive(Debug, Clone)]
struct Stored {
    account: String,
    response: Value,
    /// All that was read and written up to here, tokens.
    tokens: u64,
    /// What `max_output_tokens` has cut off.
    rest: Option<String>,
}

impl Kept {
    fn keep(&mut self, id: String, stored: Stored) {
        if self.order.len() >= MAX_KEPT
            && let Some(oldest) = self.order.pop_front()
        {
            self.answers.remove(&oldest);
        }
        self.order.push_back(id.clone());
        self.answers.insert(id, stored);
    }
}

/// An answer that is ready to be told.
#[derive(Debug)]
pub(super) struct Worked {
    pub(super) rendered: Rendered,
    pub(super) said: Spoken,
    pub(super) usage: Usage,
    pub(super) stream: bool,
    /// Input and the most that may be put out: what limits count before it is known better.
    pub(super) reserve: u64,
    pub(super) model: String,
    /// The same for the same content.
    pub(super) content: u64,
    store: bool,
    context: u64,
}

impl Text {
    fn kept(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.responses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads a request of `account` and makes up its answer; nothing is paid or kept yet.
    pub(super) fn work(
        &self,
        account: &str,
        body: &Value,
        (how, message): (Option<How>, Option<&str>),
        dice: &mut Dice,
    ) -> Result<Worked, No> {
        let config = &self.world.config;
        let asked = Asked::read(config, body)?;
        let before = match asked.previous {
            None => None,
            Some(id) => {
                let found = self.kept().answers.get(id).filter(|stored| stored.account == account).cloned();
                Some(found.ok_or_else(|| no_previous(id))?)
            }
        };
        let carried = before.as_ref().map_or(0, |stored| stored.tokens);
        let input = asked.input.tokens + carried;
        let most = asked.max_output_tokens;
        if input + most.unwrap_or(0).min(config.text.context_tokens / 2) > config.text.context_tokens {
            let message =
                "Your input exceeds the context window of this model. Please adjust your input and try again.";
            return Err(No::bad(Refusal::new("context_length_exceeded", message).at("input")));
        }
        let rest = before.as_ref().and_then(|stored| stored.rest.as_deref());
        let said = say(&asked, rest, how, message);
        let cached = if carried >= CACHE.0 { carried / CACHE.1 * CACHE.1 } else { 0 };
        let usage = Usage { input, cached, output: said.output_tokens, reasoning: said.reasoning_tokens };
        let rendered = Rendered::new(&asked, &said, usage, dice, self.world.unix_now());
        let mut content = body.clone();
        if let Some(fields) = content.as_object_mut() {
            fields.shift_remove("stream");
        }
        Ok(Worked {
            stream: asked.stream,
            reserve: input + most.unwrap_or(said.output_tokens),
            model: asked.model.to_owned(),
            content: hash(content.to_string()),
            store: asked.store,
            context: input + said.output_tokens,
            rendered,
            said,
            usage,
        })
    }

    /// Keeps an answer, if its asker wants that.
    pub(super) fn store(&self, account: &str, worked: &Worked) {
        if worked.store {
            let stored = Stored {
                account: account.to_owned(),
                response: worked.rendered.response.clone(),
                tokens: worked.context,
                rest: worked.said.rest.clone(),
            };
            self.kept().keep(worked.rendered.id.clone(), stored);
        }
    }
}

fn no_previous(id: &str) -> No {
    let message = format!("Previous response with id '{}' not found.", shorten(id));
    No::bad(Refusal::new("previous_response_not_found", message).at("previous_response_id"))
}

fn no_response(id: &str) -> No {
    let message = format!("Response with id '{}' not found.", shorten(id));
    No::new(StatusCode::NOT_FOUND, Refusal { code: None, ..Refusal::new("", message) })
}

/// The address.
pub(super) async fn create(State(text): State<Arc<Text>>, request: Request) -> Response<Body> {
    let headers = request.headers().clone();
    let mut visit = Visit::new(&text, Place::Responses, &headers);
    let answer = match visit.enter(&headers).await {
        Ok(()) => respond(&mut visit, request).await,
        Err(no) => Err(no),
    };
    visit.leave(answer)
}

async fn respond(visit: &mut Visit<'_>, request: Request) -> Answer {
    let text = visit.text;
    let config = &text.world.config.text;
    let asked = parse(&body(request, MAX_BODY).await?)?;
    visit.model = asked.get("model").and_then(Value::as_str).map(str::to_owned);
    let (how, message) = (visit.how(), visit.message().map(str::to_owned));
    let worked = text.work(&visit.account, &asked, (how, message.as_deref()), &mut visit.dice)?;
    let taken = visit.take(&worked.model, worked.reserve)?;
    let (first, word) = (visit.dice.delay(config.response), Duration::from_millis(config.word_ms));
    if !worked.stream {
        let words: Duration = worked.said.pieces.iter().map(|piece| spoken(piece.text(), config.word_ms)).sum();
        time::sleep(first + words).await;
    }
    let used = if worked.said.end == End::Failed { 0 } else { worked.usage.input + worked.usage.output };
    visit.settle(taken.as_ref(), used);
    pay(text, &worked);
    text.store(&visit.account, &worked);
    match worked.stream && how != Some(How::Garbage) {
        true => Ok(sse::stream(worked.rendered.events(first, word), visit.fault.as_ref())),
        false => Ok(sse::json(&worked.rendered.response, visit.fault.as_ref())),
    }
}

/// Books an answer. One that failed costs nothing.
fn pay(text: &Text, worked: &Worked) {
    if worked.said.end == End::Failed {
        return;
    }
    let mut stats = text.world.stats.lock();
    stats.text.input_tokens += worked.usage.input;
    stats.text.cached_tokens += worked.usage.cached;
    stats.text.output_tokens += worked.usage.output;
    stats.text.pays(worked.content);
}

/// A stored answer.
pub(super) async fn read(State(text): State<Arc<Text>>, Path(id): Path<String>, headers: HeaderMap) -> Response<Body> {
    let mut visit = Visit::beside(&text);
    let answer = visit.enter(&headers).await.and_then(|()| {
        let kept = text.kept();
        let found = kept.answers.get(&id).filter(|stored| stored.account == visit.account);
        let found = found.ok_or_else(|| no_response(&id))?;
        Ok(sse::json(&found.response, visit.fault.as_ref()))
    });
    visit.leave(answer)
}

/// Forgets a stored answer.
pub(super) async fn delete(
    State(text): State<Arc<Text>>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Response<Body> {
    let mut visit = Visit::beside(&text);
    let answer = visit.enter(&headers).await.and_then(|()| {
        let mut kept = text.kept();
        kept.answers.get(&id).filter(|stored| stored.account == visit.account).ok_or_else(|| no_response(&id))?;
        kept.answers.remove(&id);
        let body = json!({"id": id, "object": "response", "deleted": true});
        Ok(sse::json(&body, visit.fault.as_ref()))
    });
    visit.leave(answer)
}
