//! What scripts of faults have in common: lengths of time with jitter, seeded dice, and `[[fault]]` tables whose mistakes are
//! told with their line.
//!
//! Used by [`sim`](crate::sim) and [`chaos`](crate::chaos); knows the kinds of neither.
use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, Visitor},
};

mod dice;
mod table;

pub(crate) use dice::Dice;
pub(crate) use table::{Keys, read};

/// Which of several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nth {
    /// The n-th of the session or connection, from 1.
    At(u64),
    /// All of them.
    Each,
}

impl Nth {
    pub(crate) fn is(self, number: u64) -> bool {
        self == Self::Each || self == Self::At(number)
    }
}

/// A length of time with jitter: `ms` and up to `jitter_ms` more. Written as `20` or `{ ms = 20, jitter_ms = 5 }`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Delay {
    /// At least, ms.
    pub ms: u64,
    /// At most so much more, ms.
    pub jitter_ms: u64,
}

impl Delay {
    /// Always the same.
    pub const fn ms(ms: u64) -> Self {
        Self { ms, jitter_ms: 0 }
    }
}

impl<'de> Deserialize<'de> for Delay {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct DelayVisitor;
        impl<'de> Visitor<'de> for DelayVisitor {
            type Value = Delay;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("milliseconds, as `20` or `{ ms = 20, jitter_ms = 5 }`")
            }

            fn visit_i64<E: de::Error>(self, ms: i64) -> Result<Delay, E> {
                u64::try_from(ms).map(Delay::ms).map_err(|_| E::invalid_value(de::Unexpected::Signed(ms), &self))
            }

            fn visit_u64<E: de::Error>(self, ms: u64) -> Result<Delay, E> {
                Ok(Delay::ms(ms))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Delay, A::Error> {
                let mut delay = Delay::default();
                while let Some(key) = map.next_key::<String>()? {
                    match key.as_str() {
                        "ms" => delay.ms = map.next_value()?,
                        "jitter_ms" => delay.jitter_ms = map.next_value()?,
                        _ => return Err(de::Error::unknown_field(&key, &["ms", "jitter_ms"])),
                    }
                }
                Ok(delay)
            }
        }
        deserializer.deserialize_any(DelayVisitor)
    }
}
