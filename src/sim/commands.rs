//! What a client may ask of a session: the ten GA events of a WebSocket, checked and carried out.
//!
//! Answers with the acknowledging events or with an `error`; a refused event changes nothing.
use serde_json::{Map, Value, json};

use super::{
    beta,
    conversation::{self, Item, Kind, Place},
    input::MIN_COMMIT_MS,
    response::Request,
    session::Session,
    stats::Truncation,
    validate::{Fields, Refusal, shorten},
};

/// The types that the live service lists when it sees another one.
const EVENTS: [&str; 12] = [
    "session.update",
    "session.close",
    "session.input_audio_buffer.append",
    "input_audio_buffer.append",
    "input_audio_buffer.commit",
    "input_audio_buffer.clear",
    "conversation.item.create",
    "conversation.item.retrieve",
    "conversation.item.truncate",
    "conversation.item.delete",
    "response.create",
    "response.cancel",
];
/// Longest `event_id`, characters.
const MAX_EVENT_ID: usize = 512;
const RESPONSE_FIELDS: [&str; 12] = [
    "conversation",
    "input",
    "instructions",
    "output_modalities",
    "audio",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "reasoning",
    "max_output_tokens",
    "metadata",
    "prompt",
];

impl Session {
    /// Takes a text frame.
    pub(super) fn text(&mut self, text: &str) {
        let value = match serde_json::from_str::<Value>(text) {
            Ok(value) => value,
            Err(error) => {
                let message = format!("The message is not valid JSON: {error}.");
                return self.refuse(&Refusal::new("invalid_json", message), None);
            }
        };
        let event_id = value.get("event_id").and_then(Value::as_str).map(|id| shorten_id(id).to_owned());
        let done = match self.beta {
            true => beta::heard(value, self.settings.only_writes).and_then(|value| self.event(&value)),
            false => self.event(&value),
        };
        if let Err(refusal) = done {
            self.refuse(&refusal, event_id.as_deref());
        }
    }

    fn event(&mut self, event: &Value) -> Result<(), Refusal> {
        let Value::Object(map) = event else {
            return Err(Refusal::new("invalid_event", "A client event must be a JSON object."));
        };
        let kind = match map.get("type") {
            Some(Value::String(kind)) => kind.as_str(),
            Some(other) => return Err(Refusal::wrong_type("type", "a string", other)),
            None => {
                let message = "Missing required parameter: 'type'.";
                return Err(Refusal::new("invalid_event", message).at("type"));
            }
        };
        match kind {
            "session.update" => self.session_update(&fields(event, &["session"])?),
            "input_audio_buffer.append" => self.append(&fields(event, &["audio"])?),
            "input_audio_buffer.commit" => self.client_commit(&fields(event, &[])?),
            "input_audio_buffer.clear" => self.clear(&fields(event, &[])?),
            "conversation.item.create" => self.item_create(&fields(event, &["item", "previous_item_id"])?),
            "conversation.item.retrieve" => self.item_retrieve(&fields(event, &["item_id"])?),
            "conversation.item.truncate" => {
                self.item_truncate(&fields(event, &["item_id", "content_index", "audio_end_ms"])?)
            }
            "conversation.item.delete" => self.item_delete(&fields(event, &["item_id"])?),
            "response.create" => self.response_create(&fields(event, &["response"])?, event_id(map)),
            "response.cancel" => self.response_cancel(&fields(event, &["response_id"])?),
            "session.close" | "session.input_audio_buffer.append" => {
                let message = format!("The event '{kind}' is for translation sessions only.");
                Err(Refusal::new("invalid_value", message).at("type"))
            }
            other => Err(Refusal::choice("type", other, &EVENTS)),
        }
    }

    fn session_update(&mut self, f: &Fields<'_>) -> Result<(), Refusal> {
        let mut settings = self.settings.clone();
        settings.update(f.need("session")?, self.conversation.has_spoken)?;
        if self.beta {
            settings.hear_pcm_at(self.world.config.pcm16_rate);
        }
        self.settings = settings;
        self.listen();
        let session = self.session_json();
        let delay = self.dice.delay(self.world.config.delays.updated);
        self.send_after(delay, "session.updated", json!({ "session": session }));
        Ok(())
    }

