#!/usr/bin/env bash
# Builds the development OS: a disk for `qemu-system-aarch64 -M virt` (U-Boot), or for `qemu-system-x86_64 -M q35` (GRUB), and
# images to update it with.
#
#   images/os/build.sh                          agent, disk, flash, factory image
#   images/os/build.sh image NAME VERSION [FAULT…]   one more slot image, target/os/images/NAME.ext4
#   images/os/build.sh agent|disk               one of the parts
#   images/os/build.sh engine [image NAME VERSION]   the disk with systemd and a container engine, or an image for it
#   images/os/build.sh grub [any of the above but engine]   the same for x86-64 with GRUB, in target/os/grub
#
# FAULT: panic silent unhealthy nokernel gonekernel noinit nonet hang lostdisk - what is wrong with it (see fault() below).
# Everything is made of what `tests/setup.sh os` fetched, without root, loop devices or network, and the same inputs
# give the same bytes: identifiers, seeds and times are fixed, so two versions share every block they have in common.
set -euo pipefail
cd "$(dirname "$0")/../.."

out=$PWD/target/os
cache=$out/cache/unpacked
tree=$out/tree
# Of a slot image; the slot may be larger.
IMAGE_MIB=96
EPOCH=1700000000
# The machine: its partition table, device type, libraries, kernel, and how the agent finds the boot state. grub.sh has others.
TABLE=uboot
DEVICE_TYPE=qemu-arm64
TRIPLE=aarch64-linux-gnu
LOADER=lib/ld-linux-aarch64.so.1
KERNEL=Image
DISK=/dev/nvme0n1
BOOT_STATE='"backend":"uboot","disk":"/dev/nvme0n1","state_offsets":[4194304,8388608]'
STATE_OFFSETS='4194304 8388608'
STATE_FILES=
BOOT_MOUNT=ro
FACTORY=1.0.0
# Seconds an image's agent has in a trial; the guard of the image itself waits longer.
HEALTH_S=${COPAL_OS_HEALTH_S:-60}

say() { printf 'os: %s\n' "$*" >&2; }
die() {
    printf 'os: %s\n' "$@" >&2
    exit 1
}

# Column $2 (number, start or size; MiB) of the partition named $1.
partition() {
    local column=4
    case "$2" in number) column=1 ;; start) column=3 ;; esac
    images/os/layout/table.sh rows $TABLE | awk -v name="$1" -v column="$column" \
        '$2 == name { print $column; found = 1 } END { exit !found }' || die "the table $TABLE has no partition $1"
}

# The partition named $1, as the machine calls it.
device() { echo "${DISK}p$(partition "$1" number)"; }

# The agent, static, for arm64. Whichever compiler this machine has; see tests/setup.sh.
agent() {
    local target=aarch64-unknown-linux-gnu cargo=(cargo) dir=$out/cargo
    local flags="-C target-feature=+crt-static"
    if [ "$(uname -m)" != aarch64 ]; then
        export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
        export CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc AR_aarch64_unknown_linux_gnu=aarch64-linux-gnu-ar
        if ! rustup target list --installed 2>/dev/null | grep -qx $target; then
            # A folder of its own: another compiler's half-built crates would be built again on every change of hands.
            cargo=(env RUSTC=/usr/bin/rustc /usr/bin/cargo)
        fi
    fi
    CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUSTFLAGS="$flags" CARGO_TARGET_DIR=$dir \
        "${cargo[@]}" build --quiet --locked -p copal-agent --profile machine --target $target ||
        die "the agent for arm64 was not built" "look at the compiler's messages above"
    # Replaced only when it differs: images are rebuilt when it is newer.
    cmp -s "$dir/$target/machine/copal-agent" "$out/agent" || cp "$dir/$target/machine/copal-agent" "$out/agent"
    say "agent: $(stat -c %s "$out/agent") bytes"
}

# What the agent is linked with: nothing.
agent_libraries() { :; }

