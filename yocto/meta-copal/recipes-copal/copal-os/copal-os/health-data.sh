#!/bin/sh
# A trial is well only where the data partition is mounted, and can be written. Exit 0: well.
set -eu
data=${1:-/data}
if [ -z "${1:-}" ] && ! mountpoint -q "$data"; then
    echo "$data is not mounted"
    exit 1
fi
probe=$data/.copal-health
if ! { printf 'well\n' >"$probe" && sync "$probe"; }; then
    echo "$data cannot be written: full, or read-only after an error"
    exit 1
fi
rm -f "$probe"
