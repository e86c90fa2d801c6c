//! Bringing images, and letting go of them.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use copal_protocol::{
    documents::{ImageRef, Layer},
    ids::{AppId, Digest, Name},
    verify::Code,
};
use futures_util::{FutureExt as _, future::BoxFuture};
use tokio::sync::Semaphore;

use super::{
    endpoint::{Endpoint, USER},
    layer::from_session,
    plan::{MAX_CONFIG, Plan, check_config, check_diff_ids, check_platform, manifest},
    space,
};
use crate::{
    apply::ports::{ApplyError, Images, ProgressSink},
    engine::{Engine, ImageId, ImageIdentity, Storage},
    identity::Session,
};

/// Pulls at a time: more only fight for the same line and card.
const AT_ONCE: usize = 3;

/// Brings images into the engine through the local endpoint.
pub struct Pulls {
    engine: Engine,
    session: Arc<Session>,
    /// Our names for images: `copal.local/<instance>`; agents that share an engine do not take each other's away.
    names: String,
    /// `linux/arm64`.
    platform: String,
    slots: Semaphore,
    /// One pull of an image at a time, however many services want it.
    ongoing: Mutex<HashMap<Digest, Arc<tokio::sync::Mutex<()>>>>,
}

impl Pulls {
    /// Pulls for this agent.
    #[must_use]
    pub fn new(engine: Engine, session: Arc<Session>, platform: String) -> Self {
        let instance = session.identity(crate::identity::Identity::instance);
        Self {
            engine,
            session,
            names: format!("copal.local/{}", &instance[..16]),
            platform,
            slots: Semaphore::new(AT_ONCE),
            ongoing: Mutex::default(),
        }
    }

    fn name(&self, image: &ImageRef) -> String {
        format!("{}:{}", self.names, image.config_digest.hex())
    }

    async fn find(&self, image: &ImageRef) -> Result<Option<ImageId>, ApplyError> {
        let engine = |e| ApplyError::engine("image_failed", &e);
        let name = self.name(image);
        // Where the id is the config digest, whoever brought the image; else under the name we gave it.
        for reference in [image.config_digest.to_string(), name.clone()] {
            let Some(found) = self.engine.image(&reference).await.map_err(engine)? else { continue };
            if check_identity(image, &self.platform, &found).is_err() {
                continue;
            }
            if !found.tags.contains(&name) {
                self.engine.tag(&found.id, &self.names, &image.config_digest.hex()).await.map_err(engine)?;
            }
            return Ok(Some(found.id));
        }
        Ok(None)
    }

    async fn bring(&self, image: &ImageRef, progress: &ProgressSink) -> Result<ImageId, ApplyError> {
        let ongoing = {
            let mut map = self.ongoing.lock().unwrap_or_else(PoisonError::into_inner);
            map.retain(|_, lock| Arc::strong_count(lock) > 1);
            map.entry(image.config_digest).or_default().clone()
        };
        let _one = ongoing.lock().await;
        if let Some(id) = self.find(image).await? {
            return Ok(id);
        }
        let _slot = self
            .slots
            .acquire()
            .await
            .map_err(|_| ApplyError::new("image_failed", "the agent is stopping"))?;
        let engine = |e| ApplyError::engine("image_failed", &e);
        let Storage { containerd, root } = self.engine.storage().await.map_err(engine)?;
        if let Some(root) = root {
            space::check(image, &root)?;
        }
        let config = self.config(image).await?;
        let plan = Plan::new(image, containerd, config)?;
        let endpoint = Endpoint::open(plan, &image.repo, self.session.clone(), progress.clone()).await?;
        let reference = endpoint.reference.clone();
        let mut on = |_| {};
        let pulled = tokio::select! {
            pulled = self.engine.pull(&reference, USER, &endpoint.password, &mut on) => pulled,
            failure = endpoint.failure() => return Err(failure),
        };
        if let Err(error) = pulled {
            return Err(endpoint.take_failure().unwrap_or_else(|| engine(error)));
        }
        let found = self.engine.image(&reference).await.map_err(engine)?.ok_or_else(|| {
            ApplyError::new("image_failed", format!("the engine pulled {reference}, but does not know it"))
        })?;
        let checked = check_identity(image, &self.platform, &found);
        if checked.is_ok() {
            self.engine.tag(&found.id, &self.names, &image.config_digest.hex()).await.map_err(engine)?;
        }
        // The endpoint's own name leads nowhere after this pull.
        if let Err(e) = self.engine.untag(&reference).await {
            tracing::debug!(reference, error = %e, "a name of a finished pull stays");
        }
        checked.map(|()| found.id)
    }

