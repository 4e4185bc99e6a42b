//! What goes wrong, and when: scripted to the turn or the delta, or by seeded chance.
//!
//! This file says which fault is due; the session and its socket do the damage. Every firing is counted in
//! the statistics, so that a test can prove that its fault happened.
//!
//! # The file
//! ```toml
//! seed = 7                 # of the chances below
//!
//! [[fault]]
//! kind = "die"             # what happens
//! session = 2              # in which session (the n-th connection attempt, from 1); absent: in every one
//! response = 1             # when: here at the session's first response ...
//! after_deltas = 3         # ... once three deltas are out
//! mid_frame = true
//!
//! [[fault]]
//! kind = "refuse"          # at connect, in place of the 101
//! status = 429
//! retry_after_s = 2
//! times = 5                # at most so often in all; absent: without limit
//!
//! [[fault]]
//! kind = "stall_send"
//! response = "each"        # every response ...
//! chance = 0.05            # ... but only in one of twenty
//! after_ms = 300           # and 300 ms later
//! for_ms = 6_000
//! ```
//!
//! `refuse` and `hang` stand at a door: `door = "session"` (the default), `"mint"` (client secrets), `"calls"` (SDP),
//! `"acts"` (hang up, refer, accept, reject), `"transcriptions"`, `"responses"`, `"files"`, `"batches"`, or `"batch_lines"` (what a
//! batch holds; a line that hangs is answered all the same); there `session = n` is the n-th request at that door, and
//! `every = n` is each n-th. `slow_stream`, `break_stream` and `answer` stand at the doors for text only: `responses`, unless
//! another is named.
//!
//! | when | meaning |
//! |---|---|
//! | `at_ms = 1500` | so long after the 101 (what a fault without a moment has, with 0) |
//! | `after_audio_ms = 2000` | once so much audio was received |
//! | `speech = 1` | when the detector hears the first speech begin; `"each"`: any |
//! | `turn = 1` | when the first turn is committed; `"each"`: any |
//! | `response = 1`, `after_deltas = 3` | at the first response, after so many of its deltas (0: at `response.created`) |
//!
//! | kind | keys | what happens |
//! |---|---|---|
//! | `refuse` | `status`, `retry_after_s`, `body`, `door` | HTTP refusal in place of the 101, or of what else the door gives |
//! | `hang` | `for_ms`, `door` | no 101 for so long; absent: never |
//! | `expiry` | `offset_s` | a client secret whose `expires_at` is so far from now (as it pleases: past, or absurd) |
//! | `no_created` | | the 101, but never a `session.created` |
//! | `delay` | `ms`, `jitter_ms`, `for_ms` | every event comes later, in order |
//! | `stall_send` | `for_ms` | nothing is sent; absent: never again |
//! | `stall_read` | `for_ms` | nothing is read, so that the client's writes pile up |
//! | `slow_read` | `bytes_per_s`, `for_ms` | reads no faster than this |
//! | `die` | `mid_frame`, `reset` | the TCP connection ends without a close frame (1006): in the middle of a frame; by a reset |
//! | `close` | `code`, `reason` | a close frame of the server |
//! | `error` | `code`, `error_type`, `message`, `count` | a burst of `error` events |
//! | `fail_response` | `code`, `message` | `response.done` with status `failed`; `server_error` (as the service, without a code), `rate_limit_exceeded` ... |
//! | `fail_transcript` | | `input_audio_transcription.failed` for this turn |
//! | `reorder_transcripts` | | this turn's transcript comes after the next turn's |
//! | `duplicate` | `event`, `count` | events of this type (absent: of any) are sent twice |
//! | `swallow` | `event`, `count` | events of this type are not sent |
//! | `unknown_events` | `count` | events of a type that nobody knows |
//! | `unknown_fields` | `for_ms` | every event has fields that nobody knows |
//! | `oversized` | `bytes` | one text frame of this size |
//! | `slow_stream` | `pause_ms`, `door` | so long before each event of a stream |
//! | `break_stream` | `after_events`, `clean`, `door` | a stream ends after so many events, without its last one: cut off, or by a `clean` end; what is not streamed ends in its middle |
//! | `answer` | `as`, `message`, `door` | an answer that is no good, see below |
//!
//! | `as` | what is answered |
//! |---|---|
//! | `failed` | a response of status `failed` (`server_error`); a batch that fails its validation |
//! | `refusal` | the model refuses, in the words of `message` |
//! | `incomplete` | half of the answer, as if `max_output_tokens` had been so small |
//! | `malformed` | text that ends in the middle of its JSON, as if it were complete |
//! | `misfit` | JSON that does not fit the schema |
//! | `unknown_events` | a stream with events of a type that nobody knows |
//! | `garbage` | status 200 and a page in place of JSON |
//! | `expired` | a batch whose window ends when half of it is done |
//! | `lost` | nothing: a line of a batch that stands in none of its files, and is not paid |
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use super::{config::Delay, stats::Stats};
pub use crate::scripted::Nth;
use crate::scripted::{self, Dice, Keys};

