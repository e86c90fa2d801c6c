SUMMARY = "autoboot.txt of a Raspberry Pi with two slots"
DESCRIPTION = "Read by the firmware on the first partition: slot a is booted, slot b is tried once after `reboot '0 tryboot'`."
LICENSE = "Apache-2.0"
LIC_FILES_CHKSUM = "file://${COPAL_REPO}/LICENSE;md5=3b83ef96387f14655fc854ddc3c6bd57"

SRC_URI = "file://autoboot.txt"
S = "${UNPACKDIR}"

inherit deploy nopackages

COMPATIBLE_MACHINE = "^rpi$"
PACKAGE_ARCH = "${MACHINE_ARCH}"
INHIBIT_DEFAULT_DEPS = "1"

do_configure[noexec] = "1"
do_compile[noexec] = "1"
do_install[noexec] = "1"

# One sector is the limit of the firmware, and what the agent replaces in one write.
do_deploy() {
    [ $(wc -c < ${S}/autoboot.txt) -le 512 ] || bbfatal "autoboot.txt is longer than 512 bytes; the firmware would not read it"
    install -m 0644 ${S}/autoboot.txt ${DEPLOYDIR}/
}
addtask deploy before do_build after do_unpack
