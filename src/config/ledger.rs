//! Where usage is written down, and what it costs: `[ledger]` and `[prices]`.
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::StoreConfig;

/// `[ledger]`: one row per reply, for [`crate::ledger`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LedgerConfig {
    /// A SQLite file; empty: none. None: `ledger.db` in the user's data folder, for the commands that say so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// How long calls are still taken while it cannot be written, seconds; then new ones are refused (fault matrix D2).
    pub grace_s: u64,
}

/// `[prices]`: what models cost, for [`crate::admit::price`].
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PricesConfig {
    /// A price list (TOML) whose rows take the place of the relay's own; none: only its own (`assets/prices.toml`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
}

impl Default for LedgerConfig {
    fn default() -> Self {
        Self { file: None, grace_s: 60 }
    }
}

impl LedgerConfig {
    pub(super) fn check(&self, store: &StoreConfig, problem: &mut impl FnMut(&str, String, &str)) {
        if self.grace_s > 86_400 {
            problem("ledger.grace_s", self.grace_s.to_string(), "0 to 86400 seconds");
        }
        if let Some(file) =
            self.file.as_ref().filter(|file| !file.as_os_str().is_empty() && store.file.as_ref() == Some(file))
        {
            problem("ledger.file", format!("`{}`", file.display()), "another file than store.file");
        }
    }
}
