//! What a service says of itself: the JSON of a status page, and how long that is believed.
//!
//! A page that cannot be read says nothing: without news no call is treated differently, and whoever looks is told so.
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

/// Longest text of a page that is kept, characters.
const LONGEST: usize = 160;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Nothing is wrong.
    None,
    /// Something is slow, or being maintained.
    Minor,
    /// Some of it does not work.
    Major,
    /// Most of it does not work.
    Critical,
}

/// What a page says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// How bad it is.
    pub level: Level,
    /// In its own words, which may be anything: cut, and without control characters.
    pub words: Option<String>,
}

impl Report {
    /// Reads a page: Statuspage's summary (`status.indicator`, `components`), or `{"status": "..."}`. With a `component`, only what is
    /// said of that one. `None`: it does not say what it should.
    pub fn read(page: &[u8], component: Option<&str>) -> Option<Self> {
        let page: Value = serde_json::from_slice(page).ok()?;
        if let Some(name) = component {
            let same = |one: &&Value| text(one, "name").is_some_and(|found| found.eq_ignore_ascii_case(name));
            let status = text(page.get("components")?.as_array()?.iter().find(same)?, "status")?;
            return Some(Self { level: level(status)?, words: words(status) });
        }
        match page.get("status")? {
            Value::String(word) => {
                let words = text(&page, "message").and_then(words).or_else(|| words(word));
                Some(Self { level: level(word)?, words })
            }
            status => {
                let words = text(status, "description").and_then(words);
                Some(Self { level: level(text(status, "indicator")?)?, words })
            }
        }
    }
}

fn level(word: &str) -> Option<Level> {
    Some(match word.trim().to_ascii_lowercase().as_str() {
        "none" | "ok" | "up" | "operational" | "healthy" | "available" | "pass" => Level::None,
        "minor" | "warn" | "degraded" | "degraded_performance" | "maintenance" | "under_maintenance" => Level::Minor,
        "major" | "incident" | "partial_outage" | "fail" => Level::Major,
        "critical" | "down" | "outage" | "full_outage" | "major_outage" => Level::Critical,
        _ => return None,
    })
}

fn text<'v>(value: &'v Value, field: &str) -> Option<&'v str> {
    value.get(field)?.as_str()
}

fn words(text: &str) -> Option<String> {
    let plain = text.chars().take(LONGEST).map(|c| if c.is_control() { ' ' } else { c });
    Some(plain.collect::<String>().trim().to_owned()).filter(|words| !words.is_empty())
}

/// What is shown of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Shown {
    /// `not_asked`, `unknown`, or how bad it is.
    pub state: &'static str,
    /// The page's own words.
    pub words: Option<String>,
    /// When the page was read last, seconds ago.
    pub read_s_ago: Option<u64>,
    /// Times that it could not be read since.
    pub misses: u32,
}

/// The page as it was last.
#[derive(Debug)]
pub(super) struct Feed {
    /// How long a report is believed; `None`: nobody asks.
    believed: Option<Duration>,
    last: Option<(Duration, Report)>,
    misses: u32,
}

impl Feed {
    /// `every`: how often somebody asks; `None`: nobody does.
    pub(super) fn new(every: Option<Duration>) -> Self {
        // Three times in a row without an answer.
        Self { believed: every.map(|every| every * 7 / 2), last: None, misses: 0 }
    }

    pub(super) fn told(&mut self, now: Duration, report: Option<Report>) {
        match report {
            Some(report) => {
                self.last = Some((now, report));
                self.misses = 0;
            }
            None => self.misses = self.misses.saturating_add(1),
        }
    }

    fn known(&self, now: Duration) -> Option<&Report> {
        let (at, report) = self.last.as_ref()?;
        (now.saturating_sub(*at) <= self.believed?).then_some(report)
    }

    /// How bad it is, as far as is known.
    pub(super) fn level(&self, now: Duration) -> Level {
        self.known(now).map_or(Level::None, |report| report.level)
    }

