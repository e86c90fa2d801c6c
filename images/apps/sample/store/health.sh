#!/bin/busybox sh
# Healthy as long as the values can be read.
. /app/http.sh
request GET 127.0.0.1 /cgi-bin/kv >/dev/null
