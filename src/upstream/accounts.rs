//! All accounts of a process, by name: `[upstream]`, and `[upstreams]`.
use std::{collections::BTreeMap, sync::Arc};

use super::open::Upstream;
use crate::{admit::quota::Quota, config::USUAL_UPSTREAM};

/// All accounts.
#[derive(Debug)]
pub struct Accounts {
    usual: Upstream,
    named: BTreeMap<String, Upstream>,
}

impl Accounts {
    /// The usual one, and those that have names.
    pub fn new(usual: Upstream, named: BTreeMap<String, Upstream>) -> Self {
        Self { usual, named }
    }

    /// The one of this name; without a name, the usual one. `None`: it is not configured.
    pub fn get(&self, name: Option<&str>) -> Option<&Upstream> {
        name.map_or(Some(&self.usual), |name| self.named.get(name))
    }

    /// The quota of each, by name; `None`: the usual one's.
    pub fn quotas(&self) -> Vec<(Option<String>, Arc<Quota>)> {
        let named = self.named.iter().map(|(name, upstream)| (Some(name.clone()), upstream.quota().clone()));
        named.chain([(None, self.usual.quota().clone())]).collect()
    }

    /// All of them, by what the ledger calls them.
    pub fn all(&self) -> impl Iterator<Item = (&str, &Upstream)> {
        self.named.iter().map(|(name, upstream)| (name.as_str(), upstream)).chain([(USUAL_UPSTREAM, &self.usual)])
    }
}
