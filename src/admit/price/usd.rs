//! Amounts of money, exact: whole pico-dollars (10^-12 USD), never a float.
//!
//! A token at 0.02 USD a million is 20,000 of them. Only what is billed by time is rounded, to the nearest one.
use std::{
    fmt,
    iter::Sum,
    ops::{Add, AddAssign},
    str::FromStr,
};

use rust_decimal::Decimal;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// Digits after the point that can be told apart.
const SCALE: u32 = 12;

/// So many US dollars; written as text, `0.0072056`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Usd(i128);

impl Usd {
    /// From pico-dollars.
    pub const fn from_pico(pico: i128) -> Self {
        Self(pico)
    }

    /// In pico-dollars.
    pub const fn pico(self) -> i128 {
        self.0
    }

    fn decimal(self) -> Decimal {
        // More than 10^16 dollars are not shown.
        Decimal::try_from_i128_with_scale(self.0, SCALE).unwrap_or(Decimal::MAX)
    }

    /// For people: with so many digits after the point, half of the last one up.
    pub fn rounded(self, digits: u32) -> String {
        let rounded =
            self.decimal().round_dp_with_strategy(digits, rust_decimal::RoundingStrategy::MidpointAwayFromZero);
        format!("{rounded:.*}", usize::try_from(digits).unwrap_or_default())
    }
}

impl fmt::Display for Usd {
    /// All digits, and none more.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.decimal().normalize().fmt(f)
    }
}

impl FromStr for Usd {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let plain = text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
        let mut decimal = Some(text)
            .filter(|_| plain)
            .and_then(|text| Decimal::from_str_exact(text).ok())
            .map(|decimal| decimal.normalize())
            .filter(|decimal| decimal.scale() <= SCALE)
            .ok_or_else(|| format!("found `{text}`; allowed: an amount in USD such as 0.40"))?;
        decimal.rescale(SCALE);
        // A very large one loses digits rather than being scaled.
        if decimal.scale() == SCALE { Ok(Self(decimal.mantissa())) } else { Err(format!("found `{text}`: too much")) }
    }
}

impl Add for Usd {
    type Output = Self;

    fn add(self, more: Self) -> Self {
        Self(self.0.saturating_add(more.0))
    }
}

impl AddAssign for Usd {
    fn add_assign(&mut self, more: Self) {
        *self = *self + more;
    }
}

impl Sum for Usd {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), Self::add)
    }
}

impl Serialize for Usd {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Usd {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_and_written_to_the_last_digit() {
        for (text, pico, written) in [
            ("32", 32_000_000_000_000, "32"),
            ("0.40", 400_000_000_000, "0.4"),
            ("0.0072056", 7_205_600_000, "0.0072056"),
            ("0.000000000001", 1, "0.000000000001"),
            ("0", 0, "0"),
            ("0.000", 0, "0"),
            ("1000000", 1_000_000_000_000_000_000, "1000000"),
        ] {
            let usd: Usd = text.parse().unwrap();
            assert_eq!((usd.pico(), usd.to_string().as_str()), (pico, written), "{text}");
            assert_eq!(serde_json::from_value::<Usd>(serde_json::to_value(usd).unwrap()).unwrap(), usd);
        }
        let long = "9".repeat(25);
        for wrong in ["", "-1", "1e3", "0,40", "$4", "1_000", "0.0000000000001", " 4", &long] {
            assert!(wrong.parse::<Usd>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn people_get_few_digits() {
        for (pico, text) in
            [(7_205_600_000, "0.0072"), (50_000_000, "0.0001"), (49_999_999, "0.0000"), (2_000_000_000_000, "2.0000")]
        {
            assert_eq!(Usd::from_pico(pico).rounded(4), text);
        }
    }
}
