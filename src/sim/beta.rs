//! The shape of the beta, as compatible servers still have it (Qwen, speaches; Azure's preview): flat sessions, other names
//! of the audio and text events, one `conversation.item.created` an item.
//!
//! The session inside speaks GA; this is its mouth and ear. Written from the protocol reference by hand and not with the
//! relay's own translation, so that a mistake there does not meet itself here.
use serde_json::{Map, Value, json};

use super::validate::{Refusal, shorten};

/// Flat fields of a session, and where GA has them.
const INPUT: [(&str, &str); 4] = [
    ("input_audio_format", "format"),
    ("input_audio_transcription", "transcription"),
    ("input_audio_noise_reduction", "noise_reduction"),
    ("turn_detection", "turn_detection"),
];
const OUTPUT: [(&str, &str); 3] = [("output_audio_format", "format"), ("voice", "voice"), ("speed", "speed")];
/// Fields that both have under the same name.
const BOTH: [&str; 6] = ["instructions", "tools", "tool_choice", "tracing", "model", "include"];
/// What only requests for a reply have.
const REQUEST: [&str; 4] = ["conversation", "metadata", "input", "instructions"];
const FORMATS: [(&str, &str); 3] = [("pcm16", "audio/pcm"), ("g711_ulaw", "audio/pcmu"), ("g711_alaw", "audio/pcma")];

/// A client's event in GA; `transcription`: the session only writes down.
pub(super) fn heard(mut event: Value, transcription: bool) -> Result<Value, Refusal> {
    let kind = event.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
    match kind.as_str() {
        "session.update" if transcription => {
            let message = "Use transcription_session.update in a transcription session.";
            return Err(Refusal::new("invalid_value", message).at("type"));
        }
        "transcription_session.update" if !transcription => {
            let message = "This session is no transcription session.";
            return Err(Refusal::new("invalid_value", message).at("type"));
        }
        "session.update" | "transcription_session.update" => {
            event["type"] = json!("session.update");
            if let Some(session) = event.get("session").and_then(Value::as_object) {
                event["session"] = session_heard(session, transcription)?;
            }
        }
        "response.create" => {
            if let Some(response) = event.get("response").and_then(Value::as_object) {
                event["response"] = request_heard(response)?;
            }
        }
        "conversation.item.create" => item_heard(event.get_mut("item")),
        _ => {}
    }
    Ok(event)
}

fn session_heard(flat: &Map<String, Value>, transcription: bool) -> Result<Value, Refusal> {
    let mut ga = json!({"type": if transcription { "transcription" } else { "realtime" }});
    for (name, value) in flat {
        let name = name.as_str();
        match name {
            "modalities" if transcription => {}
            "temperature" => temperature(value, "session.temperature")?,
            _ if shared(&mut ga, name, value, "session")? => {}
            _ if BOTH.contains(&name) => ga[name] = value.clone(),
            _ => return Err(Refusal::unknown(&format!("session.{}", shorten(name)))),
        }
    }
    Ok(ga)
}

fn request_heard(flat: &Map<String, Value>) -> Result<Value, Refusal> {
    let mut ga = json!({});
    for (name, value) in flat {
        let name = name.as_str();
        match name {
            "temperature" => temperature(value, "response.temperature")?,
            _ if shared(&mut ga, name, value, "response")? => {}
            _ if BOTH.contains(&name) || REQUEST.contains(&name) => ga[name] = value.clone(),
            _ => return Err(Refusal::unknown(&format!("response.{}", shorten(name)))),
        }
    }
    if let Some(Value::Array(items)) = ga.get_mut("input") {
        items.iter_mut().for_each(|item| item_heard(Some(item)));
    }
    Ok(ga)
}

/// Fields of sessions and of requests for a reply; whether it was one.
fn shared(ga: &mut Value, name: &str, value: &Value, path: &str) -> Result<bool, Refusal> {
    let path = format!("{path}.{name}");
    if let Some((_, place)) = INPUT.iter().find(|(flat, _)| *flat == name) {
        ga["audio"]["input"][*place] = if *place == "format" { format_heard(value, &path)? } else { value.clone() };
    } else if let Some((_, place)) = OUTPUT.iter().find(|(flat, _)| *flat == name) {
        ga["audio"]["output"][*place] = if *place == "format" { format_heard(value, &path)? } else { value.clone() };
    } else if name == "max_response_output_tokens" {
        ga["max_output_tokens"] = value.clone();
    } else if name == "modalities" {
        // Sound comes with its words; alone it is refused (alibabacloud help pages, read 2026-11).
        ga["output_modalities"] =
            match value.as_array().map(|list| list.iter().filter_map(Value::as_str).collect::<Vec<_>>()) {
                Some(list) if list == ["text"] => json!(["text"]),
                Some(list) if list.len() == 2 && list.contains(&"text") && list.contains(&"audio") => json!(["audio"]),
                _ => {
                    let message = format!(
                        "Invalid modalities: {}. Supported combinations are: ['text'] and ['audio', 'text'].",
                        shorten(&value.to_string())
                    );
                    return Err(Refusal::new("invalid_value", message).at(path));
                }
            };
    } else {
        return Ok(false);
    }
    Ok(true)
}

