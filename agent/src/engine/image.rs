//! Images: pulling, what one is, and names for it.

use std::{collections::HashMap, fmt, time::Duration};

use bollard::{
    auth::DockerCredentials,
    query_parameters::{
        CreateImageOptionsBuilder, ListImagesOptionsBuilder, RemoveImageOptionsBuilder,
        TagImageOptionsBuilder,
    },
};
use copal_protocol::ids::Digest;
use futures_util::StreamExt;

use super::{Engine, EngineError, READ, WRITE, error::tidy};

/// A pull that says nothing for so long has hung. Extracting a large layer onto an SD card is silent for minutes on
/// old engines, and the loopback endpoint has its own, tighter limits towards the network.
const PULL_SILENCE: Duration = Duration::from_secs(900);

/// The engine's name of an image: what containers are made from, so that no moved tag matters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct ImageId(pub String);

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What an image in the engine is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageIdentity {
    /// The engine's id.
    pub id: ImageId,
    /// Digest of its config. With the containerd image store the engine does not tell it: there this is the id, and
    /// `manifest_digest` is what has to be compared.
    pub config_digest: Digest,
    /// With the containerd image store: the manifest (or index) it was pulled as, which covers the config digest.
    pub manifest_digest: Option<Digest>,
    /// The uncompressed layers, lowest first.
    pub diff_ids: Vec<Digest>,
    /// Operating system.
    pub os: String,
    /// Architecture, as OCI spells it.
    pub arch: String,
    /// Names that lead to it (`repo:tag`).
    pub tags: Vec<String>,
    /// Paths its config declares as volumes.
    pub volumes: Vec<String>,
}

/// A step of a pull, as the engine tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PullProgress {
    /// The layer, by the first digits of its digest; empty where it is about the whole.
    pub layer: String,
    /// The engine's word for what it does.
    pub status: String,
    /// Bytes had.
    pub current: u64,
    /// Bytes to have; 0 when not known.
    pub total: u64,
}

impl Engine {
    /// Pulls `reference`, telling `on` of each step. Dropping the future ends the pull.
    ///
    /// # Errors
    /// As the engine says; [`EngineError::Timeout`] where it falls silent.
    pub async fn pull(
        &self,
        reference: &str,
        user: &str,
        password: &str,
        on: &mut (dyn FnMut(PullProgress) + Send),
    ) -> Result<(), EngineError> {
        let docker = self.docker()?;
        let what = || format!("pulling {reference}");
        let credentials = DockerCredentials {
            username: Some(user.to_owned()),
            password: Some(password.to_owned()),
            ..DockerCredentials::default()
        };
        let options = CreateImageOptionsBuilder::default().from_image(reference).build();
        let mut stream = Box::pin(docker.create_image(Some(options), None, Some(credentials)));
        loop {
            let next = tokio::time::timeout(PULL_SILENCE, stream.next())
                .await
                .map_err(|_| EngineError::Timeout { what: what(), after: PULL_SILENCE })?;
            let Some(step) = next else { return Ok(()) };
            let step = step.map_err(|e| EngineError::from_client(what(), self.host(), e))?;
            let (current, total) = bytes(step.progress_detail.as_ref());
            on(PullProgress {
                layer: tidy(&step.id.unwrap_or_default()),
                status: tidy(&step.status.unwrap_or_default()),
                current,
                total,
            });
        }
    }

    /// What the image behind an id or a reference is; `None` where there is none.
    ///
    /// # Errors
    /// As the engine says.
    pub async fn image(&self, id_or_ref: &str) -> Result<Option<ImageIdentity>, EngineError> {
        let what = format!("inspecting image {id_or_ref}");
        let name = id_or_ref.to_owned();
        let answer = match self.call(&what, READ, |d| async move { d.inspect_image(&name).await }).await {
            Ok(answer) => answer,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error),
        };
        let broken = |detail: String| EngineError::Broken { what: what.clone(), detail };
        let digest = |text: &str| text.parse::<Digest>().map_err(|e| broken(e.to_string()));
        let id = answer.id.ok_or_else(|| broken("the engine gives no id".into()))?;
        let diff_ids = answer
            .root_fs
            .and_then(|fs| fs.layers)
            .unwrap_or_default()
            .iter()
            .map(|layer| digest(layer))
            .collect::<Result<_, _>>()?;
        Ok(Some(ImageIdentity {
            config_digest: digest(&id)?,
            manifest_digest: answer.descriptor.and_then(|d| d.digest).map(|d| digest(&d)).transpose()?,
            diff_ids,
            os: answer.os.unwrap_or_default(),
            arch: answer.architecture.unwrap_or_default(),
            tags: answer.repo_tags.unwrap_or_default(),
            volumes: answer.config.and_then(|c| c.volumes).unwrap_or_default(),
            id: ImageId(id),
        }))
    }

    /// Gives an image a name, `repo` and `tag`.
    ///
    /// # Errors
    /// As the engine says.
    pub async fn tag(&self, id: &ImageId, repo: &str, tag: &str) -> Result<(), EngineError> {
        let options = TagImageOptionsBuilder::default().repo(repo).tag(tag).build();
        let id = id.0.clone();
        self.call(
            format!("tagging {repo}:{tag}"),
            WRITE,
            |d| async move { d.tag_image(&id, Some(options)).await },
        )
        .await
    }

    /// Takes a name (`repo:tag` or `repo@digest`) away, and the image with its last one. Never by force: an image that a
    /// container uses stays. Fine where the name is gone already.
    ///
    /// # Errors
    /// [`EngineError::Conflict`] where it is in use; as the engine says.
    pub async fn untag(&self, reference: &str) -> Result<(), EngineError> {
        let options = RemoveImageOptionsBuilder::default().force(false).noprune(false).build();
        let name = reference.to_owned();
        let result = self
            .call(format!("removing image {reference}"), WRITE, |d| async move {
                d.remove_image(&name, Some(options), None).await.map(drop)
            })
            .await;
        EngineError::gone_is_fine(result)
    }

    /// As [`Engine::untag`].
    ///
    /// # Errors
    /// As [`Engine::untag`].
    pub async fn remove_image(&self, reference: &str) -> Result<(), EngineError> {
        self.untag(reference).await
    }

    /// Every name `repository:tag`, with the image it leads to. Only those are asked for: an engine may hold thousands of others.
    ///
    /// # Errors
    /// As the engine says.
    pub async fn image_names(&self, repository: &str) -> Result<Vec<(String, ImageId)>, EngineError> {
        let prefix = format!("{repository}:");
        let filters = HashMap::from([("reference", vec![repository])]);
        let options = ListImagesOptionsBuilder::default().all(false).filters(&filters).build();
        let images =
            self.call("listing images", READ, |d| async move { d.list_images(Some(options)).await }).await?;
        let mut names = Vec::new();
        for image in images {
            let ours = image.repo_tags.into_iter().filter(|name| name.starts_with(&prefix));
            names.extend(ours.map(|name| (name, ImageId(image.id.clone()))));
        }
        names.sort();
        Ok(names)
    }
}

fn bytes(detail: Option<&bollard::models::ProgressDetail>) -> (u64, u64) {
    let count = |n: Option<i64>| n.and_then(|n| u64::try_from(n).ok()).unwrap_or(0);
    detail.map_or((0, 0), |d| (count(d.current), count(d.total)))
}
