#!/usr/bin/env bash
# Installs and starts what the tests and the demo need. Running it again changes nothing.
#
#   tests/setup.sh [engine] [lint] [yocto] [browser] [bench] [osbench] [arm64] [os] [osengine]     (no word: engine)
#
#   engine   git, docker.io, iptables, iproute2, socat, util-linux, busybox-static, skopeo, docker-registry; starts dockerd if no engine answers
#   lint     shellcheck, cargo-deny
#   yocto    python3-venv, systemd, e2fsprogs, dosfstools, fdisk, shellcheck; BitBake's parser, oelint-adv and kas in target/yocto-venv
#   browser  chromium, node, npm
#   bench    docker-compose, the peer of the update numbers
#   osbench  mmdebstrap and the peers of an OS update's numbers
#   arm64    emulation of arm64 programs (qemu-user-static, binfmt-support) and the arm64 busybox
#   os       the QEMU machines of tests/os: emulators, U-Boot, disk tools, a compiler for static arm64 programs, and the
#            arm64 packages the image is made of, in target/os/cache; on x86-64 UEFI and GRUB, too, and in target/os/grub/cache
#            the packages of that machine's image
#   osengine arm64 and os, and a Debian for arm64 with systemd and a container engine, in target/os/engine
#
# A tool that is missing and cannot be installed is an error, with what to do about it.
set -euo pipefail

say() { printf 'setup: %s\n' "$*" >&2; }
die() {
    printf 'setup: %s\n' "$@" >&2
    exit 1
}
has() { command -v "$1" >/dev/null 2>&1; }

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif has sudo && sudo -n true 2>/dev/null; then
        sudo -n "$@"
    else
        die "this step needs root: $*" \
            "run it once as root (or allow sudo), then run this again: tests/setup.sh $WORDS"
    fi
}

updated=
install_packages() {
    local missing=() package
    for package in "$@"; do
        dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    has apt-get || die "these packages are missing and there is no apt-get to install them: ${missing[*]}" \
        "install their like with your distribution's tool, then run this again"
    say "installing ${missing[*]}"
    if [ -z "$updated" ]; then
        as_root apt-get -o DPkg::Lock::Timeout=300 update -qq || say "apt-get update failed; trying with the lists there are"
        updated=1
    fi
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends "${missing[@]}" >/dev/null ||
        die "apt-get could not install: ${missing[*]}" "look at its messages above"
}

engine_answers() { docker version --format '{{.Server.Version}}' >/dev/null 2>&1; }

engine() {
    has git || install_packages git
    has curl || install_packages curl ca-certificates
    install_packages busybox-static skopeo iproute2 socat util-linux
    # Tests of bad lines lay wires between network namespaces.
    [ -c /dev/net/tun ] || as_root sh -c 'mkdir -p /dev/net && mknod /dev/net/tun c 10 200' ||
        die "there is no /dev/net/tun, which tests of bad lines need" \
            "load the kernel's module tun, or give the container --device /dev/net/tun"
    if ! has docker-registry; then
        install_packages docker-registry
        # Tests start one of their own; the service that comes with the package is not wanted.
        if has systemctl && [ -d /run/systemd/system ]; then
            as_root systemctl disable --quiet --now docker-registry || true
        fi
    fi
    if ! has docker || ! engine_answers; then
        has dockerd || install_packages docker.io iptables
        has iptables || install_packages iptables
        start_engine
    fi
    say "engine: Docker $(docker version --format '{{.Server.Version}} (API {{.Server.APIVersion}})')"
}

start_engine() {
    engine_answers && return
    if [ -S /var/run/docker.sock ] && [ ! -w /var/run/docker.sock ]; then
        die "an engine's socket is there, but $(id -un) may not use it" \
            "run: sudo usermod -aG docker $(id -un), then log in again"
    fi
    local log=/tmp/copal-dockerd.log
    if has systemctl && [ -d /run/systemd/system ]; then
        say "starting docker by systemd"
        as_root systemctl start docker || true
    else
        say "starting dockerd (its log: $log)"
        # setsid: it outlives this script and the test run, and another run finds it answering.
        # A pid file that a killed engine left behind would stop the new one.
        if [ -f /var/run/docker.pid ] && ! kill -0 "$(cat /var/run/docker.pid)" 2>/dev/null; then
            as_root rm -f /var/run/docker.pid
        fi
        as_root sh -c "setsid dockerd >>$log 2>&1 </dev/null &"
    fi
    local _
    for _ in $(seq 60); do
        engine_answers && return
        sleep 0.5
    done
    [ -f "$log" ] && tail -n 15 "$log" >&2
    die "no Docker engine answers after 30 s" \
        "inside a container it needs --privileged, or the host's socket mounted at /var/run/docker.sock"
}

