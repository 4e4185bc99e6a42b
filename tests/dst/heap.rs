//! The heap does not grow with the turns: some here, a million in the bench (`cargo bench --bench calls -- heap`).
use crate::quick::{GROWTH, Soaked, soak};

/// Fewer turns, less growth: one byte for each turn would be seen.
const LESS: i64 = GROWTH / 16;

#[test]
fn no_call_keeps_what_it_does_not_need() {
    let parts = soak(20_000);
    for part in &parts {
        println!("{part}");
        let Soaked { what, growth, tools, rows, turns, .. } = part;
        assert!(*growth <= LESS, "{part}");
        assert!(rows >= turns && *tools > turns / 10, "{what}: too little happened: {part}");
    }
    for part in parts.iter().take(2) {
        assert!(part.warm > 64_000, "a conversation was kept: {part}");
        assert!(part.rotations > 10 && part.sessions_lost > 10, "{part}");
    }
}
