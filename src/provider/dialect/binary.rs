//! The second shape: audio as bare binary messages, JSON beside it.
use serde_json::Value;

use super::{Command, excerpt};
use crate::provider::wire::Message;

/// What the relay means: audio as it is, control as `control` reads it.
pub(super) fn take(message: &Message, control: impl FnOnce(&Value) -> Command) -> Vec<Command> {
    vec![match message {
        Message::Binary(audio) => Command::Play(audio.clone()),
        Message::Close { .. } => Command::HangUp,
        Message::Text(text) => match serde_json::from_str(text) {
            Ok(message) => control(&message),
            Err(_) => Command::Fault(format!("a text message that is not JSON: {}", excerpt(text))),
        },
    }]
}