/// All faults of a run. The default has none.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Faults {
    /// Seeds the chances.
    pub seed: u64,
    /// In the order of the file.
    pub list: Vec<Fault>,
}

/// One fault.
#[derive(Debug, Clone, PartialEq)]
pub struct Fault {
    /// What happens.
    pub kind: FaultKind,
    /// In which session, from 1; `None`: in every one.
    pub session: Option<u64>,
    /// When.
    pub when: When,
    /// So much later, ms.
    pub after_ms: u64,
    /// In this share of the cases, 0 to 1.
    pub chance: f64,
    /// At most so often in all.
    pub times: Option<u64>,
    /// At each n-th request of its door only.
    pub every: Option<u64>,
}

/// The moment of a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// In place of the 101, or of another door's answer.
    Connect(Place),
    /// So long after the 101, ms.
    At(u64),
    /// Once so much audio was received, ms.
    Audio(u64),
    /// When speech begins.
    Speech(Nth),
    /// When a turn is committed.
    Turn(Nth),
    /// At a response, after so many of its deltas.
    Response {
        /// Which one.
        nth: Nth,
        /// 0: at `response.created`.
        after_deltas: u64,
    },
}

/// Where a request comes in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Place {
    /// The sockets of sessions.
    #[default]
    Session,
    /// Client secrets.
    Mint,
    /// The life of a client secret.
    Expiry,
    /// SDP.
    Calls,
    /// What is done to a call.
    Acts,
    /// Recordings to transcribe.
    Transcriptions,
    /// Text to answer.
    Responses,
    /// Files for batches.
    Files,
    /// Batches.
    Batches,
    /// What is in a batch, line by line.
    BatchLines,
}

impl Place {
    /// The doors for text.
    const TEXT: [(&'static str, Self); 5] = [
        ("transcriptions", Self::Transcriptions),
        ("responses", Self::Responses),
        ("files", Self::Files),
        ("batches", Self::Batches),
        ("batch_lines", Self::BatchLines),
    ];

    /// The name of a door for text, as the file and the statistics have it.
    pub(super) fn name(self) -> &'static str {
        Self::TEXT.iter().find(|(_, place)| *place == self).map_or("", |(name, _)| name)
    }
}

/// An answer that is no good. The words are explained in the [module's page](self).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the table above is their documentation")]
pub enum How {
    Failed,
    Refusal,
    Incomplete,
    Malformed,
    Misfit,
    UnknownEvents,
    Garbage,
    Expired,
    Lost,
}

/// What goes wrong. The keys are explained in the [module's page](self).
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "the table above is their documentation")]
pub enum FaultKind {
    Refuse { status: u16, retry_after_s: Option<u64>, body: Option<String> },
    Hang { for_ms: Option<u64> },
    Expiry { offset_s: i64 },
    NoCreated,
    Delay { delay: Delay, for_ms: Option<u64> },
    StallSend { for_ms: Option<u64> },
    StallRead { for_ms: Option<u64> },
    SlowRead { bytes_per_s: u64, for_ms: Option<u64> },
    Die { mid_frame: bool, reset: bool },
    Close { code: u16, reason: String },
    Error { code: Option<String>, error_type: String, message: String, count: u64 },
    FailResponse { code: String, message: String },
    FailTranscript,
    ReorderTranscripts,
    Duplicate { event: Option<String>, count: u64 },
    Swallow { event: String, count: u64 },
    UnknownEvents { count: u64 },
    UnknownFields { for_ms: Option<u64> },
    Oversized { bytes: usize },
    SlowStream { pause_ms: u64 },
    BreakStream { after_events: u64, clean: bool },
    Answer { how: How, message: Option<String> },
}

