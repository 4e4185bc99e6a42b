//! The shape that the Realtime protocol had in its beta of 2024-25, and the generally available (GA) one: each said in the
//! other, event by event.
//!
//! Stands at the edges: [`BetaClient`] in front of the relay for legacy clients, [`BetaService`] behind it for compatible
//! servers that kept the shape. Everything between them is GA. The published table, a row an event, is `docs/beta.md`; the
//! rows are [`table`]'s, and each is proven by `tests/golden/translate.jsonl`. What is in no row passes to the byte, audio
//! always does: an append is never touched, a delta only gets its other name. Sources: openai-python 3.54 (both sets of
//! types), the service's migration guide, read 2026-11.
mod object;
mod table;
#[cfg(test)]
mod tests;

use std::{
    borrow::Cow,
    collections::{HashMap, VecDeque},
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use self::table::{CLIENT, How, Row, SERVER};
use crate::upstream::scan::{self, flat};

/// Items remembered until they are done; a conversation works at few at once.
const REMEMBERED: usize = 256;

/// A legacy client in front of GA, for the length of its connection.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct BetaClient {
    /// What the client set, which GA does not know any more; shown to it again.
    temperature: Option<Value>,
    /// The model that it asked for, by the name that it knows.
    model: Option<String>,
    /// Items that it was told of.
    told: Recent<()>,
}

/// A service in the shape of the beta behind us, for the length of its session.
#[derive(Debug, Default)]
pub struct BetaService {
    /// Items under way: what came before each.
    open: Recent<Value>,
    /// Names of the functions that are being called.
    names: Recent<Value>,
    /// What the service calls PCM, in and out: `pcm16`, or `pcm` (Qwen).
    pcm: [Option<Value>; 2],
    /// Events of ours that the service gave no id.
    made_up: u64,
}

/// The fields that [`BetaService::pcm`] is about.
const FORMATS: [&str; 2] = ["input_audio_format", "output_audio_format"];

impl BetaClient {
    /// A client that asked for `model`: its types may know no newer name, whatever model serves it.
    pub fn new(model: Option<String>) -> Self {
        Self { model, ..Self::default() }
    }

    /// What the client says, in GA.
    pub fn up(&mut self, text: Bytes) -> Vec<Bytes> {
        let Some((row, mut event)) = read(&text, client_row) else { return vec![text] };
        match row.how {
            How::Session => {
                let transcription = event.get("type") == Some(&json!("transcription_session.update"));
                if let Some(session) = object_of(&mut event, "session") {
                    self.temperature = session.get("temperature").cloned().or(self.temperature.take());
                    object::session_to_ga(session, transcription);
                }
            }
            How::Item => {
                object_of(&mut event, "item").into_iter().for_each(object::item_to_ga);
            }
            How::Reply => {
                object_of(&mut event, "response").into_iter().for_each(object::request_to_ga);
            }
            _ => return vec![text],
        }
        vec![written(event, row.ga)]
    }

    /// What the client is told instead of a GA event.
    pub fn down(&mut self, text: Bytes) -> Vec<Bytes> {
        if let Some(renamed) = renamed(&text, |row| (row.ga, row.beta)) {
            return vec![renamed];
        }
        let Some((row, mut event)) = read(&text, |kind| SERVER.iter().find(|row| row.ga == kind)) else {
            return vec![text];
        };
        let mut name = row.beta;
        match row.how {
            How::Gone => return Vec::new(),
            How::Session => {
                if let Some(session) = object_of(&mut event, "session") {
                    let transcription = session.get("type") == Some(&json!("transcription"));
                    object::session_to_beta(session);
                    if transcription {
                        name = table::transcription(name);
                    } else {
                        session.insert("temperature".into(), self.temperature.clone().unwrap_or(json!(0.8)));
                        let model = self.model.as_ref().filter(|_| session.contains_key("model"));
                        model.into_iter().for_each(|model| drop(session.insert("model".into(), json!(model))));
                    }
                }
            }
            How::Added => {
                let item = object_of(&mut event, "item");
                let id = item.as_ref().and_then(|item| item.get("id")?.as_str()).unwrap_or_default().to_owned();
                if !id.is_empty() && self.told.put(&id, ()).is_some() {
                    return Vec::new(); // `added` and `created` are the same news
                }
                item.into_iter().for_each(object::item_to_beta);
            }
            How::Item => object_of(&mut event, "item").into_iter().for_each(object::item_to_beta),
            How::Reply => {
                if let Some(response) = object_of(&mut event, "response") {
                    object::reply_to_beta(response);
                    response.insert("temperature".into(), self.temperature.clone().unwrap_or(json!(0.8)));
                }
            }
            How::Named => {
                event.shift_remove("name");
            }
            How::Same | How::Renamed | How::Counted => return vec![text],
        }
        vec![written(event, name)]
    }
}

