#!/bin/busybox sh
# Broken on purpose: this release never becomes healthy, and the device goes back by itself.
echo 'web: the settings of release 3 make no sense: the unit "furlong" is unknown' >/proc/1/fd/2
exit 1
