//! The installer as a process of its own: killed at any moment, and measured.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::{
    fs::{self, File},
    io::{self, BufReader, BufWriter, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use copal_agent::{
    os::{
        disk::RealDisks,
        install::{
            Blobs, FetchError, InstallPlan, Patience, PayloadPlan, Ranged, StateJournal, finish, install,
        },
    },
    state::{RealFs, StateDir},
};
use copal_bundle::encode::{Base, Packing, encode};
use copal_protocol::{
    documents::{DocumentRef, HostPayload},
    ids::Sha256Hex,
};
use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture, stream};

const FOLDER: &str = "COPAL_TEST_INSTALL";
const BLOCK: usize = 4096;

/// Blobs as files named by their hash.
struct Files(PathBuf);

impl Blobs for Files {
    fn range(&self, sha256: Sha256Hex, from: u64, to: u64) -> BoxFuture<'_, Result<Ranged, FetchError>> {
        let file = Arc::new(File::open(self.0.join(sha256.to_string())).unwrap());
        let pieces = stream::iter((from..to).step_by(32 << 10)).then(move |at| {
            let file = Arc::clone(&file);
            async move {
                tokio::time::sleep(Duration::from_micros(300)).await;
                let mut bytes = vec![0; usize::try_from((to - at).min(32 << 10)).unwrap()];
                file.read_exact_at(&mut bytes, at).unwrap();
                Ok(Bytes::from(bytes))
            }
        });
        async move { Ok(Ranged { from, stream: pieces.boxed() }) }.boxed()
    }
}

/// What the tests run in processes of their own.
#[test]
#[ignore = "the other tests start it"]
fn child() {
    let dir = PathBuf::from(std::env::var(FOLDER).unwrap());
    let payload: HostPayload = serde_json::from_slice(&fs::read(dir.join("payload.json")).unwrap()).unwrap();
    let target =
        PayloadPlan { name: "rootfs".to_owned(), payload, target: dir.join("b"), old: Some(dir.join("a")) };
    let plan = InstallPlan {
        release: Sha256Hex::of(b"release"),
        payloads: vec![target],
        work: dir.join("work"),
        patience: Patience::default(),
    };
    let state = Arc::new(StateDir::open(dir.join("state"), Arc::new(RealFs)).unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let installed = runtime
        .block_on(install(
            Arc::new(Files(dir.clone())),
            plan,
            Arc::new(RealDisks),
            Arc::new(StateJournal(state)),
            Arc::new(|_| ()),
            tokio_util::sync::CancellationToken::new(),
        ))
        .unwrap();
    finish(&RealDisks, &installed).unwrap();
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap();
    let peak = peak.split_whitespace().nth(1).unwrap();
    fs::write(
        dir.join("report"),
        format!("{peak} {} {}", installed.stats.reused, installed.stats.downloaded),
    )
    .unwrap();
}

fn command(dir: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child", "--ignored", "--test-threads=1"]);
    command.env(FOLDER, dir).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn block(&mut self) -> Vec<u8> {
        (0..BLOCK / 8).flat_map(|_| self.next().to_le_bytes()).collect()
    }
}

/// Makes the blobs of image `new` beside it, for who has `a`.
fn publish(dir: &Path) {
    let base = Base::from_image(BufReader::new(File::open(dir.join("a")).unwrap())).unwrap();
    let mut image = BufReader::with_capacity(1 << 20, File::open(dir.join("new")).unwrap());
    let mut data = BufWriter::new(File::create(dir.join("data")).unwrap());
    let mut index = BufWriter::new(File::create(dir.join("index")).unwrap());
    let made =
        encode(&mut image, &Packing { bases: &[base], ..Packing::default() }, &mut data, &mut index, |_| ())
            .unwrap();
    drop((data, index));
    let name = Sha256Hex::from_bytes(made.index_sha256);
    fs::rename(dir.join("index"), dir.join(name.to_string())).unwrap();
    let data = Sha256Hex::from_bytes(made.header.data_sha256);
    fs::rename(dir.join("data"), dir.join(data.to_string())).unwrap();
    let payload = HostPayload {
        size: made.header.image_size,
        sha256: Sha256Hex::from_bytes(made.header.image_sha256),
        index: Some(DocumentRef { sha256: name, size: Some(made.index_size) }),
        verity_root: None,
    };
    fs::write(dir.join("payload.json"), serde_json::to_vec(&payload).unwrap()).unwrap();
}

#[test]
fn killed_at_any_moment_it_goes_on_and_the_old_slot_stays() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let dir = dir.path();
    let mut random = Random(42);
    let old: Vec<Vec<u8>> = (0..600).map(|_| random.block()).collect();
    // What lay there before and what comes both begin like ext4.
    let mut before = vec![0x11; 700 * BLOCK];
    let mut new: Vec<Vec<u8>> = vec![random.block()];
    for head in [&mut before, &mut new[0]] {
        head[1080..1082].copy_from_slice(&[0x53, 0xef]);
    }
    new.extend(old.iter().cloned());
    for block in &mut new[200..400] {
        *block = random.block();
    }
    fs::write(dir.join("a"), old.concat()).unwrap();
    fs::write(dir.join("new"), new.concat()).unwrap();
    fs::write(dir.join("b"), &before).unwrap();
    publish(dir);
    let (old, image) = (old.concat(), new.concat());
    let mut killed = 0;
    for _ in 0..30 {
        let mut child = command(dir).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(random.next() % 120));
        let _ = child.kill();
        killed += u32::from(!child.wait().unwrap().success());
        assert!(fs::read(dir.join("a")).unwrap() == old, "I1");
        let target = fs::read(dir.join("b")).unwrap();
        let untouched = target[..BLOCK] == before[..BLOCK];
        // The sector with a superblock's magic goes first and comes last.
        let bootable = target[1024..1536] != [0; 512];
        assert!(untouched || !bootable || target[..image.len()] == image, "I2, I3");
    }
    assert!(killed > 0, "none was killed in the middle");
    assert!(command(dir).status().unwrap().success());
    assert!(fs::read(dir.join("b")).unwrap()[..image.len()] == image);
}

