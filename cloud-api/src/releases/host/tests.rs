//! Operating systems and agents: taken, deployed, fetched by devices, reported.

mod withdraw;

use axum::{
    body::Body,
    http::{Request, StatusCode, header},
};
use copal_protocol::{
    documents::{
        AgentReport, DocumentRef, HostPayload, HostReport, Progress, Reason, Release, Role, SlotReport,
        SlotState,
    },
    ids::Sha256Hex,
    keys::SigningKey,
    testing::sign,
    verify::AssignmentMark,
};
use serde_json::{Value, json};

use crate::{
    app, blobs,
    devices::testing::{Device, Fleet},
    releases::index,
    testing::Answer,
    uploads,
};

const PATH: &str = "/api/v1/fleets/porch/host-releases";
const IMAGE: &[u8] = &[7; 4096];
const DATA: &[u8] = b"0123456789 its data, compressed";

/// An operating system whose index names [`DATA`]. Newer than any before it by `step`.
fn os(fleet: &Fleet, step: u64) -> Release {
    let index = index::example(IMAGE, DATA);
    let mut release = fleet.keys.host_release(app::now() + step, IMAGE);
    let rootfs = release.payloads.values_mut().next().unwrap();
    rootfs.index = Some(DocumentRef { sha256: Sha256Hex::of(&index), size: Some(index.len() as u64) });
    release.version = semver::Version::new(1, step, 0);
    release
}

fn agent(fleet: &Fleet, step: u64, binary: &[u8]) -> Release {
    let mut release = os(fleet, step);
    let payload = HostPayload {
        size: binary.len() as u64,
        sha256: Sha256Hex::of(binary),
        index: None,
        verity_root: None,
    };
    release.payloads = [("agent".parse().unwrap(), payload)].into();
    release.compat.device_types.clear();
    release.compat.arch = ["amd64".to_owned()].into();
    release
}

async fn upload(fleet: &Fleet, bytes: &[u8]) {
    upload_to(fleet, "porch", bytes).await;
}

async fn upload_to(fleet: &Fleet, slug: &str, bytes: &[u8]) {
    let path = format!("/api/v1/fleets/{slug}/uploads");
    let begun =
        fleet.ok("POST", &path, Some(json!({"sha256": Sha256Hex::of(bytes), "size": bytes.len()}))).await;
    if begun["done"] == true {
        return;
    }
    let request = Request::patch(format!("{path}/{}?offset=0", begun["id"].as_str().unwrap()))
        .header(header::AUTHORIZATION, format!("Bearer {}", fleet.token))
        .body(Body::from(bytes.to_vec()))
        .unwrap();
    assert_eq!(fleet.cloud.send(request).await.status, StatusCode::OK);
}

async fn post(fleet: &Fleet, release: &Release, keys: &[&SigningKey]) -> Answer {
    let envelope = serde_json::from_slice(&sign(release, keys).to_bytes()).unwrap();
    fleet.call("POST", PATH, Some(envelope)).await
}

async fn taken(fleet: &Fleet, release: &Release) -> String {
    let answer = post(fleet, release, &[&fleet.keys.host]).await;
    assert_eq!(answer.status, StatusCode::CREATED, "{}", String::from_utf8_lossy(&answer.bytes));
    answer.json()["id"].as_str().unwrap().to_owned()
}

/// A fleet that has the blobs of [`os`].
async fn stocked() -> Fleet {
    let fleet = Fleet::new().await;
    upload(&fleet, &index::example(IMAGE, DATA)).await;
    upload(&fleet, DATA).await;
    fleet
}

async fn deploy(fleet: &Fleet, id: &str, body: Value) -> Answer {
    fleet.call("POST", &format!("{PATH}/{id}/deploy"), Some(body)).await
}

async fn deployed(fleet: &Fleet, id: &str, body: Value) -> Value {
    let answer = deploy(fleet, id, body).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", String::from_utf8_lossy(&answer.bytes));
    answer.json()
}

