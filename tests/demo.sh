#!/usr/bin/env bash
# make demo: a cloud and two devices on this machine; three releases are pushed, the last one broken.
#
# Everything lives in one temporary folder and goes when the demo ends (Ctrl-C).
# COPAL_DEMO_ONCE=1 ends by itself after the last step; it fails where a step did not do what it should.
set -euo pipefail
cd "$(dirname "$0")/.."
top=$PWD

bold=$'\e[1m' dim=$'\e[2m' green=$'\e[32m' red=$'\e[31m' plain=$'\e[0m'
if [ ! -t 1 ] || [ -n "${NO_COLOR:-}" ]; then bold='' dim='' green='' red='' plain=''; fi
step() { printf '\n%s▶ %s%s\n' "$bold" "$*" "$plain"; }
note() { printf '  %s\n' "$*"; }
good() { printf '  %s✓%s %s\n' "$green" "$plain" "$*"; }
die() {
    printf '\n%s✗ %s%s\n' "$red" "$1" "$plain" >&2
    shift
    [ $# = 0 ] || printf '  %s\n' "$@" >&2
    exit 1
}

# One line that counts down in place; nothing where nobody watches.
countdown() {
    [ -t 1 ] || return 0
    # shellcheck disable=SC2059 # the format is ours
    printf "\r\e[K  $1" "${@:2}"
}

# ---------------------------------------------------------------- what it needs
step 'What the demo needs'
tests/setup.sh engine
if [ ! -x target/debug/copal-agent ]; then
    note "Compiling Copal; on two cores this takes about two to three minutes, once."
else
    note 'Compiling what changed.'
fi
started=$SECONDS
cargo build --quiet --locked --workspace --exclude copal-e2e
note "Compiled in $((SECONDS - started)) s."
bin=$top/target/debug

# ---------------------------------------------------------------- folder and clean-up
work=$(mktemp -d "${TMPDIR:-/tmp}/copal-demo.XXXXXX")
run=$(basename "$work" | tr -dc 'a-zA-Z0-9' | tail -c 6 | tr '[:upper:]' '[:lower:]')
prefixes=("demo-$run-a" "demo-$run-b")
pids=()
# shellcheck disable=SC2317,SC2329 # called by the trap
clean_up() {
    status=$?
    trap - EXIT INT TERM
    printf '\n%s▶ Taking everything away%s\n' "$bold" "$plain"
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null || true; done
    for prefix in "${prefixes[@]}"; do
        docker ps -aq --filter "name=$prefix-" | xargs -r docker rm -fv >/dev/null 2>&1 || true
        docker network ls -q --filter "name=$prefix-" | xargs -r docker network rm >/dev/null 2>&1 || true
        docker volume ls -q --filter "name=$prefix-" | xargs -r docker volume rm -f >/dev/null 2>&1 || true
    done
    # Images the demo's builds and pulls left: those the engine did not have before.
    docker images -aq --no-trunc 2>/dev/null | sort -u | comm -13 "$work/images-before" - | tac |
        xargs -r docker rmi -f >/dev/null 2>&1 || true
    if [ "$status" != 0 ] && [ "$status" != 130 ]; then
        printf '  logs are kept in %s\n' "$work"
    else
        chmod -R u+w "$work" 2>/dev/null || true
        rm -rf "$work"
        printf '  %s✓%s nothing is left behind\n' "$green" "$plain"
    fi
    [ "$status" != 130 ] || status=0
    exit "$status"
}
docker images -aq --no-trunc | sort -u >"$work/images-before"
trap clean_up EXIT
trap 'exit 130' INT TERM

free_port() {
    local port
    for port in $(seq "$1" $(($1 + 200))); do
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || { echo "$port"; return; }
    done
    die "no free port between $1 and $(($1 + 200))" 'end what uses them, or set COPAL_DEMO_PORT to a free one'
}

# ---------------------------------------------------------------- the cloud
step 'A cloud, with TLS by a certificate authority of its own'
port=${COPAL_DEMO_PORT:-$(free_port 8443)}
address=$(hostname -I 2>/dev/null | tr ' ' '\n' | grep -vE '^(172\.1[7-9]|127\.|.*:)' | head -n 1 || true)
address=${address:-127.0.0.1}
url=https://$address:$port
data=$work/cloud
"$bin/copal-cloud" tls init --data "$data" --name localhost --name 127.0.0.1 --name "$address" >"$work/tls.txt"
ca=$data/tls/ca.crt
[ -e "$ca" ] || die "the cloud made no certificate authority at $ca" "$(cat "$work/tls.txt")"
password=$(head -c 9 /dev/urandom | base64 | tr '+/' 'xy')
printf '%s' "$password" | "$bin/copal-cloud" admin create --data "$data" --email anna@example.org --password-stdin >/dev/null
token=$("$bin/copal-cloud" token create --data "$data" --email anna@example.org --name demo)
"$bin/copal-cloud" serve --data "$data" --listen "0.0.0.0:$port" --tls-private-ca --url "$url" \
    >"$work/cloud.log" 2>&1 &
pids+=($!)
for _ in $(seq 100); do
    [ -s "$data/run/listen" ] && break
    kill -0 "${pids[0]}" 2>/dev/null || die 'the cloud did not start' "$(tail -n 5 "$work/cloud.log")"
    sleep 0.1
done
curl -fsS --cacert "$ca" "$url/healthz" >/dev/null || die "no answer from $url" "$(tail -n 5 "$work/cloud.log")"
good "cloud        $url   (reachable from the local network; its log: $work/cloud.log)"
good "sign in      anna@example.org / $password"
note "${dim}The browser will warn once: it does not know this certificate authority.$plain"

# ---------------------------------------------------------------- the owner
step "The owner's keys, and a fleet only they can speak for"
export COPAL_HOME=$work/owner
copal() { "$bin/copal" "$@"; }
printf '%s' "$token" | copal login "$url" --ca-file "$ca" --token-stdin
copal keys init
case "$(uname -m)" in aarch64) arch=arm64 ;; *) arch=amd64 ;; esac
copal fleet create demo --device-type generic --arch "$arch" --yes

