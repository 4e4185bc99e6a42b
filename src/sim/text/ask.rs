//! A request at `/responses`, read: what is asked, and in which form the answer is wanted. Pure.
use serde_json::{Map, Value};

use super::{
    super::{
        config::SimConfig,
        rest::No,
        tokens,
        validate::{Refusal, shorten},
    },
    schema,
    visit::no_model,
};

/// Fields that the service knows.
const FIELDS: [&str; 29] = [
    "background",
    "context_management",
    "conversation",
    "include",
    "input",
    "instructions",
    "max_output_tokens",
    "max_tool_calls",
    "metadata",
    "model",
    "parallel_tool_calls",
    "previous_response_id",
    "prompt",
    "prompt_cache_key",
    "prompt_cache_retention",
    "reasoning",
    "safety_identifier",
    "service_tier",
    "store",
    "stream",
    "stream_options",
    "temperature",
    "text",
    "tool_choice",
    "tools",
    "top_logprobs",
    "top_p",
    "truncation",
    "user",
];
/// Smallest `max_output_tokens`.
const LEAST_OUTPUT: u64 = 16;
/// Most pairs of `metadata`.
const MAX_METADATA: usize = 16;

/// In which form the answer is wanted.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Form {
    Text,
    /// Any JSON object.
    Json,
    /// JSON that fits this schema.
    Schema(Value),
}

/// What an answer follows from.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Input {
    /// What the user said last.
    pub(super) asked: String,
    /// What functions have returned since.
    pub(super) returned: Vec<String>,
    /// What all of it weighs, tokens.
    pub(super) tokens: u64,
    /// Anything in it says "json".
    mentions_json: bool,
}

/// A request.
#[derive(Debug)]
pub(super) struct Asked<'b> {
    pub(super) body: &'b Map<String, Value>,
    pub(super) model: &'b str,
    pub(super) input: Input,
    pub(super) instructions: &'b str,
    pub(super) form: Form,
    pub(super) tools: &'b [Value],
    pub(super) tool_choice: Value,
    pub(super) max_output_tokens: Option<u64>,
    pub(super) previous: Option<&'b str>,
    pub(super) store: bool,
    pub(super) stream: bool,
    /// `reasoning.effort`.
    pub(super) effort: Option<&'b str>,
}

impl<'b> Asked<'b> {
    /// Reads a request.
    pub(super) fn read(config: &SimConfig, body: &'b Value) -> Result<Self, No> {
        let Value::Object(map) = body else {
            return Err(No::bad(Refusal::wrong_type("body", "an object", body)));
        };
        if let Some(unknown) = map.keys().find(|key| !FIELDS.contains(&key.as_str())) {
            return Err(No::bad(Refusal::unknown(&shorten(unknown))));
        }
        let model = text_at(map, "model")?.filter(|model| !model.is_empty());
        let model = model.ok_or_else(|| No::bad(Refusal::missing("model")))?;
        if !config.text.answers(model) || config.retired(model) {
            return Err(no_model(model));
        }
        if flag_at(map, "background")?.unwrap_or(false) {
            let message = "Background responses are not simulated.";
            return Err(No::bad(Refusal::new("unsupported_parameter", message).at("background")));
        }
        let instructions = text_at(map, "instructions")?.unwrap_or_default();
        let mut input = match map.get("input") {
            None | Some(Value::Null) => return Err(No::bad(Refusal::missing("input"))),
            Some(input) => read_input(input).map_err(No::bad)?,
        };
        input.tokens += tokens::of_text(instructions);
        let tools = match map.get("tools") {
            None | Some(Value::Null) => &[],
            Some(Value::Array(tools)) => tools.as_slice(),
            Some(other) => return Err(No::bad(Refusal::wrong_type("tools", "an array", other))),
        };
        check_tools(tools)?;
        input.tokens += tools.iter().map(|tool| tokens::of_text(&tool.to_string())).sum::<u64>();
        let form = form(map)?;
        let says_json = input.mentions_json || mentions_json(instructions);
        if form == Form::Json && !says_json {
            let message = "Response input messages must contain the word 'json' in some form to use 'text.format' of type \
                           'json_object'.";
            return Err(No::bad(Refusal { code: None, ..Refusal::new("", message) }.at("input")));
        }
        check_metadata(map)?;
        Ok(Self {
            body: map,
            model,
            input,
            instructions,
            form,
            tools,
            tool_choice: map
                .get("tool_choice")
                .filter(|choice| !choice.is_null())
                .cloned()
                .unwrap_or_else(|| "auto".into()),
            max_output_tokens: output_limit(map)?,
            previous: text_at(map, "previous_response_id")?,
            store: flag_at(map, "store")?.unwrap_or(true),
            stream: flag_at(map, "stream")?.unwrap_or(false),
            effort: map.get("reasoning").and_then(|reasoning| reasoning.get("effort")).and_then(Value::as_str),
        })
    }

