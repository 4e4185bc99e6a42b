//! A candidate beside a tier's own routes: what came of both, and whether it is promoted or rolled back.
//!
//! Nothing is concluded from too little: it is worse only where chance alone would hardly make it look so (one in twenty), it is as
//! good where the figures say so, and in between it goes on.
use std::time::Duration;

use serde::Serialize;

use super::window::{Window, p95};
use crate::{admit::price::Usd, config::CanaryConfig};

/// Standard errors that chance exceeds one time in twenty.
const DOUBT: f64 = 1.645;
/// Replies whose first audio is remembered, of each side.
const FIGURES: usize = 1_000;
/// With fewer tool calls on either side they are not judged.
const TOOLS: u64 = 10;

/// What a canary is judged by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Criterion {
    /// Sessions that failed, per cent.
    Errors,
    /// Until 95 of 100 replies are heard, ms.
    FirstAudio,
    /// A reply's cost, USD.
    Cost,
    /// Tool calls that failed, per cent.
    FailedTools,
}

impl Criterion {
    /// Its name, for logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Errors => "errors",
            Self::FirstAudio => "first_audio",
            Self::Cost => "cost",
            Self::FailedTools => "failed_tools",
        }
    }
}

/// What one criterion says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Finding {
    /// The candidate is as good as it must be.
    Fine,
    /// It is not.
    Worse,
    /// It looks worse, which may be chance; or too little is known.
    Unsure,
    /// Neither side has any such figures.
    NotJudged,
}

/// One criterion's figures.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figure {
    /// Which.
    pub criterion: Criterion,
    /// The candidate's.
    pub candidate: Option<f64>,
    /// The other routes'.
    pub control: Option<f64>,
    /// What the candidate's may be at most.
    pub allowed: Option<f64>,
    /// What this says.
    pub finding: Finding,
}

/// How it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// It is tried.
    Running,
    /// It would be promoted, but there is an incident at the service.
    Paused,
    /// It has its whole share.
    Promoted,
    /// It gets no calls any more.
    RolledBack,
}

/// What a reply came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Spent {
    /// What it cost; none: not known.
    pub usd: Option<Usd>,
    /// Tools that it called.
    pub tools: u64,
    /// Of them, those that failed.
    pub tools_failed: u64,
}

/// Costs of replies, dollars: so many, their sum, and the sum of their squares.
#[derive(Debug, Clone, Copy, Default)]
struct Costs {
    count: u64,
    sum: f64,
    squares: f64,
}

impl Costs {
    fn add(&mut self, usd: Usd) {
        let usd = usd.pico() as f64 / 1e12;
        self.count += 1;
        self.sum += usd;
        self.squares += usd * usd;
    }

    fn mean(&self) -> Option<f64> {
        (self.count > 0).then(|| self.sum / self.count as f64)
    }

    /// Standard error of the mean.
    fn error(&self) -> f64 {
        let count = self.count as f64;
        let mean = self.sum / count;
        ((self.squares / count - mean * mean).max(0.0) / count).sqrt()
    }
}

/// What came of one side's calls.
#[derive(Debug)]
pub(super) struct Side {
    sessions: u64,
    failed: u64,
    heard: Window,
    costs: Costs,
    tools: u64,
    tools_failed: u64,
}

impl Side {
    fn new() -> Self {
        let heard = Window::new(FIGURES, Duration::MAX);
        Self { sessions: 0, failed: 0, heard, costs: Costs::default(), tools: 0, tools_failed: 0 }
    }

    pub(super) fn session(&mut self) {
        self.sessions += 1;
    }

    pub(super) fn failed(&mut self) {
        self.failed += 1;
    }

    pub(super) fn first_audio(&mut self, now: Duration, after: Duration) {
        self.heard.add(now, after);
    }

    pub(super) fn replied(&mut self, spent: &Spent) {
        spent.usd.into_iter().for_each(|usd| self.costs.add(usd));
        self.tools += spent.tools;
        self.tools_failed += spent.tools_failed.min(spent.tools);
    }
}

/// What was concluded, and from what.
#[derive(Debug)]
struct Verdict {
    promoted: bool,
    figures: Vec<Figure>,
}

/// One tier's canary.
#[derive(Debug)]
pub(super) struct Canary {
    pub(super) config: CanaryConfig,
    control: Side,
    candidate: Side,
    began: Duration,
    verdict: Option<Verdict>,
}

impl Canary {
    pub(super) fn new(config: CanaryConfig, now: Duration) -> Self {
        Self { config, control: Side::new(), candidate: Side::new(), began: now, verdict: None }
    }

    pub(super) fn side(&mut self, candidate: bool) -> &mut Side {
        if candidate { &mut self.candidate } else { &mut self.control }
    }

    /// The share of calls that the candidate gets, 0 to 1.
    pub(super) fn share(&self) -> f64 {
        match self.verdict.as_ref().map(|verdict| verdict.promoted) {
            None => self.config.share_percent / 100.0,
            Some(true) => self.config.promoted_percent / 100.0,
            Some(false) => 0.0,
        }
    }

    pub(super) fn standing(&self, now: Duration, incident: bool) -> Standing {
        match &self.verdict {
            Some(Verdict { promoted: true, .. }) => Standing::Promoted,
            Some(_) => Standing::RolledBack,
            None if incident && self.is_ready(now) && is_good(&self.figures(now)) => Standing::Paused,
            None => Standing::Running,
        }
    }

    /// Sessions on the candidate, and on the other routes.
    pub(super) fn sessions(&self) -> (u64, u64) {
        (self.candidate.sessions, self.control.sessions)
    }

