# The Raspberry Pi boots by its own firmware; COPAL_UBOOT_CONFIG is empty unless U-Boot is the backend.
FILESEXTRAPATHS:prepend:copal := "${THISDIR}/files:"

SRC_URI:append:copal = " ${COPAL_UBOOT_CONFIG}"
