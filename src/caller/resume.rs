//! The client's half of a resume: what is kept, what is sent again, when the next try is due.
//!
//! Stands beside the socket of [`super::Call`] and tells it what to do. Pure: holds messages, reads no clock and throws no
//! dice; time comes in as `now`, chance as a number from 0 to 1. Messages have numbers from 1 on, in the order in which
//! they are sent; the number is never written, both ends count.
use std::{collections::VecDeque, fmt, time::Duration};

use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Message;

use super::{
    ConnectError,
    call::{CallEnd, SendError},
};

/// Most bytes kept, of what is not written and of what no `ack` covers together.
const KEEP: usize = 8 * 1024 * 1024;
/// What a kept message counts besides its own bytes: thousands of tiny ones are not free.
const OVERHEAD: usize = 64;
/// The server pings each 15 s: two were missed.
const SILENT: Duration = Duration::from_secs(35);
/// What was received is acknowledged so long after the first that is not.
const ACK_AFTER: Duration = Duration::from_secs(1);
/// First wait before another try, doubled by each, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));
/// A network's drop after so long is a new one: the backoff begins anew.
const STEADY: Duration = Duration::from_secs(1);
/// So is a server's close; one that comes sooner may be the answer to what is sent again.
const STEADY_SERVER: Duration = Duration::from_secs(10);
/// Closes in a row, each sooner than that, after which coming back is of no use.
const MAX_CLOSES: u32 = 8;

/// When to come back after a close.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Again {
    AtOnce,
    /// At once, but not all clients of the server in the same moment.
    Soon,
    /// After a pause: the server's own, or the backoff.
    Later,
    /// With a credential that the server has not refused.
    Renewed,
    Never,
}

impl Again {
    /// The protocol page's table of close codes; a code that is not in it is no invitation.
    fn after(code: u16) -> Self {
        match code {
            1006 | 1009 | 4408 | 4508 => Self::AtOnce,
            1001 => Self::Soon,
            1011 | 1013 | 4429 | 4502 | 4503 | 4504 => Self::Later,
            4401 => Self::Renewed,
            _ => Self::Never,
        }
    }

    /// The code's word, and the error's: one that is not retryable will be there again.
    fn after_end(end: &CallEnd, renewed: bool) -> Self {
        match Self::after(end.code) {
            Self::Renewed if renewed => Self::AtOnce,
            Self::Renewed => Self::Never,
            _ if end.error.as_ref().is_some_and(|error| !error.retryable) => Self::Never,
            again => again,
        }
    }
}

/// What is due.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// The socket is dead, though nobody has closed it.
    Silent,
    /// Connect with this token, and so many messages received. What came of it is told by `failed` or `resumed`.
    Dial {
        /// Single use.
        token: String,
        /// `got` of the query.
        got: u64,
    },
    /// No more tries.
    Over(CallEnd),
}

#[derive(Debug)]
enum Link {
    Up {
        since: Instant,
        heard: Instant,
    },
    Down {
        since: Instant,
        lost: CallEnd,
        /// The next try; `None` while one is under way.
        try_at: Option<Instant>,
        /// What the last try came to.
        failure: Option<String>,
    },
}

/// The account of one call's messages over all of its sockets.
pub(super) struct Resume {
    /// `None`: a drop is the end.
    token: Option<String>,
    window: Duration,
    /// Largest message, bytes.
    max_message: usize,
    kept: VecDeque<Message>,
    kept_bytes: usize,
    /// Number of the first that is kept, or of the next that comes.
    first: u64,
    /// Number of the last that was written to the present socket, or to the one that was lost.
    written: u64,
    received: u64,
    ack_at: Option<Instant>,
    link: Link,
    /// Tries since a connection was steady.
    tries: u32,
    /// Closes by the server in a row, each soon after the connection was back.
    closes: u32,
    /// There is a credential that was not connected with yet.
    renewed: bool,
    hung_up: bool,
}

impl fmt::Debug for Resume {
    /// Neither the token nor what was said.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resume")
            .field("resumable", &self.token.is_some())
            .field("sent", &self.sent())
            .field("written", &self.written)
            .field("kept", &self.kept.len())
            .field("received", &self.received)
            .field("link", &self.link)
            .finish_non_exhaustive()
    }
}

impl Resume {
    /// A call that is ready. Without a token, or a window to come back in, nothing is kept longer than until it is written.
    pub(super) fn new(now: Instant, token: Option<String>, window: Duration, max_message: usize) -> Self {
        Self {
            token: token.filter(|_| !window.is_zero()),
            window,
            max_message,
            kept: VecDeque::new(),
            kept_bytes: 0,
            first: 1,
            written: 0,
            received: 0,
            ack_at: None,
            link: Link::Up { since: now, heard: now },
            tries: 0,
            closes: 0,
            renewed: false,
            hung_up: false,
        }
    }

