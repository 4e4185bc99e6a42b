//! The command line. Everything else is in the library.
use std::process::ExitCode;

use clap::Parser as _;
use voxrelay::cli::{self, Cli};

#[tokio::main]
async fn main() -> ExitCode {
    Box::pin(cli::run(Cli::parse())).await
}
