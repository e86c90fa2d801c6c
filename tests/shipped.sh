#!/usr/bin/env bash
# Builds the agent as it is shipped: static, small rather than fast, without tables for unwinding. Prints where it is.
set -euo pipefail
cd "$(dirname "$0")/.."
triple=$(rustc -vV | sed -n 's/^host: //p')
# RUSTFLAGS would take the place of what the file says.
env -u RUSTFLAGS -u CARGO_ENCODED_RUSTFLAGS cargo --config agent/static.toml \
    build --quiet --locked --profile small -p copal-agent --target "$triple"
realpath "${CARGO_TARGET_DIR:-target}/$triple/small/copal-agent"
