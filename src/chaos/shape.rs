//! How bytes leave that have come through: how fast, in which pieces, and whether at all.
//!
//! Pure: `now` counts from the begin of the connection, and the queue in front of it is [`super::lane`]'s.
use std::time::Duration;

use super::script::Kind;
use crate::scripted::Dice;

/// What a slow link may catch up with when it was late.
const CREDIT: Duration = Duration::from_millis(100);
/// A slow link writes so often in a second.
const WRITES_PER_S: u64 = 50;

/// The faults at work on the way out of one direction.
#[derive(Debug, Default)]
pub(super) struct Shape {
    rate: Option<Lasting<Rate>>,
    drip: Option<Lasting<Drip>>,
    slice: Option<Lasting<Slice>>,
    glue: Option<Lasting<Glue>>,
    /// Nothing passes until then.
    blackhole: Duration,
    /// Nothing passes until somebody says so.
    cut: bool,
    /// Bytes that have left.
    passed: u64,
}

/// A fault that may come to an end.
#[derive(Debug)]
pub(super) struct Lasting<T> {
    what: T,
    until: Duration,
}

impl<T> Lasting<T> {
    pub(super) fn new(what: T, now: Duration, for_ms: Option<u64>) -> Option<Self> {
        Some(Self { what, until: until(now, for_ms) })
    }

    /// What is still at work.
    pub(super) fn on(this: &mut Option<Self>, now: Duration) -> Option<&mut T> {
        this.as_mut().filter(|lasting| now < lasting.until).map(|lasting| &mut lasting.what)
    }

    /// Whether it is still at work.
    pub(super) fn is_on(this: Option<&Self>, now: Duration) -> bool {
        this.is_some_and(|lasting| now < lasting.until)
    }

    /// The moment that it waits for, at the latest its own end.
    fn gate(this: Option<&Self>, at: impl Fn(&T) -> Duration) -> Duration {
        this.map_or(Duration::ZERO, |lasting| at(&lasting.what).min(lasting.until))
    }
}

fn until(now: Duration, for_ms: Option<u64>) -> Duration {
    for_ms.map_or(Duration::MAX, |ms| now + Duration::from_millis(ms))
}

#[derive(Debug)]
struct Rate {
    bytes_per_s: u64,
    next: Duration,
}

#[derive(Debug)]
struct Drip {
    bytes: usize,
    every: Duration,
    left: usize,
    next: Duration,
}

#[derive(Debug)]
struct Slice {
    min: usize,
    max: usize,
    dice: Dice,
    /// Where in the stream the next cut is.
    cut: u64,
}

#[derive(Debug)]
struct Glue {
    bytes: usize,
    wait: Duration,
    /// What is left of the piece that is being written.
    left: usize,
}

/// What waits to leave.
#[derive(Debug, Clone, Copy)]
pub(super) struct Waiting {
    /// When the first byte has come through.
    pub(super) due: Duration,
    /// Bytes, up to the next thing that is no byte.
    pub(super) bytes: usize,
    /// Whether something that is no byte comes after them.
    pub(super) ends: bool,
}

impl Shape {
    /// Puts a fault to work.
    pub(super) fn start(&mut self, now: Duration, kind: Kind, mut dice: Dice) {
        match kind {
            Kind::Rate { bytes_per_s, for_ms } => {
                self.rate = Lasting::new(Rate { bytes_per_s, next: now }, now, for_ms);
            }
            Kind::Drip { bytes, every_ms, for_ms } => {
                let every = Duration::from_millis(every_ms);
                self.drip = Lasting::new(Drip { bytes, every, left: bytes, next: now }, now, for_ms);
            }
            Kind::Slice { min, max, for_ms } => {
                let cut = self.passed + dice.between(min, max) as u64;
                self.slice = Lasting::new(Slice { min, max, dice, cut }, now, for_ms);
            }
            Kind::Glue { bytes, ms, for_ms } => {
                let wait = Duration::from_millis(ms);
                self.glue = Lasting::new(Glue { bytes, wait, left: 0 }, now, for_ms);
            }
            Kind::Blackhole { for_ms } => self.blackhole = until(now, for_ms),
            _ => {} // the others are not about how bytes leave
        }
    }

    /// All faults come to an end, but for a cut.
    pub(super) fn clear(&mut self) {
        *self = Self { cut: self.cut, passed: self.passed, ..Self::default() };
    }

    /// Nothing passes from now on; whether this is news.
    pub(super) fn cut(&mut self) -> bool {
        !std::mem::replace(&mut self.cut, true)
    }

    /// Everything passes again.
    pub(super) fn heal(&mut self) {
        if std::mem::take(&mut self.cut) {
            self.blackhole = Duration::ZERO;
        }
    }

    /// Until when nothing passes; zero: now it does.
    pub(super) fn held(&self) -> Duration {
        if self.cut { Duration::MAX } else { self.blackhole }
    }

    /// Whether bytes are being gathered.
    pub(super) fn gathers(&self, now: Duration) -> bool {
        self.glue.as_ref().is_some_and(|glue| now < glue.until && glue.what.left == 0)
    }

    /// So many bytes were gathered, to leave as one.
    pub(super) fn gathered(&mut self, now: Duration, bytes: usize) {
        if let Some(glue) = Lasting::on(&mut self.glue, now) {
            glue.left = bytes;
        }
    }

    /// When the first bytes of what waits may leave.
    pub(super) fn gate(&self, waiting: Waiting) -> Duration {
        let rate = Lasting::gate(self.rate.as_ref(), |rate| rate.next);
        let drip = Lasting::gate(self.drip.as_ref(), |drip| drip.next);
        let glue = Lasting::gate(self.glue.as_ref(), |glue| {
            let ready = glue.left > 0 || waiting.ends || waiting.bytes >= glue.bytes;
            if ready { Duration::ZERO } else { waiting.due + glue.wait }
        });
        waiting.due.max(rate).max(drip).max(glue).max(self.held())
    }

    /// How many bytes may leave in one piece.
    pub(super) fn most(&mut self, now: Duration) -> usize {
        let mut most = usize::MAX;
        if let Some(rate) = Lasting::on(&mut self.rate, now) {
            most = most.min(usize::try_from(rate.bytes_per_s / WRITES_PER_S).unwrap_or(usize::MAX).max(1));
        }
        if let Some(drip) = Lasting::on(&mut self.drip, now) {
            most = most.min(drip.left);
        }
        if let Some(slice) = Lasting::on(&mut self.slice, now) {
            most = most.min(usize::try_from(slice.cut.saturating_sub(self.passed)).unwrap_or(usize::MAX).max(1));
        }
        most
    }

    /// So many bytes have left.
    pub(super) fn wrote(&mut self, now: Duration, bytes: usize) {
        self.passed += bytes as u64;
        if let Some(rate) = Lasting::on(&mut self.rate, now) {
            let takes = Duration::from_secs_f64(bytes as f64 / rate.bytes_per_s as f64);
            rate.next = rate.next.max(now.saturating_sub(CREDIT)) + takes;
        }
        if let Some(drip) = Lasting::on(&mut self.drip, now) {
            drip.left = drip.left.saturating_sub(bytes);
            if drip.left == 0 {
                (drip.left, drip.next) = (drip.bytes, now + drip.every);
            }
        }
        if let Some(slice) = Lasting::on(&mut self.slice, now) {
            while slice.cut <= self.passed {
                slice.cut += slice.dice.between(slice.min, slice.max) as u64;
            }
        }
        if let Some(glue) = Lasting::on(&mut self.glue, now) {
            glue.left = glue.left.saturating_sub(bytes);
        }
    }
}
