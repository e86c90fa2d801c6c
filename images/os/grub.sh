# The second machine, a part of build.sh: x86-64 with UEFI and GRUB, as the Yocto layer's qemux86-64 has it. Packages come from
# `tests/setup.sh os`, grub.cfg and the partition table from here, and GRUB has the modules that the layer builds in: a command of
# grub.cfg that is missing there fails here.
# shellcheck shell=bash disable=SC2034,SC2154 # of build.sh

out=$out/grub
cache=$out/cache/unpacked
tree=$out/tree
TABLE=grub
DEVICE_TYPE=qemu-x86-64
TRIPLE=x86_64-linux-gnu
LOADER=lib64/ld-linux-x86-64.so.2
KERNEL=vmlinuz
STATE_OFFSETS=
STATE_FILES='/boot/firmware/copal/env0 /boot/firmware/copal/env1'
BOOT_STATE='"backend":"grub","env_files":["/boot/firmware/copal/env0","/boot/firmware/copal/env1"]'
BOOT_MOUNT=rw,sync,noatime
mkdir -p "$out"

# The agent is the one this machine's other tests run, with this machine's libraries: nothing is compiled a second time.
agent() {
    [ "$(uname -m)" = x86_64 ] || die "the machine with GRUB is made on x86-64 only"
    cargo build --quiet --locked --workspace --bin copal-agent || die "the agent was not built" "look at the compiler's messages above"
    strip -o "$out/agent.new" target/debug/copal-agent
    if cmp -s "$out/agent.new" "$out/agent"; then rm "$out/agent.new"; else mv "$out/agent.new" "$out/agent"; fi
    say "agent: $(stat -c %s "$out/agent") bytes"
}

agent_libraries() {
    ldd "$out/agent" | awk '$3 ~ /^\// { print $3 }' | while read -r path; do
        # The image's own are as new, and belong to its other programs, too.
        [ -e "$tree/lib/$TRIPLE/${path##*/}" ] || cp -L "$path" "$tree/lib/$TRIPLE/"
    done
}

# UEFI in the first flash, its variables in the second.
flash() {
    local part
    for part in CODE VARS; do
        [ -e /usr/share/OVMF/OVMF_${part}_4M.fd ] || die "/usr/share/OVMF/OVMF_${part}_4M.fd is missing" "run: tests/setup.sh os"
    done
    cp /usr/share/OVMF/OVMF_CODE_4M.fd "$out/flash0.img"
    cp /usr/share/OVMF/OVMF_VARS_4M.fd "$out/flash1.img"
}

# GRUB's core where UEFI looks for it, its configuration, and both copies of the boot state: they are written in place later,
# never made longer.
boot_files() {
    local modules place file fill
    place=$(mktemp -d)
    # What OpenEmbedded's grub-efi has of what is used here, and what the layer adds.
    modules="boot configfile ext2 fat linux normal part_gpt search test"
    modules+=$(sed -n 's/^GRUB_BUILDIN:append:copal = "\(.*\)"$/\1/p' yocto/meta-copal/recipes-bsp/grub/grub-efi_%.bbappend)
    # A panicked kernel restarts soon, and says little when all is well. An emulated disk is as slow as the machine it is on, and
    # not broken for that: the kernel would take it away after a minute.
    printf '%s\n' 'set copal_args="console=ttyS0 quiet nvme_core.io_timeout=600 nvme_core.admin_timeout=600"' 'set copal_panic=2' 'export copal_args' 'export copal_panic' >"$place/early.cfg"
    # shellcheck disable=SC2086 # a list
    grub-mkimage -O x86_64-efi -p /EFI/BOOT -c "$place/early.cfg" -o "$place/bootx64.efi" $modules
    {
        printf '# GRUB Environment Block\n'
        first_state
        printf 'copal_check=a0\ncopal_end=1\n'
    } >"$place/env"
    fill=$((1024 - $(stat -c %s "$place/env")))
    head -c $fill /dev/zero | tr '\0' '#' >>"$place/env"
    find "$place" -exec touch -d "@$EPOCH" {} +
    mmd -i "$1" ::EFI ::EFI/BOOT ::copal
    for file in "$place/bootx64.efi" images/os/boot/grub.cfg; do TZ=UTC mcopy -m -i "$1" "$file" ::EFI/BOOT/; done
    for file in env0 env1; do TZ=UTC mcopy -m -i "$1" "$place/env" "::copal/$file"; done
    rm -rf "$place"
}

# It is among the files.
boot_state() { :; }
