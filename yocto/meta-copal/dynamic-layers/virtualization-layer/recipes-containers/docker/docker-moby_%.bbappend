FILESEXTRAPATHS:prepend:copal := "${THISDIR}/files:"

SRC_URI:append:copal = " file://daemon.json file://10-data.conf"

do_install:append:copal() {
    install -D -m 0644 ${UNPACKDIR}/daemon.json ${D}${sysconfdir}/docker/daemon.json
    install -D -m 0644 ${UNPACKDIR}/10-data.conf ${D}${systemd_system_unitdir}/docker.service.d/10-data.conf
}
