//! The conversation: items in order, what they weigh, and what a client may do to them.
//!
//! Knows how an item looks on the wire; sends nothing itself.
use std::borrow::Cow;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::{
    tokens::{self, Entry, Tokens},
    validate::{Fields, Refusal},
};
use crate::audio::Format;

/// Most text in one conversation, characters: more than any model's context.
const MAX_TEXT: usize = 16 << 20;

/// Some audio of an item.
#[derive(Debug, Clone)]
pub(super) struct Clip {
    pub(super) format: Format,
    /// The audio in pieces; empty once it is forgotten.
    pieces: Vec<Bytes>,
    /// Its length, which outlives the audio, bytes.
    len: usize,
}

impl Clip {
    pub(super) fn new(format: Format, audio: Bytes) -> Self {
        Self { format, len: audio.len(), pieces: vec![audio] }
    }

    fn empty(format: Format) -> Self {
        Self { format, len: 0, pieces: Vec::new() }
    }

    /// All of it in one piece.
    pub(super) fn bytes(&self) -> Bytes {
        match self.pieces.as_slice() {
            [one] => one.clone(),
            pieces => Bytes::from(pieces.concat()),
        }
    }

    /// Its length, ms.
    pub(super) fn ms(&self) -> u64 {
        u64::try_from(self.format.duration(self.len).as_millis()).unwrap_or(u64::MAX)
    }

    fn held(&self) -> usize {
        self.pieces.iter().map(Bytes::len).sum()
    }

    fn cut(&mut self, len: usize) {
        self.len = self.len.min(len);
        let mut left = self.len;
        for piece in &mut self.pieces {
            piece.truncate(left);
            left -= piece.len();
        }
        self.pieces.retain(|piece| !piece.is_empty());
    }
}

/// One part of a message.
#[derive(Debug, Clone)]
pub(super) enum Part {
    InputText(String),
    InputAudio {
        clip: Clip,
        transcript: Option<String>,
        /// Committed by an idle timeout: nobody spoke.
        idle: bool,
    },
    /// As the client wrote it; images weigh nothing here.
    InputImage(Value),
    OutputText(String),
    OutputAudio {
        clip: Clip,
        transcript: Option<String>,
    },
}

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    User,
    System,
    Assistant,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::System => "system",
            Self::Assistant => "assistant",
        }
    }
}

/// What an item is.
#[derive(Debug, Clone)]
pub(super) enum Kind {
    Message {
        role: Role,
        parts: Vec<Part>,
    },
    FunctionCall {
        name: String,
        call_id: String,
        arguments: String,
    },
    FunctionOutput {
        call_id: String,
        output: String,
    },
    /// As the client wrote it.
    McpApproval(Map<String, Value>),
}

/// Where an item stands in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    InProgress,
    Completed,
    Incomplete,
}

impl Status {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::InProgress => "in_progress",
            Self::Completed => "completed",
            Self::Incomplete => "incomplete",
        }
    }
}

/// One item.
#[derive(Debug, Clone)]
pub(super) struct Item {
    pub(super) id: String,
    pub(super) kind: Kind,
    pub(super) status: Status,
    /// A response has been made of it.
    pub(super) answered: bool,
    /// Changes with the content.
    version: u64,
    /// It has left the model's context, though not the conversation.
    dropped: bool,
    /// Cut by the client: what is still generated is not added.
    truncated: bool,
}

impl Item {
    /// A complete item.
    pub(super) fn new(id: String, kind: Kind) -> Self {
        let (status, answered, version) = (Status::Completed, false, 0);
        Self { id, kind, status, answered, version, dropped: false, truncated: false }
    }

    /// A turn of the caller.
    pub(super) fn spoken(id: String, clip: Clip, idle: bool) -> Self {
        let part = Part::InputAudio { clip, transcript: None, idle };
        Self::new(id, Kind::Message { role: Role::User, parts: vec![part] })
    }

