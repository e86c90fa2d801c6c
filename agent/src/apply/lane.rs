//! Carries out the steps of one lane, one after another. Between two effects it can be cancelled; whatever it leaves is
//! seen by the next look at the engine, so nothing is written down.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use copal_protocol::{
    ids::{AppId, Name},
    spec::Mount,
    verify::Code,
};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::{
    patience::patiently,
    ports::{ApplyError, Images, ProgressSink},
    shared::{Locked, Shared},
};
use crate::{
    engine::{
        ContainerRequest, EngineApi, EngineError, ImageId, Labels, MountPoint, NetworkRequest, RunState,
        VolumeRequest, service_ref,
    },
    plan::{
        Action, Lane, Which, labels,
        wanted::{Context, SECRETS_DIR, SHARED_DIR, WantedApp, WantedService},
    },
};

/// Images that come at once; more only slows each.
const DOWNLOADS: usize = 3;
/// Lanes that change the engine at once.
const LANES: usize = 16;
/// A hand-over that hears nothing ends after this, where the service says nothing.
const HANDOVER_MS: u64 = 60_000;

/// What every lane works with.
#[derive(Clone)]
pub struct Hands {
    engine: Arc<dyn EngineApi>,
    images: Arc<dyn Images>,
    cx: Arc<Context>,
    shared: Arc<Shared>,
    downloads: Arc<Semaphore>,
    lanes: Arc<Semaphore>,
}

/// What one lane does.
pub struct Work {
    /// The app.
    pub app: AppId,
    /// The object.
    pub lane: Lane,
    /// The effects, none of which waits for anything any more.
    pub actions: Vec<Action>,
    /// What should run; absent where the app goes.
    pub wanted: Option<Arc<WantedApp>>,
    /// The service's image, where it is here.
    pub image: Option<ImageId>,
    /// Told of its download.
    pub progress: ProgressSink,
    /// Set while it is past its download.
    pub stage: Arc<Mutex<Stage>>,
}

/// What a lane is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Its image comes.
    Downloading,
    /// It changes the engine.
    Applying,
}

/// How a lane ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// All its steps are done.
    Done,
    /// A newer target wants something else.
    Cancelled,
    /// The service holds its update lock.
    Locked,
    /// A step failed.
    Failed(ApplyError),
}

impl Hands {
    /// Hands that work on `engine`.
    #[must_use]
    pub fn new(
        engine: Arc<dyn EngineApi>,
        images: Arc<dyn Images>,
        cx: Arc<Context>,
        shared: Shared,
    ) -> Self {
        Self {
            engine,
            images,
            cx,
            shared: Arc::new(shared),
            downloads: Arc::new(Semaphore::new(DOWNLOADS)),
            lanes: Arc::new(Semaphore::new(LANES)),
        }
    }

    /// Makes the folders of every service, where they are not there: after a boot the engine has started containers whose
    /// lock file is gone with the run folder.
    pub fn prepare(&self, app: AppId, wanted: &WantedApp) {
        for (name, service) in &wanted.services {
            if let Err(error) = self.shared.prepare(app, name, service) {
                tracing::warn!(%app, service = %name, %error, "its folders cannot be made");
            }
        }
    }

    /// Does the work.
    pub async fn run(&self, work: Work, cancel: CancellationToken) -> Outcome {
        let mut run = Run {
            hands: self,
            work: &work,
            cancel: &cancel,
            made: None,
            image: work.image.clone(),
            _lock: None,
        };
        for action in &work.actions {
            if cancel.is_cancelled() {
                return Outcome::Cancelled;
            }
            tracing::info!(app = %labels::short(work.app), lane = %work.lane, "{action}");
            match run.step(action).await {
                Ok(()) => {}
                Err(Stop::Outcome(outcome)) => return outcome,
                Err(Stop::Error(error)) => return Outcome::Failed(error),
            }
        }
        if let Lane::Service(name) = &work.lane {
            match work.wanted.as_ref().and_then(|w| w.services.get(name)) {
                Some(service) => self.shared.tidy_secrets(work.app, name, Some(&service.hash)),
                None => self.shared.forget(work.app, name),
            }
        }
        Outcome::Done
    }
}

enum Stop {
    Outcome(Outcome),
    Error(ApplyError),
}

impl From<ApplyError> for Stop {
    fn from(error: ApplyError) -> Self {
        Self::Error(error)
    }
}

