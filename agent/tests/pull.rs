//! Images from a fake cloud's registry into the engine of this machine: what is signed arrives, anything else is refused
//! with its code and leaves nothing behind. Without an engine these tests say so and do nothing.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::{
    collections::BTreeSet,
    io::Write as _,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use axum::response::IntoResponse as _;
use copal_agent::{
    apply::ports::{Images as _, ProgressSink},
    engine::Engine,
    images::Pulls,
};
use copal_protocol::{
    documents::{ImageRef, Layer},
    ids::{Digest, Name},
};
use serde_json::json;

mod support;
use support::{Device, FakeCloud, Running, body};

struct Image {
    image: ImageRef,
    config: Vec<u8>,
    layers: Vec<Vec<u8>>,
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gz.write_all(bytes).unwrap();
    gz.finish().unwrap()
}

fn layer(name: &str, content: &[u8]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    header.set_cksum();
    tar.append_data(&mut header, name, content).unwrap();
    tar.into_inner().unwrap()
}

/// Two layers, one gzip and one plain, unlike any made before.
fn image(salt: &str) -> Image {
    let unique = format!("{salt} {:?} {}", std::time::SystemTime::now(), std::process::id());
    // Does not compress, so that the layer is cut in the middle of real data.
    let mut noise = vec![0; 300_000];
    getrandom::fill(&mut noise).unwrap();
    let tars = [layer("noise", &noise), layer("words", unique.as_bytes())];
    let stored = [gzip(&tars[0]), tars[1].clone()];
    let types = ["application/vnd.oci.image.layer.v1.tar+gzip", "application/vnd.oci.image.layer.v1.tar"];
    let diff_ids: Vec<Digest> = tars.iter().map(|t| Digest::of(t)).collect();
    let config = json!({
        "architecture": copal_agent::settings::arch(), "os": "linux",
        "config": {"Cmd": ["/none"]}, "rootfs": {"type": "layers", "diff_ids": diff_ids},
    })
    .to_string()
    .into_bytes();
    let layers = (0..2)
        .map(|i| Layer {
            digest: Digest::of(&stored[i]),
            size: stored[i].len() as u64,
            media_type: types[i].to_owned(),
            diff_id: diff_ids[i],
        })
        .collect();
    let image = ImageRef {
        repo: "demo/web".to_owned(),
        manifest_digest: Digest::of(b"the registry's own"),
        config_digest: Digest::of(&config),
        config_size: config.len() as u64,
        size: 0,
        layers,
    };
    Image { image, config, layers: stored.to_vec() }
}

struct World {
    cloud: FakeCloud,
    _device: Device,
    _agent: Running,
    pulls: Pulls,
    engine: Engine,
}

async fn world(served: &Image) -> World {
    let cloud = FakeCloud::start().await;
    cloud.with(|i| {
        i.blobs.insert(served.image.config_digest.to_string(), served.config.clone());
        for (layer, stored) in served.image.layers.iter().zip(&served.layers) {
            i.blobs.insert(layer.digest.to_string(), stored.clone());
        }
    });
    let device = Device::of(&cloud);
    let agent = device.start();
    agent.condition("enrolled", |c| c.device_id.is_some()).await;
    let engine = Engine::connect(None);
    let pulls = Pulls::new(engine.clone(), agent.session.clone(), copal_agent::settings::platform());
    World { cloud, _device: device, _agent: agent, pulls, engine }
}

impl World {
    async fn ensure(&self, image: &ImageRef) -> Result<String, String> {
        let service: Name = "web".parse().unwrap();
        let quiet: ProgressSink = Arc::new(|_, _| {});
        let result = self.pulls.ensure(self.cloud.app(), &service, image, &quiet).await;
        result.map(|id| id.0).map_err(|e| e.code)
    }

    async fn forget(&self) {
        self.pulls.retain(&BTreeSet::new()).await.unwrap();
    }
}

