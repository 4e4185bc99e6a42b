//! Names for our commands: the service quotes them in its errors (realtime-protocol: `error.event_id` echoes ours).
use std::fmt::Write as _;

const PREFIX: &str = "vr_";

/// Appends the id of command `number`.
pub fn write(number: u64, out: &mut String) {
    let _ = write!(out, "{PREFIX}{number:x}"); // a String takes everything
}

/// How long the id of command `number` is, bytes.
pub fn len(number: u64) -> usize {
    PREFIX.len() + number.checked_ilog(16).map_or(1, |digits| digits as usize + 1)
}

/// The number in an id of ours.
pub fn read(id: &str) -> Option<u64> {
    u64::from_str_radix(id.strip_prefix(PREFIX)?, 16).ok()
}

#[test]
fn ids_come_back() {
    for number in [0, 1, 15, 16, 0xFFF, 0x1000, u64::MAX] {
        let mut id = String::new();
        write(number, &mut id);
        assert_eq!((read(&id), id.len()), (Some(number), len(number)));
    }
    assert_eq!(read("event_1"), None);
}
