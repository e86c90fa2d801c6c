use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use super::*;
use crate::{app, auth::Role, config::Config, testing::Cloud};

async fn lived_in() -> Cloud {
    let cloud = Cloud::new().await;
    let anna = cloud.user("anna@example.org", Role::Owner).await;
    let body = serde_json::json!({"slug": "greenhouse", "device_type": "x", "arch": "amd64"});
    cloud.call("POST", "/api/v1/fleets", &anna, Some(body)).await;
    crate::blobs::store_bytes(&cloud.app, "greenhouse/web", b"layer").await.unwrap();
    let repository = cloud.app.config.git().join("00.git");
    fs::create_dir_all(repository.join("objects/aa")).unwrap();
    fs::create_dir_all(repository.join("refs/heads")).unwrap();
    fs::write(repository.join("refs/heads/main"), "aa").unwrap();
    fs::write(repository.join("refs/heads/main.lock"), "half").unwrap();
    fs::write(repository.join("objects/aa/bb"), "object").unwrap();
    cloud
}

#[tokio::test]
async fn what_was_backed_up_while_running_is_restored() {
    let cloud = lived_in().await;
    let dir = tempfile::tempdir().unwrap();
    let (file, data) = (dir.path().join("b.tar"), dir.path().join("restored"));
    let made = backup(&cloud.app.config.data, &file).await.unwrap();
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(backup(&cloud.app.config.data, &file).await.is_err(), "a back-up is not overwritten");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");

    assert_eq!(restore(&data, &file).await.unwrap(), made);
    let restored = app::open(Config::local(data.clone())).await.unwrap();
    let slug: String =
        sqlx::query_scalar("SELECT slug FROM fleets").fetch_one(restored.db.read()).await.unwrap();
    assert_eq!(slug, "greenhouse");
    assert_eq!(restored.keys.assign.public(), cloud.app.keys.assign.public());
    assert_eq!(fs::metadata(data.join("keys/assign.key")).unwrap().permissions().mode() & 0o777, 0o600);
    let digest = copal_protocol::ids::Digest::of(b"layer").hex();
    assert_eq!(fs::read(data.join(format!("blobs/sha256/{}/{digest}", &digest[..2]))).unwrap(), b"layer");
    assert_eq!(fs::read_to_string(data.join("git/00.git/objects/aa/bb")).unwrap(), "object");
    assert_eq!(fs::read_to_string(data.join("git/00.git/refs/heads/main")).unwrap(), "aa");
    assert!(!data.join("git/00.git/refs/heads/main.lock").exists());
    let sessions: i64 =
        sqlx::query_scalar("SELECT COUNT(*) FROM sessions").fetch_one(restored.db.read()).await.unwrap();
    assert_eq!(sessions, 0);
    assert!(restore(&data, &file).await.unwrap_err().to_string().contains("not empty"));
}

#[tokio::test]
async fn a_damaged_back_up_leaves_nothing() {
    let cloud = lived_in().await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("b.tar");
    backup(&cloud.app.config.data, &file).await.unwrap();
    let good = fs::read(&file).unwrap();
    let at = good.windows(5).position(|w| w == b"layer").unwrap();
    let mut flipped = good.clone();
    flipped[at] ^= 1;
    let short = good[..good.len() / 2].to_vec();
    let none = b"not a tar".repeat(100);
    for bytes in [flipped, short, none, Vec::new()] {
        fs::write(&file, bytes).unwrap();
        let data = dir.path().join("restored");
        let error = format!("{:#}", restore(&data, &file).await.unwrap_err());
        assert!(error.contains("not a whole back-up"), "{error}");
        assert!(!data.exists() && !dir.path().join("restored.restoring").exists());
    }
}

#[tokio::test]
async fn a_back_up_that_climbs_out_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("b.tar");
    let mut tar = tar::Builder::new(fs::File::create(&file).unwrap());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Regular);
    header.set_size(4);
    header.set_mode(0o644);
    header.as_mut_bytes()[..11].copy_from_slice(b"../evil.txt");
    header.set_cksum();
    tar.append(&header, &b"evil"[..]).unwrap();
    tar.finish().unwrap();
    assert!(restore(&dir.path().join("restored"), &file).await.is_err());
    assert!(!dir.path().join("evil.txt").exists());
}

#[tokio::test]
async fn a_folder_that_is_no_data_folder_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let error = backup(Path::new("/nowhere"), &dir.path().join("b.tar")).await.unwrap_err();
    assert!(error.to_string().contains("holds no database"), "{error}");
}
