//! What is to be said on a socket, and what was said on it: a queue that urgent words overtake, and a journal that can say
//! it again on another socket.
//!
//! Messages get their number when a socket takes them (client-protocol.md, "Resume"). Owns no socket: [`super::ws::Socket`]
//! has one, and a call whose client is away keeps it for the next.
use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;
use tokio::time::Instant;

/// What was said is kept for so long ...
const KEPT_FOR: Duration = Duration::from_secs(60);
/// ... and up to so much, bytes.
const KEPT_BYTES: usize = 4 << 20;
/// What a message costs beside its payload, bytes: a million empty ones are not free.
const OVERHEAD: usize = 64;

/// What a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Text.
    Text,
    /// Binary: audio, which may be dropped while no socket has taken it.
    Binary,
    /// Audio in a text message: the same.
    Spoken,
    /// Binary, and no audio.
    Control,
    /// A ping.
    Ping,
}

impl Kind {
    /// It is audio.
    pub fn is_audio(self) -> bool {
        matches!(self, Self::Binary | Self::Spoken)
    }
}

/// How a message counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Count {
    /// It gets the next number when it is taken.
    Next,
    /// It has a number: it was said on an earlier socket.
    Again,
    /// It is not counted.
    Not,
}

/// A message that no socket has taken.
#[derive(Debug)]
pub struct Queued {
    /// What it is.
    pub kind: Kind,
    /// Its bytes.
    pub payload: Bytes,
    count: Count,
}

/// A message that was said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// Text or binary.
    pub binary: bool,
    /// Its bytes.
    pub payload: Bytes,
    at: Instant,
}

/// Numbered messages, the newest of them kept.
#[derive(Debug, Default)]
struct Journal {
    /// The number of the newest.
    said: u64,
    kept: VecDeque<Said>,
    bytes: usize,
}

impl Journal {
    fn note(&mut self, now: Instant, binary: bool, payload: Bytes) {
        self.said += 1;
        self.bytes += payload.len() + OVERHEAD;
        self.kept.push_back(Said { binary, payload, at: now });
        self.forget_old(now);
    }

    fn forget_old(&mut self, now: Instant) {
        while let Some(oldest) = self.kept.front()
            && (self.bytes > KEPT_BYTES || now.duration_since(oldest.at) > KEPT_FOR)
        {
            self.forget_one();
        }
    }

    fn forget_one(&mut self) {
        if let Some(said) = self.kept.pop_front() {
            self.bytes -= said.payload.len() + OVERHEAD;
        }
    }

    /// The number up to which everything is forgotten.
    fn forgotten(&self) -> u64 {
        self.said - self.kept.len() as u64
    }

    fn received(&mut self, got: u64) {
        while self.forgotten() < got.min(self.said) {
            self.forget_one();
        }
    }

    /// Everything behind message `got`; `None`: it is not all there, or was never said.
    fn since(&self, got: u64) -> Option<impl DoubleEndedIterator<Item = &Said>> {
        let skip = got.checked_sub(self.forgotten()).filter(|_| got <= self.said)?;
        Some(self.kept.iter().skip(usize::try_from(skip).ok()?))
    }
}

/// The queue and, where one can come back, the journal.
#[derive(Debug, Default)]
pub struct Outbox {
    queue: VecDeque<Queued>,
    bytes: usize,
    /// Audio messages in the queue.
    binaries: usize,
    journal: Option<Box<Journal>>,
}

impl Outbox {
    /// One that can say again what it said.
    pub fn with_journal() -> Self {
        Self { journal: Some(Box::default()), ..Self::default() }
    }

    /// What was said so far is `said`, the newest of it `kept`; nothing waits. For a call that another process had.
    pub fn restored(said: u64, kept: impl IntoIterator<Item = (bool, Bytes)>, now: Instant) -> Self {
        let kept: VecDeque<Said> =
            kept.into_iter().map(|(binary, payload)| Said { binary, payload, at: now }).collect();
        let bytes = kept.iter().map(|said| said.payload.len() + OVERHEAD).sum();
        Self { journal: Some(Box::new(Journal { said, kept, bytes })), ..Self::default() }
    }

    /// Payload bytes that no socket has taken yet.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Audio messages that no socket has taken yet.
    pub fn binaries(&self) -> usize {
        self.binaries
    }

    /// Nothing waits.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// The number of the newest message that was said.
    pub fn said(&self) -> u64 {
        self.journal.as_ref().map_or(0, |journal| journal.said)
    }

    /// What was said and is kept, the oldest first.
    pub fn kept(&self) -> impl Iterator<Item = &Said> {
        self.journal.iter().flat_map(|journal| &journal.kept)
    }

    /// What waits, the oldest first, but for pings and what is said again.
    pub fn waiting(&self) -> impl Iterator<Item = &Queued> {
        self.queue.iter().filter(|queued| queued.kind != Kind::Ping && queued.count == Count::Next)
    }

    fn push(&mut self, at: usize, kind: Kind, payload: Bytes, count: Count) {
        self.bytes += payload.len();
        self.binaries += usize::from(kind.is_audio());
        self.queue.insert(at, Queued { kind, payload, count });
    }

