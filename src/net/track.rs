//! Follows frame boundaries in a byte stream, so that we know whether a peer stopped in the middle of a message.
//!
//! The WebSocket library does not say; a peer that sends half a frame and falls silent would keep its socket for ever.
//! Reads headers only (RFC 6455 section 5.2); never judges them: that is the library's work.

/// Where a stream stands.
#[derive(Debug, Default)]
pub struct FrameTracker {
    header: [u8; 14],
    have: usize,
    payload_left: u64,
    in_message: bool,
    /// Bytes of a message that is not whole.
    pending: u64,
}

impl FrameTracker {
    /// Takes the next bytes.
    pub fn feed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.payload_left > 0 {
                let skip = usize::try_from(self.payload_left).unwrap_or(usize::MAX).min(bytes.len());
                self.payload_left -= skip as u64;
                self.pending += skip as u64;
                bytes = bytes.get(skip..).unwrap_or_default();
                self.end_frame();
                continue;
            }
            let Some((&byte, rest)) = bytes.split_first() else { return };
            bytes = rest;
            if let Some(slot) = self.header.get_mut(self.have) {
                *slot = byte;
            }
            self.have += 1;
            self.end_header();
            self.end_frame();
        }
    }

    /// Payload bytes that have come of a message that is not whole.
    pub fn pending(&self) -> u64 {
        self.pending
    }

    fn end_frame(&mut self) {
        if !self.unfinished() {
            self.pending = 0;
        }
    }

    /// A frame has begun and is not whole, or a fragmented message waits for its last frame.
    pub fn unfinished(&self) -> bool {
        self.have > 0 || self.payload_left > 0 || self.in_message
    }

    fn end_header(&mut self) {
        let [first, second, ..] = self.header;
        if self.have < 2 {
            return;
        }
        let (length_bytes, short) = match second & 0x7F {
            126 => (2, 0),
            127 => (8, 0),
            n => (0, u64::from(n)),
        };
        let mask_bytes = if second & 0x80 == 0 { 0 } else { 4 };
        if self.have < 2 + length_bytes + mask_bytes {
            return;
        }
        let long = self.header.iter().skip(2).take(length_bytes).fold(0u64, |n, b| (n << 8) | u64::from(*b));
        self.payload_left = if length_bytes == 0 { short } else { long };
        self.have = 0;
        let control = first & 0x08 != 0;
        if !control {
            self.in_message = first & 0x80 == 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(fin: bool, opcode: u8, mask: bool, len: usize) -> Vec<u8> {
        let mut out = vec![(u8::from(fin) << 7) | opcode];
        let m = u8::from(mask) << 7;
        match len {
            0..126 => out.push(m | u8::try_from(len).unwrap()),
            126..65_536 => {
                out.push(m | 126);
                out.extend(u16::try_from(len).unwrap().to_be_bytes());
            }
            _ => {
                out.push(m | 127);
                out.extend((len as u64).to_be_bytes());
            }
        }
        out.extend(std::iter::repeat_n(0x5A, len + if mask { 4 } else { 0 }));
        out
    }

    #[test]
    fn knows_when_a_peer_stopped_in_the_middle() {
        for (name, bytes, unfinished) in [
            ("nothing", vec![], false),
            ("one byte of a header", vec![0x82], true),
            ("a whole frame", frame(true, 2, true, 5), false),
            ("half a frame", frame(true, 2, true, 500)[..100].to_vec(), true),
            ("a first fragment", frame(false, 1, true, 5), true),
            ("a ping between fragments", [frame(false, 1, true, 5), frame(true, 9, true, 0)].concat(), true),
            ("both fragments", [frame(false, 1, true, 5), frame(true, 0, true, 5)].concat(), false),
            ("an announced gigabyte", vec![0x82, 0xFF, 0, 0, 0, 0, 0x40, 0, 0, 0, 1, 2, 3, 4], true),
        ] {
            let mut tracker = FrameTracker::default();
            tracker.feed(&bytes);
            assert_eq!(tracker.unfinished(), unfinished, "{name}");
            assert!(unfinished || tracker.pending() == 0, "{name}");
        }
    }

    #[test]
    fn what_has_come_of_a_message_is_counted() {
        let mut tracker = FrameTracker::default();
        tracker.feed(
            &[frame(false, 1, true, 300), frame(true, 9, true, 0), frame(true, 0, true, 500)[..108].to_vec()].concat(),
        );
        assert_eq!(tracker.pending(), 300 + 100);
        tracker.feed(&[0; 400]);
        assert_eq!(tracker.pending(), 0);
    }

    proptest::proptest! {
        #[test]
        fn cuts_do_not_matter(lens in proptest::collection::vec(0usize..70_000, 1..5), mask: bool, cut in 1usize..4_000) {
            let bytes: Vec<u8> = lens.iter().flat_map(|len| frame(true, 2, mask, *len)).collect();
            let mut tracker = FrameTracker::default();
            for piece in bytes.chunks(cut) {
                tracker.feed(piece);
            }
            proptest::prop_assert!(!tracker.unfinished());
        }
    }
}