    /// Counts and keeps a message of ours.
    ///
    /// # Errors
    /// Where it is larger than the server takes, or where the bound is full of messages that were never written. Written
    /// ones are forgotten instead: they may have arrived, and a resume that needs them says so.
    pub(super) fn push(&mut self, message: Message) -> Result<(), SendError> {
        if message.len() > self.max_message {
            return Err(SendError::TooLarge { bytes: message.len(), limit: self.max_message });
        }
        while self.kept_bytes + message.len() + OVERHEAD > KEEP {
            if self.first > self.written {
                return Err(SendError::Backlog);
            }
            self.forget();
        }
        self.kept_bytes += message.len() + OVERHEAD;
        self.kept.push_back(message);
        Ok(())
    }

    /// The next to be written to the socket.
    pub(super) fn unwritten(&self) -> Option<&Message> {
        let ahead = (self.written + 1).checked_sub(self.first)?;
        self.kept.get(usize::try_from(ahead).ok()?)
    }

    /// It was written.
    pub(super) fn wrote(&mut self) {
        self.written += 1;
        if self.token.is_none() {
            self.forget();
        }
    }

    /// Something came, if only a ping.
    pub(super) fn heard(&mut self, at: Instant) {
        if let Link::Up { heard, .. } = &mut self.link {
            *heard = at;
        }
    }

    /// A text or binary message came, which was neither `ready` nor `resumed`.
    pub(super) fn received(&mut self, now: Instant) {
        self.received += 1;
        if self.token.is_some() {
            self.ack_at.get_or_insert(now + ACK_AFTER);
        }
    }

    /// `got` of the `ack` that is due.
    pub(super) fn ack(&mut self, now: Instant) -> Option<u64> {
        let due = matches!(self.link, Link::Up { .. }) && self.ack_at.is_some_and(|at| now >= at);
        due.then(|| {
            self.ack_at = None;
            self.received
        })
    }

    /// The server has so many of ours.
    pub(super) fn acked(&mut self, got: u64) {
        let got = got.min(self.written);
        while self.first <= got {
            self.forget();
        }
    }

    /// There is another credential to come back with.
    pub(super) fn renew(&mut self) {
        self.renewed = true;
    }

    /// The call shall end: nothing is tried any more.
    pub(super) fn hang_up(&mut self) {
        self.hung_up = true;
    }

    /// When to ask [`Self::ack`] and [`Self::due`].
    pub(super) fn deadline(&self) -> Instant {
        match &self.link {
            Link::Up { heard, .. } => self.ack_at.map_or(*heard + SILENT, |at| at.min(*heard + SILENT)),
            Link::Down { since, .. } if self.hung_up => *since,
            Link::Down { since, try_at, .. } => {
                let end = *since + self.window;
                try_at.map_or(end, |at| at.min(end))
            }
        }
    }

    /// What is due by now, but for an `ack`. Read the socket before: what waits there is a sign of life.
    pub(super) fn due(&mut self, now: Instant) -> Option<Due> {
        match &mut self.link {
            Link::Up { heard, .. } => (now >= *heard + SILENT).then_some(Due::Silent),
            Link::Down { .. } if self.hung_up => {
                let reason = "hung up while the connection was lost".to_owned();
                Some(Due::Over(CallEnd { code: 1000, reason, error: None, not_resumed: None }))
            }
            Link::Down { since, lost, failure, .. } if now >= *since + self.window => {
                let last = failure.as_ref().map_or_else(|| "no answer".to_owned(), Clone::clone);
                let why = format!("it was tried for {} s, at last: {last}", self.window.as_secs());
                Some(Due::Over(CallEnd { not_resumed: Some(why), ..lost.clone() }))
            }
            Link::Down { try_at, .. } if try_at.is_some_and(|at| now >= at) => {
                *try_at = None;
                self.renewed = false;
                self.token.clone().map(|token| Due::Dial { token, got: self.received })
            }
            Link::Down { .. } => None,
        }
    }

    /// The socket is gone, or closed, or as good as gone. `Ok`: it will be tried to come back.
    ///
    /// # Errors
    /// The call's end, where there is no coming back.
    pub(super) fn dropped(&mut self, now: Instant, end: CallEnd, chance: f64) -> Result<(), Box<CallEnd>> {
        let Link::Up { since, .. } = self.link else { return Ok(()) };
        let again = Again::after_end(&end, self.renewed);
        if self.token.is_none() || self.hung_up || again == Again::Never {
            return Err(Box::new(end));
        }
        let by_server = end.code != 1006;
        if now >= since + if by_server { STEADY_SERVER } else { STEADY } {
            self.tries = 0;
            self.closes = 0;
        } else if by_server {
            self.closes += 1;
        }
        if self.closes > MAX_CLOSES {
            let why = format!("the server has closed it {} times in a row as soon as it was back", self.closes);
            return Err(Box::new(CallEnd { not_resumed: Some(why), ..end }));
        }
        let asked = end.retry_after();
        self.link = Link::Down { since: now, lost: end, try_at: None, failure: None };
        self.plan(now, again, asked, chance)
    }

