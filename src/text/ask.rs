//! What a request asks for, read from its body: the model, whether it streams, how much it will use, and what the rules for tiers look at.
//!
//! The body stays as it came but for the model, and for names of end users, which stay here. How much it will use is a guess that is
//! settled by the service's own count: it must not be too low, or the account's limits are hit.
use aws_lc_rs::digest::{Context, SHA256};
use bytes::Bytes;
use futures_util::stream;
use multer::Multipart;
use serde_json::{Map, Value};

use super::Kind;
use crate::{
    audio::decode::probe_bytes,
    upstream::text::{Content, Part},
};

/// Longest name of a model, bytes.
const LONGEST_MODEL: usize = 128;
/// What an image in a request comes to, tokens: a large one, tiled.
const IMAGE_TOKENS: u64 = 1_500;
/// What a file comes to that is only named, tokens; and bytes of one that is there for a token.
const FILE_TOKENS: u64 = 5_000;
const FILE_BYTES: u64 = 16;
/// Audio of a token, and how many tokens of text a second of speech comes to at most (five words).
const TOKENS_OF_SECOND: u64 = 10;
const WRITTEN_IN_SECOND: u64 = 7;
/// Speech is not packed tighter, and no recording is wider, bytes a second.
const TIGHTEST: f64 = 2_000.0;
const WIDEST: f64 = 400_000.0;
/// What may be asked for as `service_tier`: none of it costs more than the price list says.
const TIERS: [&str; 3] = ["auto", "default", "flex"];

/// A request that cannot work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    /// `error.code`
    pub code: &'static str,
    /// In the service's way of saying it.
    pub message: String,
    /// The field.
    pub param: Option<&'static str>,
}

impl Wrong {
    fn at(param: &'static str, code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), param: Some(param) }
    }
}

/// A request that was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Asked {
    /// What for.
    pub kind: Kind,
    /// By the caller's name; it may be one of ours.
    pub model: String,
    /// Its answer comes in pieces.
    pub stream: bool,
    /// Its answer is a JSON object, where it does not come in pieces.
    pub json: bool,
    /// What it reads, tokens: a guess from above.
    pub input_tokens: u64,
    /// What it may write at most, tokens.
    pub output_tokens: u64,
    /// The recording, seconds: a guess from above.
    pub seconds: Option<f64>,
    /// What rules look at.
    pub traits: Traits,
    /// The response that it goes on from.
    pub previous: Option<String>,
    /// The end user, by the caller's own name for them.
    pub user: Option<String>,
    /// The body.
    pub content: Content,
}

impl Asked {
    /// Whether the service keeps the answer, so that another one can go on from it.
    pub fn is_kept(&self) -> bool {
        matches!(&self.content, Content::Json(object) if object.get("store") != Some(&Value::Bool(false)))
    }
}

/// What the rules for tiers look at.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Traits {
    /// It has tools.
    pub tools: bool,
    /// Its answer must have the shape of a JSON Schema.
    pub schema: bool,
    /// `reasoning.effort`
    pub effort: Option<String>,
    /// `metadata`
    pub metadata: Map<String, Value>,
}

/// The same body for this model, and for an end user of this name.
pub fn addressed(content: &Content, model: &str, user: Option<&str>) -> Content {
    match content {
        Content::Json(object) => {
            let mut object = object.clone();
            object.insert("model".to_owned(), model.into());
            if let Some(user) = user {
                object.remove("user");
                object.insert("safety_identifier".to_owned(), user.into());
            }
            Content::Json(object)
        }
        Content::Form(parts) => {
            let named = |part: &Part| match part.name.as_str() {
                "model" => Part { bytes: Bytes::from(model.to_owned()), ..part.clone() },
                _ => part.clone(),
            };
            Content::Form(parts.iter().map(named).collect())
        }
    }
}

/// What a request names that the account keeps, and that might be another tenant's.
///
/// # Errors
/// Which field.
pub fn keeps_to_itself(asked: &Asked) -> Result<(), Wrong> {
    let Content::Json(object) = &asked.content else { return Ok(()) };
    match object.get("conversation").filter(|found| !found.is_null()) {
        Some(_) => Err(not_ours("conversation")),
        None => object.iter().try_for_each(|(_, value)| keeps(value)),
    }?;
    let items = object.get("input").and_then(Value::as_array);
    if items.into_iter().flatten().any(is_reference) { Err(not_ours("item_reference")) } else { Ok(()) }
}

