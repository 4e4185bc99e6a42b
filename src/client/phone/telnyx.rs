//! Telnyx media streaming, bidirectional in `rtp` mode.
//!
//! Source: Telnyx's media-streaming reference, pipecat 1.14 and field reports, read 2026-08; tests/golden/phone/telnyx_*.jsonl. Media may
//! come in any order; the codec that comes is the leg's (PCMU in the US, often PCMA in Europe), the one that goes is what the markup asked
//! for. The order of bytes of its L16 is contested. Our messages need no id, and hold 20 ms to 30 s.
use std::time::Duration;

use serde_json::json;

use super::{Habits, json::Table};

/// Where things stand.
pub static TABLE: Table = Table {
    habits: Habits {
        name: "telnyx",
        protocol: "",
        lead: Duration::from_millis(200),
        mark_every: Some(Duration::from_millis(200)),
        reorders: true,
        odd_bytes: true,
        max_message: 256 << 10,
    },
    stream: "/stream_id",
    call: "/start/call_control_id",
    parties: ("/start/from", "/start/to"),
    params: "/start/custom_parameters",
    media: ("/start/media_format/encoding", "/start/media_format/sample_rate"),
    reached: ("mark", "/mark/name"),
    audio: |_, _| (r#"{"event":"media","media":{"payload":""#.to_owned(), r#""}}"#),
    mark: |_, name| json!({"event": "mark", "mark": {"name": name}}),
    clear: |_| json!({"event": "clear"}),
    press: None,
};
