//! SignalWire (cXML `<Stream>`): Twilio's dialect, with linear audio at 16 and 24 kHz beside PCMU.
//!
//! Source: SignalWire's cXML reference and its samples, read 2026-08. Its `media` and `mark` may lack ids; the order of bytes of its L16
//! is written down nowhere. It takes keys. `realtime="true"` on `<Stream>` makes it play at once.
use serde_json::json;

use super::{Habits, json::Table, twilio};

/// Where things stand.
pub static TABLE: Table = Table {
    habits: Habits { name: "signalwire", odd_bytes: true, ..twilio::TABLE.habits },
    press: Some(|stream, digits| json!({"event": "dtmf", "streamSid": stream, "dtmf": {"digit": digits}})),
    ..twilio::TABLE
};
