SUMMARY = "Update bundle of copal-image"
DESCRIPTION = "What `copal os release` uploads after `copal os bundle sign`: the slot's payloads in chunks, and an unsigned release."
LICENSE = "Apache-2.0"

inherit copal_bundle features_check

REQUIRED_DISTRO_FEATURES = "copal systemd virtualization"

SRC_URI = ""

COPAL_BUNDLE_IMAGE = "copal-image"
