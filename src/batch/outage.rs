//! Whose fault it is that no answer comes: the service's, or one file's.
//!
//! Where one file fails again and again while others are answered, it is the file. Where nothing is answered any more, nobody knows at
//! first: after a number of failures in a row one request at a time is tried, of the file that has failed least, so that many different
//! ones are. An answer ends it, and nobody's tries count any more. Where only a few files are left and each of them has failed often
//! enough, they have failed; where many have, it is the service, and after a while the run ends. Pure: `now` is an argument.
use std::{collections::BTreeMap, time::Duration};

/// Tries of a request whose answer did not come.
pub const TRIES: u32 = 6;
/// So many failures in a row, and nothing good between them: nothing more is sent but one at a time.
const IN_A_ROW: u32 = 8;
/// Between two of those.
pub const PAUSE: Duration = Duration::from_secs(5);
/// Files that fail, and nothing good between them: more of them are no bad files, but a service that is out.
const FEW: usize = 16;
/// Nothing good has come for so long, and for the longest wait that was asked for besides: it will not soon.
const SILENT: Duration = Duration::from_secs(300);

/// What came instead of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sign {
    /// An error of the service, or an end of the connection: perhaps for what was sent.
    Broken {
        /// Of this request, this one among them.
        tries: u32,
        /// Its file had failed before, in an earlier run or while others were answered: it is no sign of the service.
        before: bool,
    },
    /// Nobody was reached, which is no file's fault.
    Away {
        /// Of this request, this one among them.
        tries: u32,
    },
    /// Too much was asked for.
    Busy {
        /// Nothing is to be sent for so long.
        wait: Duration,
    },
}

/// What a failure means.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Verdict {
    /// The service seems to be out: this try says nothing about its file.
    pub out: bool,
    /// It has just begun to seem so.
    pub first: bool,
    /// It will not be back soon: the run ends.
    pub over: bool,
}

/// Whether somebody may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// As far as the number at once allows.
    Free,
    /// Not now.
    Wait,
    /// It is the one that is tried.
    First {
        /// Nobody is left who has not failed as often as can be: its file has failed.
        poisoned: bool,
    },
}

/// What is known.
#[derive(Debug, Default)]
pub struct Outage {
    /// Good answers.
    answers: u64,
    /// What has failed since then.
    series: Option<Series>,
    /// Who wants to send, in the order in which they came, and for which file.
    queue: BTreeMap<u64, i64>,
    tickets: u64,
    /// The one that is tried is under way.
    probing: bool,
}

/// Failures, and nothing good between them.
#[derive(Debug)]
struct Series {
    since: Duration,
    /// Since when nothing but refusals have come, and how many.
    busy: Option<(Duration, u32)>,
    /// The longest wait that was asked for.
    wait: Duration,
    failures: u32,
    away: u32,
    files: BTreeMap<i64, Suspect>,
}

/// A file that has failed.
#[derive(Debug, Clone, Copy, Default)]
struct Suspect {
    tries: u32,
    before: bool,
}

impl Series {
    fn new(since: Duration) -> Self {
        Self { since, busy: None, wait: Duration::ZERO, failures: 0, away: 0, files: BTreeMap::new() }
    }

    fn is_out(&self) -> bool {
        self.failures >= IN_A_ROW
    }

    /// It is no file's fault.
    fn is_the_services(&self) -> bool {
        self.away >= IN_A_ROW || self.files.values().filter(|file| !file.before).count() > FEW
    }
}

impl Outage {
    fn is_out(&self) -> bool {
        self.series.as_ref().is_some_and(Series::is_out)
    }

    /// How many good answers there were.
    pub fn answers(&self) -> u64 {
        self.answers
    }

    /// Files under way that are not to be counted: others shall be tried in their place.
    pub fn suspects(&self) -> usize {
        let few = self.series.as_ref().filter(|series| series.is_out() && !series.is_the_services());
        few.map_or(0, |series| series.files.len())
    }

    /// Somebody wants to send something of a file; their ticket.
    pub fn queue(&mut self, file: i64) -> u64 {
        self.tickets += 1;
        self.queue.insert(self.tickets, file);
        self.tickets
    }

    /// They want it no longer.
    pub fn unqueue(&mut self, ticket: u64) {
        self.queue.remove(&ticket);
    }

    /// Whether they may.
    pub fn turn(&self, ticket: u64) -> Turn {
        let Some(series) = self.series.as_ref().filter(|series| series.is_out()) else { return Turn::Free };
        let tries = |file: &i64| series.files.get(file).map_or(0, |file| file.tries);
        let first = self.queue.iter().map(|(ticket, file)| (tries(file), *ticket)).min();
        match first {
            Some((tries, first)) if first == ticket && !self.probing => {
                Turn::First { poisoned: tries >= TRIES && !series.is_the_services() }
            }
            _ => Turn::Wait,
        }
    }

