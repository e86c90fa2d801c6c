SUMMARY = "What a Copal device runs"
DESCRIPTION = "The agent, the settings of the operating system, and the container engine."

inherit packagegroup features_check

PACKAGE_ARCH = "${MACHINE_ARCH}"
REQUIRED_DISTRO_FEATURES = "copal systemd virtualization"

PACKAGES = "${PN} ${PN}-dev-tools"

RDEPENDS:${PN} = " \
    ${COPAL_ENGINE} \
    ca-certificates \
    copal-agent \
    copal-os \
    kernel-modules \
"

# Firmware of the board's radios and the like; what is not there or whose licence was not accepted is left out.
RRECOMMENDS:${PN} = "${@d.getVar('MACHINE_EXTRA_RRECOMMENDS') or ''}"

RDEPENDS:${PN}-dev-tools = " \
    e2fsprogs-tune2fs \
    iproute2 \
    less \
    procps \
    strace \
    util-linux \
"
