//! What a session wants its socket to do, in order, each at its time.
use std::{collections::VecDeque, time::Duration};

/// What the socket is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Send a text frame.
    Send(String),
    /// Say goodbye with a close frame; nothing comes after it.
    Close {
        /// Close code.
        code: u16,
        /// Reason.
        reason: String,
    },
    /// End the TCP connection without a close frame; nothing comes after it.
    Die {
        /// The frame to be cut in the middle.
        partial: Option<String>,
        /// By a reset rather than an orderly end.
        reset: bool,
    },
    /// Stop reading.
    StallReads {
        /// Until then; `None`: for ever.
        until: Option<Duration>,
    },
    /// Read no faster than this.
    SlowReads {
        /// Bytes of message in a second.
        bytes_per_s: u64,
        /// Until then; `None`: for ever.
        until: Option<Duration>,
    },
}

impl Output {
    fn len(&self) -> usize {
        match self {
            Self::Send(text) => text.len(),
            _ => 0,
        }
    }
}

/// The queue in front of the socket. Keeps the order, whatever the delays.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    queue: VecDeque<(Duration, Output)>,
    /// What concerns reading does not wait for what is to be written.
    reading: VecDeque<Output>,
    /// What is queued from now on waits until then.
    held_until: Duration,
    bytes: usize,
}

impl Outbox {
    /// Queues something for `at`, or for the time of what is queued before it if that is later.
    pub(super) fn push(&mut self, at: Duration, output: Output) {
        if matches!(output, Output::StallReads { .. } | Output::SlowReads { .. }) {
            self.reading.push_back(output);
            return;
        }
        let at = at.max(self.held_until).max(self.queue.back().map_or(at, |(before, _)| *before));
        self.bytes += output.len();
        self.queue.push_back((at, output));
    }

    /// Lets nothing more out until then; what was queued before goes its way.
    pub(super) fn hold(&mut self, until: Duration) {
        self.held_until = self.held_until.max(until);
    }

    /// The next output whose time has come.
    pub(super) fn pop(&mut self, now: Duration) -> Option<Output> {
        if let Some(output) = self.reading.pop_front() {
            return Some(output);
        }
        if self.next_at()? > now {
            return None;
        }
        let (_, output) = self.queue.pop_front()?;
        self.bytes -= output.len();
        Some(output)
    }

    /// When there will be something.
    pub(super) fn next_at(&self) -> Option<Duration> {
        self.queue.front().map(|(at, _)| *at)
    }

    /// Forgets what is not due yet: it will never be sent.
    pub(super) fn drop_late(&mut self, now: Duration) {
        self.held_until = Duration::ZERO;
        while self.queue.back().is_some_and(|(at, _)| *at > now) {
            self.bytes -= self.queue.pop_back().map_or(0, |(_, output)| output.len());
        }
    }

    /// Bytes that wait.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn text(text: &str) -> Output {
        Output::Send(text.into())
    }

    #[test]
    fn delays_never_change_the_order() {
        let mut out = Outbox::default();
        out.push(ms(50), text("late"));
        out.push(ms(10), text("early"));
        assert_eq!(out.next_at(), Some(ms(50)));
        assert_eq!(out.pop(ms(49)), None);
        assert_eq!(out.bytes(), 9);
        assert_eq!(
            [out.pop(ms(50)), out.pop(ms(50)), out.pop(ms(50))],
            [Some(text("late")), Some(text("early")), None]
        );
        assert_eq!(out.bytes(), 0);
    }

    #[test]
    fn what_is_held_waits_but_an_end_does_not() {
        let mut out = Outbox::default();
        out.push(ms(0), text("before"));
        out.hold(ms(100));
        out.push(ms(1), text("after"));
        assert_eq!(out.pop(ms(1)), Some(text("before")), "what was said before is out");
        assert_eq!((out.pop(ms(99)), out.next_at()), (None, Some(ms(100))));
        out.push(ms(5), Output::StallReads { until: None });
        assert!(matches!(out.pop(ms(5)), Some(Output::StallReads { .. })), "reading is another matter");
        out.drop_late(ms(50));
        assert_eq!(out.bytes(), 0);
        out.push(ms(50), Output::Die { partial: None, reset: false });
        assert!(matches!(out.pop(ms(50)), Some(Output::Die { .. })));
    }
}
