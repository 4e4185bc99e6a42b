//! What a run looks like: a line while it goes, and what is said when it is over. Pure: everything is an argument.
use std::{fmt::Write as _, time::Duration};

use super::{
    gate::Standing,
    rounds::Afoot,
    store::{ByBatch, Slow, Sums, Usage},
    table::Written,
    work::Stopped,
};
use crate::config::Moment;

/// Files that failed are named up to this number; all of them stand in the table of errors.
pub const NAMED: usize = 10;

/// Longest reason of a wait that is shown, characters.
const REASON: usize = 200;

/// How far a run is.
#[derive(Debug, Clone, Copy)]
pub struct Progress<'a> {
    /// The job when the run began.
    pub before: &'a Sums,
    /// The job now.
    pub now: &'a Sums,
    /// How long it has run.
    pub took: Duration,
    /// The way to the relay.
    pub standing: &'a Standing,
    /// Batches that are under way, and how long the first of them may still take; none: none is.
    pub afoot: Option<(Afoot, Option<Duration>)>,
}

impl Progress<'_> {
    /// Files with an end, of all.
    pub fn files(&self) -> (u64, u64) {
        let now = self.now;
        (now.done.items + now.failed.items + now.skipped.items, now.items())
    }

    /// Audio that was done by this run.
    fn audio(&self) -> Duration {
        Duration::from_millis(self.now.done.duration_ms.saturating_sub(self.before.done.duration_ms))
    }

    /// How long the rest will take at the speed so far; none: nobody knows yet.
    fn left(&self) -> Option<Duration> {
        let (ended, all) = self.files();
        let before = self.before.done.items + self.before.failed.items + self.before.skipped.items;
        let own = ended.checked_sub(before).filter(|own| *own > 0)?;
        Some(self.took.mul_f64(all.saturating_sub(ended) as f64 / own as f64))
    }

    /// In one line.
    pub fn line(&self) -> String {
        let (ended, all) = self.files();
        let mut line = format!("{}/{} files", grouped(ended), grouped(all));
        let audio = self.audio();
        if !audio.is_zero() {
            let _ = write!(line, "  {} of audio", span(audio));
            let _ = write!(line, "  {:.0}x real time", audio.as_secs_f64() / self.took.as_secs_f64().max(0.001));
        }
        let _ = write!(line, "  {}", cost(self.now));
        let Standing { running, width, held, reason, refusals } = self.standing;
        match held {
            Some(held) => {
                let _ = write!(line, "  waiting {:.1} s", held.as_secs_f64());
            }
            None if *running == 0 && self.afoot.is_some() => {}
            None => {
                let _ = write!(line, "  {running} at once (of {width})");
            }
        }
        if let Some((afoot, left)) = self.afoot {
            let _ = match afoot.requests {
                0 => write!(line, "  batch is being taken"),
                all => write!(line, "  batch in progress {}/{}", grouped(afoot.done), grouped(all)),
            };
            if let Some(left) = left {
                let _ = write!(line, ", {} of its window left", span(left));
            }
        }
        let Sums { failed, skipped, unread, .. } = self.now;
        for (count, what) in [
            (failed.items, "failed"),
            (skipped.items, "skipped"),
            (*unread, "not readable"),
            (*refusals, "times told to wait"),
        ] {
            if count > 0 {
                let _ = write!(line, "  {} {what}", grouped(count));
            }
        }
        if let Some(left) = self.left().filter(|_| ended < all && self.afoot.is_none()) {
            let _ = write!(line, "  {} left", span(left));
        }
        // Last, for it may be longer than the screen is wide.
        if let Some(reason) = reason.as_deref().filter(|_| held.is_some()) {
            let _ = write!(line, "  {}", reason.chars().take(REASON).collect::<String>());
        }
        line
    }
}

/// What there is to say at the end.
#[derive(Debug)]
pub struct Summary<'a> {
    /// How it went.
    pub progress: Progress<'a>,
    /// Why it ended early.
    pub stopped: Option<&'a Stopped>,
    /// Requests that were sent once more.
    pub retried: u64,
    /// What came by batches.
    pub by_batch: ByBatch,
    /// Where the results are.
    pub out: &'a str,
    /// What was written there.
    pub written: Option<&'a Written>,
    /// Files that cannot be read, failed or were skipped: their ids, and why; the first ones.
    pub errors: &'a [(String, String)],
    /// Files that were done, and of which something should be known.
    pub notes: &'a [String],
    /// Those that took longest.
    pub slowest: &'a [Slow],
    /// What goes on with it.
    pub resume: &'a str,
}