    /// What it weighs.
    pub(super) fn tokens(&self) -> Tokens {
        let text = |text: &str| Tokens { text: tokens::of_text(text), audio: 0 };
        match &self.kind {
            Kind::Message { parts, .. } => parts.iter().map(Part::tokens).sum(),
            Kind::FunctionCall { name, arguments, .. } => text(&format!("{name}{arguments}")),
            Kind::FunctionOutput { output, .. } => text(output),
            Kind::McpApproval(_) => Tokens::default(),
        }
    }

    /// Its place in a context.
    pub(super) fn entry(&self) -> Entry {
        Entry { id: self.id.clone(), version: self.version, tokens: self.tokens() }
    }

    /// Whether it is something that a reply answers.
    pub(super) fn is_input(&self) -> bool {
        matches!(self.kind, Kind::Message { role: Role::User, .. } | Kind::FunctionOutput { .. })
    }

    /// As it stands on the wire; `audio`: with its audio, as `conversation.item.retrieved` has it.
    pub(super) fn json(&self, audio: bool) -> Value {
        let mut item = json!({ "id": self.id, "object": "realtime.item" });
        let status = self.status.name();
        let more = match &self.kind {
            Kind::Message { role, parts } => json!({
                "type": "message",
                "status": status,
                "role": role.name(),
                "content": parts.iter().map(|part| part.json(audio)).collect::<Vec<_>>(),
            }),
            Kind::FunctionCall { name, call_id, arguments } => json!({
                "type": "function_call",
                "status": status,
                "name": name,
                "call_id": call_id,
                "arguments": arguments,
            }),
            Kind::FunctionOutput { call_id, output } => json!({
                "type": "function_call_output",
                "status": status,
                "call_id": call_id,
                "output": output,
            }),
            Kind::McpApproval(fields) => Value::Object(fields.clone()),
        };
        if let (Value::Object(item), Value::Object(more)) = (&mut item, more) {
            item.extend(more);
        }
        item
    }

    /// How much audio it has, ms.
    pub(super) fn audio_ms(&self) -> u64 {
        let Kind::Message { parts, .. } = &self.kind else { return 0 };
        let clips = parts.iter().filter_map(|part| match part {
            Part::InputAudio { clip, .. } | Part::OutputAudio { clip, .. } => Some(clip.ms()),
            _ => None,
        });
        clips.sum()
    }

    fn text_len(&self) -> usize {
        match &self.kind {
            Kind::Message { parts, .. } => parts.iter().map(Part::text_len).sum(),
            Kind::FunctionCall { arguments, .. } => arguments.len(),
            Kind::FunctionOutput { output, .. } => output.len(),
            Kind::McpApproval(fields) => fields.values().map(|v| v.as_str().map_or(8, str::len)).sum(),
        }
    }

    fn clips(&mut self) -> impl Iterator<Item = &mut Clip> {
        let parts = match &mut self.kind {
            Kind::Message { parts, .. } => parts.as_mut_slice(),
            _ => &mut [],
        };
        parts.iter_mut().filter_map(|part| match part {
            Part::InputAudio { clip, .. } | Part::OutputAudio { clip, .. } => Some(clip),
            _ => None,
        })
    }
}

impl Part {
    fn tokens(&self) -> Tokens {
        let text = |text: &str| Tokens { text: tokens::of_text(text), audio: 0 };
        match self {
            Self::InputText(t) | Self::OutputText(t) => text(t),
            Self::InputAudio { clip, .. } => Tokens { text: 0, audio: tokens::of_user_audio(clip.ms()) },
            Self::InputImage(_) => Tokens::default(),
            Self::OutputAudio { clip, transcript } => Tokens {
                text: tokens::of_text(transcript.as_deref().unwrap_or_default()),
                audio: tokens::of_reply_audio(clip.ms()),
            },
        }
    }

    fn text_len(&self) -> usize {
        match self {
            Self::InputText(text) | Self::OutputText(text) => text.len(),
            Self::InputAudio { transcript, .. } | Self::OutputAudio { transcript, .. } => {
                transcript.as_ref().map_or(0, String::len)
            }
            Self::InputImage(image) => image.get("image_url").and_then(Value::as_str).map_or(0, str::len),
        }
    }

