//! What the proxy has seen and done, and how often each fault may still happen.
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use super::script::{Direction, Kind, Script};
use crate::scripted::Dice;

/// Counters since the start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProxyStats {
    /// Connections taken.
    pub connections: u64,
    /// Connections that are open now.
    pub connections_now: u64,
    /// Bytes passed on to clients.
    pub to_client_bytes: u64,
    /// Bytes passed on to the server.
    pub to_server_bytes: u64,
    /// Faults that happened, by kind: once for each direction of each connection that they struck; `flip`: by the bit.
    pub faults: BTreeMap<&'static str, u64>,
}

impl ProxyStats {
    /// How often faults of this kind have happened.
    pub fn count(&self, kind: &str) -> u64 {
        self.faults.get(kind).copied().unwrap_or(0)
    }
}

/// The counters of a running proxy.
#[derive(Debug, Default)]
pub(super) struct Counters(Mutex<ProxyStats>);

impl Counters {
    /// The counters, to be changed.
    pub(super) fn lock(&self) -> MutexGuard<'_, ProxyStats> {
        // Counters are whole at any time: a panic elsewhere does not spoil them.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn fault(&self, kind: &'static str) {
        *self.lock().faults.entry(kind).or_default() += 1;
    }

    pub(super) fn passed(&self, direction: Direction, bytes: usize) {
        let mut stats = self.lock();
        match direction {
            Direction::ToClient => stats.to_client_bytes += bytes as u64,
            Direction::ToServer | Direction::Both => stats.to_server_bytes += bytes as u64,
        }
    }
}

/// A script at work on all connections.
#[derive(Debug)]
pub(super) struct Book {
    pub(super) script: Script,
    fired: Vec<AtomicU64>,
    pub(super) counters: Arc<Counters>,
}

impl Book {
    pub(super) fn new(script: Script, counters: Arc<Counters>) -> Arc<Self> {
        let fired = script.list.iter().map(|_| AtomicU64::new(0)).collect();
        Arc::new(Self { script, fired, counters })
    }

    /// Takes one of the times that a fault may happen; false: it has happened often enough.
    pub(super) fn reserve(&self, fault: usize) -> bool {
        let (Some(entry), Some(fired)) = (self.script.list.get(fault), self.fired.get(fault)) else { return false };
        let limit = entry.times.unwrap_or(u64::MAX);
        fired.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n < limit).then_some(n + 1)).is_ok()
    }

    /// Dice of one fault on one connection: what the others throw does not change them. `stream` tells apart what is thrown.
    pub(super) fn dice(&self, fault: usize, connection: u64, stream: u64) -> Dice {
        let seed = self.script.seed.rotate_left(24) ^ ((fault as u64 + 1) << 8) ^ 0xC4A0;
        Dice::new(seed, (connection << 20) ^ stream)
    }

    /// What happens in place of the connect behind the n-th connection, if anything.
    pub(super) fn at_connect(&self, connection: u64) -> Option<Kind> {
        let mut faults = self.script.list.iter().enumerate().filter(|(_, fault)| fault.kind.is_at_connect());
        let (_, fault) = faults.find(|(index, fault)| {
            fault.connection.is_none_or(|n| n == connection)
                && self.dice(*index, connection, 0).chance(fault.chance)
                && self.reserve(*index)
        })?;
        self.counters.fault(fault.kind.name());
        Some(fault.kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happens_at_the_connect_is_scripted_counted_and_seeded() {
        let text = "seed = 3\n[[fault]]\nkind = \"refuse\"\nconnection = 2\n[[fault]]\nkind = \"stall\"\nchance = 0.5\ntimes = 40";
        let book = || Book::new(Script::from_toml(text).unwrap(), Arc::default());
        let all = |book: &Book| (1..=200).map(|n| book.at_connect(n).map(Kind::name)).collect::<Vec<_>>();
        let one = book();
        let faults = all(&one);
        assert_eq!(faults[1], Some("refuse"));
        assert_eq!(faults, all(&book()), "the same seed");
        assert_eq!(faults.iter().filter(|fault| **fault == Some("stall")).count(), 40, "at most so often");
        let stats = one.counters.lock().clone();
        assert_eq!((stats.count("refuse"), stats.count("stall"), stats.count("reset")), (1, 40, 0));
        let first = faults.iter().take(60).filter(|fault| **fault == Some("stall")).count();
        assert!((15..=45).contains(&first), "one of two: {first} of 60");
    }
}
