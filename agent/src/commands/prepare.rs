//! `copal-agent prepare`: makes the run folders before the engine starts.
//!
//! After a boot the engine starts containers again by itself, and they bind folders of the run folder, which a tmpfs has
//! lost. A oneshot unit ordered before the engine runs this: lock folders and secrets of what was committed and of what
//! is assigned come back from the state folder, without a network.

use std::{
    fs,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::Path,
};

use anyhow::Context as _;

use super::rooms::Rooms;
use crate::{
    apply::{ports::Ledger as _, shared::Shared},
    plan::wanted,
    settings::Places,
    target::model::AppTarget,
};

/// Makes the run folders and those of every remembered app's services.
///
/// # Errors
/// Where one cannot be made.
pub fn prepare(places: &Places) -> anyhow::Result<()> {
    folders(places)?;
    time_folder(Path::new("/run/systemd"));
    let rooms = Rooms::open(places)?;
    let Some(cx) = rooms.context(places) else { return Ok(()) };
    let shared = Shared::new(places.run_dir.clone());
    let committed = rooms.store.apps().into_iter().filter_map(|app| rooms.store.committed(app));
    let targets: Vec<AppTarget> = committed.chain(rooms.store.resolved().apps.into_values()).collect();
    for target in targets {
        let release = &target.release;
        let app = wanted::app(&cx, target.app_id, release, release.sha256(), &target.env, &target.secrets)?;
        for (name, service) in &app.services {
            shared
                .prepare(target.app_id, name, service)
                .with_context(|| format!("the folders of service {name} cannot be made"))?;
        }
    }
    Ok(())
}

/// The run folders themselves.
pub(super) fn folders(places: &Places) -> anyhow::Result<()> {
    folder(&places.run_dir, 0o755)?;
    folder(&places.run_dir.join("locks"), 0o755)?;
    folder(&places.run_dir.join("secrets"), 0o700)
}

/// Where the time service reads servers from. The agent's sandbox lets it write there only if it is there when it starts.
fn time_folder(run: &Path) {
    if run.is_dir()
        && let Err(error) = folder(&run.join("timesyncd.conf.d"), 0o755)
    {
        tracing::warn!(%error, "time servers cannot be set from afar");
    }
}

fn folder(path: &Path, mode: u32) -> anyhow::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(mode)))
        .with_context(|| format!("the folder {} cannot be made", path.display()))
}
