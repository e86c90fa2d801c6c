# meta-balena-common's engine; COPAL_ENGINE = "balena" puts it into the image (kas/balena-engine.yml).
FILESEXTRAPATHS:prepend:copal := "${THISDIR}/files:"

SRC_URI:append:copal = " file://10-copal.conf"

do_install:append:copal() {
    install -D -m 0644 ${UNPACKDIR}/10-copal.conf ${D}${systemd_system_unitdir}/balena.service.d/10-copal.conf
}

FILES:${PN}:append:copal = " ${systemd_system_unitdir}/balena.service.d"