impl FaultKind {
    const NAMES: [&'static str; 22] = [
        "refuse",
        "hang",
        "expiry",
        "no_created",
        "delay",
        "stall_send",
        "stall_read",
        "slow_read",
        "die",
        "close",
        "error",
        "fail_response",
        "fail_transcript",
        "reorder_transcripts",
        "duplicate",
        "swallow",
        "unknown_events",
        "unknown_fields",
        "oversized",
        "slow_stream",
        "break_stream",
        "answer",
    ];

    /// Its name in the file and in the statistics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Refuse { .. } => "refuse",
            Self::Hang { .. } => "hang",
            Self::Expiry { .. } => "expiry",
            Self::NoCreated => "no_created",
            Self::Delay { .. } => "delay",
            Self::StallSend { .. } => "stall_send",
            Self::StallRead { .. } => "stall_read",
            Self::SlowRead { .. } => "slow_read",
            Self::Die { .. } => "die",
            Self::Close { .. } => "close",
            Self::Error { .. } => "error",
            Self::FailResponse { .. } => "fail_response",
            Self::FailTranscript => "fail_transcript",
            Self::ReorderTranscripts => "reorder_transcripts",
            Self::Duplicate { .. } => "duplicate",
            Self::Swallow { .. } => "swallow",
            Self::UnknownEvents { .. } => "unknown_events",
            Self::UnknownFields { .. } => "unknown_fields",
            Self::Oversized { .. } => "oversized",
            Self::SlowStream { .. } => "slow_stream",
            Self::BreakStream { .. } => "break_stream",
            Self::Answer { .. } => "answer",
        }
    }

    /// Whether it comes in place of the 101, or of what else a door gives.
    fn is_at_connect(&self) -> bool {
        matches!(self, Self::Refuse { .. } | Self::Hang { .. } | Self::Expiry { .. }) || self.is_of_text()
    }

    /// Whether only the doors for text know it.
    fn is_of_text(&self) -> bool {
        matches!(self, Self::SlowStream { .. } | Self::BreakStream { .. } | Self::Answer { .. })
    }
}

impl Faults {
    /// Reads a fault file.
    ///
    /// # Errors
    /// What is wrong, with the line and what is allowed.
    pub fn from_toml(text: &str) -> Result<Self, String> {
        let (seed, list) = scripted::read(text, fault)?;
        Ok(Self { seed, list })
    }
}

fn fault(keys: &mut Keys<'_>, name: &str) -> Result<Fault, String> {
    let kind = kind(keys, name)?;
    let when = when(keys, &kind)?;
    Ok(Fault {
        session: keys.integer("session", 1, u64::MAX)?,
        after_ms: if kind.is_at_connect() { 0 } else { keys.integer("after_ms", 0, u64::MAX)?.unwrap_or(0) },
        chance: keys.share("chance")?.unwrap_or(1.0),
        times: keys.integer("times", 1, u64::MAX)?,
        every: if kind.is_at_connect() { keys.integer("every", 1, u64::MAX)? } else { None },
        when,
        kind,
    })
}