impl Summary<'_> {
    /// In lines.
    pub fn text(&self) -> String {
        let Progress { now, took, standing, .. } = self.progress;
        let mut text = String::new();
        let (ended, all) = self.progress.files();
        let _ = write!(
            text,
            "files      {} done, {} failed, {} skipped, {} left",
            grouped(now.done.items),
            grouped(now.failed.items),
            grouped(now.skipped.items),
            grouped(all - ended)
        );
        if now.unread > 0 {
            let _ = write!(text, ", {} not readable", grouped(now.unread));
        }
        text.push('\n');
        if now.reused > 0 {
            let _ =
                writeln!(text, "the same   {} had the same content as others, and cost nothing", grouped(now.reused));
        }
        let audio = self.progress.audio();
        let _ = writeln!(
            text,
            "audio      {} in {} ({:.0}x real time)",
            span(audio),
            span(took),
            audio.as_secs_f64() / took.as_secs_f64().max(0.001)
        );
        let usage = now.usage;
        if usage.input_tokens + usage.output_tokens > 0 {
            let _ =
                writeln!(text, "tokens     {} in, {} out", grouped(usage.input_tokens), grouped(usage.output_tokens));
        }
        let _ = writeln!(text, "cost       {}", cost(now));
        let ByBatch { batches, answers, usage } = self.by_batch;
        if batches > 0 {
            let _ = writeln!(
                text,
                "by batch   {} answers of {} batches, {}",
                grouped(answers),
                grouped(batches),
                priced(&usage)
            );
        }
        if self.retried + standing.refusals > 0 {
            let _ = writeln!(
                text,
                "repeated   {} requests, {} of them for limits",
                grouped(self.retried),
                grouped(standing.refusals)
            );
        }
        if let Some(written) = self.written {
            let _ = writeln!(text, "results    {} ({} rows)", self.out, grouped(written.rows));
            if let Some(at) = &written.errors_at {
                let _ = writeln!(text, "errors     {} ({} rows)", at.display(), grouped(written.errors));
            }
        }
        self.not_done(&mut text);
        for note in self.notes {
            let _ = writeln!(text, "note: {note}");
        }
        if !self.slowest.is_empty() {
            let _ = writeln!(text, "\nslowest:");
            for Slow { id, took_ms, duration_ms } in self.slowest {
                let of = Duration::from_millis(*duration_ms);
                let _ = writeln!(text, "  {:>8.1} s  {id} ({})", *took_ms as f64 / 1_000.0, span(of));
            }
        }
        self.stopped(&mut text);
        text
    }

    /// Which files have no result, and why; the first of them, and how many more.
    fn not_done(&self, text: &mut String) {
        if !self.errors.is_empty() {
            let _ = writeln!(text, "\nnot done:");
            for (id, why) in self.errors.iter().take(NAMED) {
                let _ = writeln!(text, "  {id}: {why}");
            }
            let now = self.progress.now;
            let all = now.unread + now.failed.items + now.skipped.items;
            let more = all.saturating_sub(self.errors.len().min(NAMED) as u64);
            if more > 0 {
                let _ = writeln!(text, "  and {} more", grouped(more));
            }
        }
    }

    /// Why it ended early, and how to go on.
    fn stopped(&self, text: &mut String) {
        match self.stopped {
            None => {}
            Some(Stopped::Asked) => {
                let _ = writeln!(text, "\nstopped; what is done is kept. To go on: {}", self.resume);
            }
            Some(Stopped::Refused { code, message, again_at }) => {
                let _ = writeln!(text, "\nstopped: {message} ({code})");
                match again_at {
                    Some(at) => {
                        let _ = writeln!(
                            text,
                            "what is done is kept. To go on, from {} on: {}",
                            Moment(at / 1_000),
                            self.resume
                        );
                    }
                    None => {
                        let _ = writeln!(text, "what is done is kept. To go on, when that is changed: {}", self.resume);
                    }
                }
            }
            Some(Stopped::Job(message)) => {
                let _ = writeln!(text, "\nstopped: {message}\nwhat is done is kept. To go on: {}", self.resume);
            }
        }
    }
}

fn cost(sums: &Sums) -> String {
    priced(&sums.usage)
}

fn priced(usage: &Usage) -> String {
    match usage.unpriced {
        0 => format!("{} USD", usage.cost),
        unpriced => format!("{} USD, and {} requests without a price", usage.cost, grouped(unpriced)),
    }
}

