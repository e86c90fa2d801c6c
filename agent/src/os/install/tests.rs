//! Whole installations against disks that die, lie and forget, and servers that cut, corrupt and ignore.

use std::{
    collections::BTreeMap,
    io::{self, Cursor},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use copal_bundle::encode::{Base, Packing, encode};
use copal_protocol::documents::DocumentRef;
use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture, stream};
use proptest::prelude::*;

use super::{bits::Bits, journal::Record, *};
use crate::os::disk::fake::{Cut, Machine, Step};

const OLD: &str = "/dev/a";
const NEW: &str = "/dev/b";

/// Keeps the record on the machine that dies.
struct OnMachine(Machine);

impl Journal for OnMachine {
    fn load(&self) -> io::Result<Option<Vec<u8>>> {
        Ok(self.0.recorded("install"))
    }
    fn store(&self, bytes: &[u8]) -> io::Result<()> {
        self.0.record("install", bytes)
    }
    fn clear(&self) -> io::Result<()> {
        Ok(())
    }
}

/// A server, and what is wrong with it.
#[derive(Default)]
struct Server {
    blobs: BTreeMap<Sha256Hex, Vec<u8>>,
    ignores_ranges: bool,
    /// Each answer breaks off after so many bytes.
    cuts_after: Option<usize>,
    /// In so many answers the last byte of the data is another.
    flips: AtomicUsize,
    fails: AtomicUsize,
    asked: Mutex<Vec<(Sha256Hex, u64, u64)>>,
}

impl Blobs for Server {
    fn range(&self, sha256: Sha256Hex, from: u64, to: u64) -> BoxFuture<'_, Result<Ranged, FetchError>> {
        self.asked.lock().unwrap().push((sha256, from, to));
        if self.fails.load(Ordering::Relaxed) > 0 {
            self.fails.fetch_sub(1, Ordering::Relaxed);
            return async { Err(FetchError::passing("503")) }.boxed();
        }
        let Some(blob) = self.blobs.get(&sha256) else {
            return async { Err(FetchError { why: "404".to_owned(), again: false, after: None }) }.boxed();
        };
        let mut blob = blob.clone();
        // The data is the larger blob; what a device with the base lacks stands at its end.
        if blob.len() > 50_000 && to == blob.len() as u64 && self.flips.load(Ordering::Relaxed) > 0 {
            self.flips.fetch_sub(1, Ordering::Relaxed);
            *blob.last_mut().unwrap() ^= 1;
        }
        let (from, to) = if self.ignores_ranges {
            (0, blob.len())
        } else {
            (from as usize, (to as usize).min(blob.len()))
        };
        let to = self.cuts_after.map_or(to, |n| to.min(from + n));
        let pieces: Vec<_> = blob[from..to].chunks(10_000).map(|c| Ok(Bytes::copy_from_slice(c))).collect();
        async move { Ok(Ranged { from: from as u64, stream: stream::iter(pieces).boxed() }) }.boxed()
    }
}

struct World {
    machine: Machine,
    server: Arc<Server>,
    image: Vec<u8>,
    plan: InstallPlan,
    _work: tempfile::TempDir,
}

fn block(kind: usize) -> Vec<u8> {
    if kind.is_multiple_of(7) {
        return vec![0; BLOCK];
    }
    let mut state = (kind as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (0..BLOCK)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 58) as u8
        })
        .collect()
}

/// The new image shares blocks 40.. with the old one, moved by three places.
fn images() -> (Vec<u8>, Vec<u8>) {
    let old: Vec<u8> = (1..90).flat_map(block).collect();
    let new: Vec<u8> = (200..203).chain(1..60).chain(300..340).chain(60..80).flat_map(block).collect();
    (old, new)
}

/// Index and data; made once for each image, compressing takes long.
fn made(old: &[u8], image: &[u8], with_base: bool) -> (Vec<u8>, Vec<u8>) {
    type Made = BTreeMap<(Sha256Hex, Sha256Hex, bool), (Vec<u8>, Vec<u8>)>;
    static MADE: Mutex<Made> = Mutex::new(BTreeMap::new());
    let key = (Sha256Hex::of(old), Sha256Hex::of(image), with_base);
    if let Some(made) = MADE.lock().unwrap().get(&key) {
        return made.clone();
    }
    let bases = if with_base { vec![Base::from_image(old).unwrap()] } else { vec![] };
    let (mut data, mut index) = (Vec::new(), Vec::new());
    encode(
        &mut Cursor::new(image),
        &Packing { bases: &bases, ..Packing::default() },
        &mut data,
        &mut index,
        |_| (),
    )
    .unwrap();
    MADE.lock().unwrap().insert(key, (index.clone(), data.clone()));
    (index, data)
}

