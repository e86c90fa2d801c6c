//! A device believes only what its owner's root lets it believe; whatever else it is served, what ran goes on.

use std::sync::{Arc, Mutex};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use copal_e2e::{
    cloud::Cloud,
    device::Device,
    engine, eventually,
    owner::Owner,
    proxy::{Answer, Proxy},
    repo::{STAY, Services},
    world::World,
};
use copal_protocol::{
    documents::{Assignment, Release},
    envelope::Envelope,
    keys::SigningKey,
};
use serde_json::{Value, json};

const SHORT: &str = "labels: {io.copal.update.healthy-after: 2s}\nstop_grace_period: 1s";

/// A fleet whose one device sees the cloud through a proxy, on a committed release.
struct Tapped {
    world: World,
    proxy: Proxy,
    container: Value,
}

impl Tapped {
    async fn new() -> Self {
        let mut world = World::new(0).await;
        let proxy = Proxy::start(&world.cloud.url);
        world.join(Some(&proxy)).await;
        Self::settled(world, proxy).await
    }

    /// The same beside an engine that has none of the images the builder made: all has to come from the registry.
    async fn beside(engine: &engine::OwnEngine) -> Self {
        let mut world = World::new(0).await;
        let proxy = Proxy::on(engine.listen(), &world.cloud.url);
        world.join_as(Device::beside(engine), Some(&proxy)).await;
        Self::settled(world, proxy).await
    }

    async fn settled(world: World, proxy: Proxy) -> Self {
        Services { services: &[("app", STAY, SHORT)] }.write_to(&world.repo);
        world.push_and_settle("works").await;
        let container = world.service(0, "app").await;
        Self { world, proxy, container }
    }

    /// Pushes a change while the proxy plays its part; the device must refuse with this code, and what ran goes on. Then
    /// the proxy turns honest, and the device takes the release by itself.
    async fn refuses(&mut self, code: &str, part: impl Part) {
        let Self { world, proxy, .. } = self;
        proxy.rewrite(move |path, body| part.answer(path, body));
        let script = format!("#!/bin/busybox sh\necho {code} {}\n{STAY}\n", copal_e2e::unique());
        world.repo.write("app/run.sh", script);
        world.repo.push_ok(code).await;
        world.reason(0, code).await;
        still_runs(world, &self.container).await;
        proxy.honest();
        let id = world.latest().await["id"].as_str().unwrap().to_owned();
        world.on_target(&id).await;
        self.container = world.service(0, "app").await;
    }

    /// The same, where it is the release's document that is changed.
    async fn refuses_release(
        &mut self,
        code: &str,
        change: impl Fn(&[u8]) -> Option<Answer> + Send + Sync + 'static,
    ) {
        let part = move |path: &str, body: &[u8]| {
            path.starts_with("/device/v1/releases/").then(|| change(body)).flatten()
        };
        self.refuses(code, part).await;
    }

    /// A key of the cloud's own.
    fn assign_key(&self) -> SigningKey {
        let file = self.world.cloud.dir.path().join("keys/assign.key");
        let mut seed = [0; 32];
        hex::decode_to_slice(std::fs::read_to_string(file).unwrap().trim(), &mut seed).unwrap();
        SigningKey::from_seed(&seed)
    }
}

async fn still_runs(world: &World, container: &Value) {
    assert_eq!(world.service(0, "app").await["Id"], container["Id"], "what ran goes on");
}

trait Part: Send + Sync + 'static {
    fn answer(&self, path: &str, body: &[u8]) -> Option<Answer>;
}

impl<F: Fn(&str, &[u8]) -> Option<Answer> + Send + Sync + 'static> Part for F {
    fn answer(&self, path: &str, body: &[u8]) -> Option<Answer> {
        self(path, body)
    }
}

/// The envelope as loose JSON, for tampering.
fn tamper(body: &[u8], change: impl Fn(&mut Value)) -> Option<Answer> {
    let mut envelope: Value = serde_json::from_slice(body).ok()?;
    change(&mut envelope);
    Some(Answer::Body(envelope.to_string().into_bytes()))
}

