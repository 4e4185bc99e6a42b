//! `voxrelay check`: is the configuration what you think it is, and does the service answer?
use std::{io, path::PathBuf, process::ExitCode, sync::Arc};

use anyhow::Context as _;
use clap::Args;
use tokio::time::Instant;

use super::{Usage, serve, tell};
use crate::{
    config::TlsConfig,
    net::tls::{Files, Tls},
    upstream::{Wanted, open::Upstream},
};

/// Arguments of `check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Also open a session at the model service
    #[arg(long)]
    dial: bool,
}

/// Prints the effective configuration with secrets redacted, and tries the service when asked to.
///
/// # Errors
/// What is wrong with the configuration, or why there is no session.
pub async fn run(args: CheckArgs) -> anyhow::Result<ExitCode> {
    let config = serve::load(args.config.as_deref())?;
    tell(io::stdout(), toml::to_string(&config).context("the configuration cannot be printed")?.trim_end());
    if let Some(TlsConfig { cert, key }) = config.server.tls.clone() {
        Tls::load(Files { cert, key }).map_err(|error| Usage(error.to_string()))?;
    }
    if config.upstream.url.is_none() && config.upstream.api_key.is_none() {
        tell(io::stderr(), "no upstream.url and no key: `serve` will answer with the embedded simulator");
        if args.dial {
            return Err(
                Usage("--dial: there is no service to dial; set OPENAI_API_KEY or upstream.url".to_owned()).into()
            );
        }
    }
    if args.dial {
        let model = config.upstream.model.clone();
        let upstream = Upstream::new(Arc::new(config.upstream)).map_err(Usage)?;
        let began = Instant::now();
        let session = upstream.open(&Wanted::voice(&model)).await?;
        let up = format!("session {} of model {model} is up after {} ms", session.id, began.elapsed().as_millis());
        tell(io::stderr(), &up);
        session.socket.close(1000, "", std::time::Duration::from_secs(1)).await;
    }
    Ok(ExitCode::SUCCESS)
}
