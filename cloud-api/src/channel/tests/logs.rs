//! The route of logs over a real socket: what a person gets of what a device says.

use axum::{
    body::Body,
    http::{Method, Request},
    response::Response,
};
use copal_protocol::{
    channel::{Closed, FIRST_CREDIT, OpenLogs, StreamOf},
    logs::{FEATURE_ONLY, Only},
};
use serde_json::json;
use tower::ServiceExt as _;

use super::{streams::with_logs, *};
use crate::auth::{Role, Scope};

async fn get(world: &World, token: &str, device: &Device, query: &str, accept: &str) -> Response {
    let path = format!("/api/v1/fleets/porch/devices/{}/logs{query}", device.id);
    let request = Request::get(path)
        .header(header::AUTHORIZATION, format!("Bearer {token}"))
        .header(header::ACCEPT, accept)
        .body(Body::empty())
        .unwrap();
    world.fleet.cloud.router.clone().oneshot(request).await.unwrap()
}

/// Asks; the device opens the stream.
async fn asked(
    world: &World,
    device: &Device,
    line: &mut Line,
    query: &str,
    accept: &str,
) -> (Response, channel::Open) {
    let opens = async {
        let CloudFrame::Open(open) = line.next().await else { panic!("not opened") };
        line.say(&DeviceFrame::Opened { stream: open.stream }).await;
        open
    };
    tokio::join!(get(world, &world.fleet.token, device, query, accept), opens)
}

fn said(seq: u64, text: &str) -> String {
    let at = "2026-01-02T03:04:05.000000006Z";
    let line =
        json!({"seq": seq, "n": seq, "service": "web", "at": at, "container": "0123456789ab", "line": text});
    format!("{line}\n")
}

