#!/bin/busybox sh
# Healthy as long as the page can be served and the store answers.
. /app/http.sh
request GET 127.0.0.1 /version >/dev/null || exit 1
request GET store /cgi-bin/kv >/dev/null || {
    echo 'web: the store does not answer' >/proc/1/fd/2
    exit 1
}
