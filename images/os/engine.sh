# The second kind of development OS, a part of build.sh: Debian with systemd and a container engine, as a device in the
# field has it. Packages come from `tests/setup.sh osengine`, the agent's units from agent/systemd as agent/install.sh
# places them, and what makes an image a Copal OS (data partition, provisioning, trial guard) from the Yocto layer: both
# are tried here on a systemd that runs.
#
# Same partition table, boot script and device type as the small one; it needs 1 GiB of memory.
# shellcheck shell=bash disable=SC2154 # out, tree, cache: of build.sh

ENGINE_IMAGE_MIB=512
# Emulated, the engine alone takes a minute to come up.
ENGINE_HEALTH_S=${COPAL_OS_ENGINE_HEALTH_S:-420}

engine() {
    [ -e "$out/engine/complete" ] || die "the packages are missing in target/os/engine" "run: tests/setup.sh osengine"
    if [ "${1:-}" = image ]; then
        [ $# -eq 3 ] || die "usage: images/os/build.sh engine image NAME VERSION"
        engine_image "$2" "$3"
        return
    fi
    engine_image engine-factory "$FACTORY"
    disk engine "$out/images/engine-factory.ext4"
}

engine_image() {
    mkdir -p "$out/images"
    engine_packages
    engine_system
    engine_copal
    identity "$2" 'Copal development OS, with an engine' "$ENGINE_HEALTH_S" '["reboot"]' true
    file_system "$out/images/$1.ext4" "$ENGINE_IMAGE_MIB"
    say "image $1: version $2 ($(du -m "$out/images/$1.ext4" | cut -f1) MiB used)"
}

# Debian, without what nothing here uses.
engine_packages() {
    local name version
    rm -rf "$tree"
    cp -a "$out/engine/root" "$tree"
    rm -rf "$tree"/usr/share/{man,doc,locale,info,perl,perl5,bash-completion,zsh,zoneinfo,i18n,bug,lintian,gitweb,icons,pixmaps} \
        "$tree"/usr/lib/aarch64-linux-gnu/{perl,perl-base,gconv} "$tree"/usr/bin/{perl*,dnet,ctr,containerd-shim,containerd-shim-runc-v1} \
        "$tree"/var/cache/* "$tree"/var/lib/{apt,dpkg} "$tree"/etc/{cron.*,apt,perl} "$tree"/lib/udev/hwdb.d "$tree"/usr/lib/git-core
    version=$(echo "$cache"/boot/vmlinuz-*)
    cp "$version" "$tree/boot/Image"
    version=${version##*/vmlinuz-}
    depmod -b "$cache" "$version" 2>/dev/null || true
    mkdir -p "$tree/lib/modules/$version/kernel"
    cp "$cache/lib/modules/$version"/modules.{builtin,builtin.modinfo,order} "$tree/lib/modules/$version/"
    # All that a bridge with filters and an overlay may ask for, and this machine's own devices.
    for name in net/netfilter net/ipv4 net/ipv6 net/bridge net/802 net/llc net/core net/sched fs/overlayfs fs/fat fs/nls \
        fs/autofs lib crypto drivers/virtio drivers/char drivers/net/veth.ko drivers/net/dummy.ko drivers/net/virtio_net.ko drivers/net/net_failover.ko; do
        [ -e "$cache/lib/modules/$version/kernel/$name" ] || continue
        mkdir -p "$tree/lib/modules/$version/kernel/${name%/*}"
        cp -a "$cache/lib/modules/$version/kernel/$name" "$tree/lib/modules/$version/kernel/${name%/*}/"
    done
    for name in virtio_net net_failover failover; do
        find "$cache/lib/modules/$version/kernel" -name "$name.ko" | while read -r name; do
            mkdir -p "$tree/lib/modules/$version/kernel/drivers/net"
            cp -n "$name" "$tree/lib/modules/$version/kernel/drivers/net/"
        done
    done
    depmod -b "$tree" "$version" 2>/dev/null || true
    # What the packages' scripts would have done, had they been run.
    for name in iptables ip6tables; do
        for version in '' -save -restore; do ln -sf "$name-legacy$version" "$tree/usr/sbin/$name$version"; done
    done
    ln -sf mawk "$tree/usr/bin/awk"
    printf '%s\n' root:x:0:0:root:/root:/bin/sh messagebus:x:100:101::/nonexistent:/usr/sbin/nologin \
        systemd-network:x:998:998::/:/usr/sbin/nologin nobody:x:65534:65534::/nonexistent:/usr/sbin/nologin >"$tree/etc/passwd"
    printf '%s\n' root:x:0: tty:x:5: disk:x:6: lp:x:7: dialout:x:20: cdrom:x:24: floppy:x:25: tape:x:26: audio:x:29: \
        utmp:x:43: video:x:44: adm:x:4: kmem:x:15: input:x:104: kvm:x:105: render:x:106: sgx:x:107: messagebus:x:101: \
        docker:x:999: systemd-network:x:998: systemd-journal:x:997: nogroup:x:65534: >"$tree/etc/group"
}

