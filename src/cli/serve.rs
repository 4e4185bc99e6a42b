//! `voxrelay serve`: the relay, until it is told to leave.
use std::{io, net::SocketAddr, path::PathBuf, process::ExitCode};

use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{Usage, logs, relay::Relay, self_signed, tell};
use crate::{
    admit::price::{PriceList, doubts},
    config::{Config, TlsConfig, parse_listen},
    observe::metrics,
    serve::Server,
    wall::unix_now,
};

/// Arguments of `serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Address and port to listen on; port 0 takes a free one [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR", value_parser = parse_listen)]
    listen: Option<SocketAddr>,
    /// Configuration file (TOML; a commented example is assets/voxrelay.toml)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Base URL of the model service, such as `https://api.openai.com/v1` [env: OPENAI_BASE_URL; the key: OPENAI_API_KEY]
    #[arg(long, value_name = "URL")]
    upstream: Option<String>,
    /// Speak TLS with this certificate chain (PEM); goes with --tls-key
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The certificate's private key (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Speak TLS with a certificate made for development; its path and fingerprint are printed
    #[arg(long, conflicts_with = "tls_cert")]
    tls_self_signed: bool,
    /// Where tenants and their keys are kept [default: store.file of the configuration, or voxrelay.db in the user's data folder]
    #[arg(long, value_name = "FILE")]
    store: Option<PathBuf>,
    /// Where usage is written down, for `voxrelay usage` [default: ledger.file of the configuration, or ledger.db in the user's
    /// data folder; on the embedded simulator: nowhere]
    #[arg(long, value_name = "FILE")]
    ledger: Option<PathBuf>,
    /// Take the listening socket and the calls over from the relay that listens at this Unix socket, if one does, and listen there for
    /// the next one [default: server.handover of the configuration, or nowhere]
    #[arg(long, value_name = "PATH")]
    handover: Option<PathBuf>,
    /// Serve other machines although nobody is asked for a credential
    #[arg(long)]
    insecure_open: bool,
}

impl ServeArgs {
    fn load(self) -> anyhow::Result<Config> {
        let mut config = load(self.config.as_deref())?;
        if let Some(listen) = self.listen {
            config.server.listen = listen;
        }
        if let Some(url) = self.upstream {
            config.upstream.url = Some(url);
        }
        config.server.handover = self.handover.or(config.server.handover);
        config.server.insecure_open |= self.insecure_open;
        let named = self.store.or(config.store.file);
        config.store.required = named.is_some();
        config.store.file = named.or_else(|| Some(store_file()));
        // What the embedded simulator says costs nothing, and belongs in no account that nobody asked for.
        let usual = (!config.is_simulated()).then(ledger_file);
        config.ledger.file = self.ledger.or(config.ledger.file).or(usual);
        if let (Some(cert), Some(key)) = (self.tls_cert, self.tls_key) {
            config.server.tls = Some(TlsConfig { cert, key });
        }
        if self.tls_self_signed {
            let folder = self_signed::folder(|name| std::env::var(name).ok());
            let tls = self_signed::certificate(&folder, config.server.listen.ip())?;
            let fingerprint = self_signed::fingerprint(&tls.cert)?;
            tell(io::stderr(), &format!("certificate: {} (self-signed; SHA-256 {fingerprint})", tls.cert.display()));
            config.server.tls = Some(tls);
        }
        config
            .check(|key| (key == "upstream.url").then(|| "--upstream".to_owned()))
            .map_err(|e| Usage(e.to_string()))?;
        Ok(config)
    }
}

/// The store, where nobody says another one.
pub fn store_file() -> PathBuf {
    self_signed::folder(|name| std::env::var(name).ok()).join("voxrelay.db")
}

/// The usage ledger, where nobody says another one.
pub fn ledger_file() -> PathBuf {
    self_signed::folder(|name| std::env::var(name).ok()).join("ledger.db")
}

/// The configuration from a file and this process's environment.
///
/// # Errors
/// What is wrong with it, and where.
pub fn load(file: Option<&std::path::Path>) -> Result<Config, Usage> {
    Config::load(file, |name| std::env::var(name).ok()).map_err(|e| Usage(e.to_string()))
}

/// What an operator should know of the prices; nothing, where only the simulator answers.
///
/// # Errors
/// When they cannot be read.
pub fn price_doubts(config: &Config) -> Result<Vec<String>, Usage> {
    let prices = PriceList::load(config.prices.file.as_deref()).map_err(|error| Usage(error.to_string()))?;
    Ok(if config.is_simulated() { Vec::new() } else { doubts(config, &prices, unix_now()) })
}

/// Serves until SIGTERM or SIGINT, or until another process does, then drains; a second signal ends it at once.
///
/// # Errors
/// When it cannot start.
pub async fn run(args: ServeArgs) -> anyhow::Result<ExitCode> {
    let config = args.load()?;
    logs::install(&config.log)?;
    price_doubts(&config)?.iter().for_each(|doubt| tracing::warn!("{doubt}"));
    let drain_s = config.server.drain_s;
    let scheme = if config.server.tls.is_some() { "https" } else { "http" };
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut hangup = signal(SignalKind::hangup())?;
    let Relay { mut server, sim } = Relay::start(config, Some(metrics::install()?)).await?;
    if let Some(sim) = &sim {
        let simulated = format!(
            "no upstream and no OPENAI_API_KEY: answering with the embedded simulator at {} (it speaks back what it hears)",
            sim.base_url()
        );
        tell(io::stderr(), &simulated);
    }
    tell(io::stdout(), &format!("listening on {scheme}://{}", server.addr()));
    loop {
        let told_to = stay(&server, &mut term, &mut int, &mut hangup).await;
        tell(io::stderr(), &format!("leaving: calls have {drain_s} s to finish; once more to leave at once"));
        if told_to {
            server.drain(told(&mut term, &mut int)).await;
            break;
        }
        if server.leave(told(&mut term, &mut int)).await {
            break;
        }
        tell(io::stderr(), "the process that followed is gone: this one serves again");
    }
    if let Some(sim) = sim {
        sim.stop().await;
    }
    Ok(ExitCode::SUCCESS)
}

/// Until somebody says that it is over, or another process serves (`false`); SIGHUP: the configuration is read anew.
async fn stay(server: &Server, term: &mut Signal, int: &mut Signal, hangup: &mut Signal) -> bool {
    loop {
        tokio::select! {
            () = told(term, int) => return true,
            () = server.followed() => {
                tell(io::stderr(), "another process serves in place of this one");
                return false;
            }
            Some(()) = hangup.recv() => server.reload(),
        }
    }
}

async fn told(term: &mut Signal, int: &mut Signal) {
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}
