//! Bundles: operating systems and agents in one file each, made and signed on the owner's machine.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use copal_protocol::ids::FleetId;

/// Bundles.
#[derive(Debug, Subcommand)]
pub enum BundleCommand {
    /// Make a bundle from raw partition images
    #[command(disable_version_flag = true)]
    Create(Box<BundleCreate>),
    /// Show what a bundle holds, and check it
    Inspect {
        /// The bundle
        file: PathBuf,
        /// Read all of it and compare every hash
        #[arg(long)]
        full: bool,
    },
    /// Sign a bundle with this machine's host keys
    Sign {
        /// The bundle
        file: PathBuf,
        /// A key file instead of the fleet's key set
        #[arg(long, value_name = "FILE")]
        key: Vec<PathBuf>,
    },
}

/// What every bundle says of itself.
#[derive(Debug, Clone, Args)]
pub struct BundleWords {
    /// What it runs on, as OCI spells it: amd64, arm64 or arm
    #[arg(long)]
    pub arch: String,
    /// Its version, semantic
    #[arg(long = "version", value_name = "VERSION")]
    pub release_version: semver::Version,
    /// The fleet's id, where this machine does not know the fleet
    #[arg(long, value_name = "ID")]
    pub fleet_id: Option<FleetId>,
    /// The lowest version that may update to it
    #[arg(long, value_name = "VERSION")]
    pub min_from: Option<semver::Version>,
    /// Once it is committed nothing with a lower counter is accepted; current: nothing before it
    #[arg(long, value_name = "COUNTER", value_parser = floor)]
    pub rollback_floor: Option<Floor>,
    /// The file to write
    #[arg(long, short, value_name = "FILE")]
    pub out: PathBuf,
    /// Overwrite the file
    #[arg(long)]
    pub force: bool,
}

/// Make a bundle of an operating system.
#[derive(Debug, Args)]
pub struct BundleCreate {
    /// The raw image of the root partition
    #[arg(long, value_name = "IMAGE")]
    pub rootfs: PathBuf,
    /// The raw image of the boot partition, where slots have one
    #[arg(long, value_name = "IMAGE")]
    pub boot: Option<PathBuf>,
    /// What devices it is for
    #[arg(long, value_name = "TYPE", value_delimiter = ',', required = true)]
    pub device_type: Vec<String>,
    /// An older root image or bundle, which devices that run it will fetch little beside
    #[arg(long, value_name = "FILE")]
    pub base: Vec<PathBuf>,
    /// zstd's level: 1 for a bundle that is made in seconds, 19 for one that thousands of devices fetch
    #[arg(long, value_name = "N", default_value_t = 19, value_parser = clap::value_parser!(i32).range(1..=19))]
    pub level: i32,
    /// The newest format of the data partition that the image reads, as its os.json says; raised with a container engine
    /// whose storage the one before cannot read
    #[arg(long, value_name = "N")]
    pub data_schema: Option<u64>,
    /// What every bundle says
    #[command(flatten)]
    pub words: BundleWords,
}

/// Bundles of the agent.
#[derive(Debug, Subcommand)]
pub enum AgentCommand {
    /// Make a bundle of an agent's binary, for devices that do not update their operating system by slots
    #[command(disable_version_flag = true)]
    Bundle {
        /// The binary
        #[arg(long, value_name = "FILE")]
        binary: PathBuf,
        /// What every bundle says
        #[command(flatten)]
        words: BundleWords,
    },
}

/// A rollback floor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Floor {
    /// The release's own counter.
    Current,
    /// A counter.
    Counter(u64),
}

fn floor(word: &str) -> Result<Floor, String> {
    if word == "current" {
        return Ok(Floor::Current);
    }
    word.parse().map(Floor::Counter).map_err(|_| "a counter is expected, or current".to_owned())
}
