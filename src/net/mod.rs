//! SOCKETS: one accept loop and one WebSocket for every door, for both legs of a call and for the simulator; and Asterisk's
//! own frames.
//!
//! Knows bytes, frames and deadlines; never a message's meaning.
pub mod audiosocket;
pub mod inherit;
pub mod io;
pub mod listen;
pub mod outbox;
pub mod tls;
pub mod track;
mod wire;
pub mod ws;