async fn blob(fleet: &Fleet, device: &Device, bytes: &[u8], range: Option<&str>) -> Answer {
    let mut request = Request::get(format!("/device/v1/blobs/{}", Sha256Hex::of(bytes)))
        .header(header::AUTHORIZATION, format!("Bearer {}", device.session));
    if let Some(range) = range {
        request = request.header(header::RANGE, range);
    }
    fleet.cloud.send(request.body(Body::empty()).unwrap()).await
}

#[tokio::test]
async fn a_host_release_is_taken_listed_and_shown_once_its_blobs_are_here() {
    let fleet = Fleet::new().await;
    let release = os(&fleet, 0);
    assert_eq!(post(&fleet, &release, &[&fleet.keys.host]).await.code(), "blob_missing");
    upload(&fleet, &index::example(IMAGE, DATA)).await;
    assert_eq!(post(&fleet, &release, &[&fleet.keys.host]).await.code(), "blob_missing", "its data");
    upload(&fleet, DATA).await;
    let id = taken(&fleet, &release).await;
    assert_eq!(taken(&fleet, &release).await, id, "taken again it is the same");
    let shown = fleet.ok("GET", &format!("{PATH}/{id}"), None).await;
    assert_eq!((&shown["line"], &shown["version"]), (&json!("os"), &json!("1.0.0")));
    assert_eq!(shown["signed_by"][0]["role"], "host");
    assert_eq!(shown["payloads"]["rootfs"]["size"], IMAGE.len());
    assert_eq!(fleet.ok("GET", PATH, None).await["items"], json!([shown]));
    let envelope = fleet.call("GET", &format!("{PATH}/{id}/envelope"), None).await;
    assert_eq!(envelope.bytes, sign(&release, &[&fleet.keys.host]).to_bytes());
    // Not among the app's, whose routes would not know what to do with it.
    assert_eq!(fleet.ok("GET", "/api/v1/fleets/porch/releases", None).await["items"], json!([]));
    assert_eq!(
        fleet.call("GET", &format!("/api/v1/releases/{id}"), None).await.status,
        StatusCode::NOT_FOUND
    );
    let app_release = fleet.release(false).await;
    assert_eq!(fleet.call("GET", &format!("{PATH}/{app_release}"), None).await.code(), "not_found");
    let verbs: Vec<String> = sqlx::query_scalar("SELECT verb FROM audit WHERE verb LIKE 'host_release%'")
        .fetch_all(fleet.cloud.app.db.read())
        .await
        .unwrap();
    assert_eq!(verbs, ["host_release.create"]);
}

#[tokio::test]
async fn the_list_is_paged_over_both_lines() {
    let fleet = stocked().await;
    upload(&fleet, b"agent").await;
    let mut made = Vec::new();
    for step in 0..3 {
        made.push(taken(&fleet, &os(&fleet, step)).await);
        made.push(taken(&fleet, &agent(&fleet, step, b"agent")).await);
    }
    let (mut seen, mut after) = (Vec::new(), String::new());
    loop {
        let page = fleet.ok("GET", &format!("{PATH}?limit=2{after}"), None).await;
        seen.extend(page["items"].as_array().unwrap().iter().map(|r| r["id"].as_str().unwrap().to_owned()));
        let Some(next) = page["next"].as_str() else { break };
        after = format!("&after={next}");
    }
    seen.sort();
    made.sort();
    assert_eq!(seen, made);
}

