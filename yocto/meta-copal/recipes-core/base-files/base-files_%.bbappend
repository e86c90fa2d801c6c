# `nofail`: a device whose data cannot be mounted still comes up, so that a trial on it can end (copal-trial-guard).
do_install:append:copal() {
    if [ -n "${COPAL_DATA_DEVICE}" ]; then
        cat >> ${D}${sysconfdir}/fstab <<END
${COPAL_DATA_DEVICE} /data ext4 noatime,nodev,nofail,x-systemd.requires=copal-data.service,x-systemd.device-timeout=60s 0 2
END
    fi
    if [ "${COPAL_BACKEND}" = grub ]; then
        cat >> ${D}${sysconfdir}/fstab <<END
${COPAL_FIRST_DEVICE} /boot/efi vfat noatime,nosuid,nodev,noexec,umask=077,sync,nofail 0 0
END
    fi
}
