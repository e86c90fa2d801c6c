//! What must not be installed is not: by the cloud where it can tell, else by the device, before a byte of a slot
//! changes that could boot.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]
#![allow(missing_docs, reason = "tests")]

use std::{
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use copal_os_tests::{
    built,
    check::Known,
    disk::{self, Disk},
    machine::Machine,
    world::{FLEET, World, runs_committed, text},
};

/// What the command says when it refuses, as the programs that read it see it.
async fn refused(world: &World, args: &[&str]) -> String {
    let args: Vec<&str> = args.iter().copied().chain(["--json"]).collect();
    let output = world.owner.run(&args, "").await;
    assert!(!output.status.success(), "copal {args:?} was taken: {}", copal_e2e::text(&output));
    copal_e2e::text(&output)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cloud_takes_no_bundle_that_a_device_would_refuse() {
    let world = World::new().await;
    // The cloud looks at what is said of an image, not into it.
    let image = world.path("small.img");
    std::fs::write(&image, vec![7; 256 << 10]).unwrap();

    let unsigned = world.unsigned("unsigned", "2.0.0", &image, world.board.device_type(), &[]).await;
    let said = refused(&world, &["os", "release", FLEET, text(&unsigned)]).await;
    assert!(said.contains("not signed"), "{said}");

    let good = world.unsigned("good", "2.0.0", &image, world.board.device_type(), &[]).await;
    world.owner.ok(&["os", "bundle", "sign", text(&good), "--yes"]).await;
    let said = refused(&world, &["os", "release", FLEET, text(&with_another_signature(&world, &good))]).await;
    assert!(said.contains("E_SIG_INVALID"), "wrong signature: {said}");

    // The owner's own release key may make apps, never systems.
    let wrong_role = world.unsigned("role", "2.0.0", &image, world.board.device_type(), &[]).await;
    let keys = world.owner.home.path().join("keys/owner");
    let key = std::fs::read_to_string(keys.join("release.key")).unwrap();
    let disguised = world.path("disguised.key");
    std::fs::write(&disguised, key.replace("role: release", "role: host")).unwrap();
    std::fs::set_permissions(&disguised, std::fs::Permissions::from_mode(0o600)).unwrap();
    let sign = ["os", "bundle", "sign", text(&wrong_role), "--yes", "--key"];
    let said = refused(&world, &[&sign[..], &[text(&keys.join("release.key"))]].concat()).await;
    assert!(said.contains("E_SIG_WRONG_ROLE"), "wrong role: {said}");
    // A file that calls the key something else changes nothing: the root says what a key may sign.
    world.owner.ok(&[&sign[..], &[text(&disguised)]].concat()).await;
    let said = refused(&world, &["os", "release", FLEET, text(&wrong_role)]).await;
    assert!(said.contains("E_SIG_"), "wrong role in disguise: {said}");

    let other_type = world.unsigned("other", "2.0.0", &image, "raspberrypi4-64", &[]).await;
    world.owner.ok(&["os", "bundle", "sign", text(&other_type), "--yes"]).await;
    let said = refused(&world, &["os", "release", FLEET, text(&other_type)]).await;
    assert!(said.contains("incompatible") || said.contains("E_INCOMPATIBLE"), "wrong device type: {said}");

    // Nothing of all that became a release.
    let list = world.owner.json(&["os", "list", FLEET]).await;
    assert_eq!(list.as_array().or_else(|| list["items"].as_array()).map(Vec::len), Some(0), "{list}");
}

/// The bundle with one hex digit or letter of a signature changed.
fn with_another_signature(world: &World, bundle: &Path) -> PathBuf {
    let mut bytes = std::fs::read(bundle).unwrap();
    let word = b"\"sig\":\"";
    let at = bytes.windows(word.len()).position(|w| w == word).unwrap() + word.len() + 4;
    bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
    let file = world.path("tampered.copal");
    std::fs::write(&file, bytes).unwrap();
    file
}

/// After whatever was refused: the factory's version runs, committed, and the disk says the same.
fn still_the_factory(device: &serde_json::Value, machine: &mut Machine) {
    assert!(runs_committed(device, "1.0.0"), "{device}");
    machine.cut();
    let known = Known::images(&[("1.0.0", &built("images/factory.ext4"))]);
    let next = known.check(&machine.disk.open()).unwrap();
    assert_eq!((next.image.as_str(), next.slot.as_str(), next.trial), ("1.0.0", "a", false));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corrupted_chunk_is_never_made_bootable() {
    let world = World::new().await;
    let mut machine = world.machine().await;
    world.release(&world.bundle("2.0.0", &[]).await).await;
    // Rot in the cloud's own storage: what it serves is not what was signed.
    damage_largest_blob(&world);
    world.deploy("2.0.0").await;
    let device = world.reason("os_corrupt").await;
    assert!(!disk::bootable(&machine.disk.open(), "b"));
    still_the_factory(&device, &mut machine);
}

fn damage_largest_blob(world: &World) {
    fn walk(dir: &Path, found: &mut Vec<(u64, PathBuf)>) {
        for entry in std::fs::read_dir(dir).unwrap().flatten() {
            let meta = entry.metadata().unwrap();
            if meta.is_dir() {
                walk(&entry.path(), found);
            } else {
                found.push((meta.len(), entry.path()));
            }
        }
    }
    let mut blobs = Vec::new();
    walk(&world.cloud.dir.path().join("blobs"), &mut blobs);
    let (size, file) = blobs.into_iter().max().unwrap();
    let disk = Disk::at(&file);
    for part in 1..64 {
        disk.damage(size * part / 64, &[0x5a; 64]);
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make test-os"]
async fn an_image_larger_than_the_slot_is_refused_before_anything_is_written() {
    let world = World::new().await;
    let mut machine = world.machine().await;
    let image = world.path("large.ext4");
    std::fs::copy(world.image("2.0.0", &[]).await, &image).unwrap();
    let slot = machine.disk.place("root-b").1;
    std::fs::File::options().write(true).open(&image).unwrap().set_len(slot + (1 << 20)).unwrap();
    let bundle = world.unsigned("large", "2.0.0", &image, world.board.device_type(), &[]).await;
    world.owner.ok(&["os", "bundle", "sign", text(&bundle), "--yes"]).await;
    world.release(&bundle).await;
    world.deploy("2.0.0").await;
    let device = world.reason("os_no_space").await;
    still_the_factory(&device, &mut machine);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make test-os"]
async fn a_release_for_newer_systems_only_is_refused() {
    let world = World::new().await;
    let mut machine = world.machine().await;
    let image = world.image("6.0.0", &[]).await;
    let bundle =
        world.unsigned("late", "6.0.0", &image, world.board.device_type(), &["--min-from", "5.0.0"]).await;
    world.owner.ok(&["os", "bundle", "sign", text(&bundle), "--yes"]).await;
    world.release(&bundle).await;
    world.deploy("6.0.0").await;
    let device = world.reason("E_INCOMPATIBLE").await;
    still_the_factory(&device, &mut machine);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make test-os"]
async fn a_full_data_partition_is_said_and_breaks_nothing() {
    let world = World::new().await;
    let mut machine = world.machine().await;
    world.committed("1.0.0").await;
    // As a service that writes without end would leave it.
    machine.shell("dd if=/dev/zero of=/data/fill bs=1M 2>/dev/null; dd if=/dev/zero of=/data/rest bs=512 2>/dev/null; sync");
    world.roll_out("2.0.0", &[]).await;
    // The order itself cannot be kept, so nothing of it begins.
    let device = world
        .until("the device says E_STATE_FULL", |d| {
            d["reason"]["code"] == "E_STATE_FULL" && d["online"] == true
        })
        .await;
    assert!(runs_committed(&device, "1.0.0"), "{device}");
    machine.shell("rm /data/fill /data/rest && sync");
    world.committed("2.0.0").await;
    assert!(machine.booted("b").contains("trial=1"));
}
