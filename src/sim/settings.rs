//! A session's effective configuration: what `session.update` may change, how, and what `session.created` shows.
//!
//! An update is a deep merge of the fields that are present. Callers apply it to a copy, so that an update with one bad
//! field changes nothing.
use serde_json::{Map, Value, json};

use super::{
    config::{Model, SemanticSilence},
    response::with,
    tokens::Truncation,
    validate::{Fields, Refusal},
};
use crate::audio::{Codec, Format};

const SESSION_FIELDS: [&str; 13] = [
    "type",
    "model",
    "output_modalities",
    "instructions",
    "audio",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "reasoning",
    "max_output_tokens",
    "truncation",
    "prompt",
    "tracing",
];
/// Transcription models that find the ends of turns themselves.
const NO_TURNS: [&str; 2] = ["gpt-realtime-whisper", "gpt-live-transcribe"];
const VOICES: [&str; 10] = ["alloy", "ash", "ballad", "coral", "echo", "sage", "shimmer", "verse", "marin", "cedar"];
const LOGPROBS: &str = "item.input_audio_transcription.logprobs";
/// PCM above 24 kHz was accepted from one user; the types allow 24 kHz alone. Taken up to what a sound card does.
const PCM_RATES: (u64, u64) = (24_000, 48_000);

/// What replies are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Modality {
    /// Audio with its transcript.
    Audio,
    /// Text alone.
    Text,
}

impl Modality {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Audio => "audio",
            Self::Text => "text",
        }
    }
}

/// When a turn is over.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct TurnDetection {
    pub(super) kind: DetectionKind,
    pub(super) create_response: bool,
    pub(super) interrupt_response: bool,
}

/// How the end of a turn is found.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum DetectionKind {
    /// `server_vad`.
    Server { threshold: f64, prefix_ms: u64, silence_ms: u64, idle_timeout_ms: Option<u64> },
    /// `semantic_vad`.
    Semantic { eagerness: &'static str },
}

impl TurnDetection {
    /// What `session.created` of the live service shows; its guide says 500 ms of silence.
    fn server() -> Self {
        let kind = DetectionKind::Server { threshold: 0.5, prefix_ms: 300, silence_ms: 200, idle_timeout_ms: None };
        Self { kind, create_response: true, interrupt_response: true }
    }

    fn semantic() -> Self {
        Self { kind: DetectionKind::Semantic { eagerness: "auto" }, create_response: true, interrupt_response: true }
    }

    /// Level, padding and silence for the detector.
    pub(super) fn vad(&self, semantic: SemanticSilence) -> (f64, u64, u64) {
        match self.kind {
            DetectionKind::Server { threshold, prefix_ms, silence_ms, .. } => (threshold, prefix_ms, silence_ms),
            DetectionKind::Semantic { eagerness } => {
                let silence = match eagerness {
                    "low" => semantic.low_ms,
                    "high" => semantic.high_ms,
                    _ => semantic.medium_ms,
                };
                (0.5, 300, silence)
            }
        }
    }

    /// The idle timeout, if one is set.
    pub(super) fn idle_timeout_ms(&self) -> Option<u64> {
        match self.kind {
            DetectionKind::Server { idle_timeout_ms, .. } => idle_timeout_ms,
            DetectionKind::Semantic { .. } => None,
        }
    }

    fn without_replies(self) -> Self {
        Self { create_response: false, interrupt_response: false, ..self }
    }