fn world_of(old: &[u8], image: Vec<u8>, target: &[u8], server: Server, with_base: bool) -> World {
    let (index, data) = made(old, &image, with_base);
    let machine = Machine::new();
    machine.add(OLD, old);
    machine.add(NEW, target);
    let name = Sha256Hex::of(&index);
    let payload = HostPayload {
        size: image.len() as u64,
        sha256: Sha256Hex::of(&image),
        index: Some(DocumentRef { sha256: name, size: Some(index.len() as u64) }),
        verity_root: None,
    };
    let mut server = server;
    server.blobs.insert(Sha256Hex::of(&data), data);
    server.blobs.insert(name, index);
    let work = tempfile::tempdir().unwrap();
    let payloads =
        vec![PayloadPlan { name: "rootfs".into(), payload, target: NEW.into(), old: Some(OLD.into()) }];
    let patience = Patience { base: Duration::from_millis(1), tries: 4, idle: Duration::from_secs(20) };
    let plan = InstallPlan {
        release: Sha256Hex::of(b"release"),
        payloads,
        work: work.path().join("work"),
        patience,
    };
    World { machine, server: Arc::new(server), image, plan, _work: work }
}

fn world(server: Server) -> World {
    let (old, new) = images();
    let mut target = vec![0x55; new.len() + 5 * BLOCK];
    target[..BLOCK].fill(0);
    world_of(&old, new, &target, server, true)
}

impl World {
    fn install(&self) -> Result<Installed, InstallError> {
        self.install_on(&self.machine)
    }

    fn install_on(&self, machine: &Machine) -> Result<Installed, InstallError> {
        self.install_with(machine, Arc::new(|_| ()), CancellationToken::new())
    }

    fn install_with(
        &self,
        machine: &Machine,
        progress: OnProgress,
        cancel: CancellationToken,
    ) -> Result<Installed, InstallError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let journal = Arc::new(OnMachine(machine.clone()));
        let disks = Arc::new(machine.clone());
        runtime.block_on(install(self.server.clone(), self.plan.clone(), disks, journal, progress, cancel))
    }

    fn finish(&self) -> Result<Stats, InstallError> {
        let installed = self.install()?;
        finish(&self.machine, &installed)?;
        Ok(installed.stats)
    }

    fn is_whole(&self, machine: &Machine) -> bool {
        machine.durable(NEW)[..self.image.len()] == self.image
    }

    /// I6: every chunk the journal claims is on the medium.
    fn journal_is_honest(&self, machine: &Machine) -> bool {
        let Some(bytes) = machine.recorded("install") else { return true };
        let index = self.plan.payloads[0].payload.index.as_ref().unwrap().sha256;
        let chunks = self.image.len().div_ceil(65_536) as u64;
        let record = Record::parse(&bytes, self.plan.release, &[(index, chunks)]).unwrap();
        let mut held = machine.durable(NEW);
        if let Some(head) = &record.payloads[0].head {
            held[..BLOCK].copy_from_slice(&head[..]);
        }
        record.payloads[0].done.ones().all(|chunk| {
            let from = chunk as usize * 65_536;
            let to = (from + 65_536).min(self.image.len());
            held[from..to] == self.image[from..to]
        })
    }
}

#[test]
fn an_image_is_installed_and_its_head_comes_last() {
    let world = world(Server::default());
    world.machine.record_steps();
    let installed = world.install().unwrap();
    let before = world.machine.durable(NEW);
    assert!(before[..BLOCK] == [0; BLOCK], "the head is withheld");
    assert!(before[BLOCK..world.image.len()] == world.image[BLOCK..]);
    assert!(before[world.image.len()..].iter().all(|b| *b == 0x55), "nothing past the image is written");
    assert!(world.machine.dropped() > 0, "it was read back from the medium");
    finish(&world.machine, &installed).unwrap();
    assert!(world.is_whole(&world.machine));
    let steps = world.machine.steps();
    let last_write = steps.iter().rev().find_map(|s| match s {
        Step::Write { offset, bytes, disk } => Some((*offset, bytes.len(), disk.clone())),
        _ => None,
    });
    assert_eq!(last_write, Some((0, 512, NEW.into())), "the key of the head is the very last");
    assert!(steps.iter().all(|s| !matches!(s, Step::Write { disk, .. } if disk.as_os_str() == OLD)), "I1");
    assert!(installed.stats.reused > 60 * BLOCK as u64, "{:?}", installed.stats);
}

