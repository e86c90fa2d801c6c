#!/bin/busybox sh
# Counts, and writes the count to the store. It goes on from the count it finds there, so a number that falls
# would show that an update lost data.
trap 'exit 0' TERM INT
busybox=/bin/busybox
. /app/http.sh
pause() {
    # In the background, so that a signal is heard at once.
    $busybox sleep "$1" &
    wait $!
}
count=
while :; do
    if [ -z "$count" ]; then
        # A fresh store has no count; a store that is not up yet answers nothing at all.
        if kept=$(request GET store /cgi-bin/kv); then
            count=$(printf '%s\n' "$kept" | $busybox sed -n 's/^count=//p')
            count=${count:-0}
            echo "worker: goes on from $count"
        else
            echo 'worker: the store does not answer yet'
            pause 1
            continue
        fi
    fi
    if request POST store '/cgi-bin/kv?count' "$((count + 1))" >/dev/null; then
        count=$((count + 1))
    else
        echo "worker: could not write $((count + 1)); trying again"
    fi
    pause "${INTERVAL_SECONDS:-2}"
done