    async fn config(&self, image: &ImageRef) -> Result<Vec<u8>, ApplyError> {
        if image.config_size > MAX_CONFIG {
            return Err(ApplyError::new(
                Code::TooLarge.as_str(),
                format!("an image config of {} bytes; at most {MAX_CONFIG} are accepted", image.config_size),
            ));
        }
        let what = format!("config {}", image.config_digest);
        let path = format!("/v2/{}/blobs/{}", image.repo, image.config_digest);
        let mut blob = self.session.blob(&path, 0).await.map_err(|e| from_session(&what, &e))?;
        let mut bytes = Vec::new();
        while let Some(chunk) = blob.chunk().await.map_err(|e| from_session(&what, &e.into()))? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() as u64 > image.config_size {
                return Err(ApplyError::new(
                    Code::PullVerify.as_str(),
                    format!(
                        "{what} of the cloud's registry is longer than its signed {} bytes",
                        image.config_size
                    ),
                ));
            }
        }
        check_config(image, &self.platform, &bytes)?;
        Ok(bytes)
    }
}

/// Whether what the engine has is what is signed: config digest, layers, platform.
fn check_identity(image: &ImageRef, platform: &str, found: &ImageIdentity) -> Result<(), ApplyError> {
    check_diff_ids(image, &found.diff_ids)?;
    check_platform(platform, &found.os, &found.arch)?;
    let (expected, shown) = match found.manifest_digest {
        // The containerd image store names the manifest; ours is the same bytes each time, and covers the config.
        Some(shown) if found.config_digest != image.config_digest => {
            (Digest::of(&manifest(image, true)?.0), shown)
        }
        _ => (image.config_digest, found.config_digest),
    };
    if expected == shown {
        return Ok(());
    }
    Err(ApplyError::new(
        Code::ImageId.as_str(),
        format!("the engine's image is {shown} where {expected} was pulled; it is not used"),
    ))
}

impl Images for Pulls {
    fn ensure<'a>(
        &'a self,
        app: AppId,
        service: &'a Name,
        image: &'a ImageRef,
        progress: &'a ProgressSink,
    ) -> BoxFuture<'a, Result<ImageId, ApplyError>> {
        async move {
            let total: u64 = image.layers.iter().map(|l: &Layer| l.size).sum();
            progress(0, total);
            let result = self.bring(image, progress).await;
            match &result {
                Ok(id) => {
                    progress(total, total);
                    tracing::info!(%app, %service, image = %id, "the image is here");
                }
                Err(e) => {
                    // The lane that asked says it aloud, and knows how often it did.
                    tracing::debug!(%app, %service, code = e.code, message = e.message, "the image failed");
                }
            }
            result
        }
        .boxed()
    }

    fn present<'a>(&'a self, image: &'a ImageRef) -> BoxFuture<'a, Result<Option<ImageId>, ApplyError>> {
        self.find(image).boxed()
    }

    fn release<'a>(&'a self, image: &'a ImageId) -> BoxFuture<'a, Result<(), ApplyError>> {
        async move {
            let failed = |e| ApplyError::engine("image_failed", &e);
            let ours = self.engine.image_names(&self.names).await.map_err(failed)?;
            for (name, _) in ours.iter().filter(|(_, id)| id == image) {
                self.engine.untag(name).await.map_err(failed)?;
            }
            Ok(())
        }
        .boxed()
    }

    fn retain<'a>(&'a self, keep: &'a BTreeSet<Digest>) -> BoxFuture<'a, Result<(), ApplyError>> {
        async move {
            let prefix = format!("{}:", self.names);
            let ours = self
                .engine
                .image_names(&self.names)
                .await
                .map_err(|e| ApplyError::engine("image_failed", &e))?;
            for (name, _) in ours {
                let kept = name
                    .strip_prefix(&prefix)
                    .and_then(|hex| format!("sha256:{hex}").parse::<Digest>().ok())
                    .is_none_or(|digest| keep.contains(&digest));
                if kept {
                    continue;
                }
                match self.engine.untag(&name).await {
                    Ok(()) => tracing::info!(name, "an image nothing needs any more is let go"),
                    Err(e) => tracing::debug!(name, error = %e, "an image stays for now"),
                }
            }
            Ok(())
        }
        .boxed()
    }
}
