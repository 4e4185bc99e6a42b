//! `/batches`: many requests for `/responses` that have time, with a quota of their own.
//!
//! A batch has a timetable and no task: what should have happened by now is done when somebody looks. Lines are worked off
//! one after the other, evenly over the batch's time, so that one which is cancelled or expires has a part of them done, and
//! only that part is paid. Its files have them in no order, as the service says of its own.
use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{
    body::{Body, Bytes},
    extract::{Path, Query, Request, State},
    http::{HeaderMap, Response, StatusCode},
};
use serde_json::{Value, json};
use tokio::time;

use super::{
    super::{
        admit,
        faults::{FaultKind, How, Place},
        rest::{Answer, No, error_json},
        validate::{Refusal, shorten},
    },
    Text,
    files::{File, full},
    render::Usage,
    responses::Worked,
    say::End,
    sse,
    visit::{Visit, body, parse},
};
use crate::scripted::Dice;

/// The one endpoint that is simulated.
const ENDPOINT: &str = "/v1/responses";
const MAX_BODY: usize = 1 << 20;
/// Most lines of a file.
const MAX_LINES: usize = 50_000;
/// Batches that are kept, and how many of them one page of a list has.
const MAX_KEPT: usize = 10_000;
const PAGE: usize = 20;

/// All batches, oldest first.
#[derive(Debug, Default)]
pub(super) struct Batches(Vec<Batch>);

impl Batches {
    fn keep(&mut self, batch: Batch) -> Result<(), No> {
        if self.0.len() >= MAX_KEPT {
            return Err(full("batches", MAX_KEPT));
        }
        self.0.push(batch);
        Ok(())
    }
}

/// One line of the input.
#[derive(Debug)]
struct Line {
    custom_id: String,
    body: Value,
}

#[derive(Debug)]
struct Batch {
    id: String,
    account: String,
    /// What its creator said of it, for the answer.
    asked: Value,
    /// When, by the simulator's clock, and by the wall's (Unix seconds).
    began: Duration,
    created: u64,
    /// Why it will not be done.
    wrong: Vec<Value>,
    lines: Vec<Line>,
    /// Lines that were worked off, and what came of them.
    done: usize,
    output: Vec<String>,
    errors: Vec<String>,
    failed: u64,
    usage: Usage,
    /// How long each of its stages takes.
    times: Times,
    cancelled: Option<Duration>,
    /// Its output's and its errors' files, once they are written.
    files: Option<(Option<String>, Option<String>)>,
    dice: Dice,
}

/// A batch's timetable, from its creation on.
#[derive(Debug, Clone, Copy)]
struct Times {
    validated: Duration,
    worked: Duration,
    finalizing: Duration,
    expires: Duration,
}

/// Where a batch stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Validating,
    Failed,
    InProgress,
    Finalizing,
    Completed,
    Expired,
    Cancelling,
    Cancelled,
}

impl Stage {
    fn name(self) -> &'static str {
        match self {
            Self::Validating => "validating",
            Self::Failed => "failed",
            Self::InProgress => "in_progress",
            Self::Finalizing => "finalizing",
            Self::Completed => "completed",
            Self::Expired => "expired",
            Self::Cancelling => "cancelling",
            Self::Cancelled => "cancelled",
        }
    }

    fn is_over(self) -> bool {
        matches!(self, Self::Failed | Self::Completed | Self::Expired | Self::Cancelled)
    }
}

impl Batch {
    /// Where it stands after so long.
    fn stage(&self, age: Duration) -> Stage {
        let Times { validated, worked, finalizing, expires } = self.times;
        if let Some(at) = self.cancelled {
            return if age < at + finalizing { Stage::Cancelling } else { Stage::Cancelled };
        }
        match age {
            _ if age < validated => Stage::Validating,
            _ if !self.wrong.is_empty() => Stage::Failed,
            _ if expires < worked && age >= expires => Stage::Expired,
            _ if age < worked => Stage::InProgress,
            _ if age < worked + finalizing => Stage::Finalizing,
            _ => Stage::Completed,
        }
    }