    fn merge(current: Option<&Self>, f: &Fields<'_>) -> Result<Self, Refusal> {
        let kind = match (f.choice("type", &["server_vad", "semantic_vad"])?, current) {
            (Some(kind), _) => kind,
            (None, Some(Self { kind: DetectionKind::Server { .. }, .. })) => "server_vad",
            (None, Some(_)) => "semantic_vad",
            (None, None) => return Err(Refusal::missing(&f.join("type"))),
        };
        let mut new = match (kind, current) {
            ("server_vad", Some(now @ Self { kind: DetectionKind::Server { .. }, .. })) => now.clone(),
            ("semantic_vad", Some(now @ Self { kind: DetectionKind::Semantic { .. }, .. })) => now.clone(),
            ("server_vad", _) => Self::server(),
            _ => Self::semantic(),
        };
        let foreign: &[&str] = match &mut new.kind {
            DetectionKind::Server { threshold, prefix_ms, silence_ms, idle_timeout_ms } => {
                *threshold = f.number("threshold", 0.0, 1.0)?.unwrap_or(*threshold);
                *prefix_ms = f.integer("prefix_padding_ms", 0, 60_000)?.unwrap_or(*prefix_ms);
                *silence_ms = f.integer("silence_duration_ms", 0, 60_000)?.unwrap_or(*silence_ms);
                let idle = f.integer("idle_timeout_ms", 5_000, 30_000)?;
                *idle_timeout_ms = if f.is_null("idle_timeout_ms") { None } else { idle.or(*idle_timeout_ms) };
                &["eagerness"]
            }
            DetectionKind::Semantic { eagerness } => {
                *eagerness = f.choice("eagerness", &["low", "medium", "high", "auto"])?.unwrap_or(eagerness);
                &["threshold", "prefix_padding_ms", "silence_duration_ms", "idle_timeout_ms"]
            }
        };
        if let Some(name) = foreign.iter().find(|name| f.raw(name).is_some()) {
            return Err(Refusal::unknown(&f.join(name)));
        }
        new.create_response = f.flag("create_response")?.unwrap_or(new.create_response);
        new.interrupt_response = f.flag("interrupt_response")?.unwrap_or(new.interrupt_response);
        Ok(new)
    }

    fn json(&self) -> Value {
        with(
            self.json_of_listening(),
            json!({"create_response": self.create_response, "interrupt_response": self.interrupt_response}),
        )
    }

    /// Without what is about replies: a session that only writes down has none.
    fn json_of_listening(&self) -> Value {
        match self.kind {
            DetectionKind::Server { threshold, prefix_ms, silence_ms, idle_timeout_ms } => json!({
                "type": "server_vad",
                "threshold": threshold,
                "prefix_padding_ms": prefix_ms,
                "silence_duration_ms": silence_ms,
                "idle_timeout_ms": idle_timeout_ms,
            }),
            DetectionKind::Semantic { eagerness } => json!({ "type": "semantic_vad", "eagerness": eagerness }),
        }
    }
}

/// The caller's transcription, as it was configured.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Transcription {
    pub(super) model: String,
    shown: Map<String, Value>,
}

/// A session's configuration.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    /// It writes down what it hears, and answers nothing.
    pub(super) only_writes: bool,
    pub(super) model: Model,
    pub(super) modality: Modality,
    pub(super) instructions: String,
    pub(super) input_format: Format,
    noise_reduction: Option<Map<String, Value>>,
    pub(super) transcription: Option<Transcription>,
    pub(super) turn_detection: Option<TurnDetection>,
    pub(super) output_format: Format,
    pub(super) voice: Value,
    speed: f64,
    pub(super) tools: Vec<Value>,
    pub(super) tool_choice: Value,
    parallel_tool_calls: Option<bool>,
    reasoning: Option<Value>,
    /// `None`: `inf`.
    pub(super) max_output_tokens: Option<u64>,
    pub(super) truncation: Truncation,
    prompt: Value,
    tracing: Value,
    include: Vec<String>,
}

impl Settings {
    /// What a session begins with.
    pub(super) fn new(model: Model, instructions: String) -> Self {
        let reasoning = model.reasoning.then(|| json!({ "effort": "low" }));
        Self {
            only_writes: false,
            model,
            modality: Modality::Audio,
            instructions,
            input_format: Format::PCM_24K,
            noise_reduction: None,
            transcription: None,
            turn_detection: Some(TurnDetection::server()),
            output_format: Format::PCM_24K,
            voice: json!("marin"),
            speed: 1.0,
            tools: Vec::new(),
            tool_choice: json!("auto"),
            parallel_tool_calls: None,
            reasoning,
            max_output_tokens: None,
            truncation: Truncation::Auto,
            prompt: Value::Null,
            tracing: Value::Null,
            include: Vec::new(),
        }
    }