/// Whether an item stands for one that the service has: its type is optional, and an image is drawn on from its id alone.
fn is_reference(item: &Value) -> bool {
    let there = |field: &str| item.get(field).is_some_and(|value| !value.is_null());
    let made = item.get("type").is_some_and(|kind| kind == "image_generation_call");
    there("id") && (!there("type") && !there("role") || made && !there("result"))
}

fn keeps(value: &Value) -> Result<(), Wrong> {
    match value {
        Value::Array(all) => all.iter().try_for_each(keeps),
        Value::Object(all) => {
            if all.get("type").is_some_and(|kind| kind == "item_reference") {
                return Err(not_ours("item_reference"));
            }
            let there = |field: &str| all.get(field).is_some_and(|value| value.is_string() || value.is_array());
            match ["file_id", "file_ids", "vector_store_ids", "container"].into_iter().find(|field| there(field)) {
                Some(field) => Err(not_ours(field)),
                None => all.values().try_for_each(keeps),
            }
        }
        _ => Ok(()),
    }
}

fn not_ours(field: &'static str) -> Wrong {
    let message = format!("`{field}` is not offered here: what the account keeps may be another tenant's.");
    Wrong::at(field, "unsupported_parameter", message)
}

/// Tells requests apart, whatever a form's boundary is.
pub fn mark(asked: &Asked) -> [u8; 32] {
    let mut context = Context::new(&SHA256);
    let mut add = |bytes: &[u8]| {
        context.update(&(bytes.len() as u64).to_be_bytes());
        context.update(bytes);
    };
    add(asked.kind.path().as_bytes());
    match &asked.content {
        Content::Json(object) => add(Value::Object(object.clone()).to_string().as_bytes()),
        Content::Form(parts) => parts.iter().for_each(|Part { name, file, mime, bytes }| {
            add(name.as_bytes());
            add(file.as_deref().unwrap_or_default().as_bytes());
            add(mime.as_deref().unwrap_or_default().as_bytes());
            add(bytes);
        }),
    }
    let mut mark = [0; 32];
    mark.iter_mut().zip(context.finish().as_ref()).for_each(|(to, from)| *to = *from);
    mark
}

/// Reads a request for a response. `most`: what an answer may use at most where nothing is said.
///
/// # Errors
/// What is wrong with it.
pub fn response(body: &[u8], most: u64) -> Result<Asked, Wrong> {
    let broken = |message: String| Wrong { code: "invalid_json", message, param: None };
    let body: Value = serde_json::from_slice(body).map_err(|e| broken(format!("The body is not JSON: {e}.")))?;
    match body {
        Value::Object(object) => response_of(object, most),
        _ => Err(broken("The body must be a JSON object.".to_owned())),
    }
}

