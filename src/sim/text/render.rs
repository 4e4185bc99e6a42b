//! An answer as the service writes it: the response object, and the events of a stream. Pure.
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::{
    super::{faults::SERVER_ERROR, response::with},
    ask::Asked,
    say::{End, Piece, Spoken},
    sse::Event,
};
use crate::scripted::Dice;

/// Characters in one piece of a function call's arguments.
const ARGUMENT_PIECE: usize = 12;

/// An answer with its ids.
#[derive(Debug)]
pub(super) struct Rendered {
    pub(super) id: String,
    /// As it is when it has ended.
    pub(super) response: Value,
    items: Vec<Item>,
}

/// One item of the output, with what is streamed of it.
#[derive(Debug)]
struct Item {
    id: String,
    json: Value,
    /// None: a reasoning item, which is not shown.
    piece: Option<Piece>,
}

/// What was paid.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Usage {
    pub(super) input: u64,
    pub(super) cached: u64,
    pub(super) output: u64,
    pub(super) reasoning: u64,
}

impl Usage {
    fn json(self) -> Value {
        json!({
            "input_tokens": self.input,
            "input_tokens_details": {"cached_tokens": self.cached, "cache_write_tokens": 0},
            "output_tokens": self.output,
            "output_tokens_details": {"reasoning_tokens": self.reasoning},
            "total_tokens": self.input + self.output,
        })
    }
}

impl Rendered {
    /// `now`: Unix seconds.
    pub(super) fn new(asked: &Asked<'_>, said: &Spoken, usage: Usage, dice: &mut Dice, now: u64) -> Self {
        let id = dice.id("resp");
        let status = match said.end {
            End::Completed => "completed",
            End::Incomplete => "incomplete",
            End::Failed => "failed",
        };
        let reasons = (said.reasoning_tokens > 0).then(|| {
            let id = dice.id("rs");
            Item { json: json!({"id": id, "type": "reasoning", "summary": []}), id, piece: None }
        });
        let mut items: Vec<Item> = reasons.into_iter().collect();
        for piece in &said.pieces {
            let (id, json) = match piece {
                Piece::Text(_) | Piece::Refusal(_) => {
                    let id = dice.id("msg");
                    let content = [part(piece, piece.text())];
                    let kind = json!({"id": id, "type": "message", "status": status});
                    (id, with(kind, json!({"role": "assistant", "content": content})))
                }
                Piece::Call { name, arguments } => {
                    let id = dice.id("fc");
                    let kind = json!({"id": id, "type": "function_call", "status": status});
                    (id, with(kind, json!({"arguments": arguments, "call_id": dice.id("call"), "name": name})))
                }
            };
            items.push(Item { id, json, piece: Some(piece.clone()) });
        }
        let opening = opening(asked, &id, now);
        let how = match said.end {
            End::Completed => json!({"completed_at": now, "usage": usage.json()}),
            End::Incomplete => {
                json!({"incomplete_details": {"reason": "max_output_tokens"}, "usage": usage.json()})
            }
            End::Failed => json!({"error": {"code": "server_error", "message": SERVER_ERROR}}),
        };
        let output: Vec<&Value> = items.iter().map(|item| &item.json).collect();
        let response = with(with(opening, json!({"status": status, "output": output})), how);
        Self { id, response, items }
    }

    /// The whole stream: `first` until its first words, `word` between them.
    pub(super) fn events(&self, first: Duration, word: Duration) -> Vec<Event> {
        let mut stream = Stream { events: Vec::new() };
        let begun = json!({
            "status": "in_progress",
            "output": [],
            "usage": null,
            "error": null,
            "incomplete_details": null,
            "completed_at": null,
        });
        let opening = with(self.response.clone(), begun);
        stream.push("response.created", json!({"response": opening}), Duration::ZERO);
        stream.push("response.in_progress", json!({"response": opening}), Duration::ZERO);
        let mut wait = first;
        for (index, item) in self.items.iter().enumerate() {
            stream.item(index, item, std::mem::take(&mut wait), word);
        }
        let last = match self.response.get("status").and_then(Value::as_str) {
            Some("completed") => "response.completed",
            Some("incomplete") => "response.incomplete",
            _ => "response.failed",
        };
        stream.push(last, json!({"response": self.response}), wait);
        stream.events
    }
}

/// A message's content.
fn part(piece: &Piece, text: &str) -> Value {
    match piece {
        Piece::Refusal(_) => json!({"type": "refusal", "refusal": text}),
        _ => json!({"type": "output_text", "annotations": [], "logprobs": [], "text": text}),
    }
}

