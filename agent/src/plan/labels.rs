//! What our objects are called, and how they are known again.

use copal_protocol::ids::{AppId, Name};
use sha2::{Digest as _, Sha256};

/// Which agent an object belongs to: several may share an engine.
pub const INSTANCE: &str = "io.copal.instance";
/// The app.
pub const APP: &str = "io.copal.app";
/// The service of a container.
pub const SERVICE: &str = "io.copal.service";
/// The network, as the release names it.
pub const NETWORK: &str = "io.copal.network";
/// The volume, as the release names it.
pub const VOLUME: &str = "io.copal.volume";
/// Hash of what was requested; see [`super::hash`].
pub const CONFIG_HASH: &str = "io.copal.config-hash";

/// Name of an object: `<prefix>-<first 8 digits of the app>-<name>`.
#[must_use]
pub fn object_name(prefix: &str, app: AppId, name: &str) -> String {
    format!("{prefix}-{}-{name}", short(app))
}

/// Name of a container that is to take over: no service can have it, whatever it is called.
#[must_use]
pub fn next_name(prefix: &str, app: AppId, service: &Name, n: u32) -> String {
    format!("{prefix}-{}.{n}-{service}", short(app))
}

/// Name of a volume that the release leaves nameless (or only the image declares): the same for every container of the
/// service, so that its data outlives an update.
#[must_use]
pub fn nameless_volume(prefix: &str, app: AppId, service: &Name, target: &str) -> String {
    let hash = hex::encode(&Sha256::digest(target.as_bytes())[..6]);
    format!("{}.{hash}", object_name(prefix, app, service.as_str()))
}

/// The first 8 digits.
#[must_use]
pub fn short(app: AppId) -> String {
    let mut text = app.to_string();
    text.truncate(8);
    text
}
