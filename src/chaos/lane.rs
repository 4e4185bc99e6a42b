//! One direction of one connection: takes bytes, and says what is to be done with them and when.
//!
//! Pure: owns no socket, task or clock; `now` counts from the begin of the connection. Faults that change bytes or make them
//! late work on the way in; those that change how bytes leave, and ends of the connection, wait in the queue behind the
//! bytes before them.
use std::{collections::VecDeque, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};

use super::{
    frames::Frames,
    script::{BUFFER, Direction, Kind, When},
    shape::{Lasting, Shape, Waiting},
    stats::Book,
};
use crate::scripted::{Delay, Dice};

/// What is kept of a direction with a delay, bytes: what would be on the way in a long cable.
const IN_FLIGHT: usize = 4 << 20;
/// So many bytes have the same jitter, as if they were a packet.
const PACKET: u64 = 256;

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    /// Write these, or the first of them, and say how many: [`Lane::wrote`].
    Write(Bytes),
    /// Tell the receiver that nothing more comes.
    Shut,
    /// End the connection for both sides, well.
    Close,
    /// End the connection for both sides by a reset.
    Reset,
}

/// One direction.
#[derive(Debug)]
pub(super) struct Lane {
    book: Arc<Book>,
    connection: u64,
    direction: Direction,
    /// Faults that wait for their place in the stream.
    places: Vec<Place>,
    /// Faults that wait for their time.
    timers: Vec<(Duration, Due)>,
    frames: Frames,
    /// Bytes that have come.
    taken: u64,
    queue: VecDeque<Item>,
    queued: usize,
    /// Nothing comes through before what came before it.
    last_due: Duration,
    lag: Option<Lasting<Lag>>,
    /// Bits of the next byte to turn round.
    flip_next: u8,
    flips: Option<Lasting<Flips>>,
    shape: Shape,
    ending: Option<Action>,
    /// The sender has nothing more.
    ended: bool,
    /// The receiver was told that nothing more comes.
    shut: bool,
    /// Makes every firing's dice its own.
    fired: u64,
}

#[derive(Debug)]
struct Place {
    fault: usize,
    dice: Dice,
    when: When,
}

/// A fault that is due, and where its dice are.
#[derive(Debug, Clone, Copy)]
struct Due {
    fault: usize,
    kind: Kind,
}

#[derive(Debug)]
enum Item {
    Bytes(Duration, Bytes),
    Fault(Duration, Due),
    /// The end of the stream.
    End(Duration),
    /// The sender is gone without one.
    Gone(Duration),
}

#[derive(Debug)]
struct Lag {
    delay: Delay,
    dice: Dice,
    /// The packet whose lag was thrown, from 1, and the lag.
    packet: u64,
    is: Duration,
}

#[derive(Debug)]
struct Flips {
    bit: Option<u8>,
    per_byte: f64,
    dice: Dice,
}

impl Lane {
    pub(super) fn new(book: Arc<Book>, connection: u64, direction: Direction) -> Self {
        let mut lane = Self {
            book,
            connection,
            direction,
            places: Vec::new(),
            timers: Vec::new(),
            frames: Frames::new(),
            taken: 0,
            queue: VecDeque::new(),
            queued: 0,
            last_due: Duration::ZERO,
            lag: None,
            flip_next: 0,
            flips: None,
            shape: Shape::default(),
            ending: None,
            ended: false,
            shut: false,
            fired: 0,
        };
        lane.set_up(Duration::ZERO);
        lane
    }

    /// Takes another script: what is at work ends. Moments that have passed come at once, places never.
    pub(super) fn adopt(&mut self, now: Duration, book: &Arc<Book>) {
        if Arc::ptr_eq(&self.book, book) {
            return;
        }
        self.book = book.clone();
        self.timers.clear();
        self.queue.retain(|item| !matches!(item, Item::Fault(..)));
        (self.lag, self.flips, self.flip_next) = (None, None, 0);
        self.shape.clear();
        self.set_up(now);
    }