#[tokio::test]
async fn what_devices_would_refuse_is_refused() {
    let mut fleet = stocked().await;
    let release = os(&fleet, 10);
    let code = |answer: Answer| (answer.status.as_u16(), answer.code());
    assert_eq!(code(post(&fleet, &release, &[]).await), (422, "E_SIG_MISSING".to_owned()));
    for (key, expected) in [
        (&fleet.keys.release, "E_SIG_WRONG_ROLE"),
        (&fleet.cloud.app.keys.builder, "E_SIG_WRONG_ROLE"),
        (&copal_protocol::testing::fixed_key(77), "E_SIG_UNKNOWN_KEY"),
    ] {
        assert_eq!(code(post(&fleet, &release, &[key]).await), (422, expected.to_owned()));
    }
    let owner = copal_protocol::testing::OwnerKeys::fixed();
    let host = &owner.host;
    let mut other = release.clone();
    other.compat.device_types = ["raspberrypi5".to_owned()].into();
    assert_eq!(post(&fleet, &other, &[host]).await.code(), "incompatible");
    let mut other = release.clone();
    other.compat.arch = ["arm64".to_owned()].into();
    assert_eq!(post(&fleet, &other, &[host]).await.code(), "incompatible");
    let mut other = release.clone();
    other.fleet_id = copal_protocol::ids::FleetId::from_bytes([9; 16]);
    assert_eq!(post(&fleet, &other, &[host]).await.code(), "E_FLEET");
    let mut other = release.clone();
    other.payloads.values_mut().next().unwrap().sha256 = Sha256Hex::of(b"another image");
    assert_eq!(post(&fleet, &other, &[host]).await.code(), "index_mismatch");
    let garbage = b"no index at all".to_vec();
    upload(&fleet, &garbage).await;
    let mut other = release.clone();
    other.payloads.values_mut().next().unwrap().index =
        Some(DocumentRef { sha256: Sha256Hex::of(&garbage), size: Some(garbage.len() as u64) });
    assert_eq!(post(&fleet, &other, &[host]).await.code(), "index_invalid");
    assert_eq!(post(&fleet, &fleet.keys.release(1), &[host]).await.code(), "not_host");
    let garbage = fleet.call("POST", PATH, Some(json!({"a": 1}))).await;
    assert_eq!(garbage.code(), "E_ENVELOPE");

    let id = taken(&fleet, &release).await;
    assert_eq!(post(&fleet, &os(&fleet, 0), &[host]).await.code(), "counter_old");
    // The line of the app counts by itself.
    fleet.release(false).await;
    let revoked: Sha256Hex = id.parse().unwrap();
    fleet.new_root(|root| root.revoked_releases.extend([revoked])).await;
    assert_eq!(deploy(&fleet, &id, json!({"all": true})).await.code(), "release_revoked");
    // A Root that lists no such key: the codes say what to do.
    let mut bare = stocked().await;
    bare.new_root(|root| {
        let keys = root.roles.remove(&Role::Host).unwrap();
        root.keys.retain(|id, _| !keys.keyids.contains(id));
    })
    .await;
    let refused = post(&bare, &os(&bare, 0), &[&bare.keys.host]).await;
    assert_eq!(refused.code(), "E_SIG_UNKNOWN_KEY");
    assert!(refused.json()["detail"].as_str().unwrap().contains("copal root add-key host"));
}

#[tokio::test]
async fn another_fleets_release_and_blobs_are_not_there() {
    let fleet = stocked().await;
    let id = taken(&fleet, &os(&fleet, 0)).await;
    let body = json!({"slug": "shed", "device_type": "generic", "arch": "amd64"});
    fleet.ok("POST", "/api/v1/fleets", Some(body)).await;
    for (method, rest, body) in [
        ("GET", "", None),
        ("GET", "/envelope", None),
        ("POST", "/deploy", Some(json!({"all": true}))),
        ("POST", "/retry", Some(json!({"all": true}))),
    ] {
        let path = format!("/api/v1/fleets/shed/host-releases/{id}{rest}");
        let answer = fleet.call(method, &path, body).await;
        assert_eq!((answer.status, answer.code().as_str()), (StatusCode::NOT_FOUND, "not_found"), "{path}");
    }
    // What porch uploaded does not make a release of shed whole.
    let shed = crate::store::fleets::by_slug(&fleet.cloud.app, "shed").await.unwrap();
    let mut theirs = fleet.keys.root();
    theirs.fleet_id = shed.fleet_id;
    theirs.issued_at = app::now();
    theirs.expires = app::now() + 1_000;
    copal_protocol::testing::set_role(&mut theirs, Role::Builder, &[&fleet.cloud.app.keys.builder], 1);
    copal_protocol::testing::set_role(&mut theirs, Role::Assign, &[&fleet.cloud.app.keys.assign], 1);
    let root = serde_json::from_slice(&sign(&theirs, &[&fleet.keys.root]).to_bytes()).unwrap();
    fleet.ok("PUT", "/api/v1/fleets/shed/root", Some(root)).await;
    let mut release = os(&fleet, 0);
    release.fleet_id = shed.fleet_id;
    let envelope = serde_json::from_slice(&sign(&release, &[&fleet.keys.host]).to_bytes()).unwrap();
    let answer = fleet.call("POST", "/api/v1/fleets/shed/host-releases", Some(envelope)).await;
    assert_eq!(answer.code(), "blob_missing");
}

