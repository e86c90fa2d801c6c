# One command line a slot; rpi-config's [boot_partition=N] chooses. Whether a boot is a trial is told by the device tree
# (/proc/device-tree/chosen/bootloader/tryboot), so there is no copal.trial= here.
CMDLINE_ROOTFS:copal = "root=PARTUUID=${COPAL_DISK_ID}-05 rootfstype=ext4 ro rootwait panic=10"

do_compile:append:copal() {
    sed 's|$| copal.slot=a|' ${WORKDIR}/cmdline.txt > ${WORKDIR}/cmdline-a.txt
    sed 's|root=PARTUUID=${COPAL_DISK_ID}-05|root=PARTUUID=${COPAL_DISK_ID}-06|; s|$| copal.slot=b|' \
        ${WORKDIR}/cmdline.txt > ${WORKDIR}/cmdline-b.txt
    grep -q 'root=PARTUUID=${COPAL_DISK_ID}-06 .*copal.slot=b$' ${WORKDIR}/cmdline-b.txt ||
        bbfatal "cmdline-b.txt does not name the root of slot b"
}

do_deploy:append:copal() {
    install -m 0644 ${WORKDIR}/cmdline-a.txt ${WORKDIR}/cmdline-b.txt ${DEPLOYDIR}/${BOOTFILES_DIR_NAME}/
}