    /// Lets nothing pass, or everything again.
    pub(super) fn cut(&mut self, cut: bool) {
        if !cut {
            self.shape.heal();
        } else if self.shape.cut() {
            self.book.counters.fault(Kind::Blackhole { for_ms: None }.name());
        }
    }

    fn set_up(&mut self, now: Duration) {
        let book = self.book.clone();
        self.places.clear();
        for (index, fault) in book.script.list.iter().enumerate() {
            let here = fault.connection.is_none_or(|n| n == self.connection)
                && (fault.direction == Direction::Both || fault.direction == self.direction);
            if fault.kind.is_at_connect() || !here {
                continue;
            }
            let mut dice = book.dice(index, self.connection, self.stream(0));
            match fault.when {
                When::At(ms) => {
                    if dice.chance(fault.chance) && book.reserve(index) {
                        let at = Duration::from_millis(ms) + fault.after();
                        self.timers.push((at, Due { fault: index, kind: fault.kind }));
                    }
                }
                when => self.places.push(Place { fault: index, dice, when }),
            }
        }
        // The first byte must find what is at work from the begin.
        self.tick(now);
        let taken = self.taken;
        self.at_place(now, |when| when == When::Bytes(taken));
    }

    /// Tells apart what is thrown in both directions, and by each firing.
    fn stream(&self, firing: u64) -> u64 {
        firing << 1 | u64::from(self.direction == Direction::ToClient)
    }

    /// Takes what the sender has sent. It is cut only where a fault is: pieces stay as they came.
    pub(super) fn take(&mut self, now: Duration, mut bytes: Bytes) {
        let mut walked = 0;
        while let Some(ahead) = bytes.get(walked..).filter(|ahead| !ahead.is_empty()) {
            let at = self.taken + walked as u64;
            let next = self.places.iter().filter_map(|place| match place.when {
                When::Bytes(n) => n.checked_sub(at).filter(|left| *left > 0),
                _ => None,
            });
            let stop = next.min().and_then(|left| usize::try_from(left).ok()).unwrap_or(usize::MAX);
            let (step, frame) = self.frames.walk(ahead.get(..stop).unwrap_or(ahead));
            walked += step;
            let here = |when: When| match (when, frame) {
                (When::Bytes(n), _) => step > 0 && n == at + step as u64,
                (When::Frame { nth, part }, Some((number, reached))) => part == reached && nth.is(number),
                _ => false,
            };
            if self.places.iter().any(|place| here(place.when)) {
                self.enter(now, bytes.split_to(walked));
                walked = 0;
                self.at_place(now, here);
            }
        }
        self.enter(now, bytes);
    }

    /// The sender has nothing more.
    pub(super) fn end(&mut self) {
        self.ended = true;
        self.queue.push_back(Item::End(self.last_due));
    }

    /// The sender is gone.
    pub(super) fn gone(&mut self) {
        self.ended = true;
        self.queue.push_back(Item::Gone(self.last_due));
    }

    /// How many bytes may be taken.
    pub(super) fn room(&self, now: Duration) -> usize {
        if self.ended {
            return 0;
        }
        let most = if Lasting::is_on(self.lag.as_ref(), now) { IN_FLIGHT } else { BUFFER };
        most.saturating_sub(self.queued)
    }

    /// What to do now.
    pub(super) fn poll(&mut self, now: Duration) -> Option<Action> {
        self.tick(now);
        loop {
            if let Some(ending) = self.ending.take() {
                return Some(ending);
            }
            if now < self.gate(now)? {
                return None;
            }
            if self.shape.gathers(now) {
                self.gather(now);
            }
            match self.queue.front()? {
                Item::Bytes(_, bytes) => {
                    let most = self.shape.most(now).min(bytes.len());
                    return Some(Action::Write(bytes.slice(..most)));
                }
                Item::Gone(_) => return Some(Action::Reset),
                Item::Fault(_, due) => {
                    let due = *due;
                    self.queue.pop_front();
                    self.apply(now, due);
                }
                Item::End(_) => {
                    self.queue.pop_front();
                    if !std::mem::replace(&mut self.shut, true) {
                        return Some(Action::Shut);
                    }
                }
            }
        }
    }

