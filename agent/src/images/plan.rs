//! What a pull may ask for: our manifest, the signed config, the layers. Pure.

use std::collections::BTreeMap;

use copal_protocol::{
    documents::{ImageRef, Layer},
    ids::Digest,
    verify::Code,
};
use serde::Deserialize;
use serde_json::json;

use crate::apply::ports::ApplyError;

pub(super) const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
const TAR_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// A config blob larger than this is no image's.
pub(super) const MAX_CONFIG: u64 = 4 << 20;
/// More layers than any engine accepts.
const MAX_LAYERS: usize = 256;

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packing {
    Plain,
    Gzip,
}

/// What the engine is given of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PlannedLayer {
    pub layer: Layer,
    pub packing: Packing,
    /// Handed on unpacked, named by its diff_id; else as stored.
    pub unpack: bool,
}

impl PlannedLayer {
    /// The digest the engine asks for it by.
    pub fn name(&self) -> Digest {
        if self.unpack { self.layer.diff_id } else { self.layer.digest }
    }
}

/// One pull.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub repo: String,
    pub config_digest: Digest,
    pub config: Vec<u8>,
    pub manifest: Vec<u8>,
    pub manifest_digest: Digest,
    pub layers: BTreeMap<Digest, PlannedLayer>,
}

/// How a layer is compressed, by its signed description.
pub(super) fn packing(layer: &Layer) -> Result<Packing, ApplyError> {
    if layer.digest == layer.diff_id || layer.media_type.ends_with(".tar") {
        Ok(Packing::Plain)
    } else if layer.media_type.ends_with("gzip") {
        Ok(Packing::Gzip)
    } else {
        Err(ApplyError::new(
            "image_failed",
            format!(
                "layer {} is a {:?}; this agent unpacks plain and gzip layers: build the image with gzip compression",
                layer.digest, layer.media_type
            ),
        ))
    }
}

/// The manifest the engine is given. The same image gives the same bytes: with the containerd image store its digest is
/// the image's id. `containerd` engines get layers as stored, others unpacked.
pub(super) fn manifest(
    image: &ImageRef,
    containerd: bool,
) -> Result<(Vec<u8>, Vec<PlannedLayer>), ApplyError> {
    if image.layers.is_empty() || image.layers.len() > MAX_LAYERS {
        return Err(ApplyError::new(
            Code::PullVerify.as_str(),
            format!("an image of {} layers; 1 to {MAX_LAYERS} are possible", image.layers.len()),
        ));
    }
    let layers: Vec<PlannedLayer> = image
        .layers
        .iter()
        .map(|layer| Ok(PlannedLayer { layer: layer.clone(), packing: packing(layer)?, unpack: !containerd }))
        .collect::<Result<_, ApplyError>>()?;
    let listed: Vec<_> = layers
        .iter()
        .map(|planned| {
            let media_type = if planned.unpack || planned.packing == Packing::Plain { TAR } else { TAR_GZIP };
            // The unpacked size of a gzip layer is not signed; engines without the containerd store take the stream's
            // length for progress only.
            json!({"mediaType": media_type, "digest": planned.name(), "size": planned.layer.size})
        })
        .collect();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": {"mediaType": CONFIG_TYPE, "digest": image.config_digest, "size": image.config_size},
        "layers": listed,
    });
    Ok((manifest.to_string().into_bytes(), layers))
}

/// The parts of an image config that must agree with what is signed.
#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<Digest>,
}

/// Whether the fetched config is the signed one, names the signed layers, and is for this platform (`linux/arm64`).
pub(super) fn check_config(image: &ImageRef, platform: &str, bytes: &[u8]) -> Result<(), ApplyError> {
    let digest = Digest::of(bytes);
    if digest != image.config_digest {
        return Err(ApplyError::new(
            Code::PullVerify.as_str(),
            format!("the registry served config {digest} where {} is signed", image.config_digest),
        ));
    }
    let config: Config = serde_json::from_slice(bytes).map_err(|e| {
        ApplyError::new(
            Code::PullVerify.as_str(),
            format!("the signed config {digest} is no image config: {e}"),
        )
    })?;
    check_diff_ids(image, &config.rootfs.diff_ids)?;
    check_platform(platform, &config.os, &config.architecture)
}

