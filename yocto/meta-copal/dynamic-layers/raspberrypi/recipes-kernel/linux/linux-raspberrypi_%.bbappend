FILESEXTRAPATHS:prepend:copal := "${COPAL_LAYERDIR}/recipes-kernel/linux/files:"

SRC_URI:append:copal = " \
    file://copal-containers.cfg \
    file://copal-system.cfg \
    file://copal-rpi.cfg \
"
