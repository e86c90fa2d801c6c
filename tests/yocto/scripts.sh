#!/usr/bin/env bash
# What the layer's scripts promise, on files instead of disks. Prints a line for each promise.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit
repo=$PWD
os=$repo/yocto/meta-copal/recipes-copal/copal-os/copal-os
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
bad=0

promise() {
    local name=$1 said
    shift
    if said=$("$@" 2>&1); then
        echo "  ok   $name"
    else
        echo "  FAIL $name"
        printf '%s\n' "$said" | tail -n 12 | sed 's/^/       /'
        bad=$((bad + 1))
    fi
}

# A disk with the mark, and a partition of it as a file of its own.
virgin() {
    rm -rf "$work/d"
    mkdir -p "$work/d/bin"
    truncate -s 16M "$work/d/disk"
    printf COPAL-DATA-VIRGIN | dd of="$work/d/disk" bs=4096 seek=3072 conv=notrunc status=none
    head -c 1M /dev/urandom >"$work/d/part"
    truncate -s 32M "$work/d/part"
    printf 'DATA=%s\nDISK=%s\n' "$work/d/part" "$work/d/disk" >"$work/d/conf"
}
data() { PATH=$work/d/bin:$PATH sh "$os/copal-data.sh" "$work/d/conf"; }
marked() { dd if="$work/d/disk" bs=4096 skip=3072 count=1 status=none | grep -qa COPAL-DATA-VIRGIN; }
is_ext4() { e2fsck -fn "$work/d/part" >/dev/null; }
replace() {
    printf '#!/bin/sh\n%s\n' "$2" >"$work/d/bin/$1"
    chmod +x "$work/d/bin/$1"
}

first_boot() { virgin && data && is_ext4 && ! marked; }
second_boot() {
    first_boot || return
    local before
    before=$(sha256sum "$work/d/part")
    data && [ "$before" = "$(sha256sum "$work/d/part")" ]
}
unknown_content() {
    virgin
    dd if=/dev/zero of="$work/d/disk" bs=4096 seek=3072 count=1 conv=notrunc status=none
    local before
    before=$(sha256sum "$work/d/part")
    data && [ "$before" = "$(sha256sum "$work/d/part")" ] && ! is_ext4 2>/dev/null
}
cut_while_formatting() {
    virgin
    # shellcheck disable=SC2016 # the stub expands it
    replace mke2fs 'dd if=/dev/zero of="$(eval echo \${$#})" bs=1M count=1 conv=notrunc 2>/dev/null; exit 1'
    ! data && marked || return 1
    rm "$work/d/bin/mke2fs"
    data && is_ext4 && ! marked
}
mark_cannot_be_wiped() {
    virgin
    replace dd 'case "$*" in *if=/dev/zero*) exit 1;; esac; exec /bin/dd "$@"'
    ! data
}
# Grows the last partition of a disk laid out by the table $1 that was written to a card of 8 GiB.
grown() {
    virgin
    local number before after end
    truncate -s "$(images/os/layout/table.sh size "$1")M" "$work/d/disk"
    images/os/layout/table.sh sfdisk "$1" | sfdisk --quiet "$work/d/disk" || return
    printf COPAL-DATA-VIRGIN | dd of="$work/d/disk" bs=4096 seek=3072 conv=notrunc status=none
    number=$(images/os/layout/table.sh rows "$1" | tail -n 1 | cut -d' ' -f1)
    echo "NUMBER=$number" >>"$work/d/conf"
    before=$(sfdisk --dump "$work/d/disk" | grep -E "disk[0-9]+ :" | grep -v 'type=f' | head -n -1)
    truncate -s 8G "$work/d/disk"
    data || return
    after=$(sfdisk --dump "$work/d/disk" | grep -E "disk[0-9]+ :" | grep -v 'type=f' | head -n -1)
    [ "$before" = "$after" ] || { echo "other partitions changed"; return 1; }
    end=$(sfdisk --dump "$work/d/disk" | sed -n "s/.*disk$number : start= *\([0-9]*\), size= *\([0-9]*\),.*/\1 \2/p" | awk '{print $1 + $2}')
    [ "$end" -gt $((8 * 2097152 - 4096)) ] || { echo "$1: the partition ends at sector $end of $((8 * 2097152))"; return 1; }
    sfdisk --verify "$work/d/disk" >/dev/null
}

card() {
    rm -rf "$work/p"
    mkdir -p "$work/p/card" "$work/p/data"
    printf 'FIRST=%s\nDATA=x\n' "$work/p/card" >"$work/p/conf"
}
provision() { sh "$os/copal-provision.sh" "$work/p/conf" "$work/p/data/os"; }
taken() {
    card
    echo '{"spec":1}' >"$work/p/card/copal.json"
    provision && cmp "$work/p/card/copal.json" "$work/p/data/os/copal.json" &&
        [ "$(stat -c %a "$work/p/data/os/copal.json")" = 600 ]
}
kept() {
    taken || return
    rm "$work/p/card/copal.json"
    provision && [ -f "$work/p/data/os/copal.json" ]
}
too_large() {
    card
    head -c 300000 /dev/zero >"$work/p/card/copal.json"
    ! provision && [ ! -e "$work/p/data/os/copal.json" ]
}
nothing_there() { card && provision | grep -q "copal device config"; }