    /// What a session begins with that only writes down.
    pub(super) fn transcription() -> Self {
        let mut settings = Self::new(Model::none(), String::new());
        settings.only_writes = true;
        settings.turn_detection = Some(TurnDetection::server().without_replies());
        settings
    }

    /// The session's PCM is taken to be of this rate, whatever it is called.
    pub(super) fn hear_pcm_at(&mut self, rate: u32) {
        if self.input_format.codec == Codec::Pcm16 {
            self.input_format.rate = rate;
        }
    }

    /// Whether transcripts come with log probabilities.
    pub(super) fn logprobs(&self) -> bool {
        self.include.iter().any(|i| i == LOGPROBS)
    }

    /// Applies the `session` of a `session.update`. `audio_present`: the model has spoken, so the voice is fixed.
    pub(super) fn update(&mut self, session: &Value, audio_present: bool) -> Result<(), Refusal> {
        if self.only_writes {
            return self.update_transcription(session);
        }
        let mut allowed = SESSION_FIELDS.to_vec();
        allowed.push("include");
        let f = Fields::of(session, "session", &allowed)?;
        match f.need_text("type")? {
            "realtime" => {}
            "transcription" => {
                let message = "Passing a transcription session update event to a realtime session is not allowed.";
                return Err(Refusal::new("invalid_value", message).at("session.type"));
            }
            other => return Err(Refusal::choice("session.type", other, &["realtime", "transcription"])),
        }
        if f.text("model")?.is_some_and(|model| model != self.model.name) {
            let message = "The model of a session cannot be changed after it was created.";
            return Err(Refusal::new("invalid_value", message).at("session.model"));
        }
        self.update_shared(&f)?;
        if let Some(audio) = f.object("audio", &["input", "output"])? {
            if let Some(input) =
                audio.object("input", &["format", "noise_reduction", "transcription", "turn_detection"])?
            {
                self.update_input(&input)?;
            }
            if let Some(output) = audio.object("output", &["format", "voice", "speed"])? {
                self.update_output(&output, audio_present)?;
                self.speed = output.number("speed", 0.25, 1.5)?.unwrap_or(self.speed);
            }
        }
        self.update_rest(&f)
    }

    /// The few fields of a session that only writes down (realtime-protocol section 4.1).
    fn update_transcription(&mut self, session: &Value) -> Result<(), Refusal> {
        match session.get("type").and_then(Value::as_str) {
            Some("realtime") => {
                let message = "Passing a realtime session update event to a transcription session is not allowed.";
                return Err(Refusal::new("invalid_value", message).at("session.type"));
            }
            Some("transcription") | None => {}
            Some(other) => return Err(Refusal::choice("session.type", other, &["realtime", "transcription"])),
        }
        let f = Fields::of(session, "session", &["type", "audio", "include"])?;
        f.need_text("type")?;
        if let Some(audio) = f.object("audio", &["input"])?
            && let Some(input) =
                audio.object("input", &["format", "noise_reduction", "transcription", "turn_detection"])?
        {
            self.update_input(&input)?;
        }
        self.turn_detection = self.turn_detection.take().map(TurnDetection::without_replies);
        let model = self.transcription.as_ref().map(|t| t.model.as_str()).unwrap_or_default();
        if NO_TURNS.contains(&model) && self.turn_detection.is_some() {
            let message = format!("Turn detection is not supported with the transcription model '{model}'.");
            return Err(Refusal::new("invalid_value", message).at("session.audio.input.turn_detection"));
        }
        self.update_rest(&f)
    }

    /// Applies the fields that `response.create` has too, but for `input`, `metadata` and `conversation`.
    pub(super) fn override_for_response(&mut self, f: &Fields<'_>, audio_present: bool) -> Result<(), Refusal> {
        self.update_shared(f)?;
        if let Some(audio) = f.object("audio", &["output"])?
            && let Some(output) = audio.object("output", &["format", "voice"])?
        {
            self.update_output(&output, audio_present)?;
        }
        Ok(())
    }

