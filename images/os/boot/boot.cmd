# Copal's U-Boot script: chooses a slot, counts the boot on the disk, starts the slot's own kernel.
# docs/os-updates.md has the state as a table and the steps below as a procedure. Wants ${devtype} and ${devnum} (nvme, mmc,
# virtio, usb, scsi) with the layout of images/os/layout/uboot.table, and takes from the environment where given:
#   copal_args  more words for the kernel (console=...)      copal_panic  seconds before a panicked kernel restarts (10)
#   copal_fdt   address of the device tree (U-Boot's own)
#
# Traps: setexpr counts in hex while `test -gt` reads decimal, so all numbers here are hex and are compared by itest; an empty
# variable cannot be exported, so "nothing" is "-"; an imported blob deletes the listed variables that it lacks.
# Nothing here believes a slot to be good because of its name: both copies of the state damaged means that nothing is known.

# 1. The device. All block numbers below are for blocks of 512 bytes; the first partition shows whether they are.
${devtype} dev ${devnum}
setenv copal_p1 0
part start ${devtype} ${devnum} 1 copal_p1
if itest ${copal_p1} -ne 0x8000; then
  echo "COPAL: partition 1 of ${devtype} ${devnum} begins at block ${copal_p1}, not at 0x8000: not this layout, nothing is written"
  setenv copal_layout bad
else
  setenv copal_layout ok
fi
setenv copal_b0 0x2000
setenv copal_b1 0x4000
setenv copal_m0 ${pxefile_addr_r}
setexpr copal_m1 ${pxefile_addr_r} + 0x1000
setexpr copal_m2 ${pxefile_addr_r} + 0x2000
setexpr copal_m3 ${pxefile_addr_r} + 0x3000
setenv copal_vars copal_gen copal_slot copal_trial copal_tries copal_limit copal_arms copal_for copal_canary copal_echo copal_fell

# A copy is good if it can be read, its CRC is right, and it names a slot.
setenv copal_try 'setenv copal_ok 0; if env import -c ${copal_m} 0x1000 ${copal_vars}; then if test "${copal_slot}" = a || test "${copal_slot}" = b; then setenv copal_ok 1; fi; fi'
# Writes one copy and reads it back.
setenv copal_put 'setenv copal_ok 0; if ${devtype} write ${copal_m2} ${copal_b} 8; then mw.b ${copal_m3} 0xff 0x1000; if ${devtype} read ${copal_m3} ${copal_b} 8; then if cmp.b ${copal_m2} ${copal_m3} 0x1000; then setenv copal_ok 1; fi; fi; fi'
# Is slot ${copal_s} complete? Its superblock's magic is written last of all. Then its kernel must load.
setenv copal_part 'if test "${copal_s}" = b; then setenv copal_p 3; else setenv copal_p 2; fi'
setenv copal_head 'setenv copal_valid 0; run copal_part; if part start ${devtype} ${devnum} ${copal_p} copal_at; then setexpr copal_at ${copal_at} + 2; mw.b ${copal_m3} 0 0x200; if ${devtype} read ${copal_m3} ${copal_at} 1; then setexpr copal_x ${copal_m3} + 0x38; setexpr.w copal_x *${copal_x}; if itest ${copal_x} == 0xef53; then setenv copal_valid 1; fi; fi; fi'
setenv copal_load 'run copal_head; if itest ${copal_valid} == 1; then setenv copal_valid 0; setenv filesize 0; if load ${devtype} ${devnum}:${copal_p} ${kernel_addr_r} /boot/Image; then if itest ${filesize} -gt 0x1000; then setenv copal_valid 1; fi; fi; fi'

# 2. The newest good copy. Of two good ones, copy 1 is newer if the difference of the generations has bit 31 set.
setenv copal_g0 -
setenv copal_g1 -
if test "${copal_layout}" = ok; then
  if ${devtype} read ${copal_m0} ${copal_b0} 8; then setenv copal_m ${copal_m0}; run copal_try; if itest ${copal_ok} == 1; then setenv copal_g0 ${copal_gen}; fi; fi
  if ${devtype} read ${copal_m1} ${copal_b1} 8; then setenv copal_m ${copal_m1}; run copal_try; if itest ${copal_ok} == 1; then setenv copal_g1 ${copal_gen}; fi; fi
fi
setenv copal_src none
if test "${copal_g0}" != "-"; then
  setenv copal_src 0
  if test "${copal_g1}" != "-"; then
    setexpr copal_x ${copal_g0} - ${copal_g1}
    setexpr copal_x ${copal_x} "&" 0x80000000
    if itest ${copal_x} -ne 0; then setenv copal_src 1; fi
  fi
elif test "${copal_g1}" != "-"; then
  setenv copal_src 1
fi

