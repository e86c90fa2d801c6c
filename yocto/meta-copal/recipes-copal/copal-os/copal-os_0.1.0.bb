SUMMARY = "What makes an image a Copal OS"
DESCRIPTION = "os.json, the data partition, provisioning from the boot partition, watchdog, journal, clock and network settings."
LICENSE = "Apache-2.0"
LIC_FILES_CHKSUM = "file://${COPAL_REPO}/LICENSE;md5=3b83ef96387f14655fc854ddc3c6bd57"

SRC_URI = " \
    file://copal-data.service \
    file://copal-data.sh \
    file://copal-provision.service \
    file://copal-provision.sh \
    file://copal-trial-guard.service \
    file://copal-trial-guard.sh \
    file://copal-trial-guard.timer \
    file://emergency.conf \
    file://health-data.sh \
    file://journald.conf \
    file://network.network \
    file://sysctl.conf \
    file://system.conf \
    file://timesyncd.conf \
    file://var-lib-systemd-timesync.mount \
"
S = "${UNPACKDIR}"

inherit features_check systemd

REQUIRED_DISTRO_FEATURES = "copal systemd"

PACKAGE_ARCH = "${MACHINE_ARCH}"
INHIBIT_DEFAULT_DEPS = "1"

do_configure[noexec] = "1"

# Typed by the agent (agent/src/os/config.rs): unknown fields are refused there, so nothing else may stand here.
python do_compile() {
    import json

    def words(name):
        return (d.getVar(name) or "").split()

    slots = {}
    for entry in words("COPAL_SLOT_DEVICES"):
        slot, payload, device = entry.split(":")
        slots.setdefault(slot, {})[payload] = device
    config = {
        "backend": d.getVar("COPAL_BACKEND"),
        "device_type": d.getVar("COPAL_DEVICE_TYPE"),
        "version": d.getVar("COPAL_OS_VERSION"),
        "floor": int(d.getVar("COPAL_OS_FLOOR")),
        "data_schema": int(d.getVar("COPAL_DATA_SCHEMA")),
        "slots": slots,
        "hooks": "/etc/copal/health.d",
        # Through PID 1, so that containers stop in order and the data is unmounted; RebootWatchdogSec bounds it. (`reboot -f`
        # of systemd restarts on the spot.)
        "reboot": ["reboot"],
        "engine": True,
    }
    if config["backend"] == "none":
        bb.fatal("MACHINE %s has no COPAL_BACKEND: see conf/distro/copal.conf" % d.getVar("MACHINE"))
    if config["backend"] == "grub":
        config["env_files"] = words("COPAL_ENV_FILES")
    else:
        config["disk"] = d.getVar("COPAL_DISK")
        config["state_offsets"] = [int(offset) for offset in words("COPAL_STATE_OFFSETS")]
    if config["backend"] == "tryboot":
        config["autoboot"] = d.getVar("COPAL_FIRST_DEVICE")
    build = d.getVar("B")
    bb.utils.mkdirhier(build)
    with open(os.path.join(build, "os.json"), "w") as out:
        json.dump(config, out, indent=2)
        out.write("\n")
    with open(os.path.join(build, "61-copal-disk.rules"), "w") as out:
        out.write("# The disk the slots are on, wherever it hangs: os.json names it by this link.\n")
        out.write('SUBSYSTEM=="block", ENV{DEVTYPE}=="disk", ENV{ID_PART_TABLE_UUID}=="%s", SYMLINK+="disk/copal"\n'
            % (d.getVar("COPAL_DISK_ID") or "none"))
    with open(os.path.join(build, "disk.conf"), "w") as out:
        out.write("# Read by copal-data and copal-provision.\n")
        out.write("DATA=%s\nFIRST=%s\n" % (d.getVar("COPAL_DATA_DEVICE"), d.getVar("COPAL_FIRST_DEVICE")))
}
B = "${WORKDIR}/build"

do_install() {
    install -D -m 0644 ${B}/os.json ${D}${sysconfdir}/copal/os.json
    install -m 0644 ${B}/disk.conf ${D}${sysconfdir}/copal/disk.conf
    install -D -m 0644 ${B}/61-copal-disk.rules ${D}${nonarch_base_libdir}/udev/rules.d/61-copal-disk.rules
    # Provisioning puts the file there; the agent looks for it here.
    ln -s /data/os/copal.json ${D}${sysconfdir}/copal/copal.json
    install -D -m 0755 ${S}/health-data.sh ${D}${sysconfdir}/copal/health.d/10-data

    for script in copal-data copal-provision copal-trial-guard; do
        install -D -m 0755 ${S}/$script.sh ${D}${libexecdir}/copal/$script
    done
    for unit in copal-data.service copal-provision.service copal-trial-guard.service copal-trial-guard.timer \
        var-lib-systemd-timesync.mount; do
        install -D -m 0644 ${S}/$unit ${D}${systemd_system_unitdir}/$unit
        sed -i 's|@LIBEXEC@|${libexecdir}/copal|' ${D}${systemd_system_unitdir}/$unit
    done
    install -D -m 0644 ${S}/emergency.conf ${D}${systemd_system_unitdir}/emergency.service.d/10-copal.conf
    install -D -m 0644 ${S}/emergency.conf ${D}${systemd_system_unitdir}/rescue.service.d/10-copal.conf

    install -D -m 0644 ${S}/system.conf ${D}${systemd_unitdir}/system.conf.d/20-copal.conf
    install -D -m 0644 ${S}/journald.conf ${D}${systemd_unitdir}/journald.conf.d/20-copal.conf
    install -D -m 0644 ${S}/timesyncd.conf ${D}${systemd_unitdir}/timesyncd.conf.d/20-copal.conf
    install -D -m 0644 ${S}/network.network ${D}${systemd_unitdir}/network/20-copal.network
    install -D -m 0644 ${S}/sysctl.conf ${D}${libdir}/sysctl.d/20-copal.conf
    # PID 1 moves a clock that is behind up to this file's time before anything else runs.
    install -D -m 0644 /dev/null ${D}${nonarch_libdir}/clock-epoch

    install -d ${D}/data ${D}/boot/efi ${D}${localstatedir}/lib/systemd/timesync
}

SYSTEMD_SERVICE:${PN} = " \
    copal-data.service \
    copal-provision.service \
    copal-trial-guard.timer \
    var-lib-systemd-timesync.mount \
"

FILES:${PN} += "${nonarch_base_libdir}/udev/rules.d \
    /boot/efi \
    /data \
    ${localstatedir}/lib/systemd/timesync \
    ${nonarch_libdir}/clock-epoch \
    ${libdir}/sysctl.d \
    ${systemd_system_unitdir} \
    ${systemd_unitdir} \
"

RDEPENDS:${PN} = " \
    copal-agent \
    coreutils \
    e2fsprogs-e2fsck \
    e2fsprogs-mke2fs \
    util-linux-blkid \
    util-linux-blockdev \
    util-linux-mount \
    util-linux-partx \
    util-linux-sfdisk \
    util-linux-umount \
"