    fn update_shared(&mut self, f: &Fields<'_>) -> Result<(), Refusal> {
        if let Some(modalities) = f.texts("output_modalities", 2)? {
            self.modality = match modalities.as_slice() {
                ["audio"] => Modality::Audio,
                ["text"] => Modality::Text,
                other => {
                    let message =
                        format!("Invalid modalities: {other:?}. Supported combinations are: ['text'] and ['audio'].");
                    return Err(Refusal::new("invalid_value", message).at(f.join("output_modalities")));
                }
            };
        }
        if f.raw("instructions").is_some() {
            self.instructions = f.text("instructions")?.unwrap_or_default().to_owned();
        }
        if f.raw("tools").is_some() {
            self.tools = read_tools(f)?;
        }
        if let Some(choice) = f.get("tool_choice") {
            self.tool_choice = read_tool_choice(f, choice)?;
        }
        self.parallel_tool_calls = f.flag("parallel_tool_calls")?.or(self.parallel_tool_calls);
        if let Some(reasoning) = f.object("reasoning", &["effort"])? {
            let effort = reasoning.choice("effort", &["minimal", "low", "medium", "high", "xhigh"])?;
            self.reasoning = Some(json!({ "effort": effort.unwrap_or("low") }));
        }
        match f.get("max_output_tokens") {
            None => {}
            Some(Value::String(text)) if text == "inf" => self.max_output_tokens = None,
            Some(Value::String(text)) => {
                return Err(Refusal::choice(&f.join("max_output_tokens"), text, &["inf"]));
            }
            Some(_) => self.max_output_tokens = f.integer("max_output_tokens", 1, 4_096)?,
        }
        if f.raw("prompt").is_some() {
            if let Some(prompt) = f.object("prompt", &["id", "version", "variables"])? {
                prompt.need_text("id")?;
            }
            self.prompt = f.raw("prompt").cloned().unwrap_or_default();
        }
        Ok(())
    }

    fn update_input(&mut self, f: &Fields<'_>) -> Result<(), Refusal> {
        if let Some(format) = read_format(f)? {
            self.input_format = format;
        }
        if f.is_null("noise_reduction") {
            self.noise_reduction = None;
        } else if let Some(reduction) = f.object("noise_reduction", &["type", "strength"])? {
            let mut shown = self.noise_reduction.take().unwrap_or_default();
            if let Some(kind) = reduction.choice("type", &["near_field", "far_field"])? {
                shown.insert("type".into(), json!(kind));
            } else if !shown.contains_key("type") {
                return Err(Refusal::missing(&reduction.join("type")));
            }
            if let Some(strength) = reduction.number("strength", 0.0, 1.0)? {
                shown.insert("strength".into(), json!(strength));
            }
            self.noise_reduction = Some(shown);
        }
        if f.is_null("transcription") {
            self.transcription = None;
        } else if let Some(fields) =
            f.object("transcription", &["model", "language", "languages", "keywords", "prompt", "delay"])?
        {
            self.transcription = Some(Transcription::merge(self.transcription.as_ref(), &fields)?);
        }
        if f.is_null("turn_detection") {
            self.turn_detection = None;
        } else if let Some(fields) = f.object(
            "turn_detection",
            &[
                "type",
                "threshold",
                "prefix_padding_ms",
                "silence_duration_ms",
                "idle_timeout_ms",
                "eagerness",
                "create_response",
                "interrupt_response",
            ],
        )? {
            self.turn_detection = Some(TurnDetection::merge(self.turn_detection.as_ref(), &fields)?);
        }
        Ok(())
    }

    fn update_output(&mut self, f: &Fields<'_>, audio_present: bool) -> Result<(), Refusal> {
        if let Some(format) = read_format(f)? {
            self.output_format = format;
        }
        let voice = match f.get("voice") {
            None => return Ok(()),
            Some(Value::String(name)) if VOICES.contains(&name.as_str()) => json!(name),
            Some(Value::String(name)) => return Err(Refusal::choice(&f.join("voice"), name, &VOICES)),
            Some(custom) => {
                let fields = Fields::of(custom, f.join("voice"), &["id"])?;
                fields.need_text("id")?;
                custom.clone()
            }
        };
        if audio_present && voice != self.voice {
            let message = "Cannot update a conversation's voice if assistant audio is present.";
            return Err(Refusal::new("cannot_update_voice", message).at(f.join("voice")));
        }
        self.voice = voice;
        Ok(())
    }