step 'Two devices: two agents that share this machine'"'"'s engine'
for index in 0 1; do
    folder=$work/device-$index
    mkdir -p "$folder"
    copal device config demo --name "device-$((index + 1))" --out "$folder/copal.json" >/dev/null
    "$bin/copal-agent" run --config "$folder/copal.json" --state-dir "$folder/state" --run-dir "$folder/run" \
        --name-prefix "${prefixes[$index]}" >"$folder/agent.log" 2>&1 &
    pids+=($!)
done
good 'each has a key of its own, and believes only what the owner'"'"'s root lets it believe'

# ---------------------------------------------------------------- releases
repo=$work/project
cp -r images/apps/sample "$repo"
"$repo/prepare.sh" "$arch" >/dev/null
cd "$repo"
git init -q
git checkout -q -B main
git config user.name Anna
git config user.email anna@example.org
git config http.sslCAInfo "$ca"
# Where these are set, they win over the configuration.
unset GIT_SSL_CAINFO GIT_SSL_CAPATH GIT_SSL_NO_VERIFY
git remote add copal "https://anna:$token@$address:$port/git/demo.git"

push() {
    git add -A
    git commit -q -m "$1"
    note "${dim}\$ git push copal main$plain"
    git push copal main 2>&1 | sed 's/^/    /'
}
newest() { copal release list --fleet demo --json | python_free_json; }
# The first release id of a JSON list, without needing a JSON tool.
python_free_json() { tr -d ' \n' | grep -oE '"id":"[0-9a-f]{64}"' | head -n 1 | cut -d'"' -f4; }
devices() { copal device list --fleet demo; }

