#!/bin/sh
# Takes copal.json from the card's first partition, which any computer can write, to the data partition.
#
# The first partition is mounted for this alone, and read-only: autoboot.txt or the boot script stand there, and FAT does not
# survive a power cut in a write. So the file stays where it is; its enrolment token should be one that expires.
#
#   copal-provision [disk.conf] [folder on the data partition]
set -eu

MAX=262144

say() { printf 'copal-provision: %s\n' "$*"; }

# Copies $1 over $2 if it differs; a cut leaves the old file or the new one.
take() {
    size=$(wc -c <"$1")
    if [ "$size" -gt "$MAX" ]; then
        say "copal.json has $size bytes, more than $MAX: not taken; make it again with 'copal device config'"
        return 1
    fi
    if [ -f "$2" ] && cmp -s "$1" "$2"; then
        return 0
    fi
    # It holds the enrolment token: for root only.
    (umask 077 && cat "$1" >"$2.new")
    sync "$2.new"
    mv "$2.new" "$2"
    sync "$(dirname "$2")"
    say "took copal.json from the first partition"
}

main() {
    # shellcheck source=/dev/null
    . "${1:-/etc/copal/disk.conf}"
    to=${2:-/data/os}
    mkdir -p "$to"
    if [ -d "$FIRST" ]; then
        # A folder stands in for the partition in tests.
        from=$FIRST
    else
        from=/run/copal-first
        mkdir -p "$from"
        mount -t vfat -o ro,nosuid,nodev,noexec,umask=077 "$FIRST" "$from"
        trap 'umount "$from"' EXIT
    fi
    if [ -f "$from/copal.json" ]; then
        take "$from/copal.json" "$to/copal.json"
    elif [ ! -f "$to/copal.json" ]; then
        say "no copal.json on the first partition: make it with 'copal device config <fleet>' and copy it there"
    fi
}

main "$@"
