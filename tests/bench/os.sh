#!/usr/bin/env bash
# What an OS update costs, beside the peers the distribution has: bytes, requests, CPU seconds, peak memory, bytes written.
# Two root images a point release apart (os-pair.sh). Needs root. Nothing is asserted.
#
# Peers: rauc (the distribution's 1.8 cannot stream; its bundle's size is what it would fetch, the figures of its newer
# version over HTTP are quoted as such), casync, zstd --patch-from, xdelta3.
set -euo pipefail
cd "$(dirname "$0")/../.."
tests/setup.sh osbench
tests/bench/os-pair.sh
echo 'building (release; some minutes the first time)' >&2
cargo build --quiet --locked --release -p copal
cargo build --quiet --locked --release -p copal-agent --example os_install
target=${CARGO_TARGET_DIR:-target}
copal=$target/release/copal install=$target/release/examples/os_install
pair=target/os-pair a=target/os-pair/a.img b=target/os-pair/b.img
work=$(mktemp -d "$PWD/$pair/bench.XXXXXX")
trap 'rm -rf "$work"' EXIT

# Runs a command; leaves its CPU seconds in $cpu and its peak memory in MB in $rss.
timed() {
    /usr/bin/time -o "$work/time" -f '%U %S %M' "$@" >"$work/out" 2>"$work/err" || { cat "$work/err" >&2; return 1; }
    read -r user system kib <"$work/time"
    cpu=$(awk "BEGIN {printf \"%.1f\", $user + $system}") rss=$(awk "BEGIN {printf \"%.0f\", $kib / 1000}")
}
mb() { awk "BEGIN {printf \"%.1f\", $1 / 1e6}"; }
size() { stat -c %s "$1"; }
line() { printf '%-44s %10s %9s %9s %9s %9s %9s\n' "$@"; }

line 'method' 'fetch MB' 'requests' 'make s' 'apply s' 'RSS MB' 'write MB'

# Ours. The installer runs alone in a process; its memory is what an installation adds to, and shares with, the agent.
bundle() { # name, options of create
    local name=$1
    shift
    timed "$copal" os bundle create --fleet-id 000102030405060708090a0b0c0d0e0f --rootfs "$b" --device-type bench \
        --arch amd64 --version 2.0.0 "$@" -o "$work/$name.copal" --force
    made=$cpu
}
ours() { # label, bundle, old slot or -, target before
    cp --sparse=always "$4" "$work/slot.img"
    timed "$install" "$work/$2.copal" "$work/slot.img" "$3" "$work/state"
    cmp -s "$work/slot.img" "$b" || { echo "$1: the slot is not the image" >&2; exit 1; }
    read -r fetched requests written <"$work/out"
    line "$1" "$(mb "$fetched")" "$requests" "$made" "$cpu" "$rss" "$(mb "$written")"
    rm -rf "$work/slot.img" "$work/state"
}
truncate -s "$(size "$b")" "$work/empty.img"
bundle plain
ours 'copal, full (nothing to reuse)' plain - "$work/empty.img"
ours 'copal, reuse, bundle made without --base' plain "$a" "$work/empty.img"
bundle based --base "$a"
ours 'copal, full, of the bundle made with --base' based - "$work/empty.img"
ours 'copal, reuse, bundle made with --base' based "$a" "$work/empty.img"
ours 'copal, same, over an older slot' based "$a" "$a"
ours 'copal, installed already' based "$a" "$b"

timed zstd -q -9 --long=27 -T1 "$b" -o "$work/b.zst"
line 'zstd -9 --long=27, full' "$(mb "$(size "$work/b.zst")")" 1 "$cpu" - - -

openssl req -x509 -newkey rsa:2048 -nodes -keyout "$work/key.pem" -out "$work/cert.pem" -subj /O=Bench/CN=bench -days 30 \
    2>/dev/null
mkdir "$work/rauc"
cp --sparse=always "$b" "$work/rauc/root.img"
printf '[update]\ncompatible=bench\nversion=2\n[bundle]\nformat=verity\n[image.rootfs]\nfilename=root.img\nadaptive=block-hash-index\n' \
    >"$work/rauc/manifest.raucm"
if timed rauc --cert="$work/cert.pem" --key="$work/key.pem" bundle --mksquashfs-args='-comp gzip -b 65536' \
    "$work/rauc" "$work/b.raucb"; then
    line 'rauc 1.8, bundle (what it would fetch)' "$(mb "$(size "$work/b.raucb")")" - "$cpu" - "$rss" -
else
    line 'rauc 1.8, bundle' 'failed' - - - - -
fi
line 'rauc 1.16 adaptive over HTTP (quoted*)' 97.3 4429 - - 42 -

timed casync make --chunk-size=65536 --compression=zstd --store="$work/b.castr" "$work/b.caibx" "$b"
made=$cpu
casync make --chunk-size=65536 --compression=zstd --store="$work/a.castr" "$work/a.caibx" "$a" >/dev/null
# What a device fetches: chunks of b that a has not, and the index.
fetched=$(cd "$work/b.castr" && find . -name '*.cacnk' -printf '%P %s\n' | while read -r name bytes; do
    [ -e "$work/a.castr/$name" ] || echo "$bytes"
done | awk '{n += $1; c++} END {print n, c}')
read -r bytes count <<<"$fetched"
timed casync extract --store="$work/b.castr" --seed="$a" "$work/b.caibx" "$work/casync.img"
line 'casync 64K, seeded by the old image' "$(mb $((bytes + $(size "$work/b.caibx"))))" "$((count + 1))" "$made" "$cpu" "$rss" \
    "$(mb "$(size "$b")")"
rm -rf "$work"/*.castr "$work/casync.img"

timed zstd -q -3 --long=30 --patch-from="$a" "$b" -o "$work/b.patch"
made=$cpu
timed zstd -q -d --long=30 --memory=2048MB --patch-from="$a" "$work/b.patch" -o "$work/zstd.img"
line 'zstd -3 --patch-from (a patch for this pair)' "$(mb "$(size "$work/b.patch")")" 1 "$made" "$cpu" "$rss" "$(mb "$(size "$b")")"
rm -f "$work/zstd.img"
timed xdelta3 -e -3 -B 805306368 -W 8388608 -s "$a" "$b" "$work/b.xdelta"
made=$cpu
timed xdelta3 -d -B 805306368 -s "$a" "$work/b.xdelta" "$work/xdelta.img"
line 'xdelta3 -3 (a patch for this pair)' "$(mb "$(size "$work/b.xdelta")")" 1 "$made" "$cpu" "$rss" "$(mb "$(size "$b")")"

echo
echo "pair: $(wc -l <$pair/b.packages) packages, $(diff $pair/a.packages $pair/b.packages | grep -c '^>') changed; image $(mb "$(size "$b")") MB"
echo 'goals: full <= 128 MB, block reuse <= 60 MB, installer <= 64 MiB. Patches for pairs come with crates/delta.'
echo '* measured on another, similar pair and machine; the version the distribution has cannot stream.'
