# The same boot partition serves both slots: config.txt names the kernel's command line by the partition it was read from.
#
# Source: the [boot_partition=N] filter, raspberrypi/documentation pull request 4100 (May 2025): "to have identical files installed
# to the boot partition for both the A and B images"; in the Pi 5's EEPROM since 2025-03-10 (raspberrypi/rpi-eeprom,
# firmware-2712/release-notes.md), in start4.elf since March 2025 (raspberrypi/firmware issue 1940). start*.elf comes with the
# boot partition itself (meta-raspberrypi at wrynose: firmware of 2025-08-01). For the Pi 3 the sources name no version; it
# shares the parser with the Pi 4's start4.elf, and this is to be seen on a board.
#
# A firmware that does not know the filter skips the sections and takes cmdline.txt: root of slot a, no `copal.slot=`. By that
# the agent knows it, and refuses updates on that board before the first write.
#
# kernel_watchdog_timeout: raspberrypi/documentation pull request 4144 (August 2025). The firmware starts the watchdog and hands it
# to the kernel, so a kernel that hangs before PID 1 ends a trial, too. An older firmware ignores it.
do_deploy:append:copal() {
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
}