    /// A try came to nothing. `Ok`: there will be another.
    ///
    /// # Errors
    /// The call's end, where another would come to the same.
    pub(super) fn failed(&mut self, now: Instant, error: &ConnectError, chance: f64) -> Result<(), Box<CallEnd>> {
        let renewed = self.renewed;
        let Link::Down { lost, failure, .. } = &mut self.link else { return Ok(()) };
        let not_resumed = |why: String| Box::new(CallEnd { not_resumed: Some(why), ..lost.clone() });
        let (again, asked) = match error {
            ConnectError::Tcp { .. }
            | ConnectError::Tls { .. }
            | ConnectError::Upgrade(_)
            | ConnectError::Timeout { .. } => (Again::Later, None),
            ConnectError::Refused(refusal) => match refusal.status {
                401 if renewed => (Again::AtOnce, None),
                429 | 500 | 502..=504 => (Again::Later, refusal.retry_after()),
                _ => return Err(not_resumed(in_words(error))),
            },
            ConnectError::Ended(end) => match Again::after_end(end, renewed) {
                Again::Never => return Err(refused(end)),
                Again::AtOnce if end.code == 1006 => (Again::Later, None),
                again => (again, end.retry_after()),
            },
            ConnectError::Url(_)
            | ConnectError::Token
            | ConnectError::NotWebSocket(_)
            | ConnectError::NotReady { .. } => return Err(not_resumed(in_words(error))),
        };
        *failure = Some(in_words(error));
        self.plan(now, again, asked, chance)
    }

    /// `resumed` came. How long the call was away; everything behind `got` is unwritten again.
    ///
    /// # Errors
    /// The call's end, where the two accounts do not fit: what would be lost must not be lost in silence.
    pub(super) fn resumed(&mut self, now: Instant, got: u64, token: Option<String>) -> Result<Duration, Box<CallEnd>> {
        let (since, lost) = match &self.link {
            Link::Down { since, lost, .. } => (*since, lost),
            Link::Up { .. } => return Ok(Duration::ZERO),
        };
        let sent = self.sent();
        let why = if got > sent {
            Some(format!("the server says that it has {got} messages, and {sent} were sent"))
        } else if got + 1 < self.first {
            let to = self.first - 1;
            Some(format!("the server lacks the messages {} to {to}, which are no longer kept", got + 1))
        } else {
            None
        };
        if why.is_some() {
            return Err(Box::new(CallEnd { not_resumed: why, ..lost.clone() }));
        }
        self.written = got;
        self.acked(got);
        self.token = token;
        self.link = Link::Up { since: now, heard: now };
        Ok(now - since)
    }

    /// Messages of ours so far.
    fn sent(&self) -> u64 {
        self.first + u64::try_from(self.kept.len()).unwrap_or(u64::MAX) - 1
    }

    /// Drops the oldest.
    fn forget(&mut self) {
        if let Some(message) = self.kept.pop_front() {
            self.kept_bytes = self.kept_bytes.saturating_sub(message.len() + OVERHEAD);
        }
        self.first += 1;
    }

    /// Sets the moment of the next try.
    fn plan(&mut self, now: Instant, again: Again, asked: Option<Duration>, chance: f64) -> Result<(), Box<CallEnd>> {
        let (first, longest) = BACKOFF;
        let own = match again {
            Again::AtOnce if self.tries == 0 => Duration::ZERO,
            Again::Soon if self.tries == 0 => first.mul_f64(chance),
            _ => {
                self.tries = self.tries.max(1);
                let backoff = first.saturating_mul(1 << (self.tries - 1).min(8)).min(longest);
                // Half fixed, half chance: the clients of a server that died do not come back in one moment.
                backoff.mul_f64(0.5 + 0.5 * chance)
            }
        };
        self.tries = self.tries.saturating_add(1);
        let wait = asked.unwrap_or_default().max(own);
        let Link::Down { since, lost, try_at, failure } = &mut self.link else { return Ok(()) };
        if now + wait >= *since + self.window {
            let last = failure.as_ref().map(|failure| format!(": {failure}")).unwrap_or_default();
            let (wait, window) = (wait.as_secs_f32(), self.window.as_secs());
            let why = format!("the next try would be in {wait:.1} s, and the call is kept for {window} s in all{last}");
            return Err(Box::new(CallEnd { not_resumed: Some(why), ..lost.clone() }));
        }
        *try_at = Some(now + wait);
        Ok(())
    }
}

/// An end that a try came to. Some servers give no reason for 4410.
fn refused(end: &CallEnd) -> Box<CallEnd> {
    let mut end = Box::new(end.clone());
    if end.code == 4410 && end.error.is_none() && end.reason.is_empty() {
        "the server no longer has this call".clone_into(&mut end.reason);
    }
    end
}

/// An error and what is behind it.
fn in_words(error: &ConnectError) -> String {
    let source = std::error::Error::source(error).map(|source| format!(": {source}")).unwrap_or_default();
    format!("{error}{source}")
}

#[cfg(test)]
mod tests;
