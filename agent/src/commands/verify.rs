//! `copal-agent verify`: the verification order over documents given as files, offline, each step printed.

use std::{collections::BTreeMap, path::PathBuf};

use anyhow::Context as _;
use copal_protocol::{
    config::DeviceFile,
    documents::{Assignment, Document, Release, Root},
    envelope::Envelope,
    ids::{DeviceId, Sha256Hex},
    json, policy,
    verify::{
        self, AssignmentMark, Code, DeviceIdentity, Error, ExpectedRelease, Platform, Purpose, ReleaseMarks,
        Verified,
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
    let mut steps = Steps { all_good: true };
    let file = args.copal_json.as_ref().map(|p| device_file(p)).transpose()?;
    let Some(root) = roots(args, file.as_ref(), &mut steps)? else { return Ok(false) };
    let now = args.now.unwrap_or_else(|| Clock::default().now());
    steps.tell(
        &format!("root {} is in time", root.version),
        verify::root_in_time(&root, now).map(|()| format!("until {}", root.expires)),
    );
    let assigned = match &args.assignment {
        Some(path) => assignment(args, &root, path, &mut steps)?,
        None => None,
    };
    let platform = Platform {
        device_type: args.device_type.clone().or_else(|| file.map(|f| f.device_type)).unwrap_or_default(),
        arch: args.arch.clone().unwrap_or_else(|| settings::arch().to_owned()),
        agent: crate::version(),
        os: None,
    };
    for path in &args.release {
        let bytes = read::<Release>(path)?;
        let judged = release(&root, assigned.as_ref(), &platform, now, &bytes);
        steps.tell(
            &format!("release {}", path.display()),
            judged.map(|r| format!("version {}, counter {}, payload {}", r.version, r.counter, r.sha256())),
        );
    }
    Ok(steps.all_good)
}

fn device_file(path: &PathBuf) -> anyhow::Result<DeviceFile> {
    let bytes = read_bounded(path, 256 << 10).with_context(|| path.display().to_string())?;
    json::from_slice(&bytes, json::PAYLOAD_DEPTH).with_context(|| path.display().to_string())
}

fn read<D: Document>(path: &PathBuf) -> anyhow::Result<Vec<u8>> {
    // One byte more than is accepted: the refusal is then the document's own.
    read_bounded(path, D::MAX_BYTES as u64 + 1).with_context(|| format!("cannot read {}", path.display()))
}

fn roots(
    args: &VerifyArgs,
    file: Option<&DeviceFile>,
    steps: &mut Steps,
) -> anyhow::Result<Option<Verified<Root>>> {
    let mut envelopes: Vec<(String, Vec<u8>)> = Vec::new();
    if let Some(file) = file {
        envelopes.push(("root of copal.json".to_owned(), serde_json::to_vec(&file.root)?));
    }
    for path in &args.root {
        envelopes.push((format!("root {}", path.display()), read::<Root>(path)?));
    }
    anyhow::ensure!(
        !envelopes.is_empty(),
        "give --copal-json or at least one --root: everything is judged by a root"
    );
    let mut trusted: Option<Verified<Root>> = None;
    for (name, bytes) in envelopes {
        let judged = Envelope::parse::<Root>(&bytes).and_then(|envelope| match (&trusted, file) {
            (Some(before), _) => verify::next_root(before, &envelope),
            (None, Some(file)) => verify::first_root(&envelope, file.fleet_id),
            // Without copal.json the first root is taken at its own word, as `copal.json` would give it.
            (None, None) => {
                let fleet = json::from_slice::<Root>(envelope.payload(), json::PAYLOAD_DEPTH)
                    .map_err(|e| Error::new(Code::Payload, e.to_string()))?
                    .fleet_id;
                verify::first_root(&envelope, fleet)
            }
        });
        let good = judged.as_ref().ok().cloned();
        steps.tell(&name, judged.map(|r| format!("version {}, fingerprint {}", r.version, r.sha256())));
        let Some(root) = good else { return Ok(None) };
        trusted = Some(root);
    }
    Ok(trusted)
}

fn assignment(
    args: &VerifyArgs,
    root: &Verified<Root>,
    path: &PathBuf,
    steps: &mut Steps,
) -> anyhow::Result<Option<Verified<Assignment>>> {
    let bytes = read::<Assignment>(path)?;
    let judged = Envelope::parse::<Assignment>(&bytes).and_then(|envelope| {
        let named: Option<Assignment> = json::from_slice(envelope.payload(), json::PAYLOAD_DEPTH).ok();
        let device = DeviceIdentity {
            fleet_id: root.fleet_id,
            device_id: args
                .device_id
                .or(named.as_ref().map(|a| a.device_id))
                .unwrap_or_else(|| DeviceId::from_bytes([0; 16])),
            key_sha256: args
                .device_key_sha256
                .or(named.map(|a| a.device_key_sha256))
                .unwrap_or_else(|| Sha256Hex::from_bytes([0; 32])),
        };
        verify::assignment(root, &device, &AssignmentMark::default(), &envelope)
    });
    let good = judged.as_ref().ok().cloned();
    steps.tell(
        &format!("assignment {}", path.display()),
        judged.map(|a| {
            format!("device {}, epoch {}, seq {}, {} apps", a.device_id, a.assign_epoch, a.seq, a.apps.len())
        }),
    );
    Ok(good)
}

fn release(
    root: &Verified<Root>,
    assigned: Option<&Verified<Assignment>>,
    platform: &Platform,
    now: u64,
    bytes: &[u8],
) -> Result<Verified<Release>, Error> {
    let envelope = Envelope::parse::<Release>(bytes)?;
    let sha256 = envelope.payload_sha256();
    let app = match assigned {
        Some(assignment) => {
            let named = assignment.apps.iter().find(|a| a.sha256 == sha256);
            Some(
                named
                    .ok_or_else(|| {
                        Error::new(
                            Code::ReleaseHash,
                            format!("its payload is {sha256}, which the assignment does not name"),
                        )
                    })?
                    .app_id,
            )
        }
        None => {
            json::from_slice::<Release>(envelope.payload(), json::PAYLOAD_DEPTH).ok().and_then(|r| r.app_id)
        }
    };
    let kind = if app.is_some() {
        copal_protocol::documents::ReleaseKind::App
    } else {
        copal_protocol::documents::ReleaseKind::Host
    };
    let expected = ExpectedRelease { kind, app_id: app, sha256 };
    let verified = verify::release(
        root,
        &expected,
        &ReleaseMarks::default(),
        platform,
        Purpose::Install { now },
        &envelope,
    )?;
    policy::check_release(&root.policy, &verified)?;
    for (name, service) in &verified.services {
        let env = assigned
            .zip(app)
            .and_then(|(a, app)| a.env.get(&app)?.get(name).cloned())
            .unwrap_or_else(BTreeMap::new);
        policy::check_env(root.policy.env_mode, service, &env)?;
    }
    Ok(verified)
}

struct Steps {
    all_good: bool,
}

impl Steps {
    fn tell(&mut self, what: &str, judged: Result<String, Error>) {
        match judged {
            Ok(detail) => println!("ok       {what}: {detail}"),
            Err(e) => {
                self.all_good = false;
                println!("refused  {what}: {}: {}", e.code, e.detail);
            }
        }
    }
}
