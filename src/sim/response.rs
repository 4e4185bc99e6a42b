//! Responses: from the request to `response.done`, as many at once as there are out of band, one in the conversation.
//!
//! What is said comes from [`super::reply`], when it comes from [`super::script`]; here the events are sent and the
//! conversation grows.
use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde_json::{Value, json};

use super::{
    conversation::{Clip, Item, Kind, Part, Place, Role, Status},
    faults::Moment,
    limits::{Full, Taken},
    reply::{self, Said},
    script::{self, Step},
    session::{Act, Session},
    settings::{Modality, Settings, format_json},
    tokens::{self, Entry, InputUsage, Tokens},
    validate::Refusal,
};

/// Out-of-band responses at once; the service's number is not known.
const MAX_ASIDE: usize = 32;

/// What is asked for.
#[derive(Debug)]
pub(super) struct Request {
    /// The session's settings with the request's own over them.
    pub(super) settings: Settings,
    /// Out of band: nothing of it enters the conversation.
    pub(super) aside: bool,
    /// A context of its own.
    pub(super) input: Option<Vec<Item>>,
    pub(super) metadata: Value,
}

impl Request {
    /// What a turn asks for.
    pub(super) fn of_turn(settings: &Settings) -> Self {
        Self { settings: settings.clone(), aside: false, input: None, metadata: Value::Null }
    }
}

/// One output item as it grows.
#[derive(Debug)]
struct Live {
    id: String,
    call_id: String,
    said: Said,
    /// Item before it in the conversation; `None` until it is opened.
    opened: Option<Option<String>>,
    closed: bool,
    /// Transcript, text or arguments so far.
    text: String,
    audio_bytes: usize,
    status: Status,
}

/// A response under way.
#[derive(Debug)]
pub(super) struct Run {
    id: String,
    number: u64,
    aside: bool,
    settings: Settings,
    metadata: Value,
    context: Vec<Entry>,
    input: InputUsage,
    items: Vec<Live>,
    steps: std::collections::VecDeque<(Duration, Step)>,
    cut: bool,
    /// What it has taken from the account; or why it was given nothing.
    taken: Result<Option<Taken>, Full>,
    announced: bool,
    deltas: u64,
}

impl Session {
    /// The response that writes to the conversation.
    pub(super) fn active(&self) -> Option<&Run> {
        self.runs.iter().find(|run| !run.aside)
    }

    /// The next step of all responses: its time, and whose it is.
    pub(super) fn next_step(&self) -> Option<(Duration, usize)> {
        let steps = self.runs.iter().enumerate();
        steps.filter_map(|(at, run)| run.steps.front().map(|(due, _)| (*due, at))).min()
    }

    /// Starts a response, or refuses to.
    pub(super) fn respond(&mut self, request: Request, event_id: Option<&str>) {
        match self.start(request) {
            Ok(run) => {
                self.world.stats.lock().responses += 1;
                self.counts.responses += 1;
                self.counts.activity += 1;
                self.runs.push(Run { number: self.counts.responses, ..run });
            }
            Err(refusal) => self.refuse(&refusal, event_id),
        }
    }

    fn start(&mut self, request: Request) -> Result<Run, Refusal> {
        if !request.aside
            && let Some(active) = self.active()
        {
            let message = format!(
                "Conversation already has an active response in progress: {}. Wait until the response is finished \
                 before creating a new one.",
                active.id
            );
            return Err(Refusal::new("conversation_already_has_active_response", message));
        }
        if request.aside && self.runs.iter().filter(|run| run.aside).count() >= MAX_ASIDE {
            let message = format!("Too many responses at once: at most {MAX_ASIDE} may run out of band.");
            return Err(Refusal::new("rate_limit_exceeded", message));
        }
        let context = self.context(&request)?;
        let settings = request.settings;
        let most = settings.max_output_tokens.unwrap_or(u64::MAX).min(settings.model.max_output_tokens);
        let reads: u64 = context.iter().map(|entry| entry.tokens.total()).sum();
        let taken = self.take_tokens(reads.saturating_add(most));
        let said = match taken {
            Ok(_) => reply::plan(&self.inputs(request.input, request.aside), &settings, &self.world.config.reply),
            // What was to be answered still is.
            Err(_) => Vec::new(),
        };
        let script = script::write(&said, settings.output_format, most, &self.world.config, &mut self.dice, self.now);
        let items = said.into_iter().map(|said| Live {
            id: self.dice.id("item"),
            call_id: self.dice.id("call"),
            said,
            opened: None,
            closed: false,
            text: String::new(),
            audio_bytes: 0,
            status: Status::InProgress,
        });
        Ok(Run {
            items: items.collect(),
            id: self.dice.id("resp"),
            number: 0,
            aside: request.aside,
            settings,
            metadata: request.metadata,
            input: self.cache.weigh(&context, self.world.config.cache_block_tokens),
            context,
            steps: script.steps,
            cut: script.cut,
            taken,
            announced: false,
            deltas: 0,
        })
    }

