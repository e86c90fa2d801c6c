#!/bin/sh
# Makes the data partition at the first boot of a device, and touches it never again.
#
# The image carries a mark in a raw block of the disk, before the first partition (12 MiB). Only where it stands is the
# partition grown to the disk's end and formatted; the mark is wiped last, so a power cut in between begins again. A partition
# that cannot be mounted is left as it is: it may be a file system that somebody can still rescue.
#
#   copal-data [disk.conf]      DATA: the partition. Where it is no partition the kernel knows (a file, in tests), DISK and
#                               NUMBER say of which disk it is which partition.
set -eu

MARK=COPAL-DATA-VIRGIN
MARK_BLOCK=3072

say() { printf 'copal-data: %s\n' "$*"; }
fail() {
    printf 'copal-data: %s\n' "$*" >&2
    exit 1
}

marked() { [ "$(dd if="$1" bs=4096 skip=$MARK_BLOCK count=1 2>/dev/null | head -c ${#MARK} | tr -d '\000')" = $MARK ]; }

# Grows partition $2 of disk $1 to the disk's end, and the extended partition around it first.
grow() {
    # An image on a larger disk: GPT's second header moves to the end. An MBR has none, and sfdisk says so.
    sfdisk --quiet --relocate gpt-bak-std "$1" 2>/dev/null || true
    if [ "$2" -ge 5 ]; then
        # One line a partition, `/dev/x4 : start= …, size= …, type=f`; a GPT has no such type.
        around=$(sfdisk --dump "$1" | sed -n 's/^[^:]*[^0-9:]\([0-9]\{1,\}\) : .*type=\(5\|f\|0f\|85\)$/\1/p' | head -n 1)
        if [ -n "$around" ]; then
            printf ', +\n' | sfdisk --quiet --force --no-reread -N "$around" "$1"
        fi
    fi
    printf ', +\n' | sfdisk --quiet --force --no-reread -N "$2" "$1"
    sync
    [ ! -b "$1" ] || partx --update --nr "$2" "$1"
}

main() {
    DISK='' NUMBER=''
    # shellcheck source=/dev/null
    . "${1:-/etc/copal/disk.conf}"
    tries=0
    until [ -e "$DATA" ]; do
        tries=$((tries + 1))
        [ "$tries" -le 60 ] || fail "there is no $DATA after 30 s; the device goes on without its data"
        sleep 0.5
    done
    part=$(readlink -f "$DATA")
    entry=/sys/class/block/${part##*/}
    if [ -e "$entry/partition" ]; then
        NUMBER=$(cat "$entry/partition")
        DISK=/dev/$(basename "$(readlink -f "$entry/..")")
    fi
    [ -n "$DISK" ] || fail "$part is no partition the kernel knows; nothing is written"
    marked "$DISK" || return 0
    say "first boot: making $part"
    if [ -n "$NUMBER" ]; then
        grow "$DISK" "$NUMBER" || say "$part could not be grown; it is used as large as it is"
    fi
    mke2fs -q -F -t ext4 -m 1 -L copal-data -E lazy_itable_init=1 "$part" || fail "$part could not be formatted"
    sync
    dd if=/dev/zero of="$DISK" bs=4096 seek=$MARK_BLOCK count=1 conv=notrunc,fsync 2>/dev/null ||
        fail "the mark of $DISK cannot be wiped: the next boot would format $part again, so it is not mounted"
    marked "$DISK" && fail "the mark of $DISK is still there after it was wiped: $part is not mounted"
    # udev looks at the disk anew after each of these writes, and while it does the partition comes and goes for PID 1: mounted
    # by then, it would be unmounted again, and all that needs it stopped.
    if [ -b "$DISK" ] && command -v udevadm >/dev/null 2>&1; then
        udevadm settle --timeout=60 || say "udev is not done with $DISK yet"
    fi
    say "made $part"
}

main "$@"
