#!/usr/bin/env bash
# Real SDKs, pinned, from their registries, against the relay on its embedded simulator: plain, and over TLS for the SDK that
# dials nothing else, without tenants and with one. Arguments choose cases by a part of their names. Wants the debug build of voxrelay (or $VOXRELAY),
# Python 3.11 or newer, and npm; installs what it can (as root, where there is apt-get) and says what it cannot.
set -euo pipefail
cd "$(dirname "$0")/../.."
VOXRELAY="$(realpath -m "${VOXRELAY:-${CARGO_TARGET_DIR:-target}/debug/voxrelay}")"
CLIP="$PWD/assets/hello.wav"
cd tests/sdk

die() {
  printf '%s\n' "$*" >&2
  exit 1
}

# install PACKAGE...: where that is possible without asking anybody.
install() {
  command -v apt-get >/dev/null && [ "$(id -u)" = 0 ] || return 0
  echo "installing $*"
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

# want COMMAND PACKAGE...: the command, after an attempt to install it.
want() {
  local command=$1
  shift
  command -v "$command" >/dev/null || install "$@"
  command -v "$command" >/dev/null || die "no $command: install it (Debian: apt-get install $*)"
}

[ -x "$VOXRELAY" ] || die "no $VOXRELAY: build it first (cargo build), or say where it is with VOXRELAY"
want npm npm
want python3 python3 python3-venv

# Both are fetched once for each list.
if ! cmp -s package-lock.json node_modules/.installed; then
  npm ci --no-audit --no-fund --loglevel=error
  cp package-lock.json node_modules/.installed
fi
if ! cmp -s requirements.txt .venv/.installed; then
  rm -rf .venv
  python3 -m venv .venv 2>/dev/null || {
    install python3-venv
    python3 -m venv .venv || die "Python cannot make a venv: install what it needs (Debian: apt-get install python3-venv)"
  }
  .venv/bin/pip install --quiet --disable-pip-version-check --requirement requirements.txt
  cp requirements.txt .venv/.installed
fi

scratch=$(mktemp -d)
relays=()
leave() {
  [ "${#relays[@]}" = 0 ] || kill "${relays[@]}" 2>/dev/null || true
  rm -rf "$scratch"
}
trap leave EXIT

# serve NAME OPTION...: a relay on a free port; its address is in $scratch/NAME.
serve() {
  local name=$1
  shift
  XDG_DATA_HOME="$scratch" "$VOXRELAY" serve --listen 127.0.0.1:0 "$@" >"$scratch/$name" 2>"$scratch/$name.log" &
  relays+=($!)
  for _ in $(seq 200); do
    grep -q '^listening on ' "$scratch/$name" && return
    kill -0 "${relays[-1]}" 2>/dev/null || die "the relay did not start: $(cat "$scratch/$name.log")"
    sleep 0.05
  done
  die "the relay does not listen"
}
serve plain
serve tls --tls-self-signed
# With a tenant nobody comes in without a credential.
export TENANT_KEY
TENANT_KEY=$("$VOXRELAY" tenant add acme --store "$scratch/tenants.db" --scopes call,token,secret,admin,text 2>"$scratch/tenant.log") ||
  die "there is no tenant: $(cat "$scratch/tenant.log")"
serve tenant --store "$scratch/tenants.db"
serve tenant-tls --store "$scratch/tenants.db" --tls-self-signed
address() { sed -n 's/^listening on //p' "$scratch/$1"; }
export CLIP
export BASE_URL="$(address plain)/v1" TLS_BASE_URL="$(address tls)/v1"
export TENANT_BASE_URL="$(address tenant)/v1" TENANT_TLS_BASE_URL="$(address tenant-tls)/v1"
export NODE_EXTRA_CA_CERTS="$scratch/voxrelay/self-signed-127.0.0.1.pem"

cases() {
  .venv/bin/python openai_python.py "$@" || true
  BASE_URL="$TLS_BASE_URL" node_modules/.bin/node openai_node.mjs "$@" || true
  .venv/bin/python tenant_python.py "$@" || true
  BASE_URL="$TENANT_TLS_BASE_URL" node_modules/.bin/node tenant_node.mjs "$@" || true
  node_modules/.bin/node agents.mjs "$@" || true
  node_modules/.bin/node beta_js.mjs "$@" || true
  .venv/bin/python docs.py "$@" || true
}
cases "$@" 2>&1 | tee "$scratch/cases"
passed=$(grep -c '^ok ' "$scratch/cases" || true)
failed=$(grep -c '^FAILED ' "$scratch/cases" || true)
# A client that ends before its cases do has said so in no line.
[ "$#" -gt 0 ] || [ $((passed + failed)) -ge 54 ] || { echo "FAILED  only $((passed + failed)) of 54 cases ran"; failed=$((failed + 1)); }
printf '%d passed, %d failed\n' "$passed" "$failed"
[ "$failed" = 0 ] && [ "$passed" -gt 0 ]
