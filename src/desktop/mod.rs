//! MICROPHONE AND LOUDSPEAKER of this computer on a call: what `voxrelay talk` does, for other programs too.
//!
//! Stands beside [`crate::caller`], whose calls it speaks on, and in front of the sound cards. A sound card calls us when
//! it wants samples, on a thread that must never wait; so two lock-free rings lie between ([`tap`]), and all that thinks
//! is on our side of them: [`mic`] makes 20 ms frames, [`gate`] decides what of them is sent, [`speaker`] plays replies
//! and knows from the card's own clock what has been heard, [`keeper`] sees when a device is gone. [`station`] is the
//! driver: the only one that waits. What a device is hides behind [`AudioIo`]: recordings in real time ([`mod@file`]), or a
//! sound card (`card`, feature `desktop`).
#[cfg(feature = "desktop")]
pub mod card;
pub mod file;
pub mod gate;
pub mod io;
pub mod keeper;
pub mod mic;
pub mod speaker;
pub mod station;
pub mod tap;

pub use io::{AudioIo, DeviceError, Running, Side, Want};
pub use station::{Line, Note, Setup, Station, Step};
