//! THE SIMULATED MODEL SERVICE: a Realtime server without a model, faithful down to the audio and the faults.
//!
//! People test their voice clients against it without a key: `voxrelay sim` listens, any key but `sk-bad...` is good, and
//! the base URL is `http://127.0.0.1:9000/v1`. It says back what it hears, byte for byte where both formats are the same,
//! and speaks with a bundled voice where there is nothing to say back. What it follows is what was seen at the live
//! service in autumn 2026, in the GA shape: event order and fields, error codes and texts, close codes, token counts. A
//! guess is called a guess where it is made. It knows nothing of the relay: neither its encoders nor its WebSocket.
//!
//! | to be tested | how |
//! |---|---|
//! | voice turns | speak; the detector finds the turn, the reply is your own voice; `long_turn_pause` clips give two turns |
//! | push to talk | `turn_detection: null`, commit, `response.create` |
//! | function calls | give it tools and type `call NAME {"argument": 1}`; or `reply.call_tool` for speech (`reply.speaks_with_calls`: after a sentence) |
//! | transcription | `?intent=transcription` without a model; name one in `session.update` |
//! | compatible servers | `shape = "beta"`, and `pcm16_rate = 16000` for those that hear 16 kHz |
//! | Azure | `/openai/v1/realtime?model=`, `/openai/realtime?api-version=&deployment=` (beta shape); `api-key: ...` |
//! | client secrets | `POST /v1/realtime/client_secrets`; a secret opens any number of sessions until it expires |
//! | WebRTC and SIP calls | `POST /v1/realtime/calls`, a canned answer that browsers take; `/accept`, `/reject`, `/refer`, `/hangup`; sideband by `?call_id=` |
//! | text, greetings | are answered with the bundled voice |
//! | recordings | `POST /v1/audio/transcriptions`: words that follow from the sound, in every format, streamed or not |
//! | text and extraction | `POST /v1/responses`: sentences, JSON that fits a schema, `call NAME {...}`, `previous_response_id`, streamed or not |
//! | what is not urgent | `/v1/files`, `/v1/batches` |
//! | refused connects | keys `sk-bad...`, `sk-no-credit`; models `gpt-4o-realtime-preview`, `gpt-5`; no model; no key |
//! | rate limits | `[[limits]]`: tokens and replies a minute and a day, sessions a minute and at once, for each account; transcriptions and text count as replies do |
//! | the session cap, delays | [`SimConfig`], as a TOML file |
//! | telephones that are called | [`carrier`]: Twilio's, SignalWire's, Telnyx', Plivo's, Vonage's, jambonz' and Asterisk's REST, and somebody who answers |
//! | everything that goes wrong | [`faults`], as a TOML file |
//!
//! Inside, [`session`] is a machine without sockets or clock that can be driven in virtual time; `server` gives it a
//! socket, `rest` and [`text`] stand beside it. Not here yet: GPT-Live, background responses.
mod admit;
mod beta;
pub mod carrier;
mod commands;
pub mod config;
mod conversation;
mod damage;
pub mod faults;
mod input;
mod limits;
mod outbox;
mod reply;
mod response;
mod rest;
mod script;
mod sdp;
mod server;
pub mod session;
mod settings;
pub mod stats;
pub mod text;
mod tokens;
mod transcribe;
mod vad;
mod validate;
mod voice;

pub use admit::Knock;
pub use carrier::{CarrierConfig, CarrierStats};
pub use config::{Shape, SimConfig};
pub use faults::Faults;
pub use limits::Limits;
pub use server::Sim;
pub use stats::{SimStats, UsageStats};
pub use text::{TextConfig, TextStats};