    fn update_rest(&mut self, f: &Fields<'_>) -> Result<(), Refusal> {
        match f.get("truncation") {
            None => {}
            Some(Value::String(_)) => {
                self.truncation = match f.choice("truncation", &["auto", "disabled"])? {
                    Some("disabled") => Truncation::Disabled,
                    _ => Truncation::Auto,
                };
            }
            Some(_) => {
                if let Some(fields) = f.object("truncation", &["type", "retention_ratio", "token_limits"])? {
                    self.truncation = self.read_retention(&fields)?;
                }
            }
        }
        if let Some(tracing) = f.raw("tracing")
            && *tracing != self.tracing
        {
            if !self.tracing.is_null() {
                let message = "Tracing cannot be changed once it is enabled for a session.";
                return Err(Refusal::new("invalid_value", message).at("session.tracing"));
            }
            match tracing {
                Value::String(_) => drop(f.choice("tracing", &["auto"])?),
                _ => drop(f.object("tracing", &["workflow_name", "group_id", "metadata"])?),
            }
            self.tracing = tracing.clone();
        }
        if f.raw("include").is_some() {
            let include = f.texts("include", 4)?.unwrap_or_default();
            if let Some(other) = include.iter().find(|i| **i != LOGPROBS) {
                return Err(Refusal::choice("session.include[0]", other, &[LOGPROBS]));
            }
            self.include = include.into_iter().map(str::to_owned).collect();
        }
        Ok(())
    }

    fn read_retention(&self, f: &Fields<'_>) -> Result<Truncation, Refusal> {
        f.choice("type", &["retention_ratio"])?.ok_or_else(|| Refusal::missing(&f.join("type")))?;
        let ratio =
            f.number("retention_ratio", 0.0, 1.0)?.ok_or_else(|| Refusal::missing(&f.join("retention_ratio")))?;
        let most = self.model.context_tokens.saturating_sub(self.model.max_output_tokens);
        let post_instructions = match f.object("token_limits", &["post_instructions"])? {
            Some(limits) => limits.integer("post_instructions", 1, most)?,
            None => None,
        };
        Ok(Truncation::Retain { ratio, post_instructions })
    }

    /// The session object of `session.created` and `session.updated`.
    pub(super) fn json(&self, id: &str, expires_at: u64) -> Value {
        if self.only_writes {
            return self.transcription_json(id, expires_at);
        }
        let mut session = json!({
            "type": "realtime",
            "object": "realtime.session",
            "id": id,
            "model": self.model.name,
            "output_modalities": [self.modality.name()],
            "instructions": self.instructions,
            "tools": self.tools,
            "tool_choice": self.tool_choice,
            "max_output_tokens": self.max_output_json(),
            "tracing": self.tracing,
            "truncation": self.truncation_json(),
            "prompt": self.prompt,
            "expires_at": expires_at,
            "audio": {
                "input": self.input_json(TurnDetection::json),
                "output": {
                    "format": format_json(self.output_format),
                    "voice": self.voice,
                    "speed": self.speed,
                },
            },
            "include": if self.include.is_empty() { Value::Null } else { json!(self.include) },
        });
        if let (Some(reasoning), Value::Object(map)) = (&self.reasoning, &mut session) {
            map.insert("reasoning".into(), reasoning.clone());
        }
        if let (Some(parallel), Value::Object(map)) = (self.parallel_tool_calls, &mut session) {
            map.insert("parallel_tool_calls".into(), json!(parallel));
        }
        session
    }

    fn transcription_json(&self, id: &str, expires_at: u64) -> Value {
        json!({
            "type": "transcription",
            "object": "realtime.transcription_session",
            "id": id,
            "expires_at": expires_at,
            "audio": { "input": self.input_json(TurnDetection::json_of_listening) },
            "include": if self.include.is_empty() { Value::Null } else { json!(self.include) },
        })
    }

