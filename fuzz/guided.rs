//! One target of `tests/fuzz`, chosen by `FUZZ_TARGET`, under libFuzzer.
#![no_main]
#[path = "../tests/fuzz/targets/mod.rs"]
mod targets;

use std::sync::LazyLock;

static TARGET: LazyLock<&targets::Target> = LazyLock::new(|| {
    let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
    let known = || targets::TARGETS.iter().map(|target| target.name).collect::<Vec<_>>().join(", ");
    let found = targets::TARGETS.iter().find(|target| target.name == name);
    found.unwrap_or_else(|| panic!("FUZZ_TARGET: found `{name}`; allowed: {}", known()))
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (TARGET.run)(bytes));
