//! What of a caller's audio lasts from message to message: its order, its pauses, the order of its bytes.
//!
//! Pure, and the same for every dialect; what a dialect does not need stays empty.
use std::{collections::BTreeMap, time::Duration};

use super::Media;

/// Media that are missing are waited for until so many came after them: 60 ms of a stream of 20 ms.
const WAITS: usize = 3;
/// Numbers that are so far behind begin anew.
const RESTART: u64 = 200;
/// So many in a row are not late: the stream counts anew.
const LATE: usize = 5;
/// What a pause is filled up with at most: whoever is quiet for longer has ended a turn anyway.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// A shorter pause is a clock's inaccuracy.
const SHORTEST_PAUSE: Duration = Duration::from_millis(20);
/// So much that sounds otherwise when its bytes are swapped decides about their order, if it is clear by this factor ...
const DECIDES: Duration = Duration::from_millis(20);
const CLEARLY: u64 = 4;
/// ... and so much in any case.
const DECIDES_ANYHOW: Duration = Duration::from_millis(200);

/// Puts media that have numbers into their order, and drops those that came already.
#[derive(Debug, Default)]
pub struct Order {
    next: Option<u64>,
    /// How many in a row came too late.
    late: usize,
    held: BTreeMap<u64, Media>,
}

impl Order {
    /// Takes one in; `out` gets all that are due.
    pub fn push(&mut self, media: Media, out: &mut Vec<Media>) {
        let Some(number) = media.number else { return out.push(media) };
        let next = *self.next.get_or_insert(number);
        self.late = if number < next { self.late + 1 } else { 0 };
        if number < next && next - number < RESTART && self.late <= LATE {
            return; // it came already, or its place is taken
        }
        if number < next {
            self.drain(out);
            (self.next, self.late) = (Some(number), 0);
        }
        self.held.insert(number, media);
        self.release(out);
        if self.held.len() > WAITS
            && let Some(first) = self.held.keys().next()
        {
            self.next = Some(*first);
            self.release(out);
        }
    }

    /// Everything that waits for something else.
    pub fn drain(&mut self, out: &mut Vec<Media>) {
        if let Some(last) = self.held.keys().next_back() {
            self.next = Some(last.saturating_add(1));
        }
        out.extend(std::mem::take(&mut self.held).into_values());
    }

    fn release(&mut self, out: &mut Vec<Media>) {
        while let Some(media) = self.next.and_then(|next| self.held.remove(&next)) {
            out.push(media);
            self.next = self.next.map(|next| next.saturating_add(1));
        }
    }
}

/// Finds pauses by the moments at which audio was spoken: a service that hears no silence does not end a turn.
#[derive(Debug, Default)]
pub struct Pauses {
    next: Option<Duration>,
}

impl Pauses {
    /// Audio of this `length` was spoken at `at`: how much silence there was before it.
    pub fn before(&mut self, at: Duration, length: Duration) -> Duration {
        let expected = self.next.unwrap_or(at);
        let pause = at.saturating_sub(expected);
        // A clock that runs back by a little is late; one that runs back by much began anew.
        let late = at < expected && expected - at < LONGEST_PAUSE;
        self.next = Some(if late { expected } else { at } + length);
        if pause < SHORTEST_PAUSE { Duration::ZERO } else { pause.min(LONGEST_PAUSE) }
    }
}

/// Finds out in which order the bytes of linear audio come: what is read the wrong way round is loud noise, be it speech or the
/// faint hiss of a line, so that it is mostly known before anybody speaks.
#[derive(Debug, Default)]
pub struct ByteOrder {
    /// How far neighbours are apart, read as little-endian and as big-endian.
    steps: (u64, u64),
    last: Option<(i16, i16)>,
    samples: u64,
    swapped: Option<bool>,
}

impl ByteOrder {
    /// Somebody knows it: big-endian, or not.
    pub fn known(swapped: bool) -> Self {
        Self { swapped: Some(swapped), ..Self::default() }
    }

    /// Looks at audio of `rate` samples a second; whether it is known by now, and was not before: big-endian or not.
    pub fn look(&mut self, bytes: &[u8], rate: u32) -> Option<bool> {
        if self.swapped.is_some() {
            return None;
        }
        for pair in bytes.chunks_exact(2) {
            let pair = [pair.first().copied().unwrap_or(0), pair.get(1).copied().unwrap_or(0)];
            let (little, big) = (i16::from_le_bytes(pair), i16::from_be_bytes(pair));
            if let Some((l, b)) = self.last.replace((little, big)) {
                let (little, big) = (u64::from(little.abs_diff(l)), u64::from(big.abs_diff(b)));
                self.steps.0 += little;
                self.steps.1 += big;
                self.samples += u64::from(little != big);
            }
        }
        let (little, big) = self.steps;
        let is_clear = little.max(big) >= CLEARLY * little.min(big);
        let wanted = if is_clear { DECIDES } else { DECIDES_ANYHOW };
        let enough = u128::from(self.samples) * 1_000 >= u128::from(rate) * wanted.as_millis();
        enough.then(|| *self.swapped.insert(big < little))
    }

    /// Audio comes, and goes, big-endian; little-endian until that is known.
    pub fn is_swapped(&self) -> bool {
        self.swapped.unwrap_or(false)
    }
}

