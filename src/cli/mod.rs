//! THE COMMANDS: one file per subcommand. Errors end up here and become exit codes: 0 done, 1 failed, 2 wrong usage.
pub mod check;
mod columns;
pub mod logs;
pub mod phone;
pub mod relay;
pub mod route;
pub mod say;
pub mod self_signed;
pub mod serve;
pub mod sim;
pub mod talk;
pub mod tenant;
pub mod transcribe;
pub mod usage;

use std::{io, net::SocketAddr, process::ExitCode};

use clap::{Parser, Subcommand};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};

use crate::config::Config;

/// Realtime voice relay: raw audio over WebSocket in, Realtime model sessions out.
#[derive(Debug, Parser)]
#[command(name = "voxrelay", version, about, propagate_version = true, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Say a recording to a relay, in real time, and save the answer
    Say(say::SayArgs),
    /// Talk to a relay with this computer's microphone and loudspeaker
    Talk(talk::TalkArgs),
    /// Run the relay (on the embedded simulator, if no upstream and no key is configured)
    Serve(serve::ServeArgs),
    /// Play a telephone provider against a relay: a call without an account and without a telephone
    Phone(phone::PhoneArgs),
    /// Write recordings down: folders of them, thousands, into one table
    Transcribe(transcribe::TranscribeArgs),
    /// Extract facts from texts, in the shape of a JSON Schema, into one table
    Extract(transcribe::ExtractArgs),
    /// Run the simulated model service alone, to test voice clients against
    Sim(sim::SimArgs),
    /// Add, show, rotate and revoke tenants: who may call, and with which keys
    Tenant(tenant::TenantArgs),
    /// Show what was used and what it cost: replies, tokens, minutes and USD, by tenant, key, user, agent, model, route, call or day
    Usage(usage::UsageArgs),
    /// Try tiers of routes: what the ledger's replies would have cost, and how soon they would have been heard
    Route(route::RouteArgs),
    /// Print the effective configuration, or what is wrong with it
    Check(check::CheckArgs),
}

/// Certificates of authorities to trust besides the public ones, from a PEM file (`--ca`).
#[derive(Debug, Clone)]
pub struct Authorities(pub Vec<CertificateDer<'static>>);

impl std::str::FromStr for Authorities {
    type Err = String;

    fn from_str(file: &str) -> Result<Self, String> {
        let found = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        match found {
            Ok(found) if found.is_empty() => Err("it holds no certificate; wanted: PEM".to_owned()),
            Ok(found) => Ok(Self(found)),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// Wrong usage: arguments or configuration that can never work.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// Runs a command line to its exit code.
pub async fn run(cli: Cli) -> ExitCode {
    let done = match cli.command {
        Command::Say(args) => say(args).await,
        Command::Talk(args) => talk::run(args).await,
        Command::Serve(args) => serve::run(args).await,
        Command::Phone(args) => Box::pin(phone::run(args)).await,
        Command::Transcribe(args) => Box::pin(transcribe::run(args)).await,
        Command::Extract(args) => Box::pin(transcribe::run_extract(args)).await,
        Command::Sim(args) => sim::run(args).await,
        Command::Tenant(args) => tenant::run(args),
        Command::Usage(args) => usage::run(args),
        Command::Route(args) => route::run(args),
        Command::Check(args) => Box::pin(check::run(args)).await,
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            tell(io::stderr(), &format!("voxrelay: {}", text(&error)));
            ExitCode::from(if error.is::<Usage>() { 2 } else { 1 })
        }
    }
}

/// A line for whoever reads it. When nobody does any more (a closed pipe, a full disk), the work goes on.
fn tell(mut out: impl io::Write, line: &str) {
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// The error and its causes; a cause that the error before it has told already is not said twice.
fn text(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |told, next| match told.as_str() {
        "" => next,
        before if before.contains(&next) => told,
        before => format!("{before}: {next}"),
    })
}

async fn say(args: say::SayArgs) -> anyhow::Result<ExitCode> {
    on_relay(args.url.clone(), async |url| say::run(args, url).await).await
}

/// Calls the relay at `url`. Without one, the relay and the simulated service are inside of this process: never an account
/// that costs.
async fn on_relay(
    url: Option<String>,
    call: impl AsyncFnOnce(&str) -> anyhow::Result<ExitCode>,
) -> anyhow::Result<ExitCode> {
    if let Some(url) = url {
        return call(&url).await;
    }
    let mut config = Config::load(None, |_| None)?;
    config.server.listen = SocketAddr::from(([127, 0, 0, 1], 0));
    config.log.level = "voxrelay=error".to_owned();
    logs::install(&config.log)?;
    let relay = relay::Relay::start(config, None).await?;
    let url = format!("ws://{}/v1/voice", relay.server.addr());
    let done = call(&url).await;
    relay.stop().await;
    done
}

#[cfg(test)]
mod tests {
    use std::io;

    #[test]
    fn a_cause_is_told_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("file x: {source}")]
        struct Told {
            source: io::Error,
        }
        let told = anyhow::Error::new(Told { source: io::Error::other("is gone") });
        assert_eq!(super::text(&told), "file x: is gone");
        let untold = anyhow::Error::new(io::Error::other("is gone")).context("file x");
        assert_eq!(super::text(&untold), "file x: is gone");
    }
}
