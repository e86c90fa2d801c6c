//! GRUB's environment blocks: 1,024 bytes of `name=value` lines that GRUB's `load_env` and `save_env` know, in two files that were
//! made full size with the image and are only written in place.
//!
//! GRUB has neither checksums nor arithmetic, so a copy is good if its first and last line name the same generation and the
//! slot and the trial stand in it twice. All that is said fits into the file's first 512 bytes, which a disk writes at once. GRUB
//! does not raise the generation; it writes the older copy first, as the agent does, so that a tie is between a count and the one before.

use std::{path::PathBuf, sync::Arc};

use super::{
    BootError,
    state::BootState,
    store::{Loaded, Store, put},
};
use crate::os::disk::{Access, Disks};

/// Bytes of an environment block.
const SIZE: usize = 1024;
/// What GRUB knows a block by.
const SIGNATURE: &str = "# GRUB Environment Block\n";
/// The last generation; GRUB compares them as decimal numbers. The next is 1, which is safe: until the copy with the last one
/// is overwritten, that one counts.
const LAST: u32 = 999_999_999;

/// Two files on a mounted file system.
pub(crate) struct EnvStore {
    pub disks: Arc<dyn Disks>,
    pub files: [PathBuf; 2],
}

pub(crate) fn encode(state: &BootState) -> Vec<u8> {
    let mut text = format!("{SIGNATURE}copal_gen={}\n", state.generation);
    for (name, value) in state.variables() {
        text += &format!("{name}={value}\n");
    }
    text += &format!(
        "copal_check={}{}\ncopal_end={}\n",
        state.committed,
        u8::from(state.trial),
        state.generation
    );
    let mut bytes = text.into_bytes();
    bytes.resize(SIZE, b'#');
    bytes
}

pub(crate) fn decode(bytes: &[u8]) -> Option<BootState> {
    let text = std::str::from_utf8(bytes).ok()?.strip_prefix(SIGNATURE)?;
    if bytes.len() != SIZE {
        return None;
    }
    let mut lines = std::collections::BTreeMap::new();
    for (name, value) in
        text.lines().filter(|l| !l.starts_with('#')).map(|l| l.split_once('=')).collect::<Option<Vec<_>>>()?
    {
        if lines.insert(name, value).is_some() {
            return None;
        }
    }
    let get = |name: &str| lines.get(name).map(|value| (*value).to_owned());
    let generation = get("copal_gen")?;
    if get("copal_end")? != generation {
        return None;
    }
    let state = BootState::from_variables(generation.parse().ok().filter(|g| *g <= LAST)?, get)?;
    (get("copal_check")? == format!("{}{}", state.committed, u8::from(state.trial))).then_some(state)
}

const WHAT: &str = "the boot state";

impl Store for EnvStore {
    fn load(&self) -> Result<Loaded, BootError> {
        let [one, two] = [0, 1].map(|copy| -> std::io::Result<Option<BootState>> {
            let disk = self.disks.open(&self.files[copy], Access::Read)?;
            if disk.size()? != SIZE as u64 {
                return Ok(None);
            }
            disk.drop_caches()?;
            let mut bytes = vec![0; SIZE];
            disk.read_at(0, &mut bytes)?;
            Ok(decode(&bytes))
        });
        match (one, two) {
            (Err(source), Err(_)) => {
                Err(BootError::Read { what: WHAT, device: self.files[0].clone(), source })
            }
            (one, two) => Ok(Loaded::choose([one.ok().flatten(), two.ok().flatten()], |a, b| a < b)),
        }
    }

    fn save(&self, loaded: &Loaded, next: &BootState) -> Result<(), BootError> {
        let before = loaded.state.as_ref().map_or(0, |s| s.generation);
        let generation = if before >= LAST { 1 } else { before + 1 };
        let bytes = encode(&BootState { generation, ..next.clone() });
        for copy in [1 - loaded.newest, loaded.newest] {
            let file = &self.files[copy];
            let open = self.disks.open(file, Access::Write);
            let disk =
                open.map_err(|source| BootError::Write { what: WHAT, device: file.clone(), source })?;
            put(&*disk, file, 0, &bytes, WHAT)?;
        }
        Ok(())
    }

    fn check_layout(&self) -> Result<(), BootError> {
        for file in &self.files {
            let disk = self.disks.open(file, Access::Read);
            let size = disk.and_then(|d| d.size());
            let size = size.map_err(|source| BootError::Read { what: WHAT, device: file.clone(), source })?;
            if size != SIZE as u64 {
                return Err(BootError::Probe {
                    what: format!("{} has {size} bytes, an environment block has {SIZE}", file.display()),
                    next: "write its disk anew from an image with this layout",
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Slot, *};

    fn sample() -> BootState {
        BootState {
            generation: 41,
            arms: 1,
            arms_for: Some([0xab; 8]),
            fell: Some("invalid".to_owned()),
            canary: u32::MAX,
            echo: u32::MAX,
            ..BootState::new(Slot::A, 9)
        }
    }

    #[test]
    fn all_that_is_said_lies_in_one_sector() {
        let bytes = encode(&BootState { generation: LAST, ..sample() });
        assert!(bytes[512..].iter().all(|b| *b == b'#'));
        insta::assert_snapshot!(String::from_utf8_lossy(&encode(&sample())).trim_end_matches('#'), @r"
        # GRUB Environment Block
        copal_gen=41
        copal_slot=a
        copal_trial=0
        copal_tries=0
        copal_limit=9
        copal_arms=1
        copal_for=abababababababab
        copal_canary=ffffffff
        copal_echo=ffffffff
        copal_fell=invalid
        copal_check=a0
        copal_end=41
        ");
        assert_eq!(decode(&encode(&sample())), Some(sample()));
    }

    #[test]
    fn no_flipped_bit_changes_the_slot_or_the_trial() {
        let bytes = encode(&sample());
        for bit in 0..SIZE * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            if let Some(read) = decode(&flipped) {
                assert_eq!((read.committed, read.trial), (Slot::A, false), "bit {bit}");
            }
        }
    }
}