    /// Queues a text message behind everything queued before it.
    pub fn text(&mut self, text: Bytes) {
        self.push(self.queue.len(), Kind::Text, text, Count::Next);
    }

    /// Queues a text message that has no number, before everything that has none yet.
    pub fn uncounted(&mut self, text: Bytes) {
        let at = self.queue.iter().take_while(|queued| queued.count == Count::Not).count();
        self.push(at, Kind::Text, text, Count::Not);
    }

    /// Queues a text message before all audio that is queued, and behind the text before that. What has a number already
    /// keeps its place.
    pub fn urgent(&mut self, text: Bytes) {
        let audio = |queued: &Queued| queued.kind.is_audio() && queued.count == Count::Next;
        let at = self.queue.iter().position(audio).unwrap_or(self.queue.len());
        self.push(at, Kind::Text, text, Count::Next);
    }

    /// Queues a binary message.
    pub fn binary(&mut self, bytes: Bytes) {
        self.push(self.queue.len(), Kind::Binary, bytes, Count::Next);
    }

    /// Queues audio in a text message.
    pub fn spoken(&mut self, text: Bytes) {
        self.push(self.queue.len(), Kind::Spoken, text, Count::Next);
    }

    /// Queues a binary message that is no audio.
    pub fn control(&mut self, bytes: Bytes) {
        self.push(self.queue.len(), Kind::Control, bytes, Count::Next);
    }

    /// Queues a ping, before everything else.
    pub fn ping(&mut self) {
        self.push(0, Kind::Ping, Bytes::new(), Count::Not);
    }

    /// Forgets audio that no socket has taken yet, but for those that have a number.
    pub fn drop_binary(&mut self) {
        self.queue.retain(|queued| !queued.kind.is_audio() || queued.count != Count::Next);
        self.count();
    }

    /// What is being said again goes behind everything in another outbox, whose socket is about to be closed.
    pub fn say_again_on(&mut self, other: &mut Self) {
        while self.queue.front().is_some_and(|queued| queued.count != Count::Next) {
            if let Some(queued) = self.pop().filter(|queued| queued.count == Count::Again) {
                other.push(other.queue.len(), queued.kind, queued.payload, Count::Not);
            }
        }
    }

    /// Forgets everything that waits.
    pub fn clear(&mut self) {
        self.queue.clear();
        (self.bytes, self.binaries) = (0, 0);
    }

    /// The next message.
    pub fn pop(&mut self) -> Option<Queued> {
        let next = self.queue.pop_front()?;
        self.bytes -= next.payload.len();
        self.binaries -= usize::from(next.kind.is_audio());
        Some(next)
    }

    /// A socket has taken what [`Self::pop`] gave.
    pub fn taken(&mut self, now: Instant, kind: Kind, payload: &Bytes, counts: Counts) {
        if let (Some(journal), Count::Next, Kind::Text | Kind::Binary) = (&mut self.journal, counts.0, kind) {
            journal.note(now, kind == Kind::Binary, payload.clone());
        }
    }

    /// This text is said now, past the queue, on a socket that is about to be closed: it gets its number.
    pub fn said_last(&mut self, now: Instant, text: &Bytes) {
        self.taken(now, Kind::Text, text, Counts(Count::Next));
    }

    /// The other side has everything up to this number.
    pub fn received(&mut self, got: u64) {
        if let Some(journal) = &mut self.journal {
            journal.received(got);
        }
    }

    /// Whether everything behind message `got` can be said again.
    pub fn has_since(&self, got: u64) -> bool {
        self.journal.as_ref().is_some_and(|journal| journal.since(got).is_some())
    }

    /// The other side comes back and has everything up to number `got`: what it lacks goes first, in the order of the numbers.
    /// How many binary messages that are; `None`: it cannot be had any more, or `got` is none of our numbers.
    pub fn say_again(&mut self, got: u64) -> Option<usize> {
        let journal = self.journal.as_ref()?;
        let lacks: Vec<Said> = journal.since(got)?.cloned().collect();
        // Pings, greetings and what was to be said again on the socket before.
        self.queue.retain(|queued| queued.count == Count::Next && queued.kind != Kind::Ping);
        for said in lacks.iter().rev() {
            let kind = if said.binary { Kind::Binary } else { Kind::Text };
            self.queue.push_front(Queued { kind, payload: said.payload.clone(), count: Count::Again });
        }
        self.count();
        Some(lacks.iter().filter(|said| said.binary).count())
    }

    /// Gives memory back: of the queue, and what is older than it needs to be.
    pub fn shrink(&mut self, now: Instant) {
        self.queue.shrink_to_fit();
        if let Some(journal) = &mut self.journal {
            journal.forget_old(now);
            journal.kept.shrink_to_fit();
        }
    }

    fn count(&mut self) {
        self.bytes = self.queue.iter().map(|queued| queued.payload.len()).sum();
        self.binaries = self.queue.iter().filter(|queued| queued.kind.is_audio()).count();
    }
}

/// Whether a message that was taken counts.
#[derive(Debug, Clone, Copy)]
pub struct Counts(Count);

