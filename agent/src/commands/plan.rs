//! `copal-agent plan`: what would be done, from files alone.

use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::{
    plan::{offline, wanted::Context},
    settings::{self, read_bounded},
};

/// The files.
#[derive(Debug, clap::Args)]
pub struct PlanArgs {
    /// What runs, as JSON: a look at an engine, or, in the form of --target, the releases that run.
    #[arg(long, value_name = "FILE")]
    pub state: PathBuf,
    /// What should run, as JSON; releases in the clear.
    #[arg(long, value_name = "FILE")]
    pub target: PathBuf,
    /// The agent's instance label in the state.
    #[arg(long, default_value = "offline")]
    pub instance: String,
    /// As images are built for it; by default this machine's.
    #[arg(long)]
    pub platform: Option<String>,
}

const MAX_FILE: u64 = 16 << 20;

/// Prints the plan.
///
/// # Errors
/// Where a file cannot be used, or a release has no image for the platform.
pub fn plan(args: &PlanArgs, prefix: &str) -> anyhow::Result<()> {
    let cx = Context {
        instance: args.instance.clone(),
        prefix: prefix.to_owned(),
        // Hashes of an offline plan are compared with nothing else.
        hash_key: [0; 32],
        platform: args.platform.clone().unwrap_or_else(settings::platform),
        device_id: "0".repeat(32),
        device_type: "offline".to_owned(),
    };
    let state = read::<offline::StateFile>(&args.state)?.state(&cx)?;
    let plan = offline::plan(&cx, &state, &read(&args.target)?)?;
    print!("{plan}");
    Ok(())
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> anyhow::Result<T> {
    let bytes = read_bounded(path, MAX_FILE).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&bytes).with_context(|| format!("{} is not what is expected", path.display()))
}
