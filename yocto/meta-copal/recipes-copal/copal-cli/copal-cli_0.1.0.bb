SUMMARY = "The owner's command line of Copal"
DESCRIPTION = "Keys, signing, provisioning and deploying. Here it makes the bundles of operating system images, on the build machine."

inherit copal_cargo

require copal-cli-crates.inc

COPAL_PACKAGE = "copal"
COPAL_PROGRAM = "copal"

BBCLASSEXTEND = "native"
