#!/bin/sh
# Prints one of the partition tables here in the form a tool reads:
#   table.sh sfdisk NAME   for `sfdisk DISK`
#   table.sh wks NAME      for wic: sizes, places and types; the layer adds each partition's source
#   table.sh rows NAME     "number name start_mib size_mib type fs", without comments
#   table.sh size NAME     the smallest disk it fits on, in MiB
# A table that overlaps, is out of order, or begins before 16 MiB where the boot state lies is refused.
set -eu

die() {
    echo "table.sh: $*" >&2
    exit 1
}

[ $# -eq 2 ] || die "usage: table.sh sfdisk|wks|rows|size uboot|grub|tryboot"
form=$1 name=$2
case $name in */* | .* | '') die "$name is no table's name" ;; esac
table=$(dirname "$0")/$name.table
[ -r "$table" ] || die "there is no $table"

# shellcheck disable=SC2016 # awk's own variables
awk -v form="$form" -v table="$table" '
function bad(why) { print table ":" NR ": " why > "/dev/stderr"; failed = 1; exit 1 }
/^[[:space:]]*(#|$)/ { next }
$1 == "label" {
    if (NF != 2 || ($2 != "dos" && $2 != "gpt")) bad("label must be dos or gpt")
    label = $2
    if (form == "sfdisk") print "label: " label
    if (form == "wks") print "bootloader --ptable " (label == "gpt" ? "gpt" : "msdos")
    next
}
{
    if (label == "") bad("the label must come first")
    if (NF != 6) bad("want six words: number name start_mib size_mib type fs")
    if ($1 != ++count) bad("partition " $1 " is out of order")
    if ($3 !~ /^[0-9]+$/ || $4 !~ /^[1-9][0-9]*$/) bad("start and size are whole MiB")
    # A BIOS core of GRUB ends before the boot state; everything else begins after it.
    if ($3 < 16 && $3 + $4 > 4) bad("it covers the boot state at 4 and 8 MiB")
    logical = label == "dos" && $1 > 4
    if (logical && (!extended || $3 < inner + 4 || $3 + $4 > end)) bad("it does not fit into the extended partition, 4 MiB behind what is before it")
    if (!logical && $3 < end) bad("it overlaps what is before it")
    if (label == "dos" && $1 == 4 && $5 == "f") { extended = 1; inner = $3 }
    if (logical) inner = $3 + $4; else end = $3 + $4
    if (form == "rows") print $1, $2, $3, $4, $5, $6
    if (form == "sfdisk")
        print $1 ": start=" $3 "MiB, size=" $4 "MiB, type=" $5 (label == "gpt" ? ", name=" $2 : "")
    if (form == "wks" && !(label == "dos" && $5 == "f")) {
        # wic makes the extended partition by itself.
        line = "part --label " $2 " --fixed-size " $4 "M --align " ($3 % 16 == 0 ? 16384 : ($3 % 4 == 0 ? 4096 : 1024)) " --ondisk @DISK@"
        if ($6 != "none") line = line " --fstype=" $6
        if (label == "gpt") line = line " --part-name " $2 " --part-type " $5
        else line = line " --system-id 0x" (length($5) == 1 ? "0" : "") $5
        print line
    }
}
END {
    if (failed) exit 1
    if (!count) { print table ": no partition" > "/dev/stderr"; exit 1 }
    if (form == "size") print end + 1
    else if (form != "rows" && form != "sfdisk" && form != "wks") { print "table.sh: " form " is no form" > "/dev/stderr"; exit 1 }
}' "$table"
