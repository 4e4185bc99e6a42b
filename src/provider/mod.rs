//! THE OTHER SIDE OF A TELEPHONE CALL: the provider, played by us.
//!
//! `voxrelay phone simulate` and the tests call a relay with it as Twilio, Telnyx, SignalWire, Plivo, Vonage, Asterisk,
//! jambonz or FreeSWITCH would, without an account and without a telephone. It holds a provider's playout buffer, so it knows
//! what the relay cannot know: what the caller's ear has heard, and when.
//!
//! Written from the providers' references and from nothing of the relay's own telephone doors: it is their check, so it must
//! not share their mistakes. A [`Line`] is pure: it owns no socket, task or clock. [`mod@drive`] puts one on a socket.
//!
//! | file | what it is |
//! |---|---|
//! | [`mod@line`] | one call at the provider: messages in, messages out, one deadline |
//! | [`playout`] | the buffer in front of the caller's ear: 20 ms a tick, marks, clearing |
//! | [`ear`] | what was heard, sample by sample, with its time |
//! | [`dialect`] | one small file per provider over three shapes |
//! | [`quirk`] | what providers and networks do beside their references, on request and counted |
//! | [`person`] | who is on the telephone: speaks, listens, interrupts, presses, hangs up |
//! | [`mod@drive`], [`dial`] | a line on a real socket |
//! | [`webhook`], [`markup`], [`reach`] | the question before the call, what its answer says, and where the stream goes then |
pub mod dial;
pub mod dialect;
pub mod drive;
pub mod ear;
pub mod line;
pub mod markup;
pub mod person;
pub mod playout;
pub mod quirk;
pub mod reach;
pub mod setup;
pub mod webhook;
pub mod wire;

pub use dial::{Address, DialError};
pub use drive::{Summary, Told, drive, drive_until};
pub use ear::Ear;
pub use line::{Direction, Ended, Entry, Line, Violation, Who};
pub use person::{Action, Person, What, When};
pub use quirk::{Injected, Network, Quirks, Stop};
pub use reach::{Reach, ReachError, Reached};
pub use setup::{Ids, Provider, Setup, SetupError};
pub use wire::{Coding, Media, Message};
