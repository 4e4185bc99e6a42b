//! THEM -> US: one file per client dialect.
pub mod wire;
