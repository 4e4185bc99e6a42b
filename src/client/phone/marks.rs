//! The marks of one stream, that tell what was heard, and how long a word to its other side and the answer take.
//!
//! Pure, and the same for every dialect; one without marks sets none.
use std::{collections::VecDeque, time::Duration};

/// So many of the newest measurements count.
const KEPT: usize = 5;
/// A longer round trip is none: somebody was asleep.
const LONGEST_TRIP: Duration = Duration::from_millis(500);

/// The marks of one stream: which of them to set, and what one that comes back says.
///
/// A mark is called after the clear before it, its reply and its place in that, `2:r7:400`. What was set before a clear says nothing
/// when it comes back, since most providers return the marks that a clear drops. Where nothing waits at the provider when a reply
/// begins, one is set before its audio, `2:r7:0`: it comes back at once, through all that other marks pass, and so tells the round trip.
#[derive(Debug, Default)]
pub struct Marks {
    every: Option<Duration>,
    clears: u32,
    reply: String,
    sent: Duration,
    marked: Duration,
    /// Audio was sent whose last mark has not come back.
    waits: bool,
    /// When the mark at the beginning of the reply was set.
    began: Option<Duration>,
    trip: RoundTrip,
}

/// What a mark that came back says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Returned {
    /// So much of this reply, ms, had been played when it was sent.
    Played(String, u64),
    /// The round trip takes so long by now.
    Trip(Duration),
}

impl Marks {
    /// A mark each time that so much was sent; none: no marks.
    pub fn new(every: Option<Duration>) -> Self {
        Self { every, ..Self::default() }
    }

    /// What is sent from now on belongs to this reply: the mark that goes before it, if one would come back at once.
    pub fn begin(&mut self, now: Duration, reply: &str) -> Option<String> {
        reply.clone_into(&mut self.reply);
        (self.sent, self.marked) = (Duration::ZERO, Duration::ZERO);
        self.began = self.every.filter(|_| !self.waits).map(|_| now);
        self.began.map(|_| self.name())
    }

    /// So much more was sent: the mark that is due.
    pub fn sent(&mut self, length: Duration) -> Option<String> {
        self.sent += length;
        self.waits = true;
        (self.sent >= self.marked + self.every?).then(|| self.name())
    }

    /// The reply's audio is complete: its last mark.
    pub fn end(&mut self) -> Option<String> {
        self.every.filter(|_| self.sent > self.marked).map(|_| self.name())
    }

    fn name(&mut self) -> String {
        self.marked = self.sent;
        format!("{}:{}:{}", self.clears, self.reply, self.sent.as_millis())
    }

    /// What is not played was dropped.
    pub fn cleared(&mut self) {
        self.clears += 1;
        (self.waits, self.began) = (false, None);
    }

    /// A mark came back; none: it says nothing.
    pub fn returned(&mut self, now: Duration, name: &str) -> Option<Returned> {
        let mut parts = name.split(':');
        let (clears, reply, ms) = (parts.next()?, parts.next()?, parts.next()?);
        let ours = parts.next().is_none() && clears.parse() == Ok(self.clears);
        let ms = ms.parse().ok().filter(|_| ours)?;
        let at = Duration::from_millis(ms);
        let newest = reply == self.reply;
        if newest && at.is_zero() {
            let began = self.began.take()?;
            return Some(Returned::Trip(self.trip.took(now.saturating_sub(began))));
        }
        self.waits &= !(newest && at == self.sent);
        Some(Returned::Played(reply.to_owned(), ms))
    }
}

/// How long a word to the other side and its answer take: the median of the newest measurements, since one of them can be late by
/// chance, and the least of them is too short for most.
#[derive(Debug, Default)]
struct RoundTrip(VecDeque<Duration>);

impl RoundTrip {
    /// It took so long; what it takes by now.
    fn took(&mut self, trip: Duration) -> Duration {
        if self.0.len() == KEPT {
            self.0.pop_front();
        }
        self.0.push_back(trip.min(LONGEST_TRIP));
        let mut sorted: Vec<Duration> = self.0.iter().copied().collect();
        sorted.sort_unstable();
        sorted.get((sorted.len() - 1) / 2).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn marks_say_what_was_played_and_not_what_was_dropped() {
        let mut marks = Marks::new(Some(60 * MS));
        assert_eq!(marks.begin(MS, "r1").as_deref(), Some("0:r1:0"));
        let mut set = Vec::new();
        for _ in 0..4 {
            set.extend(marks.sent(20 * MS));
        }
        set.extend(marks.end());
        assert_eq!(set, ["0:r1:60", "0:r1:80"]);
        assert_eq!(marks.end(), None, "all of it is marked");
        assert_eq!(marks.returned(90 * MS, "0:r1:60"), Some(Returned::Played("r1".to_owned(), 60)));
        marks.cleared();
        assert_eq!(marks.returned(90 * MS, "0:r1:80"), None, "it comes back since it was dropped");
        marks.begin(100 * MS, "r2");
        assert_eq!(marks.sent(60 * MS).as_deref(), Some("1:r2:60"));
        for nonsense in ["", "1", "1:r2", "1:r2:x", "1:r2:60:1", "x:r2:60", "99999999999999:r2:60"] {
            assert_eq!(marks.returned(SECOND, nonsense), None, "{nonsense}");
        }
        let mut none = Marks::new(None);
        assert_eq!((none.begin(MS, "r1"), none.sent(9 * SECOND), none.end()), (None, None, None));
    }

    /// Begins a reply at `at`; its first mark comes back `trip` later.
    fn began(marks: &mut Marks, at: Duration, reply: &str, trip: Duration) -> Option<Returned> {
        let name = marks.begin(at, reply)?;
        marks.returned(at + trip, &name)
    }

    #[test]
    fn the_round_trip_is_the_usual_one_of_the_newest() {
        let mut marks = Marks::new(Some(200 * MS));
        let trips = [(80, 80), (120, 80), (110, 110), (1_000, 110), (90, 110), (30, 110), (30, 90), (30, 30)];
        for (n, (trip, want)) in trips.into_iter().enumerate() {
            let found = began(&mut marks, SECOND, &format!("r{n}"), trip * MS);
            assert_eq!(found, Some(Returned::Trip(want * MS)), "number {n}");
        }
        let mut asleep = Marks::new(Some(200 * MS));
        assert_eq!(began(&mut asleep, SECOND, "r", 60 * SECOND), Some(Returned::Trip(LONGEST_TRIP)));
        assert_eq!(asleep.returned(62 * SECOND, "0:r:0"), None, "said twice");
    }

    #[test]
    fn a_mark_measures_only_where_nothing_stands_before_it() {
        let mut marks = Marks::new(Some(200 * MS));
        assert!(marks.begin(MS, "r1").is_some());
        let last = marks.sent(200 * MS).unwrap();
        assert_eq!(marks.begin(2 * MS, "r2"), None, "the first is still played");
        assert_eq!(marks.returned(300 * MS, &last), Some(Returned::Played("r1".to_owned(), 200)));
        assert_eq!(marks.returned(300 * MS, "0:r2:0"), None, "it was never set");
        let last = marks.sent(200 * MS).unwrap();
        marks.returned(500 * MS, &last);
        assert_eq!(marks.begin(500 * MS, "r3").as_deref(), Some("0:r3:0"), "all of it was played");
        marks.sent(20 * MS);
        marks.cleared();
        assert_eq!(marks.returned(600 * MS, "0:r3:0"), None, "it may have been dropped");
        assert_eq!(marks.begin(700 * MS, "r4").as_deref(), Some("1:r4:0"), "nothing is left behind a clear");
    }
}
