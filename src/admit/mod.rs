//! Asked before, told after: who may come in, with what, and how often. Decisions only, with the time passed in.
//!
//! A [`Principal`] is who speaks for a call. Only the [`Gate`] makes one, out of a credential, and without one nothing
//! upstream can be dialled: [`crate::upstream::open::Upstream::open`] and the REST calls beside it ask for it by type.
//!
//! | file | what it is |
//! |---|---|
//! | [`key`] | long-lived keys: how they look, and the only form in which they are kept |
//! | [`tenant`] | who pays: found by the hash of a key |
//! | [`token`] | short-lived call tokens, signed by us |
//! | [`gate`] | the checks of a request's head, in order |
//! | [`circuit`] | a run of failures, and what becomes of it |
//! | [`budget`] | what tenants, keys, end users and calls may spend, and have |
//! | [`governor`] | how much may be sent to the service now, and who is next |
//! | [`pace`] | connects a minute, by address and by tenant |
//! | [`roster`] | calls that run, so that they can be counted and cut |
//! | [`quota`] | an account's pools, shared by all its calls |
//! | [`store`] | what outlives a process (SQLite) |
//! | [`sources`] | file and store together, read again as they change |
//! | [`price`] | what a reply costs, by a list of prices |
//! | [`router`] | which account and model a call is sent to |
//! | [`routes`] | the router, shared by all calls |
pub mod budget;
pub mod circuit;
pub mod gate;
pub mod governor;
pub mod key;
pub mod pace;
pub mod price;
pub mod principal;
pub mod quota;
pub mod roster;
pub mod router;
pub mod routes;
pub mod sources;
pub mod store;
pub mod tenant;
pub mod token;

pub use self::{
    gate::{Denied, Gate, Head, License},
    principal::Principal,
    roster::{Asked, Cut, Seat},
};
