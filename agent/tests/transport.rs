//! What a network or a hostile server does to a device: nothing that lasts.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    body::{Body, Bytes},
    http::{StatusCode, header},
    response::IntoResponse as _,
};
use futures_util::{StreamExt as _, stream};

mod support;
use support::{Device, FakeCloud, body};

async fn settled() -> (FakeCloud, Device, support::Running, copal_protocol::ids::Sha256Hex) {
    let cloud = FakeCloud::start().await;
    let device = Device::of(&cloud);
    let agent = device.start();
    agent.condition("enrolled", |c| c.device_id.is_some()).await;
    let hash = cloud.deploy(1, 10);
    agent.commits(cloud.app(), hash).await;
    (cloud, device, agent, hash)
}

#[tokio::test]
async fn a_body_of_100_mb_without_a_length_is_cut_off_at_its_cap() {
    let (cloud, _device, agent, hash) = settled().await;
    let sent = Arc::new(AtomicU64::new(0));
    let counted = sent.clone();
    cloud.lie(move |path| {
        let counted = counted.clone();
        path.ends_with("/state").then(|| {
            let chunks = stream::iter(0..1600).map(move |_| {
                counted.fetch_add(64 << 10, Ordering::Relaxed);
                Ok::<_, std::io::Error>(Bytes::from(vec![b'{'; 64 << 10]))
            });
            body(200, "application/json", Body::from_stream(chunks))
        })
    });
    agent.offline("E_TOO_LARGE").await;
    // What the sockets buffer on this machine comes on top of what was read.
    let first = sent.load(Ordering::Relaxed);
    assert!(first < 32 << 20, "{first} bytes of 100 MB were taken off the server");
    assert_eq!(agent.release_now(cloud.app()), Some(hash));
}

#[tokio::test]
async fn a_body_that_drips_is_given_up() {
    let (cloud, _device, agent, hash) = settled().await;
    cloud.lie(|path| {
        path.ends_with("/state").then(|| {
            let drops = stream::unfold((), |()| async {
                tokio::time::sleep(Duration::from_millis(100)).await;
                Some((Ok::<_, std::io::Error>(Bytes::from_static(b" ")), ()))
            });
            body(200, "application/json", Body::from_stream(drops))
        })
    });
    agent.offline("E_SLOW").await;
    assert_eq!(agent.release_now(cloud.app()), Some(hash));
}

#[tokio::test]
async fn a_captive_portal_is_told_as_such_and_changes_nothing() {
    let (cloud, device, agent, hash) = settled().await;
    let before = device.files();
    cloud.lie(|_| Some(body(200, "text/html; charset=utf-8", "<html>sign in, please</html>")));
    assert!(agent.offline("E_TRANSPORT").await.contains("captive"));
    assert_eq!(agent.release_now(cloud.app()), Some(hash));
    assert_eq!(device.files(), before);
    cloud.honest();
    agent.condition("back", |c| c.online).await;
}

#[tokio::test]
async fn a_redirect_is_not_followed_and_no_credential_goes_elsewhere() {
    let (cloud, _device, agent, _) = settled().await;
    let elsewhere = FakeCloud::start().await;
    let to = format!("{}/device/v1/state", elsewhere.url);
    cloud.lie(move |_| Some((StatusCode::FOUND, [(header::LOCATION, to.clone())]).into_response()));
    assert!(agent.offline("E_TRANSPORT").await.contains("redirect"));
    assert_eq!(elsewhere.asked(""), 0);
}

#[tokio::test]
async fn a_busy_cloud_is_asked_again_when_it_wishes() {
    let (cloud, _device, agent, _) = settled().await;
    cloud.lie(|path| {
        path.ends_with("/state").then(|| {
            (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "-7")], "<html>busy</html>")
                .into_response()
        })
    });
    agent.offline("cloud_refused").await;
    cloud.honest();
    agent.condition("back", |c| c.online).await;
}

#[tokio::test]
async fn what_is_no_envelope_is_refused_with_its_code() {
    let (cloud, _device, agent, hash) = settled().await;
    for (bytes, code) in [
        (r#"{"payload":"","payloadType":"x","signatures":[],"more":1}"#, "E_ENVELOPE"),
        (
            r#"{"payload":"e30=","payloadType":"application/vnd.copal.release.v1+json","signatures":[]}"#,
            "E_PAYLOAD_TYPE",
        ),
    ] {
        cloud.lie(move |path| path.ends_with("/state").then(|| body(200, "application/json", bytes)));
        agent.refuses(code).await;
        assert_eq!(agent.release_now(cloud.app()), Some(hash));
    }
}

#[tokio::test]
async fn tokens_stand_in_no_url() {
    let (cloud, _device, _agent, _) = settled().await;
    let log = cloud.with(|i| i.log.join("\n"));
    assert!(!log.contains("token-"), "{log}");
}

#[tokio::test]
async fn a_disk_that_takes_nothing_any_more_does_not_keep_a_device_out() {
    let (cloud, device, agent, _) = settled().await;
    // No new copy can be written where a folder stands in its way.
    for copy in ["session.a.tmp", "session.b.tmp"] {
        std::fs::create_dir(device.dir.path().join(copy)).unwrap();
    }
    for release in 2..5 {
        cloud.with(|inner| inner.tokens.clear());
        let hash = cloud.deploy(release, 10 + release);
        agent.runs(cloud.app(), hash).await;
    }
}