#[tokio::test]
async fn the_signed_image_arrives_and_is_let_go_again() {
    let made = image("good");
    let world = world(&made).await;
    assert_eq!(world.pulls.present(&made.image).await.unwrap(), None);
    let id = world.ensure(&made.image).await.unwrap();
    let found = world.engine.image(&id).await.unwrap().unwrap();
    assert_eq!(found.diff_ids, made.image.layers.iter().map(|l| l.diff_id).collect::<Vec<_>>());
    assert_eq!(found.tags.len(), 1, "only the agent's own name stays: {:?}", found.tags);
    assert_eq!(world.pulls.present(&made.image).await.unwrap().unwrap().0, id);
    let asked = world.cloud.asked("/blobs/");
    assert_eq!(world.ensure(&made.image).await.unwrap(), id);
    assert_eq!(world.cloud.asked("/blobs/"), asked, "what is here is not fetched again");

    world.pulls.retain(&BTreeSet::from([made.image.config_digest])).await.unwrap();
    assert!(world.pulls.present(&made.image).await.unwrap().is_some());
    world.forget().await;
    assert_eq!(world.pulls.present(&made.image).await.unwrap(), None);
}

#[tokio::test]
async fn progress_is_told_in_bytes_to_the_end() {
    let made = image("progress");
    let world = world(&made).await;
    let total: u64 = made.image.layers.iter().map(|l| l.size).sum();
    let last = Arc::new(AtomicU64::new(0));
    let told = last.clone();
    let sink: ProgressSink = Arc::new(move |done, of| {
        assert_eq!(of, total);
        told.store(done, Ordering::Relaxed);
    });
    world.pulls.ensure(world.cloud.app(), &"web".parse().unwrap(), &made.image, &sink).await.unwrap();
    assert_eq!(last.load(Ordering::Relaxed), total);
    world.forget().await;
}

#[tokio::test]
async fn a_registry_that_serves_another_layer_or_config_is_refused() {
    let (made, other) = (image("signed"), image("swapped"));
    let swapped = |at: Digest, bytes: Vec<u8>| (at, bytes);
    for (at, bytes) in [
        swapped(made.image.config_digest, other.config.clone()),
        swapped(made.image.layers[0].digest, other.layers[0].clone()),
        swapped(made.image.layers[1].digest, other.layers[1].clone()),
        swapped(made.image.layers[0].digest, made.layers[0][..1000].to_vec()),
    ] {
        let world = world(&made).await;
        world.cloud.with(|i| i.blobs.insert(at.to_string(), bytes));
        let code = world.ensure(&made.image).await.unwrap_err();
        assert!(code == "E_PULL_VERIFY" || code == "E_TRANSPORT", "{code}");
        assert_eq!(world.pulls.present(&made.image).await.unwrap(), None);
    }
    // An honest registry afterwards: it arrives.
    let world = world(&made).await;
    world.ensure(&made.image).await.unwrap();
    world.forget().await;
}

#[tokio::test]
async fn a_config_that_names_other_layers_is_refused() {
    let mut made = image("mixed");
    let world = world(&made).await;
    made.image.layers.swap(0, 1);
    assert_eq!(world.ensure(&made.image).await.unwrap_err(), "E_DIFF_IDS");
}

#[tokio::test]
async fn a_layer_cut_in_the_middle_goes_on_where_it_was() {
    let made = image("cut");
    let world = world(&made).await;
    let name = made.image.layers[0].digest.to_string();
    let (whole, tries) = (made.layers[0].clone(), Arc::new(AtomicUsize::new(0)));
    let counted = tries.clone();
    world.cloud.lie(move |path| {
        if !path.ends_with(&name) || counted.fetch_add(1, Ordering::Relaxed) > 0 {
            return None;
        }
        // Promises all of it, sends half, breaks.
        let half = bytes::Bytes::copy_from_slice(&whole[..150_000]);
        let chunks = futures_util::stream::iter([Ok(half), Err(std::io::Error::other("cut"))]);
        let mut response = axum::body::Body::from_stream(chunks).into_response();
        response.headers_mut().insert("content-length", whole.len().into());
        Some(response)
    });
    world.ensure(&made.image).await.unwrap();
    assert_eq!(tries.load(Ordering::Relaxed), 2);
    world.forget().await;
}

#[tokio::test]
async fn a_registry_that_answers_with_a_page_is_refused() {
    let made = image("page");
    let world = world(&made).await;
    world.cloud.lie(|path| path.contains("/blobs/").then(|| body(200, "text/html", "<html>")));
    assert_eq!(world.ensure(&made.image).await.unwrap_err(), "E_TRANSPORT");
}
