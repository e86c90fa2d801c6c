//! What is known of the Raspberry Pi's firmware, as far as two slots need it. The firmware itself cannot run here: this is a
//! model, made from what its makers publish, and it proves the agent only against that.
//!
//! - `autoboot.txt` (documentation, `config_txt/autoboot.adoc`): at most 512 bytes on the first partition; sections `[all]`, `[none]` and
//!   `[tryboot]`; `boot_partition`; `tryboot_a_b=1` makes a trial choose the partition, not the file `tryboot.txt`.
//! - The trial's flag (documentation, `bootflow-2711.adoc`): set by a restart with the argument `0 tryboot`, cleared before the firmware
//!   starts, so that a crash, a watchdog or a power cut ends in a normal boot.
//! - `/chosen/bootloader/partition` and `tryboot` (documentation, `device-tree.adoc`): 32 bits, big endian, what was booted.
//! - `PARTITION_WALK` (release notes of rpi-eeprom, 2025-01-27; on by itself since 2025-08-13): a partition that is not bootable is
//!   passed over for the next ones. Here: upwards from it, then from the first.

/// A device's firmware.
#[derive(Debug, Clone, Default)]
pub(crate) struct Firmware {
    /// The one-shot flag.
    pub flag: bool,
}

/// What the device tree says after a boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FirmwareBoot {
    pub partition: u32,
    pub tryboot: bool,
}

impl Firmware {
    /// One boot. `autoboot` has the file's bytes, `bootable` tells of each partition.
    pub(crate) fn boot(
        &mut self,
        autoboot: Option<&[u8]>,
        bootable: impl Fn(u32) -> bool,
    ) -> Option<FirmwareBoot> {
        let tryboot = std::mem::take(&mut self.flag);
        let wanted = autoboot.map_or(1, |bytes| understood(bytes, tryboot));
        let walk = (wanted..=9).chain(1..wanted);
        let partition = walk.into_iter().find(|p| bootable(*p))?;
        Some(FirmwareBoot { partition, tryboot })
    }
}

/// The partition it names. Lines it does not know are passed over, as the firmware does: a torn file may still say something.
fn understood(bytes: &[u8], tryboot: bool) -> u32 {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(512)]).into_owned();
    let (mut partition, mut applies) = (1, true);
    for line in text.lines().map(str::trim) {
        match line {
            "[all]" => applies = true,
            "[tryboot]" => applies = tryboot,
            other if other.starts_with('[') => applies = false,
            other => {
                if let Some(number) = other.strip_prefix("boot_partition=").filter(|_| applies) {
                    partition = number.parse().ok().filter(|n| (1..=9).contains(n)).unwrap_or(partition);
                }
            }
        }
    }
    partition
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flag_is_for_one_boot_and_a_partition_without_a_boot_sector_is_passed_over() {
        let file = b"[all]\ntryboot_a_b=1\nboot_partition=2\n[tryboot]\nboot_partition=3\n";
        let mut firmware = Firmware { flag: true };
        let boot = |firmware: &mut Firmware| firmware.boot(Some(file), |p| p == 2 || p == 3);
        assert_eq!(boot(&mut firmware), Some(FirmwareBoot { partition: 3, tryboot: true }));
        assert_eq!(boot(&mut firmware), Some(FirmwareBoot { partition: 2, tryboot: false }));
        let walked = Firmware::default().boot(None, |p| p == 3);
        assert_eq!(walked, Some(FirmwareBoot { partition: 3, tryboot: false }));
        assert_eq!(Firmware::default().boot(Some(file), |_| false), None);
    }
}
