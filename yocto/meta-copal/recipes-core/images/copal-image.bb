SUMMARY = "Copal OS: a container host that updates itself in two slots"
DESCRIPTION = "What goes to devices in the field: read-only root, no login, no SSH; diagnosis goes through the agent."
LICENSE = "Apache-2.0"

inherit copal_image

TEST_SUITES = "ping copal"