/// The same of a body that was read.
///
/// # Errors
/// As [`response`].
pub fn response_of(object: Map<String, Value>, most: u64) -> Result<Asked, Wrong> {
    let there = |field: &str| object.get(field).filter(|value| !value.is_null());
    let model = model(there("model").map(|model| model.as_str()))?;
    let stream = match there("stream") {
        None => false,
        Some(Value::Bool(stream)) => *stream,
        Some(other) => return Err(kind("stream", other, "a boolean")),
    };
    if there("background").is_some_and(|background| background == true) {
        let message = "`background` is not offered here: what it uses could not be accounted for. Leave it out, and let the answer \
                       come as a stream.";
        return Err(Wrong::at("background", "unsupported_parameter", message));
    }
    if let Some(tier) = there("service_tier").filter(|tier| !TIERS.iter().any(|known| tier == known)) {
        let found: String = tier.to_string().chars().take(64).collect();
        let message = format!(
            "`service_tier`: found {found}; allowed: {}. Others have prices that are not known here.",
            TIERS.join(", ")
        );
        return Err(Wrong::at("service_tier", "unsupported_parameter", message));
    }
    let output_tokens = match there("max_output_tokens") {
        None => most,
        Some(value) => value
            .as_u64()
            .filter(|most| *most >= 1)
            .ok_or_else(|| kind("max_output_tokens", value, "a whole number from 1 on"))?,
    };
    let previous = match there("previous_response_id") {
        None => None,
        Some(Value::String(id)) => Some(id.clone()),
        Some(other) => return Err(kind("previous_response_id", other, "a string")),
    };
    let metadata = match there("metadata") {
        None => Map::new(),
        Some(Value::Object(metadata)) => metadata.clone(),
        Some(other) => return Err(kind("metadata", other, "an object of strings")),
    };
    let read = ["input", "instructions", "tools", "text", "prompt"];
    let input_tokens = read.iter().filter_map(|field| there(field)).map(tokens_in).fold(8, u64::saturating_add);
    let traits = Traits {
        tools: there("tools").and_then(Value::as_array).is_some_and(|tools| !tools.is_empty()),
        schema: there("text").and_then(|text| text.pointer("/format/type")).is_some_and(|kind| kind == "json_schema"),
        effort: there("reasoning").and_then(|of| of.get("effort")?.as_str()).map(str::to_owned),
        metadata,
    };
    let user = there("safety_identifier").or(there("user")).and_then(Value::as_str).map(str::to_owned);
    let (kind, seconds, json, content) = (Kind::Response, None, true, Content::Json(object));
    Ok(Asked { kind, model, stream, json, input_tokens, output_tokens, seconds, traits, previous, user, content })
}

/// Reads a request for a transcription.
///
/// # Errors
/// What is wrong with it.
pub async fn transcription(content_type: &str, body: Bytes) -> Result<Asked, Wrong> {
    let parts = parts(content_type, body).await?;
    let text = |name: &str| {
        let part = parts.iter().find(|part| part.name == name && part.file.is_none())?;
        std::str::from_utf8(&part.bytes).ok().map(str::trim)
    };
    let file = parts.iter().find(|part| part.name == "file");
    let missing = || Wrong::at("file", "missing_required_parameter", "Missing required parameter: 'file'.");
    let file = file.ok_or_else(missing)?;
    if file.bytes.is_empty() {
        return Err(Wrong::at("file", "invalid_value", "`file`: found no bytes; allowed: a recording."));
    }
    let model = model(text("model").map(Some))?;
    let stream = match text("stream") {
        None | Some("" | "false" | "False" | "0") => false,
        Some("true" | "True" | "1") => true,
        Some(other) => return Err(kind("stream", &other.into(), "true or false")),
    };
    let seconds = length(file.file.as_deref().unwrap_or_default(), &file.bytes);
    let whole = |per: u64| {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a recording of a bounded size")]
        let seconds = seconds.ceil() as u64;
        seconds.saturating_mul(per)
    };
    let input_tokens = whole(TOKENS_OF_SECOND).saturating_add(text("prompt").map_or(0, tokens));
    let output_tokens = whole(WRITTEN_IN_SECOND).max(16);
    let json = !matches!(text("response_format"), Some("text" | "srt" | "vtt"));
    let (kind, seconds, content) = (Kind::Transcription, Some(seconds), Content::Form(parts));
    let (traits, previous, user) = (Traits::default(), None, None);
    Ok(Asked { kind, model, stream, json, input_tokens, output_tokens, seconds, traits, previous, user, content })
}

/// The parts of a form.
async fn parts(content_type: &str, body: Bytes) -> Result<Vec<Part>, Wrong> {
    let broken = |what: &dyn std::fmt::Display| Wrong {
        code: "invalid_multipart",
        message: format!("The multipart body cannot be read: {what}."),
        param: None,
    };
    let boundary = multer::parse_boundary(content_type).map_err(|_| {
        let message = "The body must be multipart/form-data, with the parts `file` and `model`.".to_owned();
        Wrong { code: "invalid_multipart", message, param: None }
    })?;
    let mut form = Multipart::new(stream::iter([Ok::<_, std::convert::Infallible>(body)]), boundary);
    let mut parts: Vec<Part> = Vec::new();
    while let Some(field) = form.next_field().await.map_err(|_| broken(&"it breaks off"))? {
        let name = field.name().unwrap_or_default().to_owned();
        let (file, mime) = (field.file_name().map(str::to_owned), field.content_type().map(ToString::to_string));
        let bytes = field.bytes().await.map_err(|_| broken(&"a part breaks off"))?;
        // One that stands there twice could be read one way here and the other way there.
        if ["file", "model", "stream"].contains(&name.as_str()) && parts.iter().any(|part| part.name == name) {
            return Err(broken(&format!("part `{name}` is there twice")));
        }
        parts.push(Part { name, file, mime, bytes });
    }
    Ok(parts)
}

