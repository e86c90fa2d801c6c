#!/bin/sh
# Ends a trial that nobody judged: an agent that does not start (a broken program, a data partition that is gone) can neither
# commit nor go back, and on a Raspberry Pi only a restart ends a trial.
#
# answer when judged: {"trial":false}
# It asks the kernel whether this boot is a trial and the agent whether it was judged. No answer is no verdict. Where the other
# slot has no head it does nothing: the restart would lead here again, for ever.
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

# Whether the other slot's root has a superblock (the sector at 1,024 is zero while it cannot boot), by os.json. What cannot be
# told counts as yes.
way_back() {
    case " $(cat "$root/proc/cmdline") " in
    *' copal.slot=a '*) other=b ;;
    *' copal.slot=b '*) other=a ;;
    *) return 0 ;;
    esac
    [ -f "$root/etc/copal/os.json" ] || return 0
    device=$(tr -d '\n ' <"$root/etc/copal/os.json" | sed -n "s/.*\"$other\":{[^}]*\"rootfs\":\"\([^\"]*\)\".*/\1/p")
    [ -e "$root$device" ] && [ -n "$device" ] || return 0
    [ "$(dd if="$root$device" bs=512 skip=2 count=1 2>/dev/null | tr -d '\0' | wc -c)" -ne 0 ]
}

trial || exit 0
if copal-agent os status --json 2>/dev/null | grep -q '"trial": *false'; then
    exit 0
fi
if ! way_back; then
    echo "copal-trial-guard: this boot is a trial and nobody judged it; it goes on, because the other slot cannot boot"
    exit 0
fi
echo "copal-trial-guard: this boot is a trial and nobody judged it; restarting into the committed slot"
sync
if [ -z "$root" ]; then
    systemctl reboot --force
fi
