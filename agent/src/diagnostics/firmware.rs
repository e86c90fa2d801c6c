//! What a Raspberry Pi's firmware tells of its supply and of throttling, as bits since the boot.

use super::tree::Tree;

const FILE: &str = "sys/devices/platform/soc/soc:firmware/get_throttled";

/// The bits; absent on boards without that firmware.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Throttled(pub u64);

impl Throttled {
    /// Reads them.
    #[must_use]
    pub fn read(tree: &Tree) -> Option<Self> {
        tree.hex(FILE).map(Self)
    }

    /// The supply's voltage is too low at this moment.
    #[must_use]
    pub fn under_voltage(self) -> bool {
        self.0 & 1 != 0
    }

    /// It was too low since the boot.
    #[must_use]
    pub fn was_under_voltage(self) -> bool {
        self.0 & (1 << 16) != 0
    }

    /// The processor is slowed down at this moment: by the supply, by heat, or by the softer bound of heat.
    #[must_use]
    pub fn slow(self) -> bool {
        self.0 & 0b1110 != 0
    }

    /// It was since the boot.
    #[must_use]
    pub fn was_slow(self) -> bool {
        self.0 & (0b1110 << 16) != 0
    }
}