# guard CMDLINE TRYBOOT AGENT_SAYS: whether it would restart the device.
guard() {
    rm -rf "$work/g"
    mkdir -p "$work/g/root/proc/device-tree/chosen/bootloader" "$work/g/bin"
    echo "$1" >"$work/g/root/proc/cmdline"
    [ -z "$2" ] || printf '%b' "$2" >"$work/g/root/proc/device-tree/chosen/bootloader/tryboot"
    printf '#!/bin/sh\n%s\n' "$3" >"$work/g/bin/copal-agent"
    chmod +x "$work/g/bin/copal-agent"
    PATH=$work/g/bin:$PATH sh "$os/copal-trial-guard.sh" "$work/g/root" | grep -q restarting
}
judged="$(sed -n "s/^# answer when judged: //p" "$os/copal-trial-guard.sh")"
no_trial() { ! guard 'root=x copal.slot=a copal.trial=0' '' 'exit 1'; }
trial_judged() { ! guard 'copal.trial=1' '' "echo '$judged'"; }
trial_open() { guard 'copal.slot=b copal.trial=1 x' '' "echo '${judged/false/true}'"; }
# Two slots, and what stands at 1,024 of slot b's root, while slot a is on trial.
slots() {
    mkdir -p "$work/slots/etc/copal" "$work/slots/dev"
    printf '{"backend":"uboot",\n "slots": {"a": {"rootfs": "/dev/a"},\n "b": {"rootfs": "/dev/b"}}}\n' >"$work/slots/etc/copal/os.json"
    head -c 1024 /dev/zero >"$work/slots/dev/b"
    printf '%b' "$1" >>"$work/slots/dev/b"
    head -c 4096 /dev/zero >>"$work/slots/dev/b"
}
alone() {
    slots "$1"
    rm -rf "$work/slots/proc"
    mkdir -p "$work/slots/proc"
    echo 'copal.slot=a copal.trial=1' >"$work/slots/proc/cmdline"
    PATH=$work/g/bin:$PATH sh "$os/copal-trial-guard.sh" "$work/slots" | grep -q restarting
}
trial_way_back() { trial_no_agent && alone 'x\0\0'; }
trial_alone() { trial_no_agent && ! alone '\0\0\0'; }
trial_no_agent() { guard 'copal.trial=1' '' 'exit 127'; }
tryboot_no_agent() { guard 'copal.slot=b' '\0\0\0\1' 'exit 127'; }
tryboot_off() { ! guard 'copal.slot=b' '\0\0\0\0' 'exit 127'; }

healthy() { sh "$os/health-data.sh" "$work/p/data"; }
unhealthy() { ! sh "$os/health-data.sh" "$work/nowhere"; }

autoboot() {
    local file=yocto/meta-copal/dynamic-layers/raspberrypi/recipes-bsp/rpi-autoboot/files/autoboot.txt rows a b
    rows=$(images/os/layout/table.sh rows tryboot)
    a=$(awk '$2 == "boot-a" {print $1}' <<<"$rows") b=$(awk '$2 == "boot-b" {print $1}' <<<"$rows")
    [ "$(wc -c <$file)" -le 512 ] &&
        [ "$(cat $file)" = "$(printf '[all]\ntryboot_a_b=1\nboot_partition=%s\n[tryboot]\nboot_partition=%s' "$a" "$b")" ]
}
# Clusters of at least 4 KiB, made as copal_image.bbclass makes them.
clusters() {
    local inc=yocto/meta-copal/conf/copal/grub.inc options mib low high sectors
    options=$(sed -n 's/^COPAL_FIRST_FAT = "\(.*\)"$/\1/p' $inc) mib=$(sed -n 's/^COPAL_FIRST_MIB = "\(.*\)"$/\1/p' $inc)
    rm -f "$work/first.fat"
    # shellcheck disable=SC2086 # options
    mkfs.vfat ${options:--F 32} --invariant -C "$work/first.fat" $((mib * 1024)) || return
    # Bytes of a sector (little endian), sectors of a cluster.
    read -r low high sectors < <(od -An -tu1 -j11 -N3 "$work/first.fat")
    [ $(((low + high * 256) * sectors)) -ge 4096 ]
}
engine() {
    python3 -c 'import json, sys
c = json.load(open(sys.argv[1]))
assert c["data-root"].startswith("/data/") and c["live-restore"] is True and c["log-opts"]["max-size"], c' \
        yocto/meta-copal/dynamic-layers/virtualization-layer/recipes-containers/docker/files/daemon.json
}

promise 'the first boot makes the data partition and wipes the mark' first_boot
promise 'the second boot leaves it alone' second_boot
promise 'without the mark nothing is formatted, whatever the partition holds' unknown_content
promise 'formatting that was cut is begun again' cut_while_formatting
promise 'a mark that cannot be wiped is an error: the data is not mounted' mark_cannot_be_wiped
for table in tryboot uboot grub; do promise "data grows to the end of a larger disk: $table" grown $table; done
promise 'copal.json is taken from the first partition, for root only' taken
promise 'copal.json stays when the card has none any more' kept
promise 'a copal.json that is too large is refused' too_large
promise 'where there is no copal.json the way to one is said' nothing_there
promise 'a boot that is no trial is left alone' no_trial
promise 'a trial that was judged is left alone' trial_judged
promise 'a trial that is still open after its time is ended' trial_open
promise 'a trial whose agent does not answer is ended' trial_no_agent
promise 'also where os.json names another slot that could boot' trial_way_back
promise 'a trial without another slot that could boot goes on' trial_alone
promise 'a tryboot trial whose agent does not answer is ended' tryboot_no_agent
promise 'a normal boot of the Raspberry Pi is left alone' tryboot_off
promise 'a data partition that can be written is healthy' healthy
promise 'one that is not there is not' unhealthy
promise 'autoboot.txt fits into a sector and names the boot partitions of the table' autoboot
promise "a block of 4 KiB that is torn damages one of GRUB's env files at most" clusters
promise "the engine's data, logs and restarts are bounded (daemon.json)" engine
[ $bad = 0 ]
