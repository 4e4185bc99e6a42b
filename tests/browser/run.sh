#!/usr/bin/env bash
# The page and its client library in a real browser with a fake microphone, and in Node. Arguments choose cases by a part of
# their names. Wants the debug build of voxrelay (or $VOXRELAY), npm and Chromium; installs what it can (as root, where there
# is apt-get) and says what it cannot. PICTURES=DIR saves screenshots there.
set -euo pipefail
cd "$(dirname "$0")/../.."
VOXRELAY="$(realpath -m "${VOXRELAY:-${CARGO_TARGET_DIR:-target}/debug/voxrelay}")"
export VOXRELAY
cd tests/browser
PYTHON_PACKAGES="websockets==15.0.1"

die() {
  printf '%s\n' "$*" >&2
  exit 1
}

# package COMMAND...: whether one of the commands is there, after an attempt to install the package.
package() {
  local name=$1 found
  shift
  for found in "$@"; do command -v "$found" && return; done
  if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
    echo "installing $name" >&2
    apt-get update -qq >&2
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$name" >/dev/null
  fi
  for found in "$@"; do command -v "$found" && return; done
  return 1
}

[ -x "$VOXRELAY" ] || die "no $VOXRELAY: build it first (cargo build), or say where it is with VOXRELAY"
package npm npm >/dev/null || die "no npm: install Node.js and npm (Debian: apt-get install npm)"
CHROMIUM="${CHROMIUM:-$(package chromium chromium chromium-browser google-chrome)}" ||
  die "no Chromium: install it (Debian: apt-get install chromium), or say where it is with CHROMIUM"
export CHROMIUM

# The packages are fetched once for each lock file.
stamp=node_modules/.installed
if ! cmp -s package-lock.json "$stamp"; then
  npm ci --no-audit --no-fund --loglevel=error
  cp package-lock.json "$stamp"
fi
# The examples in Python want one package.
if [ "$(cat .venv/.installed 2>/dev/null)" != "$PYTHON_PACKAGES" ]; then
  package python3 python3 >/dev/null || die "no Python: install it (Debian: apt-get install python3 python3-venv)"
  rm -rf .venv
  python3 -m venv .venv 2>/dev/null || {
    package python3-venv >/dev/null || true
    python3 -m venv .venv || die "Python cannot make a venv: install what it needs (Debian: apt-get install python3-venv)"
  }
  .venv/bin/pip install --quiet --disable-pip-version-check $PYTHON_PACKAGES
  echo "$PYTHON_PACKAGES" >.venv/.installed
fi

# The package brings its own Node: the client needs 22 or newer, which is newer than many systems have.
exec node_modules/.bin/node main.mjs "$@"