    fn input_json(&self, detection: impl Fn(&TurnDetection) -> Value) -> Value {
        json!({
            "format": format_json(self.input_format),
            "transcription": self.transcription.as_ref().map(|t| &t.shown),
            "noise_reduction": self.noise_reduction,
            "turn_detection": self.turn_detection.as_ref().map(detection),
        })
    }

    /// `inf`, or the number.
    pub(super) fn max_output_json(&self) -> Value {
        self.max_output_tokens.map_or_else(|| json!("inf"), |n| json!(n))
    }

    fn truncation_json(&self) -> Value {
        match self.truncation {
            Truncation::Auto => json!("auto"),
            Truncation::Disabled => json!("disabled"),
            Truncation::Retain { ratio, post_instructions: None } => {
                json!({ "type": "retention_ratio", "retention_ratio": ratio })
            }
            Truncation::Retain { ratio, post_instructions: Some(most) } => json!({
                "type": "retention_ratio",
                "retention_ratio": ratio,
                "token_limits": { "post_instructions": most },
            }),
        }
    }
}

impl Transcription {
    fn merge(current: Option<&Self>, f: &Fields<'_>) -> Result<Self, Refusal> {
        let mut shown = current.map(|t| t.shown.clone()).unwrap_or_default();
        f.text_up_to("prompt", 1_024)?;
        f.text("language")?;
        f.texts("languages", 100)?;
        f.texts("keywords", 1_000)?;
        f.choice("delay", &["minimal", "low", "medium", "high", "xhigh"])?;
        for name in ["model", "language", "languages", "keywords", "prompt", "delay"] {
            match f.raw(name) {
                Some(Value::Null) => drop(shown.shift_remove(name)),
                Some(value) => drop(shown.insert(name.into(), value.clone())),
                None => {}
            }
        }
        let model = match (f.text("model")?, current) {
            (Some(model), _) => model.to_owned(),
            (None, Some(current)) if !f.is_null("model") => current.model.clone(),
            _ => return Err(Refusal::missing(&f.join("model"))),
        };
        if !["transcribe", "whisper"].iter().any(|kind| model.contains(kind)) {
            let known = ["gpt-transcribe", "gpt-live-transcribe", "gpt-4o-transcribe", "whisper-1"];
            return Err(Refusal::choice(&f.join("model"), &model, &known));
        }
        let newest = ["gpt-transcribe", "gpt-live-transcribe"].contains(&model.as_str());
        if let Some(name) = ["languages", "keywords"].iter().find(|name| shown.contains_key(**name) && !newest) {
            let message = format!("'{name}' is not supported by the transcription model '{model}'.");
            return Err(Refusal::new("invalid_value", message).at(f.join(name)));
        }
        Ok(Self { model, shown })
    }
}

fn read_format(f: &Fields<'_>) -> Result<Option<Format>, Refusal> {
    let Some(fields) = f.object("format", &["type", "rate"])? else { return Ok(None) };
    let kind = fields
        .choice("type", &["audio/pcm", "audio/pcmu", "audio/pcma"])?
        .ok_or_else(|| Refusal::missing(&fields.join("type")))?;
    Ok(Some(match kind {
        "audio/pcm" => {
            let rate = fields.integer("rate", PCM_RATES.0, PCM_RATES.1)?.unwrap_or(PCM_RATES.0);
            Format { codec: Codec::Pcm16, rate: u32::try_from(rate).unwrap_or(24_000) }
        }
        other => {
            fields.integer("rate", 8_000, 8_000)?;
            if other == "audio/pcmu" { Format::MULAW } else { Format::ALAW }
        }
    }))
}

/// A format as the service writes it.
pub(super) fn format_json(format: Format) -> Value {
    match format.codec {
        Codec::Mulaw => json!({ "type": "audio/pcmu" }),
        Codec::Alaw => json!({ "type": "audio/pcma" }),
        Codec::Pcm16 | Codec::Opus => json!({ "type": "audio/pcm", "rate": format.rate }),
    }
}