fn kind(keys: &mut Keys<'_>, name: &str) -> Result<FaultKind, String> {
    Ok(match name {
        "refuse" => FaultKind::Refuse {
            status: keys.small("status", 400, 599)?.unwrap_or(503),
            retry_after_s: keys.integer("retry_after_s", 0, 86_400)?,
            body: keys.text("body")?,
        },
        "hang" => FaultKind::Hang { for_ms: keys.span()? },
        "expiry" => FaultKind::Expiry { offset_s: keys.signed("offset_s")?.unwrap_or(0) },
        "no_created" => FaultKind::NoCreated,
        "delay" => {
            let ms = keys.integer("ms", 0, 3_600_000)?.unwrap_or(0);
            let jitter_ms = keys.integer("jitter_ms", 0, 3_600_000)?.unwrap_or(0);
            FaultKind::Delay { delay: Delay { ms, jitter_ms }, for_ms: keys.span()? }
        }
        "stall_send" => FaultKind::StallSend { for_ms: keys.span()? },
        "stall_read" => FaultKind::StallRead { for_ms: keys.span()? },
        "slow_read" => FaultKind::SlowRead {
            bytes_per_s: keys.integer("bytes_per_s", 1, u64::MAX)?.unwrap_or(8_000),
            for_ms: keys.span()?,
        },
        "die" => FaultKind::Die {
            mid_frame: keys.flag("mid_frame")?.unwrap_or(false),
            reset: keys.flag("reset")?.unwrap_or(false),
        },
        "close" => FaultKind::Close {
            code: keys.small("code", 1_000, 4_999)?.unwrap_or(1_011),
            reason: keys.text("reason")?.unwrap_or_default(),
        },
        "error" => FaultKind::Error {
            code: keys.text("code")?,
            error_type: keys.text("error_type")?.unwrap_or_else(|| "server_error".into()),
            message: keys.text("message")?.unwrap_or_else(|| SERVER_ERROR.into()),
            count: keys.count(1, 1_000_000)?,
        },
        "fail_response" => {
            let code = keys.text("code")?.unwrap_or_else(|| "server_error".into());
            let usual = if code == "rate_limit_exceeded" { RATE_LIMITED } else { SERVER_ERROR };
            FaultKind::FailResponse { code, message: keys.text("message")?.unwrap_or_else(|| usual.into()) }
        }
        "fail_transcript" => FaultKind::FailTranscript,
        "reorder_transcripts" => FaultKind::ReorderTranscripts,
        "duplicate" => FaultKind::Duplicate { event: keys.text("event")?, count: keys.count(u64::MAX, u64::MAX)? },
        "swallow" => {
            let Some(event) = keys.text("event")? else {
                return keys.mistake("fault `swallow` needs the `event` to lose");
            };
            FaultKind::Swallow { event, count: keys.count(u64::MAX, u64::MAX)? }
        }
        "unknown_events" => FaultKind::UnknownEvents { count: keys.count(1, 1_000_000)? },
        "unknown_fields" => FaultKind::UnknownFields { for_ms: keys.span()? },
        "oversized" => {
            let bytes = keys.integer("bytes", 1, 1 << 30)?.unwrap_or(17 << 20);
            FaultKind::Oversized { bytes: usize::try_from(bytes).unwrap_or(usize::MAX) }
        }
        "slow_stream" => FaultKind::SlowStream { pause_ms: keys.integer("pause_ms", 0, 3_600_000)?.unwrap_or(1_000) },
        "break_stream" => FaultKind::BreakStream {
            after_events: keys.integer("after_events", 0, u64::MAX)?.unwrap_or(3),
            clean: keys.flag("clean")?.unwrap_or(false),
        },
        "answer" => {
            let how = keys.word("as", &HOWS)?.unwrap_or(How::Failed);
            FaultKind::Answer { how, message: keys.text("message")? }
        }
        other => return keys.unknown_kind(other, &FaultKind::NAMES),
    })
}