    /// How many lines are done after so long.
    fn due(&self, age: Duration) -> usize {
        let Times { validated, worked, expires, .. } = self.times;
        let age = age.min(expires).min(self.cancelled.unwrap_or(Duration::MAX));
        if !self.wrong.is_empty() || age < validated {
            return 0;
        }
        if age >= worked {
            return self.lines.len();
        }
        let share = (age - validated).as_secs_f64() / (worked - validated).as_secs_f64();
        // Counted, not cast: a batch has few lines.
        let total = self.lines.len();
        (0..=total).rev().find(|done| *done as f64 <= total as f64 * share).unwrap_or(0)
    }

    /// Does what should have been done by now.
    fn catch_up(&mut self, text: &Text, now: Duration) -> Stage {
        let age = now.saturating_sub(self.began);
        let stage = self.stage(age);
        while self.done < self.due(age) {
            self.line(text);
        }
        if stage.is_over() && stage != Stage::Failed && self.files.is_none() {
            if stage == Stage::Expired {
                self.expire();
            }
            self.files = Some((self.write(text, "output"), self.write(text, "error")));
        }
        stage
    }

    /// Works off the next line.
    fn line(&mut self, text: &Text) {
        let Some(line) = self.lines.get(self.done) else { return };
        self.done += 1;
        let number = text.world.stats.lock().text.came(Place::BatchLines.name(), None);
        let fault = text.world.faults.at_door(Place::BatchLines, number);
        let (how, message) = match &fault {
            Some(FaultKind::Answer { how, message }) => (Some(*how), message.as_deref()),
            _ => (None, None),
        };
        if how == Some(How::Lost) {
            return;
        }
        let worked = text.work(&self.account, &line.body, (how, message), &mut self.dice);
        let (status, body) = match (fault, worked) {
            (Some(FaultKind::Refuse { status, body, .. }), _) => {
                let scripted = body.and_then(|body| serde_json::from_str(&body).ok());
                (status, scripted.unwrap_or_else(|| admit::http_error(status)))
            }
            (_, Ok(worked)) => {
                pay(text, &worked, &mut self.usage);
                text.store(&self.account, &worked);
                (200, worked.rendered.response)
            }
            (_, Err(No::Refused { status, refusal })) => (status.as_u16(), error_json(&refusal)),
            (_, Err(No::Written(response))) => {
                let status = response.status().as_u16();
                (status, admit::http_error(status))
            }
        };
        text.world.stats.lock().text.ended(Place::BatchLines.name(), status);
        let answer = json!({
            "id": self.dice.id("batch_req"),
            "custom_id": line.custom_id,
            "response": {"status_code": status, "request_id": self.dice.id("req"), "body": body},
            "error": null,
        });
        if status == 200 {
            self.output.push(answer.to_string());
        } else {
            self.failed += 1;
            self.errors.push(answer.to_string());
        }
    }

    /// What was not done in time is told line by line.
    fn expire(&mut self) {
        for line in self.lines.iter().skip(self.done) {
            let message = "This request could not be executed before the completion window expired.";
            let told = json!({
                "id": self.dice.id("batch_req"),
                "custom_id": line.custom_id,
                "response": null,
                "error": {"code": "batch_expired", "message": message},
            });
            self.errors.push(told.to_string());
        }
    }

    /// Writes a file of it, if there is anything to be written.
    fn write(&mut self, text: &Text, what: &str) -> Option<String> {
        let lines = if what == "output" { &mut self.output } else { &mut self.errors };
        for last in (1..lines.len()).rev() {
            lines.swap(last, self.dice.between(0, last));
        }
        let mut bytes = lines.join("\n");
        if bytes.is_empty() {
            return None;
        }
        bytes.push('\n');
        let id = self.dice.id("file");
        let file = File {
            account: self.account.clone(),
            name: format!("{}_{what}.jsonl", self.id),
            purpose: "batch_output".to_owned(),
            bytes: Bytes::from(bytes),
            created: text.world.unix_now(),
        };
        text.write_file(&id, file);
        Some(id)
    }

    /// What all its lines weigh, while they wait.
    fn queued(&self) -> u64 {
        self.lines.iter().map(|line| weight(&line.body)).sum()
    }

