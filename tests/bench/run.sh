#!/usr/bin/env bash
# Prints the numbers Copal holds itself to, each beside a peer or a limit. Nothing is asserted: machines differ.
# The peer for an update is the distribution's docker-compose, doing the same change on the same engine in the same run.
#
#   tests/bench/run.sh [size] [plan] [poll] [idle] [mend] [update] [hint] [terminal] [fleet] [fleet10k]     (no word: all)
#
# hint: from `copal env set` to the hint and to the running container, on a real device. terminal: memory of its agent with one open.
# fleet, fleet10k: 2,000 and 10,000 pretended devices (COPAL_BENCH_DEVICES: another number than 2,000).
#
# Ends with 1 where a measurement could not be made.
set -euo pipefail
cd "$(dirname "$0")/../.."
tests/setup.sh engine bench
echo 'building (release; some minutes the first time)' >&2
COPAL_AGENT=$(tests/shipped.sh)
cargo build --quiet --locked --release -p copal-cloud -p copal -p copal-bench
target=${CARGO_TARGET_DIR:-target}
export COPAL_AGENT
# Each of ten thousand channels is a file on either side, and so are its device's connections by HTTP.
ulimit -n 65536 2>/dev/null || ulimit -n "$(ulimit -Hn)"
exec "$target/release/copal-bench" "$@"
