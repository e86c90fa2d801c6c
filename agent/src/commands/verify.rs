//! `copal-agent verify`: the verification order over documents given as files, offline, each step printed. The judging
//! is [`copal_protocol::verify::chain`]'s.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use copal_protocol::{
    config::DeviceFile,
    documents::{Assignment, Document, Release, Root},
    ids::{DeviceId, Sha256Hex},
    json,
    verify::{
        Platform,
        chain::{self, Input, Named},
    },
};

use crate::{
    clock::Clock,
    settings::{self, read_bounded},
};

/// The documents and what to judge them by.
#[derive(Debug, clap::Args)]
pub struct VerifyArgs {
    /// A copal.json: its root begins the chain.
    #[arg(long, value_name = "FILE")]
    pub copal_json: Option<PathBuf>,
    /// Root envelopes, oldest first; each is accepted on the word of the one before.
    #[arg(long, value_name = "FILE")]
    pub root: Vec<PathBuf>,
    /// An Assignment envelope.
    #[arg(long, value_name = "FILE")]
    pub assignment: Option<PathBuf>,
    /// Release envelopes.
    #[arg(long, value_name = "FILE")]
    pub release: Vec<PathBuf>,
    /// The device the assignment should be for; by default the one it names.
    #[arg(long)]
    pub device_id: Option<DeviceId>,
    /// SHA-256 of that device's public key; by default the one it names.
    #[arg(long)]
    pub device_key_sha256: Option<Sha256Hex>,
    /// Device type for `compat`; by default that of copal.json.
    #[arg(long)]
    pub device_type: Option<String>,
    /// Architecture for `compat`, as OCI spells it; by default this machine's.
    #[arg(long)]
    pub arch: Option<String>,
    /// Unix seconds to judge expiry by; by default now.
    #[arg(long)]
    pub now: Option<u64>,
}

/// Prints each step; whether all of them were good.
///
/// # Errors
/// Where a file cannot be read or nothing was given.
pub fn verify(args: &VerifyArgs) -> anyhow::Result<bool> {
    let file = args.copal_json.as_deref().map(device_file).transpose()?;
    let mut roots = Vec::new();
    if let Some(file) = &file {
        roots.push(File { name: "of copal.json".to_owned(), bytes: serde_json::to_vec(&file.root)? });
    }
    for path in &args.root {
        roots.push(File::read::<Root>(path)?);
    }
    anyhow::ensure!(
        !roots.is_empty(),
        "give --copal-json or at least one --root: everything is judged by a root"
    );
    let assignment = args.assignment.as_deref().map(File::read::<Assignment>).transpose()?;
    let releases =
        args.release.iter().map(|p| File::read::<Release>(p)).collect::<anyhow::Result<Vec<_>>>()?;
    let fleet = file.as_ref().map(|f| f.fleet_id);
    let report = chain::verify(&Input {
        roots: &roots.iter().map(File::named).collect::<Vec<_>>(),
        assignment: assignment.as_ref().map(File::named),
        releases: &releases.iter().map(File::named).collect::<Vec<_>>(),
        fleet,
        device: args.device_id,
        device_key: args.device_key_sha256,
        platform: &Platform {
            device_type: args.device_type.clone().or_else(|| file.map(|f| f.device_type)).unwrap_or_default(),
            arch: args.arch.clone().unwrap_or_else(|| settings::arch().to_owned()),
            agent: crate::version(),
            os: None,
        },
        now: args.now.unwrap_or_else(|| Clock::default().now()),
    });
    for step in &report.steps {
        match &step.outcome {
            Ok(found) => println!("ok       {}: {found}", step.what),
            Err(refused) => println!("refused  {}: {refused}", step.what),
        }
    }
    Ok(report.is_ok())
}

fn device_file(path: &Path) -> anyhow::Result<DeviceFile> {
    let bytes = read_bounded(path, 256 << 10).with_context(|| path.display().to_string())?;
    json::from_slice(&bytes, json::PAYLOAD_DEPTH).with_context(|| path.display().to_string())
}

/// A file's name and bytes.
struct File {
    name: String,
    bytes: Vec<u8>,
}

impl File {
    fn read<D: Document>(path: &Path) -> anyhow::Result<Self> {
        // One byte more than is accepted: the refusal is then the document's own.
        let bytes = read_bounded(path, D::MAX_BYTES as u64 + 1)
            .with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Self { name: path.display().to_string(), bytes })
    }

    fn named(&self) -> Named<'_> {
        Named { name: &self.name, bytes: &self.bytes }
    }
}