    fn json(&self, stage: Stage, now: Duration) -> Value {
        let age = now.saturating_sub(self.began);
        let Times { validated, worked, finalizing, expires } = self.times;
        let at = |when: Duration| self.created + when.as_secs();
        let past = |reached: bool, when: Duration| if reached && age >= when { json!(at(when)) } else { Value::Null };
        let (good, whole) = (self.wrong.is_empty(), self.cancelled.is_none() && expires >= worked);
        let cancelled = self.cancelled.unwrap_or(Duration::MAX);
        let errors = if stage == Stage::Failed { json!({"object": "list", "data": self.wrong}) } else { Value::Null };
        let (output, error) = self.files.clone().unwrap_or_default();
        json!({
            "id": self.id,
            "object": "batch",
            "endpoint": ENDPOINT,
            "errors": errors,
            "input_file_id": self.asked.get("input_file_id"),
            "completion_window": self.asked.get("completion_window"),
            "status": stage.name(),
            "output_file_id": output,
            "error_file_id": error,
            "created_at": self.created,
            "in_progress_at": past(good, validated),
            "expires_at": at(expires),
            "finalizing_at": past(good && whole, worked),
            "completed_at": past(good && whole, worked + finalizing),
            "failed_at": past(!good, validated),
            "expired_at": if stage == Stage::Expired { json!(at(expires)) } else { Value::Null },
            "cancelling_at": past(self.cancelled.is_some(), cancelled),
            "cancelled_at": past(self.cancelled.is_some(), cancelled.saturating_add(finalizing)),
            "request_counts": {
                "total": if good && age >= validated { self.lines.len() } else { 0 },
                "completed": self.output.len(),
                "failed": self.failed,
            },
            "usage": {
                "input_tokens": self.usage.input,
                "input_tokens_details": {"cached_tokens": self.usage.cached},
                "output_tokens": self.usage.output,
                "output_tokens_details": {"reasoning_tokens": self.usage.reasoning},
                "total_tokens": self.usage.input + self.usage.output,
            },
            "metadata": self.asked.get("metadata"),
        })
    }
}

/// Books a line, at the price of batches.
fn pay(text: &Text, worked: &Worked, usage: &mut Usage) {
    if worked.said.end == End::Failed {
        return;
    }
    usage.input += worked.usage.input;
    usage.cached += worked.usage.cached;
    usage.output += worked.usage.output;
    usage.reasoning += worked.usage.reasoning;
    let mut stats = text.world.stats.lock();
    stats.text.batch_input_tokens += worked.usage.input;
    stats.text.batch_output_tokens += worked.usage.output;
    stats.text.pays(worked.content);
}

/// What a line is taken to weigh before it is worked off, tokens.
fn weight(body: &Value) -> u64 {
    super::super::tokens::of_text(&body.to_string())
}

/// Reads the input's lines; `Err`: what is wrong with them.
fn lines(file: &[u8]) -> Result<Vec<Line>, Vec<Value>> {
    let (mut lines, mut wrong, mut ids) = (Vec::<Line>::new(), Vec::new(), HashSet::new());
    let mut tell = |code: &str, line: usize, param: Option<&str>, message: String| {
        wrong.push(json!({"code": code, "line": line, "param": param, "message": message}));
    };
    let text = String::from_utf8_lossy(file);
    for (n, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let n = n + 1;
        let Ok(mut read) = serde_json::from_str::<Value>(line) else {
            tell("invalid_json_line", n, None, "This line is not parseable as valid JSON.".to_owned());
            continue;
        };
        let field = |name: &str| read.get(name).and_then(Value::as_str).map(str::to_owned);
        let Some(custom_id) = field("custom_id").filter(|id| !id.is_empty()) else {
            tell(
                "missing_required_parameter",
                n,
                Some("custom_id"),
                "Missing required parameter: 'custom_id'.".to_owned(),
            );
            continue;
        };
        if field("url").as_deref() != Some(ENDPOINT) {
            let message = "The URL provided for this request does not match the batch endpoint.".to_owned();
            tell("mismatched_url", n, Some("url"), message);
        } else if field("method").as_deref() != Some("POST") {
            tell("invalid_method", n, Some("method"), "Invalid method: use POST.".to_owned());
        } else if !ids.insert(custom_id.clone()) {
            let message =
                format!("The custom_id for this request is a duplicate of another request: {}.", shorten(&custom_id));
            tell("duplicate_custom_id", n, Some("custom_id"), message);
        } else {
            let body = read.get_mut("body").map(Value::take).unwrap_or_default();
            // The code is a guess, by those of other fields.
            if lines.first().is_some_and(|first| first.body.get("model") != body.get("model")) {
                let message = "The model of this request is not that of the batch: all of its requests must have one.";
                tell("mismatched_model", n, Some("body.model"), message.to_owned());
            } else {
                lines.push(Line { custom_id, body });
            }
        }
    }
    if lines.is_empty() && wrong.is_empty() {
        wrong.push(json!({"code": "empty_file", "line": null, "param": null, "message": "The input file is empty."}));
    }
    if lines.len() > MAX_LINES {
        let message = format!("The input file has more than {MAX_LINES} requests.");
        wrong.push(json!({"code": "too_many_tasks", "line": null, "param": null, "message": message}));
    }
    if wrong.is_empty() { Ok(lines) } else { Err(wrong) }
}

