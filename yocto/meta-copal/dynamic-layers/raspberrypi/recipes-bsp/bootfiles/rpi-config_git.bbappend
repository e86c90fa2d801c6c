# The same boot partition serves both slots: config.txt names the kernel's command line by the partition it was read from.
#
# Source: the [boot_partition=N] filter, raspberrypi/documentation pull request 4100 (May 2025): "to have identical files installed
# to the boot partition for both the A and B images"; in the Pi 5's EEPROM since 2025-03-10 (raspberrypi/rpi-eeprom,
# firmware-2712/release-notes.md), in start4.elf since March 2025 (raspberrypi/firmware issue 1940). start4.elf comes with the
# boot partition itself (meta-raspberrypi at wrynose: firmware of 2025-08-01).
#
# A firmware that does not know the filter skips the sections and takes cmdline.txt, which has the root of slot a. A trial of slot b
# would then run on the wrong root; the agent sees that (os_root_mismatch), does not commit, and the next boot is slot a again.
#
# kernel_watchdog_timeout: raspberrypi/documentation pull request 4144 (August 2025). The firmware starts the watchdog and hands it
# to the kernel, so a kernel that hangs before PID 1 ends a trial, too. An older firmware ignores it.
#
# Under U-Boot (Pi 3) none of it applies: U-Boot makes the command line and would not feed the watchdog.
do_deploy:append:copal() {
    if [ "${COPAL_BACKEND}" = tryboot ]; then
        cat >> ${DEPLOYDIR}/${BOOTFILES_DIR_NAME}/config.txt <<END

[all]
cmdline=cmdline.txt
[boot_partition=2]
cmdline=cmdline-a.txt
[boot_partition=3]
cmdline=cmdline-b.txt
[all]
kernel_watchdog_timeout=60
END
    fi
}
