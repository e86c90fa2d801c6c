//! Blobs in pieces, cut and resumed.

use axum::{
    body::Body,
    http::{Request, StatusCode, header},
};
use copal_protocol::ids::{Digest, Sha256Hex};
use serde_json::{Value, json};

use crate::{
    app, blobs,
    config::Config,
    devices::testing::Fleet,
    serve,
    testing::{Answer, Cloud},
    uploads,
};

const PATH: &str = "/api/v1/fleets/porch/uploads";

async fn begin(fleet: &Fleet, bytes: &[u8]) -> Value {
    fleet.ok("POST", PATH, Some(json!({"sha256": Sha256Hex::of(bytes), "size": bytes.len()}))).await
}

fn piece(token: &str, path: &str, offset: usize, body: Body) -> Request<Body> {
    Request::patch(format!("{path}?offset={offset}"))
        .header(header::AUTHORIZATION, format!("Bearer {token}"))
        .body(body)
        .unwrap()
}

async fn send(fleet: &Fleet, id: &str, offset: usize, bytes: &[u8]) -> Answer {
    let path = format!("{PATH}/{id}");
    fleet.cloud.send(piece(&fleet.token, &path, offset, Body::from(bytes.to_vec()))).await
}

async fn stands(fleet: &Fleet, id: &str) -> (u64, bool) {
    let shown = fleet.ok("GET", &format!("{PATH}/{id}"), None).await;
    (shown["offset"].as_u64().unwrap(), shown["done"].as_bool().unwrap())
}

fn bytes(n: usize) -> Vec<u8> {
    (0..n).map(|i| u8::try_from(i % 251).unwrap()).collect()
}

fn digest(bytes: &[u8]) -> Digest {
    Digest::of(bytes)
}

async fn has(fleet: &Fleet, bytes: &[u8]) -> bool {
    let shelf = uploads::shelf(fleet.keys.fleet_id);
    blobs::size_in(&fleet.cloud.app, &shelf, &digest(bytes)).await.unwrap().is_some()
}

#[tokio::test]
async fn a_blob_comes_in_pieces_and_is_known_once_whole() {
    let fleet = Fleet::new().await;
    let blob = bytes(100_000);
    let begun = begin(&fleet, &blob).await;
    assert_eq!((&begun["offset"], &begun["done"]), (&json!(0), &json!(false)));
    let id = begun["id"].as_str().unwrap();
    let answer = send(&fleet, id, 0, &blob[..60_000]).await;
    assert_eq!((answer.status, &answer.json()["offset"]), (StatusCode::OK, &json!(60_000)));
    assert_eq!(begin(&fleet, &blob).await["offset"], 60_000, "begun again it goes on");
    assert!(!has(&fleet, &blob).await);

    let wrong = send(&fleet, id, 10, b"x").await;
    assert_eq!((wrong.status, wrong.code().as_str()), (StatusCode::CONFLICT, "upload_offset"));
    assert_eq!(wrong.headers["upload-offset"], "60000");
    let done = send(&fleet, id, 60_000, &blob[60_000..]).await.json();
    assert_eq!((&done["offset"], &done["done"]), (&json!(100_000), &json!(true)));
    assert!(has(&fleet, &blob).await);
    assert_eq!(send(&fleet, id, 60_000, &blob[60_000..]).await.json()["done"], true, "its answer was lost");
    assert_eq!(begin(&fleet, &blob).await["done"], true);
    assert_eq!(std::fs::read_dir(fleet.cloud.app.config.data.join("parts")).unwrap().count(), 0);
    let verbs: Vec<String> =
        sqlx::query_scalar("SELECT verb FROM audit WHERE verb LIKE 'upload%' ORDER BY id")
            .fetch_all(fleet.cloud.app.db.read())
            .await
            .unwrap();
    assert_eq!(verbs, ["upload.begin", "upload.finish"]);
}

