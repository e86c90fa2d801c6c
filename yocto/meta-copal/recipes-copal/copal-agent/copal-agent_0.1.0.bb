SUMMARY = "The supervisor of a Copal device"
DESCRIPTION = "Runs what the owner of the fleet signed: containers, and this operating system's updates in two slots."

inherit copal_cargo systemd

require copal-agent-crates.inc

COPAL_PACKAGE = "copal-agent"
COPAL_PROGRAM = "copal-agent"

SRC_URI += "file://copal-agent.service.d/10-data.conf \
    file://copal-agent.service.d/20-os.conf \
    file://copal-prepare.service.d/10-data.conf \
    file://var-lib-copal.mount \
"

# The units are those that install.sh brings, unchanged; what differs on this image stands in drop-ins.
COPAL_UNITS = "copal-agent.service copal-prepare.service run-copal-locks.mount"
SYSTEMD_SERVICE:${PN} = "${COPAL_UNITS} var-lib-copal.mount"

do_install:append() {
    install -d ${D}${systemd_system_unitdir}
    for unit in ${COPAL_UNITS}; do
        install -m 0644 ${S}/agent/systemd/$unit ${D}${systemd_system_unitdir}/
    done
    install -m 0644 ${UNPACKDIR}/var-lib-copal.mount ${D}${systemd_system_unitdir}/
    for unit in copal-agent copal-prepare; do
        install -D -m 0644 ${UNPACKDIR}/$unit.service.d/10-data.conf \
            ${D}${systemd_system_unitdir}/$unit.service.d/10-data.conf
    done
    install -m 0644 ${UNPACKDIR}/copal-agent.service.d/20-os.conf ${D}${systemd_system_unitdir}/copal-agent.service.d/
    # Mount point of the state, on a root that is never written.
    install -d -m 0700 ${D}${localstatedir}/lib/copal
}

FILES:${PN} += "${systemd_system_unitdir}/*.service.d ${localstatedir}/lib/copal"

RRECOMMENDS:${PN} += "ca-certificates"