impl Text {
    fn batches(&self) -> MutexGuard<'_, Batches> {
        self.batches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A batch as it is now, after `change`.
    fn batch(&self, account: &str, id: &str, change: impl FnOnce(&mut Batch, Stage, Duration)) -> Result<Value, No> {
        let now = self.now();
        let mut batches = self.batches();
        let batch = batches.0.iter_mut().find(|batch| batch.id == id && batch.account == account);
        let batch = batch.ok_or_else(|| {
            let message = format!("No batch found with id '{}'.", shorten(id));
            No::new(StatusCode::NOT_FOUND, Refusal { code: None, ..Refusal::new("", message) })
        })?;
        let stage = batch.catch_up(self, now);
        change(batch, stage, now);
        let stage = batch.catch_up(self, now);
        Ok(batch.json(stage, now))
    }
}

/// Begins a batch.
pub(super) async fn create(State(text): State<Arc<Text>>, request: Request) -> Response<Body> {
    let headers = request.headers().clone();
    let mut visit = Visit::new(&text, Place::Batches, &headers);
    let answer = match visit.enter(&headers).await {
        Ok(()) => begin(&mut visit, request).await,
        Err(no) => Err(no),
    };
    visit.leave(answer)
}

async fn begin(visit: &mut Visit<'_>, request: Request) -> Answer {
    let text = visit.text;
    let asked = parse(&body(request, MAX_BODY).await?)?;
    let needs = |name: &str| asked.get(name).and_then(Value::as_str).ok_or_else(|| No::bad(Refusal::missing(name)));
    let (file_id, endpoint, window) = (needs("input_file_id")?, needs("endpoint")?, needs("completion_window")?);
    if endpoint != ENDPOINT {
        return Err(No::bad(Refusal::choice("endpoint", endpoint, &[ENDPOINT])));
    }
    if window != "24h" {
        return Err(No::bad(Refusal::choice("completion_window", window, &["24h"])));
    }
    let file = text.file(&visit.account, file_id).filter(|file| file.purpose == "batch").ok_or_else(|| {
        let message = format!("No such File object: {}", shorten(file_id));
        No::bad(Refusal::new("invalid_value", message).at("input_file_id"))
    })?;
    time::sleep(visit.dice.delay(text.world.config.delays.rest)).await;
    let config = &text.world.config.text;
    let mut times = Times {
        validated: Duration::from_millis(config.batch_validating_ms),
        worked: Duration::from_millis(config.batch_validating_ms + config.batch_ms),
        finalizing: Duration::from_millis(config.batch_finalizing_ms),
        expires: Duration::from_millis(config.batch_expires_ms),
    };
    let (lines, mut wrong) = match lines(&file.bytes) {
        Ok(lines) => (lines, Vec::new()),
        Err(wrong) => (Vec::new(), wrong),
    };
    match visit.how() {
        Some(How::Failed) => {
            let message = visit.message().unwrap_or("The batch could not be validated.");
            wrong.push(json!({"code": "server_error", "line": null, "param": null, "message": message}));
        }
        Some(How::Expired) => times.expires = times.validated + (times.worked - times.validated) / 2,
        _ => {}
    }
    let mut batch = Batch {
        id: visit.dice.id("batch"),
        account: visit.account.clone(),
        began: text.now(),
        created: text.world.unix_now(),
        wrong,
        lines,
        done: 0,
        output: Vec::new(),
        errors: Vec::new(),
        failed: 0,
        usage: Usage::default(),
        times,
        cancelled: None,
        files: None,
        dice: Dice::new(text.world.config.seed ^ 0xBA7C, super::hash(&visit.account) ^ visit.number()),
        asked,
    };
    let now = text.now();
    let mut batches = text.batches();
    let limit = config.batch_tokens;
    if limit > 0 && queued(&mut batches, text, &batch, now) > limit {
        let message = format!(
            "Enqueued token limit reached in organization org-simulated. Limit: {limit} enqueued tokens. Please try again once \
             some in_progress batches have been completed."
        );
        text.world.stats.limited("batch_tokens");
        batch.wrong.push(json!({"code": "token_limit_exceeded", "line": null, "param": null, "message": message}));
    }
    let shown = batch.json(Stage::Validating, batch.began);
    batches.keep(batch)?;
    Ok(sse::json(&shown, visit.fault.as_ref()))
}

