//! What comes from outside, by the thousand: whatever it is, nothing panics and what each target promises holds.
//!
//! A target ([`targets`]) is a function of bytes. `cargo test` replays the corpus (`tests/fuzz/corpus/TARGET/`) and the same
//! seeded mutations of it each time; the long run is by hand, with a seed of its own:
//! `FUZZ_SECONDS=600 FUZZ_TARGET=openai cargo test --release --test fuzz -- --ignored --nocapture`.
//! How to replay a failure and add a target: CONTRIBUTING.md.
#[cfg(test)]
mod engine;
#[cfg(test)]
mod targets;

/// One test a target, so that each is named and they run beside each other.
macro_rules! tests_of {
    ($($target:ident),+ $(,)?) => {
        $(
            #[test]
            fn $target() {
                engine::check(stringify!($target));
            }
        )+

        #[test]
        fn every_target_has_a_test() {
            let tested = [$(stringify!($target)),+];
            assert!(targets::TARGETS.iter().map(|target| target.name).eq(tested), "the order is the table's");
        }
    };
}

#[cfg(test)]
mod tests {
    use super::{engine, targets};

    tests_of!(
        thin,
        openai,
        query,
        token,
        config,
        faults,
        waits,
        upstream,
        beta,
        track,
        socket,
        audiosocket,
        outbox,
        chunks,
        resample,
        uplink,
        downlink,
        opus,
        call,
    );

    #[test]
    #[ignore = "as long as FUZZ_SECONDS says: by hand"]
    fn for_long() {
        engine::run_long();
    }
}
