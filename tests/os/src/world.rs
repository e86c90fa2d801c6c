//! The usual beginning: a cloud under a private CA, an owner, a fleet, and a disk provisioned for it.

use std::path::{Path, PathBuf};

use copal_e2e::{cloud::Cloud, eventually, owner::Owner};
use serde_json::Value;
use tempfile::TempDir;

use crate::{board::Board, check::Known, disk::Disk, link::Link, machine::Machine};

/// Seconds anything asked of the cloud may take; see [`crate::machine::PATIENCE`].
pub const PATIENCE_S: u64 = 300;
/// What the machine's owner calls its fleet and it.
pub const FLEET: &str = "porch";
pub const NAME: &str = "qemu-1";

/// A cloud with a fleet for machines like ours, and one disk that joins it.
pub struct World {
    pub board: Board,
    pub link: Link,
    pub owner: Owner,
    pub cloud: Cloud,
    pub dir: TempDir,
}

impl World {
    /// For the machine with U-Boot.
    pub async fn new() -> Self {
        Self::of(Board::Uboot).await
    }

    pub async fn of(board: Board) -> Self {
        let cloud = Cloud::start_private_ca(&["10.0.2.2"]).await;
        let link = Link::to(cloud.address()).await;
        let owner = Owner::sign_in(&cloud).await;
        let kind = ["--device-type", board.device_type(), "--arch", board.arch()];
        owner.ok(&[&["fleet", "create", FLEET, "--yes"], &kind[..]].concat()).await;
        // Beside the build output: what takes large files there takes these.
        let dir = tempfile::Builder::new().prefix("world-").tempdir_in(board.folder()).unwrap();
        Self { board, link, owner, cloud, dir }
    }

    /// The factory's disk with a `copal.json` written onto its boot partition.
    pub async fn disk(&self, name: &str) -> Disk {
        self.disk_of("disk.img", name).await
    }

    /// The same, of another disk that `images/os/build.sh` made.
    pub async fn disk_of(&self, factory: &str, name: &str) -> Disk {
        let disk = Disk::at(&self.board.built(factory)).copy_to(&self.dir.path().join(format!("{name}.img")));
        let file = self.dir.path().join(format!("{name}.json"));
        let url = format!("https://10.0.2.2:{}", self.link.port);
        let out = file.to_str().unwrap();
        self.owner.ok(&["device", "config", FLEET, "--name", name, "--out", out, "--cloud-url", &url]).await;
        disk.put_on_boot(&file, "copal.json");
        disk
    }

    /// A provisioned machine, on, enrolled.
    pub async fn machine(&self) -> Machine {
        let machine = Machine::on(&self.disk(NAME).await.path);
        self.online().await;
        machine
    }

    /// The cloud's view of the machine.
    pub async fn device(&self) -> Result<Value, String> {
        let list = self.cloud.get(&format!("/fleets/{FLEET}/devices")).await;
        let items = list["items"].as_array().cloned().unwrap_or_default();
        items.into_iter().find(|d| d["name"] == NAME).ok_or_else(|| list.to_string())
    }

    /// Waits until the cloud's view of the machine is as `probe` wants it.
    pub async fn until(&self, what: &str, probe: impl Fn(&Value) -> bool) -> Value {
        self.until_within(PATIENCE_S, what, probe).await
    }

    /// The same for what may take more seconds.
    pub async fn until_within(&self, seconds: u64, what: &str, probe: impl Fn(&Value) -> bool) -> Value {
        eventually(what, seconds, || async {
            let device = self.device().await?;
            if probe(&device) { Ok(device) } else { Err(device.to_string()) }
        })
        .await
    }

    /// Waits until it has joined and is heard of.
    pub async fn online(&self) -> Value {
        self.until("the machine is online", |d| d["online"] == true).await
    }

    /// A slot image of this version, with or without something wrong in it, for this machine.
    pub async fn image(&self, version: &str, faults: &[&str]) -> PathBuf {
        let (board, version) = (self.board, version.to_owned());
        let faults = faults.iter().map(|&f| f.to_owned()).collect::<Vec<_>>();
        // Blocking, beside the runtime that carries the machine's network.
        let made = tokio::task::spawn_blocking(move || {
            let faults: Vec<&str> = faults.iter().map(String::as_str).collect();
            crate::images::image(board, &version, &faults)
        });
        made.await.unwrap()
    }

    /// The factory's image and these: all that may ever boot here.
    pub async fn known(&self, images: &[(&str, &[&str])]) -> Known {
        let mut files = vec![("1.0.0", self.board.factory())];
        for (version, faults) in images {
            files.push((version, self.image(version, faults).await));
        }
        let files: Vec<(&str, &Path)> = files.iter().map(|(name, file)| (*name, file.as_path())).collect();
        Known::images(&files)
    }

    /// A signed bundle of this version, with or without something wrong in it.
    pub async fn bundle(&self, version: &str, faults: &[&str]) -> PathBuf {
        let name = [&[version], faults].concat().join("-");
        let file = self
            .unsigned(&name, version, &self.image(version, faults).await, self.board.device_type(), &[])
            .await;
        self.owner.ok(&["os", "bundle", "sign", text(&file), "--yes"]).await;
        file
    }

    /// The same without a signature, of any image, for any device type.
    pub async fn unsigned(
        &self,
        name: &str,
        version: &str,
        image: &Path,
        device_type: &str,
        more: &[&str],
    ) -> PathBuf {
        let file = self.path(&format!("{name}.copal"));
        let mut args =
            vec!["os", "bundle", "create", "--level", "3", "--fleet", FLEET, "--rootfs", text(image)];
        args.extend(["--device-type", device_type, "--arch", self.board.arch(), "--version", version]);
        args.extend_from_slice(more);
        args.extend(["-o", text(&file)]);
        self.owner.ok(&args).await;
        file
    }

    /// Makes it a release of the fleet; gives its id.
    pub async fn release(&self, bundle: &Path) -> String {
        let said = self.owner.json(&["os", "release", FLEET, text(bundle)]).await;
        said["release"]["id"].as_str().unwrap_or_else(|| panic!("no id in {said}")).to_owned()
    }

    /// Says that the fleet should run this version.
    pub async fn deploy(&self, version: &str) {
        self.owner.ok(&["os", "deploy", FLEET, version, "--all"]).await;
    }

    /// Bundle, release and deployment in one.
    pub async fn roll_out(&self, version: &str, faults: &[&str]) -> String {
        let id = self.release(&self.bundle(version, faults).await).await;
        self.deploy(version).await;
        id
    }

    /// Waits until this version runs in a slot the device is committed to.
    pub async fn committed(&self, version: &str) -> Value {
        self.until(&format!("{version} is committed"), |d| {
            runs_committed(d, version) && d["os"]["progress"].is_null()
        })
        .await
    }

    /// Waits until the device gives this reason for what it was given last; gives the device.
    pub async fn reason(&self, code: &str) -> Value {
        self.until(&format!("the device says {code}"), |d| d["os"]["reason"]["code"] == code).await
    }

    /// A path in this world's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

/// Whether the version runs, and in the slot the device is committed to.
pub fn runs_committed(device: &Value, version: &str) -> bool {
    let os = &device["os"];
    os["version"] == version
        && os["slots"].as_object().is_some_and(|slots| {
            slots
                .values()
                .any(|s| s["booted"] == true && s["state"] == "committed" && s["version"] == version)
        })
}

/// A path as the command line takes it.
pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
