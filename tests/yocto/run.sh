#!/usr/bin/env bash
# The checks of yocto/ that need no other layer and no network. Ends with `N passed, N failed`.
# What they cannot see (the real layers' opinion, a build, a boot) stands in yocto/README.md.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit

venv=target/yocto-venv
[ -x $venv/bin/oelint-adv ] || { echo "the tools are missing: run tests/setup.sh yocto" >&2; exit 2; }
layer=yocto/meta-copal
passed=0 failed=0

check() {
    local name=$1 said
    shift
    if said=$("$@" 2>&1); then
        passed=$((passed + 1))
        printf 'ok   %s%s\n' "$name" "$(tail -n 1 <<<"$said" | sed 's/^\(.\{1,70\}\)$/ (\1)/')"
    else
        failed=$((failed + 1))
        printf 'FAIL %s\n' "$name"
        printf '%s\n' "$said" | sed 's/^/     /'
    fi
}

# Errors fail. Suppressed: what uses the network, and two rules for recipes of public projects.
lint() {
    local files
    mapfile -t files < <(git ls-files "$layer/*.bb" "$layer/*.bbappend" "$layer/*.bbclass")
    [ ${#files[@]} -gt 15 ] || { echo "only ${#files[@]} files in $layer are known to git"; return 1; }
    local said
    said=$($venv/bin/oelint-adv --release wrynose --quiet --relpaths --hide info --hide warning \
        --suppress oelint.vars.homepageping --suppress oelint.var.mandatoryvar.HOMEPAGE \
        "${files[@]}" 2>&1 | grep -v -e '-crates\.inc' -e '^$')
    if grep -q ':error:' <<<"$said"; then
        grep ':error:' <<<"$said"
        return 1
    fi
    echo "${#files[@]} files"
}

shell() {
    local files
    mapfile -t files < <(git ls-files "$layer/*.sh")
    [ ${#files[@]} -gt 0 ] && shellcheck --shell=dash "${files[@]}" && echo "${#files[@]} scripts"
}

# What yocto-check-layer wants of a layer's papers, and what makes a layer break others.
papers() {
    local file
    for file in README.md SECURITY.md COPYING; do
        [ -s "$layer/$file" ] || { echo "$layer/$file is missing"; return 1; }
    done
    grep -qi maintainer $layer/README.md || { echo "README.md names no maintainer"; return 1; }
    grep -qi patch $layer/README.md || { echo "README.md does not say where patches go"; return 1; }
    grep -qE '[^ ]+@[^ ]+\.[a-z]+' $layer/README.md || { echo "README.md has no e-mail address"; return 1; }
    cmp -s LICENSE $layer/COPYING || { echo "COPYING is not the project's LICENSE"; return 1; }
    grep -qx 'LAYERSERIES_COMPAT_copal = "wrynose"' $layer/conf/layer.conf || { echo "the layer must declare wrynose alone"; return 1; }
    ! compgen -G "$layer/conf/machine/*.conf" || { echo "a layer with a distribution must not have machines"; return 1; }
    # A distribution must not choose itself.
    ! grep -rnE '^(DISTRO|MACHINE) *[?:]*=' $layer/conf || return 1
}

sums() {
    local sum
    sum=$(md5sum LICENSE | cut -d' ' -f1)
    ! grep -rn --include='*.bb*' 'LIC_FILES_CHKSUM.*LICENSE;md5=' $layer | grep -v "$sum" || { echo "LICENSE has md5 $sum"; return 1; }
}

check 'oelint-adv: no error' lint
check "the layer parses for every machine (BitBake's parser)" $venv/bin/python tests/yocto/parse.py
check 'crates lists and lock files are those of Cargo.lock' yocto/scripts/crates.py --check
check 'wic files are those of the partition tables' python3 tests/yocto/wks.py
check 'kas files are valid, pinned and complete' $venv/bin/python tests/yocto/kas_files.py
check "systemd's opinion of the units" tests/yocto/units.sh
check 'shellcheck' shell
check 'README, SECURITY, COPYING, layer.conf' papers
check 'licence checksums' sums
scripts=$(tests/yocto/scripts.sh)
status=$?
printf '%s\n' "$scripts"
ok=$(grep -c '^  ok ' <<<"$scripts") wrong=$(grep -c '^  FAIL ' <<<"$scripts")
passed=$((passed + ok)) failed=$((failed + wrong))
[ $status = 0 ] || [ "$wrong" -gt 0 ] || failed=$((failed + 1))

printf '\n%d passed, %d failed\n' $passed $failed
[ $failed = 0 ]
