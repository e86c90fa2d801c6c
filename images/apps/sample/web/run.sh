#!/bin/busybox sh
# Serves /www until it is asked to stop. A shell stays in front because a first process without a handler
# ignores SIGTERM, and every update would wait for the engine's kill.
trap 'kill "$server"; exit 0' TERM INT
busybox=/bin/busybox
echo "web: release $($busybox cat /www/version), port 8080"
$busybox httpd -f -p 8080 -h /www &
server=$!
wait "$server"