    /// The functions that may be called.
    pub(super) fn functions(&self) -> Vec<&'b str> {
        if self.tool_choice == "none" {
            return Vec::new();
        }
        let functions = self.tools.iter().filter(|tool| tool.get("type").and_then(Value::as_str) == Some("function"));
        functions.filter_map(|tool| tool.get("name").and_then(Value::as_str)).collect()
    }

    /// What a function's arguments look like.
    pub(super) fn parameters(&self, name: &str) -> Option<&'b Value> {
        self.tools.iter().find(|tool| tool.get("name").and_then(Value::as_str) == Some(name))?.get("parameters")
    }
}

fn text_at<'b>(map: &'b Map<String, Value>, name: &str) -> Result<Option<&'b str>, No> {
    match map.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(No::bad(Refusal::wrong_type(name, "a string", other))),
    }
}

fn flag_at(map: &Map<String, Value>, name: &str) -> Result<Option<bool>, No> {
    match map.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(flag)) => Ok(Some(*flag)),
        Some(other) => Err(No::bad(Refusal::wrong_type(name, "a boolean", other))),
    }
}

fn output_limit(map: &Map<String, Value>) -> Result<Option<u64>, No> {
    let name = "max_output_tokens";
    match map.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_u64() {
            Some(limit) if limit >= LEAST_OUTPUT => Ok(Some(limit)),
            Some(limit) => {
                let message = format!(
                    "Invalid '{name}': integer below minimum value. Expected a value >= {LEAST_OUTPUT}, but got {limit} instead."
                );
                Err(No::bad(Refusal::new("integer_below_min_value", message).at(name)))
            }
            None => Err(No::bad(Refusal::wrong_type(name, "an integer", value))),
        },
    }
}

fn check_metadata(map: &Map<String, Value>) -> Result<(), No> {
    match map.get("metadata") {
        None | Some(Value::Null) => Ok(()),
        Some(Value::Object(pairs)) if pairs.len() > MAX_METADATA => {
            let message = format!("Invalid 'metadata': too many properties. Expected at most {MAX_METADATA}.");
            Err(No::bad(Refusal::new("object_above_max_properties", message).at("metadata")))
        }
        Some(Value::Object(pairs)) => match pairs.iter().find(|(_, value)| !value.is_string()) {
            Some((key, value)) => {
                Err(No::bad(Refusal::wrong_type(&format!("metadata.{}", shorten(key)), "a string", value)))
            }
            None => Ok(()),
        },
        Some(other) => Err(No::bad(Refusal::wrong_type("metadata", "an object", other))),
    }
}

fn check_tools(tools: &[Value]) -> Result<(), No> {
    for (n, tool) in tools.iter().enumerate() {
        let Some(kind) = tool.get("type").and_then(Value::as_str) else {
            return Err(No::bad(Refusal::missing(&format!("tools[{n}].type"))));
        };
        if kind != "function" {
            continue;
        }
        let Some(name) = tool.get("name").and_then(Value::as_str) else {
            return Err(No::bad(Refusal::missing(&format!("tools[{n}].name"))));
        };
        let strict = tool.get("strict").and_then(Value::as_bool).unwrap_or(false);
        if let Some(parameters) = tool.get("parameters").filter(|parameters| strict && parameters.is_object()) {
            schema::check(parameters).map_err(|wrong| {
                let message = format!("Invalid schema for function '{}': {wrong}", shorten(name));
                No::bad(Refusal::new("invalid_function_parameters", message).at(format!("tools[{n}].parameters")))
            })?;
        }
    }
    Ok(())
}

