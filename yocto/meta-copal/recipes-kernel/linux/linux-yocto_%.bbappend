FILESEXTRAPATHS:prepend:copal := "${THISDIR}/files:"

SRC_URI:append:copal = " \
    file://copal-containers.cfg \
    file://copal-system.cfg \
    file://copal-qemu.cfg \
"
