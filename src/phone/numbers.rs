//! Which number reaches which agent, and who may be called from here.
use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, PoisonError},
};

use crate::config::{DialConfig, NumberConfig, PhoneConfig, is_e164};

/// `[[phone.numbers]]`, ready to be asked.
#[derive(Debug, Clone, Default)]
pub struct Numbers {
    all: Vec<NumberConfig>,
}

impl Numbers {
    /// As they are configured.
    pub fn new(config: &PhoneConfig) -> Self {
        Self { all: config.numbers.clone() }
    }

    /// Who answers at `called`, which came in through `account`. An entry for the number goes before `*`, and of two that fit the one
    /// that names the account.
    pub fn find(&self, called: &str, account: &str) -> Option<&NumberConfig> {
        let called = plain(called);
        let fits = |number: &str| number == called || is_e164(number) && number.strip_prefix('+') == Some(&called);
        let here = |entry: &&NumberConfig| entry.account.as_deref() == Some(account);
        let anywhere = |entry: &&NumberConfig| entry.account.is_none();
        let exact = || self.all.iter().filter(|entry| entry.number != "*" && fits(&entry.number));
        let any = || self.all.iter().filter(|entry| entry.number == "*");
        exact()
            .find(here)
            .or_else(|| exact().find(anywhere))
            .or_else(|| any().find(here))
            .or_else(|| any().find(anywhere))
    }

    /// Whether a tenant may show this number: one that reaches it, through this account.
    pub fn may_show(&self, number: &str, account: &str, tenant: Option<&str>) -> bool {
        self.all.iter().any(|entry| {
            entry.number == number
                && entry.tenant.as_deref() == tenant
                && entry.account.as_deref().is_none_or(|own| own == account)
        })
    }
}

/// What was called, without scheme, host and parameters: `sip:+15550100@example.com;user=phone` is `+15550100`.
fn plain(called: &str) -> String {
    let called = called.trim();
    let rest = ["sip:", "sips:", "tel:"].iter().find_map(|scheme| called.strip_prefix(scheme)).unwrap_or(called);
    rest.split(['@', ';']).next().unwrap_or_default().to_owned()
}

/// Why a number may not be called now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DialRefused {
    /// It is no number.
    #[error("found no telephone number; allowed: `+` and 7 to 15 digits, such as +15550100")]
    NoNumber,
    /// Neither prefixes nor numbers allow it.
    #[error("the number is not among those that may be called (phone.dial)")]
    NotAllowed,
    /// Too many in the last minute.
    #[error("{per_minute} calls a minute are allowed (phone.dial.per_minute); the next in {retry_s} s")]
    TooMany {
        /// So many are allowed.
        per_minute: u32,
        /// The next one may begin then, seconds.
        retry_s: u64,
    },
}

/// `[phone.dial]`, and who has begun calls in the last minute.
#[derive(Debug, Default)]
pub struct Dials {
    config: DialConfig,
    /// When calls began, Unix seconds, by tenant.
    begun: Mutex<HashMap<String, VecDeque<u64>>>,
}

impl Dials {
    /// With nobody called so far.
    pub fn new(config: &DialConfig) -> Self {
        Self { config: config.clone(), begun: Mutex::default() }
    }

    /// Takes a call of this tenant (`""`: there are no tenants) to this number, Unix seconds `now`.
    ///
    /// # Errors
    /// Why it may not be made; then none was taken.
    pub fn take(&self, tenant: &str, number: &str, now: u64) -> Result<(), DialRefused> {
        if !is_e164(number) {
            return Err(DialRefused::NoNumber);
        }
        let own = self.config.tenants.get(tenant);
        let (per_minute, prefixes, numbers) = match own {
            Some(own) => (own.per_minute, &own.prefixes, &own.numbers),
            None => (self.config.per_minute, &self.config.prefixes, &self.config.numbers),
        };
        if !numbers.iter().any(|one| one == number) && !prefixes.iter().any(|begin| number.starts_with(begin.as_str()))
        {
            return Err(DialRefused::NotAllowed);
        }
        let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        let times = begun.entry(tenant.to_owned()).or_default();
        while times.front().is_some_and(|at| at + 60 <= now) {
            times.pop_front();
        }
        if times.len() >= per_minute as usize {
            let retry_s = times.front().map_or(1, |at| (at + 60).saturating_sub(now).max(1));
            return Err(DialRefused::TooMany { per_minute, retry_s });
        }
        times.push_back(now);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::TenantDialConfig;

    #[test]
    fn a_number_finds_the_entry_that_fits_best() {
        let entry = |number: &str, account: Option<&str>, agent: &str| NumberConfig {
            number: number.into(),
            account: account.map(str::to_owned),
            agent: agent.into(),
            tenant: Some("acme".into()),
        };
        let numbers = Numbers {
            all: vec![
                entry("*", None, "all"),
                entry("*", Some("plivo"), "plivo-all"),
                entry("+15550100", None, "sales"),
                entry("+15550100", Some("plivo"), "plivo-sales"),
                entry("+15550199", Some("plivo"), "plivo-only"),
                entry("reception", None, "desk"),
            ],
        };
        for (called, account, agent) in [
            ("+15550100", "twilio", "sales"),
            ("15550100", "twilio", "sales"),
            ("15550100", "plivo", "plivo-sales"),
            ("sip:+15550100@example.com;user=phone", "twilio", "sales"),
            ("tel:+15550100", "twilio", "sales"),
            ("sip:reception@10.0.0.1:5060", "asterisk", "desk"),
            ("+15550199", "twilio", "all"),
            ("+15550199", "plivo", "plivo-only"),
            ("+15550101", "plivo", "plivo-all"),
            ("", "twilio", "all"),
        ] {
            assert_eq!(numbers.find(called, account).map(|e| e.agent.as_str()), Some(agent), "{called} {account}");
        }
        assert!(Numbers::default().find("+15550100", "twilio").is_none());
        assert!(numbers.may_show("+15550100", "twilio", Some("acme")));
        assert!(!numbers.may_show("+15550100", "twilio", Some("other")));
        assert!(!numbers.may_show("+15550199", "twilio", Some("acme")));
        assert!(!numbers.may_show("+15550123", "plivo", Some("acme")));
    }

    #[test]
    fn only_allowed_numbers_are_called_and_not_too_often() {
        let own = TenantDialConfig { per_minute: 1, prefixes: vec!["+44".into()], numbers: Vec::new() };
        let dials = Dials::new(&DialConfig {
            per_minute: 2,
            prefixes: vec!["+49".into()],
            numbers: vec!["+15550100".into()],
            tenants: [("uk".to_owned(), own)].into(),
        });
        assert_eq!(Dials::default().take("", "+15550100", 0), Err(DialRefused::NotAllowed), "by default nobody");
        assert_eq!(dials.take("a", "015550100", 0), Err(DialRefused::NoNumber));
        assert_eq!(dials.take("a", "+15550101", 0), Err(DialRefused::NotAllowed));
        assert_eq!(dials.take("uk", "+4930123456", 0), Err(DialRefused::NotAllowed), "own rules take their place");
        assert_eq!(dials.take("uk", "+442079460000", 0), Ok(()));
        assert_eq!(dials.take("a", "+15550100", 100), Ok(()));
        assert_eq!(dials.take("a", "+4930123456", 130), Ok(()));
        assert_eq!(dials.take("a", "+15550100", 131), Err(DialRefused::TooMany { per_minute: 2, retry_s: 29 }));
        assert_eq!(dials.take("b", "+15550100", 131), Ok(()), "others are not in the way");
        assert_eq!(dials.take("a", "+15550100", 160), Ok(()));
    }
}
