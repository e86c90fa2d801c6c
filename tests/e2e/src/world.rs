//! The usual beginning: a cloud, an owner, a fleet, and devices that joined it.

use serde_json::Value;

use crate::{
    cloud::Cloud,
    device::Device,
    engine, eventually,
    owner::{Owner, arch},
    proxy::Proxy,
    repo::Repo,
};

/// A cloud with one fleet.
pub struct World {
    pub devices: Vec<Device>,
    pub repo: Repo,
    pub owner: Owner,
    pub cloud: Cloud,
    pub fleet: String,
}

impl World {
    /// A fleet `porch` with `devices` running agents.
    pub async fn new(devices: usize) -> Self {
        Self::with_fleet(devices, &[]).await
    }

    /// The same, with more words for `copal fleet create`.
    pub async fn with_fleet(devices: usize, more: &[&str]) -> Self {
        let mut world = Self::on(Cloud::start().await, more).await;
        for _ in 0..devices {
            world.join(None).await;
        }
        world
    }

    /// The same on this cloud, without devices.
    pub async fn on(cloud: Cloud, more: &[&str]) -> Self {
        let owner = Owner::sign_in(&cloud).await;
        owner.fleet("porch", more).await;
        let repo = Repo::new(&cloud, "porch");
        Self { devices: Vec::new(), repo, owner, cloud, fleet: "porch".to_owned() }
    }

    /// Adds a device; its agent goes through `proxy` where one is given. Gives its index.
    pub async fn join(&mut self, proxy: Option<&Proxy>) -> usize {
        self.join_as(Device::new(), proxy).await
    }

    /// Adds this device.
    pub async fn join_as(&mut self, device: Device, proxy: Option<&Proxy>) -> usize {
        self.join_at(device, proxy.map(|proxy| proxy.url.as_str())).await
    }

    /// Adds this device, which goes to another address than the cloud's where one is given.
    pub async fn join_at(&mut self, mut device: Device, url: Option<&str>) -> usize {
        let file = device.config_file();
        self.owner.device_config(&self.fleet, &file, &device.prefix).await;
        if let Some(url) = url {
            let mut config: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
            config["cloud_url"] = Value::String(url.to_owned());
            std::fs::write(&file, config.to_string()).unwrap();
        }
        device.start();
        self.devices.push(device);
        self.devices.len() - 1
    }

    /// A fleet of pretended devices.
    pub async fn simulate(&self, devices: usize) -> copal_fleet_sim::Fleet {
        let (file, uses) = (self.owner.home.path().join("sim.json"), devices.to_string());
        let words = ["device", "config", &self.fleet, "--uses", &uses, "--out", file.to_str().unwrap()];
        self.owner.ok(&words).await;
        let file = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        copal_fleet_sim::Fleet::enrol(file, devices).await.unwrap()
    }

    /// Waits until a device is seen as online, or as not.
    pub async fn until_online(&self, index: usize, online: bool) {
        let what = if online { "the device is online" } else { "the device is away" };
        eventually(what, 150, || async {
            let device = self.device(index).await.ok_or("not enrolled")?;
            if device["online"] == online { Ok(()) } else { Err(device.to_string()) }
        })
        .await;
    }

    /// Waits until a command (as the API gives it) ended; gives it.
    pub async fn ended(&self, command: &Value) -> Value {
        let of = |field: &str| command[field].as_str().unwrap_or_default().to_owned();
        let route = format!("/fleets/{}/devices/{}/commands/{}", self.fleet, of("device_id"), of("id"));
        eventually("the command ended", 120, || async {
            let now = self.cloud.get(&route).await;
            if now["ended"] == true { Ok(now) } else { Err(now.to_string()) }
        })
        .await
    }

    /// The cloud's view of a device, by the name it gave itself.
    pub async fn device(&self, index: usize) -> Option<Value> {
        let list = self.cloud.get(&format!("/fleets/{}/devices", self.fleet)).await;
        let name = &self.devices[index].prefix;
        list["items"].as_array()?.iter().find(|d| d["name"] == name.as_str()).cloned()
    }

    /// Waits until the cloud sees every device on target and running `release` (a payload hash).
    pub async fn on_target(&self, release: &str) {
        for index in 0..self.devices.len() {
            // After several refusals an agent may pause for up to five minutes.
            eventually("the device is on target", 330, || async {
                let device = self.device(index).await.ok_or("not enrolled")?;
                let good = device["on_target"] == true && device["committed_release"] == release;
                good.then_some(()).ok_or_else(|| device.to_string())
            })
            .await;
        }
    }

    /// Waits until the device gives this reason; gives the device.
    pub async fn reason(&self, index: usize, code: &str) -> Value {
        eventually(&format!("the device says {code}"), 120, || async {
            let device = self.device(index).await.ok_or("not enrolled")?;
            // A device that goes back says so first and is back after.
            let going =
                device["reason"]["message"].as_str().is_some_and(|m| m.ends_with("is being brought back"));
            if device["reason"]["code"] == code && !going { Ok(device) } else { Err(device.to_string()) }
        })
        .await
    }

    /// The newest release.
    pub async fn latest(&self) -> Value {
        let list = self.cloud.get(&format!("/fleets/{}/releases", self.fleet)).await;
        list["items"][0].clone()
    }

    /// Pushes what the repository holds, and waits until every device runs it. Gives the release id.
    pub async fn push_and_settle(&self, message: &str) -> String {
        self.repo.push_ok(message).await;
        let id = self.latest().await["id"].as_str().unwrap().to_owned();
        self.on_target(&id).await;
        id
    }

    /// Bundles these bytes as an agent, and signs it with the owner's host key; gives the file.
    pub async fn agent_bundle(&self, version: &str, agent: &[u8]) -> String {
        let folder = self.owner.home.path();
        let (file, out) = (folder.join(version), folder.join(format!("{version}.copal")));
        std::fs::write(&file, agent).unwrap();
        let (file, out) = (file.to_str().unwrap(), out.to_str().unwrap());
        let words = ["agent", "bundle", "--binary", file, "--arch", arch(), "--version", version, "-o", out];
        self.owner.ok(&[&words[..], &["--fleet", &self.fleet]].concat()).await;
        self.owner.ok(&["os", "bundle", "sign", out, "--yes"]).await;
        // Its counter is the second it was made in, and the next one has to be higher.
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        out.to_owned()
    }

    /// The running container of a service on a device.
    pub async fn service(&self, index: usize, service: &str) -> Value {
        let device = &self.devices[index];
        eventually(&format!("{service} runs once"), 60, || async {
            engine::service(&device.prefix, service, device.docker_host.as_deref())
                .ok_or_else(|| format!("{:?}", engine::containers(&device.prefix, None).len()))
        })
        .await
    }
}
