//! `voxrelay sim`: the simulated model service alone.
use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::Context as _;
use clap::Args;

use super::{Usage, logs, tell};
use crate::{
    chaos::{Proxy, Script},
    config::{LogConfig, parse_listen},
    sim::{Faults, Shape, Sim, SimConfig, SimStats},
};

/// Arguments of `sim`.
#[derive(Debug, Args)]
#[command(
    after_help = "A faults file, every kind and moment of which is in `cargo doc --no-deps --open`, voxrelay::sim::faults:
  [[fault]]
  kind = \"die\"       # the connection ends without a close frame
  session = 1        # in the first session
  response = 1       # in its first reply
  after_deltas = 3   # after three pieces of audio

A chaos file, for what networks do; every kind and moment of it is there too, voxrelay::chaos:
  [[fault]]
  kind = \"reset\"     # the connection is reset
  connection = 1     # the first one
  direction = \"to_client\"
  after_bytes = 50000

Clients of it: OPENAI_BASE_URL=http://127.0.0.1:9000/v1 OPENAI_API_KEY=any voxrelay serve"
)]
pub struct SimArgs {
    /// Address and port to listen on; port 0 takes a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9000", value_parser = parse_listen)]
    listen: SocketAddr,
    /// In which shape the protocol is spoken: ga, or beta as compatible servers kept it [default: ga, or what --config says]
    #[arg(long, value_name = "SHAPE")]
    shape: Option<Shape>,
    /// Faults to play, scripted or by chance (TOML; an example is below)
    #[arg(long, value_name = "FILE")]
    faults: Option<PathBuf>,
    /// A bad network in front of the service, scripted or by chance (TOML; an example is below)
    #[arg(long, value_name = "FILE")]
    chaos: Option<PathBuf>,
    /// Delays, limits and habits of the service (TOML; keys and defaults are in the documentation of `voxrelay::sim::SimConfig`)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// What it has done, in one line.
fn counted(stats: &SimStats) -> String {
    let SimStats { usage, sessions_opened, responses, limited, text, .. } = stats;
    let (input, output) = (usage.text + usage.audio, usage.output_text + usage.output_audio);
    let refused: u64 = limited.values().sum();
    let answered = |address: &str| text.answered.get(address).copied().unwrap_or_default();
    let rest = match (answered("transcriptions"), answered("responses"), answered("batch_lines")) {
        (0, 0, 0) => String::new(),
        (recordings, texts, lines) => format!(
            "; {recordings} transcriptions of {:.1} s, {texts} texts (in {}, out {}), {lines} lines of batches (in {}, out {})",
            text.heard_ms as f64 / 1_000.0,
            text.input_tokens,
            text.output_tokens,
            text.batch_input_tokens,
            text.batch_output_tokens,
        ),
    };
    format!(
        "counted: {sessions_opened} sessions, {responses} replies, {} tokens (in {input}, out {output}){rest}; refused for limits: {refused}",
        input + output,
    )
}

/// Serves until it is told to leave, and says then what it has counted.
///
/// # Errors
/// When a file is broken or the address cannot be had.
pub async fn run(args: SimArgs) -> anyhow::Result<ExitCode> {
    logs::install(&LogConfig::default())?;
    let read =
        |file: &PathBuf| fs::read_to_string(file).map_err(|e| Usage(format!("cannot read `{}`: {e}", file.display())));
    let faults = match &args.faults {
        Some(file) => {
            Faults::from_toml(&read(file)?).map_err(|e| Usage(format!("--faults {}: {e}", file.display())))?
        }
        None => Faults::default(),
    };
    let chaos = match &args.chaos {
        Some(file) => {
            Some(Script::from_toml(&read(file)?).map_err(|e| Usage(format!("--chaos {}: {e}", file.display())))?)
        }
        None => None,
    };
    let mut config: SimConfig = match &args.config {
        Some(file) => toml::from_str(&read(file)?).map_err(|e| Usage(format!("--config {}: {e}", file.display())))?,
        None => SimConfig::default(),
    };
    config.shape = args.shape.unwrap_or(config.shape);
    let addr = args.listen;
    let busy = || format!("cannot listen on {addr} (choose another address with --listen)");
    // Behind a bad network the service has a port that nobody is told.
    let inside = if chaos.is_some() { SocketAddr::from((Ipv4Addr::LOCALHOST, 0)) } else { addr };
    // Before anybody is told that it runs, and may stop it.
    let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let sim = Sim::start(inside, config, faults).await.with_context(busy)?;
    let proxy = match chaos {
        Some(script) => Some(Proxy::start(addr, sim.addr(), script).await.with_context(busy)?),
        None => None,
    };
    let addr = proxy.as_ref().map_or(sim.addr(), Proxy::addr);
    tell(io::stdout(), &format!("listening on http://{addr}"));
    tell(io::stderr(), &format!("base URL: http://{addr}/v1 (any key but those that begin with sk-bad)"));
    tokio::select! {
        done = tokio::signal::ctrl_c() => done?,
        _ = term.recv() => {}
    }
    let stats = sim.stats();
    sim.stop().await;
    tell(io::stderr(), &counted(&stats));
    Ok(ExitCode::SUCCESS)
}
