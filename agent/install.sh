#!/bin/sh
# Joins this device (Raspberry Pi OS, Debian, or anything with systemd) to a fleet:
#
#   sudo ./install.sh copal-agent copal.json
#
# The first file is the agent built for this machine, the second comes from `copal device config`. Running it again
# updates the agent or the units; it never touches the state of a device that has joined.
set -eu

say() { printf '%s\n' "$*"; }
fail() { printf 'install.sh: %s\n' "$*" >&2; exit 1; }

[ $# -eq 2 ] || fail "usage: sudo $0 COPAL_AGENT COPAL_JSON"
agent=$1
config=$2
here=$(cd "$(dirname "$0")" && pwd)

[ "$(id -u)" -eq 0 ] || fail "this needs root: run it with sudo"
[ -f "$agent" ] || fail "there is no $agent: build it with 'cargo build -p copal-agent --profile small'"
[ -f "$config" ] || fail "there is no $config: make it with 'copal device config FLEET' on your machine"
command -v systemctl >/dev/null 2>&1 || fail "this device has no systemd; start '$agent run' by its own means"
"$agent" version >/dev/null 2>&1 || fail "$agent does not run here: it is built for another machine than $(uname -m)"

if ! command -v docker >/dev/null 2>&1 && ! command -v balena-engine >/dev/null 2>&1; then
    say "note: no container engine is installed; the agent waits for one: apt-get install docker.io"
fi

install -D -m 0755 "$agent" /usr/bin/copal-agent.new
mv /usr/bin/copal-agent.new /usr/bin/copal-agent
install -d -m 0755 /etc/copal
# It holds the enrolment token: for root only.
install -m 0600 "$config" /etc/copal/copal.json
install -m 0644 "$here/systemd/copal-agent.service" "$here/systemd/copal-prepare.service" \
    "$here/systemd/run-copal-locks.mount" /etc/systemd/system/
systemctl daemon-reload
systemctl enable run-copal-locks.mount copal-prepare.service copal-agent.service
# Mounted over folders that containers have bound already, it would hide the locks they hold.
if [ ! -d /run/copal/locks ]; then
    systemctl start run-copal-locks.mount
elif ! systemctl is-active --quiet run-copal-locks.mount; then
    say "note: the bounded folder for update locks is used from the next boot on"
fi
systemctl restart copal-agent.service
say "joined; look at it with: sudo copal-agent status"
