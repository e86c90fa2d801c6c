SUMMARY = "Copal OS for the bench: root may log in without a password, by SSH too"
DESCRIPTION = "The same slots and the same agent, with tools. Never put it on a network that is not yours."
LICENSE = "Apache-2.0"

inherit copal_image

IMAGE_FEATURES += "allow-empty-password allow-root-login empty-root-password post-install-logging ssh-server-openssh"
IMAGE_INSTALL:append = " packagegroup-copal-dev-tools"

TEST_SUITES = "ping ssh systemd copal"
