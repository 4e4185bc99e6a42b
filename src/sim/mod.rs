//! THE SIMULATED MODEL SERVICE: a Realtime server without a model, faithful down to the audio and the faults.
pub mod config;
mod conversation;
mod dice;
pub mod faults;
mod input;
mod settings;
pub mod stats;
mod tokens;
mod vad;
mod validate;
mod voice;