    /// What the model reads for this response, cut to what it can.
    fn context(&mut self, request: &Request) -> Result<Vec<Entry>, Refusal> {
        let settings = &request.settings;
        let mut context = vec![instructions(settings)];
        match &request.input {
            Some(items) => context.extend(items.iter().map(Item::entry)),
            None => context.extend(self.conversation.context().map(Item::entry)),
        }
        let limit = settings.model.context_tokens.saturating_sub(settings.model.max_output_tokens);
        let gone = tokens::overflow(&context, limit, settings.truncation).map_err(|tokens| {
            let message = format!(
                "The conversation of {tokens} tokens is over the model's limit of {limit}, and truncation is disabled."
            );
            Refusal::new("context_length_exceeded", message)
        })?;
        context.drain(1..=gone);
        if request.input.is_none() {
            self.conversation.drop_from_context(gone);
        }
        Ok(context)
    }

    /// What is to be answered. An out-of-band response looks at it and leaves it to be answered.
    fn inputs(&mut self, input: Option<Vec<Item>>, aside: bool) -> Vec<Item> {
        if let Some(items) = input {
            return items.into_iter().filter(Item::is_input).collect();
        }
        let open = self.conversation.iter_mut().filter(|item| item.is_input() && !item.answered);
        let inputs = open.map(|item| {
            item.answered = !aside;
            item.clone()
        });
        inputs.collect()
    }

    /// Carries out the next step of a response.
    pub(super) fn step(&mut self, run: usize) {
        // Taken out while it works, so that it can speak through the session.
        if run >= self.runs.len() {
            return;
        }
        let mut run = self.runs.remove(run);
        let Some((_, step)) = run.steps.pop_front() else { return };
        match step {
            Step::Created => self.announce(&mut run),
            Step::Open(index) => self.open_item(&mut run, index),
            Step::Words(index, words) => self.words(&mut run, index, &words),
            Step::Audio(index, audio) => self.audio(&mut run, index, &audio),
            Step::Close(index) => self.close_item(&mut run, index, Status::Completed),
            Step::Done => {
                if let Err(full) = &run.taken {
                    let error = json!({ "type": "tokens", "code": "rate_limit_exceeded", "message": full.message });
                    return self.finish(run, "failed", json!({ "type": "failed", "error": error }));
                }
                let (status, details) = if run.cut {
                    ("incomplete", json!({ "type": "incomplete", "reason": "max_output_tokens" }))
                } else {
                    ("completed", Value::Null)
                };
                return self.finish(run, status, details);
            }
        }
        self.runs.push(run);
    }

    fn announce(&mut self, run: &mut Run) {
        run.announced = true;
        let response = run.json("in_progress", &Value::Null, &Value::Null, &self.conversation_id);
        self.send("response.created", json!({ "response": response }));
        self.moment(Moment::Response(run.number, 0));
    }

    fn open_item(&mut self, run: &mut Run, index: usize) {
        let (aside, format, response_id) = (run.aside, run.settings.output_format, run.id.clone());
        let Some(live) = run.items.get_mut(index) else { return };
        let item = live.item();
        let shown = item.json(false);
        let before = if aside {
            None
        } else {
            // Its id is new and its place the end: only a full conversation refuses it, and then it is not kept.
            self.conversation.insert(item, Place::End, self.world.config.max_items).unwrap_or_default()
        };
        live.opened = Some(before.clone());
        let id = live.id.clone();
        let part = live.part();
        self.send(
            "response.output_item.added",
            json!({ "response_id": response_id, "output_index": index, "item": shown }),
        );
        if !aside {
            self.send("conversation.item.added", json!({ "previous_item_id": before, "item": shown }));
            let audio = matches!(part, Some((Modality::Audio, _))).then_some(format);
            if part.is_some() {
                self.conversation.begin_part(&id, audio);
            }
        }
        if let Some((_, part)) = part {
            let place = json!({ "response_id": response_id, "item_id": id, "output_index": index, "content_index": 0 });
            self.send("response.content_part.added", with(place, json!({ "part": part })));
        }
    }

