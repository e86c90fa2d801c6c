#!/usr/bin/env bash
# Two root images of one device a point release apart, for the numbers of an OS update; kept in target/os-pair.
#
#   a.img  Debian 12 as it was released last      b.img  the same packages with every update since
#
# Fixed UUID, hash seed and times: two images differ by what the packages differ by. Needs root (mmdebstrap), no loop device.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=target/os-pair
mkdir -p "$out"
export SOURCE_DATE_EPOCH=1700000000
mirror=${COPAL_DEBIAN_MIRROR:-http://deb.debian.org/debian}
security=${COPAL_DEBIAN_SECURITY:-http://deb.debian.org/debian-security}
packages=systemd,systemd-sysv,udev,dbus,network-manager,podman,linux-image-cloud-amd64,openssh-server,ca-certificates,curl,python3,iproute2,sudo,kmod,wpasupplicant,chrony,e2fsprogs,parted,jq,less,vim-tiny,rsync,gnupg,tzdata,initramfs-tools,iptables

# The hooks' $1 is theirs.
# shellcheck disable=SC2016
root() {
    local name=$1
    shift
    [ ! -s "$out/$name.img" ] && [ ! -d "$out/$name.tree" ] || return 0
    printf 'os-pair: installing the packages of %s\n' "$name" >&2
    rm -rf "$out/$name.part"
    mmdebstrap --quiet --mode=root --format=directory --variant=minbase --include="$packages" \
        --customize-hook='rm -rf "$1"/var/cache/apt/*.bin "$1"/var/lib/apt/lists/* "$1"/var/log/*.log "$1"/var/log/apt' \
        --customize-hook='chroot "$1" dpkg-query -W -f "\${Package} \${Version}\n" > '"$PWD/$out/$name.packages" \
        bookworm "$out/$name.part" "$@"
    rm -rf "$out/$name.part"/dev/*
    mv "$out/$name.part" "$out/$name.tree"
}

image() {
    local name=$1
    [ ! -s "$out/$name.img" ] || return 0
    rm -f "$out/$name.img.part"
    truncate -s 768M "$out/$name.img.part"
    E2FSPROGS_FAKE_TIME=$SOURCE_DATE_EPOCH mke2fs -q -t ext4 -L root -m 0 -U 6f1d2c3b-4a59-4e68-8776-95a4b3c2d1e0 \
        -E hash_seed=0b1c2d3e-4f50-4162-8374-95a6b7c8d9ea,lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0 \
        -d "$out/$name.tree" "$out/$name.img.part"
    rm -rf "$out/$name.tree"
    mv "$out/$name.img.part" "$out/$name.img"
}

root a "deb $mirror bookworm main"
root b "deb $mirror bookworm main" "deb $mirror bookworm-updates main" "deb $security bookworm-security main"
image a
image b
changed=$(diff "$out/a.packages" "$out/b.packages" | grep -c '^>' || true)
printf 'os-pair: %s packages, %s of them changed\n' "$(wc -l <"$out/b.packages")" "$changed" >&2
