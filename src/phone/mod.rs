//! What is said with telephone providers over plain HTTP: webhooks, their answers, and the REST side.
//!
//! Stands beside the media doors: a webhook says that somebody calls; its answer tells the provider to open a stream to us, with
//! a token that is good once; the stream's own messages are the business of [`crate::client`]. Everything here is pure: no socket,
//! task or clock; the time and the chance come as arguments, requests go out as [`rest::Ask`]s that somebody else sends. Only
//! [`Account::open`] reads a file, the key of a Vonage application.
//!
//! # How a call comes in
//! 1. `POST /phone/NAME/voice` → [`Account::verify`] (never past a failure of it) → [`Replays::answer`].
//! 2. [`Account::incoming`] says who calls whom; [`numbers::Numbers::find`] which agent that is.
//! 3. A token is made, [`account::TokenForm`] says of which form, and [`Account::connect`] gives the answer's text; where there
//!    is no agent, [`Account::refuse`]. The token belongs to this account and this call: a stream that names another call is refused.
//! 4. The stream comes: [`Account::verify_stream`], then the token, from its first message or by [`Account::stream_token`].
//! 5. What becomes of the call is told at `POST /phone/NAME/status`: [`Account::verify`], then [`Account::status`].
//!
//! [`Account::rest`] makes the requests that hang up, transfer and dial, and reads their answers.
//!
//! # What providers' signatures cover
//! | provider | signature | covers | replay |
//! |---|---|---|---|
//! | Twilio, SignalWire | HMAC-SHA1, or SHA-256 | URL and form, or the body's digest | remembered |
//! | Plivo | V3, HMAC-SHA256 | URL, query, form, nonce | remembered |
//! | Telnyx | Ed25519 | time and body, not the URL | 300 s, remembered |
//! | Vonage | JWT, HS256 | time and the body's digest, not the URL | 300 s, remembered |
//! | jambonz | HMAC-SHA256 | time and body, not the URL | 300 s, remembered |
//! | Asterisk, FreeSWITCH | password | nothing: TLS or a private network | none |
//!
//! Where the URL is not covered, nothing is read from its query but [`DIAL_QUERY`], an unguessable reference to a call that we began.
//! URLs are always made of `phone.public_url` and of the path that was asked for, never of `Host` or `X-Forwarded-*`.
//!
//! What is said of a provider here comes from its own libraries or documents; where it was written from memory and could not be
//! looked up, the comment says `unverified`.
pub mod account;
mod asterisk;
pub mod event;
pub mod fill;
mod freeswitch;
mod jambonz;
mod markup;
pub mod numbers;
mod plivo;
pub mod proof;
pub mod rest;
mod signalwire;
mod telnyx;
#[cfg(test)]
mod tests;
mod twilio;
mod vonage;
pub mod webhook;

pub use self::{
    account::{Account, Page, PublicUrl, Refusal, TokenForm, Written},
    event::{Direction, Ending, Incoming, Machine, Progress, Said, Status},
    proof::{Forged, Once, Replays, StreamProof, Verified},
    webhook::{Asked, DIAL_QUERY, Unclear},
};
