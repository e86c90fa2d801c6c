# An image with two slots: what goes into a slot is made once, and both the disk image (wic) and the update bundle take it
# from there, byte for byte.
#
#   <image>.ext4         the root file system, exactly as large as a slot
#   <image>.bootfat      Raspberry Pi: the FAT partition with firmware, kernel and device trees; the same for both slots
#   <image>.firstfat     the first partition: autoboot.txt, boot script or EFI core; never written in the field
#   <image>.bootstate    U-Boot: the first boot state (slot a, committed), one copy
#   <image>.virgin       the mark by which copal-data knows that the data partition was never made
#   <image>.wic          the disk

inherit core-image features_check

REQUIRED_DISTRO_FEATURES = "copal systemd virtualization"

python () {
    backend = d.getVar("COPAL_BACKEND")
    if backend in (None, "none"):
        raise bb.parse.SkipRecipe("MACHINE %s has no boot backend (COPAL_BACKEND, conf/distro/copal.conf)" % d.getVar("MACHINE"))
}

COPAL_DISK_ID ??= ""
COPAL_FIRST_DEPENDS ??= ""
COPAL_FIRST_FAT ??= ""

# The payloads come before the disk that is put together from them.
COPAL_PARTS_TYPES = "ext4 firstfat virgin \
    ${@bb.utils.contains('COPAL_PAYLOADS', 'boot', 'bootfat', '', d)} \
    ${@'bootstate' if d.getVar('COPAL_BACKEND') == 'uboot' else ''} \
"
IMAGE_FSTYPES = "${COPAL_PARTS_TYPES} wic.zst wic.bmap"
IMAGE_TYPES += "bootfat bootstate firstfat virgin"
# nooelint: oelint.vars.specific,oelint.vars.mispell
IMAGE_TYPEDEP:wic = "${COPAL_PARTS_TYPES}"
# Nothing is taken from the boot loader recipes by wic itself: no plugin of ours makes a boot partition.
WKS_FILE_DEPENDS = "wic-native bmaptool-native e2fsprogs-native"

# A slot is filled by its file system to the last block, whatever is in it; more than fits is an error here, not in the field.
IMAGE_ROOTFS_SIZE = "${@int(d.getVar('COPAL_SLOT_MIB') or 0) * 1024}"
IMAGE_ROOTFS_MAXSIZE = "${IMAGE_ROOTFS_SIZE}"
IMAGE_OVERHEAD_FACTOR = "1.0"
IMAGE_ROOTFS_EXTRA_SPACE = "0"
# No journal: a slot is mounted read-only. A fixed order and hash seed keep the blocks of unchanged files where they were,
# which is what block reuse lives on.
# nooelint: oelint.vars.specific
EXTRA_IMAGECMD:ext4 = "-i 16384 -O ^has_journal,^metadata_csum_seed -E hash_seed=636f7061-6c00-4000-8000-000000000001"

IMAGE_FEATURES += "read-only-rootfs"
IMAGE_LINGUAS = ""
IMAGE_INSTALL = "packagegroup-core-boot packagegroup-copal ${COPAL_KERNEL_IN_ROOT} ${CORE_IMAGE_EXTRA_INSTALL}"

COPAL_STAGE = "${WORKDIR}/copal-fat"

# copal_fat OUT MIB LABEL "SRC[;DST] ..." [OPTIONS]: a FAT file system of files of DEPLOY_DIR_IMAGE, in a fixed order and with fixed
# times. Options are mkfs.vfat's.
copal_fat() {
    out=$1
    mib=$2
    label=$3
    options=$5
    stage=${COPAL_STAGE}-$label
    rm -rf $stage $out
    mkdir -p $stage
    set -f
    for entry in $4; do
        src=${entry%%;*}
        set +f
        for file in ${DEPLOY_DIR_IMAGE}/$src; do
            [ -e "$file" ] || bbfatal "$file is missing: it should go to the partition $label"
            case "$entry" in
            *";"*) dst=$stage/${entry#*;} ;;
            *) dst=$stage/$(basename "$file") ;;
            esac
            install -D -m 0644 "$file" "$dst"
        done
        set -f
    done
    set +f
    find $stage -exec touch -h -d @${SOURCE_DATE_EPOCH} {} +
    # FAT32 has a least number of clusters.
    if [ -z "$options" ] && [ $mib -ge 64 ]; then
        options="-F 32"
    elif [ -z "$options" ]; then
        options="-F 16"
    fi
    mkfs.vfat $options --invariant -n $label -C $out $(expr $mib \* 1024)
    for item in $(ls $stage | LC_ALL=C sort); do
        TZ=UTC mcopy -s -m -i $out $stage/$item ::/
    done
}

