//! Plivo audio streams, bidirectional (`<Stream bidirectional="true">`).
//!
//! Source: Plivo's audio-streaming reference and pipecat 1.14, read 2026-08; tests/golden/phone/plivo.jsonl. Counters are numbers; there is
//! no `connected` and no `stop`: the socket closes. `playedStream` comes only for what was really played.
use std::time::Duration;

use serde_json::json;

use super::{Habits, json::Table};
use crate::audio::Codec;

/// Where things stand.
pub static TABLE: Table = Table {
    habits: Habits {
        name: "plivo",
        protocol: "",
        lead: Duration::from_millis(200),
        mark_every: Some(Duration::from_millis(200)),
        reorders: false,
        odd_bytes: false,
        max_message: 64 << 10,
    },
    stream: "/start/streamId",
    call: "/start/callId",
    parties: ("/start/from", "/start/to"),
    params: "/extra_headers",
    media: ("/start/mediaFormat/encoding", "/start/mediaFormat/sampleRate"),
    reached: ("playedStream", "/name"),
    audio: |stream, format| {
        let name = if format.codec == Codec::Mulaw { "audio/x-mulaw" } else { "audio/x-l16" };
        let rate = format.rate;
        let head = format!(
            r#"{{"event":"playAudio","streamId":{stream},"media":{{"contentType":"{name}","sampleRate":{rate},"payload":""#
        );
        (head, r#""}}"#)
    },
    mark: |stream, name| json!({"event": "checkpoint", "streamId": stream, "name": name}),
    clear: |stream| json!({"event": "clearAudio", "streamId": stream}),
    press: Some(|_, digits| json!({"event": "sendDTMF", "dtmf": digits})),
};
