//! The boot state, and the 4,096 bytes that keep it: U-Boot's own format for exported variables, so that its script reads
//! and writes the same (`env import -c`, `env export -c`): CRC-32, little endian, of the rest; `name=value` and a zero byte for
//! each variable; zeros to the end. All numbers are hexadecimal, because `setexpr` counts so.

use std::collections::BTreeMap;

use super::Slot;

/// Bytes of one copy.
pub(crate) const SIZE: usize = 4096;

/// What both copies say when they are in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BootState {
    /// Counts the writes; wraps. The newer copy is the one that is ahead by less than half the range.
    pub generation: u32,
    /// The slot that is trusted.
    pub committed: Slot,
    /// The other slot is on trial.
    pub trial: bool,
    /// Boots of what is tried, or of the committed slot since it last said that it is well.
    pub tries: u8,
    /// The most boots a trial has, and the committed slot without a word that it is well.
    pub limit: u8,
    /// Trials armed for `arms_for`.
    pub arms: u8,
    /// The release that the arms count for.
    pub arms_for: Option<[u8; 8]>,
    /// Written by the agent; the bootloader copies it to `echo` and saves, which proves that both see the same state.
    pub canary: u32,
    /// See `canary`.
    pub echo: u32,
    /// Why the bootloader left the committed slot or a trial by itself.
    pub fell: Option<String>,
}

impl BootState {
    /// A state where nothing is known but the committed slot.
    pub(crate) fn new(committed: Slot, limit: u8) -> Self {
        Self {
            generation: 0,
            committed,
            trial: false,
            tries: 0,
            limit,
            arms: 0,
            arms_for: None,
            canary: 1,
            echo: 0,
            fell: None,
        }
    }

    /// The variables, without the generation.
    pub(crate) fn variables(&self) -> Vec<(&'static str, String)> {
        let dash = || "-".to_owned();
        vec![
            ("copal_slot", self.committed.to_string()),
            ("copal_trial", u8::from(self.trial).to_string()),
            ("copal_tries", format!("{:x}", self.tries)),
            ("copal_limit", format!("{:x}", self.limit)),
            ("copal_arms", format!("{:x}", self.arms)),
            ("copal_for", self.arms_for.map_or_else(dash, hex::encode)),
            ("copal_canary", format!("{:x}", self.canary)),
            ("copal_echo", format!("{:x}", self.echo)),
            ("copal_fell", self.fell.clone().unwrap_or_else(dash)),
        ]
    }

    /// From variables; `None` if one is missing or is not what this agent or a bootloader writes.
    pub(crate) fn from_variables(generation: u32, get: impl Fn(&str) -> Option<String>) -> Option<Self> {
        let number = |name: &str| {
            let text = get(name)?;
            let plain = text.len() <= 8 && text.bytes().all(|b| b.is_ascii_hexdigit());
            plain.then(|| u32::from_str_radix(&text, 16).ok()).flatten()
        };
        let small = |name: &str| number(name).and_then(|n| u8::try_from(n).ok());
        let fell = get("copal_fell")?;
        if fell.is_empty() || fell.len() > 16 || !fell.bytes().all(|b| b.is_ascii_lowercase() || b == b'-') {
            return None;
        }
        let arms_for = match get("copal_for")?.as_str() {
            "-" => None,
            text => {
                let mut bytes = [0; 8];
                hex::decode_to_slice(text, &mut bytes).ok()?;
                Some(bytes)
            }
        };
        Some(Self {
            generation,
            committed: get("copal_slot")?.parse().ok()?,
            trial: match get("copal_trial")?.as_str() {
                "0" => false,
                "1" => true,
                _ => return None,
            },
            tries: small("copal_tries")?,
            limit: small("copal_limit").filter(|limit| *limit > 0)?,
            arms: small("copal_arms")?,
            arms_for,
            canary: number("copal_canary")?,
            echo: number("copal_echo")?,
            fell: (fell != "-").then_some(fell),
        })
    }

    /// One copy's bytes.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut variables = self.variables();
        variables.push(("copal_gen", format!("{:x}", self.generation)));
        variables.sort_unstable();
        let mut bytes = vec![0; 4];
        for (name, value) in variables {
            bytes.extend_from_slice(format!("{name}={value}\0").as_bytes());
        }
        bytes.resize(SIZE, 0);
        let sum = crc32(&bytes[4..]);
        bytes[..4].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// From one copy's bytes; `None` if they are damaged.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (sum, data) = bytes.split_first_chunk::<4>()?;
        if bytes.len() != SIZE || u32::from_le_bytes(*sum) != crc32(data) {
            return None;
        }
        let mut variables = BTreeMap::new();
        for variable in data.split(|b| *b == 0).take_while(|v| !v.is_empty()) {
            let (name, value) = std::str::from_utf8(variable).ok()?.split_once('=')?;
            if variables.insert(name, value).is_some() {
                return None;
            }
        }
        let get = |name: &str| variables.get(name).map(|value| (*value).to_owned());
        let generation = u32::from_str_radix(&get("copal_gen")?, 16).ok()?;
        Self::from_variables(generation, get)
    }
}

/// Whether `one` is behind `other`, on a counter that wraps.
pub(crate) fn is_behind(one: u32, other: u32) -> bool {
    one.wrapping_sub(other) & 0x8000_0000 != 0
}

fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample() -> BootState {
        BootState {
            generation: 0xffff_ffff,
            arms: 2,
            arms_for: Some([1, 2, 3, 4, 5, 6, 7, 0xff]),
            fell: Some("tries".to_owned()),
            trial: true,
            ..BootState::new(Slot::B, 3)
        }
    }

    #[test]
    fn the_format_is_what_u_boot_exports() {
        let bytes = BootState { generation: 0x1f, ..BootState::new(Slot::A, 3) }.encode();
        let text = String::from_utf8_lossy(&bytes[4..]);
        insta::assert_snapshot!(text.trim_end_matches('\0').replace('\0', "\n"), @r"
        copal_arms=0
        copal_canary=1
        copal_echo=0
        copal_fell=-
        copal_for=-
        copal_gen=1f
        copal_limit=3
        copal_slot=a
        copal_trial=0
        copal_tries=0
        ");
        assert_eq!(bytes.len(), SIZE);
    }

    #[test]
    fn every_flipped_bit_is_seen() {
        let bytes = sample().encode();
        assert_eq!(BootState::decode(&bytes), Some(sample()));
        for bit in 0..SIZE * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(BootState::decode(&flipped), None, "bit {bit}");
        }
    }

    #[test]
    fn a_copy_torn_between_two_states_is_damaged_unless_it_is_one_of_them() {
        let (old, new) = (sample().encode(), BootState::new(Slot::A, 3).encode());
        for cut in (0..=SIZE).step_by(512) {
            let torn = [&new[..cut], &old[cut..]].concat();
            let read = BootState::decode(&torn);
            assert!(read.is_none() || torn == old || torn == new, "torn at {cut}: {read:?}");
        }
    }

    #[test]
    fn generations_wrap() {
        assert!(is_behind(0xffff_ffff, 0) && !is_behind(0, 0xffff_ffff));
        assert!(is_behind(1, 2) && !is_behind(2, 1) && !is_behind(7, 7));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(mut data in proptest::collection::vec(any::<u8>(), SIZE - 4)) {
            let sum = crc32(&data);
            let mut bytes = sum.to_le_bytes().to_vec();
            bytes.append(&mut data);
            let _ = BootState::decode(&bytes);
        }
    }
}
