//! SAMPLES, pure: formats, codecs, resampling, chunks towards the service, paced frames towards the client.
//!
//! Nothing here knows a socket, a task or a clock.
pub mod chunk;
pub mod format;
pub mod pace;

pub use format::{Codec, Format};
