//! Everything that is asked for over plain HTTP and is no call of ours: pages for people, tokens and the broker for programs.
//!
//! | file | what is there |
//! |---|---|
//! | [`pages`] | the page at `/` |
//! | [`tokens`] | `POST /v1/tokens`: short-lived call tokens |
//! | [`calls`] | `/v1/calls`, `/v1/limits`: what runs, what may run, and its end |
//! | [`usage`] | `GET /v1/usage`: what was used, and what it cost |
//! | [`broker`] | client secrets and SDP, for clients that speak to the service directly |
//! | [`cors`] | which web pages may ask for these |
//! | [`dial`] | `/v1/dial`: calls to telephones |
//! | [`text`] | `/v1/responses`, `/v1/audio/transcriptions` |
//! | [`batches`], [`upload`], [`form`] | `/v1/files`, `/v1/batches`; a file as it comes |
//! | [`idempotency`] | requests that may come again |
//! | [`body`] | bodies, bounded in size and time |
//! | [`part`] | pieces of addresses |
pub mod batches;
pub mod body;
pub mod broker;
pub mod calls;
pub mod cors;
pub mod dial;
pub mod form;
pub mod idempotency;
pub mod pages;
mod part;
pub mod text;
pub mod tokens;
pub mod upload;
pub mod usage;