impl Queued {
    /// Whether it will count.
    pub fn counts(&self) -> Counts {
        Counts(self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A socket takes so many messages; what they were.
    fn take(outbox: &mut Outbox, most: usize) -> Vec<String> {
        let mut taken = Vec::new();
        while taken.len() < most
            && let Some(next) = outbox.pop()
        {
            let counts = next.counts();
            outbox.taken(Instant::now(), next.kind, &next.payload, counts);
            taken.push(String::from_utf8(next.payload.to_vec()).unwrap());
        }
        taken
    }

    fn bytes(text: &str) -> Bytes {
        Bytes::copy_from_slice(text.as_bytes())
    }

    #[tokio::test(start_paused = true)]
    async fn binary_messages_are_counted_wherever_they_wait() {
        let mut outbox = Outbox::with_journal();
        for text in ["a", "b", "c"] {
            outbox.binary(bytes(text));
            outbox.text(bytes(text));
        }
        assert_eq!(outbox.binaries(), 3);
        take(&mut outbox, 3);
        assert_eq!(outbox.binaries(), 1);
        outbox.say_again(0).unwrap();
        assert_eq!(outbox.binaries(), 3, "two again, and one that never went");
        outbox.drop_binary();
        assert_eq!(outbox.binaries(), 2, "those have their numbers");
        take(&mut outbox, 9);
        assert_eq!(outbox.binaries(), 0);
        outbox.binary(bytes("d"));
        outbox.clear();
        assert_eq!(outbox.binaries(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_missed_is_said_again_in_its_order_before_what_is_new() {
        let mut outbox = Outbox::with_journal();
        outbox.uncounted(bytes("ready"));
        for text in ["a", "b"] {
            outbox.text(bytes(text));
        }
        outbox.binary(bytes("audio"));
        outbox.text(bytes("c"));
        assert_eq!(take(&mut outbox, 4), ["ready", "a", "b", "audio"]);
        assert_eq!(outbox.said(), 3, "`ready` has no number");
        assert_eq!(outbox.say_again(1), Some(1), "one of them is audio");
        outbox.uncounted(bytes("resumed"));
        outbox.urgent(bytes("clear"));
        outbox.drop_binary();
        assert_eq!(take(&mut outbox, 2), ["resumed", "b"]);
        assert_eq!(outbox.say_again(1), Some(1), "dropped in the middle of it");
        assert_eq!(take(&mut outbox, 9), ["b", "audio", "c", "clear"]);
        assert_eq!(outbox.said(), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn a_last_word_comes_behind_what_is_being_said_again() {
        let mut outbox = Outbox::with_journal();
        for text in ["a", "b", "c"] {
            outbox.text(bytes(text));
        }
        take(&mut outbox, 2);
        outbox.say_again(0);
        outbox.uncounted(bytes("resumed"));
        let mut last = Outbox::default();
        outbox.say_again_on(&mut last);
        last.text(bytes("word"));
        outbox.said_last(Instant::now(), &bytes("word"));
        assert_eq!(take(&mut last, 9), ["a", "b", "word"], "whoever counts them has number 3");
        assert_eq!((outbox.said(), take(&mut outbox, 9)), (3, vec!["c".to_owned()]));
    }

    #[tokio::test(start_paused = true)]
    async fn urgent_words_overtake_audio_but_nothing_that_has_a_number() {
        let mut outbox = Outbox::with_journal();
        outbox.binary(bytes("1"));
        take(&mut outbox, 1);
        outbox.say_again(0);
        outbox.binary(bytes("2"));
        outbox.urgent(bytes("clear"));
        assert_eq!(take(&mut outbox, 9), ["1", "clear", "2"]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_acknowledged_old_or_too_much_is_forgotten() {
        let mut outbox = Outbox::with_journal();
        for n in 0..10 {
            outbox.text(bytes(&n.to_string()));
        }
        take(&mut outbox, 10);
        outbox.received(4);
        outbox.received(2);
        assert_eq!(outbox.say_again(3), None, "forgotten");
        assert_eq!(outbox.say_again(11), None, "never said");
        assert_eq!(outbox.say_again(4), Some(0));
        assert_eq!(take(&mut outbox, 9), ["4", "5", "6", "7", "8", "9"]);
        tokio::time::advance(KEPT_FOR + Duration::from_millis(1)).await;
        outbox.text(bytes("new"));
        take(&mut outbox, 1);
        assert_eq!(outbox.say_again(9), None);
        assert_eq!(outbox.say_again(10), Some(0));
        outbox.received(99);
        assert_eq!(outbox.say_again(11), Some(0), "a client that has more than there is has all of it");
        for _ in 0..5 {
            outbox.binary(Bytes::from(vec![0; 1 << 20]));
        }
        take(&mut outbox, 9);
        assert_eq!(outbox.kept().count(), 3, "4 MiB with what they cost beside");
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_journal_nothing_is_kept() {
        let mut outbox = Outbox::default();
        outbox.text(bytes("a"));
        take(&mut outbox, 1);
        assert_eq!((outbox.say_again(0), outbox.kept().count()), (None, 0));
    }
}
