//! OUR OWN CLIENT of `voxrelay.v1`: connect, stream, playback clock. Used by `say` and by the tests.
//!
//! Stands outside of the relay and knows of it only what [`crate::client::wire`] and the protocol page say, so a test
//! that passes with it would pass with anybody's client. [`connect()`] gives a [`Call`]: queue messages, wait for
//! [`Event`]s. [`Phone`] puts a [`Microphone`] and a [`Loudspeaker`] on a call and keeps their time: 20 ms frames out at
//! absolute moments, reply audio in, playback positions reported. Microphone and loudspeaker are pure; only `Call` and
//! `Phone` own a socket and read the clock. Nothing here decodes or encodes samples.
mod call;
mod connect;
mod handshake;
mod microphone;
mod options;
mod phone;
mod playback;
mod socket;
#[cfg(test)]
mod testbed;

pub use call::{Call, CallEnd, Event, Ready, SendError};
pub use connect::{ConnectError, connect};
pub use handshake::Refusal;
pub use microphone::{FRAME, Microphone, cut};
pub use options::{Options, Pace, Turns, UrlError};
pub use phone::{Phone, Step};
pub use playback::Loudspeaker;
