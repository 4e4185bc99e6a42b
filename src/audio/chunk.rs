//! Gathers small pieces of audio into the chunks that go upstream.
//!
//! Chunks are cheap, system calls and events are not; but gathering is delay, so the first audio after silence and a
//! turn's end never wait. Counts bytes of the upstream format only; never cuts through a sample.
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use super::Format;

/// Audio that is not yet a chunk. The buffer is reused as soon as its last chunk is let go.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Chunker {
    gathered: BytesMut,
    chunk: usize,
    sample: usize,
}

impl Chunker {
    /// Chunks of `length` of `format`, which is PCM or G.711.
    pub fn new(format: Format, length: Duration) -> Self {
        let sample = format.sample_bytes().unwrap_or(1);
        Self { gathered: BytesMut::new(), chunk: format.bytes(length).max(sample), sample }
    }

    /// Takes audio, cut anywhere.
    pub fn push(&mut self, audio: &[u8]) {
        if self.gathered.is_empty() {
            self.gathered.reserve(self.chunk);
        }
        self.gathered.extend_from_slice(audio);
    }

    /// A whole chunk, if there is one.
    pub fn whole(&mut self) -> Option<Bytes> {
        (self.gathered.len() >= self.chunk).then(|| self.gathered.split_to(self.chunk).freeze())
    }

    /// What there is, whole chunk or not; half a sample stays.
    pub fn rest(&mut self) -> Option<Bytes> {
        let samples = self.gathered.len() / self.sample * self.sample;
        let take = samples.min(self.chunk);
        (take > 0).then(|| self.gathered.split_to(take).freeze())
    }

    /// Forgets what was gathered.
    pub fn clear(&mut self) {
        self.gathered.clear();
    }

    /// Bytes gathered.
    pub fn len(&self) -> usize {
        self.gathered.len()
    }

    /// Nothing gathered.
    pub fn is_empty(&self) -> bool {
        self.gathered.is_empty()
    }

    /// Gives the buffer back, if nothing is in it.
    pub fn shrink(&mut self) {
        if self.gathered.is_empty() {
            self.gathered = BytesMut::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn nothing_is_lost_and_no_sample_cut(pieces in proptest::collection::vec(proptest::collection::vec(0u8.., 0..3_000), 0..20), ms in 20u64..200) {
            let mut chunker = Chunker::new(Format::PCM_24K, Duration::from_millis(ms));
            let mut out = Vec::new();
            let most = Format::PCM_24K.bytes(Duration::from_millis(ms));
            for piece in &pieces {
                chunker.push(piece);
                while let Some(chunk) = chunker.whole() {
                    proptest::prop_assert_eq!(chunk.len(), most);
                    out.extend_from_slice(&chunk);
                }
            }
            while let Some(chunk) = chunker.rest() {
                proptest::prop_assert!(chunk.len() % 2 == 0 && chunk.len() <= most);
                out.extend_from_slice(&chunk);
            }
            let all = pieces.concat();
            proptest::prop_assert_eq!(&out, &all[..all.len() / 2 * 2]);
            proptest::prop_assert_eq!(chunker.len(), all.len() % 2);
        }
    }

    #[test]
    fn the_buffer_is_reused() {
        let mut chunker = Chunker::new(Format::PCM_24K, Duration::from_millis(100));
        let mut at = std::collections::HashSet::new();
        for _ in 0..50 {
            for _ in 0..5 {
                chunker.push(&[1; 960]);
            }
            let chunk = chunker.whole().unwrap();
            at.insert(chunk.as_ptr());
        }
        assert!(at.len() <= 2, "one or two places in memory, not {}", at.len());
    }
}