#[tokio::test]
async fn it_goes_to_named_devices_first_then_to_all() {
    let fleet = stocked().await;
    let (canary, tagged, rest) = (fleet.device(1).await, fleet.device(2).await, fleet.device(3).await);
    fleet.ok("PATCH", &format!("/api/v1/devices/{}", tagged.id), Some(json!({"tags": {"ring": "1"}}))).await;
    let id = taken(&fleet, &os(&fleet, 0)).await;
    let given = async |device: &Device| fleet.shown(device).await["os"]["target"]["release"].clone();
    assert_eq!(given(&canary).await, Value::Null, "a fleet follows no operating system by itself");
    assert_eq!(deploy(&fleet, &id, json!({})).await.code(), "target_missing");
    let dry = deployed(&fleet, &id, json!({"devices": [canary.id], "dry_run": true})).await;
    assert_eq!((&dry["devices"], given(&canary).await), (&json!(1), Value::Null));
    let done = deployed(&fleet, &id, json!({"devices": [canary.id]})).await;
    assert_eq!(done["seqs"][canary.id.to_string()], 1, "without any release of the app");
    let assignment = canary.assignment(&fleet, &AssignmentMark::default()).await;
    assert!(assignment.apps.is_empty());
    assert_eq!(assignment.host.unwrap().sha256.to_string(), id);
    deployed(&fleet, &id, json!({"tag": {"ring": "1"}})).await;
    assert_eq!((given(&tagged).await, given(&rest).await), (json!(id), Value::Null));
    assert_eq!(fleet.shown(&canary).await["os"]["pinned"], id.as_str());

    deployed(&fleet, &id, json!({"all": true})).await;
    assert_eq!(given(&rest).await, id.as_str());
    assert_eq!(fleet.shown(&canary).await["os"]["pinned"], Value::Null, "the first step's pins are lifted");
    let assignment = canary.assignment(&fleet, &AssignmentMark::default()).await;
    assert_eq!(assignment.seq, 1, "the same content is not signed again");
    let app_release = fleet.release(false).await;
    let assignment = canary.assignment(&fleet, &AssignmentMark::default()).await;
    assert_eq!((assignment.seq, assignment.apps[0].sha256.to_string()), (2, app_release));
    assert_eq!(assignment.host.unwrap().sha256.to_string(), id);
    assert_eq!(fleet.ok("GET", "/api/v1/fleets/porch", None).await["target_os"], id.as_str());
    assert_eq!(fleet.ok("GET", &format!("{PATH}/{id}"), None).await["devices_given"], 3);
}

