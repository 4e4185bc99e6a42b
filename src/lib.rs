//! voxrelay: a realtime voice relay.
//!
//! A phone, a browser or a desktop program reaches us over one WebSocket with raw audio; we hold an upstream Realtime
//! session for it, relay the answer's audio back, and keep what the caller really heard and what it cost straight.
//!
//! # Words
//! `call` a client's stay, hello to hang-up · `leg` its client or upstream side · `session` one upstream Realtime
//! session · `turn` a question and its answer · `reply` one answer · `chunk` audio sent in one append · `delta` audio
//! received in one event · `frame` one WebSocket message · `heard` what the caller's loudspeaker has really played ·
//! `agent` a configured persona.
//!
//! # The two ways of audio
//! Microphone: client socket ([`net::ws`]) → client dialect ([`client`]) → audio lane ([`audio`]) → call core ([`call`])
//! → upstream dialect ([`upstream`]) → upstream socket. A delta takes the same rooms in reverse. One task per call reads
//! both sockets and never waits for a write; decisions are made in a core that owns no socket, task or clock.
//!
//! # Rooms
pub mod audio;
pub mod call;
pub mod caller;
pub mod cli;
pub mod client;
pub mod config;
pub mod net;
pub mod observe;
pub mod serve;
pub mod sim;
pub mod upstream;
