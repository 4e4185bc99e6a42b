//! Why a request does not go now, in numbers.
use std::{fmt, time::Duration};

use serde::Serialize;

use super::Dimension;

/// The dimension that keeps a request back longest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Reason {
    /// What there is too little of.
    pub dimension: Dimension,
    /// How much the request takes.
    pub need: u64,
    /// How much there is; for a request that can never go, the most that there ever is.
    pub have: u64,
    /// For how long, as far as is known today. `None`: the request can never go.
    pub wait: Option<Duration>,
    /// How many of its class waited before it.
    pub ahead: usize,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: need {}, have {}, ", self.dimension.name(), Grouped(self.need), Grouped(self.have))?;
        match self.wait {
            Some(wait) => write!(f, "{:.1} s", wait.as_secs_f64())?,
            None => f.write_str("never")?,
        }
        if self.ahead > 0 {
            write!(f, ", {} before it", Grouped(self.ahead as u64))?;
        }
        Ok(())
    }
}

/// A number with a comma after every three digits.
struct Grouped(u64);

impl fmt::Display for Grouped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.0.to_string();
        for (at, digit) in digits.chars().enumerate() {
            if at > 0 && (digits.len() - at).is_multiple_of(3) {
                f.write_str(",")?;
            }
            write!(f, "{digit}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_a_line() {
        let of = |need, have, wait, ahead| Reason { dimension: Dimension::Tokens, need, have, wait, ahead };
        let wait = Some(Duration::from_millis(2_104));
        for (reason, want) in [
            (of(1_830, 240, wait, 0), "tpm: need 1,830, have 240, 2.1 s"),
            (of(1_830, 240, wait, 1_200), "tpm: need 1,830, have 240, 2.1 s, 1,200 before it"),
            (of(1_000_000, 999, None, 0), "tpm: need 1,000,000, have 999, never"),
        ] {
            assert_eq!(reason.to_string(), want);
        }
    }
}
