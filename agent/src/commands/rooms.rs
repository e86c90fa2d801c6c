//! What several commands need of this device: settings, state, identity, the store. Opening it touches no network.

use std::{fs, os::unix::fs::OpenOptionsExt as _, path::Path, sync::Arc, time::Duration};

use anyhow::Context as _;
use copal_protocol::{
    envelope::Envelope,
    verify::{self, Code, Error},
};
use nix::fcntl::{Flock, FlockArg};

use crate::{
    clock::{self, Clock, build_time, system_time},
    cloud::{Address, Cloud, Limits},
    identity::{Identity, Session},
    network,
    orders::{self, Acks, Hands},
    os::OsConfig,
    plan::wanted::Context,
    settings::{self, Joined, Places},
    spool::Notes,
    state::{RealFs, StateDir, StateError},
    supervisor::SupervisorSettings,
    target::{Store, StoreSettings},
};

/// How long an app has to be well where it does not say.
const HEALTHY_AFTER: Duration = Duration::from_secs(60);

/// The rooms of a device.
pub(super) struct Rooms {
    pub clock: Clock,
    pub state: Arc<StateDir>,
    pub cloud: Arc<Cloud>,
    pub session: Arc<Session>,
    pub store: Arc<Store>,
    /// The image's word of its slots; absent on a device whose operating system is not Copal's.
    pub os: Option<OsConfig>,
    device_type: String,
}

impl Rooms {
    pub fn open(places: &Places) -> anyhow::Result<Self> {
        let Joined { file, root, root_envelope } = settings::load(places.config.as_deref())?;
        let state = Arc::new(StateDir::open(&places.state_dir, Arc::new(RealFs))?);
        let clock = Clock::default();
        if clock.is_unset() {
            tracing::warn!(
                system = system_time(),
                floor = build_time(),
                "the clock is not set; times are judged from when this agent was built on"
            );
        }
        let identity = Identity::open(state.clone(), &file)?;
        let address = Address::new(std::slice::from_ref(&file.cloud_url), &file.tls_pins)
            .map_err(anyhow::Error::msg)
            .context("config_invalid: the cloud's address in copal.json cannot be used")?;
        let cloud = Arc::new(Cloud::new(address, clock.clone(), Limits::default()).hurried(places.hurry));
        cloud.set_proxy(network::proxy(&state));
        let session = Session::new(cloud.clone(), state.clone(), file.clone(), identity);
        let session = Arc::new(session.hurried(places.hurry));
        let os = OsConfig::load(&places.os_config).map_err(anyhow::Error::msg)?;
        if let Some(os) = &os
            && os.device_type != file.device_type
        {
            anyhow::bail!(
                "{}: the image is for {:?}, copal.json for {:?}: make copal.json for this device type",
                places.os_config.display(),
                os.device_type,
                file.device_type
            );
        }
        let platform = copal_protocol::verify::Platform {
            device_type: file.device_type.clone(),
            arch: settings::arch().to_owned(),
            agent: crate::version(),
            os: os.as_ref().map(|os| os.version.clone()),
        };
        let os_floor = os.as_ref().map_or(0, |os| os.floor);
        let store = Arc::new(Store::open(
            state.clone(),
            session.clone(),
            StoreSettings { platform, oci: settings::platform(), os_floor, clock: clock.clone() },
            (&root, &root_envelope),
        )?);
        Ok(Self { clock, state, cloud, session, store, os, device_type: file.device_type })
    }

    /// Two agents over one state folder would undo each other.
    pub fn lock(&self) -> Result<Flock<fs::File>, StateError> {
        lock(self.state.path())
    }

    pub fn supervisor_settings(&self, places: &Places, device_id: &str) -> SupervisorSettings {
        let (instance, hash_key) = self.session.identity(|i| (i.instance(), i.hash_key()));
        SupervisorSettings {
            instance,
            prefix: places.name_prefix.clone(),
            hash_key,
            run_dir: places.run_dir.clone(),
            platform: settings::platform(),
            device_id: device_id.to_owned(),
            device_type: self.device_type.clone(),
            healthy_after: HEALTHY_AFTER,
        }
    }

    /// The command that restarts the device: what the settings say, else what its image says, else the system's.
    pub fn reboot_command(&self, places: &Places) -> Vec<String> {
        let set = places.reboot_command.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        match &self.os {
            _ if !set.is_empty() => set,
            Some(os) => os.reboot.clone(),
            None => vec!["reboot".to_owned()],
        }
    }

    /// What orders work with.
    pub fn orders(
        &self,
        places: &Places,
        hands: Arc<dyn Hands>,
        acks: Arc<Acks>,
        notes: Notes,
    ) -> orders::Deps {
        let (store, session) = (self.store.clone(), self.session.clone());
        let root = store.clone();
        let judge = move |envelope: &Envelope| {
            let device = session
                .identity(Identity::device)
                .ok_or_else(|| Error::new(Code::DeviceMismatch, "this device is not enrolled yet"))?;
            verify::action(&store.root(), &device, envelope)
        };
        orders::Deps {
            state: self.state.clone(),
            judge: Box::new(judge),
            epoch: Box::new(move || root.root().assign_epoch),
            hands,
            policy: places.policy.clone(),
            acks,
            boot_id: clock::boot_id(),
            uptime_s: Box::new(clock::uptime_s),
            clock: self.clock.clone(),
            notes,
            now: self.clock.now(),
        }
    }

    /// As plans are made on this device; `None` before enrolment.
    pub fn context(&self, places: &Places) -> Option<Context> {
        let device_id = self.session.identity(Identity::device_id)?.to_string();
        let s = self.supervisor_settings(places, &device_id);
        Some(Context {
            instance: s.instance,
            prefix: s.prefix,
            hash_key: s.hash_key,
            platform: s.platform,
            device_id: s.device_id,
            device_type: s.device_type,
        })
    }
}

fn lock(folder: &Path) -> Result<Flock<fs::File>, StateError> {
    let path = folder.join("lock");
    // On a data partition that is full or read-only an agent is needed most: what is there is locked, at worst the folder.
    let file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .or_else(|e| fs::File::open(&path).or_else(|_| fs::File::open(folder)).map_err(|_| e))
        .map_err(|e| StateError::io("open", &path, e))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| StateError::Busy { path })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_agent_has_the_state_folder_also_where_its_lock_cannot_be_opened_for_writing() {
        let dir = tempfile::tempdir().unwrap();
        let first = lock(dir.path()).unwrap();
        assert!(matches!(lock(dir.path()), Err(StateError::Busy { .. })));
        drop(first);
        // As on a read-only disk; root may write whatever the mode says.
        fs::remove_file(dir.path().join("lock")).unwrap();
        fs::create_dir(dir.path().join("lock")).unwrap();
        let first = lock(dir.path()).unwrap();
        assert!(matches!(lock(dir.path()), Err(StateError::Busy { .. })));
        drop(first);
    }
}
