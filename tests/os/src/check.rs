//! What must hold of a disk at every instant, whoever cut the power: the invariants of docs/os-updates.md, judged from
//! outside.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use crate::{
    disk::{self, Bytes, Disk},
    replay::{Entry, Replay},
    state,
};

/// Images that may be booted: by SHA-256, with their sizes.
#[derive(Debug, Clone, Default)]
pub struct Known {
    images: Vec<(String, String, u64)>,
}

impl Known {
    /// Whole images and what to call them.
    pub fn images(images: &[(&str, &Path)]) -> Self {
        let images = images.iter().map(|(name, path)| {
            let (sha256, size) = disk::image_sha256(path);
            ((*name).to_owned(), sha256, size)
        });
        Self { images: images.collect() }
    }

    /// Which of them a slot holds, whole.
    pub fn in_slot(&self, disk: &impl Bytes, slot: &str) -> Option<&str> {
        let mut sums: BTreeMap<u64, String> = BTreeMap::new();
        self.images.iter().find_map(|(name, sha256, size)| {
            let sum = sums.entry(*size).or_insert_with(|| disk::slot_sha256(disk, slot, *size));
            (sum == sha256).then_some(name.as_str())
        })
    }

    /// Checks a disk; gives what would boot next, and from which slot.
    ///
    /// - No slot that could boot holds anything but a whole, known image (I3: nothing unverified is bootable).
    /// - What the boot state chooses can boot; where it is a trial, what it would go back to can boot, too (I2).
    ///
    /// # Errors
    /// What is broken.
    pub fn check(&self, disk: &impl Bytes) -> Result<Next, String> {
        self.judge(disk, |slot| self.in_slot(disk, slot))
    }

    fn judge<'a>(
        &'a self,
        disk: &impl Bytes,
        in_slot: impl Fn(&str) -> Option<&'a str>,
    ) -> Result<Next, String> {
        let slots = ["a", "b"].map(|slot| (slot, disk::bootable(disk, slot).then(|| in_slot(slot))));
        for (slot, content) in &slots {
            if *content == Some(None) {
                return Err(format!("slot {slot} can boot, and holds no whole image"));
            }
        }
        let content: BTreeMap<&str, &str> =
            slots.iter().filter_map(|(slot, content)| Some((*slot, (*content)??))).collect();
        let Some(state) = state::state(disk) else {
            return Err("both copies of the boot state are damaged".to_owned());
        };
        let committed = state.committed();
        let Some(committed_image) = content.get(committed) else {
            return Err(format!("the committed slot {committed} cannot boot: {state:?}"));
        };
        let other = if committed == "a" { "b" } else { "a" };
        let (slot, image) = match (state.on_trial(), content.get(other)) {
            (false, _) => (committed, committed_image),
            (true, Some(image)) => (other, image),
            (true, None) => return Err(format!("slot {other} is on trial and cannot boot: {state:?}")),
        };
        Ok(Next {
            slot: slot.to_owned(),
            image: (*image).to_owned(),
            trial: state.on_trial(),
            committed: committed.to_owned(),
        })
    }
}

/// What would boot next.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Next {
    pub slot: String,
    pub image: String,
    pub trial: bool,
    pub committed: String,
}

/// Judges the disk after each record that could change the judgement: with all unflushed writes, with none, and with some
/// of them lost or torn. Nothing may have been written to the active slot (I1). Gives everything that would have booted.
///
/// # Panics
/// Where an invariant does not hold, with the record and what was lost.
pub fn every_cut(entries: &[Entry], base: &Disk, known: &Known, active: &str) -> BTreeSet<Next> {
    let places = base.board().places();
    let active_place = places[&format!("root-{active}")];
    let other = if active == "a" { "b" } else { "a" };
    let other_place = places[&format!("root-{other}")];
    let touches = |entry: &Entry, (start, size): (u64, u64)| match entry {
        Entry::Write { offset, bytes, .. } => offset + bytes.len() as u64 > start && *offset < start + size,
        Entry::Flush | Entry::Discard { .. } => false,
    };
    let active_image = known.in_slot(&base.open(), active);
    let mut replay = Replay::from(&base.path);
    let (mut seen, mut disks, mut random) = (BTreeSet::new(), 0, 7_u64);
    // The boot state lies in front of the boot partition, or in it.
    let before_slots = places["boot"].0 + places["boot"].1;
    // What is in the body of the other slot matters only once it could boot; the rest of the disk never does.
    let (mut could_boot, mut pending) = (false, false);
    for (number, entry) in entries.iter().enumerate() {
        assert!(!touches(entry, active_place), "record {number} writes the active slot (I1)");
        replay.apply(entry);
        let decides = touches(entry, (0, before_slots))
            || touches(entry, (other_place.0, 4096))
            || could_boot && touches(entry, other_place);
        if !(decides || pending && replay.unflushed() == 0) {
            continue;
        }
        pending = replay.unflushed() > 0;
        let unflushed = replay.unflushed();
        let mut cuts = vec![replay.cut(|_, sectors| sectors)];
        if unflushed > 0 {
            cuts.push(replay.cut(|_, _| 0));
            // The newest alone is torn in its middle.
            cuts.push(replay.cut(|i, sectors| if i + 1 == unflushed { sectors / 2 } else { sectors }));
            // The newest alone got there.
            cuts.push(replay.cut(|i, sectors| if i + 1 == unflushed { sectors } else { 0 }));
            for _ in 0..2 {
                cuts.push(replay.cut(|_, sectors| {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    usize::try_from((random >> 33) % (sectors as u64 + 1)).unwrap()
                }));
            }
        }
        could_boot = false;
        for (way, cut) in cuts.iter().enumerate() {
            could_boot |= disk::bootable(cut, other);
            let next =
                known.judge(cut, |slot| if slot == active { active_image } else { known.in_slot(cut, slot) });
            match next {
                Ok(next) => seen.insert(next),
                Err(why) => {
                    panic!("after record {number} of {}, way {way} of losing the rest: {why}", entries.len())
                }
            };
            disks += 1;
        }
    }
    println!("{} records, {disks} disks judged: {seen:?}", entries.len());
    seen
}