#[test]
fn a_head_is_zero_or_without_its_magic_or_whole_wherever_its_writes_are_cut() {
    let (old, mut image) = images();
    // Magic and volume name of ext4 lie in one sector, the rest of the superblock in others.
    image[1080..1082].copy_from_slice(&[0x53, 0xef]);
    for step in 0.. {
        let world = world_of(&old, image.clone(), &vec![0; image.len()], Server::default(), false);
        let installed = world.install().unwrap();
        world.machine.die_at(world.machine.count() + step);
        let ended = finish(&world.machine, &installed).is_ok();
        for cut in [Cut::Kept, Cut::Lost, Cut::Reordered(3 + step as u64), Cut::Reordered(71 + step as u64)] {
            let head = world.machine.restarted(cut).durable(NEW)[..BLOCK].to_vec();
            let whole = head == image[..BLOCK];
            assert!(whole || head[1024..1536] == [0; 512], "step {step}, {cut:?}");
            assert!(!ended || whole, "{cut:?}");
        }
        if ended {
            assert_eq!(step, 4, "two writes, each synced");
            break;
        }
    }
}

#[test]
fn indexes_of_other_releases_are_removed_and_the_own_one_stays() {
    let world = world(Server::default());
    std::fs::create_dir_all(&world.plan.work).unwrap();
    for name in ["index", "part"] {
        let other = format!("{}.{name}", Sha256Hex::of(b"a release that failed"));
        std::fs::write(world.plan.work.join(other), b"large").unwrap();
    }
    world.finish().unwrap();
    let entries = std::fs::read_dir(&world.plan.work).unwrap();
    let left: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(left, [format!("{}.index", world.plan.payloads[0].payload.index.as_ref().unwrap().sha256)]);
}

#[test]
fn with_its_base_only_what_is_new_is_fetched_in_one_request() {
    let world = world(Server::default());
    let stats = world.finish().unwrap();
    assert_eq!(stats.requests, 2, "index and data");
    let new = 300..340;
    let new = new.filter(|k| k % 7 != 0).count() + 3;
    let data = stats.downloaded - world.plan.payloads[0].payload.index.as_ref().unwrap().size.unwrap();
    assert!(data < (new * BLOCK) as u64, "{data} bytes for {new} blocks");
}

#[test]
fn power_cut_at_every_step_leaves_the_old_slot_and_a_head_of_zeros_and_is_gone_on_from() {
    let whole = {
        let world = world(Server::default());
        world.finish().unwrap();
        world.machine.count()
    };
    assert!(whole > 8, "{whole} steps");
    for step in 0..whole {
        for cut in
            [Cut::Kept, Cut::Lost, Cut::Reordered(step as u64 + 1), Cut::Reordered(step as u64 * 77 + 5)]
        {
            let mut world = world(Server::default());
            let old = world.machine.durable(OLD);
            world.machine.die_at(step);
            assert!(world.finish().is_err(), "step {step}");
            let after = world.machine.restarted(cut);
            assert!(after.durable(OLD) == old, "I1 at step {step}, {cut:?}");
            let after_head = after.durable(NEW)[..BLOCK].to_vec();
            let head_is_zero = after_head == [0; BLOCK];
            let head_is_whole = after_head == world.image[..BLOCK];
            assert!(
                head_is_zero || head_is_whole || after_head[..512] == [0; 512],
                "a head without its key, or all of it: step {step}, {cut:?}"
            );
            let rest_is_right = after.durable(NEW)[BLOCK..world.image.len()] == world.image[BLOCK..];
            assert!(head_is_zero || rest_is_right, "I2, I3 at step {step}, {cut:?}");
            assert!(world.journal_is_honest(&after), "I6 at step {step}, {cut:?}");
            world.machine = after;
            world.finish().unwrap_or_else(|e| panic!("going on after step {step}, {cut:?}: {e}"));
            assert!(world.is_whole(&world.machine), "step {step}, {cut:?}");
        }
    }
}

