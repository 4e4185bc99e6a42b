//! THE COMMANDS: one file per subcommand. Errors end up here and become exit codes: 0 done, 1 failed, 2 wrong usage.
pub mod check;
pub mod logs;
pub mod relay;
pub mod serve;
pub mod sim;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Realtime voice relay: raw audio over WebSocket in, Realtime model sessions out.
#[derive(Debug, Parser)]
#[command(name = "voxrelay", version, about, propagate_version = true, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the relay (on the embedded simulator, if no upstream and no key is configured)
    Serve(serve::ServeArgs),
    /// Run the simulated model service alone, to test voice clients against
    Sim(sim::SimArgs),
    /// Print the effective configuration, or what is wrong with it
    Check(check::CheckArgs),
}

/// Wrong usage: arguments or configuration that can never work.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// Runs a command line to its exit code.
pub async fn run(cli: Cli) -> ExitCode {
    let done = match cli.command {
        Command::Serve(args) => serve::run(args).await,
        Command::Sim(args) => sim::run(args).await,
        Command::Check(args) => check::run(args).await,
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            // A pipe that was closed must not turn an error into a panic.
            use std::io::Write as _;
            let _ = writeln!(std::io::stderr(), "voxrelay: {error:#}");
            ExitCode::from(if error.is::<Usage>() { 2 } else { 1 })
        }
    }
}
