//! The pool as it is now, for people and metrics.
use serde::Serialize;

use super::{Class, Dimension};

/// All of a pool.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct View {
    /// One row for each dimension.
    pub dimensions: Vec<Shown>,
    /// The part of the rate that is taken after refusals by the service, 0.1 to 1.
    pub factor: f64,
    /// Who waits, by class and tenant; those of whom nobody waits are left out.
    pub waiting: Vec<Waiting>,
    /// Tokens granted since the start.
    pub granted: u64,
    /// Jain's index of the tokens granted to each tenant since the start, by weight: 1 is even, 1/n is all to one of n.
    pub fairness: f64,
}

/// One dimension.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Shown {
    /// Which.
    pub dimension: Dimension,
    /// The limit that counts; `None`: none is known.
    pub limit: Option<u64>,
    /// Whether the service has named it.
    pub learned: bool,
    /// What may be taken now. `None`: anything.
    pub available: Option<u64>,
    /// In the hands of requests that run, or sessions that are open.
    pub reserved: u64,
    /// Requests that were refused for it, at once or after waiting.
    pub refused: u64,
}

/// Requests of a tenant that wait.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Waiting {
    /// Their class.
    pub class: Class,
    /// Whose they are.
    pub tenant: String,
    /// How many.
    pub waiting: usize,
}

/// Jain's index of fairness.
pub(super) fn jain(shares: impl Iterator<Item = f64>) -> f64 {
    let (mut count, mut sum, mut squares) = (0.0, 0.0, 0.0);
    for share in shares {
        count += 1.0;
        sum += share;
        squares += share * share;
    }
    if squares > 0.0 { sum * sum / (count * squares) } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jains_index() {
        for (shares, want) in [(vec![], 1.0), (vec![5.0], 1.0), (vec![1.0, 1.0], 1.0), (vec![4.0, 0.0, 0.0, 0.0], 0.25)]
        {
            assert_eq!(jain(shares.into_iter()), want);
        }
    }
}