#[tokio::test]
async fn a_device_it_does_not_fit_is_left_alone_and_says_why() {
    let fleet = stocked().await;
    let (device, other) = (fleet.device(1).await, fleet.device(2).await);
    let mut tx = fleet.cloud.app.db.write().await.unwrap();
    sqlx::query("UPDATE devices SET device_type = 'raspberrypi5' WHERE device_id = $1")
        .bind(other.id.to_string())
        .execute(&mut *tx)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    let id = taken(&fleet, &os(&fleet, 0)).await;
    assert_eq!(deploy(&fleet, &id, json!({"devices": [other.id]})).await.code(), "incompatible");
    deployed(&fleet, &id, json!({"all": true})).await;
    let shown = fleet.shown(&other).await;
    assert_eq!(
        (&shown["os"]["target"], &shown["os"]["reason"]["code"]),
        (&Value::Null, &json!("incompatible"))
    );
    assert_eq!(shown["reason"]["code"], "incompatible");
    assert_eq!(fleet.shown(&device).await["os"]["target"]["version"], "1.0.0");
}

#[tokio::test]
async fn an_agent_and_an_operating_system_are_targets_of_their_own() {
    let fleet = stocked().await;
    upload(&fleet, b"agent").await;
    let device = fleet.device(1).await;
    let (system, binary) =
        (taken(&fleet, &os(&fleet, 0)).await, taken(&fleet, &agent(&fleet, 0, b"agent")).await);
    deployed(&fleet, &binary, json!({"all": true})).await;
    let assignment = device.assignment(&fleet, &AssignmentMark::default()).await;
    assert_eq!((assignment.host, assignment.agent.unwrap().sha256.to_string()), (None, binary.clone()));
    assert_eq!(blob(&fleet, &device, b"agent", None).await.bytes, b"agent");
    deployed(&fleet, &system, json!({"all": true})).await;
    let assignment = device.assignment(&fleet, &AssignmentMark::default()).await;
    assert_eq!(assignment.host.unwrap().sha256.to_string(), system);
    assert_eq!(assignment.agent.unwrap().sha256.to_string(), binary);
}

#[tokio::test]
async fn a_retry_concerns_those_that_were_given_the_release() {
    let fleet = stocked().await;
    let (one, two) = (fleet.device(1).await, fleet.device(2).await);
    let id = taken(&fleet, &os(&fleet, 0)).await;
    deployed(&fleet, &id, json!({"devices": [one.id]})).await;
    let retried = fleet.ok("POST", &format!("{PATH}/{id}/retry"), Some(json!({"all": true}))).await;
    assert_eq!((&retried["count"], &retried["devices"]), (&json!(1), &json!([one.id])));
    let assignment = one.assignment(&fleet, &AssignmentMark::default()).await;
    assert_eq!((assignment.seq, assignment.host.unwrap().retry), (2, 1));
    assert_eq!(fleet.shown(&two).await["target"], Value::Null);
    fleet.ok("PATCH", &format!("/api/v1/devices/{}", one.id), Some(json!({"unpin_host": true}))).await;
    assert_eq!(fleet.shown(&one).await["os"]["pinned"], Value::Null);
}

#[tokio::test]
async fn a_window_reaches_every_device_and_only_a_sound_one() {
    let fleet = stocked().await;
    let device = fleet.device(1).await;
    fleet.release(false).await;
    let path = "/api/v1/fleets/porch/reboot-window";
    fleet.ok("PUT", path, Some(json!({"reboot_window": "22:30-04:00"}))).await;
    let assignment = device.assignment(&fleet, &AssignmentMark::default()).await;
    assert_eq!(assignment.config.reboot_window.map(|w| w.to_string()).as_deref(), Some("22:30-04:00"));
    assert_eq!(fleet.ok("GET", "/api/v1/fleets/porch", None).await["reboot_window"], "22:30-04:00");
    for bad in ["25:00-04:00", "22:30", "04:00-04:00", ""] {
        let answer = fleet.call("PUT", path, Some(json!({"reboot_window": bad}))).await;
        assert_eq!(answer.code(), "window_invalid", "{bad}");
    }
    fleet.ok("PUT", path, Some(json!({"reboot_window": null}))).await;
    let assignment = device.assignment(&fleet, &AssignmentMark::default()).await;
    assert_eq!((assignment.config.reboot_window, assignment.seq), (None, 3));
}