    fn json(&self, audio: bool) -> Value {
        let with_audio = |mut part: Value, clip: &Clip| {
            if let (true, Value::Object(map)) = (audio, &mut part) {
                map.insert("audio".into(), json!(STANDARD.encode(clip.bytes())));
            }
            part
        };
        match self {
            Self::InputText(text) => json!({ "type": "input_text", "text": text }),
            Self::InputAudio { clip, transcript, .. } => {
                with_audio(json!({ "type": "input_audio", "transcript": transcript }), clip)
            }
            Self::InputImage(image) => image.clone(),
            Self::OutputText(text) => json!({ "type": "output_text", "text": text }),
            Self::OutputAudio { clip, transcript } => {
                with_audio(json!({ "type": "output_audio", "transcript": transcript }), clip)
            }
        }
    }
}

/// Where a new item goes.
#[derive(Debug, Clone, Copy)]
pub(super) enum Place<'a> {
    End,
    Front,
    After(&'a str),
}

/// All items of a session, oldest first.
#[derive(Debug, Default)]
pub(super) struct Conversation {
    items: Vec<Item>,
    /// Assistant audio was sent: the voice is fixed.
    pub(super) has_spoken: bool,
}

impl Conversation {
    pub(super) fn get(&self, id: &str) -> Option<&Item> {
        self.items.iter().rev().find(|item| item.id == id)
    }

    pub(super) fn get_mut(&mut self, id: &str) -> Option<&mut Item> {
        self.items.iter_mut().rev().find(|item| item.id == id)
    }

    /// All items, oldest first.
    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = &Item> {
        self.items.iter()
    }

    /// All items to be changed.
    pub(super) fn iter_mut(&mut self) -> impl DoubleEndedIterator<Item = &mut Item> {
        self.items.iter_mut()
    }

    /// The last item's id.
    pub(super) fn last_id(&self) -> Option<&str> {
        self.items.last().map(|item| item.id.as_str())
    }

    /// Adds an item and gives the id of the one before it.
    ///
    /// # Errors
    /// When the place or the id cannot be had, or the conversation is full.
    pub(super) fn insert(&mut self, item: Item, place: Place<'_>, max_items: usize) -> Result<Option<String>, Refusal> {
        if self.get(&item.id).is_some() {
            let message = format!("Error adding item: an item with id '{}' already exists.", item.id);
            return Err(Refusal::new("item_create_invalid_item_id", message).at("item.id"));
        }
        let text: usize = self.items.iter().map(Item::text_len).sum();
        if self.items.len() >= max_items || text + item.text_len() > MAX_TEXT {
            let message = format!("Error adding item: the conversation is full ({} items).", self.items.len());
            return Err(Refusal::new("conversation_too_long", message));
        }
        let at = match place {
            Place::End => self.items.len(),
            Place::Front => 0,
            Place::After(id) => match self.items.iter().position(|item| item.id == id) {
                Some(at) => at + 1,
                None => {
                    let message = format!("Error adding item: the previous item with id '{id}' does not exist.");
                    return Err(Refusal::new("item_create_invalid_item_id", message).at("previous_item_id"));
                }
            },
        };
        let before = at.checked_sub(1).and_then(|before| self.items.get(before)).map(|item| item.id.clone());
        if matches!(item.kind, Kind::Message { role: Role::Assistant, .. }) {
            // Whoever tells us what was answered tells us what was asked before.
            self.items.iter_mut().take(at).for_each(|item| item.answered = true);
        }
        self.items.insert(at, item);
        Ok(before)
    }

    /// Takes an item out; `false`: there is none of that id.
    pub(super) fn remove(&mut self, id: &str) -> bool {
        let before = self.items.len();
        self.items.retain(|item| item.id != id);
        self.items.len() < before
    }