    /// The one whose turn it is sends; or has an end, whichever.
    pub fn probe(&mut self, under_way: bool) {
        self.probing = under_way;
    }

    /// Something good came.
    pub fn answered(&mut self) {
        self.answers += 1;
        self.series = None;
    }

    /// Something else did. `probe`: to the one that was tried.
    pub fn failed(&mut self, now: Duration, file: i64, probe: bool, sign: Sign) -> Verdict {
        let was_out = self.is_out();
        let series = self.series.get_or_insert_with(|| Series::new(now));
        let (mut never, mut blamed, mut since) = (false, false, series.since);
        let busy = series.busy.take();
        match sign {
            Sign::Busy { wait } => {
                series.wait = series.wait.max(wait);
                let (first, many) = busy.unwrap_or((now, 0));
                (series.busy, since) = (Some((first, many + 1)), first);
                // One that took long until it was refused is none.
                blamed = many + 1 >= IN_A_ROW;
            }
            Sign::Away { tries } => {
                series.failures += 1;
                series.away += 1;
                never = tries >= TRIES;
            }
            Sign::Broken { tries, before } => {
                let suspect = series.files.entry(file).or_default();
                // Many at once of one file have failed once.
                suspect.tries = if probe { suspect.tries + 1 } else { suspect.tries.max(tries) };
                suspect.before = before;
                series.failures += u32::from(!before);
            }
        }
        let out = series.is_out();
        let silent = now.saturating_sub(since) > SILENT + series.wait;
        let is_the_services = series.busy.is_none() && out && series.is_the_services();
        // Nobody waits for what never was there.
        let over = (blamed || is_the_services) && silent || (never || is_the_services) && self.answers == 0;
        Verdict { out, first: out && !was_out, over }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    fn broken(tries: u32) -> Sign {
        Sign::Broken { tries, before: false }
    }

    /// A service that answers what it is told to, and is asked for some files until each has an end: who has failed, whether the run was ended,
    /// and the files that were tried.
    fn ask(outage: &mut Outage, files: &[i64], good: impl Fn(i64, Duration) -> bool) -> (Vec<i64>, bool, Vec<i64>) {
        let (mut now, mut poisoned, mut tried) = (Duration::ZERO, Vec::new(), Vec::new());
        let mut waiting: BTreeMap<u64, (i64, u32)> =
            files.iter().map(|file| (outage.queue(*file), (*file, 0))).collect();
        while !waiting.is_empty() {
            let (ticket, turn) = waiting
                .keys()
                .map(|ticket| (*ticket, outage.turn(*ticket)))
                .find(|(_, turn)| *turn != Turn::Wait)
                .expect("it is always somebody's turn");
            outage.unqueue(ticket);
            let (file, tries) = waiting.remove(&ticket).unwrap();
            if turn == (Turn::First { poisoned: true }) {
                poisoned.push(file);
                continue;
            }
            tried.push(file);
            let probe = turn != Turn::Free;
            outage.probe(probe);
            now += if probe { PAUSE } else { at(1) };
            if good(file, now) {
                outage.answered();
                outage.probe(false);
                continue;
            }
            let verdict = outage.failed(now, file, probe, broken(tries + 1));
            outage.probe(false);
            if verdict.over {
                return (poisoned, true, tried);
            }
            match verdict.out {
                false if tries + 1 >= TRIES => poisoned.push(file),
                out => drop(waiting.insert(outage.queue(file), (file, if out { 0 } else { tries + 1 }))),
            }
        }
        (poisoned, false, tried)
    }

    #[test]
    fn a_few_bad_files_that_are_all_there_is_fail_and_the_run_goes_on() {
        for many in [1, 2, 3, 7, 16] {
            let files: Vec<i64> = (0..many).collect();
            let (mut poisoned, over, tried) = ask(&mut Outage::default(), &files, |_, _| false);
            poisoned.sort_unstable();
            assert_eq!((poisoned, over), (files, false), "{many}");
            assert!(tried.len() <= 6 * usize::try_from(many).unwrap() + 8, "{many}: {}", tried.len());
        }
    }

    #[test]
    fn bad_files_among_good_ones_fail_and_no_good_one_does() {
        let files: Vec<i64> = (0..200).collect();
        let (mut poisoned, over, _) = ask(&mut Outage::default(), &files, |file, _| file >= 12);
        poisoned.sort_unstable();
        assert_eq!((poisoned, over), ((0..12).collect(), false));
    }

    #[test]
    fn an_outage_fails_no_file_and_many_different_ones_are_tried() {
        let files: Vec<i64> = (0..1_000).collect();
        let mut outage = Outage::default();
        outage.answered();
        let (poisoned, over, tried) = ask(&mut outage, &files, |_, _| false);
        assert_eq!((poisoned.len(), over), (0, true));
        assert!((58..80).contains(&tried.len()), "one every five seconds, for five minutes: {}", tried.len());
        assert!(tried.iter().collect::<std::collections::BTreeSet<_>>().len() > 50);
        // One that passes by leaves no trace.
        let mut outage = Outage::default();
        let (poisoned, over, _) = ask(&mut outage, &files, |_, now| now > at(60));
        assert!(over, "and what never was there is not waited for: {poisoned:?}");
        let mut outage = Outage::default();
        outage.answered();
        assert_eq!(ask(&mut outage, &files, |_, now| now > at(200)).0, Vec::<i64>::new());
    }

    #[test]
    fn who_has_failed_before_is_no_sign_of_an_outage() {
        let mut outage = Outage::default();
        for file in 0..40 {
            let verdict = outage.failed(at(1), file, false, Sign::Broken { tries: 1, before: true });
            assert_eq!(verdict, Verdict::default());
        }
    }

    #[test]
    fn one_file_in_many_requests_has_failed_once_when_all_of_them_have() {
        let mut outage = Outage::default();
        for _ in 0..20 {
            outage.failed(at(1), 7, false, broken(1));
        }
        let ticket = outage.queue(7);
        assert_eq!((outage.turn(ticket), outage.suspects()), (Turn::First { poisoned: false }, 1));
        for probe in 1..TRIES {
            assert_eq!(outage.turn(ticket), Turn::First { poisoned: false }, "{probe}");
            outage.failed(at(2), 7, true, broken(1));
        }
        assert_eq!(outage.turn(ticket), Turn::First { poisoned: true });
        let fresh = outage.queue(8);
        assert_eq!((outage.turn(ticket), outage.turn(fresh)), (Turn::Wait, Turn::First { poisoned: false }));
        outage.probe(true);
        assert_eq!(outage.turn(fresh), Turn::Wait, "one at a time");
    }

    #[test]
    fn the_first_failure_after_a_quiet_time_ends_nothing() {
        let mut outage = Outage::default();
        outage.answered();
        for sign in [Sign::Busy { wait: at(2) }, broken(1), Sign::Away { tries: 1 }] {
            let verdict = outage.failed(at(100_000), 1, false, sign);
            assert_eq!(verdict, Verdict::default(), "{sign:?}");
        }
    }

    #[test]
    fn a_long_wait_that_was_asked_for_is_no_silence_and_refusals_without_end_are_one() {
        let mut outage = Outage::default();
        outage.answered();
        let mut busy = |secs, wait| outage.failed(at(secs), 1, false, Sign::Busy { wait: at(wait) }).over;
        assert!((0..8).all(|_| !busy(0, 600)), "all that were under way");
        assert_eq!([busy(601, 2), busy(700, 2), busy(901, 2)], [false, false, true]);
        // Few that took long until they were refused say nothing.
        let mut outage = Outage::default();
        let mut busy = |secs| outage.failed(at(secs), 1, false, Sign::Busy { wait: at(2) }).over;
        assert_eq!([busy(0), busy(500), busy(1_000)], [false; 3]);
        let mut outage = Outage::default();
        outage.answered();
        let over = (0..400).find(|n| outage.failed(at(n * 2), 1, false, Sign::Busy { wait: at(2) }).over);
        assert_eq!(over, Some(152), "five minutes, and one wait");
    }

    #[test]
    fn nobody_waits_for_a_relay_that_never_was_there_and_does_for_one_that_was() {
        let away = |outage: &mut Outage, n: u64| outage.failed(at(n), 1, false, Sign::Away { tries: 1 });
        let mut outage = Outage::default();
        assert_eq!((0..20).find(|n| away(&mut outage, *n).over), Some(7));
        let alone = (1..20).find(|tries| Outage::default().failed(at(1), 1, false, Sign::Away { tries: *tries }).over);
        assert_eq!(alone, Some(TRIES));
        let mut outage = Outage::default();
        outage.answered();
        assert_eq!((0..400).find(|n| away(&mut outage, *n).over), Some(301));
        assert_eq!(outage.suspects(), 0, "it is no file's fault");
    }
}