/// Whether the layers are the signed ones, in order.
pub(super) fn check_diff_ids(image: &ImageRef, found: &[Digest]) -> Result<(), ApplyError> {
    if found.iter().eq(image.layers.iter().map(|l| &l.diff_id)) {
        return Ok(());
    }
    Err(ApplyError::new(
        Code::DiffIds.as_str(),
        format!("image {} has other layers than are signed", image.config_digest),
    ))
}

/// Whether the image is for this platform.
pub(super) fn check_platform(platform: &str, os: &str, arch: &str) -> Result<(), ApplyError> {
    let found = format!("{os}/{arch}");
    // `linux/arm/v7` and `linux/arm` are told apart by the release's own platform key, not by the config.
    if platform == found || platform.starts_with(&format!("{found}/")) {
        return Ok(());
    }
    Err(ApplyError::new(
        Code::Platform.as_str(),
        format!("the image is built for {found}, this device is {platform}"),
    ))
}

impl Plan {
    pub fn new(image: &ImageRef, containerd: bool, config: Vec<u8>) -> Result<Self, ApplyError> {
        let (manifest, layers) = manifest(image, containerd)?;
        Ok(Self {
            repo: format!("copal/{}", &image.config_digest.hex()[..40]),
            config_digest: image.config_digest,
            config,
            manifest_digest: Digest::of(&manifest),
            manifest,
            layers: layers.into_iter().map(|l| (l.name(), l)).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> ImageRef {
        let layer = |n: u8, media_type: &str| Layer {
            digest: Digest::of(&[n]),
            size: 10,
            media_type: media_type.to_owned(),
            diff_id: Digest::of(&[n, 0]),
        };
        ImageRef {
            repo: "demo/web".to_owned(),
            manifest_digest: Digest::of(b"m"),
            config_digest: Digest::of(b"c"),
            config_size: 1,
            size: 21,
            layers: vec![
                layer(1, "application/vnd.docker.image.rootfs.diff.tar.gzip"),
                layer(2, "application/vnd.oci.image.layer.v1.tar"),
            ],
        }
    }

    #[test]
    fn the_engine_is_given_unpacked_layers_by_their_diff_id() {
        let (manifest, layers) = manifest(&image(), false).unwrap();
        let value: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
        assert_eq!(value["layers"][0]["digest"], image().layers[0].diff_id.to_string());
        assert_eq!(value["layers"][0]["mediaType"], TAR);
        assert_eq!(value["config"]["digest"], image().config_digest.to_string());
        assert_eq!(layers[0].packing, Packing::Gzip);
        assert_eq!(layers[1].packing, Packing::Plain);
    }

    #[test]
    fn a_containerd_engine_is_given_layers_as_stored() {
        let (manifest, _) = manifest(&image(), true).unwrap();
        let value: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
        assert_eq!(value["layers"][0]["digest"], image().layers[0].digest.to_string());
        assert_eq!(value["layers"][0]["mediaType"], TAR_GZIP);
        assert_eq!(manifest, super::manifest(&image(), true).unwrap().0, "its digest is the image's id");
    }

    #[test]
    fn a_layer_that_cannot_be_unpacked_is_refused_with_the_way_out() {
        let mut zstd = image();
        zstd.layers[0].media_type = "application/vnd.oci.image.layer.v1.tar+zstd".to_owned();
        let error = manifest(&zstd, false).unwrap_err();
        assert!(error.message.contains("gzip compression"), "{error}");
    }

    #[test]
    fn another_config_other_layers_or_another_platform_are_refused() {
        let mut image = image();
        let config = |arch: &str, diff_ids: &[Digest]| {
            json!({"os": "linux", "architecture": arch, "rootfs": {"type": "layers", "diff_ids": diff_ids}})
                .to_string()
                .into_bytes()
        };
        let ids: Vec<Digest> = image.layers.iter().map(|l| l.diff_id).collect();
        let good = config("arm64", &ids);
        assert_eq!(check_config(&image, "linux/arm64", &good).unwrap_err().code, "E_PULL_VERIFY");
        image.config_digest = Digest::of(&good);
        assert_eq!(check_config(&image, "linux/arm64", &good), Ok(()));
        assert_eq!(check_config(&image, "linux/amd64", &good).unwrap_err().code, "E_PLATFORM");
        let swapped = config("arm64", &[ids[1], ids[0]]);
        image.config_digest = Digest::of(&swapped);
        assert_eq!(check_config(&image, "linux/arm64", &swapped).unwrap_err().code, "E_DIFF_IDS");
    }
}
