//! SAMPLES, pure: formats, codecs, resampling, chunks towards the service, paced frames towards the client.
//!
//! Nothing here knows a socket, a task or a clock.
pub mod format;
pub mod g711;
pub mod resample;

pub use format::{Codec, Format};
