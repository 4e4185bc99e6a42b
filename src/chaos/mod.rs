//! THE FAULT PROXY: TCP between any two parties, made as bad as a script says.
//!
//! Stands between a client and the relay, or between the relay and the service: `voxrelay sim --chaos FILE`, and
//! [`Proxy::start`] in tests. Without faults, bytes pass untouched, and who does not read is felt by who writes: buffers are
//! bounded. It knows nothing of what the bytes mean, but for the boundaries of WebSocket frames (which TLS hides from it).
//! Every fault that happens is counted in [`ProxyStats`], so that a test can prove that it happened.
//!
//! # The file
//! ```toml
//! seed = 7                  # of the chances and the jitter below
//!
//! [[fault]]
//! kind = "delay"            # what happens
//! direction = "to_client"   # to which bytes: "to_client", "to_server" or "both" (the default)
//! ms = 200                  # at least so much later ...
//! jitter_ms = 200           # ... and up to so much more, in order
//!
//! [[fault]]
//! kind = "reset"            # a connection that a router has forgotten
//! connection = 2            # on which connection (the n-th, from 1); absent: on every one
//! direction = "to_client"
//! frame = 40                # when: in place of the 40th frame to the client ...
//! part = "middle"           # ... or rather once half of it has passed
//!
//! [[fault]]
//! kind = "blackhole"
//! at_ms = 5_000             # when: so long after the connect
//! for_ms = 10_000           # how long
//! chance = 0.25             # but only on one connection of four
//! times = 3                 # at most so often in all; absent: without limit
//! ```
//!
//! | when | meaning |
//! |---|---|
//! | `at_ms = 1500` | so long after the connection was taken (what a fault without a moment has, with 0) |
//! | `after_bytes = 4096` | once so many bytes have passed in its direction |
//! | `frame = 3`, `part = "before"` | before the third WebSocket frame of its direction (pings count too); or in its `"middle"`; `"each"`: any |
//! | `after_ms = 300` | and so much later |
//!
//! | kind | keys | what happens |
//! |---|---|---|
//! | `refuse` | | the connection is taken, and reset at once |
//! | `stall` | `for_ms` | the connection is taken, and nobody is connected behind it for so long; absent: never |
//! | `delay` | `ms`, `jitter_ms`, `for_ms` | bytes come later, in order |
//! | `rate` | `bytes_per_s`, `for_ms` | no faster than this |
//! | `drip` | `bytes`, `every_ms`, `for_ms` | so many bytes at a time |
//! | `slice` | `min`, `max`, `for_ms` | written in pieces of so many bytes, at random from `min` (1) to `max` (as `min`) |
//! | `glue` | `bytes`, `ms`, `for_ms` | kept until so many bytes are together or the first has waited so long, and then written as one |
//! | `blackhole` | `for_ms` | nothing passes, no end of the connection either, and then all of it; absent: for ever. New connections hang |
//! | `half_close` | | the receiver sees the end of the stream, the sender nothing; the other direction goes on |
//! | `close` | | both sides see the end of the stream (FIN) |
//! | `reset` | | both sides see a reset (RST) |
//! | `flip` | `bit`, `per_byte`, `for_ms` | one bit (0 to 7; absent: any) of the next byte is wrong; with `per_byte` one of each byte with this chance |
//!
//! A fault of a kind that is already at work takes its place. What `refuse` and `stall` do, they do at the connect: they have
//! neither a direction nor a moment. `direction` says for `close` and `reset` whose bytes and frames are counted.
//!
//! The same seed, script and bytes give the same decisions, however the bytes come in: [`lane`] decides without sockets or
//! clock, `proxy` gives it both.
mod frames;
mod lane;
mod proxy;
mod script;
mod shape;
mod stats;

pub use frames::Part;
pub use proxy::Proxy;
pub use script::{Direction, Fault, Kind, Script, When};
pub use stats::ProxyStats;

pub use crate::scripted::{Delay, Nth};
