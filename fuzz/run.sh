#!/usr/bin/env bash
# Guided fuzzing of one target: fuzz/run.sh TARGET [options of libFuzzer, such as -max_total_time=600]. Wants a C++ compiler;
# a stable Rust is enough, since only the coverage of libFuzzer is used and none of the sanitizers.
set -euo pipefail
cd "$(dirname "$0")"
target=${1:?the name of a target: a folder of tests/fuzz/corpus}
shift
flags="--cfg fuzzing -Cpasses=sancov-module -Ccodegen-units=1 -Cdebug-assertions -Coverflow-checks"
for flag in level=4 inline-8bit-counters pc-table trace-compares; do
  flags+=" -Cllvm-args=-sanitizer-coverage-$flag"
done
host=$(rustc -vV | sed -n 's/^host: //p')
# With a target named, the flags are not for build scripts.
RUSTFLAGS="$flags" cargo build --quiet --locked --target "$host" --target-dir ../target/guided ${FUZZ_PROFILE:+--profile "$FUZZ_PROFILE"}
mkdir -p "../tests/fuzz/found/$target"
FUZZ_TARGET="$target" exec "../target/guided/$host/${FUZZ_PROFILE:-debug}/guided" -max_len=16384 \
  -artifact_prefix="../tests/fuzz/found/$target-" "$@" "../tests/fuzz/found/$target" "../tests/fuzz/corpus/$target"
