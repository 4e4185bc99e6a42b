//! Log lines: to standard error, for people or as JSON. `RUST_LOG` overrides the configured level.
//!
//! Whatever it says, other people's crates speak at `info` and above only: `tungstenite` prints whole messages at
//! `trace`, and so what people say, type and are told.
use std::io::{IsTerminal as _, stderr};

use tracing::{Level, Metadata};
use tracing_subscriber::{
    EnvFilter, Layer as _, filter::filter_fn, fmt::MakeWriter, layer::SubscriberExt as _, util::SubscriberInitExt as _,
};

use super::Usage;
use crate::config::{LOG_LEVELS, LogConfig, LogFormat, is_log_level};

/// Logs from now on.
///
/// # Errors
/// When `RUST_LOG` is not a level.
pub fn install(config: &LogConfig) -> Result<(), Usage> {
    install_to(config, std::env::var("RUST_LOG").ok().as_deref(), stderr)
}

/// As [`install`], to another place.
///
/// # Errors
/// When `rust_log` is not a level.
pub fn install_to<W>(config: &LogConfig, rust_log: Option<&str>, place: W) -> Result<(), Usage>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let filter = filter(rust_log, &config.level)?;
    let lines = tracing_subscriber::fmt::layer().with_writer(place);
    let lines = match config.format {
        LogFormat::Pretty => {
            let colours = stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty());
            lines.with_target(false).with_ansi(colours).boxed()
        }
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    // A second one in the same process changes nothing.
    let _ = tracing_subscriber::registry().with(filter_fn(may_be_shown)).with(filter).with(lines).try_init();
    Ok(())
}

fn filter(rust_log: Option<&str>, configured: &str) -> Result<EnvFilter, Usage> {
    match rust_log.filter(|level| !level.trim().is_empty()) {
        Some(level) if is_log_level(level) => Ok(EnvFilter::new(level)),
        Some(level) => Err(Usage(format!("RUST_LOG: found `{level}`; allowed: {LOG_LEVELS}"))),
        None => Ok(EnvFilter::new(configured)),
    }
}

/// Our own lines hold no audio, transcript, key or typed text; of others we know it from `info` on.
fn may_be_shown(line: &Metadata<'_>) -> bool {
    let ours = line.target().strip_prefix("voxrelay").is_some_and(|rest| rest.is_empty() || rest.starts_with("::"));
    ours || *line.level() <= Level::INFO
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_that_means_nothing_is_refused_and_rust_log_goes_first() {
        assert_eq!(filter(Some("debug"), "info").unwrap().to_string(), "debug");
        assert_eq!(filter(Some(" "), "info").unwrap().to_string(), "info");
        assert_eq!(filter(None, "voxrelay=error").unwrap().to_string(), "voxrelay=error");
        for wrong in ["loud", "a=b=c", "voxrelay=loud"] {
            let error = filter(Some(wrong), "info").unwrap_err().to_string();
            assert!(error.contains(wrong) && error.contains("trace"), "{error}");
        }
    }
}