IMAGE_CMD:bootfat() {
    copal_fat ${IMGDEPLOYDIR}/${IMAGE_NAME}.bootfat ${COPAL_BOOT_MIB} COPALBOOT "${IMAGE_BOOT_FILES}"
}
do_image_bootfat[depends] += "dosfstools-native:do_populate_sysroot mtools-native:do_populate_sysroot virtual/kernel:do_deploy"
do_image_bootfat[depends] += "${@'rpi-bootfiles:do_deploy' if d.getVar('COPAL_BACKEND') == 'tryboot' else ''}"

IMAGE_CMD:firstfat() {
    copal_fat ${IMGDEPLOYDIR}/${IMAGE_NAME}.firstfat ${COPAL_FIRST_MIB} COPAL "${COPAL_FIRST_FILES}" "${COPAL_FIRST_FAT}"
}
do_image_firstfat[depends] += "dosfstools-native:do_populate_sysroot mtools-native:do_populate_sysroot ${COPAL_FIRST_DEPENDS}"

IMAGE_CMD:bootstate() {
    mkenvimage -s 4096 -p 0x00 -o ${IMGDEPLOYDIR}/${IMAGE_NAME}.bootstate ${DEPLOY_DIR_IMAGE}/copal-boot-state.txt
}
do_image_bootstate[depends] += "u-boot-tools-native:do_populate_sysroot copal-boot:do_deploy"

IMAGE_CMD:virgin() {
    printf COPAL-DATA-VIRGIN > ${IMGDEPLOYDIR}/${IMAGE_NAME}.virgin
    truncate -s 4096 ${IMGDEPLOYDIR}/${IMAGE_NAME}.virgin
}

# wic has no word for the MBR's disk signature (4 bytes, little endian, at 440): PARTUUIDs would differ from build to build.
IMAGE_CMD:wic:append() {
    if [ -n "${COPAL_DISK_ID}" ]; then
        printf '${@''.join('\\%03o' % b for b in bytes.fromhex(d.getVar('COPAL_DISK_ID') or '')[::-1])}' |
            dd of=$out.wic bs=1 seek=440 conv=notrunc
    fi
}

# The image's own time is the floor of the device's clock (PID 1 reads the time stamp of this file).
ROOTFS_POSTPROCESS_COMMAND += "copal_clock_epoch copal_kernel_name"
copal_clock_epoch() {
    touch -d @${REPRODUCIBLE_TIMESTAMP_ROOTFS} ${IMAGE_ROOTFS}${nonarch_libdir}/clock-epoch
}

# The names under which boot.cmd and grub.cfg (images/os/boot) look for the slot's kernel.
copal_kernel_name() {
    case "${COPAL_BACKEND}" in
    uboot) name=Image ;;
    grub) name=vmlinuz ;;
    *) return 0 ;;
    esac
    if [ ! -e ${IMAGE_ROOTFS}/boot/$name ]; then
        kernel=$(cd ${IMAGE_ROOTFS}/boot && ls | grep '^${KERNEL_IMAGETYPE}-' | head -n 1)
        [ -n "$kernel" ] || bbfatal "there is no ${KERNEL_IMAGETYPE} in /boot of the slot"
        ln -s $kernel ${IMAGE_ROOTFS}/boot/$name
    fi
}