# What every image has in common.
common() {
    local libs=$cache/lib/$TRIPLE kernel version name module
    rm -rf "$tree"
    mkdir -p "$tree"/{bin,dev,proc,sys,tmp,run,var,data,boot/firmware,lib/modules,lib/$TRIPLE,etc/copal/health.d,usr/lib,usr/share}
    ln -s bin "$tree/sbin"
    cp -a images/os/root/. "$tree/"
    cp "$cache/bin/busybox" "$tree/bin/busybox"
    for name in '[' awk basename cat chmod chown cmp cp cut date dd df dirname dmesg du echo env expr false find free \
        grep gunzip gzip halt head hexdump hostname id init insmod ip kill ln ls lsmod md5sum mkdir mknod mount \
        mv nc od ping poweroff printf ps pwd readlink reboot rm rmdir sed seq sh sha256sum sleep sort \
        stat stty sync tail tee test time timeout top touch tr true umount uname uptime vi watchdog wc wget xargs; do
        ln -s busybox "$tree/bin/$name"
    done
    cp "$out/agent" "$tree/bin/copal-agent"
    # The file system tools are the distribution's, with their libraries.
    cp "$cache"/sbin/{mke2fs,e2fsck} "$tree/bin/"
    cp "$cache/etc/mke2fs.conf" "$tree/etc/"
    mkdir -p "$tree/${LOADER%/*}"
    cp -L "$libs/${LOADER##*/}" "$tree/$LOADER"
    cp -L "$libs"/lib{c,com_err,e2p,ext2fs}.so.[0-9] "$tree/lib/$TRIPLE/"
    for name in blkid uuid; do
        cp -L "$(find "$cache" -name "lib$name.so.1" | head -n 1)" "$tree/lib/$TRIPLE/"
    done
    agent_libraries
    kernel=$(echo "$cache"/boot/vmlinuz-*)
    version=${kernel##*/vmlinuz-}
    cp "$kernel" "$tree/boot/$KERNEL"
    depmod -b "$cache" "$version" 2>/dev/null || true
    for module in virtio_pci virtio_net virtio_console vfat nls_ascii nls_cp437 softdog; do
        modprobe -d "$cache" -S "$version" --show-depends "$module" 2>/dev/null | awk '/^insmod/ { print $2 }'
    done | awk '!seen[$0]++' | while read -r module; do
        cp "$module" "$tree/lib/modules/"
        basename "$module" >>"$tree/lib/modules/order"
    done
    [ -s "$tree/lib/modules/order" ] || die "no kernel modules were found in $cache/lib/modules/$version"
    cat >"$tree/lib/copal/settings" <<T
DISK=$DISK
BOOT=$(device boot)
BOOT_MOUNT=$BOOT_MOUNT
SLOT_A=$(device root-a)
SLOT_B=$(device root-b)
DATA=$(device data)
MARK_BLOCK=3072
STATE_OFFSETS="$STATE_OFFSETS"
STATE_FILES="$STATE_FILES"
TRIAL_S=$((HEALTH_S + 60))
T
}

# What a slot says of itself: version $1, name $2, seconds of a trial $3, how to reboot $4, whether an engine belongs to it $5.
identity() {
    printf 'ID=copal\nNAME="%s"\nVERSION_ID=%s\n' "$2" "$1" >"$tree/usr/lib/os-release"
    ln -sf ../usr/lib/os-release "$tree/etc/os-release"
    cat >"$tree/etc/copal/os.json" <<T
{$BOOT_STATE,
 "device_type":"$DEVICE_TYPE","version":"$1","floor":0,"data_schema":1,
 "slots":{"a":{"rootfs":"$(device root-a)"},"b":{"rootfs":"$(device root-b)"}},
 "trial_limit":3,"health_timeout_s":$3,"hooks":"/etc/copal/health.d","reboot":$4,"engine":$5}
T
}

# What distinguishes this version.
version() {
    echo "VERSION=$1" >>"$tree/lib/copal/settings"
    identity "$1" 'Copal development OS' "$HEALTH_S" '["reboot","-f"]' false
    # So that versions differ by more than their number: some MiB that no other version has.
    perl -e '$s = ($s * 31 + ord) % 2147483647 for split //, $ARGV[0]; srand($s); print pack("N*", map { int rand 4294967296 } 1 .. 1_500_000)' \
        "$1" >"$tree/usr/share/only-in-this-version"
}

# What is wrong with it.
fault() {
    case "$1" in
    panic) printf '%s\n' 'say "fault: panic"; echo 1 >/proc/sys/kernel/sysrq; echo c >/proc/sysrq-trigger' >>"$tree/etc/copal/fault" ;;
    silent) printf '%s\n' 'say "fault: the agent never runs"; : >/run/no-agent' >>"$tree/etc/copal/fault" ;;
    hang) printf '%s\n' 'say "fault: start-up hangs"; while :; do sleep 1000; done' >>"$tree/etc/copal/fault" ;;
    lostdisk) printf '%s\n' 'say "fault: the disk goes"; echo 1 >/sys/class/nvme/nvme0/device/remove; ls -lR /lib /etc' >>"$tree/etc/copal/fault" ;;
    nonet) printf '%s\n' 'say "fault: no network"; network=no' >>"$tree/etc/copal/fault" ;;
    unhealthy)
        printf '#!/bin/sh\necho "the heater does not heat"\nexit 1\n' >"$tree/etc/copal/health.d/50-heater"
        chmod +x "$tree/etc/copal/health.d/50-heater"
        ;;
    nokernel) head -c 200000 /dev/zero >"$tree/boot/$KERNEL" ;;
    gonekernel) rm "$tree/boot/$KERNEL" ;;
    noinit) rm "$tree/bin/init" "$tree/bin/sh" ;;
    *) die "no such fault: $1" ;;
    esac
}

