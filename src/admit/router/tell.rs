//! What came of a route, told by whoever dialled it. A limit that was hit is neither a failure nor a success, and never fast.
use std::time::Duration;

use super::{Canary, News, Route, Router, Stage, Taken, canary::Side, canary::Spent, feed::Level, feed::Report};

impl Router {
    /// A session is up, so long after it was dialled.
    pub fn connected(&mut self, now: Duration, on: &Taken, took: Duration) {
        let now = self.clock.at(now);
        let closes = self.health(now, &on.route).connected(now, took);
        self.closed(&on.route, closes);
        on.sticks.into_iter().for_each(|key| self.sticky.put(key, &on.route));
        self.note(now, on, Side::session);
    }

    /// There is none, or it failed later. Not for limits ([`Self::limited`]), and not for keys and models that the service does not know
    /// ([`Self::refused`]).
    pub fn failed(&mut self, now: Duration, on: &Taken, stage: Stage) {
        let now = self.clock.at(now);
        if self.health(now, &on.route).failed(now, stage) {
            self.happened(News::Opened(on.route.clone()));
        }
        self.note(now, on, |side| {
            if stage == Stage::Connect {
                side.session();
            }
            side.failed();
        });
    }

    /// The service has said that a limit is reached (429), and how long to wait, or not.
    pub fn limited(&mut self, now: Duration, on: &Taken, wait: Option<Duration>) {
        let now = self.clock.at(now);
        self.health(now, &on.route).limited(now, wait);
    }

    /// The service does not know the key or the model, or the account has no credit: another try would fail in the same way.
    pub fn refused(&mut self, now: Duration, on: &Taken) {
        let now = self.clock.at(now);
        self.health(now, &on.route).refused(now);
        self.note(now, on, |side| {
            side.session();
            side.failed();
        });
    }

    /// A reply is heard, so long after the service had all that it needed for it.
    pub fn first_audio(&mut self, now: Duration, on: &Taken, after: Duration) {
        let now = self.clock.at(now);
        let closes = self.health(now, &on.route).first_audio(now, after);
        self.closed(&on.route, closes);
        self.note(now, on, |side| side.first_audio(now, after));
    }

    /// A reply came to its end, or was cut by its caller.
    pub fn replied(&mut self, now: Duration, on: &Taken, spent: &Spent) {
        let now = self.clock.at(now);
        let closes = self.health(now, &on.route).replied();
        self.closed(&on.route, closes);
        self.note(now, on, |side| side.replied(spent));
    }

    /// The status page says this; `None`: it could not be read.
    pub fn heard(&mut self, now: Duration, report: Option<Report>) {
        let now = self.clock.at(now);
        self.feed.told(now, report);
        let names: Vec<String> = self.tiers.iter().map(|tier| tier.name.clone()).collect();
        names.iter().for_each(|name| self.judge(now, name));
    }

    fn closed(&mut self, route: &Route, closes: bool) {
        if closes {
            self.happened(News::Closed(route.clone()));
        }
    }

    /// Notes it for the tier's canary, if it has one.
    fn note(&mut self, now: Duration, on: &Taken, note: impl FnOnce(&mut Side)) {
        if let Some(canary) = self.canary(&on.tier) {
            note(canary.side(on.canary));
            self.judge(now, &on.tier);
        }
    }

    fn canary(&mut self, tier: &str) -> Option<&mut Canary> {
        let id = self.resolve(tier)?;
        self.tiers.get_mut(id.0)?.canary.as_mut()
    }

    fn judge(&mut self, now: Duration, tier: &str) {
        let incident = self.feed.level(now) > Level::None;
        if let Some((standing, by)) = self.canary(tier).and_then(|canary| canary.judge(now, incident)) {
            self.happened(News::Judged { tier: tier.to_owned(), standing, by });
        }
    }
}
