//! The marks of one stream, that tell what was heard.
//!
//! Pure, and the same for every dialect; one without marks sets none.
use std::time::Duration;

/// The marks of one stream: which of them to set, and what one that comes back says.
///
/// A mark is called after the clear before it, its reply and its place in that, `2:r7:400`. What was set before a clear says nothing
/// when it comes back, since most providers return the marks that a clear drops.
#[derive(Debug, Default)]
pub struct Marks {
    every: Option<Duration>,
    clears: u32,
    reply: String,
    sent: Duration,
    marked: Duration,
}

impl Marks {
    /// A mark each time that so much was sent; none: no marks.
    pub fn new(every: Option<Duration>) -> Self {
        Self { every, ..Self::default() }
    }

    /// What is sent from now on belongs to this reply.
    pub fn begin(&mut self, reply: &str) {
        reply.clone_into(&mut self.reply);
        (self.sent, self.marked) = (Duration::ZERO, Duration::ZERO);
    }

    /// So much more was sent: the mark that is due.
    pub fn sent(&mut self, length: Duration) -> Option<String> {
        self.sent += length;
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
    }

    /// A mark came back: the reply and how much of it was played, ms; none: it says nothing.
    pub fn played(&self, name: &str) -> Option<(String, u64)> {
        let mut parts = name.split(':');
        let (clears, reply, ms) = (parts.next()?, parts.next()?, parts.next()?);
        let ours = parts.next().is_none() && clears.parse() == Ok(self.clears);
        Some((reply.to_owned(), ms.parse().ok()?)).filter(|_| ours)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn marks_say_what_was_played_and_not_what_was_dropped() {
        let mut marks = Marks::new(Some(60 * MS));
        marks.begin("r1");
        let mut set = Vec::new();
        for _ in 0..4 {
            set.extend(marks.sent(20 * MS));
        }
        set.extend(marks.end());
        assert_eq!(set, ["0:r1:60", "0:r1:80"]);
        assert_eq!(marks.end(), None, "all of it is marked");
        assert_eq!(marks.played("0:r1:60"), Some(("r1".to_owned(), 60)));
        marks.cleared();
        assert_eq!(marks.played("0:r1:80"), None, "it comes back since it was dropped");
        marks.begin("r2");
        assert_eq!(marks.sent(60 * MS).as_deref(), Some("1:r2:60"));
        for nonsense in ["", "1", "1:r2", "1:r2:x", "1:r2:60:1", "x:r2:60", "99999999999999:r2:60"] {
            assert_eq!(marks.played(nonsense), None, "{nonsense}");
        }
        let mut none = Marks::new(None);
        none.begin("r1");
        assert_eq!((none.sent(Duration::from_secs(9)), none.end()), (None, None));
    }
}
