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
export LC_ALL=C
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
# sim NAME PORT SEED: a service; another seed gives its answers other ids, as those of two real services have.
sim() {
  { echo "seed = $3" && cat sim.toml; } >"$work/$1.toml"
  start "$1" "$voxrelay" sim --listen "$host:$2" --config "$work/$1.toml"
}
tokens() { sed -n 's/^counted: .* replies, \([0-9]*\) tokens.*/\1/p' "$work/$1.log" | awk '{ sum += $1 } END { print sum + 0 }'; }
refused() { sed -n 's/^counted: .*refused for limits: \([0-9]*\)/\1/p' "$work/$1.log" | awk '{ sum += $1 } END { print sum + 0 }'; }
stop() {
  kill "$1"
  wait "$1" || true
}

host=127.0.0.1 port=${PORT:-9100}
store=$work/voxrelay.db ledger=$work/ledger.db
"$voxrelay" tenant --store "$store" key >"$work/trial.key" 2>&1
{
  sed "s/:9101/:$((port + 1))/; s/:9102/:$((port + 2))/" relay.toml
  printf '[store]\nfile = "%s"\n[ledger]\nfile = "%s"\n' "$store" "$ledger"
  printf '[tenants.trial.budget]\nfarewell = "That is all for today. Goodbye!"\ncall.tokens = 450\n'
  printf '[[tenants.trial.keys]]\nlabel = "demo"\n%s\n' "$(grep hash "$work/trial.key")"
} >"$work/relay.toml"

# Two tenants whose callers wait on the line, one that only works through a list, and one that may spend little.
add() { "$voxrelay" tenant --config "$work/relay.toml" add "$@" 2>/dev/null | grep -o 'vrk_[A-Za-z0-9_-]*'; }
acme=$(add acme) bell=$(add bell) robots=$(add robots --class batch) trial=$(grep -o 'vrk_[A-Za-z0-9_-]*' "$work/trial.key")

sim first $((port + 1)) 1
first=$pid
sim second $((port + 2)) 2
second=$pid
start relay "$voxrelay" serve --config "$work/relay.toml" --listen "$host:$port"
relay=$pid

# call TENANT KEY NUMBER [ARGUMENT...]: one caller; how long the answer took is kept.
call() {
  local tenant=$1 key=$2 number=$3 began=$EPOCHREALTIME
  shift 3
  VOXRELAY_TOKEN=$key "$voxrelay" say --text "Hello, this is caller $number. What is new?" --pace fast --wait 120 \
    --url "ws://$host:$port/v1/voice" --out "$work/$tenant-$number.wav" "$@" >"$work/$tenant-$number.txt" 2>&1 &&
    awk -v a="$began" -v b="$EPOCHREALTIME" 'BEGIN { print b - a }' >"$work/$tenant-$number.took"
}
mean() { cat "$work/$1"-*.took | awk '{ sum += $1 } END { printf "%.1f", sum / NR }'; }
last() { sort -n "$work/$1"-*.took | tail -1; }
count() { find "$work" -name "$1-*.took" | wc -l; }

failed=0
# check WHAT COMMAND...: whether it is as promised.
check() {
  local what=$1
  shift
  if "$@" >/dev/null; then echo "  ok: $what"; else
    echo "  NOT SO: $what"
    failed=1
  fi
}
less() { awk -v a="$1" -v b="$2" 'BEGIN { exit !(a < b) }'; }
answered() {
  local number=$1
  call acme "$acme" "$number" --agent careful || cat "$work/acme-$number.txt"
  [ -f "$work/acme-$number.took" ]
}

echo "Forty callers at once: acme 20, bell 10, robots 10 (class batch)"
callers=()
for number in $(seq 10); do call robots "$robots" "$number" & callers+=("$!"); done
for number in $(seq 20); do call acme "$acme" "$number" & callers+=("$!"); done
for number in $(seq 10); do call bell "$bell" "$number" & callers+=("$!"); done
wait "${callers[@]}" || true
for tenant in bell acme robots; do
  echo "  $tenant: $(count $tenant) answered, after $(mean $tenant) s on average"
done
check "everybody was answered" [ "$(count bell) $(count acme) $(count robots)" = "10 20 10" ]
check "who asks for less waits less: bell before acme" less "$(mean bell)" "$(mean acme)"
check "nobody on the line waits for a robot: the last of all is one" less "$(last acme)" "$(last robots)"

echo "A call that may use 450 tokens, and says goodbye"
call trial "$trial" 1 || true
grep -E 'notice|agent:|error' "$work/trial-1.txt" | sed 's/^ */    /'
check "it ended politely" grep -q 'budget_exhausted' "$work/trial-1.txt"
check "after its farewell" [ "$(grep -c 'agent:' "$work/trial-1.txt")" -ge 2 ]

echo "The first account goes away, and comes back"
check "a call by tier is answered" answered before
stop "$first"
check "and without the first account" answered without
sim first $((port + 1)) 3
first=$pid
sleep 2
check "and with it again" answered after

kill "$relay" && wait "$relay" || true
stop "$first"
stop "$second"
echo "What it came to"
"$voxrelay" usage --ledger "$ledger" --by route --cost | sed 's/^/  /'
billed=$("$voxrelay" usage --ledger "$ledger" --by route --csv |
  awk -F, 'NR == 1 { for (i = 1; i <= NF; i++) at[$i] = i; next } { sum += $at["total_tokens"] } END { print sum + 0 }')
echo "  tokens in the ledger: $billed, counted by the services: $(tokens first) and $(tokens second)"
check "the bill is the services' own count" [ "$billed" = "$(($(tokens first) + $(tokens second)))" ]
check "the second account has answered while the first was gone" [ "$(tokens second)" -gt 0 ]
check "the services have refused nobody" [ "$(($(refused first) + $(refused second)))" = 0 ]
exit $failed
