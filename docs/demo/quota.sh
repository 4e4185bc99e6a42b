#!/usr/bin/env bash
# One account with a small limit, three tenants and forty callers; a budget that ends a call; a route that fails over and comes back; and
# the bill. Runs on two simulated services that refuse whoever asks for too much: no key is needed, and nothing leaves this machine.
#
#   cargo build --release && docs/demo/quota.sh
set -euo pipefail
cd "$(dirname "$0")"

voxrelay=${VOXRELAY:-../../target/release/voxrelay}
work=$(mktemp -d)
export XDG_DATA_HOME="$work"
unset OPENAI_API_KEY OPENAI_BASE_URL VOXRELAY_TOKEN
running=()
leave() {
  kill "${running[@]}" 2>/dev/null || true
  wait
  rm -rf "$work"
}
trap leave EXIT

# start NAME COMMAND...: in the background, until it listens.
start() {
  local name=$1 line
  shift
  mkfifo "$work/$name.up"
  "$@" >"$work/$name.up" 2>>"$work/$name.log" &
  running+=("$!")
  pid=$!
  read -r line <"$work/$name.up"
  rm "$work/$name.up"
}
tokens() { sed -n 's/^counted: .* replies, \([0-9]*\) tokens.*/\1/p' "$work/$1.log" | awk '{ sum += $1 } END { print sum + 0 }'; }
refused() { sed -n 's/^counted: .*refused for limits: \([0-9]*\)/\1/p' "$work/$1.log" | awk '{ sum += $1 } END { print sum + 0 }'; }
stop() {
  kill "$1"
  wait "$1" || true
}

store=$work/voxrelay.db ledger=$work/ledger.db
{
  cat relay.toml
  printf '[store]\nfile = "%s"\n[ledger]\nfile = "%s"\n' "$store" "$ledger"
} >"$work/relay.toml"

# Two tenants whose callers wait on the line, one that only works through a list, and one that may spend little.
add() { "$voxrelay" tenant --config "$work/relay.toml" add "$@" 2>/dev/null | grep -o 'vrk_[A-Za-z0-9_-]*'; }
acme=$(add acme) bell=$(add bell) robots=$(add robots --class batch) trial=$(add trial --budget call.tokens=450)

start first "$voxrelay" sim --listen 127.0.0.1:9101 --config sim.toml
first=$pid
start second "$voxrelay" sim --listen 127.0.0.1:9102 --config sim.toml
second=$pid
start relay "$voxrelay" serve --config "$work/relay.toml" --listen 127.0.0.1:9100

# call TENANT KEY NUMBER [ARGUMENT...]: one caller; how long the answer took is kept.
call() {
  local tenant=$1 key=$2 number=$3 began=$EPOCHREALTIME
  shift 3
  VOXRELAY_TOKEN=$key "$voxrelay" say --text "Hello, this is caller $number. What is new?" --pace fast \
    --url ws://127.0.0.1:9100/v1/voice --out "$work/$tenant-$number.wav" "$@" >"$work/$tenant-$number.txt" 2>&1 &&
    awk -v a="$began" -v b="$EPOCHREALTIME" 'BEGIN { print b - a }' >"$work/$tenant-$number.took"
}
mean() { cat "$work/$1"-*.took | awk '{ sum += $1 } END { printf "%.1f", sum / NR }'; }
count() { find "$work" -name "$1-*.took" | wc -l; }

echo "Forty callers at once: acme 20, bell 10, robots 10 (class batch)"
callers=()
for number in $(seq 10); do call robots "$robots" "$number" & callers+=("$!"); done
for number in $(seq 20); do call acme "$acme" "$number" & callers+=("$!"); done
for number in $(seq 10); do call bell "$bell" "$number" & callers+=("$!"); done
wait "${callers[@]}"
for tenant in bell acme robots; do
  echo "  $tenant: $(count $tenant) answered, after $(mean $tenant) s on average"
done

echo "A call that may use 450 tokens"
call trial "$trial" 1 || sed -n 's/^/  /p' "$work/trial-1.txt"

echo "The first account goes away, and comes back"
call acme "$acme" before --agent careful && echo "  before: answered"
stop "$first"
call acme "$acme" without --agent careful && echo "  without it: answered"
start first "$voxrelay" sim --listen 127.0.0.1:9101 --config sim.toml
first=$pid
sleep 2
call acme "$acme" after --agent careful && echo "  with it again: answered"
curl -s http://127.0.0.1:9100/metrics | grep -E '^voxrelay_(turns_delayed_total|turns_refused_total|route_opened_total)' | sed 's/^/  /' || true

stop "$first"
stop "$second"
stop "${running[2]}"
echo "What it came to, by account"
"$voxrelay" usage --ledger "$ledger" --by route --cost | sed 's/^/  /'
bill=$("$voxrelay" usage --ledger "$ledger" --by route --csv)
billed=$(awk -F, 'NR == 1 { for (i = 1; i <= NF; i++) at[$i] = i; next } { sum += $at["total_tokens"] } END { print sum + 0 }' <<<"$bill")
echo "tokens in the ledger: $billed; counted by the services: $(($(tokens first) + $(tokens second)))"
echo "refused by the services: $(($(refused first) + $(refused second)))"
