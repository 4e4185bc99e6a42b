//! voxrelay: a realtime voice relay.
//!
//! A phone, a browser or a desktop program reaches us over one WebSocket with raw audio; we hold an upstream Realtime
//! session for it, relay the answer's audio back, and keep what the caller really heard and what it cost straight. How to
//! write a client: [`client::thin`].
//!
//! # Words
//! `call` a client's stay, hello to hang-up · `leg` its client or upstream side · `session` one upstream Realtime
//! session · `turn` a question and its answer · `reply` one answer · `chunk` audio sent in one append · `delta` audio
//! received in one event · `frame` one WebSocket message · `heard` what the caller's loudspeaker has really played ·
//! `agent` a configured persona.
//!
//! # The two ways of audio
//! Microphone: client socket ([`net::ws`]) → client dialect ([`client`]) → audio lane ([`audio::lane`]) → call core
//! ([`call::core`]) → upstream dialect ([`upstream`]) → upstream socket. A delta takes the same rooms in reverse. One task
//! per call ([`call::driver`]) reads both sockets and never waits for a write; decisions are made in a core that owns no
//! socket, task or clock. Nothing queues between the stations except in front of the two sockets.
//!
//! # Rooms, in the order in which audio passes
//! | room | what it is |
//! |---|---|
//! | [`cli`] | one file per command: serve, say, talk, transcribe and extract, phone, sim, tenant, usage, route, check |
//! | [`caller`] | our own client of `voxrelay.v1`: say, talk and the tests use it |
//! | [`desktop`] | microphone and loudspeaker of this computer on a call: talk |
//! | [`config`] | one struct per section, every default in one place |
//! | [`serve`] | listen, doors, one task per call, drain |
//! | [`admit`] | who may come in: keys, tenants, call tokens, limits, running calls, what outlives a process; what a reply costs, and what may be spent; which route a call takes |
//! | [`net`] | one accept loop and one WebSocket for every door and both legs; Asterisk's frames in its place |
//! | [`client`] | them → us: the thin door, its wire types and its public page; OpenAI's own protocol |
//! | [`audio`] | samples, pure: codecs, resampling, lanes, chunks in, paced frames out, recordings |
//! | [`call`] | decisions: the core, its parts, and the driver |
//! | [`upstream`] | us → model: one file per dialect, the opening of sessions, client secrets, limits |
//! | [`text`] | requests for text, responses and transcriptions: one request's way, and its answer's way back; the expert whom an agent asks |
//! | [`batch`] | whole files: recordings to texts, texts to facts, thousands of them; a client of a relay |
//! | [`webhook`] | tools that the relay runs itself: whoever runs them, and a signed request to where the agent says, and its answer |
//! | [`beta`] | the protocol's former shape and its present one, each said in the other; used at both edges |
//! | [`http`] | what is asked for over plain HTTP: the page, tokens, client secrets and SDP, the end of calls, usage |
//! | [`phone`] | what is said with telephone providers over plain HTTP, pure: webhooks and their signatures, markup, REST |
//! | [`sim`] | the simulated model service, its habits and its faults; the simulated REST of telephone providers |
//! | [`ledger`] | what was used, by whom, and what it cost: one row per reply, never two, in a file that outlives the process |
//! | [`provider`] | a telephone provider's side of a call, with the playout buffer in front of the caller's ear |
//! | [`chaos`] | a TCP proxy between any two parties that makes the network bad, scripted and seeded |
//! | [`scripted`] | what both have in common: tables of faults, seeded dice |
//! | [`wall`] | the clock on the wall, for what others count in it |
//! | [`observe`] | facts (an occurrence knows its log line and its metric), the metrics page |
//!
//! At the thin door and at telephones the conversation is ours; at OpenAI's ([`client::openai`]) it is the client's: there
//! messages pass as they came, and the same core only watches and rules ([`call::core`]).
//!
//! Nobody reaches the upstream whom [`admit`] has not let in: what dials takes a [`admit::Principal`], which only the gate makes.
//!
//! Who knows whom: `client`, `audio` and `upstream` do not know each other's insides; `call` knows all three; `serve`
//! and `cli` stand above; `sim` knows `audio` and `net`, and `provider` for whom it calls, `chaos`
//! none of them; `text` stands beside `call`, on `admit`, `upstream` and `ledger`; `batch` knows `audio`, `net`, how `caller` connects and how `text`
//! reads an answer, and of a relay what any client knows; `phone` knows `config` only; `provider` knows `audio`, `net` and how `caller` connects, and
//! nothing of the telephone doors that it checks. Inside of the relay every message has the GA shape.
pub mod admit;
pub mod audio;
pub mod batch;
pub mod beta;
pub mod call;
pub mod caller;
pub mod chaos;
pub mod cli;
pub mod client;
pub mod config;
pub mod desktop;
pub mod http;
pub mod ledger;
pub mod net;
pub mod observe;
pub mod phone;
pub mod provider;
pub mod scripted;
pub mod serve;
pub mod sim;
pub mod text;
pub mod upstream;
pub mod wall;
pub mod webhook;