/// Swaps the two bytes of every sample.
pub fn swap(bytes: &[u8]) -> Vec<u8> {
    let mut out = bytes.to_vec();
    for pair in out.chunks_exact_mut(2) {
        pair.reverse();
    }
    out
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn media(number: u64) -> Media {
        Media { bytes: Bytes::new(), at: None, number: Some(number) }
    }

    fn order(numbers: &[u64]) -> Vec<u64> {
        let (mut order, mut out) = (Order::default(), Vec::new());
        numbers.iter().for_each(|number| order.push(media(*number), &mut out));
        out.iter().filter_map(|media| media.number).collect()
    }

    #[test]
    fn media_are_put_into_their_order() {
        assert_eq!(order(&[1, 2, 3]), [1, 2, 3]);
        assert_eq!(order(&[5, 7, 6, 8]), [5, 6, 7, 8]);
        assert_eq!(order(&[1, 4, 3, 2, 5]), [1, 2, 3, 4, 5]);
        assert_eq!(order(&[1, 2, 2, 1, 3]), [1, 2, 3], "nothing comes twice");
        assert_eq!(order(&[1, 3, 4, 5]), [1], "2 is waited for");
        assert_eq!(order(&[1, 3, 4, 5, 6]), [1, 3, 4, 5, 6], "but not for ever");
        assert_eq!(order(&[1, 3, 4, 5, 6, 2, 7]), [1, 3, 4, 5, 6, 7], "what comes too late is lost");
        assert_eq!(order(&[900, 1, 2, 3]), [900, 1, 2, 3], "a stream that counts anew");
    }

    #[test]
    fn what_is_held_is_given_out_at_the_end() {
        let (mut order, mut out) = (Order::default(), Vec::new());
        [1, 3, 4].into_iter().for_each(|number| order.push(media(number), &mut out));
        order.drain(&mut out);
        order.push(media(2), &mut out);
        order.push(media(5), &mut out);
        assert_eq!(out.iter().filter_map(|media| media.number).collect::<Vec<_>>(), [1, 3, 4, 5]);
    }

    #[test]
    fn pauses_are_what_the_clock_says() {
        let mut pauses = Pauses::default();
        let mut before = |at: u64| pauses.before(MS * u32::try_from(at).unwrap(), 20 * MS);
        assert_eq!(before(1_000), Duration::ZERO, "wherever the clock begins");
        assert_eq!(before(1_020), Duration::ZERO);
        assert_eq!(before(1_045), Duration::ZERO, "5 ms are no pause");
        assert_eq!(before(1_565), 500 * MS);
        assert_eq!(before(1_565), Duration::ZERO, "said twice");
        assert_eq!(before(1_600), Duration::ZERO, "what is late is not a pause later on");
        assert_eq!(before(61_600), LONGEST_PAUSE);
        assert_eq!(before(0), Duration::ZERO, "it begins anew");
        assert_eq!(before(20), Duration::ZERO);
    }

    #[test]
    fn the_order_of_bytes_is_found_in_speech() {
        let speech = crate::audio::testing::hello_at(8_000);
        for swapped in [false, true] {
            let mut found = ByteOrder::default();
            let mut decided = None;
            for frame in speech.chunks(160) {
                let bytes: Vec<u8> =
                    frame.iter().flat_map(|s| if swapped { s.to_be_bytes() } else { s.to_le_bytes() }).collect();
                decided = decided.or(found.look(&bytes, 8_000));
            }
            assert_eq!(decided, Some(swapped));
            assert_eq!(found.is_swapped(), swapped);
            assert_eq!(found.look(&[1, 2, 3, 4], 8_000), None, "it is decided once");
        }
        assert_eq!(ByteOrder::default().look(&[0; 32_000], 8_000), None, "silence decides nothing");
        // A line's hiss is enough.
        let hiss: Vec<i16> = (0..400).map(|n| [0, 1, -1, 2, 0, -2, 1][n % 7]).collect();
        let [little, big] =
            [i16::to_le_bytes, i16::to_be_bytes].map(|bytes| hiss.iter().flat_map(|s| bytes(*s)).collect::<Vec<u8>>());
        assert_eq!(ByteOrder::default().look(&little, 8_000), Some(false));
        assert_eq!(ByteOrder::default().look(&big, 8_000), Some(true));
        assert_eq!(swap(&[1, 2, 3, 4]), [2, 1, 4, 3]);
    }

    proptest! {
        #[test]
        fn whatever_comes_in_a_window_of_three_is_put_right(shift in proptest::collection::vec(0_u64..3, 1..200)) {
            // Each is late by at most two places.
            let mut numbers: Vec<u64> = (0..shift.len() as u64).collect();
            numbers.sort_by_key(|n| n + shift[usize::try_from(*n).unwrap()]);
            let first = numbers[0];
            let got = order(&numbers);
            prop_assert!(got.windows(2).all(|pair| pair[0] < pair[1]), "{got:?}");
            // What came before the first one that was seen is lost, the last ones may be held.
            prop_assert!(got.len() + WAITS >= numbers.len() - usize::try_from(first).unwrap());
        }
    }
}