fn temperature(value: &Value, path: &str) -> Result<(), Refusal> {
    match value.as_f64() {
        Some(heat) if (0.6..=1.2).contains(&heat) => Ok(()),
        _ => {
            let message = format!("Invalid '{path}': expected a number from 0.6 to 1.2.");
            Err(Refusal::new("invalid_value", message).at(path))
        }
    }
}

fn format_heard(value: &Value, path: &str) -> Result<Value, Refusal> {
    let name = value.as_str().unwrap_or_default();
    match FORMATS.iter().find(|(flat, _)| *flat == name) {
        Some(("pcm16", ga)) => Ok(json!({"type": ga, "rate": 24_000})),
        Some((_, ga)) => Ok(json!({"type": ga})),
        None => Err(Refusal::choice(path, &shorten(&value.to_string()), &FORMATS.map(|(flat, _)| flat))),
    }
}

fn item_heard(item: Option<&mut Value>) {
    for part in parts(item) {
        match part["type"].as_str() {
            Some("text") => part["type"] = json!("output_text"),
            Some("audio") => part["type"] = json!("output_audio"),
            _ => {}
        }
    }
}

/// A GA event as the beta says it; `None`: it says nothing.
pub(super) fn said(kind: &str, mut fields: Value) -> Option<(String, Value)> {
    let kind = match kind {
        "conversation.item.done" | "input_audio_buffer.timeout_triggered" => return None,
        "conversation.item.added" => "conversation.item.created".to_owned(),
        "session.created" | "session.updated" => {
            let transcription = fields["session"]["type"] == "transcription";
            fields["session"] = session_said(&fields["session"]);
            if transcription { format!("transcription_{kind}") } else { kind.to_owned() }
        }
        "response.created" | "response.done" => {
            fields["response"] = reply_said(&fields["response"]);
            kind.to_owned()
        }
        "response.function_call_arguments.done" => {
            fields.as_object_mut()?.shift_remove("name");
            kind.to_owned()
        }
        "error" => {
            if let Some(param) = fields["error"]["param"].as_str() {
                fields["error"]["param"] = json!(param_said(param));
            }
            kind.to_owned()
        }
        _ => kind.replace("response.output_audio", "response.audio").replace("response.output_text", "response.text"),
    };
    for part in parts(fields.get_mut("item")) {
        part_said(part);
    }
    Some((kind, fields))
}

fn session_said(ga: &Value) -> Value {
    let mut flat = Map::new();
    for name in ["id", "object", "model", "instructions", "tools", "tool_choice", "tracing", "expires_at"] {
        if let Some(value) = ga.get(name) {
            flat.insert(name.into(), value.clone());
        }
    }
    if let Some(modalities) = ga.get("output_modalities") {
        flat.insert("modalities".into(), modalities_said(modalities));
        flat.insert("temperature".into(), json!(0.8));
        flat.insert("max_response_output_tokens".into(), ga["max_output_tokens"].clone());
    }
    for (side, fields) in [("input", &INPUT[..]), ("output", &OUTPUT[..])] {
        for (name, place) in fields {
            if let Some(value) = ga["audio"][side].get(*place) {
                flat.insert((*name).into(), if *place == "format" { format_said(value) } else { value.clone() });
            }
        }
    }
    Value::Object(flat)
}

fn reply_said(ga: &Value) -> Value {
    let mut flat = ga.clone();
    let Some(map) = flat.as_object_mut() else { return flat };
    let audio = map.shift_remove("audio").unwrap_or_default();
    if let Some(modalities) = map.shift_remove("output_modalities") {
        map.insert("modalities".into(), modalities_said(&modalities));
    }
    map.insert("voice".into(), audio["output"]["voice"].clone());
    map.insert("output_audio_format".into(), format_said(&audio["output"]["format"]));
    map.insert("temperature".into(), json!(0.8));
    if let Some(Value::Array(items)) = map.get_mut("output") {
        items.iter_mut().flat_map(|item| parts(Some(item))).for_each(part_said);
    }
    flat
}

fn modalities_said(ga: &Value) -> Value {
    if ga[0] == "audio" { json!(["text", "audio"]) } else { json!(["text"]) }
}

fn format_said(ga: &Value) -> Value {
    FORMATS.iter().find(|(_, name)| ga["type"] == *name).map_or(Value::Null, |(flat, _)| json!(flat))
}

fn part_said(part: &mut Value) {
    match part["type"].as_str() {
        Some("output_text") => part["type"] = json!("text"),
        Some("output_audio") => part["type"] = json!("audio"),
        _ => {}
    }
}

/// A refusal names the field that the client knows.
fn param_said(param: &str) -> String {
    for (side, fields) in [("input", &INPUT[..]), ("output", &OUTPUT[..])] {
        for (name, place) in fields {
            let ga = format!("audio.{side}.{place}");
            if param.contains(&ga) {
                return param.replace(&ga, name);
            }
        }
    }
    param.replace("max_output_tokens", "max_response_output_tokens").replace("output_modalities", "modalities")
}

fn parts(item: Option<&mut Value>) -> impl Iterator<Item = &mut Value> {
    let content = item.and_then(|item| item.get_mut("content")).and_then(Value::as_array_mut);
    content.into_iter().flatten().filter(|part| part.is_object())
}
