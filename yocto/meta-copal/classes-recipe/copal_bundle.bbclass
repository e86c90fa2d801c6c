# Makes an update bundle (*.copal) of an image of class copal_image.
#
# In: COPAL_FLEET_ID, the fleet whose devices may run it (a release names its fleet); COPAL_BUNDLE_IMAGE; COPAL_BUNDLE_BASES, images or bundles that devices run now (their blocks are packed apart, so that
# updates from them download less). Out: copal-os-<device type>-<version>.copal in the deploy folder, not signed: the host key
# has no place on a build machine. `copal os bundle sign` adds the signature where the key is.

inherit deploy image-artifact-names nopackages

INHIBIT_DEFAULT_DEPS = "1"
PACKAGE_ARCH = "${MACHINE_ARCH}"

do_fetch[noexec] = "1"
do_unpack[noexec] = "1"
do_patch[noexec] = "1"
do_configure[noexec] = "1"
do_compile[noexec] = "1"
do_install[noexec] = "1"

COPAL_FLEET_ID ??= ""
COPAL_BUNDLE_BASES ??= ""
COPAL_BUNDLE_MIN_FROM ??= ""
COPAL_BUNDLE_FILE = "copal-os-${COPAL_DEVICE_TYPE}-${COPAL_OS_VERSION}.copal"

# As OCI and the agent spell it.
COPAL_ARCH = "${@{'aarch64': 'arm64', 'x86_64': 'amd64'}.get(d.getVar('TARGET_ARCH'), d.getVar('TARGET_ARCH'))}"

# Of no other task's results: it fails in the first seconds, not after the image.
do_check_fleet[doc] = "Sees to it that the fleet is named"
do_check_fleet() {
    if [ -z "${COPAL_FLEET_ID}" ]; then
        bbfatal "COPAL_FLEET_ID is not set: \`copal fleet show\` on the owner's machine prints it. Without it build copal-image alone."
    fi
}
addtask check_fleet before do_prepare_recipe_sysroot

do_bundle[doc] = "Makes the update bundle"
do_bundle[depends] += "${COPAL_BUNDLE_IMAGE}:do_image_complete copal-cli-native:do_populate_sysroot"
do_bundle[cleandirs] = "${B}"
do_bundle() {
    stem=${DEPLOY_DIR_IMAGE}/${COPAL_BUNDLE_IMAGE}${IMAGE_MACHINE_SUFFIX}${IMAGE_NAME_SUFFIX}
    set -- --rootfs $stem.ext4
    if [ "${@bb.utils.contains('COPAL_PAYLOADS', 'boot', '1', '', d)}" = 1 ]; then
        set -- "$@" --boot $stem.bootfat
    fi
    for base in ${COPAL_BUNDLE_BASES}; do
        set -- "$@" --base $base
    done
    if [ -n "${COPAL_BUNDLE_MIN_FROM}" ]; then
        set -- "$@" --min-from ${COPAL_BUNDLE_MIN_FROM}
    fi
    copal os bundle create "$@" --fleet-id ${COPAL_FLEET_ID} --force \
        --device-type ${COPAL_DEVICE_TYPE} --arch ${COPAL_ARCH} --version ${COPAL_OS_VERSION} \
        --data-schema ${COPAL_DATA_SCHEMA} -o ${B}/${COPAL_BUNDLE_FILE}
}
addtask bundle after do_prepare_recipe_sysroot before do_deploy

do_deploy() {
    install -m 0644 ${B}/${COPAL_BUNDLE_FILE} ${DEPLOYDIR}/
}
addtask deploy after do_bundle before do_build
