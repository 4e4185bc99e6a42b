//! The clock on the wall: Unix seconds, for what somebody outside counts in them (tokens, secrets, keys). Everything else
//! goes by the monotonic clock, which nobody sets.
use std::time::{SystemTime, UNIX_EPOCH};

/// Now, Unix seconds.
pub fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
