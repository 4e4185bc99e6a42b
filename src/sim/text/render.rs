//! An answer as the service writes it: the response object, and the events of a stream. Pure.
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::{
    ask::Asked,
    say::{End, Piece, Spoken},
    sse::Event,
};
use crate::{scripted::Dice, sim::faults::SERVER_ERROR};

/// Characters in one piece of a function call's arguments.
const ARGUMENT_PIECE: usize = 12;

/// An answer with its ids.
#[derive(Debug)]
pub(super) struct Rendered {
    pub(super) id: String,
    /// As it is when it has ended.
    pub(super) response: Value,
    items: Vec<Value>,
}

/// What was paid.
#[derive(Debug, Clone, Copy)]
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
        let mut items = Vec::new();
        if said.reasoning_tokens > 0 {
            items.push(json!({"id": dice.id("rs"), "type": "reasoning", "summary": []}));
        }
        let status = match said.end {
            End::Completed => "completed",
            End::Incomplete => "incomplete",
            End::Failed => "failed",
        };
        items.extend(said.pieces.iter().map(|piece| match piece {
            Piece::Text(_) | Piece::Refusal(_) => json!({
                "id": dice.id("msg"),
                "type": "message",
                "status": status,
                "role": "assistant",
                "content": [part(piece, piece.text())],
            }),
            Piece::Call { name, arguments } => json!({
                "id": dice.id("fc"),
                "type": "function_call",
                "status": status,
                "arguments": arguments,
                "call_id": dice.id("call"),
                "name": name,
            }),
        }));
        let mut response = opening(asked, &id, now);
        response["status"] = json!(status);
        response["output"] = json!(items);
        match said.end {
            End::Completed => response["completed_at"] = json!(now),
            End::Incomplete => response["incomplete_details"] = json!({"reason": "max_output_tokens"}),
            End::Failed => response["error"] = json!({"code": "server_error", "message": SERVER_ERROR}),
        }
        if said.end != End::Failed {
            response["usage"] = usage.json();
        }
        Self { id, response, items }
    }

    /// The whole stream: `first` until its first words, `word` between them.
    pub(super) fn events(&self, first: Duration, word: Duration) -> Vec<Event> {
        let mut stream = Stream { events: Vec::new() };
        let mut opening = self.response.clone();
        for (field, value) in [
            ("status", json!("in_progress")),
            ("output", json!([])),
            ("usage", Value::Null),
            ("error", Value::Null),
            ("incomplete_details", Value::Null),
            ("completed_at", Value::Null),
        ] {
            opening[field] = value;
        }
        stream.push("response.created", json!({"response": opening}), Duration::ZERO);
        stream.push("response.in_progress", json!({"response": opening}), Duration::ZERO);
        let mut pause = first;
        for (index, item) in self.items.iter().enumerate() {
            stream.item(index, item, &mut pause, word);
        }
        let last = match self.response.get("status").and_then(Value::as_str) {
            Some("completed") => "response.completed",
            Some("incomplete") => "response.incomplete",
            _ => "response.failed",
        };
        stream.push(last, json!({"response": self.response}), pause);
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
        let mut data = json!({"type": kind, "sequence_number": self.events.len()});
        if let (Value::Object(data), Value::Object(fields)) = (&mut data, fields) {
            data.extend(fields);
        }
        self.events.push(Event::new(kind, data).after(after));
    }

    /// One item, from its announcement to its end. `pause` is what the next event waits for.
    fn item(&mut self, index: usize, item: &Value, pause: &mut Duration, word: Duration) {
        let (id, kind) = (&item["id"], item["type"].as_str().unwrap_or_default());
        let mut wait = |stream: &mut Self, kind, fields| {
            stream.push(kind, fields, std::mem::take(pause));
        };
        let mut begun = item.clone();
        match kind {
            "message" => (begun["status"], begun["content"]) = (json!("in_progress"), json!([])),
            "function_call" => (begun["status"], begun["arguments"]) = (json!("in_progress"), json!("")),
            _ => {}
        }
        wait(self, "response.output_item.added", json!({"output_index": index, "item": begun}));
        match kind {
            "message" => self.message(index, id, &item["content"][0], word),
            "function_call" => {
                let arguments = item["arguments"].as_str().unwrap_or_default();
                let letters: Vec<char> = arguments.chars().collect();
                for piece in letters.chunks(ARGUMENT_PIECE) {
                    let delta = String::from_iter(piece);
                    let fields = json!({"item_id": id, "output_index": index, "delta": delta});
                    self.push("response.function_call_arguments.delta", fields, word);
                }
                let fields =
                    json!({"item_id": id, "output_index": index, "name": item["name"], "arguments": arguments});
                self.push("response.function_call_arguments.done", fields, Duration::ZERO);
            }
            _ => {}
        }
        self.push("response.output_item.done", json!({"output_index": index, "item": item}), Duration::ZERO);
    }

    fn message(&mut self, index: usize, id: &Value, part: &Value, word: Duration) {
        let refuses = part["type"] == "refusal";
        let (field, delta, done) = match refuses {
            true => ("refusal", "response.refusal.delta", "response.refusal.done"),
            false => ("text", "response.output_text.delta", "response.output_text.done"),
        };
        let at = |mut more: Value| {
            (more["item_id"], more["output_index"], more["content_index"]) = (id.clone(), json!(index), json!(0));
            more
        };
        let mut empty = part.clone();
        empty[field] = json!("");
        self.push("response.content_part.added", at(json!({"part": empty})), Duration::ZERO);
        let text = part[field].as_str().unwrap_or_default();
        for piece in text.split_inclusive(' ') {
            let mut fields = json!({"delta": piece});
            if !refuses {
                fields["logprobs"] = json!([]);
            }
            self.push(delta, at(fields), word);
        }
        let mut fields = json!({field: text});
        if !refuses {
            fields["logprobs"] = json!([]);
        }
        self.push(done, at(fields), Duration::ZERO);
        self.push("response.content_part.done", at(json!({"part": part})), Duration::ZERO);
    }
}