fn when(keys: &mut Keys<'_>, kind: &FaultKind) -> Result<When, String> {
    if matches!(kind, FaultKind::Expiry { .. }) {
        return Ok(When::Connect(Place::Expiry));
    }
    if kind.is_at_connect() {
        return Ok(When::Connect(door(keys, kind.is_of_text())?));
    }
    let at = keys.integer("at_ms", 0, u64::MAX)?.map(When::At);
    let audio = keys.integer("after_audio_ms", 0, u64::MAX)?.map(When::Audio);
    let speech = keys.nth("speech")?.map(When::Speech);
    let turn = keys.nth("turn")?.map(When::Turn);
    let response = keys.nth("response")?;
    let after_deltas = keys.integer("after_deltas", 0, u64::MAX)?;
    if after_deltas.is_some() && response.is_none() {
        return keys.mistake("`after_deltas` needs a `response`");
    }
    let response = response.map(|nth| When::Response { nth, after_deltas: after_deltas.unwrap_or(0) });
    let mut moments = [at, audio, speech, turn, response].into_iter().flatten();
    match (moments.next(), moments.next()) {
        (Some(_), Some(_)) => {
            keys.mistake("a fault has one moment; take one of at_ms, after_audio_ms, speech, turn, response")
        }
        (Some(when), None) => Ok(when),
        (None, _) => Ok(match kind {
            FaultKind::FailResponse { .. } => When::Response { nth: Nth::Each, after_deltas: 0 },
            FaultKind::FailTranscript | FaultKind::ReorderTranscripts => When::Turn(Nth::Each),
            _ => When::At(0),
        }),
    }
}

fn door(keys: &mut Keys<'_>, of_text: bool) -> Result<Place, String> {
    if of_text {
        return Ok(keys.word("door", &Place::TEXT)?.unwrap_or(Place::Responses));
    }
    let voice = [("session", Place::Session), ("mint", Place::Mint), ("calls", Place::Calls), ("acts", Place::Acts)];
    let doors: Vec<(&str, Place)> = voice.into_iter().chain(Place::TEXT).collect();
    Ok(keys.word("door", &doors)?.unwrap_or_default())
}

const HOWS: [(&str, How); 9] = [
    ("failed", How::Failed),
    ("refusal", How::Refusal),
    ("incomplete", How::Incomplete),
    ("malformed", How::Malformed),
    ("misfit", How::Misfit),
    ("unknown_events", How::UnknownEvents),
    ("garbage", How::Garbage),
    ("expired", How::Expired),
    ("lost", How::Lost),
];

/// The service's words for a fault of its own.
pub(super) const SERVER_ERROR: &str = "The server had an error while processing your request. Sorry about that! Please \
                                       contact us through our help center if the error persists.";
const RATE_LIMITED: &str = "Rate limit reached for gpt-realtime in organization org-sim on requests per day (RPD): Limit \
                            1000, Used 1000, Requested 1. Please try again in 1m26.4s.";

/// All faults of a running simulator, and how often each has fired.
#[derive(Debug)]
pub(super) struct FaultBook {
    faults: Faults,
    fired: Vec<AtomicU64>,
    stats: Arc<Stats>,
}

impl FaultBook {
    pub(super) fn new(faults: Faults, stats: Arc<Stats>) -> Arc<Self> {
        let fired = faults.list.iter().map(|_| AtomicU64::new(0)).collect();
        Arc::new(Self { faults, fired, stats })
    }

    /// The faults of the `number`-th connection attempt.
    pub(super) fn script(self: &Arc<Self>, number: u64) -> FaultScript {
        let dice = Dice::new(self.faults.seed ^ 0xFA17, number);
        FaultScript { book: self.clone(), number, dice, heard: Vec::new() }
    }

    /// What happens in place of the answer to the `number`-th request at a door, if anything.
    pub(super) fn at_door(self: &Arc<Self>, place: Place, number: u64) -> Option<FaultKind> {
        let mut script = self.script(number);
        // Dice of its own: the session throws the script's from the beginning.
        script.dice = Dice::new(self.faults.seed ^ 0xC0FA, number);
        script.due(Moment::Connect(place)).into_iter().find_map(|due| script.fire(due.fault))
    }
}

/// The faults of one session.
#[derive(Debug)]
pub(super) struct FaultScript {
    book: Arc<FaultBook>,
    number: u64,
    dice: Dice,
    /// Faults whose amount of audio has come.
    heard: Vec<usize>,
}

/// Something that has just happened in a session.
#[derive(Debug, Clone, Copy)]
pub(super) enum Moment {
    Connect(Place),
    Start,
    /// So much audio was received, ms.
    Audio(u64),
    /// The n-th speech began.
    Speech(u64),
    /// The n-th turn was committed.
    Turn(u64),
    /// The n-th response stands after so many deltas.
    Response(u64, u64),
}