lint() {
    install_packages shellcheck
    if ! has cargo-deny; then
        say "installing cargo-deny (compiles for some minutes, once)"
        cargo install --quiet --locked cargo-deny --version '^0.20'
    fi
}

yocto() {
    local venv wanted
    venv=$(dirname "$0")/../target/yocto-venv wanted=$(dirname "$0")/yocto/requirements.txt
    has shellcheck || install_packages shellcheck
    has systemd-analyze || install_packages systemd
    has mke2fs || install_packages e2fsprogs
    has sfdisk || install_packages fdisk
    has mkfs.vfat || install_packages dosfstools
    cmp -s "$wanted" "$venv/installed.txt" && return
    python3 -c 'import ensurepip, venv' 2>/dev/null || install_packages python3-venv
    say "installing the layer's tools into target/yocto-venv"
    rm -rf "$venv"
    { python3 -m venv "$venv" && "$venv/bin/pip" install --quiet --disable-pip-version-check -r "$wanted"; } ||
        die "pip could not install the layer's tools (tests/yocto/requirements.txt)" "look at its messages above"
    # Last: a set-up that was cut short begins again.
    cp "$wanted" "$venv/installed.txt"
}

browser() {
    has chromium || install_packages chromium
    has node || install_packages nodejs
    has npm || install_packages npm
    (cd "$(dirname "$0")/browser" && { [ -d node_modules/playwright-core ] || npm ci --silent --no-audit --no-fund; }) ||
        die "npm could not install the browser tests' packages (tests/browser/package.json)"
}

bench() { has docker-compose || install_packages docker-compose; }

osbench() { install_packages mmdebstrap e2fsprogs rauc casync zstd xdelta3 squashfs-tools openssl time; }

arm64() {
    [ -e /proc/sys/fs/binfmt_misc/qemu-aarch64 ] && return
    [ "$(uname -m)" = aarch64 ] && return
    install_packages qemu-user-static binfmt-support
    if [ ! -e /proc/sys/fs/binfmt_misc/register ]; then
        as_root mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc || true
    fi
    [ -e /proc/sys/fs/binfmt_misc/qemu-aarch64 ] || as_root update-binfmts --enable qemu-aarch64 ||
        die "the kernel would not take the arm64 emulation (binfmt_misc)" \
            "on the host, run: apt-get install qemu-user-static binfmt-support"
}

os() {
    install_packages qemu-system-arm u-boot-qemu u-boot-tools mtools fdisk e2fsprogs kmod zstd
    os_compiler
    os_packages arm64 target/os/cache
    [ "$(uname -m)" = x86_64 ] || return 0
    # These bring GRUB's parts and tools; nothing of them is installed into a boot sector.
    install_packages qemu-system-x86 ovmf grub-efi-amd64-bin grub-common binutils
    os_packages amd64 target/os/grub/cache
}

# What makes a static arm64 program here: this machine itself, rustup's target, or the distribution's own toolchain.
os_compiler() {
    [ "$(uname -m)" != aarch64 ] || return 0
    install_packages gcc-aarch64-linux-gnu libc6-dev-arm64-cross
    if has rustup && rustup target list --installed 2>/dev/null | grep -qx aarch64-unknown-linux-gnu; then
        return 0
    fi
    [ ! -e /usr/lib/rustlib/aarch64-unknown-linux-gnu ] || [ ! -x /usr/bin/cargo ] || return 0
    if ! dpkg --print-foreign-architectures | grep -qx arm64; then
        say "allowing arm64 packages beside $(dpkg --print-architecture) ones (for the compiler's library)"
        as_root dpkg --add-architecture arm64
        updated=
    fi
    install_packages rustc-web cargo-web libstd-rust-web-dev:arm64
}

