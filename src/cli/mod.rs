//! COMMANDS: one file per subcommand.
pub mod say;