on_target() { # release, seconds
    local left=$2 out
    while :; do
        out=$(copal device list --fleet demo --json | tr -d ' \n' | grep -oE '"committed_release":"[0-9a-f]{64}"' | grep -c "$1" || true)
        [ "$out" = 2 ] && { countdown ''; return; }
        [ "$left" -gt 0 ] || { devices; die "the devices did not come to release ${1:0:12}" "logs: $work/device-*/agent.log"; }
        countdown 'on trial: both must stay healthy; waiting at most %3d s more' "$left"
        sleep 1
        left=$((left - 1))
    done
}
web() { # prefix
    local id
    id=$(docker ps -q --filter "label=io.copal.service=web" --filter "name=^/?$1-")
    [ -n "$id" ] || return 1
    docker inspect -f '{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}' "$id" | tr ' ' '\n' | head -n 1
}
show_pages() {
    local prefix ip
    for prefix in "${prefixes[@]}"; do
        ip=$(web "$prefix") || die "no web service runs for $prefix"
        good "http://$ip:8080 answers: $(curl -fsS --max-time 5 "http://$ip:8080/version")"
    done
}

step 'Release 1: git push becomes running containers on both devices'
note "Look at $url: the fleet, the build as it happens, the devices."
push 'first release'
v1=$(newest)
on_target "$v1" 120
good 'both devices run release 1'
devices
show_pages

step 'Release 2: one service changes; the others keep their containers'
before=$(docker ps -q --no-trunc --filter "name=^/?${prefixes[0]}-" --filter label=io.copal.service=store)
cp -r variants/v2/. .
push 'second release'
v2=$(newest)
on_target "$v2" 120
after=$(docker ps -q --no-trunc --filter "name=^/?${prefixes[0]}-" --filter label=io.copal.service=store)
if [ -z "$before" ] || [ "$before" != "$after" ]; then die 'the store was replaced although it did not change'; fi
good 'both devices run release 2; the store is the same container as before'
show_pages

step 'Release 3 is broken: the devices try it, undo it, and say why'
cp -r variants/v3/. .
push 'third release, broken'
left=90
while :; do
    rolled=$(copal device list --fleet demo --json | tr -d ' \n' | { grep -oE '"message":"[^"]*;thereleasebeforeitrunsagain"' || true; } | wc -l)
    [ "$rolled" = 2 ] && break
    [ "$left" -gt 0 ] || { devices; die 'the devices did not undo the broken release' "logs: $work/device-*/agent.log"; }
    countdown 'the health window runs; it ends at the latest in %3d s' "$left"
    sleep 1
    left=$((left - 1))
done
countdown ''
good 'both went back to release 2 by themselves; volumes are intact'
devices
id=$(copal device list --fleet demo --json | tr -d ' \n' | grep -oE '"device_id":"[0-9a-f]{32}"' | head -n 1 | cut -d'"' -f4)
note "${dim}\$ copal device show ${id:0:12}$plain"
copal device show "$id" | sed 's/^/    /'
show_pages

# ---------------------------------------------------------------- a real one
step 'Your own device can join this fleet'
copal device config demo --name my-device --out "$work/copal.json" >/dev/null
note 'On a Raspberry Pi OS or Debian device with Docker, in the same network and of this architecture:'
note "  ${bold}scp $bin/copal-agent $top/agent/install.sh $work/copal.json user@device: && ssh -t user@device sudo ./install.sh$plain"
note "It then shows up at $url"

cd "$top"
if [ -n "${COPAL_DEMO_ONCE:-}" ]; then
    good 'done'
    exit 0
fi
step "It stays up until Ctrl-C. Dashboard: $url   sign in: anna@example.org / $password"
note "Play with it: cd $repo, change something, git push copal main"
note "The command line: COPAL_HOME=$COPAL_HOME $bin/copal --help"
while :; do sleep 3600 & wait $!; done
