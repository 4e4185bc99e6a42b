//! What the rows that this process writes cost, by model, for the metrics.
//!
//! Told after a row is in the file, of which it was looked up what it cost before: so a row that is told again, tried again or
//! taken over from another process counts once, and the metrics say what the file says. Pure.
use std::collections::BTreeMap;

use crate::observe::fact::Fact;

/// Models that have a label of their own; the others share one. At some services clients may name any.
const MODELS: usize = 64;
/// Pico-dollars of what the metric counts: counters are whole numbers.
const MICRO: i128 = 1_000_000;

/// What a row that was written has changed.
#[derive(Debug)]
pub(super) struct Change {
    /// Which model did it; empty: not known.
    pub(super) model: String,
    /// What the row costs more than before, pico-dollars.
    pub(super) pico: i128,
    /// It is new, and nobody knows what it costs.
    pub(super) unpriced: bool,
}

/// One model's.
#[derive(Debug, Default)]
struct Sum {
    pico: i128,
    unpriced: u64,
    /// Of both, what the metrics have.
    told: (u64, u64),
}

/// All models'.
#[derive(Debug, Default)]
pub(super) struct Bill {
    models: BTreeMap<String, Sum>,
}

impl Bill {
    /// Adds what is in the file now, and tells what the metrics lack. An estimate that was too high is made up by what comes next,
    /// for a counter never falls; less than a micro-dollar waits for more.
    pub(super) fn add(&mut self, changes: Vec<Change>) -> Vec<Fact> {
        for Change { model, pico, unpriced } in changes {
            let model = if model.is_empty() { "unknown".to_owned() } else { model };
            let room = self.models.len() < MODELS || self.models.contains_key(&model);
            let sum = self.models.entry(if room { model } else { "other".to_owned() }).or_default();
            sum.pico = sum.pico.saturating_add(pico);
            sum.unpriced += u64::from(unpriced);
        }
        let told = |(model, sum): (&String, &mut Sum)| {
            let micro = u64::try_from(sum.pico / MICRO).unwrap_or_default().max(sum.told.0);
            let (microusd, unpriced) = (micro - sum.told.0, sum.unpriced - sum.told.1);
            sum.told = (micro, sum.unpriced);
            (microusd + unpriced > 0).then(|| Fact::Spent { model: model.clone(), microusd, unpriced })
        };
        self.models.iter_mut().filter_map(told).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spent(bill: &mut Bill, model: &str, pico: i128) -> Option<u64> {
        let facts = bill.add(vec![Change { model: model.to_owned(), pico, unpriced: false }]);
        facts.first().map(|fact| match fact {
            Fact::Spent { model: named, microusd, unpriced: 0 } if named == model => *microusd,
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn a_counter_never_falls_and_loses_nothing() {
        let mut bill = Bill::default();
        for (name, pico, told) in [
            ("most of a micro-dollar", 900_000, None),
            ("and more", 200_000, Some(1)),
            ("an estimate", 50_000_000, Some(50)),
            ("was too high", -30_000_000, None),
            ("which is made up", 25_000_000, None),
            ("by what comes next", 10_000_000, Some(5)),
        ] {
            assert_eq!(spent(&mut bill, "m", pico), told, "{name}");
        }
        assert_eq!(bill.models["m"].pico, 56_100_000);
        assert_eq!(bill.models["m"].told, (56, 0));
    }

    #[test]
    fn there_are_only_so_many_labels() {
        let mut bill = Bill::default();
        let change = |model: String| Change { model, pico: 0, unpriced: true };
        let facts = bill.add((0..MODELS + 3).map(|n| change(format!("m{n}"))).chain([change(String::new())]).collect());
        assert_eq!(facts.len(), MODELS + 1);
        assert!(facts.contains(&Fact::Spent { model: "other".to_owned(), microusd: 0, unpriced: 4 }), "{facts:?}");
        assert_eq!(spent(&mut bill, "m1", MICRO), Some(1), "who has one keeps it");
    }
}