#[tokio::test]
async fn a_piece_cut_off_counts_for_what_arrived() {
    let fleet = Fleet::new().await;
    let blob = bytes(5_000);
    let id = begin(&fleet, &blob).await["id"].as_str().unwrap().to_owned();
    let arrived = bytes::Bytes::copy_from_slice(&blob[..2_000]);
    let cut = futures_util::stream::iter([Ok(arrived), Err(std::io::Error::other("gone"))]);
    let path = format!("{PATH}/{id}");
    let answer = fleet.cloud.send(piece(&fleet.token, &path, 0, Body::from_stream(cut))).await;
    assert_eq!(answer.code(), "body_cut");
    assert_eq!(stands(&fleet, &id).await, (2_000, false));
    assert_eq!(send(&fleet, &id, 2_000, &blob[2_000..]).await.json()["done"], true);
}

#[tokio::test]
async fn a_server_that_was_killed_goes_on_where_the_file_ends() {
    let fleet = Fleet::new().await;
    let blob = bytes(9_000);
    let id = begin(&fleet, &blob).await["id"].as_str().unwrap().to_owned();
    send(&fleet, &id, 0, &blob[..4_000]).await;
    // Another process on the same folder: nothing of the first's memory is left, and it empties what does not last.
    let app = app::open(Config::local(fleet.cloud.app.config.data.clone())).await.unwrap();
    blobs::prepare(&app).unwrap();
    let router = serve::router(app.clone());
    let request = piece(&fleet.token, &format!("{PATH}/{id}"), 4_000, Body::from(blob[4_000..].to_vec()));
    let response = tower::ServiceExt::oneshot(router, request).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert!(has(&fleet, &blob).await);
}

#[tokio::test]
async fn what_hashes_otherwise_begins_anew() {
    let fleet = Fleet::new().await;
    let blob = bytes(3_000);
    let id = begin(&fleet, &blob).await["id"].as_str().unwrap().to_owned();
    let mut damaged = blob.clone();
    damaged[7] ^= 1;
    let answer = send(&fleet, &id, 0, &damaged).await;
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (StatusCode::UNPROCESSABLE_ENTITY, "digest_mismatch")
    );
    assert_eq!(stands(&fleet, &id).await, (0, false));
    assert!(!has(&fleet, &blob).await);
    assert_eq!(send(&fleet, &id, 0, &blob).await.json()["done"], true);
}

#[tokio::test]
async fn two_at_once_do_not_mix() {
    let fleet = Fleet::new().await;
    let blob = bytes(200_000);
    let id = begin(&fleet, &blob).await["id"].as_str().unwrap().to_owned();
    assert_eq!(begin(&fleet, &blob).await["id"], id.as_str(), "one upload of one blob");
    let (one, two) =
        tokio::join!(send(&fleet, &id, 0, &blob[..90_000]), send(&fleet, &id, 0, &blob[..90_000]));
    let codes: Vec<String> = [one, two].iter().filter(|a| !a.status.is_success()).map(Answer::code).collect();
    assert_eq!(codes.len(), 1, "one of them came first");
    assert!(["upload_busy", "upload_offset"].contains(&codes[0].as_str()), "{codes:?}");
    assert_eq!(send(&fleet, &id, 90_000, &blob[90_000..]).await.json()["done"], true);
}

#[tokio::test]
async fn a_blob_is_bounded_in_size_and_uploads_in_number() {
    let fleet = Fleet::new().await;
    let big = json!({"sha256": Sha256Hex::of(b"big"), "size": 100_000_000_000_u64});
    assert_eq!(fleet.call("POST", PATH, Some(big)).await.code(), "upload_too_large");
    let empty = json!({"sha256": Sha256Hex::of(b""), "size": 0});
    assert_eq!(fleet.call("POST", PATH, Some(empty)).await.code(), "upload_size");
    let id = begin(&fleet, b"short").await["id"].as_str().unwrap().to_owned();
    assert_eq!(send(&fleet, &id, 0, b"longer").await.code(), "upload_too_long");
    let other = json!({"sha256": Sha256Hex::of(b"short"), "size": 6});
    assert_eq!(fleet.call("POST", PATH, Some(other)).await.code(), "upload_size");
    let large = bytes(usize::try_from(uploads::MAX_PIECE).unwrap() + 1);
    let id = begin(&fleet, &large).await["id"].as_str().unwrap().to_owned();
    assert_eq!(send(&fleet, &id, 0, &large).await.code(), "piece_too_large");
    for n in 2..uploads::MAX_UPLOADS {
        begin(&fleet, &n.to_be_bytes()).await;
    }
    let more = json!({"sha256": Sha256Hex::of(b"more"), "size": 1});
    assert_eq!(fleet.call("POST", PATH, Some(more)).await.code(), "too_many_uploads");
}

