//! Who pays: tenants by id, and by the hashes of their keys.
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use crate::config::{KeyConfig, KeyHash, Scope, TenantConfig};

/// One tenant, as it is now.
#[derive(Debug, Clone, PartialEq)]
pub struct Tenant {
    /// Its id.
    pub id: String,
    /// What it may do, and its keys.
    pub config: TenantConfig,
}

impl Tenant {
    /// A key of it that is good at `unix`, seconds.
    pub fn key(&self, hash: KeyHash, unix: u64) -> Option<&KeyConfig> {
        self.config.keys.iter().find(|key| key.hash == hash && key.expires.is_none_or(|end| unix < end.0))
    }
}

/// All tenants.
#[derive(Debug, Default)]
pub struct Tenants {
    by_id: BTreeMap<String, Arc<Tenant>>,
    by_key: HashMap<KeyHash, Arc<Tenant>>,
}

impl Tenants {
    /// From their configurations, by id.
    pub fn new(configs: BTreeMap<String, TenantConfig>) -> Self {
        let mut tenants = Self::default();
        for (id, config) in configs {
            let tenant = Arc::new(Tenant { id: id.clone(), config });
            for key in &tenant.config.keys {
                tenants.by_key.insert(key.hash, tenant.clone());
            }
            tenants.by_id.insert(id, tenant);
        }
        tenants
    }

    /// Nobody is configured.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// By id.
    pub fn get(&self, id: &str) -> Option<&Arc<Tenant>> {
        self.by_id.get(id)
    }

    /// The tenant of a key that is good now, and what the key may be used for.
    pub fn by_key(&self, hash: KeyHash, unix: u64) -> Option<(&Arc<Tenant>, &[Scope])> {
        let tenant = self.by_key.get(&hash)?;
        tenant.key(hash, unix).map(|key| (tenant, key.scopes.as_slice()))
    }

    /// Whether pages of this origin may call for any of them.
    pub fn origin_is_known(&self, origin: &str) -> bool {
        self.by_id.values().any(|tenant| tenant.config.origins.iter().any(|known| known == origin))
    }
}
