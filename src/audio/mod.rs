//! SAMPLES, pure: formats, codecs, resampling, chunks towards the service, paced frames towards the client.
//!
//! Nothing here knows a socket, a task or a clock.
pub mod chunk;
pub mod decode;
pub mod dtmf;
pub mod format;
pub mod g711;
pub mod lane;
pub mod level;
pub mod opus;
pub mod pace;
pub mod resample;
pub mod sound;
#[cfg(test)]
pub(crate) mod testing;

pub use format::{Codec, Format};