# mke2fs of the tree, with every identifier and time fixed.
file_system() {
    local image=$1 size_mib=$2 path
    rm -f "$image.new"
    find "$tree" -exec touch -h -d "@$EPOCH" {} +
    E2FSPROGS_FAKE_TIME=$EPOCH mke2fs -q -t ext4 -b 4096 -L root -m 0 -O ^metadata_csum_seed,^orphan_file -U 6f0c6c1e-5b1f-4b8e-9d0a-c09a10000001 \
        -E root_owner=0:0,hash_seed=6f0c6c1e-5b1f-4b8e-9d0a-c09a10000002,lazy_itable_init=0,lazy_journal_init=0 \
        -d "$tree" "$image.new" "${size_mib}M" >/dev/null
    # Owners and change times came from this machine.
    {
        cd "$tree"
        find . -mindepth 1 | sed 's/^\.//' | while read -r path; do
            printf 'sif "%s" uid 0\nsif "%s" gid 0\nsif "%s" ctime @%s\nsif "%s" atime @%s\n' "$path" "$path" "$path" $EPOCH "$path" $EPOCH
        done
        for path in / /lost+found; do printf 'sif %s ctime @%s\nsif %s atime @%s\n' $path $EPOCH $path $EPOCH; done
        cd "$OLDPWD"
    } | E2FSPROGS_FAKE_TIME=$EPOCH debugfs -w -f - "$image.new" >/dev/null 2>&1
    E2FSPROGS_FAKE_TIME=$EPOCH e2fsck -fn "$image.new" >/dev/null 2>&1 || die "the file system made for $image is damaged"
    mv "$image.new" "$image"
}

image() {
    local name=$1 version=$2 word
    shift 2
    mkdir -p "$out/images"
    common
    version "$version"
    for word in "$@"; do fault "$word"; done
    file_system "$out/images/$name.ext4" "$IMAGE_MIB"
    say "image $name: version $version ${*:-} ($(du -m "$out/images/$name.ext4" | cut -f1) MiB used)"
}