#[tokio::test]
async fn another_fleets_upload_is_not_there() {
    let fleet = Fleet::new().await;
    let blob = bytes(1_000);
    let id = begin(&fleet, &blob).await["id"].as_str().unwrap().to_owned();
    let body = json!({"slug": "shed", "device_type": "generic", "arch": "amd64"});
    fleet.ok("POST", "/api/v1/fleets", Some(body)).await;
    let theirs = format!("/api/v1/fleets/shed/uploads/{id}");
    assert_eq!(fleet.call("GET", &theirs, None).await.status, StatusCode::NOT_FOUND);
    let answer = fleet.cloud.send(piece(&fleet.token, &theirs, 0, Body::from(blob.clone()))).await;
    assert_eq!(answer.code(), "not_found");
    // That the blob is here for one fleet is not told to another.
    assert_eq!(send(&fleet, &id, 0, &blob).await.json()["done"], true);
    let same = json!({"sha256": Sha256Hex::of(&blob), "size": blob.len()});
    let begun = fleet.ok("POST", "/api/v1/fleets/shed/uploads", Some(same)).await;
    assert_eq!((&begun["done"], &begun["offset"]), (&json!(false), &json!(0)));
    let reader = reader(&fleet.cloud).await;
    let answer =
        fleet.cloud.call("POST", PATH, &reader, Some(json!({"sha256": "0".repeat(64), "size": 1}))).await;
    assert_eq!(answer.status, StatusCode::FORBIDDEN);
}

async fn reader(cloud: &Cloud) -> String {
    cloud.user("vera@example.org", crate::auth::Role::Viewer).await
}

#[tokio::test]
async fn what_nobody_continues_goes_and_what_waits_for_its_release_stays() {
    let fleet = Fleet::new().await;
    let (half, whole) = (bytes(2_000), bytes(1_000));
    let id = begin(&fleet, &half).await["id"].as_str().unwrap().to_owned();
    send(&fleet, &id, 0, &half[..500]).await;
    let id = begin(&fleet, &whole).await["id"].as_str().unwrap().to_owned();
    send(&fleet, &id, 0, &whole).await;
    let app = &fleet.cloud.app;
    // Past the grace of a blob, within the life of an upload.
    let now = app::now();
    assert_eq!(uploads::expire(app, now + uploads::LIFETIME_S - 60).await.unwrap(), 0);
    blobs::collect_all(app).await;
    assert!(has(&fleet, &whole).await);
    assert_eq!(std::fs::read_dir(app.config.data.join("parts")).unwrap().count(), 1);
    assert_eq!(uploads::expire(app, now + uploads::LIFETIME_S + 60).await.unwrap(), 2);
    blobs::collect_all(app).await;
    assert!(!has(&fleet, &whole).await);
    assert_eq!(std::fs::read_dir(app.config.data.join("parts")).unwrap().count(), 0);
    assert!(blobs::read(app, &digest(&whole), None).await.is_err());
}

#[tokio::test]
async fn a_full_disk_is_said_as_one() {
    use std::io::{Error, ErrorKind};
    let problem = super::failed(Error::from(ErrorKind::StorageFull));
    assert_eq!((problem.status(), problem.code()), (StatusCode::INSUFFICIENT_STORAGE, "disk_full"));
    assert_eq!(super::failed(Error::from(ErrorKind::PermissionDenied)).code(), "internal");
    let fleet = Fleet::new().await;
    assert_eq!(super::room(&fleet.cloud.app, u64::MAX).unwrap_err().code(), "disk_full");
}
