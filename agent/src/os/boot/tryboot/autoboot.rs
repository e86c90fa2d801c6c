//! `autoboot.txt`: the only word the firmware has on which slot it boots. Rewritten in place, as one sector of 512 bytes, so that neither
//! the file's size nor anything else of its file system changes.

use super::fat::FileAt;

/// The partitions it names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Autoboot {
    /// Booted normally.
    pub normal: u32,
    /// Booted once, after a restart that asks for it.
    pub trial: u32,
}

impl Autoboot {
    /// From the file's bytes. `None` unless it says just what this agent writes: anything else is a damaged file, because the
    /// firmware may understand it in another way.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let mut words = text.lines().map(str::trim_end).filter(|line| !line.is_empty());
        let mut partition = |before: &[&str]| {
            if !before.iter().all(|want| words.next() == Some(want)) {
                return None;
            }
            let number: u32 = words.next()?.strip_prefix("boot_partition=")?.parse().ok()?;
            (1..=9).contains(&number).then_some(number)
        };
        let normal = partition(&["[all]", "tryboot_a_b=1"])?;
        let trial = partition(&["[tryboot]"])?;
        (words.next().is_none() && normal != trial).then_some(Self { normal, trial })
    }

    /// The file's text, filled with empty lines to `size` bytes.
    pub(crate) fn render(self, size: usize) -> Option<Vec<u8>> {
        let text = format!(
            "[all]\ntryboot_a_b=1\nboot_partition={}\n[tryboot]\nboot_partition={}\n",
            self.normal, self.trial
        );
        let mut bytes = text.into_bytes();
        if bytes.len() > size {
            return None;
        }
        bytes.resize(size, b'\n');
        Some(bytes)
    }

    /// The sector with the new text, and behind it what was there.
    pub(crate) fn sector(self, place: FileAt, before: &[u8; 512]) -> Option<[u8; 512]> {
        let text = self.render(place.size)?;
        let mut sector = *before;
        sector.get_mut(..text.len())?.copy_from_slice(&text);
        Some(sector)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_its_own_words_are_understood() {
        let file = Autoboot { normal: 2, trial: 3 };
        let text = String::from_utf8(file.render(80).unwrap()).unwrap();
        insta::assert_snapshot!(text.trim_end(), @r"
        [all]
        tryboot_a_b=1
        boot_partition=2
        [tryboot]
        boot_partition=3
        ");
        assert_eq!(Autoboot::parse(text.as_bytes()), Some(file));
        assert_eq!(Autoboot::parse(text.replace('\n', "\r\n").as_bytes()), Some(file));
        for (from, to) in [
            ("[all]", "[none]"),
            ("b=1", "b=0"),
            ("=3", "=2"),
            ("=3", "=33"),
            ("=2", "=0"),
            ("[tryboot]\n", ""),
            ("]", "}"),
        ] {
            assert_eq!(Autoboot::parse(text.replacen(from, to, 1).as_bytes()), None, "{from} → {to}");
        }
        assert_eq!(Autoboot::parse(format!("{text}boot_partition=2\n").as_bytes()), None);
        assert_eq!(file.render(10), None);
    }

    #[test]
    fn every_torn_sector_is_the_old_file_or_the_new_or_damaged() {
        let place = FileAt { offset: 0, size: 64 };
        let (a, b) = (Autoboot { normal: 2, trial: 3 }, Autoboot { normal: 3, trial: 2 });
        let old = a.sector(place, &[0; 512]).unwrap();
        let new = b.sector(place, &old).unwrap();
        for cut in 0..512 {
            let torn = [&new[..cut], &old[cut..]].concat();
            let read = Autoboot::parse(&torn[..64]);
            assert!(read.is_none() || read == Some(a) || read == Some(b), "torn at {cut}: {read:?}");
        }
    }
}
