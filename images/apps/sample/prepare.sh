#!/bin/sh
# Puts a static busybox into each service's folder: prepare.sh [amd64|arm64] [folder…]. The architecture is this
# machine's unless given; folders are beside this script, the three services' unless given. The program comes from
# the distribution: from this machine where it fits, else out of the Debian package. Nothing is installed.
set -eu
cd "$(dirname "$0")"
own=$(dpkg --print-architecture 2>/dev/null || { case $(uname -m) in aarch64) echo arm64 ;; *) echo amd64 ;; esac; })
arch=${1:-$own}
[ $# -eq 0 ] || shift
[ $# -gt 0 ] || set -- web worker store
folders=$*

case $arch in
    amd64 | arm64) ;;
    *) echo "prepare.sh: the architecture is amd64 or arm64, not '$arch'" >&2; exit 2 ;;
esac

# Whether a file is a static program of the wanted architecture: byte 18 of an ELF header names the machine, and a
# program that wants a loader names it near its start.
fits() {
    [ -f "$1" ] || return 1
    case $arch in amd64) machine=3e ;; arm64) machine=b7 ;; esac
    [ "$(od -An -tx1 -j18 -N1 "$1" | tr -d ' ')" = "$machine" ] && ! head -c 4096 "$1" | grep -aq '/ld-'
}

busybox=
for candidate in /bin/busybox /usr/bin/busybox /usr/lib/busybox-static/busybox; do
    if fits "$candidate"; then
        busybox=$candidate
        break
    fi
done

if [ -z "$busybox" ]; then
    command -v apt-get >/dev/null || {
        echo "prepare.sh: there is no static busybox for $arch here, and no apt-get to fetch one:" >&2
        echo "  put one as 'busybox' into each of: $folders" >&2
        exit 1
    }
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT INT TERM
    if [ "$arch" != "$own" ] && ! dpkg --print-foreign-architectures | grep -qx "$arch"; then
        # Lists of a foreign architecture, in a folder of our own: the machine's package settings stay as they are.
        mkdir -p "$folder/lists/partial" "$folder/cache/archives/partial"
        set -- -o APT::Sandbox::User=root -o "APT::Architecture=$arch" -o "APT::Architectures=$arch" \
            -o "Dir::State::lists=$folder/lists" -o "Dir::Cache=$folder/cache"
        apt-get -qq "$@" update >&2
    else
        set -- -o APT::Sandbox::User=root
    fi
    (cd "$folder" && apt-get -qq "$@" download "busybox-static:$arch" >&2) || {
        echo "prepare.sh: apt-get could not fetch busybox-static for $arch; is the network there?" >&2
        exit 1
    }
    dpkg -x "$folder"/busybox-static_*.deb "$folder/root"
    busybox=$(find "$folder/root" -path '*/bin/busybox' -type f | head -n 1)
    fits "$busybox" || { echo "prepare.sh: what apt-get fetched is no static program for $arch" >&2; exit 1; }
fi

for service in $folders; do
    cp "$busybox" "$service/busybox"
    chmod 0755 "$service/busybox"
done
echo "busybox for $arch is in: $folders"