    fn words(&mut self, run: &mut Run, index: usize, words: &str) {
        let place = run.place(index);
        let Some(live) = run.items.get_mut(index) else { return };
        live.text.push_str(words);
        if !run.aside {
            self.conversation.grow_text(&live.id, words);
        }
        let (kind, is_audio, place) = match &live.said {
            Said::Audio { .. } => ("response.output_audio_transcript.delta", true, place),
            Said::Text(_) => ("response.output_text.delta", false, place),
            Said::Call { .. } => ("response.function_call_arguments.delta", false, live.call_place(&run.id, index)),
        };
        let obfuscation = self.dice.obfuscation();
        self.send(kind, with(place, json!({ "delta": words, "obfuscation": obfuscation })));
        if !is_audio {
            self.count_delta(run);
        }
    }

    fn audio(&mut self, run: &mut Run, index: usize, audio: &Bytes) {
        let place = run.place(index);
        let Some(live) = run.items.get_mut(index) else { return };
        live.audio_bytes += audio.len();
        if !run.aside {
            self.conversation.grow_audio(&live.id, audio);
        }
        self.world.stats.delta(audio.len());
        let obfuscation = self.dice.obfuscation();
        let delta = json!({ "delta": STANDARD.encode(audio), "obfuscation": obfuscation });
        self.send("response.output_audio.delta", with(place, delta));
        self.count_delta(run);
    }

    fn count_delta(&mut self, run: &mut Run) {
        run.deltas += 1;
        self.moment(Moment::Response(run.number, run.deltas));
    }

    fn close_item(&mut self, run: &mut Run, index: usize, status: Status) {
        let cut_here = run.cut && index + 1 == run.items.iter().filter(|live| live.opened.is_some()).count();
        let status = if cut_here { Status::Incomplete } else { status };
        let (aside, place, response_id) = (run.aside, run.place(index), run.id.clone());
        let Some(live) = run.items.get_mut(index).filter(|live| !live.closed) else { return };
        let Some(before) = live.opened.clone() else { return };
        (live.closed, live.status) = (true, status);
        let (id, text, shown) = (live.id.clone(), live.text.clone(), live.shown().json(false));
        match &live.said {
            Said::Audio { .. } => {
                self.send("response.output_audio.done", place.clone());
                let done = with(place.clone(), json!({ "transcript": text }));
                self.send("response.output_audio_transcript.done", done);
            }
            Said::Text(_) => self.send("response.output_text.done", with(place.clone(), json!({ "text": text }))),
            Said::Call { name, .. } => {
                self.world.stats.lock().function_calls += 1;
                let done = with(live.call_place(&response_id, index), json!({ "name": name, "arguments": text }));
                self.send("response.function_call_arguments.done", done);
            }
        }
        if let Some((_, part)) = live.part() {
            self.send("response.content_part.done", with(place, json!({ "part": part })));
        }
        if !aside {
            self.conversation.finish(&id, status);
            self.send("conversation.item.done", json!({ "previous_item_id": before, "item": shown }));
        }
        self.send(
            "response.output_item.done",
            json!({ "response_id": response_id, "output_index": index, "item": shown }),
        );
    }

    /// Cancels the response that writes to the conversation; `false`: there is none.
    pub(super) fn cancel_active(&mut self, reason: &str) -> bool {
        let id = self.active().map(|run| run.id.clone());
        id.is_some_and(|id| self.cancel(&id, reason))
    }

    /// Cancels a response; `false`: there is none of that id.
    pub(super) fn cancel(&mut self, id: &str, reason: &str) -> bool {
        let Some(at) = self.runs.iter().position(|run| run.id == id) else { return false };
        let run = self.runs.remove(at);
        self.finish(run, "cancelled", json!({ "type": "cancelled", "reason": reason }));
        true
    }

    /// Lets the response that writes to the conversation fail.
    pub(super) fn fail_active(&mut self, code: &str, message: &str) {
        let Some(at) = self.runs.iter().position(|run| !run.aside) else { return };
        let run = self.runs.remove(at);
        // The service's own errors have a type and no code (captured); the others have both.
        let (kind, code) = match code {
            "server_error" => ("server_error", Value::Null),
            other => (other, json!(other)),
        };
        let error = json!({ "type": kind, "code": code, "message": message });
        self.finish(run, "failed", json!({ "type": "failed", "error": error }));
    }

