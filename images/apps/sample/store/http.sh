# request METHOD HOST PATH [BODY]: prints the body of the answer; fails unless the answer is 200.
# By nc, because the wget of a static busybox crashes where the C library's name services are not installed.
request() {
    printf '%s %s HTTP/1.0\r\nContent-Length: %s\r\n\r\n%s' "$1" "$3" "${#4}" "$4" |
        /bin/busybox nc -w 2 "$2" 8080 2>/dev/null |
        /bin/busybox awk '
            NR == 1 { if ($2 != 200) exit; ok = 1; next }
            { sub(/\r$/, "") }
            body { print; next }
            $0 == "" { body = 1 }
            END { exit !ok }'
}
