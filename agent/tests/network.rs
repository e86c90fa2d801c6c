//! What was set from afar and stops working: the device finds back by itself.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod support;

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use copal_agent::{
    diagnostics::Link,
    network::{Change, Network, Pace},
    spool::Notes,
};
use support::{Device, FakeCloud, Running, body};
use tokio::{net::TcpStream, task::JoinHandle};

/// Hours are moments here.
fn pace() -> Pace {
    let ms = Duration::from_millis;
    Pace {
        trial: ms(4000),
        look: ms(20),
        watch: ms(20),
        patience: ms(4000),
        patience_time: ms(4000),
        turn: ms(400),
        proven: Duration::from_secs(3600),
    }
}

/// Passes what comes to the cloud, while it is on.
async fn proxy(cloud: &FakeCloud) -> (String, Arc<AtomicBool>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let to = cloud.url.trim_start_matches("http://").to_owned();
    let on = Arc::new(AtomicBool::new(true));
    let is_on = on.clone();
    tokio::spawn(async move {
        while let Ok((mut from, _)) = listener.accept().await {
            let (to, is_on) = (to.clone(), is_on.clone());
            tokio::spawn(async move {
                if !is_on.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(mut to) = TcpStream::connect(to).await else { return };
                let off = async {
                    while is_on.load(Ordering::Relaxed) {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                };
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut from, &mut to) => {}
                    () = off => {}
                }
            });
        }
    });
    (url, on)
}

struct Scene {
    cloud: FakeCloud,
    device: Device,
    running: Running,
    root: tempfile::TempDir,
}

impl Scene {
    async fn new() -> Self {
        let cloud = FakeCloud::start().await;
        let device = Device::of(&cloud);
        let running = device.start();
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("run/systemd/timesync")).unwrap();
        running.condition("it is enrolled", |c| c.device_id.is_some()).await;
        Self { cloud, device, running, root }
    }

    fn link(&self) -> Link {
        Link::Own { session: self.running.session.clone(), store: self.running.store.clone() }
    }

    /// An agent starts, and looks after its way to the cloud.
    fn network(&self) -> (Arc<Network>, JoinHandle<()>) {
        let (state, cloud) = (self.running.state.clone(), self.running.session.cloud().clone());
        let network = Arc::new(Network::open(state, cloud, self.root.path(), pace()));
        let (guarded, link) = (network.clone(), self.link());
        let guard = tokio::spawn(async move { guarded.guard(&link, &Notes::default()).await });
        (network, guard)
    }

    fn is_reached(&self) -> bool {
        self.running.session.cloud().unreached().is_none()
    }
}

async fn until(what: &str, is: impl Fn() -> bool) {
    for _ in 0..3000 {
        if is() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}

fn to_proxy(url: &str) -> Change {
    Change { proxy: Some(url.to_owned()), ntp: None }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_is_switched_off_after_it_was_kept_is_gone_round() {
    let scene = Scene::new().await;
    let (url, on) = proxy(&scene.cloud).await;
    let (network, guard) = scene.network();
    network.set(to_proxy(&url), &scene.link()).await.unwrap();
    assert_eq!(network.shown()["proxy"], url);
    on.store(false, Ordering::Relaxed);
    until("the way is the one it came with", || network.shown()["proxy"].is_null() && scene.is_reached())
        .await;
    let last = network.shown()["last"].as_str().unwrap().to_owned();
    assert!(last.contains("what the device came with"), "{last}");
    guard.abort();
    let (after, _guard) = scene.network();
    assert!(after.shown()["proxy"].is_null(), "over a restart, too");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_was_set_before_is_gone_back_to_where_nothing_else_leads_out() {
    let scene = Scene::new().await;
    let (good, _on) = proxy(&scene.cloud).await;
    let (bad, bad_on) = proxy(&scene.cloud).await;
    let (network, _guard) = scene.network();
    network.set(to_proxy(&good), &scene.link()).await.unwrap();
    network.set(to_proxy(&bad), &scene.link()).await.unwrap();
    // Nothing but by the good one: what comes straight is answered by something else.
    let by_good = scene.running.session.cloud().clone();
    let good_one = good.clone();
    scene.cloud.lie(move |_| {
        (by_good.proxy().as_deref() != Some(&good_one)).then(|| body(503, "text/plain", "no way out"))
    });
    bad_on.store(false, Ordering::Relaxed);
    until("the good one is gone by", || network.shown()["proxy"] == good && scene.is_reached()).await;
    until("it is kept", || !network.shown()["last"].as_str().unwrap().starts_with("set;")).await;
    assert_eq!(network.shown()["proxy"], good);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_time_server_that_turns_the_clock_after_its_trial_is_taken_away() {
    let scene = Scene::new().await;
    let (network, _guard) = scene.network();
    let evil = Change { proxy: None, ntp: Some(vec!["evil.example".to_owned()]) };
    network.set(evil, &scene.link()).await.unwrap();
    let file = scene.root.path().join("run/systemd/timesyncd.conf.d/50-copal.conf");
    assert!(file.exists());
    // By its clock no certificate is valid: nothing comes through while the time service listens to it.
    let listens = file.clone();
    scene.cloud.lie(move |_| listens.exists().then(|| body(503, "text/plain", "")));
    until("the system's own servers count again", || !file.exists() && scene.is_reached()).await;
    until("and stay", || network.shown()["ntp"].as_array().unwrap().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cloud_that_was_away_for_long_takes_nothing_away_that_works() {
    let scene = Scene::new().await;
    let (url, on) = proxy(&scene.cloud).await;
    let (network, _guard) = scene.network();
    network.set(to_proxy(&url), &scene.link()).await.unwrap();
    let asked = || scene.cloud.with(|i| i.log.len());
    until("all rests", || scene.is_reached()).await;
    on.store(false, Ordering::Relaxed);
    until("it is not reached", || !scene.is_reached()).await;
    // The first that comes through comes straight; then the proxy is there again, too.
    let before = asked();
    until("it is asked without the proxy", || asked() > before).await;
    on.store(true, Ordering::Relaxed);
    let fell = || {
        ["network.a", "network.b"].iter().any(|file| has(&scene.device.dir.path().join(file), b"\"falls\":1"))
    };
    until("that is known", fell).await;
    assert_eq!(network.shown()["proxy"], url);
    assert!(scene.is_reached());
}

fn has(path: &Path, what: &[u8]) -> bool {
    std::fs::read(path).is_ok_and(|bytes| bytes.windows(what.len()).any(|window| window == what))
}