/// The same payload, signed by this key alone.
fn signed_by(body: &[u8], key: &SigningKey) -> Option<Answer> {
    let payload = Envelope::parse::<Release>(body).ok()?.payload().to_vec();
    let mut forged = Envelope::unsigned::<Release>(payload);
    forged.add_signature(key);
    Some(Answer::Body(forged.to_bytes()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tampered_release_is_refused_with_its_code_and_what_ran_goes_on() {
    let mut tapped = Tapped::new().await;
    let flipped = |body: &[u8]| {
        tamper(body, |e| {
            let mut sig = BASE64.decode(e["signatures"][0]["sig"].as_str().unwrap()).unwrap();
            sig[10] ^= 1;
            e["signatures"][0]["sig"] = Value::String(BASE64.encode(sig));
        })
    };
    tapped.refuses_release("E_SIG_INVALID", flipped).await;
    let unsigned = |body: &[u8]| tamper(body, |e| e["signatures"] = Value::Array(Vec::new()));
    tapped.refuses_release("E_SIG_MISSING", unsigned).await;
    let stranger = SigningKey::from_seed(&[7; 32]);
    tapped.refuses_release("E_SIG_UNKNOWN_KEY", move |body| signed_by(body, &stranger)).await;
    // Signed by a key the root knows, for something else: the cloud's online key.
    let assign = tapped.assign_key();
    tapped.refuses_release("E_SIG_WRONG_ROLE", move |body| signed_by(body, &assign)).await;
    let another = |body: &[u8]| {
        tamper(body, |e| {
            let mut payload = BASE64.decode(e["payload"].as_str().unwrap()).unwrap();
            let last = payload.len() - 1;
            payload[last] = b' ';
            payload.push(b'}');
            e["payload"] = Value::String(BASE64.encode(payload));
        })
    };
    tapped.refuses_release("E_RELEASE_HASH", another).await;
    tapped.refuses_release("E_TOO_LARGE", |_: &[u8]| Some(Answer::Endless(100 << 20))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_assignment_replayed_or_meant_for_another_is_refused() {
    let Tapped { mut world, proxy, .. } = Tapped::new().await;

    // Keep what this device was served, and serve it again after the next release.
    let kept: Arc<Mutex<Vec<u8>>> = Arc::default();
    let keep = kept.clone();
    proxy.rewrite(move |path, body| {
        if path == "/device/v1/state" && !body.is_empty() {
            *keep.lock().unwrap() = body.to_vec();
        }
        None
    });
    let short = format!("#!/bin/busybox sh\necho second\n{STAY}\n");
    world.repo.write("app/run.sh", short);
    let second = world.push_and_settle("second").await;
    let old = kept.lock().unwrap().clone();
    world.repo.write("app/run.sh", format!("#!/bin/busybox sh\necho third\n{STAY}\n"));
    let third = world.push_and_settle("third").await;
    assert_ne!(second, third);
    let container = world.service(0, "app").await;
    let old_seq: Assignment =
        serde_json::from_slice(Envelope::parse::<Assignment>(&old).unwrap().payload()).unwrap();

    let replay = old.clone();
    proxy.rewrite(move |path, _| (path == "/device/v1/state").then(|| Answer::Body(replay.clone())));
    // A held poll of before must end first; another device's enrolment takes that time well.
    let other = world.join(None).await;
    world.repo.write("app/run.sh", format!("#!/bin/busybox sh\necho fourth\n{STAY}\n"));
    world.repo.push_ok("fourth").await;
    world.reason(0, "E_ASSIGN_ROLLBACK").await;
    still_runs(&world, &container).await;

    // After a restart of the agent too: what was accepted is remembered.
    world.devices[0].kill().await;
    world.devices[0].start();
    eventually("the replay is refused after a restart", 60, || async {
        let log = world.devices[0].log();
        if log.matches("E_ASSIGN_ROLLBACK").count() >= 2 { Ok(()) } else { Err("not yet".to_owned()) }
    })
    .await;
    still_runs(&world, &container).await;
    assert!(old_seq.seq > 0);

    // The other device's assignment.
    let others = Arc::new(Mutex::new(Vec::<u8>::new()));
    let tap = Proxy::start(&world.cloud.url);
    let keep = others.clone();
    tap.rewrite(move |path, body| {
        if path == "/device/v1/state" && !body.is_empty() {
            *keep.lock().unwrap() = body.to_vec();
        }
        None
    });
    let third_device = world.join(Some(&tap)).await;
    eventually("the tap saw an assignment", 60, || async {
        if others.lock().unwrap().is_empty() { Err("not yet".to_owned()) } else { Ok(()) }
    })
    .await;
    let foreign = others.lock().unwrap().clone();
    proxy.rewrite(move |path, _| (path == "/device/v1/state").then(|| Answer::Body(foreign.clone())));
    world.reason(0, "E_DEVICE_MISMATCH").await;
    still_runs(&world, &container).await;
    assert!(third_device > other);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_assignment_with_a_key_twice_or_a_torn_envelope_is_refused() {
    let mut tapped = Tapped::new().await;
    let is_state = |path: &str, body: &[u8]| path == "/device/v1/state" && !body.is_empty();
    let torn = move |path: &str, body: &[u8]| {
        is_state(path, body).then(|| {
            let text = String::from_utf8_lossy(body).replacen('{', "{\"payload\":\"\",", 1);
            Answer::Body(text.into_bytes())
        })
    };
    tapped.refuses("E_ENVELOPE", torn).await;

    // Signed by the right key, with one key twice: two readers could read two documents.
    let assign = tapped.assign_key();
    let twice = move |path: &str, body: &[u8]| {
        if !is_state(path, body) {
            return None;
        }
        let payload = Envelope::parse::<Assignment>(body).ok()?.payload().to_vec();
        let text = String::from_utf8(payload).unwrap().replacen('{', "{\"seq\":9000000000,", 1);
        let mut forged = Envelope::unsigned::<Assignment>(text.into_bytes());
        forged.add_signature(&assign);
        Some(Answer::Body(forged.to_bytes()))
    };
    tapped.refuses("E_DUP_KEY", twice).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_serves_another_layer_or_config_is_refused_and_its_manifest_is_not_asked_for() {
    let engine = engine::OwnEngine::start();
    let mut tapped = Tapped::beside(&engine).await;
    for what in ["layer", "config"] {
        let part = move |path: &str, body: &[u8]| {
            let blob = path.starts_with("/v2/") && path.contains("/blobs/");
            let is_config = serde_json::from_slice::<Value>(body).is_ok();
            (blob && !body.is_empty() && is_config == (what == "config")).then(|| {
                let mut other = body.to_vec();
                let middle = other.len() / 2;
                other[middle] ^= 0x20;
                Answer::Body(other)
            })
        };
        tapped.refuses("E_PULL_VERIFY", part).await;
    }
    // The manifest is made on the device from the signed release: whatever the registry has there, nobody believes it.
    let Tapped { world, proxy, .. } = &mut tapped;
    proxy.rewrite(|path, body| {
        let manifest = path.starts_with("/v2/") && path.contains("/manifests/");
        manifest.then(|| tamper(body, |m| m["layers"] = json!([]))).flatten()
    });
    world
        .repo
        .write("app/run.sh", format!("#!/bin/busybox sh\necho manifest {}\n{STAY}\n", copal_e2e::unique()));
    let release = world.push_and_settle("a registry with another manifest").await;
    let signed = world.cloud.get(&format!("/releases/{release}")).await;
    let runs = world.service(0, "app").await["Image"].clone();
    let images = signed["services"]["app"]["images"].as_object().unwrap();
    assert!(images.values().any(|image| image["config_digest"] == runs), "{runs} of {images:?}");
    assert!(proxy.seen().iter().all(|path| !path.contains("/manifests/")), "{:?}", proxy.seen());
    tapped.world.devices.clear();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_root_stops_new_releases_and_not_what_runs() {
    let world = World::new(1).await;
    Services { services: &[("app", STAY, SHORT)] }.write_to(&world.repo);
    world.push_and_settle("works").await;
    let container = world.service(0, "app").await;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    world.owner.next_root(&world.cloud, "porch", |root| root.expires = now + 15).await;
    // The release is made while the root is good, and reaches the device when it is not.
    world.repo.write("app/run.sh", format!("#!/bin/busybox sh\necho late\n{STAY}\n"));
    world.cloud.call("POST", "/fleets/porch/deploy", json!({"release": world.latest().await["id"]})).await;
    world.repo.push_ok("late").await;
    let late = world.latest().await["id"].clone();
    tokio::time::sleep(std::time::Duration::from_secs(16)).await;
    world.cloud.call("POST", "/fleets/porch/deploy", json!({"release": late})).await;
    world.reason(0, "E_ROOT_EXPIRED").await;
    still_runs(&world, &container).await;

    // The owner renews it, and the device goes on.
    world.owner.ok(&["root", "renew", "porch", "--yes"]).await;
    world.owner.ok(&["release", "deploy", "latest", "--fleet", "porch"]).await;
    world.repo.write("app/run.sh", format!("#!/bin/busybox sh\necho renewed\n{STAY}\n"));
    world.push_and_settle("renewed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_device_is_refused_at_once_and_keeps_what_it_runs() {
    let world = World::new(2).await;
    Services { services: &[("app", STAY, SHORT)] }.write_to(&world.repo);
    world.push_and_settle("works").await;
    let container = world.service(0, "app").await;
    let device = world.device(0).await.unwrap();
    let id = device["device_id"].as_str().unwrap();
    world.owner.ok(&["device", "revoke", id, "--yes"]).await;
    eventually("the agent is told", 5, || async {
        let log = world.devices[0].log();
        if log.contains("device_revoked") { Ok(()) } else { Err("not yet".to_owned()) }
    })
    .await;
    world.repo.write("app/run.sh", format!("#!/bin/busybox sh\necho second\n{STAY}\n"));
    world.repo.push_ok("second").await;
    let id = world.latest().await["id"].as_str().unwrap().to_owned();
    eventually("the other device goes on", 60, || async {
        let other = world.device(1).await.unwrap();
        if other["committed_release"] == id.as_str() { Ok(()) } else { Err(other.to_string()) }
    })
    .await;
    still_runs(&world, &container).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_owner_mode_nothing_runs_before_the_owner_signed_it() {
    for mode in ["owner", "both"] {
        let world = World::with_fleet(1, &["--release-mode", mode]).await;
        Services { services: &[("app", STAY, SHORT)] }.write_to(&world.repo);
        let said = world.repo.push_ok("unsigned").await;
        assert!(said.contains("sign"), "the push says what is next: {said}");
        let release = world.latest().await;
        assert_eq!(release["status"], "awaiting_signature", "{release}");
        let id = release["id"].as_str().unwrap();
        let prefix = &world.devices[0].prefix;
        assert!(engine::containers(prefix, None).is_empty());
        world.owner.ok(&["release", "sign", id, "--yes"]).await;
        world.on_target(id).await;
        world.service(0, "app").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copied_token_joins_no_second_device() {
    let world = World::new(1).await;
    eventually("the first joined", 30, || async { world.device(0).await.map(drop).ok_or("no".to_owned()) })
        .await;
    let mut copy = Device::new();
    std::fs::copy(world.devices[0].config_file(), copy.config_file()).unwrap();
    copy.start();
    eventually("the copy is refused", 30, || async {
        let log = copy.log();
        if log.contains("enrolment_token") { Ok(()) } else { Err(log) }
    })
    .await;
    let list = world.cloud.get("/fleets/porch/devices").await;
    assert_eq!(list["items"].as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_server_prints_on_its_own_console_is_what_the_owner_compares_with() {
    let cloud = Cloud::start().await;
    let data = cloud.dir.path().to_str().unwrap().to_owned();
    let printed = copal_e2e::cloud::run(&["keys", "--data", &data], "").await;
    let ids: Vec<&str> = printed.split_whitespace().filter(|word| word.len() == 64).collect();
    assert_eq!(ids.len(), 2, "{printed}");
    assert!(ids.iter().all(|id| cloud.log().contains(id)), "at its start, too");
    let owner = Owner::sign_in(&cloud).await;
    let create = ["fleet", "create", "porch", "--device-type", "generic", "--arch", "amd64", "--expect-key"];
    let wrong = owner.run(&[&create[..], &[ids[0]]].concat(), "").await;
    assert!(!wrong.status.success(), "one key alone is not both");
    owner.ok(&[&create[..], &[&ids.join(",")]].concat()).await;
    let shown = owner.ok(&["server", "show"]).await;
    assert!(ids.iter().all(|id| shown.contains(id)), "{shown}");
}
