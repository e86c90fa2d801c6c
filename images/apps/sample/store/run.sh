#!/bin/busybox sh
# Serves the values in /data until it is asked to stop (see ../web/run.sh for why a shell stays in front).
trap 'kill "$server"; exit 0' TERM INT
busybox=/bin/busybox
$busybox mkdir -p /data
echo "store: $($busybox ls /data | $busybox wc -l) values kept, port 8080"
$busybox httpd -f -p 8080 -h /www &
server=$!
wait "$server"