fn model(found: Option<Option<&str>>) -> Result<String, Wrong> {
    match found {
        None => Err(Wrong::at("model", "missing_required_parameter", "Missing required parameter: 'model'.")),
        Some(Some(model)) if (1..=LONGEST_MODEL).contains(&model.len()) => Ok(model.to_owned()),
        Some(_) => {
            let message = format!("`model` must be a string of 1 to {LONGEST_MODEL} bytes.");
            Err(Wrong::at("model", "invalid_type", message))
        }
    }
}

fn kind(field: &'static str, found: &Value, allowed: &str) -> Wrong {
    let found: String = found.to_string().chars().take(64).collect();
    Wrong::at(field, "invalid_type", format!("`{field}`: found {found}; allowed: {allowed}."))
}

/// Tokens of everything that is text in there, from above.
fn tokens_in(value: &Value) -> u64 {
    match value {
        Value::String(text) if text.starts_with("data:image/") => IMAGE_TOKENS,
        // A file's pages: much of its bytes is how it looks.
        Value::String(text) if text.starts_with("data:") => text.len() as u64 / FILE_BYTES,
        Value::String(text) => tokens(text),
        Value::Array(all) => all.iter().map(tokens_in).fold(0, u64::saturating_add),
        Value::Object(all) => {
            let named = |name: &str| match name {
                "image_url" => IMAGE_TOKENS,
                "file_url" | "file_id" => FILE_TOKENS,
                _ => 0,
            };
            let of = |(name, value): (&String, &Value)| tokens(name) + 1 + tokens_in(value).max(named(name));
            all.iter().map(of).fold(2, u64::saturating_add)
        }
        _ => 1,
    }
}

/// Tokens of a text, from above: of what is ASCII a token is four letters or less in no language that was looked at, of everything else a
/// letter is at most one (but for rare ones).
pub fn tokens(text: &str) -> u64 {
    let ascii = text.bytes().filter(u8::is_ascii).count() as u64;
    let others = text.chars().filter(|c| !c.is_ascii()).count() as u64;
    // Figures and signs are cut finer than words.
    let digits = text.bytes().filter(u8::is_ascii_digit).count() as u64;
    let signs = text.bytes().filter(u8::is_ascii_punctuation).count() as u64;
    (ascii - digits - signs).div_ceil(4) + digits.div_ceil(2) + signs + others
}

