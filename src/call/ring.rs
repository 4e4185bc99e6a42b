//! The caller's audio of the last minute, as it went upstream: what a new session must hear again.
//!
//! Positions are bytes of all audio written upstream since the call began. The service acknowledges no audio, so what it was
//! given is kept until somebody says that it is not needed any more. Decides nothing.
use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::audio::Format;

/// The longest memory (client-protocol.md: what is acknowledged is never lost; fault-matrix.md, general promise 1).
pub const LONGEST: Duration = Duration::from_secs(60);

/// The newest audio.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Ring {
    pieces: VecDeque<Bytes>,
    begin: u64,
    end: u64,
}

impl Ring {
    /// More audio.
    pub fn push(&mut self, chunk: Bytes) {
        self.end += chunk.len() as u64;
        self.pieces.push_back(chunk);
    }

    /// Where what is kept begins.
    pub fn begin(&self) -> u64 {
        self.begin
    }

    /// Where it ends.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Nobody needs what is before `from`; and nothing is kept for longer than [`LONGEST`].
    pub fn forget(&mut self, from: u64, format: Format) {
        let from = from.max(self.end.saturating_sub(format.bytes(LONGEST) as u64)).min(self.end);
        while let Some(oldest) = self.pieces.front()
            && self.begin + oldest.len() as u64 <= from
        {
            self.begin += oldest.len() as u64;
            self.pieces.pop_front();
        }
    }

    /// The audio from one position to another, as far as it is kept.
    pub fn slice(&self, from: u64, to: u64) -> impl Iterator<Item = Bytes> + use<'_> {
        let mut at = self.begin;
        self.pieces.iter().filter_map(move |piece| {
            let begin = at;
            at += piece.len() as u64;
            let within = |position: u64| usize::try_from(position.clamp(begin, at) - begin).ok();
            let (first, last) = (within(from)?, within(to)?);
            (first < last).then(|| piece.slice(first..last))
        })
    }

    /// Gives memory back.
    pub fn shrink(&mut self) {
        self.pieces.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_cut_at_positions_and_forgotten_as_a_whole() {
        let mut ring = Ring::default();
        for n in 0..10u8 {
            ring.push(Bytes::from(vec![n; 100]));
        }
        let all = |ring: &Ring, from, to| ring.slice(from, to).flatten().collect::<Vec<u8>>();
        assert_eq!(all(&ring, 150, 250), [[1; 50], [2; 50]].concat());
        ring.forget(250, Format::PCM_24K);
        assert_eq!((ring.begin(), ring.end()), (200, 1_000), "the piece in which it begins stays");
        assert_eq!(all(&ring, 0, 300), [2; 100]);
        assert_eq!(all(&ring, 900, 5_000), [9; 100]);
        assert_eq!(all(&ring, 300, 300), [0u8; 0]);
        let minute = Format::PCM_24K.bytes(LONGEST);
        ring.push(Bytes::from(vec![0; minute]));
        ring.forget(0, Format::PCM_24K);
        assert_eq!(ring.begin(), 1_000, "a minute at most");
    }
}