fn read_tools(f: &Fields<'_>) -> Result<Vec<Value>, Refusal> {
    let tools = f.array("tools", 1_024)?.unwrap_or_default();
    for (at, tool) in tools.iter().enumerate() {
        let path = format!("{}[{at}]", f.join("tools"));
        if !tool.is_object() {
            return Err(Refusal::wrong_type(&path, "an object", tool));
        }
        match tool.get("type").and_then(Value::as_str) {
            Some("function") => {
                let fields = Fields::of(tool, path, &["type", "name", "description", "parameters"])?;
                fields.need_text("name")?;
                fields.text("description")?;
                if let Some(other) = fields.get("parameters").filter(|p| !p.is_object()) {
                    return Err(Refusal::wrong_type(&fields.join("parameters"), "an object", other));
                }
            }
            Some("mcp") if tool.get("server_label").is_some_and(Value::is_string) => {}
            Some("mcp") => return Err(Refusal::missing(&format!("{path}.server_label"))),
            Some(other) => return Err(Refusal::choice(&format!("{path}.type"), other, &["function", "mcp"])),
            None => return Err(Refusal::missing(&format!("{path}.type"))),
        }
    }
    Ok(tools.to_vec())
}

fn read_tool_choice(f: &Fields<'_>, choice: &Value) -> Result<Value, Refusal> {
    if choice.is_string() {
        return Ok(json!(f.choice("tool_choice", &["auto", "none", "required"])?));
    }
    let path = f.join("tool_choice");
    let fields = Fields::of(choice, &path, &["type", "name", "server_label"])?;
    match fields.need_text("type")? {
        "function" => drop(fields.need_text("name")?),
        "mcp" => drop(fields.need_text("server_label")?),
        other => return Err(Refusal::choice(&format!("{path}.type"), other, &["function", "mcp"])),
    }
    Ok(choice.clone())
}

#[cfg(test)]
mod tests {
    use super::{super::config::SimConfig, *};

    fn settings(model: &str) -> Settings {
        Settings::new(SimConfig::default().model(model).unwrap(), "Be kind.".into())
    }

    fn update(settings: &mut Settings, session: Value) -> Result<(), (String, String)> {
        settings
            .update(&session, false)
            .map_err(|refusal| (refusal.code.unwrap_or_default().into_owned(), refusal.param.unwrap_or_default()))
    }

    #[test]
    fn an_update_is_a_deep_merge() {
        let mut s = settings("gpt-realtime");
        let vad = json!({ "type": "server_vad", "silence_duration_ms": 500, "idle_timeout_ms": 6_000 });
        update(&mut s, json!({ "type": "realtime", "audio": { "input": { "turn_detection": vad } } })).unwrap();
        let more = json!({ "turn_detection": { "threshold": 0.7 }, "transcription": { "model": "gpt-transcribe" } });
        update(&mut s, json!({ "type": "realtime", "audio": { "input": more } })).unwrap();
        let more = json!({ "transcription": { "language": "en" }, "format": { "type": "audio/pcmu" } });
        update(&mut s, json!({ "type": "realtime", "audio": { "input": more } })).unwrap();
        let input = s.json("sess_1", 9)["audio"]["input"].clone();
        assert_eq!(
            input,
            json!({
                "format": { "type": "audio/pcmu" },
                "transcription": { "model": "gpt-transcribe", "language": "en" },
                "noise_reduction": null,
                "turn_detection": {
                    "type": "server_vad", "threshold": 0.7, "prefix_padding_ms": 300, "silence_duration_ms": 500,
                    "idle_timeout_ms": 6_000, "create_response": true, "interrupt_response": true,
                },
            })
        );
        let off = json!({ "turn_detection": null, "transcription": null });
        update(&mut s, json!({ "type": "realtime", "instructions": "", "audio": { "input": off } })).unwrap();
        let session = s.json("sess_1", 9);
        assert_eq!(session["audio"]["input"]["turn_detection"], Value::Null);
        assert_eq!(session["instructions"], "");
    }

