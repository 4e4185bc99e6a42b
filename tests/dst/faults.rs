//! What goes wrong in a call, and at which moment: drawn from the seed before the call begins.
use std::{ops::Range, time::Duration};

use rand::{Rng as _, rngs::StdRng};

use crate::check::At;

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// The client's connection breaks, both sides see it.
    ClientLost,
    /// It breaks, and the server does not see it.
    HalfOpen,
    /// It breaks, and the client stays away longer than it may.
    LongAway,
    /// The client takes nothing for a while.
    ClientStalls,
    /// The session breaks.
    SessionLost,
    /// It breaks, and dialling fails for a while.
    NoDial,
    /// It says nothing any more, not even pongs.
    SessionDeaf,
    /// It says nothing for a while.
    SessionStalls,
    /// The call shall have another session.
    Rotate,
    /// The next events come twice.
    Twice,
}

pub(crate) const KINDS: [Kind; 10] = [
    Kind::ClientLost,
    Kind::HalfOpen,
    Kind::LongAway,
    Kind::ClientStalls,
    Kind::SessionLost,
    Kind::NoDial,
    Kind::SessionDeaf,
    Kind::SessionStalls,
    Kind::Rotate,
    Kind::Twice,
];

/// At which moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum On {
    Now,
    SpeechStarted,
    SpeechStopped,
    Committed,
    Created,
    Delta,
    Done,
    Words,
    AskedCommit,
    AskedReply,
    NextReady,
    ClientAudio,
    ReplyAudio,
}

const MOMENTS: [On; 13] = [
    On::Now,
    On::SpeechStarted,
    On::SpeechStopped,
    On::Committed,
    On::Created,
    On::Delta,
    On::Done,
    On::Words,
    On::AskedCommit,
    On::AskedReply,
    On::NextReady,
    On::ClientAudio,
    On::ReplyAudio,
];

/// A moment that does not come within this is not waited for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(12);

/// One fault.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fault {
    pub(crate) kind: Kind,
    pub(crate) at: At,
    pub(crate) on: On,
    /// So many such moments are let go by.
    pub(crate) skip: u32,
    /// What happens at the moment is lost with it.
    pub(crate) before: bool,
    pub(crate) fired: bool,
}

/// The faults of a call, until `calm`: so many, of these kinds.
pub(crate) fn draw(rng: &mut StdRng, calm: At, kinds: &[Kind], count: Range<usize>) -> Vec<Fault> {
    let mut faults: Vec<Fault> = (0..rng.random_range(count))
        .map(|_| {
            let kind = kinds[rng.random_range(0..kinds.len())];
            // A call that ends early teaches little.
            let kind = if kind == Kind::LongAway && rng.random_bool(0.8) { Kind::SessionLost } else { kind };
            Fault {
                kind,
                at: Duration::from_millis(rng.random_range(1_000..u64::try_from(calm.as_millis()).unwrap_or(1_001))),
                on: MOMENTS[rng.random_range(0..MOMENTS.len())],
                skip: rng.random_range(0..4),
                before: rng.random_bool(0.5),
                fired: false,
            }
        })
        .collect();
    faults.sort_by_key(|fault| fault.at);
    faults
}