impl BetaService {
    /// What the service is told instead of a GA client event.
    pub fn down(&mut self, text: Bytes) -> Vec<Bytes> {
        let Some((row, mut event)) = read(&text, |kind| CLIENT.iter().find(|row| row.ga == kind)) else {
            return vec![text];
        };
        let mut name = row.beta;
        match row.how {
            How::Session => {
                if let Some(session) = object_of(&mut event, "session") {
                    if session.get("type") == Some(&json!("transcription")) {
                        name = table::transcription(name);
                    }
                    object::session_to_beta(session);
                    object::leave_out_what_is_known(session);
                    self.use_its_names(session);
                }
            }
            How::Item => object_of(&mut event, "item").into_iter().for_each(object::item_to_beta),
            How::Reply => {
                if let Some(response) = object_of(&mut event, "response") {
                    object::request_to_beta(response);
                    self.use_its_names(response);
                }
            }
            _ => return vec![text],
        }
        vec![written(event, name)]
    }

    /// What the service says, in GA.
    pub fn up(&mut self, text: Bytes) -> Vec<Bytes> {
        let text = self.with_id(text);
        if let Some(renamed) = renamed(&text, |row| (row.beta, row.ga)) {
            return vec![renamed];
        }
        let Some((row, mut event)) = read(&text, service_row) else { return vec![text] };
        let transcription = table::is_transcription(event.get("type"));
        match row.how {
            How::Session => {
                if let Some(session) = object_of(&mut event, "session") {
                    self.learn_its_names(session);
                    object::session_to_ga(session, transcription);
                }
            }
            How::Added => return self.item_created(event),
            How::Item => {
                object_of(&mut event, "item").into_iter().for_each(object::item_to_ga);
                return self.output_item(event, row);
            }
            How::Reply => object_of(&mut event, "response").into_iter().for_each(object::reply_to_ga),
            How::Named => {
                let item = event.get("item_id").and_then(Value::as_str).unwrap_or_default();
                let name = self.names.take(item).unwrap_or(json!(""));
                event.entry("name").or_insert(name);
            }
            How::Counted => {
                // GA's types want it; a service that does not count has counted nothing.
                event.entry("usage").or_insert(json!({"type": "duration", "seconds": 0}));
            }
            How::Same | How::Renamed | How::Gone => {}
        }
        vec![written(event, row.ga)]
    }

    fn learn_its_names(&mut self, session: &Map<String, Value>) {
        for (name, field) in self.pcm.iter_mut().zip(FORMATS) {
            let said = session.get(field).filter(|format| object::is_pcm(format));
            *name = said.cloned().or(name.take());
        }
    }

    fn use_its_names(&self, session: &mut Map<String, Value>) {
        for (name, field) in self.pcm.iter().zip(FORMATS) {
            if let (Some(name), Some(format)) = (name, session.get_mut(field))
                && object::is_pcm(format)
            {
                *format = name.clone();
            }
        }
    }

    /// Every GA event has an id; not every service gives one.
    fn with_id(&mut self, text: Bytes) -> Bytes {
        if memchr::memmem::find(&text, br#""event_id""#).is_some() {
            return text;
        }
        match serde_json::from_slice(&text) {
            Ok(Value::Object(mut event)) => {
                self.name(&mut event);
                Value::Object(event).to_string().into()
            }
            _ => text,
        }
    }

    fn name(&mut self, event: &mut Map<String, Value>) {
        self.made_up += 1;
        event.insert("event_id".into(), json!(format!("event_made_{}", self.made_up)));
    }

    /// GA says when an item is there and when it is done; the beta says the first.
    fn item_created(&mut self, mut event: Map<String, Value>) -> Vec<Bytes> {
        let before = event.entry("previous_item_id").or_insert(Value::Null).clone();
        let Some(item) = object_of(&mut event, "item") else { return vec![written(event, "conversation.item.added")] };
        object::item_to_ga(item);
        let id = item.get("id").and_then(Value::as_str).unwrap_or_default().to_owned();
        // Some mark what has just begun as `incomplete` (speaches).
        let made_by_model =
            item.get("role") == Some(&json!("assistant")) || item.get("type") == Some(&json!("function_call"));
        let under_way = match item.get("status").and_then(Value::as_str) {
            Some("in_progress") => true,
            Some("incomplete") => made_by_model,
            _ => false,
        };
        let added = written(event.clone(), "conversation.item.added");
        if under_way {
            self.open.put(&id, before);
            return vec![added];
        }
        self.name(&mut event);
        vec![added, written(event, "conversation.item.done")]
    }

