//! The keys of a telephone: what is pressed in one go is one number.
//!
//! `#` ends it at once, as callers are told to; a pause does, too. Knows nothing of what a number means.
use serde::{Deserialize, Serialize};

use super::At;

/// Nobody presses more than this in one go.
const LONGEST: usize = 64;

/// One caller's keypad.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Keypad {
    keys: String,
    until: Option<At>,
}

impl Keypad {
    /// A key; what was pressed is a number at `until`, if nothing follows.
    pub fn press(&mut self, until: At, key: char) {
        self.keys.push(key);
        let ends = key == '#' || self.keys.len() >= LONGEST;
        self.until = Some(if ends { At::ZERO } else { until });
    }

    /// Nothing was pressed that is no number yet.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// When what was pressed is a number.
    pub fn deadline(&self) -> Option<At> {
        self.until
    }

    /// The number, if there is one by now.
    pub fn number(&mut self, now: At) -> Option<String> {
        self.until.take_if(|until| now >= *until)?;
        Some(std::mem::take(&mut self.keys))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(ms: u64) -> At {
        At::from_millis(ms)
    }

    #[test]
    fn what_is_pressed_in_one_go_is_one_number() {
        let mut keypad = Keypad::default();
        assert_eq!((keypad.is_empty(), keypad.deadline()), (true, None));
        keypad.press(at(1_500), '4');
        keypad.press(at(2_000), '2');
        assert_eq!((keypad.number(at(1_999)), keypad.deadline()), (None, Some(at(2_000))));
        assert_eq!(keypad.number(at(2_000)).as_deref(), Some("42"));
        assert!(keypad.is_empty() && keypad.number(at(9_000)).is_none());
        keypad.press(at(9_000), '7');
        keypad.press(at(9_000), '#');
        assert_eq!(keypad.number(at(7_000)).as_deref(), Some("7#"), "at once");
        (0..100).for_each(|_| keypad.press(at(9_000), '1'));
        assert_eq!(keypad.number(at(8_000)).map(|keys| keys.len()), Some(100), "nobody waits for the end of that");
    }
}
