//! The newest figures of one kind: so many, and not older than so long.
use std::{collections::VecDeque, time::Duration};

/// Milliseconds with their moments.
#[derive(Debug)]
pub(super) struct Window {
    kept: VecDeque<(Duration, u32)>,
    most: usize,
    age: Duration,
}

impl Window {
    /// At most `most`, none older than `age`.
    pub(super) fn new(most: usize, age: Duration) -> Self {
        Self { kept: VecDeque::new(), most, age }
    }

    pub(super) fn add(&mut self, now: Duration, took: Duration) {
        if self.kept.len() == self.most {
            self.kept.pop_front();
        }
        self.kept.push_back((now, u32::try_from(took.as_millis()).unwrap_or(u32::MAX)));
    }

    /// Those that count, the smallest first.
    pub(super) fn sorted(&self, now: Duration) -> Vec<u32> {
        let young = self.kept.iter().filter(|(at, _)| now.saturating_sub(*at) <= self.age);
        let mut values: Vec<u32> = young.map(|(_, ms)| *ms).collect();
        values.sort_unstable();
        values
    }

    /// What 95 of 100 stay within; `None`: fewer than `least` are known.
    pub(super) fn p95(&self, now: Duration, least: usize) -> Option<Duration> {
        let values = self.sorted(now);
        let p95 = p95(&values).filter(|_| values.len() >= least)?;
        Some(Duration::from_millis(p95.into()))
    }
}

/// Of sorted values the smallest that 95 of 100 do not exceed.
pub(super) fn p95(sorted: &[u32]) -> Option<u32> {
    sorted.get((sorted.len() * 95).div_ceil(100).checked_sub(1)?).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ninety_five_of_a_hundred_stay_within() {
        for (count, want) in [(0, None), (1, Some(1)), (19, Some(19)), (20, Some(19)), (100, Some(95)), (101, Some(96))]
        {
            assert_eq!(p95(&(1..=count).collect::<Vec<_>>()), want, "1 to {count}");
        }
    }

    #[test]
    fn only_the_newest_count_and_only_while_they_are_new() {
        let (ms, s) = (Duration::from_millis, Duration::from_secs);
        let mut window = Window::new(20, s(60));
        assert_eq!(window.p95(s(0), 1), None);
        (0..100).for_each(|n| window.add(s(n), ms(1_000 - n)));
        assert_eq!((window.kept.len(), window.p95(s(99), 20)), (20, Some(ms(919))));
        assert_eq!(window.p95(s(142), 1), Some(ms(918)), "the oldest two are too old");
        assert_eq!((window.p95(s(142), 20), window.p95(s(200), 1)), (None, None));
        window.add(s(300), Duration::MAX);
        assert_eq!(window.sorted(s(0)).last(), Some(&u32::MAX), "a clock that goes back, and a figure that cannot be");
    }
}
