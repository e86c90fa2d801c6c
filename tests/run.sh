#!/usr/bin/env bash
# Everything CI runs. `tests/run.sh lint unit` runs some stages only. Ends with `N passed, N failed`.
set -uo pipefail
cd "$(dirname "$0")/.." || exit

export CARGO_TERM_COLOR=never RUST_BACKTRACE=1 INSTA_UPDATE=no CARGO_INCREMENTAL=0
passed=0 failed=0 broken=()
log=$(mktemp)
trap 'rm -f "$log"' EXIT

# Adds up what the test runners say, and remembers what failed.
count() {
    local p f
    p=$(grep -oE '^(test result:.* )?[0-9]+ passed' "$log" | grep -oE '[0-9]+ passed' | awk '{n += $1} END {print n + 0}')
    f=$(grep -E '^(test result:|[0-9]+ passed)' "$log" | grep -oE '[0-9]+ failed' | awk '{n += $1} END {print n + 0}')
    passed=$((passed + p)) failed=$((failed + f))
}

# A stage that runs tests.
tests() {
    local name=$1 status
    shift
    printf '\n== %s\n' "$name"
    "$@" 2>&1 | tee "$log"
    status=${PIPESTATUS[0]}
    local before=$failed
    count
    if [ "$status" != 0 ]; then
        broken+=("$name")
        [ "$failed" != "$before" ] || failed=$((failed + 1))
    fi
}

# A stage that is one check.
check() {
    local name=$1
    shift
    printf '\n== %s\n' "$name"
    if "$@"; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        broken+=("$name")
    fi
}

shell_files() {
    git ls-files -z '*.sh' '.ci/run' ':!images/apps' | xargs -0 shellcheck &&
        # What runs inside the samples is busybox ash, and sources files by the container's paths.
        git ls-files -z 'images/apps/*.sh' | xargs -0 shellcheck --shell=dash --exclude=SC1091,SC2016
}

stage_lint() {
    check 'set-up: lint' tests/setup.sh lint
    check 'format' cargo fmt --all --check
    check 'clippy' cargo clippy --quiet --locked --workspace --all-targets -- -D warnings
    check 'licences, bans, sources' cargo deny --offline --log-level error check bans licenses sources
    check 'shellcheck' shell_files
}
stage_build() {
    check 'build' cargo build --quiet --locked --workspace
}
# `--test` words for the test programs of some folders. With `-p` crates would be built again, with that package's features alone.
programs_of() {
    find "$@" -maxdepth 2 -path '*/tests/*.rs' -printf '--test\n%f\n' | sed 's/\.rs$//'
}
stage_unit() {
    local programs
    mapfile -t programs < <(programs_of agent cli cloud-api crates/*)
    tests 'unit' cargo test --quiet --locked --no-fail-fast --workspace --lib --bins "${programs[@]}"
}
stage_e2e() {
    check 'build' cargo build --quiet --locked --workspace
    # Each test starts a cloud and devices of its own, and waits for most of its time: three at a time suit two cores.
    tests 'end to end' cargo test --quiet --locked --no-fail-fast --workspace --test e2e -- \
        --test-threads="${COPAL_E2E_THREADS:-3}"
}
# What devices get is another build than the rest here is about. With the variable set it once died of the first error.
stage_shipped() {
    local agent
    check 'build' cargo build --quiet --locked --workspace
    printf '\n== build, as it is shipped\n'
    if ! agent=$(tests/shipped.sh); then
        failed=$((failed + 1)) broken+=('build, as it is shipped')
        return
    fi
    tests 'with the agent as it is shipped' env COPAL_AGENT="$agent" RUST_BACKTRACE=1 \
        cargo test --quiet --locked --workspace --test e2e -- --test-threads="${COPAL_E2E_THREADS:-3}" logs:: orders:: rollback:: terminal::
}
stage_os() {
    local programs
    mapfile -t programs < <(programs_of tests/os)
    check 'set-up: os' tests/setup.sh "os${COPAL_OS_FULL:+engine}"
    check 'build' cargo build --quiet --locked --workspace
    check 'operating system image' images/os/build.sh
    # Its agent is this machine's own build.
    [ "$(uname -m)" != x86_64 ] || check 'operating system image, GRUB' images/os/build.sh grub
    # One machine at a time: each emulates a processor. The long half runs with COPAL_OS_FULL=1 (`make test-os`).
    tests 'operating system updates' cargo test --quiet --locked --no-fail-fast --workspace "${programs[@]}" -- \
        --test-threads=1 ${COPAL_OS_FULL:+--include-ignored}
}
stage_browser() {
    check 'set-up: browser' tests/setup.sh browser
    check 'build' cargo build --quiet --locked --workspace
    tests 'browser' node tests/browser/run.mjs
}

# The Yocto layer, as far as it can be judged without the other layers; see yocto/README.md for the rest.
stage_yocto() {
    check 'set-up: yocto' tests/setup.sh yocto
    tests 'yocto' tests/yocto/run.sh
}

stage_demo() {
    check 'demo' env COPAL_DEMO_ONCE=1 tests/demo.sh
}

stages=("$@")
[ ${#stages[@]} -gt 0 ] || stages=(lint unit yocto e2e shipped browser os demo)
check 'set-up: engine' tests/setup.sh engine arm64
if [ "$failed" != 0 ]; then
    printf '\nwithout an engine most tests mean nothing; stopping here\n'
    printf '%d passed, %d failed\n' "$passed" "$failed"
    exit 1
fi
for stage in "${stages[@]}"; do
    declare -F "stage_$stage" >/dev/null || { echo "no such stage: $stage (lint, build, unit, yocto, e2e, shipped, browser, os, demo)" >&2; exit 2; }
    "stage_$stage"
done

[ ${#broken[@]} = 0 ] || printf '\nfailed: %s\n' "${broken[*]}"
printf '\n%d passed, %d failed\n' "$passed" "$failed"
[ "$failed" = 0 ]