    /// Cuts an assistant message's audio at `end_ms`; its transcript goes, since nobody knows what of it was heard.
    /// `shortfall_ms`: how much shorter than sent the service believes the audio to be.
    pub(super) fn truncate(&mut self, id: &str, index: u64, end_ms: u64, shortfall_ms: u64) -> Result<(), Refusal> {
        let Some(item) = self.get_mut(id) else {
            return Err(unknown_item("truncate", "truncating", id));
        };
        let not_audio = || {
            let message = "Only model output audio messages can be truncated.";
            Refusal::new("unsupported_content_type", message).at("item_id")
        };
        let Kind::Message { role: Role::Assistant, parts } = &mut item.kind else { return Err(not_audio()) };
        let Some(part) = usize::try_from(index).ok().and_then(|at| parts.get_mut(at)) else {
            if parts.is_empty() {
                return Err(not_audio());
            }
            let message = format!("Content index {index} is out of range: the item has {} parts.", parts.len());
            return Err(Refusal::new("invalid_value", message).at("content_index"));
        };
        let Part::OutputAudio { clip, transcript } = part else { return Err(not_audio()) };
        if clip.len == 0 {
            return Err(not_audio());
        }
        let length = clip.ms().saturating_sub(shortfall_ms);
        if end_ms > length {
            let message = format!("Audio content of {length}ms is already shorter than {end_ms}ms");
            return Err(Refusal::new("invalid_value", message).at("audio_end_ms"));
        }
        clip.cut(clip.format.bytes(std::time::Duration::from_millis(end_ms)));
        *transcript = None;
        item.truncated = true;
        item.version += 1;
        Ok(())
    }

    /// Gives an item that is being generated its content part.
    pub(super) fn begin_part(&mut self, id: &str, audio: Option<Format>) {
        if let Some(Kind::Message { parts, .. }) = self.get_mut(id).map(|item| &mut item.kind) {
            parts.push(match audio {
                Some(format) => Part::OutputAudio { clip: Clip::empty(format), transcript: Some(String::new()) },
                None => Part::OutputText(String::new()),
            });
        }
    }

    /// Adds generated audio, unless the client has cut the item meanwhile.
    pub(super) fn grow_audio(&mut self, id: &str, audio: &Bytes) {
        self.has_spoken = true;
        let Some(item) = self.get_mut(id).filter(|item| !item.truncated) else { return };
        if let Some(clip) = item.clips().last() {
            clip.len += audio.len();
            clip.pieces.push(audio.clone());
        }
    }

    /// Adds generated text: to the transcript, the text or the arguments.
    pub(super) fn grow_text(&mut self, id: &str, text: &str) {
        let Some(item) = self.get_mut(id).filter(|item| !item.truncated) else { return };
        match &mut item.kind {
            Kind::Message { parts, .. } => {
                if let Some(Part::OutputText(all) | Part::OutputAudio { transcript: Some(all), .. }) = parts.last_mut()
                {
                    all.push_str(text);
                }
            }
            Kind::FunctionCall { arguments, .. } => arguments.push_str(text),
            _ => {}
        }
    }

    /// Ends an item's generation.
    pub(super) fn finish(&mut self, id: &str, status: Status) {
        if let Some(item) = self.get_mut(id) {
            item.status = status;
            item.version += 1;
        }
    }

    /// The items that the model reads, oldest first.
    pub(super) fn context(&self) -> impl Iterator<Item = &Item> {
        self.items.iter().filter(|item| !item.dropped)
    }

    /// Takes the oldest `count` items out of the context for good.
    pub(super) fn drop_from_context(&mut self, count: usize) {
        for item in self.items.iter_mut().filter(|item| !item.dropped).take(count) {
            item.dropped = true;
        }
    }