/// A number with a comma after every three digits.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A time, as people say it.
fn span(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    match seconds {
        s if s < 100.0 => format!("{s:.1} s"),
        s if s < 6_000.0 => format!("{:.1} min", s / 60.0),
        s => format!("{:.1} h", s / 3_600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::store::Count;

    fn sums(done: u64, failed: u64, waiting: u64) -> Sums {
        let count = |items| Count { items, bytes: items * 1_000, duration_ms: items * 60_000 };
        let usage = Usage { audio_ms: done * 60_000, cost: "1.25".parse().unwrap(), ..Usage::default() };
        Sums { done: count(done), failed: count(failed), waiting: count(waiting), usage, ..Sums::default() }
    }

    #[test]
    fn a_line_says_how_far_it_is() {
        let (before, now) = (sums(0, 0, 1_000), sums(300, 2, 698));
        let standing = Standing { running: 15, width: 16, ..Standing::default() };
        let progress =
            Progress { before: &before, now: &now, took: Duration::from_secs(60), standing: &standing, afoot: None };
        let line = progress.line();
        assert_eq!(
            line,
            "302/1,000 files  5.0 h of audio  300x real time  1.25 USD  15 at once (of 16)  2 failed  2.3 min left"
        );
        let held = Some(Duration::from_millis(2_100));
        let reason = Some(format!("tpm: need 1,830{}", ".".repeat(900)));
        let standing = Standing { held, reason, refusals: 3, ..standing };
        let now_unread = Sums { unread: 7, ..now };
        let line = Progress { standing: &standing, now: &now_unread, ..progress }.line();
        let want = "  waiting 2.1 s  2 failed  7 not readable  3 times told to wait  2.3 min left  tpm: need 1,830...";
        assert!(line.contains(want) && line.len() < 400, "{line}");
        let standing = Standing::default();
        let afoot = Afoot { batches: 2, requests: 5_000, done: 1_200, until: None };
        let afoot = Some((afoot, Some(Duration::from_secs(82_800))));
        let line = Progress { standing: &standing, afoot, ..progress }.line();
        assert_eq!(
            line,
            "302/1,000 files  5.0 h of audio  300x real time  1.25 USD  batch in progress 1,200/5,000, 23.0 h of its window left  2 failed"
        );
    }

    #[test]
    fn every_file_that_is_not_done_is_counted() {
        let standing = Standing::default();
        for (unread, failed, shown, line, more) in [
            (15, 0, 10, "8 done, 0 failed, 0 skipped, 0 left, 15 not readable\n", Some("and 5 more")),
            (10, 5, 10, "8 done, 5 failed, 0 skipped, 0 left, 10 not readable\n", Some("and 5 more")),
            (1, 2, 3, "8 done, 2 failed, 0 skipped, 0 left, 1 not readable\n", None),
            (0, 1, 1, "8 done, 1 failed, 0 skipped, 0 left\n", None),
        ] {
            let (before, now) = (sums(0, 0, 10), Sums { unread, ..sums(8, failed, 0) });
            let progress =
                Progress { before: &before, now: &now, took: Duration::from_secs(6), standing: &standing, afoot: None };
            let errors: Vec<_> = (0..shown).map(|n| (format!("{n}.wav"), "no such file".to_owned())).collect();
            let (by_batch, out, resume) = (ByBatch::default(), "out.csv", "again");
            let summary = Summary {
                progress,
                stopped: None,
                retried: 0,
                by_batch,
                out,
                written: None,
                errors: &errors,
                notes: &[],
                slowest: &[],
                resume,
            };
            let text = summary.text();
            assert!(text.contains(line), "{line}: {text}");
            assert_eq!(text.lines().map(str::trim).find(|line| line.starts_with("and ")), more, "{text}");
        }
    }

    #[test]
    fn the_end_says_what_to_do() {
        let (before, now) = (sums(0, 0, 10), sums(8, 1, 1));
        let standing = Standing::default();
        let progress =
            Progress { before: &before, now: &now, took: Duration::from_secs(6), standing: &standing, afoot: None };
        let stopped = Stopped::Refused {
            code: "budget_exhausted".to_owned(),
            message: "The day's budget is spent.".to_owned(),
            again_at: Some(1_801_353_600_000),
        };
        let errors = [("a/b.wav".to_owned(), "the file is empty (0 bytes)".to_owned())];
        let summary = Summary {
            progress,
            stopped: Some(&stopped),
            retried: 0,
            by_batch: ByBatch {
                batches: 2,
                answers: 1_500,
                usage: Usage { cost: "0.5".parse().unwrap(), ..Usage::default() },
            },
            out: "out.csv",
            written: None,
            errors: &errors,
            notes: &[],
            slowest: &[Slow { id: "x.wav".to_owned(), took_ms: 5_250, duration_ms: 60_000 }],
            resume: "voxrelay transcribe --resume --out out.csv",
        };
        let text = summary.text();
        for part in [
            "8 done, 1 failed, 0 skipped, 1 left",
            "by batch   1,500 answers of 2 batches, 0.5 USD\n",
            "a/b.wav: the file is empty (0 bytes)",
            "x.wav",
            "The day's budget is spent. (budget_exhausted)",
            "from 2027-01-31T00:00:00Z on: voxrelay transcribe --resume --out out.csv",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
