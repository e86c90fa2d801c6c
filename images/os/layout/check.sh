#!/bin/sh
# Checks the partition tables and table.sh: what they print is taken by sfdisk as it is meant, and tables that would put a partition
# over the boot state, or over another one, are refused. Needs sfdisk.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

die() {
    echo "layout: $*" >&2
    exit 1
}

for name in uboot grub tryboot; do
    truncate -s "$("$here/table.sh" size "$name")M" "$dir/disk"
    "$here/table.sh" sfdisk "$name" | sfdisk -q "$dir/disk" || die "$name: sfdisk refuses it"
    sfdisk -d "$dir/disk" | sed -n 's/.* start= *\([0-9]*\), size= *\([0-9]*\),.*/\1 \2/p' >"$dir/made"
    "$here/table.sh" rows "$name" | while read -r _ _ start size _; do echo "$((start * 2048)) $((size * 2048))"; done >"$dir/meant"
    cmp -s "$dir/made" "$dir/meant" || die "$name: sfdisk made something else: $(diff "$dir/made" "$dir/meant")"
    # 4 MiB to 8 MiB and 4 KiB belong to the boot state (GRUB's is in files, but the place is kept).
    while read -r start size; do
        [ "$start" -ge $((16 * 2048)) ] || [ $((start + size)) -le $((4 * 2048)) ] || die "$name: block $start lies over the boot state"
    done <"$dir/made"
    wanted=$("$here/table.sh" rows "$name" | grep -cv ' f none$')
    [ "$("$here/table.sh" wks "$name" | grep -c '^part ')" -eq "$wanted" ] || die "$name: wks has another number of partitions"
    rm "$dir/disk"
done

cp "$here/table.sh" "$dir/"
refused() {
    printf '%b' "$2" >"$dir/bad.table"
    if "$dir/table.sh" rows bad >/dev/null 2>&1; then die "it takes a table that $1"; fi
}
refused "covers the boot state" 'label dos\n1 x 1 16 c vfat\n'
refused "overlaps itself" 'label dos\n1 x 16 16 c vfat\n2 y 31 16 83 ext4\n'
refused "is out of order" 'label dos\n2 x 16 16 c vfat\n'
refused "has no label" '1 x 16 16 c vfat\n'
refused "has no size" 'label gpt\n1 x 16 0 c vfat\n'
refused "leaves no place for a logical partition's entry" 'label dos\n1 a 16 1 c x\n2 b 17 1 c x\n3 c 18 1 c x\n4 e 20 64 f none\n5 d 21 8 83 x\n'
refused "has a logical partition past the extended one" 'label dos\n1 a 16 1 c x\n2 b 17 1 c x\n3 c 18 1 c x\n4 e 20 64 f none\n5 d 24 80 83 x\n'
refused "is empty" '# nothing\n'
if "$here/table.sh" rows ../layout/uboot >/dev/null 2>&1; then die "it takes a path for a name"; fi
if "$here/table.sh" other uboot >/dev/null 2>&1; then die "it takes another form"; fi
echo "layout: ok"
