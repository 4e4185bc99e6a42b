//! DECISIONS: what a call does next. [`core::Core`] decides in virtual time, [`driver`] is the one task of a call that
//! waits, reads a clock and moves bytes.
//!
//! Core in parts, each with one subject: [`intake`] (what the client may send, counted), [`turn`] (the caller's side of a
//! turn), [`keypad`], [`slot`] (one reply at a time), [`playout`] (replies on their way to the loudspeaker, and what of them was
//! heard), [`tools`] and [`filler`] (what is said while they run), [`mirror`] and [`ring`] (what was said, for the next session), [`policy`] (what a client that owns its
//! conversation may set). All of it is plain data that can be written down. [`returns`] is the way back to a call for a client
//! that lost its socket.
pub mod answers;
pub mod books;
pub mod client_leg;
pub mod core;
pub mod door;
pub mod driver;
pub mod end;
pub mod filler;
pub mod intake;
pub mod keypad;
pub mod mirror;
pub mod phone;
pub mod playout;
pub mod policy;
pub mod rate;
pub mod reply;
pub mod returns;
pub mod ring;
pub mod service_leg;
pub mod sideband;
pub mod slot;
pub mod tools;
pub mod turn;
pub mod turnstile;
pub mod way;
pub mod written;

use std::time::Duration;

/// Time since the call began.
pub type At = Duration;

/// Whole milliseconds, for the wire.
pub fn ms(length: Duration) -> u64 {
    u64::try_from(length.as_millis()).unwrap_or(u64::MAX)
}
