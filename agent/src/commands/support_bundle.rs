//! `copal-agent support-bundle`: one file for whoever helps from afar, without secrets.

use std::{fs::OpenOptions, os::unix::fs::OpenOptionsExt as _, path::PathBuf};

use anyhow::Context as _;

use super::diagnose::{Beside, with_runtime};
use crate::{diagnostics::bundle, settings::Places};

/// Where to.
#[derive(Debug, clap::Args)]
pub struct BundleArgs {
    /// The file to write (*.tar.gz); it must not exist yet.
    pub file: PathBuf,
}

/// Makes the checks, gathers the rest, and writes the file (mode 0600).
///
/// # Errors
/// Where the file exists, or cannot be written.
pub fn support_bundle(places: &Places, args: &BundleArgs) -> anyhow::Result<()> {
    let what = || format!("{} cannot be written", args.file.display());
    // First, so that nobody waits for nothing; and never over a file that is somebody's.
    let file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&args.file).with_context(what)?;
    let (beside, gathered) = with_runtime(async {
        let beside = Beside::open(places);
        let gathered = bundle::gather(&beside.deps).await;
        (beside, gathered)
    })?;
    let state = beside.rooms.as_ref().map(|rooms| &*rooms.state);
    let written = bundle::write(std::io::BufWriter::new(file), &beside.deps, &gathered, state)
        .and_then(|out| out.into_inner().map_err(std::io::IntoInnerError::into_error))
        .and_then(|file| file.sync_all());
    if written.is_err() {
        // Half of one would be taken for the whole; that it cannot be removed either is no news.
        let _ = std::fs::remove_file(&args.file);
    }
    written.with_context(what)?;
    println!(
        "{} is written. Secrets were taken out; look through it before you pass it on.",
        args.file.display()
    );
    Ok(())
}