    /// The end of an output item is also the end of the conversation's item.
    fn output_item(&mut self, event: Map<String, Value>, row: &Row) -> Vec<Bytes> {
        let item = event.get("item").cloned().unwrap_or_default();
        let id = item.get("id").and_then(Value::as_str).unwrap_or_default();
        if let Some(name) = item.get("name").filter(|_| row.ga == "response.output_item.added") {
            self.names.put(id, name.clone());
        }
        let mut out = Vec::new();
        if row.ga == "response.output_item.done"
            && let Some(before) = self.open.take(id)
        {
            let mut done = Map::from_iter([("previous_item_id".to_owned(), before), ("item".to_owned(), item.clone())]);
            self.name(&mut done);
            out.push(written(done, "conversation.item.done"));
        }
        out.push(written(event, row.ga));
        out
    }
}

/// Whether a client event sets a session up in the shape of the beta: a client that did not say so at the door.
pub fn is_beta_update(text: &[u8]) -> bool {
    let Ok(event) = serde_json::from_slice::<Value>(text) else { return false };
    match event.get("type").and_then(Value::as_str) {
        Some("transcription_session.update") => true,
        Some("session.update") => {
            let session = event.get("session").and_then(Value::as_object);
            session.is_some_and(|s| !s.contains_key("type") && s.keys().any(|key| object::is_beta_field(key)))
        }
        _ => false,
    }
}

fn client_row(kind: &str) -> Option<&'static Row> {
    CLIENT.iter().find(|row| row.beta == kind || table::transcription(row.beta) == kind)
}

fn service_row(kind: &str) -> Option<&'static Row> {
    SERVER.iter().find(|row| row.beta == kind || row.how == How::Session && table::transcription(row.beta) == kind)
}

/// An event that has a row, taken apart. Those that nothing is done to are not.
fn read(text: &[u8], row: impl FnOnce(&str) -> Option<&'static Row>) -> Option<(&'static Row, Map<String, Value>)> {
    let text = std::str::from_utf8(text).ok()?;
    let row = row(&kind(text)?).filter(|row| row.how != How::Same)?;
    match serde_json::from_str(text).ok()? {
        Value::Object(event) => Some((row, event)),
        _ => None,
    }
}

/// The type of an event. It comes first, or at least before anything nested; where it does not, everything is read.
fn kind(text: &str) -> Option<Cow<'_, str>> {
    #[derive(Deserialize)]
    struct Head<'a> {
        #[serde(borrow, rename = "type")]
        kind: Cow<'a, str>,
    }
    let found = place_of_kind(text).and_then(|place| text.get(place)).map(Cow::Borrowed);
    found.or_else(|| serde_json::from_str::<Head<'_>>(text).ok().map(|head| head.kind))
}

fn place_of_kind(text: &str) -> Option<std::ops::Range<usize>> {
    let mut found = None;
    flat(text, |key, value| match (key, value) {
        ("type", scan::Value::Str(kind)) => {
            found = Some(scan::place(text, kind));
            false
        }
        _ => true,
    });
    found
}

/// The event under its other name, where nothing else about it differs: the audio in it is only copied.
fn renamed(text: &[u8], names: impl Fn(&Row) -> (&'static str, &'static str)) -> Option<Bytes> {
    let text = std::str::from_utf8(text).ok()?;
    let place = place_of_kind(text)?;
    let kind = text.get(place.clone())?;
    let mut rows = SERVER.iter().filter(|row| row.how == How::Renamed).map(names);
    let (_, other) = rows.find(|(name, _)| *name == kind)?;
    let (head, tail) = (text.get(..place.start)?, text.get(place.end..)?);
    Some(Bytes::from([head, other, tail].concat()))
}

fn object_of<'e>(event: &'e mut Map<String, Value>, field: &str) -> Option<&'e mut Map<String, Value>> {
    event.get_mut(field)?.as_object_mut()
}

/// An event under a name; the name stays where it was, or comes first.
fn written(mut event: Map<String, Value>, name: &str) -> Bytes {
    if event.contains_key("type") {
        event.insert("type".into(), json!(name));
    } else {
        event.shift_insert(0, "type".into(), json!(name));
    }
    Value::Object(event).to_string().into()
}

/// The newest things by their id.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Recent<T> {
    by_id: HashMap<String, T>,
    order: VecDeque<String>,
}

impl<T> Default for Recent<T> {
    fn default() -> Self {
        Self { by_id: HashMap::new(), order: VecDeque::new() }
    }
}

impl<T> Recent<T> {
    /// Remembers; what was there before.
    fn put(&mut self, id: &str, what: T) -> Option<T> {
        let before = self.by_id.insert(id.to_owned(), what);
        if before.is_none() {
            self.order.push_back(id.to_owned());
            while self.order.len() > REMEMBERED {
                let oldest = self.order.pop_front().unwrap_or_default();
                self.by_id.remove(&oldest);
            }
        }
        before
    }

    fn take(&mut self, id: &str) -> Option<T> {
        let found = self.by_id.remove(id);
        if found.is_some() {
            self.order.retain(|known| known != id);
        }
        found
    }
}
