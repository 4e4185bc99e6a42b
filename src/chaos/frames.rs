//! Where WebSocket frames begin and have their middle in a byte stream (RFC 6455 section 5.2).
//!
//! Reads lengths only and judges nothing. It is not [`crate::net::track`], so that a mistake there does not meet itself here.

/// What is known of a frame before its payload, bytes at most.
const LONGEST_HEADER: usize = 14;
/// A longer head is not followed: what comes after it is taken for no frames.
const LONGEST_HEAD: usize = 64 << 10;

/// Which part of a frame a place in the stream is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Part {
    /// Before its first byte.
    #[default]
    Before,
    /// In the middle of its payload. A frame without payload has none: there it is the frame's end.
    Middle,
}

/// Follows one direction of one connection.
#[derive(Debug)]
pub(super) struct Frames {
    at: At,
    /// Frames that have begun.
    begun: u64,
}

#[derive(Debug)]
enum At {
    /// In the head of the HTTP request or answer.
    Head(Vec<u8>),
    /// Between two frames; true: the next one was announced.
    Between(bool),
    Header(Vec<u8>),
    /// Bytes to the middle (`None`: it was announced), and then to the end.
    Payload(Option<u64>, u64),
    /// There are no frames here.
    Nothing,
}

impl Frames {
    pub(super) fn new() -> Self {
        Self { at: At::Head(Vec::new()), begun: 0 }
    }

    /// Walks on to the next place of interest, at most to the end of `bytes`: how many bytes are before it, and which part of
    /// which frame (from 1) it is. To be called again with the rest.
    pub(super) fn walk(&mut self, bytes: &[u8]) -> (usize, Option<(u64, Part)>) {
        let mut walked = 0;
        while let Some(&byte) = bytes.get(walked) {
            match &mut self.at {
                At::Nothing => return (bytes.len(), None),
                At::Head(head) => {
                    walked += 1;
                    head.push(byte);
                    if head.ends_with(b"\r\n\r\n") {
                        self.at = if upgrades(head) { At::Between(false) } else { At::Nothing };
                    } else if head.len() >= LONGEST_HEAD {
                        self.at = At::Nothing;
                    }
                }
                At::Between(announced @ false) => {
                    *announced = true;
                    self.begun += 1;
                    return (walked, Some((self.begun, Part::Before)));
                }
                At::Between(true) => self.at = At::Header(Vec::with_capacity(LONGEST_HEADER)),
                At::Header(header) => {
                    walked += 1;
                    header.push(byte);
                    if let Some(payload) = payload_of(header) {
                        self.at = At::Payload(Some(payload / 2), payload - payload / 2);
                    }
                }
                At::Payload(Some(to_middle), _) if *to_middle > 0 => walked += step(to_middle, bytes.len() - walked),
                At::Payload(to_middle @ Some(_), _) => {
                    *to_middle = None;
                    return (walked, Some((self.begun, Part::Middle)));
                }
                At::Payload(None, to_end) if *to_end > 0 => walked += step(to_end, bytes.len() - walked),
                At::Payload(None, _) => self.at = At::Between(false),
            }
        }
        // A middle that is reached is told at once and not with the next byte.
        if let At::Payload(to_middle @ Some(0), _) = &mut self.at {
            *to_middle = None;
            return (walked, Some((self.begun, Part::Middle)));
        }
        (walked, None)
    }
}

fn step(left: &mut u64, most: usize) -> usize {
    let step = usize::try_from(*left).unwrap_or(usize::MAX).min(most);
    *left -= step as u64;
    step
}

/// Whether frames come after this head: a request that asks for a WebSocket, or a 101.
fn upgrades(head: &[u8]) -> bool {
    let head = String::from_utf8_lossy(head).to_ascii_lowercase();
    head.starts_with("http/1.1 101") || (head.starts_with("get ") && head.contains("\r\nupgrade: websocket"))
}

/// Length of the payload, once the header is whole.
fn payload_of(header: &[u8]) -> Option<u64> {
    let second = *header.get(1)?;
    let (length, extended) = match second & 0x7F {
        126 => (header.get(2..4)?, true),
        127 => (header.get(2..10)?, true),
        _ => (&[][..], false),
    };
    let mask = if second & 0x80 == 0 { 0 } else { 4 };
    if header.len() < 2 + length.len() + mask {
        return None;
    }
    let number = length.iter().fold(0, |number: u64, byte| number << 8 | u64::from(*byte));
    Some(if extended { number } else { u64::from(second & 0x7F) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASKED: &[u8] = b"GET /v1/voice HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n\r\n";

    fn frame(masked: bool, payload: usize) -> Vec<u8> {
        let mask = if masked { 0x80 } else { 0 };
        let mut out = vec![0x82];
        match payload {
            0..126 => out.push(mask | u8::try_from(payload).unwrap()),
            126..65_536 => {
                out.push(mask | 126);
                out.extend(u16::try_from(payload).unwrap().to_be_bytes());
            }
            _ => {
                out.push(mask | 127);
                out.extend((payload as u64).to_be_bytes());
            }
        }
        out.extend(vec![0; if masked { 4 } else { 0 } + payload]);
        out
    }

    /// Every place of a stream that comes in pieces of this size.
    fn places(stream: &[u8], piece: usize) -> Vec<(usize, u64, Part)> {
        let (mut frames, mut out, mut at) = (Frames::new(), Vec::new(), 0);
        for mut bytes in stream.chunks(piece) {
            loop {
                let (walked, found) = frames.walk(bytes);
                at += walked;
                bytes = &bytes[walked..];
                match found {
                    Some((number, part)) => out.push((at, number, part)),
                    None => break,
                }
            }
        }
        out
    }

    #[test]
    fn frames_of_every_length_are_found_however_they_come() {
        let lengths =
            [(true, 0), (false, 0), (true, 1), (false, 5), (true, 125), (true, 126), (false, 70_000), (true, 9)];
        let mut stream = ASKED.to_vec();
        let mut want = Vec::new();
        for (n, (masked, payload)) in lengths.into_iter().enumerate() {
            let (number, frame) = (n as u64 + 1, frame(masked, payload));
            want.push((stream.len(), number, Part::Before));
            want.push((stream.len() + frame.len() - payload + payload / 2, number, Part::Middle));
            stream.extend(frame);
        }
        for piece in [1, 2, 3, 7, 1_000, stream.len()] {
            assert_eq!(places(&stream, piece), want, "in pieces of {piece}");
        }
    }

    #[test]
    fn only_an_upgrade_is_followed_by_frames() {
        let answer = b"HTTP/1.1 101 Switching Protocols\r\n\r\n";
        assert_eq!(places(&[&answer[..], &frame(false, 4)].concat(), 9).len(), 2);
        for head in ["GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\n", "\u{16}\u{3}\u{1}"] {
            assert_eq!(places(&[head.as_bytes(), &frame(false, 4)].concat(), 9), [], "{head}");
        }
        assert_eq!(places(&vec![b'x'; 1 << 20], 4_096), [], "it gives up");
    }
}