# Unpacked packages of the image for the architecture $1, in the folder $2: the kernel, busybox, and what makes and mends
# the data file system.
os_packages() {
    local arch=$1 cache private apt package image codename file
    cache=$(cd "$(dirname "$0")/.." && pwd)/$2
    [ ! -e "$cache/complete" ] || return 0
    rm -rf "$cache"
    mkdir -p "$cache/debs"
    # Lists and state of their own: nothing of this machine's apt changes, and no root is needed. Of the sources only
    # the distribution's: others do not have every architecture, or are slow to say so.
    private=$(mktemp -d)
    mkdir -p "$private/lists/partial" "$private/archives/partial" "$private/sources"
    : >"$private/status"
    codename=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
    for file in /etc/apt/sources.list /etc/apt/sources.list.d/*; do
        [ -f "$file" ] && grep -Eq "^[^#]*[ /]${codename:-stable}([ /-]|\$)" "$file" && cp "$file" "$private/sources/"
    done
    apt=(-o Dir::Etc::SourceList=/dev/null -o "Dir::Etc::SourceParts=$private/sources"
        -o "Dir::State::Lists=$private/lists" -o "Dir::State::status=$private/status" -o "Dir::Cache=$private"
        -o "APT::Architecture=$arch" -o "APT::Architectures::=$arch" -o Acquire::Languages=none
        -o Debug::NoLocking=true -o APT::Sandbox::User= -o Acquire::Retries=3)
    say "fetching the $arch packages of the test machine's image"
    apt-get "${apt[@]}" update -qq >/dev/null 2>"$private/errors" || true
    image=$(apt-cache "${apt[@]}" depends "linux-image-cloud-$arch" 2>/dev/null | sed -n 's/.*Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1)
    [ -n "$image" ] || {
        cat "$private/errors" >&2
        die "apt's sources offer no linux-image-cloud-$arch" \
            "they must be Debian's (12 or later) and reachable; then run this again"
    }
    for package in "$image" busybox-static e2fsprogs libext2fs2 libcom-err2 libblkid1 libuuid1 libss2 libc6; do
        # Some libraries are part of another package in later releases.
        apt-cache "${apt[@]}" show "$package" >/dev/null 2>&1 || continue
        (cd "$cache/debs" && apt-get "${apt[@]}" download -qq "$package" >/dev/null) ||
            die "apt-get could not fetch $package for $arch" "look at its messages above, then run this again"
    done
    for package in "$cache"/debs/*.deb; do dpkg-deb -x "$package" "$cache/unpacked"; done
    rm -rf "$private"
    ls "$cache/debs" >"$cache/complete"
    say "in $cache: $(tr '\n' ' ' <"$cache/complete")"
}

# A Debian of unpacked packages: none of their scripts is run, so that any machine can make it.
osengine() {
    local place sources codename=bookworm
    arm64
    os
    place=$(cd "$(dirname "$0")/.." && pwd)/target/os/engine
    [ ! -e "$place/complete" ] || return 0
    install_packages mmdebstrap
    rm -rf "$place"
    mkdir -p "$place"
    say "unpacking Debian $codename for arm64 with systemd and docker.io (about 400 MB)"
    sources=$(mktemp)
    printf 'deb http://deb.debian.org/debian%s main\n' " $codename" " $codename-updates" "-security $codename-security" >"$sources"
    mmdebstrap --quiet --variant=extract --architectures=arm64 \
        --include=systemd,systemd-sysv,udev,dbus,docker.io,apparmor,iptables,e2fsprogs,fdisk,iproute2,kmod,procps,mount,login,mawk,util-linux,base-files,base-passwd,bash,coreutils,dash,debianutils,findutils,grep,gzip,hostname,libc-bin,sed,tar \
        $codename "$place/root" "$sources" || die "mmdebstrap could not unpack Debian $codename for arm64" "look at its messages above"
    rm -f "$sources"
    : >"$place/complete"
}

WORDS="${*:-engine}"
for word in $WORDS; do
    case "$word" in
    engine | lint | yocto | browser | bench | osbench | arm64 | os | osengine) "$word" ;;
    *) die "no such part: $word (engine, lint, yocto, browser, bench, osbench, arm64, os, osengine)" ;;
    esac
done
