//! The clock on the wall: Unix seconds, for what somebody outside counts in them (tokens, secrets, keys). Everything else
//! goes by the monotonic clock, which nobody sets.
use std::time::{SystemTime, UNIX_EPOCH};

/// Now, Unix seconds.
pub fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Now, Unix ms.
pub fn unix_now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
