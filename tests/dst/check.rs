//! The history of one call and what must be true of it, whoever wrote it down.
//!
//! Knows no simulation: a test of a real relay can write the same facts.
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::{DefaultHasher, Hash, Hasher as _},
    time::Duration,
};

/// Time since the call began.
pub(crate) type At = Duration;

/// Something that happened.
#[derive(Debug, Clone, Hash)]
pub(crate) enum Fact {
    /// The core was given the client's message of this number.
    Reached { number: u64 },
    /// The core took this audio of the caller; numbers of units, in runs.
    Heard { from: u32, to: u32, loud: bool },
    /// The caller wants this audio forgotten.
    Discarded { from: u32, to: u32 },
    /// The client reads that the server has its messages up to this number.
    Acknowledged { got: u64 },
    /// A socket of the server took the message of this number.
    Numbered { number: u64, hash: u64 },
    /// The client counted this message.
    Got { number: u64, hash: u64 },
    /// What the client reads or does, for people.
    Told(String),
    /// This session runs from here on.
    Runs { session: usize },
    /// No session runs.
    NoSession { why: &'static str },
    /// A session took audio of the caller.
    Append { session: usize, units: Vec<(u32, u32)> },
    /// The service made a turn of this audio.
    Turn { session: usize, units: Vec<(u32, u32)> },
    /// The core was told that a reply begins.
    Created { response: String },
    /// The core was given audio of a reply.
    Delta { response: String, audio: Vec<u8> },
    /// The core was told the reply's end, and this count.
    Done { response: String, tokens: Option<u64> },
    /// The client reads of a reply.
    Started { reply: String },
    /// The client has this audio.
    Audio { audio: Vec<u8> },
    /// The client drops what it has not played.
    Clear { reply: String, played_ms: u64 },
    /// The client reads of a reply's end.
    Ended { reply: String, status: &'static str, audio_ms: u64, heard_ms: u64 },
    /// The client is told that audio was lost.
    Gap { from: u32, to: u32 },
    /// The client reads of a tool call.
    Called { call_id: String },
    /// A result was told to a session, by the core as its answer and not as history.
    Answered { call_id: String },
    /// A row.
    Booked { id: String, estimated: bool, tokens: u64 },
    /// A command of the core, for people.
    Asked(&'static str),
    /// A fault fired.
    Fault { name: &'static str },
    /// The session that had this audio says nothing, and has found no speech: it is heard again for two seconds only
    /// (fault-matrix: 2 s outside speech), and a service that finds the turns tells nobody what it has not heard.
    Silent { from: u32, to: u32 },
    /// Is there a client, is there a session, or one on its way?
    Legs { client: bool, service: bool },
    /// The call is over.
    End { why: String },
    /// After its end: the core wants to be woken.
    Leftover,
}

/// One call.
#[derive(Debug, Default)]
pub(crate) struct History {
    pub(crate) log: Vec<(At, Fact)>,
}

impl History {
    pub(crate) fn note(&mut self, at: At, fact: Fact) {
        self.log.push((at, fact));
    }

    /// The same for the same events at the same times.
    pub(crate) fn hash(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.log.hash(&mut hasher);
        hasher.finish()
    }

    /// Everything that is wrong.
    pub(crate) fn check(&self) -> Vec<String> {
        let mut found = Vec::new();
        messages(&self.log, &mut found);
        replies(&self.log, &mut found);
        hearing(&self.log, &mut found);
        tools(&self.log, &mut found);
        books(&self.log, &mut found);
        legs(&self.log, &mut found);
        found
    }
}

type Log = [(At, Fact)];

/// Exactly once and in order, both ways.
fn messages(log: &Log, found: &mut Vec<String>) {
    let (mut reached, mut got, mut numbered) = (0, 0, Vec::new());
    for (at, fact) in log {
        match fact {
            Fact::Reached { number } => {
                if *number != reached + 1 {
                    found.push(format!("{at:?}: message {number} of the client reached the core after {reached}"));
                }
                reached = *number;
            }
            Fact::Acknowledged { got } if *got > reached => {
                found.push(format!("{at:?}: {got} acknowledged, {reached} reached the core"));
            }
            Fact::Numbered { number, hash } => {
                if *number != numbered.len() as u64 + 1 {
                    found.push(format!("{at:?}: message {number} of the server numbered after {}", numbered.len()));
                }
                numbered.push(*hash);
            }
            Fact::Got { number, hash } => {
                if *number != got + 1 {
                    found.push(format!("{at:?}: the client got message {number} after {got}"));
                }
                got = *number;
                let said = usize::try_from(number - 1).ok().and_then(|index| numbered.get(index));
                if said != Some(hash) {
                    found.push(format!("{at:?}: message {number} is not what was said under that number"));
                }
            }
            _ => {}
        }
    }
}

/// Replies begin once, end once, in order, and are the service's audio from its beginning.
fn replies(log: &Log, found: &mut Vec<String>) {
    let mut source: HashMap<&str, Vec<u8>> = HashMap::new();
    let mut begun: Vec<&str> = Vec::new();
    let mut started: Vec<&str> = Vec::new();
    let mut ended = BTreeSet::new();
    let mut cleared = BTreeSet::new();
    let mut had: HashMap<&str, Vec<u8>> = HashMap::new();
    for (at, fact) in log {
        match fact {
            Fact::Created { response } if !begun.contains(&response.as_str()) => begun.push(response),
            Fact::Delta { response, audio } => source.entry(response).or_default().extend(audio),
            Fact::Started { reply } => {
                if started.contains(&reply.as_str()) {
                    found.push(format!("{at:?}: reply {reply} began twice"));
                }
                started.push(reply);
            }
            Fact::Clear { reply, .. } => {
                cleared.insert(reply.as_str());
            }
            Fact::Audio { audio } => match started.last() {
                None => found.push(format!("{at:?}: audio before any reply_started")),
                Some(reply) if ended.contains(reply) || cleared.contains(reply) => {
                    found.push(format!("{at:?}: audio of {reply} after its end or its clear"));
                }
                Some(reply) => had.entry(reply).or_default().extend(audio),
            },
            Fact::Ended { reply, status, .. } => {
                if !started.contains(&reply.as_str()) {
                    found.push(format!("{at:?}: reply {reply} ended before it began"));
                }
                if !ended.insert(reply.as_str()) {
                    found.push(format!("{at:?}: reply {reply} ended twice"));
                }
                let (all, came) = (reply_source(reply, &begun, &source), had.get(reply.as_str()).map_or(0, Vec::len));
                if *status == "completed" && all.is_some_and(|all| came < all.len()) {
                    found.push(format!(
                        "{at:?}: reply {reply} is complete, {came} bytes of {:?} came",
                        all.map(Vec::len)
                    ));
                }
            }
            _ => {}
        }
    }
    for (reply, had) in &had {
        let said = reply_source(reply, &begun, &source).map_or(&[][..], Vec::as_slice);
        let same = had.iter().zip(said).take_while(|(a, b)| a == b).count();
        if had.get(same..).is_some_and(|rest| rest.iter().any(|byte| *byte != 0xFF)) {
            found.push(format!(
                "reply {reply}: its audio is not what the service said from byte {same} of {} on",
                had.len()
            ));
        }
    }
    let over = log.iter().any(|(_, fact)| matches!(fact, Fact::End { .. }));
    let closed = log.iter().any(|(_, fact)| matches!(fact, Fact::End { why } if why.contains("client ended the call")));
    for reply in started.iter().filter(|reply| over && closed && !ended.contains(*reply)) {
        // What still sounded when the caller hung up is told nobody.
        let last = started.last() == Some(reply) || started.iter().rev().nth(1) == Some(reply);
        if !last {
            found.push(format!("reply {reply} never ended"));
        }
    }
}

/// `r3` is the third reply that the core was told of.
fn reply_source<'s>(reply: &str, begun: &[&'s str], source: &'s HashMap<&'s str, Vec<u8>>) -> Option<&'s Vec<u8>> {
    let index = reply.strip_prefix('r')?.parse::<usize>().ok()?.checked_sub(1)?;
    source.get(begun.get(index)?)
}

/// A session hears each sample once and in order; a turn has no holes; what was said is part of a turn, or of a gap.
fn hearing(log: &Log, found: &mut Vec<String>) {
    let mut last: HashMap<usize, u32> = HashMap::new();
    let mut gaps: Vec<(u32, u32)> = Vec::new();
    let mut turned: BTreeSet<u32> = BTreeSet::new();
    let mut loud: BTreeMap<u32, (u32, At)> = BTreeMap::new();
    let mut discarded: Vec<(u32, u32)> = Vec::new();
    let covered = |gaps: &[(u32, u32)], from: u32, to: u32| {
        // Gaps are told in whole milliseconds.
        let mut at = from;
        while let Some((_, end)) = gaps.iter().find(|(begin, end)| *begin <= at + 2 && at < *end) {
            at = *end;
            if at + 2 >= to {
                return true;
            }
        }
        false
    };
    for (at, fact) in log {
        match fact {
            Fact::Gap { from, to } => gaps.push((*from, *to)),
            Fact::Heard { from, to, loud: true } => {
                loud.insert(*from, (*to, *at));
            }
            Fact::Discarded { from, to } | Fact::Silent { from, to } => discarded.push((*from, *to)),
            Fact::Append { session, units } => {
                for (from, to) in units {
                    let before = last.insert(*session, *to).unwrap_or(0);
                    if *from < before {
                        found.push(format!("{at:?}: session {session} hears units {from}..{before} again"));
                    }
                }
            }
            Fact::Turn { session, units } => {
                for pair in units.windows(2) {
                    if let [(_, to), (from, _)] = pair
                        && !discarded.iter().any(|(begin, end)| begin <= to && from <= end)
                    {
                        found.push(format!(
                            "{at:?}: a turn in session {session} lacks units {to}..{from} (gaps {gaps:?})"
                        ));
                    }
                }
                // A thousandth is fine enough, and quick.
                for (from, to) in units {
                    turned.extend(from / 40..*to / 40);
                }
            }
            _ => {}
        }
    }
    let end =
        log.iter().rev().find_map(|(at, fact)| matches!(fact, Fact::End { .. }).then_some(*at)).unwrap_or(At::MAX);
    let asked = log.iter().any(|(_, fact)| matches!(fact, Fact::End { why } if why.contains("client ended the call")));
    for (from, (to, at)) in loud {
        let in_time = asked && at + Duration::from_secs(25) < end;
        let is_turned = (from / 40 + 1..to / 40).all(|piece| turned.contains(&piece));
        if in_time && !is_turned && !covered(&gaps, from, to) && !discarded.iter().any(|(b, e)| *b <= from && to <= *e)
        {
            found.push(format!("units {from}..{to}, said at {at:?}, are in no turn and in no gap"));
        }
    }
}

/// Told once, answered once.
fn tools(log: &Log, found: &mut Vec<String>) {
    let (mut called, mut answered) = (BTreeSet::new(), BTreeSet::new());
    for (at, fact) in log {
        match fact {
            Fact::Called { call_id } if !called.insert(call_id) => {
                found.push(format!("{at:?}: {call_id} was told twice"))
            }
            Fact::Answered { call_id } if !answered.insert(call_id) => {
                found.push(format!("{at:?}: {call_id} was answered twice"));
            }
            _ => {}
        }
    }
}

/// One row for each reply: the service's count where it came, an estimate where a drop ate it.
fn books(log: &Log, found: &mut Vec<String>) {
    let mut rows: HashMap<&str, (bool, u64)> = HashMap::new();
    let (mut done, mut created) = (HashMap::new(), Vec::new());
    for (_, fact) in log {
        match fact {
            Fact::Booked { id, estimated, tokens } => {
                let row = rows.entry(id).or_insert((*estimated, *tokens));
                if !estimated || row.0 {
                    *row = (*estimated, *tokens);
                }
            }
            Fact::Created { response } => created.push(response),
            Fact::Done { response, tokens } => {
                done.entry(response.as_str()).or_insert(*tokens);
            }
            _ => {}
        }
    }
    for response in created {
        match (done.get(response.as_str()), rows.get(response.as_str())) {
            (Some(Some(told)), Some((false, booked))) if told == booked => {}
            (Some(None), _) | (None, Some((true, _))) => {}
            (told, row) => found.push(format!("{response}: the service counted {told:?}, the row is {row:?}")),
        }
    }
}

/// Whoever is there has a session, or one on its way; every end has a reason, and nothing is left after it.
fn legs(log: &Log, found: &mut Vec<String>) {
    let mut ends = 0;
    for (at, fact) in log {
        match fact {
            Fact::Legs { client: true, service: false } => {
                found.push(format!("{at:?}: a client is there, and no session nor one on its way"));
            }
            Fact::End { why } => {
                ends += 1;
                if why.is_empty() {
                    found.push(format!("{at:?}: an end without a reason"));
                }
            }
            Fact::Leftover => found.push(format!("{at:?}: the call is over and wants to be woken")),
            _ => {}
        }
    }
    if ends != 1 {
        found.push(format!("{ends} ends"));
    }
}