/// A response that has just begun.
fn opening(asked: &Asked<'_>, id: &str, now: u64) -> Value {
    let body = asked.body;
    let or = |name: &str, usual: Value| body.get(name).filter(|value| !value.is_null()).cloned().unwrap_or(usual);
    let mut text = or("text", json!({}));
    if let Some(text) = text.as_object_mut() {
        text.entry("format").or_insert_with(|| json!({"type": "text"}));
        text.entry("verbosity").or_insert_with(|| json!("medium"));
    }
    let tier = match body.get("service_tier").and_then(Value::as_str) {
        None | Some("auto") => "default",
        Some(tier) => tier,
    };
    let mut response = Map::new();
    for (name, value) in [
        ("id", json!(id)),
        ("object", json!("response")),
        ("created_at", json!(now)),
        ("status", json!("in_progress")),
        ("background", json!(false)),
        ("completed_at", Value::Null),
        ("error", Value::Null),
        ("incomplete_details", Value::Null),
        ("instructions", or("instructions", Value::Null)),
        ("max_output_tokens", or("max_output_tokens", Value::Null)),
        ("max_tool_calls", or("max_tool_calls", Value::Null)),
        ("model", json!(asked.model)),
        ("output", json!([])),
        ("parallel_tool_calls", or("parallel_tool_calls", json!(true))),
        ("previous_response_id", or("previous_response_id", Value::Null)),
        ("prompt_cache_key", or("prompt_cache_key", Value::Null)),
        ("reasoning", json!({"effort": asked.effort, "summary": null})),
        ("safety_identifier", or("safety_identifier", Value::Null)),
        ("service_tier", json!(tier)),
        ("store", json!(asked.store)),
        ("temperature", or("temperature", json!(1.0))),
        ("text", text),
        ("tool_choice", asked.tool_choice.clone()),
        ("tools", json!(asked.tools)),
        ("top_logprobs", or("top_logprobs", json!(0))),
        ("top_p", or("top_p", json!(1.0))),
        ("truncation", or("truncation", json!("disabled"))),
        ("usage", Value::Null),
        ("user", or("user", Value::Null)),
        ("metadata", or("metadata", json!({}))),
    ] {
        response.insert(name.to_owned(), value);
    }
    Value::Object(response)
}

/// Events with their numbers.
struct Stream {
    events: Vec<Event>,
}

impl Stream {
    fn push(&mut self, kind: &'static str, fields: Value, after: Duration) {
        let data = with(json!({"type": kind, "sequence_number": self.events.len()}), fields);
        self.events.push(Event::new(kind, data).after(after));
    }

    /// One item, from its announcement to its end; the announcement is waited for.
    fn item(&mut self, index: usize, item: &Item, wait: Duration, word: Duration) {
        let added = |begun: Value| json!({"output_index": index, "item": with(item.json.clone(), begun)});
        let begun = match &item.piece {
            Some(Piece::Call { .. }) => json!({"status": "in_progress", "arguments": ""}),
            Some(_) => json!({"status": "in_progress", "content": []}),
            None => json!({}),
        };
        self.push("response.output_item.added", added(begun), wait);
        match &item.piece {
            Some(Piece::Call { name, arguments }) => {
                let at = json!({"item_id": item.id, "output_index": index});
                let letters: Vec<char> = arguments.chars().collect();
                for piece in letters.chunks(ARGUMENT_PIECE) {
                    let fields = with(at.clone(), json!({"delta": String::from_iter(piece)}));
                    self.push("response.function_call_arguments.delta", fields, word);
                }
                let fields = with(at, json!({"name": name, "arguments": arguments}));
                self.push("response.function_call_arguments.done", fields, Duration::ZERO);
            }
            Some(piece) => {
                let at = json!({"item_id": item.id, "output_index": index, "content_index": 0});
                self.message(&at, piece, word);
            }
            None => {}
        }
        self.push("response.output_item.done", added(json!({})), Duration::ZERO);
    }

    fn message(&mut self, at: &Value, piece: &Piece, word: Duration) {
        let (field, delta, done, more) = match piece {
            Piece::Refusal(_) => ("refusal", "response.refusal.delta", "response.refusal.done", json!({})),
            _ => ("text", "response.output_text.delta", "response.output_text.done", json!({"logprobs": []})),
        };
        let fields = |fields: Value| with(at.clone(), fields);
        self.push("response.content_part.added", fields(json!({"part": part(piece, "")})), Duration::ZERO);
        for text in piece.text().split_inclusive(' ') {
            self.push(delta, fields(with(json!({"delta": text}), more.clone())), word);
        }
        self.push(done, fields(with(json!({field: piece.text()}), more)), Duration::ZERO);
        self.push("response.content_part.done", fields(json!({"part": part(piece, piece.text())})), Duration::ZERO);
    }
}
