#!/bin/busybox sh
# Does what its first word (or $MODE) says; the end-to-end tests use it for each way a service can behave.
#   steady         runs until it is asked to stop (the default)
#   exit CODE      ends at once with that code
#   later S CODE   ends after S seconds with that code
#   stubborn       ignores the request to stop
trap 'echo "stopping"; exit 0' TERM INT
# shellcheck disable=SC2086 # MODE holds words
[ $# -gt 0 ] || set -- ${MODE:-steady}
echo "minimal: $*"
case $1 in
    exit) exit "${2:-1}" ;;
    later) /bin/busybox sleep "${2:-1}" & wait $!; echo "minimal: ending with ${3:-1}"; exit "${3:-1}" ;;
    stubborn) trap '' TERM INT ;;
esac
while :; do
    /bin/busybox sleep 3600 &
    wait $!
done
