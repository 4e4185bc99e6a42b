//! The targets: each takes any bytes, must not panic, and asserts what it promises.
//!
//! A target that is about text takes the bytes as that text; one that is about a sequence of things reads them as a script
//! ([`Script`], or lines in [`call`]).
mod audio;
mod call;
mod net;
mod texts;

/// One target.
pub(crate) struct Target {
    /// Its name, and that of its folder in the corpus.
    pub(crate) name: &'static str,
    /// Runs it once.
    pub(crate) run: fn(&[u8]),
    /// Mutations in `cargo test`: a second of a debug build, about.
    pub(crate) runs: usize,
}

const fn target(name: &'static str, run: fn(&[u8]), runs: usize) -> Target {
    Target { name, run, runs }
}

/// All of them.
pub(crate) const TARGETS: [Target; 19] = [
    target("thin", texts::thin, 5_000),
    target("openai", texts::openai, 3_000),
    target("query", texts::query, 5_000),
    target("token", texts::token, 2_000),
    target("config", texts::config, 1_000),
    target("faults", texts::faults, 2_000),
    target("waits", texts::waits, 5_000),
    target("upstream", texts::upstream, 3_000),
    target("beta", texts::beta, 1_000),
    target("track", net::track, 3_000),
    target("socket", net::socket, 500),
    target("audiosocket", net::audiosocket, 500),
    target("outbox", net::outbox, 2_000),
    target("chunks", audio::chunks, 3_000),
    target("resample", audio::resample, 300),
    target("uplink", audio::uplink, 300),
    target("downlink", audio::downlink, 200),
    target("opus", audio::opus, 500),
    target("call", call::call, 1_000),
];

/// Bytes read as small numbers and pieces; where they end, it is all zeros.
struct Script<'b>(&'b [u8]);

impl<'b> Script<'b> {
    fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    fn number(&mut self) -> usize {
        usize::from(self.byte()) << 8 | usize::from(self.byte())
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[usize::from(self.byte()) % all.len()]
    }

    /// Up to so many bytes.
    fn take(&mut self, most: usize) -> &'b [u8] {
        let (piece, rest) = self.0.split_at(most.min(self.0.len()));
        self.0 = rest;
        piece
    }

    fn is_over(&self) -> bool {
        self.0.is_empty()
    }
}