#[tokio::test]
async fn how_often_devices_check_themselves_reaches_each_and_has_bounds() {
    let fleet = stocked().await;
    let device = fleet.device(1).await;
    fleet.release(false).await;
    let path = "/api/v1/fleets/porch/check-every";
    for good in [600, 604_800] {
        fleet.ok("PUT", path, Some(json!({"check_every_s": good}))).await;
        let assignment = device.assignment(&fleet, &AssignmentMark::default()).await;
        assert_eq!(assignment.config.check_every_s, Some(good));
        assert_eq!(fleet.ok("GET", "/api/v1/fleets/porch", None).await["check_every_s"], good);
    }
    for bad in [0, 599, 604_801] {
        let answer = fleet.call("PUT", path, Some(json!({"check_every_s": bad}))).await;
        assert_eq!(answer.code(), "check_every_invalid", "{bad}");
    }
    fleet.ok("PUT", path, Some(json!({"check_every_s": null}))).await;
    let assignment = device.assignment(&fleet, &AssignmentMark::default()).await;
    assert_eq!((assignment.config.check_every_s, assignment.seq), (None, 4));
}

#[tokio::test]
async fn a_device_gets_the_blobs_of_what_it_was_assigned_and_no_others() {
    let fleet = stocked().await;
    let (device, other) = (fleet.device(1).await, fleet.device(2).await);
    let release = os(&fleet, 0);
    let id = taken(&fleet, &release).await;
    let path = format!("/device/v1/releases/{id}");
    assert_eq!(
        device.get(&fleet, &path, None).await.code(),
        "release_unknown",
        "final, but not assigned to it"
    );
    assert_eq!(blob(&fleet, &device, DATA, None).await.code(), "blob_unknown");
    deployed(&fleet, &id, json!({"devices": [device.id]})).await;
    let envelope = device.get(&fleet, &path, None).await;
    assert_eq!(envelope.bytes, sign(&release, &[&fleet.keys.host]).to_bytes());
    let index = index::example(IMAGE, DATA);
    assert_eq!(blob(&fleet, &device, &index, None).await.bytes, index);
    let whole = blob(&fleet, &device, DATA, None).await;
    assert_eq!((whole.status, whole.bytes.as_slice()), (StatusCode::OK, DATA));
    assert_eq!(whole.headers[header::ACCEPT_RANGES], "bytes");
    assert_eq!(blob(&fleet, &other, DATA, None).await.status, StatusCode::NOT_FOUND);
    assert_eq!(other.get(&fleet, &path, None).await.status, StatusCode::NOT_FOUND);
    // Stored, known to the fleet, and named by nothing assigned: not a device's business.
    upload(&fleet, b"loose").await;
    assert_eq!(blob(&fleet, &device, b"loose", None).await.code(), "blob_unknown");
    let layer = device.get(&fleet, "/device/v1/blobs/nonsense", None).await;
    assert_eq!(layer.code(), "blob_unknown");
    let anonymous =
        fleet.cloud.call("GET", &format!("/device/v1/blobs/{}", Sha256Hex::of(DATA)), "", None).await;
    assert_eq!(anonymous.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn one_range_at_a_time() {
    let fleet = stocked().await;
    let device = fleet.device(1).await;
    let id = taken(&fleet, &os(&fleet, 0)).await;
    deployed(&fleet, &id, json!({"all": true})).await;
    let size = DATA.len();
    for (range, from, to) in [
        ("bytes=0-3".to_owned(), 0, 4),
        ("bytes=5-".to_owned(), 5, size),
        ("bytes=-4".to_owned(), size - 4, size),
        ("bytes=-9999".to_owned(), 0, size),
        (format!("bytes={}-9999", size - 1), size - 1, size),
    ] {
        let part = blob(&fleet, &device, DATA, Some(&range)).await;
        assert_eq!(
            (part.status, part.bytes.as_slice()),
            (StatusCode::PARTIAL_CONTENT, &DATA[from..to]),
            "{range}"
        );
        assert_eq!(part.headers[header::CONTENT_RANGE], format!("bytes {from}-{}/{size}", to - 1).as_str());
    }
    for refused in [format!("bytes={size}-"), "bytes=-0".to_owned(), "bytes=0-1,4-5".to_owned()] {
        let answer = blob(&fleet, &device, DATA, Some(&refused)).await;
        assert_eq!(answer.status, StatusCode::RANGE_NOT_SATISFIABLE, "{refused}");
        assert_eq!(answer.code(), "range_invalid");
        assert_eq!(answer.headers[header::CONTENT_RANGE], format!("bytes */{size}").as_str());
    }
}

fn slot(state: SlotState, booted: bool, release: Option<Sha256Hex>) -> SlotReport {
    SlotReport { state, booted, release, version: "1.0.0".to_owned() }
}

#[tokio::test]
async fn slots_reason_and_progress_are_kept_and_shown() {
    let fleet = stocked().await;
    let mut device = fleet.device(1).await;
    let id = taken(&fleet, &os(&fleet, 0)).await;
    deployed(&fleet, &id, json!({"all": true})).await;
    assert_eq!(fleet.shown(&device).await["reason"]["code"], "updating");
    let release: Sha256Hex = id.parse().unwrap();
    let on_trial = HostReport {
        backend: "uboot\nevil".to_owned(),
        slots: [
            ("a".to_owned(), slot(SlotState::Committed, false, None)),
            ("b".to_owned(), slot(SlotState::Trial, true, Some(release))),
        ]
        .into(),
        release: Some(release),
        version: "1.0.0".to_owned(),
        reason: Some(Reason {
            code: "os_trial".to_owned(),
            message: "proves itself".to_owned(),
            release: Some(release),
            service: None,
            exit_code: None,
            log_tail: Vec::new(),
        }),
        progress: Some(Progress { stage: "os_trial".to_owned(), done: 3, total: 4, trial_ends: None }),
        failed: None,
    };
    let trial = on_trial.clone();
    assert_eq!(device.report(&fleet, |r| r.host = Some(trial)).await.status, StatusCode::NO_CONTENT);
    let shown = fleet.shown(&device).await;
    assert_eq!(
        shown["os"]["slots"]["b"],
        json!({"state": "trial", "booted": true, "release": id, "version": "1.0.0"})
    );
    assert_eq!(shown["os"]["backend"], "uboot\u{fffd}evil");
    assert_eq!((&shown["reason"]["code"], &shown["os"]["progress"]["done"]), (&json!("os_trial"), &json!(3)));
    assert_eq!(fleet.ok("GET", &format!("{PATH}/{id}"), None).await["devices_on"], 0);

    let page = fleet.call("GET", &format!("/devices/{}", device.id), None).await;
    let page = String::from_utf8(page.bytes).unwrap();
    assert!(
        page.contains("<h2 id=\"os-title\">Operating system</h2>") && page.contains("on trial"),
        "{page}"
    );
    assert!(!page.contains("What to do"), "what is under way asks for nothing");

    let mut undone = on_trial.clone();
    undone.release = None;
    undone.progress = None;
    undone.failed = Some(release);
    undone.slots.insert("a".to_owned(), slot(SlotState::Committed, true, None));
    undone.slots.insert("b".to_owned(), slot(SlotState::Bad, false, Some(release)));
    undone.reason.as_mut().unwrap().code = "os_unhealthy".to_owned();
    undone.reason.as_mut().unwrap().message = "web <b>never</b> came up".to_owned();
    device.report(&fleet, |r| r.host = Some(undone)).await;
    let shown = fleet.shown(&device).await;
    assert_eq!((&shown["reason"]["code"], &shown["os"]["failed"]), (&json!("os_unhealthy"), &json!(id)));
    assert!(shown["reason"]["next"].as_str().unwrap().contains("copal os retry"));
    let page = fleet.call("GET", &format!("/devices/{}", device.id), None).await;
    let page = String::from_utf8(page.bytes).unwrap();
    assert!(page.contains("What to do") && page.contains("failed"), "{page}");
    assert!(!page.contains("<b>never</b>"), "what a device says is text");

    let mut committed = on_trial;
    committed.reason = None;
    committed.progress = None;
    committed.slots.insert("b".to_owned(), slot(SlotState::Committed, true, Some(release)));
    committed.slots.insert("a".to_owned(), slot(SlotState::Ready, false, None));
    device.report(&fleet, |r| r.host = Some(committed.clone())).await;
    let shown = fleet.shown(&device).await;
    assert_eq!((&shown["on_target"], &shown["os"]["version"]), (&json!(true), &json!("1.0.0")));
    assert_eq!(fleet.ok("GET", &format!("{PATH}/{id}"), None).await["devices_on"], 1);
    let events = fleet.ok("GET", &format!("/api/v1/devices/{}/events", device.id), None).await;
    let codes: Vec<_> =
        events["items"].as_array().unwrap().iter().map(|e| e["code"].as_str().unwrap()).collect();
    assert!(codes.contains(&"os_committed") && codes.contains(&"os_trial"), "{codes:?}");

    // Its floor binds from now on, as an app's does.
    let mut next = os(&fleet, 20);
    next.rollback_floor = next.counter;
    let next = taken(&fleet, &next).await;
    deployed(&fleet, &next, json!({"all": true})).await;
    let next_release: Sha256Hex = next.parse().unwrap();
    committed.release = Some(next_release);
    device.report(&fleet, |r| r.host = Some(committed)).await;
    assert_eq!(deploy(&fleet, &id, json!({"all": true})).await.code(), "below_floor");
    let agent = AgentReport { failed: Some(release), ..AgentReport::default() };
    device.report(&fleet, |r| r.agent = Some(agent)).await;
    assert_eq!(fleet.shown(&device).await["agent"]["failed"], id.as_str());
    let metrics = fleet.cloud.call("GET", "/metrics", &fleet.token, None).await;
    assert!(String::from_utf8_lossy(&metrics.bytes).contains("copal_devices_off_host_target"), "{metrics:?}");
}

#[tokio::test]
async fn the_collector_keeps_what_a_host_release_names_and_a_back_up_has_it() {
    let fleet = stocked().await;
    upload(&fleet, b"loose").await;
    let id = taken(&fleet, &os(&fleet, 0)).await;
    let app = &fleet.cloud.app;
    uploads::expire(app, app::now() + uploads::LIFETIME_S + 60).await.unwrap();
    blobs::collect_all(app).await;
    let digest = |bytes: &[u8]| copal_protocol::ids::Digest::of(bytes);
    for kept in [DATA.to_vec(), index::example(IMAGE, DATA)] {
        assert!(blobs::size(app, &digest(&kept)).await.unwrap().is_some());
    }
    assert!(blobs::size(app, &digest(b"loose")).await.unwrap().is_none());

    let dir = tempfile::tempdir().unwrap();
    let (file, data) = (dir.path().join("b.tar"), dir.path().join("restored"));
    crate::backup::backup(&app.config.data, &file).await.unwrap();
    crate::backup::restore(&data, &file).await.unwrap();
    let hex = digest(DATA).hex();
    assert_eq!(std::fs::read(data.join(format!("blobs/sha256/{}/{hex}", &hex[..2]))).unwrap(), DATA);
    let restored = app::open(crate::config::Config::local(data)).await.unwrap();
    let line: String = sqlx::query_scalar("SELECT line FROM releases WHERE id = $1")
        .bind(&id)
        .fetch_one(restored.db.read())
        .await
        .unwrap();
    assert_eq!(line, "os");
}