/// How long a recording is, seconds: as its own head says it, and else from above by its size. What is no recording the service may find out.
fn length(name: &str, file: &Bytes) -> f64 {
    let told = probe_bytes(name, file.clone()).ok().and_then(|facts| facts.length.about());
    let bytes = file.len() as f64;
    // A head that says less than there can be says nothing.
    told.map_or(bytes / TIGHTEST, |length| length.as_secs_f64().max(bytes / WIDEST))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_request_for_a_response_is_read() {
        let body = json!({"model": "auto", "input": "What is the capital of France?", "stream": true, "max_output_tokens": 50,
            "tools": [{"type": "function", "name": "look"}], "reasoning": {"effort": "high"}, "metadata": {"stakes": "high"},
            "text": {"format": {"type": "json_schema", "name": "a", "schema": {}}}, "previous_response_id": "resp_1",
            "safety_identifier": "ada", "of_tomorrow": 1});
        let asked = response(body.to_string().as_bytes(), 4_096).unwrap();
        assert_eq!((asked.model.as_str(), asked.stream, asked.output_tokens), ("auto", true, 50));
        assert!((20..80).contains(&asked.input_tokens), "{}", asked.input_tokens);
        assert!(asked.traits.tools && asked.traits.schema);
        assert_eq!((asked.traits.effort.as_deref(), asked.previous.as_deref()), (Some("high"), Some("resp_1")));
        let Content::Json(sent) = addressed(&asked.content, "m", Some("hashed")) else { panic!() };
        assert_eq!(
            (&sent["model"], &sent["safety_identifier"], &sent["of_tomorrow"]),
            (&json!("m"), &json!("hashed"), &json!(1))
        );
        let plain = response(br#"{"model":"m","input":"x","stream":null}"#, 4_096).unwrap();
        assert_eq!((plain.stream, plain.output_tokens, plain.traits), (false, 4_096, Traits::default()));
    }

    #[test]
    fn what_cannot_work_is_named() {
        for (body, param, code) in [
            ("{", None, "invalid_json"),
            ("[]", None, "invalid_json"),
            ("{}", Some("model"), "missing_required_parameter"),
            (r#"{"model":5}"#, Some("model"), "invalid_type"),
            (r#"{"model":""}"#, Some("model"), "invalid_type"),
            (r#"{"model":"m","stream":"yes"}"#, Some("stream"), "invalid_type"),
            (r#"{"model":"m","background":true}"#, Some("background"), "unsupported_parameter"),
            (r#"{"model":"m","max_output_tokens":0}"#, Some("max_output_tokens"), "invalid_type"),
            (r#"{"model":"m","max_output_tokens":-1}"#, Some("max_output_tokens"), "invalid_type"),
            (r#"{"model":"m","metadata":[]}"#, Some("metadata"), "invalid_type"),
            (r#"{"model":"m","previous_response_id":1}"#, Some("previous_response_id"), "invalid_type"),
            (r#"{"model":"m","service_tier":"priority"}"#, Some("service_tier"), "unsupported_parameter"),
            (r#"{"model":"m","service_tier":5}"#, Some("service_tier"), "unsupported_parameter"),
        ] {
            let wrong = response(body.as_bytes(), 1).unwrap_err();
            assert_eq!((wrong.param, wrong.code), (param, code), "{body}: {}", wrong.message);
        }
    }

    fn form(parts: &[(&str, Option<&str>, &[u8])]) -> (String, Bytes) {
        let mut body = Vec::new();
        for (name, file, bytes) in parts {
            let file = file.map(|file| format!("; filename=\"{file}\"")).unwrap_or_default();
            body.extend(format!("--b\r\nContent-Disposition: form-data; name=\"{name}\"{file}\r\n\r\n").bytes());
            body.extend_from_slice(bytes);
            body.extend(b"\r\n");
        }
        body.extend(b"--b--\r\n");
        ("multipart/form-data; boundary=b".to_owned(), body.into())
    }

    #[tokio::test]
    async fn a_request_for_a_transcription_is_read() {
        let clip = std::fs::read("assets/hello.wav").unwrap();
        let (kind, body) =
            form(&[("model", None, b"gpt-transcribe"), ("stream", None, b"true"), ("file", Some("a.wav"), &clip)]);
        let asked = transcription(&kind, body).await.unwrap();
        assert_eq!((asked.model.as_str(), asked.stream), ("gpt-transcribe", true));
        assert!((5.3..5.5).contains(&asked.seconds.unwrap()), "{:?}", asked.seconds);
        let Content::Form(parts) = addressed(&asked.content, "other", None) else { panic!() };
        assert_eq!(parts[0].bytes, "other");
        assert_eq!((parts[2].file.as_deref(), parts[2].bytes.len()), (Some("a.wav"), clip.len()));
        let wrong = async |parts: &[(&str, Option<&str>, &[u8])]| {
            let (kind, body) = form(parts);
            let wrong = transcription(&kind, body).await.unwrap_err();
            (wrong.param, wrong.code)
        };
        assert_eq!(wrong(&[("model", None, b"m")]).await, (Some("file"), "missing_required_parameter"));
        assert_eq!(wrong(&[("file", Some("a"), b"x")]).await, (Some("model"), "missing_required_parameter"));
        assert_eq!(wrong(&[("model", None, b"m"), ("file", Some("a"), b"")]).await, (Some("file"), "invalid_value"));
        let twice: [(&str, Option<&str>, &[u8]); 3] =
            [("model", None, b"m"), ("model", None, b"n"), ("file", Some("a"), b"x")];
        assert_eq!(wrong(&twice).await, (None, "invalid_multipart"));
        let body =
            Bytes::from_static(b"--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\nxx");
        assert_eq!(transcription("multipart/form-data; boundary=b", body).await.unwrap_err().code, "invalid_multipart");
        assert_eq!(transcription("application/json", Bytes::new()).await.unwrap_err().code, "invalid_multipart");
    }

    #[tokio::test]
    async fn a_request_is_the_same_whatever_its_boundary_is() {
        let (kind, body) = form(&[("model", None, b"m"), ("file", Some("a.wav"), b"xx")]);
        let other = String::from_utf8(body.to_vec()).unwrap().replace("--b", "--other");
        let first = transcription(&kind, body).await.unwrap();
        let again = transcription("multipart/form-data; boundary=other", other.into()).await.unwrap();
        assert_eq!(mark(&first), mark(&again));
        let (kind, body) = form(&[("model", None, b"m"), ("file", Some("a.wav"), b"xy")]);
        assert_ne!(mark(&first), mark(&transcription(&kind, body).await.unwrap()));
    }

    #[test]
    fn what_the_account_keeps_is_named() {
        for (body, field) in [
            (json!({"model": "m", "conversation": "conv_1"}), Some("conversation")),
            (json!({"model": "m", "input": [{"type": "item_reference", "id": "msg_1"}]}), Some("item_reference")),
            (
                json!({"model": "m", "input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]}),
                Some("file_id"),
            ),
            (
                json!({"model": "m", "tools": [{"type": "file_search", "vector_store_ids": ["v"]}]}),
                Some("vector_store_ids"),
            ),
            (json!({"model": "m", "input": [{"id": "msg_1"}]}), Some("item_reference")),
            (json!({"model": "m", "input": [{"id": "msg_1", "type": null, "role": null}]}), Some("item_reference")),
            (
                json!({"model": "m", "input": [{"type": "image_generation_call", "id": "ig_1", "status": "completed"}]}),
                Some("item_reference"),
            ),
            (json!({"model": "m", "tools": [{"type": "code_interpreter", "container": "cntr_1"}]}), Some("container")),
            (json!({"model": "m", "input": [{"id": "msg_1", "role": "assistant", "content": "Hello."}]}), None),
            (
                json!({"model": "m", "input": [{"id": "fc_1", "type": "function_call", "name": "f", "arguments": ""}]}),
                None,
            ),
            (json!({"model": "m", "input": "x", "metadata": {"id": "5"}, "service_tier": "flex"}), None),
            (json!({"model": "m", "input": "conversation", "previous_response_id": "r", "conversation": null}), None),
        ] {
            let asked = response(body.to_string().as_bytes(), 1).unwrap();
            assert_eq!(keeps_to_itself(&asked).err().and_then(|wrong| wrong.param), field, "{body}");
        }
    }

    #[test]
    fn what_is_not_text_is_counted_too() {
        let of = |content: Value| {
            let body = json!({"model": "m", "input": [{"role": "user", "content": [content]}]});
            response(body.to_string().as_bytes(), 1).unwrap().input_tokens
        };
        let large = format!("data:application/pdf;base64,{}", "A".repeat(160_000));
        assert!((9_000..12_000).contains(&of(json!({"type": "input_file", "file_data": large}))));
        assert!(
            (1_500..1_600).contains(&of(json!({"type": "input_image", "image_url": "data:image/png;base64,AAAA"})))
        );
        assert!((1_500..1_600).contains(&of(json!({"type": "input_image", "image_url": "https://h/x.png"}))));
        assert!(of(json!({"type": "input_text", "text": format!("data:{}", "x ".repeat(8_000))})) >= 1_000);
    }

    #[test]
    fn texts_are_counted_from_above() {
        for (text, real) in [
            ("What is the capital of France?", 7),
            ("Die Donaudampfschifffahrtsgesellschaft hat heute geöffnet.", 14),
            ("東京は日本の首都です。", 10),
            ("1234567890", 4),
            ("{\"a\": [1, 2, 3]}", 9),
            ("", 0),
        ] {
            assert!((real..=real * 3 + 2).contains(&tokens(text)), "{text}: {}", tokens(text));
        }
    }
}