/// A fault that is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Due {
    pub(super) fault: usize,
    /// In so long.
    pub(super) after: Duration,
}

impl FaultScript {
    /// What is due now or follows from this moment. Throws the dice once for each candidate.
    pub(super) fn due(&mut self, moment: Moment) -> Vec<Due> {
        let mut due = Vec::new();
        for (index, fault) in self.book.faults.list.iter().enumerate() {
            let other = fault.session.is_some_and(|session| session != self.number);
            if other || fault.every.is_some_and(|n| !self.number.is_multiple_of(n)) {
                continue;
            }
            let after = match (fault.when, moment) {
                (When::Connect(door), Moment::Connect(here)) if door == here => 0,
                (When::At(ms), Moment::Start) => ms,
                (When::Audio(ms), Moment::Audio(now)) if now >= ms && !self.heard.contains(&index) => {
                    self.heard.push(index);
                    0
                }
                (When::Speech(nth), Moment::Speech(n)) | (When::Turn(nth), Moment::Turn(n)) if nth.is(n) => 0,
                (When::Response { nth, after_deltas }, Moment::Response(n, deltas))
                    if nth.is(n) && after_deltas == deltas =>
                {
                    0
                }
                _ => continue,
            };
            if self.dice.chance(fault.chance) {
                due.push(Due { fault: index, after: Duration::from_millis(after + fault.after_ms) });
            }
        }
        due
    }

