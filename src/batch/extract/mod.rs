//! STRUCTURED RESULTS FROM TRANSCRIPTS: from each text one JSON value of a given shape, through the Responses API in strict mode.
//!
//! Nothing here owns a socket, a file handle that lives on, a task or a clock. A [`Schema`] is read once. A [`request::Setup`] says what
//! is asked of every text; an [`Extraction`] carries one text through its requests: parts of what is too long, their merger, one repair,
//! one more try with more room. Who drives it sends what [`Extraction::poll`] hands out, directly or in files of the Batch API
//! ([`batchapi`]), and brings back what came.
//!
//! | file | what it is |
//! |---|---|
//! | [`schema`] | the shape that results have: read, checked, validated against |
//! | [`strict`] | what strict mode allows of JSON Schema; what is outside of it, by name |
//! | [`loose`] | a schema that was not written for strict mode, rewritten for it |
//! | [`example`] | a schema from a commented example |
//! | [`mod@column`] | a schema's columns in a table |
//! | [`mod@split`] | a text that is too long, in parts that lose nothing |
//! | [`request`] | what is sent: for a part, for a merger, for a repair |
//! | [`answer`] | what came: a value, or what is wrong with it |
//! | [`driver`] | one text from its first request to its result |
//! | [`batchapi`] | the same requests as files that are answered within a day |
pub mod answer;
pub mod batchapi;
pub mod column;
pub mod driver;
pub mod example;
pub mod loose;
pub mod request;
pub mod schema;
pub mod split;
pub mod strict;

pub use driver::Extraction;
pub use schema::Schema;
