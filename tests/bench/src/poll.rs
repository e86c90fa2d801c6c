//! What a poll that finds nothing new costs the cloud.

use std::time::Instant;

use copal_e2e::{
    repo::{STAY, Services},
    world::World,
};
use copal_protocol::{
    device_api::{
        ChallengeRequest, ChallengeResponse, EnrolRequest, EnrolResponse, LoginRequest, LoginResponse,
    },
    enrol,
    keys::SigningKey,
    seal::SealKey,
};
use serde_json::json;

use crate::{Row, cpu_seconds, row};

const POLLS: u32 = 20_000;

pub(crate) async fn rows() -> Vec<Row> {
    let world = World::new(0).await;
    Services { services: &[("app", STAY, "")] }.write_to(&world.repo);
    world.repo.push_ok("works").await;
    let session = join(&world).await;

    let http = copal_e2e::http();
    let url = format!("{}/device/v1/state", world.cloud.url);
    let first = http.get(&url).bearer_auth(&session).send().await.unwrap();
    let etag = first.headers()["etag"].to_str().unwrap().to_owned();
    let poll = || http.get(&url).bearer_auth(&session).header("if-none-match", &etag).send();
    for _ in 0..500 {
        assert_eq!(poll().await.unwrap().status(), 304);
    }
    let (cpu, began) = (cpu_seconds(world.cloud.pid()), Instant::now());
    for _ in 0..POLLS {
        assert_eq!(poll().await.unwrap().status(), 304);
    }
    let micros = (cpu_seconds(world.cloud.pid()) - cpu) * 1e6 / f64::from(POLLS);
    let rate = f64::from(POLLS) / began.elapsed().as_secs_f64();
    vec![
        row("CPU of the cloud per 304 poll, no TLS", format!("{micros:.1} µs"))
            .goal("<= 50 µs")
            .peer("13,000 to 18,000 µs"),
        row("304 polls a second, one connection", format!("{rate:.0}")),
    ]
}

/// Enrols a device that is only a key, and logs it in.
async fn join(world: &World) -> String {
    let route = format!("/fleets/{}/enrolment-tokens", world.fleet);
    let made = world.cloud.call("POST", &route, json!({"uses": 1, "expires_in_s": 600})).await;
    let token = made["token"].as_str().unwrap();
    let fleet = world.cloud.get(&format!("/fleets/{}", world.fleet)).await;
    let fleet_id = fleet["fleet_id"].as_str().unwrap().parse().unwrap();
    let (id, secret) = enrol::split_token(token).unwrap();
    let key = SigningKey::from_seed(&[9; 32]);
    let seal_key = SealKey::from_bytes(&[8; 32]).public();
    let request = EnrolRequest {
        fleet_id,
        token_id: id.to_owned(),
        token_mac: enrol::token_mac(secret, fleet_id, id, &key.public(), &seal_key),
        public_key: key.public(),
        signature: hex(&key.sign(&enrol::enrol_message(fleet_id, id, &key.public(), &seal_key))),
        seal_key,
        introduction_mac: None,
        introduction_id: None,
        name: "bench".to_owned(),
        arch: copal_e2e::owner::arch().to_owned(),
        device_type: "generic".to_owned(),
    };
    let http = copal_e2e::http();
    let post = |route: &str, body: serde_json::Value| {
        http.post(format!("{}/device/v1/{route}", world.cloud.url)).json(&body).send()
    };
    let enrolled: EnrolResponse = post("enrol", json!(request)).await.unwrap().json().await.unwrap();
    let device_id = enrolled.device_id;
    let asked: ChallengeResponse =
        post("challenge", json!(ChallengeRequest { device_id })).await.unwrap().json().await.unwrap();
    let login = LoginRequest {
        device_id,
        challenge: asked.challenge,
        signature: hex(&key.sign(&enrol::login_message(device_id, asked.challenge))),
        refresh_link: None,
    };
    let session: LoginResponse = post("login", json!(login)).await.unwrap().json().await.unwrap();
    session.token
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
