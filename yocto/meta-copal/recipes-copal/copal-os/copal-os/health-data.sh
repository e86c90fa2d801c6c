#!/bin/sh
# A trial is well only where the data partition is mounted, and can be written. Exit 0: well.
#
# It looks at the agent's own folder of it: the agent runs this, and the rest of the partition is read-only to the agent.
set -eu
data=${1:-/var/lib/copal}
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
