//! Whole lines out of what comes in pieces, each byte looked at once, however long a line is. Holds the line that has begun, and no bound on
//! it: that is its owner's.

/// From so many bytes on a line that has begun needs room of its own ([`crate::text::room`]).
pub const LONG: usize = 256 << 10;

/// The line that has begun.
#[derive(Debug, Default)]
pub struct Lines(Vec<u8>);

impl Lines {
    /// The lines that are whole with this piece, ends included; empty: none is.
    pub fn feed(&mut self, piece: &[u8]) -> Vec<u8> {
        let end = memchr::memrchr(b'\n', piece).map_or(0, |last| last + 1);
        let (ends, begins) = piece.split_at_checked(end).unwrap_or((piece, &[]));
        let mut whole = if ends.is_empty() { Vec::new() } else { std::mem::take(&mut self.0) };
        whole.extend_from_slice(ends);
        self.0.extend_from_slice(begins);
        whole
    }

    /// How long the line is that has begun, bytes.
    pub fn waiting(&self) -> usize {
        self.0.len()
    }

    /// The line that has begun, as it is.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.0)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::*;

    proptest::proptest! {
        #[test]
        fn nothing_is_lost_and_only_whole_lines_come(pieces in proptest::collection::vec("[ab\n]{0,9}", 0..20)) {
            let (mut lines, mut all) = (Lines::default(), Vec::new());
            for piece in &pieces {
                let whole = lines.feed(piece.as_bytes());
                proptest::prop_assert!(whole.is_empty() || whole.ends_with(b"\n"));
                all.extend(whole);
            }
            proptest::prop_assert!(!lines.0.contains(&b'\n') && lines.waiting() == lines.0.len());
            all.extend(lines.take());
            proptest::prop_assert_eq!(String::from_utf8(all).unwrap(), pieces.concat());
        }
    }

    #[test]
    fn a_long_line_is_looked_at_once() {
        // Looking through all of it for each piece would be 256 GB.
        let (mut lines, piece, began) = (Lines::default(), [b'a'; 2 << 10], Instant::now());
        for _ in 0..16 << 10 {
            assert!(lines.feed(&piece).is_empty());
        }
        assert_eq!(lines.feed(b"\nb").len(), (32 << 20) + 1);
        assert_eq!(lines.waiting(), 1);
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    }
}
