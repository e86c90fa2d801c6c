//! What the agent's journal on the data partition claims of the slot being written, read out of a dead disk.
//!
//! The file system's own journal is replayed first, as the machine's kernel would do it. Formats: `agent/src/state/file.rs`
//! (the envelope of every state file) and `agent/src/os/install/journal.rs` (the record).

use std::{path::Path, process::Command};

use sha2::{Digest as _, Sha256};

use crate::disk::{Bytes as _, Disk};

const CHUNK: u64 = 64 << 10;
const HEAD: u64 = 4096;

/// Numbers of the chunks of the root file system that the record says are on the disk. Empty without a record.
///
/// Changes the disk: give a copy.
pub fn claimed_chunks(disk: &Disk) -> Vec<u64> {
    let start = disk.place("data").0;
    let mut magic = [0; 2];
    disk.open().read(start + 1024 + 0x38, &mut magic).unwrap();
    if magic != [0x53, 0xef] {
        return Vec::new();
    }
    // The partition by itself: e2fsck opens a file system anew once its journal is replayed, and forgets an offset then.
    let device = disk.path.with_extension("data");
    let mut copy = Command::new("dd");
    copy.arg(format!("if={}", disk.path.display())).arg(format!("of={}", device.display()));
    copy.args(["bs=1M", "conv=sparse", "status=none"]).arg(format!("skip={}", start >> 20));
    assert!(copy.status().unwrap().success() && start.is_multiple_of(1 << 20), "{copy:?}");
    // 1 means that something was mended; a journal to replay is.
    let output = Command::new("e2fsck").arg("-fy").arg(&device).output().unwrap();
    assert!(
        matches!(output.status.code(), Some(0 | 1)),
        "e2fsck, {}: {}",
        output.status,
        copal_e2e::text(&output)
    );
    let copies = ["a", "b"].into_iter().filter_map(|copy| {
        let out = disk.path.with_extension(format!("install.{copy}"));
        let _ = std::fs::remove_file(&out);
        let request = format!("dump /copal/install.{copy} {}", out.display());
        Command::new("debugfs").args(["-R", &request]).arg(&device).output().unwrap();
        content("install", &std::fs::read(&out).ok()?)
    });
    copies.max_by_key(|(generation, _)| *generation).map_or_else(Vec::new, |(_, record)| chunks(&record))
}

/// Generation and content of a state file, if it is whole.
fn content(name: &str, bytes: &[u8]) -> Option<(u64, Vec<u8>)> {
    let (header, content) = bytes.split_at_checked(60)?;
    let mut sum = Sha256::new();
    sum.update((name.len() as u64).to_le_bytes());
    sum.update(name.as_bytes());
    sum.update(&header[8..28]);
    sum.update(content);
    let whole = header.starts_with(b"COPALST\n") && sum.finalize().as_slice() == &header[28..60];
    whole.then(|| (u64::from_le_bytes(header[12..20].try_into().unwrap()), content.to_vec()))
}

/// The bits of the record's only payload.
fn chunks(record: &[u8]) -> Vec<u64> {
    let rest = record.strip_prefix(b"COPALIJ1").unwrap_or_else(|| panic!("no record: {:?}", record.get(..8)));
    let has_head = rest[64] == 1;
    let bits = &rest[65 + if has_head { 4096 } else { 0 }..];
    (0..bits.len() as u64 * 8).filter(|n| bits[(n / 8) as usize] >> (n % 8) & 1 == 1).collect()
}

/// Checks that a slot holds each claimed chunk of this image, but for the head, which is written last (I6).
///
/// # Errors
/// The first chunk that it does not.
pub fn check(disk: &Disk, slot: &str, image: &Path) -> Result<usize, String> {
    let claimed = claimed_chunks(disk);
    let (device, image) = (disk.open(), std::fs::File::open(image).unwrap());
    let size = image.metadata().unwrap().len();
    let start = disk.place(&format!("root-{slot}")).0;
    for chunk in &claimed {
        let at = (chunk * CHUNK).max(HEAD);
        let n = usize::try_from(((chunk + 1) * CHUNK).min(size) - at).unwrap();
        let (mut there, mut wanted) = (vec![0; n], vec![0; n]);
        device.read(start + at, &mut there).unwrap();
        image.read(at, &mut wanted).unwrap();
        if there != wanted {
            return Err(format!("chunk {chunk} is claimed and is not there ({} are claimed)", claimed.len()));
        }
    }
    Ok(claimed.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_numbered_from_the_lowest() {
        let mut record = b"COPALIJ1".to_vec();
        record.extend([0; 64]);
        record.extend([0, 0b101, 0b1000_0000]);
        assert_eq!(chunks(&record), [0, 2, 15]);
    }

    #[test]
    fn a_state_file_with_a_flipped_bit_says_nothing() {
        let mut bytes = b"COPALST\n".to_vec();
        bytes.extend(1_u32.to_le_bytes());
        bytes.extend(5_u64.to_le_bytes());
        bytes.extend(2_u64.to_le_bytes());
        let mut sum = Sha256::new();
        sum.update(7_u64.to_le_bytes());
        sum.update(b"install");
        sum.update(&bytes[8..28]);
        sum.update(b"hi");
        bytes.extend(sum.finalize());
        bytes.extend(b"hi");
        assert_eq!(content("install", &bytes), Some((5, b"hi".to_vec())));
        bytes[61] ^= 1;
        assert_eq!(content("install", &bytes), None);
    }
}