#[test]
fn what_was_stopped_downloads_and_writes_nothing_twice() {
    let (old, _) = images();
    // Larger than one checkpoint is not needed: comparing finds what the journal does not know.
    let image: Vec<u8> = (1000..1600).flat_map(block).collect();
    let world = world_of(&old, image.clone(), &vec![0; image.len()], Server::default(), false);
    let cancel = CancellationToken::new();
    let stop = cancel.clone();
    let progress: OnProgress = Arc::new(move |p| {
        if p.stage == Stage::Verifying {
            stop.cancel();
        }
    });
    let error = world.install_with(&world.machine, progress, cancel).unwrap_err();
    assert_eq!(error.code, "os_cancelled");
    let again = world.finish().unwrap();
    assert_eq!((again.downloaded, again.written, again.requests), (0, 0, 0), "{again:?}");
    // Without the journal, too.
    world.machine.record("install", b"torn").unwrap();
    let again = world.finish().unwrap();
    assert!(again.requests <= 1 && again.written == 0, "only the head's group may be asked for: {again:?}");
    assert!(world.is_whole(&world.machine));
}

#[test]
fn a_stop_between_requests_loses_nothing_that_was_written() {
    let image: Vec<u8> = (1000..4600).flat_map(block).collect();
    let mut world = world_of(&block(1), image.clone(), &vec![0; image.len()], Server::default(), false);
    world.server = Arc::new(Server {
        cuts_after: Some(700_000),
        blobs: world.server.blobs.clone(),
        ..Server::default()
    });
    let steps = {
        let world = world_of(&block(1), image.clone(), &vec![0; image.len()], Server::default(), false);
        world.finish().unwrap();
        world.machine.count()
    };
    let whole = world.server.blobs.values().map(Vec::len).sum::<usize>() as u64;
    world.machine.die_at(steps / 2);
    let first = world.install().unwrap_err();
    assert_eq!(first.code, "os_write");
    world.machine = world.machine.restarted(Cut::Kept);
    let second = world.finish().unwrap();
    assert!(second.downloaded < whole * 3 / 4, "{} of {whole} bytes again", second.downloaded);
    assert!(world.is_whole(&world.machine));
}

#[test]
fn bad_networks_are_borne() {
    for server in [
        Server { cuts_after: Some(30_000), ..Server::default() },
        Server { ignores_ranges: true, ..Server::default() },
        Server { fails: AtomicUsize::new(4), ..Server::default() },
        Server { flips: AtomicUsize::new(1), ..Server::default() },
    ] {
        let world = world(server);
        world.finish().unwrap();
        assert!(world.is_whole(&world.machine));
    }
}

#[test]
fn worse_networks_end_with_their_code_and_no_head() {
    for (server, code) in [
        (Server { fails: AtomicUsize::new(1000), ..Server::default() }, "os_download"),
        (Server { cuts_after: Some(0), ..Server::default() }, "os_download"),
        (Server { flips: AtomicUsize::new(1000), ..Server::default() }, "os_corrupt"),
        (Server { ignores_ranges: true, cuts_after: Some(20_000), ..Server::default() }, "os_download"),
    ] {
        let world = world(server);
        let error = world.finish().unwrap_err();
        assert_eq!(error.code, code, "{error}");
        assert!(world.machine.durable(NEW)[..BLOCK] == [0; BLOCK]);
        assert!(world.server.asked.lock().unwrap().len() < 60, "no endless loop");
    }
}

#[test]
fn a_blob_that_is_not_the_named_one_is_refused() {
    let mut world = world(Server::default());
    let mut blobs = world.server.blobs.clone();
    let index = world.plan.payloads[0].payload.index.as_ref().unwrap().sha256;
    blobs.get_mut(&index).unwrap()[200] ^= 1;
    world.server = Arc::new(Server { blobs: blobs.clone(), ..Server::default() });
    assert_eq!(world.finish().unwrap_err().code, "os_corrupt");
    assert_eq!(world.machine.count(), 0, "nothing was written");
    blobs.remove(&index);
    world.server = Arc::new(Server { blobs, ..Server::default() });
    assert_eq!(world.finish().unwrap_err().code, "os_download");
}

#[test]
fn the_index_of_another_image_is_refused() {
    let mut world = world(Server::default());
    world.plan.payloads[0].payload.sha256 = Sha256Hex::of(b"another");
    assert_eq!(world.finish().unwrap_err().code, "os_corrupt");
    assert_eq!(world.machine.count(), 0);
}

