//! What a manifest names. Read from JSON that may hold anything else besides; the bytes are kept as they came.

use copal_protocol::ids::Digest;
use serde::Deserialize;

/// The media type of image manifests the builder writes.
pub const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// The most things a manifest may name.
const MAX_NAMED: usize = 1000;

/// What one manifest names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Manifest {
    /// Blobs: config first, then layers; with their sizes.
    pub blobs: Vec<(Digest, u64)>,
    /// Manifests an index lists.
    pub manifests: Vec<Digest>,
    /// What it refers to.
    pub subject: Option<Digest>,
    /// Its artifact type; an image's is its config's media type.
    pub artifact_type: Option<String>,
    /// Shown in referrers.
    pub annotations: serde_json::Map<String, serde_json::Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wire {
    schema_version: u32,
    media_type: Option<String>,
    artifact_type: Option<String>,
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Vec<Descriptor>,
    #[serde(default)]
    manifests: Vec<Descriptor>,
    subject: Option<Descriptor>,
    #[serde(default)]
    annotations: serde_json::Map<String, serde_json::Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: String,
    digest: Digest,
    size: u64,
}

impl Manifest {
    /// Reads a manifest of a media type this registry takes.
    ///
    /// # Errors
    /// Says why it is none.
    pub fn parse(media_type: &str, body: &[u8]) -> Result<Self, String> {
        let index = match media_type {
            MANIFEST_TYPE | DOCKER_MANIFEST => false,
            OCI_INDEX | DOCKER_LIST => true,
            other => return Err(format!("manifests of the type {other:?} are not taken")),
        };
        let wire: Wire = serde_json::from_slice(body).map_err(|e| format!("not a manifest: {e}"))?;
        if wire.schema_version != 2 {
            return Err(format!("schemaVersion {} is not taken, only 2", wire.schema_version));
        }
        if wire.media_type.as_deref().is_some_and(|t| t != media_type) {
            return Err("its mediaType differs from the Content-Type".to_owned());
        }
        if wire.layers.len() + wire.manifests.len() > MAX_NAMED {
            return Err(format!("it names more than {MAX_NAMED} things"));
        }
        let subject = wire.subject.map(|s| s.digest);
        if index {
            if wire.config.is_some() || !wire.layers.is_empty() {
                return Err("an index has neither config nor layers".to_owned());
            }
            let manifests = wire.manifests.into_iter().map(|m| m.digest).collect();
            return Ok(Self {
                manifests,
                subject,
                artifact_type: wire.artifact_type,
                annotations: wire.annotations,
                ..Self::default()
            });
        }
        let config = wire.config.ok_or("it has no config")?;
        if !wire.manifests.is_empty() {
            return Err("an image manifest lists no manifests".to_owned());
        }
        let artifact_type = wire.artifact_type.or(Some(config.media_type));
        let blobs = std::iter::once((config.digest, config.size))
            .chain(wire.layers.into_iter().map(|l| (l.digest, l.size)))
            .collect();
        Ok(Self { blobs, manifests: Vec::new(), subject, artifact_type, annotations: wire.annotations })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifests_say_what_they_need_and_odd_ones_are_refused() {
        let d = Digest::of(b"x");
        let image = format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"c","digest":"{d}","size":1}},"layers":[{{"mediaType":"l","digest":"{d}","size":2}}]}}"#
        );
        let parsed = Manifest::parse(MANIFEST_TYPE, image.as_bytes()).unwrap();
        assert_eq!(parsed.blobs, [(d, 1), (d, 2)]);
        assert_eq!(parsed.artifact_type.as_deref(), Some("c"));
        assert!(Manifest::parse(OCI_INDEX, image.as_bytes()).is_err());
        assert!(Manifest::parse("text/html", image.as_bytes()).is_err());
        assert!(Manifest::parse(MANIFEST_TYPE, br#"{"schemaVersion":1}"#).is_err());
        let other = image.replacen('{', r#"{"mediaType":"application/vnd.oci.image.index.v1+json","#, 1);
        assert!(Manifest::parse(MANIFEST_TYPE, other.as_bytes()).is_err());
    }
}