    /// So many bytes of the last [`Action::Write`] were written.
    pub(super) fn wrote(&mut self, now: Duration, bytes: usize) {
        if let Some(Item::Bytes(_, front)) = self.queue.front_mut() {
            let _ = front.split_to(bytes.min(front.len()));
            if front.is_empty() {
                self.queue.pop_front();
            }
        }
        self.queued -= bytes;
        self.shape.wrote(now, bytes);
    }

    /// When to ask again, if nothing else happens; always after `now`.
    pub(super) fn deadline(&self, now: Duration) -> Option<Duration> {
        let gate = self.gate(now);
        // What comes through later may be what the gathered bytes wait for.
        let through = self.queue.iter().map(Item::due).find(|due| *due > now);
        let timers = self.timers.iter().map(|(at, _)| *at);
        timers.chain(gate).chain(through).filter(|at| *at > now && *at < Duration::MAX).min()
    }

    /// Whether everything has passed, the end too.
    pub(super) fn finished(&self) -> bool {
        self.ended && self.queue.is_empty() && self.shut
    }

    /// Whether nothing passes.
    pub(super) fn held(&mut self, now: Duration) -> bool {
        self.tick(now);
        now < self.shape.held()
    }

    /// Whether the whole connection is about to end.
    pub(super) fn ending(&self) -> Option<&Action> {
        self.ending.as_ref().filter(|ending| **ending != Action::Shut)
    }

    /// Bytes pass in: some are changed, and all get the time at which they have come through.
    fn enter(&mut self, now: Duration, mut piece: Bytes) {
        let from = self.taken;
        self.taken += piece.len() as u64;
        if self.shut || piece.is_empty() {
            return; // nobody is there to read them
        }
        piece = self.flip(now, piece);
        self.queued += piece.len();
        let Some(lag) = Lasting::on(&mut self.lag, now) else {
            self.last_due = self.last_due.max(now);
            self.queue.push_back(Item::Bytes(self.last_due, piece));
            return;
        };
        let mut at = from;
        while !piece.is_empty() {
            let packet = if lag.delay.jitter_ms == 0 { piece.len() as u64 } else { PACKET - at % PACKET };
            let len = usize::try_from(packet).unwrap_or(usize::MAX).min(piece.len());
            self.last_due = self.last_due.max(now + lag.at(at));
            self.queue.push_back(Item::Bytes(self.last_due, piece.split_to(len)));
            at += len as u64;
        }
    }

    fn flip(&mut self, now: Duration, piece: Bytes) -> Bytes {
        let flips = Lasting::on(&mut self.flips, now);
        if self.flip_next == 0 && flips.is_none() {
            return piece;
        }
        let mut out = BytesMut::from(piece);
        if let Some(first) = out.first_mut() {
            *first ^= std::mem::take(&mut self.flip_next);
        }
        if let Some(Flips { bit, per_byte, dice }) = flips {
            for byte in out.iter_mut() {
                if dice.chance(*per_byte) {
                    *byte ^= one_bit(*bit, dice);
                    self.book.counters.fault("flip");
                }
            }
        }
        out.freeze()
    }

    /// Lets the faults of a place in the stream happen.
    fn at_place(&mut self, now: Duration, here: impl Fn(When) -> bool) {
        let mut due = Vec::new();
        for place in self.places.iter_mut().filter(|place| here(place.when)) {
            let Some(fault) = self.book.script.list.get(place.fault) else { continue };
            if place.dice.chance(fault.chance) && self.book.reserve(place.fault) {
                due.push((fault.after(), Due { fault: place.fault, kind: fault.kind }));
            }
        }
        for (after, due) in due {
            match due.kind {
                _ if !after.is_zero() => self.timers.push((now + after, due)),
                Kind::Delay { .. } | Kind::Flip { .. } => self.apply(now, due),
                _ => self.queue.push_back(Item::Fault(self.last_due, due)),
            }
        }
    }

