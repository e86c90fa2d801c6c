//! The two machines: arm64 with U-Boot, x86-64 with UEFI and GRUB. A disk says by its partition table which one it is for.

use std::{collections::BTreeMap, path::PathBuf, process::Command, sync::OnceLock};

use crate::{disk::Bytes, repository};

/// A machine's processor, bootloader and layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Board {
    /// arm64, U-Boot, MBR; the boot state in raw sectors.
    Uboot,
    /// x86-64, UEFI and GRUB, GPT; the boot state in two files.
    Grub,
}

/// Start and size of each partition in bytes, by name.
pub type Places = BTreeMap<String, (u64, u64)>;

impl Board {
    /// Whose disk this is: only GRUB's has a GPT, which announces itself as a partition of this type in the MBR.
    pub fn of(disk: &impl Bytes) -> Self {
        let mut table = [0; 512];
        disk.read(0, &mut table).unwrap();
        if table[450] == 0xee { Self::Grub } else { Self::Uboot }
    }

    /// The name of its partition table in `images/os/layout`.
    pub fn table(self) -> &'static str {
        match self {
            Self::Uboot => "uboot",
            Self::Grub => "grub",
        }
    }

    /// The device type its images are for.
    pub fn device_type(self) -> &'static str {
        match self {
            Self::Uboot => "qemu-arm64",
            Self::Grub => "qemu-x86-64",
        }
    }

    /// Its architecture, as the cloud calls it.
    pub fn arch(self) -> &'static str {
        match self {
            Self::Uboot => "arm64",
            Self::Grub => "amd64",
        }
    }

    /// What `images/os/build.sh` is told to build for it, before anything else.
    pub fn build_words(self) -> &'static [&'static str] {
        match self {
            Self::Uboot => &[],
            Self::Grub => &["grub"],
        }
    }

    /// Where `images/os/build.sh` puts what it builds for it.
    pub fn folder(self) -> PathBuf {
        let folder = repository().join("target/os");
        match self {
            Self::Uboot => folder,
            Self::Grub => folder.join("grub"),
        }
    }

    /// A file in that folder.
    pub fn built(self, name: &str) -> PathBuf {
        let file = self.folder().join(name);
        assert!(
            file.exists(),
            "{} is missing: run `tests/setup.sh os && images/os/build.sh {}` first",
            file.display(),
            self.build_words().concat()
        );
        file
    }

    /// The factory's image.
    pub fn factory(self) -> PathBuf {
        self.built("images/factory.ext4")
    }

    /// `images/os/layout/<table>.table`.
    pub fn places(self) -> &'static Places {
        static TABLES: [OnceLock<Places>; 2] = [const { OnceLock::new() }; 2];
        TABLES[self as usize].get_or_init(|| read_table(self.table()))
    }
}

fn read_table(name: &str) -> Places {
    let script = repository().join("images/os/layout/table.sh");
    let output = Command::new(script).args(["rows", name]).output().unwrap();
    assert!(output.status.success(), "{}", copal_e2e::text(&output));
    String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let mib = |i: usize| words[i].parse::<u64>().unwrap() << 20;
            (words[1].to_owned(), (mib(2), mib(3)))
        })
        .collect()
}
