#!/usr/bin/env bash
# Prints the numbers Copal holds itself to, each beside a peer or a limit. Nothing is asserted: machines differ.
# The peer for an update is the distribution's docker-compose, doing the same change on the same engine in the same run.
set -euo pipefail
cd "$(dirname "$0")/../.."
tests/setup.sh engine bench
triple=$(rustc -vV | sed -n 's/^host: //p')
# The agent as it is shipped: static, and small rather than fast. crt-static must not reach build scripts: hence --target.
echo 'building (release; some minutes the first time)' >&2
RUSTFLAGS='-C target-feature=+crt-static' cargo build --quiet --locked --profile small -p copal-agent --target "$triple"
cargo build --quiet --locked --release -p copal-cloud -p copal -p copal-bench
COPAL_AGENT=$PWD/target/$triple/small/copal-agent exec target/release/copal-bench "$@"
