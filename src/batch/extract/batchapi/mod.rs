//! The Batch API: requests as lines of a file, answered within a day, at half the price and with limits of their own.
//!
//! No sockets here. [`file::Packer`] makes lines and says which file each belongs into; a [`job::Batch`] says what is to be done next with
//! one file, from its upload to its end, and is kept in the job store between steps; [`results::Results`] reads what came, in whatever
//! order, and knows what did not.
//!
//! Source: OpenAI's Batch guide and API reference (read 2026-11-28).
pub mod file;
pub mod job;
pub mod results;

pub use file::Packer;
pub use job::Batch;
pub use results::Results;
