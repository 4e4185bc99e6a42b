#!/usr/bin/env bash
# Every check of the project, from a fresh clone: format, lints, tests, documentation, the commands of the README, real SDKs and
# a real browser. Wants Rust (with rustfmt and clippy) and a C compiler; installs what it can and says what it cannot.
set -euo pipefail
cd "$(dirname "$0")/.."

# A shell that is no login shell may not know where rustup put cargo.
command -v cargo >/dev/null || PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
export CARGO_TERM_COLOR="${CARGO_TERM_COLOR:-auto}"
# A clean machine compiles everything once: what speeds up the second time only costs.
[ -z "${CI:-}" ] || export CARGO_INCREMENTAL=0
# Nothing here may speak to a real service, or depend on who runs it.
unset OPENAI_API_KEY OPENAI_BASE_URL VOXRELAY_TOKEN RUST_LOG

say() { printf '\n==> %s\n' "$*"; }
die() {
  printf '\n%s\n' "$*" >&2
  exit 1
}

# step NAME COMMAND...: runs it and says how long it took. A command that fails ends the script, also in a function (so
# nothing here may stand behind `||` or `if`, where bash would go on); the trap then says which step it was.
summary="" current="start" began=0
step() {
  current=$1 began=$SECONDS
  shift
  say "$current: $*"
  "$@"
  summary+="$(printf '%5d s  %s' $((SECONDS - began)) "$current")"$'\n'
}
scratch=$(mktemp -d)
leave() {
  local code=$?
  rm -rf "$scratch"
  [ "$code" = 0 ] || printf '\nFAILED: %s (exit code %d) after %d s\n' "$current" "$code" $((SECONDS - began)) >&2
}
trap leave EXIT
# Whoever runs this may have tenants of their own.
export XDG_DATA_HOME="$scratch/data"

tools() {
  command -v cargo >/dev/null || die "no cargo: install Rust 1.89 or newer, as https://rustup.rs says"
  if ! command -v cc >/dev/null; then
    if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
      apt-get update -qq
      DEBIAN_FRONTEND=noninteractive apt-get install -y -qq gcc libc6-dev
    else
      die "no C compiler: install gcc and the C library's headers (Debian: apt-get install gcc libc6-dev)"
    fi
  fi
  local part
  for part in fmt:rustfmt clippy:clippy; do
    cargo "${part%:*}" --version >/dev/null 2>&1 || {
      command -v rustup >/dev/null || die "no cargo ${part%:*}: install the Rust component ${part#*:}"
      rustup component add "${part#*:}"
    }
  done
  cargo --version
  cc --version
}

# The lines that count are kept, to stand at the end too.
tests() {
  # Many of them wait for promised times on real sockets: more at once than there are cores keep those busy. One failure
  # does not hide the others.
  RUST_TEST_THREADS="${RUST_TEST_THREADS:-4}" cargo test --locked --no-fail-fast 2>&1 | tee "$scratch/tests"
}

# Microphone and loudspeaker: the feature that needs a sound library, on real streams. The script brings what it needs.
desktop() {
  if [ "$(uname)" != Linux ]; then
    echo "skipped: its devices are PulseAudio's, on Linux"
    return
  fi
  tests/desktop/run.sh
  cargo clippy --locked --features desktop --all-targets -- -D warnings
}

# Licences and banned crates. Advisories need the network and are checked by the public workflow.
supply_chain() {
  if cargo deny --version >/dev/null 2>&1; then
    cargo deny --offline check bans licenses sources
  else
    echo "skipped: cargo-deny is not here (cargo install --locked cargo-deny)"
  fi
}

# The README's first command, as the debug build that the tests have made, and what the other commands say to nonsense.
commands() {
  local voxrelay="${CARGO_TARGET_DIR:-target}/debug/voxrelay" code=0
  "$voxrelay" say assets/hello.wav --out "$scratch/reply.wav"
  # Over two seconds at 24 kHz: no empty file.
  [ "$(wc -c <"$scratch/reply.wav")" -gt 96000 ] || die "the reply that was saved is too short"
  "$voxrelay" say "$scratch/no-such-file.wav" || code=$?
  [ "$code" = 2 ] || die "a file that does not exist: exit code $code instead of 2"
  "$voxrelay" check --config assets/voxrelay.toml
  # Forty callers on one small account; it says of each promise whether it is kept.
  VOXRELAY=$(realpath "$voxrelay") docs/demo/quota.sh
}

step "tools" tools
step "format" cargo fmt --check
step "lints" cargo clippy --locked --all-targets -- -D warnings
step "tests" tests
step "desktop" desktop
# For those who work on it, so links to private parts are meant.
step "documentation" env RUSTDOCFLAGS="-Dwarnings -Arustdoc::private_intra_doc_links" \
  cargo doc --locked --no-deps --document-private-items
step "commands" commands
step "SDKs" tests/sdk/run.sh
step "browser" tests/browser/run.sh
step "supply chain" supply_chain
printf '\n'
grep -E '^test result:' "$scratch/tests"
printf '\nAll checks passed in %d s:\n%s' "$SECONDS" "$summary"
