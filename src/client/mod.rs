//! THEM -> US: one file per client dialect.
pub mod door;
pub mod openai;
pub mod thin;
pub mod wire;
