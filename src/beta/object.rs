//! Sessions, items and replies in both shapes. Fields that are in neither list stay where they are.
use serde_json::{Map, Value, json};

type Object = Map<String, Value>;

/// Fields of a session: the beta's flat name, and GA's place.
const SESSION: [(&str, [&str; 3]); 7] = [
    ("input_audio_format", ["audio", "input", "format"]),
    ("input_audio_transcription", ["audio", "input", "transcription"]),
    ("input_audio_noise_reduction", ["audio", "input", "noise_reduction"]),
    ("turn_detection", ["audio", "input", "turn_detection"]),
    ("output_audio_format", ["audio", "output", "format"]),
    ("voice", ["audio", "output", "voice"]),
    ("speed", ["audio", "output", "speed"]),
];

/// What GA has and the beta's types do not.
const GA_ONLY: [&str; 6] = ["include", "parallel_tool_calls", "prompt", "reasoning", "truncation", "type"];

/// Finer settings of GA.
const FINER: [(&str, &[&str]); 3] = [
    ("turn_detection", &["idle_timeout_ms"]),
    ("input_audio_noise_reduction", &["strength"]),
    ("input_audio_transcription", &["languages", "keywords", "delay"]),
];

/// Whether only the beta has such a field at the top of a session.
pub(super) fn is_beta_field(name: &str) -> bool {
    ["modalities", "max_response_output_tokens", "temperature"].contains(&name)
        || SESSION.iter().any(|(flat, _)| *flat == name)
}

/// A session of the beta becomes one of GA.
pub(super) fn session_to_ga(session: &mut Object, transcription: bool) {
    session.shift_remove("temperature");
    session.shift_remove("client_secret");
    nest(session);
    rename(session, "max_response_output_tokens", "max_output_tokens", |tokens| tokens);
    match session.shift_remove("modalities") {
        Some(modalities) if !transcription => {
            session.insert("output_modalities".into(), modalities_to_ga(&modalities));
        }
        _ => {}
    }
    let kind = if transcription { "transcription" } else { "realtime" };
    session.shift_insert(0, "type".into(), json!(kind));
}

/// A session of GA becomes one of the beta.
pub(super) fn session_to_beta(session: &mut Object) {
    let transcription = session.get("type") == Some(&json!("transcription"));
    flatten(session);
    rename(session, "max_output_tokens", "max_response_output_tokens", |tokens| tokens);
    rename(session, "output_modalities", "modalities", |modalities| modalities_to_beta(&modalities));
    let include = session.get("include").cloned().filter(|_| transcription);
    GA_ONLY.iter().for_each(|name| drop(session.shift_remove(*name)));
    include.into_iter().for_each(|include| drop(session.insert("include".into(), include)));
    for (field, finer) in FINER {
        if let Some(Value::Object(object)) = session.get_mut(field) {
            finer.iter().for_each(|name| drop(object.shift_remove(*name)));
        }
    }
    // Only functions are tools there.
    if let Some(Value::Array(tools)) = session.get_mut("tools") {
        tools.retain(|tool| tool.get("type").is_none_or(|kind| kind == "function"));
    }
}

/// What a service in the shape of the beta would refuse in an update, and the whole update with it: it knows this itself.
pub(super) fn leave_out_what_is_known(session: &mut Object) {
    ["object", "id", "expires_at", "model"].iter().for_each(|name| drop(session.shift_remove(*name)));
}

/// What a `response.create` asks for, from the beta.
pub(super) fn request_to_ga(response: &mut Object) {
    response.shift_remove("temperature");
    nest(response);
    rename(response, "max_response_output_tokens", "max_output_tokens", |tokens| tokens);
    rename(response, "modalities", "output_modalities", |modalities| modalities_to_ga(&modalities));
    each_item(response, "input", item_to_ga);
}

/// What a `response.create` asks for, for the beta.
pub(super) fn request_to_beta(response: &mut Object) {
    flatten(response);
    rename(response, "max_output_tokens", "max_response_output_tokens", |tokens| tokens);
    rename(response, "output_modalities", "modalities", |modalities| modalities_to_beta(&modalities));
    GA_ONLY.iter().for_each(|name| drop(response.shift_remove(*name)));
    each_item(response, "input", item_to_beta);
}

/// A reply, as the service of the beta tells of it.
pub(super) fn reply_to_ga(response: &mut Object) {
    response.shift_remove("temperature");
    nest(response);
    rename(response, "modalities", "output_modalities", |modalities| modalities_to_ga(&modalities));
    each_item(response, "output", item_to_ga);
}

