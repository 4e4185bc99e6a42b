//! FreeSWITCH with `mod_audio_fork` or `mod_audio_stream`, as far as their builds play binary audio back.
//!
//! Source: drachtio-freeswitch-modules (2024-03) and amigniter/mod_audio_stream, read 2026-08. The stock `mod_audio_fork` and the open
//! edition of `mod_audio_stream` play nothing that comes back; forks of the first, and `mod_audio_stream` from 1.0.3 on, play binary L16.
//! docs/phone/freeswitch.md says which. There are no marks in all of them, so the clock says what was heard, and the lead is short.
//! Its messages are jambonz's ([`super::jambonz`]), which grew out of these modules.
use std::time::Duration;

use super::Habits;

/// How it behaves.
pub static HABITS: Habits = Habits {
    name: "freeswitch",
    protocol: "audio.drachtio.org",
    lead: Duration::from_millis(120),
    mark_every: None,
    reorders: false,
    odd_bytes: false,
    max_message: 64 << 10,
};