    /// Forgets the oldest audio so that at most `seconds` of it are held. What waits for its answer is kept.
    pub(super) fn forget_audio(&mut self, seconds: u64) {
        let held = |item: &mut Item| item.clips().map(|c| c.format.duration(c.held()).as_secs_f64()).sum::<f64>();
        let mut over = self.items.iter_mut().map(held).sum::<f64>() - seconds as f64;
        for item in &mut self.items {
            if over <= 0.0 {
                return;
            }
            if item.status == Status::InProgress || (item.is_input() && !item.answered) {
                continue;
            }
            over -= held(item);
            item.clips().for_each(|clip| clip.pieces.clear());
        }
    }
}

/// An item that is not there; `doing` as in "Error truncating item".
pub(super) fn unknown_item(verb: &str, doing: &str, id: &str) -> Refusal {
    let message = format!("Error {doing} item: the item with id '{id}' does not exist.");
    let mut refusal = Refusal::new("", message).at("item_id");
    refusal.code = Some(Cow::Owned(format!("item_{verb}_invalid_item_id")));
    refusal
}

/// Reads an item that a client wants to add; `format` is the session's input format, `id` the one it gets if it brings
/// none. `path` is the item's in the event.
pub(super) fn read_item(value: &Value, path: &str, format: Format, id: String) -> Result<Item, Refusal> {
    let Value::Object(map) = value else { return Err(Refusal::wrong_type(path, "an object", value)) };
    let kind = match map.get("type").and_then(Value::as_str) {
        Some("message") => read_message(value, path, format)?,
        Some("function_call") => {
            let f = Fields::of(value, path, &["id", "object", "type", "status", "name", "call_id", "arguments"])?;
            Kind::FunctionCall {
                name: f.need_text("name")?.to_owned(),
                call_id: f.text("call_id")?.map_or_else(|| id.replacen("item_", "call_", 1), str::to_owned),
                arguments: f.need_text("arguments")?.to_owned(),
            }
        }
        Some("function_call_output") => {
            let f = Fields::of(value, path, &["id", "object", "type", "status", "call_id", "output"])?;
            Kind::FunctionOutput {
                call_id: f.need_text("call_id")?.to_owned(),
                output: f.need_text("output")?.to_owned(),
            }
        }
        Some("mcp_approval_response") => {
            let f = Fields::of(value, path, &["id", "type", "approval_request_id", "approve", "reason"])?;
            f.need_text("approval_request_id")?;
            f.need("approve")?;
            f.flag("approve")?;
            f.text("reason")?;
            let mut fields = map.clone();
            fields.shift_remove("id");
            Kind::McpApproval(fields)
        }
        Some(other) => {
            let known = ["message", "function_call", "function_call_output", "mcp_approval_response"];
            return Err(Refusal::choice(&format!("{path}.type"), other, &known));
        }
        None => return Err(Refusal::missing(&format!("{path}.type"))),
    };
    let id = match map.get("id") {
        None | Some(Value::Null) => id,
        Some(Value::String(own)) if (1..=512).contains(&own.len()) => own.clone(),
        Some(Value::String(_)) => {
            let message = format!("Invalid '{path}.id': expected a string of 1 to 512 characters.");
            return Err(Refusal::new("invalid_value", message).at(format!("{path}.id")));
        }
        Some(other) => return Err(Refusal::wrong_type(&format!("{path}.id"), "a string", other)),
    };
    Ok(Item::new(id, kind))
}

fn read_message(value: &Value, path: &str, format: Format) -> Result<Kind, Refusal> {
    let f = Fields::of(value, path, &["id", "object", "type", "status", "role", "content"])?;
    let role = match f.choice("role", &["user", "assistant", "system"])? {
        Some("user") => Role::User,
        Some("assistant") => Role::Assistant,
        Some(_) => Role::System,
        None => return Err(Refusal::missing(&f.join("role"))),
    };
    f.need("content")?;
    let content = f.array("content", 1_000)?.unwrap_or_default();
    let parts = content.iter().enumerate().map(|(at, part)| {
        let path = format!("{}[{at}]", f.join("content"));
        read_part(part, &path, role, format)
    });
    Ok(Kind::Message { role, parts: parts.collect::<Result<_, _>>()? })
}

