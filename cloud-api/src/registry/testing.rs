//! What tests of the registry and its neighbours stand on.

use copal_protocol::ids::Digest;

use super::{MANIFEST_TYPE, put_manifest};
use crate::{
    app::{self, App},
    blobs,
    config::Config,
};

/// A cloud in a folder of its own.
pub(crate) async fn app() -> (tempfile::TempDir, App) {
    let dir = tempfile::tempdir().unwrap();
    let config = Config::local(dir.path().join("data"));
    let app = app::open(config).await.unwrap();
    (dir, app)
}

/// An image of one layer with these bytes, pushed; answers manifest and layer.
pub(crate) async fn image(app: &App, repo: &str, layer: &[u8], tag: Option<&str>) -> (Digest, Digest) {
    let config = blobs::store_bytes(app, repo, b"{}").await.unwrap();
    let digest = blobs::store_bytes(app, repo, layer).await.unwrap();
    let body = serde_json::json!({
        "schemaVersion": 2, "mediaType": MANIFEST_TYPE,
        "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": 2 },
        "layers": [{ "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest, "size": layer.len() }],
    });
    let (manifest, _) =
        put_manifest(app, repo, tag, MANIFEST_TYPE, body.to_string().as_bytes()).await.unwrap();
    (manifest, digest)
}
