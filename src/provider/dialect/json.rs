//! The first shape: JSON text with base64 audio in it. The verbs are a table; reading them is the same for all.
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde_json::Value;

use super::{Command, excerpt, string};
use crate::provider::wire::Message;

/// The names of things in what the relay sends.
#[derive(Debug)]
pub(super) struct Verbs {
    /// Audio.
    pub(super) media: &'static str,
    /// A mark, and where its name stands.
    pub(super) mark: (&'static str, &'static [&'static str]),
    /// Drop what is queued.
    pub(super) clear: &'static str,
    /// Keys into the call, and where they stand.
    pub(super) digits: Option<(&'static str, &'static [&'static str])>,
    /// Where each message must name the stream; `None`: it need not.
    pub(super) stream: Option<&'static str>,
    /// The provider's complaint about a verb that it does not know.
    pub(super) unknown: &'static str,
    /// Its complaint about a binary message.
    pub(super) binary: &'static str,
}

/// What the relay means. `check` looks at an audio message beyond its payload.
pub(super) fn take(
    verbs: &Verbs,
    stream: &str,
    message: &Message,
    check: impl Fn(&Value) -> Option<String>,
) -> Vec<Command> {
    let fault = |text: String| vec![Command::Fault(text)];
    let text = match message {
        Message::Text(text) => text,
        Message::Binary(bytes) => return fault(format!("{}: {} bytes", verbs.binary, bytes.len())),
        Message::Close { .. } => return vec![Command::HangUp],
    };
    let Ok(message) = serde_json::from_str::<Value>(text) else {
        return fault(format!("{}: not JSON: {}", verbs.unknown, excerpt(text)));
    };
    let event = string(&message, &["event"]).unwrap_or_default();
    let known = [Some(verbs.media), Some(verbs.mark.0), Some(verbs.clear), verbs.digits.map(|digits| digits.0)];
    if !known.contains(&Some(event)) {
        return fault(format!("{}: `{}`", verbs.unknown, excerpt(event)));
    }
    if let Some(key) = verbs.stream {
        match string(&message, &[key]) {
            Some(found) if found == stream => {}
            found => {
                let found = excerpt(found.unwrap_or("nothing"));
                return fault(format!("`{event}` names the stream {found} in `{key}`; allowed: {stream}"));
            }
        }
    }
    if event == verbs.media {
        return match audio(&message).and_then(|audio| check(&message).map_or(Ok(audio), Err)) {
            Ok(audio) => vec![Command::Play(audio)],
            Err(text) => fault(text),
        };
    }
    if event == verbs.mark.0 {
        let path = verbs.mark.1;
        return match string(&message, path) {
            Some(name) => vec![Command::Mark(name.to_owned())],
            None => fault(format!("`{event}` has no string `{}`", path.join("."))),
        };
    }
    if event == verbs.clear {
        return vec![Command::Clear];
    }
    let digits = verbs.digits.and_then(|(_, path)| string(&message, path));
    match digits.filter(|digits| !digits.is_empty() && digits.chars().all(is_key)) {
        Some(digits) => vec![Command::Digits(digits.to_owned())],
        None => fault(format!("`{event}` holds no keys; allowed: 0-9 * # A-D w")),
    }
}

fn audio(message: &Value) -> Result<Bytes, String> {
    let payload = string(message, &["media", "payload"]).ok_or("`media.payload` is missing or no string")?;
    let bytes = STANDARD.decode(payload).map_err(|error| format!("`media.payload` is not base64: {error}"))?;
    if bytes.is_empty() { Err("`media.payload` is empty".to_owned()) } else { Ok(bytes.into()) }
}

fn is_key(key: char) -> bool {
    key.is_ascii_digit() || "*#ABCDabcdwW".contains(key)
}

/// Bytes as they stand in JSON.
pub(super) fn payload(frame: &[u8]) -> String {
    STANDARD.encode(frame)
}