    fn finish(&mut self, mut run: Run, status: &str, details: Value) {
        if !run.announced {
            self.announce(&mut run);
        }
        for index in 0..run.items.len() {
            self.close_item(&mut run, index, Status::Incomplete);
        }
        let format = run.settings.output_format;
        let output: Tokens = run.items.iter().map(|live| live.tokens(format)).sum();
        let (input, output) = match status {
            "failed" => Default::default(),
            _ => (run.input, output),
        };
        let usage = tokens::usage_json(input, output);
        let response = run.json(status, &details, &usage, &self.conversation_id);
        self.send("response.done", json!({ "response": response }));
        let total = input.all.total() + output.total();
        if let Ok(Some(taken)) = &run.taken {
            self.settle_tokens(taken, total);
        }
        self.world.stats.response_done(status, input, output);
        let delay = self.dice.delay(self.world.config.delays.rate_limits);
        self.at(self.now + delay, Act::RateLimits(total));
        if !run.aside {
            let made = run.items.iter().filter_map(|live| self.conversation.get(&live.id)).map(Item::entry);
            let context: Vec<Entry> = run.context.into_iter().chain(made).collect();
            self.cache.remember(context);
            let audio: u128 = run.items.iter().map(|live| format.duration(live.audio_bytes).as_millis()).sum();
            self.wait_for_playback(if status == "cancelled" { 0 } else { u64::try_from(audio).unwrap_or(u64::MAX) });
        }
    }
}

impl Run {
    fn place(&self, index: usize) -> Value {
        let item_id = self.items.get(index).map(|live| live.id.as_str());
        json!({ "response_id": self.id, "item_id": item_id, "output_index": index, "content_index": 0 })
    }

    fn json(&self, status: &str, details: &Value, usage: &Value, conversation_id: &str) -> Value {
        let output: Vec<Value> =
            self.items.iter().filter(|live| live.closed).map(|live| live.shown().json(false)).collect();
        json!({
            "object": "realtime.response",
            "id": self.id,
            "status": status,
            "status_details": details,
            "output": output,
            "conversation_id": if self.aside { Value::Null } else { json!(conversation_id) },
            "output_modalities": [self.settings.modality.name()],
            "max_output_tokens": self.settings.max_output_json(),
            "audio": {
                "output": { "format": format_json(self.settings.output_format), "voice": self.settings.voice },
            },
            "usage": usage,
            "metadata": self.metadata,
        })
    }
}

impl Live {
    /// The item as it begins.
    fn item(&self) -> Item {
        let kind = match &self.said {
            Said::Call { name, .. } => {
                Kind::FunctionCall { name: name.clone(), call_id: self.call_id.clone(), arguments: String::new() }
            }
            _ => Kind::Message { role: Role::Assistant, parts: Vec::new() },
        };
        let mut item = Item::new(self.id.clone(), kind);
        item.status = Status::InProgress;
        item
    }

    /// The item as it is now, without audio.
    fn shown(&self) -> Item {
        let mut item = self.item();
        item.status = self.status;
        match (&mut item.kind, &self.said) {
            (Kind::Message { parts, .. }, Said::Audio { .. }) => parts.push(Part::OutputAudio {
                clip: Clip::new(crate::audio::Format::PCM_24K, Bytes::new()),
                transcript: Some(self.text.clone()),
            }),
            (Kind::Message { parts, .. }, _) => parts.push(Part::OutputText(self.text.clone())),
            (Kind::FunctionCall { arguments, .. }, _) => arguments.clone_from(&self.text),
            _ => {}
        }
        item
    }

    /// The content part as it is now, with what it is made of; a function call has none.
    fn part(&self) -> Option<(Modality, Value)> {
        match self.said {
            Said::Audio { .. } => Some((Modality::Audio, json!({ "type": "audio", "transcript": self.text }))),
            Said::Text(_) => Some((Modality::Text, json!({ "type": "text", "text": self.text }))),
            Said::Call { .. } => None,
        }
    }

    fn call_place(&self, response_id: &str, index: usize) -> Value {
        json!({ "response_id": response_id, "item_id": self.id, "output_index": index, "call_id": self.call_id })
    }

    fn tokens(&self, format: crate::audio::Format) -> Tokens {
        let name = match &self.said {
            Said::Call { name, .. } if self.closed => name.as_str(),
            _ => "",
        };
        let ms = u64::try_from(format.duration(self.audio_bytes).as_millis()).unwrap_or(u64::MAX);
        Tokens { text: tokens::of_text(&format!("{name}{}", self.text)), audio: tokens::of_reply_audio(ms) }
    }
}

/// Instructions and tools as the first piece of a context.
fn instructions(settings: &Settings) -> Entry {
    let tools = if settings.tools.is_empty() { String::new() } else { json!(settings.tools).to_string() };
    let mut hash = DefaultHasher::new();
    (&settings.instructions, &tools).hash(&mut hash);
    let text = tokens::of_text(&settings.instructions) + tokens::of_text(&tools);
    Entry { id: String::new(), version: hash.finish(), tokens: Tokens { text, audio: 0 } }
}

/// An object with more fields behind its own.
pub(super) fn with(mut object: Value, more: Value) -> Value {
    if let (Value::Object(object), Value::Object(more)) = (&mut object, more) {
        object.extend(more);
    }
    object
}