/// A reply, as a client of the beta is told of it.
pub(super) fn reply_to_beta(response: &mut Object) {
    flatten(response);
    rename(response, "output_modalities", "modalities", |modalities| modalities_to_beta(&modalities));
    each_item(response, "output", item_to_beta);
    // Splits of counts that the beta does not make.
    if let Some(details) = response.get_mut("usage").and_then(|usage| usage.get_mut("input_token_details")) {
        let details = details.as_object_mut();
        details.into_iter().for_each(|d| {
            ["image_tokens", "cached_tokens_details"].iter().for_each(|name| drop(d.shift_remove(*name)))
        });
    }
}

/// An item, whose contents have other names.
pub(super) fn item_to_ga(item: &mut Object) {
    contents(item, |kind| match kind {
        "text" => Some("output_text"),
        "audio" => Some("output_audio"),
        _ => None,
    });
}

/// The way back.
pub(super) fn item_to_beta(item: &mut Object) {
    contents(item, |kind| match kind {
        "output_text" => Some("text"),
        "output_audio" => Some("audio"),
        _ => None,
    });
}

fn contents(item: &mut Object, name: impl Fn(&str) -> Option<&'static str>) {
    let Some(Value::Array(contents)) = item.get_mut("content") else { return };
    for content in contents.iter_mut().filter_map(Value::as_object_mut) {
        if let Some(other) = content.get("type").and_then(Value::as_str).and_then(&name) {
            content.insert("type".into(), json!(other));
        }
    }
}

fn each_item(object: &mut Object, field: &str, translate: impl Fn(&mut Object)) {
    if let Some(Value::Array(items)) = object.get_mut(field) {
        items.iter_mut().filter_map(Value::as_object_mut).for_each(translate);
    }
}

/// Moves flat fields to their places under `audio`.
fn nest(object: &mut Object) {
    for (flat, [audio, side, field]) in SESSION {
        let Some(value) = object.shift_remove(flat) else { continue };
        let value = if field == "format" { format_to_ga(value) } else { value };
        let audio = object.entry(audio).or_insert(json!({}));
        let Some(audio) = audio.as_object_mut() else { continue };
        if let Some(side) = audio.entry(side).or_insert(json!({})).as_object_mut() {
            side.insert(field.into(), value);
        }
    }
}

/// Moves what is under `audio` to its flat fields.
fn flatten(object: &mut Object) {
    let Some(mut audio) = object.shift_remove("audio") else { return };
    for (flat, [_, side, field]) in SESSION {
        let side = audio.get_mut(side).and_then(Value::as_object_mut);
        let Some(value) = side.and_then(|side| side.shift_remove(field)) else { continue };
        let value = match field {
            "format" => format_to_beta(&value),
            // A voice of one's own has an id there, and is named by it here.
            "voice" => value.get("id").cloned().unwrap_or(value),
            _ => value,
        };
        object.insert(flat.into(), value);
    }
}

/// Whether this is one of the names that PCM has among services of the beta (alibabacloud help pages, read 2026-11).
pub(super) fn is_pcm(format: &Value) -> bool {
    format.as_str().is_some_and(|name| ["pcm16", "pcm", "pcm24"].contains(&name))
}

fn format_to_ga(format: Value) -> Value {
    match format.as_str() {
        Some(_) if is_pcm(&format) => json!({"type": "audio/pcm", "rate": 24_000}),
        Some("g711_ulaw") => json!({"type": "audio/pcmu"}),
        Some("g711_alaw") => json!({"type": "audio/pcma"}),
        // Whoever reads it says what is allowed.
        Some(other) => json!({"type": other}),
        None => format,
    }
}

fn format_to_beta(format: &Value) -> Value {
    match format.get("type").and_then(Value::as_str) {
        Some("audio/pcm") => json!("pcm16"),
        Some("audio/pcmu") => json!("g711_ulaw"),
        Some("audio/pcma") => json!("g711_alaw"),
        Some(other) => json!(other),
        None => format.clone(),
    }
}

/// GA answers in sound, which has a transcript, or in text: never in both.
fn modalities_to_ga(modalities: &Value) -> Value {
    match modalities.as_array() {
        Some(list) if list.contains(&json!("audio")) => json!(["audio"]),
        _ => modalities.clone(),
    }
}

fn modalities_to_beta(modalities: &Value) -> Value {
    match modalities.as_array() {
        Some(list) if list.contains(&json!("audio")) => json!(["text", "audio"]),
        _ => modalities.clone(),
    }
}

fn rename(object: &mut Object, from: &str, to: &str, change: impl FnOnce(Value) -> Value) {
    if let Some(value) = object.shift_remove(from) {
        object.insert(to.into(), change(value));
    }
}
