//! THE SIMULATED MODEL SERVICE: a Realtime server without a model, faithful down to the audio and the faults.
mod admit;
mod commands;
pub mod config;
mod conversation;
mod damage;
mod dice;
pub mod faults;
mod input;
mod outbox;
mod reply;
mod response;
mod script;
mod server;
pub mod session;
mod settings;
pub mod stats;
mod tokens;
mod transcribe;
mod vad;
mod validate;
mod voice;

pub use admit::Knock;
pub use config::SimConfig;
pub use faults::Faults;
pub use server::Sim;
pub use stats::SimStats;