    #[test]
    fn changing_the_kind_of_vad_starts_from_its_defaults() {
        let mut s = settings("gpt-realtime");
        let semantic = json!({ "turn_detection": { "type": "semantic_vad", "eagerness": "high" } });
        update(&mut s, json!({ "type": "realtime", "audio": { "input": semantic } })).unwrap();
        assert_eq!(s.turn_detection.as_ref().unwrap().vad(SemanticSilence::default()).2, 2_000);
        let back = json!({ "turn_detection": { "type": "server_vad" } });
        update(&mut s, json!({ "type": "realtime", "audio": { "input": back } })).unwrap();
        assert_eq!(s.turn_detection, Some(TurnDetection::server()));
    }

    #[test]
    fn bad_fields_are_named() {
        let input = |input: Value| json!({ "type": "realtime", "audio": { "input": input } });
        for (session, code, param) in [
            (json!({}), "missing_required_parameter", "session.type"),
            (json!({ "type": "transcription" }), "invalid_value", "session.type"),
            (json!({ "type": "realtime", "bogus_field": 1 }), "unknown_parameter", "session.bogus_field"),
            (json!({ "type": "realtime", "temperature": 0.8 }), "unknown_parameter", "session.temperature"),
            (json!({ "type": "realtime", "model": "gpt-realtime-2" }), "invalid_value", "session.model"),
            (
                json!({ "type": "realtime", "output_modalities": ["audio", "text"] }),
                "invalid_value",
                "session.output_modalities",
            ),
            (
                json!({ "type": "realtime", "max_output_tokens": 0 }),
                "integer_below_min_value",
                "session.max_output_tokens",
            ),
            (
                input(json!({ "format": { "type": "audio/pcm", "rate": 16_000 } })),
                "integer_below_min_value",
                "session.audio.input.format.rate",
            ),
            (input(json!({ "format": { "type": "pcm16" } })), "invalid_value", "session.audio.input.format.type"),
            (
                input(json!({ "transcription": { "model": "whisper-1", "prompt": "x".repeat(1_025) } })),
                "string_above_max_length",
                "session.audio.input.transcription.prompt",
            ),
            (
                input(json!({ "transcription": { "model": "whisper-1", "keywords": ["a"] } })),
                "invalid_value",
                "session.audio.input.transcription.keywords",
            ),
            (
                input(json!({ "turn_detection": { "type": "server_vad", "eagerness": "low" } })),
                "unknown_parameter",
                "session.audio.input.turn_detection.eagerness",
            ),
            (
                input(json!({ "turn_detection": { "type": "server_vad", "idle_timeout_ms": 100 } })),
                "integer_below_min_value",
                "session.audio.input.turn_detection.idle_timeout_ms",
            ),
            (
                json!({ "type": "realtime", "audio": { "output": { "voice": "darth" } } }),
                "invalid_value",
                "session.audio.output.voice",
            ),
            (
                json!({ "type": "realtime", "tools": [{ "type": "function" }] }),
                "missing_required_parameter",
                "session.tools[0].name",
            ),
        ] {
            let got = update(&mut settings("gpt-realtime"), session.clone());
            assert_eq!(got, Err((code.to_owned(), param.to_owned())), "{session}");
        }
    }

    #[test]
    fn the_voice_is_fixed_once_the_model_has_spoken() {
        let session = |voice: &str| json!({ "type": "realtime", "audio": { "output": { "voice": voice } } });
        let mut s = settings("gpt-realtime");
        s.update(&session("cedar"), false).unwrap();
        s.update(&session("cedar"), true).unwrap();
        let refusal = s.update(&session("ash"), true).unwrap_err();
        assert_eq!(refusal.code.as_deref(), Some("cannot_update_voice"));
    }

    #[test]
    fn reasoning_is_shown_where_the_model_has_it() {
        assert_eq!(settings("gpt-realtime-2.1").json("s", 1)["reasoning"], json!({ "effort": "low" }));
        assert_eq!(settings("gpt-realtime").json("s", 1).get("reasoning"), None);
    }
}