# U-Boot in the first flash, its settings in the second: no waiting, and no search for other disks.
flash() {
    cp /usr/lib/u-boot/qemu_arm64/u-boot.bin "$out/flash0.img"
    # A panicked kernel restarts soon, and says little when all is well.
    { cat images/os/boot/uboot-qemu-arm64.env && echo copal_panic=2; } |
        sed 's/^copal_args=.*/& quiet/' | mkenvimage -s 0x40000 -o "$out/flash1.img" -
    truncate -s 64M "$out/flash0.img" "$out/flash1.img"
}

# What the boot partition $1 (as mtools takes it) holds.
boot_files() {
    mkimage -A arm64 -T script -C none -n "Copal" -d images/os/boot/boot.cmd "$out/boot.scr" >/dev/null
    TZ=UTC mcopy -m -i "$1" "$out/boot.scr" ::
}

# The factory's boot state: slot a, committed, never booted.
first_state() {
    printf '%s\n' copal_gen=1 copal_slot=a copal_trial=0 copal_tries=0 copal_limit=3 copal_arms=0 copal_for=- \
        copal_canary=0 copal_echo=0 copal_fell=-
}

# The same where the bootloader of this machine has it, on the disk $1.
boot_state() {
    local state offset
    state=$(mktemp)
    first_state | mkenvimage -p 0 -s 4096 -o "$state" -
    for offset in $STATE_OFFSETS; do dd if="$state" of="$1" bs=4096 seek=$((offset / 4096)) conv=notrunc status=none; done
    rm -f "$state"
}

# A factory's disk, named $1, of an image: slot A, its boot state, an empty slot B, and a data partition that the first
# boot makes.
disk() {
    local name=$1 image=$2 disk=$out/$1.img.new boot_mib boot_start
    flash
    boot_start=$(partition boot start) boot_mib=$(partition boot size)
    rm -f "$disk"
    truncate -s "$(images/os/layout/table.sh size $TABLE)M" "$disk"
    images/os/layout/table.sh sfdisk $TABLE | sfdisk -q --no-reread --no-tell-kernel "$disk"
    # Clusters of 4 KiB: no file shares a block of that size with another one.
    mformat -i "$disk@@${boot_start}M" -v BOOT -N c09a1001 -c 8 -T $((boot_mib * 2048)) -h 64 -s 32 -H $((boot_start * 2048)) ::
    boot_files "$disk@@${boot_start}M"
    dd if="$image" of="$disk" bs=1M seek="$(partition root-a start)" conv=notrunc,sparse status=none
    boot_state "$disk"
    printf COPAL-DATA-VIRGIN | dd of="$disk" bs=4096 seek=3072 conv=notrunc status=none
    mv "$disk" "$out/$name.img"
    say "disk: ${out#"$PWD/"}/$name.img ($(du -m "$out/$name.img" | cut -f1) MiB used)"
}

if [ "${1:-}" = grub ]; then
    shift
    # shellcheck source=images/os/grub.sh
    . images/os/grub.sh
fi
[ -e "$out/cache/complete" ] || die "the packages are missing in ${out#"$PWD/"}/cache" "run: tests/setup.sh os"
case "${1:-all}" in
agent) agent ;;
image)
    [ $# -ge 3 ] || die "usage: images/os/build.sh image NAME VERSION [FAULT…]"
    shift
    image "$@"
    ;;
disk)
    [ -e "$out/images/factory.ext4" ] || image factory "$FACTORY"
    disk disk "$out/images/factory.ext4"
    ;;
engine)
    [ $TABLE = uboot ] || die "the image with an engine is made for U-Boot only"
    shift
    # shellcheck source=images/os/engine.sh
    . images/os/engine.sh
    engine "$@"
    ;;
all)
    agent
    image factory "$FACTORY"
    disk disk "$out/images/factory.ext4"
    ;;
*) die "no such part: $1 (agent, image, disk, engine, grub)" ;;
esac