    /// Lets a fault happen, and counts it; `None`: it has happened often enough.
    pub(super) fn fire(&self, fault: usize) -> Option<FaultKind> {
        let (entry, fired) = (self.book.faults.list.get(fault)?, self.book.fired.get(fault)?);
        let limit = entry.times.unwrap_or(u64::MAX);
        fired.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n < limit).then_some(n + 1)).ok()?;
        self.book.stats.fault(entry.kind.name());
        Some(entry.kind.clone())
    }

    /// This session's delay for one more event.
    pub(super) fn lag(&mut self, delay: Delay) -> Duration {
        self.dice.delay(delay)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of this page, so that it cannot rot.
    fn example() -> String {
        let page = include_str!("faults.rs").lines().filter_map(|line| line.strip_prefix("//!"));
        let page: Vec<&str> = page.map(|line| line.strip_prefix(' ').unwrap_or(line)).collect();
        let from = page.iter().position(|line| *line == "```toml").unwrap();
        let len = page[from + 1..].iter().position(|line| *line == "```").unwrap();
        page[from + 1..from + 1 + len].join("\n")
    }

    #[test]
    fn the_example_of_the_page_is_read() {
        let faults = Faults::from_toml(&example()).unwrap();
        assert_eq!(faults.seed, 7);
        let [die, refuse, stall] = &faults.list[..] else { panic!("{faults:?}") };
        assert_eq!(die.kind, FaultKind::Die { mid_frame: true, reset: false });
        assert_eq!((die.session, die.when), (Some(2), When::Response { nth: Nth::At(1), after_deltas: 3 }));
        assert_eq!(refuse.kind, FaultKind::Refuse { status: 429, retry_after_s: Some(2), body: None });
        assert_eq!((refuse.when, refuse.times), (When::Connect(Place::Session), Some(5)));
        assert_eq!(stall.kind, FaultKind::StallSend { for_ms: Some(6_000) });
        assert_eq!((stall.after_ms, stall.chance), (300, 0.05));
    }

    #[test]
    fn every_kind_can_be_written_and_the_page_names_it() {
        let page = include_str!("faults.rs");
        for name in FaultKind::NAMES {
            let text =
                format!("[[fault]]\nkind = \"{name}\"\n{}", if name == "swallow" { "event = \"error\"" } else { "" });
            let faults = Faults::from_toml(&text).unwrap();
            assert_eq!(faults.list[0].kind.name(), name);
            assert!(page.contains(&format!("//! | `{name}` |")), "{name} is missing on the page");
        }
    }

    #[test]
    fn mistakes_are_named_with_their_line() {
        for (text, want) in [
            ("sed = 1", "unknown field `sed`"),
            ("[[fault]]\nsession = 1", "line 1: a fault needs a `kind`"),
            ("\n\n[[fault]]\nkind = \"explode\"", "line 3: fault kind `explode` is not known; allowed: refuse, hang"),
            (
                "[[fault]]\nkind = \"die\"\nforce = 3",
                "line 3: fault `die` has no key `force` here; it has: kind, mid_frame",
            ),
            ("[[fault]]\nkind = \"die\"\nsession = 0", "line 3: `session` is 0; allowed: a whole number from 1"),
            (
                "[[fault]]\nkind = \"refuse\"\nstatus = 200",
                "line 3: `status` is 200; allowed: a whole number from 400 to 599",
            ),
            (
                "[[fault]]\nkind = \"die\"\nturn = \"some\"",
                "line 3: `turn` is \"some\"; allowed: a number from 1, or \"each\"",
            ),
            ("[[fault]]\nkind = \"die\"\nturn = 1\nspeech = 1", "a fault has one moment"),
            ("[[fault]]\nkind = \"die\"\nafter_deltas = 1", "`after_deltas` needs a `response`"),
            ("[[fault]]\nkind = \"die\"\nchance = 1.5", "line 3: `chance` is 1.5; allowed: a number from 0.0 to 1.0"),
            ("[[fault]]\nkind = \"refuse\"\nat_ms = 3", "line 3: fault `refuse` has no key `at_ms` here"),
            ("[[fault]]\nkind = \"swallow\"", "line 1: fault `swallow` needs the `event` to lose"),
            ("[[fault]", "line 1"),
        ] {
            let error = Faults::from_toml(text).unwrap_err();
            assert!(error.contains(want), "{text}\n  gives: {error}\n  wants: {want}");
        }
    }

    #[test]
    fn faults_are_due_where_they_are_scripted() {
        let text = "[[fault]]\nkind = \"die\"\nsession = 2\nresponse = 1\nafter_deltas = 3\n\
                    [[fault]]\nkind = \"error\"\nturn = \"each\"\ntimes = 2\nafter_ms = 9\n\
                    [[fault]]\nkind = \"close\"\nafter_audio_ms = 100";
        let stats = Arc::new(Stats::default());
        let book = FaultBook::new(Faults::from_toml(text).unwrap(), stats.clone());
        let (mut one, mut two) = (book.script(1), book.script(2));
        assert_eq!(one.due(Moment::Response(1, 3)), []);
        assert_eq!(two.due(Moment::Response(1, 2)), []);
        assert_eq!(two.due(Moment::Response(2, 3)), []);
        assert_eq!(two.due(Moment::Response(1, 3)), [Due { fault: 0, after: Duration::ZERO }]);
        assert_eq!(one.due(Moment::Turn(5)), [Due { fault: 1, after: Duration::from_millis(9) }]);
        assert!(one.fire(1).is_some() && two.fire(1).is_some() && one.fire(1).is_none(), "twice in all");
        assert_eq!(one.due(Moment::Audio(99)).len(), 0);
        assert_eq!(one.due(Moment::Audio(101)).len(), 1);
        assert_eq!(one.due(Moment::Audio(140)).len(), 0, "once a session");
        assert_eq!(stats.snapshot().faults.get("error"), Some(&2));
    }

    #[test]
    fn chances_are_seeded() {
        let text = "seed = 3\n[[fault]]\nkind = \"die\"\nresponse = \"each\"\nchance = 0.3";
        let throws = |session| {
            let book = FaultBook::new(Faults::from_toml(text).unwrap(), Arc::default());
            let mut script = book.script(session);
            (1..=200).map(|n| script.due(Moment::Response(n, 0)).len()).collect::<Vec<_>>()
        };
        assert_eq!(throws(1), throws(1));
        assert_ne!(throws(1), throws(2));
        assert!((40..=80).contains(&throws(1).iter().sum::<usize>()));
    }
}
