//! Names for our commands: the service quotes them in its errors (realtime-protocol: `error.event_id` echoes ours).
use std::fmt::Write as _;

const PREFIX: &str = "vr_";

/// Appends the id of command `number`.
pub fn write(number: u64, out: &mut String) {
    let _ = write!(out, "{PREFIX}{number:x}"); // a String takes everything
}

/// The number in an id of ours.
pub fn read(id: &str) -> Option<u64> {
    u64::from_str_radix(id.strip_prefix(PREFIX)?, 16).ok()
}

#[test]
fn ids_come_back() {
    for number in [0, 1, 0xFFF, u64::MAX] {
        let mut id = String::new();
        write(number, &mut id);
        assert_eq!(read(&id), Some(number));
    }
    assert_eq!(read("event_1"), None);
}
