//! Bundles made, shown and signed by the program, as a person does it.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use common::{FLEET_ID, World};
use copal_protocol::{
    documents::{Release, Role},
    envelope::Envelope,
};
use serde_json::Value;

/// A world with a key that may sign operating systems, and two images.
fn world() -> World {
    let world = World::with_fleet();
    let keys: Value = serde_json::from_str(&world.ok(&["keys", "show", "--json"], "")).unwrap();
    if !keys.to_string().contains("\"host\"") {
        world.ok(&["keys", "add", "host"], "");
    }
    let image = |seed: u8| -> Vec<u8> {
        (0..100_u32)
            .flat_map(|i| vec![if i % 3 == 0 { 0 } else { (i as u8).wrapping_mul(seed) }; 4096])
            .collect()
    };
    std::fs::write(world.home.path().join("old.img"), image(3)).unwrap();
    std::fs::write(world.home.path().join("new.img"), image(5)).unwrap();
    world
}

const CREATE: &[&str] = &[
    "os",
    "bundle",
    "create",
    "--rootfs",
    "new.img",
    "--device-type",
    "qemu-arm64",
    "--arch",
    "arm64",
    "--version",
    "1.2.0",
    "-o",
    "os.copal",
];

#[test]
fn a_bundle_is_made_shown_and_signed() {
    let world = world();
    world.ok(
        &[CREATE, &["--base", "old.img", "--rollback-floor", "current", "--min-from", "1.0.0"]].concat(),
        "",
    );
    let shown: Value =
        serde_json::from_str(&world.ok(&["os", "bundle", "inspect", "os.copal", "--json"], "")).unwrap();
    let document = &shown["document"];
    assert_eq!(document["fleet_id"], FLEET_ID);
    assert_eq!(document["rollback_floor"], document["counter"]);
    assert_eq!(shown["signed_by"], serde_json::json!([]));
    assert_eq!(shown["payloads"][0]["size"], 409_600);
    world.ok(&["os", "bundle", "sign", "os.copal", "--yes"], "");
    let human = world.ok(&["os", "bundle", "inspect", "os.copal", "--full"], "");
    assert!(
        human.contains("qemu-arm64") && human.contains("rootfs") && !human.contains("nobody yet"),
        "{human}"
    );

    let bytes = std::fs::read(world.home.path().join("os.copal")).unwrap();
    let contents = copal_bundle::file::read(&mut std::io::Cursor::new(&bytes)).unwrap();
    let envelope = Envelope::parse::<Release>(&contents.release).unwrap();
    let keys: Value = serde_json::from_str(&world.ok(&["keys", "show", "--json"], "")).unwrap();
    let host = keys
        .as_array()
        .or(keys["items"].as_array())
        .unwrap()
        .iter()
        .find(|k| k["role"] == Role::Host.as_str());
    let public = host.unwrap()["public_key"].as_str().unwrap().parse().unwrap();
    assert!(envelope.is_signed_by(&public));
    assert_eq!(
        envelope.payload_sha256().to_string(),
        shown["release"],
        "signing changes nothing that was shown"
    );
    // The next one is packed for devices that run this one.
    world.ok(&[CREATE, &["--base", "os.copal", "--force"]].concat(), "");
}

#[test]
fn an_agent_bundle_carries_the_binary_as_it_is() {
    let world = world();
    let path = world.home.path().join("copal-agent");
    std::fs::write(&path, b"\x7fELF and more").unwrap();
    world.ok(
        &[
            "agent",
            "bundle",
            "--binary",
            "copal-agent",
            "--arch",
            "arm64",
            "--version",
            "0.2.0",
            "-o",
            "a.copal",
        ],
        "",
    );
    world.ok(&["os", "bundle", "sign", "a.copal", "--yes"], "");
    let shown: Value =
        serde_json::from_str(&world.ok(&["os", "bundle", "inspect", "a.copal", "--json"], "")).unwrap();
    assert_eq!(shown["payloads"][0]["payload"], "agent");
    assert_eq!(shown["document"]["payloads"]["agent"].get("index"), None);
}

#[test]
fn what_was_changed_is_neither_shown_nor_signed() {
    let world = world();
    world.ok(CREATE, "");
    let path = world.home.path().join("os.copal");
    let good = std::fs::read(&path).unwrap();
    let contents = copal_bundle::file::read(&mut std::io::Cursor::new(&good)).unwrap();
    let rootfs = &contents.payloads[0];
    for at in [rootfs.index.unwrap().offset + 130, rootfs.data.offset + 5] {
        let mut bad = good.clone();
        bad[usize::try_from(at).unwrap()] ^= 1;
        std::fs::write(&path, bad).unwrap();
        let (code, error) = world.fails(&["os", "bundle", "sign", "os.copal", "--yes"]);
        assert_eq!(code, 6, "{error}");
        assert!(error.contains("bundle_damaged"), "{error}");
    }
    std::fs::write(&path, &good).unwrap();
    let release = world.home.path().join("keys/owner/release.key");
    let (code, error) =
        world.fails(&["os", "bundle", "sign", "os.copal", "--yes", "--key", release.to_str().unwrap()]);
    assert_eq!(code, 6, "{error}");
    assert!(error.contains("E_SIG_WRONG_ROLE"), "{error}");
    assert_eq!(world.fails(CREATE).0, 1, "nothing is overwritten unasked");
    assert_eq!(world.fails(&[CREATE, &["--force", "--rollback-floor", "99999999999"]].concat()).0, 2);
}