    /// Lets the faults happen whose time has come.
    fn tick(&mut self, now: Duration) {
        while let Some(index) = self.timers.iter().position(|(at, _)| *at <= now) {
            let (_, due) = self.timers.remove(index);
            self.apply(now, due);
        }
    }

    fn apply(&mut self, now: Duration, due: Due) {
        self.fired += 1;
        let mut dice = self.book.dice(due.fault, self.connection, self.stream(self.fired));
        // Chances per byte are counted by the bit.
        if !matches!(due.kind, Kind::Flip { per_byte: Some(_), .. }) {
            self.book.counters.fault(due.kind.name());
        }
        match due.kind {
            Kind::Delay { delay, for_ms } => {
                let lag = Lag { delay, dice, packet: self.taken / PACKET, is: Duration::ZERO };
                self.lag = Lasting::new(lag, now, for_ms);
            }
            Kind::Flip { bit, per_byte: None, .. } => self.flip_next ^= one_bit(bit, &mut dice),
            Kind::Flip { bit, per_byte: Some(per_byte), for_ms } => {
                self.flips = Lasting::new(Flips { bit, per_byte, dice }, now, for_ms);
            }
            Kind::HalfClose => {
                self.queue.retain(|item| matches!(item, Item::End(_) | Item::Gone(_)));
                self.queued = 0;
                if !std::mem::replace(&mut self.shut, true) {
                    self.ending = Some(Action::Shut);
                }
            }
            Kind::Close => self.ending = Some(Action::Close),
            Kind::Reset => self.ending = Some(Action::Reset),
            kind => self.shape.start(now, kind, dice),
        }
    }

    /// When the first thing in the queue may leave.
    fn gate(&self, now: Duration) -> Option<Duration> {
        let front = self.queue.front()?;
        if !matches!(front, Item::Bytes(..)) {
            return Some(front.due().max(self.shape.held()));
        }
        if !self.shape.gathers(now) {
            return Some(self.shape.gate(Waiting { due: front.due(), bytes: 0, ends: false }));
        }
        let through = self.queue.iter().take_while(|item| matches!(item, Item::Bytes(due, _) if *due <= now));
        let (items, bytes) = through.fold((0, 0), |(items, bytes), item| (items + 1, bytes + item.len()));
        let ends = self.queue.get(items).is_some_and(|item| !matches!(item, Item::Bytes(..)));
        Some(self.shape.gate(Waiting { due: front.due(), bytes, ends }))
    }

    /// Makes one piece of all bytes that have come through.
    fn gather(&mut self, now: Duration) {
        let mut all = BytesMut::new();
        while let Some(Item::Bytes(due, bytes)) = self.queue.front() {
            if *due > now {
                break;
            }
            all.extend_from_slice(bytes);
            self.queue.pop_front();
        }
        if !all.is_empty() {
            self.shape.gathered(now, all.len());
            self.queue.push_front(Item::Bytes(now, all.freeze()));
        }
    }
}

impl Item {
    fn due(&self) -> Duration {
        match self {
            Self::Bytes(due, _) | Self::Fault(due, _) | Self::End(due) | Self::Gone(due) => *due,
        }
    }

    fn len(&self) -> usize {
        if let Self::Bytes(_, bytes) = self { bytes.len() } else { 0 }
    }
}

impl Lag {
    /// The lag of the byte at this place of the stream.
    fn at(&mut self, at: u64) -> Duration {
        while self.packet <= at / PACKET {
            self.packet += 1;
            self.is = self.dice.delay(self.delay);
        }
        self.is
    }
}

fn one_bit(bit: Option<u8>, dice: &mut Dice) -> u8 {
    1 << bit.map_or_else(|| dice.between(0, 7), usize::from)
}

#[cfg(test)]
mod tests;
