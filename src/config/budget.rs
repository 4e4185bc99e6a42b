//! `[budget]` and `[tenants.NAME.budget]`: what may be spent, in money and in tokens.
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, de};

use crate::admit::price::Usd;

/// Largest limit in money, USD.
const MOST_USD: i128 = 1_000_000_000;
/// Largest limit in tokens.
const MOST_TOKENS: u64 = 1 << 48;

/// What may be spent, what is said before it is, and what happens then. What is left out has no limit; 0 is nothing at all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BudgetConfig {
    /// The call is warned when so much of a limit is used, per cent.
    pub warn_percent: u8,
    /// What becomes of a call that may spend no more.
    pub when_spent: WhenSpent,
    /// Said before the call ends; none: nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub farewell: Option<String>,
    /// All calls together.
    #[serde(skip_serializing_if = "AllowanceConfig::is_empty")]
    pub all: AllowanceConfig,
    /// Each key that has no `budget` of its own.
    #[serde(skip_serializing_if = "AllowanceConfig::is_empty")]
    pub key: AllowanceConfig,
    /// Each end user.
    #[serde(skip_serializing_if = "AllowanceConfig::is_empty")]
    pub user: AllowanceConfig,
    /// Each call.
    #[serde(skip_serializing_if = "CallAllowanceConfig::is_empty")]
    pub call: CallAllowanceConfig,
}

impl Default for BudgetConfig {
    fn default() -> Self {
        Self {
            warn_percent: 80,
            when_spent: WhenSpent::End,
            farewell: None,
            all: AllowanceConfig::default(),
            key: AllowanceConfig::default(),
            user: AllowanceConfig::default(),
            call: CallAllowanceConfig::default(),
        }
    }
}

/// What becomes of a call that may spend no more.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhenSpent {
    /// It ends.
    #[default]
    End,
    /// It goes on with a cheaper route as long as that fits, and then ends.
    Degrade,
}

/// What may be spent in a minute, a day and a month. Days and months are those of the calendar, UTC.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AllowanceConfig {
    /// USD in any minute.
    #[serde(deserialize_with = "amount", skip_serializing_if = "Option::is_none")]
    pub usd_minute: Option<Usd>,
    /// USD in a day.
    #[serde(deserialize_with = "amount", skip_serializing_if = "Option::is_none")]
    pub usd_day: Option<Usd>,
    /// USD in a month.
    #[serde(deserialize_with = "amount", skip_serializing_if = "Option::is_none")]
    pub usd_month: Option<Usd>,
    /// Tokens in any minute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_minute: Option<u64>,
    /// Tokens in a day.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_day: Option<u64>,
    /// Tokens in a month.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_month: Option<u64>,
}

/// What one call may spend.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CallAllowanceConfig {
    /// USD.
    #[serde(deserialize_with = "amount", skip_serializing_if = "Option::is_none")]
    pub usd: Option<Usd>,
    /// Tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u64>,
}

impl BudgetConfig {
    /// Nothing is said of it.
    pub fn is_usual(&self) -> bool {
        *self == Self::default()
    }

    /// `section`: where it stands, `budget` or `tenants.NAME.budget`.
    pub(super) fn check(&self, section: &str, problem: &mut impl FnMut(&str, String, &str)) {
        let key = |field: &str| format!("{section}.{field}");
        if !(1..=100).contains(&self.warn_percent) {
            problem(&key("warn_percent"), self.warn_percent.to_string(), "1 to 100 per cent");
        }
        if let Some(farewell) = self.farewell.as_ref().filter(|text| !(1..=1_000).contains(&text.len())) {
            problem(&key("farewell"), format!("{} bytes", farewell.len()), "1 to 1000 bytes");
        }
        self.all.check(&key("all"), problem);
        self.key.check(&key("key"), problem);
        self.user.check(&key("user"), problem);
        check_one(&key("call"), ("usd", self.call.usd), ("tokens", self.call.tokens), problem);
    }
}

impl AllowanceConfig {
    /// Nothing is limited.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    pub(super) fn check(&self, section: &str, problem: &mut impl FnMut(&str, String, &str)) {
        check_one(section, ("usd_minute", self.usd_minute), ("tokens_minute", self.tokens_minute), problem);
        check_one(section, ("usd_day", self.usd_day), ("tokens_day", self.tokens_day), problem);
        check_one(section, ("usd_month", self.usd_month), ("tokens_month", self.tokens_month), problem);
    }
}

