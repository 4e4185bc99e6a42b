//! THEM -> US: one file per client dialect.
pub mod openai;
pub mod phone;
pub mod thin;
pub mod wire;
