//! Recordings to text, many files at once: the client side, which asks a relay as any other client does.
//!
//! [`cut`] makes of a file what can be uploaded; [`join`] makes of the pieces' transcripts the file's.
pub mod cut;
pub mod join;