    fn is_enough(&self) -> bool {
        self.candidate.sessions.min(self.control.sessions) >= self.config.min_calls
    }

    fn is_ready(&self, now: Duration) -> bool {
        self.is_enough() && now.saturating_sub(self.began) >= Duration::from_secs(self.config.observe_s)
    }

    /// Concludes, if that can be done now. A standing that is new, and the criterion that it failed by.
    pub(super) fn judge(&mut self, now: Duration, incident: bool) -> Option<(Standing, Option<Criterion>)> {
        if self.verdict.is_some() || !self.is_enough() {
            return None;
        }
        let figures = self.figures(now);
        let worse = figures.iter().find(|figure| figure.finding == Finding::Worse).map(|figure| figure.criterion);
        let promoted = worse.is_none();
        if promoted && (incident || !self.is_ready(now) || !is_good(&figures)) {
            return None;
        }
        self.verdict = Some(Verdict { promoted, figures });
        Some((if promoted { Standing::Promoted } else { Standing::RolledBack }, worse))
    }

    /// What is known now; after the verdict, what it was made from.
    pub(super) fn figures(&self, now: Duration) -> Vec<Figure> {
        if let Some(verdict) = &self.verdict {
            return verdict.figures.clone();
        }
        let (candidate, control, config) = (&self.candidate, &self.control, &self.config);
        let enough = self.is_enough();
        let errors = rates(
            Criterion::Errors,
            (candidate.failed, candidate.sessions),
            (control.failed, control.sessions),
            config.max_error_percent,
        );
        let tools = rates(
            Criterion::FailedTools,
            (candidate.tools_failed, candidate.tools),
            (control.tools_failed, control.tools),
            config.max_failed_tools_percent,
        );
        let few_tools = candidate.tools.min(control.tools) < TOOLS;
        let tools = Figure { finding: if few_tools { Finding::NotJudged } else { tools.finding }, ..tools };
        let errors = Figure { finding: if enough { errors.finding } else { Finding::Unsure }, ..errors };
        vec![errors, self.first_audio(now), self.cost(), tools]
    }

    fn first_audio(&self, now: Duration) -> Figure {
        let (candidate, control) = (self.candidate.heard.sorted(now), self.control.heard.sorted(now));
        let known = |side: &[u32]| p95(side).map(f64::from);
        let allowed = known(&control).map(|ms| ms * (1.0 + self.config.max_first_audio_percent / 100.0));
        let few = (candidate.len().min(control.len()) as u64) < self.config.min_calls.min(FIGURES as u64);
        let finding = match (known(&candidate).zip(allowed), least_p95(&candidate)) {
            _ if few => Finding::Unsure,
            (Some((_, allowed)), Some(least)) if least > allowed => Finding::Worse,
            (Some((found, allowed)), _) if found <= allowed => Finding::Fine,
            _ => Finding::Unsure,
        };
        let (candidate, control) = (known(&candidate), known(&control));
        Figure { criterion: Criterion::FirstAudio, candidate, control, allowed, finding }
    }

    fn cost(&self) -> Figure {
        let (candidate, control) = (self.candidate.costs, self.control.costs);
        let allowed = control.mean().map(|usd| usd * (1.0 + self.config.max_cost_percent / 100.0));
        let finding = match (candidate.mean(), allowed) {
            (None, None) => Finding::NotJudged,
            _ if candidate.count.min(control.count) < self.config.min_calls => Finding::Unsure,
            (Some(mean), Some(allowed)) if mean - DOUBT * candidate.error() > allowed => Finding::Worse,
            (Some(mean), Some(allowed)) if mean <= allowed => Finding::Fine,
            _ => Finding::Unsure,
        };
        let (candidate, control) = (candidate.mean(), control.mean());
        Figure { criterion: Criterion::Cost, candidate, control, allowed, finding }
    }
}

fn is_good(figures: &[Figure]) -> bool {
    figures.iter().all(|figure| matches!(figure.finding, Finding::Fine | Finding::NotJudged))
}

/// Of so many, so many were bad; the candidate may have `points` more in a hundred.
fn rates(criterion: Criterion, candidate: (u64, u64), control: (u64, u64), points: f64) -> Figure {
    let share = |(bad, all): (u64, u64)| (all > 0).then(|| bad.min(all) as f64 / all as f64);
    // One good and one bad more on each side: with few of them, a normal distribution tells too much (Agresti and Caffo, 2000).
    let doubted = |(bad, all): (u64, u64)| {
        let share = (bad.min(all) + 1) as f64 / (all + 2) as f64;
        (share, share * (1.0 - share) / (all + 2) as f64)
    };
    let ((one, its), (other, others)) = (doubted(candidate), doubted(control));
    let finding = match share(candidate).zip(share(control)) {
        None => Finding::Unsure,
        Some(_) if one - other - DOUBT * (its + others).sqrt() > points / 100.0 => Finding::Worse,
        Some((one, other)) if one - other <= points / 100.0 => Finding::Fine,
        Some(_) => Finding::Unsure,
    };
    let percent = |side| share(side).map(|share| share * 100.0);
    let allowed = percent(control).map(|percent| percent + points);
    Figure { criterion, candidate: percent(candidate), control: percent(control), allowed, finding }
}

/// Of sorted values, what the true 95th of a hundred is hardly below: the value that many ranks lower.
fn least_p95(sorted: &[u32]) -> Option<f64> {
    let count = sorted.len() as f64;
    let rank = 0.95 * count - DOUBT * (0.95 * 0.05 * count).sqrt();
    let below = (1..=sorted.len()).take_while(|at| *at as f64 <= rank).count();
    sorted.get(below.checked_sub(1)?).map(|ms| f64::from(*ms))
}