fn read_part(value: &Value, path: &str, role: Role, format: Format) -> Result<Part, Refusal> {
    let f = Fields::of(value, path, &["type", "text", "audio", "transcript", "image_url", "detail"])?;
    let allowed: &[&'static str] = match role {
        Role::User => &["input_text", "input_audio", "input_image"],
        Role::System => &["input_text"],
        // Audio of the model cannot be seeded.
        Role::Assistant => &["output_text"],
    };
    Ok(match f.choice("type", allowed)? {
        Some("input_text") => Part::InputText(f.need_text("text")?.to_owned()),
        Some("output_text") => Part::OutputText(f.need_text("text")?.to_owned()),
        Some("input_image") => {
            if !f.need_text("image_url")?.starts_with("data:image/") {
                let message = "Invalid image_url: expected a data URI of a PNG or JPEG image.";
                return Err(Refusal::new("invalid_value", message).at(f.join("image_url")));
            }
            f.choice("detail", &["auto", "low", "high"])?;
            Part::InputImage(value.clone())
        }
        Some(_) => {
            let audio = read_audio(f.need_text("audio")?, &f.join("audio"), format)?;
            let transcript = f.text("transcript")?.map(str::to_owned);
            Part::InputAudio { clip: Clip::new(format, audio.into()), transcript, idle: false }
        }
        None => return Err(Refusal::missing(&f.join("type"))),
    })
}