    pub(super) fn shown(&self, now: Duration) -> Shown {
        let known = self.known(now);
        let state = match (self.believed, known.map(|report| report.level)) {
            (None, _) => "not_asked",
            (Some(_), None) => "unknown",
            (_, Some(Level::None)) => "none",
            (_, Some(Level::Minor)) => "minor",
            (_, Some(Level::Major)) => "major",
            (_, Some(Level::Critical)) => "critical",
        };
        let read_s_ago = self.last.as_ref().map(|(at, _)| now.saturating_sub(*at).as_secs());
        Shown { state, words: known.and_then(|report| report.words.clone()), read_s_ago, misses: self.misses }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SUMMARY: &str = r#"{"page":{"id":"x","name":"OpenAI","url":"https://status.openai.com"},
        "status":{"indicator":"major","description":"Partial System Outage"},
        "components":[{"id":"1","name":"Chat","status":"partial_outage"},{"id":"2","name":"Realtime","status":"operational"}],
        "incidents":[{"name":"Elevated errors","impact":"major","status":"investigating"}]}"#;

    #[test]
    fn both_forms_are_read_and_what_is_neither_says_nothing() {
        let long = format!(r#"{{"status":"down","message":"{}\u0007\n"}}"#, "é".repeat(500));
        for (page, component, want) in [
            (SUMMARY, None, Some((Level::Major, Some("Partial System Outage")))),
            (SUMMARY, Some("realtime"), Some((Level::None, Some("operational")))),
            (SUMMARY, Some("Chat"), Some((Level::Major, Some("partial_outage")))),
            (SUMMARY, Some("Sora"), None),
            (r#"{"status":{"indicator":"none"}}"#, None, Some((Level::None, None))),
            (r#"{"status":{"indicator":"maintenance","description":""}}"#, None, Some((Level::Minor, None))),
            (r#"{"status":"ok"}"#, None, Some((Level::None, Some("ok")))),
            (r#"{"status":" Down "}"#, None, Some((Level::Critical, Some("Down")))),
            (r#"{"status":"ok"}"#, Some("Realtime"), None),
            (&long, None, Some((Level::Critical, Some(&"é".repeat(160))))),
            (r#"{"status":"who knows"}"#, None, None),
            (r#"{"status":{"indicator":7}}"#, None, None),
            (r#"{"status":null}"#, None, None),
            ("[]", None, None),
            ("<!doctype html>", None, None),
            ("", None, None),
        ] {
            let found = Report::read(page.as_bytes(), component);
            let found = found.as_ref().map(|report| (report.level, report.words.as_deref()));
            assert_eq!(found, want, "{page} {component:?}");
        }
    }

    #[test]
    fn without_news_there_is_no_incident_and_that_is_said() {
        let s = Duration::from_secs;
        let major = || Report::read(SUMMARY.as_bytes(), None);
        let mut feed = Feed::new(Some(s(60)));
        assert_eq!((feed.level(s(0)), feed.shown(s(0)).state), (Level::None, "unknown"));
        feed.told(s(10), major());
        feed.told(s(70), None);
        feed.told(s(130), None);
        assert_eq!((feed.level(s(190)), feed.shown(s(190)).misses), (Level::Major, 2));
        feed.told(s(190), None);
        let shown = feed.shown(s(221));
        assert_eq!((feed.level(s(221)), shown.state, shown.words), (Level::None, "unknown", None));
        assert_eq!((shown.read_s_ago, shown.misses), (Some(211), 3));
        feed.told(s(250), major());
        assert_eq!(
            (feed.level(s(251)), feed.shown(s(251)).misses, feed.shown(s(251)).state),
            (Level::Major, 0, "major")
        );
        let mut nobody_asks = Feed::new(None);
        nobody_asks.told(s(1), major());
        assert_eq!((nobody_asks.level(s(1)), nobody_asks.shown(s(1)).state), (Level::None, "not_asked"));
    }

    proptest! {
        #[test]
        fn no_page_does_harm(bytes in proptest::collection::vec(any::<u8>(), 0..300), cut in 0..SUMMARY.len()) {
            let _ = Report::read(&bytes, None);
            let half = SUMMARY.as_bytes().get(..cut).unwrap_or_default();
            prop_assert_eq!(Report::read(half, None), None);
        }
    }
}
