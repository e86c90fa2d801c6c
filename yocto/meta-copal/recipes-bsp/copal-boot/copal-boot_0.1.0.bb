SUMMARY = "Boot script or grub.cfg of the first partition, and the first boot state"
DESCRIPTION = "The files are those of images/os/boot, which the tests boot in QEMU; nothing is copied."
LICENSE = "Apache-2.0"
LIC_FILES_CHKSUM = "file://${COPAL_REPO}/LICENSE;md5=3b83ef96387f14655fc854ddc3c6bd57"

FILESEXTRAPATHS:prepend := "${COPAL_REPO}/images/os/boot:"

COPAL_BOOT_FILES = ""
COPAL_BOOT_FILES:aarch64 = "file://boot.cmd"
COPAL_BOOT_FILES:qemux86-64 = "file://grub.cfg"
SRC_URI = "file://copal-boot-state.txt ${COPAL_BOOT_FILES}"
S = "${UNPACKDIR}"

inherit deploy nopackages

COMPATIBLE_MACHINE = "^(qemuarm64|qemux86-64|rpi)$"
PACKAGE_ARCH = "${MACHINE_ARCH}"
INHIBIT_DEFAULT_DEPS = "1"
DEPENDS:append:aarch64 = " u-boot-tools-native"

do_configure[noexec] = "1"
do_install[noexec] = "1"

B = "${WORKDIR}/build"
do_compile[cleandirs] = "${B}"

do_compile:aarch64() {
    mkimage -A arm64 -T script -C none -n copal -d ${S}/boot.cmd ${B}/copal-boot.scr
    install -m 0644 ${S}/copal-boot-state.txt ${B}/copal-boot-state.txt
}

do_compile:qemux86-64() {
    install -m 0644 ${S}/grub.cfg ${B}/copal-grub.cfg
    # An environment block as GRUB makes it: 1,024 bytes, the rest is #. It is written in place, never made longer. The last
    # two lines are how a copy is known to be whole (agent/src/os/boot/grub.rs).
    {
        printf '# GRUB Environment Block\n'
        cat ${S}/copal-boot-state.txt
        printf 'copal_check=a0\ncopal_end=1\n'
    } > ${B}/copal-grub-env
    head -c $(expr 1024 - $(wc -c < ${B}/copal-grub-env)) /dev/zero | tr '\0' '#' >> ${B}/copal-grub-env
}

do_deploy() {
    install -m 0644 ${B}/copal-* ${DEPLOYDIR}/
}
addtask deploy after do_compile before do_build
