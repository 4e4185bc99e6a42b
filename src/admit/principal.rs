//! Who speaks for a call. One value, made by the [`super::Gate`]; only commands that try a configuration speak for themselves
//! ([`Principal::operator`]).
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{governor::Class, tenant::Tenant};
use crate::{
    audio::Codec,
    config::{KeyHash, PolicyConfig, Scope, Secret},
};

/// The tenant of those who are asked for no credential.
pub const LOCAL: &str = "local";

/// Somebody who may come in.
#[derive(Debug, Clone)]
pub struct Principal(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// None: nobody was asked.
    tenant: Option<Arc<Tenant>>,
    /// The key that was shown, or that made the token.
    key: Option<KeyHash>,
    scopes: Vec<Scope>,
    token: Option<Grant>,
    user: Option<String>,
    safety_id: Option<String>,
    /// A client secret that we made for it, and that it comes with.
    secret: Option<Brought>,
    /// Its telephone provider has vouched for it: it called one of the tenant's numbers, or was called for the tenant.
    by_phone: bool,
}

/// A client secret that somebody comes back with, and what it was made for.
#[derive(Debug, Clone)]
pub struct Brought {
    /// The secret.
    pub value: Secret,
    /// The agent under whose policy it was made.
    pub agent: String,
    /// Its model; none: its session only writes down.
    pub model: Option<String>,
}

/// What a call token grants.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// Names the token.
    pub jti: String,
    /// The key that signed it.
    pub kid: String,
    /// When it was made, Unix seconds.
    pub made_at: u64,
    /// Until when, Unix seconds.
    pub expires_at: u64,
    /// The only agent that may be called.
    pub agent: Option<String>,
    /// The only origin of pages that may use it.
    pub origin: Option<String>,
    /// What may be sent and got; empty: everything.
    pub formats: Vec<Codec>,
    /// Longest call, seconds.
    pub max_call_s: Option<u64>,
    /// How many calls may be opened with it, or client secrets made.
    pub uses: Option<u32>,
    /// Client secrets may be made with it, and SDP exchanged: its bearer speaks to the service directly.
    pub direct: bool,
}

/// A principal, written down for another process; good for nothing before that one's gate has looked at it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    /// None: nobody was asked.
    pub(super) tenant: Option<String>,
    pub(super) key: Option<KeyHash>,
    pub(super) token: Option<Grant>,
    pub(super) user: Option<String>,
}

impl Principal {
    /// As it is written down. A client secret that it came with is not.
    pub fn named(&self) -> Named {
        Named {
            tenant: self.tenant().map(|tenant| tenant.id.clone()),
            key: self.key(),
            token: self.token().cloned(),
            user: self.user().map(str::to_owned),
        }
    }

    /// Somebody whom nobody asked: there are no tenants, and only this machine is served, or everybody by the operator's word.
    pub(super) fn local() -> Self {
        Self::new(None, None, Scope::all(), None)
    }

    /// The operator at this machine, who has the account's key anyway: for commands that try a configuration.
    pub fn operator() -> Self {
        Self::local()
    }

    pub(super) fn new(
        tenant: Option<Arc<Tenant>>,
        key: Option<KeyHash>,
        scopes: Vec<Scope>,
        token: Option<Grant>,
    ) -> Self {
        Self(Arc::new(Inner { tenant, key, scopes, token, user: None, safety_id: None, secret: None, by_phone: false }))
    }

    /// Somebody with a key of this tenant.
    #[cfg(test)]
    pub(crate) fn of_tenant(tenant: Arc<Tenant>) -> Self {
        Self::new(Some(tenant), None, Scope::usual(), None)
    }

    /// Somebody who called one of a tenant's numbers, or is called for it.
    pub(super) fn by_phone(tenant: Option<Arc<Tenant>>) -> Self {
        let who = Self::new(tenant, None, vec![Scope::Call], None);
        Self(Arc::new(Inner { by_phone: true, ..who.0.copy() }))
    }

    /// It came by telephone: no key and no token of its own.
    pub fn is_by_phone(&self) -> bool {
        self.0.by_phone
    }

    /// The same one, for an end user. `safety_id`: what the user is called upstream.
    pub(super) fn for_user(self, user: String, safety_id: String) -> Self {
        let inner = Inner { user: Some(user), safety_id: Some(safety_id), ..self.0.copy() };
        Self(Arc::new(inner))
    }

    pub(super) fn with_secret(self, secret: Brought) -> Self {
        Self(Arc::new(Inner { secret: Some(secret), ..self.0.copy() }))
    }

    /// Who pays: the tenant's id, or [`LOCAL`].
    pub fn tenant_id(&self) -> &str {
        self.0.tenant.as_ref().map_or(LOCAL, |tenant| &tenant.id)
    }

    /// Their part of an account's limits, against others.
    pub fn weight(&self) -> u32 {
        self.0.tenant.as_ref().map_or(1, |tenant| tenant.config.weight)
    }

    /// Whether somebody waits on the line for its answers.
    pub fn class(&self) -> Class {
        self.0.tenant.as_ref().map_or(Class::Interactive, |tenant| tenant.config.class)
    }

    /// Who pays.
    pub fn tenant(&self) -> Option<&Arc<Tenant>> {
        self.0.tenant.as_ref()
    }

