//! The first 4 KiB of a slot's partitions: what makes it bootable, and is zero while it is not complete.
//!
//! A torn write must not leave a head that looks whole. So the one sector that bootloaders look for first, the *key* (of ext4 and
//! erofs the sector at 1,024, of FAT the first), is zeroed before everything else and written after everything else, alone.

use std::{ops::Range, path::Path};

use super::{BootError, HEAD, Slot, store::put};
use crate::os::{
    OsConfig,
    disk::{Access, Disk, Disks},
};

const WHAT: &str = "the head of the slot";
/// Where the key of a FAT file system lies, and of all others.
const FAT_KEY: Range<usize> = 0..512;
const SUPERBLOCK_KEY: Range<usize> = 1024..1536;
/// The magic of erofs, where ext4 has other fields of its superblock.
const EROFS: [u8; 4] = [0xe2, 0xe1, 0xf5, 0xe0];

fn has_superblock(head: &[u8]) -> bool {
    head[1080..1082] == [0x53, 0xef] || head[1024..1028] == EROFS
}

fn key(head: &[u8]) -> Range<usize> {
    if has_superblock(head) { SUPERBLOCK_KEY } else { FAT_KEY }
}

/// Writes the head that was withheld until all the rest of the partition was read back: first all but the key, then the key.
///
/// # Errors
/// `os_write`, `os_readback`, `os_read`. The partition is bootable only if there is none.
pub fn write_head(disk: &dyn Disk, device: &Path, head: &[u8; HEAD]) -> Result<(), BootError> {
    let key = key(head);
    let mut without = *head;
    without[key.clone()].fill(0);
    put(disk, device, 0, &without, WHAT)?;
    put(disk, device, key.start as u64, &head[key], WHAT)
}

/// Zeroes the heads of a slot: the boot partition's first, because firmware may look there by itself.
pub(crate) fn destroy(disks: &dyn Disks, config: &OsConfig, slot: Slot) -> Result<(), BootError> {
    let devices = config.devices(slot);
    for device in devices.boot.iter().chain([&devices.rootfs]) {
        let write = |source| BootError::Write { what: WHAT, device: device.clone(), source };
        let disk = disks.open(device, Access::Write).map_err(write)?;
        let key = key(&read(disks, device)?);
        put(&*disk, device, key.start as u64, &vec![0; key.len()], WHAT)?;
        put(&*disk, device, 0, &[0; HEAD], WHAT)?;
    }
    Ok(())
}

/// Whether the heads of a slot are there.
pub(crate) fn check(disks: &dyn Disks, config: &OsConfig, slot: Slot) -> Result<(), BootError> {
    let devices = config.devices(slot);
    for (device, is_boot) in devices.boot.iter().map(|d| (d, true)).chain([(&devices.rootfs, false)]) {
        let head = read(disks, device)?;
        let (there, why) = if is_boot {
            (head[510..512] == [0x55, 0xaa], "has no FAT boot sector")
        } else {
            (has_superblock(&head), "has no superblock")
        };
        if !there {
            return Err(BootError::SlotInvalid { slot, device: device.clone(), why });
        }
    }
    Ok(())
}

/// The same as an answer: only what cannot be read is an error.
pub(crate) fn are_there(disks: &dyn Disks, config: &OsConfig, slot: Slot) -> Result<bool, BootError> {
    match check(disks, config, slot) {
        Ok(()) => Ok(true),
        Err(BootError::SlotInvalid { .. }) => Ok(false),
        Err(e) => Err(e),
    }
}

fn read(disks: &dyn Disks, device: &Path) -> Result<Vec<u8>, BootError> {
    let wrong = |source| BootError::Read { what: WHAT, device: device.into(), source };
    let disk = disks.open(device, Access::Read).map_err(wrong)?;
    disk.drop_caches().map_err(wrong)?;
    let mut head = vec![0; HEAD];
    disk.read_at(0, &mut head).map_err(wrong)?;
    Ok(head)
}
