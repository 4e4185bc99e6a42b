//! A million turns, and whether the heap is larger behind them.
//!
//! Real call cores, outboxes and wire format in virtual time, without sockets (`tests/dst/quick.rs`). Prints the promise
//! beside what was measured, and ends the process with 1 when it is broken.
#[path = "../../dst/quick.rs"]
mod quick;

use std::process::exit;

use tokio::time::Instant;

use super::survive::promise;

/// Runs so many turns; ends the process with 1 when the heap has grown.
pub(crate) fn run(turns: u64) {
    println!("heap: {turns} turns, in two calls that do not end and in many short ones, in virtual time");
    let began = Instant::now();
    let mut kept = true;
    for part in quick::soak(turns) {
        println!("  {part}");
        let what = format!("bytes grown, {}", part.what);
        kept &=
            promise(&what, &format!("<= {}", quick::GROWTH), part.growth <= quick::GROWTH, &part.growth.to_string());
    }
    println!("  {:.0} turns a second\n", turns as f64 / began.elapsed().as_secs_f64());
    if !kept {
        println!("A PROMISE IS BROKEN");
        exit(1);
    }
}
