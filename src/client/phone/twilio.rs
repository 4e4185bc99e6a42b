//! Twilio Media Streams, bidirectional (`<Connect><Stream>`): the dialect that others copy.
//!
//! Source: Twilio's WebSocket message reference and openai-agents-js 0.18, read 2026-08; tests/golden/phone/twilio.jsonl. Other
//! messages than ours are its error 31924, binary ones its warning 31950. A mark is echoed when the audio before it was played, and also
//! when a clear drops it.
use std::time::Duration;

use serde_json::json;

use super::{Habits, json::Table};

/// Where things stand.
pub static TABLE: Table = Table {
    habits: Habits {
        name: "twilio",
        protocol: "",
        lead: Duration::from_millis(200),
        mark_every: Some(Duration::from_millis(200)),
        reorders: false,
        odd_bytes: false,
        max_message: 64 << 10,
    },
    stream: "/start/streamSid",
    call: "/start/callSid",
    parties: ("", ""),
    params: "/start/customParameters",
    media: ("/start/mediaFormat/encoding", "/start/mediaFormat/sampleRate"),
    reached: ("mark", "/mark/name"),
    audio: |stream, _| (format!(r#"{{"event":"media","streamSid":{stream},"media":{{"payload":""#), r#""}}"#),
    mark: |stream, name| json!({"event": "mark", "streamSid": stream, "mark": {"name": name}}),
    clear: |stream| json!({"event": "clear", "streamSid": stream}),
    press: None,
};
