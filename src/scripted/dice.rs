//! The only source of chance in what is scripted: seeded, so that the same seed and the same client give the same session.
use std::time::Duration;

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use super::Delay;

const LETTERS: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";

/// One session's dice, or one fault's.
#[derive(Debug)]
pub(crate) struct Dice(StdRng);

impl Dice {
    /// Dice of stream `number` under `seed`: neighbours do not resemble each other.
    pub(crate) fn new(seed: u64, number: u64) -> Self {
        Self(StdRng::seed_from_u64(seed ^ number.wrapping_mul(0x9E37_79B9_7F4A_7C15)))
    }

    /// An id like `item_C9G5RJeJ2gF77mV7f2B1j`: 21 letters, as the service's are.
    pub(crate) fn id(&mut self, prefix: &str) -> String {
        let mut id = String::with_capacity(prefix.len() + 22);
        id.push_str(prefix);
        id.push('_');
        self.letters(21, &mut id);
        id
    }

    /// The random padding of a delta event, 11 to 14 letters.
    pub(crate) fn obfuscation(&mut self) -> String {
        let len = self.0.random_range(11..=14);
        let mut text = String::with_capacity(len);
        self.letters(len, &mut text);
        text
    }

    fn letters(&mut self, len: usize, into: &mut String) {
        for _ in 0..len {
            let letter = LETTERS.get(self.0.random_range(0..LETTERS.len())).copied().unwrap_or(b'A');
            into.push(char::from(letter));
        }
    }

    /// This time's length of a delay.
    pub(crate) fn delay(&mut self, delay: Delay) -> Duration {
        let jitter = if delay.jitter_ms == 0 { 0 } else { self.0.random_range(0..=delay.jitter_ms) };
        Duration::from_millis(delay.ms.saturating_add(jitter))
    }

    /// True in `share` of the throws; 1.0 and more is always, and throws nothing.
    pub(crate) fn chance(&mut self, share: f64) -> bool {
        share >= 1.0 || self.0.random::<f64>() < share
    }

    /// A whole number, both ends included.
    pub(crate) fn between(&mut self, from: usize, to: usize) -> usize {
        if from >= to { from } else { self.0.random_range(from..=to) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_ids_and_neighbours_differ() {
        let ids = |seed, number| {
            let mut dice = Dice::new(seed, number);
            (dice.id("item"), dice.id("item"))
        };
        assert_eq!(ids(7, 1), ids(7, 1));
        assert_ne!(ids(7, 1), ids(7, 2));
        assert_ne!(ids(7, 1).0, ids(7, 1).1);
        assert_eq!(ids(7, 1).0.len(), "item_".len() + 21);
    }

    #[test]
    fn jitter_stays_in_its_range() {
        let mut dice = Dice::new(1, 1);
        for _ in 0..200 {
            let got = dice.delay(Delay { ms: 10, jitter_ms: 5 });
            assert!((10..=15).contains(&got.as_millis()), "{got:?}");
            assert!((11..=14).contains(&dice.obfuscation().len()));
        }
        assert_eq!(dice.delay(Delay { ms: 3, jitter_ms: 0 }), Duration::from_millis(3));
    }
}
