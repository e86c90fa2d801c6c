//! Which boards and firmware can hold two slots safely. Pure: facts in, a verdict out.

/// What was read from the device tree, the disk and the mounts.
#[derive(Debug, Clone, Default)]
pub(crate) struct Facts {
    /// `/system/linux,revision`: the board.
    pub revision: Option<u32>,
    /// `/chosen/bootloader/build-timestamp`: seconds since 1970 when the bootloader in the EEPROM was built.
    pub built: Option<u32>,
    /// `/chosen/bootloader/partition`: where the firmware booted from.
    pub partition: Option<u32>,
    /// `/chosen/bootloader/tryboot`: 1 on a trial.
    pub tryboot: Option<u32>,
    /// Whether `/dev/vcio` is there. Only the Raspberry Pi's own kernel has it; so only that kernel has the handler that passes the
    /// argument of a restart to the firmware. A mainline kernel restarts without a word, and the trial would never begin.
    pub vcio: bool,
    /// Whether the booted `config.txt` keeps the EEPROM from being written.
    pub eeprom_locked: bool,
}

/// 2025-08-13: from then on the bootloader goes on to the next bootable partition by itself (`PARTITION_WALK`) where
/// `autoboot.txt` was torn by a power cut. Before it, such a device would not start. (Releases before 2023 do not know
/// `tryboot_a_b`, and ones before April 2024 lose the flag with secure boot.)
pub(crate) const OLDEST: u32 = 1_755_043_200;

type Refusal = (String, &'static str);

const OTHER_BACKEND: &str = "use the image for U-Boot on this board";
const UPDATE_EEPROM: &str = "update the bootloader (rpi-eeprom-update -a), restart, and try again";

/// Refuses what cannot be updated safely, before anything is written.
pub(crate) fn judge(facts: &Facts) -> Result<(), Refusal> {
    let revision = facts.revision.ok_or((
        "the device tree has no system/linux,revision: this is no Raspberry Pi".to_owned(),
        OTHER_BACKEND,
    ))?;
    if revision & 0x0080_0000 == 0 {
        return Err((format!("board revision {revision:x} is older than the Raspberry Pi 2"), OTHER_BACKEND));
    }
    let name = match revision >> 4 & 0xff {
        0x08 | 0x0d | 0x0e => {
            return Err((
                "the Raspberry Pi 3 has no bootloader in an EEPROM, so a torn autoboot.txt would keep it from starting".to_owned(),
                OTHER_BACKEND,
            ));
        }
        0x11 => "Raspberry Pi 4",
        0x13 => "Raspberry Pi 400",
        0x14 => "Compute Module 4",
        0x17 => "Raspberry Pi 5",
        0x18 | 0x1a => "Compute Module 5",
        0x19 => "Raspberry Pi 500",
        kind => return Err((format!("board type {kind:#x} is not known to this agent"), OTHER_BACKEND)),
    };
    let (Some(partition), Some(_)) = (facts.partition, facts.tryboot) else {
        return Err((
            format!("the bootloader of this {name} does not tell which partition it booted"),
            UPDATE_EEPROM,
        ));
    };
    if partition == 0 {
        return Err((
            format!("the bootloader of this {name} tells partition 0, which none is"),
            UPDATE_EEPROM,
        ));
    }
    match facts.built {
        Some(built) if built >= OLDEST => {}
        Some(built) => {
            return Err((
                format!(
                    "the bootloader of this {name} was built {built} s after 1970, the oldest that is safe {OLDEST} s (2025-08-13)"
                ),
                UPDATE_EEPROM,
            ));
        }
        None => return Err((format!("the bootloader of this {name} does not tell its age"), UPDATE_EEPROM)),
    }
    if !facts.vcio {
        return Err((
            "there is no /dev/vcio: this kernel does not tell the firmware that a restart is a trial"
                .to_owned(),
            "use an image with the Raspberry Pi's own kernel",
        ));
    }
    // These reset their power supply on a restart and so keep the flag in the EEPROM.
    if revision >> 4 & 0xff == 0x11 && revision & 0xf <= 1 && facts.eeprom_locked {
        return Err((
            "a Raspberry Pi 4 of revision 1.0 or 1.1 keeps the trial's flag in the EEPROM, which config.txt locks".to_owned(),
            "remove eeprom_write_protect from config.txt in a new image",
        ));
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn good() -> Facts {
        Facts {
            revision: Some(0x00c0_3114),
            built: Some(OLDEST),
            partition: Some(2),
            tryboot: Some(0),
            vcio: true,
            eeprom_locked: false,
        }
    }

    #[test]
    fn each_unsuitable_board_is_refused_with_its_own_reason() {
        assert_eq!(judge(&good()), Ok(()));
        let table = [
            (Facts { revision: None, ..good() }, "no Raspberry Pi"),
            (Facts { revision: Some(0x000e), ..good() }, "older than"),
            (Facts { revision: Some(0x00a0_2082), ..good() }, "Pi 3"),
            (Facts { revision: Some(0x00c0_2ff0), ..good() }, "not known"),
            (Facts { partition: None, ..good() }, "does not tell which partition"),
            (Facts { tryboot: None, ..good() }, "does not tell which partition"),
            (Facts { partition: Some(0), ..good() }, "partition 0"),
            (Facts { built: None, ..good() }, "age"),
            (Facts { built: Some(OLDEST - 1), ..good() }, "oldest that is safe"),
            (Facts { vcio: false, ..good() }, "/dev/vcio"),
            (
                Facts { revision: Some(0x00c0_3111), eeprom_locked: true, ..good() },
                "EEPROM, which config.txt locks",
            ),
        ];
        for (facts, word) in table {
            let (what, next) = judge(&facts).unwrap_err();
            assert!(what.contains(word) && !next.is_empty(), "{what}");
        }
        // Later boards keep the flag elsewhere.
        assert_eq!(judge(&Facts { eeprom_locked: true, ..good() }), Ok(()));
        assert_eq!(judge(&Facts { revision: Some(0x00c0_3111), ..good() }), Ok(()));
    }
}