    fn append(&mut self, f: &Fields<'_>) -> Result<(), Refusal> {
        // The one event that comes fifty times a second: its length is checked before anything is decoded.
        let audio = f.need_text("audio")?;
        let most = self.world.config.max_append_chars;
        if audio.len() > most {
            let message = format!(
                "Invalid 'audio': string too long. Expected a string with maximum length {most}, but got a string with \
                 length {} instead.",
                audio.len()
            );
            return Err(Refusal::new("string_above_max_length", message).at("audio"));
        }
        let bytes = conversation::read_audio(audio, "audio", self.input.format())?;
        let seconds = self.world.config.max_buffer_s;
        let longer = self.input.buffered_ms() + self.input.format().duration(bytes.len()).as_secs_f64() * 1_000.0;
        if longer > seconds as f64 * 1_000.0 {
            let message =
                format!("The input audio buffer is full: it holds at most {seconds} seconds. Commit or clear it.");
            return Err(Refusal::new("input_audio_buffer_full", message).at("audio"));
        }
        self.hear(&bytes);
        Ok(())
    }

    fn client_commit(&mut self, _: &Fields<'_>) -> Result<(), Refusal> {
        let audio = self.input.commit().map_err(|ms| {
            let message = format!(
                "Error committing input audio buffer: buffer too small. Expected at least {MIN_COMMIT_MS}ms of audio, \
                 but buffer only has {ms:.2}ms of audio."
            );
            Refusal::new("input_audio_buffer_commit_empty", message)
        })?;
        let id = self.turn_id();
        self.commit(id, audio, false);
        Ok(())
    }

    fn clear(&mut self, _: &Fields<'_>) -> Result<(), Refusal> {
        self.input.clear();
        self.forget_speech();
        self.send("input_audio_buffer.cleared", json!({}));
        Ok(())
    }

    fn item_create(&mut self, f: &Fields<'_>) -> Result<(), Refusal> {
        let id = self.dice.id("item");
        let item = conversation::read_item(f.need("item")?, "item", self.input.format(), id)?;
        self.check_call(&item)?;
        let place = match f.text("previous_item_id")? {
            None => Place::End,
            Some("root") => Place::Front,
            Some(id) => Place::After(id),
        };
        let shown = item.json(false);
        let before = self.conversation.insert(item, place, self.world.config.max_items)?;
        self.counts.activity += 1;
        self.send("conversation.item.added", json!({ "previous_item_id": before, "item": shown }));
        self.send("conversation.item.done", json!({ "previous_item_id": before, "item": shown }));
        self.conversation.forget_audio(self.world.config.keep_audio_s);
        Ok(())
    }

    /// A function's result must belong to a call.
    fn check_call(&self, item: &Item) -> Result<(), Refusal> {
        let Kind::FunctionOutput { call_id: wanted, .. } = &item.kind else { return Ok(()) };
        let known = self.conversation.iter().any(|item| match &item.kind {
            Kind::FunctionCall { call_id, .. } => call_id == wanted,
            _ => false,
        });
        if known {
            return Ok(());
        }
        let message = format!("Tool call ID '{}' not found in conversation.", shorten(wanted));
        Err(Refusal::new("invalid_tool_call_id", message).at("item.call_id"))
    }

    fn item_retrieve(&mut self, f: &Fields<'_>) -> Result<(), Refusal> {
        let id = f.need_text("item_id")?;
        let item = self
            .conversation
            .get(id)
            .ok_or_else(|| conversation::unknown_item("retrieve", "retrieving", &shorten(id)))?
            .json(true);
        self.send("conversation.item.retrieved", json!({ "item": item }));
        Ok(())
    }

    fn item_truncate(&mut self, f: &Fields<'_>) -> Result<(), Refusal> {
        let id = f.need_text("item_id")?;
        f.need("content_index")?;
        f.need("audio_end_ms")?;
        let index = f.integer("content_index", 0, u64::MAX)?.unwrap_or_default();
        let end_ms = f.integer("audio_end_ms", 0, u64::MAX)?.unwrap_or_default();
        let had_ms = self.conversation.get(id).map_or(0, Item::audio_ms);
        self.conversation.truncate(id, index, end_ms, self.world.config.reply.shortfall_ms)?;
        let truncation = Truncation { session: self.number, item_id: id.to_owned(), audio_end_ms: end_ms, had_ms };
        self.world.stats.truncation(truncation);
        self.send(
            "conversation.item.truncated",
            json!({ "item_id": id, "content_index": index, "audio_end_ms": end_ms }),
        );
        Ok(())
    }