#[test]
fn an_image_larger_than_its_partition_is_refused_before_anything() {
    let (old, new) = images();
    let target = vec![9; new.len() - 1];
    let world = world_of(&old, new, &target, Server::default(), true);
    assert_eq!(world.finish().unwrap_err().code, "os_no_space");
    assert!(world.machine.durable(NEW) == target);
    assert!(world.server.asked.lock().unwrap().is_empty());
}

#[test]
fn the_slot_that_runs_is_never_the_target() {
    let mut world = world(Server::default());
    world.plan.payloads[0].target = OLD.into();
    assert_eq!(world.finish().unwrap_err().code, "os_slot_invalid");
    assert_eq!(world.machine.count(), 0);
}

#[test]
fn a_disk_that_refuses_or_forgets_is_told_from_the_network() {
    for kind in [io::ErrorKind::Other, io::ErrorKind::StorageFull] {
        let world = world(Server::default());
        world.machine.fail_write(NEW, 2, kind);
        assert_eq!(world.finish().unwrap_err().code, "os_write");
        world.finish().unwrap();
    }
    let world = world(Server::default());
    world.machine.lie(NEW, true);
    assert_eq!(world.finish().unwrap_err().code, "os_readback");
    assert!(world.machine.durable(NEW)[..BLOCK] == [0; BLOCK]);
}

#[test]
fn damage_behind_the_journal_is_found_and_mended() {
    let world = world(Server::default());
    world.install().unwrap();
    world.machine.tamper(NEW, 3 * 65_536 + 100, b"bad sector");
    world.finish().unwrap();
    assert!(world.is_whole(&world.machine));
}

#[test]
fn a_hint_that_lies_is_caught_by_the_chunk() {
    // The old slot has a block whose bytes change between the search and the copy.
    let world = world(Server::default());
    let machine = world.machine.clone();
    let progress: OnProgress = Arc::new(move |p| {
        if p.stage == Stage::Preparing && p.done == 0 {
            machine.tamper(OLD, 50 * BLOCK, &[0xee; 64]);
        }
    });
    let installed = world.install_with(&world.machine, progress, CancellationToken::new()).unwrap();
    finish(&world.machine, &installed).unwrap();
    assert!(world.is_whole(&world.machine));
}

#[test]
fn a_boot_payload_becomes_bootable_last() {
    let mut world = world(Server::default());
    world.machine.add("/dev/boot-b", &vec![0; world.image.len()]);
    let boot = PayloadPlan {
        name: "boot".into(),
        target: "/dev/boot-b".into(),
        old: None,
        ..world.plan.payloads[0].clone()
    };
    world.plan.payloads.insert(0, boot);
    world.machine.record_steps();
    world.finish().unwrap();
    let last = world.machine.steps().into_iter().rev().find_map(|s| match s {
        Step::Write { disk, .. } => Some(disk),
        _ => None,
    });
    assert_eq!(last, Some("/dev/boot-b".into()));
    assert!(world.machine.durable("/dev/boot-b") == world.image);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_image_over_any_slots_comes_out_right(
        old in prop::collection::vec(0..60_usize, 1..80),
        new in prop::collection::vec(0..60_usize, 1..80),
        target in prop::collection::vec(0..60_usize, 80..81),
        with_base in any::<bool>(),
    ) {
        let bytes = |kinds: &[usize]| kinds.iter().flat_map(|k| block(*k)).collect::<Vec<u8>>();
        let world = world_of(&bytes(&old), bytes(&new), &bytes(&target), Server::default(), with_base);
        world.finish().unwrap();
        prop_assert!(world.is_whole(&world.machine));
    }

    #[test]
    fn a_torn_record_is_none(bytes in prop::collection::vec(any::<u8>(), 0..400), bits in prop::collection::vec(any::<bool>(), 0..200)) {
        let release = Sha256Hex::of(b"r");
        prop_assert_eq!(Record::parse(&bytes, release, &[(release, 10)]), None);
        let mut done = Bits::new(bits.len() as u64);
        bits.iter().enumerate().for_each(|(i, b)| done.set(i as u64, *b));
        let entry = super::journal::Entry { index: release, done, head: Some(Box::new([3; BLOCK])) };
        let record = Record { release, payloads: vec![entry] };
        let names = [(release, bits.len() as u64)];
        let whole = record.to_bytes();
        prop_assert_eq!(Record::parse(&whole, release, &names), Some(record));
        prop_assert_eq!(Record::parse(&whole[..whole.len() - 1], release, &names), None);
        prop_assert_eq!(Record::parse(&whole, Sha256Hex::of(b"other"), &names), None);
    }
}
