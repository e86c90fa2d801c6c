//! A server lost and brought back from an older back-up, and what collecting garbage leaves alone.

use std::path::{Path, PathBuf};

use copal_e2e::{
    cloud, engine, eventually,
    proxy::Proxy,
    repo::{STAY, Services},
    world::World,
};
use serde_json::json;
use sha2::{Digest as _, Sha256};

const SHORT: &str = "labels: {io.copal.update.healthy-after: 2s}\nstop_grace_period: 1s";

async fn release(world: &World, name: &str) -> String {
    world.repo.write("app/run.sh", format!("#!/bin/busybox sh\necho {name}\n{STAY}\n"));
    world.push_and_settle(name).await
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_outlive_a_restore_and_follow_again_when_the_owner_raised_the_epoch() {
    let mut world = World::new(1).await;
    Services { services: &[("app", STAY, SHORT)] }.write_to(&world.repo);
    let first = release(&world, "first").await;
    let folder = tempfile::TempDir::new().unwrap();
    let file = folder.path().join("copal.tar");
    world.cloud.back_up(&file).await;

    // Life goes on: a root, two releases, and a device that the back-up knows nothing of.
    world.owner.ok(&["root", "renew", "porch", "--yes"]).await;
    release(&world, "second").await;
    let late = world.join(None).await;
    release(&world, "third").await;
    let containers = [world.service(0, "app").await, world.service(late, "app").await];
    let root = world.device(0).await.unwrap()["root_version"].clone();

    world.cloud.come_back_from(&file).await;
    assert_eq!(world.latest().await["id"], first.as_str(), "the server is what it was");

    // The device is let in, says why it does not follow, and goes on with what it runs; so it does after a restart.
    world.reason(0, "E_ASSIGN_ROLLBACK").await;
    world.devices[0].kill().await;
    world.devices[0].start();
    let seen = eventually("it says so again", 60, || async {
        let log = world.devices[0].log();
        let again = log.matches("E_ASSIGN_ROLLBACK").count() >= 2;
        let device = world.device(0).await.unwrap();
        if again && device["online"] == true { Ok(device) } else { Err(device.to_string()) }
    })
    .await;
    assert_eq!(seen["root_version"], root, "it keeps the newer root");
    for (index, container) in containers.iter().enumerate() {
        assert_eq!(world.service(index, "app").await["Id"], container["Id"], "what ran goes on");
    }

    // The owner says that it was meant; the roots the server lost come with it.
    let said = world.owner.run(&["root", "renew", "porch", "--new-epoch", "--yes"], "").await;
    assert!(said.status.success(), "{}", copal_e2e::text(&said));
    eventually("the device follows the restored server", 120, || async {
        let device = world.device(0).await.unwrap();
        let follows = device["on_target"] == true && device["committed_release"] == first.as_str();
        if follows { Ok(()) } else { Err(device.to_string()) }
    })
    .await;

    // The other one joins anew with a configuration of the restored server's.
    let config = world.devices[late].config_file();
    std::fs::remove_file(&config).unwrap();
    let name = world.devices[late].prefix.clone();
    world.owner.device_config("porch", &config, &name).await;
    world.devices[late].stop().await;
    world.devices[late].start();
    let fourth = release(&world, "fourth").await;
    assert_eq!(world.device(0).await.unwrap()["committed_release"], fourth.as_str());
    assert_eq!(world.device(late).await.unwrap()["committed_release"], fourth.as_str());
}

/// Two days pass for everything stored so far; the server must not run.
async fn age(data: &Path) {
    let mut db = {
        use sqlx::ConnectOptions as _;
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(data.join("copal.db"));
        options.connect().await.unwrap()
    };
    for table in ["blobs", "manifests", "repo_blobs"] {
        let sql = format!("UPDATE {table} SET created_at = created_at - 172800");
        sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&mut db).await.unwrap();
    }
    sqlx::Connection::close(db).await.unwrap();
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(172_800);
    for file in blob_files(data) {
        std::fs::File::options().write(true).open(file).unwrap().set_modified(old).unwrap();
    }
}

fn blob_files(data: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for folder in std::fs::read_dir(data.join("blobs/sha256")).unwrap() {
        found.extend(std::fs::read_dir(folder.unwrap().path()).unwrap().map(|f| f.unwrap().path()));
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn collecting_garbage_frees_what_no_release_names_and_nothing_else() {
    let mut world = World::new(0).await;
    Services { services: &[("app", STAY, SHORT)] }.write_to(&world.repo);
    world.repo.push_ok("first").await;
    let first = world.latest().await["id"].as_str().unwrap().to_owned();
    world.repo.write("app/run.sh", format!("#!/bin/busybox sh\necho second\n{STAY}\n"));
    world.repo.push_ok("second").await;

    // A blob that somebody uploaded and no image took.
    let loose = b"a layer of an upload that was given up".to_vec();
    let digest = hex::encode(Sha256::digest(&loose));
    let url = format!("{}/v2/porch/app/blobs/uploads/?digest=sha256:{digest}", world.cloud.url);
    let answer = copal_e2e::http()
        .post(url)
        .basic_auth("anna", Some(&world.cloud.token))
        .header("content-type", "application/octet-stream")
        .body(loose)
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status().as_u16(), 201, "{}", answer.text().await.unwrap());

    let data = world.cloud.dir.path().to_owned();
    let before = blob_files(&data);
    let gc = || async {
        let said = cloud::run(&["gc", "--data", data.to_str().unwrap()], "").await;
        serde_json::from_str::<serde_json::Value>(&said).unwrap()
    };
    assert_eq!(gc().await["blobs"], 0, "what is young may be of a push under way");
    world.cloud.kill().await;
    age(&data).await;
    world.cloud.restart().await;
    assert_eq!(gc().await["blobs"], 1);
    let after = blob_files(&data);
    let gone: Vec<_> = before.iter().filter(|file| !after.contains(file)).collect();
    assert_eq!(gone.len(), 1);
    assert!(gone[0].ends_with(&digest));

    // A device that has no image yet gets the older release wholly from the registry.
    world.cloud.call("POST", "/fleets/porch/deploy", json!({"release": first})).await;
    let engine = engine::OwnEngine::start();
    let proxy = Proxy::on(engine.listen(), &world.cloud.url);
    world.join_as(copal_e2e::device::Device::beside(&engine), Some(&proxy)).await;
    world.on_target(&first).await;
    world.service(0, "app").await;
    world.devices.clear();
}