/// What an account's queue weighs with one batch more.
fn queued(batches: &mut Batches, text: &Text, new: &Batch, now: Duration) -> u64 {
    let mine = batches.0.iter_mut().filter(|batch| batch.account == new.account);
    let waiting = mine.filter_map(|batch| (!batch.catch_up(text, now).is_over()).then(|| batch.queued()));
    waiting.sum::<u64>() + new.queued()
}

/// Where a batch stands.
pub(super) async fn read(State(text): State<Arc<Text>>, Path(id): Path<String>, headers: HeaderMap) -> Response<Body> {
    let mut visit = Visit::new(&text, Place::Batches, &headers);
    let answer = visit.enter(&headers).await.and_then(|()| {
        let batch = text.batch(&visit.account, &id, |_, _, _| {})?;
        Ok(sse::json(&batch, visit.fault.as_ref()))
    });
    visit.leave(answer)
}

/// Ends a batch early; one that is over stays as it is.
pub(super) async fn cancel(
    State(text): State<Arc<Text>>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Response<Body> {
    let mut visit = Visit::new(&text, Place::Batches, &headers);
    let answer = visit.enter(&headers).await.and_then(|()| {
        let mut over = None;
        let batch =
            text.batch(&visit.account, &id, |batch, stage, now| match stage.is_over() || batch.cancelled.is_some() {
                true => over = stage.is_over().then_some(stage),
                false => batch.cancelled = Some(now.saturating_sub(batch.began)),
            })?;
        if let Some(stage) = over {
            let message = format!("Cannot cancel a batch with status '{}'.", stage.name());
            return Err(No::new(StatusCode::CONFLICT, Refusal { code: None, ..Refusal::new("", message) }));
        }
        Ok(sse::json(&batch, visit.fault.as_ref()))
    });
    visit.leave(answer)
}

/// An account's batches, newest first.
pub(super) async fn list(
    State(text): State<Arc<Text>>,
    Query(query): Query<HashMap<String, String>>,
    headers: HeaderMap,
) -> Response<Body> {
    let mut visit = Visit::new(&text, Place::Batches, &headers);
    let answer = visit.enter(&headers).await.map(|()| {
        let now = text.now();
        let limit = query.get("limit").and_then(|limit| limit.parse().ok()).unwrap_or(PAGE).clamp(1, 100);
        let mut batches = text.batches();
        let mine = batches.0.iter_mut().rev().filter(|batch| batch.account == visit.account);
        let all: Vec<Value> = mine
            .map(|batch| {
                let stage = batch.catch_up(&text, now);
                batch.json(stage, now)
            })
            .collect();
        let id = |batch: &Value| batch.get("id").and_then(Value::as_str).map(str::to_owned);
        let from = query.get("after").map_or(0, |after| {
            all.iter().position(|batch| id(batch).as_ref() == Some(after)).map_or(all.len(), |at| at + 1)
        });
        let page: Vec<&Value> = all.iter().skip(from).take(limit).collect();
        let body = json!({
            "object": "list",
            "data": page,
            "first_id": page.first().and_then(|batch| id(batch)),
            "last_id": page.last().and_then(|batch| id(batch)),
            "has_more": from + page.len() < all.len(),
        });
        sse::json(&body, visit.fault.as_ref())
    });
    visit.leave(answer)
}