/// Lines of an answer until it ends.
async fn lines(response: Response) -> Vec<Value> {
    let bytes = within(axum::body::to_bytes(response.into_body(), 1 << 20)).await.unwrap();
    let text = String::from_utf8(bytes.to_vec()).unwrap();
    text.lines().filter(|line| !line.is_empty()).map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn lines_of_a_device_reach_who_asked_across_any_cut() {
    let world = World::new().await;
    let (device, mut line) = with_logs(&world, 1).await;
    let (response, open) = asked(&world, &device, &mut line, "?service=web,db&tail=7", "*/*").await;
    let StreamOf::Logs(OpenLogs { services, after, tail, follow, .. }) = open.of else { panic!("no logs") };
    assert_eq!((services.len(), after, tail, follow), (2, None, 7, false));
    assert_eq!(response.headers()[header::CONTENT_TYPE], "application/x-ndjson");
    let text = format!("{}{}", said(1, "one \u{1b}[31m"), said(2, "Two"));
    for byte in text.as_bytes() {
        line.data(open.stream, &[*byte]).await;
    }
    line.say(&DeviceFrame::Closed(Closed::new(open.stream, "ended", ""))).await;
    let got = lines(response).await;
    assert_eq!(got.iter().map(|l| l["seq"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 2]);
    let audit = world.fleet.ok("GET", "/api/v1/audit?limit=1", None).await;
    assert_eq!(audit["items"][0]["verb"], "logs.read");

    let (response, open) =
        asked(&world, &device, &mut line, "?search=TWO&download=true", "text/event-stream").await;
    assert!(response.headers()[header::CONTENT_DISPOSITION].to_str().unwrap().starts_with("attachment"));
    line.data(open.stream, text.as_bytes()).await;
    line.say(&DeviceFrame::Closed(Closed::new(open.stream, "ended", ""))).await;
    let bytes = within(axum::body::to_bytes(response.into_body(), 1 << 20)).await.unwrap();
    let text = String::from_utf8(bytes.to_vec()).unwrap();
    assert!(text.contains("id: 2\ndata: {\"seq\":2,") && !text.contains("\"seq\":1"), "{text}");
}

#[tokio::test]
async fn a_device_leaves_out_what_is_not_wanted_and_for_an_older_one_the_cloud_does() {
    let world = World::new().await;
    let (old, mut line) = with_logs(&world, 1).await;
    let query = "?since=2026-01-02T03:00&until=2026-01-02T03:05Z&search=Two&match_case=true";
    let text = [said(1, "Two").replace("T03:04", "T02:59"), said(2, "two"), said(3, "Two"), said(4, "one")];
    let text = format!("{}{}", text.concat(), said(5, "Two").replace("T03:04", "T03:05"));
    let (response, open) = asked(&world, &old, &mut line, query, "*/*").await;
    let all = OpenLogs { tail: 100_000, ..OpenLogs::default() };
    assert_eq!(open.of, StreamOf::Logs(all.clone()), "what it does not know would end its channel");
    line.data(open.stream, text.as_bytes()).await;
    line.say(&DeviceFrame::Closed(Closed::new(open.stream, "ended", ""))).await;
    let got = lines(response).await;
    assert_eq!(got.iter().map(|l| l["seq"].as_u64().unwrap()).collect::<Vec<_>>(), [3]);

    let device = world.fleet.device(2).await;
    let mut line = world.dial(&device).await.unwrap();
    let features = vec!["logs".to_owned(), FEATURE_ONLY.to_owned()];
    line.say(&DeviceFrame::Hello(Hello { features, ..hello() })).await;
    let CloudFrame::Welcome(_) = line.next().await else { panic!("no welcome") };
    let (response, open) = asked(&world, &device, &mut line, query, "*/*").await;
    let only = Only {
        since: Some("2026-01-02T03:00".parse().unwrap()),
        until: Some("2026-01-02T03:05".parse().unwrap()),
        search: Some("Two".to_owned()),
        match_case: true,
    };
    assert_eq!(open.of, StreamOf::Logs(OpenLogs { only: Some(only), ..all }));
    line.data(open.stream, text.as_bytes()).await;
    line.say(&DeviceFrame::Closed(Closed::new(open.stream, "ended", ""))).await;
    assert_eq!(lines(response).await.len(), 5, "its clock, its word");
}

#[tokio::test]
async fn the_end_of_a_stream_is_told_with_its_reason() {
    let world = World::new().await;
    let (device, mut line) = with_logs(&world, 1).await;
    let (response, open) = asked(&world, &device, &mut line, "?follow=true&after=3", "*/*").await;
    assert!(matches!(open.of, StreamOf::Logs(OpenLogs { after: Some(3), follow: true, .. })));
    line.data(open.stream, said(4, "four").as_bytes()).await;
    line.silence().await;
    drop(line);
    let got = lines(response).await;
    assert_eq!((got[0]["seq"].as_u64(), &got[1]["end"]["code"]), (Some(4), &json!("device_away")));

    let (device, mut line) = with_logs(&world, 2).await;
    let (response, open) = asked(&world, &device, &mut line, "?follow=true", "*/*").await;
    line.data(open.stream, b"{\"seq\":1,\"html\":\"<img>\"}\n").await;
    assert_eq!(lines(response).await[0]["end"]["code"], "log_malformed");
    let CloudFrame::Closed(_) = line.next().await else { panic!("not closed") };

    let (response, _) = asked(&world, &device, &mut line, "?follow=true", "*/*").await;
    world.fleet.cloud.app.stopping.cancel();
    assert_eq!(lines(response).await[0]["end"]["code"], "restarting");
}

#[tokio::test]
async fn who_may_not_see_the_device_sees_no_logs_and_what_is_away_is_told() {
    let world = World::new().await;
    let (device, mut line) = with_logs(&world, 1).await;
    let cloud = &world.fleet.cloud;
    let viewer = cloud.user("vera@example.org", Role::Viewer).await;
    let opens = async {
        let CloudFrame::Open(open) = line.next().await else { panic!("not opened") };
        line.say(&DeviceFrame::Opened { stream: open.stream }).await;
        line.say(&DeviceFrame::Closed(Closed::new(open.stream, "ended", ""))).await;
    };
    let (response, ()) = tokio::join!(get(&world, &viewer, &device, "", "*/*"), opens);
    assert_eq!(response.status(), StatusCode::OK);
    let body = json!({"slug": "other", "device_type": "generic", "arch": "amd64"});
    world.fleet.ok("POST", "/api/v1/fleets", Some(body)).await;
    let other = crate::store::fleets::by_slug(&cloud.app, "other").await.unwrap().fleet_id;
    let foreign = cloud.token("bob@example.org", Role::Owner, Scope::Full, Some(other)).await;
    assert_eq!(get(&world, &foreign, &device, "", "*/*").await.status(), StatusCode::NOT_FOUND);
    assert_eq!(get(&world, "", &device, "", "*/*").await.status(), StatusCode::UNAUTHORIZED);
    let away = world.fleet.device(2).await;
    let path = |id| format!("/api/v1/fleets/porch/devices/{id}/logs");
    let refused = world.fleet.call(Method::GET.as_str(), &path(away.id), None).await;
    assert_eq!(
        (refused.status, refused.json()["code"].as_str()),
        (StatusCode::CONFLICT, Some("device_away"))
    );
    line.silence().await;
}

#[tokio::test]
async fn a_reader_that_does_not_read_slows_the_device_and_costs_no_more_than_credit() {
    let world = World::new().await;
    let (device, mut line) = with_logs(&world, 1).await;
    let (response, open) = asked(&world, &device, &mut line, "?follow=true", "*/*").await;
    let text = said(1, &"x".repeat(1000));
    let mut sent = 0;
    while sent + text.len() <= FIRST_CREDIT as usize {
        line.data(open.stream, text.as_bytes()).await;
        sent += text.len();
    }
    // Nobody has read a byte, so nothing gives the device leave for more.
    line.silence().await;
    let mut body = response.into_body().into_data_stream();
    let mut read = 0;
    while read < sent {
        read += within(body.next()).await.unwrap().unwrap().len();
    }
    let reads_on = tokio::spawn(async move { body.next().await });
    let CloudFrame::Credit(credit) = line.next().await else { panic!("no credit") };
    assert!(credit.bytes as usize >= FIRST_CREDIT as usize / 2);
    reads_on.abort();
    let _ = reads_on.await;
    let CloudFrame::Closed(_) = line.next().await else { panic!("its reader went, and so does the stream") };
}

#[tokio::test]
async fn who_may_not_look_any_more_sees_the_log_end_and_the_device_stops() {
    let world = World::new().await;
    let (device, mut line) = with_logs(&world, 1).await;
    let cloud = &world.fleet.cloud;
    let viewer = cloud.user("vera@example.org", Role::Viewer).await;
    let opens = async {
        let CloudFrame::Open(open) = line.next().await else { panic!("not opened") };
        line.say(&DeviceFrame::Opened { stream: open.stream }).await;
        open
    };
    let (response, open) = tokio::join!(get(&world, &viewer, &device, "?follow=true", "*/*"), opens);
    let (reads, ends) = tokio::join!(lines(response), async {
        let mut tx = cloud.app.db.write().await.unwrap();
        sqlx::query("UPDATE users SET disabled_at = 1 WHERE email = 'vera@example.org'")
            .execute(&mut *tx)
            .await
            .unwrap();
        tx.commit().await.unwrap();
        loop {
            if let CloudFrame::Closed(closed) = line.next().await {
                return closed;
            }
        }
    });
    assert_eq!(reads.last().unwrap()["end"]["code"], "access_lost");
    assert_eq!(ends.stream, open.stream);

    // One that is not read ends, too: its stream is given back.
    let viewer = cloud.user("vera@example.org", Role::Viewer).await;
    let opens = async {
        let CloudFrame::Open(open) = line.next().await else { panic!("not opened") };
        line.say(&DeviceFrame::Opened { stream: open.stream }).await;
        for seq in 1..20 {
            line.data(open.stream, said(seq, "x").as_bytes()).await;
        }
        open
    };
    let (_unread, open) = tokio::join!(get(&world, &viewer, &device, "", "*/*"), opens);
    let mut tx = cloud.app.db.write().await.unwrap();
    sqlx::query("UPDATE users SET role = 'member' WHERE email = 'vera@example.org'")
        .execute(&mut *tx)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    loop {
        if let CloudFrame::Closed(closed) = line.next().await {
            assert_eq!(closed.stream, open.stream);
            return;
        }
    }
}