impl CallAllowanceConfig {
    /// Nothing is limited.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

fn check_one(
    section: &str,
    (usd_field, usd): (&str, Option<Usd>),
    (tokens_field, tokens): (&str, Option<u64>),
    problem: &mut impl FnMut(&str, String, &str),
) {
    if let Some(found) = usd.filter(|usd| usd.pico() > MOST_USD * 1_000_000_000_000) {
        problem(&format!("{section}.{usd_field}"), found.to_string(), &format!("0 to {MOST_USD} USD"));
    }
    if let Some(found) = tokens.filter(|tokens| *tokens > MOST_TOKENS) {
        problem(&format!("{section}.{tokens_field}"), found.to_string(), &format!("0 to {MOST_TOKENS} tokens"));
    }
}

/// An amount of money, as text or as a number; a number means the digits in which it is written.
fn amount<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Usd>, D::Error> {
    struct Amount;
    impl de::Visitor<'_> for Amount {
        type Value = Option<Usd>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an amount in USD such as 20 or \"0.40\"")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
            text.parse().map(Some).map_err(E::custom)
        }

        fn visit_u64<E: de::Error>(self, whole: u64) -> Result<Self::Value, E> {
            self.visit_str(&whole.to_string())
        }

        fn visit_i64<E: de::Error>(self, whole: i64) -> Result<Self::Value, E> {
            self.visit_str(&whole.to_string())
        }

        fn visit_f64<E: de::Error>(self, number: f64) -> Result<Self::Value, E> {
            self.visit_str(&number.to_string())
        }
    }
    from.deserialize_any(Amount)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(toml: &str) -> Result<BudgetConfig, String> {
        toml::from_str::<BudgetConfig>(toml).map_err(|error| error.to_string())
    }

    #[test]
    fn money_is_exact_however_it_is_written() {
        for (text, pico) in [
            ("20", 20_000_000_000_000),
            ("\"20\"", 20_000_000_000_000),
            ("0.1", 100_000_000_000),
            ("\"0.000000000001\"", 1),
            ("1e-6", 1_000_000),
            ("0", 0),
            ("0.0", 0),
        ] {
            let read = read(&format!("[all]\nusd_day = {text}\n[call]\nusd = {text}\n")).unwrap();
            assert_eq!(read.all.usd_day.map(Usd::pico), Some(pico), "{text}");
            assert_eq!(read.call.usd, read.all.usd_day);
            // As the store keeps it, and as `check` prints it.
            let kept = serde_json::to_string(&read).unwrap();
            assert_eq!(serde_json::from_str::<BudgetConfig>(&kept).unwrap(), read);
            assert_eq!(self::read(&toml::to_string(&read).unwrap()).unwrap(), read);
        }
        for (text, part) in [
            ("-1", "found `-1`; allowed: an amount in USD"),
            ("-0.5", "found `-0.5`"),
            ("nan", "found `NaN`"),
            ("inf", "found `inf`"),
            ("1e300", "found `1000"),
            ("\"much\"", "found `much`"),
            ("true", "an amount in USD such as 20"),
        ] {
            let error = read(&format!("[user]\nusd_month = {text}\n")).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        let found = |toml: &str| {
            let mut found = Vec::new();
            read(toml).unwrap().check("budget", &mut |key, what, allowed| {
                found.push(format!("{key}: found {what}; allowed: {allowed}"));
            });
            found
        };
        assert!(found("[all]\nusd_day = 1000000000\ntokens_day = 0\n").is_empty());
        for (toml, part) in [
            ("warn_percent = 0", "budget.warn_percent: found 0; allowed: 1 to 100 per cent"),
            ("warn_percent = 101", "found 101"),
            ("farewell = \"\"", "budget.farewell: found 0 bytes"),
            ("[all]\nusd_day = 1000000001", "budget.all.usd_day: found 1000000001; allowed: 0 to 1000000000 USD"),
            ("[key]\ntokens_month = 281474976710657", "budget.key.tokens_month: found 281474976710657"),
            ("[user]\nusd_minute = \"2000000000\"", "budget.user.usd_minute"),
            ("[call]\ntokens = 281474976710657", "budget.call.tokens"),
        ] {
            let found = found(toml);
            assert!(found.len() == 1 && found[0].contains(part), "{toml}: {found:?}");
        }
        for (toml, part) in [
            ("[all]\nusd_week = 1", "unknown field `usd_week`"),
            ("[call]\nusd_day = 1", "unknown field `usd_day`"),
            ("when_spent = \"beg\"", "`end` or `degrade`"),
            ("[all]\ntokens_day = -1", "-1"),
        ] {
            let error = read(toml).unwrap_err();
            assert!(error.contains(part), "{toml}: {error}");
        }
    }
}
