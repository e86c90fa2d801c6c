//! Devices in memory, whose storage can die at any write, with models of their bootloaders: the backends' tests run the whole
//! of an update on them. `images/os/boot/boot.cmd` and `grub.cfg` are what the models follow, step by step; those two were
//! proved in QEMU, the models are what can be cut a thousand times a second.

mod storage;
mod tests;
mod world;

pub(crate) use storage::{Storage, Tear};
pub(crate) use world::{World, boot_image, image};
