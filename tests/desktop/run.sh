#!/usr/bin/env bash
# `voxrelay talk` on real sound streams, without a sound card: PulseAudio's null devices. Builds the feature `desktop` and
# runs the cases of tests/desktop/main.rs; words on the command line choose cases by their names.
set -euo pipefail
cd "$(dirname "$0")/../.."

command -v cargo >/dev/null || PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"

# The headers to build with, the server, its tools, and the plugin that takes ALSA to it.
packages=(libasound2-dev pkg-config pulseaudio pulseaudio-utils libasound2-plugins)
missing=()
for package in "${packages[@]}"; do
  [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)" = installed ] || missing+=("$package")
done
if [ "${#missing[@]}" -gt 0 ]; then
  root=()
  [ "$(id -u)" = 0 ] || root=(sudo -n)
  if ! command -v apt-get >/dev/null || ! "${root[@]}" true 2>/dev/null; then
    printf 'not here, and nobody may install it: %s (Debian packages)\n' "${missing[*]}" >&2
    exit 1
  fi
  "${root[@]}" apt-get update -qq
  "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

cargo test --locked --features desktop --test desktop -- "$@"
