#!/bin/sh
# Ends a trial that nobody judged: an agent that does not start (a broken program, a data partition that is gone) can neither
# commit nor go back, and on a Raspberry Pi only a restart ends a trial.
#
# answer when judged: {"trial":false}
# It asks the kernel whether this boot is a trial and the agent whether it was judged. No answer is no verdict.
#
#   copal-trial-guard [folder that stands for / in tests]
set -eu

root=${1:-}

# A big-endian u32 of the device tree, or 0.
device_tree() {
    file=$root/proc/device-tree/chosen/bootloader/$1
    if [ -f "$file" ]; then od -An -tu1 -N4 "$file" | awk '{print (($1 * 256 + $2) * 256 + $3) * 256 + $4}'; else echo 0; fi
}

trial() {
    case " $(cat "$root/proc/cmdline") " in *' copal.trial=1 '*) return 0 ;; esac
    [ "$(device_tree tryboot)" = 1 ]
}

trial || exit 0
if copal-agent os status --json 2>/dev/null | grep -q '"trial": *false'; then
    exit 0
fi
echo "copal-trial-guard: this boot is a trial and nobody judged it; restarting into the committed slot"
sync
if [ -z "$root" ]; then
    systemctl reboot --force
fi