#[test]
fn memory_does_not_grow_with_the_image() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let dir = dir.path();
    let size = 2_u64 << 30;
    let mut random = Random(7);
    let mut write = |name: &str, seeds: &dyn Fn(u64) -> u64| -> io::Result<()> {
        let mut file = File::create(dir.join(name))?;
        file.set_len(size)?;
        // A few blocks in every chunk: the whole map, every chunk and many groups are worked on.
        for at in (0..size).step_by(1 << 18) {
            file.seek(SeekFrom::Start(at))?;
            random = Random(seeds(at) | 1);
            file.write_all(&random.block())?;
        }
        Ok(())
    };
    write("a", &|at| at + 3).unwrap();
    write("new", &|at| if at % (1 << 20) == 0 { at + 77 } else { at + 3 }).unwrap();
    write("b", &|at| at * 31 + 11).unwrap();
    publish(dir);
    assert!(command(dir).status().unwrap().success());
    let report = fs::read_to_string(dir.join("report")).unwrap();
    let numbers: Vec<u64> = report.split(' ').map(|n| n.parse().unwrap()).collect();
    assert!(numbers[1] > 0 && numbers[2] > 0, "blocks were found and fetched: {report}");
    assert!(numbers[0] < 64 << 10, "a peak of {} KiB", numbers[0]);
    let (mut new, mut b) = (File::open(dir.join("new")).unwrap(), File::open(dir.join("b")).unwrap());
    let (mut one, mut other) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    for _ in 0..size >> 20 {
        new.read_exact(&mut one).unwrap();
        b.read_exact(&mut other).unwrap();
        assert!(one == other);
    }
}