#[allow(clippy::needless_pass_by_value, reason = "goes into map_err")]
fn start_failed(error: EngineError) -> Stop {
    Stop::Error(ApplyError::engine("start_failed", &error))
}

struct Run<'a> {
    hands: &'a Hands,
    work: &'a Work,
    cancel: &'a CancellationToken,
    made: Option<String>,
    image: Option<ImageId>,
    /// Held until the lane ends, so that the service cannot begin what must not be interrupted.
    _lock: Option<Locked>,
}

impl Run<'_> {
    fn service(&self) -> Result<(&Name, &WantedService), ApplyError> {
        let wanted = self.work.wanted.as_ref();
        self.work.lane.service().and_then(|name| Some((name, wanted?.services.get(name)?))).ok_or_else(|| {
            ApplyError::new("start_failed", format!("{} is not wanted any more", self.work.lane))
        })
    }

    fn id(&self, which: &Which) -> Result<String, ApplyError> {
        match which {
            Which::Id(id) => Ok(id.clone()),
            Which::New => self.made.clone().ok_or_else(|| {
                ApplyError::new("start_failed", "the new container was not made in this pass")
            }),
        }
    }

    async fn step(&mut self, action: &Action) -> Result<(), Stop> {
        let engine = &self.hands.engine;
        let downloads = matches!(action, Action::Download);
        *self.work.stage.lock().unwrap_or_else(PoisonError::into_inner) =
            if downloads { Stage::Downloading } else { Stage::Applying };
        if downloads {
            return self.download().await;
        }
        if let Action::HandOver(which) = action {
            return self.hand_over(&self.id(which)?).await;
        }
        let _permit = self.hands.lanes.acquire().await;
        match action {
            Action::Download | Action::HandOver(_) => {}
            Action::ForgetImage(image) => {
                // Only room is at stake: an image in use stays, and the download says if there is too little.
                if let Err(error) = self.hands.images.release(image).await {
                    tracing::warn!(%image, %error, "the old image stays");
                }
            }
            Action::Create { name, peers } => self.create(name, peers).await?,
            Action::Join(which, network) => {
                let id = self.id(which)?;
                let (_, service) = self.service()?;
                if let Some(join) = service.joins.get(network) {
                    engine.join(&id, join).await.map_err(start_failed)?;
                }
            }
            Action::Start(which) => {
                let id = self.id(which)?;
                let (name, service) = self.service()?;
                self.prepare(name, service)?;
                if service.strategy == copal_protocol::spec::UpdateStrategy::HandOver {
                    self.hands.shared.clear_handover(self.work.app, name);
                }
                engine.start(&id).await.map_err(start_failed)?;
            }
            Action::Lock => self.lock()?,
            Action::Stop { id, grace_s } => engine.stop(id, *grace_s).await.map_err(start_failed)?,
            Action::Remove(id) => patiently(|| engine.remove(id)).await.map_err(start_failed)?,
            Action::Rename(which, name) => {
                let id = self.id(which)?;
                patiently(|| engine.rename(&id, name)).await.map_err(start_failed)?;
            }
            Action::CreateNetwork(full) => self.create_network(full).await?,
            Action::Leave { container, network } => {
                engine.leave(container, network).await.map_err(start_failed)?;
            }
            Action::RemoveNetwork { id, .. } => engine.remove_network(id).await.map_err(start_failed)?,
            Action::CreateVolume(full) => self.create_volume(full).await?,
        }
        Ok(())
    }

    async fn download(&mut self) -> Result<(), Stop> {
        let (name, service) = self.service()?;
        let (name, image) = (name.clone(), service.image.clone());
        let fetch = async {
            let _permit = self.hands.downloads.acquire().await;
            self.hands.images.ensure(self.work.app, &name, &image, &self.work.progress).await
        };
        let id = tokio::select! {
            () = self.cancel.cancelled() => return Err(Stop::Outcome(Outcome::Cancelled)),
            result = fetch => result?,
        };
        self.image = Some(id);
        Ok(())
    }

    fn lock(&mut self) -> Result<(), Stop> {
        let Some(name) = self.work.lane.service() else { return Ok(()) };
        match self.hands.shared.lock(self.work.app, name) {
            Ok(Locked::Theirs) => Err(Stop::Outcome(Outcome::Locked)),
            Ok(lock) => {
                self._lock = Some(lock);
                Ok(())
            }
            Err(error) => Err(ApplyError::new(
                "start_failed",
                format!("the update lock of service {name} cannot be asked for: {error}"),
            )
            .into()),
        }
    }

    fn prepare(&self, name: &Name, service: &WantedService) -> Result<(), Stop> {
        self.hands.shared.prepare(self.work.app, name, service).map_err(|error| {
            let code = match error.raw_os_error() {
                Some(nix::libc::ENOSPC) => Code::NoSpace.as_str(),
                _ => "start_failed",
            };
            ApplyError::new(code, format!("the folders of service {name} cannot be made: {error}")).into()
        })
    }

    fn labels(&self, key: &str, value: &str, hash: &str, theirs: &Labels) -> Labels {
        let mut all = theirs.clone();
        let ours = [
            (labels::INSTANCE, self.hands.cx.instance.clone()),
            (labels::APP, self.work.app.to_string()),
            (key, value.to_owned()),
            (labels::CONFIG_HASH, hash.to_owned()),
        ];
        all.extend(ours.map(|(key, value)| (key.to_owned(), value)));
        all
    }

    async fn create(&mut self, full: &str, peers: &BTreeMap<Name, String>) -> Result<(), Stop> {
        let (name, service) = self.service()?;
        let engine = &self.hands.engine;
        let image = match &self.image {
            Some(image) => image.clone(),
            None => self.hands.images.present(&service.image).await?.ok_or_else(|| {
                ApplyError::new("image_failed", format!("the image of service {name} is gone again"))
            })?,
        };
        self.prepare(name, service)?;
        let mounts = self.mounts(name, service, &image).await?;
        let resolve = |mode: &Option<String>| match service_ref(mode.as_deref()) {
            Some(peer) => peers.get(&peer).map(|id| format!("container:{id}")),
            None => mode.clone(),
        };
        let request = ContainerRequest {
            name: full.to_owned(),
            image: image.clone(),
            env: service.env.clone(),
            labels: self.labels(labels::SERVICE, name.as_str(), &service.hash, &service.spec.labels),
            network: service.joins.values().next().cloned(),
            network_mode: resolve(&service.spec.network_mode),
            pid_mode: resolve(&service.spec.pid),
            ipc_mode: resolve(&service.spec.ipc),
            mounts,
            spec: service.spec.clone(),
        };
        let id = engine.create(&request).await.map_err(|error| match error {
            EngineError::Conflict { message, .. } => Stop::Error(ApplyError::new(
                "conflict",
                format!("service {name} needs the container name {full}: {message}"),
            )),
            other => start_failed(other),
        })?;
        // What the engine made is looked at before it runs: a moved tag, a proxy or a hook may have had a say.
        let seen = engine.container(&id).await.map_err(start_failed)?;
        let wrong = match &seen {
            None => Some((Code::ContainerDrift, "it is gone again".to_owned())),
            Some(c) if c.image != image => {
                Some((Code::ContainerImage, format!("it was made from {} instead of {image}", c.image)))
            }
            Some(c) if c.privileged != service.spec.privileged => {
                Some((Code::ContainerDrift, "its privileges are not those asked for".to_owned()))
            }
            Some(c) if c.labels.get(labels::CONFIG_HASH) != Some(&service.hash) => {
                Some((Code::ContainerDrift, "its labels are not those asked for".to_owned()))
            }
            Some(_) => None,
        };
        if let Some((code, why)) = wrong {
            patiently(|| engine.remove(&id)).await.map_err(start_failed)?;
            return Err(
                ApplyError::new(code.as_str(), format!("container {full} was not started: {why}")).into()
            );
        }
        self.made = Some(id);
        Ok(())
    }

    async fn mounts(
        &self,
        name: &Name,
        service: &WantedService,
        image: &ImageId,
    ) -> Result<BTreeMap<String, MountPoint>, Stop> {
        let (app, cx) = (self.work.app, &self.hands.cx);
        let mut mounts = BTreeMap::new();
        let mut nameless = Vec::new();
        for (target, mount) in &service.spec.mounts {
            let point = match mount {
                Mount::Volume { source, read_only, nocopy } => {
                    let volume = match source {
                        Some(source) => labels::object_name(&cx.prefix, app, source.as_str()),
                        None => {
                            nameless.push(target.clone());
                            labels::nameless_volume(&cx.prefix, app, name, target)
                        }
                    };
                    MountPoint::Volume { name: volume, read_only: *read_only, nocopy: *nocopy }
                }
                Mount::Bind { source, read_only, propagation } => MountPoint::Bind {
                    source: source.clone(),
                    read_only: *read_only,
                    propagation: propagation.clone(),
                    create: true,
                },
                Mount::Tmpfs { size, mode } => MountPoint::Tmpfs { size: *size, mode: *mode },
            };
            mounts.insert(target.clone(), point);
        }
        // What only the image declares would be a new, empty volume after each update.
        for target in self.hands.engine.image_volumes(image).await.map_err(start_failed)? {
            let bare = |path: &str| path.trim_end_matches('/').to_owned();
            if !mounts.keys().any(|path| bare(path) == bare(&target)) {
                let volume = labels::nameless_volume(&cx.prefix, app, name, &target);
                mounts.insert(
                    target.clone(),
                    MountPoint::Volume { name: volume, read_only: false, nocopy: false },
                );
                nameless.push(target);
            }
        }
        for target in nameless {
            let full = labels::nameless_volume(&cx.prefix, app, name, &target);
            let short =
                full.strip_prefix(&labels::object_name(&cx.prefix, app, "")).unwrap_or(&full).to_owned();
            let request = VolumeRequest {
                labels: self.labels(labels::VOLUME, &short, "", &Labels::new()),
                name: full,
                spec: copal_protocol::spec::VolumeSpec::default(),
            };
            self.hands.engine.create_volume(&request).await.map_err(start_failed)?;
        }
        let folder = self.hands.shared.folder(app, name);
        // Made by the engine at boot if need be: containers come up then before this agent does.
        mounts.insert(SHARED_DIR.into(), host_folder(&folder, false, true));
        if !service.secrets.is_empty() {
            let folder = self.hands.shared.secrets(app, name, &service.hash);
            mounts.insert(SECRETS_DIR.into(), host_folder(&folder, true, false));
        }
        Ok(mounts)
    }

    async fn create_network(&self, full: &str) -> Result<(), Stop> {
        let Lane::Network(name) = &self.work.lane else { return Ok(()) };
        let Some(network) = self.work.wanted.as_ref().and_then(|w| w.networks.get(name)) else {
            return Ok(());
        };
        let request = NetworkRequest {
            name: full.to_owned(),
            labels: self.labels(labels::NETWORK, name.as_str(), &network.hash, &network.spec.labels),
            spec: network.spec.clone(),
        };
        self.hands.engine.create_network(&request).await.map_err(start_failed)
    }

    async fn create_volume(&self, full: &str) -> Result<(), Stop> {
        let Lane::Volume(name) = &self.work.lane else { return Ok(()) };
        let Some(volume) = self.work.wanted.as_ref().and_then(|w| w.volumes.get(name)) else { return Ok(()) };
        let request = VolumeRequest {
            name: full.to_owned(),
            labels: self.labels(labels::VOLUME, name.as_str(), &volume.hash, &volume.spec.labels),
            spec: volume.spec.clone(),
        };
        self.hands.engine.create_volume(&request).await.map_err(start_failed)
    }

    /// Waits for the new container's word, or for as long as the service allows. If the new one ends meanwhile the old
    /// one stays.
    async fn hand_over(&self, id: &str) -> Result<(), Stop> {
        let (name, service) = self.service()?;
        let limit = Duration::from_millis(service.spec.handover_timeout_ms().unwrap_or(HANDOVER_MS));
        let deadline = tokio::time::Instant::now() + limit;
        let mut tick = 0_u32;
        loop {
            let over =
                self.hands.shared.handed_over(self.work.app, name) || tokio::time::Instant::now() >= deadline;
            if over || tick.is_multiple_of(4) {
                let seen = self.hands.engine.container(id).await.map_err(start_failed)?;
                match seen {
                    Some(c) if c.state == RunState::Running => {}
                    other => {
                        let code = other.map_or(0, |c| c.exit_code);
                        return Err(ApplyError::new(
                            "exited",
                            format!("the new container of service {name} ended before it took over, with code {code}"),
                        )
                        .into());
                    }
                }
            }
            if over {
                return Ok(());
            }
            tick += 1;
            tokio::select! {
                () = self.cancel.cancelled() => return Err(Stop::Outcome(Outcome::Cancelled)),
                () = tokio::time::sleep(Duration::from_millis(250)) => {}
            }
        }
    }
}

fn host_folder(path: &std::path::Path, read_only: bool, create: bool) -> MountPoint {
    MountPoint::Bind { source: path.to_string_lossy().into_owned(), read_only, propagation: None, create }
}