fn form(map: &Map<String, Value>) -> Result<Form, No> {
    let Some(format) = map.get("text").and_then(|text| text.get("format")).filter(|format| !format.is_null()) else {
        return Ok(Form::Text);
    };
    match format.get("type").and_then(Value::as_str) {
        None => Err(No::bad(Refusal::missing("text.format.type"))),
        Some("text") => Ok(Form::Text),
        Some("json_object") => Ok(Form::Json),
        Some("json_schema") => {
            let name = format.get("name").and_then(Value::as_str);
            let name = name.ok_or_else(|| No::bad(Refusal::missing("text.format.name")))?;
            let letters = name.chars().all(|letter| letter.is_ascii_alphanumeric() || matches!(letter, '_' | '-'));
            if name.is_empty() || name.len() > 64 || !letters {
                let message = format!(
                    "Invalid 'text.format.name': string does not match pattern. Expected a string that matches the pattern \
                     '^[a-zA-Z0-9_-]+$', but got '{}'.",
                    shorten(name)
                );
                return Err(No::bad(Refusal::new("invalid_value", message).at("text.format.name")));
            }
            let wanted = format.get("schema").ok_or_else(|| No::bad(Refusal::missing("text.format.schema")))?;
            if format.get("strict").and_then(Value::as_bool).unwrap_or(false) {
                schema::check(wanted).map_err(|wrong| {
                    let message = format!("Invalid schema for response_format '{name}': {wrong}");
                    No::bad(Refusal::new("invalid_json_schema", message).at("text.format.schema"))
                })?;
            }
            Ok(Form::Schema(wanted.clone()))
        }
        Some(other) => {
            Err(No::bad(Refusal::choice("text.format.type", other, &["json_object", "json_schema", "text"])))
        }
    }
}

fn read_input(input: &Value) -> Result<Input, Refusal> {
    let items = match input {
        Value::String(text) => {
            return Ok(Input {
                asked: text.clone(),
                tokens: tokens::of_text(text),
                mentions_json: mentions_json(text),
                ..Input::default()
            });
        }
        Value::Array(items) => items,
        other => return Err(Refusal::wrong_type("input", "a string or an array", other)),
    };
    let mut read = Input::default();
    for (n, item) in items.iter().enumerate() {
        if !item.is_object() {
            return Err(Refusal::wrong_type(&format!("input[{n}]"), "an object", item));
        }
        let field = |name: &str| item.get(name).and_then(Value::as_str);
        let needs = |name: &str| field(name).ok_or_else(|| Refusal::missing(&format!("input[{n}].{name}")));
        match field("type").unwrap_or("message") {
            "message" => {
                let role = needs("role")?;
                let roles = ["assistant", "system", "developer", "user"];
                if !roles.contains(&role) {
                    return Err(Refusal::choice(&format!("input[{n}].role"), role, &roles));
                }
                let text = content(item, n)?;
                read.add(&text);
                if role == "user" {
                    (read.asked, read.returned) = (text, Vec::new());
                }
            }
            "function_call_output" => {
                needs("call_id")?;
                let output = match item.get("output") {
                    Some(Value::String(text)) => text.clone(),
                    Some(other) => other.to_string(),
                    None => return Err(Refusal::missing(&format!("input[{n}].output"))),
                };
                read.add(&output);
                read.returned.push(output);
            }
            "function_call" => {
                needs("call_id")?;
                needs("name")?;
                read.add(needs("arguments")?);
            }
            "reasoning" | "item_reference" => {}
            other => {
                let known = ["message", "function_call", "function_call_output", "reasoning", "item_reference"];
                return Err(Refusal::choice(&format!("input[{n}]"), other, &known));
            }
        }
    }
    Ok(read)
}

impl Input {
    fn add(&mut self, text: &str) {
        self.tokens += tokens::of_text(text);
        self.mentions_json |= mentions_json(text);
    }
}

fn mentions_json(text: &str) -> bool {
    text.to_ascii_lowercase().contains("json")
}

/// The text of a message.
fn content(item: &Value, n: usize) -> Result<String, Refusal> {
    let parts = match item.get("content") {
        Some(Value::String(text)) => return Ok(text.clone()),
        Some(Value::Array(parts)) => parts,
        Some(other) => return Err(Refusal::wrong_type(&format!("input[{n}].content"), "a string or an array", other)),
        None => return Err(Refusal::missing(&format!("input[{n}].content"))),
    };
    let mut texts = Vec::new();
    for (m, part) in parts.iter().enumerate() {
        let path = format!("input[{n}].content[{m}]");
        match part.get("type").and_then(Value::as_str) {
            Some("input_text" | "output_text") => {
                let text = part.get("text").and_then(Value::as_str);
                texts.push(text.ok_or_else(|| Refusal::missing(&format!("{path}.text")))?);
            }
            Some("refusal" | "input_image" | "input_file") => {}
            Some(other) => {
                let known = ["input_text", "input_image", "output_text", "refusal", "input_file"];
                return Err(Refusal::choice(&format!("{path}.type"), other, &known));
            }
            None => return Err(Refusal::missing(&format!("{path}.type"))),
        }
    }
    Ok(texts.join("\n"))
}
