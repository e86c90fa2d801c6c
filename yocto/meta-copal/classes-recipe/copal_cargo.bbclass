# Builds one program of this repository with cargo.
#
# In: COPAL_PACKAGE and COPAL_PROGRAM from the recipe, COPAL_MEMBERS and the crates from `<recipe>-crates.inc`, `<recipe>.lock`.
# Out: ${bindir}/${COPAL_PROGRAM}. The sources are fetched as files of the repository, so a change of the cloud or of a
# document rebuilds nothing here.
#
# The workspace has members that a device does not need. Cargo resolves all members whatever it builds, so the root
# manifest is narrowed to the ones that are needed, with a lock file that cargo wrote for exactly these (scripts/crates.py).

inherit cargo

FILESEXTRAPATHS:prepend := "${COPAL_REPO}:"

SRC_URI = " \
    file://Cargo.toml;subdir=copal \
    file://LICENSE;subdir=copal \
    file://${BPN}.lock \
    ${@' '.join('file://%s;subdir=copal' % member for member in (d.getVar('COPAL_MEMBERS') or '').split())} \
"
S = "${UNPACKDIR}/copal"

LICENSE = "Apache-2.0"
LIC_FILES_CHKSUM = "file://LICENSE;md5=3b83ef96387f14655fc854ddc3c6bd57"

# The same profile as the agent that install.sh brings; symbols go into the -dbg package instead of away.
BUILD_MODE = "--profile small"
BUILD_DIR = "small"
export CARGO_PROFILE_SMALL_STRIP = "none"
CARGO_BUILD_FLAGS:append = " --package ${COPAL_PACKAGE} --bin ${COPAL_PROGRAM}"

COPAL_MEMBER_LIST = "${@', '.join('"%s"' % member for member in (d.getVar('COPAL_MEMBERS') or '').split())}"

do_configure:prepend() {
    sed -i 's|^members = \[.*\]$|members = [${COPAL_MEMBER_LIST}]|' ${S}/Cargo.toml
    grep -qxF 'members = [${COPAL_MEMBER_LIST}]' ${S}/Cargo.toml || bbfatal "the members of ${S}/Cargo.toml could not be narrowed"
    cp ${UNPACKDIR}/${BPN}.lock ${S}/Cargo.lock
}
