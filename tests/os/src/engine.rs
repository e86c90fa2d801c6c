//! The machine with systemd and a container engine, and an app for it.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

use copal_e2e::{eventually, repo::Repo};
use serde_json::Value;

use crate::{
    built, images,
    machine::{Machine, Parts},
    repository,
    world::{FLEET, NAME, World, text},
};

/// Seconds anything of this machine may take: a boot with everything in it is minutes where two processors are busy.
pub const PATIENCE_S: u64 = 900;

/// Turns on what `images/os/build.sh engine` made: 1 GiB, two processors.
pub fn on(disk: &Path) -> Machine {
    let patience = Some(Duration::from_secs(PATIENCE_S));
    Machine::with(disk, &Parts { memory_mib: Some(1024), two_cpus: true, patience, ..Parts::default() })
}

/// A machine of this kind, enrolled.
pub async fn machine(world: &World) -> Machine {
    made("engine.img", &["engine"]);
    let machine = on(&world.disk_of("engine.img", NAME).await.path);
    until(world, "the machine is online", |d| d["online"] == true).await;
    machine
}

/// An image of this kind, of this version.
pub fn image(version: &str) -> PathBuf {
    let name = format!("engine-{version}");
    made(&format!("images/{name}.ext4"), &["engine", "image", &name, version])
}

/// What `images/os/build.sh` makes, made anew where it is older than what it is made of.
fn made(file: &str, args: &[&str]) -> PathBuf {
    let root = repository();
    let path = root.join("target/os").join(file);
    let scripts = ["images/os/engine.sh", "images/os/build.sh"].map(|name| root.join(name));
    let units = [
        "agent/systemd",
        "yocto/meta-copal/recipes-copal/copal-agent",
        "yocto/meta-copal/recipes-copal/copal-os",
    ]
    .iter()
    .flat_map(|folder| images::walk(&root.join(folder)));
    let when = |path: &Path| fs::metadata(path).and_then(|m| m.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
    let newest = scripts.into_iter().chain(units).chain([built("agent")]).map(|p| when(&p)).max();
    if Some(when(&path)) <= newest {
        let output = Command::new(root.join("images/os/build.sh")).args(args).output().unwrap();
        assert!(output.status.success(), "images/os/build.sh {args:?}: {}", copal_e2e::text(&output));
    }
    path
}

/// Waits until the cloud's view of the machine is as `probe` wants it; longer than the small machine needs.
pub async fn until(world: &World, what: &str, probe: impl Fn(&Value) -> bool) -> Value {
    eventually(what, PATIENCE_S, || async {
        let device = world.device().await?;
        if probe(&device) { Ok(device) } else { Err(device.to_string()) }
    })
    .await
}

/// Waits until a command in the machine prints what `probe` wants.
pub async fn until_shell(machine: &Machine, command: &str, probe: impl Fn(&str) -> bool) -> String {
    eventually(command, PATIENCE_S, || async {
        let said = machine.shell(&format!("({command}) || true"));
        if probe(&said) { Ok(said) } else { Err(said) }
    })
    .await
}

/// A project for this fleet: one service that counts its starts in a volume and says which release it is of.
pub fn app(world: &World) -> Repo {
    let repo = Repo::new(&world.cloud, FLEET);
    let url = world.cloud.url.replace("https://", &format!("https://anna:{}@", world.cloud.token));
    repo.git(&["remote", "set-url", "copal", &format!("{url}/git/{FLEET}.git")]);
    repo.git(&["config", "http.sslCAInfo", text(&world.cloud.dir.path().join("tls/ca.crt"))]);
    repo.write(
        "docker-compose.yml",
        "services:\n  app:\n    build: ./app\n    stop_grace_period: 2s\n    volumes:\n      - data:/data\n    \
         labels:\n      io.copal.update.healthy-after: 2s\nvolumes:\n  data: {}\n",
    );
    repo.write(
        "app/Dockerfile",
        "FROM scratch\nCOPY busybox /bin/busybox\nCOPY run.sh /run.sh\nCMD [\"/bin/busybox\", \"sh\", \"/run.sh\"]\n",
    );
    let busybox = built("cache/unpacked/bin/busybox");
    repo.write("app/busybox", fs::read(busybox).unwrap());
    fs::set_permissions(repo.path().join("app/busybox"), fs::Permissions::from_mode(0o755)).unwrap();
    repo
}

/// Pushes a release of it; gives its id. What runs of it says `version` in `/data/starts`, a line for each start.
pub async fn push(world: &World, repo: &Repo, version: &str) -> String {
    repo.write(
        "app/run.sh",
        format!(
            "echo {version} >>/data/starts\ntrap 'exit 0' TERM\nwhile :; do /bin/busybox sleep 1 & wait $!; done\n"
        ),
    );
    repo.push_ok(version).await;
    let list = world.cloud.get(&format!("/fleets/{FLEET}/releases")).await;
    list["items"][0]["id"].as_str().unwrap_or_else(|| panic!("{list}")).to_owned()
}

/// Whether the device runs this release of the app, committed.
pub fn runs_app(device: &Value, release: &str) -> bool {
    device["committed_release"] == release
}

/// The app's containers, `id start` each.
pub const CONTAINERS: &str =
    "docker ps --no-trunc -q | xargs -r docker inspect -f '{{.Id}} {{.State.StartedAt}} {{.State.Running}}'";
/// The app's volume.
pub const STARTS: &str = "cat /data/docker/volumes/*/_data/starts";