# 3. What the state asks for.
setenv copal_lost 0
if test "${copal_src}" = none; then
  # Nothing is known: any valid slot, as a trial, with the other one to go back to. A slot that is being written has no head.
  setenv copal_lost 1
  setenv copal_gen 0
  setenv copal_slot b
  setenv copal_trial 1
  setenv copal_tries 0
  setenv copal_limit 3
  setenv copal_arms 0
  setenv copal_for -
  setenv copal_canary 0
  setenv copal_fell lost
  setenv copal_s a
  run copal_load
  if itest ${copal_valid} == 0; then
    setenv copal_slot a
  fi
else
  if test "${copal_src}" = 1; then setenv copal_m ${copal_m1}; else setenv copal_m ${copal_m0}; fi
  run copal_try
  if itest ${copal_limit} -lt 1; then setenv copal_limit 3; fi
  if itest ${copal_tries} -ge ${copal_limit}; then
    if test "${copal_trial}" = 1; then
      echo "COPAL: the trial used up its ${copal_limit} boots: back to slot ${copal_slot}"
      setenv copal_trial 0
      setenv copal_tries 0
      if test "${copal_fell}" = "-"; then setenv copal_fell tries; fi
    else
      # The committed slot did not say that it is well for so many boots: the other one, if it is complete.
      if test "${copal_slot}" = a; then setenv copal_s b; else setenv copal_s a; fi
      run copal_load
      if itest ${copal_valid} == 1; then
        echo "COPAL: slot ${copal_slot} failed ${copal_tries} boots: slot ${copal_s} on trial"
        setenv copal_trial 1
        setenv copal_tries 0
        setenv copal_fell sick
      fi
    fi
  fi
fi

# 4. Count this boot, in both copies, before the kernel starts: first over the copy that is not the newest.
if itest ${copal_tries} -lt 0xfe; then setexpr copal_tries ${copal_tries} + 1; fi
setexpr copal_gen ${copal_gen} + 1
setexpr copal_gen ${copal_gen} "&" 0xffffffff
setenv copal_echo ${copal_canary}
setenv copal_saved 0
if test "${copal_layout}" = ok; then
  if env export -c -s 0x1000 ${copal_m2} ${copal_vars}; then
    if test "${copal_src}" = 0; then setenv copal_b ${copal_b1}; else setenv copal_b ${copal_b0}; fi
    run copal_put
    if itest ${copal_ok} == 1; then
      setenv copal_saved 1
      if test "${copal_src}" = 0; then setenv copal_b ${copal_b0}; else setenv copal_b ${copal_b1}; fi
      run copal_put
    fi
  fi
fi
if itest ${copal_saved} == 0; then
  echo "COPAL: the count cannot be saved"
  if itest ${copal_lost} == 0; then
    # An uncounted trial could repeat for ever: refused.
    setenv copal_trial 0
    setenv copal_fell nosave
  fi
fi

# 5. Start it. A kernel that does not load or start is a counted boot.
if test "${copal_trial}" = 1; then
  if test "${copal_slot}" = a; then setenv copal_s b; else setenv copal_s a; fi
else
  setenv copal_s ${copal_slot}
fi
echo "COPAL: copy=${copal_src} gen=${copal_gen} committed=${copal_slot} boots=${copal_s} trial=${copal_trial} tries=${copal_tries}/${copal_limit} fell=${copal_fell} saved=${copal_saved}"
run copal_load
if itest ${copal_valid} == 0; then
  if itest ${copal_saved} == 0; then
    # Refused is better than uncounted, but uncounted is better than nothing.
    if test "${copal_s}" = a; then setenv copal_s b; else setenv copal_s a; fi
    setenv copal_trial 1
    run copal_load
  fi
fi
if itest ${copal_valid} == 1; then
  part uuid ${devtype} ${devnum}:${copal_p} copal_uuid
  test -n "${copal_panic}" || setenv copal_panic 10
  test -n "${copal_fdt}" || setenv copal_fdt ${fdtcontroladdr}
  # A trial whose file system cannot be read ends at once, in a panic: its programs could neither judge it nor end it.
  setenv copal_flags
  test "${copal_trial}" = 0 || setenv copal_flags rootflags=errors=panic
  # One word, in quotes: U-Boot takes 16 words in a command, and a kernel without its command line finds no root and waits for ever.
  if setenv bootargs "root=PARTUUID=${copal_uuid} rootfstype=ext4 ${copal_flags} ro rootwait panic=${copal_panic} copal.slot=${copal_s} copal.trial=${copal_trial} copal.gen=${copal_gen} copal.echo=${copal_echo} copal.fell=${copal_fell} ${copal_args}"; then
    booti ${kernel_addr_r} - ${copal_fdt}
  fi
fi
echo "COPAL: slot ${copal_s} did not start"
sleep 1
reset
