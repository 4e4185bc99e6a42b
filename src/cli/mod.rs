//! THE COMMANDS: one file per subcommand. Errors end up here and become exit codes: 0 done, 1 failed, 2 wrong usage.
pub mod say;

/// Wrong usage: arguments or configuration that can never work.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);
