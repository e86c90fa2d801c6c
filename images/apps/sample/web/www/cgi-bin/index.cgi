#!/bin/busybox sh
# The page: which release this is, and what the store holds.
. /app/http.sh
busybox=/bin/busybox
escape() { $busybox sed 's/&/\&amp;/g; s/</\&lt;/g; s/>/\&gt;/g'; }
kept=$(request GET store /cgi-bin/kv | escape)
greeting=$(printf '%s' "${GREETING:-Hello}" | escape)
printf 'Content-Type: text/html; charset=utf-8\r\n\r\n'
$busybox cat <<HTML
<!doctype html>
<html lang="en">
<meta name="viewport" content="width=device-width">
<meta http-equiv="refresh" content="2">
<title>Sample</title>
<style>
  body { font: 1.1rem/1.5 system-ui, sans-serif; max-width: 34rem; margin: 4rem auto; padding: 0 1rem }
  pre { background: #8882; padding: 1rem; border-radius: .5rem }
  :root { color-scheme: light dark }
</style>
<h1>$greeting from release $($busybox cat /www/version)</h1>
<p>On device <code>${COPAL_DEVICE_ID:-unknown}</code>. The store holds:</p>
<pre>${kept:-(nothing, or it does not answer)}</pre>
HTML