    /// The key that it came with, or that made its token.
    pub fn key(&self) -> Option<KeyHash> {
        self.0.key
    }

    /// The label of its key, if it came with one.
    pub fn key_label(&self) -> Option<String> {
        let key = self.key()?;
        self.tenant()?.config.keys.iter().find(|known| known.hash == key).map(|known| known.label.clone())
    }

    /// What its token grants, if it came with one.
    pub fn token(&self) -> Option<&Grant> {
        self.0.token.as_ref()
    }

    /// The end user, by the tenant's own name for them.
    pub fn user(&self) -> Option<&str> {
        self.0.user.as_deref()
    }

    /// What the end user is called upstream (`OpenAI-Safety-Identifier`).
    pub fn safety_id(&self) -> Option<&str> {
        self.0.safety_id.as_deref()
    }

    /// The client secret that it came with.
    pub fn secret(&self) -> Option<&Brought> {
        self.0.secret.as_ref()
    }

    /// Whether a call of `owner` is this one's to steer: a tenant's key steers all of its calls, a token those that were opened
    /// with it, or by its user.
    pub fn steers(&self, owner: &Self) -> bool {
        let user = || self.user().is_some() && self.user() == owner.user();
        let token = || self.jti().is_some() && self.jti() == owner.jti();
        self.tenant_id() == owner.tenant_id() && (self.token().is_none() || token() || user())
    }

    /// The name of its token, where it came with one.
    fn jti(&self) -> Option<&str> {
        self.token().map(|token| token.jti.as_str()).filter(|jti| !jti.is_empty())
    }

    /// What two principals must have in common for one client secret to be given to both: everything that binds its use.
    pub fn binding(&self) -> String {
        let token = self.token().map(|Grant { agent, origin, formats, max_call_s, .. }| {
            (agent.clone(), origin.clone(), formats.clone(), *max_call_s)
        });
        format!("{:?} {:?} {:?}", self.0.key, self.0.user, token)
    }

    /// Whether its key may be used for this.
    pub fn may(&self, scope: Scope) -> bool {
        self.0.scopes.contains(&scope)
    }

    /// Whether it may call this agent.
    pub fn may_call(&self, agent: &str) -> bool {
        let tenant = self.0.tenant.as_ref().map_or(&[][..], |tenant| &tenant.config.agents);
        let token = self.0.token.as_ref().and_then(|token| token.agent.as_deref());
        (tenant.is_empty() || tenant.iter().any(|allowed| allowed == agent)) && token.is_none_or(|only| only == agent)
    }

    /// The agent that it calls where it names none.
    pub fn agent<'a>(&'a self, usual: &'a str) -> &'a str {
        let token = self.0.token.as_ref().and_then(|token| token.agent.as_deref());
        token.unwrap_or_else(|| match self.0.tenant.as_ref().map_or(&[][..], |tenant| &tenant.config.agents) {
            [only] => only,
            _ => usual,
        })
    }

    /// Whether it may use this model.
    pub fn may_use(&self, model: &str) -> bool {
        let models = self.0.tenant.as_ref().map_or(&[][..], |tenant| &tenant.config.models);
        models.is_empty() || models.iter().any(|allowed| allowed == model)
    }

    /// Whether it may speak and hear this.
    pub fn may_speak(&self, codec: Codec) -> bool {
        let tenant = self.0.tenant.as_ref().map_or(&[][..], |tenant| &tenant.config.formats);
        let token = self.0.token.as_ref().map_or(&[][..], |token| &token.formats);
        [tenant, token].into_iter().all(|formats| formats.is_empty() || formats.contains(&codec))
    }

    /// Longest call, seconds, where `usual` is everybody's.
    pub fn max_call_s(&self, usual: u64) -> u64 {
        let tenant = self.0.tenant.as_ref().and_then(|tenant| tenant.config.max_call_s);
        let token = self.0.token.as_ref().and_then(|token| token.max_call_s);
        let own = tenant.unwrap_or(usual);
        token.map_or(own, |token| token.min(own))
    }

    /// Longest silence, seconds, where `usual` is everybody's; 0: for ever.
    pub fn idle_s(&self, usual: u64) -> u64 {
        self.0.tenant.as_ref().and_then(|tenant| tenant.config.idle_s).unwrap_or(usual)
    }

    /// The account that it uses; none: the usual one.
    pub fn upstream(&self) -> Option<&str> {
        self.0.tenant.as_ref().and_then(|tenant| tenant.config.upstream.as_deref())
    }

    /// What its clients may set, as far as its tenant says.
    pub fn policy(&self) -> PolicyConfig {
        self.0.tenant.as_ref().map(|tenant| tenant.config.policy).unwrap_or_default()
    }

    /// Whether its calls share client secrets.
    pub fn shares_secrets(&self) -> bool {
        self.0.tenant.as_ref().is_none_or(|tenant| tenant.config.share_secrets)
    }
}

impl Inner {
    fn copy(&self) -> Self {
        let Self { tenant, key, scopes, token, user, safety_id, secret, by_phone } = self;
        Self {
            tenant: tenant.clone(),
            key: *key,
            scopes: scopes.clone(),
            token: token.clone(),
            user: user.clone(),
            safety_id: safety_id.clone(),
            secret: secret.clone(),
            by_phone: *by_phone,
        }
    }
}
