//! A relay in this process, on the configured service or on an embedded simulator: for `serve`, and for `say` without a URL.
use std::net::SocketAddr;

use anyhow::Context as _;
use metrics_exporter_prometheus::PrometheusHandle;

use crate::{
    config::{Config, Secret},
    serve::{ServeError, Server},
    sim::{Faults, Sim, SimConfig},
};

/// A relay, and the simulator behind it if there is one.
#[derive(Debug)]
pub struct Relay {
    /// The relay.
    pub server: Server,
    /// The simulator.
    pub sim: Option<Sim>,
}

impl Relay {
    /// Starts both, the simulator only where neither an upstream nor a key is configured.
    ///
    /// # Errors
    /// When an address cannot be had, or the configuration cannot work.
    pub async fn start(mut config: Config, metrics: Option<PrometheusHandle>) -> anyhow::Result<Self> {
        let sim = if config.is_simulated() {
            let addr = SocketAddr::from(([127, 0, 0, 1], 0));
            let sim = Sim::start(addr, SimConfig::default(), Faults::default())
                .await
                .context("cannot start the simulator")?;
            config.upstream.url = Some(sim.base_url());
            config.upstream.api_key = Some(Secret::new("sim-embedded"));
            Some(sim)
        } else {
            None
        };
        let server = Server::start(config, metrics).await.map_err(|error| match error {
            ServeError::Listen { .. }
            | ServeError::AudioSocket { .. }
            | ServeError::Thread(_)
            | ServeError::Webhooks(_)
            | ServeError::Handover(_) => anyhow::Error::new(error),
            ServeError::Open { .. }
            | ServeError::Upstream { .. }
            | ServeError::Incidents(_)
            | ServeError::Sound(_)
            | ServeError::Phone(_)
            | ServeError::Tls(_)
            | ServeError::Store(_)
            | ServeError::Prices(_)
            | ServeError::Ledger(_) => super::Usage(error.to_string()).into(),
        })?;
        Ok(Self { server, sim })
    }

    /// Ends both at once.
    pub async fn stop(self) {
        self.server.drain(std::future::ready(())).await;
        if let Some(sim) = self.sim {
            sim.stop().await;
        }
    }
}