# A read-only root, a data partition, a network, and a shell on the second console.
engine_system() {
    local units=$tree/etc/systemd/system
    mkdir -p "$units" "$tree/data" "$tree/etc/docker" "$tree/etc/containerd" "$tree/etc/modules-load.d" "$tree/etc/systemd/journald.conf.d"
    mkdir -p "$tree/srv"
    ln -sf ../proc/self/mounts "$tree/etc/mtab"
    rm -rf "${tree:?}"/var/*
    rm -f "$tree/etc/resolv.conf"
    echo 'nameserver 10.0.2.3' >"$tree/etc/resolv.conf"
    echo qemu >"$tree/etc/hostname"
    : >"$tree/etc/machine-id"
    printf '%s\n' '/dev/nvme0n1p4 /data ext4 noatime,nodev,nofail,x-systemd.requires=copal-data.service,x-systemd.device-timeout=60s 0 2' 'tmpfs /var tmpfs mode=0755 0 0' 'tmpfs /tmp tmpfs mode=1777 0 0' >"$tree/etc/fstab"
    printf '%s\n' virtio_net virtio_console overlay br_netfilter >"$tree/etc/modules-load.d/qemu.conf"
    # The image is read-only: the engine keeps its (unused) key beside its data.
    echo '{"data-root":"/data/docker","storage-driver":"overlay2","deprecated-key-path":"/data/docker-key.json"}' >"$tree/etc/docker/daemon.json"
    printf 'version = 2\nroot = "/data/containerd"\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n' >"$tree/etc/containerd/config.toml"
    ln -sf /lib/systemd/system/multi-user.target "$units/default.target"
    ln -sf /dev/null "$units/serial-getty@ttyAMA0.service"
    ln -sf /dev/null "$units/serial-getty@hvc0.service"
    ln -sf /dev/null "$units/getty@tty1.service"
    for unit in docker containerd; do
        mkdir -p "$units/$unit.service.d"
        printf '[Unit]\nRequiresMountsFor=/data\n' >"$units/$unit.service.d/10-data.conf"
    done
    cat >"$units/hello.service" <<'T'
[Unit]
Description=Which system this is
DefaultDependencies=no
After=systemd-remount-fs.service
[Service]
Type=oneshot
ExecStart=/bin/sh -c '. /etc/os-release; read -r up x </proc/uptime; for w in $(cat /proc/cmdline); do case $w in copal.slot=*) s=$${w#*=};; copal.trial=*) t=$${w#*=};; esac; done; echo "copal-os: version=$$VERSION_ID slot=$$s trial=$$t up=$$up" >/dev/console'
[Install]
WantedBy=sysinit.target
T
    cat >"$units/shell.service" <<'T'
[Unit]
Description=A root shell on the second console: this is no image for the field
After=dev-hvc0.device
[Service]
ExecStart=-/bin/sh -l
StandardInput=tty
StandardOutput=tty
TTYPath=/dev/hvc0
TTYReset=yes
Restart=always
RestartSec=1
Environment=HOME=/root TERM=dumb
[Install]
WantedBy=multi-user.target
T
    engine_enable hello.service shell.service
    engine_enable_of "$tree/lib/systemd/system" docker.service docker.socket containerd.service systemd-networkd.service
}

# Agent, units, and what the Yocto layer has around them.
engine_copal() {
    local units=$tree/etc/systemd/system layer=yocto/meta-copal/recipes-copal unit
    install -D -m 0755 "$out/agent" "$tree/usr/bin/copal-agent"
    install -m 0644 agent/systemd/* "$units/"
    install -m 0644 $layer/copal-agent/copal-agent/var-lib-copal.mount "$units/"
    for unit in copal-agent copal-prepare; do
        mkdir -p "$units/$unit.service.d"
        install -m 0644 $layer/copal-agent/copal-agent/$unit.service.d/* "$units/$unit.service.d/"
    done
    # What it says is on the console, too, where a test can wait for it.
    printf '[Service]\nStandardError=journal+console\nEnvironment=RUST_LOG=info,copal_agent=debug\n' >"$units/copal-agent.service.d/90-console.conf"
    for unit in copal-data copal-provision copal-trial-guard; do
        install -D -m 0755 $layer/copal-os/copal-os/$unit.sh "$tree/usr/libexec/copal/$unit"
        install -m 0644 $layer/copal-os/copal-os/$unit.service "$units/"
        sed -i 's|@LIBEXEC@|/usr/libexec/copal|' "$units/$unit.service"
    done
    install -m 0644 $layer/copal-os/copal-os/copal-trial-guard.timer "$units/"
    # The guard waits as long beyond the agent's own deadline as the layer's does.
    sed -i "s/^OnBootSec=.*/OnBootSec=$((ENGINE_HEALTH_S + 300))/" "$units/copal-trial-guard.timer"
    install -D -m 0644 $layer/copal-os/copal-os/emergency.conf "$units/emergency.service.d/10-copal.conf"
    install -D -m 0644 $layer/copal-os/copal-os/journald.conf "$tree/etc/systemd/journald.conf.d/20-copal.conf"
    install -D -m 0644 $layer/copal-os/copal-os/network.network "$tree/etc/systemd/network/20-copal.network"
    install -D -m 0755 $layer/copal-os/copal-os/health-data.sh "$tree/etc/copal/health.d/10-data"
    printf 'DATA=/dev/nvme0n1p4\nFIRST=/dev/nvme0n1p1\n' >"$tree/etc/copal/disk.conf"
    ln -s /data/os/copal.json "$tree/etc/copal/copal.json"
    engine_enable copal-agent.service copal-prepare.service run-copal-locks.mount var-lib-copal.mount copal-data.service \
        copal-provision.service copal-trial-guard.timer
}

# `systemctl enable`, of units in /etc/systemd/system.
engine_enable() { engine_enable_of "$tree/etc/systemd/system" "$@"; }

engine_enable_of() {
    local from=$1 unit wants
    shift
    for unit in "$@"; do
        wants=$(sed -n 's/^WantedBy=//p' "$from/$unit")
        [ -n "$wants" ] || die "$unit has no WantedBy"
        for wants in $wants; do
            mkdir -p "$tree/etc/systemd/system/$wants.wants"
            ln -sf "${from#"$tree"}/$unit" "$tree/etc/systemd/system/$wants.wants/$unit"
        done
    done
}