    fn item_delete(&mut self, f: &Fields<'_>) -> Result<(), Refusal> {
        let id = f.need_text("item_id")?;
        if !self.conversation.remove(id) {
            return Err(conversation::unknown_item("delete", "deleting", &shorten(id)));
        }
        self.send("conversation.item.deleted", json!({ "item_id": id }));
        Ok(())
    }

    fn response_create(&mut self, f: &Fields<'_>, event_id: Option<&str>) -> Result<(), Refusal> {
        self.world.stats.lock().responses_asked += 1;
        if self.settings.only_writes {
            // The live service's code for it is not known.
            let message = "The event 'response.create' is not supported in transcription sessions.";
            return Err(Refusal::new("invalid_value", message).at("type"));
        }
        let mut request = Request::of_turn(&self.settings);
        if let Some(f) = f.object("response", &RESPONSE_FIELDS)? {
            request.settings.override_for_response(&f, self.conversation.has_spoken)?;
            request.aside = f.choice("conversation", &["auto", "none"])? == Some("none");
            request.metadata = read_metadata(&f)?;
            request.input = self.read_input(&f)?;
        }
        self.respond(request, event_id);
        Ok(())
    }

    /// The items of a response that brings its own context.
    fn read_input(&mut self, f: &Fields<'_>) -> Result<Option<Vec<Item>>, Refusal> {
        let Some(input) = f.array("input", 1_000)? else { return Ok(None) };
        let mut items = Vec::with_capacity(input.len());
        for (at, value) in input.iter().enumerate() {
            let path = format!("{}[{at}]", f.join("input"));
            if value.get("type").and_then(Value::as_str) == Some("item_reference") {
                let reference = Fields::of(value, path, &["type", "id"])?;
                let id = reference.need_text("id")?;
                let item = self.conversation.get(id).ok_or_else(|| {
                    let message = format!("Error referencing item: the item with id '{}' does not exist.", shorten(id));
                    Refusal::new("item_reference_invalid_item_id", message).at(reference.join("id"))
                })?;
                items.push(item.clone());
            } else {
                let id = self.dice.id("item");
                items.push(conversation::read_item(value, &path, self.input.format(), id)?);
            }
        }
        Ok(Some(items))
    }

    fn response_cancel(&mut self, f: &Fields<'_>) -> Result<(), Refusal> {
        let found = match f.text("response_id")? {
            None => self.cancel_active("client_cancelled"),
            Some(id) => self.cancel(id, "client_cancelled"),
        };
        if !found {
            let message = "Cancellation failed: no active response found";
            return Err(Refusal::new("response_cancel_not_active", message));
        }
        self.world.stats.lock().cancels += 1;
        Ok(())
    }
}

fn fields<'v>(event: &'v Value, more: &[&str]) -> Result<Fields<'v>, Refusal> {
    let mut allowed = vec!["type", "event_id"];
    allowed.extend(more);
    let f = Fields::of(event, "", &allowed)?;
    f.text_up_to("event_id", MAX_EVENT_ID)?;
    Ok(f)
}

fn event_id(map: &Map<String, Value>) -> Option<&str> {
    map.get("event_id").and_then(Value::as_str)
}

/// An id is echoed as it is, unless it is longer than ids may be.
fn shorten_id(id: &str) -> &str {
    id.char_indices().nth(MAX_EVENT_ID).and_then(|(at, _)| id.get(..at)).unwrap_or(id)
}

fn read_metadata(f: &Fields<'_>) -> Result<Value, Refusal> {
    let Some(metadata) = f.get("metadata") else { return Ok(Value::Null) };
    let path = f.join("metadata");
    let Value::Object(map) = metadata else { return Err(Refusal::wrong_type(&path, "an object", metadata)) };
    if map.len() > 16 {
        let message = format!("Invalid '{path}': too many properties. Expected at most 16, but got {}.", map.len());
        return Err(Refusal::new("object_above_max_properties", message).at(path));
    }
    for (key, value) in map {
        let Value::String(text) = value else {
            return Err(Refusal::wrong_type(&format!("{path}.{}", shorten(key)), "a string", value));
        };
        if key.chars().count() > 64 || text.chars().count() > 512 {
            let message = format!(
                "Invalid '{path}': string too long. Expected keys of at most 64 and values of at most 512 characters."
            );
            return Err(Refusal::new("string_above_max_length", message).at(format!("{path}.{}", shorten(key))));
        }
    }
    Ok(metadata.clone())
}
