//! Log lines: to standard error, for people or as JSON. `RUST_LOG` overrides the configured level.
use tracing_subscriber::EnvFilter;

use crate::config::{LogConfig, LogFormat};

/// Logs from now on.
pub fn install(config: &LogConfig) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(&config.level));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A second one in the same process changes nothing.
    let _ = match config.format {
        LogFormat::Pretty => builder.with_target(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
}
