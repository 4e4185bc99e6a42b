//! What is noted: an occurrence is a value that knows its log line and its metric.
pub mod fact;
pub mod metrics;
