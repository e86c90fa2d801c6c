#!/usr/bin/env bash
# Stages the units as the recipes install them and lets systemd judge them: unknown settings, missing programs and units.
# The distribution's own systemd units stand in for the image's; programs are stubs.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit
layer=${1:-yocto/meta-copal}
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
units=$root/usr/lib/systemd/system
mkdir -p "$units" "$root"/{etc/systemd/system,usr/bin,usr/libexec/copal,bin,data,var/lib/copal,var/lib/systemd/timesync}

host=/usr/lib/systemd/system
[ -e "$host/local-fs-pre.target" ] || host=/lib/systemd/system
cp -r "$host"/. "$units"/
cp agent/systemd/* "$units"/
os=$layer/recipes-copal/copal-os/copal-os
agent=$layer/recipes-copal/copal-agent/copal-agent
ours=()
for file in agent/systemd/* "$os"/*.service "$os"/*.timer "$os"/*.mount "$agent"/*.mount; do
    name=${file##*/}
    sed 's|@LIBEXEC@|/usr/libexec/copal|' "$file" >"$units/$name"
    ours+=("$name")
done
for file in "$agent"/*.service.d/*.conf; do
    install -D -m 0644 "$file" "$units/$(basename "$(dirname "$file")")/${file##*/}"
    grep -qs "$(basename "$(dirname "$file")")/${file##*/}" "$layer"/recipes-copal/copal-agent/*.bb || { echo "$file is installed by no recipe"; exit 1; }
done
install -D -m 0644 "$os/emergency.conf" "$units/emergency.service.d/10-copal.conf"
install -D -m 0644 "$layer/dynamic-layers/virtualization-layer/recipes-containers/docker/files/10-data.conf" \
    "$units/docker.service.d/10-data.conf"
install -D -m 0644 "$layer/dynamic-layers/balena-common/recipes-containers/balena/files/10-copal.conf" \
    "$units/balena.service.d/10-copal.conf"

# What other recipes bring.
printf '[Service]\nExecStart=/usr/bin/dockerd\n[Install]\nWantedBy=multi-user.target\n' | tee "$units/docker.service" >"$units/balena.service"
cat >"$units/var-volatile-lib.service" <<'END'
[Unit]
DefaultDependencies=no
Before=local-fs.target systemd-random-seed.service
RequiresMountsFor=/var/volatile /var
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/true
[Install]
WantedBy=local-fs.target
END
cat >"$units/systemd-timesyncd.service" <<'END'
[Unit]
DefaultDependencies=no
After=systemd-sysusers.service
Before=time-set.target sysinit.target shutdown.target
[Service]
Type=notify
ExecStart=/bin/true
[Install]
WantedBy=sysinit.target
END
# As systemd-fstab-generator makes it of our line in fstab.
cat >"$units/data.mount" <<'END'
[Unit]
Requires=systemd-fsck@dev-disk-by\x2dpartuuid-636f7061\x2d07.service copal-data.service
After=systemd-fsck@dev-disk-by\x2dpartuuid-636f7061\x2d07.service local-fs-pre.target copal-data.service
[Mount]
What=/dev/disk/by-partuuid/636f7061-07
Where=/data
Type=ext4
[Install]
WantedBy=local-fs.target
END
stub() {
    mkdir -p "$root$(dirname "$1")"
    printf '#!/bin/sh\n' >"$root$1"
    chmod +x "$root$1"
}
for program in /usr/bin/dockerd /usr/bin/balenad /usr/bin/copal-agent /bin/sh /bin/true; do stub "$program"; done
# Only the scripts that the recipe installs, by the names under which it installs them.
read -ra scripts < <(sed -n 's/^ *for script in \(.*\); do$/\1/p' "$layer"/recipes-copal/copal-os/copal-os_*.bb)
for script in "${scripts[@]}"; do
    [ -f "$os/$script.sh" ] && stub "/usr/libexec/copal/$script"
done

bad=0
# As the image starts them: in a cycle of orders systemd leaves a unit out, one it chooses.
systemctl --root="$root" enable "${ours[@]}" data.mount docker.service var-volatile-lib.service systemd-timesyncd.service >/dev/null 2>&1
cycle=$(systemd-analyze verify --root="$root" --man=no multi-user.target 2>&1 | grep -iE "cycle|deleted to break" | head -n 8)
[ -z "$cycle" ] || { printf '%s\n' "$cycle"; bad=1; }
for name in "${ours[@]}"; do
    [ -n "$(find "$root/etc/systemd/system" -name "$name" -type l | head -n 1)" ] ||
        grep -qx 'copal-trial-guard.service' <<<"$name" || { echo "$name is not started by anything: no [Install]"; bad=1; }
done
# A unit that no recipe installs is never started.
for name in "${ours[@]}"; do
    grep -qs "$name" "$layer"/recipes-copal/*/*.bb || { echo "$name is installed by no recipe"; bad=1; }
done
said=$(systemd-analyze verify --root="$root" --man=no --recursive-errors=no "${ours[@]}" emergency.service docker.service balena.service 2>&1)
status=$?
# The distribution's units are not ours to mend.
said=$(grep -E "$(IFS='|' && echo "${ours[*]%.*}")|10-copal|10-data|20-os|emergency|docker|balena" <<<"$said" | grep -v "man page\|^$")
[ -z "$said" ] || printf '%s\n' "$said"
echo "${#ours[@]} units verified"
[ $bad = 0 ] && [ -z "$said" ] && [ $status = 0 ]