/// Decodes base64 audio: whole samples only.
pub(super) fn read_audio(text: &str, path: &str, format: Format) -> Result<Vec<u8>, Refusal> {
    let bytes = STANDARD.decode(text).map_err(|error| {
        let message = format!("Invalid '{path}'. Expected base64-encoded audio bytes: {error}.");
        Refusal::new("invalid_value", message).at(path)
    })?;
    if !bytes.len().is_multiple_of(format.sample_bytes().unwrap_or(1)) {
        let message = format!(
            "Invalid '{path}'. Expected whole 16 bit samples, but got an odd number of bytes ({}).",
            bytes.len()
        );
        return Err(Refusal::new("invalid_value", message).at(path));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(id: &str, text: &str) -> Item {
        let parts = vec![Part::InputText(text.into())];
        Item::new(id.into(), Kind::Message { role: Role::User, parts })
    }

    fn reply(id: &str, ms: usize) -> Item {
        let clip = Clip::new(Format::PCM_24K, vec![7; ms * 48].into());
        let parts = vec![Part::OutputAudio { clip, transcript: Some("It is sunny.".into()) }];
        Item::new(id.into(), Kind::Message { role: Role::Assistant, parts })
    }

    fn code(result: Result<impl std::fmt::Debug, Refusal>) -> String {
        result.unwrap_err().code.unwrap().into_owned()
    }

    #[test]
    fn items_go_where_they_are_told() {
        let mut c = Conversation::default();
        for (id, place, before) in [
            ("a", Place::End, None),
            ("b", Place::End, Some("a")),
            ("c", Place::Front, None),
            ("d", Place::After("a"), Some("a")),
        ] {
            assert_eq!(c.insert(text(id, "x"), place, 100).unwrap().as_deref(), before, "{id}");
        }
        assert_eq!(c.iter().map(|i| i.id.as_str()).collect::<String>(), "cadb");
        assert_eq!(code(c.insert(text("a", "x"), Place::End, 100)), "item_create_invalid_item_id");
        assert_eq!(code(c.insert(text("e", "x"), Place::After("z"), 100)), "item_create_invalid_item_id");
        assert_eq!(code(c.insert(text("e", "x"), Place::End, 4)), "conversation_too_long");
        assert!(c.remove("d") && !c.remove("d"));
        assert_eq!(c.last_id(), Some("b"));
    }

    #[test]
    fn truncation_has_its_checks() {
        let mut c = Conversation::default();
        c.insert(text("u", "hi"), Place::End, 100).unwrap();
        c.insert(reply("a", 9_250), Place::End, 100).unwrap();
        let mut empty = Item::new("e".into(), Kind::Message { role: Role::Assistant, parts: vec![] });
        empty.status = Status::InProgress;
        c.insert(empty, Place::End, 100).unwrap();
        assert_eq!(code(c.truncate("x", 0, 10, 0)), "item_truncate_invalid_item_id");
        assert_eq!(code(c.truncate("u", 0, 10, 0)), "unsupported_content_type");
        assert_eq!(code(c.truncate("e", 0, 0, 0)), "unsupported_content_type");
        assert_eq!(code(c.truncate("a", 3, 10, 0)), "invalid_value");
        let refusal = c.truncate("a", 0, 57_340, 0).unwrap_err();
        assert_eq!(refusal.message, "Audio content of 9250ms is already shorter than 57340ms");
        assert_eq!(
            c.truncate("a", 0, 9_200, 85).unwrap_err().message,
            "Audio content of 9165ms is already shorter than 9200ms"
        );
        let before = c.get("a").unwrap().entry();
        assert_eq!(before.tokens, Tokens { text: 3, audio: 185 });
        c.truncate("a", 0, 9_250, 0).unwrap();
        c.truncate("a", 0, 1_000, 0).unwrap();
        let after = c.get("a").unwrap().entry();
        assert_eq!(after.tokens, Tokens { text: 0, audio: 20 }, "the transcript is gone too");
        assert_ne!(before.version, after.version);
        c.grow_audio("a", &Bytes::from_static(&[0; 480]));
        assert_eq!(c.get("a").unwrap().tokens().audio, 20, "what comes later is not added");
    }

    #[test]
    fn items_of_clients_are_checked() {
        let read = |value: Value| read_item(&value, "item", Format::PCM_24K, "item_new".into());
        let message = |role: &str, part: Value| json!({ "type": "message", "role": role, "content": [part] });
        for (value, want, param) in [
            (json!({}), "missing_required_parameter", "item.type"),
            (json!({ "type": "mcp_call" }), "invalid_value", "item.type"),
            (message("robot", json!({})), "invalid_value", "item.role"),
            (message("assistant", json!({ "type": "output_audio" })), "invalid_value", "item.content[0].type"),
            (message("user", json!({ "type": "input_text" })), "missing_required_parameter", "item.content[0].text"),
            (message("user", json!({ "type": "input_audio", "audio": "AAA=" })), "", ""),
            (
                message("user", json!({ "type": "input_audio", "audio": "AA==" })),
                "invalid_value",
                "item.content[0].audio",
            ),
            (
                message("user", json!({ "type": "input_audio", "audio": "!!" })),
                "invalid_value",
                "item.content[0].audio",
            ),
            (json!({ "type": "function_call", "name": "f", "arguments": 1 }), "invalid_type", "item.arguments"),
            (json!({ "type": "function_call_output", "call_id": "c", "output": "" }), "", ""),
        ] {
            let got = read(value.clone()).err();
            let (code, path) = got.map_or_else(Default::default, |r| (r.code.unwrap(), r.param.unwrap()));
            assert_eq!((code.as_ref(), path.as_str()), (want, param), "{value}");
        }
        let own = read(json!({ "id": "mine", "type": "message", "role": "user", "content": [] })).unwrap();
        assert_eq!(own.id, "mine");
    }

    #[test]
    fn old_audio_is_forgotten_but_not_its_length() {
        let mut c = Conversation::default();
        for id in ["a", "b", "c"] {
            c.insert(reply(id, 1_000), Place::End, 100).unwrap();
        }
        c.insert(Item::spoken("u".into(), Clip::new(Format::MULAW, vec![1; 8_000].into()), false), Place::End, 9)
            .unwrap();
        c.forget_audio(2);
        let audio = |id: &str| c.get(id).unwrap().json(true)["content"][0]["audio"].as_str().unwrap().len();
        assert_eq!((audio("a"), audio("b"), audio("c"), audio("u")), (0, 0, 64_000, 10_668));
        assert_eq!(c.get("a").unwrap().tokens().audio, 20);
    }
}
