//! Ctrl-C, and the signal of whoever ends programs in order. Once asked for, the system ends nobody by itself any more: so this is
//! listened to from the first moment to the last, whatever is being done.
use std::{future::Future, io};

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Both of them.
#[derive(Debug)]
pub(super) struct Signals {
    int: Signal,
    term: Signal,
}

impl Signals {
    /// From now on.
    ///
    /// # Errors
    /// When the system does not tell us of them.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { int: signal(SignalKind::interrupt())?, term: signal(SignalKind::terminate())? })
    }

    /// The next one.
    pub(super) async fn next(&mut self) {
        tokio::select! {
            _ = self.int.recv() => {}
            _ = self.term.recv() => {}
        }
    }

    /// What comes of some work; none: a signal came first, and the work is left.
    pub(super) async fn or<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            done = work => Some(done),
            () = self.next() => None,
        }
    }
}
